//! When every op of a bound module runs, and what a step costs.
//!
//! Time is counted in ticks. In a tick every active interactive op does one of its rounds, and what goes from one party
//! to another is one frame. An op starts in the tick in which its last operand is ready: independent ops share rounds.
//!
//! Parties are not equally far. A role that receives nothing in an op has its part of the result at once, so it deals what
//! the others need for the next op before they are there ([`Dealt`](crate::settings::Dealt)). Every value is ready at every
//! party in a tick of its own; a party runs a local op when its own operands are ready, and whoever deals does so in the
//! last tick that keeps nobody waiting, so that little is held.
//! The schedule follows from the module and its sizes alone, so compiler and parties agree on it.

use crate::bind::Bound;
use crate::diag::Result;
use crate::module::{Id, Module};
use crate::op::Op;
use crate::settings::{RowLens, Sizes, Traffic};
use crate::ty::Sharing;
use std::collections::BTreeMap;

/// When an op runs and what it sends, by op.
#[derive(Debug)]
pub struct Schedule {
    /// First tick of every op at every party, by its number. A local op runs at the beginning of its tick; whoever deals
    /// begins and ends an op in one tick.
    pub start: Vec<[u32; 3]>,
    /// The tick at whose beginning every party has its part of the result.
    pub ready: Vec<[u32; 3]>,
    /// What every op sends, in logical roles.
    pub traffic: Vec<Traffic>,
    /// Number of ticks of the step.
    pub ticks: u32,
}

/// Bytes and rounds of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Payload bytes that every party sends.
    pub bytes: [u64; 3],
    /// The longest chain of messages that wait for one another.
    pub rounds: u32,
}

/// Schedules a bound module.
///
/// # Errors
/// The module's masks do not fit its sizes.
pub fn schedule(module: &Module, bound: &Bound) -> Result<Schedule> {
    let mut out = Schedule { start: Vec::new(), ready: Vec::new(), traffic: Vec::new(), ticks: 0 };
    for (i, node) in module.ops.iter().enumerate() {
        let mut operands = [0; 3];
        for arg in &node.args {
            let ready = out.ready[arg.index()];
            operands.iter_mut().zip(ready).for_each(|(latest, ready)| *latest = ready.max(*latest));
        }
        let traffic = traffic_of(module, bound, Id(i as u32))?;
        let (start, ready) = times(operands, &traffic, node.rot);
        out.ticks = ready.into_iter().fold(out.ticks, u32::max);
        out.start.push(start);
        out.ready.push(ready);
        out.traffic.push(traffic);
    }
    Ok(out)
}

/// First tick and that of the result at every party, of an op whose operands are ready at `operands`.
fn times(operands: [u32; 3], traffic: &Traffic, rot: u8) -> ([u32; 3], [u32; 3]) {
    let all = |tick: u32| [tick; 3];
    match traffic.dealt {
        None if traffic.rounds == 0 => (operands, operands),
        None => {
            let start = operands.into_iter().fold(0, u32::max);
            (all(start), all(start + traffic.rounds))
        }
        Some(dealt) => {
            let dealer = party(2, rot);
            let others = (0..3).filter(|&p| p != dealer).map(|p| operands[p]).fold(0, u32::max);
            let start = others.max(operands[dealer] + dealt.lead);
            let (mut starts, mut ready) = (all(start), all(start + traffic.rounds));
            starts[dealer] = operands[dealer].max(start - dealt.lead);
            ready[dealer] = starts[dealer];
            (starts, ready)
        }
    }
}

/// What one op sends, in logical roles.
///
/// # Errors
/// The op's mask does not fit its operand.
pub fn traffic_of(module: &Module, bound: &Bound, id: Id) -> Result<Traffic> {
    let node = module.node(id);
    let operand = node.args.first().map(|&a| module.ty(a));
    let ring = node.ty.as_ring().or_else(|| operand.and_then(|t| t.as_ring()));
    let rows;
    let lens = match &node.op {
        Op::RowMax { .. } => {
            rows = bound.rows(module, id)?;
            RowLens::Listed(&rows.lens)
        }
        Op::ArgMax { .. } => {
            let shape = &bound.shapes[node.args[0].index()];
            RowLens::Equal { count: bound.len(id) as u64, len: shape.last().copied().unwrap_or(1) as u64 }
        }
        _ => RowLens::Equal { count: 0, len: 0 },
    };
    let operands = [0, 1].map(|i| node.args.get(i).copied());
    let table = node.args.get(1).map(|a| &bound.shapes[a.index()]);
    let sizes = Sizes {
        out: bound.len(id) as u64,
        bits: ring.map_or(0, |(bits, _)| bits),
        from_bits: operand.and_then(|t| t.as_ring()).map_or(0, |(bits, _)| bits),
        forms: operands.map(|arg| arg.map_or(Sharing::Public, |a| module.ty(a).sharing)),
        elements: operands.map(|arg| arg.map_or(0, |a| bound.len(a) as u64)),
        of_server: operands.map(|arg| arg.is_some_and(|a| of_server(module, a))),
        same: squares(&node.op, &node.args),
        rows: lens,
        table_rows: table.and_then(|s| s.first()).map_or(0, |&v| v as u64),
        tokens: node.args.first().map_or(0, |&a| bound.len(a) as u64),
        inner: node.args.first().and_then(|a| bound.shapes[a.index()].last()).map_or(0, |&v| v as u64),
        matrix_rows: bound.shapes[id.index()].iter().rev().nth(1).map_or(0, |&v| v as u64),
        columns: bound.shapes[id.index()].last().map_or(0, |&v| v as u64),
    };
    Ok((module.setting.protocol().traffic)(&node.op, &sizes))
}

