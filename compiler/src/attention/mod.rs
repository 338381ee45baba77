//! Attention in a typed graph: the one place that knows what it looks like.
//!
//! `softmax(scale · queries · keys + bias, mask) · values`, from the softmax up to a product of two activations and down to
//! the next one. Exporters write it in many ways; fused operators are taken apart when a model is read, so here all are
//! alike. What is found has a name for reports, for merging heads and for predictions. Nothing else depends on it:
//! an attention that is not found is compiled as the operators it is made of.

pub mod explain;
mod heads;
mod mask;
mod report;
mod walk;

use ombra_ir::Dim;
use ombra_ir::plain::{Binary, Unary};

use crate::graph::{Graph, Numerator, Op, Owner, TensorOp, ValueId};

pub use mask::{Form, Mask};
pub use report::{Cache, Continued, Description, describe};

/// What makes distributions of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The softmax itself.
    Exact,
    /// A quotient that takes its place.
    Ratio {
        /// Of what there is a quotient.
        numerator: Numerator,
        /// Added to the divisor.
        eps: f32,
    },
}

/// One attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Number of the layer, where names say it.
    pub layer: Option<u32>,
    /// The distributions, `[batch, heads, new, all]`; axes before the last two may be joined or split.
    pub softmax: ValueId,
    /// What makes them.
    pub kind: Kind,
    /// Product of queries and keys.
    pub scores: ValueId,
    /// What stands between the scores and the softmax, from the softmax up.
    pub chain: Vec<ValueId>,
    /// Queries, `[batch, heads, new, size]`.
    pub queries: ValueId,
    /// Transposed keys, `[batch, heads or 1, size, all]`.
    pub keys: ValueId,
    /// What stands between the softmax and the product with values, from the softmax down.
    pub below: Vec<ValueId>,
    /// Values, `[batch, heads or 1, all, size]`.
    pub values: ValueId,
    /// Product of distributions and values, `[batch, heads, new, size]`.
    pub output: ValueId,
    /// Number of query heads that have a softmax of their own.
    pub heads: usize,
    /// Number of heads of keys and values; divides `heads`.
    pub key_heads: usize,
    /// Size of a head of queries and keys.
    pub key_size: usize,
    /// Size of a head of values.
    pub value_size: usize,
}

/// What looks like an attention, and the condition that it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// Number of the layer, where names say it.
    pub layer: Option<u32>,
    /// Its softmax.
    pub softmax: ValueId,
    /// The value that fails the condition.
    pub at: ValueId,
    /// The condition, as a statement of what was found.
    pub why: String,
    /// What was expected, or what to do.
    pub note: Option<String>,
}

/// An attention, or what looks like one.
pub type Candidate = std::result::Result<Attention, Box<NearMiss>>;

/// Every attention of `graph` and everything that looks like one, in order of computation.
///
/// A softmax over anything but a product of two activations is neither.
pub fn attentions(graph: &Graph) -> Vec<Candidate> {
    graph.topological().into_iter().filter_map(|id| candidate(graph, id)).collect()
}

/// The attention whose softmax is `id`; `None` when that is no softmax, or one over something else.
pub fn candidate(graph: &Graph, id: ValueId) -> Option<Candidate> {
    let (axis, kind) = match graph.op(id)? {
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } => (*axis, Kind::Exact),
        Op::RatioSoftmax { axis, numerator, eps } => (*axis, Kind::Ratio { numerator: *numerator, eps: *eps }),
        _ => return None,
    };
    let above = above(graph, id)?;
    Some(with_scores(graph, id, axis, kind, above).map_err(|(at, why, note)| {
        let layer = layer_of(graph, id).or_else(|| layer_of(graph, at));
        Box::new(NearMiss { layer, softmax: id, at, why, note })
    }))
}

/// A value, what is wrong with it, and what was expected.
type Miss = (ValueId, String, Option<String>);

fn miss<T>(at: ValueId, why: impl Into<String>, note: Option<String>) -> Result<T, Miss> {
    Err((at, why.into(), note))
}

