//! Bits and comparisons: how a sign is cut and joined, and what these ops send.
//!
//! Roles and units are those of [`dealer`](super). A plane of `n` bits takes `⌈n / 8⌉` bytes.

use super::super::{ROUND_BITS, RowLens, Traffic, plane_bytes};

/// Bits of a chunk at most. A chunk of `k` bits costs `2^k` dealt bits.
pub const LARGEST_CHUNK: u8 = 12;
/// Chunks that are joined by one opening at most.
pub const MOST_JOINED: u8 = 9;
/// Bits of a chunk, and chunks of a group, where groups are joined by one opening and then joined by another.
const OF_GROUPS: (u8, usize) = (4, 4);

/// Chunks that are joined: of each is known whether the mask's chunk is greater, and whether both are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// How many there are; at most [`MOST_JOINED`].
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

/// How masked values are compared with their masks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Bits of every chunk of what lies below the sign, lowest first.
    pub chunks: Vec<u8>,
    /// The groups of chunks, or of what groups became, that every opening joins, lowest first.
    pub openings: Vec<Vec<Join>>,
}

impl Comparison {
    /// How the signs of `n` values of `width ≥ 2` bits are compared. A large chunk saves the opening that joins smaller ones,
    /// and one opening of many chunks saves a second one; both at the price of dealt bits. Of all ways the one is taken whose
    /// bits and rounds cost least, a round as many bits as [`ROUND_BITS`]: sizes alone decide, so all parties agree.
    ///
    /// The keys of a distributed point function, with which nothing is opened (Boyle, Gilboa and Ishai, 2019/1095), are no
    /// candidate. A client that the dealer sends nothing must have the corrections from the server, which is the round that
    /// was saved, and they take 128 bits a level twice: more at every width than chunks with at most one opening, as a test
    /// here computes.
    pub fn of(n: u64, width: u8) -> Comparison {
        let bits = width.saturating_sub(1);
        let joined = (1..=MOST_JOINED.min(bits.max(1))).map(|count| Comparison::joined_at_once(bits, count));
        let candidates = joined.chain([Comparison::joined_in_groups(bits)]);
        let price = |way: &Comparison| {
            let bits = way.dealt_bits() + 2 * way.opened_bits();
            n.saturating_mul(bits as u64).saturating_add(way.openings.len() as u64 * ROUND_BITS)
        };
        let possible = candidates.filter(|way| way.chunks.iter().all(|&bits| bits <= LARGEST_CHUNK));
        possible.min_by_key(price).unwrap_or_else(|| Comparison::joined_in_groups(bits))
    }

    /// So many chunks, joined by one opening if there are two or more.
    fn joined_at_once(bits: u8, count: u8) -> Comparison {
        let all = vec![Join { chunks: count.into(), equal: false }];
        Comparison { chunks: cut(bits, count), openings: if count > 1 { vec![all] } else { Vec::new() } }
    }

    /// Small chunks in small groups, joined by as many openings as it takes.
    fn joined_in_groups(bits: u8) -> Comparison {
        let chunks = cut(bits, bits.div_ceil(OF_GROUPS.0).max(1));
        let (mut left, mut openings) = (chunks.len(), Vec::new());
        while left > 1 {
            let group = |at: usize| Join { chunks: OF_GROUPS.1.min(left - at), equal: at > 0 };
            let groups: Vec<Join> = (0..left).step_by(OF_GROUPS.1).map(group).collect();
            left = groups.len();
            openings.push(groups);
        }
        Comparison { chunks, openings }
    }

    /// Planes that are dealt for the chunks, and for the highest bit.
    pub fn chunk_planes(&self) -> usize {
        self.chunks.iter().map(|&bits| 1 << bits).sum::<usize>() + 1
    }

    /// Adds to `t` the rounds from an exchange of `n` masked values, which has been counted, to their signs: the chunks are
    /// dealt in that round, and products of masks in the round of every opening.
    pub fn messages(&self, t: &mut Traffic, n: u64) {
        let planes = |count: usize| count as u64 * plane_bytes(n);
        t.send(0, 2, 1, planes(self.chunk_planes()));
        t.rounds += 1;
        for groups in &self.openings {
            exchange(t, planes(groups.iter().map(|group| group.opened()).sum()));
            t.send(0, 2, 1, planes(groups.iter().map(|group| group.products()).sum()));
            t.rounds += 1;
        }
    }

