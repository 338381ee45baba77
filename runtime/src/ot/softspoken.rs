//! The extension: any number of random transfers from the leaves of punctured trees.
//!
//! Source: Roy, "SoftSpokenOT" (2022/192), figures 7 and 8 in the semi-honest form: vector oblivious linear evaluation over
//! GF(2^k) from a tree of `k` levels, with the repetition code of length `128 / k`.
//! Adversary: semi-honest. Rounds: half an exchange, from who chooses to who offers. Bits: `128 / k − 1` a transfer, so 15
//! for trees of 8 levels, 31 of 4, 63 of 2; time grows with the number of leaves, `128 / k · 2^k`. Error: none.
//!
//! ```text
//!   G(r) the stream of a leaf under the call's label, y the place of a leaf in its tree t, with hole h_t
//!   chooses    u_t = ⊕_y G(r_y),  bit j of v_t = ⊕_{y: y_j = 1} G(r_y);  c = u_1;  sends u_t ⊕ u_1 for t ≥ 2
//!   offers     bit j of w_t = ⊕_y (y ⊕ h_t)_j G(r_y) = v_t ⊕ h_t·u_t,  without the leaf h_t;  takes off h_t·(u_t ⊕ u_1)
//!   rows       v_i = w_i ⊕ c_i·Δ, Δ = (h_1, h_2, …)
//! ```
//!
//! *Offerer's view*: the corrections are masked by the streams of its holes. *Chooser's view*: nothing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use ombra_ir::Result;
use ombra_kernels::each_isa;
use zeroize::{Zeroize, Zeroizing};

use super::pads::{Chosen, Hash, Offered};
use super::tree::{Trees, delta};
use super::{BASE_COUNT, Choose, Direction, Offer, SessionId, mask, refused, unserved};
use crate::prg::{Label, Prg};
use crate::wiped::Zeroizing as Wiped;

/// Words of a stream that are worked on at once: 4096 transfers, whose 128 planes stay in the second cache.
const CHUNK: usize = 64;
/// Words of transfers under one label at most: the number of a transfer has 32 bits.
const MOST_WORDS: usize = 1 << 26;
/// Levels of a tree at most.
const MOST_LEVELS: usize = 8;

/// Bytes of the message for `64·words` transfers, with trees of `depth` levels.
pub fn message_bytes(depth: usize, words: usize) -> usize {
    (BASE_COUNT / depth.max(1)).saturating_sub(1).saturating_mul(8).saturating_mul(words)
}

/// What both ends have.
struct End {
    trees: Trees,
    direction: Direction,
    hash: Arc<Hash>,
    used: RefCell<Used>,
}

/// The labels that were used in the last step; those of earlier ones are over.
#[derive(Default)]
struct Used {
    step: u32,
    labels: HashSet<Label>,
}

impl Used {
    /// Marks a label. Says whether it was new.
    fn claim(&mut self, label: Label) -> bool {
        if label.step > self.step {
            self.step = label.step;
            self.labels.clear();
        }
        label.step == self.step && self.labels.insert(label)
    }
}

/// The end that chooses: it knows the trees whole.
pub struct Choosing(End);

/// The end that offers: it knows all leaves but the holes.
pub struct Offering {
    end: End,
    delta: Zeroizing<u128>,
}

/// Words of some planes at a time.
type Planes = [[u64; CHUNK]];

each_isa! {
    /// One leaf's stream `s`, at the place whose number ends in `ones` ones: into the planes of those bits, and with what
    /// waits there into what waits next.
    fn fold(s: &mut [u64; CHUNK], waiting: &mut Planes, planes: &mut Planes, ones: usize) {
        for (waits, plane) in waiting.iter().zip(planes.iter_mut()).take(ones) {
            for ((plane, s), waits) in plane.iter_mut().zip(s.iter_mut()).zip(waits) {
                *plane ^= *s;
                *s ^= waits;
            }
        }
        waiting[ones] = *s;
    }

    /// `planes[p] ^= mask & correction`, for the bits of one tree.
    fn correct(planes: &mut Planes, masks: &[u64], correction: &[u64; CHUNK]) {
        for (plane, mask) in planes.iter_mut().zip(masks) {
            plane.iter_mut().zip(correction).for_each(|(plane, correction)| *plane ^= mask & correction);
        }
    }

    /// The rows of 64 transfers for every word: bit `p` of a row is that of plane `p`.
    fn transpose(planes: &Planes, rows: &mut [u128]) {
        let mut halves = [[0u64; 64]; 2];
        for (at, rows) in rows.chunks_exact_mut(64).enumerate() {
            for (half, planes) in halves.iter_mut().zip(planes.chunks_exact(64)) {
                half.iter_mut().zip(planes).for_each(|(word, plane)| *word = plane[at]);
                turn(half);
            }
            let [low, high] = &halves;
            rows.iter_mut().zip(low.iter().zip(high)).for_each(|(row, (low, high))| {
                *row = u128::from(*low) | u128::from(*high) << 64;
            });
        }
        halves.as_flattened_mut().zeroize();
    }
}

/// Bit `j` of word `i` becomes bit `i` of word `j`: quarters change places, then quarters of quarters (Warren, "Hacker's
/// Delight", 7-3).
#[inline(always)]
fn turn(words: &mut [u64; 64]) {
    let (mut width, mut low) = (32, u64::from(u32::MAX));
    while width > 0 {
        for pair in words.chunks_exact_mut(2 * width) {
            let (first, second) = pair.split_at_mut(width);
            for (x, y) in first.iter_mut().zip(second) {
                let change = (*x >> width ^ *y) & low;
                *x ^= change << width;
                *y ^= change;
            }
        }
        width /= 2;
        low ^= low << width;
    }
}

