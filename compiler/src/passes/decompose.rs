//! Operators on secrets that have no lowering of their own, in terms of those that have one.
//!
//! Softmax works on the last axis, and so does the maximum: other axes are brought there. Values are the same up to
//! rounding, and owners do not change.

use crate::graph::{Graph, Op, Origin, Owner, ValueId};
use ombra_ir::{Dim, Result};

/// Rewrites every secret value whose operator needs it.
///
/// # Errors
/// Sizes beyond the limits of symbolic sizes.
pub fn decompose(graph: &mut Graph) -> Result<()> {
    for id in graph.topological() {
        if graph.node(id)?.owner != Owner::Secret {
            continue;
        }
        if let Some(new) = rewritten(graph, id)? {
            graph.replace_all_uses(id, new)?;
        }
    }
    graph.remove_dead();
    Ok(())
}

fn rewritten(graph: &mut Graph, id: ValueId) -> Result<Option<ValueId>> {
    let node = graph.node(id)?.clone();
    let args = graph.operands(id);
    // Values on the way are no values of the model: they have no name.
    let inner = Origin { value: String::new(), ..node.origin.clone() };
    let rank = args.first().map_or(0, |&x| graph.shape(x).len());
    match node.op {
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } | Op::RatioSoftmax { axis, .. } if axis + 1 != rank => {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(axis, rank - 1);
            let mut turned = Vec::with_capacity(args.len());
            for arg in args {
                let full = with_rank(graph, arg, rank, &inner)?;
                turned.push(graph.add(Op::Transpose { perm: perm.clone() }, &[full], inner.clone())?);
            }
            let mut op = node.op;
            if let Op::Softmax { axis } | Op::MaskedSoftmax { axis } | Op::RatioSoftmax { axis, .. } = &mut op {
                *axis = rank - 1;
            }
            let y = graph.add(op, &turned, inner)?;
            graph.add(Op::Transpose { perm }, &[y], node.origin).map(Some)
        }
        Op::ReduceMax { axes, .. } if axes != [rank.wrapping_sub(1)] => {
            let shape = graph.shape(args[0]).to_vec();
            let kept: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
            let perm: Vec<usize> = kept.iter().chain(&axes).copied().collect();
            let turned = graph.add(Op::Transpose { perm }, &[args[0]], inner.clone())?;
            let merged = axes.iter().try_fold(Dim::constant(1), |p, &a| p.mul(&shape[a]))?;
            let flat: Vec<Dim> = kept.iter().map(|&a| shape[a].clone()).chain([merged]).collect();
            let flat = graph.add(Op::Reshape { shape: flat }, &[turned], inner.clone())?;
            let max = graph.add(Op::ReduceMax { axes: vec![kept.len()], keepdims: false }, &[flat], inner)?;
            graph.add(Op::Reshape { shape: node.shape }, &[max], node.origin).map(Some)
        }
        _ => Ok(None),
    }
}

/// The value with leading axes of size 1 up to a rank.
fn with_rank(graph: &mut Graph, x: ValueId, rank: usize, origin: &Origin) -> Result<ValueId> {
    let shape = graph.shape(x);
    if shape.len() >= rank {
        return Ok(x);
    }
    let ones = std::iter::repeat_n(Dim::constant(1), rank - shape.len());
    let shape = ones.chain(shape.iter().cloned()).collect();
    graph.add(Op::Reshape { shape }, &[x], origin.clone())
}
