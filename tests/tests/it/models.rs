//! Every model of the corpus between three parties: logits and next tokens against ONNX Runtime, costs against their
//! declaration.

use ombra_ir::plain::Tensor;
use ombra_runtime::app::Request;
use ombra_runtime::app::inputs::{Named, find, infer_request, token_ids};
use ombra_tests::built::{Built, build, logits};
use ombra_tests::corpus::{TestSet, selected, test_set};
use ombra_tests::logits::{greatest, max_error};
use ombra_tests::parties::{self, Side};

/// Greatest error of a logit.
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

#[test]
fn logits_and_tokens_are_those_of_onnx_runtime() {
    for (name, base) in selected() {
        let all = build(name, base, logits()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let next = build(name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for index in 0..3 {
            let set = test_set(name, index).expect("the set is bundled");
            let (sides, request) = run_set(name, &all, &set);
            let mask = find(&set.inputs, "attention_mask");
            let want = reference(&set);
            let error = max_error(&sides[0].steps[0].opened[0].reals(), want, mask).expect("logits are floats");
            let meter = &sides[0].steps[0].meter;
            let bytes: u64 = sides.iter().map(|side| side.steps[0].meter.sent_bytes()).sum();
            let rounds = sides.iter().map(|side| side.steps[0].meter.depth).max();
            let given = if request.gives_states() { "given cache" } else { "no cache" };
            assert!(meter.sent_bytes() > 0);

            let (sides, _) = run_set(name, &next, &set);
            let tokens = &sides[0].steps[0].opened[0].values;
            let [batch, seq, width] = *want.shape() else { panic!("{name}: logits have three axes") };
            let rows = want.as_f32().expect("logits are floats");
            assert_eq!(tokens.len(), batch);
            let mut agreed = 0;
            for (row, token) in tokens.iter().enumerate() {
                let (expected, margin) = greatest(&rows[((row + 1) * seq - 1) * width..][..width]);
                agreed += usize::from(*token == expected as i64);
                assert!(*token == expected as i64 || margin <= 2.0 * error, "{name} set {index}: token {token}");
            }
            println!(
                "{name:<32} set {index} {:?} {given}: error {error:.5}, tokens {agreed}/{batch}, {} kB, {rounds:?} rounds",
                want.shape(),
                bytes / 1000
            );
            assert!(error <= TOLERANCE, "{name} set {index}: error {error}");
        }
    }
}

#[test]
fn prefill_and_decode_cost_what_is_declared() {
    for (name, base) in selected() {
        let built = build(name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plan = &built.plan.plan;
        let request = Request::Generate { prompt: 5, batch: 1, steps: 3 };
        let tokens = [3, 1, 4, 1, 5, 9, 2];
        let given: Vec<Vec<Named>> = (0..3)
            .map(|step| {
                let new = if step > 0 && plan.past.is_some() { 4 + step } else { 0 };
                vec![token_ids(plan, &tokens[new..5 + step]).expect("the model takes token ids")]
            })
            .collect();
        let sides = parties::run(&built.plan, &request, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
        check_costs(name, &built, &request, &sides);
        let sent = |step: usize| -> u64 { sides.iter().map(|side| side.steps[step].meter.sent_bytes()).sum() };
        println!("{name:<32} prefill 5: {} B, then {} B and {} B", sent(0), sent(1), sent(2));
        assert_eq!(sides[0].steps.len(), 3);
    }
}
