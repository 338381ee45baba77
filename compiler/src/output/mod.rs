//! A compiled model as files: `public/` for everybody, `server/` for the provider alone; a plan for costs alone as one
//! file.
//!
//! Before anything is written, every tensor that would go to `public/` is checked against the owners: nothing that
//! depends on a private weight leaves. What was written is then searched for pieces of private tensors.

pub mod model_folder;
pub mod partition;
pub mod reveal;

use crate::graph::Owner;
use crate::onnx::{Model, blocks};
use crate::pipeline::Compiled;
use crate::secrecy::labels::Labels;
use crate::secrecy::leak::Pieces;
use crate::weights::stream::each_block;
use ombra_ir::folder::{CLIENT_DATA, CLIENT_MODEL, CONFIGURATION, PLAN, PLAN_DIGEST, TOKENIZER, WEIGHTS};
use ombra_ir::plain::DType;
use ombra_ir::plan::{self, FileDigest};
use ombra_ir::{Bindings, Diagnostic, Result, files};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// A file that goes beside the plan: its name there, and where it is.
pub type Beside = (&'static str, PathBuf);

/// Writes all files of a compiled model into `folder`, those in `beside` among them; returns the plan's digest. A plan for
/// costs alone stands in `folder` itself, since it is for nobody else, and nothing beside it: files of an earlier plan are
/// removed.
///
/// # Errors
/// A file cannot be written or a weight cannot be read. `E0549`, an internal error, when a piece of a private tensor
/// stands in a file of `public/`: what was written there is removed.
pub fn write(compiled: &mut Compiled, model: &Model, beside: &[Beside], folder: &Path) -> Result<String> {
    if compiled.plan.costs_only {
        fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        return write_for_costs(compiled, folder);
    }
    let (public, server) = (folder.join("public"), folder.join("server"));
    for dir in [&public, &server] {
        fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
    }
    remove(public_files(&public))?;
    write_weights(compiled, model, Owner::Public, &public.join(WEIGHTS), None)?;
    compiled.plan.public_weights = digest_of(&public, WEIGHTS)?;
    compiled.plan.files.clear();
    if let Some(region) = &compiled.client_model {
        let [path, data] = [CLIENT_MODEL, CLIENT_DATA].map(|file| public.join(file));
        if region.write(&compiled.graph, model, &path, &data)? {
            compiled.plan.files.push(digest_of(&public, CLIENT_DATA)?);
        }
        compiled.plan.client_model = Some(digest_of(&public, CLIENT_MODEL)?);
    }
    for (name, from) in beside {
        let to = public.join(name);
        let mut input = files::open_regular(from).map_err(|e| failed(from, &e))?;
        let mut output = fs::File::create(&to).map_err(|e| failed(&to, &e))?;
        std::io::copy(&mut input, &mut output).map_err(|e| failed(from, &e))?;
        compiled.plan.files.push(digest_of(&public, name)?);
    }
    let bytes = plan::encode(&compiled.plan)?;
    let path = public.join(PLAN);
    fs::write(&path, &bytes).map_err(|e| failed(&path, &e))?;
    if let Err(leak) = search(Pieces::new(model, &compiled.labels)?, model, &compiled.labels, &public) {
        remove(public_files(&public))?;
        return Err(leak);
    }
    let digest = plan::digest(&bytes);
    write_weights(compiled, model, Owner::Server, &server.join(WEIGHTS), Some(&digest))?;
    Ok(digest)
}

/// The files that a plan may have in its public folder.
fn public_files(public: &Path) -> impl Iterator<Item = PathBuf> {
    let files = [PLAN, CLIENT_MODEL, CLIENT_DATA, WEIGHTS, TOKENIZER].into_iter().chain(CONFIGURATION);
    files.map(|file| public.join(file))
}

/// Removes the files that are there.
fn remove(files: impl Iterator<Item = PathBuf>) -> Result<()> {
    for file in files.filter(|file| file.exists()) {
        fs::remove_file(&file).map_err(|e| failed(&file, &e))?;
    }
    Ok(())
}

/// Writes a plan that cannot run.
fn write_for_costs(compiled: &Compiled, folder: &Path) -> Result<String> {
    remove(public_files(&folder.join("public")).chain([folder.join("server").join(WEIGHTS)]))?;
    let bytes = plan::encode(&compiled.plan)?;
    let path = folder.join(PLAN);
    fs::write(&path, &bytes).map_err(|e| failed(&path, &e))?;
    Ok(plan::digest(&bytes))
}

/// Searches every file of the folder `public` for pieces of private tensors.
fn search(mut pieces: Pieces, model: &Model, labels: &Labels, public: &Path) -> Result<()> {
    let mut hits = Vec::new();
    for entry in fs::read_dir(public).map_err(|e| failed(public, &e))? {
        let path = entry.map_err(|e| failed(public, &e))?.path();
        if path.is_file() {
            hits.push((pieces.find(&path)?, path));
        }
    }
    hits.retain(|(found, _)| !found.is_empty());
    hits.sort_by(|(_, a), (_, b)| a.cmp(b));
    if hits.is_empty() {
        return Ok(());
    }
    // Only now: reading all public tensors takes as long as reading all files.
    pieces.keep_secret(model, labels, hits.iter().flat_map(|(found, _)| found.iter().copied()).collect())?;
    for (found, path) in hits {
        if let Some(name) = found.iter().find_map(|piece| pieces.name(*piece)) {
            let message = format!("a part of the private tensor `{name}` stands in {}", path.display());
            return Err(Diagnostic::internal("E0549", message)
                .note("the public files were removed; this is a fault of the compiler"));
        }
    }
    Ok(())
}

/// Writes the weights of one owner as a safetensors file, in order of name; `plan` is the digest of the plan that they are for.
fn write_weights(compiled: &Compiled, model: &Model, owner: Owner, path: &Path, plan: Option<&str>) -> Result<()> {
    let mut header = Map::new();
    if let Some(plan) = plan {
        header.insert("__metadata__".into(), json!({ PLAN_DIGEST: plan }));
    }
    let (mut values, mut offset) = (Vec::new(), 0u64);
    for (name, &(v, declared)) in compiled.weights.iter().filter(|(_, w)| w.1 == owner) {
        let node = compiled.graph.node(v)?;
        if declared == Owner::Public && node.owner != Owner::Public {
            return Err(Diagnostic::internal("E0545", format!("weight `{name}` is not public but would be published")));
        }
        let sizes = node.shape.iter().map(|d| d.eval(&Bindings::new())).collect::<Result<Vec<u64>>>()?;
        let end = sizes.iter().fold(4u64, |n, &d| n.saturating_mul(d)).saturating_add(offset);
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": sizes, "data_offsets": [offset, end] }));
        values.push((name, v, end));
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Diagnostic::internal("E0546", e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let lost = |e: std::io::Error| failed(path, &e);
    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(path).map_err(lost)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(lost)?;
    out.write_all(&header).map_err(lost)?;
    let mut written = 0;
    for (name, v, end) in values {
        each_block(&compiled.graph, model, v, &mut |data| {
            if data.dtype() != DType::F32 {
                return Err(Diagnostic::internal("E0544", "a weight is not a float tensor"));
            }
            written += blocks(data, &mut |bytes| out.write_all(bytes)).map_err(lost)?;
            Ok(())
        })?;
        if written != end {
            return Err(Diagnostic::internal("E0546", format!("weight `{name}` has not the elements of its shape")));
        }
    }
    out.flush().map_err(lost)
}

fn digest_of(folder: &Path, file: &str) -> Result<FileDigest> {
    let path = folder.join(file);
    let mut input = fs::File::open(&path).map_err(|e| failed(&path, &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
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
