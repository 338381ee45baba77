//! Local movement: the same elements at other places.

use super::{RefData, RefValue, filled, mismatch, reserve, volume};
use crate::diag::{Diagnostic, Result};
use std::borrow::Cow;

/// Applies a movement of elements of any kind.
macro_rules! each_kind {
    ($x:expr, $shape:expr, |$values:ident| $body:expr) => {
        match &$x.data {
            RefData::Ring { bits, values: $values } => {
                let (bits, moved) = (*bits, $body);
                RefValue::ring(bits, $shape, moved)
            }
            RefData::Bit($values) => {
                let moved = $body;
                RefValue::bit($shape, moved)
            }
            RefData::Plain(_) => Err(mismatch("expected ring elements or bits")),
        }
    };
}
pub(super) use each_kind;

pub(crate) fn reshape(x: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
    each_kind!(x, shape, |values| values.clone())
}

pub(crate) fn transpose(x: &RefValue, perm: &[u8], shape: Vec<usize>) -> Result<RefValue> {
    let own = strides(&x.shape);
    let picked: Vec<_> = perm.iter().filter_map(|p| own.get(usize::from(*p)).copied()).collect();
    each_kind!(x, shape, |values| strided(values, &shape, &picked, 0)?)
}

pub(crate) fn slice(x: &RefValue, axis: usize, start: usize, shape: Vec<usize>) -> Result<RefValue> {
    let own = strides(&x.shape);
    let step = *own.get(axis).ok_or_else(|| mismatch(format!("axis {axis} of {:?}", x.shape)))?;
    let offset = start.checked_mul(step).ok_or_else(|| mismatch("start is out of range"))?;
    let end = shape.get(axis).and_then(|len| len.checked_add(start));
    if end.is_none_or(|end| x.shape.get(axis).is_none_or(|size| end > *size)) {
        return Err(mismatch(format!("a slice from {start} of {:?} to {shape:?}", x.shape)));
    }
    each_kind!(x, shape, |values| strided(values, &shape, &own, offset)?)
}

pub(crate) fn expand(x: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
    let own = broadcast_strides(&x.shape, &shape)?;
    each_kind!(x, shape, |values| strided(values, &shape, &own, 0)?)
}

pub(crate) fn concat(parts: &[&RefValue], axis: usize, shape: Vec<usize>) -> Result<RefValue> {
    let [first, ..] = parts else { return Err(mismatch("no operand of concat")) };
    let outer = volume(shape.get(..axis).unwrap_or(&[]))?;
    let len = volume(&shape)?;
    match &first.data {
        RefData::Ring { bits, .. } => {
            let own = parts.iter().map(|p| p.as_ring().map(|(_, v)| v)).collect::<Result<Vec<_>>>()?;
            RefValue::ring(*bits, shape, side_by_side(&own, outer, len)?)
        }
        RefData::Bit(_) => {
            let own = parts.iter().map(|p| p.as_bits()).collect::<Result<Vec<_>>>()?;
            RefValue::bit(shape, side_by_side(&own, outer, len)?)
        }
        RefData::Plain(_) => Err(mismatch("expected ring elements or bits")),
    }
}

fn side_by_side<T: Copy>(parts: &[&[T]], outer: usize, len: usize) -> Result<Vec<T>> {
    let mut out = reserve(len)?;
    for i in 0..outer {
        for part in parts {
            let block = part.len() / outer;
            out.extend_from_slice(part.get(i * block..(i + 1) * block).unwrap_or(&[]));
        }
    }
    Ok(out)
}

/// Rows of `x` along an axis; a negative index counts from the end.
pub(crate) fn gather(x: &RefValue, index: &[i64], axis: usize, shape: Vec<usize>) -> Result<RefValue> {
    let size = *x.shape.get(axis).ok_or_else(|| mismatch(format!("axis {axis} of {:?}", x.shape)))?;
    let rows = index.iter().map(|i| row(*i, size)).collect::<Result<Vec<usize>>>()?;
    let outer = volume(x.shape.get(..axis).unwrap_or(&[]))?;
    let inner = volume(x.shape.get(axis + 1..).unwrap_or(&[]))?;
    let len = volume(&shape)?;
    each_kind!(x, shape, |values| {
        let mut out = reserve(len)?;
        for i in 0..outer {
            for row in &rows {
                let at = (i * size + row) * inner;
                out.extend_from_slice(values.get(at..at + inner).unwrap_or(&[]));
            }
        }
        out
    })
}

fn row(index: i64, size: usize) -> Result<usize> {
    let from_end = i64::try_from(size).ok().and_then(|s| index.checked_add(s));
    let at = if index < 0 { from_end } else { Some(index) };
    at.and_then(|i| usize::try_from(i).ok()).filter(|i| *i < size).ok_or_else(|| {
        Diagnostic::input("E0383", format!("the index {index} is out of range")).note(format!("expected 0 to {size}"))
    })
}

/// Row-major strides.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut step = 1usize;
    let mut out: Vec<_> = shape
        .iter()
        .rev()
        .map(|d| {
            let own = step;
            step = step.saturating_mul(*d);
            own
        })
        .collect();
    out.reverse();
    out
}

/// Strides that read a tensor of shape `own` as one of `shape`: zero on broadcast axes.
pub(crate) fn broadcast_strides(own: &[usize], shape: &[usize]) -> Result<Vec<usize>> {
    let wrong = || mismatch(format!("the shape {own:?} does not broadcast to {shape:?}"));
    let lead = shape.len().checked_sub(own.len()).ok_or_else(wrong)?;
    let mut out = vec![0; lead];
    for ((step, d), size) in strides(own).into_iter().zip(own).zip(shape.iter().skip(lead)) {
        if d != size && *d != 1 {
            return Err(wrong());
        }
        out.push(if *d == 1 { 0 } else { step });
    }
    Ok(out)
}

/// The elements at `offset + Σ index · step` for every index of `shape`, in row-major order.
pub(crate) fn strided<T: Copy + Default + Send + Sync>(
    values: &[T],
    shape: &[usize],
    steps: &[usize],
    offset: usize,
) -> Result<Vec<T>> {
    let mut out = filled(T::default(), volume(shape)?)?;
    let outside = |_| mismatch("an element is outside of its operand");
    let steps = steps.iter().map(|s| isize::try_from(*s)).collect::<std::result::Result<Vec<_>, _>>();
    crate::strided::fill(values, &mut out, shape, &steps.map_err(outside)?, isize::try_from(offset).map_err(outside)?)?;
    Ok(out)
}

/// The elements of a value of shape `own`, broadcast to `shape`; borrowed where nothing is broadcast.
pub(crate) fn broadcast<'a, T: Copy + Default + Send + Sync>(
    values: &'a [T],
    own: &[usize],
    shape: &[usize],
) -> Result<Cow<'a, [T]>> {
    if own == shape {
        return Ok(Cow::Borrowed(values));
    }
    Ok(Cow::Owned(strided(values, shape, &broadcast_strides(own, shape)?, 0)?))
}
