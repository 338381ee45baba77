//! Labels of the tuned models of the corpus against the parameters that were really trained.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use ombra_compiler::onnx::Model;
use ombra_compiler::secrecy::labels::{Labels, Overrides, Owner, Reason, label};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{ModelProto, TensorProto};
use protobuf::Enum;

const TUNED: [(&str, &str); 10] = [
    ("llama-trained/base", "llama-trained/frozen"),
    ("llama-trained/base", "llama-trained/frozen-headmerge"),
    ("llama-trained/base", "llama-trained/full"),
    ("llama-trained/base", "llama-trained/lora"),
    ("llama-pair/base", "llama-pair/frozen"),
    ("llama-pair/base", "llama-pair/full"),
    ("llama-pair/base", "llama-pair/lora"),
    ("gpt2-pair/base", "gpt2-pair/frozen"),
    ("gpt2-pair/base", "gpt2-pair/full"),
    ("gpt2-pair/base", "gpt2-pair/lora"),
];

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models").join(name)
}

fn model(name: &str) -> Model {
    Model::read(&folder(name).join("model.onnx")).unwrap()
}

/// The true owners by tensor name.
fn truth(name: &str) -> BTreeMap<String, Owner> {
    let text = std::fs::read_to_string(folder(name).join("labels.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let owner = |label: &str| if label == "private" { Owner::Private } else { Owner::Public };
    let row = |t: &serde_json::Value| (t["tensor"].as_str().unwrap().to_owned(), owner(t["label"].as_str().unwrap()));
    json["tensors"].as_array().unwrap().iter().map(row).collect()
}

/// Labels of tensors of two elements or more.
fn owners(labels: &Labels) -> BTreeMap<String, Owner> {
    let weights = labels.tensors.iter().filter(|l| l.shape.iter().product::<usize>() > 1);
    weights.map(|l| (l.name.clone(), l.owner)).collect()
}

fn by_content(tuned: &Model, base: &Model) -> Labels {
    label(tuned, Some(base), &Overrides::default()).unwrap()
}

/// The initializers of `name` and the tensors of its `Constant` nodes changed by `change`.
fn changed(name: &str, change: impl Fn(&mut TensorProto)) -> Model {
    let mut proto: ModelProto = model(name).proto;
    let graph = proto.graph.mut_or_insert_default();
    graph.initializer.iter_mut().for_each(&change);
    graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut()).for_each(&change);
    Model::from_proto(proto, Path::new("changed.onnx")).unwrap()
}

/// `name` with its single-precision tensors rounded to `kind`.
fn rounded(name: &str, kind: DataType) -> Model {
    changed(name, |tensor| {
        if tensor.data_type == DataType::FLOAT.value() {
            tensor.data_type = kind.value();
            let values = tensor.raw_data.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w));
            tensor.raw_data = match kind {
                DataType::FLOAT16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
                DataType::BFLOAT16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
                other => panic!("{other:?} is not narrower"),
            };
        }
    })
}

#[test]
fn every_tuned_model_gets_its_true_labels() {
    for (base, tuned) in TUNED {
        assert_eq!(owners(&by_content(&model(tuned), &model(base))), truth(tuned), "{tuned}");
    }
}

#[test]
fn a_model_is_all_public_beside_itself_and_all_private_alone() {
    for (name, _) in [TUNED[0], TUNED[4], TUNED[7]] {
        let (one, other) = (model(name), model(name));
        assert!(by_content(&one, &other).tensors.iter().all(|l| l.owner == Owner::Public), "{name}");
        let alone = label(&one, None, &Overrides::default()).unwrap();
        assert!(owners(&alone).values().all(|owner| *owner == Owner::Private), "{name}");
    }
}

#[test]
fn another_exporter_and_another_seed_are_told_apart() {
    let (dynamo, optimum) = (model("gpt2-dynamo-op20-cached"), model("gpt2-optimum-past"));
    for (tuned, base) in [(&dynamo, &optimum), (&optimum, &dynamo)] {
        let labels = by_content(tuned, base);
        let private: Vec<_> = labels.tensors.iter().filter(|l| l.owner == Owner::Private).collect();
        assert!(private.is_empty(), "{private:?}");
    }
}

