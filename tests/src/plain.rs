//! A compiled model in the clear, in one process, with everything a run is given.

use ombra_compiler::graph::eval::{self, static_value};
use ombra_compiler::import::load_weight;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::Compiled;
use ombra_ir::bind::{Bound, bind};
use ombra_ir::module::{Id, Node};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::reference::run::{Outcome, run};
use ombra_ir::reference::{RefValue, encode};
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeMap;

/// A step's sizes from the shapes of its inputs.
///
/// # Errors
/// Inputs that the model does not have or that disagree.
pub fn sizes(compiled: &Compiled, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<(String, u64)>> {
    let bindings = eval::bind_inputs(&compiled.graph, inputs)?;
    let module = &compiled.plan.module;
    Ok(module
        .dims
        .syms
        .iter()
        .enumerate()
        .filter_map(|(i, info)| Some((info.name.clone(), bindings.get(ombra_ir::Sym(i as u32))?)))
        .collect())
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

/// Runs one step in the clear.
///
/// # Errors
/// Inputs that the plan cannot take.
pub fn step(compiled: &Compiled, model: &Model, inputs: &BTreeMap<String, Tensor>) -> Result<Outcome> {
    let bound = bind_step(compiled, inputs)?;
    let weights = |name: &str| load_weight(model, name);
    // What the client computes in plaintext.
    let mut known: BTreeMap<String, Tensor> = inputs.clone();
    eval::visit(&compiled.graph, &weights, inputs, &mut |id, tensor| {
        if let Some((name, _)) = compiled.inputs.iter().find(|(_, v)| **v == id) {
            known.insert(name.clone(), tensor.clone());
        }
    })?;
    let mut source = |_: Id, node: &Node| source_value(compiled, &weights, &known, node);
    run(&compiled.plan.module, &bound, &mut source)
}

fn source_value(
    compiled: &Compiled,
    weights: &eval::Weights,
    known: &BTreeMap<String, Tensor>,
    node: &Node,
) -> Result<RefValue> {
    let module = &compiled.plan.module;
    let missing = |name: &str| Diagnostic::input("E0000", format!("`{name}` is not given"));
    let ring = |t: &Tensor| -> Result<RefValue> {
        let (bits, scale) = node.ty.as_ring().ok_or_else(|| missing("ring"))?;
        RefValue::ring(bits, t.shape().to_vec(), encode(t.as_f32()?, bits, scale, node.ty.bound)?)
    };
    match &node.op {
        Op::Weight { name } | Op::PublicWeight { name } => {
            let &(v, _) = compiled.weights.get(name).ok_or_else(|| missing(name))?;
            ring(&static_value(&compiled.graph, weights, v)?)
        }
        Op::Input { slot } => {
            let input = &module.inputs[*slot as usize];
            let tensor = known.get(&input.name).ok_or_else(|| missing(&input.name))?;
            ring(tensor)
        }
        Op::ClientInts { slot } => {
            let input = &module.inputs[*slot as usize];
            Ok(RefValue::plain(known.get(&input.name).ok_or_else(|| missing(&input.name))?.clone()))
        }
        Op::State { slot } => {
            let state = &module.states[*slot as usize];
            ring(known.get(&state.input).ok_or_else(|| missing(&state.input))?)
        }
        other => Err(Diagnostic::internal("E0000", format!("{} is no source", other.name()))),
    }
}
