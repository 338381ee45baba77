//! Division by a power of two, and values in a larger ring.
//!
//! Source: the wrap of a masked value from the highest bits of value and mask, with a bound that leaves a quarter of the
//! ring: Dalskov, Escudero and Keller, 2019/131, §5.2, and 2020/1330, §3.3; here the mask is a term of the value itself.
//! Parties and adversary: three, one semi-honest corruption.
//! Rounds and bits per element, from a ring of `ℓ` bits into one of `R`, where `w` is `R + f − ℓ` rounded up to whole bytes: of a
//! sharing or two terms 1 and `R + 3w`; three terms are another protocol, see [`divide_three`]. Role 2 deals before.
//! Correlation: none. Where `R ≤ ℓ − f` there is no wrap, and the result is two terms: see below.
//! Functionality: `y = ⌊x / 2^f⌋ + [x mod 2^f > m mod 2^f]`, where roles 0 and 1 know `m` (below): the weaker one that
//! rounds by the shares. Error: where `m mod 2^f` is uniform given `x`, as of fresh sharings, one more has chance
//! `(x mod 2^f) / 2^f`, and the mean of `y` is `x / 2^f`. Where the joint term is zero or public, `m mod 2^f` is public, for
//! zero the dither of the element's position; where role 2's term is public, `x` and position decide too.
//! Then `y` is the same in every run, and the mean is right over elements alone, whose dithers are evenly spread.
//! Needs `|x| < 2^(ℓ−2)`; beyond it the result is wrong by multiples of `2^(ℓ−f)`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   m' at roles 0 and 1, −r' at role 2, x = m' − r' mod 2^ℓ;  m = m' + d, r = r' + d for a public dither d
//!   with m = m + 2^(ℓ−2):  0 ≤ x + 2^(ℓ−2) = m − r + 2^ℓ·n·h < 2^(ℓ−1),  n = 1 − ⌊m / 2^(ℓ−1)⌋,  h = ⌊r / 2^(ℓ−1)⌋
//!   result = (m ≫ f) − 2^(ℓ−2−f) at roles 0 and 1,  − (r ≫ f) dealt by role 2,  + 2^(ℓ−f)·n·h
//!   n·h mod 2^w: a cross-term product of n and h
//! ```
//!
//! Since x + 2^(ℓ−2) is less than half the ring, `m` wraps exactly where `r` is in the upper half and `m` is not. And
//! `⌊(x + r) / 2^f⌋ − ⌊r / 2^f⌋` is `⌊x / 2^f⌋` and the carry out of the low `f` bits of `x + r`, which is 1 exactly
//! where those of their sum `m` are less than those of `x`.
//!
//! The result is not independent of the operand: component 1 is `(m ≫ f) − 2^(ℓ−2−f)` mod `2^(ℓ−f)`. See
//! [`cross`](super::cross) for why that is harmless.
//!
//! **Without a wrap**, in a ring of at most `ℓ − f` bits, `(m ≫ f) − (r ≫ f)` is the quotient: two terms, which roles 0 and 1
//! and role 2 make of theirs. Rounds and bits: 0 of a sharing or two terms, 1 and `2(ℓ − g)` of three terms, of which roles 0 and
//! 1 exchange theirs under masks as in [`reshare`](super::reshare), without what that deals. Functionality as above, whatever `x`
//! is: no bound. A whole multiple of `2^f` is divided exactly of two terms, since both drop the same. Simulator: that of the
//! exchange.
//!
//! **Three terms** are cut before, each where it is: of `f` bits the `g` that are whole bytes. Under a sharing of zero, role 0
//! rounds its term down, role 1 to the nearest and role 2 up, each mod `2^ℓ` and in a ring of `ℓ − g` bits from there on: their
//! sum is off by less than 3/2, and right on average, since any two of them are uniform. The rest is divided as said. So the
//! quotient is off by less than 2, and by less than 3/2 where `f = g`. Simulator: what is sent is the upper part of what was sent
//! uncut, uniform as that.
//!
//! Simulator. Role 2 receives nothing. Role 0 receives the message of the crossing. Role 1 receives what is dealt under a
//! mask from `k_0`, and the messages of the crossing, whose masks are others: all are uniform. `m` says nothing of `x`: it is
//! a component that both hold, or such a term times public values.

use ombra_ir::settings::rep3::cut_first;
use ombra_ir::settings::wrap_bytes;
use ombra_ir::{Diagnostic, Result};

use super::cross::{Factors, begin, deal, dealt_sharing};
use super::divide_three;
use super::local::linear::Ring;
use super::reshare::{Operand, exchange_terms, own_term};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Component, Shared, Sum, ring_mask};

/// The quotient of `n` elements of a ring of `from` bits by `2^by`, `by ≤ from − 2`, in a ring of `to` bits: a sum of two terms
/// where `to ≤ from − by`, else a sharing. `by = 0` is the same value in a larger ring, whose wrap has the weight `2^from`.
pub async fn truncate(cx: &Cx, x: Operand<'_>, n: usize, (from, to): (u8, u8), by: u8) -> Result<Ring> {
    if from < 8 || by.saturating_add(2) > from || to > 64 || by == 0 && to <= from {
        let found = format!("division by 2^{by} of a {from}-bit ring into one of {to} bits");
        return Err(Diagnostic::internal("E0803", found));
    }
    let (term, division) = (own_term(cx, x, n), Division { bits: from, by, out: to });
    let is_two = to <= from - by;
    if x.has_three_terms() {
        let (term, rest) = cut(cx, term, division);
        if is_two {
            // What is opened is uniform as it is.
            let term = exchange_terms(cx, term, rest.bits).await?;
            return Ok(Ring::Two(Sum::new(Some(divided(cx, term, rest)))));
        }
        return Ok(Ring::Shared(divide_three::divide(cx, term, n, rest).await?));
    }
    let term = dithered(cx, term);
    if is_two {
        return Ok(Ring::Two(Sum::new(Some(divided(cx, term, division)))));
    }
    Ok(Ring::Shared(divide(cx, term, n, division).await?))
}

