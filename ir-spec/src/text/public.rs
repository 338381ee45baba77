//! Attributes of operators on tensors, of the public program and elsewhere, both ways.

use super::attr::{Attr, Attrs, flag, wrong};
use crate::diag::Result;
use crate::plain::{Binary, Op, Reduce, Unary};

const BINARY: [Binary; 15] = [
    Binary::Add,
    Binary::Sub,
    Binary::Mul,
    Binary::Div,
    Binary::Mod,
    Binary::Pow,
    Binary::And,
    Binary::Or,
    Binary::Equal,
    Binary::Less,
    Binary::LessOrEqual,
    Binary::Greater,
    Binary::GreaterOrEqual,
    Binary::Max,
    Binary::Min,
];

const REDUCE: [Reduce; 5] = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min, Reduce::Prod];

/// The attributes of an operator in the order of the text form.
pub fn tensor_attrs(op: &Op) -> Vec<(&'static str, Attr<'_>)> {
    let int = |n: usize| Attr::Index(n);
    match op {
        Op::Constant(value) => vec![("value", Attr::Tensor(value))],
        Op::Sizes { shape, values } => vec![("shape", Attr::Ints(shape.clone())), ("values", Attr::Shape(values))],
        Op::Iota { start, len, step } => {
            vec![("start", Attr::Size(start)), ("len", Attr::Size(len)), ("step", Attr::Int(*step))]
        }
        Op::Cast { to } => vec![("to", Attr::Word(to.name()))],
        Op::Reshape { shape } | Op::Expand { shape } => vec![("shape", Attr::Shape(shape))],
        Op::Transpose { perm } => vec![("perm", Attr::Ints(perm.clone()))],
        Op::Concat { axis } | Op::Gather { axis } | Op::GatherElements { axis } => vec![("axis", int(*axis))],
        Op::Slice { axis, start, len, step } => vec![
            ("axis", int(*axis)),
            ("start", Attr::Size(start)),
            ("len", Attr::Size(len)),
            ("step", Attr::Int(*step)),
        ],
        Op::Tile { repeats } => vec![("repeats", Attr::Shape(repeats))],
        Op::Trilu { upper, k } => vec![("upper", flag(*upper)), ("k", Attr::Int(*k))],
        Op::ConstantOfShape { shape, value } => vec![("shape", Attr::Shape(shape)), ("value", Attr::Tensor(value))],
        Op::GatherNd { batch_dims } => vec![("batch_dims", int(*batch_dims))],
        Op::CumSum { axis, exclusive, reverse } => {
            vec![("axis", int(*axis)), ("exclusive", flag(*exclusive)), ("reverse", flag(*reverse))]
        }
        Op::Reduce { axes, keepdims, .. } => vec![("axes", Attr::Ints(axes.clone())), ("keepdims", flag(*keepdims))],
        Op::Range
        | Op::Identity
        | Op::ScatterNd
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Where
        | Op::Clip
        | Op::MatMul
        | Op::ArgMax => Vec::new(),
    }
}

/// The operator of a name, with its attributes.
///
/// # Errors
/// `E0371` for a name that is none, and for wrong attributes.
pub fn tensor_op(name: &str, a: &mut Attrs) -> Result<Op> {
    Ok(match name {
        "constant" => Op::Constant(a.tensor("value")?),
        "sizes" => Op::Sizes { shape: a.ints("shape")?, values: a.shape("values")? },
        "iota" => Op::Iota { start: a.size("start")?, len: a.size("len")?, step: a.int("step")? },
        "range" => Op::Range,
        "identity" => Op::Identity,
        "cast" => Op::Cast { to: a.dtype("to")? },
        "reshape" => Op::Reshape { shape: a.shape("shape")? },
        "expand" => Op::Expand { shape: a.shape("shape")? },
        "transpose" => Op::Transpose { perm: a.ints("perm")? },
        "concat" => Op::Concat { axis: a.int("axis")? },
        "slice" => {
            let (axis, start) = (a.int("axis")?, a.size("start")?);
            Op::Slice { axis, start, len: a.size("len")?, step: a.int("step")? }
        }
        "tile" => Op::Tile { repeats: a.shape("repeats")? },
        "trilu" => Op::Trilu { upper: a.flag("upper")?, k: a.int("k")? },
        "constant_of_shape" => Op::ConstantOfShape { shape: a.shape("shape")?, value: a.tensor("value")? },
        "gather" => Op::Gather { axis: a.int("axis")? },
        "gather_nd" => Op::GatherNd { batch_dims: a.int("batch_dims")? },
        "gather_elements" => Op::GatherElements { axis: a.int("axis")? },
        "scatter_nd" => Op::ScatterNd,
        "where" => Op::Where,
        "clip" => Op::Clip,
        "matmul" => Op::MatMul,
        "arg_max" => Op::ArgMax,
        "cum_sum" => {
            let axis = a.int("axis")?;
            Op::CumSum { axis, exclusive: a.flag("exclusive")?, reverse: a.flag("reverse")? }
        }
        _ => return by_kind(name, a),
    })
}

fn by_kind(name: &str, a: &mut Attrs) -> Result<Op> {
    if let Some(u) = Unary::ALL.into_iter().find(|u| u.name() == name) {
        return Ok(Op::Unary(u));
    }
    if let Some(b) = BINARY.into_iter().find(|b| b.name() == name) {
        return Ok(Op::Binary(b));
    }
    if let Some(kind) = REDUCE.into_iter().find(|r| r.name() == name) {
        return Ok(Op::Reduce { kind, axes: a.ints("axes")?, keepdims: a.flag("keepdims")? });
    }
    Err(wrong(name, "there is no such public operator".into()))
}
