//! The steps of a session at one party.
//!
//! Time goes in ticks. At the beginning of a tick, ops whose last round has ended give their results, then the ops that
//! the schedule starts in it at this party run (local ones) or send their first messages (interactive ones). Whoever deals
//! in an op ends it in the tick in which it begins; what it deals waits at the others for their tick, one later at most.
//! What all ops send to a peer in a tick is one frame, in the order of ops. Values are freed at their last use; state slots
//! and weights stay between steps.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ombra_ir::bind::{Bound, concrete, place};
use ombra_ir::module::{Id, Module, Node, Party};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::reference::{encode, signed};
use ombra_ir::schedule::{Schedule, party};
use ombra_ir::ty::axis_of;
use ombra_ir::{Diagnostic, Result, Sym};

use super::net::Net;
use super::port::Part;
use super::side::{Begun, Ended, Given, Side, Site, row_index};
use super::task::Task;
use crate::backend::products::Products;

/// Most ticks of a step: a plan with more rounds would run for days on any network.
pub const MAX_TICKS: u32 = 1 << 22;

/// Refuses a schedule of more than [`MAX_TICKS`] ticks, before memory is taken for each.
///
/// # Errors
/// `E0816`.
pub fn check_ticks(schedule: &Schedule) -> Result<()> {
    if schedule.ticks <= MAX_TICKS {
        return Ok(());
    }
    Err(Diagnostic::input("E0816", "a step of the plan has too many rounds")
        .note(format!("expected  at most {MAX_TICKS}"))
        .note(format!("found     {}", schedule.ticks)))
}

/// One party's side of a session, in a setting.
pub struct Run<S: Side> {
    module: Arc<Module>,
    party: Party,
    side: S,
    products: Products,
    states: Vec<Option<Kept<S::Value>>>,
    step: u32,
    failed: bool,
}

/// Steps of a session at one party, whatever the setting.
pub trait Steps {
    /// As [`Run::step`].
    ///
    /// # Errors
    /// Those of [`Run::step`].
    fn step(&mut self, bound: &Bound, schedule: &Schedule, inputs: &[Tensor], net: &mut dyn Net) -> Result<StepResult>;

    /// As [`Run::set_module`].
    fn set_module(&mut self, module: Arc<Module>);

    /// As [`Run::keep`].
    ///
    /// # Errors
    /// Those of [`Run::keep`].
    fn keep(&mut self, past: Sym, length: u64) -> Result<()>;

    /// As [`Run::check_inputs`].
    ///
    /// # Errors
    /// Those of [`Run::check_inputs`].
    fn check_inputs(&self, bound: &Bound, inputs: &[Tensor]) -> Result<()>;
}

impl<S: Side> Steps for Run<S> {
    fn step(&mut self, bound: &Bound, schedule: &Schedule, inputs: &[Tensor], net: &mut dyn Net) -> Result<StepResult> {
        Run::step(self, bound, schedule, inputs, net)
    }

    fn set_module(&mut self, module: Arc<Module>) {
        Run::set_module(self, module);
    }

    fn keep(&mut self, past: Sym, length: u64) -> Result<()> {
        Run::keep(self, past, length)
    }

    fn check_inputs(&self, bound: &Bound, inputs: &[Tensor]) -> Result<()> {
        Run::check_inputs(self, bound, inputs)
    }
}

/// Content of a state slot.
struct Kept<V> {
    value: Arc<V>,
    shape: Vec<usize>,
}

/// Checks that the setting has a kernel for every op, before a run is begun.
///
/// # Errors
/// `E0815`.
pub fn check_kernels<S: Side>(module: &Module) -> Result<()> {
    match (0u32..).zip(&module.ops).find(|(_, node)| !S::has_kernel(&node.op)) {
        None => Ok(()),
        Some((i, node)) => {
            let what = format!("{} has no kernel in the setting {}", node.op.name(), module.setting.name());
            Err(Diagnostic::internal("E0815", what).at(place(module, Id(i))))
        }
    }
}

