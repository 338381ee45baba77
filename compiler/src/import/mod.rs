//! From an ONNX file to the typed graph.
//!
//! Shapes are resolved with symbolic sizes, arithmetic on sizes is done on polynomials, constants are folded, and what
//! depends on lengths and masks alone stays as operators on public tensors. Every value that reaches the graph has a
//! known type. All nodes that cannot be imported are reported together, and only those that an output needs.

pub mod context;
pub mod layers;
pub mod node;
pub mod ops;
pub mod positions;
pub mod recognise;
pub mod roles;
pub mod sizes;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use ombra_ir::plain::{DType, Tensor};
use ombra_ir::{Diagnostic, Dim, Result};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use protobuf::Enum;

use crate::graph::{Graph, Op, Output, Owner};
use crate::onnx::{Model, attribute, each_tensor, element_type, is_default_domain, is_floating, shape, subgraphs};
pub use context::{Context, Published, Value};

/// What the user says about sizes and inputs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Symbolic sizes with a value, by the name in the file or by `batch`, `seq`, `past`; and inputs of one integer or
    /// boolean that decide sizes, by their names.
    pub dims: BTreeMap<String, u64>,
    /// Largest values of symbolic sizes, by the same names.
    pub max: BTreeMap<String, u64>,
    /// Inputs that are known at compile time, by name.
    pub constants: BTreeMap<String, Tensor>,
    /// Inputs that are public, by name: everybody learns their contents.
    pub public_inputs: BTreeSet<String>,
    /// Tokens that the model has positions for, where something besides its file says so.
    pub positions: Option<u64>,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The graph, without dead nodes.
    pub graph: Graph,
    /// What each textual size of the file's inputs became.
    pub dim_names: BTreeMap<String, Dim>,
    /// Tensors of the file that the graph holds in the clear, with the operators that need them so.
    pub published: BTreeSet<Published>,
}

/// Imports `model`.
///
/// Errors: one diagnostic for each node or input that cannot be imported.
pub fn import(model: &Model, options: &Options) -> std::result::Result<Imported, Vec<Diagnostic>> {
    let mut options = options.clone();
    loop {
        let mut cx = Context::new(model);
        let result = import_with(&mut cx, model, &options);
        // A size that is a name in the file may be a number by an operator that uses it: then it is bound from the start.
        let known = options.dims.len();
        for (name, size) in std::mem::take(&mut cx.determined) {
            options.dims.entry(name).or_insert(size);
        }
        if options.dims.len() == known {
            let dim_names = result?;
            let (mut graph, published) = (cx.graph, cx.in_the_clear);
            graph.remove_dead();
            graph.merge_equal().map_err(|e| vec![e])?;
            positions::bound_sizes(&mut graph, &options, &dim_names).map_err(|e| vec![e])?;
            layers::spread(&mut graph);
            return Ok(Imported { graph, dim_names, published });
        }
    }
}

