//! Every kernel between client and server in one thread, against plain arithmetic and the declared messages.

mod arithmetic;
mod bits;
mod transcript;

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use ombra_ir::op::Op;
use ombra_ir::settings::{RowLens, Setting, Sizes, Traffic};
use ombra_ir::ty::Sharing;
use ombra_lattice::params::TILE_SETS;

use super::Keys;
use super::keys::{client_key, server_key};
use super::matrices::TileKeys;
use super::pair::Pair;
use crate::exec::lockstep::{Sent, keys};
use crate::exec::port::Part;
use crate::exec::task::Task;
use crate::ot::Transfers;
use crate::ot::tests::set_up;
use crate::settings::cx::Cx;
use crate::settings::dealer::share::{BitShare, Share};
use crate::settings::rep3::share::ring_mask;
use crate::settings::testing::{self, Words, assert_declared};

/// A session of two parties; every op that it runs has a number of its own.
struct Two {
    transfers: [Rc<Transfers>; 2],
    tiles: [Rc<TileKeys>; 2],
    keys: [Rc<Keys>; 2],
    next: Cell<u32>,
}

impl Two {
    fn new(seed: u64) -> Two {
        let [client, server, _] = keys(seed);
        let (mut of_client, mut of_server) = (Vec::new(), Vec::new());
        for set in TILE_SETS {
            let mut sent = Vec::new();
            of_client.push(client_key(set, &mut sent).unwrap());
            of_server.push(server_key(set, &sent).unwrap());
        }
        let tiles = [TileKeys::Client(of_client), TileKeys::Server(of_server)].map(Rc::new);
        Two { transfers: set_up(seed, 8).map(Rc::new), tiles, keys: [client, server], next: Cell::new(0) }
    }

    /// Runs `kernel` with the messages of `op`, which it checks. `kernel` is given the pair and the role.
    fn run<T, F>(&self, op: &Op, sizes: &Sizes, kernel: impl Fn(Pair, usize) -> F) -> [T; 2]
    where
        F: Future<Output = ombra_ir::Result<T>> + 'static,
    {
        self.run_seen(op, sizes, kernel).0
    }

    /// The same, with the messages.
    fn run_seen<T, F>(&self, op: &Op, sizes: &Sizes, kernel: impl Fn(Pair, usize) -> F) -> ([T; 2], Vec<Sent>)
    where
        F: Future<Output = ombra_ir::Result<T>> + 'static,
    {
        let declared = traffic(op, sizes);
        let id = self.next.replace(self.next.get() + 1);
        let mut tasks: Vec<_> = (0..2u8)
            .map(|role| {
                let at = usize::from(role);
                let cx = Cx::new(Rc::clone(&self.keys[at]), role, 0, id, 3);
                let port = cx.port();
                let kernel = kernel(Pair::new(cx, Rc::clone(&self.transfers[at])), at);
                Task::new(port, role, 0, &declared, kernel).expect("messages have sizes")
            })
            .collect();
        let mut sent = Vec::new();
        for round in 0.. {
            let ended: Vec<_> =
                tasks.iter_mut().map(|task| task.poll().expect("the kernel runs as declared")).collect();
            if ended.iter().any(Option::is_some) {
                assert_declared(&sent, &declared);
                let ended: Vec<T> = ended.into_iter().flatten().collect();
                return (ended.try_into().ok().expect("both end in the same round"), sent);
            }
            let outgoing: Vec<_> = tasks
                .iter_mut()
                .enumerate()
                .map(|(role, task)| task.outgoing(1 - role).expect("as declared"))
                .collect();
            for (from, bytes) in (0u8..).zip(&outgoing).filter(|(_, bytes)| !bytes.is_empty()) {
                sent.push(Sent { round: Some(round), from, to: 1 - from, bytes: bytes.clone() });
            }
            let mut to_client = [Part::default(), Part::default(), Part::default()];
            let mut to_server = to_client.clone();
            let mut outgoing = outgoing.into_iter();
            to_server[0] = Part::from(outgoing.next().unwrap_or_default());
            to_client[1] = Part::from(outgoing.next().unwrap_or_default());
            tasks[0].deliver(to_client).expect("all was read");
            tasks[1].deliver(to_server).expect("all was read");
        }
        unreachable!("the loop ends with the tasks")
    }
}

/// Shares of `x` at both.
fn share(x: &[u64], words: &mut Words) -> [Rc<Share>; 2] {
    let x0 = words.take(x.len());
    let x1 = x.iter().zip(&x0).map(|(x, x0)| x.wrapping_sub(*x0)).collect();
    [Share::of(x0), Share::of(x1)].map(Rc::new)
}

/// Shares of bits; those past the end are random.
fn share_bits(x: &[bool], words: &mut Words) -> [Rc<BitShare>; 2] {
    let x0 = words.take(x.len().div_ceil(64));
    let mut x1 = words.take(x0.len());
    for (i, bit) in x.iter().enumerate() {
        let (word, place) = (i / 64, i % 64);
        x1[word] ^= ((x1[word] ^ x0[word]) >> place & 1 ^ u64::from(*bit)) << place;
    }
    [x0, x1].map(|plane| Rc::new(BitShare::of(x.len(), plane)))
}

/// The shared values.
fn open(shares: &[Share; 2], n: usize, bits: u8) -> Vec<u64> {
    let [client, server] = shares.each_ref().map(|share| share.own().expect("both hold a share"));
    assert_eq!((client.len(), server.len()), (n, n));
    client.iter().zip(server).map(|(x, y)| x.wrapping_add(*y) & ring_mask(bits)).collect()
}

fn open_bits(shares: &[BitShare; 2]) -> Vec<bool> {
    let [client, server] = shares.each_ref().map(|share| share.own().expect("both hold a share"));
    let get = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1 == 1;
    (0..shares[0].n).map(|i| get(client, i) ^ get(server, i)).collect()
}

/// What an op is declared to send.
fn traffic(op: &Op, sizes: &Sizes) -> Traffic {
    (Setting::TwoParty.protocol().traffic)(op, sizes)
}

/// Of `out` elements of a ring of `bits`, made of shared operands.
fn sizes(out: usize, bits: u8) -> Sizes<'static> {
    testing::sizes(out, bits, [Sharing::Shared; 2])
}
