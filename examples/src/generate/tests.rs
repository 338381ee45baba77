//! Generated models are read, labelled and run: a prefill and a decode over its cache give what one longer prefill gives.

use std::path::{Path, PathBuf};

use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::Pass;
use ombra_compiler::pipeline::{self, Options};
use ombra_compiler::savings::savings;
use ombra_compiler::secrecy::labels::{Overrides, Owner, label};
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};
use onnx_protobuf::{Message, TensorProto};

use super::{Bert, Gpt2, Llama, Seeds, write_bert, write_gpt2, write_llama};

const VOCABULARY: usize = 50;

/// A folder that is removed with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-generate-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn gpt2(path: &Path, seeds: Seeds) -> Model {
    let sizes = Gpt2 { layers: 3, hidden: 24, heads: 3, vocab: VOCABULARY, positions: 16, seeds };
    write_gpt2(&sizes, path).unwrap();
    Model::read(path).unwrap()
}

fn llama(path: &Path, kv_heads: usize, seeds: Seeds) -> Model {
    let sizes =
        Llama { layers: 3, hidden: 24, heads: 4, kv_heads, ff: 40, vocab: VOCABULARY, seeds, ..Llama::default() };
    write_llama(&sizes, path).unwrap();
    Model::read(path).unwrap()
}

/// A cache, or any list of tensors.
type Tensors = Vec<(Vec<usize>, Vec<f32>)>;

/// Runs tokens `from..to` of two rows over `cache`; returns logits and the new cache, as far as `model` has them. The first
/// token of the second row is padding.
fn step(model: &PlaintextModel, cache: &Tensors, from: usize, to: usize) -> Tensors {
    let new = to - from;
    let token = |row: usize, at: usize| ((7 * at + 13 * row + 3) % VOCABULARY) as i64;
    let both = |value: &dyn Fn(usize, usize) -> i64, range: std::ops::Range<usize>| -> Vec<i64> {
        (0..2).flat_map(|row| range.clone().map(move |at| (row, at))).map(|(row, at)| value(row, at)).collect()
    };
    let ids = both(&token, from..to);
    let mask = both(&|row, at| i64::from(row == 0 || at > 0), 0..to);
    let positions = both(&|row, at| at.saturating_sub(row) as i64, from..to);
    let (shape, all) = ([2, new], [2, to]);
    let mut inputs = vec![
        ("input_ids".to_owned(), PlainInput { shape: &shape, elements: PlainElements::I64(&ids) }),
        ("attention_mask".to_owned(), PlainInput { shape: &all, elements: PlainElements::I64(&mask) }),
        ("position_ids".to_owned(), PlainInput { shape: &shape, elements: PlainElements::I64(&positions) }),
    ];
    let mut outputs = vec!["logits".to_owned()];
    for (i, (shape, values)) in cache.iter().enumerate() {
        let (layer, part) = (i / 2, ["key", "value"][i % 2]);
        let elements = PlainElements::F32(values);
        inputs.push((format!("past_key_values.{layer}.{part}"), PlainInput { shape, elements }));
        outputs.push(format!("present.{layer}.{part}"));
    }
    let (known, made) = (model.inputs(), model.outputs());
    let inputs = inputs.iter().map(|(name, input)| (name.as_str(), *input));
    let inputs: Vec<_> = inputs.filter(|(name, _)| known.contains(name)).collect();
    let outputs: Vec<_> = outputs.iter().map(String::as_str).filter(|name| made.contains(name)).collect();
    model.run(&inputs, &outputs).unwrap()
}

/// The model as the library for plaintext reads it, weights inside.
fn loaded(model: &Model) -> PlaintextModel {
    let mut proto = model.proto.clone();
    for tensor in &mut proto.graph.as_mut().unwrap().initializer {
        let raw_data = model.bytes(tensor).unwrap().into_owned();
        let (name, dims, data_type) = (tensor.name.clone(), tensor.dims.clone(), tensor.data_type);
        *tensor = TensorProto { name, dims, data_type, raw_data, ..TensorProto::default() };
    }
    PlaintextModel::load(proto.write_to_bytes().unwrap()).unwrap().with_threads(1)
}

