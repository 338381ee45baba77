//! Parties as processes of `ombra-run`, over loopback TCP and TLS.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ombra_ir::plain::Tensor;
use ombra_runtime::app::report::Report;
use ombra_runtime::app::{PlanFolder, Request, tensor_file};
use ombra_runtime::config::PartyConfig;
use ombra_runtime::keygen::write_local_set;
use ombra_runtime::transport::{Endpoint, Party, Purpose};

use super::plans::{self, Folder, VOCABULARY, WIDTH, continuation, head};

pub fn ombra_run() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ombra-run"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn report(path: &Path) -> Report {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn local_generates_verifies_and_reports() {
    let folder = plans::cached();
    let path = folder.join("report.json");
    let output = ombra_run()
        .arg("local")
        .arg(&folder.0)
        .args(["--tokens", "3,1,4", "-n", "3", "--verify", "--threads", "1", "--report"])
        .arg(&path)
        .output()
        .unwrap();
    let printed = succeeded(output);
    let expected = continuation(&[3, 1, 4], 3);
    let line = expected.iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(printed.lines().next(), Some(line.as_str()));

    let report = report(&path);
    assert_eq!(report.tokens, Some(expected));
    assert_eq!((report.setting.as_str(), report.backend.as_str(), report.threads), ("3pc", "cpu", 1));
    assert_eq!(report.plan_digest, PlanFolder::open(&folder.0).unwrap().digest);
    assert_eq!(report.network, "none");
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["setup", "prefill", "decode", "decode"]);
    for party in ["client", "server", "helper"] {
        assert!(report.peak_rss_bytes[party] > 1 << 20, "{party}");
        assert!(report.phases.iter().skip(1).all(|phase| phase.bytes[party].measured > 0), "{party}");
    }
    report.check_costs().unwrap();
    assert_eq!(report.verify.unwrap().outputs[0].token_agreement, Some(1.0));
    assert!(report.bounds.calibrated > 0 && report.bounds.proven > 0);
}

#[test]
fn local_infers_from_files_and_compares_with_test_data() {
    let folder = plans::linear(true);
    let x: Vec<f32> = (0..2 * WIDTH).map(|index| index as f32 / 8.0).collect();
    let y = |index: usize| -> f32 {
        (0..WIDTH).map(|k| 2.0 * x[index / VOCABULARY * WIDTH + k] * head(k, index % VOCABULARY)).sum()
    };
    let expected: Vec<f32> = (0..2 * VOCABULARY).map(y).collect();
    let input = folder.join("x.npy");
    fs::write(&input, tensor_file::to_npy(&Tensor::f32(&[2, WIDTH], x.clone()).unwrap())).unwrap();
    let out = folder.join("out");
    let output = ombra_run()
        .arg("local")
        .arg(folder.join("public"))
        .arg("--input")
        .arg(format!("x={}", input.display()))
        .arg("--output-dir")
        .arg(&out)
        .args(["--network", "10Gbps,0.1ms", "--threads", "1"])
        .output()
        .unwrap();
    assert_eq!(succeeded(output), "");
    let (_, found) = tensor_file::read(&out.join("y.npy")).unwrap();
    assert_eq!(found.shape(), [2, VOCABULARY]);
    let near = |found: &[f32]| found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3);
    assert!(near(found.as_f32().unwrap()));

    let set = folder.join("set");
    fs::create_dir(&set).unwrap();
    save_proto(&set.join("input_0.pb"), "x", &[2, WIDTH], &x);
    save_proto(&set.join("output_0.pb"), "y", &[2, VOCABULARY], &expected);
    let path = folder.join("report.json");
    let output = ombra_run()
        .arg("local")
        .arg(&folder.0)
        .arg("--test-data")
        .arg(&set)
        .arg("--report")
        .arg(&path)
        .args(["--threads", "1"])
        .output()
        .unwrap();
    assert!(succeeded(output).contains("test_data"));
    let compared = report(&path).test_data.unwrap().outputs;
    assert_eq!((compared.len(), compared[0].name.as_str()), (1, "y"));
    assert!(compared[0].max_abs_error.unwrap() < 1e-3);

    // Other results end with another code, after they are printed; so does a set of which no output is revealed.
    let compare = |more: &[&str]| {
        let mut command = ombra_run();
        command.arg("local").arg(&folder.0).arg("--test-data").arg(&set).args(["--threads", "1"]).args(more);
        let done = command.output().unwrap();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let mut wrong = expected.clone();
    wrong[3] += 0.5 + 1e-3;
    save_proto(&set.join("output_0.pb"), "y", &[2, VOCABULARY], &wrong);
    let (code, printed, error) = compare(&[]);
    assert!(code == Some(2) && error.contains("E1019") && error.contains("a difference of 0.50"), "{error}");
    assert!(printed.contains("max_abs_error"), "{printed}");
    assert_eq!(compare(&["--tolerance", "0.6"]).0, Some(0));
    assert_eq!(compare(&["--tolerance", "0.4"]).0, Some(2));
    save_proto(&set.join("output_0.pb"), "z", &[2, VOCABULARY], &expected);
    let (code, printed, error) = compare(&[]);
    assert!(code == Some(2) && error.contains("E1019") && error.contains("nothing was compared"), "{error}");
    assert!(!printed.contains("test_data") && !printed.contains("agreement"), "{printed}");
}