/// What a step gave.
#[derive(Default)]
pub struct StepResult {
    /// What this party learned, in order of the outputs' slots.
    pub opened: Vec<Opened>,
    /// Payload bytes that this party sent, by op.
    pub sent: Vec<u64>,
}

/// An output that was opened to this party. It has no `Debug`.
pub struct Opened {
    /// Index in the module's outputs.
    pub slot: u32,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Fraction bits.
    pub scale: u8,
    /// Integers in two's complement.
    pub values: Vec<i64>,
}

impl Opened {
    /// The reals that the integers stand for.
    pub fn reals(&self) -> Vec<f64> {
        let unit = (-f64::from(self.scale)).exp2();
        self.values.iter().map(|v| *v as f64 * unit).collect()
    }
}

/// One step under way.
struct Step<'a, V> {
    module: &'a Module,
    bound: &'a Bound,
    schedule: &'a Schedule,
    values: Vec<Option<Arc<V>>>,
    uses: Vec<u32>,
    tasks: BTreeMap<Id, Task<Ended<V>>>,
    /// Ops in which role 2 deals, by its tick.
    deals: BTreeMap<u32, Vec<Id>>,
    /// Tasks of ops in which this party dealt in this tick.
    dealing: BTreeMap<Id, Task<Ended<V>>>,
    /// What was dealt to this party for ops that have not begun.
    early: BTreeMap<Id, Part>,
    kept: Vec<(u32, Kept<V>)>,
    result: StepResult,
}

impl<S: Side> Run<S> {
    /// The side of `party` of a session that runs the verified `module` and makes products as `products` says.
    ///
    /// # Errors
    /// `E0815` when the setting has no kernel for one of its ops.
    pub fn new(module: Arc<Module>, party: Party, side: S, products: Products) -> Result<Self> {
        check_kernels::<S>(&module)?;
        let states = module.states.iter().map(|_| None).collect();
        Ok(Run { module, party, side, products, states, step: 0, failed: false })
    }

    /// Runs one step of the bound and scheduled module. The client gives `inputs`, one for each input slot; the other
    /// parties give none.
    ///
    /// # Errors
    /// An input that is missing, of another shape, or beyond its bound; a peer that fails; E0808 after an earlier error:
    /// randomness of a failed step must not be used again.
    pub fn step(
        &mut self,
        bound: &Bound,
        schedule: &Schedule,
        inputs: &[Tensor],
        net: &mut dyn Net,
    ) -> Result<StepResult> {
        if self.failed || self.step >= super::net::WEIGHTS_EPOCH {
            return Err(Diagnostic::internal("E0808", "the session has ended").note("start a new session"));
        }
        check_ticks(schedule)?;
        let epoch = self.step;
        self.step += 1;
        self.failed = true;
        let module = Arc::clone(&self.module);
        let count = module.ops.len();
        let mut uses = vec![0u32; count];
        module.ops.iter().flat_map(|node| &node.args).for_each(|arg| uses[arg.index()] += 1);
        let mut step = Step {
            module: &module,
            bound,
            schedule,
            values: (0..count).map(|_| None).collect(),
            uses,
            tasks: BTreeMap::new(),
            deals: BTreeMap::new(),
            dealing: BTreeMap::new(),
            early: BTreeMap::new(),
            kept: Vec::new(),
            result: StepResult { opened: Vec::new(), sent: vec![0; count] },
        };
        let mut starts = vec![Vec::new(); schedule.ticks as usize + 1];
        for (id, ticks) in (0u32..).map(Id).zip(&schedule.start) {
            starts[ticks[self.party.index()] as usize].push(id);
            if let Some((dealer, _)) = step.dealt(id) {
                step.deals.entry(ticks[dealer]).or_default().push(id);
            }
        }
        for (tick, ids) in (0u32..).zip(starts) {
            step.end_rounds()?;
            for id in ids {
                self.begin(&mut step, id, epoch, inputs).map_err(|error| error.at(place(&module, id)))?;
            }
            if tick < schedule.ticks {
                step.exchange(self.party, epoch, tick, net)?;
            }
        }
        if !step.tasks.is_empty() {
            return Err(Diagnostic::internal("E0816", "ops are under way after the last tick of the schedule"));
        }
        for (slot, kept) in step.kept {
            if let Some(state) = self.states.get_mut(slot as usize) {
                *state = Some(kept);
            }
        }
        self.failed = false;
        step.result.opened.sort_by_key(|opened| opened.slot);
        Ok(step.result)
    }

