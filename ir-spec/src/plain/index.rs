//! Operators whose indices are data: the gathers and the scatter. Negative indices count from the end.

use super::infer::mismatch;
use super::movement::{select, split_at, strides};
use super::tensor::volume;
use super::{Data, Tensor};
use crate::Result;

fn resolve(op: &str, index: i64, size: usize) -> Result<usize> {
    let outside = || mismatch(op, format!("index {index} of an axis of size {size}"));
    let at = if index < 0 { index.checked_add_unsigned(size as u64).ok_or_else(outside)? } else { index };
    usize::try_from(at).ok().filter(|i| *i < size).ok_or_else(outside)
}

/// The shape of `gather`.
pub(super) fn gather_shape(x: &Tensor, at: &Tensor, axis: usize) -> Result<Vec<usize>> {
    split_at("gather", x.shape(), axis)?;
    let (head, tail) = x.shape().split_at(axis);
    Ok(head.iter().chain(at.shape()).chain(tail.iter().skip(1)).copied().collect())
}

pub(super) fn gather(x: &Tensor, at: &Tensor, axis: usize) -> Result<Tensor> {
    let (outer, size, inner) = split_at("gather", x.shape(), axis)?;
    let rows = at.as_i64()?.iter().map(|i| resolve("gather", *i, size)).collect::<Result<Vec<_>>>()?;
    // Sizes of a tensor without elements say nothing about the work.
    let outer = if rows.is_empty() || inner == 0 { 0 } else { outer };
    let indices = (0..outer).flat_map(|o| rows.iter().map(move |r| (o * size + r) * inner));
    let data = select(x.data(), indices.flat_map(|base| base..base + inner), "gather")?;
    Tensor::new(gather_shape(x, at, axis)?, data)
}

/// The shape of `gather_nd`.
pub(super) fn gather_nd_shape(x: &Tensor, at: &Tensor, batch_dims: usize) -> Result<Vec<usize>> {
    let (tuple, lead) = at.shape().split_last().ok_or_else(|| mismatch("gather_nd", "indices without axes"))?;
    let skip = batch_dims.checked_add(*tuple).filter(|s| *s <= x.rank() && batch_dims <= lead.len());
    let skip = skip.ok_or_else(|| mismatch("gather_nd", "index tuples are too long"))?;
    if x.shape().get(..batch_dims) != lead.get(..batch_dims) {
        return Err(mismatch("gather_nd", "batch sizes differ"));
    }
    Ok(lead.iter().chain(x.shape().iter().skip(skip)).copied().collect())
}

/// Flat starts of the slices that index tuples point at, and the length of a slice.
fn tuple_starts(op: &str, shape: &[usize], at: &Tensor, batch_dims: usize) -> Result<(Vec<usize>, usize)> {
    let tuple = at.shape().last().copied().unwrap_or(0);
    let batch = volume(shape.get(..batch_dims).unwrap_or(&[]))?;
    let item = shape.get(batch_dims..).unwrap_or(&[]);
    let item_len = volume(item)?;
    let slice = volume(item.get(tuple..).unwrap_or(&[]))?;
    if slice == 0 {
        return Ok((Vec::new(), 0));
    }
    let steps = strides(item);
    let lead = at.shape().split_last().map_or(&[][..], |(_, lead)| lead);
    let tuples = volume(lead)?;
    let per_batch = tuples.checked_div(batch).unwrap_or(0);
    let values = at.as_i64()?;
    let mut starts = Vec::with_capacity(tuples);
    for t in 0..tuples {
        let indices = values.get(t * tuple..(t + 1) * tuple).unwrap_or(&[]);
        let mut start = t.checked_div(per_batch).unwrap_or(0) * item_len;
        for ((index, size), step) in indices.iter().zip(item).zip(&steps) {
            start += resolve(op, *index, *size)? * step.unsigned_abs();
        }
        starts.push(start);
    }
    Ok((starts, slice))
}

pub(super) fn gather_nd(x: &Tensor, at: &Tensor, batch_dims: usize) -> Result<Tensor> {
    let shape = gather_nd_shape(x, at, batch_dims)?;
    let (starts, len) = tuple_starts("gather_nd", x.shape(), at, batch_dims)?;
    let data = select(x.data(), starts.into_iter().flat_map(|s| s..s + len), "gather_nd")?;
    Tensor::new(shape, data)
}

pub(super) fn gather_elements(x: &Tensor, at: &Tensor, axis: usize) -> Result<Tensor> {
    let (_, size, _) = split_at("gather_elements", x.shape(), axis)?;
    let fits =
        x.rank() == at.rank() && x.shape().iter().zip(at.shape()).enumerate().all(|(i, (d, n))| i == axis || n <= d);
    if !fits {
        let what = format!("indices of shape {:?} into {:?}", at.shape(), x.shape());
        return Err(mismatch("gather_elements", what));
    }
    let steps = strides(x.shape());
    let mut indices = Vec::with_capacity(at.len());
    for (flat, index) in at.as_i64()?.iter().enumerate() {
        let mut rest = flat;
        let mut offset = 0;
        for (i, (n, step)) in at.shape().iter().zip(&steps).enumerate().rev() {
            let coordinate = if i == axis { resolve("gather_elements", *index, size)? } else { rest % n };
            offset += coordinate * step.unsigned_abs();
            rest /= n;
        }
        indices.push(offset);
    }
    Tensor::new(at.shape().to_vec(), select(x.data(), indices.into_iter(), "gather_elements")?)
}

pub(super) fn scatter_nd(x: &Tensor, at: &Tensor, update: &Tensor) -> Result<Tensor> {
    if gather_nd_shape(x, at, 0)? != update.shape() {
        return Err(mismatch("scatter_nd", format!("updates of shape {:?}", update.shape())));
    }
    let (starts, len) = tuple_starts("scatter_nd", x.shape(), at, 0)?;
    fn put<T: Copy>(x: &[T], update: &[T], starts: &[usize], len: usize) -> Vec<T> {
        let mut out = x.to_vec();
        for (k, start) in starts.iter().enumerate() {
            if let (Some(to), Some(from)) = (out.get_mut(*start..start + len), update.get(k * len..(k + 1) * len)) {
                to.copy_from_slice(from);
            }
        }
        out
    }
    let data = match (x.data(), update.data()) {
        (Data::F32(a), Data::F32(b)) => Data::F32(put(a, b, &starts, len)),
        (Data::I64(a), Data::I64(b)) => Data::I64(put(a, b, &starts, len)),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(put(a, b, &starts, len)),
        _ => return Err(mismatch("scatter_nd", "operands of different types")),
    };
    Tensor::new(x.shape().to_vec(), data)
}
