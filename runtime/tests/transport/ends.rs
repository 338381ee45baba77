//! How sessions end and wait: whatever ends a link wakes the others, waiting clients are told, places are freed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ombra_ir::Diagnostic;
use ombra_runtime::config::Certificates;
use ombra_runtime::keygen::generate;
use ombra_runtime::transport::{Endpoint, Frame, Network, Party, Purpose, Session};

use super::{Folder, PLAN, Set, accept, error_of};

/// A limit of silence that no test outlasts, and the time within which everything here ends.
const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(30);

/// What `work` gives, which must come soon.
fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    thread::spawn(move || send.send(work()));
    receive.recv_timeout(SOON).expect("it ends long before the limits of silence")
}

/// A set whose parties wait for an hour before they take a peer for silent.
fn patient() -> Set {
    Set::new().receive(LONG)
}

/// What the server says of a client that ends like this after it has reached the server, whatever else it reaches.
fn server_of(end: impl FnOnce(&Set) + Send + 'static) -> Diagnostic {
    soon(move || {
        let set = patient();
        let (_helper, _) = set.acceptor(Party::Helper);
        let (server, refused) = set.acceptor(Party::Server);
        end(&set);
        loop {
            if let Some(session) = server.next(Some(Duration::from_millis(10))) {
                // As the agreement on keys does: the server waits for the helper, which waits for the client.
                break error_of(session.link(Party::Helper).unwrap().recv(1, 0, 0, 16));
            }
            // A session that ends before its turn is given up by the listener.
            if let Ok(error) = refused.try_recv() {
                break error;
            }
        }
    })
}

#[test]
fn a_client_that_reaches_the_server_alone_ends_the_wait_for_the_helper() {
    let to_server = |set: &Set| {
        let mut config = set.configs[0].clone();
        config.peers.remove(&Party::Helper);
        Endpoint::new(&config, PLAN, None).unwrap().open(Purpose::Run).unwrap()
    };
    let closed = server_of(move |set| drop(to_server(set)));
    assert_eq!(closed.code, "E0701", "{closed}");
    let aborted = server_of(move |set| to_server(set).abort(&Diagnostic::input("E0321", "a reason")));
    assert_eq!(aborted.message, "client aborted the run with E0321");
    // It goes away while the server waits already.
    let later = server_of(move |set| {
        let session = to_server(set);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            drop(session);
        });
    });
    assert_eq!(later.code, "E0701", "{later}");
    // Its own certificate is another one than the helper expects of it, or the helper's than it expects.
    let wrong = server_of(|set| {
        let folder = Folder::new();
        let mut config = set.configs[0].clone();
        let wrong = generate(Party::Helper, &folder.0).unwrap();
        config.peers.get_mut(&Party::Helper).unwrap().certificates = Certificates::Fingerprints(vec![wrong]);
        let error = error_of(Endpoint::new(&config, PLAN, None).unwrap().open(Purpose::Run));
        assert_eq!(error.code, "E0706");
    });
    assert_eq!(wrong.message, "client aborted the run with E0706");
}

#[test]
fn a_client_that_never_comes_to_the_helper_holds_the_server_as_long_as_connecting_may_take() {
    soon(|| {
        let mut set = patient();
        set.configs[2].limits.connect = Duration::from_millis(500);
        let (_helper, _) = set.acceptor(Party::Helper);
        let (server, _) = set.acceptor(Party::Server);
        set.configs[0].peers.remove(&Party::Helper);
        let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
        let session = server.next(None).expect("a session");
        let error = error_of(session.link(Party::Helper).unwrap().recv(1, 0, 0, 16));
        assert_eq!(error.message, "helper aborted the run with E0708");
        drop(client);
    });
}

#[test]
fn every_kind_of_wait_ends_with_the_session() {
    let waits: [fn(&Session) -> Diagnostic; 3] = [
        |session| error_of(session.link(Party::Helper).unwrap().recv(1, 0, 0, 16)),
        |session| error_of(session.link(Party::Helper).unwrap().recv_control_within::<u32>(16, LONG)),
        |session| {
            let link = session.link(Party::Helper).unwrap();
            // More than the emulated network takes in an hour: the first one is on its way, the second one waits.
            link.send(Frame::new(1, 0, 0, vec![0; 16 << 20])).unwrap();
            link.send(Frame::new(1, 0, 1, vec![0; 16 << 20])).unwrap();
            link.wait_for_room(1 << 20);
            error_of(link.send(Frame::new(1, 0, 2, vec![0; 8])))
        },
    ];
    for wait in waits {
        let error = soon(move || {
            let set = patient();
            let slow = Network { bandwidth_bits_per_s: 10_000, rtt: Duration::ZERO };
            let (helper, _) = set.acceptor(Party::Helper);
            let (server, _) = accept(&set.endpoint(Party::Server, Some(slow)));
            let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
            let session = server.next(None).expect("a session");
            let _other = helper.next(None).expect("the helper's session");
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(300));
                drop(client);
            });
            wait(&session)
        });
        assert_eq!(error.code, "E0701", "{error}");
        assert!(error.message.contains("client went away"), "{error}");
    }
}

#[test]
fn a_party_that_has_done_its_part_ends_no_session() {
    soon(|| {
        let set = patient();
        let (helper, _) = set.acceptor(Party::Helper);
        let (server, _) = set.acceptor(Party::Server);
        let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
        let server = server.next(None).expect("a session");
        let helper = helper.next(None).expect("the helper's session");
        server.link(Party::Client).unwrap().send_control(&"statistics").unwrap();
        server.finish();
        drop(server);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            helper.link(Party::Client).unwrap().send_control(&"more").unwrap();
            helper.finish();
        });
        assert_eq!(client.link(Party::Helper).unwrap().recv_control::<String>(100).unwrap(), "more");
        assert_eq!(client.link(Party::Server).unwrap().recv_control::<String>(100).unwrap(), "statistics");
        assert_eq!(error_of(client.link(Party::Server).unwrap().recv_control::<String>(100)).code, "E0701");
    });
}

