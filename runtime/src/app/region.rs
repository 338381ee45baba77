//! The client's plaintext region: the part of the model that runs in the clear before every step.

use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::{Plan, SIZE};
use ombra_ir::{Bindings, Diagnostic, Result};

use super::folder::PlanFolder;
use super::inputs::{Named, convert, find};
use crate::plaintext::{PlainElements, PlainInput, PlaintextModel};

/// The region with what it keeps between steps.
pub struct Region {
    model: Option<PlaintextModel>,
    states: Vec<Named>,
}

impl Region {
    /// Loads the region of a plan, if it has one, to be run with `threads` threads.
    ///
    /// # Errors
    /// `E1001`, `E1002`, and those of [`PlaintextModel::open`].
    pub fn open(folder: &PlanFolder, threads: usize) -> Result<Region> {
        let model = folder.client_model()?.map(|path| PlaintextModel::open(&path)).transpose()?;
        Ok(Region { model: model.map(|model| model.with_threads(threads)), states: Vec::new() })
    }

    /// The tensors for the module's inputs, in the order of `slots` (name and element type): `given` ones, and those
    /// that the region computes from them.
    ///
    /// # Errors
    /// `E1006` when an input is missing, and those of [`PlaintextModel::run`].
    pub fn step(
        &mut self,
        plan: &Plan,
        slots: &[(&str, DType)],
        bindings: &Bindings,
        given: &[Named],
    ) -> Result<Vec<Tensor>> {
        let wanted: Vec<&str> =
            slots.iter().map(|(name, _)| *name).filter(|name| find(given, name).is_none()).collect();
        let mut computed = match &self.model {
            Some(model) => run(model, plan, &mut self.states, &wanted, bindings, given)?,
            None => Vec::new(),
        };
        let mut tensors = Vec::with_capacity(slots.len());
        for (name, dtype) in slots {
            let at = computed.iter().position(|(other, _)| other == name);
            let tensor = find(given, name).cloned().or_else(|| at.map(|at| computed.swap_remove(at).1));
            let tensor = tensor.ok_or_else(|| missing(name))?;
            tensors.push(convert(name, tensor, *dtype)?);
        }
        Ok(tensors)
    }
}

fn missing(name: &str) -> Diagnostic {
    Diagnostic::input("E1006", format!("the input `{}` is missing", name.escape_debug()))
        .note("help      give it with `--input NAME=FILE`")
}

/// Runs the model; its states are replaced by what it returns for them.
fn run(
    model: &PlaintextModel,
    plan: &Plan,
    states: &mut Vec<Named>,
    wanted: &[&str],
    bindings: &Bindings,
    given: &[Named],
) -> Result<Vec<Named>> {
    let mut made = Vec::new();
    for state in &plan.client_states {
        if find(given, &state.input).or(find(states, &state.input)).is_some() {
            continue;
        }
        let shape: Vec<usize> = state.shape.iter().map(|dim| dim.eval_usize(bindings)).collect::<Result<_>>()?;
        if !shape.contains(&0) {
            return Err(missing(&state.input));
        }
        made.push((state.input.clone(), Tensor::f32(&shape, Vec::new())?));
    }
    for name in model.inputs() {
        let Some(symbol) = name.strip_prefix(SIZE) else { continue };
        let size = plan.module.dims.find(symbol).and_then(|sym| bindings.get(sym)).ok_or_else(|| missing(name))?;
        let size = i64::try_from(size).map_err(|_| missing(name))?;
        made.push((name.to_owned(), Tensor::i64(&[1], vec![size])?));
    }
    let mut inputs = Vec::new();
    for name in model.inputs() {
        let tensor = find(states, name).or(find(given, name)).or(find(&made, name)).ok_or_else(|| missing(name))?;
        let elements = match tensor.data() {
            Data::F32(values) => PlainElements::F32(values),
            Data::I64(values) => PlainElements::I64(values),
            Data::Bool(values) => PlainElements::Bool(values),
        };
        inputs.push((name, PlainInput { shape: tensor.shape(), elements }));
    }
    let kept = plan.client_states.iter().map(|state| state.output.as_str());
    let names: Vec<&str> = wanted.iter().copied().chain(kept).collect();
    let mut found = Vec::with_capacity(names.len());
    for (name, (shape, values)) in names.iter().zip(model.run(&inputs, &names)?) {
        found.push(((*name).to_owned(), Tensor::f32(&shape, values)?));
    }
    let outputs = found.split_off(wanted.len());
    *states =
        plan.client_states.iter().zip(outputs).map(|(state, (_, tensor))| (state.input.clone(), tensor)).collect();
    Ok(found)
}
