//! Division by a power of two, and values in a larger ring.
//!
//! Source: the wrap of a masked value from the highest bits of value and mask, with a bound that leaves a quarter of the
//! ring: Dalskov, Escudero and Keller, 2019/131, §5.2, and 2020/1330, §3.3; here the mask is a term of the value itself.
//! Parties and adversary: three, one semi-honest corruption.
//! Rounds and bits per element, where `w` is `f` rounded up to whole bytes: of a sharing or two terms 1 and `ℓ + 4w`, of
//! three terms 2 and `3ℓ + 3w`, or as in [`divide_many`]. Correlation: none.
//! Functionality: `y = ⌊x / 2^f⌋ + [x mod 2^f > m mod 2^f]`, where roles 0 and 1 know `m` (below): the weaker one that
//! rounds by the shares. Error: where `m mod 2^f` is uniform given `x`, as of fresh sharings and of three terms, one more
//! has chance `(x mod 2^f) / 2^f`, and the mean of `y` is `x / 2^f`. Where the joint term is zero or public, `m mod 2^f`
//! is public, for zero the dither of the element's position; where role 2's term is public, `x` and position decide too.
//! Then `y` is the same in every run, and the mean is right over elements alone, whose dithers are evenly spread. The
//! form for many elements has another threshold: see [`divide_many`].
//! Needs `|x| < 2^(ℓ−2)`; beyond it the result is wrong by multiples of `2^(ℓ−f)`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   two terms:   m' at roles 0 and 1, −r' at role 2, x = m' − r' mod 2^ℓ;  m = m' + d, r = r' + d for a public dither d
//!   three terms: roles 0 and 1 exchange Z_0 and Z_1 of the sum masked by a sharing of zero; m = Z_0 + Z_1, r = −Z_2
//!   with m = m + 2^(ℓ−2):  0 ≤ x + 2^(ℓ−2) = m − r + 2^ℓ·n·h < 2^(ℓ−1),  n = 1 − ⌊m / 2^(ℓ−1)⌋,  h = ⌊r / 2^(ℓ−1)⌋
//!   result = (m ≫ f) − 2^(ℓ−2−f) at roles 0 and 1,  − (r ≫ f) dealt by role 2,  + 2^(ℓ−f)·n·h
//!   n·h mod 2^w, two terms:   a cross-term product of n and h
//!               three terms: role 2 deals h = h0 + h1, h0 = F(k_0); components 0 and 2 are t0 = F(k_0)', t2 = F(k_2);
//!                            then roles 0 and 1 exchange n·h0 − t0 and n·h1 − t2
//! ```
//!
//! Since x + 2^(ℓ−2) is less than half the ring, `m` wraps exactly where `r` is in the upper half and `m` is not. And
//! `⌊(x + r) / 2^f⌋ − ⌊r / 2^f⌋` is `⌊x / 2^f⌋` and the carry out of the low `f` bits of `x + r`, which is 1 exactly
//! where those of their sum `m` are less than those of `x`.
//!
//! The result is not independent of the operand: component 1 is `(m ≫ f) − 2^(ℓ−2−f)` mod `2^(ℓ−f)`. See
//! [`cross`](super::cross) for why that is harmless.
//!
//! Simulator. Role 2 receives nothing. Role 0 receives Z_1 under `F(k_2)`, then role 1's share of the wrap under `t2`, or
//! the messages of the crossing. Role 1 receives what is dealt under masks from `k_0`, Z_0 under `F(k_0)`, then role
//! 0's share of the wrap under `t0`, or the messages of the crossing. Role 0 does not know `k_2` nor role 1 `k_0`, and
//! every mask is used once: all are uniform. `m` says nothing of `x`: it is a component that both hold, or such a term
//! times public values, or the sum of Z_0 and Z_1, which is uniform because neither knows the mask of Z_2.

use ombra_ir::settings::rep3::is_round_cheaper;
use ombra_ir::{Diagnostic, Result};

use super::cross::{Dealt, Factors, add_words, begin, deal};
use super::divide_many;
use super::reshare::{Operand, own_term};
use super::{Cx, Purpose};
use crate::settings::rep3::share::{Component, Shared, ring_mask};

