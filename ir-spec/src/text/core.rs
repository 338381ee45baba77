//! Attributes of the MPC ops, both ways.

use super::attr::{Attr, Attrs, word, wrong};
use crate::diag::Result;
use crate::op::Op;

/// The attributes of an op in the order of the text form.
pub(super) fn attrs(op: &Op) -> Vec<(&'static str, Attr<'_>)> {
    let int = |n: i64| Attr::Int(n);
    match op {
        Op::Public { value } => vec![("value", int((*value).into()))],
        Op::Encode { bits, scale } => vec![("bits", int((*bits).into())), ("scale", int((*scale).into()))],
        Op::PublicWeight { name } | Op::Weight { name } => vec![("name", Attr::Text(name))],
        Op::Input { slot }
        | Op::ClientInts { slot }
        | Op::State { slot }
        | Op::Reveal { slot }
        | Op::SetState { slot } => vec![("slot", int((*slot).into()))],
        Op::MulInt { k } | Op::AddInt { k } => vec![("k", int(*k))],
        Op::Upscale { by } | Op::Truncate { by } | Op::Cut { by } => vec![("by", int((*by).into()))],
        Op::SetScale { scale } => vec![("scale", int((*scale).into()))],
        Op::ExpDigits { scale, tail } => {
            let mut attrs = vec![("scale", int((*scale).into()))];
            attrs.extend(tail.then(|| ("tail", word(true))));
            attrs
        }
        Op::MatMul { trans_b } => vec![("trans_b", word(*trans_b))],
        Op::ReduceSum { axis } | Op::Concat { axis } | Op::Gather { axis } => vec![("axis", int((*axis).into()))],
        Op::Narrow { bits } | Op::BitToRing { bits } | Op::Extend { bits } => vec![("bits", int((*bits).into()))],
        Op::Reshape { shape }
        | Op::Expand { shape }
        | Op::Random { shape }
        | Op::Unpack { shape }
        | Op::RowSum { shape }
        | Op::RowExpand { shape } => vec![("shape", Attr::Shape(shape))],
        Op::Transpose { perm } => vec![("perm", Attr::Ints(perm.iter().map(|p| usize::from(*p)).collect()))],
        Op::Slice { axis, start, len } => {
            vec![("axis", int((*axis).into())), ("start", Attr::Size(start)), ("len", Attr::Size(len))]
        }
        Op::Msb { width, drop } => vec![("width", int((*width).into())), ("drop", int((*drop).into()))],
        Op::ArgMax { width } => vec![("width", int((*width).into()))],
        Op::RowMax { shape, width, drop } => {
            vec![("shape", Attr::Shape(shape)), ("width", int((*width).into())), ("drop", int((*drop).into()))]
        }
        Op::Exp { max } => vec![("max", int((*max).into()))],
        Op::Reciprocal { min_log2, max_log2, scale }
        | Op::Div { min_log2, max_log2, scale }
        | Op::Log { min_log2, max_log2, scale } => vec![
            ("min_log2", int((*min_log2).into())),
            ("max_log2", int((*max_log2).into())),
            ("scale", int((*scale).into())),
        ],
        Op::Sqrt { min_log4, max_log4, scale } | Op::Rsqrt { min_log4, max_log4, scale } => vec![
            ("min_log4", int((*min_log4).into())),
            ("max_log4", int((*max_log4).into())),
            ("scale", int((*scale).into())),
        ],
        Op::RatioSoftmax { square, shift, eps, min_log2, max_log2 } => vec![
            ("square", word(*square)),
            ("shift", Attr::Bits(*shift)),
            ("eps", Attr::Bits(*eps)),
            ("min_log2", int((*min_log2).into())),
            ("max_log2", int((*max_log2).into())),
        ],
        Op::Gelu { tanh } => vec![("tanh", word(*tanh))],
        Op::RmsNorm { eps, length, scale } | Op::LayerNorm { eps, length, scale } => {
            vec![("eps", Attr::Bits(*eps)), ("length", int((*length).into())), ("scale", int((*scale).into()))]
        }
        Op::Add
        | Op::Sub
        | Op::Neg
        | Op::Mul
        | Op::Pack
        | Op::Reshare
        | Op::Xor
        | Op::Not
        | Op::And
        | Op::Embed
        | Op::Softmax
        | Op::Silu
        | Op::Tanh
        | Op::Sigmoid
        | Op::Erf
        | Op::Softplus => Vec::new(),
    }
}

