//! Connections that are not what their session says: what a client could do that knows the id of another one's session.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::frame::Kind;
use super::queue::Patience;
use super::session::Wanted;
use super::*;
use crate::config::{Certificates, PartyConfig};
use crate::keygen::{generate, write_local_set};

const SOON: Option<Duration> = Some(Duration::from_secs(10));

/// Endpoints of two clients, the server and the helper.
struct Parties {
    folder: PathBuf,
    clients: [Endpoint; 2],
    server: Endpoint,
    helper: Endpoint,
}

impl Parties {
    fn new(name: &str) -> Parties {
        Parties::with(name, 32)
    }

    /// Parties of whom the server serves `most` sessions of a client at once.
    fn with(name: &str, most: u32) -> Parties {
        let folder = std::env::temp_dir().join(format!("ombra-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let configs = write_local_set(&folder, Party::Helper).unwrap();
        let [first, mut server, mut helper] = configs.map(|path| PartyConfig::read(&path).unwrap());
        let other = generate(Party::Client, &folder.join("other")).unwrap();
        let mut second = first.clone();
        (second.key, second.certificate) = (folder.join("other/key.pem"), folder.join("other/cert.pem"));
        for config in [&mut server, &mut helper] {
            let peer = config.peers.get_mut(&Party::Client).unwrap();
            let Certificates::Fingerprints(list) = &mut peer.certificates else { panic!("a list") };
            list.push(other);
        }
        server.limits.max_sessions_of_client = most;
        let endpoint = |config: &PartyConfig| Endpoint::new(config, "plan", None).unwrap();
        let [server, helper] = [&server, &helper].map(endpoint);
        Parties { clients: [&first, &second].map(endpoint), folder, server, helper }
    }

    fn fingerprint(&self, client: usize) -> Fingerprint {
        let file = self.folder.join(["client/cert.pem", "other/cert.pem"][client]);
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(&fs::read(file).unwrap());
        Fingerprint::of(&certificate.map(|found: rustls::pki_types::CertificateDer<'_>| found).unwrap())
    }
}

impl Drop for Parties {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn dial(from: &Endpoint, to: Party, wanted: &Wanted) -> Result<Link> {
    from.dial(to, wanted, &Arc::new(Meter::new()), &Arc::default())
}

fn run(id: SessionId, client: Option<Fingerprint>) -> Wanted {
    Wanted { id, purpose: Purpose::Run, client }
}

fn refusal(outcome: Result<Link>) -> Diagnostic {
    let error = outcome.err().expect("a refusal");
    assert_eq!(error.code, "E0708", "{error}");
    error
}

#[test]
fn nobody_joins_a_session_of_another_client() {
    let parties = Parties::new("hijack");
    let helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let server = Acceptor::bind(&parties.server, drop).unwrap();
    let [owner, thief] = &parties.clients;
    let belongs = |error: Diagnostic| assert!(error.message.contains("belongs to another client"), "{error}");
    // Before its owner comes, and after it.
    let id = SessionId::random().unwrap();
    let _held = dial(owner, Party::Helper, &run(id, None)).unwrap();
    belongs(refusal(dial(thief, Party::Helper, &run(id, None))));
    let stolen = SessionId::random().unwrap();
    let _other = dial(thief, Party::Helper, &run(stolen, None)).unwrap();
    belongs(refusal(dial(owner, Party::Helper, &run(stolen, None))));
    // The server names the client whose connection it has, and so does not come to the other one's session.
    let named = Some(parties.fingerprint(0));
    belongs(refusal(dial(&parties.server, Party::Helper, &run(stolen, named))));
    let _whole = dial(&parties.server, Party::Helper, &run(id, named)).unwrap();
    // With the whole session, everybody has the same client.
    let session = owner.open(Purpose::Run).unwrap();
    belongs_to(&server.next(SOON).unwrap(), &parties);
    let at_helper = [helper.next(SOON), helper.next(SOON)];
    assert!(at_helper.iter().flatten().any(|found| found.id() == session.id()));
    at_helper.iter().flatten().for_each(|found| belongs_to(found, &parties));
}

fn belongs_to(session: &Session, parties: &Parties) {
    assert_eq!(session.client().unwrap().fingerprint, parties.fingerprint(0));
}

#[test]
fn the_server_says_whose_session_it_is_and_shares_weights_alone() {
    let parties = Parties::new("named");
    let helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let _server = Acceptor::bind(&parties.server, drop).unwrap();
    let id = SessionId::random().unwrap();
    let error = refusal(dial(&parties.server, Party::Helper, &run(id, None)));
    assert!(error.message.contains("does not say whose session"), "{error}");
    let share = Wanted { id, purpose: Purpose::Share, client: None };
    for to in [Party::Server, Party::Helper] {
        let error = refusal(dial(&parties.clients[0], to, &share));
        assert!(error.message.contains("does not share weights"), "{error}");
    }
    // A session of server and helper alone is whole without a client.
    let session = parties.server.open(Purpose::Share).unwrap();
    session.link(Party::Helper).unwrap().send_control(&1).unwrap();
    let found = helper.next_if(SOON, &|| false, u64::MAX).expect("it needs no room");
    assert!(found.id() == session.id() && found.client().is_none());
    assert_eq!(found.link(Party::Server).unwrap().recv_control::<u32>(10).unwrap(), 1);
}

#[test]
fn places_go_round_by_client() {
    let parties = Parties::new("fair");
    let _helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let server = Acceptor::bind(&parties.server, drop).unwrap();
    let [greedy, modest] = &parties.clients;
    let many: Vec<Session> = (0..4).map(|_| greedy.open(Purpose::Run).unwrap()).collect();
    let one = modest.open(Purpose::Run).unwrap();
    while server.waiting() < 5 {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(server.next_if(Some(Duration::from_millis(50)), &|| false, u64::MAX).is_none(), "there is no room");
    let places: BTreeMap<SessionId, usize> = many.iter().chain([&one]).map(Session::id).zip(0..).collect();
    let served: Vec<Session> = (0..5).map(|_| server.next(SOON).unwrap()).collect();
    let order: Vec<usize> = served.iter().map(|session| places[&session.id()]).collect();
    let at = |place: usize| order.iter().position(|found| *found == place).unwrap();
    assert!(at(4) == 1 && order[0] < 4, "the second place goes to the second client: {order:?}");
}

#[test]
fn a_client_that_keeps_its_sessions_leaves_places_for_others() {
    let parties = Parties::with("share", 2);
    let _helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let server = Acceptor::bind(&parties.server, drop).unwrap();
    let [greedy, modest] = &parties.clients;
    let many: Vec<Session> = (0..4).map(|_| greedy.open(Purpose::Run).unwrap()).collect();
    let mut served: Vec<Session> = (0..2).map(|_| server.next(SOON).unwrap()).collect();
    let none = || server.next(Some(Duration::from_millis(50))).is_none();
    assert!(none(), "a third one is served");
    let waits = many.iter().find(|session| served.iter().all(|found| found.id() != session.id())).unwrap();
    // It is not the server that is silent.
    let mut heard = Vec::new();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| waits.wait_for_turn(&mut |before| heard.push(before)));
        let one = modest.open(Purpose::Run).unwrap();
        assert!(server.next(SOON).unwrap().id() == one.id());
        assert!(none());
        while server.waiting() > 0 {
            served.remove(0);
            served.push(server.next(SOON).expect("the place of the one that is over"));
        }
        waiting.join().unwrap().unwrap();
    });
    assert!(heard.first().is_some_and(|before| *before > 0), "{heard:?}");
    assert!(served.iter().all(|session| session.client().unwrap().fingerprint == parties.fingerprint(0)));
}

#[test]
fn a_client_sends_no_more_ahead_than_its_session_may_take() {
    let parties = Parties::new("ahead");
    let _helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let server = Acceptor::bind(&parties.server, drop).unwrap();
    let session = parties.clients[0].open(Purpose::Run).unwrap();
    // Nobody has said yet what it needs.
    let served = server.next_if(SOON, &|| true, 1 << 10).unwrap();
    let (from, to) = (served.link(Party::Client).unwrap(), session.link(Party::Server).unwrap());
    to.send_control(&1).unwrap();
    for round in 0..100 {
        to.send(Frame::new(1, 0, round, vec![7; 1 << 20])).unwrap();
    }
    assert_eq!(from.recv_control::<u32>(10).unwrap(), 1);
    assert!(server.queued_bytes() == 0 && served.queued_bytes() <= 1 << 10);
    served.limit_queue(Party::Client, 3 << 20);
    for round in 0..99 {
        assert_eq!(from.recv(1, 0, round, 1 << 20).unwrap().0.len(), 1 << 20);
        assert!(served.queued_bytes() <= 3 << 20);
    }
    // Between two steps it is less again. What was sent ahead waits, until something else is waited for.
    served.limit_queue(Party::Client, 1 << 20);
    assert_eq!(from.recv(1, 0, 99, 1 << 20).unwrap().0.len(), 1 << 20);
    to.send(Frame::new(1, 0, 100, vec![7; (1 << 20) + 1])).unwrap();
    let error = from.recv(1, 0, 100, (1 << 20) + 1).expect_err("a frame that is too long");
    assert!(error.code == "E0704" && error.to_string().contains("at most 1048576 bytes"), "{error}");
}

#[test]
fn a_client_that_says_that_it_waits_gets_no_more_time_outside_of_a_step() {
    let parties = Parties::new("patience");
    let _helper = Acceptor::bind(&parties.helper, drop).unwrap();
    let server = Acceptor::bind(&parties.server, drop).unwrap();
    let session = parties.clients[0].open(Purpose::Run).unwrap();
    let served = server.next(SOON).unwrap();
    let (from, to) = (served.link(Party::Client).unwrap(), session.link(Party::Server).unwrap());
    let limit = Duration::from_millis(500);
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while stopped.recv_timeout(limit / 20).is_err() {
                to.say(Kind::Waiting, 2);
            }
        });
        let late = |patience| {
            let error = from.inbox().pop(Party::Client, patience).err().expect("it says nothing");
            assert_eq!(error.code, "E0702", "{error}");
        };
        late(Patience::Silence(limit));
        // In a step it may have to wait, though not with what has its own time.
        served.set_stepping(true);
        late(Patience::Time(limit));
        scope.spawn(move || {
            std::thread::sleep(3 * limit);
            to.send_control(&7).unwrap();
        });
        let message = from.inbox().pop(Party::Client, Patience::Silence(limit)).unwrap();
        assert_eq!(message.parse_control::<u32>(Party::Client, 10).unwrap(), 7);
        stop.send(()).unwrap();
    });
    // What the server alone says ends the session.
    to.say(Kind::Turn, 3);
    let error = from.recv_control_soon::<u32>(10, Duration::from_secs(10)).expect_err("it is no client's");
    assert_eq!(error.code, "E0704", "{error}");
}

