//! The sign bit of a shared value, and the and of shared bits.
//!
//! Source: and after Araki et al., 2016/768, §2; carry of a two-term sum by a tree of generate and propagate bits
//! (Brent and Kung, 1982), where the terms are `x0 + x1` at role 0 and `x2` at roles 1 and 2.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds: `⌈log2(w − 1)⌉ + 2` for a width of `w` bits that are looked at, 1 for `and`.
//! Bits per element: `w + 2(w − 1)` and 3 for each and of the tree; 3 for `and`.
//! Side channels: bit planes throughout; no branch or index on a secret.
//!
//! ```text
//!   A = x0 + x1 mod 2^w at role 0, B = x2 mod 2^w at roles 1 and 2
//!   [A] = (b0, b1, 0): b0 = F(k_0), role 0 sends b1 = A ⊕ b0 to role 1;  [B] = (0, 0, B)
//!   g = A ∧ B = (F(k_0)', F(k_1)', sum of: role 2 sends b0∧B ⊕ F(k_0)' to role 1, role 1 sends b1∧B ⊕ F(k_1)' to role 2)
//!   p = A ⊕ B;  (g1, p1) ∘ (g0, p0) = (g1 ⊕ p1 g0, p1 p0) over bits 0 .. w−2;  msb = A_{w−1} ⊕ B_{w−1} ⊕ G
//! ```
//!
//! Simulator. Role 1 receives `b1` and role 2's message under masks from `k_0`, which it does not know; role 2 receives
//! role 1's message under a mask from `k_1`, which it does not know. An and's message from role `j` to role `j − 1` is
//! under a mask from `k_{j+1}`, which the receiver does not know. All are uniform.

use ombra_ir::{Diagnostic, Result};

use super::cx::{Cx, Purpose};
use super::planes::{Planes, to_planes};
use crate::backend::bits::words as plane_words;
use crate::share::{Bits, Shared};

/// The sign of `n` values that fit in `width` bits: 1 where negative. The lowest `drop` bits of both terms are left out,
/// with their carry: values in `[0, 2^drop)` may count as negative, depending on the shares.
pub async fn msb(cx: &Cx, x: &Shared, n: usize, width: u8, drop: u8) -> Result<Bits> {
    if width > 64 || drop >= width {
        return Err(Diagnostic::internal("E0803", format!("sign of a value of {width} bits")));
    }
    let w = usize::from(width - drop);
    let mut propagate = sum_bits(cx, x, n, (width, drop)).await?;
    let generate = generate(cx, &propagate, n, w - 1).await?;
    let mut top = propagate.split_off(w - 1);
    if w > 1 {
        top.xor(&carry(cx, generate, propagate, n).await?);
    }
    Ok(Bits::new(n, top.a, top.b))
}

/// The and of `n` shared bits.
pub async fn and(cx: &Cx, x: &Bits, y: &Bits) -> Result<Bits> {
    let words = plane_words(x.n);
    let x_planes = Planes::new(x.a.to_vec(), x.b.to_vec(), 1, words);
    let y_planes = Planes::new(y.a.to_vec(), y.b.to_vec(), 1, words);
    let z = and_planes(cx, &x_planes, &y_planes, x.n, 0).await?;
    Ok(Bits::new(x.n, z.a, z.b))
}

/// Sharing of the bits of A ⊕ B: `(b0, b1, B)`.
async fn sum_bits(cx: &Cx, x: &Shared, n: usize, (width, drop): (u8, u8)) -> Result<Planes> {
    let (words, w) = (plane_words(n), usize::from(width - drop));
    let to_planes = |words: &[u64]| to_planes(words, width, drop);
    let (a, b) = match cx.role() {
        0 => {
            let b0 = cx.draw(0, Purpose::MsbBits, 0, w * words)?;
            let mut b1 = to_planes(&x.both(n));
            b1.iter_mut().zip(&b0).for_each(|(a, b)| *a ^= b);
            cx.send_planes(1, &b1, w, n);
            cx.round().await;
            (b0, b1)
        }
        1 => {
            let third = to_planes(&x.b.to_vec(n));
            cx.round().await;
            (cx.take_planes(0, w, n)?, third)
        }
        _ => {
            let b0 = cx.draw(0, Purpose::MsbBits, 0, w * words)?;
            let third = to_planes(&x.a.to_vec(n));
            cx.round().await;
            (third, b0)
        }
    };
    Ok(Planes::new(a, b, w, words))
}

