//! `e^x` of a shared value in one exchange, by the digits of its two terms.
//!
//! Source: products of what roles 0 and 1 know and what role 2 knows (see [`cross`](super::cross)); of a power of a
//! difference, `e^(m−r) = e^m · e^(−r)`, every factor is known to one side. Two digits keep the factors small where the
//! terms wrap.
//! Parties and adversary: three, one semi-honest corruption. Correlation: none.
//! Rounds: 1, before which role 2 has dealt. Bits per element: 304, and 320 for the tail.
//! Functionality: `round(2^19 e^(m_lo)) · round(2^42 e^(x − m_lo)) / 2^40`, rounded down, less 0 or 1 unit of `2^-21` as the
//! shares decide: it depends on `m`, a component that two roles hold, by a part of `1e-6` at most, as a truncation's
//! last bit does. For the tail `2^12`, `2^49` and `2^32` take the place of `2^19`, `2^42` and `2^40`, the unit is `2^-29`, and
//! the part is `1.3e-4`.
//! Error: at most 4e-6, for `−32 ≤ x ≤ 1/2`; elsewhere the result is any element of the ring. For the tail at most 1.3e-4 of
//! the result and 4 units more, and for uniform shares less than a unit on average where `−18 ≤ x`: a small factor of role 2
//! is rounded to 0 in the other form, where it is below `2^-44`.
//! Side channels: no branch or index on a secret.
//!
//! ```text
//!   s fraction bits;  m = x1 at roles 0 and 1, r = −(x0 + x2) at role 2, both mod 2^(s+6), which is 64
//!   m = 2^(s+4) m_hi + m_lo and r the same: m_hi, r_hi of 2 bits, m_lo, r_lo of s + 4 bits, which are 16
//!   x = 16 h + l with l = (m_lo − r_lo) / 2^s in (−16, 16), so h ≡ m_hi − r_hi mod 4 is −2, −1, 0 or 1, and
//!   e^x = [T(m_hi − r_hi) e^(−r_lo)] · e^(m_lo),  T = 1, e^16, e^−32, e^−16
//!   c_j = T(j − r_hi) e^(−r_lo) at scale 42 for j = 0..3 at role 2;  a = e^(m_lo) at scale 19 at roles 0 and 1
//!   dealt: c_j + F(k_0)_j to role 1;  y1 = a·(c_j + F(k_0)_j) at role 1, y0 = −a·F(k_0)_j at role 0, j = m_hi
//!         z = ⌊y / 2^40⌋ there; components 0 and 2 of the result are t0 = F(k_0)' and t2 = F(k_2) mod 2^24
//!         role 0 sends z0 − t0 to role 1, role 1 sends z1 − t2 to role 0: component 1 is their sum
//! ```
//!
//! The product has scale 61 and is below `2^62`, so its multiple of `2^64` is 0 for every choice but the one that counts,
//! and of that one too. Shifting two terms loses one unit of `2^-21` at most; rounding `c_j`
//! costs `2^-43 e^16`, rounding `a` one part in `2^20`. Roles 0 and 1 need the same integer `a`, because it is multiplied by
//! masks: it comes from doubles by the operations whose results IEEE 754 prescribes, which are the same on every machine.
//!
//! Simulator. Role 1 receives words under fresh `F(k_0)_j` and one under `t0`, role 0 one
//! under `t2`; neither knows the key of what it receives. Role 2 receives nothing.

use ombra_ir::op::{EXP_WINDOW, exp_form};
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Result};

use super::cross::two_terms;
use super::{Cx, Purpose};
use crate::settings::rep3::share::Shared;

#[cfg(all(target_arch = "x86", not(target_feature = "sse2")))]
compile_error!("parties need doubles that are not computed in more precision: build with SSE2");

/// Choices of the high digit.
const DIGITS: usize = 4;
/// What the difference of the high digits stands for, as a multiple of 16.
const HIGH: [f64; DIGITS] = [0.0, 1.0, -2.0, -1.0];
/// Fraction bits of both factors together.
const PRODUCT_SCALE: u8 = 61;