impl End {
    fn new(session: &SessionId, direction: Direction, trees: Trees) -> End {
        End { trees, direction, hash: Arc::new(Hash::new(session)), used: RefCell::default() }
    }

    /// The label of a call, for its one use.
    fn claim(&self, label: Label, words: usize) -> Result<Label> {
        if words > MOST_WORDS {
            return Err(unserved("a call asks for more transfers than a label has"));
        }
        let label = self.direction.label(label);
        if self.used.borrow_mut().claim(label) {
            return Ok(label);
        }
        Err(unserved("a label was used before, or its step is over"))
    }

    /// Planes and sums of all trees for `words` words of the streams from `start` on. Leaves begin at place `first`.
    fn planes(&self, label: Label, start: usize, words: usize, first: usize, out: &mut Chunk) {
        let depth = self.trees.depth;
        let mut waiting = Zeroizing::new([[0; CHUNK]; MOST_LEVELS + 1]);
        let mut stream = Zeroizing::new([0; CHUNK]);
        out.planes.iter_mut().for_each(|plane| plane.fill(0));
        let trees = self.trees.leaves.chunks_exact((1 << depth) - first);
        for ((leaves, planes), sum) in trees.zip(out.planes.chunks_exact_mut(depth)).zip(out.sums.iter_mut()) {
            if first == 1 {
                waiting[0].fill(0);
            }
            for (place, leaf) in (first..).zip(leaves) {
                let leaf: &Prg = leaf;
                leaf.fill_u64_at(label, start as u64, &mut stream[..words]);
                fold(&mut stream, &mut waiting[..], planes, place.trailing_ones() as usize);
            }
            *sum = waiting[depth];
        }
    }
}

/// Planes and sums of a chunk. Wiped on drop.
struct Chunk {
    planes: Zeroizing<Vec<[u64; CHUNK]>>,
    sums: Zeroizing<Vec<[u64; CHUNK]>>,
}

impl Chunk {
    fn new(depth: usize) -> Chunk {
        let zeros = |count| Zeroizing::new(vec![[0; CHUNK]; count]);
        Chunk { planes: zeros(BASE_COUNT), sums: zeros(BASE_COUNT / depth) }
    }
}

impl Choosing {
    /// The end of trees that this party grew.
    pub fn new(session: &SessionId, direction: Direction, trees: Trees) -> Choosing {
        Choosing(End::new(session, direction, trees))
    }
}

impl Choose for Choosing {
    fn choose(&self, label: Label, words: usize, message: &mut Vec<u8>) -> Result<Chosen> {
        let end = &self.0;
        let label = end.claim(label, words)?;
        message.reserve(message_bytes(end.trees.depth, words));
        let mut rows = Wiped::new(vec![0; 64 * words]);
        let mut bits = Wiped::new(Vec::with_capacity(words));
        let mut chunk = Chunk::new(end.trees.depth);
        for (start, rows) in (0..).step_by(CHUNK).zip(rows.chunks_mut(64 * CHUNK)) {
            let words = rows.len() / 64;
            end.planes(label, start, words, 0, &mut chunk);
            transpose(&chunk.planes, rows);
            let Some((choices, sums)) = chunk.sums.split_first() else { continue };
            bits.extend(&choices[..words]);
            for sum in sums {
                sum.iter().zip(choices).take(words).for_each(|(x, y)| message.extend((x ^ y).to_le_bytes()));
            }
        }
        Ok(Chosen::new(rows, bits, label, &end.hash))
    }
}

impl Offering {
    /// The end of trees that the other party grew, received with these choices of the base.
    pub fn new(session: &SessionId, direction: Direction, choices: u128, trees: Trees) -> Offering {
        let delta = Zeroizing::new(delta(trees.depth, choices));
        Offering { end: End::new(session, direction, trees), delta }
    }
}

impl Offer for Offering {
    fn message_bytes(&self, words: usize) -> usize {
        message_bytes(self.end.trees.depth, words)
    }

    fn offer(&self, label: Label, words: usize, message: &[u8]) -> Result<Offered> {
        if message.len() != self.message_bytes(words) {
            return Err(refused("corrections have another length"));
        }
        let (end, depth) = (&self.end, self.end.trees.depth);
        let label = end.claim(label, words)?;
        let mut rows = Wiped::new(vec![0; 64 * words]);
        let mut chunk = Chunk::new(depth);
        let masks: Zeroizing<Vec<u64>> =
            Zeroizing::new((0..BASE_COUNT).map(|bit| mask(*self.delta >> bit) as u64).collect());
        let mut rest = message;
        for (start, rows) in (0..).step_by(CHUNK).zip(rows.chunks_mut(64 * CHUNK)) {
            let words = rows.len() / 64;
            end.planes(label, start, words, 1, &mut chunk);
            let trees = chunk.planes.chunks_exact_mut(depth).zip(masks.chunks_exact(depth));
            for (planes, masks) in trees.skip(1) {
                let mut correction = [0; CHUNK];
                for word in &mut correction[..words] {
                    let Some((bytes, after)) = rest.split_first_chunk() else { break };
                    (*word, rest) = (u64::from_le_bytes(*bytes), after);
                }
                correct(planes, masks, &correction);
            }
            transpose(&chunk.planes, rows);
        }
        Ok(Offered::new(rows, *self.delta, label, &end.hash))
    }
}
