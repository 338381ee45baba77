//! AES-128 kernels: counter mode into ring elements, plain permutations, and the Matyas-Meyer-Oseas hash of tree nodes.
//!
//! Three implementations with equal results: VAES on 512-bit vectors (32 blocks in flight), AES-NI (8 blocks), and the
//! `aes` crate. A tree node is a 128-bit word whose lowest bit is its control bit; hashes are of the node with that
//! bit cleared.

use aes::Block;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use zeroize::Zeroize;

/// [`Cipher::keystream`] replaces the elements.
pub const FILL: u8 = 0;
/// [`Cipher::keystream`] adds to the elements.
pub const ADD: u8 = 1;
/// [`Cipher::keystream`] subtracts from the elements.
pub const SUB: u8 = 2;
/// [`Cipher::keystream`] combines by exclusive or.
pub const XOR: u8 = 3;

/// An implementation of AES this machine is known to support. A value can only be had from the functions below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AesIsa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Crate,
    #[cfg(target_arch = "x86_64")]
    AesNi,
    #[cfg(target_arch = "x86_64")]
    Vaes,
}

impl AesIsa {
    /// The fastest implementation of this machine.
    pub fn best() -> AesIsa {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("aes") {
            if std::arch::is_x86_feature_detected!("vaes") && std::arch::is_x86_feature_detected!("avx512f") {
                return AesIsa(Level::Vaes);
            }
            return AesIsa(Level::AesNi);
        }
        AesIsa(Level::Crate)
    }

    /// All implementations of this machine, slowest first.
    pub fn available() -> Vec<AesIsa> {
        match AesIsa::best().0 {
            Level::Crate => vec![AesIsa(Level::Crate)],
            #[cfg(target_arch = "x86_64")]
            Level::AesNi => vec![AesIsa(Level::Crate), AesIsa(Level::AesNi)],
            #[cfg(target_arch = "x86_64")]
            Level::Vaes => vec![AesIsa(Level::Crate), AesIsa(Level::AesNi), AesIsa(Level::Vaes)],
        }
    }

    /// Name for reports: `aes-crate`, `aes-ni` or `vaes`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Crate => "aes-crate",
            #[cfg(target_arch = "x86_64")]
            Level::AesNi => "aes-ni",
            #[cfg(target_arch = "x86_64")]
            Level::Vaes => "vaes",
        }
    }
}

/// The 11 round keys. Wiped on drop.
#[cfg(target_arch = "x86_64")]
struct RoundKeys([u128; 11]);

