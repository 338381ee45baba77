//! Type rules of interactive and composite ops.

use super::linear::with;
use super::movement::{moved, packed, rows};
use super::{
    Operand, Rule, TypeCx, Violation, broadcast, ceil_log2, describe, mask_of, not_client, ring, shared_bits,
    shared_ring,
};
use crate::dim::Dim;
use crate::op::{EXP_RING, EXP_SCALE, EXP_WINDOW, Op};
use crate::plain::DType;
use crate::ty::{Elem, Sharing, Ty};

pub(super) fn truncate(x: &Operand, by: u8) -> Rule<Ty> {
    let (bits, scale) = secret_ring("truncate_c1", x)?;
    if by == 0 || by > scale || u32::from(by) + 2 > u32::from(bits) {
        return Err(Violation::new("truncate_c2", format!("by {by}, scale {scale}, {bits} bits")));
    }
    if u32::from(x.ty.bound) + 2 > u32::from(bits) {
        return Err(Violation::new("truncate_c3", format!("a bound of {} in {bits} bits", x.ty.bound)));
    }
    let bound = u32::from(x.ty.bound.saturating_sub(by)) + 1;
    Ok(ring(bits, u32::from(scale) - u32::from(by), Sharing::Shared, x.ty.shape.clone(), bound))
}

pub(super) fn reshare(x: &Operand) -> Rule<Ty> {
    secret_ring("reshare_c1", x)?;
    Ok(Ty { sharing: Sharing::Shared, ..with(x.ty, x.ty.bound.into()) })
}

pub(super) fn extend(x: &Operand, to: u8) -> Rule<Ty> {
    let (bits, scale) = secret_ring("extend_c1", x)?;
    if to <= bits {
        return Err(Violation::new("extend_c2", format!("from {bits} to {to} bits")));
    }
    if u32::from(x.ty.bound) + 2 > u32::from(bits) {
        return Err(Violation::new("extend_c3", format!("a bound of {} in {bits} bits", x.ty.bound)));
    }
    Ok(ring(to, scale.into(), Sharing::Shared, x.ty.shape.clone(), x.ty.bound.into()))
}

pub(super) fn msb(x: &Operand, width: u8, drop: u8) -> Rule<Ty> {
    let (bits, _) = shared_ring("msb_c1", x)?;
    if width > bits || u32::from(drop) + 2 > u32::from(width) {
        return Err(Violation::new("msb_c2", format!("width {width}, {drop} dropped, in {bits} bits")));
    }
    if x.ty.bound.saturating_add(u8::from(drop > 0)) >= width {
        return Err(Violation::new("msb_c3", format!("a bound of {} and width {width}", x.ty.bound)));
    }
    Ok(Ty::bit(x.ty.shape.clone()))
}

