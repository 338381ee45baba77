//! Truncation, resharing, input and reveal.

use super::*;
use crate::settings::rep3::input::input;
use crate::settings::rep3::reshare::{Operand, reshare};
use crate::settings::rep3::reveal::reveal;
use crate::settings::rep3::truncate::{dither, truncate};
use ombra_ir::settings::rep3::cut_first;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Shared,
    Two,
    Three,
}

impl Form {
    fn operand<'a>(self, shared: &'a Shared, sum: &'a Sum) -> Operand<'a> {
        match self {
            Form::Shared => Operand::Shared(shared),
            Form::Two => Operand::Two(sum),
            Form::Three => Operand::Three(sum),
        }
    }
}

/// The truncated values of `x` given in a form, in the same ring.
fn truncated(seed: u64, rot: u8, x: &[u64], form: Form, bits: u8, by: u8) -> Vec<u64> {
    divided(seed, rot, x, form, (bits, bits), by)
}

/// The truncated values of `x` of a ring of `from` bits given in a form, in a ring of `to` bits.
fn divided(seed: u64, rot: u8, x: &[u64], form: Form, (from, to): (u8, u8), by: u8) -> Vec<u64> {
    let n = x.len();
    let mut words = Words(seed);
    let sizes = Sizes { from_bits: from, ..sizes(n, to, form == Form::Three) };
    let shared = share(x, &mut words);
    let sum = terms(x, form == Form::Three, &mut words);
    let shares = run(seed, rot, &Op::Truncate { by, bits: to }, &sizes, |cx, role| {
        let (shared, sum) = (shared[role].clone(), sum[role].clone());
        async move {
            let operand = form.operand(&shared, &sum);
            truncate(&cx, operand, n, (from, to), by).await
        }
    });
    assert_eq!(matches!(shares[0], Ring::Two(_)), to <= from - by);
    open_ring(shares, n, to)
}

#[test]
fn values_keep_their_size_in_a_larger_ring() {
    for (from, to) in [(8u8, 16u8), (32, 64), (40, 64), (48, 56)] {
        let quarter = 1i64 << (from - 2);
        let mut words = Words(u64::from(from));
        let mut x = vec![0, 1, -1, quarter - 1, 1 - quarter];
        x.extend((0..95).map(|_| signed(words.next(), from - 2)));
        let x: Vec<u64> = x.iter().map(|v| *v as u64).collect();
        let n = x.len();
        for (rot, form) in [(0, Form::Shared), (1, Form::Two), (2, Form::Three), (1, Form::Three)] {
            let sizes = Sizes { from_bits: from, ..sizes(n, to, form == Form::Three) };
            let shared = share(&x, &mut words);
            let sum = terms(&x, form == Form::Three, &mut words);
            let shares = run(3, rot, &Op::Truncate { by: 0, bits: to }, &sizes, |cx, role| {
                let (shared, sum) = (shared[role].clone(), sum[role].clone());
                async move {
                    let operand = form.operand(&shared, &sum);
                    truncate(&cx, operand, n, (from, to), 0).await
                }
            });
            let expected: Vec<u64> = x.iter().map(|v| *v & ring_mask(to)).collect();
            assert_eq!(open_ring(shares, n, to), expected, "from {from} to {to} bits");
        }
    }
}

/// Bits by which values are shorter than the ring that they are divided in with a wrap.
fn spare(form: Form, by: u8) -> u8 {
    if is_cut(form, by) { 3 } else { 2 }
}

/// Whether terms are cut before they are divided.
fn is_cut(form: Form, by: u8) -> bool {
    form == Form::Three && cut_first(by) > 0
}

/// Into every smaller ring, of every value of a ring of 8 bits and many of 16: what is far from the ends of its ring, and
/// where there is no wrap any value. The floor or one more, and whole multiples exactly; of three terms that are cut less than 2
/// off.
#[test]
fn quotients_in_smaller_rings() {
    for (from, step) in [(8u8, 1), (16, 37)] {
        for (by, to) in (1..=from - 2).flat_map(|by| (1..=from / 8).map(move |bytes| (by, 8 * bytes))) {
            for (rot, form) in [(0, Form::Shared), (1, Form::Two), (2, Form::Three)] {
                let half = 1i64 << if to <= from - by { from - 1 } else { from - spare(form, by) };
                let x: Vec<u64> = (1 - half..half).step_by(step).map(|v| v as u64).collect();
                let y = divided(11, rot, &x, form, (from, to), by);
                for (x, y) in x.iter().zip(y) {
                    let floor = (*x as i64) >> by;
                    let up = y.wrapping_sub(floor as u64) & ring_mask(to);
                    let is_whole = *x & ring_mask(by) == 0;
                    if is_cut(form, by) {
                        let up = y.wrapping_sub(floor as u64).wrapping_add(1) & ring_mask(to);
                        assert!(up <= 2 || up == 3 && !is_whole, "{x} / 2^{by} from {from} to {to} bits: {y}");
                        continue;
                    }
                    assert!(up == 0 || up == 1 && !is_whole, "{x} / 2^{by} from {from} to {to} bits, {form:?}: {y}");
                }
            }
        }
    }
}

