//! The server's side of material: a session's keys and weights, and the dealer's messages from its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ombra_ir::draw::Way;
use ombra_ir::{Diagnostic, Result};

use super::chunks::{Reader, sync_folder, unwritable};
use super::spent::{Spent, used};
use super::{
    SESSION_FILE, SessionFile, SharingFile, StepFile, foreign, inputs_digest, key_of, sharing_name, shown, step_name,
    unreadable,
};
use crate::app::folder::PlanFolder;
use crate::app::request::{Request, StepInputs};
use crate::app::weights::Weights as File;
use crate::exec::{LinkNet, Net, TensorSource};
use crate::prg::Key;
use crate::settings::weights::Weights;
use crate::transport::{Meter, Party, SessionId};

/// Where the server has its material, and what it has used of it.
#[derive(Clone, Debug)]
pub struct ServerMaterial {
    folder: PathBuf,
    spent: Spent,
}

/// A session that has begun: it is in the list of those that were used.
pub struct Begun {
    id: SessionId,
    folder: PathBuf,
    file: SessionFile,
    /// The key of server and dealer.
    pub key: Key,
    /// The name of the sharing of the weights.
    pub sharing: String,
    /// The key of the weights.
    pub weights_key: Key,
    /// The server's part of the weights.
    pub weights: Arc<Weights>,
    next: usize,
}

impl ServerMaterial {
    /// The material in `folder`, which has a folder for every session and a key for every sharing of the weights.
    ///
    /// # Errors
    /// `E1050` when there is no such folder.
    pub fn at(folder: &Path, spent: Spent) -> Result<ServerMaterial> {
        fs::read_dir(folder).map_err(|error| unreadable(folder, &error.to_string()))?;
        Ok(ServerMaterial { folder: folder.to_path_buf(), spent })
    }

    /// Begins the session `id`: checks every file of it but for the contents of their parts, and writes it to the list of
    /// those that were used. Nothing of it may have been sent before.
    ///
    /// # Errors
    /// `E1050` to `E1054`.
    pub fn begin(&self, plan: &PlanFolder, id: SessionId, own: Arc<File>) -> Result<Begun> {
        let folder = self.folder.join(id.to_string());
        // This says more than a file that is missing.
        if self.spent.has(id)? {
            return Err(used(id));
        }
        if !folder.is_dir() {
            return Err(Diagnostic::input("E1051", "there is no material of this session")
                .at(self.folder.display().to_string())
                .note(format!("expected  the folder {id}, as it was dealt"))
                .note("found     no folder of that name")
                .note("help      copy the server's part of what was dealt for the client"));
        }
        let file = SessionFile::read(&folder, Party::Server, plan, id)?;
        for (index, step) in file.steps.iter().enumerate() {
            let path = folder.join(step_name(index));
            if used_path(&path).exists() {
                return Err(used(id).at(path.display().to_string()));
            }
            let opened = Reader::<StepFile>::open(&path)?;
            let expected = step.file.as_deref().unwrap_or_default();
            let content = opened.content();
            if content.plan != plan.digest {
                return Err(foreign(&path, "plan", &plan.digest, &content.plan));
            }
            if content.session != file.session {
                return Err(foreign(&path, "session", &file.session, &content.session));
            }
            if content.step as usize != index {
                return Err(foreign(&path, "step", &index.to_string(), &content.step.to_string()));
            }
            if opened.digest() != expected {
                return Err(unreadable(&path, &format!("SHA-256 {} of its header", opened.digest()))
                    .note(format!("expected  SHA-256 {}", expected.escape_debug())));
            }
        }
        let path = self.folder.join(sharing_name(plain(&file.sharing, &folder)?));
        let sharing = SharingFile::read(&path, Party::Server, plan)?;
        if sharing.sharing != file.sharing {
            return Err(foreign(&path, "sharing of the weights", &file.sharing, &sharing.sharing));
        }
        let found = sharing.weights.as_deref().unwrap_or_default();
        if found != own.sha256() {
            let [expected, found] = [own.sha256(), found].map(|digest| format!("SHA-256 {digest}"));
            return Err(foreign(&path, "file of weights", &expected, &found));
        }
        let (key, weights_key) = (file.key(&folder.join(SESSION_FILE))?, key_of(&sharing.key, &path)?);
        let public = Arc::clone(&plan.public_weights) as Arc<dyn TensorSource>;
        let (parties, own) = ((plan.plan.derives()?, Party::Server), Some(own as Arc<dyn TensorSource>));
        let weights = Weights::of_key(&plan.plan.module, parties, &weights_key, public, own)?;
        self.spent.add(id)?;
        let sharing = sharing.sharing.clone();
        Ok(Begun { id, folder, file, key, sharing, weights_key, weights: Arc::new(weights), next: 0 })
    }
}

