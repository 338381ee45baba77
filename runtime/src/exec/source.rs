//! Where the elements of weights come from.

use ombra_ir::{Diagnostic, Result};

/// Where tensors come from: the public weights file, or the server's own.
pub trait TensorSource: Send + Sync {
    /// Shape and elements of the tensor with this name. An error when there is none, or it holds no floats.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)>;

    /// Shape of that tensor.
    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.tensor(name).map(|(shape, _)| shape)
    }

    /// Elements `start..start + len` of that tensor. An error when there are fewer.
    fn elements(&self, name: &str, start: usize, len: usize) -> Result<Vec<f32>> {
        let (_, elements) = self.tensor(name)?;
        let end = start.saturating_add(len);
        elements.get(start..end).map(<[f32]>::to_vec).ok_or_else(|| short(name))
    }

    /// [`elements`](Self::elements) part by part, in order, as far as there are such: `take` gets the next ones. What it got
    /// is void when there is an error.
    fn parts(&self, name: &str, start: usize, len: usize, take: &mut dyn FnMut(&[f32])) -> Result<()> {
        self.elements(name, start, len).map(|elements| take(&elements))
    }
}

/// A tensor that ends too early.
pub(crate) fn short(name: &str) -> Diagnostic {
    Diagnostic::input("E0813", format!("tensor `{name}` has fewer elements than its shape"))
        .note("use the weights file that belongs to the plan")
}
