//! The client's side of a session: the plaintext region, the module's inputs, and what it learns.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ombra_ir::bind::concrete;
use ombra_ir::draw::{Choosing, PENALTIES};
use ombra_ir::module::{OutputKind, Setting};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::Plan;
use ombra_ir::schedule::{Cost, setup_cost};
use ombra_ir::ty::axis_of;
use ombra_ir::{Diagnostic, Dim, Result};

use super::consent::check_shown;
use super::folder::PlanFolder;
use super::inputs::{Named, infer_request, token_ids};
use super::isolation::Isolation;
use super::material::Choice;
use super::party::peer_stats;
use super::program;
use super::region::Region;
use super::report::{Bounds, Pair, Phase, Report};
use super::request::{Advance, Course, MAX_STEPS, Request, StepInputs};
use super::session::{Engine, Next, Phases, Stats, guarded, keys};
use super::sharing::client_weights;
use crate::backend::products::{Products, Ran};
use crate::exec::Opened;
use crate::transport::{Party, Session};

/// The token where a text has none; the mask leaves it out.
const PADDING: i64 = 0;

/// What the client wants.
pub enum Task {
    /// Tokens after prompts.
    Generate {
        /// Prompts side by side, one or more.
        prompts: Vec<Vec<i64>>,
        /// Most new tokens of each.
        count: u64,
        /// Tokens that end a text.
        stop: Vec<i64>,
        /// How next tokens are chosen.
        choosing: Choosing,
    },
    /// One step on given inputs.
    Infer {
        /// The inputs, by the names of the model's.
        inputs: Vec<Named>,
    },
}

/// One step as it was run, kept for a comparison with a run in the clear. It holds the client's inputs.
pub struct Done {
    /// What it kept and added.
    pub advance: Advance,
    /// Sizes and public inputs.
    pub inputs: StepInputs,
    /// The module's inputs, in order.
    pub given: Vec<Tensor>,
    /// What was revealed, by name of the output.
    pub outputs: Vec<Named>,
    /// What it cost, by the plan.
    pub cost: Cost,
}

/// What a session gave.
pub struct Outcome {
    /// Generated tokens, by prompt.
    pub tokens: Vec<Vec<i64>>,
    /// What the last step revealed.
    pub outputs: Vec<Named>,
    /// Every step, if asked for.
    pub steps: Vec<Done>,
    /// What was asked for.
    pub request: Request,
    /// Inputs of an `infer`, checked and converted.
    pub inputs: Vec<Named>,
    /// Predicted and measured costs.
    pub costs: Costs,
}

/// What a session cost.
pub struct Costs {
    /// Predicted and measured costs.
    pub phases: Vec<Phase>,
    /// Largest resident memory by party, in bytes.
    pub peak_rss: BTreeMap<String, u64>,
    /// Where products ran, by party.
    pub products: BTreeMap<String, Ran>,
}

/// How a session is run.
pub struct Options<'a> {
    /// How this party makes products.
    pub products: Products,
    /// Whether to keep every step.
    pub keep_steps: bool,
    /// How the plan's model in the clear is kept apart; nothing runs it in this process, which a model that is not to be
    /// trusted can end.
    pub isolation: Option<&'a Isolation>,
    /// What a dealer who is not there dealt for the session.
    pub dealt: Option<&'a Choice>,
    /// Is told every generated token with the number of its prompt, and says whether that text goes on.
    pub on_token: &'a mut dyn FnMut(usize, i64) -> Result<ControlFlow<()>>,
}

/// A checked task, before any peer is connected to.
pub struct Prepared {
    request: Request,
    given: Vec<Named>,
    prompts: Vec<Vec<i64>>,
    count: u64,
    stop: Vec<i64>,
    choosing: Choosing,
}

impl Prepared {
    /// What is asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The steps that the task takes if no text ends before its time.
    pub fn advances(&self) -> Vec<Advance> {
        let Request::Generate { positions, .. } = &self.request else { return vec![Advance::default()] };
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
        let choice = self.choosing.choice();
        let further = (longest..*positions).map(|keep| Advance { keep, new: 1, choice });
        [Advance { keep: 0, new: longest, choice }].into_iter().chain(further).collect()
    }

