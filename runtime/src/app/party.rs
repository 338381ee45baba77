//! The server's and the helper's side: sessions one after another, with weights that are shared once.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::folder::PlanFolder;
use super::measure::answer;
use super::program;
use super::request::{Course, Request};
use super::session::{CONTROL, Engine, Next, Phases, Stats, guarded, keys, net, senseless};
use super::weights::Weights as File;
use crate::exec::{TensorSource, Weights};
use crate::prg::Key;
use crate::transport::{Acceptor, Frame, Party, Purpose, Session, SessionId};

/// Number of the run, and the place among its frames, of the key of the weights.
const KEY_FRAME: (u64, u32, u32) = (1, u32::MAX - 2, 0);

/// Which sharing of the weights the server has and the name of the one it makes if the helper lacks that, and the
/// request that the client made to the server; sent to the helper.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    kept: Option<String>,
    fresh: String,
    request: String,
}

/// Whether the helper holds its part, and the request that the client made to it; sent to the server.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    held: bool,
    request: String,
}

/// Whether the server sends the helper its part in this session, sent to the client before the key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sharing {
    sends: bool,
}

/// The helper's words to server and client once it holds the weights that were sent in this session: until then it and
/// the server are silent, for as long as the weights are on their way.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Received {
    Weights,
}

/// What a serving party keeps between sessions.
pub enum Keep {
    /// The server's.
    Server {
        /// The private weights.
        file: Arc<File>,
        /// The sharing that was made last, once there is one.
        sharing: Option<SharedWeights>,
    },
    /// The helper's: the name of the sharing and the components, once they have come.
    Helper(Option<(String, Arc<Weights>)>),
}

/// A sharing of the weights at the server.
pub struct SharedWeights {
    /// Its name.
    epoch: String,
    /// The key of client and server, from which component 1 of every weight follows. It makes this sharing and no other:
    /// from two sharings under one key the helper would learn the difference of the weights.
    key: Key,
    /// Both components that the server holds.
    weights: Arc<Weights>,
}

impl Keep {
    /// What `party` keeps at the start of its process.
    ///
    /// # Errors
    /// Those of [`PlanFolder::server_weights`], and `E1006` for the client, which does not serve.
    pub fn new(party: Party, folder: &PlanFolder) -> Result<Keep> {
        match party {
            Party::Server => Ok(Keep::Server { file: Arc::new(folder.server_weights()?), sharing: None }),
            Party::Helper => Ok(Keep::Helper(None)),
            Party::Client => {
                Err(Diagnostic::input("E1006", "the client does not serve").note("help      use `generate` or `infer`"))
            }
        }
    }
}

/// Serves the sessions of `acceptor`, one after another and for ever. `failed` is told about every session that failed.
pub fn serve(
    folder: &PlanFolder,
    acceptor: &Acceptor,
    keep: &mut Keep,
    threads: usize,
    mut failed: impl FnMut(Diagnostic),
) {
    while let Some(session) = acceptor.next(None) {
        if let Err(error) = serve_session(folder, &session, keep, threads) {
            failed(error);
        }
        drop(session);
        crate::memory::return_freed_blocks();
    }
}

/// Serves one session to its end. When it fails, the peers are told; a panic is a failure of this session alone.
///
/// # Errors
/// Whatever ended the session, `E1014` for a panic.
pub fn serve_session(folder: &PlanFolder, session: &Session, keep: &mut Keep, threads: usize) -> Result<()> {
    guarded(session, || {
        if session.purpose() != Purpose::Run {
            return answer(session);
        }
        // What is kept is replaced as a whole, so that a panic leaves the old or the new.
        let served = panic::catch_unwind(AssertUnwindSafe(|| steps(folder, session, keep, threads)));
        served.unwrap_or_else(|_| {
            Err(Diagnostic::internal("E1014", "a fault of this program ended the session")
                .note("help      report this, with the lines above; other sessions are not affected"))
        })
    })
    .inspect(|()| session.finish())
}

fn steps(folder: &PlanFolder, session: &Session, keep: &mut Keep, threads: usize) -> Result<()> {
    let client = session.link(Party::Client)?;
    let plan = &folder.plan;
    let limit = session.limits().max_memory_bytes;
    let keys = keys(session)?;
    let request: Request = client.recv_control(CONTROL)?;
    request.check(plan)?;
    let mut phases = Phases::new(session);
    if let Keep::Server { file, .. } = keep {
        file.check_unchanged()?;
    }
    let weights = phases.run(|| match keep {
        Keep::Server { file, sharing } => server_weights(folder, session, file, &request.digest()?, sharing),
        Keep::Helper(held) => helper_weights(folder, session, &request.digest()?, held),
    })?;
    let mut engine = Engine::new(session, folder, &request, keys, weights, threads)?;
    let mut course = Course::default();
    // Also after the last step: a party that had nothing to wait for in it learns here whether it failed.
    while let Next::Step(advance) = client.recv_control_within(CONTROL, session.limits().idle)? {
        course.take(&request, advance)?;
        let step = request.step(plan, advance, limit)?;
        let step = program::prepare(engine.module(), &step.sizes, &step.public, limit)?;
        program::check_traffic(&step, session.limits().max_traffic_bytes)?;
        phases.run(|| engine.step(plan, advance, &step, &[]))?;
    }
    client.send_control(&phases.end())
}

