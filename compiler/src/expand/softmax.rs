//! `exp` and `softmax`.
//!
//! `exp(x) ≈ (1 + x/2^t)^{2^t}` for `−14 ≤ x ≤ 0` and 0 below, `t = 7`: absolute error at most 2.1e-3 (PUMA, arXiv
//! 2307.12533, uses t = 5; error by our own evaluation). Softmax subtracts the row's maximum first; only entries that
//! the public mask keeps are compared, exponentiated and summed, so nothing depends on what a mask hides.

use super::{Emit, FINE, reciprocal};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Squarings.
const T: u8 = 7;
/// Below this the result is 0.
const LOWEST: f64 = -14.0;

/// `exp(x)` at scale [`FINE`] for `x ≤ 0`.
pub(super) fn exp(e: &mut Emit, x: Id) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let keep = e.at_least(x, LOWEST)?;
    // x_int · 2^(FINE − scale − T) read at scale FINE stands for x / 2^T.
    let by = (FINE - T)
        .checked_sub(scale)
        .ok_or_else(|| Diagnostic::internal("E0504", format!("exp needs a scale of at most {}", FINE - T)))?;
    let fine = e.op(Op::Upscale { by }, &[x])?;
    let small = e.op(Op::SetScale { scale: FINE }, &[fine])?;
    let mut y = e.guarded(Op::AddInt { k: 1 << FINE }, &[small], FINE + 1)?;
    for _ in 0..T {
        y = e.product(y, y, FINE, FINE + 1)?;
    }
    let kept = e.op(Op::Mul, &[y, keep])?;
    e.guarded(Op::Reshare, &[kept], FINE + 1)
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
    let max = e.op(Op::RowMax { shape: shape.clone(), width: bound + 2 }, &[packed, mask])?;
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
