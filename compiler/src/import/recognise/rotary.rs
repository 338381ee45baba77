//! Rotary embeddings: pairs of numbers turned by angles that follow from positions.
//!
//! Angles that exporters compute from frequencies are public as they come. Others keep tables of cosines and sines as
//! weights, of which every position takes its row: they say nothing private, and a product with them under MPC would be
//! one of two secrets. Such tables become public here.

use std::collections::BTreeMap;

use ombra_ir::plain::{Binary, Tensor, Unary};
use ombra_ir::{Diagnostic, Dim, Result};

use super::{Match, both_orders, only};
use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use crate::import::ops::attention::are_angles;

/// A sum x · c + turned(x) · s, where turned(x) is every pair (a, b) as (-b, a).
pub(crate) struct Rotation {
    /// What is turned.
    pub(crate) x: ValueId,
    /// Cosines c and sines s. Whether they are angles is not known.
    pub(crate) angles: [ValueId; 2],
    /// Pairs are of an element of the first half and its place in the second, and not neighbours.
    pub(crate) of_halves: bool,
}

/// The rotation of pairs that `id` is.
pub(crate) fn rotated(graph: &Graph, id: ValueId) -> Option<Rotation> {
    both_orders(graph, id, &Op::ADD).into_iter().find_map(|(straight, across)| {
        both_orders(graph, across, &Op::MUL).into_iter().find_map(|(turned, s)| {
            let x = turned_of(graph, turned)?;
            both_orders(graph, straight, &Op::MUL).into_iter().find(|(y, _)| *y == x).map(|(_, c)| Rotation {
                x,
                angles: [c, s],
                of_halves: turned_halves(graph, turned).is_some(),
            })
        })
    })
}

/// A rotation by public angles, or by tables that become public.
pub(super) fn rotary(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let Some(Rotation { angles, .. }) = rotated(graph, id) else { return Ok(Match::No) };
    let owner = |v: ValueId| graph.node(v).map(|n| n.owner);
    let owners = [owner(angles[0])?, owner(angles[1])?];
    if owners == [Owner::Public; 2] {
        return Ok(Match::Seen);
    }
    if owners.iter().any(|o| !matches!(o, Owner::Public | Owner::Server)) {
        return Ok(Match::Near("its angles depend on more than weights, positions and lengths".into()));
    }
    let tables = [tables_of(graph, angles[0])?, tables_of(graph, angles[1])?];
    let known = match &tables {
        [cos, sin] if cos.len() == 1 && sin.len() == 1 => {
            let load = |name: &String| weights(name);
            let (Some(cos), Some(sin)) = (cos.first(), sin.first()) else { return Ok(Match::No) };
            if cos == sin { halves_are_angles(&load(cos)?) } else { are_angles(&load(cos)?, &load(sin)?) }
        }
        _ => false,
    };
    if !known {
        return Ok(Match::Near("its tables are not known to be cosines and sines".into()));
    }
    for angle in angles {
        let public = published(graph, angle, weights)?;
        graph.replace_all_uses(angle, public)?;
    }
    let mut names = tables.concat();
    names.sort();
    names.dedup();
    Ok(Match::Published(names))
}

/// Whether the two halves of the last axis of `table` are cosines and sines, in either order.
fn halves_are_angles(table: &Tensor) -> bool {
    let (Some(&width), Ok(values)) = (table.shape().last(), table.as_f32()) else { return false };
    if width < 2 || width % 2 != 0 {
        return false;
    }
    let half = |at: usize| {
        let rows = values.chunks_exact(width).flat_map(|row| row.iter().skip(at * width / 2).take(width / 2).copied());
        let rows: Vec<f32> = rows.collect();
        Tensor::f32(&[rows.len()], rows)
    };
    matches!((half(0), half(1)), (Ok(a), Ok(b)) if are_angles(&a, &b))
}

