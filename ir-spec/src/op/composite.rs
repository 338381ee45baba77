//! Composite ops: functions that an expansion writes in other ops.
//!
//! Operand and result are shared, of one ring, and of one scale where the op does not name the result's. The meaning is
//! the function of the reals that operands stand for, rounded to the nearest ring element: what an expansion is compared
//! with.

use super::*;
use crate::infer::norms::{fit, row_of, sum};
use crate::infer::{Operand, Typing, ceil_log2, describe, ring, with};
use crate::norms::BIT;
use crate::ty::Sharing;

const IS_SHARED: Constraint = c(SHARING, "the operand is a shared ring tensor");

const COMPOSITE: Description = Description { class: Class::Composite, constraints: &[IS_SHARED], ..Description::BLANK };

/// A function whose result's magnitude is at most the operand's; the error of the fit takes one bit.
const ACTIVATION: Description = Description {
    bound: "x + 1",
    infer: |_, t: &Typing| {
        let [x] = t.operands()?;
        t.shared_ring(1, &x)?;
        Ok(with(x.ty, u32::from(x.ty.bound) + 1))
    },
    ..COMPOSITE
};

/// A function with values in [−1, 1], and the error of the fit.
const SATURATING: Description = Description {
    bound: "scale + 1",
    infer: |_, t: &Typing| {
        let [x] = t.operands()?;
        let (_, scale) = t.shared_ring(1, &x)?;
        Ok(with(x.ty, u32::from(scale) + 1))
    },
    ..COMPOSITE
};

/// A function of one variable.
const fn of_curve(name: &'static str, of: Description) -> Description {
    Description {
        name,
        meaning: Some(|op, e| {
            let curve = op.curve().ok_or_else(|| e.other())?;
            e.map(|x| curve.at(x))
        }),
        ..of
    }
}

pub(super) static GELU: Description = of_curve("gelu", ACTIVATION);
pub(super) static SILU: Description = of_curve("silu", ACTIVATION);
pub(super) static TANH: Description = of_curve("tanh", SATURATING);
pub(super) static SIGMOID: Description = of_curve("sigmoid", SATURATING);
pub(super) static ERF: Description = of_curve("erf", SATURATING);

pub(super) static SIN: Description = Description { name: "sin", meaning: Some(|_, e| e.map(libm::sin)), ..SATURATING };

pub(super) static COS: Description = Description { name: "cos", meaning: Some(|_, e| e.map(libm::cos)), ..SATURATING };

/// Values between 0 and `|x| + ln 2`.
pub(super) static SOFTPLUS: Description = Description {
    bound: "max(x, scale) + 1",
    infer: |_, t| {
        let [x] = t.operands()?;
        let (_, scale) = t.shared_ring(1, &x)?;
        Ok(with(x.ty, u32::from(x.ty.bound.max(scale)) + 1))
    },
    ..of_curve("softplus", COMPOSITE)
};

