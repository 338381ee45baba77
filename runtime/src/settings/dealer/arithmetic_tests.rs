//! Products, divisions, exponentials and lookups among three parties in one thread, against plain arithmetic and the
//! declared messages.

use std::future::Future;
use std::rc::Rc;

use ombra_ir::op::{EXP_RING, EXP_SCALE, Op};
use ombra_ir::settings::{RowLens, Setting, Sizes, Traffic};
use ombra_ir::ty::Sharing;

use super::divide::divide;
use super::embed::{Sums, Table, embed};
use super::lookup::exp_digits;
use super::products::{Bilinear, Factor, product, times_weight};
use super::share::Share;
use super::{Cx, reveal};
use crate::exec::lockstep;
use crate::settings::rep3::share::ring_mask;

/// Words that look random.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn take(&mut self, n: usize) -> Vec<u64> {
        (0..n).map(|_| self.next()).collect()
    }
}

fn share(x: &[u64], words: &mut Words) -> [Rc<Share>; 3] {
    let x0 = words.take(x.len());
    let x1 = x.iter().zip(&x0).map(|(x, y)| x.wrapping_sub(*y)).collect();
    [Rc::new(Share::of(x0)), Rc::new(Share::of(x1)), Rc::new(Share::nothing())]
}

fn open(shares: &[Share; 3], bits: u8) -> Vec<u64> {
    assert!(shares[2].words().is_none(), "the dealer has a share");
    let [x, y] = [0, 1].map(|role| shares[role].own().unwrap());
    x.iter().zip(y).map(|(x, y)| x.wrapping_add(*y) & ring_mask(bits)).collect()
}

fn signed(x: u64, bits: u8) -> i64 {
    (x << (64 - bits)) as i64 >> (64 - bits)
}

fn sizes(out: usize, bits: u8) -> Sizes<'static> {
    let rows = RowLens::Equal { count: 0, len: 0 };
    let forms = [Sharing::Shared; 2];
    let (elements, of_server) = ([out as u64; 2], [false; 2]);
    Sizes { out: out as u64, bits, from_bits: bits, forms, elements, of_server, rows, table_rows: 0, tokens: 0 }
}

fn declared(op: &Op, sizes: &Sizes) -> Traffic {
    (Setting::Dealer.protocol().traffic)(op, sizes)
}

/// Runs a kernel by role, held to what is declared.
fn run<T, F>(seed: u64, traffic: &Traffic, kernel: impl Fn(Cx, usize) -> F) -> [T; 3]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let run = lockstep::run(seed, 0, traffic, |cx| {
        let role = usize::from(cx.role());
        kernel(cx, role)
    });
    let (results, sent) = run.unwrap();
    assert!(sent.iter().all(|m| m.to != 2 && (m.from != 2 || m.to == 1)), "the dealer sends to the server alone");
    results
}

#[test]
fn products_are_exact() {
    let mut words = Words(1);
    for bits in [32, 48, 64] {
        let (x, y) = (words.take(100), words.take(100));
        let (xs, ys) = (share(&x, &mut words), share(&y, &mut words));
        let shares = run(7, &declared(&Op::Mul, &sizes(100, bits)), |cx, role| {
            let (x, y) = (Rc::clone(&xs[role]), Rc::clone(&ys[role]));
            async move {
                let apply = |x: &[u64], y: &[u64]| Ok(x.iter().zip(y).map(|(x, y)| x.wrapping_mul(*y)).collect());
                product(&cx, &Bilinear { apply: &apply, operands: [100, 100], result: 100 }, &x, &y, bits).await
            }
        });
        let expected: Vec<_> = x.iter().zip(&y).map(|(x, y)| x.wrapping_mul(*y) & ring_mask(bits)).collect();
        assert_eq!(open(&shares, bits), expected);
    }
}

