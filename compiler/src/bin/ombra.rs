//! The compiler's command line.

use clap::{Parser, Subcommand, ValueEnum};
use ombra_compiler::assign_rotations::Spread;
use ombra_compiler::graph::{Graph, Owner};
use ombra_compiler::labels::Overrides;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{self, Compiled, Options, Reveal};
use ombra_compiler::{import, inspect, npz, output};
use ombra_ir::plan::{self, Plan};
use ombra_ir::{Diagnostic, Kind, text, verify};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "ombra",
    version,
    about = "Compiles an ONNX language model into a plan for secure multi-party computation"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a model into a plan folder.
    Compile(Box<CompileArgs>),
    /// Show what a plan costs and where.
    Inspect(InspectArgs),
    /// Verify a plan or an `.mpcir` file.
    Check {
        /// `plan.ombra` or a text file.
        file: PathBuf,
    },
    /// Say for every node what it was recognised as, who owns it and where it will run.
    Explain(ModelArgs),
    /// Merge attention heads of private layers, for further fine-tuning.
    MergeHeads {
        /// The model and its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Predict what full, LoRA, frozen and merged variants would cost.
    Advise {
        /// The model and its options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

#[derive(clap::Args)]
struct ModelArgs {
    /// The fine-tuned model.
    model: PathBuf,
    /// The public base model: what occurs in it is public.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Initializers that are public, by name.
    #[arg(long, value_name = "GLOB")]
    public: Vec<String>,
    /// Initializers that are private, by name; wins over everything.
    #[arg(long, value_name = "GLOB")]
    private: Vec<String>,
    /// Inputs whose contents every party may learn, by name; repeatable.
    #[arg(long, value_name = "NAME")]
    public_input: Vec<String>,
    /// Bind a symbolic size.
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    dim: Vec<(String, u64)>,
    /// Greatest value of a symbolic size.
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    max: Vec<(String, u64)>,
}

#[derive(clap::Args)]
struct CompileArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Parties and trust.
    #[arg(long, default_value = "3pc")]
    setting: String,
    /// What the client learns: `next-token` or the name of an output; repeatable.
    #[arg(long)]
    reveal: Vec<String>,
    /// Fraction bits.
    #[arg(long, default_value_t = 16)]
    fixed_point: u8,
    /// Softmax: only `exact` is built.
    #[arg(long)]
    softmax: Vec<String>,
    /// Activation: only `exact` is built.
    #[arg(long)]
    activation: Vec<String>,
    /// Norm: only `exact` is built.
    #[arg(long)]
    norm: Vec<String>,
    /// The network that choices assume: lan, wan or BANDWIDTH,RTT.
    #[arg(long)]
    network: Option<String>,
    /// Inputs to measure bounds on, a `.npz` file for each set; repeatable. Bounds from them become public.
    #[arg(long, value_name = "FILE.npz")]
    calibrate: Vec<PathBuf>,
    /// A tokenizer to put beside the plan.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Print the program after a stage: graph, owners, lowered, expanded, scheduled.
    #[arg(long, value_name = "STAGE[=FILE]")]
    emit: Vec<String>,
    /// Write costs and owners as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// The folder to write.
    #[arg(short = 'o', long = "output")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct InspectArgs {
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

fn pair(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=N")?;
    Ok((name.to_string(), value.parse().map_err(|_| format!("`{value}` is not a number"))?))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compile(args) => compile(&args),
        Command::Inspect(args) => inspect_plan(&args),
        Command::Check { file } => check(&file),
        Command::Explain(args) => explain(&args),
        Command::MergeHeads { .. } => Err(vec![not_yet("merge-heads")]),
        Command::Advise { .. } => Err(vec![not_yet("advise")]),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            for e in &errors {
                eprintln!("{e}");
            }
            let internal = errors.iter().any(|e| e.kind == Kind::Internal);
            ExitCode::from(if internal { 1 } else { 2 })
        }
    }
}

type Outcome = Result<(), Vec<Diagnostic>>;

fn one(d: Diagnostic) -> Vec<Diagnostic> {
    vec![d]
}

fn not_yet(what: &str) -> Diagnostic {
    Diagnostic::unsupported("E0560", format!("{what} is not supported yet"))
}

fn read_models(args: &ModelArgs) -> Result<(Model, Option<Model>), Vec<Diagnostic>> {
    let model = Model::read(&args.model).map_err(one)?;
    let base = args.base.as_ref().map(|b| Model::read(b)).transpose().map_err(one)?;
    Ok((model, base))
}

fn options(args: &ModelArgs) -> Options {
    Options {
        sizes: import::Options {
            dims: args.dim.iter().cloned().collect(),
            max: args.max.iter().cloned().collect(),
            public_inputs: args.public_input.iter().cloned().collect(),
            ..import::Options::default()
        },
        overrides: Overrides { public: args.public.clone(), private: args.private.clone(), ..Overrides::default() },
        ..Options::default()
    }
}

