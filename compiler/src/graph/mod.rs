//! The typed graph: float tensor operators with symbolic shapes, owners and origins.
//!
//! Every node has exactly one output, so a node is a value. An edge runs from an operand to its user and carries
//! the operand's slot. The graph has no cycle: a node is added after its operands, and
//! [`Graph::replace_all_uses`] refuses a replacement that depends on what it replaces.

pub mod eval;
pub mod infer;
pub mod op;
pub mod owners;
pub mod ratio;
pub mod text;
pub mod whole;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use ombra_ir::plain::{DType, Tensor, Type};
use ombra_ir::{Diagnostic, Dim, Dims, Result};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

pub use op::{InputRole, Numerator, Op, OutputRole, TensorOp};
pub use owners::{Owner, propagate_owners};

/// Largest constant that [`Graph::merge_equal`] compares.
const MERGED_ELEMENTS: usize = 64;

/// A value, which is a node.
pub type ValueId = NodeIndex<u32>;

/// Where a value comes from in the ONNX file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Name of the ONNX value.
    pub value: String,
    /// Name of the ONNX node.
    pub node: String,
    /// Number of the layer, from names such as `layers.3` or `h.3`.
    pub layer: Option<u32>,
}

/// A node and its one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Vec<Dim>,
    /// Who may know it.
    pub owner: Owner,
    /// Where it comes from.
    pub origin: Origin,
}

impl Node {
    /// Element type and shape.
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, self.shape.clone())
    }
}

/// A declared output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name in the ONNX file.
    pub name: String,
    /// What it is.
    pub role: OutputRole,
    /// The value.
    pub value: ValueId,
}

