//! Bits and comparisons: how a sign is cut and joined, and what these ops send.
//!
//! Roles and units are those of [`dealer`](super). A plane of `n` bits takes `⌈n / 8⌉` bytes.

use super::super::{RowLens, Traffic, plane_bytes};

/// Bits of a chunk at most. A chunk of `k` bits costs `2^k` dealt bits.
pub const LARGEST_CHUNK: u8 = 4;
/// Chunks that are joined by one opening at most, and in each group where there are more.
const JOINED: [usize; 2] = [5, 4];

/// Chunks that are joined: of each is known whether the mask's chunk is greater, and whether both are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// How many there are; at most 5.
    pub chunks: usize,
    /// Whether it is asked if all are equal. The lowest group is only compared.
    pub equal: bool,
}

impl Join {
    /// Bits of equality that take part: all but that of the lowest chunk, unless it is asked.
    pub fn equalities(self) -> usize {
        self.chunks - usize::from(!self.equal)
    }

    /// Bits that are opened under fresh masks; one chunk alone needs none.
    pub fn opened(self) -> usize {
        if self.chunks < 2 { 0 } else { self.chunks - 1 + self.equalities() }
    }

    /// Products of two or more of these masks that occur: of any equalities, and of the order of each chunk but the highest
    /// with any equalities of higher ones.
    pub fn products(self) -> usize {
        if self.chunks < 2 {
            return 0;
        }
        let of_equalities = (1 << self.equalities()) - 1 - self.equalities();
        of_equalities + (1..self.chunks).map(|higher| (1 << higher) - 1).sum::<usize>()
    }
}

/// How the `bits` bits below a sign are cut: as few chunks as can be, lowest first.
pub fn chunks(bits: u8) -> Vec<u8> {
    let count = bits.div_ceil(LARGEST_CHUNK);
    (0..count).map(|i| bits / count + u8::from(i < bits % count)).collect()
}

/// How so many chunks are joined, an opening after the other: the groups of each, lowest first.
pub fn joins(mut chunks: usize) -> Vec<Vec<Join>> {
    let mut openings = Vec::new();
    while chunks > 1 {
        let most = if chunks <= JOINED[0] { JOINED[0] } else { JOINED[1] };
        let group = |at: usize| Join { chunks: most.min(chunks - at), equal: at > 0 };
        let groups: Vec<Join> = (0..chunks).step_by(most).map(group).collect();
        chunks = groups.len();
        openings.push(groups);
    }
    openings
}

/// Planes that are dealt for the chunks of a sign of `width` bits, and for its highest bit.
pub fn chunk_planes(width: u8) -> usize {
    chunks(width - 1).iter().map(|&bits| 1 << bits).sum::<usize>() + 1
}

/// Client and server send each other as many bytes.
pub(super) fn exchange(t: &mut Traffic, bytes: u64) {
    t.send(0, 0, 1, bytes);
    t.send(0, 1, 0, bytes);
}

/// Masks of `width` planes where the value is not masked, then the comparison.
pub(super) fn msb(t: &mut Traffic, n: u64, width: u8, is_masked: bool) {
    if !is_masked {
        exchange(t, u64::from(width) * plane_bytes(n));
    }
    sign_of_masked(t, n, width);
}

/// The rounds from an exchange of masked values, which has been counted, to their signs: the chunks are dealt in that
/// round, and products of masks in the round of every opening.
fn sign_of_masked(t: &mut Traffic, n: u64, width: u8) {
    let planes = |count: usize| count as u64 * plane_bytes(n);
    t.send(0, 2, 1, planes(chunk_planes(width)));
    t.rounds += 1;
    for groups in joins(chunks(width - 1).len()) {
        exchange(t, planes(groups.iter().map(|group| group.opened()).sum()));
        t.send(0, 2, 1, planes(groups.iter().map(|group| group.products()).sum()));
        t.rounds += 1;
    }
}

/// Both operands masked, and the product of the masks.
pub(super) fn and(t: &mut Traffic, n: u64) {
    exchange(t, 2 * plane_bytes(n));
    t.send(0, 2, 1, plane_bytes(n));
    t.rounds += 1;
}