#[cfg(target_arch = "x86_64")]
impl Drop for RoundKeys {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// AES-128 with an expanded key. Wiped on drop; it has no `Debug`.
pub struct Cipher(Engine);

enum Engine {
    Crate(aes::Aes128),
    #[cfg(target_arch = "x86_64")]
    AesNi(RoundKeys),
    #[cfg(target_arch = "x86_64")]
    Vaes(RoundKeys),
}

impl Cipher {
    /// Expands `key` for the implementation `isa`.
    pub fn new(isa: AesIsa, key: &[u8; 16]) -> Cipher {
        Cipher(match isa.0 {
            // SAFETY: an `AesIsa` of this level exists only where the processor reports AES.
            #[cfg(target_arch = "x86_64")]
            Level::Vaes => Engine::Vaes(unsafe { x86::expand_key(key) }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::AesNi => Engine::AesNi(unsafe { x86::expand_key(key) }),
            Level::Crate => Engine::Crate(aes::Aes128::new(key.into())),
        })
    }

    /// Combines the encryptions of the counter blocks `first`, `first + 1`, ... into `out`, two words per block, low
    /// half first. The low 64 bits of the counter do not wrap within `out`.
    pub fn keystream<const OP: u8>(&self, first: u128, out: &mut [u64]) {
        match &self.0 {
            Engine::Crate(aes) => {
                let mut blocks = [Block::default(); 32];
                let mut counter = first;
                for out in out.chunks_mut(64) {
                    let blocks = &mut blocks[..out.len().div_ceil(2)];
                    for block in blocks.iter_mut() {
                        *block = counter.to_le_bytes().into();
                        counter += 1;
                    }
                    aes.encrypt_blocks(blocks);
                    for (out, block) in out.chunks_mut(2).zip(blocks) {
                        combine::<OP>(out, word(block));
                    }
                }
                wipe(&mut blocks);
            }
            // SAFETY: the engine was made from an `AesIsa` that proves AES.
            #[cfg(target_arch = "x86_64")]
            Engine::AesNi(keys) => unsafe { x86::keystream_aesni::<OP>(keys, first, out) },
            // SAFETY: the engine was made from an `AesIsa` that proves AVX-512 F, VAES and AES.
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes(keys) => unsafe { x86::keystream_vaes::<OP>(keys, first, out) },
        }
    }

    /// Sets `out` to the hashes of `nodes`: `AES(x) ^ x` with `x` the node without its control bit.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn hash(&self, nodes: &[u128], out: &mut [u128]) {
        assert_eq!(nodes.len(), out.len(), "one hash per node");
        match &self.0 {
            Engine::Crate(aes) => {
                let mut blocks = [Block::default(); 32];
                for (nodes, out) in nodes.chunks(32).zip(out.chunks_mut(32)) {
                    let blocks = &mut blocks[..nodes.len()];
                    for (block, node) in blocks.iter_mut().zip(nodes) {
                        *block = (node & !1).to_le_bytes().into();
                    }
                    aes.encrypt_blocks(blocks);
                    for ((out, block), node) in out.iter_mut().zip(blocks).zip(nodes) {
                        *out = word(block) ^ (node & !1);
                    }
                }
                wipe(&mut blocks);
            }
            // SAFETY: the engine was made from an `AesIsa` that proves AES; the lengths are equal.
            #[cfg(target_arch = "x86_64")]
            Engine::AesNi(keys) => unsafe { x86::hash_aesni(keys, nodes, out) },
            // SAFETY: the engine was made from an `AesIsa` that proves AVX-512 F, VAES and AES; the lengths are equal.
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes(keys) => unsafe { x86::hash_vaes(keys, nodes, out) },
        }
    }

    /// Replaces every block by its encryption: with a key that everybody knows, a permutation.
    pub fn permute(&self, blocks: &mut [u128]) {
        match &self.0 {
            Engine::Crate(aes) => {
                let mut some = [Block::default(); 32];
                for blocks in blocks.chunks_mut(32) {
                    let some = &mut some[..blocks.len()];
                    some.iter_mut().zip(&*blocks).for_each(|(to, from)| *to = from.to_le_bytes().into());
                    aes.encrypt_blocks(some);
                    blocks.iter_mut().zip(some).for_each(|(to, from)| *to = word(from));
                }
                wipe(&mut some);
            }
            // SAFETY: the engine was made from an `AesIsa` that proves AES.
            #[cfg(target_arch = "x86_64")]
            Engine::AesNi(keys) => unsafe { x86::permute_aesni(keys, blocks) },
            // SAFETY: the engine was made from an `AesIsa` that proves AVX-512 F, VAES and AES.
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes(keys) => unsafe { x86::permute_vaes(keys, blocks) },
        }
    }

