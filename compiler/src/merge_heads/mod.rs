//! Merging attention heads: groups of like heads share one softmax.
//!
//! Heads of a private layer are compared on calibration inputs, grouped, and merged in the ONNX file; what comes out has
//! a softmax for each group instead of one for each head, and is meant to be fine-tuned further. Weights keep names,
//! shapes and contents, inputs and outputs (caches among them) keep theirs. Source: MARILL (arXiv 2408.03561), section
//! 5.3.

mod cluster;
mod distance;
pub mod find;
mod rewrite;

use std::fs;
use std::path::{Path, PathBuf};

use ombra_ir::Diagnostic;
use onnx_protobuf::ModelProto;
use serde::Serialize;

use crate::attention::{Attention, place};
use crate::graph::Graph;
use crate::import::load_weight;
use crate::onnx::{Model, each_tensor, write_model};
use crate::pipeline::{self, Errors};
use crate::ranges::calibrate::{complete_inputs, drawn_inputs};
use distance::{Heads, compare_heads};
use find::{Mergeable, mergeable};
use rewrite::{Merge, rewrite};

/// How heads are put into groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// Heads whose distributions are alike.
    Similar,
    /// Neighbours.
    Adjacent,
}

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Heads in a group.
    pub factor: usize,
    /// How groups are found.
    pub grouping: Grouping,
    /// Sizes, owners of weights, calibration inputs; the rest is not used.
    pub analysis: pipeline::Options,
}

/// A merged model.
pub struct Merged {
    /// The file, with external data as in the original.
    pub proto: ModelProto,
    /// What was merged.
    pub report: Report,
}

/// What was merged, as written beside the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Heads in a group.
    pub factor: usize,
    /// How groups were found.
    pub groups: Grouping,
    /// Whether calibration inputs were given; drawn by a fixed generator otherwise.
    pub calibrated: bool,
    /// Rows of attention that distances are means over.
    pub rows: usize,
    /// Merged layers, in order of computation.
    pub layers: Vec<Layer>,
}

/// One merged layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Its number, where names say it.
    pub layer: Option<u32>,
    /// The softmax.
    pub node: String,
    /// Query heads before.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Heads of every group, ascending.
    pub groups: Vec<Vec<usize>>,
    /// Mean Jensen–Shannon distance of two heads of one group.
    pub mean_distance_in_groups: f64,
    /// Mean Jensen–Shannon distance of any two heads.
    pub mean_distance: f64,
}

/// Drawn calibration prompts.
const DRAWN_SETS: usize = 4;
/// Tokens of a drawn calibration prompt.
const DRAWN_LENGTH: u64 = 32;

