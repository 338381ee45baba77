//! Ops on so many elements that they take a round more for fewer bytes: results, rounding, and what the parties see.

use super::*;
use crate::settings::rep3::Keys;
use crate::settings::rep3::convert::bit_to_ring;
use crate::settings::rep3::reshare::Operand;
use crate::settings::rep3::truncate::truncate;

const N: usize = 100_000;
/// Ring of values that are extended.
const SMALL: u8 = 16;
const OPS: [Op; 3] = [Op::Truncate { by: 45, bits: 64 }, Op::Truncate { by: 0, bits: 64 }, Op::BitToRing { bits: 64 }];

fn sizes_of(op: &Op) -> Sizes<'static> {
    let from_bits = if matches!(op, Op::Truncate { by: 0, .. }) { SMALL } else { 64 };
    Sizes { from_bits, ..sizes(N, 64, true) }
}

/// Results and messages on `x`, shared by `seed`.
fn run_op(op: &Op, x: &[u64], seed: u64, rot: u8, keys: [Rc<Keys>; 3]) -> ([Shared; 3], Vec<Sent>) {
    let mut words = Words(seed);
    let sum = terms(x, true, &mut words);
    let bits = share_bits(&x.iter().map(|x| x & 1 == 1).collect::<Vec<_>>(), &mut words);
    let declared = traffic(op, &sizes_of(op));
    assert_eq!(declared.rounds, if matches!(op, Op::BitToRing { .. }) { 2 } else { 3 });
    let found = lockstep::run_with_keys(keys, rot, &declared, |cx| {
        let role = usize::from(cx.role());
        let (op, sum, bits) = (op.clone(), sum[role].clone(), bits[role].clone());
        async move {
            match op {
                Op::Truncate { by, bits } => {
                    let from = sizes_of(&op).from_bits;
                    truncate(&cx, Operand::Three(&sum), N, (from, bits), by).await
                }
                _ => bit_to_ring(&cx, &bits, 64).await,
            }
        }
    });
    let (shares, sent) = found.expect("the kernel runs as declared");
    assert_declared(&sent, &declared);
    (shares, sent)
}

#[test]
fn results_are_those_of_few() {
    let mut words = Words(3);
    let x: Vec<i64> = (0..N).map(|i| signed(words.next(), if i % 2 == 0 { 60 } else { 50 })).collect();
    for rot in 0..3 {
        for op in OPS {
            let small = |v: &i64| signed(*v as u64, SMALL - 2) as u64;
            let given: Vec<u64> = match op {
                Op::Truncate { by: 0, .. } => x.iter().map(small).collect(),
                _ => x.iter().map(|v| *v as u64).collect(),
            };
            let (shares, _) = run_op(&op, &given, 7, rot, lockstep::keys(7));
            let found = open(&shares, N, 64);
            for (x, y) in given.iter().zip(&found) {
                match op {
                    Op::Truncate { by: 0, .. } => assert_eq!(x, y),
                    Op::Truncate { by, .. } => {
                        let up = *y as i64 - (*x as i64 >> by);
                        assert!(up == 0 || up == 1);
                    }
                    _ => assert_eq!(*y, x & 1),
                }
            }
        }
    }
}

/// Two runs that differ in nothing but keys that a receiver does not know: its messages differ nearly everywhere, and
/// look uniform.
#[test]
fn messages_are_under_keys_that_receivers_do_not_know() {
    let x = vec![5; N];
    for op in OPS {
        for (rot, receiver) in (0..3u8).flat_map(|rot| [0, 1, 2].map(|receiver| (rot, receiver))) {
            let run = |changed: bool| {
                let mut seeds = [1u64; 6];
                seeds[usize::from((receiver + 2 + rot) % 3)] += u64::from(changed);
                let (_, sent) = run_op(&op, &x, 1, rot, lockstep::keys_of(seeds));
                sent.into_iter().filter(|m| m.to == receiver).collect::<Vec<_>>()
            };
            for (old, new) in run(false).iter().zip(&run(true)) {
                let same = old.bytes.iter().zip(&new.bytes).filter(|(old, new)| old == new).count();
                assert!(same <= old.bytes.len() / 128, "{op:?}, round {}, {} to {receiver}", old.round, old.from);
                let mut counts = [0u64; 256];
                old.bytes.iter().for_each(|b| counts[usize::from(*b)] += 1);
                let expected = old.bytes.len() as f64 / 256.0;
                let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
                assert!((chi - 255.0).abs() / 510f64.sqrt() < 6.0, "{op:?}: {chi}");
            }
            let divided = !matches!(op, Op::BitToRing { .. });
            assert!(!divided || receiver != 2 || run(false).is_empty(), "role 2 knows the masks of both wrap bits");
        }
    }
}
