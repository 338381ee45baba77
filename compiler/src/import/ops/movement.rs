//! Operators that move elements or change their type.

use ombra_ir::plain::infer::{broadcast, product};
use ombra_ir::plain::{DType, Tensor, Type};
use ombra_ir::{Diagnostic, Dim, Result};

use super::create::axes_of;
use crate::graph::{Op, Owner, TensorOp};
use crate::import::node::{Node, axis};
use crate::import::{Context, Value, dtype_of};

pub fn cast(cx: &mut Context, node: &Node) -> Result<Value> {
    let to = i32::try_from(node.int("to", 0)).ok().and_then(dtype_of);
    let to = to.ok_or_else(|| Diagnostic::unsupported("E0251", "a cast to a type that holds no numbers"))?;
    convert(cx, node.input(0)?, to)
}

pub fn cast_like(cx: &mut Context, node: &Node) -> Result<Value> {
    let to = cx.ty(node.input(1)?)?.dtype;
    convert(cx, node.input(0)?, to)
}

/// `value` as elements of `to`; nothing to do from one float, or one integer, to another.
fn convert(cx: &mut Context, value: &Value, to: DType) -> Result<Value> {
    if cx.ty(value)?.dtype == to {
        return Ok(value.clone());
    }
    cx.emit_public(TensorOp::Cast { to }, &[value])
}

/// `value` in another shape with as many elements.
pub fn reshape_to(cx: &mut Context, value: &Value, shape: Vec<Dim>) -> Result<Value> {
    if cx.shape(value)? == shape {
        return Ok(value.clone());
    }
    cx.emit(Op::Tensor(TensorOp::Reshape { shape }), &[value])
}

pub fn reshape(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let from = cx.shape(input)?;
    let target = match node.ints("shape") {
        Some(list) => list.iter().map(|d| Dim::constant(*d)).collect(),
        None => cx.sizes(node.input(1)?, "the shape")?,
    };
    let copy_zero = node.int("allowzero", 0) == 0;
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (i, dim) in target.into_iter().enumerate() {
        if dim.is(-1) {
            if open.replace(i).is_some() {
                return Err(Diagnostic::input("E0251", "the shape has more than one -1"));
            }
            shape.push(Dim::constant(1));
        } else if dim.is(0) && copy_zero {
            let same =
                from.get(i).ok_or_else(|| Diagnostic::input("E0251", "the shape copies an axis that is not there"))?;
            shape.push(same.clone());
        } else {
            shape.push(dim);
        }
    }
    if let Some(slot) = open.and_then(|i| shape.get(i).map(|_| i)) {
        let rest = product(&shape)?;
        let size = product(&from)?.div_exact(&rest).map_err(|e| {
            let (from, to) = (cx.graph.dims.show_shape(&from), cx.graph.dims.show_shape(&shape));
            e.note(format!("the size -1 of a reshape from {from} to {to}, where it stands as 1"))
        })?;
        if let Some(d) = shape.get_mut(slot) {
            *d = size;
        }
    }
    reshape_to(cx, input, shape)
}

pub fn flatten(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    let at = node.int("axis", 1);
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    let at = if at == rank { shape.len() } else { axis(at, shape.len())? };
    let (head, tail) = shape.split_at(at);
    reshape_to(cx, input, vec![product(head)?, product(tail)?])
}

pub fn squeeze(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    let axes = match axes_of(cx, node, 1, shape.len())? {
        Some(axes) => axes,
        None => (0..shape.len()).filter(|i| shape.get(*i).is_some_and(|d| d.is(1))).collect(),
    };
    if let Some(bad) = axes.iter().find(|a| shape.get(**a).is_none_or(|d| !d.is(1))) {
        let found = cx.graph.dims.show_shape(&shape);
        return Err(Diagnostic::input("E0251", format!("axis {bad} of shape {found} is not of size 1")));
    }
    let kept = shape.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect();
    reshape_to(cx, input, kept)
}

