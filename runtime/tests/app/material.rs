//! Sessions whose dealer was there before: their files, how often they serve, and what of them is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use ombra_ir::module::Setting;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::Request;
use ombra_runtime::app::material::{ClientMaterial, Dealing, Seeds, Spent, deal, share_weights};
use ombra_runtime::app::report::Report;
use ombra_runtime::app::request::Advance;
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::prg::Key;
use ombra_runtime::transport::{Party, SessionId, parse_session};
use sha2::{Digest, Sha256};

use super::plans::{self, Folder, continuation};
use super::processes::{Serving, ombra_run};

const PROMPT: [i64; 3] = [3, 1, 4];
const LENGTH: u64 = 3;

/// A plan with a dealer, and what was dealt for it.
struct Site {
    plan: Folder,
    material: PathBuf,
}

impl Site {
    /// Material of sessions of so many steps each, for a prompt of three tokens.
    fn new(sessions: &[u64]) -> Site {
        let plan = plans::cached_in(Setting::Dealer);
        let material = plan.join("material");
        for steps in sessions {
            let output = ombra_run()
                .args(["deal", "--plan"])
                .arg(&plan.0)
                .args(["--dim", "seq=3", "--threads", "1", "--steps", &steps.to_string(), "-o"])
                .arg(&material)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(printed.lines().filter(|line| line.ends_with(".dealt")).count() as u64, *steps, "{printed}");
        }
        Site { plan, material }
    }

    /// The only session's folder at a party.
    fn session(&self, party: &str) -> PathBuf {
        let entries = fs::read_dir(self.material.join(party)).unwrap().flatten();
        let mut found = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
        let only = found.next().expect("a session was dealt");
        assert!(found.next().is_none(), "one session was dealt");
        only
    }

    fn step(&self, index: usize) -> PathBuf {
        self.session("server").join(format!("step-{index:05}.dealt"))
    }

    fn local(&self, prompt: &[i64], count: u64) -> Output {
        let tokens = prompt.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let mut command = ombra_run();
        command.arg("local").arg(&self.plan.0).args(["--tokens", &tokens, "--threads", "1", "-n", &count.to_string()]);
        command.arg("--report").arg(self.plan.join("report.json"));
        command.arg("--material").arg(&self.material).output().unwrap()
    }

    fn spent(&self, party: &str) -> PathBuf {
        self.plan.join("material-spent").join(party)
    }
}

fn line(tokens: &[i64]) -> String {
    tokens.iter().map(i64::to_string).collect::<Vec<_>>().join(" ") + "\n"
}

/// The error text of a run that failed, all parties' together.
fn failed(output: &Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect(output: &Output, code: &str, says: &[&str]) {
    let text = failed(output);
    assert!(text.contains(code), "{code} {text}");
    for what in says {
        assert!(text.contains(what), "{what} {text}");
    }
}

#[test]
fn a_session_runs_once_without_its_dealer() {
    let site = Site::new(&[4, 2]);
    let output = site.local(&PROMPT, 4);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), line(&continuation(&PROMPT, 4)));
    let report: Report = serde_json::from_slice(&fs::read(site.plan.join("report.json")).unwrap()).unwrap();
    report.check_costs().unwrap();
    assert_eq!(report.setting, "2pc-dealer");
    let parties: Vec<&str> = report.peak_rss_bytes.keys().map(String::as_str).collect();
    assert_eq!(parties, ["client", "server"], "nobody else took part");
    assert_eq!(report.phases.len(), 5);
    for phase in &report.phases[1..] {
        let dealt = phase.offline_bytes["dealer"];
        assert!(dealt.measured > 0 && dealt.measured == dealt.predicted && phase.rounds.measured > 0, "{phase:?}");
        assert_eq!(phase.bytes.keys().map(String::as_str).collect::<Vec<_>>(), ["client", "server"]);
    }

    // The other session has two steps.
    expect(&site.local(&PROMPT, 3), "E1053", &["3 steps", "2 steps", "seq=3"]);
    expect(&site.local(&[1, 2], 1), "E1053", &["seq=2", "seq=3"]);
    assert!(site.local(&PROMPT, 1).status.success(), "fewer steps than were dealt are fine");
    expect(&site.local(&PROMPT, 1), "E1052", &["used before"]);
    assert_eq!(fs::read_to_string(site.spent("client")).unwrap().lines().count(), 2);
    assert_eq!(fs::read_to_string(site.spent("client")).unwrap(), fs::read_to_string(site.spent("server")).unwrap());
}

