//! The meaning of each operator on tensors.
//!
//! No result has more than a given number of elements, and sizes are checked before anything is allocated.

use super::infer::mismatch;
use super::tensor::volume;
use super::{Binary, DType, Data, Op, Tensor, elementwise, index, movement, reduce};
use crate::dim::{Bindings, Dim};
use crate::{Diagnostic, Result};

/// Elements a result may have when nothing else is said.
pub const DEFAULT_LIMIT: usize = 1 << 28;

/// The result of `op` on `operands`, with `bindings` for symbolic attributes and at most `limit` elements.
///
/// Errors: a wrong number or type of operands, shapes that do not fit, an index out of range, an integer division
/// by zero, a symbol without a value, a result beyond the limit.
pub fn eval(op: &Op, operands: &[&Tensor], bindings: &Bindings, limit: usize) -> Result<Tensor> {
    let name = op.name();
    if op.arity().map_or(operands.is_empty(), |n| n != operands.len()) {
        return Err(mismatch(name, format!("{} operands", operands.len())));
    }
    let sizes = |dims: &[Dim]| dims.iter().map(|d| d.eval_usize(bindings)).collect::<Result<Vec<_>>>();
    let bounded = |shape: &[usize]| check_limit(name, shape, limit);
    match (op, operands) {
        (Op::Constant(tensor), _) => Ok(tensor.clone()),
        (Op::Sizes { shape, values }, _) => {
            let value = |d: &Dim| {
                i64::try_from(d.eval_signed(bindings)?).map_err(|_| mismatch(name, "a size is beyond 64 bits"))
            };
            Tensor::i64(shape, values.iter().map(value).collect::<Result<_>>()?)
        }
        (Op::Iota { start, len, step }, _) => {
            let len = len.eval_usize(bindings)?;
            bounded(&[len])?;
            let start = start.eval_signed(bindings)?;
            let at = |i: usize| i64::try_from(start.checked_add(i as i128 * i128::from(*step))?).ok();
            let data: Option<Vec<_>> = (0..len).map(at).collect();
            Tensor::i64(&[len], data.ok_or_else(|| mismatch(name, "an element is beyond 64 bits"))?)
        }
        (Op::ConstantOfShape { shape, value }, _) => {
            let shape = sizes(shape)?;
            let n = bounded(&shape)?;
            let data = movement::select(value.data(), std::iter::repeat_n(0, n), name)?;
            Tensor::new(shape, data)
        }
        (Op::Range, [start, limit_, step]) => range(start, limit_, step, limit),
        (Op::Identity, [x]) => Ok((*x).clone()),
        (Op::Cast { to }, [x]) => cast(x, *to),
        (Op::Reshape { shape }, [x]) => {
            let shape = sizes(shape)?;
            if volume(&shape)? != x.len() {
                return Err(mismatch(name, format!("{} elements do not fit the shape {shape:?}", x.len())));
            }
            (*x).clone().with_shape(shape)
        }
        (Op::Expand { shape }, [x]) => {
            let shape = sizes(shape)?;
            bounded(&shape)?;
            movement::expand(x, &shape)
        }
        (Op::Transpose { perm }, [x]) => movement::transpose(x, perm),
        (Op::Concat { axis }, parts) => {
            let total = parts.iter().try_fold(0usize, |n, t| n.checked_add(t.len()));
            bounded(&[total.ok_or_else(|| mismatch(name, "too many elements"))?])?;
            movement::concat(parts, *axis)
        }
        (Op::Slice { axis, start, len, step }, [x]) => {
            let len = len.eval_usize(bindings)?;
            movement::slice(x, *axis, start.eval_signed(bindings)?, len, *step)
        }
        (Op::Tile { repeats }, [x]) => {
            let repeats = sizes(repeats)?;
            if repeats.len() != x.rank() {
                return Err(mismatch(name, "one number of repetitions an axis"));
            }
            let pairs = x.shape().iter().zip(&repeats).map(|(d, r)| d.checked_mul(*r));
            let shape = pairs.collect::<Option<Vec<_>>>().ok_or_else(|| mismatch(name, "too many elements"))?;
            bounded(&shape)?;
            movement::tile(x, &shape)
        }
        (Op::Trilu { upper, k }, [x]) => movement::trilu(x, *upper, *k),
        (Op::Gather { axis }, [x, at]) => {
            bounded(&index::gather_shape(x, at, *axis)?)?;
            index::gather(x, at, *axis)
        }
        (Op::GatherNd { batch_dims }, [x, at]) => {
            bounded(&index::gather_nd_shape(x, at, *batch_dims)?)?;
            index::gather_nd(x, at, *batch_dims)
        }
        (Op::GatherElements { axis }, [x, at]) => index::gather_elements(x, at, *axis),
        (Op::ScatterNd, [x, at, update]) => index::scatter_nd(x, at, update),
        (Op::Unary(u), [x]) => elementwise::unary(*u, x),
        (Op::Binary(b), [x, y]) => {
            bounded(&movement::broadcast_shape(name, x.shape(), y.shape())?)?;
            elementwise::binary(*b, x, y)
        }
        (Op::Where, [c, x, y]) => {
            let shape = movement::broadcast_shape(name, x.shape(), y.shape())?;
            let shape = movement::broadcast_shape(name, &shape, c.shape())?;
            bounded(&shape)?;
            elementwise::select(c, x, y, &shape)
        }
        (Op::Clip, [x, low, high]) => {
            if low.len() != 1 || high.len() != 1 {
                return Err(mismatch(name, "limits are not one element each"));
            }
            let shape = x.shape().to_vec();
            let scalar = |t: &Tensor| t.clone().with_shape(Vec::new());
            let raised = elementwise::binary(Binary::Max, x, &scalar(low)?)?;
            elementwise::binary(Binary::Min, &raised, &scalar(high)?)?.with_shape(shape)
        }
        (Op::MatMul, [x, y]) => {
            bounded(&reduce::matmul_shape(x.shape(), y.shape())?)?;
            reduce::matmul(x, y)
        }
        (Op::CumSum { axis, exclusive, reverse }, [x]) => reduce::cum_sum(x, *axis, *exclusive, *reverse),
        (Op::Reduce { kind, axes, keepdims }, [x]) => {
            let shape = reduce::reduced_shape(x.shape(), axes, true)?;
            bounded(&shape)?;
            reduce::reduce(*kind, x, axes, *keepdims)
        }
        (Op::ArgMax, [x]) => reduce::arg_max(x),
        _ => Err(mismatch(name, format!("{} operands", operands.len()))),
    }
}

