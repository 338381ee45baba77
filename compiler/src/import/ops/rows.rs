//! Movements of values that are not public, by public indices, as lookups of whole rows.
//!
//! The operator itself, applied to the numbers of the rows, says which row goes where: everybody does that alone. What
//! is left for a secret is one `Gather` along the first axis, which only moves elements.

use ombra_ir::plain::infer::product;
use ombra_ir::{Diagnostic, Dim, Result};

use super::movement::reshape_to;
use crate::graph::{Op, Owner, TensorOp};
use crate::import::{Context, Value};

/// Whether `index` is public and some of `data` is not: what this module is for.
pub fn applies(cx: &Context, data: &[&Value], index: &Value) -> bool {
    cx.owner(index) == Owner::Public && data.iter().any(|v| cx.owner(v) != Owner::Public)
}

/// The integers from `start`, one for each element of `shape`.
fn numbers(cx: &mut Context, start: Dim, shape: &[Dim]) -> Result<Value> {
    let all = cx.emit_public(TensorOp::Iota { start, len: product(shape)?, step: 1 }, &[])?;
    reshape_to(cx, &all, shape.to_vec())
}

/// `value` with its first `count` axes merged into one, the rows.
fn in_rows(cx: &mut Context, value: &Value, count: usize) -> Result<Value> {
    let shape = cx.shape(value)?;
    let (head, tail) = shape.split_at_checked(count).unwrap_or((&shape, &[]));
    let merged = std::iter::once(product(head)?).chain(tail.iter().cloned()).collect();
    reshape_to(cx, value, merged)
}

/// `GatherElements`: rows have one element.
pub fn gather_elements(cx: &mut Context, data: &Value, index: &Value, axis: usize) -> Result<Value> {
    let shape = cx.shape(data)?;
    let all = numbers(cx, Dim::constant(0), &shape)?;
    let place = cx.emit_public(TensorOp::GatherElements { axis }, &[&all, index])?;
    let rows = in_rows(cx, data, shape.len())?;
    cx.emit(Op::Tensor(TensorOp::Gather { axis: 0 }), &[&rows, &place])
}

/// How many axes of `shape` an index tuple and `batch` shared axes number.
fn numbered(cx: &Context, shape: &[Dim], index: &Value, batch: usize) -> Result<usize> {
    let at = cx.shape(index)?;
    let width = at.last().and_then(Dim::as_constant).and_then(|w| usize::try_from(w).ok());
    let width = width.ok_or_else(|| Diagnostic::input("E0251", "index tuples of unknown length"))?;
    let count = width.checked_add(batch).filter(|n| *n <= shape.len());
    count.ok_or_else(|| {
        Diagnostic::input("E0251", "index tuples are too long")
            .note(format!("expected at most {} axes, found {batch} shared ones and {width}", shape.len()))
    })
}

/// `GatherND`.
pub fn gather_nd(cx: &mut Context, data: &Value, index: &Value, batch: usize) -> Result<Value> {
    let shape = cx.shape(data)?;
    let count = numbered(cx, &shape, index, batch)?;
    let all = numbers(cx, Dim::constant(0), shape.get(..count).unwrap_or_default())?;
    let place = cx.emit_public(TensorOp::GatherNd { batch_dims: batch }, &[&all, index])?;
    let rows = in_rows(cx, data, count)?;
    cx.emit(Op::Tensor(TensorOp::Gather { axis: 0 }), &[&rows, &place])
}

/// `ScatterND` without a reduction: every row of the result is one of `data` or one of `update`.
pub fn scatter_nd(cx: &mut Context, data: &Value, index: &Value, update: &Value) -> Result<Value> {
    let (shape, mut lead) = (cx.shape(data)?, cx.shape(index)?);
    let count = numbered(cx, &shape, index, 0)?;
    lead.pop();
    let head = shape.get(..count).unwrap_or_default();
    let old = numbers(cx, Dim::constant(0), head)?;
    let new = numbers(cx, product(head)?, &lead)?;
    let chosen = cx.emit_public(TensorOp::ScatterNd, &[&old, index, &new])?;
    let chosen = in_rows(cx, &chosen, count)?;
    let (old, new) = (in_rows(cx, data, count)?, in_rows(cx, update, lead.len())?);
    let all = cx.emit(Op::Tensor(TensorOp::Concat { axis: 0 }), &[&old, &new])?;
    let result = cx.emit(Op::Tensor(TensorOp::Gather { axis: 0 }), &[&all, &chosen])?;
    reshape_to(cx, &result, shape)
}