/// A typed graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: StableDiGraph<Node, u32>,
    /// The symbols of all shapes.
    pub dims: Dims,
    /// Values of kind [`Op::Input`], in the order of the ONNX file.
    pub inputs: Vec<ValueId>,
    /// Outputs, in the order of the ONNX file.
    pub outputs: Vec<Output>,
    /// Sizes that the model takes to be no larger than a number, as tables of fixed length are cut to them.
    pub limits: Vec<(Dim, i64)>,
    /// Inputs of the ONNX file that are one known number, which sizes were made of; they are no inputs of the graph.
    pub fixed: BTreeMap<String, i64>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node. Its type follows from the operands; its owner is their join (a weight is the server's, an input
    /// has its role's owner) until [`propagate_owners`] knows better.
    ///
    /// Errors: operands that do not exist or do not fit.
    pub fn add(&mut self, op: Op, operands: &[ValueId], origin: Origin) -> Result<ValueId> {
        let mut types = Vec::with_capacity(operands.len());
        let mut owner = Owner::Public;
        for id in operands {
            let node = self.node(*id)?;
            types.push(node.ty());
            owner = owner.join(node.owner);
        }
        let ty = infer::infer(&op, &types.iter().collect::<Vec<_>>()).map_err(|e| {
            let show = |ty: &Type| format!("{}{}", ty.dtype.name(), self.dims.show_shape(&ty.shape));
            let found = e.note(format!("found {}", types.iter().map(show).collect::<Vec<_>>().join(", ")));
            match &op {
                Op::Tensor(TensorOp::Reshape { shape } | TensorOp::Expand { shape }) => {
                    found.note(format!("the new shape is {}", self.dims.show_shape(shape)))
                }
                _ => found,
            }
        })?;
        if ty.shape.iter().any(|d| self.dims.upper(d).is_some_and(|u| u < 0)) {
            let shape = self.dims.show_shape(&ty.shape);
            return Err(Diagnostic::input("E0212", format!("{}: shape {shape} has a negative size", op.name())));
        }
        Ok(self.insert(Node { op, dtype: ty.dtype, shape: ty.shape, owner, origin }, operands))
    }

    /// Takes the size `dim` to be at most `most`.
    pub fn limit(&mut self, dim: Dim, most: i64) {
        match self.limits.iter_mut().find(|(known, _)| *known == dim) {
            Some((_, known)) => *known = most.min(*known),
            None => self.limits.push((dim, most)),
        }
    }

    /// Adds an input of a declared type.
    pub fn add_input(&mut self, name: &str, role: InputRole, ty: Type, origin: Origin) -> ValueId {
        let owner = Owner::of_input(role);
        let op = Op::Input { name: name.into(), role };
        let id = self.insert(Node { op, dtype: ty.dtype, shape: ty.shape, owner, origin }, &[]);
        self.inputs.push(id);
        id
    }

    /// Adds a weight: the initializer `name`, or its transpose, of `shape` (after transposing).
    pub fn add_weight(&mut self, name: &str, transposed: bool, shape: Vec<Dim>, origin: Origin) -> ValueId {
        let op = Op::Weight { name: name.into(), transposed };
        self.insert(Node { op, dtype: DType::F32, shape, owner: Owner::Server, origin }, &[])
    }

    /// Adds a public constant.
    pub fn add_const(&mut self, tensor: Tensor, origin: Origin) -> Result<ValueId> {
        self.add(Op::Tensor(TensorOp::Constant(tensor)), &[], origin)
    }

    fn insert(&mut self, node: Node, operands: &[ValueId]) -> ValueId {
        let id = self.nodes.add_node(node);
        for (slot, operand) in (0u32..).zip(operands) {
            self.nodes.add_edge(*operand, id, slot);
        }
        id
    }

    /// The node `id`; an internal error when there is none.
    pub fn node(&self, id: ValueId) -> Result<&Node> {
        self.nodes.node_weight(id).ok_or_else(|| missing(id))
    }

    /// The node `id`, to change. Changing the operator or the type must keep the type rule.
    pub fn node_mut(&mut self, id: ValueId) -> Result<&mut Node> {
        self.nodes.node_weight_mut(id).ok_or_else(|| missing(id))
    }

    /// The operator of `id`; `None` when there is no such node.
    pub fn op(&self, id: ValueId) -> Option<&Op> {
        self.nodes.node_weight(id).map(|n| &n.op)
    }

    /// The symbolic shape of `id`; empty when there is no such node.
    pub fn shape(&self, id: ValueId) -> &[Dim] {
        self.nodes.node_weight(id).map_or(&[], |n| &n.shape)
    }

    /// The constant tensor of `id`, when it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match self.op(id)? {
            Op::Tensor(TensorOp::Constant(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// Operands of `id`, by slot.
    pub fn operands(&self, id: ValueId) -> Vec<ValueId> {
        let edges = self.nodes.edges_directed(id, Direction::Incoming);
        let slots: BTreeMap<u32, ValueId> = edges.map(|e| (*e.weight(), e.source())).collect();
        slots.into_values().collect()
    }

    /// Operand `slot` of `id`.
    pub fn operand(&self, id: ValueId, slot: u32) -> Option<ValueId> {
        self.nodes.edges_directed(id, Direction::Incoming).find(|e| *e.weight() == slot).map(|e| e.source())
    }

    /// Users of `id`, each once, in order of their ids. Outputs of the graph are not among them.
    pub fn users(&self, id: ValueId) -> Vec<ValueId> {
        let set: BTreeSet<ValueId> = self.nodes.neighbors_directed(id, Direction::Outgoing).collect();
        set.into_iter().collect()
    }

    /// Whether `id` is an output of the graph.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|o| o.value == id)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes, by ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (ValueId, &Node)> {
        self.nodes.node_indices().filter_map(|id| Some((id, self.nodes.node_weight(id)?)))
    }

    /// Puts `operand` into slot `slot` of `user`.
    ///
    /// Errors: the operand's type differs from the present one, or depends on `user`.
    pub fn set_operand(&mut self, user: ValueId, slot: u32, operand: ValueId) -> Result<()> {
        let edge = self.nodes.edges_directed(user, Direction::Incoming).find(|e| *e.weight() == slot);
        let edge = edge.map(|e| (e.id(), e.source()));
        let Some((edge, old)) = edge else {
            return Err(Diagnostic::internal("E0299", format!("value %{} has no operand {slot}", user.index())));
        };
        self.check_replacement(old, operand)?;
        if self.depends_on(operand, user) {
            return Err(cycle(operand, user));
        }
        self.nodes.remove_edge(edge);
        self.nodes.add_edge(operand, user, slot);
        Ok(())
    }

    /// Lets every user of `old`, and every output that is `old`, use `new`.
    ///
    /// A `new` that uses `old` itself keeps doing so. Errors: types that differ, or `new` depends on another user of
    /// `old`.
    pub fn replace_all_uses(&mut self, old: ValueId, new: ValueId) -> Result<()> {
        if old == new {
            return Ok(());
        }
        self.check_replacement(old, new)?;
        let cone = self.ancestors(new);
        if let Some(user) = self.users(old).into_iter().find(|user| *user != new && cone.contains(user)) {
            return Err(cycle(new, user));
        }
        self.redirect(old, new);
        Ok(())
    }

    /// Lets every user of `old` but `new`, and every output that is `old`, use `new`.
    fn redirect(&mut self, old: ValueId, new: ValueId) {
        let edges = self.nodes.edges_directed(old, Direction::Outgoing);
        let edges: Vec<_> = edges.map(|e| (e.id(), e.target(), *e.weight())).collect();
        for (edge, user, slot) in edges {
            if user != new {
                self.nodes.remove_edge(edge);
                self.nodes.add_edge(new, user, slot);
            }
        }
        for output in &mut self.outputs {
            if output.value == old {
                output.value = new;
            }
        }
    }

    fn check_replacement(&self, old: ValueId, new: ValueId) -> Result<()> {
        let (a, b) = (self.node(old)?, self.node(new)?);
        if a.dtype != b.dtype || a.shape != b.shape {
            let show = |n: &Node| format!("{}{}", n.dtype.name(), self.dims.show_shape(&n.shape));
            return Err(Diagnostic::internal(
                "E0299",
                format!("%{} replaces %{} of another type", new.index(), old.index()),
            )
            .note(format!("expected {}, found {}", show(a), show(b))));
        }
        Ok(())
    }

    /// `id` and all it depends on.
    pub fn ancestors(&self, id: ValueId) -> BTreeSet<ValueId> {
        let mut seen = BTreeSet::from([id]);
        let mut stack = vec![id];
        while let Some(at) = stack.pop() {
            for operand in self.nodes.neighbors_directed(at, Direction::Incoming) {
                if seen.insert(operand) {
                    stack.push(operand);
                }
            }
        }
        seen
    }

    /// Whether `id` depends on `other` (or is it).
    pub fn depends_on(&self, id: ValueId, other: ValueId) -> bool {
        self.ancestors(id).contains(&other)
    }

    /// All nodes, operands before users; among those that are ready, the lowest id first.
    pub fn topological(&self) -> Vec<ValueId> {
        let mut waiting: BTreeMap<ValueId, usize> = BTreeMap::new();
        let mut ready = BinaryHeap::new();
        for id in self.nodes.node_indices() {
            match self.nodes.edges_directed(id, Direction::Incoming).count() {
                0 => ready.push(Reverse(id)),
                n => {
                    waiting.insert(id, n);
                }
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for edge in self.nodes.edges_directed(id, Direction::Outgoing) {
                if let Some(n) = waiting.get_mut(&edge.target()) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(Reverse(edge.target()));
                    }
                }
            }
        }
        order
    }

    /// Lets nodes with the same operator, attributes and operands be one, the first of them. Returns how many went.
    pub fn merge_equal(&mut self) -> Result<usize> {
        let mut first: BTreeMap<(String, Vec<ValueId>), ValueId> = BTreeMap::new();
        let before = self.len();
        for id in self.topological() {
            let node = self.node(id)?;
            let large = matches!(&node.op, Op::Tensor(TensorOp::Constant(t)) if t.len() > MERGED_ELEMENTS);
            if large || matches!(node.op, Op::Input { .. }) {
                continue;
            }
            // The debug form of an operator names all its attributes, and floats to the bit but for NaN.
            let key = (format!("{:?}", node.op), self.operands(id));
            match first.get(&key) {
                Some(same) => {
                    // The same operator on the same operands: no cycle and no other type.
                    let same = *same;
                    let origin = node.origin.clone();
                    let kept = self.node_mut(same)?;
                    if kept.origin.value.is_empty() {
                        kept.origin = origin;
                    }
                    self.redirect(id, same);
                    self.nodes.remove_node(id);
                }
                None => {
                    first.insert(key, id);
                }
            }
        }
        Ok(before - self.len())
    }

    /// Removes every node that no output needs, inputs excepted. Returns how many.
    pub fn remove_dead(&mut self) -> usize {
        let mut live: BTreeSet<ValueId> = self.inputs.iter().copied().collect();
        let mut stack: Vec<ValueId> = self.outputs.iter().map(|o| o.value).collect();
        while let Some(id) = stack.pop() {
            if live.insert(id) {
                stack.extend(self.nodes.neighbors_directed(id, Direction::Incoming));
            }
        }
        let before = self.len();
        self.nodes.retain_nodes(|_, id| live.contains(&id));
        before - self.len()
    }
}

