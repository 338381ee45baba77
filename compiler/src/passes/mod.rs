//! Passes over the typed graph, and over core ops (`pack_first`, `delay_normalisation`, `narrow_rings`,
//! `assign_masks`, `assign_rotations`), one a file.
//! `pipeline.rs` knows their order.

pub mod approximate;
pub mod assign_masks;
pub mod assign_owners;
pub mod assign_rotations;
pub mod decompose;
pub mod delay_normalisation;
pub mod fold_norms;
pub mod lift_reshapes;
pub mod narrow_demand;
pub mod narrow_rings;
pub mod pack_first;

use ombra_ir::Result;
use ombra_ir::infer::{has_result, push_like};
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::op::{Class, Op};

/// The module without values that nothing takes.
fn without_unused(module: &Module) -> Result<Module> {
    let mut is_used = vec![false; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate().rev() {
        is_used[i] |= node.op.class() == Class::Source || !has_result(&node.op);
        if is_used[i] {
            node.args.iter().for_each(|arg| is_used[arg.index()] = true);
        }
    }
    let mut out = Module { ops: Vec::with_capacity(module.ops.len()), ..module.without_ops() };
    let mut ids = vec![Id(0); module.ops.len()];
    for (i, node) in module.ops.iter().enumerate().filter(|(i, _)| is_used[*i]) {
        let args: Vec<_> = node.args.iter().map(|arg| ids[arg.index()]).collect();
        ids[i] = push_like(&mut out, node, node.op.clone(), &args)?;
    }
    Ok(out)
}

/// The value with what the node that it stands for says of its size, where that is more than its own op says.
fn within(out: &mut Module, node: &Node, id: Id) -> Result<Id> {
    let ty = out.ty(id);
    let Some((_, scale)) = ty.as_ring().filter(|_| has_result(&node.op)) else { return Ok(id) };
    let finer = node.ty.bound < ty.bound || ty.norms.finer(&node.ty.norms) != ty.norms;
    if finer { push_like(out, node, Op::SetScale { scale }, &[id]) } else { Ok(id) }
}

/// The ops that take every value.
fn users(module: &Module) -> Vec<Vec<Id>> {
    let mut users = vec![Vec::new(); module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        node.args.iter().for_each(|arg| users[arg.index()].push(Id(i as u32)));
    }
    users
}
