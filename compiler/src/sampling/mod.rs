//! Programs that draw the next token instead of choosing the most probable one, or choose it after penalties.
//!
//! A penalised program adds an input of the client's to the logits first, an element for every token, and is the same from
//! there on. The input's range is its type's, which the client's encoder enforces.
//!
//! Each is the plan's module with its `arg_max` and the reveal of that replaced, made from the expanded module, so that
//! what comes before is the same to the id of every op.
//!
//! 1. [`scores`]: logits over the temperature, which is a public factor, cut to a small ring without a message.
//! 2. With candidates, [`candidates`]: the `k` blocks with the maximum maxima are found by a search for a threshold and
//!    moved out of the others by a product with one-hot rows, of which the result alone is sent; no better token is
//!    elsewhere. Another search finds the threshold among their elements. Ties within a step of the search stay together.
//! 3. [`masses`]: `e^(x − max)` in units of 2^-29 down to [`KEPT`] below the maximum, and exactly 0 beyond. Errors of the
//!    exponential are independent for every token and step, and a unit at most on average: `n · 2^-29`, and `n · e^-21.5`
//!    for what is left out, bound the total variation of `n` tokens: 1.2e-4 for 49152 whatever the logits are. Scores are
//!    off by 2 of their own units at most, which moves probabilities by parts of 2^-12 for scores of 13 bits, and their
//!    means by the square of that.
//! 4. With a share of the mass, a search for the least threshold above which the masses hold it.
//! 5. [`draw`]: the inverse of the distribution function at `u · S` for the sum `S` of the masses and `u` of 40 fresh bits
//!    or more, in two levels: which block of tokens, and which token of it. Sums are exact integers: a token of mass 0 is
//!    never drawn, and every other one with its share of `S` but for 2^-28.
//!
//! Simulator: that of the parts, which open nothing. The client learns an index in a ring of 32 bits. Sizes of messages
//! follow from shapes.

mod draw;
mod search;

use crate::expand::{self, Emit, comparison};
use crate::passes::assign_rotations::{Spread, assign_rotations};
use draw::{Blocks, draw};
use ombra_ir::draw::{
    Drawing, Filter, INVERSE_TEMPERATURE, KEPT, MOST_CANDIDATES, PENALTIES, PENALTY_BITS, TOP_K, TOP_P, Way,
};
use ombra_ir::infer::{self, push, push_source, push_within};
use ombra_ir::module::{Count, Id, InputSlot, Module, Node, Origin, OutputKind};
use ombra_ir::norms::BIT;
use ombra_ir::op::{EXP_RING, EXP_SCALE, EXP_WINDOW, Op};
use ombra_ir::plain::{self, Tensor};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Diagnostic, Dim, Result};
use search::{Steps, Weigh, search};

/// Bits of a factor of the scores up to 16, the inverse of the lowest temperature.
const FACTOR_BITS: u8 = 5;
/// Dropped fraction bits of the scores.
const CUT: u8 = 24;
/// Bound of a mass: `e^x` at scale [`EXP_SCALE`] for `x ≤ 1/2`.
const MASS_BOUND: u8 = EXP_SCALE + 1;
/// The ring in which logits become scores.
const LOGITS_RING: u8 = 64;
/// Tokens of a block at most, of which the maximum stands for all.
const LONGEST_BLOCK: u64 = 32;

/// What takes the place of the end of `module`, which is expanded and has rotations, to choose its next token otherwise, if
/// `penalties` says so after penalties too; nothing where it reveals none, and where its logits are too wide to be drawn
/// from.
///
/// # Errors
/// None that the model can cause.
pub fn drawings(module: &Module, spread: Spread, penalties: bool) -> Result<Vec<Drawing>> {
    // A model's own axis of that name would lose its limits.
    let Some(found) = find(module)?.filter(|_| module.dims.find(TOP_K).is_none()) else { return Ok(Vec::new()) };
    let mut drawings = Vec::new();
    let ways = [false, true].into_iter().flat_map(|penalized| Filter::ALL.map(|filter| Way { filter, penalized }));
    for way in ways.filter(|way| *way != Way::default() && (penalties || !way.penalized)) {
        let mut drawn = found.rest.clone();
        let mut e = Emit { module: &mut drawn, origin: Origin { kind: "sampling".into(), ..found.origin.clone() } };
        let penalized;
        let logits = if way.penalized {
            let Some(logits) = penalize(&mut e, &found.logits)? else { continue };
            penalized = logits;
            &penalized
        } else {
            &found.logits
        };
        let index = match way.filter {
            Filter::Best => best(&mut e, logits)?,
            Filter::None => from_all(&mut e, logits)?,
            Filter::TopK => candidates(&mut e, logits, false)?,
            Filter::TopP => candidates(&mut e, logits, true)?,
        };
        let index = e.op(Op::Reshape { shape: found.shape.clone() }, &[index])?;
        e.op(Op::Reveal { slot: found.slot }, &[index])?;
        assign_rotations(&mut drawn, spread);
        drawings.push(Drawing::between(way, module, &drawn)?);
    }
    Ok(drawings)
}