fn save_proto(path: &Path, name: &str, shape: &[usize], values: &[f32]) {
    use onnx_protobuf::Message;
    let mut proto = onnx_protobuf::TensorProto::new();
    (proto.name, proto.data_type) = (name.to_owned(), 1);
    proto.dims = shape.iter().map(|&size| size as i64).collect();
    proto.raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(path, proto.write_to_bytes().unwrap()).unwrap();
}

/// A tokenizer for words of one letter.
pub const TOKENIZER: &str = r#"{ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
    "model": { "type": "WordLevel", "unk_token": "a",
               "vocab": { "a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5 } } }"#;

#[test]
fn a_prompt_as_text_gives_text() {
    let folder = plans::cached();
    plans::add_file(&folder, "tokenizer.json", TOKENIZER.as_bytes());
    let path = folder.join("report.json");
    let output = ombra_run()
        .arg("local")
        .arg(&folder.0)
        .args(["--prompt", "d b e", "-n", "3", "--threads", "1", "--report"])
        .arg(&path)
        .output()
        .unwrap();
    let words: Vec<&str> =
        continuation(&[3, 1, 4], 3).iter().map(|&token| ["a", "b", "c", "d", "e", "f"][token as usize]).collect();
    let expected = words.join(" ");
    assert_eq!(succeeded(output).trim_end(), expected);
    assert_eq!(report(&path).text.as_deref(), Some(expected.as_str()));
}

/// The error of a client that runs `folder` locally with these arguments, and the exit status.
fn refused(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let output = ombra_run().arg("local").arg(&folder.0).args(arguments).args(["--threads", "1"]).output().unwrap();
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    (output.status.code(), text(&output.stderr))
}

/// One error of the client's own, without a panic's or an abort's output.
fn one_error(found: (Option<i32>, String), code: &str) {
    let (status, errors) = found;
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains(&format!("error[{code}]")), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("memory allocation"), "{errors}");
}

#[test]
fn a_tokenizer_counts_only_with_its_digest_in_the_plan() {
    let folder = plans::cached();
    fs::write(folder.join("public/tokenizer.json"), TOKENIZER).unwrap();
    one_error(refused(&folder, &["--prompt", "d b e"]), "E1009");
    plans::add_file(&folder, "tokenizer.json", TOKENIZER.as_bytes());
    // Two entries change places: the file is as long as before, and the answer would be another one.
    let swapped = TOKENIZER.replace("\"d\": 3, \"e\": 4", "\"d\": 4, \"e\": 3");
    fs::write(folder.join("public/tokenizer.json"), swapped).unwrap();
    one_error(refused(&folder, &["--prompt", "d b e"]), "E1002");
}

#[test]
fn a_malformed_tokenizer_is_one_error() {
    let length = r#""padding": { "strategy": { "Fixed": 562949953421312 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a" }"#;
    let truncation =
        r#""truncation": { "max_length": 2, "strategy": "LongestFirst", "stride": 7, "direction": "Right" }"#;
    let unigram = r#"{ "type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]] }"#;
    let word_level = r#"{ "type": "WordLevel", "unk_token": "a",
               "vocab": { "a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5 } }"#;
    let trie = r#"{ "type": "Precompiled", "precompiled_charsmap": "/////w==" }"#;
    assert!(TOKENIZER.contains(word_level));
    for hostile in [
        String::new(),
        "{".to_owned(),
        "[".repeat(1 << 20),
        TOKENIZER.replace("\"padding\": null", length),
        TOKENIZER.replace("\"truncation\": null", truncation),
        TOKENIZER.replace("\"normalizer\": null", &format!("\"normalizer\": {trie}")),
        TOKENIZER.replace(word_level, unigram),
    ] {
        let folder = plans::cached();
        plans::add_file(&folder, "tokenizer.json", hostile.as_bytes());
        let (status, errors) = refused(&folder, &["--prompt", "d b e", "-n", "1"]);
        assert!(errors.contains("E1009") || errors.contains("E0725"), "{hostile:.200}: {status:?} {errors}");
        let code = if errors.contains("E0725") { "E0725" } else { "E1009" };
        one_error((status, errors), code);
    }
}

/// Operator, inputs and output of nodes.
type Nodes<'a> = Vec<(&'a str, Vec<&'a str>, &'a str)>;

/// Models of a few hundred bytes that ask for more memory than there is, each in another way.
#[test]
fn a_model_that_asks_for_all_memory_is_one_error() {
    let huge = vec![1 << 25, 1 << 24];
    let doubling: Vec<(String, String)> = (0..49).map(|n| (format!("v{n}"), format!("v{}", n + 1))).collect();
    let mut tiled: Nodes = vec![("Identity", vec!["x"], "v0")];
    tiled.extend(doubling.iter().map(|(from, to)| ("Tile", vec![from.as_str(), "two"], to.as_str())));
    tiled.push(("Identity", vec!["v49"], "doubled"));
    let cases: [(&str, Nodes); 3] = [
        ("ConstantOfShape", vec![("ConstantOfShape", vec!["huge"], "doubled")]),
        ("Expand", vec![("Expand", vec!["x", "shape"], "doubled")]),
        ("Tile", tiled),
    ];
    for (what, nodes) in cases {
        let nodes: Vec<(&str, &[&str], &str)> =
            nodes.iter().map(|(op, args, out)| (*op, args.as_slice(), *out)).collect();
        let lists = [("huge", huge.clone()), ("shape", vec![1 << 47, 1, 4]), ("two", vec![2, 1])];
        let folder = plans::linear(true);
        plans::set_client_model(&folder, &plans::hostile_model(&nodes, &lists));
        let input = folder.join("x.npy");
        fs::write(&input, tensor_file::to_npy(&Tensor::f32(&[1, WIDTH], vec![0.5; WIDTH]).unwrap())).unwrap();
        let (status, errors) = refused(&folder, &["--input", &format!("x={}", input.display())]);
        // The library may find out for itself.
        assert!(["E0725", "E0723", "E0721"].iter().any(|code| errors.contains(code)), "{what}: {errors}");
        assert!(status == Some(2) && !errors.contains("memory allocation"), "{what}: {errors}");
    }
}

#[test]
fn a_serving_process_ends_with_its_standard_input() {
    let plan = plans::cached();
    let (_keys, [_, _, helper]) = configurations();
    let mut serving = Serving::start(&plan.0, Party::Helper, &helper);
    drop(serving.0.0.stdin.take());
    assert!(serving.0.0.wait().unwrap().success());
}

/// A serving process, ended with the test.
pub struct Serving(Running);

impl Serving {
    pub fn start(plan: &Path, party: Party, config: &Path) -> Serving {
        Serving::start_over(plan, party, config, "none")
    }

    fn start_over(plan: &Path, party: Party, config: &Path, network: &str) -> Serving {
        Serving::start_with(plan, party, config, &["--network".into(), network.into()])
    }

    /// A party with further options.
    pub fn start_with(plan: &Path, party: Party, config: &Path, options: &[std::ffi::OsString]) -> Serving {
        let mut command = ombra_run();
        command.arg("serve").arg(plan).args(["--party", party.name(), "--threads", "1", "--end-with-input"]);
        command.args(options).arg("--config").arg(config).stdin(Stdio::piped()).stderr(Stdio::null());
        Serving(Running::ready(&mut command))
    }
}

/// A process that is ended with the test.
pub struct Running(pub Child);

impl Running {
    /// Starts a party that serves, and waits until it does.
    pub fn ready(command: &mut Command) -> Running {
        let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line}");
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Configurations in a folder of their own.
pub fn configurations() -> (Folder, [PathBuf; 3]) {
    let folder = Folder::new();
    let paths = write_local_set(&folder.join("keys"), Party::Helper).unwrap();
    (folder, paths)
}

/// Bytes that the server sends to share its weights, in a run of the client that must give the right tokens.
fn client_run(plan: &Folder, config: &Path) -> u64 {
    let path = plan.join("client-report.json");
    let output = ombra_run()
        .arg("generate")
        .arg(plan.join("public"))
        .arg("--config")
        .arg(config)
        .args(["--tokens", "3,1,4", "-n", "2", "--threads", "1", "--report"])
        .arg(&path)
        .output()
        .unwrap();
    let tokens = continuation(&[3, 1, 4], 2);
    assert_eq!(succeeded(output), format!("{} {}\n", tokens[0], tokens[1]));
    report(&path).phases[0].bytes["server"].measured
}

/// The one error with which a server does not begin to serve.
pub fn refused_to_serve(plan: &Folder, config: &Path) -> String {
    let mut command = ombra_run();
    command.arg("serve").arg(&plan.0).args(["--party", "server", "--threads", "1", "--config"]).arg(config);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), errors.matches("error[").count()), (Some(2), 1), "{errors}");
    errors
}

