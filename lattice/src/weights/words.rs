//! How ciphertext words are stored: the layout of encrypted weights and of the public stream beside them.
//!
//! Sixteen columns are a panel. A panel holds its weight rows one after another; a row holds two halves of eight words,
//! and a half the words' low limbs of six bytes, then their next limbs of up to six bytes, then what is left, so that
//! eight limbs are opened at once. Panels follow one another. Missing columns of the last panel are zeros.

use crate::params::WeightSet;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// Bytes of the limbs of a word of `bytes` bytes: six, then up to six, then the rest.
pub(crate) fn limb_bytes(bytes: usize) -> [usize; 3] {
    [bytes.min(6), bytes.saturating_sub(6).min(6), bytes.saturating_sub(12)]
}

/// Bytes of one row of a panel.
pub(crate) fn row_bytes(set: &WeightSet) -> usize {
    PANEL * set.word_bytes()
}

/// Bytes of `rows` × `cols` words.
pub(crate) fn matrix_bytes(set: &WeightSet, rows: usize, cols: usize) -> usize {
    cols.div_ceil(PANEL) * rows * row_bytes(set)
}

/// Reads one row of a panel.
pub(crate) fn read_row(bytes: &[u8], word_bytes: usize, out: &mut [u128]) {
    let limbs = limb_bytes(word_bytes);
    for (half, out) in bytes.chunks_exact(8 * word_bytes).zip(out.chunks_exact_mut(8)) {
        for (i, out) in out.iter_mut().enumerate() {
            let (mut from, mut shift) = (0, 0);
            *out = 0;
            for width in limbs {
                if width > 0 {
                    *out |= u128::from(read_limb(half, from + width * i, width)) << shift;
                }
                from += 8 * width;
                shift += 8 * width;
            }
        }
    }
}

/// The limb of `width` bytes, 1 to 6, at `at`: eight bytes at once where there are as many.
#[inline(always)]
fn read_limb(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mask = u64::MAX >> (64 - 8 * width);
    if let Some(word) = bytes[at..].first_chunk() {
        return u64::from_le_bytes(*word) & mask;
    }
    bytes[at..at + width].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Writes one row of a panel: words mod 2^(8 `word_bytes`).
pub(crate) fn write_row(words: &[u128], word_bytes: usize, out: &mut [u8]) {
    let limbs = limb_bytes(word_bytes);
    for (half, words) in out.chunks_exact_mut(8 * word_bytes).zip(words.chunks_exact(8)) {
        let (mut from, mut shift) = (0, 0);
        for width in limbs.into_iter().filter(|width| *width > 0) {
            for (i, word) in words.iter().enumerate() {
                let limb = ((word >> shift) as u64).to_le_bytes();
                let out = &mut half[from + width * i..];
                // What is beyond the limb is written over by those that follow.
                match out.first_chunk_mut() {
                    Some(out) => *out = limb,
                    None => out[..width].copy_from_slice(&limb[..width]),
                }
            }
            from += 8 * width;
            shift += 8 * width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        for word_bytes in 11..=16 {
            let mask = u128::MAX >> (128 - 8 * word_bytes);
            let words: Vec<u128> = (1..=16).map(|i| 0xF39C_C060_5CED_C835_u128.pow(2).wrapping_mul(i) & mask).collect();
            let mut bytes = vec![0; PANEL * word_bytes];
            write_row(&words, word_bytes, &mut bytes);
            assert!(bytes[..6] == words[0].to_le_bytes()[..6] && bytes[48 + 1] == words[0].to_le_bytes()[7]);
            let mut back = vec![0; 16];
            read_row(&bytes, word_bytes, &mut back);
            assert_eq!(back, words);
        }
    }
}
