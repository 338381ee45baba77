//! Passes, before and after: `tests/filetests/<pass>` holds programs as text, and beside each what the pass makes of it.
//!
//! `OMBRA_BLESS=1` writes what is beside. In place of that, a file may mark lines with `; error: CODE`, where the pass must
//! refuse the program. `tests/filetests/run` holds composite ops with inputs and outputs.

mod composites;
mod core;
mod graph;

use std::path::{Path, PathBuf};

/// The files of a folder that have an extension, in order.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests").join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files.sort();
    assert!(!files.is_empty(), "{} holds programs", folder.display());
    files
}

/// Compares what became of a program with what is written beside it, or writes it.
fn after(path: &Path, made: &str) {
    let expected = path.with_extension("after");
    if std::env::var_os("OMBRA_BLESS").is_some() {
        std::fs::write(&expected, made).unwrap();
    }
    assert_eq!(made, std::fs::read_to_string(&expected).unwrap_or_default(), "{path:?}");
}

/// Lines (from 1) and codes of the errors that a text is marked with.
fn marks(text: &str) -> Vec<(usize, String)> {
    let marked = text.lines().zip(1..).filter_map(|(line, number)| Some((number, line.split_once("; error: ")?.1)));
    marked.map(|(number, code)| (number, code.trim().to_owned())).collect()
}