    /// Number of prompts.
    pub fn prompts(&self) -> usize {
        self.prompts.len()
    }

    /// Checks `task` against the plan, and what it shows to the other parties. `allowed` names inputs that the user shows
    /// though they are no masks or positions.
    ///
    /// # Errors
    /// `E0415`, `E0417`, `E1006`, `E1007`, `E1016`.
    pub fn new(folder: &PlanFolder, task: Task, allowed: &[String]) -> Result<Prepared> {
        let plan = &folder.plan;
        let prepared = match task {
            Task::Generate { prompts, count, stop, choosing } => {
                choosing.check()?;
                let request = generation(plan, &prompts, count, &choosing)?;
                Prepared { request, given: Vec::new(), prompts, count, stop, choosing }
            }
            Task::Infer { inputs } => {
                let (request, given) = infer_request(plan, inputs)?;
                Prepared {
                    request,
                    given,
                    prompts: Vec::new(),
                    count: 0,
                    stop: Vec::new(),
                    choosing: Choosing::default(),
                }
            }
        };
        prepared.request.check(plan)?;
        check_shown(plan, &prepared.request, allowed)?;
        Ok(prepared)
    }
}

/// The request for `count` tokens after `prompts`, which are padded to one length.
///
/// # Errors
/// `E1006`, `E1007`.
fn generation(plan: &Plan, prompts: &[Vec<i64>], count: u64, choosing: &Choosing) -> Result<Request> {
    check_generation(plan, prompts, count)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let padding = prompts.iter().map(|prompt| (longest - prompt.len()) as u64).collect();
    // The last token that is learned is not fed.
    Ok(Request::Generate {
        padding,
        positions: (longest as u64).saturating_add(count - 1),
        ways: vec![choosing.choice().way()],
    })
}

/// Checks that a plan can give `count` tokens after `prompts`, before anything is sent.
///
/// # Errors
/// `E1006`, `E1007`.
pub fn check_generation(plan: &Plan, prompts: &[Vec<i64>], count: u64) -> Result<()> {
    if !plan.module.outputs.iter().any(|output| output.kind == OutputKind::NextToken) {
        return Err(Diagnostic::input("E1006", "the plan reveals no next token")
            .note("help      use `infer`, or compile with `--reveal next-token`"));
    }
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(Diagnostic::input("E1007", "the prompt is empty").note("expected  one token or more"));
    }
    if !(1..=MAX_STEPS).contains(&count) {
        return Err(Diagnostic::input("E1007", "the number of new tokens is out of range")
            .note(format!("expected  1 to {MAX_STEPS}"))
            .note(format!("found     {count}")));
    }
    prompts.iter().try_for_each(|prompt| check_tokens(plan, prompt))?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let positions = (longest as u64).saturating_add(count - 1);
    if let Some(most) = plan.max_of(&plan.seq).filter(|most| longest as u64 > *most) {
        return Err(Diagnostic::input("E1007", "the prompt is longer than the plan takes")
            .note(format!("expected  at most {most} tokens"))
            .note(format!("found     {longest}"))
            .note("help      use a shorter prompt, or compile with a larger `--max`"));
    }
    if let Some(most) = max_positions(plan).filter(|most| positions > *most) {
        return Err(Diagnostic::input("E1007", "the prompt and the new tokens are more than the plan takes")
            .note(format!("expected  at most {} tokens together", most.saturating_add(1)))
            .note(format!("found     {longest} of the prompt and {count} new ones"))
            .note("help      use a shorter prompt or fewer new tokens, or compile with a larger `--max`"));
    }
    Ok(())
}

/// How many tokens may be generated after a prompt of `length` tokens.
///
/// # Errors
/// `E1007` when there is no room for one.
pub fn tokens_left(plan: &Plan, length: usize) -> Result<u64> {
    let most = max_positions(plan).map_or(MAX_STEPS, |most| most.saturating_add(1).saturating_sub(length as u64));
    match most.min(MAX_STEPS) {
        0 => Err(Diagnostic::input("E1007", "the text is longer than the plan takes")
            .note(format!("expected  at most {} tokens", max_positions(plan).unwrap_or(0)))
            .note(format!("found     {length}"))
            .note("help      begin a new text, or compile with a larger `--max`")),
        most => Ok(most),
    }
}

