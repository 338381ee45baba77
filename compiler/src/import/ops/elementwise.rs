//! Element-wise operators.

use ombra_ir::plain::{self, Binary, DType, Unary};
use ombra_ir::{Diagnostic, Result};

use crate::graph::{Op, Owner, TensorOp};
use crate::import::node::Node;
use crate::import::{Context, Value};

/// The result of an element-wise operator; `None` when `node` is none.
pub fn import(cx: &mut Context, node: &Node) -> Result<Option<Value>> {
    let name = node.proto.op_type.as_str();
    // Of integers there is no secret form.
    if name == "Sign" && cx.ty(node.input(0)?)?.dtype != DType::F32 {
        return cx.emit_public(TensorOp::Unary(Unary::Sign), &[node.input(0)?]).map(Some);
    }
    if let Some(op) = unary(name) {
        return cx.emit(op, &[node.input(0)?]).map(Some);
    }
    if let Some(op) = binary(name) {
        return cx.emit(op, &[node.input(0)?, node.input(1)?]).map(Some);
    }
    match name {
        "Max" => chain(cx, node, Op::MAX),
        "Min" => chain(cx, node, Op::MIN),
        "Sum" => chain(cx, node, Op::ADD),
        "Pow" => power(cx, node),
        "Xor" => {
            let same = cx.emit_public(TensorOp::Binary(Binary::Equal), &[node.input(0)?, node.input(1)?])?;
            cx.emit_public(TensorOp::Unary(Unary::Not), &[&same])
        }
        "Gelu" => {
            let tanh = match node.text("approximate", "none").as_str() {
                "none" => false,
                "tanh" => true,
                other => return Err(Diagnostic::unsupported("E0251", format!("Gelu with approximation `{other}`"))),
            };
            cx.emit(Op::Gelu { tanh }, &[node.input(0)?])
        }
        "Swish" => swish(cx, node.input(0)?, node.float("alpha", 1.0)),
        "Where" => cx.emit(Op::WHERE, &[node.input(0)?, node.input(1)?, node.input(2)?]),
        "Clip" => clip(cx, node),
        "Mod" if node.int("fmod", 0) == 0 => {
            cx.emit_public(TensorOp::Binary(Binary::Mod), &[node.input(0)?, node.input(1)?])
        }
        _ => return Ok(None),
    }
    .map(Some)
}

fn unary(name: &str) -> Option<Op> {
    let public = |u| Op::Tensor(TensorOp::Unary(u));
    Some(match name {
        "Neg" => Op::NEG,
        "Sqrt" => Op::SQRT,
        "Reciprocal" => Op::RECIPROCAL,
        "Tanh" => Op::TANH,
        "Sigmoid" => Op::SIGMOID,
        "Erf" => Op::ERF,
        "Relu" => Op::Relu,
        "Exp" => Op::EXP,
        "Log" => Op::LOG,
        "Sign" => Op::SIGN,
        "Softplus" => Op::Softplus,
        "IsNaN" => Op::IS_NAN,
        "Not" => public(Unary::Not),
        "Abs" => public(Unary::Abs),
        "Cos" => public(Unary::Cos),
        "Sin" => public(Unary::Sin),
        "Floor" => public(Unary::Floor),
        "Ceil" => public(Unary::Ceil),
        "Round" => public(Unary::Round),
        _ => return None,
    })
}

fn binary(name: &str) -> Option<Op> {
    let public = |b| Op::Tensor(TensorOp::Binary(b));
    Some(match name {
        "Add" => Op::ADD,
        "Sub" => Op::SUB,
        "Mul" => Op::MUL,
        "Div" => Op::DIV,
        "And" => public(Binary::And),
        "Or" => public(Binary::Or),
        "Equal" => public(Binary::Equal),
        "Less" => public(Binary::Less),
        "LessOrEqual" => public(Binary::LessOrEqual),
        "Greater" => public(Binary::Greater),
        "GreaterOrEqual" => public(Binary::GreaterOrEqual),
        _ => return None,
    })
}

fn chain(cx: &mut Context, node: &Node, op: Op) -> Result<Value> {
    let inputs = node.all()?;
    let (first, rest) = inputs.split_first().ok_or_else(|| Diagnostic::input("E0251", "no inputs"))?;
    rest.iter().try_fold((*first).clone(), |value, next| cx.emit(op.clone(), &[&value, next]))
}

fn power(cx: &mut Context, node: &Node) -> Result<Value> {
    let (base, exponent) = (node.input(0)?, node.input(1)?);
    if cx.owner(base) == Owner::Public {
        return cx.emit_public(TensorOp::Binary(Binary::Pow), &[base, exponent]);
    }
    let value = exponent.as_const().and_then(|t| match t.data() {
        plain::Data::F32(v) if v.len() == 1 => v.first().copied(),
        plain::Data::I64(v) if v.len() == 1 => v.first().map(|e| *e as f32),
        _ => None,
    });
    match value {
        Some(value) if cx.ty(base)?.dtype == DType::F32 => cx.emit(Op::Pow(value), &[base]),
        _ => cx.emit_public(TensorOp::Binary(Binary::Pow), &[base, exponent]),
    }
}

/// x².
pub fn square(cx: &mut Context, x: &Value) -> Result<Value> {
    match cx.owner(x) {
        Owner::Public => cx.emit(Op::MUL, &[x, x]),
        _ => cx.emit(Op::Pow(2.0), &[x]),
    }
}

/// x · sigmoid(alpha · x).
pub fn swish(cx: &mut Context, x: &Value, alpha: f32) -> Result<Value> {
    if alpha == 1.0 {
        return cx.emit(Op::Silu, &[x]);
    }
    let alpha = Value::constant(plain::Tensor::scalar_f32(alpha));
    let scaled = cx.emit(Op::MUL, &[x, &alpha])?;
    let gate = cx.emit(Op::SIGMOID, &[&scaled])?;
    cx.emit(Op::MUL, &[x, &gate])
}

fn clip(cx: &mut Context, node: &Node) -> Result<Value> {
    let mut value = node.input(0)?.clone();
    for (slot, name, op) in [(1, "min", Op::MAX), (2, "max", Op::MIN)] {
        let bound = match node.optional(slot) {
            Some(bound) => bound.clone(),
            None if node.has(name) => Value::constant(plain::Tensor::scalar_f32(node.float(name, 0.0))),
            None => continue,
        };
        value = cx.emit(op, &[&value, &bound])?;
    }
    Ok(value)
}
