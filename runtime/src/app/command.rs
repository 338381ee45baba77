//! The commands of `ombra-run`: what each does with its options.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ombra_ir::diag::printable_lines;
use ombra_ir::draw::Sampling;
use ombra_ir::plain::Data;
use ombra_ir::plan::Plan;
use ombra_ir::{Diagnostic, Result};
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{self, Outcome, Prepared, Task, max_size};
use super::folder::PlanFolder;
use super::inputs::Named;
use super::isolation::{Isolation, Program};
use super::local::LocalParties;
use super::report::Report;
use super::request::takes_padding;
use super::settings::Settings;
use super::test_data::{self, TestSet};
use super::text::{Text, TextStream};
use super::{measure, tensor_file, verify};
use crate::config::PartyConfig;
use crate::keygen;
use crate::transport::{Endpoint, Network, Party, Purpose};

/// Longest prompt in a file, in bytes.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

/// Where the server and the helper of a client's run are.
pub enum Peers {
    /// Processes that this one starts.
    Local,
    /// As the client's configuration says.
    Configured(PathBuf),
}

impl Peers {
    /// The client's configuration, where there is one.
    ///
    /// # Errors
    /// Those of [`PartyConfig::read`].
    pub(super) fn config(&self) -> Result<Option<PartyConfig>> {
        match self {
            Peers::Local => Ok(None),
            Peers::Configured(path) => PartyConfig::read(path).map(Some),
        }
    }
}

