//! Activations as compositions of sums, products, comparisons and exponentials. Every part has a form on secrets, and
//! all positive parts of one value share a comparison.

use ombra_ir::Result;
use ombra_ir::plain::{self, Binary, Tensor};

use crate::graph::Op;
use crate::import::node::Node;
use crate::import::{Context, Value};

/// Constants of the self-normalising activation (Klambauer et al., arXiv 1706.02515), as ONNX rounds them.
const SELU_ALPHA: f32 = 1.673_263_2;
const SELU_GAMMA: f32 = 1.050_701;

/// The result of an activation; `None` when `node` is none.
pub fn import(cx: &mut Context, node: &Node) -> Result<Option<Value>> {
    let alpha = |default: f32| node.float("alpha", default);
    let x = || node.input(0);
    match node.proto.op_type.as_str() {
        "HardSigmoid" => hard_sigmoid(cx, x()?, alpha(0.2), node.float("beta", 0.5)),
        "HardSwish" => {
            let x = x()?;
            let gate = hard_sigmoid(cx, x, 1.0 / 6.0, 0.5)?;
            cx.emit(Op::MUL, &[x, &gate])
        }
        "LeakyRelu" => {
            let slope = number(alpha(0.01));
            sloped(cx, x()?, &slope)
        }
        "PRelu" => sloped(cx, x()?, node.input(1)?),
        "ThresholdedRelu" => {
            let (x, border) = (x()?, number(alpha(1.0)));
            let above = cx.emit_public(plain::Op::Binary(Binary::Greater), &[x, &border])?;
            cx.emit(Op::WHERE, &[&above, x, &number(0.0)])
        }
        "Elu" => exponential(cx, x()?, alpha(1.0), 1.0),
        "Celu" => exponential(cx, x()?, alpha(1.0), 1.0 / alpha(1.0)),
        "Selu" => {
            let linear = exponential(cx, x()?, alpha(SELU_ALPHA), 1.0)?;
            cx.emit(Op::MUL, &[&linear, &number(node.float("gamma", SELU_GAMMA))])
        }
        "Mish" => {
            let soft = cx.emit(Op::Softplus, &[x()?])?;
            let gate = cx.emit(Op::TANH, &[&soft])?;
            cx.emit(Op::MUL, &[x()?, &gate])
        }
        "Softsign" => {
            let x = x()?;
            let size = cx.emit_public(plain::Op::Unary(plain::Unary::Abs), &[x])?;
            let divisor = cx.emit(Op::ADD, &[&size, &number(1.0)])?;
            cx.emit(Op::DIV, &[x, &divisor])
        }
        _ => return Ok(None),
    }
    .map(Some)
}

fn number(k: f32) -> Value {
    Value::constant(Tensor::scalar_f32(k))
}

/// `min(max(alpha · x + beta, 0), 1)`.
fn hard_sigmoid(cx: &mut Context, x: &Value, alpha: f32, beta: f32) -> Result<Value> {
    let line = cx.emit(Op::MUL, &[x, &number(alpha)])?;
    let line = cx.emit(Op::ADD, &[&line, &number(beta)])?;
    let line = cx.emit(Op::MAX, &[&line, &number(0.0)])?;
    cx.emit(Op::MIN, &[&line, &number(1.0)])
}

/// The positive and the negative part of `x`, whose sum it is.
fn parts(cx: &mut Context, x: &Value) -> Result<(Value, Value)> {
    let positive = cx.emit(Op::Relu, &[x])?;
    let negative = cx.emit(Op::SUB, &[x, &positive])?;
    Ok((positive, negative))
}

/// `x`, times `slope` where it is negative.
fn sloped(cx: &mut Context, x: &Value, slope: &Value) -> Result<Value> {
    let (positive, negative) = parts(cx, x)?;
    let negative = cx.emit(Op::MUL, &[&negative, slope])?;
    cx.emit(Op::ADD, &[&positive, &negative])
}

/// `x`, and `alpha · (exp(inner · x) − 1)` where it is negative.
fn exponential(cx: &mut Context, x: &Value, alpha: f32, inner: f32) -> Result<Value> {
    let (positive, mut negative) = parts(cx, x)?;
    if inner != 1.0 {
        negative = cx.emit(Op::MUL, &[&negative, &number(inner)])?;
    }
    let power = cx.emit(Op::EXP, &[&negative])?;
    let less = cx.emit(Op::SUB, &[&power, &number(1.0)])?;
    let scaled = cx.emit(Op::MUL, &[&less, &number(alpha)])?;
    cx.emit(Op::ADD, &[&positive, &scaled])
}
