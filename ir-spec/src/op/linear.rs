//! Local arithmetic.

use super::*;
use crate::infer::norms::{Numbers, half, log, own_column, own_row, row_of, size, spread_row, sum};
use crate::infer::{Operand, Typing, ceil_log2, ring, with};
use crate::norms::BIT;
use crate::reference::linear;
use crate::ty::Sharing;

const ARITHMETIC: Description =
    Description { constraints: &[c(ELEMENT, "the operand is a ring tensor")], ..Description::BLANK };

/// Of two ring tensors.
const OF_TWO: Description = Description { operands: &["a", "b"], ..ARITHMETIC };

const SUM: Description = Description {
    result: "the weaker form",
    bound: "max(a, b) + 1",
    norms: ["the sum", "the sum", ""],
    constraints: &[
        c(RING, "the operands are ring tensors of equal ring bits"),
        c(RING, "the operands have one scale"),
        c(SHAPE, "the shapes broadcast"),
    ],
    infer: |_, t| {
        let [a, b] = t.operands()?;
        let ((bits, a_scale), (_, b_scale)) = one_ring(t, &a, &b)?;
        if a_scale != b_scale {
            return Err(t.fails(2, format!("scales {a_scale} and {b_scale}")));
        }
        let shape = t.broadcast(3, &a.ty.shape, &b.ty.shape)?;
        let bound = u32::from(a.ty.bound.max(b.ty.bound)) + 1;
        Ok(ring(bits, a_scale.into(), a.ty.sharing.max(b.ty.sharing), shape, bound))
    },
    derive_norms: NormRule::OfOperands(|_, t, ty| {
        let Ok([a, b]) = t.operands() else { return Norms::default() };
        let rows = spread_row(t.cx, a.ty, &ty.shape).zip(spread_row(t.cx, b.ty, &ty.shape));
        Numbers { size: sum(size(a.ty), size(b.ty)), rows: rows.map(|(a, b)| sum(a, b)) }.fit()
    }),
    ..OF_TWO
};

pub(super) static ADD: Description = Description {
    name: "add",
    meaning: Some(|_, e| {
        let [a, b] = e.operands()?;
        linear::zip(a, b, e.shape.clone(), u64::wrapping_add)
    }),
    ..SUM
};

pub(super) static SUB: Description = Description {
    name: "sub",
    meaning: Some(|_, e| {
        let [a, b] = e.operands()?;
        linear::zip(a, b, e.shape.clone(), u64::wrapping_sub)
    }),
    ..SUM
};

pub(super) static NEG: Description = Description {
    name: "neg",
    norms: ["x", "x", "x"],
    infer: |_, t| {
        let [x] = t.operands()?;
        t.ring(1, &x)?;
        Ok(with(x.ty, x.ty.bound.into()))
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|_, e| linear::map(e.operand()?, u64::wrapping_neg)),
    ..ARITHMETIC
};

pub(super) static MUL_INT: Description = Description {
    name: "mul_int",
    bound: "x + lg abs(k); 0 for k = 0",
    norms: ["times the factor", "times the factor", "times the factor"],
    infer: |op, t| {
        let (Op::MulInt { k }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.ring(1, &x)?;
        let bound = if *k == 0 { 0 } else { u32::from(x.ty.bound) + ceil_log2(k.unsigned_abs().into()) };
        Ok(with(x.ty, bound))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let Op::MulInt { k } = op else { return Norms::default() };
        let k = k.unsigned_abs();
        t.first_norms().map(|n| if k == 0 { 0 } else { n + log(k.into()) })
    }),
    meaning: Some(|op, e| {
        let Op::MulInt { k } = *op else { return Err(e.other()) };
        linear::map(e.operand()?, |v| v.wrapping_mul(k as u64))
    }),
    ..ARITHMETIC
};

