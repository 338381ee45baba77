//! Reshapes away from products.
//!
//! Exporters flatten `[batch, seq, k]`, or heads of it, to `[batch·seq, k]` around a product with a weight. A product with a
//! matrix, and an element-wise operation with a vector along the last axis or a scalar, commute with any reshape that keeps
//! the last axis; moved behind them, two reshapes meet and cancel, and the sequence stays an axis of its own, which later
//! passes need. Nothing is computed that was not, and no owner changes. Only secret values move.

use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use ombra_ir::{Dim, Result};

/// Moves reshapes behind products and merges neighbours, until nothing changes.
pub fn lift_reshapes(graph: &mut Graph) -> Result<()> {
    loop {
        let mut changed = false;
        for id in graph.topological() {
            changed |= lift(graph, id)?;
        }
        graph.remove_dead();
        if !changed {
            return Ok(());
        }
    }
}

fn lift(graph: &mut Graph, id: ValueId) -> Result<bool> {
    let Some(op) = graph.op(id).cloned() else { return Ok(false) };
    if graph.users(id).is_empty() && !graph.is_output(id) {
        return Ok(false);
    }
    if graph.node(id)?.owner != Owner::Secret {
        return Ok(false);
    }
    let operands = graph.operands(id);
    let origin = graph.node(id)?.origin.clone();
    match op {
        Op::Tensor(TensorOp::Reshape { shape }) => {
            let x = operands[0];
            if graph.shape(x) == shape {
                graph.replace_all_uses(id, x)?;
                return Ok(true);
            }
            let Some(Op::Tensor(TensorOp::Reshape { .. })) = graph.op(x) else { return Ok(false) };
            let source = graph.operands(x)[0];
            let new = graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[source], origin)?;
            graph.replace_all_uses(id, new)?;
            Ok(true)
        }
        Op::MATMUL => {
            let (x, w) = (operands[0], operands[1]);
            if graph.shape(w).len() != 2 {
                return Ok(false);
            }
            let Some(source) = flattened(graph, x)? else { return Ok(false) };
            let product = graph.add(Op::MATMUL, &[source, w], origin.clone())?;
            let shape = graph.shape(id).to_vec();
            let new = graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[product], origin)?;
            graph.replace_all_uses(id, new)?;
            Ok(true)
        }
        Op::ADD | Op::SUB | Op::MUL | Op::DIV => {
            for (slot, other) in [(0, 1), (1, 0)] {
                let Some(source) = flattened(graph, operands[slot])? else { continue };
                let small = graph.shape(operands[other]);
                let leading = small.len().saturating_sub(1);
                if small.len() > 1 && !small[..leading].iter().all(|d| d.is(1))
                    || small.len() > graph.shape(source).len()
                {
                    continue;
                }
                let mut args = [source, source];
                args[other] = operands[other];
                let result = graph.add(op.clone(), &args, origin.clone())?;
                if graph.shape(result) != graph.shape(source) {
                    continue;
                }
                let shape = graph.shape(id).to_vec();
                let new = graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[result], origin)?;
                graph.replace_all_uses(id, new)?;
                return Ok(true);
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// What a reshape makes of its operand by merging leading axes alone: the operand, where the last axis stays, or the operand
/// with its trailing axes merged, where they become the last one, as heads do.
fn flattened(graph: &mut Graph, id: ValueId) -> Result<Option<ValueId>> {
    let Some(Op::Tensor(TensorOp::Reshape { shape })) = graph.op(id).cloned() else { return Ok(None) };
    let (Some(source), Some((last, leading))) = (graph.operand(id, 0), shape.split_last()) else { return Ok(None) };
    let from = graph.shape(source).to_vec();
    if from.len() > shape.len() && from.len() >= 2 && from.last() == Some(last) {
        return Ok(Some(source));
    }
    for kept in leading.len() + 1..from.len().saturating_sub(1) {
        let merged = from[kept..].iter().try_fold(Dim::constant(1), |product, dim| product.mul(dim))?;
        if merged == *last {
            let shape = from[..kept].iter().cloned().chain([merged]).collect();
            let origin = graph.node(id)?.origin.clone();
            return graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[source], origin).map(Some);
        }
    }
    Ok(None)
}
