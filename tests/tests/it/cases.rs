//! Models as exporters write them that were refused or computed wrongly once, each for its whole kind: as imported and
//! recognised, beside what ONNX Runtime computed.

use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::import::load_weight;
use ombra_compiler::pipeline::{self, Options};
use ombra_ir::plain::{Data, Tensor};
use ombra_tests::corpus;
use std::collections::BTreeMap;

/// Folders of `tests/data/cases`, in alphabetical order, and the greatest error of an output.
const CASES: &[(&str, f64)] = &[
    ("float-attention-mask", 1e-4),
    ("gpt2-context-optimum", 1e-4),
    ("gptj-optimum", 1e-4),
    ("gptneo-dynamo", 1e-4),
    ("mask-1e4-large-scores", 1e-3),
    ("mask-nested-where", 1e-3),
    ("mask-reshape-before-softmax", 1e-3),
    ("mpt-optimum", 1e-4),
    ("num-logits-to-keep", 1e-4),
    ("qwen25-dynamo", 1e-4),
    ("smollm3-dynamo", 1e-4),
];

fn show(errors: Vec<ombra_ir::Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

/// The greatest difference between two tensors over the positions that the mask `[batch, all positions]` keeps.
/// Positions are axis 1 of three, as of logits, and axis 2 of four, as of caches; without such an axis all count.
fn error(got: &Tensor, want: &Tensor, mask: Option<&Tensor>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let (got, values) = (got.as_f32().expect("floats"), want.as_f32().expect("floats"));
    let axis = want.rank().saturating_sub(2);
    let (length, inner) = (want.shape()[axis], want.shape()[axis + 1..].iter().product::<usize>());
    let kept = |index: usize| match mask.filter(|_| want.rank() > 2) {
        Some(mask) => {
            let columns = mask.shape()[1];
            let row = index / (want.len() / want.shape()[0]);
            let at = row * columns + columns - length + index / inner % length;
            match mask.data() {
                Data::F32(v) => v[at] == 1.0,
                Data::I64(v) => v[at] == 1,
                Data::Bool(v) => v[at],
            }
        }
        None => true,
    };
    let pairs = got.iter().zip(values).enumerate().filter(|(index, _)| kept(*index));
    // What is no number differs from everything.
    let difference = |(_, (g, w)): (usize, (&f32, &f32))| f64::from((g - w).abs());
    pairs.map(difference).fold(0.0, |all: f64, d| if d.is_nan() { f64::INFINITY } else { all.max(d) })
}

#[test]
fn graphs_compute_what_onnx_runtime_computes() {
    assert!(CASES.is_sorted_by_key(|(name, _)| *name));
    let only = std::env::var("OMBRA_ONLY").unwrap_or_default();
    for (name, most) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let folder = format!("../cases/{name}");
        let model = corpus::model(&folder).expect("the model is bundled");
        let analysed = pipeline::analyse(&model, None, &Options::default());
        let graph = analysed.map_err(show).unwrap_or_else(|e| panic!("{name}: {e}")).graph;
        assert!(corpus::sets(&folder) > 0, "{name}");
        for set in 0..corpus::sets(&folder) {
            let data = corpus::test_set(&folder, set).expect("the test set is bundled");
            let inputs: BTreeMap<_, _> = data.inputs.into_iter().collect();
            let outputs = evaluate(&graph, &|name: &str| load_weight(&model, name), &inputs);
            let outputs = outputs.unwrap_or_else(|e| panic!("{name} set {set}: {e}"));
            for (output, got) in graph.outputs.iter().zip(&outputs) {
                let (_, want) = data.outputs.iter().find(|(n, _)| *n == output.name).expect("the output is known");
                let found = error(got, want, inputs.get("attention_mask"));
                assert!(found <= *most, "{name} set {set} {}: error {found}", output.name);
            }
        }
    }
}

/// Maxima of sizes, by name, of a case.
fn maxima(name: &str, options: &Options) -> Result<BTreeMap<String, Option<u64>>, String> {
    let model = corpus::model(&format!("../cases/{name}")).expect("the model is bundled");
    let graph = pipeline::analyse(&model, None, options).map_err(show)?.graph;
    Ok(graph.dims.syms.iter().map(|info| (info.name.clone(), info.max)).collect())
}

#[test]
fn tables_of_positions_set_the_greatest_lengths() {
    let mut options = Options::default();
    for (name, past) in [("gpt2-context-optimum", Some(127)), ("gptneo-dynamo", None), ("mpt-optimum", Some(127))] {
        let found = maxima(name, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found["seq"], Some(128), "{name}");
        assert_eq!(found.get("past").copied().flatten(), past, "{name}");
    }
    options.sizes.max.insert("seq".into(), 129);
    let error = maxima("gpt2-context-optimum", &options).expect_err("the table is too small");
    assert!(error.contains("E0255") && error.contains("at most 128"), "{error}");
}

#[test]
fn inputs_that_are_sizes_are_set_by_name() {
    let name = "num-logits-to-keep";
    let model = corpus::model(&format!("../cases/{name}")).expect("the model is bundled");
    let rows = |options: &Options| {
        let analysed = pipeline::analyse(&model, None, options).map_err(show).expect("it is imported");
        let logits = analysed.graph.shape(analysed.graph.outputs[0].value);
        (analysed.graph.dims.show(&logits[1]), analysed.graph.fixed.get("num_logits_to_keep").copied())
    };
    assert_eq!(rows(&Options::default()), ("1".into(), Some(1)));
    let mut options = Options::default();
    options.sizes.dims.insert("num_logits_to_keep".into(), 0);
    assert_eq!(rows(&options), ("seq".into(), Some(0)));
}
