//! What the operands' norms say of a result: finer bounds of its elements, and of its rows and columns.
//!
//! Numbers are logarithms in hundredths of a bit, rounded up at every step. Where nothing is known of a row, its elements
//! bound it: `n` of them are `√n` times as long as the largest. Nothing is derived from whole bounds alone.

use super::{Operand, TypeCx, ceil_log2};
use crate::dim::Dim;
use crate::norms::{BIT, Norms};
use crate::op::Op;
use crate::ty::Ty;

/// Norms of the result of `op`, whose type is `ty` but for them.
pub(super) fn norms(op: &Op, args: &[Operand], ty: &Ty, declared: Option<&Ty>, cx: &TypeCx) -> Norms {
    let none = Norms::default();
    if ty.as_ring().is_none() {
        return none;
    }
    if let Op::Weight { .. } | Op::PublicWeight { .. } | Op::Encode { .. } = op {
        return declared.map_or(none, |d| Norms { size: None, ..d.norms });
    }
    let row_of_result = ty.shape.last().map_or(Some(0), |n| half_log(cx, n));
    match op {
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => return row_of_result.map_or(none, |n| of_norm(op, ty, n)),
        Op::Softmax => return row_of_result.map_or(none, |n| of_softmax(ty, n)),
        _ if args.iter().all(|x| x.ty.norms.is_none()) => return none,
        _ => {}
    }
    let Some(x) = args.first().copied() else { return none };
    let known = x.ty.norms;
    let each = |f: &dyn Fn(u32) -> u32| {
        let [size, rows, columns] = [known.size, known.rows, known.columns].map(|n| n.and_then(|n| fit(f(n.into()))));
        Norms { size, rows, columns }
    };
    // Elements and rows of the result, from those of an operand that is broadcast to it.
    let row = |x: &Operand| spread_row(cx, x.ty, &ty.shape);
    let after = |size: u32, rows: Option<u32>| Norms { size: fit(size), rows: rows.and_then(fit), columns: None };
    let kept = |same: bool| if same { known.rows } else { None };
    match (op, args) {
        (Op::Neg | Op::SetScale { .. } | Op::Narrow { .. } | Op::Reshare | Op::Extend { .. } | Op::Slice { .. }, _) => {
            known
        }
        (Op::Add | Op::Sub, [a, b]) => after(sum(size(a.ty), size(b.ty)), row(a).zip(row(b)).map(|(a, b)| sum(a, b))),
        (Op::MulInt { k }, _) => {
            let k = k.unsigned_abs();
            each(&|n| if k == 0 { 0 } else { n + log(k.into()) })
        }
        (Op::AddInt { k: 0 }, _) => known,
        (Op::AddInt { k }, _) => {
            let k = log(k.unsigned_abs().into());
            after(sum(size(x.ty), k), row(&x).zip(row_of_result).map(|(x, n)| sum(x, k + n)))
        }
        (Op::Upscale { by }, _) => each(&|n| n + BIT * u32::from(*by)),
        (Op::Mul, [a, b]) => {
            let (one, other) = (row(a).map(|r| r + size(b.ty)), row(b).map(|r| r + size(a.ty)));
            after(size(a.ty) + size(b.ty), one.into_iter().chain(other).min())
        }
        (Op::MatMul { trans_b }, [a, b]) => {
            let column = if *trans_b { own_row(cx, b.ty) } else { own_column(cx, b.ty) };
            let most = own_row(cx, a.ty).zip(column).map(|(row, column)| row + column);
            let inner = a.ty.shape.last().and_then(|n| cx.dims.upper(n)).map(log);
            let by_size = inner.map(|n| size(a.ty) + size(b.ty) + n);
            let Some(size) = most.into_iter().chain(by_size).min() else { return none };
            after(size, row_of_result.map(|n| size + n))
        }
        (Op::ReduceSum { axis }, _) => {
            let Some(n) = x.ty.shape.get(usize::from(*axis)).and_then(|n| cx.dims.upper(n)) else { return none };
            let by_size = size(x.ty) + log(n);
            if usize::from(*axis) + 1 == x.ty.shape.len() {
                let size = own_row(cx, x.ty).map_or(by_size, |row| by_size.min(row + half(n)));
                after(size, Some(size))
            } else {
                after(by_size, own_row(cx, x.ty).map(|row| row + log(n)))
            }
        }
        // Of what is left, 3 at most are lost: a floor, and what the shares decide.
        (Op::Cut { by }, _) => shifted(x.ty, *by, log(3), row(&x), row_of_result),
        (Op::Truncate { by }, _) => shifted(x.ty, *by, 0, row(&x), row_of_result),
        (Op::Reshape { shape }, _) => {
            Norms { rows: reshaped(&x, shape), ..flat(&known, ends(&x.ty.shape) == ends(shape)) }
        }
        (Op::Transpose { perm }, _) => {
            let rank = perm.len();
            let along = |back: usize| {
                let from = rank.checked_sub(back).and_then(|i| perm.get(i))?;
                match rank.checked_sub(usize::from(*from) + 1)? {
                    0 => known.rows,
                    1 => known.columns,
                    _ => None,
                }
            };
            Norms { size: known.size, rows: along(1), columns: along(2) }
        }
        (Op::Concat { axis }, all) => {
            let back = ty.shape.len().saturating_sub(usize::from(*axis));
            let parts = |one: &dyn Fn(&Ty) -> Option<u32>, along: bool| {
                let parts = all.iter().map(|x| one(x.ty)).collect::<Option<Vec<_>>>()?;
                let most = parts.iter().copied().max()?;
                fit(if along { parts.into_iter().reduce(root_sum)? } else { most })
            };
            let columns = known.columns.and_then(|_| parts(&|ty| own_column(cx, ty), back == 2));
            let size = all.iter().map(|x| size(x.ty)).max().and_then(fit);
            Norms { size, rows: parts(&|ty| own_row(cx, ty), back == 1), columns }
        }
        (Op::Expand { .. }, _) => {
            Norms { rows: row(&x).and_then(fit), ..flat(&known, ends(&x.ty.shape) == ends(&ty.shape)) }
        }
        (Op::Gather { axis }, _) => {
            let rows = kept(usize::from(*axis) + 1 != x.ty.shape.len());
            Norms { rows, ..flat(&known, false) }
        }
        (Op::Pack | Op::Unpack { .. } | Op::RowExpand { .. }, _) => flat(&known, false),
        (Op::RowSum { shape }, _) => {
            let Some(n) = shape.last().and_then(|n| cx.dims.upper(n)) else { return none };
            let size = size(x.ty) + log(n);
            after(size, Some(size))
        }
        (Op::Embed, [_, table]) => Norms { columns: None, ..table.ty.norms },
        // Errors of fits are in whole bits, and so are bounds of what they give.
        _ => none,
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

/// A norm leaves `√n · 2^scale`, an error of 1 percent, or of 5 where rows may be very long, and two units an element.
fn of_norm(op: &Op, ty: &Ty, row: u32) -> Norms {
    let error = match super::nonlinear::is_coarse(op, ty) {
        false => 2,
        true => 8,
    };
    let scale = ty.as_ring().map_or(0, |(_, scale)| BIT * u32::from(scale));
    Norms { rows: fit(sum(scale + row + error, BIT + row)), ..Norms::default() }
}

/// What adds up to 1 is no longer than 1, with an error of a hundredth and four units an element.
fn of_softmax(ty: &Ty, row: u32) -> Norms {
    let scale = ty.as_ring().map_or(0, |(_, scale)| BIT * u32::from(scale));
    Norms { rows: fit(sum(scale + 2, 2 * BIT + row)), ..Norms::default() }
}

/// Divided by `2^by`, with an error in every element.
fn shifted(x: &Ty, by: u8, error: u32, row: Option<u32>, row_of_result: Option<u32>) -> Norms {
    let less = |n: u32| n.saturating_sub(BIT * u32::from(by));
    let rows = row.zip(row_of_result).map(|(x, n)| sum(less(x), error + n));
    Norms { size: fit(sum(less(size(x)), error)), rows: rows.and_then(fit), columns: None }
}

/// Rows of a reshaped tensor: parts of rows, or some rows in one.
fn reshaped(x: &Operand, shape: &[Dim]) -> Option<u16> {
    let one = Dim::constant(1);
    let (old, new) = (x.ty.shape.last().unwrap_or(&one), shape.last().unwrap_or(&one));
    let rows = x.ty.norms.rows?;
    if old == new {
        return Some(rows);
    }
    let (old, new) = (positive(old)?, positive(new)?);
    if old % new == 0 {
        return Some(rows);
    }
    (new % old == 0).then(|| fit(u32::from(rows) + half((new / old).into())))?
}

fn positive(dim: &Dim) -> Option<i64> {
    dim.as_constant().filter(|&n| n > 0)
}

/// The same elements elsewhere; columns only where they stay.
fn flat(known: &Norms, columns: bool) -> Norms {
    Norms { size: known.size, rows: None, columns: known.columns.filter(|_| columns) }
}

/// The last two sizes, where there are two.
fn ends(shape: &[Dim]) -> Option<&[Dim]> {
    shape.get(shape.len().checked_sub(2)?..)
}

/// A bound of every element.
fn size(ty: &Ty) -> u32 {
    let whole = BIT * u32::from(ty.bound);
    ty.norms.size.map_or(whole, |n| whole.min(n.into()))
}

/// A bound of every row along the last axis.
fn own_row(cx: &TypeCx, ty: &Ty) -> Option<u32> {
    let by_size = ty.shape.last().map_or(Some(0), |n| half_log(cx, n)).map(|n| size(ty) + n);
    by_size.into_iter().chain(ty.norms.rows.map(u32::from)).min()
}

/// A bound of every column along the last axis but one.
fn own_column(cx: &TypeCx, ty: &Ty) -> Option<u32> {
    let by_size = ty.shape.iter().rev().nth(1).and_then(|n| half_log(cx, n)).map(|n| size(ty) + n);
    by_size.into_iter().chain(ty.norms.columns.map(u32::from)).min()
}

/// A bound of every row of what is broadcast to a shape.
fn spread_row(cx: &TypeCx, ty: &Ty, shape: &[Dim]) -> Option<u32> {
    if ty.shape.last() == shape.last() {
        return own_row(cx, ty);
    }
    // One element a row, or none at all.
    shape.last().map_or(Some(0), |n| half_log(cx, n)).map(|n| size(ty) + n)
}

fn half_log(cx: &TypeCx, dim: &Dim) -> Option<u32> {
    cx.dims.upper(dim).map(half)
}

/// `lg √n`.
fn half(n: i128) -> u32 {
    log(n).div_ceil(2)
}

/// `lg n`; 0 for 1 and below.
fn log(n: i128) -> u32 {
    let whole = BIT * ceil_log2(n);
    if n <= 1 || n & (n - 1) == 0 {
        return whole;
    }
    up(libm::log2(n as f64)).min(whole)
}

/// `lg (2^a + 2^b)`.
fn sum(a: u32, b: u32) -> u32 {
    let (high, low) = (a.max(b), a.min(b));
    high + if a == b { BIT } else { up(libm::log2(1.0 + power(low, high))) }
}

/// `lg √(4^a + 4^b)`.
fn root_sum(a: u32, b: u32) -> u32 {
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

fn fit(n: u32) -> Option<u16> {
    u16::try_from(n).ok()
}
