//! `2pc`: client and server alone, with additive shares; one of the two may be corrupted and is semi-honest.
//!
//! What every op sends, to the byte and the round; tests hold the runtime's kernels to it. Roles: 0 the client, 1 the
//! server. Products of large matrices are of the client's ciphertexts ([`tilings`]). All other correlations are oblivious
//! transfers, made in the op that uses them: who chooses sends what the extension needs and its choices in one message, who
//! offers answers in the next round.
//!
//! | what | of who chooses | of who offers |
//! |---|---|---|
//! | 64 random transfers | 120 bytes | |
//! | 64 chosen transfers | 128 bytes | |
//! | products of matrices: ciphertexts, the client's | of its parts | of products |
//! | or, where that is less, for every element of the left one | as an element's product | the same for every element of a row of the right one |
//! | an element's product with `p` bits in a ring of `ℓ` | `p` transfers | Σ `ℓ − i` bits for `i < p`, in whole bytes each |
//! | one of `c` entries of `b` bytes | `⌈log2 c⌉` transfers | `c·b` bytes |
//!
//! Transfers are made 64 at a time: of `n` elements there are `64⌈n / 64⌉` for every bit.

use ombra_lattice::params::{TILE_SETS, TileSet};
use ombra_lattice::tiles::{ERROR_BITS, MOST_INNER, Tiling, public_key_bytes};

use super::dealer::{ExpTable, exp_table};
use super::{Ciphertexts, Protocol, RowLens, Sizes, Traffic, plane_bytes, wrap_bytes};
use crate::diag::{Diagnostic, Result};
use crate::module::{Module, Node, Party};
use crate::op::{EXP_WINDOW, EXP_WINDOWS, Op};
use crate::ty::Sharing;

/// Levels of the trees from which transfers are extended. A transfer takes `128 / levels − 1` bits and `128 / levels ·
/// 2^levels` bits of streams: 15 bits and about 15 ns at 8 levels, 31 bits and 4 ns at 4. So 8 are cheaper on every link of
/// less than 1 Gbit/s.
pub const TREE_LEVELS: u8 = 8;
/// Payload bytes that client and server send to set up a session without ciphertexts: 16 of each for its id, and 16 of the
/// server for the key that they share; in each direction 128 base transfers, by a point of 32 bytes from who offers and two for each from who
/// chooses; 32 bytes for each of the 128 levels of trees; and a digest of 32 bytes.
pub const SETUP_SENT: [u64; 2] = {
    let each = 32 + 128 * 64 + 128 * 32 + 32;
    [16 + each, 32 + each]
};
/// Bytes of the seed of a public key's polynomials, which the client sends with the key.
pub const TILE_SEED: usize = 16;
/// Rounds of it.
pub const SETUP_ROUNDS: u32 = 4;
/// Bits of a leaf of a comparison at most: it is one of `2^4` entries.
pub const LEAF: u8 = 4;

/// The setting's facts. A product is finished: each party holds a share of it.
pub(super) static PROTOCOL: Protocol = Protocol {
    name: "2pc",
    parties: &[Party::Client, Party::Server],
    dealer: None,
    product,
    matrix_product: product,
    quotient: Sharing::Shared,
    fraction_bits: 14,
    exp_windows: *EXP_WINDOWS.start()..=EXP_WINDOW + 1,
    components: 2,
    rotations: 1,
    traffic,
    // The server keeps its weights: they are its share.
    setup: |_, _| [0; 3],
    session_setup: |module| {
        let keys = tile_sets(module).iter().map(|set| (TILE_SEED + public_key_bytes(set)) as u64).sum::<u64>();
        ([SETUP_SENT[0] + keys, SETUP_SENT[1], 0], SETUP_ROUNDS)
    },
    // Two products of tiles, in rings of the first parameter set.
    ciphertexts: Some(Ciphertexts { error: ERROR_BITS + 1, short_ring: TILE_SETS[0].ring as u8 }),
    check,
};

/// Products of secrets are shares, as secrets are.
fn product(a: Sharing, b: Sharing) -> Option<Sharing> {
    match (a, b) {
        (Sharing::Public, other) | (other, Sharing::Public) => Some(other),
        (Sharing::Shared, Sharing::Shared) => Some(Sharing::Shared),
        _ => None,
    }
}

