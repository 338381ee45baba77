//! The client's side of material: which session serves a request, and that none serves twice.

use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result};

use super::chunks::sync_folder;
use super::spent::Spent;
use super::{SESSION_FILE, SessionFile, inputs_digest, shown, unreadable};
use crate::app::folder::PlanFolder;
use crate::app::request::{Advance, Request};
use crate::prg::Key;
use crate::transport::{Party, SessionId, parse_session};

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

/// A session that was chosen, and is in the list of those that were used.
pub struct Choice {
    /// Its id.
    pub session: SessionId,
    /// The key of client and dealer.
    pub key: Key,
}

impl ClientMaterial {
    /// The material in `folder`, which has a folder for every session.
    pub fn at(folder: &Path, spent: Spent) -> ClientMaterial {
        ClientMaterial { folder: folder.to_path_buf(), spent }
    }

    /// Takes a session that was dealt for the steps of a request, the first by name that was not used. From then on it is
    /// used.
    ///
    /// # Errors
    /// `E1050`, `E1051` for what is no material of this plan, `E1052` when all of it was used, `E1053` when it is for other
    /// sizes or fewer steps, `E1054`.
    pub fn take(&self, plan: &PlanFolder, request: &Request, steps: &[Advance], memory: u64) -> Result<Choice> {
        let mut sizes = String::new();
        let mut wanted = Vec::with_capacity(steps.len());
        for advance in steps {
            let inputs = request.step(&plan.plan, *advance, memory)?;
            if wanted.is_empty() {
                sizes = shown(&inputs.sizes);
            }
            wanted.push(inputs_digest(&inputs, advance.choice.way())?);
        }
        let mut used = None;
        let mut other = None;
        for id in sessions(&self.folder)? {
            if self.spent.has(id)? {
                used = Some(id);
                continue;
            }
            let folder = self.folder.join(id.to_string());
            let path = folder.join(SESSION_FILE);
            // Used with another list, or not dealt to its end.
            if !path.try_exists().map_err(|error| unreadable(&path, &error.to_string()))? {
                used = Some(id);
                continue;
            }
            let file = SessionFile::read(&folder, Party::Client, plan, id)?;
            let fits =
                file.steps.len() >= wanted.len() && file.steps.iter().zip(&wanted).all(|(step, w)| step.inputs == *w);
            if !fits {
                other = Some(file);
                continue;
            }
            let key = file.key(&path)?;
            match self.spent.add(id) {
                Ok(()) => {}
                // Another process was faster.
                Err(error) if error.code == "E1052" => {
                    used = Some(id);
                    continue;
                }
                Err(error) => return Err(error),
            }
            // The list may be another one where the configuration is: what has another name cannot be taken again.
            if std::fs::rename(&path, path.with_extension(USED)).is_err() {
                used = Some(id);
                continue;
            }
            sync_folder(&path)?;
            return Ok(Choice { session: id, key });
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
        match used {
            Some(id) => Err(super::spent::used(id).at(place)),
            None => Err(unreadable(&self.folder, "no session").note("help      deal one, and copy its client's part")),
        }
    }
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
