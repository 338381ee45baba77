//! Cost-annotated dumps of plans.
//!
//! Costs are those of `ombra_ir::schedule` at given sizes, with the public inputs that a run has by default: no
//! padding, positions that follow the cache. They equal what the transport counts.

mod html;
mod picture;
pub mod session;
mod text;

pub use html::page;
pub use text::{By, compare, size};

use ombra_ir::bind::{self, Bound};
use ombra_ir::draw::TOP_K;
use ombra_ir::module::{Id, Module, OutputKind, Party};
use ombra_ir::network::Network;
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::plan::{AssumedRange, Part, Plan, Saving};
use ombra_ir::profile::{Profile, Time, predict};
use ombra_ir::schedule::{Cost, Schedule, schedule, setup_cost};
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result, Sym};
use serde::Serialize;
use std::collections::BTreeMap;

/// Costs of a plan at some sizes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// The setting's name.
    pub setting: &'static str,
    /// Sizes the costs are for.
    pub dims: BTreeMap<String, u64>,
    /// The plan was made for costs alone and cannot run.
    pub costs_only: bool,
    /// What the client learns: names of outputs, or `next token`.
    pub revealed: Vec<String>,
    /// Inputs whose contents every party learns.
    pub public_inputs: Vec<String>,
    /// Longest chain of messages of a step.
    pub rounds: u32,
    /// Rounds in which some op is under way: at least the longest chain.
    pub ticks: u32,
    /// Payload bytes that every party sends online in a step.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Payload bytes of a step that are dealt, by the party that deals; empty in settings without one.
    pub offline_bytes: BTreeMap<&'static str, u64>,
    /// Bytes sent once to share the private weights.
    pub setup_bytes: u64,
    /// Who gets them of the server.
    pub setup_to: &'static str,
    /// Multiply-accumulates with both factors secret, and those with a public factor.
    pub macs: Macs,
    /// Bounds by origin.
    pub bounds: Bounds,
    /// The network that time is predicted for.
    pub network: Option<String>,
    /// Whether the time of local work is known.
    pub machine: bool,
    /// Seconds of a step: of messages, and of local work where a machine profile is given.
    pub predicted_seconds: Option<Time>,
    /// Who computes what.
    pub parts: Vec<Part>,
    /// What changed the model's meaning.
    pub changes: Vec<String>,
    /// Costs before all passes of the compiler and after each of them, at sizes of their own; empty unless the plan was
    /// compiled with `--savings`.
    pub savings: Vec<Saving>,
    /// Every range that is taken for granted.
    pub assumed: Vec<AssumedRange>,
    /// What every op costs.
    pub ops: Vec<OpCost>,
}

/// Multiply-accumulates of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Macs {
    /// Both factors secret.
    pub secret: u64,
    /// One factor public.
    pub public: u64,
}

/// Bounds of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Bounds {
    /// Follow from operands.
    pub proven: usize,
    /// Follow from the weights.
    pub weights: usize,
    /// Follow from the formula of an expansion.
    pub guarded: usize,
    /// Ranges that nothing proves.
    pub assumed: usize,
    /// Whose weights bounds follow from: `model` or `base`.
    pub of: &'static str,
}

/// What one op costs.
#[derive(Clone, Debug, Serialize)]
pub struct OpCost {
    /// Index in the module.
    pub id: u32,
    /// Name of the op.
    pub op: &'static str,
    /// What it was expanded from.
    pub kind: String,
    /// The ONNX node.
    pub origin: String,
    /// The layer, where names show one.
    pub layer: Option<u32>,
    /// The party that computes it in plaintext, or `mpc`.
    pub party: &'static str,
    /// Sizes of the result.
    pub dims: Vec<usize>,
    /// Rounds from start to result.
    pub rounds: u32,
    /// Of these, the ones that lie on the longest path of ops; they sum up to the step's ticks.
    pub path_rounds: u32,
    /// Payload bytes that all parties send online.
    pub bytes: u64,
    /// Payload bytes that are dealt.
    pub offline_bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Power of two that the value stays below, for ring elements.
    pub bound_log2: Option<i32>,
    /// Who says so.
    pub bound_from: &'static str,
}

impl OpCost {
    /// Payload bytes, online and dealt.
    pub fn total_bytes(&self) -> u64 {
        self.bytes + self.offline_bytes
    }

    /// What messages are grouped by: what the op was expanded from, or its own name.
    pub fn kind(&self) -> &str {
        // These belong to no operator of the model, though they are at a value of one.
        let own = matches!(self.op, "arg_max" | "reveal" | "input");
        if self.kind.is_empty() || own { self.op } else { &self.kind }
    }
}