/// `name` in single precision as it comes back from a file in `kind`.
fn stored_in(name: &str, kind: DataType) -> Model {
    changed(name, |tensor| {
        if tensor.data_type == DataType::FLOAT.value() {
            let values = tensor.raw_data.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w));
            tensor.raw_data = match kind {
                DataType::FLOAT16 => values.flat_map(|v| f16::from_f32(v).to_f32().to_le_bytes()).collect(),
                DataType::BFLOAT16 => values.flat_map(|v| bf16::from_f32(v).to_f32().to_le_bytes()).collect(),
                other => panic!("{other:?} is not narrower"),
            };
        }
    })
}

#[test]
fn what_a_conversion_makes_of_the_base_is_public() {
    for (base, tuned) in [TUNED[0], TUNED[3], TUNED[6], TUNED[7]] {
        let truth = truth(tuned);
        for kind in [DataType::FLOAT16, DataType::BFLOAT16] {
            let [narrow, narrow_base] = [tuned, base].map(|name| rounded(name, kind));
            let stored = stored_in(tuned, kind);
            for (what, tuned_model, base_model) in [
                ("narrow model, wide base", &narrow, &model(base)),
                ("narrow both", &narrow, &narrow_base),
                ("wide model of narrow values, narrow base", &stored, &narrow_base),
                ("wide model of narrow values, wide base", &stored, &model(base)),
            ] {
                let labels = by_content(tuned_model, base_model);
                assert_eq!(owners(&labels), truth, "{tuned} in {kind:?}: {what}");
                assert!(!labels.summary().contains("rounded to its element type"), "{}", labels.summary());
            }
        }
    }
}

#[test]
fn digits_that_a_narrower_base_does_not_have_stay_private_and_are_counted() {
    let (base, tuned) = TUNED[0];
    let labels = by_content(&model(tuned), &rounded(base, DataType::FLOAT16));
    let truth = truth(tuned);
    let matrices = || labels.tensors.iter().filter(|l| l.shape.len() == 2 && truth[&l.name] == Owner::Public);
    assert!(matrices().count() > 10);
    assert!(matrices().all(|l| (l.owner, l.reason) == (Owner::Private, Reason::Digits)));
    let beyond = labels.tensors.iter().filter(|l| l.owner == Owner::Public && l.elements() > 1);
    assert!(beyond.clone().all(|l| truth[&l.name] == Owner::Public));
    let summary = labels.summary();
    assert!(summary.contains("would be in the base if they were rounded to its element type"), "{summary}");
}

#[test]
fn a_base_of_another_model_is_noticed() {
    let summary = by_content(&model("llama-trained/base"), &model("gpt2-pair/base")).summary();
    assert!(summary.contains("warning: nothing of the base was found"), "{summary}");
}

#[test]
fn digits_beyond_the_base_stay_private_in_vectors() {
    let vector = |t: &mut TensorProto| {
        if t.name == "model.model.norm.weight" {
            t.raw_data = [1.0f32 + 1e-5; 96].map(f32::to_le_bytes).concat();
        }
    };
    let (tuned, base) = (changed("llama-trained/base", vector), rounded("llama-trained/base", DataType::FLOAT16));
    assert_eq!(by_content(&tuned, &base).get("model.model.norm.weight").unwrap().owner, Owner::Private);
}

#[test]
fn one_flipped_bit_makes_a_tensor_private() {
    let name = "llama-trained/base";
    let base = model(name);
    let names: Vec<String> = owners(&by_content(&base, &base)).into_keys().collect();
    for target in names.iter().step_by(5) {
        let tuned = changed(name, |t| {
            if t.name == *target {
                let middle = t.raw_data.len() / 2;
                t.raw_data[middle] ^= 1;
            }
        });
        for l in by_content(&tuned, &base).tensors {
            let expected = if l.name == *target { Owner::Private } else { Owner::Public };
            assert_eq!(l.owner, expected, "{}", l.name);
        }
    }
}

