//! Sign bits, and, bits as ring elements, and selection.

use super::*;
use ombra_ir::settings::Msg;
use ombra_ir::settings::dealer::Comparison;

use crate::settings::dealer::bits::{and, bit_to_ring, select};
use crate::settings::dealer::compare::{msb, msb_in};
use crate::settings::dealer::products::{Operand, begin_mask, end_mask, mask};

fn signs_of(seed: u64, shares: [Rc<Share>; 3], n: usize, (width, drop): (u8, u8)) -> Vec<bool> {
    let bits = run(seed, &Op::Msb { width, drop }, &sizes(n, 64), |cx, role| {
        let share = shares[role].clone();
        async move { msb(&cx, Operand::Share(&share), n, width, drop).await }
    });
    open_bits(&bits)
}

/// The signs of values that were masked before.
fn signs_of_masked(seed: u64, x: &[u64], (width, drop): (u8, u8)) -> Vec<bool> {
    let (n, shares) = (x.len(), share(x, &mut Words(seed)));
    let mut declared = traffic(&Op::Mask, &sizes(n, 64));
    let forms = [Sharing::Masked, Sharing::Public];
    let sign = traffic(&Op::Msb { width, drop }, &Sizes { forms, ..sizes(n, 64) });
    declared.msgs.extend(sign.msgs.iter().map(|m| Msg { round: m.round + 1, ..*m }));
    declared.rounds += sign.rounds;
    let (bits, _) = run_declared(lockstep::keys(seed), &declared, |cx, role| {
        let share = shares[role].clone();
        async move {
            let masked = mask(&cx.at_level(1), &share, n, 64).await?;
            msb(&cx, Operand::Ready(&masked), n, width, drop).await
        }
    });
    open_bits(&bits)
}

fn signs(seed: u64, x: &[u64], width: (u8, u8)) -> Vec<bool> {
    signs_of(seed, share(x, &mut Words(seed)), x.len(), width)
}

#[test]
fn exhaustive_signs_of_narrow_values() {
    for width in 2..=10u8 {
        let half = 1i64 << (width - 1);
        let x: Vec<u64> = (-half..half).map(|v| v as u64).collect();
        let expected: Vec<bool> = (-half..half).map(|v| v < 0).collect();
        for seed in 0..12 {
            assert_eq!(signs(seed, &x, (width, 0)), expected, "width {width}");
        }
    }
}

/// Every value with every share of it: with the masks drawn, so many values of both a masked value and its mask.
#[test]
fn exhaustive_signs_of_shares() {
    for width in 2..=8u8 {
        let (n, mask) = (1u64 << (2 * width), (1u64 << width) - 1);
        let client: Vec<u64> = (0..n).map(|i| i & mask).collect();
        let server: Vec<u64> = (0..n).map(|i| i >> width).collect();
        let negative = |(x, y): (&u64, &u64)| x.wrapping_add(*y) >> (width - 1) & 1 == 1;
        let expected: Vec<bool> = client.iter().zip(&server).map(negative).collect();
        for seed in 0..4 {
            let shares = [Share::of(client.clone()), Share::of(server.clone()), Share::nothing()].map(Rc::new);
            assert!(signs_of(seed, shares, n as usize, (width, 0)) == expected, "width {width}");
        }
    }
}

/// In the ways of all numbers of elements: chunks that are joined by none, one and two openings.
#[test]
fn signs_of_every_width() {
    for (width, many) in (2..=64u8).flat_map(|width| [1, 1000, 10_000, 1 << 24].map(|many| (width, many))) {
        let way = Comparison::of(many, width);
        let signs = |seed: u64, x: &[u64], width: (u8, u8)| {
            let (n, shares) = (x.len(), share(x, &mut Words(seed)));
            let mut declared = Traffic::default();
            let bytes = u64::from(width.0) * n.div_ceil(8) as u64;
            let exchanged = [(0, 1), (1, 0)].map(|(from, to)| Msg { round: 0, from, to, bytes });
            declared.msgs.extend(exchanged);
            way.messages(&mut declared, n as u64);
            let (bits, _) = run_declared(lockstep::keys(seed), &declared, |cx, role| {
                let (share, way) = (shares[role].clone(), way.clone());
                async move { msb_in(&cx, Operand::Share(&share), n, width, &way).await }
            });
            open_bits(&bits)
        };
        let mut words = Words(width.into());
        let highest = i64::MAX >> (64 - width);
        let mut x = vec![highest, -highest, -highest - 1, 0, -1, 1];
        // Random ones, ones near zero, and ones a power of two apart from the ends.
        x.extend((0..200).map(|_| signed(words.next(), width)));
        x.extend((0..width).flat_map(|k| {
            let near = signed(words.next(), k.max(1));
            [near, -1 - near]
        }));
        x.extend((0..width - 1).flat_map(|k| [(1i64 << k) - 1, -(1i64 << k)]));
        let expected: Vec<bool> = x.iter().map(|v| *v < 0).collect();
        let x: Vec<u64> = x.iter().map(|v| *v as u64).collect();
        for seed in 0..3 {
            assert_eq!(signs(seed, &x, (width, 0)), expected, "width {width}");
        }
    }
}

/// Lengths on both sides of a word and of eight of them, which are worked on together.
#[test]
fn signs_of_every_length() {
    for n in [0, 1, 7, 8, 63, 64, 65, 511, 512, 513, 600, 1025] {
        for width in [2, 5, 12, 21, 22, 33, 64] {
            let x: Vec<u64> = Words(n as u64).take(n).iter().map(|w| signed(*w, width) as u64).collect();
            let expected: Vec<bool> = x.iter().map(|w| (*w as i64) < 0).collect();
            assert_eq!(signs(1, &x, (width, 0)), expected, "{n} of width {width}");
        }
    }
}

