//! The accepting side: a listener, handshakes off its loop, and the grouping of connections into sessions.
//!
//! Whoever connects gets a thread and a time limit for its handshake. No more than [`MAX_HALF_OPEN`] handshakes go on at
//! once; one more closes the oldest, so connections that say nothing cannot keep others out. Only connections of
//! configured peers, with the same plan, are kept.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::endpoint::Endpoint;
use super::party::Party;
use super::queue::{lock, wait};
use super::session::{Answer, Direction, Hello, Purpose, Session, SessionId, write_control};
use super::tls::{Channel, tls_error};

/// Handshakes that may go on at once.
const MAX_HALF_OPEN: usize = 32;
/// Sessions that may lack connections, and sessions that may wait to be served.
const MAX_FORMING: usize = 16;
const MAX_READY: usize = 16;
/// How often the listener is looked at.
const POLL: Duration = Duration::from_millis(2);
/// How often incomplete sessions are looked at.
const SWEEP: Duration = Duration::from_millis(100);

/// Listens for sessions. Dropping it stops listening; sessions it has handed out go on.
pub struct Acceptor {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    endpoint: Endpoint,
    stop: AtomicBool,
    half_open: Mutex<VecDeque<(u64, TcpStream)>>,
    table: Mutex<Table>,
    changed: Condvar,
    refused: Box<dyn Fn(Diagnostic) + Send + Sync>,
}

#[derive(Default)]
struct Table {
    forming: BTreeMap<SessionId, Forming>,
    ready: VecDeque<Session>,
}

/// A session that lacks connections.
struct Forming {
    since: Instant,
    purpose: Purpose,
    parts: BTreeMap<Party, Part>,
}

/// The connections of one initiator.
#[derive(Default)]
struct Part {
    from: Option<Channel>,
    to: Option<Channel>,
}

impl Acceptor {
    /// Listens at the address of `endpoint`. `refused` is told, from other threads, why a connection was refused or a
    /// session given up.
    pub fn bind(endpoint: &Endpoint, refused: impl Fn(Diagnostic) + Send + Sync + 'static) -> Result<Acceptor> {
        let Some(listen) = endpoint.listen_address() else {
            return Err(Diagnostic::input("E0713", format!("the {} does not listen", endpoint.party()))
                .note("help      add `listen` to this party's configuration"));
        };
        if endpoint.initiators().is_empty() {
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
    ///
    /// The server calls [`Session::join`] on it to connect to the helper.
    pub fn next(&self, limit: Option<Duration>) -> Option<Session> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut table = lock(&self.shared.table);
        loop {
            if let Some(session) = table.ready.pop_front() {
                return Some(session);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
            table = wait(&self.shared.changed, table, deadline);
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for (_, socket) in lock(&self.shared.half_open).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut number = 0;
    let mut swept = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            give_up_late_sessions(shared);
        }
        // An error of one accept, such as too many open files, may be over at the next one.
        let Ok((socket, address)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        number += 1;
        if let Err(error) = admit(shared, socket, address, number) {
            (shared.refused)(
                Diagnostic::new(ombra_ir::Kind::Input, "E0714", format!("a connection cannot be served: {error}"))
                    .at(address.to_string()),
            );
        }
    }
}

/// Gives the connection `number` a thread of its own, closing the oldest half-open one if there are too many.
fn admit(shared: &Arc<Shared>, socket: TcpStream, address: SocketAddr, number: u64) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    let handle = socket.try_clone()?;
    {
        let mut half_open = lock(&shared.half_open);
        if half_open.len() >= MAX_HALF_OPEN
            && let Some((_, oldest)) = half_open.pop_front()
        {
            let _ = oldest.shutdown(Shutdown::Both);
        }
        half_open.push_back((number, handle));
    }
    let owned = Arc::clone(shared);
    let spawned = thread::Builder::new().name("handshake".to_owned()).spawn(move || {
        let outcome = greet(&owned, socket, number);
        forget(&owned, number);
        if let Err(error) = outcome {
            (owned.refused)(error.at(address.to_string()));
        }
    });
    if spawned.is_err() {
        forget(shared, number);
    }
    spawned.map(drop)
}

fn forget(shared: &Shared, number: u64) {
    lock(&shared.half_open).retain(|(other, _)| *other != number);
}

/// Handshake, hello and answer on one accepted connection, which then joins its session.
fn greet(shared: &Shared, socket: TcpStream, number: u64) -> Result<()> {
    let endpoint = &shared.endpoint;
    let deadline = Instant::now() + endpoint.limits().connect;
    let mut channel =
        Channel::accept(socket, endpoint.accepting(), deadline).map_err(|error| tls_error(None, &error))?;
    let fingerprint = channel.peer_fingerprint();
    let peer = endpoint.initiators().iter().find(|(_, pin)| Some(**pin) == fingerprint).map(|(&peer, _)| peer);
    let peer =
        peer.ok_or_else(|| Diagnostic::peer("E0706", "the connecting peer shows no certificate that is pinned"))?;
    let greeted = Hello::read(&mut channel, peer, endpoint).and_then(|(hello, id)| {
        check_room(&lock(&shared.table), peer, &hello, id)?;
        Ok((hello, id))
    });
    let (hello, id) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            // The peer learns the reason if it still listens; the error itself is what counts here.
            let _ = write_control(&mut channel, peer, &Answer::Refused(error.message.clone()));
            channel.close_gently();
            return Err(error);
        }
    };
    write_control(&mut channel, peer, &Answer::Accepted)?;
    forget(shared, number);
    let whole = insert(&mut lock(&shared.table), endpoint, peer, &hello, id, channel)?;
    if let Some(forming) = whole {
        let session = complete(endpoint, id, forming)?;
        lock(&shared.table).ready.push_back(session);
        shared.changed.notify_all();
    }
    Ok(())
}

