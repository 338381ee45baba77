//! Local arithmetic and truncation.

use super::movement::{broadcast, broadcast_strides, strided};
use super::{PARALLEL, RefValue, Rounding, filled, map_elements, mismatch, signed, volume, zip_elements};
use crate::diag::Result;
use ombra_kernels::gemm::{MatRef, gemm_acc};
use rayon::prelude::*;

/// `f` on the elements, reduced to the ring.
pub(crate) fn map(x: &RefValue, f: impl Fn(u64) -> u64 + Sync + Send) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    RefValue::ring(bits, x.shape.clone(), map_elements(values, |v| f(*v))?)
}

/// `f` on pairs of elements with broadcasting, reduced to the ring.
pub(crate) fn zip(
    a: &RefValue,
    b: &RefValue,
    shape: Vec<usize>,
    f: impl Fn(u64, u64) -> u64 + Sync + Send,
) -> Result<RefValue> {
    let ((bits, x), (other, y)) = (a.as_ring()?, b.as_ring()?);
    if bits != other {
        return Err(mismatch(format!("rings of {bits} and {other} bits")));
    }
    let (x, y) = (broadcast(x, &a.shape, &shape)?, broadcast(y, &b.shape, &shape)?);
    RefValue::ring(bits, shape, zip_elements(&x, &y, |x, y| f(*x, *y))?)
}

/// The quotient of `x` by `2^by`.
pub(crate) fn truncate(x: &RefValue, by: u8, to: u8, rounding: Rounding) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let mut out = filled(0u64, values.len())?;
    out.par_iter_mut().zip(values).enumerate().with_min_len(PARALLEL / 2).for_each(|(at, (out, v))| {
        let value = signed(*v, bits);
        *out = if by == 0 { value } else { rounding.quotient(value, by, at) }.cast_unsigned();
    });
    RefValue::ring(to, x.shape.clone(), out)
}

/// `⌊x / 2^by⌋` in a ring of `by` bits less, less half of what `components` shares can lose: a whole number, or one of its
/// two neighbours as the element's position says.
pub(crate) fn cut(x: &RefValue, by: u8, components: u8) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let left =
        bits.checked_sub(by).filter(|left| *left > 0).ok_or_else(|| mismatch(format!("{bits} bits cut by {by}")))?;
    let twice = u64::from(components.saturating_sub(1));
    let cut = |(at, v): (usize, &u64)| {
        let lost = (twice + (spread(at) & twice)) / 2;
        ((signed(*v, bits) >> by) as u64).wrapping_sub(lost)
    };
    RefValue::ring(left, x.shape.clone(), values.iter().enumerate().map(cut).collect())
}

/// 0 or 1, by a position; as often one as the other.
fn spread(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63
}

/// The low `bits`.
pub(crate) fn narrow(x: &RefValue, bits: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    RefValue::ring(bits, x.shape.clone(), values.to_vec())
}

/// `x · 2^by` in a ring of `by` more bits.
pub(crate) fn lift(x: &RefValue, by: u8) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let lifted = values.iter().map(|v| v.checked_shl(by.into()).unwrap_or(0)).collect();
    RefValue::ring(bits.saturating_add(by), x.shape.clone(), lifted)
}

/// Sum over an axis.
pub(crate) fn reduce_sum(x: &RefValue, axis: usize, shape: Vec<usize>) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let size = *x.shape.get(axis).ok_or_else(|| mismatch(format!("axis {axis} of {:?}", x.shape)))?;
    let inner = volume(x.shape.get(axis + 1..).unwrap_or(&[]))?;
    let mut out = filled(0u64, volume(&shape)?)?;
    if inner > 0 && size > 0 {
        for (sums, block) in out.chunks_exact_mut(inner).zip(values.chunks_exact(inner * size)) {
            for row in block.chunks_exact(inner) {
                sums.iter_mut().zip(row).for_each(|(s, v)| *s = s.wrapping_add(*v));
            }
        }
    }
    RefValue::ring(bits, shape, out)
}

/// Batched matrix product.
pub(crate) fn matmul(a: &RefValue, b: &RefValue, shape: Vec<usize>, trans_b: bool) -> Result<RefValue> {
    let ((bits, x), (other, y)) = (a.as_ring()?, b.as_ring()?);
    let ([a_batch @ .., m, k], [b_batch @ .., b_rows, b_columns]) = (&*a.shape, &*b.shape) else {
        return Err(mismatch("a matrix product of operands with fewer than two axes"));
    };
    let (inner, n) = if trans_b { (b_columns, b_rows) } else { (b_rows, b_columns) };
    let [batch @ .., rows, columns] = &*shape else {
        return Err(mismatch("a matrix product with fewer than two axes"));
    };
    if bits != other || inner != k || rows != m || columns != n {
        return Err(mismatch(format!("a matrix product of {:?} and {:?}", a.shape, b.shape)));
    }
    let (m, k, n) = (*m, *k, *n);
    let mut out = filled(0u64, volume(&shape)?)?;
    if out.is_empty() || k == 0 {
        return RefValue::ring(bits, shape, out);
    }
    // The number of the operand's matrix for every matrix of the result.
    let pick = |own: &[usize]| -> Result<Vec<usize>> {
        let numbers: Vec<usize> = (0..volume(own)?).collect();
        strided(&numbers, batch, &broadcast_strides(own, batch)?, 0)
    };
    let picks: Vec<(usize, usize)> = pick(a_batch)?.into_iter().zip(pick(b_batch)?).collect();
    let right = |j: usize| -> Result<MatRef> {
        let b = y.get(j * k * n..(j + 1) * k * n).ok_or_else(|| mismatch("right operand too short"))?;
        Ok(if trans_b { MatRef::row_major(b, n, k)?.transposed() } else { MatRef::row_major(b, k, n)? })
    };
    let threads = rayon::current_num_threads();
    if let [(0, j), rest @ ..] = &*picks
        && rest.iter().zip(1..).all(|(pair, i)| *pair == (i, *j))
    {
        // One matrix for all products: their rows are rows of one product.
        gemm_acc(MatRef::row_major(x, picks.len() * m, k)?, right(*j)?, &mut out, threads);
    } else {
        out.par_chunks_exact_mut(m * n).zip(&picks).try_for_each(|(c, (i, j))| -> Result<()> {
            let a = x.get(i * m * k..(i + 1) * m * k).ok_or_else(|| mismatch("left operand too short"))?;
            gemm_acc(MatRef::row_major(a, m, k)?, right(*j)?, c, 1);
            Ok(())
        })?;
    }
    RefValue::ring(bits, shape, out)
}
