//! Comparisons and bits.

use super::*;
use crate::infer::{Typing, ring, sign_width, size};
use crate::reference::interactive::{self, zip};
use crate::reference::map_elements;
use crate::ty::Sharing;

const OF_BITS: Constraint = c(ELEMENT, "the operands are shared bits");
const OF_BIT: Constraint = c(ELEMENT, "the operand is shared bits");
const BROADCASTS: Constraint = c(SHAPE, "the shapes broadcast");

const BIT: Description = Description { result: "bit", bound: "—", constraints: &[OF_BIT], ..Description::BLANK };

/// Of two tensors of bits.
const OF_TWO: Description = Description {
    operands: &["a", "b"],
    constraints: &[OF_BITS, BROADCASTS],
    infer: |_, t: &Typing| {
        let [a, b] = t.operands()?;
        t.shared_bits(1, &a)?;
        t.shared_bits(1, &b)?;
        Ok(Ty::bit(t.broadcast(2, &a.ty.shape, &b.ty.shape)?))
    },
    ..BIT
};

pub(super) static MSB: Description = Description {
    name: "msb",
    constraints: &[
        c(SHARING, "the operand is a shared or a masked ring tensor, or a sum of two terms"),
        c(ATTRIBUTE, "the width is at most the ring bits, and at least 2 bits of it are not dropped"),
        c(LIMIT, "the width holds the operand's size, and what dropped bits move it by, and a sign"),
    ],
    infer: |op, t| {
        let (&Op::Msb { width, drop }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        let (bits, _) = t.masked_or_two_term_ring(1, &x)?;
        if width > bits || u32::from(drop) + 2 > u32::from(width) {
            return Err(t.fails(2, format!("width {width}, {drop} dropped, in {bits} bits")));
        }
        if width < sign_width(size(x.ty), drop) {
            return Err(t.fails(3, format!("a bound of {} and width {width}, {drop} dropped", x.ty.bound)));
        }
        Ok(Ty::bit(x.ty.shape.clone()))
    },
    meaning: Some(|op, e| {
        let Op::Msb { width, .. } = *op else { return Err(e.other()) };
        interactive::msb(e.operand()?, width)
    }),
    ..BIT
};

pub(super) static XOR: Description = Description {
    name: "xor",
    meaning: Some(|_, e| {
        let [a, b] = e.operands()?;
        zip(a, b, e.shape.clone(), |x, y| x ^ y)
    }),
    ..OF_TWO
};

pub(super) static AND: Description = Description {
    name: "and",
    meaning: Some(|_, e| {
        let [a, b] = e.operands()?;
        zip(a, b, e.shape.clone(), |x, y| x & y)
    }),
    ..OF_TWO
};

pub(super) static NOT: Description = Description {
    name: "not",
    infer: |_, t| {
        let [x] = t.operands()?;
        t.shared_bits(1, &x)?;
        Ok(Ty::bit(x.ty.shape.clone()))
    },
    meaning: Some(|_, e| {
        let x = e.operand()?;
        RefValue::bit(x.shape.clone(), map_elements(x.as_bits()?, |b| !b)?)
    }),
    ..BIT
};

pub(super) static BIT_TO_RING: Description = Description {
    name: "bit_to_ring",
    result: "shared, scale 0",
    bound: "1",
    infer: |op, t| {
        let (&Op::BitToRing { bits }, [x]) = (op, t.operands()?) else { return Err(t.other()) };
        t.shared_bits(1, &x)?;
        Ok(ring(bits, 0, Sharing::Shared, x.ty.shape.clone(), 1))
    },
    meaning: Some(|op, e| {
        let (Op::BitToRing { bits }, x) = (op, e.operand()?) else { return Err(e.other()) };
        RefValue::ring(*bits, x.shape.clone(), map_elements(x.as_bits()?, |b| u64::from(*b))?)
    }),
    ..BIT
};
