//! What models trained for MPC have in place of softmax, activations and norms, written out.
//!
//! The formulas are those of `passes/approximate.rs`, with whatever constants the model has; learned ones of one element
//! are constants of the graph and public.

use ombra_ir::Result;
use ombra_ir::plain::{self, Binary, DType, Reduce, Tensor, Unary};

use super::mask::HUGE;
use super::norm::{fits, mean_of};
use super::softmax::{is_structure, is_zero_or_one, public};
use super::values::possible;
use super::{Match, both_orders, scalar};
use crate::graph::eval::Weights;
use crate::graph::{Graph, Numerator, Op, TensorOp, ValueId};

/// `n` and `d`, when `id` is n / d: a quotient, or a product with a reciprocal.
fn quotient(graph: &Graph, id: ValueId) -> Vec<(ValueId, ValueId)> {
    if let (Some(Op::Tensor(TensorOp::Binary(Binary::Div))), [n, d]) = (graph.op(id), graph.operands(id).as_slice()) {
        return vec![(*n, *d)];
    }
    let inverse = |r: ValueId| (graph.op(r) == Some(&Op::RECIPROCAL)).then(|| graph.operand(r, 0)).flatten();
    both_orders(graph, id, &Op::MUL).into_iter().filter_map(|(n, r)| Some((n, inverse(r)?))).collect()
}

/// The operand and the axis of a sum over one axis that stays with size 1, or comes back by a reshape.
fn row_sum(graph: &Graph, id: ValueId) -> Option<(ValueId, usize)> {
    let sum = match graph.op(id)? {
        Op::Tensor(TensorOp::Reshape { .. }) => graph.operand(id, 0)?,
        _ => id,
    };
    let Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, .. }) = graph.op(sum)? else { return None };
    let [axis] = axes.as_slice() else { return None };
    let x = graph.operand(sum, 0)?;
    let sizes = graph.shape(id);
    let kept =
        graph.shape(x).iter().enumerate().map(|(a, d)| if a == *axis { ombra_ir::Dim::constant(1) } else { d.clone() });
    (sizes.len() == graph.shape(x).len() && kept.eq(sizes.iter().cloned())).then_some((x, *axis))
}

/// A numerator taken apart: scores, form, and the booleans that keep entries.
struct Parts {
    x: ValueId,
    numerator: Numerator,
    masks: Vec<(ValueId, Keep)>,
}

/// How a mask is written.
#[derive(Clone, Copy)]
enum Keep {
    /// Entries stay where it holds.
    Where,
    /// Entries stay where it does not hold.
    Unless,
    /// Entries are multiplied by it: 1 or 0.
    Times,
}

/// `y` and a mask, when `id` is `y` where the mask holds and a constant that `gone` accepts elsewhere.
fn unmasked(graph: &Graph, id: ValueId, gone: impl Fn(f32) -> bool) -> Option<(ValueId, (ValueId, Keep))> {
    let operands = graph.operands(id);
    let constant = |v: ValueId| scalar(graph, v).is_some_and(&gone);
    let same = |v: ValueId| graph.shape(v) == graph.shape(id);
    match (graph.op(id)?, operands.as_slice()) {
        (Op::Tensor(TensorOp::Where), [c, y, z]) if constant(*z) && same(*y) => Some((*y, (*c, Keep::Where))),
        (Op::Tensor(TensorOp::Where), [c, z, y]) if constant(*z) && same(*y) => Some((*y, (*c, Keep::Unless))),
        (Op::Tensor(TensorOp::Binary(Binary::Mul)), _) if gone(0.0) => {
            both_orders(graph, id, &Op::MUL).into_iter().find_map(|(y, m)| {
                (same(y) && is_structure(graph, m) && is_zero_or_one(graph, m)).then_some((y, (m, Keep::Times)))
            })
        }
        _ => None,
    }
}

