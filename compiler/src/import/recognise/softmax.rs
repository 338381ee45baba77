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
use crate::graph::{Graph, InputRole, Numerator, Op, ValueId};

/// A number at or below this is no score but a mask: exporters write -10000, the least half or the least single.
const HUGE: f32 = -9.0e3;
/// Where a public bias that is not known to be a mask is cut: biases such as alibi's stay far above.
const CUT: f32 = -1.0e30;

/// Whether no weight, token or cache goes into `id`.
pub(super) fn is_structure(graph: &Graph, id: ValueId) -> bool {
    graph.ancestors(id).into_iter().all(|a| match graph.op(a) {
        Some(Op::Const(_) | Op::Public(_)) => true,
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
    graph.add(Op::Public(op), operands, origin)
}

/// Nodes that a proof about the elements of a mask may look at.
const PROOF_STEPS: usize = 1000;

/// A claim about every element of a value.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Claim {
    Zero,
    Huge,
    ZeroOrHuge,
    ZeroOrOne,
}

impl Claim {
    fn holds(self, x: f32) -> bool {
        match self {
            Claim::Zero => x == 0.0,
            Claim::Huge => x <= HUGE,
            Claim::ZeroOrHuge => x == 0.0 || x <= HUGE,
            Claim::ZeroOrOne => x == 0.0 || x == 1.0,
        }
    }
}

/// Whether `claim` is known of every element of `id`, from constants, choices, movements and casts.
pub(super) fn known(graph: &Graph, id: ValueId, claim: Claim) -> bool {
    let mut left = PROOF_STEPS;
    prove(graph, id, claim, &mut left)
}

fn prove(graph: &Graph, id: ValueId, claim: Claim, left: &mut usize) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    let operands = graph.operands(id);
    let mut each = |list: &[ValueId], claim| list.iter().all(|o| prove(graph, *o, claim, left));
    let op = match graph.op(id) {
        Some(Op::Const(t)) => return t.as_f32().is_ok_and(|v| v.iter().all(|x| claim.holds(*x))),
        // An attention mask is 0 or 1, by its meaning.
        Some(Op::Input { role, .. }) => return claim == Claim::ZeroOrOne && *role == InputRole::AttentionMask,
        Some(Op::Public(op)) => op,
        _ => return false,
    };
    match (op, operands.as_slice()) {
        (plain::Op::ConstantOfShape { value, .. }, _) => value.single_f32().is_some_and(|x| claim.holds(x)),
        (plain::Op::Where, [_, a, b]) => each(&[*a, *b], claim),
        (plain::Op::ScatterNd, [x, _, update]) => each(&[*x, *update], claim),
        (plain::Op::Trilu { .. }, [x]) => claim.holds(0.0) && each(&[*x], claim),
        (
            plain::Op::Identity
            | plain::Op::Reshape { .. }
            | plain::Op::Expand { .. }
            | plain::Op::Transpose { .. }
            | plain::Op::Slice { .. }
            | plain::Op::Tile { .. },
            [x],
        ) => each(&[*x], claim),
        (plain::Op::Gather { .. } | plain::Op::GatherNd { .. } | plain::Op::GatherElements { .. }, [x, _]) => {
            each(&[*x], claim)
        }
        (plain::Op::Concat { .. } | plain::Op::Binary(Binary::Max | Binary::Min), all) => each(all, claim),
        (plain::Op::Cast { .. }, [x]) if claim == Claim::ZeroOrOne => {
            graph.node(*x).is_ok_and(|n| n.dtype == DType::Bool) || each(&[*x], claim)
        }
        (plain::Op::Binary(Binary::Sub), [one, x]) if claim == Claim::ZeroOrOne => {
            scalar(graph, *one) == Some(1.0) && each(&[*x], claim)
        }
        (plain::Op::Binary(Binary::Add), both) if claim == Claim::ZeroOrHuge => each(both, claim),
        (plain::Op::Binary(Binary::Mul), [a, b]) if claim == Claim::ZeroOrHuge => {
            (each(&[*a], claim) && each(&[*b], Claim::ZeroOrOne))
                || (each(&[*b], claim) && each(&[*a], Claim::ZeroOrOne))
        }
        _ => false,
    }
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
        [Some(a), Some(b)] => public(graph, plain::Op::Binary(Binary::And), &[a, b], id)?,
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

/// softmax(scores + m) with a public m: masked where m is huge. What of m is not known to be 0 there stays as a bias.
/// A maximum with a huge number between the sum and the softmax changes nothing and goes.
pub(super) fn additive_mask(graph: &mut Graph, id: ValueId, weights: &Weights) -> Result<Match> {
    let Some((mut scores, with_mask, mut mask)) = softmax_of(graph, id) else { return Ok(Match::No) };
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
                let pure = known(graph, m, Claim::ZeroOrHuge);
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
        (true, _) => masked(graph, id, scores, with_mask, [mask, None]),
        (false, Some(why)) => Ok(Match::Near(why)),
        (false, None) => Ok(Match::No),
    }
}

/// Where the public float `m` is above `limit`: the condition itself when `m` chooses between 0 and huge numbers.
fn truth_values(graph: &mut Graph, m: ValueId, limit: f32, like: ValueId) -> Result<ValueId> {
    if let (Some(Op::Public(plain::Op::Where)), [c, a, b]) = (graph.op(m), graph.operands(m).as_slice()) {
        let (c, a, b) = (*c, *a, *b);
        if known(graph, a, Claim::Zero) && known(graph, b, Claim::Huge) {
            return Ok(c);
        }
        if known(graph, b, Claim::Zero) && known(graph, a, Claim::Huge) {
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
    if !is_mask(&tensor) {
        return Ok(None);
    }
    let values = tensor.as_f32()?;
    let bits = values.iter().map(|x| *x == 0.0).collect();
    Tensor::new(tensor.shape().to_vec(), Data::Bool(bits)).map(Some)
}

/// Whether `tensor` says by 0 and huge negative numbers, one at least, which positions count.
pub fn is_mask(tensor: &Tensor) -> bool {
    let Ok(values) = tensor.as_f32() else { return false };
    values.iter().all(|x| *x == 0.0 || *x <= HUGE) && values.iter().any(|x| *x <= HUGE)
}

/// softmax(where(c, scores, huge)) or softmax(where(c, huge, scores)) with a public c.
pub(super) fn chosen_mask(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let Some((scores, with_mask, old)) = softmax_of(graph, id) else { return Ok(Match::No) };
    let operands = graph.operands(scores);
    let (Some(Op::Where), [c, a, b]) = (graph.op(scores), operands.as_slice()) else {
        return Ok(Match::No);
    };
    let (c, a, b) = (*c, *a, *b);
    if !is_structure(graph, c) {
        return Ok(Match::Near("the condition depends on more than lengths, masks and positions".into()));
    }
    let huge = |id| known(graph, id, Claim::Huge);
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
    masked(graph, id, rest, with_mask, [Some(mask), old])
}

/// where(is_nan(p), 0, p) of a masked softmax p, which is 0 there already.
pub(super) fn guard(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let operands = graph.operands(id);
    let (Some(Op::Where), [c, zero, p]) = (graph.op(id), operands.as_slice()) else { return Ok(Match::No) };
    let guards =
        graph.op(*c) == Some(&Op::IsNan) && graph.operand(*c, 0) == Some(*p) && scalar(graph, *zero) == Some(0.0);
    Ok(match (guards, graph.op(*p)) {
        (true, Some(Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. })) => Match::Yes(same(), vec![*p]),
        (true, _) => Match::Near("what it guards is no masked softmax".into()),
        (false, _) => Match::No,
    })
}
