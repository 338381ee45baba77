//! Softmaxes with masks, and what stands around them.
//!
//! Positions that are masked out get 0, and so do whole rows of them: there ONNX gives a uniform row for finite numbers
//! and no numbers for infinite ones, but such rows belong to padding, whose outputs nobody reads.

use ombra_ir::Result;
use ombra_ir::plain::infer::broadcast;
use ombra_ir::plain::{self, Binary, Tensor};

use super::mask::{HUGE, Masked, unmask};
use super::values::possible;
use super::{Match, same, scalar};
use crate::graph::eval::Weights;
use crate::graph::{Graph, InputRole, Numerator, Op, Origin, TensorOp, ValueId};

/// Whether no weight, token or cache goes into `id`.
pub(super) fn is_structure(graph: &Graph, id: ValueId) -> bool {
    graph.ancestors(id).into_iter().all(|a| match graph.op(a) {
        Some(Op::Tensor(_)) => true,
        Some(Op::Input { role, .. }) => {
            matches!(role, InputRole::AttentionMask | InputRole::PositionIds | InputRole::Public)
        }
        _ => false,
    })
}

/// Adds an operator on public tensors behind `like`; folded when its operands are constants.
pub(super) fn public(graph: &mut Graph, op: plain::Op, operands: &[ValueId], like: ValueId) -> Result<ValueId> {
    let origin = graph.node(like)?.origin.clone();
    let tensors: Option<Vec<&Tensor>> = operands.iter().map(|o| graph.constant(*o)).collect();
    if let Some(tensors) = tensors
        && let Ok(result) = plain::eval(&op, &tensors, &ombra_ir::Bindings::new(), crate::import::context::FOLD_LIMIT)
    {
        return graph.add_const(result, origin);
    }
    graph.add(Op::Tensor(op), operands, origin)
}

/// Scores of a softmax, what it is with a mask, and the mask it has already. A huge negative score is 0 also after the
/// positive part that some models have in place of the exponential.
fn softmax_of(graph: &Graph, id: ValueId) -> Option<(ValueId, Op, Option<ValueId>)> {
    let (scores, mask) = (graph.operand(id, 0)?, graph.operand(id, 1));
    match graph.op(id)? {
        Op::Softmax { axis } => Some((scores, Op::MaskedSoftmax { axis: *axis }, None)),
        op @ Op::MaskedSoftmax { .. } => Some((scores, op.clone(), mask)),
        op @ Op::RatioSoftmax { numerator: Numerator::Relu, .. } => Some((scores, op.clone(), mask)),
        _ => None,
    }
}

/// A softmax of `scores` where `mask`, and the mask it has already, hold.
fn masked(
    graph: &mut Graph,
    id: ValueId,
    scores: ValueId,
    with_mask: Op,
    masks: [Option<ValueId>; 2],
) -> Result<Match> {
    let mask = match masks {
        [Some(a), Some(b)] => public(graph, TensorOp::Binary(Binary::And), &[a, b], id)?,
        [Some(one), None] | [None, Some(one)] => one,
        [None, None] => return Ok(Match::No),
    };
    let fits = broadcast("softmax", graph.shape(scores), graph.shape(mask)).is_ok_and(|s| s == graph.shape(scores));
    if !fits {
        let shape = graph.dims.show_shape(graph.shape(mask));
        return Ok(Match::Near(format!("its mask of shape {shape} does not broadcast to the scores")));
    }
    Ok(Match::Yes(with_mask, vec![scores, mask]))
}

/// softmax of scores to which masks are added, in any nesting with others that are chosen.
pub(super) fn additive_mask(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let below = softmax_of(graph, id).map(|(scores, ..)| below_floors(graph, scores));
    match below.and_then(|at| graph.op(at)) {
        Some(Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub | Binary::Mul | Binary::Div))) => {}
        _ => return Ok(Match::No),
    }
    match masks(graph, id, weights)? {
        Match::No => {
            let operands = below.map(|at| graph.operands(at)).unwrap_or_default();
            let is_weight = |o: &ValueId| matches!(graph.op(*o), Some(Op::Weight { .. }));
            Ok(match operands.iter().any(is_weight) {
                true => Match::Near("a weight with other numbers than masks have is added to the scores".into()),
                false => Match::No,
            })
        }
        other => Ok(other),
    }
}

