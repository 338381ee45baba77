//! How likely it is that an assumed bound does not hold.
//!
//! A bound that no interval proves is taken from calibration: the power of two above the greatest value seen, times
//! `2^margin`. That it holds for other inputs is an assumption; here it gets a number. Every element is taken as
//! sub-Gaussian about the mean that calibration saw, with the deviation that it saw, so that
//! `P(|x| ≥ B) ≤ 2 exp(−((B − |mean|) / deviation)² / 2)`; an exponent has its upper tail alone. The logarithm of what must
//! not vanish, of a divisor or a row's statistic in a norm, has such a tail downwards, and the root of a row's statistic
//! upwards. A divisor of both signs has no such logarithm: near zero its density is taken to be at most that of a normal
//! distribution with its deviation. One whose sign calibration saw, and nothing proves, may also have the other one. The
//! probabilities of all elements of all values of one step at the largest sizes are added up (union bound).

use crate::calibrate::{Moments, Ranges};
use crate::graph::{Graph, Op, ValueId};
use crate::lower::Assumed;
use ombra_ir::Diagnostic;
use ombra_ir::plan::{AssumedRange, Quantity};
use std::collections::BTreeMap;

/// Largest failure probability of a step that is compiled without being asked for, as a power of two.
pub const MAX_FAILURE_LOG2: f64 = -40.0;
/// Exponent of probabilities that are told from zero no more.
const LEAST_LOG2: f64 = -1000.0;

/// What is assumed, for the plan: in the order of computation.
pub fn listed(graph: &Graph, assumed: &[Assumed]) -> Result<Vec<AssumedRange>, Diagnostic> {
    let place: BTreeMap<ValueId, usize> = graph.topological().into_iter().enumerate().map(|(i, id)| (id, i)).collect();
    let mut assumed: Vec<&Assumed> = assumed.iter().collect();
    assumed.sort_by_key(|a| place.get(&a.value));
    let range = |a: &Assumed| {
        let node = graph.node(a.value)?;
        let name = match &node.op {
            Op::Input { name, .. } => name,
            _ => &node.origin.node,
        };
        Ok(AssumedRange {
            node: name.clone(),
            layer: node.origin.layer,
            op: node.op.name().to_owned(),
            quantity: a.quantity,
            low: a.low,
            high: Some(a.high).filter(|high| high.is_finite()),
        })
    };
    assumed.into_iter().map(range).collect()
}

/// Union bound over all assumptions of a step, as an exponent of two rounded up to a whole number: the measured spread
/// of a private value stands in the plan as no more than that.
pub fn failure_log2(assumed: &[Assumed], ranges: &Ranges) -> f64 {
    log2(assumed.iter().map(|a| probability(a, ranges)).sum())
}

fn log2(total: f64) -> f64 {
    if total > 0.0 { libm::ceil(libm::log2(total)).clamp(LEAST_LOG2, 0.0) } else { LEAST_LOG2 }
}

/// Probability that any element leaves its range, at most 1.
fn probability(a: &Assumed, ranges: &Ranges) -> f64 {
    let moments = ranges.moments.get(&a.value);
    let one = match a.quantity {
        Quantity::Magnitude => moments.map_or(0.0, |m| 2.0 * tail(m, a.high - m.mean().abs())),
        Quantity::Exponent => moments.map_or(0.0, |m| tail(m, a.high - m.mean())),
        Quantity::PositiveDivisor | Quantity::DivisorOfOneSign | Quantity::DivisorOfBothSigns => {
            moments.map_or(0.0, |m| {
                let size = ranges.sizes.get(&a.value);
                let below = match (a.low, a.quantity) {
                    (Some(low), Quantity::DivisorOfBothSigns) => near_zero(m, low),
                    (Some(low), _) => size.map_or(0.0, |size| tail(&size.log, size.log.mean() - libm::log(low))),
                    (None, _) => 0.0,
                };
                let other_sign = if a.quantity == Quantity::DivisorOfOneSign { tail(m, m.mean().abs()) } else { 0.0 };
                2.0 * tail(m, a.high - m.mean().abs()) + below + other_sign
            })
        }
        Quantity::RowStatistic => ranges.rows.get(&a.value).map_or(0.0, |rows| {
            let above = tail(&rows.root, libm::sqrt(a.high) - rows.root.mean());
            let below = a.low.map_or(0.0, |low| tail(&rows.log, rows.log.mean() - libm::log(low)));
            above + below
        }),
    };
    (one * a.elements).min(1.0)
}

/// Probability of a distance from the mean in one direction.
fn tail(moments: &Moments, distance: f64) -> f64 {
    if distance <= 0.0 {
        return 1.0;
    }
    let deviation = moments.deviation();
    if deviation <= 0.0 {
        return 0.0;
    }
    let sigmas = distance / deviation;
    libm::exp(-sigmas * sigmas / 2.0)
}

/// Probability of a size below `low`, at the greatest density of a normal distribution.
fn near_zero(moments: &Moments, low: f64) -> f64 {
    let deviation = moments.deviation();
    if deviation <= 0.0 { 0.0 } else { 2.0 * low / (deviation * libm::sqrt(2.0 * std::f64::consts::PI)) }
}

