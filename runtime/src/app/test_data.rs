//! Test sets as ONNX's own: `input_K.pb` and `output_K.pb`, each with the tensor's name inside.

use std::path::Path;

use ombra_ir::module::{Id, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Diagnostic, Result};

use super::client::Outcome;
use super::folder::PlanFolder;
use super::inputs::{Named, find};
use super::report::{Compared, TestData};
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

/// Compares what was revealed with the expected outputs. A next token is compared with the greatest of the expected
/// scores at the last position; elements of a position that the attention mask leaves out are not compared.
///
/// # Errors
/// `E1005` when an expected output has another shape than the revealed one.
pub fn compare(folder: &PlanFolder, outcome: &Outcome, expected: &[Named]) -> Result<TestData> {
    let plan = &folder.plan;
    let mut outputs = Vec::new();
    for (slot, output) in (0u32..).zip(&plan.module.outputs) {
        let (Some(found), Some(wanted)) = (find(&outcome.outputs, &output.name), find(expected, &output.name)) else {
            continue;
        };
        let place = |error: Diagnostic| error.at(format!("output `{}`", output.name));
        let compared = match (output.kind, found.data(), wanted.data()) {
            (OutputKind::NextToken, Data::I64(found), Data::F32(scores)) => {
                let tokens = greatest(wanted, scores).map_err(place)?;
                let same = found.iter().zip(&tokens).filter(|(a, b)| a == b).count();
                let agreement = same as f64 / tokens.len().max(1) as f64;
                Compared { name: output.name.clone(), token_agreement: Some(agreement), max_abs_error: None }
            }
            (OutputKind::Index, Data::I64(values), Data::I64(numbers)) => {
                if found.shape() != wanted.shape() {
                    return Err(place(other_shape(found, wanted)));
                }
                let same = values.iter().zip(numbers).filter(|(a, b)| a == b).count();
                let agreement = same as f64 / numbers.len().max(1) as f64;
                Compared { name: output.name.clone(), token_agreement: Some(agreement), max_abs_error: None }
            }
            (OutputKind::Tensor, Data::F32(values), Data::F32(numbers)) => {
                if found.shape() != wanted.shape() {
                    return Err(place(other_shape(found, wanted)));
                }
                let kept = kept_elements(plan, outcome, slot, found.shape());
                let pairs = values.iter().zip(numbers).enumerate();
                let differences = pairs.filter(|(index, _)| kept(*index)).map(|(_, (a, b))| f64::from((a - b).abs()));
                let error = differences.fold(0.0, f64::max);
                Compared { name: output.name.clone(), max_abs_error: Some(error), token_agreement: None }
            }
            _ => return Err(place(other_shape(found, wanted))),
        };
        outputs.push(compared);
    }
    Ok(TestData { outputs })
}

fn other_shape(found: &Tensor, wanted: &Tensor) -> Diagnostic {
    Diagnostic::input("E1005", "an expected output has another form than the revealed one")
        .note(format!("expected  {} of shape {:?}", wanted.dtype().name(), wanted.shape()))
        .note(format!("found     {} of shape {:?}", found.dtype().name(), found.shape()))
}

/// The index of the greatest score at the last position of every sequence: `[batch, seq, vocabulary]` or
/// `[batch, vocabulary]`.
fn greatest(tensor: &Tensor, scores: &[f32]) -> Result<Vec<i64>> {
    let (batch, seq, vocabulary) = match *tensor.shape() {
        [batch, seq, vocabulary] => (batch, seq, vocabulary),
        [batch, vocabulary] => (batch, 1, vocabulary),
        _ => return Err(Diagnostic::input("E1005", "scores of tokens have two or three axes")),
    };
    let mut tokens = Vec::with_capacity(batch);
    for sequence in scores.chunks_exact((seq * vocabulary).max(1)) {
        let last = sequence.rchunks_exact(vocabulary.max(1)).next().unwrap_or_default();
        let best = last
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (index, &score)| if score > best.1 { (index, score) } else { best });
        tokens.push(best.0 as i64);
    }
    Ok(tokens)
}

/// Whether the attention mask keeps the position of an element of an output. Axes are known by their symbolic sizes:
/// the batch, and new tokens or all tokens. Without such axes or without a mask everything is kept.
fn kept_elements<'a>(
    plan: &'a Plan,
    outcome: &'a Outcome,
    slot: u32,
    shape: &'a [usize],
) -> Box<dyn Fn(usize) -> bool + 'a> {
    let all = || Box::new(|_: usize| true);
    let dims = &plan.module.dims;
    let symbol = |name: &Option<String>| name.as_ref().and_then(|name| dims.find(name)).map(ombra_ir::Dim::from);
    let (Some(seq), batch) = (symbol(&plan.seq), symbol(&plan.batch)) else { return all() };
    let total = symbol(&plan.past).and_then(|past| past.add(&seq).ok()).unwrap_or_else(|| seq.clone());
    let reveal = plan.module.ops.iter().position(|node| node.op == Op::Reveal { slot });
    let Some(sizes) = reveal.map(|index| &plan.module.ty(Id(index as u32)).shape) else { return all() };
    let role = |role| plan.graph_inputs.iter().find(move |input| input.role == role);
    let mask = role(InputRole::AttentionMask).and_then(|input| find(&outcome.inputs, &input.name));
    let Some(mask) = mask else { return all() };
    let (Some(positions), [rows, columns]) = (sizes.iter().position(|d| *d == seq || *d == total), mask.shape()) else {
        return all();
    };
    let batch = batch.and_then(|batch| sizes.iter().position(|dim| *dim == batch));
    let (rows, columns) = (*rows, *columns);
    Box::new(move |index| {
        let coordinate = |axis: usize| {
            let inner: usize = shape.iter().skip(axis + 1).product();
            index / inner.max(1) % shape.get(axis).copied().unwrap_or(1).max(1)
        };
        let length = shape.get(positions).copied().unwrap_or(0);
        let column = coordinate(positions) + columns.saturating_sub(length);
        let row = batch.map_or(0, coordinate).min(rows.saturating_sub(1));
        let at = row * columns + column;
        match mask.data() {
            Data::F32(values) => values.get(at).is_none_or(|&value| value != 0.0),
            Data::I64(values) => values.get(at).is_none_or(|&value| value != 0),
            Data::Bool(values) => values.get(at).copied().unwrap_or(true),
        }
    })
}