    /// Goes on with another program of the same plan: it has the same states and weights, under the same ids.
    pub fn set_module(&mut self, module: Arc<Module>) {
        self.module = module;
    }

    /// Cuts every state to its first `length` elements along the axis that has the size `past`; without a message, since
    /// every party cuts its own part. With no length they are as before the first step.
    ///
    /// # Errors
    /// `E0818` for a state without that axis, or a shorter one.
    pub fn keep(&mut self, past: Sym, length: u64) -> Result<()> {
        if length == 0 {
            self.states.iter_mut().for_each(|state| *state = None);
        }
        for (slot, state) in self.module.states.iter().zip(&mut self.states) {
            let Some(kept) = state else { continue };
            let axis = axis_of(&slot.shape, past);
            let size = axis.and_then(|axis| kept.shape.get(axis)).copied();
            let (Some(axis), Some(size), Ok(length)) = (axis, size, usize::try_from(length)) else {
                return Err(not_kept("a state of the plan cannot be cut"));
            };
            match length.cmp(&size) {
                Ordering::Greater => return Err(not_kept("a step keeps more than there is")),
                Ordering::Equal => continue,
                Ordering::Less => {}
            }
            let value = self.side.cut(&kept.value, &kept.shape, axis, length)?;
            let shape = kept.shape.iter().enumerate().map(|(at, &size)| if at == axis { length } else { size });
            *state = Some(Kept { value: Arc::new(value), shape: shape.collect() });
        }
        Ok(())
    }

    /// Checks what the client is to give in a step, without a message: types, bounds of floats, ranges of ids. What a step
    /// refuses later would tell the peers, by the time at which it ends, something of the client's data.
    ///
    /// # Errors
    /// `E0817`, `E0381`, `E0806`.
    pub fn check_inputs(&self, bound: &Bound, inputs: &[Tensor]) -> Result<()> {
        let module = &*self.module;
        for (id, node) in (0u32..).map(Id).zip(&module.ops) {
            let checked = match node.op {
                Op::Input { slot } => self.client_floats(module, bound, id, slot, inputs).map(drop),
                Op::ClientInts { slot } => self.client_ints(bound, slot, inputs).map(drop),
                Op::Embed => self.check_ids(bound, node, inputs),
                _ => Ok(()),
            };
            checked.map_err(|error| error.at(place(module, id)))?;
        }
        Ok(())
    }

    /// Checks that the ids of a lookup are rows of its table.
    fn check_ids(&self, bound: &Bound, node: &Node, inputs: &[Tensor]) -> Result<()> {
        let [ids, table] = *node.args else { return Err(missing()) };
        let mut ids = self.module.node(ids);
        while let (Op::Reshape { .. }, [arg]) = (&ids.op, &*ids.args) {
            ids = self.module.node(*arg);
        }
        let Op::ClientInts { slot } = ids.op else { return Ok(()) };
        let rows = bound.shapes.get(table.index()).and_then(|shape| shape.first()).copied().unwrap_or(0);
        let ids = self.client_ints(bound, slot, inputs)?.unwrap_or_default();
        ids.into_iter().try_for_each(|id| row_index(id, rows).map(drop))
    }

