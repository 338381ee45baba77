//! Greatest entries of rows and their indices.

use super::*;
use crate::protocols::tree::{arg_max, row_max};

fn greatest(seed: u64, rot: u8, x: &[i64], lens: &[u32], bits: u8, width: u8) -> Vec<i64> {
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let shared = share(&words, &mut Words(seed));
    let sizes = Sizes { rows: RowLens::Listed(lens), ..sizes(lens.len(), bits, false) };
    let op = Op::RowMax { shape: Vec::new(), width };
    let shares = run(seed, rot, &op, &sizes, |cx, role| {
        let (shared, lens) = (shared[role].clone(), lens.to_vec());
        async move { row_max(&cx, &shared, &lens, bits, width).await }
    });
    open(&shares, lens.len(), bits).iter().map(|v| signed(*v, bits)).collect()
}

#[test]
fn greatest_of_ragged_rows() {
    let all: [&[u32]; 6] = [&[], &[0, 0], &[1], &[3, 1, 0, 8, 5], &[2, 2, 2], &[100, 7]];
    for (seed, lens) in (0u64..).zip(all) {
        for (rot, bits, width) in [(0, 64, 20), (1, 32, 20), (2, 24, 18)] {
            let mut words = Words(seed);
            let n: u32 = lens.iter().sum();
            let x: Vec<i64> = (0..n).map(|_| signed(words.next(), 16)).collect();
            let mut rest = x.as_slice();
            let expected: Vec<i64> = lens
                .iter()
                .map(|len| {
                    let (row, tail) = rest.split_at(*len as usize);
                    rest = tail;
                    row.iter().copied().max().unwrap_or(0)
                })
                .collect();
            assert_eq!(greatest(seed, rot, &x, lens, bits, width), expected, "{lens:?}");
        }
    }
}

fn indices(seed: u64, rot: u8, x: &[i64], count: usize, bits: u8, width: u8) -> Vec<u64> {
    let len = x.len().checked_div(count).unwrap_or(0);
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let shared = share(&words, &mut Words(seed));
    let rows = RowLens::Equal { count: count as u64, len: len as u64 };
    let sizes = Sizes { rows, ..sizes(count, bits, false) };
    let shares = run(seed, rot, &Op::ArgMax { width }, &sizes, |cx, role| {
        let shared = shared[role].clone();
        async move { arg_max(&cx, &shared, count, len, bits, width).await }
    });
    open(&shares, count, bits)
}

#[test]
fn first_greatest_of_rows() {
    for (count, len) in [(0, 5), (1, 1), (3, 2), (2, 3), (4, 7), (2, 64), (1, 100)] {
        for (rot, bits) in [(0u8, 64), (1, 32), (2, 40)] {
            for range in [3, 1 << 16] {
                let mut words = Words(len as u64 + u64::from(rot));
                let x: Vec<i64> = (0..count * len).map(|_| (words.next() % (2 * range)) as i64 - range as i64).collect();
                let expected: Vec<u64> = x
                    .chunks(len)
                    .map(|row| row.iter().position(|v| Some(v) == row.iter().max()).unwrap_or(0) as u64)
                    .collect();
                assert_eq!(indices(8, rot, &x, count, bits, 20), expected, "{count} rows of {len}");
            }
        }
    }
}