/// The masked bit, its mask as a ring element of `bytes`, and the mask's product with that of every value that the bit
/// selects.
pub(super) fn select(t: &mut Traffic, n: u64, values: u64, bytes: u64) {
    exchange(t, plane_bytes(n));
    t.send(0, 2, 1, (1 + values) * n * bytes);
    t.rounds += 1;
}

/// Of every level the masked differences, their signs, and a selection.
pub(super) fn row_max(t: &mut Traffic, rows: &RowLens<'_>, width: u8, bytes: u64) {
    for pairs in rows.pairs_by_level() {
        exchange(t, pairs * bytes);
        sign_of_masked(t, pairs, width);
        select(t, pairs, 1, bytes);
    }
}

/// As [`row_max`], with the indices: those of the first level are its bits, and the last level's values are not
/// selected.
pub(super) fn arg_max(t: &mut Traffic, rows: &RowLens<'_>, width: u8, bytes: u64) {
    let levels = rows.pairs_by_level();
    for (i, &pairs) in levels.iter().enumerate() {
        let (indices, values) = (u64::from(i > 0), u64::from(i + 1 < levels.len()));
        exchange(t, (1 + indices) * pairs * bytes);
        sign_of_masked(t, pairs, width);
        select(t, pairs, indices + values, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of an element: sent by client and by server each after the mask, and dealt; and rounds after the mask.
    #[test]
    fn bits_and_rounds_of_signs() {
        let measured = |width: u8| {
            let mut t = Traffic::default();
            msb(&mut t, 8, width, false);
            let sent = |from: u8| t.msgs.iter().filter(|m| m.from == from).map(|m| m.bytes).sum::<u64>();
            assert_eq!(sent(0), sent(1));
            (sent(0) - u64::from(width), sent(2), t.rounds - 1)
        };
        assert_eq!(measured(2), (0, 3, 0));
        assert_eq!(measured(5), (0, 17, 0));
        for (width, expected) in [
            (12, (4, 46, 1)),
            (13, (4, 54, 1)),
            (16, (6, 72, 1)),
            (20, (8, 110, 1)),
            (24, (11, 107, 2)),
            (32, (15, 159, 2)),
            (40, (20, 197, 2)),
            (48, (24, 249, 2)),
            (64, (33, 345, 2)),
        ] {
            assert_eq!(measured(width), expected, "width {width}");
        }
    }

    #[test]
    fn every_width_is_cut_and_joined() {
        assert_eq!(chunks(11), vec![4, 4, 3]);
        for bits in 1..=63 {
            let cut = chunks(bits);
            assert_eq!(cut.iter().sum::<u8>(), bits);
            assert!(cut.iter().all(|bits| (1..=LARGEST_CHUNK).contains(bits)));
            let mut left = cut.len();
            for groups in joins(left) {
                assert_eq!(groups.iter().map(|group| group.chunks).sum::<usize>(), left);
                assert!(groups.iter().all(|group| group.equalities() <= 4 && group.chunks <= 5));
                assert!(groups.iter().enumerate().all(|(i, group)| group.equal == (i > 0)));
                left = groups.len();
            }
            assert_eq!(left, 1);
        }
    }

    #[test]
    fn bits_and_rounds_of_trees() {
        let rows = RowLens::Equal { count: 8, len: 4 };
        let bits = |count: fn(&mut Traffic, &RowLens<'_>)| {
            let mut t = Traffic::default();
            count(&mut t, &rows);
            let sent = |from: u8| t.msgs.iter().filter(|m| m.from == from).map(|m| m.bytes).sum::<u64>();
            (sent(0), sent(1), sent(2), t.rounds)
        };
        // 24 pairs in two levels of 16 and 8: 4 bits of the comparison and 1 of the selection.
        assert_eq!(bits(|t, rows| row_max(t, rows, 12, 3)), (24 / 8 * (24 + 5), 24 / 8 * 29, 24 / 8 * (46 + 48), 6));
        let (each, dealt) = (2 * 29 + 29 + 24, 2 * (46 + 48) + 46 + 48);
        assert_eq!(bits(|t, rows| arg_max(t, rows, 12, 3)), (each, each, dealt, 6));
    }
}
