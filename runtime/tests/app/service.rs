//! Server and helper as processes that serve many clients: side by side, with certificates of their own, to an orderly end.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::draw::Choosing;
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::client::{Conversation, Costs};
use ombra_runtime::app::report::Report;
use ombra_runtime::app::request::Request;
use ombra_runtime::config::PartyConfig;
use ombra_runtime::keygen::{self, write_local_set};
use ombra_runtime::transport::{Endpoint, Party, Purpose, Session};

use super::plans::{self, Folder, MAX, VOCABULARY, WIDTH, continuation};
use super::processes::{Running, ombra_run};

/// Time within which everything here happens.
const SOON: Duration = Duration::from_secs(60);

/// Server and helper of one plan, and the configurations of its clients.
struct Service {
    plan: Folder,
    keys: Folder,
    metrics: u16,
    running: Vec<(Party, Running)>,
}

impl Service {
    /// Starts both, with `limits` and `service` in the configuration of the server and the former in that of the helper.
    /// Their clients are in a folder, which is empty.
    fn start(limits: &str, service: &str) -> Service {
        let (plan, keys) = (plans::cached(), Folder::new());
        let [client, server, helper] = write_local_set(&keys.0, Party::Helper).unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::create_dir(keys.join("clients")).unwrap();
        for (config, more) in [
            (&server, format!("[service]\nmetrics = \"127.0.0.1:{metrics}\"\ncontrol = \"c\"\n{service}\n")),
            (&helper, String::new()),
        ] {
            let text = fs::read_to_string(config).unwrap();
            let (before, after) = text.split_once("[peers.client]\n").unwrap();
            let (_, after) = after.split_once('\n').unwrap();
            let text = format!(
                "{before}[peers.client]\ncertificates = \"../clients\"\n{after}\n[limits]\nreceive_s = 3600\nconnect_s = 600\n{limits}\n{more}"
            );
            fs::write(config, text).unwrap();
        }
        // The client of the set is none of theirs; it is what the others are made from.
        assert!(client.is_file());
        let mut service = Service { plan, keys, metrics, running: Vec::new() };
        for party in [Party::Helper, Party::Server] {
            service.launch(party);
        }
        service.until("the weights are shared", |service| service.get("/readyz").0 == 200);
        service
    }

    fn launch(&mut self, party: Party) {
        let log = fs::File::options().create(true).append(true).open(self.log(party)).unwrap();
        // With few open files, as many systems have it.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n 256 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ombra-run"), "serve"]);
        command.arg(&self.plan.0).args(["--party", party.name(), "--threads", "1", "--log", "json", "--config"]);
        let running = Running::ready(command.arg(self.config(party.name())).stdin(Stdio::null()).stderr(log));
        self.running.push((party, running));
    }

    fn log(&self, party: Party) -> PathBuf {
        self.keys.join(&format!("{party}.log"))
    }

    fn config(&self, name: &str) -> PathBuf {
        self.keys.join(name).join("party.toml")
    }

    /// A client with a key of its own, which both parties admit.
    fn client(&self, name: &str) -> PathBuf {
        let folder = self.keys.join(name);
        let fingerprint = keygen::generate(Party::Client, &folder).unwrap();
        fs::copy(self.config("client"), folder.join("party.toml")).unwrap();
        fs::write(self.certificate(name), format!("{fingerprint}\n")).unwrap();
        self.config(name)
    }

    /// The file that makes a client a peer.
    fn certificate(&self, name: &str) -> PathBuf {
        self.keys.join("clients").join(format!("{name}.fingerprint"))
    }

    /// Status and text that the server's address for metrics gives.
    fn get(&self, path: &str) -> (u16, String) {
        self.get_as("localhost", path)
    }

