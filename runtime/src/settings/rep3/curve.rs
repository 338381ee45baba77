//! Smooth functions by one lookup of a polynomial, as a sum of three terms.
//!
//! Source: one-hot lookups with a hidden sign ([`parabola`](crate::settings::parabola)), where what two parties know and what
//! the third knows is a replicated sharing itself (see [`cross`](super::cross)): nothing is masked before, and whoever deals
//! keeps a term of its own.
//! Parties and adversary: three, one semi-honest corruption. Correlation: none.
//! Rounds: 1, before which role 2 has dealt. Bits per element, of `N` cells in a ring of `ℓ`: `N + 3ℓ` from role 2 to role 1,
//! `3ℓ` each way between roles 0 and 1. A division of the sum brings it into the ring and to the scale of what
//! follows.
//! Error: that of the polynomial ([`ombra_ir::curve`]) and a unit or less of its terms at `F/2` fraction bits, for `F` of the
//! result. Side channels: every cell of the table is read; role 2 writes one word of a vector of four or fewer, by its own λ.
//!
//! ```text
//!   m = x1 at roles 0 and 1, λ = −(x0 + x2) at role 2, both mod 2^W; σ, t and R_k as `parabola` says
//!   dealt: b^0 = F(k_0) at roles 0 and 2, b^1 = b^0 ⊕ e to role 1;  D_k = σ·t^k = F(k_0)_k + d_k, d_k to role 1
//!   roles 0 and 1 exchange their shares of σ·R_k + τ_k, under τ_k^0 = F(k_0)' and τ_k^1 = F(k_2)': v_k is their sum
//!   f(x) = Σ D_k v_k − Σ D_k τ_k:  Σ F(k_0)_k v_k at role 0, Σ d_k v_k at role 1, −Σ D_k τ_k at role 2
//! ```
//!
//! The index of the entries that roles 0 and 1 sum is `m`, which both hold: an address depends on it where entries are read
//! in order from there on. It is uniform and independent of `x` in their views, as every component of a sharing.
//!
//! Simulator. Role 1 receives the vector under `F(k_0)`, `d_k` and role 0's shares under `F(k_0)`, and does not know `k_0`;
//! role 0 receives role 1's shares under `F(k_2)`, and does not know `k_2`. Role 2 receives nothing. Every label is used once.
//! Neither of roles 0 and 1 may learn σ: with its own bits it would tell half of the candidates for λ.

use ombra_ir::Result;
use ombra_ir::curve::{Cells, Curve};

use super::cross::two_terms;
use super::{Cx, Purpose};
use crate::settings::parabola::{POWERS, Parabola};
use crate::settings::rep3::share::{Shared, Sum};
use crate::settings::tables::CurveTables;

/// This role's term of `f(x)` of `n` elements in a ring of `bits`; `tables` are those that the run keeps.
pub async fn look_up(
    cx: &Cx,
    tables: &CurveTables,
    x: &Shared,
    n: usize,
    curve: Curve,
    cells: Cells,
    bits: u8,
) -> Result<Sum> {
    let parabola = Parabola::new(cells, bits)?;
    let one_hot = parabola.one_hot;
    let vectors = || cx.draw(0, Purpose::OneHot, 0, one_hot.words() * n);
    let tau = |key: u8, part: u8| cx.draw(key, Purpose::LookupMask, part, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    let mut term = two_terms(cx, x, n);
    let role = cx.role();
    if role == 2 {
        term.iter_mut().for_each(|x| *x = x.wrapping_neg());
        let lambda = term;
        let mut vector = vectors()?;
        let signs = one_hot.hide(&mut vector, &lambda);
        cx.send(1, &vector, one_hot.word_bits());
        let mut own = vec![0u64; n];
        for part in 0..POWERS {
            let (mut factors, zeroth, second) = (dealt(part)?, tau(0, part)?, tau(2, part)?);
            for (i, factor) in factors.iter_mut().enumerate() {
                let whole = signs[i].wrapping_mul(parabola.power(lambda[i], part));
                own[i] = own[i].wrapping_sub(whole.wrapping_mul(zeroth[i].wrapping_add(second[i])));
                *factor = whole.wrapping_sub(*factor);
            }
            cx.send(1, &factors, bits);
        }
        return Ok(Sum::new(Some(own)));
    }
    let (m, peer) = (term, 1 - role);
    let vector = if role == 0 { vectors()? } else { cx.take(2, one_hot.words() * n, one_hot.word_bits())? };
    let mut sent = parabola.shares(&*tables.of(curve, cells)?, &vector, &m, role == 1);
    for (own, part) in sent.iter_mut().zip(0u8..) {
        own.iter_mut().zip(tau(2 * role, part)?).for_each(|(own, tau)| *own = own.wrapping_add(tau));
        cx.send(peer, own, bits);
    }
    let factors = (0..POWERS)
        .map(|part| if role == 0 { dealt(part) } else { cx.take(2, n, bits) })
        .collect::<Result<Vec<_>>>()?;
    cx.exchange().await;
    let mut value = vec![0u64; n];
    for (own, factors) in sent.iter().zip(&factors) {
        let other = cx.take(peer, n, bits)?;
        for (i, value) in value.iter_mut().enumerate() {
            *value = value.wrapping_add(own[i].wrapping_add(other[i]).wrapping_mul(factors[i]));
        }
    }
    Ok(Sum::new(Some(value)))
}
