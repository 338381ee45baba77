//! Owners of values: who may know them.

use std::collections::BTreeSet;

use ombra_ir::Dim;
use ombra_ir::plain::{Binary, DType, Unary};

use super::{Graph, InputRole, Op, TensorOp, ValueId};

/// The least upper bound of the operands' owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Everybody knows it.
    #[default]
    Public,
    /// The client alone knows it.
    Client,
    /// The server alone knows it.
    Server,
    /// Nobody may see it.
    Secret,
}

impl Owner {
    /// The least owner that covers both.
    pub fn join(self, other: Owner) -> Owner {
        match (self, other) {
            (a, b) if a == b => a,
            (Owner::Public, b) => b,
            (a, Owner::Public) => a,
            _ => Owner::Secret,
        }
    }

    /// Who knows an input of a role.
    pub fn of_input(role: InputRole) -> Owner {
        match role {
            InputRole::AttentionMask | InputRole::PositionIds | InputRole::Public => Owner::Public,
            InputRole::TokenIds
            | InputRole::PastKey { .. }
            | InputRole::PastValue { .. }
            | InputRole::Embeddings
            | InputRole::Other => Owner::Client,
        }
    }

    /// Name as printed.
    pub fn name(self) -> &'static str {
        match self {
            Owner::Public => "public",
            Owner::Client => "client",
            Owner::Server => "server",
            Owner::Secret => "secret",
        }
    }
}

/// Sets the owner of every value: inputs by `input_owner` of name and role, weights by `weight_owner` of
/// the initializer's name, constants public, all else the join of its operands.
pub fn propagate_owners(
    graph: &mut Graph,
    input_owner: impl Fn(&str, InputRole) -> Owner,
    weight_owner: impl Fn(&str) -> Owner,
) {
    let mut fixed: BTreeSet<ValueId> = BTreeSet::new();
    for id in graph.topological() {
        let operands = graph.operands(id);
        let joined = operands
            .iter()
            .fold(Owner::Public, |owner, operand| graph.node(*operand).map_or(Owner::Secret, |n| owner.join(n.owner)));
        let Ok(node) = graph.node_mut(id) else { continue };
        let sized = !node.shape.iter().all(|d| d.as_constant().is_some());
        if !sized && !is_given(&node.op) && operands.iter().all(|o| fixed.contains(o)) {
            fixed.insert(id);
        }
        node.owner = match &node.op {
            Op::Input { name, role } => input_owner(name, *role),
            Op::Weight { name, .. } => weight_owner(name),
            // The server computes its values once, before inputs and sizes are known.
            _ if joined == Owner::Server && !fixed.contains(&id) => Owner::Secret,
            _ => joined,
        };
    }
    share_decisions(graph);
}

/// What the client decides for secret values alone is secret: a bit of its own would decide the course of the program,
/// while what it compares can be shared. A decision is a comparison of floats, or a connective of decisions. Masks are
/// none: what chooses a huge number has to be public, and whoever may say so is asked.
fn share_decisions(graph: &mut Graph) {
    for id in graph.topological().into_iter().rev() {
        let users = graph.users(id);
        if users.is_empty() || graph.is_output(id) || !is_decision(graph, id) {
            continue;
        }
        let decides = |user: &ValueId| {
            graph.node(*user).is_ok_and(|n| {
                let takes_bits = match n.op {
                    Op::WHERE => !graph.operands(*user).into_iter().any(|o| is_huge(graph, o)),
                    Op::Tensor(TensorOp::Cast { .. }) => true,
                    _ => is_logic(&n.op),
                };
                n.owner == Owner::Secret && takes_bits
            })
        };
        if users.iter().all(decides)
            && let Ok(node) = graph.node_mut(id)
        {
            node.owner = Owner::Secret;
        }
    }
}

/// Whether a value is a constant that a mask has in place of scores.
fn is_huge(graph: &Graph, id: ValueId) -> bool {
    graph.constant(id).and_then(|t| t.single_f32()).is_some_and(|k| k <= -9.0e3)
}