/// The end of a module that reveals a next token.
struct Found {
    /// The module without it.
    rest: Module,
    logits: Logits,
    /// Output slot and shape of what is revealed.
    slot: u32,
    shape: Vec<Dim>,
    origin: Origin,
}

/// What a token is chosen by.
struct Logits {
    /// The logits, of shape `[…, tokens]` in a ring of 64 bits.
    id: Id,
    /// Product of the leading sizes.
    rows: Dim,
    /// Number of tokens.
    tokens: u64,
    /// Fraction bits of the scores, and their bound.
    scores: Scores,
}

/// The form of scores: logits over the temperature.
#[derive(Clone, Copy)]
struct Scores {
    bits: u8,
    scale: u8,
    bound: u8,
}

impl Scores {
    /// As many fraction bits as are of use and have room; none below 8.
    fn of(scale: u8, bound: u8) -> Option<Scores> {
        let whole = bound.saturating_sub(scale).saturating_add(FACTOR_BITS);
        [(32u8, 27u8, 10u8), (40, 35, 8)].into_iter().find_map(|(bits, room, least)| {
            let finest = room.checked_sub(whole)?.min(16);
            let fits = finest >= least && finest + CUT >= scale + 8;
            fits.then_some(Scores { bits, scale: finest, bound: whole + finest + 1 })
        })
    }
}

fn find(module: &Module) -> Result<Option<Found>> {
    let Some(slot) = module.outputs.iter().position(|output| output.kind == OutputKind::NextToken) else {
        return Ok(None);
    };
    let reveal = module.ops.iter().position(|node| matches!(node.op, Op::Reveal { slot: s } if s as usize == slot));
    let Some(reveal) = reveal else { return Ok(None) };
    // Back from the reveal: what is reshaped, the choice, and what narrowed the logits for it.
    let mut ends = vec![reveal];
    let mut at = reveal;
    let mut chosen = false;
    loop {
        let Some(&from) = module.ops[at].args.first() else { return Ok(None) };
        match module.node(from).op {
            Op::Reshape { .. } if !chosen => {}
            Op::ArgMax { .. } if !chosen => chosen = true,
            Op::Narrow { .. } if chosen => {}
            _ => {
                at = from.index();
                break;
            }
        }
        at = from.index();
        ends.push(at);
    }
    let ty = &module.ops[at].ty;
    let (Some((bits, scale)), true, Some((columns, leading))) = (ty.as_ring(), chosen, ty.shape.split_last()) else {
        return Ok(None);
    };
    let tokens = columns.as_constant().and_then(|n| u64::try_from(n).ok()).filter(|n| (4..=1 << 20).contains(n));
    let (Some(tokens), Some(scores)) = (tokens, Scores::of(scale, ty.bound)) else { return Ok(None) };
    let mut rest = module.without_ops();
    let mut new_ids: Vec<Option<Id>> = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let uses = |node: &Node| node.args.iter().any(|arg| arg.index() == i);
        let goes_on = || module.ops.iter().enumerate().any(|(j, node)| !ends.contains(&j) && uses(node));
        if ends.contains(&i) && !goes_on() {
            new_ids.push(None);
            continue;
        }
        let args = node.args.iter().map(|arg| new_ids.get(arg.index()).copied().flatten());
        let args = args.collect::<Option<Vec<_>>>();
        let args = args.ok_or_else(|| Diagnostic::internal("E0545", "an op that draws no token needs its choice"))?;
        new_ids.push(Some(Id(rest.ops.len() as u32)));
        rest.ops.push(Node { args, ..node.clone() });
    }
    let Some(Some(mut id)) = new_ids.get(at).copied() else { return Ok(None) };
    if bits < LOGITS_RING {
        // The choice of the most probable one needs fewer bits than a draw.
        let (bound, origin) = ((ty.bound, ty.bound_from), module.ops[at].origin.clone());
        id = push(&mut rest, Op::Truncate { by: 0, bits: LOGITS_RING }, &[id], Some(bound), origin)?;
    }
    let rows = leading.iter().try_fold(Dim::constant(1), |rows, dim| rows.mul(dim))?;
    Ok(Some(Found {
        rest,
        logits: Logits { id, rows, tokens, scores },
        slot: slot as u32,
        shape: module.ops[reveal].ty.shape.clone(),
        origin: module.ops[reveal].origin.clone(),
    }))
}

