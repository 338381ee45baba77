//! Functions by lookup, against the functions themselves.

use ombra_ir::curve::{Cells, Curve};

use super::*;
use crate::settings::rep3::curve::look_up;
use crate::settings::tables::CurveTables;
use crate::settings::testing::{cells_of, off_polynomials, spread, worst_error};

/// `f(x)` of sharings of integers at `cells.from`, as reals.
fn looked_up(shares: &[Rc<Shared>; 3], n: usize, curve: Curve, cells: Cells, (bits, rot): (u8, u8)) -> Vec<f64> {
    let Cells { window, cell, scale, .. } = cells;
    let op = Op::Lookup { curve, window, cell, bits, scale };
    let terms = run(u64::from(rot), rot, &op, &sizes(n, bits, false), |cx, role| {
        let x = Rc::clone(&shares[role]);
        async move { look_up(&cx, &CurveTables::default(), &x, n, curve, cells, bits).await }
    });
    let words = |i: usize| terms.iter().fold(0u64, |sum, term| sum.wrapping_add(term.data().map_or(0, |x| x[i])));
    (0..n).map(|i| signed(words(i) & ring_mask(bits), bits) as f64 * (-f64::from(scale)).exp2()).collect()
}

fn shared(x: &[i64], seed: u64) -> [Rc<Shared>; 3] {
    share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut Words(seed))
}

/// The tables that expansions use without masks, over their whole windows, in every rotation.
#[test]
fn functions_are_as_close_as_stated() {
    for (curve, range, cell, bits, scale, most) in [
        (Curve::Gelu, 5, -1, 32, 24, 9e-4),
        (Curve::Gelu, 4, -1, 32, 24, 9e-4),
        (Curve::Gelu, 3, -2, 32, 24, 3e-4),
        (Curve::GeluTanh, 5, -1, 32, 24, 9e-4),
        (Curve::Silu, 5, -1, 32, 24, 5e-4),
        (Curve::Silu, 3, -2, 32, 24, 2e-4),
        (Curve::Softplus, 5, -1, 32, 24, 4e-4),
        (Curve::Tanh, 4, -2, 32, 28, 2.5e-4),
        (Curve::Sigmoid, 5, -1, 32, 28, 2e-4),
        (Curve::Erf, 3, -3, 32, 28, 1e-4),
        (Curve::Erf, 2, -3, 32, 24, 1.5e-4),
        (Curve::Tanh, 2, 0, 32, 28, 0.03),
    ] {
        for (from, rot) in [(12u8, 0), (14, 1), (16, 2)] {
            let cells = cells_of((range, cell), from, scale);
            let x = spread(3000, cells);
            let found = looked_up(&shared(&x, from.into()), x.len(), curve, cells, (bits, rot));
            let worst = worst_error(curve, from, &x, &found);
            assert!(worst < most, "{} in cells of 2^{cell} of a ring of {bits}: {worst:.2e}", curve.name());
        }
    }
}

/// Every value of a window of 7 bits with every joint term: the polynomial of its own cell or of the next one, to some units.
#[test]
fn every_value_with_every_joint_term() {
    let cells = Cells { window: 7, from: 4, cell: 3, scale: 24 };
    let pairs: Vec<(i64, u64)> = (-56..56).flat_map(|x| (0..128).map(move |m| (x, m))).collect();
    let (n, mut words) = (pairs.len(), Words(5));
    // Component 1 is the joint term, with other bits above the window.
    let (zeroth, joint) = (words.take(n), pairs.iter().map(|(_, m)| m | words.next() << 7).collect::<Vec<_>>());
    let second: Vec<u64> = (0..n).map(|i| (pairs[i].0 as u64).wrapping_sub(zeroth[i]).wrapping_sub(joint[i])).collect();
    let part = |a: &[u64], b: &[u64]| Rc::new(Shared::new(a.to_vec(), b.to_vec()));
    let shares = [part(&zeroth, &joint), part(&joint, &second), part(&second, &zeroth)];
    let found = looked_up(&shares, n, Curve::Tanh, cells, (32, 0));
    for ((x, m), y) in pairs.iter().zip(&found) {
        let nearest = off_polynomials(Curve::Tanh, cells, *x, *y);
        assert!(nearest < 4e-4, "{x} with {m}: {y}, off by {nearest:.2e}");
    }
}

/// What lies above the window changes nothing, and beyond the table nothing panics.
#[test]
fn values_are_taken_modulo_the_window() {
    let cells = Cells { window: 16, from: 12, cell: 10, scale: 24 };
    let x: Vec<i64> = (0..500).map(|i| 37 * i - 9000).collect();
    let beyond: Vec<i64> = x.iter().map(|x| x + (5 << 16)).collect();
    let [near, far] = [x, beyond].map(|x| looked_up(&shared(&x, 5), x.len(), Curve::Silu, cells, (32, 1)));
    for (x, y) in near.iter().zip(&far) {
        assert!((x - y).abs() < 1e-3, "{x} and {y}");
    }
}
