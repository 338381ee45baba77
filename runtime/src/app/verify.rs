//! The run again in the clear, in one process, from the private weights: the reference meaning of the plan.

use std::collections::BTreeMap;

use ombra_ir::bind::{Bound, concrete};
use ombra_ir::module::{Id, Module, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::Plan;
use ombra_ir::reference::{self, RefValue, Rounding, encode, encode_as};
use ombra_ir::ty::axis_of;
use ombra_ir::{Bindings, Diagnostic, Result, bind};

use super::client::Outcome;
use super::comparison::{Comparison, excess, greatest};
use super::folder::PlanFolder;
use super::inputs::find;
use super::program;
use super::request::Advance;
use crate::exec::TensorSource;
use crate::settings::words::movement::slice;

/// Runs every step of `outcome` in the clear, on the same inputs, and compares what was revealed. The private weights
/// are taken from the plan folder, so this works only where the provider's files are.
///
/// # Errors
/// `E1001`, `E1003` without the private weights, and those of [`reference::eval_rounded`].
pub fn compare(folder: &PlanFolder, outcome: &Outcome) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    compare_too(folder, outcome, &mut comparison)?;
    Ok(comparison)
}

/// As [`compare`], added to what was compared before.
///
/// # Errors
/// Those of [`compare`].
pub fn compare_too(folder: &PlanFolder, outcome: &Outcome, comparison: &mut Comparison) -> Result<()> {
    let own = folder.server_weights()?;
    let given;
    let module = if outcome.request.gives_states() {
        given = program::with_given_states(&folder.plan.module)?;
        &*given
    } else {
        &folder.plan.module
    };
    let mut clear =
        Clear { module, public: &*folder.public_weights, own: &own, weights: BTreeMap::new(), states: vec![], held: 0 };
    clear.states.resize_with(module.states.len(), || None);
    for step in &outcome.steps {
        // What is drawn is compared with the scores, which the plan's own module gives.
        let known = |(name, _): &&(String, u64)| module.dims.find(name).is_some();
        let sizes: Vec<(String, u64)> = step.inputs.sizes.iter().filter(known).cloned().collect();
        let prepared = program::prepare(module, &sizes, &step.inputs.public, u64::MAX)?;
        clear.keep(&folder.plan, step.advance)?;
        for revealed in clear.step(&prepared.bound, &step.given)? {
            let output = module.outputs.get(revealed.slot as usize).ok_or_else(broken)?;
            // It was 0, or there would be no result.
            if output.kind == OutputKind::Guard {
                continue;
            }
            let found = find(&step.outputs, &output.name).ok_or_else(broken)?;
            let expected = revealed.values;
            match (output.kind, found.data()) {
                (OutputKind::NextToken | OutputKind::Index, Data::I64(found)) => {
                    let width = revealed.scores.len() / expected.len().max(1);
                    let choice = &step.advance.choice;
                    let (mut scores, mut expected) = (revealed.scores, expected);
                    if let (true, OutputKind::NextToken, Some(added)) =
                        (choice.penalized, output.kind, step.given.get(module.inputs.len()))
                    {
                        let added = added.as_f32()?.iter().map(|added| f64::from(*added));
                        scores = scores.into_iter().zip(added).map(|(score, added)| score + added).collect();
                        let rows = scores.chunks_exact(width.max(1));
                        expected = rows.map(|row| greatest(row.iter().copied(), -1).0 as f64).collect();
                    }
                    if let (Some(sampling), OutputKind::NextToken) = (&choice.sampling, output.kind) {
                        let rows = scores.chunks_exact(width.max(1));
                        let excesses = found.iter().zip(rows).map(|(&found, row)| excess(row, sampling, found));
                        comparison.add_drawn(&output.name, excesses);
                        continue;
                    }
                    let mut rows = scores.chunks_exact(width.max(1));
                    let tokens = found.iter().zip(&expected).map(|(&found, &expected)| {
                        let margin = rows.next().map(|row| greatest(row.iter().copied(), found).1);
                        (found, expected as i64, margin)
                    });
                    comparison.add_tokens(&output.name, tokens);
                }
                (OutputKind::Tensor, Data::F32(found)) => {
                    let pairs = found.iter().zip(&expected).map(|(found, expected)| (f64::from(*found), *expected));
                    comparison.add_elements(&output.name, pairs);
                }
                _ => return Err(broken()),
            }
        }
    }
    Ok(())
}

/// What a step reveals in the clear.
struct Revealed {
    slot: u32,
    values: Vec<f64>,
    /// The scores that an index is chosen from, row by row; none where the value is no such index.
    scores: Vec<f64>,
}

/// A run in the clear: weights are read once, states stay between steps.
struct Clear<'a> {
    module: &'a Module,
    public: &'a dyn TensorSource,
    own: &'a dyn TensorSource,
    weights: BTreeMap<Id, RefValue>,
    states: Vec<Option<RefValue>>,
    /// Positions that the cache has.
    held: u64,
}

