//! Sums of entries of tables at the places where a vector of bits is 1: every entry is read, so that no address depends on
//! the bits.

use crate::isa::{Isa, Level};

/// Entries that are read at once.
pub const LANES: usize = 8;

/// `K` tables with one index: of every table the entry `−j` at place `j`, twice, and [`LANES`] zeros behind them.
pub struct Tables<const K: usize> {
    count: usize,
    entries: [Vec<u64>; K],
}

impl<const K: usize> Tables<K> {
    /// Tables of as many entries each, one at least.
    pub fn new(tables: &[Vec<i64>; K]) -> Self {
        let count = tables.iter().map(Vec::len).min().unwrap_or(0);
        let entries = tables.each_ref().map(|table| {
            let twice = (0..2 * count).map(|j| table[(2 * count - j) % count] as u64);
            twice.chain([0; LANES]).collect()
        });
        Tables { count, entries }
    }

    /// Words of a vector of bits.
    pub fn words(&self) -> usize {
        self.count.div_ceil(64)
    }

    /// The entries in the order of the bits of a vector, for the index `at`; whole groups of [`LANES`].
    fn window(&self, at: usize) -> [&[u64]; K] {
        let first = (self.count - at % self.count) % self.count;
        let width = self.count.next_multiple_of(LANES);
        self.entries.each_ref().map(|table| table.get(first..first + width).unwrap_or(&[]))
    }

    /// The bits of a group of a vector.
    fn bits(&self, vector: &[u64], group: usize) -> u8 {
        let used = if self.count < LANES { (1 << self.count) - 1 } else { u8::MAX };
        (vector[group * LANES / 64] >> (group * LANES % 64)) as u8 & used
    }
}

/// Of every element the sums of the tables' entries `at − j` for the bits `j` of its vector that are 1, modulo `2^64`.
///
/// # Panics
/// When there are not as many vectors as elements.
pub fn sums_of_entries<const K: usize>(isa: Isa, vectors: &[u64], at: &[usize], tables: &Tables<K>) -> Vec<[u64; K]> {
    assert_eq!(vectors.len(), at.len() * tables.words(), "a vector for every element");
    let elements = vectors.chunks_exact(tables.words().max(1)).zip(at);
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where the processor reports these features.
        Level::Avx512 => elements.map(|(vector, &at)| unsafe { avx512(vector, at, tables) }).collect(),
        _ => elements.map(|(vector, &at)| portable(vector, at, tables)).collect(),
    }
}

fn portable<const K: usize>(vector: &[u64], at: usize, tables: &Tables<K>) -> [u64; K] {
    tables.window(at).map(|entries| {
        let groups = entries.chunks_exact(LANES).enumerate();
        groups.fold(0u64, |sum, (group, entries)| {
            let bits = u64::from(tables.bits(vector, group));
            let of =
                |sum: u64, (lane, entry): (usize, &u64)| sum.wrapping_add((bits >> lane & 1).wrapping_neg() & entry);
            entries.iter().enumerate().fold(sum, of)
        })
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<const K: usize>(vector: &[u64], at: usize, tables: &Tables<K>) -> [u64; K] {
    use std::arch::x86_64::{_mm512_loadu_si512, _mm512_mask_add_epi64, _mm512_reduce_add_epi64, _mm512_setzero_si512};
    let window = tables.window(at);
    let mut sums = [_mm512_setzero_si512(); K];
    for group in 0..tables.count.div_ceil(LANES) {
        let bits = tables.bits(vector, group);
        for (sum, entries) in sums.iter_mut().zip(window) {
            let entries = &entries[group * LANES..(group + 1) * LANES];
            // SAFETY: a group has 8 words, which are 64 bytes; the load takes any address.
            let entries = unsafe { _mm512_loadu_si512(entries.as_ptr().cast()) };
            *sum = _mm512_mask_add_epi64(*sum, bits, *sum, entries);
        }
    }
    sums.map(|sum| _mm512_reduce_add_epi64(sum) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_sums_of_their_definition() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 31
        };
        for count in [2usize, 4, 8, 16, 64, 128, 1024] {
            let lists: [Vec<i64>; 3] = std::array::from_fn(|_| (0..count).map(|_| next() as i64).collect());
            let tables = Tables::new(&lists);
            let at: Vec<usize> = (0..50).map(|_| next() as usize % count).collect();
            let vectors: Vec<u64> = (0..50 * tables.words()).map(|_| next()).collect();
            let expected: Vec<[u64; 3]> = vectors
                .chunks(tables.words())
                .zip(&at)
                .map(|(vector, at)| {
                    let set = |j: &usize| vector[j / 64] >> (j % 64) & 1 == 1;
                    let entry = |list: &[i64], j: usize| list[(at + count - j) % count] as u64;
                    lists
                        .each_ref()
                        .map(|list| (0..count).filter(set).fold(0u64, |sum, j| sum.wrapping_add(entry(list, j))))
                })
                .collect();
            let first = Tables::new(&[lists[0].clone()]);
            for isa in Isa::available() {
                assert_eq!(sums_of_entries(isa, &vectors, &at, &tables), expected, "{count} entries, {}", isa.name());
                let alone = sums_of_entries(isa, &vectors, &at, &first);
                assert!(alone.iter().zip(&expected).all(|(a, b)| a[0] == b[0]), "{count} entries, {}", isa.name());
            }
        }
    }
}