/// Names of the weights that `id` depends on.
fn tables_of(graph: &Graph, id: ValueId) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for a in graph.ancestors(id) {
        if let Op::Weight { name, .. } = &graph.node(a)?.op {
            names.push(name.clone());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// `id`, which depends on weights and public values, as a public value.
pub(super) fn published(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<ValueId> {
    let cone = graph.ancestors(id);
    let mut new: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for at in graph.topological().into_iter().filter(|at| cone.contains(at)) {
        let node = graph.node(at)?.clone();
        let public = match &node.op {
            _ if node.owner == Owner::Public => at,
            Op::Weight { name, transposed } => {
                let tensor = graph.add_const(weights(name)?, node.origin.clone())?;
                let mut perm: Vec<usize> = (0..node.shape.len()).collect();
                if *transposed && perm.len() >= 2 {
                    perm.swap(node.shape.len() - 2, node.shape.len() - 1);
                    graph.add(Op::Tensor(TensorOp::Transpose { perm }), &[tensor], node.origin)?
                } else {
                    tensor
                }
            }
            op => {
                let mut operands: Vec<ValueId> =
                    graph.operands(at).iter().map(|o| new.get(o).copied().unwrap_or(*o)).collect();
                let op = match op {
                    Op::Pow(exponent) => {
                        operands.push(graph.add_const(Tensor::scalar_f32(*exponent), node.origin.clone())?);
                        TensorOp::Binary(Binary::Pow)
                    }
                    op => op.tensor().cloned().ok_or_else(|| {
                        Diagnostic::unsupported("E0253", format!("a table made with {} is a rotary one", op.name()))
                    })?,
                };
                graph.add(Op::Tensor(op), &operands, node.origin)?
            }
        };
        new.insert(at, public);
    }
    new.get(&id).copied().ok_or_else(|| Diagnostic::internal("E0299", "a published table is missing"))
}

/// `x`, when `id` is x with every pair (a, b) as (-b, a): pairs of halves of the last axis, or of neighbours.
fn turned_of(graph: &Graph, id: ValueId) -> Option<ValueId> {
    if let Some(x) = turned_halves(graph, id) {
        return Some(x);
    }
    // Neighbours: both parts have an axis of their own, which a reshape joins with the last.
    let (Op::Tensor(TensorOp::Reshape { .. }), joined) = only(graph, id)? else { return None };
    let rank = graph.shape(joined).len();
    let parts = graph.operands(joined);
    let (Some(Op::Tensor(TensorOp::Concat { axis })), [b, a]) = (graph.op(joined), parts.as_slice()) else {
        return None;
    };
    if axis + 1 != rank || !graph.shape(joined).last()?.is(2) {
        return None;
    }
    let part = |v: ValueId| -> Option<(ValueId, i64)> {
        // Every second number of x, with an axis of size 1 behind, …
        if let Some((Op::Tensor(TensorOp::Reshape { .. }), inner)) = only(graph, v)
            && let Some((Op::Tensor(TensorOp::Slice { axis, start, step: 2, .. }), x)) = only(graph, inner)
            && axis + 1 == graph.shape(x).len()
        {
            return Some((x, start.as_constant()?));
        }
        // … or one of two of x in pairs.
        let (Op::Tensor(TensorOp::Slice { axis, start, step: 1, .. }), pairs) = only(graph, v)? else { return None };
        let (Op::Tensor(TensorOp::Reshape { .. }), x) = only(graph, pairs)? else { return None };
        (axis + 1 == graph.shape(pairs).len() && graph.shape(x) == graph.shape(id)).then_some((x, start.as_constant()?))
    };
    let negated = |v: ValueId| match only(graph, v)? {
        (Op::Tensor(TensorOp::Unary(Unary::Neg)), inner) => part(inner),
        (Op::Tensor(TensorOp::Reshape { .. }), inner) => {
            let (Op::Tensor(TensorOp::Unary(Unary::Neg)), sliced) = only(graph, inner)? else { return None };
            let (Op::Tensor(TensorOp::Slice { axis, start, step: 2, .. }), x) = only(graph, sliced)? else {
                return None;
            };
            (axis + 1 == graph.shape(x).len()).then_some((x, start.as_constant()?))
        }
        _ => None,
    };
    match (negated(*b)?, part(*a)?) {
        ((x, 1), (y, 0)) if x == y => Some(x),
        _ => None,
    }
}

/// `x`, when `id` is the second half of its last axis negated, then the first.
fn turned_halves(graph: &Graph, id: ValueId) -> Option<ValueId> {
    let parts = graph.operands(id);
    let (Some(Op::Tensor(TensorOp::Concat { axis })), [b, a]) = (graph.op(id), parts.as_slice()) else { return None };
    let half = |v: ValueId| match only(graph, v)? {
        (Op::Tensor(TensorOp::Slice { axis: over, start, len, step: 1 }), x) if over == axis => {
            Some((x, start.clone(), len.clone()))
        }
        _ => None,
    };
    let (Op::Tensor(TensorOp::Unary(Unary::Neg)), second) = only(graph, *b)? else { return None };
    let ((x, at, rest), (y, start, first)) = (half(second)?, half(*a)?);
    let whole = graph.shape(x).get(*axis)?;
    let fits = start.is(0) && at == first && first == rest && first.mul(&Dim::constant(2)).ok()? == *whole;
    (x == y && fits && axis + 1 == graph.shape(id).len()).then_some(x)
}
