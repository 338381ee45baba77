//! Ombra in Python: the commands of both programs, costs of plans, and the client. Nothing is computed here that the
//! libraries do not.

mod client;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use ombra_compiler::inspect;
use ombra_ir::{Diagnostic, Kind};
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::isolation::Program;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(_ombra, OmbraError, PyException, "What Ombra refuses, or what failed; see its attributes.");

/// The exception of a diagnostic: its text, and its parts as attributes.
fn exception(error: &Diagnostic) -> PyErr {
    let exception = OmbraError::new_err(error.to_string());
    Python::attach(|py| {
        let value = exception.value(py);
        let kind = match error.kind {
            Kind::Input => "input",
            Kind::Unsupported => "unsupported",
            Kind::Peer => "peer",
            Kind::Internal => "internal",
        };
        let set = || -> PyResult<()> {
            value.setattr("code", error.code)?;
            value.setattr("kind", kind)?;
            value.setattr("message", &error.message)?;
            value.setattr("place", &error.place)?;
            value.setattr("notes", &error.notes)
        };
        set().err().unwrap_or(exception)
    })
}

fn json<T: serde::Serialize>(value: &T) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| OmbraError::new_err(error.to_string()))
}

/// `ombra compile` with these arguments. `progress` is called with the row that the self-test is at and how much of it is
/// done, from 0 to 1; what it raises is raised at the end.
#[pyfunction]
#[pyo3(signature = (arguments, progress=None))]
fn compile(py: Python<'_>, arguments: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<()> {
    let mut raised = None;
    let mut told = None;
    let mut listen = |row: &str, thousandths: u64| {
        let Some(progress) = progress.as_ref().filter(|_| raised.is_none()) else { return };
        // Ops are many; what nobody would see is not told.
        if told.replace((row.to_owned(), thousandths)) == Some((row.to_owned(), thousandths)) {
            return;
        }
        raised = Python::attach(|py| progress.call1(py, (row, thousandths as f64 / 1000.0)).err());
    };
    let result = py.detach(|| ombra_compiler::cli::compile(arguments, &mut listen));
    if let Some(error) = raised {
        return Err(error);
    }
    // All that is wrong is found in one go: the first error is raised, with the others in its text.
    result.map_err(|errors| match &*errors {
        [] => OmbraError::new_err("the compiler failed"),
        [first, others @ ..] => {
            let all = others.iter().fold(first.clone(), |all, other| all.note(other.to_string()));
            exception(&all)
        }
    })
}

/// Costs of a step of a plan at given sizes, as JSON.
#[pyfunction]
fn inspect_plan(py: Python<'_>, folder: PathBuf, sizes: BTreeMap<String, u64>) -> PyResult<String> {
    let report = py.detach(|| {
        let folder = PlanFolder::open(&folder)?;
        inspect::inspect(&folder.plan, &sizes)
    });
    json(&report.map_err(|error| exception(&error))?)
}

/// The command `ombra` with these arguments, its own name first; the exit status.
#[pyfunction]
fn run_compiler(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| ombra_compiler::cli::run(arguments.into_iter()))
}

/// The command `ombra-run`, likewise. It starts other parties by `program` with its own arguments before the command's.
#[pyfunction]
fn run_runtime(py: Python<'_>, arguments: Vec<OsString>, program: (PathBuf, Vec<OsString>)) -> u8 {
    let (path, before) = program;
    Program { path, arguments: before }.embed();
    py.detach(|| ombra_runtime::cli::run(arguments.into_iter()))
}

#[pymodule]
fn _ombra(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("OmbraError", module.py().get_type::<OmbraError>())?;
    module.add_function(wrap_pyfunction!(compile, module)?)?;
    module.add_function(wrap_pyfunction!(inspect_plan, module)?)?;
    module.add_function(wrap_pyfunction!(run_compiler, module)?)?;
    module.add_function(wrap_pyfunction!(run_runtime, module)?)?;
    module.add_class::<client::Client>()?;
    module.add_class::<client::Answer>()
}
