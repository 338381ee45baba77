//! Element-wise operators with broadcasting.

use super::infer::mismatch;
use super::movement::{broadcast, broadcast_shape};
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

fn compare<T: Copy + Default + Send + Sync + PartialOrd>(
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
fn zip<A: Copy + Default + Send + Sync, B: Copy + Default + Send + Sync, R>(
    op: &str,
    a: &[A],
    a_shape: &[usize],
    b: &[B],
    b_shape: &[usize],
    shape: &[usize],
    f: impl Fn(A, B) -> Result<R>,
) -> Result<Vec<R>> {
    if let ([y], true) = (b, a_shape == shape) {
        return a.iter().map(|x| f(*x, *y)).collect();
    }
    let (left, right) = (broadcast(op, a, a_shape, shape)?, broadcast(op, b, b_shape, shape)?);
    left.iter().zip(right.iter()).map(|(x, y)| f(*x, *y)).collect()
}

pub(super) fn select(c: &Tensor, x: &Tensor, y: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let condition = broadcast("where", c.as_bool()?, c.shape(), shape)?;
    fn pick<T: Copy + Default + Send + Sync>(
        c: &[bool],
        (x, x_shape): (&[T], &[usize]),
        (y, y_shape): (&[T], &[usize]),
        shape: &[usize],
    ) -> Result<Vec<T>> {
        let (x, y) = (broadcast("where", x, x_shape, shape)?, broadcast("where", y, y_shape, shape)?);
        Ok(c.iter().zip(x.iter().zip(y.iter())).map(|(c, (x, y))| if *c { *x } else { *y }).collect())
    }
    let data = match (x.data(), y.data()) {
        (Data::F32(a), Data::F32(b)) => Data::F32(pick(&condition, (a, x.shape()), (b, y.shape()), shape)?),
        (Data::I64(a), Data::I64(b)) => Data::I64(pick(&condition, (a, x.shape()), (b, y.shape()), shape)?),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(pick(&condition, (a, x.shape()), (b, y.shape()), shape)?),
        _ => return Err(mismatch("where", "operands of different types")),
    };
    Tensor::new(shape.to_vec(), data)
}
