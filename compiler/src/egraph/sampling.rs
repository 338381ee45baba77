//! Every rule on sampled graphs: both sides have one value, one shape, and no higher owner; what must be refused is.

use super::language::Tree;
use super::region::{Outside, region, terms};
use super::rules::{Finding, RULES, View};
use crate::graph::{Graph, InputRole, Op, Origin, Output, OutputRole, Owner, TensorOp, ValueId, eval};
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
    fn size(&mut self, low: i64, high: i64) -> i64 {
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

    fn scalar(&mut self, k: f32) -> ValueId {
        self.graph.add_const(Tensor::scalar_f32(k), Origin::default()).unwrap()
    }

    pub(super) fn op(&mut self, op: Op, args: &[ValueId]) -> ValueId {
        self.graph.add(op, args, Origin::default()).unwrap()
    }

    /// Two operands in either order.
    fn either(&mut self, op: Op, a: ValueId, b: ValueId) -> ValueId {
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

/// A rule by its name, what it must find and what it must refuse.
struct Case {
    rule: &'static str,
    found: &'static [fn(&mut Draw)],
    refused: &'static [fn(&mut Draw)],
}

/// X·(P ± A·B·s) with rank `r` and sizes `k` and `n`.
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

const CASES: &[Case] = &[
    Case {
        rule: "product of a sum",
        found: &[
            |d| adapter(d, [7, 6, 2], [Owner::Public, Owner::Server], Op::ADD),
            |d| adapter(d, [6, 9, 3], [Owner::Public, Owner::Server], Op::SUB),
        ],
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
    Case {
        rule: "nested product",
        found: &[|d| chain(d, [8, 2, 7], false, [Owner::Server; 2])],
        refused: &[
            |d| chain(d, [4, 2, 4], false, [Owner::Server; 2]),
            |d| chain(d, [3, 6, 3], false, [Owner::Public; 2]),
        ],
    },
    Case {
        rule: "transposed product",
        found: &[|d| {
            let (k, r, n) = (d.size(1, 5), d.size(1, 5), d.size(1, 5));
            let (a, b) = (d.weight(Owner::Server, &[k, r]), d.weight(Owner::Public, &[r, n]));
            let w = d.op(Op::MATMUL, &[a, b]);
            let t = d.op(Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] }), &[w]);
            let x = d.secret(&[3, n]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
        refused: &[|d| {
            let (a, b) = (d.secret(&[3, 4]), d.secret(&[4, 5]));
            let w = d.op(Op::MATMUL, &[a, b]);
            let t = d.op(Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] }), &[w]);
            d.output(t);
        }],
    },
    Case {
        rule: "scaled product",
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
        refused: &[|d| scaled_product(d, 0.125, Owner::Server)],
    },
    Case {
        rule: "scaled columns",
        found: &[
            |d| scaled_columns(d, [Owner::Server, Owner::Server]),
            |d| scaled_columns(d, [Owner::Public, Owner::Public]),
        ],
        refused: &[|d| scaled_columns(d, [Owner::Server, Owner::Public])],
    },
    Case {
        rule: "factors of one owner",
        found: &[
            |d| factors(d, Op::MUL, [Owner::Public; 2]),
            |d| {
                let x = d.secret(&[2, 3]);
                let (a, b) = (d.scalar(0.3), d.scalar(-1.7));
                let y = d.either(Op::MUL, x, a);
                let y = d.either(Op::MUL, y, b);
                d.output(y);
            },
        ],
        refused: &[|d| factors(d, Op::MUL, [Owner::Public, Owner::Server])],
    },
    Case {
        rule: "known terms",
        found: &[|d| factors(d, Op::ADD, [Owner::Public; 2]), |d| factors(d, Op::ADD, [Owner::Server; 2])],
        refused: &[|d| factors(d, Op::ADD, [Owner::Public, Owner::Server])],
    },
    Case {
        rule: "transposed elements",
        found: &[|d| {
            let (a, b) = (d.weight(Owner::Server, &[2, 3]), d.weight(Owner::Public, &[2, 3]));
            let k = d.scalar(3.0);
            let w = d.either(Op::MUL, a, k);
            let w = d.either(Op::SUB, w, b);
            let t = d.op(Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] }), &[w]);
            let x = d.secret(&[4, 3]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
        refused: &[|d| {
            let (a, b) = (d.weight(Owner::Server, &[2, 3]), d.weight(Owner::Public, &[3]));
            let w = d.either(Op::ADD, a, b);
            let t = d.op(Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] }), &[w]);
            let x = d.secret(&[4, 3]);
            let y = d.op(Op::MATMUL, &[x, t]);
            d.output(y);
        }],
    },
];

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

