//! Which form to choose: the rules of thumb of Rathee et al. (arXiv 2408.03561, appendix F), with numbers in place of
//! adjectives.
//!
//! The paper chooses by what dominates a setting: where multiplications by private weights do (two parties alone), adapters
//! pay most, since they take the large matrices out of secure computation; where nonlinear functions do (three parties, or
//! a dealer, and long prompts), freezing layers and merging heads pay; approximations come on top and cost quality. Here
//! every such statement is a ratio of two predictions, so the rules hold for any setting, size and network that has costs.

use super::{Prediction, Request, StepCost, bottleneck};
use serde::Serialize;
use std::collections::BTreeMap;

/// A technique that makes an answer faster by less than this factor is not worth training for.
pub const WORTHWHILE: f64 = 1.1;
/// The same for techniques that compute other functions, since they cost quality too.
pub const WORTH_QUALITY: f64 = 1.25;
/// Kinds of ops whose cost does not follow from products with weights.
pub(super) const NONLINEAR: [&str; 12] = [
    "softmax",
    "masked_softmax",
    "ratio_softmax",
    "quadratic",
    "gelu",
    "silu",
    "relu",
    "rms_norm",
    "layer_norm",
    "reciprocal",
    "exp",
    "arg_max",
];

/// A statement with the numbers it rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// What it is about.
    pub about: &'static str,
    /// What follows.
    pub says: String,
}

/// Predictions and what follows from them.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    /// Name of the model.
    pub model: String,
    /// The setting.
    pub setting: &'static str,
    /// Layers of the model.
    pub layers: u32,
    /// Tokens of the prompt, cached tokens at a further one, and further tokens of an answer.
    pub sizes: BTreeMap<&'static str, u64>,
    /// Whether seconds are those of messages and of computing, or of messages alone.
    pub computing: bool,
    /// Whether ranges of values are assumed, and which.
    pub assumed: Option<String>,
    /// The forms, `full` first.
    pub forms: Vec<Prediction>,
    /// Forms that the model cannot have, and why.
    pub impossible: BTreeMap<String, String>,
    /// The rules.
    pub rules: Vec<Rule>,
    /// Of the forms that compute the model's functions: the one with the fewest techniques within 10 % of the fastest answer.
    pub recommended: String,
    /// The same among all forms, if approximations make an answer faster by a quarter.
    pub recommended_with_approximations: Option<String>,
}

/// Seconds of an answer on the deciding network.
pub fn answer_seconds(form: &Prediction, request: &Request) -> f64 {
    let on = |step: &StepCost| request.networks.first().and_then(|(name, _)| step.seconds.get(name)).copied();
    let prefill = on(&form.prefill).unwrap_or(0.0);
    prefill + form.decode.as_ref().and_then(on).unwrap_or(0.0) * request.tokens as f64
}

