//! The commands of `ombra-run`: what each does with its options.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ombra_ir::diag::{printable, printable_lines};
use ombra_ir::draw::Choosing;
use ombra_ir::module::Setting;
use ombra_ir::plain::Data;
use ombra_ir::plan::Plan;
use ombra_ir::{Diagnostic, Result};
use serde_json::json;
use zeroize::Zeroizing;

use super::access::{Access, Model, Opened};
use super::client::{self, Outcome, Prepared, Task};
use super::folder::PlanFolder;
use super::inputs::Named;
use super::material::{self, Dealing, Seeds};
use super::report::Report;
use super::request::takes_padding;
use super::test_data::{self, TestSet};
use super::text::TextStream;
use super::{measure, tensor_file, verify};
use crate::config::Limits;
use crate::keygen;
use crate::prg::Key;
use crate::transport::{Endpoint, Network, Party, Purpose, SessionId};

/// Longest prompt in a file, in bytes.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

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
    /// The plan and the other parties.
    pub access: Access,
    /// What is given.
    pub given: Given,
    /// Most tokens to generate.
    pub count: u64,
    /// Tokens that end the text, beside those that the model names.
    pub stop_tokens: Vec<i64>,
    /// Strings that end the text and do not belong to it.
    pub stop: Vec<String>,
    /// How next tokens are chosen.
    pub choosing: Choosing,
    /// Where outputs are written as `.npy`.
    pub output_dir: Option<PathBuf>,
    /// Whether to run in the clear too and compare.
    pub verify: bool,
    /// Maximum difference that counts as agreement in comparisons; nothing for the default.
    pub tolerance: Option<f64>,
    /// Where the report is written.
    pub report: Option<PathBuf>,
}