/// Fraction bits of the factor of roles 0 and 1; role 2's has the others.
fn joint_scale(tail: bool) -> u8 {
    if tail { 12 } else { 19 }
}

/// `e^x` of `n` elements with `scale` fraction bits, in the ring and at the scale of [`exp_form`]; right on average for small
/// results too where `tail` is set.
pub async fn exp_digits(cx: &Cx, x: &Shared, n: usize, scale: u8, tail: bool) -> Result<Shared> {
    if scale > 64 - EXP_WINDOW {
        return Err(Diagnostic::internal("E0803", format!("an exponential of {scale} fraction bits")));
    }
    let (bits, fraction) = exp_form(Setting::ThreeParty, tail);
    let shift = PRODUCT_SCALE - fraction;
    let term = two_terms(cx, x, n);
    let role = cx.role();
    let masks = |key: u8| cx.draw(key, Purpose::ExpFactor, 0, DIGITS * n);
    let out = |key: u8| cx.draw(key, Purpose::ExpOut, 0, n);
    if role == 2 {
        let mut masked = masks(0)?;
        masked.iter_mut().zip(single(&term, scale, tail)).for_each(|(m, c)| *m = m.wrapping_add(c));
        cx.send(1, &masked, 64);
        return Ok(Shared::new(out(2)?, out(0)?));
    }
    let (digits, factor) = joint(&term, scale, tail);
    let (entries, own) = if role == 0 { (masks(0)?, out(0)?) } else { (cx.take(2, DIGITS * n, 64)?, out(2)?) };
    let sign = if role == 0 { u64::MAX } else { 1 };
    let share = |i: usize| {
        let entry = (0..DIGITS).fold(0, |chosen, j| chosen | entries[j * n + i] & equal(digits[i], j as u64));
        (factor[i].wrapping_mul(entry).wrapping_mul(sign) >> shift).wrapping_sub(own[i])
    };
    let mut sum: Vec<u64> = (0..n).map(share).collect();
    cx.send(1 - role, &sum, bits);
    cx.exchange().await;
    sum.iter_mut().zip(cx.take(1 - role, n, bits)?).for_each(|(s, other)| *s = s.wrapping_add(other));
    Ok(if role == 0 { Shared::new(own, sum) } else { Shared::new(sum, own) })
}

/// All ones where `a` is `b`, of numbers below [`DIGITS`].
fn equal(a: u64, b: u64) -> u64 {
    (((a ^ b).wrapping_sub(1)) >> 63).wrapping_neg()
}

/// High digits and low ones, of the low bits of `m`.
fn split(m: u64, scale: u8) -> (u64, f64) {
    let low = scale + EXP_WINDOW - 2;
    let digit = m >> low & (DIGITS as u64 - 1);
    (digit, (m & ((1 << low) - 1)) as f64 / (1u64 << scale) as f64)
}

/// What roles 0 and 1 know: the high digits of `m`, and `e^(m_lo)`.
fn joint(m: &[u64], scale: u8, tail: bool) -> (Vec<u64>, Vec<u64>) {
    m.iter()
        .map(|m| {
            let (digit, low) = split(*m, scale);
            (digit, fixed(exp(low), joint_scale(tail)))
        })
        .unzip()
}

/// What role 2 knows, of the sum of its components: `T(j − r_hi) e^(−r_lo)` for `j` of 0 to 3, all of one `j` together.
fn single(sum: &[u64], scale: u8, tail: bool) -> Vec<u64> {
    let n = sum.len();
    let high = HIGH.map(|h| exp(16.0 * h));
    let mut out = vec![0; DIGITS * n];
    for (i, sum) in sum.iter().enumerate() {
        let (digit, low) = split(sum.wrapping_neg(), scale);
        let power = exp(-low);
        for j in 0..DIGITS as u64 {
            let difference = j.wrapping_sub(digit) & (DIGITS as u64 - 1);
            let high = (0..DIGITS as u64).zip(high).fold(0, |bits, (k, h)| bits | h.to_bits() & equal(difference, k));
            out[j as usize * n + i] = fixed(power * f64::from_bits(high), PRODUCT_SCALE - joint_scale(tail));
        }
    }
    out
}

