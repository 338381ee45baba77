//! `e^x` of a shared value in one exchange, by the digits of its two terms.
//!
//! Source: products of what roles 0 and 1 know and what role 2 knows (see [`cross`](super::cross)); of a power of a
//! difference, `e^(m−r) = e^m · e^(−r)`, every factor is known to one side. Two digits keep the factors small where the
//! terms wrap.
//! Parties and adversary: three, one semi-honest corruption. Correlation: none.
//! Rounds: 1, before which role 2 has dealt. Bits per element: 304, 320 for the tail, and 176 in a window of `2^5`.
//! Functionality: `round(2^19 e^(m_lo)) · round(2^42 e^(x − m_lo)) / 2^40`, rounded down, less 0 or 1 unit of `2^-21` as the
//! shares decide: it depends on `m`, a component that two roles hold, by a part of `1e-6` at most, as a truncation's
//! last bit does. For the tail `2^12`, `2^49` and `2^32` take the place of `2^19`, `2^42` and `2^40`, the unit is `2^-29`, and
//! the part is `1.3e-4`.
//! Error: at most 4e-6, for `−32 ≤ x ≤ 1/2`; elsewhere the result is any element of the ring. For the tail at most 1.3e-4 of
//! the result and 4 units more, and for uniform shares less than a unit on average where `−18 ≤ x`: a small factor of role 2
//! is rounded to 0 in the other form, where it is below `2^-44`.
//! Side channels: no branch or index on a secret.
//!
//! In a window of `2^5`, high digits have one bit, which is enough for `−16 ≤ x ≤ 0`: `T = 1, e^−16`, since `l` is not above 0
//! where both digits are alike, and not below where they differ. There are two `c_j`, and all else is as below.
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
use ombra_ir::settings::rep3::exp_factors;
use ombra_ir::{Diagnostic, Result};

use super::cross::two_terms;
use super::{Cx, Purpose};
use crate::settings::rep3::share::Shared;

#[cfg(all(target_arch = "x86", not(target_feature = "sse2")))]
compile_error!("parties need doubles that are not computed in more precision: build with SSE2");

/// What the difference of the high digits stands for, as a multiple of 16: of two bits and of one.
const HIGH: [f64; 4] = [0.0, 1.0, -2.0, -1.0];
const SHORT_HIGH: [f64; 2] = [0.0, -1.0];
/// Bits of a low digit above the fraction.
const LOW: u8 = 4;
/// Fraction bits of both factors together.
const PRODUCT: u8 = 61;

/// How an exponential is made.
#[derive(Clone, Copy)]
struct Form {
    /// Choices of the high digit, a power of two.
    digits: usize,
    /// Fraction bits of the factor of roles 0 and 1.
    joint: u8,
    /// Ring and fraction bits of the result.
    result: (u8, u8),
}

impl Form {
    fn new(window: u8, tail: bool) -> Form {
        let digits = exp_factors(window);
        Form { digits, joint: if tail { 12 } else { 19 }, result: exp_form(Setting::ThreeParty, tail) }
    }

    /// `T` of the difference of two high digits.
    fn high(self) -> Vec<f64> {
        let of: &[f64] = if self.digits == 2 { &SHORT_HIGH } else { &HIGH };
        of.iter().map(|h| exp(16.0 * h)).collect()
    }

    /// High digits and low ones, of the low bits of `m`.
    fn split(self, m: u64, scale: u8) -> (u64, f64) {
        let low = scale + LOW;
        let digit = m >> low & (self.digits as u64 - 1);
        (digit, (m & ((1 << low) - 1)) as f64 / (1u64 << scale) as f64)
    }
}

/// `e^x` of `n` elements with `scale` fraction bits, in the ring and at the scale of [`exp_form`]; right on average for small
/// results too where `tail` is set.
pub async fn exp_digits(cx: &Cx, x: &Shared, n: usize, scale: u8, (window, tail): (u8, bool)) -> Result<Shared> {
    if scale > 64 - EXP_WINDOW {
        return Err(Diagnostic::internal("E0803", format!("an exponential of {scale} fraction bits")));
    }
    let form = Form::new(window, tail);
    let ((bits, fraction), digits) = (form.result, form.digits);
    let shift = PRODUCT - fraction;
    let term = two_terms(cx, x, n);
    let role = cx.role();
    let masks = |key: u8| cx.draw(key, Purpose::ExpFactor, 0, digits * n);
    let out = |key: u8| cx.draw(key, Purpose::ExpOut, 0, n);
    if role == 2 {
        let mut masked = masks(0)?;
        masked.iter_mut().zip(single(&term, scale, form)).for_each(|(m, c)| *m = m.wrapping_add(c));
        cx.send(1, &masked, 64);
        return Ok(Shared::new(out(2)?, out(0)?));
    }
    let (high, factor) = joint(&term, scale, form);
    let (entries, own) = if role == 0 { (masks(0)?, out(0)?) } else { (cx.take(2, digits * n, 64)?, out(2)?) };
    let sign = if role == 0 { u64::MAX } else { 1 };
    let share = |i: usize| {
        let entry = (0..digits).fold(0, |chosen, j| chosen | entries[j * n + i] & equal(high[i], j as u64));
        (factor[i].wrapping_mul(entry).wrapping_mul(sign) >> shift).wrapping_sub(own[i])
    };
    let mut sum: Vec<u64> = (0..n).map(share).collect();
    cx.send(1 - role, &sum, bits);
    cx.exchange().await;
    sum.iter_mut().zip(cx.take(1 - role, n, bits)?).for_each(|(s, other)| *s = s.wrapping_add(other));
    Ok(if role == 0 { Shared::new(own, sum) } else { Shared::new(sum, own) })
}