/// A name that has no folder in it.
fn plain<'a>(name: &'a str, folder: &Path) -> Result<&'a str> {
    let fine = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fine { Ok(name) } else { Err(unreadable(&folder.join(SESSION_FILE), "a sharing without a name")) }
}

/// The name of a file whose step has begun.
fn used_path(path: &Path) -> PathBuf {
    path.with_extension("used")
}

impl Begun {
    /// What the dealer sends in the next step, which is bound to `inputs`. The file is used from then on.
    ///
    /// # Errors
    /// `E1050`, `E1053` for other sizes or a step too many, `E1054`.
    pub fn step(&mut self, request: &Request, inputs: &StepInputs, way: Way) -> Result<Dealt> {
        let index = self.next;
        let place = self.folder.display().to_string();
        let Some(step) = self.file.steps.get(index) else {
            return Err(Diagnostic::input("E1053", "the session has more steps than were dealt")
                .at(place)
                .note(format!("expected  at most {} steps", self.file.steps.len()))
                .note("help      ask for fewer new tokens, or deal more steps"));
        };
        if step.inputs != inputs_digest(request, inputs, way)? {
            return Err(Diagnostic::input("E1053", format!("step {index} has other sizes than were dealt for it"))
                .at(place)
                .note(format!("expected  {}, without padding, drawing or other public inputs", shown(&step.sizes)))
                .note(format!("found     {}", shown(&inputs.sizes)))
                .note("help      give a prompt of that length, or deal for this one"));
        }
        self.next += 1;
        let path = self.folder.join(step_name(index));
        let file = Reader::open(&path)?;
        if Some(file.digest()) != step.file.as_deref() {
            return Err(unreadable(&path, "another file than when the session began"));
        }
        let to = used_path(&path);
        fs::rename(&path, &to).map_err(|error| unwritable(&to, &error.to_string()))?;
        sync_folder(&to)?;
        Ok(Dealt { file })
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.id
    }
}

/// The dealer's messages of one step.
pub struct Dealt {
    file: Reader<StepFile>,
}

impl Dealt {
    /// The messages of the step over `links`, with the dealer's from the file. They count as if they had come over a link.
    pub fn over<'a>(&'a mut self, links: LinkNet<'a>, meter: &'a Meter) -> DealtNet<'a> {
        DealtNet { dealt: self, links, meter }
    }

    /// Checks that the step has taken all that was dealt for it.
    ///
    /// # Errors
    /// `E1053`.
    pub fn end(&self) -> Result<()> {
        match self.file.rest() {
            0 => Ok(()),
            rest => Err(Diagnostic::input("E1053", "more was dealt for a step than it needs")
                .note(format!("found     {rest} bytes that were not read"))
                .note("help      deal for this plan and these sizes")),
        }
    }
}

/// The links of a session in which the dealer is a file.
pub struct DealtNet<'a> {
    dealt: &'a mut Dealt,
    links: LinkNet<'a>,
    meter: &'a Meter,
}

impl Net for DealtNet<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()> {
        self.links.send(epoch, tick, to, payload)
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        if from != Party::Dealer {
            return self.links.recv(epoch, tick, from, len);
        }
        let payload = self.dealt.file.read(len)?;
        // Nobody's message came before it.
        self.meter.count_received(from, payload.len(), 1);
        Ok(payload)
    }
}
