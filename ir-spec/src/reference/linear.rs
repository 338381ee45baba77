//! Local arithmetic and truncation.

use super::movement::{broadcast_strides, strided};
use super::{RefValue, filled, mask, mismatch, signed, volume};
use crate::diag::Result;

/// `f` on the elements, reduced to the ring.
pub(super) fn map(x: &RefValue, f: impl Fn(u64) -> u64) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    RefValue::ring(bits, x.shape.clone(), values.iter().map(|v| f(*v)).collect())
}

/// `f` on pairs of elements with broadcasting, reduced to the ring.
pub(super) fn zip(a: &RefValue, b: &RefValue, shape: Vec<usize>, f: impl Fn(u64, u64) -> u64) -> Result<RefValue> {
    let ((bits, x), (other, y)) = (a.as_ring()?, b.as_ring()?);
    if bits != other {
        return Err(mismatch(format!("rings of {bits} and {other} bits")));
    }
    let values = if a.shape == shape && b.shape == shape {
        x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect()
    } else {
        let x = strided(x, &shape, &broadcast_strides(&a.shape, &shape)?, 0)?;
        let y = strided(y, &shape, &broadcast_strides(&b.shape, &shape)?, 0)?;
        x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect()
    };
    RefValue::ring(bits, shape, values)
}

/// The floor of `x / 2^by`.
pub(super) fn truncate(x: &RefValue, by: u8) -> Result<RefValue> {
    let (bits, _) = x.as_ring()?;
    map(x, |v| (signed(v, bits) >> by.min(63)) as u64)
}

/// `⌊x / 2^by⌋ − 1` in a ring of `by` bits less: what uniform shares give most often.
pub(super) fn cut(x: &RefValue, by: u8) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let left =
        bits.checked_sub(by).filter(|left| *left > 0).ok_or_else(|| mismatch(format!("{bits} bits cut by {by}")))?;
    let cut = |v: &u64| ((signed(*v, bits) >> by) as u64).wrapping_sub(1);
    RefValue::ring(left, x.shape.clone(), values.iter().map(cut).collect())
}

/// The low `bits`.
pub(super) fn narrow(x: &RefValue, bits: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    RefValue::ring(bits, x.shape.clone(), values.to_vec())
}

/// Sum over an axis.
pub(super) fn reduce_sum(x: &RefValue, axis: usize, shape: Vec<usize>) -> Result<RefValue> {
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
pub(super) fn matmul(a: &RefValue, b: &RefValue, shape: Vec<usize>, trans_b: bool) -> Result<RefValue> {
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
    let picks = pick(a_batch)?.into_iter().zip(pick(b_batch)?);
    for (c, (i, j)) in out.chunks_exact_mut(m * n).zip(picks) {
        let a = x.get(i * m * k..(i + 1) * m * k).ok_or_else(|| mismatch("left operand too short"))?;
        let b = y.get(j * k * n..(j + 1) * k * n).ok_or_else(|| mismatch("right operand too short"))?;
        if trans_b {
            product_transposed(a, b, c, k);
        } else {
            product(a, b, c, k, n);
        }
    }
    let mask = mask(bits);
    out.iter_mut().for_each(|v| *v &= mask);
    RefValue::ring(bits, shape, out)
}

/// `c += a · b`, a row of `b` at a time.
fn product(a: &[u64], b: &[u64], c: &mut [u64], k: usize, n: usize) {
    for (row, sums) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (factor, line) in row.iter().zip(b.chunks_exact(n)) {
            sums.iter_mut().zip(line).for_each(|(s, v)| *s = s.wrapping_add(factor.wrapping_mul(*v)));
        }
    }
}

/// `c = a · bᵀ`, by dot products of rows.
fn product_transposed(a: &[u64], b: &[u64], c: &mut [u64], k: usize) {
    let n = b.len() / k;
    for (row, sums) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        for (line, sum) in b.chunks_exact(k).zip(sums) {
            *sum = row.iter().zip(line).fold(0u64, |s, (x, y)| s.wrapping_add(x.wrapping_mul(*y)));
        }
    }
}
