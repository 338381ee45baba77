//! Shared bits as shared ring elements 0 and 1, and a ring element where a bit is 1.
//!
//! Source: conversion and injection of bits of ABY3, 2018/403, §5.4, as cross-term products.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds: 1, before which role 2 has dealt. Bits per element: of a selection `4ℓ`, of a conversion `3ℓ`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   b = n ⊕ r with n = b1 at roles 0 and 1, r = b0 ⊕ b2 at role 2;  s = 1 − 2n
//!   b = n + s·r: a cross-term product of s and r, and n in component 1
//!   b·x with x = u + v, u = x1 at roles 0 and 1, v = x0 + x2 at role 2:
//!     b·x = n·u + s·u·r + n·(v − 2rv) + rv: a cross-term product of two products
//!   a selection is two terms: component 1 of that product and n·u at roles 0 and 1, components 0 and 2 and rv at role 2
//! ```
//!
//! Simulator. That of cross-term products; everything else is local.

use ombra_ir::Result;

use super::Cx;
use super::cross::{CrossTerm, Factors, add_words, begin, two_bits, two_terms};
use crate::settings::rep3::share::{Bits, Component, Shared, Sum};

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(cx: &Cx, x: &Bits, bits: u8) -> Result<Shared> {
    let conversion = Conversion::begin(cx, x, bits)?;
    cx.exchange().await;
    conversion.end(cx)
}

/// `b·x` of bits and ring elements, as a sum of two terms.
pub async fn select(cx: &Cx, b: &Bits, x: &Shared, bits: u8) -> Result<Sum> {
    let selection = Selection::begin(cx, b, 1, &two_terms(cx, x, b.n), bits)?;
    cx.exchange().await;
    Ok(Sum::new(Some(selection.end(cx)?)))
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
    product: Vec<u64>,
}

impl Selection {
    /// Sends the messages. `x` is this role's term of two, of `times` elements for each bit, all first ones before all
    /// second ones.
    pub(super) fn begin(cx: &Cx, b: &Bits, times: usize, x: &[u64], bits: u8) -> Result<Selection> {
        let bits_of = two_bits(cx, &b.a, &b.b, b.n).repeat(times);
        let product: Vec<u64> = bits_of.iter().zip(x).map(|(b, x)| b.wrapping_neg() & x).collect();
        let n = product.len();
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
        Ok(Selection { cross_term: begin(cx, factors, n, bits, 1)?, product })
    }

    /// This role's term of the result, after the exchange.
    pub(super) fn end(self, cx: &Cx) -> Result<Vec<u64>> {
        let mut term = two_terms(cx, &self.cross_term.end(cx)?, self.product.len());
        add_words(&mut term, self.product);
        Ok(term)
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
