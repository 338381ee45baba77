//! The self-test of a plan: its program, evaluated in the clear on rings, against the model in float.
//!
//! Two programs are run: the plan's own, whose scores are read before the maximum of them is chosen, so that of every
//! row only the last position is seen; and, where the plan chooses tokens, the same model compiled to reveal the logits
//! of all positions. What both compute is computed once. Divisions round by drawn numbers, as they do by shares; all else
//! is what the parties compute.

pub mod clear;
pub mod measure;
pub mod rows;

use crate::graph::eval::{self, Weights};
use crate::graph::{Graph, OutputRole, Owner, ValueId};
use crate::import::{self, load_weight};
use crate::onnx::Model;
use crate::output::reveal::Reveal;
use crate::pipeline::{self, Compiled, Errors, Options};
use clear::Whose;
use measure::{Logits, Sums, relative_error};
use ombra_ir::module::{Id, Module, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::reference::{RefData, RefValue, Rounding};
use ombra_ir::{Diagnostic, Result};
use rows::Row;
use std::collections::BTreeMap;

/// Maximum mean divergence of the plan's distribution from the model's, in nats.
pub const MAX_DIVERGENCE: f64 = 1e-4;
/// Positions that a mean is over at least: fewer may have the divergence of so many together, since it is a few positions of
/// strange rows that have most of it.
pub const MANY: usize = 50;
/// A token is another one, and no near tie, where the model's logits differ by more than this.
pub const MAX_MARGIN: f64 = 0.5;
/// Maximum relative error of an output that is no distribution.
pub const MAX_RELATIVE: f64 = 1e-2;
/// Relative error of a layer above which it is named as the first that goes wrong.
const BAD_LAYER: f64 = 1e-2;
/// Elements below this size count as such in relative errors: of a row that is almost zero nothing is left.
const FLOOR: f64 = 1.0 / 32.0;
/// Positions that are evaluated side by side.
const TOGETHER: usize = 256;
/// Where the numbers of roundings begin.
const SEED: u64 = 0x0b5e_55ed;

/// What a self-test found.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Report {
    /// Rows that were tried, in words, with their numbers of positions.
    pub rows: Vec<(String, usize)>,
    /// Logits of all positions.
    pub logits: Logits,
    /// Logits of the plan's own program, at the last position of every row.
    pub last: Logits,
    /// Maximum relative error of outputs that are no distributions, by name.
    pub outputs: BTreeMap<String, f64>,
    /// Rows that left an assumed range, on which the plan gives no result but the guard's error.
    pub guarded: Vec<String>,
}

impl Report {
    /// What was found, a line each.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (what, logits) in [("all positions", &self.logits), ("last positions of the plan", &self.last)] {
            if logits.positions == 0 {
                continue;
            }
            let percent = 100.0 * logits.agreed as f64 / logits.positions as f64;
            out += &format!(
                "self-test, {what}: next tokens agree on {} of {} ({percent:.2} %), logit error {:.4} at most, {:.5} on average, divergence {:.2e}\n",
                logits.agreed, logits.positions, logits.greatest_error, logits.mean_error, logits.divergence
            );
            if let Some((model, plan)) = logits.perplexity {
                let change = 100.0 * (plan / model - 1.0);
                out += &format!("self-test, {what}: perplexity {plan:.4}, the model's {model:.4} ({change:+.4} %)\n");
            }
            for o in logits.others.iter().take(8) {
                let (row, at) = (&o.row, o.position);
                let (found, expected, margin) = (o.found, o.expected, o.margin);
                out += &format!("  {row}, position {at}: {found} in place of {expected}, margin {margin:.4}\n");
            }
        }
        for row in &self.guarded {
            out += &format!("self-test: {row} leaves an assumed range, so that the guard takes its result away\n");
        }
        for (name, error) in &self.outputs {
            out += &format!("self-test: output `{name}` has a relative error of {error:.2e} at most\n");
        }
        out
    }

    /// What is wrong with it, in words; nothing when the plan passes.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.logits.faults("all positions");
        faults.extend(self.last.faults("the plan's last positions"));
        let wrong = self.outputs.iter().filter(|(_, error)| **error > MAX_RELATIVE || error.is_nan());
        faults.extend(wrong.map(|(name, error)| format!("output `{name}` has a relative error of {error:.2e}")));
        if !self.guarded.is_empty() && self.logits.positions == 0 && self.last.positions == 0 && self.outputs.is_empty()
        {
            faults.push("every row leaves an assumed range, so that the guard takes all results away".into());
        }
        faults
    }
}

/// What is tested, and how far it is, a number of 1000.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64);

