//! The typed graph's secret part into the MPC IR, at fixed point.
//!
//! Every secret value has a *unrescaled* form, in which linear operations leave it: possibly a sum that only truncation ends,
//! at a scale above `f`. Operations that need shares ask for the *rescaled* form, which is truncated once, to the scale that
//! [`scales`] chose for the value, and remembered. So a product, its bias, its adapter, its residual and a rotation by public angles share one
//! truncation. A value that anybody needs rescaled is rescaled where it is made, so that nobody truncates it again.
//!
//! Nothing here decides what may be revealed: `reveal` is made for declared outputs only, from their rescaled form.

mod approximate;
mod choice;
mod clamp;
mod guard;
mod linear;
mod publics;
mod quotient;
mod rows;
mod scales;
mod tensor;
mod weights;

use crate::client_region;
use crate::graph::eval::static_values;
use crate::graph::{Graph, InputRole, Op, Owner, TensorOp, ValueId};
use crate::ranges::bounds::Ranges;
use crate::weights::statics::Statics;
use ombra_ir::infer::{push, push_within, tighten};
use ombra_ir::module::{
    Count, Id, InputSlot, Module, Origin, OutputKind, OutputSlot, Party, Setting, Stage, StateSlot,
};
use ombra_ir::norms::{Norms, quarters};
use ombra_ir::op::Op as M;
use ombra_ir::plain::{self, Binary, DType, Reduce};
use ombra_ir::plan::Quantity;
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Dim, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Ring bits of the program.
pub const RING: u8 = 64;

/// What lowering needs to know beside the graph.
pub struct Options<'a> {
    /// Whose forms products take.
    pub setting: Setting,
    /// Name of the model.
    pub name: String,
    /// Fraction bits.
    pub f: u8,
    /// Ranges of values.
    pub ranges: &'a Ranges,
    /// Values of the graph that depend on weights and constants alone.
    pub statics: &'a Statics<'a>,
    /// Outputs to reveal: index in the graph's outputs, and what is revealed.
    pub reveal: Vec<(usize, OutputKind)>,
    /// Secret states: cache input and the output that continues it.
    pub states: Vec<(String, String)>,
    /// Whether ranges that are assumed are guarded, as they are in every plan that runs.
    pub guard: bool,
    /// Whether sums of products are truncated once, instead of every product.
    pub defer: bool,
}

/// A lowered program and the weights it names.
pub struct Lowered {
    /// The program, at stage `lowered`.
    pub module: Module,
    /// Weights by name: the node that has their values, and who owns them.
    pub weights: BTreeMap<String, (ValueId, Owner)>,
    /// What the client gives, by name.
    pub inputs: BTreeMap<String, ValueId>,
    /// What the program takes for granted, in order of values.
    pub assumed: Vec<Assumed>,
}

/// An assumed range.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumed {
    /// The value; for a number of every row, the norm or the softmax.
    pub value: ValueId,
    /// What is bounded.
    pub quantity: Quantity,
    /// It is at least this; nothing is assumed without it.
    pub low: Option<f64>,
    /// It is less than this.
    pub high: f64,
}

