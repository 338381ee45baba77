//! What exporters write, evaluated in single precision beside what ONNX Runtime computes; `tests/data/exporters` has the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ombra_compiler::graph::{self, Op, TensorOp, eval};
use ombra_compiler::import::recognise::recognise;
use ombra_compiler::import::{Options, dtype_of, import, load_weight};
use ombra_compiler::onnx::{Model, shape};
use ombra_compiler::pipeline;
use ombra_compiler::secrecy::labels::{Overrides, Owner, label};
use ombra_ir::plain::{Binary, DType, Data, Tensor, Unary};
use onnx_protobuf::{Message, TensorProto};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/exporters").join(name)
}

fn tensors(model: &Model, folder: &Path, kind: &str) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for i in 0.. {
        let Ok(bytes) = std::fs::read(folder.join(format!("{kind}_{i}.pb"))) else { break };
        let proto = TensorProto::parse_from_bytes(&bytes).unwrap();
        let shape = shape(&proto).unwrap();
        let tensor = match dtype_of(proto.data_type).unwrap() {
            DType::F32 => Tensor::f32(&shape, model.floats(&proto).unwrap()),
            DType::I64 => Tensor::i64(&shape, model.ints(&proto).unwrap()),
            DType::Bool => Tensor::bool(&shape, model.ints(&proto).unwrap().iter().map(|v| *v != 0).collect()),
        };
        out.insert(proto.name.clone(), tensor.unwrap());
    }
    out
}

/// The maximum difference of an element from the expected one; of positions that the mask leaves out none.
fn difference(found: &Tensor, wanted: &Tensor, mask: Option<&Tensor>) -> f32 {
    assert_eq!(found.shape(), wanted.shape());
    let width: usize = wanted.shape().iter().skip(2).product();
    let mask = mask.filter(|m| wanted.rank() > 2 && wanted.shape().starts_with(m.shape()));
    let kept = |i: usize| mask.is_none_or(|m| m.as_i64().unwrap()[i / width] != 0);
    match (found.data(), wanted.data()) {
        (Data::F32(a), Data::F32(b)) => {
            let pairs = a.iter().zip(b).enumerate().filter(|(i, _)| kept(*i));
            // What is no number is no small difference.
            pairs.map(|(_, (a, b))| (a - b).abs()).fold(0.0, |m, d| if d <= m { m } else { d })
        }
        (a, b) => {
            assert_eq!(a, b);
            0.0
        }
    }
}

/// The maximum difference over all outputs and test sets of a folder.
fn evaluated(folder: &Path) -> Result<f32, String> {
    let model = Model::read(&folder.join("model.onnx")).map_err(|e| e.to_string())?;
    let imported = import(&model, &Options::default());
    let imported = imported.map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect::<String>())?;
    let mut graph = imported.graph;
    let weights = |name: &str| load_weight(&model, name);
    recognise(&mut graph, &weights).map_err(|e| e.to_string())?;
    let mut worst = 0.0f32;
    for set in 0.. {
        let data = folder.join(format!("test_data_set_{set}"));
        if !data.exists() {
            assert!(set > 0, "{} has no test sets", folder.display());
            break;
        }
        let (inputs, wanted) = (tensors(&model, &data, "input"), tensors(&model, &data, "output"));
        let found = eval::evaluate(&graph, &weights, &inputs).map_err(|e| e.to_string())?;
        assert_eq!(found.len(), wanted.len());
        for (found, output) in found.iter().zip(&graph.outputs) {
            worst = worst.max(difference(found, &wanted[&output.name], inputs.get("attention_mask")));
        }
    }
    Ok(worst)
}

