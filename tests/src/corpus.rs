//! The bundled corpus: `tests/data/models`.

use ombra_compiler::onnx::{Model, shape};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::tensor_file;
use onnx_protobuf::{Message, TensorProto};
use std::path::PathBuf;

/// Every model of the corpus that runs in tests, and its base where it has one.
pub const MODELS: &[(&str, Option<&str>)] = &[
    ("llama-trained/base", None),
    ("llama-trained/frozen", Some("llama-trained/base")),
    ("llama-trained/frozen-headmerge", Some("llama-trained/base")),
    ("llama-trained/lora", Some("llama-trained/base")),
    ("llama-trained/full", Some("llama-trained/base")),
    ("llama-pair/base", None),
    ("llama-pair/frozen", Some("llama-pair/base")),
    ("llama-pair/lora", Some("llama-pair/base")),
    ("llama-pair/full", Some("llama-pair/base")),
    ("gpt2-pair/base", None),
    ("gpt2-pair/frozen", Some("gpt2-pair/base")),
    ("gpt2-pair/lora", Some("gpt2-pair/base")),
    ("gpt2-pair/full", Some("gpt2-pair/base")),
    ("llama-torchscript-op17", None),
    ("llama-torchscript-op14-fixed", None),
    ("llama-gqa-dynamo-op18", None),
    ("llama-gqa-dynamo-op23", None),
    ("llama-dynamo-op20-fixed-ids", None),
    ("llama-gqa-genai", None),
    ("llama-gqa-ort-extended", None),
    ("llama-optimum-1.10", None),
    ("qwen2-optimum-past", None),
    ("mistral-optimum", None),
    ("opt-optimum-past", None),
    ("gpt2-optimum-past", None),
    ("gpt2-dynamo-op20-cached", None),
    ("gpt2-ort-optimized", None),
    ("gpt2-torchscript-op13-fixed", None),
    ("gpt2-optimum-1.10", None),
    ("bert-trained/torchscript-op14", None),
    ("bert-trained/dynamo-op20", None),
    ("bert-trained/ort-optimized", None),
    ("bert-functions-2.5", None),
];

/// Whether a model chooses next tokens; the others are classifiers.
pub fn is_causal(name: &str) -> bool {
    !name.starts_with("bert")
}

/// The models whose names contain the environment variable `OMBRA_ONLY`; all without it.
pub fn selected() -> Vec<(&'static str, Option<&'static str>)> {
    let only = std::env::var("OMBRA_ONLY").unwrap_or_default();
    MODELS.iter().copied().filter(|(name, _)| name.contains(&only)).collect()
}

/// Whether the long variants of tests run: the environment variable `OMBRA_LONG` is 1.
pub fn long() -> bool {
    std::env::var("OMBRA_LONG").is_ok_and(|value| value == "1")
}

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

/// Rows of a batch that run at once: as many as a plan allows by default.
pub const ROWS: usize = 8;

/// Inputs and outputs of one test set, by name. The first axis of every tensor is the batch, where it is large.
#[derive(Clone)]
pub struct TestSet {
    /// What goes in.
    pub inputs: Vec<(String, Tensor)>,
    /// What ONNX Runtime computed.
    pub outputs: Vec<(String, Tensor)>,
}

impl TestSet {
    /// The set itself where that many rows run at once, or cut into parts of at most [`ROWS`] rows of the batch, which do not depend on each other; in short tests
    /// the first of them alone.
    ///
    /// # Errors
    /// A tensor has no axes.
    pub fn parts(&self) -> Result<Vec<TestSet>> {
        let batch = self.inputs.first().and_then(|(_, tensor)| tensor.shape().first().copied()).unwrap_or(0);
        if batch <= ROWS {
            return Ok(vec![self.clone()]);
        }
        let cut = |list: &[(String, Tensor)], start: usize| -> Result<Vec<(String, Tensor)>> {
            let len = ROWS.min(batch - start);
            let cut = |(name, tensor): &(String, Tensor)| Ok((name.clone(), tensor_rows(tensor, start, len)?));
            list.iter().map(cut).collect()
        };
        let starts = (0..batch).step_by(ROWS).take(if long() { usize::MAX } else { 1 });
        starts.map(|at| Ok(TestSet { inputs: cut(&self.inputs, at)?, outputs: cut(&self.outputs, at)? })).collect()
    }
}

