//! A party that dies in the setting with a dealer, in every phase of a session: each of the others ends that session with
//! one error in time, and the next session works. Material that was under way then is spent.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::Result;
use ombra_ir::draw::Choosing;
use ombra_ir::module::Setting;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::client::Conversation;
use ombra_runtime::app::request::Request;
use ombra_runtime::config::PartyConfig;
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::transport::{Endpoint, Network, Party, Purpose, Session};

use super::plans::{self, Folder, MAX, continuation};
use super::processes::{Running, ombra_run};

const PROMPT: [i64; 3] = [3, 1, 4];
/// Limits of every party, and the time within which everybody has noticed.
const LIMITS: &str = "\n[limits]\nconnect_s = 4\nreceive_s = 6\nidle_s = 20\n";
const SOON: Duration = Duration::from_secs(15);
/// Links on which a step lasts for a second or so.
const SLOW: &str = "100Mbps,60ms";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Before the client has connected.
    Connect,
    /// Between connecting and the first step.
    SetUp,
    /// In a step.
    Step,
    /// After one step and before the next.
    Between,
}

struct Site {
    plan: Folder,
    keys: Folder,
    configs: [PathBuf; 3],
    running: BTreeMap<Party, Running>,
    options: Vec<String>,
    network: &'static str,
}

impl Site {
    fn new(options: &[String]) -> Site {
        Site::over(SLOW, LIMITS, options)
    }

    fn over(network: &'static str, limits: &str, options: &[String]) -> Site {
        let (plan, keys) = (plans::cached_in(Setting::Dealer), Folder::new());
        let configs = write_local_set(&keys.join("keys"), Party::Dealer).unwrap();
        for config in &configs {
            fs::write(config, fs::read_to_string(config).unwrap() + limits).unwrap();
        }
        Site { plan, keys, configs, running: BTreeMap::new(), options: options.to_vec(), network }
    }

    fn start(&mut self, party: Party) {
        let log = fs::File::options().create(true).append(true).open(self.log_path(party)).unwrap();
        let options = if party == Party::Server { self.options.as_slice() } else { &[] };
        let mut command = ombra_run();
        command.arg("serve").arg(&self.plan.0).args(["--party", party.name(), "--threads", "1", "--log", "json"]);
        command.args(["--network", self.network]).args(options).arg("--config").arg(&self.configs[party.index()]);
        let running = Running::ready(command.stdin(Stdio::null()).stderr(log));
        self.running.insert(party, running);
    }

    fn log_path(&self, party: Party) -> PathBuf {
        self.keys.join(&format!("{party}.log"))
    }

    fn log(&self, party: Party) -> String {
        fs::read_to_string(self.log_path(party)).unwrap_or_default()
    }

    /// Codes of the errors that a party has told since its log had `from` bytes, and of those, the ones of a session.
    fn errors(&self, party: Party, from: usize) -> (Vec<String>, Vec<String>) {
        let log = self.log(party);
        let lines = log.get(from..).unwrap_or_default().lines();
        let parsed = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let errors: Vec<_> = parsed.filter(|line| line.get("code").is_some()).collect();
        let code = |line: &serde_json::Value| line["code"].as_str().unwrap_or_default().to_owned();
        let of_sessions = errors.iter().filter(|line| line.get("session").is_some());
        (errors.iter().map(code).collect(), of_sessions.map(code).collect())
    }

    fn endpoint(&self) -> Endpoint {
        let digest = PlanFolder::open(&self.plan.0).unwrap().digest;
        let network = Network::parse(self.network).unwrap();
        Endpoint::new(&PartyConfig::read(&self.configs[0]).unwrap(), &digest, network).unwrap()
    }

    fn open(&self) -> Result<Session> {
        let session = self.endpoint().open(Purpose::Run)?;
        session.wait_for_turn(&mut |_| ())?;
        Ok(session)
    }

    fn client(&self, count: &str, more: &[String]) -> Command {
        let mut command = ombra_run();
        command.arg("generate").arg(self.plan.join("public")).arg("--config").arg(&self.configs[0]);
        command.args(["--tokens", "3,1,4", "--threads", "1", "--network", self.network, "-n", count]).args(more);
        command
    }

    /// A session that must go well.
    fn works(&self, what: &str) {
        let output = self.client("2", &[]).output().unwrap();
        let [one, two] = continuation(&PROMPT, 2)[..] else { panic!("two tokens") };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{one} {two}\n"), "{what}: {errors}");
    }
}

