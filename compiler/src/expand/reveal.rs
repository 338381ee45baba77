//! What is revealed as a tensor is rounded down by its last division, whatever the shares are.
//!
//! A truncation of a sharing gives `y = ⌊x / 2^by⌋` or one more, as the shares decide. Who opens `y` and holds a share could
//! tell how the dropped bits of `x` compare with it; and who opens `x` itself learns all of them, which are exact products with
//! private weights. So `x` is reshared where it is a sum, and divided, and the difference `d = x − 2^by · y` is compared: it is
//! negative exactly where `y` is one more than the floor. That costs a comparison of `by + 2` bits and a conversion for every
//! element, and one resharing where `x` is a sum.
//!
//! All truncations are rounded down from which the revealed tensor comes by movements, sums, products with integers and
//! with bits; what is moved, or cut out of, a result of one, is moved first. Divisions before those rounded as shares
//! decided: that noise stays in `x`, less than a unit for each.

use super::Emit;
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::{BoundFrom, Sharing};
use std::collections::{BTreeMap, BTreeSet};

/// The value with the truncations that it comes from rounded down.
pub(super) fn rounded_down(e: &mut Emit, revealed: Id) -> Result<Id> {
    let (mut region, mut open) = (BTreeSet::new(), vec![revealed]);
    while let Some(id) = open.pop() {
        let node = e.module.node(id);
        if !region.insert(id) || matches!(node.op, Op::Truncate { by: 1.., .. }) {
            continue;
        }
        if passes_units_on(&node.op) {
            open.extend(node.args.iter().copied());
        }
    }
    let mut new: BTreeMap<Id, Rounded> = BTreeMap::new();
    // Operands come before their users.
    for id in region {
        let node = e.module.node(id).clone();
        if let (Op::Truncate { by: by @ 1.., .. }, [x]) = (&node.op, &*node.args) {
            new.insert(id, Rounded::Later { quotient: id, of: *x, by: *by });
        } else if passes_units_on(&node.op) && node.args.iter().any(|a| new.contains_key(a)) {
            let moved = match (&node.op, &*node.args) {
                (Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. }, [a]) => {
                    moved(e, id, &node.op, new.get(a))?
                }
                _ => None,
            };
            let rounded = match moved {
                Some(later) => later,
                None => {
                    let mut args = Vec::with_capacity(node.args.len());
                    for a in &node.args {
                        args.push(now(e, &mut new, *a)?);
                    }
                    // What is proven of the value follows from norms that its new operands may lack.
                    let from = node.ty.bound_from;
                    let from = if from == BoundFrom::Proven { BoundFrom::Guarded } else { from };
                    Rounded::Now(e.declared(node.op, &args, (node.ty.bound, from))?)
                }
            };
            new.insert(id, rounded);
        }
    }
    now(e, &mut new, revealed)
}

/// What stands for a value of the module.
#[derive(Clone, Copy)]
enum Rounded {
    /// The value, rounded down.
    Now(Id),
    /// A quotient by `2^by`, still to be rounded down, and what it is a quotient of.
    Later { quotient: Id, of: Id, by: u8 },
}

/// A movement of a quotient that is not rounded down yet: the quotient of what is moved.
fn moved(e: &mut Emit, quotient: Id, op: &Op, from: Option<&Rounded>) -> Result<Option<Rounded>> {
    let Some(Rounded::Later { of, by, .. }) = from else { return Ok(None) };
    let of = e.op(op.clone(), &[*of])?;
    Ok(Some(Rounded::Later { quotient, of, by: *by }))
}

/// The value that stands for `id`, rounded down once for all that take it.
fn now(e: &mut Emit, new: &mut BTreeMap<Id, Rounded>, id: Id) -> Result<Id> {
    let found = match new.get(&id) {
        None => return Ok(id),
        Some(Rounded::Now(found)) => return Ok(*found),
        Some(&Rounded::Later { quotient, of, by }) => floor(e, quotient, of, by)?,
    };
    new.insert(id, Rounded::Now(found));
    Ok(found)
}

/// Whether a unit more of an operand is some units more of the result.
fn passes_units_on(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Expand { .. }
            | Op::Gather { .. }
            | Op::Pack
            | Op::Unpack { .. }
            | Op::RowExpand { .. }
            | Op::RowSum { .. }
            | Op::ReduceSum { .. }
            | Op::Truncate { .. }
            | Op::Narrow { .. }
            | Op::Reshare
            | Op::Select
            | Op::Lookup { .. }
            | Op::SetScale { .. }
            | Op::Upscale { .. }
            | Op::Neg
            | Op::Add
            | Op::Sub
            | Op::Mul
            | Op::MulInt { .. }
            | Op::AddInt { .. }
    )
}

/// `⌊x / 2^by⌋` for the result `y` of a truncation of `x`.
fn floor(e: &mut Emit, y: Id, x: Id, by: u8) -> Result<Id> {
    let (bits, scale, bound) = e.ring(y)?;
    let (from, _, whole) = e.ring(x)?;
    let (x, y) = match e.ty(x).sharing {
        Sharing::Shared => (x, y),
        // The quotient of three terms may be more than one unit off.
        _ => {
            let x = e.declared(Op::Reshare, &[x], (whole, BoundFrom::Guarded))?;
            (x, e.guarded(Op::Truncate { by, bits }, &[x], bound)?)
        }
    };
    // The difference is small: the lesser ring holds it.
    let least = from.min(bits);
    let (x, low) = (e.narrow(x, least)?, e.narrow(y, least)?);
    let back = e.guarded(Op::Upscale { by }, &[low], least - 1)?;
    let difference = e.guarded(Op::Sub, &[x, back], by + 1)?;
    let above = e.sign(difference, 0)?;
    let above = e.op(Op::BitToRing { bits }, &[above])?;
    let above = e.op(Op::SetScale { scale }, &[above])?;
    e.guarded(Op::Sub, &[y, above], bound)
}
