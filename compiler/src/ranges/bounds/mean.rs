//! Means over what a mask keeps.

use super::proof::{Ends, LOOSE, inverse};
use super::rules::Prover;
use super::spread::Spread;
use crate::graph::ValueId;
use ombra_ir::plain::Reduce;

impl Prover<'_> {
    /// Ends of a mean with public weights: those of what it is a mean of, and of 0. The inverse of the weights' sum is
    /// rounded.
    pub(super) fn mean(&self, v: ValueId) -> Option<Spread<Ends>> {
        let mean = self.graph.mean(v)?;
        let (x, weights) = (self.proofs.get(&mean.x)?, self.proofs.get(&mean.weights)?);
        let most = self.reduce(mean.sum, x, Reduce::Max, &mean.axes, mean.keepdims)?;
        let n: f64 =
            mean.axes.iter().filter_map(|&a| self.graph.shape(mean.x).get(a)).map(|d| self.count(d).1).product();
        let loose = LOOSE + n * weights.size() * libm::exp2(-f64::from(self.f));
        Some(most.range.map(|(low, high)| (low.min(0.0) * loose, high.max(0.0) * loose)))
    }

    /// What `1/x` is of a value between `ends`: a count that divides is at least 1.
    pub(super) fn inverse_of(&self, x: ValueId, (low, high): Ends) -> Ends {
        let away = self.away.get(&x).copied().unwrap_or(0.0);
        let least = if self.graph.is_count(x) { 1.0 } else { f64::NEG_INFINITY };
        inverse((low.max(least), high.max(least)), away)
    }
}