#[test]
fn a_client_that_is_removed_while_its_session_forms_is_not_served() {
    let parties = Parties::new("removed");
    let clients = parties.folder.join("clients");
    fs::create_dir(&clients).unwrap();
    fs::copy(parties.folder.join("client/cert.pem"), clients.join("one.pem")).unwrap();
    let mut config = PartyConfig::read(&parties.folder.join("helper/party.toml")).unwrap();
    config.peers.get_mut(&Party::Client).unwrap().certificates = Certificates::Folder(clients.clone());
    let helper = Acceptor::bind(&Endpoint::new(&config, "plan", None).unwrap(), drop).unwrap();
    let id = SessionId::random().unwrap();
    let _first = dial(&parties.clients[0], Party::Helper, &run(id, None)).unwrap();
    fs::remove_file(clients.join("one.pem")).unwrap();
    let last = dial(&parties.server, Party::Helper, &run(id, Some(parties.fingerprint(0)))).unwrap();
    let error = last.recv(1, 0, 0, 1).expect_err("there is no session");
    assert_eq!(error.message, "helper aborted the run with E0708");
    // The peer may hear of it a moment before it is taken out.
    let end = Instant::now() + Duration::from_secs(10);
    while helper.waiting() > 0 {
        assert!(Instant::now() < end, "the session waits on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(helper.next(Some(Duration::ZERO)).is_none());
}
