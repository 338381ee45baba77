//! RMSNorm and LayerNorm: one row statistic, its reciprocal square root, one product an element.
//!
//! The statistic is the *sum* of squares: `1/√(mean + eps) = √n / √(Σ x² + n·eps)`, so no division by `n` rounds it.
//! It is kept at a scale at which the smallest variance of the calibrated range still has 12 significant bits.

use super::inverse::{Inverse, Range4, inverse, most_scale};
use super::{Emit, fixed};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// Fraction bits of the row's factor.
const FACTOR_SCALE: u8 = 24;
/// Fraction bits of `1/n`.
const INVERSE_SCALE: u8 = 22;

/// `x / √(mean(x²) + eps)` over the last axis.
pub(super) fn rms_norm(e: &mut Emit, x: Id, eps: f32, range: Range4, result: (u8, BoundFrom)) -> Result<Id> {
    let n = row_length(e, x)?;
    normalise(e, x, n, eps, range, result)
}

/// `(x − mean(x)) / √(var(x) + eps)` over the last axis.
pub(super) fn layer_norm(e: &mut Emit, x: Id, eps: f32, range: Range4, result: (u8, BoundFrom)) -> Result<Id> {
    let n = row_length(e, x)?;
    let (_, scale, bound) = e.ring(x)?;
    let sum = e.op(Op::ReduceSum { axis: last_axis(e, x) }, &[x])?;
    let scaled = e.op(Op::MulInt { k: fixed(1.0 / n as f64, INVERSE_SCALE)? }, &[sum])?;
    let read = e.op(Op::SetScale { scale: scale + INVERSE_SCALE }, &[scaled])?;
    let mean = e.truncate_to(read, scale, bound)?;
    let centred = e.op(Op::Sub, &[x, mean])?;
    normalise(e, centred, n, eps, range, result)
}

fn normalise(e: &mut Emit, x: Id, n: u64, eps: f32, mean: Range4, result: (u8, BoundFrom)) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    // The range of the sum: n times that of the mean, rounded outwards to powers of 4.
    let log4 = libm::log2(n as f64) / 2.0;
    let small = |v: f64| v.clamp(-64.0, 63.0) as i8;
    let range = Range4 {
        min: small(libm::floor(f64::from(mean.min) + log4)),
        max: small(libm::ceil(f64::from(mean.max) + log4)),
    };
    // The calibrated range bounds the sum, and so every square in it.
    let bound = u8::try_from(i32::from(2 * scale) + 2 * i32::from(range.max)).unwrap_or(u8::MAX);
    if bound > bits - 2 {
        return Err(too_wide(mean));
    }
    let calibrated = (bound, BoundFrom::Calibrated);
    let squares = e.declared(Op::Mul, &[x, x], calibrated)?;
    let sum = e.declared(Op::ReduceSum { axis: last_axis(e, x) }, &[squares], calibrated)?;
    let with_eps = e.declared(Op::AddInt { k: fixed(f64::from(eps) * n as f64, 2 * scale)? }, &[sum], calibrated)?;
    // Room for the factor beside the value in one product.
    let room = most_scale(bits, 2 * i32::from(range.max));
    let wanted = 16 - 2 * i32::from(range.min);
    let stat_scale = u8::try_from(wanted.clamp(12, i32::from(2 * scale)).min(room)).unwrap_or(0);
    if i32::from(stat_scale) < wanted.min(i32::from(2 * scale)) - 4 {
        return Err(too_wide(mean));
    }
    let stat_bound = u8::try_from(i32::from(stat_scale) + 2 * i32::from(range.max)).unwrap_or(bits - 2);
    // The comparisons need no division: they go on beside it.
    let shared = e.declared(Op::Reshare, &[with_eps], calibrated)?;
    let stat =
        if stat_scale == 2 * scale { shared } else { e.truncate_to(shared, stat_scale, stat_bound.min(bits - 2))? };
    let root = Inverse { gain: libm::sqrt(n as f64), ..range.powers_of_2() };
    let factor = inverse(e, stat, shared, root, FACTOR_SCALE)?;
    let product = e.op(Op::Mul, &[x, factor])?;
    let (result_bound, from) = result;
    let id = e.truncate_to(product, scale, result_bound)?;
    let ty = &mut e.module.ops[id.index()].ty;
    if ty.bound_from == BoundFrom::Guarded && from == BoundFrom::Calibrated {
        ty.bound_from = from;
    }
    Ok(id)
}

fn too_wide(mean: Range4) -> Diagnostic {
    let message = format!("a norm's variance ranges from 4^{} to 4^{}: too wide for the ring", mean.min, mean.max);
    Diagnostic::input("E0508", message).note("calibrate on inputs that are typical for the model")
}

fn last_axis(e: &Emit, x: Id) -> u8 {
    (e.ty(x).shape.len() - 1) as u8
}

fn row_length(e: &Emit, x: Id) -> Result<u64> {
    let n = e.ty(x).shape.last().and_then(|d| d.as_constant()).and_then(|n| u64::try_from(n).ok());
    n.filter(|&n| n > 0).ok_or_else(|| Diagnostic::unsupported("E0509", "a norm over an axis of unknown length"))
}
