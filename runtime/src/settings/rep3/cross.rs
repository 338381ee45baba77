//! Products of what roles 0 and 1 both know and what role 2 knows, in one round.
//!
//! Every replicated sharing is one of these: roles 0 and 1 know component 1, role 2 the sum of the others. So truncation,
//! conversion and selection of bits, and the first step of a comparison are cross-term products.
//!
//! Source: the oblivious transfer of three parties of ABY3, 2018/403, §5.4.1, with a ring element in place of the choice:
//! the sender is role 2, and roles 0 and 1 are receiver and helper of one transfer and the reverse of another.
//! Parties and adversary: three, one semi-honest corruption. Rounds: 1. Correlation and error: none.
//! Bits per element of `Σ a_i·c_i` with `m` products: `2m·ℓ + 2ℓ`. Side channels: no branch or index on a secret.
//!
//! ```text
//!   a_i at roles 0 and 1, c_i at role 2; components 0 and 2 of the result are t0 = F(k_0) and t2 = F(k_2)
//!   role 2 sends c_i + F(k_2)_i to role 0 and c_i + F(k_0)_i to role 1
//!   role 1 sends −Σ a_i·F(k_2)_i − t2 to role 0; role 0 sends −Σ a_i·F(k_0)_i − t0 to role 1
//!   role 0: component 1 = Σ a_i·(c_i + F(k_2)_i) − Σ a_i·F(k_2)_i − t2 − t0; role 1 the same with keys 0 and 2 exchanged
//! ```
//!
//! Simulator. Role 0 receives `c_i + F(k_2)_i` and a message under `t2`, which are independent and from a key that it
//! does not know: both are uniform, and component 1 is what they say. Role 1 likewise with `k_0`. Role 2 receives
//! nothing.
//!
//! What role 2 knows alone is dealt in the same round: component 0 is `F(k_0)`, and component 2 goes to role 1 under it.
//!
//! Composition. Output sharings are not independent of input sharings: after a truncation component 1 mod `2^(ℓ−f)` is
//! `(m ≫ f) − 2^(ℓ−2−f)`, and of a reshared sum of two terms it is the joint term itself. This is harmless because of
//! two things that hold of every kernel. Every message that a role receives is uniform given everything that the role
//! holds, so the simulators of steps one after another are one simulator. And an opening sends exactly the component that
//! the receiver's own shares and the output determine. A kernel breaks this that takes its operand for a fresh sharing,
//! say as a mask, or that sends role 2 anything of component 1 that is no output: role 2 knows the other term, and every
//! mask of a crossing.

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

/// A cross-term product whose messages are sent: after the round, [`CrossTerm::end`] gives the result.
pub(super) struct CrossTerm {
    factors: Factors,
    n: usize,
    bits: u8,
    /// `t0` at role 0, `t2` at role 1, both at role 2.
    out: [Vec<u64>; 2],
}

/// Sends the messages of a cross-term product of `n` elements of a ring of `bits`; `part` tells those of one op level apart.
pub(super) fn begin(cx: &Cx, factors: Factors, n: usize, bits: u8, part: u8) -> Result<CrossTerm> {
    let (Factors::Joint(lists) | Factors::Single(lists)) = &factors;
    lists.iter().for_each(|factor| debug_assert_eq!(factor.len(), n, "one factor of an element each"));
    let masks = |key: u8, count: usize| cx.draw(key, Purpose::CrossFactor, part, n * count);
    let out = |key: u8| cx.draw(key, Purpose::CrossOut, part, n);
    let out = match &factors {
        Factors::Joint(a) => {
            // Role 0 takes off the masks of role 1's message, and the reverse.
            let (key, to) = if cx.role() == 0 { (0, 1) } else { (2, 0) };
            let (masks, own) = (masks(key, a.len())?, out(key)?);
            let mut sum = own.clone();
            for (i, a) in a.iter().enumerate() {
                let masks = masks.get(i * n..).unwrap_or(&[]);
                sum.iter_mut().zip(a).zip(masks).for_each(|((s, a), m)| *s = s.wrapping_add(a.wrapping_mul(*m)));
            }
            sum.iter_mut().for_each(|s| *s = s.wrapping_neg());
            cx.send(to, &sum, bits);
            [own, Vec::new()]
        }
        Factors::Single(c) => {
            for (key, to) in [(2, 0), (0, 1)] {
                let mut masked = masks(key, c.len())?;
                masked.iter_mut().zip(c.iter().flatten()).for_each(|(m, c)| *m = m.wrapping_add(*c));
                cx.send(to, &masked, bits);
            }
            [out(2)?, out(0)?]
        }
    };
    Ok(CrossTerm { factors, n, bits, out })
}

impl CrossTerm {
    /// The sharing of the sum, from what has come.
    pub(super) fn end(self, cx: &Cx) -> Result<Shared> {
        let [own, other] = self.out;
        let Factors::Joint(a) = self.factors else { return Ok(Shared::new(own, other)) };
        let role = cx.role();
        let masked = cx.take(2, self.n * a.len(), self.bits)?;
        let mut sum = cx.take(1 - role, self.n, self.bits)?;
        sum.iter_mut().zip(&own).for_each(|(s, t)| *s = s.wrapping_sub(*t));
        for (i, a) in a.iter().enumerate() {
            let masked = masked.get(i * self.n..).unwrap_or(&[]);
            sum.iter_mut().zip(a).zip(masked).for_each(|((s, a), m)| *s = s.wrapping_add(a.wrapping_mul(*m)));
        }
        Ok(if role == 0 { Shared::new(own, sum) } else { Shared::new(sum, own) })
    }
}

/// What role 2 deals: after the round, [`Dealt::end`] gives components 2 and 0 at role 2, 0 at role 0, 2 at role 1.
pub(super) struct Dealt {
    n: usize,
    bits: u8,
    known: [Vec<u64>; 2],
}

/// Sends the messages of a value that role 2 knows, in `n` words there; component 0 is for `purpose`.
pub(super) fn deal(cx: &Cx, value: Vec<u64>, n: usize, bits: u8, purpose: Purpose) -> Result<Dealt> {
    let known = match cx.role() {
        0 => [cx.draw(0, purpose, 0, n)?, Vec::new()],
        1 => [Vec::new(), Vec::new()],
        _ => {
            debug_assert_eq!(value.len(), n, "one value of an element each");
            let zeroth = cx.draw(0, purpose, 0, n)?;
            let mut second = value;
            second.iter_mut().zip(&zeroth).for_each(|(v, z)| *v = v.wrapping_sub(*z));
            cx.send(1, &second, bits);
            [second, zeroth]
        }
    };
    Ok(Dealt { n, bits, known })
}

impl Dealt {
    /// This role's component among 0 and 2, first component 2 at role 2.
    pub(super) fn end(self, cx: &Cx) -> Result<[Vec<u64>; 2]> {
        let [first, second] = self.known;
        if cx.role() == 1 { Ok([cx.take(2, self.n, self.bits)?, second]) } else { Ok([first, second]) }
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
