//! Ragged rows: the entries of a dense shape that a public mask keeps, row after row. A row is the dense shape's last axis.

use super::movement::MOVEMENT;
use super::*;
use crate::infer::norms::{Numbers, flat, log, size};
use crate::infer::{Operand, Typing, moved, with};
use crate::reference::ragged;

const IS_PUBLIC: Constraint = c(MASK, "the mask is public");
const IS_BOOLEAN: Constraint = c(ELEMENT, "the mask is a value of the public program of booleans");
const HAS_COUNT: Constraint = c(SHAPE, "a count is declared for the mask and the dense shape");
const IS_PACKED: Constraint = c(SHAPE, "operand 0 has one axis, of the count's size");
const IS_MOVABLE: Constraint = c(ELEMENT, "operand 0 is a tensor of ring elements or bits");

const RAGGED: Description = Description {
    operands: &["x", "m"],
    norms: ["x", "", ""],
    derive_norms: NormRule::OfOperands(|_, t, _| flat(&t.first_norms(), false)),
    ..MOVEMENT
};

pub(super) static PACK: Description = Description {
    name: "pack",
    result: "[count]",
    constraints: &[IS_MOVABLE, IS_PUBLIC, IS_BOOLEAN, HAS_COUNT],
    infer: |_, t| {
        let [x, mask] = t.operands()?;
        t.movable(1, &x)?;
        let mask = t.mask(2, &mask)?;
        Ok(moved(x.ty, vec![counted(t, 4, mask, &x.ty.shape)?]))
    },
    meaning: Some(|_, e| {
        let [x, mask] = e.operands()?;
        ragged::pack(x, mask, e.shape.clone())
    }),
    ..RAGGED
};

pub(super) static UNPACK: Description = Description {
    name: "unpack",
    result: "the dense shape",
    constraints: &[IS_MOVABLE, IS_PUBLIC, IS_BOOLEAN, HAS_COUNT, IS_PACKED],
    infer: |op, t| {
        let (Op::Unpack { shape }, [x, mask]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        let mask = t.mask(2, &mask)?;
        packed(t, 4, &x, mask, shape)?;
        Ok(moved(x.ty, shape.to_vec()))
    },
    meaning: Some(|_, e| {
        let [x, mask] = e.operands()?;
        ragged::unpack(x, mask, e.shape.clone())
    }),
    ..RAGGED
};

pub(super) static ROW_SUM: Description = Description {
    name: "row_sum",
    result: "size 1 on the last axis",
    bound: "x + lg columns",
    norms: ["x · n", "the size", ""],
    constraints: &[
        c(ELEMENT, "operand 0 is a ring tensor"),
        IS_PUBLIC,
        IS_BOOLEAN,
        c(SHAPE, "a count is declared for the mask and the dense shape, whose last size has a maximum"),
        IS_PACKED,
    ],
    infer: |op, t| {
        let (Op::RowSum { shape }, [x, mask]) = (op, t.operands()?) else { return Err(t.other()) };
        t.ring(1, &x)?;
        let mask = t.mask(2, &mask)?;
        packed(t, 4, &x, mask, shape)?;
        let log = shape.last().and_then(|columns| t.cx.log2_of_max(columns));
        let log = log.ok_or_else(|| t.fails(4, t.cx.dims.show_shape(shape)))?;
        Ok(with(&moved(x.ty, rows(shape)), u32::from(x.ty.bound) + log))
    },
    derive_norms: NormRule::OfOperands(|op, t, _| {
        let (Op::RowSum { shape }, Ok([x, _])) = (op, t.operands()) else { return Norms::default() };
        let Some(n) = shape.last().and_then(|n| t.cx.dims.upper(n)) else { return Norms::default() };
        let size = size(x.ty) + log(n);
        Numbers { size, rows: Some(size) }.fit()
    }),
    meaning: Some(|op, e| {
        let (Op::RowSum { shape }, [x, mask]) = (op, e.operands()?) else { return Err(e.other()) };
        ragged::row_sum(x, mask, &e.concrete(shape)?, e.shape.clone())
    }),
    ..RAGGED
};

pub(super) static ROW_EXPAND: Description = Description {
    name: "row_expand",
    result: "[count]",
    constraints: &[
        IS_MOVABLE,
        IS_PUBLIC,
        IS_BOOLEAN,
        HAS_COUNT,
        c(SHAPE, "operand 0 has the dense shape with size 1 on the last axis"),
    ],
    infer: |op, t| {
        let (Op::RowExpand { shape }, [x, mask]) = (op, t.operands()?) else { return Err(t.other()) };
        t.movable(1, &x)?;
        let mask = t.mask(2, &mask)?;
        let count = counted(t, 4, mask, shape)?;
        if shape.is_empty() || x.ty.shape != rows(shape) {
            return Err(t.fails(5, t.cx.dims.show_shape(&x.ty.shape)));
        }
        Ok(moved(x.ty, vec![count]))
    },
    meaning: Some(|op, e| {
        let (Op::RowExpand { shape }, [x, mask]) = (op, e.operands()?) else { return Err(e.other()) };
        ragged::row_expand(x, mask, &e.concrete(shape)?, e.shape.clone())
    }),
    ..RAGGED
};

/// One element for each row of a dense shape: size 1 on the last axis.
pub(super) fn rows(shape: &[Dim]) -> Vec<Dim> {
    let mut out = shape.to_vec();
    if let Some(last) = out.last_mut() {
        *last = 1.into();
    }
    out
}

/// Checks that `x` is the packed entries of a dense `shape`: constraint `number` is that of the count, and the next one
/// that of the operand.
pub(super) fn packed(t: &Typing, number: usize, x: &Operand, mask: u32, shape: &[Dim]) -> Rule<()> {
    let count = counted(t, number, mask, shape)?;
    if shape.is_empty() || x.ty.shape != [count] {
        return Err(t.fails(number + 1, t.cx.dims.show_shape(&x.ty.shape)));
    }
    Ok(())
}

fn counted(t: &Typing, number: usize, mask: u32, shape: &[Dim]) -> Rule<Dim> {
    let found = || format!("no count for public value {mask} and {}", t.cx.dims.show_shape(shape));
    t.cx.count(mask, shape).ok_or_else(|| t.fails(number, found()))
}
