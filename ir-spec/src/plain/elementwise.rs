//! Element-wise operators with broadcasting.

use super::infer::mismatch;
use super::movement::{broadcast_shape, broadcast_walk};
use super::{Binary, Data, Tensor, Unary};
use crate::Result;

pub(super) fn unary(op: Unary, x: &Tensor) -> Result<Tensor> {
    let data = match (op, x.data()) {
        (Unary::Not, Data::Bool(v)) => Data::Bool(v.iter().map(|x| !x).collect()),
        (Unary::Neg, Data::I64(v)) => Data::I64(v.iter().map(|x| x.wrapping_neg()).collect()),
        (Unary::Abs, Data::I64(v)) => Data::I64(v.iter().map(|x| x.wrapping_abs()).collect()),
        (Unary::Sign, Data::I64(v)) => Data::I64(v.iter().map(|x| x.signum()).collect()),
        (Unary::IsNan, Data::F32(v)) => Data::Bool(v.iter().map(|x| x.is_nan()).collect()),
        (op, Data::F32(v)) => {
            let f: fn(f32) -> f32 = match op {
                Unary::Neg => |x| -x,
                Unary::Abs => f32::abs,
                Unary::Sqrt => libm::sqrtf,
                Unary::Reciprocal => |x| 1.0 / x,
                Unary::Exp => libm::expf,
                Unary::Cos => libm::cosf,
                Unary::Sin => libm::sinf,
                Unary::Floor => libm::floorf,
                Unary::Ceil => libm::ceilf,
                Unary::Round => libm::rintf,
                Unary::Sign => |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
                Unary::Log => libm::logf,
                Unary::Tanh => libm::tanhf,
                Unary::Sigmoid => |x| 1.0 / (1.0 + libm::expf(-x)),
                Unary::Erf => libm::erff,
                Unary::Not | Unary::IsNan => return Err(mismatch(op.name(), "operand of the wrong type")),
            };
            Data::F32(v.iter().map(|x| f(*x)).collect())
        }
        _ => return Err(mismatch(op.name(), "operand of the wrong type")),
    };
    Tensor::new(x.shape().to_vec(), data)
}

pub(super) fn binary(op: Binary, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let name = op.name();
    let shape = broadcast_shape(name, x.shape(), y.shape())?;
    let data = match (x.data(), y.data()) {
        (Data::F32(a), Data::F32(b)) => {
            let number: Option<fn(f32, f32) -> f32> = match op {
                Binary::Add => Some(|x, y| x + y),
                Binary::Sub => Some(|x, y| x - y),
                Binary::Mul => Some(|x, y| x * y),
                Binary::Div => Some(|x, y| x / y),
                Binary::Mod => Some(|x, y| x - libm::floorf(x / y) * y),
                Binary::Pow => Some(libm::powf),
                Binary::Max => Some(|x, y| if x.is_nan() || x > y { x } else { y }),
                Binary::Min => Some(|x, y| if x.is_nan() || x < y { x } else { y }),
                _ => None,
            };
            match number {
                Some(f) => Data::F32(zip(name, a, x.shape(), b, y.shape(), &shape, |x, y| Ok(f(x, y)))?),
                None => Data::Bool(compare(op, a, x.shape(), b, y.shape(), &shape)?),
            }
        }
        (Data::I64(a), Data::I64(b)) => {
            let zero = || mismatch(name, "an integer is divided by zero");
            let negative = || mismatch(name, "an integer power is negative or too large");
            let number: Option<&dyn Fn(i64, i64) -> Result<i64>> = match op {
                Binary::Add => Some(&|x: i64, y| Ok(x.wrapping_add(y))),
                Binary::Sub => Some(&|x: i64, y| Ok(x.wrapping_sub(y))),
                Binary::Mul => Some(&|x: i64, y| Ok(x.wrapping_mul(y))),
                Binary::Div => Some(&|x: i64, y| if y == 0 { Err(zero()) } else { Ok(x.wrapping_div(y)) }),
                Binary::Mod => Some(&|x: i64, y| {
                    let r = if y == 0 { Err(zero()) } else { Ok(x.wrapping_rem(y)) }?;
                    Ok(if r != 0 && (r < 0) != (y < 0) { r + y } else { r })
                }),
                Binary::Pow => Some(&|x: i64, y| Ok(x.wrapping_pow(u32::try_from(y).map_err(|_| negative())?))),
                Binary::Max => Some(&|x: i64, y| Ok(x.max(y))),
                Binary::Min => Some(&|x: i64, y| Ok(x.min(y))),
                _ => None,
            };
            match number {
                Some(f) => Data::I64(zip(name, a, x.shape(), b, y.shape(), &shape, f)?),
                None => Data::Bool(compare(op, a, x.shape(), b, y.shape(), &shape)?),
            }
        }
        (Data::Bool(a), Data::Bool(b)) => {
            let f: fn(bool, bool) -> bool = match op {
                Binary::And => |x, y| x && y,
                Binary::Or => |x, y| x || y,
                Binary::Equal => |x, y| x == y,
                _ => return Err(mismatch(name, "operands of the wrong type")),
            };
            Data::Bool(zip(name, a, x.shape(), b, y.shape(), &shape, |x, y| Ok(f(x, y)))?)
        }
        (Data::F32(a), Data::I64(b)) if op == Binary::Pow => {
            let power = |x, y: i64| Ok(libm::powf(x, y as f32));
            Data::F32(zip(name, a, x.shape(), b, y.shape(), &shape, power)?)
        }
        (Data::I64(a), Data::F32(b)) if op == Binary::Pow => {
            let power = |x: i64, y| Ok(libm::powf(x as f32, y) as i64);
            Data::I64(zip(name, a, x.shape(), b, y.shape(), &shape, power)?)
        }
        _ => return Err(mismatch(name, "operands of different types")),
    };
    Tensor::new(shape, data)
}

