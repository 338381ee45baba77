//! A plan folder: what `ombra compile` wrote, opened and checked.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ombra_ir::draw::Way;
use ombra_ir::folder::{PLAN, WEIGHTS};
use ombra_ir::module::{Module, Stage};
use ombra_ir::plan::{self, FileDigest, Plan};
use ombra_ir::{Diagnostic, Result, files, verify};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::held_file::HeldFile;
use super::program::Programs;
use super::request::Request;
use super::sharing::ClientSide;
use super::weights::{Wanted, Weights, private_weights, public_weights};
use crate::settings;

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
    programs: Programs,
    /// What the client got of the weights, for a strict dealer.
    pub(super) held: ClientSide,
}

impl PlanFolder {
    /// Opens `folder`, or `folder/public`: decodes and verifies the plan, compares the digest of the public weights.
    ///
    /// # Errors
    /// `E1001` to `E1004`, those of [`plan::decode`], and the verifier's first finding.
    pub fn open(folder: &Path) -> Result<PlanFolder> {
        let (root, public) = if folder.join(PLAN).is_file() {
            (folder.parent().unwrap_or(folder).to_path_buf(), folder.to_path_buf())
        } else {
            (folder.to_path_buf(), folder.join("public"))
        };
        let path = public.join(PLAN);
        let place = path.display().to_string();
        let bytes = read_bounded(&path, plan::MAX_BYTES as u64)?;
        let plan = plan::decode(&bytes).map_err(|error| error.at(place.clone()))?;
        plan.check_runs().map_err(|error| error.at(place.clone()))?;
        let digest = plan::digest(&bytes);
        drop(bytes);
        check_module(&plan).map_err(|error| error.at(place))?;
        let expected = checked_file(&public, &plan.public_weights)?;
        let file = HeldFile::open(&expected.path)?;
        compare(&expected.path, &expected.sha256, file.sha256())?;
        let weights = Weights::of(file)?;
        public_weights(&plan.module)?.iter().try_for_each(|wanted| weights.check(wanted))?;
        let private = private_weights(&plan.module)?;
        let public_weights = Arc::new(weights);
        let (programs, held) = Default::default();
        Ok(PlanFolder { root, public, plan, digest, public_weights, private, programs, held })
    }

    /// The module that a step of a session with `request` runs to choose tokens in a `way`.
    ///
    /// # Errors
    /// Those of [`Programs::module`].
    pub fn module(&self, request: &Request, way: Way) -> Result<Arc<Module>> {
        self.programs.module(&self.plan, request, way)
    }

    /// The provider's weights, which have all that the module names. Who serves with them checks that they stay the same.
    ///
    /// # Errors
    /// `E1001`, `E1003`.
    pub fn server_weights(&self) -> Result<Weights> {
        let path = self.root.join("server").join(WEIGHTS);
        if !path.is_file() {
            return Err(Diagnostic::input("E1001", "the private weights are missing")
                .at(path.display().to_string())
                .note("help      the server needs the folder `server` that was written beside `public`"));
        }
        let weights = Weights::open(&path)?;
        weights.check_plan(&self.digest)?;
        self.private.iter().try_for_each(|wanted| weights.check(wanted))?;
        Ok(weights)
    }

    /// The model that the client runs in the clear, if the plan has one, and the file that holds its elements, if there is
    /// one.
    ///
    /// # Errors
    /// `E1004`.
    pub fn client_model(&self) -> Result<Option<(CheckedFile, Option<CheckedFile>)>> {
        let Some(file) = &self.plan.client_model else { return Ok(None) };
        let data = self.file(&format!("{}.data", file.file))?;
        Ok(Some((checked_file(&self.public, file)?, data)))
    }

    /// The file of the public folder called `name`, if the plan has it.
    ///
    /// # Errors
    /// `E1004`.
    pub fn file(&self, name: &str) -> Result<Option<CheckedFile>> {
        let file = self.plan.files.iter().find(|file| file.file == name);
        file.map(|file| checked_file(&self.public, file)).transpose()
    }
}

/// A file beside a plan, with the digest that the plan has of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckedFile {
    path: PathBuf,
    sha256: String,
}

impl CheckedFile {
    /// The content of the file, of at most `limit` bytes: these very bytes have the digest.
    ///
    /// # Errors
    /// `E1001`, `E1002`.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let bytes = read_bounded(&self.path, limit)?;
        compare(&self.path, &self.sha256, &hexadecimal(&Sha256::digest(&bytes)))?;
        Ok(bytes)
    }

    /// Its length in bytes, 0 for a file that cannot be found.
    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    /// Its name in the folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    settings::check(&plan.module)?;
    plan.derives()?;
    let ways = plan.ways();
    if ways.iter().enumerate().any(|(at, way)| ways.iter().take(at).any(|other| other == way)) {
        return Err(Diagnostic::input("E1004", "the plan chooses tokens in one way twice"));
    }
    let inputs = || plan.graph_inputs.iter().map(|input| &input.name);
    if let Some(name) = inputs().enumerate().find_map(|(at, name)| inputs().take(at).find(|other| *other == name)) {
        return Err(Diagnostic::input("E1004", format!("the plan has two inputs `{}`", name.escape_debug())));
    }
    for name in [&plan.batch, &plan.seq, &plan.past].into_iter().flatten() {
        if plan.module.dims.find(name).is_none() {
            return Err(Diagnostic::input("E1004", format!("the plan has no size `{}`", name.escape_debug())));
        }
    }
    Ok(())
}

/// A file beside the plan.
fn checked_file(folder: &Path, file: &FileDigest) -> Result<CheckedFile> {
    Ok(CheckedFile { path: folder.join(plain_name(&file.file)?), sha256: file.sha256.clone() })
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
    let unreadable = |error| Diagnostic::input("E1001", format!("the file cannot be read: {error}"));
    files::read_bounded(path, limit).map_err(|error| unreadable(error).at(path.display().to_string()))
}