/// The op of a name, with its attributes.
pub(super) fn make(name: &str, a: &mut Attrs) -> Result<Op> {
    Ok(match name {
        "public" => Op::Public { value: a.int("value")? },
        "encode" => Op::Encode { bits: a.int("bits")?, scale: a.int("scale")? },
        "public_weight" => Op::PublicWeight { name: a.text("name")? },
        "weight" => Op::Weight { name: a.text("name")? },
        "input" => Op::Input { slot: a.int("slot")? },
        "client_ints" => Op::ClientInts { slot: a.int("slot")? },
        "state" => Op::State { slot: a.int("slot")? },
        "random" => Op::Random { shape: a.shape("shape")? },
        "add" => Op::Add,
        "sub" => Op::Sub,
        "neg" => Op::Neg,
        "mul_int" => Op::MulInt { k: a.int("k")? },
        "add_int" => Op::AddInt { k: a.int("k")? },
        "upscale" => Op::Upscale { by: a.int("by")? },
        "set_scale" => Op::SetScale { scale: a.int("scale")? },
        "mul" => Op::Mul,
        "matmul" => Op::MatMul { trans_b: a.flag("trans_b")? },
        "reduce_sum" => Op::ReduceSum { axis: a.int("axis")? },
        "narrow" => Op::Narrow { bits: a.int("bits")? },
        "cut" => Op::Cut { by: a.int("by")? },
        "reshape" => Op::Reshape { shape: a.shape("shape")? },
        "transpose" => Op::Transpose { perm: a.ints("perm")? },
        "slice" => Op::Slice { axis: a.int("axis")?, start: a.size("start")?, len: a.size("len")? },
        "concat" => Op::Concat { axis: a.int("axis")? },
        "expand" => Op::Expand { shape: a.shape("shape")? },
        "gather" => Op::Gather { axis: a.int("axis")? },
        "pack" => Op::Pack,
        "unpack" => Op::Unpack { shape: a.shape("shape")? },
        "row_sum" => Op::RowSum { shape: a.shape("shape")? },
        "row_expand" => Op::RowExpand { shape: a.shape("shape")? },
        "truncate" => Op::Truncate { by: a.int("by")? },
        "reshare" => Op::Reshare,
        "extend" => Op::Extend { bits: a.int("bits")? },
        "msb" => Op::Msb { width: a.int("width")?, drop: a.int("drop")? },
        "xor" => Op::Xor,
        "not" => Op::Not,
        "and" => Op::And,
        "bit_to_ring" => Op::BitToRing { bits: a.int("bits")? },
        "exp_digits" => Op::ExpDigits { scale: a.int("scale")?, tail: a.has("tail") && a.flag("tail")? },
        "row_max" => Op::RowMax { shape: a.shape("shape")?, width: a.int("width")?, drop: a.int("drop")? },
        "arg_max" => Op::ArgMax { width: a.int("width")? },
        "embed" => Op::Embed,
        "reveal" => Op::Reveal { slot: a.int("slot")? },
        "set_state" => Op::SetState { slot: a.int("slot")? },
        "exp" => Op::Exp { max: a.int("max")? },
        "reciprocal" => {
            let (min_log2, max_log2) = (a.int("min_log2")?, a.int("max_log2")?);
            Op::Reciprocal { min_log2, max_log2, scale: a.int("scale")? }
        }
        "div" => Op::Div { min_log2: a.int("min_log2")?, max_log2: a.int("max_log2")?, scale: a.int("scale")? },
        "sqrt" => Op::Sqrt { min_log4: a.int("min_log4")?, max_log4: a.int("max_log4")?, scale: a.int("scale")? },
        "rsqrt" => Op::Rsqrt { min_log4: a.int("min_log4")?, max_log4: a.int("max_log4")?, scale: a.int("scale")? },
        "log" => Op::Log { min_log2: a.int("min_log2")?, max_log2: a.int("max_log2")?, scale: a.int("scale")? },
        "softmax" => Op::Softmax,
        "ratio_softmax" => Op::RatioSoftmax {
            square: a.flag("square")?,
            shift: a.bits("shift")?,
            eps: a.bits("eps")?,
            min_log2: a.int("min_log2")?,
            max_log2: a.int("max_log2")?,
        },
        "gelu" => Op::Gelu { tanh: a.flag("tanh")? },
        "silu" => Op::Silu,
        "tanh" => Op::Tanh,
        "sigmoid" => Op::Sigmoid,
        "erf" => Op::Erf,
        "softplus" => Op::Softplus,
        "rms_norm" => Op::RmsNorm { eps: a.bits("eps")?, length: a.int("length")?, scale: a.int("scale")? },
        "layer_norm" => Op::LayerNorm { eps: a.bits("eps")?, length: a.int("length")?, scale: a.int("scale")? },
        _ => return Err(wrong(name, "there is no such op".into())),
    })
}
