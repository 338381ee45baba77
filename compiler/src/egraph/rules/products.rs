//! Products of matrices.

use super::{Finding, Rule, View, is_matmul, is_mul, is_sum, is_turn, turn};
use crate::egraph::language::Tree;
use crate::graph::{Op, Owner};
use egg::Id;

/// X·(A ± B) = X·A ± X·B, where one of A and B is public and the other, the server's, is a thin product.
///
/// The product with the public matrix needs no secret product any more, and the thin one is taken apart by [`NEST`].
pub const SUM: Rule = Rule {
    name: "product of a sum",
    equation: "X·(A ± B) = X·A ± X·B",
    tolerance: 1e-4,
    reported: true,
    find: |v, class| {
        let mut found = Vec::new();
        for (_, x, w) in v.pairs(class, is_matmul) {
            for (op, a, b) in v.pairs(w, is_sum) {
                let private = match (v.owner(a), v.owner(b)) {
                    (Owner::Public, Owner::Server) => b,
                    (Owner::Server, Owner::Public) => a,
                    _ => continue,
                };
                if v.owner(x) != Owner::Secret && v.owner(x) != Owner::Client {
                    continue;
                }
                if v.shape(a) != v.shape(w) || v.shape(b) != v.shape(w) || !v.is_known_matrix(private) {
                    continue;
                }
                match rank(v, private) {
                    Some(r) if is_thin(v, private, r) => found.push(Finding::Equal(Tree::Node(
                        op.clone(),
                        vec![Tree::binary(Op::MATMUL, x, a), Tree::binary(Op::MATMUL, x, b)],
                    ))),
                    Some(r) => found.push(Finding::Near(too_thick(v, private, r))),
                    None => found.push(Finding::Near(
                        "the private part of the matrix is no product of thin matrices, so it stays whole".into(),
                    )),
                }
            }
        }
        found
    },
};

/// X·(A·B) = (X·A)·B, where that takes fewer multiplications.
pub const NEST: Rule = Rule {
    name: "nested product",
    equation: "X·(A·B) = (X·A)·B",
    tolerance: 1e-4,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (_, x, w) in v.pairs(class, is_matmul) {
            for (_, a, b) in v.pairs(w, is_matmul) {
                if !v.is_known_matrix(a) || !v.is_known_matrix(b) || v.owner(class) != Owner::Secret {
                    continue;
                }
                match v.matrix(a) {
                    Some((_, r)) if is_thin(v, w, r) => {
                        found.push(Finding::Equal(Tree::binary(Op::MATMUL, Tree::binary(Op::MATMUL, x, a), b)))
                    }
                    Some((_, r)) => found.push(Finding::Near(too_thick(v, w, r))),
                    None => {}
                }
            }
        }
        found
    },
};

/// (A·B)ᵀ = Bᵀ·Aᵀ, for matrices known before a run.
pub const TURNED: Rule = Rule {
    name: "transposed product",
    equation: "(A·B)ᵀ = Bᵀ·Aᵀ",
    tolerance: 1e-4,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (_, w) in v.singles(class, is_turn) {
            for (_, a, b) in v.pairs(w, is_matmul) {
                if v.is_known_matrix(a) && v.is_known_matrix(b) {
                    let (at, bt) = (Tree::unary(turn(), a), Tree::unary(turn(), b));
                    found.push(Finding::Equal(Tree::binary(Op::MATMUL, bt, at)));
                }
            }
        }
        found
    },
};

/// s·(A·B) = (s·A)·B = A·(s·B) for a scalar s, put into the smaller of the factors that are known before a run.
pub const SCALED: Rule = Rule {
    name: "scaled product",
    equation: "s·(A·B) = A·(s·B)",
    tolerance: 1e-4,
    reported: false,
    find: |v, class| {
        let mut found = Vec::new();
        for (p, s) in v.unordered(class, is_mul) {
            let Some(k) = v.scalar(s) else { continue };
            for (_, a, b) in v.pairs(p, is_matmul) {
                let size = |id: Id| v.matrix(id).filter(|_| v.is_known_matrix(id)).map(|(r, c)| r.saturating_mul(c));
                let scaled = |id: Id| Tree::binary(Op::MUL, id, s);
                let tree = match (size(a), size(b)) {
                    (Some(x), Some(y)) if x < y => Tree::binary(Op::MATMUL, scaled(a), b),
                    (_, Some(_)) => Tree::binary(Op::MATMUL, a, scaled(b)),
                    (Some(_), None) => Tree::binary(Op::MATMUL, scaled(a), b),
                    (None, None) => continue,
                };
                let secret = v.owner(class) == Owner::Secret;
                if secret && !keeps_precision(k) {
                    let lost = -libm::floor(libm::log2(f64::from(k.abs())));
                    found.push(Finding::Near(format!(
                        "a factor of {k} folded into the weight would cost {lost} of its fraction bits"
                    )));
                } else if !(secret && v.facts(b).tied) {
                    found.push(Finding::Equal(tree));
                }
            }
        }
        found
    },
};

/// Whether a weight times `k` keeps all but one of its fraction bits.
fn keeps_precision(k: f32) -> bool {
    (0.5..=16.0).contains(&k.abs())
}

/// The inner size of a product that a class is.
fn rank(v: &View, class: Id) -> Option<i64> {
    v.pairs(class, is_matmul).into_iter().filter_map(|(_, a, _)| v.matrix(a).map(|(_, r)| r)).min()
}

fn is_thin(v: &View, product: Id, r: i64) -> bool {
    v.matrix(product).and_then(|(k, n)| thin(k, n, r)) == Some(true)
}

/// r·(k + n) < k·n: two products of inner size r are less than one of k rows and n columns.
fn thin(k: i64, n: i64, r: i64) -> Option<bool> {
    Some(r.checked_mul(k.checked_add(n)?)? < k.checked_mul(n)?)
}

fn too_thick(v: &View, product: Id, r: i64) -> String {
    let (k, n) = v.matrix(product).unwrap_or_default();
    let even = k.saturating_mul(n) / k.saturating_add(n).max(1);
    format!("an adapter of rank {r} to a {k} by {n} matrix is not below the break-even rank of {even}")
}
