//! Predicted beside measured seconds of the steps of runs, as rows of a table.
//!
//! ```text
//! predicted-time PLAN_FOLDER MACHINE.json REPORT.json...
//! ```
//! The machine's profile is what `ombra-run measure` wrote, the reports are what `ombra-run local --report` wrote. Of
//! further tokens the median is shown.

use std::path::Path;
use std::process::ExitCode;

use ombra_compiler::cli::profile;
use ombra_compiler::inspect::{Conditions, inspect_under};
use ombra_ir::network::Network;
use ombra_ir::{Diagnostic, Kind, Result};
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::report::{Phase, Report};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match rows(&arguments) {
        Ok(rows) => {
            println!("| network | phase | predicted s | of these network | local work | rounds | measured s | error |");
            println!("|---|---|---|---|---|---|---|---|");
            rows.iter().for_each(|row| println!("{row}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.kind == Kind::Input { 2 } else { 1 })
        }
    }
}

fn rows(arguments: &[String]) -> Result<Vec<String>> {
    let [plan, machine, reports @ ..] = arguments else {
        return Err(Diagnostic::input("E0908", "predicted-time PLAN_FOLDER MACHINE.json REPORT.json..."));
    };
    let plan = PlanFolder::open(Path::new(plan))?.plan;
    let profile = profile::read(Path::new(machine))?;
    let mut rows = Vec::new();
    for path in reports {
        let unreadable = |what: String| Diagnostic::input("E0908", format!("{path} cannot be read: {what}"));
        let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
        let report: Report = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
        let network = Network::parse(&report.network)?.map(|network| (report.network.clone(), network));
        let conditions = Conditions { network, profile: Some(profile.clone()) };
        for name in ["prefill", "decode"] {
            let mut phases: Vec<&Phase> = report.phases.iter().filter(|p| p.name == name).collect();
            phases.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let Some(phase) = phases.get(phases.len() / 2) else { continue };
            let found = inspect_under(&plan, &phase.dims, &conditions)?.predicted_seconds.unwrap_or_default();
            rows.push(format!(
                "| {} | {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:+.0} % |",
                report.network,
                found.total(),
                found.network,
                found.work,
                found.rounds,
                phase.seconds,
                100.0 * (found.total() / phase.seconds - 1.0)
            ));
        }
    }
    Ok(rows)
}
