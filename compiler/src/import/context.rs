//! The state of an import: the graph so far, and what each ONNX value is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use ombra_ir::plain::{self, DType, Tensor, Type};
use ombra_ir::{Bindings, Diagnostic, Dim, Result};
use onnx_protobuf::{NodeProto, TensorProto};

use super::{layers, load_weight, sizes};
use crate::graph::{Graph, Op, Origin, Owner, TensorOp, ValueId};
use crate::onnx::{Model, element_type, is_floating, shape};

/// Most elements of a tensor that is folded at compile time.
pub const FOLD_LIMIT: usize = 1 << 24;
/// Elements from which on an integer tensor may be a weight. Shapes, axes and other structure have fewer.
const INTEGER_WEIGHT: usize = 64;

/// Names of integer tensors of the file that a value was made from, as far as they may be weights.
pub type Sources = BTreeSet<Rc<str>>;

/// A tensor of the file that the importer put in the clear, because an operator that exists on public tensors alone
/// uses it. Whether it may be public is known after labels only: whoever labels has to check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// Name of the initializer, or of the output of the `Constant` node.
    pub tensor: String,
    /// The node that uses it, by name or by output.
    pub node: String,
    /// The operator that needs it in the clear.
    pub op: &'static str,
    /// Its elements are integers or booleans from which floating-point numbers are made.
    pub integer: bool,
}

/// What an ONNX value is at compile time.
#[derive(Clone, Debug)]
pub enum Value {
    /// A value of the graph.
    Node(ValueId),
    /// A known tensor, not yet in the graph.
    Const {
        /// Its elements.
        tensor: Rc<Tensor>,
        /// The integer tensors it was made from.
        from: Sources,
    },
    /// Integers that are symbolic sizes, not yet in the graph.
    Sizes {
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Its elements.
        dims: Vec<Dim>,
    },
}

impl Value {
    /// A known tensor.
    pub fn constant(tensor: Tensor) -> Self {
        Value::Const { tensor: Rc::new(tensor), from: Sources::new() }
    }

    /// The tensor, when it is known.
    pub fn as_const(&self) -> Option<&Tensor> {
        match self {
            Value::Const { tensor, .. } => Some(tensor),
            _ => None,
        }
    }

    /// The only element as a float, when it is known.
    pub fn scalar(&self) -> Option<f32> {
        self.as_const()?.single_f32()
    }
}

/// The state of an import.
pub struct Context<'a> {
    /// The file.
    pub model: &'a Model,
    /// The graph so far.
    pub graph: Graph,
    /// What `batch`, `seq`, `past` and other names of sizes stand for.
    pub role_sizes: HashMap<String, Dim>,
    /// What was put in the clear so far.
    pub in_the_clear: BTreeSet<Published>,
    values: HashMap<String, Value>,
    published: HashMap<ValueId, Value>,
    sources: HashMap<ValueId, Sources>,
    origin: Origin,
    made: Vec<ValueId>,
    /// Sizes that are names in the file and numbers by the operators that use them.
    pub determined: BTreeMap<String, u64>,
}

impl<'a> Context<'a> {
    /// Nothing is imported yet.
    pub fn new(model: &'a Model) -> Self {
        Context {
            model,
            graph: Graph::new(),
            role_sizes: HashMap::new(),
            in_the_clear: BTreeSet::new(),
            values: HashMap::new(),
            published: HashMap::new(),
            sources: HashMap::new(),
            origin: Origin::default(),
            made: Vec::new(),
            determined: BTreeMap::new(),
        }
    }

    /// Values made from now on come from `node`.
    pub fn enter(&mut self, node: &NodeProto) {
        let value = node.output.first().cloned().unwrap_or_default();
        let scopes =
            node.metadata_props.iter().filter(|p| p.key == "pkg.torch.onnx.name_scopes").map(|p| p.value.as_str());
        let names = [node.name.as_str(), value.as_str()].into_iter().chain(scopes);
        let names = names.chain(node.input.iter().map(String::as_str));
        let layer = names.filter_map(layers::layer_of_name).next();
        self.origin = Origin { value, node: node.name.clone(), layer };
        self.made.clear();
    }

    /// The node that was entered has the outputs `names`, which are `values`: those that were made for it have their
    /// names, and what was made on the way to them has none.
    pub fn leave(&mut self, names: &[String], values: &[Value]) {
        let mut named: HashMap<ValueId, &String> = HashMap::new();
        for (name, value) in names.iter().zip(values).filter(|(name, _)| !name.is_empty()) {
            if let Value::Node(id) = value {
                named.entry(*id).or_insert(name);
            }
        }
        for id in std::mem::take(&mut self.made) {
            if let Ok(node) = self.graph.node_mut(id) {
                node.origin.value = named.get(&id).map(|name| (*name).clone()).unwrap_or_default();
            }
        }
    }

