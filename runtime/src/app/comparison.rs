//! What came out beside what was expected: how far outputs are off, and whether that is too far.

use ombra_ir::draw::{KEPT, Sampling};
use ombra_ir::{Diagnostic, Kind, Result};
use serde::{Deserialize, Serialize};

/// Maximum difference of an element where the user sets none.
pub const TOLERANCE: f64 = 0.02;
/// The same, relative to the maximum element that was expected of the output.
pub const RELATIVE: f64 = 1e-3;

/// Comparison of a run's outputs with expected ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// One entry for each output of which something was compared.
    pub outputs: Vec<Compared>,
}

/// Comparison of one output. What was not compared has no number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// How many elements or tokens were compared.
    pub count: u64,
    /// Maximum difference, for a tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_abs_error: Option<f64>,
    /// Size of the maximum expected element, for a tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_abs_value: Option<f64>,
    /// Part of the integers that are the same, for tokens and indices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_agreement: Option<f64>,
    /// How far the score of a chosen token is below the maximum, at most; for tokens that are chosen from known scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_margin: Option<f64>,
    /// How far the score of a drawn token is below the lowest that may be drawn, at most; for tokens that are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_excess: Option<f64>,
}

impl Comparison {
    /// The entry of an output, where results of further steps are added.
    fn entry(&mut self, name: &str) -> &mut Compared {
        let at = self.outputs.iter().position(|output| output.name == name).unwrap_or_else(|| {
            self.outputs.push(Compared { name: name.to_owned(), ..Compared::default() });
            self.outputs.len() - 1
        });
        &mut self.outputs[at]
    }

    /// Adds elements, each found and expected.
    pub fn add_elements(&mut self, name: &str, pairs: impl Iterator<Item = (f64, f64)>) {
        let mut pairs = pairs.peekable();
        if pairs.peek().is_none() {
            return;
        }
        let entry = self.entry(name);
        let (mut error, mut size) = (entry.max_abs_error.unwrap_or(0.0), entry.max_abs_value.unwrap_or(0.0));
        for (found, expected) in pairs {
            let difference = (found - expected).abs();
            // What is no number differs from everything.
            error = if difference.is_nan() { f64::INFINITY } else { error.max(difference) };
            size = size.max(expected.abs());
            entry.count += 1;
        }
        (entry.max_abs_error, entry.max_abs_value) = (Some(error), Some(size));
    }

    /// Adds integers, each found and expected, with the distance of the found one's score from the maximum where scores
    /// are known.
    pub fn add_tokens(&mut self, name: &str, tokens: impl Iterator<Item = (i64, i64, Option<f64>)>) {
        let mut tokens = tokens.peekable();
        if tokens.peek().is_none() {
            return;
        }
        let entry = self.entry(name);
        let mut same = entry.token_agreement.unwrap_or(0.0) * entry.count as f64;
        for (found, expected, margin) in tokens {
            same += f64::from(u8::from(found == expected));
            entry.count += 1;
            entry.max_margin = match margin {
                Some(margin) => Some(entry.max_margin.unwrap_or(0.0).max(margin)),
                None => entry.max_margin,
            };
        }
        entry.token_agreement = Some(same / entry.count as f64);
    }

    /// Adds drawn tokens: of each how far its score is below the lowest that may be drawn.
    pub fn add_drawn(&mut self, name: &str, excesses: impl Iterator<Item = f64>) {
        let mut excesses = excesses.peekable();
        if excesses.peek().is_none() {
            return;
        }
        let entry = self.entry(name);
        for excess in excesses {
            entry.count += 1;
            entry.max_excess = Some(entry.max_excess.unwrap_or(0.0).max(excess));
        }
    }

