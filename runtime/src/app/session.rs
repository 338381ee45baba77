//! What all parties of a session do: keys, weights, steps, and what they measure.
//!
//! 1. Every party draws a pair key and sends it to the party before it.
//! 2. The client sends its [`Request`] to the others, which check it against the plan.
//! 3. Server and helper compare the requests they got, and agree on a sharing of the weights, see [`super::sharing`]. The
//!    client gets the key from which its part follows.
//! 4. Before every step the client says whether there is one, what of the texts it keeps, how much it adds, and how the
//!    next tokens are chosen. The server passes that on to the helper, which compares; then all bind the module alike and
//!    run it.
//! 5. The others send what they measured to the client.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use ombra_ir::draw::Way;
use ombra_ir::module::{Module, Setting};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Kind, Result};
use serde::{Deserialize, Serialize};

use super::folder::PlanFolder;
use super::material::Dealt;
use super::program::Step;
use super::request::{Advance, Request};
use crate::backend::products::{Products, Ran};
use crate::exec::{LinkNet, Net, Opened, Steps};
use crate::prg::Key;
use crate::settings;
use crate::settings::cx::Keys;
use crate::settings::weights::{Weights, agree_keys_of_two};
use crate::transport::{Party, Session};

/// Largest control message of a session in bytes.
pub(super) const CONTROL: u64 = crate::transport::MAX_CONTROL_BYTES;
/// Codes of errors in a party's own files.
const OF_FILES: [&str; 10] = ["E1001", "E1002", "E1003", "E1005", "E1020", "E1050", "E1051", "E1052", "E1053", "E1054"];
/// The number of the only run of a session.
const RUN: u64 = 1;

/// What the client says before every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Next {
    /// One more step.
    Step(Advance),
    /// The session is over.
    End,
}

/// What one party measured in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Largest depth of a message that it received.
    pub depth: u32,
    /// Payload bytes that it sent.
    pub bytes: u64,
    /// Payload bytes that it got from the dealer, where the setting has one.
    pub dealt: u64,
    /// Seconds that the phase took.
    pub seconds: f64,
}

impl Measured {
    /// What the session has sent since its meter was reset at `start`.
    pub(super) fn since(session: &Session, start: Instant) -> Measured {
        let seen = session.meter().snapshot();
        Measured { depth: seen.depth, bytes: seen.sent_bytes(), dealt: 0, seconds: start.elapsed().as_secs_f64() }
    }
}

/// What one party measured in a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// The phases in their order: set-up, then every step.
    pub phases: Vec<Measured>,
    /// Largest resident memory of the process, in bytes.
    pub peak_rss: u64,
    /// Where its products ran.
    pub products: Ran,
}

/// Measures one phase after the other.
pub(super) struct Phases<'a> {
    session: &'a Session,
    setting: Setting,
    stats: Stats,
}

impl<'a> Phases<'a> {
    pub(super) fn new(session: &'a Session, setting: Setting) -> Self {
        Phases { session, setting, stats: Stats::default() }
    }

    /// Does `work` as a phase of its own.
    pub(super) fn run<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.session.meter().reset();
        let start = Instant::now();
        let result = work()?;
        let seen = self.session.meter().snapshot();
        let seconds = start.elapsed().as_secs_f64();
        let dealer = self.setting.protocol().dealer;
        let dealt = dealer.map_or(0, |dealer| seen.peers[dealer.index()].received_bytes);
        self.stats.phases.push(Measured { depth: seen.depth, bytes: seen.sent_bytes(), dealt, seconds });
        Ok(result)
    }

    /// Adds a phase that was measured elsewhere.
    pub(super) fn push(&mut self, measured: Measured) {
        self.stats.phases.push(measured);
    }

    /// Adds what came before to the last phase.
    pub(super) fn add(&mut self, before: Measured) {
        if let Some(last) = self.stats.phases.last_mut() {
            last.depth = last.depth.saturating_add(before.depth);
            last.bytes = last.bytes.saturating_add(before.bytes);
            last.seconds += before.seconds;
        }
    }

    /// What the last phase measured.
    pub(super) fn last(&self) -> Measured {
        self.stats.phases.last().copied().unwrap_or_default()
    }

    /// All phases, the memory of the process, and where `products` ran.
    pub(super) fn end(mut self, products: &Products) -> Stats {
        self.stats.peak_rss = peak_rss();
        self.stats.products = products.ran();
        self.stats
    }
}

/// The executor's side of a session at one party.
pub(super) struct Engine<'a> {
    session: &'a Session,
    folder: &'a PlanFolder,
    request: Request,
    run: Box<dyn Steps>,
    /// Positions that the cache has.
    held: u64,
}

