//! Smooth functions by lookup: one table for the whole range of a value where that is narrow, else a table for the middle and
//! straight lines outside.
//!
//! Cells are `w` wide and the table reaches to `2^t`; errors are those of the polynomials, [`ombra_ir::curve`], and of
//! rounding. A value beyond the table would give any element: so a table alone serves where the value's bound is proven to
//! lie a cell inside it, and otherwise the whole value is compared with both ends, two cells inside them.
//!
//! | | alone, at most | middle | polynomials | with rounding | tail |
//! |---|---|---|---|---|---|
//! | GELU | w = 1/2 | 8, w = 1/4 | 7e-4, 9e-5 | 7e-4, 2e-4 | 1e-14 |
//! | SiLU | w = 1/2 | 16, w = 1/4 | 2.5e-4, 3e-5 | 4e-4, 1.5e-4 | 2.6e-6 |
//! | softplus | w = 1/2 | 16, w = 1/2 | 7e-5 | 2e-4 | 1.9e-7 |
//! | tanh | w = 1/4 | 8, w = 1/4 | 1.7e-4 | 2.3e-4 | 3.8e-7 |
//! | sigmoid | w = 1/2 | 16, w = 1/2 | 9e-5 | 1.6e-4 | 1.9e-7 |
//! | erf | w = 1/8 | 4, w = 1/8 | 5e-5 | 9e-5 | 3e-8 |
//!
//! Two parties alone pay for every cell, and little for comparisons. So what is a line beyond its middle they fold:
//! `f(x) = x⁺ + f(−abs x)` holds for any sign that is taken for that of `x`, so few bits of it are looked at, and half of the
//! table goes. Where `abs x` may lie beyond the table, the last term is 0 there: for SiLU, cut 1/4 wide, that is 4e-6, and the
//! error with rounding 4e-4 at 16 fraction bits, 6e-4 at 12; the table of GELU ends at 4 and is cut 1/4 wide, where the last term
//! is 9e-4, and with rounding 1.2e-3.
//!
//! A table alone is the narrowest that holds the value, of at most 256 cells, which are as fine as 64 allow.
//!
//! Inverses are looked up in steps of a wide range, [`steps`](super::steps).

use super::{Emit, fixed, ring_of};
use ombra_ir::curve::Curve;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};
use std::cmp::Ordering;

/// Fraction bits of an operand at least, so that cells have some units, and at most.
const COARSEST: u8 = 8;
const FINEST: u8 = 16;
/// Fraction bits that decide whether a value is in the middle: the function is straight around the ends.
const BRANCH_FRACTION: u8 = 6;
/// Ring bits of what is looked up.
const RING: u8 = 32;
/// Bits of it that values above 1 leave to the fraction.
const ROOM: u8 = 29;
/// Its fraction bits at most.
const SCALE: u8 = 24;
/// Ring bits of what is looked up below 0, which is more than −1/2, and its fraction bits.
const FOLDED_RING: u8 = 24;
const FOLDED_SCALE: u8 = 22;

/// A table: to `±2^range` in cells `2^cell` wide.
#[derive(Clone, Copy)]
struct Table {
    range: u8,
    cell: i8,
}

/// What a function is beyond its middle.
#[derive(Clone, Copy)]
enum Beyond {
    /// 0 below, `x` above.
    Line,
    /// Two constants.
    Ends(i8, i8),
}

struct Form {
    middle: Table,
    beyond: Beyond,
    /// The logarithm of the maximum width of a cell.
    coarsest: i8,
    /// The table below 0, of half as many cells.
    folded: Table,
}

impl Form {
    /// The table for values up to `most`, where there is one.
    fn alone(&self, most: f64) -> Option<Table> {
        let holds = |table: &Table| most <= libm::exp2(table.range.into()) - libm::exp2(table.cell.into());
        (2..8)
            .map(|range: i8| Table {
                range: range as u8,
                cell: (range + 1 - FINE_CELLS).clamp(self.middle.cell, self.coarsest),
            })
            .take_while(|table| table.range as i8 + 1 - table.cell <= MOST_CELLS)
            .find(holds)
    }
}

/// Logarithms of the number of cells: up to which they are finer than they have to be, and at most.
const FINE_CELLS: i8 = 6;
const MOST_CELLS: i8 = 8;

