//! An ONNX node with the meaning of its inputs, and access to its attributes.

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{AttributeProto, NodeProto, TensorProto};

use super::Value;
use crate::onnx::attribute;

/// A node to import.
pub struct Node<'a> {
    /// The node of the file.
    pub proto: &'a NodeProto,
    /// Its inputs; `None` for one that is left out.
    pub inputs: Vec<Option<Value>>,
    /// Version of the default operator set.
    pub opset: i64,
}

impl Node<'_> {
    /// Input `i`; an error when it is left out.
    pub fn input(&self, i: usize) -> Result<&Value> {
        self.optional(i).ok_or_else(|| {
            let found = self.inputs.len();
            Diagnostic::input("E0251", format!("input {i} is missing")).note(format!("found {found} inputs"))
        })
    }

    /// Input `i`, unless it is left out.
    pub fn optional(&self, i: usize) -> Option<&Value> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// All inputs; an error when one is left out.
    pub fn all(&self) -> Result<Vec<&Value>> {
        (0..self.inputs.len()).map(|i| self.input(i)).collect()
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        attribute(self.proto, name)
    }

    /// Whether the node has an attribute.
    pub fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    /// An integer attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    /// A float attribute.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |a| a.f)
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// A list of floats.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        self.attribute(name).map(|a| a.floats.as_slice())
    }

    /// A text.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.attribute(name).map_or_else(|| default.into(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name).and_then(|a| a.t.as_ref())
    }

    /// Number of outputs that are named.
    pub fn outputs(&self) -> usize {
        self.proto.output.len()
    }
}

/// `axis` as an index of `rank` axes; negative ones count from the end.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let outside = || Diagnostic::input("E0251", format!("axis {axis} of {rank} axes"));
    let from_end = i64::try_from(rank).ok().and_then(|r| r.checked_add(axis));
    let at = if axis < 0 { from_end.ok_or_else(outside)? } else { axis };
    usize::try_from(at).ok().filter(|a| *a < rank).ok_or_else(outside)
}

/// `axes` as ascending indices of `rank` axes.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut out = list.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>>>()?;
    out.sort_unstable();
    out.dedup();
    Ok(out)
}