#[test]
fn a_session_that_ended_early_is_spent_at_either_party() {
    let site = Site::new(&[2]);
    // Its second step cannot be read.
    let second = site.step(1);
    let mut bytes = fs::read(&second).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&second, &bytes).unwrap();
    let output = site.local(&PROMPT, 2);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("E1050") && text.contains("was changed") && text.contains("SHA-256"), "{text}");
    assert!(!site.step(0).exists() && site.step(0).with_extension("used").exists());
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(site.step(1).with_extension("used"), &bytes).unwrap();
    expect(&site.local(&PROMPT, 2), "E1052", &["list of those"]);
    // The client lost its list: its key has another name.
    fs::remove_file(site.spent("client")).unwrap();
    let key = site.session("client").join("session.key");
    expect(&site.local(&PROMPT, 2), "E1052", &["used before"]);
    assert!(!key.exists() && !site.spent("client").exists());
    // Somebody put that back as well.
    fs::rename(key.with_extension("used"), &key).unwrap();
    expect(&site.local(&PROMPT, 2), "E1052", &["server aborted the run with E1052", "used before"]);
    // Both did, and somebody put the files back but for one.
    fs::remove_dir_all(site.plan.join("material-spent")).unwrap();
    fs::rename(site.step(0).with_extension("used"), site.step(0)).unwrap();
    fs::rename(key.with_extension("used"), &key).unwrap();
    expect(&site.local(&PROMPT, 2), "E1052", &["used before"]);
}

