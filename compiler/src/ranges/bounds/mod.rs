//! Proven bounds: what the weights say of every value, whatever the prompt is.
//!
//! A norm gives rows of length at most √n. Products with the real weights are bounded by Cauchy–Schwarz, attention is an
//! average of values, sums add up, and what continues a cache bounds the cache. So everything between two norms has a
//! bound that no prompt exceeds, and calibration has no part in it. Bounds are magnitudes in reals, per channel or head
//! where that is known, with room for the rounding of fixed point.
//!
//! Where no norm bounds a value, such as an exponential of what may be large, or a divisor that may vanish, and only there,
//! its range is measured on inputs, with [`MARGIN`] bits to spare: an assumption, which the plan lists.

mod linear;
mod mean;
mod normalised;
mod proof;
mod rules;
pub mod spread;

use crate::graph::eval::static_values;
use crate::graph::{Graph, InputRole, Numerator, Op, OutputRole, Owner, TensorOp, ValueId};
use crate::lower::{Assumed, RING};
use crate::ranges::calibrate::{Rows, Seen, divisors};
use crate::weights::statics::Statics;
use ombra_ir::norms::{Norms, quarters};
use ombra_ir::plain::{Binary, DType, Unary};
use ombra_ir::plan::AssumedRange;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};
use proof::{Ends, Proof, size};
use rules::Prover;
use spread::size_of;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

pub use linear::Product;
pub use proof::Look;

/// Bits between the maximum value that calibration saw and an assumed bound.
pub const MARGIN: u8 = 3;
/// Maximum size of floats that a client gives, where calibration inputs do not say more. Larger ones are refused where
/// they are encoded.
pub const GIVEN: f64 = 1024.0;
/// Values that are larger are not taken into the ring.
const LARGEST: f64 = (1u64 << 44) as f64;
/// Sums that meet a matrix without a norm between them and are larger get an assumed range: what follows would be larger
/// and larger, and be guarded in more places.
const LARGEST_SUM: f64 = 65_536.0;
/// Rows are not assumed to be shorter: rounding makes some of nothing.
const LEAST_LENGTH: f64 = 1.0;
/// Maximum exponent that is taken without a measurement: an exponential is as exact as its maximum result allows.
const LARGEST_EXPONENT: f64 = 4.0;
/// Divisors closer to zero are not taken without a measurement.
const SMALLEST: f64 = 1.0 / 1024.0;

/// The range of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// No element is below.
    pub low: f64,
    /// No element is above.
    pub high: f64,
    /// No element is closer to zero.
    pub away: f64,
    /// No element is larger in size, whatever is assumed of this value itself.
    pub proven: f64,
    /// No row along the last axis has a greater 2-norm.
    pub length: Option<f64>,
    /// Who says so.
    pub from: BoundFrom,
}

impl Range {
    /// No element is larger.
    pub fn size(&self) -> f64 {
        size((self.low, self.high))
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4e} to {:.4e}", self.low, self.high)?;
        if let Some(length) = self.length {
            write!(f, ", rows 2^{:.2}", libm::log2(length))?;
        }
        write!(f, ", {}", self.from.name())
    }
}

/// Ranges of values.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// By value.
    pub values: BTreeMap<ValueId, Range>,
    /// Lengths of rows along the last axis that are assumed, and with them the sizes of elements.
    pub lengths: BTreeMap<ValueId, Length>,
    /// For a softmax by quotients, its divisors, as calibration saw them.
    pub rows: BTreeMap<ValueId, Rows>,
    /// Maximum 2-norms of rows and columns of what depends on weights and constants alone.
    pub norms: BTreeMap<ValueId, Longest>,
}

/// An assumed length of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// No row has a greater 2-norm.
    pub assumed: f64,
    /// No row has a greater one, whatever is assumed of this value itself.
    pub proven: f64,
}

/// Maximum 2-norms of rows and columns, where there are such.
pub type Longest = [Option<f64>; 2];

