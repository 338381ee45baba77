//! Distributed point functions: two short keys that expand to additive shares of a unit vector.
//!
//! Boyle, Gilboa and Ishai, "Function Secret Sharing: Improvements and Extensions" (2016), figure 1 and section 3.2.1
//! (early termination): a leaf yields two elements of Z_2^64. The generator is fixed-key AES-128 in the
//! Matyas-Meyer-Oseas mode. A key alone tells nothing about the index; its length depends on the domain only.
//!
//! A tree node is one 128-bit word: a 127-bit seed with the control bit t in the lowest place. A correction word has
//! the same form, with the correction of t for its child in the lowest place.

use std::sync::OnceLock;

use ombra_ir::{Diagnostic, Result};
use zeroize::{Zeroize, Zeroizing};

use crate::prg::{AesIsa, Cipher};

/// Largest domain.
pub const MAX_DOMAIN: usize = 1 << 32;

/// Nodes that are expanded at once: the buffers of all levels then fit the second cache.
const BATCH: usize = 512;

/// The public permutations of the tree: left child, right child, leaf.
fn permutations() -> &'static [Cipher; 3] {
    static CIPHERS: OnceLock<[Cipher; 3]> = OnceLock::new();
    CIPHERS.get_or_init(|| {
        [b"ombra/dpf/left01", b"ombra/dpf/right1", b"ombra/dpf/leaf01"].map(|key| Cipher::new(AesIsa::best(), key))
    })
}

/// One party's key. Wiped on drop.
pub struct DpfKey {
    domain: usize,
    /// 0 or 1; the control bit of the root, and whether the shares are negated.
    party: u8,
    /// Seed of the root, lowest bit zero.
    root: u128,
    /// Corrections of the left and the right children per level; equal but for the lowest bit.
    levels: Vec<[u128; 2]>,
    /// Correction of the two elements of a leaf.
    leaf: [u64; 2],
}

impl Drop for DpfKey {
    fn drop(&mut self) {
        self.root.zeroize();
        self.levels.as_mut_slice().as_flattened_mut().zeroize();
        self.leaf.zeroize();
    }
}

/// Levels of the tree over `domain` points, two to a leaf.
fn depth(domain: usize) -> usize {
    domain.div_ceil(2).max(1).next_power_of_two().trailing_zeros() as usize
}

/// Bytes of a key for `domain` points: party, root, one word per level, one bit per level, leaf.
pub fn key_len(domain: usize) -> usize {
    let depth = depth(domain.min(MAX_DOMAIN));
    1 + 16 + 16 * depth + depth.div_ceil(8) + 16
}

fn check_domain(domain: usize) -> Result<()> {
    if domain == 0 || domain > MAX_DOMAIN {
        return Err(Diagnostic::internal("E0906", "domain of a point function is out of range")
            .note(format!("expected 1 to {MAX_DOMAIN} points, found {domain}")));
    }
    Ok(())
}

/// All ones where `bit` is 1, zero where it is 0.
fn mask(bit: u128) -> u128 {
    0u128.wrapping_sub(bit & 1)
}

/// The keys of party 0 and party 1 for the unit vector of length `domain` with its 1 at `index`. `rng` fills a buffer
/// with secret random bytes. Time and memory accesses depend on `domain` only. E0906 when the domain is empty or
/// above [`MAX_DOMAIN`], or the index is not in it.
pub fn generate(index: usize, domain: usize, rng: &mut impl FnMut(&mut [u8])) -> Result<(DpfKey, DpfKey)> {
    check_domain(domain)?;
    if index >= domain {
        return Err(Diagnostic::internal("E0906", "index of a point function lies outside its domain")
            .note(format!("the domain has {domain} points")));
    }
    let [left, right, leaf] = permutations();
    let depth = depth(domain);
    let mut bytes = Zeroizing::new([[0u8; 16]; 2]);
    rng(bytes.as_flattened_mut());
    let roots = bytes.map(|b| u128::from_le_bytes(b) & !1);
    let mut nodes = Zeroizing::new([roots[0], roots[1] | 1]);
    let mut levels = Vec::with_capacity(depth);
    for level in 0..depth {
        let bit = (index as u128 >> (depth - level)) & 1;
        let (mut l, mut r) = (Zeroizing::new([0u128; 2]), Zeroizing::new([0u128; 2]));
        left.hash(&nodes[..], &mut l[..]);
        right.hash(&nodes[..], &mut r[..]);
        let go_right = mask(bit);
        let choose = |right: u128, left: u128| (right & go_right) | (left & !go_right);
        // The seeds of the child that is not taken become equal; the control bits differ on the path alone.
        let seed = choose(l[0] ^ l[1], r[0] ^ r[1]) & !1;
        let correction = [seed | ((l[0] ^ l[1] ^ bit ^ 1) & 1), seed | ((r[0] ^ r[1] ^ bit) & 1)];
        for (party, node) in nodes.iter_mut().enumerate() {
            *node = choose(r[party], l[party]) ^ (choose(correction[1], correction[0]) & mask(*node));
        }
        levels.push(correction);
    }
    let mut hashes = Zeroizing::new([0u128; 2]);
    leaf.hash(&nodes[..], &mut hashes[..]);
    let negate = mask(nodes[1]) as u64;
    let high = (index & 1) as u64;
    let correction = [(1 - high, 0), (high, 64)].map(|(unit, shift)| {
        let value = unit.wrapping_sub((hashes[0] >> shift) as u64).wrapping_add((hashes[1] >> shift) as u64);
        (value ^ negate).wrapping_sub(negate)
    });
    let key = |party: u8, levels| DpfKey { domain, party, root: roots[usize::from(party)], levels, leaf: correction };
    Ok((key(0, levels.clone()), key(1, levels)))
}

