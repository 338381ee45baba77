//! Files that the compiler is given and those that it writes: nothing is waited for, and the plan has every digest.

mod common;

use common::{Folder, corpus};
use ombra_compiler::output;
use ombra_compiler::pipeline::{Options, compile};
use ombra_ir::folder;
use ombra_ir::plan;
use sha2::{Digest, Sha256};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// What the program says of arguments, which must come soon.
fn errors(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ombra"));
    let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("it starts");
    let (send, receive) = channel();
    let id = child.id();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(output) = receive.recv_timeout(Duration::from_secs(60)) else {
        let _ = Command::new("kill").arg("-9").arg(id.to_string()).status();
        panic!("{args:?} did not end");
    };
    let output = output.expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[cfg(unix)]
#[test]
fn pipes_and_endless_devices_are_one_error() {
    let folder = Folder::new("files-pipe");
    let pipe = folder.0.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there").success());
    let out = folder.0.join("out");
    let out = out.to_str().expect("the name is text");
    for file in [pipe.to_str().expect("the name is text"), "/dev/zero", "/dev"] {
        for args in [
            &["check", file][..],
            &["inspect", file],
            &["compile", file, "-o", out],
            &["explain", file],
            &["inspect", file, "--machine", file],
        ] {
            let (status, errors) = errors(args);
            assert_eq!(status, Some(2), "{args:?}: {errors}");
            assert_eq!(errors.matches("error[").count(), 1, "{args:?}: {errors}");
        }
    }
}

#[test]
fn the_plan_has_the_digest_of_every_public_file() {
    let (tuned, base) = (corpus("llama-trained/frozen"), corpus("llama-trained/base"));
    let mut compiled = compile(&tuned, Some(&base), &Options::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let folder = Folder::new("files-digests");
    let beside: Vec<_> = std::iter::once(folder::TOKENIZER)
        .chain(folder::CONFIGURATION)
        .map(|name| {
            let path = folder.0.join(name);
            std::fs::write(&path, format!("{{ \"{name}\": 1 }}")).unwrap();
            (name, path)
        })
        .collect();
    let out = folder.0.join("out");
    output::write(&mut compiled, &tuned, &beside, &out).unwrap();
    let plan = plan::decode(&std::fs::read(out.join("public").join(folder::PLAN)).unwrap()).unwrap();
    let mut digests: Vec<_> = plan.files.into_iter().chain(plan.client_model).chain([plan.public_weights]).collect();
    digests.sort_by(|a, b| a.file.cmp(&b.file));
    let mut files: Vec<_> = std::fs::read_dir(out.join("public")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != folder::PLAN));
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    let found: Vec<(String, String)> = files
        .iter()
        .map(|path| {
            let digest = Sha256::digest(std::fs::read(path).unwrap());
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, digest.iter().map(|byte| format!("{byte:02x}")).collect())
        })
        .collect();
    let expected: Vec<(String, String)> = digests.into_iter().map(|digest| (digest.file, digest.sha256)).collect();
    assert_eq!(found, expected);
}
