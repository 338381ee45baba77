//! Rules of the repository that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const MAX_LINES: usize = 700;
/// Source files that may be longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];
/// Longest map of the repository, in lines.
const MAX_MAP_LINES: usize = 150;
/// The crates, and which of the others each may use.
const CRATES: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("gpu", &["ombra-kernels"]),
    ("lattice", &["ombra-kernels"]),
    ("ir-spec", &["ombra-kernels", "ombra-lattice"]),
    ("compiler", &["ombra-ir", "ombra-kernels"]),
    ("runtime", &["ombra-gpu", "ombra-ir", "ombra-kernels", "ombra-lattice"]),
    ("examples", &["ombra-ir", "ombra-compiler", "ombra-runtime"]),
    ("tests", &["ombra-ir", "ombra-compiler", "ombra-runtime"]),
    ("benchmarks", &["ombra-ir", "ombra-lattice", "ombra-compiler", "ombra-runtime", "ombra-examples", "ombra-tests"]),
];
/// Where `unsafe` may stand, each with its reason.
const UNSAFE: &[(&str, &str)] = &[
    ("compiler/src/onnx/external.rs", "maps files of tensors into memory"),
    ("kernels/src/aes.rs", "AES instructions"),
    ("kernels/src/entries.rs", "vector instructions"),
    ("kernels/src/gemm_kernels.rs", "vector instructions"),
    ("kernels/src/isa.rs", "calls kernels after asking for their instructions"),
    ("lattice/src/lanes/avx2.rs", "vector instructions"),
    ("lattice/src/lanes/avx512.rs", "vector instructions"),
    ("lattice/src/lanes/mod.rs", "calls kernels after asking for their instructions"),
    ("runtime/src/memory.rs", "tells the allocator which freed blocks to keep"),
];
/// Hosts that files may name: standards, papers, the public index of crates, this machine, and no host at all.
const HOSTS: &[&str] = &[
    "127.0.0.1",
    "evil.example",
    "www.apache.org",
    "github.com",
    "arxiv.org",
    "eprint.iacr.org",
    "onnx.ai",
    "docs.rs",
    // The name of SVG.
    "www.w3.org",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All files of the crates, of `.ci` and of the root, with their paths from the root.
fn files() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root()).expect("the root can be listed").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() {
            // In a linked worktree `.git` is a file with the path of the repository.
            found.extend((name != ".git").then_some(name));
        } else if name == ".ci" || CRATES.iter().any(|(folder, _)| *folder == name) {
            walk(&entry.path(), &name, &mut found);
        }
    }
    found.sort();
    found
}

fn walk(folder: &Path, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository can be listed").flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let name = format!("{name}/{file}");
        if file == "__pycache__" || file.starts_with('.') && file.ends_with("_cache") {
            // What Python's tools keep for themselves, with the paths of the machine.
            continue;
        }
        if entry.path().is_dir() {
            walk(&entry.path(), &name, found);
        } else {
            found.push(name);
        }
    }
}

fn files_ending(end: &str) -> Vec<String> {
    files().into_iter().filter(|f| f.ends_with(end)).collect()
}

/// Everything wrong at once.
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Every line of `files` that has one of `words`.
fn lines_with(files: &[String], words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (n, line) in text(file).lines().enumerate() {
            found.extend(words.iter().filter(|w| line.contains(*w)).map(|w| format!("{file}:{}: `{w}`", n + 1)));
        }
    }
    found
}

/// Entries `key = …` or `key.… = …` of the tables of a manifest whose name `wanted` accepts, with their line numbers.
fn entries(manifest: &str, wanted: impl Fn(&str) -> bool) -> Vec<(usize, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for (n, line) in manifest.lines().enumerate() {
        if let Some(table) = line.strip_prefix('[') {
            inside = wanted(table.trim_end_matches(']'));
        } else if inside && line.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.push((n, line.split(['.', ' ', '=']).next().unwrap_or_default().to_string()));
        }
    }
    found
}

#[test]
fn no_source_file_is_too_long() {
    let mut wrong = Vec::new();
    for file in files_ending(".rs") {
        let lines = text(&file).lines().count();
        let listed = LONGER.iter().any(|(name, _)| *name == file);
        if lines > MAX_LINES && !listed {
            wrong.push(format!("{file}: {lines} lines, expected at most {MAX_LINES}"));
        } else if lines <= MAX_LINES && listed {
            wrong.push(format!("{file}: {lines} lines, remove it from the list of longer files"));
        }
    }
    let lines = text("ARCHITECTURE.md").lines().count();
    if lines > MAX_MAP_LINES {
        wrong.push(format!("ARCHITECTURE.md: {lines} lines, expected at most {MAX_MAP_LINES}"));
    }
    none(wrong);
}

#[test]
fn nothing_is_left_for_later() {
    // In halves: this file is checked too.
    let words = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("to", "do!("),
        ("unimple", "mented!("),
        ("#[ign", "ore"),
        ("#[should", "_panic"),
        ("(dead", "_code"),
    ];
    none(lines_with(&files_ending(".rs"), &words.map(|(a, b)| format!("{a}{b}"))));
}

