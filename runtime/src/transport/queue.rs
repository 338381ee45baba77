//! The queues between a link's threads and the protocol.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::frame::{Message, gone};
use super::party::Party;
use super::watch::Watch;

/// Bytes that a link may hold while its session waits to be served: what honest peers send before their turn is less.
const WAITING_BYTES: u64 = 64 << 10;
/// A peer that says how many are served before this session may be silent for this long between two such words.
const ANNOUNCED: Duration = Duration::from_secs(30);
/// When another link has failed, time for this one to tell its own reason, which says more.
const GRACE: Duration = Duration::from_millis(100);

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

/// How long a message may take.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// As long as its peer is not silent for this long.
    Silence(Duration),
    /// This long, whatever else its peer sends.
    Time(Duration),
}

/// Messages of one peer that have arrived and are not asked for yet.
pub(super) struct Inbox {
    /// The capacity may not be more.
    most: u64,
    state: Mutex<Arrived>,
    changed: Condvar,
    watch: Arc<Watch>,
    opened: Instant,
    /// Milliseconds from `opened` to the last byte that arrived.
    last_byte_ms: AtomicU64,
}

struct Arrived {
    messages: VecDeque<Message>,
    bytes: u64,
    /// Most bytes that are queued, and of one message. What is longer waits for more room.
    capacity: u64,
    /// The length of the message that waits for room, where it is more than the capacity.
    blocked: Option<u64>,
    end: Option<Diagnostic>,
    abandoned: bool,
    /// How many sessions the peer serves before this one, once it has said so.
    turn: Option<u32>,
    /// Whom the peer waits for, as it said last.
    awaited: Option<Party>,
}

impl Inbox {
    /// An empty queue whose producer waits while it holds more than `capacity_bytes`, or far less until the session that is
    /// `waiting` is served. When it ends, the session that `watch` belongs to has failed.
    pub(super) fn new(capacity_bytes: u64, waiting: bool, watch: Arc<Watch>) -> Self {
        let state = Arrived {
            messages: VecDeque::new(),
            bytes: 0,
            capacity: if waiting { WAITING_BYTES.min(capacity_bytes) } else { capacity_bytes },
            blocked: None,
            end: None,
            abandoned: false,
            turn: None,
            awaited: None,
        };
        Inbox {
            most: capacity_bytes,
            state: Mutex::new(state),
            changed: Condvar::new(),
            watch,
            opened: Instant::now(),
            last_byte_ms: AtomicU64::new(0),
        }
    }

    /// Notes that bytes have arrived, so the peer is not silent.
    pub(super) fn note_activity(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte_ms.store(elapsed, Ordering::Relaxed);
    }

    /// Whether bytes have arrived in the last `time`.
    pub(super) fn has_heard(&self, time: Duration) -> bool {
        self.last_byte().elapsed() < time
    }

    fn last_byte(&self) -> Instant {
        self.opened + Duration::from_millis(self.last_byte_ms.load(Ordering::Relaxed))
    }

    /// Waits for room for a message of `length` bytes. False once the queue has ended or nobody will read it.
    pub(super) fn wait_for_room(&self, length: u64) -> bool {
        let bytes = counted(length);
        let mut state = lock(&self.state);
        loop {
            if state.abandoned || state.end.is_some() {
                return false;
            }
            if length > state.capacity {
                // Whoever waits for a message sees that it is not this one.
                if state.blocked.replace(length).is_none() {
                    self.changed.notify_all();
                }
            } else {
                state.blocked = None;
                if state.bytes == 0 || state.bytes.saturating_add(bytes) <= state.capacity {
                    return true;
                }
            }
            state = wait(&self.changed, state, None);
        }
    }

    /// Adds a message. False once the queue has ended or nobody will read it.
    pub(super) fn push(&self, message: Message) -> bool {
        let mut state = lock(&self.state);
        if state.abandoned || state.end.is_some() {
            return false;
        }
        state.bytes = state.bytes.saturating_add(counted(message.frame.payload.len() as u64));
        state.messages.push_back(message);
        state.awaited = None;
        drop(state);
        self.note_activity();
        self.changed.notify_all();
        true
    }

    /// Ends the queue: after the messages already in it, every read gives `reason`. The first reason stays. The session
    /// has failed with it.
    pub(super) fn end(&self, reason: Diagnostic) {
        if self.finish(reason.clone()) {
            self.watch.fail(&reason);
        }
    }

    /// Ends the queue as [`end`](Self::end) does, of a peer that has done its part: the session goes on without it. False
    /// when the queue had ended before.
    pub(super) fn finish(&self, reason: Diagnostic) -> bool {
        let mut state = lock(&self.state);
        let first = state.end.is_none();
        state.end.get_or_insert(reason);
        drop(state);
        self.changed.notify_all();
        first
    }

    /// Wakes whoever waits here.
    pub(super) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Lets at most `bytes` be queued from now on, and in one message.
    pub(super) fn limit(&self, bytes: u64) {
        let mut state = lock(&self.state);
        state.capacity = bytes.min(self.most);
        state.blocked = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Notes that the peer serves `before` sessions before this one.
    pub(super) fn set_turn(&self, before: u32) {
        lock(&self.state).turn = Some(before);
        self.note_activity();
        self.changed.notify_all();
    }

    /// Notes whom `peer` waits for. A client that only waits holds its session no longer than one that says nothing, but in
    /// a step, in which it may have to.
    pub(super) fn set_awaited(&self, peer: Party, awaited: Option<Party>) {
        lock(&self.state).awaited = awaited;
        if peer != Party::Client || self.watch.is_stepping() {
            self.note_activity();
        }
        self.changed.notify_all();
    }

    /// Whether the peer has said that it serves this session now, or has begun to.
    pub(super) fn is_served(&self) -> bool {
        let state = lock(&self.state);
        state.turn == Some(0) || !state.messages.is_empty()
    }

    /// Bytes that are queued.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.state).bytes
    }

