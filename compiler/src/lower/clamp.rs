//! Clamping: two comparisons of one value at once, one product.

use super::Lower;
use crate::expand::fixed;
use crate::graph::ValueId;
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

use super::{RING, magnitude_bits};

impl Lower<'_> {
    /// `min(max(x, low), high)`: with `b = 1{x < low}` and `a = 1{x ≥ high}`, `x·(1 − b − a) + b·low + a·high`.
    pub(super) fn clamp(&mut self, v: ValueId, x: ValueId, low: f32, high: f32) -> Result<Id> {
        if low > high || !low.is_finite() || !high.is_finite() {
            return Err(Diagnostic::unsupported("E0527", format!("a clamp between {low} and {high}"))
                .note("expected two finite numbers, the lower one first"));
        }
        let f = self.options.f;
        let x = self.at_f(x)?;
        let (low_fixed, high_fixed) = (fixed(f64::from(low), f)?, fixed(f64::from(high), f)?);
        let mut below = |k: i64| -> Result<Id> {
            let difference = self.push(v, M::AddInt { k: -k }, &[x])?;
            let (_, bound) = self.ring(difference)?;
            self.push(v, M::Msb { width: bound + 1, drop: 0 }, &[difference])
        };
        let (b, under) = (below(low_fixed)?, below(high_fixed)?);
        let b = self.push(v, M::BitToRing { bits: RING }, &[b])?;
        let under = self.push(v, M::BitToRing { bits: RING }, &[under])?;
        // 1 − b − a = under − b, as a = 1 − under.
        let keep = self.push(v, M::Sub, &[under, b])?;
        let kept = self.push(v, M::Mul, &[x, keep])?;
        let lower = self.push(v, M::MulInt { k: low_fixed }, &[b])?;
        let upper = self.push(v, M::MulInt { k: -high_fixed }, &[under])?;
        let ends = self.push(v, M::Add, &[lower, upper])?;
        let ends = self.push(v, M::SetScale { scale: f }, &[ends])?;
        let ends = self.push(v, M::AddInt { k: high_fixed }, &[ends])?;
        let sum = self.push(v, M::Add, &[kept, ends])?;
        let bound = magnitude_bits(f64::from(low.abs().max(high.abs())), f);
        let origin = self.origin(v);
        ombra_ir::infer::push_within(&mut self.module, M::Reshare, &[sum], (bound, BoundFrom::Guarded), origin)
    }
}
