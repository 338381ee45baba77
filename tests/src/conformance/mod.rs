//! The ONNX project's own node tests: one small model each, with inputs and the outputs that the standard demands.
//!
//! Every test runs in the clear, through reader, importer, recognition and evaluator, and, where its floating operands
//! can be secret, compiled and between three parties. What comes out is compared with a table that is part of the
//! repository, so that a change of what is supported is seen. The tests themselves are fetched, not kept.

pub mod case;
pub mod clear;
pub mod secret;
pub mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ombra_ir::{Diagnostic, Kind};

use case::Case;

/// The tests that matter, by operator.
const LIST: &str = include_str!("../../conformance/tests.txt");

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every output is within tolerance.
    Passed,
    /// It was not run, for a reason that lies in the test.
    LeftOut(&'static str),
    /// A diagnostic says that something is not supported.
    Refused(String),
    /// Anything else: a wrong output, a panic, an error that is no refusal.
    Failed(String),
}

/// A test with what came of it.
pub struct Row {
    /// Name of the test.
    pub name: String,
    /// Evaluated in one process.
    pub clear: Outcome,
    /// Between three parties.
    pub secret: Outcome,
}

/// Tests of one operator.
pub struct Section {
    /// The operator.
    pub operator: String,
    /// Its tests.
    pub names: Vec<String>,
}

/// The tests that matter, by operator.
pub fn list() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in LIST.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            Some(operator) => sections.push(Section { operator: operator.into(), names: Vec::new() }),
            None => sections.iter_mut().last().into_iter().for_each(|s| s.names.push(line.into())),
        }
    }
    sections
}

/// Runs the test `name`, whose folder is in `folder`.
pub fn run(folder: &Path, name: &str) -> Row {
    let row = |clear, secret| Row { name: name.into(), clear, secret };
    let case = match guarded(|| Case::read(folder, name)) {
        Ok(case) => case,
        Err(outcome) => return row(outcome.clone(), outcome),
    };
    row(flat(guarded(|| clear::run(&case))), flat(guarded(|| secret::run(&case))))
}

fn flat(result: Result<Outcome, Outcome>) -> Outcome {
    result.unwrap_or_else(|outcome| outcome)
}

/// What `f` gives, or what its error or its panic means.
fn guarded<T>(f: impl FnOnce() -> ombra_ir::Result<T>) -> Result<T, Outcome> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| refusal(&e)),
        Err(_) => Err(Outcome::Failed("panic".into())),
    }
}

/// A refusal is an error that says something is not supported; all others are failures.
fn refusal(error: &Diagnostic) -> Outcome {
    let text = format!("{}: {}", error.code, error.message);
    match error.kind {
        Kind::Unsupported => Outcome::Refused(text),
        Kind::Input | Kind::Peer | Kind::Internal => {
            Outcome::Failed(format!("{text} at {}", error.place.as_deref().unwrap_or("the model")))
        }
    }
}

/// The first of several errors.
fn first(errors: Vec<Diagnostic>) -> Diagnostic {
    errors.into_iter().next().unwrap_or_else(|| Diagnostic::internal("E0000", "an error without a diagnostic"))
}
