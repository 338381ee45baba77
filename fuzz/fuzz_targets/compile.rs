//! Any bytes as an ONNX file: compiled as a whole, for its costs and to be run, or refused with an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ombra_compiler::attention::attentions;
use ombra_compiler::onnx::{Model, parse};
use ombra_compiler::pipeline::{Options, analyse, compile, plan_of};
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    // External data would be looked for in a folder that does not exist.
    let folder = Path::new("no-such-folder/model.onnx");
    let Ok(proto) = parse(bytes) else { return };
    let Ok(model) = Model::from_proto(proto, folder) else { return };
    let mut options = Options::default();
    let _ = plan_of(&model, None, &Options { assume: true, ..options.clone() });
    // With a public first layer, so that the client has a region of its own.
    options.overrides.public = ["*layers.0*", "*h.0*", "*embed*", "*wte*"].map(String::from).to_vec();
    if let Ok(analysed) = analyse(&model, None, &options) {
        let _ = attentions(&analysed.graph);
    }
    let _ = compile(&model, None, &options);
});
