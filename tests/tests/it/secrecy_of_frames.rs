//! What passes between the parties tells nothing: frames of one size, order and tick whatever the prompt and the private
//! weights, and payloads that look like uniform bytes.

use ombra_ir::module::Party;
use ombra_runtime::app::inputs::token_ids;
use ombra_runtime::app::{PlanFolder, Request};
use ombra_tests::built::{Built, build};
use ombra_tests::parties::{self, Sent, Side};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const NAME: &str = "llama-pair/lora";
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

#[test]
fn received_bytes_look_uniform() {
    let built = build(NAME, BASE, Vec::new()).expect("it compiles");
    let sides = generated(&built.plan, [7; 6], [7, 7]);
    let parties = built.plan.plan.module.setting.protocol().parties;
    for receiver in parties {
        for sender in parties.iter().filter(|sender| *sender != receiver) {
            let counts = &sides[receiver.index()].log.received[sender.index()];
            let total: u64 = counts.iter().sum();
            let statistic = chi_square(counts);
            println!("{} from {}: {total} bytes, chi-square {statistic:.1}", receiver.name(), sender.name());
            // The helper gets its keys of what is looked up, and nothing else: too little to judge.
            if *receiver == Party::Helper && total < 256 {
                continue;
            }
            assert!(total > 256 * 8, "too little to judge");
            assert!(statistic < ALARM, "{} from {}: {statistic}", receiver.name(), sender.name());
        }
    }
}
