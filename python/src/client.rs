//! The client: one thread with a session that continues texts, and single steps on tensors.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ombra_ir::draw::{Choosing, Penalties, Sampling};
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::access::{Access, Connection, Model, Opened, Peers};
use ombra_runtime::app::client::{self, Prepared, Task, tokens_left};
use ombra_runtime::app::inputs::Named;
use ombra_runtime::app::isolation::Program;
use ombra_runtime::app::talk::{self, Event, Finish, Job};
use ombra_runtime::app::template::Message;
use ombra_runtime::backend::products::Choice;
use ombra_runtime::transport::{Party, Purpose};
use pyo3::prelude::*;
use serde_json::{Value, json};

use super::exception;

/// How often a wait looks whether Python was interrupted.
const TICK: Duration = Duration::from_millis(100);

/// A tensor as it crosses to Python: name, element type, sizes, little-endian bytes.
type Array = (String, String, Vec<usize>, Vec<u8>);

/// What the client has opened.
struct Resources {
    opened: Opened,
    model: Model,
    connection: Connection,
}

/// A text to be continued.
struct Order {
    tokens: Vec<i64>,
    count: u64,
    stop: Vec<String>,
    stop_tokens: BTreeSet<i64>,
    choosing: Choosing,
    replies: Sender<Reply>,
    cancelled: Arc<AtomicBool>,
}

/// A part of an answer.
enum Reply {
    Text(String),
    Token(i64),
    Progress(Value),
    End(Result<Finish>),
}

/// The client of a plan. One text is continued at a time; others wait.
#[pyclass(frozen)]
pub struct Client {
    with: Arc<Resources>,
    working: Mutex<Option<Working>>,
}

/// The thread that continues texts.
struct Working {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
    /// Of the answer that was begun last.
    cancelled: Arc<AtomicBool>,
}

/// An answer under way.
#[pyclass(frozen)]
pub struct Answer {
    replies: Mutex<Receiver<Reply>>,
    cancelled: Arc<AtomicBool>,
}

#[pymethods]
impl Client {
    /// Opens a plan folder. Without `config`, the other parties are processes of `program` on this machine.
    #[new]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        config: Option<PathBuf>,
        network: String,
        threads: Option<usize>,
        allow_public: Vec<String>,
        program: (PathBuf, Vec<std::ffi::OsString>),
    ) -> PyResult<Client> {
        let with = py.detach(|| open(folder, config, network, threads, allow_public, program));
        let with = Arc::new(with.map_err(|error| exception(&error))?);
        let (orders, received) = channel();
        let shared = Arc::clone(&with);
        let work = move || serve(&shared, &received);
        let started = thread::Builder::new().name("ombra client".to_owned()).spawn(work);
        let thread = started.map_err(|error| exception(&Diagnostic::internal("E1011", error.to_string())))?;
        let working = Working { orders, thread, cancelled: Arc::default() };
        Ok(Client { with, working: Mutex::new(Some(working)) })
    }

    /// Begins an answer to a prompt as text, as tokens, or as turns of a chat (role and content). Checks of the text come
    /// at once, others with the answer.
    #[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn start(
        &self,
        py: Python<'_>,
        prompt: Option<String>,
        tokens: Option<Vec<i64>>,
        messages: Option<Vec<(String, String)>>,
        count: Option<u64>,
        stop: Vec<String>,
        stop_tokens: Vec<i64>,
        sampling: Option<(f32, Option<u64>, Option<f32>)>,
        penalties: (f32, f32),
    ) -> PyResult<Answer> {
        let Resources { opened, model, .. } = &*self.with;
        let tokens = py.detach(|| -> Result<Vec<i64>> {
            if !stop.is_empty() {
                model.text()?;
            }
            match (prompt, tokens, messages) {
                (Some(prompt), _, _) => model.text()?.tokens(&prompt),
                (_, Some(tokens), _) => Ok(tokens),
                (_, _, messages) => {
                    let turn = |(role, content)| Message { role, content };
                    let messages: Vec<Message> = messages.into_iter().flatten().map(turn).collect();
                    model.text()?.chat_tokens(&model.settings, &messages)
                }
            }
        });
        let tokens = tokens.map_err(|error| exception(&error))?;
        let most = tokens_left(&opened.folder.plan, tokens.len()).map_err(|error| exception(&error))?;
        let count = count.unwrap_or(most.min(512));
        let sampling = sampling.map(|(temperature, top_k, top_p)| Sampling { temperature, top_k, top_p });
        let penalties = Penalties { presence: penalties.0, frequency: penalties.1 };
        let choosing = Choosing { sampling, penalties };
        let stop_tokens = model.end_tokens.iter().copied().chain(stop_tokens).collect();
        let (replies, received) = channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let order = Order { tokens, count, stop, stop_tokens, choosing, replies, cancelled: Arc::clone(&cancelled) };
        let mut working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(working) = working.as_mut().filter(|working| !working.thread.is_finished()) else {
            return Err(exception(&closed()));
        };
        working.orders.send(order).map_err(|_| exception(&closed()))?;
        working.cancelled = Arc::clone(&cancelled);
        Ok(Answer { replies: Mutex::new(received), cancelled })
    }

    /// One step on given inputs: the outputs, and the report as JSON.
    fn infer(&self, py: Python<'_>, inputs: Vec<Array>) -> PyResult<(Vec<Array>, String)> {
        if self.working.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(exception(&closed()));
        }
        let done = py.detach(|| infer(&self.with, inputs));
        let (outputs, report) = done.map_err(|error| exception(&error))?;
        Ok((outputs, super::json(&report)?))
    }

    /// Ends the answer under way after its token, and the session.
    fn close(&self, py: Python<'_>) {
        let working = self.working.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Working { orders, thread, cancelled }) = working {
            cancelled.store(true, Ordering::Relaxed);
            drop(orders);
            // It has panicked, or it is over.
            _ = py.detach(|| thread.join());
        }
    }
}

