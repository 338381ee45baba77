//! General quotients, roots, exponentials and logarithms: the functions of operands whose range is calibrated.
//!
//! `2^e ≤ x < 2^{e+1}` is found by comparisons with powers of two in parallel; `2^−e` is a public linear combination of
//! their bits, and so is `e · ln 2`. With `v = x · 2^−e` in `[1, 2)`, `y = 24/17 − 15/32 v` and `r = 1 − v y`,
//! `1/x = 2^−e y (1 + r)(1 + r²)` up to `r⁴`, 2e-5 relative: the factor goes in first, beside `r`, and three
//! products follow one another. `ln x = e ln 2 + ln v` with a Chebyshev series of degree 6, 1e-5.
//!
//! Comparisons leave out low bits: `v` may begin 2^−6 below 1.

use super::chebyshev::{chebyshev_fit_at, series};
use super::inverse::{Range4, rsqrt};
use super::reciprocal::{Compared, combine, compare_all, raise};
use super::{Emit, FINE, fixed, softmax};
use ombra_ir::module::Id;
use ombra_ir::op::{Op, exp_form};
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// A range `2^min ≤ x < 2^max`.
#[derive(Clone, Copy)]
pub(super) struct Range2 {
    pub(super) min: i8,
    pub(super) max: i8,
}

/// Fraction bits of `r`, two less than those of `v` to leave room beside a large result.
const REST: u8 = FINE - 2;
/// Blur of the comparisons: this many powers of two below the least threshold.
const BLUR: i32 = 6;
/// Bits of the constant `e^max`.
const CONSTANT: i32 = 14;
/// Fraction bits that a result of so large a constant may lack: its error is more than a unit of what it has.
const MOST_RAISED: u8 = 8;
/// Degree of the logarithm's series.
const LOG_DEGREE: usize = 6;
/// Fraction bits of the logarithm's series.
const LOG_FINE: u8 = FINE - 1;

/// A value brought into `[1, 2)`.
struct Normal {
    /// `x · 2^−e` at scale [`FINE`].
    v: Id,
    /// `2^−e` at its own scale.
    factor: Id,
    factor_scale: u8,
    compared: Compared,
}

/// Finds `e` for `x` in `range`.
fn normal(e: &mut Emit, x: Id, range: Range2) -> Result<Normal> {
    let (bits, scale, _) = e.ring(x)?;
    let (min, max) = (i32::from(range.min), i32::from(range.max));
    // 2^−e is a whole number at this scale.
    let factor_scale = u8::try_from((max - 1).max(0)).unwrap_or(u8::MAX);
    let product_scale = scale.saturating_add(factor_scale);
    let too_fine = min + 1 < -i32::from(scale) || i32::from(factor_scale) - min > 40;
    if min >= max || too_fine || product_scale.saturating_add(3) > bits {
        return Err(too_wide(range));
    }
    let power = |j: i32| -> Result<i64> { fixed(libm::ldexp(1.0, -j), factor_scale) };
    let js: Vec<i32> = (min + 1..max).collect();
    let thresholds: Vec<f64> = js.iter().map(|&j| libm::ldexp(1.0, j)).collect();
    let steps: Vec<i64> = js.iter().map(|&j| Ok(power(j)? - power(j - 1)?)).collect::<Result<_>>()?;
    let compared = compare_all(e, x, &thresholds, i32::from(scale) + min + 1 - BLUR)?;
    let bound = u8::try_from(i32::from(factor_scale) - min + 1).unwrap_or(u8::MAX);
    let factor = combine(e, &compared, power(min)?, &steps, factor_scale, bound)?;
    let product = e.guarded(Op::Mul, &[x, factor], product_scale + 1)?;
    let v = e.truncate_to(product, FINE.min(product_scale), FINE.min(product_scale) + 1)?;
    let v = raise(e, v, FINE)?;
    Ok(Normal { v, factor, factor_scale, compared })
}

