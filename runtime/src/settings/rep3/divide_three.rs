//! Division of three terms by a power of two, and three terms in a larger ring; of two see [`truncate`](super::truncate).
//!
//! Source: wrap count with a quarter-range bound after Guo et al., 2025/200; resharing after Araki et al., 2016/768.
//! Parties and adversary: three, one semi-honest corruption. Rounds: 2, before which role 2 has dealt. Bits per element, from a
//! ring of `ℓ` bits into one of `R`: `ℓ + 2R + w + 2`, where `w` is `R + f − ℓ` rounded up to whole bytes; `ℓ` and `f` are what
//! [`truncate`](super::truncate) leaves.
//! Correlation: role 2 deals a product of two random bits, from keys but for one message.
//! Bound: as there. Functionality: `y = ⌊x / 2^f⌋ + [x mod 2^f > A mod 2^f]`, where role 0 knows `A` (below); without a
//! division, for `f = 0`, `y = x`. Error: `A` is uniform given `x`, whatever the terms are, because of their masks. So one
//! more has chance `(x mod 2^f) / 2^f`, and the mean of `y` is `x / 2^f`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   Z_j is role j's term and F(k_j) − F(k_(j+1))
//!   dealt: Z_2 to role 0, r_a·r_b − s0 to role 1;  A = Z_0 + Z_2 − 1 at role 0, B = Z_1 at role 1
//!   role 0: a = 1{ (A − 2^(ℓ−2)) mod 2^ℓ ≥ 2^(ℓ−1) },  c = 1{ A ≥ 2^(ℓ−2) }
//!   role 1: b = 1{ B ≥ 2^(ℓ−1) }
//!   p0 + p1 = a·b,  y0 = (A ≫ f) − 2^(ℓ−f)·(c + p0) + 1,  y1 = (B ≫ f) − 2^(ℓ−f)·p1;  for f = 0 without the two ones
//! ```
//!
//! The quotients of A and B make that of x − 1, or one less where the low bits carry, which is where those of A exceed those
//! of x − 1. With 1 added that is the quotient of x, and one more where the low bits of x exceed those of A.
//!
//! Simulator. Role 0 receives `Z_2`, which `F(k_2)` masks, role 1's wrap bit under `r_b = F(k_2)`, and `y1` under
//! `F(k_2)`: it does not know `k_2`, so all are uniform. Role 1 receives `s1 = r_a·r_b − s0` under `s0 = F(k_0)`, role
//! 0's wrap bit under `r_a = F(k_0)`, and `y0` under `F(k_0)`, and does not know `k_0`. Role 2 receives nothing: it
//! knows the masks of both wrap bits and must never see the masked bits.

use ombra_ir::Result;

use super::cross::{add_words, bit};
use super::truncate::Division;
use super::{Cx, Purpose};
use crate::backend::bits::words as plane_words;
use crate::settings::rep3::share::Shared;

/// The quotient of the sum of all roles' `term`s, `n` elements, which a sharing of zero masks.
pub(super) async fn divide(cx: &Cx, mut term: Vec<u64>, n: usize, division: Division) -> Result<Shared> {
    let (bits, product_bits) = (division.bits, division.wrap_bits());
    match cx.role() {
        0 => {
            add_words(&mut term, cx.take(2, n, bits)?);
            dividend_0(cx, term, n, division).await
        }
        1 => {
            let s1 = cx.take(2, n, product_bits)?;
            dividend_1(cx, term, s1, n, division).await
        }
        _ => {
            cx.send(0, &term, bits);
            let r_a = cx.draw(0, Purpose::DivideWrap0, 0, plane_words(n))?;
            let r_b = cx.draw(2, Purpose::DivideWrap1, 0, plane_words(n))?;
            let mut s1 = cx.draw(0, Purpose::DivideProduct, 0, n)?;
            s1.iter_mut().enumerate().for_each(|(i, s)| *s = (bit(&r_a, i) & bit(&r_b, i)).wrapping_sub(*s));
            cx.send(1, &s1, product_bits);
            let y2 = cx.draw(2, Purpose::DivideOut, 0, n)?;
            let y0 = cx.draw(0, Purpose::DivideOut, 0, n)?;
            Ok(Shared::new(y2, y0))
        }
    }
}

/// Role 0 from `A` on.
async fn dividend_0(cx: &Cx, mut a: Vec<u64>, n: usize, division: Division) -> Result<Shared> {
    let (mask, quarter, top, k) = division.constants();
    let Division { by, out, .. } = division;
    // Without rounding there is none.
    let one = u64::from(by > 0);
    let mut wrap = vec![0u64; plane_words(n)];
    for (i, a) in a.iter_mut().enumerate() {
        *a = a.wrapping_sub(one) & mask;
        wrap[i / 64] |= ((a.wrapping_sub(quarter) >> top) & 1) << (i % 64);
    }
    let r_a = cx.draw(0, Purpose::DivideWrap0, 0, plane_words(n))?;
    let d_a: Vec<u64> = wrap.iter().zip(&r_a).map(|(w, r)| w ^ r).collect();
    cx.send_planes(1, &d_a, 1, n);
    let s0 = cx.draw(0, Purpose::DivideProduct, 0, n)?;
    let t0 = cx.draw(0, Purpose::DivideOut, 0, n)?;
    cx.exchange().await;

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
    cx.exchange().await;

    add_words(&mut a, cx.take(1, n, out)?);
    Ok(Shared::new(t0, a))
}

/// Role 1 from `B` on.
async fn dividend_1(cx: &Cx, mut b: Vec<u64>, s1: Vec<u64>, n: usize, division: Division) -> Result<Shared> {
    let (mask, _, top, k) = division.constants();
    let Division { by, out, .. } = division;
    let mut wrap = vec![0u64; plane_words(n)];
    for (i, b) in b.iter_mut().enumerate() {
        *b &= mask;
        wrap[i / 64] |= (*b >> top) << (i % 64);
    }
    let r_b = cx.draw(2, Purpose::DivideWrap1, 0, plane_words(n))?;
    let d_b: Vec<u64> = wrap.iter().zip(&r_b).map(|(w, r)| w ^ r).collect();
    cx.send_planes(0, &d_b, 1, n);
    let t2 = cx.draw(2, Purpose::DivideOut, 0, n)?;
    cx.exchange().await;

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
    cx.exchange().await;

    add_words(&mut b, cx.take(0, n, out)?);
    Ok(Shared::new(b, t2))
}
