//! Two small models as text, imported, lowered and scheduled: whether passes do the right thing together. What one pass
//! does alone stands in `tests/filetests`.
//!
//! One layer of GPT-2 and of LLaMA with width 4 and 8, all weights private but the embeddings.

use ombra_compiler::graph::text::{parse, print};
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, analyse, compile};
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
    let compiled = compile(&model, None, &options).map_err(show).unwrap_or_else(|e| panic!("{e}"));
    let owners = print(&analysed.graph);
    assert_eq!(print(&parse(&owners).unwrap_or_else(|e| panic!("{e}")).0), owners, "{name}");
    insta::assert_snapshot!(format!("{name}-1-owners"), owners);
    insta::assert_snapshot!(format!("{name}-2-lowered"), text::print(&compiled.lowered));
    insta::assert_snapshot!(format!("{name}-3-scheduled"), text::print(&compiled.plan.module));
}

#[test]
fn stages_of_gpt2() {
    stages("gpt2", "*lm_head*");
}

#[test]
fn stages_of_llama() {
    stages("llama", "*embed*");
}
