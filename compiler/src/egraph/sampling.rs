//! Every rule on sampled graphs: both sides have one value, one shape, and no higher owner; what must be refused is.

use super::language::Tree;
use super::region::{Outside, region, terms};
use super::rules::{Finding, RULES, View};
use crate::graph::{Graph, InputRole, Op, Origin, Output, OutputRole, Owner, ValueId, eval};
use crate::inspect::session::SessionCost;
use crate::pipeline::{Options, cost_alone};
use crate::weights::statics::Known;
use core::time::Duration;
use egg::Id;
use ombra_ir::network::Network;
use ombra_ir::plain::{DType, Tensor, Type};
use ombra_ir::{Dim, Result};
use std::collections::BTreeMap;

/// Draws of every case.
const DRAWS: u64 = 12;

/// A graph under construction with sampled sizes and values.
pub(super) struct Draw {
    state: u64,
    pub(super) graph: Graph,
    values: BTreeMap<String, Tensor>,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Draw { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, graph: Graph::new(), values: BTreeMap::new() }
    }

    fn next(&mut self) -> u64 {
        // Numbers of Knuth's MMIX generator; the high bits are good enough.
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.state >> 33
    }

    /// A size from `low` to `high`.
    pub(super) fn size(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    /// A number from -2 to 2.
    fn number(&mut self) -> f32 {
        (self.next() % 4001) as f32 / 1000.0 - 2.0
    }

    fn tensor(&mut self, shape: &[i64]) -> Tensor {
        let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let values = (0..shape.iter().product()).map(|_| self.number()).collect();
        Tensor::f32(&shape, values).unwrap()
    }

    fn fresh(&mut self, shape: &[i64]) -> String {
        let name = format!("v{}", self.values.len());
        let tensor = self.tensor(shape);
        self.values.insert(name.clone(), tensor);
        name
    }

    /// A secret value.
    pub(super) fn secret(&mut self, shape: &[i64]) -> ValueId {
        let name = self.fresh(shape);
        let ty = Type::new(DType::F32, dims(shape));
        let id = self.graph.add_input(&name, InputRole::Other, ty, Origin::default());
        self.graph.node_mut(id).unwrap().owner = Owner::Secret;
        id
    }

    /// A weight.
    pub(super) fn weight(&mut self, owner: Owner, shape: &[i64]) -> ValueId {
        let name = self.fresh(shape);
        let id = self.graph.add_weight(&name, false, dims(shape), Origin::default());
        self.graph.node_mut(id).unwrap().owner = owner;
        id
    }

    pub(super) fn scalar(&mut self, k: f32) -> ValueId {
        self.graph.add_const(Tensor::scalar_f32(k), Origin::default()).unwrap()
    }

    pub(super) fn op(&mut self, op: Op, args: &[ValueId]) -> ValueId {
        self.graph.add(op, args, Origin::default()).unwrap()
    }

    /// Two operands in either order.
    pub(super) fn either(&mut self, op: Op, a: ValueId, b: ValueId) -> ValueId {
        let args = if self.next().is_multiple_of(2) { [a, b] } else { [b, a] };
        self.op(op, &args)
    }

    pub(super) fn output(&mut self, value: ValueId) {
        let name = format!("y{}", self.graph.outputs.len());
        self.graph.outputs.push(Output { name, role: OutputRole::Other, value });
    }

    /// What a part of the graph costs alone, in `3pc`.
    pub(super) fn cost(&self, part: Graph) -> Option<SessionCost> {
        let weights = |name: &str| -> Result<Tensor> { Ok(self.values[name].clone()) };
        cost_alone(part, (&weights, &Known::default()), &Options::default()).ok()
    }

    /// Outputs of a graph on the sampled values.
    pub(super) fn evaluate(&self, graph: &Graph) -> Vec<Tensor> {
        let weights = |name: &str| -> Result<Tensor> { Ok(self.values[name].clone()) };
        eval::evaluate(graph, &weights, &self.values).unwrap()
    }
}

fn dims(shape: &[i64]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::constant(d)).collect()
}

