//! Attention in a recognised graph: from a softmax up to the product of queries and keys, down to the product with values.
//!
//! Between the products only element-wise operators may stand, whose other operands are the same for every head; then
//! the number of heads can change without any other operator noticing.

use std::collections::BTreeSet;

use ombra_ir::Diagnostic;

use crate::graph::{Graph, Op, Owner, ValueId};

/// One attention: `softmax(scale · queries · keys + mask) · values`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Number of the layer, where names say it.
    pub layer: Option<u32>,
    /// The distributions, `[batch, heads, new, all]`.
    pub softmax: ValueId,
    /// Product of queries and keys, `[batch, heads, new, all]`.
    pub scores: ValueId,
    /// Queries, `[batch, heads, new, size]`.
    pub queries: ValueId,
    /// Transposed keys, `[batch, heads or 1, size, all]`.
    pub keys: ValueId,
    /// Values, `[batch, heads or 1, all, size]`.
    pub values: ValueId,
    /// Product of distributions and values, `[batch, heads, new, size]`.
    pub output: ValueId,
    /// Number of query heads.
    pub heads: usize,
    /// Size of a head of queries and keys.
    pub key_size: usize,
    /// Size of a head of values.
    pub value_size: usize,
    /// The product with or division by a constant that scales scores; `None` when there is none of its own.
    pub scale: Option<Scale>,
    /// Whether one of its weights is private: of the projections of queries, keys, values or of the output.
    pub private: bool,
}

/// A product or quotient with a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The product or quotient.
    pub at: ValueId,
    /// Which operand is the constant.
    pub slot: usize,
    /// The constant.
    pub value: f32,
}

/// An attention, or why what looks like one has a form that cannot be merged; and whether it is private.
pub type Candidate = std::result::Result<Attention, (Diagnostic, bool)>;

/// Every attention of `graph`, whose owners are assigned, in order of computation.
pub fn attentions(graph: &Graph) -> Vec<Candidate> {
    graph.topological().into_iter().filter_map(|id| candidate(graph, id)).collect()
}

/// What stands between the scores and the softmax: the product of queries and keys, and the values after it.
struct Above {
    scores: ValueId,
    chain: Vec<ValueId>,
}

fn candidate(graph: &Graph, softmax: ValueId) -> Option<Candidate> {
    let rank = graph.shape(softmax).len();
    match graph.op(softmax)? {
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } if axis + 1 == rank => {}
        _ => return None,
    }
    let above = scores_of(graph, softmax)?;
    let (queries, keys) = (graph.operand(above.scores, 0)?, graph.operand(above.scores, 1)?);
    let layer = layer_of(graph, softmax).or(layer_of(graph, above.scores));
    let below = output_of(graph, layer, softmax);
    let private = {
        let mut roots = vec![queries, keys];
        let output = below.as_ref().ok().copied();
        roots.extend(output.and_then(|o| graph.operand(o, 1)));
        let mut seen = BTreeSet::new();
        roots.into_iter().any(|root| uses_private_weight(graph, root, &mut seen))
            || output.is_some_and(|o| projected_by_private_weight(graph, o))
    };
    let refused = |d: Diagnostic| Some(Err((d, private)));
    let output = match below {
        Ok(output) => output,
        Err(d) => return refused(d),
    };
    if let Err(d) = check_chain(graph, layer, &above, softmax) {
        return refused(d);
    }
    let values = graph.operand(output, 1)?;
    let size = |id: ValueId, axis: usize| {
        let dim = (graph.shape(id).len() == 4).then(|| graph.shape(id).get(axis)).flatten();
        dim.and_then(|d| usize::try_from(d.as_constant()?).ok())
    };
    let (heads, key_size, value_size) = (size(above.scores, 1), size(queries, 3), size(values, 3));
    let (Some(heads), Some(key_size), Some(value_size)) = (heads, key_size, value_size) else {
        let found = graph.dims.show_shape(graph.shape(above.scores));
        return refused(
            unexpected(graph, layer, above.scores, "its scores do not have an axis of heads of a known size")
                .note(format!("expected scores of shape [batch, heads, new, all], found {found}")),
        );
    };
    for (what, id) in [("queries", queries), ("keys", keys), ("values", values)] {
        let found = size(id, 1);
        if found != Some(heads) && (what == "queries" || found != Some(1)) {
            let shape = graph.dims.show_shape(graph.shape(id));
            return refused(
                unexpected(graph, layer, id, &format!("its {what} do not have one head for each head of the scores"))
                    .note(format!("expected {heads} heads on axis 1, found {shape}")),
            );
        }
    }
    Some(Ok(Attention {
        layer,
        softmax,
        scores: above.scores,
        queries,
        keys,
        values,
        output,
        heads,
        key_size,
        value_size,
        scale: scale_of(graph, &above, queries, keys),
        private,
    }))
}