impl DpfKey {
    /// The party whose key this is, 0 or 1. The shares of party 1 are those to be added to the shares of party 0.
    pub fn party(&self) -> u8 {
        self.party
    }

    /// The key as [`key_len`] bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(key_len(self.domain));
        out.push(self.party);
        out.extend_from_slice(&self.root.to_le_bytes());
        for [left, _] in &self.levels {
            out.extend_from_slice(&left.to_le_bytes());
        }
        for levels in self.levels.chunks(8) {
            out.push(levels.iter().rev().fold(0, |bits, [_, right]| bits << 1 | (right & 1) as u8));
        }
        for word in self.leaf {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads a key for `domain` points. E0905 when `bytes` is not one, E0906 when the domain is out of range.
    pub fn from_bytes(bytes: &[u8], domain: usize) -> Result<DpfKey> {
        check_domain(domain)?;
        let expected = key_len(domain);
        let bad = |what: &str| {
            Diagnostic::peer("E0905", "message is not a key of a point function")
                .note(what)
                .note(format!("expected {expected} bytes for {domain} points, found {}", bytes.len()))
        };
        if bytes.len() != expected {
            return Err(bad("the length is wrong"));
        }
        let depth = depth(domain);
        let (party, rest) = bytes.split_first().ok_or_else(|| bad("the length is wrong"))?;
        let (words, rest) = rest.split_at(16 * (1 + depth));
        let (bits, leaf) = rest.split_at(depth.div_ceil(8));
        let mut words = words.as_chunks::<16>().0.iter().map(|w| u128::from_le_bytes(*w));
        let root = words.next().ok_or_else(|| bad("the length is wrong"))?;
        if *party > 1 {
            return Err(bad("the party is neither 0 nor 1"));
        }
        if root & 1 != 0 || (!depth.is_multiple_of(8) && bits.last().is_some_and(|b| b >> (depth % 8) != 0)) {
            return Err(bad("a bit that is always zero is set"));
        }
        let bit = |level: usize| u128::from(bits[level / 8] >> (level % 8) & 1);
        let levels = words.enumerate().map(|(level, left)| [left, (left & !1) | bit(level)]).collect();
        let mut halves = leaf.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        let mut half = || halves.next().ok_or_else(|| bad("the length is wrong"));
        let leaf = [half()?, half()?];
        Ok(DpfKey { domain, party: *party, root, levels, leaf })
    }
}

/// Sets `out` to this party's additive shares in Z_2^64 of the unit vector of length `domain`. E0906 when the key is
/// for another domain or `out` has another length.
pub fn eval_full(key: &DpfKey, domain: usize, out: &mut [u64]) -> Result<()> {
    if key.domain != domain || out.len() != domain {
        return Err(Diagnostic::internal("E0906", "key of a point function is used with another domain").note(
            format!("the key is for {} points, the request for {domain}, the result has {}", key.domain, out.len()),
        ));
    }
    let mut width = 1;
    let mut buffers: Vec<Vec<u128>> = (0..key.levels.len())
        .map(|_| {
            width = (2 * width).min(2 * BATCH);
            vec![0; width]
        })
        .collect();
    buffers.push(vec![0; BATCH]);
    descend(key, &key.levels, &[key.root | u128::from(key.party)], &mut buffers, out);
    for buffer in &mut buffers {
        buffer.zeroize();
    }
    Ok(())
}

/// Expands at most [`BATCH`] `nodes` through `levels` into the elements `out` below them. There is one buffer per level
/// and one for the leaves.
fn descend(key: &DpfKey, levels: &[[u128; 2]], nodes: &[u128], buffers: &mut [Vec<u128>], out: &mut [u64]) {
    let Some((buffer, buffers)) = buffers.split_first_mut() else { return };
    let [left, right, leaf] = permutations();
    let Some((correction, levels)) = levels.split_first() else {
        let hashes = &mut buffer[..nodes.len()];
        leaf.hash(nodes, hashes);
        return leaves(key, nodes, hashes, out);
    };
    let children = &mut buffer[..2 * nodes.len()];
    Cipher::expand_level(left, right, nodes, *correction, children);
    let below = 2 << levels.len();
    for (nodes, out) in children.chunks(BATCH).zip(out.chunks_mut(BATCH * below)) {
        descend(key, levels, &nodes[..out.len().div_ceil(below)], buffers, out);
    }
}

/// Turns leaf `nodes` and their `hashes` into the elements `out`, two per leaf; the last leaf may have one.
fn leaves(key: &DpfKey, nodes: &[u128], hashes: &[u128], out: &mut [u64]) {
    let negate = 0u64.wrapping_sub(u64::from(key.party));
    let pair = |node: u128, hash: u128| {
        let control = mask(node) as u64;
        [(hash as u64, key.leaf[0]), ((hash >> 64) as u64, key.leaf[1])]
            .map(|(half, correction)| (half.wrapping_add(correction & control) ^ negate).wrapping_sub(negate))
    };
    let (pairs, rest) = out.as_chunks_mut::<2>();
    for ((out, node), hash) in pairs.iter_mut().zip(nodes).zip(hashes) {
        *out = pair(*node, *hash);
    }
    if let ([last], Some(node), Some(hash)) = (rest, nodes.last(), hashes.last()) {
        *last = pair(*node, *hash)[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prg::{Key, Label, Prg};

    /// A deterministic source of bytes; the number of draws so far is its counter.
    fn source(seed: u8) -> impl FnMut(&mut [u8]) {
        let prg = Prg::new(&Key::from_bytes([seed; 16]));
        let mut step = 0;
        move |out: &mut [u8]| {
            let mut words = vec![0; out.len().div_ceil(8)];
            prg.fill_u64(Label { op: 0, step, purpose: 0, part: 0 }, &mut words);
            step += 1;
            out.iter_mut().zip(words.iter().flat_map(|w| w.to_le_bytes())).for_each(|(o, b)| *o = b);
        }
    }

    /// Both parties' shares, from keys that went over the wire.
    fn shares(index: usize, domain: usize, rng: &mut impl FnMut(&mut [u8])) -> [Vec<u64>; 2] {
        let (k0, k1) = generate(index, domain, rng).expect("index lies in the domain");
        [k0, k1].map(|key| {
            let bytes = key.to_bytes();
            assert_eq!(bytes.len(), key_len(domain));
            let key = DpfKey::from_bytes(&bytes, domain).expect("a key reads back");
            assert!(key.to_bytes() == bytes);
            let mut out = vec![7; domain];
            eval_full(&key, domain, &mut out).expect("the domain is that of the key");
            out
        })
    }

    fn check(index: usize, domain: usize, rng: &mut impl FnMut(&mut [u8])) {
        let [x, y] = shares(index, domain, rng);
        for i in 0..domain {
            assert_eq!(x[i].wrapping_add(y[i]), u64::from(i == index), "index {index} of {domain} at {i}");
        }
    }

    #[test]
    fn shares_add_up_to_the_unit_vector_for_every_small_domain() {
        let mut rng = source(1);
        for domain in (1..=40).chain([63, 64, 65]) {
            for index in 0..domain {
                check(index, domain, &mut rng);
            }
        }
    }

    #[test]
    fn shares_add_up_at_a_vocabulary_and_around_the_batch() {
        let mut rng = source(2);
        for (index, domain) in [(0, 50_257), (50_256, 50_257), (31_337, 50_257), (4_096, 50_257), (1_024, 1_025)] {
            check(index, domain, &mut rng);
        }
        for domain in [2 * BATCH - 1, 2 * BATCH, 2 * BATCH + 1, 4 * BATCH + 3, 8 * BATCH] {
            check(domain - 1, domain, &mut rng);
            check(domain / 2, domain, &mut rng);
        }
    }

    #[test]
    fn one_share_looks_the_same_for_every_index() {
        // Each bit of a share is 1 about half the time, the lowest bit of both halves of a leaf too, at the index and
        // elsewhere: 4000 draws, so a count of ones outside 2000 +- 250 has probability below 1e-14.
        let mut rng = source(3);
        for party in 0..2 {
            let mut ones = [[0u32; 64]; 4];
            for _ in 0..4000 {
                let (k0, k1) = generate(1, 4, &mut rng).expect("index lies in the domain");
                let mut out = [0; 4];
                eval_full(&[k0, k1][party], 4, &mut out).expect("the domain is that of the key");
                for (ones, word) in ones.iter_mut().zip(out) {
                    ones.iter_mut().enumerate().for_each(|(b, n)| *n += (word >> b & 1) as u32);
                }
            }
            assert!(ones.as_flattened().iter().all(|n| n.abs_diff(2000) < 250));
        }
    }

    #[test]
    fn corrections_are_balanced_for_every_index() {
        let mut rng = source(4);
        let domain = 16;
        for index in [0, 5, 15] {
            let mut ones = vec![0u32; 8 * (key_len(domain) - 17)];
            for _ in 0..4000 {
                let (key, _) = generate(index, domain, &mut rng).expect("index lies in the domain");
                for (i, n) in ones.iter_mut().enumerate() {
                    *n += u32::from(key.to_bytes()[17 + i / 8] >> (i % 8) & 1);
                }
            }
            // Three levels: 48 bytes, then three control bits and five unused ones, then the leaf.
            let unused = 8 * 48 + 3..8 * 49;
            for (i, n) in ones.iter().enumerate() {
                assert!(if unused.contains(&i) { *n == 0 } else { n.abs_diff(2000) < 250 }, "bit {i} of {index}");
            }
        }
    }

    #[test]
    fn the_length_depends_on_the_domain_only() {
        assert_eq!(key_len(50_257), 1 + 16 + 15 * 16 + 2 + 16);
        assert_eq!([key_len(1), key_len(2), key_len(3)], [33, 33, 50]);
        let mut rng = source(5);
        for index in [0, 1, 77, 99] {
            let (k0, k1) = generate(index, 100, &mut rng).expect("index lies in the domain");
            assert_eq!([k0.to_bytes().len(), k1.to_bytes().len()], [key_len(100); 2]);
        }
    }

    #[test]
    fn wrong_requests_and_hostile_bytes_are_errors() {
        let mut rng = source(6);
        let code = |r: Result<DpfKey>| r.err().map(|e| e.code);
        for (index, domain) in [(0, 0), (5, 5), (usize::MAX, 7), (0, MAX_DOMAIN + 1)] {
            assert_eq!(code(generate(index, domain, &mut rng).map(|k| k.0)), Some("E0906"));
        }
        let (key, _) = generate(3, 1000, &mut rng).expect("index lies in the domain");
        let bytes = key.to_bytes();
        for len in 0..bytes.len() {
            assert_eq!(code(DpfKey::from_bytes(&bytes[..len], 1000)), Some("E0905"));
        }
        assert_eq!(code(DpfKey::from_bytes(&bytes, 100)), Some("E0905"));
        assert_eq!(code(DpfKey::from_bytes(&bytes, 0)), Some("E0906"));
        assert_eq!(code(DpfKey::from_bytes(&bytes, usize::MAX)), Some("E0906"));
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            code(DpfKey::from_bytes(&bytes, 1000))
        };
        assert_eq!([with(0, 2), with(1, bytes[1] | 1)], [Some("E0905"); 2]);
        let last_bits = bytes.len() - 17;
        assert_eq!(with(last_bits, bytes[last_bits] | 0x80), Some("E0905"));
        let mut out = vec![0; 1000];
        for value in [0, 0xff] {
            let mut bytes = vec![value; key_len(1000)];
            (bytes[0], bytes[1], bytes[last_bits]) = (1, 0, 0);
            let key = DpfKey::from_bytes(&bytes, 1000).expect("any corrections are a key");
            assert!(eval_full(&key, 1000, &mut out).is_ok());
        }
        assert_eq!(eval_full(&key, 1000, &mut out[1..]).err().map(|e| e.code), Some("E0906"));
        assert_eq!(eval_full(&key, 999, &mut out[1..]).err().map(|e| e.code), Some("E0906"));
    }
}