/// What one rule says of every class of a graph, with a value for every class.
fn findings(graph: &Graph, rule: usize) -> (Vec<(ValueId, Finding)>, BTreeMap<Id, ValueId>) {
    let wanted = |id: &ValueId| {
        let node = graph.node(*id).unwrap();
        let source = matches!(node.op, Op::Input { .. } | Op::Weight { .. });
        !source && matches!(node.owner, Owner::Secret | Owner::Server)
    };
    let nodes: Vec<ValueId> = graph.topological().into_iter().filter(wanted).collect();
    let region = region(graph, None, &nodes).unwrap();
    let terms = terms(graph, &Outside::new(graph), &region, &BTreeMap::new()).unwrap();
    let mut values: BTreeMap<Id, ValueId> = BTreeMap::new();
    for (&id, &value) in terms.classes.iter().zip(&region.nodes) {
        values.entry(id).or_insert(value);
    }
    for class in terms.egraph.classes() {
        for node in &class.nodes {
            if let super::language::Head::Leaf(n) = node.head {
                values.insert(class.id, region.leaves[n as usize]);
            }
        }
    }
    let view = View::new(&terms.egraph);
    let found = values.iter().flat_map(|(&class, &value)| {
        let findings = (RULES[rule].find)(&view, class);
        findings.into_iter().map(move |finding| (value, finding))
    });
    (found.collect(), values)
}

fn build(graph: &mut Graph, tree: &Tree, values: &BTreeMap<Id, ValueId>) -> ValueId {
    match tree {
        Tree::Class(id) => values[id],
        Tree::Node(op, args) => {
            let args: Vec<ValueId> = args.iter().map(|a| build(graph, a, values)).collect();
            graph.add(op.clone(), &args, Origin::default()).unwrap()
        }
    }
}

/// Checks every equation that a rule finds in a sampled graph; returns how many.
fn check(draw: &Draw, rule: usize) -> usize {
    let name = RULES[rule].name;
    let (found, values) = findings(&draw.graph, rule);
    let mut checked = 0;
    for (left, finding) in found {
        let Finding::Equal(tree) = finding else { continue };
        let mut graph = draw.graph.clone();
        let right = build(&mut graph, &tree, &values);
        assert_eq!(graph.node(left).unwrap().ty(), graph.node(right).unwrap().ty(), "{name}");
        let (before, after) = (graph.node(left).unwrap().owner, graph.node(right).unwrap().owner);
        assert_eq!(before.join(after), before, "{name}: {} becomes {}", before.name(), after.name());
        graph.outputs.clear();
        for value in [left, right] {
            graph.outputs.push(Output { name: String::new(), role: OutputRole::Other, value });
        }
        let sides = draw.evaluate(&graph);
        let (a, b) = (sides[0].as_f32().unwrap(), sides[1].as_f32().unwrap());
        let largest = a.iter().chain(b).fold(1e-3f32, |m, x| m.max(x.abs()));
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).abs() <= RULES[rule].tolerance * largest, "{name}: {x} and {y} of {largest}");
        }
        checked += 1;
    }
    checked
}

#[test]
fn every_rule_is_an_equation() {
    for (number, rule) in RULES.iter().enumerate() {
        assert!(!rule.found.is_empty() && !rule.refused.is_empty(), "{} has no case", rule.name);
        for (i, build) in rule.found.iter().enumerate() {
            for seed in 0..DRAWS {
                let mut draw = Draw::new(seed);
                build(&mut draw);
                assert!(check(&draw, number) > 0, "{} misses case {i}, draw {seed}", rule.name);
            }
        }
    }
}

#[test]
fn every_rule_refuses_what_is_no_case_of_it() {
    for (number, rule) in RULES.iter().enumerate() {
        for (i, build) in rule.refused.iter().enumerate() {
            let mut draw = Draw::new(1);
            build(&mut draw);
            let (found, _) = findings(&draw.graph, number);
            let equal = found.iter().filter(|(_, f)| matches!(f, Finding::Equal(_))).count();
            assert_eq!(equal, 0, "{} takes case {i}", rule.name);
        }
    }
}

#[test]
fn rules_find_nothing_in_each_others_refusals_that_is_wrong() {
    for build in RULES.iter().flat_map(|rule| rule.refused.iter().chain(rule.found)) {
        let mut draw = Draw::new(7);
        build(&mut draw);
        for number in 0..RULES.len() {
            check(&draw, number);
        }
    }
}

/// Whole graphs: rewritten programs have the values of what they replace, for networks that change what is chosen.
#[test]
fn rewritten_graphs_have_the_same_values() {
    let free = Network { bandwidth_bits_per_s: 8_000_000, rtt: Duration::ZERO };
    for rule in RULES.iter() {
        for build in rule.found {
            for network in [free, Network::WAN] {
                let mut draw = Draw::new(3);
                build(&mut draw);
                let before = draw.evaluate(&draw.graph);
                let mut graph = draw.graph.clone();
                for report in super::rewrite(&mut graph, network, &|region| draw.cost(region)).unwrap() {
                    assert!(report.after <= report.before, "{}: {report:?}", rule.name);
                }
                for (a, b) in before.iter().zip(draw.evaluate(&graph)) {
                    let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
                    let largest = a.iter().fold(1.0f32, |m, x| m.max(x.abs()));
                    assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-4 * largest), "{}", rule.name);
                }
            }
        }
    }
}
