//! Products of secrets: of two shared values, and of a shared value with a private weight.
//!
//! Source: Beaver triples from a dealer; the server knows its weights, so one mask suffices for a product with them.
//! Parties and adversary: client, server and dealer, one semi-honest corruption.
//! Rounds: 1. Bits: `ℓ` each way for every element that is masked, or `ℓ` from the client for every element that the server
//! is to hold; `ℓ` dealt to the server for every element of a product. What is masked or held once takes part in any number
//! of products. Error: none.
//!
//! ```text
//!   masked  m = x + λ known to client and server, λ^0 = F(k_0), λ^1 = F(k_2); c = F(k_0); f is bilinear
//!     client: f(m, w − λ_y^0) − f(λ_x^0, w) + c
//!     server: −f(m, λ_y^1) − f(λ_x^1, w) + dealt,  dealt = f(λ_x, λ_y) − c
//!   held  the client sends x^0 + λ, so that the server has h = x + λ; λ = F(k_0).  A masked value is held: h = m − λ^1
//!     W = w1 + w2: w1 at client and server, w2 at server and dealer
//!     client: c − f(λ, w1);  server: f(h, W) + dealt,  dealt = −f(λ, w2) − c
//! ```
//!
//! Masks of values that are moved, added or multiplied with public numbers move with them, so masks of different operands
//! may depend on one another. Each product's dealt elements are under a stream of their own, and nothing else is sent.
//!
//! Simulator. What the server receives of the client, and what is dealt to it, is under masks from `k_0`; what the client
//! receives is under a mask from `k_2`; the dealer receives nothing.

use std::borrow::Cow;

use ombra_ir::{Diagnostic, Result};

use super::share::{Masked, Share};
use super::{Cx, Purpose};
use crate::wiped::Zeroizing;

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

/// Masks a shared value of `n` elements in a ring of `bits`.
pub async fn mask(cx: &Cx, x: &Share, n: usize, bits: u8) -> Result<Masked> {
    let begun = begin_mask(cx, x, n, bits, 0)?;
    cx.round().await;
    end_mask(cx, begun, n, bits)
}

/// The first half of masking, before the round: this party's masked share is sent. `part` tells the values of one op apart.
pub(super) fn begin_mask(cx: &Cx, x: &Share, n: usize, bits: u8, part: u8) -> Result<Masked> {
    let stream = |key: u8| cx.draw(key, Purpose::Mask, part, n).map(Zeroizing::new);
    let role = cx.role();
    if role == 2 {
        return Ok(Masked { words: None, masks: [Some(stream(0)?), Some(stream(2)?)] });
    }
    let own = stream(2 * role)?;
    let words = plus(x.own()?.to_vec(), &own);
    cx.send(1 - role, &words, bits);
    let masks = if role == 0 { [Some(own), None] } else { [None, Some(own)] };
    Ok(Masked { words: Some(Zeroizing::new(words)), masks })
}

/// The second half: the peer's masked share is added.
pub(super) fn end_mask(cx: &Cx, begun: Masked, n: usize, bits: u8) -> Result<Masked> {
    let Masked { words: Some(mut words), masks } = begun else { return Ok(begun) };
    let other = cx.take(1 - cx.role(), n, bits)?;
    words.iter_mut().zip(&other).for_each(|(x, y)| *x = x.wrapping_add(*y));
    Ok(Masked { words: Some(words), masks })
}

/// Gives the server a shared value of `n` elements in a ring of `bits`, under a mask of the client and the dealer.
pub async fn hold(cx: &Cx, x: &Share, n: usize, bits: u8) -> Result<Masked> {
    let begun = begin_hold(cx, x, n, bits)?;
    cx.round().await;
    end_hold(cx, begun, n, bits)
}

/// The first half of it, before the round: the client's masked share is sent, the server has its own.
fn begin_hold(cx: &Cx, x: &Share, n: usize, bits: u8) -> Result<Masked> {
    if cx.role() == 1 {
        return Ok(Masked { words: Some(Zeroizing::new(x.own()?.to_vec())), masks: [None, None] });
    }
    let mask = cx.draw(0, Purpose::Mask, 0, n)?;
    if cx.role() == 0 {
        cx.send(1, &plus(x.own()?.to_vec(), &mask), bits);
    }
    Ok(Masked { words: None, masks: [Some(Zeroizing::new(mask)), None] })
}

