//! What several tests need: models of the corpus, folders that vanish.

use ombra_compiler::onnx::Model;
use std::path::{Path, PathBuf};

/// A folder of its own for one test, removed with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes a folder in the system's place for temporary files; `name` is the test's own.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Model `name` of the corpus.
pub fn corpus(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    Model::read(&models.join(name).join("model.onnx")).unwrap()
}
