//! The last look at what leaves: no piece of a private tensor stands in a public file.
//!
//! Labels, owners and the importer decide what is public; this check believes none of them. It takes pieces of 16 bytes
//! out of the private tensors and looks for them at every byte of every public file. Pieces are four neighbours in single
//! precision, along rows and, for matrices, along columns; for tensors stored with other elements also eight or two
//! neighbours as stored. Of tensors with more pieces than [`PIECES`] has room for, every k-th is taken: a file that holds
//! a tensor holds those too. Pieces with fewer than three different elements say nothing, and pieces that also stand in
//! a public tensor of the model are no secret: those that are found are looked for there.
//!
//! It finds copies, not values that were computed from a weight.

use crate::labels::{Labels, Owner, tensors_of};
use crate::onnx::{Model, element_size, element_type, is_floating, shape};
use crate::pipeline::f32_bytes;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a piece.
const PIECE: usize = 16;
/// Most pieces of all tensors together.
const PIECES: usize = 1 << 21;
/// Pieces of every tensor, however many there are, as far as it has them.
const LEAST: usize = 64;
/// Bits of the filter in front of the table for every piece: most bytes of a file end there.
const FILTER_BITS: usize = 64;

/// Pieces of private tensors, each with the number of its tensor.
pub struct Pieces {
    table: HashMap<u128, u32>,
    filter: Vec<u64>,
    bits: u32,
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
        let mut found = Pieces { table: HashMap::new(), filter: Vec::new(), bits: 6, names: Vec::new() };
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
        let bits = (found.table.len() * FILTER_BITS).next_power_of_two().max(64);
        found.bits = bits.trailing_zeros();
        found.filter = vec![0; bits.div_ceil(64)];
        for piece in found.table.keys() {
            let bit = place(*piece, found.bits);
            if let Some(word) = found.filter.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        Ok(found)
    }

    /// Forgets those of the pieces `found` that also stand in a tensor of `model` that `labels` calls public.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn keep_secret(&mut self, model: &Model, labels: &Labels, mut found: HashSet<u128>) -> Result<()> {
        let is_public = |name: &str| labels.get(name).is_some_and(|l| l.owner == Owner::Public);
        for (name, tensor) in tensors_of(model, &|name| labels.get(name).is_some()) {
            if found.is_empty() {
                break;
            }
            if !is_public(&name) {
                continue;
            }
            for elements in views(model, &tensor)? {
                for step in elements.steps() {
                    for piece in (0..elements.len()).filter_map(|at| elements.piece(at, step)) {
                        if self.may_have(piece) && found.remove(&piece) {
                            self.table.remove(&piece);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The name of the private tensor that `piece` is of.
    pub fn name(&self, piece: u128) -> Option<&str> {
        self.table.get(&piece).and_then(|number| self.names.get(*number as usize)).map(String::as_str)
    }

    /// Whether `piece` may be in the table; `false` is certain.
    fn may_have(&self, piece: u128) -> bool {
        let bit = place(piece, self.bits);
        self.filter.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The pieces that stand in the file at `path`. The file is read in blocks.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn find(&self, path: &Path) -> Result<BTreeSet<u128>> {
        let mut found = BTreeSet::new();
        if self.table.is_empty() {
            return Ok(found);
        }
        let failed = |e: std::io::Error| Diagnostic::input("E0547", format!("cannot read {}: {e}", path.display()));
        let mut file = File::open(path).map_err(failed)?;
        let mut block = vec![0; 1 << 16];
        let (mut window, mut seen) = (0u128, 0usize);
        loop {
            let count = file.read(&mut block).map_err(failed)?;
            if count == 0 {
                return Ok(found);
            }
            for byte in block.iter().take(count) {
                // Little-endian: the oldest byte of the window is the lowest.
                window = window >> 8 | u128::from(*byte) << (8 * (PIECE - 1));
                seen = seen.saturating_add(1);
                if seen >= PIECE && self.may_have(window) && self.table.contains_key(&window) {
                    found.insert(window);
                }
            }
        }
    }
}

/// The bit of a filter of `2^bits` bits for `piece`.
fn place(piece: u128, bits: u32) -> usize {
    let mixed = (piece as u64 ^ ((piece >> 64) as u64).rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - bits.min(63))) as usize
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