fn form(curve: Curve) -> Option<Form> {
    let of = |coarsest, range, cell, beyond| {
        let middle = Table { range, cell };
        Form { middle, beyond, coarsest, folded: middle }
    };
    Some(match curve {
        Curve::Gelu | Curve::GeluTanh => Form { folded: Table { range: 2, cell: -2 }, ..of(-1, 3, -2, Beyond::Line) },
        Curve::Silu => Form { folded: Table { range: 4, cell: -2 }, ..of(-1, 4, -2, Beyond::Line) },
        Curve::Softplus => of(-1, 4, -1, Beyond::Line),
        Curve::Tanh => of(-2, 3, -2, Beyond::Ends(-1, 1)),
        Curve::Sigmoid => of(-1, 4, -1, Beyond::Ends(0, 1)),
        Curve::Erf => of(-3, 2, -3, Beyond::Ends(-1, 1)),
        Curve::Reciprocal | Curve::Rsqrt | Curve::GeluBelow | Curve::GeluTanhBelow | Curve::SiluBelow => return None,
    })
}

/// The function in the ring and at the scale of `x`.
pub(super) fn looked_up(e: &mut Emit, x: Id, curve: Curve) -> Result<Id> {
    let (outer, scale, _) = e.ring(x)?;
    let none = || Diagnostic::internal("E0505", format!("no table of {} for all values", curve.name()));
    let form = form(curve).ok_or_else(none)?;
    if let Some(below) = below(curve).filter(|_| e.has_ciphertexts()) {
        let y = folded(e, x, scale.clamp(COARSEST, FINEST), below, form.folded)?;
        return finished(e, y, (outer, scale));
    }
    let y = if let Some(table) = form.alone(e.max_size(x)?) {
        let from = scale.clamp(COARSEST, FINEST);
        let x = brought_to(e, x, from, ring_of(table.range + 1 + from))?;
        entry(e, x, curve, table, form.beyond)?
    } else {
        in_parts(e, x, scale.clamp(COARSEST, FINEST), curve, form.middle, form.beyond)?
    };
    finished(e, y, (outer, scale))
}

/// The curve's part below 0, where it is a line beyond its middle.
fn below(curve: Curve) -> Option<Curve> {
    match curve {
        Curve::Gelu => Some(Curve::GeluBelow),
        Curve::GeluTanh => Some(Curve::GeluTanhBelow),
        Curve::Silu => Some(Curve::SiluBelow),
        _ => None,
    }
}

/// `x⁺ + f(−abs x)`.
fn folded(e: &mut Emit, x: Id, from: u8, below: Curve, table: Table) -> Result<Id> {
    let (x, bits) = in_room(e, x, from, table)?;
    let (_, _, bound) = e.ring(x)?;
    let cell = from.saturating_add_signed(table.cell);
    // What is taken for negative may be half a cell above 0.
    let negative = e.sign(x, cell - 1)?;
    let lower = e.op(Op::Select, &[negative, x])?;
    let upper = e.guarded(Op::Sub, &[x, lower], bound)?;
    let folded = e.guarded(Op::Sub, &[lower, upper], bound)?;
    let window = e.narrow(folded, ring_of(table.range + from).min(bits))?;
    let op = Op::Lookup { curve: below, window: table.range + from, cell, bits: FOLDED_RING, scale: FOLDED_SCALE };
    let y = e.guarded(op, &[window], FOLDED_SCALE - 1)?;
    // The lowest cell but two of as many as there are powers of two.
    let end = libm::exp2(table.range.into()) - 2.0 * libm::exp2(table.cell.into());
    let y = if e.max_size(x)? < end {
        y
    } else {
        let outside = e.below(folded, -end, cell - 3)?;
        let inside = e.op(Op::Not, &[outside])?;
        e.op(Op::Select, &[inside, y])?
    };
    let by = FOLDED_SCALE - from;
    let y = e.guarded(Op::Truncate { by, bits }, &[y], FOLDED_SCALE - by)?;
    e.guarded(Op::Add, &[upper, y], bound.max(from + table.range) + 1)
}