pub(super) static ADD_INT: Description = Description {
    name: "add_int",
    bound: "max(x, lg abs(k)) + 1; x for k = 0",
    norms: ["plus abs(k)", "plus abs(k) · √n", ""],
    infer: |op, t| {
        let (Op::AddInt { k }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.ring(1, &x)?;
        let bound = u32::from(x.ty.bound);
        Ok(with(x.ty, if *k == 0 { bound } else { bound.max(ceil_log2(k.unsigned_abs().into())) + 1 }))
    },
    derive_norms: NormRule::OfOperands(|op, t, ty| {
        let (Op::AddInt { k }, Ok([x])) = (op, t.operands()) else { return Norms::default() };
        if *k == 0 {
            return x.ty.norms;
        }
        let k = log(k.unsigned_abs().into());
        let rows = spread_row(t.cx, x.ty, &ty.shape).zip(row_of(t.cx, &ty.shape));
        Numbers { size: sum(size(x.ty), k), rows: rows.map(|(x, n)| sum(x, k + n)) }.fit()
    }),
    meaning: Some(|op, e| {
        let Op::AddInt { k } = *op else { return Err(e.other()) };
        linear::map(e.operand()?, |v| v.wrapping_add(k as u64))
    }),
    ..ARITHMETIC
};

pub(super) static UPSCALE: Description = Description {
    name: "upscale",
    result: "scale + by",
    bound: "x + by",
    norms: ["times 2^by", "times 2^by", "times 2^by"],
    infer: |op, t| {
        let (Op::Upscale { by }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let ((bits, scale), by) = (t.ring(1, &x)?, u32::from(*by));
        Ok(ring(bits, u32::from(scale) + by, x.ty.sharing, x.ty.shape.clone(), u32::from(x.ty.bound) + by))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let Op::Upscale { by } = *op else { return Norms::default() };
        t.first_norms().map(|n| n + BIT * u32::from(by))
    }),
    meaning: Some(|op, e| {
        let Op::Upscale { by } = *op else { return Err(e.other()) };
        linear::map(e.operand()?, |v| v.checked_shl(by.into()).unwrap_or(0))
    }),
    ..ARITHMETIC
};

/// `2^by · x mod 2^(bits + by)` follows from `x mod 2^bits`, and of a sum so does that of every term.
pub(super) static LIFT: Description = Description {
    name: "lift",
    result: "ring bits + by, scale + by",
    bound: "x + by",
    norms: ["times 2^by", "times 2^by", "times 2^by"],
    constraints: &[
        c(ELEMENT, "the operand is a ring tensor"),
        c(ATTRIBUTE, "by is a multiple of 8 from 8 on, and the new ring has at most 64 bits"),
    ],
    infer: |op, t| {
        let (&Op::Lift { by }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, scale) = t.ring(1, &x)?;
        if by == 0 || !by.is_multiple_of(8) || u32::from(bits) + u32::from(by) > 64 {
            return Err(t.fails(2, format!("by {by}, {bits} bits")));
        }
        let bound = u32::from(x.ty.bound) + u32::from(by);
        Ok(ring(bits + by, u32::from(scale) + u32::from(by), x.ty.sharing, x.ty.shape.clone(), bound))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let Op::Lift { by } = *op else { return Norms::default() };
        t.first_norms().map(|n| n + BIT * u32::from(by))
    }),
    meaning: Some(|op, e| {
        let Op::Lift { by } = *op else { return Err(e.other()) };
        linear::lift(e.operand()?, by)
    }),
    ..ARITHMETIC
};

