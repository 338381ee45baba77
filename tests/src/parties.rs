//! All parties of a setting in threads of their own over links in memory, from a plan folder, with everything that passed between them.

use ombra_ir::draw::Choice;
use ombra_ir::module::{Id, Party};
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::plan::InputRole;
use ombra_ir::schedule::Cost;
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::inputs::{Named, find, infer_request};
use ombra_runtime::app::region::Region;
use ombra_runtime::app::request::Advance;
use ombra_runtime::app::{PlanFolder, Request, program};
use ombra_runtime::backend::products::Products;
use ombra_runtime::exec::{LinkNet, Net, Opened, TensorSource};
use ombra_runtime::settings;
use ombra_runtime::settings::weights::{Weights, agree_weight_key};
use ombra_runtime::transport::{Session, Snapshot};
use std::sync::Arc;

/// Memory that a step may take, in bytes: as much as a party allows by default.
const MEMORY: u64 = 8 << 30;

/// The code of the error that stands for a panic of a party: no other error has it.
pub const PANIC: &str = "E0001";

/// A frame that one party sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The step.
    pub epoch: u32,
    /// The tick of the step.
    pub tick: u32,
    /// To whom.
    pub to: Party,
    /// Bytes of payload.
    pub bytes: usize,
}

/// What a party saw of its links.
#[derive(Clone)]
pub struct Log {
    /// Every frame that it sent, in order.
    pub sent: Vec<Sent>,
    /// How often every byte value came from every party.
    pub received: [[u64; 256]; 3],
}

/// What one party has after a step.
pub struct Seen {
    /// What it did to the texts.
    pub advance: Advance,
    /// What it learned.
    pub opened: Vec<Opened>,
    /// Payload bytes that it sent, by op.
    pub sent: Vec<u64>,
    /// What its links counted.
    pub meter: Snapshot,
}

/// What one party has after a run.
pub struct Side {
    /// Its steps.
    pub steps: Vec<Seen>,
    /// What passed its links, the set-up included.
    pub log: Log,
}

/// Links that are written down.
struct Recorded<'a> {
    links: LinkNet<'a>,
    log: Log,
}

impl Net for Recorded<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()> {
        self.log.sent.push(Sent { epoch, tick, to, bytes: payload.len() });
        self.links.send(epoch, tick, to, payload)
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        let payload = self.links.recv(epoch, tick, from, len)?;
        let counts = &mut self.log.received[from.index()];
        payload.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        Ok(payload)
    }
}

/// Runs the steps of `request` between the parties' threads. The client gives `given`, one list of tensors for every step; the
/// result is by party, with a third one that sent nothing where there are two.
///
/// # Errors
/// The error of the party that failed first.
pub fn run(folder: &PlanFolder, request: &Request, given: &[Vec<Named>]) -> Result<[Side; 3]> {
    run_choosing(folder, request, Choice::default(), given)
}

/// As [`run`], where every step chooses its tokens so.
///
/// # Errors
/// As [`run`].
pub fn run_choosing(folder: &PlanFolder, request: &Request, choice: Choice, given: &[Vec<Named>]) -> Result<[Side; 3]> {
    request.check(&folder.plan)?;
    let parties = folder.plan.module.setting.protocol().parties;
    let sessions = Session::in_memory(parties)?;
    let sides = std::thread::scope(|scope| {
        let threads: Vec<_> = parties
            .iter()
            .copied()
            .zip(&sessions)
            .map(|(party, session)| {
                scope.spawn(move || {
                    party_run(folder, request, choice, given, party, session).inspect_err(|error| session.abort(error))
                })
            })
            .collect();
        let panicked = || Diagnostic::internal(PANIC, "a party panicked");
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(panicked()))).collect::<Vec<_>>()
    });
    // A party that was told of another's error says less than that other.
    let mut errors: Vec<Diagnostic> = Vec::new();
    let mut good = Vec::new();
    for side in sides {
        match side {
            Ok(side) => good.push(side),
            Err(error) => errors.push(error),
        }
    }
    errors.sort_by_key(|error| error.kind == ombra_ir::Kind::Peer);
    if let ([client, _], true) = (good.as_slice(), errors.is_empty()) {
        let nobody = absent(client);
        good.push(nobody);
    }
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => good.try_into().map_err(|_| Diagnostic::internal("E0000", "there are three parties")),
    }
}

/// The third party of a setting without one: it sends nothing.
fn absent(client: &Side) -> Side {
    let step = |seen: &Seen| Seen {
        advance: seen.advance,
        opened: Vec::new(),
        sent: vec![0; seen.sent.len()],
        meter: Snapshot::default(),
    };
    let log = Log { sent: Vec::new(), received: [[0; 256]; 3] };
    Side { steps: client.steps.iter().map(step).collect(), log }
}