fn scaled_product(d: &mut Draw, k: f32, owner: Owner) {
    let (x, w) = (d.secret(&[3, 4]), d.weight(owner, &[4, 5]));
    let (y, k) = (d.op(Op::MATMUL, &[x, w]), d.scalar(k));
    let y = d.either(Op::MUL, y, k);
    d.output(y);
}

fn scaled_columns(d: &mut Draw, [v, w]: [Owner; 2]) {
    let (m, k, n) = (d.size(1, 4), d.size(1, 5), d.size(2, 5));
    let (x, v, w) = (d.secret(&[m, k]), d.weight(v, &[1, n]), d.weight(w, &[k, n]));
    let y = d.op(Op::MATMUL, &[x, w]);
    let y = d.either(Op::MUL, y, v);
    d.output(y);
}

fn factors(d: &mut Draw, op: Op, owners: [Owner; 2]) {
    let (x, a, b) = (d.secret(&[2, 3]), d.weight(owners[0], &[2, 3]), d.weight(owners[1], &[3]));
    let y = d.either(op.clone(), x, a);
    let y = d.either(op, y, b);
    d.output(y);
}

#[test]
fn every_rule_is_an_equation() {
    for (number, rule) in RULES.iter().enumerate() {
        let case = CASES.iter().find(|c| c.rule == rule.name).unwrap_or_else(|| panic!("{} has no case", rule.name));
        for (i, build) in case.found.iter().enumerate() {
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
    for case in CASES {
        let number = RULES.iter().position(|r| r.name == case.rule).unwrap_or_else(|| panic!("no rule {}", case.rule));
        for (i, build) in case.refused.iter().enumerate() {
            let mut draw = Draw::new(1);
            build(&mut draw);
            let (found, _) = findings(&draw.graph, number);
            let equal = found.iter().filter(|(_, f)| matches!(f, Finding::Equal(_))).count();
            assert_eq!(equal, 0, "{} takes case {i}", case.rule);
        }
    }
}

#[test]
fn rules_find_nothing_in_each_others_refusals_that_is_wrong() {
    for case in CASES {
        for build in case.refused.iter().chain(case.found) {
            let mut draw = Draw::new(7);
            build(&mut draw);
            for rule in 0..RULES.len() {
                check(&draw, rule);
            }
        }
    }
}

/// Whole graphs: rewritten programs have the values of what they replace, for networks that change what is chosen.
#[test]
fn rewritten_graphs_have_the_same_values() {
    let free = Network { bandwidth_bits_per_s: 8_000_000, rtt: Duration::ZERO };
    for case in CASES {
        for build in case.found {
            for network in [free, Network::WAN] {
                let mut draw = Draw::new(3);
                build(&mut draw);
                let before = draw.evaluate(&draw.graph);
                let mut graph = draw.graph.clone();
                for report in super::rewrite(&mut graph, network, &|region| draw.cost(region)).unwrap() {
                    assert!(report.after <= report.before, "{}: {report:?}", case.rule);
                }
                for (a, b) in before.iter().zip(draw.evaluate(&graph)) {
                    let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
                    let largest = a.iter().fold(1.0f32, |m, x| m.max(x.abs()));
                    assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-4 * largest), "{}", case.rule);
                }
            }
        }
    }
}
