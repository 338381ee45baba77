//! Products of what roles 0 and 1 both know and what role 2 knows, in one round.
//!
//! Every replicated sharing is one of these: roles 0 and 1 know component 1, role 2 the sum of the others. So truncation,
//! conversion and selection of bits, and the first step of a comparison are cross-term products.
//!
//! Source: the oblivious transfer of three parties of ABY3, 2018/403, §5.4.1, with a ring element in place of the choice:
//! the sender is role 2, the receiver role 1 and its helper role 0, who knows the masks; both halves of the product are
//! then exchanged, so that both roles have the sum.
//! Parties and adversary: three, one semi-honest corruption. Rounds: 1, before which role 2 has dealt. Correlation and error:
//! none. Bits per element of `Σ a_i·c_i` with `m` products: `m·ℓ + 2ℓ`. Side channels: no branch or index on a secret.
//!
//! ```text
//!   a_i at roles 0 and 1, c_i at role 2; components 0 and 2 of the result are t0 = F(k_0) and t2 = F(k_2)
//!   dealt: c_i + F(k_0)_i to role 1
//!   role 1 sends Σ a_i·(c_i + F(k_0)_i) − t2 to role 0; role 0 sends −Σ a_i·F(k_0)_i − t0 to role 1
//!   component 1 is the sum of these two
//! ```
//!
//! Simulator. Role 1 receives `c_i` under `F(k_0)_i` and a message under `t0`, which are independent and from a key that it
//! does not know: all are uniform, and component 1 is what they say. Role 0 receives a message under `t2`, from a key that
//! it does not know. Role 2 receives nothing.
//!
//! What role 2 knows alone is dealt: component 0 is `F(k_0)`, and component 2 goes to role 1 under it.
//!
//! Composition. Output sharings are not independent of input sharings: after a truncation component 1 mod `2^(ℓ−f)` is
//! `(m ≫ f) − 2^(ℓ−2−f)`, and of a reshared sum of two terms it is the joint term itself. This is harmless because of
//! two things that hold of every kernel. Every message that a role receives is uniform given everything that the role
//! holds, so the simulators of steps one after another are one simulator. And an opening sends exactly the component that
//! the receiver's own shares and the output determine. A kernel breaks this that takes its operand for a fresh sharing,
//! say as a mask, or that sends role 2 anything of component 1 that is no output: role 2 knows the other term, and every
//! mask of a crossing.
//! That role 2 deals before the others have their operands changes none of this: what it sends follows from what it holds.

use ombra_ir::Result;

use super::{Cx, Purpose};
use crate::settings::rep3::share::Shared;

/// What a role has of a crossing.
pub(super) enum Factors {
    /// `a_i`, at roles 0 and 1.
    Joint(Vec<Vec<u64>>),
    /// `c_i`, at role 2.
    Single(Vec<Vec<u64>>),
}

/// A cross-term product whose messages are sent: after the exchange, [`CrossTerm::end`] gives the result.
pub(super) struct CrossTerm {
    bits: u8,
    /// `t0` at role 0, `t2` at role 1, both at role 2, `t2` first.
    out: [Vec<u64>; 2],
    /// What roles 0 and 1 sent; at role 2 nothing.
    half: Vec<u64>,
}

