//! The accepting side: a listener, handshakes off its loop, and the grouping of connections into sessions.
//!
//! Whoever connects gets a thread and a time limit for its handshake, and there is a limit for how many do, see
//! [`super::admission`]. Only connections of configured peers, with the same plan, are kept.
//!
//! All connections of a session must be of one client: the first one says whose session it is, the server's tell the helper
//! whose it is, and a connection of another client is refused. So nobody joins a session of somebody else's at one party,
//! even if its id became known.
//!
//! A session that lacks a connection after the time to connect is given up. One that is complete waits for its turn: the
//! server has connected to the helper by then, and tells the client how many are before it; the helper serves what the
//! server serves. A session whose peer goes away meanwhile leaves at once.
//!
//! The next one to be served is the oldest of the client of whom least sessions are served, and of none are more served
//! than the configuration says: nobody who opens many, or keeps them, keeps others waiting.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::admission::{Complaints, HalfOpen};
use super::endpoint::Endpoint;
use super::frame::gone;
use super::party::Party;
use super::queue::{lock, wait};
use super::session::{Answer, Direction, Hello, Purpose, Session, SessionId, write_control};
use super::tls::{Channel, Fingerprint, tls_error};

/// Sessions that may lack connections, and sessions that may wait to be served: of all clients, and of one.
const MAX_FORMING: usize = 256;
const MAX_READY: usize = 256;
const MAX_OF_CLIENT: usize = 32;
/// How often the listener is looked at.
const POLL: Duration = Duration::from_millis(2);
/// How often sessions that are not served yet are looked at.
const SWEEP: Duration = Duration::from_millis(100);
/// How often those that wait are told how many are before them.
const ANNOUNCE: Duration = Duration::from_secs(2);

/// Listens for sessions. Dropping it stops listening; sessions it has handed out go on.
pub struct Acceptor {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    endpoint: Endpoint,
    stop: AtomicBool,
    half_open: Mutex<HalfOpen>,
    table: Mutex<Table>,
    changed: Condvar,
    /// What strangers may make the listener say.
    complaints: Mutex<Complaints>,
    refused: Box<dyn Fn(Diagnostic) + Send + Sync>,
}

impl Shared {
    /// Most sessions of one client that are served at once.
    fn most_of_client(&self) -> usize {
        usize::try_from(self.endpoint.limits().max_sessions_of_client).unwrap_or(usize::MAX)
    }
}

#[derive(Default)]
struct Table {
    forming: BTreeMap<SessionId, Forming>,
    /// Complete sessions from which the server connects to the helper.
    joining: usize,
    ready: VecDeque<Session>,
    /// Sessions that were handed out and live, by client.
    served: BTreeMap<Fingerprint, usize>,
    /// Nobody takes another session at the moment.
    busy: bool,
    /// Why nobody takes another session any more.
    stopped: Option<Diagnostic>,
}

/// What counts a session as served, until it is dropped.
pub(super) struct Place {
    shared: Weak<Shared>,
    client: Fingerprint,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut table = lock(&shared.table);
        if let Some(count) = table.served.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.served.remove(&self.client);
            }
        }
        drop(table);
        shared.changed.notify_all();
    }
}

/// A session that lacks connections.
struct Forming {
    since: Instant,
    session: Session,
    /// The client that the session belongs to, once that is known.
    owner: Option<Fingerprint>,
    /// The first connection of an initiator, and its direction.
    halves: BTreeMap<Party, (Direction, Channel)>,
}

