//! Cheaper functions in place of softmax, activations and norms: asked for, and recognised in models that have them.
//!
//! `tests/data/approximations/generate.py` rewrites models of the corpus node by node and records what ONNX Runtime
//! computes with them. The original compiled with the options, and the rewritten model compiled without, give that.

use ombra_compiler::graph::{Graph, eval};
use ombra_compiler::import::load_weight;
use ombra_compiler::onnx::Model;
use ombra_compiler::passes::approximate::Approximations;
use ombra_compiler::pipeline::{self, Options};
use ombra_ir::Diagnostic;
use ombra_ir::plain::Tensor;
use ombra_runtime::app::inputs::{find, infer_request};
use ombra_runtime::app::request::Advance;
use ombra_tests::built::{Built, build_with, logits};
use ombra_tests::corpus::{self, TestSet, test_set};
use ombra_tests::logits::max_error;
use ombra_tests::parties;
use std::collections::BTreeMap;

/// Maximum error of a logit under MPC.
const TOLERANCE: f64 = 0.02;
/// Maximum error of a logit in the clear, in single precision.
const CLEAR_TOLERANCE: f64 = 1e-3;

/// A model of the corpus, the forms that make a rewritten one of it, and that one's folder.
struct Case {
    original: &'static str,
    softmax: &'static str,
    activation: &'static str,
    norm: &'static str,
    rewritten: &'static str,
    sets: usize,
    /// Operators of the rewritten model: name, how often.
    operators: &'static [(&'static str, usize)],
}

const CASES: &[Case] = &[
    Case {
        original: "llama-torchscript-op17",
        softmax: "2relu",
        activation: "quad",
        norm: "affine",
        rewritten: "../approximations/llama-2relu-quad-affine",
        sets: 3,
        operators: &[
            ("ratio_softmax", 2),
            ("quadratic", 2),
            ("affine_norm", 5),
            ("rms_norm", 0),
            ("softmax", 0),
            ("silu", 0),
        ],
    },
    Case {
        original: "llama-torchscript-op17",
        softmax: "2quad",
        activation: "exact",
        norm: "exact",
        rewritten: "../approximations/llama-2quad",
        sets: 2,
        operators: &[("ratio_softmax", 2), ("silu", 2), ("rms_norm", 5), ("masked_softmax", 0)],
    },
    Case {
        original: "gpt2-optimum-past",
        softmax: "2relu",
        activation: "relu",
        norm: "affine",
        rewritten: "../approximations/gpt2-2relu-relu-affine",
        sets: 3,
        operators: &[("ratio_softmax", 2), ("relu", 2), ("affine_norm", 5), ("layer_norm", 0), ("gelu", 0)],
    },
];

fn forms(case: &Case) -> Approximations {
    Approximations {
        softmax: vec![case.softmax.parse().expect("a form")],
        activation: vec![case.activation.parse().expect("a form")],
        norm: vec![case.norm.parse().expect("a form")],
    }
}

fn options(case: &Case) -> Options {
    Options { reveal: logits(), approximations: forms(case), ..Options::default() }
}

