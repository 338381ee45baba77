//! Products, divisions, exponentials and lookups: against plain arithmetic, and every received bit under a mask.

use ombra_ir::op::{EXP_RING, EXP_SCALE, EXP_WINDOW, EXP_WINDOWS, exp_lowest};
use ombra_ir::settings::Msg;

use super::rank::assert_full_rank;
use super::*;
use crate::settings::dealer::divide::divide;
use crate::settings::dealer::embed::{Sums, embed};
use crate::settings::dealer::exp::exp_digits;
use crate::settings::dealer::local::cut_masked;
use crate::settings::dealer::products::{Bilinear, Factor, Operand, hold, mask, product, times_weight};
use crate::settings::dealer::reveal;
use crate::settings::rep3::embed::Table;

/// Of an element-wise product of `n` elements.
fn product_sizes(n: usize, bits: u8, of_server: [bool; 2]) -> Sizes<'static> {
    Sizes { forms: [Sharing::Shared; 2], elements: [n as u64; 2], of_server, ..sizes(n, bits) }
}

/// Runs a kernel with the declared messages.
fn held<T, F>(seed: u64, declared: &Traffic, kernel: impl Fn(Cx, usize) -> F) -> [T; 3]
where
    F: Future<Output = ombra_ir::Result<T>> + 'static,
{
    let (results, sent) = run_declared(lockstep::keys(seed), declared, kernel);
    assert!(sent.iter().all(|m| m.to != 2 && (m.from != 2 || m.to == 1)), "the dealer sends to the server alone");
    results
}

/// The product of two vectors element by element.
pub(super) fn times(x: &[u64], y: &[u64]) -> ombra_ir::Result<Vec<u64>> {
    Ok(x.iter().zip(y).map(|(x, y)| x.wrapping_mul(*y)).collect())
}

#[test]
fn products_are_exact() {
    let mut words = Words(1);
    for bits in [32, 48, 64] {
        let (x, y) = (words.take(100), words.take(100));
        let (xs, ys) = (share(&x, &mut words), share(&y, &mut words));
        let shares = held(7, &traffic(&Op::Mul, &product_sizes(100, bits, [false; 2])), |cx, role| {
            let (x, y) = (Rc::clone(&xs[role]), Rc::clone(&ys[role]));
            async move {
                product(
                    &cx,
                    &Bilinear { apply: &times, operands: [100, 100], result: 100 },
                    Operand::Share(&x),
                    Operand::Share(&y),
                    bits,
                )
                .await
            }
        });
        let expected: Vec<_> = x.iter().zip(&y).map(|(x, y)| x.wrapping_mul(*y) & ring_mask(bits)).collect();
        assert_eq!(open(&shares, 100, bits), expected);
    }
}

#[test]
fn products_with_weights_are_exact() {
    let mut words = Words(2);
    let (x, w1, w2) = (words.take(50), words.take(50), words.take(50));
    let xs = share(&x, &mut words);
    let sizes = product_sizes(50, 64, [false, true]);
    let (first, second) = (w1.clone(), w2.clone());
    let shares = held(8, &traffic(&Op::Mul, &sizes), |cx, role| {
        let (x, w1, w2) = (Rc::clone(&xs[role]), first.clone(), second.clone());
        async move {
            let by = |w: Vec<u64>| move |x: &[u64]| times(x, &w);
            let whole = by(w1.iter().zip(&w2).map(|(x, y)| x.wrapping_add(*y)).collect());
            let (first, second) = (by(w1), by(w2));
            let factor = Factor { first: &first, second: &second, whole: &whole };
            times_weight(&cx, Operand::Share(&x), &factor, (50, 50), 64).await
        }
    });
    let expected: Vec<_> = (0..50).map(|i| x[i].wrapping_mul(w1[i].wrapping_add(w2[i]))).collect();
    assert_eq!(open(&shares, 50, 64), expected);
}

