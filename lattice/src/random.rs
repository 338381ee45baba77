//! Random polynomials from seeds: AES-128 in counter mode.
//!
//! One seed serves one call; what a call draws for different purposes stands in different halves of the counter. Small
//! numbers, of secrets and errors, are words in two's complement.

use ombra_kernels::aes::{AesIsa, Cipher, FILL};
use ombra_kernels::each_isa;

/// Standard deviation of errors: a centred binomial variable of 2·21 bits has variance 21/2.
pub const ERROR_DEVIATION: f64 = 3.240_370_349_203_93;
/// Largest error.
pub const ERROR_BOUND: u64 = 21;

/// What private randomness is for: no two functions draw the same words of one seed.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// Rows of a product with encrypted weights.
    Product,
    /// The client's secret for tiles.
    TileKey,
    /// Errors of the public key for tiles.
    TilePublicKey,
    /// Errors of the client's tiles.
    Tile,
    /// What randomises answers in tiles.
    TileAnswer,
    /// The client's secret for slots.
    SlotKey,
    /// Errors of the public key for slots.
    SlotPublicKey,
    /// Errors of the client's ciphertexts in slots.
    Slots,
    /// What randomises answers in slots.
    SlotAnswer,
}

/// A seed of private randomness. One serves one call, which takes it: two calls with equal randomness would tell a
/// difference of what it hides. Made of fresh bytes, never twice of the same ones; wiped, and without `Debug`.
pub struct Seed(zeroize::Zeroizing<[u8; 16]>);

impl Seed {
    /// The seed of these bytes.
    pub fn new(bytes: [u8; 16]) -> Seed {
        Seed(zeroize::Zeroizing::new(bytes))
    }

    /// One of its streams, of fewer than 2^56.
    pub(crate) fn stream(&self, of: Use, index: u64) -> Stream {
        Stream::new(&self.0, (of as u64 + 1) << 56 | index)
    }
}

/// A stream of random words.
pub struct Stream {
    cipher: Cipher,
    next: u128,
}

impl Stream {
    /// The stream of `seed` for one purpose. The same two give the same words.
    pub fn new(seed: &[u8; 16], purpose: u64) -> Stream {
        Stream { cipher: Cipher::new(AesIsa::best(), seed), next: u128::from(purpose) << 64 }
    }

    /// Goes to a place of the stream, counted in blocks of two words.
    pub fn seek(&mut self, block: u64) {
        self.next = self.next >> 64 << 64 | u128::from(block);
    }

    /// The next words, uniform mod 2^64. An odd one at the end takes a whole block.
    pub fn words(&mut self, out: &mut [u64]) {
        self.cipher.keystream::<FILL>(self.next, out);
        self.next += out.len().div_ceil(2) as u128;
    }

    /// Numbers uniform below `p`, by rejection. How many words that takes says nothing of the numbers that are kept.
    pub fn uniform(&mut self, p: u64, out: &mut [u64]) {
        let mask = u64::MAX >> (p - 1).leading_zeros();
        let mut from = 0;
        while from < out.len() {
            let fresh = &mut out[from..];
            self.words(fresh);
            let mut above = 0;
            cut(mask, p, fresh, &mut above);
            // Primes just below a power of two hardly ever have one.
            if above == 0 {
                return;
            }
            let mut kept = from;
            for i in from..out.len() {
                if out[i] < p {
                    out[kept] = out[i];
                    kept += 1;
                }
            }
            from = kept;
        }
    }

    /// Errors: differences of two sums of 21 bits each.
    pub fn errors(&mut self, out: &mut [u64]) {
        self.words(out);
        binomial(out);
    }

    /// Uniform numbers of -1, 0 and 1, with a bias below 2^-61.
    pub fn ternary(&mut self, out: &mut [u64]) {
        self.words(out);
        thirds(out);
    }
}

each_isa! {
    /// Cuts words to the bits of `mask` and counts those that are not below `p`.
    fn cut(mask: u64, p: u64, words: &mut [u64], above: &mut u64) {
        let mut count = 0;
        for word in words.iter_mut() {
            *word &= mask;
            count += u64::from(*word >= p);
        }
        *above = count;
    }

    fn binomial(words: &mut [u64]) {
        const BITS: u64 = (1 << 21) - 1;
        for word in words.iter_mut() {
            let (plus, minus) = ((*word & BITS).count_ones(), (*word >> 21 & BITS).count_ones());
            *word = u64::from(plus).wrapping_sub(u64::from(minus));
        }
    }

    fn thirds(words: &mut [u64]) {
        for word in words.iter_mut() {
            // ⌊3 w / 2^62⌋ for the upper 62 bits.
            let w = *word >> 2;
            *word = ((w + w + w) >> 62).wrapping_sub(1);
        }
    }
}