/// A server that could serve nobody does not begin to.
#[test]
fn a_server_without_the_third_party_is_refused() {
    let plan = plans::cached();
    let (_keys, [_, server, _]) = configurations();
    let text = fs::read_to_string(&server).unwrap();
    let (before, after) = text.split_once("[peers.helper]").unwrap();
    let rest = after.find("\n[").map_or("", |at| &after[at..]);
    fs::write(&server, format!("{before}{rest}")).unwrap();
    let errors = refused_to_serve(&plan, &server);
    assert!(errors.contains("E0711") && errors.contains("peers.helper is missing"), "{errors}");
}

#[test]
fn serving_parties_outlive_clients_and_each_other() {
    let plan = plans::cached();
    let (_keys, [client, server, helper]) = configurations();
    let second = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    let all = 8 * 2 * (VOCABULARY * WIDTH) as u64;
    assert_eq!(client_run(&plan, &client), all);
    assert_eq!(client_run(&plan, &client), 0, "the helper holds its part");

    // A client that goes away in the middle of a session, and one that sends something else than a request.
    let folder = PlanFolder::open(&plan.0).unwrap();
    let endpoint = Endpoint::new(&PartyConfig::read(&client).unwrap(), &folder.digest, None).unwrap();
    for says_something in [false, true] {
        let session = endpoint.open(Purpose::Run).unwrap();
        let key = ombra_runtime::transport::Frame::new(1, u32::MAX, 0, vec![0; 16]);
        session.link(Party::Helper).unwrap().send(key).unwrap();
        for peer in [Party::Server, Party::Helper] {
            let link = session.link(peer).unwrap();
            if says_something {
                link.send_control(&"hello").unwrap();
            } else {
                link.send_control(&Request::text(4)).unwrap();
            }
        }
        drop(session);
        assert_eq!(client_run(&plan, &client), 0);
    }

    drop(second);
    let _third = Serving::start(&plan.0, Party::Helper, &helper);
    assert_eq!(client_run(&plan, &client), all, "a new helper holds nothing");
    assert_eq!(client_run(&plan, &client), 0);
}