/// Whether parties take part in an op together; `public` says which of its first two operands every party knows.
pub fn is_interactive(op: &Op, public: [bool; 2]) -> bool {
    match op {
        Op::Mul | Op::MatMul { .. } => public == [false; 2],
        Op::Truncate { .. }
        | Op::Msb { .. }
        | Op::And
        | Op::BitToRing { .. }
        | Op::ExpDigits { .. }
        | Op::Select
        | Op::Lookup { .. }
        | Op::RowMax { .. }
        | Op::ArgMax { .. }
        | Op::Embed
        | Op::Reveal { .. } => true,
        _ => false,
    }
}

/// Bits of the leaves of a comparison of `bits` bits, lowest first.
pub fn leaves(bits: u8) -> Vec<u8> {
    (0..bits.div_ceil(LEAF)).map(|leaf| LEAF.min(bits - LEAF * leaf)).collect()
}

/// Pairs of neighbours that every level of a comparison's tree joins: an odd last one moves up.
pub fn joined(leaves: usize) -> Vec<usize> {
    let mut left = leaves;
    let mut levels = Vec::new();
    while left > 1 {
        levels.push(left / 2);
        left = left.div_ceil(2);
    }
    levels
}

/// Planes that each party opens at a level: of a pair one for what the two products have in common, and one for each other
/// factor. Of the lowest pair one product is taken.
pub fn opened(pairs: usize) -> usize {
    3 * pairs - 1
}

/// How an exponential is looked up: cells by one of their number, and factors of so many bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exp {
    /// The table.
    pub table: ExpTable,
    /// Bits of a factor: at most 1, with as many fraction bits as the entry leaves.
    pub factor: u8,
}

/// The lookup of a window.
pub fn exp(window: u8, tail: bool) -> Exp {
    let table = exp_table(window, tail);
    Exp { table, factor: table.ring - 3 - table.entry_scale + 1 }
}

/// Fraction bits that coefficients of a parabola have less than a result of scale `scale`, and so its powers; of the powers
/// 1 and 2.
pub fn power_scales(scale: u8) -> [u8; 2] {
    [scale - (scale / 2 + 2), scale - (scale / 2 + 4)]
}

/// The sets of ciphertexts that the products and lookups of a module take, each once: the client sends a public key for each
/// when a session is set up.
pub fn tile_sets(module: &Module) -> Vec<&'static TileSet> {
    let set = |node: &Node| {
        let secret = |i: usize| node.args.get(i).is_some_and(|&arg| module.ty(arg).sharing.is_secret());
        let (bits, _) = node.ty.as_ring()?;
        match node.op {
            Op::MatMul { .. } if secret(0) && secret(1) => TileSet::for_ring(bits.into()),
            Op::Embed => TileSet::for_ring(u32::from(bits) + ROW_DROPPED),
            _ => None,
        }
    };
    let mut sets: Vec<_> = module.ops.iter().filter_map(set).collect();
    sets.sort_by_key(|set| set.id);
    sets.dedup();
    sets
}

/// What a product of two secret matrices takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Both parties have a part of the right one.
    Shared,
    /// The server has it whole.
    OfServer,
    /// It is the left one, turned: the parties' mixed products are each other's, turned.
    Same,
}

/// Products in tiles by which two secret matrices are multiplied in a ring of `bits`: of the client's part of the left one with
/// the server's part of the right one, and of the client's part of the right one with the server's part of the left one, all
/// turned, where both have such. `sizes` are how many products there are, and rows, inner size and columns of each. None where
/// transfers take fewer bytes, and where a size is 0 or the inner one is too large, see [`check`].
pub fn tilings(sizes: [usize; 4], right: Right, bits: u8) -> Vec<Tiling> {
    let [batch, rows, inner, columns] = sizes;
    let Some(set) = TileSet::for_ring(bits.into()) else { return Vec::new() };
    let straight = Tiling::new(set, batch, rows, inner, columns);
    let turned = (right == Right::Shared).then(|| Tiling::new(set, batch, columns, inner, rows));
    let tilings: Vec<_> = std::iter::once(straight).chain(turned).flatten().collect();
    let bytes = |tiling: &Tiling| [tiling.message_bytes(), tiling.answer_bytes(bits.into())];
    let in_tiles = tilings.iter().flat_map(bytes).fold(0u64, |sum, bytes| sum.saturating_add(bytes as u64));
    let times = if right == Right::Shared { 2 } else { 1 };
    let [choices, answers] = by_transfers(sizes, bits);
    if choices.saturating_add(answers).saturating_mul(times) < in_tiles { Vec::new() } else { tilings }
}

