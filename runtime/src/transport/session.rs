//! Sessions: the links of one party for one run, and how two parties agree on them.
//!
//! The initiator opens two connections to the acceptor. On each it says hello: which session, who it is, the direction the
//! connection will have, the digest of its plan, and what the session is for. The acceptor answers that it accepts or why
//! it refuses. From then on the connection is simplex.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::acceptor::Place;
use super::endpoint::Endpoint;
use super::frame::{Kind, Message, gone, printable, read_message};
use super::link::Link;
use super::meter::Meter;
use super::party::Party;
use super::tls::{Channel, Fingerprint, parse_hex};
use super::trust::Client;
use super::watch::Watch;
use crate::config::Limits;

/// Largest hello and answer.
const MAX_HELLO_BYTES: u64 = 4 << 10;
/// Longest digest of a plan.
pub(super) const MAX_PLAN_CHARS: usize = 128;
/// Characters of a digest that a message shows.
const SHOWN_CHARS: usize = 12;

/// Names one session to all its parties.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// A fresh id from the operating system's random numbers.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| Diagnostic::internal("E0714", format!("no random numbers: {error}")))?;
        Ok(SessionId(bytes))
    }
}

/// The session whose id is written as `text`.
pub fn parse_session(text: &str) -> Option<SessionId> {
    parse_hex(text).map(SessionId)
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// To run the plan, whose digest must be the same on both sides.
    Run,
    /// To run the plan between client and server alone, with what a dealer made ahead of time.
    Prepared,
    /// To measure the links; no plan is needed.
    Measure,
    /// To share the server's weights anew, between server and helper alone.
    Share,
}

impl Purpose {
    /// Whether a party takes part in such a session.
    pub(super) fn takes(self, party: Party) -> bool {
        match self {
            Purpose::Run | Purpose::Measure => true,
            Purpose::Prepared => !party.is_third(),
            Purpose::Share => party != Party::Client,
        }
    }

    /// Whether steps of the plan are run in it.
    pub fn runs(self) -> bool {
        matches!(self, Purpose::Run | Purpose::Prepared)
    }
}

/// The session that a connection is opened for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub id: SessionId,
    pub purpose: Purpose,
    /// Whose it is, where the server tells the helper.
    pub client: Option<Fingerprint>,
}

/// Which way a connection will carry frames.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    ToAcceptor,
    ToInitiator,
}

/// The first message on a connection.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    session: String,
    party: Party,
    pub(super) direction: Direction,
    plan: String,
    pub(super) purpose: Purpose,
    /// The fingerprint of the client whose session it is, said by the server to the helper.
    client: Option<String>,
}

/// The acceptor's answer to a hello.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Accepted,
    Refused(String),
}

impl Hello {
    pub(super) fn new(wanted: &Wanted, party: Party, direction: Direction, plan: &str) -> Self {
        let client = wanted.client.map(|client| client.to_string());
        Hello {
            session: wanted.id.to_string(),
            party,
            direction,
            plan: plan.to_owned(),
            purpose: wanted.purpose,
            client,
        }
    }

    /// The client whose session it is, as the server says.
    ///
    /// # Errors
    /// `E0708` for what is no fingerprint.
    pub(super) fn client(&self) -> Result<Option<Fingerprint>> {
        let wrong = |_| Diagnostic::peer("E0708", "the server names no client's certificate");
        self.client.as_deref().map(|text| text.parse::<Fingerprint>().map_err(wrong)).transpose()
    }

    /// Says hello to `peer` and waits for its answer.
    pub(super) fn introduce(&self, channel: &mut Channel, peer: Party) -> Result<()> {
        write_control(channel, peer, self)?;
        match read_control(channel, peer)? {
            Answer::Accepted => Ok(()),
            Answer::Refused(why) => {
                Err(Diagnostic::peer("E0708", format!("{peer} refused the session: {}", printable(&why, 400))))
            }
        }
    }

    /// Reads the hello of `peer`, which is known by its certificate, and checks it against `own`, the acceptor.
    pub(super) fn read(channel: &mut Channel, peer: Party, own: &Endpoint) -> Result<(Hello, SessionId)> {
        let hello: Hello = read_control(channel, peer)?;
        let refuse = |why: String| Diagnostic::peer("E0708", why);
        if hello.party != peer {
            return Err(refuse(format!("the certificate of {peer} came with the name {}", hello.party)));
        }
        if hello.purpose != Purpose::Measure && hello.plan != own.plan() {
            let shown = |digest: &str| {
                let text = printable(digest, SHOWN_CHARS);
                if digest.chars().count() > SHOWN_CHARS { format!("{text}…") } else { text }
            };
            return Err(refuse(format!(
                "plan digest differs: {} runs {}, {peer} sent {}",
                own.party(),
                shown(own.plan()),
                shown(&hello.plan)
            )));
        }
        let id = parse_hex(&hello.session).map(SessionId);
        let id = id.ok_or_else(|| refuse("the session id is not made of 32 hexadecimal digits".to_owned()))?;
        Ok((hello, id))
    }
}

