//! Which attentions of a model can be merged: those in which the number of heads can change without any other operator
//! noticing.
//!
//! Between the products only element-wise operators may stand, whose other operands are the same for every head.

use ombra_ir::plain::Binary;
use std::collections::BTreeSet;

use ombra_ir::Diagnostic;

use crate::attention::{self, Attention, Kind, NearMiss, is_activation, place};
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};

/// An attention on axes `[batch, heads, new, all]` whose heads can be merged.
#[derive(Clone, Debug)]
pub struct Mergeable {
    /// What was found.
    pub attention: Attention,
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
pub type Candidate = std::result::Result<Mergeable, (Diagnostic, bool)>;

/// Every attention of `graph`, whose owners are assigned, in order of computation.
pub fn mergeable(graph: &Graph) -> Vec<Candidate> {
    attention::attentions(graph).into_iter().map(|found| candidate(graph, found)).collect()
}

fn candidate(graph: &Graph, found: attention::Candidate) -> Candidate {
    let a = match found {
        Ok(a) => a,
        Err(miss) => {
            let private = around(graph, miss.softmax);
            let NearMiss { layer, at, why, note, .. } = *miss;
            let error = unexpected(graph, layer, at, &why);
            return Err((note.into_iter().fold(error, Diagnostic::note), private));
        }
    };
    let mut seen = BTreeSet::new();
    let private = [a.queries, a.keys, a.values].into_iter().any(|root| uses_private_weight(graph, root, &mut seen))
        || projected_by_private_weight(graph, a.output);
    match check(graph, &a) {
        Ok(()) => Ok(Mergeable { scale: scale_of(graph, &a), attention: a, private }),
        Err(error) => Err((error, private)),
    }
}

/// Whether a private weight goes into what a softmax is computed from, or into the first projection after it.
fn around(graph: &Graph, softmax: ValueId) -> bool {
    let mut seen = BTreeSet::new();
    uses_private_weight(graph, softmax, &mut seen) || projected_by_private_weight(graph, softmax)
}

/// Checks that every operator of an attention works on heads of their own axis, all alike.
fn check(graph: &Graph, a: &Attention) -> std::result::Result<(), Diagnostic> {
    let refuse = |at: ValueId, why: &str| unexpected(graph, a.layer, at, why);
    if let Kind::Ratio { .. } = a.kind {
        return Err(refuse(a.softmax, "it has a quotient in place of the softmax"));
    }
    let mut main = a.scores;
    for &at in a.chain.iter().rev() {
        if graph.shape(at) != graph.shape(a.scores) || is_arrangement(graph, at) {
            return Err(refuse(at, "its scores are reshaped or moved before the softmax")
                .note("expected products and sums with a scale and a mask"));
        }
        same_for_all_heads(graph, a.layer, at, main)?;
        main = at;
    }
    same_for_all_heads(graph, a.layer, a.softmax, main)?;
    let mut main = a.softmax;
    for &at in &a.below {
        if is_arrangement(graph, at) {
            return Err(refuse(at, "its distributions are not simply multiplied with values"));
        }
        same_for_all_heads(graph, a.layer, at, main)?;
        main = at;
    }
    let heads = |id: ValueId| match graph.shape(id) {
        [_, heads, _, _] => heads.as_constant().and_then(|h| usize::try_from(h).ok()),
        _ => None,
    };
    if heads(a.scores) != Some(a.heads) {
        let found = graph.dims.show_shape(graph.shape(a.scores));
        return Err(refuse(a.scores, "its scores do not have an axis of heads of a known size")
            .note(format!("expected scores of shape [batch, heads, new, all], found {found}")));
    }
    for (what, id) in [("queries", a.queries), ("keys", a.keys), ("values", a.values)] {
        let found = heads(id);
        if found != Some(a.heads) && (what == "queries" || found != Some(1)) {
            let shape = graph.dims.show_shape(graph.shape(id));
            return Err(refuse(id, &format!("its {what} do not have one head for each head of the scores"))
                .note(format!("expected {} heads on axis 1, found {shape}", a.heads)));
        }
    }
    Ok(())
}

fn is_arrangement(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.op(id), Some(Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Transpose { .. })))
}

/// The error of an attention whose form is not known, at the node of `id`.
fn unexpected(graph: &Graph, layer: Option<u32>, id: ValueId, why: &str) -> Diagnostic {
    let layer = layer.map_or("a layer without a number".to_owned(), |l| format!("layer {l}"));
    let message = format!("the attention of {layer} cannot be merged: {why}");
    Diagnostic::unsupported("E0591", message).at(place(graph, id))
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
fn scale_of(graph: &Graph, a: &Attention) -> Option<Scale> {
    let first = a.chain.last().copied();
    let beside = |at: ValueId| {
        if !matches!(graph.op(at), Some(Op::Tensor(TensorOp::Binary(Binary::Mul | Binary::Div)))) {
            return None;
        }
        let operands = graph.operands(at);
        let constant = |slot: usize| graph.constant(*operands.get(slot)?).and_then(|t| t.single_f32());
        let slots: &[usize] =
            if matches!(graph.op(at), Some(Op::Tensor(TensorOp::Binary(Binary::Div)))) { &[1] } else { &[0, 1] };
        slots.iter().find_map(|&slot| Some(Scale { at, slot, value: constant(slot)? }))
    };
    let only_for_scores = |id: &ValueId| graph.users(*id) == [a.scores] && !graph.is_output(*id);
    first.and_then(beside).or_else(|| [a.queries, a.keys].into_iter().filter(only_for_scores).find_map(beside))
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
        let projection = graph.op(at) == Some(&Op::MATMUL) && operands.iter().any(is_static);
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
            Some(Op::Tensor(TensorOp::MatMul)) => {
                let private = |o: &ValueId| graph.node(*o).is_ok_and(|n| n.owner == Owner::Server);
                if graph.operands(at).iter().any(private) {
                    return true;
                }
            }
            Some(Op::Tensor(
                TensorOp::Reshape { .. }
                | TensorOp::Transpose { .. }
                | TensorOp::Gather { .. }
                | TensorOp::Slice { .. }
                | TensorOp::Binary(Binary::Mul),
            )) => {
                stack.extend(graph.users(at));
            }
            _ => {}
        }
    }
    false
}
