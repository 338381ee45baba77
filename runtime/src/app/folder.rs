//! A plan folder: what `ombra compile` wrote, opened and checked.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ombra_ir::module::Stage;
use ombra_ir::plan::{self, FileDigest, Plan};
use ombra_ir::{Diagnostic, Result, verify};
use sha2::{Digest, Sha256};

use super::request::has_default;
use super::weights::{Wanted, Weights, private_weights, public_weights};

/// Name of the plan in the public folder.
pub const PLAN_FILE: &str = "plan.ombra";
/// Name of the private weights in the server's folder.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// Name of the tokenizer in the public folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Largest tokenizer, in bytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// An opened and verified plan.
pub struct PlanFolder {
    root: PathBuf,
    public: PathBuf,
    /// The plan; the verifier has passed its module.
    pub plan: Plan,
    /// The digest that parties compare.
    pub digest: String,
    /// Public weights, which have all that the module names.
    pub public_weights: Arc<Weights>,
    /// The module's private weights.
    pub private: Vec<Wanted>,
}

impl PlanFolder {
    /// Opens `folder`, or `folder/public`: decodes and verifies the plan, compares the digest of the public weights.
    ///
    /// # Errors
    /// `E1001` to `E1004`, those of [`plan::decode`], and the verifier's first finding.
    pub fn open(folder: &Path) -> Result<PlanFolder> {
        let (root, public) = if folder.join(PLAN_FILE).is_file() {
            (folder.parent().unwrap_or(folder).to_path_buf(), folder.to_path_buf())
        } else {
            (folder.to_path_buf(), folder.join("public"))
        };
        let path = public.join(PLAN_FILE);
        let place = path.display().to_string();
        let bytes = read_bounded(&path, plan::MAX_BYTES as u64)?;
        let plan = plan::decode(&bytes).map_err(|error| error.at(place.clone()))?;
        plan.check_runs().map_err(|error| error.at(place.clone()))?;
        let digest = plan::digest(&bytes);
        drop(bytes);
        check_module(&plan).map_err(|error| error.at(place))?;
        let weights = Weights::open(&checked_file(&public, &plan.public_weights)?)?;
        public_weights(&plan.module)?.iter().try_for_each(|wanted| weights.check(wanted))?;
        let private = private_weights(&plan.module)?;
        Ok(PlanFolder { root, public, plan, digest, public_weights: Arc::new(weights), private })
    }

    /// The provider's weights, which have all that the module names.
    ///
    /// # Errors
    /// `E1001`, `E1003`.
    pub fn server_weights(&self) -> Result<Weights> {
        let path = self.root.join("server").join(WEIGHTS_FILE);
        if !path.is_file() {
            return Err(Diagnostic::input("E1001", "the private weights are missing")
                .at(path.display().to_string())
                .note("help      the server needs the folder `server` that was written beside `public`"));
        }
        let weights = Weights::open(&path)?;
        self.private.iter().try_for_each(|wanted| weights.check(wanted))?;
        Ok(weights)
    }

    /// The file of the model that the client runs in the clear, if the plan has one; its digest is compared, and that of
    /// the file beside it that holds its elements, if there is one.
    ///
    /// # Errors
    /// `E1001`, `E1002`, `E1004`.
    pub fn client_model(&self) -> Result<Option<PathBuf>> {
        let Some(file) = &self.plan.client_model else { return Ok(None) };
        let data = format!("{}.data", file.file);
        for data in self.plan.files.iter().filter(|other| other.file == data) {
            checked_file(&self.public, data)?;
        }
        checked_file(&self.public, file).map(Some)
    }

