//! What a value costs: the setting's formulas for the ops that it is lowered to.
//!
//! The reference is a short session: private weights are shared, a prompt of 64 tokens runs, then one token at 64 cached
//! ones. Everything is counted in bytes: rounds as what a link carries in half a round trip, multiply-accumulates as what
//! it carries while a core does them.
//!
//! Sums, products and movement follow lowering: a value is left as it falls out, at some scale and as a sum of some
//! terms, and is truncated when somebody needs shares at the common scale. All other operators are lowered and expanded
//! alone, at the same width, and what they send is taken from their schedule.

use crate::expand::expand;
use crate::graph::{Graph, InputRole, Op, Origin, Output, OutputRole, Owner, TensorOp};
use crate::lower::{self, lower};
use crate::ranges::bounds::{Range, Ranges};
use crate::weights::statics::{Known, Statics};
use core::time::Duration;
use ombra_ir::bind::bind;
use ombra_ir::module::OutputKind;
use ombra_ir::network::Network;
use ombra_ir::op::Op as M;
use ombra_ir::plain::{Binary, DType, Reduce, Tensor, Type, Unary};
use ombra_ir::schedule::schedule;
use ombra_ir::settings::{RowLens, Setting, Sizes};
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Bindings, Diagnostic, Dim, Dims, Result};
use std::collections::BTreeMap;

/// Steps of the reference session: new tokens and cached tokens.
pub const STEPS: [(u64, u64); 2] = [(64, 0), (1, 64)];
/// Multiply-accumulates of one core in a second, with one product for each.
pub const MACS_PER_S: f64 = 1e10;
/// Element-wise operations take as long as so many multiply-accumulates: they wait for memory.
const MACS_PER_ELEMENT: f64 = 5.0;
/// A value that is computed before a run, in bytes: next to nothing, but fewer are better.
const KNOWN: f64 = 1.0;
/// Rows on which an operator is tried.
const PROBED_ROWS: u64 = 8;
/// Maximum absolute value that an operator is tried for.
const PROBED_RANGE: f64 = 16.0;

/// How a secret value is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Fraction bits.
    pub scale: i32,
    /// Terms of the sum that it is.
    pub terms: Terms,
}

/// Terms of an unfinished sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Terms {
    /// Finished: shares.
    Shares,
    /// One term at each of two parties.
    Two,
    /// One term at every party.
    Three,
}

/// Payload bytes and rounds of something, in both reference steps together and in each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sent {
    /// Bytes of both steps.
    pub bytes: f64,
    /// Rounds of each.
    pub rounds: [u32; STEPS.len()],
}

/// The reference session's sizes, and what was computed for them.
#[derive(Clone)]
pub struct Costs {
    setting: Setting,
    network: Network,
    f: u8,
    bindings: [Bindings; STEPS.len()],
    counts: BTreeMap<Vec<Dim>, [u64; STEPS.len()]>,
    probes: BTreeMap<String, Option<(u64, u32)>>,
}

impl Costs {
    /// Costs for the symbols of a graph. Symbols other than the new and cached tokens are 1 for a batch and otherwise
    /// 64, or as near as they may be.
    pub fn new(dims: &Dims, setting: Setting, network: Network, f: u8) -> Self {
        let bindings = STEPS.map(|(seq, past)| {
            let mut bindings = Bindings::new();
            for (i, info) in dims.syms.iter().enumerate() {
                let wanted = match info.name.as_str() {
                    "batch" => 1,
                    "seq" => seq,
                    "past" => past,
                    _ => STEPS[0].0,
                };
                let value = wanted.max(info.min).min(info.max.unwrap_or(wanted.max(info.min)));
                bindings.set(ombra_ir::Sym(i as u32), value);
            }
            bindings
        });
        Costs { setting, network, f, bindings, counts: BTreeMap::new(), probes: BTreeMap::new() }
    }

    /// The same where rounds cost nothing.
    pub fn without_latency(&self) -> Costs {
        Costs { network: Network { rtt: Duration::ZERO, ..self.network }, ..self.clone() }
    }

    /// Fraction bits of rescaled values.
    pub fn rescaled(&self) -> Form {
        Form { scale: self.f.into(), terms: Terms::Shares }
    }

    /// Elements of a shape in each step.
    pub fn count(&mut self, shape: &[Dim]) -> [u64; STEPS.len()] {
        if let Some(&known) = self.counts.get(shape) {
            return known;
        }
        let count = [0, 1]
            .map(|step| shape.iter().fold(1u64, |n, d| n.saturating_mul(d.eval(&self.bindings[step]).unwrap_or(1))));
        self.counts.insert(shape.to_vec(), count);
        count
    }

