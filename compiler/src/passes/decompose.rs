//! Operators on secrets that have no lowering of their own, in terms of those that have one.
//!
//! Softmax works on the last axis, and so does the maximum: other axes are brought there. A divisor that one party or
//! everybody knows is inverted in the clear; a division by a root multiplies by the inverse root. Powers are products,
//! roots, or exponentials of logarithms. Values are the same up to rounding, and owners do not change.

use crate::graph::{Graph, Op, Origin, Owner, TensorOp, ValueId};
use ombra_ir::plain::{self, Binary, DType, Reduce, Tensor, Unary};
use ombra_ir::{Dim, Result};

/// Rewrites every secret value whose operator needs it.
///
/// # Errors
/// Sizes beyond the limits of symbolic sizes.
pub fn decompose(graph: &mut Graph) -> Result<()> {
    // What is made may itself be made of others: quotients of powers of roots.
    loop {
        let mut changed = false;
        for id in graph.topological() {
            if graph.node(id)?.owner != Owner::Secret || graph.users(id).is_empty() && !graph.is_output(id) {
                continue;
            }
            if let Some(new) = rewritten(graph, id)? {
                graph.replace_all_uses(id, new)?;
                changed = true;
            }
        }
        graph.remove_dead();
        if !changed {
            return Ok(());
        }
    }
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
                turned.push(graph.add(
                    Op::Tensor(TensorOp::Transpose { perm: perm.clone() }),
                    &[full],
                    inner.clone(),
                )?);
            }
            let mut op = node.op;
            if let Op::Softmax { axis } | Op::MaskedSoftmax { axis } | Op::RatioSoftmax { axis, .. } = &mut op {
                *axis = rank - 1;
            }
            let y = graph.add(op, &turned, inner)?;
            graph.add(Op::Tensor(TensorOp::Transpose { perm }), &[y], node.origin).map(Some)
        }
        Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes, .. }) if axes != [rank.wrapping_sub(1)] => {
            let shape = graph.shape(args[0]).to_vec();
            let kept: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
            let perm: Vec<usize> = kept.iter().chain(&axes).copied().collect();
            let turned = graph.add(Op::Tensor(TensorOp::Transpose { perm }), &[args[0]], inner.clone())?;
            let merged = axes.iter().try_fold(Dim::constant(1), |p, &a| p.mul(&shape[a]))?;
            let flat: Vec<Dim> = kept.iter().map(|&a| shape[a].clone()).chain([merged]).collect();
            let flat = graph.add(Op::Tensor(TensorOp::Reshape { shape: flat }), &[turned], inner.clone())?;
            let max = graph.add(
                Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes: vec![kept.len()], keepdims: false }),
                &[flat],
                inner,
            )?;
            graph.add(Op::Tensor(TensorOp::Reshape { shape: node.shape }), &[max], node.origin).map(Some)
        }
        Op::Tensor(TensorOp::Reduce { kind: Reduce::Min, axes, keepdims }) => {
            let minus = graph.add(Op::NEG, &args, inner.clone())?;
            let max = graph.add(Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes, keepdims }), &[minus], inner)?;
            graph.add(Op::NEG, &[max], node.origin).map(Some)
        }
        Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes, keepdims }) => {
            let shape = graph.shape(args[0]).to_vec();
            let n = axes.iter().try_fold(Dim::constant(1), |p, &a| p.mul(&shape[a]))?;
            if n.as_constant().is_some() {
                return Ok(None);
            }
            let n = TensorOp::Sizes { shape: Vec::new(), values: vec![n] };
            let n = graph.add(Op::Tensor(n), &[], inner.clone())?;
            let n = graph.add(Op::Tensor(TensorOp::Cast { to: DType::F32 }), &[n], inner.clone())?;
            let sum = graph.add(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims }), &args, inner)?;
            graph.add(Op::DIV, &[sum, n], node.origin).map(Some)
        }
        Op::TANH => match (graph.op(args[0]), graph.operand(args[0], 0)) {
            (Some(Op::Softplus), Some(x)) => tanh_of_softplus(graph, x, inner, node.origin).map(Some),
            _ => Ok(None),
        },
        Op::MATMUL => scaled_product(graph, (args[0], args[1]), inner, node.origin),
        Op::MIN => clipped(graph, id, (args[0], args[1]), node.origin),
        Op::DIV => divided(graph, (args[0], args[1]), inner, node.origin),
        Op::RECIPROCAL => match secret_root(graph, args[0]) {
            Some(x) => graph.add(Op::Pow(-0.5), &[x], node.origin).map(Some),
            None => Ok(None),
        },
        Op::Pow(p) if p != 2.0 && p != -0.5 => power(graph, args[0], p, inner, node.origin).map(Some),
        _ => Ok(None),
    }
}

