//! Who computes what: the typed graph folded by layer, role and owner, for reports.
//!
//! Roles follow from structure, not from names: in a layer, what leads to a softmax and what it leads to is attention,
//! until a norm after it begins the feed-forward part.

use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use ombra_ir::plan::{Part, Place, Role};
use std::collections::BTreeMap;

/// The parts of a graph with owners: embedding first, then layers, then head.
pub fn partition(graph: &Graph) -> Vec<Part> {
    let roles = roles(graph);
    let mut parts: BTreeMap<(Option<u32>, Role, Place), Part> = BTreeMap::new();
    for (id, node) in graph.iter() {
        let Some(&role) = roles.get(&id) else { continue };
        let place = match node.owner {
            Owner::Public => Place::Everybody,
            Owner::Client => Place::Client,
            Owner::Server => Place::Server,
            Owner::Secret => Place::Mpc,
        };
        let layer = node.origin.layer.filter(|_| matches!(role, Role::Attention | Role::FeedForward));
        let part = parts.entry((layer, role, place)).or_insert(Part {
            layer,
            role,
            place,
            nodes: 0,
            public_weights: 0,
            private_weights: 0,
        });
        part.nodes = part.nodes.saturating_add(1);
        for operand in graph.operands(id) {
            let Ok(found) = graph.node(operand) else { continue };
            if !matches!(found.op, Op::Weight { .. }) {
                continue;
            }
            let elements = found.shape.iter().map(|d| d.as_constant().and_then(|n| u64::try_from(n).ok()).unwrap_or(0));
            let elements = elements.fold(1, u64::saturating_mul);
            let sum = if found.owner == Owner::Public { &mut part.public_weights } else { &mut part.private_weights };
            *sum = sum.saturating_add(elements);
        }
    }
    let mut parts: Vec<Part> = parts.into_values().collect();
    parts.sort_by_key(|p| {
        let place = match p.role {
            Role::Structure | Role::Weights | Role::Embedding => 0,
            Role::Attention | Role::FeedForward => 1,
            Role::Head => 2,
        };
        (place, p.layer, p.role, p.place)
    });
    parts
}

/// What a node is within its layer, as far as has been seen from the front.
#[derive(Clone, Copy, Default)]
struct Seen {
    layer: bool,
    softmax: bool,
    norm_after: bool,
}

/// Roles of the nodes that compute; inputs, weights, constants and what follows from sizes alone have none.
fn roles(graph: &Graph) -> BTreeMap<ValueId, Role> {
    let order = graph.topological();
    let layer_of = |id: ValueId| graph.node(id).ok().and_then(|n| n.origin.layer);
    let is_softmax = |id: ValueId| matches!(graph.op(id), Some(Op::Softmax { .. } | Op::MaskedSoftmax { .. }));
    let is_norm = |id: ValueId| matches!(graph.op(id), Some(Op::RmsNorm { .. } | Op::LayerNorm { .. }));
    // What a softmax of the same layer follows from.
    let mut before: BTreeMap<ValueId, Option<u32>> = BTreeMap::new();
    for &id in order.iter().rev() {
        let layer = layer_of(id);
        let leads = is_softmax(id) || before.get(&id) == Some(&layer);
        if leads && layer.is_some() {
            before.insert(id, layer);
            for operand in graph.operands(id).into_iter().filter(|&o| layer_of(o) == layer) {
                before.insert(operand, layer);
            }
        }
    }
    let mut seen: BTreeMap<ValueId, Seen> = BTreeMap::new();
    let mut roles = BTreeMap::new();
    for id in order {
        let layer = layer_of(id);
        let mut now = Seen { layer: layer.is_some(), softmax: is_softmax(id), norm_after: false };
        for operand in graph.operands(id) {
            let of = seen.get(&operand).copied().unwrap_or_default();
            now.layer |= of.layer;
            if layer_of(operand) == layer {
                now.softmax |= of.softmax;
                now.norm_after |= of.norm_after || of.softmax && is_norm(id);
            }
        }
        seen.insert(id, now);
        let computes = !matches!(
            graph.op(id),
            None | Some(
                Op::Input { .. }
                    | Op::Weight { .. }
                    | Op::Tensor(TensorOp::Constant(_) | TensorOp::Sizes { .. } | TensorOp::Iota { .. })
            )
        );
        if !computes {
            continue;
        }
        let owner = graph.node(id).map(|n| n.owner).ok();
        let role = match (layer, now) {
            _ if owner == Some(Owner::Public) => Role::Structure,
            _ if owner == Some(Owner::Server) => Role::Weights,
            (Some(_), _) if before.get(&id) == Some(&layer) => Role::Attention,
            (Some(_), Seen { norm_after: true, .. }) => Role::FeedForward,
            (Some(_), Seen { softmax: true, .. }) => Role::Attention,
            (Some(_), _) => Role::FeedForward,
            (None, Seen { layer: true, .. }) => Role::Head,
            (None, _) => Role::Embedding,
        };
        roles.insert(id, role);
    }
    roles
}
