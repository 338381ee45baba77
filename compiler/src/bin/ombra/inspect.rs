//! `ombra inspect` and `ombra check`.

use crate::{Outcome, not_yet, one, pair};
use clap::ValueEnum;
use ombra_compiler::{inspect, output};
use ombra_ir::plan::{self, Plan};
use ombra_ir::{Diagnostic, text, verify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `ombra inspect`.
#[derive(clap::Args)]
pub struct InspectArgs {
    /// A plan folder or plan file.
    plan: PathBuf,
    /// What to group by.
    #[arg(long, value_enum, default_value_t = GroupBy::Kind)]
    by: GroupBy,
    /// Sizes at which costs are evaluated.
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    dim: Vec<(String, u64)>,
    /// Text or JSON.
    #[arg(long, default_value = "text")]
    format: String,
    /// The network to predict time for: not built.
    #[arg(long)]
    network: Option<String>,
    /// A second plan, side by side.
    #[arg(long)]
    compare: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum GroupBy {
    Op,
    Layer,
    Kind,
}

fn read_plan(path: &Path) -> Result<Plan, Vec<Diagnostic>> {
    let candidates = [path.join("public").join(output::PLAN), path.join(output::PLAN), path.to_path_buf()];
    let file = candidates.iter().find(|p| p.is_file()).ok_or_else(|| {
        one(Diagnostic::input("E0563", format!("{} holds no plan", path.display()))
            .note("expected a folder that `ombra compile` wrote, or a plan.ombra"))
    })?;
    let bytes = std::fs::read(file)
        .map_err(|e| one(Diagnostic::input("E0563", format!("cannot read {}: {e}", file.display()))))?;
    let plan = plan::decode(&bytes).map_err(one)?;
    verify::verify(&plan.module)?;
    Ok(plan)
}

/// Shows what a plan costs and where.
pub fn inspect_plan(args: &InspectArgs) -> Outcome {
    if args.network.is_some() {
        return Err(one(not_yet("inspect --network")));
    }
    let given: BTreeMap<String, u64> = args.dim.iter().cloned().collect();
    let report = inspect::inspect(&read_plan(&args.plan)?, &given).map_err(one)?;
    let other = args.compare.as_ref().map(|p| read_plan(p)).transpose()?;
    let other = other.map(|p| inspect::inspect(&p, &given)).transpose().map_err(one)?;
    let by = match args.by {
        GroupBy::Op => inspect::By::Op,
        GroupBy::Layer => inspect::By::Layer,
        GroupBy::Kind => inspect::By::Kind,
    };
    match (args.format.as_str(), other) {
        ("text", None) => print!("{}", report.text(by)),
        ("text", Some(other)) => print!("{}", inspect::compare(&report, &other)),
        ("json", other) => {
            let reports: Vec<&inspect::Report> = std::iter::once(&report).chain(other.as_ref()).collect();
            let text = if reports.len() == 1 {
                serde_json::to_string_pretty(reports[0])
            } else {
                serde_json::to_string_pretty(&reports)
            };
            println!("{}", text.map_err(|e| one(Diagnostic::internal("E0562", e.to_string())))?);
        }
        (format, _) => return Err(one(not_yet(&format!("--format {format}")).note("expected text or json"))),
    }
    Ok(())
}

/// Verifies a plan or an `.mpcir` file.
pub fn check(file: &Path) -> Outcome {
    let bytes = std::fs::read(file)
        .map_err(|e| one(Diagnostic::input("E0563", format!("cannot read {}: {e}", file.display()))))?;
    let module = if bytes.starts_with(plan::MAGIC) {
        plan::decode(&bytes).map_err(one)?.module
    } else {
        let source = std::str::from_utf8(&bytes).map_err(|_| {
            one(Diagnostic::input("E0564", format!("{} is neither a plan nor text", file.display()))
                .note("expected plan.ombra or an .mpcir file"))
        })?;
        text::parse(source).map_err(one)?
    };
    verify::verify(&module)?;
    println!("{}: {} ops, no errors", file.display(), module.ops.len());
    Ok(())
}
