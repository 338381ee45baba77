//! Cost-annotated dumps of plans.
//!
//! Costs are those of `ombra_ir::schedule` at given sizes, with the public inputs that a run has by default: no
//! padding, positions that follow the cache. They equal what the transport counts.

use ombra_ir::bind::{self, Bound};
use ombra_ir::module::{Id, Module, OutputKind};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::plan::{InputRole, Plan, Saving};
use ombra_ir::schedule::{Cost, schedule, traffic_of};
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Result, Sym};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

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
    /// Payload bytes that every party sends in a step.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Bytes sent once to share the private weights.
    pub setup_bytes: u64,
    /// Multiply-accumulates with both factors secret, and those with a public factor.
    pub macs: Macs,
    /// Bounds by origin.
    pub bounds: Bounds,
    /// Costs before all passes of the compiler and after each of them, at sizes of their own; empty unless the plan was
    /// compiled with `--savings`.
    pub savings: Vec<Saving>,
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
    /// Measured, with a margin.
    pub calibrated: usize,
    /// Follow from the formula of an expansion.
    pub guarded: usize,
    /// Logarithm of the probability that a calibrated bound fails, under the stated assumption.
    pub failure_log2: f64,
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
    /// Payload bytes of all parties.
    pub bytes: u64,
    /// Payload bytes of an offline phase: none in this setting.
    pub offline_bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
}

impl OpCost {
    /// What messages are grouped by: what the op was expanded from, or its own name.
    pub fn kind(&self) -> &str {
        if self.kind.is_empty() { self.op } else { &self.kind }
    }
}

/// The public inputs a run has by default, for sizes given by name.
///
/// # Errors
/// A symbol without a value.
pub fn default_public_inputs(plan: &Plan, sizes: &[(&str, u64)]) -> Result<Vec<(String, Tensor)>> {
    let bindings = plan.module.dims.bind(sizes)?;
    let past = plan.past.as_ref().and_then(|p| sizes.iter().find(|(n, _)| n == p)).map_or(0, |s| s.1 as i64);
    let mut inputs = Vec::new();
    for input in &plan.module.public.inputs {
        let shape = bind::concrete(&input.shape, &bindings)?;
        let n: usize = shape.iter().product();
        let role = plan.graph_inputs.iter().find(|g| g.name == input.name).map(|g| g.role);
        let tensor = match (role, input.dtype) {
            (Some(InputRole::PositionIds), DType::I64) => {
                let columns = shape.last().copied().unwrap_or(1).max(1);
                Tensor::i64(&shape, (0..n).map(|i| past + (i % columns) as i64).collect())?
            }
            (_, DType::I64) => Tensor::i64(&shape, vec![1; n])?,
            (_, DType::Bool) => Tensor::bool(&shape, vec![true; n])?,
            (_, DType::F32) => Tensor::f32(&shape, vec![0.0; n])?,
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

/// Costs of one step of a plan.
///
/// # Errors
/// Sizes that the plan does not have or allow.
pub fn inspect(plan: &Plan, given: &BTreeMap<String, u64>) -> Result<Report> {
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
    let mut macs = Macs::default();
    let mut ops = Vec::with_capacity(module.ops.len());
    let mut setup_bytes = 0;
    for (i, node) in module.ops.iter().enumerate() {
        let id = Id(i as u32);
        let traffic = traffic_of(module, &bound, id)?;
        let (op_macs, secret) = macs_of(module, &bound, id);
        if secret {
            macs.secret += op_macs;
        } else {
            macs.public += op_macs;
        }
        if matches!(node.op, Op::Weight { .. }) {
            setup_bytes += 8 * bound.len(id) as u64;
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
            bytes: traffic.bytes(),
            offline_bytes: 0,
            macs: op_macs,
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
                OutputKind::Tensor => o.name.clone(),
            })
            .collect(),
        public_inputs: module.public.inputs.iter().map(|i| i.name.clone()).collect(),
        rounds,
        bytes: ombra_ir::module::Party::ALL.iter().map(|p| (p.name(), bytes[p.index()])).collect(),
        setup_bytes,
        macs,
        bounds: Bounds {
            proven: count(BoundFrom::Proven),
            calibrated: count(BoundFrom::Calibrated),
            guarded: count(BoundFrom::Guarded),
            failure_log2: plan.failure_log2,
        },
        savings: plan.savings.clone(),
        ops,
    })
}

/// Multiply-accumulates of an op, and whether both factors are secret.
fn macs_of(module: &Module, bound: &Bound, id: Id) -> (u64, bool) {
    let node = module.node(id);
    let secret = node.args.len() == 2 && node.args.iter().all(|&a| module.ty(a).sharing == Sharing::Shared);
    match &node.op {
        Op::MatMul { .. } => {
            let inner = bound.shapes[node.args[0].index()].last().copied().unwrap_or(0);
            (bound.len(id) as u64 * inner as u64, secret)
        }
        Op::Mul => (bound.len(id) as u64, secret),
        _ => (0, false),
    }
}

/// What the text form groups by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// One line an op that sends something or multiplies.
    Op,
    /// One line a layer.
    Layer,
    /// One line a kind: the composite op that messages belong to.
    Kind,
}