/// Of three terms without a wrap the mean is right too, whatever the value is.
#[test]
fn rounding_without_a_wrap_is_not_biased() {
    for (rings, by) in [((64, 48), 16), ((40, 24), 16), ((16, 8), 4)] {
        for fraction in [0, 1u64 << (by - 2), 3 << (by - 2)] {
            let x = vec![(9 << by) + fraction; 6000];
            for form in [Form::Shared, Form::Two, Form::Three] {
                let up: i64 = divided(fraction + 3, 0, &x, form, rings, by).iter().map(|y| *y as i64 - 9).sum();
                let chance = up as f64 / 6000.0;
                assert!((chance - fraction as f64 / f64::from(1u32 << by)).abs() < 0.025, "{chance}");
            }
        }
    }
}

/// Result less floor of each value, 0 or 1; of three terms that are cut from −1 to 2.
fn rounding(x: &[u64], y: &[u64], bits: u8, by: u8, form: Form) -> Vec<i64> {
    let possible = if is_cut(form, by) { -1..=2 } else { 0..=1 };
    x.iter()
        .zip(y)
        .map(|(x, y)| {
            let up = signed(*y, bits) - (signed(*x, bits) >> by);
            assert!(possible.contains(&up), "{} / 2^{by} in {bits} bits: {}", signed(*x, bits), signed(*y, bits));
            up
        })
        .collect()
}

#[test]
fn exhaustive_on_small_rings() {
    for (bits, step) in [(8, 1), (16, 7)] {
        for by in [1, 3, bits - 3, bits - 2] {
            for (rot, form) in [(0, Form::Shared), (1, Form::Two), (2, Form::Three)] {
                let most = 1i64 << (bits - spare(form, by));
                let x: Vec<u64> = (1 - most..most).step_by(step).map(|v| v as u64).collect();
                for seed in 1..5 {
                    let y = truncated(seed, rot, &x, form, bits, by);
                    rounding(&x, &y, bits, by, form);
                }
            }
        }
    }
}

#[test]
fn extremes_and_random_values_of_large_rings() {
    for (bits, limit) in [32u8, 40, 48, 64].into_iter().flat_map(|bits| [2, 3].map(|spare| (bits, bits - spare))) {
        let limit = (1i64 << limit) - 1;
        let mut words = Words(bits.into());
        let mut x: Vec<u64> = [limit, -limit, 0, -1, 1, 1 << 16, -(1 << 16), limit - 1].map(|v| v as u64).repeat(20);
        x.extend((0..1000).map(|_| signed(words.next(), bits - 1) as u64));
        x.iter_mut().for_each(|v| *v = signed(*v, bits).clamp(-limit, limit) as u64);
        for rot in 0..3 {
            for form in [Form::Shared, Form::Two, Form::Three] {
                for by in [12, 16].into_iter().filter(|by| limit >> (bits - spare(form, *by)) == 0) {
                    rounding(&x, &truncated(u64::from(rot) + 9, rot, &x, form, bits, by), bits, by, form);
                }
            }
        }
    }
}

#[test]
fn sizes_are_as_declared() {
    for n in [0, 1, 7, 64, 100] {
        for (rot, form) in [(0, Form::Shared), (1, Form::Two), (2, Form::Three)] {
            for (bits, by) in [(64, 16), (40, 12), (24, 5)] {
                assert_eq!(truncated(5, rot, &vec![1 << by; n], form, bits, by).len(), n);
            }
        }
    }
}

/// The functionality: the floor, and one more where the dropped part of the value is greater than that of `m`, which
/// is the joint term and the dither; component 1 of the result is the quotient of `m` but for multiples of its range.
#[test]
fn rounding_is_decided_by_the_joint_term() {
    for (bits, by) in [(64u8, 16u8), (32, 12), (16, 4), (8, 6), (64, 62)] {
        let (n, quarter) = (2000, 1u64 << (bits - 2));
        let mut words = Words(u64::from(bits) + u64::from(by));
        let x: Vec<u64> = (0..n).map(|_| signed(words.next(), bits - 1) as u64).collect();
        let joints = [words.take(n), vec![0; n], x.clone(), vec![words.next(); n]];
        for (rot, joint) in (0u8..).map(|i| i % 3).zip(joints) {
            let single = x.iter().zip(&joint).map(|(x, joint)| x.wrapping_sub(*joint)).collect();
            let terms = [joint.clone(), joint.clone(), single].map(|term| Rc::new(Sum::new(Some(term))));
            let shares = run(4, rot, &Op::Truncate { by, bits }, &sizes(n, bits, false), |cx, role| {
                let term = terms[role].clone();
                async move { truncate(&cx, Operand::Two(&term), n, (bits, bits), by).await }
            });
            let dropped = |x: u64| x & ring_mask(by);
            let m: Vec<u64> = joint.iter().enumerate().map(|(i, joint)| joint.wrapping_add(dither(i))).collect();
            let expected: Vec<i64> = x.iter().zip(&m).map(|(x, m)| i64::from(dropped(*x) > dropped(*m))).collect();
            let component = match &shares[0] {
                Ring::Shared(shared) => shared.b.to_vec(n),
                _ => panic!("a sharing"),
            };
            let found = rounding(&x, &open_ring(shares, n, bits), bits, by, Form::Two);
            assert_eq!(found, expected, "{bits} bits by {by}");

            let kept = |x: u64| x & ring_mask(bits - by);
            for (component, m) in component.iter().zip(&m) {
                let quotient = (m.wrapping_add(quarter) & ring_mask(bits)) >> by;
                assert_eq!(kept(*component), kept(quotient.wrapping_sub(quarter >> by)));
            }
        }
    }
}

