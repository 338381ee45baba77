//! Texts that are continued over one session, again and again: turns of a chat, requests to a gateway.
//!
//! A session keeps its cache between jobs. Of every job's text only what the session does not have already is sent
//! through the model: the longest beginning that both have in common stays. A session that ended meanwhile, because
//! nothing was asked for a while or a party was started anew, is replaced by a new one without a word.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use ombra_ir::draw::{Choosing, Way};
use ombra_ir::schedule::Cost;
use ombra_ir::{Diagnostic, Kind, Result};

use super::client::{Conversation, check_generation, max_positions};
use super::consent::check_shown;
use super::folder::PlanFolder;
use super::isolation::Isolation;
use super::request::{MAX_STEPS, Request};
use super::session::guarded;
use crate::backend::products::Products;
use crate::transport::{Meter, Session};

/// Positions of a session's request where the plan has no limit.
const MANY: u64 = 1 << 20;

/// A text to be continued.
pub struct Job<'a> {
    /// All tokens of the text: of a chat, those of the turns before too.
    pub tokens: Vec<i64>,
    /// Most new tokens.
    pub count: u64,
    /// Tokens that end the text.
    pub stop: BTreeSet<i64>,
    /// How next tokens are chosen: in one of the ways that sessions are opened with.
    pub choosing: Choosing,
    /// Is told what happens, and says whether to go on.
    pub listen: Listener<'a>,
}

/// Who listens to a job.
pub type Listener<'a> = Box<dyn FnMut(Event<'_>) -> Result<ControlFlow<()>> + 'a>;

/// What happens to a job, in this order; steps and tokens alternate.
pub enum Event<'a> {
    /// The server serves so many sessions before this one.
    Waiting(u32),
    /// The session is served; the meter counts what this party sends and receives while a step is under way.
    Open(&'a Arc<Meter>),
    /// A step begins; what the listener says to this is not heard.
    Begin(&'a Step),
    /// It is over, after so many seconds.
    Step(&'a Step, f64),
    /// A new token; an end token too.
    Token(i64),
    /// The job is over.
    End(&'a Result<Finish>),
}

/// A step.
#[derive(Clone, Debug)]
pub struct Step {
    /// `prefill` or `decode`.
    pub name: &'static str,
    /// Positions that are kept, and tokens that are added.
    pub positions: (u64, u64),
    /// What it costs, by the plan.
    pub cost: Cost,
}

/// Why a job is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token came.
    Stop,
    /// The number of tokens was reached.
    Length,
    /// The listener had enough.
    Listener,
}

/// How jobs are done.
pub struct Options<'a> {
    /// How this party makes products.
    pub products: Products,
    /// How the plan's model in the clear is kept apart.
    pub isolation: Option<&'a Isolation>,
    /// Inputs that the plan may make public though they are no masks or positions.
    pub allow_public: &'a [String],
    /// The ways to choose next tokens that sessions are opened with.
    pub ways: Vec<Way>,
}

/// Does jobs until `next` gives none, over sessions that `connect` opens. Every job's listener hears how it ended.
pub fn run<'a>(
    folder: &PlanFolder,
    connect: &mut dyn FnMut() -> Result<Session>,
    next: &mut dyn FnMut() -> Option<Job<'a>>,
    options: &Options<'_>,
) {
    let mut job = next();
    while let Some(first) = job.take() {
        job = with_session(folder, connect, next, options, first);
    }
}