    /// One tree level: child 2i of node i is its hash under `left`, child 2i + 1 its hash under `right`, each combined
    /// with its `correction` where the control bit of the node is set.
    ///
    /// # Panics
    /// When `out` is not twice as long as `nodes`.
    pub fn expand_level(left: &Cipher, right: &Cipher, nodes: &[u128], correction: [u128; 2], out: &mut [u128]) {
        assert_eq!(Some(out.len()), nodes.len().checked_mul(2), "two children per node");
        #[cfg(target_arch = "x86_64")]
        if let (Engine::Vaes(left), Engine::Vaes(right)) = (&left.0, &right.0) {
            // SAFETY: the engines were made from an `AesIsa` that proves AVX-512 F, VAES and AES; `out` has two
            // elements per node.
            return unsafe { x86::expand_level_vaes(left, right, nodes, correction, out) };
        }
        let mut hashes = [[0u128; 32]; 2];
        for (nodes, out) in nodes.chunks(32).zip(out.chunks_mut(64)) {
            left.hash(nodes, &mut hashes[0][..nodes.len()]);
            right.hash(nodes, &mut hashes[1][..nodes.len()]);
            for (i, (node, out)) in nodes.iter().zip(out.chunks_exact_mut(2)).enumerate() {
                let control = 0u128.wrapping_sub(node & 1);
                out[0] = hashes[0][i] ^ (control & correction[0]);
                out[1] = hashes[1][i] ^ (control & correction[1]);
            }
        }
        hashes.as_flattened_mut().zeroize();
    }
}

/// Wipes blocks that were worked on.
fn wipe(blocks: &mut [Block]) {
    blocks.iter_mut().for_each(|block| block.as_mut_slice().zeroize());
}

fn word(block: &Block) -> u128 {
    u128::from_le_bytes((*block).into())
}

/// Combines the two halves of `stream` into one or two elements.
fn combine<const OP: u8>(out: &mut [u64], stream: u128) {
    for (out, s) in out.iter_mut().zip([stream as u64, (stream >> 64) as u64]) {
        *out = match OP {
            FILL => s,
            ADD => out.wrapping_add(s),
            SUB => out.wrapping_sub(s),
            _ => *out ^ s,
        };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ADD, FILL, RoundKeys, SUB, combine};

    /// One step of the key schedule (FIPS 197, section 5.2) with round constant `RC`.
    #[target_feature(enable = "aes,sse2")]
    fn next_round_key<const RC: i32>(key: __m128i) -> __m128i {
        let t = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<RC>(key));
        let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
        let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
        let key = _mm_xor_si128(key, _mm_slli_si128::<4>(key));
        _mm_xor_si128(key, t)
    }

    #[target_feature(enable = "aes,sse2")]
    pub(super) fn expand_key(key: &[u8; 16]) -> RoundKeys {
        let k0 = to_vector(u128::from_le_bytes(*key));
        let k1 = next_round_key::<0x01>(k0);
        let k2 = next_round_key::<0x02>(k1);
        let k3 = next_round_key::<0x04>(k2);
        let k4 = next_round_key::<0x08>(k3);
        let k5 = next_round_key::<0x10>(k4);
        let k6 = next_round_key::<0x20>(k5);
        let k7 = next_round_key::<0x40>(k6);
        let k8 = next_round_key::<0x80>(k7);
        let k9 = next_round_key::<0x1b>(k8);
        let k10 = next_round_key::<0x36>(k9);
        RoundKeys([k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10].map(|k| from_vector(k)))
    }

    #[target_feature(enable = "sse2")]
    fn to_vector(x: u128) -> __m128i {
        _mm_set_epi64x((x >> 64) as i64, x as i64)
    }

    #[target_feature(enable = "sse2")]
    fn from_vector(x: __m128i) -> u128 {
        let (low, high) = (_mm_cvtsi128_si64(x), _mm_cvtsi128_si64(_mm_unpackhi_epi64(x, x)));
        u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
    }

    /// Encrypts eight blocks.
    #[inline]
    #[target_feature(enable = "aes,sse2")]
    fn encrypt8(keys: &RoundKeys, mut blocks: [__m128i; 8]) -> [__m128i; 8] {
        let first = to_vector(keys.0[0]);
        for b in &mut blocks {
            *b = _mm_xor_si128(*b, first);
        }
        for key in &keys.0[1..10] {
            let key = to_vector(*key);
            for b in &mut blocks {
                *b = _mm_aesenc_si128(*b, key);
            }
        }
        let last = to_vector(keys.0[10]);
        for b in &mut blocks {
            *b = _mm_aesenclast_si128(*b, last);
        }
        blocks
    }

