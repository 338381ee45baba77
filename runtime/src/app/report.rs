//! What a run reports: predicted and measured costs beside one another, and what came out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ombra_ir::plan::Plan;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Kind, Result};
use serde::{Deserialize, Serialize};

use super::client::Outcome;
use super::comparison::Comparison;
use crate::backend::products::{Backend, Ran, Why};

/// The report of one run, as JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub ombra: String,
    /// Name of the setting.
    pub setting: String,
    /// The dealer got nothing of the private weights, and the client what the dealer gets otherwise.
    #[serde(default)]
    pub strict_dealer: bool,
    /// Digest of the plan.
    pub plan_digest: String,
    /// Where the client's products with large weights ran.
    pub backend: String,
    /// Where those of every party ran, and why there.
    #[serde(default)]
    pub products: BTreeMap<String, Ran>,
    /// Threads of the client.
    pub threads: usize,
    /// The emulated network.
    pub network: String,
    /// Generated tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<i64>>,
    /// Generated tokens as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The phases in their order.
    pub phases: Vec<Phase>,
    /// Largest resident memory of every party, in bytes.
    pub peak_rss_bytes: BTreeMap<String, u64>,
    /// Bounds that the plan rests on.
    pub bounds: Bounds,
    /// What changed the model's meaning, in words.
    pub changes: Vec<String>,
    /// Comparison with a run in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Comparison>,
    /// Comparison with given outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_data: Option<Comparison>,
}

/// One phase of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Phase {
    /// `setup`, `state`, `prefill`, `decode` or `infer`.
    pub name: String,
    /// The step's sizes.
    pub dims: BTreeMap<String, u64>,
    /// Seconds at the client.
    pub seconds: f64,
    /// The longest chain of messages that wait for one another.
    pub rounds: Pair,
    /// Payload bytes that every party sends online.
    pub bytes: BTreeMap<String, Pair>,
    /// Payload bytes that are dealt, which needs no input, by the party that deals; measured where they arrive.
    pub offline_bytes: BTreeMap<String, Pair>,
}

/// A predicted and a measured number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// From the cost formulas.
    pub predicted: u64,
    /// From the transport.
    pub measured: u64,
}

/// Bounds of a plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bounds {
    /// Ranges that nothing proves.
    pub assumed: usize,
    /// Bounds that follow from the weights.
    pub weights: usize,
    /// Bounds that were measured, or follow from one that was.
    pub calibrated: usize,
    /// Bounds that follow from types.
    pub proven: usize,
    /// Bounds that hold inside the range of a formula.
    pub guarded: usize,
}

impl Bounds {
    /// Counts the bounds of a plan.
    pub fn of(plan: &Plan) -> Bounds {
        let mut bounds = Bounds { assumed: plan.assumed.len(), ..Bounds::default() };
        for node in plan.module.ops.iter().filter(|node| node.ty.as_ring().is_some()) {
            match node.ty.bound_from {
                BoundFrom::Proven => bounds.proven += 1,
                BoundFrom::Calibrated => bounds.calibrated += 1,
                BoundFrom::Guarded => bounds.guarded += 1,
                BoundFrom::Weights => bounds.weights += 1,
            }
        }
        bounds
    }
}

impl Report {
    /// Adds what a session cost.
    pub fn add(&mut self, outcome: &Outcome) {
        self.phases.extend_from_slice(&outcome.costs.phases);
        for (party, &bytes) in &outcome.costs.peak_rss {
            let most = self.peak_rss_bytes.entry(party.clone()).or_default();
            *most = bytes.max(*most);
        }
        self.products.extend(outcome.costs.products.clone());
    }

    /// A line for every party whose products ran elsewhere than on the processor, or would have if they could.
    pub fn backends(&self) -> Vec<String> {
        let chosen = self.products.iter().filter(|(_, ran)| (ran.backend, ran.why) != (Backend::Cpu, Why::Asked));
        chosen.map(|(party, ran)| format!("{party}: {}", ran.text())).collect()
    }

    /// The error of the first phase whose measured costs are not the predicted ones.
    ///
    /// # Errors
    /// `E1010`.
    pub fn check_costs(&self) -> Result<()> {
        for phase in &self.phases {
            let bytes = phase.bytes.iter().chain(&phase.offline_bytes).map(|(party, pair)| (party.as_str(), *pair));
            for (what, pair) in std::iter::once(("rounds", phase.rounds)).chain(bytes) {
                if pair.predicted != pair.measured {
                    return Err(Diagnostic::internal("E1010", "measured costs are not the predicted ones")
                        .at(format!("phase {}, {what}", phase.name))
                        .note(format!("expected  {}", pair.predicted))
                        .note(format!("found     {}", pair.measured))
                        .note("this is a bug of ombra: the result is right, its declared cost is not"));
                }
            }
        }
        Ok(())
    }

    /// Refuses comparisons that were asked for and found other results, or nothing to compare. A run in the clear that
    /// differs is a fault of this program; test data may be those of another model.
    ///
    /// # Errors
    /// `E1019`.
    pub fn check_comparisons(&self, tolerance: Option<f64>) -> Result<()> {
        if let Some(verify) = &self.verify {
            verify.check(Kind::Internal, "the run in the clear", tolerance)?;
        }
        match &self.test_data {
            Some(test_data) => test_data.check(Kind::Input, "the test data", tolerance),
            None => Ok(()),
        }
    }

    /// Writes the report as JSON to `path`.
    ///
    /// # Errors
    /// `E1013`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string());
        let written = text.and_then(|text| fs::write(path, text + "\n").map_err(|error| error.to_string()));
        written.map_err(|why| {
            Diagnostic::input("E1013", format!("the report cannot be written: {why}")).at(path.display().to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_between_predicted_and_measured_costs_is_an_error() {
        let same = Pair { predicted: 7, measured: 7 };
        let other = Pair { predicted: 7, measured: 8 };
        let bytes = |pair| BTreeMap::from([("client".to_owned(), same), ("server".to_owned(), pair)]);
        let phase = |rounds, sent, offline| Phase {
            rounds,
            bytes: bytes(sent),
            offline_bytes: bytes(offline),
            ..Phase::default()
        };
        let check = |phase| Report { phases: vec![Phase::default(), phase], ..Report::default() }.check_costs();
        assert_eq!(check(phase(same, same, same)), Ok(()));
        for wrong in [phase(other, same, same), phase(same, other, same), phase(same, same, other)] {
            assert_eq!(check(wrong).map_err(|error| error.code), Err("E1010"));
        }
    }
}