/// `x·y`, `x·x` and `x·w` of values that are masked once, of which the last takes what masks leave the server.
async fn products_of_masked(
    cx: Cx,
    [x, y]: [Rc<Share>; 2],
    w: [Vec<u64>; 2],
    bits: u8,
) -> ombra_ir::Result<[Share; 3]> {
    let n = w[0].len();
    let f = Bilinear { apply: &times, operands: [n, n], result: n };
    let x = mask(&cx.at_level(1), &x, n, bits).await?;
    let y = mask(&cx.at_level(2), &y, n, bits).await?;
    let product_xy = product(&cx.at_level(3), &f, Operand::Ready(&x), Operand::Ready(&y), bits).await?;
    let square = product(&cx.at_level(4), &f, Operand::Ready(&x), Operand::Ready(&x), bits).await?;
    let by = |w: Vec<u64>| move |x: &[u64]| times(x, &w);
    let whole = by(w[0].iter().zip(&w[1]).map(|(x, y)| x.wrapping_add(*y)).collect());
    let [first, second] = w.map(by);
    let factor = Factor { first: &first, second: &second, whole: &whole };
    let weighted = times_weight(&cx.at_level(5), Operand::Ready(&x), &factor, (n, n), bits).await?;
    Ok([product_xy, square, weighted])
}

/// What two masks and three products of what is masked send.
fn traffic_of_masked(n: usize, bits: u8) -> Traffic {
    let masks = [Op::Mask, Op::Mask].map(|op| traffic(&op, &sizes(n, bits)));
    let of = |forms, of_server| traffic(&Op::Mul, &Sizes { forms, ..product_sizes(n, bits, of_server) });
    let both = [Sharing::Masked; 2];
    let products = [of(both, [false; 2]), of(both, [false; 2]), of([Sharing::Masked, Sharing::Shared], [false, true])];
    let mut all = Traffic::default();
    for part in masks.into_iter().chain(products) {
        all.msgs.extend(part.msgs.iter().map(|m| Msg { round: m.round + all.rounds, ..*m }));
        all.rounds += part.rounds;
    }
    all
}

#[test]
fn what_is_masked_once_is_multiplied_often() {
    let mut words = Words(11);
    for bits in [24, 40, 64] {
        let ([x, y], w) = ([words.take(60), words.take(60)], [words.take(60), words.take(60)]);
        let shares = [share(&x, &mut words), share(&y, &mut words)];
        let declared = traffic_of_masked(60, bits);
        let online: u64 = declared.msgs.iter().filter(|m| m.from < 2).map(|m| m.bytes).sum();
        assert_eq!(online, 4 * 60 * u64::from(bits / 8), "each value is sent once each way");
        let results = held(12, &declared, |cx, role| {
            products_of_masked(cx, shares.each_ref().map(|x| Rc::clone(&x[role])), w.clone(), bits)
        });
        let [client, server, dealer] = results;
        let whole: Vec<_> = w[0].iter().zip(&w[1]).map(|(x, y)| x.wrapping_add(*y)).collect();
        let expected = [(&x, &y), (&x, &x), (&x, &whole)];
        for (parts, (x, y)) in client.into_iter().zip(server).zip(dealer).zip(expected) {
            let ((client, server), dealer) = parts;
            let expected: Vec<_> = x.iter().zip(y).map(|(x, y)| x.wrapping_mul(*y) & ring_mask(bits)).collect();
            assert_eq!(open(&[client, server, dealer], 60, bits), expected);
        }
    }
}

#[test]
fn what_is_held_is_multiplied_with_weights() {
    let mut words = Words(13);
    let (x, w) = (words.take(40), [words.take(40), words.take(40)]);
    let shares = share(&x, &mut words);
    let mut declared = traffic(&Op::Hold, &sizes(40, 48));
    let forms = [Sharing::Held, Sharing::Shared];
    let product = traffic(&Op::Mul, &Sizes { forms, ..product_sizes(40, 48, [false, true]) });
    declared.msgs.extend(product.msgs.iter().map(|m| Msg { round: m.round + 1, ..*m }));
    declared.rounds += product.rounds;
    let results = held(14, &declared, |cx, role| {
        let (x, w) = (Rc::clone(&shares[role]), w.clone());
        async move {
            let x = hold(&cx.at_level(1), &x, 40, 48).await?;
            let by = |w: Vec<u64>| move |x: &[u64]| times(x, &w);
            let whole = by(w[0].iter().zip(&w[1]).map(|(x, y)| x.wrapping_add(*y)).collect());
            let [first, second] = w.map(by);
            let factor = Factor { first: &first, second: &second, whole: &whole };
            times_weight(&cx.at_level(2), Operand::Ready(&x), &factor, (40, 40), 48).await
        }
    });
    let product = |i: usize| x[i].wrapping_mul(w[0][i].wrapping_add(w[1][i])) & ring_mask(48);
    assert_eq!(open(&results, 40, 48), (0..40).map(product).collect::<Vec<_>>());
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
        let op = Op::Truncate { by, bits: 8 };
        let result = held(9, &traffic(&op, &sizes(n, 8)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { divide(&cx, &x, n, (8, 8), by).await }
        });
        let mut more = vec![0u32; 127];
        for (x, y) in values.iter().zip(open(&result, n, 8)) {
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
        let declared = traffic(&Op::Truncate { by, bits: to }, &Sizes { from_bits: from, ..sizes(400, to) });
        let result = held(10, &declared, |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { divide(&cx, &x, 400, (from, to), by).await }
        });
        for (x, y) in x.iter().zip(open(&result, 400, to)) {
            let over = signed(y.wrapping_sub((x >> by) as u64), to);
            assert!(over == 0 || over == 1 && by > 0, "{x} of {from} bits by 2^{by} in {to}: {over}");
        }
    }
}