/// With a dropped part `d` the chance of rounding up is `d / 2^f`, so the mean of the result over the terms' randomness is
/// `x / 2^f` for every value. With 6000 samples its standard deviation is at most 0.0065.
#[test]
fn rounding_is_not_biased() {
    for (bits, by) in [(64, 16), (32, 12), (16, 4)] {
        for (numerator, sign) in [(0u64, 1i64), (1, 1), (1, -1), (2, 1), (3, -1), (3, 1)] {
            let fraction = numerator << (by - 2);
            let value = sign * ((5 << by) + fraction as i64);
            let x = vec![value as u64; 6000];
            for form in [Form::Shared, Form::Two, Form::Three] {
                let y = truncated(fraction + 1, 1, &x, form, bits, by);
                rounding(&x, &y, bits, by, form);
                let exact = value as f64 / f64::from(1u32 << by);
                let mean = y.iter().map(|y| signed(*y, bits) as f64 - exact).sum::<f64>() / 6000.0;
                assert!(mean.abs() < 0.025, "value {value} of {bits} bits by {by}: mean error {mean}");
            }
        }
    }
}

/// The same where one term is the whole value, as after a product of a fresh input and a public matrix.
#[test]
fn rounding_of_a_single_term_is_not_biased() {
    let (bits, by, n) = (64, 12, 6000);
    for (rot, holders) in [(0, 0..2), (1, 2..3)] {
        let value = (7i64 << by) + (1 << (by - 1));
        let sizes = sizes(n, bits, false);
        let shares = run(21, rot, &Op::Truncate { by, bits }, &sizes, |cx, role| {
            let sum = Sum::new(holders.contains(&role).then(|| vec![value as u64; n]));
            async move { truncate(&cx, Operand::Two(&sum), n, (bits, bits), by).await }
        });
        let up = rounding(&vec![value as u64; n], &open_ring(shares, n, bits), bits, by, Form::Two).iter().sum::<i64>();
        let chance = up as f64 / n as f64;
        assert!((chance - 0.5).abs() < 0.03, "rounded up with chance {chance}");
    }
}

#[test]
fn impossible_divisors_are_refused() {
    let declared = traffic(&Op::Truncate { by: 63, bits: 64 }, &sizes(1, 64, false));
    for by in [0, 63, 255] {
        let result = lockstep::run(1, 0, &declared, |cx| async move {
            truncate(&cx, Operand::Two(&Sum::default()), 1, (64, 64), by).await
        });
        assert_eq!(result.err().map(|e| e.code), Some("E0803"));
    }
}

#[test]
fn sums_are_reshared() {
    for n in [0, 1, 7, 64, 100] {
        for rot in 0..3 {
            for (bits, third) in [(64, true), (64, false), (8, true), (24, false)] {
                let mut words = Words(n as u64);
                let x: Vec<u64> = words.take(n).iter().map(|v| v & ring_mask(bits)).collect();
                let sum = terms(&x, third, &mut words);
                let shares = run(3, rot, &Op::Reshare, &sizes(n, bits, third), |cx, role| {
                    let sum = sum[role].clone();
                    async move {
                        let operand = if third { Operand::Three(&sum) } else { Operand::Two(&sum) };
                        reshare(&cx, operand, n, bits).await
                    }
                });
                assert_eq!(open(&shares, n, bits), x);
            }
        }
    }
}

#[test]
fn inputs_are_shared_and_revealed() {
    for n in [0, 1, 7, 64, 100] {
        for (rot, bits) in [(0, 64), (1, 16), (2, 40)] {
            let mut words = Words(77);
            let x: Vec<u64> = words.take(n).iter().map(|v| v & ring_mask(bits)).collect();
            let given = x.clone();
            let shares = run(2, rot, &Op::Input { slot: 0 }, &sizes(n, bits, false), |cx, role| {
                let value = (role == 0).then(|| given.clone());
                async move { input(&cx, value, n, bits).await }
            });
            assert_eq!(open(&shares, n, bits), x);

            let shared = shares.map(Rc::new);
            let opened = run(2, rot, &Op::Reveal { slot: 0 }, &sizes(n, bits, false), |cx, role| {
                let shared = shared[role].clone();
                async move { reveal(&cx, &shared, n, bits).await }
            });
            assert_eq!(opened, [Some(x), None, None]);
        }
    }
}
