//! A compiled model as files: `public/` for everybody, `server/` for the provider alone; a plan for costs alone as one
//! file.
//!
//! Before anything is written, every tensor that would go to `public/` is checked against the owners: nothing that
//! depends on a private weight leaves. What was written is then searched for pieces of private tensors.

use crate::graph::Owner;
use crate::graph::eval::static_value;
use crate::import::load_weight;
use crate::leak::Pieces;
use crate::onnx::Model;
use crate::pipeline::{Compiled, f32_bytes};
use ombra_ir::plan::{self, FileDigest};
use ombra_ir::{Diagnostic, Result};
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

/// Name of the plan in the public folder.
pub const PLAN: &str = "plan.ombra";
/// Name of the client's plaintext region in the public folder.
pub const CLIENT_MODEL: &str = "client.onnx";
/// Name of the weight files in both folders.
pub const WEIGHTS: &str = "weights.safetensors";
/// Name of the tokenizer in the public folder.
pub const TOKENIZER: &str = "tokenizer.json";

/// Writes all files of a compiled model into `folder`; returns the plan's digest. A plan for costs alone stands in `folder`
/// itself, since it is for nobody else, and nothing beside it: files of an earlier plan are removed.
///
/// # Errors
/// A file cannot be written or a weight cannot be read. `E0549`, an internal error, when a piece of a private tensor
/// stands in a file of `public/`: what was written there is removed.
pub fn write(compiled: &mut Compiled, model: &Model, tokenizer: Option<&Path>, folder: &Path) -> Result<String> {
    if compiled.plan.costs_only {
        fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        return write_for_costs(compiled, folder);
    }
    let (public, server) = (folder.join("public"), folder.join("server"));
    for dir in [&public, &server] {
        fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    }
    write_weights(compiled, model, Owner::Public, &public.join(WEIGHTS))?;
    write_weights(compiled, model, Owner::Server, &server.join(WEIGHTS))?;
    compiled.plan.public_weights = digest_of(&public, WEIGHTS)?;
    let client = public.join(CLIENT_MODEL);
    if client.exists() {
        fs::remove_file(&client).map_err(|e| failed(&client, &e))?;
    }
    if let Some(region) = &compiled.client_model {
        region.write(&compiled.graph, &|name| load_weight(model, name), &client)?;
        compiled.plan.client_model = Some(digest_of(&public, CLIENT_MODEL)?);
    }
    if let Some(tokenizer) = tokenizer {
        let to = public.join(TOKENIZER);
        fs::copy(tokenizer, &to).map_err(|e| failed(tokenizer, &e))?;
    }
    let bytes = plan::encode(&compiled.plan)?;
    let path = public.join(PLAN);
    fs::write(&path, &bytes).map_err(|e| failed(&path, &e))?;
    if let Err(leak) = search(&Pieces::new(model, &compiled.labels)?, &public) {
        for file in [PLAN, CLIENT_MODEL, WEIGHTS, TOKENIZER].map(|file| public.join(file)) {
            if file.exists() {
                fs::remove_file(&file).map_err(|e| failed(&file, &e))?;
            }
        }
        return Err(leak);
    }
    Ok(plan::digest(&bytes))
}

/// Writes a plan that cannot run.
fn write_for_costs(compiled: &Compiled, folder: &Path) -> Result<String> {
    let public = [PLAN, CLIENT_MODEL, WEIGHTS, TOKENIZER].map(|file| folder.join("public").join(file));
    let old = public.into_iter().chain([folder.join("server").join(WEIGHTS)]);
    for path in old.filter(|path| path.exists()) {
        fs::remove_file(&path).map_err(|e| failed(&path, &e))?;
    }
    let bytes = plan::encode(&compiled.plan)?;
    let path = folder.join(PLAN);
    fs::write(&path, &bytes).map_err(|e| failed(&path, &e))?;
    Ok(plan::digest(&bytes))
}

/// Searches every file of the folder `public` for pieces of private tensors.
fn search(pieces: &Pieces, public: &Path) -> Result<()> {
    for entry in fs::read_dir(public).map_err(|e| failed(public, &e))? {
        let path = entry.map_err(|e| failed(public, &e))?.path();
        if path.is_file()
            && let Some(name) = pieces.find(&path)?
        {
            let message = format!("a part of the private tensor `{name}` stands in {}", path.display());
            return Err(Diagnostic::internal("E0549", message)
                .note("the public files were removed; this is a fault of the compiler"));
        }
    }
    Ok(())
}

fn write_weights(compiled: &Compiled, model: &Model, owner: Owner, path: &Path) -> Result<()> {
    let weights = |name: &str| load_weight(model, name);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, &(v, declared)) in compiled.weights.iter().filter(|(_, w)| w.1 == owner) {
        let found = compiled.graph.node(v)?.owner;
        if declared == Owner::Public && found != Owner::Public {
            return Err(Diagnostic::internal("E0545", format!("weight `{name}` is not public but would be published")));
        }
        let tensor = static_value(&compiled.graph, &weights, v)?;
        tensors.insert(name.clone(), (tensor.shape().to_vec(), f32_bytes(&tensor)?));
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, (shape, bytes)) in &tensors {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
            .map_err(|e| Diagnostic::internal("E0546", format!("weight `{name}` cannot be stored: {e}")))?;
        views.push((name.clone(), view));
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|e| Diagnostic::input("E0547", format!("cannot write {}: {e}", path.display())))
}

fn digest_of(folder: &Path, file: &str) -> Result<FileDigest> {
    let path = folder.join(file);
    let mut input = fs::File::open(&path).map_err(|e| failed(&path, &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = input.read(&mut buffer).map_err(|e| failed(&path, &e))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(FileDigest { file: file.to_string(), sha256 })
}

fn failed(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::input("E0547", format!("cannot write or read {}: {e}", path.display()))
}