fn show(errors: Vec<Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

fn reference(set: &TestSet) -> &Tensor {
    find(&set.outputs, "logits").expect("the set has logits")
}

/// The error of a graph in single precision against what ONNX Runtime computed with the rewritten model.
fn clear_error(graph: &Graph, model: &Model, set: &TestSet) -> f64 {
    let inputs: BTreeMap<_, _> = set.inputs.iter().cloned().collect();
    let weights = |name: &str| load_weight(model, name);
    let outputs = eval::evaluate(graph, &weights, &inputs).expect("the graph takes the inputs");
    let at = graph.outputs.iter().position(|o| o.name == "logits").expect("the graph gives logits");
    let got: Vec<f64> = outputs[at].as_f32().expect("logits are floats").iter().map(|v| f64::from(*v)).collect();
    max_error(&got, reference(set), find(&set.inputs, "attention_mask")).expect("logits are floats")
}

#[test]
fn models_that_have_them_are_recognised_and_mean_the_same() {
    for case in CASES {
        let model = corpus::model(case.rewritten).expect("the model is bundled");
        let analysed = pipeline::analyse(&model, None, &Options::default()).map_err(show).expect("it is imported");
        for &(name, count) in case.operators {
            let found = analysed.graph.iter().filter(|(_, n)| n.op.name() == name).count();
            assert_eq!(found, count, "{}: {name}", case.rewritten);
        }
        for index in 0..case.sets {
            let set = test_set(case.rewritten, index).expect("the set is bundled");
            let error = clear_error(&analysed.graph, &model, &set);
            assert!(error < CLEAR_TOLERANCE, "{} set {index}: {error}", case.rewritten);
        }
    }
}

#[test]
fn options_make_the_same_of_the_original() {
    for case in CASES {
        let model = corpus::model(case.original).expect("the model is bundled");
        let compiled = pipeline::compile(&model, None, &options(case)).map_err(show).expect("it compiles");
        for index in 0..case.sets {
            let set = test_set(case.rewritten, index).expect("the set is bundled");
            let error = clear_error(&compiled.graph, &model, &set);
            assert!(error < CLEAR_TOLERANCE, "{} set {index}: {error}", case.rewritten);
        }
        let changes = compiled.plan.changes.join("\n");
        for (form, formula) in [
            ("2relu", "max(x, 0) / (sum of max(x, 0) + 0.015625) and 0 where masked"),
            ("2quad", "(x + 5)^2 / (sum of (x + 5)^2) and 0 where masked"),
            ("quad", "0.125 x^2 + 0.25 x + 0.5"),
            ("relu", "becomes max(x, 0);"),
            ("affine", "becomes weight * "),
        ] {
            let asked = [case.softmax, case.activation, case.norm].contains(&form);
            assert_eq!(changes.contains(formula), asked, "{}: {changes}", case.rewritten);
        }
        let forms = [case.softmax, case.activation, case.norm].iter().filter(|f| **f != "exact").count();
        assert_eq!(compiled.plan.changes.len(), forms, "{changes}");
        assert!(compiled.plan.changes.iter().all(|c| c.contains("must be fine-tuned")), "{changes}");
    }
}

/// Runs every set between three parties and compares costs; gives the bytes and the rounds of the first one.
fn run_sets(case: &Case, built: &Built, what: &str) -> (u64, u32) {
    let mut first = None;
    for index in 0..case.sets {
        let set = test_set(case.rewritten, index).expect("the set is bundled");
        let (request, given) = infer_request(&built.plan.plan, set.inputs.clone()).expect("the set fits the plan");
        let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
        assert_eq!(costs.wrong, [], "{what}: ops whose bytes are not the declared ones");
        assert_eq!(costs.measured, costs.predicted, "{what}");
        let got = sides[0].steps[0].opened[0].reals();
        let mask = find(&set.inputs, "attention_mask");
        let error = max_error(&got, reference(&set), mask).expect("logits are floats");
        println!("{what} set {index}: error {error:.5}, {} rounds", costs.measured.rounds);
        assert!(error <= TOLERANCE, "{what} set {index}: error {error}");
        first.get_or_insert((costs.measured.bytes.iter().sum(), costs.measured.rounds));
    }
    first.expect("there is a set")
}

#[test]
fn they_are_as_exact_and_as_cheap_under_mpc_either_way() {
    for case in CASES {
        let model = || corpus::model(case.original).expect("the model is bundled");
        let asked = build_with(model(), None, &options(case)).unwrap_or_else(|e| panic!("{}: {e}", case.original));
        let exact = Options { reveal: logits(), ..Options::default() };
        let rewritten = corpus::model(case.rewritten).expect("the model is bundled");
        let arrived = build_with(rewritten, None, &exact).unwrap_or_else(|e| panic!("{}: {e}", case.rewritten));
        let asked_cost = run_sets(case, &asked, case.original);
        let arrived_cost = run_sets(case, &arrived, case.rewritten);
        assert!(arrived.plan.plan.changes.is_empty(), "nothing was asked for");
        assert_eq!(asked_cost, arrived_cost, "{}", case.rewritten);
        let set = test_set(case.rewritten, 0).expect("the set is bundled");
        let exact = build_with(model(), None, &exact).expect("it compiles");
        let (request, _) = infer_request(&exact.plan.plan, set.inputs).expect("the set fits the plan");
        let inputs = request.step(&exact.plan.plan, Advance::default(), u64::MAX).expect("the step has sizes");
        let step =
            ombra_runtime::app::program::prepare(&exact.plan.plan.module, &inputs.sizes, &inputs.public, u64::MAX)
                .expect("the step is planned");
        let bytes: u64 = step.cost.bytes.iter().sum();
        println!("{}: {:?} instead of {bytes} bytes and {} rounds", case.rewritten, asked_cost, step.cost.rounds);
        // A softmax by squares divides by sums of any size, which takes as many bytes as exponentials do, in fewer rounds.
        assert!(asked_cost.0 < bytes + bytes / 24 && asked_cost.1 < step.cost.rounds);
    }
}

fn two_layers(softmax: &[&str]) -> Result<Vec<String>, Vec<Diagnostic>> {
    let model = corpus::model("llama-torchscript-op17").expect("the model is bundled");
    let softmax = softmax.iter().map(|s| s.parse()).collect::<Result<_, _>>().map_err(|e| vec![e])?;
    let approximations = Approximations { softmax, ..Approximations::default() };
    pipeline::compile(&model, None, &Options { approximations, ..Options::default() }).map(|c| c.plan.changes)
}

#[test]
fn patterns_limit_them_and_the_last_choice_holds() {
    let [one] = two_layers(&["layers.1.*=2relu"]).map_err(show).unwrap().try_into().expect("one change");
    assert!(one.contains("1 node: ") && one.contains("layers.1/"), "{one}");
    let [by_name] = two_layers(&["2relu", "*layers.0/*=exact"]).map_err(show).unwrap().try_into().expect("one change");
    assert_eq!(by_name, one);
    let two = two_layers(&["2relu", "layers.0.*=l2quad:0.5,3"]).map_err(show).unwrap();
    assert_eq!(two.len(), 2, "{two:?}");
    assert!(two.iter().any(|c| c.contains("(x + 6)^2")), "{two:?}");
    assert_eq!(two_layers(&["2relu", "exact"]).map_err(show).unwrap(), Vec::<String>::new());
}

#[test]
fn wrong_choices_say_what_was_expected() {
    for (choices, code, says) in [
        (&["3relu"][..], "E0580", "expected exact, 2relu, 2quad or l2quad:A,B"),
        (&["l2quad"], "E0580", "learned constants"),
        (&["l2quad:0,1"], "E0580", "expected exact"),
        (&["l2quad:nan,1"], "E0580", "expected exact"),
        (&["layers.7.*=2relu"], "E0581", "names no node under MPC"),
        (&["[=2relu"], "E0581", "is no pattern"),
    ] {
        let errors = two_layers(choices).expect_err("it is refused");
        assert_eq!(errors[0].code, code, "{choices:?}");
        assert!(show(errors).contains(says), "{choices:?}");
    }
}

#[test]
fn what_the_client_computes_stays() {
    let [model, base] =
        ["llama-trained/frozen", "llama-trained/base"].map(|n| corpus::model(n).expect("it is bundled"));
    let approximations =
        Approximations { softmax: vec!["2relu".parse().expect("a form")], ..Approximations::default() };
    let compiled = pipeline::compile(&model, Some(&base), &Options { approximations, ..Options::default() });
    let compiled = compiled.map_err(show).expect("it compiles");
    let owners = |name: &str| -> Vec<&str> {
        compiled.graph.iter().filter(|(_, n)| n.op.name() == name).map(|(_, n)| n.owner.name()).collect()
    };
    assert_eq!(owners("masked_softmax"), ["client", "client"]);
    assert_eq!(owners("ratio_softmax"), ["secret", "secret"]);
}
