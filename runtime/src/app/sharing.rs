//! How the server's weights come to be shared, and which sharing a session uses.
//!
//! The helper here is the third party of the setting, whatever that calls it.
//!
//! One term of every weight follows from a key of client and server, the other one is the weight minus that and goes to
//! the helper. One key makes one sharing: from two under one key the helper would learn the difference of the weights.
//! Every client that is served gets the key: together with the helper it could put the weights together, alone it has
//! random numbers.
//!
//! For a strict dealer the two change places: it gets the key and nothing else, and every client the rest of the weights,
//! once for a sharing as long as its process lives.
//!
//! A sharing is made between server and helper alone, in a session of its own without a client, so that no client can end
//! it. A thread of the server makes the first one as soon as the helper can be reached, and another one when the helper has
//! lost its part, on a schedule, or by command. Sessions that need one wait for it and keep their peers informed. A new one
//! takes the place of the old for sessions that begin later; those under way go on with theirs for some time, and what is
//! kept of a sharing is wiped when the last of them ends, see [`super::uses`]. Until then the helper has both in memory.
//!
//! Parties without such a thread, in one process, share in the session that needs it first. Where there is no third party,
//! nothing of this is done: the server's weights are its own share, and no client gets a part of them.
//!
//! In a session, the server offers a sharing by its name until the helper holds it, then gives the client its part.
//! 1. server to helper: [`Offer`]; helper to server: [`Held`]. Both say what the client asked of them.
//! 2. server to client: [`Given`], then the key; for a strict dealer the client says [`Holds`], and if it does not, the rest
//!    of the weights follows.
//!
//! The first session that uses a sharing counts what it cost; for a strict dealer, every session in which the client gets
//! its part.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::folder::PlanFolder;
use super::material::Choice;
use super::session::{CONTROL, Measured, guarded, net, senseless};
use super::uses::Uses;
use super::weights::Weights as File;
use crate::exec::TensorSource;
use crate::prg::Key;
use crate::settings::weights::Weights;
use crate::transport::{Endpoint, Frame, Link, Party, Purpose, Session, SessionId};

/// Number of the run, and the place among its frames, of the key of the weights.
const KEY_FRAME: (u64, u32, u32) = (1, u32::MAX - 2, 0);
/// How often a session that waits for a sharing says that it is alive.
const ALIVE: Duration = Duration::from_secs(1);
/// Time after which a sharing is tried again that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked at whether a sharing that is due may be made.
const SOON: Duration = Duration::from_millis(100);
/// Offers that a helper may decline in one session.
const MAX_OFFERS: usize = 4;

/// Names a sharing for a session.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    /// Its name.
    epoch: String,
    /// Whether it follows in this session.
    here: bool,
    /// Whether this session counts what it cost.
    counts: bool,
    /// Digest of what the client asked of the server.
    request: String,
}

/// The helper's answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    held: bool,
    /// Digest of what the client asked of the helper.
    request: String,
}

/// Said to the client before it gets its part: the name of the sharing, and whether this session counts what it cost to give
/// the other part to the helper.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    epoch: String,
    counts: bool,
}

/// Whether the client has its part of the sharing, where that is sent and follows from no key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holds {
    holds: bool,
}

/// The last sharing of which this process, as a client, got its part.
#[derive(Default)]
pub struct ClientSide(Mutex<Option<(String, Arc<Weights>)>>);

/// A sharing that follows between server and helper.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Coming {
    epoch: String,
    /// The name of the one that the server has. Whatever else the helper holds is of no use.
    replaces: Option<String>,
}

/// The helper's word once it holds what was sent: until then it is silent, for as long as the weights are on their way.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Received {
    Weights,
}

/// One party's part of a sharing.
struct Sharing {
    epoch: String,
    /// The server's alone.
    key: Option<Key>,
    weights: Arc<Weights>,
    cost: Measured,
    /// Whether no session has counted the cost.
    uncounted: Mutex<bool>,
}

/// What a serving party keeps between sessions.
pub enum Keep {
    /// The server's.
    Server(ServerSide),
    /// The server's where there is no third party: nobody else has a part of its weights.
    Alone(AloneSide),
    /// The helper's.
    Helper(HelperSide),
}

/// What the server keeps: its weights, and the sharing that new sessions use.
pub struct ServerSide {
    file: Arc<File>,
    state: Mutex<State>,
    changed: Condvar,
    uses: Uses,
}

/// What a server keeps that shares its weights with nobody: they are as they are in its file.
pub struct AloneSide {
    file: Arc<File>,
    weights: OnceLock<Arc<Weights>>,
    uses: Uses,
}