/// Most positions that a text may have, where the plan has a limit.
pub fn max_positions(plan: &Plan) -> Option<u64> {
    let most = match &plan.past {
        // The last step keeps as many as there may be and adds one.
        Some(_) => plan.max_of(&plan.past).map(|past| past.saturating_add(1)),
        None => plan.max_of(&plan.seq),
    };
    // The model's own tables may end before that.
    let fits = |positions| Request::text(positions).check(plan).is_ok();
    let (mut low, mut high) = (0, most.unwrap_or(i64::MAX.unsigned_abs()));
    if fits(high) {
        return most;
    }
    while low < high {
        let middle = high - (high - low) / 2;
        (low, high) = if fits(middle) { (middle, high) } else { (low, middle - 1) };
    }
    Some(low)
}

/// Checks that tokens are ids of the model's vocabulary, as far as the plan tells: the library that looks embeddings up
/// would take a negative id for one from the end.
///
/// # Errors
/// `E1006`.
pub fn check_tokens(plan: &Plan, tokens: &[i64]) -> Result<()> {
    let vocabulary = vocabulary(plan);
    let is_id = |token: i64| token >= 0 && vocabulary.is_none_or(|size| token.unsigned_abs() < size);
    if tokens.iter().all(|token| is_id(*token)) {
        return Ok(());
    }
    let expected = vocabulary.map_or("0 or above".to_owned(), |size| format!("0 to {}", size.saturating_sub(1)));
    Err(Diagnostic::input("E1006", "a token id is not in the model's vocabulary")
        .note(format!("expected  ids {expected}")))
}

/// Number of tokens that the next one is chosen from.
fn vocabulary(plan: &Plan) -> Option<u64> {
    let module = &plan.module;
    let scores = module.ops.iter().filter_map(|node| match (&node.op, &*node.args) {
        (Op::ArgMax { .. }, [scores]) => module.ty(*scores).shape.last()?.as_constant(),
        _ => None,
    });
    scores.max().and_then(|size| u64::try_from(size).ok())
}

/// The client's side of an open session.
pub struct Conversation<'a> {
    folder: &'a PlanFolder,
    session: &'a Session,
    /// Whom the client talks to.
    peers: Vec<Party>,
    request: Request,
    course: Course,
    region: Region,
    engine: Engine<'a>,
    products: Products,
    phases: Phases<'a>,
    planned: Vec<Planned>,
    /// The texts so far, padding included.
    texts: Vec<Vec<i64>>,
}

