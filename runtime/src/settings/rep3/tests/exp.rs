//! The exponential by digits.

use super::*;
use crate::settings::rep3::exp::exp_digits;
use ombra_ir::op::{EXP_WINDOW, exp_form};

/// Maximum error that the op's description states.
const ERROR: f64 = 4e-6;

const SHORT: u8 = EXP_WINDOW - 1;

/// The fraction bits of an operand, its window, and whether the tail's form is meant.
type Kind = (u8, u8, bool);

/// `e^x` of integers of `scale`, in a ring of `bits`, from given sharings.
fn exps(shares: &[Rc<Shared>; 3], n: usize, (scale, window, tail): Kind, rot: u8) -> Vec<u64> {
    let op = Op::ExpDigits { scale, window, tail };
    let (bits, _) = exp_form(Setting::ThreeParty, tail);
    let results = run(9, rot, &op, &sizes(n, bits, false), |cx, role| {
        let x = shares[role].clone();
        async move { exp_digits(&cx, &x, n, scale, (window, tail)).await }
    });
    open(&results, n, bits)
}

fn assert_close(found: &[u64], x: &[i64], (scale, _, tail): Kind) {
    let (bits, fraction) = exp_form(Setting::ThreeParty, tail);
    for (found, x) in found.iter().zip(x) {
        let real = (*x as f64 / f64::from(scale).exp2()).exp();
        let error = signed(*found, bits) as f64 / f64::from(fraction).exp2() - real;
        let allowed = if tail { 1.3e-4 * real + 1.2e-8 } else { ERROR };
        assert!(error.abs() < allowed, "e^({x} / 2^{scale}) is off by {error:e}");
    }
}

/// In every rotation, at the ends of what the op holds for and between.
#[test]
fn results_are_close_to_the_exponential() {
    let n = 20_000;
    for (scale, rot, window) in [(16u8, 0u8, EXP_WINDOW), (14, 1, EXP_WINDOW), (20, 2, EXP_WINDOW), (16, 1, SHORT)] {
        let mut words = Words(4);
        let (low, high) = if window == SHORT { (-16i64 << scale, 0) } else { (-(32i64 << scale), 1 << (scale - 1)) };
        let range = (high - low + 1) as u64;
        let drawn = (0..n - 4).map(|_| low + (words.next() % range) as i64);
        let x: Vec<i64> = [low, high, 0, -1].into_iter().chain(drawn).collect();
        let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut words);
        for tail in [false, true].into_iter().filter(|tail| !tail || window == EXP_WINDOW) {
            let kind = (scale, window, tail);
            assert_close(&exps(&shares, n, kind, rot), &x, kind);
        }
    }
}

/// Every value of windows of 6 + 3 and of 5 + 3 bits with every joint term.
#[test]
fn every_value_with_every_joint_term() {
    let scale = 3u8;
    every_pair((-(32 << scale)..=1 << (scale - 1)).collect(), (scale, EXP_WINDOW, false));
    every_pair((-(16 << scale)..=0).collect(), (scale, SHORT, false));
}

fn every_pair(x: Vec<i64>, kind: Kind) {
    let bits = kind.0 + kind.1;
    let window = 1i64 << bits;
    let pairs: Vec<(i64, i64)> = x.iter().flat_map(|x| (0..window).map(move |m| (*x, m))).collect();
    let n = pairs.len();
    let mut words = Words(5);
    // Component 1 is the joint term, with other bits above the window.
    let zeroth = words.take(n);
    let joint: Vec<u64> = pairs.iter().map(|(_, m)| *m as u64 | words.next() << bits).collect();
    let second: Vec<u64> = (0..n).map(|i| (pairs[i].0 as u64).wrapping_sub(zeroth[i]).wrapping_sub(joint[i])).collect();
    let part = |a: &[u64], b: &[u64]| Rc::new(Shared::new(a.to_vec(), b.to_vec()));
    let shares = [part(&zeroth, &joint), part(&joint, &second), part(&second, &zeroth)];
    let values: Vec<i64> = pairs.iter().map(|(x, _)| *x).collect();
    assert_close(&exps(&shares, n, kind, 0), &values, kind);
}

/// Outside of its range the result is some element; nothing overflows or panics.
#[test]
fn far_values_are_some_element() {
    let mut words = Words(6);
    let x = words.take(2000);
    for window in [EXP_WINDOW, SHORT] {
        let found = exps(&share(&x, &mut words), x.len(), (16, window, false), 0);
        let (bits, _) = exp_form(Setting::ThreeParty, false);
        assert!(found.iter().all(|word| word >> bits == 0));
    }
}
