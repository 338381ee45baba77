//! Every bit that a role receives is under a mask of its own.
//!
//! Runs that differ in nothing but the pair key that a receiver does not know: to it, what it receives must be uniform
//! given everything that it holds, that is over this key. Then the differences to the first run, all bits of all
//! messages as one vector over GF(2), have full rank.

use super::*;
use ombra_ir::settings::Msg;
use ombra_ir::settings::dealer::Comparison;

use crate::backend::bits::{planes_of, words as plane_words, xor_assign};
use crate::settings::dealer::Purpose;
use crate::settings::dealer::bits::{and, bit_to_ring};
use crate::settings::dealer::compare::{deal_chunks, msb, msb_in, sign_of_masked};
use crate::settings::dealer::products::Operand;
use crate::settings::dealer::tree::{arg_max, row_max};
use crate::settings::testing::{EXTRA, affine_rank};

/// Elements of a run: planes of bits fill whole bytes, so that all bits that are sent are random.
const N: usize = 8;

/// Ranks of what client and server receive from `kernel`, which sends `declared`, and bits of it. The dealer receives
/// nothing.
fn ranks<T, F>(declared: &Traffic, kernel: impl Fn(Cx, usize) -> F) -> [(usize, usize); 2]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    assert!(declared.msgs.iter().all(|m| m.to < 2), "the dealer receives nothing");
    [0, 1].map(|receiver: u8| {
        let bits = 8 * declared.msgs.iter().filter(|m| m.to == receiver).map(|m| m.bytes as usize).sum::<usize>();
        let received = |run: usize| -> Vec<u8> {
            // Pair key `j` is known to roles `j` and `j − 1`: the client lacks `k_2`, the server `k_0`.
            let mut seeds = [1; 6];
            seeds[usize::from((receiver + 2) % 3)] = 100 + run as u64;
            let (_, sent) = run_declared(lockstep::keys_of(seeds), declared, &kernel);
            sent.into_iter().filter(|m| m.to == receiver).flat_map(|m| m.bytes).collect()
        };
        (affine_rank(&(0..bits + EXTRA).map(received).collect::<Vec<_>>()), bits)
    })
}

pub(super) fn assert_full_rank<T, F>(name: &str, declared: &Traffic, kernel: impl Fn(Cx, usize) -> F)
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let ranks = ranks(declared, kernel);
    assert!(
        ranks.iter().all(|(rank, bits)| rank == bits),
        "{name}: ranks of what the roles receive, and bits: {ranks:?}"
    );
}

/// The messages of the signs of `N` shared values of `width` bits in one of their ways.
fn signs_declared(width: u8, way: &Comparison) -> Traffic {
    let mut declared = Traffic::default();
    let exchanged = [(0, 1), (1, 0)].map(|(from, to)| Msg { round: 0, from, to, bytes: width.into() });
    declared.msgs.extend(exchanged);
    way.messages(&mut declared, N as u64);
    declared
}

#[test]
fn signs() {
    let mut words = Words(6);
    // Ways of many elements have chunks of four bits: of one chunk to five, which one opening joins, and of six and more,
    // which two join. Those of few have large chunks, alone or under one opening.
    let many = [2, 5, 6, 12, 13, 20, 22, 26, 33, 64].map(|width| (width, 1 << 24));
    let few = [6, 8, 16, 22, 33].map(|width| (width, N as u64));
    for (width, n) in many.into_iter().chain(few) {
        let shares = share(&words.take(N), &mut words);
        let way = Comparison::of(n, width);
        let declared = signs_declared(width, &way);
        assert_full_rank(&format!("signs of width {width} as those of {n}"), &declared, |cx, role| {
            let (shares, way) = (shares[role].clone(), way.clone());
            async move { msb_in(&cx, Operand::Share(&shares), N, (width, 0), &way).await }
        });
    }
    let shares = share(&words.take(N), &mut words);
    assert_full_rank("dropped bits", &traffic(&Op::Msb { width: 16, drop: 3 }, &sizes(N, 64)), |cx, role| {
        let shares = shares[role].clone();
        async move { msb(&cx, Operand::Share(&shares), N, 16, 3).await }
    });
}

