//! The transport over loopback TCP and TLS, with parties as threads.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[path = "transport/ends.rs"]
mod ends;

use ombra_ir::module::Setting;
use ombra_ir::{Diagnostic, Kind};
use ombra_runtime::config::{Certificates, PartyConfig};
use ombra_runtime::keygen::{generate, write_local_set};
use ombra_runtime::transport::{Acceptor, Endpoint, Fingerprint, Frame, Link, Meter, Network, Party, Purpose, Session};

const PLAN: &str = "abcdef0123456789";

/// A folder of its own for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Configurations of the three parties, with short limits.
struct Set {
    configs: [PartyConfig; 3],
    _folder: Folder,
}

impl Set {
    fn new() -> Set {
        let folder = Folder::new();
        let configs = write_local_set(&folder.0, Party::Helper).unwrap().map(|path| {
            let mut config = PartyConfig::read(&path).unwrap();
            config.limits.connect = Duration::from_secs(5);
            config.limits.receive = Duration::from_secs(20);
            config
        });
        Set { configs, _folder: folder }
    }

    /// A set in which client and server have no helper.
    fn pair() -> Set {
        let mut set = Set::new();
        set.configs[0].peers.remove(&Party::Helper);
        set.configs[1].peers.remove(&Party::Helper);
        set
    }

    fn receive(mut self, limit: Duration) -> Set {
        self.configs.iter_mut().for_each(|config| config.limits.receive = limit);
        self
    }

    fn endpoint(&self, party: Party, network: Option<Network>) -> Endpoint {
        Endpoint::new(&self.configs[party.index()], PLAN, network).unwrap()
    }

    fn acceptor(&self, party: Party) -> (Acceptor, Receiver<Diagnostic>) {
        accept(&self.endpoint(party, None))
    }

    /// The client's and the server's end of one link.
    fn linked(&self, network: Option<Network>) -> (Link, Link) {
        let server = self.endpoint(Party::Server, network);
        let (acceptor, _) = accept(&server);
        let client = self.endpoint(Party::Client, network).open(Purpose::Run).unwrap();
        let server = acceptor.next(Some(Duration::from_secs(10))).expect("a session");
        (only_link(client), only_link(server))
    }
}

fn accept(endpoint: &Endpoint) -> (Acceptor, Receiver<Diagnostic>) {
    let (sender, refused) = channel();
    let acceptor = Acceptor::bind(endpoint, move |error| {
        let _ = sender.send(error);
    })
    .unwrap();
    (acceptor, refused)
}