/// Lowers the secret part of `graph`.
///
/// # Errors
/// Every node that has no lowering, all in one go.
pub fn lower(graph: &Graph, options: Options) -> std::result::Result<Lowered, Vec<Diagnostic>> {
    let module = Module::empty(options.name.clone(), options.setting, Stage::Lowered, graph.dims.clone());
    let fixed = static_values(graph).map_err(|d| vec![d])?;
    let mut l = Lower {
        graph,
        fixed,
        scales: scales::scales(graph, options.ranges, options.f, options.setting.protocol()),
        options,
        module,
        weights: BTreeMap::new(),
        inputs: BTreeMap::new(),
        unrescaled: BTreeMap::new(),
        rescaled: BTreeMap::new(),
        coarse: BTreeMap::new(),
        wants_rescaled: BTreeSet::new(),
        client_ids: BTreeMap::new(),
        encoded: BTreeMap::new(),
        program: BTreeMap::new(),
        published: BTreeMap::new(),
        tied: BTreeMap::new(),
        signs: BTreeMap::new(),
        rings: BTreeMap::new(),
        differences: BTreeMap::new(),
        ranges: BTreeMap::new(),
    };
    l.wants_rescaled = l.rescaled_wishes();
    let mut errors = Vec::new();
    for id in graph.topological() {
        if graph.node(id).map(|n| n.owner) != Ok(Owner::Secret) {
            continue;
        }
        if let Err(d) = l.secret(id) {
            let node = graph.node(id).map(|n| n.origin.node.clone()).unwrap_or_default();
            errors.push(d.at(node));
        }
    }
    if !errors.is_empty() {
        errors.retain(|d| d.code != SKIPPED);
        return Err(errors);
    }
    l.finish().map_err(|d| vec![d])?;
    let assumed = l.assumed();
    Ok(Lowered { module: l.module, weights: l.weights, inputs: l.inputs, assumed })
}

/// Code of errors that follow from another one.
const SKIPPED: &str = "E0500";

struct Lower<'a> {
    graph: &'a Graph,
    /// Values that depend on weights and constants alone.
    fixed: BTreeSet<ValueId>,
    /// Fraction bits of rescaled values that do not have `f`.
    scales: BTreeMap<ValueId, u8>,
    options: Options<'a>,
    module: Module,
    weights: BTreeMap<String, (ValueId, Owner)>,
    inputs: BTreeMap<String, ValueId>,
    unrescaled: BTreeMap<ValueId, Id>,
    rescaled: BTreeMap<ValueId, Id>,
    /// Rescaled values at scales below their own.
    coarse: BTreeMap<(ValueId, u8), Id>,
    wants_rescaled: BTreeSet<ValueId>,
    /// Integers of the client's.
    client_ids: BTreeMap<ValueId, Id>,
    encoded: BTreeMap<(ValueId, u8), Id>,
    program: BTreeMap<ValueId, plain::ValueRef>,
    published: BTreeMap<ValueId, Id>,
    tied: BTreeMap<ValueId, Option<ValueId>>,
    /// Bits by the value whose sign they are.
    signs: BTreeMap<Id, Id>,
    /// Ring elements by the bit that they are.
    rings: BTreeMap<Id, Id>,
    /// Differences that were compared.
    differences: BTreeMap<(ValueId, ValueId), Id>,
    /// What is assumed beside sizes of elements.
    ranges: BTreeMap<(ValueId, Quantity), Assumed>,
}

