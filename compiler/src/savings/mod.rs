//! What each pass saves: the cost of a step after every prefix of the passes.
//!
//! The model is compiled once for every prefix of [`Pass::ALL`], with the same options otherwise. Costs are those that
//! the plans declare, at sizes of a prompt and of a further token. Whether what rewriting did is kept is decided once, for
//! the whole. A pass that made a step costlier is a fault of the compiler: it is reported as one.

mod naive;
mod pass;

pub use naive::{unpack_masks, widen};
pub use pass::{NAIVE, Passes};

use crate::inspect::session::steps;
use crate::inspect::{Report, inspect};
use crate::onnx::Model;
use crate::passes::assign_rotations::Spread;
use crate::pipeline::{Errors, Options, Pass, plan_knowing, rewritten};
use crate::weights::statics::Known;
use ombra_ir::module::Setting;
use ombra_ir::plan::{Plan, Saving, StepCost};
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeMap;

/// Costs before all passes and after each of them; the last entry is that of `plan`, which was compiled from `model`
/// with `options`.
///
/// # Errors
/// A prefix that does not compile; `E0554`, an internal error, for a pass that raises the bytes of a step.
pub fn savings(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
    plan: &Plan,
) -> std::result::Result<Vec<Saving>, Errors> {
    let one = |d| vec![d];
    let steps = steps(plan);
    let passes: Vec<Pass> =
        Pass::ALL.iter().copied().filter(|&p| p != Pass::Rotations || options.spread != Spread::Fixed).collect();
    // One decision for all prefixes: a program without the passes after rewriting may be cheaper the other way round, and
    // a later pass would seem to undo what rewriting saved.
    let rewrites = rewritten(model, base, options)?.rewrites;
    let keep_rewrites = Some(rewrites.iter().any(|r| !r.applied.is_empty()));
    let known = Known::default();
    let mut found = Vec::with_capacity(passes.len() + 1);
    for count in 0..passes.len() {
        let name = count.checked_sub(1).map_or(NAIVE, |last| passes[last].name());
        // What stands in no plan may fail.
        let options = Options { passes: Passes::first(count), keep_rewrites, ..options.clone() };
        let prefix = plan_knowing(model, base, &known, &options)?;
        found.push(saving(name, &prefix, &steps).map_err(one)?);
    }
    let last = passes.last().map_or(NAIVE, |p| p.name());
    found.push(saving(last, plan, &steps).map_err(one)?);
    check(&found).map_err(one)?;
    Ok(found)
}

fn saving(pass: &str, plan: &Plan, steps: &[(&str, BTreeMap<String, u64>)]) -> Result<Saving> {
    let mut costs = Vec::with_capacity(steps.len());
    for (name, sizes) in steps {
        costs.push(step_cost(name, plan.module.setting, &inspect(plan, sizes)?));
    }
    Ok(Saving { pass: pass.to_string(), steps: costs })
}

fn step_cost(name: &str, setting: Setting, report: &Report) -> StepCost {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for op in report.ops.iter().filter(|op| op.total_bytes() > 0) {
        // One kind before and after packing.
        let kind = if op.kind() == "masked_softmax" { "softmax" } else { op.kind() };
        *kinds.entry(kind).or_default() += op.total_bytes();
    }
    let mut bytes = [0; 3];
    for party in setting.protocol().parties {
        let sent = [&report.bytes, &report.offline_bytes].into_iter().filter_map(|bytes| bytes.get(party.name()));
        bytes[party.index()] = sent.sum();
    }
    StepCost {
        name: name.to_string(),
        dims: report.dims.iter().map(|(n, &v)| (n.clone(), v)).collect(),
        rounds: report.rounds,
        bytes,
        kinds: kinds.into_iter().map(|(kind, bytes)| (kind.to_string(), bytes)).collect(),
    }
}

/// No pass may make a step costlier.
fn check(savings: &[Saving]) -> Result<()> {
    for (before, after) in savings.iter().zip(savings.iter().skip(1)) {
        // Rewriting weighs bytes against rounds and the sharing of weights: every compilation checks what a session costs.
        if after.pass == Pass::Rewrites.name() {
            continue;
        }
        for (a, b) in before.steps.iter().zip(&after.steps) {
            if b.total_bytes() > a.total_bytes() {
                return Err(Diagnostic::internal("E0554", format!("the pass `{}` makes a step costlier", after.pass))
                    .note(format!("expected at most {} bytes in {}", a.total_bytes(), a.name))
                    .note(format!("found {} bytes", b.total_bytes()))
                    .note("this is a fault of the compiler; it compiles without --savings"));
            }
        }
    }
    Ok(())
}