/// What the helper keeps: its part of the last sharing.
#[derive(Default)]
pub struct HelperSide {
    kept: Mutex<Option<Arc<Sharing>>>,
    /// Held while a sharing arrives.
    receiving: Mutex<()>,
    uses: Uses,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Sharing>>,
    /// A thread makes sharings when they are asked for.
    has_maker: bool,
    wanted: bool,
    making: bool,
    /// The maker shall end.
    over: bool,
    /// How many attempts have ended, how many of them well, and how the last one failed.
    ended: u64,
    made: u64,
    error: Option<Diagnostic>,
}

impl Keep {
    /// What `party` keeps at the start of its process.
    ///
    /// # Errors
    /// Those of [`PlanFolder::server_weights`], and `E1006` for the client, which does not serve.
    pub fn new(party: Party, folder: &PlanFolder) -> Result<Keep> {
        match party {
            Party::Server => {
                let file = Arc::new(folder.server_weights()?);
                if folder.plan.module.setting.beside().is_none() {
                    let (weights, uses) = Default::default();
                    return Ok(Keep::Alone(AloneSide { file, weights, uses }));
                }
                let (state, changed, uses) = Default::default();
                Ok(Keep::Server(ServerSide { file, state, changed, uses }))
            }
            Party::Helper | Party::Dealer => Ok(Keep::Helper(HelperSide::default())),
            Party::Client => {
                Err(Diagnostic::input("E1006", "the client does not serve").note("help      use `generate` or `infer`"))
            }
        }
    }

    /// This party's components of the weights for a session whose request has the digest `request`, and what it counts for
    /// the sharing.
    ///
    /// # Errors
    /// Whatever ended the session, and what kept the server from sharing its weights.
    pub(super) fn weights(
        &self,
        folder: &PlanFolder,
        session: &Session,
        request: &str,
    ) -> Result<(Arc<Weights>, Measured)> {
        let (weights, cost) = match self {
            Keep::Server(side) => side.weights(folder, session, request),
            Keep::Alone(side) => Ok((side.weights(folder)?, Measured::default())),
            Keep::Helper(side) => side.weights(folder, session, request),
        }?;
        self.uses().add(session, &weights);
        Ok((weights, cost))
    }

    fn uses(&self) -> &Uses {
        match self {
            Keep::Server(side) => &side.uses,
            Keep::Alone(side) => &side.uses,
            Keep::Helper(side) => &side.uses,
        }
    }

    /// Ends sessions whose sharing was replaced `grace` ago.
    pub fn end_late(&self, grace: Duration) {
        self.uses().end_late(grace);
    }

    /// How many sharings are in memory, the current one among them.
    pub fn held(&self) -> usize {
        let current = match self {
            Keep::Server(side) => side.lock().current.is_some(),
            Keep::Alone(side) => side.weights.get().is_some(),
            Keep::Helper(side) => lock(&side.kept).is_some(),
        };
        self.uses().held() + usize::from(current)
    }

    /// Whether a session could begin without waiting for a sharing.
    pub fn is_ready(&self) -> bool {
        match self {
            Keep::Server(side) => side.lock().current.is_some(),
            Keep::Alone(_) | Keep::Helper(_) => true,
        }
    }
}

impl AloneSide {
    /// The weights, which are still those that the server was started with.
    fn weights(&self, folder: &PlanFolder) -> Result<Arc<Weights>> {
        self.file.check_unchanged()?;
        if let Some(weights) = self.weights.get() {
            return Ok(Arc::clone(weights));
        }
        let own = Some(Arc::clone(&self.file) as Arc<dyn TensorSource>);
        let weights = Weights::unshared(&folder.plan.module, Party::Server, public(folder), own)?;
        Ok(Arc::clone(self.weights.get_or_init(|| Arc::new(weights))))
    }
}