    /// Bits of an element that are dealt: for its chunks, and for every opening.
    fn dealt_bits(&self) -> usize {
        self.chunk_planes() + self.openings.iter().flatten().map(|group| group.products()).sum::<usize>()
    }

    /// Bits of an element that client and server each open.
    fn opened_bits(&self) -> usize {
        self.openings.iter().flatten().map(|group| group.opened()).sum()
    }
}

/// So many bits in so many chunks, lowest first.
fn cut(bits: u8, count: u8) -> Vec<u8> {
    (0..count).map(|i| bits / count + u8::from(i < bits % count)).collect()
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
    Comparison::of(n, width).messages(t, n);
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
        Comparison::of(pairs, width).messages(t, pairs);
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
        Comparison::of(pairs, width).messages(t, pairs);
        select(t, pairs, indices + values, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    /// Elements that are so many that bits alone decide, and plane bytes are whole.
    const MANY: u64 = 8 << 20;

    fn signs(n: u64, width: u8) -> Traffic {
        let mut t = Traffic::default();
        msb(&mut t, n, width, false);
        t
    }

    /// Bytes that one role sends.
    fn sent(t: &Traffic, from: u8) -> u64 {
        t.msgs.iter().filter(|m| m.from == from).map(|m| m.bytes).sum()
    }

    /// Bits of an element: sent by client and by server each after the mask, and dealt; and rounds after the mask.
    fn measured(n: u64, width: u8) -> (u64, u64, u32) {
        let t = signs(n, width);
        assert_eq!(sent(&t, 0), sent(&t, 1));
        let bits = |bytes: u64| bytes / (n / 8);
        (bits(sent(&t, 0)) - u64::from(width), bits(sent(&t, 2)), t.rounds - 1)
    }

    #[test]
    fn bits_and_rounds_of_signs() {
        assert_eq!(measured(MANY, 2), (0, 3, 0));
        assert_eq!(measured(MANY, 5), (2, 10, 1));
        for (width, expected) in [
            (12, (4, 46, 1)),
            (13, (6, 48, 1)),
            (16, (6, 72, 1)),
            (20, (8, 89, 2)),
            (24, (11, 107, 2)),
            (32, (15, 159, 2)),
            (40, (20, 197, 2)),
            (48, (24, 249, 2)),
            (64, (33, 345, 2)),
        ] {
            assert_eq!(measured(MANY, width), expected, "width {width}");
        }
    }

    /// The numbers of elements from which on a form with fewer bits and one opening more is taken.
    #[test]
    fn few_elements_take_bits_for_rounds() {
        for (width, expected) in [
            (8, vec![(1, (0, 129, 0)), (10_592, (2, 26, 1))]),
            (12, vec![(1, (0, 2049, 0)), (526, (4, 46, 1))]),
            (13, vec![(1, (0, 4097, 0)), (260, (6, 48, 1))]),
            (20, vec![(1, (8, 110, 1)), (49_933, (8, 89, 2))]),
            (24, vec![(1, (8, 166, 1)), (19_785, (11, 107, 2))]),
            (32, vec![(1, (10, 308, 1)), (7544, (15, 159, 2))]),
            (64, vec![(1, (16, 1902, 1)), (689, (33, 345, 2))]),
        ] {
            let way = |n: u64| Comparison::of(n, width);
            for (i, &(from, bits)) in expected.iter().enumerate() {
                let last = expected.get(i + 1).map_or(MANY, |next| (next.0 - 1) / 8 * 8);
                for n in [from.next_multiple_of(8), last] {
                    assert_eq!(measured(n, width), bits, "{n} of width {width}");
                }
                assert!(i == 0 || way(from - 1) != way(from), "width {width}");
            }
        }
    }

    /// Seconds of one round after the other, links side by side.
    fn seconds(t: &Traffic, network: &Network) -> f64 {
        let round = |round: u32| {
            let bytes = t.msgs.iter().filter(|m| m.round == round).map(|m| m.bytes).max().unwrap_or(0);
            network.latency_s() + bytes as f64 / network.bytes_per_s()
        };
        (0..t.rounds).map(round).sum()
    }

    /// The least that the keys of a distributed point function could take: 128 bits a level and a block of leaves, wherever
    /// the tree ends; roots from keys of pairs. The dealer sends them to the server as values are masked, and the server
    /// sends them on.
    fn by_point_function(n: u64, width: u8) -> Traffic {
        let bits = u64::from(width - 1);
        let key = (0..bits).map(|end| 128 * (bits - end) + (1 << end)).min().unwrap_or(0);
        let mut t = Traffic::default();
        exchange(&mut t, u64::from(width) * plane_bytes(n));
        t.send(0, 2, 1, (n * key).div_ceil(8));
        t.send(1, 1, 0, (n * key).div_ceil(8));
        t.rounds = 2;
        t
    }

    /// Why there is no point function: what is taken in its place is no slower on any network, and sends less where it takes
    /// as many rounds. Of one element, whose planes have seven bits that say nothing, keys have up to 120 bytes less, which is
    /// a 1000th of a round. Up to 9 bits a point function is a chunk. If a cost changes so that keys win somewhere, this
    /// fails.
    #[test]
    fn keys_of_a_point_function_never_take_less() {
        for width in 10..=64 {
            for n in (0..=24).map(|power| 1 << power).chain([3, 5, 9, 259, 525, 700, 800, 7000, 20_000, 49_000]) {
                let (taken, keys) = (signs(n, width), by_point_function(n, width));
                let all = |t: &Traffic| (0..3).map(|from| sent(t, from)).sum::<u64>();
                let slack = if n == 1 { 120 } else { 0 };
                assert!(taken.rounds < keys.rounds || all(&taken) <= all(&keys) + slack, "{n} of width {width}");
                for network in [Network::LAN, Network::WAN] {
                    let allowed = seconds(&keys, &network) + slack as f64 / network.bytes_per_s();
                    assert!(seconds(&taken, &network) <= allowed, "{n} of width {width} on {network}");
                }
            }
        }
    }

    #[test]
    fn every_width_is_cut_and_joined() {
        for (width, n) in (2..=64).flat_map(|width| [0, 1, 100, 1000, 10_000, MANY].map(|n| (width, n))) {
            let Comparison { chunks, openings } = Comparison::of(n, width);
            assert_eq!(chunks.iter().sum::<u8>(), width - 1);
            assert!(chunks.iter().all(|bits| (1..=LARGEST_CHUNK).contains(bits)));
            let mut left = chunks.len();
            for groups in openings {
                assert_eq!(groups.iter().map(|group| group.chunks).sum::<usize>(), left);
                assert!(groups.iter().all(|group| group.chunks <= usize::from(MOST_JOINED)));
                assert!(groups.iter().enumerate().all(|(i, group)| group.equal == (i > 0)));
                left = groups.len();
            }
            assert_eq!(left, 1);
        }
    }

    #[test]
    fn bits_and_rounds_of_trees() {
        let rows = RowLens::Equal { count: 8 << 20, len: 4 };
        let bits = |count: fn(&mut Traffic, &RowLens<'_>)| {
            let mut t = Traffic::default();
            count(&mut t, &rows);
            let of = |from: u8| sent(&t, from) >> 20;
            (of(0), of(1), of(2), t.rounds)
        };
        // 24 pairs in two levels of 16 and 8: 4 bits of the comparison and 1 of the selection.
        assert_eq!(bits(|t, rows| row_max(t, rows, 12, 3)), (24 / 8 * (24 + 5), 24 / 8 * 29, 24 / 8 * (46 + 48), 6));
        let (each, dealt) = (2 * 29 + 29 + 24, 2 * (46 + 48) + 46 + 48);
        assert_eq!(bits(|t, rows| arg_max(t, rows, 12, 3)), (each, each, dealt, 6));
    }
}
