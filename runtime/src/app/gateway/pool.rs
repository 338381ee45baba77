//! The gateway's sessions: a few threads, each with a session of its own that continues texts, and a bounded queue before
//! them.
//!
//! A request goes to the idle session that has the most of its text already. A session that nobody has needed for a while
//! is closed, so that its place at the server is free; its thread opens another one when there is work again.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ombra_ir::draw::Choosing;
use ombra_ir::{Diagnostic, Result};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::refusal::Refusal;
use crate::app::access::{Connection, Opened};
use crate::app::talk::{self, Event, Finish, Job, Step};
use crate::app::text::{Text, TextStream};
use crate::transport::{Meter, Party, Purpose};

/// A text to be continued, and who waits for it.
pub(super) struct Work {
    /// The text.
    pub tokens: Vec<i64>,
    /// Most new tokens.
    pub count: u64,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub choosing: Choosing,
    /// Where the answer goes; closed when the caller hangs up.
    pub replies: UnboundedSender<Reply>,
}

/// A part of an answer.
pub(super) enum Reply {
    /// The session is served.
    Open,
    /// More text.
    Text(String),
    /// The end.
    End(Result<Answer>),
}

/// What an answer was.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// Whether an end token or string ended it; otherwise the number of tokens did.
    pub stopped: bool,
    /// Number of new tokens, an end token too.
    pub tokens: u64,
    /// How many tokens of the text the session had already.
    pub cached: u64,
}

/// All sessions and the queue.
pub(super) struct Pool {
    state: Mutex<State>,
    changed: Condvar,
    most_queued: usize,
}

struct State {
    /// Whether no session is to wait for work any more.
    over: bool,
    queue: VecDeque<Work>,
    slots: Vec<Slot>,
}

/// What is known of one thread.
struct Slot {
    /// Whether it waits for work.
    idle: bool,
    /// The work that it is to do next.
    next: Option<Work>,
    /// The text that its session has, as far as that helps to choose one.
    held: Vec<i64>,
    phase: Phase,
    meter: Option<Arc<Meter>>,
    /// The step under way, and since when.
    step: Option<(Step, Instant)>,
    /// The last job.
    done: Totals,
}

/// What a slot is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has no session.
    Closed,
    /// It opens one.
    Connecting,
    /// The server serves so many others before.
    Waiting(u32),
    /// It has its turn: keys are agreed and weights shared.
    Setup,
    /// A text is being continued.
    Running,
    /// The session waits for a text.
    Idle,
}

/// What the steps of one job have taken so far.
#[derive(Clone, Copy, Default)]
struct Totals {
    steps: u64,
    sent: u64,
    received: u64,
    rounds: u64,
    seconds: f64,
}

/// What all session threads use.
pub(super) struct Resources {
    /// The plan.
    pub opened: Opened,
    /// Its tokenizer.
    pub text: Text,
    /// Tokens that end a text.
    pub end_tokens: BTreeSet<i64>,
    /// The other parties.
    pub connection: Connection,
    /// How long a session without work stays open.
    pub idle: Duration,
}

