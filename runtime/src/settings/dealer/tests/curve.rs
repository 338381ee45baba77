//! Functions by lookup: against the functions themselves, for operands that are masked before and in the op.

use ombra_ir::curve::{Cells, Curve};

use super::rank::assert_full_rank;
use super::*;
use crate::settings::dealer::curve::look_up;
use crate::settings::dealer::products::{Operand, mask};
use crate::settings::tables::CurveTables;
use crate::settings::testing::{cells_of, off_polynomials, spread, worst_error};

/// `f(x)` of integers at `cells.from` in a ring of `from` bits, as reals.
fn looked_up(seed: u64, x: &[i64], from: u8, curve: Curve, cells: Cells, bits: u8) -> Vec<f64> {
    let n = x.len();
    let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut Words(seed));
    let Cells { window, cell, scale, .. } = cells;
    let op = Op::Lookup { curve, window, cell, bits, scale };
    let sizes = Sizes { from_bits: from, ..sizes(n, bits) };
    let result = run(seed, &op, &sizes, |cx, role| {
        let x = Rc::clone(&shares[role]);
        async move { look_up(&cx, &CurveTables::default(), Operand::Share(&x), n, curve, cells, bits).await }
    });
    let real = |x: u64| signed(x, bits) as f64 * (-f64::from(scale)).exp2();
    open(&result, n, bits).into_iter().map(real).collect()
}

#[test]
fn functions_are_as_close_as_stated() {
    for (curve, range, cell, bits, scale, most) in [
        (Curve::Gelu, 5, -1, 32, 24, 9e-4),
        (Curve::Gelu, 3, -2, 32, 24, 3e-4),
        (Curve::GeluTanh, 3, -2, 32, 24, 3e-4),
        (Curve::Silu, 5, -1, 32, 24, 5e-4),
        (Curve::Silu, 6, -2, 32, 23, 6e-4),
        (Curve::Softplus, 4, -1, 32, 24, 4e-4),
        (Curve::Tanh, 3, -2, 32, 28, 2.5e-4),
        (Curve::Sigmoid, 4, -1, 32, 28, 2e-4),
        (Curve::Erf, 2, -3, 32, 28, 1e-4),
        (Curve::Erf, 2, -3, 32, 24, 1.5e-4),
        (Curve::Tanh, 2, 0, 32, 28, 0.03),
    ] {
        for from in [12u8, 14] {
            let cells = cells_of((range, cell), from, scale);
            let x = spread(3000, cells);
            let found = looked_up(u64::from(from), &x, cells.window.div_ceil(8) * 8, curve, cells, bits);
            let worst = worst_error(curve, from, &x, &found);
            assert!(worst < most, "{} in cells of 2^{cell} of a ring of {bits}: {worst:.2e}", curve.name());
        }
    }
}

/// Every value of a window of 7 bits under every mask: the polynomial of its own cell or of the next one, to some units.
#[test]
fn every_value_under_every_mask() {
    let cells = Cells { window: 7, from: 4, cell: 3, scale: 24 };
    let x: Vec<i64> = (-56..56).flat_map(|x| std::iter::repeat_n(x, 128)).collect();
    let found = looked_up(3, &x, 8, Curve::Tanh, cells, 32);
    for (x, y) in x.iter().zip(&found) {
        let nearest = off_polynomials(Curve::Tanh, cells, *x, *y);
        assert!(nearest < 4e-4, "{x}: {y}, off by {nearest:.2e}");
    }
}

/// What lies above the window changes nothing.
#[test]
fn values_are_taken_modulo_the_window() {
    let cells = Cells { window: 16, from: 12, cell: 10, scale: 24 };
    let x: Vec<i64> = (0..500).map(|i| 37 * i - 9000).collect();
    let beyond: Vec<i64> = x.iter().map(|x| x + (5 << 16)).collect();
    let [near, far] = [x, beyond].map(|x| looked_up(5, &x, 24, Curve::Silu, cells, 32));
    for (x, y) in near.iter().zip(&far) {
        assert!((x - y).abs() < 1e-3, "{x} and {y}");
    }
}

#[test]
fn what_is_received_is_masked() {
    const N: usize = 8;
    let mut words = Words(21);
    let x = share(&words.take(N), &mut words);
    for (window, cell, bits, scale) in [(16, 11, 32, 24), (15, 8, 24, 18), (12, 2, 32, 28), (10, 8, 32, 24)] {
        let cells = Cells { window, from: 8, cell, scale };
        let op = Op::Lookup { curve: Curve::Gelu, window, cell, bits, scale };
        let declared = traffic(&op, &sizes(N, bits));
        assert_full_rank(&format!("{op:?}"), &declared, |cx, role| {
            let x = Rc::clone(&x[role]);
            async move { look_up(&cx, &CurveTables::default(), Operand::Share(&x), N, Curve::Gelu, cells, bits).await }
        });
        let masked = traffic(&op, &Sizes { forms: [Sharing::Masked, Sharing::Public], ..sizes(N, bits) });
        let mut both = traffic(&Op::Mask, &sizes(N, 16));
        both.msgs.extend(masked.msgs.iter().map(|m| ombra_ir::settings::Msg { round: m.round + 1, ..*m }));
        both.rounds += masked.rounds;
        assert_full_rank(&format!("{op:?} of what is masked"), &both, |cx, role| {
            let x = Rc::clone(&x[role]);
            async move {
                let x = mask(&cx.at_level(1), &x, N, 16).await?;
                look_up(&cx, &CurveTables::default(), Operand::Ready(&x), N, Curve::Gelu, cells, bits).await
            }
        });
    }
}
