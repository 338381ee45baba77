//! The program of a session: the plan's module, and one step of it with its sizes known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ombra_ir::bind::{Bound, bind_lengths_within, bind_within, check_bytes};
use ombra_ir::draw::Way;
use ombra_ir::infer::push_like;
use ombra_ir::module::{InputSlot, Module, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::plan::Plan;
use ombra_ir::schedule::{Cost, Schedule, schedule};
use ombra_ir::settings::dealer::exp_table;
use ombra_ir::settings::{Setting, Traffic};
use ombra_ir::ty::{Elem, Sharing};
use ombra_ir::{Diagnostic, Result, verify};

use super::client::max_positions;
use super::folder::PlanFolder;
use super::request::{Advance, Request};
use crate::config::Limits;
use crate::exec::run::check_ticks;
use crate::settings;

/// Texts side by side for which the memory of a step is worked out.
const MAX_BATCH: usize = 4096;

/// A step that every party has bound in the same way.
pub struct Step {
    /// Sizes and public values.
    pub bound: Bound,
    /// When every op runs.
    pub schedule: Schedule,
    /// What the step costs.
    pub cost: Cost,
    /// Most bytes that it takes at once, weights aside.
    pub memory: u64,
    /// Payload bytes of the longest message of a tick: `longest[from][to]`, by party.
    pub longest: [[u64; 3]; 3],
}

/// Binds `module` to the sizes and public inputs of a step, and schedules it. A step that takes more than `limit` bytes
/// is refused before anything of that size is allocated.
///
/// # Errors
/// Those of [`bind_within`] and [`schedule`], `E0405` above the limit, `E0816` for too many rounds.
pub fn prepare(module: &Module, sizes: &[(String, u64)], public: &[(String, Tensor)], limit: u64) -> Result<Step> {
    let bound = bind_within(module, &named(sizes), public, limit);
    scheduled(module, bound, limit)
}

fn named(sizes: &[(String, u64)]) -> Vec<(&str, u64)> {
    sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect()
}

/// The step of a `bound` module.
fn scheduled(module: &Module, bound: Result<Bound>, limit: u64) -> Result<Step> {
    let more = |error: Diagnostic| match error.code {
        "E0405" => error.note("help      the limit is limits.max_memory_bytes of the configuration"),
        _ => error,
    };
    let bound = bound.map_err(more)?;
    let schedule = schedule(module, &bound)?;
    check_ticks(&schedule)?;
    let public = bound.public.iter().fold(0u64, |sum, tensor| sum.saturating_add(8 * tensor.len() as u64));
    let memory = live_bytes(module, &bound, &schedule).saturating_add(public);
    check_bytes(memory, limit).map_err(more)?;
    let cost = schedule.cost(module);
    let mut longest = [[0; 3]; 3];
    for frame in schedule.frames(module) {
        longest
            .iter_mut()
            .flatten()
            .zip(frame.into_iter().flatten())
            .for_each(|(most, bytes)| *most = bytes.max(*most));
    }
    Ok(Step { bound, schedule, cost, memory, longest })
}

/// Checks that all parties together send at most as many payload bytes in `step` as `limits` allow, and client and server
/// no longer message: a plan of a few ops may ask for very large ones.
///
/// # Errors
/// `E1021`.
pub fn check_traffic(step: &Step, limits: &Limits) -> Result<()> {
    let limit = limits.max_traffic_bytes;
    // What a dealer sends is cut into short messages.
    let longest = step.longest.iter().take(2).flatten().fold(0, |longest, &bytes| bytes.max(longest));
    if longest > limits.max_frame_bytes {
        return Err(Diagnostic::input("E1021", "a message of a step is longer than this party accepts")
            .note(format!("expected  at most {} bytes", limits.max_frame_bytes))
            .note(format!("found     {longest} bytes, as the plan says"))
            .note("help      give a shorter input, or raise limits.max_frame_bytes in every party's configuration"));
    }
    let bytes = step.cost.bytes.iter().fold(0u64, |sum, &bytes| sum.saturating_add(bytes));
    if bytes <= limit {
        return Ok(());
    }
    Err(Diagnostic::input("E1021", "a step sends more than this party accepts")
        .note(format!("expected  at most {limit} bytes of all parties"))
        .note(format!("found     {bytes} bytes, as the plan says"))
        .note("help      give a shorter input, or raise limits.max_traffic_bytes of the configuration"))
}

/// Most bytes that the values and messages of a step take at once, beside public values and weights. Saturates.
fn live_bytes(module: &Module, bound: &Bound, schedule: &Schedule) -> u64 {
    // Ops that give their operand's words another type, or keep them, take no memory of their own.
    let mut owner: Vec<usize> = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let same = matches!(
            node.op,
            Op::Reshape { .. } | Op::SetScale { .. } | Op::Narrow { .. } | Op::SetState { .. } | Op::Reveal { .. }
        );
        let first = node.args.first().filter(|_| same).and_then(|arg| owner.get(arg.index()));
        owner.push(first.copied().unwrap_or(i));
    }
    // Of the parties, that which begins first and that which begins last.
    let end = schedule.ticks;
    let first = |ticks: &[u32; 3]| ticks.iter().copied().fold(u32::MAX, u32::min);
    let latest = |ticks: &[u32; 3]| ticks.iter().copied().fold(0, u32::max);
    let mut last: Vec<u32> = schedule.start.iter().map(latest).collect();
    // A state stays until the step is over, whoever took it before.
    for (node, last) in module.ops.iter().zip(&mut last) {
        if matches!(node.op, Op::State { .. }) {
            *last = end;
        }
    }
    for (node, start) in module.ops.iter().zip(&schedule.start) {
        let until = if matches!(node.op, Op::SetState { .. }) { end } else { latest(start) };
        for arg in &node.args {
            if let Some(last) = owner.get(arg.index()).and_then(|&owner| last.get_mut(owner)) {
                *last = until.max(*last);
            }
        }
    }
    // What begins at a tick, and what is freed after it.
    let mut changes: BTreeMap<u32, [u64; 2]> = BTreeMap::new();
    let mut add = |from: u32, to: u32, bytes: u64| {
        let [begins, _] = changes.entry(from).or_default();
        *begins = begins.saturating_add(bytes);
        let [_, ends] = changes.entry(to.saturating_add(1)).or_default();
        *ends = ends.saturating_add(bytes);
    };
    for (i, node) in module.ops.iter().enumerate() {
        let (Some(starts), Some(&last), Some(traffic)) = (schedule.start.get(i), last.get(i), schedule.traffic.get(i))
        else {
            continue;
        };
        let start = first(starts);
        let elements = bound.shapes.get(i).map_or(&[][..], Vec::as_slice);
        let elements = elements.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
        let temporary = elements.saturating_mul(temporary_bytes(module, &node.op));
        let temporary = temporary.saturating_add(correlation_bytes(module, &node.op, traffic));
        add(start, latest(starts).saturating_add(traffic.rounds), traffic.bytes().saturating_add(temporary));
        if owner.get(i) == Some(&i) && !matches!(node.op, Op::Weight { .. } | Op::PublicWeight { .. }) {
            let bytes = match (node.ty.elem, node.ty.sharing) {
                (Elem::Bit, _) => elements.div_ceil(4),
                (Elem::Ring { .. }, Sharing::Shared | Sharing::Masked) => elements.saturating_mul(16),
                (Elem::Ring { .. }, _) | (Elem::Plain(_), Sharing::Client) => elements.saturating_mul(8),
                // The public program's, counted there.
                (Elem::Plain(_), _) => 0,
            };
            add(start, last, bytes);
        }
    }
    let (mut live, mut most) = (0u64, 0);
    for [begins, ends] in changes.into_values() {
        live = live.saturating_sub(ends).saturating_add(begins);
        most = most.max(live);
    }
    most
}

