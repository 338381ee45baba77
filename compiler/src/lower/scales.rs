//! Fraction bits of every value, by what takes it.
//!
//! Operands of products and activations have `f`. A norm looks at the relative size of a row, so its operand, and the
//! residual that leads there, has more, as many as the row's length leaves room for. A product of two secret activations
//! has [`PRODUCT`]: its small entries count as much as its large ones where a norm follows. A matrix has as many as its
//! largest element leaves of [`WEIGHT`], and fewer where its product would not fit the ring, or where its truncation would
//! drop more than [`DROPPED`] bits, which cost by the byte. Where products are of ciphertexts, a weight gives up bits down to
//! [`SHORT`] for a product in a ring that these are short in.

use super::RING;
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use crate::ranges::bounds::Ranges;
use ombra_ir::plain::{Binary, DType, Unary};
use ombra_ir::settings::Protocol;
use std::collections::BTreeMap;

/// Most fraction bits of a norm's operand.
pub(super) const RESIDUAL: u8 = 20;
/// Bits of a row's length that the statistic of a norm is exact for.
const ROW: i32 = 46;
/// Bits of a row's length, and of the number of its elements where it is centred, that a norm takes.
pub(super) const LONGEST: i32 = 50;
/// Fraction bits of a product of two secret activations.
const PRODUCT: u8 = 18;
/// Bits of a weight's largest element.
const WEIGHT: i32 = 18;
/// Fewest and most fraction bits of a weight.
const WEIGHTS: (i32, i32) = (8, 20);
/// Bits that the truncation of a product with weights drops, where these keep at least [`PRECISE`].
const DROPPED: i32 = 16;
/// Fraction bits of weights that are not given up for a cheaper truncation.
const PRECISE: i32 = 14;
/// Fraction bits of weights that are not given up for shorter ciphertexts.
const SHORT: i32 = 14;

/// Fraction bits of values that have others than `f` when they are rescaled: secret ones, and those of one party.
pub(super) fn scales(graph: &Graph, ranges: &Ranges, f: u8, protocol: &Protocol) -> BTreeMap<ValueId, u8> {
    let mut scales: BTreeMap<ValueId, u8> = BTreeMap::new();
    let moving = |v: ValueId| {
        graph.node(v).is_ok_and(|n| n.dtype == DType::F32 && matches!(n.owner, Owner::Secret | Owner::Client))
    };
    let raise = |scales: &mut BTreeMap<ValueId, u8>, v: ValueId, scale: u8| {
        if moving(v) && scale > f && !is_cache(graph, v) {
            let entry = scales.entry(v).or_insert(scale);
            *entry = (*entry).max(scale);
        }
    };
    for v in graph.topological().into_iter().rev() {
        let Ok(node) = graph.node(v) else { continue };
        if node.owner != Owner::Secret {
            continue;
        }
        let args = graph.operands(v);
        match node.op {
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
                let scale = row_scale(graph, ranges, args[0], matches!(node.op, Op::LayerNorm { .. }));
                // A longer row makes its products' ciphertexts long.
                let finest = if protocol.ciphertexts.is_some() { f } else { RESIDUAL.max(f) };
                raise(&mut scales, args[0], scale.clamp(i32::from(f), i32::from(finest)) as u8);
            }
            Op::MUL if args.iter().all(|&a| moving(a)) && graph.users(v).iter().all(|&u| is_product(graph, u, v)) => {
                raise(&mut scales, v, PRODUCT);
            }
            _ => {}
        }
        let Some(&scale) = scales.get(&v) else { continue };
        match node.op {
            Op::ADD
            | Op::SUB
            | Op::NEG
            | Op::Tensor(
                TensorOp::Reshape { .. }
                | TensorOp::Transpose { .. }
                | TensorOp::Slice { .. }
                | TensorOp::Expand { .. }
                | TensorOp::Concat { .. },
            ) => args.iter().for_each(|&a| raise(&mut scales, a, scale)),
            Op::Tensor(TensorOp::Gather { .. }) => args.iter().take(1).for_each(|&a| raise(&mut scales, a, scale)),
            _ => {}
        }
    }
    for (v, _) in graph.iter().filter(|(_, n)| n.owner == Owner::Server && n.dtype == DType::F32) {
        let secret = |u: &ValueId| graph.node(*u).is_ok_and(|n| n.owner == Owner::Secret);
        if !graph.users(v).iter().any(secret) {
            continue;
        }
        let short = protocol.ciphertexts.map(|ciphertexts| ciphertexts.short_ring);
        let room = |&u: &ValueId| room(graph, ranges, &scales, u, (f, short));
        let room = graph.users(v).iter().filter(|u| secret(u)).map(room).min();
        // The most that its products leave; how large its elements are is known when it is shared.
        scales.insert(v, room.unwrap_or(i32::MAX).clamp(WEIGHTS.0, WEIGHTS.1) as u8);
    }
    scales
}

