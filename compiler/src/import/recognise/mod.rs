//! Recognises what exporters wrote in many nodes: norms, activations, rotary embeddings, masked softmax.
//!
//! A pattern is a function from a node, the last one of what it matches, to what takes its place. It holds for every
//! order of the operands of sums and products. What is matched stays in the graph until nothing uses it any more.
//! A pattern that matched in part says why not in full.

mod activation;
mod approximate;
mod mask;
mod norm;
mod rotary;
mod softmax;
pub(crate) mod values;

use ombra_ir::plain::{Binary, Tensor};
use ombra_ir::{Dim, Result};

use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, Origin, TensorOp, ValueId};

pub use mask::check_masks;
pub(crate) use rotary::{Rotation, rotated};
pub use softmax::is_mask;

/// What a pattern says of a node.
pub enum Match {
    /// It is something else.
    No,
    /// It is nearly it; why not.
    Near(String),
    /// It is `op` of `operands`.
    Yes(Op, Vec<ValueId>),
    /// It is what the pattern looks for, and stays as it is.
    Seen,
    /// The same, and weights of these names that it depends on were put in the clear.
    Published(Vec<String>),
}

/// A pattern: its name and its test of one node. It may add nodes for the operands of what it found.
pub struct Pattern {
    /// Name, as in reports.
    pub name: &'static str,
    /// The test.
    pub test: fn(&mut Graph, ValueId, &Weights) -> Result<Match>,
}

/// The patterns, in the order in which they are tried: a layer norm is also an RMS norm of what is centred, and guards of
/// a softmax are taken away after its mask is known.
pub const PATTERNS: &[Pattern] = &[
    Pattern { name: "neutral element", test: activation::neutral },
    Pattern { name: "rotary", test: rotary::rotary },
    Pattern { name: "layer_norm", test: norm::layer_norm },
    Pattern { name: "layer_norm without bias", test: norm::layer_norm_without_bias },
    Pattern { name: "rms_norm", test: norm::rms_norm },
    Pattern { name: "gelu", test: activation::gelu },
    Pattern { name: "silu", test: activation::silu },
    Pattern { name: "softmax by quotients", test: approximate::ratio_softmax },
    Pattern { name: "affine norm", test: approximate::affine_norm },
    Pattern { name: "affine norm without bias", test: approximate::affine_norm_without_bias },
    Pattern { name: "scale before products", test: approximate::scale_before_products },
    Pattern { name: "quadratic", test: approximate::quadratic },
    Pattern { name: "softmax of folded scores", test: softmax::folded_scores },
    Pattern { name: "softmax with additive mask", test: softmax::additive_mask },
    Pattern { name: "softmax with chosen mask", test: softmax::chosen_mask },
    Pattern { name: "softmax with guard", test: softmax::guard },
];

/// A node that a pattern matched, in full or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name of the pattern.
    pub pattern: &'static str,
    /// Where the node comes from.
    pub origin: Origin,
    /// Why it is no full match; `None` when it is one.
    pub near_miss: Option<String>,
    /// Weights that were put in the clear. Whether they may be is known after labels only: whoever labels has to check.
    pub published: Vec<String>,
}

/// Replaces every match and returns what was found. `weights` gives the data of initializers, for masks among them.
///
/// Errors: those of `weights`; an internal error when a replacement is of another type.
pub fn recognise(graph: &mut Graph, weights: &Weights) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for pattern in PATTERNS {
        let mut near = Vec::new();
        for id in graph.topological() {
            if graph.users(id).is_empty() && !graph.is_output(id) {
                continue;
            }
            let origin = graph.node(id)?.origin.clone();
            let mut published = Vec::new();
            match (pattern.test)(graph, id, weights)? {
                Match::No => continue,
                Match::Near(why) => {
                    near.push((id, Found { pattern: pattern.name, origin, near_miss: Some(why), published }));
                    continue;
                }
                Match::Seen => {}
                Match::Published(tables) => published = tables,
                Match::Yes(Op::Tensor(TensorOp::Identity), operands) => {
                    if let [same] = operands.as_slice() {
                        graph.replace_all_uses(id, *same)?;
                    }
                }
                Match::Yes(op, operands) => {
                    let new = graph.add(op, &operands, origin.clone())?;
                    graph.replace_all_uses(id, new)?;
                }
            }
            found.push(Found { pattern: pattern.name, origin, near_miss: None, published });
        }
        graph.remove_dead();
        // A part of a full match may look like a near miss of its own.
        found.extend(near.into_iter().filter(|(id, _)| graph.op(*id).is_some()).map(|(_, miss)| miss));
    }
    graph.merge_equal()?;
    Ok(found)
}

/// The only element of a float constant, whatever its number of axes.
fn scalar(graph: &Graph, id: ValueId) -> Option<f32> {
    graph.constant(id).and_then(Tensor::single_f32)
}

/// The two operands of `id` in both orders, when its operator is `op`, which commutes.
fn both_orders(graph: &Graph, id: ValueId, op: &Op) -> Vec<(ValueId, ValueId)> {
    match (graph.op(id) == Some(op), graph.operands(id).as_slice()) {
        (true, [a, b]) => vec![(*a, *b), (*b, *a)],
        _ => Vec::new(),
    }
}

/// The operand of `id` and its operator, when it has one operand.
fn only(graph: &Graph, id: ValueId) -> Option<(&Op, ValueId)> {
    match graph.operands(id).as_slice() {
        [x] => Some((graph.op(id)?, *x)),
        _ => None,
    }
}

/// Whether `x` is `y` within a relative tolerance for constants that were rounded to half precision.
fn close(x: f32, y: f32) -> bool {
    (x - y).abs() <= 1e-3 * y.abs()
}

/// Whether `id` is the square of `x`.
fn is_square(graph: &Graph, id: ValueId, x: ValueId) -> bool {
    match (graph.op(id), graph.operands(id).as_slice()) {
        (Some(Op::Pow(e)), [a]) => *e == 2.0 && *a == x,
        (Some(Op::Tensor(TensorOp::Binary(Binary::Mul))), [a, b]) => *a == x && *b == x,
        _ => false,
    }
}

/// The operator that stands for its operand, for patterns that find nothing but that.
fn same() -> Op {
    Op::Tensor(TensorOp::Identity)
}

/// The size of the last axis.
fn last_size(graph: &Graph, id: ValueId) -> Option<Dim> {
    graph.shape(id).last().cloned()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
