//! Assumed bounds: what they say about private weights, and when a model is refused for them.

use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Compiled, Errors, Options, compile};
use ombra_compiler::reveal::Reveal;
use ombra_ir::plan::CalibratedOn;
use ombra_ir::ty::BoundFrom;
use ombra_tests::corpus;
use ombra_tests::logits::max_error;
use ombra_tests::plain;
use std::collections::BTreeMap;
use std::path::Path;

fn on_the_base() -> Options {
    let reveal = vec![Reveal::Output("logits".into())];
    Options { reveal, calibrated_on: CalibratedOn::Base, ..Options::default() }
}

fn show(errors: Errors) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

fn compiled(model: &Model, base: &Model, options: &Options) -> Compiled {
    compile(model, Some(base), options).map_err(show).unwrap_or_else(|e| panic!("{e}"))
}

/// The model with every private matrix a little larger.
fn with_other_private_weights(name: &str, base: &Model) -> Model {
    let model = corpus::model(name).expect("the model is bundled");
    let labels = compiled(&model, base, &on_the_base()).labels;
    let mut proto = model.proto.clone();
    for tensor in &mut proto.graph.as_mut().expect("it has a graph").initializer {
        let private = labels.get(&tensor.name).is_some_and(|l| l.owner == ombra_compiler::labels::Owner::Private);
        if private && tensor.dims.len() == 2 {
            let data = model.floats(tensor).expect("floats").iter().flat_map(|x| (x * 1.7).to_le_bytes()).collect();
            tensor.raw_data = data;
            tensor.float_data.clear();
        }
    }
    Model::from_proto(proto, Path::new(".")).expect("it stays a model")
}

#[test]
fn bounds_measured_on_the_base_say_nothing_about_private_weights() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let name = "llama-trained/full";
    let model = corpus::model(name).expect("the model is bundled");
    let other = with_other_private_weights(name, &base);
    let module = |model: &Model, options: &Options| compiled(model, &base, options).plan.module;
    assert!(module(&model, &on_the_base()) == module(&other, &on_the_base()));
    // On the model itself they do: weights that are larger show.
    let on_the_model = Options { calibrated_on: CalibratedOn::Model, ..on_the_base() };
    assert!(module(&model, &on_the_model) != module(&other, &on_the_model));
}

#[test]
fn logits_stay_right_with_bounds_measured_on_the_base() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    for variant in ["full", "frozen", "lora"] {
        let name = format!("llama-trained/{variant}");
        let model = corpus::model(&name).expect("the model is bundled");
        let compiled = compiled(&model, &base, &on_the_base());
        assert_eq!(compiled.plan.calibrated_on, CalibratedOn::Base);
        let data = corpus::test_set(&name, 0).expect("the test set is bundled");
        let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
        let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
        let value = outcome.outputs[0].as_ref().expect("it is revealed");
        let revealed = compiled.plan.module.ops.iter().find(|n| matches!(n.op, ombra_ir::op::Op::Reveal { .. }));
        let (_, scale) = revealed.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
        let want = &data.outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
        let got = value.decode(scale).expect("a ring value");
        let worst = max_error(&got, want, inputs.get("attention_mask")).expect("logits are floats");
        assert!(worst <= 0.02, "{name}: error {worst}");
    }
}

#[test]
fn private_weights_beyond_the_bases_are_refused() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let mut proto = corpus::model("llama-trained/full").expect("the model is bundled").proto;
    let tensors = &mut proto.graph.as_mut().expect("it has a graph").initializer;
    let matrix = tensors.iter_mut().find(|t| t.dims == [96, 96]).expect("it has projections");
    matrix.float_data.clear();
    matrix.raw_data = std::iter::repeat_n(1.0e4f32.to_le_bytes(), 96 * 96).flatten().collect();
    let model = Model::from_proto(proto, Path::new(".")).expect("it stays a model");
    let errors = compile(&model, Some(&base), &on_the_base()).err().expect("it is refused");
    assert!(errors.iter().any(|e| e.code == "E0574"), "{}", show(errors));
}

#[test]
fn a_margin_that_is_too_small_is_refused_unless_accepted() {
    let model = corpus::model("llama-trained/full").expect("the model is bundled");
    let narrow = Options { margin: 0, ..Options::default() };
    let errors = compile(&model, None, &narrow).err().expect("it is refused");
    assert_eq!(errors[0].code, "E0572");
    let accepted = Options { max_failure_log2: 0.0, ..narrow };
    let plan = compile(&model, None, &accepted).map_err(show).unwrap_or_else(|e| panic!("{e}")).plan;
    assert!(plan.failure_log2 > -40.0);
    assert_eq!(plan.margin, 0);
    let plan = compile(&model, None, &Options::default()).map_err(show).unwrap_or_else(|e| panic!("{e}")).plan;
    assert!(plan.failure_log2 <= -40.0 && plan.module.ops.iter().any(|n| n.ty.bound_from == BoundFrom::Calibrated));
}
