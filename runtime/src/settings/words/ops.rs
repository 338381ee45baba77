//! Ops that act on every share alone, for any setting that holds secrets as words.

use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};

use super::broadcast::expand;
use super::movement;
use crate::backend::bits;
use crate::exec::side::Site;

/// Whether an op is linear, or moves elements, or is a product that has a local form: what a setting computes without
/// messages wherever its operands allow it.
pub fn is_linear(op: &Op) -> bool {
    matches!(
        op,
        Op::Encode { .. }
            | Op::Add
            | Op::Sub
            | Op::Neg
            | Op::MulInt { .. }
            | Op::AddInt { .. }
            | Op::Upscale { .. }
            | Op::SetScale { .. }
            | Op::Mul
            | Op::MatMul { .. }
            | Op::ReduceSum { .. }
            | Op::Narrow { .. }
            | Op::Cut { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Expand { .. }
            | Op::Gather { .. }
            | Op::Pack
            | Op::Unpack { .. }
            | Op::RowSum { .. }
            | Op::RowExpand { .. }
            | Op::Xor
            | Op::Not
            | Op::SetState { .. }
    )
}

/// Concrete sizes of an operand. E0811 where there is none.
pub fn operand_shape<'a>(site: Site<'a>, i: usize) -> Result<&'a [usize]> {
    let arg = site.node().args.get(i).ok_or_else(missing)?;
    Ok(&site.bound.shapes[arg.index()])
}

/// A linear map of the words of the one operand that is secret; `index` gives the public integers of a `gather`. E0815 for
/// an op that is none.
pub fn moved<'a>(
    site: Site<'a>,
    op: &Op,
    words: &[u64],
    index: impl FnOnce() -> Result<&'a Tensor>,
) -> Result<Vec<u64>> {
    let shape = operand_shape(site, 0)?;
    let rows = || site.bound.rows(site.module, site.id);
    match op {
        Op::ReduceSum { axis } => movement::reduce_sum(words, shape, usize::from(*axis)),
        Op::Transpose { perm } => movement::transpose(words, shape, perm),
        Op::Slice { axis, start, .. } => {
            let axis = usize::from(*axis);
            let start = start.eval_usize(&site.bound.bindings)?;
            let len = site.shape().get(axis).copied().unwrap_or(0);
            movement::slice(words, shape, axis, start, len)
        }
        Op::Expand { .. } => expand(words, shape, site.shape()),
        Op::Gather { axis } => movement::gather(words, shape, usize::from(*axis), index()?.as_i64()?),
        Op::Pack => movement::pack(words, &rows()?.keep),
        Op::Unpack { .. } => rows().and_then(|rows| movement::unpack(words, &rows.keep, rows.dense)),
        Op::RowSum { .. } => movement::row_sum(words, &rows()?.lens),
        Op::RowExpand { .. } => movement::row_expand(words, &rows()?.lens),
        _ => Err(Diagnostic::internal("E0815", format!("{} has no kernel for these operands", op.name()))),
    }
}

/// The bits of a plane as words 0 and 1.
pub fn unpacked(plane: &[u64], n: usize) -> Vec<u64> {
    let mut words = vec![0; n];
    bits::from_planes(plane, &mut words);
    words
}

/// Words 0 and 1 as a plane.
pub fn packed(words: &[u64]) -> Vec<u64> {
    let mut plane = vec![0; bits::words(words.len())];
    bits::to_planes(words, 1, &mut plane);
    plane
}

/// An op with fewer operands than it takes.
pub fn missing() -> Diagnostic {
    Diagnostic::internal("E0811", "an op has too few operands")
}