/// Sharing of A ∧ B on the lowest `count` planes.
async fn generate(cx: &Cx, sum: &Planes, n: usize, count: usize) -> Result<Planes> {
    let words = plane_words(n);
    let len = count * words;
    // At role 1 this is b1 ∧ B, at role 2 b0 ∧ B.
    let masked =
        |mask: &[u64]| -> Vec<u64> { sum.a.iter().zip(&sum.b).zip(mask).map(|((a, b), mask)| a & b ^ mask).collect() };
    let (a, b) = match cx.role() {
        0 => {
            cx.round().await;
            (cx.draw(0, Purpose::MsbGenerate0, 0, len)?, cx.draw(1, Purpose::MsbGenerate1, 0, len)?)
        }
        1 => {
            let g1 = cx.draw(1, Purpose::MsbGenerate1, 0, len)?;
            let mut g2 = masked(&g1);
            cx.send_planes(2, &g2, count, n);
            cx.round().await;
            let other = cx.take_planes(2, count, n)?;
            g2.iter_mut().zip(&other).for_each(|(g, o)| *g ^= o);
            (g1, g2)
        }
        _ => {
            let g0 = cx.draw(0, Purpose::MsbGenerate0, 0, len)?;
            let mut g2 = masked(&g0);
            cx.send_planes(1, &g2, count, n);
            cx.round().await;
            let other = cx.take_planes(1, count, n)?;
            g2.iter_mut().zip(&other).for_each(|(g, o)| *g ^= o);
            (g2, g0)
        }
    };
    Ok(Planes::new(a, b, count, words))
}

/// The carry out of the highest plane: a tree that joins neighbours; an odd highest group moves up. The lowest group
/// of a level needs no propagate bit, because nothing is carried into it.
async fn carry(cx: &Cx, mut g: Planes, mut p: Planes, n: usize) -> Result<Planes> {
    let mut level = 0;
    while g.count() > 1 {
        let groups = g.count();
        let pairs = groups / 2;
        let high = (0..pairs).map(|q| 2 * q + 1);
        let mut x = p.pick(high.clone());
        x.append(p.pick(high.skip(1)));
        let mut y = g.pick((0..pairs).map(|q| 2 * q));
        y.append(p.pick((1..pairs).map(|q| 2 * q)));
        let mut products = and_planes(cx, &x, &y, n, level).await?;

        let mut next_p = Planes::new(vec![0; p.words()], vec![0; p.words()], 1, p.words());
        next_p.append(products.split_off(pairs));
        let mut next_g = g.pick((0..pairs).map(|q| 2 * q + 1));
        next_g.xor(&products);
        if groups % 2 == 1 {
            next_g.append(g.pick(std::iter::once(groups - 1)));
            next_p.append(p.pick(std::iter::once(groups - 1)));
        }
        (g, p) = (next_g, next_p);
        level += 1;
    }
    Ok(g)
}

/// Plane by plane `x ∧ y`; `part` tells the calls of one op level apart.
async fn and_planes(cx: &Cx, x: &Planes, y: &Planes, n: usize, part: u16) -> Result<Planes> {
    let terms = x.a.iter().zip(&x.b).zip(y.a.iter().zip(&y.b));
    let mut z: Vec<u64> = terms.map(|((xa, xb), (ya, yb))| xa & (ya ^ yb) ^ xb & ya).collect();
    cx.xor_zero_share(Purpose::And, part, &mut z);
    let role = cx.role();
    cx.send_planes((role + 2) % 3, &z, x.count(), n);
    cx.round().await;
    let next = cx.take_planes((role + 1) % 3, x.count(), n)?;
    Ok(Planes::new(z, next, x.count(), x.words()))
}