/// What the client gives to a run.
pub enum Given {
    /// A prompt as text.
    Prompt(String),
    /// A file with a prompt as text, `-` for standard input.
    PromptFile(PathBuf),
    /// A file with prompts as text, one a line, `-` for standard input: they run side by side.
    PromptsFile(PathBuf),
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
    /// Tokens that end the text, beside those that the model names.
    pub stop_tokens: Vec<i64>,
    /// Strings that end the text and do not belong to it.
    pub stop: Vec<String>,
    /// How next tokens are drawn; the most probable ones are chosen without it.
    pub sampling: Option<Sampling>,
    /// Where outputs are written as `.npy`.
    pub output_dir: Option<PathBuf>,
    /// Inputs that the plan may make public though they are no masks or positions.
    pub allow_public: Vec<String>,
    /// Whether to run in the clear too and compare.
    pub verify: bool,
    /// Maximum difference that counts as agreement in comparisons; nothing for the default.
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

/// Says which files were written.
///
/// # Errors
/// `E1013`.
pub fn print_written(names: &[String]) -> Result<()> {
    names.iter().try_for_each(|name| print(&format!("{name}\n")))
}

/// Says that the weights were shared anew in these seconds.
///
/// # Errors
/// `E1013`.
pub fn print_renewed(seconds: f64) -> Result<()> {
    print(&format!("renewed in {seconds:.1} s\n"))
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
    let config = run.peers.config()?;
    let isolation = if run.isolated { Some(isolation(config.as_ref())?) } else { None };
    let mut expected = None;
    let mut text = None;
    let mut inputs = None;
    let mut prompts = Vec::new();
    match &run.given {
        Given::Prompt(prompt) => prompts.push(prompt.clone()),
        Given::PromptFile(path) => prompts.push(read_prompt(path)?),
        Given::PromptsFile(path) => prompts.extend(read_prompt(path)?.lines().map(str::to_owned)),
        Given::Tokens(_) => {}
        Given::Inputs(files) => inputs = Some(read_inputs(files)?),
        Given::TestData(set) => {
            let TestSet { inputs: given, outputs } = TestSet::read(set)?;
            expected = Some(outputs);
            inputs = Some(given);
        }
    }
    let mut tasks = Vec::new();
    let mut end_tokens = BTreeSet::new();
    if let Some(inputs) = inputs {
        tasks.push((vec![0], Task::Infer { inputs }));
    } else {
        let needs_text = !prompts.is_empty() || !run.stop.is_empty();
        text = needs_text.then(|| Text::open(&folder, isolation.as_ref())).transpose()?;
        let mut all = Vec::new();
        if let Some(text) = &text {
            all = prompts.iter().map(|prompt| text.tokens(prompt)).collect::<Result<_>>()?;
        }
        if let Given::Tokens(tokens) = &run.given {
            all.push(tokens.clone());
        }
        end_tokens = Settings::read(&folder)?.end_tokens(text.as_ref())?;
        end_tokens.extend(&run.stop_tokens);
        let stop: Vec<i64> = end_tokens.iter().copied().collect();
        for rows in batches(&folder.plan, &all) {
            let prompts = rows.iter().filter_map(|&row| all.get(row).cloned()).collect();
            let (count, stop) = (run.count, stop.clone());
            tasks.push((rows, Task::Generate { prompts, count, stop, sampling: run.sampling }));
        }
    }
    let checked = |(rows, task)| Ok((rows, Prepared::new(&folder, task, &run.allow_public)?));
    let tasks = tasks.into_iter().map(checked).collect::<Result<Vec<_>>>()?;
    let shown = network.map_or("none".to_owned(), |_| run.network.clone());
    let mut report = client::report(&folder, run.threads, shown);
    let mut answers = BTreeMap::new();
    let mut outcomes = Vec::new();
    let client =
        Client { run, folder: &folder, text: text.as_ref(), end_tokens: &end_tokens, isolation: isolation.as_ref() };
    {
        // The parties of this machine end before what they gave is compared.
        let place = (&*run.network, network);
        let (endpoint, _local) =
            open_endpoint(&Program::this()?, config, &run.folder, &folder.digest, place, run.threads)?;
        for (rows, task) in tasks {
            let (outcome, texts) = client.run_task(&endpoint, task)?;
            report.add(&outcome);
            answers.extend(rows.into_iter().zip(outcome.tokens.iter().cloned().zip(texts)));
            outcomes.push(outcome);
        }
    }

    if let Given::PromptsFile(_) = run.given {
        for (prompt, (tokens, text)) in answers {
            print(&format!("{}\n", json!({ "prompt": prompt, "tokens": tokens, "text": text })))?;
        }
    } else if let Some((tokens, answer)) = answers.remove(&0) {
        (report.tokens, report.text) = (Some(tokens), text.is_some().then_some(answer));
    }
    let generates = report.tokens.is_some();
    for outcome in &outcomes {
        if let Some(folder) = &run.output_dir {
            outcome.outputs.iter().try_for_each(|(name, tensor)| tensor_file::write(folder, name, tensor))?;
        } else if !generates && outcome.tokens.is_empty() {
            print_outputs(&outcome.outputs)?;
        }
        if run.verify {
            verify::compare_too(&folder, outcome, report.verify.get_or_insert_default())?;
        }
        if let Some(expected) = &expected {
            report.test_data = Some(test_data::compare(&folder, outcome, expected)?);
        }
    }
    print_comparisons(&report)?;
    if let Some(path) = &run.report {
        report.write(path)?;
    }
    report.check_costs()?;
    report.check_comparisons(run.tolerance)
}

/// Prompts that are run side by side, as indices: of one length where the model cannot tell padding from tokens, and no
/// more than the plan takes.
fn batches(plan: &Plan, prompts: &[Vec<i64>]) -> Vec<Vec<usize>> {
    let most = if plan.batch.is_some() { max_size(plan, &plan.batch).unwrap_or(u64::MAX) } else { 1 };
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, prompt) in prompts.iter().enumerate() {
        groups.entry(if takes_padding(plan) { 0 } else { prompt.len() }).or_default().push(index);
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    groups.values().flat_map(|group| group.chunks(most)).map(<[usize]>::to_vec).collect()
}

/// How this program keeps libraries apart, within the limits of the client's configuration.
///
/// # Errors
/// `E1011`.
pub fn isolation(config: Option<&PartyConfig>) -> Result<Isolation> {
    let limits = config.map(|config| config.limits).unwrap_or_default();
    Ok(Isolation { program: Program::this()?, memory: limits.max_memory_bytes, time: limits.receive })
}

/// A run of the client with what it has opened.
struct Client<'a> {
    run: &'a ClientRun,
    folder: &'a PlanFolder,
    text: Option<&'a Text>,
    end_tokens: &'a BTreeSet<i64>,
    isolation: Option<&'a Isolation>,
}