/// Tests a compiled plan on rows of at most `most` positions together, or on the given rows of token ids.
///
/// # Errors
/// `E0586` for a plan that is not what the model computes, with the first layer that goes wrong; rows that the model
/// cannot take; what the model cannot be evaluated on.
pub fn self_test(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
    compiled: &Compiled,
    what: What,
    progress: Progress,
) -> std::result::Result<Report, Errors> {
    let one = |d: Diagnostic| vec![d];
    let imported = import::import(model, &options.sizes)?.graph;
    let whole = whole(model, base, options, compiled)?;
    let whole = whole.as_ref().unwrap_or(compiled);
    let rows = match what {
        What::BuiltIn { special, most } => rows::rows(&imported, &compiled.graph, special, most),
        What::Tokens(given) => rows::rows_of_tokens(&imported, &compiled.graph, given),
    };
    let rows = rows.map_err(one)?;
    let mut report = Report::default();
    let (mut all, mut last) = (Sums::default(), Sums::default());
    let changed = !compiled.plan.changes.is_empty();
    // Functions that were changed by request are compared with themselves.
    let graph = if changed { &whole.graph } else { &imported };
    report.rows = rows.iter().map(|row| (row.name.clone(), row.tokens.len())).collect();
    for rows in together(&rows) {
        progress("the model in float", 0);
        let expected = outputs_in_float(model, graph, whole, rows).map_err(one)?;
        let own = (!std::ptr::eq(whole, compiled) && matches!(what, What::BuiltIn { .. })).then_some(compiled);
        let [of_all, of_last] = run(model, (whole, own), rows, progress).map_err(one)?;
        for (found, sums) in [(of_all, &mut all), (of_last, &mut last)] {
            for ((row, expected), mut found) in rows.iter().zip(&expected).zip(found) {
                if guard_is_set(&mut found) {
                    report.guarded.push(row.name.clone());
                    continue;
                }
                compare(row, expected, &found, sums, &mut report.outputs).map_err(one)?;
            }
        }
    }
    (report.logits, report.last) = (all.finish(), last.finish());
    let faults = report.faults();
    if faults.is_empty() {
        return Ok(report);
    }
    let message = "the plan does not compute what the model does";
    let mut error = Diagnostic::input("E0586", message);
    error.notes.extend(faults);
    let wrong = if report.last.faults("").is_empty() { whole } else { compiled };
    error.notes.push(layers(model, wrong, &rows, progress).map_err(one)?);
    error = error.note("give more bits with --fixed-point, or leave out approximations").note(
        "--self-test 0 compiles the plan without this test; its results are then wrong where they were wrong here",
    );
    Err(vec![error])
}

/// Rows that are evaluated side by side: as many as have [`TOGETHER`] positions, since the logits of all are kept.
fn together(rows: &[Row]) -> Vec<&[Row]> {
    let (mut groups, mut left) = (Vec::new(), rows);
    while !left.is_empty() {
        let mut positions = 0;
        let fits = |row: &&Row| {
            positions += row.tokens.len();
            positions <= TOGETHER
        };
        let (group, rest) = left.split_at(left.iter().take_while(fits).count().max(1));
        groups.push(group);
        left = rest;
    }
    groups
}

/// What a self-test is run on.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// The built-in rows.
    BuiltIn {
        /// Tokens that the tokenizer names.
        special: &'a rows::Special,
        /// Most positions of all rows together.
        most: usize,
    },
    /// Rows of token ids.
    Tokens(&'a [Vec<i64>]),
}

/// The same model compiled to reveal the logits of all positions, where the plan chooses tokens from those of the last.
fn whole(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
    compiled: &Compiled,
) -> std::result::Result<Option<Compiled>, Errors> {
    let outputs = &compiled.plan.module.outputs;
    let Some(logits) = outputs.iter().find(|o| o.kind == OutputKind::NextToken) else { return Ok(None) };
    let others = outputs.iter().filter(|o| o.kind == OutputKind::Tensor && o.name != logits.name);
    let reveal = [logits].into_iter().chain(others).map(|o| Reveal::Output(o.name.clone())).collect();
    // The same rewrites, without being priced again: it is the plan that is tested.
    let keep_rewrites = Some(compiled.rewrites.iter().any(|r| !r.applied.is_empty()));
    let options = Options { reveal, keep_rewrites, ..options.clone() };
    pipeline::compile_knowing(model, base, &compiled.known, &options).map(Some)
}

