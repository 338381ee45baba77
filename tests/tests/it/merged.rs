//! Merged heads: files as ONNX Runtime ran them, attention as its formula says, costs that fall by the factor.

use std::collections::BTreeMap;

use ombra_compiler::attention::{Attention, attentions, describe};
use ombra_compiler::graph::{Graph, eval};
use ombra_compiler::import::load_weight;
use ombra_compiler::inspect::{Report, inspect};
use ombra_compiler::merge_heads::find::mergeable;
use ombra_compiler::merge_heads::{Grouping, Merged, Options, merge_heads, write};
use ombra_compiler::onnx::{ExternalWriter, Model, write_model};
use ombra_compiler::pipeline::{self, analyse};
use ombra_compiler::ranges::calibrate::drawn_inputs;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_runtime::app::inputs::{find, infer_request};
use ombra_runtime::app::tensor_file;
use ombra_tests::built::{Built, Folder, build, build_model, logits};
use ombra_tests::corpus::{self, test_set};
use ombra_tests::logits::max_error;
use ombra_tests::parties;
use onnx_protobuf::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Maximum error of a logit of a secret run.
const TOLERANCE: f64 = 0.02;

fn data(file: &str) -> Value {
    let path = format!("{}/data/merged/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn merge(model: &Model, base: Option<&Model>, factor: usize, grouping: Grouping) -> Merged {
    let options = Options { factor, grouping, analysis: pipeline::Options::default() };
    merge_heads(model, base, &options).unwrap_or_else(|e| panic!("{}: {}", model.path.display(), e[0]))
}

/// A merged model as if it were read from its file.
fn read_again(merged: &Merged, model: &Model) -> Model {
    Model::from_proto(merged.proto.clone(), &model.path).expect("what is written can be read")
}

fn graph_of(model: &Model, base: Option<&Model>) -> Graph {
    analyse(model, base, &pipeline::Options::default()).unwrap_or_else(|e| panic!("{}", e[0])).graph
}

/// The outputs of a model in the clear, by name.
fn outputs(model: &Model, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let graph = graph_of(model, None);
    let tensors = eval::evaluate(&graph, &|name: &str| load_weight(model, name), inputs).expect("it can be evaluated");
    graph.outputs.iter().map(|o| o.name.clone()).zip(tensors).collect()
}

fn reals(tensor: &Tensor) -> Vec<f64> {
    tensor.as_f32().expect("floats").iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn merged_models_are_those_that_onnx_runtime_ran() {
    let (cases, expected) = (data("cases.json"), data("expected.json"));
    let cases = cases.as_array().expect("a list of cases");
    assert_eq!(expected["cases"].as_object().map(|o| o.len()), Some(cases.len()));
    for (number, case) in cases.iter().enumerate() {
        let text = |key: &str| case[key].as_str();
        let (name, original) = (text("name").expect("a name"), text("model").expect("a model"));
        let model = corpus::model(original).expect("the model is bundled");
        let base = text("base").map(|b| corpus::model(b).expect("the base is bundled"));
        let grouping = if text("groups") == Some("similar") { Grouping::Similar } else { Grouping::Adjacent };
        let factor = case["factor"].as_u64().expect("a factor") as usize;
        let merged = merge(&model, base.as_ref(), factor, grouping);

        let expected = &expected["cases"][name];
        for layer in &merged.report.layers {
            let number = layer.layer.expect("layers of the corpus have numbers").to_string();
            assert_eq!(expected["layers"][&number], serde_json::json!(layer.groups), "{name}: layer {number}");
        }
        assert_eq!(expected["layers"].as_object().map(|o| o.len()), Some(merged.report.layers.len()), "{name}");
        let bytes = merged.proto.write_to_bytes().expect("it can be written");
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(expected["sha256"].as_str(), Some(digest.as_str()), "{name}: ONNX Runtime ran another file");

        let merged = read_again(&merged, &model);
        let graph = graph_of(&merged, base.as_ref());
        for found in attentions(&graph) {
            let found = found.unwrap_or_else(|miss| panic!("{name}: {}", miss.why));
            let wanted = expected["layers"].get(found.layer.expect("layers have numbers").to_string());
            assert_eq!(describe(&graph, &found, &[]).merged, wanted.map_or(1, |_| factor), "{name}");
        }
        let sets: Vec<_> = (0..3).map(|k| test_set(original, k).expect("the set is bundled")).collect();
        let wanted = |k: usize| {
            let file = corpus::folder("../merged").join(name).join(format!("output_{k}.pb"));
            tensor_file::read(&file).expect("the outputs are bundled").1
        };
        for (k, set) in sets.iter().enumerate() {
            let inputs: BTreeMap<_, _> = set.inputs.iter().cloned().collect();
            let found = outputs(&merged, &inputs);
            let mask = find(&set.inputs, "attention_mask");
            let error = max_error(&reals(&found["logits"]), &wanted(k), mask).expect("logits");
            assert!(error < 1e-4, "{name} set {k}: error {error} in the clear");
        }
        // One set each between three parties: prefill, a decoding step, a batch with a cache.
        let k = number % 3;
        let built = build_model(merged, base.as_ref(), logits()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (request, given) = infer_request(&built.plan.plan, sets[k].inputs.clone()).expect("the set fits");
        let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
        assert_eq!((costs.measured, costs.wrong), (costs.predicted, Vec::new()), "{name}");
        let mask = find(&sets[k].inputs, "attention_mask");
        let error = max_error(&sides[0].steps[0].opened[0].reals(), &wanted(k), mask).expect("logits");
        println!("{name:<20} set {k}: error {error:.5} between three parties");
        assert!(error <= TOLERANCE, "{name} set {k}: error {error}");
    }
}

/// Values of a model by their ONNX names, for the names that are `wanted`.
fn values(
    model: &Model,
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    wanted: &[String],
) -> BTreeMap<String, Tensor> {
    let mut found = BTreeMap::new();
    eval::visit(graph, &|name: &str| load_weight(model, name), inputs, &mut |id, tensor| {
        let name = &graph.node(id).expect("it was visited").origin.value;
        if wanted.contains(name) {
            found.insert(name.clone(), tensor.clone());
        }
    })
    .expect("it can be evaluated");
    found
}

/// Merged attention in double precision, by its definition: scores of a group are sums over its heads, one softmax, the
/// same distribution for the values of every head. Rows of a causal mask without padding.
fn formula(q: &Tensor, k: &Tensor, v: &Tensor, groups: &[Vec<usize>], scale: f64) -> Vec<f64> {
    let &[batch, heads, rows, size] = q.shape() else { panic!("queries have four axes") };
    let all = k.shape()[3];
    let width = v.shape()[3];
    assert_eq!((k.shape(), v.shape()), (&[batch, heads, size, all][..], &[batch, heads, all, width][..]));
    let (q, k, v) = (reals(q), reals(k), reals(v));
    let mut out = vec![0.0; batch * heads * rows * width];
    for b in 0..batch {
        for group in groups {
            for row in 0..rows {
                let kept = all - rows + row + 1;
                let score = |column: usize| -> f64 {
                    let of = |h: usize| -> f64 {
                        let (qs, ks) = (((b * heads + h) * rows + row) * size, (b * heads + h) * size * all);
                        (0..size).map(|i| q[qs + i] * k[ks + i * all + column]).sum()
                    };
                    group.iter().map(|&h| of(h)).sum::<f64>() * scale
                };
                let scores: Vec<f64> = (0..kept).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = exps.iter().sum();
                for &h in group {
                    for i in 0..width {
                        let value = |column: usize| v[((b * heads + h) * all + column) * width + i];
                        out[((b * heads + h) * rows + row) * width + i] =
                            exps.iter().enumerate().map(|(column, e)| e / sum * value(column)).sum();
                    }
                }
            }
        }
    }
    out
}

#[test]
fn merged_attention_is_its_formula() {
    // The last number: what the exporter multiplied queries and keys with before their product, as a power of the size.
    let cases = [
        ("llama-trained/full", Some("llama-trained/base"), 2, Grouping::Similar, 0.0),
        ("llama-trained/full", Some("llama-trained/base"), 3, Grouping::Adjacent, 0.0),
        ("llama-torchscript-op17", None, 2, Grouping::Similar, 0.0),
        ("gpt2-pair/frozen", Some("gpt2-pair/base"), 4, Grouping::Similar, 0.0),
        ("gpt2-dynamo-op20-cached", None, 2, Grouping::Similar, 0.5),
        ("llama-gqa-dynamo-op18", None, 2, Grouping::Similar, 0.5),
        ("llama-pair/full", Some("llama-pair/base"), 2, Grouping::Adjacent, 0.5),
    ];
    for (name, base, factor, grouping, before) in cases {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let merged = merge(&model, base.as_ref(), factor, grouping);
        let (old, new_model) = (graph_of(&model, base.as_ref()), read_again(&merged, &model));
        let new = graph_of(&new_model, base.as_ref());
        let inputs = drawn_inputs(&old, &[12]).expect("tokens can be drawn").remove(0);
        let private = mergeable(&old).into_iter().flatten().filter(|m| m.private);
        let private: Vec<Attention> = private.map(|m| m.attention).collect();
        assert_eq!(private.len(), merged.report.layers.len());
        for (index, (attention, layer)) in private.iter().zip(&merged.report.layers).enumerate() {
            let value = |id| old.node(id).expect("it is in the graph").origin.value.clone();
            let names = [attention.queries, attention.keys, attention.values, attention.output].map(value);
            let [q, k, v, o] = &names;
            let found = values(&new_model, &new, &inputs, &names);
            // In the merged model the factor's root is in the queries where their scale is.
            let root = (factor as f64).sqrt();
            let left = root.powf(if before == 0.0 { 1.0 } else { 0.0 });
            let scale = (attention.key_size as f64).powf(before - 0.5) / left;
            let expected = formula(&found[q], &found[k], &found[v], &layer.groups, scale);
            let got = reals(&found[o]);
            let error = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(expected.len() == got.len() && error < 1e-5, "{name} layer {index}: error {error}");
            if index == 0 {
                // Nothing was merged before it: its queries, keys and values are those of the original.
                let original = values(&model, &old, &inputs, &names);
                for (name, by) in [(q, root / left), (k, 1.0), (v, 1.0)] {
                    let pairs = reals(&original[name]).into_iter().zip(reals(&found[name]));
                    let error = pairs.map(|(a, b)| (a - b * by).abs()).fold(0.0, f64::max);
                    assert!(error < 1e-5, "{name}: differs by {error}");
                }
                let expected = formula(&original[q], &original[k], &original[v], &layer.groups, scale * left / root);
                let error = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(error < 1e-5, "{name}: {error} from the formula on the original's values");
            }
        }
    }
}

/// The bundled model whose heads were merged before its export, and the same weights in the unmerged architecture.
fn twins() -> (Model, Model) {
    let (merged, mut plain) =
        ["llama-trained/frozen-headmerge", "llama-trained/frozen"].map(|n| corpus::model(n).expect("bundled")).into();
    let parameters = |name: &str| -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(corpus::folder(name).join("labels.json")).expect("labels are bundled");
        let labels: Value = serde_json::from_str(&text).expect("labels are JSON");
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let entries = labels["tensors"].as_array().expect("a list").iter();
        // Tensors of no parameter are tables, the same in both.
        entries.filter_map(|t| Some((text(&t["parameter"])? + &text(&t["stored"])?, text(&t["tensor"])?))).collect()
    };
    let (of_merged, of_plain) = (parameters("llama-trained/frozen-headmerge"), parameters("llama-trained/frozen"));
    assert_eq!(of_merged.keys().collect::<Vec<_>>(), of_plain.keys().collect::<Vec<_>>());
    for (parameter, name) in &of_plain {
        let source = merged.initializer(&of_merged[parameter]).expect("it is an initializer");
        let graph = plain.proto.graph.as_mut().expect("there is a graph");
        let target = graph.initializer.iter_mut().find(|t| t.name == *name).expect("it is an initializer");
        assert_eq!(target.dims, source.dims);
        *target = onnx_protobuf::TensorProto { name: name.clone(), ..source.clone() };
    }
    (merged, plain)
}

/// A cache of merged heads, `[batch, groups, all, factor·size]`, as one of neighbouring heads of their own.
fn split_cache(tensor: &Tensor, factor: usize) -> Tensor {
    let &[batch, groups, all, width] = tensor.shape() else { panic!("caches have four axes") };
    let (size, values) = (width / factor, tensor.as_f32().expect("floats"));
    let mut out = Vec::with_capacity(values.len());
    for b in 0..batch {
        for head in 0..groups * factor {
            for position in 0..all {
                let start = ((b * groups + head / factor) * all + position) * width + head % factor * size;
                out.extend_from_slice(&values[start..start + size]);
            }
        }
    }
    Tensor::f32(&[batch, groups * factor, all, size], out).expect("the same elements")
}

#[test]
fn merged_neighbours_are_the_model_that_was_merged_before_its_export() {
    let (exported, plain) = twins();
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let merged = read_again(&merge(&plain, Some(&base), 2, Grouping::Adjacent), &plain);
    let is_merged = |name: &str| name.contains(".2.") || name.contains(".3.");
    let fit = |(name, tensor): &(String, Tensor)| {
        (name.clone(), if is_merged(name) { split_cache(tensor, 2) } else { tensor.clone() })
    };
    for k in 0..3 {
        let set = test_set("llama-trained/frozen-headmerge", k).expect("the set is bundled");
        let found = outputs(&merged, &set.inputs.iter().map(fit).collect());
        assert_eq!(found.len(), set.outputs.len());
        for (name, expected) in set.outputs.iter().map(fit) {
            let found = &found[&name];
            assert_eq!(found.shape(), expected.shape(), "set {k}: {name}");
            let error = reals(found).iter().zip(reals(&expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-4, "set {k}: {name} differs by {error}");
        }
    }
    // And it costs no more.
    let exported = build_model(exported, Some(&base), Vec::new()).expect("it compiles");
    let ours = build_model(merged, Some(&base), Vec::new()).expect("it compiles");
    for (seq, past) in [(32, 0), (1, 64)] {
        let (a, b) = (costs(&ours, seq, past), costs(&exported, seq, past));
        println!("seq {seq} past {past}: {} bytes, {} where the exporter merged", a.total_bytes(), b.total_bytes());
        assert!(a.total_bytes() <= b.total_bytes() && a.rounds <= b.rounds, "{} and {} rounds", a.rounds, b.rounds);
        assert_eq!(softmaxes(&ours, &a), softmaxes(&exported, &b));
    }
}

/// Costs of a step without padding; `past` counts where there is a cache.
fn costs(built: &Built, seq: u64, past: u64) -> Report {
    let plan = &built.plan.plan;
    let mut sizes = BTreeMap::from([("seq".to_owned(), seq)]);
    sizes.extend(plan.past.iter().map(|name| (name.clone(), past)));
    inspect(plan, &sizes).expect("the sizes are the plan's")
}

/// What the softmax of a layer costs.
#[derive(Debug, PartialEq)]
struct Softmax {
    bytes: u64,
    /// Elements of all results of its ops.
    elements: usize,
    /// Of every op its ring, and of a comparison its width.
    widths: Vec<u8>,
}

/// Softmaxes by layer.
fn softmaxes(built: &Built, report: &Report) -> BTreeMap<u32, Softmax> {
    let module = &built.plan.plan.module;
    let mut found = BTreeMap::new();
    for op in report.ops.iter().filter(|op| op.kind.contains("softmax")) {
        let Some(layer) = op.layer else { continue };
        let entry = found.entry(layer).or_insert(Softmax { bytes: 0, elements: 0, widths: Vec::new() });
        entry.bytes += op.bytes;
        entry.elements += op.dims.iter().product::<usize>();
        entry.widths.push(match module.node(Id(op.id)).op {
            Op::Msb { width, drop } | Op::RowMax { width, drop, .. } => width - drop,
            _ => module.ty(Id(op.id)).as_ring().map_or(0, |(bits, _)| bits),
        });
    }
    found.retain(|_, softmax| softmax.bytes > 0);
    found
}

/// Everything nonlinear in attention has one row for each head, so it falls by the factor: elements but for tables, and
/// bytes to a thousandth where comparisons are as wide as before and planes of bits fill their bytes. Calibration makes some a bit
/// wider or narrower, so that a ring has a byte more or less, and a few rows leave bytes half full: both are within a tenth.
#[test]
fn softmax_costs_fall_by_the_factor() {
    let mut exact = 0;
    for (name, base, factors) in [
        ("llama-trained/full", "llama-trained/base", &[2, 3][..]),
        ("gpt2-pair/full", "gpt2-pair/base", &[2, 4]),
        ("llama-pair/full", "llama-pair/base", &[2]),
    ] {
        let plain = build(name, Some(base), logits()).expect("it compiles");
        let model = corpus::model(name).expect("the model is bundled");
        let base = corpus::model(base).expect("the base is bundled");
        for &factor in factors {
            let merged = read_again(&merge(&model, Some(&base), factor, Grouping::Similar), &model);
            let merged = build_model(merged, Some(&base), logits()).expect("it compiles");
            let cached = plain.plan.plan.past.is_some();
            for (seq, past) in [(32, 0), (7, 0), (1, 40)].into_iter().filter(|(_, past)| cached || *past == 0) {
                let (before, after) = (costs(&plain, seq, past), costs(&merged, seq, past));
                let (old, new) = (softmaxes(&plain, &before), softmaxes(&merged, &after));
                let sum = |all: &BTreeMap<u32, Softmax>| all.values().map(|s| s.bytes).sum::<u64>();
                println!(
                    "{name} by {factor}, seq {seq} past {past}: softmax {} of {} bytes, step {} of {}, {} of {} rounds",
                    sum(&new),
                    sum(&old),
                    after.total_bytes(),
                    before.total_bytes(),
                    after.rounds,
                    before.rounds
                );
                assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
                assert_eq!(old.len(), 4, "four layers");
                // The number of elements decides between forms of a product, which may take a round more in a layer.
                let mut more = 4;
                for (layer, old) in &old {
                    let new = &new[layer];
                    if new.widths.len() != old.widths.len() {
                        // Sums of scores may reach where exponentials are compared, in three rounds, and the scores not.
                        more += 3;
                        assert!(new.bytes < old.bytes, "{name} by {factor}: layer {layer}");
                        continue;
                    }
                    // A few dozen elements are those of tables and not of rows.
                    let few = (new.elements * factor).abs_diff(old.elements) < 32 * factor;
                    assert!(few, "{name} by {factor}: layer {layer}: {} of {} elements", new.elements, old.elements);
                    let times = new.bytes * factor as u64;
                    if new.widths == old.widths && seq == 32 {
                        // Planes of bits end in whole bytes.
                        let close = times.abs_diff(old.bytes) * 1000 <= old.bytes;
                        assert!(close, "{name} by {factor}: layer {layer}: {times} and {}", old.bytes);
                        exact += 1;
                    } else {
                        // Sums of scores may have a bound one bit wider, and a ring then a byte more.
                        let near = times.abs_diff(old.bytes) * 10 <= old.bytes;
                        assert!(near, "{name} by {factor}, seq {seq}: layer {layer}: {times} and {}", old.bytes);
                    }
                }
                let costs = |r: &Report| (r.rounds, r.total_bytes());
                assert!(
                    after.rounds <= before.rounds + more && after.total_bytes() < before.total_bytes(),
                    "{name}: {:?} after {:?}",
                    costs(&after),
                    costs(&before)
                );
            }
        }
    }
    println!("{exact} layers cost the factor less, to a thousandth");
    assert!(exact >= 2, "{exact}");
}

#[test]
fn what_cannot_be_merged_is_refused_by_layer() {
    let refused = |model: &Model, base: Option<&Model>, factor: usize| {
        let options = Options { factor, grouping: Grouping::Similar, analysis: pipeline::Options::default() };
        merge_heads(model, base, &options).err().expect("it is refused")
    };
    let full = corpus::model("llama-trained/full").expect("bundled");
    let base = corpus::model("llama-trained/base").expect("bundled");
    let codes = |errors: &[ombra_ir::Diagnostic]| errors.iter().map(|e| e.code).collect::<Vec<_>>();
    assert_eq!(codes(&refused(&full, Some(&base), 4)), ["E0593"; 4], "six heads in each of four layers");
    assert_eq!(codes(&refused(&full, Some(&base), 1)), ["E0590"]);
    assert_eq!(codes(&refused(&base, Some(&base), 2)), ["E0590"], "nothing is private");
    let gqa = corpus::model("llama-gqa-dynamo-op18").expect("bundled");
    assert_eq!(codes(&refused(&gqa, None, 4)), ["E0593"; 2], "two key heads with two query heads each");

    // The distributions of the first layer are an output; the mask of the second differs from head to head.
    let mut proto = full.proto.clone();
    let graph = proto.graph.as_mut().expect("there is a graph");
    let softmaxes: Vec<usize> = (0..graph.node.len()).filter(|&i| graph.node[i].op_type == "Softmax").collect();
    let first = graph.node[softmaxes[0]].output[0].clone();
    let [name, second] = [0, 1].map(|layer: usize| graph.node[softmaxes[layer]].name.clone());
    graph.output.push(onnx_protobuf::ValueInfoProto { name: first, ..graph.output[0].clone() });
    let bias = onnx_protobuf::TensorProto {
        name: "bias".into(),
        dims: vec![6, 1, 1],
        data_type: 1,
        float_data: vec![0.5, 1.0, 1.5, 2.0, 2.5, 3.0],
        ..Default::default()
    };
    graph.initializer.push(bias);
    let scores = std::mem::replace(&mut graph.node[softmaxes[1]].input[0], "biased".into());
    let add = onnx_protobuf::NodeProto {
        name: "add_bias".into(),
        op_type: "Add".into(),
        input: vec![scores, "bias".into()],
        output: vec!["biased".into()],
        ..Default::default()
    };
    graph.node.insert(softmaxes[1], add);
    let changed = Model::from_proto(proto, &full.path).expect("it is a model");
    let errors = refused(&changed, None, 2);
    assert_eq!(codes(&errors), ["E0591"; 2], "{errors:?}");
    let place = |i: usize| errors[i].place.clone().unwrap_or_default();
    assert!(place(0).contains(&name), "{}", errors[0]);
    assert!(place(1).contains(&second) && errors[1].message.contains("layer 1"), "{}", errors[1]);
}

#[test]
fn the_command_writes_a_model_and_its_groups() {
    let folder = Folder::new().expect("a folder");
    let file = folder.path().join("merged.onnx");
    let ombra = |more: &[&std::ffi::OsStr]| {
        let model = corpus::folder("llama-trained/frozen").join("model.onnx");
        let base = corpus::folder("llama-trained/base").join("model.onnx");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tested-ombra"));
        command.arg("merge-heads").arg(model).arg("--base").arg(base).args(more).output().expect("it starts")
    };
    let run = ombra(&["--factor".as_ref(), "2".as_ref(), "-o".as_ref(), file.as_os_str()]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(Model::read(&file).is_ok());
    let text = std::fs::read_to_string(folder.path().join("merged.groups.json")).expect("groups are written");
    let groups: Value = serde_json::from_str(&text).expect("groups are JSON");
    assert_eq!((&groups["factor"], &groups["groups"]), (&serde_json::json!(2), &serde_json::json!("similar")));
    let layers = groups["layers"].as_array().expect("a list");
    assert_eq!(layers.iter().map(|l| l["layer"].as_u64()).collect::<Vec<_>>(), [Some(2), Some(3)]);
    for layer in layers {
        let inside = layer["mean_distance_in_groups"].as_f64().expect("a number");
        let all = layer["mean_distance"].as_f64().expect("a number");
        assert!(inside > 0.0 && inside <= all && all < 1.0, "{inside} and {all}");
    }
    let run = ombra(&["--factor".as_ref(), "5".as_ref(), "-o".as_ref(), file.as_os_str()]);
    assert_eq!(run.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run.stderr).contains("E0593"));
    let own = corpus::folder("llama-trained/frozen").join("model.onnx");
    let run = ombra(&["--factor".as_ref(), "2".as_ref(), "-o".as_ref(), own.as_os_str()]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("E0115"), "the original is not written over");
}

#[test]
fn heads_are_compared_on_given_inputs() {
    let model = corpus::model("llama-trained/full").expect("bundled");
    let rows = corpus::token_rows("llama-trained/eval_pydoc.pb").expect("rows are bundled");
    let ids = Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).expect("rows of one length");
    let mut options = Options { factor: 2, grouping: Grouping::Similar, analysis: pipeline::Options::default() };
    options.analysis.calibration = vec![BTreeMap::from([("input_ids".to_owned(), ids)])];
    let given = merge_heads(&model, None, &options).unwrap_or_else(|e| panic!("{}", e[0])).report;
    assert!(given.calibrated);
    assert_eq!(given.rows, rows.len() * rows[0].len());
    let drawn = merge(&model, None, 2, Grouping::Similar).report;
    assert!(!drawn.calibrated && given.layers != drawn.layers);
    for layer in given.layers {
        let mut heads = layer.groups.concat();
        heads.sort_unstable();
        assert_eq!(heads, (0..6).collect::<Vec<_>>());
        assert!(layer.mean_distance_in_groups < layer.mean_distance, "layer {:?}", layer.layer);
    }
}

#[test]
fn external_data_go_with_the_model() {
    let (source, target) = (Folder::new().expect("a folder"), Folder::new().expect("a folder"));
    let model = corpus::model("llama-trained/full").expect("bundled");
    let mut proto = model.proto.clone();
    let mut writer = ExternalWriter::create(&source.path().join("model.onnx.data")).expect("the folder is empty");
    for tensor in proto.graph.as_mut().into_iter().flat_map(|g| &mut g.initializer).filter(|t| t.dims.len() == 2) {
        let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
        let values = model.floats(tensor).expect("matrices are floats");
        *tensor = writer.push(&tensor.name, &dims, values.into_iter()).expect("it is written");
    }
    writer.finish().expect("it is written");
    let path = source.path().join("model.onnx");
    write_model(&proto, &path).expect("it is written");
    let external = Model::read(&path).expect("it can be read");
    let merged = merge(&external, None, 3, Grouping::Adjacent);
    let file = target.path().join("merged.onnx");
    write(&merged, &external, &file).expect("the folder is empty");
    let inputs: BTreeMap<_, _> =
        test_set("llama-trained/full", 0).expect("the set is bundled").inputs.into_iter().collect();
    let found = outputs(&Model::read(&file).expect("it can be read"), &inputs);
    let inside = read_again(&merge(&model, None, 3, Grouping::Adjacent), &model);
    assert_eq!(found["logits"], outputs(&inside, &inputs)["logits"]);
    // What is there already is not written over.
    assert_eq!(write(&merged, &external, &file).expect_err("the data file exists").code, "E0115");
}
