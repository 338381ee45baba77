//! Ids and definitions: whatever later checks index or add up is in range.

use std::collections::BTreeSet;

use super::{MAX_ELEMENTS, MAX_NAME, MAX_OPERANDS, MAX_OPS, MAX_RANK, MAX_SLOTS, Report, nodes, public};
use crate::diag::Diagnostic;
use crate::dim::{Dim, Dims, MAX_DEGREE, MAX_SYMBOLS, MAX_TERMS, Sym};
use crate::infer::{Violation, has_result, public_type};
use crate::module::{Id, Module, Node};
use crate::op::Op;
use crate::plain::DType;

pub(super) fn check(report: &mut Report) {
    let module = report.module;
    limits(report, module);
    if !report.found.is_empty() {
        return;
    }
    if let Err(d) = symbols(&module.dims) {
        report.declared(d);
    }
    if let Err(d) = public::check(module) {
        report.declared(d);
    }
    if !report.found.is_empty() {
        return;
    }
    slots(report, module);
    counts(report, module);
    for (id, node) in nodes(module) {
        if report.is_full() {
            return;
        }
        operands(report, module, id, node);
        if let Err(d) = shape(&module.dims, &node.ty.shape) {
            report.at(id, None, d);
        }
        if let Some(sizes) = attribute_shape(&node.op)
            && let Err(d) = shape(&module.dims, sizes)
        {
            report.at(id, None, d);
        }
        if let Op::Slice { start, len, .. } = &node.op
            && let Err(d) = size(&module.dims, start).and_then(|_| size(&module.dims, len))
        {
            report.at(id, None, d);
        }
        let named = match &node.op {
            Op::Weight { name } | Op::PublicWeight { name } => name.as_str(),
            _ => "",
        };
        if [named, &node.origin.node, &node.origin.kind].iter().any(|s| s.len() > MAX_NAME) {
            report.at(id, None, limit("the length of a name", MAX_NAME));
        }
    }
}

pub(super) fn limit(what: &str, most: usize) -> Diagnostic {
    Diagnostic::input("E0301", format!("{what} is beyond the limit")).note(format!("expected at most {most}"))
}

fn limits(report: &mut Report, module: &Module) {
    let names = module.inputs.iter().map(|s| &s.name).chain(module.outputs.iter().map(|s| &s.name));
    let names = names.chain(module.states.iter().flat_map(|s| [&s.input, &s.output])).chain([&module.name]);
    let slots = [module.inputs.len(), module.states.len(), module.outputs.len(), module.counts.len()];
    let checks = [
        ("the number of ops", module.ops.len(), MAX_OPS),
        ("the number of slots or counts", slots.into_iter().max().unwrap_or(0), MAX_SLOTS),
        ("the number of symbols", module.dims.syms.len(), MAX_SYMBOLS),
        ("the length of a name", names.map(String::len).max().unwrap_or(0), MAX_NAME),
    ];
    for (what, found, most) in checks {
        if found > most {
            report.declared(limit(what, most).note(format!("found {found}")));
        }
    }
}

fn symbols(dims: &Dims) -> Result<(), Diagnostic> {
    let mut fresh = Dims::default();
    for info in &dims.syms {
        let before = fresh.syms.len();
        fresh.symbol(&info.name).map_err(|d| Diagnostic::input("E0305", d.message))?;
        let wrong = |what: &str| Diagnostic::input("E0305", format!("the size `{}` {what}", info.name));
        if fresh.syms.len() == before {
            return Err(wrong("is declared twice"));
        }
        let max = info.max.ok_or_else(|| wrong("has no maximum").note("give every symbolic size a maximum"))?;
        if info.min > max {
            return Err(wrong("has a minimum above its maximum"));
        }
    }
    Ok(())
}

/// Checks that a size is a polynomial over declared symbols whose values are from 0 to the limit. Returns its maximum.
fn size(dims: &Dims, dim: &Dim) -> Result<i128, Diagnostic> {
    let terms = dim.terms();
    let known = |s: &Sym| dims.info(*s).is_some();
    let in_limits = terms.len() <= MAX_TERMS && terms.iter().all(|t| t.symbols.len() <= MAX_DEGREE);
    if !in_limits || !terms.iter().flat_map(|t| &t.symbols).all(known) {
        return Err(Diagnostic::input("E0305", format!("the size {} uses undeclared symbols", dims.show(dim))));
    }
    match (dims.lower(dim), dims.upper(dim)) {
        (Some(low), Some(high)) if low >= 0 && high <= MAX_ELEMENTS => Ok(high),
        (low, high) => {
            let show = |n: Option<i128>| n.map_or("unlimited".into(), |n| n.to_string());
            Err(Diagnostic::input("E0305", format!("the size {} is out of range", dims.show(dim))).note(format!(
                "expected 0 to {MAX_ELEMENTS}, found {} to {}",
                show(low),
                show(high)
            )))
        }
    }
}

