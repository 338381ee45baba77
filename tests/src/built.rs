//! Models of the corpus compiled into plan folders that vanish with their test.

use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::PlanFolder;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::corpus;

/// An empty folder of its own, removed when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder.
    ///
    /// # Errors
    /// The system's folder for temporary files cannot be written.
    pub fn new() -> Result<Folder> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ombra-tests-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).map_err(|e| Diagnostic::input("E0000", e.to_string()))?;
        Ok(Folder(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind disturbs no other test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A compiled model and its plan folder, opened as every party opens it.
pub struct Built {
    /// What the compiler has in memory.
    pub compiled: Compiled,
    /// The model.
    pub model: Model,
    /// The opened folder.
    pub plan: PlanFolder,
    /// Where it is; the last field, removed after all else is closed.
    pub folder: Folder,
}

/// What the client is to learn: all logits.
pub fn logits() -> Vec<Reveal> {
    vec![Reveal::Output("logits".into())]
}

/// Compiles model `name` of the corpus against `base` and writes the plan folder. An empty `reveal` is the default.
///
/// # Errors
/// The first error of the compiler, or a folder that the runtime does not open.
pub fn build(name: &str, base: Option<&str>, reveal: Vec<Reveal>) -> Result<Built> {
    build_in(Setting::ThreeParty, name, base, reveal)
}

/// [`build`] for a setting.
///
/// # Errors
/// As [`build`].
pub fn build_in(setting: Setting, name: &str, base: Option<&str>, reveal: Vec<Reveal>) -> Result<Built> {
    let model = corpus::model(name)?;
    let base = base.map(corpus::model).transpose()?;
    build_with(model, base.as_ref(), &Options { setting, reveal, ..Options::default() })
}

/// Compiles `model` against `base` and writes the plan folder.
///
/// # Errors
/// As [`build`].
pub fn build_model(model: Model, base: Option<&Model>, reveal: Vec<Reveal>) -> Result<Built> {
    build_with(model, base, &Options { reveal, ..Options::default() })
}

/// Compiles `model` against `base` as `options` say and writes the plan folder.
///
/// # Errors
/// As [`build`].
pub fn build_with(model: Model, base: Option<&Model>, options: &Options) -> Result<Built> {
    let mut compiled = compile(&model, base, options).map_err(first)?;
    let folder = Folder::new()?;
    output::write(&mut compiled, &model, &[], folder.path())?;
    let plan = PlanFolder::open(folder.path())?;
    Ok(Built { compiled, model, plan, folder })
}

/// The first of the compiler's errors.
fn first(errors: Vec<Diagnostic>) -> Diagnostic {
    errors.into_iter().next().unwrap_or_else(|| Diagnostic::internal("E0000", "the compiler failed without an error"))
}
