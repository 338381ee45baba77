//! The compiler's command line, for the program `ombra` and for other languages.

mod advise;
mod compile;
mod explain;
mod inspect;
mod merge_heads;
pub mod profile;

use crate::import;
use crate::onnx::Model;
use crate::output::model_folder::{self, Found};
use crate::passes::approximate::{Approximations, Choice};
use crate::pipeline::{Errors, Options};
use crate::secrecy::labels::Overrides;
use crate::self_test::Progress;
use clap::{Parser, Subcommand};
use ombra_ir::diag::printable_lines;
use ombra_ir::network::Network;
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Kind};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

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
    Compile(Box<compile::CompileArgs>),
    /// Show what a plan costs and where.
    Inspect(inspect::InspectArgs),
    /// Verify a plan or an `.mpcir` file.
    Check {
        /// A folder that `compile` wrote, `plan.ombra` or a text file.
        file: PathBuf,
    },
    /// Say for every node what it was recognised as, who owns it and where it will run.
    Explain(Box<explain::ExplainArgs>),
    /// Merge attention heads of private layers, for further fine-tuning.
    MergeHeads(merge_heads::MergeHeadsArgs),
    /// Predict what full, LoRA, frozen and merged variants would cost.
    Advise(Box<advise::AdviseArgs>),
}

#[derive(clap::Args)]
struct ModelArgs {
    /// The fine-tuned model: an ONNX file, or a folder as Optimum writes it.
    model: PathBuf,
    /// The public base model, likewise: what occurs in it is public.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Weights that are public, by their name or that of the modules that use them.
    #[arg(long, value_name = "GLOB")]
    public: Vec<String>,
    /// Weights that are private, by their name or that of a module that uses them; wins over everything.
    #[arg(long, value_name = "GLOB")]
    private: Vec<String>,
    /// Layers may be private in part and public in part by name, which is refused otherwise.
    #[arg(long)]
    partly_public: bool,
    /// Inputs whose contents every party may learn, by name; repeatable.
    #[arg(long, value_name = "NAME")]
    public_input: Vec<String>,
    /// Bind a symbolic size, or an input of one number that decides sizes.
    #[arg(long, value_name = "NAME=N", value_parser = pair)]
    dim: Vec<(String, u64)>,
    /// Maximum value of a symbolic size; by default what the model's tables of positions hold, at most 2048.
    #[arg(long, value_name = "NAME=N", value_parser = maximum)]
    max: Vec<(String, u64)>,
}

/// Cheaper functions in place of the model's own, under MPC alone. They change the model, which must be fine-tuned with
/// them.
#[derive(clap::Args)]
struct ApproximationArgs {
    /// Softmax: exact, 2relu, 2quad or l2quad:A,B, for the nodes that a pattern names or for all; repeatable, the last
    /// one holds.
    #[arg(long, value_name = "[PATTERN=]FORM")]
    softmax: Vec<String>,
    /// GELU and SiLU: exact, relu or quad; likewise.
    #[arg(long, value_name = "[PATTERN=]FORM")]
    activation: Vec<String>,
    /// Layer norms and RMS norms: exact or affine; likewise.
    #[arg(long, value_name = "[PATTERN=]FORM")]
    norm: Vec<String>,
}

impl ApproximationArgs {
    fn parse(&self) -> Result<Approximations, Vec<Diagnostic>> {
        fn all<T: std::str::FromStr<Err = Diagnostic>>(
            texts: &[String],
            errors: &mut Vec<Diagnostic>,
        ) -> Vec<Choice<T>> {
            let read = texts.iter().map(|text| text.parse());
            read.filter_map(|choice: Result<_, _>| choice.map_err(|e| errors.push(e)).ok()).collect()
        }
        let mut errors = Vec::new();
        let parsed = Approximations {
            softmax: all(&self.softmax, &mut errors),
            activation: all(&self.activation, &mut errors),
            norm: all(&self.norm, &mut errors),
        };
        if errors.is_empty() { Ok(parsed) } else { Err(errors) }
    }
}

fn pair(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=N")?;
    Ok((name.to_string(), value.parse().map_err(|_| format!("`{value}` is not a number"))?))
}

fn maximum(text: &str) -> Result<(String, u64), String> {
    pair(text)
        .and_then(|(name, most)| if most > 0 { Ok((name, most)) } else { Err("expected a maximum above 0".into()) })
}

