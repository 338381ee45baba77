//! `3pc`: client, server and helper, of whom one may be corrupted and is semi-honest; replicated sharing.
//!
//! What every interactive op sends, to the byte and the round. A kernel of the runtime must send exactly these messages;
//! tests hold the two together. Roles are *logical*: logical party `j` of an op with rotation `r` is party `(j + r) mod 3`.
//! Payload only: frame headers are not counted. Ring elements take `bits / 8` bytes. A plane of `n` bits takes `⌈n / 8⌉`
//! bytes. Protocols: products of what roles 0 and 1 know and what role 2 knows, in one round, and from them truncation, the
//! sign bit's carry tree, bits as ring elements and selection; sharing after Araki et al., 2016/768.

use super::{Protocol, Sizes, Traffic, plane_bytes};
use crate::module::Party;
use crate::op::{EXP_WINDOW, Op};
use crate::ty::Sharing;

/// The setting's facts.
pub(super) static PROTOCOL: Protocol = Protocol {
    name: "3pc",
    parties: &[Party::Client, Party::Server, Party::Helper],
    dealer: None,
    product: |a, b| match (a, b) {
        (Sharing::Public, other) | (other, Sharing::Public) => Some(other),
        (Sharing::Shared, Sharing::Shared) => Some(Sharing::Sum3),
        _ => None,
    },
    matrix_product: |a, b| match (a, b) {
        (Sharing::Public, Sharing::Public) => Some(Sharing::Public),
        (Sharing::Public, Sharing::Shared) | (Sharing::Shared, Sharing::Public) => Some(Sharing::Sum2),
        (Sharing::Shared, Sharing::Shared) => Some(Sharing::Sum3),
        _ => None,
    },
    exp_windows: EXP_WINDOW..=EXP_WINDOW,
    components: 3,
    rotations: 3,
    traffic,
    // The server sends the helper's component, the one that no key makes.
    setup: |elements, bits| [0, elements.saturating_mul(u64::from(bits) / 8), 0],
};

/// Bits that a link carries while a message is on its way, at the least of the networks that are usual: 1.2 million at
/// 3 Gbit/s and 0.4 ms, 4 million at 200 Mbit/s and 20 ms. A round is worth so many bits on one link.
const ROUND_BITS: u64 = 1 << 20;
/// Bits an element that `exp_digits` saves by a second round.
pub const EXP_ROUND_BITS: u64 = 320;
/// Bits of a group of a carry at most.
pub const LARGEST_GROUP: u8 = 4;

/// Directions of links, over which what an op sends spreads.
const LINKS: u64 = 4;

/// Whether `n` elements of an op are better sent in one round less at the price of so many bits each.
pub fn is_round_cheaper(n: u64, bits: u64) -> bool {
    n.saturating_mul(bits) <= LINKS * ROUND_BITS
}

/// Products of the bits of a group that one role knows: of every choice of them.
pub fn group_products(bits: u8) -> u64 {
    (1u64 << bits.min(LARGEST_GROUP)) - 1
}

/// How `bits` bits are grouped for the carry of `n` sums, lowest first. Every group's carry takes one round together,
/// and joining groups one round for each doubling of their number; large groups take more bytes. The numbers of groups
/// are powers of two where there are as many bits, and the one is taken whose rounds and busiest link cost least at
/// [`ROUND_BITS`]: sizes alone decide, so all parties agree.
pub fn carry_groups(n: u64, bits: u8) -> Vec<u8> {
    let grouped = |levels: u32| -> Vec<u8> {
        let count = (1u8 << levels).min(bits);
        (0..count).map(|i| bits / count + u8::from(i < bits % count)).collect()
    };
    let price = |levels: u32, groups: &[u8]| {
        let products: u64 = groups.iter().map(|&bits| group_products(bits)).sum();
        // A level joins its groups by nearly two ands a pair.
        let planes = products + 2 * groups.len() as u64;
        n.saturating_mul(planes).saturating_add(u64::from(levels) * ROUND_BITS)
    };
    if bits == 0 {
        return Vec::new();
    }
    (0..=u8::BITS - 2)
        .map(|levels| (levels, grouped(levels)))
        .filter(|(_, groups)| groups.iter().all(|&bits| bits <= LARGEST_GROUP))
        .min_by_key(|(levels, groups)| price(*levels, groups))
        .map_or_else(Vec::new, |(_, groups)| groups)
}