    /// Notes that the sizes `a` and `b` are one, when one is a number and the other a name of the file.
    pub fn must_equal(&mut self, a: &Dim, b: &Dim) {
        for (name, number) in [(a, b), (b, a)] {
            let info = name.as_symbol().and_then(|sym| self.graph.dims.info(sym));
            if let (Some(info), Some(Ok(number))) = (info, number.as_constant().map(u64::try_from)) {
                self.determined.insert(info.name.clone(), number);
            }
        }
    }

    /// The origin of values made now.
    pub fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// Gives the ONNX value `name` a meaning.
    pub fn define(&mut self, name: &str, value: Value) {
        if !name.is_empty() {
            self.values.insert(name.into(), value);
        }
    }

    /// The meaning of the ONNX value `name`: defined before, or an initializer; `None` when it could not be imported.
    pub fn lookup(&mut self, name: &str) -> Result<Option<Value>> {
        if let Some(value) = self.values.get(name) {
            return Ok(Some(value.clone()));
        }
        let Some(tensor) = self.model.initializer(name) else { return Ok(None) };
        let value = self.tensor_value(name, tensor)?;
        self.define(name, value.clone());
        Ok(Some(value))
    }

    /// The meaning of a tensor of the file: a weight when it has two floating-point elements or more, else a constant.
    ///
    /// A constant of one floating-point element is noted as put in the clear. Large integer tensors are constants that
    /// know where they come from, so that it is noted when floating-point numbers are made from them; those that are one
    /// arithmetic progression, such as positions, hold nothing but two numbers and are structure.
    pub fn tensor_value(&mut self, name: &str, tensor: &TensorProto) -> Result<Value> {
        let shape = shape(tensor)?;
        let count = plain::tensor::volume(&shape)?;
        let kind = element_type(tensor)?;
        if is_floating(kind) {
            if count < 2 {
                self.note(name, "a constant of one element", false);
                return Ok(Value::constant(Tensor::f32(&shape, self.model.floats(tensor)?)?));
            }
            let dims = shape.iter().map(|d| Dim::from_usize(*d)).collect::<Result<_>>()?;
            let layer = layers::layer_of_name(name);
            let origin = Origin { value: name.into(), node: String::new(), layer };
            return Ok(Value::Node(self.graph.add_weight(name, false, dims, origin)));
        }
        let ints = self.model.ints(tensor)?;
        let weight = !name.is_empty() && count >= INTEGER_WEIGHT && !is_progression(&ints);
        let constant = match super::dtype_of(tensor.data_type) {
            Some(DType::Bool) => Tensor::bool(&shape, ints.iter().map(|v| *v != 0).collect())?,
            _ => Tensor::i64(&shape, ints)?,
        };
        let from = weight.then(|| name.into()).into_iter().collect();
        Ok(Value::Const { tensor: Rc::new(constant), from })
    }

    /// Remembers that `op` of the present node needs `tensor` in the clear.
    fn note(&mut self, tensor: &str, op: &'static str, integer: bool) {
        if !tensor.is_empty() {
            let Origin { node, value, .. } = &self.origin;
            let node = if node.is_empty() { value } else { node }.clone();
            self.in_the_clear.insert(Published { tensor: tensor.into(), node, op, integer });
        }
    }

    /// The integer tensors that `value` was made from.
    fn sources(&self, value: &Value) -> Sources {
        match value {
            Value::Const { from, .. } => from.clone(),
            Value::Node(id) => self.sources.get(id).cloned().unwrap_or_default(),
            Value::Sizes { .. } => Sources::new(),
        }
    }

    /// Element type and shape of `value`.
    pub fn ty(&self, value: &Value) -> Result<Type> {
        let dims = |shape: &[usize]| shape.iter().map(|d| Dim::from_usize(*d)).collect::<Result<_>>();
        Ok(match value {
            Value::Node(id) => self.graph.node(*id)?.ty(),
            Value::Const { tensor, .. } => Type::new(tensor.dtype(), dims(tensor.shape())?),
            Value::Sizes { shape, .. } => Type::new(DType::I64, dims(shape)?),
        })
    }

    /// Shape of `value`.
    pub fn shape(&self, value: &Value) -> Result<Vec<Dim>> {
        Ok(self.ty(value)?.shape)
    }

    /// Who knows `value`.
    pub fn owner(&self, value: &Value) -> Owner {
        match value {
            Value::Node(id) => self.graph.node(*id).map_or(Owner::Secret, |n| n.owner),
            Value::Const { .. } | Value::Sizes { .. } => Owner::Public,
        }
    }

