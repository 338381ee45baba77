//! Every kernel among three parties in one thread, against plain arithmetic and the declared messages.

mod compare;
mod curve;
mod exp;
mod linear;
mod random;
mod rank;
mod rows;
mod transcript;
mod truncate;
mod two_terms;

use std::future::Future;
use std::rc::Rc;

use ombra_ir::op::Op;
use ombra_ir::settings::rep3::Carry;
use ombra_ir::settings::{Dealt, Msg, RowLens, Setting, Sizes, Traffic};
use ombra_ir::ty::Sharing;

use crate::exec::lockstep::{self, Sent};
use crate::settings::rep3::Cx;
use crate::settings::rep3::local::linear::Ring;
use crate::settings::rep3::share::{Bits, Component, Shared, Sum, ring_mask};
use crate::settings::testing::{self, Words, assert_declared, signed};

/// Sharings of `x` at every role.
fn share(x: &[u64], words: &mut Words) -> [Rc<Shared>; 3] {
    let (x0, x1) = (words.take(x.len()), words.take(x.len()));
    let x2: Vec<u64> = (0..x.len()).map(|i| x[i].wrapping_sub(x0[i]).wrapping_sub(x1[i])).collect();
    let part = |a: &[u64], b: &[u64]| Rc::new(Shared::new(a.to_vec(), b.to_vec()));
    [part(&x0, &x1), part(&x1, &x2), part(&x2, &x0)]
}

/// Terms whose sum is `x`: of all roles, or one of roles 0 and 1 and one of role 2.
fn terms(x: &[u64], third: bool, words: &mut Words) -> [Rc<Sum>; 3] {
    let x0 = words.take(x.len());
    let x1 = if third { words.take(x.len()) } else { vec![0; x.len()] };
    let x2 = (0..x.len()).map(|i| x[i].wrapping_sub(x0[i]).wrapping_sub(x1[i])).collect();
    let x1 = if third { x1 } else { x0.clone() };
    [x0, x1, x2].map(|term| Rc::new(Sum::new(Some(term))))
}

/// Sharings of the bits `x`.
fn share_bits(x: &[bool], words: &mut Words) -> [Rc<Bits>; 3] {
    let len = x.len().div_ceil(64);
    let (x0, x1) = (words.take(len), words.take(len));
    let mut x2: Vec<u64> = x0.iter().zip(&x1).map(|(a, b)| a ^ b).collect();
    x.iter().enumerate().for_each(|(i, bit)| x2[i / 64] ^= u64::from(*bit) << (i % 64));
    let part = |a: &[u64], b: &[u64]| Rc::new(Bits::new(x.len(), a.to_vec(), b.to_vec()));
    [part(&x0, &x1), part(&x1, &x2), part(&x2, &x0)]
}

/// [`sizes`] of what takes two terms and gives them.
fn sizes_of_two(out: usize, bits: u8) -> Sizes<'static> {
    testing::sizes(out, bits, [Sharing::Sum2, Sharing::Public])
}

/// The shared values, after a check that neighbours hold the same components.
fn open(shares: &[Shared; 3], n: usize, bits: u8) -> Vec<u64> {
    let words = |component: &Component| {
        let words: Vec<u64> = component.to_vec(n).iter().map(|w| w & ring_mask(bits)).collect();
        assert_eq!(words.len(), n);
        words
    };
    for role in 0..3 {
        assert!(words(&shares[role].b) == words(&shares[(role + 1) % 3].a), "component of roles {role} and after");
    }
    let parts = [0, 1, 2].map(|role| words(&shares[role].a));
    (0..n).map(|i| parts.iter().fold(0u64, |sum, part| sum.wrapping_add(part[i])) & ring_mask(bits)).collect()
}

