//! Programs without what a pass would have saved. They compute the same as those of the compiler.

use crate::graph::{Graph, Op, Origin};
use crate::lower::RING;
use crate::ranges::bounds::Ranges;
use ombra_ir::Result;
use ombra_ir::infer::push_like;
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::op::Op as M;
use ombra_ir::plain::Tensor;
use ombra_ir::ty::Sharing;

/// A score this far below another one has no weight in a softmax.
const FAR_BELOW: f64 = 16.0;

/// Softmaxes over all positions: what the mask removes is pushed below everything else, as exporters write it.
///
/// # Errors
/// Those of building a graph; none for a graph that is well typed.
pub fn unpack_masks(graph: &mut Graph, ranges: &Ranges) -> Result<()> {
    for id in graph.topological() {
        let Some(&Op::MaskedSoftmax { axis }) = graph.op(id) else { continue };
        let (Some(x), Some(mask)) = (graph.operand(id, 0), graph.operand(id, 1)) else { continue };
        let origin = graph.node(id)?.origin.clone();
        let greatest = ranges.size(x).unwrap_or(FAR_BELOW);
        let unnamed = || Origin { value: String::new(), ..origin.clone() };
        let zero = graph.add_const(Tensor::f32(&[1], vec![0.0])?, unnamed())?;
        let far = graph.add_const(Tensor::f32(&[1], vec![-(2.0 * greatest + FAR_BELOW) as f32])?, unnamed())?;
        let added = graph.add(Op::WHERE, &[mask, zero, far], unnamed())?;
        let sum = graph.add(Op::ADD, &[x, added], unnamed())?;
        let dense = graph.add(Op::Softmax { axis }, &[sum], origin)?;
        graph.replace_all_uses(id, dense)?;
    }
    graph.remove_dead();
    Ok(())
}

/// An expanded module in which every comparison looks at all bits and every function runs in the program's ring, but for
/// rings that ops make themselves.
///
/// # Errors
/// A type that does not follow; none for a module that the verifier passes.
pub fn widen(expanded: &Module) -> Result<Module> {
    let limbs = limbs(expanded);
    let mut module = Module { ops: Vec::with_capacity(expanded.ops.len()), ..expanded.clone() };
    let mut ids: Vec<Id> = Vec::with_capacity(expanded.ops.len());
    for (at, node) in expanded.ops.iter().enumerate() {
        let args: Vec<Id> = node.args.iter().map(|a| ids[a.index()]).collect();
        let in_limbs = limbs[at] || node.args.first().is_some_and(|a| limbs[a.index()]);
        let op = match &node.op {
            op if in_limbs => op.clone(),
            M::Narrow { .. } => {
                ids.push(args[0]);
                continue;
            }
            M::Truncate { by: 0, .. } if module.ty(args[0]).sharing == Sharing::Shared => {
                ids.push(args[0]);
                continue;
            }
            M::Truncate { by: 0, .. } => M::Reshare,
            M::Truncate { by, .. } => {
                M::Truncate { by: *by, bits: module.ty(args[0]).as_ring().map_or(RING, |(bits, _)| bits) }
            }
            M::BitToRing { .. } => M::BitToRing { bits: RING },
            M::Msb { .. } => M::Msb { width: RING, drop: 0 },
            M::RowMax { shape, .. } => M::RowMax { shape: shape.clone(), width: RING, drop: 0 },
            M::ArgMax { .. } => M::ArgMax { width: RING },
            other => other.clone(),
        };
        ids.push(push_like(&mut module, node, op, &args)?);
    }
    Ok(module)
}

/// Values in rings that an op itself makes, and what meets them there: these rings are part of what is computed.
fn limbs(module: &Module) -> Vec<bool> {
    let ring = |id: usize| module.ops[id].ty.as_ring().map(|(bits, _)| bits);
    let makes_ring = |n: &Node| match n.op {
        M::Cut { .. } | M::Lift { .. } | M::ExpDigits { .. } | M::Lookup { .. } => true,
        M::Truncate { by, bits } => by > 0 && ring(n.args[0].index()).is_some_and(|from| bits <= from - by),
        _ => false,
    };
    let mut found: Vec<bool> = module.ops.iter().map(makes_ring).collect();
    // The ring of what is cut or lifted follows from its operand's.
    for node in module.ops.iter().filter(|n| matches!(n.op, M::Cut { .. } | M::Lift { .. })) {
        for arg in node.args.iter().map(|a| a.index()) {
            found[arg] |= ring(arg) != Some(RING);
        }
    }
    loop {
        let before = found.iter().filter(|f| **f).count();
        for (at, node) in module.ops.iter().enumerate() {
            // What is narrowed from such a ring, or divided into one, stays in one of its own.
            let goes_on = match node.op {
                M::Narrow { .. } => true,
                M::Truncate { .. } => ring(at) != Some(RING),
                _ => false,
            };
            found[at] |= goes_on && node.args.iter().any(|a| found[a.index()]);
            let alike: Vec<usize> = node
                .args
                .iter()
                .map(|a| a.index())
                .filter(|&a| ring(a).is_some() && ring(a) == ring(at) && ring(a) != Some(RING))
                .collect();
            let all = alike.iter().any(|&a| found[a]) || found[at] && !makes_ring(node);
            if all {
                found[at] |= !alike.is_empty();
                alike.into_iter().for_each(|a| found[a] = true);
            }
        }
        if found.iter().filter(|f| **f).count() == before {
            return found;
        }
    }
}
