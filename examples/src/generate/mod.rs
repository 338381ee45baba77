//! ONNX models of any size in the form that exporters give to trained ones, with given weights or random ones.
//!
//! Random weights stand in for checkpoints where only sizes matter: costs, time, memory. A model is written as `FILE` and
//! `FILE.data`, the weights being in the latter. With the same seed two files have the same weights, except those of the
//! layers from `tuned_from` on, which makes one the fine-tuned variant of the other. For costs alone `FILE.data` need not
//! be written.

mod attention;
mod bert;
mod builder;
mod gpt2;
mod llama;
mod random;

use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result};

use random::Random;

pub use bert::{Bert, write_bert};
pub use gpt2::{Gpt2, write_gpt2};
pub use llama::{Given, Llama, write_llama, write_llama_with};

/// Which random weights a model has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seeds {
    /// Seed of the base.
    pub seed: u64,
    /// The first layer with weights of its own, as after fine-tuning; the final norm then has its own as well.
    pub tuned_from: Option<usize>,
    /// The data file is declared but not written: the model can be compiled for its costs alone.
    pub no_weights: bool,
}

impl Seeds {
    /// The weight `name` outside of the layers.
    fn outer(self, name: &str, mean: f32, deviation: f32) -> Random {
        Random::new(self.seed, name, mean, deviation)
    }

    /// The weight `name` of `layer`, the number of layers standing for what follows the last one.
    fn layer(self, layer: usize, name: &str, mean: f32, deviation: f32) -> Random {
        let tuned = self.tuned_from.is_some_and(|first| layer >= first);
        Random::new(if tuned { !self.seed } else { self.seed }, name, mean, deviation)
    }

    /// The weight `name`, which only a tuned model has.
    fn own(self, name: &str, deviation: f32) -> Random {
        Random::new(!self.seed, name, 0.0, deviation)
    }
}

/// The data file of the model at `path`.
fn data_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

/// Checks that sizes are positive and `whole` is a multiple of `part`.
fn check(sizes: &[(&str, usize)], multiples: &[(&str, usize, &str, usize)]) -> Result<()> {
    for (name, size) in sizes {
        if *size == 0 || *size > 1 << 24 {
            return Err(Diagnostic::input("E0900", format!("{name} is {size}, expected a size from 1 to 2^24")));
        }
    }
    for (whole, size, part, unit) in multiples {
        if size % unit != 0 {
            let message = format!("{whole} is {size}, expected a multiple of {part}, which is {unit}");
            return Err(Diagnostic::input("E0900", message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