    /// Waits until `peer` serves this session. `told` hears how many it serves before, whenever that changes.
    ///
    /// Fails when the queue or the session has ended, or when nothing was heard for `limit`.
    pub(super) fn wait_for_turn(&self, peer: Party, limit: Duration, told: &mut dyn FnMut(u32)) -> Result<()> {
        let called = Instant::now();
        let mut known = None;
        loop {
            let mut state = lock(&self.state);
            if state.turn == Some(0) || !state.messages.is_empty() {
                return Ok(());
            }
            if let Some(end) = state.end.as_ref().or(self.watch.failure()) {
                return Err(end.clone());
            }
            if state.turn != known {
                known = state.turn;
                drop(state);
                known.into_iter().for_each(&mut *told);
                continue;
            }
            let deadline = self.deadline(&state, called, limit);
            if Instant::now() >= deadline {
                return Err(silent(peer, None, limit));
            }
            state = wait(&self.changed, state, Some(deadline));
            drop(state);
        }
    }

    /// When a peer that says nothing more has been silent for too long.
    fn deadline(&self, state: &Arrived, called: Instant, limit: Duration) -> Instant {
        let limit = if state.turn.is_some_and(|before| before > 0) { limit.max(ANNOUNCED) } else { limit };
        called.max(self.last_byte()) + limit
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

    /// The next message of `peer`. Fails when the queue or the session has ended, or when `patience` is over.
    pub(super) fn pop(&self, peer: Party, patience: Patience) -> Result<Message> {
        let (Patience::Silence(limit) | Patience::Time(limit)) = patience;
        let called = Instant::now();
        let mut grace = None;
        // As long as the wait lasts, the others hear of it again and again.
        let mut tell = called + limit / 2;
        let mut state = lock(&self.state);
        loop {
            if let Some(message) = state.messages.pop_front() {
                state.bytes = state.bytes.saturating_sub(counted(message.frame.payload.len() as u64));
                drop(state);
                self.changed.notify_all();
                return Ok(message);
            }
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            if let Some(length) = state.blocked {
                return Err(too_long(peer, state.capacity, length));
            }
            let now = Instant::now();
            if let Some(failure) = self.watch.failure() {
                let until = *grace.get_or_insert(now + GRACE);
                if now >= until {
                    return Err(failure.clone());
                }
                state = wait(&self.changed, state, Some(until));
                continue;
            }
            let deadline = match patience {
                Patience::Silence(_) => self.deadline(&state, called, limit),
                Patience::Time(_) => called + limit,
            };
            if now >= deadline {
                return Err(match patience {
                    Patience::Silence(_) => silent(peer, state.awaited, limit),
                    Patience::Time(_) => too_late(peer, limit),
                });
            }
            if now >= tell {
                tell = now + limit / 2;
                drop(state);
                self.watch.tell_waiting(peer);
                state = lock(&self.state);
                continue;
            }
            state = wait(&self.changed, state, Some(deadline.min(tell)));
        }
    }
}

/// What a message counts for: a little more than its payload, so that empty ones fill the queue too.
fn counted(length: u64) -> u64 {
    length.saturating_add(64)
}

fn too_long(peer: Party, capacity: u64, length: u64) -> Diagnostic {
    Diagnostic::peer("E0704", format!("frame from {peer} is too long"))
        .note(format!("expected  at most {capacity} bytes, as its session stands"))
        .note(format!("found     {length} bytes"))
}

fn too_late(peer: Party, limit: Duration) -> Diagnostic {
    Diagnostic::peer("E0702", format!("{peer} did not go on in {} s", limit.as_secs_f64()))
        .note("expected  its request, or its next step")
        .note(
            "help      raise limits.connect_s or limits.idle_s in this party's configuration if the peer needs longer",
        )
}

fn silent(peer: Party, awaited: Option<Party>, limit: Duration) -> Diagnostic {
    let seconds = limit.as_secs_f64();
    let error = match awaited.filter(|awaited| *awaited != peer) {
        Some(awaited) => Diagnostic::peer("E0702", format!("nothing came for {seconds} s: {peer} waits for {awaited}"))
            .note(format!("help      see whether {awaited} hangs, or is cut off from {peer}")),
        None => Diagnostic::peer("E0702", format!("{peer} was silent for {seconds} s")),
    };
    error
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
    watch: Arc<Watch>,
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
    /// An empty queue of a link of the session that `watch` belongs to.
    pub(super) fn new(watch: Arc<Watch>) -> Self {
        let state = Leaving { messages: VecDeque::new(), closed: false, killed: false, done: false, error: None };
        Outbox { state: Mutex::new(state), changed: Condvar::new(), watch, written: AtomicU64::new(0) }
    }

    /// Wakes whoever waits here.
    pub(super) fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
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

    /// Waits until the payloads that are queued have at most `limit` bytes, or until the writer or the session has ended.
    pub(super) fn wait_for_room(&self, limit: u64) {
        let queued =
            |state: &Leaving| state.messages.iter().map(|(_, message)| message.frame.payload.len() as u64).sum::<u64>();
        let mut state = lock(&self.state);
        while !state.done && !state.killed && self.watch.failure().is_none() && queued(&state) > limit {
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