    /// Refuses a comparison of nothing, and one that finds other results: elements further off than `tolerance`, or in
    /// its place [`TOLERANCE`] and [`RELATIVE`]; other tokens, unless their scores differ by no more than two such errors;
    /// and drawn tokens that are as far below those that may be drawn.
    ///
    /// # Errors
    /// `E1019`; `kind` says whose fault it is.
    pub fn check(&self, kind: Kind, with: &str, tolerance: Option<f64>) -> Result<()> {
        if self.outputs.is_empty() {
            return Err(Diagnostic::input("E1019", format!("nothing was compared with {with}"))
                .note("expected  an output that the plan reveals, at positions that the attention mask keeps")
                .note("help      the plan's outputs are in `ombra inspect`; compile with --reveal for others"));
        }
        for output in &self.outputs {
            let size = output.max_abs_value.unwrap_or(0.0);
            let most = tolerance.unwrap_or(TOLERANCE.max(RELATIVE * size));
            let beyond = |what: String, found: String| {
                let message = format!("`{}` is not what {with} has", output.name.escape_debug());
                Err(Diagnostic::new(kind, "E1019", message)
                    .note(format!("expected  {what}"))
                    .note(format!("found     {found}")))
            };
            if let Some(error) = output.max_abs_error.filter(|error| *error > most || error.is_nan()) {
                return beyond(format!("elements that differ by at most {most}"), format!("a difference of {error}"));
            }
            if let Some(excess) = output.max_excess.filter(|excess| *excess > 2.0 * most) {
                let what = format!("drawn tokens whose scores are at most {} below those that may be", 2.0 * most);
                return beyond(what, format!("a score that is {excess} below"));
            }
            let Some(agreement) = output.token_agreement.filter(|part| *part < 1.0) else { continue };
            let found = format!("{:.2} % of {} the same", 100.0 * agreement, output.count);
            match output.max_margin {
                Some(margin) if margin <= 2.0 * most => {}
                Some(margin) => {
                    let what = format!("the same tokens, or scores that differ by at most {}", 2.0 * most);
                    return beyond(what, format!("{found}, and scores that differ by {margin}"));
                }
                None => return beyond("the same integers".to_owned(), found),
            }
        }
        Ok(())
    }
}

/// The index of the maximum of `scores`, and how far the score at `chosen` is below it; infinitely where there is none.
pub fn greatest(scores: impl Iterator<Item = f64>, chosen: i64) -> (i64, f64) {
    let (mut best, mut at) = ((0, f64::NEG_INFINITY), f64::NEG_INFINITY);
    for (index, score) in (0i64..).zip(scores) {
        if score > best.1 {
            best = (index, score);
        }
        if index == chosen {
            at = score;
        }
    }
    (best.0, if best.0 == chosen { 0.0 } else { best.1 - at })
}