impl Ranges {
    /// Maximum size of a value's elements, where it has a bound.
    pub fn size(&self, v: ValueId) -> Option<f64> {
        self.values.get(&v).map(Range::size).filter(|s| s.is_finite())
    }

    /// A number that no element is below; −∞ where nothing is known.
    pub fn at_least(&self, v: ValueId) -> f64 {
        self.values.get(&v).map_or(f64::NEG_INFINITY, |r| r.low)
    }

    /// A value that is larger or longer here than there.
    pub fn beyond(&self, other: &Ranges) -> Option<ValueId> {
        let within = |range: &Range, most: &Range| {
            let longer = range.length.zip(most.length).is_some_and(|(a, b)| a > b);
            range.low >= most.low && range.high <= most.high && range.away >= most.away && !longer
        };
        self.values
            .iter()
            .find(|(v, range)| !other.values.get(v).is_some_and(|most| within(range, most)))
            .map(|(v, _)| *v)
            .or_else(|| self.norms.iter().find(|(v, own)| longer(own, other.norms.get(v))).map(|(v, _)| *v))
    }

    /// Every range made wider by a factor.
    pub fn scale(&mut self, factor: f64) {
        for range in self.values.values_mut() {
            let most = range.size() * factor;
            range.low = if range.low >= 0.0 { range.low / factor } else { -most };
            range.high = if range.high <= 0.0 { range.high / factor } else { most };
            range.away /= factor;
            range.proven *= factor;
            range.length = range.length.map(|l| l * factor);
        }
        for length in self.lengths.values_mut() {
            *length = Length { assumed: length.assumed * factor, proven: length.proven * factor };
        }
        for norms in self.norms.values_mut() {
            *norms = norms.map(|norm| norm.map(|l| l * factor));
        }
    }

    /// What a weight of a shape declares of its rows and columns at a scale, with room for rounding.
    pub fn declared(&self, v: ValueId, scale: u8, shape: impl DoubleEndedIterator<Item = Option<i64>>) -> Norms {
        let Some(norms) = self.norms.get(&v) else { return Norms::default() };
        let mut sizes = shape.rev();
        let [rows, columns] = norms.map(|norm| {
            let n = sizes.next()??;
            quarters(libm::ldexp(norm?, i32::from(scale)) + libm::sqrt(n as f64))
        });
        Norms { size: None, rows, columns }
    }
}