/// What is masked is cut where it is: by less than three units too small, and 3/2 on average.
#[test]
fn masked_values_are_cut() {
    let mut words = Words(6);
    for (bits, by) in [(24u8, 8u8), (64, 16), (32, 24)] {
        let n = 20_000;
        let x: Vec<u64> = words.take(n).iter().map(|w| (w & 0xffff).wrapping_sub(0x8000)).collect();
        let shares = share(&x, &mut words);
        let masked = held(9, &traffic(&Op::Mask, &sizes(n, bits)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { mask(&cx, &x, n, bits).await.and_then(|masked| cut_masked(&masked, bits, by)) }
        });
        let cut = [0u8, 1, 2].map(|role| masked[usize::from(role)].share(role));
        let unit = f64::from(by).exp2();
        let off = x.iter().zip(open(&cut, n, bits - by)).map(|(x, y)| {
            let off = signed(y, bits - by) as f64 - *x as i64 as f64 / unit;
            assert!(off > -3.0 && off <= 0.0, "{} of {bits} bits cut by {by}: off by {off}", *x as i64);
            off
        });
        let off: Vec<f64> = off.collect();
        let mean = off.iter().sum::<f64>() / n as f64;
        let variance = off.iter().map(|off| (off - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean + 1.5).abs() < 0.02 && (variance - 0.25).abs() < 0.01, "mean {mean}, variance {variance}");
    }
}

#[test]
fn exponentials_are_right() {
    let windows = EXP_WINDOWS.map(|window| (window, false)).chain([(EXP_WINDOW, true)]);
    for ((window, tail), (bits, scale)) in
        windows.flat_map(|of| [(32, 16), (64, 20), (24, 12), (48, 29)].map(|x| (of, x)))
    {
        let (n, unit) = (4000, f64::from(scale).exp2());
        let real = |i: i64| 0.5 + (exp_lowest(window) - 0.5) * (i as f64 / (n - 1) as f64).powi(2);
        let x: Vec<i64> = (0..n as i64).map(|i| (real(i) * unit) as i64).collect();
        let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut Words(4));
        let op = Op::ExpDigits { scale, window, tail };
        if window + scale > bits {
            continue;
        }
        let result = held(11, &traffic(&op, &sizes(n, bits)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { exp_digits(&cx, Operand::Share(&x), n, scale, (window, tail)).await }
        });
        let result_unit = f64::from(EXP_SCALE).exp2();
        for (x, y) in x.iter().zip(open(&result, n, EXP_RING)) {
            let exact = (*x as f64 / unit).exp();
            let found = signed(y, EXP_RING) as f64 / result_unit;
            let off = (found - exact).abs();
            assert!(off < 4e-6, "e^{} at {scale}, window {window}: {found}", *x as f64 / unit);
            assert!(!tail || off < 1.3e-4 * exact + 4.0 / result_unit, "{found} for {exact}");
        }
    }
}

