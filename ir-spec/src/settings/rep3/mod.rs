//! `3pc`: client, server and helper, of whom one may be corrupted and is semi-honest; replicated sharing.
//!
//! What every interactive op sends, to the byte and the round. A kernel of the runtime must send exactly these messages;
//! tests hold the two together. Roles are *logical*: logical party `j` of an op with rotation `r` is party `(j + r) mod 3`.
//! Payload only: frame headers are not counted. Ring elements take `bits / 8` bytes. A plane of `n` bits takes `⌈n / 8⌉`
//! bytes. Protocols: products of what roles 0 and 1 know and what role 2 knows, in one round, and from them truncation, the
//! sign bit's carry tree, bits as ring elements and selection; sharing after Araki et al., 2016/768.
//!
//! Role 2 receives nothing in any op but `embed`: it deals. Its part of every result follows from keys and from its parts of
//! the operands, so that it is a round or more ahead of the others and what it deals is there when they need it.

mod carry;
mod tree;

pub use carry::{Carry, CarryBits, LARGEST_GROUP, LARGEST_JOIN, carry, group_products, join_bits};
pub use tree::{MUX_PRODUCTS, tree_steps};

use super::{Dealt, Protocol, ROUND_BITS, RowLens, Setting, Sizes, Traffic, plane_bytes, wrap_bytes};
use crate::module::Party;
use crate::op::{EXP_WINDOW, Op, exp_form};
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
    quotient: Sharing::Sum2,
    fraction_bits: 16,
    exp_windows: EXP_WINDOW..=EXP_WINDOW,
    components: 3,
    rotations: 3,
    traffic,
    // The server sends the helper's component, the one that no key makes.
    setup: |elements, bits| [0, elements.saturating_mul(u64::from(bits) / 8), 0],
    session_setup: |_| ([0; 3], 0),
    ciphertexts: None,
    check: |_| Ok(()),
};

/// Bits, in whole bytes, that a division of three terms by `2^by` cuts off every term before: what is sent is shorter by them.
pub fn cut_first(by: u8) -> u8 {
    by / 8 * 8
}

/// The number of factors of 64 bits that role 2 deals of an exponential in a window of `2^window`, of which one is taken. Two
/// where the upper half of the window is not used.
pub fn exp_factors(window: u8) -> usize {
    if window < EXP_WINDOW { 2 } else { 4 }
}

/// Directions of links, over which what an op sends spreads.
const LINKS: u64 = 3;

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
        Op::ExpDigits { window, .. } => *window <= EXP_WINDOW,
        _ => matches!(
            op,
            Op::Truncate { .. }
                | Op::Reshare
                | Op::Msb { .. }
                | Op::And
                | Op::BitToRing { .. }
                | Op::Select
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
            t.dealt = Some(Dealt::default());
            t.rounds = 1;
        }
        Op::Truncate { by, .. } => {
            let from = u64::from(if sum3 { s.from_bits.saturating_sub(cut_first(*by)) } else { s.from_bits }) / 8;
            match wrap_bytes(s.from_bits, s.bits, *by) {
                0 if sum3 => {
                    t.exchange(s.out * from);
                    t.dealt = Some(Dealt::default());
                }
                0 => {}
                wrap => t.divide(s.out, (from, eb), wrap.into(), sum3),
            }
        }
        Op::Reshare if sum3 => t.reshare(s.out * eb),
        // The term of roles 0 and 1 is component 1.
        Op::Reshare => t.deal(0, 1, s.out * eb),
        Op::Msb { width, drop } => t.msb(s.out, width - drop),
        Op::And => t.and(plane_bytes(s.out)),
        Op::BitToRing { .. } => t.cross_term(1, s.out * eb),
        Op::Select => t.cross_term(2, s.out * eb),
        // Factors, of which one is taken, and the rounded terms of a product.
        Op::ExpDigits { window, tail, .. } => {
            let (bits, _) = exp_form(Setting::ThreeParty, *tail);
            t.deal(0, 1, exp_factors(*window) as u64 * 8 * s.out);
            t.exchange(s.out * u64::from(bits) / 8);
        }
        Op::Lookup { window, cell, .. } => t.lookup(s.out, 1 << (window - cell), eb),
        Op::RowMax { width, drop, .. } => {
            t.tree(&s.rows, width - drop, eb, false);
            if !s.forms[0].is_sum() {
                t.deal(0, 1, s.out * eb);
            }
        }
        Op::ArgMax { width } => {
            let levels = t.tree(&s.rows, *width, eb, true);
            if levels > 0 {
                t.cross_term(1, levels * s.out * eb);
            }
        }
        // The client sends one key of a pair to each of the others; then a sum over all three is reshared. Role 2 waits for
        // its key.
        Op::Embed => {
            let (keys, bytes) = (s.tokens * dpf_key_bytes(s.table_rows), s.out * eb);
            t.send(0, 0, 1, keys);
            t.send(0, 0, 2, keys);
            t.send(1, 2, 1, bytes);
            t.rounds += 1;
            t.exchange(bytes);
        }
        // The client (role 0) lacks component 2, which role 1 sends.
        Op::Reveal { .. } => {
            t.send(0, 1, 0, s.out * eb);
            t.dealt = Some(Dealt::default());
            t.rounds = 1;
        }
        _ => {}
    }
    t
}

