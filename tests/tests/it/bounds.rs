//! Proven bounds: that they hold, that nothing is assumed beside them, and what they say about private weights.

use ombra_compiler::graph::ValueId;
use ombra_compiler::graph::eval::visit;
use ombra_compiler::import;
use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Errors, Options, bounded, compile};
use ombra_compiler::ranges::calibrate::{Inputs, complete_inputs};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::BoundsOf;
use ombra_ir::ty::BoundFrom;
use ombra_tests::corpus;
use ombra_tests::logits::max_error;
use ombra_tests::plain;
use std::collections::BTreeMap;
use std::path::Path;

fn on_the_base() -> Options {
    let reveal = vec![Reveal::Output("logits".into())];
    Options { reveal, bounds_of: BoundsOf::Base, ..Options::default() }
}

fn show(errors: Errors) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

fn compiled(model: &Model, base: &Model, options: &Options) -> Compiled {
    compile(model, Some(base), options).map_err(show).unwrap_or_else(|e| panic!("{e}"))
}

/// Maximum error of the logits, for a plan that reveals them alone.
fn error(compiled: &Compiled, model: &Model, inputs: &Inputs, outputs: &[(String, Tensor)]) -> f64 {
    let outcome = plain::step(compiled, model, inputs).unwrap_or_else(|e| panic!("{e}"));
    let value = outcome.outputs[0].as_ref().expect("it is revealed");
    let revealed = compiled.plan.module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. }));
    let (_, scale) = revealed.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
    let want = &outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
    let got = value.decode(scale).expect("a ring value");
    max_error(&got, want, inputs.get("attention_mask")).expect("logits are floats")
}

/// The model with every private matrix a little larger.
fn with_other_private_weights(name: &str, base: &Model) -> Model {
    let model = corpus::model(name).expect("the model is bundled");
    let labels = compiled(&model, base, &on_the_base()).labels;
    let mut proto = model.proto.clone();
    for tensor in &mut proto.graph.as_mut().expect("it has a graph").initializer {
        let private =
            labels.get(&tensor.name).is_some_and(|l| l.owner == ombra_compiler::secrecy::labels::Owner::Private);
        if private && tensor.dims.len() == 2 {
            let data = model.floats(tensor).expect("floats").iter().flat_map(|x| (x * 1.7).to_le_bytes()).collect();
            tensor.raw_data = data;
            tensor.float_data.clear();
        }
    }
    Model::from_proto(proto, Path::new(".")).expect("it stays a model")
}

#[test]
fn bounds_of_the_base_say_nothing_about_private_weights() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let name = "llama-trained/full";
    let model = corpus::model(name).expect("the model is bundled");
    let other = with_other_private_weights(name, &base);
    let module = |model: &Model, options: &Options| compiled(model, &base, options).plan.module;
    assert!(module(&model, &on_the_base()) == module(&other, &on_the_base()));
    // On the model itself they do: weights that are larger show.
    let on_the_model = Options { bounds_of: BoundsOf::Model, ..on_the_base() };
    assert!(module(&model, &on_the_model) != module(&other, &on_the_model));
}

#[test]
fn logits_stay_right_with_bounds_of_the_base() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    for variant in ["full", "frozen", "lora"] {
        let name = format!("llama-trained/{variant}");
        let model = corpus::model(&name).expect("the model is bundled");
        let compiled = compiled(&model, &base, &on_the_base());
        assert_eq!(compiled.plan.bounds_of, BoundsOf::Base);
        let data = corpus::test_set(&name, 0).expect("the test set is bundled");
        let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
        let worst = error(&compiled, &model, &inputs, &data.outputs);
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
fn models_with_norms_assume_nothing() {
    for name in ["llama-trained/full", "gpt2-pair/full", "opt-optimum-past", "mistral-optimum"] {
        let model = corpus::model(name).expect("the model is bundled");
        let plan = compile(&model, None, &Options::default()).map_err(show).unwrap_or_else(|e| panic!("{e}")).plan;
        assert_eq!(plan.assumed, [], "{name}");
        assert!(plan.module.ops.iter().all(|n| n.ty.bound_from != BoundFrom::Calibrated), "{name}");
    }
}

/// Maximum size beside its bound of every value of a graph, on given inputs.
fn sizes(name: &str, sets: &[Inputs]) -> Vec<(String, f64, f64)> {
    let model = corpus::model(name).expect("the model is bundled");
    let (bounded, ranges) = bounded(&model, None, &Options::default()).map_err(show).unwrap_or_else(|e| panic!("{e}"));
    let mut seen: BTreeMap<ValueId, f64> = BTreeMap::new();
    for set in sets {
        let inputs = complete_inputs(&bounded.graph, set).expect("the rest has defaults");
        visit(&bounded.graph, &|name| import::load_weight(&model, name), &inputs, &mut |v, tensor| {
            let Ok(values) = tensor.as_f32() else { return };
            let most = values.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(f64::from(x.abs())));
            let entry = seen.entry(v).or_insert(0.0);
            *entry = entry.max(most);
        })
        .expect("it runs");
    }
    let named = |(v, found): (ValueId, f64)| {
        let node = bounded.graph.node(v).ok()?;
        Some((format!("%{} {}", v.index(), node.origin.node), found, ranges.size(v)?))
    };
    seen.into_iter().filter_map(named).collect()
}

#[test]
fn no_prompt_exceeds_a_proven_bound() {
    let ids = |ids: Vec<i64>| Inputs::from([("input_ids".into(), Tensor::i64(&[1, ids.len()], ids).expect("it fits"))]);
    let mixed = (0..96i64).map(|i| i * 7919 % 320).collect();
    let mut sets = vec![ids(mixed), ids(vec![0; 64]), ids([vec![3], vec![0; 63]].concat())];
    sets.extend((0..320).step_by(17).map(|token| ids(vec![token; 24])));
    let sizes = sizes("llama-trained/full", &sets);
    assert!(sizes.len() > 200, "{} values have a bound", sizes.len());
    let mut tight = 0;
    for (name, found, bound) in sizes {
        assert!(found <= bound, "{name}: {found} beyond {bound}");
        tight += usize::from(found > bound / 64.0);
    }
    assert!(tight > 150, "most bounds are within 6 bits of what is reached: {tight}");
}
