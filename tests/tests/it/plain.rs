//! Compiled models in the clear against ONNX Runtime.

use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Options, compile};
use ombra_ir::op::Op;
use ombra_tests::corpus::{self, selected};
use ombra_tests::logits::{greatest, max_error};
use ombra_tests::plain;
use std::collections::BTreeMap;

fn show(errors: Vec<ombra_ir::Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

#[test]
fn logits_are_those_of_onnx_runtime() {
    for (name, base) in selected() {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let options = Options { reveal: vec![Reveal::Output("logits".into())], ..Options::default() };
        let compiled = compile(&model, base.as_ref(), &options).map_err(show).unwrap_or_else(|e| panic!("{name}: {e}"));
        for set in 0..corpus::sets(name) {
            let data = corpus::test_set(name, set).and_then(|set| set.parts()).expect("the test set is bundled");
            let data = data.into_iter().next().expect("it has rows");
            let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
            let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name} set {set}: {e}"));
            let value = outcome.outputs[0].as_ref().expect("it is revealed");
            let reveal = compiled.plan.module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. }));
            let (_, scale) = reveal.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
            let got = value.decode(scale).expect("a ring value");
            let want = &data.outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
            let worst = max_error(&got, want, inputs.get("attention_mask")).expect("logits are floats");
            println!("{name} set {set}: {} ops, max error {worst:.5}", compiled.plan.module.ops.len());
            assert!(worst <= 0.02, "{name} set {set}: error {worst}");
        }
    }
}

#[test]
fn next_tokens_are_those_of_onnx_runtime() {
    for (name, base) in selected().into_iter().filter(|(name, _)| corpus::is_causal(name)) {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let compiled =
            compile(&model, base.as_ref(), &Options::default()).map_err(show).unwrap_or_else(|e| panic!("{name}: {e}"));
        for set in 0..corpus::sets(name) {
            let data = corpus::test_set(name, set).and_then(|set| set.parts()).expect("the test set is bundled");
            let data = data.into_iter().next().expect("it has rows");
            let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
            let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name} set {set}: {e}"));
            let value = outcome.outputs[0].as_ref().expect("it is revealed");
            let (_, got) = value.as_ring().expect("a ring value");
            let want = &data.outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
            let (seq, width) = (want.shape()[1], want.shape()[2]);
            let values = want.as_f32().expect("floats");
            assert_eq!(got.len(), want.shape()[0], "{name} set {set}: one token a row");
            for (sequence, token) in values.chunks_exact(seq * width).zip(got) {
                let (expected, margin) = greatest(&sequence[(seq - 1) * width..]);
                assert!(*token == expected as u64 || margin < 0.04, "{name} set {set}: token {token}");
            }
        }
    }
}
