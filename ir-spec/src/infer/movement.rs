//! Type rules of local movement and of ragged rows.

use super::linear::{weaker, with};
use super::{Operand, Rule, TypeCx, Violation, broadcast, describe, mask_of, movable, ring_of, sized};
use crate::dim::Dim;
use crate::norms::Norms;
use crate::plain::DType;
use crate::ty::{BoundFrom, Elem, Sharing, Ty};

pub(super) fn reshape(cx: &TypeCx, x: &Operand, shape: &[Dim]) -> Rule<Ty> {
    movable("reshape_c1", x)?;
    if sized(volume(&x.ty.shape))? != sized(volume(shape))? {
        let (old, new) = (cx.dims.show_shape(&x.ty.shape), cx.dims.show_shape(shape));
        return Err(Violation::new("reshape_c2", format!("{old} and {new}")));
    }
    Ok(moved(x.ty, shape.to_vec()))
}

pub(super) fn transpose(x: &Operand, perm: &[u8]) -> Rule<Ty> {
    movable("transpose_c1", x)?;
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    let axes = sorted.iter().map(|p| usize::from(*p));
    if !axes.eq(0..x.ty.shape.len()) {
        return Err(Violation::new("transpose_c2", format!("{perm:?} for {} axes", x.ty.shape.len())));
    }
    Ok(moved(x.ty, perm.iter().filter_map(|p| x.ty.shape.get(usize::from(*p)).cloned()).collect()))
}

pub(super) fn slice(cx: &TypeCx, x: &Operand, axis: u8, start: &Dim, len: &Dim) -> Rule<Ty> {
    movable("slice_c1", x)?;
    let mut shape = x.ty.shape.clone();
    let rank = shape.len();
    let size =
        shape.get_mut(usize::from(axis)).ok_or_else(|| Violation::new("slice_c2", format!("axis {axis} of {rank}")))?;
    let rest = sized(size.sub(start).and_then(|d| d.sub(len)))?;
    let inside = [start, len, &rest].into_iter().all(|d| cx.dims.lower(d).is_some_and(|n| n >= 0));
    if !inside {
        let show = |d| cx.dims.show(d);
        let found = format!("start {}, len {} and size {}", show(start), show(len), show(size));
        return Err(Violation::new("slice_c3", found));
    }
    *size = len.clone();
    Ok(moved(x.ty, shape))
}

pub(super) fn concat(cx: &TypeCx, first: &Operand, rest: &[Operand], axis: u8) -> Rule<Ty> {
    movable("concat_c1", first)?;
    let mut out = moved(first.ty, first.ty.shape.clone());
    let at = usize::from(axis);
    if at >= out.shape.len() {
        return Err(Violation::new("concat_c2", format!("axis {axis} of {}", out.shape.len())));
    }
    for other in rest {
        movable("concat_c1", other)?;
        if other.ty.elem != out.elem {
            return Err(Violation::new("concat_c1", format!("{} and {}", out.elem, other.ty.elem)));
        }
        let same = other.ty.shape.len() == out.shape.len()
            && out.shape.iter().zip(&other.ty.shape).enumerate().all(|(i, (a, b))| i == at || a == b);
        if !same {
            let (a, b) = (cx.dims.show_shape(&out.shape), cx.dims.show_shape(&other.ty.shape));
            return Err(Violation::new("concat_c3", format!("{a} and {b}")));
        }
        if let (Some(size), Some(more)) = (out.shape.get_mut(at), other.ty.shape.get(at)) {
            *size = sized(size.add(more))?;
        }
        out.sharing = weaker(out.sharing, other.ty.sharing);
        out.bound = out.bound.max(other.ty.bound);
    }
    Ok(out)
}

pub(super) fn expand(cx: &TypeCx, x: &Operand, shape: &[Dim]) -> Rule<Ty> {
    movable("expand_c1", x)?;
    if broadcast(cx, "expand_c2", &x.ty.shape, shape)? != shape {
        let (old, new) = (cx.dims.show_shape(&x.ty.shape), cx.dims.show_shape(shape));
        return Err(Violation::new("expand_c2", format!("{old} and {new}")));
    }
    Ok(moved(x.ty, shape.to_vec()))
}

