//! Every export as a tuned model whose first layer is the base's: the client runs it in the clear, whatever
//! the export's operators are, and the rest runs between the parties. The recorded model is the tuned one, so that what
//! ONNX Runtime computed for it is the reference; its base has other numbers in all weights of later layers.

use std::collections::{BTreeMap, BTreeSet};

use ombra_compiler::graph::eval::{bind_inputs, visit};
use ombra_compiler::graph::{Graph, Op, TensorOp};
use ombra_compiler::import::load_weight;
use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Options, analyse};
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::SIZE;
use ombra_runtime::app::Request;
use ombra_runtime::app::inputs::{find, infer_request, token_ids};
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};
use ombra_tests::built::{Built, build_model, logits};
use ombra_tests::corpus::{self, TestSet};
use ombra_tests::logits::max_error;
use ombra_tests::parties;
use onnx_protobuf::TensorProto;

/// The weights that attention of the second layer does not depend on.
fn later_weights(graph: &Graph) -> BTreeSet<String> {
    let is_softmax = |id: &_| matches!(graph.op(*id), Some(Op::Softmax { .. } | Op::MaskedSoftmax { .. }));
    let second = graph.topological().into_iter().filter(is_softmax).nth(1).expect("there are two layers");
    let before = graph.ancestors(second);
    let name = |op: &Op| match op {
        Op::Weight { name, .. } => Some(name.clone()),
        _ => None,
    };
    let early: BTreeSet<String> = before.iter().filter_map(|v| graph.op(*v).and_then(name)).collect();
    graph.iter().filter_map(|(_, node)| name(&node.op)).filter(|n| !early.contains(n)).collect()
}

/// `model` with other numbers in the weights called `names`.
fn with_other_numbers(model: &Model, names: &BTreeSet<String>) -> Model {
    let mut proto = model.proto.clone();
    let mut changed = 0;
    for tensor in &mut proto.graph.as_mut().expect("a graph").initializer {
        if names.contains(&tensor.name) {
            let values = model.floats(tensor).expect("a weight").into_iter().enumerate();
            let other = values.flat_map(|(i, v)| (v * (0.9 + (i % 7) as f32 * 0.03) + 0.001).to_le_bytes());
            let raw_data = other.collect();
            let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
            *tensor = TensorProto { name, dims, data_type: 1, raw_data, ..TensorProto::default() };
            changed += 1;
        }
    }
    assert!(changed > 4, "{changed} weights are private");
    Model::from_proto(proto, &model.path).expect("still a model")
}

/// The weights that are no table of embeddings.
fn all_but_embeddings(graph: &Graph) -> BTreeSet<String> {
    let looked_up =
        |v| graph.users(v).iter().any(|&u| matches!(graph.op(u), Some(Op::Tensor(TensorOp::Gather { .. }))));
    let weights = graph.iter().filter_map(|(v, node)| match &node.op {
        Op::Weight { name, .. } => Some((name.clone(), looked_up(v))),
        _ => None,
    });
    let (tables, others): (Vec<_>, Vec<_>) = weights.partition(|(_, looked_up)| *looked_up);
    let tables: BTreeSet<String> = tables.into_iter().map(|(name, _)| name).collect();
    others.into_iter().map(|(name, _)| name).filter(|name| !tables.contains(name)).collect()
}