fn only_link(session: Session) -> Link {
    let mut links = session.into_links();
    assert_eq!(links.len(), 1);
    links.remove(0)
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

fn error_of<T>(outcome: Result<T, Diagnostic>) -> Diagnostic {
    outcome.err().expect("an error")
}

#[test]
fn big_and_empty_frames_pass_in_both_directions_at_once() {
    const BIG: usize = 64 << 20;
    let (client, server) = Set::pair().linked(None);
    let run = |link: Link, own: u8, other: u8| {
        // Both sides send before either receives: neither may wait for the other.
        for round in 0..3 {
            link.send(Frame::new(9, 1, round, if round == 1 { pattern(BIG, own) } else { Vec::new() })).unwrap();
        }
        for round in 0..3 {
            let length = if round == 1 { BIG } else { 0 };
            let (payload, depth) = link.recv(9, 1, round, length as u64).unwrap();
            assert!(payload == if round == 1 { pattern(BIG, other) } else { Vec::new() });
            assert_eq!(depth, 1);
        }
        link.send_control(&"done").unwrap();
        assert_eq!(link.recv_control::<String>(100).unwrap(), "done");
        let traffic = link.meter().snapshot().peers[link.peer().index()];
        assert_eq!((traffic.sent_bytes, traffic.sent_frames), (BIG as u64, 3));
        assert_eq!((traffic.received_bytes, traffic.received_frames), (BIG as u64, 3));
    };
    let other = thread::spawn(move || run(server, 2, 1));
    run(client, 1, 2);
    other.join().unwrap();
}

#[test]
fn what_was_sent_before_a_link_is_dropped_arrives() {
    let (client, server) = Set::pair().linked(None);
    client.send(Frame::new(1, 0, 0, pattern(3 << 20, 7))).unwrap();
    client.send_control(&17u32).unwrap();
    drop(client);
    assert!(server.recv(1, 0, 0, 3 << 20).unwrap().0 == pattern(3 << 20, 7));
    assert_eq!(server.recv_control::<u32>(16).unwrap(), 17);
    let error = error_of(server.recv(1, 0, 1, 0));
    assert_eq!((error.code, error.kind), ("E0701", Kind::Peer));
    assert!(error.message.contains("client went away"), "{error}");
}

#[test]
fn three_parties_serve_sessions_one_after_the_other_and_survive_an_abort() {
    let set = Set::new();
    let next = |acceptor: &Acceptor| acceptor.next(Some(Duration::from_secs(10))).expect("a session");
    let helper = {
        let (acceptor, _) = set.acceptor(Party::Helper);
        thread::spawn(move || [(); 3].map(|()| serve(&next(&acceptor))))
    };
    let server = {
        let (acceptor, _) = set.acceptor(Party::Server);
        thread::spawn(move || {
            [(); 3].map(|()| {
                let session = next(&acceptor);
                serve(&session)
            })
        })
    };
    let endpoint = set.endpoint(Party::Client, None);
    let client = [false, true, false].map(|fail| {
        let session = endpoint.open(Purpose::Run).unwrap();
        if fail {
            // Both have begun to serve it.
            for link in session.links() {
                link.recv(3, 5, 0, 8).unwrap();
            }
            session.abort(&Diagnostic::input("E0321", "a reason"));
            return Err("E0321");
        }
        serve(&session)
    });
    assert_eq!(client, [Ok(2), Err("E0321"), Ok(2)]);
    assert_eq!(server.join().unwrap(), [Ok(2), Err("E0705"), Ok(2)]);
    assert_eq!(helper.join().unwrap(), [Ok(2), Err("E0705"), Ok(2)]);
}

/// Runs [`exchange`] and tells the peers how it ended. Returns the depth, or the code of the error.
fn serve(session: &Session) -> Result<u32, &'static str> {
    exchange(session).inspect(|_| session.finish()).map_err(|error| {
        session.abort(&error);
        error.code
    })
}

/// Two rounds in which everybody sends to everybody, and the session's id is compared. Returns the depth.
fn exchange(session: &Session) -> Result<u32, Diagnostic> {
    for round in 0..2 {
        for link in session.links() {
            link.send(Frame::new(3, 5, round, vec![session.party().index() as u8; 8]))?;
        }
        for link in session.links() {
            assert_eq!(link.recv(3, 5, round, 8)?.0, vec![link.peer().index() as u8; 8]);
        }
    }
    for link in session.links() {
        link.send_control(&session.id().to_string())?;
    }
    for link in session.links() {
        assert_eq!(link.recv_control::<String>(64)?, session.id().to_string());
    }
    Ok(session.meter().depth())
}

#[test]
fn a_wrong_fingerprint_of_the_acceptor_is_refused_by_the_initiator() {
    let folder = Folder::new();
    let mut set = Set::pair();
    let (_acceptor, refused) = set.acceptor(Party::Server);
    let Certificates::Fingerprints(real) = set.configs[0].peers[&Party::Server].certificates.clone() else { panic!() };
    let real = real[0];
    let wrong = generate(Party::Server, &folder.0).unwrap();
    set.configs[0].peers.get_mut(&Party::Server).unwrap().certificates = Certificates::Fingerprints(vec![wrong]);
    let error = error_of(set.endpoint(Party::Client, None).open(Purpose::Run));
    assert_eq!((error.code, error.kind), ("E0706", Kind::Peer));
    let text = error.to_string();
    assert!(text.contains(&format!("expected  {wrong}")) && text.contains(&format!("found     {real}")), "{text}");
    assert_eq!(refused.recv_timeout(Duration::from_secs(10)).unwrap().code, "E0706");
}

