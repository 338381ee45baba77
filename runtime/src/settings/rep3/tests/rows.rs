//! Maximum entries of rows and their indices.

use super::*;
use crate::settings::rep3::embed::{Rows, Table, embed};
use crate::settings::rep3::tree::{arg_max, row_max};

fn greatest(seed: u64, rot: u8, x: &[i64], lens: &[u32], bits: u8, width: u8) -> Vec<i64> {
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let shared = share(&words, &mut Words(seed));
    let sizes = Sizes { rows: RowLens::Listed(lens), ..sizes_of_two(lens.len(), bits) };
    let op = Op::RowMax { shape: Vec::new(), width, drop: 0 };
    let terms = run(seed, rot, &op, &sizes, |cx, role| {
        let (shared, lens) = (shared[role].clone(), lens.to_vec());
        async move { row_max(&cx, &shared, &lens, bits, (width, 0)).await.map(Ring::Two) }
    });
    open_ring(terms, lens.len(), bits).iter().map(|v| signed(*v, bits)).collect()
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
                let x: Vec<i64> =
                    (0..count * len).map(|_| (words.next() % (2 * range)) as i64 - range as i64).collect();
                let expected: Vec<u64> = x
                    .chunks(len)
                    .map(|row| row.iter().position(|v| Some(v) == row.iter().max()).unwrap_or(0) as u64)
                    .collect();
                assert_eq!(indices(8, rot, &x, count, bits, 20), expected, "{count} rows of {len}");
            }
        }
    }
}

#[test]
fn rows_of_a_table_at_secret_ids() {
    for (rows, columns, ids) in
        [(1, 3, vec![0]), (37, 5, vec![0, 36, 5, 5, -1]), (300, 4, (0..100).collect()), (2, 2, vec![])]
    {
        for bits in [64, 32] {
            let mut words = Words(rows as u64);
            let table = words.take(rows * columns);
            let w1 = words.take(rows * columns);
            let w2: Vec<u64> = table.iter().zip(&w1).map(|(w, w1)| w.wrapping_sub(*w1)).collect();
            let part = |a: Option<&Vec<u64>>, b: Option<&Vec<u64>>| {
                let component = |w: Option<&Vec<u64>>| w.map_or(Component::Zero, |w| w.clone().into());
                Rc::new(Shared { a: component(a), b: component(b) })
            };
            let shared = [part(None, Some(&w1)), part(Some(&w1), Some(&w2)), part(Some(&w2), None)];
            let tokens = ids.len();
            let declared =
                Sizes { table_rows: rows as u64, tokens: tokens as u64, ..sizes(tokens * columns, bits, false) };
            let found = run(9, 0, &Op::Embed, &declared, |cx, role| {
                let (shared, ids) = (shared[role].clone(), (role == 0).then(|| ids.clone()));
                let sizes = Table { rows, columns, tokens, bits };
                async move {
                    let block =
                        |start, count| Ok(shared.map(|w| w[start * columns..(start + count) * columns].to_vec()));
                    // Blocks of two rows.
                    embed(&cx, ids.as_deref(), &Rows { stored: None, block: &block, at_once: 2 }, sizes, 1).await
                }
            });
            let expected: Vec<u64> = ids
                .iter()
                .flat_map(|id: &i64| {
                    let row = id.rem_euclid(rows as i64) as usize;
                    &table[row * columns..(row + 1) * columns]
                })
                .map(|w| w & ring_mask(bits))
                .collect();
            assert_eq!(open(&found, tokens * columns, bits), expected);
        }
    }
}

#[test]
fn ids_outside_the_table_and_broken_keys_are_refused() {
    let sizes = Table { rows: 4, columns: 1, tokens: 1, bits: 64 };
    for id in [4, -5, i64::MIN, i64::MAX] {
        let result = lockstep::run(1, 0, &Traffic::default(), |cx| async move {
            let block = |_, _| Ok(Shared::zero());
            embed(&cx, Some(&[id]), &Rows { stored: None, block: &block, at_once: 4 }, sizes, 1).await
        });
        assert_eq!(result.err().map(|e| e.code), Some("E0806"));
    }
    let declared = traffic(&Op::Embed, &Sizes { table_rows: 4, tokens: 1, ..super::sizes(1, 64, false) });
    let result = lockstep::run(1, 0, &declared, |cx| async move {
        if cx.role() == 0 {
            // Both keys are of the first party.
            let (first, _) = crate::dpf::generate(1, 4, &mut |out| out.fill(1)).expect("1 is below 4");
            (1..3).for_each(|to| cx.send_bytes(to, &first.to_bytes()));
            cx.round().await;
            cx.round().await;
            return Ok(Shared::zero());
        }
        let block = |_, count| Ok(Shared::new(vec![0; count], vec![0; count]));
        embed(&cx, None, &Rows { stored: None, block: &block, at_once: 4 }, sizes, 1).await
    });
    assert_eq!(result.err().map(|e| e.code), Some("E0807"));
}