fn parts(graph: &Graph, id: ValueId) -> Option<Parts> {
    let mut at = id;
    let mut masks = Vec::new();
    while let Some((y, mask)) = unmasked(graph, at, |z| z == 0.0) {
        masks.push(mask);
        at = y;
    }
    let operands = graph.operands(at);
    match (graph.op(at)?, operands.as_slice()) {
        (Op::Relu, [x]) => {
            let mut x = *x;
            // The positive part of a constant that is not positive is 0.
            while let Some((y, mask)) = unmasked(graph, x, |z| z <= 0.0) {
                masks.push(mask);
                x = y;
            }
            return Some(Parts { x, numerator: Numerator::Relu, masks });
        }
        (Op::Pow(e), [y]) if *e == 2.0 => at = *y,
        (Op::Tensor(TensorOp::Binary(Binary::Mul)), [a, b]) if a == b => at = *a,
        _ => return None,
    }
    while let Some((y, mask)) = unmasked(graph, at, |z| z == 0.0) {
        masks.push(mask);
        at = y;
    }
    let operands = graph.operands(at);
    let (x, shift) = match (graph.op(at), operands.as_slice()) {
        (Some(Op::Tensor(TensorOp::Binary(Binary::Add))), [a, b]) if scalar(graph, *b).is_some() => {
            (*a, scalar(graph, *b)?)
        }
        (Some(Op::Tensor(TensorOp::Binary(Binary::Add))), [a, b]) if scalar(graph, *a).is_some() => {
            (*b, scalar(graph, *a)?)
        }
        (Some(Op::Tensor(TensorOp::Binary(Binary::Sub))), [a, b]) if scalar(graph, *b).is_some() => {
            (*a, -scalar(graph, *b)?)
        }
        _ => (at, 0.0),
    };
    let same = graph.shape(x) == graph.shape(id);
    Some(Parts {
        x: if same { x } else { at },
        numerator: Numerator::Square { shift: if same { shift } else { 0.0 } },
        masks,
    })
}

/// `g / (Σ g + eps)` with the positive part or the square of shifted scores for `g`, masked by a choice or a product.
pub(super) fn ratio_softmax(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (n, d) in quotient(graph, id) {
        let with_eps = both_orders(graph, d, &Op::ADD).into_iter().find_map(|(s, eps)| Some((s, scalar(graph, eps)?)));
        let (sum, eps) = with_eps.unwrap_or((d, 0.0));
        let Some(Parts { x, numerator, masks }) = parts(graph, n) else { continue };
        if is_structure(graph, x) {
            continue;
        }
        let Some((summed, axis)) = row_sum(graph, sum) else {
            let floor = both_orders(graph, d, &Op::MAX).into_iter().any(|(s, _)| row_sum(graph, s).is_some());
            let why = "it divides by the greater of sum and a number, not by sum + eps";
            return Ok(if floor { Match::Near(why.into()) } else { Match::No });
        };
        if summed != n {
            return Ok(Match::Near("it divides by the sum of something else than its numerators".into()));
        }
        if !eps.is_finite() || eps < 0.0 {
            return Ok(Match::Near(format!("{eps} is added to the sum: expected a number that is not negative")));
        }
        let squares = matches!(numerator, Numerator::Square { .. });
        let huge = |m: ValueId| {
            is_structure(graph, m) && possible(graph, m).is_some_and(|values| values.low() <= f64::from(HUGE))
        };
        if squares && both_orders(graph, x, &Op::ADD).into_iter().any(|(_, m)| huge(m)) {
            return Ok(Match::Near("its mask adds huge numbers that are squared: masked entries have to be 0".into()));
        }
        let mut all: Option<ValueId> = None;
        for (mask, keep) in masks {
            if !is_structure(graph, mask) {
                return Ok(Match::Near("its mask depends on more than lengths, masks and positions".into()));
            }
            let bits = truth_values(graph, mask, keep, id)?;
            all = Some(match all {
                Some(other) => public(graph, TensorOp::Binary(Binary::And), &[other, bits], id)?,
                None => bits,
            });
        }
        if let Some(mask) = all
            && !plain::infer::broadcast("softmax", graph.shape(x), graph.shape(mask)).is_ok_and(|s| s == graph.shape(x))
        {
            return Ok(Match::Near("its mask does not broadcast to the scores".into()));
        }
        let operands = std::iter::once(x).chain(all).collect();
        return Ok(Match::Yes(Op::RatioSoftmax { axis, numerator, eps }, operands));
    }
    Ok(Match::No)
}