/// Levels of the binary tree that joins `n` items.
pub fn tree_levels(n: u64) -> u32 {
    n.max(1).next_power_of_two().trailing_zeros()
}

/// Bytes of one key of a distributed point function over `[0, domain)` with two points to a leaf: the party and the
/// root seed, for each of `⌈log2⌈domain / 2⌉⌉` levels a correction word and one bit more, and the leaf's correction.
pub fn dpf_key_bytes(domain: u64) -> u64 {
    let levels = u64::from(tree_levels(domain.div_ceil(2)));
    17 + 16 * levels + levels.div_ceil(8) + 16
}

/// Whether parties take part in an op together: they send messages, or take rounds.
pub fn is_interactive(op: &Op) -> bool {
    match op {
        Op::ExpDigits { window, .. } => *window == EXP_WINDOW,
        _ => matches!(
            op,
            Op::Truncate { .. }
                | Op::Reshare
                | Op::Msb { .. }
                | Op::And
                | Op::BitToRing { .. }
                | Op::RowMax { .. }
                | Op::ArgMax { .. }
                | Op::Lookup { .. }
                | Op::Embed
                | Op::Reveal { .. }
        ),
    }
}

/// What `op` sends. Ops that are local, sources without messages, or composite send nothing.
fn traffic(op: &Op, s: &Sizes) -> Traffic {
    let mut t = Traffic::default();
    let (eb, sum3) = (u64::from(s.bits) / 8, s.forms[0] == Sharing::Sum3);
    match op {
        // Client (role 0) holds x0 = F(k_0) with role 2, sends x1 = x − x0 to role 1; x2 = 0.
        Op::Input { .. } => {
            t.send(0, 0, 1, s.out * eb);
            t.rounds = 1;
        }
        Op::Truncate { by, .. } => {
            // A quotient is no smaller than what is divided: it is narrowed where it is.
            let (from, to) = (u64::from(s.from_bits) / 8, u64::from(s.bits.max(s.from_bits)) / 8);
            t.divide(s.out, (from, to), to - from + u64::from(by.div_ceil(8)), sum3);
        }
        Op::Reshare => t.reshare(s.out * eb, sum3),
        Op::Msb { width, drop } => t.msb(s.out, width - drop),
        Op::And => t.and(plane_bytes(s.out)),
        Op::BitToRing { .. } => t.bit_to_ring(s.out, eb),
        Op::ExpDigits { .. } => t.exp_digits(s.out),
        Op::Lookup { window, cell, .. } => t.lookup(s.out, 1 << (window - cell), eb),
        Op::RowMax { width, drop, .. } => {
            for pairs in s.rows.pairs_by_level() {
                t.msb(pairs, width - drop);
                t.select(pairs * eb);
            }
        }
        // The first level's indices are its bits, the last level's value is not needed.
        Op::ArgMax { width } => {
            let levels = s.rows.pairs_by_level();
            for (i, &pairs) in levels.iter().enumerate() {
                t.msb(pairs, *width);
                let bytes = (u64::from(i > 0) + u64::from(i + 1 < levels.len())) * pairs * eb;
                let at = t.rounds;
                if bytes > 0 {
                    t.select(bytes);
                }
                if i == 0 {
                    t.rounds = at;
                    t.cross_term(1, pairs * eb);
                }
            }
        }
        // The client sends one key of a pair to each of the others; then a sum over all three is reshared.
        Op::Embed => {
            let keys = s.tokens * dpf_key_bytes(s.table_rows);
            t.send(0, 0, 1, keys);
            t.send(0, 0, 2, keys);
            t.rounds += 1;
            t.reshare(s.out * eb, true);
        }
        // The client (role 0) lacks component 2, which role 1 sends.
        Op::Reveal { .. } => {
            t.send(0, 1, 0, s.out * eb);
            t.rounds = 1;
        }
        _ => {}
    }
    t
}

