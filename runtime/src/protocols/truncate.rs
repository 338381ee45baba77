//! Division by a power of two, and values in a larger ring.
//!
//! Source: wrap count with a quarter-range bound after Guo et al., 2025/200; resharing after Araki et al., 2016/768.
//! Parties and adversary: three, one semi-honest corruption.
//! Rounds: 2, and 1 more when role 2 has a term. Bits per element: `2ℓ + 2` and `8⌈f/8⌉` of correlation, and `ℓ` more
//! when role 2 has a term.
//! Correlation: role 2 deals a product of two random bits, from keys but for one message.
//! Error: the result is `⌊x / 2^f⌋` or one more. Over the shares' randomness the chance of one more is `(d + 1) / 2^f`,
//! where `d` is the dropped part `x mod 2^f`: the mean of `result − x / 2^f` is `2^−f` for every `x`. Which of both it
//! is depends on the shares: the functionality is the weaker one that rounds by the shares.
//! Needs `|x| < 2^(ℓ−2)`; beyond it the result is wrong by multiples of `2^(ℓ−f)`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   A at role 0, B at role 1, A + B = x mod 2^ℓ, refreshed:
//!     three terms: role 2 sends Z_2 + F(k_2) to role 0; A = Z_0 + Z_2 + F(k_2), B = Z_1 − F(k_2)
//!     two terms: A = Z_0 + F(k_1), B = Z_1 − F(k_1), so that a zero term does not make the rounding constant
//!   role 0: a = 1{ (A − 2^(ℓ−2)) mod 2^ℓ ≥ 2^(ℓ−1) },  c = 1{ A ≥ 2^(ℓ−2) }
//!   role 1: b = 1{ B ≥ 2^(ℓ−1) }
//!   p0 + p1 = a·b,  y0 = (A ≫ f) − 2^(ℓ−f)·(c + p0) + 1,  y1 = (B ≫ f) − 2^(ℓ−f)·p1
//! ```
//!
//! Simulator. Role 0 receives role 2's term under `F(k_2)`, role 1's wrap bit under `r_b = F(k_2)`, and `y1` under
//! `F(k_2)`: it does not know `k_2`, so all are uniform. Role 1 receives `s1 = r_a·r_b − s0` under `s0 = F(k_0)`, role
//! 0's wrap bit under `r_a = F(k_0)`, and `y0` under `F(k_0)`, and does not know `k_0`. Role 2 receives nothing: it
//! knows the masks of both wrap bits and must never see the masked bits.

use ombra_ir::{Diagnostic, Result};

use super::cx::{Cx, Purpose};
use super::reshare::{Operand, own_term};
use crate::backend::bits::words as plane_words;
use crate::share::{Shared, ring_mask};

/// The quotient of `n` elements of a ring of `bits` by `2^by`, `1 ≤ by ≤ bits − 2`.
pub async fn truncate(cx: &Cx, x: Operand<'_>, n: usize, bits: u8, by: u8) -> Result<Shared> {
    if by == 0 || by.saturating_add(2) > bits {
        return Err(Diagnostic::internal("E0803", format!("truncation of a {bits}-bit ring by {by} bits")));
    }
    divide(cx, x, n, Division { bits, by, out: bits }).await
}

/// The same `n` elements of a ring of `bits` in one of `out > bits` bits, exactly: the wrap of `A + B`, which has the
/// weight `2^bits`, is taken away. Bits per element: `2·out + (out − bits) + 2`, and `bits` more when role 2 has a term.
pub async fn extend(cx: &Cx, x: Operand<'_>, n: usize, bits: u8, out: u8) -> Result<Shared> {
    if bits < 8 || out <= bits || out > 64 {
        return Err(Diagnostic::internal("E0803", format!("extension of a {bits}-bit ring to {out} bits")));
    }
    divide(cx, x, n, Division { bits, by: 0, out }).await
}

/// `x / 2^by` for `x` in a ring of `bits`, as an element of a ring of `out` bits.
#[derive(Clone, Copy)]
struct Division {
    bits: u8,
    by: u8,
    out: u8,
}

impl Division {
    /// Bits of the ring of the bit product: whole bytes, so that what is sent is uniform.
    fn product_bits(self) -> u8 {
        (self.out - (self.bits - self.by)).div_ceil(8) * 8
    }

    /// Ring mask, a quarter of the ring, the sign bit's position, and the weight of the wrap, `2^(bits − by)`.
    fn constants(self) -> (u64, u64, u32, u64) {
        (ring_mask(self.bits), 1 << (self.bits - 2), u32::from(self.bits - 1), 1 << (self.bits - self.by))
    }
}