/// Does `job` and those after it over one session, as long as that lasts. A job that it could not begin comes back.
fn with_session<'a>(
    folder: &PlanFolder,
    connect: &mut dyn FnMut() -> Result<Session>,
    next: &mut dyn FnMut() -> Option<Job<'a>>,
    options: &Options<'_>,
    job: Job<'a>,
) -> Option<Job<'a>> {
    let mut current = Some(job);
    let positions = max_positions(&folder.plan).unwrap_or(MANY);
    let request = Request::Generate { padding: vec![0], positions, ways: options.ways.clone() };
    let checked = check(folder, &mut current).and_then(|()| request.check(&folder.plan));
    let checked = checked.and_then(|()| check_shown(&folder.plan, &request, options.allow_public));
    let opened = checked.and_then(|()| connect());
    let session = match opened {
        Ok(session) => session,
        Err(error) => {
            end(&mut current, Err(error));
            return next();
        }
    };
    // Whether a job was done before, and whether the current one has had a token.
    let (mut used, mut begun) = (false, false);
    let result = guarded(&session, || {
        if let Some(job) = &mut current {
            session.wait_for_turn(&mut |before| _ = (job.listen)(Event::Waiting(before)))?;
        }
        let products = options.products.for_session();
        let mut conversation = Conversation::open_with(folder, &session, request, products, options.isolation, None)?;
        while let Some(job) = &mut current {
            if conversation.steps_left() < job.count {
                break;
            }
            let finish = continue_text(&mut conversation, job, &session, &mut begun)?;
            (used, begun) = (true, false);
            end(&mut current, Ok(finish));
            current = next();
            while let Err(error) = check(folder, &mut current) {
                end(&mut current, Err(error));
                current = next();
            }
        }
        conversation.end().map(drop)
    });
    match result {
        Ok(()) => {
            session.finish();
            current
        }
        // The session ended before the job had begun: a new one may do it.
        Err(error) if error.kind == Kind::Peer && used && !begun && current.is_some() => current,
        Err(error) => {
            end(&mut current, Err(error));
            next()
        }
    }
}

/// Checks a job before anything is sent.
fn check(folder: &PlanFolder, job: &mut Option<Job<'_>>) -> Result<()> {
    match job {
        Some(job) => {
            job.choosing.check()?;
            folder.plan.drawing(job.choosing.choice().way())?;
            check_generation(&folder.plan, std::slice::from_ref(&job.tokens), job.count)
        }
        None => Ok(()),
    }
}

/// Ends a job, if there is one: its listener cannot stop that.
fn end(job: &mut Option<Job<'_>>, result: Result<Finish>) {
    if let Some(mut job) = job.take() {
        let _ = (job.listen)(Event::End(&result));
    }
}

fn continue_text(
    conversation: &mut Conversation<'_>,
    job: &mut Job<'_>,
    session: &Session,
    begun: &mut bool,
) -> Result<Finish> {
    if (job.listen)(Event::Open(session.meter()))?.is_break() {
        return Ok(Finish::Listener);
    }
    let mut keep = conversation.common(&job.tokens);
    let mut new = job.tokens.get(keep..).unwrap_or_default().to_vec();
    let mut answer = [Vec::new()];
    for _ in 0..job.count.min(MAX_STEPS) {
        let start = Instant::now();
        let positions = (keep as u64, new.len() as u64);
        let step = |name, cost: &Cost| Step { name, positions, cost: cost.clone() };
        let mut begin = |name, cost: &Cost| _ = (job.listen)(Event::Begin(&step(name, cost)));
        let (next, done) = conversation.next_tokens(keep as u64, &[new], (&job.choosing, &answer), &mut begin)?;
        let seconds = start.elapsed().as_secs_f64();
        *begun = true;
        keep = (positions.0 + positions.1) as usize;
        let [token] = *next else {
            return Err(Diagnostic::internal("E1004", "a step did not reveal one next token"));
        };
        let step = step(done.inputs.name, &done.cost);
        let goes_on = (job.listen)(Event::Step(&step, seconds))?.is_continue()
            && (job.listen)(Event::Token(token))?.is_continue();
        if job.stop.contains(&token) {
            return Ok(Finish::Stop);
        }
        if !goes_on {
            return Ok(Finish::Listener);
        }
        new = vec![token];
        answer[0].push(token);
    }
    Ok(Finish::Length)
}
