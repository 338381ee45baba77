//! Negative modules: each line's mark names the code, and the constraint if there is one, of an error at that line.

use std::collections::BTreeSet;

use ombra_ir::text::parse_with_lines;
use ombra_ir::verify::findings;

use crate::files;

/// Line of the op (`None` for declarations), code, label.
type Mark = (Option<usize>, String, Option<String>);

fn marks(text: &str) -> Vec<Mark> {
    let mut out: Vec<_> = text
        .lines()
        .zip(1..)
        .filter_map(|(line, number)| {
            let (code_line, mark) = line.split_once("; error: ")?;
            let at = code_line.trim_start().starts_with('%').then_some(number);
            Some(
                mark.split(" and ")
                    .map(move |m| {
                        let mut words = m.split_whitespace().map(String::from);
                        (at, words.next().expect("a code"), words.next())
                    })
                    .collect::<Vec<_>>(),
            )
        })
        .flatten()
        .collect();
    out.sort();
    out
}

fn found(name: &str, text: &str) -> Vec<Mark> {
    let (module, lines) = parse_with_lines(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut out: Vec<_> = findings(&module)
        .into_iter()
        .map(|f| (f.op.map(|id| lines[id.index()]), f.diagnostic.code.into(), f.label))
        .collect();
    out.sort();
    out
}

#[test]
fn every_file_has_exactly_its_errors() {
    let mut wrong = String::new();
    for (name, text) in files("verify") {
        let (expected, found) = (marks(&text), found(&name, &text));
        assert!(!expected.is_empty(), "{name} has no mark");
        if expected != found {
            wrong += &format!("{name}:\n  expected {expected:?}\n  found    {found:?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_code_and_constraint_has_a_file() {
    let all: Vec<Mark> = files("verify").iter().flat_map(|(_, text)| marks(text)).collect();
    let codes: BTreeSet<&str> = all.iter().map(|(_, code, _)| code.as_str()).collect();
    let listed = include_str!("../../src/verify/mod.rs");
    let listed: BTreeSet<&str> = listed
        .lines()
        .filter(|l| l.starts_with("//!"))
        .flat_map(|l| l.match_indices("`E03").filter_map(|(i, _)| l.get(i + 1..i + 6)))
        .collect();
    assert_eq!(codes, listed);
    let labels: BTreeSet<&str> = all.iter().filter_map(|(_, _, label)| label.as_deref()).collect();
    // These hold for every module whose sizes and declarations have been checked; building one can break them.
    let not_in_text = BTreeSet::from(["size_c1", "source_c1", "reduce_sum_c3"]);
    let missing: Vec<_> = ombra_ir::infer::constraints()
        .map(|(label, _)| label)
        .filter(|l| !labels.contains(l.as_str()) && !not_in_text.contains(l.as_str()))
        .collect();
    assert!(missing.is_empty(), "constraints without a file: {missing:?}");
}

#[test]
fn there_are_many_ways_to_leak_and_each_is_refused() {
    let leaks: Vec<_> = files("verify").into_iter().filter(|(name, _)| name.starts_with("leak_")).collect();
    assert!(leaks.len() >= 12, "{} leaks", leaks.len());
    for (name, text) in leaks {
        let codes = found(&name, &text);
        let of_secrecy = |code: &str| ("E0330".."E0340").contains(&code) || ("E0342".."E0345").contains(&code);
        assert!(codes.iter().any(|(_, code, _)| of_secrecy(code)), "{name}: {codes:?}");
    }
}
