//! A trained model of 135 million parameters beside ONNX Runtime, where the environment variable `OMBRA_REAL` names the
//! folder that `fetch-model` wrote. It takes minutes and some gigabytes of memory.

use std::path::PathBuf;

use ombra_runtime::app::text::Text;
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};
use ombra_tests::logits::greatest;
use ombra_tests::real::{Between, Real, Revealed};
use serde_json::Value;

/// Maximum error of a logit of the plan.
const LOGIT_ERROR: f32 = 0.1;
/// Maximum difference between two implementations in float.
const FLOAT_ERROR: f32 = 2e-3;
/// Tokens are compared where the reference's two maximum logits are further apart.
const MARGIN: f64 = 0.1;

fn folder() -> Option<PathBuf> {
    std::env::var_os("OMBRA_REAL").map(PathBuf::from)
}

fn expected() -> Value {
    serde_json::from_str(include_str!("../../data/real/smollm2-135m.json")).expect("it is JSON")
}

fn ints(value: &Value) -> Vec<i64> {
    value.as_array().expect("a list").iter().map(|v| v.as_i64().expect("an integer")).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// The maximum difference between stored logits and the last row of `logits`.
fn error(row: &Value, logits: &[f32]) -> f32 {
    let last = logits.rchunks_exact(49152).next().expect("a row");
    let pairs = ints(&row["entries"]).into_iter().zip(floats(&row["logits"]));
    pairs.map(|(entry, want)| (last[entry as usize] - want as f32).abs()).fold(0.0, f32::max)
}

#[test]
fn stored_answers_are_whole() {
    let expected = expected();
    for answer in expected["answers"].as_array().expect("answers") {
        let (new, margins) = (ints(&answer["new_ids"]), floats(&answer["margin_to_second"]));
        assert!(new.len() == margins.len() && !ints(&answer["prompt_ids"]).is_empty());
        assert!(margins.iter().filter(|margin| **margin > MARGIN).count() * 5 >= new.len() * 4);
    }
    for row in expected["rows"].as_array().expect("rows") {
        assert_eq!(ints(&row["entries"]).len(), floats(&row["logits"]).len());
    }
}

#[test]
fn the_converted_model_is_the_exported_one() {
    let Some(folder) = folder() else { return };
    let model = PlaintextModel::open(&folder.join("model.onnx")).expect("rten loads it");
    let known = model.inputs().into_iter().map(str::to_owned).collect::<Vec<_>>();
    for row in expected()["rows"].as_array().expect("rows") {
        let ids = ints(&row["ids"]);
        let shape = [1, ids.len()];
        let (ones, places) = (vec![1; ids.len()], (0..ids.len() as i64).collect::<Vec<_>>());
        let input = |name: &str| match name {
            "input_ids" => PlainInput { shape: &shape, elements: PlainElements::I64(&ids) },
            "attention_mask" => PlainInput { shape: &shape, elements: PlainElements::I64(&ones) },
            "position_ids" => PlainInput { shape: &shape, elements: PlainElements::I64(&places) },
            _ => PlainInput { shape: &[1, 3, 0, 64], elements: PlainElements::F32(&[]) },
        };
        let inputs: Vec<_> = known.iter().map(|name| (name.as_str(), input(name))).collect();
        let logits = model.run(&inputs, &["logits"]).expect("rten runs it").remove(0).1;
        let error = error(row, &logits);
        println!("{} tokens: error in float {error:.6}", ids.len());
        assert!(error <= FLOAT_ERROR, "{error}");
    }
}

#[test]
fn the_plan_computes_the_models_logits_and_answers() {
    let Some(folder) = folder() else { return };
    let expected = expected();
    let real = Real::compile(&folder, true, 1).unwrap_or_else(|e| panic!("{e}"));
    let logits = |ids: &[i64]| match real.run(&[ids.to_vec()], Between::Nobody).unwrap_or_else(|e| panic!("{e}")) {
        Revealed::Logits(logits) => logits,
        Revealed::NextTokens { .. } => panic!("logits were asked for"),
    };
    for row in expected["rows"].as_array().expect("rows") {
        let ids = ints(&row["ids"]);
        let error = error(row, &logits(&ids));
        println!("{} tokens: error {error:.5}", ids.len());
        assert!(error <= LOGIT_ERROR, "{} tokens: error {error}", ids.len());
    }
    let text = Text::open(real.plan(), None).expect("the tokenizer stands beside the plan");
    for answer in expected["answers"].as_array().expect("answers") {
        let question = answer["question"].as_str().expect("text");
        let (prompt, new) = (ints(&answer["prompt_ids"]), ints(&answer["new_ids"]));
        let asked = answer["prompt"].as_str().expect("text");
        assert_eq!(text.tokens(asked).expect("it is encoded"), prompt, "{question}");
        // Every step gets the reference's tokens before it: a near tie does not spoil what follows.
        let all = logits(&[prompt.as_slice(), &new].concat());
        let rows = all.chunks_exact(49152).skip(prompt.len() - 1);
        for (step, ((row, token), margin)) in rows.zip(&new).zip(floats(&answer["margin_to_second"])).enumerate() {
            let found = greatest(row).0 as i64;
            assert!(found == *token || margin <= MARGIN, "{question}: step {step}: {found}, margin {margin}");
        }
    }
}