/// The public inputs a run has by default, for sizes given by name.
///
/// # Errors
/// A symbol without a value.
pub fn default_public_inputs(plan: &Plan, sizes: &[(&str, u64)]) -> Result<Vec<(String, Tensor)>> {
    let bindings = plan.module.dims.bind(sizes)?;
    let past = plan.past.as_ref().and_then(|p| sizes.iter().find(|(n, _)| n == p)).map_or(0, |s| s.1);
    let mut inputs = Vec::new();
    for input in &plan.module.public.inputs {
        let shape = bind::concrete(&input.shape, &bindings)?;
        let n: usize = shape.iter().product();
        let role = plan.graph_inputs.iter().find(|g| g.name == input.name).map(|g| g.role);
        let default = role.map_or(Ok(None), |role| role.default_of(input.dtype, &shape, past, &[]))?;
        let tensor = match (default, input.dtype) {
            (Some(tensor), _) => tensor,
            (None, DType::I64) => Tensor::i64(&shape, vec![1; n])?,
            (None, DType::Bool) => Tensor::bool(&shape, vec![true; n])?,
            (None, DType::F32) => Tensor::f32(&shape, vec![0.0; n])?,
        };
        inputs.push((input.name.clone(), tensor));
    }
    Ok(inputs)
}

/// Sizes for a plan from what the user gave: what is missing is batch 1, 32 new tokens or as
/// many as fit, no cache.
pub fn complete_sizes(plan: &Plan, given: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let counted: Vec<_> = plan.module.counts.iter().map(|c| c.sym).collect();
    let mut sizes = BTreeMap::new();
    for (i, info) in plan.module.dims.syms.iter().enumerate() {
        if counted.contains(&Sym(i as u32)) {
            continue;
        }
        let default = match Some(&info.name) {
            n if n == plan.seq.as_ref() => 32.min(info.max.unwrap_or(32)),
            n if n == plan.past.as_ref() => 0,
            Some(n) if n == TOP_K => 50.min(info.max.unwrap_or(50)),
            _ => 1,
        };
        sizes.insert(info.name.clone(), given.get(&info.name).copied().unwrap_or(default));
    }
    // Fewer new tokens where the model's tables are shorter.
    let fits = |sizes: &BTreeMap<String, u64>| {
        let pairs: Vec<(&str, u64)> = sizes.iter().map(|(n, &v)| (n.as_str(), v)).collect();
        plan.module.dims.bind(&pairs).is_ok_and(|bindings| plan.check_limits(&bindings).is_ok())
    };
    if let Some(seq) = plan.seq.as_ref().filter(|seq| !given.contains_key(*seq)) {
        while sizes.get(seq).is_some_and(|&n| n > 1) && !fits(&sizes) {
            sizes.entry(seq.clone()).and_modify(|n| *n /= 2);
        }
    }
    sizes
}

/// What time is predicted with.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// The network and its name; none for links that cost nothing.
    pub network: Option<(String, Network)>,
    /// What the machines do in a second.
    pub profile: Option<Profile>,
}

/// Costs of one step of a plan.
///
/// # Errors
/// Sizes that the plan does not have or allow.
pub fn inspect(plan: &Plan, given: &BTreeMap<String, u64>) -> Result<Report> {
    inspect_under(plan, given, &Conditions::default())
}