/// Runs a session up to `phase`, in which `victim` dies there, at the client; the error that this ends with.
fn session_with_death(site: &mut Site, phase: Phase, victim: Party) -> Option<ombra_ir::Diagnostic> {
    let dies = |running: &mut BTreeMap<Party, Running>| drop(running.remove(&victim));
    let folder = PlanFolder::open(&site.plan.0).unwrap();
    if victim == Party::Client && phase == Phase::Step {
        let mut client = Running(site.client("9", &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        // It has its first token, and the second step has begun.
        client.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        thread::sleep(Duration::from_millis(100));
        return None;
    }
    if phase == Phase::Connect {
        if victim != Party::Client {
            dies(&mut site.running);
        }
        // A client that dies here has said nothing but who it is.
        return site.open().err();
    }
    let session = site.open().unwrap();
    if phase == Phase::SetUp {
        dies(&mut site.running);
        if victim == Party::Client {
            return None;
        }
        return Conversation::open(&folder, &session, Request::text(MAX), 1, None).err();
    }
    let mut talk = Conversation::open(&folder, &session, Request::text(MAX), 1, None).unwrap();
    let mut next = |keep: u64, new: &[i64], begin: &mut dyn FnMut()| {
        let choosing = (&Choosing::default(), &[Vec::new()][..]);
        talk.next_tokens(keep, &[new.to_vec()], choosing, &mut |_, _| begin()).map(|(tokens, _)| tokens)
    };
    let error = if phase == Phase::Step {
        let mut running = std::mem::take(&mut site.running);
        let (send, killed) = std::sync::mpsc::channel();
        let (told, begun) = std::sync::mpsc::channel::<()>();
        let kill = thread::spawn(move || {
            begun.recv().unwrap();
            thread::sleep(Duration::from_millis(150));
            running.remove(&victim);
            send.send(running).unwrap();
        });
        let error = next(0, &PROMPT, &mut || told.send(()).unwrap()).err();
        kill.join().unwrap();
        site.running = killed.recv().unwrap();
        error
    } else {
        let token = next(0, &PROMPT, &mut || ()).unwrap();
        assert_eq!(token, continuation(&PROMPT, 1));
        if victim == Party::Client {
            return None;
        }
        dies(&mut site.running);
        next(3, &token, &mut || ()).err()
    };
    if let Some(error) = &error {
        session.abort(error);
    }
    error
}

fn deaths_in(phase: Phase) {
    let mut site = Site::new(&[]);
    for party in [Party::Dealer, Party::Server] {
        site.start(party);
    }
    site.works("at the beginning");
    for victim in [Party::Dealer, Party::Server, Party::Client] {
        let what = format!("{} dies, {phase:?}", victim.name());
        let survivors: Vec<Party> =
            [Party::Server, Party::Dealer].into_iter().filter(|party| *party != victim).collect();
        let before: Vec<usize> = survivors.iter().map(|party| site.log(*party).len()).collect();
        let start = Instant::now();
        let error = session_with_death(&mut site, phase, victim);
        assert!(start.elapsed() < SOON, "{what}: the client waited for {:?}", start.elapsed());
        match &error {
            Some(error) => {
                let text = error.to_string();
                println!("{what}: {}", text.lines().next().unwrap_or_default());
                assert!(text.contains(victim.name()) || error.code == "E0705", "{what}: {text}");
            }
            None => assert_eq!(victim, Party::Client, "{what}: the client ends with an error"),
        }
        // Where the client never reached anybody, nobody has anything to tell.
        let unreached = phase == Phase::Connect && victim == Party::Server;
        for (party, from) in survivors.into_iter().zip(before).filter(|_| !unreached) {
            let until = Instant::now() + SOON;
            while site.errors(party, from).0.is_empty() && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
            let (all, of_session) = site.errors(party, from);
            assert!(!all.is_empty(), "{what}: {party} says nothing");
            assert!(of_session.len() <= 1, "{what}: {party} says more than one thing: {of_session:?}");
            println!("  {party}: {all:?}");
        }
        if victim != Party::Client {
            site.start(victim);
        }
        site.works(&what);
    }
}

#[test]
fn a_party_that_is_not_there() {
    deaths_in(Phase::Connect);
}

#[test]
fn a_party_that_dies_in_the_set_up() {
    deaths_in(Phase::SetUp);
}

#[test]
fn a_party_that_dies_in_a_step() {
    deaths_in(Phase::Step);
}

#[test]
fn a_party_that_dies_between_steps() {
    deaths_in(Phase::Between);
}

/// A dealer has done its part of a step long before the others, and then waits for as long as the step lasts.
#[test]
fn a_dealer_waits_for_the_end_of_a_step() {
    let mut site = Site::over("100Mbps,200ms", "\n[limits]\nconnect_s = 9\nreceive_s = 1\nidle_s = 1\n", &[]);
    for party in [Party::Dealer, Party::Server] {
        site.start(party);
    }
    let start = Instant::now();
    let output = site.client("1", &[]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), continuation(&PROMPT, 1)[0].to_string(), "{errors}");
    assert!(start.elapsed() > Duration::from_secs(2), "the step lasts longer than a client may think");
}

/// A session with material whose server, or client, is killed in a step is spent for both, whoever lost its list.
#[test]
fn material_that_was_under_way_is_spent() {
    for victim in [Party::Server, Party::Client] {
        let mut site = Site::new(&[]);
        let material = site.plan.join("material");
        let mut dealing = ombra_run();
        dealing.arg("deal").arg(&site.plan.0).args(["--dim", "seq=3", "--steps", "9", "-o"]).arg(&material);
        assert!(dealing.output().unwrap().status.success());
        let part = |party: &str| ["--material".to_owned(), material.join(party).display().to_string()];
        site.options = part("server").to_vec();
        site.start(Party::Server);
        let mut client =
            Running(site.client("9", &part("client")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        client.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        if victim == Party::Server {
            site.running.clear();
            let mut text = String::new();
            client.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(client.0.wait().unwrap().code(), Some(1));
            assert!(text.contains("server"), "{text}");
            site.start(Party::Server);
        }
        drop(client);
        let again = || {
            let output = site.client("9", &part("client")).output().unwrap();
            assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let text = again();
        assert!(text.contains("E1052") && text.contains("used before") && !text.contains("server aborted"), "{text}");
        fs::remove_file(site.configs[0].with_file_name("spent-sessions")).unwrap();
        let text = again();
        assert!(text.contains("E1052") && !text.contains("server aborted"), "{text}");
        // Somebody put the client's key back, too.
        let session = fs::read_dir(material.join("client")).unwrap().next().unwrap().unwrap().path();
        fs::rename(session.join("session.used"), session.join("session.key")).unwrap();
        let text = again();
        assert!(text.contains("server aborted the run with E1052"), "{text}");
    }
}