/// Bits below the units of a row that is looked up by ciphertexts: the error of the product stays in them.
pub const ROW_DROPPED: u32 = ERROR_BITS + 1;

/// Ids of a lookup that are one product at least, and products at most.
const IDS_AT_ONCE: usize = 64;
const MOST_PRODUCTS: usize = 1 << 8;

/// Products in tiles by which a private table of so many rows and columns in a ring of `bits` is looked up at so many ids: some
/// of the client's unit vectors each, times the table, with [`ROW_DROPPED`] bits more. None where transfers of all rows take
/// fewer bytes, and of wider rings.
pub fn row_tilings([ids, rows, columns]: [usize; 3], bits: u8) -> Vec<Tiling> {
    let wide = u32::from(bits) + ROW_DROPPED;
    let Some(set) = TileSet::for_ring(wide) else { return Vec::new() };
    let at_once = IDS_AT_ONCE.max(ids.div_ceil(MOST_PRODUCTS));
    let tilings = (0..ids).step_by(at_once).map(|first| Tiling::new(set, 1, at_once.min(ids - first), rows, columns));
    let Some(tilings) = tilings.map(std::result::Result::ok).collect::<Option<Vec<_>>>() else { return Vec::new() };
    let bytes = |tiling: &Tiling| (tiling.message_bytes() + tiling.answer_bytes(wide)) as u64;
    let in_tiles = tilings.iter().map(bytes).fold(0, u64::saturating_add);
    let entries = (ids as u64).saturating_mul(columns as u64).saturating_mul(rows as u64);
    let by_transfers = entries.saturating_mul(ring_bytes(bits.into()));
    if rows as u64 <= MOST_ROWS && by_transfers < in_tiles { Vec::new() } else { tilings }
}

/// Bytes of who chooses and of who offers where matrices are multiplied by transfers, of one party's left one.
fn by_transfers([batch, rows, inner, columns]: [usize; 4], bits: u8) -> [u64; 2] {
    let elements = (batch as u64).saturating_mul(rows as u64).saturating_mul(inner as u64);
    let choices = u64::from(bits).saturating_mul(elements.div_ceil(64)).saturating_mul(EXTENSION + 8);
    [choices, times_bytes(bits.into(), elements.saturating_mul(columns as u64), bits.into())]
}

impl Sizes<'_> {
    /// What a product of two secrets takes.
    fn right(&self) -> Right {
        match self.of_server {
            [false, true] => Right::OfServer,
            _ if self.same => Right::Same,
            _ => Right::Shared,
        }
    }
}

/// The sizes of [`tilings`]: where all rows meet one matrix, they are rows of one product.
fn matrices(s: &Sizes) -> [usize; 4] {
    let (columns, of_one) = (s.columns.max(1), s.inner.saturating_mul(s.columns));
    let (batch, rows) = if s.elements[1] <= of_one {
        (1, s.out / columns)
    } else {
        (s.out / columns.saturating_mul(s.matrix_rows).max(1), s.matrix_rows)
    };
    [batch, rows, s.inner, s.columns].map(|size| usize::try_from(size).unwrap_or(usize::MAX))
}

/// Rows of a private table at most that is looked up by transfers: each is one of so many entries, and sends all of them.
pub const MOST_ROWS: u64 = 1 << 14;

