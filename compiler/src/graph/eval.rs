//! The meaning of a typed graph: single-precision evaluation in the clear, one value after another.
//!
//! It is the reference for rewriting and for the self-test, and measures ranges where no norm bounds them. Threads share
//! the elements of large values; every result is the same for any number of them.

use std::collections::{BTreeMap, BTreeSet};

use ombra_ir::plain::{self, DEFAULT_LIMIT, Tensor};
use ombra_ir::{Bindings, Diagnostic, Dim, Result};
use rayon::prelude::*;

use super::{Graph, Op, TensorOp, ValueId};

/// Gives the tensor of an initializer by its name, as it stands in the file.
pub type Weights<'a> = dyn Fn(&str) -> Result<Tensor> + 'a;

/// The values of all symbols that the shapes of `inputs` determine.
///
/// Errors: an input that is missing or of another type, two inputs that disagree on a size.
pub fn bind_inputs(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> Result<Bindings> {
    let mut bindings = Bindings::new();
    let mut declared = Vec::new();
    for id in &graph.inputs {
        let node = graph.node(*id)?;
        let Op::Input { name, .. } = &node.op else { continue };
        let Some(tensor) = inputs.get(name) else {
            if graph.users(*id).is_empty() {
                continue;
            }
            return Err(Diagnostic::input("E0214", format!("input `{name}` is missing")));
        };
        let expected = || format!("expected {}{}", node.dtype.name(), graph.dims.show_shape(&node.shape));
        let found = || format!("found {}{:?}", tensor.dtype().name(), tensor.shape());
        let wrong = || {
            Diagnostic::input("E0214", format!("input `{name}` has the wrong type or shape"))
                .note(expected())
                .note(found())
        };
        if tensor.dtype() != node.dtype || tensor.rank() != node.shape.len() {
            return Err(wrong());
        }
        for (dim, size) in node.shape.iter().zip(tensor.shape()) {
            let size = *size as u64;
            if let Some(sym) = dim.as_symbol() {
                match bindings.get(sym) {
                    Some(known) if known != size => return Err(wrong().note(format!("another input says {known}"))),
                    _ => bindings.set(sym, size),
                }
            }
            declared.push((dim, size, wrong()));
        }
    }
    for (dim, size, error) in declared {
        if dim.eval(&bindings)? != size {
            return Err(error.note(format!("`{}` is {}", graph.dims.show(dim), dim.eval(&bindings)?)));
        }
    }
    Ok(bindings)
}

/// The outputs, in order, for inputs by name.
///
/// Errors: those of [`bind_inputs`], of `weights`, and of the operators on values the model cannot take.
pub fn evaluate(graph: &Graph, weights: &Weights, inputs: &BTreeMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let mut outputs = vec![None; graph.outputs.len()];
    visit(graph, weights, inputs, &mut |id, tensor| {
        for (slot, output) in outputs.iter_mut().zip(&graph.outputs) {
            if output.value == id {
                *slot = Some(tensor.clone());
            }
        }
    })?;
    let missing = || Diagnostic::internal("E0299", "an output was not computed");
    outputs.into_iter().map(|o| o.ok_or_else(missing)).collect()
}

/// Evaluates every value, operands first, and shows it to `see`. A value is kept as long as it has users to come, and what
/// depends on weights alone is evaluated right before its first user.
pub fn visit(
    graph: &Graph,
    weights: &Weights,
    inputs: &BTreeMap<String, Tensor>,
    see: &mut dyn FnMut(ValueId, &Tensor),
) -> Result<()> {
    visit_each(graph, weights, &[inputs], &mut |_, id, tensor| see(id, tensor))
}

/// As [`visit`], for several inputs side by side: what depends on weights alone is evaluated once. `see` is told whose the
/// value is.
///
/// # Errors
/// Those of [`visit`].
pub fn visit_each(
    graph: &Graph,
    weights: &Weights,
    rows: &[&BTreeMap<String, Tensor>],
    see: &mut dyn FnMut(usize, ValueId, &Tensor),
) -> Result<()> {
    visit_in(graph, late_weights(graph), weights, rows, see)
}

/// As [`visit`], for `wanted` and what they are computed from alone.
///
/// # Errors
/// Those of [`visit`].
pub fn visit_needed(
    graph: &Graph,
    wanted: &[ValueId],
    weights: &Weights,
    inputs: &BTreeMap<String, Tensor>,
    see: &mut dyn FnMut(ValueId, &Tensor),
) -> Result<()> {
    visit_rows(graph, wanted, weights, &[inputs], &mut |_, id, tensor| see(id, tensor))
}

/// As [`visit_each`], for `wanted` and what they are computed from alone.
///
/// # Errors
/// Those of [`visit`].
pub fn visit_rows(
    graph: &Graph,
    wanted: &[ValueId],
    weights: &Weights,
    rows: &[&BTreeMap<String, Tensor>],
    see: &mut dyn FnMut(usize, ValueId, &Tensor),
) -> Result<()> {
    let mut needed: BTreeSet<ValueId> = wanted.iter().copied().collect();
    for id in wanted {
        needed.extend(graph.ancestors(*id));
    }
    let order = late_weights(graph).into_iter().filter(|id| needed.contains(id)).collect();
    visit_in(graph, order, weights, rows, see)
}

/// Evaluates the values in `order`, which holds the operands of each before it, for every one of `rows`.
fn visit_in(
    graph: &Graph,
    order: Vec<ValueId>,
    weights: &Weights,
    rows: &[&BTreeMap<String, Tensor>],
    see: &mut dyn FnMut(usize, ValueId, &Tensor),
) -> Result<()> {
    let bindings = rows.iter().map(|inputs| bind_inputs(graph, inputs)).collect::<Result<Vec<_>>>()?;
    let evaluated: BTreeSet<ValueId> = order.iter().copied().collect();
    let users = |id: &ValueId| graph.users(*id).iter().filter(|user| evaluated.contains(user)).count();
    let mut left: BTreeMap<ValueId, usize> = order.iter().map(|id| (*id, users(id))).collect();
    // Those of every row; of what depends on weights alone, one for all rows.
    let mut values: BTreeMap<ValueId, Vec<Tensor>> = BTreeMap::new();
    let shared = static_values(graph)?;
    for id in order {
        let node = graph.node(id)?;
        let operands = graph.operands(id);
        let is_shared = shared.contains(&id);
        let mut results = Vec::with_capacity(rows.len());
        for (row, (inputs, bindings)) in rows.iter().zip(&bindings).enumerate() {
            if let Op::Input { name, .. } = &node.op
                && !inputs.contains_key(name)
            {
                continue;
            }
            if is_shared && row > 0 {
                if let Some(result) = results.first() {
                    see(row, id, result);
                }
                continue;
            }
            let missing = || Diagnostic::internal("E0299", format!("an operand of %{} was not computed", id.index()));
            let of = |o: &ValueId| values.get(o).and_then(|v| v.get(if shared.contains(o) { 0 } else { row }));
            let tensors = operands.iter().map(|o| of(o).ok_or_else(missing)).collect::<Result<Vec<_>>>()?;
            let result = apply(&node.op, &tensors, weights, inputs, bindings);
            let result =
                result.map_err(|e| e.at(format!("%{} {} \"{}\"", id.index(), node.op.name(), node.origin.node)))?;
            let shape = node.shape.iter().map(|d| d.eval_usize(bindings)).collect::<Result<Vec<_>>>()?;
            if result.shape() != shape || result.dtype() != node.dtype {
                let what = format!("%{} is {:?} but declared {shape:?}", id.index(), result.shape());
                return Err(Diagnostic::internal("E0299", what).at(node.origin.node.clone()));
            }
            see(row, id, &result);
            results.push(result);
        }
        if left.get(&id).is_some_and(|users| *users > 0) {
            values.insert(id, results);
        }
        for operand in BTreeSet::from_iter(operands) {
            if let Some(n) = left.get_mut(&operand) {
                *n = n.saturating_sub(1);
                if *n == 0 {
                    values.remove(&operand);
                }
            }
        }
    }
    Ok(())
}

/// Values that are the same whatever the inputs and the sizes are: weights, constants, and what is computed from them.
///
/// # Errors
/// Internal ones of the graph.
pub fn static_values(graph: &Graph) -> Result<BTreeSet<ValueId>> {
    let mut found = BTreeSet::new();
    let symbolic = |dim: &Dim| dim.as_constant().is_none();
    for v in graph.topological() {
        let node = graph.node(v)?;
        let moving = match &node.op {
            Op::Input { .. } => true,
            Op::Tensor(TensorOp::Sizes { values, .. }) => values.iter().any(symbolic),
            Op::Tensor(TensorOp::Iota { start, len, .. }) => symbolic(start) || symbolic(len),
            Op::Tensor(TensorOp::Slice { start, .. }) => symbolic(start),
            _ => false,
        };
        if !moving && !node.shape.iter().any(symbolic) && graph.operands(v).iter().all(|a| found.contains(a)) {
            found.insert(v);
        }
    }
    Ok(found)
}

/// A topological order in which what depends on no input stands right before its first user.
fn late_weights(graph: &Graph) -> Vec<ValueId> {
    let topological = graph.topological();
    let is_given = |op: &Op| matches!(op, Op::Input { .. });
    let mut moving: BTreeSet<ValueId> = BTreeSet::new();
    for id in &topological {
        if graph.op(*id).is_some_and(is_given) || graph.operands(*id).iter().any(|o| moving.contains(o)) {
            moving.insert(*id);
        }
    }
    let mut order = Vec::with_capacity(topological.len());
    let mut done: BTreeSet<ValueId> = BTreeSet::new();
    let first_moving = topological.iter().filter(|id| moving.contains(id));
    for id in first_moving.chain(&topological) {
        let mut open = vec![*id];
        while let Some(&top) = open.last() {
            let waiting: Vec<ValueId> = graph.operands(top).into_iter().filter(|o| !done.contains(o)).collect();
            if done.contains(&top) {
                open.pop();
            } else if waiting.is_empty() {
                done.insert(top);
                order.push(top);
                open.pop();
            } else {
                open.extend(waiting);
            }
        }
    }
    order
}

/// One value that depends on weights and constants alone.
///
/// Errors: those of `weights`, and of operators that need an input or a size.
pub fn static_value(graph: &Graph, weights: &Weights, id: ValueId) -> Result<Tensor> {
    let mut values: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    let needed = graph.ancestors(id);
    let order: Vec<ValueId> = graph.topological().into_iter().filter(|v| needed.contains(v)).collect();
    let mut last: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for &at in &order {
        last.extend(graph.operands(at).into_iter().map(|operand| (operand, at)));
    }
    for at in order {
        let operands = graph.operands(at);
        let tensors: Vec<&Tensor> = operands.iter().filter_map(|o| values.get(o)).collect();
        let result = apply(&graph.node(at)?.op, &tensors, weights, &BTreeMap::new(), &Bindings::new())?;
        values.insert(at, result);
        // Weights are large: none is kept longer than it is used.
        values.retain(|v, _| *v == at || last.get(v) != Some(&at));
    }
    values.remove(&id).ok_or_else(|| Diagnostic::internal("E0299", "a static value was not computed"))
}

/// Elements that a result of `operands` may have: no more than what is read already, if that is more than usual.
pub fn value_limit(operands: &[&Tensor]) -> usize {
    operands.iter().map(|t| t.len()).max().unwrap_or(0).max(DEFAULT_LIMIT)
}

fn apply(
    op: &Op,
    operands: &[&Tensor],
    weights: &Weights,
    inputs: &BTreeMap<String, Tensor>,
    bindings: &Bindings,
) -> Result<Tensor> {
    let wrong = || Diagnostic::internal("E0299", format!("{} has {} operands", op.name(), operands.len()));
    match (op, operands) {
        (Op::Tensor(op), _) => plain::eval(op, operands, bindings, value_limit(operands)),
        (Op::Input { name, .. }, []) => inputs.get(name).cloned().ok_or_else(wrong),
        (Op::Weight { name, transposed }, []) => {
            let tensor = weights(name)?;
            if !transposed {
                return Ok(tensor);
            }
            let mut perm: Vec<usize> = (0..tensor.rank()).collect();
            let last = perm.len().saturating_sub(1);
            perm.swap(last.saturating_sub(1), last);
            plain::eval(&TensorOp::Transpose { perm }, &[&tensor], bindings, tensor.len())
        }
        (Op::Pow(e), [x]) => map(x, |v| libm::powf(v, *e)),
        (Op::Clamp { low, high }, [x]) => map(x, |v| v.max(*low).min(*high)),
        (Op::Relu, [x]) => map(x, |v| if v.is_nan() { v } else { v.max(0.0) }),
        (Op::Silu, [x]) => map(x, |v| v * sigmoid(v)),
        (Op::Softplus, [x]) => map(x, |v| v.max(0.0) + libm::log1pf(libm::expf(-v.abs()))),
        (Op::Gelu { tanh: false }, [x]) => {
            map(x, |v| 0.5 * v * (1.0 + libm::erff(v * std::f32::consts::FRAC_1_SQRT_2)))
        }
        (Op::Gelu { tanh: true }, [x]) => {
            let c = (2.0 / std::f32::consts::PI).sqrt();
            map(x, |v| 0.5 * v * (1.0 + libm::tanhf(c * (v + 0.044715 * v * v * v))))
        }
        (Op::Softmax { axis }, [x]) => softmax(x, None, *axis),
        (Op::MaskedSoftmax { axis }, [x, mask]) => softmax(x, Some(mask), *axis),
        (Op::RatioSoftmax { axis, numerator, eps }, [x]) => super::ratio::eval(x, None, *axis, *numerator, *eps),
        (Op::RatioSoftmax { axis, numerator, eps }, [x, mask]) => {
            super::ratio::eval(x, Some(mask), *axis, *numerator, *eps)
        }
        (Op::Quadratic { square, linear, constant }, [x]) => map(x, |v| (square * v + linear) * v + constant),
        (Op::AffineNorm { centred }, [x, w]) => affine_norm(x, w, None, *centred),
        (Op::AffineNorm { centred }, [x, w, b]) => affine_norm(x, w, Some(b), *centred),
        (Op::RmsNorm { eps }, [x, w]) => norm(x, w, None, *eps, false),
        (Op::LayerNorm { eps }, [x, w]) => norm(x, w, None, *eps, true),
        (Op::LayerNorm { eps }, [x, w, b]) => norm(x, w, Some(b), *eps, true),
        _ => Err(wrong()),
    }
}

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-v))
}

