//! Cuts a part out of a model: everything that some of its values depend on, as a model of its own.
//!
//! The client runs frozen layers in the clear; what it gets is such a part. The caller decides which weights may be in
//! it: every initializer that the part needs is written into it.

use std::collections::{HashMap, HashSet};

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::type_proto::{self, Value};
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto};
use protobuf::{Enum, MessageField};

use super::check::used_names;
use super::{Model, attribute, is_default_domain, subgraphs, within};

/// The part of `model` that computes `outputs`, values of its main graph: their ancestors in the model's order, the
/// initializers they need with their data inside, and the graph inputs they need. An output that the model declares
/// nowhere has an element type, as far as that follows from its ancestors, and no shape. Documentation and metadata are
/// left out.
///
/// # Errors
/// `E0130` when an output is no value of the main graph, or one is named twice; otherwise as [`Model::bytes`].
pub fn extract(model: &Model, outputs: &[&str]) -> Result<ModelProto> {
    let graph = model.graph();
    let producer: HashMap<&str, usize> =
        graph.node.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
    let inputs: HashSet<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
    let mut asked = HashSet::new();
    for &output in outputs {
        let known = producer.contains_key(output) || inputs.contains(output) || model.initializer(output).is_some();
        if output.is_empty() || !known {
            let error = Diagnostic::input("E0130", format!("the model has no value '{output}'"));
            return Err(within(&model.path, error.note("expected the name of a value of the main graph")));
        }
        if !asked.insert(output) {
            let error = Diagnostic::input("E0130", format!("the output '{output}' is asked for twice"));
            return Err(within(&model.path, error));
        }
    }
    let mut needed = asked.clone();
    let mut keep = vec![false; graph.node.len()];
    for (node, keep) in graph.node.iter().zip(&mut keep).rev() {
        if node.output.iter().any(|o| needed.contains(o.as_str())) {
            *keep = true;
            used_names(node, &mut |name| {
                needed.insert(name);
            });
        }
    }
    let mut nodes = Vec::new();
    for (node, _) in graph.node.iter().zip(&keep).filter(|(_, keep)| **keep) {
        nodes.push(own_node(model, node)?);
    }
    let mut initializers = Vec::new();
    for tensor in graph.initializer.iter().filter(|t| needed.contains(t.name.as_str())) {
        initializers.push(own_tensor(model, tensor)?);
    }
    let plain =
        |v: &ValueInfoProto| ValueInfoProto { name: v.name.clone(), type_: v.type_.clone(), ..Default::default() };
    Ok(ModelProto {
        ir_version: model.proto.ir_version,
        opset_import: model.proto.opset_import.clone(),
        graph: MessageField::some(GraphProto {
            name: graph.name.clone(),
            node: nodes,
            initializer: initializers,
            input: graph.input.iter().filter(|v| needed.contains(v.name.as_str())).map(plain).collect(),
            output: outputs.iter().map(|name| declare(graph, &producer, name)).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    })
}

/// `tensor` with its data in `raw_data`; types that have no canonical bytes stay as they are.
fn own_tensor(model: &Model, tensor: &TensorProto) -> Result<TensorProto> {
    let plain = TensorProto {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        ..TensorProto::default()
    };
    match DataType::from_i32(tensor.data_type).and_then(super::element_size) {
        Some(_) => Ok(TensorProto { raw_data: model.bytes(tensor)?.into_owned(), ..plain }),
        None => Ok(TensorProto {
            raw_data: tensor.raw_data.clone(),
            int32_data: tensor.int32_data.clone(),
            string_data: tensor.string_data.clone(),
            external_data: tensor.external_data.clone(),
            data_location: tensor.data_location,
            ..plain
        }),
    }
}

/// `node` without documentation, all its tensors with their data inside.
fn own_node(model: &Model, node: &NodeProto) -> Result<NodeProto> {
    let mut node = node.clone();
    (node.doc_string, node.metadata_props) = Default::default();
    for attribute in &mut node.attribute {
        attribute.doc_string.clear();
        for tensor in attribute.t.as_mut().into_iter().chain(&mut attribute.tensors) {
            if tensor.data_location.enum_value() == Ok(DataLocation::EXTERNAL) {
                *tensor = own_tensor(model, tensor)?;
            }
        }
        for inner in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
            inner.initializer = inner.initializer.iter().map(|t| own_tensor(model, t)).collect::<Result<_>>()?;
            inner.node = inner.node.iter().map(|n| own_node(model, n)).collect::<Result<_>>()?;
            inner.value_info.clear();
            (inner.doc_string, inner.metadata_props) = Default::default();
        }
    }
    Ok(node)
}

/// The declaration of the output `name`.
fn declare(graph: &GraphProto, producer: &HashMap<&str, usize>, name: &str) -> ValueInfoProto {
    let mut declared = graph.output.iter().chain(&graph.input).chain(&graph.value_info);
    let type_ = match declared.find(|v| v.name == name) {
        Some(found) => found.type_.clone(),
        None => MessageField(element_of(graph, producer, name).map(|elem_type| {
            let tensor = type_proto::Tensor { elem_type, ..Default::default() };
            Box::new(TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() })
        })),
    };
    ValueInfoProto { name: name.to_owned(), type_, ..ValueInfoProto::default() }
}

