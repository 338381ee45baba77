//! What a party needs to take part in sessions, and the opening of connections.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result, files};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ServerConfig};
use zeroize::Zeroizing;

use super::link::{Link, Options};
use super::meter::Meter;
use super::network::Network;
use super::party::{Party, dials};
use super::session::{Direction, Hello, MAX_PLAN_CHARS, Purpose, Session, SessionId, Wanted};
use super::tls::{Channel, Identity, client_config, server_config, tls_error};
use super::trust::Trusted;
use super::watch::Watch;
use crate::config::{Certificates, Limits, PartyConfig};

/// Largest key or certificate, in bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;
/// Time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// A party with its key, its peers and the plan it runs. Copies are cheap and share everything.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    party: Party,
    listen: Option<String>,
    limits: Limits,
    plan: String,
    network: Option<Network>,
    /// Peers that this party connects to.
    acceptors: BTreeMap<Party, Acceptor>,
    /// Peers that connect to this party.
    trusted: Arc<Trusted>,
    accepting: Arc<ServerConfig>,
}

struct Acceptor {
    address: String,
    tls: Arc<ClientConfig>,
}

impl Endpoint {
    /// Reads the key and certificate of `config`. `plan` is the digest of the plan, as text; `network` is emulated on
    /// what this party sends.
    pub fn new(config: &PartyConfig, plan: &str, network: Option<Network>) -> Result<Endpoint> {
        if plan.chars().count() > MAX_PLAN_CHARS {
            return Err(Diagnostic::internal("E0708", "the plan's digest is too long"));
        }
        let identity = read_identity(config)?;
        let mut acceptors = BTreeMap::new();
        let initiators = config.peers.iter().filter(|(peer, _)| dials(**peer, config.party));
        let trusted = Arc::new(Trusted::new(initiators.map(|(&peer, entry)| (peer, &entry.certificates)))?);
        for (&peer, entry) in config.peers.iter().filter(|(peer, _)| dials(config.party, **peer)) {
            let address = entry.address.clone().ok_or_else(|| {
                Diagnostic::input("E0711", format!("peers.{peer}.address is missing"))
                    .note(format!("expected  host:port, as the {} connects to the {peer}", config.party))
            })?;
            let Certificates::Fingerprints(pins) = &entry.certificates else { return Err(one_pin(peer)) };
            let [pin] = **pins else { return Err(one_pin(peer)) };
            acceptors.insert(peer, Acceptor { address, tls: client_config(&identity, pin)? });
        }
        let accepting = server_config(&identity, Arc::clone(&trusted))?;
        let shared = Shared {
            party: config.party,
            listen: config.listen.clone(),
            limits: config.limits,
            plan: plan.to_owned(),
            network,
            acceptors,
            trusted,
            accepting,
        };
        Ok(Endpoint { shared: Arc::new(shared) })
    }

    /// The party itself.
    pub fn party(&self) -> Party {
        self.shared.party
    }

    /// Starts a session under a fresh id: connects to every peer that this party connects to and that takes part.
    pub fn open(&self, purpose: Purpose) -> Result<Session> {
        self.open_as(purpose, SessionId::random()?)
    }

    /// [`open`](Self::open) under the id that somebody gave it.
    pub fn open_as(&self, purpose: Purpose, id: SessionId) -> Result<Session> {
        let mut session = Session::new(self.clone(), id, purpose);
        for &peer in self.shared.acceptors.keys().filter(|peer| purpose.takes(**peer)) {
            if let Err(error) = session.dial(peer) {
                session.abort(&error);
                return Err(error);
            }
        }
        if purpose == Purpose::Share {
            // It waits in no queue.
            session.begin(u64::MAX);
        }
        Ok(session)
    }

    pub(super) fn listen_address(&self) -> Option<&str> {
        self.shared.listen.as_deref()
    }

    /// The party's limits of time and size.
    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    pub(super) fn plan(&self) -> &str {
        &self.shared.plan
    }

