//! `ombra compile`.

use super::{ApproximationArgs, ModelArgs, Models, Outcome, not_yet, one, options, read_models, setting, show, tell};
use crate::onnx::Model;
use crate::output::model_folder::Found;
use crate::output::reveal::Reveal;
use crate::pipeline::{self, Compiled};
use crate::ranges::assume;
use crate::ranges::npz;
use crate::ranges::token_text;
use crate::savings::savings;
use crate::self_test::rows::{Special, read_tokens};
use crate::self_test::{self, Progress, What};
use crate::{inspect, output};
use ombra_ir::folder;
use ombra_ir::module::OutputKind;
use ombra_ir::plan::{BoundsOf, Plan};
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, text};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Arguments of `ombra compile`.
#[derive(clap::Args)]
pub struct CompileArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Parties and trust: 3pc, 2pc-dealer, or 2pc.
    #[arg(long, default_value = "3pc", value_parser = setting)]
    setting: Setting,
    /// The dealer gets nothing of the model: every client downloads a term of the private weights once, which the dealer gets
    /// otherwise.
    #[arg(long)]
    strict_dealer: bool,
    /// What the client learns: `next-token` or the name of an output; repeatable.
    #[arg(long)]
    reveal: Vec<String>,
    /// Fraction bits [default: 16; for 2pc 14].
    #[arg(long)]
    fixed_point: Option<u8>,
    #[command(flatten)]
    approximations: ApproximationArgs,
    /// The network that choices assume: lan, wan or BANDWIDTH,RTT.
    #[arg(long)]
    network: Option<String>,
    /// Inputs to measure ranges on that nothing proves, a `.npz` file for each set; repeatable.
    #[arg(long, value_name = "FILE.npz")]
    calibrate: Vec<PathBuf>,
    /// A text to measure on, a row a line, read with the model's tokenizer; repeatable.
    #[arg(long, value_name = "FILE")]
    calibrate_text: Vec<PathBuf>,
    /// Take bounds from the base model's weights, with room above them: they then say nothing of the private weights but
    /// that these keep within. A model that does not is refused.
    #[arg(long, requires = "base")]
    bounds_from_base: bool,
    /// Let the client take presence and frequency penalties off the logits. It may give any numbers there, and so find out
    /// more of the logits with every token than which is the most probable one.
    #[arg(long)]
    penalties: bool,
    /// The model's tokenizer: read for texts, and put beside the plan.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Positions on which the plan is tested in the clear against the model in float; 0 leaves the test out.
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    self_test: usize,
    /// Token ids to test on in place of the built-in prompts, a row a line; says the perplexity too.
    #[arg(long, value_name = "FILE")]
    self_test_tokens: Option<PathBuf>,
    /// Print the program after a stage: graph, owners, rewritten, bounds, lowered, expanded, scheduled.
    #[arg(long, value_name = "STAGE[=FILE]")]
    emit: Vec<String>,
    /// Count what each pass saves, in the plan and in the report: compiles the model once for each of them.
    #[arg(long)]
    savings: bool,
    /// Write costs and owners as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder to write.
    #[arg(short = 'o', long = "output")]
    output: PathBuf,
}

