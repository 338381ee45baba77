//! Real processes over TLS: one that dies ends the run of the others with an error, and the survivors serve the next
//! request. A party with another plan or another certificate is refused.

use ombra_ir::module::Setting;
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::transport::Party;
use ombra_tests::built::{Built, Folder, build, build_in};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The smallest model with a cache.
const NAME: &str = "llama-gqa-dynamo-op18";
/// Limits of every party, in seconds; a test waits for much longer.
const LIMITS: &str = "\n[limits]\nconnect_s = 15\nreceive_s = 15\n";
const PATIENCE: Duration = Duration::from_secs(120);

/// A process whose output is read line by line.
struct Process {
    child: Child,
    errors: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> (Process, impl Read + use<>) {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let output = child.stdout.take().expect("output is piped");
        let errors = BufReader::new(child.stderr.take().expect("errors are piped"));
        let (send, receive) = channel();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(std::result::Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        (Process { child, errors: receive }, output)
    }

    /// The next line of standard error that names an error.
    fn error(&self) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE).expect("an error is told");
            if line.contains("E0") || line.contains("E1") {
                return line;
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tested-ombra-run"))
}

/// Three parties on this machine: a plan, a folder with the public part of it, keys and configurations.
struct Site {
    built: Built,
    configs: [PathBuf; 3],
    public: Folder,
    _keys: Folder,
}

impl Site {
    fn new(setting: Setting) -> Site {
        let built = build_in(setting, NAME, None, Vec::new()).expect("it compiles");
        let keys = Folder::new().expect("there is room");
        let configs = write_local_set(keys.path(), third(setting)).expect("keys are made");
        configs.iter().for_each(limit);
        let public = Folder::new().expect("there is room");
        copy(&built.folder.path().join("public"), &public.path().join("public"));
        Site { built, configs, public, _keys: keys }
    }

    fn serve(&self, party: &str) -> Process {
        let (plan, config) = match party {
            "server" => (self.built.folder.path(), &self.configs[1]),
            _ => (self.public.path(), &self.configs[2]),
        };
        let mut command = program();
        command.arg("serve").arg(plan).args(["--party", party, "--threads", "1"]).arg("--config").arg(config);
        let (process, output) = Process::start(&mut command);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("it tells that it is ready");
        assert!(line.starts_with("ready"), "{party} says {line:?}");
        process
    }

    /// A client that generates `count` tokens.
    fn client(&self, plan: &Path, config: &Path, count: &str) -> (Process, impl Read + use<>) {
        let mut command = program();
        command.arg("generate").arg(plan).arg("--config").arg(config);
        command.args(["--tokens", "3,1,4,1,5", "-n", count, "--threads", "1"]);
        Process::start(&mut command)
    }

    /// A client that must succeed; what it prints.
    fn tokens(&self) -> String {
        let (mut client, mut output) = self.client(self.public.path(), &self.configs[0], "4");
        let mut text = String::new();
        output.read_to_string(&mut text).expect("tokens are text");
        let status = client.child.wait().expect("it ends");
        let errors: Vec<String> = client.errors.iter().collect();
        assert!(status.success(), "a request after a failed one: {errors:?}");
        text
    }

    /// A client in the middle of a long run.
    fn busy_client(&self) -> Process {
        let (client, mut output) = self.client(self.public.path(), &self.configs[0], "2000");
        // It has its first token: all parties are at work.
        output.read_exact(&mut [0]).expect("a token comes");
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        client
    }
}

/// The settings whose parties are killed here.
const SETTINGS: [Setting; 2] = [Setting::ThreeParty, Setting::Dealer];

fn third(setting: Setting) -> Party {
    setting.third().expect("three parties")
}

fn limit(config: &PathBuf) {
    let text = std::fs::read_to_string(config).expect("it was written");
    std::fs::write(config, text + LIMITS).expect("it can be written");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("there is room");
    for entry in std::fs::read_dir(from).expect("the folder exists").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
    }
}

/// The client's exit status once it has ended by itself.
fn status(client: &mut Process) -> Option<i32> {
    client.child.wait().expect("it ends").code()
}

#[test]
fn a_dead_client_is_survived() {
    SETTINGS.into_iter().for_each(a_dead_client_is_survived_in);
}

fn a_dead_client_is_survived_in(setting: Setting) {
    let site = Site::new(setting);
    let (helper, server) = (site.serve(third(setting).name()), site.serve("server"));
    let before = site.tokens();
    site.busy_client().kill();
    // Whoever notices first tells the other, who may hear that before it notices itself.
    let errors = [server.error(), helper.error()];
    println!("client killed: {errors:?}");
    assert!(errors.iter().any(|error| error.contains("client")), "{errors:?}");
    assert_eq!(site.tokens(), before, "the next request");
}

