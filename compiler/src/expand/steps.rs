//! `1/x` and `1/√x` of a value in a wide range: one lookup for every step of the range, all at once and beside the
//! comparisons that choose one.
//!
//! A step takes `x · 2^−q` into the table by shares that are shifted and cut, without a message. What a value of another step
//! leaves there is garbage. With the bits `c_j = 1{x ≥ t_j}` of the thresholds between steps and entries `v_j`, the result is
//! `v_0 + Σ c_j (v_j − v_(j−1))`, in which every entry but the chosen one cancels, garbage or not.
//!
//! Rounds: the comparisons, beside which the lookup and its division are hidden, and 1. Errors of an entry: those of its
//! polynomial, of the lookup's rounding and of three units of a cut operand, 1.2e-5 relative for `1/√x`, 3e-5 for `1/x`; and half
//! a unit of so many fraction bits as its worth leaves.

use super::inverse::constant;
use super::{Emit, division_spare, fixed, ring_of};
use ombra_ir::curve::Curve;
use ombra_ir::dim::Dim;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Bits below a cell's index.
const CELL: u8 = 16;
/// Ring bits of an entry, and the middle of entries below `2^(ENTRY − 1)`: less that, they have room for a division.
const ENTRY: u8 = 32;
const MIDDLE: u8 = ENTRY - 2;
/// Fraction bits of an entry before it is multiplied by its worth, at most; and below that as many as are left.
const FINEST: [u8; 2] = [20, 16];
/// Bits of what entries are worth.
const ROOM: u8 = 62;

/// How values are brought into a table.
pub(super) struct Table {
    curve: Curve,
    /// Logarithm of the number of cells.
    cells: u8,
    /// Powers of two of a step.
    octaves: u8,
    /// Logarithm of where the table ends.
    range: i32,
    /// The end of a step, as a part of the table.
    top: f64,
    /// Comparisons may leave out so many powers of two below a threshold.
    pub(super) blur: i32,
    /// Fraction bits of an entry.
    scale: u8,
    /// Shifts are multiples of it, from any first one: `1/√x` needs whole powers of its own.
    stride: i32,
}

/// `1/√x` in steps of 16, entries from 5.9 to 26.
pub(super) const ROOT: Table =
    Table { curve: Curve::Rsqrt, cells: 8, octaves: 4, range: -5, top: 0.9, blur: 4, scale: 26, stride: 2 };

/// Logarithms of the numbers of cells that tables of `1/x` may have.
const RECIPROCALS: [u8; 3] = [6, 7, 8];
/// Bytes, or nearly so, of a step beside its cells, and of a comparison and what it chooses.
const OF_STEP: usize = 40;
const OF_THRESHOLD: usize = 50;

/// `1/x` in cells of one width: twice as many are one power of two more of a step. Entries reach up to 66.
fn reciprocal(cells: u8) -> Table {
    let (octaves, range) = (cells - 4, i32::from(cells) - 10);
    Table { curve: Curve::Reciprocal, cells, octaves, range, top: 0.985, blur: 6, scale: 24, stride: 1 }
}

/// The table of `1/x` that takes the fewest bytes for values from `least` to `most`, and the shifts of its steps.
pub(super) fn reciprocals(e: &Emit, least: f64, most: f64) -> (Table, Vec<i32>) {
    // A bit of every cell, or all its entries.
    let bytes_of =
        |cells: u8| if e.has_ciphertexts() { (3 * usize::from(ENTRY / 8)) << cells } else { 1 << cells >> 3 };
    let price = |(table, shifts): &(Table, Vec<i32>)| {
        shifts.len() * (bytes_of(table.cells) + OF_STEP) + (shifts.len() - 1) * OF_THRESHOLD
    };
    let mut all = RECIPROCALS.map(|cells| {
        let table = reciprocal(cells);
        let shifts = table.shifts(least, most);
        (table, shifts)
    });
    all.sort_by_key(price);
    let [best, ..] = all;
    best
}

impl Table {
    /// The highest shift of a step that holds values from `least` on, and its end at `2^largest` at most; as odd or even as
    /// `like` where only such are possible.
    pub(super) fn shift(&self, least: f64, like: i32, largest: i32) -> i32 {
        let lowest = self.blurred(self.end(0) * libm::exp2(-f64::from(self.octaves)));
        let highest = libm::floor(libm::log2(least / lowest) + 1e-9) as i32;
        let highest = highest.min(largest.saturating_sub(self.range));
        highest - (highest - like).rem_euclid(self.stride)
    }