impl Acceptor {
    /// Listens at the address of `endpoint`. `refused` is told, from other threads, why a connection was refused or a
    /// session given up.
    pub fn bind(endpoint: &Endpoint, refused: impl Fn(Diagnostic) + Send + Sync + 'static) -> Result<Acceptor> {
        let Some(listen) = endpoint.listen_address() else {
            return Err(Diagnostic::input("E0713", format!("the {} does not listen", endpoint.party()))
                .note("help      add `listen` to this party's configuration"));
        };
        if endpoint.trusted().parties().next().is_none() {
            return Err(Diagnostic::input("E0713", "no peer connects to this party")
                .note("help      add [peers.client] to this party's configuration"));
        }
        let failed = |error: std::io::Error| {
            Diagnostic::input("E0713", format!("no listener at {listen}: {error}"))
                .note("help      stop what uses the address, or change `listen`")
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            endpoint: endpoint.clone(),
            stop: AtomicBool::new(false),
            half_open: Mutex::default(),
            table: Mutex::default(),
            changed: Condvar::new(),
            complaints: Mutex::new(Complaints::new()),
            refused: Box::new(refused),
        });
        let looping = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || accept_loop(&looping, &listener))
            .map_err(failed)?;
        Ok(Acceptor { shared, address, thread: Some(thread) })
    }

    /// The address it listens at, with the port in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next session in which every peer that connects to this party has done so, waiting at most `limit`, or for ever.
    /// The server is connected to the helper in it.
    pub fn next(&self, limit: Option<Duration>) -> Option<Session> {
        self.next_if(limit, &|| true, u64::MAX)
    }

    /// [`next`](Self::next), where sessions of clients are taken only while `has_room` says so. It is asked whenever
    /// something changes, see [`wake`](Self::wake). Of the client, `queued` bytes at most wait to be asked for until
    /// [`Session::limit_queue`] says something else.
    pub fn next_if(&self, limit: Option<Duration>, has_room: &dyn Fn() -> bool, queued: u64) -> Option<Session> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let most = self.shared.most_of_client();
        let mut table = lock(&self.shared.table);
        loop {
            let room = has_room();
            table.busy = !room;
            if let Some(mut session) = take(&mut table, room, most) {
                // Until somebody asks for more.
                table.busy = true;
                session.place = session.client().map(|client| {
                    let client = client.fingerprint;
                    *table.served.entry(client).or_default() += 1;
                    Place { shared: Arc::downgrade(&self.shared), client }
                });
                drop(table);
                session.begin(queued);
                return Some(session);
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                table.busy = true;
                return None;
            }
            // What calls a waiting session is a word on its own link.
            let soon = if table.ready.is_empty() { deadline } else { Some(now + POLL) };
            table = wait(&self.shared.changed, table, soon.min(deadline.or(soon)));
        }
    }

    /// Lets whoever waits for a session ask anew whether there is room for one.
    pub fn wake(&self) {
        drop(lock(&self.shared.table));
        self.shared.changed.notify_all();
    }

    /// Takes no further connections, and ends all sessions that are not served yet for `reason`.
    pub fn stop(&self, reason: &Diagnostic) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut table = lock(&self.shared.table);
        table.stopped = Some(reason.clone());
        let forming = std::mem::take(&mut table.forming).into_values().map(|forming| forming.session);
        let waiting: Vec<Session> = forming.chain(std::mem::take(&mut table.ready)).collect();
        drop(table);
        lock(&self.shared.half_open).close_all();
        waiting.into_iter().for_each(|session| give_up(&self.shared, session, reason.clone()));
    }

    /// Bytes that have arrived for sessions which wait to be served.
    pub fn queued_bytes(&self) -> u64 {
        let table = lock(&self.shared.table);
        let forming = table.forming.values().map(|forming| &forming.session);
        forming.chain(&table.ready).map(Session::queued_bytes).sum()
    }

    /// Sessions that are not served yet.
    pub fn waiting(&self) -> usize {
        let table = lock(&self.shared.table);
        table.forming.len() + table.joining + table.ready.len()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        lock(&self.shared.half_open).close_all();
    }
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut number = 0;
    let mut swept = Instant::now();
    let mut announced = swept;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now - swept >= SWEEP {
            swept = now;
            sweep(shared);
        }
        if now - announced >= ANNOUNCE {
            announced = now;
            announce(&lock(&shared.table), shared.most_of_client());
        }
        // An error of one accept, such as too many open files, may be over at the next one.
        let Ok((socket, address)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        number += 1;
        if let Err(error) = admit(shared, socket, address, number) {
            let error = Diagnostic::input("E0714", format!("a connection cannot be served: {error}"));
            complain(shared, error.at(address.to_string()));
        }
    }
}