/// Overwrites words that nobody may find later.
pub(crate) fn wipe(words: &mut [u64]) {
    words.fill(0);
    zeroize::optimization_barrier(words);
}

/// The same for wide words.
pub(crate) fn wipe_wide(words: &mut [u128]) {
    words.fill(0);
    zeroize::optimization_barrier(words);
}

/// Words that are wiped when they are dropped. They have no `Debug`.
pub(crate) struct Secret(pub(crate) Vec<u64>);

impl Secret {
    /// `n` zeros.
    pub(crate) fn zeros(n: usize) -> Secret {
        Secret(vec![0; n])
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::ops::Deref for Secret {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl std::ops::DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

/// What tests of views share.
#[cfg(test)]
pub(crate) mod views {
    use super::Stream;

    /// Beyond this, sixteen cells are not filled evenly: 15 degrees of freedom, chance 2^-40.
    pub(crate) const UNEVEN: f64 = 96.0;

    /// Uniform words mod 2^bits.
    pub(crate) fn random(n: usize, bits: u32, seed: u8) -> Vec<u64> {
        let mut words = vec![0; n];
        Stream::new(&[seed; 16], 0).words(&mut words);
        words.iter().map(|w| w >> (64 - bits)).collect()
    }

    /// Sum of (found - expected)²/expected over sixteen equal parts of the words below `modulus`.
    pub(crate) fn chi_square(words: impl Iterator<Item = u64>, modulus: u64) -> f64 {
        let mut cells = [0f64; 16];
        words.for_each(|w| cells[(u128::from(w) * 16 / u128::from(modulus)) as usize] += 1.0);
        let expected = cells.iter().sum::<f64>() / 16.0;
        cells.iter().map(|c| (c - expected).powi(2) / expected).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_moments_and_ranges() {
        let n = 1 << 16;
        let mut stream = Stream::new(&[5; 16], 1);
        let mut words = vec![0; n];
        let moments = |words: &[u64]| {
            let of = |k: i32| words.iter().map(|w| (w.cast_signed() as f64).powi(k)).sum::<f64>() / n as f64;
            (of(1), of(2))
        };
        stream.errors(&mut words);
        let (mean, square) = moments(&words);
        assert!(mean.abs() < 0.06 && (square - ERROR_DEVIATION * ERROR_DEVIATION).abs() < 0.3, "{mean} {square}");
        assert!(words.iter().all(|w| w.cast_signed().unsigned_abs() <= ERROR_BOUND));
        stream.ternary(&mut words);
        let (mean, square) = moments(&words);
        assert!(mean.abs() < 0.015 && (square - 2.0 / 3.0).abs() < 0.01, "{mean} {square}");
        assert!(words.iter().all(|w| (-1..=1).contains(&w.cast_signed())));
        let p = 1000;
        stream.uniform(p, &mut words);
        let mut counts = vec![0f64; p as usize];
        words.iter().for_each(|w| counts[*w as usize] += 1.0);
        let expected = n as f64 / p as f64;
        let chi: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
        // 999 degrees of freedom: seven deviations of √1998.
        assert!((chi - 999.0).abs() < 313.0, "{chi}");
    }

    #[test]
    fn a_stream_is_its_seed_and_its_purpose() {
        let draw = |seed: u8, purpose: u64, block: u64| {
            let mut out = [0; 4];
            let mut stream = Stream::new(&[seed; 16], purpose);
            stream.seek(block);
            stream.words(&mut out);
            out
        };
        let base = draw(1, 1, 0);
        assert!(base == draw(1, 1, 0) && base != draw(2, 1, 0) && base != draw(1, 2, 0));
        assert!(draw(1, 1, 1)[..2] == base[2..]);
        let (mut all, mut parts) = ([0; 6], [0; 6]);
        Stream::new(&[9; 16], 3).words(&mut all);
        let mut stream = Stream::new(&[9; 16], 3);
        stream.words(&mut parts[..2]);
        stream.words(&mut parts[2..]);
        assert!(all == parts);
    }
}
