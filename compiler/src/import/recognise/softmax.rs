//! Masks of a softmax, taken out of the scores as public truth values.
//!
//! Exporters say "not this position" by adding a huge negative number, which no fixed point holds. Positions that are
//! masked out get 0, and so do whole rows of them: there ONNX gives a uniform row for finite numbers and no numbers for
//! infinite ones, but such rows belong to padding, whose outputs nobody reads.

use ombra_ir::Result;
use ombra_ir::plain::infer::broadcast;
use ombra_ir::plain::{self, Binary, DType, Data, Tensor, Unary};

use super::{Match, both_orders, same, scalar};
use crate::graph::eval::Weights;
use crate::graph::{Graph, InputRole, Op, ValueId};

/// A number at or below this is no score but a mask: exporters write -10000, the least half or the least single.
const HUGE: f32 = -9.0e3;
/// Where a public bias that is not known to be a mask is cut: biases such as alibi's stay far above.
const CUT: f32 = -1.0e30;

/// Whether no weight, token or cache goes into `id`.
fn is_structure(graph: &Graph, id: ValueId) -> bool {
    graph.ancestors(id).into_iter().all(|a| match graph.op(a) {
        Some(Op::Const(_) | Op::Public(_)) => true,
        Some(Op::Input { role, .. }) => matches!(role, InputRole::AttentionMask | InputRole::PositionIds),
        _ => false,
    })
}

/// Adds an operator on public tensors behind `like`; folded when its operands are constants.
fn public(graph: &mut Graph, op: plain::Op, operands: &[ValueId], like: ValueId) -> Result<ValueId> {
    let origin = graph.node(like)?.origin.clone();
    let tensors: Option<Vec<&Tensor>> = operands.iter().map(|o| graph.constant(*o)).collect();
    if let Some(tensors) = tensors
        && let Ok(result) = plain::eval(&op, &tensors, &ombra_ir::Bindings::new(), crate::import::context::FOLD_LIMIT)
    {
        return graph.add_const(result, origin);
    }
    graph.add(Op::Public(op), operands, origin)
}

/// Whether every element that `test` sees in a movement, choice or constant passes it; `leaf` decides the rest.
fn all_elements(graph: &Graph, id: ValueId, test: fn(f32) -> bool, leaf: fn(&Graph, ValueId) -> bool) -> bool {
    let each = |list: &[ValueId]| list.iter().all(|o| all_elements(graph, *o, test, leaf));
    let operands = graph.operands(id);
    let known = match (graph.op(id), operands.as_slice()) {
        (Some(Op::Const(t)), _) => t.as_f32().is_ok_and(|v| v.iter().all(|x| test(*x))),
        (Some(Op::Public(op)), operands) => match (op, operands) {
            (plain::Op::ConstantOfShape { value, .. }, _) => value.single_f32().is_some_and(test),
            (plain::Op::Where, [_, a, b]) => each(&[*a, *b]),
            (plain::Op::ScatterNd, [x, _, update]) => each(&[*x, *update]),
            (plain::Op::Trilu { .. }, [x]) => test(0.0) && each(&[*x]),
            (
                plain::Op::Identity
                | plain::Op::Reshape { .. }
                | plain::Op::Expand { .. }
                | plain::Op::Transpose { .. }
                | plain::Op::Slice { .. }
                | plain::Op::Tile { .. },
                [x],
            ) => each(&[*x]),
            (plain::Op::Gather { .. } | plain::Op::GatherNd { .. } | plain::Op::GatherElements { .. }, [x, _]) => {
                each(&[*x])
            }
            (plain::Op::Concat { .. } | plain::Op::Binary(Binary::Max | Binary::Min), all) => each(all),
            _ => false,
        },
        _ => false,
    };
    known || leaf(graph, id)
}

/// Whether every element of `id` is 0 or huge.
fn zero_or_huge(graph: &Graph, id: ValueId) -> bool {
    all_elements(
        graph,
        id,
        |x| x == 0.0 || x <= HUGE,
        |graph, id| match (graph.op(id), graph.operands(id).as_slice()) {
            (Some(Op::Public(plain::Op::Binary(Binary::Add))), [a, b]) => {
                zero_or_huge(graph, *a) && zero_or_huge(graph, *b)
            }
            (Some(Op::Public(plain::Op::Binary(Binary::Mul))), [a, b]) => {
                let one_way = |a, b| zero_or_huge(graph, a) && zero_or_one(graph, b);
                one_way(*a, *b) || one_way(*b, *a)
            }
            _ => false,
        },
    )
}

