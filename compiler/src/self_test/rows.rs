//! The inputs of a self-test: what prompts begin with, special tokens, a chat, drawn tokens, one long row.

use crate::graph::{Graph, InputRole, Op};
use crate::ranges::calibrate::{Inputs, positions, vocabulary, xorshift};
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::{Bindings, Diagnostic, Result, Sym, files};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Inputs of one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is, in words.
    pub name: String,
    /// Its token ids; none where the model takes no tokens.
    pub tokens: Vec<i64>,
    /// Whether the tokens are a text, so that it says something how likely each is after those before it.
    pub is_text: bool,
    /// All inputs of the model.
    pub inputs: Inputs,
}

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;
/// Most special tokens in their row.
const SPECIAL: usize = 32;
/// Drawn tokens in their row.
const DRAWN: usize = 64;
/// Names of tokens that begin a text, in the order of preference.
const BEGINS: &[&str] =
    &["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]", "<|endoftext|>", "<|im_start|>"];
/// Chats, as pieces that are tokens each. The first whose pieces the tokenizer has is taken.
const CHATS: &[&[&str]] = &[
    &["<|im_start|>", "user", "Ċ", "Hello", "<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"],
    &[
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "user",
        "<|end_header_id|>",
        "ĊĊ",
        "Hello",
        "<|eot_id|>",
        "<|start_header_id|>",
        "assistant",
        "<|end_header_id|>",
        "ĊĊ",
    ],
    &["<bos>", "<start_of_turn>", "user", "\n", "Hello", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"],
    &["<s>", "[INST]", "▁Hello", "[/INST]"],
    &["[CLS]", "hello", "[SEP]"],
];

/// Tokens that a tokenizer file names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Special {
    /// The token that begins a text.
    pub begin: Option<i64>,
    /// All special tokens, in order of their ids.
    pub special: Vec<i64>,
    /// A prompt in the form of a chat; empty where its pieces are not all tokens.
    pub chat: Vec<i64>,
}

impl Special {
    /// Reads what a `tokenizer.json` names.
    ///
    /// # Errors
    /// `E0587` when the file cannot be read or is not JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: String| Diagnostic::input("E0587", format!("cannot read {}: {what}", path.display()));
        let text = files::read_text(path, MAX_BYTES).map_err(|e| wrong(e.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        Ok(Self::of(&json))
    }

    fn of(json: &Value) -> Self {
        let mut ids: BTreeMap<&str, i64> = BTreeMap::new();
        let vocab = json.get("model").and_then(|m| m.get("vocab"));
        for (token, id) in vocab.and_then(Value::as_object).into_iter().flatten() {
            ids.extend(id.as_i64().map(|id| (token.as_str(), id)));
        }
        let mut special = Vec::new();
        for added in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let (Some(id), Some(token)) =
                (added.get("id").and_then(Value::as_i64), added.get("content").and_then(Value::as_str))
            else {
                continue;
            };
            ids.insert(token, id);
            if added.get("special").and_then(Value::as_bool) == Some(true) {
                special.push(id);
            }
        }
        special.sort_unstable();
        let begin = BEGINS.iter().find_map(|t| ids.get(t).copied());
        let chat = CHATS.iter().find_map(|chat| chat.iter().map(|t| ids.get(t).copied()).collect::<Option<Vec<i64>>>());
        Special { begin, special, chat: chat.unwrap_or_default() }
    }
}