impl<'a> Engine<'a> {
    pub(super) fn new(
        session: &'a Session,
        folder: &'a PlanFolder,
        request: &Request,
        keys: Keys,
        weights: Arc<Weights>,
        products: Products,
    ) -> Result<Self> {
        let module = folder.module(request, Way::default())?;
        let run = settings::begin(module, session.party(), keys, weights, products)?;
        Ok(Engine { session, folder, request: request.clone(), run, held: 0 })
    }

    /// The module that a step runs, which may be another one than that of the step before.
    pub(super) fn module(&mut self, advance: Advance) -> Result<Arc<Module>> {
        let module = self.folder.module(&self.request, advance.choice.way())?;
        self.run.set_module(Arc::clone(&module));
        Ok(module)
    }

    /// Checks what the client is to give in a step, before the peers hear of the step.
    pub(super) fn check_inputs(&self, step: &Step, inputs: &[Tensor]) -> Result<()> {
        self.run.check_inputs(&step.bound, inputs)
    }

    /// Runs a step that was prepared with its module on what `advance` keeps of the cache; the client gives `inputs`, and
    /// `dealt` is what a dealer made ahead of time for the server.
    pub(super) fn step(
        &mut self,
        advance: Advance,
        step: &Step,
        inputs: &[Tensor],
        dealt: Option<&mut Dealt>,
    ) -> Result<Vec<Opened>> {
        let plan = &self.folder.plan;
        let past = plan.sym(&plan.past);
        if let Some(past) = past.filter(|_| advance.keep != self.held) {
            self.run.keep(past, advance.keep)?;
        }
        self.held = advance.keep.saturating_add(advance.new);
        // A helper deals ahead: as at a dealer's peer, half of the window waits here, or one frame.
        let longest = step.longest[Party::Helper.index()][self.session.party().index()];
        self.session.limit_queue(Party::Helper, longest.max(self.session.limits().dealt_window_bytes / 2));
        let mut links = LinkNet::new(self.session, RUN);
        let mut run = |net: &mut dyn Net| self.run.step(&step.bound, &step.schedule, inputs, net);
        let result = match dealt {
            None => run(&mut links)?,
            Some(dealt) => {
                let result = run(&mut dealt.over(links, self.session.meter()))?;
                dealt.end()?;
                result
            }
        };
        Ok(result.opened)
    }
}

/// Fresh keys of a session, and what counts as its set-up of that; `dealt` is the key that this party shares with a dealer
/// who is not there. Pair keys are 16 bytes and count nowhere; what else a setting agrees on does.
pub(super) fn keys(session: &Session, folder: &PlanFolder, dealt: Option<&Key>) -> Result<(Keys, Measured)> {
    let net = &mut LinkNet::new(session, RUN);
    let module = &folder.plan.module;
    session.meter().reset();
    let start = Instant::now();
    let keys = match dealt {
        Some(key) => agree_keys_of_two(session.party(), key, net),
        None => settings::agree_keys(module, &folder.digest, session.party(), net),
    }?;
    let counts = (module.setting.protocol().session_setup)(module).1 > 0;
    Ok((keys, if counts { Measured::since(session, start) } else { Measured::default() }))
}

/// The messages of the set-up.
pub(super) fn net(session: &Session) -> LinkNet<'_> {
    LinkNet::new(session, RUN)
}

/// Does `work`; when it fails, the peers are told why, unless that could say something about this party's data: of an
/// error of the client that no peer caused, and of a value that did not fit, they learn that there was one; of one in a
/// file, its code and not which file.
pub(super) fn guarded<T>(session: &Session, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().inspect_err(|error| {
        let own = session.party() == Party::Client && error.kind != Kind::Peer;
        if own || ["E0381", "E0806"].contains(&error.code) {
            session.abort(&Diagnostic::input("E1015", "the party ended the session"));
        } else if OF_FILES.contains(&error.code) {
            // Its place is a file of this party's.
            session.abort(&Diagnostic::internal(error.code, "a file of the party's"));
        } else {
            session.abort(error);
        }
    })
}

/// The error of a peer whose message makes no sense.
pub(super) fn senseless(peer: Party, what: &str) -> Diagnostic {
    Diagnostic::peer("E1008", format!("{peer} sent {what}")).note("help      run the same version on every party")
}

/// Largest resident memory of this process in bytes, 0 where the system does not say.
pub fn peak_rss() -> u64 {
    status_bytes("VmHWM:")
}

/// Resident memory of this process in bytes, 0 where the system does not say.
pub fn rss() -> u64 {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|text| text.trim().parse().ok());
    kilobytes.map_or(0, |kilobytes: u64| kilobytes.saturating_mul(1024))
}
