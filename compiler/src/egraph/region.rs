//! Regions of the typed graph, as terms and back.
//!
//! A region is the secret part of one layer with what the server computes for it before a run. Its leaves are all values
//! from outside: inputs, weights, constants, public and the client's values, and those of other layers. Regions with
//! equal signatures differ in the names of their leaves only, so one solution serves all of them.

use super::extract::{Choice, Class, Problem, Term};
use super::language::{EGraph, Expr, Facts, Head};
use crate::graph::{Graph, InputRole, Op, Origin, Output, OutputRole, Owner, TensorOp, ValueId};
use egg::Id;
use ombra_ir::plain::DType;
use ombra_ir::{Diagnostic, Dim, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Most nodes of one region; a longer layer is cut.
const MAX_NODES: usize = 600;

/// A region.
pub struct Region {
    /// The layer, where names show one.
    pub layer: Option<u32>,
    /// Its nodes, operands first.
    pub nodes: Vec<ValueId>,
    /// Values from outside, by first use.
    pub leaves: Vec<ValueId>,
    /// Places among the nodes of those that are used outside.
    pub roots: Vec<u32>,
}

/// What regions need to know of the whole graph.
pub struct Outside {
    fixed: BTreeSet<ValueId>,
    /// Shapes of private embedding tables.
    tables: BTreeSet<Vec<Dim>>,
}

impl Outside {
    /// Looks at a graph.
    pub fn new(graph: &Graph) -> Self {
        let (mut fixed, mut tables) = (BTreeSet::new(), BTreeSet::new());
        for id in graph.topological() {
            let Some(op) = graph.op(id) else { continue };
            let operands = graph.operands(id);
            let constant = |d: &Dim| d.as_constant().is_some();
            let given = match op {
                Op::Input { .. } => true,
                Op::Tensor(TensorOp::Sizes { values, .. }) => !values.iter().all(constant),
                Op::Tensor(TensorOp::Iota { start, len, .. }) => !(constant(start) && constant(len)),
                _ => false,
            };
            if !given && graph.shape(id).iter().all(constant) && operands.iter().all(|o| fixed.contains(o)) {
                fixed.insert(id);
            }
            if let (Op::Tensor(TensorOp::Gather { axis: 0 }), Some(&table)) = (op, operands.first())
                && graph.node(table).is_ok_and(|n| n.owner == Owner::Server)
            {
                tables.insert(graph.shape(table).to_vec());
            }
        }
        Outside { fixed, tables }
    }

    fn facts(&self, graph: &Graph, id: ValueId) -> Result<Facts> {
        let node = graph.node(id)?;
        let full = match &node.op {
            Op::Tensor(TensorOp::Constant(t)) => {
                t.as_f32().ok().and_then(|v| v.first().copied().filter(|f| v.iter().all(|x| x == f)))
            }
            _ => None,
        };
        let turned: Vec<Dim> = node.shape.iter().rev().cloned().collect();
        let tied = node.owner == Owner::Server && (self.tables.contains(&turned) || self.tables.contains(&node.shape));
        let fixed = self.fixed.contains(&id);
        Ok(Facts { ty: node.ty(), owner: node.owner, fixed, full, origin: None, tied })
    }
}

/// The regions of a graph, in the order of their layers.
pub fn regions(graph: &Graph) -> Result<Vec<Region>> {
    let order = graph.topological();
    // A node without a layer belongs behind the highest layer before it, or in front of all.
    let mut keys: BTreeMap<ValueId, u64> = BTreeMap::new();
    for &id in &order {
        let node = graph.node(id)?;
        if node.owner != Owner::Secret || matches!(node.op, Op::Input { .. }) {
            continue;
        }
        let before = graph.operands(id).iter().filter_map(|o| keys.get(o)).max().copied().unwrap_or(0);
        keys.insert(id, node.origin.layer.map_or(before | 1, |l| 2 * u64::from(l) + 2));
    }
    // What the server computes belongs to its first user.
    for &id in order.iter().rev() {
        let node = graph.node(id)?;
        let source = matches!(node.op, Op::Input { .. } | Op::Weight { .. });
        if node.owner == Owner::Server && !source && node.dtype == DType::F32 {
            let user = graph.users(id).iter().filter_map(|u| keys.get(u)).min().copied();
            keys.extend(user.map(|key| (id, key)));
        }
    }
    let mut by_key: BTreeMap<u64, Vec<ValueId>> = BTreeMap::new();
    for &id in &order {
        if let Some(&key) = keys.get(&id) {
            by_key.entry(key).or_default().push(id);
        }
    }
    let mut regions = Vec::new();
    for (key, nodes) in by_key {
        let layer = (key % 2 == 0).then(|| u32::try_from(key / 2 - 1).unwrap_or(u32::MAX));
        for nodes in nodes.chunks(MAX_NODES) {
            regions.push(region(graph, layer, nodes)?);
        }
    }
    Ok(regions)
}

/// The region of some nodes, operands first.
pub fn region(graph: &Graph, layer: Option<u32>, nodes: &[ValueId]) -> Result<Region> {
    let inside: BTreeSet<ValueId> = nodes.iter().copied().collect();
    let (mut leaves, mut roots) = (Vec::new(), Vec::new());
    for (place, &id) in (0u32..).zip(nodes) {
        for operand in graph.operands(id) {
            if !inside.contains(&operand) && !leaves.contains(&operand) {
                leaves.push(operand);
            }
        }
        if graph.is_output(id) || graph.users(id).iter().any(|u| !inside.contains(u)) {
            roots.push(place);
        }
    }
    Ok(Region { layer, nodes: nodes.to_vec(), leaves, roots })
}

/// A region as terms.
pub struct Terms {
    /// The e-graph.
    pub egraph: EGraph,
    /// The class of every node of the region.
    pub classes: Vec<Id>,
    /// What regions of the same form have in common.
    pub signature: String,
}

/// What took the place of values, in regions that were rewritten before.
pub type Replaced = BTreeMap<ValueId, ValueId>;

fn resolve(mut id: ValueId, replaced: &Replaced) -> ValueId {
    while let Some(&next) = replaced.get(&id) {
        id = next;
    }
    id
}

/// The e-graph of a region, without rules.
pub fn terms(graph: &Graph, outside: &Outside, region: &Region, replaced: &Replaced) -> Result<Terms> {
    let mut egraph = EGraph::default();
    let mut signature = String::new();
    let mut ids: BTreeMap<ValueId, Id> = BTreeMap::new();
    for (n, &leaf) in (0u32..).zip(&region.leaves) {
        let facts = outside.facts(graph, leaf)?;
        let _ = writeln!(signature, "{facts:?}");
        egraph.analysis.leaves.push(facts);
        ids.insert(resolve(leaf, replaced), egraph.add(Expr { head: Head::Leaf(n), args: Vec::new() }));
    }
    let mut classes = Vec::with_capacity(region.nodes.len());
    for (place, &node) in (0u32..).zip(&region.nodes) {
        let Some(op) = graph.op(node) else { continue };
        let known = |o: &ValueId| {
            ids.get(o).copied().ok_or_else(|| {
                Diagnostic::internal("E0290", format!("%{} is neither in its region nor a leaf of it", o.index()))
            })
        };
        let args = graph.operands(node).iter().map(known).collect::<Result<Vec<Id>>>()?;
        let _ = writeln!(signature, "{op:?} {args:?}");
        let head = Head::Op(egraph.analysis.intern(op));
        let id = egraph.add(Expr { head, args });
        let facts = outside.facts(graph, node)?;
        let data = &mut egraph[id].data;
        data.origin.get_or_insert(place);
        data.tied |= facts.tied;
        ids.insert(node, id);
        classes.push(id);
    }
    let _ = writeln!(signature, "{:?}", region.roots);
    egraph.rebuild();
    Ok(Terms { egraph, classes, signature })
}

/// The extraction problem of a saturated e-graph. `originals` has for every node of the region its term as it was
/// added; `made` says which rule made a term.
pub fn problem<'a>(
    egraph: &'a EGraph,
    region: &Region,
    classes: &[Id],
    originals: &BTreeSet<Expr>,
    made: &BTreeMap<Expr, usize>,
) -> (Problem<'a>, BTreeMap<Id, usize>) {
    let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    let numbers: BTreeMap<Id, usize> = ids.iter().copied().zip(0..).collect();
    let find = |id: &Id| numbers.get(&egraph.find(*id)).copied().unwrap_or(0);
    let originals: BTreeSet<Expr> = originals
        .iter()
        .map(|e| Expr { head: e.head, args: e.args.iter().map(|&a| egraph.find(a)).collect() })
        .collect();
    let list = ids.iter().map(|&id| {
        let mut nodes: Vec<&Expr> = egraph[id].nodes.iter().collect();
        nodes.sort();
        let original = nodes.iter().position(|n| matches!(n.head, Head::Leaf(_)) || originals.contains(*n));
        let term = |n: &&Expr| Term {
            head: n.head,
            args: n.args.iter().map(find).collect(),
            rule: made.get(*n).copied().filter(|_| !originals.contains(*n)),
        };
        Class { facts: egraph[id].data.clone(), terms: nodes.iter().map(term).collect(), original }
    });
    let problem = Problem {
        classes: list.collect(),
        roots: region.roots.iter().filter_map(|&place| Some(find(classes.get(place as usize)?))).collect(),
        analysis: &egraph.analysis,
    };
    (problem, numbers)
}