/// Checks that steps over the cache give the logits of one run, and that these are of a sensible size.
fn check_cache(model: &Model, heads: usize, head: usize) {
    let names: Vec<&str> = model.graph().output.iter().map(|v| v.name.as_str()).collect();
    let plain = loaded(model);
    let empty: Tensors = vec![(vec![2, heads, 0, head], vec![]); names.len() - 1];
    let whole = step(&plain, &empty, 0, 6);
    let mut parts = step(&plain, &empty, 0, 3);
    let mut logits = vec![parts.remove(0)];
    for (from, to) in [(3, 5), (5, 6)] {
        parts = step(&plain, &parts, from, to);
        logits.push(parts.remove(0));
    }
    let (shape, expected) = &whole[0];
    assert_eq!(shape, &[2, 6, VOCABULARY]);
    let row = |values: &[f32], width: usize, row: usize, at: usize| -> Vec<f32> {
        values[(row * width + at) * VOCABULARY..][..VOCABULARY].to_vec()
    };
    for r in 0..2 {
        let stepped =
            logits.iter().flat_map(|(shape, values)| (0..shape[1]).map(move |at| row(values, shape[1], r, at)));
        for (at, found) in stepped.enumerate().skip(r) {
            let error = found.iter().zip(row(expected, 6, r, at)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-3, "row {r}, token {at}: {error}");
        }
    }
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 1e-3 && largest < 100.0, "the largest logit is {largest}");
    let is_padding = |i: usize| i >= heads * 6 * head && (i / head).is_multiple_of(6);
    for (i, (found, expected)) in parts.iter().zip(&whole[1..]).enumerate() {
        assert_eq!(found.0, [2, heads, 6, head], "cache {i}");
        let errors = found.1.iter().zip(&expected.1).map(|(a, b)| (a - b).abs()).enumerate();
        let error = errors.filter(|(at, _)| !is_padding(*at)).map(|(_, error)| error).fold(0.0, f32::max);
        assert!(error < 1e-3, "cache {i}: {error}");
    }
}

#[test]
fn gpt2_steps_like_it_runs() {
    let folder = Folder::new("gpt2");
    check_cache(&gpt2(&folder.0.join("m.onnx"), Seeds::default()), 3, 8);
}

#[test]
fn llama_steps_like_it_runs_with_grouped_and_single_heads() {
    let folder = Folder::new("llama");
    for kv_heads in [2, 4] {
        check_cache(&llama(&folder.0.join("m.onnx"), kv_heads, Seeds::default()), kv_heads, 6);
    }
}

#[test]
fn llama_steps_like_it_runs_with_adapters_and_merged_heads() {
    let folder = Folder::new("forms");
    let path = folder.0.join("m.onnx");
    let sizes = Llama {
        layers: 3,
        hidden: 24,
        heads: 4,
        kv_heads: 4,
        ff: 40,
        vocab: VOCABULARY,
        lora: Some(2),
        merged: 2,
        ..Llama::default()
    };
    write_llama(&sizes, &path).unwrap();
    check_cache(&Model::read(&path).unwrap(), 2, 12);
    let refused = write_llama(&Llama { kv_heads: 2, ..sizes }, &path).unwrap_err();
    assert_eq!(refused.code, "E0900", "merged heads have keys of their own");
}

#[test]
fn qwen2_steps_like_it_runs() {
    let folder = Folder::new("qwen2");
    let path = folder.0.join("m.onnx");
    let sizes = Llama {
        layers: 3,
        hidden: 24,
        heads: 4,
        kv_heads: 2,
        ff: 40,
        vocab: VOCABULARY,
        tied: true,
        biases: true,
        ..Llama::default()
    };
    write_llama(&sizes, &path).unwrap();
    let model = Model::read(&path).unwrap();
    let biases = model.graph().initializer.iter().filter(|t| t.name.ends_with("_proj.bias")).count();
    assert_eq!(biases, 3 * sizes.layers);
    assert!(model.graph().initializer.iter().all(|t| t.name != "lm_head.weight"));
    check_cache(&model, 2, 6);
}

/// Padding changes nothing of a row, and tokens do.
#[test]
fn bert_reads_rows_with_padding() {
    let folder = Folder::new("bert");
    let path = folder.0.join("m.onnx");
    let sizes =
        Bert { layers: 2, hidden: 24, heads: 3, vocab: VOCABULARY, positions: 16, classes: 3, seeds: Seeds::default() };
    write_bert(&sizes, &path).unwrap();
    let plain = loaded(&Model::read(&path).unwrap());
    let logits = |tokens: &[i64], padding: usize| {
        let padded = |values: &[i64]| [values, &vec![0; padding]].concat();
        let rows = [padded(tokens), padded(&vec![1; tokens.len()]), padded(&vec![0; tokens.len()])];
        let shape = [1, rows[0].len()];
        let inputs: Vec<_> = ["input_ids", "attention_mask", "token_type_ids"]
            .iter()
            .zip(&rows)
            .map(|(name, row)| (*name, PlainInput { shape: &shape, elements: PlainElements::I64(row) }))
            .collect();
        let (shape, logits) = plain.run(&inputs, &["logits"]).unwrap().remove(0);
        assert_eq!(shape, [1, 3]);
        logits
    };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let row = logits(&[3, 1, 4, 1, 5], 0);
    assert!(distance(&row, &logits(&[3, 1, 4, 1, 5], 4)) < 1e-5);
    assert!(distance(&row, &logits(&[3, 1, 4, 1, 9], 0)) > 1e-4);
    assert!(row.iter().all(|v| v.abs() < 100.0));
    assert_eq!(write_bert(&Bert { heads: 5, ..sizes }, &path).unwrap_err().code, "E0900");
}

