//! Owners by name: a pattern means a module, whatever names an exporter gave its weights.

mod common;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use common::{Folder, corpus};
use ombra_compiler::import::load_weight;
use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::pipeline::{Options, analyse, compile};
use ombra_compiler::secrecy::labels::{Label, Labels, Overrides, Owner, Reason, label};
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};

/// Exports of two layers, by exporter, and the word in front of a layer's number.
const EXPORTS: [(&str, &str); 14] = [
    ("llama-torchscript-op14-fixed", "layers"),
    ("llama-torchscript-op17", "layers"),
    ("llama-optimum-1.10", "layers"),
    ("mistral-optimum", "layers"),
    ("qwen2-optimum-past", "layers"),
    ("opt-optimum-past", "layers"),
    ("llama-gqa-ort-extended", "layers"),
    ("llama-gqa-genai", "layers"),
    ("llama-gqa-dynamo-op18", "layers"),
    ("llama-gqa-dynamo-op23", "layers"),
    ("llama-dynamo-op20-fixed-ids", "layers"),
    ("gpt2-torchscript-op13-fixed", "h"),
    ("gpt2-optimum-past", "h"),
    ("gpt2-dynamo-op20-cached", "h"),
];
/// Token ids of these models.
const VOCABULARY: usize = 112;
/// Bytes of a piece that is searched for.
const PIECE: usize = 16;

fn options(private: &[String]) -> Options {
    let overrides = Overrides { public: vec!["*".into()], private: private.to_vec(), ..Overrides::default() };
    Options { overrides, ..Options::default() }
}

fn labels(model: &Model, private: &[String]) -> Labels {
    analyse(model, None, &options(private)).unwrap_or_else(|e| panic!("{private:?}: {e:?}")).labels
}

/// Weights of an owner: what is no structure.
fn weights(labels: &Labels, owner: Owner) -> Vec<&Label> {
    labels.tensors.iter().filter(|l| l.owner == owner && l.reason != Reason::Structure).collect()
}

fn names(labels: &Labels, owner: Owner) -> BTreeSet<&str> {
    weights(labels, owner).into_iter().map(|l| l.name.as_str()).collect()
}

fn parameters(labels: &Labels) -> usize {
    weights(labels, Owner::Private).iter().map(|l| l.elements()).sum()
}

/// Neighbours in rows of `values` that say something, as they are stored.
fn pieces(values: &[f32]) -> impl Iterator<Item = [u8; PIECE]> {
    values.windows(4).filter(|w| w.iter().map(|v| v.to_bits()).collect::<BTreeSet<_>>().len() >= 3).map(|w| {
        let mut piece = [0; PIECE];
        piece.iter_mut().zip(w.iter().flat_map(|v| v.to_le_bytes())).for_each(|(to, from)| *to = from);
        piece
    })
}

/// Every run of bytes in the files of `folder`.
fn contents(folder: &Path) -> HashSet<[u8; PIECE]> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        found.extend(bytes.windows(PIECE).filter_map(|piece| <[u8; PIECE]>::try_from(piece).ok()));
    }
    found
}

/// The pattern of the README, for one layer: nothing of that layer is written to `public/`, and the other layer is.
#[test]
fn no_exporters_names_publish_a_layer_that_a_pattern_makes_private() {
    for (name, word) in EXPORTS {
        let model = corpus(name);
        let pattern = |layer: u32| format!("*{word}.{layer}*");
        // Both layers are alike, and all that is outside of them are embeddings, the final norm and the head.
        let [first, second] = [0, 1].map(|layer| labels(&model, &[pattern(layer)]));
        assert!(parameters(&first) > 0, "{name}");
        assert_eq!(parameters(&first), parameters(&second), "{name}");
        assert!(names(&first, Owner::Private).is_disjoint(&names(&second, Owner::Private)), "{name}");
        let both = labels(&model, &[pattern(0), pattern(1)]);
        let outside = weights(&both, Owner::Public);
        let (vectors, tables): (Vec<&Label>, Vec<&Label>) = outside.into_iter().partition(|l| l.shape.len() == 1);
        assert!(vectors.len() <= 2, "{name}: {vectors:?}");
        let embedded =
            |l: &&Label| l.shape.contains(&VOCABULARY) || l.name.contains("wpe") || l.name.contains("position");
        assert!(tables.iter().all(embedded), "{name}: {tables:?}");

        let mut compiled = compile(&model, None, &options(&[pattern(1)])).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let folder = Folder::new(&format!("patterns-{name}"));
        output::write(&mut compiled, &model, &[], &folder.0).unwrap_or_else(|e| panic!("{name}: {e}"));
        let public = contents(&folder.0.join("public"));
        let tensor = |label: &Label| load_weight(&model, &label.name).unwrap().as_f32().unwrap().to_vec();
        for label in weights(&second, Owner::Private) {
            let leaked = pieces(&tensor(label)).filter(|piece| public.contains(piece)).count();
            assert_eq!(leaked, 0, "{name}: `{}` stands in public", label.name);
        }
        let found =
            weights(&first, Owner::Private).into_iter().filter(|l| pieces(&tensor(l)).any(|p| public.contains(&p)));
        assert!(found.count() > 0, "{name}: the search finds nothing");
    }
}

