//! Neighbouring heads that share one softmax (Rathee et al., arXiv 2408.03561, §5.3).
//!
//! `m` heads of size `d` become one of size `m·d`: queries, keys and values of the group stand side by side, rotations stay
//! those of the original heads, and scores are divided by `√(m·d)` in place of `√d`. Which heads go together changes what
//! a model answers, not what it costs; here neighbours do.

use super::variant::beside;
use crate::attention::{self, Attention};
use crate::graph::{Graph, Op, TensorOp, ValueId};
use ombra_ir::plain::{Binary, Tensor};
use ombra_ir::{Diagnostic, Dim, Result};

/// Merges every `m` neighbouring heads in the layers from `first` on.
///
/// # Errors
/// `E0595` when no attention was found there, or its heads cannot be merged so.
pub(super) fn merge(graph: &mut Graph, first: u32, m: u32) -> Result<()> {
    let found: Vec<ValueId> = graph
        .topological()
        .into_iter()
        .filter(|&id| {
            matches!(graph.op(id), Some(Op::MaskedSoftmax { .. } | Op::Softmax { .. }))
                && graph.node(id).is_ok_and(|n| n.origin.layer.is_some_and(|layer| layer >= first))
        })
        .collect();
    if found.is_empty() {
        return Err(cannot(m, "no softmax was found in the layers"));
    }
    for softmax in found {
        let origin = graph.node(softmax)?.origin.node.clone();
        merge_one(graph, softmax, i64::from(m)).map_err(|d| d.at(origin))?;
    }
    Ok(())
}

fn cannot(m: impl std::fmt::Display, why: &str) -> Diagnostic {
    Diagnostic::input("E0595", format!("merging {m} heads is not possible: {why}"))
        .note("expected attention with scores [batch, heads, queries, keys] and a mask that is the same for all heads")
}

fn merge_one(graph: &mut Graph, softmax: ValueId, m: i64) -> Result<()> {
    let attention = attention(graph, softmax, m)?;
    let shape = graph.shape(softmax).to_vec();
    let [batch, heads, queries, keys] = shape.as_slice() else { return Err(cannot(m, "scores have not four axes")) };
    let heads = heads.as_constant().filter(|h| h % m == 0).ok_or_else(|| cannot(m, "their number is no multiple"))?;
    let size = |size: usize| i64::try_from(size).map_err(|_| cannot(m, "they are too large"));
    let (q, k, v) = (attention.queries, attention.keys, attention.values);
    let (d, dv) = (size(attention.key_size)?, size(attention.value_size)?);
    let group = Group { batch: batch.clone(), heads, m };

    let q = group.join(graph, q, queries, d)?;
    // Keys are given with their last two axes exchanged, so that heads and their elements are neighbours already.
    let origin = beside(&graph.node(k)?.origin);
    let joined = vec![batch.clone(), Dim::constant(heads / m), Dim::constant(m * d), keys.clone()];
    let k = graph.add(Op::Tensor(TensorOp::Reshape { shape: joined }), &[k], origin)?;
    let v = group.join(graph, v, keys, dv)?;

    let origin = beside(&graph.node(attention.scores)?.origin);
    let product = graph.add(Op::MATMUL, &[q, k], origin)?;
    let scaled = scale(graph, &attention, product, m)?;
    let mut args = vec![scaled];
    if let Some(mask) = graph.operand(softmax, 1) {
        let same_for_heads = graph.shape(mask).iter().rev().nth(2).is_none_or(|d| d.is(1));
        if !same_for_heads {
            return Err(cannot(m, "heads have masks of their own"));
        }
        args.push(mask);
    }
    let node = graph.node(softmax)?.clone();
    let probabilities = graph.add(node.op, &args, beside(&node.origin))?;
    let node = graph.node(attention.output)?.clone();
    let out = graph.add(Op::MATMUL, &[probabilities, v], beside(&node.origin))?;
    let out = group.split(graph, out, queries, dv)?;
    graph.replace_all_uses(attention.output, out)
}

/// The attention of a softmax, when nothing but factors stands between its products.
fn attention(graph: &Graph, softmax: ValueId, m: i64) -> Result<Attention> {
    let unknown = || cannot(m, "its products were not recognised");
    let found = attention::candidate(graph, softmax).ok_or_else(unknown)?;
    let found = found.map_err(|miss| cannot(m, &miss.why))?;
    let only_factors = found.chain.iter().all(|&at| factor(graph, at).is_some()) && found.below.is_empty();
    if only_factors && graph.shape(found.scores) == graph.shape(softmax) { Ok(found) } else { Err(unknown()) }
}