/// The logits with the client's penalties, where these leave them narrow enough to be drawn from.
fn penalize(e: &mut Emit, logits: &Logits) -> Result<Option<Logits>> {
    let (bits, scale, _) = e.ring(logits.id)?;
    let shape = vec![logits.rows.clone(), size(logits.tokens)?];
    let slot = e.module.inputs.len() as u32;
    e.module.inputs.push(InputSlot { name: PENALTIES.into(), dtype: plain::DType::F32, shape: shape.clone() });
    let ty = Ty::ring(bits, scale, Sharing::Shared, shape.clone(), scale + PENALTY_BITS);
    let origin = e.origin.clone();
    let penalties = push_source(e.module, Op::Input { slot }, ty, origin)?;
    let x = e.op(Op::Reshape { shape }, &[logits.id])?;
    let id = e.op(Op::Add, &[x, penalties])?;
    let scores = Scores::of(scale, e.ty(id).bound);
    let (rows, tokens) = (logits.rows.clone(), logits.tokens);
    Ok(scores.map(|scores| Logits { id, rows, tokens, scores }))
}

/// The index of the maximum, of shape `[rows]`.
fn best(e: &mut Emit, logits: &Logits) -> Result<Id> {
    let (bits, _, bound) = e.ring(logits.id)?;
    let (width, _) = comparison(infer::size(e.ty(logits.id)) + BIT, 0, bits).ok_or_else(|| no_room(bound))?;
    let small = e.narrow(logits.id, ring_of(bound).max(EXP_RING))?;
    e.op(Op::ArgMax { width }, &[small])
}

/// Logits over the temperature, of shape `[rows, tokens]`.
fn scores(e: &mut Emit, logits: &Logits) -> Result<Id> {
    let Scores { bits, scale, bound } = logits.scores;
    let x = e.op(Op::Reshape { shape: vec![logits.rows.clone(), size(logits.tokens)?] }, &[logits.id])?;
    let (_, from, _) = e.ring(x)?;
    let factor_scale = scale + CUT - from;
    let factor = parameter(e, INVERSE_TEMPERATURE, (64, factor_scale), factor_scale + FACTOR_BITS)?;
    let y = e.op(Op::Mul, &[x, factor])?;
    let cut = e.guarded(Op::Cut { by: CUT }, &[y], bound)?;
    e.narrow(cut, bits)
}

/// A number that every party knows, of shape `[1, 1]`.
fn parameter(e: &mut Emit, name: &str, (bits, scale): (u8, u8), bound: u8) -> Result<Id> {
    let program = &mut e.module.public;
    let value = plain::ValueRef::Input(program.inputs.len() as u32);
    let shape = vec![Dim::constant(1), Dim::constant(1)];
    program.inputs.push(plain::Input { name: name.into(), dtype: plain::DType::F32, shape });
    encoded(e, value, (bits, scale), bound)
}

/// A float value of the public program in a ring.
fn encoded(e: &mut Emit, value: plain::ValueRef, (bits, scale): (u8, u8), bound: u8) -> Result<Id> {
    let plain = publish(e, value)?;
    let origin = e.origin.clone();
    let op = Op::Encode { bits, scale };
    ombra_ir::infer::push(e.module, op, &[plain], Some((bound, BoundFrom::Proven)), origin)
}

fn publish(e: &mut Emit, value: plain::ValueRef) -> Result<Id> {
    let index = e.module.public.outputs.len() as u32;
    e.module.public.outputs.push(value);
    e.op(Op::Public { value: index }, &[])
}

