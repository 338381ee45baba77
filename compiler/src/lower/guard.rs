//! The guard: one bit that says whether a range was left that nothing proves.
//!
//! What is assumed is compared, bits that say "within" are joined by ANDs where they have one shape, what is left of them
//! is counted, and whether anything is beyond is revealed to the client beside its result, which it drops then. That is one
//! bit a step, about the client's own input, to the client alone: whether it left the ranges that were measured.
//!
//! **Rows.** A size is assumed of a row: its 2-norm is below `L`, and so is every element. The statistic of a row is the
//! sum of its squares, local up to one reshare and one sign a row. A row may be so long that its squares pass the ring, so
//! there is one [`Level`] for every range of lengths: of elements that lack their `k` low bits, which is local too. A cut
//! element is at most 1.5 from `x / 2^k − 1.5`, so that with `c` for what is left of it
//! `√Σ(c + 1.5)²` is within `1.5·√n` of the row's length over `2^k`, and `Σ(c + 1.5)² = Σ c·(c + 3) + 2.25·n`.
//! - *Nothing beyond passes.* Let `P` bound the rows whatever is assumed of them, and `R_k` be the length at which the
//!   statistic of level `k` would pass its ring. Levels are chosen such that the first sees every length from `L` to its
//!   `R`, every further one from the `R` of the one before to its own, and the last one has `R ≥ P`. So a row of `L` to
//!   `P` is seen by a level whose statistic does not wrap, whatever those of the others say.
//! - *`P` holds.* It follows by interval arithmetic and Cauchy–Schwarz from what is assumed of values before. The first
//!   value in the order of computation that leaves its range is therefore below its own `P`, and it is seen. What is
//!   computed of it may be anything: the result is void. The untruncated sum that becomes the value is checked to hold `P`
//!   as well, since truncation is wrong beyond its ring.
//! - *Nothing usual is stopped.* Comparisons leave out low bits and cuts blur: rows up to half of `L` always pass, four times
//!   what was seen.
//!
//! **Softmax by squares.** Its divisor is a sum of squares, so the same sums say whether it is below the high end. That end
//! bounds the scores, which therefore have no guard of their own; `P` is what is proven of them. **By positive parts:** the
//! divisor of a row of `n` scores is at most `√n` times its length.
//!
//! **Exponents and divisors** are compared element by element: the sizes of their neighbours say nothing of them.

use super::{Lower, RING};
use crate::graph::{Numerator, Op, Owner, TensorOp, ValueId};
use crate::ranges::bounds::guards_scores;
use crate::ranges::bounds::spread::size_of;
use ombra_ir::module::{Id, OutputKind, OutputSlot, Party};
use ombra_ir::op::Op as M;
use ombra_ir::plain::{DType, Reduce};
use ombra_ir::plan::Quantity;
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Dim, Result};

/// Name of the output, which no model has.
const NAME: &str = "%guard";
/// Units by which rounding may make a number negative.
const ROUNDING: i64 = 64;
/// Rings in which violations are counted.
const COUNTS: [u8; 4] = [16, 24, 32, RING];
/// The length of rows at which a level begins, over what its cut may change it by.
const CLEAR: f64 = 8.0;
/// Fraction of a threshold, in powers of two, that a comparison may be off by.
const BLUR: i32 = 4;
/// Of an exponent: this many powers of two below 1.
const EXPONENT_BLUR: u8 = 2;

/// A statistic of rows whose lengths are in one range.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    /// Bits cut off the elements.
    cut: u8,
    /// Logarithm of a number that no statistic of the level reaches.
    bound: u8,
    /// The statistic of a row at which the level begins is no less.
    threshold: i64,
}

impl Level {
    /// How far a row of `n` cut elements may be from what it was cut from.
    fn blur(cut: u8, n: f64) -> f64 {
        if cut == 0 { 0.0 } else { 1.5 * libm::sqrt(n) }
    }

    /// Rows that are shorter keep their statistic in the ring, in units.
    fn reach(cut: u8, n: f64) -> f64 {
        let most = libm::exp2(f64::from(RING - 2 - cut) / 2.0);
        libm::ldexp(most - Level::blur(cut, n), i32::from(cut))
    }

