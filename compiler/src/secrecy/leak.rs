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

use crate::onnx::{Model, element_size, element_type, is_floating, shape};
use crate::pipeline::f32_bytes;
use crate::secrecy::labels::{Labels, Owner, tensors_of};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a piece.
const PIECE: usize = 16;
/// Most pieces of all tensors together.
const PIECES: usize = 1 << 21;
/// Pieces of every tensor, however many there are, as far as it has them.
const LEAST: usize = 64;
/// Bytes of a file that one thread searches at a time.
const PART: u64 = 1 << 22;
/// Bytes between the places of a file that are looked at. Every piece covers one of them with a core of [`CORE`] bytes.
const STRIDE: usize = 4;
/// Bytes of a core: what is left of a piece from its first such place on.
const CORE: usize = PIECE - STRIDE + 1;
/// Bits of the filter in front of the table for every core, of which two are set: most places of a file end there.
const FILTER_BITS: usize = 32;
/// Words of the filter in front of that one: as many as stay in a processor's cache.
const CACHED: usize = 1 << 20;

/// Pieces of private tensors, each with the number of its tensor.
pub struct Pieces {
    table: HashMap<u128, u32>,
    filter: Filter,
    names: Vec<String>,
}

/// A set that may take others for its own, but none of its own for others.
#[derive(Default)]
struct Filter {
    words: Vec<u64>,
    /// All of `words`, of which several stand in one where they are more than [`CACHED`].
    folded: Vec<u64>,
}

impl Filter {
    /// The cores of `pieces`, of which there are so many.
    fn of<'a>(pieces: impl Iterator<Item = &'a u128>, count: usize) -> Self {
        let mut words = vec![0; (count * STRIDE * FILTER_BITS / 64).next_power_of_two()];
        for core in pieces.flat_map(|piece| (0..STRIDE).map(|at| core(*piece, at))) {
            let (word, bits) = place(core, words.len());
            if let Some(word) = words.get_mut(word) {
                *word |= bits;
            }
        }
        let mut folded = vec![0; words.len().min(CACHED)];
        for part in words.chunks(folded.len()) {
            folded.iter_mut().zip(part).for_each(|(all, word)| *all |= word);
        }
        Filter { words, folded }
    }

    /// Whether a piece may have this core; `false` is certain.
    fn may_have(&self, core: u128) -> bool {
        let has = |words: &[u64]| {
            let (word, bits) = place(core, words.len());
            words.get(word).is_some_and(|word| word & bits == bits)
        };
        has(&self.folded) && has(&self.words)
    }
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
        let mut found = Pieces { table: HashMap::new(), filter: Filter::default(), names: Vec::new() };
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
                model.was_read(elements.bytes.len());
            }
        }
        found.filter = Filter::of(found.table.keys(), found.table.len());
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
                        if self.filter.may_have(core(piece, 0)) && found.remove(&piece) {
                            self.table.remove(&piece);
                        }
                    }
                }
                model.was_read(elements.bytes.len());
            }
        }
        Ok(())
    }

    /// The name of the private tensor that `piece` is of.
    pub fn name(&self, piece: u128) -> Option<&str> {
        self.table.get(&piece).and_then(|number| self.names.get(*number as usize)).map(String::as_str)
    }

    /// The pieces that stand in the file at `path`. The file is read in blocks, by several threads.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn find(&self, path: &Path) -> Result<BTreeSet<u128>> {
        if self.table.is_empty() {
            return Ok(BTreeSet::new());
        }
        let failed = |e: std::io::Error| Diagnostic::input("E0547", format!("cannot read {}: {e}", path.display()));
        let parts = std::fs::metadata(path).map_err(failed)?.len().div_ceil(PART);
        let found = (0..parts).into_par_iter().map(|part| self.find_in(path, part * PART).map_err(failed));
        Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The pieces that begin in the [`PART`] bytes from `start` on.
    fn find_in(&self, path: &Path, start: u64) -> std::io::Result<BTreeSet<u128>> {
        let mut bytes = Vec::new();
        let mut file = File::open(path)?;
        // What begins before a place may be found at it.
        file.seek(SeekFrom::Start(start.saturating_sub(STRIDE as u64)))?;
        file.take(PART + 2 * PIECE as u64).read_to_end(&mut bytes)?;
        let mut found = BTreeSet::new();
        let piece = |at: usize| bytes.get(at..at + PIECE).and_then(|b| b.try_into().ok()).map(u128::from_le_bytes);
        for (at, window) in bytes.windows(PIECE).enumerate().step_by(STRIDE) {
            let window = u128::from_le_bytes(window.try_into().unwrap_or_default());
            if self.filter.may_have(core(window, 0)) {
                let near = (at.saturating_sub(STRIDE - 1)..=at).filter_map(piece);
                found.extend(near.filter(|piece| self.table.contains_key(piece)));
            }
        }
        // The last places have no whole piece behind them.
        let rest = bytes.len().saturating_sub(PIECE + STRIDE)..bytes.len().saturating_sub(PIECE - 1);
        found.extend(rest.filter_map(piece).filter(|piece| self.table.contains_key(piece)));
        Ok(found)
    }
}

/// The core of `piece` that begins `at` bytes after it, at most [`STRIDE`] - 1.
fn core(piece: u128, at: usize) -> u128 {
    piece >> (8 * at) & (u128::MAX >> (8 * (PIECE - CORE)))
}

/// The word of a filter of so many words, a power of two, and the bits in it for `core`.
fn place(core: u128, words: usize) -> (usize, u64) {
    let mixed = (core as u64 ^ ((core >> 64) as u64).rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = 1 << (mixed >> 58) | 1 << (mixed >> 52 & 63);
    ((mixed >> 16) as usize & words.wrapping_sub(1), bits)
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

    /// Pieces are found wherever they stand, also across the parts that threads read.
    #[test]
    fn pieces_are_found_at_every_byte() {
        let piece = elements(&[0.5, -1.25, 3.0, 7.5], 4).piece(0, 1).unwrap();
        let filter = Filter::of([piece].iter(), 1);
        let pieces = Pieces { table: HashMap::from([(piece, 0)]), filter, names: vec!["w".into()] };
        let path = std::env::temp_dir().join(format!("ombra-leak-{}", std::process::id()));
        let middle = (PART - 20) as usize..(PART + 20) as usize;
        for at in (0..24).chain(middle) {
            for after in [0, 1, 2, 3, 40] {
                let mut bytes = vec![0u8; at];
                bytes.extend(piece.to_le_bytes());
                bytes.resize(bytes.len() + after, 0);
                if at < 1000 || after == 40 {
                    std::fs::write(&path, &bytes).unwrap();
                    assert_eq!(
                        pieces.find(&path).unwrap(),
                        BTreeSet::from([piece]),
                        "{at} bytes before, {after} after"
                    );
                }
            }
        }
        std::fs::write(&path, [0u8; 100]).unwrap();
        assert!(pieces.find(&path).unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_folded_filter_knows_all_its_pieces() {
        let pieces: Vec<u128> =
            (1..=3 * CACHED as u128 / 4).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).collect();
        let filter = Filter::of(pieces.iter(), pieces.len());
        assert!(filter.words.len() > filter.folded.len());
        assert!(pieces.iter().all(|piece| (0..STRIDE).all(|at| filter.may_have(core(*piece, at)))));
        let others = (1..=100_000u128).filter(|i| filter.may_have(core(i << 64 | i << 3, 0)));
        assert!(others.count() < 2_000);
    }

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
