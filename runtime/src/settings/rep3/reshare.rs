//! A sum of the parties' terms turned into a replicated sharing.
//!
//! Source: Araki et al., 2016/768, §3 (terms masked by a sharing of zero), with role 2's term dealt as two components.
//! Parties and adversary: three, one semi-honest corruption. Rounds: 1 for three terms, none for two. Correlation and error:
//! none. Bits per element: `3ℓ` for three terms, `ℓ` for two.
//!
//! Three terms: role `j` has `Z_j`, its term and `F(k_j) − F(k_{j+1})`. Roles 0 and 1 send each other theirs, and component 1
//! is the sum; role 2 deals its own. Simulator: role 0 does not know `k_2`, which masks `Z_1`. Role 1 does not know `k_0`,
//! which masks `Z_0`, nor the component 0 that what is dealt is under, which is from `k_0` too and independent. Role 2
//! receives nothing, and need not: it knows the sum of components 0 and 2.
//!
//! Two terms: the one that roles 0 and 1 hold is component 1, and role 2 deals its own. Simulator: role 1 does not know
//! `k_0`, so what it receives is uniform; the others receive nothing. Component 1 of the result is the operand's term and
//! not fresh: see [`cross`](super::cross).

use ombra_ir::Result;

use super::cross::{add_words, deal, dealt_sharing, two_terms};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Component, Shared, Sum};

/// A secret that is to be divided or reshared.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// A replicated sharing, read as the sum of `x1` at roles 0 and 1 and `x0 + x2` at role 2.
    Shared(&'a Shared),
    /// A sum of a term that roles 0 and 1 hold and one of role 2.
    Two(&'a Sum),
    /// A sum over all roles.
    Three(&'a Sum),
}

impl Operand<'_> {
    /// What a kernel takes that asks for two terms alone, of a sharing or a sum of two terms: that of roles 0 and 1 is
    /// component 1, that of role 2 component 2, and component 0 is zero. Role 1, which lacks component 2, has zero there, so
    /// this is no sharing to multiply or open.
    pub(super) fn two_terms(&self, role: u8) -> Option<Shared> {
        let Operand::Two(sum) = self else { return None };
        let term = sum.data().map_or(Component::Zero, |words| Component::from(words.to_vec()));
        Some(match role {
            0 => Shared { a: Component::Zero, b: term },
            _ => Shared { a: term, b: Component::Zero },
        })
    }

    /// Whether every role has a term of its own.
    pub(super) fn has_three_terms(self) -> bool {
        matches!(self, Operand::Three(_))
    }
}

/// This role's term, in `n` words.
pub(super) fn own_term(cx: &Cx, x: Operand<'_>, n: usize) -> Vec<u64> {
    match x {
        Operand::Shared(x) => two_terms(cx, x, n),
        Operand::Two(x) | Operand::Three(x) => x.data().map_or_else(|| vec![0; n], <[u64]>::to_vec),
    }
}

/// The sharing of `n` elements of a ring of `bits`.
pub async fn reshare(cx: &Cx, x: Operand<'_>, n: usize, bits: u8) -> Result<Shared> {
    let term = own_term(cx, x, n);
    if x.has_three_terms() { reshare_three(cx, term, bits).await } else { reshare_two(cx, term, bits) }
}

/// The sharing of the sum of every role's `term`.
pub(super) async fn reshare_three(cx: &Cx, term: Vec<u64>, bits: u8) -> Result<Shared> {
    let term = open_to_two(cx, term, bits).await?;
    reshare_two(cx, term, bits)
}

/// The sum of every role's `term` as a sum of two terms: roles 0 and 1 know the sum of theirs, under masks.
pub(super) async fn open_to_two(cx: &Cx, mut term: Vec<u64>, bits: u8) -> Result<Vec<u64>> {
    cx.add_zero_share(Purpose::Reshare, &mut term);
    exchange_terms(cx, term, bits).await
}

/// The same of terms that are masked already.
pub(super) async fn exchange_terms(cx: &Cx, mut term: Vec<u64>, bits: u8) -> Result<Vec<u64>> {
    let (role, n) = (cx.role(), term.len());
    if role != 2 {
        cx.send(1 - role, &term, bits);
        cx.exchange().await;
        add_words(&mut term, cx.take(1 - role, n, bits)?);
    }
    Ok(term)
}

fn reshare_two(cx: &Cx, term: Vec<u64>, bits: u8) -> Result<Shared> {
    let n = term.len();
    let (joint, single) = if cx.role() == 2 { (Vec::new(), term) } else { (term, Vec::new()) };
    let known = deal(cx, single, n, bits, Purpose::Deal)?;
    Ok(dealt_sharing(cx, joint, known))
}