    /// The same, of a request that calls it so.
    fn get_as(&self, host: &str, path: &str) -> (u16, String) {
        let mut text = String::new();
        let mut socket = TcpStream::connect(("127.0.0.1", self.metrics)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        socket.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// A number among the metrics.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse().unwrap())
    }

    fn until(&self, what: &str, done: impl Fn(&Service) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < SOON, "{what}: {}", fs::read_to_string(self.log(Party::Server)).unwrap());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn endpoint(&self, config: &Path) -> Endpoint {
        let digest = PlanFolder::open(&self.plan.0).unwrap().digest;
        Endpoint::new(&PartyConfig::read(config).unwrap(), &digest, None).unwrap()
    }

    /// An ordinary run of a client, in a process. The bytes of set-up that its report counts for the server.
    fn run(&self, config: &Path) -> u64 {
        let path = config.with_file_name("report.json");
        let output = ombra_run()
            .arg("generate")
            .arg(self.plan.join("public"))
            .arg("--config")
            .arg(config)
            .args(["--tokens", "3,1,4", "-n", "4", "--threads", "1", "--report"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tokens = continuation(&[3, 1, 4], 4).iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), tokens);
        let report: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        report.check_costs().unwrap();
        report.phases[0].bytes["server"].measured
    }

    /// Sends a signal to a party's process.
    fn signal(&self, party: Party, name: &str) {
        let (_, running) = self.running.iter().find(|(found, _)| *found == party).unwrap();
        let done = Command::new("kill").args([&format!("-{name}"), &running.0.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// The exit status of a party's process, which ends soon.
    fn exit(&mut self, party: Party) -> Option<i32> {
        let at = self.running.iter().position(|(found, _)| *found == party).unwrap();
        let (_, mut running) = self.running.remove(at);
        let begin = Instant::now();
        loop {
            if let Some(status) = running.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < SOON, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A client in this process that takes one step at a time.
struct Slow<'a> {
    conversation: Conversation<'a>,
    tokens: Vec<i64>,
    learned: Vec<i64>,
}

impl<'a> Slow<'a> {
    fn open(folder: &'a PlanFolder, session: &'a Session) -> Result<Slow<'a>> {
        session.wait_for_turn(&mut |_| {})?;
        let conversation = Conversation::open(folder, session, Request::text(MAX), 1, None)?;
        Ok(Slow { conversation, tokens: Vec::new(), learned: Vec::new() })
    }

    fn step(&mut self) -> Result<()> {
        let new = self.learned.last().map_or(vec![3, 1, 4], |last| vec![*last]);
        let keep = self.tokens.len() as u64;
        self.tokens.extend_from_slice(&new);
        let (tokens, _) = self.conversation.next_tokens(keep, &[new], (&Choosing::default(), &[]), &mut |_, _| {})?;
        self.learned.push(tokens[0]);
        Ok(())
    }

    fn end(self) -> Result<(Vec<i64>, Costs)> {
        Ok((self.learned, self.conversation.end()?))
    }
}

/// Opens a session and takes a step, then does `meanwhile`, takes two steps more and ends.
fn around(plan: &PlanFolder, endpoint: &Endpoint, meanwhile: impl FnOnce()) -> Result<()> {
    let session = endpoint.open(Purpose::Run)?;
    let mut slow = Slow::open(plan, &session)?;
    slow.step()?;
    meanwhile();
    slow.step()?;
    slow.step()?;
    let (learned, costs) = slow.end()?;
    session.finish();
    assert_eq!(learned, continuation(&[3, 1, 4], 3));
    Report { phases: costs.phases, ..Report::default() }.check_costs()
}

#[test]
fn clients_with_their_own_certificates_are_served_side_by_side() {
    let service = Service::start("", "");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let clients = ["alice", "bob", "carol", "dave"].map(|name| service.client(name));
    let [alice, bob, carol, dave] = clients.each_ref().map(|config| service.endpoint(config));
    // Alice is in the middle of a text; Bob goes away in the middle of his; Carol opens a session and says nothing.
    around(&plan, &alice, || {
        let silent = carol.open(Purpose::Run).unwrap();
        silent.wait_for_turn(&mut |_| {}).unwrap();
        {
            let session = bob.open(Purpose::Run).unwrap();
            let mut gone = Slow::open(&plan, &session).unwrap();
            gone.step().unwrap();
            assert_eq!(service.metric("ombra_sessions_open"), 3.0);
            let reserved = service.metric("ombra_memory_reserved_bytes");
            assert!(reserved > 0.0 && reserved < 1e6, "what the plan's steps could take: {reserved}");
        }
        around(&plan, &dave, || {
            thread::scope(|scope| {
                for config in &clients {
                    scope.spawn(|| service.run(config));
                }
            });
        })
        .unwrap();
    })
    .unwrap();
    service.until("all sessions are over", |service| service.metric("ombra_sessions_open") == 0.0);
    assert_eq!(service.metric("ombra_sessions_total{outcome=\"finished\"}"), 6.0);
    assert_eq!(service.metric("ombra_sessions_total{outcome=\"failed\"}"), 2.0);
    assert_eq!(service.metric("ombra_steps_total"), 3.0 + 3.0 + 1.0 + 4.0 * 4.0);
    assert_eq!(service.metric("ombra_sharings_total"), 1.0);
    assert!(service.metric("ombra_sent_bytes_total") > 0.0 && service.metric("ombra_rounds_total") > 0.0);
    assert_eq!(service.metric("ombra_memory_reserved_bytes"), 0.0);
    check_log(&service);
}

/// Every line of the logs is JSON, names what happened, and holds nothing that is secret.
fn check_log(service: &Service) {
    for party in [Party::Server, Party::Helper] {
        let log = fs::read_to_string(service.log(party)).unwrap();
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |client: &str, what: &str| {
            let said = |line: &&serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains(what));
            lines.iter().filter(|line| line["client"] == client).filter(said).count()
        };
        assert_eq!((of("alice", "begins"), of("alice", "is over")), (2, 2), "{party}: {log}");
        assert_eq!((of("bob", "begins"), of("bob", "is over"), of("bob", "went away")), (2, 1, 1), "{party}: {log}");
        assert!(lines.iter().all(|line| line["party"] == party.name()), "{log}");
        // Ids of sessions are cut, so that nobody who reads them joins one.
        assert!(lines.iter().filter_map(|line| line["session"].as_str()).all(|id| id.len() == 8), "{log}");
        for secret in ["3,1,4", "3, 1, 4", "PRIVATE", &"0".repeat(32)] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

#[test]
fn clients_come_and_go_while_the_parties_serve() {
    let service = Service::start("", "");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let (alice, bob) = (service.client("alice"), service.client("bob"));
    service.run(&alice);
    let endpoint = service.endpoint(&bob);
    let refused = |error: Diagnostic| assert_eq!(error.code, "E0706", "{error}");
    around(&plan, &endpoint, || {
        fs::remove_file(service.certificate("bob")).unwrap();
        // What runs goes on; what comes is refused.
        refused(endpoint.open(Purpose::Run).err().expect("a refusal"));
        service.run(&alice);
    })
    .unwrap();
    refused(endpoint.open(Purpose::Run).err().expect("a refusal"));
    // As a certificate this time.
    fs::copy(service.keys.join("bob/cert.pem"), service.keys.join("clients/bob.pem")).unwrap();
    service.run(&bob);
    assert!(service.metric("ombra_refusals_total{code=\"E0706\"}") >= 2.0);
    // What the server calls a stranger is one, whatever else is in the folder.
    fs::write(service.keys.join("clients/mallory.pem"), "no certificate").unwrap();
    service.run(&alice);
    let log = fs::read_to_string(service.log(Party::Server)).unwrap();
    assert!(log.contains("a client is not admitted") && log.contains("mallory.pem"), "{log}");
}

#[test]
fn a_full_server_lets_clients_wait_and_tells_them_their_place() {
    for limits in ["max_sessions = 1", "total_memory_bytes = 20000\nmax_sessions_of_client = 32"] {
        let service = Service::start(limits, "");
        let plan = PlanFolder::open(&service.plan.0).unwrap();
        let (alice, bob) = (service.client("alice"), service.client("bob"));
        let (alice, bob) = (service.endpoint(&alice), service.endpoint(&bob));
        assert_eq!(service.metric("ombra_memory_budget_bytes") == 20000.0, limits.contains("memory"));
        let heard: [Mutex<Vec<u32>>; 2] = Default::default();
        thread::scope(|scope| {
            let mut waits = Vec::new();
            let many = if limits.contains("memory") { 20 } else { 1 };
            let held: Vec<Session> = (0..many).map(|_| alice.open(Purpose::Run).unwrap()).collect();
            service.until("no more are admitted", |service| {
                let open = || service.metric("ombra_sessions_open");
                let before = open();
                thread::sleep(Duration::from_millis(300));
                before >= 1.0
                    && before == open()
                    && before + service.metric("ombra_sessions_waiting") == f64::from(many)
            });
            let open = service.metric("ombra_sessions_open");
            assert!(open >= 1.0 && open < f64::from(many.max(2)), "{limits}: {open}");
            assert!(service.metric("ombra_memory_reserved_bytes") <= service.metric("ombra_memory_budget_bytes"));
            for heard in &heard {
                let session = bob.open(Purpose::Run).unwrap();
                let plan = &plan;
                waits.push(scope.spawn(move || {
                    session.wait_for_turn(&mut |before| heard.lock().unwrap().push(before)).unwrap();
                    let mut slow = Slow::open(plan, &session).unwrap();
                    slow.step().unwrap();
                    slow.end().unwrap();
                    session.finish();
                }));
            }
            let waiting = f64::from(many) - open + 2.0;
            service.until("two more wait", |service| service.metric("ombra_sessions_waiting") == waiting);
            service.until("both hear their place", |_| heard.iter().all(|heard| !heard.lock().unwrap().is_empty()));
            drop(held);
            waits.into_iter().for_each(|wait| wait.join().unwrap());
            let heard = heard.each_ref().map(|heard| heard.lock().unwrap().clone());
            assert!(heard.iter().all(|heard| heard.first().is_some_and(|before| *before > 0)), "{limits}: {heard:?}");
            assert!(heard[0].first() <= heard[1].first(), "{limits}: {heard:?}");
        });
        service.until("all memory came back", |service| service.metric("ombra_memory_reserved_bytes") == 0.0);
    }
}

#[test]
fn weights_are_shared_anew_while_a_session_goes_on() {
    let mut service = Service::start("", "");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let alice = service.client("alice");
    let endpoint = service.endpoint(&alice);
    let all = 8 * 2 * (VOCABULARY * WIDTH) as u64;
    let renew = |service: &Service| {
        let output = ombra_run().args(["renew", "--config"]).arg(service.config("server")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("renewed in"));
    };
    assert_eq!((service.run(&alice), service.run(&alice)), (all, 0), "the first session counts what it cost");
    around(&plan, &endpoint, || {
        renew(&service);
        assert_eq!((service.run(&alice), service.run(&alice)), (all, 0));
        assert_eq!(service.metric("ombra_sharings_held"), 2.0);
    })
    .unwrap();
    service.until("the old sharing is gone", |service| service.metric("ombra_sharings_held") == 1.0);
    // A session that goes on does so with the last sharing before the current one, with no older one.
    let error = around(&plan, &endpoint, || {
        renew(&service);
        renew(&service);
        assert_eq!(service.metric("ombra_sharings_held"), 1.0);
    });
    let error = error.unwrap_err();
    assert!(error.code == "E0705" && error.message.contains("E1035"), "{error}");
    assert_eq!((service.run(&alice), service.metric("ombra_sharings_total")), (all, 4.0));
    // A helper that has lost its part gets another one.
    service.running.retain(|(party, _)| *party == Party::Server);
    service.launch(Party::Helper);
    assert_eq!((service.run(&alice), service.run(&alice)), (all, 0));
    assert_eq!(service.metric("ombra_sharings_total"), 5.0);
    // The socket is its owner's alone; a helper has none, and what has ended answers nothing.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(service.keys.join("server/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    service.running.clear();
    for (party, expected) in [("helper", "names no socket"), ("server", "start the server")] {
        let output = ombra_run().args(["renew", "--config"]).arg(service.config(party)).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("E1031") && errors.contains(expected), "{errors}");
    }
    // The socket that was left behind is in nobody's way.
    service.launch(Party::Helper);
    service.launch(Party::Server);
    renew(&service);
}

#[test]
fn weights_are_shared_anew_on_a_schedule() {
    let service = Service::start("", "renew_s = 0.2");
    let alice = service.client("alice");
    #[cfg(target_os = "linux")]
    {
        let limits = fs::read_to_string(format!("/proc/{}/limits", service.running[0].1.0.id())).unwrap();
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let files: Vec<&str> = files.split_whitespace().take(2).collect();
        assert!(files[0] == files[1] && files[0] != "256", "a party takes what it may have: {files:?}");
    }
    service.until("three sharings are made", |service| service.metric("ombra_sharings_total") >= 3.0);
    service.run(&alice);
}

#[test]
fn a_session_with_an_old_sharing_has_its_time() {
    let service = Service::start("", "renew_s = 2\nrenew_grace_s = 1");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let endpoint = service.endpoint(&service.client("alice"));
    let error = around(&plan, &endpoint, || {
        service.until("the session was ended", |service| {
            service.metric("ombra_session_failures_total{code=\"E1035\"}") == 1.0
        });
    });
    let error = error.unwrap_err();
    assert!(error.code == "E0705" && error.message.contains("E1035"), "{error}");
    service.until("the old sharing is gone", |service| service.metric("ombra_sharings_held") == 1.0);
}

#[test]
fn a_party_that_is_asked_to_end_lets_its_sessions_finish() {
    let mut service = Service::start("", "");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let alice = service.client("alice");
    let endpoint = service.endpoint(&alice);
    around(&plan, &endpoint, || {
        service.signal(Party::Server, "TERM");
        service.until("nobody else is admitted", |service| service.get("/readyz").0 == 503);
        assert_eq!(service.get("/healthz").0, 200);
        // A page of another site that had its name made to point here.
        for path in ["/healthz", "/readyz", "/metrics", "/"] {
            let (status, text) = service.get_as("evil.example", path);
            assert_eq!((status, &*text), (403, "the header Host names another machine\n"), "{path}");
        }
        assert_eq!(service.get_as("127.0.0.1:9100", "/healthz").0, 200);
        assert_eq!(endpoint.open(Purpose::Run).err().expect("a refusal").code, "E0707");
    })
    .unwrap();
    assert_eq!(service.exit(Party::Server), Some(0));
    service.signal(Party::Helper, "INT");
    assert_eq!(service.exit(Party::Helper), Some(0));
}

#[test]
fn a_party_that_is_asked_to_end_ends_in_time() {
    let mut service = Service::start("", "drain_s = 0.3");
    let plan = PlanFolder::open(&service.plan.0).unwrap();
    let alice = service.client("alice");
    let endpoint = service.endpoint(&alice);
    let ended = around(&plan, &endpoint, || {
        service.signal(Party::Server, "TERM");
        assert_eq!(service.exit(Party::Server), Some(0));
    });
    let error = ended.unwrap_err();
    assert_eq!(error.message, "server aborted the run with E1030");
    // A second signal does not wait.
    let mut service = Service::start("", "");
    let alice = service.client("alice");
    let endpoint = service.endpoint(&alice);
    let ended = around(&plan, &endpoint, || {
        service.signal(Party::Server, "TERM");
        service.until("it ends", |service| service.get("/readyz").0 == 503);
        service.signal(Party::Server, "TERM");
        assert_eq!(service.exit(Party::Server), Some(1));
    });
    assert_eq!(ended.unwrap_err().code, "E0701");
}
