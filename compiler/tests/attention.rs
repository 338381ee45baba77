//! Attention in every model of the corpus: the sizes that its configuration says, and the whole sentence as it is shown.

use ombra_compiler::attention::explain::explain;
use ombra_compiler::attention::{Description, attentions, describe};
use ombra_compiler::onnx::Model;
use ombra_compiler::passes::approximate::{Choice, Softmax};
use ombra_compiler::pipeline::{Options, analyse};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What a model's configuration says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Config {
    layers: usize,
    heads: usize,
    key_value_heads: usize,
    width: usize,
    rotary: bool,
    causal: bool,
    /// Whether the model has an input that says which positions count.
    given: bool,
    cache: Caches,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Caches {
    None,
    /// Present keys and values are outputs, without an input.
    Written,
    Kept,
}

const BERT: Config = Config {
    layers: 2,
    heads: 4,
    key_value_heads: 4,
    width: 12,
    rotary: false,
    causal: false,
    given: true,
    cache: Caches::None,
};
const GPT2: Config = Config { causal: true, ..BERT };
const LLAMA: Config = Config { rotary: true, ..GPT2 };
const KEPT: Config = Config { cache: Caches::Kept, ..LLAMA };

/// The configurations from which the models were made, by folder. The merged layers of the head-merged model differ.
fn config(folder: &str) -> Config {
    let grouped = |c: Config| Config { key_value_heads: 2, ..c };
    match folder {
        "bert-functions-2.5"
        | "bert-trained/dynamo-op20"
        | "bert-trained/ort-optimized"
        | "bert-trained/torchscript-op14" => BERT,
        "gpt2-dynamo-op20-cached" | "gpt2-optimum-past" | "gpt2-ort-optimized" | "opt-optimum-past" => {
            Config { cache: Caches::Kept, ..GPT2 }
        }
        "gpt2-optimum-1.10" => Config { cache: Caches::Written, ..GPT2 },
        "gpt2-torchscript-op13-fixed" => GPT2,
        "gpt2-pair/base" | "gpt2-pair/frozen" | "gpt2-pair/full" | "gpt2-pair/lora" => {
            Config { layers: 4, width: 10, ..GPT2 }
        }
        "llama-dynamo-op20-fixed-ids" => Config { given: false, ..LLAMA },
        "llama-gqa-dynamo-op18" | "llama-gqa-dynamo-op23" | "llama-gqa-ort-extended" | "qwen2-optimum-past" => {
            grouped(KEPT)
        }
        "llama-gqa-genai" => Config { width: 16, ..grouped(KEPT) },
        "llama-optimum-1.10" => Config { cache: Caches::Written, ..LLAMA },
        "llama-pair/base" | "llama-pair/frozen" | "llama-pair/full" | "llama-pair/lora" => {
            Config { layers: 4, width: 8, ..grouped(KEPT) }
        }
        "llama-torchscript-op14-fixed" | "llama-torchscript-op17" => LLAMA,
        "llama-trained/base"
        | "llama-trained/frozen"
        | "llama-trained/frozen-headmerge"
        | "llama-trained/full"
        | "llama-trained/lora" => Config { layers: 4, heads: 6, key_value_heads: 6, width: 16, ..KEPT },
        "mistral-optimum" => grouped(LLAMA),
        other => panic!("{other} has no configuration here"),
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models")
}

/// Folders with a model, by their path below the corpus.
fn folders(below: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(corpus().join(below))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .flat_map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let name = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            if path.join("model.onnx").exists() { vec![name] } else { folders(&name) }
        })
        .collect();
    names.sort();
    names
}

fn check(folder: &str, config: Config, all: &[Description]) {
    assert_eq!(all.len(), config.layers, "{folder}");
    for (at, d) in all.iter().enumerate() {
        let merged = if folder == "llama-trained/frozen-headmerge" && at >= 2 { 2 } else { 1 };
        let label = format!("{folder}, layer {at}: {d:?}");
        assert_eq!(d.layer, u32::try_from(at).ok(), "{label}");
        assert_eq!((d.heads, d.key_value_heads), (config.heads / merged, config.key_value_heads / merged), "{label}");
        assert_eq!((d.head_width, d.value_width), (config.width * merged, config.width * merged), "{label}");
        assert_eq!(d.merged, merged, "{label}");
        assert_eq!(d.rotary, config.rotary.then_some(config.width), "{label}");
        assert_eq!((d.softmax.as_str(), d.bias, d.cap), ("exact", None, None), "{label}");
        assert!((d.scale - 1.0 / (d.head_width as f64).sqrt()).abs() < 1e-5, "{label}");
        assert_eq!((d.mask.causal, d.mask.window, d.mask.other), (config.causal, None, false), "{label}");
        assert_eq!(d.mask.given, if config.given { vec!["attention_mask"] } else { vec![] }, "{label}");
        let name = |word: &str, what: &str| Some(format!("{word}.{at}.{what}"));
        for what in ["key", "value"] {
            let found = d.cache.as_ref().map(|c| if what == "key" { &c.keys } else { &c.values });
            let (past, present) = found.map_or((None, None), |c| (c.past.clone(), c.present.clone()));
            let expected = match config.cache {
                Caches::None => (None, None),
                Caches::Written => (None, name("present", what)),
                Caches::Kept => (name("past_key_values", what), name("present", what)),
            };
            assert_eq!((past, present), expected, "{label}");
        }
    }
}