impl Traffic {
    /// Roles 0 and 1 send each other as many bytes.
    fn exchange(&mut self, bytes: u64) {
        self.send(0, 0, 1, bytes);
        self.send(0, 1, 0, bytes);
        self.rounds += 1;
    }

    /// Where roles 0 and 1 know one term, role 2 deals the quotient of the other to role 1, and the wrap is a crossing.
    /// Of three terms, role 2's goes to role 0, and the bit-product correlation to role 1, who exchange masked wrap bits,
    /// then masked results.
    fn divide(&mut self, n: u64, (from, to): (u64, u64), wrap: u64, sum3: bool) {
        if sum3 {
            self.deal(0, 0, n * from);
            self.deal(1, 1, n * wrap);
            self.exchange(plane_bytes(n));
            self.exchange(n * to);
        } else {
            self.deal(1, 1, n * to);
            self.cross_term(1, n * wrap);
        }
    }

    /// The sum of `factors` products of `bytes` each, whose one factor roles 0 and 1 know and whose other role 2 knows:
    /// role 2 deals its factors, masked, to role 1, and the others exchange their halves.
    fn cross_term(&mut self, factors: u64, bytes: u64) {
        self.deal(0, 1, factors * bytes);
        self.exchange(bytes);
    }

    /// Role 2 deals a vector of bits and three factors to role 1; roles 0 and 1 exchange shares of three products with them.
    fn lookup(&mut self, n: u64, cells: u64, bytes: u64) {
        self.deal(0, 1, n * (plane_bytes(cells) + 3 * bytes));
        self.exchange(3 * n * bytes);
    }

    /// Roles 0 and 1 exchange their masked terms, and role 2 deals its own to role 1.
    fn reshare(&mut self, bytes: u64) {
        self.deal(1, 1, bytes);
        self.exchange(bytes);
    }

    /// As [`reshare`](Self::reshare), of bits.
    fn and(&mut self, bytes: u64) {
        self.reshare(bytes);
    }

    /// Of every step the signs of all its differences, then level by level a selection, which is two products of a bit and a
    /// ring element, and of the signs those that the next level's pairs have. With indices, a level chooses the bits of the
    /// levels before it, and the last value is not needed. The number of levels.
    fn tree(&mut self, rows: &RowLens<'_>, width: u8, eb: u64, indexed: bool) -> u64 {
        let levels = rows.pairs_by_level();
        let mut level = 0;
        for step in tree_steps(rows, width) {
            self.msb(rows.comparisons(level, 1 << step), width);
            for i in 1..=step {
                let last = usize::from(level) + 1 == levels.len();
                let pairs = levels.get(usize::from(level)).copied().unwrap_or(0);
                let at = self.rounds;
                if i < step {
                    let plane = plane_bytes(rows.comparisons(level + 1, 1 << (step - i)));
                    self.deal(0, 1, MUX_PRODUCTS * plane);
                    self.exchange(plane);
                    self.rounds = at;
                }
                if indexed && level > 0 {
                    self.and(u64::from(level) * plane_bytes(pairs));
                }
                if !(indexed && last) {
                    self.rounds = at;
                    self.cross_term(2, pairs * eb);
                }
                level += 1;
            }
        }
        levels.len() as u64
    }