impl ServerSide {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The server's weights, which are still those that it was started with.
    ///
    /// # Errors
    /// `E1020`.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        self.file.check_unchanged()?;
        Ok(Arc::clone(&self.file))
    }

    /// Says that a thread will make sharings: sessions wait for it from now on.
    pub fn expect_maker(&self) {
        self.lock().has_maker = true;
    }

    /// Makes the first sharing, at once or when a session wants it, and then every one that is asked for, until
    /// [`stop`](Self::stop). `told` hears how every attempt ended. `every` is how often a sharing is renewed, but for sessions
    /// with an old one that go on for `grace`.
    pub fn make_sharings(
        &self,
        folder: &PlanFolder,
        endpoint: &Endpoint,
        (at_once, every): (bool, Option<Duration>),
        grace: Duration,
        mut told: impl FnMut(Result<Duration>),
    ) {
        let mut due = at_once.then(Instant::now);
        loop {
            let mut state = self.lock();
            let is_due = || due.is_some_and(|due| Instant::now() >= due) && !self.uses.go_on(grace);
            while !state.over && !state.wanted && !is_due() {
                let time = due.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
                state = self.changed.wait_timeout(state, time.max(SOON)).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.over {
                return;
            }
            (state.wanted, state.making) = (false, true);
            let replaces = state.current.as_ref().map(|current| current.epoch.clone());
            drop(state);
            let start = Instant::now();
            let made = panic::catch_unwind(AssertUnwindSafe(|| self.make_over(folder, endpoint, replaces)));
            let made =
                made.unwrap_or_else(|_| Err(Diagnostic::internal("E1014", "a fault of this program ended a sharing")));
            let failed = made.as_ref().err().map(|_| AGAIN);
            due = failed.or(every).map(|time| Instant::now() + time.min(every.unwrap_or(time)));
            let mut state = self.lock();
            (state.making, state.ended) = (false, state.ended + 1);
            let outcome = match made {
                Ok(sharing) => {
                    self.replace(&mut state, Some(Arc::new(sharing)));
                    (state.error, state.made) = (None, state.made + 1);
                    Ok(start.elapsed())
                }
                Err(error) => {
                    state.error = Some(error.clone());
                    Err(error)
                }
            };
            drop(state);
            self.changed.notify_all();
            told(outcome);
        }
    }

    /// Lets [`make_sharings`](Self::make_sharings) end, after the attempt that is under way.
    pub fn stop(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Has the weights shared anew and waits for the end of it.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn renew(&self) -> Result<()> {
        let mut state = self.lock();
        // What is under way may have begun before whatever this is asked for.
        let until = state.ended + 1 + u64::from(state.making);
        while state.ended < until {
            if state.over || !state.has_maker {
                return Err(Diagnostic::input("E1030", "this party is ending"));
            }
            state.wanted |= !state.making;
            self.changed.notify_all();
            state = self.changed.wait_timeout(state, ALIVE).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.error.clone().map_or(Ok(()), Err)
    }

    /// Lets sessions that begin later use another sharing, or wait for one.
    fn replace(&self, state: &mut State, sharing: Option<Arc<Sharing>>) {
        if let Some(old) = std::mem::replace(&mut state.current, sharing) {
            self.uses.replaced(&old.weights);
        }
    }

    /// Sharings that were made.
    pub fn made(&self) -> u64 {
        self.lock().made
    }

    /// The sharing for new sessions, another one than that with the name `lost`, waiting until there is one. Nothing where
    /// the session has to make it.
    fn current(&self, session: &Session, lost: Option<&str>) -> Result<Option<Arc<Sharing>>> {
        let mut state = self.lock();
        let begin = state.ended;
        let mut waited = false;
        let found = loop {
            if state.current.as_ref().is_some_and(|current| Some(current.epoch.as_str()) == lost) {
                self.replace(&mut state, None);
            }
            if let Some(current) = &state.current {
                break Some(Arc::clone(current));
            }
            if !state.has_maker {
                break None;
            }
            if let Some(error) = state.error.clone().filter(|_| state.ended > begin) {
                return Err(error);
            }
            state.wanted |= !state.making;
            self.changed.notify_all();
            state = self.changed.wait_timeout(state, ALIVE).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            waited = true;
            session.keep_alive(true);
            if let Some(failure) = session.failure() {
                return Err(failure.clone());
            }
            state = self.lock();
        };
        drop(state);
        if waited {
            session.keep_alive(false);
        }
        Ok(found)
    }

    fn weights(&self, folder: &PlanFolder, session: &Session, request: &str) -> Result<(Arc<Weights>, Measured)> {
        let third = folder.plan.module.setting.third()?;
        let helper = session.link(third)?;
        let mut lost: Option<String> = None;
        self.file.check_unchanged()?;
        for _ in 0..MAX_OFFERS {
            let found = self.current(session, lost.as_deref())?;
            let (epoch, here) = match &found {
                Some(sharing) => (sharing.epoch.clone(), false),
                None => (SessionId::random()?.to_string(), true),
            };
            let counts = found.as_ref().is_none_or(|sharing| std::mem::take(&mut *lock(&sharing.uncounted)));
            helper.send_control(&Offer { epoch: epoch.clone(), here, counts, request: request.to_owned() })?;
            let Held { held, request: other } = helper.recv_control(CONTROL)?;
            same_request(request, &other)?;
            let sharing = match found {
                None => {
                    let made = Arc::new(self.share(folder, session, epoch)?);
                    *lock(&made.uncounted) = false;
                    self.replace(&mut self.lock(), Some(Arc::clone(&made)));
                    made
                }
                Some(sharing) if held => sharing,
                Some(_) => {
                    lost = Some(epoch);
                    continue;
                }
            };
            let key = sharing.key.as_ref().ok_or_else(|| Diagnostic::internal("E1004", "a sharing has no key"))?;
            let given = self.give(folder, session, (&sharing.epoch, key), counts)?;
            let cost = given.unwrap_or(if counts { sharing.cost } else { Measured::default() });
            return Ok((Arc::clone(&sharing.weights), cost));
        }
        Err(senseless(third, "again and again that it does not hold what it has just got"))
    }

    /// A sharing in a session of its own.
    fn make_over(&self, folder: &PlanFolder, endpoint: &Endpoint, replaces: Option<String>) -> Result<Sharing> {
        self.file.check_unchanged()?;
        // With the one that is replaced now there would be three.
        self.uses.clear()?;
        let session = endpoint.open(Purpose::Share)?;
        let made = guarded(&session, || {
            let epoch = SessionId::random()?.to_string();
            session
                .link(folder.plan.module.setting.third()?)?
                .send_control(&Coming { epoch: epoch.clone(), replaces })?;
            self.share(folder, &session, epoch)
        });
        made.inspect(|_| session.finish())
    }

    /// Shares the weights with the third party in `session`, under a new key.
    fn share(&self, folder: &PlanFolder, session: &Session, epoch: String) -> Result<Sharing> {
        let key = Key::random()?;
        let link = session.link(folder.plan.module.setting.third()?)?;
        let derives = folder.plan.derives()?;
        if derives == link.peer() {
            send_key(link, &key)?;
        }
        session.meter().reset();
        let start = Instant::now();
        let weights = if derives == link.peer() {
            let own = Some(Arc::clone(&self.file) as Arc<dyn TensorSource>);
            Weights::of_key(&folder.plan.module, (derives, Party::Server), &key, public(folder), own)?
        } else {
            self.send_terms(folder, session, &key)?
        };
        let Received::Weights = link.recv_control_within(CONTROL, session.limits().setup)?;
        Ok(Sharing::new(epoch, Some(key), weights, session, start))
    }
}

impl ServerSide {
    /// Sends what of the weights does not follow from their key to the party that does not get that.
    fn send_terms(&self, folder: &PlanFolder, session: &Session, key: &Key) -> Result<Weights> {
        let own = Some(Arc::clone(&self.file) as Arc<dyn TensorSource>);
        let parties = (folder.plan.derives()?, Party::Server);
        Weights::share(&folder.plan.module, parties, Some(key), public(folder), own, &mut net(session))
    }

    /// Gives the client its part of a sharing: the key, or what does not follow from it. What that cost, where it was sent.
    pub(super) fn give(
        &self,
        folder: &PlanFolder,
        session: &Session,
        (epoch, key): (&str, &Key),
        counts: bool,
    ) -> Result<Option<Measured>> {
        let client = session.link(Party::Client)?;
        client.send_control(&Given { epoch: epoch.to_owned(), counts })?;
        if folder.plan.derives()? == Party::Client {
            return send_key(client, key).map(|()| None);
        }
        let Holds { holds } = client.recv_control(CONTROL)?;
        if holds {
            return Ok(None);
        }
        session.meter().reset();
        let start = Instant::now();
        self.send_terms(folder, session, key)?;
        Ok(Some(Measured::since(session, start)))
    }
}

impl HelperSide {
    fn weights(&self, folder: &PlanFolder, session: &Session, request: &str) -> Result<(Arc<Weights>, Measured)> {
        let server = session.link(Party::Server)?;
        for _ in 0..MAX_OFFERS {
            let Offer { epoch, here, counts, request: other } = server.recv_control(CONTROL)?;
            let held = lock(&self.kept).clone().filter(|kept| !here && kept.epoch == epoch);
            server.send_control(&Held { held: held.is_some(), request: request.to_owned() })?;
            same_request(request, &other)?;
            let found = match held {
                None if here => self.receive(folder, session, epoch, None)?,
                Some(sharing) => sharing,
                None => continue,
            };
            return Ok((Arc::clone(&found.weights), if counts { found.cost } else { Measured::default() }));
        }
        Err(senseless(Party::Server, "one sharing after another that was never made"))
    }

    /// Takes a sharing that the server makes in a session of its own.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub(super) fn take(&self, folder: &PlanFolder, session: &Session) -> Result<()> {
        let Coming { epoch, replaces } = session.link(Party::Server)?.recv_control(CONTROL)?;
        self.uses.clear()?;
        self.receive(folder, session, epoch, replaces.as_deref()).map(drop)
    }

    fn replaced(&self, old: Option<Arc<Sharing>>) {
        old.iter().for_each(|old| self.uses.replaced(&old.weights));
    }

    /// Receives a sharing in `session`. What is held stays until then, if it is the one that the server has.
    fn receive(
        &self,
        folder: &PlanFolder,
        session: &Session,
        epoch: String,
        replaces: Option<&str>,
    ) -> Result<Arc<Sharing>> {
        let _one_at_a_time = lock(&self.receiving);
        // Two of them may not fit into memory.
        let useless =
            |kept: &Option<Arc<Sharing>>| kept.as_ref().is_some_and(|kept| Some(kept.epoch.as_str()) != replaces);
        let old = {
            let mut kept = lock(&self.kept);
            if useless(&kept) { kept.take() } else { None }
        };
        self.replaced(old);
        let parties = (folder.plan.derives()?, session.party());
        let key = if parties.0 == parties.1 { Some(receive_key(session)?) } else { None };
        session.meter().reset();
        let start = Instant::now();
        let module = &folder.plan.module;
        let weights = Weights::share(module, parties, key.as_ref(), public(folder), None, &mut net(session))?;
        let sharing = Arc::new(Sharing::new(epoch, None, weights, session, start));
        let old = lock(&self.kept).replace(Arc::clone(&sharing));
        self.replaced(old);
        session.link(Party::Server)?.send_control(&Received::Weights)?;
        Ok(sharing)
    }
}

impl Sharing {
    fn new(epoch: String, key: Option<Key>, weights: Weights, session: &Session, start: Instant) -> Sharing {
        let cost = Measured::since(session, start);
        Sharing { epoch, key, weights: Arc::new(weights), cost, uncounted: Mutex::new(true) }
    }
}

fn send_key(link: &Link, key: &Key) -> Result<()> {
    let (run, op, round) = KEY_FRAME;
    link.send(Frame::new(run, op, round, key.bytes().to_vec()))
}

fn receive_key(session: &Session) -> Result<Key> {
    let (run, op, round) = KEY_FRAME;
    let key = Zeroizing::new(session.link(Party::Server)?.recv(run, op, round, 16)?.0);
    let key = <[u8; 16]>::try_from(key.as_slice());
    key.map(Key::from_bytes).map_err(|_| senseless(Party::Server, "a key of another length"))
}

/// The client's part of the weights, and whether this session counts the cost of sharing them. What was `dealt` may have it,
/// where it is sent and follows from no key.
pub(super) fn client_weights(
    folder: &PlanFolder,
    session: &Session,
    dealt: Option<&Choice>,
) -> Result<(Arc<Weights>, bool)> {
    if folder.plan.module.setting.beside().is_none() {
        let weights = Weights::unshared(&folder.plan.module, Party::Client, public(folder), None)?;
        return Ok((Arc::new(weights), true));
    }
    let server = session.link(Party::Server)?;
    let Given { epoch, counts } = server.recv_control(CONTROL)?;
    let (module, parties) = (&folder.plan.module, (folder.plan.derives()?, Party::Client));
    if parties.0 == Party::Client {
        let key = receive_key(session)?;
        // The key is not part of the cost of the weights.
        session.meter().reset();
        let weights = Weights::share(module, parties, Some(&key), public(folder), None, &mut net(session))?;
        return Ok((Arc::new(weights), counts));
    }
    let kept = lock(&folder.held.0).as_ref().filter(|(held, _)| *held == epoch).map(|(_, weights)| Arc::clone(weights));
    let held = match (kept, dealt) {
        (None, Some(choice)) => choice.weights(folder, &epoch)?.map(Arc::new),
        (kept, _) => kept,
    };
    server.send_control(&Holds { holds: held.is_some() })?;
    let sends = held.is_none();
    session.meter().reset();
    let weights = match held {
        Some(weights) => weights,
        None => Arc::new(Weights::share(module, parties, None, public(folder), None, &mut net(session))?),
    };
    *lock(&folder.held.0) = Some((epoch, Arc::clone(&weights)));
    Ok((weights, sends))
}

/// Compares the digests of what the client asked of server and helper.
fn same_request(own: &str, other: &str) -> Result<()> {
    if own == other {
        return Ok(());
    }
    Err(senseless(Party::Client, "one request to the server and another to the helper"))
}

fn public(folder: &PlanFolder) -> Arc<dyn TensorSource> {
    Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>
}

/// Locks `mutex`; what is under the locks of this module is valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
