//! The public program: its sizes use symbols that are known before it runs, and its types follow.

use std::collections::BTreeSet;

use super::ids::limit;
use super::{MAX_OPERANDS, MAX_OPS, MAX_SLOTS};
use crate::diag::{Diagnostic, Result};
use crate::dim::Dim;
use crate::module::Module;
use crate::plain::Op;

pub(super) fn check(module: &Module) -> Result<()> {
    let program = &module.public;
    let operands = program.nodes.iter().map(|n| n.inputs.len()).max().unwrap_or(0);
    let checks = [
        ("the number of ops of the public program", program.nodes.len(), MAX_OPS),
        ("the number of inputs or outputs of the public program", program.inputs.len(), MAX_SLOTS),
        ("the number of inputs or outputs of the public program", program.outputs.len(), MAX_SLOTS),
        ("the number of operands", operands, MAX_OPERANDS),
    ];
    for (what, found, most) in checks {
        if found > most {
            return Err(limit(what, most).note(format!("found {found}")));
        }
    }
    // Counts are known after the program has run.
    let counted: BTreeSet<_> = module.counts.iter().map(|c| c.sym).collect();
    let known = |dim: &Dim| {
        let mut symbols = dim.terms().iter().flat_map(|t| &t.symbols);
        symbols.all(|s| module.dims.info(*s).is_some() && !counted.contains(s))
    };
    let shapes = program.inputs.iter().map(|i| &i.shape).chain(program.nodes.iter().map(|n| &n.shape));
    let attributes = program.nodes.iter().flat_map(|n| sizes(&n.op));
    if !shapes.flatten().chain(attributes).all(known) {
        return Err(Diagnostic::input("E0308", "the public program uses undeclared symbols or those of counts"));
    }
    program.check().map_err(|d| Diagnostic::input("E0308", format!("the public program is ill-formed: {}", d.message)))
}

/// The sizes among an operator's attributes.
fn sizes(op: &Op) -> Vec<&Dim> {
    match op {
        Op::Sizes { values: list, .. }
        | Op::Reshape { shape: list }
        | Op::Expand { shape: list }
        | Op::Tile { repeats: list }
        | Op::ConstantOfShape { shape: list, .. } => list.iter().collect(),
        Op::Iota { start, len, .. } | Op::Slice { start, len, .. } => vec![start, len],
        Op::Constant(_)
        | Op::Range
        | Op::Identity
        | Op::Cast { .. }
        | Op::Transpose { .. }
        | Op::Concat { .. }
        | Op::Trilu { .. }
        | Op::Gather { .. }
        | Op::GatherNd { .. }
        | Op::GatherElements { .. }
        | Op::ScatterNd
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Where
        | Op::Clip
        | Op::MatMul
        | Op::CumSum { .. }
        | Op::Reduce { .. }
        | Op::ArgMax => Vec::new(),
    }
}