fn missing(id: ValueId) -> Diagnostic {
    Diagnostic::internal("E0299", format!("the graph has no value %{}", id.index()))
}

fn cycle(new: ValueId, user: ValueId) -> Diagnostic {
    Diagnostic::internal("E0299", format!("%{} depends on its new user %{}", new.index(), user.index()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Graph, ValueId, ValueId, ValueId) {
        let mut g = Graph::new();
        let seq = Dim::from(g.dims.symbol("seq").unwrap());
        let ty = Type::new(DType::F32, vec![seq, Dim::constant(4)]);
        let x = g.add_input("x", InputRole::Other, ty, Origin::default());
        let w = g.add_weight("w", false, vec![Dim::constant(4), Dim::constant(4)], Origin::default());
        let y = g.add(Op::MATMUL, &[x, w], Origin { node: "/layers.1/mm".into(), ..Origin::default() }).unwrap();
        g.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: y });
        (g, x, w, y)
    }

    #[test]
    fn wires_types_and_owners() {
        let (g, x, w, y) = sample();
        assert_eq!(g.operands(y), [x, w]);
        assert_eq!(g.users(x), [y]);
        assert_eq!(g.node(y).unwrap().owner, Owner::Secret);
        assert_eq!(g.dims.show_shape(g.shape(y)), "[seq, 4]");
        assert_eq!(g.topological(), [x, w, y]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let (mut g, x, _, y) = sample();
        assert!(g.add(Op::MATMUL, &[x, x], Origin::default()).is_err());
        assert!(g.add(Op::Softmax { axis: 2 }, &[x], Origin::default()).is_err());
        let z = g.add(Op::Relu, &[y], Origin::default()).unwrap();
        assert!(g.set_operand(y, 0, z).is_err(), "a cycle");
        assert!(g.replace_all_uses(x, z).is_err(), "a cycle");
        assert!(g.set_operand(y, 7, x).is_err());
    }

    #[test]
    fn replaces_and_removes() {
        let (mut g, x, w, y) = sample();
        let z = g.add(Op::Relu, &[y], Origin::default()).unwrap();
        g.replace_all_uses(y, z).unwrap();
        assert_eq!(g.outputs[0].value, z);
        assert_eq!(g.operands(z), [y], "the replacement keeps its own operand");
        g.replace_all_uses(z, x).unwrap();
        assert_eq!(g.remove_dead(), 3);
        assert_eq!(g.len(), 1);
        assert!(g.op(w).is_none());
    }
}