/// Rows of at most `most` positions together, for a model as imported and as lowered: the latter knows its sizes' maxima.
/// Without a tokenizer the first ids stand for the special tokens.
///
/// # Errors
/// An input that cannot be made up, such as one of a size that nothing determines.
pub fn rows(graph: &Graph, lowered: &Graph, special: &Special, most: usize) -> Result<Vec<Row>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    if !takes_tokens(graph) {
        let inputs = filled(graph, &[], &mut state)?;
        return Ok(vec![Row { name: "drawn inputs".into(), tokens: Vec::new(), is_text: false, inputs }]);
    }
    let vocabulary = vocabulary(lowered)?;
    let limit = longest(lowered).min(most.max(1));
    let inside = |ids: &[i64], most: usize| -> Vec<i64> {
        let known = ids.iter().copied().filter(|id| u64::try_from(*id).is_ok_and(|id| id < vocabulary));
        known.take(most.min(limit)).collect()
    };
    let begin = special.begin.unwrap_or(0);
    let first: Vec<i64> = (0..16).collect();
    let specials = if special.special.is_empty() { &first } else { &special.special };
    let mut drawn = |n: usize| -> Vec<i64> {
        std::iter::once(begin).chain((1..n.max(1)).map(|_| (xorshift(&mut state) % vocabulary) as i64)).collect()
    };
    let mut named = vec![
        ("the beginning of a text", inside(&[begin], 1)),
        ("special tokens", inside(specials, SPECIAL)),
        ("a chat", inside(&special.chat, limit)),
        ("drawn tokens", inside(&drawn(DRAWN), DRAWN)),
    ];
    let mut left = most;
    named.retain_mut(|(_, tokens)| {
        tokens.truncate(left);
        left -= tokens.len();
        !tokens.is_empty()
    });
    // Shorter than another row, it would show nothing new.
    let rest = left.min(limit);
    if rest > DRAWN / 2 {
        named.push(("a long row", inside(&drawn(rest), rest)));
    }
    let mut state = 1u64;
    let row = |(name, tokens): (&str, Vec<i64>)| -> Result<Row> {
        let inputs = filled(graph, &tokens, &mut state)?;
        Ok(Row { name: name.into(), tokens, is_text: false, inputs })
    };
    named.into_iter().map(row).collect()
}

/// Rows of the given token ids.
///
/// # Errors
/// `E0587` for an id that the model does not have, and for a row that is longer than the model takes.
pub fn rows_of_tokens(graph: &Graph, lowered: &Graph, rows: &[Vec<i64>]) -> Result<Vec<Row>> {
    let (vocabulary, longest) = (vocabulary(lowered)?, longest(lowered));
    let mut state = 1u64;
    let row = |(i, tokens): (usize, &Vec<i64>)| -> Result<Row> {
        if let Some(id) = tokens.iter().find(|id| !u64::try_from(**id).is_ok_and(|id| id < vocabulary)) {
            let message = format!("token {id} of row {} is not in the vocabulary", i + 1);
            return Err(Diagnostic::input("E0587", message).note(format!("expected 0 to {}", vocabulary - 1)));
        }
        if tokens.len() > longest {
            let message = format!("row {} has {} tokens", i + 1, tokens.len());
            return Err(Diagnostic::input("E0587", message)
                .note(format!("expected at most {longest}; break it into several, or give a larger --max")));
        }
        let inputs = filled(graph, tokens, &mut state)?;
        Ok(Row { name: format!("row {}", i + 1), tokens: tokens.clone(), is_text: true, inputs })
    };
    rows.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()).map(row).collect()
}

/// Reads token ids: one row a line, ids separated by anything that is no digit.
///
/// # Errors
/// `E0587` when the file cannot be read or an id is too large.
pub fn read_tokens(path: &Path) -> Result<Vec<Vec<i64>>> {
    let wrong = |what: String| Diagnostic::input("E0587", format!("cannot read {}: {what}", path.display()));
    let text = files::read_text(path, MAX_BYTES).map_err(|e| wrong(e.to_string()))?;
    let mut rows = Vec::new();
    for line in text.lines() {
        let ids = line.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        let ids: Vec<i64> =
            ids.map(str::parse).collect::<std::result::Result<_, _>>().map_err(|e| wrong(format!("{e}")))?;
        rows.extend((!ids.is_empty()).then_some(ids));
    }
    if rows.is_empty() {
        return Err(wrong("there are no token ids in it".into()).note("expected one row of ids a line"));
    }
    Ok(rows)
}

fn takes_tokens(graph: &Graph) -> bool {
    token_ids(graph).is_some()
}

