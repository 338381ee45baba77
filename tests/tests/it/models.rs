//! Every model of the corpus between three parties: logits and next tokens against ONNX Runtime, costs against their
//! declaration.

use ombra_ir::module::OutputKind;
use ombra_ir::plain::Tensor;
use ombra_ir::settings::Setting;
use ombra_runtime::app::Request;
use ombra_runtime::app::inputs::{Named, find, infer_request, token_ids};
use ombra_tests::built::{Built, build_in, logits};
use ombra_tests::corpus::{TestSet, is_causal, selected, sets, test_set};
use ombra_tests::logits::{greatest, max_error};
use ombra_tests::parties::{self, Side};

/// Maximum error of a logit.
const TOLERANCE: f64 = 0.02;

/// Runs a test set and compares its costs; gives the sides and the request.
fn run_set(name: &str, built: &Built, set: &TestSet) -> ([Side; 3], Request) {
    let (request, given) = infer_request(&built.plan.plan, set.inputs.clone()).expect("the set fits the plan");
    let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{name}: {e}"));
    check_costs(name, built, &request, &sides);
    (sides, request)
}

fn check_costs(name: &str, built: &Built, request: &Request, sides: &[Side; 3]) {
    for index in 0..sides[0].steps.len() {
        let costs = parties::costs(&built.plan, request, sides, index).expect("the step has costs");
        assert_eq!(costs.wrong, [], "{name}: ops of step {index} whose bytes are not the declared ones");
        assert_eq!(costs.measured, costs.predicted, "{name}: step {index}");
    }
}

fn reference(set: &TestSet) -> &Tensor {
    find(&set.outputs, "logits").expect("the set has logits")
}

/// What came out of one test set: rows, rows whose maximum entry is the reference's, and the maximum error.
#[derive(Default)]
struct Outcome {
    rows: usize,
    equal: usize,
    error: f64,
}

/// All logits of a set, part by part: their error, and for a model without next tokens the maximum of every row.
fn all_logits(name: &str, built: &Built, set: &TestSet) -> Outcome {
    let (sides, request) = run_set(name, built, set);
    let want = reference(set);
    let opened = sides[0].steps[0].opened[0].reals();
    let mask = find(&set.inputs, "attention_mask");
    let error = max_error(&opened, want, mask).expect("logits are floats");
    let meter = &sides[0].steps[0].meter;
    let bytes: u64 = sides.iter().map(|side| side.steps[0].meter.sent_bytes()).sum();
    let rounds = sides.iter().map(|side| side.steps[0].meter.depth).max();
    let given = if request.gives_states() { "given cache" } else { "no cache" };
    println!("{name:<32} {:?} {given}: error {error:.5}, {} kB, {rounds:?} rounds", want.shape(), bytes / 1000);
    assert!(meter.sent_bytes() > 0);
    let mut outcome = Outcome { error, ..Outcome::default() };
    if let [_, width] = *want.shape() {
        let rows = want.as_f32().expect("logits are floats").chunks_exact(width);
        for (row, got) in rows.zip(opened.chunks_exact(width)) {
            let got: Vec<f32> = got.iter().map(|x| *x as f32).collect();
            let (expected, margin) = greatest(row);
            outcome.rows += 1;
            outcome.equal += usize::from(greatest(&got).0 == expected);
            assert!(greatest(&got).0 == expected || margin <= 2.0 * error, "{name}: another class");
        }
    }
    outcome
}

/// The next tokens of a set, where another token is no error if the reference nearly chose it: `error` is that of logits.
fn next_tokens(name: &str, built: &Built, set: &TestSet, error: f64) -> Outcome {
    let (sides, _) = run_set(name, built, set);
    let tokens = &sides[0].steps[0].opened[0].values;
    let want = reference(set);
    let [batch, seq, width] = *want.shape() else { panic!("{name}: logits have three axes") };
    let rows = want.as_f32().expect("logits are floats");
    assert_eq!(tokens.len(), batch);
    let mut outcome = Outcome { rows: batch, ..Outcome::default() };
    for (row, token) in tokens.iter().enumerate() {
        let (expected, margin) = greatest(&rows[((row + 1) * seq - 1) * width..][..width]);
        outcome.equal += usize::from(*token == expected as i64);
        assert!(*token == expected as i64 || margin <= 2.0 * error, "{name}: token {token}");
    }
    outcome
}

#[test]
fn logits_and_tokens_are_those_of_onnx_runtime() {
    logits_and_tokens(Setting::ThreeParty);
}

#[test]
fn logits_and_tokens_are_those_of_onnx_runtime_with_a_dealer() {
    logits_and_tokens(Setting::Dealer);
}

fn logits_and_tokens(setting: Setting) {
    let mut table = Vec::new();
    for (name, base) in selected() {
        let all = build_in(setting, name, base, logits()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let next = is_causal(name)
            .then(|| build_in(setting, name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}")));
        let mut worst = Outcome::default();
        assert!(sets(name) > 0, "{name} has test sets");
        for index in 0..sets(name) {
            let set = test_set(name, index).expect("the set is bundled");
            for part in &set.parts().expect("every tensor has a batch") {
                let logits = all_logits(name, &all, part);
                let chosen = match &next {
                    Some(next) => next_tokens(name, next, part, logits.error),
                    None => Outcome { error: 0.0, ..logits },
                };
                assert!(logits.error <= TOLERANCE, "{name} set {index}: error {}", logits.error);
                worst.error = worst.error.max(logits.error);
                worst.rows += chosen.rows;
                worst.equal += chosen.equal;
            }
        }
        table.push(format!("| `{name}` | {} | {:.5} | {} of {} |", sets(name), worst.error, worst.equal, worst.rows));
    }
    println!("{}", table.join("\n"));
}

#[test]
fn prefill_and_decode_cost_what_is_declared() {
    prefill_and_decode(Setting::ThreeParty);
}

#[test]
fn prefill_and_decode_cost_what_is_declared_with_a_dealer() {
    prefill_and_decode(Setting::Dealer);
}

fn prefill_and_decode(setting: Setting) {
    for (name, base) in selected() {
        let built = build_in(setting, name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plan = &built.plan.plan;
        // A model of one fixed length, or without next tokens, generates nothing.
        if plan.seq.is_none() || plan.module.outputs.iter().all(|o| o.kind != OutputKind::NextToken) {
            continue;
        }
        let request = Request::text(7);
        let tokens = [3, 1, 4, 1, 5, 9, 2];
        let given: Vec<Vec<Named>> = (0..3)
            .map(|step| {
                let new = if step > 0 && plan.past.is_some() { 4 + step } else { 0 };
                vec![token_ids(plan, &[tokens[new..5 + step].to_vec()]).expect("the model takes token ids")]
            })
            .collect();
        let sides = parties::run(&built.plan, &request, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
        check_costs(name, &built, &request, &sides);
        let sent = |step: usize| -> u64 { sides.iter().map(|side| side.steps[step].meter.sent_bytes()).sum() };
        println!("{name:<32} prefill 5: {} B, then {} B and {} B", sent(0), sent(1), sent(2));
        assert_eq!(sides[0].steps.len(), 3);
    }
}