/// Tells of a connection of somebody who is not known to be a peer, unless too many of them failed of late.
fn complain(shared: &Shared, error: Diagnostic) {
    if let Some(error) = lock(&shared.complaints).admit(error, Instant::now()) {
        (shared.refused)(error);
    }
}

/// Gives the connection `number` a thread of its own.
fn admit(shared: &Arc<Shared>, socket: TcpStream, address: SocketAddr, number: u64) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    let handle = socket.try_clone()?;
    lock(&shared.half_open).add(number, handle, address);
    let owned = Arc::clone(shared);
    let spawned = thread::Builder::new().name("handshake".to_owned()).spawn(move || {
        let outcome = shake_hands(&owned, socket, number);
        let outcome = match outcome {
            Ok((peer, channel)) => greet(&owned, &peer, channel, number),
            Err(error) => {
                lock(&owned.half_open).remove(number);
                owned.endpoint.trusted().complaints().into_iter().for_each(|error| complain(&owned, error));
                return complain(&owned, error.at(address.to_string()));
            }
        };
        lock(&owned.half_open).remove(number);
        owned.endpoint.trusted().complaints().into_iter().for_each(|error| complain(&owned, error));
        if let Err(error) = outcome {
            (owned.refused)(error.at(address.to_string()));
        }
    });
    if spawned.is_err() {
        lock(&shared.half_open).remove(number);
    }
    spawned.map(drop)
}

/// Who has connected.
struct Peer {
    party: Party,
    fingerprint: Fingerprint,
}

/// The TLS connection over `socket`, and whose it is.
fn shake_hands(shared: &Shared, socket: TcpStream, number: u64) -> Result<(Peer, Channel)> {
    let endpoint = &shared.endpoint;
    let limit = endpoint.limits().connect;
    let deadline = Instant::now() + limit;
    let failed = |error| tls_error(None, &error);
    socket.set_read_timeout(Some(limit)).and_then(|()| socket.peek(&mut [0])).map_err(failed)?;
    lock(&shared.half_open).note_speech(number);
    let channel = Channel::accept(socket, endpoint.accepting(), deadline).map_err(failed)?;
    let unknown = || Diagnostic::peer("E0706", "the connecting peer shows no certificate that is pinned");
    let fingerprint = channel.peer_fingerprint().ok_or_else(unknown)?;
    let (party, _) = endpoint.trusted().owner(fingerprint).ok_or_else(unknown)?;
    Ok((Peer { party, fingerprint }, channel))
}

/// Hello and answer on a connection of `peer`, which then joins its session.
fn greet(shared: &Arc<Shared>, from: &Peer, mut channel: Channel, number: u64) -> Result<()> {
    let (endpoint, peer) = (&shared.endpoint, from.party);
    let greeted = Hello::read(&mut channel, peer, endpoint).and_then(|(hello, id)| {
        let owner = owner(endpoint, from, &hello)?;
        if !has_room(&lock(&shared.table), id, owner) {
            // Whoever has gone makes room.
            sweep(shared);
        }
        check_place(&lock(&shared.table), from, &hello, id, owner)?;
        Ok((hello, id, owner))
    });
    let (hello, id, owner) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            // The peer learns the reason if it still listens; the error itself is what counts here.
            let _ = write_control(&mut channel, peer, &Answer::Refused(error.message.clone()));
            channel.close_gently();
            return Err(error);
        }
    };
    write_control(&mut channel, peer, &Answer::Accepted)?;
    lock(&shared.half_open).remove(number);
    let whole = insert(&mut lock(&shared.table), endpoint, from, &hello, (id, owner), channel)?;
    let Some(mut session) = whole else { return Ok(()) };
    session.set_client(owner.and_then(|owner| endpoint.trusted().client(owner)));
    let joined = match owner.filter(|_| session.client().is_none()) {
        // It was removed while the session formed, and nobody counts a session without a client.
        Some(_) => {
            let error = Diagnostic::peer("E0708", "the client of the session is no peer any more");
            session.abort(&error);
            Err(error)
        }
        None => session.join(),
    };
    let mut table = lock(&shared.table);
    table.joining = table.joining.saturating_sub(1);
    joined?;
    if let Some(reason) = table.stopped.clone() {
        drop(table);
        session.abort(&reason);
        return Err(reason);
    }
    table.ready.push_back(session);
    announce(&table, shared.most_of_client());
    drop(table);
    shared.changed.notify_all();
    Ok(())
}