/// Compiles a model into a plan folder. `progress` hears what the self-test does; without it there is a bar.
pub fn compile(args: &CompileArgs, progress: Option<Progress>) -> Outcome {
    refuse_unbuilt(args)?;
    let Models { model, base, found } = read_models(&args.model)?;
    let mut options = options(&args.model, &found);
    options.setting = args.setting;
    options.strict_dealer = args.strict_dealer;
    options.f = args.fixed_point;
    options.penalties = args.penalties;
    options.approximations = args.approximations.parse()?;
    options.reveal = args
        .reveal
        .iter()
        .map(|r| if r == "next-token" { Reveal::NextToken } else { Reveal::Output(r.clone()) })
        .collect();
    options.calibration = args.calibrate.iter().map(|path| npz::read(path)).collect::<Result<_, _>>().map_err(one)?;
    options.calibration_rows = calibration_rows(args, &found)?;
    options.bounds_of = if args.bounds_from_base { BoundsOf::Base } else { BoundsOf::Model };
    if let Some(network) = &args.network {
        options.network = super::network(network)?;
    }
    for emit in &args.emit {
        let stage = emit.split('=').next().unwrap_or_default();
        if matches!(stage, "graph" | "owners") {
            let analysed = pipeline::analyse(&model, base.as_ref(), &options)?;
            print_to(emit, &crate::graph::text::print(&analysed.graph))?;
        }
        if stage == "bounds" {
            let (bounded, ranges) = pipeline::bounded(&model, base.as_ref(), &options)?;
            let note = |v| ranges.values.get(&v).map(ToString::to_string);
            print_to(emit, &crate::graph::text::print_with(&bounded.graph, &note))?;
        }
        if stage == "rewritten" {
            let rewritten = pipeline::rewritten(&model, base.as_ref(), &options)?;
            print_to(emit, &crate::graph::text::print(&rewritten.graph))?;
        }
    }
    let mut compiled = pipeline::compile(&model, base.as_ref(), &options)?;
    if args.savings {
        compiled.plan.savings = savings(&model, base.as_ref(), &options, &compiled.plan)?;
    }
    for emit in &args.emit {
        match emit.split('=').next().unwrap_or_default() {
            "lowered" => print_to(emit, &text::print(&compiled.lowered))?,
            "expanded" => {
                print_to(emit, &text::print(&crate::expand::expand(&compiled.lowered).map_err(one)?))?;
            }
            "scheduled" => print_to(emit, &text::print(&compiled.plan.module))?,
            _ => {}
        }
    }
    if !args.calibrate_text.is_empty() && compiled.plan.assumed.is_empty() {
        eprintln!("note: --calibrate-text was not needed: no range of this model is measured");
    }
    if compiled.plan.costs_only {
        say_costs_only(&model, base.as_ref(), &compiled);
    }
    tell(compiled.labels.summary());
    if is_without_cache(&compiled.plan) {
        eprintln!("warning: the model has no cache: every further token costs a whole prompt");
        eprintln!("         export it with one, such as Optimum's task text-generation-with-past");
    }
    let mut beside = found.beside;
    if let Some(path) = &args.tokenizer {
        beside.retain(|(name, _)| *name != folder::TOKENIZER);
        beside.push((folder::TOKENIZER, path.clone()));
    }
    let tokenizer = beside.iter().find(|(name, _)| *name == folder::TOKENIZER).map(|(_, path)| path.clone());
    let models = (&model, base.as_ref());
    let tested = tested(args, tokenizer.as_deref(), models, &options, &compiled, progress)?;
    let digest = output::write(&mut compiled, &model, &beside, &args.output).map_err(one)?;
    let report = inspect::inspect(&compiled.plan, &BTreeMap::new()).map_err(one)?;
    tell(report.text(inspect::By::Kind));
    for change in &compiled.plan.changes {
        tell(format_args!("changed: {change}\n"));
    }
    show(format_args!("{digest}\n"));
    if let Some(path) = &args.report {
        write_report(path, &compiled, &digest, &report, tested.as_ref())?;
    }
    Ok(())
}

/// The rows of all texts, by the tokenizer that is named or stands beside the model.
fn calibration_rows(args: &CompileArgs, found: &Found) -> Result<Vec<Vec<i64>>, Vec<Diagnostic>> {
    if args.calibrate_text.is_empty() {
        return Ok(Vec::new());
    }
    let listed = found.beside.iter().find(|(name, _)| *name == folder::TOKENIZER).map(|(_, path)| path.clone());
    let neighbour = found.model.with_file_name(folder::TOKENIZER);
    let tokenizer = args.tokenizer.clone().or(listed).or_else(|| neighbour.is_file().then_some(neighbour));
    let tokenizer = tokenizer.ok_or_else(|| {
        one(Diagnostic::input("E0533", "--calibrate-text needs the model's tokenizer, and there is none beside it")
            .note(format!("expected {} in the model's folder, or --tokenizer", folder::TOKENIZER)))
    })?;
    let rows = args.calibrate_text.iter().map(|path| token_text::read(path, &tokenizer));
    Ok(rows.collect::<Result<Vec<_>, _>>().map_err(one)?.concat())
}

