//! The client's side of material: which session serves a request, and that none serves twice.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use ombra_ir::files::open_regular;
use ombra_ir::{Diagnostic, Result};

use super::chunks::{sync_folder, unwritable};
use super::shares::read_share;
use super::spent::{Spent, used};
use super::{SESSION_FILE, SessionFile, foreign, inputs_digest, share_name, shown, unreadable};
use crate::app::folder::PlanFolder;
use crate::app::request::{Advance, Request};
use crate::prg::Key;
use crate::settings::weights::Weights;
use crate::transport::{Party, SessionId, abort_code, parse_session};

/// Most sessions of a folder that are looked at.
const MAX_SESSIONS: usize = 1 << 16;
/// The extension of the file of a session that was taken.
const USED: &str = "used";

/// Where the client has its material, and what it has used of it.
#[derive(Clone, Debug)]
pub struct ClientMaterial {
    folder: PathBuf,
    spent: Spent,
}

/// A session that was chosen. Nobody else who shares the folder chooses it while this lives.
pub struct Choice {
    /// Its id.
    pub session: SessionId,
    /// The key of client and dealer.
    pub key: Key,
    /// The file of the key, locked.
    _file: File,
    path: PathBuf,
    spent: Spent,
}

impl Choice {
    /// Writes the session to the list of those that were used, and gives its key another name: nothing may be sent under
    /// the key before.
    ///
    /// # Errors
    /// `E1052` when it was used meanwhile, `E1054`.
    pub fn spend(&self) -> Result<()> {
        self.spent.add(self.session)?;
        // The list may be another one where the configuration is: what has another name cannot be taken again.
        let to = self.path.with_extension(USED);
        std::fs::rename(&self.path, &to).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => used(self.session).at(self.path.display().to_string()),
            _ => unwritable(&to, &error.to_string()),
        })?;
        sync_folder(&self.path)
    }

    /// The client's term of the weights in the sharing `sharing`, where the folder has its file.
    ///
    /// # Errors
    /// `E1050`, `E1051`.
    pub(in crate::app) fn weights(&self, plan: &PlanFolder, sharing: &str) -> Result<Option<Weights>> {
        // The name is a peer's.
        let is_name = parse_session(sharing).is_some();
        let folder = self.path.parent().and_then(Path::parent).filter(|_| is_name);
        let path = folder.map(|folder| folder.join(share_name(sharing))).filter(|path| path.is_file());
        let Some(path) = path else { return Ok(None) };
        let (weights, found) = read_share(plan, Party::Client, &path)?;
        if found != sharing {
            return Err(foreign(&path, "sharing of the weights", sharing, &found));
        }
        Ok(Some(weights))
    }

    /// Passes on how something ended that waited for the server to begin the session: one that the server has used before
    /// is spent here too, or it would be chosen again and again.
    ///
    /// # Errors
    /// That of `outcome`, and those of [`spend`](Self::spend).
    pub fn heed<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.as_ref().is_err_and(|error| abort_code(error) == Some("E1052")) {
            self.spend()?;
        }
        outcome
    }
}

impl ClientMaterial {
    /// The material in `folder`, which has a folder for every session.
    pub fn at(folder: &Path, spent: Spent) -> ClientMaterial {
        ClientMaterial { folder: folder.to_path_buf(), spent }
    }

    /// Chooses a session that was dealt for the steps of a request, the first by name that was not used. It is used once it
    /// is [spent](Choice::spend). Sessions of other plans and parties that lie in the folder do not matter.
    ///
    /// # Errors
    /// `E1050`, `E1051` when there is none but of other plans, `E1052` when all of it was used, `E1053` when it is for other
    /// sizes or fewer steps, `E1054`.
    pub fn choose(&self, plan: &PlanFolder, request: &Request, steps: &[Advance], memory: u64) -> Result<Choice> {
        plan.plan.module.setting.dealer()?;
        let mut sizes = String::new();
        let mut wanted = Vec::with_capacity(steps.len());
        for advance in steps {
            let inputs = request.step(&plan.plan, *advance, memory)?;
            if wanted.is_empty() {
                sizes = shown(&inputs.sizes);
            }
            wanted.push(inputs_digest(request, &inputs, advance.choice.way())?);
        }
        let spent = self.spent.all()?;
        let mut used = None;
        let mut foreign = None;
        let mut other = None;
        for id in sessions(&self.folder)? {
            let folder = self.folder.join(id.to_string());
            let path = folder.join(SESSION_FILE);
            // Used with another list, not dealt to its end, or taken by another process.
            let locked = if spent.contains(&id) { None } else { lock(&path)? };
            let Some(locked) = locked else {
                used = Some(id);
                continue;
            };
            let file = match SessionFile::read(&folder, Party::Client, plan, id) {
                Ok(file) => file,
                Err(error) if error.code == "E1051" => {
                    foreign.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let fits =
                file.steps.len() >= wanted.len() && file.steps.iter().zip(&wanted).all(|(step, w)| step.inputs == *w);
            if !fits {
                other = Some(file);
                continue;
            }
            let key = file.key(&path)?;
            return Ok(Choice { session: id, key, _file: locked, path, spent: self.spent.clone() });
        }
        let place = self.folder.display().to_string();
        if let Some(file) = other {
            let first = |steps: &[_]| steps.first().map(shown_step).unwrap_or_default();
            return Err(Diagnostic::input("E1053", "no session of the material was dealt for this request")
                .at(place)
                .note(format!("expected  {} steps, the first of {sizes}, without padding and drawing", wanted.len()))
                .note(format!("found     {} steps, the first of {}", file.steps.len(), first(&file.steps)))
                .note("help      give a prompt of that length and at most as many new tokens, or deal for this one"));
        }
        match (used, foreign) {
            (Some(id), _) => Err(super::spent::used(id).at(place)),
            (None, Some(error)) => Err(error),
            (None, None) => {
                Err(unreadable(&self.folder, "no session").note("help      deal one, and copy its client's part"))
            }
        }
    }
}

/// The file of a key, which this process alone has chosen as long as it is open: nothing where it is not there, or another
/// one has. Where the system has no locks, the list decides when the session is spent.
fn lock(path: &Path) -> Result<Option<File>> {
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, &error.to_string())),
    };
    let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    // It may have got its other name meanwhile.
    let is_there = path.try_exists().map_err(|error| unreadable(path, &error.to_string()))?;
    Ok((is_there && !is_taken).then_some(file))
}

fn shown_step(step: &super::StepPlan) -> String {
    shown(&step.sizes)
}

/// The sessions that a folder has, by name.
fn sessions(folder: &Path) -> Result<Vec<SessionId>> {
    let entries = std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error.to_string()))?;
    let names = entries.flatten().take(MAX_SESSIONS).filter_map(|entry| entry.file_name().into_string().ok());
    let mut ids: Vec<SessionId> = names.filter_map(|name| parse_session(&name)).collect();
    ids.sort_unstable();
    Ok(ids)
}