#[test]
fn ands_and_conversions() {
    let mut words = Words(3);
    let bits = share_bits(&[false, true, false, true, false, true, true, false], &mut words);
    assert_full_rank("and", &traffic(&Op::And, &sizes(N, 0)), |cx, role| {
        let bits = bits[role].clone();
        async move { and(&cx, &bits, &bits).await }
    });
    for ring in [8, 64] {
        assert_full_rank("conversion", &traffic(&Op::BitToRing { bits: ring }, &sizes(N, ring)), |cx, role| {
            let bits = bits[role].clone();
            async move { bit_to_ring(&cx, &bits, ring).await }
        });
    }
}

/// Levels of a tree, and value and index that one bit selects.
#[test]
fn greatest_entries() {
    const LEN: usize = 5;
    let mut words = Words(7);
    let shares = share(&words.take(N * LEN), &mut words);
    let rows = RowLens::Equal { count: N as u64, len: LEN as u64 };
    let sizes = Sizes { rows, ..sizes(N, 16) };
    let op = Op::RowMax { shape: Vec::new(), width: 9, drop: 2 };
    assert_full_rank("greatest entries", &traffic(&op, &sizes), |cx, role| {
        let shares = shares[role].clone();
        async move { row_max(&cx, &shares, &[LEN as u32; N], 16, (9, 2)).await }
    });
    assert_full_rank("their indices", &traffic(&Op::ArgMax { width: 6 }, &sizes), |cx, role| {
        let shares = shares[role].clone();
        async move { arg_max(&cx, &shares, N, LEN, 16, 6).await }
    });
}

/// Kernels with one fault each, which send what they should, in sizes and order.
#[test]
fn a_mask_that_is_left_out_or_used_twice_lowers_the_rank() {
    const WIDTH: u8 = 12;
    let shares = share(&Words(9).take(N), &mut Words(9));
    let way = Comparison::of(1 << 24, WIDTH);
    let declared = signs_declared(WIDTH, &way);
    let broken = |fault: &'static str| {
        ranks(&declared, |cx, role| {
            let (share, way) = (shares[role].clone(), way.clone());
            async move {
                let (count, words) = (usize::from(WIDTH), usize::from(WIDTH) * plane_words(N));
                let mask = |key: u8, purpose: Purpose| match fault {
                    "no mask" => Ok(vec![0; words]),
                    // One plane masks all.
                    "one mask" => Ok(cx.draw(key, purpose, 0, plane_words(N))?.repeat(count)),
                    _ => cx.draw(key, purpose, 0, words),
                };
                if role == 2 {
                    let mut lambda = mask(0, Purpose::Mask)?;
                    xor_assign(&mut lambda, &mask(2, Purpose::Mask)?);
                    deal_chunks(&cx, &lambda, N, &way)?;
                    cx.round().await;
                    return sign_of_masked(&cx, &[], N, &way).await;
                }
                let mut m = planes_of(share.own()?, WIDTH, 0);
                xor_assign(&mut m, &mask(2 * role as u8, Purpose::Mask)?);
                cx.send_planes(1 - role as u8, &m, count, N);
                cx.round().await;
                xor_assign(&mut m, &cx.take_planes(1 - role as u8, count, N)?);
                sign_of_masked(&cx, &m, N, &way).await
            }
        })
    };
    for (fault, lost) in [("none", 0), ("no mask", 8 * usize::from(WIDTH)), ("one mask", 8 * usize::from(WIDTH - 1))] {
        for (rank, bits) in broken(fault) {
            assert_eq!(rank + lost, bits, "{fault}");
        }
    }
}
