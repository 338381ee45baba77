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
//!   x = m − λ modulo 2^W; cells of 2^s units: i = (m ≫ s) − (λ ≫ s), u = (m mod 2^s)/2^s, t = (λ mod 2^s)/2^s
//!     x = 2^s (i + u − t) without a carry: i is the cell of x or the next one
//!   f(x) = a_0 + a_1 (u − t) + a_2 (u − t)² = P_0 + t·P_1 + t²·P_2, with a_k of cell i
//!     P_0 = a_0 + a_1 u + a_2 u²,  P_1 = −(a_1 + 2 a_2 u),  P_2 = a_2
//!   one-hot e of λ ≫ s: b^0 = F(k_0), b^1 = b^0 ⊕ e dealt; σ = b^0 − b^1 at λ ≫ s, which is 1 or −1 and the dealer's alone
//!     Σ_j b^0_j a_k[μ − j] at the client less the same of b^1 at the server is σ·a_k[i]: so both have shares of σ·P_k,
//!     of 64 bits, shifted where they are to F, F/2 + 2 and F/2 + 4 fraction bits in the result's ring
//!   v_k = σ·P_k + τ_k opened to both, τ_k^0 = F(k_0), τ_k^1 = F(k_2)
//!   D_0 = σ, D_1 = σ·t and D_2 = σ·t², with the fraction bits that v_k lacks to F, and C = Σ D_k τ_k dealt
//!   f(x) = Σ D_k v_k − C
//! ```
//!
//! Neither party may learn σ: with its own bits it would tell half of the candidates for λ.
//!
//! Simulator. `m` is under λ^0 and λ^1 from `k_0` and `k_2`, every `v` under its τ, the vector and all dealt elements under
//! streams of `k_0`. Every label is used once.

use ombra_ir::curve::{Cells, Curve};
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::sums_of_entries;
use ombra_kernels::isa::Isa;

use super::products::{Operand, end, minus, plus};
use super::share::Share;
use super::tables::CurveTables;
use super::{Cx, Purpose};

/// Fraction bits of `P_1` and `P_2` beside half of those of the result: what is left of them are the mask's powers'.
const MORE: [u8; 2] = [2, 4];

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
    let (count, cell, scale) = (cells.count(), cells.cell, cells.scale);
    let shift = (2 * u32::from(cell)).max(u32::from(cell) + u32::from(scale / 2));
    if cells.window > 62 || cell == 0 || u32::from(bits) + shift > 64 || scale < 2 * MORE[1] {
        return Err(Diagnostic::internal("E0803", "a lookup's window is out of range"));
    }
    let width = 8 * cells.window.div_ceil(8);
    let begun = x.begin(cx, n, width, 0)?;
    let (per, vector_bits) = (count.div_ceil(64), count.min(64) as u8);
    let vectors = || cx.draw(0, Purpose::OneHot, 0, per * n);
    let tau = |key: u8, part: u8| cx.draw(key, Purpose::LookupMask, part, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    let low = (1u64 << cell) - 1;
    let index = |x: u64| (x >> cell) as usize & (count - 1);
    // Fraction bits of P_0, P_1 and P_2, and of the powers of the mask beside them.
    let scales = [scale, scale / 2 + MORE[0], scale / 2 + MORE[1]];
    if cx.role() == 2 {
        let lambda = begun.lambda()?;
        let mut vector = vectors()?;
        let mut signs = Vec::with_capacity(n);
        for (vector, lambda) in vector.chunks_exact_mut(per).zip(&lambda) {
            let at = index(*lambda);
            // σ is 1 where the client's bit is set, −1 elsewhere.
            signs.push((vector[at / 64] >> (at % 64) & 1).wrapping_mul(2).wrapping_sub(1));
            vector[at / 64] ^= 1 << (at % 64);
        }
        cx.send(1, &vector, vector_bits);
        cx.round().await;
        let mut sum = vec![0u64; n];
        for (power, part) in (0..3).zip(0u8..) {
            let tau = plus(tau(0, part)?, &tau(2, part)?);
            let mut factors = dealt(part)?;
            for (i, factor) in factors.iter_mut().enumerate() {
                let own = signs[i].wrapping_mul(power_of(lambda[i] & low, power, cell, scale - scales[power as usize]));
                sum[i] = sum[i].wrapping_add(own.wrapping_mul(tau[i]));
                *factor = own.wrapping_sub(*factor);
            }
            cx.send(1, &factors, bits);
        }
        cx.send(1, &minus(sum, &dealt(3)?), bits);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    cx.round().await;
    let ended = end(cx, begun, n, width)?;
    let m = ended.words()?;
    let vector = if role == 0 { vectors()? } else { cx.take(2, per * n, vector_bits)? };
    let at: Vec<usize> = m.iter().map(|m| index(*m)).collect();
    let sums = sums_of_entries(Isa::best(), &vector, &at, &*tables.of(curve, cells)?);
    let mut own = [Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n)];
    for ([a0, a1, a2], m) in sums.into_iter().zip(m) {
        let u = m & low;
        let p0 = (a0 << (2 * cell)).wrapping_add((a1 << cell).wrapping_mul(u)).wrapping_add(a2.wrapping_mul(u * u));
        let p1 = (a1 << cell).wrapping_add(a2.wrapping_mul(2 * u)).wrapping_neg();
        for ((own, p), by) in
            own.iter_mut().zip([p0, p1, a2]).zip([2 * cell, cell + scale - scales[1], scale - scales[2]])
        {
            own.push(if role == 0 { p >> by } else { (p >> by).wrapping_neg() });
        }
    }
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
    let last = if role == 0 { dealt(3)? } else { cx.take(2, n, bits)? };
    Ok(Share::of(minus(value, &last)))
}

/// `(λ/2^cell)^power` with so many fraction bits, rounded to the nearest.
fn power_of(lambda: u64, power: u32, cell: u8, scale: u8) -> u64 {
    let (whole, by) = (u128::from(lambda).pow(power) << scale, power * u32::from(cell));
    ((whole + (1u128 << by >> 1)) >> by) as u64
}
