//! The terms of the weights as files: what a server that shares its weights ahead of time gives to the others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ombra_ir::schedule::setup_cost;
use ombra_ir::{Diagnostic, Result};

use super::chunks::{Reader, Writer};
use super::{
    ShareFile, SharingFile, VERSION, foreign, key_of, key_text, make_folder, share_name, sharing_name, unreadable,
    write_json,
};
use crate::app::folder::PlanFolder;
use crate::exec::{Net, TensorSource};
use crate::prg::Key;
use crate::settings::weights::Weights;
use crate::transport::{Party, SessionId};

/// Messages that go to a file, or come from one.
pub(super) enum FileNet<'a, T> {
    To(&'a mut Writer<T>),
    From(&'a mut Reader<T>),
}

impl<T: serde::Serialize> Net for FileNet<'_, T> {
    fn send(&mut self, _: u32, _: u32, _: Party, payload: Vec<u8>) -> Result<()> {
        match self {
            FileNet::To(file) => file.write(&payload),
            FileNet::From(_) => Err(one_way()),
        }
    }

    fn recv(&mut self, _: u32, _: u32, _: Party, len: u64) -> Result<Vec<u8>> {
        match self {
            FileNet::From(file) => file.read(len),
            FileNet::To(_) => Err(one_way()),
        }
    }
}

fn one_way() -> Diagnostic {
    Diagnostic::internal("E0805", "a message goes the wrong way: a dealer waits for nobody")
}

/// Shares the server's weights with a dealer through files, in folders by party in `output`: the key for the server, and for
/// the dealer its term. A strict dealer gets the key too, and the client the other term. The first is the path of the
/// dealer's file; all of them follow.
///
/// # Errors
/// `E0421`, `E1001` and `E1003` for the weights of the plan folder, `E1054`.
pub fn share_weights(folder: &PlanFolder, output: &Path, key: &Key) -> Result<(PathBuf, Vec<String>)> {
    let (plan, dealer) = (&folder.plan, folder.plan.module.setting.dealer()?);
    let derives = plan.derives()?;
    let own = Arc::new(folder.server_weights()?);
    let sharing = SessionId::random()?.to_string();
    let place = |party: Party, name: String| {
        let folder = output.join(party.name());
        make_folder(&folder).map(|()| folder.join(name))
    };
    let receives = if derives == dealer { Party::Client } else { dealer };
    let sent = place(receives, share_name(&sharing))?;
    let content = ShareFile { plan: folder.digest.clone(), sharing: sharing.clone() };
    let mut file = Writer::create(&sent, content, setup_cost(&plan.module).bytes[Party::Server.index()])?;
    let source = Some(Arc::clone(&own) as Arc<dyn TensorSource>);
    let (parties, net) = ((derives, Party::Server), &mut FileNet::To(&mut file));
    Weights::share(&plan.module, parties, Some(key), public(folder), source, net)?;
    own.check_unchanged()?;
    file.finish()?;
    let write_key = |party: Party| {
        let path = place(party, sharing_name(&sharing))?;
        let file = SharingFile {
            version: VERSION,
            party,
            plan: folder.digest.clone(),
            sharing: sharing.clone(),
            weights: (party == Party::Server).then(|| own.sha256().to_owned()),
            key: key_text(key).to_string(),
        };
        write_json(&path, &file).map(|()| path)
    };
    let mut paths = vec![sent, write_key(Party::Server)?];
    let mut of_dealer = paths[0].clone();
    if derives == dealer {
        of_dealer = write_key(dealer)?;
        paths.push(of_dealer.clone());
    }
    Ok((of_dealer, paths.iter().map(|path| path.display().to_string()).collect()))
}

/// What the dealer has of the weights, from its file at `path`, and the name of the sharing.
///
/// # Errors
/// `E0421`, `E1050`, `E1051`.
pub(super) fn weights_of_dealer(folder: &PlanFolder, path: &Path) -> Result<(Arc<Weights>, String)> {
    let (plan, dealer) = (&folder.plan, folder.plan.module.setting.dealer()?);
    let derives = plan.derives()?;
    if derives != dealer {
        return read_share(folder, dealer, path).map(|(weights, sharing)| (Arc::new(weights), sharing));
    }
    let file = SharingFile::read(path, dealer, folder)?;
    let weights = Weights::of_key(&plan.module, (derives, dealer), &key_of(&file.key, path)?, public(folder), None)?;
    Ok((Arc::new(weights), file.sharing.clone()))
}

/// The term of the weights that `party` has as a file at `path`, and the name of the sharing.
///
/// # Errors
/// `E1050`, `E1051`.
pub(super) fn read_share(folder: &PlanFolder, party: Party, path: &Path) -> Result<(Weights, String)> {
    let mut file = Reader::<ShareFile>::open(path)?;
    let ShareFile { plan, sharing } = file.content().clone();
    if plan != folder.digest {
        return Err(foreign(path, "plan", &folder.digest, &plan));
    }
    let (parties, net) = ((folder.plan.derives()?, party), &mut FileNet::From(&mut file));
    let weights = Weights::share(&folder.plan.module, parties, None, public(folder), None, net)?;
    match file.rest() {
        0 => Ok((weights, sharing)),
        rest => Err(unreadable(path, &format!("{rest} bytes more than the weights of the plan have"))),
    }
}

fn public(folder: &PlanFolder) -> Arc<dyn TensorSource> {
    Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>
}
