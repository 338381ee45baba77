//! Every bit that a role receives is under a mask of its own.
//!
//! Runs that differ in nothing but the pair key that a receiver does not know: to it, what it receives must be uniform
//! given everything that it holds, that is over this key. Then the differences to the first run, all bits of all
//! messages as one vector over GF(2), have full rank. Two messages under one mask are linearly dependent in their lowest
//! bits at least, and the rank falls short.

use super::*;
use crate::settings::rep3::compare::msb_by;
use crate::settings::rep3::convert::{bit_to_ring, select};
use crate::settings::rep3::cross::two_terms;
use crate::settings::rep3::curve::look_up;
use crate::settings::rep3::exp::exp_digits;
use crate::settings::rep3::join::and;
use crate::settings::rep3::reshare::{Operand, reshare};
use crate::settings::rep3::tree::{arg_max, row_max};
use crate::settings::rep3::truncate::truncate;
use crate::settings::tables::CurveTables;
use crate::settings::testing::{EXTRA, affine_rank};
use ombra_ir::curve::{Cells, Curve};
use ombra_ir::op::EXP_WINDOW;

/// Elements of a run: planes of bits fill whole bytes, so that all bits that are sent are random.
const N: usize = 8;

/// Checks the rank of what each role receives from `kernel`, which sends `declared`.
fn assert_full_rank<T, F>(name: &str, declared: &Traffic, kernel: impl Fn(Cx, usize) -> F)
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let bytes_to =
        |role: u8| declared.sent().filter(|(_, to, _)| *to == role).map(|(_, _, bytes)| bytes as usize).sum::<usize>();
    let bits = [0, 1, 2].map(|role| 8 * bytes_to(role));
    let ranks = [0, 1, 2].map(|receiver: u8| {
        // A rotation of its own for each.
        let rot = receiver;
        let received = |run: usize| -> Vec<u8> {
            // Pair key `j` is known to roles `j` and `j − 1`.
            let mut seeds = [1; 6];
            seeds[usize::from((receiver + 2 + rot) % 3)] = 100 + run as u64;
            let (_, sent) = lockstep::run_with_keys(lockstep::keys_of(seeds), rot, declared, |cx| {
                let role = usize::from(cx.role());
                kernel(cx, role)
            })
            .expect("the kernel runs as declared");
            assert_declared(&sent, declared);
            sent.into_iter().filter(|m| m.to == receiver).flat_map(|m| m.bytes).collect()
        };
        affine_rank(&(0..bits[usize::from(receiver)] + EXTRA).map(received).collect::<Vec<_>>())
    });
    assert_eq!(ranks, bits, "{name}: ranks of what the roles receive, and bits of it");
}

/// The four sharings of every bit in turn.
fn all_bits(n: usize) -> [Rc<Bits>; 3] {
    let plane = |shift: u64| (0..n.div_ceil(64)).map(|_| (0..64).fold(0, |w, i| w | (i >> shift & 1) << i)).collect();
    let x: [Vec<u64>; 3] = [0, 1, 2].map(plane);
    let part = |i: usize| Rc::new(Bits::new(n, x[i].clone(), x[(i + 1) % 3].clone()));
    [part(0), part(1), part(2)]
}

#[test]
fn divisions_and_resharing() {
    let mut words = Words(1);
    for third in [false, true] {
        let terms = terms(&words.take(N), third, &mut words);
        for op in [
            Op::Truncate { by: 16, bits: 64 },
            Op::Truncate { by: 13, bits: 64 },
            Op::Truncate { by: 62, bits: 64 },
            Op::Truncate { by: 0, bits: 64 },
            Op::Truncate { by: 16, bits: 56 },
            Op::Truncate { by: 16, bits: 48 },
            Op::Reshare,
        ] {
            let from_bits = if matches!(op, Op::Truncate { by: 0, .. }) { 40 } else { 64 };
            let bits = if let Op::Truncate { bits, .. } = op { bits } else { 64 };
            let sizes = Sizes { from_bits, ..sizes(N, bits, third) };
            assert_full_rank(&format!("{op:?}, {}", 2 + u8::from(third)), &traffic(&op, &sizes), |cx, role| {
                let (op, terms) = (op.clone(), terms[role].clone());
                async move {
                    let operand = if third { Operand::Three(&terms) } else { Operand::Two(&terms) };
                    match op {
                        Op::Truncate { by, bits } => truncate(&cx, operand, N, (from_bits, bits), by).await.map(drop),
                        _ => reshare(&cx, operand, N, 64).await.map(drop),
                    }
                }
            });
        }
    }
}

