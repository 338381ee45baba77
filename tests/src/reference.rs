//! The model itself in the clear, run by rten from its ONNX file.

use ombra_ir::plain::{DType, Tensor};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};

use crate::corpus;
use crate::logits::greatest;

/// A loaded model with the roles of its inputs.
pub struct Reference {
    model: PlaintextModel,
    inputs: Vec<ombra_ir::plan::GraphInput>,
}

impl Reference {
    /// Loads model `name`; `plan` says what its inputs are.
    ///
    /// # Errors
    /// rten cannot load it.
    pub fn load(name: &str, plan: &Plan) -> Result<Reference> {
        let path = corpus::folder(name).join("model.onnx");
        let bytes = std::fs::read(path).map_err(|e| Diagnostic::input("E0000", e.to_string()))?;
        let model = PlaintextModel::load(bytes)?.with_threads(1);
        Ok(Reference { model, inputs: plan.graph_inputs.clone() })
    }

    /// Logits after every one of `tokens`, one row each, without a cache.
    ///
    /// # Errors
    /// The model needs other inputs, or rten fails.
    pub fn logits(&self, tokens: &[i64]) -> Result<Vec<Vec<f32>>> {
        let n = tokens.len();
        let mut given: Vec<(&str, Tensor)> = Vec::new();
        for input in &self.inputs {
            let tensor = match input.role {
                InputRole::TokenIds => Tensor::i64(&[1, n], tokens.to_vec())?,
                InputRole::AttentionMask => Tensor::i64(&[1, n], vec![1; n])?,
                InputRole::PositionIds => Tensor::i64(&[1, n], (0..n as i64).collect())?,
                InputRole::PastKey { .. } | InputRole::PastValue { .. } => {
                    let fixed = |axis: usize| {
                        let size = input.shape.get(axis).and_then(|dim| dim.as_constant());
                        size.map_or(1, |size| size as usize)
                    };
                    Tensor::f32(&[1, fixed(1), 0, fixed(3)], Vec::new())?
                }
                InputRole::Embeddings | InputRole::Public | InputRole::Other => {
                    return Err(Diagnostic::input("E0000", format!("`{}` has no default", input.name)));
                }
            };
            given.push((&input.name, tensor));
        }
        let mut inputs = Vec::new();
        for (name, tensor) in &given {
            let elements = match tensor.dtype() {
                DType::F32 => PlainElements::F32(tensor.as_f32()?),
                DType::I64 => PlainElements::I64(tensor.as_i64()?),
                DType::Bool => PlainElements::Bool(tensor.as_bool()?),
            };
            inputs.push((*name, PlainInput { shape: tensor.shape(), elements }));
        }
        let mut outputs = self.model.run(&inputs, &["logits"])?;
        let (shape, values) = outputs.pop().ok_or_else(|| Diagnostic::internal("E0000", "no logits"))?;
        let width = shape.last().copied().unwrap_or(1).max(1);
        Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// The greedy continuation of `prompt` by `count` tokens, and the margin of every one of them.
    ///
    /// # Errors
    /// As [`Reference::logits`].
    pub fn greedy(&self, prompt: &[i64], count: usize) -> Result<(Vec<i64>, Vec<f64>)> {
        let mut tokens = prompt.to_vec();
        let mut margins = Vec::new();
        for _ in 0..count {
            let rows = self.logits(&tokens)?;
            let (token, margin) = greatest(rows.last().map_or(&[], Vec::as_slice));
            tokens.push(token as i64);
            margins.push(margin);
        }
        Ok((tokens.split_off(prompt.len()), margins))
    }
}