/// Whatever a client does to the server and not to the helper, the next one is served, long before the limits of silence.
#[test]
fn clients_that_reach_the_server_alone_hold_nobody() {
    let plan = plans::cached();
    let (_keys, configs) = configurations();
    for config in &configs {
        fs::write(config, fs::read_to_string(config).unwrap() + "\n[limits]\nreceive_s = 3600\n").unwrap();
    }
    let [client, server, helper] = configs;
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    let digest = PlanFolder::open(&plan.0).unwrap().digest;
    let (sender, served) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut alone = PartyConfig::read(&client).unwrap();
        alone.peers.remove(&Party::Helper);
        let alone = Endpoint::new(&alone, &digest, None).unwrap();
        for abort in [false, true] {
            let sessions: Vec<_> = (0..5).map(|_| alone.open(Purpose::Run).unwrap()).collect();
            for session in sessions.iter().filter(|_| abort) {
                session.abort(&ombra_ir::Diagnostic::input("E0321", "a reason"));
            }
            drop(sessions);
            client_run(&plan, &client);
        }
        for wait in [0, 10, 40] {
            let mut killed = ombra_run();
            killed.arg("generate").arg(&plan.0).arg("--config").arg(&client).args(["--tokens", "1", "-n", "9"]);
            let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(wait));
            killed.kill().unwrap();
            killed.wait().unwrap();
            client_run(&plan, &client);
        }
        sender.send(())
    });
    served.recv_timeout(std::time::Duration::from_secs(100)).expect("every client is served");
}