impl Traffic {
    /// Where roles 0 and 1 know one term, role 2 deals the quotient of the other to role 1, and the wrap is a crossing.
    /// Of three terms, roles 0 and 1 exchange theirs first, and the wrap's two terms in a second round; unless there are
    /// many.
    fn divide(&mut self, n: u64, (from, to): (u64, u64), wrap: u64, sum3: bool) {
        if sum3 && !is_round_cheaper(n, 16 * wrap) {
            return self.divide_many(n, (from, to), wrap);
        }
        self.send(0, 2, 1, n * to);
        if sum3 {
            self.send(0, 2, 1, n * wrap);
            self.send(0, 0, 1, n * from);
            self.send(0, 1, 0, n * from);
            self.rounds += 1;
            self.send(0, 0, 1, n * wrap);
            self.send(0, 1, 0, n * wrap);
            self.rounds += 1;
        } else {
            self.cross_term(1, n * wrap);
        }
    }

    /// Role 2's term goes to role 0, the bit-product correlation to role 1; roles 0 and 1 exchange masked wrap bits, then
    /// masked results.
    fn divide_many(&mut self, n: u64, (from, to): (u64, u64), correlation: u64) {
        self.send(0, 2, 0, n * from);
        self.send(0, 2, 1, n * correlation);
        self.send(1, 0, 1, plane_bytes(n));
        self.send(1, 1, 0, plane_bytes(n));
        self.send(2, 0, 1, n * to);
        self.send(2, 1, 0, n * to);
        self.rounds += 3;
    }

    /// Bits as ring elements. Of many, role 0 shares its private bit with role 1; roles 1 and 2 exchange the product with
    /// the third component.
    fn bit_to_ring(&mut self, n: u64, bytes: u64) {
        if is_round_cheaper(n, 8 * bytes) {
            return self.cross_term(1, n * bytes);
        }
        self.send(0, 0, 1, n * bytes);
        self.send(1, 2, 1, n * bytes);
        self.send(1, 1, 2, n * bytes);
        self.rounds += 2;
    }

    /// The sum of `factors` products of `bytes` each, whose one factor roles 0 and 1 know and whose other role 2 knows:
    /// role 2 masks its factors for both others, which send each other what takes the masks off.
    fn cross_term(&mut self, factors: u64, bytes: u64) {
        self.send(0, 2, 0, factors * bytes);
        self.send(0, 2, 1, factors * bytes);
        self.send(0, 0, 1, bytes);
        self.send(0, 1, 0, bytes);
        self.rounds += 1;
    }

    /// Four products of 8 bytes, of which one is not zero. Of many, role 2 masks its factors for role 1 alone, and roles 0
    /// and 1 exchange the rounded terms of the sum.
    fn exp_digits(&mut self, n: u64) {
        if is_round_cheaper(n, EXP_ROUND_BITS) {
            return self.cross_term(4, 8 * n);
        }
        self.send(0, 2, 1, 4 * 8 * n);
        self.send(1, 0, 1, 4 * n);
        self.send(1, 1, 0, 4 * n);
        self.rounds += 2;
    }

    /// Role 2 deals a vector of bits and three factors to role 1; then roles 0 and 1 exchange shares of three products with
    /// them.
    fn lookup(&mut self, n: u64, cells: u64, bytes: u64) {
        self.send(0, 2, 1, n * (plane_bytes(cells) + 3 * bytes));
        self.send(1, 0, 1, 3 * n * bytes);
        self.send(1, 1, 0, 3 * n * bytes);
        self.rounds += 2;
    }

    /// A bit times a ring element: two products, and a summand that role 2 deals.
    fn select(&mut self, bytes: u64) {
        self.send(0, 2, 1, bytes);
        self.cross_term(2, bytes);
    }

    /// Every role sends its masked term to the one before it; of two terms role 2 deals its own to role 1.
    fn reshare(&mut self, bytes: u64, sum3: bool) {
        if sum3 {
            self.send(0, 0, 2, bytes);
            self.send(0, 1, 0, bytes);
        }
        self.send(0, 2, 1, bytes);
        self.rounds += 1;
    }

