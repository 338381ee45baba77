//! The client's plaintext region as an ONNX model of its own.
//!
//! It is cut out of the tuned model by the names of the values that enter the MPC program and of the caches that the
//! client keeps. Values that folding made, norms without scale and shift, have no name there: their few nodes are
//! appended. Every tensor of the region, wherever in it, is checked to be public before anything is written.

use crate::graph::{Graph, Op, Owner, ValueId};
use crate::import::{constant_tensor, dtype_of};
use crate::labels::{self, Labels};
use crate::onnx::{Model, extract, shape, subgraphs};
use crate::passes::assign_owners::client_states;
use crate::passes::fold_norms::is_ones;
use ombra_ir::module::Module;
use ombra_ir::plain::DType;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto, tensor_proto,
    type_proto,
};
use std::collections::BTreeSet;

/// The name under which the client's region gives a value, if it can.
pub fn name_of(graph: &Graph, v: ValueId) -> Option<String> {
    let node = graph.node(v).ok()?;
    match &node.op {
        Op::Input { name, .. } => Some(name.clone()),
        _ if !node.origin.value.is_empty() => Some(node.origin.value.clone()),
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            let x = graph.node(graph.operand(v, 0)?).ok()?;
            let bare = is_ones(graph, graph.operand(v, 1)?) && graph.operand(v, 2).is_none();
            (bare && !x.origin.value.is_empty() && x.owner == Owner::Client)
                .then(|| format!("ombra.norm.{}", v.index()))
        }
        _ => None,
    }
}

/// Axis and operand of a slice of the last element that has no name in the model: the client takes it after its region.
pub fn last_of(graph: &Graph, v: ValueId) -> Option<(usize, ValueId)> {
    let node = graph.node(v).ok().filter(|node| node.origin.value.is_empty())?;
    let Op::Slice { axis, start, len, .. } = &node.op else { return None };
    let x = graph.operand(v, 0)?;
    let end = start.add(len).ok()?;
    (len.is(1) && graph.shape(x).get(*axis) == Some(&end)).then_some((*axis, x))
}

/// Makes values of the client that the program would need but that have no name in the model secret: then the program
/// computes them from what has one. Operators of many steps leave such values on their way.
///
/// # Errors
/// The graph is broken.
pub fn hide_unnamed(graph: &mut Graph) -> Result<()> {
    for id in graph.topological().into_iter().rev() {
        let node = graph.node(id)?;
        if node.owner != Owner::Client || node.dtype != DType::F32 {
            continue;
        }
        let mut whole = id;
        while let Some((_, x)) = last_of(graph, whole) {
            whole = x;
        }
        let secret = |u: &ValueId| graph.node(*u).is_ok_and(|n| n.owner == Owner::Secret);
        if name_of(graph, whole).is_none() && graph.users(id).iter().any(secret) {
            graph.node_mut(id)?.owner = Owner::Secret;
        }
    }
    Ok(())
}

/// The region that computes what `module` is given, if that is more than the model's own inputs.
///
/// # Errors
/// A private tensor would be part of it.
pub fn build(model: &Model, graph: &Graph, module: &Module, labels: &Labels) -> Result<Option<ModelProto>> {
    let inputs: BTreeSet<String> =
        graph.inputs.iter().filter_map(|&id| name_of(graph, id).filter(|_| graph.node(id).is_ok())).collect();
    let wanted: BTreeSet<&str> =
        module.inputs.iter().map(|i| i.name.as_str()).filter(|n| !inputs.contains(*n)).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut outputs: BTreeSet<String> = client_states(graph).into_iter().map(|(_, output)| output).collect();
    let mut norms = Vec::new();
    for (id, node) in graph.iter() {
        let Some(name) = name_of(graph, id).filter(|n| wanted.contains(n.as_str())) else { continue };
        if node.origin.value == name {
            outputs.insert(name);
        } else if let Some(x) = graph.operand(id, 0) {
            outputs.insert(graph.node(x)?.origin.value.clone());
            norms.push((id, name));
        }
    }
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let mut region = extract(model, &names)?;
    check_public(&region, labels)?;
    for (id, name) in norms {
        append_norm(&mut region, graph, id, &name, model.opset())?;
    }
    Ok(Some(region))
}

/// Elements from which on an integer tensor where labels do not look may be a weight.
const INTEGER_WEIGHT: usize = 64;

/// Checks that every tensor of `region` is public: initializers, `Constant` nodes and other attributes, in subgraphs
/// too. What has no label counts as private when it may be a weight.
fn check_public(region: &ModelProto, labels: &Labels) -> Result<()> {
    check_graph(&region.graph, labels, false)
}

fn check_graph(graph: &GraphProto, labels: &Labels, inner: bool) -> Result<()> {
    graph.initializer.iter().try_for_each(|t| check_tensor(&t.name, t, labels, inner))?;
    if let Some(sparse) = graph.sparse_initializer.first() {
        return Err(reached(&sparse.values.name));
    }
    check_nodes(&graph.node, labels, inner)
}

fn check_nodes(nodes: &[NodeProto], labels: &Labels, inner: bool) -> Result<()> {
    for node in nodes {
        subgraphs(node).try_for_each(|graph| check_graph(graph, labels, true))?;
        let name = node.output.first().map_or("", String::as_str);
        if let Some(tensor) = constant_tensor(node) {
            check_tensor(name, &tensor, labels, inner)?;
            continue;
        }
        for attribute in &node.attribute {
            let mut tensors = attribute.t.iter().chain(&attribute.tensors);
            tensors.try_for_each(|t| check_tensor("", t, labels, true))?;
            let sparse = attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty();
            if sparse || attribute.floats.len() > 1 {
                return Err(reached(name));
            }
        }
    }
    Ok(())
}

