//! Transposes away from products.

use super::{Finding, Rule, is_turn, turn};
use crate::egraph::language::Tree;
use crate::graph::{Op, TensorOp};
use ombra_ir::plain::Binary;

/// (A ∗ B)ᵀ = Aᵀ ∗ Bᵀ for a sum, difference or product of the elements, of matrices of one shape or a scalar, known
/// before a run.
pub const TURNED: Rule = Rule {
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
};
