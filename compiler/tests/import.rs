//! Imports every model of the corpus and compares the graph's meaning with ONNX Runtime's outputs.
//!
//! `OMBRA_MODELS` names another folder of models in place of the repository's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ombra_compiler::graph::{Graph, InputRole, Op, OutputRole, Owner, TensorOp, eval, propagate_owners};
use ombra_compiler::import::recognise::recognise;
use ombra_compiler::import::{Options, dtype_of, import, load_weight};
use ombra_compiler::onnx::{Model, shape};
use ombra_ir::plain::{Binary, DType, Tensor};
use onnx_protobuf::{Message, TensorProto};

fn corpus() -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    std::env::var_os("OMBRA_MODELS").map_or_else(here, PathBuf::from)
}

/// Folders with a model, in order of name.
fn models(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries.into_iter().filter(|p| p.is_dir()) {
        if path.join("model.onnx").exists() {
            found.push(path);
        } else {
            found.extend(models(&path));
        }
    }
    found
}

fn tensors(model: &Model, set: &Path, kind: &str) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for i in 0.. {
        let Ok(bytes) = std::fs::read(set.join(format!("{kind}_{i}.pb"))) else { break };
        let proto = TensorProto::parse_from_bytes(&bytes).unwrap();
        let shape = shape(&proto).unwrap();
        let tensor = match dtype_of(proto.data_type).unwrap() {
            DType::F32 => Tensor::f32(&shape, model.floats(&proto).unwrap()),
            DType::I64 => Tensor::i64(&shape, model.ints(&proto).unwrap()),
            DType::Bool => Tensor::bool(&shape, model.ints(&proto).unwrap().iter().map(|x| *x != 0).collect()),
        };
        out.insert(proto.name.clone(), tensor.unwrap());
    }
    out
}

/// Largest difference of all outputs on one test set; positions the attention mask leaves out do not count.
fn largest_error(model: &Model, graph: &Graph, set: &Path) -> f32 {
    let inputs = tensors(model, set, "input");
    let expected = tensors(model, set, "output");
    let weights = |name: &str| load_weight(model, name);
    let results = eval::evaluate(graph, &weights, &inputs).unwrap_or_else(|e| panic!("{}: {e}", set.display()));
    let mask = inputs.get("attention_mask");
    let mut worst = 0.0f32;
    for (output, result) in graph.outputs.iter().zip(&results) {
        let reference = &expected[&output.name];
        assert_eq!(result.shape(), reference.shape(), "{}: {}", set.display(), output.name);
        let (found, wanted) = (result.as_f32().unwrap(), reference.as_f32().unwrap());
        // The axis of tokens, and how many axes come between it and the batch.
        let (between, tokens, inner) = match (&output.role, reference.shape()) {
            (OutputRole::Logits, [_, s, v]) => (1, *s, *v),
            (OutputRole::PresentKey { .. } | OutputRole::PresentValue { .. }, [_, h, t, d]) => (*h, *t, *d),
            _ => (1, 1, found.len().max(1)),
        };
        for (i, (x, y)) in found.iter().zip(wanted).enumerate() {
            let token = i / inner % tokens;
            let batch = i / inner / tokens / between;
            let counts = match mask {
                Some(m) if m.shape()[1] >= tokens && tokens > 1 => {
                    let total = m.shape()[1];
                    m.as_i64().unwrap()[batch * total + total - tokens + token] == 1
                }
                _ => true,
            };
            if counts {
                assert!(x.is_finite(), "{}: {} is {x}", set.display(), output.name);
                worst = worst.max((x - y).abs());
            }
        }
    }
    worst
}

/// Operators that only parts of norms, activations, masks and guards have in the corpus.
const LEFT_OVER: [&str; 8] = ["sigmoid", "erf", "sqrt", "reciprocal", "reduce_mean", "is_nan", "softmax", "pow"];

fn sets(folder: &Path) -> Vec<PathBuf> {
    (0..).map(|k| folder.join(format!("test_data_set_{k}"))).take_while(|p| p.exists()).collect()
}