/// Checks one tensor, called `name` by labels. Those of the main graph went through the importer, which found the
/// integers that are weights; what stands in subgraphs, `inner`, may be in a branch that it did not take.
fn check_tensor(name: &str, tensor: &TensorProto, labels: &Labels, inner: bool) -> Result<()> {
    let count: usize = shape(tensor)?.iter().product();
    let private = match labels.get(name) {
        Some(label) => label.owner == labels::Owner::Private,
        None if dtype_of(tensor.data_type) == Some(DType::F32) => count > 1,
        None => inner && count >= INTEGER_WEIGHT,
    };
    if private { Err(reached(name)) } else { Ok(()) }
}

fn reached(name: &str) -> Diagnostic {
    Diagnostic::internal("E0542", format!("private tensor `{name}` reached the client's region"))
}

/// `x / √(mean(x²) + eps)`, of the centred `x` for a layer norm, in primitive operators.
fn append_norm(region: &mut ModelProto, graph: &Graph, id: ValueId, name: &str, opset: i64) -> Result<()> {
    let (eps, centred) = match graph.op(id) {
        Some(Op::RmsNorm { eps }) => (*eps, false),
        Some(Op::LayerNorm { eps }) => (*eps, true),
        _ => return Err(Diagnostic::internal("E0548", "only norms are appended to the client's region")),
    };
    let x = graph.operand(id, 0).and_then(|x| graph.node(x).ok()).map(|n| n.origin.value.clone()).unwrap_or_default();
    let Some(g) = region.graph.as_mut() else { return Err(Diagnostic::internal("E0548", "the region has no graph")) };
    let of = |part: &str| format!("{name}.{part}");
    g.initializer.push(TensorProto {
        name: of("eps"),
        data_type: tensor_proto::DataType::FLOAT as i32,
        raw_data: eps.to_le_bytes().to_vec(),
        ..Default::default()
    });
    g.initializer.push(TensorProto {
        name: of("axis"),
        dims: vec![1],
        data_type: tensor_proto::DataType::INT64 as i32,
        raw_data: (-1i64).to_le_bytes().to_vec(),
        ..Default::default()
    });
    let mut from = x;
    if centred {
        g.node.push(mean(&from, &of("mean"), &of("axis"), opset));
        g.node.push(node("Sub", &[&from, &of("mean")], &of("centred")));
        from = of("centred");
    }
    g.node.push(node("Mul", &[&from, &from], &of("square")));
    g.node.push(mean(&of("square"), &of("stat"), &of("axis"), opset));
    g.node.push(node("Add", &[&of("stat"), &of("eps")], &of("sum")));
    g.node.push(node("Sqrt", &[&of("sum")], &of("root")));
    g.node.push(node("Div", &[&from, &of("root")], name));
    let mut output = ValueInfoProto { name: name.into(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: tensor_proto::DataType::FLOAT as i32, ..Default::default() };
    output.type_.mut_or_insert_default().set_tensor_type(tensor);
    g.output.push(output);
    Ok(())
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

/// The mean over the last axis, in the form the opset has.
fn mean(input: &str, output: &str, axis: &str, opset: i64) -> NodeProto {
    let mut node = node("ReduceMean", &[input], output);
    if opset >= 18 {
        node.input.push(axis.into());
    } else {
        node.attribute.push(AttributeProto {
            name: "axes".into(),
            type_: attribute_proto::AttributeType::INTS.into(),
            ints: vec![-1],
            ..Default::default()
        });
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Label;

    fn floats(name: &str, count: usize) -> TensorProto {
        TensorProto {
            name: name.into(),
            dims: vec![count as i64],
            data_type: tensor_proto::DataType::FLOAT as i32,
            float_data: vec![0.5; count],
            ..Default::default()
        }
    }

    fn labels(list: &[(&str, labels::Owner)]) -> Labels {
        let label = |&(name, owner): &(&str, labels::Owner)| Label {
            name: name.into(),
            shape: vec![],
            owner,
            why: String::new(),
            readable: None,
        };
        Labels { tensors: list.iter().map(label).collect(), ..Labels::default() }
    }

    fn region(initializer: Vec<TensorProto>, node: Vec<NodeProto>) -> ModelProto {
        let graph = GraphProto { initializer, node, ..Default::default() };
        ModelProto { graph: Some(graph).into(), ..Default::default() }
    }

    fn holding(op: &str, name: &str, tensor: TensorProto) -> NodeProto {
        let value = AttributeProto { name: "value".into(), t: Some(tensor).into(), ..Default::default() };
        NodeProto { attribute: vec![value], ..node(op, &[], name) }
    }

    #[test]
    fn only_labelled_public_tensors_pass() {
        let known = labels(&[("a", labels::Owner::Private), ("b", labels::Owner::Public)]);
        let check = |r: &ModelProto| check_public(r, &known);
        assert!(check(&region(vec![floats("b", 8), floats("c", 1)], vec![])).is_ok());
        for name in ["a", "c"] {
            assert!(check(&region(vec![floats(name, 8)], vec![])).is_err(), "{name} as initializer");
            assert!(
                check(&region(vec![], vec![holding("Constant", name, floats("", 8))])).is_err(),
                "{name} in a node"
            );
            let branch = region(vec![floats(name, 8)], vec![]).graph.unwrap();
            let branch = AttributeProto { name: "then_branch".into(), g: Some(branch).into(), ..Default::default() };
            let both = NodeProto { attribute: vec![branch], ..node("If", &["x"], "y") };
            assert!(check(&region(vec![], vec![both])).is_err(), "{name} in a branch");
        }
        assert!(check(&region(vec![], vec![holding("Strange", "b", floats("b", 8))])).is_err());
    }
}