fn layer_of(graph: &Graph, id: ValueId) -> Option<u32> {
    graph.node(id).ok()?.origin.layer
}

/// The error of an attention whose form is not known, at the node of `id`.
fn unexpected(graph: &Graph, layer: Option<u32>, id: ValueId, why: &str) -> Diagnostic {
    let layer = layer.map_or("a layer without a number".to_owned(), |l| format!("layer {l}"));
    let message = format!("the attention of {layer} cannot be merged: {why}");
    Diagnostic::unsupported("E0591", message).at(place(graph, id))
}

/// The name of the ONNX node that computes `id`.
pub fn place(graph: &Graph, id: ValueId) -> String {
    let Ok(node) = graph.node(id) else { return String::new() };
    let origin = &node.origin;
    let name = if origin.node.is_empty() { &origin.value } else { &origin.node };
    format!("node \"{}\" ({})", name.escape_debug(), node.op.name())
}

/// Whether `id` depends on tokens or caches, and not on weights, sizes, masks and positions alone.
fn is_activation(graph: &Graph, id: ValueId) -> bool {
    graph.node(id).is_ok_and(|n| matches!(n.owner, Owner::Client | Owner::Secret))
}

/// Operators that treat every head alike, as long as their other operands do.
fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Neg | Op::Tanh | Op::Where | Op::Max | Op::Min | Op::IsNan)
}

/// Follows the one operand that is an activation up to a product of two activations.
fn scores_of(graph: &Graph, softmax: ValueId) -> Option<Above> {
    let mut at = graph.operand(softmax, 0)?;
    let mut chain = Vec::new();
    loop {
        let operands = graph.operands(at);
        let active: Vec<ValueId> = operands.iter().copied().filter(|&o| is_activation(graph, o)).collect();
        if graph.op(at) == Some(&Op::MatMul) {
            return (active.len() == 2).then_some(Above { scores: at, chain });
        }
        let [next] = active.as_slice() else { return None };
        chain.push(at);
        at = *next;
    }
}

/// The product of distributions and values: what the softmax is used for, and nothing else.
fn output_of(graph: &Graph, layer: Option<u32>, softmax: ValueId) -> std::result::Result<ValueId, Diagnostic> {
    let mut at = softmax;
    loop {
        if graph.is_output(at) {
            return Err(unexpected(graph, layer, at, "its distributions are an output of the model")
                .note("export the model without attention weights among its outputs"));
        }
        let users = graph.users(at);
        let [user] = users.as_slice() else {
            return Err(unexpected(graph, layer, at, "its distributions are used more than once"));
        };
        match graph.op(*user) {
            Some(Op::MatMul) if graph.operand(*user, 0) == Some(at) && graph.operand(*user, 1) != Some(at) => {
                return Ok(*user);
            }
            Some(op) if is_elementwise(op) => {
                same_for_all_heads(graph, layer, *user, at)?;
                at = *user;
            }
            _ => {
                return Err(unexpected(graph, layer, *user, "its distributions are not simply multiplied with values"));
            }
        }
    }
}

