//! The model itself, in the clear and in float: what a run must agree with.

use std::path::Path;

use ombra_ir::bind::concrete;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::request::public_inputs;
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};

/// Greedy tokens after `prompt` from the ONNX file `model`, for which `plan` was made. Every step computes the whole text
/// anew, without a cache.
///
/// # Errors
/// The model cannot be run, or has no logits.
pub fn generate(model: &Path, plan: &Plan, prompt: &[i64], count: usize) -> Result<Vec<i64>> {
    let loaded = PlaintextModel::open(model)?;
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let inputs = inputs(plan, &tokens)?;
        let given: Vec<(&str, PlainInput)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), view(tensor))).collect();
        let logits = loaded.run(&given, &["logits"])?;
        tokens.push(greatest_of_last_row(&logits)?);
    }
    Ok(tokens.split_off(prompt.len()))
}

/// Every input of the graph for `tokens` and an empty cache.
fn inputs(plan: &Plan, tokens: &[i64]) -> Result<Vec<(String, Tensor)>> {
    let sizes = [(&plan.batch, 1), (&plan.seq, tokens.len() as u64), (&plan.past, 0)];
    let sizes: Vec<(&str, u64)> = sizes.iter().filter_map(|(name, n)| Some((name.as_deref()?, *n))).collect();
    let bindings = plan.module.dims.bind(&sizes)?;
    let mut all = public_inputs(plan, &bindings, &[], &[])?;
    for input in &plan.graph_inputs {
        let shape = concrete(&input.shape, &bindings)?;
        match input.role {
            InputRole::TokenIds => all.push((input.name.clone(), Tensor::i64(&shape, tokens.to_vec())?)),
            InputRole::PastKey { .. } | InputRole::PastValue { .. } | InputRole::Embeddings | InputRole::Other => {
                let zeros = vec![0.0; shape.iter().product()];
                all.push((input.name.clone(), Tensor::f32(&shape, zeros)?));
            }
            InputRole::AttentionMask | InputRole::PositionIds | InputRole::Public => {}
        }
    }
    Ok(all)
}

fn view(tensor: &Tensor) -> PlainInput<'_> {
    let elements = match tensor.data() {
        Data::F32(values) => PlainElements::F32(values),
        Data::I64(values) => PlainElements::I64(values),
        Data::Bool(values) => PlainElements::Bool(values),
    };
    PlainInput { shape: tensor.shape(), elements }
}

/// The first maximum entry of the last row: the next token.
fn greatest_of_last_row(logits: &[(Vec<usize>, Vec<f32>)]) -> Result<i64> {
    let row = logits.first().and_then(|(shape, values)| values.rchunks_exact(*shape.last()?).next());
    let row = row.ok_or_else(|| Diagnostic::input("E0912", "the model gives no logits"))?;
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    Ok(best as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_greatest_logit_of_the_last_position_is_the_next_token() {
        let logits = (vec![1, 2, 3], vec![9.0, 0.0, 0.0, 1.0, 2.0, 2.0]);
        assert_eq!(greatest_of_last_row(&[logits]).expect("a row"), 1);
        assert!(greatest_of_last_row(&[]).is_err());
        assert!(greatest_of_last_row(&[(vec![], vec![])]).is_err());
    }
}
