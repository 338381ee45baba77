//! The search for a threshold: the maximum one above which there are enough elements, or enough mass.
//!
//! Heights are scores over [`KEPT`] below the maximum: what is lower has height 0 and is never above a
//! threshold. Every level of the search compares with three thresholds at once, a quarter of the interval apart.

use super::{MASS_BOUND, log2, not_negative, slice};
use crate::expand::Emit;
use ombra_ir::draw::KEPT;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Dim, Result};

/// Ring bits of heights.
const RING: u8 = 24;
/// Bound of a height less a threshold.
pub(super) const BOUND: u8 = RING - 2;

/// The thresholds of a search: 1, and 4 to the power of the levels less one multiples of a step above it.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    step: i64,
    levels: u32,
}

impl Steps {
    /// The least steps for which heights of scores of `scale` reach down to what is kept: no further than the exponential
    /// holds, which is 32.
    pub(super) fn of(scale: u8) -> Steps {
        let levels = if scale < 9 { 6 } else { 7 };
        Steps { step: (i64::from(KEPT) << scale >> (2 * levels)) + 1, levels }
    }

    /// How far apart the thresholds are.
    pub(super) fn step(self) -> i64 {
        self.step
    }

    /// The height of the maximum.
    pub(super) fn range(self) -> i64 {
        self.step << (2 * self.levels)
    }
}

/// What is counted above a threshold.
pub(super) enum Weigh {
    /// Elements, in a ring of so many bits.
    Count {
        /// Ring bits.
        ring: u8,
    },
    /// Their masses.
    Mass {
        /// The masses, of shape `[rows, n]`.
        masses: Id,
        /// Bound of their sum.
        total: u8,
    },
}

/// Heights of scores `x` less their maximum, of shape `[rows, n]`.
pub(super) fn heights(e: &mut Emit, x: Id, steps: Steps) -> Result<Id> {
    let (bits, _, bound) = e.ring(x)?;
    let above = e.guarded(Op::AddInt { k: steps.range() }, &[x], bound)?;
    let keep = not_negative(e, above, bits)?;
    // The maximum may fall short, so that some are a little above it.
    let most = 64 - steps.range().leading_zeros() as u8;
    let height = e.guarded(Op::Mul, &[above, keep], most)?;
    let height = e.op(Op::Reshare, &[height])?;
    e.narrow(height, RING)
}

/// The maximum threshold that elements of at least `target` together are not below; 1 where there is none. Of shape `[rows, 1]`; so is `target`, or of one element.
pub(super) fn search(e: &mut Emit, heights: Id, steps: Steps, weigh: &Weigh, target: Id) -> Result<Id> {
    let (_, scale, bound) = e.ring(heights)?;
    let shape = e.ty(heights).shape.clone();
    let (rows, n, one) = (shape[0].clone(), shape[1].clone(), Dim::constant(1));
    let each = e.op(Op::Reshape { shape: vec![rows.clone(), one.clone(), n.clone()] }, &[heights])?;
    let target = match e.ty(target).shape.first() {
        Some(first) if *first == rows => {
            e.op(Op::Reshape { shape: vec![rows.clone(), one.clone(), one.clone()] }, &[target])?
        }
        _ => target,
    };
    let first = slice(e, heights, 1, (Dim::constant(0), one.clone()))?;
    let zero = e.op(Op::MulInt { k: 0 }, &[first])?;
    let mut threshold = e.guarded(Op::AddInt { k: 1 }, &[zero], bound)?;
    for level in (0..steps.levels).rev() {
        let step = steps.step << (2 * level);
        let next = (1..4).map(|j| e.guarded(Op::AddInt { k: j * step }, &[threshold], bound));
        let next = next.collect::<Result<Vec<_>>>()?;
        let next = e.op(Op::Concat { axis: 1 }, &next)?;
        let next = e.op(Op::Reshape { shape: vec![rows.clone(), Dim::constant(3), one.clone()] }, &[next])?;
        let above = e.guarded(Op::Sub, &[each, next], bound)?;
        let found = match weigh {
            Weigh::Count { ring } => {
                let most = log2(e, &n)? + 1;
                let above = not_negative(e, above, *ring)?;
                let count = e.guarded(Op::ReduceSum { axis: 2 }, &[above], most)?;
                e.guarded(Op::Sub, &[count, target], *ring - 2)?
            }
            Weigh::Mass { masses, total } => {
                let (ring, _, _) = e.ring(*masses)?;
                let above = not_negative(e, above, ring)?;
                let shape = vec![rows.clone(), one.clone(), n.clone()];
                let masses = e.op(Op::Reshape { shape }, &[*masses])?;
                let mass = e.guarded(Op::Mul, &[above, masses], MASS_BOUND)?;
                let mass = e.guarded(Op::ReduceSum { axis: 2 }, &[mass], *total)?;
                let mass = e.op(Op::Reshare, &[mass])?;
                e.guarded(Op::Sub, &[mass, target], *total)?
            }
        };
        let enough = not_negative(e, found, RING)?;
        let passed = e.op(Op::ReduceSum { axis: 1 }, &[enough])?;
        let passed = e.op(Op::Reshape { shape: vec![rows.clone(), one.clone()] }, &[passed])?;
        let passed = e.op(Op::SetScale { scale }, &[passed])?;
        let rise = e.guarded(Op::MulInt { k: step }, &[passed], bound)?;
        threshold = e.guarded(Op::Add, &[threshold, rise], bound)?;
    }
    Ok(threshold)
}
