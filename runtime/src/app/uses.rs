//! Which sessions use which sharing of the weights, and for how long those may go on that use an old one.
//!
//! A sharing that another one has replaced stays in memory as long as a session uses it, and a client can keep a session.
//! So such sessions have a time, and there is one old sharing at most beside the current one: sessions with it end before
//! another one is made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use crate::settings::weights::Weights;
use crate::transport::{Ending, Session};

/// Time for sessions to end that were told to.
const ENDING: Duration = Duration::from_secs(10);
/// How often it is looked at whether they have.
const POLL: Duration = Duration::from_millis(20);

/// The users of sharings that are or were in use.
#[derive(Default)]
pub(super) struct Uses {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: Vec<(Ending, Weak<Weights>)>,
    /// Sharings that were replaced, the oldest first, and when.
    old: Vec<(Instant, Weak<Weights>)>,
}

impl Uses {
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sessions.retain(|(_, weights)| weights.strong_count() > 0);
        state.old.retain(|(_, weights)| weights.strong_count() > 0);
        state
    }

    /// Notes that `session` uses `weights`.
    pub fn add(&self, session: &Session, weights: &Arc<Weights>) {
        self.lock().sessions.push((session.ending(), Arc::downgrade(weights)));
    }

    /// Notes that later sessions will use other weights.
    pub fn replaced(&self, weights: &Arc<Weights>) {
        self.lock().old.push((Instant::now(), Arc::downgrade(weights)));
    }

    /// How many old sharings are in memory.
    pub fn held(&self) -> usize {
        self.lock().old.len()
    }

    /// Whether a session with an old sharing has not had its time yet.
    pub fn go_on(&self, grace: Duration) -> bool {
        self.lock().old.iter().any(|(since, _)| since.elapsed() < grace)
    }

    /// Ends sessions whose sharing was replaced `grace` ago, or was not the last one that was.
    pub fn end_late(&self, grace: Duration) {
        let state = self.lock();
        let last = state.old.len().saturating_sub(1);
        let late = state.old.iter().enumerate().filter(|(at, (since, _))| *at < last || since.elapsed() >= grace);
        late.for_each(|(_, (_, weights))| state.end(weights));
    }

    /// Ends all sessions with an old sharing, and waits until nothing of it is left.
    ///
    /// # Errors
    /// `E1035` if they do not end in time.
    pub fn clear(&self) -> Result<()> {
        let until = Instant::now() + ENDING;
        loop {
            let state = self.lock();
            if state.old.is_empty() {
                return Ok(());
            }
            state.old.iter().for_each(|(_, weights)| state.end(weights));
            drop(state);
            if Instant::now() >= until {
                return Err(Diagnostic::peer(
                    "E1035",
                    "sessions with an old sharing of the weights have not ended yet",
                )
                .note(format!("expected  their end in {} s", ENDING.as_secs()))
                .note("help      try again later"));
            }
            thread::sleep(POLL);
        }
    }
}

impl State {
    fn end(&self, weights: &Weak<Weights>) {
        let users = self.sessions.iter().filter(|(_, used)| used.ptr_eq(weights));
        users.for_each(|(ending, _)| {
            ending.end(
                &Diagnostic::peer("E1035", "the weights were shared anew, and sessions with the old sharing are over")
                    .note("help      open a new session; service.renew_grace_s says how long an old one may go on"),
            );
        });
    }
}