/// `round(x · 2^scale)` for `0 ≤ x · 2^scale < 2^51`; some number below `2^52` for larger ones.
fn fixed(x: f64, scale: u8) -> u64 {
    const ONE: f64 = (1u64 << 52) as f64;
    (x * (1u64 << scale) as f64 + ONE).to_bits() & ((1 << 52) - 1)
}

/// `e^x` for `|x| ≤ 64` to 14 digits, by operations of IEEE 754 alone.
fn exp(x: f64) -> f64 {
    // Adding it rounds to whole numbers, which then stand in the low bits.
    const WHOLE: f64 = (3u64 << 51) as f64;
    let t = x * std::f64::consts::LOG2_E;
    let shifted = t + WHOLE;
    let rest = (t - (shifted - WHOLE)) * std::f64::consts::LN_2;
    // Taylor's series: the next term is 2e-16 at ln 2 / 2.
    let series = (1..=12).rev().fold(1.0, |sum, k| 1.0 + sum * rest / f64::from(k));
    let exponent = (shifted.to_bits() & ((1 << 52) - 1)).wrapping_sub(1 << 51);
    series * f64::from_bits(exponent.wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_close_to_the_exponential() {
        for i in -64_000..=64_000 {
            let x = f64::from(i) / 1000.0;
            let error = exp(x) / x.exp() - 1.0;
            assert!(error.abs() < 2e-14, "{x}: {error:e}");
        }
    }

    /// For every pair of digits and far ends of the low ones: the product of the factors, in exact integers.
    #[test]
    fn factors_multiply_to_the_exponential() {
        let scale = 16;
        let window = 1i64 << (scale + EXP_WINDOW);
        for tail in [false, true] {
            let mut worst = 0f64;
            let mut check = |x: i64, m: i64| {
                let real = (x as f64 / 65536.0).exp();
                // Of the tail what is beyond its own size counts.
                let allowed = if tail { 1.3e-4 * real } else { 0.0 };
                worst = worst.max((product(x, m, scale, tail) - real).abs() - allowed);
            };
            for m in (0..window).step_by(4099).chain([0, window - 1, window / 4 - 1, window / 4, window / 2]) {
                for x in (-(32 << 16)..=1 << 15).step_by(12_347).chain([-(32 << 16), -1, 0, 1, 1 << 15]) {
                    check(x, m);
                }
            }
            assert!(worst < if tail { 8.0e-9 } else { 2.7e-6 }, "{worst:e}");
        }
    }

    /// What the factors of `x` make where the joint term is `m`.
    fn product(x: i64, m: i64, scale: u8, tail: bool) -> f64 {
        let r = (m - x).rem_euclid(1 << (scale + EXP_WINDOW));
        let (digits, a) = joint(&[m as u64], scale, tail);
        let c = single(&[(r as u64).wrapping_neg()], scale, tail)[digits[0] as usize];
        a[0].wrapping_mul(c) as f64 / f64::from(PRODUCT_SCALE).exp2()
    }

    /// Over all joint terms, small results are right on average: sums of many of them lack nothing.
    #[test]
    fn small_results_of_the_tail_have_no_bias() {
        let (scale, unit) = (13u8, f64::from(exp_form(Setting::ThreeParty, true).1).exp2());
        let bias = |x: i64, tail: bool| {
            let all = (0..1i64 << (scale + EXP_WINDOW)).step_by(61);
            let n = all.clone().count() as f64;
            let mean = all.map(|m| product(x, m, scale, tail)).sum::<f64>() / n;
            (mean - (x as f64 / f64::from(scale).exp2()).exp()) * unit
        };
        for x in 8..=18 {
            assert!(bias(-(x << scale), true).abs() < 0.5, "{x}: {} units", bias(-(x << scale), true));
        }
        assert!(bias(-(16 << scale), false) < -4.0, "the other form lacks some");
    }
}