/// Whether a weight is compared or chosen, so that it has the scale of what it stands beside, rounded once.
pub(super) fn stands_beside(graph: &Graph, v: ValueId) -> bool {
    let takes_any = |u: &ValueId| {
        matches!(
            graph.op(*u),
            Some(
                Op::Tensor(
                    TensorOp::MatMul
                        | TensorOp::Gather { .. }
                        | TensorOp::Binary(Binary::Mul | Binary::Add | Binary::Sub)
                ) | Op::RmsNorm { .. }
                    | Op::LayerNorm { .. }
                    | Op::AffineNorm { .. }
            )
        )
    };
    graph.users(v).iter().any(|u| graph.node(*u).is_ok_and(|n| n.owner == Owner::Secret) && !takes_any(u))
}

/// Fraction bits of a weight whose largest element is known, beside a limit.
pub(super) fn weight_scale(largest: Option<f64>, room: i32) -> u8 {
    let largest = largest.filter(|&x| x > 0.0).map_or(0, |x| libm::ceil(libm::log2(x)) as i32);
    (WEIGHT - largest).min(room).clamp(WEIGHTS.0, WEIGHTS.1) as u8
}

/// Fraction bits at which a norm's statistic takes rows of a value.
fn row_scale(graph: &Graph, ranges: &Ranges, x: ValueId, centred: bool) -> i32 {
    let length = ranges.values.get(&x).and_then(|r| r.length).filter(|l| *l > 0.0 && l.is_finite());
    let bits = length.map_or(0, |l| libm::ceil(libm::log2(l)) as i32);
    let columns = graph.shape(x).last().and_then(|d| d.as_constant()).unwrap_or(1).max(1);
    let centre = if centred { libm::ceil(libm::log2(columns as f64)) as i32 } else { 0 };
    ROW - bits - centre
}

/// Fraction bits that a product's result leaves to its weight, in a `short` ring where at least [`SHORT`] are left there; public
/// factors that it is rotated by take some more.
pub(super) fn room(
    graph: &Graph,
    ranges: &Ranges,
    scales: &BTreeMap<ValueId, u8>,
    product: ValueId,
    (f, short): (u8, Option<u8>),
) -> i32 {
    let (Some(Op::Tensor(TensorOp::MatMul)), Some(left)) = (graph.op(product), graph.operand(product, 0)) else {
        return i32::MAX;
    };
    let Some(most) = ranges.size(product) else { return i32::MAX };
    let bits = if most > 0.0 { libm::ceil(libm::log2(most)) as i32 + 1 } else { 0 };
    let scale = scales.get(&left).copied().unwrap_or(f);
    let rotation = if is_rotated(graph, product) { i32::from(f) + 1 } else { 0 };
    let left_of = |ring: u8| i32::from(ring) - 2 - bits - i32::from(scale) - rotation;
    let wanted = i32::from(scales.get(&product).copied().unwrap_or(f));
    let room = left_of(RING).min((wanted + DROPPED - i32::from(scale)).max(PRECISE));
    short.map(left_of).filter(|short| *short >= SHORT).map_or(room, |short| room.min(short))
}

/// Whether a value is multiplied by public numbers before anything else.
fn is_rotated(graph: &Graph, v: ValueId) -> bool {
    let mut next = vec![v];
    for _ in 0..32 {
        let Some(at) = next.pop() else { return false };
        for u in graph.users(at) {
            match graph.op(u) {
                Some(Op::Tensor(TensorOp::Binary(Binary::Mul)))
                    if graph
                        .operands(u)
                        .iter()
                        .any(|&a| graph.node(a).is_ok_and(|n| n.owner == Owner::Public && n.shape.len() > 1)) =>
                {
                    return true;
                }
                Some(Op::Tensor(
                    TensorOp::Binary(Binary::Add)
                    | TensorOp::Reshape { .. }
                    | TensorOp::Transpose { .. }
                    | TensorOp::Slice { .. }
                    | TensorOp::Unary(Unary::Neg)
                    | TensorOp::Concat { .. },
                )) => next.push(u),
                _ => {}
            }
        }
    }
    false
}

fn is_cache(graph: &Graph, v: ValueId) -> bool {
    use crate::graph::InputRole;
    let role = |v| match graph.op(v) {
        Some(Op::Input { role, .. }) => Some(*role),
        _ => None,
    };
    matches!(role(v), Some(InputRole::PastKey { .. } | InputRole::PastValue { .. }))
}

/// Whether a user takes a value as the left side of a product with weights, or as a norm's operand.
fn is_product(graph: &Graph, user: ValueId, v: ValueId) -> bool {
    match graph.op(user) {
        Some(Op::Tensor(TensorOp::MatMul)) => {
            let right = graph.operand(user, 1).filter(|&w| w != v);
            right.and_then(|w| graph.node(w).ok()).is_some_and(|n| matches!(n.owner, Owner::Server | Owner::Public))
        }
        Some(Op::RmsNorm { .. } | Op::LayerNorm { .. }) => graph.operand(user, 0) == Some(v),
        Some(Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Slice { .. } | TensorOp::Transpose { .. })) => {
            graph.users(user).iter().all(|&u| is_product(graph, u, user))
        }
        _ => false,
    }
}
