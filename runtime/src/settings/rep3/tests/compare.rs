//! Sign bits, and, bits as ring elements, and selection.

use super::*;
use crate::settings::rep3::compare::{msb, msb_by};
use crate::settings::rep3::convert::{Selection, bit_to_ring};
use crate::settings::rep3::cross::two_terms;
use crate::settings::rep3::join::and;

fn signs(seed: u64, rot: u8, x: &[u64], width: u8) -> Vec<bool> {
    rough_signs(seed, rot, x, width, 0)
}

fn rough_signs(seed: u64, rot: u8, x: &[u64], width: u8, drop: u8) -> Vec<bool> {
    let n = x.len();
    let shared = share(x, &mut Words(seed));
    let bits = run(seed, rot, &Op::Msb { width, drop }, &sizes(n, 64, false), |cx, role| {
        let shared = shared[role].clone();
        async move { msb(&cx, &shared, n, width, drop).await }
    });
    open_bits(&bits)
}

#[test]
fn exhaustive_signs_of_narrow_values() {
    for width in 1..=9u8 {
        let half = 1i64 << (width - 1);
        let x: Vec<u64> = (-half..half).map(|v| v as u64).collect();
        for seed in 0..12 {
            let expected: Vec<bool> = (-half..half).map(|v| v < 0).collect();
            assert_eq!(signs(seed, (seed % 3) as u8, &x, width), expected, "width {width}");
        }
    }
}

/// Every way to write `bits` as a sum of groups of 1 to 4.
fn groupings(bits: u8) -> Vec<Vec<u8>> {
    if bits == 0 {
        return vec![Vec::new()];
    }
    let with_first = |first: u8| groupings(bits - first).into_iter().map(move |rest| [&[first], &rest[..]].concat());
    (1..=bits.min(4)).flat_map(with_first).collect()
}

/// Every way to join so many groups, two to four at a time.
fn joinings(groups: usize) -> Vec<Vec<u8>> {
    if groups < 2 {
        return vec![Vec::new()];
    }
    let with_first = |first: u8| {
        let rest = joinings(groups.div_ceil(usize::from(first)));
        rest.into_iter().map(move |rest| [&[first], &rest[..]].concat())
    };
    (2..=4).flat_map(with_first).collect()
}

#[test]
fn exhaustive_signs_by_every_grouping() {
    assert_eq!([1, 2, 3, 4, 5, 6].map(|bits| groupings(bits).len()), [1, 2, 4, 8, 15, 29]);
    assert_eq!([1, 2, 3, 5].map(|groups| joinings(groups).len()), [1, 3, 5, 11]);
    for width in 2..=7u8 {
        // All pairs of terms of the compared bits, and some more, so that the last word of a plane is not full.
        let mask = (1u64 << width) - 1;
        let n = (1usize << (2 * width)) + 21;
        let mut words = Words(width.into());
        let made = groupings(width - 1).into_iter().flat_map(|groups| {
            let joinings = joinings(groups.len());
            joinings.into_iter().map(move |joins| Carry { groups: groups.clone(), joins })
        });
        for (i, carry) in made.enumerate() {
            let (rot, drop) = ((i % 3) as u8, (i % 4) as u8);
            let shifted =
                |term: u64, noise: u64| noise << (width + drop) | term << drop | noise >> 32 & ((1 << drop) - 1);
            let joint: Vec<u64> = (0..n as u64).map(|i| shifted(i & mask, words.next())).collect();
            let single: Vec<u64> = (0..n as u64).map(|i| shifted(i >> width & mask, words.next())).collect();
            let x0 = words.take(n);
            let x2: Vec<u64> = single.iter().zip(&x0).map(|(single, x0)| single.wrapping_sub(*x0)).collect();
            let part = |a: &[u64], b: &[u64]| Rc::new(Shared::new(a.to_vec(), b.to_vec()));
            let shared = [part(&x0, &joint), part(&joint, &x2), part(&x2, &x0)];
            let declared = sign_traffic(n as u64, &carry);
            let (bits, sent) = lockstep::run(3, rot, &declared, |cx| {
                let (shared, carry) = (shared[usize::from(cx.role())].clone(), carry.clone());
                async move { msb_by(&cx, &two_terms(&cx, &shared, n), (width + drop, drop), &carry).await }
            })
            .expect("the kernel runs as declared");
            assert_declared(&sent, &declared);
            let sum = |i: u64| (i & mask) + (i >> width & mask);
            let expected: Vec<bool> = (0..n as u64).map(|i| sum(i) >> (width - 1) & 1 == 1).collect();
            assert!(open_bits(&bits) == expected, "width {width} by {carry:?}, {drop} bits dropped");
        }
    }
}