/// Ranges of all floating values of a graph whose owners are assigned.
///
/// `statics` are the values of its nodes that depend on weights and constants alone; `f` the fraction bits of activations;
/// `inputs` the maximum size of floats that the client gives, by name; `seen` measures, and is called only if something
/// has no proof.
///
/// # Errors
/// Those of `statics` and `seen`.
pub fn prove(
    statics: &Statics,
    f: u8,
    inputs: &BTreeMap<String, f64>,
    seen: &dyn Fn() -> Result<Seen>,
) -> Result<Ranges> {
    let graph = statics.graph;
    let order = graph.topological();
    let fixed = static_values(graph)?;
    let continued = continued(graph);
    let mut prover = Prover {
        graph,
        f,
        statics,
        given: enforced(graph, inputs, &continued)?,
        fixed,
        lengths: BTreeMap::new(),
        away: BTreeMap::new(),
        ends: BTreeMap::new(),
        norms: BTreeMap::new(),
        proofs: BTreeMap::new(),
    };
    let divisors = divisors(graph);
    let measured = OnceCell::new();
    let measure = || match measured.get() {
        Some(seen) => Ok(seen),
        None => seen().map(|seen| measured.get_or_init(|| seen)),
    };
    let mut ranges = Ranges::default();
    for v in order {
        if prover.fixed.contains(&v) {
            continue;
        }
        let mut proof = prover.prove(v)?;
        let (mut from, mut away) = (BoundFrom::Weights, None);
        let operands = too_large(&prover, v, &proof, f);
        for &operand in &operands {
            let path = before_moves(&prover, operand);
            let Some(&at) = path.first() else { continue };
            let Some((ends, length)) = size_assumption(&prover, measure()?, (v, operand), at) else { continue };
            let Some(known) = ranges.values.get(&at).copied().filter(|known| size(ends) < known.size()) else {
                continue;
            };
            prover.given.insert(at, ends);
            if let Some(length) = length {
                let before = row_length(graph, at, &known);
                prover.lengths.insert(at, length);
                ranges.lengths.insert(at, Length { assumed: length, proven: before });
            }
            for &moved in &path {
                let assumed = prover.prove(moved)?;
                let own = moved == at;
                let from = if own { BoundFrom::Calibrated } else { BoundFrom::Weights };
                let range = of_proof(graph, moved, &assumed, from);
                let range = if own { Range { proven: known.proven, ..range } } else { range };
                for &state in continued.get(&moved).into_iter().flatten() {
                    ranges.values.insert(state, Range { from: BoundFrom::Weights, ..range });
                }
                ranges.values.insert(moved, range);
                prover.proofs.insert(moved, assumed);
            }
        }
        if !operands.is_empty() {
            proof = prover.prove(v)?;
        }
        let proven = proof.size();
        if let Some(need) = unproven(graph, v, &proof, &divisors)
            && let Some((ends, least)) = assumption(measure()?, v, need)
        {
            if need == Need::Size {
                let before = row_length(graph, v, &of_proof(graph, v, &proof, from));
                prover.lengths.insert(v, size(ends));
                ranges.lengths.insert(v, Length { assumed: size(ends), proven: before });
            }
            prover.given.insert(v, ends);
            prover.away.extend(least.map(|least| (v, least)));
            (from, away) = (BoundFrom::Calibrated, least);
            proof = prover.prove(v)?;
        }
        if matches!(graph.op(v), Some(Op::RatioSoftmax { .. })) && graph.node(v)?.owner == Owner::Secret {
            ranges.rows.extend(measure()?.rows.get(&v).map(|rows| (v, *rows)));
        }
        let mut range = of_proof(graph, v, &proof, from);
        range.away = away.unwrap_or(0.0).max(range.away);
        range.proven = range.proven.max(proven.min(f64::MAX));
        for &state in continued.get(&v).into_iter().flatten() {
            // What was written to it was guarded then.
            ranges.values.insert(state, Range { from: BoundFrom::Weights, ..range });
        }
        // A cache that was not written says nothing of what it will hold.
        if !(proof.unwritten && matches!(graph.op(v), Some(Op::Input { .. }))) {
            ranges.values.insert(v, range);
        }
        prover.proofs.insert(v, proof);
    }
    ranges.norms = prover.norms;
    for (v, (low, high)) in prover.ends {
        let (proven, from) = (size((low, high)), BoundFrom::Weights);
        ranges.values.insert(v, Range { low, high, away: 0.0, proven, length: None, from });
    }
    Ok(ranges)
}

/// Whether rows or columns are longer here than there.
fn longer(own: &Longest, other: Option<&Longest>) -> bool {
    let most = other.copied().unwrap_or_default();
    own.iter().zip(most).any(|(own, most)| own.zip(most).is_none_or(|(own, most)| own > most) && own.is_some())
}

/// Maximum sizes of floats that the client gives: powers of two, as those that are enforced where they are encoded. A
/// cache that no output continues is given too.
fn enforced(
    graph: &Graph,
    inputs: &BTreeMap<String, f64>,
    continued: &BTreeMap<ValueId, Vec<ValueId>>,
) -> Result<BTreeMap<ValueId, Ends>> {
    let mut given = BTreeMap::new();
    for &id in &graph.inputs {
        let node = graph.node(id)?;
        let Op::Input { name, role } = &node.op else { continue };
        let cache = continued.values().any(|states| states.contains(&id));
        if node.dtype == DType::F32 && !cache && *role != InputRole::AttentionMask {
            let most = inputs.get(name).copied().unwrap_or(GIVEN);
            let most = libm::exp2(libm::ceil(libm::log2(most)));
            given.insert(id, (-most, most));
        }
    }
    Ok(given)
}

