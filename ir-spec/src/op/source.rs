//! Ops that bring values in.

use super::*;
use crate::infer::{Typing, public_type};
use crate::plain::{DType, Data};
use crate::reference::{RefData, encode_as};
use crate::ty::{Elem, Sharing};

/// A source whose value is given from outside.
const SOURCE: Description =
    Description { class: Class::Source, operands: &[], bound: "declared", ..Description::BLANK };

pub(super) static PUBLIC: Description = Description {
    name: "public",
    result: "plain public",
    bound: "—",
    constraints: &[c(SLOT, "the index names a value of the public program")],
    infer: |op, t| {
        let Op::Public { value } = *op else { return Err(t.other()) };
        let ty = public_type(t.cx.public, value).ok_or_else(|| t.fails(1, format!("index {value}")))?;
        Ok(Ty::plain(ty.dtype, Sharing::Public, ty.shape))
    },
    ..SOURCE
};

pub(super) static ENCODE: Description = Description {
    name: "encode",
    class: Class::Core,
    operands: &["x"],
    declares_bound: true,
    result: "ring public",
    norms: ["", "declared", "declared"],
    constraints: &[c("E0336", "the operand is public"), c(ELEMENT, "the operand's elements are f32")],
    infer: |op, t| {
        let (Op::Encode { bits, scale }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        if x.ty.sharing != Sharing::Public {
            return Err(t.finds(1, &x));
        }
        if x.ty.elem != Elem::Plain(DType::F32) {
            return Err(t.finds(2, &x));
        }
        let declared = t.declared()?;
        let ty = Ty::ring(*bits, *scale, Sharing::Public, x.ty.shape.clone(), declared.bound);
        Ok(Ty { bound_from: declared.bound_from, ..ty })
    },
    derive_norms: NormRule::Declared,
    meaning: Some(|_, e| {
        let [x] = e.operands()?;
        let RefData::Plain(Data::F32(values)) = &x.data else {
            return Err(e.mismatch("expected floats"));
        };
        let bits = e.ty.as_ring().map_or(0, |(bits, _)| bits);
        RefValue::ring(bits, e.shape.clone(), encode_as(values, &e.shape, e.ty)?)
    }),
    ..SOURCE
};

pub(super) static PUBLIC_WEIGHT: Description = Description {
    name: "public_weight",
    declares_bound: true,
    result: "ring public",
    norms: ["", "declared", "declared"],
    constraints: &[c(SHARING, "the declared type is a public ring tensor"), c(SHAPE, "every size is a number")],
    infer: |_, t| stored(t, Sharing::Public),
    derive_norms: NormRule::Declared,
    ..SOURCE
};

pub(super) static WEIGHT: Description = Description {
    name: "weight",
    declares_bound: true,
    result: "ring shared",
    norms: ["", "declared", "declared"],
    constraints: &[c(SHARING, "the declared type is a shared ring tensor"), c(SHAPE, "every size is a number")],
    infer: |_, t| stored(t, Sharing::Shared),
    derive_norms: NormRule::Declared,
    ..SOURCE
};

fn stored(t: &Typing, sharing: Sharing) -> Rule<Ty> {
    let ty = t.declared()?;
    is_ring(t, 1, ty, sharing)?;
    if ty.shape.iter().any(|d| d.as_constant().is_none()) {
        return Err(t.fails(2, "a symbolic size"));
    }
    Ok(ty.clone())
}

pub(super) static INPUT: Description = Description {
    name: "input",
    declares_bound: true,
    result: "ring shared, of the slot's shape",
    constraints: &[
        c(SLOT, "the slot is declared"),
        c(ELEMENT, "the slot holds f32"),
        c(SHARING, "the declared type is a shared ring tensor"),
    ],
    infer: |op, t| {
        let Op::Input { slot } = *op else { return Err(t.other()) };
        let input = find(t.cx.inputs, slot).ok_or_else(|| t.fails(1, format!("slot {slot}")))?;
        if input.dtype != DType::F32 {
            return Err(t.fails(2, input.dtype.name()));
        }
        let ty = t.declared()?;
        is_ring(t, 3, ty, Sharing::Shared)?;
        Ok(Ty { shape: input.shape.clone(), ..ty.clone() })
    },
    ..SOURCE
};

pub(super) static CLIENT_INTS: Description = Description {
    name: "client_ints",
    result: "i64 client",
    bound: "—",
    constraints: &[c(SLOT, "the slot is declared"), c(ELEMENT, "the slot holds i64")],
    infer: |op, t| {
        let Op::ClientInts { slot } = *op else { return Err(t.other()) };
        let input = find(t.cx.inputs, slot).ok_or_else(|| t.fails(1, format!("slot {slot}")))?;
        if input.dtype != DType::I64 {
            return Err(t.fails(2, input.dtype.name()));
        }
        Ok(Ty::plain(DType::I64, Sharing::Client, input.shape.clone()))
    },
    ..SOURCE
};

pub(super) static STATE: Description = Description {
    name: "state",
    declares_bound: true,
    result: "ring shared or masked, of the slot's shape",
    constraints: &[
        c(SLOT, "the slot is declared"),
        c("E0339", "the declared type is a shared ring tensor, or a masked one where the setting has those"),
    ],
    infer: |op, t| {
        let Op::State { slot } = *op else { return Err(t.other()) };
        let state = find(t.cx.states, slot).ok_or_else(|| t.fails(1, format!("slot {slot}")))?;
        let ty = t.declared()?;
        let is_masked = t.cx.setting.protocol().dealer.is_some() && ty.sharing == Sharing::Masked;
        is_ring(t, 2, ty, if is_masked { Sharing::Masked } else { Sharing::Shared })?;
        Ok(Ty { shape: state.shape.clone(), ..ty.clone() })
    },
    ..SOURCE
};

pub(super) static RANDOM: Description = Description {
    name: "random",
    result: "bit",
    bound: "—",
    infer: |op, t| match op {
        Op::Random { shape } => Ok(Ty::bit(shape.clone())),
        _ => Err(t.other()),
    },
    ..SOURCE
};

fn find<T>(slots: &[T], slot: u32) -> Option<&T> {
    slots.get(usize::try_from(slot).ok()?)
}

fn is_ring(t: &Typing, number: usize, ty: &Ty, sharing: Sharing) -> Rule<()> {
    if ty.as_ring().is_some() && ty.sharing == sharing {
        return Ok(());
    }
    Err(t.fails(number, crate::infer::describe(ty)))
}