    /// Bytes that stand for a chain of rounds.
    pub fn latency(&self, rounds: [u32; STEPS.len()]) -> f64 {
        rounds.iter().map(|&r| f64::from(r)).sum::<f64>() * self.network.latency_s() * self.network.bytes_per_s()
    }

    /// Bytes that stand for local work on a value: `inner` multiply-accumulates an element, or one element-wise pass.
    pub fn work(&mut self, shape: &[Dim], inner: Option<(&Dim, f64)>) -> f64 {
        let count = self.count(shape);
        let macs: f64 = match inner {
            None => count.iter().map(|&n| n as f64 * MACS_PER_ELEMENT).sum(),
            Some((inner, products)) => {
                let inner = self.count(std::slice::from_ref(inner));
                count.iter().zip(inner).map(|(&n, k)| n as f64 * k as f64 * products).sum()
            }
        };
        macs / MACS_PER_S * self.network.bytes_per_s()
    }

    /// Bytes that stand for a value known before a run.
    pub fn known(&self) -> f64 {
        KNOWN
    }

    /// Bytes of sharing a private weight once.
    pub fn sharing(&mut self, shape: &[Dim]) -> f64 {
        let sent = (self.setting.protocol().setup)(self.count(shape)[0], lower::RING);
        sent.iter().map(|&bytes| bytes as f64).sum()
    }

    /// What an op of the program sends for a value of a shape.
    pub fn op(&mut self, op: &M, shape: &[Dim], sum3: bool) -> Sent {
        let mut sent = Sent::default();
        for (step, out) in self.count(shape).into_iter().enumerate() {
            let rows = RowLens::Equal { count: 0, len: 0 };
            let bits = lower::RING;
            let form = if sum3 { Sharing::Sum3 } else { Sharing::Shared };
            let (forms, elements, of_server) = ([form, Sharing::Public], [out, 0], [false; 2]);
            let sizes =
                Sizes { out, bits, from_bits: bits, forms, elements, of_server, rows, table_rows: 0, tokens: 0 };
            let t = (self.setting.protocol().traffic)(op, &sizes);
            sent.bytes += t.bytes() as f64;
            sent.rounds[step] = t.rounds;
        }
        sent
    }

    /// What it takes to bring a value to shares at the common scale.
    pub fn rescale(&mut self, form: Form, shape: &[Dim]) -> Sent {
        let by = form.scale - i32::from(self.f);
        if by > 0 {
            let by = u8::try_from(by).unwrap_or(u8::MAX);
            return self.op(&M::Truncate { by, bits: 64 }, shape, form.terms == Terms::Three);
        }
        match form.terms {
            Terms::Shares => Sent::default(),
            terms => self.op(&M::Reshare, shape, terms == Terms::Three),
        }
    }

    /// What an operator sends for a result of a shape, by trying it on a few rows of the same width. `secret` says which
    /// operands are. An operator that cannot be lowered costs as much as one truncation.
    pub fn probe(&mut self, op: &Op, operands: &[(Type, Owner)], shape: &[Dim]) -> Sent {
        let counts = self.count(shape);
        let mut sent = Sent::default();
        for (step, &count) in counts.iter().enumerate() {
            let width = shape.last().map_or(1, |d| d.eval(&self.bindings[step]).unwrap_or(1)).max(1);
            let key = format!(
                "{op:?} {width} {:?}",
                operands.iter().map(|(t, o)| (t.dtype, o, t.shape.len())).collect::<Vec<_>>()
            );
            let known = match self.probes.get(&key) {
                Some(&known) => known,
                None => {
                    let found = probe(op, operands, width, (self.setting, self.f)).ok();
                    self.probes.insert(key, found);
                    found
                }
            };
            match known {
                Some((bytes, rounds)) => {
                    sent.bytes += bytes as f64 * count as f64 / (PROBED_ROWS * width) as f64;
                    sent.rounds[step] = rounds;
                }
                // Where there is no lowering yet, any other comparison is better.
                None if matches!(op, Op::Tensor(TensorOp::Binary(Binary::Max | Binary::Min))) => {
                    let one = self.probe(&Op::Relu, &operands[..1], shape);
                    sent.bytes += 2.0 * one.bytes / STEPS.len() as f64;
                    sent.rounds[step] = 2 * one.rounds[step];
                }
                None => {
                    let same = self.op(&M::Truncate { by: self.f, bits: 64 }, shape, true);
                    sent.bytes += same.bytes / STEPS.len() as f64;
                    sent.rounds[step] = same.rounds[step];
                }
            }
        }
        sent
    }
}

/// What is taken to be proven of the operands and the result of a probe.
fn probed() -> Range {
    let length = None;
    Range { low: -PROBED_RANGE, high: PROBED_RANGE, away: 0.0, proven: PROBED_RANGE, length, from: BoundFrom::Weights }
}

