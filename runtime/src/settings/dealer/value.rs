//! What one party holds of the result of an op.

use std::sync::Arc;

use ombra_ir::bind::Bound;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use std::borrow::Cow;
use zeroize::Zeroizing;

use super::share::{BitShare, Masked, Share};
use super::{Part, part_of};
use crate::settings::rep3::local::linear::Ring;
use crate::settings::rep3::share::Shared;

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
    /// A matrix of weights that is made block by block, or multiplied where it is stored.
    Matrix(Arc<crate::settings::rep3::value::Value>),
}

/// The two terms of a private weight, `W = first + second`: the first at client and server, the second at server and dealer.
pub struct Terms {
    /// The term of client and server.
    pub first: Option<Zeroizing<Vec<u64>>>,
    /// The term of server and dealer.
    pub second: Option<Zeroizing<Vec<u64>>>,
}

impl Terms {
    /// The terms with `f` applied to each: a linear map.
    pub fn map(&self, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Terms> {
        let of = |term: &Option<Zeroizing<Vec<u64>>>| term.as_ref().map(|t| f(t).map(Zeroizing::new)).transpose();
        Ok(Terms { first: of(&self.first)?, second: of(&self.second)? })
    }

    /// The words of a part.
    pub(super) fn part(&self, part: Part) -> Result<Cow<'_, [u64]>> {
        let [first, second] = [&self.first, &self.second].map(|term| term.as_ref().map(|term| term.as_slice()));
        part_of(part, first, second)
    }

    /// This party's share of the weight: the first term at the client, the second at the server.
    pub fn share(&self, role: u8) -> Option<&[u64]> {
        let term = if role == 0 { &self.first } else { &self.second };
        term.as_ref().map(|term| term.as_slice()).filter(|_| role < 2)
    }
}

/// The two terms of a weight as the shared set-up holds them.
pub(super) fn terms(role: u8, shared: &Shared) -> [Option<&[u64]>; 2] {
    let (a, b) = (shared.a.data(), shared.b.data());
    match role {
        0 => [b, None],
        1 => [a, b],
        _ => [None, a],
    }
}

/// A weight as the shared set-up holds it.
pub(super) fn terms_of(role: u8, ring: &Ring) -> Result<Value> {
    match ring {
        Ring::Public(words) => Ok(Value::Public(words.clone())),
        Ring::Shared(shared) => {
            let [first, second] = terms(role, shared).map(|term| term.map(|words| Zeroizing::new(words.to_vec())));
            Ok(Value::Weight(Terms { first, second }))
        }
        Ring::Two(_) | Ring::Three(_) => Err(unexpected("a weight")),
    }
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
    pub(super) fn bits(&self) -> Result<&BitShare> {
        match self {
            Value::Bits(bits) => Ok(bits),
            _ => Err(unexpected("shared bits")),
        }
    }

    /// This party's share of ring elements, whatever form they have: a public number is the client's. None at the dealer,
    /// and where it is zero.
    pub(super) fn share(&self, role: u8) -> Result<Option<Cow<'_, [u64]>>> {
        match self {
            Value::Share(share) => Ok(share.words().map(Cow::Borrowed)),
            Value::Weight(terms) => Ok(terms.share(role).map(Cow::Borrowed)),
            Value::Public(words) => Ok(Some(Cow::Borrowed(words.as_slice())).filter(|_| role == 0)),
            Value::Masked(masked) | Value::Held(masked) => {
                Ok(masked.share(role).words().map(|words| Cow::Owned(words.to_vec())))
            }
            _ => Err(unexpected("ring elements")),
        }
    }

    /// The same as a share of its own, of `n` words.
    pub(super) fn to_share(&self, role: u8, n: usize) -> Result<Share> {
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

pub(super) fn unexpected(expected: &str) -> Diagnostic {
    Diagnostic::internal("E0811", "an op has an operand of another kind")
        .note(format!("expected  {expected}"))
        .note("the plan should have been refused: report this")
}