/// Whether every element of `id` is 0 or 1. An attention mask is, by its meaning.
fn zero_or_one(graph: &Graph, id: ValueId) -> bool {
    all_elements(
        graph,
        id,
        |x| x == 0.0 || x == 1.0,
        |graph, id| match (graph.op(id), graph.operands(id).as_slice()) {
            (Some(Op::Public(plain::Op::Cast { .. })), [x]) => {
                graph.node(*x).is_ok_and(|n| n.dtype == DType::Bool) || zero_or_one(graph, *x)
            }
            (Some(Op::Public(plain::Op::Binary(Binary::Sub))), [one, x]) => {
                scalar(graph, *one) == Some(1.0) && zero_or_one(graph, *x)
            }
            (Some(Op::Public(plain::Op::Reshape { .. } | plain::Op::Expand { .. } | plain::Op::Slice { .. })), [x]) => {
                zero_or_one(graph, *x)
            }
            (Some(Op::Input { role, .. }), _) => *role == InputRole::AttentionMask,
            _ => false,
        },
    )
}

/// Scores and axis of a softmax, and the mask it has already.
fn softmax_of(graph: &Graph, id: ValueId) -> Option<(ValueId, usize, Option<ValueId>)> {
    let (scores, mask) = (graph.operand(id, 0)?, graph.operand(id, 1));
    match graph.op(id)? {
        Op::Softmax { axis } => Some((scores, *axis, None)),
        Op::MaskedSoftmax { axis } => Some((scores, *axis, mask)),
        _ => None,
    }
}

/// A softmax of `scores` where `mask`, and the mask it has already, hold.
fn masked(graph: &mut Graph, id: ValueId, scores: ValueId, axis: usize, masks: [Option<ValueId>; 2]) -> Result<Match> {
    let mask = match masks {
        [Some(a), Some(b)] => public(graph, plain::Op::Binary(Binary::And), &[a, b], id)?,
        [Some(one), None] | [None, Some(one)] => one,
        [None, None] => return Ok(Match::No),
    };
    let fits = broadcast("softmax", graph.shape(scores), graph.shape(mask)).is_ok_and(|s| s == graph.shape(scores));
    if !fits {
        let shape = graph.dims.show_shape(graph.shape(mask));
        return Ok(Match::Near(format!("its mask of shape {shape} does not broadcast to the scores")));
    }
    Ok(Match::Yes(Op::MaskedSoftmax { axis }, vec![scores, mask]))
}

/// softmax(scores + m) with a public m: masked where m is huge. What of m is not known to be 0 there stays as a bias.
/// A maximum with a huge number between the sum and the softmax changes nothing and goes.
pub(super) fn additive_mask(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let Some((mut scores, axis, mut mask)) = softmax_of(graph, id) else { return Ok(Match::No) };
    let mut changed = false;
    let mut near = None;
    loop {
        let floor = both_orders(graph, scores, &Op::Max)
            .into_iter()
            .find(|(_, c)| scalar(graph, *c).is_some_and(|c| c <= HUGE));
        if let Some((rest, _)) = floor {
            scores = rest;
            continue;
        }
        let mut next = None;
        for (rest, m) in both_orders(graph, scores, &Op::Add) {
            if let Some(bits) = weight_mask(graph, m, weights)? {
                let origin = graph.node(id)?.origin.clone();
                next = Some((rest, graph.add_const(bits, origin)?, None));
            } else if is_structure(graph, m) && !is_structure(graph, rest) {
                let pure = zero_or_huge(graph, m);
                let bits = truth_values(graph, m, if pure { -1.0 } else { CUT }, id)?;
                next = Some((rest, bits, (!pure).then_some(m)));
            } else if matches!(graph.op(m), Some(Op::Weight { .. })) {
                near = Some("a weight with other numbers than masks have is added to the scores".to_owned());
            }
            if next.is_some() {
                break;
            }
        }
        let Some((rest, bits, bias)) = next else { break };
        mask = Some(match mask {
            Some(old) => public(graph, plain::Op::Binary(Binary::And), &[old, bits], id)?,
            None => bits,
        });
        changed = true;
        scores = rest;
        if let Some(m) = bias {
            let origin = graph.node(id)?.origin.clone();
            let zero = graph.add_const(Tensor::scalar_f32(0.0), origin.clone())?;
            let bias = public(graph, plain::Op::Where, &[bits, m, zero], id)?;
            scores = graph.add(Op::Add, &[rest, bias], origin)?;
            break;
        }
    }
    match (changed, near) {
        (true, _) => masked(graph, id, scores, axis, [mask, None]),
        (false, Some(why)) => Ok(Match::Near(why)),
        (false, None) => Ok(Match::No),
    }
}

