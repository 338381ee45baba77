//! What operators prove of their results, without measurement.

use crate::graph::{Graph, Op, ValueId};
use ombra_ir::plain::{self, Binary, Unary};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of every value, from one walk through the graph.
pub(super) struct Facts {
    least: BTreeMap<ValueId, f64>,
    unit: BTreeSet<ValueId>,
}

impl Facts {
    /// Facts of all values of `graph`.
    pub(super) fn new(graph: &Graph) -> Facts {
        let mut facts = Facts { least: BTreeMap::new(), unit: BTreeSet::new() };
        for v in graph.topological() {
            facts.least.insert(v, least(graph, v, &facts));
            if is_unit(graph, v, &facts) {
                facts.unit.insert(v);
            }
        }
        facts
    }

    /// A number that no element of a value is below; −∞ where nothing is known.
    pub(super) fn at_least(&self, v: ValueId) -> f64 {
        self.least.get(&v).copied().unwrap_or(f64::NEG_INFINITY)
    }

    /// Whether no element of a value is above 1 in size, whatever the inputs are.
    pub(super) fn is_unit(&self, v: ValueId) -> bool {
        self.unit.contains(&v)
    }
}

/// The same number of `v`, from those of its operands.
fn least(graph: &Graph, v: ValueId, facts: &Facts) -> f64 {
    let args = graph.operands(v);
    let of = |i: usize| args.get(i).map_or(f64::NEG_INFINITY, |&a| facts.at_least(a));
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

fn is_unit(graph: &Graph, v: ValueId, facts: &Facts) -> bool {
    match graph.op(v) {
        Some(Op::Softmax { .. } | Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. }) => true,
        Some(Op::Sigmoid | Op::Tanh | Op::Erf) => true,
        Some(Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Expand { .. }) => {
            graph.operand(v, 0).is_some_and(|x| facts.is_unit(x))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Origin;
    use ombra_ir::plain::Tensor;

    #[test]
    fn sums_of_sums_are_looked_at_once_each() {
        let mut g = Graph::new();
        let mut x = g.add_const(Tensor::scalar_f32(1.0), Origin::default()).expect("a constant");
        for _ in 0..200 {
            x = g.add(Op::Add, &[x, x], Origin::default()).expect("it fits");
        }
        let facts = Facts::new(&g);
        assert_eq!(facts.at_least(x), libm::exp2(200.0));
        assert!(!facts.is_unit(x));
    }
}
