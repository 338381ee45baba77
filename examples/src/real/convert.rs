//! A Llama in a GGUF file as the folder of files that exporters write: an ONNX model, its tokenizer, its configuration.
//!
//! Every tensor and every key of the architecture must be one that is known: what would be left out would be wrong.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ombra_ir::{Diagnostic, Result};
use serde_json::{Value as Json, json};

use super::gguf::{Gguf, Value};
use super::tokenizer;
use crate::generate::{Llama, write_llama_with};

/// Name of the ONNX model in the folder.
pub const MODEL: &str = "model.onnx";
/// Name of the tokenizer in the folder.
pub const TOKENIZER: &str = "tokenizer.json";

/// Keys of the architecture that are read, or that say nothing about the numbers.
const KNOWN: [&str; 11] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
];
/// Base of the rotary frequencies where the file does not say.
const FREQUENCY_BASE: f64 = 10000.0;

/// What is changed of the model that a file holds. The default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form {
    /// Rank of adapters beside every matrix. They are random and small.
    pub lora: Option<usize>,
    /// The first layer whose weights are made larger by one part in 256, as a stand-in for fine-tuning.
    pub tuned_from: Option<usize>,
}

/// Writes the model in `file` into `folder`, which exists.
///
/// # Errors
/// `E0923` and `E0924` for a file that cannot be read or is no Llama, `E0925` for its tokenizer, `E0926` and `E0115` when a
/// file cannot be written.
pub fn convert(file: &Gguf, form: &Form, folder: &Path) -> Result<()> {
    let sizes = Llama { lora: form.lora, ..sizes(file)? };
    let tokenizer = tokenizer::of(file)?;
    let used: RefCell<BTreeSet<String>> = RefCell::default();
    let given = |name: &str, dims: &[usize]| -> Result<Vec<f32>> {
        let inner = name_in_file(name);
        let mut values = weight(file, &inner, dims, turned_heads(name, &sizes))?;
        if form.tuned_from.is_some_and(|first| layer_of(name).is_some_and(|layer| layer >= first)) {
            values.iter_mut().for_each(|value| *value *= 1.0 + 1.0 / 256.0);
        }
        used.borrow_mut().insert(inner);
        Ok(values)
    };
    write_llama_with(&sizes, &folder.join(MODEL), &given)?;
    let used = used.into_inner();
    let unused: Vec<&str> = file.names().filter(|name| !used.contains(*name)).collect();
    if let Some(first) = unused.first() {
        let message = format!("{} tensors are not those of a plain Llama", unused.len());
        return Err(Diagnostic::unsupported("E0924", message).note(format!("the first is `{}`", first.escape_debug())));
    }
    write_json(&tokenizer, &folder.join(TOKENIZER))?;
    for (name, json) in configuration(file, &sizes)? {
        write_json(&json, &folder.join(name))?;
    }
    Ok(())
}

/// The sizes of the model in `file`.
fn sizes(file: &Gguf) -> Result<Llama> {
    let architecture = file.text("general.architecture")?;
    if architecture != "llama" {
        let message = format!("a model of the architecture `{}`", architecture.escape_debug());
        return Err(Diagnostic::unsupported("E0924", message).note("expected  llama"));
    }
    for key in file.metadata().keys().filter_map(|key| key.strip_prefix("llama.")) {
        if key != "vocab_size" && !KNOWN.contains(&key) {
            let message = format!("what `llama.{}` means is not known here", key.escape_debug());
            return Err(Diagnostic::unsupported("E0924", message)
                .note("expected  a plain Llama, with rotary positions that are not scaled"));
        }
    }
    let count = |key: &str| file.count(&format!("llama.{key}"));
    let given = |key: &str| file.metadata().contains_key(&format!("llama.{key}"));
    let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
    let kv_heads = if given("attention.head_count_kv") { count("attention.head_count_kv")? } else { heads };
    let layers = count("block_count")?;
    // Every layer has tensors of its own: nothing is made for those that cannot be there.
    if layers > file.names().count() {
        return Err(Diagnostic::input("E0923", format!("{layers} layers, but {} tensors", file.names().count())));
    }
    let head =
        hidden.checked_div(heads).ok_or_else(|| Diagnostic::input("E0923", "the model has no heads of attention"))?;
    for key in ["rope.dimension_count", "attention.key_length", "attention.value_length"] {
        if given(key) && count(key)? != head {
            let message = format!("`llama.{key}` is {}", count(key)?);
            return Err(Diagnostic::unsupported("E0924", message).note(format!("expected  {head}, the size of a head")));
        }
    }
    let vocab = file.list(tokenizer::TOKENS)?.len();
    if given("vocab_size") && count("vocab_size")? != vocab {
        return Err(Diagnostic::input("E0923", format!("a vocabulary of {} entries", count("vocab_size")?))
            .note(format!("expected  {vocab}, as many as there are tokens")));
    }
    Ok(Llama {
        layers,
        hidden,
        heads,
        kv_heads,
        ff: count("feed_forward_length")?,
        vocab,
        theta: if given("rope.freq_base") { positive(file, "rope.freq_base")? } else { FREQUENCY_BASE },
        epsilon: positive(file, "attention.layer_norm_rms_epsilon")? as f32,
        tied: file.shape("output.weight").is_none(),
        ..Llama::default()
    })
}

