//! What documents promise: commands that are marked run, links lead somewhere, the first page is short.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ombra_tests::built::Folder;

/// What stands in the line before a block of commands that this test runs.
const MARK: &str = "<!-- this runs -->";
/// The pages with such blocks, in the order in which somebody reads them.
const PAGES: [&str; 4] = ["README.md", "docs/compile.md", "docs/generate.md", "docs/costs.md"];
/// Most lines of the first page.
const FIRST_PAGE: usize = 130;
/// A template as chat models have it.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Marked blocks of a page.
fn marked(text: &str) -> Vec<String> {
    let begin = format!("{MARK}\n\n```sh\n");
    text.split(&begin).skip(1).map(|block| block.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn marked_commands_run() {
    let folder = Folder::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let models = root().join("tests/data/models/llama-trained");
    for (from, to) in [("frozen", "my-model"), ("base", "base-model")] {
        fs::create_dir_all(path(to)).expect("a folder");
        fs::copy(models.join(from).join("model.onnx"), path(to).join("model.onnx")).expect("the model is bundled");
        fs::copy(models.join("tokenizer.json"), path(to).join("tokenizer.json")).expect("the tokenizer is bundled");
    }
    fs::write(path("my-model/chat_template.jinja"), TEMPLATE).expect("a template");
    for (from, to) in [("my-model/model.onnx", "model.onnx"), ("base-model/model.onnx", "base.onnx")] {
        fs::copy(path(from), path(to)).expect("the model is there");
    }
    fs::copy(path("my-model/tokenizer.json"), path("tokenizer.json")).expect("the tokenizer is there");
    fs::create_dir_all(path("bin")).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_tested-ombra"), path("bin/ombra")).expect("a link");
    symlink(env!("CARGO_BIN_EXE_tested-ombra-run"), path("bin/ombra-run")).expect("a link");
    let programs = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut seen = 0;
    for page in PAGES {
        for block in marked(&fs::read_to_string(root().join(page)).expect("the page is there")) {
            seen += 1;
            let mut command = Command::new("sh");
            command.args(["-e", "-c", &block]).current_dir(folder.path()).env("PATH", &programs);
            let ran = command.stdin(Stdio::null()).output().expect("there is a shell");
            let errors = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.success(), "{page}:\n{block}\n{errors}");
        }
    }
    assert!(seen >= 5, "only {seen} blocks are marked");
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut pages = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).expect("the folder is there") {
        pages.push(format!("docs/{}", entry.expect("it can be read").file_name().to_string_lossy()));
    }
    let mut wrong = Vec::new();
    for page in pages.iter().filter(|page| page.ends_with(".md")) {
        let text = fs::read_to_string(root().join(page)).expect("the page is there");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let links = links.filter(|link| !link.contains("://")).filter_map(|link| link.split('#').next());
        let folder = root().join(page).parent().map(Path::to_path_buf).unwrap_or_default();
        wrong.extend(links.filter(|l| !folder.join(l).exists()).map(|l| format!("{page}: {l}")));
        let named = text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("docs/"));
        wrong.extend(named.filter(|name| !root().join(name).exists()).map(|name| format!("{page}: {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let first = fs::read_to_string(root().join("README.md")).expect("the page is there");
    assert!(first.lines().count() <= FIRST_PAGE, "README.md has {} lines", first.lines().count());
    let listed = |page: &&String| page.starts_with("docs/") && page.ends_with(".md") && !first.contains(page.as_str());
    let missing: Vec<&String> = pages.iter().filter(listed).collect();
    assert!(missing.is_empty(), "README.md does not name {missing:?}");
}