fn map(x: &Tensor, f: impl Fn(f32) -> f32 + Sync + Send) -> Result<Tensor> {
    Tensor::f32(x.shape(), x.as_f32()?.par_iter().with_min_len(PARALLEL).map(|v| f(*v)).collect())
}

/// Fewest elements that are worth a thread.
const PARALLEL: usize = 1 << 13;

/// Softmax along `axis`; `mask` broadcasts to `x`. Without a mask a row of -inf gives no numbers, as in ONNX.
fn softmax(x: &Tensor, mask: Option<&Tensor>, axis: usize) -> Result<Tensor> {
    let values = x.as_f32()?;
    if axis + 1 == x.rank() && !values.is_empty() {
        return softmax_of_rows(x, mask);
    }
    let mut out = vec![0.0f32; values.len()];
    for at in super::ratio::kept_rows(x, mask, axis)? {
        let get = |i: &usize| values.get(*i).copied().unwrap_or(0.0);
        let max = at.iter().map(get).fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f32> = at.iter().map(|i| libm::expf(get(i) - max)).collect();
        let sum: f32 = exps.iter().sum();
        for (i, e) in at.iter().zip(exps) {
            if let Some(slot) = out.get_mut(*i) {
                *slot = e / sum;
            }
        }
    }
    Tensor::f32(x.shape(), out)
}

