//! One of four shared bits, chosen by two others.
//!
//! Source: a cross-term product of bits (see [`cross`](super::cross)). Parties and adversary: three, one semi-honest
//! corruption. Rounds: 1, before which role 2 has dealt. Bits per element: 13. Correlation and error: none.
//! Side channels: bit planes throughout; no branch or index on a secret.
//!
//! ```text
//!   v_{s t} = A ⊕ s B ⊕ t C ⊕ s t D  with  A = v_00, B = v_00 ⊕ v_10, C = v_00 ⊕ v_01, D = v_00 ⊕ v_01 ⊕ v_10 ⊕ v_11
//!   each is what roles 0 and 1 know ⊕ what role 2 knows; A is added as it is
//!   dealt: the products of role 2's s, t, st, B, sB, C, tC, D, sD, tD, stD, each ⊕ F(k_0), to role 1;  t2 = F(k_2)', t0 = F(k_0)'
//!   role 1 sends the sum with what is dealt ⊕ t2 to role 0, role 0 sends that with the masks alone ⊕ t0: component 1 is both
//! ```
//!
//! Simulator. Role 1 receives what is dealt under masks from `k_0`, which it does not know, one mask for each, and role 0's
//! message under another, `t0`. Role 0 receives a message under `t2`, from `k_2`, which it does not know. Role 2 receives
//! nothing.

use ombra_ir::Result;
use ombra_ir::settings::rep3::MUX_PRODUCTS;

use super::planes::two_planes;
use super::{Cx, Purpose};
use crate::backend::bits::words as plane_words;
use crate::settings::rep3::share::Bits;

const PRODUCTS: usize = MUX_PRODUCTS as usize;

/// Bits on their way to where they are chosen.
pub(super) struct Choice {
    /// The bit that is added as it is.
    first: Bits,
    /// `t0` at role 0, `t2` at role 1, both at role 2, `t2` first.
    out: [Vec<u64>; 2],
    /// What roles 0 and 1 sent; at role 2 nothing.
    half: Vec<u64>,
}

impl Choice {
    /// Sends the messages: of `of`, which are `v_00`, `v_01`, `v_10` and `v_11`, those at `[s, t]`, element by element.
    pub(super) fn begin(cx: &Cx, by: [Bits; 2], of: [Bits; 4]) -> Result<Choice> {
        let n = of[0].n;
        let words = plane_words(n);
        let [s, t] = by.map(|bits| two_planes(cx, &bits.a, &bits.b));
        let [a, v01, v10, v11] = of.each_ref().map(|bits| two_planes(cx, &bits.a, &bits.b));
        let b: Vec<u64> = a.iter().zip(&v10).map(|(x, y)| x ^ y).collect();
        let c: Vec<u64> = a.iter().zip(&v01).map(|(x, y)| x ^ y).collect();
        let d: Vec<u64> = b.iter().zip(&v01).zip(&v11).map(|((x, y), z)| x ^ y ^ z).collect();
        let masks = || cx.draw(0, Purpose::ChoiceFactor, 0, PRODUCTS * words);
        let out = |key: u8| cx.draw(key, Purpose::ChoiceOut, 0, words);
        let [first, ..] = of;
        if cx.role() == 2 {
            let mut products = masks()?;
            for j in 0..words {
                let (s, t, b, c, d) = (s[j], t[j], b[j], c[j], d[j]);
                let own = [s, t, s & t, b, s & b, c, t & c, d, s & d, t & d, s & t & d];
                own.into_iter().enumerate().for_each(|(i, product)| products[i * words + j] ^= product);
            }
            cx.send_planes(1, &products, PRODUCTS, n);
            return Ok(Choice { first, out: [out(2)?, out(0)?], half: Vec::new() });
        }
        let (products, empty) = match cx.role() {
            0 => (masks()?, 0),
            _ => (cx.take_planes(2, PRODUCTS, n)?, u64::MAX),
        };
        let own = out(2 * cx.role())?;
        let mut half = own.clone();
        for (j, half) in half.iter_mut().enumerate() {
            let x = |i: usize| products[i * words + j];
            let (s, t, b, c, d) = (s[j], t[j], b[j], c[j], d[j]);
            let of_s = b & (s & empty ^ x(0)) ^ s & x(3) ^ x(4);
            let of_t = c & (t & empty ^ x(1)) ^ t & x(5) ^ x(6);
            // Products with D, by those of s and t.
            let [none, with_s, with_t, with_both] =
                [d & empty ^ x(7), d & x(0) ^ x(8), d & x(1) ^ x(9), d & x(2) ^ x(10)];
            *half ^= of_s ^ of_t ^ s & (t & none ^ with_t) ^ t & with_s ^ with_both;
        }
        cx.send_planes(1 - cx.role(), &half, 1, n);
        Ok(Choice { first, out: [own, Vec::new()], half })
    }

    /// The chosen bits, after the exchange.
    pub(super) fn end(self, cx: &Cx) -> Result<Bits> {
        let Choice { first, out: [own, other], half: mut joint } = self;
        let n = first.n;
        if cx.role() != 2 {
            joint.iter_mut().zip(cx.take_planes(1 - cx.role(), 1, n)?).for_each(|(x, y)| *x ^= y);
        }
        let (a, b) = match cx.role() {
            0 => (own, joint),
            1 => (joint, own),
            _ => (own, other),
        };
        let with = |x: Vec<u64>, y: &[u64]| x.iter().zip(y).map(|(x, y)| x ^ y).collect();
        Ok(Bits::new(n, with(a, &first.a), with(b, &first.b)))
    }
}
