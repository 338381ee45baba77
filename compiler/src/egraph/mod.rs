//! Algebra that moves work out of MPC or makes it cheaper.
//!
//! Every layer's secret part becomes an e-graph, rules add what its values equal, and the cheapest program is taken out
//! again: a candidate is lowered alone, and costs what the plan says that a session of it costs on the network. Equal
//! layers are solved once. Values keep their shapes and names, nothing is computed by the client that was not, and no
//! owner rises: a rule only rearranges what a value is computed from. What the rules did, and what they refused and why,
//! goes into the report.
//!
//! Matching and union are egg's; rounds of rules and extraction are ours: `saturate.rs`, `extract.rs`. Nothing depends on
//! time, on the order of hashes or on the names of values.

mod extract;
mod language;
mod region;
pub mod rules;
#[cfg(test)]
mod sampling;
mod saturate;
#[cfg(test)]
mod tests;

use crate::graph::Graph;
use crate::inspect::session::SessionCost;
use core::time::Duration;
use extract::{Choice, Costs, Problem, Program};
use language::{EGraph, Expr, Head};
use ombra_ir::network::Network;
use ombra_ir::{Diagnostic, Result};
use region::{Alone, Outside, Region, Replaced, Solution};
use rules::RULES;
use saturate::Saturated;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What rewriting did to one kind of region.
#[derive(Clone, Debug, Serialize)]
pub struct Rewrite {
    /// The layers of this form; empty for what belongs to none.
    pub layers: Vec<u32>,
    /// Nodes of one region.
    pub nodes: usize,
    /// Terms when saturation ended.
    pub terms: usize,
    /// Rounds of all rules.
    pub iterations: usize,
    /// Why saturation ended.
    pub stop: &'static str,
    /// Rules whose terms are in the program, and how many.
    pub applied: BTreeMap<&'static str, usize>,
    /// What a session of one region alone costs in bytes, rounds and work counted as bytes; 0 where no rule says anything of
    /// it, or where it has no lowering.
    pub before: f64,
    /// The same after.
    pub after: f64,
    /// What was recognised and refused.
    pub near: Vec<NearMiss>,
}

/// A pattern that was recognised and refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NearMiss {
    /// The rule.
    pub rule: &'static str,
    /// The ONNX node.
    pub node: String,
    /// Why.
    pub why: String,
}

impl Rewrite {
    /// The report on a program that was not rewritten, as it would cost `new` and not `old` bytes as a whole.
    #[must_use]
    pub fn taken_back(mut self, old: f64, new: f64) -> Rewrite {
        let why = || format!("a session of the whole program would cost {new:.0} bytes instead of {old:.0}");
        let refused = std::mem::take(&mut self.applied).into_keys();
        self.near.extend(refused.map(|rule| NearMiss { rule, node: String::new(), why: why() }));
        self.after = self.before;
        self
    }