#[test]
fn exponentials() {
    let mut words = Words(7);
    let shares = share(&words.take(N), &mut words);
    for window in [EXP_WINDOW, EXP_WINDOW - 1] {
        let declared = traffic(&Op::ExpDigits { scale: 16, window, tail: false }, &sizes(N, 32, false));
        assert_full_rank("exponential", &declared, |cx, role| {
            let x = shares[role].clone();
            async move { exp_digits(&cx, &x, N, 16, (window, false)).await }
        });
    }
}

#[test]
fn lookups() {
    let mut words = Words(8);
    let shares = share(&words.take(N), &mut words);
    for (window, cell, bits, scale) in [(16, 11, 32, 24), (15, 8, 24, 18), (12, 2, 32, 28), (10, 8, 32, 24)] {
        let cells = Cells { window, from: 8, cell, scale };
        // A vector of fewer than 8 bits is a byte whose others are random as well.
        let op = Op::Lookup { curve: Curve::Gelu, window, cell, bits, scale };
        assert_full_rank(&format!("{op:?}"), &traffic(&op, &sizes(N, bits, false)), |cx, role| {
            let x = shares[role].clone();
            async move { look_up(&cx, &CurveTables::default(), &x, N, Curve::Gelu, cells, bits).await }
        });
    }
}

#[test]
fn bits_selections_and_ands() {
    let n = N as u64;
    let (bits, shares) = (all_bits(N), share(&Words(3).take(N), &mut Words(4)));
    assert_full_rank("conversion", &traffic(&Op::BitToRing { bits: 64 }, &sizes(N, 64, false)), |cx, role| {
        let bits = bits[role].clone();
        async move { bit_to_ring(&cx, &bits, 64).await }
    });
    assert_full_rank("selection", &selection_traffic(n, 8), |cx, role| {
        let (bits, shares) = (bits[role].clone(), shares[role].clone());
        async move { select(&cx, &bits, &shares, 64).await }
    });
    assert_full_rank("and", &traffic(&Op::And, &sizes(N, 0, false)), |cx, role| {
        let bits = bits[role].clone();
        async move { and(&cx, &bits, &bits).await }
    });
}

#[test]
fn sign_bits_by_several_groups_and_joins() {
    let mut words = Words(6);
    let carries: [(&[u8], &[u8]); 11] = [
        (&[], &[]),
        (&[1], &[]),
        (&[4], &[]),
        (&[1, 1], &[2]),
        (&[2, 3, 1], &[2, 2]),
        (&[2, 3, 1], &[3]),
        (&[4, 4, 4, 3], &[2, 2]),
        (&[4, 4, 4, 3], &[4]),
        (&[1, 1, 1, 1, 1, 1, 1], &[4, 2]),
        (&[2, 4, 1, 3, 4, 2, 3, 4], &[2, 2, 2]),
        (&[2, 4, 1, 3, 4, 2, 3, 4, 1, 1], &[3, 4]),
    ];
    for (groups, joins) in carries {
        let carry = Carry { groups: groups.to_vec(), joins: joins.to_vec() };
        let width = groups.iter().sum::<u8>() + 1;
        let shares = share(&words.take(N), &mut words);
        assert_full_rank(&format!("signs by {carry:?}"), &sign_traffic(N as u64, &carry), |cx, role| {
            let (shares, carry) = (shares[role].clone(), carry.clone());
            async move { msb_by(&cx, &two_terms(&cx, &shares, N), (width, 0), &carry).await }
        });
    }
}

/// Levels of a tree, and conversion and selection side by side.
#[test]
fn greatest_entries() {
    const LEN: usize = 3;
    let mut words = Words(7);
    let shares = share(&words.take(N * LEN), &mut words);
    let rows = RowLens::Equal { count: N as u64, len: LEN as u64 };
    let of_two = Sizes { rows, ..sizes_of_two(N, 16) };
    let op = Op::RowMax { shape: Vec::new(), width: 9, drop: 2 };
    assert_full_rank("greatest entries", &traffic(&op, &of_two), |cx, role| {
        let shares = shares[role].clone();
        async move { row_max(&cx, &shares, &[LEN as u32; N], 16, (9, 2)).await }
    });
    let sizes = Sizes { rows, ..sizes(N, 16, false) };
    assert_full_rank("their indices", &traffic(&Op::ArgMax { width: 9 }, &sizes), |cx, role| {
        let shares = shares[role].clone();
        async move { arg_max(&cx, &shares, N, LEN, 16, 9).await }
    });
}
