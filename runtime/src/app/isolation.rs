//! A process of its own for libraries that work on files of a plan folder: inference and tokenizing.
//!
//! A plan is made by others. A model of a few hundred bytes can ask for more memory than there is, and a tokenizer can be
//! of a form that its library does not expect: both end the process that they run in. Here that is a child of this program,
//! with a limit of memory, which is asked over its standard input and answers over its standard output. What happens to it
//! is one error of the party.
//!
//! A message is its length, in eight bytes, little endian, and its content in postcard.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Kind, Result};
use serde::{Deserialize, Serialize};

use super::folder::CheckedFile;
use super::region::{Evaluation, Evaluator};
use super::template::{Chat, render};
use super::text::Vocabulary;
use crate::memory::limit_addresses;

/// The hidden command of this program that runs [`work`].
pub const COMMAND: &str = "work";
/// Addresses that a process takes before it has loaded anything: the program, stacks of threads, room of the allocator.
const BASE: u64 = 1 << 30;
/// Largest message.
const MAX_MESSAGE: u64 = 1 << 40;
/// Codes that an error of the child may have.
const CODES: [&str; 10] = ["E0721", "E0722", "E0723", "E0724", "E0725", "E1001", "E1002", "E1006", "E1009", "E1022"];

/// Code of the error of a child that did not survive what it was asked.
pub(super) const BROKEN: &str = "E0725";
/// How this program is started once more, as another process.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// What comes before the command: of an interpreter, what it is to run.
    pub arguments: Vec<OsString>,
}

/// The program of this process where its file alone would start something else.
static EMBEDDED: OnceLock<Program> = OnceLock::new();

impl Program {
    /// Says how the program of this process is started, once: of an interpreter, the file alone would start another one.
    pub fn embed(self) {
        // The first to say so is the one that began the process.
        let _ = EMBEDDED.set(self);
    }

    /// The program of this process.
    ///
    /// # Errors
    /// `E1011`.
    pub fn this() -> Result<Program> {
        if let Some(program) = EMBEDDED.get() {
            return Ok(program.clone());
        }
        let path = env::current_exe()
            .map_err(|error| Diagnostic::internal("E1011", format!("this program cannot be found: {error}")))?;
        Ok(Program { path, arguments: Vec::new() })
    }

    /// A process of it, whose own arguments are to be added.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        // What the terminal sends to this process is not for them: they end with their input.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

/// How the libraries are kept apart.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// This program.
    pub program: Program,
    /// Memory that they may take, in bytes, beside twice the size of their files.
    pub memory: u64,
    /// How long one answer may take.
    pub time: Duration,
}

/// What a child is asked.
#[derive(Serialize, Deserialize)]
enum Ask {
    LoadModel { file: CheckedFile, data: Option<CheckedFile>, threads: usize },
    RunModel(Evaluation),
    LoadVocabulary(CheckedFile),
    Encode(String, bool),
    Decode(Vec<u32>),
    TokenId(String),
    Render(Chat),
}

/// What it answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Loaded,
    Names(Vec<String>),
    Tensors(Vec<Tensor>),
    Ids(Vec<u32>),
    Id(Option<u32>),
    Text(String),
    Failed(Failure),
}

/// An error as it passes between processes.
#[derive(Serialize, Deserialize)]
struct Failure {
    code: String,
    is_input: bool,
    message: String,
    place: Option<String>,
    notes: Vec<String>,
}

/// A child. Dropping it ends it.
pub struct Worker {
    child: Child,
    input: ChildStdin,
    answers: Receiver<Vec<u8>>,
    time: Duration,
}

impl Worker {
    /// Starts a child.
    ///
    /// # Errors
    /// `E0725`.
    pub fn start(isolation: &Isolation) -> Result<Worker> {
        let failed = |error: io::Error| broken(format!("it cannot be started: {error}"));
        let mut child = isolation
            .program
            .command()
            .arg(COMMAND)
            .arg(isolation.memory.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a library prints when it fails may hold the prompt.
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(broken("it has no input or output".to_owned()));
        };
        let (send, answers) = channel();
        let reading = thread::Builder::new().name("answers".to_owned()).spawn(move || {
            let mut output = BufReader::new(output);
            while let Ok(Some(bytes)) = read_bytes(&mut output) {
                if send.send(bytes).is_err() {
                    break;
                }
            }
        });
        let worker = Worker { child, input, answers, time: isolation.time };
        reading.map_err(failed).map(|_| worker)
    }

    /// Loads the model in `file`; the names of its inputs.
    ///
    /// # Errors
    /// Those of loading it here, and `E0725` for a child that did not survive it.
    pub(super) fn load_model(
        &mut self,
        file: CheckedFile,
        data: Option<CheckedFile>,
        threads: usize,
    ) -> Result<Vec<String>> {
        match self.ask(&Ask::LoadModel { file, data, threads })? {
            Answer::Names(names) => Ok(names),
            _ => Err(senseless()),
        }
    }