#[test]
fn a_closed_connection_frees_its_place_at_once() {
    soon(|| {
        let set = patient();
        let (helper, _) = set.acceptor(Party::Helper);
        // Whole links of clients whose server never comes, and then halves of links.
        let mut config = set.configs[0].clone();
        config.peers.remove(&Party::Server);
        let endpoint = Endpoint::new(&config, PLAN, None).unwrap();
        for round in 0..3 {
            let dead: Vec<Session> = (0..20).map(|_| endpoint.open(Purpose::Run).unwrap()).collect();
            assert!(helper.waiting() >= 20, "round {round}");
            drop(dead);
        }
        while helper.waiting() > 0 {
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn what_waiting_sessions_send_ahead_is_bounded() {
    soon(|| {
        let set = patient();
        let (_helper, _) = set.acceptor(Party::Helper);
        let (server, _) = set.acceptor(Party::Server);
        let endpoint = set.endpoint(Party::Client, None);
        let first = endpoint.open(Purpose::Run).unwrap();
        let served = server.next(None).expect("a session");
        let waiting: Vec<Session> = (0..4).map(|_| endpoint.open(Purpose::Run).unwrap()).collect();
        for session in &waiting {
            for round in 0..64 {
                session.link(Party::Server).unwrap().send(Frame::new(1, 0, round, vec![0; 1 << 20])).unwrap();
                session.link(Party::Server).unwrap().send(Frame::new(1, 0, round, vec![0; 1 << 10])).unwrap();
            }
        }
        thread::sleep(Duration::from_millis(500));
        assert!(server.queued_bytes() <= 4 * (64 << 10), "{}", server.queued_bytes());
        // Once it is served, everything arrives.
        drop((first, served));
        let session = server.next(None).expect("the second session");
        for round in 0..64 {
            session.link(Party::Client).unwrap().recv(1, 0, round, 1 << 20).unwrap();
            session.link(Party::Client).unwrap().recv(1, 0, round, 1 << 10).unwrap();
        }
    });
}

#[test]
fn waiting_clients_hear_how_many_are_before_them() {
    soon(|| {
        // The limit of silence is shorter than the wait.
        let set = Set::new().receive(Duration::from_millis(200));
        let (helper, _) = set.acceptor(Party::Helper);
        let (server, _) = set.acceptor(Party::Server);
        let endpoint = set.endpoint(Party::Client, None);
        let clients = [endpoint.open(Purpose::Run).unwrap(), endpoint.open(Purpose::Run).unwrap()];
        let ids = clients.each_ref().map(Session::id);
        let mut serving = [(); 2].map(|()| None);
        let waits = clients.map(|client| {
            thread::spawn(move || {
                let mut heard = Vec::new();
                client.wait_for_turn(&mut |before| heard.push(before)).map(|()| (heard, client))
            })
        });
        for (index, id) in ids.into_iter().enumerate() {
            // The first one is served for longer than the limit.
            let session = server.next(None).expect("a session");
            assert!(session.id() == id);
            let other = helper.next(None).expect("the helper's session");
            assert!(other.id() == id, "the helper takes what the server takes");
            thread::sleep(Duration::from_millis(if index == 0 { 600 } else { 0 }));
            session.finish();
            other.finish();
            serving[index] = Some((session, other));
        }
        let heard = waits.map(|wait| wait.join().unwrap().unwrap().0);
        assert_eq!((heard[0].last(), heard[1].contains(&1)), (None, true), "{heard:?}");
    });
}

/// The helper waits for the client, which waits for the server, which hangs.
#[test]
fn a_peer_that_waits_itself_is_not_blamed() {
    let mut set = Set::new();
    set.configs[0].limits.receive = Duration::from_millis(500);
    set.configs[2].limits.receive = Duration::from_millis(800);
    let (helper, _) = set.acceptor(Party::Helper);
    let (server, _) = set.acceptor(Party::Server);
    let client = set.endpoint(Party::Client, None).open(Purpose::Run).unwrap();
    let _hanging = server.next(Some(SOON)).expect("a session");
    let helper = helper.next(Some(SOON)).expect("the helper's session");
    let waiting = thread::spawn(move || {
        let error = error_of(client.link(Party::Server).unwrap().recv(1, 0, 0, 8));
        (error, client)
    });
    let blamed = error_of(helper.link(Party::Client).unwrap().recv(1, 0, 0, 8));
    assert!(blamed.message.contains("client waits for server") && blamed.code == "E0702", "{blamed}");
    let (own, client) = waiting.join().unwrap();
    assert!(own.message.contains("server was silent"), "{own}");
    drop(client);
}

#[test]
fn strangers_fill_no_log() {
    let set = Set::pair();
    let (acceptor, refused) = set.acceptor(Party::Server);
    for _ in 0..200 {
        let mut stranger = TcpStream::connect(acceptor.address()).unwrap();
        stranger.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let _ = stranger.read(&mut [0; 64]);
    }
    // The next peer is served and heard of.
    let error = error_of(Endpoint::new(&set.configs[0], "fedcba", None).unwrap().open(Purpose::Run));
    assert_eq!(error.code, "E0708");
    let told: Vec<&str> =
        std::iter::from_fn(|| refused.recv_timeout(Duration::from_secs(1)).ok()).map(|e| e.code).collect();
    assert!(told.contains(&"E0708") && told.len() <= 40, "{told:?}");
}
