//! Masks where a setting has them: a secret is opened under a mask once, and multiplied as often as it is used.
//!
//! A product of two secrets takes both of them masked, one with a private weight takes the other held by the server. What is
//! moved, negated or scaled by a public number is masked where it begins: masks go the same way as values, and a value is
//! smaller before it is repeated. Caches stay masked between steps, so that only what is new is ever masked.
//!
//! ```text
//!   before                               after
//!   %3 = truncate %2                     %3 = truncate %2
//!   %4 = mul %3 %3                       %4 = mask %3
//!   %5 = expand %3                       %5 = mul %4 %4
//!   %6 = mul %5 %1                       %6 = expand %4, %7 = mask %1, %8 = mul %6 %7
//! ```
//!
//! A sum of products over the last axis becomes a matrix product: the dealer deals one element for each sum.

use ombra_ir::dim::Dim;
use ombra_ir::infer::{push, push_like, push_within};
use ombra_ir::module::{Id, Module, Node};
use ombra_ir::op::Op;
use ombra_ir::schedule::of_server;
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeSet;

/// The module with masks, if its setting has them.
///
/// # Errors
/// None that a legal module has.
pub fn assign_masks(module: Module) -> Result<Module> {
    if module.setting.protocol().dealer.is_none() {
        return Ok(module);
    }
    let users = super::users(&module);
    let (wanted, held) = wanted(&module, &users);
    let covered_or_held = covered(&module, &wanted.union(&held).copied().collect());
    let covered = covered(&module, &wanted);
    let out = Module { ops: Vec::with_capacity(module.ops.len() * 2), ..module.without_ops() };
    let n = module.ops.len();
    let mut pass = Pass {
        users,
        old: &module,
        out,
        wanted,
        covered,
        covered_or_held,
        shares: vec![None; n],
        masked: vec![None; n],
        held: vec![None; n],
    };
    for i in 0..n {
        pass.node(Id(i as u32))?;
    }
    super::without_unused(&pass.out)
}

/// What a product takes of an operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Masked,
    Held,
}

/// What an op takes of its operand `i`, where it is not the share as it is.
fn want(module: &Module, node: &Node, i: usize) -> Option<Want> {
    let secret = |id: Id| module.ty(id).sharing.is_secret();
    match (&node.op, &*node.args) {
        (Op::Mul | Op::MatMul { .. }, &[a, b]) if secret(a) && secret(b) => {
            match [of_server(module, a), of_server(module, b)] {
                [false, false] => Some(Want::Masked),
                [_, true] => (i == 0).then_some(Want::Held),
                [true, false] => (i == 1).then_some(Want::Held),
            }
        }
        (Op::Lookup { .. }, _) => Some(Want::Masked),
        (Op::Select, _) => (i == 1).then_some(Want::Masked),
        _ => None,
    }
}

/// Whether an op takes its first operand masked where it is, and masks a part of it itself where it is not.
fn takes_masked(op: &Op) -> bool {
    matches!(op, Op::Msb { .. } | Op::ExpDigits { .. })
}

/// The bit as a number and the value of a product with a bit of which nothing else is asked as a number.
fn selection(module: &Module, users: &[Vec<Id>], node: &Node) -> Option<[Id; 2]> {
    let (Op::Mul, &[a, b]) = (&node.op, &*node.args) else { return None };
    let is_bit = |id: Id| matches!(module.node(id).op, Op::BitToRing { .. }) && users[id.index()].len() == 1;
    let (bit, x) = [(a, b), (b, a)].into_iter().find(|&(bit, x)| is_bit(bit) && bit != x)?;
    let fits = module.ty(x).sharing.is_secret() && !of_server(module, x);
    fits.then_some([bit, x])
}

/// Values that are masked where they are made, and those that are held.
fn wanted(module: &Module, users: &[Vec<Id>]) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let (mut masked, mut held, cached) = (BTreeSet::new(), BTreeSet::new(), cached(module));
    for node in &module.ops {
        if let Some([_, x]) = selection(module, users, node) {
            origins(module, x, &cached, &mut masked);
            continue;
        }
        for (i, &arg) in node.args.iter().enumerate() {
            match want(module, node, i) {
                Some(Want::Masked) => origins(module, arg, &cached, &mut masked),
                Some(Want::Held) => origins(module, arg, &cached, &mut held),
                None => {}
            }
        }
    }
    (masked, held)
}

/// The values that have to be masked so that `id` is.
fn origins(module: &Module, id: Id, cached: &[bool], found: &mut BTreeSet<Id>) {
    let mut left = vec![id];
    while let Some(id) = left.pop() {
        let node = module.node(id);
        match carried(&node.op) {
            Carried::Always => left.extend(secrets(module, node)),
            // Of a cache only what is new is masked, and what is kept is masked whole.
            Carried::WhereMasked if cached[id.index()] => left.extend(secrets(module, node)),
            Carried::WhereMasked | Carried::Never => {
                found.insert(id);
            }
        }
    }
}

