//! Shared bits as shared ring elements 0 and 1, and a ring element where a bit is 1.
//!
//! Source: conversion and injection of bits of ABY3, 2018/403, §5.4, as cross-term products.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds and bits per element: of a selection 1 and `7ℓ`; of a conversion 1 and `4ℓ` while bits are few, 2 and `3ℓ`
//! where they are many: `ombra_ir::settings::rep3::is_round_cheaper` decides, for `ℓ = 64` up to 2^16 bits.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   b = n ⊕ r with n = b1 at roles 0 and 1, r = b0 ⊕ b2 at role 2;  s = 1 − 2n
//!   b = n + s·r: a cross-term product of s and r, and n in component 1
//!   b·x with x = u + v, u = x1 at roles 0 and 1, v = x0 + x2 at role 2:
//!     b·x = n·u + s·u·r + n·(v − 2rv) + rv: a cross-term product of two products, n·u in component 1, and rv is dealt
//!   many: role 0 has c = b0 ⊕ b1 and sends c1 = c − F(k_0) to role 1; with c0 = F(k_0),
//!     role 2 sends c0·b2 − F(k_0)' to role 1 and role 1 c1·b2 − F(k_1) to role 2; m is the sum of both
//!     result (c0 − 2F(k_0)', c1 − 2F(k_1), b2 − 2m)
//! ```
//!
//! Simulator. That of cross-term products and dealing, which have randomness of their own; everything else is local.
//! Of many bits, role 1 receives two messages under masks from `k_0`, role 2 one under a mask from `k_1`, role 0 none.

use ombra_ir::Result;
use ombra_ir::settings::rep3::is_round_cheaper;

use super::cross::{CrossTerm, Dealt, Factors, add_words, begin, bit, deal, two_bits, two_terms};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Bits, Component, Shared};

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(cx: &Cx, x: &Bits, bits: u8) -> Result<Shared> {
    if !is_round_cheaper(x.n as u64, bits.into()) {
        return many_bits_to_ring(cx, x, bits).await;
    }
    let conversion = Conversion::begin(cx, x, bits)?;
    cx.round().await;
    conversion.end(cx)
}

/// [`bit_to_ring`] in two rounds, with fewer bits for each element.
pub(super) async fn many_bits_to_ring(cx: &Cx, x: &Bits, bits: u8) -> Result<Shared> {
    let n = x.n;
    let minus_twice = |x: &[u64], y: &[u64]| x.iter().zip(y).map(|(x, y)| x.wrapping_sub(y << 1)).collect();
    let product = |key: u8| cx.draw(key, Purpose::ManyBitProduct, 0, n);
    match cx.role() {
        0 => {
            let c0 = cx.draw(0, Purpose::ManyBit, 0, n)?;
            let c1: Vec<u64> = (0..n).map(|i| (bit(&x.a, i) ^ bit(&x.b, i)).wrapping_sub(c0[i])).collect();
            cx.send(1, &c1, bits);
            cx.round().await;
            let (e0, e1) = (product(0)?, product(1)?);
            cx.round().await;
            Ok(Shared::new(minus_twice(&c0, &e0), minus_twice(&c1, &e1)))
        }
        1 => {
            let e1 = product(1)?;
            cx.round().await;
            let c1 = cx.take(0, n, bits)?;
            let third = product_third(cx, 2, &c1, &x.b, &e1, bits).await?;
            Ok(Shared::new(minus_twice(&c1, &e1), third))
        }
        _ => {
            let (c0, e0) = (cx.draw(0, Purpose::ManyBit, 0, n)?, product(0)?);
            cx.round().await;
            let third = product_third(cx, 1, &c0, &x.a, &e0, bits).await?;
            Ok(Shared::new(third, minus_twice(&c0, &e0)))
        }
    }
}

/// Component 2 of the result: `b2 − 2m`, where `m` is the sum of `c·b2 − e` here and at `peer`.
async fn product_third(cx: &Cx, peer: u8, c: &[u64], b2: &[u64], e: &[u64], bits: u8) -> Result<Vec<u64>> {
    let n = c.len();
    let own: Vec<u64> = (0..n).map(|i| (c[i] & bit(b2, i).wrapping_neg()).wrapping_sub(e[i])).collect();
    cx.send(peer, &own, bits);
    cx.round().await;
    let other = cx.take(peer, n, bits)?;
    Ok((0..n).map(|i| bit(b2, i).wrapping_sub(own[i].wrapping_add(other[i]) << 1)).collect())
}

