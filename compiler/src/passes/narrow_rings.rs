//! Rings as narrow as what is made of a value needs, in settings where a ring's bits are bytes between the parties.
//!
//! Sums, products and movements are right modulo any power of two, so a value needs no more bits than what it goes into,
//! and than its own bound. A division needs its operand whole; comparisons and lookups need the bits that they look at; what
//! leaves the program keeps its ring. A division into a ring that is narrower by what it drops sends nothing.
//!
//! ```text
//!   %4 = matmul %1 %2 : ring64.30 <36               %4 = narrow %1, %5 = narrow %2, %6 = matmul %4 %5 : ring40.30 <36
//!   %5 = truncate %4 {by = 14, bits = 64}           %7 = truncate %6 {by = 14, bits = 24}
//!   %6 = narrow %5 {bits = 24}
//! ```

use crate::expand::ring_of;
use ombra_ir::Result;
use ombra_ir::infer::{push, push_like, push_source};
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::op::{Class, Op};
use ombra_ir::ty::{BoundFrom, Elem, Ty};
use std::collections::BTreeMap;

/// The module in narrower rings, if its setting pays for bits.
///
/// # Errors
/// None that a legal module has.
pub fn narrow_rings(module: Module) -> Result<Module> {
    if !module.setting.pays_for_ring_bits() {
        return Ok(module);
    }
    let assumed = assumed(&module);
    let rings = rings(&module, &assumed);
    let mut out = Module { ops: Vec::with_capacity(module.ops.len()), ..module.without_ops() };
    let mut ids: Vec<Id> = Vec::with_capacity(module.ops.len());
    let mut narrowed: BTreeMap<(Id, u8), Id> = BTreeMap::new();
    for (i, node) in module.ops.iter().enumerate() {
        let mut taken = |out: &mut Module, id: Id, bits: u8| -> Result<Id> {
            if ring_bits(out, id) <= bits {
                return Ok(id);
            }
            if let Some(&narrow) = narrowed.get(&(id, bits)) {
                return Ok(narrow);
            }
            let narrow = push(out, Op::Narrow { bits }, &[id], None, node.origin.clone())?;
            narrowed.insert((id, bits), narrow);
            Ok(narrow)
        };
        let op = with_ring(&node.op, rings[i]);
        let args = (0..node.args.len()).map(|slot| {
            let bits = operand_bits(&module, &assumed, node, slot, rings[i]);
            taken(&mut out, ids[node.args[slot].index()], bits)
        });
        let args = args.collect::<Result<Vec<_>>>()?;
        let id = match (&op, &*args) {
            // A change of the ring that is one no more, or goes the other way.
            (Op::Narrow { bits } | Op::Truncate { by: 0, bits }, &[x]) if ring_bits(&out, x) >= *bits => {
                taken(&mut out, x, *bits)?
            }
            (Op::State { .. } | Op::Weight { .. } | Op::PublicWeight { .. }, _) => {
                let scale = node.ty.as_ring().map_or(0, |(_, scale)| scale);
                let ty = Ty { elem: Elem::Ring { bits: rings[i], scale }, ..node.ty.clone() };
                push_source(&mut out, op, ty, node.origin.clone())?
            }
            _ => push_like(&mut out, node, op, &args)?,
        };
        ids.push(id);
    }
    Ok(out)
}

/// Ring bits of a value; none of what is no ring element.
fn ring_bits(module: &Module, id: Id) -> u8 {
    module.ty(id).as_ring().map_or(0, |(bits, _)| bits)
}

/// The least ring that holds a value's bound.
fn needed_by_bound(module: &Module, id: Id) -> u8 {
    ring_of(module.ty(id).bound.saturating_add(1))
}

/// The ring of every result: as many bits as what it goes into takes. What a state is set to has the ring that it is read
/// in; a state that is kept in another one has that one's bits at least. A weight has one ring, and ops take it in that,
/// so that it is never made whole to be narrowed.
fn rings(module: &Module, assumed: &[bool]) -> Vec<u8> {
    // Rings only grow.
    let mut rings = vec![0u8; module.ops.len()];
    loop {
        let next = rings_for(module, assumed, &rings);
        if next == rings {
            return rings;
        }
        rings = next;
    }
}

