//! The 3B model that several tests count, generated without its weights.

use ombra_compiler::onnx::Model;
use ombra_examples::generate::{Llama, Seeds, write_llama};
use std::path::PathBuf;

/// openLLaMA-3B's shape.
pub fn three_billion() -> Llama {
    let seeds = Seeds { no_weights: true, ..Seeds::default() };
    Llama { layers: 26, hidden: 3200, heads: 32, kv_heads: 32, ff: 8640, vocab: 32000, seeds, ..Llama::default() }
}

/// A folder that is removed with its owner.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes a folder in the system's place for temporary files; `name` is the test's own.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        Folder(path)
    }

    /// A model of this shape, read for its costs.
    pub fn model(&self, shape: &Llama) -> Model {
        let path = self.0.join("model.onnx");
        write_llama(shape, &path).unwrap_or_else(|e| panic!("{e}"));
        Model::read_for_costs(&path).unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
