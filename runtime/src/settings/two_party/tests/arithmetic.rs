//! Divisions, products and lookups.

use ombra_ir::curve::{Cells, Curve};
use ombra_ir::op::{EXP_RING, EXP_SCALE};
use ombra_ir::settings::two_party::{Right, row_tilings};
use ombra_lattice::tiles::ERROR_BITS;

use super::super::matrices::multiply_matrices;
use super::super::products::multiply;
use super::super::{divide, lookup};
use super::*;
use crate::settings::rep3::embed::Table;
use crate::settings::testing::{off_polynomials, signed, spread};
use crate::settings::words::broadcast::broadcast_shape;
use crate::settings::words::product::Plan;
use crate::wiped::Zeroizing;

#[test]
fn quotients_are_floors_or_one_more() {
    let (two, mut words) = (Two::new(4), Words(4));
    for (from, to, by) in [(64, 64, 12), (48, 56, 14), (24, 64, 0), (40, 24, 16), (64, 24, 30), (16, 40, 3)] {
        let most = (1i64 << (from - 3)) - 1;
        let mut x = vec![0, 1, -1, most, -most - 1];
        x.extend(words.take(95).iter().map(|x| (*x as i64) >> (66 - from)));
        let (n, elements): (_, Vec<u64>) = (x.len(), x.iter().map(|x| *x as u64).collect());
        let shares = share(&elements, &mut words);
        let sizes = Sizes { from_bits: from, ..sizes(n, to) };
        let z = two.run(&Op::Truncate { by, bits: to }, &sizes, |pair, role| {
            let x = Rc::clone(&shares[role]);
            async move { divide::divide(&pair, &x, n, (from, to), by).await }
        });
        for (x, z) in x.iter().zip(open(&z, n, to)) {
            let off = z.wrapping_sub((x >> by) as u64) & ring_mask(to);
            assert!(off <= u64::from(by > 0), "{x} of {from} bits by 2^{by} in {to} bits: off by {off}");
        }
    }
}

#[test]
fn products_are_exact() {
    let (two, mut words) = (Two::new(5), Words(5));
    for (n, bits) in [(1, 64), (70, 40), (9, 24)] {
        let (x, y) = (words.take(n), words.take(n));
        let expected: Vec<u64> = x.iter().zip(&y).map(|(x, y)| x.wrapping_mul(*y) & ring_mask(bits)).collect();
        let (xs, ys) = (share(&x, &mut words), share(&y, &mut words));
        let z = two.run(&Op::Mul, &sizes(n, bits), |pair, role| {
            let (x, y) = (Rc::clone(&xs[role]), Rc::clone(&ys[role]));
            async move { multiply(&pair, x.own()?, y.own()?, Right::Shared, bits).await }
        });
        assert_eq!(open(&z, n, bits), expected);
        let z = two.run(&Op::Mul, &Sizes { same: true, ..sizes(n, bits) }, |pair, role| {
            let x = Rc::clone(&xs[role]);
            async move { multiply(&pair, x.own()?, x.own()?, Right::Same, bits).await }
        });
        let squares: Vec<u64> = x.iter().map(|x| x.wrapping_mul(*x) & ring_mask(bits)).collect();
        assert_eq!(open(&z, n, bits), squares);
        let weights = [vec![0; n], y];
        let sizes = Sizes { of_server: [true, false], ..sizes(n, bits) };
        let z = two.run(&Op::Mul, &sizes, |pair, role| {
            let (x, y) = (Rc::clone(&xs[role]), weights[role].clone());
            async move { multiply(&pair, x.own()?, &y, Right::OfServer, bits).await }
        });
        assert_eq!(open(&z, n, bits), expected);
    }
}