#[pymethods]
impl Answer {
    /// The next part: its kind and its content. Nothing follows the end.
    fn next(&self, py: Python<'_>) -> PyResult<(&'static str, String)> {
        let reply = loop {
            let wait = || self.replies.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TICK);
            match py.detach(wait) {
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                reply => break reply,
            }
        };
        Ok(match reply {
            // After the end nobody asks; so the thread has panicked.
            Err(_) => {
                let error = Diagnostic::internal("E1014", "a fault of this program ended the session");
                return Err(exception(&error));
            }
            Ok(Reply::Text(text)) => ("text", text),
            Ok(Reply::Token(token)) => ("token", token.to_string()),
            Ok(Reply::Progress(event)) => ("progress", event.to_string()),
            Ok(Reply::End(Ok(Finish::Length))) => ("end", "length".to_owned()),
            Ok(Reply::End(Ok(Finish::Stop | Finish::Listener))) => ("end", "stop".to_owned()),
            Ok(Reply::End(Err(error))) => return Err(exception(&error)),
        })
    }

    /// Ends the answer after the token under way.
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

fn closed() -> Diagnostic {
    Diagnostic::input("E1006", "the client is closed").note("help      make another one")
}

fn open(
    folder: PathBuf,
    config: Option<PathBuf>,
    network: String,
    threads: Option<usize>,
    allow_public: Vec<String>,
    (path, arguments): (PathBuf, Vec<std::ffi::OsString>),
) -> Result<Resources> {
    let threads = threads.filter(|threads| *threads > 0);
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let peers = config.map_or(Peers::Local, Peers::Configured);
    let program = Program { path, arguments };
    let access = Access {
        folder,
        peers,
        allow_public,
        threads,
        backend: Choice::Cpu,
        network,
        program,
        isolated: true,
        material: None,
    };
    let opened = access.open()?;
    let model = opened.model(opened.has_text()?, &[])?;
    let connection = opened.connect()?;
    Ok(Resources { opened, model, connection })
}

/// Continues texts until there are no more orders.
fn serve(with: &Resources, orders: &Receiver<Order>) {
    let parties = with.opened.folder.plan.module.setting.protocol().parties;
    let mut connect = || with.connection.endpoint.open(Purpose::Run);
    let mut next = || orders.recv().ok().map(|order| job(&with.model, parties, order));
    talk::run(&with.opened.folder, &mut connect, &mut next, &with.opened.talk_options(with.opened.folder.plan.ways()));
}