/// Checks rank, sizes and number of elements.
fn shape(dims: &Dims, shape: &[Dim]) -> Result<(), Diagnostic> {
    if shape.len() > MAX_RANK {
        return Err(limit("the number of axes", MAX_RANK).note(format!("found {}", shape.len())));
    }
    let mut elements = 1i128;
    for dim in shape {
        elements = elements.saturating_mul(size(dims, dim)?.max(1));
    }
    if elements > MAX_ELEMENTS {
        return Err(Diagnostic::input("E0305", format!("a tensor of shape {} is too large", dims.show_shape(shape)))
            .note(format!("expected at most {MAX_ELEMENTS} elements")));
    }
    Ok(())
}

fn attribute_shape(op: &Op) -> Option<&[Dim]> {
    match op {
        Op::Reshape { shape }
        | Op::Expand { shape }
        | Op::Random { shape }
        | Op::Unpack { shape }
        | Op::RowSum { shape }
        | Op::RowExpand { shape }
        | Op::RowMax { shape, .. } => Some(shape),
        _ => None,
    }
}

fn slots(report: &mut Report, module: &Module) {
    let dims = &module.dims;
    let groups: [(&str, Vec<&String>); 5] = [
        ("input", module.inputs.iter().map(|s| &s.name).collect()),
        ("state input", module.states.iter().map(|s| &s.input).collect()),
        ("public input", module.public.inputs.iter().map(|s| &s.name).collect()),
        ("state output", module.states.iter().map(|s| &s.output).collect()),
        ("output", module.outputs.iter().map(|s| &s.name).collect()),
    ];
    for (what, names) in &groups {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(*name) {
                let name = name.escape_debug();
                report.declared(Diagnostic::input("E0307", format!("the {what} \"{name}\" is declared twice")));
            }
        }
    }
    // Whoever gives a value by its name has to know who will see it.
    let mut owned: BTreeSet<&String> = BTreeSet::new();
    for names in [&groups[0].1, &groups[1].1, &groups[2].1] {
        for name in names.iter().copied().collect::<BTreeSet<_>>() {
            if !owned.insert(name) {
                let name = name.escape_debug();
                let d =
                    Diagnostic::input("E0343", format!("the name \"{name}\" stands for more than one kind of input"));
                report.declared(d.note("expected an input of the client, a state, or an input of the public program"));
            }
        }
    }
    for input in &module.inputs {
        if let Err(d) = shape(dims, &input.shape) {
            report.declared(d);
        }
    }
    for state in &module.states {
        if let Err(d) = shape(dims, &state.shape) {
            report.declared(d);
        }
    }
}

fn counts(report: &mut Report, module: &Module) {
    let mut defined = BTreeSet::new();
    for count in &module.counts {
        let name = module.dims.info(count.sym).map_or("?", |i| i.name.as_str());
        let wrong = |what: &str| Diagnostic::input("E0306", format!("the count `{name}` {what}"));
        if module.dims.info(count.sym).is_none() || !defined.insert(count.sym) {
            report.declared(wrong("has no symbol of its own"));
        }
        if let Err(d) = shape(&module.dims, &count.shape) {
            report.declared(d);
        }
        let mask = public_type(&module.public, count.mask);
        let fits = mask.as_ref().is_some_and(|m| {
            let lead = count.shape.len().checked_sub(m.shape.len());
            let sizes = lead.and_then(|lead| count.shape.get(lead..));
            let same = |sizes: &[Dim]| m.shape.iter().zip(sizes).all(|(a, b)| a.is(1) || a == b);
            m.dtype == DType::Bool && sizes.is_some_and(same)
        });
        if !fits || count.shape.is_empty() {
            report.declared(wrong("has no mask of booleans that broadcasts to its shape"));
        }
    }
}

fn operands(report: &mut Report, module: &Module, id: Id, node: &Node) {
    if node.args.len() > MAX_OPERANDS {
        report.at(id, None, limit("the number of operands", MAX_OPERANDS));
        return;
    }
    if node.op.arity().map_or(node.args.is_empty(), |n| n != node.args.len()) {
        let found = format!("{} operands of {}", node.args.len(), node.op.name());
        report.violation(id, &Violation::of_all("arity", found));
    }
    for arg in &node.args {
        let made = module.ops.get(arg.index()).is_some_and(|n| has_result(&n.op));
        if *arg >= id || !made {
            report.at(id, None, Diagnostic::input("E0302", format!("the operand %{} is no earlier result", arg.0)));
        }
    }
    let (slot, declared) = match node.op {
        Op::Public { value } => (value, module.public.outputs.len()),
        Op::Input { slot } | Op::ClientInts { slot } => (slot, module.inputs.len()),
        Op::State { slot } | Op::SetState { slot } => (slot, module.states.len()),
        Op::Reveal { slot } => (slot, module.outputs.len()),
        _ => return,
    };
    if usize::try_from(slot).map_or(true, |s| s >= declared) {
        // The first constraint of every op with a slot is that it is declared.
        report.violation(id, &Violation::of_op(node.op.description(), 1, format!("number {slot} of {declared}")));
    }
}