/// Checks that the setting serves a module: tables that are too large for transfers fit ciphertexts, and no sum of products
/// is too long for their noise.
///
/// # Errors
/// `E0421`.
pub fn check(module: &Module) -> Result<()> {
    for node in module.ops.iter().filter(|node| matches!(node.op, Op::Embed)) {
        let rows = node.args.get(1).and_then(|&table| module.ty(table).shape.first()?.as_constant());
        let rows = rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(u64::MAX);
        let bits = node.ty.as_ring().map_or(0, |(bits, _)| bits);
        let fits = TileSet::for_ring(u32::from(bits) + ROW_DROPPED).is_some();
        let most = if fits { MOST_INNER as u64 } else { MOST_ROWS };
        if rows > most {
            return Err(Diagnostic::input("E0421", "a private table is too large for the setting 2pc")
                .at(node.origin.node.clone())
                .note(format!("expected  at most {most} rows"))
                .note(format!("found     {rows} of a ring of {bits} bits"))
                .note(
                    "help      make the embedding public with --base or --public, or compile for 3pc or 2pc-dealer",
                ));
        }
    }
    for node in module.ops.iter().filter(|node| matches!(node.op, Op::MatMul { .. })) {
        let inner = node.args.first().and_then(|&arg| module.ty(arg).shape.last());
        let most = inner.and_then(|inner| module.dims.upper(inner)).unwrap_or(i128::MAX);
        if most > MOST_INNER as i128 {
            return Err(Diagnostic::input("E0421", "a sum of products is too long for the setting 2pc")
                .at(node.origin.node.clone())
                .note(format!("expected  at most {MOST_INNER} terms"))
                .note(format!("found     up to {most}"))
                .note("help      give a smaller --max, or compile for 3pc or 2pc-dealer"));
        }
    }
    Ok(())
}

/// Bytes of a number mod `2^bits`.
fn ring_bytes(bits: u64) -> u64 {
    bits.div_ceil(8).max(1)
}

/// Bytes of a leaf's table: two bits an entry.
fn table_bytes(bits: u8) -> u64 {
    (2u64 << bits).div_ceil(8)
}

/// Bytes of the products of `n` elements with `planes` bits each.
fn times_bytes(planes: u64, n: u64, bits: u64) -> u64 {
    (0..planes).map(|i| n.saturating_mul(ring_bytes(bits.saturating_sub(i)))).fold(0, u64::saturating_add)
}

/// Bytes of what the extension needs for 64 transfers.
const EXTENSION: u64 = (128 / TREE_LEVELS as u64 - 1) * 8;

impl Traffic {
    /// `planes` random transfers of `n` elements.
    fn transfers(&mut self, round: u32, chooser: u8, planes: u64, n: u64) {
        let bytes = planes.saturating_mul(n.div_ceil(64)).saturating_mul(EXTENSION);
        self.send(round, chooser, 1 - chooser, bytes);
    }

    /// The same with choices.
    fn choices(&mut self, round: u32, chooser: u8, planes: u64, n: u64) {
        let bytes = planes.saturating_mul(n.div_ceil(64)).saturating_mul(EXTENSION + 8);
        self.send(round, chooser, 1 - chooser, bytes);
    }

    /// Each party sends as many bytes, in a round of its own.
    fn opening(&mut self, bytes: u64) {
        self.send(0, 0, 1, bytes);
        self.send(0, 1, 0, bytes);
        self.rounds += 1;
    }

    /// Choices of a party, and so many bytes for an answer.
    fn transfer(&mut self, chooser: u8, planes: u64, n: u64, answer: u64) {
        self.choices(0, chooser, planes, n);
        self.send(1, 1 - chooser, chooser, answer);
        self.rounds += 2;
    }

    /// The client's ciphertexts, and the server's products.
    fn tiles(&mut self, tilings: &[Tiling], bits: u32) {
        let sum = |bytes: &dyn Fn(&Tiling) -> usize| {
            tilings.iter().map(|tiling| bytes(tiling) as u64).fold(0, u64::saturating_add)
        };
        self.send(0, 0, 1, sum(&Tiling::message_bytes));
        self.send(1, 1, 0, sum(&|tiling| tiling.answer_bytes(bits)));
        self.rounds += 2;
    }

    /// The same in both directions at once.
    fn both(&mut self, planes: u64, n: u64, answer: u64) {
        (0..2).for_each(|chooser| self.choices(0, chooser, planes, n));
        (0..2).for_each(|chooser| self.send(1, 1 - chooser, chooser, answer));
        self.rounds += 2;
    }

    fn sign(&mut self, n: u64, width: u8) {
        let leaves = leaves(width.saturating_sub(1));
        if leaves.is_empty() {
            return;
        }
        let joins = leaves.len() as u64 - 1;
        self.choices(0, 0, u64::from(width - 1), n);
        (0..2).for_each(|chooser| self.transfers(0, chooser, joins, n));
        let tables = leaves.iter().map(|bits| n.saturating_mul(table_bytes(*bits))).fold(0, u64::saturating_add);
        self.send(1, 1, 0, tables);
        self.rounds += 2;
        for pairs in joined(leaves.len()) {
            self.opening((opened(pairs) as u64).saturating_mul(plane_bytes(n)));
        }
    }