/// `len` rows of `tensor` from row `start` on.
fn tensor_rows(tensor: &Tensor, start: usize, len: usize) -> Result<Tensor> {
    let dim = |n: usize| ombra_ir::Dim::from_usize(n);
    let op = ombra_ir::plain::Op::Slice { axis: 0, start: dim(start)?, len: dim(len)?, step: 1 };
    ombra_ir::plain::eval(&op, &[tensor], &ombra_ir::Bindings::new(), ombra_ir::plain::DEFAULT_LIMIT)
}

/// How many test sets a model has.
pub fn sets(name: &str) -> usize {
    (0..).take_while(|set| folder(name).join(format!("test_data_set_{set}")).exists()).count()
}

/// Test set `set` of a model.
///
/// # Errors
/// A tensor of it cannot be read.
pub fn test_set(name: &str, set: usize) -> Result<TestSet> {
    read_set(&model(name)?, &format!("{name}/test_data_set_{set}"))
}

/// The test set in a folder of the corpus, for `model`.
///
/// # Errors
/// A tensor of it cannot be read.
pub fn read_set(model: &Model, name: &str) -> Result<TestSet> {
    let dir = folder(name);
    let read = |kind: &str| -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for i in 0.. {
            let path = dir.join(format!("{kind}_{i}.pb"));
            let Ok(bytes) = std::fs::read(&path) else { break };
            let proto = TensorProto::parse_from_bytes(&bytes).map_err(|e| Diagnostic::input("E0000", e.to_string()))?;
            tensors.push((proto.name.clone(), tensor(model, &proto)?));
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

/// The rows of token ids in a `.pb` file of the corpus.
///
/// # Errors
/// The file holds no integers of two axes.
pub fn token_rows(file: &str) -> Result<Vec<Vec<i64>>> {
    let (_, tensor) = tensor_file::read(&folder(file))?;
    let width = tensor.shape().last().copied().unwrap_or(1).max(1);
    Ok(tensor.as_i64()?.chunks_exact(width).map(<[i64]>::to_vec).collect())
}

/// A greedy continuation as ONNX Runtime computed it.
pub struct Greedy {
    /// The prompt.
    pub prompt: Vec<i64>,
    /// What follows.
    pub new: Vec<i64>,
    /// How far the second best token was, at every step.
    pub margins: Vec<f64>,
}

/// What is known about the quality of a trained model.
pub struct Quality {
    /// Part of the next tokens that are right, by the file of token rows.
    pub accuracy: Vec<(String, f64)>,
    /// Greedy continuations.
    pub greedy: Vec<Greedy>,
}

/// The `eval.json` of a trained model.
///
/// # Errors
/// The file is missing or has another form.
pub fn quality(name: &str) -> Result<Quality> {
    let path = folder(name).join("eval.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Diagnostic::input("E0000", e.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| Diagnostic::input("E0000", e.to_string()))?;
    let family = name.split('/').next().unwrap_or_default();
    let accuracy = ["licences", "pydoc"].into_iter().filter_map(|set| {
        let set = &json[set];
        Some((format!("{family}/{}", set["tokens"].as_str()?), set["top1_accuracy"].as_f64()?))
    });
    let ints = |value: &serde_json::Value| -> Vec<i64> {
        value.as_array().into_iter().flatten().filter_map(serde_json::Value::as_i64).collect()
    };
    let greedy = json["greedy"].as_array().into_iter().flatten().map(|entry| Greedy {
        prompt: ints(&entry["prompt_ids"]),
        new: ints(&entry["new_ids"]),
        margins: entry["margin_to_second"].as_array().into_iter().flatten().filter_map(|v| v.as_f64()).collect(),
    });
    Ok(Quality { accuracy: accuracy.collect(), greedy: greedy.collect() })
}
