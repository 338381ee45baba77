//! Ranges of a model that was read without its weights, from which no bound follows.
//!
//! Bounds decide the widths of comparisons and the rings of functions, so they have a part in costs, if a small one. The
//! defaults are those of trained decoders of common sizes. A plan with assumed ranges never runs.

use crate::graph::{Graph, Op, Owner, TensorOp};
use crate::ranges::bounds::{Range, Ranges};
use crate::ranges::calibrate::{Moments, Rows};
use ombra_ir::plain::DType;
use ombra_ir::ty::BoundFrom;

/// Maximum activation.
pub const ACTIVATION: f64 = 255.0;
/// Maximum element of a weight, and of what is computed from weights alone.
pub const WEIGHT: f64 = 1.0;
/// Maximum length of a row.
pub const LENGTH: f64 = 262_144.0;
/// Least size of a divisor.
pub const DIVISOR: f64 = 1.0 / 256.0;

/// Every default in words, for reports.
pub fn in_words() -> String {
    format!(
        "activations below {}, weights at most {WEIGHT}, rows shorter than {LENGTH}, divisors from {DIVISOR}",
        ACTIVATION + 1.0
    )
}

/// Assumed ranges of all values of `graph`, whose owners are assigned.
pub fn assume(graph: &Graph) -> Ranges {
    let mut ranges = Ranges::default();
    for (id, node) in graph.iter().filter(|(_, node)| node.dtype == DType::F32) {
        let greatest = match &node.op {
            Op::Tensor(TensorOp::Constant(tensor)) => {
                tensor.as_f32().map_or(0.0, |v| v.iter().fold(0.0, |m, x| x.abs().max(m))).into()
            }
            Op::Softmax { .. } | Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. } => 1.0,
            _ if matches!(node.owner, Owner::Client | Owner::Secret) => ACTIVATION,
            _ => WEIGHT,
        };
        let range = Range {
            low: -greatest,
            high: greatest,
            away: DIVISOR,
            proven: greatest,
            length: Some(LENGTH),
            from: BoundFrom::Weights,
        };
        ranges.values.insert(id, range);
        if matches!(node.op, Op::RatioSoftmax { .. }) {
            ranges.rows.insert(id, Rows { low: DIVISOR, high: ACTIVATION, log: Moments::default() });
        }
    }
    ranges
}
