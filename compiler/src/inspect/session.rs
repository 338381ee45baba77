//! What a short session costs: private weights are shared, a prompt is read, and a token is made after it.
//!
//! It is what the compiler compares programs by. Costs are those of the plan; rounds and local work are brought to bytes by
//! the network that a program is compiled for.

use super::{Report, inspect};
use ombra_ir::Result;
use ombra_ir::network::Network;
use ombra_ir::plan::Plan;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// New tokens of the prompt, and cached tokens of the step after it; fewer where the model's tables are shorter.
const PROMPT: u64 = 64;
/// Multiply-accumulates of one core in a second.
const MACS_PER_S: f64 = 1e10;

/// Costs of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionCost {
    /// Bytes that share the private weights.
    pub setup: u64,
    /// Bytes of all steps.
    pub bytes: u64,
    /// Rounds of all steps.
    pub rounds: u64,
    /// Multiply-accumulates of all steps; other local work is next to nothing.
    pub macs: u64,
}

impl SessionCost {
    /// All of it in bytes: rounds count as what a link carries in half a round trip, multiply-accumulates as what
    /// it carries meanwhile.
    #[must_use]
    pub fn price(&self, network: Network) -> f64 {
        let seconds = self.rounds as f64 * network.latency_s() + self.macs as f64 / MACS_PER_S;
        (self.setup + self.bytes) as f64 + seconds * network.bytes_per_s()
    }
}

impl AddAssign<&Report> for SessionCost {
    fn add_assign(&mut self, step: &Report) {
        self.bytes += step.total_bytes();
        self.rounds += u64::from(step.rounds);
        self.macs += step.macs.secret + step.macs.public;
    }
}

/// What a session of a plan costs.
///
/// # Errors
/// A plan without costs at such sizes.
pub fn session_cost(plan: &Plan) -> Result<SessionCost> {
    let mut cost = SessionCost::default();
    for (_, sizes) in steps(plan) {
        let report = inspect(plan, &sizes)?;
        cost.setup = report.setup_bytes;
        cost += &report;
    }
    Ok(cost)
}

/// Names and sizes of the steps that are counted: a prompt, and a token after it where the model has a cache.
pub fn steps(plan: &Plan) -> Vec<(&'static str, BTreeMap<String, u64>)> {
    let fits = |sizes: &BTreeMap<String, u64>| inspect(plan, sizes).is_ok();
    let at = |seq: u64, past: u64| {
        let seq = plan.seq.iter().map(move |name| (name.clone(), seq));
        let past = plan.past.iter().map(move |name| (name.clone(), past));
        seq.chain(past).collect::<BTreeMap<_, _>>()
    };
    if plan.seq.is_none() {
        return vec![("infer", BTreeMap::new())];
    }
    let mut prompt = PROMPT;
    while prompt > 1 && !(fits(&at(prompt, 0)) && fits(&at(1, prompt))) {
        prompt /= 2;
    }
    let mut steps = vec![("prefill", at(prompt, 0))];
    if plan.past.is_some() {
        steps.push(("decode", at(1, prompt)));
    }
    steps
}
