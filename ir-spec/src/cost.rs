//! What every interactive op sends in the `3pc` setting, to the byte and the round.
//!
//! A kernel of the runtime must send exactly these messages; tests hold the two together. Roles are *logical*: logical
//! party `j` of an op with rotation `r` is party `(j + r) mod 3`. Payload only: frame headers are not counted.
//! Ring elements take `bits / 8` bytes. A plane of `n` bits takes `⌈n / 8⌉` bytes.
//! Protocols: truncation by the wrap bit of a two-term sum, sign bit by a carry tree, bit to arithmetic from one
//! party's private bit; sharing after Araki et al., 2016/768.

use crate::op::Op;

/// One message of an op: `bytes` from one logical role to another in a round of the op, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msg {
    /// Round within the op.
    pub round: u32,
    /// Sending role.
    pub from: u8,
    /// Receiving role.
    pub to: u8,
    /// Payload bytes.
    pub bytes: u64,
}

/// Messages of one op and the rounds it takes. An op may take a round in which nothing is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rounds from start to result.
    pub rounds: u32,
    /// Messages in order of rounds.
    pub msgs: Vec<Msg>,
}

/// The concrete sizes an op's cost depends on.
#[derive(Clone, Debug)]
pub struct Sizes<'a> {
    /// Elements of the result (of what is revealed for `reveal`).
    pub out: u64,
    /// Ring bits of the operand and of the result, where they are ring elements.
    pub bits: u8,
    /// Ring bits of operand 0 where it has another ring than the result, for `extend`.
    pub from_bits: u8,
    /// Whether operand 0 is a sum over all three parties (`sum3`).
    pub sum3: bool,
    /// Row lengths, for `row_max`; for `arg_max` one row of the axis' length for each result element.
    pub rows: RowLens<'a>,
    /// Rows of the table, for `embed`.
    pub table_rows: u64,
    /// Tokens looked up, for `embed`.
    pub tokens: u64,
}

/// Lengths of rows: all listed, or all equal.
#[derive(Clone, Copy, Debug)]
pub enum RowLens<'a> {
    /// `count` rows of `len` entries.
    Equal {
        /// Number of rows.
        count: u64,
        /// Entries in each.
        len: u64,
    },
    /// One length a row.
    Listed(&'a [u32]),
}

impl RowLens<'_> {
    /// Number of pairs compared at every level of a binary tree over each row: rows halve, an odd one out moves up.
    pub fn pairs_by_level(&self) -> Vec<u64> {
        let mut lens: Vec<(u64, u64)> = match self {
            RowLens::Equal { count, len } => vec![(*len, *count)],
            RowLens::Listed(lens) => {
                let mut by_len = std::collections::BTreeMap::new();
                for &len in lens.iter() {
                    *by_len.entry(u64::from(len)).or_insert(0u64) += 1;
                }
                by_len.into_iter().collect()
            }
        };
        let mut levels = Vec::new();
        while lens.iter().any(|&(len, count)| len > 1 && count > 0) {
            levels.push(lens.iter().map(|&(len, count)| len / 2 * count).sum());
            for (len, _) in &mut lens {
                *len = len.div_ceil(2);
            }
        }
        levels
    }
}

