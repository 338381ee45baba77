//! Assumed bounds: what they say about private weights, and when a model is refused for them.

use ombra_compiler::calibrate::Inputs;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Compiled, Errors, Options, compile};
use ombra_compiler::reveal::Reveal;
use ombra_compiler::{graph, import};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::CalibratedOn;
use ombra_ir::ty::BoundFrom;
use ombra_tests::corpus;
use ombra_tests::logits::max_error;
use ombra_tests::plain;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
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

/// Greatest error of the logits, for a plan that reveals them alone.
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

/// `x + x·w0`, then a product with `w1`, in two layers.
fn two_layers() -> Model {
    let dimension = |text: &str| {
        let value = text.parse().map_or(dimension::Value::DimParam(text.into()), dimension::Value::DimValue);
        Dimension { value: Some(value), ..Default::default() }
    };
    let shape = TensorShapeProto { dim: ["batch", "seq", "8"].map(dimension).to_vec(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    let input = vec![ValueInfoProto { name: "x".into(), type_: Some(ty).into(), ..Default::default() }];
    let output = vec![ValueInfoProto { name: "y".into(), ..Default::default() }];
    let weight = |name: &str, factor: f32| TensorProto {
        name: name.into(),
        dims: vec![8, 8],
        data_type: 1,
        float_data: (0..64).map(|i| factor * ((i * 37 % 64) as f32 / 32.0 - 1.0)).collect(),
        ..Default::default()
    };
    let node = |name: &str, op: &str, inputs: [&str; 2], output: &str| NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: inputs.map(String::from).to_vec(),
        output: vec![output.into()],
        ..Default::default()
    };
    let nodes = vec![
        node("/layers.0/MatMul", "MatMul", ["x", "w0"], "p"),
        node("/layers.0/Add", "Add", ["x", "p"], "h"),
        node("/layers.1/MatMul", "MatMul", ["h", "w1"], "y"),
    ];
    let initializer = vec![weight("w0", 0.7), weight("w1", 0.3)];
    let graph = GraphProto { input, initializer, node: nodes, output, ..Default::default() };
    let opset = OperatorSetIdProto { version: 18, ..Default::default() };
    let proto =
        ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() };
    Model::from_proto(proto, Path::new("two-layers.onnx")).expect("it is a model")
}

#[test]
fn a_clamp_cuts_outliers_off_between_layers() {
    let model = two_layers();
    let with = |clamp: bool| {
        let reveal = vec![Reveal::Output("y".into())];
        let drawn = (0..32u32).map(|i| (i.wrapping_mul(2654435761) >> 16) as f32 / 32768.0 - 1.0).collect();
        let calibration = vec![Inputs::from([("x".into(), Tensor::f32(&[1, 4, 8], drawn).expect("it fits"))])];
        let options = Options { clamp, reveal, calibration, ..Options::default() };
        compile(&model, None, &options).map_err(show).unwrap_or_else(|e| panic!("{e}"))
    };
    let (plain, clamped) = (with(false), with(true));
    let comparisons = |c: &Compiled| c.plan.module.ops.iter().filter(|n| matches!(n.op, Op::Msb { .. })).count();
    assert_eq!((comparisons(&plain), comparisons(&clamped)), (0, 2), "one clamp, between the layers");
    let most = clamped.graph.iter().find_map(|(_, node)| match node.op {
        graph::Op::Clamp { high, .. } => Some(f64::from(high)),
        _ => None,
    });
    let most = most.expect("the graph has the clamp");
    let floats = |name: &str| import::load_weight(&model, name).and_then(|t| Ok(t.as_f32()?.to_vec())).expect("floats");
    let (w0, w1) = (floats("w0"), floats("w1"));
    let product = |x: &[f64], w: &[f32]| -> Vec<f64> {
        (0..8).map(|j| (0..8).map(|i| x[i] * f64::from(w[i * 8 + j])).sum()).collect()
    };
    let mut cut = 0;
    for size in [0.5, 4.0, 7.9] {
        let x: Vec<f64> = (0..8).map(|i| size * f64::from(w0[i * 8 + 3].signum())).collect();
        let sum: Vec<f64> = product(&x, &w0).iter().zip(&x).map(|(p, x)| p + x).collect();
        cut += sum.iter().filter(|v| v.abs() > most).count();
        let want = product(&sum.iter().map(|v| v.clamp(-most, most)).collect::<Vec<_>>(), &w1);
        let input = Tensor::f32(&[1, 1, 8], x.iter().map(|&v| v as f32).collect()).expect("it fits");
        let inputs = BTreeMap::from([("x".to_string(), input)]);
        let outcome = plain::step(&clamped, &model, &inputs).expect("it runs");
        let revealed = clamped.plan.module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. }));
        let (_, scale) = revealed.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
        let got = outcome.outputs[0].as_ref().expect("it is revealed").decode(scale).expect("a ring value");
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 0.01, "at size {size}: {got} for {want}");
        }
    }
    assert!(cut > 0, "no input was beyond {most}");
}

#[test]
fn clamped_models_give_the_same_logits() {
    let name = "llama-trained/frozen";
    let (model, base) = (corpus::model(name).expect("bundled"), corpus::model("llama-trained/base").expect("bundled"));
    let clamped = compiled(&model, &base, &Options { clamp: true, ..on_the_base() });
    let data = corpus::test_set(name, 1).expect("the test set is bundled");
    let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
    assert!(clamped.graph.iter().any(|(_, n)| matches!(n.op, graph::Op::Clamp { .. })));
    assert!(error(&clamped, &model, &inputs, &data.outputs) <= 0.02);
}