    /// The file of the public folder called `name`, if the plan has it; its digest is compared.
    ///
    /// # Errors
    /// `E1001`, `E1002`, `E1004`.
    pub fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        let file = self.plan.files.iter().find(|file| file.file == name);
        file.map(|file| checked_file(&self.public, file)).transpose()
    }

    /// Checks that the plan takes no input of the client's as a public one, which every party would see: masks and
    /// positions are public, and what the user names in `allowed`.
    ///
    /// # Errors
    /// `E1016`.
    pub fn check_public_inputs(&self, allowed: &[String]) -> Result<()> {
        for input in &self.plan.module.public.inputs {
            let role = self.plan.graph_inputs.iter().find(|other| other.name == input.name).map(|other| other.role);
            if role.is_some_and(has_default) || allowed.contains(&input.name) {
                continue;
            }
            let name = input.name.escape_debug();
            return Err(Diagnostic::input("E1016", format!("the plan makes the input `{name}` public"))
                .note("expected  no public inputs but attention masks and positions")
                .note(format!("help      if server and helper may see it, give `--allow-public {name}`")));
        }
        Ok(())
    }

    /// The bytes of the tokenizer, if the folder has one: the one that the plan names, or one that was put there.
    ///
    /// # Errors
    /// `E1001`, `E1002`.
    pub fn tokenizer(&self) -> Result<Option<Vec<u8>>> {
        let path = match self.file(TOKENIZER_FILE)? {
            Some(path) => path,
            None => self.public.join(TOKENIZER_FILE),
        };
        if path.is_file() { read_bounded(&path, MAX_TOKENIZER_BYTES).map(Some) } else { Ok(None) }
    }
}

fn check_module(plan: &Plan) -> Result<()> {
    if plan.module.stage != Stage::Scheduled {
        return Err(Diagnostic::input("E1004", "the plan is not compiled to the end")
            .note(format!("expected  stage scheduled, found {}", plan.module.stage.name()))
            .note("help      compile the model again"));
    }
    verify::verify(&plan.module).map_err(|found| {
        let more = found.len().saturating_sub(1);
        let first = found.into_iter().next().unwrap_or_else(|| Diagnostic::internal("E1004", "the plan is not valid"));
        if more > 0 { first.note(format!("and {more} more findings of the verifier")) } else { first }
    })?;
    for name in [&plan.batch, &plan.seq, &plan.past].into_iter().flatten() {
        if plan.module.dims.find(name).is_none() {
            return Err(Diagnostic::input("E1004", format!("the plan has no size `{}`", name.escape_debug())));
        }
    }
    Ok(())
}

/// The path of a file beside the plan, after comparing its digest.
fn checked_file(folder: &Path, file: &FileDigest) -> Result<PathBuf> {
    let path = folder.join(plain_name(&file.file)?);
    let unreadable = |error: std::io::Error| {
        Diagnostic::input("E1001", format!("the file cannot be read: {error}")).at(path.display().to_string())
    };
    let mut source = File::open(&path).map_err(unreadable)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = source.read(&mut buffer).map_err(unreadable)?;
        match buffer.get(..count) {
            Some([]) | None => break,
            Some(bytes) => hash.update(bytes),
        }
    }
    compare(&path, &file.sha256, &hexadecimal(&hash.finalize()))?;
    Ok(path)
}

/// A name that stays inside its folder.
fn plain_name(name: &str) -> Result<&str> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(name),
        _ => Err(Diagnostic::input("E1004", format!("the plan names the file `{}`", name.escape_debug()))
            .note("expected  a name without folders")),
    }
}

fn compare(path: &Path, expected: &str, found: &str) -> Result<()> {
    if expected.eq_ignore_ascii_case(found) {
        return Ok(());
    }
    Err(Diagnostic::input("E1002", "the file is not the one the plan was made with")
        .at(path.display().to_string())
        .note(format!("expected  SHA-256 {}", expected.escape_debug()))
        .note(format!("found     SHA-256 {found}"))
        .note("help      copy the whole public folder again"))
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole file at `path`, of at most `limit` bytes.
///
/// # Errors
/// `E1001`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let wrong = |what: String| Diagnostic::input("E1001", what).at(path.display().to_string());
    let file = File::open(path).map_err(|error| wrong(format!("the file cannot be read: {error}")))?;
    let too_long = || wrong(format!("the file is too large, at most {limit} bytes are expected"));
    if fs::metadata(path).is_ok_and(|found| found.len() > limit) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(format!("the file cannot be read: {error}")))?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}