/// The client that a connection is for: the one that opened it, or the one that the server names. The sharing of weights
/// is for none.
fn owner(endpoint: &Endpoint, from: &Peer, hello: &Hello) -> Result<Option<Fingerprint>> {
    let refuse = |why: &str| Err(Diagnostic::peer("E0708", why));
    match (from.party, hello.purpose) {
        (Party::Client, Purpose::Share) => refuse("a client does not share weights"),
        (_, Purpose::Prepared) if endpoint.party().is_third() => {
            refuse("a session with dealt material needs no dealer")
        }
        (Party::Client, _) => Ok(Some(from.fingerprint)),
        (_, Purpose::Share) => Ok(None),
        _ => match hello.client()? {
            None if endpoint.trusted().parties().any(|party| party == Party::Client) => {
                refuse("the server does not say whose session it is")
            }
            client => Ok(client),
        },
    }
}

/// The places in [`Table::ready`] in the order in which sessions are served, those between server and helper first: the
/// oldest of the client of whom least are served, counting those that wait before it.
fn order(table: &Table) -> Vec<usize> {
    let mut of_client = table.served.clone();
    let mut ranks: Vec<(usize, usize)> = Vec::new();
    for (at, session) in table.ready.iter().enumerate() {
        let rank = session.client().map_or(0, |client| {
            let count = of_client.entry(client.fingerprint).or_default();
            *count += 1;
            *count
        });
        ranks.push((rank, at));
    }
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, at)| at).collect()
}

/// Whether `most` sessions of the session's client are served.
fn is_at_limit(table: &Table, session: &Session, most: usize) -> bool {
    session.client().and_then(|client| table.served.get(&client.fingerprint)).is_some_and(|served| *served >= most)
}

/// The session that is served next, if there is one; without `room` only one between server and helper. Of one client at
/// most `most` are served.
fn take(table: &mut Table, room: bool, most: usize) -> Option<Session> {
    let called = |session: &Session| {
        session.is_called() && (room || session.purpose() == Purpose::Share) && !is_at_limit(table, session, most)
    };
    let at = order(table).into_iter().find(|&at| table.ready.get(at).is_some_and(called))?;
    table.ready.remove(at)
}

/// Tells all that wait how many sessions are served before theirs.
fn announce(table: &Table, most: usize) {
    for (at, before) in order(table).into_iter().zip(u32::from(table.busy)..) {
        let Some(session) = table.ready.get(at) else { continue };
        // Others of its own client, if nobody else.
        let before = before.max(u32::from(is_at_limit(table, session, most)));
        if before > 0 {
            session.announce(before);
        }
    }
}

/// Whether one more session of `owner` may form, unless `id` does so already.
fn has_room(table: &Table, id: SessionId, owner: Option<Fingerprint>) -> bool {
    if table.forming.contains_key(&id) {
        return true;
    }
    let of_owner = |found: Option<Fingerprint>| owner.is_some() && found == owner;
    let ready = table.ready.iter().filter(|s| of_owner(s.client().map(|client| client.fingerprint))).count();
    let forming = table.forming.values().filter(|forming| of_owner(forming.owner)).count();
    table.ready.len() + table.joining < MAX_READY
        && table.forming.len() < MAX_FORMING
        && ready < MAX_OF_CLIENT
        && forming < MAX_OF_CLIENT
}

/// Whether a connection of `from` has a place in the session `id`.
fn check_place(table: &Table, from: &Peer, hello: &Hello, id: SessionId, owner: Option<Fingerprint>) -> Result<()> {
    let refuse = |why: &str| Err(Diagnostic::peer("E0708", why));
    if let Some(reason) = &table.stopped {
        return Err(reason.clone());
    }
    if !has_room(table, id, owner) {
        return refuse("too many sessions are waiting, try again later");
    }
    let Some(forming) = table.forming.get(&id) else { return Ok(()) };
    if forming.session.purpose() != hello.purpose {
        return refuse("the parties of the session disagree on its purpose");
    }
    if forming.owner != owner {
        return refuse("the session belongs to another client");
    }
    let taken = forming.session.link(from.party).is_ok()
        || forming.halves.get(&from.party).is_some_and(|(direction, _)| *direction == hello.direction);
    if taken { refuse("the session has this connection already") } else { Ok(()) }
}

