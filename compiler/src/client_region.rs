//! The client's plaintext region as an ONNX model of its own.
//!
//! It is cut out of the tuned model by the names of the values that enter the MPC program and of the caches that the
//! client keeps. Values that folding made, norms without scale and shift, have no name there: their few nodes are
//! appended. Every initializer of the region is checked to be public before anything is written.

use crate::graph::{Graph, Op, Owner, ValueId};
use crate::labels::{self, Labels};
use crate::onnx::{Model, extract};
use crate::passes::assign_owners::client_states;
use crate::passes::fold_norms::is_ones;
use ombra_ir::module::Module;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{
    AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto, tensor_proto, type_proto,
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
    for (id, name) in norms {
        append_norm(&mut region, graph, id, &name, model.opset())?;
    }
    for tensor in &region.graph.initializer {
        if labels.get(&tensor.name).is_some_and(|l| l.owner == labels::Owner::Private) {
            let message = format!("private tensor `{}` reached the client's region", tensor.name);
            return Err(Diagnostic::internal("E0542", message));
        }
    }
    Ok(Some(region))
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