fn compile(args: &CompileArgs) -> Outcome {
    refuse_unbuilt(args)?;
    let (model, base) = read_models(&args.model)?;
    let mut options = options(&args.model);
    options.f = args.fixed_point;
    options.reveal = args
        .reveal
        .iter()
        .map(|r| if r == "next-token" { Reveal::NextToken } else { Reveal::Output(r.clone()) })
        .collect();
    options.calibration = args.calibrate.iter().map(|path| npz::read(path)).collect::<Result<_, _>>().map_err(one)?;
    if args.network.as_deref().is_some_and(|n| n != "wan") {
        options.spread = Spread::Turns;
    }
    for emit in &args.emit {
        let stage = emit.split('=').next().unwrap_or_default();
        if matches!(stage, "graph" | "owners") {
            let analysed = pipeline::analyse(&model, base.as_ref(), &options)?;
            print_to(emit, &ombra_compiler::graph::print::print(&analysed.graph))?;
        }
    }
    let mut compiled = pipeline::compile(&model, base.as_ref(), &options)?;
    for emit in &args.emit {
        match emit.split('=').next().unwrap_or_default() {
            "lowered" => print_to(emit, &text::print(&compiled.lowered))?,
            "expanded" => {
                print_to(emit, &text::print(&ombra_compiler::expand::expand(&compiled.lowered).map_err(one)?))?;
            }
            "scheduled" => print_to(emit, &text::print(&compiled.plan.module))?,
            _ => {}
        }
    }
    let digest = output::write(&mut compiled, &model, args.tokenizer.as_deref(), &args.output).map_err(one)?;
    let report = inspect::inspect(&compiled.plan, &BTreeMap::new()).map_err(one)?;
    eprint!("{}", report.text(inspect::By::Kind));
    println!("{digest}");
    if let Some(path) = &args.report {
        write_report(path, &compiled, &digest, &report)?;
    }
    Ok(())
}

fn refuse_unbuilt(args: &CompileArgs) -> Outcome {
    let mut errors = Vec::new();
    if args.setting != "3pc" {
        errors.push(not_yet(&format!("setting `{}`", args.setting)).note("expected 3pc"));
    }
    for (option, values) in [("softmax", &args.softmax), ("activation", &args.activation), ("norm", &args.norm)] {
        errors.extend(values.iter().filter(|v| *v != "exact").map(|v| not_yet(&format!("--{option} {v}"))));
    }
    for emit in &args.emit {
        let stage = emit.split('=').next().unwrap_or_default();
        if !["graph", "owners", "lowered", "expanded", "scheduled"].contains(&stage) {
            errors.push(
                not_yet(&format!("--emit {stage}")).note("expected graph, owners, lowered, expanded or scheduled"),
            );
        }
    }
    if !(8..=20).contains(&args.fixed_point) {
        errors.push(
            Diagnostic::input("E0561", format!("--fixed-point {} is out of range", args.fixed_point))
                .note("expected 8 to 20"),
        );
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn print_to(emit: &str, text: &str) -> Outcome {
    match emit.split_once('=') {
        Some((_, file)) => {
            std::fs::write(file, text).map_err(|e| one(Diagnostic::input("E0547", format!("cannot write {file}: {e}"))))
        }
        None => {
            print!("{text}");
            Ok(())
        }
    }
}

fn write_report(path: &Path, compiled: &Compiled, digest: &str, report: &inspect::Report) -> Outcome {
    let public = compiled.labels.tensors.iter().filter(|l| l.owner == ombra_compiler::labels::Owner::Public).count();
    let json = serde_json::json!({
        "ombra": env!("CARGO_PKG_VERSION"),
        "plan_digest": digest,
        "weights": { "public": public, "private": compiled.labels.tensors.len() - public },
        "changes": compiled.plan.changes,
        "cost": report,
    });
    let text = serde_json::to_string_pretty(&json).map_err(|e| one(Diagnostic::internal("E0562", e.to_string())))?;
    std::fs::write(path, text + "\n")
        .map_err(|e| one(Diagnostic::input("E0547", format!("cannot write {}: {e}", path.display()))))
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

fn inspect_plan(args: &InspectArgs) -> Outcome {
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

fn check(file: &Path) -> Outcome {
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

fn explain(args: &ModelArgs) -> Outcome {
    let (model, base) = read_models(args)?;
    let analysed = pipeline::analyse(&model, base.as_ref(), &options(args))?;
    let graph: &Graph = &analysed.graph;
    for id in graph.topological() {
        let node = graph.node(id).map_err(one)?;
        let place = match node.owner {
            Owner::Public => "everywhere, in the clear",
            Owner::Client => "client, in plaintext",
            Owner::Server => "server, once at compile time",
            Owner::Secret => "under MPC",
        };
        let why = match &node.op {
            ombra_compiler::graph::Op::Weight { name, .. } => analysed
                .labels
                .get(name)
                .map(|l| {
                    format!("  ({}{})", l.why, l.readable.as_ref().map_or(String::new(), |r| format!("; used by {r}")))
                })
                .unwrap_or_default(),
            _ => String::new(),
        };
        let name = if node.origin.node.is_empty() { &node.origin.value } else { &node.origin.node };
        println!("{:<16} {:<7} {place:<26} {name}{why}", node.op.name(), node.owner.name());
    }
    for found in &analysed.found {
        if let Some(why) = &found.near_miss {
            println!("near miss: {} at {}: {why}", found.pattern, found.origin.node);
        }
    }
    Ok(())
}
