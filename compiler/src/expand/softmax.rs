//! `exp` and `softmax`.
//!
//! `exp(x) ≈ (1 + z + z²/2 + z³/6)^{2^t}` with `z = x/2^t`, for `−14 ≤ x ≤ 0`, and 0 below; `t = 4`. The relative error is
//! `x⁴ / (24 · 2^{3t})`: 1e-5 at −1, 1.6e-4 at −2, 2.6e-3 at −4; the absolute error is at most 6e-5 everywhere. It takes six
//! secret products, one less than the usual `(1 + x/2^7)^{2^7}` (PUMA, arXiv 2307.12533, with t = 5), whose absolute
//! error is 2.1e-3. Softmax subtracts the row's maximum first; only entries that the public mask keeps are compared,
//! exponentiated and summed, so nothing depends on what a mask hides.

use super::{Emit, FINE, fixed, reciprocal};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Squarings.
const T: u8 = 4;
/// Fraction bits of 1/6.
const SIXTH: u8 = 8;
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
    let z = e.guarded(Op::SetScale { scale: FINE }, &[fine], FINE)?;
    // y = 1 + z + z² (1/2 + z/6)
    let square = e.product(z, z, FINE, FINE)?;
    let sixth = e.op(Op::MulInt { k: fixed(1.0 / 6.0, SIXTH)? }, &[z])?;
    let sixth = e.op(Op::SetScale { scale: FINE + SIXTH }, &[sixth])?;
    let factor = e.add_real(sixth, 0.5)?;
    let cubic = e.op(Op::Mul, &[square, factor])?;
    let linear = e.op(Op::AddInt { k: 1 << FINE }, &[z])?;
    let linear = e.op(Op::Upscale { by: FINE + SIXTH }, &[linear])?;
    let sum = e.op(Op::Add, &[cubic, linear])?;
    let mut y = e.truncate_to(sum, FINE, FINE + 1)?;
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
    let max = e.op(Op::RowMax { shape: shape.clone(), width: bound + 2, drop: 0 }, &[packed, mask])?;
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