    /// Role 2 deals the products of its bits in every group to role 1, masked; roles 0 and 1 exchange their halves of the
    /// groups' generate and propagate bits. Joins likewise. Role 2's highest bit is part of what it deals for the last join;
    /// where there is none, it is dealt.
    fn msb(&mut self, n: u64, width: u8) {
        let (plane, carry) = (plane_bytes(n), carry(n, width - 1));
        for (i, bits) in carry.bits().into_iter().enumerate() {
            // Terms of ands are needed after their round.
            let late = i > 0 && carry.joins.get(i - 1) == Some(&2);
            self.deal(u32::from(late), 1, bits.dealt * plane);
            self.exchange(bits.exchanged * plane);
        }
        if carry.joins.is_empty() {
            self.deal(0, 1, plane);
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
            same: false,
            rows: RowLens::Equal { count: 0, len: 0 },
            table_rows: 0,
            tokens: 0,
            inner: 0,
            matrix_rows: 0,
            columns: 0,
        }
    }

    /// Bits and rounds an element, at sizes where planes fill whole bytes.
    #[test]
    fn bits_and_rounds_of_ops() {
        let per_element = |op: &Op, n, sum3| {
            let bits = if let Op::Truncate { bits, .. } = op { *bits } else { 64 };
            let t = traffic(op, &Sizes { bits, ..sizes(n, sum3) });
            (t.bytes() * 8 / n, t.rounds)
        };
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 64 }, 800, true), (3 * 64 + 2, 2));
        assert_eq!(per_element(&Op::Truncate { by: 21, bits: 64 }, 800, true), (3 * 64 + 8 + 2, 2));
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 48 }, 800, true), (2 * 48, 1));
        assert_eq!(per_element(&Op::Truncate { by: 16, bits: 64 }, 800, false), (64 + 3 * 16, 1));
        assert_eq!(per_element(&Op::Reshare, 800, true), (3 * 64, 1));
        assert_eq!(per_element(&Op::Reshare, 800, false), (64, 0));
        assert_eq!(per_element(&Op::And, 800, false), (3, 1));
        assert_eq!(per_element(&Op::BitToRing { bits: 64 }, 800, false), (3 * 64, 1));
        assert_eq!(per_element(&Op::Select, 800, false), (4 * 64, 1));
        for (window, tail, dealt, bits) in [(6, false, 4 * 64, 24), (6, true, 4 * 64, 32), (5, false, 2 * 64, 24)] {
            let exp = Op::ExpDigits { scale: 16, window, tail };
            assert_eq!(per_element(&exp, 800, false), (dealt + 2 * bits, 1));
        }
        // Few elements take few rounds, many take few bits.
        for (n, w, bits, rounds) in [(800, 5, 18, 1), (800, 17, 97, 2), (800_000, 17, 76, 4), (800, 64, 439, 3)] {
            let op = Op::Msb { width: w, drop: 0 };
            assert_eq!(per_element(&op, n, false), (bits, rounds), "{n} of width {w}");
        }
    }

    /// Role 2 receives nothing but its key of a lookup of rows, and what the others need to begin leaves it before.
    #[test]
    fn role_2_deals() {
        for op in [Op::Truncate { by: 16, bits: 64 }, Op::Reshare, Op::And, Op::Msb { width: 17, drop: 0 }] {
            for sum3 in [false, true] {
                let t = traffic(&op, &sizes(800, sum3));
                assert!(t.msgs.iter().all(|m| m.from != 2 && m.to != 2) && t.dealt.is_some());
            }
        }
        let lead = |op: &Op, sum3| traffic(op, &sizes(800, sum3)).dealt.map(|dealt| dealt.lead);
        assert_eq!([lead(&Op::Reshare, true), lead(&Op::And, false)], [Some(0); 2]);
        assert_eq!([lead(&Op::Reshare, false), lead(&Op::Msb { width: 17, drop: 0 }, false)], [Some(1); 2]);
    }
}
