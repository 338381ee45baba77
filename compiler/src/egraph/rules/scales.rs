//! Factors moved to where they cost nothing.

use super::{Finding, Rule, View, is_matmul, is_mul};
use crate::egraph::language::Tree;
#[cfg(test)]
use crate::egraph::sampling::Draw;
use crate::graph::{Op, Owner, TensorOp};
use egg::Id;
use ombra_ir::Dim;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    // (X·W) ∘ v = X·(W ∘ v), where whoever knows W knows v.
    Rule {
        name: "scaled columns",
        equation: "(X·W) ∘ v = X·(W ∘ v)",
        tolerance: 1e-4,
        reported: true,
        find: |view, class| {
            let mut found = Vec::new();
            if view.owner(class) != Owner::Secret {
                return found;
            }
            for (y, v) in view.unordered(class, is_mul) {
                let Some(width) = vector(view, v) else { continue };
                if view.shape(y) != view.shape(class) {
                    continue;
                }
                for (_, x, w) in view.pairs(y, is_matmul) {
                    if !view.is_known_matrix(w) || view.shape(w).last() != Some(&width) {
                        continue;
                    }
                    match takes(view, w, v) {
                        Ok(()) => {
                            let row = Tree::unary(Op::Tensor(TensorOp::Reshape { shape: vec![width.clone()] }), v);
                            let scaled = Tree::binary(Op::MUL, w, row);
                            found.push(Finding::Equal(Tree::binary(Op::MATMUL, x, scaled)));
                        }
                        Err(why) => found.push(Finding::Near(why)),
                    }
                }
            }
            found
        },
        #[cfg(test)]
        found: &[
            |d| scaled_columns(d, [Owner::Server, Owner::Server]),
            |d| scaled_columns(d, [Owner::Public, Owner::Public]),
        ],
        #[cfg(test)]
        refused: &[|d| scaled_columns(d, [Owner::Server, Owner::Public])],
    },
];

/// The size of a vector along the last axis, of two elements or more, known before a run.
fn vector(view: &View, class: Id) -> Option<Dim> {
    let (last, before) = view.shape(class).split_last()?;
    let known = view.facts(class).fixed && matches!(view.owner(class), Owner::Public | Owner::Server);
    (known && before.iter().all(|d| d.is(1)) && last.as_constant().is_some_and(|n| n > 1)).then(|| last.clone())
}

/// Whether the weight may take the factor.
fn takes(view: &View, w: Id, v: Id) -> Result<(), String> {
    if view.owner(w).join(view.owner(v)) != view.owner(w) {
        return Err("a private scale would make the product with a public weight a secret one".into());
    }
    if view.facts(w).tied {
        return Err("the weight is tied to the private embedding table, and a scaled copy would be shared twice".into());
    }
    Ok(())
}

/// (X·W) ∘ v, with the owners of v and W.
#[cfg(test)]
fn scaled_columns(d: &mut Draw, [v, w]: [Owner; 2]) {
    let (m, k, n) = (d.size(1, 4), d.size(1, 5), d.size(2, 5));
    let (x, v, w) = (d.secret(&[m, k]), d.weight(v, &[1, n]), d.weight(w, &[k, n]));
    let y = d.op(Op::MATMUL, &[x, w]);
    let y = d.either(Op::MUL, y, v);
    d.output(y);
}