/// By transfers and in both parameter sets, of shared matrices, of a weight and of a matrix with itself, with every kind of
/// batch.
#[test]
fn products_of_matrices() {
    let (two, mut words) = (Two::new(6), Words(6));
    let cases: [(&[usize], &[usize], bool); 9] = [
        (&[2, 3], &[3, 4], false),
        (&[2, 3], &[5, 3], true),
        (&[3, 2, 4], &[3, 4, 2], false),
        (&[2, 1, 2, 3], &[2, 4, 3], true),
        (&[2, 2, 3], &[3, 1], false),
        (&[2, 3], &[1, 1, 5, 3], true),
        (&[2, 3], &[2, 3, 4], false),
        // Large enough for ciphertexts.
        (&[2, 20, 40], &[40, 50], false),
        (&[2, 40, 50], &[2, 40, 50], true),
    ];
    for (case, (xs, ys, trans_b)) in cases.into_iter().enumerate() {
        for (right, bits) in [(Right::Shared, 40), (Right::OfServer, [24, 64, 56][case % 3]), (Right::Same, 40)] {
            let (ys, trans_b) = if right == Right::Same { (xs, true) } else { (ys, trans_b) };
            let x = words.take(xs.iter().product());
            let y = if right == Right::Same { x.clone() } else { words.take(ys.iter().product()) };
            let plan = |x: &[u64], y: &[u64]| {
                let terms = [(Some(x.into()), Some(y.into()))];
                Plan::new(xs, ys, trans_b).unwrap().sum_of_products(&terms, 1).unwrap().unwrap_or_default()
            };
            let expected: Vec<u64> = plan(&x, &y).iter().map(|z| z & ring_mask(bits)).collect();
            let xs_shared = share(&x, &mut words);
            let y_shared = match right {
                Right::Same => xs_shared.each_ref().map(Rc::clone),
                Right::Shared => share(&y, &mut words),
                Right::OfServer => [Share::of(vec![0; y.len()]), Share::of(y.clone())].map(Rc::new),
            };
            let z = two.run(&Op::MatMul { trans_b }, &matrix_sizes(xs, ys, trans_b, right, bits), |pair, role| {
                let (x, y) = (Rc::clone(&xs_shared[role]), Rc::clone(&y_shared[role]));
                let own = Zeroizing::new(plan(x.own().unwrap(), y.own().unwrap()));
                let product = Plan::new(xs, ys, trans_b).unwrap();
                let tiles = Rc::clone(&two.tiles[role]);
                async move { multiply_matrices(&pair, &tiles, &product, (x.own()?, y.own()?), own, right, bits).await }
            });
            for (z, expected) in open(&z, expected.len(), bits).into_iter().zip(expected) {
                let off = signed(z.wrapping_sub(expected) & ring_mask(bits), bits);
                assert!(off.abs() < 2 << ERROR_BITS, "{xs:?} · {ys:?}: off by {off}");
            }
        }
    }
}

/// What the compiler declares of a product.
fn matrix_sizes(xs: &[usize], ys: &[usize], trans_b: bool, right: Right, bits: u8) -> Sizes<'static> {
    let last = |shape: &[usize], at: usize| shape[shape.len() - at];
    let columns = last(ys, if trans_b { 2 } else { 1 });
    let left = broadcast_shape(&xs[..xs.len() - 2], &ys[..ys.len() - 2]).unwrap();
    let out = left.iter().product::<usize>() * last(xs, 2) * columns;
    Sizes {
        elements: [xs, ys].map(|shape| shape.iter().product::<usize>() as u64),
        of_server: [false, right == Right::OfServer],
        same: right == Right::Same,
        inner: last(xs, 1) as u64,
        matrix_rows: last(xs, 2) as u64,
        columns: columns as u64,
        ..sizes(out, bits)
    }
}

#[test]
fn products_of_empty_matrices_send_nothing() {
    let two = Two::new(12);
    for (xs, ys) in [(&[0, 3], &[3, 2]), (&[2, 3], &[3, 0]), (&[2, 0], &[0, 2])] {
        let out = xs[0] * ys[1];
        let z =
            two.run(&Op::MatMul { trans_b: false }, &matrix_sizes(xs, ys, false, Right::Shared, 40), |pair, role| {
                let (own, tiles) = (Zeroizing::new(vec![0; out]), Rc::clone(&two.tiles[role]));
                let product = Plan::new(xs, ys, false).unwrap();
                let words = [vec![0; xs[0] * xs[1]], vec![0; ys[0] * ys[1]]];
                async move {
                    multiply_matrices(&pair, &tiles, &product, (&words[0], &words[1]), own, Right::Shared, 40).await
                }
            });
        assert_eq!(open(&z, out, 40), vec![0; out]);
    }
}

