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
use ombra_ir::settings::Setting;
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
    setting: Setting,
}

const EXACT: [&str; 3] = ["exact"; 3];

const TRAINED: Option<&str> = Some("llama-trained/base");

const CASES: &[Case] = &[
    exact("llama-trained/frozen", TRAINED, "llama-trained-frozen"),
    exact("llama-trained/lora", TRAINED, "llama-trained-lora"),
    exact("llama-trained/full", TRAINED, "llama-trained-full"),
    exact("llama-trained/frozen-headmerge", TRAINED, "llama-trained-frozen-headmerge"),
    exact("llama-trained/frozen", None, "llama-trained-frozen-all-private"),
    exact("gpt2-optimum-past", None, "gpt2-optimum-past"),
];

/// The table of docs/costs.md that shows what is sent and dealt with a dealer.
const WITH_DEALER: &[Case] = &[
    Case { setting: Setting::Dealer, ..exact("llama-trained/frozen", TRAINED, "dealer-llama-trained-frozen") },
    Case { setting: Setting::Dealer, ..exact("gpt2-optimum-past", None, "dealer-gpt2-optimum-past") },
];

/// The table of docs/costs.md that shows what two parties alone send.
const ALONE: &[Case] = &[
    Case { setting: Setting::TwoParty, ..exact("llama-trained/frozen", TRAINED, "two-party-llama-trained-frozen") },
    Case { setting: Setting::TwoParty, ..exact("gpt2-optimum-past", None, "two-party-gpt2-optimum-past") },
];

const fn exact(model: &'static str, base: Option<&'static str>, file: &'static str) -> Case {
    Case { model, base, file, forms: EXACT, setting: Setting::ThreeParty }
}

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
    Case { forms, ..exact("llama-trained/frozen", TRAINED, file) }
}

fn all_cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(&APPROXIMATED[1..]).chain(WITH_DEALER).chain(ALONE)
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
    compile(&model, base.as_ref(), &Options { approximations, setting: case.setting, ..Options::default() })
        .unwrap_or_else(|errors| {
            panic!("{}: {}", case.model, errors.iter().map(|e| format!("{e}\n")).collect::<String>())
        })
}

fn counts(case: &Case, compiled: &Compiled) -> String {
    let base = case.base.unwrap_or("none");
    let mut out = format!("model {}\nbase {base}\nreveal next-token\n", case.model);
    if case.setting != Setting::ThreeParty {
        let _ = writeln!(out, "setting {}", case.setting.name());
    }
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
        if let Some(bytes) = report.bytes.get(party) {
            let _ = writeln!(out, "  bytes {party} {bytes}");
        }
    }
    let dealt = report.offline_bytes.values().next();
    if let Some(bytes) = dealt {
        let _ = writeln!(out, "  bytes dealt {bytes}");
    }
    let _ = writeln!(out, "  bytes set-up {}", report.setup_bytes);
    let _ = writeln!(out, "  macs secret {}", report.macs.secret);
    let _ = writeln!(out, "  macs public {}", report.macs.public);
    let _ = writeln!(out, "  ops {}", report.ops.len());
    let head = if dealt.is_some() { format!(" {:>12}", "dealt") } else { String::new() };
    let _ = writeln!(out, "  {:<24} {:>8} {:>12}{head}", "kind", "sending", "bytes");
    for (kind, Kind { ops, online, offline }) in kinds(report) {
        let last = if dealt.is_some() { format!(" {offline:>12}") } else { String::new() };
        let _ = writeln!(out, "  {kind:<24} {ops:>8} {online:>12}{last}");
    }
}

/// Ops of one kind that send something, and what they send.
#[derive(Default)]
struct Kind {
    ops: usize,
    online: u64,
    offline: u64,
}

/// What ops send, by the composite op they come from.
fn kinds(report: &Report) -> BTreeMap<&str, Kind> {
    let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
    for op in report.ops.iter().filter(|op| op.total_bytes() > 0) {
        let entry = kinds.entry(op.kind()).or_default();
        entry.ops += 1;
        entry.online += op.bytes;
        entry.offline += op.offline_bytes;
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

/// The table of docs/costs.md between two further comments: what is sent and what is dealt.
fn dealer_table() -> String {
    let mut out = String::from(
        "| model | prompt of 32: sent | dealt | both | rounds | next token: sent | dealt | both | rounds |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for case in WITH_DEALER {
        let compiled = compiled(case);
        let _ = write!(out, "| `{}` |", case.model);
        for step in [report(&compiled, 32, 0), report(&compiled, 1, 32)] {
            let [online, dealt] = [step.online_bytes(), step.dealt_bytes()].map(size);
            let _ = write!(out, " {online} | {dealt} | {} | {} |", size(step.total_bytes()), step.rounds);
        }
        out.push('\n');
    }
    out
}

/// The table of docs/costs.md between the last comments: what client and server send where they are alone.
fn alone_table() -> String {
    let mut out = String::from(
        "| model | every session | prompt of 32: bytes | rounds | next token: bytes | rounds |\n|---|---|---|---|---|---|\n",
    );
    for case in ALONE {
        let compiled = compiled(case);
        let steps = [report(&compiled, 32, 0), report(&compiled, 1, 32)];
        let _ = write!(out, "| `{}` | {} |", case.model, size(steps[0].setup_bytes));
        for step in steps {
            let _ = write!(out, " {} | {} |", size(step.total_bytes()), step.rounds);
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_readme_has_these_costs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/costs.md");
    let tables = [
        ("counts", table()),
        ("approximations", approximations_table()),
        ("dealer", dealer_table()),
        ("two-party", alone_table()),
    ];
    for (name, expected) in tables {
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
    let by_kind: u64 = kinds(&report).values().map(|kind| kind.online).sum();
    assert_eq!(by_kind, report.total_bytes());
    assert!(report.rounds > 0 && by_kind > 0);
    assert!(report.offline_bytes.is_empty(), "nobody deals in this setting");
}

#[test]
fn every_byte_is_sent_or_dealt() {
    let report = report(&compiled(&WITH_DEALER[0]), 5, 3);
    let sum = |part: fn(&Kind) -> u64| kinds(&report).values().map(part).sum::<u64>();
    let (online, dealt) = (sum(|kind| kind.online), sum(|kind| kind.offline));
    assert_eq!((online, dealt), (report.online_bytes(), report.dealt_bytes()));
    assert!(online > 0 && dealt > 0);
    assert_eq!(report.total_bytes(), online + dealt);
    assert_eq!(report.bytes.keys().copied().collect::<Vec<_>>(), ["client", "server"]);
}
