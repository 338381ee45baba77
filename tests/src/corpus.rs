//! The bundled corpus: `tests/data/models`.

use ombra_compiler::onnx::{Model, shape};
use ombra_ir::Result;
use ombra_ir::plain::Tensor;
use onnx_protobuf::{Message, TensorProto};
use std::path::PathBuf;

/// A folder of the corpus.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data/models")).join(name)
}

/// A model of the corpus.
///
/// # Errors
/// The file cannot be read.
pub fn model(name: &str) -> Result<Model> {
    Model::read(&folder(name).join("model.onnx"))
}

/// Inputs and outputs of one test set, by name.
pub struct TestSet {
    /// What goes in.
    pub inputs: Vec<(String, Tensor)>,
    /// What ONNX Runtime computed.
    pub outputs: Vec<(String, Tensor)>,
}

/// Test set `set` of a model.
///
/// # Errors
/// A tensor of it cannot be read.
pub fn test_set(name: &str, set: usize) -> Result<TestSet> {
    let model = model(name)?;
    let dir = folder(name).join(format!("test_data_set_{set}"));
    let read = |kind: &str| -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for i in 0.. {
            let path = dir.join(format!("{kind}_{i}.pb"));
            let Ok(bytes) = std::fs::read(&path) else { break };
            let proto = TensorProto::parse_from_bytes(&bytes)
                .map_err(|e| ombra_ir::Diagnostic::input("E0000", e.to_string()))?;
            tensors.push((proto.name.clone(), tensor(&model, &proto)?));
        }
        Ok(tensors)
    };
    Ok(TestSet { inputs: read("input")?, outputs: read("output")? })
}

/// A tensor of a `.pb` file.
///
/// # Errors
/// Its elements do not fit its shape.
pub fn tensor(model: &Model, proto: &TensorProto) -> Result<Tensor> {
    let shape = shape(proto)?;
    match proto.data_type {
        1 | 10 | 11 | 16 => Tensor::f32(&shape, model.floats(proto)?),
        9 => Tensor::bool(&shape, model.ints(proto)?.into_iter().map(|v| v != 0).collect()),
        _ => Tensor::i64(&shape, model.ints(proto)?),
    }
}