/// What is to be dealt ahead of time.
pub struct Deal {
    /// The plan folder.
    pub folder: PathBuf,
    /// Sizes by name.
    pub sizes: Vec<(String, u64)>,
    /// Steps of the session.
    pub steps: u64,
    /// The id of the session; a fresh one if there is none.
    pub session: Option<SessionId>,
    /// The dealer's term of the weights; nothing for one that is made from the server's weights in the plan folder.
    pub weights: Option<PathBuf>,
    /// Where it is written.
    pub output: PathBuf,
    /// Threads for products.
    pub threads: usize,
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
pub fn measure_machine(setting: Setting, config: Option<&Path>, network: &str, threads: usize) -> Result<()> {
    let profile = measure::measure(setting, config, Network::parse(network)?, threads, measure::Size::MACHINE)?;
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

/// Deals a session ahead of time, with the dealer's term of the weights from the file `weights`, or shared from the plan
/// folder of the server's, where all parties are on this machine. Prints what was written.
///
/// # Errors
/// Those of [`material::deal`] and [`material::share_weights`].
pub fn deal(deal: &Deal) -> Result<()> {
    let folder = PlanFolder::open(&deal.folder)?;
    let weights = match &deal.weights {
        Some(path) => path.clone(),
        None => {
            let (path, names) = material::share_weights(&folder, &deal.output, &Key::random()?)?;
            print_written(&names)?;
            path
        }
    };
    let mut seeds = Seeds::random()?;
    if let Some(session) = deal.session {
        seeds.session = session;
    }
    let dealing = Dealing {
        folder: &folder,
        sizes: &deal.sizes,
        steps: deal.steps,
        weights: &weights,
        output: &deal.output,
        threads: deal.threads,
        memory: Limits::default().max_memory_bytes,
    };
    print_written(&material::deal(&dealing, &seeds)?)
}

/// Shares the server's weights with a dealer through files, and prints their names.
///
/// # Errors
/// Those of [`material::share_weights`].
pub fn share_weights(folder: &Path, output: &Path) -> Result<()> {
    let (_, names) = material::share_weights(&PlanFolder::open(folder)?, output, &Key::random()?)?;
    print_written(&names)
}

/// Runs the client: generates or infers, prints the result, compares and reports.
///
/// # Errors
/// What the run failed with; after everything is written, `E1010` when measured costs are not the predicted ones, and
/// `E1019` when a comparison found other results.
pub fn run_client(run: &ClientRun) -> Result<()> {
    let opened = run.access.open()?;
    let folder = &opened.folder;
    if run.verify {
        // A missing file is better known before the run than after it.
        folder.server_weights()?;
    }
    let mut expected = None;
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
    let needs_text = inputs.is_none() && (!prompts.is_empty() || !run.stop.is_empty());
    let model = opened.model(needs_text, &run.stop_tokens)?;
    let mut tasks = Vec::new();
    if let Some(inputs) = inputs {
        tasks.push((vec![0], Task::Infer { inputs }));
    } else {
        let mut all = Vec::new();
        if let Some(text) = &model.text {
            all = prompts.iter().map(|prompt| text.tokens(prompt)).collect::<Result<_>>()?;
        }
        if let Given::Tokens(tokens) = &run.given {
            all.push(tokens.clone());
        }
        let stop: Vec<i64> = model.end_tokens.iter().copied().collect();
        for rows in batches(&folder.plan, &all) {
            let prompts = rows.iter().filter_map(|&row| all.get(row).cloned()).collect();
            let (count, stop) = (run.count, stop.clone());
            tasks.push((rows, Task::Generate { prompts, count, stop, choosing: run.choosing }));
        }
    }
    let checked = |(rows, task)| Ok((rows, Prepared::new(folder, task, &run.access.allow_public)?));
    let tasks = tasks.into_iter().map(checked).collect::<Result<Vec<_>>>()?;
    let shown = opened.network.map_or("none".to_owned(), |_| run.access.network.clone());
    let mut report = client::report(folder, &opened.products, shown);
    let mut answers = BTreeMap::new();
    let mut outcomes = Vec::new();
    let client = Client { run, opened: &opened, model: &model };
    {
        // The parties of this machine end before what they gave is compared.
        let connection = opened.connect()?;
        for (rows, task) in tasks {
            let (outcome, texts) = client.run_task(&connection.endpoint, task)?;
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
        (report.tokens, report.text) = (Some(tokens), model.text.is_some().then_some(answer));
    }
    let generates = report.tokens.is_some();
    for outcome in &outcomes {
        if let Some(folder) = &run.output_dir {
            outcome.outputs.iter().try_for_each(|(name, tensor)| tensor_file::write(folder, name, tensor))?;
        } else if !generates && outcome.tokens.is_empty() {
            print_outputs(&outcome.outputs)?;
        }
        if run.verify {
            verify::compare_too(folder, outcome, report.verify.get_or_insert_default())?;
        }
        if let Some(expected) = &expected {
            report.test_data = Some(test_data::compare(folder, outcome, expected)?);
        }
    }
    if let Some(note) = opened.products.note() {
        eprintln!("{}", printable(&note));
    }
    report.backends().iter().for_each(|line| eprintln!("{line}"));
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
    let most = if plan.batch.is_some() { plan.max_of(&plan.batch).unwrap_or(u64::MAX) } else { 1 };
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, prompt) in prompts.iter().enumerate() {
        groups.entry(if takes_padding(plan) { 0 } else { prompt.len() }).or_default().push(index);
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    groups.values().flat_map(|group| group.chunks(most)).map(<[usize]>::to_vec).collect()
}

/// A run of the client with what it has opened.
struct Client<'a> {
    run: &'a ClientRun,
    opened: &'a Opened,
    model: &'a Model,
}

impl Client<'_> {
    /// One session; what it gave, and the text of every prompt's answer.
    fn run_task(&self, endpoint: &Endpoint, task: Prepared) -> Result<(Outcome, Vec<String>)> {
        let material = self.opened.access.material.as_ref();
        let taken = material.map(|paths| {
            let memory = endpoint.limits().max_memory_bytes;
            paths.of_client().choose(&self.opened.folder, task.request(), &task.advances(), memory)
        });
        let taken = taken.transpose()?;
        let session = match &taken {
            Some(choice) => endpoint.open_as(Purpose::Prepared, choice.session)?,
            None => endpoint.open(Purpose::Run)?,
        };
        let progress = Progress::new();
        let turn = session.wait_for_turn(&mut |before| progress.waiting(before)).inspect_err(|_| progress.end());
        match &taken {
            Some(choice) => choice.heed(turn)?,
            None => turn?,
        }
        let rows = task.prompts();
        let shows = rows == 1 && !matches!(self.run.given, Given::PromptsFile(_));
        let mut streams: Vec<Option<TextStream>> =
            (0..rows).map(|_| self.model.text.as_ref().map(|text| text.stream(&self.run.stop))).collect();
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
                Some(_) if self.model.end_tokens.contains(&token) => String::new(),
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
        let (products, isolation) = (self.opened.products.clone(), self.opened.isolation.as_ref());
        let (keep_steps, dealt) = (self.run.verify, taken.as_ref());
        let options = client::Options { products, keep_steps, isolation, dealt, on_token: &mut on_token };
        let outcome = client::run(&self.opened.folder, &session, task, options);
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