#[test]
fn exponentials() {
    let (two, mut words) = (Two::new(7), Words(7));
    for (scale, window, tail) in [(12u8, 6u8, false), (14, 7, false), (12, 10, false), (16, 6, true)] {
        let lowest = -(1i64 << (window - 1));
        let lowest = if tail { lowest.max(-18) } else { lowest };
        let unit = 1i64 << scale;
        let x: Vec<i64> = (0..=100).map(|i| lowest * unit + (unit / 2 - lowest * unit) * i / 100).collect();
        let elements: Vec<u64> = x.iter().map(|x| *x as u64).collect();
        let (n, shares) = (x.len(), share(&elements, &mut words));
        let z = two.run(&Op::ExpDigits { scale, window, tail }, &sizes(n, EXP_RING), |pair, role| {
            let x = Rc::clone(&shares[role]);
            async move { lookup::exp_digits(&pair, &x, n, scale, (window, tail)).await }
        });
        for (x, z) in x.iter().zip(open(&z, n, EXP_RING)) {
            let (x, z) = (*x as f64 / unit as f64, z as f64 * (-f64::from(EXP_SCALE)).exp2());
            let most = if tail { 1.3e-4 * x.exp() + 4.0 * (-f64::from(EXP_SCALE)).exp2() } else { 4e-6 };
            assert!((z - x.exp()).abs() <= most, "e^{x} of {window} bits: {z}");
        }
    }
}

#[test]
fn curves() {
    let (two, mut words) = (Two::new(8), Words(8));
    for (curve, window, from, cell, scale) in
        [(Curve::Gelu, 18, 12, 10, 24), (Curve::Silu, 17, 12, 9, 24), (Curve::Tanh, 16, 12, 9, 20)]
    {
        let cells = Cells { window, from, cell, scale };
        let x = spread(40, cells);
        let elements: Vec<u64> = x.iter().map(|x| *x as u64).collect();
        let (n, shares) = (x.len(), share(&elements, &mut words));
        let op = Op::Lookup { curve, window, cell, bits: 32, scale };
        let z = two.run(&op, &sizes(n, 32), |pair, role| {
            let x = Rc::clone(&shares[role]);
            async move { lookup::curve(&pair, &x, n, (curve, cells), 32).await }
        });
        for (x, z) in x.iter().zip(open(&z, n, 32)) {
            let y = signed(z, 32) as f64 * (-f64::from(scale)).exp2();
            let off = off_polynomials(curve, cells, *x, y);
            let most = 4.0 * (-f64::from(scale / 2 + 2)).exp2();
            assert!(off <= most, "{} at {x}: off by {off}", curve.name());
        }
    }
}

/// By transfers, which is exact, and in both parameter sets, in one product and in more.
#[test]
fn rows_of_a_table() {
    let (two, mut words) = (Two::new(9), Words(9));
    for (rows, columns, bits, tokens) in
        [(1, 2, 64, 4), (7, 3, 24, 4), (130, 5, 40, 4), (300, 200, 24, 68), (400, 150, 40, 5)]
    {
        let table = words.take(rows * columns);
        let mut ids = vec![0, rows as i64 - 1, -1, rows as i64 / 2];
        ids.extend(words.take(tokens - ids.len()).iter().map(|id| (id % rows as u64) as i64));
        let in_tiles = row_tilings([tokens, rows, columns], bits).len();
        assert_eq!(in_tiles, if rows < 300 { 0 } else { tokens.div_ceil(64) });
        let sizes_of = Sizes { table_rows: rows as u64, tokens: tokens as u64, ..sizes(tokens * columns, bits) };
        let z = two.run(&Op::Embed, &sizes_of, |pair, role| {
            let (ids, table, tiles) = (ids.clone(), table.clone(), Rc::clone(&two.tiles[role]));
            async move {
                let (ids, table) = (Some(ids).filter(|_| role == 0), Some(table).filter(|_| role == 1));
                let sizes = Table { rows, columns, tokens, bits };
                lookup::embed(&pair, &tiles, ids.as_deref(), table.as_deref(), sizes).await
            }
        });
        let row = |id: i64| if id < 0 { (id + rows as i64) as usize } else { id as usize };
        let expected = ids.iter().flat_map(|id| table[row(*id) * columns..][..columns].iter());
        for (z, x) in open(&z, tokens * columns, bits).into_iter().zip(expected) {
            let off = x.wrapping_sub(z) & ring_mask(bits);
            assert!(off <= u64::from(in_tiles > 0), "{rows} rows of {bits} bits: off by {off}");
        }
    }
}
