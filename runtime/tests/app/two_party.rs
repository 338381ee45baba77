//! Two parties alone, as processes over loopback TCP and TLS: what a session costs, parties that end, other plans, and
//! messages that no party sends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::draw::{Choosing, Way};
use ombra_ir::module::Setting;
use ombra_ir::plan;
use ombra_ir::settings::two_party::{SETUP_ROUNDS, SETUP_SENT, TILE_SEED, tile_sets};
use ombra_lattice::tiles::public_key_bytes;
use ombra_runtime::app::client::Conversation;
use ombra_runtime::app::report::Report;
use ombra_runtime::app::request::Advance;
use ombra_runtime::app::{PlanFolder, Request, program};
use ombra_runtime::config::{Limits, PartyConfig};
use ombra_runtime::keygen::write_set;
use ombra_runtime::ot::base::FIRST_BYTES;
use ombra_runtime::transport::{Endpoint, Frame, Party, Purpose, Session};

use super::plans::{self, Folder, MAX, continuation};
use super::processes::{Running, Serving, ombra_run, refused_to_serve};

const PROMPT: [i64; 3] = [3, 1, 4];
/// Within this time whatever ends a session has ended it.
const SOON: Duration = Duration::from_secs(20);

/// A plan, and the configurations of both.
struct Site {
    plan: Folder,
    _keys: Folder,
    client: PathBuf,
    server: PathBuf,
}

impl Site {
    fn new() -> Site {
        let (plan, keys) = (plans::cached_in(Setting::TwoParty), Folder::new());
        let [client, server] = write_set(&keys.join("keys"), [Party::Client, Party::Server]).unwrap();
        Site { plan, _keys: keys, client, server }
    }

    fn serve(&self) -> Serving {
        Serving::start(&self.plan.0, Party::Server, &self.server)
    }

    /// The client's command for `count` tokens of a plan.
    fn generate(&self, plan: &Path, count: &str) -> std::process::Command {
        let mut command = ombra_run();
        command.arg("generate").arg(plan).arg("--config").arg(&self.client);
        command.args(["--tokens", "3,1,4", "-n", count, "--threads", "1"]);
        command
    }

    /// A client is served and gets the right tokens, at the declared cost.
    fn works(&self, what: &str) {
        let path = self.plan.join("client.json");
        let output = self.generate(&self.plan.join("public"), "2").arg("--report").arg(&path).output().unwrap();
        let [one, two] = continuation(&PROMPT, 2)[..] else { panic!("two tokens") };
        assert_eq!(succeeded(output), format!("{one} {two}\n"), "{what}");
        report(&path).check_costs().unwrap();
    }

