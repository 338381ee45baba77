//! Any bytes as an ONNX file: read, imported, recognised and given owners, or refused with an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ombra_compiler::onnx::{Model, parse};
use ombra_compiler::pipeline::{Options, analyse};
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    // External data would be looked for in a folder that does not exist.
    let folder = Path::new("no-such-folder/model.onnx");
    let Ok(proto) = parse(bytes) else { return };
    let Ok(model) = Model::from_proto(proto, folder) else { return };
    // What a model may be refused for is many things; that it is refused and does no harm is what is tested.
    let _ = analyse(&model, None, &Options::default());
});