/// Model `name` compiled against a base that has other numbers in the weights that `private` chooses.
fn tuned(name: &str, private: fn(&Graph) -> BTreeSet<String>, reveal: Vec<Reveal>) -> Built {
    let model = corpus::model(name).expect("the model is bundled");
    let analysed = analyse(&model, None, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let base = with_other_numbers(&model, &private(&analysed.graph));
    build_model(model, Some(&base), reveal).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Compares what the region gives on `set` with the typed graph's own meaning; the number of values and the maximum
/// error.
fn check_region(name: &str, built: &Built, set: &TestSet) -> (usize, f32) {
    let files = built.plan.client_model().expect("it is named").unwrap_or_else(|| panic!("{name}: no client model"));
    let model = files.0.read(u64::MAX - 1).expect("it is the plan's");
    let region = match files.1 {
        None => PlaintextModel::load(model),
        Some(data) => PlaintextModel::load_with_data(model, &data.name(), data.read(u64::MAX - 1).expect("likewise")),
    };
    let region = region.unwrap_or_else(|e| panic!("{name}: {e}")).with_threads(1);
    let graph = &built.compiled.graph;
    let given: BTreeMap<String, Tensor> = set.inputs.iter().cloned().collect();
    let bindings = bind_inputs(graph, &given).expect("the set fits");
    let size = |input: &str| -> Option<(String, Tensor)> {
        let sym = graph.dims.find(input.strip_prefix(SIZE)?)?;
        Some((input.to_owned(), Tensor::i64(&[1], vec![bindings.get(sym)? as i64]).ok()?))
    };
    let names = region.inputs();
    let inputs: Vec<(String, Tensor)> =
        names.iter().filter_map(|n| size(n).or_else(|| Some(((*n).to_owned(), given.get(*n)?.clone())))).collect();
    let inputs: Vec<(&str, PlainInput)> = inputs.iter().map(|(n, t)| (n.as_str(), plain_input(t))).collect();
    let mut wanted = BTreeMap::new();
    wanted.extend(built.compiled.inputs.iter().map(|(n, v)| (n.as_str(), *v)));
    wanted.extend(graph.outputs.iter().map(|o| (o.name.as_str(), o.value)));
    let mut expected = BTreeMap::new();
    let weights = |w: &str| load_weight(&built.model, w);
    visit(graph, &weights, &given, &mut |id, tensor| {
        for (n, _) in wanted.iter().filter(|(_, v)| **v == id) {
            expected.insert(*n, tensor.clone());
        }
    })
    .expect("it evaluates");
    let outputs = region.outputs();
    let mut worst = 0f32;
    for (output, (shape, values)) in outputs.iter().zip(region.run(&inputs, &outputs).expect("the region runs")) {
        let want = &expected[output];
        assert_eq!(shape, want.shape(), "{name}: {output}");
        let error = values.iter().zip(want.as_f32().expect("floats")).map(|(a, b)| (a - b).abs());
        worst = error.fold(worst, f32::max);
    }
    (outputs.len(), worst)
}

fn plain_input(tensor: &Tensor) -> PlainInput<'_> {
    let elements = match tensor.data() {
        Data::F32(v) => PlainElements::F32(v),
        Data::I64(v) => PlainElements::I64(v),
        Data::Bool(v) => PlainElements::Bool(v),
    };
    PlainInput { shape: tensor.shape(), elements }
}

/// Runs all sets in the clear at the client and between the parties.
fn check_sets(name: &str, built: &Built) {
    for index in 0..corpus::sets(name) {
        let set = corpus::test_set(name, index).and_then(|set| set.parts()).expect("the set is bundled").remove(0);
        let (values, worst) = check_region(name, built, &set);
        let (request, given) = infer_request(&built.plan.plan, set.inputs.clone()).expect("the set fits the plan");
        let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want = find(&set.outputs, "logits").expect("the set has logits");
        let got = sides[0].steps[0].opened[0].reals();
        let error = max_error(&got, want, find(&set.inputs, "attention_mask")).expect("logits are floats");
        println!("{name} set {index}: {values} values of the client within {worst:.7}, logits within {error:.5}");
        assert!(worst < 1e-4, "{name} set {index}: the region is off by {worst}");
        assert!(error <= 0.02, "{name} set {index}: error {error}");
    }
}

#[test]
fn the_clients_part_of_every_export_runs_in_the_clear() {
    for (name, _) in corpus::selected() {
        let built = tuned(name, later_weights, logits());
        let region = built.compiled.client_model.as_ref().expect("the client has a part");
        let attention = region.proto.graph.node.iter().filter(|n| n.op_type == "Softmax").count();
        assert!(attention >= 1, "{name}: the client has no attention");
        assert!(region.proto.graph.node.iter().all(|n| n.domain.is_empty()), "{name}: another operator set");
        check_sets(name, &built);
    }
}

#[test]
fn embeddings_alone_need_no_cache_of_the_clients() {
    for name in ["gpt2-optimum-past", "gpt2-dynamo-op20-cached", "gpt2-ort-optimized", "opt-optimum-past"] {
        let built = tuned(name, all_but_embeddings, logits());
        let region = built.compiled.client_model.as_ref().expect("the client has a part");
        assert!(region.proto.graph.input.iter().all(|i| !i.name.starts_with("past_key_values")), "{name}: a cache");
        check_sets(name, &built);
    }
}

#[test]
fn caches_of_the_clients_layers_grow_from_step_to_step() {
    for name in ["llama-gqa-dynamo-op23", "llama-gqa-genai", "gpt2-dynamo-op20-cached"] {
        let built = tuned(name, later_weights, Vec::new());
        let plan = &built.plan.plan;
        assert!(!plan.client_states.is_empty(), "{name}: the client keeps no cache");
        // The reference is the same plan, one longer prompt after another.
        let mut tokens = vec![3, 1, 4, 1, 5];
        let request = Request::text(7);
        let mut steps = vec![vec![token_ids(plan, &[tokens.clone()]).expect("token ids")]];
        let mut expected = Vec::new();
        for step in 0..3 {
            let whole = Request::text(tokens.len() as u64);
            let given = vec![token_ids(plan, &[tokens.clone()]).expect("token ids")];
            let sides = parties::run(&built.plan, &whole, &[given]).unwrap_or_else(|e| panic!("{name}: {e}"));
            let next = sides[0].steps[0].opened[0].values[0];
            expected.push(next);
            tokens.push(next);
            if step < 2 {
                steps.push(vec![token_ids(plan, &[vec![next]]).expect("token ids")]);
            }
        }
        let sides = parties::run(&built.plan, &request, &steps).unwrap_or_else(|e| panic!("{name}: {e}"));
        let got: Vec<i64> = sides[0].steps.iter().map(|step| step.opened[0].values[0]).collect();
        assert_eq!(got, expected, "{name}");
    }
}
