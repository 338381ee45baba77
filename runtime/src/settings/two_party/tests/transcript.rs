//! What a party receives, and the client's share of a result, for secrets that are the same in every run: all bits of it are
//! independent and uniform, so that the differences of many runs have full rank.

use ombra_ir::curve::{Cells, Curve};
use ombra_ir::settings::two_party::{Right, tilings};

use super::super::matrices::multiply_matrices;
use super::super::products::multiply;
use super::super::{bits, compare, divide, lookup};
use super::*;
use crate::settings::testing::{EXTRA, affine_rank};
use crate::settings::words::product::Plan;
use crate::wiped::Zeroizing;

/// Bits of a message that are looked at: its first and its last bytes.
const BYTES: usize = 12;

/// A few bytes of what either party received in every round, and of the client's result, in as many runs as are needed.
fn views<F>(op: &Op, sizes: &Sizes, kernel: impl Fn(Pair, usize) -> F) -> Vec<Vec<Vec<u8>>>
where
    F: Future<Output = ombra_ir::Result<Vec<u8>>> + 'static,
{
    let two = Two::new(10);
    let runs = 8 * BYTES + EXTRA;
    let mut views: Vec<Vec<Vec<u8>>> = Vec::new();
    for _ in 0..runs {
        let ([own, _], sent) = two.run_seen(op, sizes, &kernel);
        let messages = sent.into_iter().map(|sent| sent.bytes).chain([own]);
        for (i, bytes) in messages.enumerate() {
            let (first, last) = (&bytes[..bytes.len().min(BYTES)], &bytes[bytes.len().saturating_sub(BYTES)..]);
            for (part, bytes) in [first, last].into_iter().enumerate() {
                if views.len() <= 2 * i + part {
                    views.push(Vec::new());
                }
                views[2 * i + part].push(bytes.to_vec());
            }
        }
    }
    views
}

fn assert_uniform(what: &str, views: &[Vec<Vec<u8>>]) {
    for (i, messages) in views.iter().enumerate() {
        assert_eq!(affine_rank(messages), 8 * messages[0].len(), "{what}: message {i}");
    }
}

/// The bytes of elements of a ring of `bits`.
fn bytes_of(share: &Share, bits: u8) -> ombra_ir::Result<Vec<u8>> {
    let width = usize::from(bits / 8);
    Ok(share.own()?.iter().flat_map(|word| word.to_le_bytes()[..width].to_vec()).collect())
}

const N: usize = 8;
const RING: u8 = 24;

fn shares() -> [Rc<Share>; 2] {
    share(&[3, 1, 4, 1, 5, 9, 2, 6], &mut Words(77))
}

fn planes() -> [Rc<BitShare>; 2] {
    share_bits(&[true, false, true, true, false, false, true, false], &mut Words(78))
}

/// The byte of a plane of eight bits.
fn byte_of(x: &BitShare) -> ombra_ir::Result<Vec<u8>> {
    Ok(vec![x.own()?[0] as u8])
}

#[test]
fn bits_and_selections_are_uniform() {
    let (x, v) = (planes(), shares());
    let and = views(&Op::And, &sizes(N, 0), |pair, role| {
        let x = Rc::clone(&x[role]);
        async move { byte_of(&bits::and(&pair, &x, &x).await?) }
    });
    assert_uniform("and", &and);
    let select = views(&Op::Select, &sizes(N, RING), |pair, role| {
        let (x, v) = (Rc::clone(&x[role]), Rc::clone(&v[role]));
        async move { bytes_of(&bits::select(&pair, &x, v.own()?, RING).await?, RING) }
    });
    assert_uniform("select", &select);
    let convert = views(&Op::BitToRing { bits: RING }, &sizes(N, RING), |pair, role| {
        let x = Rc::clone(&x[role]);
        async move { bytes_of(&bits::bit_to_ring(&pair, &x, RING).await?, RING) }
    });
    // The lowest bit of a converted share is the bit's own share, moved by twice a random number.
    assert_uniform("bit_to_ring", &convert[..convert.len() - 2]);
}

