//! Every kernel among client, server and dealer in one thread, against plain arithmetic and the declared messages.

mod arithmetic;
mod compare;
mod curve;
mod rank;
mod rows;
mod transcript;

use std::future::Future;
use std::rc::Rc;

use ombra_ir::op::Op;
use ombra_ir::settings::{RowLens, Setting, Sizes, Traffic};
use ombra_ir::ty::Sharing;

use crate::exec::lockstep::{self, Sent};
use crate::settings::dealer::share::{BitShare, Share};
use crate::settings::dealer::{Cx, Keys};
use crate::settings::rep3::share::ring_mask;
use crate::settings::testing::{self, Words, assert_declared, signed};

/// Shares of `x` at every role; nothing at the dealer.
fn share(x: &[u64], words: &mut Words) -> [Rc<Share>; 3] {
    let x0 = words.take(x.len());
    let x1 = x.iter().zip(&x0).map(|(x, x0)| x.wrapping_sub(*x0)).collect();
    [Share::of(x0), Share::of(x1), Share::nothing()].map(Rc::new)
}

/// Shares of the bits `x`; bits past the end are random.
fn share_bits(x: &[bool], words: &mut Words) -> [Rc<BitShare>; 3] {
    let x0 = words.take(x.len().div_ceil(64));
    let mut x1 = words.take(x0.len());
    for (i, bit) in x.iter().enumerate() {
        let (word, place) = (i / 64, i % 64);
        x1[word] ^= ((x1[word] ^ x0[word]) >> place & 1 ^ u64::from(*bit)) << place;
    }
    let n = x.len();
    [BitShare::of(n, x0), BitShare::of(n, x1), BitShare::nothing(n)].map(Rc::new)
}

/// The shared values, after a check that the dealer has none.
fn open(shares: &[Share; 3], n: usize, bits: u8) -> Vec<u64> {
    let [client, server, dealer] = shares.each_ref().map(Share::words);
    assert!(dealer.is_none(), "the dealer holds no share");
    let (client, server) = client.zip(server).expect("client and server hold a share");
    assert_eq!((client.len(), server.len()), (n, n));
    client.iter().zip(server).map(|(x, y)| x.wrapping_add(*y) & ring_mask(bits)).collect()
}

fn open_bits(shares: &[BitShare; 3]) -> Vec<bool> {
    let n = shares[0].n;
    let [client, server, dealer] = shares.each_ref().map(BitShare::plane);
    assert!(dealer.is_none() && shares.iter().all(|share| share.n == n));
    let (client, server) = client.zip(server).expect("client and server hold a share");
    let get = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1 == 1;
    (0..n).map(|i| get(client, i) ^ get(server, i)).collect()
}

/// What an op is declared to send.
fn traffic(op: &Op, sizes: &Sizes) -> Traffic {
    (Setting::Dealer.protocol().traffic)(op, sizes)
}

/// Of `out` elements of a ring of `bits`, made of shared operands.
fn sizes(out: usize, bits: u8) -> Sizes<'static> {
    testing::sizes(out, bits, [Sharing::Shared, Sharing::Public])
}

/// Runs `kernel` with the messages of `op`, which it checks. `kernel` is given the context and the role.
fn run<T, F>(seed: u64, op: &Op, sizes: &Sizes, kernel: impl Fn(Cx, usize) -> F) -> [T; 3]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    run_declared(lockstep::keys(seed), &traffic(op, sizes), kernel).0
}

/// Runs `kernel` with the given keys and messages, which it checks.
fn run_declared<T, F>(keys: [Rc<Keys>; 3], declared: &Traffic, kernel: impl Fn(Cx, usize) -> F) -> ([T; 3], Vec<Sent>)
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let run = lockstep::run_with_keys(keys, 0, declared, |cx| {
        let role = usize::from(cx.role());
        kernel(cx, role)
    });
    let (results, sent) = run.expect("the kernel runs as declared");
    assert_declared(&sent, declared);
    (results, sent)
}
