//! Operators of the typed graph in operators of ONNX. Those that also exist on public tensors are in [`public`].

use super::public;
use super::writer::{Writer, axis, float, int, text};
use crate::graph::{Numerator, Op, TensorOp, ValueId};
use ombra_ir::{Diagnostic, Result};

/// Elements above which a constant is written with the weights.
const SMALL: usize = 1024;

/// Writes the value `id`, whose operands are written.
///
/// # Errors
/// `E0552`: its operator has no form in ONNX.
pub fn write(w: &mut Writer, id: ValueId) -> Result<()> {
    let node = w.graph.node(id)?;
    let names = w.graph.operands(id).into_iter().map(|o| w.name(o)).collect::<Result<Vec<_>>>()?;
    let args: Vec<&str> = names.iter().map(String::as_str).collect();
    let name = match (&node.op, args.as_slice()) {
        (Op::Input { name, .. }, []) => w.input(id, name)?,
        (Op::Weight { .. }, []) => w.stored(id)?,
        (Op::Tensor(TensorOp::Constant(tensor)), []) if tensor.len() > SMALL => w.stored(id)?,
        (Op::Tensor(TensorOp::Constant(tensor)), []) => w.constant(tensor),
        (Op::Pow(2.0), [x]) => w.op("Mul", &[x, x]),
        (Op::Pow(exponent), [x]) => {
            let exponent = w.float(*exponent);
            w.op("Pow", &[x, &exponent])
        }
        (Op::Relu, [x]) => w.op("Relu", &[x]),
        (Op::Clamp { low, high }, [x]) => {
            let (low, high) = (w.float(*low), w.float(*high));
            w.op("Clip", &[x, &low, &high])
        }
        (Op::Gelu { tanh }, [x]) => {
            let form = if *tanh { "tanh" } else { "none" };
            w.node("Gelu", &[x], vec![text("approximate", form)])
        }
        (Op::Silu, [x]) => {
            let gate = w.op("Sigmoid", &[x]);
            w.op("Mul", &[x, &gate])
        }
        (Op::Softplus, [x]) => softplus(w, x),
        (Op::Quadratic { square, linear, constant }, [x]) => {
            let [square, linear, constant] = [square, linear, constant].map(|c| w.float(*c));
            let slope = w.op("Mul", &[x, &square]);
            let slope = w.op("Add", &[&slope, &linear]);
            let product = w.op("Mul", &[x, &slope]);
            w.op("Add", &[&product, &constant])
        }
        (Op::Softmax { axis }, [x]) => softmax(w, x, *axis)?,
        (Op::MaskedSoftmax { axis }, [x, mask]) => {
            // A row without entries is no number before the second choice, which leaves nothing of it.
            let (none, zero) = (w.float(f32::NEG_INFINITY), w.float(0.0));
            let kept = w.op("Where", &[mask, x, &none]);
            let weights = softmax(w, &kept, *axis)?;
            w.op("Where", &[mask, &weights, &zero])
        }
        (Op::RatioSoftmax { axis, numerator, eps }, [x, mask @ ..]) => {
            ratio(w, x, mask.first().copied(), *axis, *numerator, *eps)?
        }
        (Op::AffineNorm { centred }, [x, scale, shift @ ..]) => {
            let x = if *centred { centre(w, x)? } else { (*x).to_owned() };
            let scaled = w.op("Mul", &[&x, scale]);
            shifted(w, scaled, shift)
        }
        (Op::RmsNorm { eps }, [x, scale]) => {
            let square = w.op("Mul", &[x, x]);
            let mean = mean(w, &square)?;
            let eps = w.float(*eps);
            let sum = w.op("Add", &[&mean, &eps]);
            let root = w.op("Sqrt", &[&sum]);
            let normalised = w.op("Div", &[x, &root]);
            w.op("Mul", &[&normalised, scale])
        }
        (Op::LayerNorm { eps }, [x, scale, shift @ ..]) => {
            let inputs: Vec<&str> = [*x, *scale].into_iter().chain(shift.iter().copied()).collect();
            w.node("LayerNormalization", &inputs, vec![int("axis", -1), float("epsilon", *eps)])
        }
        (Op::Tensor(op), args) => public::write(w, id, op, args)?,
        (op, _) => return Err(unwritten(op.name())),
    };
    w.define(id, name);
    Ok(())
}

/// The error of an operator that cannot be written.
pub(super) fn unwritten(op: &str) -> Diagnostic {
    Diagnostic::unsupported("E0552", format!("the client cannot compute {op} in the clear"))
        .note("the value comes before every private weight, so it would run at the client")
        .note("make a weight before it private with --private, or export the model with other operators")
}

fn softmax(w: &mut Writer, x: &str, at: usize) -> Result<String> {
    Ok(w.node("Softmax", &[x], vec![int("axis", axis(at)?)]))
}

/// `max(x, 0) + ln(1 + e^-|x|)`, which overflows nowhere.
fn softplus(w: &mut Writer, x: &str) -> String {
    let (zero, one) = (w.float(0.0), w.float(1.0));
    let positive = w.op("Max", &[x, &zero]);
    let size = w.op("Abs", &[x]);
    let minus = w.op("Neg", &[&size]);
    let power = w.op("Exp", &[&minus]);
    let sum = w.op("Add", &[&power, &one]);
    let rest = w.op("Log", &[&sum]);
    w.op("Add", &[&positive, &rest])
}

fn ratio(w: &mut Writer, x: &str, mask: Option<&str>, at: usize, numerator: Numerator, eps: f32) -> Result<String> {
    let zero = w.float(0.0);
    let mut entries = match numerator {
        Numerator::Relu => w.op("Relu", &[x]),
        Numerator::Square { shift } => {
            let shift = w.float(shift);
            let sum = w.op("Add", &[x, &shift]);
            w.op("Mul", &[&sum, &sum])
        }
    };
    if let Some(mask) = mask {
        entries = w.op("Where", &[mask, &entries, &zero]);
    }
    let axes = w.axes(&[at])?;
    let sum = w.node("ReduceSum", &[&entries, &axes], vec![int("keepdims", 1)]);
    let eps = w.float(eps);
    let divisor = w.op("Add", &[&sum, &eps]);
    let quotient = w.op("Div", &[&entries, &divisor]);
    let nothing = w.op("Equal", &[&divisor, &zero]);
    Ok(w.op("Where", &[&nothing, &zero, &quotient]))
}

/// The mean over the last axis, which stays.
fn mean(w: &mut Writer, x: &str) -> Result<String> {
    let axes = w.ints(&[-1])?;
    Ok(w.node("ReduceMean", &[x, &axes], vec![int("keepdims", 1)]))
}

fn centre(w: &mut Writer, x: &str) -> Result<String> {
    let mean = mean(w, x)?;
    Ok(w.op("Sub", &[x, &mean]))
}

fn shifted(w: &mut Writer, x: String, shift: &[&str]) -> String {
    match shift.first() {
        Some(shift) => w.op("Add", &[&x, shift]),
        None => x,
    }
}
