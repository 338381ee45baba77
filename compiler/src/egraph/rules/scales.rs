//! Factors moved to where they cost nothing.

use super::{Finding, Rule, View, is_matmul, is_mul};
use crate::egraph::language::Tree;
use crate::graph::{Op, Owner, TensorOp};
use egg::Id;
use ombra_ir::Dim;

/// (X·W) ∘ v = X·(W ∘ v), where whoever knows W knows v.
pub const COLUMNS: Rule = Rule {
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
};

/// (x ∘ c) ∘ d = x ∘ (c ∘ d), where c and d are both public, or both the server's.
pub const FACTORS: Rule = Rule {
    name: "factors of one owner",
    equation: "(x ∘ c) ∘ d = x ∘ (c ∘ d)",
    tolerance: 1e-5,
    reported: false,
    find: |view, class| {
        let mut found = Vec::new();
        if view.owner(class) != Owner::Secret {
            return found;
        }
        for (y, d) in view.unordered(class, is_mul) {
            for (x, c) in view.unordered(y, is_mul) {
                let both = match (view.scalar(c), view.scalar(d)) {
                    (Some(c), Some(d)) => Tree::scalar(c * d),
                    _ if one_owner(view, c, d) => Tree::binary(Op::MUL, c, d),
                    _ => continue,
                };
                found.push(Finding::Equal(Tree::binary(Op::MUL, x, both)));
            }
        }
        found
    },
};

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

fn one_owner(view: &View, c: Id, d: Id) -> bool {
    let (a, b) = (view.facts(c), view.facts(d));
    a.owner == b.owner && (a.owner == Owner::Public || a.owner == Owner::Server && a.fixed && b.fixed)
}