/// A phase as the plan has it: its name, its sizes, what it costs.
type Planned = (&'static str, Vec<(String, u64)>, Cost);

impl<'a> Conversation<'a> {
    /// Agrees keys, makes the request, and gets the client's part of the weights. Products run on `threads` threads.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub fn open(
        folder: &'a PlanFolder,
        session: &'a Session,
        request: Request,
        threads: usize,
        isolation: Option<&Isolation>,
    ) -> Result<Self> {
        Self::open_with(folder, session, request, Products::cpu(threads), isolation, None)
    }

    /// [`open`](Self::open), with products made in this way, and what a dealer gave ahead of time, who is not there then: it
    /// is spent once the server has begun the session, before anything is sent to it.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub fn open_with(
        folder: &'a PlanFolder,
        session: &'a Session,
        request: Request,
        products: Products,
        isolation: Option<&Isolation>,
        dealt: Option<&Choice>,
    ) -> Result<Self> {
        let agreed = keys(session, folder, dealt.map(|choice| &choice.key));
        let (keys, agreeing) = match dealt {
            None => agreed?,
            Some(choice) => {
                let agreed = choice.heed(agreed)?;
                choice.spend()?;
                agreed
            }
        };
        let mut peers = vec![Party::Server];
        peers.extend(folder.plan.module.setting.beside().filter(|_| dealt.is_none()));
        peers.iter().try_for_each(|peer| session.link(*peer)?.send_control(&request))?;
        let mut phases = Phases::new(session, folder.plan.module.setting);
        let (weights, sends) = phases.run(|| client_weights(folder, session, dealt))?;
        phases.add(agreeing);
        let setup = if sends { setup_cost(&folder.plan.module) } else { Cost::default() };
        let region = Region::open(folder, products.threads(), isolation)?;
        let engine = Engine::new(session, folder, &request, keys, weights, products.clone())?;
        let texts = match &request {
            Request::Generate { padding, .. } => vec![Vec::new(); padding.len()],
            Request::Infer { .. } => Vec::new(),
        };
        let planned = vec![("setup", Vec::new(), setup)];
        let course = Course::default();
        Ok(Conversation { folder, session, peers, request, course, region, engine, products, phases, planned, texts })
    }

    /// How many positions at the beginning of `tokens` the session has in its cache already; never all of them, since a
    /// step adds one or more.
    pub fn common(&self, tokens: &[i64]) -> usize {
        let plan = &self.folder.plan;
        let held = self.texts.first().map_or(&[][..], Vec::as_slice);
        let most = tokens.len().saturating_sub(1);
        let common = held.iter().zip(tokens).take(most).take_while(|(held, token)| held == token).count();
        let is_cut = common < held.len();
        // A cache that cannot be cut serves the texts that go on from all of it.
        if is_cut && !can_be_cut(plan) { 0 } else { common }
    }

    /// How many more steps the session may have.
    pub fn steps_left(&self) -> u64 {
        self.course.steps_left()
    }

    /// Keeps the first `keep` positions of every text, adds `new` tokens, as many to each, and learns the next one of
    /// each. These are chosen by `choosing`; `answers` are the tokens that penalties count. `begin` hears the name and the cost of the step when its first message is about to be sent.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub fn next_tokens(
        &mut self,
        keep: u64,
        new: &[Vec<i64>],
        (choosing, answers): (&Choosing, &[Vec<i64>]),
        begin: &mut dyn FnMut(&'static str, &Cost),
    ) -> Result<(Vec<i64>, Done)> {
        let plan = &self.folder.plan;
        let added = new.first().map_or(0, Vec::len);
        if new.len() != self.texts.len() || new.iter().any(|new| new.len() != added) {
            return Err(Diagnostic::internal("E1004", "the texts of a batch do not grow alike"));
        }
        for (text, new) in self.texts.iter_mut().zip(new) {
            text.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            text.extend_from_slice(new);
        }
        let fed = if plan.past.is_some() { new } else { &self.texts };
        let given = [token_ids(plan, fed)?];
        let advance = Advance { keep, new: added as u64, choice: choosing.choice() };
        let done = self.step(advance, &given, (choosing, answers), begin)?;
        let tokens = next_tokens(self.folder, &done.outputs)?;
        if tokens.len() != self.texts.len() {
            return Err(Diagnostic::internal("E1004", "a step did not reveal one next token of every text"));
        }
        Ok((tokens, done))
    }

    /// Runs one step on `given` tensors; `begin` as in [`next_tokens`](Self::next_tokens).
    ///
    /// # Errors
    /// Whatever ended the session.
    pub fn step(
        &mut self,
        advance: Advance,
        given: &[Named],
        (choosing, answers): (&Choosing, &[Vec<i64>]),
        begin: &mut dyn FnMut(&'static str, &Cost),
    ) -> Result<Done> {
        let plan = &self.folder.plan;
        let limits = self.session.limits();
        self.course.take(&self.request, advance)?;
        let inputs = self.request.step(plan, advance, limits.max_memory_bytes)?;
        let mut known = given.to_vec();
        for (name, tensor) in &inputs.public {
            if !known.iter().any(|(other, _)| other == name) {
                known.push((name.clone(), tensor.clone()));
            }
        }
        let module = self.engine.module(advance)?;
        let step = program::prepare(&module, &inputs.sizes, &inputs.public, limits.max_memory_bytes)?;
        program::check_traffic(&step, &limits)?;
        if let Some(slot) = module.inputs.iter().find(|slot| slot.name == PENALTIES) {
            let shape = concrete(&slot.shape, &step.bound.bindings)?;
            known.push((slot.name.clone(), penalties(&shape, choosing, answers)?));
        }
        let slots: Vec<(&str, DType)> = module.inputs.iter().map(|slot| (slot.name.as_str(), slot.dtype)).collect();
        let given = self.region.step(plan, &slots, &step.bound.bindings, &known, advance.keep)?;
        self.engine.check_inputs(&step, &given)?;
        tell(self.session, &self.peers, Next::Step(advance))?;
        let engine = &mut self.engine;
        let opened = self.phases.run(|| {
            begin(inputs.name, &step.cost);
            engine.step(advance, &step, &given, None)
        })?;
        let mut outputs = opened.into_iter().map(|opened| output(self.folder, opened)).collect::<Result<Vec<_>>>()?;
        check_guard(self.folder, &mut outputs)?;
        self.planned.push((inputs.name, inputs.sizes.clone(), step.cost.clone()));
        Ok(Done { advance, inputs, given, outputs, cost: step.cost })
    }

    /// Ends the session and collects what it cost.
    ///
    /// # Errors
    /// Whatever ended the session.
    pub fn end(self) -> Result<Costs> {
        tell(self.session, &self.peers, Next::End)?;
        let others = peer_stats(self.session, &self.peers, self.planned.len())?;
        let stats: Vec<Stats> = [self.phases.end(&self.products)].into_iter().chain(others).collect();
        let setting = self.folder.plan.module.setting;
        let phases = self
            .planned
            .into_iter()
            .enumerate()
            .map(|(index, (name, sizes, cost))| phase(setting, (name, sizes, cost), index, &stats))
            .collect();
        let parties = setting.protocol().parties;
        let peak_rss = parties.iter().zip(&stats).map(|(party, stats)| (party.name().to_owned(), stats.peak_rss));
        let products = parties.iter().zip(&stats).map(|(party, stats)| (party.name().to_owned(), stats.products));
        Ok(Costs { phases, peak_rss: peak_rss.collect(), products: products.collect() })
    }
}

