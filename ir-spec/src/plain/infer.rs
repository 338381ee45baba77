//! Types of results: element type and symbolic shape, from those of the operands.

use super::{Binary, DType, Op, Reduce, Unary};
use crate::dim::Dim;
use crate::{Diagnostic, Result};

/// Element type and symbolic shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Vec<Dim>,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Type { dtype, shape }
    }
}

/// The error of a wrong operand, attribute or shape.
pub(crate) fn mismatch(op: &str, what: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::input("E0212", format!("{op}: {what}"))
}

/// The common shape of two operands: sizes are equal or one of them is 1.
///
/// A symbolic size broadcasts with nothing but itself and 1.
pub fn broadcast(op: &str, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let lead = long.len() - short.len();
    let mut out = long.to_vec();
    for (x, y) in out.iter_mut().skip(lead).zip(short) {
        if x.is(1) {
            *x = y.clone();
        } else if x != y && !y.is(1) {
            return Err(mismatch(op, "sizes of the operands differ and neither is 1"));
        }
    }
    Ok(out)
}

/// Product of sizes.
pub fn product(shape: &[Dim]) -> Result<Dim> {
    shape.iter().try_fold(Dim::constant(1), |p, d| p.mul(d))
}

/// The shape of `MatMul`.
pub fn matmul_shape(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let wrong = |what| mismatch("matmul", what);
    let (Some((a_inner, a_rest)), false) = (a.split_last(), b.is_empty()) else {
        return Err(wrong("an operand has no axes"));
    };
    let (b_batch, b_inner, b_cols) = match b {
        [inner] => (&[][..], inner, None),
        [batch @ .., inner, cols] => (batch, inner, Some(cols)),
        [] => return Err(wrong("an operand has no axes")),
    };
    if a_inner != b_inner {
        return Err(wrong("inner sizes of the operands differ"));
    }
    let (a_batch, a_rows) = match a_rest.split_last() {
        Some((rows, batch)) => (batch, Some(rows)),
        None => (&[][..], None),
    };
    let mut out = broadcast("matmul", a_batch, b_batch)?;
    out.extend(a_rows.cloned());
    out.extend(b_cols.cloned());
    Ok(out)
}

/// The shape of a reduction.
pub fn reduce_shape(shape: &[Dim], axes: &[usize], keepdims: bool) -> Result<Vec<Dim>> {
    if axes.iter().any(|a| *a >= shape.len()) || !axes.windows(2).all(|w| matches!(w, [a, b] if a < b)) {
        return Err(mismatch("reduce", format!("axes {axes:?} of {} axes", shape.len())));
    }
    let kept = |(i, d): (usize, &Dim)| match (axes.contains(&i), keepdims) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::constant(1)),
        (true, false) => None,
    };
    Ok(shape.iter().enumerate().filter_map(kept).collect())
}