#[test]
fn signs_of_wide_values() {
    for width in [16u8, 20, 24, 28, 32, 40, 48, 63, 64] {
        let mut words = Words(width.into());
        let limit = (1i64 << (width - 2)) - 1;
        let mut x = vec![limit, -limit, 0, -1, 1, (1i64 << (width - 1)).wrapping_neg(), 2 * limit + 1];
        x.extend((0..300).map(|_| signed(words.next(), width)));
        let expected: Vec<bool> = x.iter().map(|v| *v < 0).collect();
        let x: Vec<u64> = x.iter().map(|v| *v as u64).collect();
        for rot in 0..3 {
            assert_eq!(signs(4, rot, &x, width), expected, "width {width} rotation {rot}");
        }
    }
}

#[test]
fn dropped_bits_blur_the_sign_above_zero_only() {
    let (width, drop) = (12u8, 4u8);
    // All values of one bit less than the width.
    let x: Vec<i64> = (-1024..1024).collect();
    let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
    let mut blurred = 0;
    for seed in 0..6 {
        let found = rough_signs(seed, (seed % 3) as u8, &words, width, drop);
        for (v, negative) in x.iter().zip(found) {
            if (0..16).contains(v) {
                blurred += usize::from(negative);
            } else {
                assert_eq!(negative, *v < 0, "{v}");
            }
        }
    }
    assert!(blurred > 0, "the shares decide inside the blurred range");
}

#[test]
fn sign_messages_are_as_declared() {
    for n in [0, 1, 7, 64, 100] {
        for width in [1, 2, 3, 8, 17, 33, 64] {
            assert_eq!(signs(1, 1, &vec![0; n], width), vec![false; n]);
        }
    }
}

#[test]
fn bits_are_joined_and_converted() {
    for n in [0, 1, 7, 64, 100] {
        for rot in 0..3 {
            let mut words = Words(n as u64 + 5);
            let x: Vec<bool> = words.take(n).iter().map(|w| w & 1 == 1).collect();
            let y: Vec<bool> = words.take(n).iter().map(|w| w & 1 == 1).collect();
            let (xs, ys) = (share_bits(&x, &mut words), share_bits(&y, &mut words));
            let both = run(6, rot, &Op::And, &sizes(n, 0, false), |cx, role| {
                let (x, y) = (xs[role].clone(), ys[role].clone());
                async move { and(&cx, &x, &y).await }
            });
            assert_eq!(open_bits(&both), x.iter().zip(&y).map(|(x, y)| x & y).collect::<Vec<_>>());

            for bits in [8, 24, 32, 64] {
                let ring = run(6, rot, &Op::BitToRing { bits }, &sizes(n, bits, false), |cx, role| {
                    let x = xs[role].clone();
                    async move { bit_to_ring(&cx, &x, bits).await }
                });
                assert_eq!(open(&ring, n, bits), x.iter().map(|x| u64::from(*x)).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn elements_are_selected_in_small_rings() {
    for (bits, rot) in [(8u8, 0), (8, 1), (8, 2), (16, 0), (24, 1), (32, 2)] {
        let mask = ring_mask(bits);
        for times in [1usize, 2, 3] {
            // Every element of the smallest ring meets both bits in several sharings.
            let n = 1031;
            let mut words = Words(u64::from(bits) + times as u64);
            let b: Vec<bool> = (0..n).map(|i| i / 256 % 2 == 1).collect();
            let x: Vec<u64> =
                (0..(n * times) as u64).map(|i| if bits == 8 { i % 256 } else { words.next() & mask }).collect();
            let (bs, xs) = (share_bits(&b, &mut words), share(&x, &mut words));
            let declared = selection_traffic((n * times) as u64, u64::from(bits / 8));
            let (terms, sent) = lockstep::run(8, rot, &declared, |cx| {
                let role = usize::from(cx.role());
                let (b, x) = (bs[role].clone(), xs[role].clone());
                async move {
                    let selection = Selection::begin(&cx, &b, times, &two_terms(&cx, &x, n * times), bits)?;
                    cx.exchange().await;
                    selection.end(&cx).map(|term| Ring::Two(Sum::new(Some(term))))
                }
            })
            .expect("the kernel runs as declared");
            assert_declared(&sent, &declared);
            let expected: Vec<u64> = x.iter().enumerate().map(|(i, x)| if b[i % n] { *x } else { 0 }).collect();
            assert_eq!(open_ring(terms, n * times, bits), expected, "{times} for each bit in {bits} bits");
        }
    }
}
