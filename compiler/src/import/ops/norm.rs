//! Operators along axes: softmax, normalisations, reductions, running sums.

use ombra_ir::plain::{Reduce, Tensor, infer::product};
use ombra_ir::{Diagnostic, Dim, Result};

use super::create::axes_of;
use super::elementwise::square;
use super::movement::{reshape_to, transpose_by};
use crate::graph::{Op, TensorOp};
use crate::import::node::{Node, axes, axis};
use crate::import::{Context, Value};

pub fn softmax(cx: &mut Context, node: &Node) -> Result<Value> {
    along_axis(cx, node, |cx, x, axis| cx.emit(Op::Softmax { axis }, &[x]))
}

/// `x − max(x) − ln Σ exp(x − max(x))`.
pub fn log_softmax(cx: &mut Context, node: &Node) -> Result<Value> {
    along_axis(cx, node, |cx, x, axis| {
        let (axes, keepdims) = (vec![axis], true);
        let greatest =
            cx.emit(Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes: axes.clone(), keepdims }), &[x])?;
        let less = cx.emit(Op::SUB, &[x, &greatest])?;
        let powers = cx.emit(Op::EXP, &[&less])?;
        let sum = cx.emit(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims }), &[&powers])?;
        let log = cx.emit(Op::LOG, &[&sum])?;
        cx.emit(Op::SUB, &[&less, &log])
    })
}

/// `f` of the input and the axis that a softmax runs along. Before operator set 13, the axis and all after it are one.
fn along_axis(
    cx: &mut Context,
    node: &Node,
    f: impl Fn(&mut Context, &Value, usize) -> Result<Value>,
) -> Result<Value> {
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    let axis = axis(node.int("axis", if node.opset < 13 { 1 } else { -1 }), shape.len())?;
    // There is nothing along an axis of size 0, and nothing comes of it.
    if shape.get(axis).is_some_and(|d| d.is(0)) {
        return Ok(input.clone());
    }
    if node.opset >= 13 || axis + 1 == shape.len() {
        return f(cx, input, axis);
    }
    let flat = flattened(cx, input, axis)?;
    let result = f(cx, &flat, axis)?;
    reshape_to(cx, &result, shape)
}

/// `x` with the axes from `at` on merged into one.
fn flattened(cx: &mut Context, x: &Value, at: usize) -> Result<Value> {
    let mut shape = cx.shape(x)?;
    let tail = product(&shape.split_off(at))?;
    shape.push(tail);
    reshape_to(cx, x, shape)
}

/// A normalisation over the axes from attribute `axis` on, with the parameters in the inputs after the first; also the
/// first of these axes.
fn normalised(cx: &mut Context, node: &Node, op: Op, parameters: usize) -> Result<(Value, usize)> {
    let x = node.input(0)?;
    let shape = cx.shape(x)?;
    let at = axis(node.int("axis", -1), shape.len())?;
    let tail = shape.get(at..).unwrap_or_default();
    let mut operands = vec![flattened(cx, x, at)?];
    for slot in 1..=parameters {
        let Some(given) = node.optional(slot) else { continue };
        let whole = if cx.shape(given)? == tail {
            given.clone()
        } else {
            cx.emit(Op::Tensor(TensorOp::Expand { shape: tail.to_vec() }), &[given])?
        };
        operands.push(flattened(cx, &whole, 0)?);
    }
    let result = cx.emit(op, &operands.iter().collect::<Vec<_>>())?;
    Ok((reshape_to(cx, &result, shape)?, at))
}

