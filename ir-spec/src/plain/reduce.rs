//! Operators that sum: products of matrices, running sums and reductions. Sums run in ascending index order.

use super::infer::mismatch;
use super::movement::{broadcast_shape, broadcast_walk, split_at, strides};
use super::tensor::volume;
use super::{Data, Reduce, Tensor};
use crate::Result;
use ombra_kernels::float;
use rayon::prelude::*;

/// A matrix operand: batch sizes, rows, columns, and the shape as given.
struct Matrix<'a> {
    batch: &'a [usize],
    rows: usize,
    cols: usize,
}

fn matrices<'a>(a: &'a [usize], b: &'a [usize]) -> Result<(Matrix<'a>, Matrix<'a>)> {
    let left = match a {
        [batch @ .., rows, cols] => Matrix { batch, rows: *rows, cols: *cols },
        [cols] => Matrix { batch: &[], rows: 1, cols: *cols },
        [] => return Err(mismatch("matmul", "an operand has no axes")),
    };
    let right = match b {
        [batch @ .., rows, cols] => Matrix { batch, rows: *rows, cols: *cols },
        [rows] => Matrix { batch: &[], rows: *rows, cols: 1 },
        [] => return Err(mismatch("matmul", "an operand has no axes")),
    };
    if left.cols != right.rows {
        return Err(mismatch("matmul", format!("shapes {a:?} and {b:?}")));
    }
    Ok((left, right))
}

/// The shape of the product.
pub(super) fn matmul_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let (left, right) = matrices(a, b)?;
    let mut shape = broadcast_shape("matmul", left.batch, right.batch)?;
    if a.len() > 1 {
        shape.push(left.rows);
    }
    if b.len() > 1 {
        shape.push(right.cols);
    }
    Ok(shape)
}

pub(super) fn matmul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (left, right) = matrices(x.shape(), y.shape())?;
    let shape = matmul_shape(x.shape(), y.shape())?;
    let batch = broadcast_shape("matmul", left.batch, right.batch)?;
    let pairs: Vec<(usize, usize)> = match volume(&shape)? {
        // Sizes of a tensor without elements say nothing about the work.
        0 => Vec::new(),
        _ => {
            broadcast_walk("matmul", left.batch, &batch)?.zip(broadcast_walk("matmul", right.batch, &batch)?).collect()
        }
    };
    let data = match (x.data(), y.data()) {
        (Data::F32(a), Data::F32(b)) => Data::F32(product(a, b, &left, &right, &pairs, float::matmul_acc)),
        (Data::I64(a), Data::I64(b)) => Data::I64(product(a, b, &left, &right, &pairs, integer_product)),
        _ => return Err(mismatch("matmul", "operands of the wrong type")),
    };
    Tensor::new(shape, data)
}

/// The products of the matrices that `pairs` number. `acc(a, b, c, k, m)` adds the product of `a` with `k` columns and `b`
/// with `m` columns to `c`.
fn product<T: Copy + Default + Send + Sync>(
    a: &[T],
    b: &[T],
    left: &Matrix,
    right: &Matrix,
    pairs: &[(usize, usize)],
    acc: impl Fn(&[T], &[T], &mut [T], usize, usize) + Sync,
) -> Vec<T> {
    let (n, k, m) = (left.rows, left.cols, right.cols);
    if pairs.is_empty() {
        return Vec::new();
    }
    let mut out = vec![T::default(); pairs.len() * n * m];
    if k == 0 {
        return out;
    }
    // One matrix for all products: their rows are rows of one product.
    if let [(0, j), rest @ ..] = pairs
        && rest.iter().zip(1..).all(|(pair, i)| *pair == (i, *j))
        && let (Some(a), Some(b)) = (a.get(..pairs.len() * n * k), b.get(j * k * m..(j + 1) * k * m))
    {
        acc(a, b, &mut out, k, m);
        return out;
    }
    out.par_chunks_exact_mut(n * m).zip(pairs).for_each(|(block, (i, j))| {
        if let (Some(a), Some(b)) = (a.get(i * n * k..(i + 1) * n * k), b.get(j * k * m..(j + 1) * k * m)) {
            acc(a, b, block, k, m);
        }
    });
    out
}

fn integer_product(a: &[i64], b: &[i64], c: &mut [i64], k: usize, m: usize) {
    for (row, sums) in a.chunks_exact(k).zip(c.chunks_exact_mut(m)) {
        for (x, line) in row.iter().zip(b.chunks_exact(m)) {
            sums.iter_mut().zip(line).for_each(|(sum, y)| *sum = sum.wrapping_add(x.wrapping_mul(*y)));
        }
    }
}

pub(super) fn cum_sum(x: &Tensor, axis: usize, exclusive: bool, reverse: bool) -> Result<Tensor> {
    let (outer, size, inner) = split_at("cum_sum", x.shape(), axis)?;
    let data = match x.data() {
        Data::F32(v) => Data::F32(running(v, [outer, size, inner], exclusive, reverse, |a, b| a + b)),
        Data::I64(v) => Data::I64(running(v, [outer, size, inner], exclusive, reverse, i64::wrapping_add)),
        Data::Bool(_) => return Err(mismatch("cum_sum", "operand of the wrong type")),
    };
    Tensor::new(x.shape().to_vec(), data)
}

