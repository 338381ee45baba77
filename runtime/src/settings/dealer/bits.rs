//! The and of shared bits, shared bits as ring elements, and a ring element where a bit is 1.
//!
//! Source: products of masked bits with dealt products of the masks (Beaver, 1991).
//! Parties and adversary: client, server and dealer, one semi-honest corruption. Correlation: dealt, below. Error: none.
//! Rounds: 1. Bits per element, each way and dealt to the server: 2 and 1 for `and`; 1 and `ℓ` for a conversion; a selection
//! takes a conversion, `ℓ` and `ℓ` more for each value that a bit selects: its mask, which a comparison of it shares, and one
//! dealt element.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   x̂ = x ⊕ a, ŷ = y ⊕ b opened, with a = F(k_0) ⊕ F(k_2), b likewise;  c^0 = F(k_0), dealt c^1 = ab ⊕ c^0
//!     x ∧ y = x̂ŷ ⊕ x̂b ⊕ ŷa ⊕ ab
//!   d = b ⊕ r opened, with r = F(k_0) ⊕ F(k_2);  [r]^0 = F(k_0), dealt [r]^1 = r − [r]^0 mod 2^ℓ
//!     b = d + (1 − 2d)·r
//!   m = x + λ known to client and server, λ = λ^0 + λ^1;  [rλ]^0 = F(k_0), dealt [rλ]^1 = rλ − [rλ]^0 mod 2^ℓ
//!     b·x = d·x + (1 − 2d)(r·m − rλ), where the shares of x are m − λ^0 and −λ^1
//! ```
//!
//! Simulator. The client receives bits and elements under masks from `k_2`, the server under masks from `k_0`, and what is
//! dealt under streams of `k_0`; the dealer nothing. Every label is used once: all messages are uniform.

use ombra_ir::Result;

use super::products::mismatch;
use super::share::{BitShare, Masked, Share};
use super::{Cx, Purpose};
use crate::backend::bits::{and_assign, and_xor_assign, from_planes, words as plane_words, xor_assign};

/// The and of shared bits.
pub async fn and(cx: &Cx, x: &BitShare, y: &BitShare) -> Result<BitShare> {
    let (n, stride) = (x.n, plane_words(x.n));
    let masks = |key: u8| -> Result<[Vec<u64>; 2]> {
        Ok([cx.draw(key, Purpose::BitMask, 0, stride)?, cx.draw(key, Purpose::BitMask, 1, stride)?])
    };
    if cx.role() == 2 {
        let ([mut a, mut b], [a1, b1]) = (masks(0)?, masks(2)?);
        xor_assign(&mut a, &a1);
        xor_assign(&mut b, &b1);
        and_assign(&mut a, &b);
        xor_assign(&mut a, &cx.draw(0, Purpose::Dealt, 0, stride)?);
        cx.send_planes(1, &a, 1, n);
        cx.round().await;
        return Ok(BitShare::nothing(n));
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    let [a, b] = masks(2 * role)?;
    let (mut x, mut y) = (plane(x, n)?, plane(y, n)?);
    xor_assign(&mut x, &a);
    xor_assign(&mut y, &b);
    cx.send_planes(peer, &x, 1, n);
    cx.send_planes(peer, &y, 1, n);
    cx.round().await;
    xor_assign(&mut x, &cx.take_planes(peer, 1, n)?);
    xor_assign(&mut y, &cx.take_planes(peer, 1, n)?);
    let mut z = match role {
        0 => cx.draw(0, Purpose::Dealt, 0, stride)?,
        _ => cx.take_planes(2, 1, n)?,
    };
    and_xor_assign(&mut z, &x, &b);
    and_xor_assign(&mut z, &y, &a);
    if role == 0 {
        and_xor_assign(&mut z, &x, &y);
    }
    Ok(BitShare::of(n, z))
}

/// The plane of `n` bits at client or server.
fn plane(x: &BitShare, n: usize) -> Result<Vec<u64>> {
    let plane = x.own()?;
    if plane.len() != plane_words(n) {
        return Err(mismatch("bits of two sizes"));
    }
    Ok(plane.to_vec())
}

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(cx: &Cx, x: &BitShare, bits: u8) -> Result<Share> {
    Ok(select(cx, x, &[], bits).await?.0)
}

/// The bits in a ring of `bits`, and of every one of `values`, which are as many elements each, those whose bit is 1, and 0
/// in place of the others.
pub(super) async fn select(cx: &Cx, b: &BitShare, values: &[Masked], bits: u8) -> Result<(Share, Vec<Share>)> {
    let (n, stride) = (b.n, plane_words(b.n));
    let mask = |key: u8| cx.draw(key, Purpose::BitMask, 0, stride);
    // The first thing that is dealt is the mask itself, then come its products.
    let parts = 0..=values.len() as u8;
    if cx.role() == 2 {
        let mut r = mask(0)?;
        xor_assign(&mut r, &mask(2)?);
        let r = elements(&r, n);
        for part in parts {
            let mut dealt = cx.draw(0, Purpose::Dealt, part, n)?;
            match usize::from(part).checked_sub(1) {
                Some(value) => {
                    let lambda = values[value].lambda()?;
                    for (c, (lambda, r)) in dealt.iter_mut().zip(lambda.iter().zip(&r)) {
                        *c = r.wrapping_mul(*lambda).wrapping_sub(*c);
                    }
                }
                None => dealt.iter_mut().zip(&r).for_each(|(c, r)| *c = r.wrapping_sub(*c)),
            }
            cx.send(1, &dealt, bits);
        }
        cx.round().await;
        return Ok((Share::nothing(), values.iter().map(|_| Share::nothing()).collect()));
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    let mut d = plane(b, n)?;
    xor_assign(&mut d, &mask(2 * role)?);
    cx.send_planes(peer, &d, 1, n);
    cx.round().await;
    xor_assign(&mut d, &cx.take_planes(peer, 1, n)?);
    let d = elements(&d, n);
    let mut dealt = parts.map(|part| match role {
        0 => cx.draw(0, Purpose::Dealt, part, n),
        _ => cx.take(2, n, bits),
    });
    let mut next = || dealt.next().unwrap_or_else(|| Ok(Vec::new()));
    let r = next()?;
    let converted = |(d, r): (&u64, &u64)| signed(*d, *r).wrapping_add(if role == 0 { *d } else { 0 });
    let bit = d.iter().zip(&r).map(converted).collect();
    let mut selected = Vec::new();
    for value in values {
        let mut z = next()?;
        let share = value.share(role);
        let known = share.own()?.iter().zip(value.words()?).zip(d.iter().zip(&r));
        for (z, ((x, m), (d, r))) in z.iter_mut().zip(known) {
            let product = signed(*d, r.wrapping_mul(*m).wrapping_sub(*z));
            *z = product.wrapping_add(d.wrapping_mul(*x));
        }
        selected.push(Share::of(z));
    }
    Ok((Share::of(bit), selected))
}

/// Bits of a plane as 0 and 1.
fn elements(plane: &[u64], n: usize) -> Vec<u64> {
    let mut words = vec![0; n];
    from_planes(plane, &mut words);
    words
}

/// `(1 − 2d)·x`.
fn signed(d: u64, x: u64) -> u64 {
    (x ^ d.wrapping_neg()).wrapping_add(d)
}