/// Cache inputs by the value that continues them.
fn continued(graph: &Graph) -> BTreeMap<ValueId, Vec<ValueId>> {
    let mut found: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for output in &graph.outputs {
        let (OutputRole::PresentKey { past: Some(past), .. } | OutputRole::PresentValue { past: Some(past), .. }) =
            &output.role
        else {
            continue;
        };
        let named = |id: &&ValueId| matches!(graph.op(**id), Some(Op::Input { name, .. }) if name == past);
        if let Some(&input) = graph.inputs.iter().find(named) {
            found.entry(output.value).or_default().push(input);
        }
    }
    found
}

/// What a value lacks.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// A maximum size.
    Size,
    /// A maximum element.
    High,
    /// A least size.
    Away,
}

/// Why a value cannot be taken into the ring as it is.
fn unproven(graph: &Graph, v: ValueId, proof: &Proof, divisors: &BTreeSet<ValueId>) -> Option<Need> {
    let node = graph.node(v).ok()?;
    let secret = |u: &ValueId| graph.node(*u).is_ok_and(|n| n.owner == Owner::Secret);
    let enters = node.owner == Owner::Secret || graph.users(v).iter().any(secret);
    if node.dtype != DType::F32 || !enters || proof.unwritten {
        return None;
    }
    let (low, high) = proof.ends();
    let unnormed = matches!(node.op, Op::ADD | Op::SUB)
        && graph.users(v).iter().any(|&u| meets_matrix(graph, u, v))
        && proof.size() >= LARGEST_SUM;
    if proof.size() >= LARGEST || unnormed {
        return Some(Need::Size);
    }
    let exponent = graph
        .users(v)
        .iter()
        .any(|u| secret(u) && matches!(graph.op(*u), Some(Op::Tensor(TensorOp::Unary(Unary::Exp)))));
    if exponent && high > LARGEST_EXPONENT {
        return Some(Need::High);
    }
    let divides = divisors.contains(&v) && graph.users(v).iter().any(secret);
    (divides && low < SMALLEST && high > -SMALLEST).then_some(Need::Away)
}

/// Operands whose sizes have to be assumed for a product to fit the ring before it is truncated: those of one secret by
/// another, each with `f` fraction bits, or the one beside a matrix, which may have as few as 8.
fn too_large(prover: &Prover, v: ValueId, proof: &Proof, f: u8) -> Vec<ValueId> {
    let (graph, fixed) = (prover.graph, &prover.fixed);
    let secret = graph.node(v).is_ok_and(|n| n.owner == Owner::Secret);
    if let (true, Some(Op::RatioSoftmax { numerator: Numerator::Square { shift }, .. })) = (secret, graph.op(v)) {
        // Its entries are squares, and the divisor is their sum.
        let Some(x) = graph.operand(v, 0) else { return Vec::new() };
        let columns = graph.shape(v).last().and_then(|d| graph.dims.upper(d)).map_or(1.0, |n| n.max(1) as f64);
        let room = (f64::from(RING) - 3.0 - libm::ceil(libm::log2(columns))) / 2.0 - f64::from(f) - 1.0;
        let most = prover.proofs.get(&x).map_or(f64::INFINITY, Proof::size) + f64::from(shift.abs());
        return if most < libm::exp2(room) { Vec::new() } else { vec![x] };
    }
    if !secret
        || !matches!(
            graph.op(v),
            Some(Op::Tensor(TensorOp::Binary(Binary::Mul) | TensorOp::MatMul) | Op::Pow(_) | Op::Quadratic { .. })
        )
    {
        return Vec::new();
    }
    let operands: BTreeSet<ValueId> = graph.operands(v).into_iter().collect();
    let moving: Vec<ValueId> = operands.iter().copied().filter(|a| !fixed.contains(a)).collect();
    let least = if moving.len() == operands.len() { f } else { 8 };
    let room = f64::from(RING) - 3.0 - f64::from(f) - f64::from(least);
    if proof.size() < libm::exp2(room) { Vec::new() } else { moving }
}