/// The server's components; the helper gets its part unless it holds it, and the client the key.
fn server_weights(
    folder: &PlanFolder,
    session: &Session,
    file: &Arc<File>,
    request: &str,
    sharing: &mut Option<SharedWeights>,
) -> Result<Arc<Weights>> {
    let (client, helper) = (session.link(Party::Client)?, session.link(Party::Helper)?);
    let kept = sharing.as_ref().map(|sharing| sharing.epoch.clone());
    let fresh = SessionId::random()?.to_string();
    helper.send_control(&Offer { kept, fresh: fresh.clone(), request: request.to_owned() })?;
    let Held { held, request: other } = helper.recv_control(CONTROL)?;
    same_request(request, &other)?;
    client.send_control(&Sharing { sends: !held })?;
    let give = |key: &Key| -> Result<()> {
        let (run, op, round) = KEY_FRAME;
        client.send(Frame::new(run, op, round, key.bytes().to_vec()))?;
        // The key is not part of the cost of the weights: what is counted begins here.
        session.meter().reset();
        Ok(())
    };
    if held {
        let kept = sharing.as_ref().ok_or_else(|| senseless(Party::Helper, "that it holds weights it never got"))?;
        give(&kept.key)?;
        return Ok(Arc::clone(&kept.weights));
    }
    // The old key goes first: whatever ends this function, it makes no second sharing.
    *sharing = None;
    let key = Key::random()?;
    give(&key)?;
    let own = Arc::clone(file) as Arc<dyn TensorSource>;
    let module = &folder.plan.module;
    let made = Weights::share(module, Party::Server, Some(&key), public(folder), Some(own), &mut net(session))?;
    let weights = Arc::new(made);
    let Received::Weights = helper.recv_control_within(CONTROL, session.limits().setup)?;
    *sharing = Some(SharedWeights { epoch: fresh, key, weights: Arc::clone(&weights) });
    Ok(weights)
}

/// Compares the digests of what the client asked of server and helper.
fn same_request(own: &str, other: &str) -> Result<()> {
    if own == other {
        return Ok(());
    }
    Err(senseless(Party::Client, "one request to the server and another to the helper"))
}

fn helper_weights(
    folder: &PlanFolder,
    session: &Session,
    request: &str,
    kept: &mut Option<(String, Arc<Weights>)>,
) -> Result<Arc<Weights>> {
    let server = session.link(Party::Server)?;
    let Offer { kept: offered, fresh, request: other } = server.recv_control(CONTROL)?;
    let held = kept.as_ref().filter(|(epoch, _)| Some(epoch) == offered.as_ref());
    let held = held.map(|(_, weights)| Arc::clone(weights));
    server.send_control(&Held { held: held.is_some(), request: request.to_owned() })?;
    same_request(request, &other)?;
    if let Some(weights) = held {
        return Ok(weights);
    }
    // The old sharing goes first: two of them may not fit into memory.
    *kept = None;
    let own = Party::Helper;
    let module = &folder.plan.module;
    let weights = Arc::new(Weights::share(module, own, None, public(folder), None, &mut net(session))?);
    *kept = Some((fresh, Arc::clone(&weights)));
    for peer in [Party::Server, Party::Client] {
        session.link(peer)?.send_control(&Received::Weights)?;
    }
    Ok(weights)
}

/// The client's components of the weights, and whether the server sends the helper its part in this session.
pub(super) fn client_weights(folder: &PlanFolder, session: &Session) -> Result<(Arc<Weights>, bool)> {
    let server = session.link(Party::Server)?;
    let Sharing { sends } = server.recv_control(CONTROL)?;
    let (run, op, round) = KEY_FRAME;
    let (key, _) = server.recv(run, op, round, 16)?;
    let key = <[u8; 16]>::try_from(key).map_err(|_| senseless(Party::Server, "a key of another length"))?;
    session.meter().reset();
    let key = Key::from_bytes(key);
    let own = Party::Client;
    let module = &folder.plan.module;
    let weights = Weights::share(module, own, Some(&key), public(folder), None, &mut net(session))?;
    if sends {
        let Received::Weights = session.link(Party::Helper)?.recv_control_within(CONTROL, session.limits().setup)?;
    }
    Ok((Arc::new(weights), sends))
}

/// What the others measured, once they have ended.
pub(super) fn peer_stats(session: &Session, phases: usize) -> Result<[Stats; 2]> {
    let mut all = [Stats::default(), Stats::default()];
    for (stats, peer) in all.iter_mut().zip([Party::Server, Party::Helper]) {
        *stats = session.link(peer)?.recv_control(CONTROL)?;
        if stats.phases.len() != phases {
            return Err(senseless(peer, "measurements of another number of phases"));
        }
    }
    Ok(all)
}

fn public(folder: &PlanFolder) -> Arc<dyn TensorSource> {
    Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>
}