/// `xor` and `and`: labels are those for elements and shape.
pub(super) fn bits(cx: &TypeCx, labels: [&'static str; 2], a: &Operand, b: &Operand) -> Rule<Ty> {
    let [element, shape] = labels;
    shared_bits(element, a)?;
    shared_bits(element, b)?;
    Ok(Ty::bit(broadcast(cx, shape, &a.ty.shape, &b.ty.shape)?))
}

pub(super) fn not(x: &Operand) -> Rule<Ty> {
    shared_bits("not_c1", x)?;
    Ok(Ty::bit(x.ty.shape.clone()))
}

pub(super) fn bit_to_ring(x: &Operand, bits: u8) -> Rule<Ty> {
    shared_bits("bit_to_ring_c1", x)?;
    Ok(ring(bits, 0, Sharing::Shared, x.ty.shape.clone(), 1))
}

/// Outside of what the op holds for, its result is any element of its ring.
pub(super) fn exp_digits(x: &Operand, scale: u8) -> Rule<Ty> {
    let (bits, found) = shared_ring("exp_digits_c1", x)?;
    if found != scale || u32::from(scale) + u32::from(EXP_WINDOW) > u32::from(bits) {
        return Err(Violation::new("exp_digits_c2", format!("scale {scale} of {}", describe(x.ty))));
    }
    Ok(ring(EXP_RING, EXP_SCALE.into(), Sharing::Shared, x.ty.shape.clone(), u32::from(EXP_RING) - 1))
}

pub(super) fn row_max(cx: &TypeCx, x: &Operand, mask: &Operand, shape: &[Dim], (width, drop): (u8, u8)) -> Rule<Ty> {
    let (bits, _) = shared_ring("row_max_c1", x)?;
    let mask = mask_of(["row_max_c2", "row_max_c3"], mask)?;
    packed(cx, ["row_max_c4", "row_max_c5"], x, mask, shape)?;
    holds_difference("row_max_c6", x.ty, (width, drop), bits)?;
    Ok(moved(x.ty, rows(shape)))
}

pub(super) fn arg_max(cx: &TypeCx, x: &Operand, width: u8) -> Rule<Ty> {
    let (bits, _) = shared_ring("arg_max_c1", x)?;
    let wrong = || Violation::new("arg_max_c2", cx.dims.show_shape(&x.ty.shape));
    let (columns, rows) = x.ty.shape.split_last().ok_or_else(wrong)?;
    let log = cx.log2_of_max(columns).ok_or_else(wrong)?;
    if cx.dims.lower(columns).is_none_or(|n| n < 1) {
        return Err(wrong());
    }
    holds_difference("arg_max_c3", x.ty, (width, 0), bits)?;
    Ok(ring(bits, 0, Sharing::Shared, rows.to_vec(), log))
}

/// The difference of two values below `2^bound` is below `2^(bound + 1)`. Dropped bits take one bit more, since what is
/// left of both terms may add up to one less, and leave at least two to compare.
fn holds_difference(label: &'static str, ty: &Ty, (width, drop): (u8, u8), bits: u8) -> Rule<()> {
    let least = (u32::from(ty.bound) + 2 + u32::from(drop > 0)).max(u32::from(drop) + 2);
    if u32::from(width) < least || width > bits {
        let found = format!("a bound of {} and width {width}, {drop} dropped, in {bits} bits", ty.bound);
        return Err(Violation::new(label, found));
    }
    Ok(())
}

pub(super) fn embed(ids: &Operand, table: &Operand) -> Rule<Ty> {
    if ids.ty.elem != Elem::Plain(DType::I64) || ids.ty.sharing != Sharing::Client {
        return Err(Violation::new("embed_c1", describe(ids.ty)));
    }
    shared_ring("embed_c2", table)?;
    let [_, features] = &*table.ty.shape else {
        return Err(Violation::new("embed_c3", format!("{} axes", table.ty.shape.len())));
    };
    let shape = ids.ty.shape.iter().chain([features]).cloned().collect();
    Ok(moved(table.ty, shape))
}

pub(super) fn reveal(cx: &TypeCx, x: &Operand, slot: u32) -> Rule<Ty> {
    if usize::try_from(slot).map_or(true, |s| s >= cx.outputs.len()) {
        return Err(Violation::new("reveal_c1", format!("slot {slot} of {}", cx.outputs.len())));
    }
    shared_ring("reveal_c2", x)?;
    Ok(with(x.ty, x.ty.bound.into()))
}

pub(super) fn set_state(cx: &TypeCx, x: &Operand, slot: u32) -> Rule<Ty> {
    if usize::try_from(slot).map_or(true, |s| s >= cx.states.len()) {
        return Err(Violation::new("set_state_c1", format!("slot {slot} of {}", cx.states.len())));
    }
    shared_ring("set_state_c2", x)?;
    Ok(with(x.ty, x.ty.bound.into()))
}

/// Values up to `e^max`, and one bit more.
pub(super) fn exp(x: &Operand, max: i8) -> Rule<Ty> {
    let (_, scale) = shared_ring("exp_c1", x)?;
    if !(-32..=32).contains(&max) {
        return Err(Violation::new("exp_c2", format!("max = {max}")));
    }
    // 93/64 is above log2 e.
    let bits = (i32::from(max) * 93 + 63).div_euclid(64).max(0);
    Ok(with(x.ty, u32::from(scale) + bits.unsigned_abs() + 1))
}

/// Values up to `2^−min_log2`, and one bit more.
pub(super) fn reciprocal(x: &Operand, range: (i8, i8), scale: u8) -> Rule<Ty> {
    shared_ring("reciprocal_c1", x)?;
    in_range("reciprocal_c2", range)?;
    Ok(rescaled(x.ty, scale, i32::from(scale) - i32::from(range.0) + 1))
}

/// Values up to the dividend's bound times `2^−min_log2`, and one bit more.
pub(super) fn div(cx: &TypeCx, a: &Operand, b: &Operand, range: (i8, i8), scale: u8) -> Rule<Ty> {
    let ((bits, a_scale), (b_bits, _)) = (shared_ring("div_c1", a)?, shared_ring("div_c1", b)?);
    if bits != b_bits {
        return Err(Violation::new("div_c2", format!("{bits} and {b_bits} bits")));
    }
    let shape = broadcast(cx, "div_c3", &a.ty.shape, &b.ty.shape)?;
    in_range("div_c4", range)?;
    let bound = i32::from(a.ty.bound) - i32::from(a_scale) + i32::from(scale) - i32::from(range.0) + 1;
    Ok(Ty { shape, ..rescaled(a.ty, scale, bound) })
}

/// Values up to `2^max_log4`, and one bit more.
pub(super) fn sqrt(x: &Operand, range: (i8, i8), scale: u8) -> Rule<Ty> {
    shared_ring("sqrt_c1", x)?;
    in_range("sqrt_c2", range)?;
    Ok(rescaled(x.ty, scale, i32::from(scale) + i32::from(range.1) + 1))
}

/// Values up to `2^−min_log4`, and one bit more for the nearest bucket's parabola.
pub(super) fn rsqrt(x: &Operand, range: (i8, i8), scale: u8) -> Rule<Ty> {
    shared_ring("rsqrt_c1", x)?;
    in_range("rsqrt_c2", range)?;
    Ok(rescaled(x.ty, scale, i32::from(scale) - i32::from(range.0) + 2))
}

/// Values below `32 · ln 2`.
pub(super) fn log(x: &Operand, range: (i8, i8), scale: u8) -> Rule<Ty> {
    shared_ring("log_c1", x)?;
    in_range("log_c2", range)?;
    Ok(rescaled(x.ty, scale, i32::from(scale) + 5))
}

fn in_range(label: &'static str, (min, max): (i8, i8)) -> Rule<()> {
    if is_range(min, max) { Ok(()) } else { Err(Violation::new(label, format!("{min} to {max}"))) }
}

/// A type at another scale with another bound.
fn rescaled(ty: &Ty, scale: u8, bound: i32) -> Ty {
    let bits = ty.as_ring().map_or(0, |(bits, _)| bits);
    ring(bits, scale.into(), Sharing::Shared, ty.shape.clone(), u32::try_from(bound).unwrap_or(1).max(1))
}

/// `softmax` and what takes its place: labels are those for the operand, the mask's form, its elements and the shapes.
/// Values in [0, 1].
pub(super) fn softmax(cx: &TypeCx, labels: [&'static str; 4], x: &Operand, mask: &Operand) -> Rule<Ty> {
    let [form, public, element, shape] = labels;
    let (_, scale) = shared_ring(form, x)?;
    mask_of([public, element], mask)?;
    let fits = broadcast(cx, shape, &x.ty.shape, &mask.ty.shape)? == x.ty.shape;
    if x.ty.shape.is_empty() || !fits {
        return Err(Violation::new(shape, cx.dims.show_shape(&mask.ty.shape)));
    }
    Ok(with(x.ty, u32::from(scale) + 1))
}

pub(super) fn ratio_softmax(
    cx: &TypeCx,
    x: &Operand,
    mask: &Operand,
    constants: [u32; 2],
    (min, max): (i8, i8),
) -> Rule<Ty> {
    let labels = ["ratio_softmax_c1", "ratio_softmax_c2", "ratio_softmax_c3", "ratio_softmax_c4"];
    let ty = softmax(cx, labels, x, mask)?;
    let [shift, eps] = constants.map(f32::from_bits);
    if !shift.is_finite() || !eps.is_finite() || eps < 0.0 || !is_range(min, max) {
        return Err(Violation::new("ratio_softmax_c5", format!("shift = {shift}, eps = {eps}, {min} to {max}")));
    }
    Ok(ty)
}

/// The result's magnitude is at most the operand's, and the error of the fit takes one bit.
pub(super) fn activation(label: &'static str, x: &Operand) -> Rule<Ty> {
    shared_ring(label, x)?;
    Ok(with(x.ty, u32::from(x.ty.bound) + 1))
}

/// Values in [−1, 1], and the error of the fit.
pub(super) fn saturating(label: &'static str, x: &Operand) -> Rule<Ty> {
    let (_, scale) = shared_ring(label, x)?;
    Ok(with(x.ty, u32::from(scale) + 1))
}

/// Values between 0 and `|x| + ln 2`.
pub(super) fn softplus(x: &Operand) -> Rule<Ty> {
    let (_, scale) = shared_ring("softplus_c1", x)?;
    Ok(with(x.ty, u32::from(x.ty.bound.max(scale)) + 1))
}

/// Whether the rows that a norm takes may be so long that they are known to 5 percent only.
pub(super) fn is_coarse(op: &Op, ty: &Ty) -> bool {
    let (length, centred) = match op {
        Op::RmsNorm { length, .. } => (*length, false),
        Op::LayerNorm { length, .. } => (*length, true),
        _ => return false,
    };
    longest(length, centred, ty.shape.last().and_then(Dim::as_constant).unwrap_or(1)) >= COARSE_ROW
}

/// Bits of the longest row that a norm normalises.
fn longest(length: u8, centred: bool, columns: i64) -> u32 {
    u32::from(length) + if centred { ceil_log2(columns.into()) } else { 0 }
}

/// Attributes of `rms_norm` and `layer_norm`.
pub(super) struct NormForm {
    pub(super) eps: u32,
    pub(super) length: u8,
    pub(super) scale: u8,
    pub(super) centred: bool,
}

/// Rows shorter than `2^LONGEST_ROW` are normalised, after `layer_norm` has multiplied them by the number of columns.
const LONGEST_ROW: u32 = 50;
/// Rows from this length on are known to 5 percent, all shorter ones to 1 percent.
const COARSE_ROW: u32 = 47;
/// Most fraction bits of a norm's result.
const FINEST_NORM: u8 = 40;

/// `rms_norm` and `layer_norm`: labels are those for the operand, the axis and the attributes.
/// The result's magnitude is at most the square root of the number of elements, and the error of the row's factor.
pub(super) fn norm(cx: &TypeCx, labels: [&'static str; 3], x: &Operand, form: NormForm) -> Rule<Ty> {
    let [operand, axis, attributes] = labels;
    let NormForm { eps, length, scale, centred } = form;
    let (bits, _) = shared_ring(operand, x)?;
    if bits != 64 {
        return Err(Violation::new(operand, describe(x.ty)));
    }
    let wrong = || Violation::new(axis, cx.dims.show_shape(&x.ty.shape));
    let columns = x.ty.shape.last().and_then(|d| d.as_constant()).filter(|&n| n > 0).ok_or_else(wrong)?;
    let eps = f32::from_bits(eps);
    let longest = longest(length, centred, columns);
    if !eps.is_finite() || eps < 0.0 || longest > LONGEST_ROW || scale > FINEST_NORM {
        let found = format!("eps = {eps}, length = {length}, scale = {scale} for {columns} columns");
        return Err(Violation::new(attributes, found));
    }
    // √columns · (1 + error) < 2^b as columns · (1 + error)² < 4^b, in ten-thousandths.
    let error = if longest < COARSE_ROW { 10_201 } else { 11_025 };
    let size = i128::from(columns) * error;
    let above = (0..=32u32).find(|&b| size < 10_000i128 << (2 * b)).ok_or_else(wrong)?;
    Ok(ring(bits, scale.into(), Sharing::Shared, x.ty.shape.clone(), u32::from(scale) + above))
}

fn is_range(min: i8, max: i8) -> bool {
    (-32..=32).contains(&min) && max <= 32 && min < max
}

fn secret_ring(label: &'static str, x: &Operand) -> Rule<(u8, u8)> {
    not_client(x)?;
    match x.ty.as_ring() {
        Some(ring) if x.ty.sharing.is_secret() => Ok(ring),
        _ => Err(Violation::new(label, describe(x.ty))),
    }
}