#[test]
fn products_with_weights_are_exact() {
    let mut words = Words(2);
    let (x, w1, w2) = (words.take(50), words.take(50), words.take(50));
    let xs = share(&x, &mut words);
    let sizes = Sizes { of_server: [false, true], ..sizes(50, 64) };
    let (first, second) = (w1.clone(), w2.clone());
    let shares = run(8, &declared(&Op::Mul, &sizes), |cx, role| {
        let (x, w1, w2) = (Rc::clone(&xs[role]), first.clone(), second.clone());
        async move {
            let times = |w: Vec<u64>| move |x: &[u64]| Ok(x.iter().zip(&w).map(|(x, w)| x.wrapping_mul(*w)).collect());
            let whole = times(w1.iter().zip(&w2).map(|(x, y)| x.wrapping_add(*y)).collect());
            let (first, second) = (times(w1), times(w2));
            let factor = Factor { first: &first, second: &second, whole: &whole };
            times_weight(&cx, &x, &factor, (50, 50), 64).await
        }
    });
    let expected: Vec<_> = (0..50).map(|i| x[i].wrapping_mul(w1[i].wrapping_add(w2[i]))).collect();
    assert_eq!(open(&shares, 64), expected);
}

/// All values and all first shares of a ring of 8 bits; then near the ends of large rings, and larger rings.
#[test]
fn quotients_are_floors_or_one_more() {
    for by in [1, 3, 6] {
        let values: Vec<i64> = (-63..64).flat_map(|x| std::iter::repeat_n(x, 256)).collect();
        let first: Vec<u64> = (0..values.len()).map(|i| i as u64 % 256).collect();
        let second = values.iter().zip(&first).map(|(x, y)| (*x as u64).wrapping_sub(*y)).collect();
        let shares = [Rc::new(Share::of(first)), Rc::new(Share::of(second)), Rc::new(Share::nothing())];
        let n = values.len();
        let op = Op::Truncate { by };
        let result = run(9, &declared(&op, &sizes(n, 8)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { divide(&cx, &x, n, (8, 8), by).await }
        });
        let mut more = vec![0u32; 127];
        for (x, y) in values.iter().zip(open(&result, 8)) {
            let over = signed(y, 8) - (x >> by);
            assert!(over == 0 || over == 1, "{x} by 2^{by}: {}", signed(y, 8));
            more[(x + 63) as usize] += over as u32;
        }
        // Over all shares, one more as often as the remainder says.
        for (x, more) in (-63i64..64).zip(more) {
            assert_eq!(more, (x & ((1 << by) - 1)) as u32 * (256 >> by), "{x} by 2^{by}");
        }
    }
    let mut words = Words(3);
    for (from, to, by) in [(64, 64, 16), (64, 64, 1), (48, 48, 20), (40, 64, 0), (8, 64, 0), (64, 32, 30), (32, 40, 4)]
    {
        let most = (1i64 << (from - 2)) - 1;
        let x: Vec<i64> = (0..400)
            .map(|i| match i {
                0 => most,
                1 => -most,
                2 => 0,
                _ => signed(words.next(), from) >> (2 + words.next() % 20).min(u64::from(from) - 1),
            })
            .collect();
        let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut words);
        let op = if by == 0 { Op::Extend { bits: to } } else { Op::Truncate { by } };
        let sizes = Sizes { bits: to, from_bits: from, ..sizes(400, to) };
        let traffic = if from == to || by == 0 { declared(&op, &sizes) } else { Traffic::default() };
        let traffic = if (from, to) == (32, 40) { messages(400, 2) } else { traffic };
        let result = run(10, &traffic, |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { divide(&cx, &x, 400, (from, to), by).await }
        });
        for (x, y) in x.iter().zip(open(&result, to)) {
            let over = signed(y.wrapping_sub((x >> by) as u64), to);
            assert!(over == 0 || over == 1 && by > 0, "{x} of {from} bits by 2^{by} in {to}: {over}");
        }
    }
}

