//! Hidden states clamped where one layer hands over to the next.
//!
//! A calibrated bound is an assumption about every input. A clamp enforces it: whatever the layers before have made,
//! the next layer starts within its bound, and an outlier is cut off instead of wrapping around. What is clamped is
//! the sum that the residual connection leaves; it only has to fit the ring, at 2^29 where the bound is some thousands.

use crate::calibrate::Ranges;
use crate::graph::{Graph, Op, Owner, ValueId};
use ombra_ir::Result;
use ombra_ir::plain::DType;

/// Size that a value before its clamp is taken to be below, margin not counted: 2^29, what an unfinished product of 62
/// bits holds at twice 16 fraction bits, one bit kept for the sum.
const UNCLAMPED_LOG2: i32 = 29;

/// Clamps secret sums that leave their layer to the power of two above what calibration saw, times `2^margin`; returns
/// how many. To be called when ranges are known, which it completes.
///
/// # Errors
/// Internal ones of the graph.
pub fn clamp(graph: &mut Graph, ranges: &mut Ranges, margin: u8) -> Result<usize> {
    let mut count = 0;
    for v in graph.topological() {
        if !leaves_its_layer(graph, v)? {
            continue;
        }
        let Some(&seen) = ranges.abs.get(&v).filter(|max| **max > 0.0) else { continue };
        let log2 = libm::floor(libm::log2(seen)) as i32 + 1 + i32::from(margin);
        let most = libm::ldexp(1.0, log2) as f32;
        let origin = graph.node(v)?.origin.clone();
        let users = graph.users(v);
        let clamped = graph.add(Op::Clamp { low: -most, high: most }, &[v], origin)?;
        graph.node_mut(clamped)?.owner = Owner::Secret;
        for user in users {
            for (slot, operand) in graph.operands(user).into_iter().enumerate() {
                if operand == v {
                    graph.set_operand(user, slot as u32, clamped)?;
                }
            }
        }
        // The clamp's bound is no assumption. What goes into it may be as large as the ring allows.
        ranges.abs.insert(clamped, f64::from(most));
        for unfinished in sum_before(graph, v)? {
            ranges.abs.insert(unfinished, libm::ldexp(1.0, UNCLAMPED_LOG2 - i32::from(margin)) * 0.99);
        }
        count += 1;
    }
    Ok(count)
}

/// Whether `v` is a secret sum of float tensors that is used in a later layer or after the last.
fn leaves_its_layer(graph: &Graph, v: ValueId) -> Result<bool> {
    let node = graph.node(v)?;
    let sum = matches!(node.op, Op::Add) && node.owner == Owner::Secret && node.dtype == DType::F32;
    let Some(own) = node.origin.layer.filter(|_| sum) else { return Ok(false) };
    let beyond = |u: ValueId| graph.node(u).is_ok_and(|n| n.origin.layer.is_none_or(|layer| layer > own));
    Ok(!graph.is_output(v) && graph.users(v).into_iter().any(beyond))
}

/// The values that lowering leaves unfinished until `v` is: sums and products that only this sum takes.
fn sum_before(graph: &Graph, v: ValueId) -> Result<Vec<ValueId>> {
    let mut found = vec![v];
    let mut next = 0;
    while let Some(&at) = found.get(next) {
        next += 1;
        if at != v && !matches!(graph.op(at), Some(Op::Add | Op::Sub | Op::Reshape { .. })) {
            continue;
        }
        for operand in graph.operands(at) {
            let unfinished = matches!(graph.op(operand), Some(Op::Add | Op::Sub | Op::MatMul | Op::Reshape { .. }));
            let alone = graph.users(operand).len() == 1 && !graph.is_output(operand);
            if unfinished && alone && graph.node(operand)?.owner == Owner::Secret {
                found.push(operand);
            }
        }
    }
    Ok(found)
}