/// `model` as it would be if its exporter had kept names of parameters alone.
fn without_names(model: &Model) -> Model {
    let mut proto = model.proto.clone();
    let graph = proto.graph.mut_or_insert_default();
    let kept: BTreeSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut count = 0;
    for node in &mut graph.node {
        node.name.clear();
        node.metadata_props.clear();
        for name in node.output.iter_mut().filter(|n| !n.is_empty() && !kept.contains(*n)) {
            count += 1;
            renamed.insert(name.clone(), format!("{count}"));
        }
    }
    let rename = |name: &mut String| {
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        }
    };
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
    }
    graph.value_info.clear();
    Model::from_proto(proto, &model.path).unwrap()
}

#[test]
fn a_layer_that_names_show_in_part_is_refused() {
    let model = without_names(&corpus("llama-torchscript-op17"));
    let mut options = options(&["*layers.1*".into()]);
    let errors = analyse(&model, None, &options).err().unwrap();
    assert_eq!((errors.len(), errors[0].code), (1, "E0152"), "{errors:?}");
    assert!(errors[0].message.starts_with("layer 1 would be public in part"), "{}", errors[0]);
    assert!(errors[0].notes.iter().any(|n| n.contains("`onnx::MatMul_")), "{}", errors[0]);
    options.overrides.partly_public = true;
    let labels = analyse(&model, None, &options).unwrap_or_else(|e| panic!("{e:?}")).labels;
    assert!(!weights(&labels, Owner::Private).is_empty());
    // What the base has is public by content, whatever names say.
    options.overrides = Overrides { private: vec!["*layers.1*".into()], ..Overrides::default() };
    assert!(analyse(&model, Some(&model), &options).is_ok());
}

#[test]
fn a_public_pattern_needs_every_use_and_a_private_one_needs_one() {
    let product = |name: &str, input: &str, output: &str| NodeProto {
        name: name.into(),
        op_type: "MatMul".into(),
        input: vec![input.into(), "val_9".into()],
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let data = (0..16).map(|i| i as f32).collect();
    let weight = TensorProto {
        name: "val_9".into(),
        dims: vec![4, 4],
        data_type: 1,
        float_data: data,
        ..TensorProto::default()
    };
    let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
    let graph = GraphProto {
        input: vec![value("x")],
        initializer: vec![weight],
        node: vec![product("/first/MatMul", "x", "t"), product("/second/MatMul", "t", "y")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: 18, ..OperatorSetIdProto::default() }];
    let proto = ModelProto { ir_version: 8, opset_import, graph: Some(graph).into(), ..ModelProto::default() };
    let model = Model::from_proto(proto, Path::new("m.onnx")).unwrap();
    let owner = |public: &str, private: &[&str]| {
        let private = private.iter().map(|s| s.to_string()).collect();
        let overrides = Overrides { public: vec![public.into()], private, ..Overrides::default() };
        label(&model, None, &overrides).unwrap_or_else(|e| panic!("{e}")).get("val_9").unwrap().owner
    };
    assert_eq!(owner("val_9", &[]), Owner::Public);
    assert_eq!(owner("*first*", &[]), Owner::Private);
    assert_eq!(owner("*MatMul", &[]), Owner::Public);
    assert_eq!(owner("*", &["second.*"]), Owner::Private);
}
