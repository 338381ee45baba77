//! Test sets as ONNX's own: `input_K.pb` and `output_K.pb`, each with the tensor's name inside.

use std::path::Path;

use ombra_ir::module::{Id, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Diagnostic, Dim, Result};

use super::client::Outcome;
use super::comparison::{Comparison, greatest};
use super::folder::PlanFolder;
use super::inputs::{Named, find};
use super::tensor_file;

/// Most tensors of one kind in a test set.
const MAX_FILES: usize = 1 << 12;

/// Given inputs and expected outputs.
pub struct TestSet {
    /// Inputs by name.
    pub inputs: Vec<Named>,
    /// Outputs by name.
    pub outputs: Vec<Named>,
}

impl TestSet {
    /// Reads a folder.
    ///
    /// # Errors
    /// `E1005` when it holds no inputs, or a file is no tensor.
    pub fn read(folder: &Path) -> Result<TestSet> {
        let read = |prefix: &str| -> Result<Vec<Named>> {
            let paths = (0..MAX_FILES).map(|index| folder.join(format!("{prefix}_{index}.pb")));
            let mut all = Vec::new();
            for path in paths.take_while(|path| path.is_file()) {
                let (name, tensor) = tensor_file::read(&path)?;
                let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
                    Diagnostic::input("E1005", "the tensor has no name inside").at(path.display().to_string())
                })?;
                all.push((name, tensor));
            }
            Ok(all)
        };
        let set = TestSet { inputs: read("input")?, outputs: read("output")? };
        if set.inputs.is_empty() {
            return Err(Diagnostic::input("E1005", "the folder holds no test data")
                .at(folder.display().to_string())
                .note("expected  input_0.pb, input_1.pb …, output_0.pb …"));
        }
        Ok(set)
    }
}

/// Compares what was revealed with the expected outputs. A next token is compared with the maximum of the expected
/// scores at the last position; a position that the attention mask leaves out is not compared.
///
/// # Errors
/// `E1005` when an expected output has another shape than the revealed one.
pub fn compare(folder: &PlanFolder, outcome: &Outcome, expected: &[Named]) -> Result<Comparison> {
    let plan = &folder.plan;
    let mut comparison = Comparison::default();
    for (slot, output) in (0u32..).zip(&plan.module.outputs) {
        let (Some(found), Some(wanted)) = (find(&outcome.outputs, &output.name), find(expected, &output.name)) else {
            continue;
        };
        let place = |error: Diagnostic| error.at(format!("output `{}`", output.name));
        match (output.kind, found.data(), wanted.data()) {
            (OutputKind::NextToken, Data::I64(found), Data::F32(scores)) => {
                let rows = last_rows(wanted, scores).map_err(place)?;
                let kept = found.iter().zip(rows).enumerate().filter(|(row, _)| is_last_kept(plan, outcome, *row));
                let tokens = kept.map(|(_, (&token, scores))| {
                    let (best, margin) = greatest(scores.iter().map(|score| f64::from(*score)), token);
                    (token, best, Some(margin))
                });
                comparison.add_tokens(&output.name, tokens);
            }
            (OutputKind::Index, Data::I64(values), Data::I64(numbers)) if found.shape() == wanted.shape() => {
                let pairs = values.iter().zip(numbers).map(|(found, expected)| (*found, *expected, None));
                comparison.add_tokens(&output.name, pairs);
            }
            (OutputKind::Tensor, Data::F32(values), Data::F32(numbers)) if found.shape() == wanted.shape() => {
                let kept = kept_elements(plan, outcome, slot, found.shape());
                let pairs = values.iter().zip(numbers).enumerate().filter(|(index, _)| kept(*index));
                comparison.add_elements(&output.name, pairs.map(|(_, (a, b))| (f64::from(*a), f64::from(*b))));
            }
            _ => return Err(place(other_shape(found, wanted))),
        }
    }
    Ok(comparison)
}

fn other_shape(found: &Tensor, wanted: &Tensor) -> Diagnostic {
    Diagnostic::input("E1005", "an expected output has another form than the revealed one")
        .note(format!("expected  {} of shape {:?}", wanted.dtype().name(), wanted.shape()))
        .note(format!("found     {} of shape {:?}", found.dtype().name(), found.shape()))
}