/// What a division of `n` elements sends that deals `bytes` for each.
fn messages(n: u64, bytes: u64) -> Traffic {
    let msg = |from, to, bytes| ombra_ir::settings::Msg { round: 0, from, to, bytes };
    Traffic { rounds: 1, msgs: vec![msg(0, 1, n.div_ceil(8)), msg(1, 0, n.div_ceil(8)), msg(2, 1, n * bytes)] }
}

#[test]
fn exponentials_are_right() {
    for (bits, scale) in [(32, 16), (64, 20), (24, 12), (48, 29)] {
        let n = 4000;
        let x: Vec<i64> =
            (0..n).map(|i| ((0.5 - 32.5 * i as f64 / n as f64) * f64::from(scale).exp2()) as i64).collect();
        let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut Words(4));
        let result = run(11, &declared(&Op::ExpDigits { scale, tail: false }, &sizes(n, bits)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { exp_digits(&cx, &x, n, scale).await }
        });
        let unit = f64::from(EXP_SCALE).exp2();
        for (x, y) in x.iter().zip(open(&result, EXP_RING)) {
            let exact = (*x as f64 / f64::from(scale).exp2()).exp();
            let found = signed(y, EXP_RING) as f64 / unit;
            assert!((found - exact).abs() < 4e-6, "e^{} at {scale}: {found}", *x as f64 / f64::from(scale).exp2());
            assert!((found - exact).abs() < 1.3e-4 * exact + 4.0 / unit, "{found} for {exact}");
        }
    }
}

#[test]
fn lookups_give_rows() {
    let (rows, columns, ids) = (21, 3, vec![0i64, 20, 7, -1, 7]);
    let mut words = Words(5);
    let (w1, w2) = (words.take(rows * columns), words.take(rows * columns));
    let tokens = ids.len();
    let sizes = Sizes { table_rows: rows as u64, tokens: tokens as u64, ..sizes(tokens * columns, 64) };
    let table = Table { rows, columns, tokens, bits: 64 };
    for seed in 0..8 {
        let shares = run(seed, &declared(&Op::Embed, &sizes), |cx, role| {
            let (w1, w2, ids) = (w1.clone(), w2.clone(), ids.clone());
            async move {
                let times = |w: Vec<u64>| {
                    move |vectors: &[u64]| {
                        let row = |v: &[u64], c: usize| {
                            (0..rows).fold(0u64, |sum, r| sum.wrapping_add(v[r].wrapping_mul(w[r * columns + c])))
                        };
                        Ok(vectors
                            .chunks(rows)
                            .flat_map(|v| (0..columns).map(move |c| row(v, c)).collect::<Vec<_>>())
                            .collect())
                    }
                };
                let whole = times(w1.iter().zip(&w2).map(|(x, y)| x.wrapping_add(*y)).collect());
                let (first, second) = (times(w1), times(w2));
                let sums = Sums { first: &first, second: &second, whole: &whole };
                embed(&cx, (role == 0).then_some(ids.as_slice()), &sums, table).await
            }
        });
        let row = |id: i64| if id < 0 { (rows as i64 + id) as usize } else { id as usize };
        let element = |at: usize| w1[at].wrapping_add(w2[at]);
        let expected: Vec<_> =
            ids.iter().flat_map(|&id| (0..columns).map(move |c| element(row(id) * columns + c))).collect();
        assert_eq!(open(&shares, 64), expected);
    }
}

#[test]
fn the_client_alone_learns_what_is_revealed() {
    let x: Vec<u64> = Words(6).take(40);
    let shares = share(&x, &mut Words(7));
    let opened = run(12, &declared(&Op::Reveal { slot: 0 }, &sizes(40, 48)), |cx, role| {
        let x = Rc::clone(&shares[role]);
        async move { reveal(&cx, &x, 40, 48).await }
    });
    let [client, server, dealer] = opened;
    assert!(server.is_none() && dealer.is_none());
    let masked = |x: &[u64]| x.iter().map(|x| x & ring_mask(48)).collect::<Vec<_>>();
    assert_eq!(masked(&client.unwrap()), masked(&x));
}