#[test]
fn a_wrong_fingerprint_of_the_initiator_is_refused_by_the_acceptor() {
    let folder = Folder::new();
    let mut set = Set::pair();
    let (acceptor, refused) = set.acceptor(Party::Server);
    let wrong = generate(Party::Client, &folder.0).unwrap();
    set.configs[0].key = folder.0.join("key.pem");
    set.configs[0].certificate = folder.0.join("cert.pem");
    let error = error_of(set.endpoint(Party::Client, None).open(Purpose::Run));
    assert_eq!(error.code, "E0706");
    assert!(error.message.contains("server refused the TLS connection"), "{error}");
    let error = refused.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(error.code, "E0706");
    assert!(error.to_string().contains(&format!("found     {wrong}")), "{error}");
    assert!(acceptor.next(Some(Duration::ZERO)).is_none());
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let folder = Folder::new();
    let mut set = Set::pair();
    generate(Party::Client, &folder.0).unwrap();
    // The right certificate, which is public, with another key.
    set.configs[0].key = folder.0.join("key.pem");
    let error = Endpoint::new(&set.configs[0], PLAN, None).err().expect("an error");
    assert_eq!((error.code, error.kind), ("E0712", Kind::Input));
}

#[test]
fn a_wrong_plan_digest_is_told_to_both_sides() {
    let set = Set::pair();
    let (acceptor, refused) = set.acceptor(Party::Server);
    let client = Endpoint::new(&set.configs[0], "fedcba9876543210", None).unwrap();
    let error = error_of(client.open(Purpose::Run));
    let reason = "plan digest differs: server runs abcdef012345…, client sent fedcba987654…";
    assert_eq!((error.code, error.message), ("E0708", format!("server refused the session: {reason}")));
    let error = refused.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((error.code, error.message.as_str()), ("E0708", reason));

    // The listener goes on, and measuring needs no plan.
    let client = client.open(Purpose::Measure).unwrap();
    let session = acceptor.next(Some(Duration::from_secs(10))).expect("a session");
    assert_eq!((session.purpose(), session.id().to_string()), (Purpose::Measure, client.id().to_string()));
}

#[test]
fn a_frame_that_was_not_expected_is_an_error_that_says_both() {
    let pairs = || {
        let meters = [Arc::new(Meter::new()), Arc::new(Meter::new())];
        Link::memory_pair((Party::Client, &meters[0]), (Party::Server, &meters[1]))
    };
    let check = |sent: (u64, u32, u32, usize)| {
        let (client, server) = pairs();
        client.send(Frame::new(sent.0, sent.1, sent.2, vec![0; sent.3])).unwrap();
        let error = error_of(server.recv(1, 2, 3, 16));
        assert_eq!((error.code, error.kind), ("E0703", Kind::Peer), "{sent:?}");
        let text = error.to_string();
        assert!(text.contains("unexpected frame from client"), "{text}");
        assert!(text.contains("expected  run 0000000000000001 op 2 round 3 of 16 bytes"), "{text}");
        let found = format!("run {:016x} op {} round {} of {} bytes", sent.0, sent.1, sent.2, sent.3);
        assert!(text.contains(&format!("found     {found}")), "{text}");
        assert_eq!(server.meter().snapshot().received_bytes(), 0);
    };
    for sent in [(1, 2, 3, 15), (1, 2, 3, 17), (1, 2, 3, 0), (1, 2, 4, 16), (1, 3, 3, 16), (2, 2, 3, 16)] {
        check(sent);
    }
    let (client, server) = pairs();
    client.send_control(&1).unwrap();
    assert!(error_of(server.recv(1, 2, 3, 16)).to_string().contains("a control message of 1 bytes"));
    client.send(Frame::new(1, 2, 3, vec![])).unwrap();
    assert_eq!(error_of(server.recv_control::<u32>(10)).code, "E0703");
    client.send_control(&"long enough").unwrap();
    assert!(error_of(server.recv_control::<String>(5)).to_string().contains("at most 5 bytes"));
    client.send_control(&"no number").unwrap();
    let error = error_of(server.recv_control::<u32>(100));
    assert!(error.code == "E0703" && !error.to_string().contains("no number"), "{error}");
}

