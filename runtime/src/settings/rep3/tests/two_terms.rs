//! Kernels that take two terms give the same of a sum of two terms as of the sharing whose component 0 is zero.

use super::*;
use crate::settings::rep3::compare::msb;
use crate::settings::rep3::convert::select;
use crate::settings::rep3::curve::look_up;
use crate::settings::rep3::exp::exp_digits;
use crate::settings::rep3::reshare::Operand;
use crate::settings::rep3::tree::{arg_max, row_max};
use crate::settings::tables::CurveTables;
use ombra_ir::curve::{Cells, Curve};
use ombra_ir::op::EXP_WINDOW;

const N: usize = 120;
const LEN: usize = 6;

/// `x` as what kernels are given of a sum of two terms, and as the sharing that it stands for.
fn both(x: &[u64], words: &mut Words) -> [[Rc<Shared>; 3]; 2] {
    let sum = terms(x, false, words);
    let of_two = [0, 1, 2].map(|role| Rc::new(Operand::Two(&sum[usize::from(role)]).two_terms(role).unwrap()));
    let component = |role: usize| sum[role].data().unwrap().to_vec();
    let (m, r) = (component(0), component(2));
    let part = |a: &[u64], b: &[u64]| Rc::new(Shared::new(a.to_vec(), b.to_vec()));
    let zero = vec![0; x.len()];
    [of_two, [part(&zero, &m), part(&m, &r), part(&r, &zero)]]
}

/// What every role has of the result, of either form of one value.
fn results<T, F>(op: &Op, sizes: &Sizes, x: &[u64], kernel: impl Fn(Cx, usize, Rc<Shared>) -> F) -> [[T; 3]; 2]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let forms = both(x, &mut Words(17));
    forms.map(|form| run(5, 1, op, sizes, |cx, role| kernel(cx, role, form[role].clone())))
}

fn assert_same(results: [[Shared; 3]; 2], n: usize) {
    let words = |x: &Shared| [x.a.to_vec(n), x.b.to_vec(n)];
    let [one, other] = results.map(|parts| parts.map(|x| words(&x)));
    assert!(one == other);
}

fn assert_same_sums([one, other]: [[Sum; 3]; 2]) {
    assert!(one.iter().zip(&other).all(|(x, y)| x.data() == y.data()));
}

#[test]
fn sharings_that_are_made_of_them() {
    let x: Vec<u64> = (0..N as u64).map(|i| (i * 977).wrapping_sub(40_000)).collect();
    let sizes = sizes(N, 32, false);
    for window in [EXP_WINDOW, EXP_WINDOW - 1] {
        let exp = Op::ExpDigits { scale: 12, window, tail: false };
        let kernel = |cx, _, x: Rc<Shared>| async move { exp_digits(&cx, &x, N, 12, (window, false)).await };
        assert_same(results(&exp, &sizes, &x, kernel), N);
    }

    let bits: [Rc<Bits>; 3] = share_bits(&(0..N).map(|i| i % 3 == 0).collect::<Vec<_>>(), &mut Words(2));
    let selected = results(&Op::Select, &sizes, &x, |cx, role, x| {
        let bits = bits[role].clone();
        async move { select(&cx, &bits, &x, 32).await }
    });
    assert_same_sums(selected);

    let rows = RowLens::Equal { count: (N / LEN) as u64, len: LEN as u64 };
    let sizes = Sizes { rows, ..super::sizes(N / LEN, 32, false) };
    let indices = results(&Op::ArgMax { width: 20 }, &sizes, &x, |cx, _, x| async move {
        arg_max(&cx, &x, N / LEN, LEN, 32, 20).await
    });
    assert_same(indices, N / LEN);
}

#[test]
fn terms_bits_and_sums_that_are_made_of_them() {
    let x: Vec<u64> = (0..N as u64).map(|i| (i * 977).wrapping_sub(40_000)).collect();
    let signs = results(&Op::Msb { width: 20, drop: 0 }, &sizes(N, 32, false), &x, |cx, _, x| async move {
        msb(&cx, &x, N, 20, 0).await
    });
    for signs in signs {
        assert_eq!(open_bits(&signs), x.iter().map(|x| (*x as i64) < 0).collect::<Vec<_>>());
    }

    let rows = RowLens::Equal { count: (N / LEN) as u64, len: LEN as u64 };
    let sizes = Sizes { rows, ..sizes_of_two(N / LEN, 32) };
    let op = Op::RowMax { shape: Vec::new(), width: 20, drop: 0 };
    let maxima = results(&op, &sizes, &x, |cx, _, x| async move {
        row_max(&cx, &x, &[LEN as u32; N / LEN], 32, (20, 0)).await.map(Ring::Two)
    });
    let greatest: Vec<u64> = x.chunks(LEN).map(|row| row.iter().map(|x| *x as i64).max().unwrap() as u64).collect();
    for maxima in maxima {
        let found = open_ring(maxima, N / LEN, 32);
        assert_eq!(found, greatest.iter().map(|x| x & ring_mask(32)).collect::<Vec<_>>());
    }

    let cells = Cells { window: 18, from: 14, cell: 12, scale: 24 };
    let op = Op::Lookup { curve: Curve::Gelu, window: 18, cell: 12, bits: 32, scale: 24 };
    assert_same_sums(results(&op, &super::sizes(N, 32, false), &x, |cx, _, x| async move {
        look_up(&cx, &CurveTables::default(), &x, N, Curve::Gelu, cells, 32).await
    }));
}
