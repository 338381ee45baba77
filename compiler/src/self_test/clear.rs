//! A compiled plan in the clear, in one process, with everything a run is given.

use crate::graph::{ValueId, eval};
use crate::import::load_weight;
use crate::onnx::Model;
use crate::pipeline::Compiled;
use crate::statics::{Known, Statics};
use ombra_ir::bind::{Bound, bind};
use ombra_ir::module::{Id, Node};
use ombra_ir::norms::Measure;
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plain::tensor::volume;
use ombra_ir::reference::run::{Outcome, run_together};
use ombra_ir::reference::{RefValue, Rounding, encode, encode_as};
use ombra_ir::ty::Ty;
use ombra_ir::{Bindings, Diagnostic, Result, Sym};
use std::collections::BTreeMap;

/// A step's sizes from the shapes of its inputs.
///
/// # Errors
/// Inputs that the model does not have or that disagree.
pub fn sizes(compiled: &Compiled, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<(String, u64)>> {
    let bindings = eval::bind_inputs(&compiled.graph, inputs)?;
    let syms = compiled.plan.module.dims.syms.iter().zip(0..);
    Ok(syms.filter_map(|(info, i)| Some((info.name.clone(), bindings.get(Sym(i))?))).collect())
}

/// Binds the plan's module to the inputs of one step.
///
/// # Errors
/// Inputs that the plan cannot take.
pub fn bind_step(compiled: &Compiled, inputs: &BTreeMap<String, Tensor>) -> Result<Bound> {
    let sizes = sizes(compiled, inputs)?;
    let pairs: Vec<(&str, u64)> = sizes.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let given: Vec<(String, Tensor)> = inputs.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
    bind(&compiled.plan.module, &pairs, &given)
}

/// Runs one step in the clear, with divisions that round down.
///
/// # Errors
/// Inputs that the plan cannot take.
pub fn step(compiled: &Compiled, model: &Model, inputs: &BTreeMap<String, Tensor>) -> Result<Outcome> {
    step_seen(compiled, model, inputs, Rounding::Floor, &mut |_, _| Ok(()))
}

/// As [`step`], with the rounding of divisions, and shows every value to `see`.
///
/// # Errors
/// Inputs that the plan cannot take, and those of `see`.
pub fn step_seen(
    compiled: &Compiled,
    model: &Model,
    inputs: &BTreeMap<String, Tensor>,
    rounding: Rounding,
    see: &mut dyn FnMut(Id, &RefValue) -> Result<()>,
) -> Result<Outcome> {
    let mut outcomes = steps_seen(compiled, model, &[inputs], rounding, &mut |_, id, value| see(id, value))?;
    outcomes.pop().ok_or_else(|| Diagnostic::internal("E0585", "a step left nothing behind"))
}

/// As [`step_seen`], for several first steps side by side: weights are read and encoded once for all of them. `see` is
/// told which step a value is of; those that follow from weights alone are shown once.
///
/// # Errors
/// Inputs that the plan cannot take, and those of `see`.
pub fn steps_seen(
    compiled: &Compiled,
    model: &Model,
    inputs: &[&BTreeMap<String, Tensor>],
    rounding: Rounding,
    see: &mut dyn FnMut(usize, Id, &RefValue) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let bound = inputs.iter().map(|inputs| bind_step(compiled, inputs)).collect::<Result<Vec<_>>>()?;
    let weights = |name: &str| load_weight(model, name);
    // What the client computes in plaintext.
    let mut known: Vec<BTreeMap<String, Tensor>> = inputs.iter().map(|inputs| (*inputs).clone()).collect();
    let wanted: Vec<_> = compiled.inputs.values().copied().collect();
    eval::visit_rows(&compiled.graph, &wanted, &weights, inputs, &mut |row, id, tensor| {
        for (name, _) in compiled.inputs.iter().filter(|(_, v)| **v == id) {
            if let Some(known) = known.get_mut(row) {
                known.insert(name.clone(), tensor.clone());
            }
        }
    })?;
    let mut source = |step: usize, _: Id, node: &Node| {
        let missing = || Diagnostic::internal("E0585", "a step has no inputs");
        source_value(compiled, model, known.get(step).ok_or_else(missing)?, node)
    };
    run_together(&compiled.plan.module, &bound, rounding, &mut source, see)
}

fn source_value(compiled: &Compiled, model: &Model, known: &BTreeMap<String, Tensor>, node: &Node) -> Result<RefValue> {
    let module = &compiled.plan.module;
    let missing = || Diagnostic::internal("E0585", format!("the value of {} is not known", node.op.name()));
    let ring = |t: &Tensor| -> Result<RefValue> {
        let (bits, _) = node.ty.as_ring().ok_or_else(missing)?;
        RefValue::ring(bits, t.shape().to_vec(), encode_as(t.as_f32()?, t.shape(), &node.ty)?)
    };
    match &node.op {
        Op::Weight { name } | Op::PublicWeight { name } => {
            let &(v, _) = compiled.weights.get(name).ok_or_else(missing)?;
            encoded(compiled, model, v, &node.ty)
        }
        Op::Input { slot } => {
            let input = module.inputs.get(*slot as usize).ok_or_else(missing)?;
            ring(known.get(&input.name).ok_or_else(missing)?)
        }
        Op::ClientInts { slot } => {
            let input = module.inputs.get(*slot as usize).ok_or_else(missing)?;
            Ok(RefValue::plain(known.get(&input.name).ok_or_else(missing)?.clone()))
        }
        Op::State { slot } => {
            let state = module.states.get(*slot as usize).ok_or_else(missing)?;
            ring(known.get(&state.input).ok_or_else(missing)?)
        }
        _ => Err(missing()),
    }
}

/// A weight as integers of its type, encoded some rows at a time.
fn encoded(compiled: &Compiled, model: &Model, v: ValueId, ty: &Ty) -> Result<RefValue> {
    let missing = || Diagnostic::internal("E0585", "a weight is no ring tensor");
    let (bits, scale) = ty.as_ring().ok_or_else(missing)?;
    let shape = compiled.graph.node(v)?.shape.iter();
    let shape = shape.map(|d| d.eval_usize(&Bindings::new())).collect::<Result<Vec<_>>>()?;
    let mut measure = Measure::new(&shape, Some(scale))?;
    let mut words = Vec::with_capacity(volume(&shape)?);
    Statics::new(&compiled.graph, model, &Known::default()).floats(v, &mut |values| {
        let (part, ()) = rayon::join(
            || encode(values, bits, scale, ty.bound),
            || {
                if !ty.norms.is_none() {
                    measure.take(values)
                }
            },
        );
        words.append(&mut part?);
        Ok(())
    })?;
    if !ty.norms.is_none() {
        measure.check(&ty.norms)?;
    }
    RefValue::ring(bits, shape, words)
}