/// What is added to the logits of all texts, a row for each.
fn penalties(shape: &[usize], choosing: &Choosing, answers: &[Vec<i64>]) -> Result<Tensor> {
    let [rows, vocabulary] = *shape else {
        return Err(Diagnostic::input("E1004", "the plan's penalties have no rows of tokens"));
    };
    if rows != answers.len() {
        return Err(Diagnostic::internal("E1004", "penalties are for another number of texts"));
    }
    let elements = answers.iter().flat_map(|answer| choosing.penalties.of(answer, vocabulary)).collect();
    Tensor::f32(shape, elements)
}

/// Whether all states of a plan have positions along an axis of their own.
fn can_be_cut(plan: &Plan) -> bool {
    let past = plan.sym(&plan.past);
    let has_axis = |shape: &[Dim]| past.is_some_and(|past| axis_of(shape, past).is_some());
    let shapes = plan.module.states.iter().map(|state| &state.shape);
    shapes.chain(plan.client_states.iter().map(|state| &state.shape)).all(|shape| has_axis(shape))
}

fn tell(session: &Session, peers: &[Party], next: Next) -> Result<()> {
    peers.iter().try_for_each(|peer| session.link(*peer)?.send_control(&next))
}

/// Runs a prepared task over `session`. When it fails, the peers are told.
///
/// # Errors
/// Whatever ended the session.
pub fn run(folder: &PlanFolder, session: &Session, task: Prepared, options: Options<'_>) -> Result<Outcome> {
    guarded(session, || steps(folder, session, task, options)).inspect(|_| session.finish())
}