/// Checks that all between scores and softmax is element-wise and used for nothing else.
fn check_chain(
    graph: &Graph,
    layer: Option<u32>,
    above: &Above,
    softmax: ValueId,
) -> std::result::Result<(), Diagnostic> {
    let mut user = softmax;
    for &at in above.chain.iter().chain([&above.scores]) {
        if graph.is_output(at) || graph.users(at) != [user] {
            return Err(unexpected(graph, layer, at, "its scores are used more than once"));
        }
        user = at;
    }
    same_for_all_heads(graph, layer, softmax, graph.operand(softmax, 0).unwrap_or(softmax))?;
    for &at in &above.chain {
        if !graph.op(at).is_some_and(is_elementwise) || graph.shape(at) != graph.shape(above.scores) {
            return Err(unexpected(graph, layer, at, "its scores are reshaped or moved before the softmax")
                .note("expected products and sums with a scale and a mask"));
        }
        let scores = graph.operands(at).into_iter().find(|&o| is_activation(graph, o));
        same_for_all_heads(graph, layer, at, scores.unwrap_or(at))?;
    }
    Ok(())
}

/// Checks that the operands of `id` other than `main` do not tell heads apart.
fn same_for_all_heads(
    graph: &Graph,
    layer: Option<u32>,
    id: ValueId,
    main: ValueId,
) -> std::result::Result<(), Diagnostic> {
    for other in graph.operands(id).into_iter().filter(|&o| o != main) {
        let shape = graph.shape(other);
        let heads = shape.len().checked_sub(3).and_then(|axis| shape.get(axis));
        if heads.is_some_and(|d| !d.is(1)) {
            return Err(unexpected(graph, layer, id, "a mask or bias differs from head to head")
                .note(format!("expected size 1 on the axis of heads, found {}", graph.dims.show_shape(shape))));
        }
    }
    Ok(())
}

/// The constant that scales scores: beside the scores themselves, else beside the queries or keys.
fn scale_of(graph: &Graph, above: &Above, queries: ValueId, keys: ValueId) -> Option<Scale> {
    let first = above.chain.last().copied();
    let beside = |at: ValueId| {
        if !matches!(graph.op(at), Some(Op::Mul | Op::Div)) {
            return None;
        }
        let operands = graph.operands(at);
        let constant = |slot: usize| graph.constant(*operands.get(slot)?).and_then(|t| t.single_f32());
        let slots: &[usize] = if matches!(graph.op(at), Some(Op::Div)) { &[1] } else { &[0, 1] };
        slots.iter().find_map(|&slot| Some(Scale { at, slot, value: constant(slot)? }))
    };
    let only_for_scores = |id: &ValueId| graph.users(*id) == [above.scores] && !graph.is_output(*id);
    first.and_then(beside).or_else(|| [queries, keys].into_iter().filter(only_for_scores).find_map(beside))
}

/// Whether a private weight goes into `id` up to and with the projection that it comes from.
fn uses_private_weight(graph: &Graph, id: ValueId, seen: &mut BTreeSet<ValueId>) -> bool {
    let mut stack = vec![id];
    let mut private = false;
    while let Some(at) = stack.pop() {
        if !seen.insert(at) {
            continue;
        }
        let operands = graph.operands(at);
        let is_static = |o: &ValueId| !is_activation(graph, *o);
        private |= operands.iter().any(|o| graph.node(*o).is_ok_and(|n| n.owner == Owner::Server));
        let projection = graph.op(at) == Some(&Op::MatMul) && operands.iter().any(is_static);
        if !projection {
            stack.extend(operands.into_iter().filter(|o| !is_static(o)));
        }
    }
    private
}

/// Whether the projection after `id` has a private weight.
fn projected_by_private_weight(graph: &Graph, id: ValueId) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = graph.users(id);
    while let Some(at) = stack.pop() {
        if !seen.insert(at) {
            continue;
        }
        match graph.op(at) {
            Some(Op::MatMul) => {
                let private = |o: &ValueId| graph.node(*o).is_ok_and(|n| n.owner == Owner::Server);
                if graph.operands(at).iter().any(private) {
                    return true;
                }
            }
            Some(Op::Reshape { .. } | Op::Transpose { .. } | Op::Gather { .. } | Op::Slice { .. } | Op::Mul) => {
                stack.extend(graph.users(at));
            }
            _ => {}
        }
    }
    false
}