/// The operand and the factor of a product or quotient with a scalar constant, and whether it divides.
fn factor(graph: &Graph, id: ValueId) -> Option<(ValueId, (f32, bool))> {
    let (a, b) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    let scalar = |v: ValueId| graph.constant(v).and_then(Tensor::single_f32);
    match graph.op(id)? {
        Op::Tensor(TensorOp::Binary(Binary::Mul)) => match (scalar(a), scalar(b)) {
            (_, Some(k)) => Some((a, (k, false))),
            (Some(k), _) => Some((b, (k, false))),
            _ => None,
        },
        Op::Tensor(TensorOp::Binary(Binary::Div)) => Some((a, (scalar(b)?, true))),
        _ => None,
    }
}

/// `k`, or the power of two that it is but for rounding: an exporter computes the root of `m·d` at once, and powers of two
/// are cheaper factors.
fn rounded(k: f32) -> f32 {
    let power = libm::exp2(libm::round(libm::log2(f64::from(k)))) as f32;
    if (k - power).abs() <= 1e-6 * power { power } else { k }
}

/// `product` with the factors of the scores, and `1/√m` in the last of them; in one of its own if there is none.
fn scale(graph: &mut Graph, attention: &Attention, product: ValueId, m: i64) -> Result<ValueId> {
    let root = (m as f32).sqrt();
    let mut chain = Vec::new();
    let mut at = graph.operand(attention.softmax, 0).unwrap_or(product);
    while let Some((rest, factor)) = factor(graph, at) {
        chain.push((at, factor));
        at = rest;
    }
    let mut value = product;
    let mut rest = 1.0 / root;
    for (node, (k, divides)) in chain.into_iter().rev() {
        let origin = beside(&graph.node(node)?.origin);
        let k = rounded(if divides { k / rest } else { k * rest });
        rest = 1.0;
        let k = graph.add_const(Tensor::scalar_f32(k), origin.clone())?;
        value = graph.add(if divides { Op::DIV } else { Op::MUL }, &[value, k], origin)?;
    }
    if rest != 1.0 {
        let origin = beside(&graph.node(attention.scores)?.origin);
        let k = graph.add_const(Tensor::scalar_f32(rest), origin.clone())?;
        value = graph.add(Op::MUL, &[value, k], origin)?;
    }
    Ok(value)
}

/// Sizes of what is joined.
struct Group {
    batch: Dim,
    heads: i64,
    m: i64,
}

impl Group {
    /// `[batch, heads, positions, d]` as `[batch, heads / m, positions, m·d]`.
    fn join(&self, graph: &mut Graph, x: ValueId, positions: &Dim, d: i64) -> Result<ValueId> {
        let origin = beside(&graph.node(x)?.origin);
        let of = |last: &[Dim]| [vec![self.batch.clone(), Dim::constant(self.heads / self.m)], last.to_vec()].concat();
        let apart = of(&[Dim::constant(self.m), positions.clone(), Dim::constant(d)]);
        let joined = of(&[positions.clone(), Dim::constant(self.m * d)]);
        let x = graph.add(Op::Tensor(TensorOp::Reshape { shape: apart }), &[x], origin.clone())?;
        let x = graph.add(Op::Tensor(TensorOp::Transpose { perm: vec![0, 1, 3, 2, 4] }), &[x], origin.clone())?;
        graph.add(Op::Tensor(TensorOp::Reshape { shape: joined }), &[x], origin)
    }

    /// The inverse of [`Group::join`].
    fn split(&self, graph: &mut Graph, x: ValueId, positions: &Dim, d: i64) -> Result<ValueId> {
        let origin = beside(&graph.node(x)?.origin);
        let apart = vec![
            self.batch.clone(),
            Dim::constant(self.heads / self.m),
            positions.clone(),
            Dim::constant(self.m),
            Dim::constant(d),
        ];
        let single = vec![self.batch.clone(), Dim::constant(self.heads), positions.clone(), Dim::constant(d)];
        let x = graph.add(Op::Tensor(TensorOp::Reshape { shape: apart }), &[x], origin.clone())?;
        let x = graph.add(Op::Tensor(TensorOp::Transpose { perm: vec![0, 1, 3, 2, 4] }), &[x], origin.clone())?;
        graph.add(Op::Tensor(TensorOp::Reshape { shape: single }), &[x], origin)
    }
}
