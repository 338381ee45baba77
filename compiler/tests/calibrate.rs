//! Calibration inputs from files.

use std::io::Write;
use std::path::{Path, PathBuf};

use ombra_compiler::onnx::Model;
use ombra_compiler::passes::approximate::Approximations;
use ombra_compiler::pipeline::{Options, analyse, compile};
use ombra_compiler::ranges::calibrate::{calibrate, complete_inputs};
use ombra_compiler::ranges::npz;
use ombra_compiler::ranges::token_text;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::AssumedRange;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

fn corpus(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    Model::read(&models.join(name).join("model.onnx")).unwrap()
}

/// A file of its own for one test, removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-calibrate-{name}-{}.npz", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is left to the system.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An array of 64-bit integers as a `.npy` file.
fn npy(shape: &str, values: &[i64]) -> Vec<u8> {
    let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), &data].concat()
}

fn archive(files: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn bounds_are_measured_on_the_given_inputs() {
    let model = corpus("gpt2-optimum-past");
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let file = Temporary::new("ids", &archive(&[("input_ids.npy", npy("(1, 5)", &[1, 2, 3, 4, 5]))], method));
        let set = npz::read(&file.0).unwrap();
        assert_eq!(set["input_ids"].as_i64().unwrap(), [1, 2, 3, 4, 5]);
        let graph = analyse(&model, None, &Options::default()).unwrap_or_else(|e| panic!("{e:?}")).graph;
        let all = complete_inputs(&graph, &set).unwrap();
        assert_eq!(all["attention_mask"].as_i64().unwrap(), [1; 5]);
        assert_eq!(all["position_ids"].as_i64().unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(all["past_key_values.0.key"].shape()[2], 0);
        let weights = |name: &str| ombra_compiler::import::load_weight(&model, name);
        let seen = calibrate(&graph, &weights, &[all]).unwrap();
        let logits = graph.outputs.iter().find(|o| o.name == "logits").unwrap().value;
        assert!(seen.ends[&logits].0 < seen.ends[&logits].1);
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let model = corpus("gpt2-optimum-past");
    let compiled = |files: &[(&str, Vec<u8>)]| {
        let file = Temporary::new(files[0].0, &archive(files, CompressionMethod::Stored));
        let options = Options { calibration: vec![npz::read(&file.0).unwrap()], ..Options::default() };
        compile(&model, None, &options).err().map(|e| e[0].code)
    };
    assert_eq!(compiled(&[("no_such_input.npy", npy("(1,)", &[1]))]), Some("E0531"));
    assert_eq!(compiled(&[("attention_mask.npy", npy("(1, 2)", &[1, 1]))]), Some("E0531"));
    assert!(compiled(&[("input_ids.npy", npy("(5,)", &[1; 5]))]).is_some(), "another rank");
}

#[test]
fn files_that_are_no_archives_of_arrays_are_errors() {
    let good = archive(&[("a.npy", npy("(1,)", &[1]))], CompressionMethod::Deflated);
    let cases: Vec<Vec<u8>> = vec![
        vec![],
        b"PK\x03\x04".to_vec(),
        good[..good.len() / 2].to_vec(),
        archive(&[("a.txt", vec![1])], CompressionMethod::Stored),
        archive(&[("a.npy", vec![1])], CompressionMethod::Stored),
    ];
    for (i, case) in cases.iter().enumerate() {
        let file = Temporary::new(&format!("bad-{i}"), case);
        assert_eq!(npz::read(&file.0).unwrap_err().code, "E0570", "{i}");
    }
    assert_eq!(npz::read(Path::new("no-such-file.npz")).unwrap_err().code, "E0570");
    let file = Temporary::new("good", &good);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&file.0, bytes).unwrap();
        // Some bytes mean nothing; what must hold is that every answer is an answer.
        if let Err(e) = npz::read(&file.0) {
            assert_eq!(e.code, "E0570", "byte {at}");
        }
    }
}

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/llama-trained/tokenizer.json")
}

/// What a plan of a model with softmax by squares assumes.
fn assumed(options: Options) -> Result<Vec<AssumedRange>, &'static str> {
    let approximations = Approximations { softmax: vec!["2quad".parse().unwrap()], ..Approximations::default() };
    let (model, base) = (corpus("llama-trained/frozen"), corpus("llama-trained/base"));
    let compiled = compile(&model, Some(&base), &Options { approximations, ..options });
    compiled.map(|c| c.plan.assumed).map_err(|e| e[0].code)
}

