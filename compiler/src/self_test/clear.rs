//! A compiled plan in the clear, in one process, with everything a run is given.

use crate::graph::{ValueId, eval};
use crate::import::load_weight;
use crate::onnx::Model;
use crate::pipeline::Compiled;
use crate::weights::statics::{Key, Known, Statics};
use ombra_ir::bind::{Bound, bind};
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::norms::Measure;
use ombra_ir::op::{Class, Op};
use ombra_ir::plain::Tensor;
use ombra_ir::plain::tensor::volume;
use ombra_ir::reference::run::{Outcome, needed, run_revealed, run_together};
use ombra_ir::reference::{RefValue, Rounding, encode, encode_as};
use ombra_ir::ty::Ty;
use ombra_ir::{Bindings, Diagnostic, Result, Sym};
use std::collections::{BTreeMap, HashMap};

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
    let steps = Steps::new(compiled, model, inputs, None)?;
    run_together(&compiled.plan.module, &steps.bound, rounding, &mut |step, _, node| steps.source(step, node), see)
}

/// As [`steps_seen`], for two programs of one model. What the second reveals is computed from the first's values where
/// both have the same, so that these are shown as the first's alone; `see` is told whose a value is.
///
/// # Errors
/// Inputs that the plans cannot take, and those of `see`.
pub fn two_seen(
    (first, second): (&Compiled, &Compiled),
    model: &Model,
    inputs: &[&BTreeMap<String, Tensor>],
    rounding: Rounding,
    see: &mut dyn FnMut(Whose, usize, Id, &RefValue) -> Result<()>,
) -> Result<()> {
    let one = Steps::new(first, model, inputs, None)?;
    let other = Steps::new(second, model, inputs, Some(&one))?;
    let taken = taken(&one, &other)?;
    let mut kept: BTreeMap<Id, Vec<RefValue>> = taken.values().map(|id| (*id, Vec::new())).collect();
    let module = &first.plan.module;
    run_together(module, &one.bound, rounding, &mut |step, _, node| one.source(step, node), &mut |step, id, value| {
        if let Some(kept) = kept.get_mut(&id) {
            kept.push(value.clone());
        }
        see(Whose::First, step, id, value)
    })?;
    let given = taken.into_iter().filter_map(|(id, from)| Some((id, kept.get(&from)?.clone()))).collect();
    drop(kept);
    let (module, source) = (&second.plan.module, &mut |step, _: Id, node: &Node| other.source(step, node));
    run_revealed(module, &other.bound, given, rounding, source, &mut |step, id, value| {
        see(Whose::Second, step, id, value)
    })?;
    Ok(())
}

/// Which of two programs a value is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The one that is run whole.
    First,
    /// The one that takes values of the first.
    Second,
}

/// Several first steps of a program, with all that they are given.
struct Steps<'a> {
    compiled: &'a Compiled,
    model: &'a Model,
    bound: Vec<Bound>,
    /// Inputs, and what the client computes in plaintext.
    known: Vec<BTreeMap<String, Tensor>>,
}

impl<'a> Steps<'a> {
    /// Steps of a program; of what the client computes, what `other` has too is taken from there.
    fn new(
        compiled: &'a Compiled,
        model: &'a Model,
        inputs: &[&BTreeMap<String, Tensor>],
        other: Option<&Steps>,
    ) -> Result<Self> {
        let bound = inputs.iter().map(|inputs| bind_step(compiled, inputs)).collect::<Result<Vec<_>>>()?;
        let known = inputs.iter().map(|inputs| (*inputs).clone()).collect();
        let mut steps = Steps { compiled, model, bound, known };
        let given = match other.filter(|other| have_equal_sizes(other, &steps)) {
            Some(other) => Some((other, other.keys_of_inputs()?)),
            None => None,
        };
        let mut wanted = Vec::new();
        for (key, names) in steps.keys_of_inputs()? {
            let taken = given.as_ref().and_then(|(other, keys)| Some((other, *keys.get(&key)?.first()?)));
            match taken {
                Some((other, from)) => {
                    for (own, others) in steps.known.iter_mut().zip(&other.known) {
                        for name in &names {
                            own.extend(others.get(from).map(|tensor| ((*name).clone(), tensor.clone())));
                        }
                    }
                }
                None => wanted.extend(names.iter().filter_map(|name| compiled.inputs.get(*name))),
            }
        }
        let weights = |name: &str| load_weight(model, name);
        eval::visit_rows(&compiled.graph, &wanted, &weights, inputs, &mut |row, id, tensor| {
            for (name, _) in compiled.inputs.iter().filter(|(_, v)| **v == id) {
                if let Some(known) = steps.known.get_mut(row) {
                    known.insert(name.clone(), tensor.clone());
                }
            }
        })?;
        Ok(steps)
    }

    /// Names of what the client gives, by what it is.
    fn keys_of_inputs(&self) -> Result<BTreeMap<Key, Vec<&'a String>>> {
        let none = Known::default();
        let statics = Statics::new(&self.compiled.graph, self.model, &none);
        let mut keys: BTreeMap<Key, Vec<&String>> = BTreeMap::new();
        for (name, v) in &self.compiled.inputs {
            keys.entry(statics.key(*v)?).or_default().push(name);
        }
        Ok(keys)
    }

    fn source(&self, step: usize, node: &Node) -> Result<RefValue> {
        let missing = || Diagnostic::internal("E0585", "a step has no inputs");
        source_value(self.compiled, self.model, self.known.get(step).ok_or_else(missing)?, node)
    }

    /// What an op is given in every step: public values, or inputs.
    fn tensors(&self, op: &Op) -> Option<Vec<&Tensor>> {
        let module = &self.compiled.plan.module;
        let steps = self.bound.iter().zip(&self.known);
        match op {
            Op::Public { value } => steps.map(|(bound, _)| bound.public.get(*value as usize)).collect(),
            _ => {
                let name = given_name(module, op)?;
                steps.map(|(_, known)| known.get(name)).collect()
            }
        }
    }
}