/// Where a value of a solution comes from.
#[derive(Clone, Debug)]
enum Source {
    /// A leaf of the region.
    Leaf(u32),
    /// A node of the region, as it was.
    Node(u32),
    /// An operator on values of the solution, with the node whose origin it has and whether it is that node's value.
    New(Op, Vec<usize>, Option<u32>, bool),
}

/// A program for a region and all that have its signature.
#[derive(Clone, Debug, Default)]
pub struct Solution {
    values: Vec<Source>,
    /// What takes the place of a node, for the nodes that are used outside.
    roots: Vec<(u32, usize)>,
}

impl Solution {
    /// Whether anything changes.
    pub fn is_new(&self) -> bool {
        self.values.iter().any(|v| matches!(v, Source::New(..)))
    }
}

/// The program of a choice. `class_of` has the class of every node of the region.
pub fn solution(problem: &Problem, choice: &Choice, region: &Region, class_of: &[usize]) -> Option<Solution> {
    let mut first: BTreeMap<usize, u32> = BTreeMap::new();
    for (place, &class) in (0u32..).zip(class_of) {
        first.entry(class).or_insert(place);
    }
    let mut solution = Solution::default();
    let mut at: BTreeMap<usize, usize> = BTreeMap::new();
    for class in problem.order(choice)? {
        let Class { facts, terms, original } = &problem.classes[class];
        let term = &terms[choice[class]];
        let args: Vec<usize> = term.args.iter().filter_map(|a| at.get(a).copied()).collect();
        let kept = args.iter().all(|&a| !matches!(solution.values[a], Source::New(..)));
        let source = match (term.head, first.get(&class)) {
            (Head::Leaf(n), _) => Source::Leaf(n),
            (Head::Op(_), Some(&place)) if *original == Some(choice[class]) && kept => Source::Node(place),
            (head, place) => {
                let op = problem.analysis.op(head)?.clone();
                Source::New(op, args, place.copied().or(facts.origin), place.is_some())
            }
        };
        at.insert(class, solution.values.len());
        solution.values.push(source);
    }
    for &place in &region.roots {
        solution.roots.push((place, *at.get(class_of.get(place as usize)?)?));
    }
    Some(solution)
}

