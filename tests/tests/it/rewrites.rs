//! Rewriting on whole models: the same values, adapters taken apart, nothing costlier.

use crate::operators::Small;
use ombra_compiler::egraph::Rewrite;
use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::import::load_weight;
use ombra_compiler::inspect::session::session_cost;
use ombra_compiler::inspect::{Report, inspect};
use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Options, compile, plan_of, rewritten};
use ombra_compiler::savings::Passes;
use ombra_ir::Diagnostic;
use ombra_ir::network::Network;
use ombra_ir::op::Op;
use ombra_ir::plan::Plan;
use ombra_ir::settings::Setting;
use ombra_tests::corpus::{self, selected};
use ombra_tests::logits::max_error;
use ombra_tests::plain;
use onnx_protobuf::NodeProto;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A network on which rounds cost nothing: what is thin is taken apart however small the model is.
const IMMEDIATE: Network = Network { bandwidth_bits_per_s: 200_000_000, rtt: Duration::ZERO };

fn show(errors: Vec<Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

/// Passes up to rewriting, and with it.
fn before_and_after() -> [Passes; 2] {
    let count = (0..).find(|&n| Passes::first(n).has(ombra_compiler::pipeline::Pass::Rewrites)).expect("it is a pass");
    [Passes::first(count - 1), Passes::first(count)]
}

#[test]
fn rewritten_graphs_of_the_corpus_have_the_same_values() {
    for (name, base) in selected() {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|b| corpus::model(b).expect("the base is bundled"));
        let weights = |tensor: &str| load_weight(&model, tensor);
        let inputs: BTreeMap<_, _> =
            corpus::test_set(name, 0).expect("the test set is bundled").inputs.into_iter().collect();
        let options = Options { reveal: vec![Reveal::Output("logits".into())], ..Options::default() };
        let [before, after] = before_and_after();
        let graph = |passes: &Passes, network| {
            let options = Options { passes: passes.clone(), network, ..options.clone() };
            rewritten(&model, base.as_ref(), &options).map_err(show).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let want = evaluate(&graph(&before, IMMEDIATE).graph, &weights, &inputs).expect("the graph can be evaluated");
        for network in [IMMEDIATE, Network::LAN, Network::WAN] {
            let rewritten = graph(&after, network);
            let got = evaluate(&rewritten.graph, &weights, &inputs).expect("the graph can be evaluated");
            for (want, got) in want.iter().zip(&got) {
                let (want, got) = (want.as_f32().expect("floats"), got.as_f32().expect("floats"));
                let greatest = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
                let worst = want.iter().zip(got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst <= 1e-4 * greatest, "{name}: {worst} of {greatest}");
            }
            for report in &rewritten.rewrites {
                assert!(report.after <= report.before, "{name}: {report:?}");
            }
        }
    }
}

/// The model with its adapters merged at run time: `x·W + s·((x·A)·B)` becomes `x·(W + s·(A·B))`, or, `turned`,
/// `x·(Wᵀ + s·(Bᵀ·Aᵀ))ᵀ`; returns how many.
fn merged(model: &Model, turned: bool) -> (Model, usize) {
    let mut proto = model.proto.clone();
    let graph = proto.graph.as_mut().expect("the model has a graph");
    let by_output: BTreeMap<String, NodeProto> =
        graph.node.iter().flat_map(|n| n.output.iter().map(|o| (o.clone(), n.clone()))).collect();
    let made_by = |value: &str, op: &str| by_output.get(value).filter(|n| n.op_type == op);
    let mut count = 0;
    for at in (0..graph.node.len()).rev() {
        let sum = graph.node[at].clone();
        let found = (|| {
            let plain = made_by(&sum.input.first()?.clone(), "MatMul")?;
            let scaled = made_by(sum.input.get(1)?, "Mul")?;
            let second = made_by(&scaled.input[0], "MatMul")?;
            let first = made_by(&second.input[0], "MatMul")?;
            (sum.op_type == "Add" && first.input[0] == plain.input[0]).then_some((plain, scaled, second, first))
        })();
        let Some((plain, scaled, second, first)) = found else { continue };
        count += 1;
        let node = |op: &str, inputs: [&str; 2], output: &str| NodeProto {
            op_type: op.into(),
            name: format!("{}_{op}", sum.name),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.into()],
            ..Default::default()
        };
        let of = |part: &str| format!("{}.{part}", sum.output[0]);
        let turn = |input: &str, output: &str| {
            let turn = node("Transpose", [input, ""], output);
            NodeProto { input: vec![input.into()], name: format!("{}_turn_{output}", sum.name), ..turn }
        };
        let [w, a, b] = [&plain.input[1], &first.input[1], &second.input[1]];
        let [wt, left_t, right_t] = ["wt", "at", "bt"].map(&of);
        let mut new = if turned { vec![turn(w, &wt), turn(a, &left_t), turn(b, &right_t)] } else { Vec::new() };
        let (w, left, right) = if turned { (&wt, &right_t, &left_t) } else { (w, a, b) };
        new.push(node("MatMul", [left, right], &of("delta")));
        new.push(node("Mul", [&of("delta"), &scaled.input[1]], &of("scaled")));
        new.push(node("Add", [w, &of("scaled")], &of("sum")));
        if turned {
            new.push(turn(&of("sum"), &of("weight")));
        }
        let weight = if turned { of("weight") } else { of("sum") };
        new.push(NodeProto { name: sum.name.clone(), ..node("MatMul", [&plain.input[0], &weight], &sum.output[0]) });
        graph.node.splice(at..=at, new);
    }
    loop {
        let used: std::collections::BTreeSet<String> = graph
            .node
            .iter()
            .flat_map(|n| n.input.iter().cloned())
            .chain(graph.output.iter().map(|o| o.name.clone()))
            .collect();
        let before = graph.node.len();
        graph.node.retain(|n| n.output.iter().any(|o| used.contains(o)));
        if graph.node.len() == before {
            break;
        }
    }
    (Model::from_proto(proto, &model.path).expect("the model is valid"), count)
}