/// softmax of scores in whose place masks are chosen, in any nesting with others that are added.
pub(super) fn chosen_mask(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let below = softmax_of(graph, id).map(|(scores, ..)| below_floors(graph, scores));
    let Some(at) = below.filter(|at| graph.op(*at) == Some(&Op::WHERE)) else { return Ok(Match::No) };
    match masks(graph, id, weights)? {
        Match::No if graph.operand(at, 0).is_some_and(|c| !is_structure(graph, c)) => {
            Ok(Match::Near("the condition depends on more than lengths, masks and positions".into()))
        }
        other => Ok(other),
    }
}

/// `id` without the maxima with numbers that stand around it.
fn below_floors(graph: &Graph, id: ValueId) -> ValueId {
    let mut at = id;
    loop {
        let operands = graph.operands(at);
        match (graph.op(at), operands.as_slice()) {
            (Some(Op::Tensor(TensorOp::Binary(Binary::Max))), [x, c]) if scalar(graph, *c).is_some() => at = *x,
            (Some(Op::Tensor(TensorOp::Binary(Binary::Max))), [c, x]) if scalar(graph, *c).is_some() => at = *x,
            _ => return at,
        }
    }
}

/// A softmax without the masks in its scores, as one over the positions that they keep.
fn masks(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let Some((scores, with_mask, old)) = softmax_of(graph, id) else { return Ok(Match::No) };
    let Masked { scores: rest, keep, weak } = unmask(graph, scores, weights, id)?;
    match keep {
        Some(keep) => masked(graph, id, rest, with_mask, [Some(keep), old]),
        None => Ok(weak.map_or(Match::No, |fill| {
            let what = format!("its mask is {fill}, which large scores pass, so it is kept as the file says");
            Match::Near(what)
        })),
    }
}

/// softmax(reshape(scores)) where the last axis stays, with a mask before the reshape: the reshape of the softmax.
pub(super) fn folded_scores(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let Some(Op::Softmax { axis }) = graph.op(id) else { return Ok(Match::No) };
    let shape = graph.shape(id).to_vec();
    let (Some(folded), true) = (graph.operand(id, 0), axis + 1 == shape.len()) else { return Ok(Match::No) };
    let (Some(Op::Tensor(TensorOp::Reshape { .. })), Some(scores)) = (graph.op(folded), graph.operand(folded, 0))
    else {
        return Ok(Match::No);
    };
    let has_mask = matches!(
        graph.op(scores),
        Some(Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub) | TensorOp::Where | TensorOp::Binary(Binary::Max)))
    );
    let Some(last) = graph.shape(scores).len().checked_sub(1) else { return Ok(Match::No) };
    if !has_mask || graph.shape(scores).last() != shape.last() {
        return Ok(Match::No);
    }
    let origin = Origin { value: String::new(), ..graph.node(id)?.origin.clone() };
    let softmax = graph.add(Op::Softmax { axis: last }, &[scores], origin)?;
    Ok(Match::Yes(Op::Tensor(TensorOp::Reshape { shape }), vec![softmax]))
}

/// Whether `tensor` says by 0 and huge negative numbers, one at least, which positions count.
pub fn is_mask(tensor: &Tensor) -> bool {
    let Ok(values) = tensor.as_f32() else { return false };
    values.iter().all(|x| *x == 0.0 || *x <= HUGE) && values.iter().any(|x| *x <= HUGE)
}

/// Whether every element of `id` is known to be 0 or 1.
pub(super) fn is_zero_or_one(graph: &Graph, id: ValueId) -> bool {
    possible(graph, id).is_some_and(|values| values.all(|x| x == 0.0 || x == 1.0))
}

/// where(is_nan(p), 0, p) of a masked softmax p, which is 0 there already.
pub(super) fn guard(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let operands = graph.operands(id);
    let (Some(Op::Tensor(TensorOp::Where)), [c, zero, p]) = (graph.op(id), operands.as_slice()) else {
        return Ok(Match::No);
    };
    let guards =
        graph.op(*c) == Some(&Op::IS_NAN) && graph.operand(*c, 0) == Some(*p) && scalar(graph, *zero) == Some(0.0);
    Ok(match (guards, graph.op(*p)) {
        (true, Some(Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. })) => Match::Yes(same(), vec![*p]),
        (true, _) => Match::Near("what it guards is no masked softmax".into()),
        (false, _) => Match::No,
    })
}
