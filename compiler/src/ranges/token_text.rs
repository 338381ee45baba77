//! Text as rows of token ids, by a model's own tokenizer.
//!
//! Every line is a row. Both files may be hostile: their sizes are bounded, and what is wrong with them is one error.

use ombra_ir::files::read_bounded;
use ombra_ir::{Diagnostic, Result};
use std::path::Path;
use tokenizers::Tokenizer;

/// Most bytes of a text.
const MAX_TEXT: u64 = 64 << 20;
/// Most bytes of a tokenizer.
const MAX_TOKENIZER: u64 = 256 << 20;

/// The tokens of every line of the text at `path` that has any, with the special tokens that the tokenizer adds.
///
/// # Errors
/// `E0533` when a file cannot be read or is too large, the tokenizer is none, the text is not UTF-8, or holds no tokens.
pub fn read(path: &Path, tokenizer: &Path) -> Result<Vec<Vec<i64>>> {
    let unusable = |e| wrong(tokenizer, format!("this is no tokenizer: {e}")).note("expected a tokenizer.json");
    let mut known = Tokenizer::from_bytes(read_bounded(tokenizer, MAX_TOKENIZER).map_err(|e| unread(tokenizer, &e))?)
        .map_err(unusable)?;
    // Rows are as long as their lines.
    known.with_padding(None).with_truncation(None).map_err(unusable)?;
    let text = String::from_utf8(read_bounded(path, MAX_TEXT).map_err(|e| unread(path, &e))?).map_err(|e| {
        wrong(path, format!("byte {} is not UTF-8", e.utf8_error().valid_up_to())).note("expected a text in UTF-8")
    })?;
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        // The library's own message may quote the text.
        let encoding = known.encode(line, true);
        let encoding = encoding.map_err(|_| wrong(path, format!("the tokenizer cannot encode line {}", i + 1)))?;
        let ids: Vec<i64> = encoding.get_ids().iter().copied().map(i64::from).collect();
        rows.extend((!ids.is_empty()).then_some(ids));
    }
    if rows.is_empty() {
        return Err(wrong(path, "the text is empty".into()).note("expected lines like the prompts that will be given"));
    }
    Ok(rows)
}

fn unread(path: &Path, error: &std::io::Error) -> Diagnostic {
    wrong(path, format!("the file cannot be read: {error}"))
}

fn wrong(path: &Path, what: String) -> Diagnostic {
    Diagnostic::input("E0533", what).at(path.display().to_string())
}
