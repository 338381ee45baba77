//! Bits, comparisons and trees.

use super::super::{bits, compare, tree};
use super::*;
use crate::settings::testing::signed;

#[test]
fn ands_conversions_and_selections() {
    let (two, mut words) = (Two::new(1), Words(1));
    for n in [1, 8, 64, 65, 200] {
        let random = |words: &mut Words| words.take(n).iter().map(|x| x & 1 == 1).collect::<Vec<_>>();
        let (x, y) = (random(&mut words), random(&mut words));
        let (xs, ys) = (share_bits(&x, &mut words), share_bits(&y, &mut words));
        let z = two.run(&Op::And, &sizes(n, 0), |pair, role| {
            let (x, y) = (Rc::clone(&xs[role]), Rc::clone(&ys[role]));
            async move { bits::and(&pair, &x, &y).await }
        });
        assert_eq!(open_bits(&z), x.iter().zip(&y).map(|(x, y)| x & y).collect::<Vec<_>>());
        for ring in [8, 24, 40, 64] {
            let z = two.run(&Op::BitToRing { bits: ring }, &sizes(n, ring), |pair, role| {
                let x = Rc::clone(&xs[role]);
                async move { bits::bit_to_ring(&pair, &x, ring).await }
            });
            assert_eq!(open(&z, n, ring), x.iter().map(|x| u64::from(*x)).collect::<Vec<_>>());
            let values = words.take(n);
            let v = share(&values, &mut words);
            let z = two.run(&Op::Select, &sizes(n, ring), |pair, role| {
                let (x, v) = (Rc::clone(&xs[role]), Rc::clone(&v[role]));
                async move { bits::select(&pair, &x, v.own()?, ring).await }
            });
            let expected = values.iter().zip(&x).map(|(v, x)| if *x { v & ring_mask(ring) } else { 0 });
            assert_eq!(open(&z, n, ring), expected.collect::<Vec<_>>());
        }
    }
}

#[test]
fn signs_of_every_width() {
    let (two, mut words) = (Two::new(2), Words(2));
    for (width, drop) in (1..=64).map(|width| (width, 0)).chain([(16, 4), (40, 12), (64, 20), (12, 8)]) {
        let most = i64::MAX >> (64 - width);
        let mut x = vec![0, -1, most, -most - 1, most / 2, most.min(1), -most, most / 3];
        x.extend(words.take(60).iter().map(|x| (*x as i64) >> (64 - width)));
        // What is left out of both shares can carry: the lowest values would wrap.
        let lowest = -most - 1 + if drop > 0 { 1 << drop } else { 0 };
        x.iter_mut().for_each(|x| *x = lowest.max(*x));
        let n = x.len();
        let elements: Vec<u64> = x.iter().map(|x| *x as u64).collect();
        let shares = share(&elements, &mut words);
        let z = two.run(&Op::Msb { width, drop }, &sizes(n, 64), |pair, role| {
            let x = Rc::clone(&shares[role]);
            async move { compare::msb(&pair, x.own()?, n, (width, drop)).await }
        });
        for (x, negative) in x.iter().zip(open_bits(&z)) {
            let may_be_either = *x >= 0 && *x < 1 << drop && drop > 0;
            assert!(negative == (*x < 0) || may_be_either, "{x} of width {width}, {drop} dropped");
        }
    }
}

#[test]
fn maxima_and_where_they_are() {
    let (two, mut words) = (Two::new(3), Words(3));
    for lens in [vec![1u32], vec![2, 3], vec![5, 0, 1, 8, 4], vec![16; 3]] {
        let total: u32 = lens.iter().sum();
        let x: Vec<u64> = words.take(total as usize).iter().map(|x| ((*x as i64) >> 52) as u64).collect();
        let shares = share(&x, &mut words);
        let op = Op::RowMax { shape: Vec::new(), width: 14, drop: 0 };
        let sizes_of = Sizes { rows: RowLens::Listed(&lens), ..sizes(lens.len(), 24) };
        let found = two.run(&op, &sizes_of, |pair, role| {
            let (x, lens) = (Rc::clone(&shares[role]), lens.clone());
            async move { tree::row_max(&pair, &x, &lens, 24, (14, 0)).await }
        });
        let mut rest = x.as_slice();
        for (len, found) in lens.iter().zip(open(&found, lens.len(), 24)) {
            let (row, after) = rest.split_at(*len as usize);
            rest = after;
            let expected = row.iter().map(|x| *x as i64).max().unwrap_or(0);
            assert_eq!(signed(found, 24), expected, "{lens:?}");
        }
    }
    for (count, len) in [(1, 1), (3, 2), (2, 7), (4, 16)] {
        // Few values, so that there are equal ones.
        let x: Vec<u64> = words.take(count * len).iter().map(|x| ((*x as i64) >> 61) as u64).collect();
        let shares = share(&x, &mut words);
        let rows = RowLens::Equal { count: count as u64, len: len as u64 };
        let found = two.run(&Op::ArgMax { width: 6 }, &Sizes { rows, ..sizes(count, 16) }, |pair, role| {
            let x = Rc::clone(&shares[role]);
            async move { tree::arg_max(&pair, &x, (count, len), 16, 6).await }
        });
        for (row, found) in x.chunks_exact(len).zip(open(&found, count, 16)) {
            let most = row.iter().map(|x| *x as i64).max().expect("rows have entries");
            let first = row.iter().position(|x| *x as i64 == most).expect("the maximum is there");
            assert_eq!(found, first as u64, "{row:?}");
        }
    }
}
