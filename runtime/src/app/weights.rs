//! Weight files: memory-mapped safetensors of single-precision tensors, checked against a plan.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use ombra_ir::bind::MAX_ELEMENTS;
use ombra_ir::module::{Id, Module};
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use crate::exec::TensorSource;

/// Bytes of the length in front of a safetensors header.
const LENGTH_BYTES: usize = 8;

/// An open weights file.
pub struct Weights {
    map: Mmap,
    /// Where the header ends and the elements begin.
    start: usize,
    header: Metadata,
    name: String,
}

/// A weight that a plan takes from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The op that brings it in.
    pub op: Id,
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Number of elements.
    pub elements: usize,
    /// Ring bits and scale that its elements are rounded to.
    pub ring: (u8, u8),
}

impl Weights {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    /// `E1001` when it cannot be read, `E1003` when it is no safetensors file.
    pub fn open(path: &Path) -> Result<Weights> {
        let name = path.display().to_string();
        let unreadable = |error: std::io::Error| {
            Diagnostic::input("E1001", format!("the weights cannot be read: {error}")).at(name.clone())
        };
        let file = File::open(path).map_err(unreadable)?;
        // SAFETY: the map is read-only. Changing the file while a party runs is outside of what this program can
        // prevent; every element is a float for any bit pattern, so a change gives other numbers, or a signal when the
        // file is cut.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let (header_bytes, header) = SafeTensors::read_metadata(&map)
            .map_err(|error| Diagnostic::input("E1003", format!("not a safetensors file: {error}")).at(name.clone()))?;
        let start = header_bytes.saturating_add(LENGTH_BYTES);
        Ok(Weights { map, start, header, name })
    }

    /// Checks that the file holds a weight with its name and sizes, as single-precision numbers.
    ///
    /// # Errors
    /// `E1003`.
    pub fn check(&self, wanted: &Wanted) -> Result<()> {
        let (shape, _) = self.bytes(&wanted.name)?;
        if shape == wanted.shape {
            return Ok(());
        }
        Err(self
            .wrong(&wanted.name, "has another shape than the plan says")
            .note(format!("expected  {:?}, found {shape:?}", wanted.shape)))
    }

    /// Shape and bytes of the elements of a weight.
    fn bytes(&self, name: &str) -> Result<(&[usize], &[u8])> {
        let info = self.header.info(name).ok_or_else(|| self.wrong(name, "is missing"))?;
        if info.dtype != Dtype::F32 {
            return Err(self
                .wrong(name, "is not of single-precision numbers")
                .note(format!("expected  F32, found {:?}", info.dtype)));
        }
        let (from, to) = info.data_offsets;
        let elements = info.shape.iter().try_fold(4usize, |product, &size| product.checked_mul(size));
        let range = self.start.checked_add(from).zip(self.start.checked_add(to));
        let bytes = range
            .and_then(|(from, to)| self.map.get(from..to))
            .filter(|bytes| Some(bytes.len()) == elements)
            .ok_or_else(|| self.wrong(name, "has a place out of the file"))?;
        Ok((&info.shape, bytes))
    }

    fn wrong(&self, name: &str, what: &str) -> Diagnostic {
        Diagnostic::input("E1003", format!("the weight `{}` {what}", name.escape_debug()))
            .at(self.name.clone())
            .note("help      take the weights file that was written together with the plan")
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl TensorSource for Weights {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.bytes(name)?;
        Ok((shape.to_vec(), floats(bytes)))
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.bytes(name).map(|(shape, _)| shape.to_vec())
    }

    fn elements(&self, name: &str, start: usize, len: usize) -> Result<Vec<f32>> {
        let (_, bytes) = self.bytes(name)?;
        let range = start.checked_mul(4).zip(start.checked_add(len).and_then(|end| end.checked_mul(4)));
        let bytes = range.and_then(|(from, to)| bytes.get(from..to));
        bytes.map(floats).ok_or_else(|| self.wrong(name, "has fewer elements than its sizes say"))
    }
}

/// The private weights of a module, in the order of its ops.
///
/// # Errors
/// `E1004` when the sizes of one are not fixed.
pub fn private_weights(module: &Module) -> Result<Vec<Wanted>> {
    wanted(module, |op| if let Op::Weight { name } = op { Some(name) } else { None })
}

/// The public weights of a module, in the order of its ops.
///
/// # Errors
/// `E1004` when the sizes of one are not fixed.
pub fn public_weights(module: &Module) -> Result<Vec<Wanted>> {
    wanted(module, |op| if let Op::PublicWeight { name } = op { Some(name) } else { None })
}

fn wanted(module: &Module, name: impl Fn(&Op) -> Option<&String>) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for (index, node) in (0u32..).zip(&module.ops) {
        let Some(name) = name(&node.op) else { continue };
        let wrong = |what: &str| {
            Diagnostic::input("E1004", format!("the weight `{}` of the plan {what}", name.escape_debug()))
                .note("help      compile the model again")
        };
        let ring = node.ty.as_ring().ok_or_else(|| wrong("is no ring tensor"))?;
        let sizes = node.ty.shape.iter().map(|dim| dim.as_constant().and_then(|size| usize::try_from(size).ok()));
        let shape: Vec<usize> = sizes.collect::<Option<_>>().ok_or_else(|| wrong("has no fixed size"))?;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let elements =
            elements.filter(|&elements| elements as u64 <= MAX_ELEMENTS).ok_or_else(|| wrong("is too large"))?;
        all.push(Wanted { op: Id(index), name: name.clone(), shape, elements, ring });
    }
    Ok(all)
}
