//! The reader on models of the corpus, whole, damaged and made up.

use std::path::{Path, PathBuf};

use ombra_ir::Diagnostic;
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use protobuf::{Enum, MessageField};

use super::{Model, parse};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models").join(name)
}

/// A folder that is removed with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-reader-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("/{op}"),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..NodeProto::default()
    }
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), ..ValueInfoProto::default() }
}

fn model(nodes: Vec<NodeProto>) -> ModelProto {
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { version: 20, ..OperatorSetIdProto::default() }],
        graph: MessageField::some(GraphProto {
            node: nodes,
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn check(proto: ModelProto) -> Result<Model, Diagnostic> {
    Model::from_proto(proto, Path::new("m.onnx"))
}

fn code(proto: ModelProto) -> &'static str {
    check(proto).err().map_or("accepted", |d| d.code)
}

#[test]
fn corpus_models_are_read() {
    for (name, nodes, opset) in
        [("llama-trained/base", 276, 20), ("llama-pair/lora", 1275, 18), ("llama-torchscript-op17", 379, 17)]
    {
        let model = Model::read(&corpus(name).join("model.onnx")).unwrap();
        assert_eq!((model.graph().node.len(), model.opset()), (nodes, opset), "{name}");
    }
    let model = Model::read(&corpus("llama-trained/base/model.onnx")).unwrap();
    let embedding = model.initializer("model.model.embed_tokens.weight").unwrap();
    assert_eq!(super::shape(embedding).unwrap(), [320, 96]);
    assert_eq!(model.floats(embedding).unwrap().len(), 320 * 96);
    assert!(model.ints(embedding).unwrap_err().message.contains("FLOAT"));
    assert!(model.initializer("nothing").is_none());
}

#[test]
fn a_cut_file_is_one_error() {
    let bytes = std::fs::read(corpus("llama-torchscript-op17/model.onnx")).unwrap();
    for end in (0..bytes.len()).step_by(997) {
        let result = parse(&bytes[..end]).and_then(check);
        assert!(result.err().is_some_and(|d| !d.message.is_empty() && d.code.starts_with("E01")), "cut at {end}");
    }
}

#[test]
fn a_flipped_byte_never_panics() {
    let mut bytes = std::fs::read(corpus("llama-gqa-dynamo-op18/model.onnx")).unwrap();
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(1499).chain(0..200) {
        let mask = [0x01, 0x80, 0xff][at % 3];
        bytes[at] ^= mask;
        refused += usize::from(parse(&bytes).and_then(check).is_err());
        bytes[at] ^= mask;
    }
    assert!(refused > 20, "only {refused} damaged files were refused");
}

#[test]
fn absurd_lengths_are_refused_before_memory_is_taken() {
    let tensor = |dims: &[i64], raw: usize| TensorProto {
        name: "w".into(),
        dims: dims.to_vec(),
        data_type: DataType::FLOAT.value(),
        raw_data: vec![0; raw],
        ..TensorProto::default()
    };
    for bad in [tensor(&[1 << 39], 8), tensor(&[1 << 62, 4], 8), tensor(&[-2], 8), tensor(&[3], 8)] {
        let mut proto = model(vec![node("Neg", &["x"], &["y"])]);
        proto.graph.mut_or_insert_default().initializer.push(bad);
        let error = check(proto).err().unwrap();
        assert!(error.to_string().contains("m.onnx: tensor 'w'"), "{error}");
    }
    let mut bytes = model(vec![node("Neg", &["x"], &["y"])]).write_to_bytes().unwrap();
    bytes.extend([0x7a, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(parse(&bytes).unwrap_err().code, "E0102");
}

#[test]
fn graph_rules_have_their_errors() {
    assert_eq!(code(model(vec![node("Neg", &["x"], &["y"])])), "accepted");
    assert_eq!(code(model(vec![node("Neg", &["z"], &["y"])])), "E0106");
    assert_eq!(code(model(vec![node("Neg", &["x"], &["z"])])), "E0106");
    assert_eq!(code(model(vec![node("Neg", &["x"], &["y"]), node("Abs", &["x"], &["y"])])), "E0105");
    assert_eq!(code(model(vec![node("Neg", &["x"], &["x"])])), "E0105");
    assert_eq!(code(model(vec![node("Add", &["x", "z"], &["y"]), node("Neg", &["y"], &["z"])])), "E0107");
    let mut proto = model(vec![node("Neg", &["x"], &["y"])]);
    proto.graph = MessageField::none();
    assert_eq!(code(proto), "E0103");
    let mut proto = model(vec![node("Neg", &["x"], &["y"])]);
    proto.opset_import[0].version = 6;
    assert_eq!(code(proto), "E0104");
    assert_eq!(code(ModelProto::default()), "E0103");
    let mut proto = model(vec![node("f", &["x"], &["y"])]);
    proto.functions.push(FunctionProto {
        name: "f".into(),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![node("f", &["a"], &["b"])],
        ..FunctionProto::default()
    });
    assert_eq!(code(proto), "E0107");
}

#[test]
fn nodes_are_sorted_and_captures_of_subgraphs_count_as_inputs() {
    let branch = |name: &str, source: &str| AttributeProto {
        name: name.into(),
        g: MessageField::some(GraphProto {
            node: vec![node("Neg", &[source], &["inner"])],
            output: vec![value("inner")],
            ..GraphProto::default()
        }),
        ..AttributeProto::default()
    };
    let choice = NodeProto {
        attribute: vec![branch("then_branch", "late"), branch("else_branch", "x")],
        ..node("If", &["x"], &["y"])
    };
    let sorted = check(model(vec![choice.clone(), node("Abs", &["x"], &["late"])])).unwrap();
    let order: Vec<&str> = sorted.graph().node.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(order, ["Abs", "If"]);
    let error = check(model(vec![choice])).err().unwrap();
    assert!(error.message.contains("'late' is defined nowhere") && error.to_string().contains("'/If' (If)"), "{error}");
}

#[test]
fn external_data_stay_in_the_folder_of_the_model() {
    let folder = Folder::new("external");
    let outside = Folder::new("outside");
    std::fs::write(folder.0.join("data"), [1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat()).unwrap();
    std::fs::write(outside.0.join("data"), [0; 12]).unwrap();
    std::os::unix::fs::symlink(outside.0.join("data"), folder.0.join("link")).unwrap();
    let read = |location: &str, offset: &str, length: &str| {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
            ..StringStringEntryProto::default()
        };
        let mut proto = model(vec![node("Add", &["x", "w"], &["y"])]);
        proto.graph.mut_or_insert_default().initializer.push(TensorProto {
            name: "w".into(),
            dims: vec![2],
            data_type: DataType::FLOAT.value(),
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![entry("location", location), entry("offset", offset), entry("length", length)],
            ..TensorProto::default()
        });
        let path = folder.0.join("m.onnx");
        super::write_model(&proto, &path)?;
        let model = Model::read(&path)?;
        model.floats(model.initializer("w").unwrap())
    };
    assert_eq!(read("data", "4", "8").unwrap(), [2.0, 3.0]);
    assert_eq!(read("./data", "0", "8").unwrap(), [1.0, 2.0]);
    let absolute = outside.0.join("data");
    let cases = [
        ("../m", "0", "8", "E0110"),
        (absolute.to_str().unwrap(), "0", "8", "E0110"),
        ("link", "0", "8", "E0110"),
        ("", "0", "8", "E0112"),
        ("missing", "0", "8", "E0111"),
        (".", "0", "8", "E0111"),
        ("data", "8", "8", "E0112"),
        ("data", "18446744073709551615", "8", "E0112"),
        ("data", "-1", "8", "E0112"),
        ("data", "0", "12", "E0112"),
    ];
    for (location, offset, length, expected) in cases {
        assert_eq!(read(location, offset, length).unwrap_err().code, expected, "{location} {offset} {length}");
    }
}
