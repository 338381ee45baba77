//! The base model's weights in place of private ones, for bounds that say nothing about private weights.
//!
//! Bounds stand in the plan, which everybody gets. Measured on the private model they give away the magnitude of its
//! values as powers of two. Measured on the same graph with the base's weights they are a function of public things
//! alone; fine-tuning changes weights so little that the margin covers it. A private tensor is replaced by the base's
//! tensor of its name and shape, otherwise by the one of its shape that is used at the same place of the exported
//! program. What the base lacks, such as adapters, is drawn by a fixed generator, uniform with variance `1 / rows`, which is
//! how such layers are initialised.

use crate::import::load_weight;
use crate::onnx::Model;
use crate::ranges::calibrate::xorshift;
use crate::secrecy::labels::{Labels, Owner, places};
use ombra_ir::Result;
use ombra_ir::plain::Tensor;
use std::collections::BTreeMap;

/// Where the values of a model's tensors are taken from.
pub struct StandIns<'a> {
    model: &'a Model,
    base: &'a Model,
    labels: &'a Labels,
    /// Names of the base's tensors, by place and by name.
    by_place: BTreeMap<String, String>,
}

impl<'a> StandIns<'a> {
    /// Stand-ins for the private tensors of `model`.
    pub fn new(model: &'a Model, base: &'a Model, labels: &'a Labels) -> Self {
        let by_place = places(base).into_iter().map(|(tensor, place)| (place, tensor.to_string())).collect();
        StandIns { model, base, labels, by_place }
    }

    /// Values of the tensor called `name`: its own where it is public.
    ///
    /// # Errors
    /// The tensor cannot be read.
    pub fn load(&self, name: &str) -> Result<Tensor> {
        let Some(label) = self.labels.get(name).filter(|l| l.owner == Owner::Private) else {
            return load_weight(self.model, name);
        };
        let place = label.readable.as_ref().and_then(|place| self.by_place.get(place));
        for candidate in std::iter::once(name).chain(place.map(String::as_str)) {
            if let Ok(tensor) = load_weight(self.base, candidate)
                && tensor.shape() == label.shape
            {
                return Ok(tensor);
            }
        }
        drawn(name, &label.shape)
    }
}

/// Values of variance `1 / rows`, from a generator seeded by the name.
fn drawn(name: &str, shape: &[usize]) -> Result<Tensor> {
    // FNV-1a.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut state = seed | 1;
    let rows = shape.first().copied().unwrap_or(1).max(1);
    let width = libm::sqrt(3.0 / rows as f64);
    let n = ombra_ir::plain::tensor::volume(shape)?;
    let mut next = || ((xorshift(&mut state) >> 11) as f64 / (1u64 << 52) as f64 - 1.0) * width;
    Tensor::f32(shape, (0..n).map(|_| next() as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_values_have_the_stated_variance_and_depend_on_the_name_alone() {
        let tensor = drawn("a", &[64, 32]).expect("it fits");
        let values = tensor.as_f32().expect("floats");
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((variance * 64.0 - 1.0).abs() < 0.1, "{variance}");
        assert_eq!(drawn("a", &[64, 32]).expect("it fits").as_f32().expect("floats"), values);
        assert_ne!(drawn("b", &[64, 32]).expect("it fits").as_f32().expect("floats"), values);
    }
}
