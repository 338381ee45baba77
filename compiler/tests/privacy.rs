//! What is private stays out of plans: weights behind operators that exist on public tensors alone, integer weights,
//! inputs whose contents are the client's.

mod common;

use common::{Folder, corpus};
use std::path::Path;

use ombra_compiler::graph::{Op, Owner};
use ombra_compiler::import::load_weight;
use ombra_compiler::inspect::{By, inspect};
use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Options, analyse, compile};
use ombra_compiler::ranges::calibrate::Inputs;
use ombra_compiler::secrecy::labels;
use ombra_ir::Diagnostic;
use ombra_ir::folder;
use ombra_ir::plain::Tensor;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

fn info(name: &str, kind: DataType, sizes: &[&str]) -> ValueInfoProto {
    let dim = sizes.iter().map(|s| Dimension {
        value: Some(match s.parse() {
            Ok(n) => dimension::Value::DimValue(n),
            Err(_) => dimension::Value::DimParam(s.to_string()),
        }),
        ..Default::default()
    });
    let shape = TensorShapeProto { dim: dim.collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("node_{op}_{output}"),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn cast(input: &str, output: &str, to: DataType) -> NodeProto {
    NodeProto { attribute: vec![int("to", to as i64)], ..node("Cast", &[input], output) }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, type_: AttributeType::INT.into(), ..Default::default() }
}

fn constant(attribute: AttributeProto, output: &str) -> NodeProto {
    NodeProto { attribute: vec![attribute], ..node("Constant", &[], output) }
}

/// Numbers as training leaves them.
fn trained(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / (1u32 << 24) as f32 - 0.5).collect()
}

fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::FLOAT as i32,
        float_data: trained(count),
        ..Default::default()
    }
}

fn bytes(name: &str, dims: &[i64], value: impl Fn(i32) -> i32) -> TensorProto {
    let count = dims.iter().product::<i64>() as i32;
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::INT8 as i32,
        int32_data: (0..count).map(value).collect(),
        ..Default::default()
    }
}

/// A model with inputs `x [batch, seq, 12]` and `extra`, and the output `y`.
fn model(extra: Vec<ValueInfoProto>, initializer: Vec<TensorProto>, nodes: Vec<NodeProto>) -> Model {
    with_outputs(extra, initializer, nodes, &["y"])
}

fn with_outputs(
    extra: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    outputs: &[&str],
) -> Model {
    let mut input = vec![info("x", DataType::FLOAT, &["batch", "seq", "12"])];
    input.extend(extra);
    let output = outputs.iter().map(|name| ValueInfoProto { name: name.to_string(), ..Default::default() }).collect();
    let graph = GraphProto { input, initializer, node: nodes, output, ..Default::default() };
    let opset = OperatorSetIdProto { version: 18, ..Default::default() };
    let proto =
        ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() };
    Model::from_proto(proto, Path::new("m.onnx")).unwrap()
}

fn private(name: &str) -> Options {
    let mut options = Options::default();
    options.overrides.private.push(name.into());
    options
}

fn public(name: &str) -> Options {
    let mut options = Options::default();
    options.overrides.public.push(name.into());
    options
}

fn errors(model: &Model, options: &Options) -> Vec<Diagnostic> {
    analyse(model, None, options).err().unwrap_or_default()
}

/// The one error of `model`, which names `tensor` and the node that publishes it.
fn refused(model: &Model, options: &Options, code: &str, tensor: &str, at: &str) {
    let errors = errors(model, options);
    let [error] = errors.as_slice() else { panic!("{tensor}: {errors:?}") };
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(&format!("`{tensor}`")), "{error}");
    assert_eq!(error.place.as_deref(), Some(at), "{error}");
}

#[test]
fn a_private_weight_behind_a_public_operator_is_refused() {
    let product = || node("MatMul", &["x", "t"], "y");
    for op in ["Abs", "Floor"] {
        let m = model(vec![], vec![weight("w", &[12, 12])], vec![node(op, &["w"], "t"), product()]);
        refused(&m, &Options::default(), "E0256", "w", &format!("node_{op}_t"));
        refused(&m, &private("w"), "E0256", "w", &format!("node_{op}_t"));
        assert_eq!(errors(&m, &public("w")), [], "{op}");
    }
    let tile = vec![node("Tile", &["w", "n"], "t"), product()];
    let n = TensorProto { data_type: DataType::INT64 as i32, int32_data: vec![], ..bytes("n", &[2], |_| 1) };
    let n = TensorProto { int64_data: vec![1, 1], ..n };
    // What only moves a weight leaves it the server's.
    let m = model(vec![], vec![weight("w", &[12, 12]), n], tile);
    let analysed = analyse(&m, None, &Options::default()).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(analysed.labels.get("w").unwrap().owner, labels::Owner::Private);
    assert!(analysed.graph.iter().any(|(_, n)| matches!(n.op, Op::Weight { .. }) && n.owner == Owner::Server));
    let mask = vec![cast("w", "b", DataType::BOOL), cast("b", "t", DataType::FLOAT), product()];
    refused(&model(vec![], vec![weight("w", &[12, 12])], mask), &Options::default(), "E0256", "w", "node_Cast_b");
}

