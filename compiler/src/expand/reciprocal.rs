//! `1/x` and `1/√x`: normalise by the highest threshold passed, then a series around a first approximation.
//!
//! Two steps of Newton's would be as exact and take as many products, but one after another.
//!
//! For thresholds `t_j` in parallel, `c_j = 1{x ≥ t_j}`; the factor that brings `x` into one bucket is a public linear
//! combination of the `c_j`. Products of a value and its factor are small by construction, which intervals do not see:
//! their bounds are guarded.
//!
//! Buckets are blurred: comparisons leave out low bits, and thresholds stand a little lower, so that a value just below a
//! bucket may be taken for one of it, but none of a bucket for one below. What is normalised may then begin a little
//! below 1, where the first approximation still holds.

use super::{Emit, FINE, fixed};
use ombra_ir::dim::Dim;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Blur of a reciprocal's buckets: this many powers of two below the least threshold.
const BLUR: i32 = 6;
/// Blur of a reciprocal square root's buckets.
const ROOT_BLUR: i32 = 7;

/// A range `4^min ≤ x < 4^max`.
#[derive(Clone, Copy)]
pub(super) struct Range4 {
    pub(super) min: i8,
    pub(super) max: i8,
}

/// `1/x` for `1 ≤ x < 2^max_log2`, with at most `finest` fraction bits: as many as come without a division, if they are
/// not more; error 2e-5 relative.
///
/// Below 1 the factor is 1 and the result too small, by 3 percent at one half; at 0 it stays below 8.
pub(super) fn reciprocal_at(e: &mut Emit, x: Id, max_log2: u8, finest: u8) -> Result<Id> {
    if max_log2 > FINE {
        return Err(Diagnostic::input("E0507", format!("a softmax row of up to 2^{max_log2} entries is too long"))
            .note(format!("expected at most 2^{FINE} entries"))
            .note("give --max for the sizes of the model"));
    }
    let (_, scale, _) = e.ring(x)?;
    let thresholds: Vec<f64> = (1..max_log2).map(|j| libm::ldexp(1.0, i32::from(j))).collect();
    // 2^−e = 1 − Σ c_j 2^−j, a multiple of the last threshold's inverse.
    let factor_scale = max_log2.saturating_sub(1);
    let steps: Vec<i64> = (1..max_log2).map(|j| -(1i64 << (factor_scale - j))).collect();
    let compared = compare_all(e, x, &thresholds, i32::from(scale) + 1 - BLUR)?;
    let factor = combine(e, &compared, 1 << factor_scale, &steps, factor_scale, factor_scale + 1)?;
    let product = e.guarded(Op::Mul, &[x, factor], scale + factor_scale + 1)?;
    let product = if scale + factor_scale < FINE { raise(e, product, FINE)? } else { product };
    let (_, product_scale, _) = e.ring(product)?;
    let v = e.truncate_to(product, FINE, FINE + 1)?;
    // y = 24/17 − (15/32) v, within 6 % of 1/v on [1, 2).
    let scaled = e.op(Op::MulInt { k: -15 }, &[product])?;
    let shifted = e.op(Op::SetScale { scale: product_scale + 5 }, &[scaled])?;
    let start = e.guarded(Op::AddInt { k: fixed(24.0 / 17.0, product_scale + 5)? }, &[shifted], product_scale + 6)?;
    let start = e.truncate_to(start, FINE, FINE + 1)?;
    // With r = 1 − v y: 1/v ≈ y (1 + r) (1 + r²), whose error is r⁴.
    let vy = e.product(v, start, FINE, FINE + 1)?;
    let minus = e.op(Op::Neg, &[vy])?;
    let twice = e.guarded(Op::AddInt { k: 2 << FINE }, &[minus], FINE + 1)?;
    let rest = e.guarded(Op::AddInt { k: 1 << FINE }, &[minus], FINE + 1)?;
    let better = e.product(start, twice, FINE, FINE + 1)?;
    let square = e.product(rest, rest, FINE, FINE + 1)?;
    let last = e.guarded(Op::AddInt { k: 1 << FINE }, &[square], FINE + 1)?;
    let y = e.product(better, last, FINE, FINE + 1)?;
    let out = finest.min(FINE + factor_scale);
    e.product(y, factor, out, out + 1)
}

