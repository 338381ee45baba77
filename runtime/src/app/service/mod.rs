//! A party that serves: sessions side by side, each on a thread of its own.
//!
//! What the sessions share: the plan and the weights, one pool of threads for products, one budget of memory and places,
//! one queue. What one session does ends no other: it fails alone, a panic included.
//!
//! Asked to end, by SIGTERM or SIGINT, a party takes no further session, gives those under way some time, and then ends
//! them; a second signal ends the process at once.

pub mod budget;
mod control;
pub mod files;
mod http;
pub mod log;
mod metrics;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

use self::budget::{Budget, Reservation};
use self::log::{Format, Log};
use self::metrics::Metrics;
use super::folder::PlanFolder;
use super::local::{READY, end_with_input};
use super::material::{SPENT_FILE, ServerMaterial, Spent, part_of};
use super::party::{QUEUE, Serving};
use super::program;
use super::sharing::{Keep, ServerSide};
use crate::backend::products::{Choice, Products};
use crate::config::PartyConfig;
use crate::memory::{machine_bytes, raise_open_files, return_freed_blocks};
use crate::transport::{Acceptor, Endpoint, Network, Party, Purpose, Session};

pub use self::control::renew;

/// How often the end of the process is thought of while nothing happens.
const TICK: Duration = Duration::from_millis(200);
/// Time for sessions to end after they were ended, and for the last lines to leave.
const FAREWELL: Duration = Duration::from_secs(5);
/// Open files of a session: its connections, and handles of them.
const FILES_OF_SESSION: u64 = 8;
/// Freed memory goes back to the system at most this often while other sessions go on.
const TRIM: Duration = Duration::from_secs(10);

/// What a party serves, and how.
pub struct Options {
    /// The plan folder.
    pub folder: PathBuf,
    /// The party.
    pub party: Party,
    /// Its configuration.
    pub config: PathBuf,
    /// The emulated network, as text.
    pub network: String,
    /// Threads for products, of all sessions together.
    pub threads: usize,
    /// Where products are made.
    pub backend: Choice,
    /// Whether the process ends with its standard input and says only what goes wrong: another one started it.
    pub with_input: bool,
    /// How the log is written.
    pub log: Format,
    /// At the server, what a dealer made ahead of time.
    pub material: Option<PathBuf>,
    /// The list of what was used of it; by default beside the configuration.
    pub spent: Option<PathBuf>,
}

/// What all threads of a serving process share.
struct Service {
    folder: PlanFolder,
    keep: Keep,
    material: Option<ServerMaterial>,
    endpoint: Endpoint,
    acceptor: Acceptor,
    products: Products,
    /// Most memory of a session, and that of one whose request is not known yet.
    limit: u64,
    largest: u64,
    budget: Arc<Budget>,
    sessions: Mutex<BTreeMap<u64, Weak<Session>>>,
    /// The process was asked to end, and has begun to.
    asked: Arc<AtomicBool>,
    ending: AtomicBool,
    next: AtomicU64,
    trimmed: Mutex<Instant>,
    metrics: Arc<Metrics>,
    log: Arc<Log>,
}

