//! The client's side of a session: the plaintext region, the module's inputs, and what it learns.

use std::collections::BTreeMap;

use ombra_ir::module::OutputKind;
use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::schedule::Cost;
use ombra_ir::{Diagnostic, Result};

use super::consent::check_shown;
use super::folder::PlanFolder;
use super::inputs::{Named, infer_request, token_ids};
use super::isolation::Isolation;
use super::party::{client_weights, peer_stats};
use super::program;
use super::region::Region;
use super::report::{Bounds, Pair, Phase, Report};
use super::request::{Request, StepInputs};
use super::session::{Engine, Next, Phases, Stats, guarded, keys};
use crate::exec::Opened;
use crate::transport::{Party, Session};

/// What the client wants.
pub enum Task {
    /// Tokens after a prompt.
    Generate {
        /// The prompt.
        prompt: Vec<i64>,
        /// Most new tokens.
        count: u64,
        /// Tokens that end the text.
        stop: Vec<i64>,
    },
    /// One step on given inputs.
    Infer {
        /// The inputs, by the names of the model's.
        inputs: Vec<Named>,
    },
}

/// One step as it was run, kept for a comparison with a run in the clear. It holds the client's inputs.
pub struct Done {
    /// Sizes and public inputs.
    pub inputs: StepInputs,
    /// The module's inputs, in order.
    pub given: Vec<Tensor>,
    /// What was revealed, by name of the output.
    pub outputs: Vec<Named>,
}

/// What a session gave.
pub struct Outcome {
    /// Generated tokens.
    pub tokens: Vec<i64>,
    /// What the last step revealed.
    pub outputs: Vec<Named>,
    /// Every step, if asked for.
    pub steps: Vec<Done>,
    /// What was asked for.
    pub request: Request,
    /// Inputs of an `infer`, checked and converted.
    pub inputs: Vec<Named>,
    /// Predicted and measured costs.
    pub phases: Vec<Phase>,
    /// Largest resident memory by party, in bytes.
    pub peak_rss: BTreeMap<String, u64>,
}

/// How a session is run.
pub struct Options<'a> {
    /// Threads of this party.
    pub threads: usize,
    /// Whether to keep every step.
    pub keep_steps: bool,
    /// How the plan's model in the clear is kept apart; nothing runs it in this process, which a model that is not to be
    /// trusted can end.
    pub isolation: Option<&'a Isolation>,
    /// Is told every generated token.
    pub on_token: &'a mut dyn FnMut(i64) -> Result<()>,
}

/// A checked task, before any peer is connected to.
pub struct Prepared {
    request: Request,
    given: Vec<Named>,
    tokens: Vec<i64>,
    stop: Vec<i64>,
}

impl Prepared {
    /// Checks `task` against the plan, and what it shows to the other parties. `allowed` names inputs that the user shows
    /// though they are no masks or positions.
    ///
    /// # Errors
    /// `E1006`, `E1007`, `E1016`.
    pub fn new(folder: &PlanFolder, task: Task, allowed: &[String]) -> Result<Prepared> {
        let plan = &folder.plan;
        let prepared = match task {
            Task::Generate { prompt, count, stop } => {
                let outputs = &plan.module.outputs;
                if !outputs.iter().any(|output| output.kind == OutputKind::NextToken) {
                    return Err(Diagnostic::input("E1006", "the plan reveals no next token")
                        .note("help      use `infer`, or compile with `--reveal next-token`"));
                }
                let request = Request::Generate { prompt: prompt.len() as u64, batch: 1, steps: count };
                Prepared { request, given: Vec::new(), tokens: prompt, stop }
            }
            Task::Infer { inputs } => {
                let (request, given) = infer_request(plan, inputs)?;
                Prepared { request, given, tokens: Vec::new(), stop: Vec::new() }
            }
        };
        prepared.request.check(plan)?;
        check_shown(plan, &prepared.request, allowed)?;
        Ok(prepared)
    }
}