    fn open(&self, folder: &PlanFolder) -> Session {
        let config = PartyConfig::read(&self.client).unwrap();
        Endpoint::new(&config, &folder.digest, None).unwrap().open(Purpose::Run).unwrap()
    }
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(path: &Path) -> Report {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn two_processes_generate_and_cost_what_is_declared() {
    let folder = plans::cached_in(Setting::TwoParty);
    let path = folder.join("report.json");
    let mut command = ombra_run();
    command.arg("local").arg(&folder.0).args([
        "--tokens",
        "3,1,4",
        "-n",
        "3",
        "--verify",
        "--threads",
        "1",
        "--report",
    ]);
    let printed = succeeded(command.arg(&path).output().unwrap());
    let expected = continuation(&PROMPT, 3);
    let line = expected.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(printed.lines().next(), Some(line.as_str()));
    let report = report(&path);
    assert_eq!((report.setting.as_str(), report.tokens.as_ref()), ("2pc", Some(&expected)));
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["setup", "prefill", "decode", "decode"]);
    report.check_costs().unwrap();
    for phase in &report.phases {
        assert!(phase.bytes.keys().eq(["client", "server"]) && phase.offline_bytes.is_empty());
        assert!(phase.bytes.values().all(|bytes| bytes.measured > 0), "{}", phase.name);
    }
    let setup = &report.phases[0];
    // Beside the transfers, a public key for products in the rings of this plan.
    let sets = tile_sets(&PlanFolder::open(&folder.0).unwrap().plan.module);
    let keys: Vec<_> = sets.iter().map(|set| (TILE_SEED + public_key_bytes(set)) as u64).collect();
    assert!(!keys.is_empty());
    let expected = [SETUP_SENT[0] + keys.iter().sum::<u64>(), SETUP_SENT[1]];
    assert_eq!(["client", "server"].map(|party| setup.bytes[party].measured), expected);
    assert_eq!(setup.rounds.measured, u64::from(SETUP_ROUNDS));
    assert!(report.peak_rss_bytes.keys().eq(["client", "server"]));
    assert_eq!(report.verify.unwrap().outputs[0].token_agreement, Some(1.0));
}

/// Whoever dies, the other one has one error, and the next session is served.
#[test]
fn a_party_that_dies_ends_one_session() {
    let site = Site::new();
    let mut server = site.serve();
    site.works("at the beginning");

    let mut client = site.generate(&site.plan.0, "9");
    let client = Running(client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    thread::sleep(Duration::from_millis(300));
    drop(client);
    site.works("a client was killed");
    let folder = PlanFolder::open(&site.plan.0).unwrap();
    drop(site.open(&folder));
    site.works("a client left before the set-up");

    // After a step, and before the set-up.
    for step in [true, false] {
        let session = site.open(&folder);
        let start;
        let error = if step {
            let mut talk = Conversation::open(&folder, &session, Request::text(MAX), 1, None).unwrap();
            let mut next = |keep: u64, new: &[i64]| {
                let choosing = (&Choosing::default(), &[Vec::new()][..]);
                talk.next_tokens(keep, &[new.to_vec()], choosing, &mut |_, _| ()).map(|(tokens, _)| tokens)
            };
            let tokens = next(0, &PROMPT).unwrap();
            assert_eq!(tokens, continuation(&PROMPT, 1));
            drop(server);
            start = Instant::now();
            next(3, &tokens).unwrap_err()
        } else {
            drop(server);
            start = Instant::now();
            Conversation::open(&folder, &session, Request::text(MAX), 1, None).err().expect("there is no server")
        };
        assert!(start.elapsed() < SOON, "the client waited for {:?}", start.elapsed());
        assert!(error.to_string().contains("server"), "{error}");
        server = site.serve();
        site.works("the server came back");
    }
    drop(server);
}

#[test]
fn another_plan_and_another_setting_are_refused() {
    let site = Site::new();
    let _server = site.serve();
    let other = plans::cached_in(Setting::TwoParty);
    let file = other.join("public/plan.ombra");
    let mut changed = plan::decode(&fs::read(&file).unwrap()).unwrap();
    changed.module.name = "another".to_owned();
    fs::write(&file, plan::encode(&changed).unwrap()).unwrap();
    // Both parties of a plan of three are here, but its server is not.
    let three = plans::cached();
    for plan in [&other, &three] {
        let output = site.generate(&plan.0, "1").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{errors}");
        assert_eq!(errors.matches("error[").count(), 1, "{errors}");
        assert!(errors.contains("plan digest differs"), "{errors}");
    }
    site.works("other plans were refused");
}

/// A client that sends no elements of the group, too few bytes, or a set-up that is not the one that it confirms: the server
/// ends that session with one error, tells its code, and serves the next one.
#[test]
fn messages_that_no_party_sends_end_one_session() {
    let site = Site::new();
    let _server = site.serve();
    let folder = PlanFolder::open(&site.plan.0).unwrap();
    for (what, first, code) in [
        ("no elements", vec![0xff; FIRST_BYTES], "E0908"),
        ("neutral elements", vec![0; FIRST_BYTES], "E0908"),
        ("too few", vec![0; 64], ""),
    ] {
        let session = site.open(&folder);
        let link = session.link(Party::Server).unwrap();
        link.send(Frame::new(1, u32::MAX, 0, vec![7; 16])).unwrap();
        link.recv(1, u32::MAX, 0, 32).unwrap();
        link.send(Frame::new(1, u32::MAX, 1, first)).unwrap();
        let start = Instant::now();
        let ended = link.recv(1, u32::MAX, 1, FIRST_BYTES as u64).and_then(|_| link.recv(1, u32::MAX, 2, 4096));
        let error = ended.err().unwrap_or_else(|| panic!("{what}: the server went on"));
        assert!(start.elapsed() < SOON && error.to_string().contains(code), "{what}: {error}");
        drop(session);
        site.works(what);
    }
}

/// A server that shares its weights with nobody has nothing to renew.
#[test]
fn renewing_what_nobody_shares_is_refused() {
    let site = Site::new();
    let text = fs::read_to_string(&site.server).unwrap();
    fs::write(&site.server, text + "\n[service]\nrenew_s = 60\n").unwrap();
    let errors = refused_to_serve(&site.plan, &site.server);
    assert!(errors.contains("E0711") && errors.contains("renew_s"), "{errors}");
}

/// A step with a message that a party would refuse is refused before it begins.
#[test]
fn a_message_that_is_too_long_is_refused_before_its_step() {
    let plan = plans::cached_in(Setting::TwoParty);
    let folder = PlanFolder::open(&plan.0).unwrap();
    let request = Request::text(3);
    let module = folder.module(&request, Way::default()).unwrap();
    let inputs = request.step(&folder.plan, Advance { new: 3, ..Advance::default() }, 1 << 30).unwrap();
    let step = program::prepare(&module, &inputs.sizes, &inputs.public, 1 << 30).unwrap();
    let longest = step.longest.iter().flatten().copied().max().unwrap();
    assert!(longest > 0);
    let checked = |most| {
        let limits = Limits { max_frame_bytes: most, ..Limits::default() };
        program::check_traffic(&step, &limits).map_err(|error| error.code)
    };
    assert_eq!(checked(longest), Ok(()));
    assert_eq!(checked(longest - 1), Err("E1021"));
}