#[test]
fn a_base_makes_published_weights_public() {
    let nodes = || vec![node("Abs", &["w"], "t"), node("MatMul", &["x", "t"], "y")];
    let m = model(vec![], vec![weight("w", &[12, 12])], nodes());
    assert!(analyse(&m, Some(&m), &Options::default()).is_ok());
    let errors = analyse(&m, Some(&m), &private("w")).err().unwrap();
    assert_eq!(errors[0].code, "E0256");
}

#[test]
fn angles_are_structure_unless_they_are_private_or_weights_too() {
    let rotary = || vec![node("Mul", &["w", "w"], "a"), node("Cos", &["a"], "t")];
    let with = |last: Vec<NodeProto>| {
        let nodes = rotary().into_iter().chain(last).collect();
        model(vec![], vec![weight("w", &[12])], nodes)
    };
    let m = with(vec![node("Mul", &["x", "t"], "y")]);
    let analysed = analyse(&m, None, &Options::default()).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(analysed.labels.get("w").unwrap().owner, labels::Owner::Public);
    refused(&m, &private("w"), "E0256", "w", "node_Cos_t");
    let twice = with(vec![node("Mul", &["x", "t"], "z"), node("Mul", &["z", "w"], "y")]);
    refused(&twice, &Options::default(), "E0256", "w", "node_Cos_t");
    let other = with(vec![node("Abs", &["w"], "s"), node("Mul", &["x", "t"], "z"), node("Mul", &["z", "s"], "y")]);
    refused(&other, &Options::default(), "E0256", "w", "node_Abs_s");
}

#[test]
fn constants_of_nodes_are_weights_too() {
    let floats = AttributeProto {
        name: "value_floats".into(),
        floats: trained(12),
        type_: AttributeType::FLOATS.into(),
        ..Default::default()
    };
    let tensor = AttributeProto {
        name: "value".into(),
        t: Some(weight("", &[12])).into(),
        type_: AttributeType::TENSOR.into(),
        ..Default::default()
    };
    for attribute in [floats, tensor] {
        let m = model(vec![], vec![], vec![constant(attribute.clone(), "w"), node("Mul", &["x", "w"], "y")]);
        let analysed = analyse(&m, None, &Options::default()).unwrap_or_else(|e| panic!("{e:?}"));
        let kept = analysed.graph.iter().find(|(_, n)| matches!(&n.op, Op::Weight { name, .. } if name == "w"));
        assert_eq!(kept.unwrap().1.owner, Owner::Server);
        let published = vec![constant(attribute, "w"), node("Abs", &["w"], "t"), node("Mul", &["x", "t"], "y")];
        refused(&model(vec![], vec![], published), &Options::default(), "E0256", "w", "node_Abs_t");
    }
}

#[test]
fn a_scalar_is_public_unless_it_is_named_private() {
    let m = model(vec![], vec![weight("s", &[])], vec![node("Mul", &["x", "s"], "y")]);
    assert_eq!(errors(&m, &Options::default()), []);
    let errors = errors(&m, &private("s"));
    assert_eq!(errors[0].code, "E0256");
}

