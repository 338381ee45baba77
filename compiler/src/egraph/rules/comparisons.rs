//! One comparison where two values differ by a term that is known.

use super::{Finding, Rule, View};
use crate::egraph::language::Tree;
use crate::graph::{Op, Owner, TensorOp};
use egg::Id;
use ombra_ir::plain::{Binary, Unary};

/// max(a, b) = b + relu(a − b); relu(a) where b is 0.
pub const MAX: Rule = Rule {
    name: "maximum",
    equation: "max(a, b) = b + relu(a − b)",
    tolerance: 1e-5,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (a, b) in secret_pairs(v, class, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Max)))) {
            found.push(Finding::Equal(if is_zero(v, b) {
                Tree::unary(Op::Relu, a)
            } else {
                Tree::binary(Op::ADD, b, above(a, b))
            }));
        }
        found
    },
};

/// min(a, b) = a − relu(a − b).
pub const MIN: Rule = Rule {
    name: "minimum",
    equation: "min(a, b) = a − relu(a − b)",
    tolerance: 1e-5,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (a, b) in secret_pairs(v, class, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Min)))) {
            let over = if is_zero(v, b) { Tree::unary(Op::Relu, a) } else { above(a, b) };
            found.push(Finding::Equal(Tree::binary(Op::SUB, a, over)));
        }
        found
    },
};

/// min(max(x, l), h) = l + relu(x − l) − relu(x − h) for scalars l ≤ h: two comparisons at once, not one after another.
pub const CLIP: Rule = Rule {
    name: "clip",
    equation: "min(max(x, l), h) = l + relu(x − l) − relu(x − h)",
    tolerance: 1e-5,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        let over = |x: Id, l: Id| if is_zero(v, l) { Tree::unary(Op::Relu, x) } else { above(x, l) };
        let sum = |x: Id, l: Id, h: Id| {
            let low = if is_zero(v, l) { over(x, l) } else { Tree::binary(Op::ADD, l, over(x, l)) };
            Finding::Equal(Tree::binary(Op::SUB, low, over(x, h)))
        };
        for (y, h) in secret_pairs(v, class, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Min)))) {
            for (x, l) in secret_pairs(v, y, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Max)))) {
                if ordered(v, l, h) {
                    found.push(sum(x, l, h));
                }
            }
        }
        for (y, l) in secret_pairs(v, class, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Max)))) {
            for (x, h) in secret_pairs(v, y, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Min)))) {
                if ordered(v, l, h) {
                    found.push(sum(x, l, h));
                }
            }
        }
        found
    },
};

/// relu(−x) = relu(x) − x; so is relu(b − a) = relu(a − b) − (a − b).
pub const NEGATED: Rule = Rule {
    name: "negated comparison",
    equation: "relu(−x) = relu(x) − x",
    tolerance: 1e-5,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        if v.owner(class) != Owner::Secret {
            return found;
        }
        for (_, y) in v.singles(class, |op| matches!(op, Op::Relu)) {
            for (_, x) in v.singles(y, |op| matches!(op, Op::Tensor(TensorOp::Unary(Unary::Neg)))) {
                found.push(Finding::Equal(Tree::binary(Op::SUB, Tree::unary(Op::Relu, x), x)));
            }
            for (_, b, a) in v.pairs(y, |op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Sub)))) {
                let other = Tree::binary(Op::SUB, a, b);
                found.push(Finding::Equal(Tree::binary(Op::SUB, Tree::unary(Op::Relu, other.clone()), other)));
            }
        }
        found
    },
};

/// relu(a − b).
fn above(a: Id, b: Id) -> Tree {
    Tree::unary(Op::Relu, Tree::binary(Op::SUB, a, b))
}

/// Operands of secret comparisons in both orders, the first as wide as the result.
fn secret_pairs(v: &View, class: Id, of: fn(&Op) -> bool) -> Vec<(Id, Id)> {
    if v.owner(class) != Owner::Secret {
        return Vec::new();
    }
    v.unordered(class, of).into_iter().filter(|&(a, _)| v.shape(a) == v.shape(class)).collect()
}

fn is_zero(v: &View, class: Id) -> bool {
    v.scalar(class) == Some(0.0)
}

fn ordered(v: &View, l: Id, h: Id) -> bool {
    matches!((v.scalar(l), v.scalar(h)), (Some(l), Some(h)) if l <= h)
}
