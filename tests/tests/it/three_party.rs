//! Compiled models between three threads, against the same program in the clear and the declared cost.

use ombra_compiler::client_region::name_of;
use ombra_compiler::graph::Owner;
use ombra_compiler::graph::eval::{self, static_value};
use ombra_compiler::import::load_weight;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Compiled, Options, Reveal, compile};
use ombra_ir::module::{Id, Party};
use ombra_ir::plain::Tensor;
use ombra_ir::schedule::{Cost, schedule};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::exec::{LinkNet, Run, TensorSource, Weights, agree_keys, agree_weight_key};
use ombra_runtime::transport::{self, Session};
use ombra_tests::{corpus, plain};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone)]
struct Tensors(BTreeMap<String, Tensor>);

impl TensorSource for Tensors {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.0.get(name).ok_or_else(|| Diagnostic::input("E0000", format!("no tensor `{name}`")))?;
        Ok((tensor.shape().to_vec(), tensor.as_f32()?.to_vec()))
    }
}

/// What one party has after a step.
struct Seen {
    opened: Vec<Vec<f64>>,
    sent: Vec<u64>,
    meter: transport::Snapshot,
    seconds: f64,
}

/// Every tensor that the client gives, in order of the input slots.
fn client_inputs(compiled: &Compiled, model: &Model, inputs: &BTreeMap<String, Tensor>) -> Vec<Tensor> {
    let weights = |name: &str| load_weight(model, name);
    let wanted: Vec<String> = compiled.plan.module.inputs.iter().map(|i| i.name.clone()).collect();
    let mut known = inputs.clone();
    let mut found = BTreeMap::new();
    eval::visit(&compiled.graph, &weights, inputs, &mut |id, tensor| {
        if let Ok(node) = compiled.graph.node(id)
            && node.owner == Owner::Client
            && let Some(name) = name_of(&compiled.graph, id)
            && wanted.contains(&name)
        {
            found.insert(name, tensor.clone());
        }
    })
    .expect("the client's region runs");
    known.extend(found);
    wanted.iter().map(|name| known[name].clone()).collect()
}

fn party_step(
    compiled: &Compiled,
    tensors: &Tensors,
    inputs: &BTreeMap<String, Tensor>,
    client: &[Tensor],
    party: Party,
    session: &Session,
) -> Result<Seen> {
    let module = &compiled.plan.module;
    let mut net = LinkNet::new(session, 1);
    let keys = agree_keys(party, &mut net)?;
    let key = agree_weight_key(party, None, &mut net)?;
    let own = (party == Party::Server).then(|| Arc::new(tensors.clone()) as Arc<dyn TensorSource>);
    let weights = Arc::new(Weights::share(module, party, key.as_ref(), Arc::new(tensors.clone()), own, &mut net)?);
    let mut run = Run::new(Arc::new(module.clone()), party, keys, weights, 1);
    let bound = plain::bind_step(compiled, inputs)?;
    let schedule = schedule(module, &bound)?;
    session.meter().reset();
    let begin = std::time::Instant::now();
    let client = if party == Party::Client { client } else { &[] };
    let result = run.step(&bound, &schedule, client, &mut net)?;
    Ok(Seen {
        opened: result.opened.iter().map(|o| o.reals()).collect(),
        sent: result.sent,
        meter: session.meter().snapshot(),
        seconds: begin.elapsed().as_secs_f64(),
    })
}

fn run_three(compiled: &Compiled, model: &Model, inputs: &BTreeMap<String, Tensor>) -> Vec<Seen> {
    let weights = |name: &str| load_weight(model, name);
    let tensors = Tensors(
        compiled
            .weights
            .iter()
            .map(|(name, &(v, _))| (name.clone(), static_value(&compiled.graph, &weights, v).expect("it is static")))
            .collect(),
    );
    let client = client_inputs(compiled, model, inputs);
    let sessions = Session::in_memory(&transport::Party::ALL).expect("links in memory");
    std::thread::scope(|scope| {
        let threads: Vec<_> = Party::ALL
            .into_iter()
            .zip(sessions)
            .map(|(party, session)| {
                let (tensors, client) = (&tensors, &client);
                scope.spawn(move || {
                    let seen = party_step(compiled, tensors, inputs, client, party, &session);
                    if let Err(error) = &seen {
                        session.abort(error);
                    }
                    seen
                })
            })
            .collect();
        let seen: Vec<_> = threads.into_iter().map(|t| t.join().expect("no party panics")).collect();
        seen.into_iter().map(|s| s.unwrap_or_else(|e| panic!("{e}"))).collect()
    })
}

const MODELS: &[(&str, Option<&str>, usize)] = &[
    ("llama-torchscript-op17", None, 0),
    ("llama-gqa-dynamo-op18", None, 0),
    ("llama-trained/frozen", Some("llama-trained/base"), 0),
    ("gpt2-pair/lora", Some("gpt2-pair/base"), 1),
];

#[test]
fn three_parties_compute_what_one_computes_in_the_clear() {
    let only = std::env::var("OMBRA_ONLY").unwrap_or_default();
    for &(name, base, set) in MODELS.iter().filter(|m| m.0.contains(&only)) {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        for reveal in [vec![Reveal::Output("logits".into())], Options::default().reveal] {
            let options = Options { reveal, ..Options::default() };
            let compiled = compile(&model, base.as_ref(), &options).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            let module = &compiled.plan.module;
            let inputs: BTreeMap<_, _> = corpus::test_set(name, set).expect("bundled").inputs.into_iter().collect();
            let outcome = plain::step(&compiled, &model, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
            let seen = run_three(&compiled, &model, &inputs);

            let revealed = module.ops.iter().find(|n| matches!(n.op, ombra_ir::op::Op::Reveal { .. }));
            let (_, scale) = revealed.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
            let expected = outcome.outputs[0].as_ref().and_then(|v| v.decode(scale).ok()).expect("it is revealed");
            let worst = seen[0].opened[0].iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            assert_eq!(seen[0].opened[0].len(), expected.len());

            let bound = plain::bind_step(&compiled, &inputs).expect("the inputs fit");
            let schedule = schedule(module, &bound).expect("it has a schedule");
            let mut measured = Cost::default();
            for (party, seen) in seen.iter().enumerate() {
                measured.bytes[party] = seen.meter.sent_bytes();
                measured.rounds = measured.rounds.max(seen.meter.depth);
                for (i, sent) in seen.sent.iter().enumerate() {
                    assert_eq!(*sent, schedule.op_bytes(module, Id(i as u32))[party], "{name}: op {i}");
                }
            }
            eprintln!("{name}: max difference {worst:.6}, {measured:?}, {:.2} s", seen[0].seconds);
            assert_eq!(measured, schedule.cost(module), "{name}");
            assert!(worst <= 0.02, "{name}: difference {worst}");
        }
    }
}
