//! A sum of the parties' terms turned into a replicated sharing.
//!
//! Source: Araki et al., 2016/768, §3 (resharing after a product).
//! Parties and adversary: three, one semi-honest corruption. Rounds: 1. Correlation and error: none.
//! Bits per element: `3ℓ` for three terms, `2ℓ` for two.
//!
//! Three terms: role `j` masks its term with `F(k_j) − F(k_{j+1})` and sends it to role `j − 1`, for which it is
//! component `j`. Simulator: the receiver does not know `k_{j+1}`, so the message is uniform.
//!
//! Two terms `A`, `B`: components 0 and 2 are `F(k_0)` and `F(k_2)`; roles 0 and 1 exchange `A − F(k_0)` and
//! `B − F(k_2)`, whose sum is component 1. Simulator: role 1 does not know `k_0` nor role 0 `k_2`, so both messages are
//! uniform; role 2 receives nothing.

use ombra_ir::Result;

use super::cx::{Cx, Purpose};
use crate::share::{Shared, Sum};

/// A secret that is to be divided or reshared.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// A replicated sharing, read as the sum of `x0 + x1` at role 0 and `x2` at role 1.
    Shared(&'a Shared),
    /// A sum over roles 0 and 1.
    Two(&'a Sum),
    /// A sum over all roles.
    Three(&'a Sum),
}

impl Operand<'_> {
    /// Whether role 2 has a term.
    pub(super) fn has_third_term(self) -> bool {
        matches!(self, Operand::Three(_))
    }
}

/// This role's term, in `n` words.
pub(super) fn own_term(cx: &Cx, x: Operand<'_>, n: usize) -> Vec<u64> {
    match x {
        Operand::Shared(x) => match cx.role() {
            0 => x.both(n),
            1 => x.b.to_vec(n),
            _ => vec![0; n],
        },
        Operand::Two(x) | Operand::Three(x) => x.data().map_or_else(|| vec![0; n], <[u64]>::to_vec),
    }
}

/// The sharing of `n` elements of a ring of `bits`.
pub async fn reshare(cx: &Cx, x: Operand<'_>, n: usize, bits: u8) -> Result<Shared> {
    let term = own_term(cx, x, n);
    if x.has_third_term() { reshare_three(cx, term, bits).await } else { reshare_two(cx, term, bits).await }
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

async fn reshare_two(cx: &Cx, mut term: Vec<u64>, bits: u8) -> Result<Shared> {
    let n = term.len();
    match cx.role() {
        0 => {
            let x0 = cx.draw(0, Purpose::ReshareOut0, 0, n)?;
            term.iter_mut().zip(&x0).for_each(|(t, x)| *t = t.wrapping_sub(*x));
            exchange(cx, 1, &mut term, bits).await?;
            Ok(Shared::new(x0, term))
        }
        1 => {
            let x2 = cx.draw(2, Purpose::ReshareOut2, 0, n)?;
            term.iter_mut().zip(&x2).for_each(|(t, x)| *t = t.wrapping_sub(*x));
            exchange(cx, 0, &mut term, bits).await?;
            Ok(Shared::new(term, x2))
        }
        _ => {
            cx.round().await;
            let x2 = cx.draw(2, Purpose::ReshareOut2, 0, n)?;
            Ok(Shared::new(x2, cx.draw(0, Purpose::ReshareOut0, 0, n)?))
        }
    }
}

/// Sends `term` to `peer` and adds what it sends.
async fn exchange(cx: &Cx, peer: u8, term: &mut [u64], bits: u8) -> Result<()> {
    cx.send(peer, term, bits);
    cx.round().await;
    let other = cx.take(peer, term.len(), bits)?;
    term.iter_mut().zip(&other).for_each(|(t, o)| *t = t.wrapping_add(*o));
    Ok(())
}