/// Tests the plan in the clear, with a bar on standard error.
fn tested(
    args: &CompileArgs,
    tokenizer: Option<&Path>,
    (model, base): (&Model, Option<&Model>),
    options: &pipeline::Options,
    compiled: &Compiled,
    progress: Option<Progress>,
) -> Result<Option<self_test::Report>, Vec<Diagnostic>> {
    if args.self_test == 0 || compiled.plan.costs_only {
        return Ok(None);
    }
    let special = tokenizer.map(Special::read).transpose().map_err(one)?.unwrap_or_default();
    let tokens = args.self_test_tokens.as_deref().map(read_tokens).transpose().map_err(one)?;
    let what = match &tokens {
        Some(rows) => What::Tokens(rows),
        None => What::BuiltIn { special: &special, most: args.self_test },
    };
    if let Some(progress) = progress {
        return self_test::self_test(model, base, options, compiled, what, progress).map(Some);
    }
    let bar = indicatif::ProgressBar::new(1000);
    if let Ok(style) = indicatif::ProgressStyle::with_template("self-test {bar:30} {msg}") {
        bar.set_style(style);
    }
    let mut progress = |row: &str, at: u64| {
        if bar.position() != at {
            bar.set_position(at);
            bar.set_message(row.to_string());
        }
    };
    let report = self_test::self_test(model, base, options, compiled, what, &mut progress);
    bar.finish_and_clear();
    let report = report?;
    tell(report.text());
    Ok(Some(report))
}

/// Whether a plan gives one token after another and starts anew for each.
fn is_without_cache(plan: &Plan) -> bool {
    plan.past.is_none() && plan.module.outputs.iter().any(|o| o.kind == OutputKind::NextToken)
}

/// Says what is not there, and what took its place.
fn say_costs_only(model: &Model, base: Option<&Model>, compiled: &Compiled) {
    let files: BTreeSet<&str> =
        [Some(model), base].into_iter().flatten().flat_map(|m| m.absent()).map(String::as_str).collect();
    let files: Vec<&str> = files.into_iter().collect();
    tell(format_args!("note: this plan is for costs only and will not run: {} not there\n", files.join(", ")));
    eprintln!("      ranges are assumed: {}", assume::in_words());
    if compiled.labels.guessed > 0 {
        eprintln!(
            "      {} weights count as public because the base has their names and shapes; --private takes them out",
            compiled.labels.guessed
        );
    }
}

fn refuse_unbuilt(args: &CompileArgs) -> Outcome {
    let mut errors = Vec::new();
    for emit in &args.emit {
        let stage = emit.split('=').next().unwrap_or_default();
        if !["graph", "owners", "rewritten", "bounds", "lowered", "expanded", "scheduled"].contains(&stage) {
            errors.push(
                not_yet(&format!("--emit {stage}"))
                    .note("expected graph, owners, rewritten, bounds, lowered, expanded or scheduled"),
            );
        }
    }
    if let Some(bits) = args.fixed_point.filter(|bits| !(8..=20).contains(bits)) {
        errors
            .push(Diagnostic::input("E0561", format!("--fixed-point {bits} is out of range")).note("expected 8 to 20"));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn print_to(emit: &str, text: &str) -> Outcome {
    match emit.split_once('=') {
        Some((_, file)) => {
            std::fs::write(file, text).map_err(|e| one(Diagnostic::input("E0547", format!("cannot write {file}: {e}"))))
        }
        None => {
            show(text);
            Ok(())
        }
    }
}

fn write_report(
    path: &Path,
    compiled: &Compiled,
    digest: &str,
    report: &inspect::Report,
    tested: Option<&self_test::Report>,
) -> Outcome {
    let public = compiled.labels.tensors.iter().filter(|l| l.owner == crate::secrecy::labels::Owner::Public).count();
    let json = serde_json::json!({
        "ombra": env!("CARGO_PKG_VERSION"),
        "plan_digest": digest,
        "weights": {
            "public": public, "private": compiled.labels.tensors.len() - public, "guessed": compiled.labels.guessed
        },
        "costs_only": compiled.plan.costs_only,
        "strict_dealer": compiled.plan.strict_dealer,
        "changes": compiled.plan.changes,
        "bounds": {
            "of": compiled.plan.bounds_of.name(),
            "assumed": compiled.plan.assumed.len(),
        },
        "rewrites": compiled.rewrites,
        "self_test": tested,
        "cost": report,
    });
    let text = serde_json::to_string_pretty(&json).map_err(|e| one(Diagnostic::internal("E0562", e.to_string())))?;
    std::fs::write(path, text + "\n")
        .map_err(|e| one(Diagnostic::input("E0547", format!("cannot write {}: {e}", path.display()))))
}