#[test]
fn no_file_names_a_machine() {
    let paths = [("/ho", "me/"), ("/ro", "ot/"), ("/Use", "rs/"), ("/tm", "p/"), ("/wo", "rk/"), ("C:", "\\Users")];
    let paths = paths.map(|(a, b)| format!("{a}{b}"));
    let mut wrong = Vec::new();
    for file in files() {
        let bytes = fs::read(root().join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        for path in &paths {
            if bytes.windows(path.len()).any(|w| w == path.as_bytes()) {
                wrong.push(format!("{file}: contains `{path}`"));
            }
        }
        let Ok(text) = String::from_utf8(bytes) else { continue };
        for url in text.split("://").skip(1) {
            let host = url.split(|c: char| !c.is_ascii_alphanumeric() && !".-".contains(c)).next().unwrap_or_default();
            if host.contains('.') && !HOSTS.contains(&host) {
                wrong.push(format!("{file}: names the host `{host}`"));
            }
        }
    }
    none(wrong);
}

#[test]
fn every_dependency_comes_from_the_public_index() {
    let lock = text("Cargo.lock");
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert_eq!(sources, BTreeSet::from(["\"registry+https://github.com/rust-lang/crates.io-index\""]));
}

#[test]
fn every_dependency_has_a_reason_and_a_use() {
    let manifest = text("Cargo.toml");
    let lines: Vec<&str> = manifest.lines().collect();
    let mut used = BTreeSet::new();
    for (folder, _) in CRATES {
        let own = text(&format!("{folder}/Cargo.toml"));
        used.extend(entries(&own, |table| table.ends_with("dependencies")).into_iter().map(|(_, name)| name));
    }
    let mut wrong = Vec::new();
    for (n, name) in entries(&manifest, |table| table == "workspace.dependencies") {
        // Neighbours may share a reason: the comment stands above the first of them.
        let above = lines[..n].iter().rev().find(|line| line.is_empty() || line.starts_with(['#', '[']));
        if !lines[n].contains("path = ") && !above.is_some_and(|line| line.starts_with('#')) {
            wrong.push(format!("Cargo.toml:{}: `{name}` has no comment above it that says why it is here", n + 1));
        }
        if !used.contains(&name) && name != "ombra-tests" {
            wrong.push(format!("Cargo.toml:{}: no crate uses `{name}`", n + 1));
        }
    }
    none(wrong);
}

#[test]
fn dependencies_go_one_way() {
    let members = text("Cargo.toml").lines().find(|line| line.starts_with("members")).unwrap_or_default().to_string();
    let mut wrong = Vec::new();
    for (folder, allowed) in CRATES {
        assert!(members.contains(&format!("\"{folder}\"")), "{folder} is no member of the workspace");
        let manifest = text(&format!("{folder}/Cargo.toml"));
        for (n, name) in entries(&manifest, |table| table.ends_with("dependencies")) {
            if name.starts_with("ombra-") && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{folder}/Cargo.toml:{}: {folder} must not use {name}", n + 1));
            }
        }
    }
    assert_eq!(members.matches('"').count(), 2 * CRATES.len(), "every member is listed in this test: {members}");
    none(wrong);
}

#[test]
fn the_compiler_has_no_sockets_clocks_threads_of_its_own_or_randomness() {
    let words = ["std::net", "std::thread", "std::time", "getrandom", "Instant", "SystemTime"].map(String::from);
    let sources = files_ending(".rs");
    let own = |f: &&String| f.starts_with("compiler/src/") || f.starts_with("ir-spec/src/");
    none(lines_with(&sources.iter().filter(own).cloned().collect::<Vec<_>>(), &words));
}

#[test]
fn kernels_see_no_sockets_files_clocks_or_threads() {
    let words = ["std::net", "std::fs", "std::io", "std::thread", "std::time", "Instant"].map(String::from);
    let sources = files_ending(".rs");
    let own = |f: &&String| f.starts_with("runtime/src/settings/") || f.starts_with("runtime/src/backend/");
    none(lines_with(&sources.iter().filter(own).cloned().collect::<Vec<_>>(), &words));
}

#[test]
fn unsafe_code_stands_in_listed_files() {
    let word = ["uns", "afe "].concat();
    let using = |file: &String| text(file).lines().any(|l| l.contains(&word) && !l.trim_start().starts_with("//"));
    let found: BTreeSet<String> = files_ending(".rs").into_iter().filter(using).collect();
    let listed: BTreeSet<String> = UNSAFE.iter().map(|(file, _)| file.to_string()).collect();
    assert_eq!(found, listed);
}

#[test]
fn every_public_module_begins_with_its_doc() {
    let undocumented = |f: &String| !text(f).trim_start().starts_with("//!");
    let own = |f: &String| f.contains("/src/") || f.contains("/tests/") || f.contains("/benches/");
    none(files_ending(".rs").into_iter().filter(|f| own(f) && undocumented(f)).collect());
}