#[test]
fn frames_above_the_limit_are_refused_on_both_sides() {
    let mut set = Set::pair();
    set.configs[1].limits.max_frame_bytes = 1 << 20;
    let (client, server) = set.linked(None);
    let error = error_of(server.send(Frame::new(1, 2, 3, vec![0; (1 << 20) + 1])));
    assert_eq!((error.code, error.kind), ("E0709", Kind::Unsupported));
    client.send(Frame::new(1, 2, 3, vec![0; (1 << 20) + 1])).unwrap();
    let error = error_of(server.recv(1, 2, 3, (1 << 20) + 1));
    assert_eq!((error.code, error.kind), ("E0704", Kind::Peer));
    assert!(error.to_string().contains("at most 1048576 bytes"), "{error}");
}

/// Forwards bytes and cuts all `sockets` after a mebibyte.
fn forward(mut from: TcpStream, mut to: TcpStream, sockets: &Mutex<Vec<TcpStream>>) {
    let mut buffer = [0; 4096];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        passed += count;
        if passed > 1 << 20 {
            sockets.lock().unwrap().drain(..).for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

#[test]
fn a_peer_dropped_in_the_middle_of_a_frame_ends_the_run_at_once() {
    let mut set = Set::pair();
    let (acceptor, _) = set.acceptor(Party::Server);
    // A proxy that cuts every connection through which a mebibyte has passed.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = proxy.local_addr().unwrap().to_string();
    set.configs[0].peers.get_mut(&Party::Server).unwrap().address = Some(own);
    let target = acceptor.address();
    let sockets: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    thread::spawn(move || {
        for _ in 0..2 {
            let near = proxy.accept().unwrap().0;
            let far = TcpStream::connect(target).unwrap();
            for (from, to) in [(&near, &far), (&far, &near)] {
                sockets.lock().unwrap().push(from.try_clone().unwrap());
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let sockets = Arc::clone(&sockets);
                thread::spawn(move || forward(from, to, &sockets));
            }
        }
    });
    let client = only_link(set.endpoint(Party::Client, None).open(Purpose::Run).unwrap());
    let server = only_link(acceptor.next(Some(Duration::from_secs(10))).expect("a session"));
    client.send(Frame::new(1, 2, 3, vec![1; 8 << 20])).unwrap();
    let error = error_of(server.recv(1, 2, 3, 8 << 20));
    assert_eq!(error.code, "E0701");
    assert!(error.message.contains("client went away in the middle of a frame"), "{error}");
    assert_eq!(error_of(client.recv(1, 2, 3, 0)).code, "E0701");
    assert_eq!(error_of(client.send(Frame::new(1, 3, 0, vec![0; 8]))).code, "E0701");
}

#[test]
fn a_silent_peer_hits_the_limit() {
    let (client, server) = Set::pair().receive(Duration::from_millis(200)).linked(None);
    let error = error_of(server.recv(1, 2, 3, 8));
    assert_eq!((error.code, error.kind), ("E0702", Kind::Peer));
    assert!(error.message.contains("client was silent for 0.2 s"), "{error}");
    drop(client);
}

#[test]
fn a_slow_peer_that_keeps_sending_is_not_silent() {
    // The frame takes 640 ms to arrive, more than the limit, but its bytes arrive all the time.
    let slow = Some(Network { bandwidth_bits_per_s: 6_553_600, rtt: Duration::ZERO });
    let (client, server) = Set::pair().receive(Duration::from_millis(400)).linked(slow);
    client.send(Frame::new(1, 2, 3, pattern(512 << 10, 3))).unwrap();
    assert!(server.recv(1, 2, 3, 512 << 10).unwrap().0 == pattern(512 << 10, 3));
}

#[test]
fn a_peer_that_nobody_started_is_named() {
    let mut set = Set::pair();
    set.configs[0].limits.connect = Duration::from_millis(100);
    let error = error_of(set.endpoint(Party::Client, None).open(Purpose::Run));
    assert_eq!((error.code, error.kind), ("E0707", Kind::Peer));
    assert_eq!(error.message, "no connection to server");
    assert!(error.notes.iter().any(|note| note.contains("a connection to 127.0.0.1:")), "{error}");
}

#[test]
fn a_listener_that_says_nothing_is_named() {
    let mut set = Set::pair();
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    set.configs[0].limits.connect = Duration::from_millis(200);
    let address = mute.local_addr().unwrap().to_string();
    set.configs[0].peers.get_mut(&Party::Server).unwrap().address = Some(address);
    let error = error_of(set.endpoint(Party::Client, None).open(Purpose::Run));
    assert_eq!(error.code, "E0702");
    assert!(error.message.contains("server did not answer in time"), "{error}");
}

#[test]
fn garbage_does_not_stop_the_next_session() {
    let set = Set::pair();
    let (acceptor, refused) = set.acceptor(Party::Server);
    // More connections that stay open and say nothing than may be half-open at once, and one that sends garbage.
    let mute: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(acceptor.address()).unwrap()).collect();
    let mut garbage = TcpStream::connect(acceptor.address()).unwrap();
    garbage.write_all(&pattern(100_000, 1)).unwrap();
    let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
    let server = acceptor.next(Some(Duration::from_secs(10))).expect("a session");
    client.link(Party::Server).unwrap().send(Frame::new(1, 2, 3, vec![4])).unwrap();
    assert_eq!(server.link(Party::Client).unwrap().recv(1, 2, 3, 1).unwrap().0, [4]);
    assert_eq!(refused.recv_timeout(Duration::from_secs(10)).unwrap().code, "E0706");
    assert!(acceptor.next(Some(Duration::ZERO)).is_none());
    drop(mute);
}

#[test]
fn an_incomplete_session_is_given_up_and_its_peers_are_told() {
    let mut set = Set::new();
    set.configs.iter_mut().for_each(|config| config.limits.connect = Duration::from_millis(300));
    let (_helper, refused) = set.acceptor(Party::Helper);
    // The client alone connects to the helper.
    set.configs[0].peers.remove(&Party::Server);
    let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
    let error = refused.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((error.code, error.message.as_str()), ("E0708", "server did not join the session in 0.3 s"));
    let told = error_of(client.link(Party::Helper).unwrap().recv(1, 2, 3, 4));
    assert_eq!((told.code, told.message.as_str()), ("E0705", "helper aborted the run with E0708"));
}

#[test]
fn an_abort_reaches_the_peer_with_its_code_and_place() {
    let cause = Diagnostic::input("E0321", "a text that may hold anything").at("node \"/layer.3/attn\"");
    let check = |client: Link, server: Link| {
        client.send(Frame::new(1, 2, 3, vec![0; 8])).unwrap();
        server.recv(1, 2, 3, 8).unwrap();
        client.abort(&cause);
        let error = error_of(server.recv(1, 2, 4, 8));
        assert_eq!((error.code, error.kind), ("E0705", Kind::Peer));
        assert_eq!(error.message, "client aborted the run with E0321");
        assert_eq!(error.place.as_deref(), Some("client: node \"/layer.3/attn\""));
        assert!(!error.to_string().contains("anything"));
        assert_eq!(error_of(server.recv_control::<u32>(10)).code, "E0705");
        assert!(client.send(Frame::new(1, 2, 4, vec![])).is_err());
        // A send that fails because the peer is gone gives the peer's reason.
        drop(client);
        assert_eq!(error_of(server.send(Frame::new(1, 3, 0, vec![0; 1000]))).code, "E0705");
    };
    let (client, server) = Set::pair().linked(None);
    check(client, server);
    let meters = [Arc::new(Meter::new()), Arc::new(Meter::new())];
    let (client, server) = Link::memory_pair((Party::Client, &meters[0]), (Party::Server, &meters[1]));
    check(client, server);
}

#[test]
fn a_dropped_link_does_not_wait_for_ever_to_send_what_is_queued() {
    // On this network a mebibyte takes hours, so it is all still queued when the client's end is dropped.
    let slow = Some(Network { bandwidth_bits_per_s: 1000, rtt: Duration::ZERO });
    let (client, server) = Set::pair().linked(slow);
    client.send(Frame::new(1, 2, 3, vec![0; 1 << 20])).unwrap();
    drop(client);
    assert_eq!(error_of(server.recv(1, 2, 3, 1 << 20)).code, "E0701");
}

#[test]
fn an_emulated_network_delays_frames() {
    let network = Network { bandwidth_bits_per_s: 80_000_000, rtt: Duration::from_millis(30) };
    let (client, server) = Set::pair().linked(Some(network));
    let echo = thread::spawn(move || {
        for round in 0..3 {
            let (payload, _) = server.recv(1, 0, round, 8).unwrap();
            server.send(Frame::new(1, 0, round, payload)).unwrap();
        }
        server.recv(1, 1, 0, 400_000).unwrap();
        server.recv(1, 1, 1, 400_000).unwrap();
        server.send_control(&()).unwrap();
    });
    let start = Instant::now();
    for round in 0..3 {
        client.send(Frame::new(1, 0, round, vec![0; 8])).unwrap();
        client.recv(1, 0, round, 8).unwrap();
    }
    assert!(start.elapsed() >= 3 * network.rtt);
    let start = Instant::now();
    client.send(Frame::new(1, 1, 0, vec![0; 400_000])).unwrap();
    client.send(Frame::new(1, 1, 1, vec![0; 400_000])).unwrap();
    client.recv_control::<()>(10).unwrap();
    assert!(start.elapsed() >= network.rtt + network.transmission(800_000));
    echo.join().unwrap();
}

#[test]
fn depth_is_the_longest_chain_of_frames() {
    let [client, server, helper]: [Session; 3] =
        Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap().try_into().ok().expect("three sessions");
    let sessions = [&client, &server, &helper];
    let pass = |from: &Session, to: &Session, round| {
        from.link(to.party()).unwrap().send(Frame::new(1, 1, round, vec![0; 8])).unwrap();
        to.link(from.party()).unwrap().recv(1, 1, round, 8).unwrap().1
    };
    let measured = || sessions.iter().map(|session| session.meter().depth()).max();
    assert_eq!([pass(&client, &server, 0), pass(&server, &helper, 0), pass(&helper, &client, 0)], [1, 2, 3]);
    assert_eq!(measured(), Some(3));
    sessions.iter().for_each(|session| session.meter().reset());
    assert_eq!(measured(), Some(0));
    for (from, to) in [(&client, &server), (&server, &helper), (&helper, &client)] {
        from.link(to.party()).unwrap().send(Frame::new(1, 1, 1, vec![0; 8])).unwrap();
    }
    for (from, to) in [(&client, &server), (&server, &helper), (&helper, &client)] {
        assert_eq!(to.link(from.party()).unwrap().recv(1, 1, 1, 8).unwrap().1, 1);
    }
    assert_eq!(measured(), Some(1));
    let snapshot = client.meter().snapshot();
    assert_eq!((snapshot.sent_bytes(), snapshot.received_bytes()), (8, 8));
    assert_eq!(snapshot.peers[Party::Server.index()].sent_frames, 1);
    assert_eq!(snapshot.peers[Party::Helper.index()].received_frames, 1);
}

#[test]
fn keys_are_private_and_never_replaced() {
    let folder = Folder::new();
    let fingerprint = generate(Party::Server, &folder.0).unwrap();
    assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
    let before = fs::read(folder.0.join("key.pem")).unwrap();
    let error = error_of(generate(Party::Server, &folder.0));
    assert_eq!((error.code, error.kind), ("E0712", Kind::Input));
    assert!(fs::read(folder.0.join("key.pem")).unwrap() == before);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder.0.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
