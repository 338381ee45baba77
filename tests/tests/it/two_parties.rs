//! Models of the corpus between two processes that have nobody beside them: logits against ONNX Runtime, texts with a cache,
//! drawn tokens, and what all of it costs.

use std::process::Command;

use ombra_compiler::pipeline::Options;
use ombra_ir::module::Setting;
use ombra_runtime::app::report::Report;
use ombra_tests::built::{Built, build_in, build_with, logits};
use ombra_tests::corpus;

/// Maximum error of a logit.
const TOLERANCE: f64 = 0.02;

/// Runs a plan between two processes; what `arguments` ask for must come out at the declared cost.
fn local(name: &str, built: &Built, arguments: &[&str]) -> Report {
    let path = built.folder.path().join("report.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tested-ombra-run"));
    command.arg("local").arg(built.folder.path()).args(["--threads", "1"]).args(arguments).arg("--report").arg(&path);
    let done = command.output().expect("it starts");
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    let report: Report = serde_json::from_slice(&std::fs::read(&path).expect("there is a report")).expect("it is JSON");
    assert_eq!(report.setting, "2pc");
    report.check_costs().unwrap_or_else(|e| panic!("{name}: {e}"));
    for phase in &report.phases {
        let sent: u64 = phase.bytes.values().map(|bytes| bytes.measured).sum();
        println!("{name:<30} {:<8} {sent} B, {} rounds, {:.2} s", phase.name, phase.rounds.measured, phase.seconds);
    }
    report
}

/// A classifier with GELU and layer norms, and decoders of GPT-2's and LLaMA's kind; with `OMBRA_LONG` the whole corpus.
#[test]
fn logits_are_those_of_onnx_runtime_between_two_processes() {
    let few = ["bert-functions-2.5", "gpt2-torchscript-op13-fixed", "llama-torchscript-op17"].map(|name| (name, None));
    for (name, base) in if corpus::long() { corpus::selected() } else { few.to_vec() } {
        let built = build_in(Setting::TwoParty, name, base, logits()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let set = corpus::folder(name).join("test_data_set_0");
        let report = local(name, &built, &["--test-data", set.to_str().expect("it is text")]);
        let outputs = report.test_data.expect("it was compared").outputs;
        let error = outputs.iter().find(|output| output.name == "logits").and_then(|output| output.max_abs_error);
        println!("{name:<30} error {error:?}");
        assert!(error.is_some_and(|error| error <= TOLERANCE), "{name}: {error:?}");
    }
}

/// Prefill, and further tokens with a cache, compared with the same program in the clear.
#[test]
fn texts_grow_with_a_cache_between_two_processes() {
    for name in ["gpt2-optimum-past", "llama-gqa-ort-extended"] {
        let built = build_in(Setting::TwoParty, name, None, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let report = local(name, &built, &["--tokens", "3,1,4,1,5", "-n", "3", "--verify"]);
        let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["setup", "prefill", "decode", "decode"]);
        assert_eq!(report.tokens.map(|tokens| tokens.len()), Some(3));
        assert!(report.verify.is_some(), "{name}");
    }
}

#[test]
fn tokens_are_drawn_between_two_processes() {
    let name = "llama-optimum-1.10";
    let options = Options { setting: Setting::TwoParty, ..Options::default() };
    let model = corpus::model(name).expect("it is bundled");
    let built = build_with(model, None, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    for drawing in [&["--temperature", "1.5"][..], &["--temperature", "1", "--top-k", "6", "--top-p", "0.8"]] {
        let arguments = [&["--tokens", "3,1,4", "-n", "2", "--verify"][..], drawing].concat();
        let report = local(name, &built, &arguments);
        assert_eq!(report.tokens.map(|tokens| tokens.len()), Some(2));
    }
}