#[test]
fn signs_and_quotients_are_uniform() {
    let x = shares();
    // Whole leaves: a smaller one's table is no whole number of bytes.
    let sign = views(&Op::Msb { width: 13, drop: 0 }, &sizes(N, RING), |pair, role| {
        let x = Rc::clone(&x[role]);
        async move { byte_of(&compare::msb(&pair, x.own()?, N, (13, 0)).await?) }
    });
    assert_uniform("msb", &sign);
    let quotient =
        views(&Op::Truncate { by: 4, bits: 32 }, &Sizes { from_bits: RING, ..sizes(N, 32) }, |pair, role| {
            let x = Rc::clone(&x[role]);
            // A share's own bits are what the operand's share makes them; what was received are the wraps above.
            async move { divide::divide(&pair, &x, N, (RING, 32), 4).await.map(|_| Vec::new()) }
        });
    assert_uniform("truncate", &quotient);
}

#[test]
fn products_and_lookups_are_uniform() {
    let x = shares();
    let product = views(&Op::Mul, &sizes(N, RING), |pair, role| {
        let x = Rc::clone(&x[role]);
        async move { bytes_of(&multiply(&pair, x.own()?, x.own()?, Right::Shared, RING).await?, RING) }
    });
    assert_uniform("mul", &product);
    let cells = Cells { window: 12, from: 8, cell: 7, scale: 16 };
    let op = Op::Lookup { curve: Curve::Gelu, window: 12, cell: 7, bits: 24, scale: 16 };
    let lookup = views(&op, &sizes(N, RING), |pair, role| {
        let x = Rc::clone(&x[role]);
        async move { bytes_of(&lookup::curve(&pair, &x, N, (Curve::Gelu, cells), RING).await?, RING) }
    });
    assert_uniform("lookup", &lookup);
}

/// Ciphertexts, answers and shares of one product of fixed matrices, in many runs: what the client decrypts is uniform.
#[test]
fn products_of_matrices_are_uniform() {
    const SIDE: usize = 32;
    let (x, two) = (share(&vec![3; SIDE * SIDE], &mut Words(79)), Two::new(10));
    let shape = [SIDE; 2];
    let n = SIDE as u64;
    let sizes = Sizes { elements: [n * n; 2], inner: n, matrix_rows: n, columns: n, ..sizes(SIDE * SIDE, RING) };
    assert!(!tilings([1, SIDE, SIDE, SIDE], Right::Shared, RING).is_empty());
    let run = || {
        let ([client, _], sent) = two.run_seen(&Op::MatMul { trans_b: false }, &sizes, |pair, role| {
            let (x, tiles) = (Rc::clone(&x[role]), Rc::clone(&two.tiles[role]));
            let product = Plan::new(&shape, &shape, false).unwrap();
            async move {
                let (x, own) = (x.own()?, Zeroizing::new(vec![0; SIDE * SIDE]));
                let share = multiply_matrices(&pair, &tiles, &product, (x, x), own, Right::Shared, RING).await?;
                Ok(bytes_of(&share, RING)?[..12].to_vec())
            }
        });
        let [first, answer] = [0, 1].map(|i| sent[i].bytes[..5].to_vec());
        [first, answer, client]
    };
    let runs: Vec<_> = (0..8 * 12 + EXTRA).map(|_| run()).collect();
    for (i, what) in ["ciphertexts", "answers", "shares"].into_iter().enumerate() {
        let views: Vec<Vec<u8>> = runs.iter().map(|run| run[i].clone()).collect();
        assert_eq!(affine_rank(&views), 8 * views[0].len(), "{what}");
    }
}

/// A comparison whose server leaves its random bits out is seen: what the client holds then is not random given its own
/// share.
#[test]
fn a_random_share_that_is_left_out_is_seen() {
    let x = shares();
    let two = Two::new(11);
    let run = |masked: bool| {
        let [client, server] = two.run(&Op::Msb { width: 5, drop: 0 }, &sizes(N, RING), |pair, role| {
            let x = Rc::clone(&x[role]);
            async move { byte_of(&compare::msb(&pair, x.own()?, N, (5, 0)).await?) }
        });
        // Of one leaf, the client's share without the server's random bits is its share and the server's together.
        vec![if masked { client[0] } else { client[0] ^ server[0] }]
    };
    let rank = |masked: bool| affine_rank(&(0..8 + EXTRA).map(|_| run(masked)).collect::<Vec<_>>());
    assert_eq!(rank(true), 8);
    assert_eq!(rank(false), 0);
}
