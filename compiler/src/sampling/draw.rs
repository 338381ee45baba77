//! The inverse of a distribution function: which of some masses a random part of their sum falls on.
//!
//! Masses are integers of at least 0. With `S` their sum, `r` is `⌊u · S⌋` for a uniform `u` in [0, 1) of some bits but
//! for an error of a unit for every part that `u` has, and `0 ≤ r < S` always. The drawn element is the one with
//! `mass before it ≤ r < mass before its end`: the number of elements whose end is not beyond `r`.

use super::{MASS_BOUND, as_floats, encoded, in_ring, node, not_negative, slice};
use crate::expand::Emit;
use crate::sampling::log2;
use ombra_ir::module::Id;
use ombra_ir::op::{EXP_RING, Op};
use ombra_ir::plain::{self, Binary, Tensor};
use ombra_ir::{Dim, Result};

/// Random bits at least: each token's probability is exact to one part in `2^RANDOM_BITS` of the whole.
const RANDOM_BITS: u8 = 40;

/// The shape of masses.
pub(super) struct Blocks {
    /// Rows, of which each is drawn from.
    pub(super) rows: Dim,
    /// Blocks of a row.
    pub(super) blocks: Dim,
    /// Masses of a block.
    pub(super) columns: Dim,
    /// Bound of the sum of a row.
    pub(super) total: u8,
}

/// Where a draw has fallen.
pub(super) struct Drawn {
    /// 1 for every block before the one, of shape `[rows, blocks]`.
    pub(super) passed: Id,
    /// 1 for the block alone, of shape `[rows, blocks]`.
    pub(super) here: Id,
    /// Number of the element in its block, of shape `[rows, 1]` in a ring of 32 bits.
    pub(super) offset: Id,
}

/// Draws from `p`, of shape `[rows, blocks, columns]`.
pub(super) fn draw(e: &mut Emit, p: Id, shape: &Blocks) -> Result<Drawn> {
    let Blocks { rows, blocks, columns, total } = shape;
    let (ring, _, _) = e.ring(p)?;
    let one = Dim::constant(1);
    let block_total = MASS_BOUND + log2(e, columns)?;
    let sums = e.guarded(Op::ReduceSum { axis: 2 }, &[p], block_total)?;
    let sums = e.op(Op::Reshape { shape: vec![rows.clone(), blocks.clone()] }, &[sums])?;
    let ends = sums_to(e, sums, blocks, *total)?;
    let all = slice(e, ends, 1, (blocks.sub(&one)?, one.clone()))?;
    let r = random_part(e, all, rows, *total)?;
    let r = in_ring(e, r, ring)?;

    let left = e.guarded(Op::Sub, &[r, ends], *total)?;
    let passed = not_negative(e, left, ring)?;
    let first = slice(e, passed, 1, (Dim::constant(0), one.clone()))?;
    let first = e.op(Op::MulInt { k: 0 }, &[first])?;
    let first = e.guarded(Op::AddInt { k: 1 }, &[first], 1)?;
    let before = slice(e, passed, 1, (Dim::constant(0), blocks.sub(&one)?))?;
    let before = e.op(Op::Concat { axis: 1 }, &[first, before])?;
    let here = e.guarded(Op::Sub, &[before, passed], 1)?;

    let skipped = e.guarded(Op::Mul, &[passed, sums], block_total)?;
    let skipped = e.guarded(Op::ReduceSum { axis: 1 }, &[skipped], *total)?;
    let skipped = e.op(Op::Reshare, &[skipped])?;
    let r = e.guarded(Op::Sub, &[r, skipped], block_total)?;
    let row = e.op(Op::Reshape { shape: vec![rows.clone(), one.clone(), blocks.clone()] }, &[here])?;
    let row = e.guarded(Op::MatMul { trans_b: false }, &[row, p], MASS_BOUND)?;
    let row = e.op(Op::Reshare, &[row])?;
    let row = e.op(Op::Reshape { shape: vec![rows.clone(), columns.clone()] }, &[row])?;
    let ends = sums_to(e, row, columns, block_total)?;
    let left = e.guarded(Op::Sub, &[r, ends], block_total)?;
    let past = not_negative(e, left, EXP_RING)?;
    let offset = e.op(Op::ReduceSum { axis: 1 }, &[past])?;
    Ok(Drawn { passed, here, offset })
}

/// Sums of the elements of every row up to each one, of shape `[rows, n]`: a product with a triangle of ones.
fn sums_to(e: &mut Emit, x: Id, n: &Dim, bound: u8) -> Result<Id> {
    let (ring, _, _) = e.ring(x)?;
    let count = node(e, plain::Op::Iota { start: Dim::constant(0), len: n.clone(), step: 1 }, Vec::new())?;
    let turned = node(e, plain::Op::Reshape { shape: vec![n.clone(), Dim::constant(1)] }, vec![count])?;
    let upper = node(e, plain::Op::Binary(Binary::LessOrEqual), vec![turned, count])?;
    let upper = as_floats(e, upper)?;
    let upper = encoded(e, upper, (ring, 0), 1)?;
    let sums = e.guarded(Op::MatMul { trans_b: false }, &[x, upper], bound)?;
    e.op(Op::Reshare, &[sums])
}

/// A uniform part of `sum`, of shape `[rows, 1]`: at least 0 and less than it, in a ring of 64 bits. The random number is
/// taken in parts, as many bits of it at once as a product has room for.
fn random_part(e: &mut Emit, sum: Id, rows: &Dim, total: u8) -> Result<Id> {
    let width = 62 - total;
    let parts = RANDOM_BITS.div_ceil(width);
    let sum = in_ring(e, sum, 64)?;
    // Every division may round up by one.
    let sum = e.guarded(Op::AddInt { k: -i64::from(parts) }, &[sum], total)?;
    let bits = e.op(Op::Random { shape: vec![rows.clone(), Dim::constant(i64::from(width * parts))] }, &[])?;
    let bits = e.op(Op::BitToRing { bits: 64 }, &[bits])?;
    let powers = (0..width).map(|i| libm::exp2f(f32::from(i))).collect();
    let powers = Tensor::f32(&[1, usize::from(width)], powers)?;
    let powers = node(e, plain::Op::Constant(powers), Vec::new())?;
    let powers = encoded(e, powers, (64, 0), width)?;
    let mut part = None;
    for i in 0..parts {
        let start = Dim::constant(i64::from(i * width));
        let some = slice(e, bits, 1, (start, Dim::constant(i64::from(width))))?;
        let number = e.guarded(Op::Mul, &[some, powers], width)?;
        let number = e.guarded(Op::ReduceSum { axis: 1 }, &[number], width)?;
        let product = e.guarded(Op::Mul, &[sum, number], total + width)?;
        let by = (i + 1) * width;
        let product = e.op(Op::SetScale { scale: by }, &[product])?;
        // Of three terms a quotient may be two units off, and below 0.
        let product = if e.ty(product).sharing.is_sum() { e.op(Op::Reshare, &[product])? } else { product };
        let quotient = e.guarded(Op::Truncate { by, bits: e.ring(product)?.0 }, &[product], total)?;
        part = Some(match part {
            None => quotient,
            Some(before) => e.guarded(Op::Add, &[before, quotient], total)?,
        });
    }
    Ok(part.unwrap_or(sum))
}
