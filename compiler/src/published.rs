//! Weights that end in the plan in the clear: allowed for public ones only.

use crate::graph::{Graph, Node, Op};
use crate::import::Published;
use crate::import::ops::attention::ROTARY;
use crate::labels::{self, Labels};
use crate::pipeline::Errors;
use ombra_ir::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};

/// The use of a weight that only says by 0 and huge negative numbers which positions count.
pub const MASK: &str = "a mask";

/// Names of the weights that `graph` uses.
pub fn weights_of(graph: &Graph) -> BTreeSet<String> {
    let name = |node: &Node| match &node.op {
        Op::Weight { name, .. } => Some(name.clone()),
        _ => None,
    };
    graph.iter().filter_map(|(_, node)| name(node)).collect()
}

/// Names of published tensors that are no weights by their use: angles and masks, as long as `weights`, what the graph
/// uses otherwise, has none of them.
pub fn structure(published: &BTreeSet<Published>, weights: &BTreeSet<String>) -> BTreeSet<String> {
    let is_structure = |p: &Published| !p.integer && matches!(p.op, "cos" | "sin" | MASK | ROTARY);
    let other: BTreeSet<&str> = published.iter().filter(|p| !is_structure(p)).map(|p| p.tensor.as_str()).collect();
    let names = published.iter().map(|p| &p.tensor);
    names.filter(|n| !other.contains(n.as_str()) && !weights.contains(*n)).cloned().collect()
}

/// Refuses a model whose private tensors would stand in the plan in the clear: one error a tensor.
pub fn check_published(published: &BTreeSet<Published>, labels: &Labels) -> std::result::Result<(), Errors> {
    let mut errors: BTreeMap<&str, Diagnostic> = BTreeMap::new();
    for p in published {
        let why = match labels.get(&p.tensor) {
            Some(label) if label.owner == labels::Owner::Public => continue,
            Some(label) => label.why.as_str(),
            None => "it has no label",
        };
        let error = if p.integer {
            Diagnostic::unsupported("E0257", format!("`{}`: integer weights are not supported yet", p.tensor))
                .note(format!("{} makes floating-point numbers from it", p.op))
                .note("export with floating-point weights")
        } else {
            let message = format!("private tensor `{}` would be published: it is used by {}", p.tensor, p.op);
            Diagnostic::unsupported("E0256", message)
                .note("expected operators that run under MPC on private tensors, such as products and sums")
        };
        let error = error.at(p.node.clone()).note(format!("it is private: {why}"));
        let named = labels.get(&p.tensor).is_some_and(|label| label.reason == labels::Reason::Name);
        let help = match named {
            true => "if everybody may know it, let no --private name it",
            false => "if everybody may know it, name it with --public",
        };
        errors.entry(&p.tensor).or_insert(error.note(help));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.into_values().collect()) }
}
