//! Owners of values: who may know them.

use std::collections::BTreeSet;

use ombra_ir::Dim;
use ombra_ir::plain::{self, DType};

use super::{Graph, InputRole, Op, ValueId};

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

/// Sets the owner of every value: inputs by `input_owner` of name, role and element type, weights by `weight_owner` of
/// the initializer's name, constants public, all else the join of its operands.
pub fn propagate_owners(
    graph: &mut Graph,
    input_owner: impl Fn(&str, InputRole, DType) -> Owner,
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
            Op::Input { name, role } => input_owner(name, *role, node.dtype),
            Op::Weight { name, .. } => weight_owner(name),
            // The server computes its values once, before inputs and sizes are known.
            _ if joined == Owner::Server && !fixed.contains(&id) => Owner::Secret,
            _ => joined,
        };
    }
}

/// Whether the value comes with a run: an input, or a number that depends on sizes.
fn is_given(op: &Op) -> bool {
    let symbolic = |d: &Dim| d.as_constant().is_none();
    match op {
        Op::Input { .. } => true,
        Op::Public(plain::Op::Sizes { values, .. }) => values.iter().any(symbolic),
        Op::Public(plain::Op::Iota { start, len, .. }) => symbolic(start) || symbolic(len),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