/// The term, masked by a sharing of zero and without the bytes that are cut off, and the division that is left.
fn cut(cx: &Cx, mut term: Vec<u64>, division: Division) -> (Vec<u64>, Division) {
    cx.add_zero_share(Purpose::DivideTerm, &mut term);
    let by = cut_first(division.by);
    if by > 0 {
        // Down, to the nearest, and up: half a unit less and half a unit more.
        let (mask, above) = (ring_mask(division.bits), [0, 1u64 << (by - 1), (1 << by) - 1][usize::from(cx.role())]);
        term.iter_mut().for_each(|t| *t = (t.wrapping_add(above) & mask) >> by);
    }
    (term, Division { bits: division.bits - by, by: division.by - by, ..division })
}

/// This role's term of the quotient without a wrap: `m ≫ f` at roles 0 and 1, `−(r ≫ f)` at role 2.
fn divided(cx: &Cx, mut term: Vec<u64>, division: Division) -> Vec<u64> {
    let (mask, by) = (ring_mask(division.bits), division.by);
    match cx.role() {
        2 => term.iter_mut().for_each(|t| *t = ((t.wrapping_neg() & mask) >> by).wrapping_neg()),
        _ => term.iter_mut().for_each(|t| *t = (*t & mask) >> by),
    }
    term
}

/// A term that is zero by construction would make the rounding that of one threshold for all elements.
fn dithered(cx: &Cx, mut term: Vec<u64>) -> Vec<u64> {
    let is_negative = cx.role() == 2;
    let signed = |i: usize| if is_negative { dither(i).wrapping_neg() } else { dither(i) };
    term.iter_mut().enumerate().for_each(|(i, t)| *t = t.wrapping_add(signed(i)));
    term
}

/// `x / 2^by` for `x` in a ring of `bits`, as an element of a ring of `out` bits.
#[derive(Clone, Copy)]
pub(super) struct Division {
    pub(super) bits: u8,
    pub(super) by: u8,
    pub(super) out: u8,
}

impl Division {
    /// Bits of the ring of the wrap: whole bytes, so that what is sent is uniform.
    pub(super) fn wrap_bits(self) -> u8 {
        8 * wrap_bytes(self.bits, self.out, self.by)
    }

    /// Ring mask, a quarter of the ring, the sign bit's position, and the weight of the wrap, `2^(bits − by)`.
    pub(super) fn constants(self) -> (u64, u64, u32, u64) {
        (ring_mask(self.bits), 1 << (self.bits - 2), u32::from(self.bits - 1), self.weight())
    }

    /// `m` from its sum, with a quarter of the ring.
    fn joint(self, sum: u64) -> u64 {
        sum.wrapping_add(1 << (self.bits - 2)) & ring_mask(self.bits)
    }

    /// 1 in the lower half of the ring: `n` of `m`, `1 − h` of `r`.
    fn low_half(self, x: u64) -> u64 {
        1 ^ x >> (self.bits - 1)
    }

    /// What roles 0 and 1 know of component 1: the quotient of `m`.
    fn quotient(self, m: u64) -> u64 {
        (m >> self.by).wrapping_sub(1 << (self.bits - 2 - self.by))
    }

    /// The wrap's weight.
    fn weight(self) -> u64 {
        1 << (self.bits - self.by)
    }
}

/// The quotient of a sum of two terms.
async fn divide(cx: &Cx, mut term: Vec<u64>, n: usize, division: Division) -> Result<Shared> {
    let (mut joint, mut single) = (Vec::new(), Vec::new());
    let factors = if cx.role() == 2 {
        term.iter_mut().for_each(|r| *r = r.wrapping_neg() & ring_mask(division.bits));
        single = term.iter().map(|r| (r >> division.by).wrapping_neg()).collect();
        Factors::Single(vec![term.iter().map(|r| 1 ^ division.low_half(*r)).collect()])
    } else {
        term.iter_mut().for_each(|m| *m = division.joint(*m));
        joint = term.iter().map(|m| division.quotient(*m)).collect();
        Factors::Joint(vec![term.iter().map(|m| division.low_half(*m)).collect()])
    };
    let quotient = deal(cx, single, n, division.out, Purpose::DivideQuotient)?;
    let cross_term = begin(cx, factors, n, division.wrap_bits(), 0)?;
    cx.exchange().await;
    let wrap = cross_term.end(cx)?;
    let weight = division.weight();
    let weighted = |x: &Component, wrap: &Component| {
        let wrap = wrap.to_vec(n);
        x.map(|x| x.iter().zip(wrap).map(|(x, w)| x.wrapping_add(w.wrapping_mul(weight))).collect())
    };
    let divided = dealt_sharing(cx, joint, quotient);
    Ok(Shared { a: weighted(&divided.a, &wrap.a), b: weighted(&divided.b, &wrap.b) })
}

/// What is added to both terms of element `i`: the same at all parties, and with low bits that are evenly spread.
pub(super) fn dither(i: usize) -> u64 {
    (i as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
}