#[test]
fn what_is_damaged_or_foreign_is_refused_with_one_error() {
    type Harm = fn(&Site);
    let cut = |site: &Site| {
        let bytes = fs::read(site.step(1)).unwrap();
        fs::write(site.step(1), &bytes[..bytes.len() - 1]).unwrap();
    };
    let longer = |site: &Site| {
        let bytes = fs::read(site.step(1)).unwrap();
        fs::write(site.step(1), [bytes, vec![0]].concat()).unwrap();
    };
    let harms: &[(&str, &str, Harm)] = &[
        ("E1050", "it was cut, or something was added", cut),
        ("E1050", "it was cut, or something was added", longer),
        ("E1050", "another kind of file", |site| fs::write(site.step(0), [7; 500]).unwrap()),
        ("E1050", "bytes: it was cut", |site| fs::write(site.step(0), b"omb").unwrap()),
        ("E1050", "version 9", |site| {
            let mut bytes = fs::read(site.step(0)).unwrap();
            bytes[8] = 9;
            fs::write(site.step(0), bytes).unwrap();
        }),
        ("E1050", "header is longer than any", |site| {
            let mut bytes = fs::read(site.step(0)).unwrap();
            bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
            fs::write(site.step(0), bytes).unwrap();
        }),
        ("E1050", "its header makes no sense", |site| {
            let mut bytes = fs::read(site.step(0)).unwrap();
            bytes[16] = b'[';
            fs::write(site.step(0), bytes).unwrap();
        }),
        ("E1050", "cannot be read", |site| fs::remove_file(site.step(1)).unwrap()),
        ("E1051", "for another step", |site| assert!(fs::copy(site.step(1), site.step(0)).is_ok())),
        ("E1051", "for another party", |site| {
            let [from, to] = ["client", "server"].map(|party| site.session(party).join("session.key"));
            assert!(fs::copy(from, to).is_ok());
        }),
        ("E1050", "makes no sense", |site| fs::write(site.session("server").join("session.key"), "{}").unwrap()),
        ("E1050", "another digest", |site| changed_digit(&site.session("client").join("session.key"))),
        ("E1050", "another digest", |site| changed_digit(&site.session("server").join("session.key"))),
        ("E1050", "another digest", |site| {
            let parts =
                fs::read_dir(site.session("server").parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            let of_weights = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "key");
            parts.filter(of_weights).for_each(|path| changed_digit(&path));
        }),
        ("E1051", "no material of this session", |site| fs::remove_dir_all(site.session("server")).unwrap()),
        ("E1051", "for another file of weights", |site| {
            let path = site.plan.join("server/weights.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("E1051", "for another plan", |site| {
            plans::change(&site.plan, |plan| plan.module.name = "third".to_owned());
        }),
        ("E1051", "for another session", |site| {
            let (from, id) = (Site::new(&[2]), site.session("server"));
            for name in ["step-00000.dealt", "step-00001.dealt"] {
                let digest = PlanFolder::open(&site.plan.0).unwrap().digest;
                assert_eq!(digest, PlanFolder::open(&from.plan.0).unwrap().digest);
                fs::copy(from.session("server").join(name), id.join(name)).unwrap();
            }
        }),
    ];
    for (code, says, harm) in harms {
        let site = Site::new(&[2]);
        harm(&site);
        let output = site.local(&PROMPT, 2);
        expect(&output, code, &[says, "expected", "found", "help"]);
    }
    // Another payload under the right header is noticed when it is read, another header when the session begins.
    let (site, other) = (Site::new(&[1]), Site::new(&[1]));
    let (own, foreign) = (fs::read(site.step(0)).unwrap(), fs::read(other.step(0)).unwrap());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let id = |site: &Site| site.session("server").file_name().unwrap().to_string_lossy().into_owned();
    let renamed = text(&foreign[..foreign.len().min(own.len())]).contains(&id(&other));
    assert!(renamed, "a header names its session");
    let header = |bytes: &[u8]| 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let head = text(&foreign[..header(&foreign)][16..]).replace(&id(&other), &id(&site));
    let forged = [&foreign[..16], head.as_bytes(), &foreign[header(&foreign)..]].concat();
    fs::write(site.step(0), forged).unwrap();
    expect(&site.local(&PROMPT, 1), "E1050", &["of its header", "expected", "found", "help"]);
}

/// Everything that a dealer writes, by name within the folder.
/// One digit of the key in a file is another one.
fn changed_digit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let name = b"\"key\": \"";
    let at = bytes.windows(name.len()).position(|window| window == name).expect("a file of a key") + name.len();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    fs::write(path, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => all.push((path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(path).unwrap())),
            }
        }
    }
    all.sort();
    all
}

