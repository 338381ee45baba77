//! Sums of what is secret and what is not.

use super::{Finding, Rule, is_add};
use crate::egraph::language::Tree;
#[cfg(test)]
use crate::egraph::sampling::Draw;
use crate::graph::{Op, Owner};

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    // (x + p) + q = x + (p + q), where p and q are both public, or both the server's: their sum leaves MPC.
    Rule {
        name: "known terms",
        equation: "(x + p) + q = x + (p + q)",
        tolerance: 1e-5,
        reported: false,
        find: |v, class| {
            let mut found = Vec::new();
            if v.owner(class) != Owner::Secret {
                return found;
            }
            for (y, q) in v.unordered(class, is_add) {
                for (x, p) in v.unordered(y, is_add) {
                    let (a, b) = (v.facts(p), v.facts(q));
                    let known = a.owner == Owner::Public || a.owner == Owner::Server && a.fixed && b.fixed;
                    if known && a.owner == b.owner {
                        found.push(Finding::Equal(Tree::binary(Op::ADD, x, Tree::binary(Op::ADD, p, q))));
                    }
                }
            }
            found
        },
        #[cfg(test)]
        found: &[|d| terms(d, [Owner::Public; 2]), |d| terms(d, [Owner::Server; 2])],
        #[cfg(test)]
        refused: &[|d| terms(d, [Owner::Public, Owner::Server])],
    },
];

/// (x + p) + q in some order.
#[cfg(test)]
fn terms(d: &mut Draw, owners: [Owner; 2]) {
    let (x, p, q) = (d.secret(&[2, 3]), d.weight(owners[0], &[2, 3]), d.weight(owners[1], &[3]));
    let y = d.either(Op::ADD, x, p);
    let y = d.either(Op::ADD, y, q);
    d.output(y);
}