    /// The statistic of rows from a length on, in units, is no less than this.
    fn least(cut: u8, n: f64, length: f64) -> f64 {
        let cut_length = (libm::ldexp(length, -i32::from(cut)) - Level::blur(cut, n)).max(0.0);
        libm::floor(cut_length * cut_length - if cut == 0 { 0.0 } else { 2.25 * n })
    }
}

/// Levels that see every row of `n` elements that is `from` or more units long, and at most `to`; none where rows may be
/// too long. As few as there can be, or, where a `fine` statistic of rows up to `from` is needed, with one of as few bits
/// cut as there can be.
fn levels(n: f64, from: f64, to: f64, fine: bool) -> Option<Vec<Level>> {
    let (mut found, mut begin) = (Vec::new(), from);
    while found.is_empty() || begin < to {
        let clear = |cut: &u8| CLEAR * Level::blur(*cut, n) <= libm::ldexp(begin, -i32::from(*cut));
        let cuts: Vec<u8> = (0..RING - 8).step_by(8).filter(clear).collect();
        let wanted = if fine && found.is_empty() { from } else { to };
        let cut = cuts.iter().copied().find(|&cut| Level::reach(cut, n) > wanted).or(cuts.last().copied())?;
        let end = Level::reach(cut, n);
        if end < to && end <= begin {
            return None;
        }
        let most = libm::ldexp(end.min(to), -i32::from(cut)) + Level::blur(cut, n);
        let threshold = Level::least(cut, n, begin);
        let bound = libm::ceil(libm::log2((most * most).max(threshold).max(4.0))) as u8;
        found.push(Level { cut, bound: bound.min(RING - 2 - cut), threshold: threshold as i64 });
        begin = end;
    }
    Some(found)
}

/// What rows are.
#[derive(Clone)]
enum Rows {
    /// The last axis.
    Axis,
    /// Packed entries of a mask, of a dense shape.
    Packed(Id, Vec<Dim>),
}