/// Where entries stay, as booleans.
fn truth_values(graph: &mut Graph, mask: ValueId, keep: Keep, like: ValueId) -> Result<ValueId> {
    match keep {
        Keep::Where => Ok(mask),
        Keep::Unless => public(graph, TensorOp::Unary(Unary::Not), &[mask], like),
        Keep::Times => {
            let cast = TensorOp::Cast { to: DType::Bool };
            let origin = graph.node(like)?.origin.clone();
            match graph.op(mask) {
                Some(Op::Tensor(TensorOp::Cast { .. })) => {
                    let from = graph.operand(mask, 0).filter(|&b| graph.node(b).is_ok_and(|n| n.dtype == DType::Bool));
                    if let Some(bits) = from {
                        return Ok(bits);
                    }
                    public(graph, cast, &[mask], like)
                }
                _ => {
                    let half = graph.add_const(Tensor::scalar_f32(0.5), origin)?;
                    public(graph, TensorOp::Binary(Binary::Greater), &[mask, half], like)
                }
            }
        }
    }
}

/// `w ∘ (x − mean(x)) + b`.
pub(super) fn affine_norm(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (b, scaled) in both_orders(graph, id, &Op::ADD) {
        if let Some((x, w)) = scaled_centred(graph, scaled)
            && fits(graph, b, x)
            && fits(graph, w, x)
        {
            return Ok(Match::Yes(Op::AffineNorm { centred: true }, vec![x, w, b]));
        }
    }
    Ok(Match::No)
}

/// `w ∘ (x − mean(x))`, for what is left when a bias was looked for.
pub(super) fn affine_norm_without_bias(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let Some((x, w)) = scaled_centred(graph, id) else { return Ok(Match::No) };
    Ok(match fits(graph, w, x) {
        true => Match::Yes(Op::AffineNorm { centred: true }, vec![x, w]),
        false => Match::Near("its scale is not of the size of the last axis".into()),
    })
}

/// `w ∘ x` on its way into products alone: what is left of an RMS norm without its division. Its scale folds into them.
pub(super) fn scale_before_products(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let users = graph.users(id);
    let into_product = |user: &ValueId| {
        graph.op(*user) == Some(&Op::MATMUL)
            && graph.operand(*user, 0) == Some(id)
            && graph.operand(*user, 1) != Some(id)
    };
    if users.is_empty() || graph.is_output(id) || !users.iter().all(into_product) {
        return Ok(Match::No);
    }
    let found = both_orders(graph, id, &Op::MUL).into_iter().find(|(w, x)| {
        matches!(graph.op(*w), Some(Op::Weight { .. })) && fits(graph, *w, *x) && graph.shape(*x) == graph.shape(id)
    });
    Ok(match found {
        Some((w, x)) => Match::Yes(Op::AffineNorm { centred: false }, vec![x, w]),
        None => Match::No,
    })
}

/// `x` and `w`, when `id` is w ∘ (x − mean(x)).
fn scaled_centred(graph: &Graph, id: ValueId) -> Option<(ValueId, ValueId)> {
    both_orders(graph, id, &Op::MUL).into_iter().find_map(|(w, centred)| {
        let operands = graph.operands(centred);
        let (Op::Tensor(TensorOp::Binary(Binary::Sub)), [x, m]) = (graph.op(centred)?, operands.as_slice()) else {
            return None;
        };
        (mean_of(graph, *m) == Some(*x)).then_some((*x, w))
    })
}

/// `c[0] + c[1]·x + c[2]·x²`; without `x` a constant.
#[derive(Clone, Copy)]
struct Polynomial {
    x: Option<ValueId>,
    c: [f32; 3],
}

/// Operators that one polynomial is made of at most.
const STEPS: usize = 16;

/// `id` as a polynomial of one value: sums, products and squares of constants and that value. A part that others use
/// is not taken apart, but may be the value.
fn polynomial(graph: &Graph, id: ValueId, x: ValueId, left: &mut usize) -> Option<Polynomial> {
    if id == x {
        return Some(Polynomial { x: Some(x), c: [0.0, 1.0, 0.0] });
    }
    if let Some(c) = scalar(graph, id) {
        return Some(Polynomial { x: None, c: [c, 0.0, 0.0] });
    }
    *left = left.checked_sub(1)?;
    let operands = graph.operands(id);
    let mut of = |v: ValueId| polynomial(graph, v, x, left);
    let result = match (graph.op(id)?, operands.as_slice()) {
        (Op::Tensor(TensorOp::Binary(Binary::Add)), [a, b]) => combine(of(*a)?, of(*b)?, 1.0),
        (Op::Tensor(TensorOp::Binary(Binary::Sub)), [a, b]) => combine(of(*a)?, of(*b)?, -1.0),
        (Op::Tensor(TensorOp::Binary(Binary::Mul)), [a, b]) => times(of(*a)?, of(*b)?)?,
        (Op::Tensor(TensorOp::Binary(Binary::Div)), [a, b]) => {
            let k = scalar(graph, *b).filter(|k| *k != 0.0)?;
            times(of(*a)?, Polynomial { x: None, c: [1.0 / k, 0.0, 0.0] })?
        }
        (Op::Tensor(TensorOp::Unary(Unary::Neg)), [a]) => times(of(*a)?, Polynomial { x: None, c: [-1.0, 0.0, 0.0] })?,
        (Op::Pow(e), [a]) if *e == 2.0 => {
            let a = of(*a)?;
            times(a, a)?
        }
        _ => return None,
    };
    Some(result)
}

