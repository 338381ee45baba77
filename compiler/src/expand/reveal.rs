//! What is revealed as a tensor is rounded down, whatever the shares are.
//!
//! A truncation gives `y = ⌊x / 2^by⌋` or one more, as the shares decide. Who opens `y` and holds a share could tell how the
//! dropped bits of `x` compare with it; and who opens `x` itself learns all of them, which are exact products with
//! private weights. So `x` is divided, and the difference `d = x − 2^by · y` is compared: it is negative exactly where
//! `y` is one more than the floor. That costs a comparison of `by + 2` bits and a conversion for every revealed element,
//! and one resharing where `x` is a sum.

use super::Emit;
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::{BoundFrom, Sharing};

/// The value with the truncation that it comes from, if it does, rounded down.
pub(super) fn rounded_down(e: &mut Emit, revealed: Id) -> Result<Id> {
    // What moves elements or reads them otherwise, from the revealed value back to where they were divided.
    let (mut moved, mut at) = (Vec::new(), revealed);
    let by = loop {
        let node = e.module.node(at);
        match node.op {
            Op::Truncate { by } => break by,
            Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Expand { .. }
            | Op::Gather { .. }
            | Op::Pack
            | Op::Unpack { .. }
            | Op::RowExpand { .. }
            | Op::Extend { .. }
            | Op::SetScale { .. }
            | Op::Upscale { .. }
            | Op::Neg
            | Op::AddInt { .. } => {
                moved.push(at);
                at = node.args[0];
            }
            _ => return Ok(revealed),
        }
    };
    let mut result = floor(e, at, by)?;
    for at in moved.into_iter().rev() {
        let node = e.module.node(at).clone();
        let args: Vec<Id> = [result].into_iter().chain(node.args.iter().skip(1).copied()).collect();
        result = e.declared(node.op, &args, (node.ty.bound, node.ty.bound_from))?;
    }
    Ok(result)
}

/// `⌊x / 2^by⌋` for the result `y` of a truncation of `x`.
fn floor(e: &mut Emit, y: Id, by: u8) -> Result<Id> {
    let x = e.module.node(y).args[0];
    let (bits, scale, bound) = e.ring(y)?;
    let (_, _, whole) = e.ring(x)?;
    let x = match e.ty(x).sharing {
        Sharing::Shared => x,
        _ => e.declared(Op::Reshare, &[x], (whole, BoundFrom::Guarded))?,
    };
    let back = e.guarded(Op::Upscale { by }, &[y], bits - 1)?;
    let difference = e.guarded(Op::Sub, &[x, back], by + 1)?;
    let above = e.sign(difference, 0)?;
    let above = e.op(Op::BitToRing { bits }, &[above])?;
    let above = e.op(Op::SetScale { scale }, &[above])?;
    e.guarded(Op::Sub, &[y, above], bound)
}
