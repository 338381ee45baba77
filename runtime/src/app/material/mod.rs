//! What a dealer makes ahead of time: files of its messages, a step each, and the keys that go with them.
//!
//! `ombra-run deal` writes a session: a folder for the client and one for the server.
//!
//! ```text
//! material/client/SESSION/session.key         the key of client and dealer, and what the steps are
//! material/server/SESSION/session.key         the key of server and dealer, and the digest of every step's file
//! material/server/SESSION/step-00000.dealt    what the dealer would send the server in the step
//! material/server/weights-SHARING.key         the server's alone: what its weights are shared with
//! material/dealer/weights-SHARING.share       the dealer's alone: its term of them
//! ```
//!
//! A strict dealer has `material/dealer/weights-SHARING.key`, from which its term follows, and the client has the file of
//! the other term, `material/client/weights-SHARING.share`, or gets that from the server.
//!
//! A session runs between client and server. Its id is the one that the dealer gave it; its messages from the dealer come
//! from the files. Both parties write the id to a list on the disk before they send anything that depends on an input, and
//! refuse one that is in it: two inputs under the same masks would reveal their difference. The server does so when the
//! session begins, the client once it has heard from the server. A file is renamed when its step begins.
//!
//! | what is wrong | code |
//! |---|---|
//! | a file was cut or changed, or is another kind of file | E1050 |
//! | it was made for another plan, session, party, sharing or weights | E1051 |
//! | it was used before | E1052 |
//! | it was made for other sizes, or for fewer steps | E1053 |
//! | a file or the list cannot be written | E1054 |

mod chunks;
mod client;
mod deal;
mod server;
mod shares;
mod spent;

pub use client::{Choice, ClientMaterial};
pub use deal::{Dealing, Seeds, deal};
pub use server::{Begun, Dealt, ServerMaterial};
pub use shares::share_weights;
pub use spent::{SPENT_FILE, Spent};

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use ombra_ir::draw::Way;
use ombra_ir::{Diagnostic, Result, files};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::folder::{PlanFolder, hexadecimal};
use super::request::{Request, StepInputs};
use crate::prg::Key;
use crate::transport::{Party, SessionId, parse_hex};

/// The file of a session's key and steps.
const SESSION_FILE: &str = "session.key";
/// Largest such file.
const MAX_SESSION_BYTES: u64 = 16 << 20;
/// Version of the files in JSON.
const VERSION: u32 = 3;

/// What the file of a step says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepFile {
    plan: String,
    session: String,
    step: u32,
    sizes: Vec<(String, u64)>,
}

/// What a term of the weights says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareFile {
    plan: String,
    sharing: String,
}

/// What a party gets of a session beside the files of steps. It holds a key: it has no `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionFile {
    version: u32,
    party: Party,
    plan: String,
    session: String,
    /// The name of the sharing of the weights that it was dealt for.
    sharing: String,
    /// The key of this party and the dealer, in hexadecimal.
    key: String,
    steps: Vec<StepPlan>,
}

/// One step of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepPlan {
    sizes: Vec<(String, u64)>,
    /// Digest of its sizes and public inputs.
    inputs: String,
    /// SHA-256 of the header of its file; at the server.
    file: Option<String>,
}

/// The key of a sharing of the weights, which the server keeps for itself, or shares with a strict dealer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SharingFile {
    version: u32,
    party: Party,
    plan: String,
    sharing: String,
    /// SHA-256 of the file of the weights that were shared, in hexadecimal. At the server alone: by it somebody could check
    /// a guess of the weights.
    weights: Option<String>,
    key: String,
}

impl Drop for SessionFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for SharingFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl SessionFile {
    /// The session's file of `party` in the folder `folder`, checked against the plan.
    fn read(folder: &Path, party: Party, plan: &PlanFolder, id: SessionId) -> Result<SessionFile> {
        let path = folder.join(SESSION_FILE);
        let file: SessionFile = read_json(&path)?;
        let foreign = |what: &str, expected: &str, found: &str| foreign(&path, what, expected, found);
        if file.version != VERSION {
            return Err(unreadable(&path, &format!("version {}", file.version)));
        }
        if file.plan != plan.digest {
            return Err(foreign("plan", &plan.digest, &file.plan));
        }
        if file.party != party {
            return Err(foreign("party", party.name(), file.party.name()));
        }
        if file.session != id.to_string() {
            return Err(foreign("session", &id.to_string(), &file.session));
        }
        Ok(file)
    }

    fn key(&self, path: &Path) -> Result<Key> {
        key_of(&self.key, path)
    }
}