#[test]
fn a_model_without_weights_has_their_entries_alone() {
    let folder = Folder::new("entries");
    let path = folder.0.join("m.onnx");
    let sizes = Llama { layers: 1, hidden: 24, heads: 4, kv_heads: 4, ff: 40, vocab: VOCABULARY, ..Llama::default() };
    write_llama(&sizes, &path).unwrap();
    let whole = Model::read(&path).unwrap();
    let empty = folder.0.join("n.onnx");
    let seeds = Seeds { no_weights: true, ..Seeds::default() };
    write_llama(&Llama { seeds, ..sizes }, &empty).unwrap();
    assert!(!folder.0.join("n.onnx.data").exists());
    let model = Model::read_for_costs(&empty).unwrap();
    let shapes = |model: &Model| -> Vec<_> {
        model.graph().initializer.iter().map(|t| (t.name.clone(), t.dims.clone(), t.data_type)).collect()
    };
    assert_eq!(shapes(&model), shapes(&whole));
    assert_eq!(model.absent().len(), 1);
}

#[test]
fn a_tuned_variant_differs_in_its_layers_alone() {
    let folder = Folder::new("tuned");
    let tuned = Seeds { tuned_from: Some(2), ..Seeds::default() };
    let (base_path, tuned_path) = (folder.0.join("base.onnx"), folder.0.join("tuned.onnx"));
    let pairs = [
        (gpt2(&base_path, Seeds::default()), gpt2(&tuned_path, tuned)),
        (llama(&folder.0.join("lb.onnx"), 2, Seeds::default()), llama(&folder.0.join("lt.onnx"), 2, tuned)),
    ];
    for (base, tuned) in &pairs {
        for l in label(tuned, Some(base), &Overrides::default()).unwrap().tensors {
            let own = [".h.2.", ".layers.2.", "ln_f", "model.norm"].iter().any(|part| l.name.contains(part));
            let head = l.name == "lm_head.weight" && l.shape[0] == 24;
            assert_eq!(l.owner == Owner::Private, own || head, "{}", l.name);
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let path = Path::new("unwritten.onnx");
    for sizes in [Gpt2 { heads: 7, ..Gpt2::default() }, Gpt2 { layers: 0, ..Gpt2::default() }] {
        assert_eq!(write_gpt2(&sizes, path).unwrap_err().code, "E0900");
    }
    for sizes in [Llama { kv_heads: 5, ..Llama::default() }, Llama { hidden: 36, ..Llama::default() }] {
        assert_eq!(write_llama(&sizes, path).unwrap_err().code, "E0900");
    }
    assert!(!path.exists());
}

/// A model of 1.25 million parameters whose last layers are tuned: no pass makes a step costlier, and together they save.
#[test]
fn every_pass_saves_on_a_layer_frozen_model() {
    let folder = Folder::new("savings");
    let model = |name: &str, tuned_from: Option<usize>, kv_heads: usize| {
        let seeds = Seeds { tuned_from, ..Seeds::default() };
        let sizes =
            Llama { layers: 4, hidden: 128, heads: 4, kv_heads, ff: 352, vocab: 2000, seeds, ..Llama::default() };
        let path = folder.0.join(name);
        write_llama(&sizes, &path).unwrap();
        Model::read(&path).unwrap()
    };
    for (tuned_from, kv_heads) in [(1, 2), (3, 4)] {
        let base = model("base.onnx", None, kv_heads);
        let tuned = model("tuned.onnx", Some(tuned_from), kv_heads);
        let options = Options::default();
        let plan = pipeline::compile(&tuned, Some(&base), &options).unwrap_or_else(|e| panic!("{e:?}")).plan;
        let saved = savings(&tuned, Some(&base), &options, &plan).unwrap_or_else(|e| panic!("{e:?}"));
        // The naive program and every pass; roles stay fixed by default.
        assert_eq!(saved.len(), Pass::ALL.len());
        let total = |at: usize| saved[at].steps.iter().map(|step| step.total_bytes()).sum::<u64>();
        assert!(2 * total(saved.len() - 1) < total(0), "{} of {}", total(saved.len() - 1), total(0));
    }
}