/// Refuses a program whose bounds fail too often; returns [`failure_log2`] otherwise.
///
/// # Errors
/// `E0572`, at the value that is most likely to leave its range.
pub fn check_failure(graph: &Graph, assumed: &[Assumed], ranges: &Ranges, most: f64) -> Result<f64, Diagnostic> {
    let found = failure_log2(assumed, ranges);
    if found <= most {
        return Ok(found);
    }
    let message = format!("an assumed bound may fail with probability 2^{found:.0} in a step");
    let mut error = Diagnostic::input("E0572", message).note(format!("expected at most 2^{most:.0}"));
    let worst = assumed.iter().max_by(|a, b| probability(a, ranges).total_cmp(&probability(b, ranges)));
    if let Some(a) = worst
        && let Ok(node) = graph.node(a.value)
    {
        let low = a.low.map_or(String::new(), |low| format!(" and at least {low}"));
        let (name, quantity, high) = (node.op.name(), a.quantity.name(), a.high);
        let what = format!("the {quantity} of this {name}, taken to be below {high}{low}");
        let own = log2(probability(a, ranges));
        error = error.at(node.origin.node.clone()).note(format!("most likely to fail: {what}, with 2^{own:.0}"));
    }
    Err(error.note("give typical inputs with --calibrate, a larger --margin, or accept it with --max-failure"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Size;

    fn moments(values: &[f64]) -> Moments {
        let mut m = Moments::default();
        values.iter().for_each(|&v| m.add(v));
        m
    }

    fn magnitude(high: f64, elements: f64) -> Assumed {
        Assumed { value: ValueId::new(0), quantity: Quantity::Magnitude, low: None, high, elements }
    }

    #[test]
    fn the_union_bound_adds_elements_and_values() {
        let mut ranges = Ranges::default();
        ranges.moments.insert(ValueId::new(0), moments(&[-1.0, 1.0]));
        // 2 exp(-32) = 2^-45.17 for one element, 2^20 times that for a million.
        assert_eq!(failure_log2(&[magnitude(8.0, 1.0)], &ranges), -45.0);
        assert_eq!(failure_log2(&[magnitude(8.0, 1048576.0)], &ranges), -25.0);
        assert_eq!(failure_log2(&[magnitude(8.0, 1.0), magnitude(8.0, 1.0)], &ranges), -44.0);
        assert_eq!(failure_log2(&[magnitude(0.5, 1.0)], &ranges), 0.0, "a bound that does not even hold for the mean");
        assert_eq!(failure_log2(&[], &ranges), LEAST_LOG2);
    }

    #[test]
    fn a_mean_far_from_zero_counts_and_a_constant_cannot_fail() {
        let mut ranges = Ranges::default();
        ranges.moments.insert(ValueId::new(0), moments(&[6.0, 8.0]));
        assert_eq!(failure_log2(&[magnitude(8.0, 1.0)], &ranges), 0.0, "one deviation is no bound");
        ranges.moments.insert(ValueId::new(0), moments(&[7.0, 7.0]));
        assert_eq!(failure_log2(&[magnitude(8.0, 1e9)], &ranges), LEAST_LOG2);
    }

    #[test]
    fn a_divisor_may_vanish_grow_or_change_its_sign() {
        let value = ValueId::new(0);
        let mut ranges = Ranges::default();
        ranges.moments.insert(value, moments(&[7.0, 9.0]));
        ranges.sizes.insert(value, Size { least: 7.0, log: moments(&[1.0, 3.0]) });
        let divisor =
            |quantity, low, high| failure_log2(&[Assumed { value, quantity, low, high, elements: 1.0 }], &ranges);
        // Ten deviations upwards: 2 exp(-50) = 2^-71.1.
        assert_eq!(divisor(Quantity::PositiveDivisor, None, 18.0), -71.0);
        // Six deviations of the logarithm downwards: exp(-18) = 2^-25.97.
        assert_eq!(divisor(Quantity::PositiveDivisor, Some(libm::exp(-4.0)), 18.0), -25.0);
        // Eight deviations to the other sign: exp(-32) = 2^-46.2.
        assert_eq!(divisor(Quantity::DivisorOfOneSign, None, 18.0), -46.0);
        // Of both signs: 2·2^-20/√(2π) = 2^-20.3, whatever the margin upwards is.
        assert_eq!(divisor(Quantity::DivisorOfBothSigns, Some(libm::exp2(-20.0)), 18.0), -20.0);
    }

    #[test]
    fn an_exponent_fails_upwards_alone() {
        let value = ValueId::new(0);
        let mut ranges = Ranges::default();
        ranges.moments.insert(value, moments(&[-51.0, -49.0]));
        let exponent = |high| {
            failure_log2(&[Assumed { value, quantity: Quantity::Exponent, low: None, high, elements: 1.0 }], &ranges)
        };
        assert_eq!(exponent(-42.0), -46.0);
        assert_eq!(exponent(-50.0), 0.0);
    }

    #[test]
    fn too_likely_a_failure_is_refused() {
        let mut ranges = Ranges::default();
        ranges.moments.insert(ValueId::new(0), moments(&[-1.0, 1.0]));
        let check = |most| check_failure(&Graph::new(), &[magnitude(8.0, 1.0)], &ranges, most);
        assert_eq!(check(-46.0).unwrap_err().code, "E0572");
        assert_eq!(check(-45.0), Ok(-45.0));
    }
}