impl SharingFile {
    /// The key of a sharing at the path `path`, of `party` and checked against the plan.
    fn read(path: &Path, party: Party, plan: &PlanFolder) -> Result<SharingFile> {
        let file: SharingFile = read_json(path)?;
        if file.version != VERSION {
            return Err(unreadable(path, &format!("version {}", file.version)));
        }
        if file.plan != plan.digest {
            return Err(foreign(path, "plan", &plan.digest, &file.plan));
        }
        if file.party != party {
            return Err(foreign(path, "party", party.name(), file.party.name()));
        }
        Ok(file)
    }
}

/// The folder of a party's sessions: the one that has its name, where `folder` is that of all parties.
pub fn part_of(folder: &Path, party: Party) -> PathBuf {
    let own = folder.join(party.name());
    if own.is_dir() { own } else { folder.to_path_buf() }
}

/// Digest of what the dealer bound a step with, and its parties must: sizes and public inputs, how tokens are chosen, and
/// whether the client gives the cache.
fn inputs_digest(request: &Request, inputs: &StepInputs, way: Way) -> Result<String> {
    // Sizes have no order.
    let sizes: BTreeMap<_, _> = inputs.sizes.iter().map(|(name, size)| (name, size)).collect();
    let text = serde_json::to_vec(&(sizes, &inputs.public, way, request.gives_states()))
        .map_err(|error| Diagnostic::input("E1006", format!("a public input cannot be written: {error}")))?;
    Ok(hexadecimal(&Sha256::digest(&text)))
}

/// Sizes in words.
fn shown(sizes: &[(String, u64)]) -> String {
    sizes.iter().map(|(name, size)| format!("{}={size}", name.escape_debug())).collect::<Vec<_>>().join(" ")
}

fn key_of(text: &str, path: &Path) -> Result<Key> {
    parse_hex(text).map(Key::from_bytes).ok_or_else(|| unreadable(path, "a key of another length"))
}

fn key_text(key: &Key) -> Zeroizing<String> {
    Zeroizing::new(hexadecimal(key.bytes()))
}

fn step_name(step: usize) -> String {
    format!("step-{step:05}.dealt")
}

fn sharing_name(sharing: &str) -> String {
    format!("weights-{sharing}.key")
}

fn share_name(sharing: &str) -> String {
    format!("weights-{sharing}.share")
}

/// What a file in JSON holds, with its SHA-256 as it is written here: a key with a changed digit would give wrong answers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<T> {
    content: T,
    sha256: String,
}

fn digest_of<T: Serialize>(content: &T) -> serde_json::Result<String> {
    let mut hasher = Sha256::new();
    serde_json::to_writer(&mut hasher, content)?;
    Ok(hexadecimal(&hasher.finalize()))
}

fn read_json<T: Serialize + serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = files::read_bounded(path, MAX_SESSION_BYTES).map(Zeroizing::new);
    let bytes = bytes.map_err(|error| unreadable(path, &format!("it cannot be read: {error}")))?;
    let sealed: Sealed<T> = serde_json::from_slice(&bytes).map_err(|_| unreadable(path, "what makes no sense"))?;
    match digest_of(&sealed.content) {
        Ok(digest) if digest == sealed.sha256 => Ok(sealed.content),
        _ => Err(unreadable(path, "what has another digest than it says")),
    }
}

/// Writes a new file in JSON that its owner alone may read.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let failed = |why: String| chunks::unwritable(path, &why);
    let sha256 = digest_of(value).map_err(|error| failed(error.to_string()))?;
    let sealed = Sealed { content: value, sha256 };
    let text = serde_json::to_vec_pretty(&sealed).map(Zeroizing::new).map_err(|error| failed(error.to_string()))?;
    let mut file = chunks::private_file(path, true).map_err(|error| failed(error.to_string()))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|error| failed(error.to_string()))?;
    chunks::sync_folder(path)
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| chunks::unwritable(path, &error.to_string()))
}

fn unreadable(path: &Path, found: &str) -> Diagnostic {
    Diagnostic::input("E1050", "the dealer's file cannot be used")
        .at(path.display().to_string())
        .note("expected  what `ombra-run deal` of this version wrote")
        .note(format!("found     {found}"))
        .note("help      copy the file again, or deal anew")
}

fn foreign(path: &Path, what: &str, expected: &str, found: &str) -> Diagnostic {
    Diagnostic::input("E1051", format!("the dealer's file is for another {what}"))
        .at(path.display().to_string())
        .note(format!("expected  {}", expected.escape_debug()))
        .note(format!("found     {}", found.escape_debug()))
        .note("help      take the material that was dealt for this one, or deal anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_bound_to_who_gives_its_cache() {
        let digest = |states: bool| {
            let request = Request::Infer { sizes: Vec::new(), public: Vec::new(), states };
            let inputs = StepInputs { name: "infer", sizes: vec![("past".to_owned(), 3)], public: Vec::new() };
            inputs_digest(&request, &inputs, Way::default()).unwrap()
        };
        assert_eq!(digest(false), digest(false));
        assert_ne!(digest(false), digest(true));
    }
}
