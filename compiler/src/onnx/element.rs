//! Element types of values that the model declares nowhere.

use std::collections::HashMap;

use onnx_protobuf::GraphProto;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::type_proto::Value;
use protobuf::Enum;

use super::{attribute, is_default_domain, subgraphs};

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
    use super::*;
    use crate::onnx::Model;
    use std::path::Path;

    #[test]
    fn an_inner_value_gets_its_element_type() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/llama-torchscript-op17");
        let model = Model::read(&folder.join("model.onnx")).unwrap();
        let graph = model.graph();
        let nodes = graph.node.iter().enumerate();
        let producer = nodes.flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
        let of = |op: &str| graph.node.iter().find(|n| n.op_type == op).unwrap().output[0].as_str();
        for (op, kind) in [("Softmax", DataType::FLOAT), ("Shape", DataType::INT64), ("MatMul", DataType::FLOAT)] {
            assert_eq!(element_of(graph, &producer, of(op)), Some(kind.value()), "{op}");
        }
        assert_eq!(element_of(graph, &producer, "nothing"), None);
    }
}
