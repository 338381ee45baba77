//! What one party holds of the result of an op.

use ombra_ir::bind::Bound;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use std::borrow::Cow;

use super::products::plus;
use super::share::{BitShare, Masked, Share};
use crate::settings::weights::{Matrix, Part, Terms};
use crate::wiped::Zeroizing;

/// The result of an op at one party. Its shape is in [`Bound`]; it has no `Debug`.
pub enum Value {
    /// A value of the public program, by index.
    Plain(u32),
    /// Integers of the client, which the other parties do not have.
    Ids(Option<Vec<i64>>),
    /// Ring elements that every party knows.
    Public(Vec<u64>),
    /// Ring elements that are shared.
    Share(Share),
    /// Ring elements that client and server know under a mask.
    Masked(Masked),
    /// Ring elements that the server knows under a mask.
    Held(Masked),
    /// Shared bits.
    Bits(BitShare),
    /// A private weight, or what was moved from one.
    Weight(Terms),
    /// A matrix of a private weight that is made block by block.
    Matrix(Matrix),
}

/// The words of a part of a weight.
pub(super) fn part_of(part: Part, terms: &Terms) -> Result<Cow<'_, [u64]>> {
    let none = || unexpected("a term of a weight");
    let [first, second] = [&terms.first, &terms.second].map(|term| term.as_ref().map(|words| words.as_slice()));
    Ok(match part {
        Part::First => Cow::Borrowed(first.ok_or_else(none)?),
        Part::Second => Cow::Borrowed(second.ok_or_else(none)?),
        Part::Whole => Cow::Owned(plus(first.ok_or_else(none)?.to_vec(), second.ok_or_else(none)?)),
    })
}

/// A party's share of a weight: the first term at the client, the second at the server.
fn share_of(role: u8, terms: &Terms) -> Option<&[u64]> {
    let term = if role == 0 { &terms.first } else { &terms.second };
    term.as_ref().map(|words| words.as_slice()).filter(|_| role < 2)
}

impl Value {
    /// The public tensor. E0811 for another value.
    pub(super) fn plain<'a>(&self, bound: &'a Bound) -> Result<&'a Tensor> {
        match self {
            Value::Plain(index) => bound.public.get(*index as usize).ok_or_else(|| unexpected("a public value")),
            _ => Err(unexpected("a public value")),
        }
    }

    /// The shared bits. E0811 for another value.
    pub(in crate::settings) fn bits(&self) -> Result<&BitShare> {
        match self {
            Value::Bits(bits) => Ok(bits),
            _ => Err(unexpected("shared bits")),
        }
    }

    /// This party's share of ring elements, whatever form they have: a public number is the client's. None at the dealer,
    /// and where it is zero.
    pub(in crate::settings) fn share(&self, role: u8) -> Result<Option<Cow<'_, [u64]>>> {
        match self {
            Value::Share(share) => Ok(share.words().map(Cow::Borrowed)),
            Value::Weight(terms) => Ok(share_of(role, terms).map(Cow::Borrowed)),
            Value::Public(words) => Ok(Some(Cow::Borrowed(words.as_slice())).filter(|_| role == 0)),
            Value::Masked(masked) | Value::Held(masked) => {
                Ok(masked.share(role).words().map(|words| Cow::Owned(words.to_vec())))
            }
            _ => Err(unexpected("ring elements")),
        }
    }

    /// The same as a share of its own, of `n` words.
    pub(in crate::settings) fn to_share(&self, role: u8, n: usize) -> Result<Share> {
        if role == 2 {
            return Ok(Share::nothing());
        }
        Ok(Share::of(self.share(role)?.map_or_else(|| vec![0; n], Cow::into_owned)))
    }

    /// The same under a mask, of `n` words: a public number is under none. E0811 for a share.
    pub(super) fn masked(&self, role: u8, n: usize) -> Result<Cow<'_, Masked>> {
        match self {
            Value::Masked(masked) => Ok(Cow::Borrowed(masked)),
            Value::Public(words) => {
                let (words, none) = (Some(Zeroizing::new(words.clone())), || Some(Zeroizing::new(vec![0; n])));
                Ok(Cow::Owned(match role {
                    0 => Masked { words, masks: [none(), None] },
                    1 => Masked { words, masks: [None, none()] },
                    _ => Masked { words: None, masks: [none(), none()] },
                }))
            }
            _ => Err(unexpected("a masked value")),
        }
    }

    /// The same held by the server, of `n` words. E0811 for a share.
    pub(super) fn held(&self, role: u8, n: usize) -> Result<Cow<'_, Masked>> {
        match self {
            Value::Held(held) => Ok(Cow::Borrowed(held)),
            _ => self.masked(role, n).map(|masked| Cow::Owned(masked.to_held())),
        }
    }
}

pub(in crate::settings) fn unexpected(expected: &str) -> Diagnostic {
    Diagnostic::internal("E0811", "an op has an operand of another kind")
        .note(format!("expected  {expected}"))
        .note("the plan should have been refused: report this")
}
