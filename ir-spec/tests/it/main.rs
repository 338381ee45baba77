//! Tests of the contract: text form, verifier, reference meaning, specification.

mod filetests;
mod norms;
mod reference;
mod rules;
mod schedule;
mod spec;
mod text;

use std::path::PathBuf;

/// The `.mpcir` files of a folder of test files, with their names, in order.
fn files(folder: &str) -> Vec<(String, String)> {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "tests", "filetests", folder].iter().collect();
    let mut out: Vec<_> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "mpcir"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    out.sort();
    assert!(!out.is_empty(), "no files in {}", root.display());
    out
}