/// Scores at the last position of every sequence: of `[batch, seq, vocabulary]` or `[batch, vocabulary]`.
fn last_rows<'a>(tensor: &Tensor, scores: &'a [f32]) -> Result<impl Iterator<Item = &'a [f32]>> {
    let (seq, vocabulary) = match *tensor.shape() {
        [_, seq, vocabulary] => (seq, vocabulary),
        [_, vocabulary] => (1, vocabulary),
        _ => return Err(Diagnostic::input("E1005", "scores of tokens have two or three axes")),
    };
    let last = move |sequence: &'a [f32]| sequence.rchunks_exact(vocabulary.max(1)).next().unwrap_or_default();
    Ok(scores.chunks_exact((seq * vocabulary).max(1)).map(last))
}

/// The attention mask of a run, where the plan has one and it was given.
fn attention_mask<'a>(plan: &Plan, outcome: &'a Outcome) -> Option<&'a Tensor> {
    let mask = plan.graph_inputs.iter().find(|input| input.role == InputRole::AttentionMask)?;
    find(&outcome.inputs, &mask.name)
}

/// Whether a mask keeps the position at `index` of its elements.
fn is_kept(mask: &Tensor, index: usize) -> bool {
    match mask.data() {
        Data::F32(values) => values.get(index).is_none_or(|&value| value != 0.0),
        Data::I64(values) => values.get(index).is_none_or(|&value| value != 0),
        Data::Bool(values) => values.get(index).copied().unwrap_or(true),
    }
}

/// Whether the attention mask keeps the last position of row `row`, whose scores choose the next token.
fn is_last_kept(plan: &Plan, outcome: &Outcome, row: usize) -> bool {
    let Some(mask) = attention_mask(plan, outcome) else { return true };
    match *mask.shape() {
        [rows, columns] if columns > 0 => is_kept(mask, row.min(rows.saturating_sub(1)) * columns + columns - 1),
        _ => true,
    }
}

/// Whether the attention mask keeps the position of an element of an output. Axes are known by the sizes that they share
/// with the mask and with the token ids: the batch, and new tokens or all tokens. Without such axes or without a mask
/// everything is kept.
fn kept_elements<'a>(
    plan: &'a Plan,
    outcome: &'a Outcome,
    slot: u32,
    shape: &'a [usize],
) -> Box<dyn Fn(usize) -> bool + 'a> {
    let all = || Box::new(|_: usize| true);
    let input = |role| plan.graph_inputs.iter().find(move |input| input.role == role);
    let (Some(declared), Some(mask)) = (input(InputRole::AttentionMask), attention_mask(plan, outcome)) else {
        return all();
    };
    let ([batch, total], [rows, columns]) = (declared.shape.as_slice(), mask.shape()) else { return all() };
    let seq = input(InputRole::TokenIds).and_then(|ids| ids.shape.last()).unwrap_or(total);
    let reveal = plan.module.ops.iter().position(|node| node.op == Op::Reveal { slot });
    let Some(sizes) = reveal.map(|index| &plan.module.ty(Id(index as u32)).shape) else { return all() };
    let batch = sizes.iter().position(|dim| dim == batch);
    // Of two axes a fixed size may be any number: a pooled row has no positions.
    let is_position = |dim: &Dim| (dim == seq || dim == total) && (dim.as_constant().is_none() || sizes.len() > 2);
    let mut axes = sizes.iter().enumerate().filter(|(axis, _)| Some(*axis) != batch);
    let Some((positions, _)) = axes.find(|(_, dim)| is_position(dim)) else { return all() };
    let (rows, columns) = (*rows, *columns);
    Box::new(move |index| {
        let coordinate = |axis: usize| {
            let inner: usize = shape.iter().skip(axis + 1).product();
            index / inner.max(1) % shape.get(axis).copied().unwrap_or(1).max(1)
        };
        let length = shape.get(positions).copied().unwrap_or(0);
        let column = coordinate(positions) + columns.saturating_sub(length);
        let row = batch.map_or(0, coordinate).min(rows.saturating_sub(1));
        is_kept(mask, row * columns + column)
    })
}
