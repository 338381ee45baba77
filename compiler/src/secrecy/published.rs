//! What ends in the plan in the clear, weights, or decides its course, inputs: allowed for public ones only.

use crate::graph::eval::Weights;
use crate::graph::{Graph, InputRole, Node, Op, Owner, TensorOp};
use crate::import::Published;
use crate::import::ops::attention::ROTARY;
use crate::onnx::ABSENT;
use crate::pipeline::Errors;
use crate::secrecy::labels::{self, Labels};
use ombra_ir::plain::DType;
use ombra_ir::{Diagnostic, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The use of a weight that only says by 0 and huge negative numbers which positions count.
pub const MASK: &str = "a mask";

/// Most heads of a table of biases.
const MOST_HEADS: usize = 1 << 10;

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

/// Names of the weights that hold attention with linear biases (ALiBi): for every head the distance to one end, times the
/// slope that the method gives the head. They follow from the number of heads and of positions alone.
pub fn linear_biases(graph: &Graph, weights: &Weights) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for (id, node) in graph.iter() {
        let Op::Weight { name, .. } = &node.op else { continue };
        let sizes: Option<Vec<i64>> = graph.shape(id).iter().map(|dim| dim.as_constant()).collect();
        let sizes: Vec<i64> = sizes.unwrap_or_default().into_iter().filter(|size| *size != 1).collect();
        let [heads, positions] = *sizes.as_slice() else { continue };
        let (Ok(heads), Ok(positions)) = (usize::try_from(heads), usize::try_from(positions)) else { continue };
        // No matrix of a layer has the axis of one that a row of biases needs before or between.
        if node.shape.len() < 3 || heads > MOST_HEADS || positions < heads {
            continue;
        }
        match weights(name) {
            Ok(elements) if is_linear_bias(elements.as_f32()?, heads, positions) => drop(found.insert(name.clone())),
            // What was not read is no table that is known.
            Err(e) if e.code != ABSENT => return Err(e),
            _ => {}
        }
    }
    Ok(found)
}

/// Whether rows of `positions` elements are those of ALiBi for `heads` heads.
fn is_linear_bias(elements: &[f32], heads: usize, positions: usize) -> bool {
    // Slopes of the next power of two: every second one first.
    let all = heads.next_power_of_two();
    let slope = |i: usize| (-8.0 * (i + 1) as f64 / all as f64).exp2();
    let slopes: Vec<f64> = match all == heads {
        true => (0..all).map(slope).collect(),
        false => (1..all).step_by(2).chain((0..all).step_by(2)).map(slope).collect(),
    };
    let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 1e-5 * expected.abs();
    let mut rows = elements.chunks_exact(positions.max(1)).zip(&slopes);
    elements.len() == heads * positions
        && rows.all(|(row, slope)| {
            let is_row = |end: usize| {
                let distance = |i: usize| i.abs_diff(end) as f64 * slope;
                row.iter().enumerate().all(|(i, x)| near(*x, -distance(i)))
                    || row.iter().enumerate().all(|(i, x)| near(*x, distance(i)))
            };
            is_row(0) || is_row(positions - 1)
        })
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

/// Refuses inputs of the client's that decide what happens under MPC, such as masks: the program's course is public.
/// Integers that look up rows are no such thing.
///
/// # Errors
/// `E0259` for every such input.
pub fn check_inputs(graph: &Graph) -> std::result::Result<(), Errors> {
    let mut names = BTreeSet::new();
    for (id, node) in graph.iter().filter(|(_, node)| node.owner == Owner::Secret) {
        for (slot, operand) in graph.operands(id).into_iter().enumerate() {
            let found = graph.node(operand).map_err(|d| vec![d])?;
            let looks_up = slot == 1 && matches!(node.op, Op::Tensor(TensorOp::Gather { .. }));
            if found.dtype == DType::F32 || found.owner != Owner::Client || looks_up {
                continue;
            }
            for a in graph.ancestors(operand) {
                if let Some(Op::Input { name, role: InputRole::Other }) = graph.op(a) {
                    names.insert(name.clone());
                }
            }
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let error = |name: String| {
        let message = format!("input `{name}` is the client's, but decides what happens under MPC");
        Diagnostic::unsupported("E0259", message)
            .note("expected a mask or positions whose contents server and helper may learn")
            .note(format!("if they may learn them, say so with --public-input {name}"))
    };
    Err(names.into_iter().map(error).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_biases_are_known_by_their_slopes() {
        let rows = |slopes: &[f32], change: f32| -> Vec<f32> {
            let row = |slope: &f32| (0..9).map(|j| -slope * (8 - j) as f32 * change).collect::<Vec<f32>>();
            slopes.iter().flat_map(row).collect()
        };
        let four = [0.25, 0.0625, 0.015625, 0.00390625];
        assert!(is_linear_bias(&rows(&four, 1.0), 4, 9));
        let three = [0.0625, 0.00390625, 0.25];
        assert!(is_linear_bias(&rows(&three, 1.0), 3, 9));
        // A learnt table is a weight.
        assert!(!is_linear_bias(&rows(&four, 1.1), 4, 9));
        assert!(!is_linear_bias(&rows(&[0.25, 0.0625, 0.015625, 0.004], 1.0), 4, 9));
        assert!(!is_linear_bias(&[0.0; 36], 4, 9));
    }
}
