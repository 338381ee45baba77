//! Rings as narrow as what is made of a value needs: every bit of one is sent with a value, or with a quotient of it.
//!
//! Sums, products and movements are right modulo any power of two, so a value needs no more bits than what it goes into,
//! and than its own bound. A division needs its operand whole; comparisons and lookups need the bits that they look at; what
//! leaves the program keeps its ring. A division into a ring that is narrower by what it drops has no wrap to pay for, and
//! may leave a sum of terms (`3pc`): a sum is divided in a ring of that size where this is cheaper than in the smallest
//! one with a wrap, and the quotient is shared anew only where an op does not take the terms.
//!
//! ```text
//!   %4 = matmul %1 %2 : ring64.30 <36               %4 = narrow %1, %5 = narrow %2, %6 = matmul %4 %5 : ring40.30 <36
//!   %5 = truncate %4 {by = 14, bits = 64}           %7 = truncate %6 {by = 14, bits = 24}
//!   %6 = narrow %5 {bits = 24}
//! ```

use crate::expand::{division_spare, ring_of};
use ombra_ir::Result;
use ombra_ir::infer::{push, push_like, push_source};
use ombra_ir::module::{Id, Module, OutputKind};
use ombra_ir::op::{Class, Op};
use ombra_ir::settings::{RowLens, Sizes, wrap_bytes};
use ombra_ir::ty::{BoundFrom, Elem, Sharing, Ty};
use std::collections::BTreeMap;

/// The module in narrower rings, if its setting has more parties than one.
///
/// # Errors
/// None that a legal module has.
pub fn narrow_rings(module: Module) -> Result<Module> {
    if module.setting.protocol().parties.len() < 2 {
        return Ok(module);
    }
    let kept = Kept { assumed: assumed(&module), shared: shared(&module) };
    let rings = rings(&module, &kept);
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
            let arg = ids[node.args[slot].index()];
            let whole = match node.op {
                // What is revealed is what was made, and a table is looked up in as it is.
                Op::Reveal { .. } | Op::Embed => true,
                // Where the ring is there, a division needs no wrap.
                Op::Truncate { by, .. } => {
                    out.ty(arg).sharing != Sharing::Sum3 && wrap_bytes(ring_bits(&out, arg), rings[i], by) == 0
                }
                _ => false,
            };
            let bits = if whole { 64 } else { operand_bits(&module, &kept, (i, slot), rings[i]) };
            taken(&mut out, arg, bits)
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
            (Op::Reshare, &[x]) if out.ty(x).sharing.is_sum() => x,
            _ => push_like(&mut out, node, op, &args)?,
        };
        let id = if node.op == Op::Embed && ring_bits(&out, id) < rings[i] {
            push_like(&mut out, node, Op::Truncate { by: 0, bits: rings[i] }, &[id])?
        } else {
            id
        };
        let was_shared = node.ty.sharing == Sharing::Shared && matches!(node.op, Op::Truncate { .. } | Op::Reshare);
        let id = match out.ty(id).sharing {
            // Two terms that every op takes stay as they are.
            Sharing::Sum2 if was_shared && !kept.shared[i] => id,
            Sharing::Sum2 | Sharing::Sum3 if was_shared => push_like(&mut out, node, Op::Reshare, &[id])?,
            _ => id,
        };
        ids.push(super::within(&mut out, node, id)?);
    }
    Ok(out)
}

/// What is kept of values, by their number.
struct Kept {
    /// Whether the ring is, see [`assumed`].
    assumed: Vec<bool>,
    /// Whether the form is, see [`shared`].
    shared: Vec<bool>,
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
fn rings(module: &Module, kept: &Kept) -> Vec<u8> {
    // Rings only grow.
    let mut rings = vec![0u8; module.ops.len()];
    loop {
        let next = rings_for(module, kept, &rings);
        if next == rings {
            return rings;
        }
        rings = next;
    }
}

/// The rings where states and weights have at least those `before`.
fn rings_for(module: &Module, kept: &Kept, before: &[u8]) -> Vec<u8> {
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
            rings[i] = if kept.assumed[i] || is_fixed(&node.op) { own } else { needed.min(own) };
        }
        for (slot, arg) in node.args.iter().enumerate() {
            rings[arg.index()] = rings[arg.index()].max(operand_bits(module, kept, (i, slot), rings[i]));
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
                | Op::Lift { .. }
                | Op::ExpDigits { .. }
                | Op::Lookup { .. }
                | Op::Encode { .. }
        )
}

/// Whether what is revealed is an index, which is as large as its bound allows and nothing else.
fn is_index(module: &Module, slot: u32) -> bool {
    let kind = module.outputs.get(slot as usize).map(|output| output.kind);
    matches!(kind, Some(OutputKind::NextToken | OutputKind::Index))
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
        | Op::Lift { .. }
        | Op::Reveal { .. }
        | Op::Embed
        | Op::Encode { .. } => false,
        Op::Select => slot == 1,
        _ => true,
    }
}

