//! Operators that make values from attributes and shapes.

use ombra_ir::plain::{self, Tensor};
use ombra_ir::{Diagnostic, Dim, Result};

use crate::import::node::{Node, axis};
use crate::import::sizes::finish;
use crate::import::{Context, Value, constant_tensor};

pub fn constant(cx: &mut Context, node: &Node) -> Result<Value> {
    let name = node.proto.output.first().cloned().unwrap_or_default();
    match constant_tensor(node.proto) {
        Some(tensor) => cx.tensor_value(&name, &tensor),
        None => Err(Diagnostic::unsupported("E0251", "a constant holds neither a tensor nor numbers")
            .note("expected value, value_int, value_ints, value_float or value_floats")),
    }
}

pub fn constant_of_shape(cx: &mut Context, node: &Node) -> Result<Value> {
    let shape = cx.sizes(node.input(0)?, "the shape")?;
    let value = match node.tensor("value") {
        Some(tensor) => match cx.tensor_value("", tensor)? {
            Value::Const { tensor, .. } if tensor.len() == 1 => (*tensor).clone(),
            _ => return Err(Diagnostic::input("E0251", "expected one element in attribute `value`")),
        },
        None => Tensor::f32(&[1], vec![0.0])?,
    };
    cx.emit_public(plain::Op::ConstantOfShape { shape, value }, &[])
}

pub fn range(cx: &mut Context, node: &Node) -> Result<Value> {
    let (start, limit, step) = (node.input(0)?, node.input(1)?, node.input(2)?);
    if let (Some(_), Some(_), Some(_)) = (start.as_const(), limit.as_const(), step.as_const()) {
        return cx.emit_public(plain::Op::Range, &[start, limit, step]);
    }
    let single = |v: &Value, what: &str| match cx.sizes(v, what)?.as_slice() {
        [one] => Ok(one.clone()),
        other => Err(Diagnostic::input("E0251", format!("{what} has {} elements", other.len())).note("expected 1")),
    };
    let (start, limit, step) = (single(start, "the start")?, single(limit, "the limit")?, single(step, "the step")?);
    let step_value = step.as_constant().filter(|s| *s != 0);
    let step_value =
        step_value.ok_or_else(|| Diagnostic::unsupported("E0254", "the step depends on a symbolic size"))?;
    let len = limit.sub(&start)?.div_exact(&step)?;
    cx.emit_public(plain::Op::Iota { start, len, step: step_value }, &[])
}

pub fn shape(cx: &mut Context, node: &Node) -> Result<Value> {
    let shape = cx.shape(node.input(0)?)?;
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    let clamp = |at: i64| if at < 0 { at.saturating_add(rank).max(0) } else { at.min(rank) };
    let (start, end) = (clamp(node.int("start", 0)), clamp(node.int("end", rank)));
    let count = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let dims: Vec<Dim> = shape.into_iter().skip(usize::try_from(start).unwrap_or(0)).take(count).collect();
    known(vec![dims.len()], dims)
}

pub fn size(cx: &mut Context, node: &Node) -> Result<Value> {
    let shape = cx.shape(node.input(0)?)?;
    known(vec![], vec![plain::infer::product(&shape)?])
}

fn known(shape: Vec<usize>, dims: Vec<Dim>) -> Result<Value> {
    finish(shape, dims).ok_or_else(|| Diagnostic::internal("E0299", "sizes do not fit their shape"))
}

/// The list of axes of `node`: attribute `axes`, or input `slot` from the operator set where it moved there.
pub fn axes_of(cx: &Context, node: &Node, slot: usize, rank: usize) -> Result<Option<Vec<usize>>> {
    let list = match (node.ints("axes"), node.optional(slot)) {
        (Some(list), _) => list.to_vec(),
        (None, Some(value)) => cx.ints(value, "the list of axes")?,
        (None, None) => return Ok(None),
    };
    let axes = list.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    Ok(Some(axes))
}