/// Where the public float `m` is above `limit`: the condition itself when `m` chooses between 0 and huge numbers.
fn truth_values(graph: &mut Graph, m: ValueId, limit: f32, like: ValueId) -> Result<ValueId> {
    let all = |graph: &Graph, id, test| all_elements(graph, id, test, |_, _| false);
    if let (Some(Op::Public(plain::Op::Where)), [c, a, b]) = (graph.op(m), graph.operands(m).as_slice()) {
        let (c, a, b) = (*c, *a, *b);
        if all(graph, a, |x| x == 0.0) && all(graph, b, |x| x <= HUGE) {
            return Ok(c);
        }
        if all(graph, b, |x| x == 0.0) && all(graph, a, |x| x <= HUGE) {
            return public(graph, plain::Op::Unary(Unary::Not), &[c], like);
        }
    }
    let origin = graph.node(like)?.origin.clone();
    let limit = graph.add_const(Tensor::scalar_f32(limit), origin)?;
    public(graph, plain::Op::Binary(Binary::Greater), &[m, limit], like)
}

/// The truth values of an initializer that is a mask: all its elements are 0 or huge, and one at least is huge.
fn weight_mask(graph: &Graph, id: ValueId, weights: &Weights) -> Result<Option<Tensor>> {
    let Some(Op::Weight { name, transposed: false }) = graph.op(id) else { return Ok(None) };
    let tensor = weights(name)?;
    let values = tensor.as_f32()?;
    let mask = values.iter().all(|x| *x == 0.0 || *x <= HUGE) && values.iter().any(|x| *x <= HUGE);
    if !mask {
        return Ok(None);
    }
    let bits = values.iter().map(|x| *x == 0.0).collect();
    Tensor::new(tensor.shape().to_vec(), Data::Bool(bits)).map(Some)
}

/// softmax(where(c, scores, huge)) or softmax(where(c, huge, scores)) with a public c.
pub(super) fn chosen_mask(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let Some((scores, axis, old)) = softmax_of(graph, id) else { return Ok(Match::No) };
    let operands = graph.operands(scores);
    let (Some(Op::Where), [c, a, b]) = (graph.op(scores), operands.as_slice()) else {
        return Ok(Match::No);
    };
    let (c, a, b) = (*c, *a, *b);
    if !is_structure(graph, c) {
        return Ok(Match::Near("the condition depends on more than lengths, masks and positions".into()));
    }
    let huge = |id| all_elements(graph, id, |x| x <= HUGE, |_, _| false);
    let (rest, negate) = if huge(b) {
        (a, false)
    } else if huge(a) {
        (b, true)
    } else {
        return Ok(Match::Near("neither choice is a huge negative number".into()));
    };
    if graph.shape(rest) != graph.shape(scores) {
        return Ok(Match::Near("the condition has more elements than the scores".into()));
    }
    let mask = if negate { public(graph, plain::Op::Unary(Unary::Not), &[c], id)? } else { c };
    masked(graph, id, rest, axis, [Some(mask), old])
}

/// where(is_nan(p), 0, p) of a masked softmax p, which is 0 there already.
pub(super) fn guard(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let operands = graph.operands(id);
    let (Some(Op::Where), [c, zero, p]) = (graph.op(id), operands.as_slice()) else { return Ok(Match::No) };
    let guards =
        graph.op(*c) == Some(&Op::IsNan) && graph.operand(*c, 0) == Some(*p) && scalar(graph, *zero) == Some(0.0);
    Ok(match (guards, graph.op(*p)) {
        (true, Some(Op::MaskedSoftmax { .. })) => Match::Yes(same(), vec![*p]),
        (true, _) => Match::Near("what it guards is no masked softmax".into()),
        (false, _) => Match::No,
    })
}