fn too_wide(range: Range2) -> Diagnostic {
    Diagnostic::input("E0507", format!("the range 2^{} to 2^{} of an operand is too wide", range.min, range.max))
        .note("calibrate on inputs that are typical for the model")
}

/// `1/x` at scale `out`; error 2e-5 relative, and `2^−out`.
pub(super) fn reciprocal(e: &mut Emit, x: Id, range: Range2, out: u8) -> Result<Id> {
    let (bits, _, _) = e.ring(x)?;
    let Normal { v, factor, factor_scale, .. } = normal(e, x, range)?;
    // As fine as the ring allows beside a factor of 1 + r.
    let min = i32::from(range.min);
    let most = (i32::from(bits) - 4 - i32::from(REST) + min).min(i32::from(FINE + 5 + factor_scale));
    let work = u8::try_from(most.min(i32::from(out) + 4)).ok().filter(|w| *w >= out).ok_or_else(|| too_wide(range))?;
    let bound = |scale: u8| u8::try_from((i32::from(scale) - min + 1).max(1)).unwrap_or(u8::MAX);
    let scaled = e.op(Op::MulInt { k: -15 }, &[v])?;
    let read = e.op(Op::SetScale { scale: FINE + 5 }, &[scaled])?;
    let y = e.guarded(Op::AddInt { k: fixed(24.0 / 17.0, FINE + 5)? }, &[read], FINE + 6)?;
    // r = 1 − v y, beside the result's first approximation.
    let vy = e.guarded(Op::Mul, &[v, y], 2 * FINE + 6)?;
    let minus = e.op(Op::Neg, &[vy])?;
    let rest = e.guarded(Op::AddInt { k: 1 << (2 * FINE + 5) }, &[minus], 2 * FINE + 6)?;
    let rest = e.truncate_to(rest, REST, REST + 1)?;
    let first = e.guarded(Op::Mul, &[y, factor], bound(FINE + 5 + factor_scale))?;
    let first = e.truncate_to(first, work, bound(work))?;
    let linear = e.guarded(Op::AddInt { k: 1 << REST }, &[rest], REST + 1)?;
    let second = e.product(first, linear, work, bound(work))?;
    let square = e.product(rest, rest, REST, REST + 1)?;
    let last = e.guarded(Op::AddInt { k: 1 << REST }, &[square], REST + 1)?;
    e.product(second, last, out, bound(out))
}

/// `a / b` at scale `out`; error 2e-5 relative to the maximum quotient, and `2^−out`.
pub(super) fn div(e: &mut Emit, a: Id, b: Id, range: Range2, out: u8, result: (u8, BoundFrom)) -> Result<Id> {
    let (bits, scale, bound) = e.ring(a)?;
    let (min, max) = (i32::from(range.min), i32::from(range.max));
    // 18 significant bits of the least inverse, where there is room beside the dividend.
    let room = (i32::from(bits) - 3 + min - i32::from(bound)).min(i32::from(bits) - 8 - i32::from(REST) + min);
    let wanted = (max + 18).min(room);
    let inverse = u8::try_from(wanted).ok().filter(|s| *s + scale >= out).ok_or_else(|| too_wide(range))?;
    let inverse = reciprocal(e, b, range, inverse)?;
    let product = e.op(Op::Mul, &[a, inverse])?;
    e.truncate_to(product, out, result.0)
}

/// `√x = x · 1/√x` at scale `out`. At 0 the result is 0.
pub(super) fn sqrt(e: &mut Emit, x: Id, range: Range4, out: u8) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    let (min, max) = (i32::from(range.min), i32::from(range.max));
    let room = (i32::from(bits) - 4 - i32::from(scale) - max).min(i32::from(bits) - 6 - i32::from(FINE) + min);
    let inverse = u8::try_from(room.min(i32::from(FINE))).unwrap_or(0);
    let too_wide = || too_wide(Range2 { min: range.min.saturating_mul(2), max: range.max.saturating_mul(2) });
    if inverse + scale < out || i32::from(inverse) < max + 8 {
        return Err(too_wide());
    }
    let root = rsqrt(e, x, range, inverse)?;
    let at = |scale: u8| u8::try_from((i32::from(scale) + max + 1).max(1)).unwrap_or(u8::MAX);
    let product = e.guarded(Op::Mul, &[x, root], at(scale + inverse))?;
    e.truncate_to(product, out, at(out))
}

