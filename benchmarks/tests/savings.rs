//! What every pass of the compiler saves, to the byte and the round, compared with `benchmarks/savings/`.
//!
//! `OMBRA_BLESS=1 cargo test -p ombra-bench --test savings` writes the tables anew; read the difference.

mod common;

use common::{Folder, three_billion};
use ombra_bench::compare_table;
use ombra_compiler::inspect::size;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::Pass;
use ombra_compiler::pipeline::{Options, compile};
use ombra_compiler::savings::{NAIVE, savings};
use ombra_ir::plan::{Saving, StepCost};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A fine-tuned model and its base, by their folders in the corpus; without a base a form of the 3B model, whose weights
/// are not there: what is private is said by name.
const CASES: &[(&str, Option<&str>)] = &[
    ("llama-trained/frozen", TRAINED),
    ("llama-trained/lora", TRAINED),
    ("llama-trained/full", TRAINED),
    ("gpt2-pair/frozen", GPT2),
    ("gpt2-pair/lora", GPT2),
    ("gpt2-pair/full", GPT2),
    ("3b/frozen", None),
    ("3b/lora", None),
    ("3b/full", None),
];
const TRAINED: Option<&str> = Some("llama-trained/base");
const GPT2: Option<&str> = Some("gpt2-pair/base");
/// The first private layer of the frozen 3B model, and the rank of adapters of the other one.
const FROZEN_LAYERS: usize = 13;
const RANK: usize = 64;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("savings")
}

fn file_of(model: &str) -> String {
    format!("{}.md", model.replace('/', "-"))
}