fn party_run(
    folder: &PlanFolder,
    request: &Request,
    choice: Choice,
    given: &[Vec<Named>],
    party: Party,
    session: &Session,
) -> Result<Side> {
    let log = Log { sent: Vec::new(), received: [[0; 256]; 3] };
    let mut net = Recorded { links: LinkNet::new(session, 1), log };
    let module = folder.module(request, choice.way())?;
    let keys = settings::agree_keys(&folder.plan.module, &folder.digest, party, &mut net)?;
    let own = match party {
        Party::Server => Some(Arc::new(folder.server_weights()?) as Arc<dyn TensorSource>),
        Party::Client | Party::Helper | Party::Dealer => None,
    };
    let public = Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>;
    let weights = if module.setting.third().is_ok() {
        let derives = folder.plan.derives()?;
        let key = agree_weight_key(derives, party, &mut net)?;
        Weights::share(&module, (derives, party), key.as_ref(), public, own, &mut net)?
    } else {
        Weights::unshared(&module, party, public, own)?
    };
    let weights = Arc::new(weights);
    let mut run = settings::begin(Arc::clone(&module), party, keys, weights, Products::cpu(1))?;
    let mut region = Region::open(folder, 1, None)?;
    let slots: Vec<(&str, DType)> = module.inputs.iter().map(|input| (input.name.as_str(), input.dtype)).collect();
    let mut steps = Vec::new();
    let mut keep = 0;
    for given in given {
        let advance = advance(folder, request, choice, keep, given);
        keep = advance.keep + advance.new;
        let inputs = request.step(&folder.plan, advance, MEMORY)?;
        let step = program::prepare(&module, &inputs.sizes, &inputs.public, MEMORY)?;
        let tensors = match party {
            Party::Client => {
                let public = inputs.public.into_iter().filter(|(name, _)| given.iter().all(|(other, _)| other != name));
                let known: Vec<Named> = given.iter().cloned().chain(public).collect();
                region.step(&folder.plan, &slots, &step.bound.bindings, &known, advance.keep)?
            }
            Party::Server | Party::Helper | Party::Dealer => Vec::new(),
        };
        session.meter().reset();
        let result = run.step(&step.bound, &step.schedule, &tensors, &mut net)?;
        steps.push(Seen { advance, opened: result.opened, sent: result.sent, meter: session.meter().snapshot() });
    }
    Ok(Side { steps, log: net.log })
}

/// What a step does to texts that have `keep` positions: all of the given tokens that are not among these are new.
fn advance(folder: &PlanFolder, request: &Request, choice: Choice, keep: u64, given: &[Named]) -> Advance {
    let tokens = folder.plan.graph_inputs.iter().find(|input| input.role == InputRole::TokenIds);
    let ids = tokens.and_then(|input| find(given, &input.name)).and_then(|ids| ids.shape().last().copied());
    match (request, ids) {
        (Request::Generate { .. }, Some(ids)) if folder.plan.past.is_some() => {
            Advance { keep, new: ids as u64, choice }
        }
        (Request::Generate { .. }, Some(ids)) => Advance { keep, new: ids as u64 - keep, choice },
        _ => Advance::default(),
    }
}

/// What a step of a run was measured to cost beside what it was declared to.
pub struct Costs {
    /// From the cost formulas.
    pub predicted: Cost,
    /// From the links.
    pub measured: Cost,
    /// The ops whose measured bytes are not the declared ones.
    pub wrong: Vec<Id>,
}

/// The costs of step `index` of a run.
///
/// # Errors
/// Sizes that the plan does not take.
pub fn costs(folder: &PlanFolder, request: &Request, sides: &[Side; 3], index: usize) -> Result<Costs> {
    let advance = sides[0].steps[index].advance;
    let module = &*folder.module(request, advance.choice.way())?;
    let inputs = request.step(&folder.plan, advance, MEMORY)?;
    let step = program::prepare(module, &inputs.sizes, &inputs.public, MEMORY)?;
    let mut costs = Costs { predicted: step.cost, measured: Cost::default(), wrong: Vec::new() };
    for (side, bytes) in sides.iter().zip(&mut costs.measured.bytes) {
        let seen = &side.steps[index];
        *bytes = seen.meter.sent_bytes();
        costs.measured.rounds = costs.measured.rounds.max(seen.meter.depth);
    }
    for id in (0..module.ops.len() as u32).map(Id) {
        let declared = step.schedule.op_bytes(module, id);
        if sides.iter().zip(declared).any(|(side, bytes)| side.steps[index].sent[id.index()] != bytes) {
            costs.wrong.push(id);
        }
    }
    Ok(costs)
}

/// Logits of token rows of equal length in one step of a plan that reveals them, row after row.
///
/// # Errors
/// As [`run`].
pub fn secret_logits(folder: &PlanFolder, rows: &[Vec<i64>]) -> Result<Vec<Vec<f32>>> {
    let ids = Tensor::i64(&[rows.len(), rows.first().map_or(0, Vec::len)], rows.concat())?;
    let (request, given) = infer_request(&folder.plan, vec![("input_ids".into(), ids)])?;
    let sides = run(folder, &request, &[given])?;
    let missing = || Diagnostic::internal("E0000", "no logits are revealed");
    let opened = sides[0].steps.first().and_then(|step| step.opened.first()).ok_or_else(missing)?;
    let width = opened.shape.last().copied().unwrap_or(1).max(1);
    Ok(opened.reals().chunks_exact(width).map(|row| row.iter().map(|v| *v as f32).collect()).collect())
}