#[test]
fn an_integer_weight_is_refused_until_it_is_public() {
    let product = |w: &str| vec![cast(w, "t", DataType::FLOAT), node("MatMul", &["x", "t"], "y")];
    let noise = |i: i32| (i.wrapping_mul(1_103_515_245) >> 16) % 128;
    let m = model(vec![], vec![bytes("w", &[12, 12], noise)], product("w"));
    refused(&m, &Options::default(), "E0257", "w", "node_Cast_t");
    refused(&m, &private("w"), "E0257", "w", "node_Cast_t");
    assert_eq!(errors(&m, &public("w")), []);
    assert!(analyse(&m, Some(&m), &Options::default()).is_ok());
    let other = model(vec![], vec![bytes("w", &[12, 12], |i| noise(i + 1))], product("w"));
    assert_eq!(analyse(&m, Some(&other), &Options::default()).err().unwrap()[0].code, "E0257");
    // Movement and arithmetic on the way do not hide it.
    let transposed = std::iter::once(node("Transpose", &["w"], "u")).chain(product("u")).collect();
    let hidden = model(vec![], vec![bytes("w", &[12, 12], noise)], transposed);
    refused(&hidden, &Options::default(), "E0257", "w", "node_Cast_t");
    // As a value of a node: a table of integers looked up by the client.
    let ids = info("ids", DataType::INT64, &["batch", "seq"]);
    let looked_up =
        vec![node("Gather", &["w", "ids"], "g"), cast("g", "t", DataType::FLOAT), node("Add", &["x", "t"], "y")];
    let m = model(vec![ids], vec![bytes("w", &[30, 12], noise)], looked_up);
    refused(&m, &Options::default(), "E0257", "w", "node_Cast_t");
}

#[test]
fn few_integers_and_positions_are_structure() {
    let product = || vec![cast("w", "t", DataType::FLOAT), node("MatMul", &["x", "t"], "y")];
    let positions = model(vec![], vec![bytes("w", &[12, 10], |i| i)], product());
    assert_eq!(errors(&positions, &Options::default()), []);
    let few = model(vec![], vec![bytes("w", &[12, 1], |i| i * i)], product());
    assert_eq!(errors(&few, &Options::default()), []);
}
/// Compiles a model on `x [1, 3, 12]` and the given other inputs.
fn compiled(model: &Model, other: &[(&str, Tensor)], mut options: Options) -> Result<Compiled, Vec<Diagnostic>> {
    let mut inputs = Inputs::from([("x".to_owned(), Tensor::f32(&[1, 3, 12], trained(36)).unwrap())]);
    inputs.extend(other.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())));
    options.calibration = vec![inputs];
    compile(model, None, &options)
}

#[test]
fn a_mask_is_the_clients_until_it_is_declared_public() {
    let keep = Tensor::bool(&[1, 3, 12], vec![true; 36]).unwrap();
    let masked = |name: &str| {
        let huge = TensorProto { float_data: vec![-1e30], ..weight("huge", &[]) };
        let nodes = vec![
            node("MatMul", &["x", "w"], "s"),
            node("Where", &[name, "s", "huge"], "m"),
            NodeProto { attribute: vec![int("axis", -1)], ..node("Softmax", &["m"], "y") },
        ];
        let mask = info(name, DataType::BOOL, &["batch", "seq", "12"]);
        model(vec![mask], vec![weight("w", &[12, 12]), huge], nodes)
    };
    let m = masked("keep");
    let errors = compiled(&m, &[("keep", keep.clone())], Options::default()).err().unwrap();
    assert_eq!(errors[0].code, "E0259", "{errors:?}");
    assert!(errors[0].notes.iter().any(|n| n.contains("--public-input keep")), "{errors:?}");
    let mut options = Options::default();
    options.sizes.public_inputs.insert("keep".into());
    let done = compiled(&m, &[("keep", keep)], options.clone()).unwrap_or_else(|e| panic!("{e:?}"));
    let report = inspect(&done.plan, &Default::default()).unwrap();
    assert_eq!(
        (report.public_inputs.as_slice(), report.revealed.as_slice()),
        (&["keep".into()][..], &["y".into()][..])
    );
    let text = report.text(By::Kind);
    assert!(text.contains("client  learns y\n"), "{text}");
    assert!(text.contains("others  learn the contents of keep, lengths, and the number of generated tokens"), "{text}");
    options.sizes.public_inputs.insert("no_such_input".into());
    assert_eq!(analyse(&m, None, &options).err().unwrap()[0].code, "E0255");
}

#[test]
fn tokens_and_caches_cannot_be_declared_public() {
    let model = corpus("gpt2-optimum-past");
    for name in ["input_ids", "past_key_values.0.key"] {
        let mut options = Options::default();
        options.sizes.public_inputs.insert(name.into());
        let errors = analyse(&model, None, &options).err().unwrap();
        assert_eq!(errors[0].code, "E0255", "{name}: {errors:?}");
    }
}

