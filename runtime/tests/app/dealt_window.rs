//! How far a dealer is ahead of the server: by a window, whatever a step deals.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ombra_runtime::config::PartyConfig;
use ombra_runtime::exec::{LinkNet, Net};
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::transport::{Acceptor, Endpoint, Party, Purpose};

use super::plans::Folder;

const WINDOW: u64 = 4 << 20;
const ALL: usize = 96 << 20;
/// What the system's own buffers of a connection may hold beside.
const SOCKETS: u64 = 24 << 20;
const SOON: Duration = Duration::from_secs(20);
/// How long a peer may be silent, and for how long the server takes nothing.
const RECEIVE_S: u64 = 1;
const TAKES_NOTHING: Duration = Duration::from_secs(3);

#[test]
fn a_dealer_is_ahead_of_the_server_by_a_window() {
    deals_to(true);
}

#[test]
fn a_dealer_gives_up_a_server_that_takes_nothing_and_says_nothing() {
    deals_to(false);
}

/// Deals to a server that takes nothing for longer than a peer may be silent, and that speaks meanwhile if it `speaks`.
fn deals_to(speaks: bool) {
    let keys = Folder::new();
    let configs = write_local_set(&keys.join("keys"), Party::Dealer).unwrap();
    let endpoint = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, format!("{text}\n[limits]\ndealt_window_bytes = {WINDOW}\nreceive_s = {RECEIVE_S}\n")).unwrap();
        Endpoint::new(&PartyConfig::read(path).unwrap(), "a plan", None).unwrap()
    };
    let [client, server, dealer] = configs.each_ref().map(endpoint);
    let (server, dealer) = (Acceptor::bind(&server, drop).unwrap(), Acceptor::bind(&dealer, drop).unwrap());
    let client = client.open(Purpose::Run).unwrap();
    let server = server.next(Some(SOON)).expect("the server's session");
    let dealer = dealer.next(Some(SOON)).expect("the dealer's session");
    let payload: Vec<u8> = (0..ALL).map(|index| (index % 251) as u8).collect();
    thread::scope(|scope| {
        let deal = scope.spawn(|| {
            let mut net = LinkNet::new(&dealer, 1);
            net.send(0, 5, Party::Server, payload.clone())?;
            net.send(0, 6, Party::Server, vec![3; 10])
        });
        if !speaks {
            let error = deal.join().unwrap().expect_err("the server takes nothing");
            assert!(error.code == "E0702" && error.message.contains("server took no data for 1 s"), "{error}");
            return;
        }
        // It goes on until nothing more fits.
        let sent = || dealer.meter().snapshot().sent_bytes();
        let mut last = (sent(), Instant::now());
        let until = Instant::now() + SOON;
        while last.1.elapsed() < TAKES_NOTHING && Instant::now() < until {
            if sent() != last.0 {
                last = (sent(), Instant::now());
            }
            server.keep_alive(true);
            thread::sleep(Duration::from_millis(50));
        }
        assert!(!deal.is_finished(), "it waits for the server");
        let ahead = last.0;
        println!("ahead by {ahead} bytes of {ALL}");
        assert!((WINDOW / 2..=WINDOW + SOCKETS).contains(&ahead), "{ahead}");
        let mut net = LinkNet::new(&server, 1);
        assert!(net.recv(0, 5, Party::Dealer, ALL as u64).unwrap() == payload, "nothing is lost or in another order");
        assert_eq!(net.recv(0, 6, Party::Dealer, 10).unwrap(), [3; 10]);
        deal.join().unwrap().unwrap();
    });
    if speaks {
        assert_eq!(dealer.meter().snapshot().sent_bytes(), ALL as u64 + 10);
        assert_eq!(server.meter().snapshot().peers[Party::Dealer.index()].received_bytes, ALL as u64 + 10);
    }
    drop(client);
}