/// All ones where `a` is `b`, of high digits.
fn equal(a: u64, b: u64) -> u64 {
    (((a ^ b).wrapping_sub(1)) >> 63).wrapping_neg()
}

/// What roles 0 and 1 know: the high digits of `m`, and `e^(m_lo)`.
fn joint(m: &[u64], scale: u8, form: Form) -> (Vec<u64>, Vec<u64>) {
    m.iter()
        .map(|m| {
            let (digit, low) = form.split(*m, scale);
            (digit, fixed(exp(low), form.joint))
        })
        .unzip()
}

/// What role 2 knows, of the sum of its components: `T(j − r_hi) e^(−r_lo)` for every `j`, all of one `j` together.
fn single(sum: &[u64], scale: u8, form: Form) -> Vec<u64> {
    let (n, digits) = (sum.len(), form.digits as u64);
    let high = form.high();
    let mut out = vec![0; form.digits * n];
    for (i, sum) in sum.iter().enumerate() {
        let (digit, low) = form.split(sum.wrapping_neg(), scale);
        let power = exp(-low);
        for j in 0..digits {
            let difference = j.wrapping_sub(digit) & (digits - 1);
            let high = (0..digits).zip(&high).fold(0, |bits, (k, h)| bits | h.to_bits() & equal(difference, k));
            out[j as usize * n + i] = fixed(power * f64::from_bits(high), PRODUCT - form.joint);
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
    use ombra_ir::op::EXP_SCALE;

    #[test]
    fn doubles_are_close_to_the_exponential() {
        for i in -64_000..=64_000 {
            let x = f64::from(i) / 1000.0;
            let error = exp(x) / x.exp() - 1.0;
            assert!(error.abs() < 2e-14, "{x}: {error:e}");
        }
    }

    /// Every kind: its window and whether it is the tail's.
    const KINDS: [(u8, bool); 3] = [(EXP_WINDOW, false), (EXP_WINDOW, true), (SHORT, false)];
    const SHORT: u8 = EXP_WINDOW - 1;

    /// For every pair of digits and far ends of the low ones: the product of the factors, in exact integers.
    #[test]
    fn factors_multiply_to_the_exponential() {
        let scale = 16;
        for (bits, tail) in KINDS {
            let (window, form) = (1i64 << (scale + bits), Form::new(bits, tail));
            let (low, high) = if bits < EXP_WINDOW { (-16i64 << 16, 0) } else { (-32i64 << 16, 1 << 15) };
            let mut worst = 0f64;
            let mut check = |x: i64, m: i64| {
                let real = (x as f64 / 65536.0).exp();
                // Of the tail what is beyond its own size counts.
                let allowed = if tail { 1.3e-4 * real } else { 0.0 };
                worst = worst.max((product(x, m, scale, (bits, form)) - real).abs() - allowed);
            };
            for m in (0..window).step_by(4099).chain([0, window - 1, window / 4 - 1, window / 4, window / 2]) {
                for x in (low..=high).step_by(12_347).chain([low, low + 1, -1, 0, high - 1, high]) {
                    check(x, m);
                }
            }
            let most = if tail { 8.0e-9 } else { 2.7e-6 };
            assert!(worst < most, "{worst:e} in a window of {bits} bits");
        }
    }

    /// What the factors of `x` make where the joint term is `m`.
    fn product(x: i64, m: i64, scale: u8, (window, form): (u8, Form)) -> f64 {
        let r = (m - x).rem_euclid(1 << (scale + window));
        let (digits, a) = joint(&[m as u64], scale, form);
        let c = single(&[(r as u64).wrapping_neg()], scale, form)[digits[0] as usize];
        a[0].wrapping_mul(c) as f64 / f64::from(PRODUCT).exp2()
    }

    /// Over all joint terms, small results are right on average: sums of many of them lack nothing.
    #[test]
    fn small_results_have_no_bias() {
        let scale = 13u8;
        let bias = |x: i64, (window, tail): (u8, bool), unit: u8| {
            let form = Form::new(window, tail);
            let all = (0..1i64 << (scale + window)).step_by(61);
            let n = all.clone().count() as f64;
            let mean = all.map(|m| product(x, m, scale, (window, form))).sum::<f64>() / n;
            (mean - (x as f64 / f64::from(scale).exp2()).exp()) * f64::from(unit).exp2()
        };
        let [usual, tail, _] = KINDS;
        for x in 8..=18 {
            let units = bias(-(x << scale), tail, EXP_SCALE);
            assert!(units.abs() < 0.5, "{x}: {units} units");
        }
        assert!(bias(-(16 << scale), usual, EXP_SCALE) < -4.0, "the other form lacks some");
    }
}
