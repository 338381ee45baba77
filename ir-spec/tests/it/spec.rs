//! The written specification: its tables of ops are those of the op list, and it names every code.
//!
//! `OMBRA_BLESS=1` writes the tables anew.

use std::collections::BTreeSet;
use std::fmt::Write;

use ombra_ir::infer::constraints;
use ombra_ir::op::{Class, Listed, OPS};

const SPEC: &str = include_str!("../../SPEC.md");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/SPEC.md");

/// The tables of the specification that follow from the op list, by the names that mark them.
fn tables() -> [(&'static str, String); 4] {
    let mut norms = String::from("| op | size | rows | columns |\n|---|---|---|---|\n");
    for op in OPS.iter().filter(|op| op.description.norms != ["", "", ""]) {
        let [size, rows, columns] = op.description.norms;
        writeln!(norms, "| `{}` | {size} | {rows} | {columns} |", op.description.name).unwrap();
    }
    let mut labels = String::from("| label | code | what must hold |\n|---|---|---|\n");
    for (label, constraint) in constraints() {
        writeln!(labels, "| `{label}` | {} | {} |", constraint.code, constraint.says).unwrap();
    }
    let of = |composite: bool| {
        let mut table = String::from("| op | result | bound | meaning |\n|---|---|---|---|\n");
        for op in OPS.iter().filter(|op| (op.description.class == Class::Composite) == composite) {
            writeln!(table, "{}", row(op)).unwrap();
        }
        table
    };
    [("norms", norms), ("ops", of(false)), ("composite ops", of(true)), ("constraints", labels)]
}

/// An op in the table of its kind: its operands where they are not one x, its attributes, and the first paragraph of its
/// documentation.
fn row(op: &Listed) -> String {
    let description = op.description;
    let operands = match description.operands {
        [] | ["x"] => String::new(),
        several => format!(" ({})", several.join(", ")),
    };
    let attributes =
        if op.attributes.is_empty() { String::new() } else { format!(" {{{}}}", op.attributes.join(", ")) };
    let paragraph: Vec<&str> = op.doc.iter().map(|line| line.trim()).take_while(|line| !line.is_empty()).collect();
    let (name, result, bound) = (description.name, description.result, description.bound);
    format!("| `{name}`{operands}{attributes} | {result} | {bound} | {} |", paragraph.join(" "))
}

/// The specification with its tables.
fn with_tables() -> String {
    let mut text = SPEC.to_string();
    for (name, table) in tables() {
        let (begin, end) = (format!("<!-- table: {name} -->\n"), "<!-- end of the table -->");
        let from = text.find(&begin).unwrap_or_else(|| panic!("no mark of the table {name}")) + begin.len();
        let length = text[from..].find(end).unwrap_or_else(|| panic!("no end of the table {name}"));
        text.replace_range(from..from + length, &table);
    }
    text
}

#[test]
fn tables_are_those_of_the_op_list() {
    let expected = with_tables();
    if std::env::var_os("OMBRA_BLESS").is_some() {
        std::fs::write(PATH, &expected).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap();
    let differs = written.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert_eq!(differs, None, "OMBRA_BLESS=1 writes the tables anew");
    assert_eq!(written.lines().count(), expected.lines().count(), "OMBRA_BLESS=1 writes the tables anew");
}

/// Every op says what it is; a composite op and a core op that is no source have a meaning.
#[test]
fn every_op_is_described() {
    let mut names = BTreeSet::new();
    for op in OPS {
        let d = op.description;
        assert!(names.insert(d.name), "{} is listed twice", d.name);
        assert!(!d.name.is_empty() && !d.result.is_empty() && !d.bound.is_empty() && !op.doc.is_empty(), "{}", d.name);
        assert_eq!(d.meaning.is_none(), d.class == Class::Source, "{}", d.name);
        assert!(d.constraints.iter().all(|c| c.code.starts_with("E03") && !c.says.is_empty()), "{}", d.name);
    }
    assert_eq!(names.len(), OPS.len());
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
fn every_code_is_specified() {
    let codes = codes();
    assert!(codes.len() >= 40, "{} codes", codes.len());
    for code in codes {
        assert!(SPEC.contains(&code), "code {code}");
    }
}
