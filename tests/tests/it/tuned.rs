//! Exports with fused operators as tuned models: the first layer is the base's, so the client runs it
//! in the clear from the export's own operators, and the rest runs between the parties.

use std::collections::BTreeMap;

use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::import::{Options, import, load_weight};
use ombra_compiler::onnx::{Model, extract};
use ombra_runtime::app::inputs::infer_request;
use ombra_tests::built::{build_model, logits};
use ombra_tests::corpus;
use ombra_tests::logits::max_error;
use ombra_tests::parties;

/// Model `name` with other numbers in every weight whose name has one of `parts`.
fn tuned(name: &str, parts: &[&str]) -> Model {
    let model = corpus::model(name).expect("the model is bundled");
    let outputs: Vec<&str> = model.graph().output.iter().map(|o| o.name.as_str()).collect();
    let mut proto = extract(&model, &outputs).expect("its own outputs");
    let mut changed = 0;
    let graph = proto.graph.as_mut().expect("a graph");
    let float = onnx_protobuf::tensor_proto::DataType::FLOAT as i32;
    for tensor in &mut graph.initializer {
        if tensor.data_type == float && parts.iter().any(|part| tensor.name.contains(part)) {
            for (i, bytes) in tensor.raw_data.chunks_exact_mut(4).enumerate() {
                let value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                bytes.copy_from_slice(&(value * (0.9 + (i % 7) as f32 * 0.03) + 0.001).to_le_bytes());
            }
            changed += 1;
        }
    }
    assert!(changed > 4, "{name}: {changed} weights are private");
    Model::from_proto(proto, &corpus::folder(name).join("tuned.onnx")).expect("still a model")
}

#[test]
fn the_clients_part_of_a_fused_export_runs_in_the_clear() {
    for (name, private) in [
        ("llama-gqa-genai", ["layers.1.", "layers.2.", "lm_head"]),
        ("gpt2-ort-optimized", ["h.1.", "ln_f", "weight_transposed"]),
    ] {
        let base = corpus::model(name).expect("the model is bundled");
        let model = tuned(name, &private);
        let graph = import(&model, &Options::default()).expect("it imports").graph;
        let built = build_model(model, Some(&base), logits()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let region = built.compiled.client_model.as_ref().expect("the client has a part");
        assert!(region.graph.node.len() > 4, "{name}: {} nodes", region.graph.node.len());
        for index in 0..2 {
            let set = corpus::test_set(name, index).expect("the set is bundled");
            let inputs: BTreeMap<_, _> = set.inputs.iter().cloned().collect();
            let all = evaluate(&graph, &|w| load_weight(&built.model, w), &inputs).expect("it evaluates");
            let at = graph.outputs.iter().position(|o| o.name == "logits").expect("it has logits");
            let (request, given) = infer_request(&built.plan.plan, set.inputs.clone()).expect("the set fits the plan");
            let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{name}: {e}"));
            let got = sides[0].steps[0].opened[0].reals();
            let error = max_error(&got, &all[at], inputs.get("attention_mask")).expect("logits are floats");
            println!("{name} set {index}: error {error:.5}");
            assert!(error <= 0.02, "{name} set {index}: error {error}");
        }
    }
}
