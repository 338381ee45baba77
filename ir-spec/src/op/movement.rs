//! Local movement: the same elements at other places.

use super::*;
use crate::infer::moved;
use crate::infer::norms::{ends, fit, flat, half, own_column, own_row, positive, root_sum, size, spread_row};
use crate::plain::DType;
use crate::reference::movement;
use crate::ty::{Elem, Sharing};

/// Element, form and bound stay.
pub(super) const MOVEMENT: Description = Description {
    constraints: &[c(ELEMENT, "the operand is a tensor of ring elements or bits")],
    ..Description::BLANK
};

pub(super) static RESHAPE: Description = Description {
    name: "reshape",
    result: "the new shape",
    norms: [
        "x",
        "x where rows stay or are cut into equal parts; times √k where k become one",
        "x where the last two sizes stay",
    ],
    constraints: &[
        c(ELEMENT, "the operand is a tensor of ring elements or bits"),
        c(SHAPE, "the new shape has the same number of elements"),
    ],
    infer: |op, t| {
        let (Op::Reshape { shape }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        if t.sized(volume(&x.ty.shape))? != t.sized(volume(shape))? {
            let (old, new) = (t.cx.dims.show_shape(&x.ty.shape), t.cx.dims.show_shape(shape));
            return Err(t.fails(2, format!("{old} and {new}")));
        }
        Ok(moved(x.ty, shape.to_vec()))
    },
    derive_norms: NormRule::OfOperands(|_, t, ty| {
        let Ok([x]) = t.operands() else { return Norms::default() };
        let stay = ends(&x.ty.shape) == ends(&ty.shape);
        Norms { rows: reshaped_rows(x.ty, &ty.shape), ..flat(&x.ty.norms, stay) }
    }),
    meaning: Some(|_, e| movement::reshape(e.operand()?, e.shape.clone())),
    ..MOVEMENT
};

fn volume(shape: &[Dim]) -> Result<Dim> {
    shape.iter().try_fold(Dim::constant(1), |product, d| product.mul(d))
}

/// Rows of a reshaped tensor: parts of rows, or some rows in one.
fn reshaped_rows(x: &Ty, shape: &[Dim]) -> Option<u16> {
    let one = Dim::constant(1);
    let (old, new) = (x.shape.last().unwrap_or(&one), shape.last().unwrap_or(&one));
    let rows = x.norms.rows?;
    if old == new {
        return Some(rows);
    }
    let (old, new) = (positive(old)?, positive(new)?);
    if old % new == 0 {
        return Some(rows);
    }
    (new % old == 0).then(|| fit(u32::from(rows) + half((new / old).into())))?
}

pub(super) static TRANSPOSE: Description = Description {
    name: "transpose",
    result: "axes permuted",
    norms: ["x", "of the axis that becomes the last", "of the axis that becomes the last but one"],
    constraints: &[
        c(ELEMENT, "the operand is a tensor of ring elements or bits"),
        c(ATTRIBUTE, "perm is a permutation of the operand's axes"),
    ],
    infer: |op, t| {
        let (Op::Transpose { perm }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().map(|p| usize::from(*p)).eq(0..x.ty.shape.len()) {
            return Err(t.fails(2, format!("{perm:?} for {} axes", x.ty.shape.len())));
        }
        Ok(moved(x.ty, perm.iter().filter_map(|p| x.ty.shape.get(usize::from(*p)).cloned()).collect()))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let Op::Transpose { perm } = op else { return Norms::default() };
        let known = t.first_norms();
        let along = |back: usize| {
            let from = perm.len().checked_sub(back).and_then(|i| perm.get(i))?;
            match perm.len().checked_sub(usize::from(*from) + 1)? {
                0 => known.rows,
                1 => known.columns,
                _ => None,
            }
        };
        Norms { size: known.size, rows: along(1), columns: along(2) }
    }),
    meaning: Some(|op, e| {
        let Op::Transpose { perm } = op else { return Err(e.other()) };
        movement::transpose(e.operand()?, perm, e.shape.clone())
    }),
    ..MOVEMENT
};

pub(super) static SLICE: Description = Description {
    name: "slice",
    result: "`len` on the axis",
    norms: ["x", "x", "x"],
    constraints: &[
        c(ELEMENT, "the operand is a tensor of ring elements or bits"),
        c(ATTRIBUTE, "the axis is one of the operand's"),
        c(SHAPE, "0 ≤ start, 0 ≤ len and start + len ≤ size hold for all values of the symbols"),
    ],
    infer: |op, t| {
        let (Op::Slice { axis, start, len }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        let mut shape = x.ty.shape.clone();
        let rank = shape.len();
        let size = shape.get_mut(usize::from(*axis)).ok_or_else(|| t.fails(2, format!("axis {axis} of {rank}")))?;
        let rest = t.sized(size.sub(start).and_then(|d| d.sub(len)))?;
        let inside = [start, len, &rest].into_iter().all(|d| t.cx.dims.lower(d).is_some_and(|n| n >= 0));
        if !inside {
            let show = |d| t.cx.dims.show(d);
            return Err(t.fails(3, format!("start {}, len {} and size {}", show(start), show(len), show(size))));
        }
        *size = len.clone();
        Ok(moved(x.ty, shape))
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|op, e| {
        let Op::Slice { axis, start, .. } = op else { return Err(e.other()) };
        movement::slice(e.operand()?, usize::from(*axis), start.eval_usize(e.sizes)?, e.shape.clone())
    }),
    ..MOVEMENT
};

pub(super) static CONCAT: Description = Description {
    name: "concat",
    operands: &["…"],
    result: "the weakest form; sizes of the axis add",
    bound: "the maximum",
    norms: [
        "the maximum",
        "the maximum; along the last axis the root of the sum of squares",
        "likewise, along the last axis but one",
    ],
    constraints: &[
        c(ELEMENT, "the operands are all ring tensors of one ring and scale, or all bits"),
        c(ATTRIBUTE, "the axis is one of the first operand's"),
        c(SHAPE, "the operands have equal sizes on every other axis"),
    ],
    infer: |op, t| {
        let (Op::Concat { axis }, [first, rest @ ..]) = (op, t.all()) else { return Err(t.other()) };
        t.movable(1, first)?;
        let mut out = moved(first.ty, first.ty.shape.clone());
        let at = usize::from(*axis);
        if at >= out.shape.len() {
            return Err(t.fails(2, format!("axis {axis} of {}", out.shape.len())));
        }
        for other in rest {
            t.movable(1, other)?;
            if other.ty.elem != out.elem {
                return Err(t.fails(1, format!("{} and {}", out.elem, other.ty.elem)));
            }
            let same = other.ty.shape.len() == out.shape.len()
                && out.shape.iter().zip(&other.ty.shape).enumerate().all(|(i, (a, b))| i == at || a == b);
            if !same {
                let (a, b) = (t.cx.dims.show_shape(&out.shape), t.cx.dims.show_shape(&other.ty.shape));
                return Err(t.fails(3, format!("{a} and {b}")));
            }
            if let (Some(size), Some(more)) = (out.shape.get_mut(at), other.ty.shape.get(at)) {
                *size = t.sized(size.add(more))?;
            }
            out.sharing = out.sharing.max(other.ty.sharing);
            out.bound = out.bound.max(other.ty.bound);
        }
        Ok(out)
    },
    derive_norms: NormRule::OfOperands(|op, t, ty| {
        let Op::Concat { axis } = op else { return Norms::default() };
        let back = ty.shape.len().saturating_sub(usize::from(*axis));
        let parts = |one: &dyn Fn(&Ty) -> Option<u32>, along: bool| {
            let parts = t.all().iter().map(|x| one(x.ty)).collect::<Option<Vec<_>>>()?;
            let most = parts.iter().copied().max()?;
            fit(if along { parts.into_iter().reduce(root_sum)? } else { most })
        };
        let columns = t.first_norms().columns.and_then(|_| parts(&|ty| own_column(t.cx, ty), back == 2));
        let size = t.all().iter().map(|x| size(x.ty)).max().and_then(fit);
        Norms { size, rows: parts(&|ty| own_row(t.cx, ty), back == 1), columns }
    }),
    meaning: Some(|op, e| {
        let Op::Concat { axis } = *op else { return Err(e.other()) };
        movement::concat(e.args, axis.into(), e.shape.clone())
    }),
    ..MOVEMENT
};

pub(super) static EXPAND: Description = Description {
    name: "expand",
    result: "the new shape",
    norms: ["x", "x where rows stay; of one element a row: size · √n", "x where the last two sizes stay"],
    constraints: &[
        c(ELEMENT, "the operand is a tensor of ring elements or bits"),
        c(SHAPE, "the operand's shape broadcasts to the new one"),
    ],
    infer: |op, t| {
        let (Op::Expand { shape }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        if t.broadcast(2, &x.ty.shape, shape)? != *shape {
            let (old, new) = (t.cx.dims.show_shape(&x.ty.shape), t.cx.dims.show_shape(shape));
            return Err(t.fails(2, format!("{old} and {new}")));
        }
        Ok(moved(x.ty, shape.to_vec()))
    },
    derive_norms: NormRule::OfOperands(|_, t, ty| {
        let Ok([x]) = t.operands() else { return Norms::default() };
        let rows = spread_row(t.cx, x.ty, &ty.shape).and_then(fit);
        Norms { rows, ..flat(&x.ty.norms, ends(&x.ty.shape) == ends(&ty.shape)) }
    }),
    meaning: Some(|_, e| movement::expand(e.operand()?, e.shape.clone())),
    ..MOVEMENT
};

pub(super) static GATHER: Description = Description {
    name: "gather",
    operands: &["x", "i"],
    result: "the indices' shape in place of the axis",
    norms: ["x", "x where rows stay", ""],
    constraints: &[
        c(ELEMENT, "operand 0 is a tensor of ring elements or bits"),
        c(MASK, "the indices are public"),
        c(ELEMENT, "the indices are i64"),
        c(ATTRIBUTE, "the axis is one of operand 0's"),
    ],
    infer: |op, t| {
        let (Op::Gather { axis }, [x, index]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        if index.ty.sharing != Sharing::Public {
            return Err(t.finds(2, &index));
        }
        if index.ty.elem != Elem::Plain(DType::I64) {
            return Err(t.finds(3, &index));
        }
        let at = usize::from(*axis);
        if at >= x.ty.shape.len() {
            return Err(t.fails(4, format!("axis {axis} of {}", t.cx.dims.show_shape(&x.ty.shape))));
        }
        let (head, tail) = x.ty.shape.split_at(at);
        Ok(moved(x.ty, head.iter().chain(&index.ty.shape).chain(tail.iter().skip(1)).cloned().collect()))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let (Op::Gather { axis }, Ok([x, _])) = (op, t.operands()) else { return Norms::default() };
        let stay = usize::from(*axis) + 1 != x.ty.shape.len();
        Norms { rows: x.ty.norms.rows.filter(|_| stay), ..flat(&x.ty.norms, false) }
    }),
    meaning: Some(|op, e| {
        let (Op::Gather { axis }, [x, index]) = (op, e.operands()?) else { return Err(e.other()) };
        movement::gather(x, index.as_ints()?, usize::from(*axis), e.shape.clone())
    }),
    ..MOVEMENT
};
