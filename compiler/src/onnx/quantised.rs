//! Weights that a file keeps as integers of a few bits, with scales and zero points, as the floating-point numbers that they
//! stand for: `(q − zero) · scale`.
//!
//! Nothing is computed when a model is read: an initializer without elements takes the place of the integers, and its
//! elements are made whenever somebody asks for them. So they have owners by content like every other weight.

use std::collections::HashMap;

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::DataType;

use super::external::ExternalFiles;
use super::tensor;

/// How integers, scales and zero points lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// `DequantizeLinear`: one scale for all, one for each index of an axis, or one for each block of an axis.
    Linear {
        /// The axis.
        axis: usize,
        /// Elements of a block; 0 for scales by index.
        block: usize,
    },
    /// `MatMulNBits`: a row of blocks for every column of the matrix, from the lowest bits of each byte on.
    Packed {
        /// Bits of an integer: 2, 4 or 8.
        bits: usize,
        /// Elements of a block.
        block: usize,
    },
    /// `GatherBlockQuantized` of bytes with two integers each: blocks of the last axis.
    Nibbles {
        /// Elements of a block.
        block: usize,
    },
}

/// A tensor of integers that stand for floating-point numbers.
pub(crate) struct Quantised {
    /// Sizes of the tensor of numbers.
    pub shape: Vec<usize>,
    /// The integers.
    pub elements: TensorProto,
    /// The scales.
    pub scale: TensorProto,
    /// The zero points.
    pub zero: Option<TensorProto>,
    /// Where each stands.
    pub layout: Layout,
}

/// The quantised tensors of a model by the name of the initializer in their place.
pub(crate) type Table = HashMap<String, Quantised>;

fn wrong(of: &TensorProto, what: String) -> Diagnostic {
    Diagnostic::input("E0123", what).at(tensor::place(of)).note("the file is damaged or its exporter is at fault")
}

impl Quantised {
    /// Whether all parts can be read.
    pub(crate) fn has_data(&self, files: &ExternalFiles) -> bool {
        let parts = [Some(&self.elements), Some(&self.scale), self.zero.as_ref()];
        parts.into_iter().flatten().all(|t| !tensor::is_external(t) || !files.lacks(t))
    }

    /// The numbers as little-endian bytes.
    ///
    /// # Errors
    /// `E0123` when the parts do not go together, and those of reading them.
    pub(crate) fn bytes(&self, files: &ExternalFiles) -> Result<Vec<u8>> {
        let numbers = match self.layout {
            Layout::Linear { axis, block } => self.linear(axis, block, files)?,
            Layout::Packed { bits, block } => self.packed(bits, block, files)?,
            Layout::Nibbles { block } => self.nibbles(block, files)?,
        };
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        let expected = self.shape.iter().product::<usize>().saturating_mul(4);
        if bytes.len() != expected {
            return Err(wrong(&self.elements, format!("{} bytes of numbers, not {expected}", bytes.len())));
        }
        Ok(bytes)
    }

    fn linear(&self, axis: usize, block: usize, files: &ExternalFiles) -> Result<Vec<f32>> {
        let integers = integers(&self.elements, files)?;
        let scale = numbers(&self.scale, files)?;
        let zero = self.zero.as_ref().map(|zero| numbers(zero, files)).transpose()?;
        let size = self.shape.get(axis).copied().unwrap_or(1).max(1);
        let inner: usize = self.shape.iter().skip(axis.saturating_add(1)).product::<usize>().max(1);
        let blocks = size.div_ceil(block.max(1));
        let place = |i: usize| match (scale.len(), block) {
            (1, _) => 0,
            (_, 0) => i / inner % size,
            _ => (i / inner / size * blocks + i / inner % size / block) * inner + i % inner,
        };
        self.combine(integers.into_iter().enumerate().map(|(i, q)| (q, place(i))), &scale, zero.as_deref(), 0)
    }

    fn nibbles(&self, block: usize, files: &ExternalFiles) -> Result<Vec<f32>> {
        let low_first = |bytes: Vec<i32>| bytes.into_iter().flat_map(|b| [b & 15, b >> 4 & 15]).collect::<Vec<_>>();
        let integers = low_first(integers(&self.elements, files)?);
        let scale = numbers(&self.scale, files)?;
        let columns = self.shape.last().copied().unwrap_or(1).max(1);
        let blocks = columns.div_ceil(block.max(1));
        let zero = match &self.zero {
            None => None,
            Some(zero) => {
                let packed = low_first(self::integers(zero, files)?);
                let rows = packed.chunks(blocks.next_multiple_of(2));
                Some(rows.flat_map(|row| row.iter().take(blocks)).map(|z| *z as f32).collect::<Vec<_>>())
            }
        };
        let place = |i: usize| i / columns * blocks + i % columns / block.max(1);
        self.combine(integers.into_iter().enumerate().map(|(i, q)| (q, place(i))), &scale, zero.as_deref(), 8)
    }