impl Clear<'_> {
    /// Cuts the states to what a step keeps, as the parties cut theirs: where nothing is cut, they stay as they are.
    fn keep(&mut self, plan: &Plan, advance: Advance) -> Result<()> {
        let length = advance.keep;
        let cut = length != self.held;
        self.held = length.saturating_add(advance.new);
        let Some(past) = plan.sym(&plan.past).filter(|_| cut) else { return Ok(()) };
        if length == 0 {
            self.states.fill(None);
        }
        for (slot, state) in self.module.states.iter().zip(&mut self.states) {
            let Some(value) = state else { continue };
            let axis = axis_of(&slot.shape, past).ok_or_else(broken)?;
            let mut shape = value.shape.clone();
            let size = shape.get_mut(axis).ok_or_else(broken)?;
            *size = usize::try_from(length).map_err(|_| broken())?.min(*size);
            let length = *size;
            let (bits, words) = value.as_ring()?;
            *state = Some(RefValue::ring(bits, shape, slice(words, &value.shape, axis, 0, length)?)?);
        }
        Ok(())
    }

    /// What a step reveals.
    fn step(&mut self, bound: &Bound, given: &[Tensor]) -> Result<Vec<Revealed>> {
        let module = self.module;
        let scale = |id: Id| module.ty(id).as_ring().map_or(0, |(_, scale)| scale);
        let mut scores: BTreeMap<Id, Vec<f64>> = BTreeMap::new();
        let mut last = vec![0usize; module.ops.len()];
        for (index, node) in module.ops.iter().enumerate() {
            for arg in &node.args {
                *last.get_mut(arg.index()).ok_or_else(broken)? = index;
            }
        }
        let mut values: Vec<Option<RefValue>> = vec![None; module.ops.len()];
        let mut revealed = Vec::new();
        let mut kept = Vec::new();
        for (index, node) in module.ops.iter().enumerate() {
            let id = Id(u32::try_from(index).map_err(|_| broken())?);
            let value = match &node.op {
                Op::PublicWeight { .. } | Op::Weight { .. } => {
                    if !self.weights.contains_key(&id) {
                        let weight = self.weight(id)?;
                        self.weights.insert(id, weight);
                    }
                    continue;
                }
                op => {
                    let operand = |arg: &Id| self.weights.get(arg).or(values.get(arg.index())?.as_ref());
                    let args: Vec<&RefValue> =
                        node.args.iter().map(|arg| operand(arg).ok_or_else(broken)).collect::<Result<_>>()?;
                    if let (Op::ArgMax { .. }, [arg], [value]) = (op, &*node.args, &*args) {
                        scores.insert(id, value.decode(scale(*arg))?);
                    }
                    self.value(id, op, &args, bound, given).map_err(|error| error.at(bind::place(module, id)))?
                }
            };
            match node.op {
                Op::Reveal { slot } => {
                    let operand = *node.args.first().ok_or_else(broken)?;
                    let scores = scores.remove(&operand).unwrap_or_default();
                    revealed.push(Revealed { slot, values: value.decode(scale(operand))?, scores });
                }
                Op::SetState { slot } => kept.push((slot, value)),
                _ => *values.get_mut(index).ok_or_else(broken)? = Some(value),
            }
            for arg in node.args.iter().filter(|arg| last.get(arg.index()) == Some(&index)) {
                *values.get_mut(arg.index()).ok_or_else(broken)? = None;
            }
        }
        for (slot, value) in kept {
            *self.states.get_mut(slot as usize).ok_or_else(broken)? = Some(value);
        }
        Ok(revealed)
    }

    fn value(&self, id: Id, op: &Op, args: &[&RefValue], bound: &Bound, given: &[Tensor]) -> Result<RefValue> {
        let ty = self.module.ty(id);
        match op {
            Op::Public { value } => bound.public.get(*value as usize).cloned().map(RefValue::plain).ok_or_else(broken),
            Op::Input { slot } | Op::ClientInts { slot } => {
                let tensor = given.get(*slot as usize).ok_or_else(broken)?.clone();
                match ty.as_ring() {
                    Some((bits, scale)) => {
                        let words = encode(tensor.as_f32()?, bits, scale, ty.bound)?;
                        RefValue::ring(bits, tensor.shape().to_vec(), words)
                    }
                    None => Ok(RefValue::plain(tensor)),
                }
            }
            Op::State { slot } => match self.states.get(*slot as usize) {
                Some(Some(value)) => Ok(value.clone()),
                _ => {
                    let (bits, _) = ty.as_ring().ok_or_else(broken)?;
                    RefValue::ring(bits, concrete(&ty.shape, &bound.bindings)?, Vec::new())
                }
            },
            _ => {
                let types = self.module.node(id).args.iter().map(|arg| self.module.ty(*arg));
                let args: Vec<_> = args.iter().copied().zip(types).collect();
                reference::eval_rounded(self.module.setting, op, &args, ty, &bound.bindings, Rounding::Floor)
            }
        }
    }

    fn weight(&self, id: Id) -> Result<RefValue> {
        let (source, name) = match &self.module.node(id).op {
            Op::Weight { name } => (self.own, name),
            Op::PublicWeight { name } => (self.public, name),
            _ => return Err(broken()),
        };
        let ty = self.module.ty(id);
        let (bits, _) = ty.as_ring().ok_or_else(broken)?;
        let (shape, elements) = source.tensor(name)?;
        if shape != concrete(&ty.shape, &Bindings::default())? {
            return Err(broken());
        }
        let words = encode_as(&elements, &shape, ty)?;
        RefValue::ring(bits, shape, words)
    }
}

fn broken() -> Diagnostic {
    Diagnostic::internal("E1004", "the plan cannot be run in the clear")
        .note("it should have been refused when the folder was opened: report this")
}
