//! Operators that choose elements: slices, splits, gathers, scatters.

use ombra_ir::plain::{self, infer::product};
use ombra_ir::{Diagnostic, Dim, Result};

use super::movement::reshape_to;
use super::rows;
use crate::graph::{Op, Owner, TensorOp};
use crate::import::node::{Node, axis};
use crate::import::positions::limit_index;
use crate::import::sizes::smaller;
use crate::import::{Context, Value};

/// Elements `start`, `start + step`, … of one axis, `len` of them.
fn piece(cx: &mut Context, value: &Value, axis: usize, start: Dim, len: Dim, step: i64) -> Result<Value> {
    if step == 1 && start.is(0) && cx.shape(value)?.get(axis) == Some(&len) {
        return Ok(value.clone());
    }
    if step != 1 && cx.owner(value) != Owner::Public {
        let index = cx.emit_public(TensorOp::Iota { start, len, step }, &[])?;
        return cx.emit(Op::Tensor(TensorOp::Gather { axis }), &[value, &index]);
    }
    cx.emit(Op::Tensor(TensorOp::Slice { axis, start, len, step }), &[value])
}

pub fn slice(cx: &mut Context, node: &Node) -> Result<Value> {
    let mut value = node.input(0)?.clone();
    let rank = cx.shape(&value)?.len();
    let (starts, ends) = match (node.ints("starts"), node.ints("ends")) {
        (Some(starts), Some(ends)) => {
            let dims = |list: &[i64]| list.iter().map(|d| Dim::constant(*d)).collect::<Vec<_>>();
            (dims(starts), dims(ends))
        }
        _ => (cx.sizes(node.input(1)?, "the start")?, cx.sizes(node.input(2)?, "the end")?),
    };
    let axes = match (node.ints("axes"), node.optional(3)) {
        (Some(list), _) => list.to_vec(),
        (None, Some(value)) => cx.ints(value, "the list of axes")?,
        (None, None) => (0i64..).take(starts.len()).collect(),
    };
    let steps = match node.optional(4) {
        Some(value) => cx.ints(value, "the step")?,
        None => vec![1; starts.len()],
    };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(Diagnostic::input("E0251", "starts, ends, axes and steps differ in number"));
    }
    for (((start, end), at), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let at = axis(*at, rank)?;
        let size = cx.shape(&value)?.get(at).cloned().unwrap_or_default();
        let (start, len) = extent(cx, &size, start, end, *step)?;
        value = piece(cx, &value, at, start, len, *step)?;
    }
    Ok(value)
}

/// First index and number of elements of `start:end:step` on an axis of `size`, as ONNX counts and clamps.
fn extent(cx: &mut Context, size: &Dim, start: &Dim, end: &Dim, step: i64) -> Result<(Dim, Dim)> {
    let one = Dim::constant(1);
    let zero = Dim::constant(0);
    match step {
        0 => Err(Diagnostic::input("E0251", "a step of 0")),
        1.. => {
            let first = position(cx, size, start)?;
            let last = position(cx, size, end)?;
            let span = last.sub(&first)?;
            let span = if span.as_constant().is_some_and(|s| s < 0) { zero } else { span };
            let len = match (span.as_constant(), step) {
                (_, 1) => span,
                (Some(n), step) => Dim::constant(n.checked_add(step - 1).unwrap_or(n) / step),
                (None, step) => span.div_exact(&Dim::constant(step))?,
            };
            Ok((first, len))
        }
        _ => {
            let top = size.sub(&one)?;
            let fixed = |d: &Dim| d.as_constant();
            let first = match fixed(start) {
                Some(-1) => top.clone(),
                Some(s) if s < 0 => size.add(start)?,
                _ => smaller(start, &top, &cx.graph.dims).ok_or_else(|| undecided(cx, start, size))?,
            };
            let before = match (fixed(end), fixed(size)) {
                (Some(e), Some(n)) if e < 0 => Dim::constant(e.saturating_add(n).max(-1)),
                (Some(e), None) if e < -(1 << 40) => Dim::constant(-1),
                (Some(e), None) if e < 0 => size.add(end)?,
                _ => end.clone(),
            };
            let span = first.sub(&before)?;
            let len = match (span.as_constant(), step) {
                (Some(n), _) if n <= 0 => zero,
                (Some(n), step) => Dim::constant((n + (-1 - step).max(0)) / step.checked_neg().unwrap_or(i64::MAX)),
                (None, -1) => span,
                (None, step) => span.div_exact(&Dim::constant(step.checked_neg().unwrap_or(i64::MAX)))?,
            };
            Ok((first, len))
        }
    }
}

