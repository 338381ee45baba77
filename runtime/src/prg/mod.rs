//! Pseudorandom generation from 16-byte keys: AES-128 in counter mode, addressed by labels.
//!
//! Parties that hold the same key and use the same labels draw the same elements without a message. A counter block
//! is the label in its upper 96 bits and the block count in its lower 32 bits, so two labels never share a block.

use ombra_ir::{Diagnostic, Result};
pub use ombra_kernels::aes::AesIsa;
pub(crate) use ombra_kernels::aes::Cipher;
use ombra_kernels::aes::{ADD, FILL, SUB, XOR};
use zeroize::Zeroize;

/// Elements under one label: 2^32 blocks of two words.
pub const LABEL_WORDS: u64 = 1 << 33;

/// A 16-byte generator key. Wiped on drop.
pub struct Key([u8; 16]);

impl Key {
    /// A key from the operating system's generator. E0907 when that fails.
    pub fn random() -> Result<Key> {
        let mut key = Key([0; 16]);
        getrandom::fill(&mut key.0).map_err(|e| {
            Diagnostic::internal("E0907", "the operating system gave no randomness for a key").note(e.to_string())
        })?;
        Ok(key)
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Key {
        Key(bytes)
    }

    /// The bytes of the key, to send it to the party that shares it.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The place of a draw in the run: the upper 96 bits of the counter blocks. One label is used once per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// Op of the plan.
    pub op: u32,
    /// Decode step or epoch.
    pub step: u32,
    /// What the elements are for, as numbered by the protocol.
    pub purpose: u16,
    /// Part of the op: chunk, party or tensor.
    pub part: u16,
}

impl Label {
    /// The first counter block of the label.
    pub(crate) fn first_block(self) -> u128 {
        u128::from(self.op) << 96
            | u128::from(self.step) << 64
            | u128::from(self.purpose) << 48
            | u128::from(self.part) << 32
    }
}

/// An expanded key, ready to draw ring elements. Wiped on drop.
pub struct Prg(Cipher);

impl Prg {
    /// The generator of `key`.
    pub fn new(key: &Key) -> Prg {
        Prg::new_at(AesIsa::best(), key)
    }

    /// The generator of `key` with a given implementation of AES; all draw the same elements.
    pub fn new_at(isa: AesIsa, key: &Key) -> Prg {
        Prg(Cipher::new(isa, &key.0))
    }

    /// Sets `out` to the first elements of `label`.
    ///
    /// # Panics
    /// When `out` has more than [`LABEL_WORDS`] elements.
    pub fn fill_u64(&self, label: Label, out: &mut [u64]) {
        self.apply::<FILL>(label, 0, out);
    }

    /// Sets `out` to the elements of `label` from `word_offset` on.
    ///
    /// # Panics
    /// When the range reaches beyond [`LABEL_WORDS`].
    pub fn fill_u64_at(&self, label: Label, word_offset: u64, out: &mut [u64]) {
        self.apply::<FILL>(label, word_offset, out);
    }

    /// Adds the first elements of `label` to `out`.
    ///
    /// # Panics
    /// When `out` has more than [`LABEL_WORDS`] elements.
    pub fn add_assign_u64(&self, label: Label, out: &mut [u64]) {
        self.apply::<ADD>(label, 0, out);
    }

    /// Subtracts the first elements of `label` from `out`.
    ///
    /// # Panics
    /// When `out` has more than [`LABEL_WORDS`] elements.
    pub fn sub_assign_u64(&self, label: Label, out: &mut [u64]) {
        self.apply::<SUB>(label, 0, out);
    }

    /// Subtracts the elements of `label` from `word_offset` on from `out`.
    ///
    /// # Panics
    /// When the range reaches beyond [`LABEL_WORDS`].
    pub fn sub_assign_u64_at(&self, label: Label, word_offset: u64, out: &mut [u64]) {
        self.apply::<SUB>(label, word_offset, out);
    }

