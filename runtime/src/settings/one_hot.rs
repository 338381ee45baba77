//! One-hot vectors with a hidden sign, by which two parties look up an entry that a third one knows the place of.
//!
//! Cells are `2^s` units wide; of `λ`, which the third party knows, `λ ≫ s` is a cell. One of the two has random bits `b^0`,
//! the other `b^1 = b^0 ⊕ e` with a 1 of `e` at that cell: `σ = b^0 − b^1` there is 1 or −1, and known to the third party
//! alone. Of any public table the sums of entries at `b^0` less those at `b^1` are `σ` times the entry there.

/// Cells of one width.
#[derive(Clone, Copy)]
pub struct OneHot {
    /// Bits below a cell's index.
    pub cell: u8,
    /// Number of cells, a power of two.
    pub count: usize,
}

impl OneHot {
    /// Words of a vector.
    pub fn words(self) -> usize {
        self.count.div_ceil(64)
    }

    /// Bits of a word that are sent.
    pub fn word_bits(self) -> u8 {
        self.count.min(64) as u8
    }

    /// The cell of `x`, modulo all of them.
    pub fn index(self, x: u64) -> usize {
        (x >> self.cell) as usize & (self.count - 1)
    }

    /// What `x` has within its cell.
    pub fn low(self, x: u64) -> u64 {
        x & ((1 << self.cell) - 1)
    }

    /// Makes of the first party's vectors those of the second, and says `σ` of each, modulo `2^64`.
    pub fn hide(self, vectors: &mut [u64], lambda: &[u64]) -> Vec<u64> {
        let hidden = |(vector, lambda): (&mut [u64], &u64)| {
            let at = self.index(*lambda);
            // σ is 1 where the first party's bit is set, −1 elsewhere.
            let sign = (vector[at / 64] >> (at % 64) & 1).wrapping_mul(2).wrapping_sub(1);
            vector[at / 64] ^= 1 << (at % 64);
            sign
        };
        vectors.chunks_exact_mut(self.words()).zip(lambda).map(hidden).collect()
    }
}