fn token_ids(graph: &Graph) -> Option<crate::graph::ValueId> {
    graph.inputs.iter().copied().find(|&id| matches!(graph.op(id), Some(Op::Input { role: InputRole::TokenIds, .. })))
}

/// The longest row of tokens that the model takes.
pub(crate) fn longest(graph: &Graph) -> usize {
    let dim = token_ids(graph).and_then(|id| graph.shape(id).last().cloned());
    let declared = dim.and_then(|dim| match dim.as_constant() {
        Some(n) => u64::try_from(n).ok(),
        None => graph.dims.upper(&dim).and_then(|n| u64::try_from(n).ok()),
    });
    let most = declared.unwrap_or(u64::MAX).min(positions(graph).unwrap_or(u64::MAX));
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// All inputs for a row of tokens: masks that keep everything, positions in order, caches without entries or of zeros,
/// zeros for other integers, and drawn floats.
fn filled(graph: &Graph, tokens: &[i64], state: &mut u64) -> Result<Inputs> {
    let mut bindings = Bindings::new();
    for (info, i) in graph.dims.syms.iter().zip(0..) {
        let value = match info.name.as_str() {
            "past" => info.min,
            "seq" => (tokens.len() as u64).max(info.min),
            _ => 1.max(info.min),
        };
        bindings.set(Sym(i), value);
    }
    if let Some(sym) = token_ids(graph).and_then(|id| graph.shape(id).last().and_then(|d| d.as_symbol())) {
        bindings.set(sym, tokens.len() as u64);
    }
    let past = graph.dims.find("past").and_then(|sym| bindings.get(sym)).unwrap_or(0);
    let past = i64::try_from(past).unwrap_or(0);
    let mut inputs = Inputs::new();
    for &id in &graph.inputs {
        let node = graph.node(id)?;
        let Op::Input { name, role } = &node.op else { continue };
        let shape = node.shape.iter().map(|d| d.eval_usize(&bindings)).collect::<Result<Vec<_>>>()?;
        let n = ombra_ir::plain::tensor::volume(&shape)?;
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let tensor = match (role, node.dtype) {
            // Where the model fixes the length, a row is repeated to it.
            (InputRole::TokenIds, DType::I64) => {
                let ids = (0..n).map(|i| tokens.get(i % columns % tokens.len().max(1)).copied().unwrap_or(0));
                Tensor::i64(&shape, ids.collect())?
            }
            (InputRole::PositionIds, DType::I64) => {
                Tensor::i64(&shape, (0..n).map(|i| past.saturating_add((i % columns) as i64)).collect())?
            }
            (InputRole::AttentionMask, DType::I64) => Tensor::i64(&shape, vec![1; n])?,
            (InputRole::AttentionMask, DType::F32) => Tensor::f32(&shape, vec![1.0; n])?,
            (_, DType::I64) => Tensor::i64(&shape, vec![0; n])?,
            (_, DType::Bool) => Tensor::bool(&shape, vec![true; n])?,
            (InputRole::PastKey { .. } | InputRole::PastValue { .. }, DType::F32) => Tensor::f32(&shape, vec![0.0; n])?,
            (_, DType::F32) => {
                let unit = |v: u64| (v >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                Tensor::f32(&shape, (0..n).map(|_| unit(xorshift(state))).collect())?
            }
        };
        inputs.insert(name.clone(), tensor);
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_those_that_the_tokenizer_names() {
        let json = serde_json::json!({
            "added_tokens": [
                {"id": 2, "content": "<|im_end|>", "special": true},
                {"id": 1, "content": "<|im_start|>", "special": true},
                {"id": 9, "content": "plain", "special": false},
            ],
            "model": {"vocab": {"user": 3, "Ċ": 4, "Hello": 5, "assistant": 6}},
        });
        let found = Special::of(&json);
        assert_eq!(found, Special { begin: Some(1), special: vec![1, 2], chat: vec![1, 3, 4, 5, 2, 4, 1, 6, 4] });
        assert_eq!(Special::of(&serde_json::json!({"model": 3})), Special::default());
    }
}
