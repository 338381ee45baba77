//! A test in one process: imported, recognised and evaluated in single precision.

use std::collections::{BTreeMap, BTreeSet};

use ombra_compiler::graph::eval;
use ombra_compiler::import::{self, Options, load_weight};
use ombra_ir::Result;
use ombra_ir::plain::Tensor;

use super::case::{Case, difference};
use super::{Outcome, first};

/// Tolerances of the ONNX project's own runner.
const ABSOLUTE: f64 = 1e-7;
const RELATIVE: f64 = 1e-3;

/// What the importer takes the inputs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// To the client alone.
    Client,
    /// To everybody, when a run begins.
    Public,
    /// When the model is compiled: everything is folded.
    Compiler,
}

/// Runs the test with its inputs known to the client, to everybody, and to the compiler.
///
/// # Errors
/// The first refusal.
pub fn run(case: &Case) -> Result<Outcome> {
    for known in [Known::Client, Known::Public, Known::Compiler] {
        for (got, want) in evaluate(case, known)?.iter().zip(&case.outputs) {
            if let Some(wrong) = difference(got, &want.tensor, ABSOLUTE, RELATIVE) {
                return Ok(Outcome::Failed(format!("{}, inputs of {known:?}: {wrong}", want.name)));
            }
        }
    }
    Ok(Outcome::Passed)
}

/// The outputs, in order.
fn evaluate(case: &Case, known: Known) -> Result<Vec<Tensor>> {
    let bound = |name: &str| known == Known::Compiler || case.is_structure(name);
    let named = || case.inputs.iter().map(|i| (i.name.clone(), i.tensor.clone()));
    let constants: BTreeMap<String, Tensor> = named().filter(|(name, _)| bound(name)).collect();
    let free: BTreeMap<String, Tensor> = named().filter(|(name, _)| !bound(name)).collect();
    let public_inputs: BTreeSet<String> =
        if known == Known::Public { free.keys().cloned().collect() } else { BTreeSet::new() };
    let options = Options { constants, public_inputs, ..Options::default() };
    let mut imported = import::import(&case.model, &options).map_err(first)?;
    let weights = |name: &str| load_weight(&case.model, name);
    import::recognise::recognise(&mut imported.graph, &weights)?;
    eval::evaluate(&imported.graph, &weights, &free)
}
