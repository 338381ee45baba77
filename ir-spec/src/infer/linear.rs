//! Type rules of local arithmetic.

use super::{Operand, Rule, TypeCx, Violation, broadcast, ceil_log2, ring, ring_of, shared_ring};
use crate::ty::{Sharing, Ty};

/// `add` and `sub`: labels are those for ring bits, scale and shape.
pub(super) fn add(cx: &TypeCx, labels: [&'static str; 3], a: &Operand, b: &Operand) -> Rule<Ty> {
    let [bits_label, scale_label, shape_label] = labels;
    let ((bits, a_scale), (_, b_scale)) = one_ring(bits_label, a, b)?;
    if a_scale != b_scale {
        return Err(Violation::new(scale_label, format!("scales {a_scale} and {b_scale}")));
    }
    let shape = broadcast(cx, shape_label, &a.ty.shape, &b.ty.shape)?;
    let bound = u32::from(a.ty.bound.max(b.ty.bound)) + 1;
    Ok(ring(bits, a_scale.into(), weaker(a.ty.sharing, b.ty.sharing), shape, bound))
}

pub(super) fn neg(x: &Operand) -> Rule<Ty> {
    ring_of("neg_c1", x)?;
    Ok(with(x.ty, x.ty.bound.into()))
}

pub(super) fn mul_int(x: &Operand, k: i64) -> Rule<Ty> {
    ring_of("mul_int_c1", x)?;
    let bound = if k == 0 { 0 } else { u32::from(x.ty.bound) + ceil_log2(k.unsigned_abs().into()) };
    Ok(with(x.ty, bound))
}

pub(super) fn add_int(x: &Operand, k: i64) -> Rule<Ty> {
    ring_of("add_int_c1", x)?;
    let bound =
        if k == 0 { x.ty.bound.into() } else { u32::from(x.ty.bound).max(ceil_log2(k.unsigned_abs().into())) + 1 };
    Ok(with(x.ty, bound))
}

pub(super) fn upscale(x: &Operand, by: u8) -> Rule<Ty> {
    let (bits, scale) = ring_of("upscale_c1", x)?;
    let bound = u32::from(x.ty.bound) + u32::from(by);
    Ok(ring(bits, u32::from(scale) + u32::from(by), x.ty.sharing, x.ty.shape.clone(), bound))
}

pub(super) fn set_scale(x: &Operand, scale: u8) -> Rule<Ty> {
    let (bits, _) = ring_of("set_scale_c1", x)?;
    Ok(ring(bits, scale.into(), x.ty.sharing, x.ty.shape.clone(), x.ty.bound.into()))
}

pub(super) fn mul(cx: &TypeCx, a: &Operand, b: &Operand) -> Rule<Ty> {
    let ((bits, a_scale), (_, b_scale)) = one_ring("mul_c1", a, b)?;
    let sharing = match (a.ty.sharing, b.ty.sharing) {
        (Sharing::Public, other) | (other, Sharing::Public) => other,
        (Sharing::Shared, Sharing::Shared) => Sharing::Sum3,
        (x, y) => return Err(Violation::new("mul_c2", format!("{} by {}", x.name(), y.name()))),
    };
    let shape = broadcast(cx, "mul_c3", &a.ty.shape, &b.ty.shape)?;
    let bound = u32::from(a.ty.bound) + u32::from(b.ty.bound);
    Ok(ring(bits, u32::from(a_scale) + u32::from(b_scale), sharing, shape, bound))
}

pub(super) fn matmul(cx: &TypeCx, a: &Operand, b: &Operand, trans_b: bool) -> Rule<Ty> {
    let ((bits, a_scale), (_, b_scale)) = one_ring("matmul_c1", a, b)?;
    let sharing = match (a.ty.sharing, b.ty.sharing) {
        (Sharing::Public, Sharing::Public) => Sharing::Public,
        (Sharing::Public, Sharing::Shared) | (Sharing::Shared, Sharing::Public) => Sharing::Sum2,
        (Sharing::Shared, Sharing::Shared) => Sharing::Sum3,
        (x, y) => return Err(Violation::new("matmul_c2", format!("{} by {}", x.name(), y.name()))),
    };
    let ([a_batch @ .., rows, a_inner], [b_batch @ .., b_last, b_end]) = (&*a.ty.shape, &*b.ty.shape) else {
        return Err(Violation::new("matmul_c3", format!("{} and {} axes", a.ty.shape.len(), b.ty.shape.len())));
    };
    let (b_inner, columns) = if trans_b { (b_end, b_last) } else { (b_last, b_end) };
    let inner = || format!("{} and {}", cx.dims.show(a_inner), cx.dims.show(b_inner));
    if a_inner != b_inner {
        return Err(Violation::new("matmul_c4", inner()));
    }
    let log = cx.log2_of_max(a_inner).ok_or_else(|| Violation::new("matmul_c4", inner()))?;
    let mut shape = broadcast(cx, "matmul_c5", a_batch, b_batch)?;
    shape.extend([rows.clone(), columns.clone()]);
    let bound = u32::from(a.ty.bound) + u32::from(b.ty.bound) + log;
    Ok(ring(bits, u32::from(a_scale) + u32::from(b_scale), sharing, shape, bound))
}

pub(super) fn reduce_sum(cx: &TypeCx, x: &Operand, axis: u8) -> Rule<Ty> {
    ring_of("reduce_sum_c1", x)?;
    let mut ty = x.ty.clone();
    let rank = ty.shape.len();
    let size = ty
        .shape
        .get_mut(usize::from(axis))
        .ok_or_else(|| Violation::new("reduce_sum_c2", format!("axis {axis} of {rank}")))?;
    let log = cx.log2_of_max(size).ok_or_else(|| Violation::new("reduce_sum_c3", cx.dims.show(size)))?;
    *size = 1.into();
    Ok(with(&ty, u32::from(x.ty.bound) + log))
}

pub(super) fn narrow(x: &Operand, bits: u8) -> Rule<Ty> {
    let (old, scale) = ring_of("narrow_c1", x)?;
    if bits > old {
        return Err(Violation::new("narrow_c2", format!("{old} bits to {bits} bits")));
    }
    if x.ty.bound >= bits {
        return Err(Violation::new("narrow_c3", format!("a bound of {} and {bits} bits", x.ty.bound)));
    }
    Ok(ring(bits, scale.into(), x.ty.sharing, x.ty.shape.clone(), x.ty.bound.into()))
}

/// Of `|x| < 2^b` the floor is at least `−2^(b − by)`, and the result up to 2 less.
pub(super) fn cut(x: &Operand, by: u8) -> Rule<Ty> {
    let (bits, scale) = shared_ring("cut_c1", x)?;
    if by == 0 || !by.is_multiple_of(8) || by > scale || by >= bits {
        return Err(Violation::new("cut_c2", format!("by {by}, scale {scale}, {bits} bits")));
    }
    let left = u32::from(x.ty.bound.saturating_sub(by));
    Ok(ring(bits - by, u32::from(scale - by), Sharing::Shared, x.ty.shape.clone(), (left + 1).max(left.min(1) + 2)))
}

/// The form of a sum of two terms: the weaker of theirs.
pub(super) fn weaker(a: Sharing, b: Sharing) -> Sharing {
    a.max(b)
}

type Ring = (u8, u8);

fn one_ring(label: &'static str, a: &Operand, b: &Operand) -> Rule<(Ring, Ring)> {
    let (x, y) = (ring_of(label, a)?, ring_of(label, b)?);
    if x.0 != y.0 {
        return Err(Violation::new(label, format!("rings of {} and {} bits", x.0, y.0)));
    }
    Ok((x, y))
}

/// The same ring tensor with another bound, proven.
pub(super) fn with(ty: &Ty, bound: u32) -> Ty {
    let (bits, scale) = ty.as_ring().unwrap_or_default();
    ring(bits, scale.into(), ty.sharing, ty.shape.clone(), bound)
}