/// `tanh(ln(1 + e^x))`, the gate of Mish, as a quotient: its error stays small where `x` is large and the gate is not.
///
/// With `u = e^−|x|` it is `(u + u²/2) / (1 + u + u²/2)` for negative `x`, and `(1 + 2u) / (1 + 2u + 2u²)` for others.
fn tanh_of_softplus(graph: &mut Graph, x: ValueId, inner: Origin, origin: Origin) -> Result<ValueId> {
    let mut number = |k: f32| graph.add_const(Tensor::scalar_f32(k), inner.clone());
    let [zero, half, one, two] = [number(0.0)?, number(0.5)?, number(1.0)?, number(2.0)?];
    let mut make = |op: Op, args: &[ValueId]| graph.add(op, args, inner.clone());
    let negative = make(Op::Tensor(TensorOp::Binary(plain::Binary::Less)), &[x, zero])?;
    let minus = make(Op::NEG, &[x])?;
    let size = make(Op::WHERE, &[negative, x, minus])?;
    let u = make(Op::EXP, &[size])?;
    let square = make(Op::MUL, &[u, u])?;
    let (halved, doubled) = (make(Op::MUL, &[square, half])?, make(Op::MUL, &[square, two])?);
    let below = make(Op::ADD, &[u, halved])?;
    let twice = make(Op::MUL, &[u, two])?;
    let (above, rest) = (make(Op::ADD, &[twice, one])?, make(Op::ADD, &[twice, doubled])?);
    let numerator = make(Op::WHERE, &[negative, below, above])?;
    let divisor = make(Op::WHERE, &[negative, below, rest])?;
    let divisor = make(Op::ADD, &[divisor, one])?;
    graph.add(Op::DIV, &[numerator, divisor], origin)
}

/// `(a·s) × (b·t)` for constants `s` and `t` as `(a × b)·(s·t)`: exporters scale queries and keys, cached ones with them,
/// where the scores alone are fewer, and their factor is often a power of two.
fn scaled_product(
    graph: &mut Graph,
    sides: (ValueId, ValueId),
    inner: Origin,
    origin: Origin,
) -> Result<Option<ValueId>> {
    let (left, right) = (factor(graph, sides.0), factor(graph, sides.1));
    let of = |side: &Option<Scaled>| side.as_ref().map_or(1.0, |s| f64::from(s.factor));
    let product = (of(&left) * of(&right)) as f32;
    if left.is_none() && right.is_none() || !product.is_normal() {
        return Ok(None);
    }
    let a = left.map_or(Ok(sides.0), |scaled| without_factor(graph, scaled))?;
    let b = right.map_or(Ok(sides.1), |scaled| without_factor(graph, scaled))?;
    let scores = graph.add(Op::MATMUL, &[a, b], inner.clone())?;
    let factor = graph.add_const(Tensor::scalar_f32(near_power_of_two(product)), inner)?;
    graph.add(Op::MUL, &[scores, factor], origin).map(Some)
}

/// `x·factor`, moved.
struct Scaled {
    x: ValueId,
    factor: f32,
    /// The movements behind the product, the last one first.
    moved: Vec<ValueId>,
}

/// The constant that every element of a value was multiplied by, before it was moved.
fn factor(graph: &Graph, v: ValueId) -> Option<Scaled> {
    let (mut product, mut moved) = (v, Vec::new());
    while graph.op(product)?.moves() {
        moved.push(product);
        product = graph.operand(product, 0)?;
    }
    let operands = graph.operands(product);
    let (Some(Op::Tensor(TensorOp::Binary(Binary::Mul))), &[x, y]) = (graph.op(product), operands.as_slice()) else {
        return None;
    };
    let (x, factor) = [(x, y), (y, x)].into_iter().find_map(|(x, k)| {
        let factor = graph.constant(k).filter(|t| t.rank() <= 1).and_then(Tensor::single_f32)?;
        let keeps = graph.shape(x) == graph.shape(product) && graph.node(x).is_ok_and(|n| n.owner == Owner::Secret);
        (keeps && factor.is_finite() && factor != 0.0).then_some((x, factor))
    })?;
    Some(Scaled { x, factor, moved })
}

/// The value without its factor: the movements anew, of what was multiplied.
fn without_factor(graph: &mut Graph, Scaled { x, moved, .. }: Scaled) -> Result<ValueId> {
    moved.into_iter().rev().try_fold(x, |x, at| {
        let node = graph.node(at)?.clone();
        let operands: Vec<ValueId> = [x].into_iter().chain(graph.operands(at).into_iter().skip(1)).collect();
        graph.add(node.op, &operands, Origin { value: String::new(), ..node.origin })
    })
}

/// The power of two that a constant was before it was rounded to single precision, or the constant.
fn near_power_of_two(k: f32) -> f32 {
    let power = libm::exp2(libm::round(libm::log2(f64::from(k.abs()))));
    let near = (f64::from(k.abs()) - power).abs() <= 2.0 * f64::from(f32::EPSILON) * power;
    if near { (power as f32).copysign(k) } else { k }
}

