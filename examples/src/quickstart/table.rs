//! The table at the end.

use ombra_compiler::inspect::size;
use ombra_runtime::app::report::{Phase, Report};

/// What one variant gave.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Tokens of the model in the clear.
    pub expected: Vec<i64>,
    /// The report of the run.
    pub report: Report,
}

impl Column {
    /// Generated tokens that are those of the model in the clear.
    pub fn agreeing(&self) -> usize {
        let found = self.report.tokens.as_deref().unwrap_or_default();
        found.iter().zip(&self.expected).filter(|(a, b)| a == b).count()
    }
}

/// Predicted and measured bytes of a phase, of all parties.
fn bytes(phase: &Phase) -> (u64, u64) {
    phase.bytes.values().fold((0, 0), |sum, pair| (sum.0 + pair.predicted, sum.1 + pair.measured))
}

fn phases<'a>(report: &'a Report, name: &'a str) -> impl Iterator<Item = &'a Phase> {
    report.phases.iter().filter(move |phase| phase.name == name)
}

/// Predicted and measured, in one word where they are the same.
fn beside(predicted: u64, measured: u64, show: &dyn Fn(u64) -> String) -> String {
    if predicted == measured {
        format!("{} = predicted", show(measured))
    } else {
        format!("{} PREDICTED {}", show(measured), show(predicted))
    }
}

/// One step of a kind: its bytes, its rounds, its seconds; the last of them, where the cache is longest.
fn step(report: &Report, name: &str) -> [String; 3] {
    let Some(last) = phases(report, name).last() else { return Default::default() };
    let count = phases(report, name).count() as f64;
    let (predicted, measured) = bytes(last);
    let seconds = phases(report, name).map(|phase| phase.seconds).sum::<f64>() / count;
    [
        beside(predicted, measured, &size),
        beside(last.rounds.predicted, last.rounds.measured, &|n| n.to_string()),
        if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.2} s") },
    ]
}

/// The table, one column a variant.
pub fn table(columns: &[Column]) -> String {
    let mut rows: Vec<(&str, Vec<String>)> = vec![
        ("", columns.iter().map(|c| c.name.to_string()).collect()),
        (
            "tokens as in the clear",
            columns.iter().map(|c| format!("{} of {}", c.agreeing(), c.expected.len())).collect(),
        ),
        (
            "sent once, set-up",
            columns
                .iter()
                .map(|c| {
                    let (predicted, measured) = phases(&c.report, "setup").next().map(bytes).unwrap_or_default();
                    beside(predicted, measured, &size)
                })
                .collect(),
        ),
    ];
    for (name, names) in [
        ("prefill", ["prompt: bytes", "prompt: rounds", "prompt: time"]),
        ("decode", ["last token: bytes", "last token: rounds", "a token after the first"]),
    ] {
        let cells: Vec<[String; 3]> = columns.iter().map(|c| step(&c.report, name)).collect();
        for (at, label) in names.into_iter().enumerate() {
            rows.push((label, cells.iter().map(|c| c[at].clone()).collect()));
        }
    }
    let mut out = String::new();
    for (label, cells) in rows {
        out.push_str(&format!("{label:<24}"));
        cells.iter().for_each(|cell| out.push_str(&format!(" {cell:>24}")));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ombra_runtime::app::report::Pair;
    use std::collections::BTreeMap;

    fn column(measured: u64) -> Column {
        let pair = |predicted| BTreeMap::from([("client".to_string(), Pair { predicted, measured })]);
        let phase = |name: &str, seconds| Phase {
            name: name.into(),
            seconds,
            bytes: pair(1500),
            rounds: Pair { predicted: 7, measured: 7 },
            ..Phase::default()
        };
        let phases = vec![phase("setup", 0.0), phase("prefill", 1.0), phase("decode", 0.25), phase("decode", 0.75)];
        let report = Report { tokens: Some(vec![4, 5, 6]), phases, ..Report::default() };
        Column { name: "frozen", expected: vec![4, 9, 6], report }
    }

    #[test]
    fn agreement_costs_and_mean_times_are_shown() {
        let text = table(&[column(1500)]);
        assert!(text.contains("2 of 3"), "{text}");
        assert!(text.contains("1.50 kB = predicted") && text.contains("7 = predicted"), "{text}");
        assert!(text.contains("1.00 s") && text.contains("500 ms"), "{text}");
    }

    #[test]
    fn a_wrong_prediction_stands_out() {
        assert!(table(&[column(1501)]).contains("1.50 kB PREDICTED 1.50 kB"));
    }
}