/// Options and subcommands of a binary are looked up in its source.
fn binaries() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("ombra", files_ending(".rs").iter().filter(|f| f.starts_with("compiler/src/cli/")).map(|f| text(f)).collect()),
        ("ombra-run", text("runtime/src/cli.rs")),
        ("quickstart", text("examples/src/bin/quickstart.rs")),
        ("generate-model", text("examples/src/bin/generate-model.rs")),
    ])
}

/// Commands in the `sh` blocks of a Markdown file: continued lines joined, comments and results dropped.
fn commands(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim() == "```sh";
        } else if inside {
            let line = line.split(" #").next().unwrap_or_default().trim();
            match line.strip_suffix('\\') {
                Some(begin) => open.push_str(begin),
                None => found.push(std::mem::take(&mut open) + line),
            }
        }
    }
    found
}

/// What is wrong with a command, if anything.
fn wrong_in(command: &str, binaries: &BTreeMap<&str, String>) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().skip_while(|w| w.contains('=')).collect();
    let Some(&program) = words.first() else { return Vec::new() };
    let after = |flag: &str| words.iter().zip(words.iter().skip(1)).find(|(w, _)| **w == flag).map(|(_, &next)| next);
    let mut wrong = Vec::new();
    if program == "cargo" {
        let exists = |what: &str, name: &str| {
            CRATES.iter().any(|(folder, _)| {
                let base = root().join(folder).join(what);
                base.join(format!("{name}.rs")).is_file() || base.join(name).join("main.rs").is_file()
            })
        };
        wrong.extend(after("--bin").filter(|name| !exists("src/bin", name)).map(|n| format!("no binary `{n}`")));
        wrong.extend(after("--test").filter(|name| !exists("tests", name)).map(|n| format!("no test `{n}`")));
        wrong.extend(after("--bench").filter(|name| !exists("benches", name)).map(|n| format!("no benchmark `{n}`")));
        let package = |name: &&str| {
            CRATES.iter().any(|(f, _)| text(&format!("{f}/Cargo.toml")).contains(&format!("name = \"{name}\"")))
        };
        wrong.extend(after("-p").filter(|name| !package(name)).map(|n| format!("no package `{n}`")));
        wrong.extend(
            after("--path")
                .filter(|folder| !root().join(folder).join("Cargo.toml").is_file())
                .map(|n| format!("no crate in `{n}`")),
        );
    } else if let Some(source) = binaries.get(program) {
        if let Some(sub) = words.get(1).filter(|w| !w.starts_with('-')) {
            let variant: String = sub.split('-').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
            let has = |end: &str| source.contains(&format!("    {variant}{end}"));
            if !has(" {") && !has("(") && !has(",") {
                wrong.push(format!("{program} has no command `{sub}`"));
            }
        }
        for option in words.iter().filter_map(|w| w.strip_prefix("--")) {
            let name = option.split('=').next().unwrap_or_default();
            let field = name.replace('-', "_");
            if !source.contains(&format!(" {field}: ")) && !source.contains(&format!("long = \"{name}\"")) {
                wrong.push(format!("{program} has no option `--{name}`"));
            }
        }
    } else if program.starts_with('.') {
        wrong.extend((!root().join(program).is_file()).then(|| format!("no file `{program}`")));
    }
    wrong
}

#[test]
fn commands_in_documents_exist() {
    let binaries = binaries();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files_ending(".md") {
        for command in commands(&text(&file)) {
            seen += 1;
            wrong.extend(wrong_in(&command, &binaries).into_iter().map(|w| format!("{file}: `{command}`: {w}")));
        }
    }
    assert!(seen >= 10, "only {seen} commands were found in documents");
    none(wrong);
    assert_eq!(wrong_in("ombra compiles model.onnx", &binaries).len(), 1);
    assert_eq!(wrong_in("ombra compile model.onnx --bass base.onnx", &binaries).len(), 1);
    assert_eq!(wrong_in("cargo run --bin quickstop", &binaries).len(), 1);
}

#[test]
fn paths_in_documents_exist() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        // Every second piece between backticks is code; blocks have backticks of their own around them.
        for code in text(file).replace("```", "").split('`').skip(1).step_by(2) {
            let first = code.split('/').next().unwrap_or_default();
            let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && code.contains('/') && (first == ".ci" || CRATES.iter().any(|(folder, _)| *folder == first)) {
                seen += 1;
                if !root().join(code).exists() {
                    wrong.push(format!("{file}: `{code}` does not exist"));
                }
            }
        }
    }
    assert!(seen >= 20, "only {seen} paths were found in documents");
    none(wrong);
}

#[test]
fn scripts_of_the_checks_can_be_run() {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(root().join(".ci/run")).expect(".ci/run is there").permissions().mode();
        assert_eq!(mode & 0o111, 0o111);
    }
    let script = text(".ci/run");
    for command in ["set -euo pipefail", "fmt --all --check", "-D warnings", "--locked --workspace", "cargo test"] {
        assert!(script.contains(command), ".ci/run lacks `{command}`");
    }
    assert!(!script.contains("|| true"), ".ci/run must not ignore a failure");
}
