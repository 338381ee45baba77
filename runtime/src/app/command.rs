//! The commands of `ombra-run`: what each does with its options.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ombra_ir::diag::printable_lines;
use ombra_ir::plain::Data;
use ombra_ir::{Diagnostic, Result};
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{self, Options, Outcome, Prepared, Task};
use super::folder::PlanFolder;
use super::inputs::Named;
use super::isolation::Isolation;
use super::local::{LocalParties, READY, end_with_input};
use super::party::{Keep, serve};
use super::report::Report;
use super::test_data::{self, TestSet};
use super::text::{Text, TextStream};
use super::{measure, tensor_file, verify};
use crate::config::PartyConfig;
use crate::keygen;
use crate::transport::{Acceptor, Endpoint, Network, Party, Purpose};

/// Longest prompt in a file, in bytes.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

/// Where the server and the helper of a client's run are.
pub enum Peers {
    /// Processes that this one starts.
    Local,
    /// As the client's configuration says.
    Configured(PathBuf),
}

/// What the client gives to a run.
pub enum Given {
    /// A prompt as text.
    Prompt(String),
    /// A file with a prompt as text, `-` for standard input.
    PromptFile(PathBuf),
    /// A prompt as tokens.
    Tokens(Vec<i64>),
    /// Inputs by name, each in a file.
    Inputs(Vec<(String, PathBuf)>),
    /// A folder of inputs and expected outputs.
    TestData(PathBuf),
}

/// A run of the client.
pub struct ClientRun {
    /// The plan folder.
    pub folder: PathBuf,
    /// The other parties.
    pub peers: Peers,
    /// What is given.
    pub given: Given,
    /// Most tokens to generate.
    pub count: u64,
    /// Tokens that end the text.
    pub stop: Vec<i64>,
    /// Where outputs are written as `.npy`.
    pub output_dir: Option<PathBuf>,
    /// Inputs that the plan may make public though they are no masks or positions.
    pub allow_public: Vec<String>,
    /// Whether to run in the clear too and compare.
    pub verify: bool,
    /// Greatest difference that counts as agreement in comparisons; nothing for the default.
    pub tolerance: Option<f64>,
    /// Where the report is written.
    pub report: Option<PathBuf>,
    /// Threads of every party on this machine.
    pub threads: usize,
    /// The emulated network, as text.
    pub network: String,
    /// Whether this program has the command [`super::isolation::COMMAND`], so that the libraries for files of the plan folder can
    /// run in a process of their own. A plan that others made needs that.
    pub isolated: bool,
}

/// Makes a key and a certificate for `party` in `folder` and prints the fingerprint.
///
/// # Errors
/// `E0712`.
pub fn make_keys(party: Party, folder: &Path) -> Result<()> {
    let fingerprint = keygen::generate(party, folder)?;
    print(&format!("{fingerprint}\n"))
}

/// Measures this machine and, with a configuration, its links; prints the profile as JSON.
///
/// # Errors
/// Those of [`measure::measure`].
pub fn measure_machine(config: Option<&Path>, network: &str, threads: usize) -> Result<()> {
    let profile = measure::measure(config, Network::parse(network)?, threads, measure::Size::MACHINE)?;
    let text = serde_json::to_string_pretty(&profile)
        .map_err(|error| Diagnostic::internal("E1013", format!("the profile cannot be written: {error}")))?;
    print(&(text + "\n"))
}

/// Serves sessions as `party` for ever.
///
/// # Errors
/// What keeps it from serving at all; errors of one session go to standard error.
pub fn serve_party(
    folder: &Path,
    party: Party,
    config: &Path,
    network: &str,
    threads: usize,
    with_input: bool,
) -> Result<()> {
    if with_input {
        end_with_input()?;
    }
    let config = PartyConfig::read(config)?;
    if config.party != party {
        return Err(Diagnostic::input("E0711", format!("the configuration is that of the {}", config.party))
            .note(format!("expected  party = \"{party}\"")));
    }
    let network = Network::parse(network)?;
    let folder = PlanFolder::open(folder)?;
    let mut keep = Keep::new(party, &folder)?;
    let endpoint = Endpoint::new(&config, &folder.digest, network)?;
    let complain = move |error: Diagnostic| eprintln!("{party}: {error}");
    let acceptor = Acceptor::bind(&endpoint, complain)?;
    print(&format!("{READY} {party} at {}\n", acceptor.address()))?;
    serve(&folder, &acceptor, &mut keep, threads, complain);
    Ok(())
}