/// Whether a connection of `peer` has a place in the session `id`.
fn check_room(table: &Table, peer: Party, hello: &Hello, id: SessionId) -> Result<()> {
    let refuse = |why: &str| Err(Diagnostic::peer("E0708", why));
    let Some(forming) = table.forming.get(&id) else {
        if table.ready.len() >= MAX_READY || table.forming.len() >= MAX_FORMING {
            return refuse("too many sessions are waiting, try again later");
        }
        return Ok(());
    };
    if forming.purpose != hello.purpose {
        return refuse("the parties of the session disagree on its purpose");
    }
    let taken = forming.parts.get(&peer).is_some_and(|part| match hello.direction {
        Direction::ToAcceptor => part.from.is_some(),
        Direction::ToInitiator => part.to.is_some(),
    });
    if taken { refuse("the session has this connection already") } else { Ok(()) }
}

/// Adds a connection to its session, which is taken out of the table if it is complete now.
fn insert(
    table: &mut Table,
    endpoint: &Endpoint,
    peer: Party,
    hello: &Hello,
    id: SessionId,
    channel: Channel,
) -> Result<Option<Forming>> {
    check_room(table, peer, hello, id)?;
    let forming = table.forming.entry(id).or_insert_with(|| Forming {
        since: Instant::now(),
        purpose: hello.purpose,
        parts: BTreeMap::new(),
    });
    let part = forming.parts.entry(peer).or_default();
    match hello.direction {
        Direction::ToAcceptor => part.from = Some(channel),
        Direction::ToInitiator => part.to = Some(channel),
    }
    let whole = |peer| forming.parts.get(peer).is_some_and(|part| part.from.is_some() && part.to.is_some());
    let complete = endpoint.initiators().keys().all(whole);
    Ok(if complete { table.forming.remove(&id) } else { None })
}

/// The session made of the complete parts of `forming`.
fn complete(endpoint: &Endpoint, id: SessionId, forming: Forming) -> Result<Session> {
    let mut session = Session::new(endpoint.clone(), id, forming.purpose);
    for (peer, part) in forming.parts {
        if let Part { from: Some(from), to: Some(to) } = part {
            session.add_link(endpoint.link(peer, from, to, session.meter())?);
        }
    }
    Ok(session)
}

/// Drops sessions that stay incomplete, and tells the peers that did connect.
fn give_up_late_sessions(shared: &Arc<Shared>) {
    let limit = shared.endpoint.limits().receive;
    let mut table = lock(&shared.table);
    let ids: Vec<SessionId> =
        table.forming.iter().filter(|(_, forming)| forming.since.elapsed() >= limit).map(|(&id, _)| id).collect();
    let late: Vec<(SessionId, Forming)> =
        ids.into_iter().filter_map(|id| table.forming.remove(&id).map(|forming| (id, forming))).collect();
    drop(table);
    for (id, forming) in late {
        let missing: Vec<&str> = shared
            .endpoint
            .initiators()
            .keys()
            .filter(|peer| !forming.parts.get(peer).is_some_and(|part| part.from.is_some() && part.to.is_some()))
            .map(|peer| peer.name())
            .collect();
        let names = missing.join(" and ");
        let error = Diagnostic::peer("E0708", format!("{names} did not join the session in {} s", limit.as_secs_f64()));
        (shared.refused)(error.clone());
        let endpoint = shared.endpoint.clone();
        // Closing a link may wait for its peer, which must not hold up the listener.
        let told = thread::Builder::new().name("give up".to_owned()).spawn(move || {
            if let Ok(session) = complete(&endpoint, id, forming) {
                session.abort(&error);
            }
        });
        if let Err(error) = told {
            (shared.refused)(Diagnostic::internal("E0714", format!("no thread to close a session with: {error}")));
        }
    }
}
