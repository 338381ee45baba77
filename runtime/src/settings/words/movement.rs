//! Movement of elements, on the words of one component or term.
//!
//! Positions depend on public shapes, indices and masks only.

use crate::exec::side::row_index;
use ombra_ir::{Diagnostic, Result};

use super::broadcast::{strides, volume};

/// Axes permuted: result axis `i` is axis `perm[i]` of `shape`.
pub fn transpose(x: &[u64], shape: &[usize], perm: &[u8]) -> Result<Vec<u64>> {
    fills(x, shape)?;
    let own = strides(shape, shape)?;
    let mut axes = Vec::with_capacity(shape.len());
    for &axis in perm {
        let axis = usize::from(axis);
        match (shape.get(axis), own.get(axis)) {
            (Some(&size), Some(&stride)) => axes.push((size, stride)),
            _ => return Err(bad_axis(axis, shape)),
        }
    }
    if axes.iter().try_fold(1usize, |n, (size, _)| n.checked_mul(*size)) != Some(x.len()) {
        return Err(bad_axis(perm.len(), shape));
    }
    let mut out = Vec::with_capacity(x.len());
    copy_axes(x, 0, &axes, &mut out);
    Ok(out)
}

fn copy_axes(x: &[u64], from: usize, axes: &[(usize, usize)], out: &mut Vec<u64>) {
    match axes {
        [] => out.push(x[from]),
        &[(size, 1)] => out.extend_from_slice(&x[from..from + size]),
        &[(size, stride)] => out.extend((0..size).map(|i| x[from + i * stride])),
        [(size, stride), inner @ ..] => (0..*size).for_each(|i| copy_axes(x, from + i * stride, inner, out)),
    }
}

/// Elements `start..start + len` along `axis`.
pub fn slice(x: &[u64], shape: &[usize], axis: usize, start: usize, len: usize) -> Result<Vec<u64>> {
    let (size, inner) = split(x, shape, axis)?;
    if start.checked_add(len).is_none_or(|end| end > size) {
        return Err(Diagnostic::internal("E0804", format!("a slice leaves axis {axis} of shape {shape:?}")));
    }
    if size * inner == 0 {
        return Ok(Vec::new());
    }
    Ok(x.chunks_exact(size * inner).flat_map(|block| &block[start * inner..(start + len) * inner]).copied().collect())
}

/// Tensors one after another along `axis`.
pub fn concat(parts: &[(&[u64], &[usize])], axis: usize) -> Result<Vec<u64>> {
    let mut blocks = Vec::with_capacity(parts.len());
    let mut outer = None;
    for &(x, shape) in parts {
        let (size, inner) = split(x, shape, axis)?;
        let count = volume(&shape[..axis])?;
        if *outer.get_or_insert(count) != count {
            return Err(bad_axis(axis, shape));
        }
        blocks.push((x, size * inner));
    }
    let mut out = Vec::with_capacity(parts.iter().map(|(x, _)| x.len()).sum());
    for i in 0..outer.unwrap_or(0) {
        blocks.iter().for_each(|(x, block)| out.extend_from_slice(&x[i * block..(i + 1) * block]));
    }
    Ok(out)
}

/// Rows along `axis` picked by `indices`; a negative index counts from the end. E0806 when one is out of range.
pub fn gather(x: &[u64], shape: &[usize], axis: usize, indices: &[i64]) -> Result<Vec<u64>> {
    let (size, inner) = split(x, shape, axis)?;
    let rows = indices.iter().map(|&index| row_index(index, size)).collect::<Result<Vec<_>>>()?;
    if size * inner == 0 {
        return Ok(Vec::new());
    }
    let blocks = x.chunks_exact(size * inner);
    Ok(blocks.flat_map(|block| rows.iter().flat_map(|&row| &block[row * inner..(row + 1) * inner])).copied().collect())
}

/// Sum along `axis`.
pub fn reduce_sum(x: &[u64], shape: &[usize], axis: usize) -> Result<Vec<u64>> {
    let (size, inner) = split(x, shape, axis)?;
    let outer = volume(&shape[..axis])?;
    if inner == 1 && size > 0 {
        return Ok(x.chunks_exact(size).map(|row| row.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))).collect());
    }
    let mut out = vec![0u64; outer * inner];
    if size * inner > 0 {
        for (block, sums) in x.chunks_exact(size * inner).zip(out.chunks_exact_mut(inner)) {
            for row in block.chunks_exact(inner) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
            }
        }
    }
    Ok(out)
}

/// The elements at ascending positions.
pub fn pack(x: &[u64], keep: &[u32]) -> Result<Vec<u64>> {
    if keep.last().is_some_and(|&last| last as usize >= x.len()) {
        return Err(not_packed(keep.len(), x.len()));
    }
    Ok(keep.iter().map(|&at| x[at as usize]).collect())
}

/// The packed elements at ascending positions of `dense` elements, zero elsewhere.
pub fn unpack(x: &[u64], keep: &[u32], dense: usize) -> Result<Vec<u64>> {
    if x.len() != keep.len() || keep.last().is_some_and(|&last| last as usize >= dense) {
        return Err(not_packed(keep.len(), x.len()));
    }
    let mut out = vec![0; dense];
    keep.iter().zip(x).for_each(|(&at, x)| out[at as usize] = *x);
    Ok(out)
}