/// Runs the client: generates or infers, prints the result, compares and reports.
///
/// # Errors
/// What the run failed with; after everything is written, `E1010` when measured costs are not the predicted ones, and
/// `E1019` when a comparison found other results.
pub fn run_client(run: &ClientRun) -> Result<()> {
    let network = Network::parse(&run.network)?;
    let folder = PlanFolder::open(&run.folder)?;
    if run.verify {
        // A missing file is better known before the run than after it.
        folder.server_weights()?;
    }
    let config = match &run.peers {
        Peers::Local => None,
        Peers::Configured(path) => Some(PartyConfig::read(path)?),
    };
    let isolation = if run.isolated { Some(isolation(config.as_ref())?) } else { None };
    let mut expected = None;
    let mut text = None;
    let task = match &run.given {
        Given::Prompt(_) | Given::PromptFile(_) => {
            let opened = Text::open(&folder, isolation.as_ref())?;
            let tokens = match &run.given {
                Given::PromptFile(path) => opened.tokens(&read_prompt(path)?)?,
                Given::Prompt(prompt) => opened.tokens(prompt)?,
                _ => Vec::new(),
            };
            text = Some(opened);
            Task::Generate { prompt: tokens, count: run.count, stop: run.stop.clone() }
        }
        Given::Tokens(tokens) => Task::Generate { prompt: tokens.clone(), count: run.count, stop: run.stop.clone() },
        Given::Inputs(files) => Task::Infer { inputs: read_inputs(files)? },
        Given::TestData(set) => {
            let TestSet { inputs, outputs } = TestSet::read(set)?;
            expected = Some(outputs);
            Task::Infer { inputs }
        }
    };
    let generates = matches!(task, Task::Generate { .. });
    let task = Prepared::new(&folder, task, &run.allow_public)?;
    let outcome = connect_and_run(run, config, network, &folder, task, (text.as_ref(), isolation.as_ref()))?;

    let shown = network.map_or("none".to_owned(), |_| run.network.clone());
    let mut report = client::report(&folder, &outcome, run.threads, shown);
    if let Some(text) = &text {
        let mut stream = text.stream();
        outcome.tokens.iter().try_for_each(|&token| stream.push(token).map(drop))?;
        report.text = Some(stream.whole()?);
    }
    if let Some(folder) = &run.output_dir {
        outcome.outputs.iter().try_for_each(|(name, tensor)| tensor_file::write(folder, name, tensor))?;
    } else if !generates {
        print_outputs(&outcome.outputs)?;
    }
    if run.verify {
        report.verify = Some(verify::compare(&folder, &outcome)?);
    }
    if let Some(expected) = &expected {
        report.test_data = Some(test_data::compare(&folder, &outcome, expected)?);
    }
    print_comparisons(&report)?;
    if let Some(path) = &run.report {
        report.write(path)?;
    }
    report.check_costs()?;
    report.check_comparisons(run.tolerance)
}

/// How this program keeps libraries apart, within the limits of the client's configuration.
fn isolation(config: Option<&PartyConfig>) -> Result<Isolation> {
    let program = std::env::current_exe()
        .map_err(|error| Diagnostic::internal("E1011", format!("this program cannot be found: {error}")))?;
    let limits = config.map(|config| config.limits).unwrap_or_default();
    Ok(Isolation { program, memory: limits.max_memory_bytes, time: limits.receive })
}