fn compiled(model: &Model, base: &Model, network: Network) -> Compiled {
    let options = Options { reveal: vec![Reveal::Output("logits".into())], network, ..Options::default() };
    compile(model, Some(base), &options).map_err(show).unwrap_or_else(|e| panic!("{e}"))
}

fn costs(compiled: &Compiled, seq: u64, past: u64) -> Report {
    let sizes = BTreeMap::from([("seq".to_owned(), seq), ("past".to_owned(), past)]);
    inspect(&compiled.plan, &sizes).expect("the sizes are the plan's")
}

fn check_logits(name: &str, compiled: &Compiled, model: &Model) {
    let data = corpus::test_set(name, 0).expect("the test set is bundled");
    let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
    let outcome = plain::step(compiled, model, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let reveal = compiled.plan.module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. }));
    let (_, scale) = reveal.and_then(|n| n.ty.as_ring()).expect("a ring value is revealed");
    let got = outcome.outputs[0].as_ref().and_then(|v| v.decode(scale).ok()).expect("a ring value");
    let want = &data.outputs.iter().find(|(n, _)| n == "logits").expect("the output is known").1;
    let worst = max_error(&got, want, inputs.get("attention_mask")).expect("logits are floats");
    assert!(worst <= 0.02, "{name}: error {worst}");
}

