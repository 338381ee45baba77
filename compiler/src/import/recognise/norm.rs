//! RMS norm and layer norm, written out.

use ombra_ir::Result;
use ombra_ir::plain::{Binary, Reduce, Unary};

use super::{Match, both_orders, is_square, last_size, only, scalar};
use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, TensorOp, ValueId};

/// The operand of a mean over the last axis that keeps it.
pub(super) fn mean_of(graph: &Graph, id: ValueId) -> Option<ValueId> {
    let (Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes, keepdims: true }), x) = only(graph, id)? else {
        return None;
    };
    let last = graph.shape(x).len().checked_sub(1)?;
    (axes.as_slice() == [last]).then_some(x)
}

/// `y` and `eps`, when `id` is y + eps.
fn plus_eps(graph: &Graph, id: ValueId) -> Option<(ValueId, f32)> {
    both_orders(graph, id, &Op::ADD).into_iter().find_map(|(y, eps)| Some((y, scalar(graph, eps)?)))
}

/// `x` and `v`, when `id` is x / sqrt(v): a quotient, or a product with the reciprocal, or with 1 over the root.
fn over_root(graph: &Graph, id: ValueId) -> Vec<(ValueId, ValueId)> {
    let root = |s: ValueId| match only(graph, s)? {
        (Op::Tensor(TensorOp::Unary(Unary::Sqrt)), v) => Some(v),
        (Op::Pow(e), v) if *e == 0.5 => Some(v),
        _ => None,
    };
    let inverse = |r: ValueId| match (graph.op(r)?, graph.operands(r).as_slice()) {
        (Op::Tensor(TensorOp::Unary(Unary::Reciprocal)), [s]) => root(*s),
        (Op::Pow(e), [v]) if *e == -0.5 => Some(*v),
        (Op::Tensor(TensorOp::Binary(Binary::Div)), [one, s]) if scalar(graph, *one) == Some(1.0) => root(*s),
        _ => None,
    };
    if let (Some(Op::Tensor(TensorOp::Binary(Binary::Div))), [x, s]) = (graph.op(id), graph.operands(id).as_slice()) {
        return root(*s).map(|v| (*x, v)).into_iter().collect();
    }
    both_orders(graph, id, &Op::MUL).into_iter().filter_map(|(x, r)| Some((x, inverse(r)?))).collect()
}

/// Whether `w` is a parameter of the last axis of `x`.
pub(super) fn fits(graph: &Graph, w: ValueId, x: ValueId) -> bool {
    graph.shape(w).len() == 1 && last_size(graph, w) == last_size(graph, x)
}

fn misfit(graph: &Graph, w: ValueId) -> Match {
    Match::Near(format!("its scale has shape {}, not that of the last axis", graph.dims.show_shape(graph.shape(w))))
}

/// w · x / sqrt(mean(x²) + eps).
pub(super) fn rms_norm(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (w, y) in both_orders(graph, id, &Op::MUL) {
        for (x, v) in over_root(graph, y) {
            let Some((mean, eps)) = plus_eps(graph, v) else { continue };
            let Some(square) = mean_of(graph, mean) else { continue };
            if !is_square(graph, square, x) {
                continue;
            }
            return Ok(if fits(graph, w, x) { Match::Yes(Op::RmsNorm { eps }, vec![x, w]) } else { misfit(graph, w) });
        }
    }
    Ok(Match::No)
}

/// `x` and `eps`, when `id` is (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps).
fn standardised(graph: &Graph, id: ValueId) -> Option<(ValueId, f32)> {
    over_root(graph, id).into_iter().find_map(|(centered, v)| {
        let (mean, eps) = plus_eps(graph, v)?;
        let square = mean_of(graph, mean)?;
        let operands = graph.operands(centered);
        let (Some(Op::Tensor(TensorOp::Binary(Binary::Sub))), [x, m]) = (graph.op(centered), operands.as_slice())
        else {
            return None;
        };
        (is_square(graph, square, centered) && mean_of(graph, *m) == Some(*x)).then_some((*x, eps))
    })
}

/// w · standardised(x) + b.
pub(super) fn layer_norm(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (b, scaled) in both_orders(graph, id, &Op::ADD) {
        for (w, y) in both_orders(graph, scaled, &Op::MUL) {
            if let Some((x, eps)) = standardised(graph, y)
                && fits(graph, w, x)
                && fits(graph, b, x)
            {
                return Ok(Match::Yes(Op::LayerNorm { eps }, vec![x, w, b]));
            }
        }
    }
    Ok(Match::No)
}

/// w · standardised(x), for what is left when a bias was looked for.
pub(super) fn layer_norm_without_bias(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (w, y) in both_orders(graph, id, &Op::MUL) {
        if let Some((x, eps)) = standardised(graph, y) {
            let yes = fits(graph, w, x);
            return Ok(if yes { Match::Yes(Op::LayerNorm { eps }, vec![x, w]) } else { misfit(graph, w) });
        }
    }
    Ok(Match::No)
}