/// Softmax along the last axis, which is not empty.
fn softmax_of_rows(x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let size = x.shape().last().copied().unwrap_or(1).max(1);
    let mask = mask.map(|m| super::ratio::broadcast_mask(x, m)).transpose()?;
    let mut out = x.as_f32()?.to_vec();
    let one = |(i, row): (usize, &mut [f32])| {
        let kept = mask.as_ref().map(|m| m.get(i * size..(i + 1) * size).unwrap_or(&[]));
        let keeps = |k: usize| kept.is_none_or(|m| m.get(k).copied().unwrap_or(false));
        let entries = row.iter().enumerate().filter(|(k, _)| keeps(*k));
        let max = entries.map(|(_, v)| *v).fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (k, v) in row.iter_mut().enumerate() {
            *v = if keeps(k) { libm::expf(*v - max) } else { 0.0 };
            sum += *v;
        }
        row.iter_mut().enumerate().filter(|(k, _)| keeps(*k)).for_each(|(_, v)| *v /= sum);
    };
    out.par_chunks_mut(size).enumerate().with_min_len(PARALLEL.div_ceil(size)).for_each(one);
    Tensor::f32(x.shape(), out)
}

/// A norm without its division.
fn affine_norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, centred: bool) -> Result<Tensor> {
    let size = x.shape().last().copied().unwrap_or(1).max(1);
    let scale = w.as_f32()?;
    let shift = b.map(Tensor::as_f32).transpose()?;
    let mut out = x.as_f32()?.to_vec();
    for row in out.chunks_exact_mut(size) {
        let mean = if centred { row.iter().sum::<f32>() / size as f32 } else { 0.0 };
        row.iter_mut().zip(scale).for_each(|(v, s)| *v = (*v - mean) * s);
        if let Some(shift) = shift {
            row.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
        }
    }
    Tensor::f32(x.shape(), out)
}

fn norm(x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f32, center: bool) -> Result<Tensor> {
    let size = x.shape().last().copied().unwrap_or(1);
    let scale = w.as_f32()?;
    let shift = b.map(Tensor::as_f32).transpose()?;
    let mut out = x.as_f32()?.to_vec();
    if size == 0 {
        return Tensor::f32(x.shape(), out);
    }
    for row in out.chunks_exact_mut(size) {
        let mean = if center { row.iter().sum::<f32>() / size as f32 } else { 0.0 };
        row.iter_mut().for_each(|v| *v -= mean);
        let square = row.iter().map(|v| v * v).sum::<f32>() / size as f32;
        let root = (square + eps).sqrt();
        row.iter_mut().zip(scale).for_each(|(v, s)| *v = *v / root * s);
        if let Some(shift) = shift {
            row.iter_mut().zip(shift).for_each(|(v, s)| *v += s);
        }
    }
    Tensor::f32(x.shape(), out)
}