/// Imports `model` into `cx`, and returns what its textual sizes became.
fn import_with(
    cx: &mut Context,
    model: &Model,
    options: &Options,
) -> std::result::Result<BTreeMap<String, Dim>, Vec<Diagnostic>> {
    let file = model.graph();
    check_parts(file).map_err(|e| vec![e])?;
    let dim_names = roles::declare_inputs(cx, file, options).map_err(|e| vec![e])?;
    let needed = needed_nodes(file);
    let mut errors = Vec::new();
    for (i, node) in file.node.iter().enumerate() {
        if needed.contains(&i) {
            import_node(cx, node, i, &mut errors);
        }
    }
    for output in &file.output {
        match cx.lookup(&output.name) {
            Ok(Some(value)) => match cx.materialise(&value) {
                Ok(id) => {
                    let role = roles::output_role(&cx.graph, &output.name, id);
                    cx.graph.outputs.push(Output { name: output.name.clone(), role, value: id });
                }
                Err(e) => errors.push(e.at(format!("output \"{}\"", output.name))),
            },
            // What the output depends on was reported already.
            Ok(None) => {}
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() { Ok(dim_names) } else { Err(errors) }
}

/// The tensor called `name`, wherever it stands in the file: an initializer or the value of a Constant node.
///
/// # Errors
/// There is none, or its elements cannot be read.
pub fn load_weight(model: &Model, name: &str) -> Result<Tensor> {
    let tensor = find_tensor(model, name)?;
    Tensor::f32(&shape(&tensor)?, model.floats(&tensor)?)
}

/// The entry of the tensor called `name`, as [`load_weight`] finds it.
///
/// # Errors
/// There is none.
pub fn find_tensor<'a>(model: &'a Model, name: &str) -> Result<Cow<'a, TensorProto>> {
    if let Some(tensor) = model.initializer(name) {
        return Ok(Cow::Borrowed(tensor));
    }
    let constant = |n: &&NodeProto| n.op_type == "Constant" && n.output.first().is_some_and(|o| o == name);
    fn find<'a>(nodes: &'a [NodeProto], is: &dyn Fn(&&NodeProto) -> bool) -> Option<&'a NodeProto> {
        nodes.iter().find(is).or_else(|| nodes.iter().flat_map(subgraphs).find_map(|g| find(&g.node, is)))
    }
    if let Some(tensor) = find(&model.graph().node, &constant).and_then(constant_tensor) {
        return Ok(tensor);
    }
    let mut found = None;
    each_tensor(&model.proto, &mut |tensor| {
        if tensor.name == name && found.is_none() {
            found = Some(tensor);
        }
        Ok(())
    })?;
    found.map(Cow::Borrowed).ok_or_else(|| Diagnostic::internal("E0299", format!("no tensor is called `{name}`")))
}

/// The tensor that a `Constant` node gives, whatever attribute holds it; `None` for other nodes.
pub fn constant_tensor(node: &NodeProto) -> Option<Cow<'_, TensorProto>> {
    if !is_default_domain(&node.domain) || node.op_type != "Constant" {
        return None;
    }
    let made = |kind: DataType, count: Option<usize>| TensorProto {
        name: node.output.first().cloned().unwrap_or_default(),
        data_type: kind.value(),
        dims: count.and_then(|n| i64::try_from(n).ok()).into_iter().collect(),
        ..TensorProto::default()
    };
    let of = |name: &str| attribute(node, name);
    if let Some(tensor) = of("value").and_then(|a| a.t.as_ref()) {
        Some(Cow::Borrowed(tensor))
    } else if let Some(a) = of("value_ints") {
        let int64_data = a.ints.clone();
        Some(Cow::Owned(TensorProto { int64_data, ..made(DataType::INT64, Some(a.ints.len())) }))
    } else if let Some(a) = of("value_floats") {
        let float_data = a.floats.clone();
        Some(Cow::Owned(TensorProto { float_data, ..made(DataType::FLOAT, Some(a.floats.len())) }))
    } else if let Some(a) = of("value_int") {
        Some(Cow::Owned(TensorProto { int64_data: vec![a.i], ..made(DataType::INT64, None) }))
    } else {
        let a = of("value_float")?;
        Some(Cow::Owned(TensorProto { float_data: vec![a.f], ..made(DataType::FLOAT, None) }))
    }
}