/// The rings where states and weights have at least those `before`.
fn rings_for(module: &Module, assumed: &[bool], before: &[u8]) -> Vec<u8> {
    let mut states = vec![0u8; module.states.len()];
    for (node, &bits) in module.ops.iter().zip(before) {
        if let Op::State { slot } = node.op
            && let Some(state) = states.get_mut(slot as usize)
        {
            *state = bits.max(*state);
        }
    }
    let of_weight = |id: Id| if is_weight(&module.node(id).op) { before[id.index()] } else { 0 };
    let mut rings = vec![0u8; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate().rev() {
        if let Some((own, _)) = node.ty.as_ring() {
            let of_op = match node.op {
                Op::RowMax { width, .. } | Op::ArgMax { width } => ring_of(width),
                Op::State { slot } | Op::SetState { slot } => states.get(slot as usize).copied().unwrap_or(own),
                _ => 0,
            };
            // Operands that an op takes in its own ring fit it with their bounds.
            let of_operands = node.args.iter().enumerate().filter(|(slot, _)| takes_own_ring(&node.op, *slot));
            let of_operands = of_operands.map(|(_, &arg)| needed_by_bound(module, arg).max(of_weight(arg)));
            let of_operands = of_operands.max().unwrap_or(0);
            let needed = rings[i].max(of_op).max(of_operands).max(needed_by_bound(module, Id(i as u32)));
            rings[i] = if assumed[i] || is_fixed(&node.op) { own } else { needed.min(own) };
        }
        for (slot, arg) in node.args.iter().enumerate() {
            rings[arg.index()] = rings[arg.index()].max(operand_bits(module, assumed, node, slot, rings[i]));
        }
    }
    rings
}

/// Values whose bound is assumed, and what is made of them before a division says anew what it is: they keep their rings,
/// since whoever compares them with their bound needs them whole where it does not hold.
fn assumed(module: &Module) -> Vec<bool> {
    let mut assumed = vec![false; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        let follows = !matches!(
            node.op,
            Op::Truncate { .. }
                | Op::Cut { .. }
                | Op::ExpDigits { .. }
                | Op::Lookup { .. }
                | Op::RowMax { .. }
                | Op::ArgMax { .. }
                | Op::BitToRing { .. }
        );
        assumed[i] = node.ty.as_ring().is_some()
            && (node.ty.bound_from == BoundFrom::Calibrated
                || follows && node.args.iter().any(|arg| assumed[arg.index()]));
    }
    assumed
}

fn is_weight(op: &Op) -> bool {
    matches!(op, Op::Weight { .. } | Op::PublicWeight { .. })
}

/// Whether an op's result has the ring that it has.
fn is_fixed(op: &Op) -> bool {
    op.class() == Class::Source && !matches!(op, Op::State { .. }) && !is_weight(op)
        || matches!(
            op,
            Op::Reveal { .. }
                | Op::Cut { .. }
                | Op::ExpDigits { .. }
                | Op::Lookup { .. }
                | Op::Embed
                | Op::Encode { .. }
        )
}

/// Whether an op takes an operand in the ring of its result.
fn takes_own_ring(op: &Op, slot: usize) -> bool {
    match op {
        Op::Truncate { .. }
        | Op::Msb { .. }
        | Op::ExpDigits { .. }
        | Op::Lookup { .. }
        | Op::Narrow { .. }
        | Op::Cut { .. }
        | Op::Reveal { .. }
        | Op::Embed
        | Op::Encode { .. } => false,
        Op::Select => slot == 1,
        _ => true,
    }
}

/// The bits that an op takes of an operand, where its result has a ring of `bits`.
fn operand_bits(module: &Module, assumed: &[bool], node: &Node, slot: usize, bits: u8) -> u8 {
    let arg = node.args[slot];
    let ty = module.ty(arg);
    let Some((own, scale)) = ty.as_ring() else { return 0 };
    let taken = match node.op {
        // A division of what is assumed takes it whole.
        Op::Truncate { .. } if assumed[arg.index()] => own,
        Op::Truncate { by, .. } => ring_of(ty.bound.max(by).saturating_add(2)),
        Op::Msb { width, .. } => ring_of(width),
        Op::ExpDigits { window, .. } => ring_of(scale.saturating_add(window)),
        Op::Lookup { window, .. } => ring_of(window),
        Op::Cut { .. } | Op::Reveal { .. } | Op::Embed | Op::Encode { .. } => own,
        _ => bits,
    };
    taken.max(needed_by_bound(module, arg)).min(own)
}

/// The op with a result of a ring of `bits`.
fn with_ring(op: &Op, bits: u8) -> Op {
    match op {
        Op::Truncate { by, .. } => Op::Truncate { by: *by, bits },
        Op::Narrow { .. } => Op::Narrow { bits },
        Op::BitToRing { .. } => Op::BitToRing { bits },
        other => other.clone(),
    }
}
