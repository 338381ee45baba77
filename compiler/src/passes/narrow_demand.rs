//! Only what the outputs need: for the next token, the last position alone.
//!
//! Demand flows backwards from the outputs. Where every user of a value asks for the last element of one axis only, the
//! value is computed for that element only; where a value is needed whole by somebody (keys and values are), the others
//! get a slice of it. For a decoder this leaves the last layer's query, attention rows, MLP, the final norm and the
//! head with one position, and everything before whole. Values that are revealed do not change. Values of one owner are
//! only sliced: what the client computes keeps the names it has in the model.

use crate::graph::{Graph, Op, Origin, Owner, TensorOp, ValueId};
use ombra_ir::{Dim, Result};
use std::collections::BTreeMap;

/// What is needed of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Last(usize),
    Whole,
}

impl Need {
    fn join(self, other: Need) -> Need {
        match (self, other) {
            (Need::Nothing, n) | (n, Need::Nothing) => n,
            (a, b) if a == b => a,
            _ => Need::Whole,
        }
    }
}

/// Narrows `output` to the last element of `axis`; returns the value that replaces it. Other outputs stay whole.
pub fn narrow_demand(graph: &mut Graph, output: usize, axis: usize) -> Result<ValueId> {
    let order = graph.topological();
    let mut needs: BTreeMap<ValueId, Need> = BTreeMap::new();
    for (i, o) in graph.outputs.iter().enumerate() {
        let need = if i == output { Need::Last(axis) } else { Need::Whole };
        let entry = needs.entry(o.value).or_insert(Need::Nothing);
        *entry = entry.join(need);
    }
    for &id in order.iter().rev() {
        let need = needs.get(&id).copied().unwrap_or(Need::Nothing);
        for (slot, operand) in graph.operands(id).into_iter().enumerate() {
            let wanted = match need {
                Need::Nothing => Need::Nothing,
                Need::Whole => Need::Whole,
                Need::Last(_) if graph.node(id)?.owner != Owner::Secret => Need::Whole,
                Need::Last(axis) => request(graph, id, slot, operand, axis)?,
            };
            let entry = needs.entry(operand).or_insert(Need::Nothing);
            *entry = entry.join(wanted);
        }
    }
    let mut narrowed: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for &id in &order {
        let Some(&Need::Last(axis)) = needs.get(&id) else { continue };
        let node = graph.node(id)?.clone();
        let new = if node.owner != Owner::Secret || !carries(graph, id, axis)? {
            slice_last(graph, id, axis)?
        } else {
            let mut args = Vec::new();
            for (slot, operand) in graph.operands(id).into_iter().enumerate() {
                args.push(match (request(graph, id, slot, operand, axis)?, narrowed.get(&operand)) {
                    (Need::Last(_), Some(&n)) => n,
                    (Need::Last(a), None) => slice_last(graph, operand, a)?,
                    _ => operand,
                });
            }
            let mut op = node.op.clone();
            if let Op::Tensor(TensorOp::Reshape { shape } | TensorOp::Expand { shape }) = &mut op {
                shape[axis] = Dim::constant(1);
            }
            graph.add(op, &args, node.origin.clone())?
        };
        narrowed.insert(id, new);
    }
    let old = graph.outputs[output].value;
    let new = match narrowed.get(&old) {
        Some(&n) => n,
        None => slice_last(graph, old, axis)?,
    };
    graph.outputs[output].value = new;
    graph.remove_dead();
    Ok(new)
}

/// The last element of `axis` of `output` takes its place: everything before it stays whole.
pub fn take_last(graph: &mut Graph, output: usize, axis: usize) -> Result<()> {
    graph.outputs[output].value = slice_last(graph, graph.outputs[output].value, axis)?;
    Ok(())
}