/// `at` as a position between 0 and `size`. A symbolic position in an axis of fixed size is taken to be within it, and
/// the graph remembers that.
fn position(cx: &mut Context, size: &Dim, at: &Dim) -> Result<Dim> {
    let falls = at.as_constant().is_none() && at.terms().iter().all(|t| t.coefficient < 0);
    let from_end = match at.as_constant() {
        Some(c) => c < 0,
        None => cx.graph.dims.upper(at).is_some_and(|u| u < 0) || falls && at.constant_term() <= 0,
    };
    if falls && !from_end {
        // What is taken away leaves something: else the position would count from the end.
        let whole = Dim::constant(at.constant_term());
        cx.graph.limit(whole.sub(at)?, at.constant_term());
        if size.sub(&whole)?.as_constant().is_some_and(|rest| rest >= 0) {
            return Ok(at.clone());
        }
    }
    let dims = &cx.graph.dims;
    // Ends such as -2^63 mean the beginning.
    if at.as_constant().is_some_and(|c| c < -(1 << 40)) {
        return Ok(Dim::constant(0));
    }
    if at.as_constant().is_some_and(|c| c > 1 << 40) {
        return Ok(size.clone());
    }
    let at = if from_end { size.add(at)? } else { at.clone() };
    if at.as_constant().is_some_and(|c| c < 0) {
        return Ok(Dim::constant(0));
    }
    if let Some(least) = smaller(&at, size, dims) {
        return Ok(least);
    }
    match (at.as_constant(), size.as_constant()) {
        (None, Some(n)) => {
            cx.graph.limit(at.clone(), n);
            Ok(at)
        }
        _ => Err(undecided(cx, &at, size)),
    }
}

fn undecided(cx: &Context, at: &Dim, size: &Dim) -> Diagnostic {
    let (at, size) = (cx.graph.dims.show(at), cx.graph.dims.show(size));
    Diagnostic::unsupported("E0254", format!("whether `{at}` lies within an axis of size `{size}` depends on lengths"))
        .note("bind a size with --dim, or give its maximum with --max")
}

pub fn split(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let input = node.input(0)?;
    let shape = cx.shape(input)?;
    let at = axis(node.int("axis", 0), shape.len())?;
    let size = shape.get(at).cloned().unwrap_or_default();
    let given = match (node.ints("split"), node.optional(1)) {
        (Some(list), _) => Some(list.iter().map(|d| Dim::constant(*d)).collect::<Vec<_>>()),
        (None, Some(value)) => Some(cx.sizes(value, "the sizes of the parts")?),
        (None, None) => None,
    };
    let count = usize::try_from(node.int("num_outputs", 0)).ok().filter(|n| *n > 0).unwrap_or(node.outputs());
    let parts = match given {
        Some(parts) => parts,
        None => {
            let n = i64::try_from(count).ok().filter(|n| (1..=1 << 20).contains(n));
            let n = n.ok_or_else(|| Diagnostic::input("E0251", "a split into no or too many parts"))?;
            match size.as_constant() {
                // The last part is smaller when the size is no multiple.
                Some(total) => {
                    let part = (total + n - 1) / n;
                    (0..n).map(|i| Dim::constant((total - i * part).clamp(0, part))).collect()
                }
                None => vec![size.div_exact(&Dim::constant(n))?; count],
            }
        }
    };
    let mut start = Dim::constant(0);
    let mut values = Vec::with_capacity(parts.len());
    for part in parts {
        values.push(piece(cx, input, at, start.clone(), part.clone(), 1)?);
        start = start.add(&part)?;
    }
    if start != size || values.len() < node.outputs() {
        let (found, expected) = (cx.graph.dims.show(&start), cx.graph.dims.show(&size));
        return Err(Diagnostic::input("E0251", format!("the parts of a split add up to `{found}`, not `{expected}`")));
    }
    Ok(values)
}

