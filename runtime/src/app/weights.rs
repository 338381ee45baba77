//! Weight files: safetensors of single-precision tensors, checked against a plan and read block by block.

use std::path::Path;

use ombra_ir::bind::MAX_ELEMENTS;
use ombra_ir::folder::PLAN_DIGEST;
use ombra_ir::module::{Id, Module};
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};
use safetensors::tensor::{Dtype, Metadata};

use super::held_file::HeldFile;
use crate::exec::TensorSource;

/// Bytes of the length in front of a safetensors header.
const LENGTH_BYTES: u64 = 8;
/// Largest safetensors header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open weights file.
pub struct Weights {
    file: HeldFile,
    /// Where the header ends and the elements begin.
    start: u64,
    header: Metadata,
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
    /// Opens the file at `path`, takes its digest and checks its header.
    ///
    /// # Errors
    /// `E1001` when it cannot be read, `E1003` when it is no safetensors file.
    pub fn open(path: &Path) -> Result<Weights> {
        Weights::of(HeldFile::open(path)?)
    }

    /// Checks the header of an open file.
    ///
    /// # Errors
    /// `E1003` when it is no safetensors file, and those of [`HeldFile::read`].
    pub fn of(file: HeldFile) -> Result<Weights> {
        let wrong = |what: &str| {
            Diagnostic::input("E1003", format!("not a safetensors file: {what}")).at(file.name().to_owned())
        };
        if file.bytes() < LENGTH_BYTES {
            return Err(wrong("it is too short"));
        }
        let length = file.read(0, LENGTH_BYTES as usize)?;
        let length = length.iter().rev().fold(0u64, |length, &byte| length << 8 | u64::from(byte));
        if length > MAX_HEADER_BYTES.min(file.bytes() - LENGTH_BYTES) {
            return Err(wrong("its header is longer than the file, or than any header"));
        }
        let header: Metadata = serde_json::from_slice(&file.read(LENGTH_BYTES, length as usize)?)
            .map_err(|error| wrong(&error.to_string()))?;
        let start = LENGTH_BYTES + length;
        let end = header.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if start.checked_add(end) != Some(file.bytes()) {
            return Err(wrong("it does not end where its last tensor does"));
        }
        Ok(Weights { file, start, header })
    }

    /// Checks that the file still is the one that was opened.
    ///
    /// # Errors
    /// `E1020` when it is not.
    pub fn check_unchanged(&self) -> Result<()> {
        self.file.check()
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        self.file.sha256()
    }

    /// Checks that the file was not written for another plan than the one with this digest. A file that names none is taken.
    ///
    /// # Errors
    /// `E1003`.
    pub fn check_plan(&self, digest: &str) -> Result<()> {
        match self.header.metadata().as_ref().and_then(|metadata| metadata.get(PLAN_DIGEST)) {
            Some(plan) if plan != digest => {
                Err(Diagnostic::input("E1003", "the private weights were written for another plan")
                    .at(self.file.name().to_owned())
                    .note(format!("expected  {digest}, found {}", plan.escape_debug()))
                    .note("help      take the folder `server` that was written beside `public`"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the file holds a weight with its name and sizes, as single-precision numbers.
    ///
    /// # Errors
    /// `E1003`.
    pub fn check(&self, wanted: &Wanted) -> Result<()> {
        let (shape, _) = self.place(&wanted.name)?;
        if shape == wanted.shape {
            return Ok(());
        }
        Err(self
            .wrong(&wanted.name, "has another shape than the plan says")
            .note(format!("expected  {:?}, found {shape:?}", wanted.shape)))
    }

    /// Shape of a weight, and where its elements begin in the file.
    fn place(&self, name: &str) -> Result<(&[usize], u64)> {
        let info = self.header.info(name).ok_or_else(|| self.wrong(name, "is missing"))?;
        if info.dtype != Dtype::F32 {
            return Err(self
                .wrong(name, "is not of single-precision numbers")
                .note(format!("expected  F32, found {:?}", info.dtype)));
        }
        let (from, to) = info.data_offsets;
        let bytes = info.shape.iter().try_fold(4usize, |product, &size| product.checked_mul(size));
        let start = self.start.checked_add(from as u64);
        let start = start.filter(|_| to.checked_sub(from).is_some_and(|length| Some(length) == bytes));
        Ok((&info.shape, start.ok_or_else(|| self.wrong(name, "has a place out of the file"))?))
    }

    fn wrong(&self, name: &str, what: &str) -> Diagnostic {
        Diagnostic::input("E1003", format!("the weight `{}` {what}", name.escape_debug()))
            .at(self.file.name().to_owned())
            .note("help      take the weights file that was written together with the plan")
    }
}

impl TensorSource for Weights {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (shape, _) = self.place(name)?;
        let elements = shape.iter().product();
        Ok((shape.to_vec(), self.elements(name, 0, elements)?))
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.place(name).map(|(shape, _)| shape.to_vec())
    }

    fn elements(&self, name: &str, start: usize, len: usize) -> Result<Vec<f32>> {
        let mut floats = Vec::new();
        let mut take = |part: &[f32]| {
            // Not before the length was checked.
            floats.reserve_exact(len - floats.len());
            floats.extend_from_slice(part);
        };
        self.parts(name, start, len, &mut take)?;
        Ok(floats)
    }

    fn parts(&self, name: &str, start: usize, len: usize, take: &mut dyn FnMut(&[f32])) -> Result<()> {
        let (shape, place) = self.place(name)?;
        let elements: usize = shape.iter().product();
        if start.checked_add(len).is_none_or(|end| end > elements) {
            return Err(self.wrong(name, "has fewer elements than its sizes say"));
        }
        let mut floats = Vec::new();
        self.file.blocks(place + 4 * start as u64, 4 * len, |bytes| {
            floats.clear();
            floats.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            take(&floats);
        })
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