    /// The shifts of steps that hold values from `least` to `most`.
    fn shifts(&self, least: f64, most: f64) -> Vec<i32> {
        let mut shifts = vec![self.shift(least, 0, i32::MAX)];
        while let Some(end) = shifts.last().map(|&q| self.end(q)).filter(|end| *end < most) {
            shifts.push(self.shift(self.blurred(end), 0, i32::MAX));
        }
        shifts
    }

    /// The least value that may be taken for one beyond a threshold.
    pub(super) fn blurred(&self, threshold: f64) -> f64 {
        threshold * (1.0 - libm::ldexp(1.0, -self.blur))
    }

    /// Where the step of a shift ends.
    pub(super) fn end(&self, q: i32) -> f64 {
        libm::ldexp(self.top, self.range + q)
    }

    /// Low bits of an operand that are looked at.
    fn window(&self) -> u8 {
        CELL + self.cells
    }

    /// Fraction bits of an operand.
    fn from(&self) -> i32 {
        i32::from(self.window()) - self.range
    }

    /// Bits that are cut off a value of `scale` fraction bits for a step; zeros are added where it is negative.
    fn cut(&self, scale: u8, q: i32) -> i32 {
        i32::from(scale) + q - self.from()
    }
}

/// A step: the value that it is looked up of, with size 1 on the last axis, and its shift.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) value: Id,
    pub(super) q: i32,
}

/// Entries of all steps along the last axis, each as the integer nearest to `f(value / 2^q) · times · 2^worth`, which is not
/// negative and falls from step to step; in the ring of 64 bits.
pub(super) fn entries(e: &mut Emit, table: &Table, steps: &[Step], times: i64, worth: &[i32]) -> Result<Id> {
    let operands = steps.iter().map(|step| operand(e, table, *step)).collect::<Result<Vec<_>>>()?;
    let all = concat(e, &operands)?;
    let op = Op::Lookup { curve: table.curve, window: table.window(), cell: CELL, bits: ENTRY, scale: table.scale };
    let found = e.guarded(op, &[all], ENTRY - 1)?;
    let found = e.guarded(Op::AddInt { k: -(1 << MIDDLE) }, &[found], MIDDLE)?;
    let precision = |worth: i32| {
        let worth = u8::try_from(worth).map_err(|_| too_coarse())?;
        Ok(FINEST.into_iter().find(|&p| p <= worth).unwrap_or(worth))
    };
    let precisions = worth.iter().map(|&w| precision(w)).collect::<Result<Vec<u8>>>()?;
    let mut parts = Vec::new();
    let mut first = 0;
    for group in precisions.chunk_by(|a, b| a == b) {
        let (from, p) = (first, group[0]);
        first += group.len();
        let part = columns(e, found, from, group.len())?;
        let by = table.scale - p;
        // Entries fill a ring of which terms that are cut leave too little.
        let is_full = MIDDLE > ENTRY - division_spare(e.ty(part).sharing, by);
        let part = if is_full { e.guarded(Op::Reshare, &[part], MIDDLE)? } else { part };
        let part = e.guarded(Op::Truncate { by, bits: 64 }, &[part], MIDDLE - by + u8::from(by > 0))?;
        let part = e.guarded(Op::AddInt { k: 1 << (MIDDLE - by) }, &[part], MIDDLE - by + 2)?;
        let powers = worth[from..first].iter().map(|&w| {
            let power = fixed(libm::ldexp(times as f64, w - i32::from(p)), 0)?;
            if power >= 1 << ROOM { Err(too_coarse()) } else { Ok(power) }
        });
        let powers = constant(e, &powers.collect::<Result<Vec<_>>>()?, 64, 0)?;
        let part = e.guarded(Op::Mul, &[part, powers], ROOM)?;
        parts.push(e.op(Op::SetScale { scale: 0 }, &[part])?);
    }
    concat(e, &parts)
}

/// The entry that `passed` chooses, the bits of all thresholds between steps along the last axis.
pub(super) fn chosen(e: &mut Emit, entries: Id, passed: Option<Id>, steps: usize) -> Result<Id> {
    let first = columns(e, entries, 0, 1)?;
    let Some(passed) = passed else { return Ok(first) };
    let (before, after) = (columns(e, entries, 0, steps - 1)?, columns(e, entries, 1, steps - 1)?);
    let difference = e.guarded(Op::Sub, &[after, before], ROOM)?;
    let taken = e.op(Op::Select, &[passed, difference])?;
    let axis = last_axis(e, taken);
    let sum = e.guarded(Op::ReduceSum { axis }, &[taken], ROOM)?;
    let sum = e.guarded(Op::Add, &[sum, first], ROOM)?;
    if e.ty(sum).sharing.is_sum() { e.guarded(Op::Reshare, &[sum], ROOM) } else { Ok(sum) }
}

