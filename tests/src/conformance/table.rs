//! The table of outcomes, as it stands in the repository.

use std::fmt::Write;

use super::{Outcome, Row};

/// What stands above the rows.
const HEAD: &str = include_str!("../../conformance/head.md");

/// The table of `sections`: an operator with its rows each.
pub fn table(sections: &[(String, Vec<Row>)]) -> String {
    let rows = || sections.iter().flat_map(|(_, rows)| rows);
    let clear: Vec<&Outcome> = rows().map(|r| &r.clear).collect();
    let secret: Vec<&Outcome> = rows().map(|r| &r.secret).collect();
    let mut text = String::from(HEAD);
    // Writing to a string does not fail.
    let mut line = |s: String| writeln!(text, "{s}").unwrap_or_default();
    line("| | passed | not run | refused | failed |".into());
    line("|---|---|---|---|---|".into());
    for (name, outcomes) in [("in the clear", clear), ("in 3pc", secret)] {
        let [passed, left, refused, failed] = totals(outcomes);
        line(format!("| {name} | {passed} | {left} | {refused} | {failed} |"));
    }
    for (operator, rows) in sections {
        line(format!("\n## {operator}\n\n| test | in the clear | in 3pc |\n|---|---|---|"));
        for row in rows {
            line(format!("| {} | {} | {} |", row.name, cell(&row.clear), cell(&row.secret)));
        }
    }
    text
}

/// How many passed, were left out, were refused, failed.
pub fn totals<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> [usize; 4] {
    let mut counts = [0; 4];
    for outcome in outcomes {
        counts[match outcome {
            Outcome::Passed => 0,
            Outcome::LeftOut(_) => 1,
            Outcome::Refused(_) => 2,
            Outcome::Failed(_) => 3,
        }] += 1;
    }
    counts
}

fn cell(outcome: &Outcome) -> String {
    let text = match outcome {
        Outcome::Passed => "passed".into(),
        Outcome::LeftOut(why) => (*why).into(),
        Outcome::Refused(why) => format!("refused: {why}"),
        Outcome::Failed(why) => format!("FAILED: {why}"),
    };
    text.replace('|', "\\|").replace('\n', " ")
}

/// The lines that only one of two tables has: `-` before what was expected, `+` before what was found.
pub fn changes(expected: &str, found: &str) -> Vec<String> {
    let only = |a: &str, b: &str, sign: char| -> Vec<String> {
        let other: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|line| !other.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    [only(expected, found, '-'), only(found, expected, '+')].concat()
}
