//! Rules until nothing new follows, within limits.
//!
//! All rules look at the same e-graph, then all that they found is added: the order of rules does not matter, and
//! neither does that of classes. There is no limit of time, so that every run stops at the same place.

use super::language::{EGraph, Expr, Tree, add_tree, tree_facts};
use super::rules::{Finding, RULES, View};
use egg::Id;
use std::collections::{BTreeMap, BTreeSet};

/// Most rounds of all rules.
pub const MAX_ITERATIONS: usize = 12;
/// Most terms, beside three for each that was there.
pub const MAX_NODES: usize = 1000;

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing new follows.
    Saturated,
    /// After [`MAX_ITERATIONS`].
    Iterations,
    /// Above [`MAX_NODES`].
    Nodes,
}

impl Stop {
    /// The reason as printed.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Saturated => "saturated",
            Stop::Iterations => "iteration limit",
            Stop::Nodes => "node limit",
        }
    }
}

/// What saturation did.
pub struct Saturated {
    /// Why it ended.
    pub stop: Stop,
    /// Rounds of all rules.
    pub iterations: usize,
    /// Which rule made a term.
    pub made: BTreeMap<Expr, usize>,
    /// Patterns recognised and refused, once for each class and rule: class, rule, why.
    pub near: Vec<(Id, usize, String)>,
}

/// Applies the rules of [`RULES`] that `wanted` names by number.
pub fn saturate(egraph: &mut EGraph, wanted: &dyn Fn(usize) -> bool) -> Saturated {
    let mut made: BTreeMap<Expr, usize> = BTreeMap::new();
    let limit = MAX_NODES + 3 * egraph.total_number_of_nodes();
    let mut iterations = 0;
    let (stop, near) = loop {
        egraph.rebuild();
        let (found, near) = if egraph.analysis.clash.is_none() { matches(egraph, wanted) } else { Found::default() };
        if iterations == MAX_ITERATIONS {
            break (Stop::Iterations, near);
        }
        iterations += 1;
        let mut changed = false;
        for (class, rule, tree) in found {
            if tree_facts(egraph, &tree).is_none() {
                continue;
            }
            let before = egraph.total_number_of_nodes();
            let mut terms = Vec::new();
            let origin = egraph[class].data.origin;
            let id = add_tree(egraph, &tree, origin, &mut terms);
            changed |= egraph.union(class, id) || egraph.total_number_of_nodes() > before;
            // The last is the root: the term that the rule says the class equals.
            if let Some(term) = terms.pop() {
                made.entry(term).or_insert(rule);
            }
        }
        if !changed {
            break (Stop::Saturated, near);
        }
        if egraph.total_number_of_nodes() > limit {
            egraph.rebuild();
            break (Stop::Nodes, near);
        }
    };
    // Terms are found again by the classes that their operands ended in.
    let mut canonical = BTreeMap::new();
    for (term, rule) in made {
        let args = term.args.iter().map(|&a| egraph.find(a)).collect();
        canonical.entry(Expr { head: term.head, args }).or_insert(rule);
    }
    Saturated { stop, iterations, made: canonical, near }
}

/// All matches of all rules, and near misses.
type Found = (Vec<(Id, usize, Tree)>, Vec<(Id, usize, String)>);

fn matches(egraph: &EGraph, wanted: &dyn Fn(usize) -> bool) -> Found {
    let view = View::new(egraph);
    let classes: BTreeSet<Id> = egraph.classes().map(|c| c.id).collect();
    let (mut found, mut near) = (Vec::new(), Vec::new());
    for &class in &classes {
        for (number, rule) in RULES.iter().enumerate().filter(|(n, _)| wanted(*n)) {
            for finding in (rule.find)(&view, class) {
                match finding {
                    Finding::Equal(tree) => found.push((class, number, tree)),
                    Finding::Near(why) => near.push((class, number, why)),
                }
            }
        }
    }
    near.dedup();
    (found, near)
}
