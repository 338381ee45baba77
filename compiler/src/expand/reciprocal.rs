//! `1/x` of a row's divisor by steps, and how others are brought into one bucket: the highest threshold passed.
//!
//! For thresholds `t_j` in parallel, `c_j = 1{x ≥ t_j}`; the factor that brings `x` into one bucket is a public linear
//! combination of the `c_j`. Products of a value and its factor are small by construction, which intervals do not see:
//! their bounds are guarded.
//!
//! Buckets are blurred: comparisons leave out low bits, and thresholds stand a little lower, so that a value just below a
//! bucket may be taken for one of it, but none of a bucket for one below. What is normalised may then begin a little
//! below 1, where the first approximation still holds.

use super::steps::{self, Step};
use super::{Emit, fixed};
use ombra_ir::dim::Dim;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Powers of two of a divisor that a reciprocal tells apart at most: the series times its factor fits the ring.
pub(crate) const WIDEST: u8 = 32;
/// Refuses softmax rows of more than `2^most` entries.
pub(super) fn check_row(log2: u8, most: u8) -> Result<()> {
    if log2 <= most {
        return Ok(());
    }
    Err(Diagnostic::input("E0507", format!("a softmax row of up to 2^{log2} entries is too long"))
        .note(format!("expected at most 2^{most} entries"))
        .note("give --max for the sizes of the model"))
}

/// `1/x` with `out` fraction bits for `least ≤ x < 2^max_log2`, of what has size 1 on the last axis; error 3e-5 relative
/// where it has so many significant bits, of which the longest row of a softmax may leave ten. Below the range the result
/// is any number below `2^(out + 7)`.
///
/// # Errors
/// `E0507` where the range is too wide.
pub(super) fn reciprocal_at(e: &mut Emit, x: Id, (least, max_log2): (f64, u8), out: u8) -> Result<Id> {
    check_row(max_log2, WIDEST)?;
    let (table, shifts) = steps::reciprocals(e, least, libm::exp2(max_log2.into()));
    let steps: Vec<Step> = shifts.iter().map(|&q| Step { value: x, q }).collect();
    let worth: Vec<i32> = shifts.iter().map(|q| i32::from(out) - q).collect();
    let entries = steps::entries(e, &table, &steps, 1, &worth)?;
    let thresholds: Vec<f64> = shifts.iter().take(shifts.len() - 1).map(|&q| table.end(q)).collect();
    let passed = match thresholds.first() {
        None => None,
        Some(first) => {
            let (_, scale, _) = e.ring(x)?;
            let drop = steps::dropped(libm::ldexp(*first, scale.into()), table.blur);
            let below = steps::below(e, x, &thresholds, drop)?;
            Some(e.op(Op::Not, &[below])?)
        }
    };
    let y = steps::chosen(e, entries, passed, steps.len())?;
    let bound = libm::floor(f64::from(out) - libm::log2(least)) as u8 + 1;
    e.guarded(Op::SetScale { scale: out }, &[y], bound)
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