impl Lower<'_> {
    /// Counts what leaves its range and reveals whether anything does; nothing where nothing is assumed.
    pub(super) fn guard(&mut self) -> Result<()> {
        self.check_watched()?;
        let order = self.graph.topological();
        let place = |v: ValueId| order.iter().position(|&u| u == v);
        let mut all = self.assumed();
        all.sort_by_key(|assumed| place(assumed.value));
        // Bits that say "within", one tensor of each shape.
        let mut within: Vec<(ValueId, Id)> = Vec::new();
        for assumed in all {
            let v = assumed.value;
            let bits = match assumed.quantity {
                Quantity::RowStatistic => self.divisors_within(v, assumed.low, assumed.high)?,
                Quantity::Exponent => {
                    let x = self.shares(v)?;
                    let (scale, _) = self.ring(x)?;
                    vec![self.below(v, x, assumed.high, scale.saturating_sub(EXPONENT_BLUR))?]
                }
                Quantity::Magnitude => self.rows_within(v)?,
                Quantity::PositiveDivisor | Quantity::DivisorOfOneSign | Quantity::DivisorOfBothSigns => {
                    self.elements_within(v, assumed.low, assumed.high)?
                }
            };
            for bit in bits {
                let shape = &self.module.ty(bit).shape;
                match within.iter().position(|&(_, id)| self.module.ty(id).shape == *shape) {
                    Some(at) => within[at] = (v, self.push(v, M::And, &[within[at].1, bit])?),
                    None => within.push((v, bit)),
                }
            }
        }
        let elements = |l: &Self, id: Id| l.elements(&l.module.ty(id).shape);
        let most: f64 = within.iter().map(|&(_, id)| elements(self, id)).sum();
        let bits = COUNTS.into_iter().find(|&bits| most < libm::exp2(f64::from(bits - 2))).unwrap_or(RING);
        let mut total: Option<Id> = None;
        let mut last = None;
        for (v, bit) in within {
            let count = self.count_beyond(v, bit, bits)?;
            total = Some(match total {
                Some(sum) => self.within(v, M::Add, &[sum, count], bits - 2)?,
                None => count,
            });
            last = Some(v);
        }
        let (Some(total), Some(v)) = (total, last) else { return Ok(()) };
        let minus = self.push(v, M::Neg, &[total])?;
        let any = self.push(v, M::Msb { width: bits, drop: 0 }, &[minus])?;
        let any = self.push(v, M::BitToRing { bits: RING }, &[any])?;
        let slot = self.module.outputs.len() as u32;
        self.module.outputs.push(OutputSlot { name: NAME.into(), kind: OutputKind::Guard, to: Party::Client });
        self.push(v, M::Reveal { slot }, &[any])?;
        Ok(())
    }

    /// Everything that is assumed of a secret has a guard.
    fn check_watched(&self) -> Result<()> {
        for (&v, range) in &self.options.ranges.values {
            let secret = self.graph.node(v).is_ok_and(|n| n.owner == Owner::Secret);
            let own = self.ranges.keys().any(|(u, _)| *u == v) || self.options.ranges.lengths.contains_key(&v);
            let watched = own || self.graph.users(v).iter().any(|&u| guards_scores(self.graph, u, v));
            if range.from == BoundFrom::Calibrated && secret && !watched {
                return Err(Diagnostic::internal("E0510", "an assumed range has no guard"));
            }
        }
        Ok(())
    }

    /// What is proven of a value's elements whatever is assumed of it, in units of a scale.
    fn proven(&self, v: ValueId, scale: u8) -> f64 {
        let proven = self.options.ranges.values.get(&v).map_or(f64::INFINITY, |r| r.proven);
        units(proven, scale)
    }

    /// Checks that the sum which becomes a value holds what is proven of it: truncation is wrong beyond.
    fn check_raw(&self, v: ValueId) -> Result<()> {
        let Some(&unrescaled) = self.unrescaled.get(&v) else { return Ok(()) };
        let (scale, _) = self.ring(unrescaled)?;
        let proven = self.options.ranges.values.get(&v).map_or(f64::INFINITY, |r| r.proven);
        self.check_room(super::magnitude_bits(proven, scale))
    }

    fn check_room(&self, bits: u8) -> Result<()> {
        if bits <= RING - 2 {
            return Ok(());
        }
        Err(Diagnostic::unsupported("E0575", "a value is so large that its assumed range cannot be guarded")
            .note(format!("expected at most {} bits, found {bits}", RING - 2))
            .note("use fewer fraction bits, or a model whose values are smaller there"))
    }

    /// The bit of every row that is shorter than assumed.
    fn rows_within(&mut self, v: ValueId) -> Result<Vec<Id>> {
        let Some(length) = self.options.ranges.lengths.get(&v).copied() else { return Ok(Vec::new()) };
        self.check_raw(v)?;
        let x = self.rows_of(v)?;
        let (scale, _) = self.ring(x)?;
        let n = self.graph.shape(v).last().map_or(1.0, |d| self.elements(std::slice::from_ref(d)));
        let (from, to) = (libm::ldexp(length.assumed, i32::from(scale)), units(length.proven, scale));
        let levels = levels(n, from, to, false).ok_or_else(|| too_long(to))?;
        let rows = Rows::Axis;
        levels
            .iter()
            .map(|level| {
                let sum = self.statistic(v, x, level, &rows)?;
                self.below_threshold(v, sum, level)
            })
            .collect()
    }

    /// Shares of a value's rows: where a truncation was made once they had been moved, those that it left.
    fn rows_of(&mut self, v: ValueId) -> Result<Id> {
        let mut at = v;
        while !self.rescaled.contains_key(&at) {
            let last = self.graph.shape(at).last().and_then(size_of);
            let keeps_rows = |u: &ValueId| match self.graph.op(*u) {
                Some(Op::Tensor(TensorOp::Reshape { shape })) => {
                    last.is_some() && shape.last().and_then(size_of) == last
                }
                Some(Op::Tensor(TensorOp::Transpose { perm })) => perm.last().is_some_and(|&p| p + 1 == perm.len()),
                _ => false,
            };
            match self.graph.users(at).into_iter().find(keeps_rows) {
                Some(next) => at = next,
                None => return self.shares(v),
            }
        }
        self.shares(at)
    }

    /// The statistic of a level, shared: the sum of squares of every row, in units of the level.
    fn statistic(&mut self, v: ValueId, x: Id, level: &Level, rows: &Rows) -> Result<Id> {
        let (cut, bound) = (level.cut, level.bound);
        let (left, right) = if cut == 0 {
            let whole = self.push(v, M::SetScale { scale: 0 }, &[x])?;
            (whole, whole)
        } else {
            let whole = self.push(v, M::SetScale { scale: cut }, &[x])?;
            let left = self.within(v, M::Cut { by: cut }, &[whole], bound)?;
            (left, self.within(v, M::AddInt { k: 3 }, &[left], bound)?)
        };
        let squares = self.within(v, M::Mul, &[left, right], bound)?;
        let sum = match rows {
            Rows::Axis => match self.module.ty(squares).shape.len().checked_sub(1) {
                Some(axis) => self.within(v, M::ReduceSum { axis: axis as u8 }, &[squares], bound)?,
                None => squares,
            },
            Rows::Packed(mask, shape) => {
                self.within(v, M::RowSum { shape: shape.clone() }, &[squares, *mask], bound)?
            }
        };
        self.within(v, M::Reshare, &[sum], bound)
    }

    /// The bit of every row whose statistic does not reach the threshold of its level; up to 2^−[`BLUR`] of it below, it may
    /// be set or not.
    fn below_threshold(&mut self, v: ValueId, sum: Id, level: &Level) -> Result<Id> {
        let drop = drop_for(level.threshold as f64);
        let k = if drop > 0 { 1i64 << drop } else { 0 } - level.threshold;
        let left = self.within(v, M::AddInt { k }, &[sum], level.bound)?;
        self.push(v, M::Msb { width: level.bound + 2, drop }, &[left])
    }

    /// The bit of every element that is below `high`; in the `2^drop` units below that, it may be set or not.
    fn below(&mut self, v: ValueId, x: Id, high: f64, drop: u8) -> Result<Id> {
        let (scale, _) = self.ring(x)?;
        let limit = libm::ldexp(high, i32::from(scale));
        let k = libm::ldexp(1.0, i32::from(drop)) * f64::from(u8::from(drop > 0)) - limit;
        self.negative_within(v, x, k, drop)
    }

    /// The bit of every element that is not below `low` units; up to 2^−[`BLUR`] of it above, it may be set or not.
    fn not_below(&mut self, v: ValueId, x: Id, low: f64) -> Result<Id> {
        let below = self.negative_within(v, x, -low, drop_for(low))?;
        self.push(v, M::Not, &[below])
    }

    /// The sign of `x + k`, in as many bits as are proven of it.
    fn negative_within(&mut self, v: ValueId, x: Id, k: f64, drop: u8) -> Result<Id> {
        let (scale, _) = self.ring(x)?;
        let most = self.proven(v, scale).max(libm::fabs(k));
        let bound = (libm::floor(libm::log2(most)) as i32).clamp(0, 120) as u8 + 2;
        self.check_room(bound)?;
        let left = self.within(v, M::AddInt { k: k as i64 }, &[x], bound)?;
        self.push(v, M::Msb { width: bound + 1 + u8::from(drop > 0), drop }, &[left])
    }

    /// The bits of every divisor that is within its range: below `high` in size, and not below `low`, in size where both
    /// signs are expected.
    fn elements_within(&mut self, v: ValueId, low: Option<f64>, high: f64) -> Result<Vec<Id>> {
        self.check_raw(v)?;
        let x = self.shares(v)?;
        let minus = self.push(v, M::Neg, &[x])?;
        let (scale, _) = self.ring(x)?;
        let drop = drop_for(libm::ldexp(high, i32::from(scale)));
        let Some(low) = low else {
            // A root: only its sign is assumed, and the least sizes are rounding.
            let sign = self.negative_within(v, x, ROUNDING as f64, 0)?;
            return Ok(vec![self.below(v, x, high, drop)?, self.push(v, M::Not, &[sign])?]);
        };
        let range = self.options.ranges.values.get(&v).copied();
        let (from, to) = range.map_or((0.0, 0.0), |r| (r.low, r.high));
        let limit = libm::ldexp(low, i32::from(scale)).max(1.0);
        if from > 0.0 || to < 0.0 {
            let size = if from > 0.0 { x } else { minus };
            return Ok(vec![self.below(v, size, high, drop)?, self.not_below(v, size, limit)?]);
        }
        let (above, under) = (self.not_below(v, x, limit)?, self.not_below(v, minus, limit)?);
        // At most one of the two is set.
        let apart = self.push(v, M::Xor, &[above, under])?;
        Ok(vec![self.below(v, x, high, drop)?, self.below(v, minus, high, drop)?, apart])
    }

    /// How many bits are not set, of all elements, in a ring of `bits`.
    fn count_beyond(&mut self, v: ValueId, within: Id, bits: u8) -> Result<Id> {
        let beyond = self.push(v, M::Not, &[within])?;
        let shape = self.module.ty(beyond).shape.clone();
        let mut sum = self.push(v, M::BitToRing { bits }, &[beyond])?;
        for axis in 0..shape.len() {
            sum = self.within(v, M::ReduceSum { axis: axis as u8 }, &[sum], bits - 2)?;
        }
        self.within(v, M::Reshape { shape: vec![1.into()] }, &[sum], bits - 2)
    }

    /// The bits of every row of a softmax by quotients whose divisor is not below the range, if any of its entries counts,
    /// and whose mean entry is below `high` at the longest.
    fn divisors_within(&mut self, v: ValueId, low: Option<f64>, high: f64) -> Result<Vec<Id>> {
        let (op, args) = (self.graph.op(v).cloned(), self.graph.operands(v));
        let (Some(Op::RatioSoftmax { numerator, eps, .. }), Some(&x)) = (op, args.first()) else {
            return Err(Diagnostic::internal("E0510", "a divisor's range is assumed of what has no divisor"));
        };
        if low.is_none() && high.is_infinite() {
            return Ok(Vec::new());
        }
        self.check_raw(x)?;
        let shape = self.graph.shape(v).to_vec();
        let n = shape.last().map_or(1.0, |d| self.elements(std::slice::from_ref(d))).max(1.0);
        let mask = self.softmax_mask(v, args.get(1).copied())?;
        let own = self.at_f(x)?;
        let packed = self.push(v, M::Pack, &[own, mask])?;
        let (scale, _) = self.ring(packed)?;
        let shift = match numerator {
            Numerator::Square { shift } => f64::from(shift),
            Numerator::Relu => 0.0,
        };
        let k = libm::round(libm::ldexp(shift, i32::from(scale)));
        let moved = if k == 0.0 { packed } else { self.push(v, M::AddInt { k: k as i64 }, &[packed])? };
        // Divisors less eps, and the rows that they follow from.
        let end = (high * n - f64::from(eps)).max(0.0);
        let begin = low.map(|low| (low - f64::from(eps)).max(0.0));
        let length = match numerator {
            Numerator::Square { .. } => libm::sqrt(end),
            Numerator::Relu => end / libm::sqrt(n),
        };
        let most = (self.proven(x, scale) + libm::fabs(k)) * libm::sqrt(n);
        let rows = Rows::Packed(mask, shape.clone());
        // Without an end, all rows are within it.
        let from = libm::ldexp(length, i32::from(scale)).min(most);
        let squares = numerator != Numerator::Relu;
        let levels = if squares || high.is_finite() {
            levels(n, from, most, squares && low.is_some()).ok_or_else(|| too_long(most))?
        } else {
            Vec::new()
        };
        let mut bits = Vec::new();
        let mut sums = Vec::new();
        for level in &levels {
            let sum = self.statistic(v, moved, level, &rows)?;
            sums.push(sum);
            if high.is_finite() {
                bits.push(self.below_threshold(v, sum, level)?);
            }
        }
        let Some(begin) = begin else { return Ok(bits) };
        bits.push(match (numerator, levels.first(), sums.first()) {
            (Numerator::Square { .. }, Some(level), Some(&sum)) => {
                let least = libm::ldexp(libm::sqrt(begin), i32::from(scale) - i32::from(level.cut));
                let blur = Level::blur(level.cut, n);
                if least < 2.0 * blur {
                    return Err(too_long(most));
                }
                let least = libm::ceil((least + blur) * (least + blur));
                // What is beyond the high end is seen above.
                let bound = libm::ceil(libm::log2((level.threshold as f64).max(least).max(4.0))) as u8 + 1;
                self.not_short(v, sum, mask, least, bound.min(level.bound))?
            }
            _ => {
                let entries = self.positive_part(v, moved)?;
                let sum = self.push(v, M::RowSum { shape }, &[entries, mask])?;
                let (fine, bound) = self.ring(sum)?;
                self.check_room(bound)?;
                let sum = match self.module.ty(sum).sharing {
                    Sharing::Shared => sum,
                    _ => self.push(v, M::Reshare, &[sum])?,
                };
                self.not_short(v, sum, mask, libm::ldexp(begin, i32::from(fine)), bound)?
            }
        });
        Ok(bits)
    }

    /// The bit of every row whose sum of at most `2^bound` is not below `least`, or that no entry counts in.
    fn not_short(&mut self, v: ValueId, sum: Id, mask: Id, least: f64, bound: u8) -> Result<Id> {
        let drop = drop_for(least);
        let spare = if drop > 0 { 1i64 << drop } else { 0 };
        let (scale, _) = self.ring(sum)?;
        let bits = self.module.ty(sum).as_ring().map_or(RING, |(bits, _)| bits);
        // Rows without entries have no divisor.
        let counted = self.rows_that_count(v, mask, bits)?;
        let limit = self.within(v, M::MulInt { k: least as i64 + spare }, &[counted], bound)?;
        let limit = self.push(v, M::SetScale { scale }, &[limit])?;
        let left = self.within(v, M::Sub, &[sum, limit], bound)?;
        let left = self.within(v, M::AddInt { k: spare }, &[left], bound)?;
        let short = self.push(v, M::Msb { width: bound + 2, drop }, &[left])?;
        self.push(v, M::Not, &[short])
    }

    /// 1 for every row of a public mask that keeps an entry, at scale 0 in a ring of `bits`.
    fn rows_that_count(&mut self, v: ValueId, mask: Id, bits: u8) -> Result<Id> {
        let output = self.mask_value(mask)? as usize;
        let value = self.module.public.outputs.get(output).copied();
        let value = value.ok_or_else(|| Diagnostic::internal("E0513", "a mask is not a public value"))?;
        let shape = self.module.ty(mask).shape.clone();
        let axis = shape.len().saturating_sub(1);
        let cast = self.module.public.push(TensorOp::Cast { to: DType::F32 }, vec![value])?;
        let reduce = TensorOp::Reduce { kind: Reduce::Max, axes: vec![axis], keepdims: true };
        let any = self.module.public.push(reduce, vec![cast])?;
        let rows = shape.iter().take(axis).cloned().chain([1.into()]).collect();
        let plain = self.publish_ref(v, any, DType::F32, rows)?;
        let origin = self.origin(v);
        let op = M::Encode { bits, scale: 0 };
        ombra_ir::infer::push(&mut self.module, op, &[plain], Some((1, BoundFrom::Proven)), origin)
    }
}