/// Bytes of what an op of two parties computes with beside its messages, all of which its chooser begins: of transfers rows of
/// 16 for each, of which about 2 are sent in the first round; of ciphertexts both polynomials in words of 8, one of which is
/// sent in 44 bits at least.
fn correlation_bytes(module: &Module, op: &Op, traffic: &Traffic) -> u64 {
    if module.setting != Setting::TwoParty {
        return 0;
    }
    let begun = traffic.msgs.iter().filter(|msg| msg.round == 0).map(|msg| msg.bytes).fold(0u64, u64::saturating_add);
    match op {
        Op::MatMul { .. } => begun.saturating_mul(3),
        _ => begun.saturating_mul(9),
    }
}

/// Most bytes that a party has of an element of a lookup while it is under way, beside its messages: a vector of bits of all
/// cells, and words of the mask or the index, of sums, what is opened and its masks, and factors.
fn temporary_bytes(module: &Module, op: &Op) -> u64 {
    let has_dealer = module.setting.protocol().dealer.is_some();
    let words = match *op {
        Op::Lookup { window, cell, .. } => {
            let cells = 1u64.checked_shl(window.saturating_sub(cell).into()).unwrap_or(u64::MAX);
            cells.div_ceil(64).saturating_add(12)
        }
        Op::ExpDigits { window, tail, .. } if has_dealer => {
            (exp_table(window, tail).count as u64).div_ceil(64).saturating_add(8)
        }
        _ => 0,
    };
    words.saturating_mul(8)
}

/// The programs of a plan by how they choose tokens, each made once, when it is first run.
#[derive(Default)]
pub struct Programs {
    made: Mutex<BTreeMap<Way, Arc<Module>>>,
}