/// What the plan reveals, as the model computes it of every row, by name: role and tensor.
fn outputs_in_float(
    model: &Model,
    graph: &Graph,
    compiled: &Compiled,
    rows: &[Row],
) -> Result<Vec<BTreeMap<String, (OutputRole, Tensor)>>> {
    let revealed = |name: &str| compiled.plan.module.outputs.iter().any(|o| o.name == name);
    let outputs: Vec<_> = graph.outputs.iter().filter(|o| revealed(&o.name)).collect();
    let wanted: Vec<ValueId> = outputs.iter().map(|o| o.value).collect();
    let mut tensors = vec![BTreeMap::new(); rows.len()];
    let inputs: Vec<_> = rows.iter().map(|row| &row.inputs).collect();
    eval::visit_rows(graph, &wanted, &|name| load_weight(model, name), &inputs, &mut |row, id, tensor| {
        for output in outputs.iter().filter(|o| o.value == id) {
            if let Some(tensors) = tensors.get_mut(row) {
                tensors.insert(output.name.clone(), (output.role.clone(), tensor.clone()));
            }
        }
    })?;
    Ok(tensors)
}

/// An output of a program in the clear.
struct Found {
    kind: OutputKind,
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Outputs of a program in the clear, by name, of every row.
type Outputs = Vec<BTreeMap<String, Found>>;

/// Every row's revealed outputs of a program, and of another one where there is one; in place of the next token, the scores
/// that it is chosen from.
fn run(
    model: &Model,
    (whole, own): (&Compiled, Option<&Compiled>),
    rows: &[Row],
    progress: &mut dyn FnMut(&str, u64),
) -> Result<[Outputs; 2]> {
    let none = || -> Outputs { rows.iter().map(|_| BTreeMap::new()).collect() };
    let mut found = [none(), none()];
    let wanted = [revealed(&whole.plan.module), own.map(|own| revealed(&own.plan.module)).unwrap_or_default()];
    let inputs: Vec<_> = rows.iter().map(|row| &row.inputs).collect();
    let rounding = Rounding::Drawn { seed: SEED };
    let mut see = |whose: Whose, row: usize, id: Id, value: &RefValue| {
        let (name, program, at) = match whose {
            Whose::First => ("all positions", whole, 0),
            Whose::Second => ("last positions", own.unwrap_or(whole), 1),
        };
        let module = &program.plan.module;
        progress(name, id.index() as u64 * 1000 / module.ops.len().max(1) as u64);
        if let (Some((name, kind)), Some(found)) = (wanted[at].get(&id), found[at].get_mut(row)) {
            let values = decoded(module.ty(id), value)?;
            found.insert(name.clone(), Found { kind: *kind, shape: value.shape.clone(), values });
        }
        Ok(())
    };
    match own {
        Some(own) => clear::two_seen((whole, own), model, &inputs, rounding, &mut see)?,
        None => {
            let mut see = |row: usize, id: Id, value: &RefValue| see(Whose::First, row, id, value);
            clear::steps_seen(whole, model, &inputs, rounding, &mut see)?;
        }
    }
    let missing = |(found, wanted): (&Outputs, &BTreeMap<Id, (String, OutputKind)>)| {
        found.iter().any(|found| wanted.values().any(|(name, _)| !found.contains_key(name)))
    };
    if found.iter().zip(&wanted).any(missing) {
        return Err(Diagnostic::internal("E0585", "a program did not compute what it reveals"));
    }
    Ok(found)
}

/// What a program reveals: names and kinds by the value that is looked at.
fn revealed(module: &Module) -> BTreeMap<Id, (String, OutputKind)> {
    let mut wanted: BTreeMap<Id, (String, OutputKind)> = BTreeMap::new();
    for node in &module.ops {
        let (Op::Reveal { slot }, [value]) = (&node.op, &*node.args) else { continue };
        let Some(output) = module.outputs.get(*slot as usize) else { continue };
        let (source, kind) = match &module.node(*value).op {
            _ if output.kind == OutputKind::Guard => (Some(*value), OutputKind::Guard),
            Op::ArgMax { .. } => (module.node(*value).args.first().copied(), OutputKind::NextToken),
            _ => (Some(*value), OutputKind::Tensor),
        };
        wanted.extend(source.map(|source| (source, (output.name.clone(), kind))));
    }
    wanted
}

/// Takes the guard out of what a program reveals; whether it is set.
fn guard_is_set(found: &mut BTreeMap<String, Found>) -> bool {
    let mut set = false;
    found.retain(|_, output| {
        let guard = output.kind == OutputKind::Guard;
        set |= guard && output.values.iter().any(|bit| *bit != 0.0);
        !guard
    });
    set
}

fn decoded(ty: &ombra_ir::ty::Ty, value: &RefValue) -> Result<Vec<f64>> {
    match (&value.data, ty.as_ring()) {
        (RefData::Ring { .. }, Some((_, scale))) => value.decode(scale),
        (RefData::Bit(bits), _) => Ok(bits.iter().map(|b| f64::from(u8::from(*b))).collect()),
        _ => Err(Diagnostic::internal("E0585", "a revealed value is no number")),
    }
}

/// Adds what a program's outputs say: logits to `sums`, others to `outputs`.
fn compare(
    row: &Row,
    expected: &BTreeMap<String, (OutputRole, Tensor)>,
    found: &BTreeMap<String, Found>,
    sums: &mut Sums,
    outputs: &mut BTreeMap<String, f64>,
) -> Result<()> {
    for (name, found) in found {
        let missing = || Diagnostic::internal("E0585", format!("the model has no output `{name}`"));
        let (role, tensor) = expected.get(name).ok_or_else(missing)?;
        let Ok(model) = tensor.as_f32() else { continue };
        let size = tensor.shape().last().copied().unwrap_or(1).max(1);
        let is_chosen_from = found.kind == OutputKind::NextToken;
        // The plan's own program has the last position of every row alone.
        let (model, first) = match tensor.shape() {
            [batch, len, _] if is_chosen_from && found.values.len() == batch * size => {
                let rows = model.chunks_exact(len * size).filter_map(|row| row.get((len - 1) * size..));
                (rows.flatten().copied().collect(), len - 1)
            }
            _ => (model.to_vec(), 0),
        };
        if model.len() != found.values.len() {
            let message = format!("output `{name}` has shape {:?} in the plan", found.shape);
            return Err(Diagnostic::internal("E0585", message).note(format!("expected {:?}", tensor.shape())));
        }
        if *role == OutputRole::Logits && tensor.rank() == 3 {
            let next = if row.is_text && first == 0 { row.tokens.get(1..).unwrap_or(&[]) } else { &[] };
            sums.add(&row.name, first, size, (&model, &found.values), next);
        } else {
            let error = relative_error(&model, &found.values, size, FLOOR);
            let entry = outputs.entry(name.clone()).or_insert(0.0);
            *entry = if error.is_nan() { error } else { entry.max(error) };
        }
    }
    Ok(())
}

/// The first layer whose last value is off, in words.
fn layers(model: &Model, compiled: &Compiled, rows: &[Row], progress: Progress) -> Result<String> {
    let (graph, module) = (&compiled.graph, &compiled.plan.module);
    let weights: &Weights = &|name: &str| load_weight(model, name);
    // The last value of every layer that comes from a node of its own.
    let mut ends: BTreeMap<u32, ValueId> = BTreeMap::new();
    let shared = |node: &crate::graph::Node| node.owner == Owner::Secret && node.dtype == DType::F32;
    for id in graph.topological() {
        let node = graph.node(id)?;
        if let Some(layer) = node.origin.layer
            && shared(node)
            && module.ops.iter().any(|op| op.origin.node == node.origin.node)
        {
            ends.insert(layer, id);
        }
    }
    let mut last: BTreeMap<Id, (u32, ValueId)> = BTreeMap::new();
    for (&layer, &id) in &ends {
        let node = graph.node(id)?;
        let from_it = |op: &ombra_ir::module::Node| op.origin.node == node.origin.node && op.ty.shape == node.shape;
        let at = module.ops.iter().rposition(|op| from_it(op) && op.ty.as_ring().is_some());
        last.extend(at.and_then(|at| u32::try_from(at).ok()).map(|at| (Id(at), (layer, id))));
    }
    let mut worst: BTreeMap<u32, f64> = BTreeMap::new();
    for row in rows {
        let mut floats: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        let wanted: Vec<ValueId> = ends.values().copied().collect();
        eval::visit_needed(graph, &wanted, weights, &row.inputs, &mut |id, tensor| {
            if wanted.contains(&id) {
                floats.insert(id, tensor.clone());
            }
        })?;
        clear::step_seen(compiled, model, &row.inputs, Rounding::Drawn { seed: SEED }, &mut |id, value| {
            progress(&row.name, id.index() as u64 * 1000 / module.ops.len().max(1) as u64);
            let Some((layer, of)) = last.get(&id) else { return Ok(()) };
            let Some(float) = floats.get(of).filter(|f| f.shape() == value.shape) else { return Ok(()) };
            let size = float.shape().last().copied().unwrap_or(1);
            let error = relative_error(float.as_f32()?, &decoded(module.ty(id), value)?, size, FLOOR);
            let entry = worst.entry(*layer).or_insert(0.0);
            *entry = if error.is_nan() { f64::INFINITY } else { entry.max(error) };
            Ok(())
        })?;
    }
    Ok(match worst.iter().find(|(_, error)| **error > BAD_LAYER) {
        Some((layer, error)) => format!("the first layer that goes wrong is layer {layer}: relative error {error:.2e}"),
        None => format!(
            "no layer goes wrong by itself: relative errors are {:.1e} at most, in the program that is lowered",
            worst.values().copied().fold(0.0, f64::max)
        ),
    })
}