/// A node of the public program.
fn node(e: &mut Emit, op: plain::Op, inputs: Vec<plain::ValueRef>) -> Result<plain::ValueRef> {
    e.module.public.push(op, inputs)
}

/// Integers of the public program as floats.
fn as_floats(e: &mut Emit, value: plain::ValueRef) -> Result<plain::ValueRef> {
    node(e, plain::Op::Cast { to: plain::DType::F32 }, vec![value])
}

fn size(n: u64) -> Result<Dim> {
    i64::try_from(n).map(Dim::constant).map_err(|_| Diagnostic::internal("E0545", "a size beyond 2^63"))
}

/// `⌈log2⌉` of the largest value of a size.
fn log2(e: &Emit, dim: &Dim) -> Result<u8> {
    let most = e.module.dims.upper(dim).and_then(|n| u64::try_from(n).ok());
    let most = most.ok_or_else(|| Diagnostic::internal("E0545", "a size without a maximum is drawn from"))?;
    Ok(most.max(1).next_power_of_two().trailing_zeros() as u8)
}

/// The smallest ring of whole bytes for comparisons of values below `2^bound`.
fn ring_of(bound: u8) -> u8 {
    expand::ring_of(bound + 2)
}

/// The value in another ring: extended, or its low bits.
fn in_ring(e: &mut Emit, x: Id, bits: u8) -> Result<Id> {
    let (from, _, _) = e.ring(x)?;
    if from < bits { e.op(Op::Truncate { by: 0, bits }, &[x]) } else { e.narrow(x, bits) }
}

/// Some elements along an axis.
fn slice(e: &mut Emit, x: Id, axis: u8, (start, len): (Dim, Dim)) -> Result<Id> {
    e.op(Op::Slice { axis, start, len }, &[x])
}

/// `value` in place of the first `len` elements along the last axis of `x`, whose shape the result has there.
fn constant_like(e: &mut Emit, x: Id, len: Dim, value: i64, bound: u8) -> Result<Id> {
    let last = e.ty(x).shape.len() as u8 - 1;
    let some = slice(e, x, last, (Dim::constant(0), len))?;
    let zeros = e.op(Op::MulInt { k: 0 }, &[some])?;
    e.guarded(Op::AddInt { k: value }, &[zeros], bound)
}

/// 1 where `x ≥ 0`, as an element of scale 0 of a ring of `bits`; nothing is dropped.
fn not_negative(e: &mut Emit, x: Id, bits: u8) -> Result<Id> {
    let negative = e.sign(x, 0)?;
    let holds = e.op(Op::Not, &[negative])?;
    e.op(Op::BitToRing { bits }, &[holds])
}

/// The maximum element of every row of `x`, which may fall short by `2^drop` units at every level of its tree.
fn row_max(e: &mut Emit, x: Id, drop: u8) -> Result<Id> {
    let shape = e.ty(x).shape.clone();
    let all = node(e, plain::Op::Constant(Tensor::bool(&[1], vec![true])?), Vec::new())?;
    let value = e.module.public.outputs.len() as u32;
    let mask = publish(e, all)?;
    let sym = e.module.dims.symbol(&format!("drawn{}", e.module.counts.len()))?;
    let entries = shape.iter().try_fold(Dim::constant(1), |n, dim| n.mul(dim))?;
    let max = e.module.dims.upper(&entries).and_then(|n| u64::try_from(n).ok());
    if let Some(info) = e.module.dims.info_mut(sym) {
        (info.min, info.max) = (0, max);
    }
    e.module.counts.push(Count { sym, mask: value, shape: shape.clone() });
    let packed = e.op(Op::Pack, &[x, mask])?;
    let (bits, _, bound) = e.ring(x)?;
    let (width, drop) = comparison(infer::size(e.ty(x)) + BIT, drop, bits).ok_or_else(|| no_room(bound))?;
    e.op(Op::RowMax { shape, width, drop }, &[packed, mask])
}

fn no_room(bound: u8) -> Diagnostic {
    Diagnostic::internal("E0545", format!("scores of {bound} bits do not fit where a token is drawn"))
}

