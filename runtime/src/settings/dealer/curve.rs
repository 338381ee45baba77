//! Smooth functions by one lookup of a parabola.
//!
//! Source: one-hot lookups from a dealer with a hidden sign, and polynomials in a masked value whose powers of the mask are
//! dealt. Parties and adversary: client, server and dealer, one semi-honest corruption.
//! Rounds: 2, in the first of which the operand is masked if it is not yet. Bits per element, of `N` cells in a ring of `ℓ`:
//! the window's in whole bytes each way for the mask, `3ℓ` each way, `N + 4ℓ` dealt to the server. Error: that of the
//! parabola ([`ombra_ir::curve`]) and three units or less of its coefficients at `F/2 + 2` fraction bits or more.
//! Side channels: every cell of the table is read.
//!
//! ```text
//!   x = m − λ, the vector with its sign σ, t and P_k: as `parabola` says; b^0 = F(k_0) at the client, b^1 dealt
//!   v_k = σ·P_k + τ_k opened to both, τ_k^0 = F(k_0), τ_k^1 = F(k_2)
//!   D_0 = σ, D_1 = σ·t and D_2 = σ·t², with the fraction bits that v_k lacks to F, and C = Σ D_k τ_k dealt
//!   f(x) = Σ D_k v_k − C
//! ```
//!
//! Neither party may learn σ: with its own bits it would tell half of the candidates for λ.
//!
//! Simulator. `m` is under λ^0 and λ^1 from `k_0` and `k_2`, every `v` under its τ, the vector and all dealt elements under
//! streams of `k_0`. Every label is used once.

use ombra_ir::Result;
use ombra_ir::curve::{Cells, Curve};

use super::products::{Operand, end, minus, plus};
use super::share::Share;
use super::{Cx, Purpose};
use crate::settings::parabola::{POWERS, Parabola};
use crate::settings::tables::CurveTables;

/// `f(x)` of `n` elements in a ring of `bits`; `tables` are those that the run keeps.
pub async fn look_up(
    cx: &Cx,
    tables: &CurveTables,
    x: Operand<'_>,
    n: usize,
    curve: Curve,
    cells: Cells,
    bits: u8,
) -> Result<Share> {
    let parabola = Parabola::new(cells, bits)?;
    let width = 8 * cells.window.div_ceil(8);
    let begun = x.begin(cx, n, width, 0)?;
    let (words, vector_bits) = parabola.vector();
    let vectors = || cx.draw(0, Purpose::OneHot, 0, words * n);
    let tau = |key: u8, part: u8| cx.draw(key, Purpose::LookupMask, part, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    if cx.role() == 2 {
        let lambda = begun.lambda()?;
        let mut vector = vectors()?;
        let signs = parabola.hide(&mut vector, &lambda);
        cx.send(1, &vector, vector_bits);
        cx.round().await;
        let mut sum = vec![0u64; n];
        for part in 0..POWERS {
            let tau = plus(tau(0, part)?, &tau(2, part)?);
            let mut factors = dealt(part)?;
            for (i, factor) in factors.iter_mut().enumerate() {
                let own = signs[i].wrapping_mul(parabola.power(lambda[i], part));
                sum[i] = sum[i].wrapping_add(own.wrapping_mul(tau[i]));
                *factor = own.wrapping_sub(*factor);
            }
            cx.send(1, &factors, bits);
        }
        cx.send(1, &minus(sum, &dealt(POWERS)?), bits);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    cx.round().await;
    let ended = end(cx, begun, n, width)?;
    let m = ended.words()?;
    let vector = if role == 0 { vectors()? } else { cx.take(2, words * n, vector_bits)? };
    let own = parabola.shares(&*tables.of(curve, cells)?, &vector, m, role == 1);
    let mut sent = Vec::with_capacity(own.len());
    for (own, part) in own.into_iter().zip(0u8..) {
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
    let last = if role == 0 { dealt(POWERS)? } else { cx.take(2, n, bits)? };
    Ok(Share::of(minus(value, &last)))
}