/// Errors that are printed: the first ones name the cause, and a module has thousands of ops.
const MOST_ERRORS: usize = 10;

/// Does what the command line `arguments` says, the name of the program first; the exit status.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let result = match Cli::parse_from(arguments).command {
        Command::Compile(args) => compile::compile(&args, None),
        Command::Inspect(args) => inspect::inspect_plan(&args),
        Command::Check { file } => inspect::check(&file),
        Command::Explain(args) => explain::explain(&args),
        Command::MergeHeads(args) => merge_heads::merge_heads(&args),
        Command::Advise(args) => advise::advise(&args),
    };
    match result {
        Ok(()) => 0,
        Err(errors) => {
            for e in errors.iter().take(MOST_ERRORS) {
                eprintln!("{e}");
            }
            if errors.len() > MOST_ERRORS {
                eprintln!("and {} errors more", errors.len() - MOST_ERRORS);
            }
            let internal = errors.iter().any(|e| e.kind == Kind::Internal);
            if internal { 1 } else { 2 }
        }
    }
}

/// Compiles as `ombra compile` does with these arguments, without the names of program and command. `progress` hears what
/// the self-test does: the row, and thousandths of it.
///
/// # Errors
/// `E0561` for arguments that the command does not take; whatever makes it fail.
pub fn compile(arguments: Vec<OsString>, progress: Progress) -> Result<(), Vec<Diagnostic>> {
    let command = ["ombra".into(), "compile".into()].into_iter().chain(arguments);
    let cli = Cli::try_parse_from(command);
    match cli
        .map_err(|error| one(Diagnostic::input("E0561", error.render().to_string().trim_end().to_owned())))?
        .command
    {
        Command::Compile(args) => compile::compile(&args, Some(progress)),
        _ => Err(one(Diagnostic::internal("E0562", "another command was read"))),
    }
}

/// Writes to standard output. Models and plans call their nodes as they like. Whoever closed it wants to read no more,
/// which is no error.
fn show(text: impl std::fmt::Display) {
    let _ = std::io::stdout().lock().write_all(printable_lines(&text.to_string()).as_bytes());
}

/// Writes to standard error, likewise.
fn tell(text: impl std::fmt::Display) {
    eprint!("{}", printable_lines(&text.to_string()));
}

type Outcome = Result<(), Vec<Diagnostic>>;

fn one(d: Diagnostic) -> Vec<Diagnostic> {
    vec![d]
}

fn not_yet(what: &str) -> Diagnostic {
    Diagnostic::unsupported("E0560", format!("{what} is not supported yet"))
}

/// What the user names: both models, and what stands beside the first.
struct Models {
    model: Model,
    base: Option<Model>,
    found: Found,
}

/// Reads both models; their data need not be there.
fn read_models(args: &ModelArgs) -> Result<Models, Vec<Diagnostic>> {
    let found = model_folder::find(&args.model).map_err(one)?;
    let model = Model::read_for_costs(&found.model).map_err(one)?;
    let base = |path: &PathBuf| Model::read_for_costs(&model_folder::find(path)?.model);
    let base = args.base.as_ref().map(base).transpose().map_err(one)?;
    Ok(Models { model, base, found })
}

/// Reads `--setting`.
fn setting(text: &str) -> Result<Setting, String> {
    text.parse().map_err(|error: Diagnostic| error.to_string())
}

fn options(args: &ModelArgs, found: &Found) -> Options {
    Options {
        sizes: import::Options {
            dims: args.dim.iter().cloned().collect(),
            max: args.max.iter().cloned().collect(),
            public_inputs: args.public_input.iter().cloned().collect(),
            positions: found.positions,
            ..import::Options::default()
        },
        overrides: Overrides {
            public: args.public.clone(),
            private: args.private.clone(),
            partly_public: args.partly_public,
            ..Overrides::default()
        },
        ..Options::default()
    }
}

/// The network that choices assume: `lan`, `wan` or `BANDWIDTH,RTT`.
fn network(text: &str) -> std::result::Result<Network, Errors> {
    Network::parse(text).map_err(one)?.ok_or_else(|| {
        one(Diagnostic::input("E0561", format!("--network {} is no network", text.escape_debug()))
            .note("expected lan, wan or BANDWIDTH,RTT such as 1Gbps,2ms"))
    })
}
