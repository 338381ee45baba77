//! Operators that move elements: each is a sequence of flat indices into the operand.

use super::infer::mismatch;
use super::tensor::volume;
use super::{Data, Tensor};
use crate::Result;
use crate::strided;
use std::borrow::Cow;

/// The elements of `data` at `indices`.
pub(super) fn select(data: &Data, indices: impl Iterator<Item = usize>, op: &str) -> Result<Data> {
    fn pick<T: Copy>(v: &[T], indices: impl Iterator<Item = usize>) -> Option<Vec<T>> {
        indices.map(|i| v.get(i).copied()).collect()
    }
    let picked = match data {
        Data::F32(v) => pick(v, indices).map(Data::F32),
        Data::I64(v) => pick(v, indices).map(Data::I64),
        Data::Bool(v) => pick(v, indices).map(Data::Bool),
    };
    picked.ok_or_else(|| mismatch(op, "an index is out of range"))
}

/// The elements at `base + Σ coordinate·stride` for all coordinates of `shape`, in row-major order.
fn pick(x: &Tensor, shape: &[usize], strides: &[isize], base: isize, op: &str) -> Result<Tensor> {
    fn of<T: Copy + Default + Send + Sync>(v: &[T], shape: &[usize], strides: &[isize], base: isize) -> Option<Vec<T>> {
        let mut out = vec![T::default(); volume(shape).ok()?];
        strided::fill(v, &mut out, shape, strides, base).ok()?;
        Some(out)
    }
    let picked = match x.data() {
        Data::F32(v) => of(v, shape, strides, base).map(Data::F32),
        Data::I64(v) => of(v, shape, strides, base).map(Data::I64),
        Data::Bool(v) => of(v, shape, strides, base).map(Data::Bool),
    };
    Tensor::new(shape.to_vec(), picked.ok_or_else(|| mismatch(op, "an index is out of range"))?)
}

/// Flat indices `base + Σ coordinate·stride` for all coordinates of `shape`, in row-major order.
#[derive(Clone)]
pub(super) struct Walk {
    shape: Vec<usize>,
    strides: Vec<isize>,
    at: Vec<usize>,
    offset: isize,
    left: usize,
}

impl Walk {
    /// A walk over `shape`; `strides` has as many entries.
    pub(super) fn new(shape: &[usize], strides: Vec<isize>, base: isize) -> Result<Self> {
        let left = volume(shape)?;
        Ok(Walk { shape: shape.to_vec(), strides, at: vec![0; shape.len()], offset: base, left })
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        // A negative offset becomes an index that no tensor has, which `select` refuses.
        let result = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let axes = self.shape.iter().zip(&self.strides).zip(self.at.iter_mut()).rev();
        for ((size, stride), at) in axes {
            *at += 1;
            self.offset = self.offset.wrapping_add(*stride);
            if *at < *size {
                break;
            }
            self.offset = self.offset.wrapping_sub(stride.wrapping_mul(*size as isize));
            *at = 0;
        }
        Some(result)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Row-major strides of `shape`.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut out = vec![1isize; shape.len()];
    let mut step = 1isize;
    for (s, d) in out.iter_mut().zip(shape).rev() {
        *s = step;
        step = step.wrapping_mul(*d as isize);
    }
    out
}

/// The common shape of two operands: sizes are equal or one of them is 1.
pub(super) fn broadcast_shape(op: &str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let lead = long.len() - short.len();
    let mut out = long.to_vec();
    for (x, y) in out.iter_mut().skip(lead).zip(short) {
        if *x == 1 {
            *x = *y;
        } else if *x != *y && *y != 1 {
            return Err(mismatch(op, format!("shapes {a:?} and {b:?} do not broadcast")));
        }
    }
    Ok(out)
}

/// Strides that read a tensor of shape `from` as one of shape `to`: zero on axes that are broadcast.
fn broadcast_strides(op: &str, from: &[usize], to: &[usize]) -> Result<Vec<isize>> {
    if broadcast_shape(op, from, to)? != to {
        return Err(mismatch(op, format!("shape {from:?} does not broadcast to {to:?}")));
    }
    let lead = to.len() - from.len();
    let mut steps = vec![0isize; lead];
    steps.extend(strides(from).into_iter().zip(from).map(|(s, d)| if *d == 1 { 0 } else { s }));
    Ok(steps)
}

/// Flat indices into a tensor of shape `from`, broadcast to `to`.
pub(super) fn broadcast_walk(op: &str, from: &[usize], to: &[usize]) -> Result<Walk> {
    Walk::new(to, broadcast_strides(op, from, to)?, 0)
}

/// The elements of a tensor of shape `from`, broadcast to `to`; borrowed where nothing is broadcast.
pub(super) fn broadcast<'a, T: Copy + Default + Send + Sync>(
    op: &str,
    values: &'a [T],
    from: &[usize],
    to: &[usize],
) -> Result<Cow<'a, [T]>> {
    if from == to {
        return Ok(Cow::Borrowed(values));
    }
    let steps = broadcast_strides(op, from, to)?;
    let mut out = vec![T::default(); volume(to)?];
    strided::fill(values, &mut out, to, &steps, 0).map_err(|_| mismatch(op, "an index is out of range"))?;
    Ok(Cow::Owned(out))
}

pub(super) fn expand(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    pick(x, shape, &broadcast_strides("expand", x.shape(), shape)?, 0, "expand")
}

