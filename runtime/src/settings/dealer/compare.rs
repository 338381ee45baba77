//! The sign of a shared value.
//!
//! Source: comparison of a masked value with its mask, cut in chunks whose one-hot vectors a dealer shares (truth tables of
//! Ishai et al., TCC 2013), joined by products of masked bits.
//! Parties and adversary: client, server and dealer, one semi-honest corruption. Correlation: dealt, below. Error: none, or
//! where low bits are left out, in `[0, 2^drop)`.
//! Rounds: 1 for the mask, in which nothing is masked where the value is already, then one for each opening of
//! `ombra_ir::settings::dealer::Comparison`, which cuts by cost: none where few elements of few bits have one chunk each, 2
//! where there are many elements of more than 21 bits, else 1.
//! Bits per element, with `w = width − drop` and chunks of `k ≤ 12` bits: `w` and the opened bits each way; dealt to the
//! server `Σ 2^k + 1` and a bit for each product of two or more of the masks that occurs.
//! Side channels: bit planes throughout. Branches and indices depend on sizes alone; that a masked value is public is not
//! used.
//!
//! ```text
//!   m = x + λ mod 2^w known to client and server, λ = λ^0 + λ^1, λ^0 = F(k_0), λ^1 = F(k_2)
//!   x < 0  =  m_{w−1} ⊕ λ_{w−1} ⊕ 1{m' < λ'}, where ' leaves out the highest bit
//!   of a chunk v of m' and t of λ':  e = one-hot vector of t, e^0 = F(k_0), dealt e^1 = e ⊕ e^0
//!     1{v < t} = ⊕_{u>v} e_u,  1{v = t} = e_v: sums of shares at public places
//!   1{m' < λ'} = lt_n ⊕ eq_n (lt_{n−1} ⊕ eq_{n−1} (…)):  every lt but the highest and every eq but the lowest is opened under
//!     a mask F(k_0)' ⊕ F(k_2)'; a product of (value ⊕ mask) is a sum of products of masks at public places, which are dealt
//! ```
//!
//! Simulator. The client receives masked shares, `x^1 + F(k_2)` and bits `⊕ F(k_2)'`; the server `x^0 + F(k_0)` and bits
//! `⊕ F(k_0)'`, and what is dealt, `⊕ F(k_0)` by labels of their own; the dealer nothing. Every key is unknown to the
//! receiver and every label is used once: all messages are uniform.

use ombra_ir::settings::dealer::{Comparison, Join};
use ombra_ir::{Diagnostic, Result};

use super::planes::{self, Opened};
use super::products::{Operand, mismatch};
use super::share::BitShare;
use super::{Cx, Purpose};
use crate::backend::bits::{planes_of, words as plane_words, xor_assign};

/// The sign of `n` values that fit in `width` bits: 1 where negative. The lowest `drop` bits of both shares are left out,
/// with their carry: values in `[0, 2^drop)` may count as negative, depending on the shares.
pub async fn msb(cx: &Cx, x: Operand<'_>, n: usize, width: u8, drop: u8) -> Result<BitShare> {
    let way = Comparison::of(n as u64, compared(width, drop)?);
    msb_in(cx, x, n, (width, drop), &way).await
}