    /// TLS for accepted connections.
    pub(super) fn accepting(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.accepting)
    }

    /// The peers that connect to this party.
    pub(super) fn trusted(&self) -> &Trusted {
        &self.shared.trusted
    }

    /// The peers that this party connects to.
    pub(super) fn acceptors(&self) -> impl Iterator<Item = Party> {
        self.shared.acceptors.keys().copied()
    }

    /// A link of this party over two connections, from the peer and to it; `waiting` until its session is served.
    pub(super) fn link(
        &self,
        peer: Party,
        (from, to): (Channel, Channel),
        meter: &Arc<Meter>,
        watch: &Arc<Watch>,
        waiting: bool,
    ) -> Result<Link> {
        let Limits { receive, max_frame_bytes, .. } = self.shared.limits;
        let network = self.shared.network;
        let (meter, watch) = (Arc::clone(meter), Arc::clone(watch));
        Link::over(from, to, Options { peer, meter, watch, waiting, receive, max_frame_bytes, network })
    }

    /// Opens both connections to `peer` for a session. Ends when the session fails meanwhile.
    pub(super) fn dial(&self, peer: Party, wanted: &Wanted, meter: &Arc<Meter>, watch: &Arc<Watch>) -> Result<Link> {
        let Some(acceptor) = self.shared.acceptors.get(&peer) else {
            return Err(Diagnostic::input("E0711", format!("no peer {peer} that this party connects to")).note(
                format!("help      add [peers.{peer}] with address and fingerprint to this party's configuration"),
            ));
        };
        let open = |direction| {
            let limit = self.shared.limits.connect;
            let socket = connect(peer, &acceptor.address, limit, watch)?;
            self.open_channel(
                peer,
                acceptor,
                socket,
                Hello::new(wanted, self.shared.party, direction, &self.shared.plan),
            )
        };
        let to = open(Direction::ToAcceptor)?;
        let from = open(Direction::ToInitiator)?;
        // The server connects for sessions that it will serve later.
        self.link(peer, (from, to), meter, watch, self.party() == Party::Server)
    }

    fn open_channel(&self, peer: Party, acceptor: &Acceptor, socket: TcpStream, hello: Hello) -> Result<Channel> {
        let deadline = Instant::now() + self.shared.limits.connect;
        let mut channel = Channel::open(socket, Arc::clone(&acceptor.tls), deadline)
            .map_err(|error| tls_error(Some(peer), &error))?;
        hello.introduce(&mut channel, peer)?;
        Ok(channel)
    }
}

fn one_pin(peer: Party) -> Diagnostic {
    Diagnostic::input("E0711", format!("peers.{peer} has not one fingerprint"))
        .note("expected  fingerprint = \"…\", as this party connects to that one")
}

/// Connects to `peer` at `address`, trying again until `limit` is over or the session has failed: parties start in any
/// order.
fn connect(peer: Party, address: &str, limit: Duration, watch: &Watch) -> Result<TcpStream> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(failure) = watch.failure() {
            return Err(failure.clone());
        }
        let error = match connect_once(address, deadline) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        if Instant::now() + RETRY >= deadline {
            return Err(Diagnostic::peer("E0707", format!("no connection to {peer}"))
                .note(format!("expected  a connection to {address} within {} s", limit.as_secs_f64()))
                .note(format!("found     {error}"))
                .note(format!("help      start {peer}, or correct peers.{peer}.address")));
        }
        thread::sleep(RETRY);
    }
}

fn connect_once(address: &str, deadline: Instant) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("the name has no address");
    for address in address.to_socket_addrs()? {
        let time = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, time) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read_identity(config: &PartyConfig) -> Result<Identity> {
    let wrong = |path: &Path, what: String| {
        Diagnostic::input("E0712", what)
            .at(path.display().to_string())
            .note("help      make a key and certificate with `ombra-run keygen`")
    };
    let read = |path: &Path| {
        files::read_bounded(path, MAX_PEM_BYTES)
            .map(Zeroizing::new)
            .map_err(|error| wrong(path, format!("the file cannot be read: {error}")))
    };
    let certificate = CertificateDer::from_pem_slice(&read(&config.certificate)?)
        .map_err(|_| wrong(&config.certificate, "the file holds no certificate in PEM".to_owned()))?;
    let key = PrivateKeyDer::from_pem_slice(&read(&config.key)?)
        .map_err(|_| wrong(&config.key, "the file holds no private key in PEM".to_owned()))?;
    Ok(Identity { certificate, key })
}