#[test]
fn corpus_has_the_meaning_of_onnx_runtime() {
    let root = corpus();
    let mut failures = Vec::new();
    let found = models(&root);
    assert!(found.len() >= 10, "the corpus is in {}", root.display());
    for folder in found {
        let name = folder.strip_prefix(&root).unwrap().display().to_string();
        let model = Model::read(&folder.join("model.onnx")).unwrap();
        let imported = match import(&model, &Options::default()) {
            Ok(imported) => imported,
            Err(errors) => {
                failures.push(format!("{name}: {} nodes are not imported", errors.len()));
                failures.extend(errors.iter().take(4).map(|e| format!("    {e}")));
                continue;
            }
        };
        let mut graph = imported.graph;
        let before = graph.len();
        let worst = sets(&folder).iter().map(|set| largest_error(&model, &graph, set)).fold(0.0, f32::max);
        let found = recognise(&mut graph, &|name| load_weight(&model, name)).unwrap();
        let after = sets(&folder).iter().map(|set| largest_error(&model, &graph, set)).fold(0.0, f32::max);
        println!("{name}: {before} nodes, error {worst:e}; recognised {} nodes, error {after:e}", graph.len());
        for near in found.iter().filter(|f| f.near_miss.is_some()) {
            println!("    {near:?}");
        }
        if !(worst <= 1e-3 && after <= 1e-3) {
            failures.push(format!("{name}: error {worst:e}, {after:e} when recognised"));
        }
        let left: Vec<_> = graph.iter().map(|(_, n)| n.op.name()).filter(|n| LEFT_OVER.contains(n)).collect();
        if !left.is_empty() {
            failures.push(format!("{name}: not recognised: {left:?}"));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn sizes_and_roles_follow_from_the_inputs() {
    for name in ["llama-trained/base", "llama-pair/base", "gpt2-optimum-past"] {
        let model = Model::read(&corpus().join(name).join("model.onnx")).unwrap();
        let graph = import(&model, &Options::default()).unwrap().graph;
        let symbols: Vec<_> = graph.dims.syms.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(symbols, ["batch", "past", "seq"], "{name}");
        let logits = graph.outputs.iter().find(|o| o.role == OutputRole::Logits).unwrap();
        assert!(graph.dims.show_shape(graph.shape(logits.value)).starts_with("[batch, seq, "), "{name}");
        for output in &graph.outputs {
            if let OutputRole::PresentKey { layer, past } | OutputRole::PresentValue { layer, past } = &output.role {
                let past = past.as_deref().unwrap();
                assert!(past.starts_with(&format!("past_key_values.{layer}.")), "{name}: {past}");
                assert_eq!(graph.dims.show(&graph.shape(output.value)[2]), "past + seq", "{name}");
                assert_eq!(graph.node(output.value).unwrap().origin.layer, Some(*layer), "{name}");
            }
        }
        let mask =
            graph.iter().find(|(_, n)| matches!(n.op, Op::Input { role: InputRole::AttentionMask, .. })).unwrap().1;
        assert_eq!(graph.dims.show_shape(&mask.shape), "[batch, past + seq]", "{name}");
    }
}

#[test]
fn sizes_can_be_bound() {
    let model = Model::read(&corpus().join("llama-trained/base/model.onnx")).unwrap();
    let bound = |list: &[(&str, u64)]| Options {
        dims: list.iter().map(|(n, v)| (n.to_string(), *v)).collect(),
        ..Options::default()
    };
    let graph = import(&model, &bound(&[("batch", 1), ("sequence", 4), ("past", 3)])).unwrap().graph;
    assert!(graph.dims.syms.is_empty());
    let logits = graph.outputs.iter().find(|o| o.role == OutputRole::Logits).unwrap();
    assert_eq!(graph.dims.show_shape(graph.shape(logits.value)), "[1, 4, 320]");
    let errors = import(&model, &bound(&[("no_such_size", 1)])).unwrap_err();
    assert_eq!(errors[0].code, "E0255");
}

#[test]
fn masks_become_truth_values_without_a_bias() {
    for name in ["llama-trained/base", "llama-pair/lora", "gpt2-pair/base", "llama-gqa-dynamo-op18"] {
        let model = Model::read(&corpus().join(name).join("model.onnx")).unwrap();
        let mut graph = import(&model, &Options::default()).unwrap().graph;
        recognise(&mut graph, &|name| load_weight(&model, name)).unwrap();
        for (id, node) in graph.iter().filter(|(_, n)| matches!(n.op, Op::MaskedSoftmax { .. })) {
            let scores = graph.operand(id, 0).unwrap();
            assert!(
                !matches!(graph.op(scores), Some(Op::Tensor(TensorOp::Binary(Binary::Add)))),
                "{name}: {:?}",
                node.origin
            );
            let mask = graph.node(graph.operand(id, 1).unwrap()).unwrap();
            assert_eq!((mask.dtype, mask.owner), (DType::Bool, Owner::Public), "{name}");
        }
    }
}

#[test]
fn owners_follow_labels() {
    let model = Model::read(&corpus().join("llama-trained/frozen/model.onnx")).unwrap();
    let labels = std::fs::read_to_string(corpus().join("llama-trained/frozen/labels.json")).unwrap();
    let labels: serde_json::Value = serde_json::from_str(&labels).unwrap();
    let public: Vec<&str> = labels["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["label"] == "public")
        .map(|t| t["tensor"].as_str().unwrap())
        .collect();
    let mut graph = import(&model, &Options::default()).unwrap().graph;
    recognise(&mut graph, &|name| load_weight(&model, name)).unwrap();
    propagate_owners(
        &mut graph,
        |_, role| Owner::of_input(role),
        |name| if public.contains(&name) { Owner::Public } else { Owner::Server },
    );
    let mut seen = BTreeMap::new();
    for (_, node) in graph.iter().filter(|(_, n)| matches!(n.op, Op::RmsNorm { .. })) {
        seen.entry(node.origin.layer).or_insert_with(Vec::new).push(node.owner);
    }
    // Layers 0 and 1 are the public base model's; what follows the first private layer is secret.
    assert_eq!(seen[&Some(0)], [Owner::Client, Owner::Client]);
    assert_eq!(seen[&Some(1)], [Owner::Client, Owner::Client]);
    assert_eq!(seen[&Some(3)], [Owner::Secret, Owner::Secret]);
    assert_eq!(seen[&None], [Owner::Secret]);
}

/// Queries and keys of every layer are rotated, whatever the exporter wrote: halves apart or one operator, angles computed
/// or from tables.
#[test]
fn rotary_embeddings_are_recognised_in_every_form() {
    let root = corpus();
    let mut seen = 0;
    for folder in models(&root) {
        let name = folder.strip_prefix(&root).unwrap().display().to_string();
        let model = Model::read(&folder.join("model.onnx")).unwrap();
        let mut graph = import(&model, &Options::default()).unwrap().graph;
        let found = recognise(&mut graph, &|name| load_weight(&model, name)).unwrap();
        let rotary: Vec<_> = found.iter().filter(|f| f.pattern == "rotary").collect();
        let attention = graph.iter().filter(|(_, n)| n.op.name().ends_with("softmax")).count();
        let rotates = ["llama", "mistral", "qwen"].iter().any(|family| name.starts_with(family));
        assert_eq!(rotary.len(), if rotates { 2 * attention } else { 0 }, "{name}: {attention} layers, {rotary:?}");
        assert!(rotary.iter().all(|f| f.near_miss.is_none()), "{name}: {rotary:?}");
        // Of the exports with tables one slices them by the lengths, and one has them folded.
        if matches!(name.as_str(), "llama-optimum-1.10" | "llama-dynamo-op20-fixed-ids") {
            assert!(rotary.iter().any(|f| !f.published.is_empty()), "{name}: {rotary:?}");
        }
        seen += usize::from(rotates);
    }
    assert!(seen >= 15, "{seen} models rotate");
}