/// Refuses an encoder and a decoder in one file, and the decoder's cache of what the encoder made.
fn check_parts(file: &GraphProto) -> Result<()> {
    let given = |test: &dyn Fn(&str) -> bool| file.input.iter().map(|i| i.name.as_str()).find(|name| test(name));
    let decoder = given(&|name| name.contains("decoder_input_ids"));
    let encoder = given(&|name| name == "input_ids");
    if let (Some(decoder), Some(encoder)) = (decoder, encoder) {
        let message =
            format!("the file holds an encoder, with input `{encoder}`, and a decoder, with input `{decoder}`");
        return Err(Diagnostic::unsupported("E0258", message)
            .note("export them apart, as optimum does, and compile the encoder's file")
            .note(
                "a decoder that takes the encoder's hidden states takes them from the client, who has to learn them",
            ));
    }
    if let Some(cross) = given(&|name| name.starts_with("past") && name.contains("encoder.")) {
        let message = format!("the cache `{cross}` holds keys or values of an encoder");
        return Err(Diagnostic::unsupported("E0258", message)
            .note("expected a cache of the decoder's own tokens alone")
            .note("compile the decoder that was exported without a cache"));
    }
    Ok(())
}

/// Imports one node; an error leaves its outputs without a value, and nodes that use those are passed over.
fn import_node(cx: &mut Context, proto: &NodeProto, index: usize, errors: &mut Vec<Diagnostic>) {
    let label =
        if proto.name.is_empty() { proto.output.first().cloned().unwrap_or_default() } else { proto.name.clone() };
    let place = format!("node {index} \"{label}\" ({})", proto.op_type);
    let inputs = proto.input.iter().map(|name| if name.is_empty() { Ok(None) } else { cx.lookup(name) });
    let inputs = match inputs.collect::<Result<Vec<_>>>() {
        Ok(inputs) => inputs,
        Err(e) => return errors.push(e.at(place)),
    };
    let broken = proto.input.iter().zip(&inputs).any(|(name, value)| !name.is_empty() && value.is_none());
    cx.enter(proto);
    if broken {
        // Its error stands further up. An operator that is not supported is still worth a report of its own.
        let node = node::Node { proto, inputs, opset: cx.model.opset() };
        if let Err(e) = ops::import(cx, &node)
            && e.code == "E0250"
        {
            errors.push(e.at(place));
        }
        return;
    }
    if proto.op_type == "If" {
        if let Err(e) = import_if(cx, proto, inputs.first().and_then(Option::as_ref), index, errors) {
            errors.push(e.at(place));
        }
        return;
    }
    let node = node::Node { proto, inputs, opset: cx.model.opset() };
    match ops::import(cx, &node) {
        Ok(values) => {
            cx.leave(&proto.output, &values);
            for (name, value) in proto.output.iter().zip(values) {
                cx.define(name, value);
            }
        }
        Err(e) => errors.push(e.at(place)),
    }
}

/// Imports the branch of an `If` whose condition is known, or both where everybody knows the condition when a run begins.
fn import_if(
    cx: &mut Context,
    proto: &NodeProto,
    condition: Option<&Value>,
    index: usize,
    errors: &mut Vec<Diagnostic>,
) -> Result<()> {
    let condition = condition.ok_or_else(|| Diagnostic::input("E0251", "an If without a condition"))?;
    if let Some(tensor) = condition.as_const() {
        let known = tensor.as_bool()?.first().copied();
        let known = known.ok_or_else(|| Diagnostic::input("E0251", "the condition of an If has no elements"))?;
        let graph = branch(proto, if known { "then_branch" } else { "else_branch" })?;
        for (name, value) in proto.output.iter().zip(import_branch(cx, graph, index, errors)) {
            if let Some(value) = value {
                cx.define(name, value);
            }
        }
        return Ok(());
    }
    if cx.owner(condition) != Owner::Public {
        let mut error =
            Diagnostic::unsupported("E0252", "the condition of an If depends on values that are not public");
        if let Value::Node(id) = condition {
            let inputs = cx.graph.ancestors(*id).into_iter().filter_map(|a| match cx.graph.op(a) {
                Some(Op::Input { name, .. }) => Some(name.clone()),
                _ => None,
            });
            for name in inputs.collect::<Vec<_>>() {
                error = error
                    .note(format!("if it depends on the one number in input `{name}` alone, set that: --dim {name}=N"));
            }
        }
        return Err(error.note("expected a condition that depends on sizes, masks and positions alone"));
    }
    let [yes, no] = [branch(proto, "then_branch")?, branch(proto, "else_branch")?];
    let before = errors.len();
    let (yes, no) = (import_branch(cx, yes, index, errors), import_branch(cx, no, index, errors));
    if errors.len() > before {
        return Ok(());
    }
    let condition = ops::reshape_to(cx, condition, Vec::new())?;
    for ((name, yes), no) in proto.output.iter().zip(yes).zip(no) {
        let (Some(yes), Some(no)) = (yes, no) else { continue };
        let types = [cx.ty(&yes)?, cx.ty(&no)?];
        if types[0] != types[1] {
            let [yes, no] = types.map(|ty| format!("{} {}", ty.dtype.name(), cx.graph.dims.show_shape(&ty.shape)));
            return Err(Diagnostic::unsupported(
                "E0252",
                format!("the branches of an If give `{name}` different shapes"),
            )
            .note(format!("found {yes} and {no}, and a condition that is known when a run begins"))
            .note("give the sizes that the condition depends on with --dim, or export without control flow"));
        }
        let chosen = cx.emit(Op::WHERE, &[&condition, &yes, &no])?;
        cx.define(name, chosen);
    }
    Ok(())
}