    #[target_feature(enable = "aes,sse2")]
    pub(super) fn keystream_aesni<const OP: u8>(keys: &RoundKeys, first: u128, out: &mut [u64]) {
        let mut counter = to_vector(first);
        let one = _mm_set_epi64x(0, 1);
        for out in out.chunks_mut(16) {
            let mut blocks = [counter; 8];
            for b in &mut blocks {
                *b = counter;
                counter = _mm_add_epi64(counter, one);
            }
            let blocks = encrypt8(keys, blocks);
            for (out, b) in out.chunks_mut(2).zip(blocks) {
                combine::<OP>(out, from_vector(b));
            }
        }
    }

    #[target_feature(enable = "aes,sse2")]
    pub(super) fn hash_aesni(keys: &RoundKeys, nodes: &[u128], out: &mut [u128]) {
        for (nodes, out) in nodes.chunks(8).zip(out.chunks_mut(8)) {
            let mut inputs = [_mm_setzero_si128(); 8];
            for (input, node) in inputs.iter_mut().zip(nodes) {
                *input = to_vector(node & !1);
            }
            let blocks = encrypt8(keys, inputs);
            for ((out, b), input) in out.iter_mut().zip(blocks).zip(inputs) {
                *out = from_vector(_mm_xor_si128(b, input));
            }
        }
    }

    #[target_feature(enable = "aes,sse2")]
    pub(super) fn permute_aesni(keys: &RoundKeys, blocks: &mut [u128]) {
        for blocks in blocks.chunks_mut(8) {
            let mut inputs = [_mm_setzero_si128(); 8];
            for (input, block) in inputs.iter_mut().zip(&*blocks) {
                *input = to_vector(*block);
            }
            for (block, b) in blocks.iter_mut().zip(encrypt8(keys, inputs)) {
                *block = from_vector(b);
            }
        }
    }