/// Values that are moved from a state.
fn cached(module: &Module) -> Vec<bool> {
    let mut cached = vec![false; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        cached[i] = match (&node.op, carried(&node.op)) {
            (Op::State { .. }, _) => true,
            (Op::Add | Op::Sub, _) | (_, Carried::Never) => false,
            _ => secrets(module, node).any(|arg| cached[arg.index()]),
        };
    }
    cached
}

/// Values that are masked by masks of `wanted` alone.
fn covered(module: &Module, wanted: &BTreeSet<Id>) -> Vec<bool> {
    let mut covered = vec![false; module.ops.len()];
    for (i, node) in module.ops.iter().enumerate() {
        covered[i] = wanted.contains(&Id(i as u32)) || is_carried(module, node, &covered);
    }
    covered
}

/// Whether a value is masked by masking its operands, all of which are `covered`.
fn is_carried(module: &Module, node: &Node, covered: &[bool]) -> bool {
    let mut args = secrets(module, node).peekable();
    !matches!(carried(&node.op), Carried::Never) && args.peek().is_some() && args.all(|arg| covered[arg.index()])
}

fn secrets<'a>(module: &'a Module, node: &'a Node) -> impl Iterator<Item = Id> + 'a {
    node.args.iter().copied().filter(|&arg| module.ty(arg).sharing.is_secret())
}

/// Whether the result of an op is masked by masking its operands.
enum Carried {
    /// It is no larger than they are together, and all of it is used.
    Always,
    /// It is smaller: only where they are masked anyway.
    WhereMasked,
    Never,
}

fn carried(op: &Op) -> Carried {
    match op {
        Op::Reshape { .. }
        | Op::Transpose { .. }
        | Op::Expand { .. }
        | Op::Concat { .. }
        | Op::Gather { .. }
        | Op::Unpack { .. }
        | Op::RowExpand { .. }
        | Op::SetScale { .. }
        | Op::Upscale { .. }
        | Op::Neg
        | Op::MulInt { .. }
        | Op::AddInt { .. } => Carried::Always,
        Op::Slice { .. } | Op::Narrow { .. } | Op::Cut { .. } | Op::Pack | Op::Add | Op::Sub => Carried::WhereMasked,
        _ => Carried::Never,
    }
}

struct Pass<'a> {
    old: &'a Module,
    out: Module,
    users: Vec<Vec<Id>>,
    wanted: BTreeSet<Id>,
    covered: Vec<bool>,
    /// The same, or what is held where it is made.
    covered_or_held: Vec<bool>,
    shares: Vec<Option<Id>>,
    masked: Vec<Option<Id>>,
    held: Vec<Option<Id>>,
}