/// A branch of an `If`.
fn branch<'a>(proto: &'a NodeProto, name: &str) -> Result<&'a GraphProto> {
    let graph = proto.attribute.iter().find(|a| a.name == name).and_then(|a| a.g.as_ref());
    graph.ok_or_else(|| Diagnostic::input("E0251", format!("expected a graph in attribute `{name}`")))
}

/// Imports a branch; its outputs, `None` for those that could not be imported.
fn import_branch(
    cx: &mut Context,
    graph: &GraphProto,
    index: usize,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Option<Value>> {
    for tensor in &graph.initializer {
        match cx.tensor_value(&tensor.name, tensor) {
            Ok(value) => cx.define(&tensor.name, value),
            Err(e) => errors.push(e.at(format!("initializer \"{}\"", tensor.name))),
        }
    }
    for node in &graph.node {
        import_node(cx, node, index, errors);
    }
    let value = |output: &ValueInfoProto| match cx.lookup(&output.name) {
        Ok(value) => value,
        Err(e) => {
            errors.push(e);
            None
        }
    };
    graph.output.iter().map(value).collect()
}

/// Indices of the nodes that an output needs.
fn needed_nodes(graph: &GraphProto) -> HashSet<usize> {
    fn uses(node: &NodeProto, out: &mut Vec<String>) {
        out.extend(node.input.iter().cloned());
        for inner in subgraphs(node) {
            out.extend(inner.output.iter().map(|o| o.name.clone()));
            inner.node.iter().for_each(|n| uses(n, out));
        }
    }
    let mut wanted: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut needed = HashSet::new();
    for (i, node) in graph.node.iter().enumerate().rev() {
        if node.output.iter().any(|o| !o.is_empty() && wanted.contains(o)) {
            needed.insert(i);
            let mut names = Vec::new();
            uses(node, &mut names);
            wanted.extend(names);
        }
    }
    needed
}

/// The type that elements of an ONNX element type are converted to; `None` for strings, complex numbers and the like.
pub fn dtype_of(elem_type: i32) -> Option<DType> {
    let probe = onnx_protobuf::TensorProto { data_type: elem_type, ..Default::default() };
    let kind = element_type(&probe).ok()?;
    use onnx_protobuf::tensor_proto::DataType as D;
    match kind {
        D::BOOL => Some(DType::Bool),
        D::INT8 | D::INT16 | D::INT32 | D::INT64 | D::UINT8 | D::UINT16 | D::UINT32 | D::UINT64 => Some(DType::I64),
        kind if is_floating(kind) => Some(DType::F32),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
