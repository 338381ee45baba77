//! Sums of what is secret and what is not.

use super::{Finding, Rule, is_add};
use crate::egraph::language::Tree;
use crate::graph::{Op, Owner};

/// (x + p) + q = x + (p + q), where p and q are both public, or both the server's: their sum leaves MPC.
pub const KNOWN: Rule = Rule {
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
};