fn check_limit(name: &str, shape: &[usize], limit: usize) -> Result<usize> {
    let n = volume(shape)?;
    if n > limit {
        return Err(Diagnostic::input("E0213", format!("{name}: a result of shape {shape:?} is too large"))
            .note(format!("expected at most {limit} elements, found {n}")));
    }
    Ok(n)
}

fn range(start: &Tensor, end: &Tensor, step: &Tensor, limit: usize) -> Result<Tensor> {
    let wrong = |what| mismatch("range", what);
    if [start, end, step].iter().any(|t| t.len() != 1) {
        return Err(wrong("expected three scalars"));
    }
    match (start.data(), end.data(), step.data()) {
        (Data::I64(a), Data::I64(b), Data::I64(s)) => {
            let (a, b, s) = (i128::from(first(a)?), i128::from(first(b)?), i128::from(first(s)?));
            if s == 0 {
                return Err(wrong("step 0"));
            }
            let span = if s > 0 { b - a } else { a - b };
            let n = usize::try_from((span.max(0) + s.abs() - 1) / s.abs()).map_err(|_| wrong("too long"))?;
            check_limit("range", &[n], limit)?;
            // Every element lies between start and limit, so it fits.
            let at = |i: usize| i64::try_from(a + i as i128 * s).map_err(|_| wrong("an element is beyond 64 bits"));
            Tensor::i64(&[n], (0..n).map(at).collect::<Result<_>>()?)
        }
        (Data::F32(a), Data::F32(b), Data::F32(s)) => {
            let (a, b, s) = (first(a)?, first(b)?, first(s)?);
            let n = ((f64::from(b) - f64::from(a)) / f64::from(s)).ceil().max(0.0);
            if !n.is_finite() || n > limit as f64 {
                return Err(wrong("too long"));
            }
            let n = n as usize;
            Tensor::f32(&[n], (0..n).map(|i| a + i as f32 * s).collect())
        }
        _ => Err(wrong("operands of different types")),
    }
}

fn first<T: Copy>(values: &[T]) -> Result<T> {
    values.first().copied().ok_or_else(|| mismatch("range", "expected a scalar"))
}

fn cast(x: &Tensor, to: DType) -> Result<Tensor> {
    let data = match (x.data(), to) {
        (Data::F32(v), DType::I64) => Data::I64(v.iter().map(|x| *x as i64).collect()),
        (Data::F32(v), DType::Bool) => Data::Bool(v.iter().map(|x| *x != 0.0).collect()),
        (Data::I64(v), DType::F32) => Data::F32(v.iter().map(|x| *x as f32).collect()),
        (Data::I64(v), DType::Bool) => Data::Bool(v.iter().map(|x| *x != 0).collect()),
        (Data::Bool(v), DType::F32) => Data::F32(v.iter().map(|x| f32::from(u8::from(*x))).collect()),
        (Data::Bool(v), DType::I64) => Data::I64(v.iter().map(|x| i64::from(*x)).collect()),
        (same, _) => same.clone(),
    };
    Tensor::new(x.shape().to_vec(), data)
}

#[cfg(test)]
#[path = "eval_tests.rs"]
mod tests;
