//! What the parties see: sizes and order do not depend on secrets, and every received message looks uniform.

use std::collections::BTreeMap;

use super::arithmetic::times;
use super::*;
use ombra_ir::curve::{Cells, Curve};

use crate::settings::dealer::bits::{and, bit_to_ring, select};
use crate::settings::dealer::compare::msb;
use crate::settings::dealer::curve::look_up;
use crate::settings::dealer::divide::divide;
use crate::settings::dealer::exp::exp_digits;
use crate::settings::dealer::products::{Bilinear, Operand, hold, mask, product};
use crate::settings::dealer::tree::{arg_max, row_max};
use crate::settings::tables::CurveTables;
use crate::settings::testing::deviation;

const N: usize = 512;
/// Rows of the ops on rows, and elements of each.
const ROWS: usize = 64;
const LEN: usize = N / ROWS;
/// What is looked up.
const CURVE: Curve = Curve::Gelu;
const CELLS: Cells = Cells { window: 20, from: 16, cell: 13, scale: 24 };
/// Secrets of opposite extremes.
const SECRETS: [u64; 2] = [0, (1 << 62) - 1];

fn cases() -> Vec<Op> {
    vec![
        Op::Msb { width: 16, drop: 0 },
        Op::Msb { width: 40, drop: 6 },
        Op::And,
        Op::BitToRing { bits: 64 },
        Op::RowMax { shape: Vec::new(), width: 30, drop: 2 },
        Op::ArgMax { width: 30 },
        Op::Mask,
        Op::Hold,
        Op::Mul,
        Op::Select,
        Op::Truncate { by: 12, bits: 64 },
        Op::ExpDigits { scale: 16, window: 6, tail: false },
        Op::ExpDigits { scale: 16, window: 10, tail: false },
        Op::Lookup { curve: CURVE, window: CELLS.window, cell: CELLS.cell, bits: 32, scale: CELLS.scale },
    ]
}

/// The messages of a kernel on `N` elements that are all `x`. The server's share is 0, as that of a client's input is, or
/// the client's is, as that of a server's, or neither.
fn messages(op: &Op, x: u64, holder: usize, seed: u64) -> Vec<Sent> {
    let mut words = Words(seed);
    let (all, zeros) = (vec![x; N], vec![0; N]);
    let bits = if x & 1 == 1 { vec![u64::MAX; N / 64] } else { vec![0; N / 64] };
    let of_bits =
        |x: Vec<u64>, y: Vec<u64>| [BitShare::of(N, x), BitShare::of(N, y), BitShare::nothing(N)].map(Rc::new);
    let (shares, bits) = match holder {
        0 => ([Share::of(all), Share::of(zeros), Share::nothing()].map(Rc::new), of_bits(bits, vec![0; N / 64])),
        1 => ([Share::of(zeros), Share::of(all), Share::nothing()].map(Rc::new), of_bits(vec![0; N / 64], bits)),
        _ => (share(&all, &mut words), share_bits(&vec![x & 1 == 1; N], &mut words)),
    };
    let on_rows = matches!(op, Op::RowMax { .. } | Op::ArgMax { .. });
    let rows = RowLens::Equal { count: ROWS as u64, len: LEN as u64 };
    let (out, bits_out) = (if on_rows { ROWS } else { N }, if let Op::Lookup { bits, .. } = op { *bits } else { 64 });
    let forms = [Sharing::Shared; 2];
    let declared = traffic(op, &Sizes { rows, forms, from_bits: 64, elements: [N as u64; 2], ..sizes(out, bits_out) });
    let (_, sent) = run_declared(lockstep::keys(seed), &declared, |cx, role| {
        let (op, share, bits) = (op.clone(), shares[role].clone(), bits[role].clone());
        async move {
            match op {
                Op::Msb { width, drop: low } => msb(&cx, Operand::Share(&share), N, width, low).await.map(drop),
                Op::And => and(&cx, &bits, &bits).await.map(drop),
                Op::BitToRing { bits: ring } => bit_to_ring(&cx, &bits, ring).await.map(drop),
                Op::RowMax { width, drop: low, .. } => {
                    row_max(&cx, &share, &[LEN as u32; ROWS], 64, (width, low)).await.map(drop)
                }
                Op::ArgMax { width } => arg_max(&cx, &share, ROWS, LEN, 64, width).await.map(drop),
                Op::Mask => mask(&cx, &share, N, 64).await.map(drop),
                Op::Hold => hold(&cx, &share, N, 64).await.map(drop),
                Op::Mul => {
                    let of_elements = Bilinear { apply: &times, operands: [N; 2], result: N };
                    product(&cx, &of_elements, Operand::Share(&share), Operand::Share(&share), 64).await.map(drop)
                }
                Op::Select => {
                    let masked = vec![mask(&cx, &share, N, 64).await?];
                    select(&cx, &bits, &masked, 64).await.map(drop)
                }
                Op::Truncate { by, bits } => divide(&cx, &share, N, (64, bits), by).await.map(drop),
                Op::ExpDigits { scale, window, tail } => {
                    exp_digits(&cx, Operand::Share(&share), N, scale, (window, tail)).await.map(drop)
                }
                Op::Lookup { curve, bits, .. } => {
                    look_up(&cx, &CurveTables::default(), Operand::Share(&share), N, curve, CELLS, bits).await.map(drop)
                }
                other => panic!("no kernel for {other:?}"),
            }
        }
    });
    sent
}

#[test]
fn sizes_and_order_do_not_depend_on_secrets() {
    for op in cases() {
        let shape = |x: u64, holder: usize, seed: u64| {
            let sent = messages(&op, x, holder, seed);
            sent.iter().map(|m| (m.round, m.from, m.to, m.bytes.len())).collect::<Vec<_>>()
        };
        let first = shape(SECRETS[0], 2, 1);
        for holder in 0..3 {
            assert_eq!(first, shape(SECRETS[1], holder, 2), "{op:?}");
        }
    }
}

/// For every round and pair of roles, over several seeds: bytes and their bits are uniform. A simulator that sends uniform
/// messages is thus not told apart by these statistics. The seeds are fixed.
#[test]
fn received_messages_look_uniform() {
    for op in cases() {
        for (secret, holder) in SECRETS.into_iter().flat_map(|secret| [0, 1, 2].map(|holder| (secret, holder))) {
            let mut bytes = BTreeMap::<_, Vec<u8>>::new();
            for seed in 0..8 {
                for m in messages(&op, secret, holder, seed) {
                    bytes.entry((m.round, m.from, m.to)).or_default().extend(m.bytes);
                }
            }
            for (key, bytes) in bytes {
                let mut nibbles = [0; 16];
                bytes.iter().for_each(|b| [b & 15, b >> 4].iter().for_each(|n| nibbles[usize::from(*n)] += 1));
                assert!(deviation(&nibbles) < 7.0, "{op:?} {key:?}: {nibbles:?}");
                if bytes.len() >= 2048 {
                    let mut values = [0; 256];
                    bytes.iter().for_each(|b| values[usize::from(*b)] += 1);
                    assert!(deviation(&values) < 6.0, "{op:?} {key:?}: bytes");
                }
                let mut low = [0; 2];
                bytes.iter().step_by(8).for_each(|b| low[usize::from(b & 1)] += 1);
                assert!(deviation(&low) < 14.0, "{op:?} {key:?}: low bits {low:?}");
            }
        }
    }
}