/// `gain / √x` at scale `out_scale` for `x` in `range`; error 1.2e-6 relative plus rounding.
///
/// Below the range the steps start too far away: the result is then of the right sign and size only down to a quarter of
/// `4^min`, and arbitrary further down. The range is calibrated with two powers of 4 to spare on either side.
pub(super) fn rsqrt(e: &mut Emit, x: Id, range: Range4, gain: f64, out_scale: u8) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    let factor_scale = u8::try_from((2 * (i32::from(range.max) - 1)).max(0)).unwrap_or(u8::MAX);
    let root_scale = 24u8;
    if range.min >= range.max || scale.saturating_add(factor_scale).saturating_add(3) > bits {
        return Err(Diagnostic::input(
            "E0507",
            format!("the range 4^{} to 4^{} of a variance is too wide for the ring", range.min, range.max),
        )
        .note("calibrate on inputs that are typical for the model"));
    }
    let js: Vec<i32> = (i32::from(range.min) + 1..i32::from(range.max)).collect();
    let thresholds: Vec<f64> = js.iter().map(|&j| libm::ldexp(1.0, 2 * j)).collect();
    let power = |j: i32, root: bool| -> Result<i64> {
        if root {
            fixed(gain * libm::ldexp(1.0, -j), root_scale)
        } else {
            fixed(libm::ldexp(1.0, -2 * j), factor_scale)
        }
    };
    let steps =
        |root: bool| -> Result<Vec<i64>> { js.iter().map(|&j| Ok(power(j, root)? - power(j - 1, root)?)).collect() };
    let min = i32::from(range.min);
    let bits_of = |k: i64| (64 - k.unsigned_abs().leading_zeros()) as u8;
    let compared = compare_all(e, x, &thresholds, i32::from(scale) + 2 * (min + 1) - ROOT_BLUR)?;
    let factor = combine(e, &compared, power(min, false)?, &steps(false)?, factor_scale, bits_of(power(min, false)?))?;
    let root = combine(e, &compared, power(min, true)?, &steps(true)?, root_scale, bits_of(power(min, true)?))?;
    // v = x · 4^−e in [1, 4)
    let product_scale = scale + factor_scale;
    let product = e.guarded(Op::Mul, &[x, factor], product_scale + 2)?;
    let v = e.truncate_to(product, FINE.min(product_scale), FINE.min(product_scale) + 2)?;
    let v = raise(e, v, FINE)?;
    // y = 1.33539 − 0.41066 v + 0.0512 v²
    let square = e.op(Op::Mul, &[v, v])?;
    let quadratic = e.op(Op::MulInt { k: 13 }, &[square])?;
    let fine = e.op(Op::Upscale { by: FINE }, &[v])?;
    let linear = e.guarded(Op::MulInt { k: -105 }, &[fine], 2 * FINE + 9)?;
    let sum = e.guarded(Op::Add, &[quadratic, linear], 2 * FINE + 9)?;
    let read = e.op(Op::SetScale { scale: 2 * FINE + 8 }, &[sum])?;
    let start = e.guarded(Op::AddInt { k: fixed(1.33539, 2 * FINE + 8)? }, &[read], 2 * FINE + 9)?;
    let start = e.truncate_to(start, FINE, FINE + 1)?;
    // With r = 1 − v y²: 1/√v = y (1 + r/2 + 3r²/8 + 5r³/16 + …), cut there, as y (1 + r/2) + r² · y (3/8 + 5r/16).
    let yy = e.product(start, start, FINE, FINE + 1)?;
    let vyy = e.product(v, yy, FINE, FINE + 2)?;
    let minus = e.op(Op::Neg, &[vyy])?;
    let rest = e.guarded(Op::AddInt { k: 1 << FINE }, &[minus], FINE + 1)?;
    // 2 + r, read one bit finer.
    let linear = e.guarded(Op::AddInt { k: 2 << FINE }, &[rest], FINE + 2)?;
    let linear = e.op(Op::SetScale { scale: FINE + 1 }, &[linear])?;
    // 6 + 5r, read four bits finer.
    let five = e.guarded(Op::MulInt { k: 5 }, &[rest], FINE + 3)?;
    let cubic = e.guarded(Op::AddInt { k: 6 << FINE }, &[five], FINE + 4)?;
    let cubic = e.op(Op::SetScale { scale: FINE + 4 }, &[cubic])?;
    let first = e.op(Op::Mul, &[start, linear])?;
    let first = e.truncate_to(first, FINE, FINE + 1)?;
    let second = e.op(Op::Mul, &[start, cubic])?;
    let second = e.truncate_to(second, FINE, FINE)?;
    let square = e.product(rest, rest, FINE, FINE + 1)?;
    let last = e.op(Op::Mul, &[square, second])?;
    let first = e.op(Op::Upscale { by: FINE }, &[first])?;
    let sum = e.guarded(Op::Add, &[last, first], 2 * FINE + 1)?;
    let y = e.truncate_to(sum, FINE, FINE + 1)?;
    let largest = bits_of(power(min, true)?) + out_scale - root_scale.min(out_scale);
    e.product(y, root, out_scale, largest.saturating_sub(root_scale.saturating_sub(out_scale)) + 1)
}