async fn divide(cx: &Cx, x: Operand<'_>, n: usize, division: Division) -> Result<Shared> {
    let (bits, product_bits) = (division.bits, division.product_bits());
    match cx.role() {
        0 => {
            let mut a = own_term(cx, x, n);
            if x.has_third_term() {
                cx.round().await;
                let z2 = cx.take(2, n, bits)?;
                a.iter_mut().zip(&z2).for_each(|(a, z)| *a = a.wrapping_add(*z));
            } else {
                cx.add_mask(1, Purpose::TruncateTerm, &mut a)?;
            }
            dividend_0(cx, a, n, division).await
        }
        1 => {
            let mut b = own_term(cx, x, n);
            if x.has_third_term() {
                cx.sub_mask(2, Purpose::TruncateTerm, &mut b)?;
                cx.round().await;
                let s1 = cx.take(2, n, product_bits)?;
                dividend_1(cx, b, Some(s1), n, division).await
            } else {
                cx.sub_mask(1, Purpose::TruncateTerm, &mut b)?;
                dividend_1(cx, b, None, n, division).await
            }
        }
        _ => {
            if x.has_third_term() {
                let mut z2 = own_term(cx, x, n);
                cx.add_mask(2, Purpose::TruncateTerm, &mut z2)?;
                cx.send(0, &z2, bits);
            }
            let r_a = cx.draw(0, Purpose::TruncateWrap0, 0, plane_words(n))?;
            let r_b = cx.draw(2, Purpose::TruncateWrap1, 0, plane_words(n))?;
            let mut s1 = cx.draw(0, Purpose::TruncateProduct, 0, n)?;
            s1.iter_mut().enumerate().for_each(|(i, s)| *s = (bit(&r_a, i) & bit(&r_b, i)).wrapping_sub(*s));
            cx.send(1, &s1, product_bits);
            for _ in 0..2 + u8::from(x.has_third_term()) {
                cx.round().await;
            }
            let y2 = cx.draw(2, Purpose::TruncateOut2, 0, n)?;
            let y0 = cx.draw(0, Purpose::TruncateOut0, 0, n)?;
            Ok(Shared::new(y2, y0))
        }
    }
}

/// Role 0 from `A` on.
async fn dividend_0(cx: &Cx, mut a: Vec<u64>, n: usize, division: Division) -> Result<Shared> {
    let (mask, quarter, top, k) = division.constants();
    let Division { by, out, .. } = division;
    // One more makes the rounding centred; without rounding there is none.
    let one = u64::from(by > 0);
    let mut wrap = vec![0u64; plane_words(n)];
    for (i, a) in a.iter_mut().enumerate() {
        *a &= mask;
        wrap[i / 64] |= ((a.wrapping_sub(quarter) >> top) & 1) << (i % 64);
    }
    let r_a = cx.draw(0, Purpose::TruncateWrap0, 0, plane_words(n))?;
    let d_a: Vec<u64> = wrap.iter().zip(&r_a).map(|(w, r)| w ^ r).collect();
    cx.send_planes(1, &d_a, 1, n);
    let s0 = cx.draw(0, Purpose::TruncateProduct, 0, n)?;
    let t0 = cx.draw(0, Purpose::TruncateOut0, 0, n)?;
    cx.round().await;

    let d_b = cx.take_planes(1, 1, n)?;
    for (i, a) in a.iter_mut().enumerate() {
        let (da, db, ra) = (bit(&d_a, i), bit(&d_b, i), bit(&r_a, i));
        let keep_a = 1u64.wrapping_sub(2 * da);
        let keep_b = 1u64.wrapping_sub(2 * db);
        let p0 = (da & db)
            .wrapping_add((db & ra).wrapping_mul(keep_a))
            .wrapping_add(keep_a.wrapping_mul(keep_b).wrapping_mul(s0[i]));
        let c = u64::from(*a >= quarter);
        let y0 = (*a >> by).wrapping_sub(k.wrapping_mul(c.wrapping_add(p0))).wrapping_add(one);
        *a = y0.wrapping_sub(t0[i]);
    }
    cx.send(1, &a, out);
    cx.round().await;

    let other = cx.take(1, n, out)?;
    a.iter_mut().zip(&other).for_each(|(y, o)| *y = y.wrapping_add(*o));
    Ok(Shared::new(t0, a))
}

/// Role 1 from `B` on; `s1` comes in the same round as the wrap bit unless it is there already.
async fn dividend_1(cx: &Cx, mut b: Vec<u64>, s1: Option<Vec<u64>>, n: usize, division: Division) -> Result<Shared> {
    let (mask, _, top, k) = division.constants();
    let Division { by, out, .. } = division;
    let mut wrap = vec![0u64; plane_words(n)];
    for (i, b) in b.iter_mut().enumerate() {
        *b &= mask;
        wrap[i / 64] |= (*b >> top) << (i % 64);
    }
    let r_b = cx.draw(2, Purpose::TruncateWrap1, 0, plane_words(n))?;
    let d_b: Vec<u64> = wrap.iter().zip(&r_b).map(|(w, r)| w ^ r).collect();
    cx.send_planes(0, &d_b, 1, n);
    let t2 = cx.draw(2, Purpose::TruncateOut2, 0, n)?;
    cx.round().await;

    let s1 = s1.map_or_else(|| cx.take(2, n, division.product_bits()), Ok)?;
    let d_a = cx.take_planes(0, 1, n)?;
    for (i, b) in b.iter_mut().enumerate() {
        let (da, db, rb) = (bit(&d_a, i), bit(&d_b, i), bit(&r_b, i));
        let keep_a = 1u64.wrapping_sub(2 * da);
        let keep_b = 1u64.wrapping_sub(2 * db);
        let p1 = (da & rb).wrapping_mul(keep_b).wrapping_add(keep_a.wrapping_mul(keep_b).wrapping_mul(s1[i]));
        let y1 = (*b >> by).wrapping_sub(k.wrapping_mul(p1));
        *b = y1.wrapping_sub(t2[i]);
    }
    cx.send(0, &b, out);
    cx.round().await;

    let other = cx.take(0, n, out)?;
    b.iter_mut().zip(&other).for_each(|(y, o)| *y = y.wrapping_add(*o));
    Ok(Shared::new(b, t2))
}

fn bit(plane: &[u64], i: usize) -> u64 {
    plane[i / 64] >> (i % 64) & 1
}