    /// Runs a local op, or an interactive one up to the end of its first round.
    fn begin(&self, step: &mut Step<'_, S::Value>, id: Id, epoch: u32, inputs: &[Tensor]) -> Result<()> {
        let node = step.module.node(id);
        let given = match node.op {
            // Made when an op takes it.
            Op::PublicWeight { .. } | Op::Weight { .. } => return Ok(()),
            Op::State { slot } => {
                step.put(id, self.state(step.bound, id, slot)?);
                return Ok(());
            }
            Op::Input { slot } => Given::Words(self.client_floats(step.module, step.bound, id, slot, inputs)?),
            Op::ClientInts { slot } => Given::Ints(self.client_ints(step.bound, slot, inputs)?),
            _ => Given::Nothing,
        };
        let mut args = Vec::with_capacity(node.args.len());
        for (i, &arg) in node.args.iter().enumerate() {
            args.push(match step.module.node(arg).op {
                Op::PublicWeight { .. } | Op::Weight { .. } => self.side.weight(arg, &node.op, i)?,
                _ => step.take(arg)?,
            });
        }
        if let Op::SetState { slot } = node.op {
            let value = self.side.settled(args.first().ok_or_else(missing)?)?;
            step.kept.push((slot, Kept { value, shape: step.bound.shapes[id.index()].clone() }));
            return Ok(());
        }
        let site = Site {
            module: step.module,
            bound: step.bound,
            id,
            party: self.party,
            epoch,
            traffic: step.schedule.traffic.get(id.index()).ok_or_else(missing)?,
            is_shared: step.uses[id.index()] > 1,
            products: &self.products,
        };
        match self.side.begin(site, args, given)? {
            Begun::Value(value) => step.put(id, value),
            Begun::Opened(words) => step.opened(id, words),
            Begun::Waits(mut task) => {
                task.deal(step.early.remove(&id).unwrap_or_default());
                match task.poll()? {
                    None => _ = step.tasks.insert(id, task),
                    Some(ended) => {
                        step.end(id, ended);
                        if task.deals() {
                            step.dealing.insert(id, task);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The client's tensor for an input slot, cut to the last element of the slot's cut axes; `None` at other parties.
    fn client_input(&self, bound: &Bound, slot: u32, inputs: &[Tensor]) -> Result<Option<Tensor>> {
        if self.party != Party::Client {
            return Ok(None);
        }
        let index = slot as usize;
        let (Some(slot), Some(tensor)) = (self.module.inputs.get(index), inputs.get(index)) else {
            return Err(Diagnostic::input("E0817", "the client gives one tensor for every input of the plan")
                .note(format!("expected  {} tensors", self.module.inputs.len()))
                .note(format!("found     {}", inputs.len())));
        };
        let expected = concrete(&slot.shape, &bound.bindings)?;
        if tensor.shape() != expected || tensor.dtype() != slot.dtype {
            return Err(Diagnostic::input("E0817", format!("input `{}` has another type", slot.name))
                .note(format!("expected  {} of shape {expected:?}", slot.dtype.name()))
                .note(format!("found     {} of shape {:?}", tensor.dtype().name(), tensor.shape())));
        }
        Ok(Some(tensor.clone()))
    }

    fn client_ints(&self, bound: &Bound, slot: u32, inputs: &[Tensor]) -> Result<Option<Vec<i64>>> {
        self.client_input(bound, slot, inputs)?.map(|tensor| tensor.as_i64().map(<[i64]>::to_vec)).transpose()
    }

    fn client_floats(
        &self,
        module: &Module,
        bound: &Bound,
        id: Id,
        slot: u32,
        inputs: &[Tensor],
    ) -> Result<Option<Vec<u64>>> {
        let Some(tensor) = self.client_input(bound, slot, inputs)? else { return Ok(None) };
        let ty = module.ty(id);
        let (bits, scale) = ty.as_ring().ok_or_else(missing)?;
        encode(tensor.as_f32()?, bits, scale, ty.bound).map(Some)
    }

    /// The content of a state slot; an empty one before the first step that sets it.
    fn state(&self, bound: &Bound, id: Id, slot: u32) -> Result<Arc<S::Value>> {
        let expected = &bound.shapes[id.index()];
        match self.states.get(slot as usize) {
            Some(Some(kept)) if kept.shape == *expected => Ok(Arc::clone(&kept.value)),
            Some(None) if expected.contains(&0) => self.side.empty(self.module.ty(id), expected).map(Arc::new),
            found => {
                let found = found.and_then(Option::as_ref).map(|kept| &kept.shape);
                Err(Diagnostic::internal("E0818", "a state slot has another shape than the step expects")
                    .note(format!("expected  {expected:?}"))
                    .note(format!("found     {found:?}")))
            }
        }
    }
}

impl<V> Step<'_, V> {
    /// An operand; it is freed here at its last use.
    fn take(&mut self, id: Id) -> Result<Arc<V>> {
        let slot = &mut self.values[id.index()];
        let uses = &mut self.uses[id.index()];
        *uses = uses.saturating_sub(1);
        let value = if *uses == 0 { slot.take() } else { slot.clone() };
        value.ok_or_else(|| Diagnostic::internal("E0816", "an op runs before its operand"))
    }

    fn put(&mut self, id: Id, value: Arc<V>) {
        if self.uses[id.index()] > 0 {
            self.values[id.index()] = Some(value);
        }
    }

    /// Stores what an interactive op ended with.
    fn end(&mut self, id: Id, ended: Ended<V>) {
        match ended {
            Ended::Value(value) => self.put(id, Arc::new(value)),
            Ended::Opened(words) => self.opened(id, words),
        }
    }

    /// Keeps an output that this party learned.
    fn opened(&mut self, id: Id, words: Option<Vec<u64>>) {
        let (node, Some(words)) = (self.module.node(id), words) else { return };
        let operand = node.args.first().and_then(|&arg| self.module.ty(arg).as_ring());
        let (bits, scale) = operand.unwrap_or((64, 0));
        if let Op::Reveal { slot } = node.op {
            let shape = self.bound.shapes[id.index()].clone();
            let values = words.iter().map(|w| signed(*w, bits)).collect();
            self.result.opened.push(Opened { slot, shape, scale, values });
        }
    }

    /// Lets every op under way read what arrived and send its next messages.
    fn end_rounds(&mut self) -> Result<()> {
        for (id, mut task) in std::mem::take(&mut self.tasks) {
            match task.poll().map_err(|error| error.at(place(self.module, id)))? {
                Some(ended) => self.end(id, ended),
                None => _ = self.tasks.insert(id, task),
            }
        }
        Ok(())
    }

    /// Who deals in an op, and its bytes to every party, if it deals any.
    fn dealt(&self, id: Id) -> Option<(usize, [u64; 3])> {
        let dealt = self.schedule.traffic.get(id.index())?.dealt.filter(|dealt| dealt.bytes != [0; 2])?;
        let mut bytes = [0; 3];
        let rot = self.module.node(id).rot;
        (0u8..).zip(dealt.bytes).for_each(|(to, size)| bytes[party(to, rot)] = size);
        Some((party(2, rot), bytes))
    }

    /// Sends one frame to every peer and gives what the peers sent to the ops.
    fn exchange(&mut self, party: Party, epoch: u32, tick: u32, net: &mut dyn Net) -> Result<()> {
        let own = party.index();
        let parties = self.module.setting.protocol().parties;
        let peers = parties.iter().copied().filter(|peer| *peer != party);
        let mut dealing = std::mem::take(&mut self.dealing);
        for peer in peers.clone() {
            let total: usize = self.tasks.values().chain(dealing.values()).map(|task| task.sends(peer.index())).sum();
            let mut frame = Vec::new();
            let mut tasks: Vec<_> = self.tasks.iter_mut().chain(&mut dealing).collect();
            tasks.sort_unstable_by_key(|(id, _)| **id);
            for (&id, task) in tasks {
                let bytes = task.outgoing(peer.index()).map_err(|error| error.at(place(self.module, id)))?;
                self.result.sent[id.index()] += bytes.len() as u64;
                if bytes.len() == total {
                    frame = bytes;
                } else {
                    frame.reserve_exact(total.saturating_sub(frame.len()));
                    frame.extend_from_slice(&bytes);
                }
            }
            if !frame.is_empty() {
                net.send(epoch, tick, peer, frame).map_err(|error| self.waiting(error, peer))?;
            }
        }
        drop(dealing);
        net.wait_for_room();
        // What comes from every party for every op, in the order of ops: of its round, and dealt.
        let mut expected: BTreeMap<Id, [usize; 3]> = BTreeMap::new();
        for (&id, task) in &self.tasks {
            expected.insert(id, [0, 1, 2].map(|from| if from == own { 0 } else { task.expected(from) }));
        }
        for id in self.deals.remove(&tick).unwrap_or_default() {
            if let Some((dealer, bytes)) = self.dealt(id).filter(|(dealer, _)| *dealer != own) {
                let size = usize::try_from(bytes[own]).map_err(|_| missing())?;
                expected.entry(id).or_default()[dealer] += size;
            }
        }
        let mut frames: [Option<Rc<Vec<u8>>>; 3] = Default::default();
        for peer in peers {
            let from = peer.index();
            let total: usize = expected.values().map(|sizes| sizes[from]).sum();
            if total > 0 {
                let frame = net.recv(epoch, tick, peer, total as u64);
                let waiting = || expected.iter().find(|(_, sizes)| sizes[from] > 0).map(|(id, _)| *id);
                frames[from] = Some(Rc::new(frame.map_err(|error| self.at_peer(error, waiting(), peer))?));
            }
        }
        let mut taken = [0; 3];
        for (id, sizes) in expected {
            let mut messages: [Part; 3] = Default::default();
            for (from, size) in sizes.into_iter().enumerate() {
                let end = taken[from] + size;
                if let Some(frame) = frames[from].as_ref().filter(|_| size > 0) {
                    messages[from] = Part::new(frame, taken[from]..end);
                }
                taken[from] = end;
            }
            let dealer = self.dealt(id).map(|(dealer, _)| dealer).filter(|&dealer| sizes[dealer] > 0);
            match (self.tasks.get_mut(&id), dealer) {
                (Some(task), dealer) => {
                    if let Some(dealer) = dealer {
                        task.deal(std::mem::take(&mut messages[dealer]));
                    }
                    task.deliver(messages).map_err(|error| error.at(place(self.module, id)))?;
                }
                (None, Some(dealer)) => _ = self.early.insert(id, std::mem::take(&mut messages[dealer])),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// An error of the link to `peer`, with the first op under way that waits for it.
    fn waiting(&self, error: Diagnostic, peer: Party) -> Diagnostic {
        let from = peer.index();
        let id = self.tasks.iter().find(|(_, task)| task.expected(from) > 0).or(self.tasks.iter().next());
        self.at_peer(error, id.map(|(id, _)| *id), peer)
    }

    /// An error of the link to `peer`, at an op.
    fn at_peer(&self, error: Diagnostic, id: Option<Id>, peer: Party) -> Diagnostic {
        match id {
            Some(id) => error.at(format!("{}, with {}", place(self.module, id), peer.name())),
            None => error,
        }
    }
}

fn not_kept(what: &str) -> Diagnostic {
    Diagnostic::input("E0818", what).note("help      begin a new session")
}

fn missing() -> Diagnostic {
    Diagnostic::internal("E0811", "an op has too few operands or attributes out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_of_too_many_ticks_is_refused() {
        let schedule = |ticks| Schedule { start: Vec::new(), ready: Vec::new(), traffic: Vec::new(), ticks };
        assert!(check_ticks(&schedule(MAX_TICKS)).is_ok());
        assert_eq!(check_ticks(&schedule(u32::MAX)).err().map(|error| error.code), Some("E0816"));
    }
}
