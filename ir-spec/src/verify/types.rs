//! Types, shapes, scales and bounds: every op is typed again.

use super::{Report, nodes};
use crate::diag::Diagnostic;
use crate::infer::{Operand, TypeCx, check_bound, infer};
use crate::module::{Id, Module, Node};
use crate::op::Op;
use crate::ty::Ty;

pub(super) fn check(report: &mut Report) {
    let module = report.module;
    let cx = TypeCx::of(module);
    for (id, node) in nodes(module) {
        if report.is_full() {
            return;
        }
        let operands: Vec<_> = node.args.iter().filter_map(|a| Operand::of(module, *a)).collect();
        match infer(&node.op, &operands, Some(&node.ty), &cx) {
            Err(violation) => report.violation(id, &violation),
            Ok(ty) => result(report, id, node, ty),
        }
    }
    states(report, module);
}

/// Compares the declared type of a result with the one that follows.
fn result(report: &mut Report, id: Id, node: &Node, ty: Ty) {
    let dims = &report.module.dims;
    if node.ty.elem != ty.elem || node.ty.sharing != ty.sharing || node.ty.shape != ty.shape {
        let (expected, found) = (ty.show(dims), node.ty.show(dims));
        report.at(
            id,
            None,
            Diagnostic::input("E0314", format!("the type {found} is declared")).note(format!("expected {expected}")),
        );
        return;
    }
    if let Err(d) = check_bound(&node.op, &ty, &node.ty, &TypeCx::of(report.module)) {
        report.at(id, None, d);
    }
}

/// A state slot is read with one element type and bound, and set to values that have them.
fn states(report: &mut Report, module: &Module) {
    let mut read: Vec<Option<&Ty>> = vec![None; module.states.len()];
    for (id, node) in nodes(module) {
        let Op::State { slot } = node.op else { continue };
        let Some(first) = usize::try_from(slot).ok().and_then(|s| read.get_mut(s)) else { continue };
        match first {
            Some(ty) if ty.elem != node.ty.elem || ty.sharing != node.ty.sharing || ty.bound != node.ty.bound => {
                let d = Diagnostic::input("E0324", format!("the state slot {slot} is read with two types"));
                report.at(id, None, d);
            }
            _ => *first = Some(&node.ty),
        }
    }
    for (id, node) in nodes(module) {
        let Op::SetState { slot } = node.op else { continue };
        let Some(state) = usize::try_from(slot).ok().and_then(|s| module.states.get(s)) else { continue };
        let differing = state.shape.iter().zip(&node.ty.shape).filter(|(a, b)| a != b).count();
        let before = usize::try_from(slot).ok().and_then(|s| read.get(s)).copied().flatten();
        let fits = before
            .is_none_or(|ty| ty.elem == node.ty.elem && ty.sharing == node.ty.sharing && node.ty.bound <= ty.bound);
        if !fits || state.shape.len() != node.ty.shape.len() || differing > 1 {
            let found = node.ty.show(&module.dims);
            let d = Diagnostic::input("E0324", format!("the state slot {slot} is set to {found}"));
            let d = d.note(
                "expected the ring, scale, form and rank that it is read with, a bound not above that, and other",
            );
            report.at(id, None, d.note("sizes on one axis at most"));
        }
    }
}