/// An order as a job, whose listener passes the answer on. That nobody reads it any more ends it.
fn job<'a>(model: &'a Model, parties: &'static [Party], order: Order) -> Job<'a> {
    let Order { tokens, count, stop, stop_tokens, choosing, replies, cancelled } = order;
    let mut stream = model.text.as_ref().map(|text| text.stream(&stop));
    let ends = stop_tokens.clone();
    let listen = move |event: Event<'_>| {
        let send = |reply| {
            if replies.send(reply).is_err() {
                cancelled.store(true, Ordering::Relaxed)
            }
        };
        match event {
            Event::Waiting(before) => send(Reply::Progress(json!({ "event": "waiting", "before": before }))),
            Event::Open(_) => {}
            Event::Begin(step) => send(Reply::Progress(json!({
                "event": "step", "name": step.name, "keeps": step.positions.0, "adds": step.positions.1,
                "rounds": step.cost.rounds,
                "bytes": parties.iter().zip(step.cost.bytes).map(|(party, bytes)| (party.name(), bytes))
                    .collect::<std::collections::BTreeMap<_, _>>(),
            }))),
            Event::Step(step, seconds) => {
                send(Reply::Progress(json!({ "event": "stepped", "name": step.name, "seconds": seconds })));
            }
            Event::Token(token) => {
                send(Reply::Token(token));
                if let Some(stream) = stream.as_mut().filter(|_| !ends.contains(&token)) {
                    send(Reply::Text(stream.push(token)?));
                    if stream.has_stopped() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            Event::End(result) => {
                let rest = match (&mut stream, result) {
                    (Some(stream), Ok(_)) => stream.finish(),
                    _ => Ok(String::new()),
                };
                match rest {
                    Ok(rest) => {
                        send(Reply::Text(rest));
                        send(Reply::End(result.clone()));
                    }
                    Err(error) => send(Reply::End(Err(error))),
                }
            }
        }
        let is_over = cancelled.load(Ordering::Relaxed);
        Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    Job { tokens, count, stop: stop_tokens, choosing, listen: Box::new(listen) }
}

fn infer(with: &Resources, inputs: Vec<Array>) -> Result<(Vec<Array>, ombra_runtime::app::Report)> {
    let inputs = inputs.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let Opened { folder, access, isolation, .. } = &with.opened;
    let task = Prepared::new(folder, Task::Infer { inputs }, &access.allow_public)?;
    let session = with.connection.endpoint.open(Purpose::Run)?;
    session.wait_for_turn(&mut |_| {})?;
    let mut on_token = |_: usize, _: i64| Ok(ControlFlow::Continue(()));
    let options = client::Options {
        dealt: None,
        products: with.opened.products.clone(),
        keep_steps: false,
        isolation: isolation.as_ref(),
        on_token: &mut on_token,
    };
    let outcome = client::run(folder, &session, task, options)?;
    let mut report = client::report(folder, &with.opened.products, access.network.clone());
    report.add(&outcome);
    report.check_costs()?;
    Ok((outcome.outputs.into_iter().map(array).collect(), report))
}

fn tensor((name, dtype, shape, bytes): Array) -> Result<Named> {
    let wrong = |what: &str| Diagnostic::input("E1006", format!("the input `{}` {what}", name.escape_debug()));
    let data = match &*dtype {
        "float32" => Data::F32(words(&bytes).ok_or_else(|| wrong("is not whole"))?.map(f32::from_le_bytes).collect()),
        "int64" => Data::I64(words(&bytes).ok_or_else(|| wrong("is not whole"))?.map(i64::from_le_bytes).collect()),
        "bool" => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
        _ => return Err(wrong("has another element type").note("expected  float32, int64 or bool")),
    };
    Ok((name, Tensor::new(shape, data)?))
}

/// Elements of `N` bytes each.
fn words<const N: usize>(bytes: &[u8]) -> Option<impl Iterator<Item = [u8; N]> + '_> {
    let (words, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then(|| words.iter().copied())
}

fn array((name, tensor): Named) -> Array {
    let (shape, data) = tensor.into_parts();
    let (dtype, bytes) = match data {
        Data::F32(values) => ("float32", values.into_iter().flat_map(f32::to_le_bytes).collect()),
        Data::I64(values) => ("int64", values.into_iter().flat_map(i64::to_le_bytes).collect()),
        Data::Bool(values) => ("bool", values.into_iter().map(u8::from).collect()),
    };
    (name, dtype.to_owned(), shape, bytes)
}