/// [`inspect`], with the time that a step takes.
///
/// # Errors
/// Those of [`inspect`], `E0420` for a machine profile of another setting.
pub fn inspect_under(plan: &Plan, given: &BTreeMap<String, u64>, conditions: &Conditions) -> Result<Report> {
    let module = &plan.module;
    let sizes = complete_sizes(plan, given);
    if let Some(name) = given.keys().find(|k| !sizes.contains_key(*k)) {
        let known = sizes.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(
            Diagnostic::input("E0550", format!("the plan has no size `{name}`")).note(format!("its sizes are {known}"))
        );
    }
    let pairs: Vec<(&str, u64)> = sizes.iter().map(|(n, &v)| (n.as_str(), v)).collect();
    plan.check_limits(&module.dims.bind(&pairs)?)?;
    let bound = bind::bind_lengths(module, &pairs, &default_public_inputs(plan, &pairs)?)?;
    let plan_schedule = schedule(module, &bound)?;
    let Cost { bytes, rounds } = plan_schedule.cost(module);
    let protocol = module.setting.protocol();
    let sent = module.setting.apart(bytes);
    let on_path = path(module, &plan_schedule);
    let network = conditions.network.as_ref();
    let predicted_seconds = if network.is_some() || conditions.profile.is_some() {
        Some(predict(module, &bound, &plan_schedule, network.map(|n| &n.1), conditions.profile.as_ref())?)
    } else {
        None
    };
    let mut macs = Macs::default();
    let mut ops = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let id = Id(i as u32);
        let traffic = &plan_schedule.traffic[i];
        let op_sent = module.setting.apart(plan_schedule.op_bytes(module, id));
        let (op_macs, secret) = macs_of(module, &bound, id);
        if secret {
            macs.secret += op_macs;
        } else {
            macs.public += op_macs;
        }
        ops.push(OpCost {
            id: id.0,
            op: node.op.name(),
            kind: node.origin.kind.clone(),
            origin: node.origin.node.clone(),
            layer: node.origin.layer,
            party: "mpc",
            dims: bound.shapes[i].clone(),
            rounds: traffic.rounds,
            path_rounds: on_path[i],
            bytes: op_sent.online_bytes(),
            offline_bytes: op_sent.dealt,
            macs: op_macs,
            bound_log2: node.ty.as_ring().map(|(_, scale)| i32::from(node.ty.bound) - i32::from(scale)),
            bound_from: node.ty.bound_from.name(),
        });
    }
    let count = |from| module.ops.iter().filter(|n| n.ty.as_ring().is_some() && n.ty.bound_from == from).count();
    Ok(Report {
        model: module.name.clone(),
        setting: module.setting.name(),
        dims: sizes,
        costs_only: plan.costs_only,
        revealed: module
            .outputs
            .iter()
            .map(|o| match o.kind {
                OutputKind::NextToken => "next token".into(),
                OutputKind::Tensor | OutputKind::Index => o.name.clone(),
                OutputKind::Guard => "whether an assumed range was left".into(),
            })
            .collect(),
        public_inputs: module.public.inputs.iter().map(|i| i.name.clone()).collect(),
        rounds,
        ticks: plan_schedule.ticks,
        bytes: protocol
            .parties
            .iter()
            .filter(|party| protocol.dealer != Some(**party))
            .map(|party| (party.name(), sent.online[party.index()]))
            .collect(),
        offline_bytes: protocol.dealer.iter().map(|dealer| (dealer.name(), sent.dealt)).collect(),
        setup_bytes: setup_cost(module).bytes.iter().sum(),
        setup_to: setup_to(plan),
        macs,
        bounds: Bounds {
            proven: count(BoundFrom::Proven),
            weights: count(BoundFrom::Weights),
            guarded: count(BoundFrom::Guarded),
            assumed: plan.assumed.len(),
            of: plan.bounds_of.name(),
        },
        network: network.map(|n| n.0.clone()),
        machine: conditions.profile.is_some(),
        predicted_seconds,
        parts: plan.parts.clone(),
        changes: plan.changes.clone(),
        savings: plan.savings.clone(),
        assumed: plan.assumed.clone(),
        ops,
    })
}

/// Who gets what of the private weights follows from no key.
fn setup_to(plan: &Plan) -> &'static str {
    match plan.derives() {
        Ok(Party::Client) | Err(_) => plan.module.setting.third().map_or("nobody", Party::name),
        Ok(_) => Party::Client.name(),
    }
}

/// Ticks that each op has of one longest path: that of the last one to end, the operand that it waited for, and so on. Where
/// an op waits for what is dealt in it, the tick of that is its own.
fn path(module: &Module, schedule: &Schedule) -> Vec<u32> {
    let mut ticks = vec![0; module.ops.len()];
    let all = || (0..module.ops.len()).flat_map(|i| [0, 1, 2].map(|party| (i, party)));
    let mut at = all().find(|&(i, party)| schedule.ready[i][party] == schedule.ticks);
    while let Some((i, party)) = at {
        // What a party has at the end of an op follows from what it, or another one, had at the beginning.
        let (node, start) = (&module.ops[i], &schedule.start[i]);
        let begun = |party: usize| {
            let operands = || node.args.iter().map(|arg| arg.index());
            operands().find(|&arg| schedule.ready[arg][party] == start[party]).map(|arg| (arg, party))
        };
        let before = begun(party).or_else(|| (0..3).find_map(begun));
        let since = before.map_or(0, |(arg, party)| schedule.ready[arg][party]);
        ticks[i] = schedule.ready[i][party].saturating_sub(since);
        at = before;
    }
    ticks
}

/// Multiply-accumulates of an op, and whether both factors are secret.
fn macs_of(module: &Module, bound: &Bound, id: Id) -> (u64, bool) {
    let node = module.node(id);
    let secret = node.args.len() == 2 && node.args.iter().all(|&a| module.ty(a).sharing.is_secret());
    match &node.op {
        Op::MatMul { .. } => {
            let inner = bound.shapes[node.args[0].index()].last().copied().unwrap_or(0);
            (bound.len(id) as u64 * inner as u64, secret)
        }
        Op::Mul => (bound.len(id) as u64, secret),
        _ => (0, false),
    }
}
