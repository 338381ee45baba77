//! The written specification is complete.

use std::collections::BTreeSet;

use ombra_ir::infer::CONSTRAINTS;

const SPEC: &str = include_str!("../../SPEC.md");

/// The names of the op list, read from the op list.
pub fn op_names() -> BTreeSet<&'static str> {
    let source = include_str!("../../src/op.rs");
    let lines = source.lines().filter(|l| l.contains(" => (\"") && l.contains("Op::"));
    lines.filter_map(|l| l.split('"').nth(1)).collect()
}

/// The codes that the sources of the library name, of this specification's groups.
fn codes() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                out.extend(text.match_indices("E03").filter_map(|(i, _)| text.get(i..i + 5)).map(String::from));
            }
        }
    }
    out
}

#[test]
fn every_op_constraint_and_code_is_specified() {
    let names = op_names();
    assert!(names.len() >= 46, "{} op names", names.len());
    for name in names {
        assert!(SPEC.contains(&format!("`{name}`")), "op {name}");
    }
    for c in CONSTRAINTS {
        let line = format!("| `{}` | {} | {} |", c.label, c.code, c.says);
        assert!(SPEC.contains(&line), "missing line: {line}");
    }
    let codes = codes();
    assert!(codes.len() >= 40, "{} codes", codes.len());
    for code in codes {
        assert!(SPEC.contains(&code), "code {code}");
    }
}

#[test]
fn labels_are_unique_and_numbered_without_gaps() {
    let labels: BTreeSet<_> = CONSTRAINTS.iter().map(|c| c.label).collect();
    assert_eq!(labels.len(), CONSTRAINTS.len());
    for label in labels.iter().filter(|l| **l != "arity") {
        let (op, number) = label.rsplit_once("_c").unwrap();
        let number: usize = number.parse().unwrap();
        assert!((1..number).all(|n| labels.contains(format!("{op}_c{n}").as_str())), "{label}");
    }
}
