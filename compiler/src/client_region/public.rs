//! Operators that exist on public tensors too, in operators of ONNX.

use super::ops::unwritten;
use super::writer::{Writer, axis, element, int, ints};
use crate::graph::ValueId;
use ombra_ir::plain::{Binary, DType, Op, Reduce, Tensor, Unary};
use ombra_ir::{Dim, Result};
use protobuf::Enum;

/// Writes the value `id`, which is `op` of `args`; the name of the result.
///
/// # Errors
/// `E0552`: the operator has no form in ONNX on these elements.
pub fn write(w: &mut Writer, id: ValueId, op: &Op, args: &[&str]) -> Result<String> {
    let of = |slot: u32| w.graph.operand(id, slot).and_then(|o| w.graph.node(o).ok()).map(|n| n.dtype);
    let dtype = of(0);
    Ok(match (op, args) {
        (Op::Constant(tensor), []) => w.constant(tensor),
        (Op::Sizes { shape, values }, []) => {
            let list = w.sizes(values)?;
            let shape = shape.iter().map(|d| axis(*d)).collect::<Result<Vec<_>>>()?;
            let shape = w.ints(&shape)?;
            reshaped(w, &list, &shape)
        }
        (Op::Iota { start, len, step }, []) => progression(w, start, len, *step)?,
        (Op::ConstantOfShape { shape, value }, []) => {
            let value = w.constant(&value.clone().with_shape(Vec::new())?);
            let shape = w.sizes(shape)?;
            w.op("Expand", &[&value, &shape])
        }
        (Op::Range, [start, limit, step]) => w.op("Range", &[start, limit, step]),
        (Op::Identity, [x]) => w.op("Identity", &[x]),
        (Op::Cast { to: DType::Bool }, [x]) => match dtype {
            Some(DType::Bool) => w.op("Identity", &[x]),
            other => {
                let zero = if other == Some(DType::I64) { w.int(0) } else { w.float(0.0) };
                let none = w.op("Equal", &[x, &zero]);
                w.op("Not", &[&none])
            }
        },
        (Op::Cast { to }, [x]) => w.node("Cast", &[x], vec![int("to", element(*to).value().into())]),
        (Op::Reshape { shape }, [x]) => {
            let shape = w.sizes(shape)?;
            reshaped(w, x, &shape)
        }
        (Op::Expand { shape }, [x]) => {
            let shape = w.sizes(shape)?;
            w.op("Expand", &[x, &shape])
        }
        (Op::Transpose { perm }, [x]) => {
            let perm = perm.iter().map(|p| axis(*p)).collect::<Result<_>>()?;
            w.node("Transpose", &[x], vec![ints("perm", perm)])
        }
        (Op::Concat { axis: at }, [_, ..]) => w.node("Concat", args, vec![int("axis", axis(*at)?)]),
        (Op::Slice { axis: at, start, len, step: 1 }, [x]) => {
            let (from, to) = (w.sizes(std::slice::from_ref(start))?, w.sizes(&[start.add(len)?])?);
            let axes = w.axes(&[*at])?;
            w.op("Slice", &[x, &from, &to, &axes])
        }
        // Where it ends before the first element, ONNX's slice has no number for the end.
        (Op::Slice { axis: at, start, len, step }, [x]) => {
            let at = axis(*at)?;
            let index = progression(w, start, len, *step)?;
            w.node("Gather", &[x, &index], vec![int("axis", at)])
        }
        (Op::Tile { repeats }, [x]) => {
            let repeats = w.sizes(repeats)?;
            w.op("Tile", &[x, &repeats])
        }
        (Op::Trilu { upper, k }, [x]) => {
            let k = w.int(*k);
            w.node("Trilu", &[x, &k], vec![int("upper", (*upper).into())])
        }
        (Op::Gather { axis: at }, [x, index]) => w.node("Gather", &[x, index], vec![int("axis", axis(*at)?)]),
        (Op::GatherElements { axis: at }, [x, index]) => {
            w.node("GatherElements", &[x, index], vec![int("axis", axis(*at)?)])
        }
        (Op::GatherNd { batch_dims }, [x, index]) => {
            w.node("GatherND", &[x, index], vec![int("batch_dims", axis(*batch_dims)?)])
        }
        (Op::ScatterNd, [x, index, update]) => w.op("ScatterND", &[x, index, update]),
        // The library that runs the region takes the sign of a float zero for 1.
        (Op::Unary(Unary::Sign), [x]) if dtype == Some(DType::F32) => {
            let zero = w.float(0.0);
            let [above, below] = ["Greater", "Less"].map(|op| {
                let holds = w.op(op, &[x, &zero]);
                w.node("Cast", &[&holds], vec![int("to", element(DType::F32).value().into())])
            });
            w.op("Sub", &[&above, &below])
        }
        (Op::Unary(unary), [x]) => w.op(unary_name(*unary), &[x]),
        (Op::Binary(binary), [a, b]) => w.op(binary_name(*binary), &[a, b]),
        (Op::Where, [mask, a, b]) => w.op("Where", &[mask, a, b]),
        (Op::Clip, [x, low, high]) => w.op("Clip", &[x, low, high]),
        (Op::MatMul, [a, b]) if dtype == Some(DType::F32) => w.op("MatMul", &[a, b]),
        (Op::CumSum { axis: at, exclusive, reverse }, [x]) => {
            let at = w.int(axis(*at)?);
            let attributes = vec![int("exclusive", (*exclusive).into()), int("reverse", (*reverse).into())];
            w.node("CumSum", &[x, &at], attributes)
        }
        (Op::Reduce { axes, .. }, [x]) if axes.is_empty() => w.op("Identity", &[x]),
        (Op::Reduce { kind, axes, keepdims }, [x]) => {
            let axes = w.axes(axes)?;
            w.node(reduce_name(*kind), &[x, &axes], vec![int("keepdims", (*keepdims).into())])
        }
        (Op::ArgMax, [x]) => w.node("ArgMax", &[x], vec![int("axis", -1), int("keepdims", 0)]),
        (op, _) => return Err(unwritten(op.name())),
    })
}