/// What stands above a softmax.
struct Above {
    /// The product of queries and keys.
    scores: ValueId,
    /// From the softmax up.
    chain: Vec<ValueId>,
    /// The first value on the way that is not as it has to be.
    wrong: Option<Miss>,
}

/// Whether `id` depends on tokens or caches, and not on weights, sizes, masks and positions alone.
pub fn is_activation(graph: &Graph, id: ValueId) -> bool {
    graph.node(id).is_ok_and(|n| matches!(n.owner, Owner::Client | Owner::Secret))
}

/// Operators that treat every element of the scores alike, and choices between them.
fn is_elementwise(op: &Op) -> bool {
    matches!(
        op,
        Op::Tensor(
            TensorOp::Binary(Binary::Add | Binary::Sub | Binary::Mul | Binary::Div)
                | TensorOp::Unary(Unary::Neg | Unary::Tanh)
                | TensorOp::Where
                | TensorOp::Binary(Binary::Max | Binary::Min)
                | TensorOp::Unary(Unary::IsNan)
        )
    )
}

/// Operators that only split, join or exchange axes.
fn is_arrangement(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Transpose { .. }))
}

fn active(graph: &Graph, id: ValueId) -> Vec<ValueId> {
    graph.operands(id).into_iter().filter(|&o| is_activation(graph, o)).collect()
}

/// Follows the one operand that is an activation up to a product of two activations. Where there are several, or an
/// operator that no attention has there, it is a near miss if the way leads to such a product all the same.
fn above(graph: &Graph, softmax: ValueId) -> Option<Above> {
    let mut at = graph.operand(softmax, 0)?;
    let mut chain = Vec::new();
    let mut wrong = None;
    loop {
        let operands = active(graph, at);
        let op = graph.op(at)?;
        if *op == Op::MATMUL {
            return (operands.len() == 2).then_some(Above { scores: at, chain, wrong });
        }
        let known = is_elementwise(op) || is_arrangement(op);
        if !known && wrong.is_some() {
            return None;
        }
        let next = match operands.as_slice() {
            [next] => *next,
            several => {
                let next = several.iter().copied().find(|&o| leads_to_product(graph, o))?;
                let condition = *op == Op::WHERE && several.first() == graph.operand(at, 0).as_ref();
                let why = match op {
                    Op::Tensor(TensorOp::Where) if condition => {
                        "its mask is not public: it depends on tokens or caches"
                    }
                    _ => "what is combined with its scores depends on tokens or caches",
                };
                let note = "expected masks of lengths, positions, and inputs that are public";
                wrong = wrong.or_else(|| Some((at, why.into(), Some(note.into()))));
                next
            }
        };
        if !known {
            let why = format!("{} stands between its scores and the softmax", op.name());
            wrong = Some((at, why, Some("expected sums and products with a scale and a mask".into())));
        }
        chain.push(at);
        at = next;
    }
}

/// Whether operators that may stand between scores and softmax lead from a product of two activations to `id`.
fn leads_to_product(graph: &Graph, id: ValueId) -> bool {
    let mut at = id;
    loop {
        let operands = active(graph, at);
        match graph.op(at) {
            Some(Op::Tensor(TensorOp::MatMul)) => return operands.len() == 2,
            Some(op) if is_elementwise(op) || is_arrangement(op) => {}
            _ => return false,
        }
        let [next] = operands.as_slice() else { return false };
        at = *next;
    }
}