#[test]
fn parts_of_the_base_are_known_in_other_arrangements() {
    let base = model("gpt2-pair/base");
    let raw = |name: &str| base.bytes(base.initializer(name).unwrap()).unwrap().into_owned();
    let single = |name: &str, dims: &[i64], raw_data: Vec<u8>| TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::FLOAT.value(),
        raw_data,
        ..TensorProto::default()
    };
    let bias = raw("model.transformer.h.0.attn.c_attn.bias");
    let norm = raw("model.transformer.h.1.ln_1.weight");
    let positions = raw("model.transformer.wpe.weight");
    let columns = raw("model.transformer.h.0.attn.c_attn.weight");
    let keys: Vec<u8> = columns.chunks(120 * 4).flat_map(|row| row[40 * 4..80 * 4].to_vec()).collect();
    let mut strange = bias.clone();
    strange.extend([0.125f32; 7].map(f32::to_le_bytes).concat());
    let mut proto = base.proto.clone();
    let graph = proto.graph.mut_or_insert_default();
    graph.initializer.extend([
        single("packed", &[160], [bias.clone(), norm.clone()].concat()),
        single("table", &[1, 10, 40], positions[..10 * 40 * 4].to_vec()),
        single("keys", &[40, 40], keys),
        single("strange", &[127], strange),
        single("wide", &[1, 40, 1], norm.clone()),
        single("scale", &[], 0.5f32.to_le_bytes().to_vec()),
    ]);
    let tuned = Model::from_proto(proto, Path::new("rearranged.onnx")).unwrap();
    let labels = by_content(&tuned, &base);
    for (name, owner, why) in [
        ("packed", Owner::Public, "is a sequence of vectors of the base"),
        ("table", Owner::Public, "every row is a row or column of the base"),
        ("keys", Owner::Public, "every column is a row or column of the base"),
        ("wide", Owner::Public, "equals 'model.transformer.h.1.ln_1.weight' of the base"),
        ("strange", Owner::Private, "its content is not in the base"),
        ("scale", Owner::Public, "has at most one element and is part of the structure"),
    ] {
        let l = labels.get(name).unwrap();
        assert_eq!((l.owner, l.why.as_str()), (owner, why), "{name}");
    }
}

#[test]
fn overrides_decide_in_their_order() {
    let (base, tuned) = (model("llama-trained/base"), model("llama-trained/lora"));
    let overrides = Overrides {
        public: vec!["model.*.norm.weight".into(), "*inv_freq".into()],
        private: vec!["*norm.weight".into()],
        structure: ["model.base_model.model.model.embed_tokens.weight".into()].into(),
        ..Overrides::default()
    };
    let labels = label(&tuned, None, &overrides).unwrap();
    let owner = |name: &str| labels.get(&format!("model.base_model.model.model.{name}")).unwrap().owner;
    assert_eq!(owner("norm.weight"), Owner::Private);
    assert_eq!(owner("rotary_emb.inv_freq"), Owner::Public);
    assert_eq!(owner("embed_tokens.weight"), Owner::Public);
    let unmatched = Overrides { private: vec!["lm_haed*".into()], ..Overrides::default() };
    assert_eq!(label(&tuned, Some(&base), &unmatched).unwrap_err().code, "E0151");
    let broken = Overrides { public: vec!["[".into()], ..Overrides::default() };
    assert_eq!(label(&tuned, Some(&base), &broken).unwrap_err().code, "E0150");
}

#[test]
fn labels_name_the_module_that_uses_a_weight() {
    let (base, tuned) = (model("llama-trained/base"), model("llama-trained/lora"));
    let labels = by_content(&tuned, &base);
    let adapters: Vec<&str> = labels
        .tensors
        .iter()
        .filter(|l| l.owner == Owner::Private)
        .map(|l| l.readable.as_deref().unwrap_or_default())
        .collect();
    assert_eq!(adapters.len(), 56);
    assert!(adapters.iter().all(|name| name.contains(".lora_")), "{adapters:?}");
    let torchscript = by_content(&model("llama-pair/frozen"), &model("llama-pair/base"));
    let private = torchscript.tensors.iter().find(|l| l.name.starts_with("onnx::") && l.owner == Owner::Private);
    assert!(private.unwrap().readable.as_deref().unwrap().contains("/layers."));
}