fn steps(folder: &PlanFolder, session: &Session, task: Prepared, options: Options<'_>) -> Result<Outcome> {
    let Prepared { request, given, prompts, count, stop, choosing } = task;
    let (products, isolation) = (options.products, options.isolation);
    let mut conversation =
        Conversation::open_with(folder, session, request.clone(), products, isolation, options.dealt)?;
    let mut all = Vec::new();
    let mut outputs = Vec::new();
    let mut tokens: Vec<Vec<i64>> = vec![Vec::new(); prompts.len()];
    if let Request::Infer { .. } = request {
        let done = conversation.step(Advance::default(), &given, (&choosing, &[]), &mut |_, _| {})?;
        outputs.clone_from(&done.outputs);
        all.extend(options.keep_steps.then_some(done));
    }
    let padded = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let mut new: Vec<Vec<i64>> =
        prompts.into_iter().map(|prompt| [vec![PADDING; padded - prompt.len()], prompt].concat()).collect();
    let mut goes_on = vec![true; new.len()];
    let mut keep = 0;
    while goes_on.contains(&true) {
        let added = new.first().map_or(0, Vec::len) as u64;
        let (next, done) = conversation.next_tokens(keep, &new, (&choosing, &tokens), &mut |_, _| {})?;
        keep += added;
        outputs.clone_from(&done.outputs);
        all.extend(options.keep_steps.then_some(done));
        for (row, &token) in next.iter().enumerate().filter(|(row, _)| goes_on[*row]).collect::<Vec<_>>() {
            tokens[row].push(token);
            let flow = (options.on_token)(row, token)?;
            goes_on[row] = flow.is_continue() && !stop.contains(&token) && (tokens[row].len() as u64) < count;
        }
        new = next.into_iter().map(|token| vec![token]).collect();
    }
    let costs = conversation.end()?;
    Ok(Outcome { tokens, outputs, steps: all, request, inputs: given, costs })
}

/// A phase of the report from what all parties measured.
fn phase(setting: Setting, (name, sizes, cost): Planned, index: usize, stats: &[Stats]) -> Phase {
    let of = |party: usize| stats.get(party).and_then(|stats| stats.phases.get(index)).copied().unwrap_or_default();
    // Of a dealer who was not there nothing was measured.
    let seen = [0, 1, 2].map(of);
    let depth = seen.iter().map(|seen| seen.depth).max().unwrap_or(0);
    let dealer = setting.protocol().dealer;
    let sent = setting.apart(cost.bytes);
    let parties = setting.protocol().parties;
    let online = parties.iter().zip(sent.online).zip(&seen).filter(|((party, _), _)| dealer != Some(**party));
    // Who gets it counts it: it may have been dealt ahead.
    let dealt = seen.iter().map(|seen| seen.dealt).sum();
    Phase {
        name: name.to_owned(),
        dims: sizes.into_iter().collect(),
        seconds: seen[Party::Client.index()].seconds,
        rounds: Pair { predicted: cost.rounds.into(), measured: depth.into() },
        bytes: online
            .map(|((party, predicted), seen)| (party.name().to_owned(), Pair { predicted, measured: seen.bytes }))
            .collect(),
        offline_bytes: dealer
            .iter()
            .map(|dealer| (dealer.name().to_owned(), Pair { predicted: sent.dealt, measured: dealt }))
            .collect(),
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

/// The ids of the next tokens among the outputs of a step.
fn next_tokens(folder: &PlanFolder, outputs: &[Named]) -> Result<Vec<i64>> {
    let slots = &folder.plan.module.outputs;
    let slot = slots.iter().find(|slot| slot.kind == OutputKind::NextToken);
    let tensor = slot.and_then(|slot| outputs.iter().find(|(name, _)| *name == slot.name));
    match tensor.map(|(_, tensor)| tensor.as_i64()).transpose()? {
        Some(tokens) => Ok(tokens.to_vec()),
        None => Err(Diagnostic::internal("E1004", "a step revealed no next token")),
    }
}

/// A report on runs of a plan, without any yet.
pub fn report(folder: &PlanFolder, products: &Products, network: String) -> Report {
    Report {
        ombra: env!("CARGO_PKG_VERSION").to_owned(),
        setting: folder.plan.module.setting.name().to_owned(),
        strict_dealer: folder.plan.strict_dealer,
        plan_digest: folder.digest.clone(),
        backend: products.ran().backend.name().to_owned(),
        threads: products.threads(),
        network,
        bounds: Bounds::of(&folder.plan),
        changes: folder.plan.changes.clone(),
        ..Report::default()
    }
}
