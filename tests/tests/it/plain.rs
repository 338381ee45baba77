//! Compiled models in the clear against ONNX Runtime.

use ombra_compiler::pipeline::{Options, Reveal, compile};
use ombra_tests::{corpus, plain};
use std::collections::BTreeMap;

/// Tuned model and its base, if it has one.
const MODELS: &[(&str, Option<&str>)] = &[
    ("llama-torchscript-op17", None),
    ("llama-gqa-dynamo-op18", None),
    ("gpt2-optimum-past", None),
    ("gpt2-dynamo-op20-cached", None),
    ("llama-trained/base", None),
    ("llama-trained/frozen", Some("llama-trained/base")),
    ("llama-trained/frozen-headmerge", Some("llama-trained/base")),
    ("llama-trained/lora", Some("llama-trained/base")),
    ("llama-trained/full", Some("llama-trained/base")),
    ("llama-pair/frozen", Some("llama-pair/base")),
    ("llama-pair/lora", Some("llama-pair/base")),
    ("llama-pair/full", Some("llama-pair/base")),
    ("gpt2-pair/frozen", Some("gpt2-pair/base")),
    ("gpt2-pair/lora", Some("gpt2-pair/base")),
    ("gpt2-pair/full", Some("gpt2-pair/base")),
];

fn show(errors: Vec<ombra_ir::Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

#[test]
fn logits_are_those_of_onnx_runtime() {
    let only = std::env::var("OMBRA_ONLY").unwrap_or_default();
    for &(name, base) in MODELS.iter().filter(|m| m.0.contains(&only)) {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let options = Options { reveal: vec![Reveal::Output("logits".into())], ..Options::default() };
        let compiled = compile(&model, base.as_ref(), &options).map_err(show).unwrap_or_else(|e| panic!("{name}: {e}"));
        for set in 0..3 {
            let data = corpus::test_set(name, set).expect("the test set is bundled");
            let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
            let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name} set {set}: {e}"));
            let (slot, output) = compiled.plan.module.outputs.iter().enumerate().next().expect("one output");
            let value = outcome.outputs[slot].as_ref().expect("it is revealed");
            let reveal = compiled.plan.module.ops.iter().find(|n| matches!(n.op, ombra_ir::op::Op::Reveal { .. }));
            let (_, scale) = reveal.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
            let got = value.decode(scale).expect("a ring value");
            let want = &data.outputs.iter().find(|(n, _)| *n == output.name).expect("the output is known").1;
            let mask = inputs.get("attention_mask").map(|m| m.as_i64().expect("integers").to_vec());
            let (seq, width) = (want.shape()[1], want.shape()[2]);
            let mut worst = 0f64;
            for (i, (g, w)) in got.iter().zip(want.as_f32().expect("floats")).enumerate() {
                let (row, b) = (i / width % seq, i / width / seq);
                let total = mask.as_ref().map_or(0, |m| m.len() / want.shape()[0]);
                let counted = mask.as_ref().is_none_or(|m| m[b * total + total - seq + row] == 1);
                if counted {
                    worst = worst.max((g - f64::from(*w)).abs());
                }
            }
            eprintln!("{name} set {set}: {} ops, max error {worst:.5}", compiled.plan.module.ops.len());
            assert!(worst <= 0.02, "{name} set {set}: error {worst}");
        }
    }
}

#[test]
fn next_tokens_are_those_of_onnx_runtime() {
    let only = std::env::var("OMBRA_ONLY").unwrap_or_default();
    for &(name, base) in MODELS.iter().filter(|m| m.0.contains(&only)) {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let compiled =
            compile(&model, base.as_ref(), &Options::default()).map_err(show).unwrap_or_else(|e| panic!("{name}: {e}"));
        for set in 0..3 {
            let data = corpus::test_set(name, set).expect("the test set is bundled");
            let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
            let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name} set {set}: {e}"));
            let value = outcome.outputs[0].as_ref().expect("it is revealed");
            let (_, got) = value.as_ring().expect("a ring value");
            let want = &data.outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
            let (batch, seq, width) = (want.shape()[0], want.shape()[1], want.shape()[2]);
            assert_eq!(got.len(), batch, "{name} set {set}");
            for (b, token) in got.iter().enumerate() {
                let row = &want.as_f32().expect("floats")[(b * seq + seq - 1) * width..][..width];
                let mut order: Vec<usize> = (0..width).collect();
                order.sort_by(|&i, &j| row[j].total_cmp(&row[i]));
                let margin = row[order[0]] - row[order[1]];
                eprintln!("{name} set {set}: token {token} of {:?}, margin {margin}", order[0]);
                assert!(*token == order[0] as u64 || margin < 0.04, "{name} set {set}");
            }
        }
    }
}
