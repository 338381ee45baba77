//! What passes between the parties tells nothing: frames of one size, order and tick whatever the prompt and the private
//! weights, and payloads that look like uniform bytes, of adapters and of frozen layers.

use ombra_ir::module::Party;
use ombra_runtime::app::inputs::token_ids;
use ombra_runtime::app::{PlanFolder, Request};
use ombra_tests::built::{Built, build};
use ombra_tests::parties::{self, Sent, Side};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const NAME: &str = "llama-pair/lora";
const FROZEN: &str = "llama-pair/frozen";
const BASE: Option<&str> = Some("llama-pair/base");
/// Above this, the statistic of 256 counts with 255 degrees of freedom is an alarm: 8.2 standard deviations, and a
/// chance below 10^-10 for uniform bytes (a bound of Laurent and Massart, 2000: with x = 24, the chance of more than
/// 255 + 2 √(255 x) + 2 x = 460 is below e^-24 = 4 · 10^-11).
const ALARM: f64 = 460.0;

/// A prefill and two steps.
fn generated(folder: &PlanFolder, prompt: [i64; 6], next: [i64; 2]) -> [Side; 3] {
    let request = Request::text(8);
    let parts = [&prompt[..], &next[..1], &next[1..]];
    let given = parts.map(|tokens| vec![token_ids(&folder.plan, &[tokens.to_vec()]).expect("the model takes tokens")]);
    parties::run(folder, &request, &given).unwrap_or_else(|e| panic!("{e}"))
}

fn frames(sides: &[Side; 3]) -> [&[Sent]; 3] {
    [0, 1, 2].map(|party| sides[party].log.sent.as_slice())
}

/// Replaces the server's weights by others of the same names and shapes.
fn change_weights(built: &Built) {
    let path = built.folder.path().join("server/weights.safetensors");
    let bytes = std::fs::read(&path).expect("the server has weights");
    let file = SafeTensors::deserialize(&bytes).expect("they are readable");
    let changed: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let values = values.iter().rev().map(|v| -0.75 * v);
            (name.to_owned(), view.shape().to_vec(), values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
        .collect();
    let views = changed.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).expect("shape and data fit"))
    });
    safetensors::serialize_to_file(views, None, &path).expect("it can be written");
}

#[test]
fn frames_depend_on_shapes_alone() {
    let built = build(NAME, BASE, Vec::new()).expect("it compiles");
    let first = generated(&built.plan, [3, 1, 4, 1, 5, 9], [2, 6]);
    let other_prompt = generated(&built.plan, [97, 53, 0, 111, 53, 53], [0, 101]);
    assert!(frames(&first).iter().all(|sent| sent.len() > 100), "every party sends");
    assert!(frames(&first) == frames(&other_prompt), "frames depend on the prompt");
    change_weights(&built);
    let plan = PlanFolder::open(built.folder.path()).expect("it opens");
    let other_weights = generated(&plan, [3, 1, 4, 1, 5, 9], [2, 6]);
    assert!(frames(&first) == frames(&other_weights), "frames depend on the private weights");
    // The weights are others indeed.
    let cut = [0, 1, 2].map(|step| first[0].steps[step].opened[0].values[0]);
    let changed = [0, 1, 2].map(|step| other_weights[0].steps[step].opened[0].values[0]);
    println!("tokens {cut:?} and {changed:?} from {} frames of the client", frames(&first)[0].len());
}

fn chi_square(counts: &[u64; 256]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / 256.0;
    counts.iter().map(|n| (*n as f64 - expected).powi(2) / expected).sum()
}

/// Every pair of receiver and sender whose bytes are enough to judge. The helper gets its keys of what is looked up, and
/// nothing else: that may be too little.
fn judged(sides: &[Side; 3], parties: &[Party]) -> Vec<(Party, Party)> {
    let pairs = parties.iter().flat_map(|to| parties.iter().map(|from| (*to, *from))).filter(|(to, from)| to != from);
    pairs
        .filter(|(to, from)| {
            let total: u64 = sides[to.index()].log.received[from.index()].iter().sum();
            assert!(total > 256 * 8 || *to == Party::Helper && total < 256, "too little to judge");
            total >= 256
        })
        .collect()
}

fn check_uniform(sides: &[Side; 3], parties: &[Party]) {
    for (to, from) in judged(sides, parties) {
        let counts = &sides[to.index()].log.received[from.index()];
        let (total, statistic) = (counts.iter().sum::<u64>(), chi_square(counts));
        println!("{} from {}: {total} bytes, chi-square {statistic:.1}", to.name(), from.name());
        assert!(statistic < ALARM, "{} from {}: {statistic}", to.name(), from.name());
    }
}

#[test]
fn received_bytes_look_uniform() {
    let built = build(NAME, BASE, Vec::new()).expect("it compiles");
    check_uniform(&generated(&built.plan, [7; 6], [7, 7]), built.plan.plan.module.setting.protocol().parties);
}

/// A model whose first layers are the base's: the client runs them in the clear and shares the hidden states that they
/// give. What server and helper see of two prompts of one length has the same frames, looks uniform for both, and cannot
/// be told apart: `Σ (a - b)² / (a + b)` over the 256 values has 255 degrees of freedom for two draws of one
/// distribution.
#[test]
fn views_of_a_frozen_plan_do_not_depend_on_the_prompt() {
    let built = build(FROZEN, BASE, Vec::new()).expect("it compiles");
    assert!(built.plan.client_model().expect("it opens").is_some(), "the client runs a part in the clear");
    let parties = built.plan.plan.module.setting.protocol().parties;
    let one = generated(&built.plan, [7; 6], [7, 7]);
    let other = generated(&built.plan, [97, 53, 0, 111, 53, 12], [0, 101]);
    assert!(frames(&one) == frames(&other), "frames depend on the prompt");
    for sides in [&one, &other] {
        check_uniform(sides, parties);
    }
    for (to, from) in judged(&one, parties) {
        let [a, b] = [&one, &other].map(|sides| &sides[to.index()].log.received[from.index()]);
        let apart = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2) / (a + b).max(1) as f64).sum::<f64>();
        println!("{} from {}: two prompts differ by chi-square {apart:.1}", to.name(), from.name());
        assert!(apart < ALARM, "{} from {}: {apart}", to.name(), from.name());
    }
}
