//! A first look: what compiling against a public base model saves, and what a run between three parties gives.

pub mod plaintext;
pub mod real;
pub mod serve;
pub mod show;
pub mod table;

use std::path::Path;

/// The folder of the repository.
fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
