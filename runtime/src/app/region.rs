//! The client's plaintext region: the part of the model that runs in the clear before every step.

use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::{ClientState, Plan, SIZE};
use ombra_ir::ty::axis_of;
use ombra_ir::{Bindings, Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::folder::{CheckedFile, PlanFolder};
use super::inputs::{Named, convert, find};
use super::isolation::{Isolation, Worker};
use crate::plaintext::{PlainElements, PlainInput, PlaintextModel};

/// Largest model in one file, in bytes: more is no ONNX file.
const MAX_MODEL_BYTES: u64 = i32::MAX as u64;
/// Largest file of a model's elements.
const MAX_DATA_BYTES: u64 = 1 << 40;

/// The region with what it keeps between steps.
pub struct Region {
    model: Option<Model>,
    /// Positions of the states that the model keeps from a step before, where it does.
    held: Option<u64>,
}

/// Where the model runs, and the names of its inputs.
enum Model {
    Here(Box<Evaluator>),
    Isolated(Worker, Vec<String>),
}

/// One run of a model.
#[derive(Serialize, Deserialize)]
pub(super) struct Evaluation {
    /// Inputs by name, but for those that the model keeps.
    pub inputs: Vec<Named>,
    /// Names of the outputs that are wanted.
    pub outputs: Vec<String>,
    /// Outputs that the model keeps for its next run, and the inputs that they are then.
    pub kept: Vec<(String, String)>,
    /// Of what it keeps from the run before: how many elements, along which axis, of which input.
    pub cuts: Vec<(String, usize, usize)>,
}

/// A loaded model with what it keeps.
pub(super) struct Evaluator {
    model: PlaintextModel,
    kept: Vec<Named>,
}

impl Evaluator {
    /// Loads a model, whose elements may lie in a second file, to be run with `threads` threads.
    ///
    /// # Errors
    /// `E1001`, `E1002`, and those of [`PlaintextModel::load`].
    pub(super) fn open(file: &CheckedFile, data: Option<&CheckedFile>, threads: usize) -> Result<Evaluator> {
        let bytes = file.read(MAX_MODEL_BYTES)?;
        let model = match data {
            Some(data) => PlaintextModel::load_with_data(bytes, &data.name(), data.read(MAX_DATA_BYTES)?)?,
            None => PlaintextModel::load(bytes)?,
        };
        Ok(Evaluator { model: model.with_threads(threads), kept: Vec::new() })
    }

    /// Names of the model's inputs.
    pub(super) fn inputs(&self) -> Vec<String> {
        self.model.inputs().into_iter().map(str::to_owned).collect()
    }

    /// Runs the model once; the outputs that are wanted, in their order.
    ///
    /// # Errors
    /// `E1006` for an input that is missing, and those of [`PlaintextModel::run`].
    pub(super) fn run(&mut self, evaluation: &Evaluation) -> Result<Vec<Tensor>> {
        for (name, axis, length) in &evaluation.cuts {
            if let Some((_, tensor)) = self.kept.iter_mut().find(|(kept, _)| kept == name) {
                *tensor = first_elements(tensor, *axis, *length)?;
            }
        }
        let mut inputs = Vec::new();
        for name in self.model.inputs() {
            let tensor = find(&evaluation.inputs, name).or(find(&self.kept, name)).ok_or_else(|| missing(name))?;
            let elements = match tensor.data() {
                Data::F32(values) => PlainElements::F32(values),
                Data::I64(values) => PlainElements::I64(values),
                Data::Bool(values) => PlainElements::Bool(values),
            };
            inputs.push((name, PlainInput { shape: tensor.shape(), elements }));
        }
        let names = evaluation.outputs.iter().chain(evaluation.kept.iter().map(|(output, _)| output));
        let names: Vec<&str> = names.map(String::as_str).collect();
        let found = self.model.run(&inputs, &names)?;
        let found = found.into_iter().map(|(shape, values)| Tensor::f32(&shape, values));
        let mut found = found.collect::<Result<Vec<_>>>()?;
        let kept = found.split_off(evaluation.outputs.len());
        self.kept = evaluation.kept.iter().map(|(_, input)| input.clone()).zip(kept).collect();
        Ok(found)
    }
}

impl Region {
    /// Loads the region of a plan, if it has one, to be run with `threads` threads; in a process of its own where
    /// `isolation` says how.
    ///
    /// # Errors
    /// `E1001`, `E1002`, and those of [`PlaintextModel::load`]; `E0725` when that process does not survive.
    pub fn open(folder: &PlanFolder, threads: usize, isolation: Option<&Isolation>) -> Result<Region> {
        let model = match (folder.client_model()?, isolation) {
            (None, _) => None,
            (Some((file, data)), None) => Some(Model::Here(Box::new(Evaluator::open(&file, data.as_ref(), threads)?))),
            (Some((file, data)), Some(isolation)) => {
                let mut worker = Worker::start(isolation)?;
                let names = worker.load_model(file, data, threads)?;
                Some(Model::Isolated(worker, names))
            }
        };
        Ok(Region { model, held: None })
    }

    /// The tensors for the module's inputs, in the order of `slots` (name and element type): `given` ones, and those
    /// that the region computes from them and from the first `keep` positions of what it computed before.
    ///
    /// # Errors
    /// `E1006` when an input is missing, and those of [`PlaintextModel::run`].
    pub fn step(
        &mut self,
        plan: &Plan,
        slots: &[(&str, DType)],
        bindings: &Bindings,
        given: &[Named],
        keep: u64,
    ) -> Result<Vec<Tensor>> {
        let wanted: Vec<&str> =
            slots.iter().map(|(name, _)| *name).filter(|name| find(given, name).is_none()).collect();
        let mut computed: Vec<Named> = match &mut self.model {
            Some(model) => {
                let names = match model {
                    Model::Here(evaluator) => evaluator.inputs(),
                    Model::Isolated(_, names) => names.clone(),
                };
                let held = self.held.filter(|_| keep > 0);
                let mut evaluation = evaluation(plan, &names, held.is_some(), &wanted, bindings, given)?;
                if held.is_some_and(|held| held != keep) {
                    evaluation.cuts = cuts(plan, keep)?;
                }
                let found = match model {
                    Model::Here(evaluator) => evaluator.run(&evaluation)?,
                    Model::Isolated(worker, _) => worker.run_model(evaluation)?,
                };
                let added = plan.sym(&plan.seq).and_then(|seq| bindings.get(seq));
                self.held = Some(keep.saturating_add(added.unwrap_or(0)));
                wanted.iter().map(|name| (*name).to_owned()).zip(found).collect()
            }
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

/// What a model with inputs of these `names` is to be run on; its states are those of the step before, if it holds them.
fn evaluation(
    plan: &Plan,
    names: &[String],
    holds_states: bool,
    wanted: &[&str],
    bindings: &Bindings,
    given: &[Named],
) -> Result<Evaluation> {
    let mut inputs = Vec::new();
    for name in names {
        let state = plan.client_states.iter().find(|state| state.input == *name);
        if holds_states && state.is_some() {
            continue;
        }
        let tensor = match (find(given, name), state, name.strip_prefix(SIZE)) {
            (Some(tensor), _, _) => tensor.clone(),
            (None, Some(state), _) => {
                let shape = state.shape.iter().map(|dim| dim.eval_usize(bindings)).collect::<Result<Vec<usize>>>()?;
                if !shape.contains(&0) {
                    return Err(missing(name));
                }
                Tensor::f32(&shape, Vec::new())?
            }
            (None, None, Some(symbol)) => {
                let size = plan.module.dims.find(symbol).and_then(|sym| bindings.get(sym));
                let size = size.and_then(|size| i64::try_from(size).ok()).ok_or_else(|| missing(name))?;
                Tensor::i64(&[1], vec![size])?
            }
            (None, None, None) => return Err(missing(name)),
        };
        inputs.push((name.clone(), tensor));
    }
    let outputs = wanted.iter().map(|name| (*name).to_owned()).collect();
    let kept = plan.client_states.iter().map(|state| (state.output.clone(), state.input.clone())).collect();
    Ok(Evaluation { inputs, outputs, kept, cuts: Vec::new() })
}

/// How the states that the region holds are cut to `keep` positions.
fn cuts(plan: &Plan, keep: u64) -> Result<Vec<(String, usize, usize)>> {
    let past = plan.sym(&plan.past);
    let cut = |state: &ClientState| {
        let axis = past.and_then(|past| axis_of(&state.shape, past));
        let (Some(axis), Ok(keep)) = (axis, usize::try_from(keep)) else {
            return Err(Diagnostic::input("E1004", "a state of the client's cannot be cut"));
        };
        Ok((state.input.clone(), axis, keep))
    };
    plan.client_states.iter().map(cut).collect()
}

/// The first `length` elements of a tensor of floats along an axis.
fn first_elements(tensor: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
    let shape = tensor.shape();
    let (Some(&size), Some(outer)) = (shape.get(axis), shape.get(..axis)) else {
        return Err(Diagnostic::input("E1004", "a state of the client's has too few axes"));
    };
    if length >= size {
        return Ok(tensor.clone());
    }
    let inner: usize = shape.iter().skip(axis + 1).product();
    let values = tensor.as_f32()?;
    let rows = outer.iter().product::<usize>();
    let kept = (0..rows).filter_map(|row| values.get(row * size * inner..(row * size + length) * inner));
    let kept = kept.flatten().copied().collect();
    let mut shape = shape.to_vec();
    if let Some(size) = shape.get_mut(axis) {
        *size = length;
    }
    Tensor::f32(&shape, kept)
}