/// A size in units of a scale, with the room for rounding of every bound.
fn units(size: f64, scale: u8) -> f64 {
    libm::ldexp(size, i32::from(scale)) * (1.0 + 1.0 / 256.0) + 16.0
}

/// Low bits that a comparison with a threshold may leave out.
fn drop_for(threshold: f64) -> u8 {
    (libm::floor(libm::log2(threshold.max(1.0))) as i32 - BLUR).max(0) as u8
}

fn too_long(units: f64) -> Diagnostic {
    Diagnostic::unsupported("E0575", "rows are so long that their assumed range cannot be guarded")
        .note(format!("their length may be 2^{:.1} units of the fixed point", libm::log2(units)))
        .note("use fewer fraction bits, or a model whose values are smaller there")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statistic of a row at a level, where the shares decide that cuts lack `lacks` more than a floor, as its ring has
    /// it.
    fn statistic(row: &[i64], level: &Level, lacks: &mut dyn FnMut() -> i128) -> i128 {
        let bits = RING - level.cut;
        let sum: i128 = row
            .iter()
            .map(|&x| match level.cut {
                0 => i128::from(x) * i128::from(x),
                cut => {
                    let c = (i128::from(x) >> cut) - lacks();
                    c * (c + 3)
                }
            })
            .sum();
        let wrapped = sum.rem_euclid(1 << bits);
        if wrapped >> (bits - 1) == 1 { wrapped - (1 << bits) } else { wrapped }
    }

    /// Whether a level says that a row is beyond, as its comparison does where it leaves out what it may.
    fn is_beyond(row: &[i64], level: &Level, lacks: &mut dyn FnMut() -> i128, lenient: bool) -> bool {
        let drop = drop_for(level.threshold as f64);
        let spare = if drop > 0 { 1i128 << drop } else { 0 };
        let left = statistic(row, level, lacks) - i128::from(level.threshold) + spare;
        // The sign in as many bits as the comparison looks at.
        let width = level.bound + 2;
        let low = left.rem_euclid(1 << width);
        let signed = if low >> (width - 1) == 1 { low - (1 << width) } else { low };
        signed >= if lenient { spare } else { 0 }
    }

    /// Rows of `n` elements with a length from about `length`, in units: one element, all alike, two large ones of opposite
    /// signs, and drawn ones.
    fn rows(n: usize, length: f64, random: &mut fastrand::Rng) -> Vec<Vec<i64>> {
        let mut one = vec![0i64; n];
        one[random.usize(..n)] = if random.bool() { length as i64 } else { -(length as i64) };
        let alike = vec![(length / libm::sqrt(n as f64)) as i64 + 1; n];
        let mut two = vec![0i64; n];
        two[0] = (length / libm::sqrt(2.0)) as i64 + 1;
        two[n - 1] = -two[0];
        let drawn: Vec<f64> = (0..n).map(|_| random.f64() * 2.0 - 1.0).collect();
        let own = libm::sqrt(drawn.iter().map(|x| x * x).sum::<f64>()).max(1e-9);
        vec![one, alike, two, drawn.iter().map(|x| (x * length / own) as i64).collect()]
    }

    fn length(row: &[i64]) -> f64 {
        libm::sqrt(row.iter().map(|&x| x as f64 * x as f64).sum())
    }

    /// Whatever the shares are, a row from the assumed length to the proven one is seen, also where the squares of its
    /// elements pass every ring; and one of half the length is not.
    #[test]
    fn long_rows_are_seen_and_short_ones_pass() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut many, mut seen) = (0, 0);
        for n in [1usize, 2, 16, 64, 768, 4096] {
            for from in [16.0, 20.0, 23.5, 28.0, 33.0, 38.0] {
                for (to, fine) in [from, from + 0.5, 31.5, 36.0, 40.0, 43.0, 46.0, 50.0]
                    .into_iter()
                    .zip([false, true].into_iter().cycle())
                {
                    let (begin, end) = (libm::exp2(from), libm::exp2(to.max(from)));
                    let Some(levels) = levels(n as f64, begin, end, fine) else {
                        assert!(to > 45.0, "{n} elements, 2^{from} to 2^{to}");
                        continue;
                    };
                    many += usize::from(levels.len() > 1);
                    let step = libm::exp2(0.25);
                    let mut at = begin / libm::exp2(4.0);
                    while at <= end {
                        for row in rows(n, at, &mut random) {
                            let own = length(&row);
                            let mut lacks = || i128::from(random.i64(0..3));
                            let mut any =
                                |lenient| levels.iter().any(|level| is_beyond(&row, level, &mut lacks, lenient));
                            if own >= begin * 1.000_001 && own <= end {
                                seen += 1;
                                assert!(any(true), "2^{} of {n} from 2^{from} to 2^{to}: {levels:?}", libm::log2(own));
                            } else if own <= begin / 2.0 {
                                assert!(
                                    !any(false),
                                    "2^{} of {n} from 2^{from} to 2^{to}: {levels:?}",
                                    libm::log2(own)
                                );
                            }
                        }
                        at *= step;
                    }
                }
            }
        }
        assert!(many > 50 && seen > 10_000, "{many} sets of levels, {seen} rows beyond");
    }

    #[test]
    fn levels_are_few_and_begin_where_they_are_exact() {
        let cuts = |n, from: f64, to: f64, fine| {
            levels(n, libm::exp2(from), libm::exp2(to), fine).map(|l| l.iter().map(|l| l.cut).collect::<Vec<_>>())
        };
        assert_eq!(cuts(64.0, 20.0, 30.0, false), Some(vec![0]));
        assert_eq!(cuts(64.0, 26.0, 36.0, false), Some(vec![16]));
        assert_eq!(cuts(64.0, 20.0, 40.0, false), Some(vec![8, 24]));
        assert_eq!(cuts(64.0, 26.0, 36.0, true), Some(vec![0, 16]));
        assert_eq!(cuts(64.0, 20.0, 60.0, false), None);
    }
}
