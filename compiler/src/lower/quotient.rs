//! Lowering of quotients, roots, exponentials and logarithms: functions of operands that need a range.
//!
//! The range is what calibration saw with a margin, cut to what the operators before prove. An operand whose error counts
//! relative to its size is taken at a finer scale than others, from before its truncation.

use super::{Assumed, Lower, RING};
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plain::{Binary, Unary};
use ombra_ir::plan::Quantity;
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Result};

/// Fraction bits of operands whose relative error counts, above those of others.
const FINER: u8 = 8;
/// The least divisor, in units of the fixed point: it has this many significant bits.
const SIGNIFICANT: i32 = 4;

/// Powers of two around the size of an operand, and its sign, if it has one that is known.
struct Range {
    min: i8,
    max: i8,
    sign: Option<Sign>,
}

#[derive(Clone, Copy, PartialEq)]
enum Sign {
    Plus,
    Minus,
}

/// Whether the value is a factor of secret products alone and may come at a finer scale.
pub(super) fn is_fine(graph: &Graph, v: ValueId) -> bool {
    let inverse = match graph.op(v) {
        Some(Op::Tensor(TensorOp::Unary(Unary::Reciprocal))) => true,
        Some(Op::Pow(p)) => *p == -0.5,
        _ => false,
    };
    let multiplied = |&u: &ValueId| {
        matches!(graph.op(u), Some(Op::Tensor(TensorOp::Binary(Binary::Mul))))
            && graph.operands(u).iter().all(|&a| graph.node(a).is_ok_and(|n| n.owner != Owner::Public))
    };
    inverse
        && graph.node(v).is_ok_and(|n| n.owner == Owner::Secret)
        && !graph.is_output(v)
        && graph.users(v).iter().all(multiplied)
}