/// Bytes and rounds of one operator on rows of a width.
fn probe(op: &Op, operands: &[(Type, Owner)], width: u64, (setting, f): (Setting, u8)) -> Result<(u64, u32)> {
    let none = || Diagnostic::internal("E0290", "an operator cannot be tried alone");
    let width = Dim::from_usize(usize::try_from(width).map_err(|_| none())?)?;
    let rows = Dim::constant(PROBED_ROWS as i64);
    let wide = vec![rows.clone(), width.clone()];
    let rank = operands.first().map_or(0, |(t, _)| t.shape.len());
    let op = match op {
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } if *axis + 1 != rank => return Err(none()),
        Op::Softmax { .. } => Op::Softmax { axis: 1 },
        Op::MaskedSoftmax { .. } => Op::MaskedSoftmax { axis: 1 },
        other => other.clone(),
    };
    let mut graph = Graph::new();
    let mut ranges = Ranges::default();
    let mut args = Vec::new();
    for (i, (ty, owner)) in operands.iter().enumerate() {
        let shape = if ty.shape.len() == rank { wide.clone() } else { vec![width.clone()] };
        let count = |shape: &[Dim]| {
            shape
                .iter()
                .try_fold(1usize, |n, d| n.checked_mul(usize::try_from(d.as_constant()?).ok()?))
                .ok_or_else(none)
        };
        let sizes =
            shape.iter().map(|d| d.as_constant().map(|n| n as usize)).collect::<Option<Vec<_>>>().ok_or_else(none)?;
        let n = count(&shape)?;
        let id = match (owner, ty.dtype) {
            (Owner::Public, DType::Bool) => graph.add_const(Tensor::bool(&sizes, vec![true; n])?, Origin::default())?,
            // Not full of ones, which lowering would take for no factor at all.
            (Owner::Public, DType::F32) => graph
                .add_const(Tensor::f32(&sizes, (0..n).map(|i| 1.0 + (i % 2) as f32).collect())?, Origin::default())?,
            (Owner::Server, DType::F32) => graph.add_weight(&format!("w{i}"), false, shape, Origin::default()),
            (Owner::Client | Owner::Secret, DType::F32) => {
                let ty = Type::new(DType::F32, shape);
                graph.add_input(&format!("x{i}"), InputRole::Other, ty, Origin::default())
            }
            _ => return Err(none()),
        };
        ranges.values.insert(id, probed());
        args.push(id);
    }
    let result = graph.add(op, &args, Origin::default())?;
    graph.node_mut(result)?.owner = Owner::Secret;
    ranges.values.insert(result, probed());
    graph.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: result });
    let (no_weights, known) = (|_: &str| Err(none()), Known::default());
    let statics = Statics::new(&graph, &no_weights, &known);
    let options = lower::Options {
        setting,
        name: String::new(),
        f,
        ranges: &ranges,
        statics: &statics,
        reveal: vec![(0, OutputKind::Tensor)],
        states: Vec::new(),
        guard: false,
        defer: true,
    };
    let lowered = lower(&graph, options).map_err(|mut errors| errors.pop().unwrap_or_else(none))?;
    let module = expand(&lowered.module)?;
    let bound = bind(&module, &[], &[])?;
    let schedule = schedule(&module, &bound)?;
    let (mut bytes, mut begin, mut end) = (0, u32::MAX, 0);
    for (i, node) in module.ops.iter().enumerate() {
        let traffic = &schedule.traffic[i];
        if matches!(node.op, M::Input { .. } | M::Reveal { .. }) || traffic.rounds == 0 {
            continue;
        }
        bytes += traffic.bytes();
        begin = begin.min(schedule.start[i]);
        end = end.max(schedule.start[i] + traffic.rounds);
    }
    Ok((bytes, end.saturating_sub(begin.min(end))))
}

/// Whether an operator takes its private operands as shares at the common scale; `private` if all of them are.
pub fn wants_rescaled(op: &Op, private: bool) -> bool {
    match op {
        Op::Tensor(
            TensorOp::Binary(Binary::Add | Binary::Sub)
            | TensorOp::Unary(Unary::Neg)
            | TensorOp::Binary(Binary::Div)
            | TensorOp::Reduce { kind: Reduce::Sum, .. }
            | TensorOp::Reduce { kind: Reduce::Mean, .. },
        ) => false,
        Op::Tensor(
            TensorOp::Reshape { .. }
            | TensorOp::Transpose { .. }
            | TensorOp::Slice { .. }
            | TensorOp::Expand { .. }
            | TensorOp::Concat { .. },
        ) => false,
        Op::Tensor(TensorOp::Gather { .. }) => false,
        Op::Tensor(TensorOp::Binary(Binary::Mul)) => private,
        _ => true,
    }
}