/// Sends `value` to `peer` while the connection is being set up.
pub(super) fn write_control<T: Serialize>(channel: &mut Channel, peer: Party, value: &T) -> Result<()> {
    let message = Message::control(value)?;
    let mut bytes = message.header().to_vec();
    bytes.extend_from_slice(&message.frame.payload);
    channel
        .write_all(&bytes)
        .and_then(|()| channel.flush())
        .map_err(|error| gone(peer).note(format!("found     {error}")))
}

fn read_control<T: for<'a> Deserialize<'a>>(channel: &mut Channel, peer: Party) -> Result<T> {
    let message = read_message(channel, peer, 0, |_| true)?.ok_or_else(|| gone(peer))?;
    message.parse_control(peer, MAX_HELLO_BYTES)
}

/// Ends a session that somebody else serves.
pub struct Ending(Arc<Watch>);

impl Ending {
    /// Every wait in the session ends with `cause`, if it has not failed before. Whoever serves it tells the peers.
    pub fn end(&self, cause: &Diagnostic) {
        self.0.fail(cause);
    }
}

/// The links of one party for one run. Dropping it closes them.
pub struct Session {
    party: Party,
    id: SessionId,
    purpose: Purpose,
    meter: Arc<Meter>,
    watch: Arc<Watch>,
    links: BTreeMap<Party, Link>,
    limits: Limits,
    endpoint: Option<Endpoint>,
    /// Whose session it is, where that is known by a certificate.
    client: Option<Client>,
    /// What counts it as served.
    pub(super) place: Option<Place>,
}

impl Session {
    pub(super) fn new(endpoint: Endpoint, id: SessionId, purpose: Purpose) -> Self {
        let party = endpoint.party();
        let (meter, links) = (Arc::new(Meter::new()), BTreeMap::new());
        let limits = endpoint.limits();
        let (watch, endpoint) = (Arc::default(), Some(endpoint));
        Session { party, id, purpose, meter, watch, links, limits, endpoint, client: None, place: None }
    }

    /// Sessions of `parties`, each a different one, with a link in memory between every two of them and the limits that
    /// hold by default. The result has the order of `parties`.
    pub fn in_memory(parties: &[Party]) -> Result<Vec<Session>> {
        let id = SessionId::random()?;
        let mut sessions: Vec<Session> = Vec::new();
        for &party in parties {
            let (meter, watch) = (Arc::new(Meter::new()), Arc::default());
            let mut links = BTreeMap::new();
            for other in &mut sessions {
                let far = (other.party, &other.meter, &other.watch);
                let (near, far) = Link::watched_pair((party, &meter, &watch), far);
                links.insert(other.party, near);
                other.links.insert(party, far);
            }
            let limits = Limits::default();
            let (purpose, endpoint, client, place) = (Purpose::Run, None, None, None);
            sessions.push(Session { party, id, purpose, meter, watch, links, limits, endpoint, client, place });
        }
        Ok(sessions)
    }

    /// The party whose session this is.
    pub fn party(&self) -> Party {
        self.party
    }

