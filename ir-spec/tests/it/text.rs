//! The text form: exact round trip, errors with places, no panic on anything.

use ombra_ir::text::{parse, print};
use ombra_ir::verify::verify;
use proptest::prelude::*;

use crate::files;

#[test]
fn round_trip_is_exact_on_every_file() {
    for (name, text) in files("text") {
        let module = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(print(&module), text, "{name}");
        let problems = verify(&module).err().unwrap_or_default();
        assert!(problems.is_empty(), "{name}: {}", problems.iter().map(|d| format!("{d}\n")).collect::<String>());
    }
    for (name, text) in files("verify") {
        let module = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let printed = print(&module);
        assert_eq!(parse(&printed).unwrap(), module, "{name}");
        assert_eq!(print(&parse(&printed).unwrap()), printed, "{name}");
    }
}

#[test]
fn every_op_is_in_a_file() {
    let modules: Vec<_> = files("text").into_iter().map(|(_, text)| parse(&text).unwrap()).collect();
    let names: std::collections::BTreeSet<_> = modules.iter().flat_map(|m| &m.ops).map(|n| n.op.name()).collect();
    assert_eq!(names.len(), ombra_ir::op::OPS.len());
}

/// The error of a module whose header is complete.
fn error_in(body: &str) -> (&'static str, String, String) {
    let text = format!("module \"m\" stage(lowered) setting(3pc) {{\n  size seq 1..8\n{body}\n}}\n");
    let error = parse(&text).expect_err(body);
    (error.code, error.place.expect("a place"), error.message)
}

#[test]
fn errors_name_line_and_column() {
    let cases = [
        ("  %0 = frobnicate : bit[] shared", "E0371", "line 3 column 8", "there is no such op"),
        ("  %0 = not : bits[] shared", "E0370", "line 3 column 14", "expected an element type"),
        ("  %1 = not : bit[] shared", "E0370", "line 3 column 4", "expected the definition of %0"),
        ("  %0 = truncate {by = 300} : bit[] shared", "E0371", "line 3 column 8", "`by` is out of range"),
        ("  %0 = upscale {by = 3, by = 3} : bit[] shared", "E0371", "line 3 column 8", "no attribute `by`"),
        ("  %0 = truncate : bit[] shared", "E0371", "line 3 column 8", "expected an attribute `by`"),
        ("  %0 = not : bit[nothing] shared", "E0370", "line 3 column 17", "no size is called `nothing`"),
        ("  %0 = not : bit[] secret", "E0370", "line 3 column 20", "expected public or client or masked"),
        ("  %0 = not : bit[] shared <3", "E0370", "line 3 column 27", "only ring elements have a bound"),
        ("  %0 = not : bit[] shared @ \"x", "E0370", "line 3 column 31", "control character"),
        ("  size seq 0..1", "E0370", "line 3 column 8", "declared twice"),
        ("  size 7 0..1", "E0370", "line 3 column 8", "is no name"),
        ("  count kept = true of 0 in [seq]", "E0370", "line 3 column 9", "no size is called"),
        ("  public { $1 = range : i64[] }", "E0370", "line 3 column 12", "in order"),
        ("  public { $0 = rang : i64[] }", "E0371", "line 3 column 17", "no such public operator"),
        ("  public { $0 = constant {value = f32[2](1.0)} : f32[2] }", "E0370", "line 3 column 38", "1 elements"),
        ("} }", "E0370", "line 3 column 3", "after the end"),
    ];
    for (body, code, place, message) in cases {
        let found = error_in(body);
        assert_eq!((found.0, found.1.as_str()), (code, place), "{body}: {}", found.2);
        assert!(found.2.contains(message), "{body}: {}", found.2);
    }
    let named = |name: &str| parse(&format!("module \"{name}\" stage(lowered) setting(3pc) {{}}")).map(|m| m.name);
    assert_eq!(named("\\u{0}\\u{e9}é\\\\").unwrap(), "\0éé\\");
    for bad in ["\\u{}", "\\u{d800}", "\\u{1234567}", "\\u{12é}", "\\u", "\\n"] {
        assert_eq!(named(bad).unwrap_err().place.as_deref(), Some("line 1 column 9"), "{bad}");
    }
    assert_eq!(parse("").unwrap_err().place.as_deref(), Some("line 1 column 1"));
    assert_eq!(parse("; only a comment").unwrap_err().code, "E0370");
}

#[test]
fn text_cut_anywhere_is_an_error_or_a_module() {
    for (name, text) in files("text") {
        let end = text.trim_end().len();
        for cut in (0..end).filter(|i| text.is_char_boundary(*i)) {
            assert!(parse(&text[..cut]).is_err(), "{name} cut at {cut}");
        }
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic(which in 0usize..2, changes in proptest::collection::vec((any::<u32>(), 0u8..128), 1..6)) {
        let (_, text) = files("text").swap_remove(which);
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(module) = parse(&String::from_utf8_lossy(&bytes)) {
            // Whatever is still a module is printed, read back and verified without panic.
            let printed = print(&module);
            prop_assert_eq!(print(&parse(&printed).unwrap()), printed);
            let found = verify(&module).err().unwrap_or_default();
            prop_assert!(found.iter().all(|d| d.code.starts_with("E03")));
        }
    }

    #[test]
    fn swapped_words_never_panic(which in 0usize..2, a in any::<u32>(), b in any::<u32>()) {
        let (_, text) = files("text").swap_remove(which);
        let mut words: Vec<_> = text.split(' ').collect();
        let len = words.len();
        words.swap(a as usize % len, b as usize % len);
        if let Ok(module) = parse(&words.join(" ")) {
            let found = verify(&module).err().unwrap_or_default();
            prop_assert!(found.iter().all(|d| d.code.starts_with("E03")));
        }
    }

    #[test]
    fn changed_plan_bytes_never_panic(which in 0usize..2, changes in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..4)) {
        let (_, text) = files("text").swap_remove(which);
        let mut bytes = postcard::to_stdvec(&parse(&text).unwrap()).unwrap();
        for (at, byte) in changes {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(module) = postcard::from_bytes(&bytes) {
            let text = print(&module);
            match verify(&module) {
                // What the verifier accepts has an exact text, up to floats that are no numbers.
                Ok(()) => prop_assert_eq!(print(&parse(&text).unwrap()), text),
                Err(found) => prop_assert!(found.iter().all(|d| d.code.starts_with("E03"))),
            }
        }
    }
}