/// Every attention of a model of the corpus; nothing may nearly be one.
fn described(folder: &str) -> Vec<Description> {
    let model = Model::read(&corpus().join(folder).join("model.onnx")).unwrap();
    let analysed = analyse(&model, None, &Options::default()).unwrap_or_else(|e| panic!("{folder}: {e:?}"));
    let found = attentions(&analysed.graph).into_iter();
    let found = found.map(|c| c.unwrap_or_else(|miss| panic!("{folder}: {miss:?}")));
    found.map(|a| describe(&analysed.graph, &a, &analysed.found)).collect()
}

#[test]
fn quotients_in_place_of_softmax_are_named() {
    for (folder, softmax, mask) in [
        ("gpt2-2relu-relu-affine", "2relu", "causal mask with attention_mask by addition"),
        ("llama-2relu-quad-affine", "2relu", "causal mask with attention_mask by addition"),
        ("llama-2quad", "2quad", "causal mask with attention_mask by where"),
    ] {
        let all = described(&format!("../approximations/{folder}"));
        assert_eq!(all.len(), 2, "{folder}");
        for d in all {
            assert_eq!((d.softmax.as_str(), d.mask.to_string().as_str(), d.heads), (softmax, mask, 4), "{folder}: {d}");
        }
    }
}

#[test]
fn every_attention_of_the_corpus_is_found_and_described() {
    let (mut text, mut wrong) = (String::new(), Vec::new());
    let folders = folders("");
    assert_eq!(folders.len(), 33);
    for folder in &folders {
        let all = described(folder);
        writeln!(text, "{folder}").unwrap();
        all.iter().for_each(|d| writeln!(text, "  {d}").unwrap());
        if std::panic::catch_unwind(|| check(folder, config(folder), &all)).is_err() {
            wrong.push(folder);
        }
    }
    assert_eq!(wrong, Vec::<&String>::new());
    insta::assert_snapshot!("attention-of-the-corpus", text);
}

#[test]
fn explain_shows_attention_as_text_and_json() {
    let model = Model::read(&corpus().join("llama-pair/base/model.onnx")).unwrap();
    let mut options = Options::default();
    let two_quad = Choice { pattern: Some("layers.3.*".into()), value: Softmax::TwoQuad };
    options.approximations.softmax.push(two_quad);
    let explained = explain(&model, None, &options).unwrap();
    let text = explained.to_string();
    let rest = "4 query heads over 2 key heads, head width 8";
    let mask = "causal mask with attention_mask by addition";
    for (layer, softmax) in [(2, ""), (3, "2quad in place of softmax, ")] {
        let line = format!(
            "attention: layer {layer}: grouped-query attention, {rest}, {softmax}{mask}, cache past_key_values.{layer}.key, \
             rotary\n"
        );
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["attention"].as_array().unwrap().len(), 4);
    assert_eq!(
        json["attention"][3],
        serde_json::json!({
            "layer": 3,
            "node": "/model/layers.3/self_attn/Softmax",
            "softmax": "2quad",
            "heads": 4,
            "key_value_heads": 2,
            "head_width": 8,
            "value_width": 8,
            "merged": 1,
            "scale": 0.353553,
            "cap": null,
            "bias": null,
            "mask": {
                "causal": true,
                "window": null,
                "given": ["attention_mask"],
                "other": false,
                "forms": ["addition"],
            },
            "rotary": 8,
            "cache": {
                "keys": {"past": "past_key_values.3.key", "present": "present.3.key"},
                "values": {"past": "past_key_values.3.value", "present": "present.3.value"},
            },
        })
    );
    assert_eq!(json["nodes"].as_array().unwrap().len(), explained.nodes.len());
}

/// Fused operators alone, their operands the inputs of a model: also those forms that no model of the corpus has.
#[test]
fn fused_operators_are_attention_too() {
    let mut text = String::new();
    for folder in folders("../operators") {
        let model = Model::read(&corpus().join(&folder).join("model.onnx")).unwrap();
        let Ok(analysed) = analyse(&model, None, &Options::default()) else { continue };
        for candidate in attentions(&analysed.graph) {
            let said = candidate.map(|a| describe(&analysed.graph, &a, &analysed.found).to_string());
            let said = said.unwrap_or_else(|miss| format!("near miss: {}", miss.why));
            writeln!(text, "{}: {said}", folder.trim_start_matches("../operators/")).unwrap();
        }
    }
    insta::assert_snapshot!("attention-of-operators", text);
}