impl Client<'_> {
    /// One session; what it gave, and the text of every prompt's answer.
    fn run_task(&self, endpoint: &Endpoint, task: Prepared) -> Result<(Outcome, Vec<String>)> {
        let session = endpoint.open(Purpose::Run)?;
        let progress = Progress::new();
        session.wait_for_turn(&mut |before| progress.waiting(before)).inspect_err(|_| progress.end())?;
        let rows = task.prompts();
        let shows = rows == 1 && !matches!(self.run.given, Given::PromptsFile(_));
        let mut streams: Vec<Option<TextStream>> =
            (0..rows).map(|_| self.text.map(|text| text.stream(&self.run.stop))).collect();
        let mut texts = vec![String::new(); rows];
        let mut printed = 0;
        let mut on_token = |row: usize, token: i64| {
            let (Some(stream), Some(text)) = (streams.get_mut(row), texts.get_mut(row)) else {
                return Ok(ControlFlow::Break(()));
            };
            printed += 1;
            progress.token(printed);
            let new = match stream {
                // It ends the text and is no part of it.
                Some(_) if self.end_tokens.contains(&token) => String::new(),
                Some(stream) => stream.push(token)?,
                None if printed == 1 => token.to_string(),
                None => format!(" {token}"),
            };
            text.push_str(&new);
            if shows {
                progress.aside(|| print(&new))?;
            }
            let stopped = stream.as_ref().is_some_and(TextStream::has_stopped);
            Ok(if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let (threads, isolation) = (self.run.threads, self.isolation);
        let options = client::Options { threads, keep_steps: self.run.verify, isolation, on_token: &mut on_token };
        let outcome = client::run(self.folder, &session, task, options);
        progress.end();
        for (stream, text) in streams.iter_mut().zip(&mut texts) {
            if let Some(stream) = stream {
                let rest = stream.finish()?;
                text.push_str(&rest);
                if shows && outcome.is_ok() {
                    print(&rest)?;
                }
            }
        }
        if shows && printed > 0 {
            print("\n")?;
        }
        Ok((outcome?, texts))
    }
}

/// The client's endpoint: over the given configuration, or to processes of `program` that this one starts for `folder`,
/// which end when they are dropped.
///
/// # Errors
/// `E0711`, `E0712`, and those of [`LocalParties::start`].
pub fn open_endpoint(
    program: &Program,
    config: Option<PartyConfig>,
    folder: &Path,
    digest: &str,
    (name, network): (&str, Option<Network>),
    threads: usize,
) -> Result<(Endpoint, Option<LocalParties>)> {
    let (config, local) = match config {
        None => {
            let local = LocalParties::start(program, folder, name, threads)?;
            (local.client.clone(), Some(local))
        }
        Some(config) => (config, None),
    };
    if config.party != Party::Client {
        return Err(Diagnostic::input("E0711", format!("the configuration is that of the {}", config.party))
            .note("expected  party = \"client\""));
    }
    let endpoint = Endpoint::new(&config, digest, network)?;
    if let Some(local) = &local {
        local.remove_keys();
    }
    Ok((endpoint, local))
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
pub(super) fn print(text: &str) -> Result<()> {
    let text = printable_lines(text);
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Diagnostic::input("E1013", format!("the result cannot be written: {error}")))
}

/// A spinner on standard error while a run lasts; nothing where that is no terminal.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn new() -> Progress {
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
    pub(super) fn waiting(&self, before: u32) {
        let text = match before {
            0 => "running".to_owned(),
            _ => format!("waiting: number {before} in the server's queue"),
        };
        match &self.0 {
            Some(bar) => bar.set_message(text),
            None if before > 0 => eprintln!("{text}"),
            None => {}
        }
    }

    pub(super) fn token(&self, count: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("{count} tokens"));
        }
    }

    /// Writes to standard output while the spinner is away. Where that is a terminal the spinner does not come back: text
    /// grows on the line that the spinner would clear.
    pub(super) fn aside(&self, write: impl FnOnce() -> Result<()>) -> Result<()> {
        match &self.0 {
            Some(bar) if std::io::stdout().is_terminal() => {
                bar.finish_and_clear();
                write()
            }
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
