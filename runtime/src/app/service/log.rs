//! What a serving party says of its work: a line for every event on standard error, as text or as JSON.
//!
//! A line names the session by the first digits of its id, the client by its file's name or the first digits of its
//! fingerprint, and errors by their code. No line holds a key, a share, a token or a text of a client's. What peers and
//! plans wrote is made fit to be printed. Peers can make a party speak: when they do so too often, lines are left out and
//! counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ombra_ir::Diagnostic;
use ombra_ir::diag::printable;
use tracing::{Level, error, info, warn};

use crate::transport::{Limiter, Party, Session};

/// Lines that may come at once, and the time after which there may be one more.
const BURST: u32 = 512;
const REFILL: Duration = Duration::from_millis(100);
/// Digits of a session's id that are shown: all of them would let a reader of the log take part in forming it.
const ID_DIGITS: usize = 8;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log of one party.
pub struct Log {
    party: Party,
    limiter: Mutex<Limiter>,
}

impl Log {
    /// Sets the process's log up, once; with `errors_only` nothing is said of what goes well.
    pub fn start(party: Party, format: Format, errors_only: bool) -> Log {
        let level = if errors_only { Level::WARN } else { Level::INFO };
        let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
        // A second one in a process, as in tests, goes on with the first.
        let _ = match format {
            Format::Text => lines.with_ansi(false).try_init(),
            Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        };
        Log { party, limiter: Mutex::new(Limiter::new(BURST, REFILL)) }
    }

    /// Says `message`.
    pub fn note(&self, message: &str) {
        if self.admits() {
            info!(party = self.party.name(), "{}", printable(message));
        }
    }

    /// Says `message` of a session.
    pub fn session(&self, session: &Session, message: &str) {
        if self.admits() {
            let (id, client) = names(session);
            info!(party = self.party.name(), session = id, client, "{}", printable(message));
        }
    }

    /// Says that a session failed.
    pub fn failure(&self, session: &Session, cause: &Diagnostic) {
        if self.admits() {
            let (id, client) = names(session);
            let (place, notes) = details(cause);
            let message = printable(&cause.message);
            warn!(party = self.party.name(), session = id, client, code = cause.code, place, notes, "{message}");
        }
    }

    /// Says what went wrong outside of a session.
    pub fn complaint(&self, cause: &Diagnostic) {
        if self.admits() {
            let (place, notes) = details(cause);
            let message = printable(&cause.message);
            error!(party = self.party.name(), code = cause.code, place, notes, "{message}");
        }
    }

    fn admits(&self) -> bool {
        let admitted = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        if let Some(left_out @ 1..) = admitted {
            warn!(party = self.party.name(), left_out, "lines were left out");
        }
        admitted.is_some()
    }
}

/// The first digits of a session's id, and its client.
fn names(session: &Session) -> (String, String) {
    let id = session.id().to_string().chars().take(ID_DIGITS).collect();
    (id, session.client().map(|client| client.name.clone()).unwrap_or_default())
}

/// Place and notes of an error, each in one line.
fn details(cause: &Diagnostic) -> (String, String) {
    let notes = cause.notes.iter().map(|note| printable(&note.split_whitespace().collect::<Vec<_>>().join(" ")));
    (printable(cause.place.as_deref().unwrap_or_default()), notes.collect::<Vec<_>>().join("; "))
}
