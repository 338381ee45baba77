//! Transposes away from products.

use super::{Finding, Rule, is_turn, turn};
use crate::egraph::language::Tree;
#[cfg(test)]
use crate::graph::Owner;
use crate::graph::{Op, TensorOp};
use ombra_ir::plain::Binary;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    // (A ∗ B)ᵀ = Aᵀ ∗ Bᵀ for a sum, difference or product of the elements, of matrices of one shape or a scalar, known
    // before a run.
    Rule {
        name: "transposed elements",
        equation: "(A ∗ B)ᵀ = Aᵀ ∗ Bᵀ",
        tolerance: 0.0,
        reported: false,
        find: |v, class| {
            let mut found = Vec::new();
            for (_, y) in v.singles(class, is_turn) {
                for (op, a, b) in
                    v.pairs(y, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub | Binary::Mul))))
                {
                    let side = |id| {
                        if v.scalar(id).is_some() {
                            return Some(Tree::Class(id));
                        }
                        (v.is_known_matrix(id) && v.shape(id) == v.shape(y)).then(|| Tree::unary(turn(), id))
                    };
                    if let (Some(a), Some(b)) = (side(a), side(b)) {
                        found.push(Finding::Equal(Tree::Node(op.clone(), vec![a, b])));
                    }
                }
            }
            found
        },
        #[cfg(test)]
        found: &[|d| {
            let (a, b) = (d.weight(Owner::Server, &[2, 3]), d.weight(Owner::Public, &[2, 3]));
            let k = d.scalar(3.0);
            let w = d.either(Op::MUL, a, k);
            let w = d.either(Op::SUB, w, b);
            let t = d.op(turn(), &[w]);
            let x = d.secret(&[4, 3]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
        #[cfg(test)]
        refused: &[|d| {
            let (a, b) = (d.weight(Owner::Server, &[2, 3]), d.weight(Owner::Public, &[3]));
            let w = d.either(Op::ADD, a, b);
            let t = d.op(turn(), &[w]);
            let x = d.secret(&[4, 3]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
    },
];
