//! `exp` and `softmax`.
//!
//! `exp(x) ≈ (1 + z + z²/2 + z³/6)^{2^t}` with `z = x/2^t`, for `−14 ≤ x ≤ 0`, and 0 below; `t = 4`. The relative error is
//! `x⁴ / (24 · 2^{3t})`: 1e-5 at −1, 1.6e-4 at −2, 2.6e-3 at −4; the absolute error is at most 6e-5 everywhere. It takes six
//! secret products, one less than the usual `(1 + x/2^7)^{2^7}` (PUMA, arXiv 2307.12533, with t = 5), whose absolute
//! error is 2.1e-3. Softmax subtracts the row's maximum first; only entries that the public mask keeps are compared,
//! exponentiated and summed, so nothing depends on what a mask hides.
//!
//! Comparisons leave out low bits where that is harmless. The maximum may fall short by `2^−8` at every level of its
//! tree, which makes the greatest exponential a little more than 1 and cancels in the quotient; the cut at −14 may lie
//! `2^−4` higher. The maximum is taken in the smallest ring that holds the scores, the exponential in one of
//! 56 bits: values near 1 with 22 fraction bits.

use super::{Emit, FINE, fixed, reciprocal, ring_for};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// Ring bits inside the exponential.
const RING: u8 = 56;
/// Fraction bits inside the exponential.
const INNER: u8 = 22;
/// Fraction bits that decide the maximum.
const MAX_FRACTION: u8 = 8;
/// Fraction bits that decide the cut.
const CUT_FRACTION: u8 = 4;
/// Squarings.
const T: u8 = 4;
/// Fraction bits of 1/6.
const SIXTH: u8 = 8;
/// Below this the result is 0.
const LOWEST: f64 = -14.0;

/// `exp(x)` at scale [`FINE`] for `x ≤ 0`.
pub(super) fn exp(e: &mut Emit, x: Id) -> Result<Id> {
    exp_by(e, x, T)
}

/// As [`exp`] with `t` squarings: the relative error is `x⁴ / (24 · 2^{3t})`.
pub(super) fn exp_by(e: &mut Emit, x: Id, t: u8) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    let x = e.narrow(x, RING)?;
    let keep = e.at_least(x, LOWEST, scale.saturating_sub(CUT_FRACTION))?;
    // x_int · 2^(INNER − scale − t) read at scale INNER stands for x / 2^t.
    let by = (INNER - t)
        .checked_sub(scale)
        .ok_or_else(|| Diagnostic::internal("E0504", format!("exp needs a scale of at most {}", INNER - t)))?;
    let fine = e.op(Op::Upscale { by }, &[x])?;
    let z = e.guarded(Op::SetScale { scale: INNER }, &[fine], INNER)?;
    // y = 1 + z + z² (1/2 + z/6)
    let square = e.product(z, z, INNER, INNER)?;
    let sixth = e.op(Op::MulInt { k: fixed(1.0 / 6.0, SIXTH)? }, &[z])?;
    let sixth = e.op(Op::SetScale { scale: INNER + SIXTH }, &[sixth])?;
    let factor = e.add_real(sixth, 0.5)?;
    let cubic = e.op(Op::Mul, &[square, factor])?;
    let linear = e.guarded(Op::AddInt { k: 1 << INNER }, &[z], INNER)?;
    let linear = e.op(Op::Upscale { by: INNER + SIXTH }, &[linear])?;
    let sum = e.guarded(Op::Add, &[cubic, linear], 2 * INNER + SIXTH + 1)?;
    let mut y = e.truncate_to(sum, INNER, INNER + 1)?;
    for _ in 0..t {
        y = e.product(y, y, INNER, INNER + 1)?;
    }
    let kept = e.op(Op::Mul, &[y, keep])?;
    let wide = e.widen(kept, bits, (INNER + 1, BoundFrom::Guarded))?;
    e.op(Op::Upscale { by: FINE - INNER }, &[wide])
}

/// Softmax over the last axis of `x` among the entries that `mask` keeps; 0 elsewhere.
pub(super) fn softmax(e: &mut Emit, x: Id, mask: Id) -> Result<Id> {
    let (_, scale, bound) = e.ring(x)?;
    let shape = e.ty(x).shape.clone();
    let columns = shape.last().ok_or_else(|| Diagnostic::internal("E0505", "softmax of a scalar"))?;
    let max_columns = e.module.dims.upper(columns).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| {
        Diagnostic::input("E0506", "a softmax row has no greatest length").note("give --max for its sizes")
    })?;
    let log2 = u8::try_from(max_columns.max(2).next_power_of_two().trailing_zeros()).unwrap_or(u8::MAX);
    let packed = e.op(Op::Pack, &[x, mask])?;
    // The smallest ring for the maximum; its one result a row comes back.
    let (bits, _, _) = e.ring(x)?;
    let small = e.narrow(packed, ring_for(bound).min(bits))?;
    let drop = scale.saturating_sub(MAX_FRACTION);
    let width = bound + 2 + u8::from(drop > 0);
    let max = e.op(Op::RowMax { shape: shape.clone(), width, drop }, &[small, mask])?;
    let (max_bits, _, max_bound) = e.ring(max)?;
    let max = if max_bits < bits { e.widen(max, bits, (max_bound, BoundFrom::Proven))? } else { max };
    let max_each = e.op(Op::RowExpand { shape: shape.clone() }, &[max, mask])?;
    let below = e.op(Op::Sub, &[packed, max_each])?;
    let exp = exp(e, below)?;
    let sum = e.op(Op::RowSum { shape: shape.clone() }, &[exp, mask])?;
    let inverse = reciprocal::reciprocal(e, sum, log2 + 1)?;
    let inverse_each = e.op(Op::RowExpand { shape: shape.clone() }, &[inverse, mask])?;
    let product = e.op(Op::Mul, &[exp, inverse_each])?;
    let y = e.truncate_to(product, scale, scale + 1)?;
    e.op(Op::Unpack { shape }, &[y, mask])
}
