//! The client's gateway: an HTTP server on the client's own machine with the forms of OpenAI's API, and a page to chat and to
//! watch a token being made.
//!
//! ```text
//!  HTTP ─ guard ─ openai ─┬─ queue ─ session thread ─ talk ─ server, helper
//!         page, status ───┴─ pool
//! ```
//!
//! One thread answers HTTP. Texts are continued by the threads of [`pool`], each over a session of its own. Whoever hangs up
//! is noticed there at the next token, or in the queue before.
//!
//! Asked to end, by SIGTERM or SIGINT, it accepts no connection any more, gives answers under way some time, and ends its
//! sessions; a second signal ends the process at once.
//!
//! Prompts and answers are written nowhere: not to logs, not into errors, not into the status.

mod guard;
mod http;
mod openai;
mod pool;
mod refusal;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ombra_ir::{Diagnostic, Result};

use super::access::{Access, Model, no_text};
use super::client::{check_generation, max_positions};
use super::command::print;
use super::consent::check_shown;
use super::http::{Http, LIMITS};
use super::local::READY;
use super::request::{MAX_STEPS, Request};
use super::service::signals;
use super::settings::Settings;
use super::template::Message;
use guard::Guard;
use pool::{Pool, Resources};

/// Most sessions of one gateway.
const MAX_SESSIONS: usize = 64;
/// Most requests that may wait.
const MAX_QUEUE: usize = 1024;
/// Time for sessions to end once no answer is under way any more, or given up.
const FAREWELL: Duration = Duration::from_secs(5);

/// A gateway of the client.
pub struct Gateway {
    /// The plan and the other parties.
    pub access: Access,
    /// Where it answers.
    pub listen: SocketAddr,
    /// Whether that may be an address that other machines reach.
    pub allow_remote: bool,
    /// Whether callers from there need no key.
    pub allow_anyone: bool,
    /// Names that it may be called by, beside those of this machine.
    pub hosts: Vec<String>,
    /// A file with a key that callers must have.
    pub api_key_file: Option<PathBuf>,
    /// What the model is called.
    pub model_name: String,
    /// Most sessions side by side.
    pub sessions: usize,
    /// Most requests that wait for a session.
    pub queue: usize,
    /// How long a session without work stays open.
    pub idle: Duration,
    /// Whether the most probable token is chosen, whatever requests say of drawing one.
    pub ignore_temperature: bool,
    /// Tokens that end an answer, beside those that the model names.
    pub stop_tokens: Vec<i64>,
}

/// What requests are answered with.
struct Shared {
    guard: Guard,
    pool: Pool,
    with: Resources,
    settings: Settings,
    /// Whether the model has a template for chats that can be used.
    has_chat: bool,
    /// What the model is called.
    name: String,
    fingerprint: String,
    /// When the gateway began, in seconds since 1970.
    created: u64,
    ignore_temperature: bool,
    /// Set when the process was asked to end.
    asked: Arc<AtomicBool>,
}

/// Answers requests until the process is asked to end. Says on standard output where, once it does.
///
/// # Errors
/// What keeps it from beginning: `E1040`, and those of the plan and of the parties on this machine.
pub fn run(gateway: &Gateway) -> Result<()> {
    check(gateway)?;
    let opened = gateway.access.open()?;
    let plan = &opened.folder.plan;
    check_generation(plan, &[vec![0]], 1)?;
    let request = Request::text(max_positions(plan).unwrap_or(MAX_STEPS));
    check_shown(plan, &request, &gateway.access.allow_public)?;
    let Model { settings, text, end_tokens } = opened.model(true, &gateway.stop_tokens)?;
    let hello = Message { role: "user".to_owned(), content: "Hello".to_owned() };
    let text = text.ok_or_else(no_text)?;
    let has_chat = text.chat_tokens(&settings, &[hello]).is_ok();
    let (http, address) = listen(gateway.listen)?;
    let guard = Guard::new(address, gateway.api_key_file.as_deref(), &gateway.hosts)?;
    let asked = signals()?;
    let connection = opened.connect()?;
    let shared = Arc::new(Shared {
        guard,
        pool: Pool::new(gateway.sessions, gateway.queue),
        has_chat,
        name: gateway.model_name.clone(),
        fingerprint: format!("fp_{}", opened.folder.digest.get(..12).unwrap_or_default()),
        created: seconds_since_1970(),
        ignore_temperature: gateway.ignore_temperature,
        asked,
        settings,
        with: Resources { opened, text, end_tokens, connection, idle: gateway.idle },
    });
    let mut sessions = Vec::new();
    for slot in 0..gateway.sessions {
        let shared = Arc::clone(&shared);
        let work = move || pool::serve(&shared.pool, slot, &shared.with);
        sessions.push(thread::Builder::new().name(format!("session {slot}")).spawn(work).map_err(cannot_listen)?);
    }
    print(&format!("{READY} at http://{address}/\n"))?;
    let is_over = || shared.asked.load(Ordering::Relaxed);
    http.serve(http::routes(Arc::clone(&shared)), LIMITS, &is_over).map_err(cannot_listen)?;
    shared.pool.end();
    let until = Instant::now() + FAREWELL;
    while !sessions.iter().all(thread::JoinHandle::is_finished) && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Checks the options.
fn check(gateway: &Gateway) -> Result<()> {
    let wrong = |message: &str, expected: String| {
        Err(Diagnostic::input("E1040", message).note(format!("expected  {expected}")))
    };
    if !gateway.listen.ip().is_loopback() && !gateway.allow_remote {
        return wrong("other machines could reach this address", "127.0.0.1 or [::1], or --allow-remote".to_owned());
    }
    if !gateway.listen.ip().is_loopback() && gateway.api_key_file.is_none() && !gateway.allow_anyone {
        let expected = "--api-key-file, or --allow-anyone where something else keeps others out".to_owned();
        return wrong("whoever reaches this address could use this client", expected);
    }
    if !(1..=MAX_SESSIONS).contains(&gateway.sessions) {
        return wrong("the number of sessions is out of range", format!("--sessions 1 to {MAX_SESSIONS}"));
    }
    if gateway.queue > MAX_QUEUE {
        return wrong("the queue is too long", format!("--queue 0 to {MAX_QUEUE}"));
    }
    if gateway.model_name.is_empty() || gateway.model_name.chars().any(char::is_control) {
        return wrong("the model's name cannot be used", "--model-name with visible characters".to_owned());
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<(Http, SocketAddr)> {
    let failed = |error: std::io::Error| {
        Diagnostic::input("E1040", format!("the gateway cannot listen at {address}: {error}"))
            .note("help      end what uses the address, or give another with --listen")
    };
    let http = Http::bind(address).map_err(failed)?;
    let address = http.address().map_err(failed)?;
    Ok((http, address))
}

fn cannot_listen(error: std::io::Error) -> Diagnostic {
    Diagnostic::internal("E1040", format!("the gateway cannot go on: {error}"))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