/// What follows from `forms`, of which the first is the model with all its weights private.
pub fn recommend(forms: &[Prediction], request: &Request, layers: u32) -> (Vec<Rule>, String, Option<String>) {
    let Some(full) = forms.first() else { return (Vec::new(), String::new(), None) };
    let time = |form: &Prediction| answer_seconds(form, request);
    let network = request.networks.first().map_or("", |n| n.0.as_str());
    let gain = |form: &Prediction| ratio(time(full), time(form));
    let by_name = |wanted: &dyn Fn(&Prediction) -> bool| -> Option<&Prediction> {
        forms.iter().filter(|f| f.techniques == 1 && wanted(f)).max_by(|a, b| gain(a).total_cmp(&gain(b)))
    };
    let mut rules = Vec::new();
    let mut say = |about: &'static str, says: String| rules.push(Rule { about, says });

    let share = |step: &StepCost, kinds: &[&str]| {
        let part: u64 = step.kinds.iter().filter(|(k, _)| kinds.contains(&k.as_str())).map(|(_, b)| b).sum();
        part as f64 / step.bytes.max(1) as f64
    };
    let nonlinear = share(&full.prefill, &NONLINEAR);
    say(
        "what dominates",
        format!(
            "nonlinear functions send {:.0} % of a prompt's bytes: {}",
            100.0 * nonlinear,
            if nonlinear > 0.5 {
                "freezing layers and merging heads save more than adapters"
            } else {
                "products dominate, and adapters take the large ones out"
            }
        ),
    );
    if let Some(says) = bottleneck::statement(forms, request) {
        say("bottleneck", says);
    }
    if let Some(frozen) = by_name(&|f| f.name.starts_with("last ")) {
        say(
            "freezing",
            format!(
                "a frozen layer costs nothing in any setting: {} of {layers} answers {:.2} times faster; freeze as many \
                 layers as quality allows, before anything else",
                frozen.name,
                gain(frozen)
            ),
        );
    }
    if let Some(lora) = by_name(&|f| f.name.starts_with("LoRA")) {
        let (g, setup) = (gain(lora), ratio(full.setup_bytes as f64, lora.setup_bytes as f64));
        let macs = ratio(full.prefill.secret_macs as f64, lora.prefill.secret_macs as f64);
        let verdict = if g >= WORTHWHILE {
            "worth it for messages alone"
        } else {
            "not worth it for messages: in this setting a product costs by its result, not by its weights"
        };
        say(
            "adapters",
            format!(
                "{}: messages of an answer {g:.2} times faster, {macs:.1} times fewer secret multiplications, {setup:.0} \
                 times less to share at set-up; {verdict}",
                lora.name
            ),
        );
    }
    if let Some(merged) = by_name(&|f| f.name.ends_with("heads merged")) {
        let softmax = share(&full.prefill, &["softmax", "masked_softmax"]);
        let decode = full.decode.as_ref().zip(merged.decode.as_ref());
        let decode = decode.map_or(1.0, |(a, b)| ratio(seconds(a, network), seconds(b, network)));
        say(
            "merging heads",
            format!(
                "softmax sends {:.0} % of a prompt's bytes: {} makes a prompt {:.2} and a further token {decode:.2} times \
                 faster; {}",
                100.0 * softmax,
                merged.name,
                ratio(seconds(&full.prefill, network), seconds(&merged.prefill, network)),
                if gain(merged) >= WORTHWHILE { "worth it" } else { "not worth it at these sizes" }
            ),
        );
    }
    if let Some(decode) = &full.decode
        && let Some((_, n)) = request.networks.first()
    {
        let waiting = f64::from(decode.rounds) * n.rtt.as_secs_f64() / 2.0;
        let part = ratio(waiting, seconds(decode, network));
        say(
            "further tokens",
            format!(
                "waiting for messages is {:.0} % of their time on {network}: {}",
                100.0 * part.min(1.0),
                if part > 0.5 {
                    "only fewer private layers make them faster, bytes hardly count"
                } else {
                    "whatever saves bytes makes them faster"
                }
            ),
        );
    }
    let best = |allowed: &dyn Fn(&Prediction) -> bool| -> Option<&Prediction> {
        let fastest = forms.iter().filter(|f| allowed(f)).map(time).fold(f64::INFINITY, f64::min);
        let near = forms.iter().filter(|f| allowed(f) && time(f) <= WORTHWHILE * fastest);
        near.min_by(|a, b| (a.techniques, time(a)).partial_cmp(&(b.techniques, time(b))).unwrap_or(a.name.cmp(&b.name)))
    };
    let exact = best(&|f| !f.approximates).unwrap_or(full);
    let any = best(&|_| true).filter(|f| f.approximates && time(exact) >= WORTH_QUALITY * time(f));
    match any {
        Some(form) => say(
            "approximations",
            format!("{} answers {:.2} times faster than {}", form.name, ratio(time(exact), time(form)), exact.name),
        ),
        None if forms.iter().any(|f| f.approximates) => {
            say("approximations", format!("none makes an answer {WORTH_QUALITY} times faster than {}", exact.name));
        }
        None => {}
    }
    (rules, exact.name.clone(), any.map(|f| f.name.clone()))
}

fn seconds(step: &StepCost, network: &str) -> f64 {
    step.seconds.get(network).copied().unwrap_or(0.0)
}

/// `a / b`, and 1 where there is neither.
pub fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 1.0 }
}
