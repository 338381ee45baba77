//! Words of any width up to 128 bits, one after another without gaps, lowest bit first.

/// Bytes that `count` words of `bits` bits take.
pub fn packed_bytes(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Widest words of [`pack`] and [`unpack`].
pub(crate) const WIDEST: u32 = 56;

/// Packs words of `bits` bits, at most 56, which have no others, into exactly as many bytes as they take.
pub(crate) fn pack(words: &[u64], bits: u32, out: &mut [u8]) {
    debug_assert!(bits <= WIDEST && out.len() == packed_bytes(words.len(), bits), "one width and its bytes");
    let (mut at, mut waiting, mut filled) = (0, 0, 0);
    for word in words {
        // Fewer than eight bits wait, so that eight bytes hold them and the word.
        waiting |= word << filled;
        let bytes = waiting.to_le_bytes();
        match out[at..].first_chunk_mut() {
            Some(out) => *out = bytes,
            None => {
                let rest = out.len() - at;
                out[at..].copy_from_slice(&bytes[..rest]);
            }
        }
        filled += bits;
        at += (filled / 8) as usize;
        waiting = waiting.unbounded_shr(filled / 8 * 8);
        filled %= 8;
    }
}

/// The words of `bits` bits, at most 56, that [`pack`] made `bytes` of. Bytes beyond the end are zeros.
pub(crate) fn unpack(bytes: &[u8], bits: u32, out: &mut [u64]) {
    debug_assert!(bits <= WIDEST, "one width");
    let mask = (1 << bits) - 1;
    for (i, out) in out.iter_mut().enumerate() {
        let at = i * bits as usize;
        let rest = bytes.get(at / 8..).unwrap_or_default();
        let word = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            word
        });
        *out = u64::from_le_bytes(word) >> (at % 8) & mask;
    }
}

/// Words on their way to bytes.
pub(crate) struct Packer<'a> {
    out: &'a mut [u8],
    at: usize,
    waiting: u128,
    filled: u32,
}

impl<'a> Packer<'a> {
    /// Fills `out` from its begin.
    pub(crate) fn new(out: &'a mut [u8]) -> Packer<'a> {
        Packer { out, at: 0, waiting: 0, filled: 0 }
    }

    /// Appends the low `bits` bits of `word`, which has no others; at most 128.
    #[inline]
    pub(crate) fn push(&mut self, word: u128, bits: u32) {
        if bits > 64 {
            self.push(word & u128::from(u64::MAX), 64);
            self.push(word >> 64, bits - 64);
            return;
        }
        self.waiting |= word << self.filled;
        self.filled += bits;
        if self.filled >= 64 {
            self.out[self.at..self.at + 8].copy_from_slice(&(self.waiting as u64).to_le_bytes());
            self.at += 8;
            self.waiting >>= 64;
            self.filled -= 64;
        }
    }

    /// Writes what waits, filled up with zeros to a whole byte.
    pub(crate) fn finish(self) {
        let rest = self.waiting.to_le_bytes();
        let bytes = (self.filled as usize).div_ceil(8);
        self.out[self.at..self.at + bytes].copy_from_slice(&rest[..bytes]);
    }
}

/// Words from bytes. Bytes beyond the end are zeros.
pub(crate) struct Unpacker<'a> {
    bytes: &'a [u8],
    at: usize,
    waiting: u128,
    filled: u32,
}

impl<'a> Unpacker<'a> {
    /// Reads `bytes` from their begin.
    pub(crate) fn new(bytes: &'a [u8]) -> Unpacker<'a> {
        Unpacker { bytes, at: 0, waiting: 0, filled: 0 }
    }

    /// The next word of `bits` bits; at most 128.
    #[inline]
    pub(crate) fn pull(&mut self, bits: u32) -> u128 {
        if bits > 64 {
            let low = self.pull(64);
            return low | self.pull(bits - 64) << 64;
        }
        if self.filled < bits {
            let mut next = [0; 8];
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let n = rest.len().min(8);
            next[..n].copy_from_slice(&rest[..n]);
            self.at += 8;
            self.waiting |= u128::from(u64::from_le_bytes(next)) << self.filled;
            self.filled += 64;
        }
        let word = self.waiting & ((1 << bits) - 1);
        self.waiting >>= bits;
        self.filled -= bits;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_take_the_bytes_they_should() {
        for bits in 1..=128 {
            let word = |i: u32| {
                0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835_u128.wrapping_mul(u128::from(2 * i + 1)) >> (128 - bits)
            };
            for count in [0, 1, 2, 7, 8, 33] {
                let mut bytes = vec![0; packed_bytes(count, bits)];
                let mut packer = Packer::new(&mut bytes);
                (0..count as u32).for_each(|i| packer.push(word(i), bits));
                packer.finish();
                let mut unpacker = Unpacker::new(&bytes);
                assert!((0..count as u32).all(|i| unpacker.pull(bits) == word(i)), "{bits} {count}");
                assert_eq!(bytes.len(), (count * bits as usize).div_ceil(8));
                if bits <= WIDEST {
                    let words: Vec<u64> = (0..count as u32).map(|i| word(i) as u64).collect();
                    let (mut again, mut back) = (vec![7; bytes.len()], vec![0; count]);
                    pack(&words, bits, &mut again);
                    unpack(&again, bits, &mut back);
                    assert!(again == bytes && back == words, "{bits} {count}");
                }
            }
        }
        assert_eq!(Unpacker::new(&[5]).pull(70), 5);
        let mut beyond = [1; 2];
        unpack(&[5], 56, &mut beyond);
        assert_eq!(beyond, [5, 0]);
    }
}
