//! The same model compiled again gives the same files, in this process and in another.

use ombra_compiler::pipeline::{Options, compile, compile_knowing};
use ombra_tests::built::{Folder, build, logits};
use ombra_tests::corpus;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The content of every file below a folder, by relative path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for part in ["public", "server"] {
        for entry in std::fs::read_dir(folder.join(part)).expect("both folders are written") {
            let path = entry.expect("it can be listed").path();
            let name = path.file_name().expect("a file").to_string_lossy();
            found.insert(format!("{part}/{name}"), std::fs::read(&path).expect("it can be read"));
        }
    }
    found
}

/// Compiles in a process of its own, which hashes with seeds of its own, with so many threads.
fn compile_elsewhere(name: &str, base: Option<&str>, threads: &str, output: &Path) {
    let model = |name: &str| corpus::folder(name).join("model.onnx");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tested-ombra"));
    command.env("RAYON_NUM_THREADS", threads).arg("compile").arg(model(name)).arg("-o").arg(output);
    if let Some(base) = base {
        command.arg("--base").arg(model(base));
    }
    let done = command.output().expect("the compiler starts");
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn compiling_again_gives_the_same_files() {
    for (name, base) in corpus::selected() {
        let first = build(name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let first = files(first.folder.path());
        let second = build(name, base, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let elsewhere = Folder::new().expect("there is room");
        compile_elsewhere(name, base, "1", elsewhere.path());
        let threads = Folder::new().expect("there is room");
        compile_elsewhere(name, base, "5", threads.path());
        let others = [
            ("again", files(second.folder.path())),
            ("in another process", files(elsewhere.path())),
            ("with more threads", files(threads.path())),
        ];
        for (how, other) in others {
            assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{name} {how}");
            for (file, bytes) in &first {
                assert!(bytes == &other[file], "{name}: {file} is another when compiled {how}");
            }
        }
        assert!(first.len() >= 3, "{name}: plan and two weight files");
    }
}

/// What was found of the weights for one program serves another of the same model, with the same plan to the byte.
#[test]
fn what_is_known_of_weights_changes_no_plan() {
    for (name, base) in [("llama-trained/frozen", Some("llama-trained/base")), ("gpt2-pair/base", None)] {
        let model = corpus::model(name).expect("the model is bundled");
        let base = base.map(|base| corpus::model(base).expect("the base is bundled"));
        let first = compile(&model, base.as_ref(), &Options::default()).unwrap_or_else(|e| panic!("{name}: {}", e[0]));
        let options = Options { reveal: logits(), ..Options::default() };
        let fresh = compile(&model, base.as_ref(), &options).unwrap_or_else(|e| panic!("{name}: {}", e[0]));
        let knowing = compile_knowing(&model, base.as_ref(), &first.known, &options);
        let knowing = knowing.unwrap_or_else(|e| panic!("{name}: {}", e[0]));
        let bytes = |compiled: &ombra_compiler::pipeline::Compiled| {
            ombra_ir::plan::encode(&compiled.plan).expect("a plan can be written")
        };
        assert!(bytes(&fresh) == bytes(&knowing), "{name}");
        assert!(bytes(&fresh) != bytes(&first), "{name}: the two programs are one");
    }
}