pub fn gather(cx: &mut Context, node: &Node) -> Result<Value> {
    let (data, at) = (node.input(0)?, node.input(1)?);
    let axis = axis(node.int("axis", 0), cx.shape(data)?.len())?;
    limit_index(cx, data, axis, at)?;
    cx.emit(Op::Tensor(TensorOp::Gather { axis }), &[data, at])
}

pub fn gather_nd(cx: &mut Context, node: &Node) -> Result<Value> {
    let batch_dims = usize::try_from(node.int("batch_dims", 0));
    let batch_dims = batch_dims.map_err(|_| Diagnostic::input("E0251", "batch_dims is negative"))?;
    gathered(cx, node.input(0)?, node.input(1)?, batch_dims)
}

fn gathered(cx: &mut Context, data: &Value, index: &Value, batch_dims: usize) -> Result<Value> {
    if rows::applies(cx, &[data], index) {
        return rows::gather_nd(cx, data, index, batch_dims);
    }
    cx.emit_public(TensorOp::GatherNd { batch_dims }, &[data, index])
}

pub fn gather_elements(cx: &mut Context, node: &Node) -> Result<Value> {
    let axis = axis(node.int("axis", 0), cx.shape(node.input(0)?)?.len())?;
    let (data, index) = (node.input(0)?, node.input(1)?);
    limit_index(cx, data, axis, index)?;
    if rows::applies(cx, &[data], index) {
        return rows::gather_elements(cx, data, index, axis);
    }
    cx.emit_public(TensorOp::GatherElements { axis }, &[data, index])
}

/// The indices of elements that are not zero, one axis of the operand a row. How many there are must be known: the operand
/// is, or it is one number in every place.
pub fn non_zero(cx: &mut Context, node: &Node) -> Result<Value> {
    let input = node.input(0)?;
    let kept: Option<Vec<usize>> = input.as_const().map(|tensor| {
        let is = |i: &usize| match tensor.data() {
            plain::Data::F32(v) => v.get(*i).is_some_and(|x| *x != 0.0),
            plain::Data::I64(v) => v.get(*i).is_some_and(|x| *x != 0),
            plain::Data::Bool(v) => v.get(*i).is_some_and(|x| *x),
        };
        (0..tensor.len()).filter(is).collect()
    });
    if let (Some(kept), Some(tensor)) = (kept, input.as_const()) {
        // A number has one place, which no axis names.
        let shape = tensor.shape().to_vec();
        let mut indices = Vec::with_capacity(shape.len());
        let mut inner = 1;
        for size in shape.iter().rev() {
            let along =
                kept.iter().map(|i| i64::try_from(i / inner % size)).collect::<std::result::Result<Vec<_>, _>>();
            indices.push(along.map_err(|_| Diagnostic::internal("E0299", "an index is beyond 63 bits"))?);
            inner *= size;
        }
        let indices = indices.into_iter().rev().flatten().collect();
        return Ok(Value::constant(plain::Tensor::i64(&[shape.len(), kept.len()], indices)?));
    }
    let everywhere = match input {
        Value::Node(id) => match cx.graph.op(*id) {
            Some(Op::Tensor(TensorOp::ConstantOfShape { value, .. })) => match value.data() {
                plain::Data::F32(v) => v.iter().all(|x| *x != 0.0),
                plain::Data::I64(v) => v.iter().all(|x| *x != 0),
                plain::Data::Bool(v) => v.iter().all(|x| *x),
            },
            _ => false,
        },
        _ => false,
    };
    if !everywhere {
        return Err(Diagnostic::unsupported("E0254", "the number of elements that are not zero depends on an input")
            .note("expected an operand that is known when the model is compiled, or the same everywhere")
            .note("export the model with positions and lengths in place of it"));
    }
    let shape = cx.shape(input)?;
    let count = product(&shape)?;
    let mut rows = Vec::with_capacity(shape.len());
    for (axis, size) in shape.iter().enumerate() {
        let along = cx.emit_public(TensorOp::Iota { start: Dim::constant(0), len: size.clone(), step: 1 }, &[])?;
        let one = |i: usize| if i == axis { size.clone() } else { Dim::constant(1) };
        let along = reshape_to(cx, &along, (0..shape.len()).map(one).collect())?;
        let along = cx.emit(Op::Tensor(TensorOp::Expand { shape: shape.clone() }), &[&along])?;
        rows.push(reshape_to(cx, &along, vec![Dim::constant(1), count.clone()])?);
    }
    match rows.as_slice() {
        [one] => Ok(one.clone()),
        many => cx.emit(Op::Tensor(TensorOp::Concat { axis: 0 }), &many.iter().collect::<Vec<_>>()),
    }
}

