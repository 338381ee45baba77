//! The queues between a link's threads and the protocol.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::frame::{Message, gone};
use super::party::Party;

/// Locks `mutex`; the data under the locks of this module is valid after every statement, so poison is no obstacle.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condition` until `deadline`, or for long without one.
pub(super) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, T> {
    let long = Duration::from_secs(3600);
    let time = deadline.map_or(long, |deadline| deadline.saturating_duration_since(Instant::now()));
    condition.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

/// Messages of one peer that have arrived and are not asked for yet.
pub(super) struct Inbox {
    state: Mutex<Arrived>,
    changed: Condvar,
    capacity_bytes: u64,
    opened: Instant,
    /// Milliseconds from `opened` to the last byte that arrived.
    last_byte_ms: AtomicU64,
}

struct Arrived {
    messages: VecDeque<Message>,
    bytes: u64,
    end: Option<Diagnostic>,
    abandoned: bool,
}

impl Inbox {
    /// An empty queue whose producer waits while it holds more than `capacity_bytes`.
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let state = Arrived { messages: VecDeque::new(), bytes: 0, end: None, abandoned: false };
        Inbox {
            state: Mutex::new(state),
            changed: Condvar::new(),
            capacity_bytes,
            opened: Instant::now(),
            last_byte_ms: AtomicU64::new(0),
        }
    }

    /// Notes that bytes have arrived, so the peer is not silent.
    pub(super) fn note_activity(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte_ms.store(elapsed, Ordering::Relaxed);
    }

    /// Adds a message, after waiting for room. False once the queue has ended or nobody will read it.
    pub(super) fn push(&self, message: Message) -> bool {
        // A message counts for a little more than its payload, so that empty ones fill the queue too.
        let bytes = (message.frame.payload.len() as u64).saturating_add(64);
        let mut state = lock(&self.state);
        while !state.abandoned && state.bytes > 0 && state.bytes.saturating_add(bytes) > self.capacity_bytes {
            state = wait(&self.changed, state, None);
        }
        if state.abandoned || state.end.is_some() {
            return false;
        }
        state.bytes = state.bytes.saturating_add(bytes);
        state.messages.push_back(message);
        drop(state);
        self.note_activity();
        self.changed.notify_all();
        true
    }

    /// Ends the queue: after the messages already in it, every read gives `reason`. The first reason stays.
    pub(super) fn end(&self, reason: Diagnostic) {
        lock(&self.state).end.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Tells the producer that nobody reads any more, and drops what was queued.
    pub(super) fn abandon(&self) {
        let mut state = lock(&self.state);
        state.abandoned = true;
        state.messages.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// The reason why the queue has ended, waiting for it at most `time`.
    pub(super) fn end_reason(&self, time: Duration) -> Option<Diagnostic> {
        let deadline = Instant::now() + time;
        let mut state = lock(&self.state);
        while state.end.is_none() && Instant::now() < deadline {
            state = wait(&self.changed, state, Some(deadline));
        }
        state.end.clone()
    }

    /// The next message of `peer`. Fails when the queue has ended, or when no byte arrived for `limit`.
    pub(super) fn pop(&self, peer: Party, limit: Duration) -> Result<Message> {
        let called = Instant::now();
        let mut state = lock(&self.state);
        loop {
            if let Some(message) = state.messages.pop_front() {
                state.bytes = state.bytes.saturating_sub((message.frame.payload.len() as u64).saturating_add(64));
                drop(state);
                self.changed.notify_all();
                return Ok(message);
            }
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            let last_byte = self.opened + Duration::from_millis(self.last_byte_ms.load(Ordering::Relaxed));
            let deadline = called.max(last_byte) + limit;
            if Instant::now() >= deadline {
                return Err(silent(peer, limit));
            }
            state = wait(&self.changed, state, Some(deadline));
        }
    }
}

fn silent(peer: Party, limit: Duration) -> Diagnostic {
    Diagnostic::peer("E0702", format!("{peer} was silent for {} s", limit.as_secs_f64()))
        .note("expected  a frame")
        .note("help      raise limits.receive_s in this party's configuration if the peer is busy computing")
}

/// Messages of the protocol that the writer thread has not sent yet.
///
/// It has no bound: a party that waits here for a peer which itself waits to send would never end. What a party can send
/// before it must receive is bounded by the plan.
pub(super) struct Outbox {
    state: Mutex<Leaving>,
    changed: Condvar,
    /// Bytes the writer has given to the socket.
    written: AtomicU64,
}

struct Leaving {
    messages: VecDeque<(Instant, Message)>,
    closed: bool,
    killed: bool,
    done: bool,
    error: Option<Diagnostic>,
}

impl Outbox {
    /// An empty queue.
    pub(super) fn new() -> Self {
        let state = Leaving { messages: VecDeque::new(), closed: false, killed: false, done: false, error: None };
        Outbox { state: Mutex::new(state), changed: Condvar::new(), written: AtomicU64::new(0) }
    }

    /// Adds a message, or gives the error that ended the writer.
    pub(super) fn push(&self, peer: Party, message: Message) -> Result<()> {
        let mut state = lock(&self.state);
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if state.closed || state.done {
            return Err(gone(peer));
        }
        state.messages.push_back((Instant::now(), message));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the payloads that are queued have at most `limit` bytes, or until the writer has ended.
    pub(super) fn wait_for_room(&self, limit: u64) {
        let queued =
            |state: &Leaving| state.messages.iter().map(|(_, message)| message.frame.payload.len() as u64).sum::<u64>();
        let mut state = lock(&self.state);
        while !state.done && !state.killed && queued(&state) > limit {
            state = wait(&self.changed, state, None);
        }
    }

    /// Drops what is queued, adds `last` and closes the queue.
    pub(super) fn replace_by(&self, last: Message) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.messages.clear();
            state.messages.push_back((Instant::now(), last));
            state.closed = true;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Lets the writer send what is queued and then end.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Lets the writer end at once.
    pub(super) fn kill(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.killed = true;
        drop(state);
        self.changed.notify_all();
    }

    /// The next message and when it was enqueued; `None` when the writer is to end.
    pub(super) fn pop(&self) -> Option<(Instant, Message)> {
        let mut state = lock(&self.state);
        loop {
            if state.killed {
                return None;
            }
            if let Some(entry) = state.messages.pop_front() {
                drop(state);
                self.changed.notify_all();
                return Some(entry);
            }
            if state.closed {
                return None;
            }
            state = wait(&self.changed, state, None);
        }
    }

    /// Sleeps until `due`. False when the writer is to end at once.
    pub(super) fn sleep_until(&self, due: Instant) -> bool {
        // Waking up takes tens of microseconds: the rest is spent spinning.
        const SPIN: Duration = Duration::from_micros(60);
        let mut state = lock(&self.state);
        while !state.killed && Instant::now() + SPIN < due {
            state = wait(&self.changed, state, Some(due - SPIN));
        }
        let killed = state.killed;
        drop(state);
        while !killed && Instant::now() < due {
            std::hint::spin_loop();
        }
        !killed
    }

    /// Notes that `bytes` were given to the socket.
    pub(super) fn note_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the writer has ended, with `error` if it failed.
    pub(super) fn finish(&self, error: Option<Diagnostic>) {
        let mut state = lock(&self.state);
        state.done = true;
        state.error = error;
        state.messages.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the writer has ended, for as long as it writes something within every `idle` period.
    pub(super) fn wait_done(&self, idle: Duration) -> bool {
        let mut seen = self.written.load(Ordering::Relaxed);
        let mut deadline = Instant::now() + idle;
        let mut state = lock(&self.state);
        while !state.done {
            if Instant::now() >= deadline {
                let written = self.written.load(Ordering::Relaxed);
                if written == seen {
                    return false;
                }
                seen = written;
                deadline = Instant::now() + idle;
            }
            state = wait(&self.changed, state, Some(deadline));
        }
        true
    }
}