#[test]
fn a_dead_helper_ends_the_run_and_can_come_back() {
    SETTINGS.into_iter().for_each(a_dead_third_party_ends_the_run_in);
}

fn a_dead_third_party_ends_the_run_in(setting: Setting) {
    let (site, name) = (Site::new(setting), third(setting).name());
    let (mut helper, server) = (site.serve(name), site.serve("server"));
    let before = site.tokens();
    let mut client = site.busy_client();
    helper.kill();
    let errors = [client.error(), server.error()];
    println!("{name} killed: {errors:?}");
    assert!(errors.iter().any(|error| error.contains(name)), "{errors:?}");
    assert_eq!(status(&mut client), Some(1));
    let _helper = site.serve(name);
    assert_eq!(site.tokens(), before, "the next request");
}

#[test]
fn a_dead_server_ends_the_run_and_can_come_back() {
    SETTINGS.into_iter().for_each(a_dead_server_ends_the_run_in);
}

fn a_dead_server_ends_the_run_in(setting: Setting) {
    let site = Site::new(setting);
    let (helper, mut server) = (site.serve(third(setting).name()), site.serve("server"));
    let before = site.tokens();
    let mut client = site.busy_client();
    server.kill();
    let errors = [client.error(), helper.error()];
    println!("server killed: {errors:?}");
    assert!(errors.iter().any(|error| error.contains("server")), "{errors:?}");
    assert_eq!(status(&mut client), Some(1));
    let _server = site.serve("server");
    assert_eq!(site.tokens(), before, "the next request");
}

#[test]
fn another_plan_and_another_certificate_are_refused() {
    let site = Site::new(Setting::ThreeParty);
    let (_helper, _server) = (site.serve("helper"), site.serve("server"));
    let before = site.tokens();

    let other = build("llama-torchscript-op17", None, Vec::new()).expect("it compiles");
    let (mut client, _) = site.client(other.folder.path(), &site.configs[0], "4");
    let error = client.error();
    println!("another plan: {error}");
    assert!(error.contains("plan"), "{error}");
    assert!(status(&mut client).is_some_and(|code| code == 1 || code == 2));

    // A client with a key of its own making, and the true peers.
    let forged = Folder::new().expect("there is room");
    write_local_set(forged.path(), Party::Helper).expect("keys are made");
    let folder = forged.path().join("client");
    std::fs::copy(&site.configs[0], folder.join("party.toml")).expect("it can be copied");
    let (mut client, _) = site.client(site.public.path(), &folder.join("party.toml"), "4");
    let error = client.error();
    println!("another certificate: {error}");
    assert!(error.contains("E0706"), "{error}");
    assert!(status(&mut client).is_some_and(|code| code == 1 || code == 2));

    assert_eq!(site.tokens(), before, "the next request");
}

#[test]
fn all_parties_run_as_processes_of_one_command() {
    let built = build("llama-trained/frozen", Some("llama-trained/base"), Vec::new()).expect("it compiles");
    let report = built.folder.path().join("report.json");
    for prompt in ["1,55,75,110,231", "1"] {
        let mut command = program();
        command.arg("local").arg(built.folder.path()).args([
            "--tokens",
            prompt,
            "-n",
            "8",
            "--threads",
            "1",
            "--verify",
        ]);
        let done = command.arg("--report").arg(&report).output().expect("it starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = std::fs::read_to_string(&report).expect("the report is written");
        let json: serde_json::Value = serde_json::from_str(&text).expect("the report is JSON");
        assert_eq!(json["phases"].as_array().map(Vec::len), Some(9), "set-up and eight steps");
        for phase in json["phases"].as_array().expect("there are phases") {
            for pair in
                [&phase["rounds"], &phase["bytes"]["client"], &phase["bytes"]["server"], &phase["bytes"]["helper"]]
            {
                assert_eq!(pair["measured"], pair["predicted"], "{phase}");
            }
        }
        println!("{} verify {}", json["tokens"], json["verify"]);
        if prompt.len() > 1 {
            // The first tokens of the bundled continuation of this prompt: margins are above 0.3.
            assert_eq!(json["tokens"], serde_json::json!([144, 101, 89, 68, 76, 178, 219, 142]));
        }
        assert!(json["verify"]["outputs"][0]["token_agreement"].as_f64().is_some_and(|part| part >= 0.75));
    }
}
