//! Transposes and reshapes away from products.

use super::{Finding, Rule, is_matmul, is_turn, turn};
use crate::egraph::language::Tree;
use crate::graph::{Op, Owner, TensorOp};
use ombra_ir::plain::Binary;
use ombra_ir::plain::infer::product;

/// Tᵖ(T𐞥(x)) = Tᵖ∘𐞥(x); the identity is no transpose.
pub const TRANSPOSES: Rule = Rule {
    name: "transposes in a row",
    equation: "P(Q(x)) = (P∘Q)(x)",
    tolerance: 0.0,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (p, y) in v.singles(class, |op| matches!(op, Op::Tensor(TensorOp::Transpose { .. }))) {
            let Op::Tensor(TensorOp::Transpose { perm: p }) = p else { continue };
            for (q, x) in v.singles(y, |op| matches!(op, Op::Tensor(TensorOp::Transpose { .. }))) {
                let Op::Tensor(TensorOp::Transpose { perm: q }) = q else { continue };
                // Axis k of the result is axis p[k] of the middle, which is axis q[p[k]] of x.
                let perm: Vec<usize> = p.iter().filter_map(|&k| q.get(k).copied()).collect();
                let tree = if perm.is_sorted() {
                    Tree::Class(x)
                } else {
                    Tree::unary(Op::Tensor(TensorOp::Transpose { perm }), x)
                };
                found.push(Finding::Equal(tree));
            }
        }
        found
    },
};

/// R(R'(x)) = R(x); a reshape to the same shape is none.
pub const RESHAPES: Rule = Rule {
    name: "reshapes in a row",
    equation: "R(R'(x)) = R(x)",
    tolerance: 0.0,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (op, y) in v.singles(class, |op| matches!(op, Op::Tensor(TensorOp::Reshape { .. }))) {
            if v.shape(y) == v.shape(class) {
                found.push(Finding::Equal(Tree::Class(y)));
            }
            for (_, x) in v.singles(y, |op| matches!(op, Op::Tensor(TensorOp::Reshape { .. }))) {
                let same = v.shape(x) == v.shape(class);
                found.push(Finding::Equal(if same { Tree::Class(x) } else { Tree::unary(op.clone(), x) }));
            }
        }
        found
    },
};

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

/// R(x)·W = R(x·W), where R merges leading axes and keeps the last.
pub const FLATTENED: Rule = Rule {
    name: "flattened product",
    equation: "R(x)·W = R'(x·W)",
    tolerance: 1e-6,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (_, y, w) in v.pairs(class, is_matmul) {
            if v.shape(w).len() != 2 || v.owner(class) != Owner::Secret {
                continue;
            }
            for (_, x) in v.singles(y, |op| matches!(op, Op::Tensor(TensorOp::Reshape { .. }))) {
                let (from, to) = (v.shape(x), v.shape(y));
                let merges = from.len() > to.len() && to.len() >= 2 && from.last() == to.last();
                if merges && product(&from[..from.len() - 1]) == product(&to[..to.len() - 1]) {
                    let shape = v.shape(class).to_vec();
                    found.push(Finding::Equal(Tree::unary(
                        Op::Tensor(TensorOp::Reshape { shape }),
                        Tree::binary(Op::MATMUL, x, w),
                    )));
                }
            }
        }
        found
    },
};