/// Every cell of the mask and of the value: cells may be the value's own or the next one.
#[test]
fn exponentials_are_right_under_every_mask() {
    for window in [5u8, 9] {
        let x: Vec<i64> = (exp_lowest(window) as i64..=0).flat_map(|x| std::iter::repeat_n(2 * x, 256)).collect();
        let n = x.len();
        let shares = share(&x.iter().map(|x| *x as u64).collect::<Vec<_>>(), &mut Words(4));
        let op = Op::ExpDigits { scale: 1, window, tail: false };
        let result = held(12, &traffic(&op, &sizes(n, 16)), |cx, role| {
            let x = Rc::clone(&shares[role]);
            async move { exp_digits(&cx, Operand::Share(&x), n, 1, (window, false)).await }
        });
        for (x, y) in x.iter().zip(open(&result, n, EXP_RING)) {
            let off = signed(y, EXP_RING) as f64 / f64::from(EXP_SCALE).exp2() - (*x as f64 / 2.0).exp();
            assert!(off.abs() < 4e-6, "e^{} in a window of {window}: off by {off:.2e}", *x as f64 / 2.0);
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
        let shares = held(seed, &traffic(&Op::Embed, &sizes), |cx, role| {
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
        assert_eq!(open(&shares, tokens * columns, 64), expected);
    }
}

#[test]
fn the_client_alone_learns_what_is_revealed() {
    let x: Vec<u64> = Words(6).take(40);
    let shares = share(&x, &mut Words(7));
    let opened = held(12, &traffic(&Op::Reveal { slot: 0 }, &sizes(40, 48)), |cx, role| {
        let x = Rc::clone(&shares[role]);
        async move { reveal(&cx, &x, 40, 48).await }
    });
    let [client, server, dealer] = opened;
    assert!(server.is_none() && dealer.is_none());
    let masked = |x: &[u64]| x.iter().map(|x| x & ring_mask(48)).collect::<Vec<_>>();
    assert_eq!(masked(&client.unwrap()), masked(&x));
}

/// Elements of a run: planes of bits fill whole bytes, so that all bits that are sent are random.
const N: usize = 8;

/// Every bit that client and server receive is under a mask of its own.
#[test]
fn what_is_received_is_masked() {
    let mut words = Words(8);
    let (x, y, w) = (share(&words.take(N), &mut words), share(&words.take(N), &mut words), words.take(N));
    for bits in [24, 64] {
        assert_full_rank("product", &traffic(&Op::Mul, &product_sizes(N, bits, [false; 2])), |cx, role| {
            let (x, y) = (Rc::clone(&x[role]), Rc::clone(&y[role]));
            async move {
                product(
                    &cx,
                    &Bilinear { apply: &times, operands: [N, N], result: N },
                    Operand::Share(&x),
                    Operand::Share(&y),
                    bits,
                )
                .await
            }
        });
        let sizes = product_sizes(N, bits, [false, true]);
        assert_full_rank("product with a weight", &traffic(&Op::Mul, &sizes), |cx, role| {
            let (x, w) = (Rc::clone(&x[role]), w.clone());
            async move {
                let by = |x: &[u64]| times(x, &w);
                times_weight(&cx, Operand::Share(&x), &Factor { first: &by, second: &by, whole: &by }, (N, N), bits)
                    .await
            }
        });
        let parts = [words.take(N), words.take(N)];
        assert_full_rank("products of masked values", &traffic_of_masked(N, bits), |cx, role| {
            products_of_masked(cx, [&x, &y].map(|x| Rc::clone(&x[role])), parts.clone(), bits)
        });
        assert_full_rank("held", &traffic(&Op::Hold, &super::sizes(N, bits)), |cx, role| {
            let x = Rc::clone(&x[role]);
            async move { hold(&cx, &x, N, bits).await.map(drop) }
        });
        assert_full_rank("division", &traffic(&Op::Truncate { by: 12, bits }, &sizes), |cx, role| {
            let x = Rc::clone(&x[role]);
            async move { divide(&cx, &x, N, (bits, bits), 12).await }
        });
    }
    for (scale, window) in [(10, 5), (16, 6), (16, 10)] {
        let op = Op::ExpDigits { scale, window, tail: false };
        assert_full_rank("exponential", &traffic(&op, &sizes(N, 64)), |cx, role| {
            let x = Rc::clone(&x[role]);
            async move { exp_digits(&cx, Operand::Share(&x), N, scale, (window, false)).await }
        });
    }
    let table = Table { rows: 16, columns: 1, tokens: N, bits: 64 };
    let sizes = Sizes { table_rows: 16, tokens: N as u64, ..sizes(N, 64) };
    assert_full_rank("lookup", &traffic(&Op::Embed, &sizes), |cx, role| async move {
        let sum = |vectors: &[u64]| Ok(vectors.chunks(16).map(|v| v.iter().sum()).collect());
        let ids = [3i64, 0, 15, 3, 7, 7, 1, 2];
        let sums = Sums { first: &sum, second: &sum, whole: &sum };
        embed(&cx, (role == 0).then_some(&ids[..]), &sums, table).await
    });
}