pub(super) static SET_SCALE: Description = Description {
    name: "set_scale",
    result: "the new scale",
    norms: ["x", "x", "x"],
    infer: |op, t| {
        let (Op::SetScale { scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, _) = t.ring(1, &x)?;
        Ok(ring(bits, (*scale).into(), x.ty.sharing, x.ty.shape.clone(), x.ty.bound.into()))
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|_, e| Ok(e.operand()?.clone())),
    ..ARITHMETIC
};

pub(super) static MUL: Description = Description {
    name: "mul",
    result: "scales add; the form that the setting gives a product (`3pc`: shared · shared is sum3, secret · public keeps its form)",
    bound: "a + b",
    norms: ["a · b", "the lesser of row a · size b and size a · row b", ""],
    constraints: &[
        c(RING, "the operands are ring tensors of equal ring bits"),
        c(
            SHARING,
            "the setting has a product of operands in these forms: both are shared, or masked, or one is public",
        ),
        c(SHAPE, "the shapes broadcast"),
    ],
    infer: |_, t| {
        let [a, b] = t.operands()?;
        let ((bits, a_scale), (_, b_scale)) = one_ring(t, &a, &b)?;
        let sharing = product_form(t, t.cx.setting.protocol().product, &a, &b)?;
        let shape = t.broadcast(3, &a.ty.shape, &b.ty.shape)?;
        let bound = u32::from(a.ty.bound) + u32::from(b.ty.bound);
        Ok(ring(bits, u32::from(a_scale) + u32::from(b_scale), sharing, shape, bound))
    },
    derive_norms: NormRule::OfOperands(|_, t, ty| {
        let Ok([a, b]) = t.operands() else { return Norms::default() };
        let row = |x: &Operand, other: &Operand| spread_row(t.cx, x.ty, &ty.shape).map(|row| row + size(other.ty));
        let rows = row(&a, &b).into_iter().chain(row(&b, &a)).min();
        Numbers { size: size(a.ty) + size(b.ty), rows }.fit()
    }),
    meaning: Some(|_, e| {
        let [a, b] = e.operands()?;
        linear::zip(a, b, e.shape.clone(), u64::wrapping_mul)
    }),
    ..OF_TWO
};

pub(super) static MATMUL: Description = Description {
    name: "matmul",
    result: "scales add; the form that the setting gives a product (`3pc`: shared · shared is sum3, shared · public is sum2)",
    bound: "a + b + lg inner; in `2pc` for two secrets one more, and 9 at least, where both bounds are below 8",
    norms: [
        "the lesser of row a · column b (row b with `trans_b`), which is Cauchy–Schwarz, and size a · size b · inner",
        "size · √columns",
        "",
    ],
    constraints: &[
        c(RING, "the operands are ring tensors of equal ring bits"),
        c(SHARING, "the setting has a product of operands in these forms: each is shared, masked or public"),
        c(SHAPE, "every operand has two axes or more"),
        c(SHAPE, "the inner sizes are equal, and have a maximum"),
        c(SHAPE, "the batch axes broadcast"),
    ],
    infer: |op, t| {
        let (Op::MatMul { trans_b }, [a, b]) = (op, t.operands()?) else { return Err(t.other()) };
        let ((bits, a_scale), (_, b_scale)) = one_ring(t, &a, &b)?;
        let sharing = product_form(t, t.cx.setting.protocol().matrix_product, &a, &b)?;
        let ([a_batch @ .., rows, a_inner], [b_batch @ .., b_last, b_end]) = (&*a.ty.shape, &*b.ty.shape) else {
            return Err(t.fails(3, format!("{} and {} axes", a.ty.shape.len(), b.ty.shape.len())));
        };
        let (b_inner, columns) = if *trans_b { (b_end, b_last) } else { (b_last, b_end) };
        let inner = || t.fails(4, format!("{} and {}", t.cx.dims.show(a_inner), t.cx.dims.show(b_inner)));
        if a_inner != b_inner {
            return Err(inner());
        }
        let log = t.cx.log2_of_max(a_inner).ok_or_else(inner)?;
        let mut shape = t.broadcast(5, a_batch, b_batch)?;
        shape.extend([rows.clone(), columns.clone()]);
        let bound = u32::from(a.ty.bound) + u32::from(b.ty.bound) + log;
        // Integers below 2^a and 2^b have products that are below 2^(a+b) by 2^a and more: an error up to that changes nothing.
        let bound = match matrix_error(t, &a, &b) {
            Some(error) if u32::from(a.ty.bound.max(b.ty.bound)) < error => bound.max(error) + 1,
            _ => bound,
        };
        Ok(ring(bits, u32::from(a_scale) + u32::from(b_scale), sharing, shape, bound))
    },
    derive_norms: NormRule::OfOperands(|op, t, ty| {
        let (Op::MatMul { trans_b }, Ok([a, b])) = (op, t.operands()) else { return Norms::default() };
        let column = if *trans_b { own_row(t.cx, b.ty) } else { own_column(t.cx, b.ty) };
        let most = own_row(t.cx, a.ty).zip(column).map(|(row, column)| row + column);
        let inner = a.ty.shape.last().and_then(|n| t.cx.dims.upper(n)).map(log);
        let by_size = inner.map(|n| size(a.ty) + size(b.ty) + n);
        let Some(size) = most.into_iter().chain(by_size).min() else { return Norms::default() };
        let size = matrix_error(t, &a, &b).map_or(size, |error| sum(size, BIT * error));
        Numbers { size, rows: row_of(t.cx, &ty.shape).map(|n| size + n) }.fit()
    }),
    meaning: Some(|op, e| {
        let (Op::MatMul { trans_b }, [a, b]) = (op, e.operands()?) else { return Err(e.other()) };
        linear::matmul(a, b, e.shape.clone(), *trans_b)
    }),
    ..OF_TWO
};

/// What a product of matrices is off by less than, as a logarithm.
fn matrix_error(t: &Typing, a: &Operand, b: &Operand) -> Option<u32> {
    let ciphertexts = t.cx.setting.protocol().ciphertexts.filter(|_| [a, b].iter().all(|x| x.ty.sharing.is_secret()));
    ciphertexts.map(|ciphertexts| ciphertexts.error)
}

pub(super) static REDUCE_SUM: Description = Description {
    name: "reduce_sum",
    result: "size 1 on the axis",
    bound: "x + lg size",
    norms: ["x · n; along the last axis at most row · √n", "row · n; along the last axis the size", ""],
    constraints: &[
        c(ELEMENT, "the operand is a ring tensor"),
        c(ATTRIBUTE, "the axis is one of the operand's"),
        c(SHAPE, "the size of the axis has a maximum"),
    ],
    infer: |op, t| {
        let (Op::ReduceSum { axis }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.ring(1, &x)?;
        let mut ty = x.ty.clone();
        let rank = ty.shape.len();
        let size = ty.shape.get_mut(usize::from(*axis)).ok_or_else(|| t.fails(2, format!("axis {axis} of {rank}")))?;
        let log = t.cx.log2_of_max(size).ok_or_else(|| t.fails(3, t.cx.dims.show(size)))?;
        *size = 1.into();
        Ok(with(&ty, u32::from(x.ty.bound) + log))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let (Op::ReduceSum { axis }, Ok([x])) = (op, t.operands()) else { return Norms::default() };
        let axis = usize::from(*axis);
        let Some(n) = x.ty.shape.get(axis).and_then(|n| t.cx.dims.upper(n)) else { return Norms::default() };
        let (by_size, row) = (size(x.ty) + log(n), own_row(t.cx, x.ty));
        let numbers = if axis + 1 == x.ty.shape.len() {
            let size = row.map_or(by_size, |row| by_size.min(row + half(n)));
            Numbers { size, rows: Some(size) }
        } else {
            Numbers { size: by_size, rows: row.map(|row| row + log(n)) }
        };
        numbers.fit()
    }),
    meaning: Some(|op, e| {
        let Op::ReduceSum { axis } = *op else { return Err(e.other()) };
        linear::reduce_sum(e.operand()?, axis.into(), e.shape.clone())
    }),
    ..ARITHMETIC
};

pub(super) static NARROW: Description = Description {
    name: "narrow",
    result: "the new ring",
    norms: ["x", "x", "x"],
    constraints: &[
        c(ELEMENT, "the operand is a ring tensor"),
        c(ATTRIBUTE, "the new ring is not larger"),
        c(LIMIT, "the operand's bound is at most the new ring bits less 1"),
    ],
    infer: |op, t| {
        let (Op::Narrow { bits }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (old, scale) = t.ring(1, &x)?;
        if *bits > old {
            return Err(t.fails(2, format!("{old} bits to {bits} bits")));
        }
        if x.ty.bound >= *bits {
            return Err(t.fails(3, format!("a bound of {} and {bits} bits", x.ty.bound)));
        }
        Ok(ring(*bits, scale.into(), x.ty.sharing, x.ty.shape.clone(), x.ty.bound.into()))
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|op, e| {
        let Op::Narrow { bits } = *op else { return Err(e.other()) };
        linear::narrow(e.operand()?, bits)
    }),
    ..ARITHMETIC
};

/// Of `|x| < 2^b` the floor is at least `−2^(b − by)`, and the result up to 2 less.
pub(super) static CUT: Description = Description {
    name: "cut",
    result: "in the operand's form, ring bits − by, scale − by",
    bound: "max(max(x − by, 0) + 1, min(max(x − by, 0), 1) + 2)",
    norms: ["x / 2^by + 3", "x / 2^by + 3 √n", ""],
    constraints: &[
        c(SHARING, "the operand is a shared or a masked ring tensor"),
        c(ATTRIBUTE, "by is a multiple of 8 from 8 to the scale, and below the ring bits"),
    ],
    infer: |op, t| {
        let (&Op::Cut { by }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, scale) = t.kept_ring(1, &x)?;
        if by == 0 || !by.is_multiple_of(8) || by > scale || by >= bits {
            return Err(t.fails(2, format!("by {by}, scale {scale}, {bits} bits")));
        }
        let left = u32::from(x.ty.bound.saturating_sub(by));
        let bound = (left + 1).max(left.min(1) + 2);
        Ok(ring(bits - by, u32::from(scale - by), x.ty.sharing, x.ty.shape.clone(), bound))
    },
    derive_norms: NormRule::OfOperands(|op, t, ty| match (op, t.operands()) {
        (Op::Cut { by }, Ok([x])) => shifted(t, &x, ty, *by, log(3)),
        _ => Norms::default(),
    }),
    meaning: Some(|op, e| {
        let Op::Cut { by } = *op else { return Err(e.other()) };
        linear::cut(e.operand()?, by, e.setting.protocol().components)
    }),
    ..ARITHMETIC
};

/// Norms of `x` divided by `2^by`, with an error in every element, as a logarithm.
pub(super) fn shifted(t: &Typing, x: &Operand, ty: &Ty, by: u8, error: u32) -> Norms {
    let less = |n: u32| n.saturating_sub(BIT * u32::from(by));
    let rows = spread_row(t.cx, x.ty, &ty.shape).zip(row_of(t.cx, &ty.shape));
    Numbers { size: sum(less(size(x.ty)), error), rows: rows.map(|(x, n)| sum(less(x), error + n)) }.fit()
}

/// The form that the setting gives a product, as constraint 2 asks.
fn product_form(t: &Typing, form: fn(Sharing, Sharing) -> Option<Sharing>, a: &Operand, b: &Operand) -> Rule<Sharing> {
    let (x, y) = (a.ty.sharing, b.ty.sharing);
    form(x, y).ok_or_else(|| t.fails(2, format!("{} by {}", x.name(), y.name())))
}

type Ring = (u8, u8);

/// Two operands of one ring, as constraint 1 asks.
fn one_ring(t: &Typing, a: &Operand, b: &Operand) -> Rule<(Ring, Ring)> {
    let (x, y) = (t.ring(1, a)?, t.ring(1, b)?);
    if x.0 != y.0 {
        return Err(t.fails(1, format!("rings of {} and {} bits", x.0, y.0)));
    }
    Ok((x, y))
}