    /// Some lines for people.
    pub fn text(&self) -> String {
        let layers = match self.layers.as_slice() {
            [] => "outside layers".to_string(),
            [layer] => format!("layer {layer}"),
            layers => format!("layers {}", layers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        };
        let Rewrite { nodes, terms, iterations, stop, .. } = self;
        let mut text = format!("rewriting {layers}: {nodes} nodes, {terms} terms, {stop} after {iterations} rounds");
        for (rule, count) in &self.applied {
            text += &format!("; {rule} {count} times");
        }
        text += "\n";
        for NearMiss { rule, node, why } in &self.near {
            text += &format!("near miss: {rule} at {node}: {why}\n");
        }
        text
    }
}

/// What a graph costs as a program of its own; nothing where it has no lowering.
pub type Cost<'a> = &'a dyn Fn(Graph) -> Option<SessionCost>;

/// Rewrites the secret part of a graph whose owners are known. Owners have to be assigned anew.
///
/// # Errors
/// An internal error when two values of different types are taken for equal.
pub fn rewrite(graph: &mut Graph, network: Network, cost: Cost) -> Result<Vec<Rewrite>> {
    let outside = Outside::new(graph);
    let mut solved: BTreeMap<String, (Option<Solution>, usize)> = BTreeMap::new();
    let mut reports: Vec<Rewrite> = Vec::new();
    let mut replaced = Replaced::new();
    for region in region::regions(graph)? {
        let terms = region::terms(graph, &outside, &region, &replaced)?;
        if let Some((solution, report)) = solved.get(&terms.signature) {
            if let Some(solution) = solution {
                region::apply(graph, &region, solution, &mut replaced)?;
            }
            reports[*report].layers.extend(region.layer);
            continue;
        }
        let alone = Alone::new(graph, &region, &replaced)?;
        let (solution, report) = solve(graph, &region, &alone, (terms.egraph, &terms.classes), (network, cost))?;
        if let Some(solution) = &solution {
            region::apply(graph, &region, solution, &mut replaced)?;
        }
        solved.insert(terms.signature, (solution, reports.len()));
        reports.push(report);
    }
    graph.remove_dead();
    Ok(reports)
}

/// Solves one region; no solution where the program stays as it was.
fn solve(
    graph: &Graph,
    region: &Region,
    alone: &Alone,
    (mut egraph, classes): (EGraph, &[egg::Id]),
    (network, cost): (Network, Cost),
) -> Result<(Option<Solution>, Rewrite)> {
    let originals: BTreeSet<Expr> = egraph.nodes().iter().filter(|n| matches!(n.head, Head::Op(_))).cloned().collect();
    let Saturated { stop, iterations, made, near } = saturate::saturate(&mut egraph, &|_| true);
    if let Some(clash) = &egraph.analysis.clash {
        return Err(Diagnostic::internal("E0290", format!("a rewriting rule is wrong: {clash}")));
    }
    let (problem, numbers) = region::problem(&egraph, region, classes, &originals, &made);
    let class_of: Vec<usize> = classes.iter().filter_map(|&id| numbers.get(&egraph.find(id)).copied()).collect();
    if problem.order(&problem.original()).is_none() {
        return Err(Diagnostic::internal("E0290", "a region of the graph depends on itself"));
    }
    let program = |choice: &Choice| region::solution(&problem, choice, region, &class_of);
    let lowered = |choice: &Choice| alone.with(region, &program(choice)?).ok().and_then(cost);
    let mut costs = Costs::new(&lowered);
    let solved = if problem.is_open() { problem.solve(&mut costs, network) } else { None };
    let node = |class: usize| {
        let place = problem.classes[class].facts.origin.unwrap_or(0);
        region.nodes.get(place as usize).and_then(|&id| graph.node(id).ok()).map(|n| n.origin.node.clone())
    };
    let mut misses: BTreeSet<NearMiss> = BTreeSet::new();
    for (id, rule, why) in near {
        let Some(&class) = numbers.get(&egraph.find(id)) else { continue };
        misses.insert(NearMiss { rule: RULES[rule].name, node: node(class).unwrap_or_default(), why });
    }
    let mut applied: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut prices = [0.0; 2];
    let mut solution = None;
    if let Some((before, after)) = &solved {
        for (class, rule, why) in refused(&problem, after, &mut costs, network) {
            misses.insert(NearMiss { rule: RULES[rule].name, node: node(class).unwrap_or_default(), why });
        }
        for class in problem.order(&after.choice).unwrap_or_default() {
            if let Some(rule) = problem.classes[class].terms[after.choice[class]].rule {
                *applied.entry(RULES[rule].name).or_default() += 1;
            }
        }
        prices = [before, after].map(|p| p.cost.price(network));
        solution = program(&after.choice).filter(Solution::is_new);
    }
    let [before, after] = prices;
    let report = Rewrite {
        layers: region.layer.into_iter().collect(),
        nodes: region.nodes.len(),
        terms: egraph.total_number_of_nodes(),
        iterations,
        stop: stop.name(),
        applied,
        before,
        after,
        near: misses.into_iter().collect(),
    };
    Ok((solution, report))
}

/// Rules whose terms would be chosen if rounds cost nothing, where they are the point of the rule.
fn refused(problem: &Problem, best: &Program, costs: &mut Costs, network: Network) -> Vec<(usize, usize, String)> {
    let immediate = Network { rtt: Duration::ZERO, ..network };
    let Some((_, other)) = problem.solve(costs, immediate) else { return Vec::new() };
    if other.cost.price(network) <= best.cost.price(network) {
        return Vec::new();
    }
    let order = problem.order(&other.choice).unwrap_or_default();
    let changed = order.into_iter().filter(|&class| other.choice[class] != best.choice[class]);
    let found = changed.filter_map(|class| Some((class, problem.classes[class].terms[other.choice[class]].rule?)));
    let why = costlier(&best.cost, &other.cost);
    found.filter(|&(_, rule)| RULES[rule].reported).map(|(class, rule)| (class, rule, why.clone())).collect()
}

/// Why a program is refused.
fn costlier(best: &SessionCost, other: &SessionCost) -> String {
    let more = |a: u64, b: u64| if b > a { "more" } else { "fewer" };
    format!(
        "the layer would take {} {} rounds and {} {} bytes in a session, and {} {} bytes to share weights",
        other.rounds.abs_diff(best.rounds),
        more(best.rounds, other.rounds),
        other.bytes.abs_diff(best.bytes),
        more(best.bytes, other.bytes),
        other.setup.abs_diff(best.setup),
        more(best.setup, other.setup)
    )
}