/// The same of a value that is a sharing or a sum of two terms, of which roles 0 and 1 know the same one.
fn open_ring(parts: [Ring; 3], n: usize, bits: u8) -> Vec<u64> {
    match parts {
        [Ring::Shared(x), Ring::Shared(y), Ring::Shared(z)] => open(&[x, y, z], n, bits),
        [Ring::Two(x), Ring::Two(y), Ring::Two(z)] => {
            let terms = [x, y, z].map(|sum| sum.into_words().unwrap_or_else(|| vec![0; n]));
            let [x, y, z] = terms.map(|term| term.iter().map(|w| w & ring_mask(bits)).collect::<Vec<_>>());
            assert!(x == y, "the term of roles 0 and 1");
            x.iter().zip(&z).map(|(x, z)| x.wrapping_add(*z) & ring_mask(bits)).collect()
        }
        _ => panic!("a value in one form at all roles"),
    }
}

fn open_bits(shares: &[Bits; 3]) -> Vec<bool> {
    let n = shares[0].n;
    let get = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1 == 1;
    (0..n)
        .map(|i| {
            for role in 0..3 {
                assert!(get(&shares[role].b, i) == get(&shares[(role + 1) % 3].a, i), "bit {i} of role {role}");
            }
            shares.iter().fold(false, |x, share| x ^ get(&share.a, i))
        })
        .collect()
}

/// What an op is declared to send.
fn traffic(op: &Op, sizes: &Sizes) -> Traffic {
    (Setting::ThreeParty.protocol().traffic)(op, sizes)
}

fn sizes(out: usize, bits: u8, sum3: bool) -> Sizes<'static> {
    testing::sizes(out, bits, [if sum3 { Sharing::Sum3 } else { Sharing::Shared }, Sharing::Public])
}

/// What role 2 deals to roles 0 and 1 so many ticks before they begin, and what they send each other in every round.
fn dealt_and_exchanged(bytes: [u64; 2], lead: u32, exchanged: &[u64]) -> Traffic {
    let both = |(round, bytes): (u32, &u64)| [(0, 1), (1, 0)].map(|(from, to)| Msg { round, from, to, bytes: *bytes });
    let msgs = (0u32..).zip(exchanged).flat_map(both).filter(|m| m.bytes > 0).collect();
    Traffic { rounds: exchanged.len() as u32, msgs, dealt: Some(Dealt { bytes, lead }) }
}

/// What a selection of `words` elements of `bytes` sends: two factors.
fn selection_traffic(words: u64, bytes: u64) -> Traffic {
    dealt_and_exchanged([0, 2 * words * bytes], 1, &[words * bytes])
}

/// What `n` sign bits send whose carry is made so.
fn sign_traffic(n: u64, carry: &Carry) -> Traffic {
    let (plane, bits) = (n.div_ceil(8), carry.bits());
    let exchanged: Vec<u64> = bits.iter().map(|bits| bits.exchanged * plane).collect();
    let dealt = bits.iter().map(|bits| bits.dealt).sum::<u64>() + u64::from(carry.joins.is_empty());
    dealt_and_exchanged([0, dealt * plane], 1, &exchanged)
}

/// Runs `kernel` with the messages of `op`, which it checks. `kernel` is given the context and the role.
fn run<T, F>(seed: u64, rot: u8, op: &Op, sizes: &Sizes, kernel: impl Fn(Cx, usize) -> F) -> [T; 3]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    run_with_messages(seed, rot, op, sizes, kernel).0
}

fn run_with_messages<T, F>(
    seed: u64,
    rot: u8,
    op: &Op,
    sizes: &Sizes,
    kernel: impl Fn(Cx, usize) -> F,
) -> ([T; 3], Vec<Sent>)
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let declared = traffic(op, sizes);
    let (results, sent) = lockstep::run(seed, rot, &declared, |cx| {
        let role = usize::from(cx.role());
        kernel(cx, role)
    })
    .expect("the kernel runs as declared");
    assert_declared(&sent, &declared);
    (results, sent)
}