    /// Combines the first words of `label` into `out` by exclusive or.
    ///
    /// # Panics
    /// When `out` has more than [`LABEL_WORDS`] elements.
    pub fn xor_assign_u64(&self, label: Label, out: &mut [u64]) {
        self.apply::<XOR>(label, 0, out);
    }

    fn apply<const OP: u8>(&self, label: Label, offset: u64, out: &mut [u64]) {
        let end = u64::try_from(out.len()).ok().and_then(|n| offset.checked_add(n));
        assert!(end.is_some_and(|end| end <= LABEL_WORDS), "a label has 2^33 elements at most");
        let first = label.first_block() + u128::from(offset / 2);
        match out {
            [head, rest @ ..] if offset % 2 == 1 => {
                let mut block = [0, *head];
                self.0.keystream::<OP>(first, &mut block);
                *head = block[1];
                self.0.keystream::<OP>(first + 1, rest);
            }
            out => self.0.keystream::<OP>(first, out),
        }
    }
}

/// The labels drawn so far under one key: in debug builds it catches a label that is used twice, which would make two
/// masks equal. In release builds it is empty and does nothing.
#[derive(Default)]
pub struct UsedLabels {
    #[cfg(debug_assertions)]
    seen: std::collections::HashSet<Label>,
}

impl UsedLabels {
    /// No label used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks `label` as used.
    ///
    /// # Panics
    /// In debug builds, when it was used before.
    pub fn claim(&mut self, label: Label) {
        #[cfg(debug_assertions)]
        assert!(self.seen.insert(label), "label {label:?} is used twice under one key");
        #[cfg(not(debug_assertions))]
        let _ = label;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { op: 0xffff_fffe, step: 3, purpose: 0xfff1, part: 0x8005 };

    fn key(seed: u8) -> Key {
        Key::from_bytes(std::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add(i as u8 * 7)))
    }

    /// Words of a label by the `aes` crate, one block at a time.
    fn expected(key: &Key, label: Label, offset: u64, n: usize) -> Vec<u64> {
        use ::aes::cipher::{BlockCipherEncrypt, KeyInit};
        let cipher = ::aes::Aes128::new(key.bytes().into());
        (offset..offset + n as u64)
            .map(|w| {
                let mut input = [0u8; 16];
                input[..4].copy_from_slice(&((w / 2) as u32).to_le_bytes());
                input[4..6].copy_from_slice(&label.part.to_le_bytes());
                input[6..8].copy_from_slice(&label.purpose.to_le_bytes());
                input[8..12].copy_from_slice(&label.step.to_le_bytes());
                input[12..].copy_from_slice(&label.op.to_le_bytes());
                let mut block = ::aes::Block::from(input);
                cipher.encrypt_block(&mut block);
                let half: [u8; 8] = std::array::from_fn(|i| block[8 * (w % 2) as usize + i]);
                u64::from_le_bytes(half)
            })
            .collect()
    }

    #[test]
    fn every_implementation_equals_the_aes_crate_at_every_length() {
        let key = key(1);
        let all = expected(&key, LABEL, 0, 700);
        for isa in AesIsa::available() {
            let prg = Prg::new_at(isa, &key);
            for n in (0..150).chain([255, 256, 257, 511, 699, 700]) {
                let mut out = vec![0x55; n + 1];
                prg.fill_u64(LABEL, &mut out[..n]);
                assert!(out[..n] == all[..n] && out[n] == 0x55, "{} {n}", isa.name());
            }
        }
    }

