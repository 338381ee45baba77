//! How large values are: proven from the weights, measured on inputs where nothing is proven, or assumed.

pub mod assume;
pub mod bounds;
pub mod calibrate;
pub mod npz;
pub mod stand_in;
pub mod token_text;

use crate::graph::{Graph, eval};
use crate::onnx::Model;
use crate::pipeline::{Errors, Options, Read};
use crate::secrecy::labels::Labels;
use crate::weights::statics::{Known, Statics};
use bounds::Ranges;
use calibrate::{Inputs, calibrate, complete_inputs, drawn_inputs, token_rows};
use ombra_ir::Diagnostic;
use ombra_ir::plain::Data;
use ombra_ir::plan::BoundsOf;
use stand_in::StandIns;
use std::collections::BTreeMap;

/// How much larger than the base's a private weight may be, and what follows from it, where bounds are the base's.
const BASE_ROOM: f64 = 8.0;
/// Tokens of drawn calibration prompts.
const DRAWN: &[u64] = &[32, 32];
/// Tokens of those that only show divisors of short rows: of the last layer a prompt shows its last position alone, whose
/// row is as long as the prompt, and a single token says little.
const DRAWN_SHORT: &[u64] = &[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 5, 5, 8, 12, 16, 24];

/// Proven ranges of a graph's values, from the model's own weights or from those of its base.
///
/// # Errors
/// Inputs that do not fit; `E0573` and `E0574` where bounds are to follow from a base that is not there, or that does not
/// allow what the private weights make.
pub fn prove(
    graph: &Graph,
    (model, base, labels): (&Model, Option<&Model>, &Labels),
    weights: Read,
    options: &Options,
) -> std::result::Result<Ranges, Errors> {
    // Inputs that do not fit are errors, whether anything is measured or not.
    let mut given = Vec::new();
    for set in &options.calibration {
        let set = complete_inputs(graph, set).map_err(one)?;
        eval::bind_inputs(graph, &set).map_err(one)?;
        given.push(set);
    }
    given.extend(token_rows(graph, &options.calibration_rows).map_err(one)?);
    let largest = given_sizes(&options.calibration);
    let from = |(elements, known): Read| {
        let statics = Statics::new(graph, elements, known);
        let measure = || {
            let of = |sets: &[Inputs]| calibrate(graph, &|name: &str| elements.tensor(name), sets);
            if !given.is_empty() {
                return of(&given);
            }
            let mut seen = of(&drawn_inputs(graph, DRAWN)?)?;
            if !seen.rows.is_empty() {
                seen.see_short_rows(graph, &of(&drawn_inputs(graph, DRAWN_SHORT)?)?);
            }
            Ok(seen)
        };
        bounds::prove(&statics, options.fraction_bits(), &largest, &measure)
    };
    let own = from(weights).map_err(one)?;
    if options.bounds_of == BoundsOf::Model {
        return Ok(own);
    }
    let Some(base) = base else {
        return Err(one(Diagnostic::input("E0573", "there is no base model to take bounds from")
            .note("expected --base with --bounds-from-base")));
    };
    let stand_ins = StandIns::new(model, base, labels);
    let stand_ins = |name: &str| stand_ins.load(name);
    let mut others = from((&stand_ins, &Known::default())).map_err(one)?;
    others.scale(BASE_ROOM);
    match own.beyond(&others) {
        None => Ok(others),
        Some(v) => {
            let node = graph.node(v).map_err(one)?;
            let message = "the private weights make larger values than the base's allow";
            Err(one(Diagnostic::input("E0574", message)
                .at(node.origin.node.clone())
                .note(format!("expected at most {BASE_ROOM} times what follows from the base"))
                .note("leave out --bounds-from-base")))
        }
    }
}

/// Maximum sizes of floats that a client may give: the margin above those of calibration inputs.
fn given_sizes(sets: &[Inputs]) -> BTreeMap<String, f64> {
    let mut most: BTreeMap<String, f64> = BTreeMap::new();
    for (name, tensor) in sets.iter().flatten() {
        let Data::F32(values) = tensor.data() else { continue };
        let largest = values.iter().map(|x| f64::from(x.abs())).filter(|x| x.is_finite()).fold(0.0, f64::max);
        let entry = most.entry(name.clone()).or_insert(f64::MIN_POSITIVE);
        *entry = entry.max(largest * libm::ldexp(1.0, i32::from(bounds::MARGIN)));
    }
    most
}

fn one(d: Diagnostic) -> Errors {
    vec![d]
}