/// [`msb`] in one of its ways, which must be one for `width − drop` bits.
pub(super) async fn msb_in(
    cx: &Cx,
    x: Operand<'_>,
    n: usize,
    (width, drop): (u8, u8),
    way: &Comparison,
) -> Result<BitShare> {
    let (count, stride) = (usize::from(compared(width, drop)?), plane_words(n));
    let x = match x {
        Operand::Share(x) => x,
        Operand::Ready(x) if cx.role() == 2 => {
            // What is left out of the mask is rounded up, so that a difference is never greater than it was.
            let mut lambda = x.lambda()?;
            lambda.iter_mut().for_each(|lambda| *lambda = lambda.wrapping_add((1 << drop) - 1));
            deal_chunks(cx, &planes_of(&lambda, width, drop), n, way)?;
            cx.round().await;
            return sign_of_masked(cx, &[], n, way).await;
        }
        Operand::Ready(x) => {
            cx.round().await;
            return sign_of_masked(cx, &planes_of(x.words()?, width, drop), n, way).await;
        }
    };
    let mask = |key: u8| cx.draw(key, Purpose::Mask, 0, count * stride);
    if cx.role() == 2 {
        let mut lambda = mask(0)?;
        planes::add(&mut lambda, &mask(2)?, stride);
        deal_chunks(cx, &lambda, n, way)?;
        cx.round().await;
        return sign_of_masked(cx, &[], n, way).await;
    }
    let share = x.own()?;
    if share.len() != n {
        return Err(mismatch("a share does not have as many elements as its signs"));
    }
    let mut m = planes_of(share, width, drop);
    planes::add(&mut m, &mask(2 * cx.role())?, stride);
    cx.send_planes(1 - cx.role(), &m, count, n);
    cx.round().await;
    planes::add(&mut m, &cx.take_planes(1 - cx.role(), count, n)?, stride);
    sign_of_masked(cx, &m, n, way).await
}

/// Bits that are compared: at least two. E0803 when there are fewer.
pub(super) fn compared(width: u8, drop: u8) -> Result<u8> {
    match width.checked_sub(drop) {
        Some(rest) if width <= 64 && rest >= 2 => Ok(rest),
        _ => Err(Diagnostic::internal("E0803", format!("sign of a value of {width} bits, {drop} of them left out"))),
    }
}

/// The dealer's message in the round in which values are masked by `lambda`, in planes: one-hot vectors of its chunks,
/// lowest first, and its highest bit.
pub(super) fn deal_chunks(cx: &Cx, lambda: &[u64], n: usize, way: &Comparison) -> Result<()> {
    let (count, stride) = (way.chunk_planes(), plane_words(n));
    let mut dealt = cx.draw(0, Purpose::Chunks, 0, count * stride)?;
    let (mut bits, mut vectors) = (lambda, dealt.as_mut_slice());
    for &k in &way.chunks {
        let (chunk, higher) = bits.split_at(usize::from(k) * stride);
        let (vector, rest) = vectors.split_at_mut((1 << k) * stride);
        planes::add_one_hot(chunk, stride, vector);
        (bits, vectors) = (higher, rest);
    }
    xor_assign(vectors, bits);
    cx.send_planes(1, &dealt, count, n);
    Ok(())
}

/// The signs of `n` values that are masked modulo a power of two, after the round in which they were: `m` is the masked values
/// in planes at client and server, and is not looked at by the dealer.
pub(super) async fn sign_of_masked(cx: &Cx, m: &[u64], n: usize, way: &Comparison) -> Result<BitShare> {
    let (count, stride) = (way.chunk_planes(), plane_words(n));
    let vectors = match cx.role() {
        0 => cx.draw(0, Purpose::Chunks, 0, count * stride)?,
        1 => cx.take_planes(2, count, n)?,
        _ => {
            for (level, groups) in (0u8..).zip(&way.openings) {
                deal_products(cx, groups, level, n)?;
                cx.round().await;
            }
            return Ok(BitShare::nothing(n));
        }
    };
    let mut order = Order::none(way.chunks.len(), stride);
    let (mut bits, mut vectors) = (m, vectors.as_slice());
    for (at, k) in way.chunks.iter().enumerate() {
        let (chunk, higher) = bits.split_at(usize::from(*k) * stride);
        let (vector, rest) = vectors.split_at((1 << k) * stride);
        let range = at * stride..(at + 1) * stride;
        planes::choose(vector, chunk, stride, &mut order.greater[range.clone()], &mut order.equal[range]);
        (bits, vectors) = (higher, rest);
    }
    for (level, groups) in (0u8..).zip(&way.openings) {
        order = join(cx, &order, groups, level, n).await?;
    }
    let mut sign = order.greater;
    xor_assign(&mut sign, vectors);
    if cx.role() == 0 {
        xor_assign(&mut sign, bits);
    }
    Ok(BitShare::of(n, sign))
}