/// The element type of the value `name`, followed back along operators whose result has the type of an input.
pub(crate) fn element_of<'a>(graph: &'a GraphProto, producer: &HashMap<&str, usize>, mut name: &'a str) -> Option<i32> {
    for _ in 0..=graph.node.len() {
        if let Some(tensor) = graph.initializer.iter().find(|t| t.name == name) {
            return Some(tensor.data_type);
        }
        let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info).find(|v| v.name == name);
        if let Some(Value::TensorType(tensor)) = declared.and_then(|v| v.type_.value.as_ref()) {
            return Some(tensor.elem_type);
        }
        let node = graph.node.get(*producer.get(name)?)?;
        if !is_default_domain(&node.domain) || subgraphs(node).next().is_some() {
            return None;
        }
        let source = match node.op_type.as_str() {
            "Cast" => return attribute(node, "to").and_then(|a| i32::try_from(a.i).ok()),
            "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => return Some(DataType::INT64.value()),
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not"
            | "IsNaN" | "IsInf" => return Some(DataType::BOOL.value()),
            "Constant" | "ConstantOfShape" => {
                return match attribute(node, "value") {
                    Some(value) => Some(value.t.data_type),
                    None if attribute(node, "value_int").or(attribute(node, "value_ints")).is_some() => {
                        Some(DataType::INT64.value())
                    }
                    None => Some(DataType::FLOAT.value()),
                };
            }
            "Where" | "CastLike" => node.input.get(1)?,
            _ => node.input.first()?,
        };
        name = source;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::parse;
    use onnx_protobuf::Message;

    fn corpus(name: &str) -> Model {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models").join(name).join("model.onnx");
        Model::read(&path).unwrap()
    }

    fn elem(value: &ValueInfoProto) -> Option<i32> {
        match &value.type_.value {
            Some(Value::TensorType(tensor)) => Some(tensor.elem_type),
            _ => None,
        }
    }

    #[test]
    fn the_part_has_the_ancestors_alone_and_is_a_model() {
        let model = corpus("llama-trained/base");
        let part = extract(&model, &["present.1.key"]).unwrap();
        let read = parse(&part.write_to_bytes().unwrap()).unwrap();
        let read = Model::from_proto(read, Path::new("part.onnx")).unwrap();
        let graph = read.graph();
        assert!(graph.node.len() < model.graph().node.len() / 2);
        assert!(graph.initializer.iter().all(|t| !t.name.contains("layers.2") && !t.name.contains("lm_head")));
        assert!(graph.input.iter().any(|v| v.name == "past_key_values.1.key"));
        assert!(graph.input.iter().all(|v| v.name != "past_key_values.2.key"));
        assert_eq!(elem(&graph.output[0]), Some(DataType::FLOAT.value()));
    }

    #[test]
    fn an_inner_value_gets_its_element_type() {
        let model = corpus("llama-torchscript-op17");
        let of = |op: &str| model.graph().node.iter().find(|n| n.op_type == op).unwrap().output[0].clone();
        for (op, kind) in [("Softmax", DataType::FLOAT), ("Shape", DataType::INT64), ("MatMul", DataType::FLOAT)] {
            let part = extract(&model, &[&of(op)]).unwrap();
            assert_eq!(elem(&part.graph.output[0]), Some(kind.value()), "{op}");
            assert!(Model::from_proto(part, Path::new("part.onnx")).is_ok(), "{op}");
        }
    }

    #[test]
    fn unknown_and_repeated_outputs_are_refused() {
        let model = corpus("llama-torchscript-op17");
        for outputs in [vec!["nothing"], vec!["logits", "logits"], vec![""]] {
            assert_eq!(extract(&model, &outputs).unwrap_err().code, "E0130");
        }
    }
}