    /// Runs the loaded model once.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn run_model(&mut self, evaluation: Evaluation) -> Result<Vec<Tensor>> {
        let wanted = evaluation.outputs.len();
        match self.ask(&Ask::RunModel(evaluation))? {
            Answer::Tensors(tensors) if tensors.len() == wanted => Ok(tensors),
            _ => Err(senseless()),
        }
    }

    /// Loads the tokenizer in `file`.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn load_vocabulary(&mut self, file: CheckedFile) -> Result<()> {
        match self.ask(&Ask::LoadVocabulary(file))? {
            Answer::Loaded => Ok(()),
            _ => Err(senseless()),
        }
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn encode(&mut self, text: &str, special: bool) -> Result<Vec<u32>> {
        match self.ask(&Ask::Encode(text.to_owned(), special))? {
            Answer::Ids(ids) => Ok(ids),
            _ => Err(senseless()),
        }
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn decode(&mut self, ids: &[u32]) -> Result<String> {
        match self.ask(&Ask::Decode(ids.to_vec()))? {
            Answer::Text(text) => Ok(text),
            _ => Err(senseless()),
        }
    }

    /// The id of a token, if there is one.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn token_id(&mut self, token: &str) -> Result<Option<u32>> {
        match self.ask(&Ask::TokenId(token.to_owned()))? {
            Answer::Id(id) => Ok(id),
            _ => Err(senseless()),
        }
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// As [`load_model`](Self::load_model).
    pub(super) fn render(&mut self, chat: Chat) -> Result<String> {
        match self.ask(&Ask::Render(chat))? {
            Answer::Text(text) => Ok(text),
            _ => Err(senseless()),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        // A child that has ended cannot be written to; why it ended is what its status says.
        let written = write(&mut self.input, ask);
        let answer = match written {
            Ok(()) => self.answers.recv_timeout(self.time),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Timeout) => {
                return Err(broken(format!("there was no answer in {} s", self.time.as_secs_f64())));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(broken(format!("it ended ({status})")));
            }
        };
        match postcard::from_bytes(&bytes).map_err(|_| senseless())? {
            Answer::Failed(failure) => Err(failure.into()),
            answer => Ok(answer),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The error of a child that does not do its work.
fn broken(what: String) -> Diagnostic {
    Diagnostic::input(BROKEN, "the process for a file of the plan folder failed")
        .note(format!("found     {what}"))
        .note("expected  a client.onnx and a tokenizer.json that their libraries can take")
        .note("help      if the plan is one to trust, raise limits.max_memory_bytes or limits.receive_s")
}

fn senseless() -> Diagnostic {
    broken("it answered something else than it was asked".to_owned())
}

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Diagnostic {
        let code = CODES.into_iter().find(|code| *code == failure.code).unwrap_or("E0725");
        let kind = if failure.is_input { Kind::Input } else { Kind::Unsupported };
        let error = failure.notes.into_iter().fold(Diagnostic::new(kind, code, failure.message), Diagnostic::note);
        match failure.place {
            Some(place) => error.at(place),
            None => error,
        }
    }
}

impl From<Diagnostic> for Failure {
    fn from(error: Diagnostic) -> Failure {
        let Diagnostic { code, kind, message, place, notes } = error;
        Failure { code: code.to_owned(), is_input: kind != Kind::Unsupported, message, place, notes }
    }
}

/// What a child does: answers on standard output what it is asked on standard input, until that ends. Libraries may take
/// `memory` bytes beside twice the size of their files.
///
/// # Errors
/// `E0725` when input or output fails.
pub fn work(memory: u64) -> Result<()> {
    // A panic is an answer like any other, and its text may hold the prompt.
    std::panic::set_hook(Box::new(|_| {}));
    let failed = |error: io::Error| broken(error.to_string());
    let mut input = BufReader::new(io::stdin().lock());
    let mut output = BufWriter::new(io::stdout().lock());
    let mut loaded = Loaded::default();
    while let Some(bytes) = read_bytes(&mut input).map_err(failed)? {
        let ask = postcard::from_bytes(&bytes).map_err(|_| senseless())?;
        drop(bytes);
        let answer = loaded.answer(ask, memory).unwrap_or_else(|error| Answer::Failed(error.into()));
        write(&mut output, &answer).map_err(failed)?;
    }
    Ok(())
}

/// What a child has loaded.
#[derive(Default)]
struct Loaded {
    model: Option<Evaluator>,
    vocabulary: Option<Vocabulary>,
}

impl Loaded {
    fn answer(&mut self, ask: Ask, memory: u64) -> Result<Answer> {
        match ask {
            Ask::LoadModel { file, data, threads } => {
                let bytes = data.iter().fold(file.bytes(), |sum, data| sum.saturating_add(data.bytes()));
                limit(memory, bytes)?;
                let model = Evaluator::open(&file, data.as_ref(), threads)?;
                let names = model.inputs();
                self.model = Some(model);
                Ok(Answer::Names(names))
            }
            Ask::RunModel(evaluation) => {
                self.model.as_mut().ok_or_else(senseless)?.run(&evaluation).map(Answer::Tensors)
            }
            Ask::LoadVocabulary(file) => {
                limit(memory, file.bytes())?;
                self.vocabulary = Some(Vocabulary::read(&file)?);
                Ok(Answer::Loaded)
            }
            Ask::Encode(text, special) => {
                self.vocabulary.as_ref().ok_or_else(senseless)?.encode(&text, special).map(Answer::Ids)
            }
            Ask::TokenId(token) => Ok(Answer::Id(self.vocabulary.as_ref().ok_or_else(senseless)?.token_id(&token))),
            Ask::Render(chat) => render(&chat).map(Answer::Text),
            Ask::Decode(ids) => self.vocabulary.as_ref().ok_or_else(senseless)?.decode(&ids).map(Answer::Text),
        }
    }
}

fn limit(memory: u64, files: u64) -> Result<()> {
    let most = memory.saturating_add(files.saturating_mul(2)).saturating_add(BASE);
    limit_addresses(most).map_err(|error| broken(format!("its memory cannot be limited: {error}")))
}

fn write<T: Serialize>(output: &mut impl Write, value: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(&bytes)?;
    output.flush()
}

/// The bytes of the next message, or nothing at the end of the stream. Memory grows only as bytes arrive.
fn read_bytes(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        outcome => outcome?,
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(Some(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