/// `min(max(x, low), high)` of two moderate constants as one clamp, whose comparisons do not wait for each other.
fn clipped(graph: &mut Graph, id: ValueId, (a, b): (ValueId, ValueId), origin: Origin) -> Result<Option<ValueId>> {
    const MODERATE: f32 = 4096.0;
    let constant = |graph: &Graph, v: Option<ValueId>| {
        let t = graph.constant(v?)?;
        let one = *t.as_f32().ok().filter(|values| values.len() == 1)?.first()?;
        (one.abs() <= MODERATE && t.rank() <= 1).then_some(one)
    };
    let (Some(Op::Tensor(TensorOp::Binary(Binary::Max))), Some(high)) = (graph.op(a), constant(graph, Some(b))) else {
        return Ok(None);
    };
    let (x, low) = (graph.operand(a, 0), constant(graph, graph.operand(a, 1)));
    let (Some(x), Some(low)) = (x, low) else { return Ok(None) };
    let secret = graph.node(x)?.owner == Owner::Secret;
    if low > high || !secret || graph.shape(x) != graph.shape(id) {
        return Ok(None);
    }
    graph.add(Op::Clamp { low, high }, &[x], origin).map(Some)
}

/// A quotient whose divisor somebody knows, is a root, or divides a public value, as a product with an inverse.
fn divided(graph: &mut Graph, (a, b): (ValueId, ValueId), inner: Origin, origin: Origin) -> Result<Option<ValueId>> {
    let known = matches!(graph.node(b)?.owner, Owner::Public | Owner::Server);
    let scalar = |t: &Tensor| t.rank() <= 1 && t.as_f32().is_ok_and(|v| v.windows(2).all(|w| w[0] == w[1]));
    if known && graph.constant(b).is_some_and(scalar) {
        return Ok(None);
    }
    let b = at_least_one(graph, (a, b), &inner)?;
    let inverse = match secret_root(graph, b) {
        Some(x) => graph.add(Op::Pow(-0.5), &[x], inner)?,
        None if known || graph.node(a)?.owner == Owner::Public => graph.add(Op::RECIPROCAL, &[b], inner)?,
        None => return Ok(None),
    };
    graph.add(Op::MUL, &[a, inverse], origin).map(Some)
}

/// The divisor of a mean of what whole numbers choose, limited to 1 where the model limits it to less: where they sum up
/// to 0, so does what is divided.
fn at_least_one(graph: &mut Graph, (a, b): (ValueId, ValueId), inner: &Origin) -> Result<ValueId> {
    let Some((count, _)) = graph.limited(b).filter(|_| graph.mean_of(a, b).is_some()) else { return Ok(b) };
    let one = graph.add_const(Tensor::scalar_f32(1.0), inner.clone())?;
    graph.add(Op::MAX, &[count, one], inner.clone())
}

/// The secret that a value is the square root of.
fn secret_root(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let secret = graph.node(v).ok()?.owner == Owner::Secret;
    let root = matches!(graph.op(v), Some(Op::Tensor(TensorOp::Unary(Unary::Sqrt))))
        || matches!(graph.op(v), Some(Op::Pow(p)) if *p == 0.5);
    if secret && root { graph.operand(v, 0) } else { None }
}

/// `x^p`: products for small whole exponents, roots for halves, else `exp(p ln x)`.
fn power(graph: &mut Graph, x: ValueId, p: f32, inner: Origin, origin: Origin) -> Result<ValueId> {
    const LARGEST: f32 = 16.0;
    if p == 1.0 {
        return Ok(x);
    }
    if p == 0.5 {
        return graph.add(Op::SQRT, &[x], origin);
    }
    if p > 1.0 && p <= LARGEST && p.fract() == 0.0 {
        let half = power(graph, x, (p / 2.0).floor(), inner.clone(), inner.clone())?;
        let square = graph.add(Op::MUL, &[half, half], if p % 2.0 == 0.0 { origin.clone() } else { inner })?;
        return if p % 2.0 == 0.0 { Ok(square) } else { graph.add(Op::MUL, &[square, x], origin) };
    }
    if (-LARGEST..0.0).contains(&p) && p.fract() == 0.0 {
        let up = power(graph, x, -p, inner.clone(), inner)?;
        return graph.add(Op::RECIPROCAL, &[up], origin);
    }
    let log = graph.add(Op::LOG, &[x], inner.clone())?;
    let factor = graph.add_const(Tensor::scalar_f32(p), inner.clone())?;
    let scaled = graph.add(Op::MUL, &[log, factor], inner)?;
    graph.add(Op::EXP, &[scaled], origin)
}

/// The value with leading axes of size 1 up to a rank.
fn with_rank(graph: &mut Graph, x: ValueId, rank: usize, origin: &Origin) -> Result<ValueId> {
    let shape = graph.shape(x);
    if shape.len() >= rank {
        return Ok(x);
    }
    let ones = std::iter::repeat_n(Dim::constant(1), rank - shape.len());
    let shape = ones.chain(shape.iter().cloned()).collect();
    graph.add(Op::Tensor(TensorOp::Reshape { shape }), &[x], origin.clone())
}
