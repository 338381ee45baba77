//! Reshapes away from products.
//!
//! Exporters flatten `[batch, seq, k]` to `[batch·seq, k]` around a product with a weight. A product with a matrix, and
//! an element-wise operation with a vector along the last axis or a scalar, commute with any reshape that keeps the last
//! axis; moved behind them, two reshapes meet and cancel, and the sequence stays an axis of its own, which later
//! passes need. Nothing is computed that was not, and no owner changes. Only secret values move.

use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use ombra_ir::Result;

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
            let Some(source) = flattened(graph, x) else { return Ok(false) };
            let product = graph.add(Op::MATMUL, &[source, w], origin.clone())?;
            let shape = graph.shape(id).to_vec();
            let new = graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[product], origin)?;
            graph.replace_all_uses(id, new)?;
            Ok(true)
        }
        Op::ADD | Op::SUB | Op::MUL | Op::DIV => {
            for (slot, other) in [(0, 1), (1, 0)] {
                let Some(source) = flattened(graph, operands[slot]) else { continue };
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

/// The operand of a reshape that keeps the last axis and merges leading axes.
fn flattened(graph: &Graph, id: ValueId) -> Option<ValueId> {
    let Some(Op::Tensor(TensorOp::Reshape { shape })) = graph.op(id) else { return None };
    let source = graph.operand(id, 0)?;
    let from = graph.shape(source);
    (from.len() > shape.len() && from.len() >= 2 && from.last() == shape.last()).then_some(source)
}