/// A reshape to a shape that may have zeros.
fn reshaped(w: &mut Writer, x: &str, shape: &str) -> String {
    w.node("Reshape", &[x, shape], vec![int("allowzero", 1)])
}

/// The integers `start, start + step, …`, `len` of them.
fn progression(w: &mut Writer, start: &Dim, len: &Dim, step: i64) -> Result<String> {
    let limit = start.add(&len.mul(&Dim::constant(step))?)?;
    let (from, to, by) = (w.size(start)?, w.size(&limit)?, w.constant(&Tensor::scalar_i64(step)));
    Ok(w.op("Range", &[&from, &to, &by]))
}

fn unary_name(unary: Unary) -> &'static str {
    match unary {
        Unary::Not => "Not",
        Unary::Neg => "Neg",
        Unary::Abs => "Abs",
        Unary::Sqrt => "Sqrt",
        Unary::Reciprocal => "Reciprocal",
        Unary::Exp => "Exp",
        Unary::Cos => "Cos",
        Unary::Sin => "Sin",
        Unary::Floor => "Floor",
        Unary::IsNan => "IsNaN",
        Unary::Ceil => "Ceil",
        Unary::Round => "Round",
        Unary::Sign => "Sign",
        Unary::Log => "Log",
        Unary::Tanh => "Tanh",
        Unary::Sigmoid => "Sigmoid",
        Unary::Erf => "Erf",
    }
}

fn binary_name(binary: Binary) -> &'static str {
    match binary {
        Binary::Add => "Add",
        Binary::Sub => "Sub",
        Binary::Mul => "Mul",
        Binary::Div => "Div",
        Binary::Mod => "Mod",
        Binary::Pow => "Pow",
        Binary::And => "And",
        Binary::Or => "Or",
        Binary::Equal => "Equal",
        Binary::Less => "Less",
        Binary::LessOrEqual => "LessOrEqual",
        Binary::Greater => "Greater",
        Binary::GreaterOrEqual => "GreaterOrEqual",
        Binary::Max => "Max",
        Binary::Min => "Min",
    }
}

fn reduce_name(reduce: Reduce) -> &'static str {
    match reduce {
        Reduce::Sum => "ReduceSum",
        Reduce::Mean => "ReduceMean",
        Reduce::Max => "ReduceMax",
        Reduce::Min => "ReduceMin",
        Reduce::Prod => "ReduceProd",
    }
}
