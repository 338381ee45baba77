//! Products of matrices.
//!
//! A product chain may be reordered whatever it is part of. No approximation that the compiler has makes attention such a
//! chain: 2Quad and L2Quad square the scores, 2ReLU cuts them off at zero, and all of them divide by the sum of a row, while
//! a causal mask leaves out scores between the two products. A model that is written without any of it is reordered.

use super::{Finding, Rule, View, is_matmul, is_mul, is_sum, is_turn, turn};
use crate::egraph::language::Tree;
#[cfg(test)]
use crate::egraph::sampling::Draw;
use crate::graph::{Op, Owner};
use egg::Id;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    // X·(A ± B) = X·A ± X·B, where one of A and B is public and the other, the server's, is a thin product.
    //
    // The product with the public matrix needs no secret product any more, and the thin one is taken apart as a nested product.
    Rule {
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
        #[cfg(test)]
        found: &[
            |d| adapter(d, [7, 6, 2], [Owner::Public, Owner::Server], Op::ADD),
            |d| adapter(d, [6, 9, 3], [Owner::Public, Owner::Server], Op::SUB),
        ],
        #[cfg(test)]
        refused: &[
            // Nothing of it is public; everything is; the rank is 6·6/12 = 3; the bias row is no matrix.
            |d| adapter(d, [6, 6, 2], [Owner::Server, Owner::Server], Op::ADD),
            |d| adapter(d, [6, 6, 2], [Owner::Public, Owner::Public], Op::ADD),
            |d| adapter(d, [6, 6, 3], [Owner::Public, Owner::Server], Op::ADD),
            |d| {
                let x = d.secret(&[3, 4]);
                let (w, row) = (d.weight(Owner::Public, &[4, 5]), d.weight(Owner::Server, &[1, 5]));
                let sum = d.op(Op::ADD, &[w, row]);
                let y = d.op(Op::MATMUL, &[x, sum]);
                d.output(y);
            },
        ],
    },
    // X·(A·B) = (X·A)·B, where that takes fewer multiplications.
    Rule {
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
        #[cfg(test)]
        found: &[|d| chain(d, [8, 2, 7], false, [Owner::Server; 2])],
        #[cfg(test)]
        refused: &[
            |d| chain(d, [4, 2, 4], false, [Owner::Server; 2]),
            |d| chain(d, [3, 6, 3], false, [Owner::Public; 2]),
        ],
    },
    // (A·B)·C = A·(B·C) in both directions, where both ways multiply secrets alone or with one matrix that is known: what
    // is opened or divided is the product in the middle, whose size differs.
    Rule {
        name: "product chain",
        equation: "(A·B)·C = A·(B·C)",
        tolerance: 1e-4,
        reported: false,
        find: |v, class| {
            let mut found = Vec::new();
            let chain = |a, b, c| {
                let secret = |x, y| v.owner(x).join(v.owner(y)) == Owner::Secret;
                secret(a, b) && secret(b, c) && [a, b, c].iter().all(|&id| v.shape(id).len() >= 2)
            };
            for (_, x, y) in v.pairs(class, is_matmul) {
                for (_, a, b) in v.pairs(x, is_matmul).into_iter().filter(|&(_, a, b)| chain(a, b, y)) {
                    found.push(Finding::Equal(Tree::binary(Op::MATMUL, a, Tree::binary(Op::MATMUL, b, y))));
                }
                for (_, b, c) in v.pairs(y, is_matmul).into_iter().filter(|&(_, b, c)| chain(x, b, c)) {
                    found.push(Finding::Equal(Tree::binary(Op::MATMUL, Tree::binary(Op::MATMUL, x, b), c)));
                }
            }
            found
        },
        #[cfg(test)]
        found: &[
            |d| secret_chain(d, [Some(Owner::Secret); 3]),
            |d| secret_chain(d, [Some(Owner::Secret), Some(Owner::Secret), Some(Owner::Server)]),
            |d| secret_chain(d, [None, Some(Owner::Secret), None]),
        ],
        #[cfg(test)]
        refused: &[
            // An author's thin product stays thin, and what is known is multiplied by who knows it.
            |d| chain(d, [8, 2, 7], true, [Owner::Server; 2]),
            |d| chain(d, [8, 2, 7], false, [Owner::Public; 2]),
        ],
    },
    // (A·B)ᵀ = Bᵀ·Aᵀ, for matrices known before a run.
    Rule {
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
        #[cfg(test)]
        found: &[|d| {
            let (k, r, n) = (d.size(1, 5), d.size(1, 5), d.size(1, 5));
            let (a, b) = (d.weight(Owner::Server, &[k, r]), d.weight(Owner::Public, &[r, n]));
            let w = d.op(Op::MATMUL, &[a, b]);
            let t = d.op(turn(), &[w]);
            let x = d.secret(&[3, n]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
        #[cfg(test)]
        refused: &[|d| {
            let (a, b) = (d.secret(&[3, 4]), d.secret(&[4, 5]));
            let w = d.op(Op::MATMUL, &[a, b]);
            let t = d.op(turn(), &[w]);
            d.output(t);
        }],
    },
    // s·(A·B) = (s·A)·B = A·(s·B) for a scalar s, put into the smaller of the factors that are known before a run.
    Rule {
        name: "scaled product",
        equation: "s·(A·B) = A·(s·B)",
        tolerance: 1e-4,
        reported: false,
        find: |v, class| {
            let mut found = Vec::new();
            for (p, s) in v.unordered(class, is_mul) {
                let Some(k) = v.scalar(s) else { continue };
                for (_, a, b) in v.pairs(p, is_matmul) {
                    let size =
                        |id: Id| v.matrix(id).filter(|_| v.is_known_matrix(id)).map(|(r, c)| r.saturating_mul(c));
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
        #[cfg(test)]
        found: &[
            |d| scaled_product(d, 0.5, Owner::Server),
            |d| scaled_product(d, -3.0, Owner::Public),
            |d| {
                let (a, b) = (d.weight(Owner::Server, &[6, 2]), d.weight(Owner::Server, &[2, 5]));
                let (w, k) = (d.op(Op::MATMUL, &[a, b]), d.scalar(0.01));
                let w = d.either(Op::MUL, w, k);
                let x = d.secret(&[3, 6]);
                let y = d.op(Op::MATMUL, &[x, w]);
                d.output(y);
            },
        ],
        #[cfg(test)]
        refused: &[|d| scaled_product(d, 0.125, Owner::Server)],
    },
];

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

/// X·(P ± A·B·s) with rank `r` and sizes `k` and `n`.
#[cfg(test)]
fn adapter(d: &mut Draw, sizes: [i64; 3], owners: [Owner; 2], op: Op) {
    let [k, n, r] = sizes;
    let m = d.size(1, 4);
    let x = d.secret(&[m, k]);
    let w = d.weight(owners[0], &[k, n]);
    let (a, b) = (d.weight(owners[1], &[k, r]), d.weight(owners[1], &[r, n]));
    let delta = d.op(Op::MATMUL, &[a, b]);
    let sum = d.either(op, w, delta);
    let y = d.op(Op::MATMUL, &[x, sum]);
    d.output(y);
}

#[cfg(test)]
fn chain(d: &mut Draw, [k, r, n]: [i64; 3], left: bool, owners: [Owner; 2]) {
    let m = d.size(1, 4);
    let x = d.secret(&[m, k]);
    let (a, b) = (d.weight(owners[0], &[k, r]), d.weight(owners[1], &[r, n]));
    let y = if left {
        let xa = d.op(Op::MATMUL, &[x, a]);
        d.op(Op::MATMUL, &[xa, b])
    } else {
        let ab = d.op(Op::MATMUL, &[a, b]);
        d.op(Op::MATMUL, &[x, ab])
    };
    d.output(y);
}

#[cfg(test)]
fn scaled_product(d: &mut Draw, k: f32, owner: Owner) {
    let (x, w) = (d.secret(&[3, 4]), d.weight(owner, &[4, 5]));
    let (y, k) = (d.op(Op::MATMUL, &[x, w]), d.scalar(k));
    let y = d.either(Op::MUL, y, k);
    d.output(y);
}

/// (A·B)·C or A·(B·C) with batches; factors without an owner are secret and have no batch.
#[cfg(test)]
fn secret_chain(d: &mut Draw, owners: [Option<Owner>; 3]) {
    let sizes = [d.size(1, 4), d.size(1, 4), d.size(1, 4), d.size(1, 4)];
    let batch = d.size(2, 3);
    let mut factors = Vec::new();
    for (i, owner) in owners.into_iter().enumerate() {
        let [m, n] = [sizes[i], sizes[i + 1]];
        factors.push(match owner {
            Some(Owner::Secret) => d.secret(&[batch, m, n]),
            Some(owner) => d.weight(owner, &[m, n]),
            None => d.secret(&[m, n]),
        });
    }
    let y = if d.size(0, 1) == 0 {
        let ab = d.op(Op::MATMUL, &[factors[0], factors[1]]);
        d.op(Op::MATMUL, &[ab, factors[2]])
    } else {
        let bc = d.op(Op::MATMUL, &[factors[1], factors[2]]);
        d.op(Op::MATMUL, &[factors[0], bc])
    };
    d.output(y);
}