/// `e^x` of scores `x ≤ 1/2` less their maximum, where `keep` is 1; in a ring of `bits`, in units of 2^-29, never negative.
fn masses(e: &mut Emit, x: Id, keep: Id, bits: u8) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let y = e.guarded(Op::ExpDigits { scale, window: EXP_WINDOW, tail: true }, &[x], MASS_BOUND)?;
    // Shares may take two units off: nothing is to be negative.
    let y = e.guarded(Op::AddInt { k: 2 }, &[y], MASS_BOUND)?;
    let kept = e.guarded(Op::Mul, &[y, keep], MASS_BOUND)?;
    let p = e.widen(kept, bits, (MASS_BOUND, BoundFrom::Guarded))?;
    e.op(Op::SetScale { scale: 0 }, &[p])
}

/// Draws from all tokens.
fn from_all(e: &mut Emit, logits: &Logits) -> Result<Id> {
    let Scores { scale, bound, .. } = logits.scores;
    let z = scores(e, logits)?;
    // The maximum of fewer bits, which take a smaller ring without a message: three eighths too low at most, and less
    // than a tenth as a rule.
    let max = if scale < 11 {
        row_max(e, z, 0)?
    } else {
        let (bits, _, _) = e.ring(z)?;
        let small = e.op(Op::Cut { by: 8 }, &[z])?;
        let max = row_max(e, small, 0)?;
        let max = in_ring(e, max, bits)?;
        e.op(Op::Upscale { by: 8 }, &[max])?
    };
    let x = e.guarded(Op::Sub, &[z, max], bound + 1)?;
    let above = e.guarded(Op::AddInt { k: i64::from(KEPT) << scale }, &[x], bound + 1)?;
    // Tokens up to half above the border may be left out.
    let below = e.sign(above, scale.saturating_sub(1))?;
    let keep = e.op(Op::Not, &[below])?;
    let keep = e.op(Op::BitToRing { bits: EXP_RING }, &[keep])?;
    let columns = logits.tokens.isqrt() + u64::from(!logits.tokens.is_power_of_two());
    let blocks = logits.tokens.div_ceil(columns);
    let total = MASS_BOUND + log2(e, &size(blocks * columns)?)?;
    let p = masses(e, x, keep, ring_of(total))?;
    let p = match blocks * columns - logits.tokens {
        0 => p,
        missing => {
            let none = constant_like(e, p, size(missing)?, 0, 0)?;
            e.op(Op::Concat { axis: 1 }, &[p, none])?
        }
    };
    let (blocks, columns) = (size(blocks)?, size(columns)?);
    let p = e.op(Op::Reshape { shape: vec![logits.rows.clone(), blocks.clone(), columns.clone()] }, &[p])?;
    let drawn = draw(e, p, &Blocks { rows: logits.rows.clone(), blocks, columns: columns.clone(), total })?;
    // The block is the number of those before it.
    let passed = e.narrow(drawn.passed, EXP_RING)?;
    let block = e.op(Op::ReduceSum { axis: 1 }, &[passed])?;
    let first = e.op(Op::MulInt { k: columns.as_constant().unwrap_or(1) }, &[block])?;
    e.op(Op::Add, &[first, drawn.offset])
}