/// Runs a prepared task over `session`. When it fails, the peers are told.
///
/// # Errors
/// Whatever ended the session.
pub fn run(folder: &PlanFolder, session: &Session, task: Prepared, options: Options<'_>) -> Result<Outcome> {
    guarded(session, || steps(folder, session, task, options)).inspect(|_| session.finish())
}

fn steps(folder: &PlanFolder, session: &Session, task: Prepared, options: Options<'_>) -> Result<Outcome> {
    let plan = &folder.plan;
    let Prepared { request, given, mut tokens, stop } = task;
    let prompt = tokens.len();
    let limit = session.limits().max_memory_bytes;
    let peers = [Party::Server, Party::Helper];
    let tell = |next: Next| peers.into_iter().try_for_each(|peer| session.link(peer)?.send_control(&next));
    let keys = keys(session)?;
    peers.into_iter().try_for_each(|peer| session.link(peer)?.send_control(&request))?;
    let mut phases = Phases::new(session);
    let (weights, sends) = phases.run(|| client_weights(folder, session))?;
    let mut named =
        vec![("setup", Vec::new(), if sends { program::setup_cost(&folder.private) } else { Cost::default() })];
    let mut region = Region::open(folder, options.threads, options.isolation)?;
    let mut engine = Engine::new(session, folder, &request, keys, weights, options.threads)?;
    let slots: Vec<(String, DType)> =
        engine.module().inputs.iter().map(|input| (input.name.clone(), input.dtype)).collect();
    let slots: Vec<(&str, DType)> = slots.iter().map(|(name, dtype)| (name.as_str(), *dtype)).collect();
    let mut all = Vec::new();
    let mut outputs = Vec::new();
    for index in 0..request.steps() {
        let inputs = request.step(plan, index, limit)?;
        let mut known = given.clone();
        for (name, tensor) in &inputs.public {
            if !known.iter().any(|(other, _)| other == name) {
                known.push((name.clone(), tensor.clone()));
            }
        }
        if let Request::Generate { .. } = request {
            let new = if index > 0 && plan.past.is_some() { tokens.len().saturating_sub(1) } else { 0 };
            known.push(token_ids(plan, tokens.get(new..).unwrap_or_default())?);
        }
        let step = program::prepare(engine.module(), &inputs.sizes, &inputs.public, limit)?;
        program::check_traffic(&step, session.limits().max_traffic_bytes)?;
        let slots = region.step(plan, &slots, &step.bound.bindings, &known)?;
        engine.check_inputs(&step, &slots)?;
        tell(Next::Step)?;
        let opened = phases.run(|| engine.step(&step, &slots))?;
        outputs = opened.into_iter().map(|opened| output(folder, opened)).collect::<Result<Vec<_>>>()?;
        check_guard(folder, &mut outputs)?;
        named.push((inputs.name, inputs.sizes.clone(), step.cost));
        let token = match request {
            Request::Generate { .. } => Some(next_token(folder, &outputs)?),
            Request::Infer { .. } => None,
        };
        if options.keep_steps {
            all.push(Done { inputs, given: slots, outputs: outputs.clone() });
        }
        if let Some(token) = token {
            tokens.push(token);
            (options.on_token)(token)?;
            if stop.contains(&token) {
                break;
            }
        }
    }
    tell(Next::End)?;
    let [server, helper] = peer_stats(session, named.len())?;
    let stats = [phases.end(), server, helper];
    let tokens = tokens.split_off(prompt);
    let phases = named
        .into_iter()
        .enumerate()
        .map(|(index, (name, sizes, cost))| phase(name, sizes, &cost, index, &stats))
        .collect();
    let peak_rss = Party::ALL.iter().zip(&stats).map(|(party, stats)| (party.name().to_owned(), stats.peak_rss));
    Ok(Outcome { tokens, outputs, steps: all, request, inputs: given, phases, peak_rss: peak_rss.collect() })
}