#[test]
fn text_is_measured_as_the_tokens_of_its_lines() {
    let text = "def add(a, b):\n\n    return a + b\n";
    let file = Temporary::new("text", text.as_bytes());
    let rows = token_text::read(&file.0, &tokenizer()).unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows.iter().all(|row| row.len() > 3), "{rows:?}");
    let sets = rows.iter().map(|row| [("input_ids".into(), Tensor::i64(&[1, row.len()], row.clone()).unwrap())].into());
    let by_tokens = assumed(Options { calibration: sets.collect(), ..Options::default() }).unwrap();
    let by_text = assumed(Options { calibration_rows: rows.clone(), ..Options::default() }).unwrap();
    assert!(!by_text.is_empty());
    assert_eq!(by_text, by_tokens);
    assert_ne!(by_text, assumed(Options::default()).unwrap(), "drawn tokens say something else");
    // A row that is longer than the model takes is cut.
    let most = 16;
    let sizes = ombra_compiler::import::Options { max: [("seq".to_string(), most)].into(), ..Default::default() };
    let long = vec![rows.concat().into_iter().cycle().take(40).collect::<Vec<_>>()];
    let cut = long[0].chunks(most as usize).map(<[i64]>::to_vec).collect();
    let of = |calibration_rows| assumed(Options { calibration_rows, sizes: sizes.clone(), ..Options::default() });
    assert_eq!(of(long.clone()).unwrap(), of(cut).unwrap());
}

#[test]
fn texts_that_do_not_fit_are_errors() {
    let read = |name: &str, bytes: &[u8], tokenizer: &Path| {
        let file = Temporary::new(name, bytes);
        token_text::read(&file.0, tokenizer).unwrap_err().to_string()
    };
    for (name, bytes, says) in [
        ("empty", &b""[..], "the text is empty"),
        ("blank", b" \n\n\t\n", "the text is empty"),
        ("bytes", b"def \xff\xfe", "byte 4 is not UTF-8"),
    ] {
        let error = read(name, bytes, &tokenizer());
        assert!(error.contains("E0533") && error.contains(says), "{error}");
    }
    for (name, bytes) in [("none", &b"{}"[..]), ("half", b"{\"model\": {\"type\": \"BPE\""), ("other", b"a text")] {
        let wrong = Temporary::new(&format!("tokenizer-{name}"), bytes);
        let error = read(name, b"def", &wrong.0);
        assert!(error.contains("E0533") && error.contains("this is no tokenizer"), "{error}");
    }
    let error = read("alone", b"def", Path::new("no-such-tokenizer.json"));
    assert!(error.contains("E0533") && error.contains("the file cannot be read"), "{error}");
    let error = token_text::read(Path::new("no-such-text.txt"), &tokenizer()).unwrap_err();
    assert_eq!(error.code, "E0533");
    for id in [1 << 40, -1, i64::MIN] {
        let rows = vec![vec![1, id]];
        assert_eq!(assumed(Options { calibration_rows: rows, ..Options::default() }), Err("E0532"), "token {id}");
    }
}

#[test]
fn a_model_without_tokens_takes_no_text() {
    let model =
        Model::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/exporters/patches/model.onnx")).unwrap();
    let options = Options { calibration_rows: vec![vec![1, 2, 3]], ..Options::default() };
    assert_eq!(compile(&model, None, &options).err().map(|e| e[0].code), Some("E0532"));
}

/// Compiles in a process of its own; gives whether it succeeded, and what it said.
fn run(name: &str, text: &Path, tokenizer: Option<&Path>) -> (bool, String) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/llama-trained");
    let out = std::env::temp_dir().join(format!("ombra-calibrate-{name}-{}", std::process::id()));
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ombra"));
    command.arg("compile").arg(models.join("frozen/model.onnx")).arg("--base").arg(models.join("base/model.onnx"));
    command.args(["--self-test", "0", "--calibrate-text"]).arg(text).arg("-o").arg(&out);
    if let Some(tokenizer) = tokenizer {
        command.arg("--tokenizer").arg(tokenizer);
    }
    let done = command.output().unwrap();
    let _ = std::fs::remove_dir_all(&out);
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn the_command_says_what_text_lacks_and_when_it_is_not_needed() {
    let file = Temporary::new("command", b"def main():\n");
    let (done, said) = run("without", &file.0, None);
    assert!(!done && said.contains("E0533") && said.contains("expected tokenizer.json"), "{said}");
    let (done, said) = run("proven", &file.0, Some(&tokenizer()));
    assert!(done && said.contains("--calibrate-text was not needed"), "{said}");
}