impl Pass<'_> {
    fn node(&mut self, id: Id) -> Result<()> {
        let old = self.old;
        let node = old.node(id);
        let new = match &node.op {
            Op::State { .. } if self.wanted.contains(&id) => {
                let ty = Ty { sharing: Sharing::Masked, ..node.ty.clone() };
                let state = push_like(&mut self.out, &Node { ty, ..node.clone() }, node.op.clone(), &[])?;
                self.masked[id.index()] = Some(state);
                return Ok(());
            }
            Op::SetState { slot } if self.is_masked_state(*slot) => {
                let arg = self.masked(node.args[0])?;
                push_like(&mut self.out, node, node.op.clone(), &[arg])?
            }
            // One cut of a value: what is taken of it as a share is that of the masked one.
            Op::Cut { .. } if is_carried(old, node, &self.covered) => {
                self.masked(id)?;
                return Ok(());
            }
            // A bit as a number is made in what it selects.
            Op::BitToRing { .. } if self.is_selecting(id) => return Ok(()),
            Op::Mul if let Some([bit, x]) = selection(old, &self.users, node) => {
                let args = [self.share(old.node(bit).args[0])?, self.masked(x)?];
                push_like(&mut self.out, node, Op::Select, &args)?
            }
            op if takes_masked(op) && self.covered[node.args[0].index()] => {
                let arg = self.masked(node.args[0])?;
                push_like(&mut self.out, node, node.op.clone(), &[arg])?
            }
            // A sum of products is made where it is taken.
            Op::Mul if self.is_summed(id) => return Ok(()),
            Op::ReduceSum { axis } if self.is_summed(node.args[0]) => self.sum_of_products(node, usize::from(*axis))?,
            _ => {
                let args = (0..node.args.len()).map(|i| match want(old, node, i) {
                    Some(Want::Masked) => self.masked(node.args[i]),
                    Some(Want::Held) => self.held(node.args[i]),
                    None => self.share(node.args[i]),
                });
                let args = args.collect::<Result<Vec<_>>>()?;
                push_like(&mut self.out, node, node.op.clone(), &args)?
            }
        };
        self.shares[id.index()] = Some(new);
        // At once, so that a long chain of movements takes no stack; what nothing takes is left out in the end.
        if self.covered[id.index()] && node.ty.as_ring().is_some() {
            self.masked(id)?;
        }
        Ok(())
    }

    fn is_masked_state(&self, slot: u32) -> bool {
        let reads = |id: &Id| matches!(self.old.node(*id).op, Op::State { slot: read } if read == slot);
        self.wanted.iter().any(reads)
    }

    /// Whether a bit as a number is the one that its only user selects by.
    fn is_selecting(&self, id: Id) -> bool {
        let [user] = self.users[id.index()][..] else { return false };
        let selects = selection(self.old, &self.users, self.old.node(user));
        selects.is_some_and(|[bit, _]| bit == id)
    }

    /// The value as it was, in the new module.
    fn share(&mut self, id: Id) -> Result<Id> {
        if let Some(new) = self.shares[id.index()] {
            return Ok(new);
        }
        let masked = self.masked[id.index()].ok_or_else(|| not_made(id))?;
        let new = push_like(&mut self.out, self.old.node(id), Op::Reshare, &[masked])?;
        self.shares[id.index()] = Some(new);
        Ok(new)
    }

    /// The value under a mask; a public one as it is.
    fn masked(&mut self, id: Id) -> Result<Id> {
        if !self.old.ty(id).sharing.is_secret() {
            return self.share(id);
        }
        if let Some(new) = self.masked[id.index()] {
            return Ok(new);
        }
        let node = self.old.node(id);
        let new = if is_carried(self.old, node, &self.covered) {
            let args = node.args.iter().map(|&arg| self.masked(arg)).collect::<Result<Vec<_>>>()?;
            push_like(&mut self.out, node, node.op.clone(), &args)?
        } else {
            let share = self.share(id)?;
            push_like(&mut self.out, node, Op::Mask, &[share])?
        };
        self.masked[id.index()] = Some(new);
        Ok(new)
    }

    /// The value held by the server: as it is masked, where it is.
    fn held(&mut self, id: Id) -> Result<Id> {
        let (old, mut moves, mut at) = (self.old, Vec::new(), id);
        let mut new = loop {
            if self.covered[at.index()] {
                break self.masked(at)?;
            }
            if let Some(held) = self.held[at.index()] {
                break held;
            }
            let mut args = secrets(old, old.node(at));
            match (carried(&old.node(at).op), args.next(), args.next()) {
                (Carried::Always, Some(arg), None) => moves.push(std::mem::replace(&mut at, arg)),
                (Carried::WhereMasked, Some(arg), None) if self.covered_or_held[arg.index()] => {
                    moves.push(std::mem::replace(&mut at, arg));
                }
                _ => {
                    let share = self.share(at)?;
                    let held = push_like(&mut self.out, old.node(at), Op::Hold, &[share])?;
                    self.held[at.index()] = Some(held);
                    break held;
                }
            }
        };
        for moved in moves.into_iter().rev() {
            let node = old.node(moved);
            let args =
                node.args.iter().map(|&arg| if old.ty(arg).sharing.is_secret() { Ok(new) } else { self.share(arg) });
            let args = args.collect::<Result<Vec<_>>>()?;
            new = push_like(&mut self.out, node, node.op.clone(), &args)?;
            self.held[moved.index()] = Some(new);
        }
        Ok(new)
    }

    /// Whether a value is a product of two secrets of one shape, and all that is asked of it is its sum over the last axis.
    fn is_summed(&self, id: Id) -> bool {
        let node = self.old.node(id);
        let last = node.ty.shape.len().checked_sub(1);
        let summed =
            |user: Id| matches!(self.old.node(user).op, Op::ReduceSum { axis } if Some(usize::from(axis)) == last);
        want(self.old, node, 0) == Some(Want::Masked)
            && selection(self.old, &self.users, node).is_none()
            && matches!(node.op, Op::Mul)
            && node.args.iter().all(|&arg| self.old.ty(arg).shape == node.ty.shape)
            && matches!(self.users[id.index()][..], [user] if summed(user))
    }

    /// `Σ a·b` over the last axis: rows times columns.
    fn sum_of_products(&mut self, node: &Node, axis: usize) -> Result<Id> {
        let product = self.old.node(node.args[0]);
        let bound = (node.ty.bound, BoundFrom::Guarded);
        let mut shape = product.ty.shape.clone();
        shape.insert(axis, Dim::constant(1));
        let rows = |pass: &mut Self, arg: Id| -> Result<Id> {
            let masked = pass.masked(arg)?;
            push(&mut pass.out, Op::Reshape { shape: shape.clone() }, &[masked], None, node.origin.clone())
        };
        let (a, b) = (rows(self, product.args[0])?, rows(self, product.args[1])?);
        let sum = push_within(&mut self.out, Op::MatMul { trans_b: true }, &[a, b], bound, node.origin.clone())?;
        push_like(&mut self.out, node, Op::Reshape { shape: node.ty.shape.clone() }, &[sum])
    }
}

fn not_made(id: Id) -> Diagnostic {
    Diagnostic::internal("E0519", format!("%{} is used before it is made", id.0))
}
