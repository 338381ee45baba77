//! Shared bits as shared ring elements 0 and 1, and a ring element where a bit is 1.
//!
//! Source: conversion and injection of bits of ABY3, 2018/403, §5.4, as cross-term products.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds: 1, before which role 2 has dealt. Bits per element: of a selection `5ℓ`, of a conversion `3ℓ`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   b = n ⊕ r with n = b1 at roles 0 and 1, r = b0 ⊕ b2 at role 2;  s = 1 − 2n
//!   b = n + s·r: a cross-term product of s and r, and n in component 1
//!   b·x with x = u + v, u = x1 at roles 0 and 1, v = x0 + x2 at role 2:
//!     b·x = n·u + s·u·r + n·(v − 2rv) + rv: a cross-term product of two products, n·u in component 1, and rv is dealt
//! ```
//!
//! Simulator. That of cross-term products and dealing, which have randomness of their own; everything else is local.

use ombra_ir::Result;

use super::cross::{CrossTerm, Factors, add_words, begin, deal, two_bits, two_terms};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Bits, Component, Shared};

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(cx: &Cx, x: &Bits, bits: u8) -> Result<Shared> {
    let conversion = Conversion::begin(cx, x, bits)?;
    cx.exchange().await;
    conversion.end(cx)
}

/// `b·x` of bits and ring elements.
pub async fn select(cx: &Cx, b: &Bits, x: &Shared, bits: u8) -> Result<Shared> {
    let selection = Selection::begin(cx, b, 1, x, bits)?;
    cx.exchange().await;
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

    /// The result, after the exchange.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        Ok(with_joint(cx, self.cross_term.end(cx)?, self.joint))
    }
}

/// Elements on their way to where their bits are 1.
pub(super) struct Selection {
    cross_term: CrossTerm,
    dealt: [Vec<u64>; 2],
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

    /// The result, after the exchange.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        let crossed = with_joint(cx, self.cross_term.end(cx)?, self.joint);
        Ok(with_dealt(cx, crossed, self.dealt))
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
fn with_dealt(cx: &Cx, x: Shared, [first, second]: [Vec<u64>; 2]) -> Shared {
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