#[test]
fn hidden_states_and_caches_are_revealed_on_request_alone() {
    let nodes = || {
        vec![
            node("MatMul", &["x", "w"], "scores"),
            node("Add", &["scores", "b"], "last_hidden_state"),
            node("Mul", &["scores", "b"], "present.0.key"),
        ]
    };
    let weights = || vec![weight("w", &[12, 12]), weight("b", &[12])];
    let revealed = |outputs: &[&str], options: Options| {
        compiled(&with_outputs(vec![], weights(), nodes(), outputs), &[], options)
            .map(|c| c.plan.module.outputs.iter().map(|o| o.name.clone()).collect::<Vec<_>>())
    };
    let all = ["last_hidden_state", "scores", "present.0.key"];
    assert_eq!(revealed(&all, Options::default()).unwrap_or_else(|e| panic!("{e:?}")), ["scores"]);
    assert_eq!(revealed(&["last_hidden_state"], Options::default()).unwrap_err()[0].code, "E0551");
    let asked = Options { reveal: vec![Reveal::Output("last_hidden_state".into())], ..Options::default() };
    assert_eq!(revealed(&all, asked).unwrap_or_else(|e| panic!("{e:?}")), ["last_hidden_state"]);
}

#[test]
fn sizes_beyond_the_models_tables_are_refused() {
    let model = corpus("llama-torchscript-op17");
    let mut plan = compile(&model, None, &Options::default()).unwrap_or_else(|e| panic!("{e:?}")).plan;
    let seq = plan.module.dims.find("seq").unwrap();
    plan.limits.push((seq.into(), 20));
    assert_eq!(inspect(&plan, &[("seq".to_owned(), 20)].into()).unwrap().dims["seq"], 20);
    let error = inspect(&plan, &[("seq".to_owned(), 21)].into()).unwrap_err();
    assert_eq!(error.code, "E0407", "{error}");
    assert_eq!(inspect(&plan, &Default::default()).unwrap().dims["seq"], 16, "the default fits");
}

#[test]
fn a_configuration_limits_new_and_cached_tokens_together() {
    let model = corpus("qwen2-optimum-past");
    let mut options = Options { assume: true, ..Options::default() };
    options.sizes.positions = Some(24);
    let plan = compile(&model, None, &options).unwrap_or_else(|e| panic!("{e:?}")).plan;
    let at = |seq, past| inspect(&plan, &[("seq".to_owned(), seq), ("past".to_owned(), past)].into());
    assert!(at(8, 16).is_ok());
    let error = at(9, 16).unwrap_err();
    assert_eq!(error.code, "E0407", "{error}");
    let seq = plan.module.dims.find("seq").and_then(|sym| plan.module.dims.info(sym)).and_then(|info| info.max);
    assert_eq!(seq, Some(24));
    // What the user says holds.
    options.sizes.max.insert("seq".into(), 40);
    let plan = compile(&model, None, &options).unwrap_or_else(|e| panic!("{e:?}")).plan;
    assert!(inspect(&plan, &[("seq".to_owned(), 40), ("past".to_owned(), 0)].into()).is_ok());
}

#[test]
fn a_private_tensor_in_a_public_file_stops_the_compiler() {
    let (tuned, base) = (corpus("llama-trained/lora"), corpus("llama-trained/base"));
    let folder = Folder::new("privacy-leak");
    let mut compiled = compile(&tuned, Some(&base), &Options::default()).unwrap_or_else(|e| panic!("{e:?}"));
    output::write(&mut compiled, &tuned, &[], &folder.0).unwrap();
    assert!(folder.0.join("public/plan.ombra").exists());
    let labels = compiled.labels.tensors.clone();
    let private = labels.iter().find(|l| l.owner == labels::Owner::Private && l.shape.len() == 2).unwrap();
    let tensor = load_weight(&tuned, &private.name).unwrap();
    let (values, columns) = (tensor.as_f32().unwrap(), tensor.shape()[1]);
    let row: Vec<u8> = values.iter().take(600).flat_map(|v| v.to_le_bytes()).collect();
    let column: Vec<u8> = values.iter().step_by(columns).flat_map(|v| v.to_le_bytes()).collect();
    for stolen in [row, column] {
        let file = folder.0.join("tokenizer");
        std::fs::write(&file, [vec![7; 33], stolen].concat()).unwrap();
        let error = output::write(&mut compiled, &tuned, &[(folder::TOKENIZER, file)], &folder.0).unwrap_err();
        assert_eq!(error.code, "E0549", "{error}");
        assert!(error.message.contains(&private.name), "{error}");
        assert!(!folder.0.join("public/plan.ombra").exists());
        assert!(!folder.0.join("public/tokenizer.json").exists());
    }
}