impl Pool {
    /// A pool of `sessions` threads that are to be started with [`serve`], and room for `most_queued` requests before them.
    pub fn new(sessions: usize, most_queued: usize) -> Pool {
        let slot = || Slot {
            idle: false,
            next: None,
            held: Vec::new(),
            phase: Phase::Closed,
            meter: None,
            step: None,
            done: Totals::default(),
        };
        let state = State { over: false, queue: VecDeque::new(), slots: (0..sessions).map(|_| slot()).collect() };
        Pool { state: Mutex::new(state), changed: Condvar::new(), most_queued }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives work to a session or queues it. Work comes back when the queue is full.
    pub fn submit(&self, work: Work) -> std::result::Result<(), Work> {
        let mut state = self.lock();
        state.queue.retain(|work| !work.replies.is_closed());
        let is_full = state.queue.len() >= self.most_queued;
        match state.best(&work) {
            Some(slot) => slot.next = Some(work),
            None if is_full => return Err(work),
            None => state.queue.push_back(work),
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Lets every session end as soon as there is no work left.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits for work of a slot, at most for as long as `limit` says, and not where all is over.
    fn take(&self, slot: usize, limit: Option<Duration>) -> Option<Work> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut state = self.lock();
        loop {
            let over = state.over;
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let work = state.slots.get_mut(slot)?.next.take().or_else(|| state.queue.pop_front());
            let own = state.slots.get_mut(slot)?;
            own.idle = work.is_none() && left != Some(Duration::ZERO) && !over;
            match work {
                // Nobody waits for it any more.
                Some(work) if work.replies.is_closed() => continue,
                Some(work) => return Some(work),
                None if !own.idle => return None,
                None => {}
            }
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn change(&self, slot: usize, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.lock().slots.get_mut(slot) {
            change(slot);
        }
    }

    /// What all sessions are doing: phases, and bytes and rounds of the step under way beside what the plan says of it.
    pub fn status(&self) -> Value {
        let state = self.lock();
        json!({ "queued": state.queue.len(), "sessions": state.slots.iter().map(Slot::status).collect::<Vec<_>>() })
    }
}

impl State {
    /// The idle slot for a text: one whose session would keep half of what it has or more, or one without a session, or
    /// the one that has most of the text.
    fn best(&mut self, work: &Work) -> Option<&mut Slot> {
        let rank = |slot: &Slot| {
            let common = slot.held.iter().zip(&work.tokens).take_while(|(held, token)| held == token).count();
            let keeps = common > 0 && 2 * common >= slot.held.len();
            (keeps, slot.held.is_empty(), common)
        };
        let idle = self.slots.iter_mut().filter(|slot| slot.idle && slot.next.is_none());
        idle.max_by_key(|slot| rank(slot))
    }
}

impl Slot {
    fn status(&self) -> Value {
        let (phase, before) = match self.phase {
            Phase::Closed => ("closed", 0),
            Phase::Connecting => ("connecting", 0),
            Phase::Waiting(before) => ("waiting", before),
            Phase::Setup => ("setup", 0),
            Phase::Running => (self.step.as_ref().map_or("running", |(step, _)| step.name), 0),
            Phase::Idle => ("idle", 0),
        };
        let step = self.step.as_ref().zip(self.meter.as_ref()).map(|((step, start), meter)| {
            let seen = meter.snapshot();
            json!({
                "keeps": step.positions.0, "adds": step.positions.1,
                "sent": seen.sent_bytes(), "received": seen.received_bytes(), "rounds": seen.depth,
                "seconds": start.elapsed().as_secs_f64(),
                "predicted": {
                    "sent": step.cost.bytes[Party::Client.index()],
                    "all_parties": step.cost.bytes.iter().sum::<u64>(),
                    "rounds": step.cost.rounds,
                },
            })
        });
        let Totals { steps, sent, received, rounds, seconds } = self.done;
        let done = json!({ "steps": steps, "sent": sent, "received": received, "rounds": rounds, "seconds": seconds });
        json!({ "phase": phase, "before": before, "step": step, "done": done })
    }

    /// Takes in what happens to the job.
    fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Waiting(0) => self.phase = Phase::Setup,
            Event::Waiting(before) => self.phase = Phase::Waiting(*before),
            Event::Open(meter) => (self.phase, self.meter) = (Phase::Running, Some(Arc::clone(meter))),
            Event::Begin(step) => self.step = Some(((*step).clone(), Instant::now())),
            Event::Step(step, seconds) => {
                self.step = None;
                let seen = self.meter.as_ref().map(|meter| meter.snapshot()).unwrap_or_default();
                self.done.steps += 1;
                self.done.sent += seen.sent_bytes();
                self.done.received += seen.received_bytes();
                self.done.rounds += u64::from(step.cost.rounds);
                self.done.seconds += seconds;
            }
            Event::Token(token) => self.held.push(*token),
            Event::End(Ok(_)) => self.phase = Phase::Idle,
            Event::End(Err(_)) => self.close(),
        }
    }

    fn close(&mut self) {
        (self.phase, self.meter, self.step) = (Phase::Closed, None, None);
        self.held.clear();
    }
}

/// Does the work of one slot until all is over.
pub(super) fn serve(pool: &Pool, slot: usize, with: &Resources) {
    let options = with.opened.talk_options(with.opened.folder.plan.ways());
    while let Some(work) = pool.take(slot, None) {
        let mut first = Some(work);
        let mut next = || {
            let work = first.take().or_else(|| pool.take(slot, Some(with.idle)))?;
            Some(job(pool, slot, with, work))
        };
        let mut connect = || {
            pool.change(slot, |slot| slot.phase = Phase::Connecting);
            with.connection.endpoint.open(Purpose::Run)
        };
        // Whoever waits for an answer hears of a panic by the end of the channel; the next request is not its victim.
        let run = AssertUnwindSafe(|| talk::run(&with.opened.folder, &mut connect, &mut next, &options));
        if catch_unwind(run).is_err() {
            eprintln!("{}", Diagnostic::internal("E1014", "a session of the gateway ended by a fault of this program"));
        }
        pool.change(slot, Slot::close);
    }
}

/// Work as a job of `slot`, whose listener passes the answer on.
fn job<'a>(pool: &'a Pool, slot: usize, with: &'a Resources, work: Work) -> Job<'a> {
    let Work { tokens, count, stop, choosing, replies } = work;
    pool.change(slot, |slot| {
        slot.held.clone_from(&tokens);
        slot.done = Totals::default();
        if slot.phase == Phase::Idle {
            slot.phase = Phase::Running;
        }
    });
    let mut stream = with.text.stream(&stop);
    let mut answer = Answer { stopped: false, tokens: 0, cached: 0 };
    let listen = move |event: Event<'_>| {
        pool.change(slot, |slot| slot.see(&event));
        pass_on(&event, &mut stream, &mut answer, with, &replies)?;
        let goes_on = !stream.has_stopped() && !replies.is_closed();
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    };
    Job { tokens, count, stop: with.end_tokens.clone(), choosing, listen: Box::new(listen) }
}

/// Tells the caller what it is to hear of an event. That it does not listen any more is seen elsewhere.
fn pass_on(
    event: &Event<'_>,
    stream: &mut TextStream<'_>,
    answer: &mut Answer,
    with: &Resources,
    replies: &UnboundedSender<Reply>,
) -> Result<()> {
    let send = |reply| _ = replies.send(reply);
    match event {
        Event::Open(_) => send(Reply::Open),
        Event::Begin(step) if answer.tokens == 0 => answer.cached = step.positions.0,
        Event::Token(token) => {
            answer.tokens += 1;
            if !with.end_tokens.contains(token) {
                let new = stream.push(*token)?;
                if !new.is_empty() {
                    send(Reply::Text(new));
                }
            }
        }
        Event::End(Ok(finish)) => {
            answer.stopped = *finish == Finish::Stop || stream.has_stopped();
            let rest = stream.finish();
            if let Ok(rest) = &rest
                && !rest.is_empty()
            {
                send(Reply::Text(rest.clone()));
            }
            send(Reply::End(rest.map(|_| *answer)));
        }
        Event::End(Err(error)) => {
            // Errors hold no text of a prompt or an answer.
            if !Refusal::of_run(error).is_callers_fault() {
                eprintln!("{error}");
            }
            send(Reply::End(Err(error.clone())));
        }
        Event::Waiting(_) | Event::Begin(_) | Event::Step(..) => {}
    }
    Ok(())
}