#[test]
fn two_dealers_with_equal_seeds_write_equal_files() {
    let plan = plans::cached_in(Setting::Dealer);
    let open = PlanFolder::open(&plan.0).unwrap();
    let (weights, _) = share_weights(&open, &plan.join("shared"), &Key::from_bytes([9; 16])).unwrap();
    let id: SessionId = parse_session(&"ab".repeat(16)).unwrap();
    let dealt = |name: &str, client: u8| {
        let output = plan.join(name);
        let seeds = Seeds { session: id, client: Key::from_bytes([client; 16]), server: Key::from_bytes([2; 16]) };
        let sizes = [("seq".to_owned(), LENGTH)];
        let dealing = Dealing {
            folder: &open,
            sizes: &sizes,
            steps: 3,
            weights: &weights,
            output: &output,
            threads: 1,
            memory: 1 << 30,
        };
        let names = deal(&dealing, &seeds).unwrap();
        assert_eq!(names.len(), 5, "three steps and two keys");
        files(&output)
    };
    let (one, two, other) = (dealt("one", 1), dealt("two", 1), dealt("other", 5));
    assert!(one == two, "equal seeds");
    assert_eq!(one.len(), 5);
    let differ = one.iter().zip(&other).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0.display().to_string());
    assert_eq!(differ.count(), 5, "other keys: every step, and what names their digests or holds the key");
    // A second session of the same name is not written over the first.
    let again = Dealing {
        folder: &open,
        sizes: &[("seq".to_owned(), LENGTH)],
        steps: 1,
        weights: &weights,
        output: &plan.join("one"),
        threads: 1,
        memory: 1 << 30,
    };
    let seeds = Seeds { session: id, client: Key::random().unwrap(), server: Key::random().unwrap() };
    assert_eq!(deal(&again, &seeds).err().map(|error| error.code), Some("E1054"));
}