/// Most rows of updates that a scatter with a reduction takes, one after another.
const REDUCED_ROWS: i64 = 64;

pub fn scatter_nd(cx: &mut Context, node: &Node) -> Result<Value> {
    let (data, index, update) = (node.input(0)?, node.input(1)?, node.input(2)?);
    let op = match node.text("reduction", "none").as_str() {
        "none" => return scattered(cx, data, index, update),
        "add" => Op::ADD,
        "mul" => Op::MUL,
        "max" => Op::MAX,
        "min" => Op::MIN,
        other => return Err(Diagnostic::unsupported("E0251", format!("ScatterND with reduction `{other}`"))),
    };
    let tuples = cx.shape(index)?;
    let rows = match tuples.split_last() {
        Some((_, lead)) => product(lead)?,
        None => return Err(Diagnostic::input("E0251", "index tuples without axes")),
    };
    let width = tuples.last().cloned().unwrap_or_default();
    let count = rows.as_constant().filter(|n| (0..=REDUCED_ROWS).contains(n)).ok_or_else(|| {
        let found = cx.graph.dims.show(&rows);
        Diagnostic::unsupported("E0251", format!("ScatterND with a reduction of {found} rows"))
            .note(format!("expected at most {REDUCED_ROWS}, and their number fixed"))
    })?;
    let lead = tuples.len() - 1;
    let rest = cx.shape(update)?.split_off(lead.min(cx.shape(update)?.len()));
    let index = reshape_to(cx, index, vec![rows.clone(), width])?;
    let update = reshape_to(cx, update, std::iter::once(rows).chain(rest).collect())?;
    // Tuples may repeat: every row sees what those before it left.
    let mut result = data.clone();
    for row in 0..count {
        let one = |cx: &mut Context, of: &Value| piece(cx, of, 0, Dim::constant(row), Dim::constant(1), 1);
        let (at, new) = (one(cx, &index)?, one(cx, &update)?);
        let old = gathered(cx, &result, &at, 0)?;
        let new = cx.emit(op.clone(), &[&old, &new])?;
        result = scattered(cx, &result, &at, &new)?;
    }
    Ok(result)
}

fn scattered(cx: &mut Context, data: &Value, index: &Value, update: &Value) -> Result<Value> {
    if rows::applies(cx, &[data, update], index) {
        return rows::scatter_nd(cx, data, index, update);
    }
    cx.emit_public(TensorOp::ScatterNd, &[data, index, update])
}
