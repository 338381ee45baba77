//! Any text as a module: parsed and verified or refused, and printed as it was understood.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ombra_ir::{text, verify};

fuzz_target!(|source: &str| {
    let Ok(module) = text::parse(source) else { return };
    let printed = text::print(&module);
    let again = text::parse(&printed).unwrap_or_else(|e| panic!("what was printed is not understood: {e}\n{printed}"));
    assert!(again == module, "what was printed means something else:\n{printed}");
    // A module that parses may still be wrong.
    let _ = verify::verify(&module);
});
