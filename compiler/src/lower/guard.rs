//! The guard: one bit that says whether a range was left that nothing proves.
//!
//! Every element of a value with an assumed range is compared with its ends, in as many bits as are proven of it without
//! the assumption; a softmax by quotients has its divisors compared. The bits are counted, and whether there are any is
//! revealed to the client beside its result, which it drops then. That is one bit a step, about the client's own input, to
//! the client alone: whether it left the ranges that were measured.

use super::{Lower, RING};
use crate::graph::{Numerator, Op, ValueId};
use ombra_ir::module::{Id, OutputKind, OutputSlot, Party};
use ombra_ir::op::Op as M;
use ombra_ir::plain::{self, DType, Reduce};
use ombra_ir::plan::Quantity;
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Result};

/// Name of the output, which no model has.
const NAME: &str = "%guard";
/// Units by which rounding may make a number negative.
const ROUNDING: i64 = 64;
/// Bits of a number of violations.
const COUNT: u8 = 48;
/// The ring in which violations of one value are counted, where it holds their number.
const SMALL: u8 = 32;

impl Lower<'_> {
    /// Counts what leaves its range and reveals whether anything does; nothing where nothing is assumed.
    pub(super) fn guard(&mut self) -> Result<()> {
        let mut total: Option<Id> = None;
        let mut last = None;
        for assumed in self.assumed() {
            let v = assumed.value;
            let bits = match assumed.quantity {
                Quantity::RowStatistic => self.divisors_outside(v, assumed.low, assumed.high)?,
                Quantity::Exponent => {
                    let x = self.shares(v)?;
                    vec![self.above(v, x, assumed.high)?]
                }
                Quantity::Magnitude => {
                    let x = self.shares(v)?;
                    let minus = self.push(v, M::Neg, &[x])?;
                    vec![self.beyond(v, (x, minus), assumed.high)?]
                }
                Quantity::PositiveDivisor | Quantity::DivisorOfOneSign | Quantity::DivisorOfBothSigns => {
                    let x = self.shares(v)?;
                    let minus = self.push(v, M::Neg, &[x])?;
                    let mut bits = vec![self.beyond(v, (x, minus), assumed.high)?];
                    bits.extend(self.near_zero(v, (x, minus), assumed.low)?);
                    bits
                }
            };
            for bit in bits {
                let count = self.count(v, bit)?;
                total = Some(match total {
                    Some(sum) => self.push(v, M::Add, &[sum, count])?,
                    None => count,
                });
                last = Some(v);
            }
        }
        let (Some(total), Some(v)) = (total, last) else { return Ok(()) };
        let minus = self.push(v, M::Neg, &[total])?;
        let any = self.push(v, M::Msb { width: COUNT + 1, drop: 0 }, &[minus])?;
        let any = self.push(v, M::BitToRing { bits: RING }, &[any])?;
        let slot = self.module.outputs.len() as u32;
        self.module.outputs.push(OutputSlot { name: NAME.into(), kind: OutputKind::Guard, to: Party::Client });
        self.push(v, M::Reveal { slot }, &[any])?;
        Ok(())
    }

    /// Bits that hold a value in two's complement whatever is assumed of it, at a scale.
    fn proven_width(&self, v: ValueId, scale: u8) -> Result<u8> {
        let proven = self.options.ranges.values.get(&v).map_or(f64::INFINITY, |r| r.proven);
        let bits = super::magnitude_bits(proven, scale);
        if bits > RING - 2 {
            return Err(Diagnostic::unsupported(
                "E0575",
                "a value is so large that its assumed range cannot be guarded",
            )
            .note(format!("expected at most {} bits, found {bits}", RING - 2))
            .note("use fewer fraction bits, or a model whose values are smaller there"));
        }
        Ok(bits + 2)
    }

    /// The bit of every element whose size is `high` or more.
    fn beyond(&mut self, v: ValueId, (x, minus): (Id, Id), high: f64) -> Result<Id> {
        let (above, below) = (self.above(v, x, high)?, self.above(v, minus, high)?);
        // At most one of the two is set.
        self.push(v, M::Xor, &[above, below])
    }

    /// The bit of every element that is `high` or more.
    fn above(&mut self, v: ValueId, x: Id, high: f64) -> Result<Id> {
        let (scale, _) = self.ring(x)?;
        let width = self.proven_width(v, scale)?;
        let limit = libm::ldexp(high, i32::from(scale)) - 1.0;
        if limit >= libm::ldexp(1.0, i32::from(RING) - 3) {
            return Err(Diagnostic::internal("E0510", "an assumed range is beyond the ring"));
        }
        let minus = self.push(v, M::Neg, &[x])?;
        let left = self.push(v, M::AddInt { k: limit as i64 }, &[minus])?;
        self.sign_of(v, left, width)
    }

    /// The sign of what a comparison leaves, in as many bits as hold it and the proven ones of its value.
    fn sign_of(&mut self, v: ValueId, left: Id, proven: u8) -> Result<Id> {
        let width = proven.max(self.ring(left)?.1 + 1);
        self.push(v, M::Msb { width, drop: 0 }, &[left])
    }

    /// The bit of every element that is smaller than `low`, in size where both signs are expected.
    fn near_zero(&mut self, v: ValueId, (x, minus): (Id, Id), low: Option<f64>) -> Result<Vec<Id>> {
        let range = self.options.ranges.values.get(&v).copied();
        let (scale, _) = self.ring(x)?;
        let Some(low) = low else {
            // A root: only its sign is assumed, and the least sizes are rounding.
            let left = self.push(v, M::AddInt { k: ROUNDING }, &[x])?;
            let width = self.proven_width(v, scale)?;
            return Ok(vec![self.sign_of(v, left, width)?]);
        };
        let Some(range) = range else { return Ok(Vec::new()) };
        let limit = libm::ldexp(low, i32::from(scale)).max(1.0) as i64;
        let mut below = |x: Id| -> Result<Id> {
            let left = self.push(v, M::AddInt { k: -limit }, &[x])?;
            let width = self.proven_width(v, scale)?;
            self.sign_of(v, left, width)
        };
        if range.low > 0.0 {
            return Ok(vec![below(x)?]);
        }
        if range.high < 0.0 {
            return Ok(vec![below(minus)?]);
        }
        let (plus, negative) = (below(x)?, below(minus)?);
        Ok(vec![self.push(v, M::And, &[plus, negative])?])
    }

    /// How many bits are set, of all elements.
    fn count(&mut self, v: ValueId, bit: Id) -> Result<Id> {
        let shape = self.module.ty(bit).shape.clone();
        let bits = if self.elements(&shape) < libm::exp2(f64::from(SMALL - 2)) { SMALL } else { RING };
        let mut sum = self.push(v, M::BitToRing { bits }, &[bit])?;
        for axis in 0..shape.len() {
            sum = self.push(v, M::ReduceSum { axis: axis as u8 }, &[sum])?;
        }
        sum = self.within(v, M::Reshape { shape: vec![1.into()] }, &[sum], COUNT.min(bits - 2))?;
        if bits < RING { self.push(v, M::Extend { bits: RING }, &[sum]) } else { Ok(sum) }
    }

    /// The bits of every row of a softmax by quotients whose divisor is below the range, if any of its entries counts, or
    /// whose mean entry is `high` at the longest.
    fn divisors_outside(&mut self, v: ValueId, low: Option<f64>, high: f64) -> Result<Vec<Id>> {
        if low.is_none() && high.is_infinite() {
            return Ok(Vec::new());
        }
        let (op, args) = (self.graph.op(v).cloned(), self.graph.operands(v));
        let (Some(Op::RatioSoftmax { numerator, eps, .. }), Some(&x)) = (op, args.first()) else {
            return Ok(Vec::new());
        };
        let shape = self.graph.shape(v).to_vec();
        let mask = self.softmax_mask(v, args.get(1).copied())?;
        let own = self.at_f(x)?;
        let (scale, bound) = self.ring(own)?;
        let longest = shape.last().and_then(|d| self.graph.dims.upper(d)).map_or(1.0, |n| n.max(1) as f64);
        let columns = libm::ceil(libm::log2(longest)) as u8;
        // The sum of a row has to fit: where it would not, entries drop fraction bits.
        let square = matches!(numerator, Numerator::Square { .. });
        let bits = if square { 2 * (bound.max(scale) + 2) } else { bound + 1 };
        let excess = bits.saturating_add(columns).saturating_sub(RING - 2).div_ceil(if square { 2 } else { 1 });
        let x = if excess == 0 { own } else { self.shares_at(x, scale.saturating_sub(excess))? };
        let packed = self.push(v, M::Pack, &[x, mask])?;
        let (scale, _) = self.ring(packed)?;
        let entries = match numerator {
            Numerator::Square { shift } => {
                let k = libm::round(libm::ldexp(f64::from(shift), i32::from(scale))) as i64;
                let moved = self.push(v, M::AddInt { k }, &[packed])?;
                self.push(v, M::Mul, &[moved, moved])?
            }
            Numerator::Relu => self.positive_part(v, packed)?,
        };
        let sum = self.push(v, M::RowSum { shape: shape.clone() }, &[entries, mask])?;
        let (fine, bound) = self.ring(sum)?;
        if bound > RING - 2 {
            return Err(Diagnostic::unsupported(
                "E0575",
                "a divisor is so large that its assumed range cannot be guarded",
            )
            .note(format!("expected at most {} bits, found {bound}", RING - 2)));
        }
        let sum = match self.module.ty(sum).sharing {
            Sharing::Shared => sum,
            _ => self.push(v, M::Reshare, &[sum])?,
        };
        let mut bits = Vec::new();
        if high.is_finite() {
            let limit = libm::ldexp(high * longest - f64::from(eps), i32::from(fine)).max(0.0);
            // Beyond the bound there is nothing.
            if limit < libm::ldexp(1.0, i32::from(bound)) {
                let minus = self.push(v, M::Neg, &[sum])?;
                let left = self.push(v, M::AddInt { k: limit as i64 - 1 }, &[minus])?;
                bits.push(self.sign_of(v, left, 0)?);
            }
        }
        let Some(low) = low else { return Ok(bits) };
        // Rows without entries have no divisor.
        let counted = self.rows_that_count(v, mask)?;
        let limit = libm::ldexp(low - f64::from(eps), i32::from(fine)).max(0.0) as i64;
        let limit = self.push(v, M::MulInt { k: limit }, &[counted])?;
        let limit = self.push(v, M::SetScale { scale: fine }, &[limit])?;
        let left = self.push(v, M::Sub, &[sum, limit])?;
        bits.push(self.sign_of(v, left, 0)?);
        Ok(bits)
    }

    /// 1 for every row of a public mask that keeps an entry, at scale 0.
    fn rows_that_count(&mut self, v: ValueId, mask: Id) -> Result<Id> {
        let output = self.mask_value(mask)? as usize;
        let value = self.module.public.outputs.get(output).copied();
        let value = value.ok_or_else(|| Diagnostic::internal("E0513", "a mask is not a public value"))?;
        let shape = self.module.ty(mask).shape.clone();
        let axis = shape.len().saturating_sub(1);
        let cast = self.module.public.push(plain::Op::Cast { to: DType::F32 }, vec![value])?;
        let reduce = plain::Op::Reduce { kind: Reduce::Max, axes: vec![axis], keepdims: true };
        let any = self.module.public.push(reduce, vec![cast])?;
        let rows = shape.iter().take(axis).cloned().chain([1.into()]).collect();
        let plain = self.publish_ref(v, any, DType::F32, rows)?;
        let origin = self.origin(v);
        let op = M::Encode { bits: RING, scale: 0 };
        ombra_ir::infer::push(&mut self.module, op, &[plain], Some((1, BoundFrom::Proven)), origin)
    }
}
