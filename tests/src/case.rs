//! A model with test sets in a folder: compiled, run in the clear on rings and between parties, beside what ONNX Runtime
//! computed.

use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::Options;
use ombra_compiler::ranges::calibrate::complete_inputs;
use ombra_ir::module::OutputKind;
use ombra_ir::op::Op;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::inputs::{Named, find, infer_request};
use std::collections::BTreeMap;

use crate::built::{Built, build_with};
use crate::corpus::{TestSet, sets, test_set};
use crate::parties::{self, Costs};
use crate::plain;

/// What a case's plan reveals: logits, or all but caches.
pub fn reveal(model: &Model) -> Vec<Reveal> {
    let names: Vec<&str> = model.proto.graph.output.iter().map(|output| output.name.as_str()).collect();
    let wanted = |name: &&str| match names.contains(&"logits") {
        true => *name == "logits",
        false => !name.starts_with("present"),
    };
    names.iter().copied().filter(wanted).map(|name| Reveal::Output(name.into())).collect()
}

/// Compiles the model with `options`, but for what it reveals.
///
/// # Errors
/// As [`crate::built::build`].
pub fn compiled(model: Model, base: Option<&Model>, options: &Options) -> Result<Built> {
    let reveal = reveal(&model);
    build_with(model, base, &Options { reveal, ..options.clone() })
}

/// What one output of one test set is off, over the positions that its mask keeps.
pub struct Compared {
    /// Index of the test set.
    pub set: usize,
    /// Name of the output.
    pub output: String,
    /// Size of the maximum element that ONNX Runtime computed.
    pub size: f64,
    /// Maximum error of the plan in the clear.
    pub clear: f64,
    /// Maximum error between three parties.
    pub secret: f64,
}

impl Compared {
    /// Whether both errors are at most `tolerance`, or a thousandth of the maximum element.
    pub fn is_right(&self, tolerance: f64) -> bool {
        self.clear.max(self.secret) <= tolerance.max(self.size / 1000.0)
    }
}

/// What came out of a step: elements by the name of their output.
type Outputs = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// Runs one test set both ways, and compares; gives the costs of the secret run beside them.
///
/// # Errors
/// Inputs that the plan refuses, and a step whose guard is set.
pub fn run(built: &Built, data: &TestSet, set: usize) -> Result<(Vec<Compared>, Costs)> {
    let (request, given) = infer_request(&built.plan.plan, data.inputs.clone())?;
    let sides = parties::run(&built.plan, &request, std::slice::from_ref(&given))?;
    let costs = parties::costs(&built.plan, &request, &sides, 0)?;
    let module = &built.plan.plan.module;
    let mut secret = Outputs::new();
    for opened in &sides[0].steps[0].opened {
        let output = module.outputs.get(opened.slot as usize).ok_or_else(missing)?;
        secret.insert(output.name.clone(), (opened.shape.clone(), opened.reals()));
    }
    let clear = in_the_clear(built, given)?;
    let mut found = Vec::new();
    for output in &module.outputs {
        let results = [&clear, &secret].map(|outputs| outputs.get(&output.name).ok_or_else(missing));
        if output.kind == OutputKind::Guard {
            for result in results {
                if result?.1.iter().any(|bit| *bit != 0.0) {
                    return Err(Diagnostic::input("E1018", "this input leaves the ranges that the plan was made for"));
                }
            }
            continue;
        }
        let want = find(&data.outputs, &output.name).ok_or_else(missing)?;
        let values = reals(want);
        let [clear, secret] = results.map(|result| -> Result<f64> {
            let (shape, got) = result?;
            let is_same = shape == want.shape();
            Ok(if is_same { error(got, &values, shape, find(&data.inputs, "attention_mask")) } else { f64::INFINITY })
        });
        let size = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        found.push(Compared { set, output: output.name.clone(), size, clear: clear?, secret: secret? });
    }
    Ok((found, costs))
}

/// Every test set of a folder of the corpus, part by part.
///
/// # Errors
/// As [`run`].
pub fn run_all(folder: &str, built: &Built) -> Result<Vec<(Vec<Compared>, Costs)>> {
    let mut all = Vec::new();
    for set in 0..sets(folder) {
        for part in test_set(folder, set)?.parts()? {
            all.push(run(built, &part, set)?);
        }
    }
    Ok(all)
}

/// One step of the plan in the clear.
fn in_the_clear(built: &Built, given: Vec<Named>) -> Result<Outputs> {
    let module = &built.compiled.plan.module;
    let inputs = complete_inputs(&built.compiled.graph, &given.into_iter().collect())?;
    let values = plain::step(&built.compiled, &built.model, &inputs)?.outputs;
    let mut outputs = Outputs::new();
    for node in &module.ops {
        let Op::Reveal { slot } = node.op else { continue };
        let scale = node.args.first().and_then(|arg| module.ty(*arg).as_ring()).map_or(0, |(_, scale)| scale);
        let output = module.outputs.get(slot as usize).ok_or_else(missing)?;
        let value = values.get(slot as usize).and_then(Option::as_ref).ok_or_else(missing)?;
        outputs.insert(output.name.clone(), (value.shape.clone(), value.decode(scale)?));
    }
    Ok(outputs)
}

fn missing() -> Diagnostic {
    Diagnostic::internal("E0000", "an output is missing")
}

/// The elements of a tensor as numbers.
pub fn reals(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        Data::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Data::I64(v) => v.iter().map(|x| *x as f64).collect(),
        Data::Bool(v) => v.iter().map(|x| f64::from(u8::from(*x))).collect(),
    }
}

/// The maximum difference between elements of a tensor of shape `shape` over the positions that the mask `[batch, all
/// positions]` keeps. Positions are axis 1 of three, as of logits, and axis 2 of four, as of caches; without such an axis,
/// or where they are others than the mask's, all count.
pub fn error(got: &[f64], want: &[f64], shape: &[usize], mask: Option<&Tensor>) -> f64 {
    let axis = shape.len().saturating_sub(2);
    let length = shape.get(axis).copied().unwrap_or(1);
    let inner = shape.iter().skip(axis + 1).product::<usize>().max(1);
    let fits = |mask: &&Tensor| {
        shape.len() > 2 && mask.rank() == 2 && mask.shape()[0] == shape[0] && mask.shape()[1] >= length
    };
    let mask = mask.filter(fits).map(|mask| (mask.shape()[1], reals(mask)));
    let kept = |index: usize| match &mask {
        Some((columns, mask)) => {
            let row = index / (want.len() / shape[0]);
            mask[row * columns + columns - length + index / inner % length] != 0.0
        }
        None => true,
    };
    let pairs = got.iter().zip(want).enumerate().filter(|(index, _)| kept(*index));
    // What is no number differs from everything.
    pairs.map(|(_, (g, w))| (g - w).abs()).fold(0.0, |all: f64, d| if d.is_nan() { f64::INFINITY } else { all.max(d) })
}