fn is_logic(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Unary(Unary::Not) | TensorOp::Binary(Binary::And | Binary::Or | Binary::Equal)))
}

/// Whether booleans of the client's are compared floats, or connectives of such and of what is no client's.
fn is_decision(graph: &Graph, id: ValueId) -> bool {
    let mut stack = vec![id];
    let mut seen = BTreeSet::new();
    while let Some(at) = stack.pop() {
        let Ok(node) = graph.node(at) else { return false };
        if node.dtype != DType::Bool || node.owner != Owner::Client {
            // Only what is looked at first has to be the client's.
            if at == id || node.dtype != DType::Bool {
                return false;
            }
            continue;
        }
        if !seen.insert(at) {
            continue;
        }
        let operands = graph.operands(at);
        let floats = operands.iter().all(|o| graph.node(*o).is_ok_and(|n| n.dtype == DType::F32));
        match &node.op {
            Op::Tensor(TensorOp::Binary(b)) if b.is_comparison() && floats => {}
            op if is_logic(op) => stack.extend(operands),
            _ => return false,
        }
    }
    true
}

/// Whether the value comes with a run: an input, or a number that depends on sizes.
fn is_given(op: &Op) -> bool {
    let symbolic = |d: &Dim| d.as_constant().is_none();
    match op {
        Op::Input { .. } => true,
        Op::Tensor(TensorOp::Sizes { values, .. }) => values.iter().any(symbolic),
        Op::Tensor(TensorOp::Iota { start, len, .. }) => symbolic(start) || symbolic(len),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ombra_ir::plain::{Tensor, Type};

    use super::*;
    use crate::graph::{Origin, Output, OutputRole};

    /// Owner of a comparison of two of the client's values that chooses between a secret and `other`, and is used by a
    /// value of the client's if `elsewhere`.
    fn owner_of_decision(other: f32, elsewhere: bool) -> Owner {
        let ty = || Type::new(DType::F32, vec![Dim::constant(2)]);
        let mut g = Graph::new();
        let x = g.add_input("x", InputRole::Other, ty(), Origin::default());
        let w = g.add_weight("w", false, vec![Dim::constant(2)], Origin::default());
        let other = g.add_const(Tensor::scalar_f32(other), Origin::default()).expect("a constant");
        let less = Op::Tensor(TensorOp::Binary(Binary::Less));
        let less = g.add(less, &[x, other], Origin::default()).expect("it fits");
        let sum = g.add(Op::ADD, &[x, w], Origin::default()).expect("it fits");
        let mut outputs = vec![g.add(Op::WHERE, &[less, sum, other], Origin::default()).expect("it fits")];
        if elsewhere {
            outputs.push(g.add(Op::WHERE, &[less, x, other], Origin::default()).expect("it fits"));
        }
        g.outputs =
            outputs.into_iter().map(|value| Output { name: "y".into(), role: OutputRole::Other, value }).collect();
        propagate_owners(&mut g, |_, role| Owner::of_input(role), |_| Owner::Server);
        g.node(less).expect("it is there").owner
    }

    #[test]
    fn decisions_for_secrets_alone_are_secret() {
        assert_eq!(owner_of_decision(0.5, false), Owner::Secret);
        assert_eq!(owner_of_decision(0.5, true), Owner::Client);
        assert_eq!(owner_of_decision(-1e30, false), Owner::Client, "a mask");
    }

    #[test]
    fn join_is_the_lattice() {
        let all = [Owner::Public, Owner::Client, Owner::Server, Owner::Secret];
        for a in all {
            assert_eq!(a.join(a), a);
            assert_eq!(a.join(Owner::Public), a);
            assert_eq!(a.join(Owner::Secret), Owner::Secret);
            for b in all {
                assert_eq!(a.join(b), b.join(a));
            }
        }
        assert_eq!(Owner::Client.join(Owner::Server), Owner::Secret);
    }
}
