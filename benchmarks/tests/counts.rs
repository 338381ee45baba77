//! What compiled models cost, to the byte and the round, compared with `benchmarks/counts/` and
//! with the table in docs/costs.md.
//!
//! The transport measures what these formulas declare, so a changed file is a changed cost of a run. Every file holds
//! one plan at several sizes. `OMBRA_BLESS=1 cargo test -p ombra-bench` writes both anew; read the difference.

use ombra_bench::compare_table;
use ombra_compiler::inspect::{Report, inspect, size};
use ombra_compiler::onnx::Model;
use ombra_compiler::passes::approximate::Approximations;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_ir::plan;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A model of the corpus, its base if it has one, and the name of its file.
struct Case {
    model: &'static str,
    base: Option<&'static str>,
    file: &'static str,
    /// Forms of softmax, activation and norm.
    forms: [&'static str; 3],
}

const EXACT: [&str; 3] = ["exact"; 3];

const TRAINED: Option<&str> = Some("llama-trained/base");

const CASES: &[Case] = &[
    Case { model: "llama-trained/frozen", base: TRAINED, file: "llama-trained-frozen", forms: EXACT },
    Case { model: "llama-trained/lora", base: TRAINED, file: "llama-trained-lora", forms: EXACT },
    Case { model: "llama-trained/full", base: TRAINED, file: "llama-trained-full", forms: EXACT },
    Case {
        model: "llama-trained/frozen-headmerge",
        base: TRAINED,
        file: "llama-trained-frozen-headmerge",
        forms: EXACT,
    },
    Case { model: "llama-trained/frozen", base: None, file: "llama-trained-frozen-all-private", forms: EXACT },
    Case { model: "gpt2-optimum-past", base: None, file: "gpt2-optimum-past", forms: EXACT },
];

/// The table of docs/costs.md that shows what approximations save.
const APPROXIMATED: &[Case] = &[
    approximated("llama-trained-frozen", EXACT),
    approximated("llama-trained-frozen-2relu", ["2relu", "exact", "exact"]),
    approximated("llama-trained-frozen-2quad", ["2quad", "exact", "exact"]),
    approximated("llama-trained-frozen-relu", ["exact", "relu", "exact"]),
    approximated("llama-trained-frozen-quad", ["exact", "quad", "exact"]),
    approximated("llama-trained-frozen-affine", ["exact", "exact", "affine"]),
    approximated("llama-trained-frozen-2relu-relu-affine", ["2relu", "relu", "affine"]),
    approximated("llama-trained-frozen-2quad-quad-affine", ["2quad", "quad", "affine"]),
];

const fn approximated(file: &'static str, forms: [&'static str; 3]) -> Case {
    Case { model: "llama-trained/frozen", base: TRAINED, file, forms }
}

fn all_cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(&APPROXIMATED[1..])
}

/// Steps that are counted: name, new tokens, cached tokens.
const STEPS: &[(&str, u64, u64)] = &[("prefill", 8, 0), ("prefill", 32, 0), ("prefill", 64, 0), ("decode", 1, 32)];

/// Nothing but these names may lie in the folder.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts")
}