    /// `value` as a value of the graph.
    pub fn materialise(&mut self, value: &Value) -> Result<ValueId> {
        let origin = self.origin();
        match value {
            Value::Node(id) => Ok(*id),
            Value::Const { tensor, from } => {
                let id = self.graph.add_const((**tensor).clone(), origin)?;
                if !from.is_empty() {
                    self.sources.insert(id, from.clone());
                }
                Ok(id)
            }
            Value::Sizes { shape, dims } => {
                let op = TensorOp::Sizes { shape: shape.clone(), values: dims.clone() };
                self.graph.add(Op::Tensor(op), &[], origin)
            }
        }
    }

    /// Applies `op`: folded when the operands are known, an operator on public tensors when they are public, otherwise
    /// a node of the graph.
    ///
    /// Errors: operands that do not fit; an operator that exists on public tensors only, with one of the server's that
    /// cannot be made public.
    pub fn emit(&mut self, op: Op, operands: &[&Value]) -> Result<Value> {
        let only_public = !op.is_private();
        let all_public = operands.iter().all(|v| self.owner(v) == Owner::Public);
        match op {
            Op::Tensor(op) if only_public || all_public => self.emit_public(op, operands),
            op => self.add(op, operands),
        }
    }

    fn add(&mut self, op: Op, operands: &[&Value]) -> Result<Value> {
        let ids = operands.iter().map(|v| self.materialise(v)).collect::<Result<Vec<_>>>()?;
        let origin = self.origin();
        let id = self.graph.add(op, &ids, origin)?;
        self.made.push(id);
        if self.graph.node(id)?.dtype != DType::F32 {
            let from: Sources = operands.iter().flat_map(|v| self.sources(v)).collect();
            if !from.is_empty() {
                self.sources.insert(id, from);
            }
        }
        Ok(Value::Node(id))
    }

    /// Applies `op` to public operands; see [`Context::emit`]. With a secret operand it becomes a node like any other:
    /// lowering says whether it can be done.
    ///
    /// Operands that depend on weights alone, such as the table of rotary frequencies, are put in the clear with their
    /// data, and noted: whether their labels allow that is checked when there are labels. Not where two numbers decide
    /// together, such as a comparison of an input with a weight: what comes of that depends on both parties.
    pub fn emit_public(&mut self, op: plain::Op, operands: &[&Value]) -> Result<Value> {
        let owner = operands.iter().fold(Owner::Public, |all, v| all.join(self.owner(v)));
        let together = matches!(op, TensorOp::Binary(_) | TensorOp::Where);
        if owner == Owner::Secret && (together || operands.iter().any(|v| self.owner(v) == Owner::Secret)) {
            return self.add(Op::Tensor(op), operands);
        }
        let mut public = Vec::with_capacity(operands.len());
        for operand in operands {
            public.push(match (operand, self.owner(operand)) {
                (Value::Node(id), Owner::Server) => self.publish(*id, op.name())?,
                _ => (*operand).clone(),
            });
        }
        self.apply_public(op, &public)
    }

    /// Applies `op` to operands that nothing private is in.
    fn apply_public(&mut self, op: plain::Op, public: &[Value]) -> Result<Value> {
        let name = op.name();
        // What a choice is made by is structure: masks are.
        let skipped = usize::from(matches!(op, TensorOp::Where));
        let from: Sources = public.iter().flat_map(|v| self.sources(v)).collect();
        let result = self.folded(op, public, &from)?;
        if !from.is_empty() && self.ty(&result)?.dtype == DType::F32 {
            for operand in public.iter().skip(skipped) {
                for tensor in self.sources(operand) {
                    self.note(&tensor, name, true);
                }
            }
        }
        Ok(result)
    }

    /// `op` of `public`: evaluated where operands are known, else a node. Integers made from those in `from` stay known
    /// to be.
    fn folded(&mut self, op: plain::Op, public: &[Value], from: &Sources) -> Result<Value> {
        if let Some(tensors) = public.iter().map(Value::as_const).collect::<Option<Vec<_>>>() {
            match plain::eval(&op, &tensors, &Bindings::new(), FOLD_LIMIT) {
                Ok(tensor) => {
                    let from = if tensor.dtype() == DType::F32 { Sources::new() } else { from.clone() };
                    return Ok(Value::Const { tensor: Rc::new(tensor), from });
                }
                // An attribute is symbolic.
                Err(e) if e.code == "E0204" => {}
                Err(e) => return Err(e),
            }
        }
        // Sizes have no memory of where they come from.
        if from.is_empty()
            && let Some(value) = sizes::eval(&op, public, &mut self.graph)
        {
            return Ok(value);
        }
        self.add(Op::Tensor(op), &public.iter().collect::<Vec<_>>())
    }

    /// `value` for an operator whose operand `what` says nothing private: a weight is put in the clear, and noted.
    ///
    /// Errors: the value depends on inputs that are not public.
    pub fn public_table(&mut self, value: &Value, what: &'static str) -> Result<Value> {
        match (value, self.owner(value)) {
            (Value::Node(id), Owner::Server) => self.publish(*id, what),
            (_, Owner::Secret) => Err(Diagnostic::unsupported("E0253", format!("a table of {what} is secret"))
                .note("expected a table that depends on weights, positions and lengths alone")),
            _ => Ok(value.clone()),
        }
    }

