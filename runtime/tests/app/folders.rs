//! Plan folders that are damaged, incomplete or hostile.

use std::fs;

use ombra_ir::folder::PLAN_DIGEST;
use ombra_ir::plan;
use ombra_runtime::app::PlanFolder;

use super::plans::{self, Folder, WIDTH, save_weights};

fn refused(folder: &Folder) -> Option<&'static str> {
    let open = |folder: &Folder| {
        let open = PlanFolder::open(&folder.0)?;
        if let Some((model, _)) = open.client_model()? {
            model.read(1 << 20)?;
        }
        open.server_weights()
    };
    open(folder).err().map(|e| e.code)
}

#[test]
fn a_folder_opens_by_its_root_and_by_its_public_part() {
    let folder = plans::cached();
    assert_eq!(refused(&folder), None);
    let (root, public) = (PlanFolder::open(&folder.0).unwrap(), PlanFolder::open(&folder.join("public")).unwrap());
    assert_eq!(root.digest, public.digest);
    assert!(public.server_weights().is_ok());
    fs::remove_dir_all(folder.join("server")).unwrap();
    assert!(PlanFolder::open(&folder.0).is_ok());
    assert_eq!(refused(&folder), Some("E1001"));
}

#[test]
fn missing_and_changed_files_are_named() {
    let folder = plans::linear(true);
    for (file, missing) in [("plan.ombra", "E1001"), ("weights.safetensors", "E1001"), ("client.onnx", "E1001")] {
        let path = folder.join("public").join(file);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(refused(&folder), Some(missing), "{file}");
        let mut longer = bytes.clone();
        longer.push(0);
        fs::write(&path, longer).unwrap();
        let changed = if file == "plan.ombra" { "E0413" } else { "E1002" };
        assert_eq!(refused(&folder), Some(changed), "{file}");
        fs::write(&path, bytes).unwrap();
        assert_eq!(refused(&folder), None, "{file}");
    }
}

#[test]
fn private_weights_must_be_those_of_the_plan() {
    let folder = plans::linear(false);
    let path = folder.join("server/weights.safetensors");
    let values = |count| vec![0.5; count];
    for (name, shape) in [("v", vec![WIDTH, 6]), ("w", vec![6, WIDTH]), ("w", vec![WIDTH * 6])] {
        save_weights(&path, &[(name, shape, values(WIDTH * 6))]);
        assert_eq!(refused(&folder), Some("E1003"), "{name}");
    }
    save_weights(&path, &[("w", vec![WIDTH, 6], values(WIDTH * 6))]);
    assert_eq!(refused(&folder), None);
    // A file that says for which plan it is has to say this one.
    let bytes = fs::read(&path).unwrap();
    let (header, values) = bytes[8..].split_at(bytes[0].into());
    for (plan, expected) in [(PlanFolder::open(&folder.0).unwrap().digest, None), ("0".repeat(64), Some("E1003"))] {
        let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
        header["__metadata__"] = serde_json::json!({ PLAN_DIGEST: plan });
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], header.as_bytes(), values].concat()).unwrap();
        assert_eq!(refused(&folder), expected, "{plan}");
    }
    for length in [0, 7, 8, 20, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(["E1001", "E1003"].contains(&refused(&folder).unwrap()), "{length}");
    }
}

#[test]
fn a_plan_that_names_files_elsewhere_or_reveals_more_is_refused() {
    let folder = plans::linear(true);
    let path = folder.join("public/plan.ombra");
    let good = plan::decode(&fs::read(&path).unwrap()).unwrap();
    let refused_with = |change: &dyn Fn(&mut plan::Plan)| {
        let mut bad = good.clone();
        change(&mut bad);
        fs::write(&path, plan::encode(&bad).unwrap()).unwrap();
        refused(&folder)
    };
    assert_eq!(refused_with(&|_| {}), None);
    for name in ["../server/weights.safetensors", "/etc/hostname", "", "..", "a/b"] {
        let code = refused_with(&|plan| plan.public_weights.file = name.to_owned());
        assert_eq!(code, Some("E1004"), "{name}");
        let code = refused_with(&|plan| plan.client_model.as_mut().unwrap().file = name.to_owned());
        assert_eq!(code, Some("E1004"), "{name}");
    }
    assert_eq!(refused_with(&|plan| plan.past = Some("nothing".to_owned())), Some("E1004"));
    assert_eq!(refused_with(&|plan| plan.costs_only = true), Some("E0414"));
    assert_eq!(refused_with(&|plan| plan.module.stage = ombra_ir::module::Stage::Expanded), Some("E1004"));
    assert!(refused_with(&|plan| plan.module.outputs.clear()).is_some());
    assert!(refused_with(&|plan| plan.module.ops[2].args = vec![ombra_ir::module::Id(u32::MAX); 2]).is_some());
}