/// The value at a finer scale, if it is not there yet.
pub(super) fn raise(e: &mut Emit, x: Id, scale: u8) -> Result<Id> {
    let (_, from, _) = e.ring(x)?;
    if from == scale { Ok(x) } else { e.op(Op::Upscale { by: scale - from }, &[x]) }
}

/// The bits `1{x ≥ t_j}` as ring elements of scale 0, side by side along a new last axis.
pub(super) struct Compared {
    bits: Option<Id>,
    shape: Vec<Dim>,
    like: Id,
}

/// Compares with every threshold, blurred below `2^blur` units under it.
pub(super) fn compare_all(e: &mut Emit, x: Id, thresholds: &[f64], blur: i32) -> Result<Compared> {
    let drop = u8::try_from(blur).unwrap_or(0);
    let (_, scale, _) = e.ring(x)?;
    let shape = e.ty(x).shape.clone();
    let mut column = shape.clone();
    column.push(Dim::constant(1));
    let flat = e.op(Op::Reshape { shape: column }, &[x])?;
    let mut columns = Vec::with_capacity(thresholds.len());
    for &t in thresholds {
        let lower = if drop > 0 { 1i64 << drop } else { 0 };
        columns.push(e.op(Op::AddInt { k: lower - fixed(t, scale)? }, &[flat])?);
    }
    if columns.is_empty() {
        return Ok(Compared { bits: None, shape, like: x });
    }
    let all = e.op(Op::Concat { axis: shape.len() as u8 }, &columns)?;
    let (bits, _, bound) = e.ring(all)?;
    let below = e.op(Op::Msb { width: bound + 1 + u8::from(drop > 0), drop }, &[all])?;
    let not = e.op(Op::Not, &[below])?;
    let ring = e.op(Op::BitToRing { bits }, &[not])?;
    Ok(Compared { bits: Some(ring), shape, like: x })
}

/// `base + Σ steps_j c_j` in ring units, read at `scale`, within `2^bound` since the `c_j` are monotone.
pub(super) fn combine(e: &mut Emit, c: &Compared, base: i64, steps: &[i64], scale: u8, bound: u8) -> Result<Id> {
    let mut sum: Option<Id> = None;
    if let Some(bits) = c.bits {
        for (j, &k) in steps.iter().enumerate() {
            let (axis, start) = (c.shape.len() as u8, Dim::constant(j as i64));
            let column = e.op(Op::Slice { axis, start, len: Dim::constant(1) }, &[bits])?;
            let term = e.op(Op::MulInt { k }, &[column])?;
            sum = Some(match sum {
                None => term,
                Some(s) => e.guarded(Op::Add, &[s, term], bound + 1)?,
            });
        }
    }
    let sum = match sum {
        Some(s) => e.op(Op::Reshape { shape: c.shape.clone() }, &[s])?,
        // No threshold: the factor is constant, made from the value's own shares.
        None => {
            let zero = e.op(Op::MulInt { k: 0 }, &[c.like])?;
            e.op(Op::SetScale { scale: 0 }, &[zero])?
        }
    };
    let read = e.op(Op::SetScale { scale }, &[sum])?;
    e.guarded(Op::AddInt { k: base }, &[read], bound)
}
