//! A dealer that gets nothing of the private weights: the client gets the term that the dealer has otherwise.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;
use std::thread;

use ombra_ir::draw::Choosing;
use ombra_ir::module::Setting;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::client::{self, Options, Outcome, Prepared, Task};
use ombra_runtime::app::party::{Keep, Serving, serve_session};
use ombra_runtime::app::report::{Pair, Report};
use ombra_runtime::backend::products::Products;
use ombra_runtime::transport::{Party, Session};

use super::plans::{self, Folder, VOCABULARY, WIDTH, continuation};
use super::processes::ombra_run;

const PROMPT: [i64; 3] = [3, 1, 4];
/// Payload bytes of one term of the private weights.
const TERM: u64 = (8 * 2 * VOCABULARY * WIDTH) as u64;

/// A plan with a dealer, which gets nothing of the model if it is `strict`.
fn plan(strict: bool) -> Folder {
    let folder = plans::cached_in(Setting::Dealer);
    plans::change(&folder, |plan| plan.strict_dealer = strict);
    folder
}

/// The parties of one process each that serve, and a client's process.
struct Site {
    folders: [PlanFolder; 3],
    keeps: [Keep; 2],
}

impl Site {
    fn new(plan: &Folder) -> Site {
        let folders = [(); 3].map(|()| PlanFolder::open(&plan.0).unwrap());
        let keeps = [Party::Server, Party::Dealer].map(|party| Keep::new(party, &folders[0]).unwrap());
        Site { folders, keeps }
    }

    /// A session: its outcome, and the payload bytes that came to the dealer in every phase.
    fn session(&self, count: u64) -> (Outcome, Vec<u64>) {
        let sessions = Session::in_memory(Setting::Dealer.protocol().parties).unwrap();
        let Ok([client, server, dealer]) = <[Session; 3]>::try_from(sessions) else { panic!("three parties") };
        let [mine, of_server, of_dealer] = &self.folders;
        let [keep, parts] = &self.keeps;
        let received = Mutex::new(Vec::new());
        let count_received = |_, _| {
            let peers = dealer.meter().snapshot().peers;
            received.lock().unwrap().push(peers.iter().map(|peer| peer.received_bytes).sum());
        };
        let outcome = thread::scope(|scope| {
            scope.spawn(|| serve_session(of_server, &server, keep, 1).unwrap());
            scope.spawn(|| {
                let (take, memory) = (&mut |_| true, 1 << 30);
                let measured = &count_received;
                let serving = Serving {
                    folder: of_dealer,
                    keep: parts,
                    material: None,
                    products: Products::cpu(1),
                    memory,
                    take,
                    measured,
                };
                serving.serve(&dealer).unwrap();
            });
            let (prompts, choosing) = (vec![PROMPT.to_vec()], Choosing::default());
            let task = Prepared::new(mine, Task::Generate { prompts, count, stop: vec![], choosing }, &[]).unwrap();
            let on_token = &mut |_, _| Ok(ControlFlow::Continue(()));
            let options =
                Options { products: Products::cpu(1), keep_steps: false, isolation: None, dealt: None, on_token };
            client::run(mine, &client, task, options).unwrap()
        });
        let report = Report { phases: outcome.costs.phases.clone(), ..Report::default() };
        report.check_costs().unwrap();
        (outcome, received.into_inner().unwrap())
    }
}

fn setup(outcome: &Outcome) -> Pair {
    outcome.costs.phases[0].bytes["server"]
}

fn both(bytes: u64) -> Pair {
    Pair { predicted: bytes, measured: bytes }
}

