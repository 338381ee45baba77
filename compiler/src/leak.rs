//! The last look at what leaves: no piece of a private tensor stands in a public file.
//!
//! Labels, owners and the importer decide what is public; this check believes none of them. It takes pieces of 16 bytes
//! out of the private tensors and looks for them at every byte of every public file. Pieces are four neighbours in single
//! precision, along rows and, for matrices, along columns; for tensors stored with other elements also eight or two
//! neighbours as stored. Of tensors with more pieces than [`PIECES`] has room for, every k-th is taken: a file that holds
//! a tensor holds those too. Pieces with fewer than three different elements say nothing, and pieces that also stand in
//! a public tensor of the model are no secret.
//!
//! It finds copies, not values that were computed from a weight.

use crate::labels::{Labels, Owner, tensors_of};
use crate::onnx::{Model, element_size, element_type, is_floating, shape};
use crate::pipeline::f32_bytes;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a piece.
const PIECE: usize = 16;
/// Most pieces of all tensors together.
const PIECES: usize = 1 << 21;
/// Pieces of every tensor, however many there are, as far as it has them.
const LEAST: usize = 64;
/// Bits of the filter in front of the table of pieces.
const FILTER_BITS: usize = 1 << 27;

/// Pieces of private tensors, each with the number of its tensor.
pub struct Pieces {
    table: HashMap<u128, u32>,
    filter: Vec<u64>,
    names: Vec<String>,
}

/// Elements of one tensor as rows of a matrix.
struct Elements<'a> {
    bytes: Cow<'a, [u8]>,
    width: usize,
    columns: usize,
}

impl Elements<'_> {
    /// The piece of elements `at`, `at + step`, …; nothing where it leaves the tensor or says too little.
    fn piece(&self, at: usize, step: usize) -> Option<u128> {
        let mut out = [0u8; PIECE];
        let mut different: [&[u8]; 3] = [&[]; 3];
        let mut count = 0;
        for (i, to) in out.chunks_exact_mut(self.width).enumerate() {
            let from = at.checked_add(i.checked_mul(step)?)?.checked_mul(self.width)?;
            let element = self.bytes.get(from..from.checked_add(self.width)?)?;
            to.copy_from_slice(element);
            if !different.contains(&element)
                && let Some(slot) = different.get_mut(count)
            {
                (*slot, count) = (element, count + 1);
            }
        }
        (count >= 3.min(PIECE / self.width)).then(|| u128::from_le_bytes(out))
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// Steps to the next element along the axes that pieces follow.
    fn steps(&self) -> impl Iterator<Item = usize> {
        [1, self.columns].into_iter().take(if self.columns > 1 && self.columns < self.len() { 2 } else { 1 })
    }
}

impl Pieces {
    /// Pieces of the tensors of `model` that `labels` calls private.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn new(model: &Model, labels: &Labels) -> Result<Self> {
        let tensors = tensors_of(model, &|name| labels.get(name).is_some());
        let is = |name: &str, owner| labels.get(name).is_some_and(|l| l.owner == owner);
        let mut found = Pieces { table: HashMap::new(), filter: Vec::new(), names: Vec::new() };
        let private: Vec<_> = tensors.iter().filter(|(name, _)| is(name, Owner::Private)).collect();
        let total = private.iter().map(|(_, t)| shape(t).map(|s| s.iter().product::<usize>()));
        let total: usize = total.sum::<Result<usize>>()?;
        for (name, tensor) in private {
            let number = u32::try_from(found.names.len()).unwrap_or(u32::MAX);
            found.names.push(name.clone());
            for elements in views(model, tensor)? {
                // A share of the room for every element, in every direction.
                let every = (total * 4).div_ceil(PIECES).min((elements.len() / LEAST).max(1)).max(1);
                for step in elements.steps() {
                    let pieces = (0..elements.len()).step_by(every).filter_map(|at| elements.piece(at, step));
                    pieces.for_each(|piece| {
                        found.table.entry(piece).or_insert(number);
                    });
                }
            }
        }
        found.filter = vec![0; if found.table.is_empty() { 0 } else { FILTER_BITS / 64 }];
        for piece in found.table.keys() {
            let bit = place(*piece);
            if let Some(word) = found.filter.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        for (_, tensor) in tensors.iter().filter(|(name, _)| is(name, Owner::Public)) {
            for elements in views(model, tensor)? {
                for step in elements.steps() {
                    for piece in (0..elements.len()).filter_map(|at| elements.piece(at, step)) {
                        if found.may_have(piece) {
                            found.table.remove(&piece);
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// Whether `piece` may be in the table; `false` is certain.
    fn may_have(&self, piece: u128) -> bool {
        let bit = place(piece);
        self.filter.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The name of a private tensor of which a piece stands in the file at `path`. The file is read in blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn find(&self, path: &Path) -> Result<Option<&str>> {
        if self.table.is_empty() {
            return Ok(None);
        }
        let failed = |e: std::io::Error| Diagnostic::input("E0547", format!("cannot read {}: {e}", path.display()));
        let mut file = File::open(path).map_err(failed)?;
        let mut block = vec![0; 1 << 16];
        let (mut window, mut seen) = (0u128, 0usize);
        loop {
            let count = file.read(&mut block).map_err(failed)?;
            if count == 0 {
                return Ok(None);
            }
            for byte in block.iter().take(count) {
                // Little-endian: the oldest byte of the window is the lowest.
                window = window >> 8 | u128::from(*byte) << (8 * (PIECE - 1));
                seen = seen.saturating_add(1);
                if seen >= PIECE
                    && self.may_have(window)
                    && let Some(number) = self.table.get(&window)
                {
                    return Ok(self.names.get(*number as usize).map(String::as_str).or(Some("")));
                }
            }
        }
    }
}

/// The bit of the filter for `piece`.
fn place(piece: u128) -> usize {
    let mixed = (piece as u64 ^ (piece >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 37) as usize % FILTER_BITS
}

/// `tensor` in single precision and, when its elements are others, as it is stored.
fn views<'a>(model: &'a Model, tensor: &'a TensorProto) -> Result<Vec<Elements<'a>>> {
    let sizes = shape(tensor)?;
    let columns = sizes.last().copied().unwrap_or(1);
    let width = element_size(element_type(tensor)?).unwrap_or(1);
    let stored = Elements { bytes: model.bytes(tensor)?, width, columns };
    if !is_floating(element_type(tensor)?) || width == 4 {
        return Ok(vec![stored]);
    }
    let single = Tensor::f32(&sizes, model.floats(tensor)?)?;
    Ok(vec![Elements { bytes: Cow::Owned(f32_bytes(&single)?), width: 4, columns }, stored])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(values: &[f32], columns: usize) -> Elements<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Elements { bytes: Cow::Owned(bytes), width: 4, columns }
    }

    #[test]
    fn pieces_follow_rows_and_columns_and_must_say_something() {
        let e = elements(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2);
        assert_eq!(e.steps().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(e.piece(0, 2), elements(&[1.0, 3.0, 5.0, 7.0], 4).piece(0, 1));
        assert_eq!(e.piece(5, 1), None);
        assert_eq!(elements(&[0.0, 1.0, 0.0, 1.0], 4).piece(0, 1), None);
    }
}