/// Values that have to be sharings, since what they go into takes no sum of terms: products with secrets, cuts, and what is
/// kept or revealed. What only moves or adds values gives them in the form that it takes them in.
fn shared(module: &Module) -> Vec<bool> {
    let mut shared = vec![false; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate().rev() {
        for (slot, arg) in node.args.iter().enumerate() {
            let by_secret = || node.args.iter().enumerate().any(|(other, x)| other != slot && is_secret(module, *x));
            shared[arg.index()] |= match node.op {
                Op::MatMul { .. } | Op::Cut { .. } | Op::SetState { .. } | Op::Reveal { .. } | Op::Embed => true,
                Op::Mul => shared[i] || by_secret(),
                Op::Truncate { .. }
                | Op::Reshare
                | Op::Msb { .. }
                | Op::Select
                | Op::ExpDigits { .. }
                | Op::Lookup { .. }
                | Op::ArgMax { .. } => false,
                _ => shared[i],
            };
        }
    }
    shared
}

fn is_secret(module: &Module, id: Id) -> bool {
    module.ty(id).sharing.is_secret()
}

/// Bytes for every 8 elements that a division of `x` by `2^by` in a ring of `from` bits sends, and the resharing of its
/// quotient of `to` bits where that has to be one.
fn price(module: &Module, x: &Ty, (from, to, by): (u8, u8, u8), is_shared: bool) -> u64 {
    let protocol = module.setting.protocol();
    let sizes = |form| Sizes {
        out: 8,
        bits: to,
        from_bits: from,
        forms: [form, Sharing::Public],
        elements: [8, 0],
        of_server: [false; 2],
        same: false,
        rows: RowLens::Listed(&[]),
        table_rows: 0,
        tokens: 0,
        inner: 0,
        matrix_rows: 0,
        columns: 0,
    };
    let divided = (protocol.traffic)(&Op::Truncate { by, bits: to }, &sizes(x.sharing)).bytes();
    let is_sum = wrap_bytes(from, to, by) == 0 && protocol.divides_freely();
    let reshared = (protocol.traffic)(&Op::Reshare, &sizes(protocol.quotient)).bytes();
    divided + if is_sum && is_shared { reshared } else { 0 }
}

/// The ring in which a value is divided by `2^by` into a ring of `to` bits: the smallest that has room for a wrap, or, of a sum,
/// the one that leaves all bits, where the division is cheaper in that. What a sum is a product of then has that ring too,
/// which is not counted: that depends on sizes, and the division takes a round less. A quotient of a sharing that is two terms
/// from the beginning is to take no message: it gets the ring for that. A larger ring for what has to be shared anew afterwards
/// saves a bit an element and a round, and costs bytes of the factors.
fn divided_in(module: &Module, x: &Ty, quotient: &Ty, (to, by): (u8, u8), is_shared: bool) -> u8 {
    let least = ring_of(x.bound.max(by).saturating_add(division_spare(x.sharing, by)));
    let whole = to.saturating_add(by).div_ceil(8).saturating_mul(8);
    if x.sharing == Sharing::Shared && quotient.sharing.is_sum() && whole <= 64 {
        return whole.max(least);
    }
    let price = |from: u8| price(module, x, (from, to, by), is_shared);
    let is_worth_it = || if is_shared { 8 * price(whole) <= 7 * price(least) } else { price(whole) <= price(least) };
    let is_cheaper = x.sharing.is_sum() && whole > least && whole <= 64 && is_worth_it();
    if is_cheaper { whole } else { least }
}

/// The bits that an op takes of an operand, where its result has a ring of `bits`.
fn operand_bits(module: &Module, kept: &Kept, (i, slot): (usize, usize), bits: u8) -> u8 {
    let node = &module.ops[i];
    let arg = node.args[slot];
    let ty = module.ty(arg);
    let Some((own, scale)) = ty.as_ring() else { return 0 };
    let taken = match node.op {
        // A division of what is assumed takes it whole.
        Op::Truncate { .. } if kept.assumed[arg.index()] => own,
        Op::Truncate { by, .. } => divided_in(module, ty, &node.ty, (bits, by), kept.shared[i]),
        // Rows are brought into a larger ring, not the table.
        Op::Embed => ring_of(ty.bound.saturating_add(2)),
        Op::Msb { width, .. } => ring_of(width),
        Op::ExpDigits { window, .. } => ring_of(scale.saturating_add(window)),
        Op::Lookup { window, .. } => ring_of(window),
        Op::Reveal { slot } if is_index(module, slot) => 0,
        Op::Cut { .. } | Op::Lift { .. } | Op::Reveal { .. } | Op::Encode { .. } => own,
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