/// Draws from the `top_k` most probable tokens, or from the fewest of them that hold a share of their mass.
fn candidates(e: &mut Emit, logits: &Logits, by_share: bool) -> Result<Id> {
    let Scores { bits, scale, bound } = logits.scores;
    let z = scores(e, logits)?;
    let rows = &logits.rows;
    let block = (logits.tokens.isqrt() / 4).clamp(2, LONGEST_BLOCK);
    let blocks = logits.tokens.div_ceil(block);
    let most = logits.tokens.min(MOST_CANDIDATES);
    let sym = e.module.dims.symbol(TOP_K)?;
    if let Some(info) = e.module.dims.info_mut(sym) {
        (info.min, info.max) = (1, Some(most));
    }
    let k = Dim::from(sym);

    // Blocks and their maxima. What fills the last one is far below every token: its distance from them is at least 2^5.
    let z = match blocks * block - logits.tokens {
        0 => z,
        missing => {
            let least = constant_like(e, z, size(missing)?, -(1 << bound), bound + 1)?;
            e.op(Op::Concat { axis: 1 }, &[z, least])?
        }
    };
    let (block, blocks) = (size(block)?, size(blocks)?);
    let z = e.op(Op::Reshape { shape: vec![rows.clone(), blocks.clone(), block.clone()] }, &[z])?;
    let drop = scale.saturating_sub(12);
    let maxima = row_max(e, z, drop)?;
    let maxima = e.op(Op::Reshape { shape: vec![rows.clone(), blocks.clone()] }, &[maxima])?;
    let max = row_max(e, maxima, drop)?;

    // Which blocks: those whose maximum is not below the k-th.
    let steps = Steps::of(scale);
    let below = e.guarded(Op::Sub, &[maxima, max], bound + 1)?;
    let heights = search::heights(e, below, steps)?;
    let count_ring = ring_of(log2(e, &blocks)?.max(log2(e, &k.mul(&block)?)?) + 1);
    let wanted = node(e, plain::Op::Sizes { shape: vec![1, 1], values: vec![k.clone()] }, Vec::new())?;
    let wanted = as_floats(e, wanted)?;
    let wanted = encoded(e, wanted, (count_ring, 0), log2(e, &k)? + 1)?;
    let threshold = search(e, heights, steps, &Weigh::Count { ring: count_ring }, wanted)?;
    let chosen = e.op(Op::Sub, &[heights, threshold])?;
    let above = e.guarded(Op::AddInt { k: -steps.step() }, &[chosen], search::BOUND)?;
    let chosen = not_negative(e, chosen, count_ring)?;
    let above = not_negative(e, above, count_ring)?;
    let tied = e.guarded(Op::Sub, &[chosen, above], 1)?;

    // Blocks a step above the threshold come first: there are fewer than k of them, and of those within the step more
    // than are needed. The j-th in this order is the first before whose end there are j + 1: rows of ones and zeros move
    // it out.
    let twice = blocks.add(&blocks)?;
    let ordered = e.op(Op::Concat { axis: 1 }, &[above, tied])?;
    let passed = running_sum(e, ordered, &twice)?;
    let passed = e.op(Op::Reshape { shape: vec![rows.clone(), Dim::constant(1), twice.clone()] }, &[passed])?;
    let order = node(e, plain::Op::Iota { start: Dim::constant(1), len: k.clone(), step: 1 }, Vec::new())?;
    let order = node(e, plain::Op::Reshape { shape: vec![k.clone(), Dim::constant(1)] }, vec![order])?;
    let order = as_floats(e, order)?;
    let order = encoded(e, order, (count_ring, 0), log2(e, &k)? + 1)?;
    let beyond = e.guarded(Op::Sub, &[passed, order], count_ring - 2)?;
    let reached = not_negative(e, beyond, bits)?;
    let one = Dim::constant(1);
    let none = constant_like(e, reached, one.clone(), 0, 0)?;
    let before = slice(e, reached, 2, (Dim::constant(0), twice.sub(&one)?))?;
    let before = e.op(Op::Concat { axis: 2 }, &[none, before])?;
    let ones = e.guarded(Op::Sub, &[reached, before], 1)?;
    let from_above = slice(e, ones, 2, (Dim::constant(0), blocks.clone()))?;
    let from_tied = slice(e, ones, 2, (blocks.clone(), blocks.clone()))?;
    let rows_of_ones = e.guarded(Op::Add, &[from_above, from_tied], 1)?;
    // A row of zeros, where fewer blocks are chosen, gives zeros: these have to be below what is kept.
    let base = steps.range() + (1 << scale);
    let max3 = e.op(Op::Reshape { shape: vec![rows.clone(), one.clone(), one.clone()] }, &[max])?;
    let raised = e.guarded(Op::Sub, &[z, max3], bound + 1)?;
    let raised = e.guarded(Op::AddInt { k: base }, &[raised], bound + 1)?;
    let moved = e.guarded(Op::MatMul { trans_b: false }, &[rows_of_ones, raised], bound + 1)?;
    let moved = e.op(Op::Reshare, &[moved])?;
    let x = e.guarded(Op::AddInt { k: -base }, &[moved], bound + 1)?;
    let entries = k.mul(&block)?;
    let x = e.op(Op::Reshape { shape: vec![rows.clone(), entries.clone()] }, &[x])?;

    // Their elements: those not below the k-th, and then those that hold the share.
    let heights = search::heights(e, x, steps)?;
    let threshold = search(e, heights, steps, &Weigh::Count { ring: count_ring }, wanted)?;
    let keep = e.op(Op::Sub, &[heights, threshold])?;
    let keep = not_negative(e, keep, EXP_RING)?;
    let total = MASS_BOUND + log2(e, &entries)?;
    let ring = ring_of(total);
    let (_, _, height_bound) = e.ring(heights)?;
    let x = e.guarded(Op::AddInt { k: -steps.range() }, &[heights], height_bound)?;
    let mut p = masses(e, x, keep, ring)?;
    if by_share {
        let target = share_of(e, p, total)?;
        let threshold = search(e, heights, steps, &Weigh::Mass { masses: p, total }, target)?;
        let keep = e.op(Op::Sub, &[heights, threshold])?;
        let keep = not_negative(e, keep, ring)?;
        let kept = e.guarded(Op::Mul, &[p, keep], MASS_BOUND)?;
        p = e.op(Op::Reshare, &[kept])?;
    }
    let p = e.op(Op::Reshape { shape: vec![rows.clone(), k.clone(), block.clone()] }, &[p])?;
    let drawn = draw(e, p, &Blocks { rows: rows.clone(), blocks: k.clone(), columns: block.clone(), total })?;
    // The place of a chosen block in the order is the number of places before whose end there are too few: its own
    // number, and as much again as there are blocks unless it comes first.
    let reached = e.narrow(reached, EXP_RING)?;
    let after = e.op(Op::ReduceSum { axis: 2 }, &[reached])?;
    let is_first = slice(e, reached, 2, (blocks.sub(&one)?, one.clone()))?;
    let number_bound = log2(e, &blocks)? + 1;
    let again = e.guarded(Op::MulInt { k: blocks.as_constant().unwrap_or(0) }, &[is_first], number_bound)?;
    let number = e.guarded(Op::Sub, &[again, after], number_bound + 1)?;
    let number = e.guarded(Op::AddInt { k: blocks.as_constant().unwrap_or(0) }, &[number], number_bound)?;
    let number = e.op(Op::Reshape { shape: vec![rows.clone(), k] }, &[number])?;
    let here = e.narrow(drawn.here, EXP_RING)?;
    let number = e.guarded(Op::Mul, &[here, number], number_bound)?;
    let number = e.guarded(Op::ReduceSum { axis: 1 }, &[number], number_bound)?;
    let number = e.op(Op::Reshare, &[number])?;
    let first = e.op(Op::MulInt { k: block.as_constant().unwrap_or(1) }, &[number])?;
    e.op(Op::Add, &[first, drawn.offset])
}