/// What it costs to set up a session: to share the private weights of a module once, one after another, without waiting, and
/// correlations where a setting has any. A weight that is used twice in the same form is shared once.
pub fn setup_cost(module: &Module) -> Cost {
    let mut distinct = BTreeMap::new();
    for node in &module.ops {
        if let (Op::Weight { name }, Some((bits, scale))) = (&node.op, node.ty.as_ring()) {
            let sizes = node.ty.shape.iter().map(|d| d.as_constant().and_then(|n| u64::try_from(n).ok()).unwrap_or(0));
            distinct.insert((name.as_str(), bits, scale), sizes.fold(1, u64::saturating_mul));
        }
    }
    let (bytes, rounds) = (module.setting.protocol().session_setup)(module);
    let mut cost = Cost { bytes, rounds };
    for ((_, bits, _), elements) in distinct {
        let sent = (module.setting.protocol().setup)(elements, bits);
        cost.bytes.iter_mut().zip(sent).for_each(|(sum, bytes)| *sum = sum.saturating_add(bytes));
    }
    cost.rounds = cost.rounds.max(u32::from(cost.bytes.iter().any(|&bytes| bytes > 0)));
    cost
}

/// Whether an op multiplies a value by itself: an element, or a matrix by its own rows.
pub fn squares(op: &Op, args: &[Id]) -> bool {
    matches!((op, args), (Op::Mul | Op::MatMul { trans_b: true }, [a, b]) if a == b)
}

/// Movements behind which a private weight is still known as one: what is further away counts as any other secret.
const LONGEST_WALK: usize = 64;

/// Whether the server knows a value: a private weight, or what is moved from one in a few ops.
pub fn of_server(module: &Module, id: Id) -> bool {
    let mut node = module.node(id);
    for _ in 0..LONGEST_WALK {
        match (&node.op, node.args.first()) {
            (Op::Weight { .. }, _) => return true,
            (
                Op::Reshape { .. }
                | Op::Transpose { .. }
                | Op::Slice { .. }
                | Op::Expand { .. }
                | Op::SetScale { .. }
                | Op::Narrow { .. },
                Some(&arg),
            ) => node = module.node(arg),
            _ => return false,
        }
    }
    false
}

impl Schedule {
    /// Payload bytes from every party to every party, tick by tick: `frames()[tick][from][to]`.
    pub fn frames(&self, module: &Module) -> Vec<[[u64; 3]; 3]> {
        let mut frames = vec![[[0u64; 3]; 3]; self.ticks as usize];
        for (i, traffic) in self.traffic.iter().enumerate() {
            let rot = module.ops[i].rot;
            for m in &traffic.msgs {
                let from = party(m.from, rot);
                frames[(self.start[i][from] + m.round) as usize][from][party(m.to, rot)] += m.bytes;
            }
            for (to, bytes) in (0u8..).zip(traffic.dealt.map_or([0; 2], |dealt| dealt.bytes)) {
                let from = party(2, rot);
                if bytes > 0 {
                    frames[self.start[i][from] as usize][from][party(to, rot)] += bytes;
                }
            }
        }
        frames
    }

    /// Bytes and rounds of the whole step.
    pub fn cost(&self, module: &Module) -> Cost {
        let mut cost = Cost::default();
        let mut depth = [0u32; 3];
        for frame in self.frames(module) {
            let before = depth;
            for from in 0..3 {
                for to in 0..3 {
                    cost.bytes[from] += frame[from][to];
                    if frame[from][to] > 0 {
                        depth[to] = depth[to].max(before[from] + 1);
                    }
                }
            }
        }
        cost.rounds = depth.into_iter().max().unwrap_or(0);
        cost
    }

    /// Payload bytes that every party sends in one op.
    pub fn op_bytes(&self, module: &Module, id: Id) -> [u64; 3] {
        let mut bytes = [0; 3];
        for (from, _, sent) in self.traffic[id.index()].sent() {
            bytes[party(from, module.node(id).rot)] += sent;
        }
        bytes
    }
}

/// The party that plays a logical role under a rotation.
pub fn party(role: u8, rot: u8) -> usize {
    (usize::from(role) + usize::from(rot)) % 3
}
