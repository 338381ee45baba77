//! The program of a session: the plan's module, and one step of it with its sizes known.

use std::sync::Arc;

use ombra_ir::bind::{Bound, bind};
use ombra_ir::module::{InputSlot, Module};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::schedule::{Cost, Schedule, schedule};
use ombra_ir::{Diagnostic, Result};

use super::weights::Wanted;
use crate::transport::Party;

/// A step that every party has bound in the same way.
pub struct Step {
    /// Sizes and public values.
    pub bound: Bound,
    /// When every op runs.
    pub schedule: Schedule,
    /// What the step costs.
    pub cost: Cost,
}

/// Binds `module` to the sizes and public inputs of a step, and schedules it.
///
/// # Errors
/// Those of [`bind`] and [`schedule`].
pub fn prepare(module: &Module, sizes: &[(String, u64)], public: &[(String, Tensor)]) -> Result<Step> {
    let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let bound = bind(module, &named, public)?;
    let schedule = schedule(module, &bound)?;
    let cost = schedule.cost(module);
    Ok(Step { bound, schedule, cost })
}

/// The module in which every state that is read is an input of the client's: how a step runs whose cache is given.
///
/// # Errors
/// `E1004` when the module has too many inputs.
pub fn with_given_states(module: &Module) -> Result<Arc<Module>> {
    let mut module = module.clone();
    let first = module.inputs.len();
    for state in &module.states {
        let (name, shape) = (state.input.clone(), state.shape.clone());
        module.inputs.push(InputSlot { name, dtype: DType::F32, shape, last_of: Vec::new() });
    }
    for node in &mut module.ops {
        if let Op::State { slot } = node.op {
            let slot = u32::try_from(first)
                .ok()
                .and_then(|first| first.checked_add(slot))
                .ok_or_else(|| Diagnostic::input("E1004", "the plan has too many inputs"))?;
            (node.op, node.rot) = (Op::Input { slot }, 0);
        }
    }
    Ok(Arc::new(module))
}

/// What it costs to share the private weights once: the server sends every one of them to the helper in one message
/// after another, without waiting. A weight that is used twice in the same form is sent once.
pub fn setup_cost(private: &[Wanted]) -> Cost {
    let mut distinct: Vec<(&str, (u8, u8), u64)> = private
        .iter()
        .map(|wanted| (wanted.name.as_str(), wanted.ring, wanted.elements as u64 * u64::from(wanted.ring.0 / 8)))
        .collect();
    distinct.sort_unstable();
    distinct.dedup();
    let mut cost = Cost::default();
    let sent: u64 = distinct.iter().map(|(_, _, bytes)| bytes).sum();
    if let Some(bytes) = cost.bytes.get_mut(Party::Server.index()) {
        *bytes = sent;
    }
    cost.rounds = u32::from(sent > 0);
    cost
}
