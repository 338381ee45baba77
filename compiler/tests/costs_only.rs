//! Models without their weights: what is read, what compiles, and that it costs what the whole model costs.

mod common;

use common::{Folder, corpus};
use ombra_compiler::inspect::{By, inspect};
use ombra_compiler::onnx::{ABSENT, Model, write_model};
use ombra_compiler::output;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_compiler::secrecy::labels::{Overrides, Owner, label};
use ombra_ir::folder;
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::{ModelProto, StringStringEntryProto};
use protobuf::Enum;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors with more elements than this go into the data file.
const INSIDE: i64 = 64;
/// The data file that is never written.
const DATA: &str = "model.onnx.data";

/// `model` with its large floating tensors in a data file.
fn external(model: &Model) -> ModelProto {
    let mut proto = model.proto.clone();
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
    let mut offset = 0;
    for tensor in &mut proto.graph.mut_or_insert_default().initializer {
        let count: i64 = tensor.dims.iter().product();
        if count > INSIDE && tensor.data_type == DataType::FLOAT.value() {
            tensor.raw_data.clear();
            tensor.float_data.clear();
            tensor.data_location = DataLocation::EXTERNAL.into();
            tensor.external_data = vec![
                entry("location", DATA.into()),
                entry("offset", offset.to_string()),
                entry("length", (4 * count).to_string()),
            ];
            offset += 4 * count;
        }
    }
    proto
}

/// A model of the corpus without its weights.
fn without_weights(name: &str, folder: &Folder) -> Model {
    let path = folder.0.join(format!("{}.onnx", name.replace('/', "-")));
    write_model(&external(&corpus(name)), &path).unwrap();
    Model::read_for_costs(&path).unwrap()
}

fn compiled(model: &Model, base: Option<&Model>, options: &Options) -> Compiled {
    compile(model, base, options)
        .unwrap_or_else(|e| panic!("{}", e.iter().map(|d| format!("{d}\n")).collect::<String>()))
}

#[test]
fn only_data_that_are_not_there_are_let_pass() {
    let folder = Folder::new("costs-read");
    let model = without_weights("llama-trained/base", &folder);
    assert_eq!(model.absent().iter().collect::<Vec<_>>(), [DATA]);
    let absent = model.graph().initializer.iter().find(|t| !model.has_data(t)).unwrap();
    assert_eq!(model.bytes(absent).unwrap_err().code, ABSENT);
    assert!(model.graph().initializer.iter().any(|t| model.has_data(t)));
    assert_eq!(Model::read(&model.path).err().unwrap().code, "E0111");
    std::fs::write(folder.0.join(DATA), [0u8; 16]).unwrap();
    assert_eq!(Model::read_for_costs(&model.path).err().unwrap().code, "E0112", "a file that is cut short");
    std::fs::remove_file(folder.0.join(DATA)).unwrap();
    let mut proto = external(&model);
    let first = proto.graph.mut_or_insert_default().initializer.iter_mut().find(|t| !t.external_data.is_empty());
    let first = first.unwrap();
    first.external_data[2].value = "5".into();
    write_model(&proto, &model.path).unwrap();
    assert_eq!(Model::read_for_costs(&model.path).err().unwrap().code, "E0112", "a length that does not fit the shape");
    let first = proto.graph.mut_or_insert_default().initializer.iter_mut().find(|t| !t.external_data.is_empty());
    first.unwrap().external_data[0].value = "../elsewhere".into();
    write_model(&proto, &model.path).unwrap();
    assert_eq!(Model::read_for_costs(&model.path).err().unwrap().code, "E0110", "a place outside of the folder");
}

#[test]
fn names_and_shapes_decide_what_is_public() {
    let folder = Folder::new("costs-labels");
    let (tuned, base) =
        (without_weights("llama-trained/lora", &folder), without_weights("llama-trained/base", &folder));
    let labels = label(&tuned, Some(&base), &Overrides::default()).unwrap();
    assert!(labels.guessed > 0);
    let of = |labels: &ombra_compiler::secrecy::labels::Labels, wanted: &dyn Fn(&str) -> bool| -> Vec<Owner> {
        labels.tensors.iter().filter(|l| wanted(&l.name)).map(|l| l.owner).collect()
    };
    let private = Overrides { private: vec!["*layernorm*".into()], ..Overrides::default() };
    let globs = label(&tuned, Some(&base), &private).unwrap();
    let norms = of(&globs, &|name| name.contains("layernorm"));
    assert!(!norms.is_empty() && norms.iter().all(|o| *o == Owner::Private), "a pattern wins over a guess");
    let alone = label(&tuned, None, &Overrides::default()).unwrap();
    assert_eq!(alone.guessed, 0);
    let large = |l: &&ombra_compiler::secrecy::labels::Label| l.shape.iter().product::<usize>() > 1;
    assert!(alone.tensors.iter().filter(large).all(|l| l.owner == Owner::Private), "no base, no pattern: private");
    let all = Overrides { public: vec!["*".into()], ..Overrides::default() };
    assert!(of(&label(&tuned, None, &all).unwrap(), &|_| true).iter().all(|o| *o == Owner::Public));
}

/// With the owners of the whole model and the same assumed ranges the program is the same, op by op.
#[test]
fn a_model_costs_without_its_weights_what_it_costs_with_them() {
    let folder = Folder::new("costs-costs");
    for (name, base) in [("llama-trained/frozen", Some("llama-trained/base")), ("gpt2-optimum-past", None)] {
        let assume = Options { assume: true, ..Options::default() };
        let whole = corpus(name);
        let whole = compiled(&whole, base.map(corpus).as_ref(), &assume);
        let private = whole.labels.tensors.iter().filter(|l| l.owner == Owner::Private).map(|l| l.name.clone());
        let overrides = Overrides { public: vec!["*".into()], private: private.collect(), ..Overrides::default() };
        let model = without_weights(name, &folder);
        let alone = compiled(&model, None, &Options { overrides, ..Options::default() });
        assert!(alone.plan.costs_only && whole.plan.costs_only && alone.client_model.is_none());
        for sizes in [[("seq", 32), ("past", 0)], [("seq", 1), ("past", 40)]] {
            let sizes: BTreeMap<String, u64> = sizes.iter().map(|(n, v)| (n.to_string(), *v)).collect();
            let (a, b) = (inspect(&alone.plan, &sizes).unwrap(), inspect(&whole.plan, &sizes).unwrap());
            assert!(a.total_bytes() > 0);
            assert_eq!(
                (a.bytes, a.rounds, a.setup_bytes, a.macs),
                (b.bytes, b.rounds, b.setup_bytes, b.macs),
                "{name}"
            );
        }
    }
}

#[test]
fn a_plan_for_costs_says_so_and_stands_alone() {
    let folder = Folder::new("costs-output");
    let model = without_weights("llama-trained/full", &folder);
    let mut plan = compiled(&model, None, &Options::default());
    assert!(plan.plan.costs_only);
    assert_eq!(plan.plan.check_runs().unwrap_err().code, "E0414");
    let report = inspect(&plan.plan, &BTreeMap::new()).unwrap();
    assert!(report.costs_only && report.text(By::Kind).contains("for costs only"));
    let out = folder.0.join("out");
    std::fs::create_dir_all(out.join("server")).unwrap();
    std::fs::write(out.join("server").join(folder::WEIGHTS), "of an earlier plan").unwrap();
    output::write(&mut plan, &model, &[], &out).unwrap();
    let files = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries.filter(|e| e.path().is_file()).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(files(&out), [folder::PLAN]);
    assert!(files(&out.join("server")).is_empty());
}
