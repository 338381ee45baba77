//! The type rule of the typed graph's operators.

use ombra_ir::plain::infer::broadcast;
use ombra_ir::plain::{self, DType, Type};
use ombra_ir::{Diagnostic, Result};

use super::Op;

/// Element type and shape of the result of `op`.
///
/// Errors: a wrong number or type of operands, an attribute out of range, shapes that do not fit.
/// Inputs and weights have no rule: their types are declared.
pub fn infer(op: &Op, operands: &[&Type]) -> Result<Type> {
    let wrong = |what: String| Diagnostic::input("E0212", format!("{}: {what}", op.name()));
    let float = |x: &Type| {
        if x.dtype == DType::F32 { Ok(()) } else { Err(wrong(format!("expected f32, found {}", x.dtype.name()))) }
    };
    match (op, operands) {
        (Op::Input { .. } | Op::Weight { .. }, _) => Err(Diagnostic::internal("E0299", "a declared type is inferred")),
        (
            Op::Pow(_) | Op::Relu | Op::Clamp { .. } | Op::Gelu { .. } | Op::Silu | Op::Softplus | Op::Quadratic { .. },
            [x],
        ) => {
            float(x)?;
            Ok((*x).clone())
        }
        (Op::Softmax { axis } | Op::RatioSoftmax { axis, .. }, [x]) => {
            float(x)?;
            if *axis >= x.shape.len() {
                return Err(wrong(format!("axis {axis} of {} axes", x.shape.len())));
            }
            Ok((*x).clone())
        }
        (Op::MaskedSoftmax { axis } | Op::RatioSoftmax { axis, .. }, [x, mask]) => {
            float(x)?;
            if mask.dtype != DType::Bool || *axis >= x.shape.len() {
                return Err(wrong("mask or axis".into()));
            }
            if broadcast(op.name(), &x.shape, &mask.shape)? != x.shape {
                return Err(wrong("the mask does not broadcast to the scores".into()));
            }
            Ok((*x).clone())
        }
        (Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::AffineNorm { .. }, [x, parameters @ ..]) => {
            float(x)?;
            let most = if matches!(op, Op::RmsNorm { .. }) { 1 } else { 2 };
            if parameters.is_empty() || parameters.len() > most {
                return Err(wrong(format!("{} operands", operands.len())));
            }
            let last = x.shape.last().ok_or_else(|| wrong("a scalar".into()))?;
            for p in parameters {
                float(p)?;
                if p.shape.as_slice() != std::slice::from_ref(last) {
                    return Err(wrong("a parameter is not of the last axis' size".into()));
                }
            }
            Ok((*x).clone())
        }
        (Op::Tensor(op), _) => plain::infer(op, operands),
        _ => Err(wrong(format!("{} operands", operands.len()))),
    }
}