/// Sends the messages of a cross-term product of `n` elements of a ring of `bits`; `part` tells those of one op level apart.
pub(super) fn begin(cx: &Cx, factors: Factors, n: usize, bits: u8, part: u8) -> Result<CrossTerm> {
    let (Factors::Joint(lists) | Factors::Single(lists)) = &factors;
    lists.iter().for_each(|factor| debug_assert_eq!(factor.len(), n, "one factor of an element each"));
    let masks = |count: usize| cx.draw(0, Purpose::CrossFactor, part, n * count);
    let out = |key: u8| cx.draw(key, Purpose::CrossOut, part, n);
    match &factors {
        Factors::Joint(a) => {
            let is_first = cx.role() == 0;
            let own = out(if is_first { 0 } else { 2 })?;
            let singles = if is_first { masks(a.len())? } else { cx.take(2, n * a.len(), bits)? };
            let mut half: Vec<u64> = own.iter().map(|t| t.wrapping_neg()).collect();
            for (i, a) in a.iter().enumerate() {
                let terms = a.iter().zip(singles.get(i * n..).unwrap_or(&[])).map(|(a, c)| a.wrapping_mul(*c));
                match is_first {
                    true => half.iter_mut().zip(terms).for_each(|(h, term)| *h = h.wrapping_sub(term)),
                    false => add_words(&mut half, terms),
                }
            }
            cx.send(1 - cx.role(), &half, bits);
            Ok(CrossTerm { bits, out: [own, Vec::new()], half })
        }
        Factors::Single(c) => {
            let mut masked = masks(c.len())?;
            add_words(&mut masked, c.iter().flatten().copied());
            cx.send(1, &masked, bits);
            Ok(CrossTerm { bits, out: [out(2)?, out(0)?], half: Vec::new() })
        }
    }
}

impl CrossTerm {
    /// The sharing of the sum, from what has come.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        let ([own, other], mut sum) = (self.out, self.half);
        if cx.role() == 2 {
            return Ok(Shared::new(own, other));
        }
        let other = cx.take(1 - cx.role(), sum.len(), self.bits)?;
        add_words(&mut sum, other);
        Ok(if cx.role() == 0 { Shared::new(own, sum) } else { Shared::new(sum, own) })
    }
}

/// Deals a value that role 2 knows, in `n` words there; component 0 is for `purpose`. The result is what a role has of
/// components 0 and 2: that which it knows, and both at role 2, component 2 first.
pub(super) fn deal(cx: &Cx, value: Vec<u64>, n: usize, bits: u8, purpose: Purpose) -> Result<[Vec<u64>; 2]> {
    match cx.role() {
        0 => Ok([cx.draw(0, purpose, 0, n)?, Vec::new()]),
        1 => Ok([cx.take(2, n, bits)?, Vec::new()]),
        _ => {
            debug_assert_eq!(value.len(), n, "one value of an element each");
            let zeroth = cx.draw(0, purpose, 0, n)?;
            let mut second = value;
            second.iter_mut().zip(&zeroth).for_each(|(v, z)| *v = v.wrapping_sub(*z));
            cx.send(1, &second, bits);
            Ok([second, zeroth])
        }
    }
}

/// The sharing of which roles 0 and 1 know component 1, and `known` is what [`deal`] says.
pub(super) fn dealt_sharing(cx: &Cx, joint: Vec<u64>, known: [Vec<u64>; 2]) -> Shared {
    let [first, second] = known;
    match cx.role() {
        0 => Shared::new(first, joint),
        1 => Shared::new(joint, first),
        _ => Shared::new(first, second),
    }
}

/// Component 1 at roles 0 and 1, the sum of the others at role 2: what a sharing is as two terms.
pub(super) fn two_terms(cx: &Cx, x: &Shared, n: usize) -> Vec<u64> {
    match cx.role() {
        0 => x.b.to_vec(n),
        1 => x.a.to_vec(n),
        _ => x.both(n),
    }
}

/// The same of shared bits, in `n` words of 0 and 1.
pub(super) fn two_bits(cx: &Cx, a: &[u64], b: &[u64], n: usize) -> Vec<u64> {
    (0..n)
        .map(|i| match cx.role() {
            0 => bit(b, i),
            1 => bit(a, i),
            _ => bit(a, i) ^ bit(b, i),
        })
        .collect()
}

/// Bit `i` of a plane.
pub(super) fn bit(plane: &[u64], i: usize) -> u64 {
    plane[i / 64] >> (i % 64) & 1
}

/// Adds `y` to every word of `x`.
pub(super) fn add_words(x: &mut [u64], y: impl IntoIterator<Item = u64>) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_add(y));
}
