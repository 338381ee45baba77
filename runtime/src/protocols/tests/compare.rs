//! Sign bits, and, and bits as ring elements.

use super::*;
use crate::protocols::compare::{and, msb};
use crate::protocols::convert::bit_to_ring;

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