pub(super) fn transpose(x: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let mut seen = perm.to_vec();
    seen.sort_unstable();
    if !seen.iter().copied().eq(0..x.rank()) {
        return Err(mismatch("transpose", format!("{perm:?} is no permutation of {} axes", x.rank())));
    }
    let old = strides(x.shape());
    let shape: Vec<usize> = perm.iter().filter_map(|p| x.shape().get(*p).copied()).collect();
    let steps: Vec<isize> = perm.iter().filter_map(|p| old.get(*p).copied()).collect();
    pick(x, &shape, &steps, 0, "transpose")
}

/// Sizes before, at and after an axis: `(outer, size, inner)`.
pub(super) fn split_at(op: &str, shape: &[usize], axis: usize) -> Result<(usize, usize, usize)> {
    let size = *shape.get(axis).ok_or_else(|| mismatch(op, format!("axis {axis} of shape {shape:?}")))?;
    let (head, tail) = shape.split_at(axis);
    Ok((volume(head)?, size, volume(tail.get(1..).unwrap_or(&[]))?))
}

pub(super) fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let wrong = |what| mismatch("concat", what);
    let first = parts.first().ok_or_else(|| wrong("no operands"))?;
    let (outer, _, _) = split_at("concat", first.shape(), axis)?;
    let mut total = 0usize;
    let mut rows = Vec::with_capacity(parts.len());
    for part in parts {
        let same = part.rank() == first.rank()
            && part.dtype() == first.dtype()
            && part.shape().iter().zip(first.shape()).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !same {
            return Err(wrong("operands of different kinds"));
        }
        let (_, size, inner) = split_at("concat", part.shape(), axis)?;
        total = total.checked_add(size).ok_or_else(|| wrong("too long"))?;
        rows.push(size * inner);
    }
    let mut shape = first.shape().to_vec();
    if let Some(slot) = shape.get_mut(axis) {
        *slot = total;
    }
    fn join<T: Copy>(parts: &[&[T]], rows: &[usize], outer: usize) -> Vec<T> {
        let total = parts.iter().map(|p| p.len()).sum();
        let mut out = Vec::with_capacity(total);
        // Sizes of a tensor without elements say nothing about the work.
        let outer = if total == 0 { 0 } else { outer };
        for o in 0..outer {
            for (part, row) in parts.iter().zip(rows) {
                out.extend_from_slice(part.get(o * row..(o + 1) * row).unwrap_or(&[]));
            }
        }
        out
    }
    let data = match first.data() {
        Data::F32(_) => Data::F32(join(&parts.iter().map(|p| p.as_f32()).collect::<Result<Vec<_>>>()?, &rows, outer)),
        Data::I64(_) => Data::I64(join(&parts.iter().map(|p| p.as_i64()).collect::<Result<Vec<_>>>()?, &rows, outer)),
        Data::Bool(_) => {
            Data::Bool(join(&parts.iter().map(|p| p.as_bool()).collect::<Result<Vec<_>>>()?, &rows, outer))
        }
    };
    Tensor::new(shape, data)
}

pub(super) fn slice(x: &Tensor, axis: usize, start: i128, len: usize, step: i64) -> Result<Tensor> {
    let wrong = |what: String| mismatch("slice", what);
    let (_, size, _) = split_at("slice", x.shape(), axis)?;
    let last = (len as i128 - 1).checked_mul(step.into()).and_then(|span| span.checked_add(start));
    let inside = |i: i128| 0 <= i && i < size as i128;
    if step == 0 || (len > 0 && !(inside(start) && last.is_some_and(inside))) {
        return Err(wrong(format!("{len} indices from {start} by {step} of an axis of size {size}")));
    }
    let mut shape = x.shape().to_vec();
    if let Some(slot) = shape.get_mut(axis) {
        *slot = len;
    }
    let mut steps = strides(x.shape());
    let mut base = 0isize;
    if let Some(s) = steps.get_mut(axis) {
        // Within the tensor when there is an element at all.
        base = if len > 0 { s.wrapping_mul(start as isize) } else { 0 };
        *s = s.wrapping_mul(step as isize);
    }
    pick(x, &shape, &steps, base, "slice")
}

pub(super) fn tile(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let steps = strides(x.shape());
    let n = volume(shape)?;
    let mut at = vec![0usize; shape.len()];
    let mut indices = Vec::with_capacity(n);
    for _ in 0..n {
        let parts = at.iter().zip(x.shape()).zip(&steps);
        indices.push(parts.map(|((a, d), s)| (a % d) * s.unsigned_abs()).sum());
        for (a, d) in at.iter_mut().zip(shape).rev() {
            *a += 1;
            if *a < *d {
                break;
            }
            *a = 0;
        }
    }
    Tensor::new(shape.to_vec(), select(x.data(), indices.into_iter(), "tile")?)
}

pub(super) fn trilu(x: &Tensor, upper: bool, k: i64) -> Result<Tensor> {
    let (rows, cols) = match x.shape() {
        [.., rows, cols] => (*rows, *cols),
        _ => return Err(mismatch("trilu", "fewer than two axes")),
    };
    let keep = |i: usize| {
        let (row, col) = ((i / cols.max(1)) % rows.max(1), i % cols.max(1));
        let ahead = col as i128 - row as i128 - i128::from(k);
        if upper { ahead >= 0 } else { ahead <= 0 }
    };
    fn mask<T: Copy + Default>(v: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
        v.iter().enumerate().map(|(i, x)| if keep(i) { *x } else { T::default() }).collect()
    }
    let data = match x.data() {
        Data::F32(v) => Data::F32(mask(v, keep)),
        Data::I64(v) => Data::I64(mask(v, keep)),
        Data::Bool(v) => Data::Bool(mask(v, keep)),
    };
    Tensor::new(x.shape().to_vec(), data)
}