/// Whether a user takes a value, or a part of it, as the left side of a product with weights.
fn meets_matrix(graph: &Graph, user: ValueId, v: ValueId) -> bool {
    match graph.op(user) {
        Some(Op::Tensor(TensorOp::MatMul)) => graph.operand(user, 0) == Some(v) && graph.operand(user, 1) != Some(v),
        Some(Op::Tensor(TensorOp::Slice { .. } | TensorOp::Reshape { .. })) => {
            graph.users(user).iter().any(|&u| meets_matrix(graph, u, user))
        }
        _ => false,
    }
}

/// From where a value's range is best assumed to the value: before a cache is joined, so that what it holds is guarded
/// once; before rows are repeated; and before they are turned into columns.
fn before_moves(prover: &Prover, v: ValueId) -> Vec<ValueId> {
    let graph = prover.graph;
    let (mut path, mut keep, mut at) = (vec![v], 1, v);
    let unwritten = |v: &ValueId| prover.proofs.get(v).is_some_and(|p| p.unwritten);
    loop {
        let args = graph.operands(at);
        let (next, better) = match graph.op(at) {
            Some(Op::Tensor(TensorOp::Concat { .. })) => {
                let written: Vec<ValueId> = args.iter().copied().filter(|a| !unwritten(a)).collect();
                (written.first().copied().filter(|_| written.len() == 1), true)
            }
            Some(Op::Tensor(TensorOp::Expand { .. })) => (args.first().copied(), true),
            Some(Op::Tensor(TensorOp::Transpose { perm })) => {
                (args.first().copied(), perm.last().is_some_and(|&p| p + 1 < perm.len()))
            }
            Some(Op::Tensor(TensorOp::Reshape { .. })) => (args.first().copied(), false),
            _ => (None, false),
        };
        let secret = |v: &ValueId| graph.node(*v).is_ok_and(|n| n.owner == Owner::Secret);
        let Some(next) = next.filter(|v| secret(v) && !prover.fixed.contains(v)) else { break };
        path.push(next);
        if better {
            keep = path.len();
        }
        at = next;
    }
    path.truncate(keep);
    path.reverse();
    path
}

/// What is assumed of `at`, which becomes the operand of `user`: a range, and the length of rows that it follows from.
/// Scores that nothing but squares are made of have no length of their own: their squares' sum has an end.
fn size_assumption(
    prover: &Prover,
    seen: &Seen,
    (user, operand): (ValueId, ValueId),
    at: ValueId,
) -> Option<(Ends, Option<f64>)> {
    let graph = prover.graph;
    if let Some(Op::RatioSoftmax { numerator: Numerator::Square { shift }, .. }) = graph.op(user)
        && let Some(rows) = seen.rows.get(&user)
        && at == operand
        && guards_scores(graph, user, operand)
    {
        let columns = graph.shape(user).last().and_then(|d| graph.dims.upper(d)).map_or(1.0, |n| n.max(1) as f64);
        let most = libm::exp2(f64::from(divisor_end(rows, columns)) / 2.0) + f64::from(shift.abs());
        return Some(((-most, most), None));
    }
    let (ends, _) = assumption(seen, at, Need::Size)?;
    Some((ends, Some(size(ends))))
}