/// Serves sessions until the process is asked to end.
///
/// # Errors
/// What keeps it from serving at all; errors of one session go to the log.
pub fn serve_party(options: &Options) -> Result<()> {
    let serving = Arc::new(OnceLock::<Arc<Service>>::new());
    if options.with_input {
        let serving = Arc::clone(&serving);
        end_with_input(move || serving.get().is_none_or(|service| lock(&service.sessions).is_empty()))?;
    }
    let (party, threads) = (options.party, options.threads);
    let config = PartyConfig::read(&options.config)?;
    if config.party != party {
        return Err(Diagnostic::input("E0711", format!("the configuration is that of the {}", config.party))
            .note(format!("expected  party = \"{party}\"")));
    }
    let asked = signals()?;
    let files = raise_open_files();
    let network = Network::parse(&options.network)?;
    // Products of all sessions run on one pool. A process has one such pool for ever: where there is one, it stays.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let folder = PlanFolder::open(&options.folder)?;
    config.check_setting(folder.plan.module.setting)?;
    let products = Products::choose(options.backend, threads, &folder.plan.module)?;
    let keep = Keep::new(party, &folder)?;
    if matches!(keep, Keep::Alone(_)) && config.service.renew.is_some() {
        return Err(Diagnostic::input("E0711", "service.renew_s is for weights that are shared")
            .note(format!("found     a plan of {}, whose server keeps them", folder.plan.module.setting.name()))
            .note("help      remove it"));
    }
    let material = server_material(options)?;
    if material.is_some() {
        folder.plan.module.setting.dealer()?;
    }
    if let Some(third) = folder.plan.module.setting.beside()
        && party == Party::Server
        && material.is_none()
        && !config.peers.contains_key(&third)
    {
        return Err(Diagnostic::input("E0711", format!("peers.{third} is missing"))
            .note(format!("found     a plan of {}", folder.plan.module.setting.name()))
            .note(format!("help      add [peers.{third}] with address and fingerprint")));
    }
    let endpoint = Endpoint::new(&config, &folder.digest, network)?;
    let total = config.limits.total_memory_bytes.unwrap_or_else(|| machine_bytes() / 2);
    let limit = config.limits.max_memory_bytes.min(total);
    let largest = program::most_bytes_of_plan(&folder, limit);
    let log = Arc::new(Log::start(party, options.log, options.with_input));
    if pool.is_err() {
        log.note(&format!("products run on the {} threads that there are", rayon::current_num_threads()));
    }
    if let Some(note) = products.note() {
        log.note(&note);
    }
    let needed = u64::from(config.limits.max_sessions).saturating_mul(FILES_OF_SESSION);
    if let Some(files) = files.filter(|files| *files < needed) {
        log.note(&format!(
            "the system allows {files} open files, {} sessions need {needed}",
            config.limits.max_sessions
        ));
    }
    let metrics = Arc::new(Metrics::new());
    let acceptor = {
        let (log, metrics) = (Arc::clone(&log), Arc::clone(&metrics));
        Acceptor::bind(&endpoint, move |error| {
            metrics.refused(error.code);
            log.complaint(&error);
        })?
    };
    let address = acceptor.address();
    let service = Arc::new(Service {
        folder,
        keep,
        material,
        endpoint,
        acceptor,
        products,
        limit,
        largest,
        budget: Budget::new(total, config.limits.max_sessions),
        sessions: Mutex::default(),
        next: AtomicU64::new(0),
        asked: Arc::clone(&asked),
        ending: AtomicBool::new(false),
        trimmed: Mutex::new(Instant::now()),
        metrics,
        log,
    });
    // There is one.
    let _ = serving.set(Arc::clone(&service));
    if let Some(metrics) = config.service.metrics {
        http::start(metrics, &config.service.metrics_hosts, Arc::clone(&service))?;
    }
    if let Some(path) = &config.service.control {
        control::listen(path, Arc::clone(&service))?;
    }
    let grace = config.service.renew_grace.unwrap_or(config.limits.idle);
    service.start_sharing(config.service.renew, grace)?;
    super::command::print(&format!("{READY} {party} at {address}\n"))?;
    service.log.note(&format!("serves at {address}, at most {} sessions", config.limits.max_sessions));
    while !asked.load(Ordering::Relaxed) {
        service.keep.end_late(grace);
        let has_room = || service.budget.has_room(service.largest);
        if let Some(session) = service.acceptor.next_if(Some(TICK), &has_room, QUEUE) {
            service.start(session);
        }
    }
    service.end(config.service.drain);
    Ok(())
}

/// What the server has of a dealer's, as its options say.
fn server_material(options: &Options) -> Result<Option<ServerMaterial>> {
    let Some(folder) = &options.material else { return Ok(None) };
    if options.party != Party::Server {
        return Err(Diagnostic::input("E1051", format!("the {} takes no material", options.party))
            .note("help      give it to the server, and to the client"));
    }
    let beside = || options.config.with_file_name(SPENT_FILE);
    let spent = Spent::at(&options.spent.clone().unwrap_or_else(beside));
    ServerMaterial::at(&part_of(folder, Party::Server), spent).map(Some)
}

/// A flag that the first SIGTERM or SIGINT sets. The second one ends the process.
///
/// # Errors
/// `E0714`.
pub(super) fn signals() -> Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the signal that sets the flag does not see it set.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&asked))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&asked)))
            .map_err(|error| Diagnostic::internal("E0714", format!("signals cannot be handled: {error}")))?;
    }
    Ok(asked)
}

fn ending() -> Diagnostic {
    Diagnostic::peer("E1030", "this party is ending").note("help      try again when it serves anew")
}

