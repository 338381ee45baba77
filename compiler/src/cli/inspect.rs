//! `ombra inspect` and `ombra check`.

use super::profile;
use super::{Outcome, not_yet, one, pair, show};
use crate::inspect::{self, Conditions};
use clap::ValueEnum;
use ombra_ir::draw::{Filter, Way};
use ombra_ir::folder;
use ombra_ir::network::Network;
use ombra_ir::plan::{self, Plan};
use ombra_ir::{Diagnostic, files, text, verify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of `ombra inspect`.
#[derive(clap::Args)]
pub struct InspectArgs {
    /// A plan folder or plan file.
    plan: PathBuf,
    /// What to group by; `bound` lists what is taken for granted instead of costs.
    #[arg(long, value_enum, default_value_t = GroupBy::Kind)]
    by: GroupBy,
    /// Costs of drawing the next token: temperature, top-k or top-p. The number of candidates is --dim top_k=N.
    #[arg(long, value_enum)]
    sampling: Option<Drawn>,
    /// Costs where the client takes penalties off the logits before.
    #[arg(long)]
    penalties: bool,
    /// Sizes at which costs are evaluated.
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    dim: Vec<(String, u64)>,
    /// Text, JSON, or a page for a browser.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The network to predict time for: none, lan, wan, BANDWIDTH,RTT such as 1Gbps,2ms, or a machine profile with links.
    #[arg(long)]
    network: Option<String>,
    /// The machine to predict time for: a profile that `ombra-run measure` wrote.
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// A second plan, side by side.
    #[arg(long)]
    compare: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum GroupBy {
    Op,
    Layer,
    Kind,
    Bound,
}

#[derive(Clone, Copy, ValueEnum)]
enum Drawn {
    Temperature,
    TopK,
    TopP,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

impl Drawn {
    fn filter(self) -> Filter {
        match self {
            Drawn::Temperature => Filter::None,
            Drawn::TopK => Filter::TopK,
            Drawn::TopP => Filter::TopP,
        }
    }
}

/// The network and the machine that time is predicted for.
fn conditions(args: &InspectArgs) -> Result<Conditions, Vec<Diagnostic>> {
    let mut profile = args.machine.as_deref().map(profile::read).transpose().map_err(one)?;
    let mut network = None;
    if let Some(text) = &args.network {
        match Network::parse(text) {
            Ok(found) => network = found.map(|network| (text.clone(), network)),
            Err(_) if Path::new(text).is_file() => {
                let measured = profile::read(Path::new(text)).map_err(one)?;
                let found = measured.network().ok_or_else(|| {
                    one(Diagnostic::input("E0565", format!("{text} has no links"))
                        .note("expected a profile that `ombra-run measure --config` wrote"))
                })?;
                network = Some((found.to_string(), found));
                profile = profile.or(Some(measured));
            }
            Err(wrong) => return Err(one(wrong.note("a file of that name does not exist either"))),
        }
    }
    Ok(Conditions { network, profile })
}

/// The file that `path` means: itself, or the plan of a folder.
fn plan_file(path: &Path) -> Result<PathBuf, Vec<Diagnostic>> {
    let candidates = [path.join("public").join(folder::PLAN), path.join(folder::PLAN), path.to_path_buf()];
    candidates.into_iter().find(|p| p.is_file()).ok_or_else(|| {
        one(Diagnostic::input("E0563", format!("{} holds no plan", path.display()))
            .note("expected a folder that `ombra compile` wrote, a plan.ombra or an .mpcir file"))
    })
}

fn read_plan(path: &Path) -> Result<Plan, Vec<Diagnostic>> {
    let file = plan_file(path)?;
    let bytes = files::read_bounded(&file, plan::MAX_BYTES as u64)
        .map_err(|e| one(Diagnostic::input("E0563", format!("cannot read {}: {e}", file.display()))))?;
    let plan = plan::decode(&bytes).map_err(one)?;
    verify::verify(&plan.module)?;
    Ok(plan)
}

/// Shows what a plan costs and where.
pub fn inspect_plan(args: &InspectArgs) -> Outcome {
    let given: BTreeMap<String, u64> = args.dim.iter().cloned().collect();
    let conditions = conditions(args)?;
    let filter = args.sampling.map_or(Filter::Best, Drawn::filter);
    let way = Way { filter, penalized: args.penalties };
    let report = |plan: &Plan| {
        let sampled = plan.drawn(way).map_err(one)?;
        inspect::inspect_under(&sampled, &given, &conditions).map_err(one)
    };
    let first = report(&read_plan(&args.plan)?)?;
    let other = args.compare.as_ref().map(|p| report(&read_plan(p)?)).transpose()?;
    let by = match args.by {
        GroupBy::Op => inspect::By::Op,
        GroupBy::Layer => inspect::By::Layer,
        GroupBy::Kind => inspect::By::Kind,
        GroupBy::Bound => inspect::By::Bound,
    };
    match (args.format, other) {
        (Format::Text, None) => show(first.text(by)),
        (Format::Text, Some(other)) => show(inspect::compare(&first, &other)),
        (Format::Json, None) => show(json(&[&first])? + "\n"),
        (Format::Json, Some(other)) => show(json(&[&first, &other])? + "\n"),
        (Format::Html, None) => show(inspect::page(&first)),
        (Format::Html, Some(_)) => {
            return Err(one(not_yet("--compare with --format html").note("expected text or json")));
        }
    }
    Ok(())
}

/// One report as an object, more as a list.
fn json(reports: &[&inspect::Report]) -> Result<String, Vec<Diagnostic>> {
    let text = match reports {
        [one] => serde_json::to_string_pretty(one),
        more => serde_json::to_string_pretty(more),
    };
    text.map_err(|e| one(Diagnostic::internal("E0562", e.to_string())))
}

/// Verifies a plan or an `.mpcir` file.
pub fn check(path: &Path) -> Outcome {
    let file = &plan_file(path)?;
    let bytes = files::read_bounded(file, plan::MAX_BYTES as u64)
        .map_err(|e| one(Diagnostic::input("E0563", format!("cannot read {}: {e}", file.display()))))?;
    let module = if bytes.starts_with(plan::MAGIC) {
        let plan = plan::decode(&bytes).map_err(one)?;
        for drawing in &plan.drawings {
            verify::verify(&drawing.module(&plan.module).map_err(one)?)?;
        }
        plan.module
    } else {
        let source = std::str::from_utf8(&bytes).map_err(|_| {
            one(Diagnostic::input("E0564", format!("{} is neither a plan nor text", file.display()))
                .note("expected plan.ombra or an .mpcir file"))
        })?;
        text::parse(source).map_err(one)?
    };
    verify::verify(&module)?;
    show(format_args!("{}: {} ops, no errors\n", file.display(), module.ops.len()));
    Ok(())
}