/// `e^x` for `x ≤ max` at the scale of `x`.
pub(super) fn exp(e: &mut Emit, x: Id, max: i8) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let top = libm::exp(f64::from(max));
    let log = libm::ceil(libm::log2(top)) as i32;
    let shift = CONSTANT - log;
    let (_, fraction) = exp_form(e.module.setting, false);
    let read =
        u8::try_from(i32::from(fraction) + shift).ok().filter(|s| *s <= 60 && scale <= s.saturating_add(MOST_RAISED));
    let read = read.ok_or_else(|| {
        Diagnostic::input("E0517", format!("an exponential of values up to {max} does not fit"))
            .note("expected values up to 15")
    })?;
    let below = e.add_real(x, -f64::from(max))?;
    let y = softmax::exp(e, below, fraction)?;
    let factor = Op::MulInt { k: libm::round(libm::ldexp(top, shift)) as i64 };
    let scaled = e.guarded(factor, &[y], fraction + CONSTANT as u8 + 1)?;
    let scaled = e.op(Op::SetScale { scale: read }, &[scaled])?;
    let scaled = raise(e, scaled, scale.max(read))?;
    e.truncate_to(scaled, scale, u8::try_from((i32::from(scale) + log + 1).max(1)).unwrap_or(u8::MAX))
}

/// `ln x` at scale `out`.
pub(super) fn log(e: &mut Emit, x: Id, range: Range2, out: u8) -> Result<Id> {
    let Normal { v, compared, .. } = normal(e, x, range)?;
    let (min, max) = (i32::from(range.min), i32::from(range.max));
    // s = 2v − 3 in [−1, 1)
    let twice = e.op(Op::SetScale { scale: LOG_FINE }, &[v])?;
    let s = e.guarded(Op::AddInt { k: -(3 << LOG_FINE) }, &[twice], LOG_FINE + 1)?;
    let fit = chebyshev_fit_at(|s| libm::log((s + 3.0) / 2.0), LOG_DEGREE);
    let mut parts = series(e, s, LOG_FINE, &fit)?;
    let ln2 = fixed(std::f64::consts::LN_2, LOG_FINE)?;
    let steps = vec![ln2; usize::try_from((max - min - 1).max(0)).unwrap_or(0)];
    let whole = combine(e, &compared, ln2 * i64::from(min), &steps, LOG_FINE, LOG_FINE + 5)?;
    parts.push(e.op(Op::Upscale { by: LOG_FINE }, &[whole])?);
    let mut sum = parts[0];
    for &part in &parts[1..] {
        sum = e.guarded(Op::Add, &[sum, part], 2 * LOG_FINE + 5)?;
    }
    e.truncate_to(sum, out, out + 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expand::chebyshev::eval_chebyshev;

    /// The formulas of this file in double precision.
    #[test]
    fn formulas_are_as_close_as_stated() {
        let mut worst = (0.0f64, 0.0f64);
        let fit = chebyshev_fit_at(|s| libm::log((s + 3.0) / 2.0), LOG_DEGREE);
        for i in 0..=1000 {
            let least = 1.0 - libm::ldexp(1.0, -BLUR);
            let v = least + (2.0 - least) * f64::from(i) / 1000.0;
            let y = 24.0 / 17.0 - 15.0 / 32.0 * v;
            let r = 1.0 - v * y;
            worst.0 = worst.0.max((v * y * (1.0 + r) * (1.0 + r * r) - 1.0).abs());
            worst.1 = worst.1.max((eval_chebyshev(&fit, 2.0 * v - 3.0) - libm::log(v)).abs());
        }
        assert!(worst.0 < 2e-5, "1/x: {:.2e}", worst.0);
        assert!(worst.1 < 1e-5, "ln x: {:.2e}", worst.1);
    }
}