    /// The round keys, each in all four 128-bit lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn wide(keys: &RoundKeys) -> [__m512i; 11] {
        let mut all = [_mm512_setzero_si512(); 11];
        for (wide, key) in all.iter_mut().zip(keys.0) {
            *wide = lanes(key);
        }
        all
    }

    /// `x` in all four 128-bit lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn lanes(x: u128) -> __m512i {
        _mm512_broadcast_i32x4(to_vector(x))
    }

    /// The mask of the first `n` of eight 64-bit lanes.
    #[inline]
    fn first_lanes(n: usize) -> __mmask8 {
        if n >= 8 { 0xff } else { (1 << n) - 1 }
    }

    /// # Safety
    /// The processor has AVX-512 F and VAES.
    #[target_feature(enable = "avx512f,vaes,aes")]
    pub(super) unsafe fn keystream_vaes<const OP: u8>(keys: &RoundKeys, first: u128, out: &mut [u64]) {
        let keys = wide(keys);
        let step = _mm512_set_epi64(0, 4, 0, 4, 0, 4, 0, 4);
        let mut counter = _mm512_add_epi64(lanes(first), _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0));
        for out in out.chunks_mut(64) {
            let mut blocks = [counter; 8];
            for b in &mut blocks {
                *b = _mm512_xor_si512(counter, keys[0]);
                counter = _mm512_add_epi64(counter, step);
            }
            for key in &keys[1..10] {
                for b in &mut blocks {
                    *b = _mm512_aesenc_epi128(*b, *key);
                }
            }
            for b in &mut blocks {
                *b = _mm512_aesenclast_epi128(*b, keys[10]);
            }
            let whole = out.len() == 64;
            for (v, b) in blocks.into_iter().enumerate() {
                let mask = if whole { 0xff } else { first_lanes(out.len().saturating_sub(8 * v)) };
                let p = out.as_mut_ptr().wrapping_add(8 * v).cast::<i64>();
                // SAFETY: the mask keeps to the elements of `out`; masked-out lanes are not accessed.
                unsafe {
                    let b = match OP {
                        FILL => b,
                        ADD => _mm512_add_epi64(_mm512_maskz_loadu_epi64(mask, p), b),
                        SUB => _mm512_sub_epi64(_mm512_maskz_loadu_epi64(mask, p), b),
                        _ => _mm512_xor_si512(_mm512_maskz_loadu_epi64(mask, p), b),
                    };
                    if whole { _mm512_storeu_si512(p.cast(), b) } else { _mm512_mask_storeu_epi64(p, mask, b) }
                }
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512 F and VAES.
    #[target_feature(enable = "avx512f,vaes,aes")]
    pub(super) unsafe fn permute_vaes(keys: &RoundKeys, blocks: &mut [u128]) {
        let keys = wide(keys);
        for blocks in blocks.chunks_mut(32) {
            let mut vectors = [keys[0]; 8];
            for (v, x) in vectors.iter_mut().enumerate() {
                let mask = first_lanes(2 * blocks.len().saturating_sub(4 * v));
                // SAFETY: the mask keeps to the elements of `blocks`; masked-out lanes are not accessed.
                let block = unsafe { _mm512_maskz_loadu_epi64(mask, blocks.as_ptr().wrapping_add(4 * v).cast()) };
                *x = _mm512_xor_si512(*x, block);
            }
            for key in &keys[1..10] {
                for x in &mut vectors {
                    *x = _mm512_aesenc_epi128(*x, *key);
                }
            }
            for (v, x) in vectors.into_iter().enumerate() {
                let mask = first_lanes(2 * blocks.len().saturating_sub(4 * v));
                let x = _mm512_aesenclast_epi128(x, keys[10]);
                // SAFETY: the mask keeps to the elements of `blocks`.
                unsafe { _mm512_mask_storeu_epi64(blocks.as_mut_ptr().wrapping_add(4 * v).cast(), mask, x) };
            }
        }
    }

    /// Four vectors of nodes without their control bits, and the nodes themselves; missing nodes are zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load16(nodes: &[u128]) -> ([__m512i; 4], [__m512i; 4]) {
        let control = lanes(1);
        let (mut seeds, mut all) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for v in 0..4 {
            let mask = first_lanes(2 * nodes.len().saturating_sub(4 * v));
            // SAFETY: the mask keeps to the elements of `nodes`; masked-out lanes are not accessed.
            all[v] = unsafe { _mm512_maskz_loadu_epi64(mask, nodes.as_ptr().wrapping_add(4 * v).cast()) };
            seeds[v] = _mm512_andnot_si512(control, all[v]);
        }
        (seeds, all)
    }

    /// The hashes of four vectors of seeds.
    #[inline]
    #[target_feature(enable = "avx512f,vaes,aes")]
    fn hash16(keys: &[__m512i; 11], seeds: [__m512i; 4]) -> [__m512i; 4] {
        let mut x = seeds;
        for x in &mut x {
            *x = _mm512_xor_si512(*x, keys[0]);
        }
        for key in &keys[1..10] {
            for x in &mut x {
                *x = _mm512_aesenc_epi128(*x, *key);
            }
        }
        for (x, seed) in x.iter_mut().zip(seeds) {
            *x = _mm512_xor_si512(_mm512_aesenclast_epi128(*x, keys[10]), seed);
        }
        x
    }

    /// # Safety
    /// The processor has AVX-512 F and VAES; `nodes` and `out` have one length.
    #[target_feature(enable = "avx512f,vaes,aes")]
    pub(super) unsafe fn hash_vaes(keys: &RoundKeys, nodes: &[u128], out: &mut [u128]) {
        let keys = wide(keys);
        for (nodes, out) in nodes.chunks(16).zip(out.chunks_mut(16)) {
            let hashes = hash16(&keys, load16(nodes).0);
            for (v, h) in hashes.into_iter().enumerate() {
                let mask = first_lanes(2 * out.len().saturating_sub(4 * v));
                // SAFETY: the mask keeps to the elements of `out`.
                unsafe { _mm512_mask_storeu_epi64(out.as_mut_ptr().wrapping_add(4 * v).cast(), mask, h) };
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512 F and VAES; `out` is twice as long as `nodes`.
    #[target_feature(enable = "avx512f,vaes,aes")]
    pub(super) unsafe fn expand_level_vaes(
        left: &RoundKeys,
        right: &RoundKeys,
        nodes: &[u128],
        correction: [u128; 2],
        out: &mut [u128],
    ) {
        let (left, right) = (wide(left), wide(right));
        let correction = correction.map(|c| lanes(c));
        let one = _mm512_set1_epi32(1);
        let low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
        let high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
        for (nodes, out) in nodes.chunks(16).zip(out.chunks_mut(32)) {
            let (seeds, all) = load16(nodes);
            let (l, r) = (hash16(&left, seeds), hash16(&right, seeds));
            for v in 0..4 {
                // The control bit in all 32-bit lanes of its node, then spread to a mask.
                let bit = _mm512_and_si512(_mm512_shuffle_epi32::<0>(all[v]), one);
                let control = _mm512_sub_epi32(_mm512_setzero_si512(), bit);
                let l = _mm512_xor_si512(l[v], _mm512_and_si512(control, correction[0]));
                let r = _mm512_xor_si512(r[v], _mm512_and_si512(control, correction[1]));
                for (half, order) in [low, high].into_iter().enumerate() {
                    let at = 8 * v + 4 * half;
                    let mask = first_lanes(2 * out.len().saturating_sub(at));
                    let children = _mm512_permutex2var_epi64(l, order, r);
                    // SAFETY: the mask keeps to the elements of `out`.
                    unsafe { _mm512_mask_storeu_epi64(out.as_mut_ptr().wrapping_add(at).cast(), mask, children) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: usize) -> Vec<u128> {
        (1..=n as u128).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) ^ (i >> 1)).collect()
    }

    #[test]
    fn tree_kernels_equal_their_definition_at_every_length() {
        let keys = [[3u8; 16], [9u8; 16]];
        let crates = keys.map(|k| aes::Aes128::new(&k.into()));
        let hash = |which: usize, node: u128| {
            let mut block = Block::from((node & !1).to_le_bytes());
            crates[which].encrypt_block(&mut block);
            word(&block) ^ (node & !1)
        };
        let correction = [0x1234_5678_9abc_def0_0fed_cba9_8765_4321, u128::MAX - 12];
        for isa in AesIsa::available() {
            let ciphers = keys.map(|k| Cipher::new(isa, &k));
            for n in 0..70 {
                let nodes = nodes(n);
                let mut permuted = nodes.clone();
                ciphers[0].permute(&mut permuted);
                for (node, found) in nodes.iter().zip(permuted) {
                    let mut block = Block::from(node.to_le_bytes());
                    crates[0].encrypt_block(&mut block);
                    assert!(found == word(&block), "permute {} {n}", isa.name());
                }
                let mut out = vec![0; n];
                ciphers[0].hash(&nodes, &mut out);
                assert!(nodes.iter().zip(&out).all(|(x, h)| *h == hash(0, *x)), "hash {} {n}", isa.name());
                let mut out = vec![0; 2 * n];
                Cipher::expand_level(&ciphers[0], &ciphers[1], &nodes, correction, &mut out);
                for (i, child) in out.iter().enumerate() {
                    let node = nodes[i / 2];
                    let fix = if node & 1 == 1 { correction[i % 2] } else { 0 };
                    assert!(*child == hash(i % 2, node) ^ fix, "expand {} {n} {i}", isa.name());
                }
            }
        }
    }
}