/// The bits `1{x < t}` along the last axis, which has size 1 in `x`; values less than `2^drop` units under a threshold may
/// count as having passed it.
pub(super) fn below(e: &mut Emit, x: Id, thresholds: &[f64], drop: u8) -> Result<Id> {
    let (bits, scale, bound) = e.ring(x)?;
    let lower = if drop > 0 { 1i64 << drop } else { 0 };
    let unit = libm::ldexp(1.0, scale.into());
    let limits = thresholds.iter().map(|&t| Ok(fixed(libm::ceil(t * unit), 0)? - lower)).collect::<Result<Vec<_>>>()?;
    let limits = constant(e, &limits, bits, scale)?;
    // Neither is below 0, but for what noise leaves.
    let difference = e.guarded(Op::Sub, &[x, limits], bound)?;
    e.sign(difference, drop)
}

/// Low bits that comparisons with thresholds from `least` units on leave out.
pub(super) fn dropped(least: f64, blur: i32) -> u8 {
    u8::try_from(libm::floor(libm::log2(least)) as i32 - blur).unwrap_or(0)
}

/// What is looked up of a step, in the smallest ring.
fn operand(e: &mut Emit, table: &Table, step: Step) -> Result<Id> {
    let (bits, scale, _) = e.ring(step.value)?;
    let small = ring_of(table.window());
    let by = table.cut(scale, step.q);
    let x = if by > 0 {
        let whole = u8::try_from((by + 7) / 8 * 8).map_err(|_| too_coarse())?;
        if bits.saturating_sub(whole) < small {
            return Err(too_coarse());
        }
        // What is above the window may be garbage, and is not kept.
        let x = e.narrow(step.value, small + whole)?;
        let x = e.guarded(Op::MulInt { k: 1 << (i32::from(whole) - by) }, &[x], small + whole - 1)?;
        let x = e.op(Op::SetScale { scale: whole }, &[x])?;
        e.guarded(Op::Cut { by: whole }, &[x], small - 1)?
    } else {
        let x = e.narrow(step.value, small)?;
        let k = 1i64.checked_shl(by.unsigned_abs()).filter(|k| *k > 0).ok_or_else(too_coarse)?;
        e.guarded(Op::MulInt { k }, &[x], small - 1)?
    };
    e.op(Op::SetScale { scale: u8::try_from(table.from()).map_err(|_| too_coarse())? }, &[x])
}

/// So many columns from one on.
pub(super) fn columns(e: &mut Emit, x: Id, first: usize, count: usize) -> Result<Id> {
    if e.ty(x).shape.last().and_then(Dim::as_constant) == i64::try_from(count).ok() {
        return Ok(x);
    }
    let (start, len) = (Dim::from_usize(first)?, Dim::from_usize(count)?);
    e.op(Op::Slice { axis: last_axis(e, x), start, len }, &[x])
}

/// Columns side by side.
pub(super) fn concat(e: &mut Emit, parts: &[Id]) -> Result<Id> {
    match *parts {
        [one] => Ok(one),
        _ => e.op(Op::Concat { axis: last_axis(e, parts[0]) }, parts),
    }
}

/// The number of the last axis.
pub(super) fn last_axis(e: &Emit, x: Id) -> u8 {
    (e.ty(x).shape.len() - 1) as u8
}

fn too_coarse() -> Diagnostic {
    Diagnostic::input("E0507", "the range of a divisor or root is too wide for the ring")
        .note("use fewer fraction bits, or calibrate on inputs that are typical for the model")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that follow one another without a gap lie in the middle of their tables, with whatever comparisons blur.
    #[test]
    fn steps_cover_a_range() {
        let reciprocals = RECIPROCALS.map(|cells| (reciprocal(cells), 0));
        for (table, like) in [(ROOT, 0), (ROOT, 1)].into_iter().chain(reciprocals) {
            for (least, most) in [(1.0, 2.0), (0.37, 2048.0), (3e5, 1e25)] {
                let inside = |x: f64, q: i32| libm::ldexp(x, -q - table.range);
                let mut at = least;
                while at < most {
                    let q = table.shift(at, like, i32::MAX);
                    assert_eq!((q - like) % table.stride, 0);
                    assert!(inside(at, q) * f64::from(1 << table.octaves) > 0.8, "{at} at {q}");
                    let entry = table.curve.at(libm::ldexp(at, -q));
                    assert!(libm::ldexp(entry, table.scale.into()) < libm::ldexp(0.98, (ENTRY - 1).into()));
                    let end = table.end(q);
                    let times = libm::exp2(f64::from(table.octaves) - f64::from(table.stride));
                    assert!(inside(end, q) < 0.99 && end > times * at * (1.0 - 1e-6));
                    assert!(table.shift(at, like, q + table.range - 1) < q);
                    at = table.blurred(end);
                }
            }
        }
    }
}