impl Lower<'_> {
    /// Assumed lengths of rows, and other ranges: all that a guard watches over.
    fn assumed(&self) -> Vec<Assumed> {
        let present = |v: &ValueId| self.unrescaled.contains_key(v) || self.rescaled.contains_key(v);
        let lengths = self.options.ranges.lengths.iter().filter(|(v, _)| present(v));
        let lengths = lengths.map(|(&value, length)| Assumed {
            value,
            quantity: Quantity::Magnitude,
            low: None,
            high: length.assumed,
        });
        lengths.chain(self.ranges.values().cloned()).collect()
    }

    /// Notes a range that is assumed; of two for the same quantity the narrower one counts.
    fn assume(&mut self, assumed: Assumed) {
        let Assumed { value, quantity, low, high, .. } = assumed;
        let entry = self.ranges.entry((value, quantity)).or_insert(assumed);
        entry.low = [entry.low, low].into_iter().flatten().reduce(f64::max);
        entry.high = entry.high.min(high);
    }

    /// Elements of a value at the largest sizes.
    fn elements(&self, shape: &[Dim]) -> f64 {
        shape.iter().map(|d| self.graph.dims.upper(d).map_or(1.0, |n| n as f64)).product()
    }

    fn push(&mut self, v: ValueId, op: M, args: &[Id]) -> Result<Id> {
        let origin = self.origin(v);
        push(&mut self.module, op, args, None, origin)
    }

    fn origin(&self, v: ValueId) -> Origin {
        let Ok(node) = self.graph.node(v) else { return Origin::default() };
        Origin { node: node.origin.node.clone(), layer: node.origin.layer, kind: node.op.name().to_string() }
    }

    /// One op whose result is within `2^bound` by its formula.
    fn within(&mut self, v: ValueId, op: M, args: &[Id], bound: u8) -> Result<Id> {
        let origin = self.origin(v);
        push_within(&mut self.module, op, args, (bound, BoundFrom::Guarded), origin)
    }

    /// The bound of the integers that stand for a value at a scale, and where it comes from.
    fn bound_at(&self, v: ValueId, scale: u8) -> Option<(u8, BoundFrom)> {
        let range = self.options.ranges.values.get(&v)?;
        range.size().is_finite().then(|| (bits_of(self.largest_at(range.size(), scale)), range.from))
    }

    /// The largest integer that stands for a graph value of at most this size: what is not yet divided may be off by what a
    /// product of matrices is.
    fn largest_at(&self, max: f64, scale: u8) -> f64 {
        let ciphertexts = self.options.setting.protocol().ciphertexts.filter(|_| scale > self.options.f);
        largest_integer(max, scale) + ciphertexts.map_or(0.0, |ciphertexts| libm::exp2(ciphertexts.error.into()))
    }

    /// One op whose result is the graph's value `v`, within the range of `v`.
    fn value(&mut self, v: ValueId, op: M, args: &[Id]) -> Result<Id> {
        let bound = self.result_scale(&op, args).and_then(|scale| self.bound_at(v, scale));
        let Some(bound) = bound else { return self.push(v, op, args) };
        let origin = self.origin(v);
        let id = push_within(&mut self.module, op, args, bound, origin)?;
        self.tighten(v, id);
        Ok(id)
    }

    /// The scale of an op's result, for ops that make a graph value.
    fn result_scale(&self, op: &M, args: &[Id]) -> Option<u8> {
        let scale = |i: usize| args.get(i).and_then(|&a| self.module.ty(a).as_ring()).map(|(_, s)| s);
        match op {
            M::Mul | M::MatMul { .. } => Some(scale(0)?.saturating_add(scale(1)?)),
            M::Truncate { by, .. } => scale(0)?.checked_sub(*by),
            M::SetScale { scale }
            | M::Reciprocal { scale, .. }
            | M::Div { scale, .. }
            | M::Sqrt { scale, .. }
            | M::Rsqrt { scale, .. }
            | M::Log { scale, .. } => Some(*scale),
            M::Embed => scale(1),
            _ => scale(0),
        }
    }

    /// Tightens a value's bound to that of its range: in quarters of a bit where the range is proven, which says little
    /// more of the weights that it follows from.
    fn tighten(&mut self, v: ValueId, id: Id) {
        let Some((_, scale)) = self.module.ty(id).as_ring() else { return };
        let Some((bound, from)) = self.bound_at(v, scale) else { return };
        let size = self.options.ranges.size(v).filter(|_| from == BoundFrom::Weights);
        let size = size.and_then(|size| quarters(self.largest_at(size, scale)));
        tighten(&mut self.module, id, bound, from, &Norms { size, ..Norms::default() });
    }

    fn ring(&self, id: Id) -> Result<(u8, u8)> {
        let ty = self.module.ty(id);
        let (_, scale) = ty.as_ring().ok_or_else(|| Diagnostic::internal("E0510", "expected a ring value"))?;
        Ok((scale, ty.bound))
    }

    /// The unrescaled form of a secret value.
    fn unrescaled(&mut self, v: ValueId) -> Result<Id> {
        if let Some(&id) = self.rescaled.get(&v).or_else(|| self.unrescaled.get(&v)) {
            return Ok(id);
        }
        match self.graph.node(v)?.owner {
            Owner::Secret => {}
            _ => return self.border(v),
        }
        Err(Diagnostic::unsupported(SKIPPED, "an operand has no lowering"))
    }

    /// Fraction bits of a value's rescaled form.
    fn scale_of(&self, v: ValueId) -> u8 {
        self.scales.get(&v).copied().unwrap_or(self.options.f)
    }

    /// The rescaled form: shares at the value's own scale.
    fn shares(&mut self, v: ValueId) -> Result<Id> {
        if let Some(&id) = self.rescaled.get(&v) {
            return Ok(id);
        }
        let unrescaled = self.unrescaled(v)?;
        if let Some(&id) = self.rescaled.get(&v) {
            return Ok(id);
        }
        let id = self.rescale(v, unrescaled)?;
        self.rescaled.insert(v, id);
        Ok(id)
    }

    /// Shares at a scale, from the rescaled form.
    fn shares_at(&mut self, v: ValueId, scale: u8) -> Result<Id> {
        let id = self.shares(v)?;
        let (own, _) = self.ring(id)?;
        if own == scale {
            return Ok(id);
        }
        if let Some(&known) = self.coarse.get(&(v, scale)) {
            return Ok(known);
        }
        let known = if own > scale {
            self.value(v, M::Truncate { by: own - scale, bits: RING }, &[id])?
        } else {
            self.push(v, M::Upscale { by: scale - own }, &[id])?
        };
        self.coarse.insert((v, scale), known);
        Ok(known)
    }

    /// Shares at scale `f`.
    fn at_f(&mut self, v: ValueId) -> Result<Id> {
        self.shares_at(v, self.options.f)
    }

    fn rescale(&mut self, v: ValueId, unrescaled: Id) -> Result<Id> {
        let (scale, _) = self.ring(unrescaled)?;
        let shared = self.module.ty(unrescaled).sharing == Sharing::Shared;
        let wanted = self.scale_of(v);
        match scale.cmp(&wanted) {
            std::cmp::Ordering::Greater => self.value(v, M::Truncate { by: scale - wanted, bits: RING }, &[unrescaled]),
            std::cmp::Ordering::Equal if shared => Ok(unrescaled),
            std::cmp::Ordering::Equal => self.value(v, M::Reshare, &[unrescaled]),
            std::cmp::Ordering::Less => {
                let fine = self.push(v, M::Upscale { by: wanted - scale }, &[unrescaled])?;
                self.rescale(v, fine)
            }
        }
    }

    /// A client's or server's value entering the program.
    fn border(&mut self, v: ValueId) -> Result<Id> {
        let node = self.graph.node(v)?.clone();
        let id = match node.owner {
            Owner::Server => self.weight(v)?,
            Owner::Client => self.client_value(v)?,
            Owner::Public | Owner::Secret => {
                return Err(Diagnostic::internal("E0511", "a public value was taken for a private one"));
            }
        };
        self.rescaled.insert(v, id);
        Ok(id)
    }

    fn client_value(&mut self, v: ValueId) -> Result<Id> {
        if let Some(id) = self.moved(v)? {
            return Ok(id);
        }
        let node = self.graph.node(v)?.clone();
        if node.dtype != DType::F32 {
            let message =
                format!("{} of the client, which are no floats, decide what happens under MPC", node.op.name());
            return Err(Diagnostic::unsupported("E0512", message));
        }
        let name = client_region::name_of(self.graph, v)?;
        self.inputs.insert(name.clone(), v);
        let slot = self.module.inputs.len() as u32;
        let shape = node.shape.clone();
        self.module.inputs.push(InputSlot { name, dtype: node.dtype, shape: node.shape });
        let scale = self.scale_of(v);
        let mut ty = ombra_ir::ty::Ty::ring(RING, scale, Sharing::Shared, shape, RING - 2);
        if let Some((bound, from)) = self.bound_at(v, scale) {
            // What bounds follow from is what is enforced where an input is encoded, without room for rounding.
            let given = matches!(self.graph.op(v), Some(Op::Input { .. }));
            let exact = self.options.ranges.size(v).filter(|size| given && *size > 0.0);
            let exact = exact.map(|size| libm::ceil(libm::log2(size)) as i32 + i32::from(scale));
            ty.bound = exact.and_then(|bits| u8::try_from(bits.max(1)).ok()).map_or(bound, |bits| bits.min(bound));
            ty.bound_from = from;
        }
        self.source(v, M::Input { slot }, ty)
    }

    /// A value of the client that is another one moved, where that other is shared for somebody else: nothing is shared
    /// twice, every party moves its own shares.
    fn moved(&mut self, v: ValueId) -> Result<Option<Id>> {
        let secret = |u: &ValueId| self.graph.node(*u).is_ok_and(|n| n.owner == Owner::Secret);
        let (mut at, mut moves) = (v, Vec::new());
        while let Some(Op::Tensor(
            TensorOp::Slice { step: 1, .. } | TensorOp::Reshape { .. } | TensorOp::Transpose { .. },
        )) = self.graph.op(at)
        {
            let Some(x) = self.graph.operand(at, 0) else { break };
            moves.push(at);
            at = x;
            if self.graph.users(at).iter().any(secret) {
                let mut id = self.unrescaled(at)?;
                for &m in moves.iter().rev() {
                    let op = match self.graph.op(m) {
                        Some(Op::Tensor(TensorOp::Slice { axis, start, len, .. })) => {
                            M::Slice { axis: *axis as u8, start: start.clone(), len: len.clone() }
                        }
                        Some(Op::Tensor(TensorOp::Transpose { perm })) => {
                            M::Transpose { perm: perm.iter().map(|&p| p as u8).collect() }
                        }
                        _ => M::Reshape { shape: self.graph.shape(m).to_vec() },
                    };
                    id = self.push(m, op, &[id])?;
                }
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// A source whose type is declared.
    fn source(&mut self, v: ValueId, op: M, ty: ombra_ir::ty::Ty) -> Result<Id> {
        let origin = self.origin(v);
        ombra_ir::infer::push_source(&mut self.module, op, ty, origin)
    }

    /// The module's states, outputs and reveals.
    fn finish(&mut self) -> Result<()> {
        for (input, output) in self.options.states.clone() {
            let slot = self.module.states.iter().position(|s| s.input == input);
            let Some(out) = self.graph.outputs.iter().find(|o| o.name == output) else { continue };
            let id = self.at_f(out.value)?;
            if let Some(slot) = slot {
                self.push(out.value, M::SetState { slot: slot as u32 }, &[id])?;
            }
        }
        for (index, kind) in self.options.reveal.clone() {
            let output = self.graph.outputs[index].clone();
            let slot = self.module.outputs.len() as u32;
            self.module.outputs.push(OutputSlot { name: output.name, kind, to: Party::Client });
            let v = output.value;
            let revealed = match kind {
                OutputKind::NextToken => self.arg_max(v, v)?,
                OutputKind::Guard => return Err(Diagnostic::internal("E0510", "a guard is no output of a model")),
                OutputKind::Tensor if self.graph.node(v)?.dtype == DType::Bool => self.indicator(v, v)?,
                OutputKind::Tensor => self.shares(v)?,
                OutputKind::Index => {
                    let unrescaled = self.unrescaled(v)?;
                    match self.module.ty(unrescaled).sharing {
                        Sharing::Shared => unrescaled,
                        _ => self.push(v, M::Reshare, &[unrescaled])?,
                    }
                }
            };
            self.push(v, M::Reveal { slot }, &[revealed])?;
        }
        if self.options.guard { self.guard() } else { Ok(()) }
    }

    /// Lowers one secret node.
    fn secret(&mut self, v: ValueId) -> Result<()> {
        let node = self.graph.node(v)?.clone();
        let args = self.graph.operands(v);
        let is_last = |axis: usize| axis + 1 == node.shape.len();
        let id = match &node.op {
            Op::Input { name, role: InputRole::PastKey { .. } | InputRole::PastValue { .. } } => {
                self.state(v, name.clone())?
            }
            // What a program is given of another one's values, as its parties hold them.
            Op::Input { .. } => self.client_value(v)?,
            Op::Tensor(op) => self.tensor(v, op, &args)?,
            Op::Pow(p) if *p == 2.0 => self.mul(v, args[0], args[0])?,
            Op::Pow(p) if *p == -0.5 => self.rsqrt(v, args[0])?,
            Op::Relu => self.relu(v, args[0])?,
            Op::Clamp { low, high } => self.clamp(v, args[0], *low, *high)?,
            Op::Gelu { tanh } => self.unary(v, args[0], M::Gelu { tanh: *tanh })?,
            Op::Silu => self.unary(v, args[0], M::Silu)?,
            Op::Softplus => self.unary(v, args[0], M::Softplus)?,
            Op::MaskedSoftmax { axis } if is_last(*axis) => self.softmax(v, args[0], Some(args[1]))?,
            Op::Softmax { axis } if is_last(*axis) => self.softmax(v, args[0], None)?,
            Op::RatioSoftmax { axis, numerator, eps } if is_last(*axis) => {
                self.ratio_softmax(v, args[0], args.get(1).copied(), *numerator, *eps)?
            }
            Op::Quadratic { square, linear, constant } => self.quadratic(v, args[0], [*square, *linear, *constant])?,
            Op::AffineNorm { centred } => self.affine_norm(v, &args, *centred)?,
            Op::RmsNorm { eps } => self.norm(v, &args, *eps, false)?,
            Op::LayerNorm { eps } => self.norm(v, &args, *eps, true)?,
            other => return Err(tensor::unsupported(other.name())),
        };
        self.unrescaled.insert(v, id);
        if self.wants_rescaled.contains(&v) {
            let rescaled = self.rescale(v, id)?;
            self.rescaled.insert(v, rescaled);
        }
        Ok(())
    }

    /// Values that some user needs rescaled.
    fn rescaled_wishes(&self) -> BTreeSet<ValueId> {
        let mut wishes = BTreeSet::new();
        let states: BTreeSet<&str> = self.options.states.iter().map(|(_, out)| out.as_str()).collect();
        for o in &self.graph.outputs {
            if states.contains(o.name.as_str()) {
                wishes.insert(o.value);
            }
        }
        for (id, node) in self.graph.iter().filter(|(_, n)| n.owner == Owner::Secret) {
            let args = self.graph.operands(id);
            let secret = |v: &ValueId| {
                self.graph.node(*v).is_ok_and(|n| matches!(n.owner, Owner::Secret | Owner::Server | Owner::Client))
            };
            let all = match &node.op {
                Op::Tensor(TensorOp::Binary(Binary::Div)) => {
                    wishes
                        .extend(args.first().filter(|v| self.graph.node(**v).is_ok_and(|n| n.owner == Owner::Secret)));
                    false
                }
                // A cache is rescaled, so what continues it is too.
                Op::Tensor(TensorOp::Concat { .. }) => !args.iter().all(|v| linear::stays_raw(self.graph, *v)),
                Op::Tensor(TensorOp::Where) => args.first().is_some_and(secret),
                Op::Tensor(TensorOp::Binary(Binary::Mul)) | Op::AffineNorm { centred: false } => {
                    args.iter().all(secret)
                }
                Op::Tensor(op) => tensor::takes_shares(op),
                Op::Pow(p) => *p == 2.0,
                Op::Relu
                | Op::Clamp { .. }
                | Op::Gelu { .. }
                | Op::Silu
                | Op::Softplus
                | Op::Softmax { .. }
                | Op::MaskedSoftmax { .. }
                | Op::RatioSoftmax { .. }
                | Op::Quadratic { .. }
                | Op::AffineNorm { centred: true }
                | Op::RmsNorm { .. }
                | Op::LayerNorm { .. } => true,
                Op::Input { .. } | Op::Weight { .. } => false,
            };
            let product = match &node.op {
                Op::Tensor(TensorOp::MatMul | TensorOp::Binary(Binary::Mul | Binary::Div)) => true,
                Op::Tensor(TensorOp::Reduce { kind, .. }) => *kind == Reduce::Mean,
                _ => false,
            };
            if !self.options.defer && product {
                wishes.insert(id);
            }
            if all {
                let float = |v: &ValueId| {
                    let fine = quotient::is_fine(self.graph, *v) && matches!(node.op, Op::MUL);
                    !fine && self.graph.node(*v).is_ok_and(|n| n.owner == Owner::Secret && n.dtype == DType::F32)
                };
                wishes.extend(args.iter().copied().filter(float));
            }
        }
        // A transpose that only turns a product's right side is free there: its operand rescales instead.
        let turned: Vec<(ValueId, ValueId)> =
            wishes.iter().filter_map(|&v| linear::turned(self.graph, v).map(|x| (v, x))).collect();
        for (v, x) in turned {
            let only_right = self.graph.users(v).iter().all(|&u| {
                matches!(self.graph.op(u), Some(Op::Tensor(TensorOp::MatMul)))
                    && self.graph.operand(u, 1) == Some(v)
                    && self.graph.operand(u, 0) != Some(v)
            });
            if only_right && !self.graph.is_output(v) {
                wishes.remove(&v);
                if self.graph.node(x).is_ok_and(|n| n.owner == Owner::Secret) {
                    wishes.insert(x);
                }
            }
        }
        linear::rescale_before_moving(self.graph, &self.scales, &mut wishes);
        wishes
    }

    fn state(&mut self, v: ValueId, name: String) -> Result<Id> {
        let shape = self.graph.shape(v).to_vec();
        let output = self.options.states.iter().find(|(input, _)| *input == name).map(|(_, o)| o.clone());
        let output = output.ok_or_else(|| {
            Diagnostic::unsupported("E0521", format!("cache input `{name}` is secret but no output continues it"))
                .note("expected an output that is the cache with the new keys or values appended")
        })?;
        let slot = self.module.states.len() as u32;
        self.module.states.push(StateSlot { input: name, output, shape: shape.clone() });
        let mut ty = ombra_ir::ty::Ty::ring(RING, self.options.f, Sharing::Shared, shape, RING - 2);
        if let Some((bound, from)) = self.bound_at(v, self.options.f) {
            (ty.bound, ty.bound_from) = (bound, from);
        }
        self.source(v, M::State { slot }, ty)
    }

    fn mask_count(&mut self, mask: Id, shape: &[Dim]) -> Result<()> {
        let value = self.mask_value(mask)?;
        if self.module.counts.iter().any(|c| c.mask == value && c.shape == shape) {
            return Ok(());
        }
        let sym = self.module.dims.symbol(&format!("kept{}", self.module.counts.len()))?;
        let product = shape.iter().try_fold(Dim::constant(1), |p, d| p.mul(d))?;
        let max = self.module.dims.upper(&product).and_then(|n| u64::try_from(n).ok());
        if let Some(info) = self.module.dims.info_mut(sym) {
            info.min = 0;
            info.max = max;
        }
        self.module.counts.push(Count { sym, mask: value, shape: shape.to_vec() });
        Ok(())
    }

    /// Which public value a mask is.
    fn mask_value(&self, mask: Id) -> Result<u32> {
        match self.module.node(mask).op {
            M::Public { value } => Ok(value),
            _ => Err(Diagnostic::internal("E0513", "a mask is not a public value")),
        }
    }
}

/// The largest integer that stands for a real of at most this size. There is room for the rounding of fixed point: 2^−8 of
/// the size, and some units.
fn largest_integer(max: f64, scale: u8) -> f64 {
    libm::ldexp(max.max(0.0), i32::from(scale)) * (1.0 + 1.0 / 256.0) + 16.0
}

/// Bits of the integer that stands for a real of at most this size: `|x| < 2^bits`, with room for rounding.
pub fn magnitude_bits(max: f64, scale: u8) -> u8 {
    bits_of(largest_integer(max, scale))
}

fn bits_of(units: f64) -> u8 {
    if !units.is_finite() {
        return 120;
    }
    (libm::floor(libm::log2(units)) as i32 + 1).clamp(1, 120) as u8
}
