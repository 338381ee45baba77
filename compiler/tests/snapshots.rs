//! Every stage of two small models, as text: what a change of a pass changes shows here.
//!
//! One layer of GPT-2 and of LLaMA with width 4 and 8, all weights private but the embeddings.

use ombra_compiler::expand::expand;
use ombra_compiler::graph::print::print;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, analyse, compile, rewritten};
use ombra_ir::{Diagnostic, text};
use std::path::Path;

fn show(errors: Vec<Diagnostic>) -> String {
    errors.iter().map(|e| format!("{e}\n")).collect()
}

fn stages(name: &str, embeddings: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/small").join(name).with_extension("onnx");
    let model = Model::read(&path).unwrap_or_else(|e| panic!("{e}"));
    // A model this narrow has outliers everywhere: its bounds are not what is looked at.
    let mut options = Options::default();
    options.overrides.public.push(embeddings.into());
    let analysed = analyse(&model, None, &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
    let rewritten = rewritten(&model, None, &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
    let compiled = compile(&model, None, &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
    let expanded = expand(&compiled.lowered).unwrap_or_else(|e| panic!("{e}"));
    insta::assert_snapshot!(format!("{name}-1-owners"), print(&analysed.graph));
    insta::assert_snapshot!(format!("{name}-2-rewritten"), print(&rewritten.graph));
    insta::assert_snapshot!(format!("{name}-3-lowered"), text::print(&compiled.lowered));
    insta::assert_snapshot!(format!("{name}-4-expanded"), text::print(&expanded));
    insta::assert_snapshot!(format!("{name}-5-scheduled"), text::print(&compiled.plan.module));
}

#[test]
fn stages_of_gpt2() {
    stages("gpt2", "*lm_head*");
}

#[test]
fn stages_of_llama() {
    stages("llama", "*embed*");
}