#[test]
fn only_what_fits_the_plan_is_dealt() {
    let three = plans::cached();
    let plan = plans::cached_in(Setting::Dealer);
    let refused = |folder: &Folder, args: &[&str], code: &str| {
        let output =
            ombra_run().arg("deal").arg(&folder.0).args(args).arg("-o").arg(folder.join("m")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(code), "{args:?} {text}");
    };
    refused(&three, &["--dim", "seq=3"], "E0421");
    refused(&plan, &[], "E1007");
    refused(&plan, &["--dim", "seq=0"], "E1007");
    refused(&plan, &["--dim", "seq=13"], "E1007");
    refused(&plan, &["--dim", "seq=3", "--dim", "past=4"], "E1007");
    refused(&plan, &["--dim", "seq=3", "--steps", "0"], "E1007");
    refused(&plan, &["--dim", "seq=3", "--steps", "100"], "E1007");
    refused(&plan, &["--dim", "seq=3", "--weights", "nowhere"], "E1050");
    // A file of weights with a byte too many, whose digest is right.
    let (path, _) =
        share_weights(&PlanFolder::open(&plan.0).unwrap(), &plan.join("shared"), &Key::random().unwrap()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let payload = [&bytes[header..], &[0]].concat();
    let mut text: serde_json::Value = serde_json::from_slice(&bytes[16..header]).unwrap();
    text["bytes"] = payload.len().into();
    text["chunks"] = vec![Sha256::digest(&payload).iter().map(|byte| format!("{byte:02x}")).collect::<String>()].into();
    let text = serde_json::to_vec(&text).unwrap();
    let forged = [&bytes[..12], &(text.len() as u32).to_le_bytes(), &text, &payload].concat();
    fs::write(&path, forged).unwrap();
    refused(&plan, &["--dim", "seq=3", "--weights", path.to_str().unwrap()], "E1050");
}

#[test]
fn a_client_passes_over_what_is_of_other_plans_or_taken() {
    let site = Site::new(&[2]);
    let folder = PlanFolder::open(&site.plan.0).unwrap();
    // A session of another plan, first by name.
    let own = site.session("client");
    let key = fs::read_to_string(own.join("session.key")).unwrap();
    let id = own.file_name().unwrap().to_str().unwrap();
    let foreign = own.with_file_name("0".repeat(32));
    fs::create_dir(&foreign).unwrap();
    let text = key.replace(id, &"0".repeat(32)).replace(&folder.digest, &"7".repeat(64));
    // With the digest of what it says now, as it is written without spaces.
    let (content, _) = text.split_once("\"content\": ").unwrap().1.rsplit_once(",\n  \"sha256\"").unwrap();
    let compact = content.lines().map(str::trim).collect::<String>().replace("\": ", "\":");
    let sha256: String = Sha256::digest(&compact).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(foreign.join("session.key"), format!("{{\"content\":{compact},\"sha256\":\"{sha256}\"}}")).unwrap();

    let list = site.plan.join("list");
    let mine = ClientMaterial::at(&site.material.join("client"), Spent::at(&list));
    let request = Request::text(LENGTH + 1);
    let steps = [Advance { keep: 0, new: LENGTH, ..Advance::default() }];
    let choose = || mine.choose(&folder, &request, &steps, 1 << 30).map_err(|error| error.code);
    let chosen = choose().expect("the session of this plan");
    assert_eq!(chosen.session.to_string(), id);
    assert_eq!(choose().err(), Some("E1052"), "somebody has it");
    drop(chosen);
    let chosen = choose().expect("nobody has it any more");
    assert!(!list.exists(), "what was only chosen is not spent");
    chosen.spend().unwrap();
    assert_eq!(chosen.spend().map_err(|error| error.code), Err("E1052"));
    drop(chosen);
    assert_eq!(choose().err(), Some("E1052"));
    fs::remove_dir_all(own).unwrap();
    assert_eq!(choose().err(), Some("E1051"), "there is but one of another plan");
}

/// Client and server as processes of their own, the dealer's term of the weights as a file, and a dealer who is not there.
#[test]
fn parties_apart_take_their_own_parts() {
    let site = Site::new(&[]);
    let keys = Folder::new();
    let [client, server, _] = write_local_set(&keys.join("keys"), Party::Dealer).unwrap();
    for config in [&client, &server] {
        fs::write(config, fs::read_to_string(config).unwrap() + "\n[limits]\nconnect_s = 2\n").unwrap();
    }
    let shared = keys.join("shared");
    let made = ombra_run().arg("share-weights").arg(&site.plan.0).arg("-o").arg(&shared).output().unwrap();
    assert!(made.status.success());
    let weights = files(&shared.join("dealer")).remove(0).0;
    let dealing = ombra_run()
        .arg("deal")
        .arg(site.plan.join("public"))
        .args(["--dim", "seq=3", "--steps", "2", "--threads", "1", "--weights"])
        .arg(shared.join("dealer").join(weights))
        .arg("-o")
        .arg(&site.material)
        .output()
        .unwrap();
    assert!(dealing.status.success(), "{}", String::from_utf8_lossy(&dealing.stderr));
    // The server has its own key, without which the session cannot begin.
    let run = |folder: &Path| {
        let mut command = ombra_run();
        command.arg("generate").arg(site.plan.join("public")).args(["--tokens", "3,1,4", "-n", "2", "--threads", "1"]);
        command.arg("--config").arg(&client).arg("--material").arg(folder).output().unwrap()
    };
    for (path, bytes) in files(&shared.join("server")) {
        fs::write(site.material.join("server").join(path), bytes).unwrap();
    }
    // A server that cannot be reached, or has no material, spends none of the client's.
    let spent = client.with_file_name("spent-sessions");
    expect(&run(&site.material.join("client")), "E0707", &["server"]);
    {
        let _server = Serving::start(&site.plan.0, Party::Server, &server);
        expect(&run(&site.material.join("client")), "E0705", &["E1051"]);
    }
    assert!(!spent.exists());
    let more = ["--material".into(), site.material.join("server").into_os_string()];
    let _server = Serving::start_with(&site.plan.0, Party::Server, &server, &more);
    let output = run(&site.material.join("client"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), line(&continuation(&PROMPT, 2)));
    expect(&run(&site.material.join("client")), "E1052", &["used before"]);
    for config in [&client, &server] {
        assert_eq!(fs::read_to_string(config.with_file_name("spent-sessions")).unwrap().lines().count(), 1);
    }
    // Without material, the dealer is missed.
    let mut without = ombra_run();
    without
        .arg("generate")
        .arg(site.plan.join("public"))
        .args(["--tokens", "3,1,4", "-n", "2", "--config"])
        .arg(&client);
    expect(&without.output().unwrap(), "E0707", &[]);
}