fn with_scores(graph: &Graph, softmax: ValueId, axis: usize, kind: Kind, above: Above) -> Result<Attention, Miss> {
    let Above { scores, chain, wrong } = above;
    if axis + 1 != graph.shape(softmax).len() {
        let why = format!("its softmax runs along axis {axis}, not along the keys");
        return miss(softmax, why, Some(format!("expected axis {}", graph.shape(softmax).len().saturating_sub(1))));
    }
    let (below, output) = below(graph, softmax)?;
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let mut user = softmax;
    for &at in chain.iter().chain([&scores]) {
        if graph.is_output(at) || graph.users(at) != [user] {
            return miss(at, "its scores are used more than once", None);
        }
        user = at;
    }
    let operands = |id: ValueId| graph.operand(id, 0).zip(graph.operand(id, 1));
    let ((queries, keys), (_, values)) = match (operands(scores), operands(output)) {
        (Some(above), Some(below)) => (above, below),
        _ => return miss(scores, "a product has not two operands", None),
    };
    let last = |id: ValueId, back: usize| -> Option<&Dim> { graph.shape(id).iter().rev().nth(back) };
    if chain.iter().any(|&at| last(at, 0) != last(scores, 0)) || last(softmax, 0) != last(scores, 0) {
        return miss(softmax, "its softmax does not run along the keys", None);
    }
    let size = |id: ValueId, what: &str| {
        let size = last(id, 0).and_then(Dim::as_constant).and_then(|d| usize::try_from(d).ok());
        size.map_or_else(|| miss(id, format!("the size of its heads of {what} is not known"), None), Ok)
    };
    let (key_size, value_size) = (size(queries, "queries")?, size(values, "values")?);
    let shape = || Some(format!("found scores of shape {}", graph.dims.show_shape(graph.shape(scores))));
    let Some((heads, batch)) = heads::query_heads(graph, scores) else {
        return miss(scores, "its scores do not have an axis of heads of a known size", shape());
    };
    let Some(key_heads) = heads::key_heads(graph, keys, scores, &batch, key_size) else {
        return miss(keys, "the number of its heads of keys is not known", shape());
    };
    if key_heads == 0 || heads % key_heads != 0 {
        let why = format!("{heads} heads of queries share {key_heads} heads of keys");
        return miss(keys, why, Some("expected a multiple".into()));
    }
    let layer = layer_of(graph, softmax).or_else(|| layer_of(graph, scores));
    Ok(Attention {
        layer,
        softmax,
        kind,
        scores,
        chain,
        queries,
        keys,
        below,
        values,
        output,
        heads,
        key_heads,
        key_size,
        value_size,
    })
}

/// What stands between distributions and the product with values, and that product: what the softmax is used for, and
/// nothing else.
fn below(graph: &Graph, softmax: ValueId) -> Result<(Vec<ValueId>, ValueId), Miss> {
    let mut at = softmax;
    let mut passed = Vec::new();
    loop {
        if graph.is_output(at) {
            let note = "export the model without attention weights among its outputs";
            return miss(at, "its distributions are an output of the model", Some(note.into()));
        }
        let users = graph.users(at);
        let [user] = users.as_slice() else {
            return miss(at, "its distributions are used more than once", None);
        };
        let other = graph.operands(*user).into_iter().filter(|&o| o != at).find(|&o| is_activation(graph, o));
        match graph.op(*user) {
            Some(Op::Tensor(TensorOp::MatMul)) if graph.operand(*user, 0) == Some(at) => match other {
                Some(_) => return Ok((passed, *user)),
                None => return miss(*user, "its distributions are multiplied with weights, not with values", None),
            },
            Some(op) if (is_elementwise(op) && other.is_none()) || is_arrangement(op) => {
                passed.push(*user);
                at = *user;
            }
            _ => return miss(*user, "its distributions are not simply multiplied with values", None),
        }
    }
}

fn layer_of(graph: &Graph, id: ValueId) -> Option<u32> {
    graph.node(id).ok()?.origin.layer
}

/// The name of the ONNX node that computes `id`, or of the value where the node has none.
pub fn name_of(graph: &Graph, id: ValueId) -> &str {
    let Ok(node) = graph.node(id) else { return "" };
    if node.origin.node.is_empty() { &node.origin.value } else { &node.origin.node }
}

/// Where `id` is, for errors: its node and operator.
pub fn place(graph: &Graph, id: ValueId) -> String {
    let Some(op) = graph.op(id) else { return String::new() };
    format!("node \"{}\" ({})", name_of(graph, id).escape_debug(), op.name())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
