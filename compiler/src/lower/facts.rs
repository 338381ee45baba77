//! What operators prove of their results, without measurement.

use crate::graph::{Graph, Op, ValueId};
use ombra_ir::plain::{self, Binary, Unary};

/// A number that no element of a value is below; −∞ where nothing is known.
pub(super) fn at_least(graph: &Graph, v: ValueId) -> f64 {
    let args = graph.operands(v);
    let of = |i: usize| args.get(i).map_or(f64::NEG_INFINITY, |&a| at_least(graph, a));
    let unknown = f64::NEG_INFINITY;
    match graph.op(v) {
        Some(Op::Const(t)) => t.as_f32().map_or(unknown, |v| v.iter().fold(f64::INFINITY, |m, &x| m.min(f64::from(x)))),
        Some(
            Op::Relu
            | Op::Sigmoid
            | Op::Exp
            | Op::Sqrt
            | Op::Softplus
            | Op::Softmax { .. }
            | Op::MaskedSoftmax { .. }
            | Op::Public(plain::Op::Unary(Unary::Abs)),
        ) => 0.0,
        Some(Op::Pow(p)) if *p == 2.0 || *p == 0.5 => 0.0,
        Some(Op::Mul) if args.first() == args.get(1) => 0.0,
        Some(Op::Mul) if of(0) >= 0.0 && of(1) >= 0.0 => of(0) * of(1),
        Some(Op::Add | Op::Public(plain::Op::Binary(Binary::Add))) => of(0) + of(1),
        Some(Op::Max) => of(0).max(of(1)),
        Some(Op::Min) => of(0).min(of(1)),
        Some(Op::Where) => of(1).min(of(2)),
        Some(Op::ReduceMean { .. } | Op::ReduceMax { .. }) => of(0),
        Some(Op::ReduceSum { .. }) if of(0) >= 0.0 => of(0),
        Some(Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. } | Op::Gather { .. }) => {
            of(0)
        }
        Some(Op::Concat { .. }) => (0..args.len()).map(of).fold(f64::INFINITY, f64::min),
        _ => unknown,
    }
}

/// Whether no element of a value is above 1 in size, whatever the inputs are.
pub(super) fn is_unit(graph: &Graph, v: ValueId) -> bool {
    match graph.op(v) {
        Some(Op::Softmax { .. } | Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. }) => true,
        Some(Op::Sigmoid | Op::Tanh | Op::Erf) => true,
        Some(Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. }) => {
            graph.operand(v, 0).is_some_and(|x| is_unit(graph, x))
        }
        _ => false,
    }
}
