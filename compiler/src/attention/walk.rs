//! The way from queries, keys and values back to where they come from.

use ombra_ir::plain::Binary;
use std::collections::BTreeSet;

use super::is_activation;
use crate::graph::{Graph, Op, TensorOp, ValueId};
use crate::import::recognise::rotated;

/// `id` and what it is an arrangement of: the same elements in another order, repeated, or times a constant.
pub(super) fn arrangement(graph: &Graph, id: ValueId) -> Vec<ValueId> {
    let mut way = vec![id];
    let mut at = id;
    while let Some(next) = arranged(graph, at) {
        way.push(next);
        at = next;
    }
    way
}

fn arranged(graph: &Graph, id: ValueId) -> Option<ValueId> {
    match graph.op(id)? {
        Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Transpose { .. } | TensorOp::Expand { .. }) => {
            graph.operand(id, 0)
        }
        _ => factor(graph, id).map(|(rest, _)| rest),
    }
}

/// The operand and the factor of a product or quotient with a constant of one element, as one factor.
pub(super) fn factor(graph: &Graph, id: ValueId) -> Option<(ValueId, f64)> {
    let (a, b) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let scalar = |v: ValueId| graph.constant(v).and_then(|t| t.single_f32()).map(f64::from);
    match graph.op(id)? {
        Op::Tensor(TensorOp::Binary(Binary::Mul)) => scalar(b).map(|k| (a, k)).or_else(|| scalar(a).map(|k| (b, k))),
        Op::Tensor(TensorOp::Binary(Binary::Div)) => scalar(b).map(|k| (a, 1.0 / k)),
        _ => None,
    }
}

/// What was met on the way from a value back to a projection, a rotation or an input.
#[derive(Default)]
pub(super) struct Way {
    /// Everything on the way but sums of a rotation and what is behind them.
    pub passed: BTreeSet<ValueId>,
    /// Rotations: sums of numbers times cosines and turned numbers times sines.
    pub rotations: Vec<ValueId>,
    /// Inputs to which other values are appended.
    pub appended: Vec<ValueId>,
}

/// Goes back from `id` through what moves, joins, cuts and scales elements.
pub(super) fn back(graph: &Graph, id: ValueId) -> Way {
    let mut way = Way::default();
    let mut stack = vec![(id, false)];
    while let Some((at, joined)) = stack.pop() {
        if !way.passed.insert(at) {
            continue;
        }
        if rotated(graph, at).is_some() {
            way.rotations.push(at);
            continue;
        }
        match graph.op(at) {
            Some(Op::Input { .. }) if joined => way.appended.push(at),
            Some(Op::Tensor(TensorOp::Concat { .. })) => {
                let operands = graph.operands(at);
                // What others are appended to stands first.
                let first = operands.first().copied();
                let active = operands.into_iter().filter(|&o| is_activation(graph, o));
                stack.extend(active.map(|o| (o, joined || Some(o) == first)));
            }
            Some(Op::Tensor(TensorOp::Slice { .. } | TensorOp::Gather { .. })) => {
                stack.extend(graph.operand(at, 0).map(|o| (o, joined)))
            }
            _ => stack.extend(arranged(graph, at).map(|o| (o, joined))),
        }
    }
    way
}