/// How far the score of a drawn token is below the lowest that `sampling` draws; 0 where it may be drawn, and infinitely
/// where there is no such token. A share of the mass counts with a hundredth more: scores have errors.
pub fn excess(scores: &[f64], sampling: &Sampling, drawn: i64) -> f64 {
    let Some(score) = usize::try_from(drawn).ok().and_then(|drawn| scores.get(drawn)) else { return f64::INFINITY };
    let temperature = f64::from(sampling.temperature);
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    if let Some(candidates) = sampling.candidates() {
        sorted.truncate(usize::try_from(candidates).unwrap_or(usize::MAX));
    }
    let most = sorted.first().copied().unwrap_or(f64::NEG_INFINITY);
    let mass = |score: f64| ((score - most) / temperature).exp();
    let all: f64 = sorted.iter().map(|score| mass(*score)).sum();
    let wanted = all * sampling.share().map_or(f64::INFINITY, |p| f64::from(p) + 0.01);
    let mut held = 0.0;
    let within = |score: &&f64| {
        let needed = held < wanted;
        held += mass(**score);
        needed
    };
    let least = sorted.iter().take_while(within).last().copied().unwrap_or(most);
    (least.max(most - f64::from(KEPT) * temperature) - score).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(comparison: &Comparison, tolerance: Option<f64>) -> Result<()> {
        comparison.check(Kind::Input, "the test data", tolerance)
    }

    fn elements(pairs: &[(f64, f64)]) -> Comparison {
        let mut comparison = Comparison::default();
        comparison.add_elements("y", pairs.iter().copied());
        comparison
    }

    #[test]
    fn elements_are_right_up_to_the_tolerance() {
        for (pairs, tolerance, right) in [
            (&[(1.0, 1.01)][..], None, true),
            (&[(1.0, 1.03)], None, false),
            (&[(1.0, 1.03)], Some(0.05), true),
            (&[(1.0, 1.01)], Some(0.005), false),
            (&[(100.0, 100.05)], None, true),
            (&[(100.0, 100.05)], Some(0.02), false),
            (&[(100.0, 100.2)], None, false),
            (&[(1.0, 1.0), (f64::NAN, 1.0), (1.0, 1.0)], None, false),
            (&[(f64::INFINITY, 1.0)], None, false),
        ] {
            assert_eq!(check(&elements(pairs), tolerance).is_ok(), right, "{pairs:?} {tolerance:?}");
        }
    }

    #[test]
    fn steps_add_up() {
        let mut comparison = elements(&[(1.0, 1.5)]);
        comparison.add_elements("y", [(2.0, 2.0)].into_iter());
        assert_eq!(comparison.outputs[0].max_abs_error, Some(0.5));
        assert_eq!((comparison.outputs.len(), comparison.outputs[0].count), (1, 2));
        let mut comparison = Comparison::default();
        comparison.add_tokens("next", [(1, 1, Some(0.0)), (2, 3, Some(0.01))].into_iter());
        comparison.add_tokens("next", [(4, 4, Some(0.0)), (4, 4, Some(0.0))].into_iter());
        assert_eq!((comparison.outputs[0].token_agreement, comparison.outputs[0].count), (Some(0.75), 4));
        assert_eq!(comparison.outputs[0].max_margin, Some(0.01));
    }

    #[test]
    fn other_tokens_are_right_where_scores_are_nearly_equal() {
        for (margin, right) in [(Some(0.03), true), (Some(0.05), false), (None, false)] {
            let mut comparison = Comparison::default();
            comparison.add_tokens("next", [(1, 1, Some(0.0)), (2, 3, margin)].into_iter());
            // Without scores the others' margins say nothing.
            if margin.is_none() {
                comparison = Comparison::default();
                comparison.add_tokens("next", [(2, 3, None)].into_iter());
            }
            assert_eq!(check(&comparison, None).map_err(|error| error.code), if right { Ok(()) } else { Err("E1019") });
        }
        assert_eq!(greatest([1.0, 3.0, 2.0].into_iter(), 2), (1, 1.0));
        assert_eq!(greatest([1.0, 3.0].into_iter(), 1), (1, 0.0));
        assert_eq!(greatest([1.0, 3.0].into_iter(), 7), (1, f64::INFINITY));
    }

    #[test]
    fn drawn_tokens_are_admissible_or_not() {
        let scores = [1.0, 4.0, 3.0, -1.0, -50.0];
        let far = |temperature, top_k, top_p, drawn| excess(&scores, &Sampling { temperature, top_k, top_p }, drawn);
        assert_eq!([0, 1, 2, 3].map(|drawn| far(1.0, None, None, drawn)), [0.0; 4]);
        assert_eq!(far(1.0, None, None, 4), 32.0);
        assert_eq!([0, 1, 2, 3].map(|drawn| far(2.0, Some(2), None, drawn)), [2.0, 0.0, 0.0, 4.0]);
        assert_eq!([1, 2].map(|drawn| far(1.0, None, Some(0.5), drawn)), [0.0, 1.0]);
        assert_eq!([5, -1].map(|drawn| far(1.0, None, None, drawn)), [f64::INFINITY; 2]);
        for (far, right) in [(0.03, true), (0.05, false), (f64::INFINITY, false)] {
            let mut comparison = Comparison::default();
            comparison.add_drawn("next", [0.0, far].into_iter());
            assert_eq!(check(&comparison, None).is_ok(), right);
        }
    }

    #[test]
    fn nothing_is_no_agreement() {
        assert_eq!(check(&Comparison::default(), None).map_err(|error| error.code), Err("E1019"));
        assert_eq!(elements(&[]), Comparison::default());
    }
}