/// The name of what the client gives an op.
fn given_name<'a>(module: &'a Module, op: &Op) -> Option<&'a str> {
    match op {
        Op::Input { slot } | Op::ClientInts { slot } => module.inputs.get(*slot as usize).map(|s| s.name.as_str()),
        Op::State { slot } => module.states.get(*slot as usize).map(|s| s.input.as_str()),
        _ => None,
    }
}

/// What the second program's revealed values follow from and the first computes too: ids of the second with those of the
/// first.
///
/// Equal ops of equal operands are equal, and so are sources with the same elements. Sources themselves are not taken,
/// since weights are large.
fn taken(first: &Steps, second: &Steps) -> Result<BTreeMap<Id, Id>> {
    let equal = equal_values(first, second)?;
    let module = &second.compiled.plan.module;
    // Nor is what is chosen and revealed: it is looked at in the second program.
    let is_own = |op: &Op| op.class() == Class::Source || matches!(op, Op::Reveal { .. } | Op::ArgMax { .. });
    let known = |id: Id| equal.contains_key(&id) && !is_own(&module.node(id).op);
    let needed = needed(module, &known);
    let taken = equal.iter().filter(|(id, _)| known(**id) && needed.get(id.index()) == Some(&true));
    Ok(taken.map(|(id, from)| (*id, *from)).collect())
}

/// Whether the symbols of two programs stand for the same sizes, so that equal shapes are equal sizes.
fn have_equal_sizes(first: &Steps, second: &Steps) -> bool {
    let symbols = |steps: &Steps| steps.compiled.plan.module.dims.syms.len();
    let common = u32::try_from(symbols(first).min(symbols(second))).unwrap_or(u32::MAX);
    let sizes = |steps: &Steps| -> Vec<Vec<Option<u64>>> {
        steps.bound.iter().map(|b| (0..common).map(|i| b.bindings.get(Sym(i))).collect()).collect()
    };
    sizes(first) == sizes(second)
}

/// Values of the second program that are values of the first in these steps, up to the rounding of divisions.
fn equal_values(first: &Steps, second: &Steps) -> Result<BTreeMap<Id, Id>> {
    let mut equal = BTreeMap::new();
    if !have_equal_sizes(first, second) {
        return Ok(equal);
    }
    let none = Known::default();
    let statics = |steps: &'_ Steps<'_>| -> Result<BTreeMap<String, Key>> {
        let statics = Statics::new(&steps.compiled.graph, steps.model, &none);
        steps.compiled.weights.iter().map(|(name, (v, _))| Ok((name.clone(), statics.key(*v)?))).collect()
    };
    let (own, others) = (statics(first)?, statics(second)?);
    // One value for all of the first program that are equal, by what makes them.
    let mut made: HashMap<String, Id> = HashMap::new();
    let mut sources: Vec<Id> = Vec::new();
    let mut value_of =
        |steps: &Steps, weights: &BTreeMap<String, Key>, args: Option<Vec<Id>>, node: &Node, own: Option<Id>| {
            let Some(tensors) = steps.tensors(&node.op) else {
                let key = described(node, &args?, weights)?;
                return made.get(&key).copied().or_else(|| {
                    made.extend(own.map(|id| (key, id)));
                    own
                });
            };
            let module = &first.compiled.plan.module;
            let same = |id: &&Id| {
                let source = module.node(**id);
                std::mem::discriminant(&source.op) == std::mem::discriminant(&node.op)
                    && source.ty.elem == node.ty.elem
                    && first.tensors(&source.op).is_some_and(|own| own == tensors)
            };
            sources.iter().find(same).copied().or_else(|| {
                sources.extend(own);
                own
            })
        };
    let mut own_values: BTreeMap<Id, Id> = BTreeMap::new();
    let of = |args: &[Id], values: &BTreeMap<Id, Id>| args.iter().map(|a| values.get(a).copied()).collect();
    for (id, node) in ids(&first.compiled.plan.module) {
        let value = value_of(first, &own, of(&node.args, &own_values), node, Some(id));
        own_values.extend(value.map(|value| (id, value)));
    }
    for (id, node) in ids(&second.compiled.plan.module) {
        let value = value_of(second, &others, of(&node.args, &equal), node, None);
        equal.extend(value.map(|value| (id, value)));
    }
    Ok(equal)
}

fn ids(module: &Module) -> impl Iterator<Item = (Id, &Node)> {
    module.ops.iter().zip(0..).map(|(node, i)| (Id(i), node))
}

/// An op with the values of its operands, in words that are the same for what computes the same; nothing for sources that
/// are told apart by their elements.
fn described(node: &Node, args: &[Id], weights: &BTreeMap<String, Key>) -> Option<String> {
    let (op, ty) = (&node.op, &node.ty);
    match op {
        Op::Weight { name } | Op::PublicWeight { name } => Some(format!("{:?} {:?}", weights.get(name)?, ty.elem)),
        _ if op.class() == Class::Source => None,
        _ => Some(format!("{op:?} {args:?} {:?} {:?}", ty.elem, ty.shape)),
    }
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
