//! What the compiler publishes holds nothing of a private weight: no 16 bytes in a row of any private tensor, as it is
//! stored or transposed, stand in any public file.

use ombra_compiler::onnx::Model;
use ombra_compiler::secrecy::labels::Owner;
use ombra_tests::built::{Built, build};
use ombra_tests::corpus;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

const TUNED: [&str; 9] = [
    "llama-trained/frozen",
    "llama-trained/lora",
    "llama-trained/full",
    "llama-pair/frozen",
    "llama-pair/lora",
    "llama-pair/full",
    "gpt2-pair/frozen",
    "gpt2-pair/lora",
    "gpt2-pair/full",
];
/// Bytes of a window: four numbers.
const WINDOW: usize = 16;

/// All windows of some bytes, at every byte.
fn windows(bytes: &[u8]) -> impl Iterator<Item = [u8; WINDOW]> {
    bytes.windows(WINDOW).map(|window| window.try_into().expect("it has the length of a window"))
}

/// All windows of the files of a folder.
fn windows_of(folder: &Path) -> HashSet<[u8; WINDOW]> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir(folder).expect("the folder exists") {
        let bytes = std::fs::read(entry.expect("it can be listed").path()).expect("it can be read");
        found.extend(windows(&bytes));
    }
    found
}

/// The tensor's bytes, and for a matrix those of its transpose.
fn forms(model: &Model, name: &str) -> Vec<Vec<u8>> {
    let tensor = model.initializer(name).expect("it is an initializer");
    let bytes = model.bytes(tensor).expect("it has elements").into_owned();
    let [rows, columns] = *tensor.dims.as_slice() else { return vec![bytes] };
    let (rows, columns) = (rows as usize, columns as usize);
    let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| (r * columns + c) * 4));
    let transposed = transposed.flat_map(|at| bytes[at..at + 4].iter().copied()).collect();
    vec![bytes, transposed]
}

/// Windows of a kind of tensor that were looked for, those that were found, and those that say nothing.
#[derive(Default)]
struct Count {
    tensors: usize,
    windows: usize,
    found: usize,
    constant: usize,
}

fn count(names: &BTreeSet<String>, model: &Model, public: &HashSet<[u8; WINDOW]>) -> Count {
    let mut count = Count { tensors: names.len(), ..Count::default() };
    for name in names {
        for bytes in forms(model, name) {
            for window in windows(&bytes) {
                // The same number four times, such as the ones of an untouched scale.
                if window[4..] == window[..WINDOW - 4] {
                    count.constant += 1;
                    continue;
                }
                count.windows += 1;
                count.found += usize::from(public.contains(&window));
            }
        }
    }
    count
}

/// Names of the tensors that are private by the list of trained parameters, or by their label.
fn private(name: &str, built: &Built) -> BTreeSet<String> {
    let text = std::fs::read_to_string(corpus::folder(name).join("labels.json")).expect("labels are bundled");
    let json: serde_json::Value = serde_json::from_str(&text).expect("labels are JSON");
    let listed = json["tensors"].as_array().expect("there is a list").iter();
    let listed = listed.filter(|t| t["label"] == "private").filter_map(|t| t["tensor"].as_str().map(str::to_owned));
    let labels = &built.compiled.labels.tensors;
    let labelled = labels.iter().filter(|label| label.owner == Owner::Private).map(|label| label.name.clone());
    let names: BTreeSet<String> = listed.chain(labelled).collect();
    names.into_iter().filter(|name| built.model.initializer(name).is_some()).collect()
}

#[test]
fn no_part_of_a_private_tensor_is_published() {
    for name in TUNED {
        let family = name.split('/').next().expect("a family");
        let base = format!("{family}/base");
        let built = build(name, Some(&base), Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let public = windows_of(&built.folder.path().join("public"));
        let private = private(name, &built);
        let secret = count(&private, &built.model, &public);
        let labels = &built.compiled.labels.tensors;
        let shown = labels.iter().filter(|l| l.owner == Owner::Public && !private.contains(&l.name));
        let shown = shown.filter(|l| built.model.initializer(&l.name).is_some()).map(|l| l.name.clone()).collect();
        let shown = count(&shown, &built.model, &public);
        println!(
            "{name:<24} {} private tensors: {} of {} windows published, {} constant ones skipped; {} public ones: {} of {}",
            secret.tensors, secret.found, secret.windows, secret.constant, shown.tensors, shown.found, shown.windows
        );
        assert!(secret.windows > 10_000, "{name}: there is nothing to look for");
        assert_eq!(secret.found, 0, "{name}: a part of a private tensor is published");
        // The search finds what is there: public weights are published.
        assert!(name.ends_with("full") || shown.found > 10_000, "{name}: public weights are not found");
    }
}
