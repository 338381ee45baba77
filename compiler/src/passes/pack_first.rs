//! What is done with every entry of a matrix of which only the entries of a mask are used is done with those alone.
//!
//! A division of scores costs as much for an entry that the mask hides as for one that it keeps, which of causal scores are
//! half.
//!
//! ```text
//!   %2 = matmul %0 %1                      %2 = matmul %0 %1
//!   %3 = truncate %2 {by = 16}             %3 = pack %2 $mask
//!   %4 = pack %3 $mask                     %4 = truncate %3 {by = 16}
//! ```

use ombra_ir::Result;
use ombra_ir::infer::{push, push_like};
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::norms::Norms;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use std::collections::{BTreeMap, BTreeSet};

/// The module with packing before ops on single entries, where nobody takes what they make of hidden ones.
///
/// # Errors
/// None that a legal module has.
pub fn pack_first(module: Module) -> Result<Module> {
    let moved = moved(&module);
    // Packed values by what they are made of and the mask.
    let mut packed: BTreeMap<(Id, Id), Id> = BTreeMap::new();
    let mut out = Module { ops: Vec::with_capacity(module.ops.len()), ..module.without_ops() };
    let mut ids: Vec<Id> = Vec::with_capacity(module.ops.len());
    for node in &module.ops {
        let args: Vec<Id> = node.args.iter().map(|arg| ids[arg.index()]).collect();
        let (Op::Pack, &[x, mask]) = (&node.op, &*node.args) else {
            ids.push(push_like(&mut out, node, node.op.clone(), &args)?);
            continue;
        };
        let (mut first, mut chain) = (x, Vec::new());
        while moved.get(&first) == Some(&mask) {
            chain.push(first);
            first = module.node(first).args[0];
        }
        let mut made = match packed.get(&(first, mask)) {
            Some(&made) => made,
            None => push(&mut out, Op::Pack, &[ids[first.index()], args[1]], None, node.origin.clone())?,
        };
        packed.insert((first, mask), made);
        for id in chain.into_iter().rev() {
            made = match packed.get(&(id, mask)) {
                Some(&made) => made,
                None => push_like(&mut out, &of_some(module.node(id)), module.node(id).op.clone(), &[made])?,
            };
            packed.insert((id, mask), made);
        }
        ids.push(super::within(&mut out, &of_some(node), made)?);
    }
    super::without_unused(&out)
}

/// A node with what is known of every entry, which of some is as true, but does not follow from what is known of those.
fn of_some(node: &Node) -> Node {
    let mut some = node.clone();
    some.ty.norms = Norms { size: node.ty.norms.size, ..Norms::default() };
    if some.ty.bound_from == BoundFrom::Proven {
        some.ty.bound_from = BoundFrom::Guarded;
    }
    some
}

/// Ops on single entries of which only those of one mask are used, with that mask.
fn moved(module: &Module) -> BTreeMap<Id, Id> {
    let users = super::users(module);
    let mut moved = BTreeMap::new();
    for i in (0..module.ops.len()).rev().filter(|i| is_of_entries(&module.ops[*i].op)) {
        let masks = users[i].iter().map(|user| match (&module.node(*user).op, &*module.node(*user).args) {
            (Op::Pack, &[_, mask]) => Some(mask),
            _ => moved.get(user).copied(),
        });
        let masks: Option<BTreeSet<Id>> = masks.collect();
        if let Some([mask]) = masks.map(Vec::from_iter).as_deref() {
            moved.insert(Id(i as u32), *mask);
        }
    }
    moved
}

/// Whether an op makes every entry of its result of one entry of its operand, alike at every place.
fn is_of_entries(op: &Op) -> bool {
    matches!(
        op,
        Op::Truncate { .. }
            | Op::Reshare
            | Op::Narrow { .. }
            | Op::Neg
            | Op::AddInt { .. }
            | Op::MulInt { .. }
            | Op::Upscale { .. }
            | Op::SetScale { .. }
    )
}
