//! Fused operators of `com.microsoft`, one to a model, with what ONNX Runtime computes; `tests/data/operators` has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ombra_compiler::graph::{Graph, Op, eval};
use ombra_compiler::import::recognise::recognise;
use ombra_compiler::import::{Imported, Options, dtype_of, import, load_weight};
use ombra_compiler::onnx::{Model, shape};
use ombra_ir::plain::{DType, Tensor};
use onnx_protobuf::{Message, TensorProto};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/operators")
}

fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<String> =
        entries.filter(|p| p.is_dir()).map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn read(name: &str) -> Model {
    Model::read(&folder().join(name).join("model.onnx")).unwrap()
}

fn imported(name: &str) -> (Model, Imported) {
    let model = read(name);
    let result = import(&model, &Options::default());
    let imported = result.unwrap_or_else(|errors| panic!("{name}: {}", errors[0]));
    (model, imported)
}

fn tensors(model: &Model, name: &str, kind: &str) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for i in 0.. {
        let path = folder().join(name).join(format!("test_data_set_0/{kind}_{i}.pb"));
        let Ok(bytes) = std::fs::read(path) else { break };
        let proto = TensorProto::parse_from_bytes(&bytes).unwrap();
        let shape = shape(&proto).unwrap();
        let tensor = match dtype_of(proto.data_type).unwrap() {
            DType::F32 => Tensor::f32(&shape, model.floats(&proto).unwrap()),
            DType::I64 => Tensor::i64(&shape, model.ints(&proto).unwrap()),
            DType::Bool => panic!("no case has booleans"),
        };
        out.insert(proto.name.clone(), tensor.unwrap());
    }
    out
}

/// Maximum difference of all outputs. Tokens that the attention mask leaves out do not count.
fn error(model: &Model, name: &str, graph: &Graph) -> f32 {
    let (inputs, wanted) = (tensors(model, name, "input"), tensors(model, name, "output"));
    let results = eval::evaluate(graph, &|w| load_weight(model, w), &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(results.len(), wanted.len(), "{name}");
    let mask = inputs.get("attention_mask").filter(|m| m.rank() == 2 && name == "grouped-padded");
    let mut worst = 0.0f32;
    for (output, result) in graph.outputs.iter().zip(&results) {
        let reference = &wanted[&output.name];
        assert_eq!(result.shape(), reference.shape(), "{name}: {}", output.name);
        let width = *reference.shape().last().unwrap();
        for (i, (x, y)) in result.as_f32().unwrap().iter().zip(reference.as_f32().unwrap()).enumerate() {
            if mask.is_none_or(|m| m.as_i64().unwrap()[i / width] == 1) {
                worst = worst.max((x - y).abs());
            }
        }
    }
    worst
}

#[test]
fn fused_operators_have_the_meaning_of_onnx_runtime() {
    let cases = cases();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    for name in cases {
        let (model, imported) = imported(&name);
        let mut graph = imported.graph;
        let before = error(&model, &name, &graph);
        recognise(&mut graph, &|w| load_weight(&model, w)).unwrap();
        let after = error(&model, &name, &graph);
        println!("{name}: {} nodes, error {before:e}, recognised {after:e}", graph.len());
        assert!(before <= 2e-5 && after <= 2e-5, "{name}: {before}, {after}");
    }
}

#[test]
fn an_attention_is_one_masked_softmax_whose_mask_is_public() {
    for name in cases().iter().filter(|n| ["attention-", "multihead-mask", "grouped-"].iter().any(|p| n.starts_with(p)))
    {
        let (_, imported) = imported(name);
        let graph = imported.graph;
        let softmax: Vec<_> = graph.iter().filter(|(_, n)| n.op.name().ends_with("softmax")).collect();
        assert_eq!(softmax.len(), 1, "{name}");
        let (id, node) = softmax[0];
        if matches!(name.as_str(), "attention-bias" | "attention-sizes") {
            assert_eq!(node.op, Op::Softmax { axis: 3 }, "{name}");
            continue;
        }
        assert_eq!(node.op, Op::MaskedSoftmax { axis: 3 }, "{name}");
        let mask = graph.node(graph.operand(id, 1).unwrap()).unwrap();
        // Lengths are an input that nobody calls public.
        assert!(mask.owner.name() == "public" || name == "attention-lengths", "{name}: {}", mask.owner.name());
    }
}

#[test]
fn tables_of_angles_become_public_and_others_are_refused() {
    for name in ["grouped-prefill", "grouped-apart", "rotary"] {
        let published: Vec<String> = imported(name).1.published.into_iter().map(|p| p.tensor).collect();
        assert_eq!(published, ["cos", "sin"], "{name}");
        let mut model = read(name);
        let graph = model.proto.graph.as_mut().unwrap();
        let cos = graph.initializer.iter_mut().find(|t| t.name == "cos").unwrap();
        cos.raw_data[..4].copy_from_slice(&3.0f32.to_le_bytes());
        let errors = import(&model, &Options::default()).unwrap_err();
        assert!(errors[0].message.contains("not cosines and sines"), "{name}: {}", errors[0]);
    }
}

/// Every attribute of every node, and every size of an input, set to numbers that no model has.
#[test]
fn absurd_attributes_and_shapes_are_errors() {
    for name in cases() {
        let count = read(&name).proto.graph.node.iter().map(|n| n.attribute.len()).sum::<usize>();
        for at in 0..count {
            for value in [0, -1, 3, 1 << 40, i64::MIN, i64::MAX] {
                let mut model = read(&name);
                let graph = model.proto.graph.as_mut().unwrap();
                let attribute = graph.node.iter_mut().flat_map(|n| &mut n.attribute).nth(at).unwrap();
                (attribute.i, attribute.f, attribute.ints) = (value, value as f32, vec![value; 3]);
                let _ = import(&model, &Options::default());
            }
        }
        let sizes = read(&name).proto.graph.input.len();
        for at in 0..sizes {
            for axis in 0..5 {
                let mut model = read(&name);
                let input = &mut model.proto.graph.as_mut().unwrap().input[at];
                let shape = input.type_.as_mut().unwrap().mut_tensor_type().shape.as_mut().unwrap();
                match shape.dim.get_mut(axis) {
                    Some(dim) => dim.set_dim_value(7919),
                    None => shape.dim.push(Default::default()),
                }
                let result = import(&model, &Options::default());
                assert!(result.is_ok() || !result.unwrap_err().is_empty());
            }
        }
        // Operands that are missing.
        for keep in 0..3 {
            let mut model = read(&name);
            model.proto.graph.as_mut().unwrap().node.last_mut().unwrap().input.truncate(keep);
            let errors = import(&model, &Options::default()).err().unwrap_or_default();
            assert!(keep > 0 || !errors.is_empty(), "{name} without operands");
        }
    }
}
