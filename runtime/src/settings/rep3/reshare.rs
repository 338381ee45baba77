//! A sum of the parties' terms turned into a replicated sharing.
//!
//! Source: Araki et al., 2016/768, §3 (resharing after a product).
//! Parties and adversary: three, one semi-honest corruption. Rounds: 1. Correlation and error: none.
//! Bits per element: `3ℓ` for three terms, `ℓ` for two.
//!
//! Three terms: role `j` masks its term with `F(k_j) − F(k_{j+1})` and sends it to role `j − 1`, for which it is
//! component `j`. Simulator: the receiver does not know `k_{j+1}`, so the message is uniform.
//!
//! Two terms: the one that roles 0 and 1 hold is component 1, and role 2 deals its own. Simulator: role 1 does not know
//! `k_0`, so what it receives is uniform; the others receive nothing. Component 1 of the result is the operand's term and
//! not fresh: see [`cross`](super::cross).

use ombra_ir::Result;

use super::cross::{deal, two_terms};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Shared, Sum};

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
    if x.has_three_terms() { reshare_three(cx, term, bits).await } else { reshare_two(cx, term, bits).await }
}

/// The sharing of the sum of every role's `term`.
pub(super) async fn reshare_three(cx: &Cx, mut term: Vec<u64>, bits: u8) -> Result<Shared> {
    cx.add_zero_share(Purpose::Reshare, &mut term);
    let role = cx.role();
    cx.send((role + 2) % 3, &term, bits);
    cx.round().await;
    let next = cx.take((role + 1) % 3, term.len(), bits)?;
    Ok(Shared::new(term, next))
}

async fn reshare_two(cx: &Cx, term: Vec<u64>, bits: u8) -> Result<Shared> {
    let n = term.len();
    let (joint, single) = if cx.role() == 2 { (Vec::new(), term) } else { (term, Vec::new()) };
    let dealt = deal(cx, single, n, bits, Purpose::Deal)?;
    cx.round().await;
    let [first, second] = dealt.end(cx)?;
    Ok(match cx.role() {
        0 => Shared::new(first, joint),
        1 => Shared::new(joint, first),
        _ => Shared::new(first, second),
    })
}