/// Values up to `e^max`, and one bit more.
pub(super) static EXP: Description = Description {
    name: "exp",
    bound: "scale + max(⌈max · 93/64⌉, 0) + 1",
    constraints: &[IS_SHARED, c(ATTRIBUTE, "−32 ≤ max ≤ 32")],
    infer: |op, t| {
        let (&Op::Exp { max }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (_, scale) = t.shared_ring(1, &x)?;
        if !(-32..=32).contains(&max) {
            return Err(t.fails(2, format!("max = {max}")));
        }
        // 93/64 is above log2 e.
        let bits = (i32::from(max) * 93 + 63).div_euclid(64).max(0);
        Ok(with(x.ty, u32::from(scale) + bits.unsigned_abs() + 1))
    },
    meaning: Some(|op, e| {
        let Op::Exp { max } = *op else { return Err(e.other()) };
        let lowest = f64::from(max) - 32.0;
        e.map(|x| if x < lowest { 0.0 } else { libm::exp(x) })
    }),
    ..COMPOSITE
};

/// Values up to `2^−min_log2`, and one bit more.
pub(super) static RECIPROCAL: Description = Description {
    name: "reciprocal",
    bound: "max(scale − min_log2 + 1, 1)",
    constraints: &[IS_SHARED, c(ATTRIBUTE, "−32 ≤ min_log2 < max_log2 ≤ 32")],
    infer: |op, t| {
        let (&Op::Reciprocal { min_log2, max_log2, scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.shared_ring(1, &x)?;
        in_range(t, 2, (min_log2, max_log2))?;
        Ok(rescaled(x.ty, scale, i32::from(scale) - i32::from(min_log2) + 1))
    },
    meaning: Some(|_, e| e.map(|x| 1.0 / x)),
    ..COMPOSITE
};

/// Values up to the dividend's bound times `2^−min_log2`, and one bit more.
pub(super) static DIV: Description = Description {
    name: "div",
    operands: &["a", "b"],
    result: "as a",
    bound: "max(a − scale of a + scale − min_log2 + 1, 1)",
    constraints: &[
        c(SHARING, "the operands are shared ring tensors"),
        c(RING, "the operands have equal ring bits"),
        c(SHAPE, "the shapes broadcast"),
        c(ATTRIBUTE, "−32 ≤ min_log2 < max_log2 ≤ 32"),
    ],
    infer: |op, t| {
        let (&Op::Div { min_log2, max_log2, scale }, [a, b]) = (op, t.operands()?) else { return Err(t.other()) };
        let ((bits, a_scale), (b_bits, _)) = (t.shared_ring(1, &a)?, t.shared_ring(1, &b)?);
        if bits != b_bits {
            return Err(t.fails(2, format!("{bits} and {b_bits} bits")));
        }
        let shape = t.broadcast(3, &a.ty.shape, &b.ty.shape)?;
        in_range(t, 4, (min_log2, max_log2))?;
        let bound = i32::from(a.ty.bound) - i32::from(a_scale) + i32::from(scale) - i32::from(min_log2) + 1;
        Ok(Ty { shape, ..rescaled(a.ty, scale, bound) })
    },
    meaning: Some(|_, e| e.zip(|a, b| a / b)),
    ..COMPOSITE
};

/// Values up to `2^max_log4`, and one bit more.
pub(super) static SQRT: Description = Description {
    name: "sqrt",
    bound: "max(scale + max_log4 + 1, 1)",
    constraints: &[IS_SHARED, c(ATTRIBUTE, "−32 ≤ min_log4 < max_log4 ≤ 32")],
    infer: |op, t| {
        let (&Op::Sqrt { min_log4, max_log4, scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.shared_ring(1, &x)?;
        in_range(t, 2, (min_log4, max_log4))?;
        Ok(rescaled(x.ty, scale, i32::from(scale) + i32::from(max_log4) + 1))
    },
    meaning: Some(|_, e| e.map(|x| libm::sqrt(x.max(0.0)))),
    ..COMPOSITE
};

/// Values up to `2^−min_log4`, and one bit more for the nearest bucket's parabola.
pub(super) static RSQRT: Description = Description {
    name: "rsqrt",
    bound: "max(scale − min_log4 + 2, 1)",
    constraints: &[IS_SHARED, c(ATTRIBUTE, "−32 ≤ min_log4 < max_log4 ≤ 32")],
    infer: |op, t| {
        let (&Op::Rsqrt { min_log4, max_log4, scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.shared_ring(1, &x)?;
        in_range(t, 2, (min_log4, max_log4))?;
        Ok(rescaled(x.ty, scale, i32::from(scale) - i32::from(min_log4) + 2))
    },
    meaning: Some(|_, e| e.map(|x| 1.0 / libm::sqrt(x))),
    ..COMPOSITE
};

/// Values below `32 · ln 2`.
pub(super) static LOG: Description = Description {
    name: "log",
    bound: "scale + 5",
    constraints: &[IS_SHARED, c(ATTRIBUTE, "−32 ≤ min_log2 < max_log2 ≤ 32")],
    infer: |op, t| {
        let (&Op::Log { min_log2, max_log2, scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.shared_ring(1, &x)?;
        in_range(t, 2, (min_log2, max_log2))?;
        Ok(rescaled(x.ty, scale, i32::from(scale) + 5))
    },
    meaning: Some(|_, e| e.map(libm::log)),
    ..COMPOSITE
};

fn is_range(min: i8, max: i8) -> bool {
    (-32..=32).contains(&min) && max <= 32 && min < max
}

fn in_range(t: &Typing, number: usize, (min, max): (i8, i8)) -> Rule<()> {
    if is_range(min, max) { Ok(()) } else { Err(t.fails(number, format!("{min} to {max}"))) }
}

/// A type at another scale with another bound.
fn rescaled(ty: &Ty, scale: u8, bound: i32) -> Ty {
    let bits = ty.as_ring().map_or(0, |(bits, _)| bits);
    ring(bits, scale.into(), Sharing::Shared, ty.shape.clone(), u32::try_from(bound).unwrap_or(1).max(1))
}

/// Values in [0, 1], over the entries of rows that a mask keeps.
const OF_ROWS: Description = Description {
    operands: &["x", "m"],
    bound: "scale + 1",
    constraints: &[
        c(SHARING, "operand 0 is a shared ring tensor"),
        c(MASK, "the mask is public"),
        c(ELEMENT, "the mask is a value of the public program of booleans"),
        c(SHAPE, "operand 0 has an axis, and the mask broadcasts to its shape"),
    ],
    infer: |_, t: &Typing| masked_rows(t),
    ..COMPOSITE
};

fn masked_rows(t: &Typing) -> Rule<Ty> {
    let [x, mask] = t.operands()?;
    let (_, scale) = t.shared_ring(1, &x)?;
    t.mask(2, &mask)?;
    let fits = t.broadcast(4, &x.ty.shape, &mask.ty.shape)? == x.ty.shape;
    if x.ty.shape.is_empty() || !fits {
        return Err(t.fails(4, t.cx.dims.show_shape(&mask.ty.shape)));
    }
    Ok(with(x.ty, u32::from(scale) + 1))
}

/// What adds up to 1 is no longer than 1, with an error of a hundredth and four units an element.
pub(super) static SOFTMAX: Description = Description {
    name: "softmax",
    norms: ["", "1.014 · 2^scale + 4 √n", ""],
    derive_norms: NormRule::OfOp(|_, t, ty| {
        let Some(row) = row_of(t.cx, &ty.shape) else { return Norms::default() };
        let scale = ty.as_ring().map_or(0, |(_, scale)| BIT * u32::from(scale));
        Norms { rows: fit(sum(scale + 2, 2 * BIT + row)), ..Norms::default() }
    }),
    meaning: Some(|_, e| {
        e.masked_rows(|row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|x| *x = libm::exp(*x - max));
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        })
    }),
    ..OF_ROWS
};

pub(super) static RATIO_SOFTMAX: Description = Description {
    name: "ratio_softmax",
    constraints: &[
        c(SHARING, "operand 0 is a shared ring tensor"),
        c(MASK, "the mask is public"),
        c(ELEMENT, "the mask is a value of the public program of booleans"),
        c(SHAPE, "operand 0 has an axis, and the mask broadcasts to its shape"),
        c(ATTRIBUTE, "shift and eps are finite, eps is not negative, and −32 ≤ min_log2 < max_log2 ≤ 32"),
    ],
    infer: |op, t| {
        let &Op::RatioSoftmax { shift, eps, min_log2, max_log2, .. } = op else { return Err(t.other()) };
        let (ty, shift, eps) = (masked_rows(t)?, shift.get(), eps.get());
        if !shift.is_finite() || !eps.is_finite() || eps < 0.0 || !is_range(min_log2, max_log2) {
            return Err(t.fails(5, format!("shift = {shift}, eps = {eps}, {min_log2} to {max_log2}")));
        }
        Ok(ty)
    },
    meaning: Some(|op, e| {
        let &Op::RatioSoftmax { square, shift, eps, .. } = op else { return Err(e.other()) };
        let (shift, eps) = (f64::from(shift.get()), f64::from(eps.get()));
        e.masked_rows(|row| {
            row.iter_mut().for_each(|x| {
                let shifted = *x + shift;
                *x = if square { shifted * shifted } else { shifted.max(0.0) };
            });
            let sum = row.iter().sum::<f64>() + eps;
            row.iter_mut().for_each(|x| *x /= sum);
        })
    }),
    ..OF_ROWS
};

/// Rows shorter than `2^LONGEST_ROW` are normalised, after `layer_norm` has multiplied them by the number of columns.
const LONGEST_ROW: u32 = 50;
/// Rows from this length on are known to 5 percent, all shorter ones to 1 percent.
const COARSE_ROW: u32 = 47;
/// Most fraction bits of a norm's result.
const FINEST_NORM: u8 = 40;

const NORM: Description = Description {
    norms: ["", "1.014 · √n · 2^scale + 2 √n, or 1.057 in place of 1.014 from a length of 47 on", ""],
    infer: |op, t: &Typing| {
        let [x] = t.operands()?;
        let (eps, form) = norm_form(op).ok_or_else(|| t.other())?;
        norm(t, &x, eps, form)
    },
    derive_norms: NormRule::OfOp(|op, t, ty| match norm_form(op) {
        Some((_, form)) => norms_of_norm(t, ty, form),
        None => Norms::default(),
    }),
    ..COMPOSITE
};

pub(super) static RMS_NORM: Description = Description {
    name: "rms_norm",
    bound: "scale + the least b with 1.01 · √columns < 2^b, or 1.05 in place of 1.01 from a length of 47 on",
    constraints: &[
        c(SHARING, "the operand is a shared tensor of a ring of 64 bits"),
        c(SHAPE, "the last axis has a number of columns that is known and not 0"),
        c(ATTRIBUTE, "eps is finite and not negative, length is at most 50, and scale at most 40"),
    ],
    meaning: Some(|op, e| {
        let Op::RmsNorm { eps, .. } = *op else { return Err(e.other()) };
        e.rows(|row| normalise(row, eps.get().into()))
    }),
    ..NORM
};

pub(super) static LAYER_NORM: Description = Description {
    name: "layer_norm",
    bound: "as `rms_norm`, for length + lg columns",
    constraints: &[
        c(SHARING, "the operand is a shared tensor of a ring of 64 bits"),
        c(SHAPE, "the last axis has a number of columns that is known and not 0"),
        c(ATTRIBUTE, "eps is finite and not negative, length + lg columns is at most 50, and scale at most 40"),
    ],
    meaning: Some(|op, e| {
        let Op::LayerNorm { eps, .. } = *op else { return Err(e.other()) };
        e.rows(|row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            row.iter_mut().for_each(|x| *x -= mean);
            normalise(row, eps.get().into());
        })
    }),
    ..NORM
};

/// `x / √(mean(x²) + eps)`; 0 where that is 0/0.
fn normalise(row: &mut [f64], eps: f64) {
    let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps;
    let factor = if square > 0.0 { 1.0 / libm::sqrt(square) } else { 0.0 };
    row.iter_mut().for_each(|x| *x *= factor);
}

/// Attributes of `rms_norm` and `layer_norm` that types depend on.
#[derive(Clone, Copy)]
struct NormForm {
    length: u8,
    scale: u8,
    centred: bool,
}

impl NormForm {
    /// Bits of the longest row that is normalised.
    fn longest(self, columns: i64) -> u32 {
        u32::from(self.length) + if self.centred { ceil_log2(columns.into()) } else { 0 }
    }
}

fn norm_form(op: &Op) -> Option<(F32Bits, NormForm)> {
    match *op {
        Op::RmsNorm { eps, length, scale } => Some((eps, NormForm { length, scale, centred: false })),
        Op::LayerNorm { eps, length, scale } => Some((eps, NormForm { length, scale, centred: true })),
        _ => None,
    }
}

/// The result's magnitude is at most the square root of the number of elements, and the error of the row's factor.
fn norm(t: &Typing, x: &Operand, eps: F32Bits, form: NormForm) -> Rule<Ty> {
    let (bits, _) = t.shared_ring(1, x)?;
    if bits != 64 {
        return Err(t.fails(1, describe(x.ty)));
    }
    let wrong = || t.fails(2, t.cx.dims.show_shape(&x.ty.shape));
    let columns = x.ty.shape.last().and_then(|d| d.as_constant()).filter(|&n| n > 0).ok_or_else(wrong)?;
    let (eps, longest, NormForm { length, scale, .. }) = (eps.get(), form.longest(columns), form);
    if !eps.is_finite() || eps < 0.0 || longest > LONGEST_ROW || scale > FINEST_NORM {
        let found = format!("eps = {eps}, length = {length}, scale = {scale} for {columns} columns");
        return Err(t.fails(3, found));
    }
    // √columns · (1 + error) < 2^b as columns · (1 + error)² < 4^b, in ten-thousandths.
    let error = if longest < COARSE_ROW { 10_201 } else { 11_025 };
    let size = i128::from(columns) * error;
    let above = (0..=32u32).find(|&b| size < 10_000i128 << (2 * b)).ok_or_else(wrong)?;
    Ok(ring(bits, scale.into(), Sharing::Shared, x.ty.shape.clone(), u32::from(scale) + above))
}

/// A norm leaves `√n · 2^scale`, an error of 1 percent, or of 5 where rows may be very long, and two units an element.
fn norms_of_norm(t: &Typing, ty: &Ty, form: NormForm) -> Norms {
    let Some(row) = row_of(t.cx, &ty.shape) else { return Norms::default() };
    let columns = ty.shape.last().and_then(Dim::as_constant).unwrap_or(1);
    let error = if form.longest(columns) >= COARSE_ROW { 8 } else { 2 };
    let scale = BIT * u32::from(form.scale);
    Norms { rows: fit(sum(scale + row + error, BIT + row)), ..Norms::default() }
}
