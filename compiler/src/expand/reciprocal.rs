//! `1/x` of a value that may be below its range: normalise by the highest threshold passed, then a series around a first
//! approximation.
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

use super::curve::{self, INVERSE_SCALE};
use super::{Emit, FINE, fixed};
use ombra_ir::curve::Curve;
use ombra_ir::dim::Dim;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// Blur of a reciprocal's buckets: this many powers of two below the least threshold.
const BLUR: i32 = 6;

/// Powers of two of a divisor that a reciprocal tells apart at most: the series times its factor fits the ring.
pub(crate) const WIDEST: u8 = 32;
/// Powers of two of a range in which a result of [`BESIDE`] fraction bits has enough significant ones.
const LONG: u8 = 16;
/// Fraction bits of a result that has room beside a factor near 2.
const BESIDE: u8 = 34;

/// Refuses softmax rows of more than `2^most` entries.
pub(super) fn check_row(log2: u8, most: u8) -> Result<()> {
    if log2 <= most {
        return Ok(());
    }
    Err(Diagnostic::input("E0507", format!("a softmax row of up to 2^{log2} entries is too long"))
        .note(format!("expected at most 2^{most} entries"))
        .note("give --max for the sizes of the model"))
}

/// `1/x` for `1 ≤ x < 2^max_log2`, with at most `finest` fraction bits: as many as come without a division, if they are
/// not more; error 2e-5 relative. With a dealer, one lookup takes the place of the series.
///
/// Below 1 the factor is 1 and the result too small, by 3 percent at one half; at 0 it stays below 8.
pub(super) fn reciprocal_at(e: &mut Emit, x: Id, max_log2: u8, finest: u8) -> Result<Id> {
    check_row(max_log2, WIDEST)?;
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
    let out = finest.min(FINE + factor_scale);
    if e.has_dealer() {
        // Half of it is from 1/2 to 1.
        let half = e.op(Op::SetScale { scale: product_scale + 1 }, &[product])?;
        let y = curve::inverse(e, half, Curve::Reciprocal)?;
        let y = e.widen(y, 64, (INVERSE_SCALE + 2, BoundFrom::Guarded))?;
        // Of twice the value, so half of the result.
        let y = e.op(Op::SetScale { scale: INVERSE_SCALE + 1 }, &[y])?;
        return e.product(y, factor, out, out + 1);
    }
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
    let square = e.product(rest, rest, FINE, FINE + 1)?;
    let last = e.guarded(Op::AddInt { k: 1 << FINE }, &[square], FINE + 1)?;
    if max_log2 > LONG {
        let better = e.product(start, twice, FINE, FINE + 1)?;
        let y = e.product(better, last, FINE, FINE + 1)?;
        return e.product(y, factor, out, out + 1);
    }
    // The factor goes in first, beside r: one product less waits for another.
    let out = out.min(BESIDE);
    let first = e.product(start, factor, out.min(FINE + factor_scale), out + 1)?;
    let second = e.product(first, twice, out, out + 1)?;
    e.product(second, last, out, out + 1)
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
    let (bits, _, _) = e.ring(all)?;
    let below = e.sign(all, drop)?;
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
