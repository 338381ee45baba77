//! Trees of seeds that are known to one party whole, and to the other one but for a leaf of each.
//!
//! Source: Goldreich, Goldwasser and Micali's tree with the transfer of its halves' sums, as in Roy's "SoftSpokenOT"
//! (2022/192, figure 13, without its check, which semi-honest parties do not need).
//! Adversary: semi-honest. Rounds: 1, from who knows the trees. Bytes: 32 for every level of every tree, 4096 in all.
//!
//! ```text
//!   child c of a node s is π_c(s) ⊕ s.  A tree has `depth` levels and 2^depth leaves; 128 / depth trees take 128 base keys
//!   grower     level by level the sums of all left and of all right children, under the two keys of a base transfer
//!   receiver   knows all nodes of a level but the hole. It gets the sum of the children that are not on the path, takes off
//!              those that it can compute, and has the hole's sibling
//! ```
//!
//! Nodes are kept in the order of `place ⊕ hole`, in which the hole is always first, and the children of a node change places
//! by masks: no index depends on where it is.
//!
//! *Receiver's view*: sums under keys that it has not, which are random, and those of the hole's siblings: by the tree's
//! security as a pseudorandom function all leaves but the hole look random, and the hole is random given them.
//! *Grower's view*: nothing.

use ombra_ir::{Diagnostic, Result};

use super::{BASE_COUNT, Random, SessionId, mask, refused};
use crate::prg::{Cipher, Key, Prg};
use crate::wiped::Zeroizing;

/// Bytes of the message.
pub const SECOND_BYTES: usize = 32 * BASE_COUNT;

/// The leaves of all trees, each a key of a stream, tree by tree; and what the message is made of.
pub struct Trees {
    /// Levels.
    pub(super) depth: usize,
    /// `2^depth` of every tree at who grew them. At the receiver one less, in the order of `place ⊕ hole`.
    pub(super) leaves: Vec<Prg>,
    /// The sums of left and of right children, level by level, until they are sent; none at the receiver.
    sums: Zeroizing<Vec<u128>>,
}

/// The children of nodes, of each one the left and the right.
fn children(permutations: &[Cipher; 2], nodes: &[u128]) -> Zeroizing<Vec<u128>> {
    let mut out = Zeroizing::new(vec![0; 2 * nodes.len()]);
    let mut some = Zeroizing::new(nodes.to_vec());
    for (c, permutation) in permutations.iter().enumerate() {
        some.copy_from_slice(nodes);
        permutation.permute(&mut some);
        for ((pair, permuted), node) in out.chunks_exact_mut(2).zip(some.iter()).zip(nodes) {
            pair[c] = permuted ^ node;
        }
    }
    out
}

fn permutations(session: &SessionId) -> [Cipher; 2] {
    [session.permutation(b"left    "), session.permutation(b"right   ")]
}

fn streams(leaves: &[u128]) -> impl Iterator<Item = Prg> {
    leaves.iter().map(|leaf| Prg::new(&Key::from_bytes(leaf.to_le_bytes())))
}

impl Trees {
    /// Checks a number of levels: 2, 4 or 8, which divide the base keys and fit the tables.
    ///
    /// # Errors
    /// `E0909`.
    pub fn check(depth: u8) -> Result<()> {
        if [2, 4, 8].contains(&depth) {
            return Ok(());
        }
        Err(Diagnostic::internal("E0909", "trees of an extension have another depth")
            .note(format!("expected  2, 4 or 8 levels, found {depth}")))
    }

    /// Grows trees of a depth that was checked.
    ///
    /// # Errors
    /// No randomness.
    pub fn grow(session: &SessionId, depth: u8, random: Random<'_>) -> Result<Trees> {
        let (permutations, depth) = (permutations(session), usize::from(depth));
        let count = BASE_COUNT / depth;
        let mut trees = Trees {
            depth,
            leaves: Vec::with_capacity(count << depth),
            sums: Zeroizing::new(Vec::with_capacity(2 * BASE_COUNT)),
        };
        for _ in 0..count {
            let mut root = zeroize::Zeroizing::new([0; 16]);
            random(&mut root[..])?;
            let mut nodes = Zeroizing::new(vec![u128::from_le_bytes(*root)]);
            for _ in 0..depth {
                nodes = children(&permutations, &nodes);
                for c in 0..2 {
                    trees.sums.push(nodes.iter().skip(c).step_by(2).fold(0, |sum, node| sum ^ node));
                }
            }
            trees.leaves.extend(streams(&nodes));
        }
        Ok(trees)
    }

    /// Adds the message, under the pairs of base keys. What it is made of is wiped then.
    pub(super) fn send(&mut self, pairs: &[u128], message: &mut Vec<u8>) {
        let sums = std::mem::take(&mut self.sums);
        sums.iter().zip(pairs).for_each(|(sum, key)| message.extend((sum ^ key).to_le_bytes()));
    }

    /// The trees of the other party. Bit `i` of `holes` is the choice that key `i` was received with: a level's path goes
    /// the other way. The highest bit of a hole is that of the first level.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    pub fn receive(session: &SessionId, depth: u8, choices: u128, keys: &[u128], message: &[u8]) -> Result<Trees> {
        if message.len() != SECOND_BYTES || keys.len() != BASE_COUNT {
            return Err(refused("the second message of the set-up has another length"));
        }
        let (permutations, depth) = (permutations(session), usize::from(depth));
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u128, |word, byte| word << 8 | u128::from(*byte));
        let mut received = Zeroizing::new(Vec::with_capacity(BASE_COUNT));
        for (index, (pair, key)) in message.chunks_exact(32).zip(keys).enumerate() {
            let (left, right) = pair.split_at(16);
            let (left, right) = (word(left), word(right));
            received.push(key ^ left ^ (mask(choices >> index) & (left ^ right)));
        }
        let mut leaves = Vec::with_capacity((BASE_COUNT / depth) * ((1 << depth) - 1));
        for (tree, sums) in received.chunks_exact(depth).enumerate() {
            let mut nodes = Zeroizing::new(vec![0]);
            for (level, sum) in sums.iter().enumerate() {
                // The first of a pair is the child on the path's side.
                let swap = mask(!(choices >> (tree * depth + level)));
                let mut next = children(&permutations, &nodes);
                let mut sibling = *sum;
                for (place, pair) in next.chunks_exact_mut(2).enumerate() {
                    let change = swap & (pair[0] ^ pair[1]);
                    pair[0] ^= change;
                    pair[1] ^= change;
                    if place > 0 {
                        sibling ^= pair[1];
                    }
                }
                next[..2].copy_from_slice(&[0, sibling]);
                nodes = next;
            }
            leaves.extend(streams(&nodes[1..]));
        }
        Ok(Trees { depth, leaves, sums: Zeroizing::default() })
    }
}

/// `Δ` of the holes that follow from the choices: the bits of a tree, lowest first, say where its hole is.
pub(super) fn delta(depth: usize, choices: u128) -> u128 {
    let mut delta = 0;
    for tree in 0..BASE_COUNT / depth {
        for level in 0..depth {
            let path = !(choices >> (tree * depth + level)) & 1;
            delta |= path << (tree * depth + depth - 1 - level);
        }
    }
    delta
}