/// The peers whose links a session needs before it is whole.
fn needed(endpoint: &Endpoint, purpose: Purpose) -> impl Iterator<Item = Party> {
    endpoint.trusted().parties().filter(move |&peer| purpose.takes(peer))
}

/// Adds a connection to its session, which is taken out of the table if it is complete now.
fn insert(
    table: &mut Table,
    endpoint: &Endpoint,
    from: &Peer,
    hello: &Hello,
    (id, owner): (SessionId, Option<Fingerprint>),
    channel: Channel,
) -> Result<Option<Session>> {
    check_place(table, from, hello, id, owner)?;
    let peer = from.party;
    let forming = table.forming.entry(id).or_insert_with(|| Forming {
        since: Instant::now(),
        owner,
        session: Session::new(endpoint.clone(), id, hello.purpose),
        halves: BTreeMap::new(),
    });
    match (forming.halves.remove(&peer), hello.direction) {
        (None, direction) => drop(forming.halves.insert(peer, (direction, channel))),
        (Some((_, other)), Direction::ToAcceptor) => forming.session.add_link(peer, channel, other)?,
        (Some((_, other)), Direction::ToInitiator) => forming.session.add_link(peer, other, channel)?,
    }
    if needed(endpoint, hello.purpose).any(|peer| forming.session.link(peer).is_err()) {
        return Ok(None);
    }
    table.joining += 1;
    Ok(table.forming.remove(&id).map(|forming| forming.session))
}

/// Drops sessions whose peers have gone or that stay incomplete, and tells the peers that are left.
fn sweep(shared: &Arc<Shared>) {
    let limit = shared.endpoint.limits().connect;
    let mut over: Vec<(Session, Diagnostic)> = Vec::new();
    let mut table = lock(&shared.table);
    let why = |forming: &Forming| {
        let closed = forming.halves.iter().find(|(_, (_, channel))| channel.is_closed()).map(|(&peer, _)| gone(peer));
        let late = (forming.since.elapsed() >= limit).then(|| late(&shared.endpoint, &forming.session, limit));
        forming.session.failure().cloned().or(closed).or(late)
    };
    let found: Vec<(SessionId, Diagnostic)> =
        table.forming.iter().filter_map(|(&id, forming)| Some((id, why(forming)?))).collect();
    for (id, error) in found {
        over.extend(table.forming.remove(&id).map(|forming| (forming.session, error)));
    }
    for session in std::mem::take(&mut table.ready) {
        match session.failure().cloned() {
            Some(error) => over.push((session, error)),
            None => table.ready.push_back(session),
        }
    }
    drop(table);
    for (session, error) in over {
        (shared.refused)(error.clone());
        give_up(shared, session, error);
    }
}

/// Ends a session that is not served: closing a link may wait for its peer, which must not hold up the listener.
fn give_up(shared: &Shared, session: Session, reason: Diagnostic) {
    let told = thread::Builder::new().name("give up".to_owned()).spawn(move || session.abort(&reason));
    if let Err(error) = told {
        (shared.refused)(Diagnostic::internal("E0714", format!("no thread to close a session with: {error}")));
    }
}

/// The error of a session that peers did not join.
fn late(endpoint: &Endpoint, session: &Session, limit: Duration) -> Diagnostic {
    let missing = needed(endpoint, session.purpose()).filter(|&peer| session.link(peer).is_err());
    let names = missing.map(|peer| peer.name()).collect::<Vec<_>>().join(" and ");
    Diagnostic::peer("E0708", format!("{names} did not join the session in {} s", limit.as_secs_f64()))
        .note("help      see that it runs, with the same plan, and that it reaches this address")
}
