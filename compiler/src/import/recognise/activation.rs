//! GELU in both forms, SiLU, and arithmetic that does nothing.

use ombra_ir::plain::{Binary, Unary};
use std::f32::consts::{FRAC_1_SQRT_2, PI};

use ombra_ir::Result;

use super::{Match, both_orders, close, is_square, same, scalar};
use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};

/// The constant factor of a product and its other factors. A factor that has other users is not taken apart.
fn factors(graph: &Graph, id: ValueId) -> (f32, Vec<ValueId>) {
    let mut constant = 1.0;
    let mut others = Vec::new();
    let mut stack = vec![(id, true)];
    while let Some((at, top)) = stack.pop() {
        let open = top || (graph.users(at).len() == 1 && !graph.is_output(at));
        match (graph.op(at), graph.operands(at).as_slice()) {
            _ if scalar(graph, at).is_some() => constant *= scalar(graph, at).unwrap_or(1.0),
            (Some(Op::Tensor(TensorOp::Binary(Binary::Mul))), [a, b]) if open => {
                stack.extend([(*b, false), (*a, false)])
            }
            (Some(Op::Tensor(TensorOp::Binary(Binary::Div))), [a, b]) if open && scalar(graph, *b).is_some() => {
                constant /= scalar(graph, *b).unwrap_or(1.0);
                stack.push((*a, false));
            }
            _ => others.push(at),
        }
    }
    (constant, others)
}

/// `y`, when `id` is y + `constant`.
fn plus(graph: &Graph, id: ValueId, constant: f32) -> Option<ValueId> {
    both_orders(graph, id, &Op::ADD).into_iter().find(|(_, c)| scalar(graph, *c) == Some(constant)).map(|(y, _)| y)
}

/// 0.5 · x · (1 + erf(x / √2)), or 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), in any order of the factors.
pub(super) fn gelu(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    if !matches!(graph.op(id), Some(Op::Tensor(TensorOp::Binary(Binary::Mul | Binary::Div)))) {
        return Ok(Match::No);
    }
    let (half, rest) = factors(graph, id);
    let [a, b] = rest.as_slice() else { return Ok(Match::No) };
    for (x, gate) in [(*a, *b), (*b, *a)] {
        let Some(inner) = plus(graph, gate, 1.0) else { continue };
        let (tanh, argument) = match (graph.op(inner), graph.operand(inner, 0)) {
            (Some(Op::Tensor(TensorOp::Unary(Unary::Erf))), Some(u)) => (false, erf_argument(graph, u, x)),
            (Some(Op::Tensor(TensorOp::Unary(Unary::Tanh))), Some(u)) => (true, tanh_argument(graph, u, x)),
            _ => continue,
        };
        if let Err(why) = argument {
            return Ok(Match::Near(why));
        }
        if !close(half, 0.5) {
            return Ok(Match::Near(format!("its factor is {half}, not 0.5")));
        }
        return Ok(Match::Yes(Op::Gelu { tanh }, vec![x]));
    }
    Ok(Match::No)
}

fn erf_argument(graph: &Graph, u: ValueId, x: ValueId) -> std::result::Result<(), String> {
    match factors(graph, u) {
        (c, rest) if rest == [x] && close(c, FRAC_1_SQRT_2) => Ok(()),
        (c, rest) if rest == [x] => Err(format!("the argument of erf is {c} x, not x / sqrt(2)")),
        _ => Err("the argument of erf is not a multiple of the other factor".into()),
    }
}