/// Bytes of sharing weights, of a prompt of 64 tokens and of a token after it, without and with rewriting.
fn reference_bytes(model: &Model, base: &Model) -> [u64; 2] {
    before_and_after().map(|passes| {
        let options = Options { passes, network: IMMEDIATE, ..Options::default() };
        let plan = plan_of(model, Some(base), &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
        let [prompt, token] = [(64, 0), (1, 64)].map(|(seq, past)| {
            let sizes = BTreeMap::from([("seq".to_owned(), seq), ("past".to_owned(), past)]);
            inspect(&plan, &sizes).expect("the sizes are the plan's")
        });
        prompt.setup_bytes + prompt.total_bytes() + token.total_bytes()
    })
}

#[test]
fn adapters_merged_at_run_time_are_taken_apart() {
    let name = "llama-trained/lora";
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let apart = corpus::model(name).expect("the model is bundled");
    let untouched = compiled(&apart, &base, IMMEDIATE);
    for turned in [false, true] {
        let (whole, count) = merged(&apart, turned);
        assert_eq!(count, 28, "seven matrices in each of four layers");
        let found = compiled(&whole, &base, IMMEDIATE);
        let of = |r: &Rewrite| r.layers.len() * r.applied.get("product of a sum").copied().unwrap_or(0);
        let applied: usize = found.rewrites.iter().map(of).sum();
        let (a, b) = (costs(&untouched, 8, 0), costs(&found, 8, 0));
        let [before, after] = reference_bytes(&whole, &base);
        println!(
            "{applied} adapters taken apart; secret MACs {} and {}, set-up {} and {} bytes; {before} bytes become {after}",
            a.macs.secret, b.macs.secret, a.setup_bytes, b.setup_bytes
        );
        check_logits(name, &found, &whole);
        let near: Vec<String> = found.rewrites.iter().map(Rewrite::text).collect();
        // A part's price is that of the part alone: one of a layer's seven may stay whole.
        assert!((27..=28).contains(&applied), "{near:#?}");
        let close = |a: u64, b: u64| b >= a && (applied < 28 || a == b) && 2 * b <= 3 * a;
        assert!(close(a.macs.secret, b.macs.secret), "{} and {}", a.macs.secret, b.macs.secret);
        assert!(close(a.setup_bytes, b.setup_bytes), "{} and {}", a.setup_bytes, b.setup_bytes);
        assert!(after < before, "{before} bytes become {after}");
    }
}

#[test]
fn what_rounds_would_cost_more_than_they_save_stays_whole_and_is_said() {
    let name = "llama-trained/lora";
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let (whole, _) = merged(&corpus::model(name).expect("the model is bundled"), false);
    let found = compiled(&whole, &base, Network::WAN);
    check_logits(name, &found, &whole);
    let near: Vec<&str> = found
        .rewrites
        .iter()
        .flat_map(|r| &r.near)
        .filter(|n| n.rule == "product of a sum")
        .map(|n| n.why.as_str())
        .collect();
    assert!(
        near.iter().any(|why| why.contains("more rounds") && why.contains("fewer bytes to share weights")),
        "{near:?}"
    );
}

/// The compiler prices both with assumed ranges; here they are measured ones.
#[test]
fn no_rewritten_program_costs_more_as_a_whole() {
    let base = corpus::model("llama-trained/base").expect("the base is bundled");
    let apart = corpus::model("llama-trained/lora").expect("the model is bundled");
    let [before, after] = before_and_after();
    let mut changed = 0;
    for (name, model) in [("adapters", merged(&apart, false).0), ("turned", merged(&apart, true).0), ("apart", apart)] {
        for network in [IMMEDIATE, Network::LAN, Network::WAN] {
            let price = |passes: &Passes| {
                let options = Options { passes: passes.clone(), network, ..Options::default() };
                let plan = plan_of(&model, Some(&base), &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
                session_cost(&plan).expect("the sizes are the plan's").price(network)
            };
            let (old, new) = (price(&before), price(&after));
            println!("{name}: {old:.0} bytes become {new:.0}");
            assert!(new <= old, "{name}: {old} bytes become {new}");
            changed += usize::from(new < old);
        }
    }
    assert!(changed > 0, "some programs are rewritten");
}

/// Attention of 64 tokens without a softmax and without a mask, `(Q·Kᵀ)·V`, of two heads of width 8.
fn linear_attention() -> Model {
    let drawn = |k: usize| (0..1024).map(|i| ((i * (k + 3)) % 23) as f64 / 11.0 - 1.0).collect();
    let small = Small::new()
        .secret("q", (&[2, 64, 8], drawn(0)))
        .secret("k", (&[2, 8, 64], drawn(1)))
        .secret("v", (&[2, 64, 8], drawn(2)))
        .node("MatMul", &["q", "k"], "scores", vec![])
        .node("MatMul", &["scores", "v"], "y", vec![]);
    small.model().0
}

/// Folders under `tests/data` whose models the table looks at.
const FOLDERS: &[&str] = &["models", "approximations", "exporters", "cases"];

/// All models in a folder, by their path under `tests/data`.
fn models_in(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    if folder.join("model.onnx").is_file() {
        found.push(folder.to_path_buf());
    }
    for path in paths.into_iter().filter(|p| p.is_dir()) {
        models_in(&path, found);
    }
}

/// What a program costs in the reference session: the sharing of weights, a prompt, and a token after it where the model
/// has a cache. Prompts are as long as the model takes, up to 64.
fn session(plan: &Plan) -> Option<[u64; 3]> {
    let at = |seq: u64, past: u64| {
        let mut sizes = BTreeMap::new();
        for (name, size) in [(&plan.batch, 1), (&plan.seq, seq), (&plan.past, past)] {
            sizes.extend(name.clone().map(|name| (name, size)));
        }
        inspect(plan, &sizes).ok()
    };
    [64, 32, 16, 8].into_iter().find_map(|n| {
        let prompt = at(n, 0)?;
        let token = if plan.past.is_some() { at(1, n)?.total_bytes() } else { 0 };
        Some([prompt.setup_bytes, prompt.total_bytes(), token])
    })
}

/// What rewriting does to every model of `tests/data`, in both settings, against `benchmarks/rewrites.md`.
#[test]
fn what_each_rule_saves_on_which_model_is_written_down() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut folders = Vec::new();
    FOLDERS.iter().for_each(|folder| models_in(&data.join(folder), &mut folders));
    let mut models: Vec<(String, Model, Option<Model>)> = Vec::new();
    for folder in folders {
        let name = folder.strip_prefix(&data).expect("it is under the data").display().to_string();
        let Ok(model) = Model::read(&folder.join("model.onnx")) else { continue };
        let base =
            folder.parent().map(|p| p.join("base/model.onnx")).filter(|p| p.is_file() && !name.ends_with("/base"));
        models.push((name, model, base.map(|path| Model::read(&path).expect("the base is bundled"))));
    }
    let lora = corpus::model("llama-trained/lora").expect("the model is bundled");
    for (name, turned) in [("merged at run time", false), ("merged at run time, turned", true)] {
        let base = corpus::model("llama-trained/base").expect("the base is bundled");
        models.push((format!("models/llama-trained/lora, {name}"), merged(&lora, turned).0, Some(base)));
    }
    models.push(("linear attention, 64 tokens, width 8".to_owned(), linear_attention(), None));
    let mut table = String::from(
        "# What rewriting saves\n\nExact counts, written by `OMBRA_BLESS=1 cargo test -p ombra-tests --test it rewrites`. Bytes that all parties send: \
         weights shared once, a prompt of up to 64 tokens, a token after it. Models of `tests/data` that no rule changes are left \
         out.\n\n| model | setting | network | rules | sharing | prompt | token |\n|---|---|---|---|---|---|---|\n",
    );
    for (name, model, base) in &models {
        for setting in [Setting::ThreeParty, Setting::Dealer] {
            for (network, of) in [("wan", Network::WAN), ("lan", Network::LAN), ("no latency", IMMEDIATE)] {
                let options = Options { setting, network: of, ..Options::default() };
                // What does not compile is another test's business.
                let Ok(found) = rewritten(model, base.as_ref(), &options) else { continue };
                let mut rules: BTreeMap<&str, usize> = BTreeMap::new();
                for report in &found.rewrites {
                    for (rule, count) in &report.applied {
                        *rules.entry(rule).or_default() += count * report.layers.len().max(1);
                    }
                }
                if rules.is_empty() {
                    continue;
                }
                let costs = [Some(false), Some(true)].map(|keep_rewrites| {
                    let options = Options { keep_rewrites, assume: true, ..options.clone() };
                    let plan = plan_of(model, base.as_ref(), &options).map_err(show);
                    session(&plan.unwrap_or_else(|e| panic!("{name}: {e}"))).expect("the model takes 8 tokens")
                });
                let [before, after] = costs;
                let rules: Vec<String> = rules.iter().map(|(rule, count)| format!("{rule} ({count})")).collect();
                let changes = [0, 1, 2].map(|i| match (before[i], after[i]) {
                    (a, b) if a == b => a.to_string(),
                    (a, b) => format!("{a} → {b}"),
                });
                let (setting, rules) = (setting.protocol().name, rules.join(", "));
                table += &format!("| {name} | {setting} | {network} | {rules} | {} |\n", changes.join(" | "));
            }
        }
    }
    compare_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../benchmarks/rewrites.md"), &table);
}

/// Compares with a file, or writes it where `OMBRA_BLESS` is 1.
fn compare_text(path: &Path, found: &str) {
    if std::env::var("OMBRA_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(path, found).expect("there is room");
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(expected == found, "{} has other counts; found:\n{found}", path.display());
}