/// Sum of every row's packed entries.
pub fn row_sum(x: &[u64], lens: &[u32]) -> Result<Vec<u64>> {
    let total: usize = lens.iter().map(|&len| len as usize).sum();
    if x.len() != total {
        return Err(not_packed(total, x.len()));
    }
    let mut rest = x;
    Ok(lens
        .iter()
        .map(|&len| {
            let (row, tail) = rest.split_at(len as usize);
            rest = tail;
            row.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))
        })
        .collect())
}

/// One element a row repeated over the row's packed entries.
pub fn row_expand(x: &[u64], lens: &[u32]) -> Result<Vec<u64>> {
    if x.len() != lens.len() {
        return Err(not_packed(lens.len(), x.len()));
    }
    Ok(x.iter().zip(lens).flat_map(|(x, len)| std::iter::repeat_n(*x, *len as usize)).collect())
}

/// Size of an axis and number of elements behind one position of it.
fn split(x: &[u64], shape: &[usize], axis: usize) -> Result<(usize, usize)> {
    fills(x, shape)?;
    match shape.get(axis) {
        Some(&size) => Ok((size, volume(&shape[axis + 1..])?)),
        None => Err(bad_axis(axis, shape)),
    }
}

fn fills(x: &[u64], shape: &[usize]) -> Result<()> {
    if volume(shape)? == x.len() {
        return Ok(());
    }
    Err(Diagnostic::internal("E0804", "a tensor's words do not fill its shape")
        .note(format!("expected  shape {shape:?}"))
        .note(format!("found     {} words", x.len())))
}

fn bad_axis(axis: usize, shape: &[usize]) -> Diagnostic {
    Diagnostic::internal("E0804", format!("axis {axis} does not fit shape {shape:?}"))
}

fn not_packed(expected: usize, found: usize) -> Diagnostic {
    Diagnostic::internal("E0804", "packed entries do not match their mask")
        .note(format!("expected  {expected} elements"))
        .note(format!("found     {found} elements"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(n: u64) -> Vec<u64> {
        (0..n).collect()
    }

    #[test]
    fn axes_are_permuted() {
        assert_eq!(transpose(&iota(6), &[2, 3], &[1, 0]).unwrap(), [0, 3, 1, 4, 2, 5]);
        let x = iota(24);
        let y = transpose(&x, &[2, 3, 4], &[2, 0, 1]).unwrap();
        for (i, j, k) in (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| (i, j, k)))) {
            assert_eq!(y[(k * 2 + i) * 3 + j], x[(i * 3 + j) * 4 + k]);
        }
        assert!(transpose(&[], &[0, 3], &[1, 0]).unwrap().is_empty());
        assert!(transpose(&iota(6), &[2, 3], &[0, 2]).is_err());
        assert!(transpose(&iota(6), &[2, 3], &[0, 0]).is_err());
    }

    #[test]
    fn parts_are_taken_and_joined() {
        assert_eq!(slice(&iota(12), &[2, 3, 2], 1, 1, 2).unwrap(), [2, 3, 4, 5, 8, 9, 10, 11]);
        assert!(slice(&iota(6), &[2, 3], 1, 2, 2).is_err());
        let (left, right) = (iota(4), [10, 11]);
        assert_eq!(concat(&[(&left, &[2, 2]), (&right, &[2, 1])], 1).unwrap(), [0, 1, 10, 2, 3, 11]);
        assert_eq!(concat(&[(&left, &[2, 2]), (&[], &[0, 2])], 0).unwrap(), [0, 1, 2, 3]);
        assert_eq!(gather(&iota(6), &[3, 2], 0, &[2, 0, -1]).unwrap(), [4, 5, 0, 1, 4, 5]);
        assert_eq!(gather(&iota(6), &[3, 2], 1, &[1]).unwrap(), [1, 3, 5]);
        assert_eq!(gather(&iota(6), &[3, 2], 0, &[3]).unwrap_err().code, "E0806");
        assert_eq!(gather(&iota(6), &[3, 2], 0, &[-4]).unwrap_err().code, "E0806");
    }

    #[test]
    fn axes_are_summed() {
        assert_eq!(reduce_sum(&iota(6), &[2, 3], 1).unwrap(), [3, 12]);
        assert_eq!(reduce_sum(&iota(6), &[2, 3], 0).unwrap(), [3, 5, 7]);
        assert_eq!(reduce_sum(&[u64::MAX, 2], &[2], 0).unwrap(), [1]);
        assert_eq!(reduce_sum(&[], &[2, 0], 1).unwrap(), [0, 0]);
    }

    #[test]
    fn ragged_rows() {
        let keep = [0, 2, 5];
        let packed = pack(&iota(6), &keep).unwrap();
        assert_eq!(packed, [0, 2, 5]);
        assert_eq!(unpack(&packed, &keep, 6).unwrap(), [0, 0, 2, 0, 0, 5]);
        assert_eq!(row_sum(&packed, &[2, 0, 1]).unwrap(), [2, 0, 5]);
        assert_eq!(row_expand(&[7, 8, 9], &[2, 0, 1]).unwrap(), [7, 7, 9]);
        assert!(pack(&iota(5), &keep).is_err());
        assert!(unpack(&iota(2), &keep, 6).is_err());
        assert!(unpack(&iota(3), &keep, 5).is_err());
        assert!(row_sum(&packed, &[2, 2]).is_err());
        assert!(row_expand(&[7], &[1, 1]).is_err());
    }
}
