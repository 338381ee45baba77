//! Legality for the setting and the stage, and the schedule's rotations.

use super::{Report, nodes};
use crate::diag::Diagnostic;
use crate::module::{Id, Module, Node, Stage};
use crate::op::{Class, Op};

pub(super) fn check(report: &mut Report) {
    let module = report.module;
    let mut revealed = vec![false; module.outputs.len()];
    let mut set = vec![false; module.states.len()];
    for (id, node) in nodes(module) {
        if report.is_full() {
            return;
        }
        if node.op.class() == Class::Composite && module.stage != Stage::Lowered {
            let name = node.op.name();
            let d = Diagnostic::input("E0350", format!("the composite op {name} in the stage {}", module.stage.name()));
            report.at(id, None, d.note("expected core ops alone after expansion"));
        }
        match node.op {
            Op::Reveal { slot } => {
                mark(&mut revealed, slot);
            }
            Op::SetState { slot } if mark(&mut set, slot) => {
                report.at(id, None, Diagnostic::input("E0341", format!("the state slot {slot} is set again")));
            }
            _ => {}
        }
        rotation(report, module, id, node);
    }
    for (output, done) in module.outputs.iter().zip(revealed) {
        if !done {
            let name = output.name.escape_debug();
            report.declared(Diagnostic::input("E0340", format!("the output \"{name}\" is never revealed")));
        }
    }
}

/// Marks a slot; whether it was marked already.
fn mark(slots: &mut [bool], slot: u32) -> bool {
    let slot = usize::try_from(slot).ok().and_then(|s| slots.get_mut(s));
    slot.is_some_and(|done| std::mem::replace(done, true))
}

fn rotation(report: &mut Report, module: &Module, id: Id, node: &Node) {
    let rot = node.rot;
    let rotations = module.setting.protocol().rotations;
    if rot >= rotations || (rot != 0 && module.stage != Stage::Scheduled) {
        let d = Diagnostic::input("E0351", format!("the rotation {rot} in the stage {}", module.stage.name()));
        report.at(id, None, d.note(format!("expected 0 to {} in a scheduled module, 0 before", rotations - 1)));
        return;
    }
    let by_name = matches!(node.op, Op::Input { .. } | Op::ClientInts { .. } | Op::Embed | Op::Reveal { .. });
    if by_name && rot != 0 {
        let d = Diagnostic::input("E0353", format!("{} with rotation {rot}", node.op.name()));
        report.at(id, None, d.note("expected 0: the client is logical party 0 of it"));
    }
    for arg in &node.args {
        let Some(made) = module.ops.get(arg.index()) else { continue };
        if made.ty.sharing.is_sum() && made.rot != rot {
            let d = Diagnostic::input("E0352", format!("the sum %{} has rotation {}", arg.0, made.rot));
            report.at(id, None, d.note(format!("expected {rot}, the rotation of the op that takes it")));
        }
    }
}