impl Service {
    /// Lets a thread make the sharings of the server's weights.
    fn start_sharing(self: &Arc<Self>, every: Option<Duration>, grace: Duration) -> Result<()> {
        let Keep::Server(side) = &self.keep else { return Ok(()) };
        side.expect_maker();
        let service = Arc::clone(self);
        let work = move || {
            let Some(side) = service.server() else { return };
            // With material, no dealer need be there.
            let sharings = (service.material.is_none(), every);
            side.make_sharings(&service.folder, &service.endpoint, sharings, grace, |outcome| match outcome {
                Ok(time) => {
                    service.metrics.shared();
                    service.log.note(&format!("the weights are shared, in {:.1} s", time.as_secs_f64()));
                }
                Err(error) => service.log.complaint(&error),
            });
        };
        spawn("sharing", work)
    }

    fn server(&self) -> Option<&ServerSide> {
        if let Keep::Server(side) = &self.keep { Some(side) } else { None }
    }

    /// Whether a client that comes now would be served.
    fn is_ready(&self) -> bool {
        (self.material.is_some() || self.keep.is_ready()) && !self.ending.load(Ordering::Relaxed)
    }

    /// Gives a session a thread of its own.
    fn start(self: &Arc<Self>, session: Session) {
        // Sessions between server and helper take no place: all others wait for what they do.
        let place = match session.purpose() {
            Purpose::Share => None,
            _ => match self.place(&session) {
                Some(place) => Some(place),
                None => return session.abort(&ending()),
            },
        };
        let session = Arc::new(session);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.sessions).insert(number, Arc::downgrade(&session));
        let (service, served) = (Arc::clone(self), Arc::clone(&session));
        let work = move || {
            service.serve(&served, place);
            lock(&service.sessions).remove(&number);
            drop(served);
            service.return_memory();
            service.acceptor.wake();
        };
        if let Err(error) = spawn("session", work) {
            lock(&self.sessions).remove(&number);
            self.log.failure(&session, &error);
            session.abort(&error);
        }
    }

    /// A place for a session that was taken because there was one. A session that drew more than the plan's own program takes
    /// may have been faster.
    fn place(&self, session: &Session) -> Option<Reservation> {
        for waits in 0u64.. {
            if let Some(place) = self.budget.reserve(self.largest) {
                if waits > 0 {
                    session.keep_alive(false);
                }
                return Some(place);
            }
            if self.asked.load(Ordering::Relaxed) || session.failure().is_some() {
                return None;
            }
            session.keep_alive(true);
            thread::sleep(TICK);
        }
        None
    }

    fn serve(&self, session: &Session, place: Option<Reservation>) {
        let is_run = session.purpose().runs();
        let start = Instant::now();
        if is_run {
            self.log.session(session, "a session begins");
        }
        let mut place = place;
        let mut take = |most: u64| {
            let Some(place) = &mut place else { return true };
            let taken = place.resize(most);
            self.acceptor.wake();
            taken
        };
        let measured = |steps: usize, measured| self.metrics.phase(steps, measured);
        let serving = Serving {
            folder: &self.folder,
            keep: &self.keep,
            material: self.material.as_ref(),
            products: self.products.for_session(),
            memory: self.limit,
            take: &mut take,
            measured: &measured,
        };
        let outcome = session.check_client().inspect_err(|error| session.abort(error));
        let outcome = outcome.and_then(|()| serving.serve(session));
        if is_run {
            self.metrics.ended(outcome.as_ref().err().map(|error| error.code));
        }
        match outcome {
            Ok(()) if is_run => {
                self.log
                    .session(session, &format!("the session is over, after {:.1} s", start.elapsed().as_secs_f64()));
            }
            Ok(()) => {}
            Err(error) => self.log.failure(session, &error),
        }
    }

    /// Gives freed memory back to the system, not too often: sessions that go on would take it again.
    fn return_memory(&self) {
        let mut last = lock(&self.trimmed);
        if self.budget.used().sessions == 0 || last.elapsed() >= TRIM {
            return_freed_blocks();
            *last = Instant::now();
        }
    }

    /// Ends: no further session is taken, those under way get `time`.
    fn end(&self, time: Duration) {
        self.ending.store(true, Ordering::Relaxed);
        self.log.note(&format!("ends, {} sessions are under way", self.budget.used().sessions));
        self.acceptor.stop(&ending());
        if let Some(side) = self.server() {
            side.stop();
        }
        self.wait_for_sessions(time);
        for session in lock(&self.sessions).values().filter_map(Weak::upgrade) {
            session.end(&ending());
        }
        self.wait_for_sessions(FAREWELL);
        self.log.note("has ended");
    }

    fn wait_for_sessions(&self, time: Duration) {
        let until = Instant::now() + time;
        while !lock(&self.sessions).is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|error| Diagnostic::internal("E0714", format!("no thread is left: {error}")))
}

/// Locks `mutex`; what is under the locks of this module is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