fn compare<T: Copy + PartialOrd>(
    op: Binary,
    a: &[T],
    a_shape: &[usize],
    b: &[T],
    b_shape: &[usize],
    shape: &[usize],
) -> Result<Vec<bool>> {
    let f: fn(T, T) -> bool = match op {
        Binary::Equal => |x, y| x == y,
        Binary::Less => |x, y| x < y,
        Binary::LessOrEqual => |x, y| x <= y,
        Binary::Greater => |x, y| x > y,
        Binary::GreaterOrEqual => |x, y| x >= y,
        _ => return Err(mismatch(op.name(), "operands of the wrong type")),
    };
    zip(op.name(), a, a_shape, b, b_shape, shape, |x, y| Ok(f(x, y)))
}

/// `f` of both operands' elements, each broadcast to `shape`.
fn zip<A: Copy, B: Copy, R>(
    op: &str,
    a: &[A],
    a_shape: &[usize],
    b: &[B],
    b_shape: &[usize],
    shape: &[usize],
    f: impl Fn(A, B) -> Result<R>,
) -> Result<Vec<R>> {
    if a_shape == b_shape {
        return a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect();
    }
    if let ([y], true) = (b, a_shape == shape) {
        return a.iter().map(|x| f(*x, *y)).collect();
    }
    let left = broadcast_walk(op, a_shape, shape)?;
    let right = broadcast_walk(op, b_shape, shape)?;
    let outside = || mismatch(op, "an index is out of range");
    left.zip(right).map(|(i, j)| f(*a.get(i).ok_or_else(outside)?, *b.get(j).ok_or_else(outside)?)).collect()
}

pub(super) fn select(c: &Tensor, x: &Tensor, y: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let walk = |t: &Tensor| broadcast_walk("where", t.shape(), shape);
    let condition = c.as_bool()?;
    let indices = walk(c)?.zip(walk(x)?.zip(walk(y)?));
    fn pick<T: Copy>(
        c: &[bool],
        x: &[T],
        y: &[T],
        at: impl Iterator<Item = (usize, (usize, usize))>,
    ) -> Option<Vec<T>> {
        at.map(|(i, (j, k))| if *c.get(i)? { x.get(j).copied() } else { y.get(k).copied() }).collect()
    }
    let data = match (x.data(), y.data()) {
        (Data::F32(a), Data::F32(b)) => pick(condition, a, b, indices).map(Data::F32),
        (Data::I64(a), Data::I64(b)) => pick(condition, a, b, indices).map(Data::I64),
        (Data::Bool(a), Data::Bool(b)) => pick(condition, a, b, indices).map(Data::Bool),
        _ => return Err(mismatch("where", "operands of different types")),
    };
    Tensor::new(shape.to_vec(), data.ok_or_else(|| mismatch("where", "an index is out of range"))?)
}
