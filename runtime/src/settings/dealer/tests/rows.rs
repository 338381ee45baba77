//! Maximum entries of rows and their indices.

use super::*;
use crate::settings::dealer::tree::{arg_max, row_max};

fn greatest(seed: u64, x: &[i64], lens: &[u32], bits: u8, (width, drop): (u8, u8)) -> Vec<i64> {
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let shared = share(&words, &mut Words(seed));
    let sizes = Sizes { rows: RowLens::Listed(lens), ..sizes(lens.len(), bits) };
    let op = Op::RowMax { shape: Vec::new(), width, drop };
    let shares = run(seed, &op, &sizes, |cx, role| {
        let (shared, lens) = (shared[role].clone(), lens.to_vec());
        async move { row_max(&cx, &shared, &lens, bits, (width, drop)).await }
    });
    open(&shares, lens.len(), bits).iter().map(|v| signed(*v, bits)).collect()
}

fn expected(x: &[i64], lens: &[u32]) -> Vec<i64> {
    let mut rest = x;
    lens.iter()
        .map(|len| {
            let (row, tail) = rest.split_at(*len as usize);
            rest = tail;
            row.iter().copied().max().unwrap_or(0)
        })
        .collect()
}

const RAGGED: [&[u32]; 6] = [&[], &[0, 0], &[1], &[3, 1, 0, 8, 5], &[2, 2, 2], &[100, 7]];

#[test]
fn greatest_of_ragged_rows() {
    for (seed, lens) in (0u64..).zip(RAGGED) {
        for (bits, width) in [(64, 20), (32, 20), (24, 18), (64, 64)] {
            // Of few values, so that many are equal, and of many.
            for range in [2, 16] {
                let mut words = Words(seed);
                let x: Vec<i64> = (0..lens.iter().sum()).map(|_: u32| signed(words.next(), range)).collect();
                assert_eq!(greatest(seed, &x, lens, bits, (width, 0)), expected(&x, lens), "{lens:?} in {bits} bits");
            }
        }
    }
}

#[test]
fn a_maximum_is_short_by_the_dropped_bits_of_every_level() {
    let (drop, mut shortest) = (6u8, 0);
    for (seed, lens) in (0u64..).zip([RAGGED[3], RAGGED[5], &[128; 20]]) {
        let mut words = Words(seed);
        let x: Vec<i64> = (0..lens.iter().sum()).map(|_: u32| signed(words.next(), 12)).collect();
        let found = greatest(seed, &x, lens, 32, (16, drop));
        for ((found, exact), len) in found.iter().zip(expected(&x, lens)).zip(lens) {
            let levels = i64::from(len.max(&1).next_power_of_two().trailing_zeros());
            let short = exact - found;
            assert!((0..=levels << drop).contains(&short), "{found} in place of {exact} in a row of {len}");
            shortest = shortest.max(short);
        }
    }
    assert!(shortest > 0, "some maximum is not exact");
}

fn indices(seed: u64, x: &[i64], count: usize, bits: u8, width: u8) -> Vec<u64> {
    let len = x.len().checked_div(count).unwrap_or(0);
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let shared = share(&words, &mut Words(seed));
    let rows = RowLens::Equal { count: count as u64, len: len as u64 };
    let sizes = Sizes { rows, ..sizes(count, bits) };
    let shares = run(seed, &Op::ArgMax { width }, &sizes, |cx, role| {
        let shared = shared[role].clone();
        async move { arg_max(&cx, &shared, count, len, bits, width).await }
    });
    open(&shares, count, bits)
}

#[test]
fn first_greatest_of_rows() {
    for (count, len) in [(0, 5), (1, 1), (3, 2), (2, 3), (4, 7), (2, 64), (1, 100)] {
        for bits in [64, 32, 40] {
            for range in [1, 3, 1 << 16] {
                let mut words = Words(len as u64 + u64::from(bits));
                let x: Vec<i64> =
                    (0..count * len).map(|_| (words.next() % (2 * range)) as i64 - range as i64).collect();
                let expected: Vec<u64> = x
                    .chunks(len)
                    .map(|row| row.iter().position(|v| Some(v) == row.iter().max()).unwrap_or(0) as u64)
                    .collect();
                assert_eq!(indices(8, &x, count, bits, 20), expected, "{count} rows of {len}");
            }
        }
    }
}

#[test]
fn rows_that_do_not_cover_their_entries_are_refused() {
    let result = lockstep::run(1, 0, &Traffic::default(), |cx| async move {
        let share = if cx.role() == 2 { Share::nothing() } else { Share::of(vec![0; 3]) };
        row_max(&cx, &share, &[2, 2], 32, (20, 0)).await
    });
    assert_eq!(result.err().map(|e| e.code), Some("E0804"));
}
