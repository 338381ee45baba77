//! The option `--backend`, as it is for users: what is chosen, and what is said of it.

use std::fs;
use std::process::{Command, Output};

use ombra_runtime::app::report::Report;
use ombra_runtime::backend::products::{Backend, Why};

use super::plans::{self, continuation};
use super::processes::ombra_run;

/// A run of three parties on this machine, and its report if there is one.
fn local(backend: &str, set: impl FnOnce(&mut Command) -> &mut Command) -> (Output, Option<Report>) {
    let folder = plans::cached();
    let path = folder.join("report.json");
    let mut command = ombra_run();
    command.arg("local").arg(&folder.0).args(["--tokens", "3,1,4", "-n", "2", "--threads", "1", "--report"]);
    let output = set(command.arg(&path).args(["--backend", backend])).output().unwrap();
    (output, fs::read(&path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap()))
}

#[test]
fn without_large_weights_auto_is_the_processor_and_every_party_says_so() {
    let (output, report) = local("auto", |command| command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report = report.expect("there is a report");
    assert_eq!((report.backend.as_str(), report.tokens), ("cpu", Some(continuation(&[3, 1, 4], 2))));
    assert_eq!(report.products.len(), 3);
    for (party, ran) in &report.products {
        assert_eq!((ran.backend, ran.why), (Backend::Cpu, Why::SmallWeights), "{party}");
        assert!(said.contains(&format!("{party}: products on the processor: the plan has no large weights")), "{said}");
    }
}

#[test]
fn a_graphics_processor_that_is_not_there_is_one_clear_error() {
    // No driver can be found.
    let (output, report) =
        local("gpu", |command| command.env("VK_DRIVER_FILES", "none").env("VK_ICD_FILENAMES", "none"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("error[E1012]: no backend gpu: ") && said.contains("help "), "{said}");
    assert!(report.is_none() && !said.contains("panicked"), "{said}");
}

#[cfg(feature = "gpu")]
#[test]
fn with_a_graphics_processor_the_tokens_are_the_same() {
    let (output, report) = local("gpu", |command| command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(2) && std::env::var("OMBRA_EXPECT_GPU").as_deref() != Ok("1") {
        eprintln!("skipped: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let report = report.expect("there is a report");
    assert_eq!((report.backend.as_str(), report.tokens), ("gpu", Some(continuation(&[3, 1, 4], 2))));
    for (party, ran) in &report.products {
        assert_eq!((ran.backend, ran.why), (Backend::Gpu, Why::Asked), "{party}");
        assert!(said.contains(&format!("{party}: products with large weights on the graphics processor")), "{said}");
    }
}
