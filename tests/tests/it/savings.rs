//! What public layers save, from the costs that plans declare.

use ombra_compiler::inspect::{Report, inspect};
use ombra_compiler::pipeline::{Options, compile};
use ombra_compiler::savings::{NAIVE, savings};
use ombra_ir::module::Id;
use ombra_ir::ty::Sharing;
use ombra_tests::built::{Built, build, logits};
use ombra_tests::{case, corpus};
use std::collections::BTreeMap;

/// New tokens and cached tokens.
const SIZES: [(u64, u64); 6] = [(1, 0), (8, 0), (32, 0), (128, 0), (1, 64), (1, 512)];

fn costs(built: &Built, seq: u64, past: u64) -> Report {
    let sizes = BTreeMap::from([("seq".to_owned(), seq), ("past".to_owned(), past)]);
    inspect(&built.plan.plan, &sizes).expect("the sizes are the plan's")
}

/// Two of four layers, and four percent: layers are not equal to the byte. The first private one shares its input, and where bounds
/// of scores are small exponentials take no comparison.
const HALF_OF_LAYERS: f64 = 0.52;

/// Bytes of the ops of decoder layers.
fn in_layers(report: &Report) -> u64 {
    report.ops.iter().filter(|op| op.layer.is_some()).map(|op| op.total_bytes()).sum()
}

/// Two of four layers are public. What follows the layers, the last norm, the head and the choice of the token, is
/// private in both plans and costs the same: beside it, a decoding step can only come near to one half.
#[test]
fn frozen_layers_halve_the_bytes() {
    let frozen = build("llama-trained/frozen", Some("llama-trained/base"), Vec::new()).expect("it compiles");
    let private = build("llama-trained/frozen", None, Vec::new()).expect("it compiles");
    for (seq, past) in SIZES {
        let (a, b) = (costs(&frozen, seq, past), costs(&private, seq, past));
        let part = |a: u64, b: u64| a as f64 / b as f64;
        println!(
            "seq {seq:>3} past {past:>3}: {:>9} of {:>9} bytes, ratio {:.4}, in layers {:.4}; {} of {} rounds; set-up {} \
             of {} bytes",
            a.total_bytes(),
            b.total_bytes(),
            part(a.total_bytes(), b.total_bytes()),
            part(in_layers(&a), in_layers(&b)),
            a.rounds,
            b.rounds,
            a.setup_bytes,
            b.setup_bytes
        );
        let layers = part(in_layers(&a), in_layers(&b));
        assert!(layers > 0.0 && layers <= HALF_OF_LAYERS, "seq {seq}, past {past}: {layers} of the layers' bytes");
        if seq > 1 {
            assert!(2 * a.total_bytes() <= b.total_bytes(), "seq {seq}, past {past}: whole step");
        }
    }
    for (prompt, new) in [(8, 8), (32, 64), (128, 16)] {
        let request = |built: &Built| -> u64 {
            let decode = (1..new).map(|step| costs(built, 1, prompt + step - 1).total_bytes());
            costs(built, prompt, 0).total_bytes() + decode.sum::<u64>()
        };
        let (a, b) = (request(&frozen), request(&private));
        println!("prompt {prompt:>3}, {new:>2} tokens: {a:>9} of {b:>9} bytes, ratio {:.4}", a as f64 / b as f64);
        assert!(a as f64 <= HALF_OF_LAYERS * b as f64, "prompt of {prompt} and {new} tokens: {a} of {b}");
    }
}

/// A matrix with adapters, by the module of the exported program that it belongs to.
#[derive(Default)]
struct Adapted {
    /// Sizes of the matrix.
    sizes: (u64, u64),
    /// Rank of its adapters.
    rank: u64,
    /// Multiply-accumulates of two secrets: by the matrix, and by its adapters.
    matrix: u64,
    adapters: u64,
}

/// Secret products with every matrix that has adapters.
fn adapted(built: &Built, report: &Report) -> BTreeMap<String, Adapted> {
    let module = &built.plan.plan.module;
    let mut found: BTreeMap<String, Adapted> = BTreeMap::new();
    for node in &built.model.graph().node {
        let label = node.input.iter().filter_map(|input| built.compiled.labels.get(input)).next();
        let Some((label, used_by)) = label.and_then(|l| Some((l, l.readable.as_ref()?))) else { continue };
        let ([k, n], Some((name, part))) = (label.shape.as_slice(), used_by.rsplit_once("_proj.")) else { continue };
        let secret = |id: &Id| module.ty(*id).sharing == Sharing::Shared;
        // What adapters are scaled by may have been multiplied into their second matrix: the product is of that node then.
        let scaled = built.model.graph().node.iter().filter(|next| next.input.iter().any(|x| node.output.contains(x)));
        let scaled = scaled.filter(|_| part.contains("lora_B")).map(|next| next.name.as_str());
        let origins: Vec<&str> = scaled.chain([node.name.as_str()]).collect();
        let ops = report.ops.iter().filter(|op| origins.contains(&op.origin.as_str()) && op.op == "matmul");
        let ops = ops.filter(|op| module.node(Id(op.id)).args.iter().all(secret));
        let macs: u64 = ops.map(|op| op.macs).sum();
        let entry = found.entry(name.to_owned()).or_default();
        if part.contains("lora_") {
            entry.rank = (*k).min(*n) as u64;
            entry.adapters += macs;
        } else {
            entry.sizes = (*k as u64, *n as u64);
            entry.matrix += macs;
        }
    }
    found
}

