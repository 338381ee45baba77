//! How far a plan's outputs are from those of the model in float.

use super::{MANY, MAX_DIVERGENCE, MAX_MARGIN};
use rayon::prelude::*;

/// A position where plan and model choose other tokens.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Other {
    /// Name of the row.
    pub row: String,
    /// Position in the row.
    pub position: usize,
    /// What the plan chooses.
    pub found: usize,
    /// What the model chooses.
    pub expected: usize,
    /// How much greater the model's logit of its choice is than that of the plan's.
    pub margin: f64,
}

/// Sums over positions with logits.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Logits {
    /// Positions.
    pub positions: usize,
    /// Positions where both choose the same token.
    pub agreed: usize,
    /// The others.
    pub others: Vec<Other>,
    /// Maximum difference of two logits.
    pub greatest_error: f64,
    /// Mean of the differences' magnitudes.
    pub mean_error: f64,
    /// Mean over positions of the Kullback–Leibler divergence of the plan's distribution from the model's, in nats.
    pub divergence: f64,
    /// Perplexity of the model and of the plan on tokens that follow, where those were given.
    pub perplexity: Option<(f64, f64)>,
}

impl Logits {
    /// What is wrong with them, in words, where they are those of `what`; nothing when they pass.
    pub fn faults(&self, what: &str) -> Vec<String> {
        let mut faults = Vec::new();
        // Written so that what is no number is a fault.
        let most = MAX_DIVERGENCE * (MANY as f64 / self.positions.max(1) as f64).max(1.0);
        if self.positions > 0 && (self.divergence > most || self.divergence.is_nan()) {
            faults.push(format!("the divergence over {what} is {:.2e}, expected at most {most:.1e}", self.divergence));
        }
        for o in self.others.iter().filter(|o| o.margin > MAX_MARGIN || o.margin.is_nan()).take(4) {
            faults.push(format!(
                "{}, position {}: token {} in place of {}, whose logit is greater by {:.3}",
                o.row, o.position, o.found, o.expected, o.margin
            ));
        }
        faults
    }
}

/// What one position says.
struct Position {
    found: usize,
    expected: usize,
    margin: f64,
    greatest: f64,
    sum: f64,
    divergence: f64,
    /// Logarithms of the probabilities of the token that follows, by model and plan.
    next: Option<(f64, f64)>,
}

/// Adds up positions in the order of their coming, so that sums are the same for any number of threads.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    logits: Logits,
    errors: f64,
    elements: f64,
    divergence: f64,
    next: (f64, f64),
    targets: usize,
}

impl Sums {
    /// Adds the positions of a row, from position `first` on: logits of the model and of the plan, `vocabulary` each, and
    /// the tokens that follow where they are known.
    pub fn add(&mut self, row: &str, first: usize, vocabulary: usize, (model, plan): (&[f32], &[f64]), next: &[i64]) {
        let size = vocabulary.max(1);
        let found: Vec<Position> = model
            .par_chunks_exact(size)
            .zip(plan.par_chunks_exact(size))
            .enumerate()
            .map(|(i, (model, plan))| position(model, plan, next.get(i).and_then(|t| usize::try_from(*t).ok())))
            .collect();
        for (i, p) in found.into_iter().enumerate() {
            self.logits.positions += 1;
            if p.found == p.expected {
                self.logits.agreed += 1;
            } else {
                let (position, found, expected, margin) = (first + i, p.found, p.expected, p.margin);
                self.logits.others.push(Other { row: row.into(), position, found, expected, margin });
            }
            self.logits.greatest_error = self.logits.greatest_error.max(p.greatest);
            self.errors += p.sum;
            self.elements += size as f64;
            self.divergence += p.divergence;
            if let Some((model, plan)) = p.next {
                self.next = (self.next.0 + model, self.next.1 + plan);
                self.targets += 1;
            }
        }
    }

    /// The means.
    pub fn finish(self) -> Logits {
        let mean = |sum: f64, n: f64| if n > 0.0 { sum / n } else { 0.0 };
        let targets = self.targets as f64;
        Logits {
            mean_error: mean(self.errors, self.elements),
            divergence: mean(self.divergence, self.logits.positions as f64),
            perplexity: (self.targets > 0)
                .then(|| (libm::exp(-self.next.0 / targets), libm::exp(-self.next.1 / targets))),
            ..self.logits
        }
    }
}