/// The wanted share of the sum of the masses, of shape `[rows, 1]`.
fn share_of(e: &mut Emit, p: Id, total: u8) -> Result<Id> {
    let (ring, _, _) = e.ring(p)?;
    let sum = e.guarded(Op::ReduceSum { axis: 1 }, &[p], total)?;
    let sum = in_ring(e, sum, 64)?;
    let scale = (62 - total).min(16);
    let share = parameter(e, TOP_P, (64, scale), scale + 1)?;
    let part = e.guarded(Op::Mul, &[sum, share], total + scale)?;
    let part = if e.ty(part).sharing.is_sum() { e.op(Op::Reshare, &[part])? } else { part };
    let part = e.guarded(Op::Truncate { by: scale, bits: e.ring(part)?.0 }, &[part], total)?;
    in_ring(e, part, ring)
}

/// Sums of the elements of every row up to each one, along the last axis of fixed size: every party adds what it holds.
fn running_sum(e: &mut Emit, x: Id, n: &Dim) -> Result<Id> {
    let axis = e.ty(x).shape.len() as u8 - 1;
    let total = e.ring(x)?.2 + log2(e, n)?;
    let n = n.as_constant().ok_or_else(|| Diagnostic::internal("E0545", "a running sum of no fixed size"))?;
    let (mut sum, mut step) = (x, 1);
    while step < n {
        let start = Dim::constant(0);
        let none = constant_like(e, sum, Dim::constant(step), 0, 0)?;
        let before = slice(e, sum, axis, (start, Dim::constant(n - step)))?;
        let before = e.op(Op::Concat { axis }, &[none, before])?;
        let origin = e.origin.clone();
        sum = push_within(e.module, Op::Add, &[sum, before], (total, BoundFrom::Guarded), origin)?;
        step *= 2;
    }
    Ok(sum)
}
