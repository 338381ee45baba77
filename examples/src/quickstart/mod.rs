//! A first look: what compiling against a public base model saves, and what a run between three parties gives.

pub mod plaintext;
pub mod real;
pub mod serve;
pub mod show;
pub mod table;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;

/// The folder of the repository.
fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Writes a line to standard output.
fn say(line: impl Display) {
    write(format_args!("{line}\n"));
}

/// Writes to standard output. Whoever closed it wants to read no more, which is no error.
fn write(text: impl Display) {
    let mut output = std::io::stdout().lock();
    let _ = write!(output, "{text}").and_then(|()| output.flush());
}
