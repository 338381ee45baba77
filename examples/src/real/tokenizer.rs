//! The tokenizer in a GGUF file as the `tokenizer.json` of its model.
//!
//! Only byte pair encoding over bytes with a known way of cutting text into words: another cut gives other tokens.

use std::collections::{BTreeMap, BTreeSet};

use ombra_ir::{Diagnostic, Result};
use serde_json::{Value as Json, json};

use super::gguf::{Gguf, Value};

/// The key of the list of tokens.
pub const TOKENS: &str = "tokenizer.ggml.tokens";

/// The key of the token that stands for bytes that no token has.
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// What kinds of tokens a file tells apart.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// The tokenizer of `file`.
///
/// # Errors
/// `E0925` for a tokenizer of another kind or a wrong one, `E0923` for a file without what it needs.
pub fn of(file: &Gguf) -> Result<Json> {
    let (model, cut) = (file.text("tokenizer.ggml.model")?, file.text("tokenizer.ggml.pre")?);
    let other = |what: &str, found: &str, expected: &str| {
        Diagnostic::unsupported("E0925", format!("a tokenizer {what} `{}`", found.escape_debug()))
            .note(format!("expected  {expected}"))
    };
    if model != "gpt2" {
        return Err(other("of the kind", model, "gpt2, which is byte pair encoding over bytes"));
    }
    let words = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let cut = match cut {
        "gpt-2" => words,
        // Every digit is a word.
        "smollm" => json!({
            "type": "Sequence",
            "pretokenizers": [{ "type": "Digits", "individual_digits": true }, words],
        }),
        name => return Err(other("that cuts text as", name, "gpt-2 or smollm")),
    };
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"] {
        match file.metadata().get(key) {
            None | Some(Value::Bool(false)) => {}
            Some(_) => return Err(other("with a value of", key, "false")),
        }
    }
    let tokens = file.texts(TOKENS)?;
    let vocabulary: BTreeMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    if vocabulary.len() != tokens.len() {
        return Err(wrong("two tokens have the same text"));
    }
    let kinds = file.list("tokenizer.ggml.token_type")?;
    if kinds.len() != tokens.len() {
        return Err(wrong("the tokens are not as many as their types")
            .note(format!("expected  {} types", tokens.len()))
            .note(format!("found     {}", kinds.len())));
    }
    let mut added = Vec::new();
    for (id, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let special = match kind {
            Value::Integer(NORMAL) => continue,
            Value::Integer(CONTROL) => true,
            Value::Integer(USER_DEFINED) => false,
            _ => return Err(wrong(format!("token {id} is of a kind that such a tokenizer does not have"))),
        };
        added.push(json!({
            "id": id, "content": token, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    let unknown = match file.metadata().get(UNKNOWN) {
        None => None,
        Some(_) => {
            let id = file.count(UNKNOWN)?;
            Some(*tokens.get(id).ok_or_else(|| wrong(format!("the token for what is unknown, {id}, is none")))?)
        }
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": cut,
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges(file, &vocabulary)?,
        },
    }))
}

/// The merges, each as two tokens whose union is a token.
fn merges<'a>(file: &'a Gguf, vocabulary: &BTreeMap<&str, usize>) -> Result<Vec<[&'a str; 2]>> {
    let mut merges = Vec::new();
    let mut seen = BTreeSet::new();
    for (rank, merge) in file.texts("tokenizer.ggml.merges")?.into_iter().enumerate() {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            let known = |text: &str| vocabulary.contains_key(text);
            known(left) && known(right) && known(&format!("{left}{right}"))
        });
        let (left, right) = pair.ok_or_else(|| {
            wrong(format!("merge {rank} does not make a token of two tokens"))
                .note(format!("found     `{}`", merge.escape_debug()))
        })?;
        if !seen.insert((left, right)) {
            return Err(wrong(format!("merge {rank} stands there twice")));
        }
        merges.push([left, right]);
    }
    Ok(merges)
}

fn wrong(what: impl Into<String>) -> Diagnostic {
    Diagnostic::input("E0925", what).note("help      the file may be damaged: fetch it again")
}