#[test]
fn weights_that_are_cut_or_changed_while_they_are_served_are_one_error() {
    let plan = plans::cached();
    let (_keys, [client, server, helper]) = configurations();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    client_run(&plan, &client);
    let weights = plan.join("server/weights.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    for bad in [&good[..good.len() / 2], &[], &changed] {
        fs::write(&weights, bad).unwrap();
        for _ in 0..2 {
            let mut command = ombra_run();
            command.arg("generate").arg(&plan.0).arg("--config").arg(&client).args(["--tokens", "3,1,4", "-n", "2"]);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains("server aborted the run with E1020"), "{}", text(&output.stderr));
            assert!(!text(&output.stderr).contains("weights.safetensors"), "{}", text(&output.stderr));
            assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        }
        // The content that was opened is as good as ever.
        fs::write(&weights, &good).unwrap();
        client_run(&plan, &client);
    }
}

#[test]
fn a_step_with_more_traffic_than_a_client_accepts_is_refused() {
    let plan = plans::cached();
    let (_keys, [client, server, helper]) = configurations();
    let limited = fs::read_to_string(&client).unwrap() + "\n[limits]\nmax_traffic_bytes = 1024\n";
    fs::write(&client, limited).unwrap();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    let mut command = ombra_run();
    command.arg("generate").arg(&plan.0).arg("--config").arg(&client).args(["--tokens", "3,1,4", "-n", "2"]);
    one_error(failed(command.output().unwrap()), "E1021");
}

/// Exit status and standard error of a program that prints nothing else.
fn failed(output: Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    (output.status.code(), text(&output.stderr))
}

#[test]
fn a_prompt_comes_from_a_file_or_from_standard_input() {
    let folder = plans::cached();
    plans::add_file(&folder, "tokenizer.json", TOKENIZER.as_bytes());
    let expected = {
        let mut command = ombra_run();
        command.arg("local").arg(&folder.0).args(["--prompt", "d b e", "-n", "3", "--threads", "1"]);
        succeeded(command.output().unwrap())
    };
    let file = folder.join("prompt.txt");
    for end in ["", "\n", "\r\n"] {
        fs::write(&file, format!("d b e{end}")).unwrap();
        for from in [file.to_str().unwrap(), "-"] {
            let mut command = ombra_run();
            command.arg("local").arg(&folder.0).args(["--prompt-file", from, "-n", "3", "--threads", "1"]);
            let output = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
            assert_eq!(succeeded(output), expected, "{from}");
        }
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    one_error(refused(&folder, &["--prompt-file", file.to_str().unwrap()]), "E1006");
    one_error(refused(&folder, &["--prompt-file", "-", "--tokens", "1"]), "E1006");
}

#[test]
fn names_and_answers_reach_no_terminal_as_they_are() {
    const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}";
    let folder = plans::linear(false);
    plans::change(&folder, |plan| plan.module.outputs[0].name = format!("y{HOSTILE}"));
    let input = folder.join("x.npy");
    fs::write(&input, tensor_file::to_npy(&Tensor::f32(&[1, WIDTH], vec![0.5; WIDTH]).unwrap())).unwrap();
    let mut command = ombra_run();
    command.arg("local").arg(&folder.0).arg("--input").arg(format!("x={}", input.display())).args(["--threads", "1"]);
    let printed = succeeded(command.output().unwrap());
    let clean = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}');
    assert!(clean(&printed), "{printed:?}");
    let line: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(line["name"], format!("y{HOSTILE}"));
    // In an error, and in the text that a model gives.
    let (_, errors) = refused(&folder, &["--input", &format!("z{HOSTILE}={}", input.display())]);
    assert!(clean(&errors) && errors.contains("owned"), "{errors:?}");
    let folder = plans::cached();
    let hostile = ["b", "c", "d", "e", "f"].iter().fold(TOKENIZER.to_owned(), |text, word| {
        text.replace(&format!("\"{word}\":"), &format!("\"\\u001b[{word}\":"))
    });
    let hostile = hostile.replace("\"a\"", "\"\\u001b[2J\"");
    plans::add_file(&folder, "tokenizer.json", hostile.as_bytes());
    let mut command = ombra_run();
    command.arg("local").arg(&folder.0).args(["--prompt", "d", "-n", "2", "--threads", "1"]);
    let output = command.output().unwrap();
    let answer = succeeded(output);
    assert!(clean(&answer) && answer.contains("\\u001b["), "{answer:?}");
}