/// `b·x` of bits and ring elements.
pub async fn select(cx: &Cx, b: &Bits, x: &Shared, bits: u8) -> Result<Shared> {
    let selection = Selection::begin(cx, b, 1, x, bits)?;
    cx.round().await;
    selection.end(cx)
}

/// Bits on their way into a ring.
pub(super) struct Conversion {
    cross_term: CrossTerm,
    joint: Vec<u64>,
}

impl Conversion {
    /// Sends the messages.
    pub(super) fn begin(cx: &Cx, x: &Bits, bits: u8) -> Result<Conversion> {
        let joint = two_bits(cx, &x.a, &x.b, x.n);
        let factors = match cx.role() {
            2 => Factors::Single(vec![joint.clone()]),
            _ => Factors::Joint(vec![joint.iter().map(|n| sign(*n)).collect()]),
        };
        Ok(Conversion { cross_term: begin(cx, factors, x.n, bits, 0)?, joint })
    }

    /// The result, after the round.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        Ok(with_joint(cx, self.cross_term.end(cx)?, self.joint))
    }
}

/// Elements on their way to where their bits are 1.
pub(super) struct Selection {
    cross_term: CrossTerm,
    dealt: Dealt,
    joint: Vec<u64>,
}

impl Selection {
    /// Sends the messages. `x` has `times` elements for each bit, all first ones before all second ones.
    pub(super) fn begin(cx: &Cx, b: &Bits, times: usize, x: &Shared, bits: u8) -> Result<Selection> {
        let n = b.n * times;
        let (bits_of, x) = (two_bits(cx, &b.a, &b.b, b.n).repeat(times), two_terms(cx, x, n));
        let product: Vec<u64> = bits_of.iter().zip(&x).map(|(b, x)| b.wrapping_neg() & x).collect();
        let dealt = deal(cx, product.clone(), n, bits, Purpose::Deal)?;
        let factors = match cx.role() {
            2 => {
                let either = x.iter().zip(&product).map(|(v, rv)| v.wrapping_sub(rv << 1)).collect();
                Factors::Single(vec![either, bits_of])
            }
            _ => {
                let signed = x.iter().zip(&bits_of).map(|(u, n)| u.wrapping_mul(sign(*n))).collect();
                Factors::Joint(vec![bits_of, signed])
            }
        };
        Ok(Selection { dealt, cross_term: begin(cx, factors, n, bits, 1)?, joint: product })
    }

    /// The result, after the round.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        let dealt = self.dealt.end(cx)?;
        let crossed = with_joint(cx, self.cross_term.end(cx)?, self.joint);
        Ok(with_dealt(cx, crossed, dealt))
    }
}

/// 1 or −1.
fn sign(bit: u64) -> u64 {
    1u64.wrapping_sub(bit << 1)
}

/// The sharing with `joint` added to component 1.
fn with_joint(cx: &Cx, x: Shared, joint: Vec<u64>) -> Shared {
    let added = |c: &Component| {
        let mut words = c.to_vec(joint.len());
        add_words(&mut words, joint.iter().copied());
        Component::from(words)
    };
    match cx.role() {
        0 => Shared { b: added(&x.b), a: x.a },
        1 => Shared { a: added(&x.a), b: x.b },
        _ => x,
    }
}

/// The sharing with what was dealt added to components 0 and 2.
pub(super) fn with_dealt(cx: &Cx, x: Shared, [first, second]: [Vec<u64>; 2]) -> Shared {
    let added = |c: &Component, y: Vec<u64>| {
        let mut words = c.to_vec(y.len());
        add_words(&mut words, y);
        Component::from(words)
    };
    match cx.role() {
        0 => Shared { a: added(&x.a, first), b: x.b },
        1 => Shared { b: added(&x.b, first), a: x.a },
        _ => Shared { a: added(&x.a, first), b: added(&x.b, second) },
    }
}