    /// Every role sends its masked term to the one before it.
    fn and(&mut self, bytes: u64) {
        self.reshare(bytes, true);
    }

    /// Role 2 masks the products of its bits in every group for both others, and deals its highest bit to role 1; roles 0
    /// and 1 exchange what takes the masks off the groups' generate and propagate bits, of which the lowest group needs
    /// the first alone. Then the carry tree, which needs no propagate bit for the group that holds bit 0.
    fn msb(&mut self, n: u64, width: u8) {
        let plane = plane_bytes(n);
        let groups = carry_groups(n, width - 1);
        let products = groups.iter().map(|&bits| group_products(bits)).sum::<u64>();
        let mut groups = groups.len() as u64;
        let joint = (2 * groups).saturating_sub(1);
        self.send(0, 2, 0, products * plane);
        self.send(0, 2, 1, (products + 1) * plane);
        self.send(0, 0, 1, joint * plane);
        self.send(0, 1, 0, joint * plane);
        self.rounds += 1;
        while groups > 1 {
            self.and((2 * (groups / 2) - 1) * plane);
            groups = groups.div_ceil(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RowLens;
    use super::*;

    fn sizes(out: u64, sum3: bool) -> Sizes<'static> {
        Sizes {
            out,
            bits: 64,
            from_bits: 64,
            forms: [if sum3 { Sharing::Sum3 } else { Sharing::Shared }, Sharing::Public],
            elements: [0; 2],
            of_server: [false; 2],
            rows: RowLens::Equal { count: 0, len: 0 },
            table_rows: 0,
            tokens: 0,
        }
    }

    /// Bits and rounds an element, at sizes where planes fill whole bytes.
    #[test]
    fn bits_and_rounds_of_ops() {
        let per_element = |op: &Op, n, sum3| {
            let t = traffic(op, &sizes(n, sum3));
            (t.bytes() * 8 / n, t.rounds)
        };
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 64 }, 800, true), (3 * 64 + 3 * 16, 2));
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 64 }, 800, false), (64 + 4 * 16, 1));
        assert_eq!(per_element(&Op::Reshare, 800, true), (3 * 64, 1));
        assert_eq!(per_element(&Op::Reshare, 800, false), (64, 1));
        assert_eq!(per_element(&Op::BitToRing { bits: 64 }, 800, false), (4 * 64, 1));
        assert_eq!(
            per_element(&Op::ExpDigits { scale: 16, window: EXP_WINDOW, tail: false }, 800, false),
            (8 * 64 + 2 * 64, 1)
        );
        assert_eq!(
            per_element(&Op::ExpDigits { scale: 16, window: EXP_WINDOW, tail: true }, 1 << 20, false),
            (4 * 64 + 2 * 32, 2)
        );
        // Few elements take few rounds, many take few bits.
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 64 }, 800_000, true), (3 * 64 + 16 + 2, 3));
        assert_eq!(per_element(&Op::BitToRing { bits: 64 }, 800_000, false), (3 * 64, 2));
        for (n, w, bits, rounds) in [(800, 5, 33, 1), (800, 17, 147, 3), (80_000, 17, 112, 4), (800, 64, 605, 5)] {
            let op = Op::Msb { width: w, drop: 0 };
            assert_eq!(per_element(&op, n, false), (bits, rounds), "{n} of width {w}");
        }
    }

    #[test]
    fn carries_are_grouped_by_their_number() {
        assert_eq!(carry_groups(1, 0), Vec::<u8>::new());
        assert_eq!(carry_groups(1, 3), vec![3]);
        assert_eq!(carry_groups(1, 15), vec![4, 4, 4, 3]);
        for n in [0, 1, 800, 80_000, 1 << 40, u64::MAX] {
            for bits in 0..=63 {
                let groups = carry_groups(n, bits);
                assert_eq!(groups.iter().sum::<u8>(), bits);
                assert!(groups.iter().all(|bits| (1..=LARGEST_GROUP).contains(bits)));
            }
        }
        assert!(carry_groups(1 << 30, 32).iter().all(|&bits| bits <= 2));
    }
}