fn position(model: &[f32], plan: &[f64], next: Option<usize>) -> Position {
    let floats: Vec<f64> = model.iter().map(|&x| f64::from(x)).collect();
    let (expected, found) = (greatest(&floats), greatest(plan));
    let at = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let (p, q) = (log_probabilities(&floats), log_probabilities(plan));
    let mut out = Position {
        found,
        expected,
        margin: at(&floats, expected) - at(&floats, found),
        greatest: 0.0,
        sum: 0.0,
        divergence: 0.0,
        next: next.map(|t| (at(&p, t), at(&q, t))),
    };
    for (x, y) in floats.iter().zip(plan).filter(|(x, _)| x.is_finite()) {
        let error = (x - y).abs();
        out.greatest = out.greatest.max(error);
        out.sum += error;
    }
    for (p, q) in p.iter().zip(&q).filter(|(p, _)| **p > f64::NEG_INFINITY) {
        out.divergence += libm::exp(*p) * (p - q);
    }
    out
}

/// The index of the maximum element; the first of equal ones.
fn greatest(values: &[f64]) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, v) in values.iter().enumerate() {
        if *v > best.1 {
            best = (i, *v);
        }
    }
    best.0
}

/// Logarithms of the softmax.
fn log_probabilities(values: &[f64]) -> Vec<f64> {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values.iter().map(|v| libm::exp(v - max)).sum();
    let shift = max + libm::log(sum);
    values.iter().map(|v| v - shift).collect()
}

/// Root of the mean over rows of `size` elements of the squared relative error: of the difference's length to the row's,
/// which counts as at least that of a row of `floor`s.
pub fn relative_error(model: &[f32], plan: &[f64], size: usize, floor: f64) -> f64 {
    let size = size.max(1);
    let rows = model.len().div_ceil(size);
    let mut sum = 0.0;
    for (model, plan) in model.chunks(size).zip(plan.chunks(size)) {
        let length: f64 = model.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let error: f64 = model.iter().zip(plan).map(|(&x, y)| (f64::from(x) - y) * (f64::from(x) - y)).sum();
        sum += error / length.max(floor * floor * size as f64).max(f64::MIN_POSITIVE);
    }
    if rows == 0 { 0.0 } else { libm::sqrt(sum / rows as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_agree_and_others_are_counted() {
        let model = [1.0f32, 3.0, 2.0, 0.5, 0.25, 0.0];
        let plan = [1.0, 3.0, 2.0, 0.5, 0.75, 0.0];
        let mut sums = Sums::default();
        sums.add("a row", 4, 3, (&model, &plan), &[1, 0]);
        let found = sums.finish();
        assert_eq!((found.positions, found.agreed), (2, 1));
        assert_eq!(found.others, [Other { row: "a row".into(), position: 5, found: 1, expected: 0, margin: 0.25 }]);
        assert!((found.greatest_error - 0.5).abs() < 1e-12 && (found.mean_error - 0.5 / 6.0).abs() < 1e-12);
        // By hand: the second row's divergence, halved.
        let (z, w) = (0.5f64.exp() + 0.25f64.exp() + 1.0, 0.5f64.exp() + 0.75f64.exp() + 1.0);
        let expected = (-(0.25f64.exp() / z) * 0.5 - z.ln() + w.ln()) / 2.0;
        assert!((found.divergence - expected).abs() < 1e-12, "{} {expected}", found.divergence);
        let (model, plan) = found.perplexity.expect("targets were given");
        assert!(model < plan, "{model} {plan}");
    }

    #[test]
    fn few_positions_may_diverge_as_much_as_many_together() {
        let faults = |positions, divergence| Logits { positions, divergence, ..Logits::default() }.faults("them").len();
        for (positions, most) in [(1, 5e-3), (5, 1e-3), (50, 1e-4), (1000, 1e-4)] {
            assert_eq!([faults(positions, 0.99 * most), faults(positions, 1.01 * most)], [0, 1], "{positions}");
        }
        assert_eq!([faults(0, 0.0), faults(9, f64::NAN)], [0, 1]);
    }

    #[test]
    fn relative_errors_are_those_of_rows() {
        assert_eq!(relative_error(&[3.0, 4.0, 0.0, 0.0], &[3.0, 4.5, 0.0, 0.0], 2, 0.0), libm::sqrt(0.01 / 2.0));
        assert_eq!(relative_error(&[0.0], &[0.1], 1, 1.0), libm::sqrt(0.1 * 0.1));
        assert_eq!(relative_error(&[], &[], 4, 1.0), 0.0);
    }
}