fn read(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    Model::read(&models.join(name).join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn compiled(case: &Case) -> Compiled {
    let (model, base) = (read(case.model), case.base.map(read));
    let [softmax, activation, norm] = case.forms;
    let wrong = |e| -> ! { panic!("{}: {e}", case.file) };
    let approximations = Approximations {
        softmax: vec![softmax.parse().unwrap_or_else(|e| wrong(e))],
        activation: vec![activation.parse().unwrap_or_else(|e| wrong(e))],
        norm: vec![norm.parse().unwrap_or_else(|e| wrong(e))],
    };
    compile(&model, base.as_ref(), &Options { approximations, ..Options::default() }).unwrap_or_else(|errors| {
        panic!("{}: {}", case.model, errors.iter().map(|e| format!("{e}\n")).collect::<String>())
    })
}

fn counts(case: &Case, compiled: &Compiled) -> String {
    let base = case.base.unwrap_or("none");
    let mut out = format!("model {}\nbase {base}\nreveal next-token\n", case.model);
    for change in &compiled.plan.changes {
        let _ = writeln!(out, "change {}", change.split(';').next().unwrap_or_default());
    }
    for &(name, seq, past) in STEPS {
        out.push('\n');
        let _ = writeln!(out, "{name} seq={seq} past={past}");
        step(&mut out, &report(compiled, seq, past));
    }
    out
}

fn report(compiled: &Compiled, seq: u64, past: u64) -> Report {
    let plan = &compiled.plan;
    let symbol = |symbol: &Option<String>| symbol.clone().expect("models of the corpus have both sizes");
    let given = BTreeMap::from([(symbol(&plan.seq), seq), (symbol(&plan.past), past)]);
    inspect(plan, &given).unwrap_or_else(|e| panic!("seq={seq} past={past}: {e}"))
}

fn step(out: &mut String, report: &Report) {
    let _ = writeln!(out, "  rounds {}", report.rounds);
    for party in ["client", "server", "helper"] {
        let _ = writeln!(out, "  bytes {party} {}", report.bytes[party]);
    }
    let _ = writeln!(out, "  bytes set-up {}", report.setup_bytes);
    let _ = writeln!(out, "  macs secret {}", report.macs.secret);
    let _ = writeln!(out, "  macs public {}", report.macs.public);
    let _ = writeln!(out, "  ops {}", report.ops.len());
    let _ = writeln!(out, "  {:<24} {:>8} {:>12}", "kind", "sending", "bytes");
    for (kind, (ops, bytes)) in kinds(report) {
        let _ = writeln!(out, "  {kind:<24} {ops:>8} {bytes:>12}");
    }
}

/// Ops that send something, and what they send, by the composite op they come from.
fn kinds(report: &Report) -> BTreeMap<&str, (usize, u64)> {
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for op in report.ops.iter().filter(|op| op.bytes > 0) {
        let entry = kinds.entry(op.kind()).or_default();
        entry.0 += 1;
        entry.1 += op.bytes;
    }
    kinds
}

#[test]
fn costs_of_models_are_those_on_file() {
    let bless = std::env::var_os("OMBRA_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in all_cases() {
        let path = folder().join(format!("{}.txt", case.file));
        let found = counts(case, &compiled(case));
        if bless {
            std::fs::write(&path, &found).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if expected != found {
            let mut lines = expected.lines().chain(std::iter::repeat("")).zip(found.lines()).enumerate();
            let first = lines.find(|(_, (e, f))| e != f).map_or_else(
                || "lines are missing".to_string(),
                |(n, (e, f))| format!("line {}: expected `{}`, found `{}`", n + 1, e.trim(), f.trim()),
            );
            wrong.push(format!("{}.txt {first}", case.file));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nif the change of cost is meant: OMBRA_BLESS=1 cargo test -p ombra-bench",
        wrong.join("\n")
    );
}

/// The table of docs/costs.md between two comments: bytes of all parties, and rounds.
fn table() -> String {
    let mut out = String::from(
        "| model | public | set-up | prompt of 32: bytes | rounds | next token: bytes | rounds |\n|---|---|---|---|---|---|---|\n",
    );
    for case in CASES {
        let compiled = compiled(case);
        let (prompt, token) = (report(&compiled, 32, 0), report(&compiled, 1, 32));
        let public = if case.base.is_some() { "what is in the base" } else { "nothing" };
        let _ = writeln!(
            out,
            "| `{}` | {public} | {} | {} | {} | {} | {} |",
            case.model,
            size(prompt.setup_bytes),
            size(prompt.total_bytes()),
            prompt.rounds,
            size(token.total_bytes()),
            token.rounds
        );
    }
    out
}

/// The table of docs/costs.md between two other comments: what approximations save.
fn approximations_table() -> String {
    let mut out = String::from(
        "| softmax | activation | norm | prompt of 32: bytes | rounds | next token: bytes | rounds |\n|---|---|---|---|---|---|---|\n",
    );
    for case in APPROXIMATED {
        let compiled = compiled(case);
        let (prompt, token) = (report(&compiled, 32, 0), report(&compiled, 1, 32));
        let [softmax, activation, norm] = case.forms;
        let _ = writeln!(
            out,
            "| {softmax} | {activation} | {norm} | {} | {} | {} | {} |",
            size(prompt.total_bytes()),
            prompt.rounds,
            size(token.total_bytes()),
            token.rounds
        );
    }
    out
}

#[test]
fn the_readme_has_these_costs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/costs.md");
    for (name, expected) in [("counts", table()), ("approximations", approximations_table())] {
        compare_table(&path, name, &expected).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn every_file_belongs_to_a_case() {
    for entry in std::fs::read_dir(folder()).expect("the folder is part of the repository").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(
            all_cases().any(|case| name.strip_suffix(".txt") == Some(case.file)),
            "counts/{name} belongs to no case: remove it"
        );
    }
}

#[test]
fn the_same_model_gives_the_same_plan() {
    let encoded = || plan::encode(&compiled(&CASES[1]).plan).expect("a compiled plan can be encoded");
    assert!(encoded() == encoded(), "two plans of one model differ");
}

#[test]
fn every_byte_belongs_to_a_party_and_to_a_kind() {
    let report = report(&compiled(&CASES[0]), 5, 3);
    let by_kind: u64 = kinds(&report).values().map(|k| k.1).sum();
    assert_eq!(by_kind, report.total_bytes());
    assert!(report.rounds > 0 && by_kind > 0);
}