    #[test]
    fn combining_forms_equal_fill_then_combine() {
        let key = key(2);
        for isa in AesIsa::available() {
            let prg = Prg::new_at(isa, &key);
            for n in [0, 1, 2, 15, 16, 17, 63, 64, 65, 200] {
                let stream = expected(&key, LABEL, 0, n);
                let start: Vec<u64> = (0..n as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
                let combine = |f: fn(u64, u64) -> u64| -> Vec<u64> {
                    start.iter().zip(&stream).map(|(x, s)| f(*x, *s)).collect()
                };
                let mut out = start.clone();
                prg.add_assign_u64(LABEL, &mut out);
                assert!(out == combine(u64::wrapping_add), "add {} {n}", isa.name());
                let mut out = start.clone();
                prg.sub_assign_u64(LABEL, &mut out);
                assert!(out == combine(u64::wrapping_sub), "sub {} {n}", isa.name());
                let mut out = start.clone();
                prg.xor_assign_u64(LABEL, &mut out);
                assert!(out == combine(|x, s| x ^ s), "xor {} {n}", isa.name());
            }
        }
    }

    #[test]
    fn any_range_of_a_label_can_be_drawn_up_to_its_end() {
        let key = key(3);
        for isa in AesIsa::available() {
            let prg = Prg::new_at(isa, &key);
            for (offset, n) in [(0, 9), (1, 1), (1, 0), (1, 70), (2, 3), (77, 130), (LABEL_WORDS - 37, 37)] {
                let mut out = vec![0; n];
                prg.fill_u64_at(LABEL, offset, &mut out);
                assert!(out == expected(&key, LABEL, offset, n), "{} {offset} {n}", isa.name());
                prg.sub_assign_u64_at(LABEL, offset, &mut out);
                assert!(out.iter().all(|word| *word == 0), "{} {offset} {n}", isa.name());
            }
            let beyond = std::panic::catch_unwind(|| prg.fill_u64_at(LABEL, LABEL_WORDS - 1, &mut [0; 2]));
            assert!(beyond.is_err());
        }
    }

    #[test]
    fn nist_sp_800_38a_vector() {
        // F.1.1 ECB-AES128: the counter block is a plaintext block of the vector.
        let key = Key::from_bytes(0x2b7e151628aed2a6abf7158809cf4f3c_u128.to_be_bytes());
        for (plain, cipher) in [
            (0x6bc1bee22e409f96e93d7e117393172a_u128, 0x3ad77bb40d7a3660a89ecaf32466ef97_u128),
            (0xae2d8a571e03ac9c9eb76fac45af8e51, 0xf5d3d58503b9699de785895a96fdbaaf),
        ] {
            let input = u128::from_le_bytes(plain.to_be_bytes());
            let label = Label {
                op: (input >> 96) as u32,
                step: (input >> 64) as u32,
                purpose: (input >> 48) as u16,
                part: (input >> 32) as u16,
            };
            let want = u128::from_le_bytes(cipher.to_be_bytes());
            for isa in AesIsa::available() {
                let mut out = [0; 2];
                Prg::new_at(isa, &key).fill_u64_at(label, 2 * u64::from(input as u32), &mut out);
                assert!(out == [want as u64, (want >> 64) as u64], "{}", isa.name());
            }
        }
    }

    #[test]
    fn labels_and_keys_give_different_elements() {
        let draw = |key: &Key, label: Label| {
            let mut out = [0; 4];
            Prg::new(key).fill_u64(label, &mut out);
            out
        };
        let base = draw(&key(1), LABEL);
        assert!(base == draw(&key(1), LABEL));
        assert!(base != draw(&key(2), LABEL));
        for other in [
            Label { op: 1, ..LABEL },
            Label { step: 1, ..LABEL },
            Label { purpose: 1, ..LABEL },
            Label { part: 1, ..LABEL },
        ] {
            assert!(base != draw(&key(1), other));
        }
        let (a, b) = (Key::random().expect("has randomness"), Key::random().expect("has randomness"));
        assert!(a.bytes() != b.bytes());
    }

    #[test]
    #[cfg(debug_assertions)]
    fn a_label_used_twice_is_caught() {
        let mut used = UsedLabels::new();
        used.claim(LABEL);
        used.claim(Label { part: 1, ..LABEL });
        assert!(std::panic::catch_unwind(move || used.claim(LABEL)).is_err());
    }
}