pub fn unsqueeze(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    let count = node.ints("axes").map(|a| a.len());
    let count = match (count, node.optional(1)) {
        (Some(n), _) => n,
        (None, Some(value)) => cx.ints(value, "the list of axes")?.len(),
        (None, None) => 0,
    };
    let rank = shape.len().saturating_add(count);
    let axes = axes_of(cx, node, 1, rank)?.unwrap_or_default();
    let mut old = shape.into_iter();
    let mut new = Vec::with_capacity(rank);
    for i in 0..rank {
        let size = if axes.contains(&i) { Some(Dim::constant(1)) } else { old.next() };
        new.push(size.ok_or_else(|| Diagnostic::input("E0251", format!("axis {i} is named twice")))?);
    }
    if old.next().is_some() {
        return Err(Diagnostic::input("E0251", "an axis is named twice"));
    }
    reshape_to(cx, input, new)
}

pub fn transpose(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let rank = cx.shape(input)?.len();
    let perm: Vec<usize> = match node.ints("perm") {
        Some(list) => list.iter().map(|a| axis(*a, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank {
        let found = perm.len();
        return Err(
            Diagnostic::input("E0251", format!("a permutation of {found} axes")).note(format!("expected {rank}"))
        );
    }
    transpose_by(cx, input, perm)
}

/// `value` with permuted axes; a matrix that is a weight becomes the transposed weight.
pub fn transpose_by(cx: &mut Context, value: &Value, perm: Vec<usize>) -> Result<Value> {
    if perm.iter().copied().eq(0..perm.len()) {
        return Ok(value.clone());
    }
    if let Value::Node(id) = value
        && perm == [1, 0]
        && let Op::Weight { name, transposed } = cx.graph.node(*id)?.op.clone()
    {
        let node = cx.graph.node(*id)?;
        let (shape, origin) = (node.shape.iter().rev().cloned().collect(), node.origin.clone());
        return Ok(Value::Node(cx.graph.add_weight(&name, !transposed, shape, origin)));
    }
    cx.emit(Op::Tensor(TensorOp::Transpose { perm }), &[value])
}

pub fn expand(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let target = cx.sizes(node.input(1)?, "the shape")?;
    let from = cx.shape(input)?;
    let shape = broadcast("expand", &from, &target).map_err(|e| {
        e.note(format!("from {} to {}", cx.graph.dims.show_shape(&from), cx.graph.dims.show_shape(&target)))
    })?;
    if shape == from {
        return Ok(input.clone());
    }
    cx.emit(Op::Tensor(TensorOp::Expand { shape }), &[input])
}

pub fn tile(cx: &mut Context, node: &Node) -> Result<Value> {
    let repeats = cx.sizes(node.input(1)?, "the number of repetitions")?;
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    if cx.owner(input) == Owner::Public || repeats.len() != shape.len() {
        return cx.emit_public(TensorOp::Tile { repeats }, &[input]);
    }
    // An axis that is repeated gets one of repetitions before it, and is merged with it.
    let pair = |repeated: bool| {
        let axes = shape.iter().zip(&repeats);
        let one = Dim::constant(1);
        let before = |r: &Dim| (!r.is(1)).then(|| if repeated { r.clone() } else { one.clone() });
        axes.flat_map(|(d, r)| before(r).into_iter().chain([d.clone()])).collect::<Vec<_>>()
    };
    let apart = reshape_to(cx, input, pair(false))?;
    let tiled = cx.emit(Op::Tensor(TensorOp::Expand { shape: pair(true) }), &[&apart])?;
    let merged = shape.iter().zip(&repeats).map(|(d, r)| d.mul(r)).collect::<Result<_>>()?;
    reshape_to(cx, &tiled, merged)
}

pub fn concat(cx: &mut Context, node: &Node) -> Result<Value> {
    let inputs = node.all()?;
    let first = inputs.first().ok_or_else(|| Diagnostic::input("E0251", "no inputs"))?;
    let rank = cx.shape(first)?.len();
    let axis = axis(node.int("axis", 0), rank)?;
    let mut kept = Vec::with_capacity(inputs.len());
    for input in &inputs {
        if cx.shape(input)?.get(axis).is_none_or(|d| !d.is(0)) {
            kept.push(*input);
        }
    }
    match kept.as_slice() {
        [] => Ok((*first).clone()),
        [one] => Ok((*one).clone()),
        many => cx.emit(Op::Tensor(TensorOp::Concat { axis }), many),
    }
}

pub fn trilu(cx: &mut Context, node: &Node) -> Result<Value> {
    let k = match node.optional(1) {
        Some(value) => cx.ints(value, "the diagonal")?.first().copied().unwrap_or(0),
        None => 0,
    };
    let (input, op) = (node.input(0)?, TensorOp::Trilu { upper: node.int("upper", 1) != 0, k });
    let Type { dtype, mut shape } = cx.ty(input)?;
    if cx.owner(input) == Owner::Public || dtype != DType::F32 || shape.len() < 2 {
        return cx.emit_public(op, &[input]);
    }
    let shape = shape.split_off(shape.len() - 2);
    let ones = cx.emit_public(TensorOp::ConstantOfShape { shape, value: Tensor::f32(&[1], vec![1.0])? }, &[])?;
    let kept = cx.emit_public(op, &[&ones])?;
    cx.emit(Op::MUL, &[input, &kept])
}

/// Constant padding: a block before and one after along every axis. A negative number cuts.
pub fn pad(cx: &mut Context, node: &Node) -> Result<Value> {
    let mode = node.text("mode", "constant");
    if mode != "constant" {
        return Err(Diagnostic::unsupported("E0251", format!("Pad with mode `{mode}`")).note("expected constant"));
    }
    let mut value = node.input(0)?.clone();
    let Type { dtype, shape } = cx.ty(&value)?;
    let pads = match node.ints("pads") {
        Some(list) => list.iter().map(|d| Dim::constant(*d)).collect(),
        None => cx.sizes(node.input(1)?, "the padding")?,
    };
    let axes = axes_of(cx, node, 3, shape.len())?.unwrap_or_else(|| (0..shape.len()).collect());
    if pads.len() != axes.len().saturating_mul(2) {
        return Err(Diagnostic::input("E0251", format!("{} numbers pad {} axes", pads.len(), axes.len())));
    }
    let fill = match node.optional(2) {
        Some(fill) => match fill.as_const() {
            Some(tensor) if tensor.len() == 1 => tensor.clone(),
            _ => return Err(Diagnostic::unsupported("E0251", "a padding with a value that is not known")),
        },
        None => match dtype {
            DType::F32 => Tensor::scalar_f32(node.float("value", 0.0)),
            DType::I64 => Tensor::scalar_i64(0),
            DType::Bool => Tensor::bool(&[], vec![false])?,
        },
    };
    let (before, after) = pads.split_at(axes.len());
    for ((axis, before), after) in axes.into_iter().zip(before).zip(after) {
        let shape = cx.shape(&value)?;
        let size = shape.get(axis).cloned().unwrap_or_default();
        let cut = |d: &Dim| d.as_constant().filter(|n| *n < 0).map_or(Dim::constant(0), Dim::constant);
        let len = size.add(&cut(before))?.add(&cut(after))?;
        if len != size {
            let start = Dim::constant(0).sub(&cut(before))?;
            value = cx.emit(Op::Tensor(TensorOp::Slice { axis, start, len, step: 1 }), &[&value])?;
        }
        let mut block = |size: &Dim| {
            let shape = shape.iter().enumerate().map(|(i, d)| if i == axis { size } else { d }.clone()).collect();
            cx.emit_public(TensorOp::ConstantOfShape { shape, value: fill.clone() }, &[])
        };
        let adds = |size: &Dim| size.as_constant().is_none_or(|n| n > 0);
        let mut parts = Vec::with_capacity(3);
        if adds(before) {
            parts.push(block(before)?);
        }
        parts.push(value.clone());
        if adds(after) {
            parts.push(block(after)?);
        }
        if parts.len() > 1 {
            value = cx.emit(Op::Tensor(TensorOp::Concat { axis }), &parts.iter().collect::<Vec<_>>())?;
        }
    }
    Ok(value)
}
