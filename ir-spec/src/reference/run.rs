//! A whole bound module in the clear, in one process: the `plain` setting.

use super::{RefData, RefValue, Rounding, eval_rounded};
use crate::bind::{Bound, place};
use crate::diag::{Diagnostic, Result};
use crate::module::{Id, Module, Node};
use crate::op::{Class, Op};
use std::collections::BTreeMap;

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
    let mut outcomes = run_together(
        module,
        std::slice::from_ref(bound),
        rounding,
        &mut |_, id, node| source(id, node),
        &mut |_, id, value| see(id, value),
    )?;
    outcomes.pop().ok_or_else(|| Diagnostic::internal("E0386", "a step left nothing behind"))
}

/// Values that are known before a run: of every step, in their order, or one for all of them.
pub type Given = BTreeMap<Id, Vec<RefValue>>;

/// A value in every step that runs.
enum Values {
    /// Of weights alone: the same in all of them.
    Shared(RefValue),
    /// Each step's own.
    Each(Vec<RefValue>),
}

impl Values {
    fn of(&self, step: usize) -> Option<&RefValue> {
        match self {
            Values::Shared(value) => Some(value),
            Values::Each(values) => values.get(step),
        }
    }
}

/// As [`run_seen`], for several steps side by side, op by op: weights, which are large, are asked for once. `source` and
/// `see` are told the step; of weights, and of what is moved from them, `see` is shown the first step's alone.
///
/// # Errors
/// Those of `source` and `see`, and operands that an op cannot take.
pub fn run_together(
    module: &Module,
    steps: &[Bound],
    rounding: Rounding,
    source: &mut dyn FnMut(usize, Id, &Node) -> Result<RefValue>,
    see: &mut dyn FnMut(usize, Id, &RefValue) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let (needed, given) = (vec![true; module.ops.len()], Given::new());
    run_needed(module, (steps, &needed, given), rounding, source, see)
}

/// As [`run_together`], for what is revealed alone, where some values are given: these are not computed again, and neither
/// is what only they follow from. No state is left behind.
///
/// # Errors
/// Those of `source` and `see`, and operands that an op cannot take.
pub fn run_revealed(
    module: &Module,
    steps: &[Bound],
    given: Given,
    rounding: Rounding,
    source: &mut dyn FnMut(usize, Id, &Node) -> Result<RefValue>,
    see: &mut dyn FnMut(usize, Id, &RefValue) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let needed = needed(module, &|id| given.contains_key(&id));
    run_needed(module, (steps, &needed, given), rounding, source, see)
}

/// The ops whose values what is revealed follows from, up to those that are `known`.
pub fn needed(module: &Module, known: &dyn Fn(Id) -> bool) -> Vec<bool> {
    let mut needed: Vec<bool> = module.ops.iter().map(|node| matches!(node.op, Op::Reveal { .. })).collect();
    for (i, node) in module.ops.iter().enumerate().rev() {
        if needed[i] && !known(Id(i as u32)) {
            node.args.iter().for_each(|a| needed[a.index()] = true);
        }
    }
    needed
}