    fn maxima(&mut self, rows: &RowLens<'_>, width: u8, bits: u64, index: bool) {
        let levels = rows.pairs_by_level();
        for (i, &pairs) in levels.iter().enumerate() {
            self.sign(pairs, width);
            match index {
                false => self.both(1, pairs, pairs * ring_bytes(bits)),
                true => {
                    // Indices of the first level are its bits; the last level's values are not selected.
                    let (first, last) = (i == 0, i + 1 == levels.len());
                    let (both, values) = (u64::from(!first) + u64::from(!last), pairs * ring_bytes(bits));
                    self.choices(0, 0, both + u64::from(first), pairs);
                    self.choices(0, 1, both, pairs);
                    self.send(1, 1, 0, (both + u64::from(first)) * values);
                    self.send(1, 0, 1, both * values);
                    self.rounds += 2;
                }
            }
        }
    }
}

/// What `op` sends. Ops that are local, or composite, send nothing.
fn traffic(op: &Op, s: &Sizes) -> Traffic {
    let mut t = Traffic::default();
    let (n, bits) = (s.out, u64::from(s.bits));
    match op {
        Op::Mul if !s.forms.contains(&Sharing::Public) => match (s.of_server, s.same) {
            // Twice one mixed product: its highest bit is not needed.
            ([false, false], true) => t.transfer(0, bits - 1, n, times_bytes(bits - 1, n, bits - 1)),
            ([false, false], false) => t.both(bits, n, times_bytes(bits, n, bits)),
            _ => t.transfer(0, bits, n, times_bytes(bits, n, bits)),
        },
        Op::MatMul { .. } if !s.forms.contains(&Sharing::Public) => {
            let (sizes, right) = (matrices(s), s.right());
            let tilings = tilings(sizes, right, s.bits);
            if tilings.is_empty() && !sizes.contains(&0) {
                let [_, answer] = by_transfers(sizes, s.bits);
                let elements = sizes[..3].iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
                match right {
                    Right::Shared => t.both(bits, elements, answer),
                    Right::OfServer | Right::Same => t.transfer(0, bits, elements, answer),
                }
                return t;
            }
            t.tiles(&tilings, s.bits.into());
        }
        Op::Truncate { by, bits } => match wrap_bytes(s.from_bits, *bits, *by) {
            0 => {}
            width => t.transfer(0, 1, n, n * u64::from(width)),
        },
        Op::ExpDigits { window, tail, .. } => {
            let Exp { table, factor } = exp(*window, *tail);
            let (cells, factor) = (table.count as u64, u64::from(factor));
            let answer = n * cells * u64::from(table.ring / 8) + times_bytes(factor, n, table.ring.into());
            t.transfer(0, u64::from(cells.ilog2()) + factor, n, answer);
        }
        Op::Select => t.both(1, n, n * ring_bytes(bits)),
        Op::Lookup { window, cell, scale, .. } => {
            let powers = power_scales(*scale).map(|scale| u64::from(scale) + 1);
            let products = powers.map(|planes| times_bytes(planes, n, bits));
            let answer = (n << (window - cell)) * 3 * ring_bytes(bits) + products.iter().sum::<u64>();
            t.transfer(0, u64::from(window - cell) + powers.iter().sum::<u64>(), n, answer);
        }
        Op::Embed => {
            let columns = s.out.checked_div(s.tokens).unwrap_or(0);
            let sizes = [s.tokens, s.table_rows, columns].map(|size| usize::try_from(size).unwrap_or(usize::MAX));
            let tilings = row_tilings(sizes, s.bits);
            if !tilings.is_empty() {
                t.tiles(&tilings, u32::from(s.bits) + ROW_DROPPED);
                return t;
            }
            let planes = u64::from((s.table_rows.max(2) - 1).ilog2() + 1);
            let answer = s.out.saturating_mul(s.table_rows).saturating_mul(ring_bytes(bits));
            t.transfer(0, planes, s.tokens, answer);
        }
        Op::Reveal { .. } => {
            t.send(0, 1, 0, n * ring_bytes(bits));
            t.rounds = 1;
        }
        Op::Msb { width, drop } => t.sign(n, width - drop),
        Op::And => {
            (0..2).for_each(|chooser| t.transfers(0, chooser, 1, n));
            t.rounds += 1;
            t.opening(2 * plane_bytes(n));
        }
        Op::BitToRing { .. } => t.transfer(0, 1, n, n * ring_bytes(bits)),
        Op::RowMax { width, drop, .. } => t.maxima(&s.rows, width - drop, bits, false),
        Op::ArgMax { width } => t.maxima(&s.rows, *width, bits, true),
        _ => {}
    }
    t
}