impl Lower<'_> {
    pub(super) fn quotient(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        let range = self.divisor(b)?;
        let (mut left, mut right) = (self.at_f(a)?, self.finer(v, b, range.max)?);
        match range.sign {
            Some(Sign::Plus) => {}
            Some(Sign::Minus) => {
                left = self.push(v, M::Neg, &[left])?;
                right = self.push(v, M::Neg, &[right])?;
            }
            None => {
                let sign = self.sign_of_nonzero(v, right)?;
                left = self.with_sign(v, left, sign)?;
                right = self.with_sign(v, right, sign)?;
            }
        }
        let Range { min: min_log2, max: max_log2, .. } = range;
        self.value(v, M::Div { min_log2, max_log2, scale: self.options.f }, &[left, right])
    }

    pub(super) fn reciprocal(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let range = self.divisor(x)?;
        let mut right = self.finer(v, x, range.max)?;
        let sign = match range.sign {
            Some(Sign::Plus) => None,
            Some(Sign::Minus) => {
                right = self.push(v, M::Neg, &[right])?;
                None
            }
            None => {
                let sign = self.sign_of_nonzero(v, right)?;
                right = self.with_sign(v, right, sign)?;
                Some(sign)
            }
        };
        let scale = if is_fine(self.graph, v) { self.options.f + FINER } else { self.options.f };
        let Range { min: min_log2, max: max_log2, .. } = range;
        let inverse = self.value(v, M::Reciprocal { min_log2, max_log2, scale }, &[right])?;
        match (range.sign, sign) {
            (Some(Sign::Minus), _) => self.push(v, M::Neg, &[inverse]),
            (_, Some(sign)) => self.with_sign(v, inverse, sign),
            _ => Ok(inverse),
        }
    }

    pub(super) fn sqrt(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let (low, high) = self.ends(x);
        // Below the resolution of the operand there is nothing to tell apart.
        let floor = -i32::from(self.options.f) / 2;
        let proven = self.options.ranges.at_least(x);
        let min = log2(low.max(0.0)).div_euclid(2);
        let max = self.top(high).div_euclid(2) + 1;
        let (min_log4, max_log4) = (small(min.max(floor).min(max - 1)), small(max));
        // Small operands have small errors: only the maximum, and the sign, are taken for granted.
        if proven < 0.0 || self.is_assumed(x) {
            let quantity = if proven >= 0.0 { Quantity::PositiveDivisor } else { Quantity::DivisorOfOneSign };
            self.assume_divisor(x, quantity, None, 2 * i32::from(max_log4));
        }
        let x = self.finer(v, x, max_log4.saturating_mul(2))?;
        self.value(v, M::Sqrt { min_log4, max_log4, scale: self.options.f }, &[x])
    }

    pub(super) fn rsqrt(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let Range { min, max, sign } = self.divisor(x)?;
        if sign != Some(Sign::Plus) {
            return Err(not_positive("a square root in a divisor"));
        }
        let (min_log4, max_log4) = (min.div_euclid(2), (max + 1).div_euclid(2));
        let x = self.finer(v, x, max_log4.saturating_mul(2))?;
        let scale = if is_fine(self.graph, v) { self.options.f + FINER } else { self.options.f };
        self.value(v, M::Rsqrt { min_log4, max_log4, scale }, &[x])
    }

    pub(super) fn log(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let Range { min: min_log2, max: max_log2, sign } = self.divisor(x)?;
        if sign != Some(Sign::Plus) {
            return Err(not_positive("a logarithm"));
        }
        let x = self.finer(v, x, max_log2)?;
        self.value(v, M::Log { min_log2, max_log2, scale: self.options.f }, &[x])
    }

    pub(super) fn exponential(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let (_, high) = self.ends(x);
        let max = small(libm::ceil(high) as i32);
        if self.is_assumed(x) {
            self.assume(Assumed { value: x, quantity: Quantity::Exponent, low: None, high: f64::from(max) });
        }
        let x = self.at_f(x)?;
        self.value(v, M::Exp { max }, &[x])
    }

    /// Minimum and maximum value.
    fn ends(&self, x: ValueId) -> (f64, f64) {
        self.options.ranges.values.get(&x).map_or((-1.0, 1.0), |r| (r.low, r.high))
    }

    /// Whether nothing proves the range of a value.
    fn is_assumed(&self, x: ValueId) -> bool {
        self.options.ranges.values.get(&x).is_some_and(|r| r.from == BoundFrom::Calibrated)
    }

    /// The power of two above a size.
    fn top(&self, size: f64) -> i32 {
        log2(size).max(-i32::from(self.options.f)) + 1
    }

    /// The range of a divisor.
    ///
    /// # Errors
    /// `E0528` where it may come too near to zero.
    fn divisor(&mut self, x: ValueId) -> Result<Range> {
        let (low, high) = self.ends(x);
        let away = self.options.ranges.values.get(&x).map_or(0.0, |r| r.away);
        let max = self.top(libm::fabs(low).max(libm::fabs(high)));
        let min = log2(away).min(max - 1);
        let finest = SIGNIFICANT - i32::from(self.options.f);
        if min < finest {
            return Err(Diagnostic::unsupported("E0528", "an operand that must not be zero may come too near to it")
                .note(format!("expected at least 2^{finest} in size, found that it may be {away:.1e}"))
                .note(
                    "use more fraction bits, add a small constant to it in the model, or calibrate on typical inputs",
                ));
        }
        let (sign, quantity) = match (low > 0.0, high < 0.0) {
            (true, _) => (Some(Sign::Plus), Quantity::DivisorOfOneSign),
            (_, true) => (Some(Sign::Minus), Quantity::DivisorOfOneSign),
            _ => (None, Quantity::DivisorOfBothSigns),
        };
        let (min, max) = (small(min), small(max));
        if self.is_assumed(x) {
            self.assume_divisor(x, quantity, Some(i32::from(min)), i32::from(max));
        }
        Ok(Range { min, max, sign })
    }

    /// Takes elements of `x` to be at least `2^min` and below `2^max` in size.
    fn assume_divisor(&mut self, x: ValueId, quantity: Quantity, min: Option<i32>, max: i32) {
        self.assume(Assumed {
            value: x,
            quantity,
            low: min.map(|min| libm::ldexp(1.0, min)),
            high: libm::ldexp(1.0, max),
        });
    }

    /// Shares of a value below `2^max` at a scale above f, as far as the ring has room: from before its truncation where
    /// there is one.
    fn finer(&mut self, v: ValueId, x: ValueId, max: i8) -> Result<Id> {
        let f = self.options.f;
        let room = i32::from(RING) - 6 - 2 * i32::from(max.max(0));
        let wanted = i32::from(f + FINER).min(room).max(i32::from(f)) as u8;
        let unrescaled = match self.unrescaled.get(&x) {
            Some(&unrescaled) => unrescaled,
            None => self.shares(x)?,
        };
        let (scale, _) = self.ring(unrescaled)?;
        let shared = self.module.ty(unrescaled).sharing == Sharing::Shared;
        if scale > wanted {
            return self.value(x, M::Truncate { by: scale - wanted, bits: RING }, &[unrescaled]);
        }
        let at = if shared { unrescaled } else { self.shares(x)? };
        let (scale, _) = self.ring(at)?;
        if scale >= wanted { Ok(at) } else { self.push(v, M::Upscale { by: wanted - scale }, &[at]) }
    }

    /// 1 or −1 at scale 0.
    fn sign_of_nonzero(&mut self, v: ValueId, x: Id) -> Result<Id> {
        let negative = self.negative(v, x)?;
        let minus = self.push(v, M::MulInt { k: -2 }, &[negative])?;
        self.push(v, M::AddInt { k: 1 }, &[minus])
    }

    /// A product with a sign, shared.
    fn with_sign(&mut self, v: ValueId, x: Id, sign: Id) -> Result<Id> {
        let (_, bound) = self.ring(x)?;
        let product = self.push(v, M::Mul, &[x, sign])?;
        self.within(v, M::Reshare, &[product], bound)
    }
}

/// `⌊log2 x⌋` of a size, far below for 0.
fn log2(x: f64) -> i32 {
    if x > 0.0 { libm::ilogb(x) } else { -64 }
}

fn small(x: i32) -> i8 {
    x.clamp(-32, 32) as i8
}

fn not_positive(what: &str) -> Diagnostic {
    Diagnostic::unsupported("E0529", format!("{what} of a value that may be negative"))
        .note("expected a value that is positive on all calibration inputs")
}