fn run_needed(
    module: &Module,
    (steps, needed, mut given): (&[Bound], &[bool], Given),
    rounding: Rounding,
    source: &mut dyn FnMut(usize, Id, &Node) -> Result<RefValue>,
    see: &mut dyn FnMut(usize, Id, &RefValue) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let mut last_use = vec![0usize; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        let id = Id(i as u32);
        for a in node.args.iter().filter(|_| needed[i] && !given.contains_key(&id)) {
            last_use[a.index()] = i;
        }
    }
    let mut values: Vec<Option<Values>> = Vec::with_capacity(module.ops.len());
    let empty = Outcome { outputs: vec![None; module.outputs.len()], states: vec![None; module.states.len()] };
    let mut outcomes = vec![empty; steps.len()];
    for (i, node) in module.ops.iter().enumerate() {
        let id = Id(i as u32);
        let at = |d: Diagnostic| d.at(place(module, id));
        if !needed[i] {
            values.push(None);
            continue;
        }
        if let Some(mut known) = given.remove(&id) {
            known.iter().enumerate().try_for_each(|(step, value)| see(step, id, value)).map_err(at)?;
            values.push(match known.pop() {
                Some(value) if known.is_empty() && steps.len() > 1 => Some(Values::Shared(value)),
                last => {
                    known.extend(last);
                    Some(Values::Each(known))
                }
            });
            continue;
        }
        let is_shared = shared(node, &values);
        // The same elements, which nobody else uses.
        let moved = match (&node.op, &*node.args) {
            (Op::SetScale { .. } | Op::Reshare | Op::Reshape { .. }, [a]) if last_use[a.index()] == i => {
                values[a.index()].take_if(|v| {
                    is_shared == matches!(v, Values::Shared(_))
                        && steps.iter().enumerate().all(|(step, bound)| moves(v.of(step), &bound.shapes[i]))
                })
            }
            _ => None,
        };
        let mut moved = match moved {
            Some(Values::Shared(value)) => vec![value],
            Some(Values::Each(values)) => values,
            None => Vec::new(),
        }
        .into_iter();
        let mut found = Vec::with_capacity(steps.len());
        for (step, bound) in steps.iter().enumerate().take(if is_shared { 1 } else { steps.len() }) {
            let value = match moved.next() {
                Some(value) => Ok(RefValue { shape: bound.shapes[i].clone(), ..value }),
                None => one(module, (step, bound), id, &values, rounding.of_op(i), source),
            };
            let value = value.and_then(|value| see(step, id, &value).map(|()| value)).map_err(at)?;
            match node.op {
                Op::Reveal { slot } => outcomes[step].outputs[slot as usize] = Some(value.clone()),
                Op::SetState { slot } => outcomes[step].states[slot as usize] = Some(value.clone()),
                _ => {}
            }
            // What nobody uses is gone before the next step's.
            if last_use[i] > i {
                found.push(value);
            }
        }
        values.push(match found.pop() {
            None => None,
            Some(value) if is_shared => Some(Values::Shared(value)),
            Some(value) => {
                found.push(value);
                Some(Values::Each(found))
            }
        });
        for a in &node.args {
            if last_use[a.index()] == i {
                values[a.index()] = None;
            }
        }
    }
    Ok(outcomes)
}

/// Whether a value has the elements of its operand, in another shape.
fn moves(operand: Option<&RefValue>, shape: &[usize]) -> bool {
    operand.is_some_and(|v| {
        let same = super::volume(&v.shape).ok() == super::volume(shape).ok();
        same && !matches!(v.data, RefData::Plain(_))
    })
}

/// Whether a value is the same in every step: a weight, or one that is moved or scaled.
fn shared(node: &Node, values: &[Option<Values>]) -> bool {
    if node.ty.shape.iter().any(|d| d.as_constant().is_none()) {
        return false;
    }
    let of_shared = || node.args.iter().all(|a| matches!(values.get(a.index()), Some(Some(Values::Shared(_)))));
    match node.op {
        Op::Weight { .. } | Op::PublicWeight { .. } => true,
        Op::SetScale { .. }
        | Op::Upscale { .. }
        | Op::Lift { .. }
        | Op::Reshare
        | Op::Reshape { .. }
        | Op::Transpose { .. } => of_shared(),
        _ => false,
    }
}

fn one(
    module: &Module,
    (step, bound): (usize, &Bound),
    id: Id,
    values: &[Option<Values>],
    rounding: Rounding,
    source: &mut dyn FnMut(usize, Id, &Node) -> Result<RefValue>,
) -> Result<RefValue> {
    let node = module.node(id);
    if let Op::Public { value } = node.op {
        let tensor = bound.public.get(value as usize);
        let tensor = tensor.ok_or_else(|| Diagnostic::input("E0404", "a public value does not exist"))?;
        return Ok(RefValue::plain(tensor.clone()));
    }
    if node.op.class() == Class::Source {
        let value = source(step, id, node)?;
        let expected = &bound.shapes[id.index()];
        if value.shape != *expected {
            return Err(Diagnostic::input("E0385", "a given value has the wrong shape")
                .note(format!("expected {expected:?}, found {:?}", value.shape)));
        }
        return Ok(value);
    }
    let mut args = Vec::with_capacity(node.args.len());
    for a in &node.args {
        let value = values.get(a.index()).and_then(Option::as_ref).and_then(|v| v.of(step));
        let value = value.ok_or_else(|| Diagnostic::internal("E0386", "an operand was freed too early"))?;
        args.push((value, module.ty(*a)));
    }
    eval_rounded(module.setting, &node.op, &args, &node.ty, &bound.bindings, rounding)
}
