//! Benchmarks.

use std::path::Path;

/// Compares the part of a file between the comments `<!-- NAME -->` and `<!-- end of NAME -->` with what is expected, or
/// writes it anew where `OMBRA_BLESS` is set.
///
/// # Errors
/// A file without these comments or that cannot be read or written, and a part that differs.
pub fn compare_table(file: &Path, name: &str, expected: &str) -> Result<(), String> {
    let wrong = |what: &str| format!("{}: {what}", file.display());
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(&e.to_string()))?;
    let (before, rest) = text.split_once(&begin).ok_or_else(|| wrong(&format!("there is no {begin}")))?;
    let (found, after) = rest.split_once(&end).ok_or_else(|| wrong(&format!("there is no {end}")))?;
    if std::env::var_os("OMBRA_BLESS").is_some() {
        return std::fs::write(file, [before, &begin, expected, &end, after].concat())
            .map_err(|e| wrong(&e.to_string()));
    }
    if found == expected {
        return Ok(());
    }
    Err(wrong(&format!(
        "its table `{name}` is\n{found}\nand should be\n{expected}\nif the change is meant: OMBRA_BLESS=1 cargo test -p ombra-bench"
    )))
}
