//! Type rules of ops that bring values in.

use super::{Operand, Rule, TypeCx, Violation, describe};
use crate::plain::{DType, Program, Type};
use crate::ty::{Elem, Sharing, Ty};

pub(super) fn public(cx: &TypeCx, value: u32) -> Rule<Ty> {
    let ty = public_type(cx.public, value).ok_or_else(|| Violation::new("public_c1", format!("index {value}")))?;
    Ok(Ty::plain(ty.dtype, Sharing::Public, ty.shape))
}

/// The type of the output of the public program with this index.
pub(crate) fn public_type(program: &Program, value: u32) -> Option<Type> {
    let output = find(&program.outputs, value)?;
    program.ty(*output, program.nodes.len()).ok()
}

pub(super) fn encode(x: &Operand, bits: u8, scale: u8, declared: Option<&Ty>) -> Rule<Ty> {
    if x.ty.sharing != Sharing::Public {
        return Err(Violation::new("encode_c1", describe(x.ty)));
    }
    if x.ty.elem != Elem::Plain(DType::F32) {
        return Err(Violation::new("encode_c2", describe(x.ty)));
    }
    let bound = the(declared)?.bound;
    let from = the(declared)?.bound_from;
    Ok(Ty { bound_from: from, ..Ty::ring(bits, scale, Sharing::Public, x.ty.shape.clone(), bound) })
}

pub(super) fn public_weight(declared: Option<&Ty>) -> Rule<Ty> {
    stored(["public_weight_c1", "public_weight_c2"], Sharing::Public, declared)
}

pub(super) fn weight(declared: Option<&Ty>) -> Rule<Ty> {
    stored(["weight_c1", "weight_c2"], Sharing::Shared, declared)
}

fn stored(labels: [&'static str; 2], sharing: Sharing, declared: Option<&Ty>) -> Rule<Ty> {
    let [form, sizes] = labels;
    let ty = the(declared)?;
    is_ring(form, ty, sharing)?;
    if ty.shape.iter().any(|d| d.as_constant().is_none()) {
        return Err(Violation::new(sizes, "a symbolic size"));
    }
    Ok(ty.clone())
}

pub(super) fn input(cx: &TypeCx, slot: u32, declared: Option<&Ty>) -> Rule<Ty> {
    let input = find(cx.inputs, slot).ok_or_else(|| Violation::new("input_c1", format!("slot {slot}")))?;
    if input.dtype != DType::F32 {
        return Err(Violation::new("input_c2", input.dtype.name()));
    }
    let ty = the(declared)?;
    is_ring("input_c3", ty, Sharing::Shared)?;
    Ok(Ty { shape: input.shape.clone(), ..ty.clone() })
}

pub(super) fn client_ints(cx: &TypeCx, slot: u32) -> Rule<Ty> {
    let input = find(cx.inputs, slot).ok_or_else(|| Violation::new("client_ints_c1", format!("slot {slot}")))?;
    if input.dtype != DType::I64 {
        return Err(Violation::new("client_ints_c2", input.dtype.name()));
    }
    Ok(Ty::plain(DType::I64, Sharing::Client, input.shape.clone()))
}

pub(super) fn state(cx: &TypeCx, slot: u32, declared: Option<&Ty>) -> Rule<Ty> {
    let state = find(cx.states, slot).ok_or_else(|| Violation::new("state_c1", format!("slot {slot}")))?;
    let ty = the(declared)?;
    is_ring("state_c2", ty, Sharing::Shared)?;
    Ok(Ty { shape: state.shape.clone(), ..ty.clone() })
}

fn find<T>(slots: &[T], slot: u32) -> Option<&T> {
    slots.get(usize::try_from(slot).ok()?)
}

fn the(declared: Option<&Ty>) -> Rule<&Ty> {
    declared.ok_or_else(|| Violation::new("source_c1", "none"))
}

fn is_ring(label: &'static str, ty: &Ty, sharing: Sharing) -> Rule<()> {
    if ty.as_ring().is_some() && ty.sharing == sharing {
        return Ok(());
    }
    Err(Violation::new(label, describe(ty)))
}