pub fn layer_norm(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let eps = node.float("epsilon", 1e-5);
    node.input(1)?;
    let (result, at) = normalised(cx, node, Op::LayerNorm { eps }, 2)?;
    if node.proto.output.iter().skip(1).all(String::is_empty) {
        return Ok(vec![result]);
    }
    let x = node.input(0)?;
    let axes: Vec<usize> = (at..cx.shape(x)?.len()).collect();
    let mean_of = |axes: Vec<usize>| Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes, keepdims: true });
    let mean = cx.emit(mean_of(axes.clone()), &[x])?;
    let centred = cx.emit(Op::SUB, &[x, &mean])?;
    let squares = square(cx, &centred)?;
    let variance = cx.emit(mean_of(axes), &[&squares])?;
    let variance = cx.emit(Op::ADD, &[&variance, &Value::constant(Tensor::scalar_f32(eps))])?;
    let deviation = cx.emit(Op::SQRT, &[&variance])?;
    let inverse = cx.emit(Op::RECIPROCAL, &[&deviation])?;
    Ok(vec![result, mean, inverse])
}

pub fn rms_norm(cx: &mut Context, node: &Node) -> Result<Value> {
    node.input(1)?;
    let eps = node.float("epsilon", 1e-5);
    normalised(cx, node, Op::RmsNorm { eps }, 1).map(|(result, _)| result)
}

/// The axes of a reduction; `None` when it reduces nothing.
fn reduced_axes(cx: &Context, node: &Node, rank: usize) -> Result<Option<Vec<usize>>> {
    let given = axes_of(cx, node, 1, rank)?.unwrap_or_default();
    if !given.is_empty() {
        return Ok(Some(axes(&given.iter().map(|a| *a as i64).collect::<Vec<_>>(), rank)?));
    }
    Ok(if node.int("noop_with_empty_axes", 0) != 0 { None } else { Some((0..rank).collect()) })
}

pub fn reduce(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let Some(axes) = reduced_axes(cx, node, rank)? else { return Ok(input.clone()) };
    let keepdims = node.int("keepdims", 1) != 0;
    let public = |kind| Op::Tensor(TensorOp::Reduce { kind, axes: axes.clone(), keepdims });
    let op = match node.proto.op_type.as_str() {
        "ReduceMean" => Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes, keepdims }),
        "ReduceSum" => Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims }),
        "ReduceMax" => Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes, keepdims }),
        "ReduceMin" => public(Reduce::Min),
        _ => public(Reduce::Prod),
    };
    cx.emit(op, &[input])
}

pub fn reduce_l2(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let Some(axes) = reduced_axes(cx, node, rank)? else {
        return Err(Diagnostic::unsupported("E0251", "ReduceL2 without axes"));
    };
    let squares = square(cx, input)?;
    let sum = cx.emit(
        Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims: node.int("keepdims", 1) != 0 }),
        &[&squares],
    )?;
    cx.emit(Op::SQRT, &[&sum])
}

/// The index of the maximum or the least element along an axis, as a maximum along the last axis.
pub fn arg_max(cx: &mut Context, node: &Node) -> Result<Value> {
    let mut value = node.input(0)?.clone();
    let shape = cx.shape(&value)?;
    let at = axis(node.int("axis", 0), shape.len())?;
    if node.int("select_last_index", 0) != 0 {
        return Err(Diagnostic::unsupported("E0251", format!("{} of the last of equal elements", node.proto.op_type))
            .note("expected select_last_index of 0, the first of them"));
    }
    if node.proto.op_type == "ArgMin" {
        value = cx.emit(Op::NEG, &[&value])?;
    }
    let perm = (0..shape.len()).filter(|a| *a != at).chain([at]).collect();
    let value = transpose_by(cx, &value, perm)?;
    let index = cx.emit_public(TensorOp::ArgMax, &[&value])?;
    let mut kept = shape;
    if node.int("keepdims", 1) != 0 {
        kept.splice(at..=at, [Dim::constant(1)]);
    } else {
        kept.remove(at);
    }
    reshape_to(cx, &index, kept)
}

pub fn cum_sum(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let at = cx.ints(node.input(1)?, "the axis")?;
    let axis = axis(at.first().copied().unwrap_or(0), rank)?;
    let (exclusive, reverse) = (node.int("exclusive", 0) != 0, node.int("reverse", 0) != 0);
    cx.emit_public(TensorOp::CumSum { axis, exclusive, reverse }, &[input])
}