#[cfg(test)]
mod tests {
    use super::super::Setting;
    use super::*;
    use crate::dim::{Dim, Dims};
    use crate::module::{Id, Origin, Stage};
    use crate::ty::Ty;

    /// Elements that are so many that all bytes are whole.
    const MANY: u64 = 1 << 20;

    fn sizes(bits: u8) -> Sizes<'static> {
        Sizes {
            out: MANY,
            bits,
            from_bits: bits,
            forms: [Sharing::Shared; 2],
            elements: [MANY; 2],
            of_server: [false; 2],
            same: false,
            rows: RowLens::Equal { count: MANY / 4, len: 4 },
            table_rows: 0,
            tokens: 0,
            inner: 64,
            matrix_rows: 32,
            columns: 64,
        }
    }

    /// Bits of an element from the client and from the server, and rounds.
    fn measured(op: &Op, sizes: &Sizes) -> (u64, u64, u32) {
        let t = traffic(op, sizes);
        let of = |from: u8| t.msgs.iter().filter(|m| m.from == from).map(|m| m.bytes).sum::<u64>() * 8 / MANY;
        (of(0), of(1), t.rounds)
    }

    #[test]
    fn bits_and_rounds_of_an_element() {
        assert_eq!(measured(&Op::And, &sizes(0)), (17, 17, 2));
        assert_eq!(measured(&Op::BitToRing { bits: 24 }, &sizes(24)), (16, 24, 2));
        assert_eq!(measured(&Op::Select, &sizes(40)), (56, 56, 2));
        assert_eq!(measured(&Op::Truncate { by: 12, bits: 40 }, &Sizes { from_bits: 48, ..sizes(40) }), (16, 8, 2));
        assert_eq!(measured(&Op::Truncate { by: 12, bits: 36 }, &Sizes { from_bits: 48, ..sizes(36) }), (0, 0, 0));
        // Leaves of 4, 4 and 3 bits, two joins, on two levels.
        let sign = (11 * 16 + 2 * 15 + 4, 32 + 32 + 16 + 2 * 15 + 4, 4);
        assert_eq!(measured(&Op::Msb { width: 12, drop: 0 }, &sizes(12)), sign);
        assert_eq!(measured(&Op::Msb { width: 16, drop: 4 }, &sizes(16)), sign);
        assert_eq!(measured(&Op::Msb { width: 1, drop: 0 }, &sizes(16)), (0, 0, 0));
        assert_eq!(measured(&Op::Reveal { slot: 0 }, &sizes(64)), (0, 64, 1));
    }

    #[test]
    fn products_pay_for_every_bit_of_every_element() {
        let triangle = |bits: u64| (0..bits).map(|i| (bits - i).div_ceil(8) * 8).sum::<u64>();
        assert_eq!(measured(&Op::Mul, &sizes(32)), (32 * 16 + triangle(32), 32 * 16 + triangle(32), 2));
        let weight = Sizes { of_server: [false, true], ..sizes(32) };
        assert_eq!(measured(&Op::Mul, &weight), (32 * 16, triangle(32), 2));
        assert_eq!(measured(&Op::Mul, &Sizes { same: true, ..sizes(32) }), (31 * 16, triangle(31), 2));
    }

    #[test]
    fn products_of_matrices_are_of_ciphertexts() {
        let of = |sizes: &Sizes| {
            let t = traffic(&Op::MatMul { trans_b: false }, sizes);
            assert_eq!((t.rounds, t.msgs.len()), (2, 2));
            [0, 1].map(|i| t.msgs[i].bytes)
        };
        // 64 rows of 768 by 768 columns, of a weight: ciphertexts of 4096·88 bits, answers of 52 and results of 44.
        let weight = Sizes {
            out: 64 * 768,
            elements: [64 * 768, 768 * 768],
            of_server: [false, true],
            inner: 768,
            matrix_rows: 64,
            columns: 768,
            ..sizes(40)
        };
        assert_eq!(of(&weight), [24 * 45_056, 12 * 26_624 + 64 * 768 * 44 / 8]);
        // The same rows as four sequences.
        assert_eq!(of(&Sizes { matrix_rows: 16, ..weight.clone() }), of(&weight));
        // Twelve heads, scores of 32 tokens: as many ciphertexts in the other direction.
        let heads = Sizes {
            out: 12 * 32 * 32,
            elements: [12 * 32 * 64; 2],
            inner: 64,
            matrix_rows: 32,
            columns: 32,
            ..sizes(40)
        };
        assert_eq!(of(&heads), [24 * 45_056, 2 * (3 * 26_624 + 12 * 32 * 32 * 44 / 8)]);
        // With themselves, half of that.
        let own = traffic(&Op::MatMul { trans_b: true }, &Sizes { same: true, ..heads.clone() });
        assert_eq!([0, 1].map(|i| 2 * own.msgs[i].bytes), of(&heads));
        // A row with itself is cheaper by transfers.
        let row = Sizes { out: 1, elements: [768; 2], same: true, inner: 768, matrix_rows: 1, columns: 1, ..sizes(64) };
        let triangle: u64 = (1..=64).map(|bits: u64| bits.div_ceil(8)).sum();
        assert_eq!(of(&row), [768 * 64 * 2, 768 * triangle]);
        let none = traffic(&Op::MatMul { trans_b: false }, &Sizes { out: 0, matrix_rows: 0, ..heads });
        assert_eq!((none.rounds, none.msgs.len()), (2, 0));
    }

    #[test]
    fn large_private_tables_are_refused() {
        let with = |rows: u64, bits: u8| {
            let mut module = Module::empty("m".to_owned(), Setting::TwoParty, Stage::Scheduled, Dims::default());
            let shape = vec![Dim::from(rows as u32), Dim::from(4)];
            let ty = Ty::ring(bits, 12, Sharing::Shared, shape, 20);
            for (op, args) in [(Op::Weight { name: "table".to_owned() }, vec![]), (Op::Embed, vec![Id(0); 2])] {
                module.ops.push(Node { op, args, ty: ty.clone(), origin: Origin::default(), rot: 0 });
            }
            module
        };
        for (most, bits) in [(MOST_ROWS, 64), (MOST_INNER as u64, 56)] {
            assert_eq!(check(&with(most, bits)), Ok(()));
            let error = check(&with(most + 1, bits)).unwrap_err();
            assert!(error.code == "E0421" && error.to_string().contains(&format!("{}", most + 1)), "{error}");
        }
    }

    #[test]
    fn rows_of_large_tables_are_looked_up_by_ciphertexts() {
        let sent = |ids, table_rows| {
            traffic(&Op::Embed, &Sizes { out: ids * 576, table_rows, tokens: ids, ..sizes(24) }).bytes()
        };
        let all = |ids: u64, rows: u64| ids * 576 * rows * 3;
        // As many ids as are one product take few bytes more than one.
        assert!(sent(64, 49152) < all(64, 49152) / 150 && sent(1, 49152) < all(1, 49152) / 4);
        assert!((all(4, 7)..all(4, 7) + 1000).contains(&sent(4, 7)));
        assert!(row_tilings([1, 49152, 576], 57).is_empty() && !row_tilings([1, 49152, 576], 56).is_empty());
        assert_eq!(row_tilings([20_000, 49152, 576], 24).len(), 20_000_usize.div_ceil(79));
    }

    #[test]
    fn leaves_and_joins_cover_every_width() {
        for bits in 0..64 {
            let leaves = leaves(bits);
            assert_eq!(leaves.iter().sum::<u8>(), bits);
            assert!(leaves.iter().all(|bits| (1..=LEAF).contains(bits)));
            assert_eq!(joined(leaves.len()).iter().sum::<usize>(), leaves.len().saturating_sub(1));
        }
        assert_eq!(joined(16), [8, 4, 2, 1]);
        assert_eq!(joined(3), [1, 1]);
    }
}
