//! Operators along axes: softmax, normalisations, reductions, running sums.

use ombra_ir::plain::{self, Reduce};
use ombra_ir::{Diagnostic, Result};

use super::create::axes_of;
use crate::graph::{Op, Owner};
use crate::import::node::{Node, axes, axis};
use crate::import::{Context, Value};

pub fn softmax(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let axis = axis(node.int("axis", if node.opset < 13 { 1 } else { -1 }), rank)?;
    if node.opset < 13 && axis + 1 != rank {
        return Err(Diagnostic::unsupported(
            "E0251",
            format!("Softmax of operator set {} along axis {axis}", node.opset),
        )
        .note("expected the last axis; export with operator set 13 or later"));
    }
    cx.emit(Op::Softmax { axis }, &[input])
}

/// An error unless the attribute `axis` of `node` is the last one of `x`.
fn check_last_axis(cx: &Context, node: &Node, x: &Value) -> Result<()> {
    let rank = cx.shape(x)?.len();
    if axis(node.int("axis", -1), rank)? + 1 != rank {
        return Err(Diagnostic::unsupported("E0251", format!("a normalisation along axis {}", node.int("axis", -1)))
            .note("expected the last axis"));
    }
    Ok(())
}

pub fn layer_norm(cx: &mut Context, node: &Node) -> Result<Value> {
    check_last_axis(cx, node, node.input(0)?)?;
    if node.proto.output.iter().skip(1).any(|o| !o.is_empty()) {
        return Err(Diagnostic::unsupported("E0251", "the mean or deviation of a LayerNormalization is used")
            .note("expected the first output alone"));
    }
    let mut operands = vec![node.input(0)?, node.input(1)?];
    operands.extend(node.optional(2));
    cx.emit(Op::LayerNorm { eps: node.float("epsilon", 1e-5) }, &operands)
}

pub fn rms_norm(cx: &mut Context, node: &Node) -> Result<Value> {
    check_last_axis(cx, node, node.input(0)?)?;
    cx.emit(Op::RmsNorm { eps: node.float("epsilon", 1e-5) }, &[node.input(0)?, node.input(1)?])
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
    let public = |kind| Op::Public(plain::Op::Reduce { kind, axes: axes.clone(), keepdims });
    let op = match node.proto.op_type.as_str() {
        "ReduceMean" => Op::ReduceMean { axes, keepdims },
        "ReduceSum" => Op::ReduceSum { axes, keepdims },
        "ReduceMax" => Op::ReduceMax { axes, keepdims },
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
    if cx.owner(input) == Owner::Public {
        return Err(Diagnostic::unsupported("E0251", "ReduceL2 of a public value"));
    }
    let squares = cx.emit(Op::Pow(2.0), &[input])?;
    let sum = cx.emit(Op::ReduceSum { axes, keepdims: node.int("keepdims", 1) != 0 }, &[&squares])?;
    cx.emit(Op::Sqrt, &[&sum])
}

pub fn cum_sum(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let at = cx.ints(node.input(1)?, "the axis")?;
    let axis = axis(at.first().copied().unwrap_or(0), rank)?;
    let (exclusive, reverse) = (node.int("exclusive", 0) != 0, node.int("reverse", 0) != 0);
    cx.emit_public(plain::Op::CumSum { axis, exclusive, reverse }, &[input])
}