pub(super) fn gather(cx: &TypeCx, x: &Operand, index: &Operand, axis: u8) -> Rule<Ty> {
    movable("gather_c1", x)?;
    if index.ty.sharing != Sharing::Public {
        return Err(Violation::new("gather_c2", describe(index.ty)));
    }
    if index.ty.elem != Elem::Plain(DType::I64) {
        return Err(Violation::new("gather_c3", describe(index.ty)));
    }
    let at = usize::from(axis);
    if at >= x.ty.shape.len() {
        return Err(Violation::new("gather_c4", format!("axis {axis} of {}", cx.dims.show_shape(&x.ty.shape))));
    }
    let (head, tail) = x.ty.shape.split_at(at);
    let shape = head.iter().chain(&index.ty.shape).chain(tail.iter().skip(1)).cloned().collect();
    Ok(moved(x.ty, shape))
}

pub(super) fn pack(cx: &TypeCx, x: &Operand, mask: &Operand) -> Rule<Ty> {
    movable("pack_c1", x)?;
    let mask = mask_of(["pack_c2", "pack_c3"], mask)?;
    let count = counted(cx, "pack_c4", mask, &x.ty.shape)?;
    Ok(moved(x.ty, vec![count]))
}

pub(super) fn unpack(cx: &TypeCx, x: &Operand, mask: &Operand, shape: &[Dim]) -> Rule<Ty> {
    movable("unpack_c1", x)?;
    let mask = mask_of(["unpack_c2", "unpack_c3"], mask)?;
    packed(cx, ["unpack_c4", "unpack_c5"], x, mask, shape)?;
    Ok(moved(x.ty, shape.to_vec()))
}

pub(super) fn row_sum(cx: &TypeCx, x: &Operand, mask: &Operand, shape: &[Dim]) -> Rule<Ty> {
    ring_of("row_sum_c1", x)?;
    let mask = mask_of(["row_sum_c2", "row_sum_c3"], mask)?;
    packed(cx, ["row_sum_c4", "row_sum_c5"], x, mask, shape)?;
    let log = shape.last().and_then(|columns| cx.log2_of_max(columns));
    let log = log.ok_or_else(|| Violation::new("row_sum_c4", cx.dims.show_shape(shape)))?;
    Ok(with(&moved(x.ty, rows(shape)), u32::from(x.ty.bound) + log))
}

pub(super) fn row_expand(cx: &TypeCx, x: &Operand, mask: &Operand, shape: &[Dim]) -> Rule<Ty> {
    movable("row_expand_c1", x)?;
    let mask = mask_of(["row_expand_c2", "row_expand_c3"], mask)?;
    let count = counted(cx, "row_expand_c4", mask, shape)?;
    if shape.is_empty() || x.ty.shape != rows(shape) {
        return Err(Violation::new("row_expand_c5", cx.dims.show_shape(&x.ty.shape)));
    }
    Ok(moved(x.ty, vec![count]))
}

/// One element for each row of a dense shape: size 1 on the last axis.
pub(super) fn rows(shape: &[Dim]) -> Vec<Dim> {
    let mut out = shape.to_vec();
    if let Some(last) = out.last_mut() {
        *last = 1.into();
    }
    out
}

/// Checks that `x` is the packed entries of a dense `shape`: labels are those for the count and for the operand.
pub(super) fn packed(cx: &TypeCx, labels: [&'static str; 2], x: &Operand, mask: u32, shape: &[Dim]) -> Rule<()> {
    let [count_label, shape_label] = labels;
    let count = counted(cx, count_label, mask, shape)?;
    if shape.is_empty() || x.ty.shape != [count] {
        return Err(Violation::new(shape_label, cx.dims.show_shape(&x.ty.shape)));
    }
    Ok(())
}

fn counted(cx: &TypeCx, label: &'static str, mask: u32, shape: &[Dim]) -> Rule<Dim> {
    cx.count(mask, shape).ok_or_else(|| {
        Violation::new(label, format!("no count for public value {mask} and {}", cx.dims.show_shape(shape)))
    })
}

/// The same elements in another shape.
pub(super) fn moved(ty: &Ty, shape: Vec<Dim>) -> Ty {
    let (bound_from, norms) = (BoundFrom::Proven, Norms::default());
    Ty { elem: ty.elem, sharing: ty.sharing, shape, bound: ty.bound, bound_from, norms }
}

fn volume(shape: &[Dim]) -> crate::Result<Dim> {
    shape.iter().try_fold(Dim::constant(1), |product, d| product.mul(d))
}