#[test]
fn dropped_bits_blur_the_sign_above_zero_only() {
    for of in [signs as Signs, signs_of_masked] {
        dropped_bits_blur_above_zero_only(of);
    }
}

/// Signs of values by a seed, with the width that is compared and the bits of it that are dropped.
type Signs = fn(u64, &[u64], (u8, u8)) -> Vec<bool>;

fn dropped_bits_blur_above_zero_only(signs: Signs) {
    let mut blurred = 0;
    for (width, drop) in [(12, 4), (12, 1), (13, 11), (32, 20)] {
        // All values of one bit less than the width, or those near what is blurred.
        let limit = (1i64 << (width - 2)).min(3 << drop);
        let x: Vec<i64> = (-limit..limit).step_by(1 + limit as usize / 2000).collect();
        let words: Vec<u64> = x.iter().map(|v| *v as u64).collect();
        for seed in 0..6 {
            for (v, negative) in x.iter().zip(signs(seed, &words, (width, drop))) {
                if (0..1 << drop).contains(v) {
                    blurred += usize::from(negative);
                } else {
                    assert_eq!(negative, *v < 0, "{v} of width {width}, {drop} dropped");
                }
            }
        }
    }
    assert!(blurred > 0, "the shares decide inside the blurred range");
}

#[test]
fn widths_that_hold_no_sign_are_refused() {
    for (width, drop) in [(65, 0), (1, 0), (5, 4), (5, 9), (0, 0)] {
        let result = lockstep::run(1, 0, &Traffic::default(), |cx| async move {
            let share = if cx.role() == 2 { Share::nothing() } else { Share::of(vec![0]) };
            msb(&cx, Operand::Share(&share), 1, width, drop).await
        });
        assert_eq!(result.err().map(|e| e.code), Some("E0803"), "width {width}, {drop} dropped");
    }
}

#[test]
fn bits_are_joined_and_converted() {
    for n in [0, 1, 7, 64, 100, 600] {
        let mut words = Words(n as u64 + 5);
        let x: Vec<bool> = words.take(n).iter().map(|w| w & 1 == 1).collect();
        let y: Vec<bool> = words.take(n).iter().map(|w| w & 1 == 1).collect();
        let (xs, ys) = (share_bits(&x, &mut words), share_bits(&y, &mut words));
        let both = run(6, &Op::And, &sizes(n, 0), |cx, role| {
            let (x, y) = (xs[role].clone(), ys[role].clone());
            async move { and(&cx, &x, &y).await }
        });
        assert_eq!(open_bits(&both), x.iter().zip(&y).map(|(x, y)| x & y).collect::<Vec<_>>());

        for bits in [8, 24, 32, 64] {
            let ring = run(6, &Op::BitToRing { bits }, &sizes(n, bits), |cx, role| {
                let x = xs[role].clone();
                async move { bit_to_ring(&cx, &x, bits).await }
            });
            assert_eq!(open(&ring, n, bits), x.iter().map(|x| u64::from(*x)).collect::<Vec<_>>());
        }
    }
}

/// What a tree's level sends, without its comparison.
#[test]
fn elements_are_selected_by_one_opened_bit() {
    for (bits, n) in [(8u8, 1031), (24, 100), (64, 65)] {
        let mut words = Words(n as u64);
        let b: Vec<bool> = words.take(n).iter().map(|w| w & 1 == 1).collect();
        let x: [Vec<u64>; 2] = [0, 1].map(|_| words.take(n).iter().map(|w| w & ring_mask(bits)).collect());
        let (bs, xs) = (share_bits(&b, &mut words), x.each_ref().map(|x| share(x, &mut words)));
        let element = n as u64 * u64::from(bits) / 8;
        let messages = [
            (0, 0, 1, 2 * element),
            (0, 1, 0, 2 * element),
            (1, 0, 1, n.div_ceil(8) as u64),
            (1, 1, 0, n.div_ceil(8) as u64),
            (1, 2, 1, 3 * element),
        ];
        let msgs = messages.map(|(round, from, to, bytes)| Msg { round, from, to, bytes }).to_vec();
        let declared = Traffic { rounds: 2, msgs, dealt: None };
        let (results, _) = run_declared(lockstep::keys(3), &declared, |cx, role| {
            let (b, x) = (bs[role].clone(), xs.each_ref().map(|x| x[role].clone()));
            async move {
                let mut masked = Vec::new();
                for (part, x) in (0u8..).zip(&x) {
                    masked.push(begin_mask(&cx, x, n, bits, part)?);
                }
                cx.round().await;
                let masked = masked.into_iter().map(|value| end_mask(&cx, value, n, bits));
                let masked = masked.collect::<ombra_ir::Result<Vec<_>>>()?;
                select(&cx, &b, &masked, bits).await
            }
        });
        let mut parts = results.map(|(bit, chosen)| std::iter::once(bit).chain(chosen).collect::<Vec<_>>());
        for x in x.iter().rev() {
            let chosen = parts.each_mut().map(|part| part.pop().expect("there is one for each value"));
            let expected: Vec<u64> = x.iter().zip(&b).map(|(x, b)| if *b { *x } else { 0 }).collect();
            assert_eq!(open(&chosen, n, bits), expected, "in {bits} bits");
        }
        let bit = parts.map(|mut part| part.pop().expect("the bit comes first"));
        assert_eq!(open(&bit, n, bits), b.iter().map(|b| u64::from(*b)).collect::<Vec<_>>());
    }
}