fn combine(a: Polynomial, b: Polynomial, sign: f32) -> Polynomial {
    let [a0, a1, a2] = a.c;
    let [b0, b1, b2] = b.c;
    Polynomial { x: a.x.or(b.x), c: [a0 + sign * b0, a1 + sign * b1, a2 + sign * b2] }
}

fn times(a: Polynomial, b: Polynomial) -> Option<Polynomial> {
    let [a0, a1, a2] = a.c;
    let [b0, b1, b2] = b.c;
    let quadratic = a1 * b2 == 0.0 && a2 * b1 == 0.0 && a2 * b2 == 0.0;
    quadratic.then_some(Polynomial { x: a.x.or(b.x), c: [a0 * b0, a0 * b1 + a1 * b0, a0 * b2 + a1 * b1 + a2 * b0] })
}

/// The one value of which `id` may be a polynomial: what stays when constants, sums and products are taken apart.
fn variable(graph: &Graph, id: ValueId) -> Option<ValueId> {
    let mut found = None;
    let mut stack = vec![id];
    for _ in 0..4 * STEPS {
        let Some(at) = stack.pop() else { return found };
        if scalar(graph, at).is_some() {
            continue;
        }
        let operands = graph.operands(at);
        let squares = matches!((graph.op(at)?, operands.as_slice()), (Op::Tensor(TensorOp::Binary(Binary::Mul)), [a, b]) if a == b);
        let opens = match (graph.op(at)?, operands.as_slice()) {
            (Op::Pow(e), [_]) => *e == 2.0,
            (Op::Tensor(TensorOp::Unary(Unary::Neg)), [_]) => true,
            (Op::Tensor(TensorOp::Binary(Binary::Mul | Binary::Div)), [a, b]) => {
                scalar(graph, *a).is_some() || scalar(graph, *b).is_some() || squares || at_most_one(graph, at)
            }
            (Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub)), [_, _]) => at_most_one(graph, at),
            _ => false,
        };
        if opens {
            stack.extend(operands);
            continue;
        }
        match found {
            Some(x) if x != at => return None,
            _ => found = Some(at),
        }
    }
    None
}

/// Whether a value is a part of one other value alone.
fn at_most_one(graph: &Graph, id: ValueId) -> bool {
    graph.users(id).len() <= 1 && !graph.is_output(id)
}

/// `a·x² + b·x + c` with `a` and `b` not 0, however it is written; its last operator is a sum.
pub(super) fn quadratic(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    if !matches!(graph.op(id), Some(Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub)))) {
        return Ok(Match::No);
    }
    // The whole sum alone: a sum that goes on is a part of a longer one.
    let goes_on = |user: ValueId| {
        matches!(graph.op(user), Some(Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub))))
            && graph.operands(user).iter().any(|o| scalar(graph, *o).is_some())
    };
    if let [user] = graph.users(id).as_slice()
        && goes_on(*user)
    {
        return Ok(Match::No);
    }
    let operands = graph.operands(id);
    let Some(x) = operands.iter().find_map(|o| variable(graph, *o)) else { return Ok(Match::No) };
    let mut left = STEPS;
    let Some(Polynomial { x: Some(_), c }) = polynomial(graph, id, x, &mut left) else { return Ok(Match::No) };
    let [constant, linear, square] = c;
    if square == 0.0 || linear == 0.0 || graph.shape(x) != graph.shape(id) || is_structure(graph, x) {
        return Ok(Match::No);
    }
    if !c.iter().all(|k| k.is_finite()) {
        return Ok(Match::Near("its coefficients are not finite".into()));
    }
    Ok(Match::Yes(Op::Quadratic { square, linear, constant }, vec![x]))
}