/// Shares of how chunks compare, a plane each, lowest chunk first.
struct Order {
    /// Whether the mask's is greater.
    greater: Vec<u64>,
    /// Whether both are equal; not kept of the lowest.
    equal: Vec<u64>,
    stride: usize,
}

impl Order {
    fn none(chunks: usize, stride: usize) -> Order {
        Order { greater: vec![0; chunks * stride], equal: vec![0; chunks * stride], stride }
    }

    fn range(&self, chunks: std::ops::Range<usize>) -> std::ops::Range<usize> {
        chunks.start * self.stride..chunks.end * self.stride
    }
}

/// Chunks of every group, by their numbers.
fn ranges(groups: &[Join]) -> impl Iterator<Item = (Join, std::ops::Range<usize>)> + '_ {
    groups.iter().scan(0, |start, group| {
        let range = *start..*start + group.chunks;
        *start = range.end;
        Some((*group, range))
    })
}

/// The dealer's message in the round of an opening.
fn deal_products(cx: &Cx, groups: &[Join], level: u8, n: usize) -> Result<()> {
    let stride = plane_words(n);
    let opened: usize = groups.iter().map(|group| group.opened()).sum();
    let count = groups.iter().map(|group| group.products()).sum();
    let mut masks = cx.draw(0, Purpose::Merge, level, opened * stride)?;
    xor_assign(&mut masks, &cx.draw(2, Purpose::Merge, level, opened * stride)?);
    let mut dealt = cx.draw(0, Purpose::MergeProducts, level, count * stride)?;
    let (mut left, mut rest) = (masks.as_slice(), dealt.as_mut_slice());
    for group in groups.iter().filter(|group| group.chunks > 1) {
        let (of_group, others) = left.split_at(group.opened() * stride);
        let (products, after) = rest.split_at_mut(group.products() * stride);
        planes::add_products(*group, of_group, stride, products);
        (left, rest) = (others, after);
    }
    cx.send_planes(1, &dealt, count, n);
    Ok(())
}

/// One opening: the order of every group of chunks.
async fn join(cx: &Cx, order: &Order, groups: &[Join], level: u8, n: usize) -> Result<Order> {
    let (role, stride) = (cx.role(), order.stride);
    let mut values = Vec::new();
    for (group, chunks) in ranges(groups).filter(|(group, _)| group.chunks > 1) {
        let last = chunks.end - 1;
        values.extend_from_slice(&order.greater[order.range(chunks.start..last)]);
        values.extend_from_slice(&order.equal[order.range(chunks.end - group.equalities()..chunks.end)]);
    }
    let opened = groups.iter().map(|group| group.opened()).sum();
    let count = groups.iter().map(|group| group.products()).sum();
    let masks = cx.draw(2 * role, Purpose::Merge, level, values.len())?;
    xor_assign(&mut values, &masks);
    cx.send_planes(1 - role, &values, opened, n);
    cx.round().await;
    xor_assign(&mut values, &cx.take_planes(1 - role, opened, n)?);
    let products = match role {
        0 => cx.draw(0, Purpose::MergeProducts, level, count * stride)?,
        _ => cx.take_planes(2, count, n)?,
    };

    let one = if role == 0 { u64::MAX } else { 0 };
    let mut joined = Order::none(groups.len(), stride);
    let (mut bit, mut product) = (0, 0);
    for (at, (group, chunks)) in ranges(groups).enumerate() {
        let (own, highest) = (joined.range(at..at + 1), order.range(chunks.end - 1..chunks.end));
        let (greater, equal) = (&mut joined.greater[own.clone()], &mut joined.equal[own]);
        greater.copy_from_slice(&order.greater[highest.clone()]);
        if group.chunks == 1 {
            equal.copy_from_slice(&order.equal[highest]);
            continue;
        }
        let range = bit * stride..(bit + group.opened()) * stride;
        let bits = Opened {
            values: &values[range.clone()],
            masks: &masks[range],
            products: &products[product * stride..(product + group.products()) * stride],
        };
        planes::join(group, &bits, one, stride, greater, equal);
        (bit, product) = (bit + group.opened(), product + group.products());
    }
    Ok(joined)
}
