//! Lowering of what takes the place of softmax, activations and norms in models trained for MPC.

use super::{Assumed, Lower};
use crate::expand::{FINE, WIDEST};
use crate::graph::{Numerator, ValueId};
use crate::ranges::bounds::{MARGIN, divisor_end};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plan::Quantity;
use ombra_ir::{Diagnostic, Result};

/// Significant bits of a constant factor.
const SIGNIFICANT: f64 = 14.0;
/// The least power of two at which a divisor's range begins.
const LEAST: i32 = -20;
/// Standard deviations of a divisor's logarithm that its range leaves below the mean: 10 are exceeded with 2^-72.
const DEVIATIONS: f64 = 10.0;

impl Lower<'_> {
    /// `g(x) / (Σ g(x) + eps)` over the last axis, for a divisor in the range that follows from calibration.
    pub(super) fn ratio_softmax(
        &mut self,
        v: ValueId,
        x: ValueId,
        mask: Option<ValueId>,
        numerator: Numerator,
        eps: f32,
    ) -> Result<Id> {
        let x = self.at_f(x)?;
        let mask = self.softmax_mask(v, mask)?;
        let columns =
            self.graph.shape(v).last().and_then(|d| self.module.dims.upper(d)).and_then(|n| u64::try_from(n).ok());
        let columns = columns.ok_or_else(|| {
            Diagnostic::input("E0506", "a softmax row has no maximum length").note("give --max for its sizes")
        })?;
        let (min_log2, max_log2) = self.divisor_range(v, x, columns.max(1), numerator, eps)?;
        let (square, shift) = match numerator {
            Numerator::Relu => (false, 0.0),
            Numerator::Square { shift } => (true, shift),
        };
        let (shift, eps) = (shift.into(), eps.into());
        self.value(v, M::RatioSoftmax { square, shift, eps, min_log2, max_log2 }, &[x, mask])
    }

    /// `2^min ≤ divisor < 2^max`. The end is what the scores' bound proves, or the maximum mean that calibration saw
    /// times the longest row, with the margin of every bound. The begin is `eps`, below which no divisor is, or the least
    /// one that calibration saw, with the same margin, and at least [`DEVIATIONS`] below the mean of their logarithms:
    /// divisors of short rows spread widely.
    fn divisor_range(&mut self, v: ValueId, x: Id, columns: u64, numerator: Numerator, eps: f32) -> Result<(i8, i8)> {
        let margin = i32::from(MARGIN);
        let seen = self.options.ranges.rows.get(&v).copied();
        let (scale, bound) = self.ring(x)?;
        let score = libm::ldexp(1.0, i32::from(bound) - i32::from(scale));
        let entry = match numerator {
            Numerator::Relu => score,
            Numerator::Square { shift } => (score + f64::from(shift.abs())) * (score + f64::from(shift.abs())),
        };
        let proven = entry * columns as f64 + f64::from(eps);
        let max = libm::floor(libm::log2(proven)) as i32 + 1;
        let max = seen.map_or(max, |s| max.min(divisor_end(&s, columns as f64)));
        let from_eps = (eps > 0.0).then(|| libm::floor(libm::log2(f64::from(eps))) as i32);
        let from_seen = seen.map(|s| libm::floor(libm::log2(s.low)) as i32);
        let from_spread = seen.map_or(i32::MAX, |s| {
            libm::floor((s.log.mean() - DEVIATIONS * s.log.deviation()) / std::f64::consts::LN_2) as i32
        });
        let wide = |least: i32| {
            Diagnostic::input("E0508", format!("a softmax row's divisor ranges from 2^{least} to 2^{max}: too wide"))
                .note(format!("expected at most {WIDEST} powers of two above 2^{LEAST}"))
                .note("give --max for the sizes of the model, or calibrate on inputs that are typical for it")
        };
        // What nothing has to be compared with may take more room than what was seen.
        let (widest, lowest) = ((max - i32::from(WIDEST)).max(LEAST), (max - i32::from(FINE)).max(LEAST));
        let min = match (from_eps, from_seen) {
            (Some(min), _) if min >= widest => min,
            (_, Some(least)) if least >= lowest => (least - margin).min(from_spread).max(lowest),
            (_, Some(least)) => return Err(wide(least)),
            (Some(min), None) => return Err(wide(min)),
            // No row had an entry that is not 0.
            (None, None) => lowest,
        };
        let small = |n: i32| i8::try_from(n).map_err(|_| wide(min));
        let (min_log2, max_log2) = (small(min.min(max - 1))?, small(max)?);
        let power = |n: i8| libm::ldexp(1.0, i32::from(n));
        self.assume(Assumed {
            value: v,
            quantity: Quantity::RowStatistic,
            low: from_eps.is_none_or(|least| least < i32::from(min_log2)).then(|| power(min_log2)),
            high: if power(max_log2) > proven { f64::INFINITY } else { power(max_log2) / columns as f64 },
        });
        Ok((min_log2, max_log2))
    }

    /// `square · x² + linear · x + constant` with one secret product.
    pub(super) fn quadratic(&mut self, v: ValueId, x: ValueId, [square, linear, constant]: [f32; 3]) -> Result<Id> {
        let x = self.at_f(x)?;
        let product = self.push(v, M::Mul, &[x, x])?;
        let product = self.times(v, product, square)?;
        let line = self.times(v, x, linear)?;
        let (fine, coarse) = (self.ring(product)?.0, self.ring(line)?.0);
        let scale = fine.max(coarse);
        let product = self.raised(v, product, scale)?;
        let line = self.raised(v, line, scale)?;
        let sum = self.push(v, M::Add, &[product, line])?;
        let k = libm::round(libm::ldexp(f64::from(constant), i32::from(scale)));
        if !libm::fabs(k).is_finite() || libm::fabs(k) > 1e18 {
            return Err(Diagnostic::unsupported("E0523", format!("a summand of {constant} is not supported")));
        }
        self.value(v, M::AddInt { k: k as i64 }, &[sum])
    }

    /// `x · k`: powers of two only move the point.
    fn times(&mut self, v: ValueId, x: Id, k: f32) -> Result<Id> {
        let (scale, _) = self.ring(x)?;
        let k = f64::from(k);
        if !k.is_finite() || libm::fabs(k) > 65536.0 {
            return Err(Diagnostic::unsupported(
                "E0523",
                format!("a factor of {k} on a secret value is not supported"),
            ));
        }
        if k == 0.0 {
            return self.push(v, M::MulInt { k: 0 }, &[x]);
        }
        // k = m / 2^s with an odd m.
        let mut s = (SIGNIFICANT - 1.0 - libm::floor(libm::log2(libm::fabs(k)))).clamp(0.0, 30.0) as u8;
        let mut m = libm::round(libm::ldexp(k, i32::from(s))) as i64;
        while m % 2 == 0 && m != 0 && s > 0 {
            (m, s) = (m / 2, s - 1);
        }
        let product = if m == 1 { x } else { self.push(v, M::MulInt { k: m }, &[x])? };
        if s == 0 { Ok(product) } else { self.push(v, M::SetScale { scale: scale.saturating_add(s) }, &[product]) }
    }

    fn raised(&mut self, v: ValueId, x: Id, scale: u8) -> Result<Id> {
        let (from, _) = self.ring(x)?;
        if from == scale { Ok(x) } else { self.push(v, M::Upscale { by: scale - from }, &[x]) }
    }

    /// A norm without its division: no message but those of the row's mean, its scale and its shift.
    pub(super) fn affine_norm(&mut self, v: ValueId, args: &[ValueId], centred: bool) -> Result<Id> {
        if let ([x, w], false) = (args, centred) {
            return self.mul(v, *x, *w);
        }
        let mut id = self.shares(args[0])?;
        if centred {
            let shape = self.graph.shape(v).to_vec();
            let n = shape.last().and_then(|d| d.as_constant()).filter(|&n| n > 0);
            let n = n.ok_or_else(|| Diagnostic::unsupported("E0524", "a mean over an axis of unknown length"))?;
            let axis = u8::try_from(shape.len() - 1)
                .map_err(|_| Diagnostic::internal("E0510", "a value has too many axes"))?;
            let (scale, _) = self.ring(id)?;
            let sum = self.push(v, M::ReduceSum { axis }, &[id])?;
            let mean = self.over(v, sum, n as f64)?;
            let (fine, _) = self.ring(mean)?;
            let mean = if fine > scale {
                self.push(v, M::Truncate { by: fine - scale, bits: super::RING }, &[mean])?
            } else {
                mean
            };
            id = self.push(v, M::Sub, &[id, mean])?;
        }
        let id = self.scale_and_shift(v, id, args)?;
        self.tighten(v, id);
        Ok(id)
    }
}
