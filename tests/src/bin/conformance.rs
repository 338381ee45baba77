//! Runs the ONNX project's node tests in a folder and compares the outcomes with `tests/conformance/table.md`.
//!
//! `OMBRA_ONLY` picks the tests whose names contain it and prints their outcomes. `OMBRA_BLESS=1` writes the table anew.
//! Ends with an error when the table differs or a test failed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use ombra_tests::conformance::table::{changes, table, totals};
use ombra_tests::conformance::{Outcome, Row, list, run};

/// Runs the ONNX project's node tests.
#[derive(Parser)]
struct Arguments {
    /// The folder that has a folder for every test.
    folder: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { folder } = Arguments::parse();
    let only = std::env::var("OMBRA_ONLY").ok();
    let bless = std::env::var("OMBRA_BLESS").is_ok_and(|v| v == "1");
    let mut sections: Vec<(String, Vec<Row>)> = Vec::new();
    for section in list() {
        let names = section.names.iter().filter(|n| only.as_ref().is_none_or(|only| n.contains(only)));
        sections.push((section.operator, names.map(|name| run(&folder, name)).collect()));
    }
    let rows = || sections.iter().flat_map(|(_, rows)| rows);
    if only.is_some() {
        rows().for_each(|r| println!("{}\n    in the clear: {:?}\n    in 3pc: {:?}", r.name, r.clear, r.secret));
    }
    for (name, of) in [("in the clear", clear as fn(&Row) -> &Outcome), ("in 3pc", secret)] {
        let [passed, left, refused, failed] = totals(rows().map(of));
        println!("{name}: {passed} passed, {left} not run, {refused} refused, {failed} failed");
    }
    for row in rows() {
        for outcome in [&row.clear, &row.secret] {
            if let Outcome::Failed(why) = outcome {
                println!("FAILED {}: {why}", row.name);
            }
        }
    }
    let failed = rows().any(|r| [&r.clear, &r.secret].iter().any(|o| matches!(o, Outcome::Failed(_))));
    if only.is_some() {
        return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/table.md");
    let found = table(&sections);
    if bless && let Err(error) = std::fs::write(&path, &found) {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let changed = changes(&expected, &found);
    changed.iter().for_each(|line| println!("{line}"));
    let same = expected == found;
    if !same {
        println!("the table has changed: if that is meant, write it anew with OMBRA_BLESS=1");
    }
    if failed || !same { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn clear(row: &Row) -> &Outcome {
    &row.clear
}

fn secret(row: &Row) -> &Outcome {
    &row.secret
}