/// The value of a key of the architecture that is a positive number.
fn positive(file: &Gguf, key: &str) -> Result<f64> {
    let number = file.number(&format!("llama.{key}"))?;
    if number.is_finite() && number > 0.0 {
        return Ok(number);
    }
    Err(Diagnostic::input("E0923", format!("`llama.{key}` is {number}")).note("expected  a positive number"))
}

/// What the weight that transformers calls `name` is called in a GGUF file.
fn name_in_file(name: &str) -> String {
    match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        None => match name {
            "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
            "model.norm.weight" => "output_norm.weight".to_owned(),
            "lm_head.weight" => "output.weight".to_owned(),
            other => other.to_owned(),
        },
        Some((layer, part)) => {
            let part = match part {
                "input_layernorm.weight" => "attn_norm.weight",
                "self_attn.q_proj.weight" => "attn_q.weight",
                "self_attn.k_proj.weight" => "attn_k.weight",
                "self_attn.v_proj.weight" => "attn_v.weight",
                "self_attn.o_proj.weight" => "attn_output.weight",
                "post_attention_layernorm.weight" => "ffn_norm.weight",
                "mlp.gate_proj.weight" => "ffn_gate.weight",
                "mlp.up_proj.weight" => "ffn_up.weight",
                "mlp.down_proj.weight" => "ffn_down.weight",
                other => other,
            };
            format!("blk.{layer}.{part}")
        }
    }
}

/// The layer that a weight belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// How many heads the rows of a weight belong to, if a GGUF file has them in the order of neighbouring pairs: rotary
/// positions turn rows `2i` and `2i + 1` of a head there, rows `i` and `i + half` in an exporter's model.
fn turned_heads(name: &str, sizes: &Llama) -> Option<usize> {
    if name.ends_with("self_attn.q_proj.weight") {
        Some(sizes.heads)
    } else if name.ends_with("self_attn.k_proj.weight") {
        Some(sizes.kv_heads)
    } else {
        None
    }
}

/// The weight `name` of the file in the order of an exporter's model: of shape `dims`, matrices transposed but for the
/// embedding.
fn weight(file: &Gguf, name: &str, dims: &[usize], heads: Option<usize>) -> Result<Vec<f32>> {
    let transposed = dims.len() == 2 && name != "token_embd.weight";
    let mut expected = dims.to_vec();
    if transposed {
        expected.reverse();
    }
    match file.shape(name) {
        Some(shape) if shape == expected => {}
        found => {
            let found = found.map_or("no such tensor".to_owned(), |shape| format!("{shape:?}"));
            return Err(Diagnostic::input("E0923", format!("the tensor `{name}` does not fit the sizes of the model"))
                .note(format!("expected  {expected:?}"))
                .note(format!("found     {found}")));
        }
    }
    let values = file.elements(name)?;
    let (&[rows, columns], true) = (expected.as_slice(), transposed) else { return Ok(values) };
    let row = |at: usize| match heads {
        None => at,
        Some(heads) => {
            let head = rows / heads;
            let (start, within) = (at - at % head, at % head);
            start + 2 * (within % (head / 2)) + within / (head / 2)
        }
    };
    let transposed = (0..rows * columns).map(|i| values.get(row(i % rows) * columns + i / rows).copied());
    let transposed: Option<Vec<f32>> = transposed.collect();
    transposed
        .ok_or_else(|| Diagnostic::internal("E0923", format!("the tensor `{name}` has fewer elements than its shape")))
}

/// Files beside the model, by name: sizes, tokens that begin and end texts, the form of a conversation.
fn configuration(file: &Gguf, sizes: &Llama) -> Result<Vec<(&'static str, Json)>> {
    let id = |which: &str| match file.metadata().get(&format!("tokenizer.ggml.{which}_token_id")) {
        None => Ok(Json::Null),
        Some(_) => file.count(&format!("tokenizer.ggml.{which}_token_id")).map(Json::from),
    };
    let ids = json!({ "bos_token_id": id("bos")?, "eos_token_id": id("eos")?, "pad_token_id": id("padding")? });
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ff,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.hidden / sizes.heads,
        "max_position_embeddings": file.count("llama.context_length")?,
        "rms_norm_eps": sizes.epsilon,
        "rope_theta": sizes.theta,
        "tie_word_embeddings": sizes.tied,
        "vocab_size": sizes.vocab,
    });
    if let (Some(config), Some(ids)) = (config.as_object_mut(), ids.as_object()) {
        config.extend(ids.clone());
    }
    let template = match file.metadata().get("tokenizer.chat_template") {
        Some(Value::Text(template)) => json!({ "chat_template": template }),
        _ => json!({}),
    };
    Ok(vec![("config.json", config), ("generation_config.json", ids), ("tokenizer_config.json", template)])
}

fn write_json(json: &Json, path: &Path) -> Result<()> {
    fs::write(path, format!("{json}\n"))
        .map_err(|e| Diagnostic::input("E0926", format!("cannot write '{}': {e}", path.display())))
}