fn running<T: Copy + Default>(
    v: &[T],
    [outer, size, inner]: [usize; 3],
    exclusive: bool,
    reverse: bool,
    add: impl Fn(T, T) -> T,
) -> Vec<T> {
    let mut out = v.to_vec();
    if v.is_empty() {
        return out;
    }
    for o in 0..outer {
        for i in 0..inner {
            let mut sum = T::default();
            for step in 0..size {
                let s = if reverse { size - 1 - step } else { step };
                if let Some(slot) = out.get_mut((o * size + s) * inner + i) {
                    let next = add(sum, *slot);
                    *slot = if exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
    }
    out
}

/// The shape of a reduction over ascending `axes`.
pub(super) fn reduced_shape(shape: &[usize], axes: &[usize], keepdims: bool) -> Result<Vec<usize>> {
    if axes.iter().any(|a| *a >= shape.len()) || !axes.windows(2).all(|w| matches!(w, [a, b] if a < b)) {
        return Err(mismatch("reduce", format!("axes {axes:?} of shape {shape:?}")));
    }
    let kept = |(i, d): (usize, &usize)| match (axes.contains(&i), keepdims) {
        (false, _) => Some(*d),
        (true, true) => Some(1),
        (true, false) => None,
    };
    Ok(shape.iter().enumerate().filter_map(kept).collect())
}

pub(super) fn reduce(kind: Reduce, x: &Tensor, axes: &[usize], keepdims: bool) -> Result<Tensor> {
    let kept = reduced_shape(x.shape(), axes, true)?;
    let n = volume(&kept)?;
    let steps = strides(&kept).into_iter().zip(&kept).map(|(s, d)| if *d == 1 { 0 } else { s }).collect();
    // For each element of x, in order, the result it belongs to.
    let targets = super::movement::Walk::new(x.shape(), steps, 0)?;
    let count = axes.iter().filter_map(|a| x.shape().get(*a)).fold(1usize, |n, d| n.saturating_mul(*d));
    let empty = || mismatch(kind.name(), "no element to reduce");
    // A maximum of nothing is the least number there is, a minimum the maximum.
    if count == 0 && n > 0 && kind == Reduce::Mean {
        return Err(empty());
    }
    let data = match x.data() {
        Data::F32(v) => {
            let mut out = match kind {
                Reduce::Sum | Reduce::Mean => fold(v, targets, vec![0.0; n], |a, b| a + b),
                Reduce::Prod => fold(v, targets, vec![1.0; n], |a, b| a * b),
                Reduce::Max => {
                    fold(v, targets, vec![f32::NEG_INFINITY; n], |a, b| if a.is_nan() || a > b { a } else { b })
                }
                Reduce::Min => fold(v, targets, vec![f32::INFINITY; n], |a, b| if a.is_nan() || a < b { a } else { b }),
            };
            if kind == Reduce::Mean {
                out.iter_mut().for_each(|x| *x /= count as f32);
            }
            Data::F32(out)
        }
        Data::I64(v) => {
            let mut out = match kind {
                Reduce::Sum | Reduce::Mean => fold(v, targets, vec![0; n], i64::wrapping_add),
                Reduce::Prod => fold(v, targets, vec![1; n], i64::wrapping_mul),
                Reduce::Max => fold(v, targets, vec![i64::MIN; n], i64::max),
                Reduce::Min => fold(v, targets, vec![i64::MAX; n], i64::min),
            };
            if kind == Reduce::Mean {
                let count = i64::try_from(count).ok().filter(|c| *c > 0).unwrap_or(1);
                out.iter_mut().for_each(|x| *x /= count);
            }
            Data::I64(out)
        }
        Data::Bool(v) => match kind {
            Reduce::Max => Data::Bool(fold(v, targets, vec![false; n], |a, b| a || b)),
            Reduce::Min => Data::Bool(fold(v, targets, vec![true; n], |a, b| a && b)),
            Reduce::Sum | Reduce::Mean | Reduce::Prod => {
                return Err(mismatch(kind.name(), "operand of the wrong type"));
            }
        },
    };
    Tensor::new(reduced_shape(x.shape(), axes, keepdims)?, data)
}

/// The index of the maximum element of every row, which is the last axis.
pub(super) fn arg_max(x: &Tensor) -> Result<Tensor> {
    let (columns, rows) = x.shape().split_last().ok_or_else(|| mismatch("arg_max", "a scalar"))?;
    let n = volume(rows)?;
    if *columns == 0 && n > 0 {
        return Err(mismatch("arg_max", "a row without elements"));
    }
    fn greatest<T: Copy + PartialOrd>(row: &[T]) -> i64 {
        let mut best = (0, row.first());
        for (i, v) in (0i64..).zip(row) {
            // What is no number is greater than any.
            if best.1.is_some_and(|b| b.partial_cmp(b).is_some() && (v > b || v.partial_cmp(v).is_none())) {
                best = (i, Some(v));
            }
        }
        best.0
    }
    let size = (*columns).max(1);
    let indices = match x.data() {
        Data::F32(v) => v.chunks_exact(size).map(greatest).collect(),
        Data::I64(v) => v.chunks_exact(size).map(greatest).collect(),
        Data::Bool(_) => return Err(mismatch("arg_max", "operand of the wrong type")),
    };
    Tensor::i64(rows, indices)
}

fn fold<T: Copy>(v: &[T], targets: impl Iterator<Item = usize>, mut out: Vec<T>, f: impl Fn(T, T) -> T) -> Vec<T> {
    for (x, target) in v.iter().zip(targets) {
        if let Some(slot) = out.get_mut(target) {
            *slot = f(*slot, *x);
        }
    }
    out
}
