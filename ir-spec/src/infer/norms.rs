//! What the operands' norms say of a result: finer bounds of its elements, and of its rows and columns.
//!
//! Numbers are logarithms in hundredths of a bit, rounded up at every step. Where nothing is known of a row, its elements
//! bound it: `n` of them are `√n` times as long as the largest. Nothing is derived from whole bounds alone.

use super::{TypeCx, ceil_log2};
use crate::dim::Dim;
use crate::norms::{BIT, Norms};
use crate::ty::Ty;

/// A bound of every element of a result, and of every row, before they are rounded to what is stored.
pub(crate) struct Numbers {
    /// Of every element.
    pub(crate) size: u32,
    /// Of every row along the last axis.
    pub(crate) rows: Option<u32>,
}

impl Numbers {
    /// What of it can be stored. Nothing is said of columns.
    /// The number, where it can be stored.
    pub(crate) fn fit(self) -> Norms {
        Norms { size: fit(self.size), rows: self.rows.and_then(fit), columns: None }
    }
}

/// Drops what the bound says as well.
pub(super) fn concise(ty: &Ty, cx: &TypeCx) -> Norms {
    let whole = BIT * u32::from(ty.bound);
    let plain =
        Ty { norms: Norms { size: ty.norms.size.filter(|&n| u32::from(n) < whole), ..Norms::default() }, ..ty.clone() };
    let less = |n: Option<u16>, most: Option<u32>| n.filter(|&n| most.is_none_or(|most| u32::from(n) < most));
    Norms {
        size: plain.norms.size,
        rows: less(ty.norms.rows, own_row(cx, &plain)),
        columns: less(ty.norms.columns, own_column(cx, &plain)),
    }
}

/// The names of numbers that are declared below what follows from the operands and from the declared bound.
pub(super) fn below(proven: &Norms, declared: &Ty, cx: &TypeCx) -> Option<(&'static str, u16)> {
    let with = |norms: Norms| Ty { norms, ..declared.clone() };
    let size_alone = with(Norms { size: proven.size, ..Norms::default() });
    let follows = [
        Some(size(&size_alone)),
        own_row(cx, &with(Norms { columns: None, ..*proven })),
        own_column(cx, &with(Norms { rows: None, ..*proven })),
    ];
    let named = declared.norms.named().into_iter().zip(follows);
    named
        .into_iter()
        .find_map(|((name, n), least)| n.filter(|&n| least.is_none_or(|least| u32::from(n) < least)).map(|n| (name, n)))
}

/// The least whole bound that holds elements of a size.
pub(super) fn whole(size: u16) -> u8 {
    u8::try_from(u32::from(size) / BIT + 1).unwrap_or(u8::MAX)
}

/// A size that is a number above 0.
pub(crate) fn positive(dim: &Dim) -> Option<i64> {
    dim.as_constant().filter(|&n| n > 0)
}

/// The same elements elsewhere; columns only where they stay.
pub(crate) fn flat(known: &Norms, columns: bool) -> Norms {
    Norms { size: known.size, rows: None, columns: known.columns.filter(|_| columns) }
}

/// The last two sizes, where there are two.
pub(crate) fn ends(shape: &[Dim]) -> Option<&[Dim]> {
    shape.get(shape.len().checked_sub(2)?..)
}

/// A bound of every element, as a logarithm.
pub fn size(ty: &Ty) -> u32 {
    let whole = BIT * u32::from(ty.bound);
    ty.norms.size.map_or(whole, |n| whole.min(n.into()))
}

/// The least width of a comparison of values below `2^(size / 100)` whose lowest `drop` bits are left out, which may move
/// a value down by as much; two bits at least are compared.
pub fn sign_width(size: u32, drop: u8) -> u8 {
    let (whole, part) = (size / BIT, size % BIT);
    let dropped = if drop > 0 { libm::exp2(f64::from(drop) - f64::from(whole)) } else { 0.0 };
    let fits = |bits: u32| power(part, BIT * bits) * (1.0 + 1e-9) + libm::exp2(-f64::from(bits)) * dropped <= 1.0;
    // Whole bits are exact: a value is below them.
    let bits = if part == 0 { u32::from(drop > 0) } else { (1..=2).find(|&bits| fits(bits)).unwrap_or(2) };
    u8::try_from(whole + bits + 1).unwrap_or(u8::MAX).max(drop.saturating_add(2))
}

/// A bound of every row along the last axis.
pub(crate) fn own_row(cx: &TypeCx, ty: &Ty) -> Option<u32> {
    let by_size = row_of(cx, &ty.shape).map(|n| size(ty) + n);
    by_size.into_iter().chain(ty.norms.rows.map(u32::from)).min()
}

/// A bound of every column along the last axis but one.
pub(crate) fn own_column(cx: &TypeCx, ty: &Ty) -> Option<u32> {
    let by_size = ty.shape.iter().rev().nth(1).and_then(|n| half_log(cx, n)).map(|n| size(ty) + n);
    by_size.into_iter().chain(ty.norms.columns.map(u32::from)).min()
}

/// A bound of every row of what is broadcast to a shape.
pub(crate) fn spread_row(cx: &TypeCx, ty: &Ty, shape: &[Dim]) -> Option<u32> {
    if ty.shape.last() == shape.last() {
        return own_row(cx, ty);
    }
    // One element a row, or none at all.
    row_of(cx, shape).map(|n| size(ty) + n)
}

/// `lg √n` of the last size of a shape: a row of elements of one unit. None where the size has no maximum.
pub(crate) fn row_of(cx: &TypeCx, shape: &[Dim]) -> Option<u32> {
    shape.last().map_or(Some(0), |n| half_log(cx, n))
}

fn half_log(cx: &TypeCx, dim: &Dim) -> Option<u32> {
    cx.dims.upper(dim).map(half)
}

/// `lg √n`.
pub(crate) fn half(n: i128) -> u32 {
    log(n).div_ceil(2)
}

/// `lg n`; 0 for 1 and below.
pub(crate) fn log(n: i128) -> u32 {
    let whole = BIT * ceil_log2(n);
    if n <= 1 || n & (n - 1) == 0 {
        return whole;
    }
    up(libm::log2(n as f64)).min(whole)
}

/// `lg (2^a + 2^b)`.
pub(crate) fn sum(a: u32, b: u32) -> u32 {
    let (high, low) = (a.max(b), a.min(b));
    high + if a == b { BIT } else { up(libm::log2(1.0 + power(low, high))) }
}

/// `lg √(4^a + 4^b)`.
pub(crate) fn root_sum(a: u32, b: u32) -> u32 {
    let (high, low) = (a.max(b), a.min(b));
    let ratio = power(low, high);
    high + if a == b { BIT / 2 } else { up(libm::log2(1.0 + ratio * ratio) / 2.0) }
}

/// `2^(low − high)`.
fn power(low: u32, high: u32) -> f64 {
    libm::exp2((f64::from(low) - f64::from(high)) / f64::from(BIT))
}

/// Hundredths, rounded up beyond what double precision is off by.
fn up(bits: f64) -> u32 {
    libm::ceil(bits * f64::from(BIT) + 1e-9) as u32
}

/// The number, where it can be stored.
pub(crate) fn fit(n: u32) -> Option<u16> {
    u16::try_from(n).ok()
}