    /// The name of the session, the same on every party.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// What the session is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Whose session it is, at a party that was connected to.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    pub(super) fn set_client(&mut self, client: Option<Client>) {
        self.client = client;
    }

    /// Checks that this party still has the client among its peers.
    ///
    /// # Errors
    /// `E0708`.
    pub fn check_client(&self) -> Result<()> {
        let (Some(endpoint), Some(client)) = (&self.endpoint, &self.client) else { return Ok(()) };
        match endpoint.trusted().client(client.fingerprint) {
            Some(_) => Ok(()),
            None => Err(Diagnostic::peer("E0708", format!("the client {} is no peer any more", client.name))),
        }
    }

    /// This party's limits of time and size.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The meter that all links of this session count in.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The link to `peer`.
    pub fn link(&self, peer: Party) -> Result<&Link> {
        self.links.get(&peer).ok_or_else(|| {
            Diagnostic::input("E0711", format!("this session has no link to {peer}"))
                .note(format!("help      add [peers.{peer}] to this party's configuration"))
        })
    }

    /// Every link, in the order of the peers.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The links themselves, in the order of the peers.
    pub fn into_links(self) -> Vec<Link> {
        self.links.into_values().collect()
    }

    /// Connects to every peer that this party connects to and is not linked to yet: the server calls it on a session it
    /// accepted. When one fails, the other peers are told.
    pub fn join(&mut self) -> Result<()> {
        let peers: Vec<Party> = self.endpoint.iter().flat_map(Endpoint::acceptors).collect();
        let purpose = self.purpose;
        for peer in peers.into_iter().filter(|peer| purpose.takes(*peer)) {
            if !self.links.contains_key(&peer)
                && let Err(error) = self.dial(peer)
            {
                self.abort(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until the server serves this session of a client's; `told` hears how many it serves before, whenever that
    /// changes.
    ///
    /// # Errors
    /// What ended the session, `E0702` for a server that says nothing.
    pub fn wait_for_turn(&self, told: &mut dyn FnMut(u32)) -> Result<()> {
        match self.links.get(&Party::Server) {
            Some(server) if self.party == Party::Client => server.wait_for_turn(told),
            _ => Ok(()),
        }
    }

    /// Tells every peer that this party has done its part: that its links end then is no failure.
    pub fn finish(&self) {
        self.links.values().for_each(Link::finish);
    }

    /// Why the session has failed while nobody looked, if it has.
    pub fn failure(&self) -> Option<&Diagnostic> {
        self.watch.failure()
    }

    /// Whether it may be served now: the helper takes what the server takes.
    pub(super) fn is_called(&self) -> bool {
        let server = self.links.get(&Party::Server);
        !self.party.is_third() || server.is_none_or(|server| server.inbox().is_served())
    }

    /// Begins to serve it: more may be queued now, of a client `of_client` bytes, and the server's peers hear that it is
    /// their turn.
    pub(super) fn begin(&self, of_client: u64) {
        for link in self.links.values() {
            link.inbox().limit(match link.peer() {
                Party::Client => of_client,
                Party::Dealer => self.limits.dealt_window_bytes / 2,
                Party::Server | Party::Helper => u64::MAX,
            });
            self.tell_turn(link, 0);
        }
    }

    /// Tells the client that `before` sessions are served before its own. The helper tells those whose session the server
    /// serves already that it has no room for it yet.
    pub(super) fn announce(&self, before: u32) {
        match self.party {
            Party::Helper | Party::Dealer if self.is_called() => self.keep_alive(true),
            Party::Helper | Party::Dealer => {}
            _ => self.links.get(&Party::Client).into_iter().for_each(|client| self.tell_turn(client, before)),
        }
    }

    fn tell_turn(&self, link: &Link, before: u32) {
        if self.party != Party::Client {
            link.say(Kind::Turn, before);
        }
    }

    /// Tells every peer that this party is at work for the session, though nothing comes of it yet; `false` says that
    /// this is over.
    pub fn keep_alive(&self, at_work: bool) {
        self.links.values().for_each(|link| self.tell_turn(link, u32::from(at_work)));
    }

    /// Tells the third party that this one is at work in a step, in which it may have nothing to say to it, nor take what
    /// it sends, for long.
    pub(crate) fn say_at_work(&self) {
        // It waits for nobody.
        self.links.values().filter(|link| link.peer().is_third()).for_each(|link| link.say(Kind::Waiting, u32::MAX));
    }

    /// Lets a peer have at most `bytes` queued here from now on, and no longer frame: what is more waits at the peer, and is
    /// an error where this party waits for a frame.
    pub fn limit_queue(&self, peer: Party, bytes: u64) {
        self.links.get(&peer).into_iter().for_each(|link| link.inbox().limit(bytes));
    }

    /// Notes whether a step is under way, in which a client may wait for another party.
    pub fn set_stepping(&self, stepping: bool) {
        self.watch.set_stepping(stepping);
    }

    /// What ends the session from anywhere, also when that is held by nobody else any more.
    pub fn ending(&self) -> Ending {
        Ending(Arc::clone(&self.watch))
    }

    /// Ends the session from another thread than the one that serves it: every wait in it ends, and the peers are told.
    pub fn end(&self, cause: &Diagnostic) {
        self.watch.fail(cause);
        self.abort(cause);
    }

    /// Bytes that have arrived and wait to be asked for.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.links.values().map(|link| link.inbox().bytes()).sum()
    }

    /// Tells every peer that the run failed here: the code and place of `cause`, nothing else.
    pub fn abort(&self, cause: &Diagnostic) {
        for link in self.links.values() {
            link.abort(cause);
        }
    }

    pub(super) fn dial(&mut self, peer: Party) -> Result<()> {
        if let Some(endpoint) = &self.endpoint {
            let client = self.client.as_ref().map(|client| client.fingerprint);
            let wanted = Wanted { id: self.id, purpose: self.purpose, client };
            let link = endpoint.dial(peer, &wanted, &self.meter, &self.watch)?;
            self.links.insert(peer, link);
        }
        Ok(())
    }

    /// Adds the link over two connections of a peer that has connected to this party.
    pub(super) fn add_link(&mut self, peer: Party, from: Channel, to: Channel) -> Result<()> {
        if let Some(endpoint) = &self.endpoint {
            let link = endpoint.link(peer, (from, to), &self.meter, &self.watch, true)?;
            self.links.insert(peer, link);
        }
        Ok(())
    }
}