impl Report {
    /// Payload bytes of all parties.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.values().sum()
    }

    /// The report for people.
    pub fn text(&self, by: By) -> String {
        let mut out = String::new();
        let dims = self.dims.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, "{} in {} at {dims}", self.model, self.setting);
        if self.costs_only {
            let _ = writeln!(out, "plan    for costs only: it cannot run; what was not measured is assumed");
        }
        let each = self.bytes.iter().map(|(p, &b)| format!("{p} {}", size(b))).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "step    {} rounds, {} sent ({each})", self.rounds, size(self.total_bytes()));
        let _ = writeln!(out, "set-up  {} sent once", size(self.setup_bytes));
        let _ = writeln!(
            out,
            "work    {} secret by secret, {} by public factors",
            count(self.macs.secret),
            count(self.macs.public)
        );
        let b = &self.bounds;
        let failure = match b.failure_log2 {
            log2 if log2 < 0.0 => format!("failure probability below 2^{log2:.0} if values are sub-Gaussian"),
            _ => "no failure probability is known".into(),
        };
        let origin = if self.costs_only { "calibrated or assumed" } else { "calibrated" };
        let _ =
            writeln!(out, "bounds  {} proven, {} {origin}, {} guarded; {failure}", b.proven, b.calibrated, b.guarded);
        let _ = writeln!(out, "client  learns {}", self.revealed.join(", "));
        let contents = match self.public_inputs.as_slice() {
            [] => String::new(),
            names => format!("the contents of {}, ", names.join(" and ")),
        };
        let _ = writeln!(out, "others  learn {contents}lengths, and the number of generated tokens\n");
        self.write_savings(&mut out);
        let mut groups: Vec<(String, u64, u64, u32)> = Vec::new();
        for op in self.ops.iter().filter(|o| o.bytes > 0 || o.macs > 0) {
            let key = match by {
                By::Op => format!("%{} {} [{}] {}", op.id, op.op, join(&op.dims), op.origin),
                By::Layer => op.layer.map_or("outside layers".into(), |l| format!("layer {l}")),
                By::Kind => op.kind().into(),
            };
            match groups.iter_mut().find(|g| g.0 == key && by != By::Op) {
                Some(g) => {
                    g.1 += op.bytes;
                    g.2 += op.macs;
                    g.3 += op.rounds;
                }
                None => groups.push((key, op.bytes, op.macs, op.rounds)),
            }
        }
        let _ = writeln!(out, "{:>12} {:>10} {:>7}  where", "bytes", "macs", "rounds");
        for (key, bytes, macs, rounds) in groups {
            let _ = writeln!(out, "{:>12} {:>10} {rounds:>7}  {key}", size(bytes), count(macs));
        }
        out
    }
}

impl Report {
    /// One block for every step whose savings were counted.
    fn write_savings(&self, out: &mut String) {
        let Some(first) = self.savings.first() else { return };
        for (i, step) in first.steps.iter().enumerate() {
            let dims = step.dims.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
            let _ =
                writeln!(out, "{:>12} {:>10} {:>7}  passes, {} at {dims}", "bytes", "of naive", "rounds", step.name);
            for (saving, cost) in self.savings.iter().filter_map(|s| s.steps.get(i).map(|cost| (s, cost))) {
                let part = 100.0 * cost.total_bytes() as f64 / step.total_bytes().max(1) as f64;
                let bytes = size(cost.total_bytes());
                let _ = writeln!(out, "{bytes:>12} {:>10} {:>7}  {}", format!("{part:.1} %"), cost.rounds, saving.pass);
            }
            out.push('\n');
        }
    }
}

/// Two reports side by side, with the ratio of the second to the first.
pub fn compare(a: &Report, b: &Report) -> String {
    let mut out = String::new();
    let ratio = |x: u64, y: u64| if x == 0 { "-".to_string() } else { format!("{:.2}", y as f64 / x as f64) };
    let _ = writeln!(out, "{:<24} {:>14} {:>14} {:>8}", "", a.model, b.model, "ratio");
    let mut line = |name: &str, x: u64, y: u64, show: &dyn Fn(u64) -> String| {
        let _ = writeln!(out, "{name:<24} {:>14} {:>14} {:>8}", show(x), show(y), ratio(x, y));
    };
    line("bytes of a step", a.total_bytes(), b.total_bytes(), &size);
    line("rounds of a step", a.rounds.into(), b.rounds.into(), &|v| v.to_string());
    line("set-up bytes", a.setup_bytes, b.setup_bytes, &size);
    line("secret by secret macs", a.macs.secret, b.macs.secret, &count);
    line("macs by public factors", a.macs.public, b.macs.public, &count);
    let kinds = |r: &Report| {
        let mut m: BTreeMap<String, u64> = BTreeMap::new();
        for op in r.ops.iter().filter(|o| o.bytes > 0) {
            *m.entry(op.kind().into()).or_default() += op.bytes;
        }
        m
    };
    let (ka, kb) = (kinds(a), kinds(b));
    for kind in ka.keys().chain(kb.keys().filter(|k| !ka.contains_key(*k))) {
        let of = |m: &BTreeMap<String, u64>| m.get(kind).copied().unwrap_or(0);
        line(&format!("  {kind}"), of(&ka), of(&kb), &size);
    }
    out
}

fn join(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(", ")
}

/// Bytes with a unit: powers of 1000.
pub fn size(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"])
}

fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut v = n as f64;
    let mut unit = 0;
    while v >= 1000.0 && unit + 1 < units.len() {
        v /= 1000.0;
        unit += 1;
    }
    let text = if unit == 0 { format!("{n} {}", units[0]) } else { format!("{v:.2} {}", units[unit]) };
    text.trim_end().to_string()
}