/// Whether all that becomes of scores is a softmax by squares over them, whose divisor bounds them.
pub fn guards_scores(graph: &Graph, softmax: ValueId, scores: ValueId) -> bool {
    matches!(graph.op(softmax), Some(Op::RatioSoftmax { numerator: Numerator::Square { .. }, .. }))
        && graph.users(scores) == [softmax]
        && !graph.is_output(scores)
}

/// The power of two below which divisors of rows of at most `columns` entries are taken to be.
pub fn divisor_end(rows: &Rows, columns: f64) -> i32 {
    libm::floor(libm::log2(libm::ldexp(rows.high, i32::from(MARGIN)) * columns)) as i32 + 1
}

/// What is known of the 2-norm of a value's rows along its last axis.
fn row_length(graph: &Graph, v: ValueId, range: &Range) -> f64 {
    let most = graph.shape(v).last().and_then(|d| graph.dims.upper(d)).map_or(1.0, |n| n.max(1) as f64);
    (range.proven * libm::sqrt(most)).min(range.length.unwrap_or(f64::INFINITY))
}

/// What is assumed in place of a proof: what was seen, with the margin; and a least size. A size is that of a row.
fn assumption(seen: &Seen, v: ValueId, need: Need) -> Option<(Ends, Option<f64>)> {
    let factor = libm::ldexp(1.0, i32::from(MARGIN));
    let &(low, high) = seen.ends.get(&v)?;
    // Ends that are compared as powers of two, and exponents as whole numbers: nothing between an end and what is compared
    // with may pass for less.
    let below = |x: f64| libm::ldexp(1.0, libm::ilogb(x));
    let above = |x: f64| libm::nextafter(2.0 * below(x), 0.0);
    let least = seen.least.get(&v).copied().filter(|&least| need == Need::Away && least > 0.0);
    let least = least.map(|least| below(least / factor));
    let most = size((low, high)).max(f64::MIN_POSITIVE) * factor;
    let length = seen.lengths.get(&v).map_or(most, |length| most.max(length * factor)).max(LEAST_LENGTH);
    Some(match need {
        Need::Size => ((-length, length), None),
        Need::High => ((f64::NEG_INFINITY, libm::ceil(high + f64::from(MARGIN))), None),
        // The sign that all had.
        Need::Away if low > 0.0 => ((least.unwrap_or(0.0), above(most)), least),
        Need::Away if high < 0.0 => ((-above(most), -least.unwrap_or(0.0)), least),
        Need::Away => ((-above(most), above(most)), least),
    })
}

fn of_proof(graph: &Graph, v: ValueId, proof: &Proof, from: BoundFrom) -> Range {
    let (low, high) = proof.ends();
    let away = if low > 0.0 {
        low
    } else if high < 0.0 {
        -high
    } else {
        0.0
    };
    let last = graph.shape(v).len().checked_sub(1);
    let length = last.and_then(|axis| {
        let n = size_of(graph.shape(v).get(axis)?)?;
        proof.lengths_on(axis, n, 1)?.all(f64::max)
    });
    Range { low, high, away, proven: proof.size(), length, from }
}

/// What is assumed, for the plan: in the order of computation.
pub fn listed(graph: &Graph, assumed: &[Assumed]) -> std::result::Result<Vec<AssumedRange>, Diagnostic> {
    let place: BTreeMap<ValueId, usize> = graph.topological().into_iter().enumerate().map(|(i, id)| (id, i)).collect();
    let mut assumed: Vec<&Assumed> = assumed.iter().collect();
    assumed.sort_by_key(|a| place.get(&a.value));
    let range = |a: &Assumed| {
        let node = graph.node(a.value)?;
        let name = match &node.op {
            Op::Input { name, .. } => name,
            _ => &node.origin.node,
        };
        Ok(AssumedRange {
            node: name.clone(),
            layer: node.origin.layer,
            op: node.op.name().to_owned(),
            quantity: a.quantity,
            low: a.low,
            high: Some(a.high).filter(|high| high.is_finite()),
        })
    };
    assumed.into_iter().map(range).collect()
}