fn tanh_argument(graph: &Graph, u: ValueId, x: ValueId) -> std::result::Result<(), String> {
    let (c, rest) = factors(graph, u);
    if !close(c, (2.0 / PI).sqrt()) {
        return Err(format!("the factor in the argument of tanh is {c}, not sqrt(2/pi)"));
    }
    // x + 0.044715 x³ as one factor, or x and 1 + 0.044715 x² as two.
    let matched = match rest.as_slice() {
        [sum] => both_orders(graph, *sum, &Op::ADD).into_iter().any(|(a, b)| {
            let (k, cube) = factors(graph, b);
            a == x && close(k, 0.044715) && is_cube(graph, &cube, x)
        }),
        [a, b] => [(*a, *b), (*b, *a)].into_iter().any(|(a, b)| {
            let square = |y| {
                let (k, rest) = factors(graph, y);
                let two = matches!(rest.as_slice(), [s] if is_square(graph, *s, x)) || rest == [x, x];
                close(k, 0.044715) && two
            };
            a == x && plus(graph, b, 1.0).is_some_and(square)
        }),
        _ => false,
    };
    if matched { Ok(()) } else { Err("the argument of tanh is not x + 0.044715 x^3 of the other factor".into()) }
}

fn is_cube(graph: &Graph, rest: &[ValueId], x: ValueId) -> bool {
    match rest {
        [p] => matches!(graph.op(*p), Some(Op::Pow(e)) if *e == 3.0) && graph.operand(*p, 0) == Some(x),
        [a, b] => (*a == x && is_square(graph, *b, x)) || (*b == x && is_square(graph, *a, x)),
        [a, b, c] => [a, b, c].into_iter().all(|f| *f == x),
        _ => false,
    }
}

/// x · sigmoid(x).
pub(super) fn silu(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    for (x, gate) in both_orders(graph, id, &Op::MUL) {
        if graph.op(gate) == Some(&Op::SIGMOID) && graph.operand(gate, 0) == Some(x) {
            return Ok(Match::Yes(Op::Silu, vec![x]));
        }
    }
    Ok(Match::No)
}

/// No secret value that fits a ring is beyond this.
const UNBOUNDED: f32 = 1.0e15;

/// x · 1, x / 1, x + 0 and x - 0, as rotary scaling and adapters leave them; maxima and minima of a secret with numbers
/// that it never reaches, as some exporters guard sums with masks.
pub(super) fn neutral(graph: &mut Graph, id: ValueId, _: &Weights) -> Result<Match> {
    let is_secret = graph.node(id)?.owner == Owner::Secret;
    let sign = match graph.op(id) {
        Some(Op::Tensor(TensorOp::Binary(Binary::Max))) if is_secret => -1.0,
        Some(Op::Tensor(TensorOp::Binary(Binary::Min))) if is_secret => 1.0,
        _ => 0.0,
    };
    if sign != 0.0 {
        let operands = graph.operands(id);
        let [a, b] = operands.as_slice() else { return Ok(Match::No) };
        for (x, c) in [(*a, *b), (*b, *a)] {
            let never = scalar(graph, c).is_some_and(|c| c * sign >= UNBOUNDED);
            if never && graph.shape(x) == graph.shape(id) {
                return Ok(Match::Yes(same(), vec![x]));
            }
        }
        return Ok(Match::No);
    }
    let (neutral, commutes) = match graph.op(id) {
        Some(Op::Tensor(TensorOp::Binary(Binary::Mul))) => (1.0, true),
        Some(Op::Tensor(TensorOp::Binary(Binary::Add))) => (0.0, true),
        Some(Op::Tensor(TensorOp::Binary(Binary::Div))) => (1.0, false),
        Some(Op::Tensor(TensorOp::Binary(Binary::Sub))) => (0.0, false),
        _ => return Ok(Match::No),
    };
    let operands = graph.operands(id);
    let [a, b] = operands.as_slice() else { return Ok(Match::No) };
    for (x, c) in [(*a, *b), (*b, *a)].into_iter().take(if commutes { 2 } else { 1 }) {
        if scalar(graph, c) == Some(neutral) && graph.shape(x) == graph.shape(id) {
            return Ok(Match::Yes(same(), vec![x]));
        }
    }
    Ok(Match::No)
}