    /// `(q − zero) · scale` of each integer and the place of its scale.
    fn combine(
        &self,
        integers: impl Iterator<Item = (i32, usize)>,
        scale: &[f32],
        zero: Option<&[f32]>,
        default: i32,
    ) -> Result<Vec<f32>> {
        let short = || wrong(&self.elements, "there are fewer scales or zero points than its shape takes".into());
        let number = |(q, at): (i32, usize)| {
            let zero = match zero {
                // One zero point may stand beside many scales.
                Some([one]) => *one,
                Some(all) => *all.get(at).ok_or_else(short)?,
                None => default as f32,
            };
            Ok((q as f32 - zero) * scale.get(at).ok_or_else(short)?)
        };
        integers.map(number).collect()
    }

    /// The matrix `[K, N]` of a tensor of `N` rows of blocks.
    fn packed(&self, bits: usize, block: usize, files: &ExternalFiles) -> Result<Vec<f32>> {
        let [k, n] = self.shape[..] else { return Err(wrong(&self.elements, "the weight is no matrix".into())) };
        let blocks = k.div_ceil(block.max(1));
        let blob = block * bits / 8;
        let bytes = tensor::bytes(&self.elements, files)?;
        let scale = numbers(&self.scale, files)?;
        if bytes.len() != n * blocks * blob || scale.len() != n * blocks {
            let what = format!("{} bytes and {} scales for {n} columns of {blocks} blocks", bytes.len(), scale.len());
            return Err(wrong(&self.elements, what));
        }
        let field = |bytes: &[u8], i: usize| {
            let bit = i * bits;
            bytes.get(bit / 8).map(|byte| u32::from(*byte) >> (bit % 8) & ((1 << bits) - 1))
        };
        let zero: Vec<f32> = match &self.zero {
            None => vec![(1u32 << (bits - 1)) as f32; n * blocks],
            Some(zero) if tensor::is_floating(tensor::element_type(zero)?) => numbers(zero, files)?,
            Some(zero) => {
                let bytes = tensor::bytes(zero, files)?;
                let rows = bytes.chunks((blocks * bits).div_ceil(8).max(1));
                rows.flat_map(|row| (0..blocks).filter_map(|b| field(row, b)).map(|z| z as f32)).collect()
            }
        };
        if zero.len() != n * blocks {
            return Err(wrong(&self.elements, format!("{} zero points, not {}", zero.len(), n * blocks)));
        }
        let mut out = vec![0.0; k * n];
        for (column, row) in bytes.chunks_exact((blocks * blob).max(1)).enumerate() {
            for i in 0..k {
                let at = column * blocks + i / block.max(1);
                let (scale, zero) = (scale.get(at).unwrap_or(&0.0), zero.get(at).unwrap_or(&0.0));
                if let (Some(q), Some(slot)) = (field(row, i), out.get_mut(i * n + column)) {
                    *slot = (q as f32 - zero) * scale;
                }
            }
        }
        Ok(out)
    }
}

/// The elements of a tensor of integers, those of four bits unpacked.
fn integers(of: &TensorProto, files: &ExternalFiles) -> Result<Vec<i32>> {
    let kind = tensor::element_type(of)?;
    if !matches!(kind, DataType::INT4 | DataType::UINT4) {
        let ints = tensor::ints(kind, &tensor::bytes(of, files)?);
        let ints = ints.ok_or_else(|| wrong(of, format!("elements of type {kind:?} stand for quantised weights")))?;
        let narrow = |v: i64| i32::try_from(v).map_err(|_| wrong(of, "an integer has more than 32 bits".into()));
        return ints.into_iter().map(narrow).collect();
    }
    let count: usize = tensor::shape(of)?.iter().product();
    let packed: Vec<u8> = if tensor::is_external(of) {
        files.bytes(of, count.div_ceil(2))?.to_vec()
    } else if of.raw_data.is_empty() {
        of.int32_data.iter().map(|v| *v as u8).collect()
    } else {
        of.raw_data.clone()
    };
    if packed.len() != count.div_ceil(2) {
        return Err(wrong(of, format!("{} bytes for {count} integers of four bits", packed.len())));
    }
    let signed = |q: u8| if kind == DataType::INT4 { i32::from((q << 4) as i8 >> 4) } else { i32::from(q) };
    Ok(packed.iter().flat_map(|b| [b & 15, b >> 4]).take(count).map(signed).collect())
}

/// The only number of a tensor.
pub(crate) fn single(of: &TensorProto, files: &ExternalFiles) -> Option<f32> {
    match numbers(of, files).ok()?.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

/// The elements of a tensor of any numbers.
fn numbers(of: &TensorProto, files: &ExternalFiles) -> Result<Vec<f32>> {
    let kind = tensor::element_type(of)?;
    if tensor::is_floating(kind) {
        let floats = tensor::floats(kind, &tensor::bytes(of, files)?);
        return floats.ok_or_else(|| wrong(of, format!("elements of type {kind:?}")));
    }
    Ok(integers(of, files)?.into_iter().map(|q| q as f32).collect())
}