#[test]
fn the_client_gets_what_the_dealer_gets_otherwise() {
    let (ordinary, strict) = (plan(false), plan(true));
    let (expected, received) = Site::new(&ordinary).session(4);
    assert_eq!((setup(&expected), received), (both(TERM), vec![TERM, 0, 0, 0, 0]));
    let site = Site::new(&strict);
    let (outcome, received) = site.session(4);
    assert_eq!(outcome.tokens, expected.tokens);
    assert_eq!(outcome.tokens, [continuation(&PROMPT, 4)]);
    assert_eq!((setup(&outcome), received), (both(TERM), vec![0; 5]), "nothing comes to the dealer");
    let bytes = |outcome: &Outcome| -> Vec<_> {
        outcome.costs.phases[1..].iter().map(|phase| (phase.bytes.clone(), phase.offline_bytes.clone())).collect()
    };
    assert_eq!(bytes(&outcome), bytes(&expected), "steps cost the same");
    // The client's process has its part now; another one gets it anew. The dealer gets its key of the session.
    let (again, received) = site.session(1);
    assert_eq!((again.tokens.as_slice(), setup(&again)), (&[continuation(&PROMPT, 1)][..], both(0)));
    assert_eq!(received, [16, 0]);
    let Site { keeps, .. } = site;
    let other = Site { keeps, ..Site::new(&strict) };
    assert_eq!(setup(&other.session(1).0), both(TERM));
}

#[test]
fn a_strict_dealer_needs_a_setting_with_one() {
    let folder = plans::cached();
    plans::change(&folder, |plan| plan.strict_dealer = true);
    let error = PlanFolder::open(&folder.0).err().unwrap();
    assert!(error.code == "E0421" && error.message.contains("nobody deals in the setting 3pc"), "{error}");
}

fn deal(plan: &Path, options: &[&str], output: &Path) -> Output {
    let mut command = ombra_run();
    command.arg("deal").arg(plan).args(["--dim", "seq=3", "--steps", "2", "--threads", "1"]).args(options);
    command.arg("-o").arg(output).output().unwrap()
}

/// The set-up of a run of all parties on this machine, which must go well.
fn local(plan: &Folder, material: Option<&Path>) -> Pair {
    let report = plan.join("report.json");
    let mut command = ombra_run();
    command.arg("local").arg(&plan.0).args(["--tokens", "3,1,4", "-n", "2", "--threads", "1", "--report"]).arg(&report);
    let output =
        command.args(material.iter().flat_map(|path| ["--material".as_ref(), path.as_os_str()])).output().unwrap();
    let [one, two] = continuation(&PROMPT, 2)[..] else { panic!("two tokens") };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{one} {two}\n"), "{errors}");
    let report: Report = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    report.check_costs().unwrap();
    assert!(report.strict_dealer);
    report.phases[0].bytes["server"]
}

#[test]
fn processes_run_with_the_dealer_and_with_what_it_dealt() {
    let plan = plan(true);
    assert_eq!(local(&plan, None), both(TERM));
    let material = plan.join("material");
    let shared = ombra_run().arg("share-weights").arg(&plan.0).arg("-o").arg(&material).output().unwrap();
    assert!(shared.status.success(), "{}", String::from_utf8_lossy(&shared.stderr));
    let only = |party: &str| {
        let mut names = fs::read_dir(material.join(party)).unwrap().map(|entry| entry.unwrap().path());
        let name = names.next().unwrap();
        assert!(names.next().is_none(), "{party} has one file");
        name
    };
    let (share, key) = (only("client"), only("dealer"));
    let text = fs::read_to_string(&key).unwrap();
    assert!(share.extension().unwrap() == "share" && key.extension().unwrap() == "key");
    assert!(text.len() < 1000 && text.contains("\"weights\": null"), "a key and nothing of the weights: {text}");
    // The dealer needs its key and the public folder.
    for _ in 0..2 {
        let dealt = deal(&plan.join("public"), &["--weights", key.to_str().unwrap()], &material);
        assert!(dealt.status.success(), "{}", String::from_utf8_lossy(&dealt.stderr));
    }
    assert_eq!(local(&plan, Some(&material)), both(0), "the client has its file");
    fs::remove_file(&share).unwrap();
    assert_eq!(local(&plan, Some(&material)), both(TERM), "it gets it from the server");

    // What belongs to the other way of sharing, or to another party, is refused.
    let ordinary = self::plan(false);
    let refused = |plan: &Path, weights: &Path, code: &str| {
        let output = deal(plan, &["--weights", weights.to_str().unwrap()], &ordinary.join("none"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(code), "{text}");
    };
    refused(&ordinary.0, &key, "E1050");
    let mut of_server = fs::read_dir(material.join("server")).unwrap().map(|entry| entry.unwrap().path());
    let of_server = of_server.find(|path| path.is_file()).unwrap();
    refused(&plan.0, &of_server, "E1051");
}