/// A phase of the report from what all parties measured.
fn phase(name: &str, sizes: Vec<(String, u64)>, cost: &Cost, index: usize, stats: &[Stats; 3]) -> Phase {
    let seen = stats.each_ref().map(|stats| stats.phases.get(index).copied().unwrap_or_default());
    let depth = seen.iter().map(|seen| seen.depth).max().unwrap_or(0);
    let bytes = Party::ALL.iter().zip(cost.bytes).zip(&seen);
    Phase {
        name: name.to_owned(),
        dims: sizes.into_iter().collect(),
        seconds: seen[Party::Client.index()].seconds,
        rounds: Pair { predicted: cost.rounds.into(), measured: depth.into() },
        bytes: bytes
            .map(|((party, predicted), seen)| (party.name().to_owned(), Pair { predicted, measured: seen.bytes }))
            .collect(),
        offline_bytes: BTreeMap::new(),
    }
}

/// A revealed output as a tensor: ids of tokens as integers, all else as floats.
fn output(folder: &PlanFolder, opened: Opened) -> Result<Named> {
    let slot = folder.plan.module.outputs.get(opened.slot as usize);
    let slot =
        slot.ok_or_else(|| Diagnostic::internal("E1004", "an output is revealed that the plan does not name"))?;
    let data = match slot.kind {
        OutputKind::NextToken | OutputKind::Index | OutputKind::Guard => Data::I64(opened.values),
        OutputKind::Tensor => Data::F32(opened.reals().into_iter().map(|value| value as f32).collect()),
    };
    Ok((slot.name.clone(), Tensor::new(opened.shape, data)?))
}

/// Takes the guard out of the outputs of a step, which are void where it is set.
fn check_guard(folder: &PlanFolder, outputs: &mut Vec<Named>) -> Result<()> {
    let plan = &folder.plan;
    let Some(slot) = plan.module.outputs.iter().find(|slot| slot.kind == OutputKind::Guard) else { return Ok(()) };
    let Some(at) = outputs.iter().position(|(name, _)| *name == slot.name) else {
        return Err(Diagnostic::internal("E1004", "a step did not reveal its guard"));
    };
    let (_, bit) = outputs.remove(at);
    if bit.as_i64()? == [0] {
        return Ok(());
    }
    let places: Vec<&str> = plan.assumed.iter().take(3).map(|assumed| assumed.node.as_str()).collect();
    Err(Diagnostic::input("E1018", "this input leaves the ranges that the plan was made for: there is no result")
        .note(format!("expected values as on the inputs that were measured, at {}", places.join(", ")))
        .note("compile the model with --calibrate or --calibrate-text on inputs like this one"))
}

/// The id of the next token among the outputs of a step.
fn next_token(folder: &PlanFolder, outputs: &[Named]) -> Result<i64> {
    let slots = &folder.plan.module.outputs;
    let slot = slots.iter().find(|slot| slot.kind == OutputKind::NextToken);
    let tensor = slot.and_then(|slot| outputs.iter().find(|(name, _)| *name == slot.name));
    match tensor.map(|(_, tensor)| tensor.as_i64()).transpose()? {
        Some([token]) => Ok(*token),
        _ => Err(Diagnostic::internal("E1004", "a step revealed no single next token")),
    }
}

/// The report of an outcome, without comparisons and text.
pub fn report(folder: &PlanFolder, outcome: &Outcome, threads: usize, network: String) -> Report {
    let generated = matches!(outcome.request, Request::Generate { .. });
    Report {
        ombra: env!("CARGO_PKG_VERSION").to_owned(),
        setting: folder.plan.module.setting.name().to_owned(),
        plan_digest: folder.digest.clone(),
        backend: "cpu".to_owned(),
        threads,
        network,
        tokens: generated.then(|| outcome.tokens.clone()),
        phases: outcome.phases.clone(),
        peak_rss_bytes: outcome.peak_rss.clone(),
        bounds: Bounds::of(&folder.plan),
        changes: folder.plan.changes.clone(),
        ..Report::default()
    }
}