#[test]
fn a_request_for_too_much_memory_is_refused_and_the_next_is_served() {
    let plan = plans::cached();
    let (_keys, [client, server, helper]) = configurations();
    let limited = fs::read_to_string(&server).unwrap() + "\n[limits]\nmax_memory_bytes = 3000\n";
    fs::write(&server, limited).unwrap();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    client_run(&plan, &client);
    let output = ombra_run()
        .arg("generate")
        .arg(&plan.0)
        .arg("--config")
        .arg(&client)
        .args(["--tokens", "1,1,1,1,1,1,1,1,1,1,1,1", "-n", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("E0405"), "{}", text(&output.stderr));
    client_run(&plan, &client);
}

/// Weights that take twice as long as a peer may be silent.
#[test]
fn nobody_gives_up_while_the_weights_are_on_their_way() {
    const ROWS: usize = 20_000;
    let plan = plans::tall(ROWS);
    let (_keys, configs) = configurations();
    for config in &configs {
        let limited = fs::read_to_string(config).unwrap() + "\n[limits]\nreceive_s = 1.5\n";
        fs::write(config, limited).unwrap();
    }
    let [client, server, helper] = configs;
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start_over(&plan.0, Party::Server, &server, "2.5Mbps,0ms");
    let input = plan.join("x.npy");
    fs::write(&input, tensor_file::to_npy(&Tensor::f32(&[1, ROWS], vec![0.25; ROWS]).unwrap())).unwrap();
    let output = ombra_run()
        .arg("infer")
        .arg(&plan.0)
        .arg("--config")
        .arg(&client)
        .arg("--input")
        .arg(format!("x={}", input.display()))
        .args(["--threads", "1"])
        .output()
        .unwrap();
    assert!(succeeded(output).contains("\"data\":[2500.0"));
}

#[test]
fn another_plan_is_refused_by_the_serving_parties() {
    let (plan, other) = (plans::cached(), plans::client_cached());
    let (_keys, [client, server, helper]) = configurations();
    let _helper = Serving::start(&plan.0, Party::Helper, &helper);
    let _server = Serving::start(&plan.0, Party::Server, &server);
    let output = ombra_run()
        .arg("generate")
        .arg(&other.0)
        .arg("--config")
        .arg(&client)
        .args(["--tokens", "1", "-n", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("plan digest differs"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    client_run(&plan, &client);
}

#[test]
fn wrong_commands_exit_with_2() {
    let plan = plans::cached();
    let directory = plan.0.display().to_string();
    for (arguments, expected) in [
        (&["local", "DIR"][..], "nothing to run on"),
        (&["measure", "--backend", "gpu"], "the processor alone"),
        (&["local", "DIR", "--tokens", "1", "--threads", "0"], "threads"),
        (&["local", "DIR", "--tokens", "1", "--network", "fast"], "network"),
        (&["local", "DIR", "--prompt", "hello"], "tokenizer"),
        (&["local", "DIR", "--prompt", "hello", "--tokens", "1"], "more than one"),
        (&["local", "DIR", "--tokens", "1,x"], "invalid value"),
        (&["local", "DIR/nothing", "--tokens", "1"], "cannot be read"),
        (&["local", "DIR", "--input", "x"], "NAME=FILE"),
        (&["local", "DIR", "--test-data", "DIR/nothing"], "no test data"),
        (&["serve", "DIR", "--party", "provider", "--config", "x"], "unknown party"),
        (&["keygen", "--party", "provider", "-o", "DIR/keys"], "unknown party"),
        (&["measure", "--config", "DIR/nothing"], "cannot be read"),
        (&["run"], "unrecognized subcommand"),
    ] {
        let arguments: Vec<String> = arguments.iter().map(|text| text.replace("DIR", &directory)).collect();
        let output = ombra_run().args(&arguments).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn keygen_prints_the_fingerprint_of_what_it_writes() {
    let folder = Folder::new();
    let keys = folder.join("keys");
    let printed = succeeded(ombra_run().args(["keygen", "--party", "server", "-o"]).arg(&keys).output().unwrap());
    assert_eq!(printed.trim().len(), 64);
    assert!(keys.join("key.pem").is_file() && keys.join("cert.pem").is_file());
    let again = ombra_run().args(["keygen", "--party", "server", "-o"]).arg(&keys).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
}
