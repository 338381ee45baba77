//! How many heads an attention has, by the shapes of its scores and keys.

use ombra_ir::Dim;
use ombra_ir::plain::infer::product;

use super::walk::arrangement;
use crate::graph::{Graph, InputRole, Op, ValueId};

/// The number of heads of `scores [batch, heads, new, all]`, and the size of the batch. Heads may stand on several axes, or
/// on one with the batch, whose size then is that of the model's tokens.
pub(super) fn query_heads(graph: &Graph, scores: ValueId) -> Option<(usize, Dim)> {
    let shape = graph.shape(scores);
    let leading = shape.get(..shape.len().checked_sub(2)?)?;
    let (heads, batch) = match leading {
        [] => (Dim::constant(1), Dim::constant(1)),
        [joined] => match batch_of(graph).and_then(|batch| Some((joined.div_exact(&batch).ok()?, batch))) {
            Some(apart) => apart,
            None => (Dim::constant(1), joined.clone()),
        },
        [batch, heads @ ..] => (product(heads).ok()?, batch.clone()),
    };
    let heads = usize::try_from(heads.as_constant()?).ok()?;
    Some((heads, batch)).filter(|(heads, _)| *heads > 0)
}

/// The size of the batch, from the model's tokens.
fn batch_of(graph: &Graph) -> Option<Dim> {
    let is_tokens = |id: &ValueId| {
        matches!(graph.op(*id), Some(Op::Input { role: InputRole::TokenIds | InputRole::Embeddings, .. }))
    };
    graph.shape(graph.inputs.iter().copied().find(is_tokens)?).first().cloned()
}

/// The number of different heads of `keys [batch, heads, size, all]`: those that are left when repetitions are taken away.
pub(super) fn key_heads(graph: &Graph, keys: ValueId, scores: ValueId, batch: &Dim, size: usize) -> Option<usize> {
    let all = graph.shape(scores).last()?;
    let one = batch.mul(&Dim::from_usize(size).ok()?).ok()?.mul(all).ok()?;
    let count = |id: ValueId| {
        let elements = product(graph.shape(id)).ok()?;
        usize::try_from(elements.div_exact(&one).ok()?.as_constant()?).ok()
    };
    arrangement(graph, keys).into_iter().filter_map(count).min()
}