fn slice_last(graph: &mut Graph, id: ValueId, axis: usize) -> Result<ValueId> {
    let size = graph.shape(id)[axis].clone();
    if size.is(1) {
        return Ok(id);
    }
    let start = size.sub(&Dim::constant(1))?;
    let origin = Origin { node: graph.node(id)?.origin.node.clone(), ..Origin::default() };
    graph.add(Op::Tensor(TensorOp::Slice { axis, start, len: Dim::constant(1), step: 1 }), &[id], origin)
}

/// Whether the op can be computed for the last element of an axis alone.
fn carries(graph: &Graph, id: ValueId, axis: usize) -> Result<bool> {
    let broadcasts = matches!(graph.op(id), Some(Op::Tensor(TensorOp::Expand { .. })));
    for (slot, operand) in graph.operands(id).into_iter().enumerate() {
        if broadcasts || matches!(request(graph, id, slot, operand, axis)?, Need::Last(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What computing the last element of `axis` of `id` needs of its operand.
fn request(graph: &Graph, id: ValueId, slot: usize, operand: ValueId, axis: usize) -> Result<Need> {
    let node = graph.node(id)?;
    let rank = node.shape.len();
    let from = graph.shape(operand);
    // The operand's own axis under right-aligned broadcasting, if it is not repeated along it.
    let aligned = || match (axis + from.len()).checked_sub(rank) {
        Some(a) if !from[a].is(1) => Need::Last(a),
        _ => Need::Whole,
    };
    Ok(match &node.op {
        Op::Tensor(
            TensorOp::Unary(_)
            | TensorOp::Binary(_)
            | TensorOp::Where
            | TensorOp::Cast { .. }
            | TensorOp::Expand { .. },
        )
        | Op::Pow(_)
        | Op::Relu
        | Op::Clamp { .. }
        | Op::Gelu { .. }
        | Op::Silu
        | Op::Softplus
        | Op::Quadratic { .. } => aligned(),
        Op::Tensor(TensorOp::MatMul) if axis + 1 == rank => Need::Whole,
        Op::Tensor(TensorOp::MatMul) if axis + 2 == rank => {
            if slot == 0 {
                Need::Last(from.len() - 2)
            } else {
                Need::Whole
            }
        }
        Op::Tensor(TensorOp::MatMul) => aligned(),
        Op::Softmax { axis: over } | Op::MaskedSoftmax { axis: over } | Op::RatioSoftmax { axis: over, .. }
            if *over != axis =>
        {
            aligned()
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::AffineNorm { .. } if axis + 1 != rank && slot == 0 => {
            Need::Last(axis)
        }
        Op::Tensor(TensorOp::Transpose { perm }) => Need::Last(perm[axis]),
        Op::Tensor(TensorOp::Slice { axis: over, .. }) if *over != axis => Need::Last(axis),
        Op::Tensor(TensorOp::Concat { axis: over }) if *over != axis => Need::Last(axis),
        // Axes of the index stand in the place of the one axis that is looked up.
        Op::Tensor(TensorOp::Gather { axis: over }) if slot == 0 && axis < *over => Need::Last(axis),
        Op::Tensor(TensorOp::Gather { axis: over }) if slot == 0 && axis + from.len() > rank + *over => {
            Need::Last(axis + from.len() - rank)
        }
        Op::Tensor(TensorOp::Reshape { shape }) => reshaped_axis(from, shape, axis)?.map_or(Need::Whole, Need::Last),
        _ => Need::Whole,
    })
}

/// The operand's axis that a reshape carries over unchanged to `axis`.
fn reshaped_axis(from: &[Dim], to: &[Dim], axis: usize) -> Result<Option<usize>> {
    let product = |dims: &[Dim]| dims.iter().try_fold(Dim::constant(1), |p, d| p.mul(d));
    let before = product(&to[..axis])?;
    for a in 0..from.len() {
        if from[a] == to[axis] && product(&from[..a])? == before {
            return Ok(Some(a));
        }
    }
    Ok(None)
}
