//! Lookups by a one-hot vector: what exponentials and parabolas have in common.
//!
//! Source: one-hot lookups from a dealer with a hidden sign, after function-secret-shared look-up tables. Parties and
//! adversary: client, server and dealer, one semi-honest corruption.
//! Rounds: 2, in the first of which the operand is masked if it is not yet. Bits per element, of `N` cells and `K` products
//! in a ring of `ℓ`: the window's in whole bytes each way for the mask, `Kℓ` each way, `N + (K + 1)ℓ` dealt to the server.
//! Side channels: every cell of the table is read.
//!
//! ```text
//!   x = m − λ modulo 2^W: m known to client and server; the vector with its sign σ as `one_hot` says, b^0 = F(k_0) at the
//!     client, b^1 dealt; with them client and server have shares of σ·P_k, which follow from m and a table's entries
//!   v_k = σ·P_k + τ_k opened to both, τ_k^0 = F(k_0), τ_k^1 = F(k_2)
//!   D_k = σ·w_k, of factors w_k that follow from λ, and C = Σ D_k τ_k dealt
//!   Σ w_k P_k = Σ D_k v_k − C
//! ```
//!
//! Neither party may learn σ: with its own bits it would tell half of the candidates for λ.
//!
//! Simulator. `m` is under λ^0 and λ^1 from `k_0` and `k_2`, every `v` under its τ, the vector and all dealt elements under
//! streams of `k_0`. Every label is used once.

use ombra_ir::Result;

use super::products::{Operand, end, minus, plus};
use super::share::Share;
use super::{Cx, Purpose};
use crate::settings::one_hot::OneHot;

/// The sizes of a lookup.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Bits of the operand that are looked at.
    pub window: u8,
    /// Their cells.
    pub one_hot: OneHot,
    /// Ring bits of what is looked up, and of the result.
    pub bits: u8,
}

/// `Σ w_k P_k` of `n` elements: `factor` gives the dealer `w_k` of λ and `k`, and `shares` client and server their shares of
/// `σ·P_k` by their vectors and `m`; the server's, which is the second, are less.
pub(super) async fn look_up<const K: usize>(
    cx: &Cx,
    x: Operand<'_>,
    n: usize,
    Sizes { window, one_hot, bits }: Sizes,
    factor: impl Fn(u64, u8) -> u64,
    shares: impl FnOnce(&[u64], &[u64], bool) -> Result<[Vec<u64>; K]>,
) -> Result<Share> {
    let width = 8 * window.div_ceil(8);
    let begun = x.begin(cx, n, width, 0)?;
    let vectors = || cx.draw(0, Purpose::OneHot, 0, one_hot.words() * n);
    let tau = |key: u8, part: u8| cx.draw(key, Purpose::LookupMask, part, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    let last = K as u8;
    if cx.role() == 2 {
        let lambda = begun.lambda()?;
        let mut vector = vectors()?;
        let signs = one_hot.hide(&mut vector, &lambda);
        cx.send(1, &vector, one_hot.word_bits());
        cx.round().await;
        let mut sum = vec![0u64; n];
        for part in 0..last {
            let tau = plus(tau(0, part)?, &tau(2, part)?);
            let mut factors = dealt(part)?;
            for (i, dealt) in factors.iter_mut().enumerate() {
                let own = signs[i].wrapping_mul(factor(lambda[i], part));
                sum[i] = sum[i].wrapping_add(own.wrapping_mul(tau[i]));
                *dealt = own.wrapping_sub(*dealt);
            }
            cx.send(1, &factors, bits);
        }
        cx.send(1, &minus(sum, &dealt(last)?), bits);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    cx.round().await;
    let ended = end(cx, begun, n, width)?;
    let vector = if role == 0 { vectors()? } else { cx.take(2, one_hot.words() * n, one_hot.word_bits())? };
    let mut sent = Vec::with_capacity(K);
    for (own, part) in shares(&vector, ended.words()?, role == 1)?.into_iter().zip(0u8..) {
        sent.push(plus(own, &tau(2 * role, part)?));
        cx.send(peer, &sent[usize::from(part)], bits);
    }
    cx.round().await;
    let mut value = vec![0u64; n];
    for (own, part) in sent.into_iter().zip(0u8..) {
        let v = plus(own, &cx.take(peer, n, bits)?);
        let factors = if role == 0 { dealt(part)? } else { cx.take(2, n, bits)? };
        for (value, (v, d)) in value.iter_mut().zip(v.iter().zip(&factors)) {
            *value = value.wrapping_add(v.wrapping_mul(*d));
        }
    }
    let sum = if role == 0 { dealt(last)? } else { cx.take(2, n, bits)? };
    Ok(Share::of(minus(value, &sum)))
}
