//! One test: its model, what goes in and what must come out.

use std::path::Path;

use ombra_compiler::onnx::{Model, element_type};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{Message, NodeProto, TensorProto};

use crate::corpus;

/// A tensor of a test.
pub struct Given {
    /// Name of the input or output in the model.
    pub name: String,
    /// Its element type in the file.
    pub kind: DataType,
    /// Its elements, in the types that the importer has.
    pub tensor: Tensor,
}

/// One test.
pub struct Case {
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: Model,
    /// What goes in, in the model's order.
    pub inputs: Vec<Given>,
    /// What must come out, in the model's order.
    pub outputs: Vec<Given>,
}

impl Case {
    /// The test `name` in `folder`.
    ///
    /// # Errors
    /// A file of it is missing or cannot be read.
    pub fn read(folder: &Path, name: &str) -> Result<Case> {
        let folder = folder.join(name);
        let model = Model::read(&folder.join("model.onnx"))?;
        let data = folder.join("test_data_set_0");
        let read = |kind: &str, names: Vec<String>| -> Result<Vec<Given>> {
            let file = |i: usize| data.join(format!("{kind}_{i}.pb"));
            names.into_iter().enumerate().map(|(i, name)| given(&model, name, &file(i))).collect()
        };
        let names = |list: &[onnx_protobuf::ValueInfoProto]| list.iter().map(|v| v.name.clone()).collect();
        let inputs = read("input", names(&model.graph().input))?;
        let outputs = read("output", names(&model.graph().output))?;
        Ok(Case { name: name.into(), model, inputs, outputs })
    }

    /// Whether input `name` only says how an operator treats its data: a shape, axes, sizes of parts, a condition.
    /// Such inputs are constants of the model wherever exporters write them, and so they are here.
    pub fn is_structure(&self, name: &str) -> bool {
        self.model.graph().node.iter().any(|node| {
            node.input.iter().enumerate().any(|(slot, input)| input == name && is_structure_slot(node, slot))
        })
    }
}

fn is_structure_slot(node: &NodeProto, slot: usize) -> bool {
    match node.op_type.as_str() {
        "Reshape" | "Expand" | "Tile" | "Unsqueeze" | "Squeeze" | "Split" | "CumSum" | "Trilu" => slot == 1,
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" => slot == 1,
        "Slice" => slot > 0,
        "ConstantOfShape" | "If" => slot == 0,
        "Range" => true,
        _ => false,
    }
}

fn given(model: &Model, name: String, path: &Path) -> Result<Given> {
    let wrong = |e: String| Diagnostic::input("E0000", format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let proto = TensorProto::parse_from_bytes(&bytes).map_err(|e| wrong(e.to_string()))?;
    Ok(Given { name, kind: element_type(&proto)?, tensor: corpus::tensor(model, &proto)? })
}

/// What is wrong with `got`, if anything: element types and shapes are equal, integers and booleans too, and
/// floats differ by at most `absolute + relative · |expected|`.
pub fn difference(got: &Tensor, want: &Tensor, absolute: f64, relative: f64) -> Option<String> {
    if got.dtype() != want.dtype() || got.shape() != want.shape() {
        let show = |t: &Tensor| format!("{}{:?}", t.dtype().name(), t.shape());
        return Some(format!("expected {}, found {}", show(want), show(got)));
    }
    let (Ok(g), Ok(w)) = (got.as_f32(), want.as_f32()) else {
        return (got != want).then(|| "elements differ".into());
    };
    let apart = |(g, w): (&f32, &f32)| {
        let same = g == w || (g.is_nan() && w.is_nan());
        let error = (f64::from(*g) - f64::from(*w)).abs();
        !(same || error <= absolute + relative * f64::from(w.abs()))
    };
    let at = g.iter().zip(w).position(apart)?;
    Some(format!("element {at} is {}, expected {}", g[at], w[at]))
}