/// Puts a solution in the place of a region. `replaced` maps values to what took their place, in regions before this one
/// too.
pub fn apply(graph: &mut Graph, region: &Region, solution: &Solution, replaced: &mut Replaced) -> Result<()> {
    let mut ids: Vec<ValueId> = Vec::with_capacity(solution.values.len());
    for value in &solution.values {
        ids.push(match value {
            Source::Leaf(n) => resolve(region.leaves[*n as usize], replaced),
            Source::Node(n) => resolve(region.nodes[*n as usize], replaced),
            Source::New(op, args, origin, same) => {
                let origin = match origin {
                    Some(n) => graph.node(region.nodes[*n as usize])?.origin.clone(),
                    None => Origin::default(),
                };
                let origin = if *same { origin } else { Origin { value: String::new(), ..origin } };
                let args: Vec<ValueId> = args.iter().map(|&a| ids[a]).collect();
                add(graph, op, &args, origin)?
            }
        });
    }
    for &(place, value) in &solution.roots {
        let (old, new) = (resolve(region.nodes[place as usize], replaced), ids[value]);
        if old != new {
            graph.replace_all_uses(old, new)?;
            replaced.insert(old, new);
        }
    }
    Ok(())
}

/// A region as a program of its own, in which solutions are tried.
pub struct Alone {
    graph: Graph,
    replaced: Replaced,
}