    /// A value that depends on weights and public values alone, as a public one, for an operator `op`.
    fn publish(&mut self, id: ValueId, op: &'static str) -> Result<Value> {
        // Nodes are added after their operands, so ascending ids are an order of evaluation.
        for at in self.graph.ancestors(id) {
            if let Some(Op::Weight { name, .. }) = self.graph.op(at) {
                let name = name.clone();
                self.note(&name, op, false);
            }
            if !self.published.contains_key(&at) {
                let value = self.publish_one(at)?;
                self.published.insert(at, value);
            }
        }
        let missing = || Diagnostic::internal("E0299", "a published value is missing");
        self.published.get(&id).cloned().ok_or_else(missing)
    }

    /// [`Context::publish`] for a node whose operands are published.
    fn publish_one(&mut self, id: ValueId) -> Result<Value> {
        let node = self.graph.node(id)?.clone();
        match node.op {
            Op::Weight { name, transposed } => {
                let tensor = load_weight(self.model, &name)?;
                if tensor.len() > FOLD_LIMIT {
                    return Err(Diagnostic::unsupported("E0253", format!("weight `{name}` is used as structure"))
                        .note(format!("expected at most {FOLD_LIMIT} elements, found {}", tensor.len())));
                }
                let perm = if transposed { vec![1, 0] } else { (0..tensor.rank()).collect() };
                self.apply_public(TensorOp::Transpose { perm }, &[Value::constant(tensor)])
            }
            Op::Tensor(TensorOp::Constant(tensor)) => {
                let from = self.sources.get(&id).cloned().unwrap_or_default();
                Ok(Value::Const { tensor: Rc::new(tensor), from })
            }
            _ if node.owner == Owner::Public => Ok(Value::Node(id)),
            op => {
                let (op, extra) = match op {
                    Op::Pow(e) => (TensorOp::Binary(plain::Binary::Pow), Some(Tensor::scalar_f32(e))),
                    Op::Tensor(op) => (op, None),
                    other => {
                        let message = format!("a table made with {} is used as structure", other.name());
                        return Err(Diagnostic::unsupported("E0253", message));
                    }
                };
                let published = self.graph.operands(id).into_iter().filter_map(|o| self.published.get(&o).cloned());
                let operands: Vec<Value> = published.chain(extra.map(Value::constant)).collect();
                self.apply_public(op, &operands)
            }
        }
    }

    /// The elements of an integer value, as sizes; an error when they depend on inputs.
    pub fn sizes(&self, value: &Value, what: &str) -> Result<Vec<Dim>> {
        match value {
            Value::Const { tensor, .. } => Ok(tensor.as_i64()?.iter().map(|v| Dim::constant(*v)).collect()),
            Value::Sizes { dims, .. } => Ok(dims.clone()),
            Value::Node(id) => {
                let node = self.graph.node(*id)?;
                let (mut inputs, mut single) = (Vec::new(), Vec::new());
                for a in self.graph.ancestors(*id) {
                    if let Some(Op::Input { name, .. }) = self.graph.op(a) {
                        inputs.push(format!("`{name}`"));
                        if self.graph.shape(a).iter().all(|d| d.is(1)) {
                            single.push(format!("--dim {name}=N"));
                        }
                    }
                }
                let remedy = match single.as_slice() {
                    [] => "export with that value as a constant, or with a size of an input in its place".into(),
                    some => format!("say what it is with {}, or export with that value as a constant", some.join(" ")),
                };
                Err(Diagnostic::unsupported("E0254", format!("{what} depends on elements of {}", inputs.join(", ")))
                    .note(format!("expected sizes of inputs and constants, found the result of {}", node.op.name()))
                    .note(remedy))
            }
        }
    }

    /// The elements of an integer value that must be known.
    pub fn ints(&self, value: &Value, what: &str) -> Result<Vec<i64>> {
        let constant = |d: Dim| {
            d.as_constant().ok_or_else(|| {
                let found = self.graph.dims.show(&d);
                Diagnostic::unsupported("E0254", format!("{what} depends on a symbolic size, `{found}`"))
                    .note("bind the size with --dim")
            })
        };
        self.sizes(value, what)?.into_iter().map(constant).collect()
    }
}

/// Whether neighbours differ by one and the same number.
fn is_progression(values: &[i64]) -> bool {
    let mut steps = values.windows(2).map(|w| match w {
        [a, b] => b.checked_sub(*a),
        _ => None,
    });
    let first = steps.next().flatten();
    first.is_some() && steps.all(|s| s == first)
}
