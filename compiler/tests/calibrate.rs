//! Calibration inputs from files.

use std::io::Write;
use std::path::{Path, PathBuf};

use ombra_compiler::calibrate::{calibrate, complete_inputs};
use ombra_compiler::npz;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, analyse, compile};
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
