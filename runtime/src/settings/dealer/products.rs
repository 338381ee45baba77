//! Products of secrets: of two shared values, and of a shared value with a private weight.
//!
//! Source: Beaver triples from a dealer; the server knows its weights, so one mask suffices for a product with them.
//! Parties and adversary: client, server and dealer, one semi-honest corruption.
//! Rounds: 1. Bits: `ℓ` each way for every element of both operands, or `ℓ` from the client for every element of the one
//! that is multiplied with a weight; `ℓ` dealt to the server for every element of the result. Error: none.
//!
//! ```text
//!   m = x + λ_x, w = y + λ_y known to client and server, λ^0 = F(k_0), λ^1 = F(k_2); c = F(k_0); f is bilinear
//!     client: f(m, w − λ_y^0) − f(λ_x^0, w) + c
//!     server: −f(m, λ_y^1) − f(λ_x^1, w) + dealt,  dealt = f(λ_x, λ_y) − c
//!   W = w1 + w2: w1 at client and server, w2 at server and dealer;  λ = F(k_0)
//!     the client sends x^0 + λ, so that the server has h = x + λ
//!     client: c − f(λ, w1);  server: f(h, W) + dealt,  dealt = −f(λ, w2) − c
//! ```
//!
//! Simulator. What the server receives of the client, and what is dealt to it, is under masks from `k_0`; what the client
//! receives is under a mask from `k_2`; the dealer receives nothing.

use ombra_ir::{Diagnostic, Result};

use super::share::Share;
use super::{Cx, Purpose};

/// A map of the words of two operands.
pub type OfTwo<'a> = &'a dyn Fn(&[u64], &[u64]) -> Result<Vec<u64>>;
/// A map of the words of one operand.
pub type OfOne<'a> = &'a dyn Fn(&[u64]) -> Result<Vec<u64>>;

/// A bilinear map of words with the sizes of its operands and of its result.
pub struct Bilinear<'a> {
    /// The map.
    pub apply: OfTwo<'a>,
    /// Elements of both operands.
    pub operands: [usize; 2],
    /// Elements of the result.
    pub result: usize,
}

/// A product of two shared values in a ring of `bits`.
pub async fn product(cx: &Cx, f: &Bilinear<'_>, x: &Share, y: &Share, bits: u8) -> Result<Share> {
    let [nx, ny] = f.operands;
    let mask = |key: u8| -> Result<[Vec<u64>; 2]> {
        Ok([cx.draw(key, Purpose::Mask, 0, nx)?, cx.draw(key, Purpose::MaskOther, 0, ny)?])
    };
    let dealt = |n| cx.draw(0, Purpose::Dealt, 0, n);
    if cx.role() == 2 {
        let ([x0, y0], [x1, y1]) = (mask(0)?, mask(2)?);
        let correlation = minus((f.apply)(&plus(x0, &x1), &plus(y0, &y1))?, &dealt(f.result)?);
        cx.send(1, &correlation, bits);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let peer = 1 - cx.role();
    let [lx, ly] = mask(2 * cx.role())?;
    let (own_x, own_y) = (plus(x.own()?.to_vec(), &lx), plus(y.own()?.to_vec(), &ly));
    cx.send(peer, &own_x, bits);
    cx.send(peer, &own_y, bits);
    cx.round().await;
    let m = plus(own_x, &cx.take(peer, nx, bits)?);
    let w = plus(own_y, &cx.take(peer, ny, bits)?);
    let (first, summand) = match cx.role() {
        0 => ((f.apply)(&m, &minus(w.clone(), &ly))?, dealt(f.result)?),
        _ => (negative((f.apply)(&m, &ly)?), cx.take(2, f.result, bits)?),
    };
    Ok(Share::of(plus(minus(first, &(f.apply)(&lx, &w)?), &summand)))
}

/// One party's knowledge of a private weight: which of its two terms it can multiply with.
pub struct Factor<'a> {
    /// The product with the term that client and server know.
    pub first: OfOne<'a>,
    /// The product with the term that server and dealer know.
    pub second: OfOne<'a>,
    /// The product with the whole weight, which the server knows.
    pub whole: OfOne<'a>,
}

/// The product of a shared value of `n` elements with a private weight, of `result` elements, in a ring of `bits`.
pub async fn times_weight(
    cx: &Cx,
    x: &Share,
    weight: &Factor<'_>,
    (n, result): (usize, usize),
    bits: u8,
) -> Result<Share> {
    match cx.role() {
        0 => {
            let mask = cx.draw(0, Purpose::Mask, 0, n)?;
            cx.send(1, &plus(x.own()?.to_vec(), &mask), bits);
            let share = minus(cx.draw(0, Purpose::Dealt, 0, result)?, &(weight.first)(&mask)?);
            cx.round().await;
            Ok(Share::of(share))
        }
        1 => {
            cx.round().await;
            let held = plus(cx.take(0, n, bits)?, x.own()?);
            let dealt = cx.take(2, result, bits)?;
            Ok(Share::of(plus((weight.whole)(&held)?, &dealt)))
        }
        _ => {
            let product = (weight.second)(&cx.draw(0, Purpose::Mask, 0, n)?)?;
            cx.send(1, &negative(plus(product, &cx.draw(0, Purpose::Dealt, 0, result)?)), bits);
            cx.round().await;
            Ok(Share::nothing())
        }
    }
}

/// `x + y` of as many words.
pub(super) fn plus(mut x: Vec<u64>, y: &[u64]) -> Vec<u64> {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_add(*y));
    x
}

/// `x − y` of as many words.
pub(super) fn minus(mut x: Vec<u64>, y: &[u64]) -> Vec<u64> {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_sub(*y));
    x
}

/// `−x`.
pub(super) fn negative(mut x: Vec<u64>) -> Vec<u64> {
    x.iter_mut().for_each(|x| *x = x.wrapping_neg());
    x
}

/// A value that is no share of as many words as the op takes.
pub(super) fn mismatch(what: &str) -> Diagnostic {
    Diagnostic::internal("E0804", what)
}
