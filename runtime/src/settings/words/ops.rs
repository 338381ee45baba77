//! Ops that act on every share alone, for any setting that holds secrets as words.

use std::sync::Arc;

use ombra_ir::bind::Rows;
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
            | Op::Lift { .. }
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

/// What the kernel of an op that sends messages knows of its sizes.
pub struct OpSizes {
    /// Elements of the result.
    pub n: usize,
    /// Its sizes.
    pub out: Vec<usize>,
    /// Sizes of the operands.
    pub shapes: Vec<Vec<usize>>,
    /// Rows, for `row_max`.
    rows: Option<Arc<Rows>>,
    /// Ring bits of the result, or else of the first operand.
    pub bits: u8,
    /// Ring bits and fraction bits of the first operand, 64 and 0 of what is no ring element.
    pub from: (u8, u8),
}

impl OpSizes {
    /// Those of an op. E0401 for a `row_max` without rows.
    pub fn new(site: Site<'_>) -> Result<Self> {
        let node = site.node();
        let operand_ring = node.args.first().and_then(|&arg| site.module.ty(arg).as_ring());
        let rows = match node.op {
            Op::RowMax { .. } => Some(site.bound.rows(site.module, site.id)?),
            _ => None,
        };
        let shapes = (0..node.args.len()).map(|i| operand_shape(site, i).map(<[usize]>::to_vec));
        Ok(OpSizes {
            n: site.bound.len(site.id),
            out: site.shape().to_vec(),
            shapes: shapes.collect::<Result<Vec<_>>>()?,
            rows,
            bits: node.ty.as_ring().or(operand_ring).map_or(64, |(bits, _)| bits),
            from: operand_ring.unwrap_or((64, 0)),
        })
    }

    /// The sizes of an operand. E0811 where there is none.
    pub fn shape(&self, i: usize) -> Result<&[usize]> {
        self.shapes.get(i).map(Vec::as_slice).ok_or_else(missing)
    }

    /// The length of every row of a `row_max`.
    pub fn lens(&self) -> &[u32] {
        self.rows.as_ref().map_or(&[], |rows| &rows.lens)
    }

    /// The length of the rows of an `arg_max`.
    pub fn row_len(&self) -> usize {
        self.shapes.first().and_then(|shape| shape.last()).copied().unwrap_or(1)
    }
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
