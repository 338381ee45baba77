//! What the parties see: sizes and order do not depend on secrets, and every received message looks uniform.

use super::*;
use crate::protocols::compare::{and, msb};
use crate::protocols::convert::bit_to_ring;
use crate::protocols::input::input;
use crate::protocols::reshare::{Operand, reshare};
use crate::protocols::tree::{arg_max, row_max};
use crate::protocols::truncate::truncate;

const N: usize = 512;

/// The messages of an op's kernel on `N` elements that are all `x`.
fn messages(op: &Op, x: u64, seed: u64) -> Vec<Sent> {
    let mut words = Words(seed);
    let x = vec![x; N];
    let shared = share(&x, &mut words);
    let sum = terms(&x, true, &mut words);
    let bits = share_bits(&x.iter().map(|x| x & 1 == 1).collect::<Vec<_>>(), &mut words);
    let rows = RowLens::Equal { count: 2, len: N as u64 / 2 };
    let sum3 = matches!(op, Op::Truncate { .. } | Op::Reshare);
    let out = if matches!(op, Op::RowMax { .. } | Op::ArgMax { .. }) { 2 } else { N };
    let sizes = Sizes { rows, ..sizes(out, 64, sum3) };
    run_with_messages(seed, 0, op, &sizes, |cx, role| {
        let (op, x) = (op.clone(), x.clone());
        let (shared, sum, bits) = (shared[role].clone(), sum[role].clone(), bits[role].clone());
        async move {
            match op {
                Op::Truncate { by } => truncate(&cx, Operand::Three(&sum), N, 64, by).await.map(drop),
                Op::Reshare => reshare(&cx, Operand::Three(&sum), N, 64).await.map(drop),
                Op::Msb { width, drop: low } => msb(&cx, &shared, N, width, low).await.map(drop),
                Op::And => and(&cx, &bits, &bits).await.map(drop),
                Op::BitToRing { .. } => bit_to_ring(&cx, &bits, 64).await.map(drop),
                Op::RowMax { width, .. } => row_max(&cx, &shared, &[N as u32 / 2; 2], 64, (width, 0)).await.map(drop),
                Op::ArgMax { width } => arg_max(&cx, &shared, 2, N / 2, 64, width).await.map(drop),
                _ => input(&cx, (role == 0).then_some(x), N, 64).await.map(drop),
            }
        }
    })
    .1
}

fn ops() -> Vec<Op> {
    vec![
        Op::Truncate { by: 16 },
        Op::Reshare,
        Op::Msb { width: 40, drop: 6 },
        Op::And,
        Op::BitToRing { bits: 64 },
        Op::RowMax { shape: Vec::new(), width: 30, drop: 0 },
        Op::ArgMax { width: 30 },
        Op::Input { slot: 0 },
    ]
}

/// Secrets of opposite extremes.
const SECRETS: [u64; 2] = [0, (1 << 62) - 1];

#[test]
fn sizes_and_order_do_not_depend_on_secrets() {
    for op in ops() {
        let shapes = SECRETS
            .map(|x| messages(&op, x, 1).iter().map(|m| (m.round, m.from, m.to, m.bytes.len())).collect::<Vec<_>>());
        assert_eq!(shapes[0], shapes[1], "{}", op.name());
    }
}

/// Chi-square of `counts` against equal chances, as a number of standard deviations from its mean.
fn deviation(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
    let freedom = (counts.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// For every round and pair of roles, over several seeds: bytes and lowest bits of the elements are uniform. A
/// simulator that sends uniform messages is thus not told apart by these statistics. The seeds are fixed.
#[test]
fn received_messages_look_uniform() {
    for op in ops() {
        for secret in SECRETS {
            let mut bytes = std::collections::BTreeMap::<_, Vec<u8>>::new();
            for seed in 0..8 {
                for m in messages(&op, secret, seed) {
                    bytes.entry((m.round, m.from, m.to)).or_default().extend(m.bytes);
                }
            }
            for (key, bytes) in bytes {
                let mut nibbles = [0; 16];
                bytes.iter().for_each(|b| [b & 15, b >> 4].iter().for_each(|n| nibbles[usize::from(*n)] += 1));
                assert!(deviation(&nibbles) < 7.0, "{} {key:?}: {nibbles:?}", op.name());
                if bytes.len() >= 2048 {
                    let mut values = [0; 256];
                    bytes.iter().for_each(|b| values[usize::from(*b)] += 1);
                    assert!(deviation(&values) < 6.0, "{} {key:?}: bytes", op.name());
                }
                let mut low = [0; 2];
                bytes.iter().step_by(8).for_each(|b| low[usize::from(b & 1)] += 1);
                assert!(deviation(&low) < 14.0, "{} {key:?}: low bits {low:?}", op.name());
            }
        }
    }
}

/// Role 2 knows the masks of both wrap bits, so no message of a truncation may go to it.
#[test]
fn role_2_of_a_truncation_receives_nothing() {
    assert!(messages(&Op::Truncate { by: 16 }, 5, 1).iter().all(|m| m.to != 2));
}