/// The second half: the server adds the client's masked share.
fn end_hold(cx: &Cx, begun: Masked, n: usize, bits: u8) -> Result<Masked> {
    let Masked { words: Some(words), masks } = begun else { return Ok(begun) };
    let held = plus(cx.take(0, n, bits)?, &words);
    Ok(Masked { words: Some(Zeroizing::new(held)), masks })
}

/// A secret operand of a product: as it is, or ready.
pub enum Operand<'a> {
    /// To be masked, or held, in the product's round.
    Share(&'a Share),
    /// Masked, or held where the other operand is a weight.
    Ready(&'a Masked),
}

impl<'a> Operand<'a> {
    /// The operand of `n` elements under its mask, before the round; one that was not is masked in a ring of `bits`. The dealer
    /// has its masks whole, client and server [`end`] it.
    pub(super) fn begin(&self, cx: &Cx, n: usize, bits: u8, part: u8) -> Result<Cow<'a, Masked>> {
        match self {
            Operand::Share(x) => begin_mask(cx, x, n, bits, part).map(Cow::Owned),
            Operand::Ready(masked) => Ok(Cow::Borrowed(masked)),
        }
    }
}

/// What [`Operand::begin`] began, after the round.
pub(super) fn end<'a>(cx: &Cx, begun: Cow<'a, Masked>, n: usize, bits: u8) -> Result<Cow<'a, Masked>> {
    match begun {
        Cow::Owned(begun) => end_mask(cx, begun, n, bits).map(Cow::Owned),
        ready => Ok(ready),
    }
}

/// A product of two secrets in a ring of `bits`.
pub async fn product(cx: &Cx, f: &Bilinear<'_>, x: Operand<'_>, y: Operand<'_>, bits: u8) -> Result<Share> {
    let [nx, ny] = f.operands;
    let (x, y) = (x.begin(cx, nx, bits, 0)?, y.begin(cx, ny, bits, 1)?);
    let dealt = |n| cx.draw(0, Purpose::Dealt, 0, n);
    if cx.role() == 2 {
        let correlation = (f.apply)(&x.lambda()?, &y.lambda()?)?;
        cx.send(1, &minus(correlation, &dealt(f.result)?), bits);
        cx.round().await;
        return Ok(Share::nothing());
    }
    cx.round().await;
    let own = usize::from(cx.role());
    let (x, y) = (end(cx, x, nx, bits)?, end(cx, y, ny, bits)?);
    let (first, summand) = match own {
        0 => ((f.apply)(x.words()?, &minus(y.words()?.to_vec(), y.mask(0)?))?, dealt(f.result)?),
        _ => (negative((f.apply)(x.words()?, y.mask(1)?)?), cx.take(2, f.result, bits)?),
    };
    Ok(Share::of(plus(minus(first, &(f.apply)(x.mask(own)?, y.words()?)?), &summand)))
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

/// The product of a secret of `n` elements with a private weight, of `result` elements, in a ring of `bits`.
pub async fn times_weight(
    cx: &Cx,
    x: Operand<'_>,
    weight: &Factor<'_>,
    (n, result): (usize, usize),
    bits: u8,
) -> Result<Share> {
    let held = match &x {
        Operand::Share(share) => begin_hold(cx, share, n, bits)?,
        Operand::Ready(masked) => masked.to_held(),
    };
    match cx.role() {
        0 => {
            let share = minus(cx.draw(0, Purpose::Dealt, 0, result)?, &(weight.first)(held.mask(0)?)?);
            cx.round().await;
            Ok(Share::of(share))
        }
        1 => {
            cx.round().await;
            let held = if let Operand::Share(_) = x { end_hold(cx, held, n, bits)? } else { held };
            let dealt = cx.take(2, result, bits)?;
            Ok(Share::of(plus((weight.whole)(held.words()?)?, &dealt)))
        }
        _ => {
            let product = (weight.second)(held.mask(0)?)?;
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
