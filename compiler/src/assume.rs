//! Ranges of values that nobody measured: what bounds are made from in a model that was read without its weights.
//!
//! Bounds decide the widths of comparisons and the rings of functions, so they have a part in costs, if a small one. The
//! defaults are those of trained decoders of common sizes: activations below 2^5, weights below 2, norm statistics
//! between 2^-8 and 2^8. As with measured ranges the margin comes on top. A plan with assumed ranges never runs.

use crate::calibrate::{Moments, Ranges, Rows, Size, divisors};
use crate::graph::{Graph, InputRole, Op, Owner};
use ombra_ir::plain::DType;

/// Greatest activation.
pub const ACTIVATION: f64 = 31.0;
/// Greatest element of a weight, and of what is computed from weights alone.
pub const WEIGHT: f64 = 1.0;
/// Least and greatest row statistic of a norm; no divisor is less than the least one.
pub const ROW: (f64, f64) = (1.0 / 256.0, 256.0);

/// Every default in words, for reports.
pub fn in_words() -> String {
    format!(
        "activations below {}, weights at most {WEIGHT}, norm statistics from {} to {}, divisors from the least of these",
        ACTIVATION + 1.0,
        ROW.0,
        ROW.1
    )
}

/// Assumed ranges of all values of `graph`, whose owners are assigned.
pub fn assume(graph: &Graph) -> Ranges {
    let mut ranges = Ranges { private_weights: WEIGHT, ..Ranges::default() };
    for (id, node) in graph.iter().filter(|(_, node)| node.dtype == DType::F32) {
        let greatest = match &node.op {
            Op::Const(tensor) => tensor.as_f32().map_or(0.0, |v| v.iter().fold(0.0, |m, x| x.abs().max(m))).into(),
            Op::Softmax { .. } | Op::MaskedSoftmax { .. } | Op::RatioSoftmax { .. } => 1.0,
            _ if matches!(node.owner, Owner::Client | Owner::Secret) => ACTIVATION,
            _ => WEIGHT,
        };
        ranges.abs.insert(id, greatest);
        match &node.op {
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
                let spread = Moments::default();
                ranges.rows.insert(id, Rows { low: ROW.0, high: ROW.1, root: spread, log: spread });
            }
            Op::Input { role: InputRole::PastKey { .. } | InputRole::PastValue { .. }, .. } => {
                ranges.states.insert(id, ACTIVATION);
            }
            _ => {}
        }
    }
    for id in divisors(graph) {
        ranges.sizes.insert(id, Size { least: ROW.0, log: Moments::default() });
    }
    ranges
}
