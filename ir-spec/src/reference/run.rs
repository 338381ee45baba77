//! A whole bound module in the clear, in one process: the `plain` setting.

use super::{RefData, RefValue, Rounding, eval_rounded};
use crate::bind::{Bound, place};
use crate::diag::{Diagnostic, Result};
use crate::module::{Id, Module, Node};
use crate::op::{Class, Op};

/// What a module leaves behind.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Revealed values, by output slot.
    pub outputs: Vec<Option<RefValue>>,
    /// New contents of states, by slot.
    pub states: Vec<Option<RefValue>>,
}

/// Runs a module, with divisions that round down. `source` gives the values of weights, inputs, states and the client's
/// integers.
///
/// # Errors
/// Those of `source`, and operands that an op cannot take.
pub fn run(module: &Module, bound: &Bound, source: &mut dyn FnMut(Id, &Node) -> Result<RefValue>) -> Result<Outcome> {
    run_seen(module, bound, Rounding::Floor, source, &mut |_, _| Ok(()))
}

/// As [`run`], with the rounding of divisions, and shows every value to `see` when it is computed. A value is kept as
/// long as it has users to come.
///
/// # Errors
/// Those of `source` and `see`, and operands that an op cannot take.
pub fn run_seen(
    module: &Module,
    bound: &Bound,
    rounding: Rounding,
    source: &mut dyn FnMut(Id, &Node) -> Result<RefValue>,
    see: &mut dyn FnMut(Id, &RefValue) -> Result<()>,
) -> Result<Outcome> {
    let mut last_use = vec![0usize; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        for a in &node.args {
            last_use[a.index()] = i;
        }
    }
    let mut values: Vec<Option<RefValue>> = Vec::with_capacity(module.ops.len());
    let mut outcome = Outcome { outputs: vec![None; module.outputs.len()], states: vec![None; module.states.len()] };
    for (i, node) in module.ops.iter().enumerate() {
        let id = Id(i as u32);
        let kept = match (&node.op, &*node.args) {
            // The same elements, which nobody else uses.
            (Op::SetScale { .. } | Op::Reshare | Op::Reshape { .. }, [a]) if last_use[a.index()] == i => {
                values[a.index()].take().filter(|v| {
                    let same = super::volume(&v.shape).ok() == super::volume(&bound.shapes[i]).ok();
                    same && !matches!(v.data, RefData::Plain(_))
                })
            }
            _ => None,
        };
        let value = match kept {
            Some(value) => Ok(RefValue { shape: bound.shapes[i].clone(), ..value }),
            None => one(module, bound, id, &values, rounding.of_op(i), source),
        };
        let value = value.and_then(|value| see(id, &value).map(|()| value)).map_err(|d| d.at(place(module, id)))?;
        match node.op {
            Op::Reveal { slot } => outcome.outputs[slot as usize] = Some(value.clone()),
            Op::SetState { slot } => outcome.states[slot as usize] = Some(value.clone()),
            _ => {}
        }
        values.push((last_use[i] > i).then_some(value));
        for a in &node.args {
            if last_use[a.index()] == i {
                values[a.index()] = None;
            }
        }
    }
    Ok(outcome)
}

fn one(
    module: &Module,
    bound: &Bound,
    id: Id,
    values: &[Option<RefValue>],
    rounding: Rounding,
    source: &mut dyn FnMut(Id, &Node) -> Result<RefValue>,
) -> Result<RefValue> {
    let node = module.node(id);
    if let Op::Public { value } = node.op {
        let tensor = bound.public.get(value as usize);
        let tensor = tensor.ok_or_else(|| Diagnostic::input("E0404", "a public value does not exist"))?;
        return Ok(RefValue::plain(tensor.clone()));
    }
    if node.op.class() == Class::Source {
        let value = source(id, node)?;
        let expected = &bound.shapes[id.index()];
        if value.shape != *expected {
            return Err(Diagnostic::input("E0385", "a given value has the wrong shape")
                .note(format!("expected {expected:?}, found {:?}", value.shape)));
        }
        return Ok(value);
    }
    let mut args = Vec::with_capacity(node.args.len());
    for a in &node.args {
        let value = values.get(a.index()).and_then(Option::as_ref);
        args.push(value.ok_or_else(|| Diagnostic::internal("E0386", "an operand was freed too early"))?);
    }
    eval_rounded(&node.op, &args, &node.ty, &bound.bindings, rounding)
}