fn connect_and_run(
    run: &ClientRun,
    config: Option<PartyConfig>,
    network: Option<Network>,
    folder: &PlanFolder,
    task: Prepared,
    (text, isolation): (Option<&Text>, Option<&Isolation>),
) -> Result<Outcome> {
    // Dropped, and its processes ended, when the run is over.
    let (config, local) = match config {
        None => {
            let local = LocalParties::start(&run.folder, &run.network, run.threads)?;
            (local.client.clone(), Some(local))
        }
        Some(config) => (config, None),
    };
    if config.party != Party::Client {
        return Err(Diagnostic::input("E0711", format!("the configuration is that of the {}", config.party))
            .note("expected  party = \"client\""));
    }
    let endpoint = Endpoint::new(&config, &folder.digest, network)?;
    if let Some(local) = &local {
        local.remove_keys();
    }
    let session = endpoint.open(Purpose::Run)?;
    let progress = Progress::new();
    session.wait_for_turn(&mut |before| progress.waiting(before)).inspect_err(|_| progress.end())?;
    let mut stream = text.map(Text::stream);
    let mut printed = 0;
    let generates = matches!(run.given, Given::Prompt(_) | Given::PromptFile(_) | Given::Tokens(_));
    let mut on_token = |token: i64| {
        printed += 1;
        progress.token(printed);
        show_token(&progress, stream.as_mut(), token, printed)
    };
    let options = Options { threads: run.threads, keep_steps: run.verify, isolation, on_token: &mut on_token };
    let outcome = client::run(folder, &session, task, options);
    progress.end();
    if generates && printed > 0 {
        print("\n")?;
    }
    outcome
}

fn show_token(progress: &Progress, stream: Option<&mut TextStream<'_>>, token: i64, printed: u64) -> Result<()> {
    let text = match stream {
        Some(stream) => stream.push(token)?,
        None if printed == 1 => token.to_string(),
        None => format!(" {token}"),
    };
    progress.aside(|| print(&text))
}

/// The prompt in the file at `path`, or on standard input.
fn read_prompt(path: &Path) -> Result<String> {
    let wrong = |what: String| Diagnostic::input("E1006", format!("the prompt cannot be read: {what}"));
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?)
    };
    let mut bytes = Zeroizing::new(Vec::new());
    source.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        return Err(wrong(format!("it has more than {MAX_PROMPT_BYTES} bytes")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is no UTF-8 text".to_owned()))?;
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(text.to_owned())
}

fn read_inputs(files: &[(String, PathBuf)]) -> Result<Vec<Named>> {
    files.iter().map(|(name, path)| Ok((name.clone(), tensor_file::read(path)?.1))).collect()
}

/// One line of JSON for each output.
fn print_outputs(outputs: &[Named]) -> Result<()> {
    for (name, tensor) in outputs {
        let data = match tensor.data() {
            Data::F32(values) => json!(values),
            Data::I64(values) => json!(values),
            Data::Bool(values) => json!(values),
        };
        print(&format!("{}\n", json!({ "name": name, "shape": tensor.shape(), "data": data })))?;
    }
    Ok(())
}

/// What was compared; nothing where nothing was.
fn print_comparisons(report: &Report) -> Result<()> {
    for (name, comparison) in [("verify", &report.verify), ("test_data", &report.test_data)] {
        if let Some(comparison) = comparison.as_ref().filter(|comparison| !comparison.outputs.is_empty()) {
            print(&format!("{}\n", json!({ name: comparison })))?;
        }
    }
    Ok(())
}

/// Writes to standard output. What a model answers and what a plan calls its outputs may hold anything.
fn print(text: &str) -> Result<()> {
    let text = printable_lines(text);
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Diagnostic::input("E1013", format!("the result cannot be written: {error}")))
}

/// A spinner on standard error while a run lasts; nothing where that is no terminal.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new() -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress(None);
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.set_message("running");
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(Some(bar))
    }

    /// Says how many sessions the server serves before this one.
    fn waiting(&self, before: u32) {
        let text = match before {
            0 => "running".to_owned(),
            1 => "waiting: the server serves 1 session before this one".to_owned(),
            _ => format!("waiting: the server serves {before} sessions before this one"),
        };
        match &self.0 {
            Some(bar) => bar.set_message(text),
            None if before > 0 => eprintln!("{text}"),
            None => {}
        }
    }

    fn token(&self, count: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("{count} tokens"));
        }
    }

    /// Writes to standard output while the spinner is away. Where that is a terminal the spinner does not come back: text
    /// grows on the line that the spinner would clear.
    fn aside(&self, write: impl FnOnce() -> Result<()>) -> Result<()> {
        match &self.0 {
            Some(bar) if std::io::stdout().is_terminal() => {
                bar.finish_and_clear();
                write()
            }
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