impl Programs {
    /// The module that a step of a session with `request` runs to choose tokens in a `way`. The verifier passes it: that of a
    /// plan's own was checked when the folder was opened, and others are checked here.
    ///
    /// # Errors
    /// `E1004`, `E0416`, `E0417`, and the verifier's first finding.
    pub fn module(&self, plan: &Plan, request: &Request, way: Way) -> Result<Arc<Module>> {
        if request.gives_states() {
            return with_given_states(&plan.module);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = made.get(&way) {
            return Ok(Arc::clone(module));
        }
        let module = match plan.drawing(way)? {
            None => plan.module.clone(),
            Some(drawing) => {
                let module = drawing.module(&plan.module)?;
                verify::verify(&module).map_err(|found| {
                    let first = found.into_iter().next();
                    first
                        .unwrap_or_else(|| Diagnostic::internal("E1004", "the plan's program for drawing is not valid"))
                })?;
                settings::check(&module)?;
                module
            }
        };
        let module = Arc::new(module);
        made.insert(way, Arc::clone(&module));
        Ok(module)
    }
}

/// Most bytes that one of the steps of a session with `request` takes, weights aside: `limit` where one takes more, or is
/// not allowed.
pub fn most_bytes(folder: &PlanFolder, request: &Request, limit: u64) -> u64 {
    let plan = &folder.plan;
    let bytes = |advance: Advance| {
        let module = folder.module(request, advance.choice.way())?;
        let inputs = request.step(plan, advance, limit)?;
        // It is not run: which entries a mask keeps does not matter.
        let bound = bind_lengths_within(&module, &named(&inputs.sizes), &inputs.public, limit);
        scheduled(&module, bound, limit).map(|step| step.memory)
    };
    let most = request.largest(plan).into_iter().map(|advance| bytes(advance).unwrap_or(limit)).max().unwrap_or(limit);
    // Steps between these may take a little more.
    most.saturating_add(most / 4).min(limit)
}

/// Most bytes that a step of any session takes, weights aside: `limit` where that is more, or where a size has no maximum.
/// Of texts side by side there is one where the plan has no most of them.
pub fn most_bytes_of_plan(folder: &PlanFolder, limit: u64) -> u64 {
    let plan = &folder.plan;
    let module = &plan.module;
    let batch = plan.max_of(&plan.batch).unwrap_or(1);
    let generates = module.outputs.iter().any(|output| output.kind == OutputKind::NextToken);
    let largest = match (max_positions(plan), usize::try_from(batch).ok()) {
        (Some(positions), Some(batch)) if generates && batch <= MAX_BATCH => {
            Request::Generate { padding: vec![0; batch], positions, ways: plan.ways() }
        }
        _ if generates => return limit,
        _ => {
            let counted = |name: &str| module.counts.iter().any(|count| module.dims.find(name) == Some(count.sym));
            let free = module.dims.syms.iter().filter(|info| !counted(&info.name));
            let Some(sizes) = free.map(|info| Some((info.name.clone(), info.max?))).collect::<Option<_>>() else {
                return limit;
            };
            Request::Infer { sizes, public: Vec::new(), states: false }
        }
    };
    most_bytes(folder, &largest, limit)
}

/// The module in which every state that is read is an input of the client's: how a step runs whose cache is given. A state
/// that stays masked is shared as an input is.
///
/// # Errors
/// `E1004` when the module has too many inputs.
pub fn with_given_states(module: &Module) -> Result<Arc<Module>> {
    let mut out = Module { ops: Vec::with_capacity(module.ops.len()), ..module.without_ops() };
    let first = module.inputs.len();
    for state in &module.states {
        let (name, shape) = (state.input.clone(), state.shape.clone());
        out.inputs.push(InputSlot { name, dtype: DType::F32, shape });
    }
    for node in &module.ops {
        let mut node = node.clone();
        if let Op::State { slot } = node.op {
            let slot = u32::try_from(first)
                .ok()
                .and_then(|first| first.checked_add(slot))
                .ok_or_else(|| Diagnostic::input("E1004", "the plan has too many inputs"))?;
            (node.op, node.rot, node.ty.sharing) = (Op::Input { slot }, 0, Sharing::Shared);
        }
        // Forms follow from those of the operands.
        let id = push_like(&mut out, &node, node.op.clone(), &node.args)?;
        if let Some(made) = out.ops.get_mut(id.index()) {
            made.rot = node.rot;
        }
    }
    Ok(Arc::new(out))
}

#[cfg(test)]
mod tests {
    use ombra_ir::curve::Curve;
    use ombra_ir::dim::Dims;
    use ombra_ir::module::Stage;
    use ombra_ir::op::EXP_WINDOW;

    use super::*;

    /// As many words as the kernels of the parties have of an element at once.
    #[test]
    fn lookups_are_counted_by_their_cells() {
        let module = |setting| Module::empty("m".to_owned(), setting, Stage::Scheduled, Dims::default());
        let dealer = module(Setting::Dealer);
        let lookup = |cells: u8| Op::Lookup { curve: Curve::Gelu, window: 10 + cells, cell: 10, bits: 32, scale: 20 };
        assert_eq!(temporary_bytes(&dealer, &lookup(10)), 8 * (16 + 12));
        assert_eq!(temporary_bytes(&dealer, &lookup(3)), 8 * (1 + 12), "a vector is of whole words");
        let exponential = Op::ExpDigits { scale: 20, window: EXP_WINDOW, tail: false };
        assert!(temporary_bytes(&dealer, &exponential) > temporary_bytes(&module(Setting::ThreeParty), &exponential));
        assert_eq!(temporary_bytes(&dealer, &Op::Add), 0);
    }
}