impl Alone {
    /// Cuts a region out of a graph: secret values from outside become inputs of the owner that they have, and roots
    /// outputs. What its public, client's and server's leaves are computed from goes with it. Values keep their ids.
    ///
    /// # Errors
    /// Internal ones of the graph.
    pub fn new(graph: &Graph, region: &Region, replaced: &Replaced) -> Result<Self> {
        let (mut graph, mut replaced) = (graph.clone(), replaced.clone());
        let output = |&place: &u32| Output {
            name: format!("root {place}"),
            role: OutputRole::Other,
            value: resolve(region.nodes[place as usize], &replaced),
        };
        graph.outputs = region.roots.iter().map(output).collect();
        let mut inputs = Vec::new();
        for (n, &leaf) in region.leaves.iter().enumerate() {
            let leaf = resolve(leaf, &replaced);
            let node = graph.node(leaf)?;
            if node.owner == Owner::Secret && !inputs.contains(&leaf) {
                let (ty, origin) = (node.ty(), node.origin.clone());
                let input = graph.add_input(&format!("leaf {n}"), InputRole::Other, ty, origin);
                graph.node_mut(input)?.owner = Owner::Secret;
                graph.replace_all_uses(leaf, input)?;
                replaced.insert(leaf, input);
                inputs.push(input);
            }
        }
        let mut needed: BTreeSet<ValueId> = BTreeSet::new();
        for output in &graph.outputs {
            needed.extend(graph.ancestors(output.value));
        }
        graph.inputs.retain(|input| needed.contains(input));
        graph.remove_dead();
        Ok(Alone { graph, replaced })
    }

    /// The program with a solution in the place of the region.
    ///
    /// # Errors
    /// Internal ones of the graph.
    pub fn with(&self, region: &Region, solution: &Solution) -> Result<Graph> {
        let mut graph = self.graph.clone();
        apply(&mut graph, region, solution, &mut self.replaced.clone())?;
        graph.remove_dead();
        Ok(graph)
    }
}

/// Adds a node; the transpose of a weight is that weight, turned.
fn add(graph: &mut Graph, op: &Op, args: &[ValueId], origin: Origin) -> Result<ValueId> {
    if let (Op::Tensor(TensorOp::Transpose { perm }), [x]) = (op, args)
        && perm[..] == [1, 0]
        && let Op::Weight { name, transposed } = graph.node(*x)?.op.clone()
    {
        let owner = graph.node(*x)?.owner;
        let shape = graph.shape(*x).iter().rev().cloned().collect();
        let origin = graph.node(*x)?.origin.clone();
        let id = graph.add_weight(&name, !transposed, shape, origin);
        graph.node_mut(id)?.owner = owner;
        return Ok(id);
    }
    graph.add(op.clone(), args, origin)
}