fn read(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    Model::read(&models.join(name).join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Counted once for all tests.
fn counted(model: &str, base: Option<&str>) -> Vec<Saving> {
    static DONE: Mutex<BTreeMap<String, Vec<Saving>>> = Mutex::new(BTreeMap::new());
    let mut done = DONE.lock().expect("no test panics while it counts");
    done.entry(model.to_string()).or_insert_with(|| count(model, base)).clone()
}

fn count(name: &str, base: Option<&str>) -> Vec<Saving> {
    let mut options = Options::default();
    let (model, base) = match base {
        Some(base) => (read(name), Some(read(base))),
        None => (without_weights(name, &mut options), None),
    };
    let plan = compile(&model, base.as_ref(), &options).unwrap_or_else(|e| panic!("{name}: {}", e[0])).plan;
    savings(&model, base.as_ref(), &options, &plan).unwrap_or_else(|e| panic!("{name}: {}", e[0]))
}

/// The 3B model in a form, and what is private in it.
fn without_weights(form: &str, options: &mut Options) -> Model {
    let mut shape = three_billion();
    let private: Vec<String> = match form {
        "3b/full" => vec!["model.*".into(), "lm_head*".into()],
        "3b/lora" => {
            shape.lora = Some(RANK);
            vec!["*lora*".into()]
        }
        _ => {
            let layers = (FROZEN_LAYERS..shape.layers).map(|layer| format!("model.layers.{layer}.*"));
            layers.chain(["model.norm*".into(), "lm_head*".into()]).collect()
        }
    };
    options.overrides.private = private;
    options.overrides.public = vec!["*".into()];
    options.overrides.partly_public = true;
    Folder::new(&format!("savings-{}", form.replace('/', "-"))).model(&shape)
}

/// Two tables for every step: bytes and rounds after each pass, and bytes by kind.
fn tables(model: &str, base: Option<&str>, savings: &[Saving]) -> String {
    let against = match (base, model) {
        (Some(base), _) => format!("{model} against {base}"),
        (None, "3b/full") => "the 3B model, all private".into(),
        (None, "3b/lora") => format!("the 3B model, adapters of rank {RANK} private"),
        (None, _) => format!("the 3B model, {FROZEN_LAYERS} of its 26 layers public"),
    };
    let mut out = format!("# What each pass saves: {against}\n\n");
    out += "Exact bytes of all parties and rounds of one step, after each pass and the ones before it.\n";
    for (i, step) in savings[0].steps.iter().enumerate() {
        let dims = step.dims.iter().map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "\n## {}: {dims}\n", step.name);
        out += "| after | bytes | of naive | rounds |\n|---|---|---|---|\n";
        for saving in savings {
            let cost = &saving.steps[i];
            let part = cost.total_bytes() as f64 / step.total_bytes() as f64;
            let _ =
                writeln!(out, "| {} | {} | {:.2} % | {} |", saving.pass, cost.total_bytes(), 100.0 * part, cost.rounds);
        }
        let steps: Vec<&StepCost> = savings.iter().map(|s| &s.steps[i]).collect();
        let kinds: BTreeSet<&str> = steps.iter().flat_map(|s| &s.kinds).map(|(kind, _)| kind.as_str()).collect();
        let _ = writeln!(out, "\n| bytes after | {} |", kinds.iter().copied().collect::<Vec<_>>().join(" | "));
        let _ = writeln!(out, "|---|{}", "---|".repeat(kinds.len()));
        for (saving, step) in savings.iter().zip(&steps) {
            let of = |kind: &str| step.kinds.iter().find(|(k, _)| k == kind).map_or(0, |(_, bytes)| *bytes);
            let cells = kinds.iter().map(|kind| of(kind).to_string()).collect::<Vec<_>>().join(" | ");
            let _ = writeln!(out, "| {} | {cells} |", saving.pass);
        }
    }
    out
}

#[test]
fn savings_of_models_are_those_on_file() {
    let bless = std::env::var_os("OMBRA_BLESS").is_some();
    let mut wrong = Vec::new();
    for (model, base) in CASES {
        let savings = counted(model, *base);
        assert_eq!(savings[0].pass, NAIVE);
        for saving in &savings {
            for step in &saving.steps {
                let by_kind: u64 = step.kinds.iter().map(|(_, bytes)| bytes).sum();
                assert_eq!(by_kind, step.total_bytes(), "{model}, {}: every byte has a kind", saving.pass);
            }
        }
        let path = folder().join(file_of(model));
        let found = tables(model, *base, &savings);
        if bless {
            std::fs::write(&path, &found).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != found {
            wrong.push(file_of(model));
        }
    }
    let done = "if the change is meant: OMBRA_BLESS=1 cargo test -p ombra-bench --test savings";
    assert!(wrong.is_empty(), "{} changed\n{done}", wrong.join(", "));
}

/// The table of docs/costs.md between two comments: bytes and rounds of the first step of some models.
fn table(counted: &[(&str, Vec<Saving>)]) -> String {
    let models: Vec<String> = counted.iter().map(|(model, _)| format!("`{model}`: bytes | rounds")).collect();
    let mut out = format!("| after | {} |\n|---|{}\n", models.join(" | "), "---|---|".repeat(models.len()));
    for (i, saving) in counted[0].1.iter().enumerate() {
        let _ = write!(out, "| {} |", saving.pass);
        for (_, savings) in counted {
            let _ = write!(out, " {} | {} |", size(savings[i].steps[0].total_bytes()), savings[i].steps[0].rounds);
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_readme_has_these_savings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/costs.md");
    let shown = [CASES[0], CASES[1], CASES[3]].map(|(model, base)| (model, counted(model, base)));
    compare_table(&path, "savings", &table(&shown)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_file_of_savings_belongs_to_a_case() {
    for entry in std::fs::read_dir(folder()).expect("the folder is part of the repository").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(CASES.iter().any(|(model, _)| file_of(model) == name), "savings/{name} belongs to no case: remove it");
    }
}

#[test]
fn every_pass_saves_something_somewhere() {
    let mut idle: BTreeSet<&str> = Pass::ALL.iter().map(|pass| pass.name()).collect();
    // Turns even the load of links; they save no bytes, and no compilation takes them unasked.
    idle.remove(Pass::Rotations.name());
    // These exports are written in the cheapest of equal ways; `tests/tests/it/rewrites.rs` has some that are not.
    idle.remove(Pass::Rewrites.name());
    for (model, base) in CASES {
        let savings = counted(model, *base);
        for pair in savings.windows(2) {
            let saved = |a: &StepCost, b: &StepCost| b.total_bytes() < a.total_bytes() || b.rounds < a.rounds;
            if pair[0].steps.iter().zip(&pair[1].steps).any(|(a, b)| saved(a, b)) {
                idle.remove(pair[1].pass.as_str());
            }
        }
    }
    assert!(idle.is_empty(), "nothing is saved by {idle:?}");
}