/// Bytes of a plane of `n` bits.
pub fn plane_bytes(n: u64) -> u64 {
    n.div_ceil(8)
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

/// What `op` sends. Ops that are local, sources without messages, or composite send nothing.
pub fn traffic(op: &Op, s: &Sizes) -> Traffic {
    let mut t = Traffic::default();
    let eb = u64::from(s.bits) / 8;
    match op {
        // Client (role 0) holds x0 = F(k_0) with role 2, sends x1 = x − x0 to role 1; x2 = 0.
        Op::Input { .. } => {
            t.send(0, 0, 1, s.out * eb);
            t.rounds = 1;
        }
        Op::Truncate { by } => t.divide(s.out, (eb, eb), u64::from(by.div_ceil(8)), s.sum3),
        Op::Extend { .. } => {
            let from = u64::from(s.from_bits) / 8;
            t.divide(s.out, (from, eb), eb.saturating_sub(from), s.sum3);
        }
        Op::Reshare => t.reshare(s.out * eb, s.sum3),
        Op::Msb { width, drop } => t.msb(s.out, width - drop),
        Op::And => t.and(plane_bytes(s.out)),
        Op::BitToRing { .. } => t.bit_to_ring(s.out * eb),
        Op::RowMax { width, drop, .. } => {
            for pairs in s.rows.pairs_by_level() {
                t.msb(pairs, width - drop);
                t.bit_to_ring(pairs * eb);
                t.reshare(pairs * eb, true);
            }
        }
        // The first level's indices are public, the last level's value is not needed.
        Op::ArgMax { width } => {
            let levels = s.rows.pairs_by_level();
            for (i, &pairs) in levels.iter().enumerate() {
                t.msb(pairs, *width);
                t.bit_to_ring(pairs * eb);
                let products = u64::from(i > 0) + u64::from(i + 1 < levels.len());
                if products > 0 {
                    t.reshare(products * pairs * eb, true);
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
        Op::Public { .. }
        | Op::Encode { .. }
        | Op::PublicWeight { .. }
        | Op::Weight { .. }
        | Op::ClientInts { .. }
        | Op::State { .. }
        | Op::Add
        | Op::Sub
        | Op::Neg
        | Op::MulInt { .. }
        | Op::AddInt { .. }
        | Op::Upscale { .. }
        | Op::SetScale { .. }
        | Op::Mul
        | Op::MatMul { .. }
        | Op::ReduceSum { .. }
        | Op::Narrow { .. }
        | Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Expand { .. }
        | Op::Gather { .. }
        | Op::Pack
        | Op::Unpack { .. }
        | Op::RowSum { .. }
        | Op::RowExpand { .. }
        | Op::Xor
        | Op::Not
        | Op::SetState { .. }
        | Op::Exp { .. }
        | Op::Reciprocal { .. }
        | Op::Div { .. }
        | Op::Sqrt { .. }
        | Op::Log { .. }
        | Op::Rsqrt { .. }
        | Op::Softmax
        | Op::RatioSoftmax { .. }
        | Op::Gelu { .. }
        | Op::Silu
        | Op::Tanh
        | Op::Sigmoid
        | Op::Erf
        | Op::Softplus
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. } => {}
    }
    t
}

impl Traffic {
    /// Payload bytes in all.
    pub fn bytes(&self) -> u64 {
        self.msgs.iter().map(|m| m.bytes).sum()
    }

    fn send(&mut self, offset: u32, from: u8, to: u8, bytes: u64) {
        if bytes > 0 {
            self.msgs.push(Msg { round: self.rounds + offset, from, to, bytes });
        }
    }

    /// Role 2's term goes to role 0 (`sum3` only, one round earlier), the bit-product correlation to role 1; roles 0
    /// and 1 exchange masked wrap bits, then masked results.
    fn divide(&mut self, n: u64, (from, to): (u64, u64), correlation: u64, sum3: bool) {
        if sum3 {
            self.send(0, 2, 0, n * from);
        }
        self.send(0, 2, 1, n * correlation);
        self.rounds += u32::from(sum3);
        self.send(0, 0, 1, plane_bytes(n));
        self.send(0, 1, 0, plane_bytes(n));
        self.send(1, 0, 1, n * to);
        self.send(1, 1, 0, n * to);
        self.rounds += 2;
    }

    /// Every role sends its masked term to the one before it; a two-term sum is exchanged between its holders.
    fn reshare(&mut self, bytes: u64, sum3: bool) {
        if sum3 {
            self.send(0, 0, 2, bytes);
            self.send(0, 1, 0, bytes);
            self.send(0, 2, 1, bytes);
        } else {
            self.send(0, 0, 1, bytes);
            self.send(0, 1, 0, bytes);
        }
        self.rounds += 1;
    }

    /// Every role sends its masked term to the one before it.
    fn and(&mut self, bytes: u64) {
        self.reshare(bytes, true);
    }

    /// Role 0 shares its sum's bits with role 1; roles 1 and 2 exchange the generate bits; then the carry tree, which
    /// needs no propagate bit for the group that holds bit 0.
    fn msb(&mut self, n: u64, width: u8) {
        let plane = plane_bytes(n);
        let w = u64::from(width);
        self.send(0, 0, 1, w * plane);
        self.rounds += 1;
        self.send(0, 2, 1, (w - 1) * plane);
        self.send(0, 1, 2, (w - 1) * plane);
        self.rounds += 1;
        let mut groups = w - 1;
        while groups > 1 {
            self.and((2 * (groups / 2) - 1) * plane);
            groups = groups.div_ceil(2);
        }
    }

    /// Role 0 shares its private bit with role 1; roles 1 and 2 exchange the product with the third component.
    fn bit_to_ring(&mut self, bytes: u64) {
        self.send(0, 0, 1, bytes);
        self.rounds += 1;
        self.send(0, 2, 1, bytes);
        self.send(0, 1, 2, bytes);
        self.rounds += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(out: u64, sum3: bool) -> Sizes<'static> {
        Sizes {
            out,
            bits: 64,
            from_bits: 64,
            sum3,
            rows: RowLens::Equal { count: 0, len: 0 },
            table_rows: 0,
            tokens: 0,
        }
    }

    /// The cost table of the protocol reference, §7, at sizes where planes fill whole bytes.
    #[test]
    fn bits_and_rounds_of_the_cost_table() {
        let per_element = |op: &Op, sum3| {
            let t = traffic(op, &sizes(800, sum3));
            (t.bytes() * 8 / 800, t.rounds)
        };
        assert_eq!(per_element(&Op::Truncate { by: 16 }, true), (210, 3));
        assert_eq!(per_element(&Op::Truncate { by: 16 }, false), (146, 2));
        assert_eq!(per_element(&Op::BitToRing { bits: 64 }, false), (192, 2));
        for (w, bits) in [(64, 544), (48, 400), (40, 328), (32, 259), (28, 223), (24, 187), (20, 151), (16, 118)] {
            let rounds = 2 + tree_levels(w - 1);
            assert_eq!(per_element(&Op::Msb { width: w as u8, drop: 0 }, false), (bits, rounds), "width {w}");
        }
    }

    #[test]
    fn pairs_of_ragged_rows() {
        assert_eq!(RowLens::Listed(&[1, 2, 3, 5, 0]).pairs_by_level(), vec![4, 2, 1]);
        assert_eq!(RowLens::Equal { count: 3, len: 4 }.pairs_by_level(), vec![6, 3]);
        assert!(RowLens::Listed(&[1, 0]).pairs_by_level().is_empty());
    }
}