/// The value with so many fraction bits, in a ring in which it is compared with both ends of a table.
fn in_room(e: &mut Emit, x: Id, from: u8, table: Table) -> Result<(Id, u8)> {
    let (outer, scale, bound) = e.ring(x)?;
    let whole = bound
        .saturating_sub(scale.saturating_sub(from))
        .saturating_add(from.saturating_sub(scale))
        .max(from + table.range)
        .saturating_add(3);
    let bits = ring_of(whole).min(outer);
    Ok((brought_to(e, x, from, bits)?, bits))
}

/// The value with so many fraction bits in a ring of `bits`, whatever lies above it.
fn brought_to(e: &mut Emit, x: Id, scale: u8, bits: u8) -> Result<Id> {
    let (_, own, bound) = e.ring(x)?;
    let x = match own.cmp(&scale) {
        Ordering::Greater => e.truncate_to(x, scale, bound.saturating_sub(own - scale).saturating_add(1))?,
        Ordering::Less => e.op(Op::Upscale { by: scale - own }, &[x])?,
        Ordering::Equal => x,
    };
    e.narrow(x, bits)
}

/// The entry of the table for the low bits of `x`.
fn entry(e: &mut Emit, x: Id, curve: Curve, table: Table, beyond: Beyond) -> Result<Id> {
    let (_, from, _) = e.ring(x)?;
    let size = if let Beyond::Line = beyond { table.range } else { 1 };
    let scale = SCALE.min(ROOM - size);
    let op = Op::Lookup {
        curve,
        window: table.range + 1 + from,
        cell: from.saturating_add_signed(table.cell),
        bits: RING,
        scale,
    };
    e.guarded(op, &[x], scale + size)
}

/// The entry in the middle, and what the function is beyond.
fn in_parts(e: &mut Emit, x: Id, from: u8, curve: Curve, table: Table, beyond: Beyond) -> Result<Id> {
    let (x, bits) = in_room(e, x, from, table)?;
    let (_, _, bound) = e.ring(x)?;
    let end = libm::exp2(f64::from(table.range)) - 2.0 * libm::exp2(f64::from(table.cell));
    let drop = from.saturating_sub(BRANCH_FRACTION);
    let low = e.below(x, -end, drop)?;
    let not_high = e.below(x, end, drop)?;
    let inside = e.op(Op::Xor, &[low, not_high])?;
    let high = e.op(Op::Not, &[not_high])?;
    let window = e.narrow(x, ring_of(table.range + 1 + from).min(bits))?;
    let y = entry(e, window, curve, table, beyond)?;
    let (_, scale, size) = e.ring(y)?;
    let by = scale - from;
    let y = e.guarded(Op::Truncate { by, bits }, &[y], size - by + 1)?;
    let y = e.op(Op::Select, &[inside, y])?;
    let most = bound.max(from + table.range + 1);
    match beyond {
        Beyond::Line => {
            let above = e.op(Op::Select, &[high, x])?;
            e.guarded(Op::Add, &[above, y], most)
        }
        Beyond::Ends(below, above) => {
            let mut sum = y;
            for (bit, end) in [(low, below), (high, above)] {
                if end != 0 {
                    let number = e.op(Op::BitToRing { bits }, &[bit])?;
                    let step = e.op(Op::MulInt { k: fixed(f64::from(end), from)? }, &[number])?;
                    let step = e.op(Op::SetScale { scale: from }, &[step])?;
                    sum = e.guarded(Op::Add, &[sum, step], from + 1)?;
                }
            }
            Ok(sum)
        }
    }
}

/// The value in the ring and at the scale that were asked for.
fn finished(e: &mut Emit, y: Id, (bits, scale): (u8, u8)) -> Result<Id> {
    let (own, from, size) = e.ring(y)?;
    let by = from.saturating_sub(scale);
    let rounded = size.saturating_sub(by).saturating_add(u8::from(by > 0));
    let y = match by {
        0 if own >= bits => {
            let y = e.narrow(y, bits)?;
            if e.ty(y).sharing.is_sum() { e.declared(Op::Reshare, &[y], (size, BoundFrom::Guarded))? } else { y }
        }
        _ => e.declared(Op::Truncate { by, bits }, &[y], (rounded, BoundFrom::Guarded))?,
    };
    if from < scale { e.op(Op::Upscale { by: scale - from }, &[y]) } else { Ok(y) }
}
