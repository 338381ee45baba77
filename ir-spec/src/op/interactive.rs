//! Ops on ring elements that a setting implements with messages, and the ends of a program.

use super::linear::shifted;
use super::ragged::{packed, rows};
use super::*;
use crate::curve::{Cells, LOOKUP_ROOM, MOST_CELLS};
use crate::infer::{Operand, Typing, describe, moved, ring, sign_width, size, with};
use crate::norms::BIT;
use crate::plain::DType;
use crate::reference::{RefValue, interactive, linear, movement, ragged};
use crate::settings::rep3::cut_first;
use crate::ty::{Elem, Sharing};

const IS_SECRET: Constraint = c(SHARING, "the operand is a secret ring tensor");
const IS_SHARED: Constraint = c(SHARING, "the operand is a shared ring tensor");

const INTERACTIVE: Description = Description { result: "shared", constraints: &[IS_SECRET], ..Description::BLANK };

pub(super) static TRUNCATE: Description = Description {
    name: "truncate",
    result: "`bits`, scale − by, shared; in a ring of at most the operand's bits less by in the form that the setting gives such a \
             quotient (`3pc`: sum2)",
    bound: "max(x − by, 0) + 1, of three terms by 8 or more max(x − by, 1) + 1; x for by = 0",
    norms: [
        "x / 2^by + 1, of three terms by 8 or more + 2; x for by = 0",
        "x / 2^by + √n, of three terms by 8 or more + 2 √n; x for by = 0",
        "x for by = 0",
    ],
    constraints: &[
        IS_SECRET,
        c(ATTRIBUTE, "by is at most the scale and the ring bits less 2, and 0 only where the new ring has more bits"),
        c(
            LIMIT,
            "the operand's bound is at most its ring bits less 2, of three terms by 8 or more less 3, unless the new ring has at \
             most these bits less by",
        ),
    ],
    infer: |op, t| {
        let (&Op::Truncate { by, bits }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (from, scale) = t.secret_ring(1, &x)?;
        if by > scale || u32::from(by) + 2 > u32::from(from) || by == 0 && bits <= from {
            return Err(t.fails(2, format!("by {by}, scale {scale}, from {from} to {bits} bits")));
        }
        let is_whole = bits <= from - by;
        let is_cut = is_cut(&x, by);
        if u32::from(x.ty.bound) + 2 + u32::from(is_cut) > u32::from(from) && !is_whole {
            return Err(t.fails(3, format!("a bound of {} in {from} bits", x.ty.bound)));
        }
        let form = if is_whole { t.cx.setting.protocol().quotient } else { Sharing::Shared };
        let bound = u32::from(x.ty.bound.saturating_sub(by).max(is_cut.into())) + u32::from(by > 0);
        Ok(ring(bits, u32::from(scale) - u32::from(by), form, x.ty.shape.clone(), bound))
    },
    derive_norms: NormRule::OfOperands(|op, t, ty| match (op, t.operands()) {
        (Op::Truncate { by: 0, .. }, _) => t.first_norms(),
        (Op::Truncate { by, .. }, Ok([x])) => shifted(t, &x, ty, *by, if is_cut(&x, *by) { BIT } else { 0 }),
        _ => Norms::default(),
    }),
    meaning: Some(|op, e| {
        let Op::Truncate { by, bits } = *op else { return Err(e.other()) };
        linear::truncate(e.operand()?, by, bits, e.rounding)
    }),
    ..INTERACTIVE
};

/// Whether a division cuts whole bytes off the terms of its operand, which is off by more than one unit then.
fn is_cut(x: &Operand, by: u8) -> bool {
    x.ty.sharing == Sharing::Sum3 && cut_first(by) > 0
}

pub(super) static RESHARE: Description = Description {
    name: "reshare",
    norms: ["x", "x", "x"],
    infer: |_, t| {
        let [x] = t.operands()?;
        t.secret_ring(1, &x)?;
        Ok(Ty { sharing: Sharing::Shared, ..with(x.ty, x.ty.bound.into()) })
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|_, e| Ok(e.operand()?.clone())),
    ..INTERACTIVE
};

/// As `reshare` in the other direction: what a setting with masks opens once.
const MASKING: Description = Description {
    norms: ["x", "x", "x"],
    constraints: &[IS_SHARED, c("E0346", "the setting has masked values")],
    infer: |op, t| {
        let [x] = t.operands()?;
        t.shared_ring(1, &x)?;
        if t.cx.setting.protocol().dealer.is_none() {
            return Err(t.fails(2, t.cx.setting.name()));
        }
        let sharing = if matches!(op, Op::Hold) { Sharing::Held } else { Sharing::Masked };
        Ok(Ty { sharing, ..with(x.ty, x.ty.bound.into()) })
    },
    derive_norms: NormRule::OfOperands(|_, t, _| t.first_norms()),
    meaning: Some(|_, e| Ok(e.operand()?.clone())),
    ..INTERACTIVE
};

pub(super) static MASKED: Description = Description { name: "mask", result: "masked", ..MASKING };

pub(super) static HELD: Description = Description { name: "hold", result: "held", ..MASKING };

/// Outside of what the op holds for, its result is any element of its ring.
pub(super) static EXP_DIGITS: Description = Description {
    name: "exp_digits",
    result: "shared; ring 32, scale 29, and in `3pc` without `tail` ring 24, scale 21",
    bound: "ring bits − 1",
    constraints: &[
        c(SHARING, "the operand is a shared or a masked ring tensor, or a sum of two terms"),
        c(ATTRIBUTE, "scale is the operand's, window from 5 to 10, their sum at most 62 and the ring bits"),
    ],
    infer: |op, t| {
        let (&Op::ExpDigits { scale, window, tail }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, found) = t.masked_or_two_term_ring(1, &x)?;
        let fits = u32::from(scale) + u32::from(window) <= u32::from(bits.min(62));
        if found != scale || !EXP_WINDOWS.contains(&window) || !fits {
            return Err(t.fails(2, format!("scale {scale} and window {window} of {}", describe(x.ty))));
        }
        let (bits, scale) = exp_form(t.cx.setting, tail);
        Ok(ring(bits, scale.into(), Sharing::Shared, x.ty.shape.clone(), u32::from(bits) - 1))
    },
    meaning: Some(|op, e| {
        let Op::ExpDigits { scale, window, tail } = *op else { return Err(e.other()) };
        interactive::exp_digits(e.operand()?, (scale, window), exp_form(e.setting, tail))
    }),
    ..INTERACTIVE
};

pub(super) static SELECT: Description = Description {
    name: "select",
    operands: &["b", "x"],
    result: "the common shape, in the form that the setting gives a quotient without a wrap (`3pc`: sum2)",
    constraints: &[
        c(ELEMENT, "operand 0 is shared bits"),
        c(SHARING, "operand 1 is a shared or a masked ring tensor, or a sum of two terms"),
        c(SHAPE, "the shapes broadcast"),
    ],
    infer: |_, t| {
        let [b, x] = t.operands()?;
        t.shared_bits(1, &b)?;
        let (bits, scale) = t.masked_or_two_term_ring(2, &x)?;
        let shape = t.broadcast(3, &b.ty.shape, &x.ty.shape)?;
        let form = t.cx.setting.protocol().quotient;
        Ok(ring(bits, scale.into(), form, shape, x.ty.bound.into()))
    },
    meaning: Some(|_, e| {
        let [b, x] = e.operands()?;
        let (bits, _) = x.as_ring()?;
        let b = RefValue::ring(bits, b.shape.clone(), b.as_bits()?.iter().map(|b| u64::from(*b)).collect())?;
        linear::zip(&b, x, e.shape.clone(), u64::wrapping_mul)
    }),
    ..INTERACTIVE
};

pub(super) static LOOKUP: Description = Description {
    name: "lookup",
    result: "ring `bits`, scale `scale`, in the form that the setting gives a product of secrets",
    bound: "bits − 1",
    constraints: &[
        c(SHARING, "the operand is a shared or a masked ring tensor, or a sum of two terms"),
        c(ATTRIBUTE, "the window is at most the operand's ring bits, and has from 1 to 10 bits more than a cell"),
        c(
            ATTRIBUTE,
            "a cell has at least 1 bit; bits + scale / 2 is at most 46; the scale is from 8 to the new ring bits less 2",
        ),
    ],
    infer: |op, t| {
        let (&Op::Lookup { window, cell, bits, scale, .. }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (from, _) = t.masked_or_two_term_ring(1, &x)?;
        if window > from || window <= cell || window - cell > MOST_CELLS {
            return Err(t.fails(2, format!("a window of {window}, cells of {cell} and a ring of {from} bits")));
        }
        if cell == 0 || bits.saturating_add(scale / 2) > LOOKUP_ROOM || scale < 8 || scale.saturating_add(2) > bits {
            return Err(t.fails(3, format!("cells of {cell} bits, {scale} fraction bits in a ring of {bits}")));
        }
        let form = (t.cx.setting.protocol().product)(Sharing::Shared, Sharing::Shared).unwrap_or(Sharing::Shared);
        Ok(ring(bits, scale.into(), form, x.ty.shape.clone(), u32::from(bits.saturating_sub(1))))
    },
    meaning: Some(|op, e| {
        let &Op::Lookup { curve, window, cell, bits, scale } = op else { return Err(e.other()) };
        let from = e.scale_of_operand();
        interactive::lookup(e.operand()?, curve, Cells { window, from, cell, scale }, bits)
    }),
    ..INTERACTIVE
};

pub(super) static ROW_MAX: Description = Description {
    name: "row_max",
    operands: &["x", "m"],
    result: "size 1 on the last axis, in the operand's form",
    constraints: &[
        c(SHARING, "operand 0 is a shared ring tensor, or a sum of two terms"),
        c(MASK, "the mask is public"),
        c(ELEMENT, "the mask is a value of the public program of booleans"),
        c(SHAPE, "a count is declared for the mask and the dense shape"),
        c(SHAPE, "operand 0 has one axis, of the count's size"),
        c(
            LIMIT,
            "the width is at most the ring bits, and holds twice the operand's size, what dropped bits move it by, and a \
             sign",
        ),
    ],
    infer: |op, t| {
        let (Op::RowMax { shape, width, drop }, [x, mask]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, _) = t.two_term_ring(1, &x)?;
        let mask = t.mask(2, &mask)?;
        packed(t, 4, &x, mask, shape)?;
        holds_difference(t, 6, x.ty, (*width, *drop), bits)?;
        Ok(moved(x.ty, rows(shape)))
    },
    meaning: Some(|op, e| {
        let (Op::RowMax { shape, .. }, [x, mask]) = (op, e.operands()?) else { return Err(e.other()) };
        ragged::row_max(x, mask, &e.concrete(shape)?, e.shape.clone())
    }),
    ..INTERACTIVE
};

pub(super) static ARG_MAX: Description = Description {
    name: "arg_max",
    result: "the last axis dropped, scale 0, shared",
    bound: "lg columns",
    constraints: &[
        c(SHARING, "the operand is a shared ring tensor, or a sum of two terms"),
        c(SHAPE, "the last axis has at least one element, and a maximum"),
        c(LIMIT, "the width is at most the ring bits, and holds twice the operand's size and a sign"),
    ],
    infer: |op, t| {
        let (&Op::ArgMax { width }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, _) = t.two_term_ring(1, &x)?;
        let wrong = || t.fails(2, t.cx.dims.show_shape(&x.ty.shape));
        let (columns, rows) = x.ty.shape.split_last().ok_or_else(wrong)?;
        let log = t.cx.log2_of_max(columns).ok_or_else(wrong)?;
        if t.cx.dims.lower(columns).is_none_or(|n| n < 1) {
            return Err(wrong());
        }
        holds_difference(t, 3, x.ty, (width, 0), bits)?;
        Ok(ring(bits, 0, Sharing::Shared, rows.to_vec(), log))
    },
    meaning: Some(|_, e| interactive::arg_max(e.operand()?, e.shape.clone())),
    ..INTERACTIVE
};

/// The difference of two values is up to twice their size.
fn holds_difference(t: &Typing, number: usize, ty: &Ty, (width, drop): (u8, u8), bits: u8) -> Rule<()> {
    if width < sign_width(size(ty) + BIT, drop) || width > bits {
        let found = format!("a bound of {} and width {width}, {drop} dropped, in {bits} bits", ty.bound);
        return Err(t.fails(number, found));
    }
    Ok(())
}

pub(super) static EMBED: Description = Description {
    name: "embed",
    operands: &["ids", "table"],
    result: "shape of ids, then the table's columns; shared",
    bound: "table; in `2pc` one more",
    norms: ["table; in `2pc` + 1", "table; in `2pc` + √columns", ""],
    constraints: &[
        c(ELEMENT, "operand 0 is integers that the client knows"),
        c(SHARING, "the table is a shared ring tensor"),
        c(SHAPE, "the table has two axes"),
    ],
    infer: |_, t| {
        let [ids, table] = t.operands()?;
        if ids.ty.elem != Elem::Plain(DType::I64) || ids.ty.sharing != Sharing::Client {
            return Err(t.finds(1, &ids));
        }
        t.shared_ring(2, &table)?;
        let [_, features] = &*table.ty.shape else {
            return Err(t.fails(3, format!("{} axes", table.ty.shape.len())));
        };
        let ty = moved(table.ty, ids.ty.shape.iter().chain([features]).cloned().collect());
        let bound = u32::from(ty.bound) + u32::from(t.cx.setting.protocol().ciphertexts.is_some());
        Ok(with(&ty, bound))
    },
    // By ciphertexts an element is off by one unit.
    derive_norms: NormRule::OfOperands(|_, t, ty| match t.operands() {
        Ok([_, table]) if t.cx.setting.protocol().ciphertexts.is_some() => shifted(t, &table, ty, 0, 0),
        Ok([_, table]) => Norms { columns: None, ..table.ty.norms },
        Err(_) => Norms::default(),
    }),
    meaning: Some(|_, e| {
        let [ids, table] = e.operands()?;
        movement::gather(table, ids.as_ints()?, 0, e.shape.clone())
    }),
    ..INTERACTIVE
};

pub(super) static REVEAL: Description = Description {
    name: "reveal",
    result: "none",
    bound: "—",
    constraints: &[
        c("E0331", "the output slot is declared"),
        c("E0330", "the operand is a shared ring tensor: a sum would show terms of products, not the value alone"),
    ],
    infer: |op, t| {
        let &Op::Reveal { slot } = op else { return Err(t.other()) };
        is_kept(t, slot, t.cx.outputs.len(), false)
    },
    meaning: Some(|_, e| Ok(e.operand()?.clone())),
    ..INTERACTIVE
};

pub(super) static SET_STATE: Description = Description {
    name: "set_state",
    result: "none",
    bound: "—",
    constraints: &[c(SLOT, "the slot is declared"), c("E0339", "the operand is a shared or a masked ring tensor")],
    infer: |op, t| {
        let &Op::SetState { slot } = op else { return Err(t.other()) };
        is_kept(t, slot, t.cx.states.len(), true)
    },
    meaning: Some(|_, e| Ok(e.operand()?.clone())),
    ..INTERACTIVE
};

/// What leaves the program by a slot; a state may stay masked.
fn is_kept(t: &Typing, slot: u32, slots: usize, may_be_masked: bool) -> Rule<Ty> {
    let [x] = t.operands()?;
    if usize::try_from(slot).map_or(true, |s| s >= slots) {
        return Err(t.fails(1, format!("slot {slot} of {slots}")));
    }
    if may_be_masked {
        t.kept_ring(2, &x)?
    } else {
        t.shared_ring(2, &x)?
    };
    Ok(with(x.ty, x.ty.bound.into()))
}