/// Every case, and how far its results may be from ONNX Runtime's.
const CASES: &[(&str, f32)] = &[
    ("bert_class-dynamo", 0.0),
    ("cohere-optimum", 2e-5),
    ("deberta-optimum", 2e-5),
    ("dora", 2e-5),
    ("if-branches", 1e-5),
    ("indices", 0.0),
    ("mpnet-dynamo", 2e-5),
    ("nested-functions", 1e-6),
    ("patches", 1e-5),
    ("positions-from-ids", 1e-5),
    ("quantised-4-bits", 2e-5),
    ("quantised-4-bits-symmetric", 2e-5),
    ("quantised-8-bits", 2e-4),
    ("quantised-dynamic", 2e-5),
    ("quantised-dynamic-channels", 2e-5),
    ("quantised-linear", 2e-5),
    ("quantised-static", 2e-5),
    ("roberta-optimum", 2e-5),
    ("sliding-window", 1e-5),
    ("st_pool-dynamo", 2e-5),
    ("t5enc-dynamo", 2e-5),
];

#[test]
fn results_are_those_of_onnx_runtime() {
    let mut wrong = Vec::new();
    for (name, tolerance) in CASES {
        match evaluated(&folder(name)) {
            Ok(error) if error <= *tolerance => println!("{name}: {error}"),
            Ok(error) => wrong.push(format!("{name}: an error of {error}, expected at most {tolerance}")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read(name: &str) -> Model {
    Model::read(&folder(name).join("model.onnx")).unwrap()
}

fn owners(tuned: &Model, base: Option<&Model>) -> BTreeMap<String, Owner> {
    let labels = label(tuned, base, &Overrides::default()).unwrap();
    labels.tensors.into_iter().filter(|l| l.shape.len() == 2).map(|l| (l.name, l.owner)).collect()
}

/// Quantised weights have owners by the numbers that they stand for, and the names of their integers.
#[test]
fn quantised_weights_are_public_where_the_base_has_them() {
    for name in ["quantised-4-bits", "quantised-8-bits", "quantised-linear", "quantised-dynamic"] {
        let model = read(name);
        assert!(model.is_quantised());
        assert!(owners(&model, None).values().all(|o| *o == Owner::Private), "{name}");
        let same = owners(&model, Some(&read(name)));
        assert!(same.len() >= 3, "{name}: {same:?}");
        assert!(same.keys().all(|k| k.starts_with("embed") || k.starts_with("layers.0.")), "{name}: {same:?}");
        assert!(same.values().all(|o| *o == Owner::Public), "{name}: {same:?}");
    }
    // Another scale makes other numbers of the same integers.
    let mut proto = onnx_protobuf::ModelProto::parse_from_bytes(
        &std::fs::read(folder("quantised-4-bits").join("model.onnx")).unwrap(),
    )
    .unwrap();
    let scale =
        proto.graph.mut_or_insert_default().initializer.iter_mut().find(|t| t.name == "layers.0.up.scale").unwrap();
    scale.raw_data[2] ^= 1;
    let tuned = Model::from_proto(proto, Path::new("tuned.onnx")).unwrap();
    let owners = owners(&tuned, Some(&read("quantised-4-bits")));
    let private: Vec<_> = owners.iter().filter(|(_, o)| **o == Owner::Private).map(|(name, _)| name.as_str()).collect();
    assert_eq!(private, ["layers.0.up.weight_q"]);
}

/// A quantised weight whose parts do not go together is one error, whatever is wrong.
#[test]
fn broken_quantised_weights_are_refused() {
    let bytes = std::fs::read(folder("quantised-linear").join("model.onnx")).unwrap();
    for (name, dims) in [("layers.0.up.scale", vec![6, 8]), ("layers.0.down.scale", vec![96])] {
        let mut proto = onnx_protobuf::ModelProto::parse_from_bytes(&bytes).unwrap();
        let tensor = proto.graph.mut_or_insert_default().initializer.iter_mut().find(|t| t.name == name).unwrap();
        tensor.dims = dims;
        let error = Model::from_proto(proto, Path::new("broken.onnx")).err().unwrap();
        assert_eq!(error.code, "E0123", "{error}");
    }
}

/// The norms of a weight-decomposed adapter depend on weights alone: the server takes them when it encodes.
#[test]
fn norms_of_adapters_are_the_servers() {
    let model = read("dora");
    let analysed = pipeline::analyse(&model, None, &pipeline::Options::default());
    let analysed = analysed.unwrap_or_else(|errors| panic!("{}", errors[0]));
    let owner = |op: &dyn Fn(&Op) -> bool| {
        analysed.graph.iter().filter(|(_, n)| op(&n.op)).map(|(_, n)| n.owner).collect::<Vec<_>>()
    };
    assert_eq!(owner(&|op| matches!(op, Op::Tensor(TensorOp::Unary(Unary::Sqrt)))), [graph::Owner::Server]);
    assert_eq!(owner(&|op| matches!(op, Op::Tensor(TensorOp::Binary(Binary::Div)))), [graph::Owner::Server]);
}

/// Positions that are counted from the token ids are the client's integers, and it looks up its rows by them.
#[test]
fn computed_ids_look_up_rows() {
    let model = read("positions-from-ids");
    let options = pipeline::Options::default();
    let compiled = pipeline::compile(&model, None, &options).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let integers = compiled.plan.module.inputs.iter().filter(|i| i.dtype == DType::I64).count();
    assert_eq!(integers, 2, "tokens and positions");
    let region = compiled.client_model.expect("the client counts");
    assert!(region.proto.graph.node.iter().any(|n| n.op_type == "CumSum"));
}

fn refusal(inputs: &[(&str, i32)], condition: &str) -> Vec<String> {
    use onnx_protobuf::{NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto};
    let info = |(name, kind): &(&str, i32)| {
        let dim = || tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(1)),
            ..Default::default()
        };
        let shape = TensorShapeProto { dim: vec![dim()], ..Default::default() };
        let tensor = type_proto::Tensor { elem_type: *kind, shape: Some(shape).into(), ..Default::default() };
        let value = Some(type_proto::Value::TensorType(tensor));
        let type_ = Some(TypeProto { value, ..Default::default() }).into();
        ValueInfoProto { name: (*name).into(), type_, ..Default::default() }
    };
    let node = |op: &str, input: &str, output: &str| NodeProto {
        op_type: op.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        ..Default::default()
    };
    let mut proto = onnx_protobuf::ModelProto::new();
    proto.opset_import.push(onnx_protobuf::OperatorSetIdProto { version: 20, ..Default::default() });
    let graph = proto.graph.mut_or_insert_default();
    graph.input = inputs.iter().map(info).collect();
    let branch = |op: &str| onnx_protobuf::GraphProto {
        node: vec![node(op, inputs[0].0, "y")],
        output: vec![info(&("y", 1))],
        ..Default::default()
    };
    let mut chosen = node("If", condition, "y");
    for (name, op) in [("then_branch", "Neg"), ("else_branch", "Abs")] {
        let g = Some(branch(op)).into();
        let type_ = onnx_protobuf::attribute_proto::AttributeType::GRAPH.into();
        chosen.attribute.push(onnx_protobuf::AttributeProto { name: name.into(), g, type_, ..Default::default() });
    }
    graph.node.push(chosen);
    graph.output = vec![info(&("y", 1))];
    let model = Model::from_proto(proto, Path::new("case.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let errors = import(&model, &Options::default()).err().unwrap();
    errors.iter().map(|e| format!("{e}")).collect()
}

#[test]
fn what_is_not_supported_is_said_once() {
    // The elements decide, and they are the client's.
    let errors = refusal(&[("x", 1), ("use_cache_branch", 9)], "use_cache_branch");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("E0252") && errors[0].contains("--dim use_cache_branch=N"), "{errors:?}");
    for other in ["decoder_input_ids", "past_key_values.0.encoder.key"] {
        let errors = refusal(&[("x", 1), ("input_ids", 7), (other, 7), ("c", 9)], "c");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("E0258") && errors[0].contains(other), "{errors:?}");
    }
}