/// The quotient of `n` elements of a ring of `from` bits by `2^by`, `by ≤ from − 2`, in a ring of `to` bits; `by = 0` is the
/// same value in a larger ring, whose wrap has the weight `2^from`. A ring that is not larger takes the low bits of the
/// quotient in that of the operand.
pub async fn truncate(cx: &Cx, x: Operand<'_>, n: usize, (from, to): (u8, u8), by: u8) -> Result<Shared> {
    if from < 8 || by.saturating_add(2) > from || to > 64 || by == 0 && to <= from {
        let found = format!("division by 2^{by} of a {from}-bit ring into one of {to} bits");
        return Err(Diagnostic::internal("E0803", found));
    }
    divide(cx, x, n, Division { bits: from, by, out: to.max(from) }).await
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
        (self.out - (self.bits - self.by)).div_ceil(8) * 8
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

async fn divide(cx: &Cx, x: Operand<'_>, n: usize, division: Division) -> Result<Shared> {
    let three = x.has_three_terms();
    let mut term = own_term(cx, x, n);
    if three && !is_round_cheaper(n as u64, 2 * u64::from(division.wrap_bits())) {
        return divide_many::divide(cx, term, n, division).await;
    }
    if three {
        cx.add_zero_share(Purpose::TruncateTerm, &mut term);
    }
    let single = cx.role() == 2;
    if single {
        term.iter_mut().for_each(|t| *t = t.wrapping_neg());
    }
    if !three {
        // A term that is zero by construction would make the rounding that of one threshold for all elements.
        term.iter_mut().enumerate().for_each(|(i, t)| *t = t.wrapping_add(dither(i)));
    }
    let (mut dealt, mut high) = (Vec::new(), Vec::new());
    if single {
        term.iter_mut().for_each(|r| *r &= ring_mask(division.bits));
        dealt = term.iter().map(|r| (r >> division.by).wrapping_neg()).collect();
        high = term.iter().map(|r| 1 ^ division.low_half(*r)).collect();
    }
    let quotient = deal(cx, dealt, n, division.out, Purpose::TruncateQuotient)?;
    let (m, [first, second], wrap) = if three {
        three_terms(cx, term, high, n, division, quotient).await?
    } else {
        two_terms(cx, term, high, n, division, quotient).await?
    };

    let weighted = |mut words: Vec<u64>, wrap: Component| {
        let weight = division.weight();
        add_words(&mut words, wrap.to_vec(n).into_iter().map(|w| w.wrapping_mul(weight)));
        words
    };
    let quotient = m.iter().map(|m| division.quotient(*m)).collect();
    Ok(match cx.role() {
        0 => Shared::new(weighted(first, wrap.a), weighted(quotient, wrap.b)),
        1 => Shared::new(weighted(quotient, wrap.a), weighted(first, wrap.b)),
        _ => Shared::new(weighted(first, wrap.a), weighted(second, wrap.b)),
    })
}

/// `m` at roles 0 and 1, what role 2 deals, and `n·h`.
type Divided = (Vec<u64>, [Vec<u64>; 2], Shared);

async fn two_terms(cx: &Cx, m: Vec<u64>, h: Vec<u64>, n: usize, division: Division, dealt: Dealt) -> Result<Divided> {
    let m: Vec<u64> = m.into_iter().map(|m| division.joint(m)).collect();
    let factors = match cx.role() {
        2 => Factors::Single(vec![h]),
        _ => Factors::Joint(vec![m.iter().map(|m| division.low_half(*m)).collect()]),
    };
    let cross_term = begin(cx, factors, n, division.wrap_bits(), 0)?;
    cx.round().await;
    Ok((m, dealt.end(cx)?, cross_term.end(cx)?))
}

async fn three_terms(
    cx: &Cx,
    term: Vec<u64>,
    h: Vec<u64>,
    n: usize,
    division: Division,
    dealt: Dealt,
) -> Result<Divided> {
    let (role, wrap_bits) = (cx.role(), division.wrap_bits());
    let h = deal(cx, h, n, wrap_bits, Purpose::TruncateBit)?;
    if role == 2 {
        cx.round().await;
        cx.round().await;
        let wrap = Shared::new(cx.draw(2, Purpose::TruncateWrap, 0, n)?, cx.draw(0, Purpose::TruncateWrap, 0, n)?);
        return Ok((Vec::new(), dealt.end(cx)?, wrap));
    }
    let peer = 1 - role;
    cx.send(peer, &term, division.bits);
    cx.round().await;

    let other = cx.take(peer, n, division.bits)?;
    let m: Vec<u64> = term.iter().zip(&other).map(|(z, o)| division.joint(z.wrapping_add(*o))).collect();
    let (dealt, [h, _]) = (dealt.end(cx)?, h.end(cx)?);
    let own = cx.draw(2 * role, Purpose::TruncateWrap, 0, n)?;
    let share = |i: usize| division.low_half(m[i]).wrapping_neg() & h[i];
    let mut sum: Vec<u64> = own.iter().enumerate().map(|(i, t)| share(i).wrapping_sub(*t)).collect();
    cx.send(peer, &sum, wrap_bits);
    cx.round().await;

    add_words(&mut sum, cx.take(peer, n, wrap_bits)?);
    let wrap = if role == 0 { Shared::new(own, sum) } else { Shared::new(sum, own) };
    Ok((m, dealt, wrap))
}

/// What is added to both terms of element `i`: the same at all parties, and with low bits that are evenly spread.
pub(super) fn dither(i: usize) -> u64 {
    (i as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
}