#[test]
fn adapters_save_what_their_rank_says() {
    let public = build("llama-trained/lora", Some("llama-trained/base"), logits()).expect("it compiles");
    let private = build("llama-trained/lora", None, logits()).expect("it compiles");
    for (seq, past) in [(8, 0), (1, 64)] {
        let (a, b) = (costs(&public, seq, past), costs(&private, seq, past));
        let (a_all, b_all) = (a.macs.secret, b.macs.secret);
        let (a, b) = (adapted(&public, &a), adapted(&private, &b));
        assert_eq!(a.len(), 28, "seven matrices in each of four layers");
        for ((name, a), (other, b)) in a.iter().zip(&b) {
            assert_eq!(name, other);
            let ((k, n), r) = (a.sizes, a.rank);
            assert_eq!(r, 4);
            assert_eq!(a.matrix, 0, "{name}: the public matrix is a secret factor");
            assert_eq!((a.adapters, b.adapters), (seq * r * (n + k), seq * r * (n + k)), "{name}");
            assert_eq!(b.matrix * r * (n + k), a.adapters * n * k, "{name}: the saving is n k / (r (n + k))");
        }
        let ratio = |name: &str| a.get(name).map(|m| m.sizes).map(|(k, n)| (n * k) as f64 / (4 * (n + k)) as f64);
        let first = a.keys().next().expect("there are matrices");
        println!(
            "seq {seq} past {past}: secret by secret MACs of a whole step {a_all} instead of {b_all}; of {first} {:?} times \
             fewer",
            ratio(first)
        );
        assert!(a_all < b_all);
    }
}

/// Models on which savings are counted in a short run: frozen layers, adapters, copied heads, one
/// weight for queries and keys, tiny scores.
const COUNTED: &[&str] =
    &["llama-pair/frozen", "gpt2-pair/lora", "../cases/fp16-dynamo", "../cases/gptneo-dynamo", "../cases/tiny-scores"];

/// All bundled models that are compiled, with their bases.
fn all_models() -> Vec<(String, Option<&'static str>)> {
    let mut all: Vec<_> = corpus::MODELS.iter().map(|(name, base)| (name.to_string(), *base)).collect();
    for group in ["cases", "exporters"] {
        let entries = std::fs::read_dir(corpus::folder(&format!("../{group}"))).expect("the folder is bundled");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("it is readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let names = names.into_iter().map(|name| format!("../{group}/{name}"));
        all.extend(names.filter(|name| corpus::folder(name).join("model.onnx").exists()).map(|name| (name, None)));
    }
    all
}

/// Counting compiles the model once for every pass and refuses a pass that makes a step costlier. `OMBRA_LONG=1` counts on
/// every model.
#[test]
fn savings_are_counted_on_every_model() {
    let models = all_models();
    assert!(COUNTED.iter().all(|name| models.iter().any(|(other, _)| name == other)));
    for (name, base) in models.iter().filter(|(name, _)| corpus::long() || COUNTED.contains(&name.as_str())) {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|base| corpus::model(base).expect("the base is bundled"));
        let mut options = Options::default();
        let mut compiled = compile(&model, base.as_ref(), &options);
        // Encoders choose no token.
        if compiled.as_ref().is_err_and(|errors| errors[0].code == "E0551") {
            options.reveal = case::reveal(&model);
            compiled = compile(&model, base.as_ref(), &options);
        }
        let plan = compiled.unwrap_or_else(|e| panic!("{name}: {}", e[0])).plan;
        let saved = savings(&model, base.as_ref(), &options, &plan).unwrap_or_else(|e| panic!("{name}: {}", e[0]));
        let bytes = |at: usize| saved[at].steps.iter().map(|step| step.total_bytes()).sum::<u64>();
        assert_eq!(saved[0].pass, NAIVE);
        let (all, none) = (bytes(saved.len() - 1), bytes(0));
        // Some exporters' models are one operator, at which nothing is saved.
        assert!(all < none || all == none && !COUNTED.contains(&name.as_str()), "{name}: {all} of {none}");
    }
}
