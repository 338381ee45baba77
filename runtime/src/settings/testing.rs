//! What the tests of all settings' kernels share: words, declared messages, and statistics of what is received.

use ombra_ir::curve::{Cells, Curve};
use ombra_ir::settings::{RowLens, Sizes, Traffic};
use ombra_ir::ty::Sharing;

use crate::exec::lockstep::Sent;

/// Words that look random.
pub struct Words(pub u64);

impl Words {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn take(&mut self, n: usize) -> Vec<u64> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Of `out` elements of a ring of `bits`, made of as many in `forms`.
pub fn sizes(out: usize, bits: u8, forms: [Sharing; 2]) -> Sizes<'static> {
    Sizes {
        out: out as u64,
        bits,
        from_bits: bits,
        forms,
        elements: [out as u64, 0],
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

/// A signed value in a ring.
pub fn signed(x: u64, bits: u8) -> i64 {
    (x << (64 - bits)) as i64 >> (64 - bits)
}

/// Cells of `2^cell` up to `2^range` on both sides of zero, of values with `from` fraction bits.
pub fn cells_of((range, cell): (i32, i32), from: u8, scale: u8) -> Cells {
    let bits = |of: i32| (i32::from(from) + of) as u8;
    Cells { window: bits(range + 1), from, cell: bits(cell), scale }
}

/// Integers from one end of a table to the other, without the highest cell.
pub fn spread(n: i64, cells: Cells) -> Vec<i64> {
    let (low, cell) = (-1i64 << (cells.window - 1), 1i64 << cells.cell);
    let most = -low - cell - 1;
    (0..=n).map(|i| low + cell + (most - low - cell) * i / n).chain([0, 1, -1, low + cell + 1]).collect()
}

/// How far what was found is from a function of integers with `from` fraction bits at most.
pub fn worst_error(curve: Curve, from: u8, x: &[i64], found: &[f64]) -> f64 {
    let error = |(x, y): (&i64, &f64)| (y - curve.at(*x as f64 * (-f64::from(from)).exp2())).abs();
    x.iter().zip(found).map(error).fold(0.0, f64::max)
}

/// How far `y` is from the polynomial of the cell of `x`, or of the next one, whichever is nearer, beyond what their highest
/// powers are approximated by.
pub fn off_polynomials(curve: Curve, cells: Cells, x: i64, y: f64) -> f64 {
    let (table, width) = (cells.polynomials(curve).unwrap(), 1i64 << cells.cell);
    let at = |cell: i64| {
        let u = (x - width * cell) as f64 / width as f64;
        let of = |list: &Vec<i64>| {
            list[cell.rem_euclid(cells.count() as i64) as usize] as f64 * (-f64::from(cells.scale)).exp2()
        };
        let [.., a3, a4] = table.each_ref().map(of);
        let value = table.iter().rev().fold(0.0, |sum, list| sum * u + of(list));
        (value - y).abs() - a3.abs() / 32.0 - a4.abs() * (1.0 / 16.0 + 1.0 / 128.0)
    };
    let below = x.div_euclid(width);
    at(below).min(at(below + 1))
}

/// Whether the messages are the declared ones: rounds, roles and bytes. The task has checked their sizes already;
/// this is a check of its own.
pub fn assert_declared(sent: &[Sent], declared: &Traffic) {
    let mut found: Vec<_> = sent.iter().map(|m| (m.round, m.from, m.to, m.bytes.len() as u64)).collect();
    let mut expected: Vec<_> = declared.msgs.iter().map(|m| (Some(m.round), m.from, m.to, m.bytes)).collect();
    let dealt = declared.dealt.map_or([0; 2], |dealt| dealt.bytes);
    expected.extend((0u8..).zip(dealt).filter(|(_, bytes)| *bytes > 0).map(|(to, bytes)| (None, 2, to, bytes)));
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// Chi-square of `counts` against equal chances, as a number of standard deviations from its mean.
pub fn deviation(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
    let freedom = (counts.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// A matrix of random bits has full rank but for a chance of `2^-EXTRA` if it has so many rows more than columns.
pub const EXTRA: usize = 64;

/// The rank over GF(2) of the differences to the first vector, of bytes that are as many in each.
pub fn affine_rank(vectors: &[Vec<u8>]) -> usize {
    let words = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks(8).map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect()
    };
    let bit = |v: &[u64], i: usize| v[i / 64] >> (i % 64) & 1 == 1;
    let add = |v: &mut [u64], w: &[u64]| v.iter_mut().zip(w).for_each(|(v, w)| *v ^= w);
    let first = words(&vectors[0]);
    // Every vector with the position of a bit that no later one has.
    let mut basis: Vec<(usize, Vec<u64>)> = Vec::new();
    for vector in &vectors[1..] {
        assert_eq!(vector.len(), vectors[0].len());
        let mut rest = words(vector);
        add(&mut rest, &first);
        for (lead, known) in &basis {
            if bit(&rest, *lead) {
                add(&mut rest, known);
            }
        }
        basis.extend((0..64 * rest.len()).find(|i| bit(&rest, *i)).map(|lead| (lead, rest)));
    }
    basis.len()
}

#[test]
fn a_mask_that_is_used_twice_lowers_the_rank() {
    let rank_of = |masks: [usize; 4]| {
        let mut words = Words(5);
        let constants = words.take(4);
        let run = |_| {
            let drawn = words.take(4);
            let word = |i: usize| constants[i].wrapping_add(drawn[masks[i]]).to_le_bytes();
            // Two ring elements, then bits.
            [&word(0)[..], &word(1), &[word(2)[0] ^ word(3)[0]]].concat()
        };
        affine_rank(&(0..136 + EXTRA).map(run).collect::<Vec<_>>())
    };
    assert_eq!(rank_of([0, 1, 2, 3]), 136);
    assert!(rank_of([0, 0, 2, 3]) < 136, "two words under one mask");
    assert!(rank_of([0, 1, 0, 0]) < 136, "bits whose masks cancel");
    assert!(rank_of([1, 2, 1, 2]) < 136, "bits under masks of words");
}

#[test]
fn ranks_of_small_matrices() {
    let rank = |rows: &[u8]| affine_rank(&rows.iter().map(|row| vec![0, *row, 0]).collect::<Vec<_>>());
    assert_eq!(rank(&[7]), 0);
    assert_eq!(rank(&[7, 7, 7]), 0);
    assert_eq!(rank(&[0, 1, 2, 3]), 2);
    assert_eq!(rank(&[4, 5, 6, 7]), 2);
    assert_eq!(rank(&[0, 3, 5, 6, 128]), 3);
}