/// The type of the result of `op`.
///
/// Errors: a wrong number or type of operands, an attribute out of range, shapes that do not fit.
pub fn infer(op: &Op, operands: &[&Type]) -> Result<Type> {
    let name = op.name();
    if op.arity().map_or(operands.is_empty(), |n| n != operands.len()) {
        return Err(mismatch(name, format!("{} operands", operands.len())));
    }
    let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(mismatch(name, what)) };
    match (op, operands) {
        (Op::Constant(tensor), _) => {
            let shape = tensor.shape().iter().map(|d| Dim::from_usize(*d)).collect::<Result<_>>()?;
            Ok(Type::new(tensor.dtype(), shape))
        }
        (Op::Sizes { shape, values }, _) => {
            need(super::tensor::volume(shape)? == values.len(), "number of values")?;
            Ok(Type::new(DType::I64, shape.iter().map(|d| Dim::from_usize(*d)).collect::<Result<_>>()?))
        }
        (Op::Iota { len, .. }, _) => Ok(Type::new(DType::I64, vec![len.clone()])),
        (Op::ConstantOfShape { shape, value }, _) => {
            need(value.len() == 1, "the fill value is not one element")?;
            Ok(Type::new(value.dtype(), shape.clone()))
        }
        (Op::Identity, [x]) => Ok((*x).clone()),
        (Op::Cast { to }, [x]) => Ok(Type::new(*to, x.shape.clone())),
        (Op::Reshape { shape }, [x]) => {
            let same = product(shape)? == product(&x.shape)?;
            need(same, "another number of elements than the new shape has")?;
            Ok(Type::new(x.dtype, shape.clone()))
        }
        (Op::Expand { shape }, [x]) => {
            need(broadcast(name, &x.shape, shape)? == *shape, "the operand has more axes or larger sizes")?;
            Ok(Type::new(x.dtype, shape.clone()))
        }
        (Op::Transpose { perm }, [x]) => {
            let mut seen = perm.clone();
            seen.sort_unstable();
            need(seen.iter().copied().eq(0..x.shape.len()), "not a permutation of the axes")?;
            Ok(Type::new(x.dtype, perm.iter().filter_map(|p| x.shape.get(*p).cloned()).collect()))
        }
        (Op::Concat { axis }, [first, rest @ ..]) => {
            let mut out = (*first).clone();
            need(*axis < out.shape.len(), "axis out of range")?;
            for other in rest {
                need(other.dtype == out.dtype && other.shape.len() == out.shape.len(), "operands of different kinds")?;
                for (i, (x, y)) in out.shape.iter_mut().zip(&other.shape).enumerate() {
                    if i == *axis {
                        *x = x.add(y)?;
                    } else {
                        need(x == y, "sizes of the operands differ beside the axis that joins them")?;
                    }
                }
            }
            Ok(out)
        }
        (Op::Slice { axis, len, step, .. }, [x]) => {
            need(*step != 0, "step 0")?;
            replace(name, x, *axis, len.clone())
        }
        (Op::Tile { repeats }, [x]) => {
            need(repeats.len() == x.shape.len(), "one number of repetitions an axis")?;
            let shape = x.shape.iter().zip(repeats).map(|(d, r)| d.mul(r)).collect::<Result<_>>()?;
            Ok(Type::new(x.dtype, shape))
        }
        (Op::Trilu { .. }, [x]) => {
            need(x.shape.len() >= 2, "fewer than two axes")?;
            Ok((*x).clone())
        }
        (Op::Gather { axis }, [x, index]) => {
            need(index.dtype == DType::I64, "indices are not integers")?;
            need(*axis < x.shape.len(), "axis out of range")?;
            let (head, tail) = x.shape.split_at(*axis);
            let tail = tail.iter().skip(1);
            Ok(Type::new(x.dtype, head.iter().chain(&index.shape).chain(tail).cloned().collect()))
        }
        (Op::GatherElements { axis }, [x, index]) => {
            need(index.dtype == DType::I64, "indices are not integers")?;
            need(*axis < x.shape.len() && x.shape.len() == index.shape.len(), "numbers of axes")?;
            Ok(Type::new(x.dtype, index.shape.clone()))
        }
        (Op::GatherNd { batch_dims }, [x, index]) => {
            need(index.dtype == DType::I64, "indices are not integers")?;
            let (tuple, lead) = split_tuple(name, index)?;
            let skip = batch_dims.checked_add(tuple).ok_or_else(|| mismatch(name, "batch_dims"))?;
            need(skip <= x.shape.len() && *batch_dims <= lead.len(), "index tuples are too long")?;
            let same = x.shape.iter().zip(lead).take(*batch_dims).all(|(a, b)| a == b);
            need(same, "batch sizes differ")?;
            Ok(Type::new(x.dtype, lead.iter().chain(x.shape.iter().skip(skip)).cloned().collect()))
        }
        (Op::ScatterNd, [x, index, update]) => {
            need(index.dtype == DType::I64, "indices are not integers")?;
            need(update.dtype == x.dtype, "updates of another type")?;
            let (tuple, lead) = split_tuple(name, index)?;
            need(tuple <= x.shape.len(), "index tuples are too long")?;
            let expected: Vec<_> = lead.iter().chain(x.shape.iter().skip(tuple)).cloned().collect();
            need(expected == update.shape, "updates of another shape than the indices ask for")?;
            Ok((*x).clone())
        }
        (Op::Unary(u), [x]) => {
            let dtype = match u {
                Unary::Not => DType::Bool,
                Unary::Neg | Unary::Abs | Unary::Sign => x.dtype,
                _ => DType::F32,
            };
            need(x.dtype == dtype && (*u == Unary::Not || x.dtype != DType::Bool), "operand of the wrong type")?;
            Ok(Type::new(if *u == Unary::IsNan { DType::Bool } else { dtype }, x.shape.clone()))
        }
        (Op::Binary(b), [x, y]) => {
            let shape = broadcast(name, &x.shape, &y.shape)?;
            let logic = matches!(b, Binary::And | Binary::Or);
            let same = x.dtype == y.dtype || (*b == Binary::Pow && y.dtype != DType::Bool);
            let fits = if logic { x.dtype == DType::Bool } else { x.dtype != DType::Bool || *b == Binary::Equal };
            need(same && fits, "operands of the wrong type")?;
            Ok(Type::new(if b.is_comparison() { DType::Bool } else { x.dtype }, shape))
        }
        (Op::Where, [c, x, y]) => {
            need(c.dtype == DType::Bool && x.dtype == y.dtype, "operands of the wrong type")?;
            Ok(Type::new(x.dtype, broadcast(name, &c.shape, &broadcast(name, &x.shape, &y.shape)?)?))
        }
        (Op::Clip, [x, low, high]) => {
            need(
                low.dtype == x.dtype && high.dtype == x.dtype && x.dtype != DType::Bool,
                "operands of the wrong type",
            )?;
            Ok((*x).clone())
        }
        (Op::MatMul, [x, y]) => {
            need(x.dtype == y.dtype && x.dtype != DType::Bool, "operands of the wrong type")?;
            Ok(Type::new(x.dtype, matmul_shape(&x.shape, &y.shape)?))
        }
        (Op::CumSum { axis, .. }, [x]) => {
            need(*axis < x.shape.len() && x.dtype != DType::Bool, "axis or type")?;
            Ok((*x).clone())
        }
        (Op::Reduce { kind, axes, keepdims }, [x]) => {
            need(x.dtype != DType::Bool || matches!(kind, Reduce::Max | Reduce::Min), "booleans")?;
            Ok(Type::new(x.dtype, reduce_shape(&x.shape, axes, *keepdims)?))
        }
        (Op::ArgMax, [x]) => {
            need(x.dtype != DType::Bool, "booleans")?;
            let (_, rows) = x.shape.split_last().ok_or_else(|| mismatch(name, "a scalar"))?;
            Ok(Type::new(DType::I64, rows.to_vec()))
        }
        (Op::Range, _) => Err(mismatch(name, "its length depends on values")),
        _ => Err(mismatch(name, format!("{} operands", operands.len()))),
    }
}

fn replace(name: &str, x: &Type, axis: usize, size: Dim) -> Result<Type> {
    let mut out = x.clone();
    *out.shape.get_mut(axis).ok_or_else(|| mismatch(name, "axis out of range"))? = size;
    Ok(out)
}

fn split_tuple<'a>(name: &str, index: &'a Type) -> Result<(usize, &'a [Dim])> {
    let (last, lead) = index.shape.split_last().ok_or_else(|| mismatch(name, "indices without axes"))?;
    let tuple = last.as_constant().and_then(|n| usize::try_from(n).ok());
    Ok((tuple.ok_or_else(|| mismatch(name, "index tuples of unknown length"))?, lead))
}
