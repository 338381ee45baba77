//! Secrecy flow: a secret leaves the program only through `reveal` of a declared output to the client.
//!
//! What a value depends on is computed here from the ops alone, not from declared types: a type that claims less
//! secrecy than the value's origin is an error of its own. Operands of masks, indices and encodings are refused by the
//! type rules, with codes of this group.

use super::{Report, nodes};
use crate::diag::Diagnostic;
use crate::dim::Dim;
use crate::module::{Id, InputSlot, OutputKind, Party};
use crate::op::Op;
use crate::plain::DType;
use crate::ty::Sharing;

/// Ring bits of a drawn token at most, which is what a row may tell.
const DRAWN_BITS: u8 = 32;

/// Who may know a value, judged by what it is computed from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Everybody.
    Public,
    /// The client.
    Client,
    /// Nobody.
    Secret,
}

pub(super) fn check(report: &mut Report) {
    let module = report.module;
    let mut sources: Vec<Source> = Vec::with_capacity(module.ops.len());
    let mut tokens: Vec<bool> = Vec::with_capacity(module.ops.len());
    let mut drawn: Vec<bool> = Vec::with_capacity(module.ops.len());
    let mut bits: Vec<bool> = Vec::with_capacity(module.ops.len());
    let mut revealed = vec![false; module.outputs.len()];
    for (id, node) in nodes(module) {
        if report.is_full() {
            return;
        }
        let first = node.args.first().and_then(|a| tokens.get(a.index())).copied().unwrap_or(false);
        // Some of the elements of an `arg_max`, perhaps in another shape.
        tokens.push(match node.op {
            Op::ArgMax { .. } => true,
            Op::Reshape { .. } | Op::Slice { .. } | Op::Transpose { .. } => first,
            _ => false,
        });
        let is_drawn = |a: &Id| drawn.get(a.index()).copied().unwrap_or(false);
        drawn.push(matches!(node.op, Op::Random { .. }) || node.args.iter().any(is_drawn));
        let bit = node.args.first().and_then(|a| bits.get(a.index())).copied().unwrap_or(false);
        // One bit alone, as a number.
        bits.push(matches!(node.op, Op::BitToRing { .. }) && node.ty.shape.iter().all(|d| d.is(1)));
        let of = |a: &Id| sources.get(a.index()).copied().unwrap_or(Source::Secret);
        let joined = node.args.iter().map(of).max().unwrap_or(Source::Public);
        let source = match node.op {
            Op::Weight { .. } | Op::Input { .. } | Op::State { .. } | Op::Random { .. } => Source::Secret,
            Op::ClientInts { .. } => Source::Client,
            Op::Embed => Source::Secret,
            _ => joined,
        };
        sources.push(source);
        let allowed = match source {
            Source::Public => true,
            Source::Client => node.ty.sharing == Sharing::Client,
            Source::Secret => node.ty.sharing.is_secret(),
        };
        if !allowed {
            let found = node.ty.sharing.name();
            let d = Diagnostic::input("E0332", format!("a value that depends on a secret is declared {found}"));
            report.at(id, None, d.note("expected a secret form; only `reveal` of a declared output shows a value"));
        }
        if let Op::Reveal { slot } = node.op {
            let small = node.ty.as_ring().is_some_and(|(bits, scale)| bits <= DRAWN_BITS && scale == 0);
            let is_token = first || small && drawn.last().copied().unwrap_or(false);
            reveal(report, id, slot, (is_token, bit), &mut revealed);
        }
    }
}

/// Checks that the next token is one index a row. More of them would compare elements of a row with one another, and so
/// tell the row.
fn indices(report: &mut Report, id: Id, name: &str) {
    let module = report.module;
    let tokens = module.outputs.iter().filter(|output| output.kind == OutputKind::NextToken).count();
    if tokens > 1 {
        let d = Diagnostic::input("E0344", format!("the output \"{name}\" is one of {tokens} next tokens"));
        report.at(id, None, d.note("expected one next token at most"));
    }
    let most = |shape: &[Dim]| {
        shape.iter().fold(1i128, |n, dim| n.saturating_mul(module.dims.upper(dim).unwrap_or(i128::MAX)))
    };
    let rows = |slot: &InputSlot| match (slot.dtype, slot.shape.split_last()) {
        (DType::F32, Some((_, rows))) => most(rows),
        _ => most(&slot.shape),
    };
    let rows = module.inputs.iter().map(rows).max().unwrap_or(0);
    let found = module.ops.get(id.index()).map_or(0, |node| most(&node.ty.shape));
    if found > rows {
        let d = Diagnostic::input("E0344", format!("the next token \"{name}\" may have {found} indices"));
        report.at(id, None, d.note(format!("expected at most {rows}, the rows that the client gives in a step")));
    }
}

fn reveal(report: &mut Report, id: Id, slot: u32, (is_token, is_bit): (bool, bool), revealed: &mut [bool]) {
    let module = report.module;
    let index = usize::try_from(slot).unwrap_or(usize::MAX);
    let (Some(output), Some(done)) = (module.outputs.get(index), revealed.get_mut(index)) else { return };
    let name = output.name.escape_debug();
    if output.to != Party::Client {
        let d = Diagnostic::input("E0333", format!("the output \"{name}\" goes to the {}", output.to.name()));
        report.at(id, None, d.note("expected the client: nobody else learns a result"));
    }
    if *done {
        report.at(id, None, Diagnostic::input("E0334", format!("the output \"{name}\" is revealed again")));
    }
    *done = true;
    if output.kind == OutputKind::NextToken && !is_token {
        let d = Diagnostic::input("E0335", format!("the next token \"{name}\" is neither from arg_max nor drawn"));
        report.at(
            id,
            None,
            d.note("expected the result of arg_max, or its elements in another shape").note(format!(
                "or an integer that `random` has a part in, of scale 0 in a ring of {DRAWN_BITS} bits at most"
            )),
        );
    }
    if output.kind == OutputKind::NextToken && is_token {
        indices(report, id, &name.to_string());
    }
    if output.kind == OutputKind::Guard && !is_bit {
        let d = Diagnostic::input("E0342", format!("the guard \"{name}\" is not one bit"));
        report.at(id, None, d.note("expected the result of bit_to_ring, of one element"));
    }
}
