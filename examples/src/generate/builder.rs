//! Building an ONNX graph node by node, in the way the exporters write them.

use std::collections::HashMap;
use std::path::Path;

use ombra_compiler::onnx::{ExternalWriter, write_model};
use ombra_ir::Result;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{self, Dimension};
use onnx_protobuf::type_proto::{self, Value};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
};
use protobuf::{Enum, MessageField};

use super::random::Random;

/// Version of the default operator set that is written.
const OPSET: i64 = 20;

/// A size in a declared shape.
#[derive(Clone, Copy)]
pub(super) enum Size<'a> {
    /// Known.
    Fixed(usize),
    /// A name, or an expression in names.
    Symbol(&'a str),
}

/// A graph under construction and the data file of its weights.
pub(super) struct Builder {
    graph: GraphProto,
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    data: ExternalWriter,
    scope: String,
}

impl Builder {
    /// An empty graph whose weights go to `data`, or are only declared to be there.
    pub(super) fn new(data: &Path, with_weights: bool) -> Result<Self> {
        Ok(Builder {
            graph: GraphProto { name: "main_graph".into(), ..GraphProto::default() },
            constants: HashMap::new(),
            data: if with_weights { ExternalWriter::create(data)? } else { ExternalWriter::entries_of(data)? },
            scope: String::new(),
        })
    }

    /// Names the module that the following nodes belong to.
    pub(super) fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Adds a node with one output and returns the output's name.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = format!("{}_{}", op.to_lowercase(), self.graph.node.len());
        self.node_as(op, inputs, attributes, &[&output]);
        output
    }

    /// Adds a node with the given outputs.
    pub(super) fn node_as(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, outputs: &[&str]) {
        self.graph.node.push(NodeProto {
            name: format!("{}/{op}_{}", self.scope, self.graph.node.len()),
            op_type: op.into(),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: outputs.iter().map(|s| s.to_string()).collect(),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    /// A constant, one for each content.
    fn constant(&mut self, kind: DataType, dims: Vec<i64>, raw_data: Vec<u8>) -> String {
        let key = (kind.value(), dims.clone(), raw_data.clone());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = format!("val_{}", self.constants.len());
        self.constants.insert(key, name.clone());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            data_type: kind.value(),
            dims,
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    /// An integer constant without axes.
    pub(super) fn int(&mut self, value: i64) -> String {
        self.constant(DataType::INT64, vec![], value.to_le_bytes().to_vec())
    }

    /// A list of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::INT64, vec![values.len() as i64], bytes)
    }

    /// A single-precision constant without axes.
    pub(super) fn float(&mut self, value: f32) -> String {
        self.constant(DataType::FLOAT, vec![], value.to_le_bytes().to_vec())
    }

    /// A list of single-precision numbers.
    pub(super) fn floats(&mut self, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::FLOAT, vec![values.len() as i64], bytes)
    }

    /// A boolean constant without axes.
    pub(super) fn boolean(&mut self, value: bool) -> String {
        self.constant(DataType::BOOL, vec![], vec![u8::from(value)])
    }

    /// Writes a weight to the data file and returns its name. There are as many `values` as `dims` say.
    pub(super) fn weight(&mut self, name: &str, dims: &[usize], values: impl Iterator<Item = f32>) -> Result<String> {
        let tensor = self.data.push(name, dims, values)?;
        self.graph.initializer.push(tensor);
        Ok(name.to_owned())
    }

    /// Writes the transpose of a random matrix of shape `dims` and returns its name.
    pub(super) fn transposed(&mut self, name: &str, dims: [usize; 2], weights: &Random) -> Result<String> {
        let [rows, columns] = dims;
        let values = (0..rows * columns).map(|i| weights.at(i % rows * columns + i / rows));
        let tensor = self.data.push(name, &[columns, rows], values)?;
        self.graph.initializer.push(tensor);
        Ok(name.to_owned())
    }

    /// Declares an input of the graph.
    pub(super) fn input(&mut self, name: &str, kind: DataType, shape: &[Size]) {
        self.graph.input.push(declaration(name, kind, shape));
    }

    /// Declares an output of the graph.
    pub(super) fn output(&mut self, name: &str, kind: DataType, shape: &[Size]) {
        self.graph.output.push(declaration(name, kind, shape));
    }

    /// Writes the model to `path` and closes its data file.
    pub(super) fn finish(self, path: &Path) -> Result<()> {
        self.data.finish()?;
        let model = ModelProto {
            ir_version: 10,
            producer_name: "ombra".into(),
            opset_import: vec![OperatorSetIdProto { version: OPSET, ..OperatorSetIdProto::default() }],
            graph: MessageField::some(self.graph),
            ..ModelProto::default()
        };
        write_model(&model, path)
    }
}

/// A declared value.
fn declaration(name: &str, kind: DataType, shape: &[Size]) -> ValueInfoProto {
    let dim = |size: &Size| Dimension {
        value: Some(match size {
            Size::Fixed(n) => tensor_shape_proto::dimension::Value::DimValue(*n as i64),
            Size::Symbol(name) => tensor_shape_proto::dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect(), ..TensorShapeProto::default() };
    let tensor = type_proto::Tensor {
        elem_type: kind.value(),
        shape: MessageField::some(shape),
        ..type_proto::Tensor::default()
    };
    ValueInfoProto {
        name: name.into(),
        type_: MessageField::some(TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::INT.into(), i, ..AttributeProto::default() }
}

/// A list of integers as an attribute.
pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let ints = values.to_vec();
    AttributeProto { name: name.into(), type_: AttributeType::INTS.into(), ints, ..AttributeProto::default() }
}

/// A floating-point attribute.
pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::FLOAT.into(), f, ..AttributeProto::default() }
}
