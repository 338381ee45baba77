//! Numbers of a serving party, in Prometheus' text format: counts, sizes and times, no names and nothing of any data.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::app::session::Measured;

/// One label with a value of the program's own.
type Label = Vec<(&'static str, &'static str)>;

/// What a party has counted since it started.
pub(super) struct Metrics {
    registry: Registry,
    sessions: Family<Label, Counter>,
    failures: Family<Label, Counter>,
    refusals: Family<Label, Counter>,
    steps: Counter,
    bytes: Counter,
    rounds: Counter,
    seconds: Histogram,
    sharings: Counter,
    held: Gauge,
    open: Gauge,
    waiting: Gauge,
    reserved: Gauge,
    budget: Gauge,
    resident: Gauge<u64, AtomicU64>,
    ready: Gauge,
}

/// What holds at the moment.
pub(super) struct Now {
    pub open: u32,
    pub waiting: usize,
    pub reserved: u64,
    pub budget: u64,
    pub sharings: usize,
    pub resident: u64,
    pub ready: bool,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("ombra");
        let (sessions, failures, refusals) = (Family::default(), Family::default(), Family::default());
        let [steps, bytes, rounds, sharings] = [(); 4].map(|()| Counter::default());
        let seconds = Histogram::new(exponential_buckets(0.01, 2.0, 16));
        let [open, waiting, reserved, budget, ready, held] = [(); 6].map(|()| Gauge::default());
        let resident = Gauge::default();
        registry.register("sessions", "Sessions that have ended, by outcome", sessions.clone());
        registry.register("session_failures", "Sessions that failed, by code of the error", failures.clone());
        registry.register("refusals", "Connections and sessions that were refused, by code", refusals.clone());
        registry.register("steps", "Steps that were run: one for the prompt, one a token", steps.clone());
        registry.register("sent_bytes", "Payload bytes that this party sent", bytes.clone());
        registry.register("rounds", "Depth of the messages of all steps", rounds.clone());
        registry.register("step_seconds", "Time of a step", seconds.clone());
        registry.register("sharings", "Sharings of the weights that were made", sharings.clone());
        registry.register("sharings_held", "Sharings of the weights that are in memory", held.clone());
        registry.register("sessions_open", "Sessions that are served", open.clone());
        registry.register("sessions_waiting", "Sessions that wait to be served", waiting.clone());
        registry.register("memory_reserved_bytes", "Memory that open sessions may take", reserved.clone());
        registry.register("memory_budget_bytes", "Memory that all sessions may take together", budget.clone());
        registry.register("resident_bytes", "Memory of the process", resident.clone());
        registry.register("ready", "Whether a client would be served", ready.clone());
        Metrics {
            registry,
            sessions,
            failures,
            refusals,
            steps,
            bytes,
            rounds,
            seconds,
            sharings,
            held,
            open,
            waiting,
            reserved,
            budget,
            resident,
            ready,
        }
    }

    /// Counts a phase: of `steps` steps, one or none.
    pub(super) fn phase(&self, steps: usize, measured: Measured) {
        self.steps.inc_by(steps as u64);
        self.bytes.inc_by(measured.bytes);
        self.rounds.inc_by(measured.depth.into());
        if steps > 0 {
            self.seconds.observe(measured.seconds);
        }
    }

    /// Counts a session that has ended, well or with the code of an error.
    pub(super) fn ended(&self, code: Option<&'static str>) {
        let outcome = if code.is_none() { "finished" } else { "failed" };
        self.sessions.get_or_create(&vec![("outcome", outcome)]).inc();
        if let Some(code) = code {
            self.failures.get_or_create(&vec![("code", code)]).inc();
        }
    }

    /// Counts what was refused with the code of an error.
    pub(super) fn refused(&self, code: &'static str) {
        self.refusals.get_or_create(&vec![("code", code)]).inc();
    }

    /// Counts a sharing of the weights.
    pub(super) fn shared(&self) {
        self.sharings.inc();
    }

    /// All numbers as text.
    pub(super) fn text(&self, now: &Now) -> String {
        let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.open.set(now.open.into());
        self.waiting.set(bytes(now.waiting as u64));
        self.held.set(bytes(now.sharings as u64));
        self.reserved.set(bytes(now.reserved));
        self.budget.set(bytes(now.budget));
        self.resident.set(now.resident);
        self.ready.set(now.ready.into());
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