/// Merges heads in the layers of `model` that have a private attention weight, in the sense of
/// [`pipeline::analyse`] with `base`.
///
/// # Errors
/// Everything that cannot be analysed; `E0590` for a factor below 2 and for a model without private attention; `E0591`
/// and `E0592` for each layer whose attention has an unexpected form; `E0593` for each whose heads do not divide;
/// `E0594` when the result is not what it has to be.
pub fn merge_heads(model: &Model, base: Option<&Model>, options: &Options) -> Result<Merged, Errors> {
    if options.factor < 2 {
        let message = format!("heads cannot be merged by a factor of {}", options.factor);
        return Err(vec![Diagnostic::input("E0590", message).note("expected at least 2")]);
    }
    if model.is_quantised() {
        let error = Diagnostic::unsupported("E0590", "the model has quantised weights");
        return Err(vec![error.note("merge the heads of the model that was quantised, and quantise it afterwards")]);
    }
    let analysed = pipeline::analyse(model, base, &options.analysis)?;
    let graph = &analysed.graph;
    let mut errors = Vec::new();
    let mut wanted = Vec::new();
    for candidate in mergeable(graph) {
        match candidate {
            Ok(found) if found.private => wanted.push(found),
            Err((error, true)) => errors.push(error),
            Ok(_) | Err((_, false)) => {}
        }
    }
    if wanted.is_empty() && errors.is_empty() {
        let message = "the model has no attention with private weights, so there is nothing to merge";
        errors.push(
            Diagnostic::input("E0590", message)
                .note("expected a softmax between two products of activations, in a layer whose weights are not in --base")
                .note("choose layers with --private and --public"),
        );
    }
    if !errors.is_empty() {
        return Err(errors);
    }

    let given = &options.analysis.calibration;
    let sets = match given.as_slice() {
        [] => drawn_inputs(graph, &[DRAWN_LENGTH; DRAWN_SETS]),
        given => given.iter().map(|set| complete_inputs(graph, set)).collect(),
    };
    let sets = sets.map_err(one)?;
    let weights = |name: &str| load_weight(model, name);
    let found: Vec<&Attention> = wanted.iter().map(|w| &w.attention).collect();
    let heads = compare_heads(graph, &weights, &sets, &found).map_err(one)?;
    let mut layers = Vec::new();
    for (attention, heads) in found.iter().zip(&heads) {
        match cluster::groups(heads, options.factor, options.grouping) {
            Ok(groups) => layers.push(layer_report(attention, heads, groups, place(graph, attention.softmax))),
            Err(e) => errors.push(e.at(place(graph, attention.softmax))),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let merges: Vec<Merge> =
        wanted.iter().zip(&layers).map(|(mergeable, layer)| Merge { mergeable, groups: &layer.groups }).collect();
    let proto = rewrite(&model.proto, graph, &merges)?;
    check(model, base, options, graph, &proto, &wanted)?;
    let report = Report {
        factor: options.factor,
        groups: options.grouping,
        calibrated: !given.is_empty(),
        rows: heads.iter().map(|h| h.rows).max().unwrap_or(0),
        layers,
    };
    Ok(Merged { proto, report })
}

fn one(d: Diagnostic) -> Errors {
    vec![d]
}

fn layer_report(attention: &Attention, heads: &Heads, groups: Vec<Vec<usize>>, node: String) -> Layer {
    let mean = |groups: &[Vec<usize>]| {
        let pairs = groups.iter().flat_map(|g| g.iter().flat_map(move |&i| g.iter().map(move |&j| (i, j))));
        let apart = |(i, j): (usize, usize)| heads.distance.get(i).and_then(|row| row.get(j)).copied();
        let (sum, count) =
            pairs.filter(|(i, j)| i < j).filter_map(apart).fold((0.0, 0usize), |(sum, count), d| (sum + d, count + 1));
        // Six digits, as many as say something.
        libm::round(sum / count.max(1) as f64 * 1e6) / 1e6
    };
    Layer {
        layer: attention.layer,
        node,
        heads: attention.heads,
        key_value_heads: heads.sharing.len(),
        mean_distance_in_groups: mean(&groups),
        mean_distance: mean(&[(0..attention.heads).collect()]),
        groups,
    }
}

/// Reads the result again: it has to import, with as many heads as it should have and the same outputs.
fn check(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
    before: &Graph,
    proto: &ModelProto,
    wanted: &[Mergeable],
) -> Result<(), Errors> {
    let wrong = |what: String| {
        Diagnostic::unsupported("E0594", format!("the merged model is not what it has to be: {what}"))
            .note("some operator between scores and softmax depends on the number of heads")
    };
    let merged = Model::from_proto(proto.clone(), &model.path).map_err(|e| one(wrong(e.to_string())))?;
    let after = pipeline::analyse(&merged, base, &options.analysis)
        .map_err(|errors| errors.iter().map(|e| wrong(e.to_string())).collect::<Vec<_>>())?
        .graph;
    let merged = mergeable(&after).into_iter().flatten().filter(|m| m.private);
    let heads: Vec<usize> = merged.map(|m| m.attention.heads).collect();
    let expected: Vec<usize> = wanted.iter().map(|w| w.attention.heads / options.factor).collect();
    if heads != expected {
        return Err(one(wrong(format!("expected {expected:?} heads in private layers, found {heads:?}"))));
    }
    for (old, new) in before.outputs.iter().zip(&after.outputs) {
        let show = |graph: &Graph, id| graph.dims.show_shape(graph.shape(id));
        let (old_shape, new_shape) = (show(before, old.value), show(&after, new.value));
        if old.name != new.name || old_shape != new_shape {
            return Err(one(wrong(format!(
                "output {} is {new_shape} instead of {old_shape}",
                new.name.escape_debug()
            ))));
        }
    }
    Ok(())
}

/// Writes the model to `path` and its groups beside it, as `NAME.groups.json`; gives where they are. External data of
/// `model` are copied where `path` is in another folder.
///
/// # Errors
/// `E0115` when a file cannot be written or would take the place of another.
pub fn write(merged: &Merged, model: &Model, path: &Path) -> Result<PathBuf, Diagnostic> {
    let groups = path.with_extension("groups.json");
    let failed =
        |path: &Path, why: String| Diagnostic::input("E0115", format!("cannot write '{}': {why}", path.display()));
    if path.extension().is_none() || same_file(path, &model.path) || same_file(&groups, &model.path) {
        return Err(failed(path, "expected the name of a new file that ends in .onnx".into()));
    }
    copy_external(&merged.proto, folder(&model.path), folder(path))?;
    write_model(&merged.proto, path)?;
    let text = serde_json::to_string_pretty(&merged.report)
        .map_err(|e| Diagnostic::internal("E0562", format!("groups cannot be written as JSON: {e}")))?;
    fs::write(&groups, text + "\n").map_err(|e| failed(&groups, e.to_string()))?;
    Ok(groups)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Copies the files of external data that `proto` names, unless both folders are one.
fn copy_external(proto: &ModelProto, from: &Path, to: &Path) -> Result<(), Diagnostic> {
    if same_file(from, to) {
        return Ok(());
    }
    let mut locations = std::collections::BTreeSet::new();
    each_tensor(proto, &mut |tensor| {
        let location = tensor.external_data.iter().find(|e| e.key == "location");
        locations.extend(location.map(|e| e.value.clone()));
        Ok(())
    })?;
    for location in locations {
        let (source, target) = (from.join(&location), to.join(&location));
        let failed = |why: &str| {
            Diagnostic::input("E0115", format!("cannot write '{}': {why}", target.display()))
                .note("it has to hold the external data of the model")
        };
        if target.exists() {
            return Err(failed("the file exists").note("write into an empty folder, or beside the original model"));
        }
        let copied = fs::create_dir_all(folder(&target)).and_then(|()| fs::copy(&source, &target));
        copied.map_err(|e| failed(&e.to_string()))?;
    }
    Ok(())
}
