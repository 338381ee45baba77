//! Attention operators of domain `com.microsoft`: packed projections, grouped heads, caches and rotation in one.
//!
//! A cache is what the graph appends to it, one row of keys after another, whatever the operator does with padding: keys
//! of padding are masked out where they stand.

use ombra_ir::plain::{self, Binary, DType, Reduce, Tensor};
use ombra_ir::{Diagnostic, Dim, Result};

use super::super::attention::{
    Attention, Rotation, appended, attend, before, causal, fixed_size, join_heads, rotate, rotated, rotation, size_at,
    split_heads, truth,
};
use super::super::movement::reshape_to;
use crate::graph::{InputRole, Op, TensorOp, ValueId};
use crate::import::node::Node;
use crate::import::{Context, Value};

/// `len` elements of an axis from `start` on.
fn part(cx: &mut Context, x: &Value, axis: usize, start: i64, len: i64) -> Result<Value> {
    cx.emit(Op::Tensor(TensorOp::Slice { axis, start: Dim::constant(start), len: Dim::constant(len), step: 1 }), &[x])
}

/// `x` cut along its last axis into parts of `sizes`.
fn parts(cx: &mut Context, x: &Value, sizes: [i64; 3]) -> Result<[Value; 3]> {
    let axis = cx.shape(x)?.len().saturating_sub(1);
    let [a, b, c] = sizes;
    let total = fixed_size(cx, x, axis, "the width of a packed product")?;
    let sum = a.checked_add(b).and_then(|ab| Some((ab, ab.checked_add(c)?)));
    let Some((ab, _)) = sum.filter(|(_, abc)| *abc == total && a > 0 && b > 0 && c > 0) else {
        return Err(Diagnostic::input("E0251", format!("a packed product of width {total} is cut into {a}, {b}, {c}"))
            .note("expected parts that add up to it"));
    };
    Ok([part(cx, x, axis, 0, a)?, part(cx, x, axis, a, b)?, part(cx, x, axis, ab, c)?])
}

/// The attribute `name`, which must be a positive number of heads.
fn heads(node: &Node, name: &str) -> Result<i64> {
    match node.int(name, 0) {
        n if n > 0 => Ok(n),
        n => Err(Diagnostic::input("E0251", format!("{name} is {n}")).note("expected a number of heads")),
    }
}

/// An error for what is given but has no lowering.
fn refused(what: &str) -> Diagnostic {
    Diagnostic::unsupported("E0251", format!("{what} is not supported"))
        .note("export the model without fused attention, or with ONNX's own operators")
}

/// The factor of the products: attribute `scale`, where 0 and nothing mean 1 / √size.
fn scale_of(cx: &Context, node: &Node, q: &Value) -> Result<f32> {
    let size = fixed_size(cx, q, 3, "the size of a head")?;
    Ok(match node.float("scale", 0.0) {
        0.0 => 1.0 / (size as f32).sqrt(),
        given => given,
    })
}

/// The size of the axis of tokens of a past, or 0 without one.
fn past_size(cx: &Context, past: Option<&Value>) -> Result<Dim> {
    past.map_or(Ok(Dim::constant(0)), |past| size_at(cx, past, 2))
}

/// A mask of keys in one of its forms: numbers of keys `[batch]`, `[batch, total]`, or `[batch, new, total]`.
fn key_mask(cx: &mut Context, mask: &Value, batch: &Dim, total: &Dim) -> Result<Value> {
    let shape = cx.shape(mask)?;
    let one = Dim::constant(1);
    match shape.as_slice() {
        [rows] if rows == batch => before(cx, mask, total),
        [rows, keys] if rows == batch && keys == total => {
            let mask = truth(cx, mask)?;
            reshape_to(cx, &mask, vec![batch.clone(), one.clone(), one, total.clone()])
        }
        [rows, new, keys] if rows == batch && keys == total => {
            let new = new.clone();
            let mask = truth(cx, mask)?;
            reshape_to(cx, &mask, vec![batch.clone(), one, new, total.clone()])
        }
        _ => Err(refused(&format!("a mask of shape {}", cx.graph.dims.show_shape(&shape)))
            .note("expected [batch], [batch, total] or [batch, new, total]")),
    }
}

/// `Attention`: x, packed weights and biases, mask, past keys and values in one tensor, bias of the scores.
pub fn packed(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    if node.int("do_rotary", 0) != 0 {
        return Err(refused("Attention with do_rotary"));
    }
    if node.optional(6).is_some() {
        return Err(refused("Attention with a shared buffer of keys"));
    }
    let heads = heads(node, "num_heads")?;
    let mut all = cx.emit(Op::MATMUL, &[node.input(0)?, node.input(1)?])?;
    if let Some(bias) = node.optional(2) {
        all = cx.emit(Op::ADD, &[&all, bias])?;
    }
    let sizes = match node.ints("qkv_hidden_sizes") {
        Some([a, b, c]) => [*a, *b, *c],
        Some(_) => return Err(Diagnostic::input("E0251", "qkv_hidden_sizes has not three elements")),
        None => [fixed_size(cx, &all, 2, "the width of a packed product")? / 3; 3],
    };
    let [q, k, v] = parts(cx, &all, sizes)?;
    let (q, k, v) = (split_heads(cx, &q, heads)?, split_heads(cx, &k, heads)?, split_heads(cx, &v, heads)?);
    let (mut old_k, mut old_v) = (None, None);
    if let Some(past) = node.optional(4) {
        let shape: Vec<Dim> = cx.shape(past)?.into_iter().skip(1).collect();
        for (at, slot) in [(0, &mut old_k), (1, &mut old_v)] {
            let half = part(cx, past, 0, at, 1)?;
            *slot = Some(reshape_to(cx, &half, shape.clone())?);
        }
    }
    let past = past_size(cx, old_k.as_ref())?;
    let k = appended(cx, old_k.as_ref(), k)?;
    let v = appended(cx, old_v.as_ref(), v)?;
    let output = masked(cx, node, [q, k.clone(), v.clone()], past, node.optional(3), node.optional(5))?;
    if node.proto.output.get(1).is_none_or(String::is_empty) {
        return Ok(vec![output]);
    }
    let mut both = Vec::with_capacity(2);
    for half in [&k, &v] {
        let mut shape = cx.shape(half)?;
        shape.insert(0, Dim::constant(1));
        both.push(reshape_to(cx, half, shape)?);
    }
    let present = cx.emit(Op::Tensor(TensorOp::Concat { axis: 0 }), &both.iter().collect::<Vec<_>>())?;
    Ok(vec![output, present])
}

/// Attention of heads with a mask and a bias of the scores, and causal where the node says so; heads joined.
fn masked(
    cx: &mut Context,
    node: &Node,
    [q, k, v]: [Value; 3],
    past: Dim,
    mask: Option<&Value>,
    bias: Option<&Value>,
) -> Result<Value> {
    let (batch, new, total) = (size_at(cx, &q, 0)?, size_at(cx, &q, 2)?, size_at(cx, &k, 2)?);
    let mut masks = Vec::new();
    if let Some(mask) = mask {
        masks.push(key_mask(cx, mask, &batch, &total)?);
    }
    if node.int("unidirectional", 0) != 0 {
        masks.push(causal(cx, &new, &past, &total, None)?);
    }
    let scale = scale_of(cx, node, &q)?;
    let a = attend(cx, Attention { q, k, v, scale, cap: 0.0, bias: bias.cloned(), masks })?;
    join_heads(cx, &a.output)
}

/// `MultiHeadAttention`: q, k, v apart or packed, their bias, mask, bias of the scores, past keys and values.
pub fn multi_head(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    if node.optional(8).or(node.optional(9)).is_some() {
        return Err(refused("MultiHeadAttention with a shared buffer of keys"));
    }
    let heads = heads(node, "num_heads")?;
    let mut qkv = unpacked(cx, node)?;
    if let Some(bias) = node.optional(3) {
        let sizes = [width(cx, &qkv[0], heads)?, width(cx, &qkv[1], heads)?, width(cx, &qkv[2], heads)?];
        for (x, bias) in qkv.iter_mut().zip(parts(cx, bias, sizes)?) {
            if cx.shape(x)?.len() == 3 {
                *x = cx.emit(Op::ADD, &[x, &bias])?;
            }
        }
    }
    for x in &mut qkv {
        if cx.shape(x)?.len() == 3 {
            *x = split_heads(cx, x, heads)?;
        }
    }
    let [q, k, v] = qkv;
    let (old_k, old_v) = (node.optional(6), node.optional(7));
    let past = past_size(cx, old_k)?;
    let k = appended(cx, old_k, k)?;
    let v = appended(cx, old_v, v)?;
    let output = masked(cx, node, [q, k.clone(), v.clone()], past, node.optional(4), node.optional(5))?;
    Ok(vec![output, k, v])
}

/// The width of all heads of `x [batch, tokens, width]` or `[batch, heads, tokens, size]`.
fn width(cx: &Context, x: &Value, heads: i64) -> Result<i64> {
    let rank = cx.shape(x)?.len();
    let last = fixed_size(cx, x, rank.saturating_sub(1), "the width of a head")?;
    Ok(if rank == 4 { last.saturating_mul(heads) } else { last })
}

/// Queries, keys and values of a `MultiHeadAttention`, of three axes, or keys and values of four as they are.
fn unpacked(cx: &mut Context, node: &Node) -> Result<[Value; 3]> {
    let pick = |cx: &mut Context, x: &Value, at: i64| -> Result<Value> {
        // [batch, tokens, heads, of, size]
        let mut shape = cx.shape(x)?;
        let one = part(cx, x, 3, at, 1)?;
        let size = shape.pop().unwrap_or_default();
        shape.pop();
        let width = shape.pop().unwrap_or_default().mul(&size)?;
        shape.push(width);
        reshape_to(cx, &one, shape)
    };
    let q = node.input(0)?.clone();
    match (node.optional(1), node.optional(2)) {
        (Some(k), Some(v)) => Ok([q, k.clone(), v.clone()]),
        (Some(kv), None) if cx.shape(kv)?.len() == 5 => Ok([q, pick(cx, kv, 0)?, pick(cx, kv, 1)?]),
        (None, None) if cx.shape(&q)?.len() == 5 => Ok([pick(cx, &q, 0)?, pick(cx, &q, 1)?, pick(cx, &q, 2)?]),
        _ => Err(Diagnostic::input("E0251", "keys or values are missing")
            .note("expected three operands, or one of [batch, tokens, heads, 2 or 3, size]")),
    }
}

/// `GroupQueryAttention`: q, k, v apart or packed, past keys and values, numbers of keys less one, their maximum,
/// tables of cosines and sines, positions, bias of the scores. Always causal.
pub fn grouped(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    if node.int("smooth_softmax", 0) != 0 || node.optional(11).is_some() {
        return Err(refused("GroupQueryAttention with a smooth softmax or a sink"));
    }
    let (heads, groups) = (heads(node, "num_heads")?, heads(node, "kv_num_heads")?);
    let [q, k, v] = match (node.optional(1), node.optional(2)) {
        (Some(k), Some(v)) => [node.input(0)?.clone(), k.clone(), v.clone()],
        (None, None) => {
            let all = node.input(0)?;
            let width = fixed_size(cx, all, 2, "the width of a packed product")?;
            let rows = groups.checked_mul(2).and_then(|g| g.checked_add(heads)).filter(|rows| width % rows == 0);
            let rows = rows.ok_or_else(|| Diagnostic::input("E0251", format!("a packed product of width {width}")))?;
            let size = width / rows;
            parts(cx, all, [heads.saturating_mul(size), groups.saturating_mul(size), groups.saturating_mul(size)])?
        }
        _ => return Err(Diagnostic::input("E0251", "keys or values are missing")),
    };
    let (mut q, mut k, v) = (split_heads(cx, &q, heads)?, split_heads(cx, &k, groups)?, split_heads(cx, &v, groups)?);
    let (old_k, old_v) = (node.optional(3), node.optional(4));
    let (new, past) = (size_at(cx, &q, 2)?, past_size(cx, old_k)?);
    if node.int("do_rotary", 0) != 0 {
        let positions = match node.optional(9) {
            Some(given) => given.clone(),
            None => positions(cx, node.input(5)?, &new)?,
        };
        let tables = [node.input(7)?, node.input(8)?];
        // Tokens follow the cache, however their number is counted.
        if let Some(rows) = cx.shape(tables[0])?.first().and_then(Dim::as_constant) {
            cx.graph.limit(past.add(&new)?, rows);
        }
        let r = rotation(cx, tables, Some(&positions), node.int("rotary_interleaved", 0) != 0)?;
        (q, k) = (rotate(cx, &q, &r)?, rotate(cx, &k, &r)?);
    }
    let k = appended(cx, old_k, k)?;
    let v = appended(cx, old_v, v)?;
    let total = size_at(cx, &k, 2)?;
    // A window holds so many keys, the token's own among them: as ONNX Runtime counts from 1.21 on.
    let window = Some(node.int("local_window_size", -1)).filter(|n| *n > 0);
    let masks = vec![causal(cx, &new, &past, &total, window)?, valid(cx, node.input(5)?, &past, &total, &new)?];
    let scale = scale_of(cx, node, &q)?;
    let (cap, bias) = (node.float("softcap", 0.0), node.optional(10).cloned());
    let a = attend(cx, Attention { q, k: k.clone(), v: v.clone(), scale, cap, bias, masks })?;
    Ok(vec![join_heads(cx, &a.output)?, k, v])
}

/// Positions of new tokens: they follow the keys that a row has had, of which there are `last + 1 - new`.
fn positions(cx: &mut Context, last: &Value, new: &Dim) -> Result<Value> {
    let batch = plain::infer::product(&cx.shape(last)?)?;
    let last = reshape_to(cx, last, vec![batch, Dim::constant(1)])?;
    let before = Value::Sizes { shape: vec![], dims: vec![new.sub(&Dim::constant(1))?] };
    let first = cx.emit_public(TensorOp::Binary(Binary::Sub), &[&last, &before])?;
    let zero = Value::constant(Tensor::new(vec![], plain::Data::I64(vec![0]))?);
    let first = cx.emit_public(TensorOp::Binary(Binary::Max), &[&first, &zero])?;
    let steps = cx.emit_public(TensorOp::Iota { start: Dim::constant(0), len: new.clone(), step: 1 }, &[])?;
    cx.emit_public(TensorOp::Binary(Binary::Add), &[&first, &steps])
}

/// Keys that are no padding, `[batch, 1, 1, total]`, by the number `last` of keys less one: by the attention mask that it
/// was counted from, else a row's first ones of the past and of the new.
fn valid(cx: &mut Context, last: &Value, past: &Dim, total: &Dim, new: &Dim) -> Result<Value> {
    let batch = plain::infer::product(&cx.shape(last)?)?;
    if let Some(mask) = counted_mask(cx, last, total) {
        return key_mask(cx, &Value::Node(mask), &batch, total);
    }
    let binary = |op| TensorOp::Binary(op);
    let flat = reshape_to(cx, last, vec![batch])?;
    let first = positions(cx, &flat, new)?;
    let first = cx
        .emit_public(TensorOp::Slice { axis: 1, start: Dim::constant(0), len: Dim::constant(1), step: 1 }, &[&first])?;
    let old = before(cx, &first, total)?;
    let one = Value::constant(Tensor::new(vec![], plain::Data::I64(vec![1]))?);
    let count = cx.emit_public(binary(Binary::Add), &[&flat, &one])?;
    // With a past, all new tokens count; without one, as many as there are.
    let ends = before(cx, &count, total)?;
    let columns = cx.emit_public(TensorOp::Iota { start: Dim::constant(0), len: total.clone(), step: 1 }, &[])?;
    let border = Value::Sizes { shape: vec![], dims: vec![past.clone()] };
    let fresh = cx.emit_public(binary(Binary::GreaterOrEqual), &[&columns, &border])?;
    let zero = Value::constant(Tensor::new(vec![], plain::Data::I64(vec![0]))?);
    let cached = cx.emit_public(binary(Binary::Greater), &[&border, &zero])?;
    let counts = cx.emit_public(binary(Binary::Or), &[&cached, &ends])?;
    let fresh = cx.emit_public(binary(Binary::And), &[&fresh, &counts])?;
    cx.emit_public(binary(Binary::Or), &[&old, &fresh])
}

/// The attention mask `[batch, total]` of which `last` is the sum of every row less one.
fn counted_mask(cx: &Context, last: &Value, total: &Dim) -> Option<ValueId> {
    let Value::Node(id) = last else { return None };
    let skip = |mut id: ValueId| {
        while let Some(TensorOp::Identity | TensorOp::Cast { to: DType::I64 } | TensorOp::Reshape { .. }) =
            cx.graph.op(id).and_then(Op::tensor)
        {
            id = cx.graph.operand(id, 0)?;
        }
        Some(id)
    };
    let less = skip(*id)?;
    let Some(TensorOp::Binary(Binary::Sub)) = cx.graph.op(less).and_then(Op::tensor) else { return None };
    let one = cx.graph.constant(cx.graph.operand(less, 1)?)?.as_i64().ok()?;
    let sum = skip(cx.graph.operand(less, 0)?)?;
    let Some(TensorOp::Reduce { kind: Reduce::Sum, axes, .. }) = cx.graph.op(sum).and_then(Op::tensor) else {
        return None;
    };
    let mask = skip(cx.graph.operand(sum, 0)?)?;
    let is_mask = matches!(cx.graph.op(mask), Some(Op::Input { role: InputRole::AttentionMask, .. }));
    (one == [1] && axes == &[1] && is_mask && cx.graph.shape(mask).get(1) == Some(total)).then_some(mask)
}

/// `RotaryEmbedding`: x, positions or the first of them, cosines, sines.
pub fn rotary(cx: &mut Context, node: &Node) -> Result<Value> {
    let x = node.input(0)?;
    let tokens = size_at(cx, x, if cx.shape(x)?.len() == 4 { 2 } else { 1 })?;
    let given = node.input(1)?;
    let positions = match cx.shape(given)?.as_slice() {
        [_, _] => given.clone(),
        // One number: the position of the first token.
        _ => {
            let steps = TensorOp::Iota { start: Dim::constant(0), len: tokens, step: 1 };
            let steps = cx.emit_public(steps, &[])?;
            let all = cx.emit_public(TensorOp::Binary(Binary::Add), &[given, &steps])?;
            let len = size_at(cx, &all, 0)?;
            reshape_to(cx, &all, vec![Dim::constant(1), len])?
        }
    };
    let tables = [node.input(2)?, node.input(3)?];
    let r: Rotation = rotation(cx, tables, Some(&positions), node.int("interleaved", 0) != 0)?;
    let turned = rotated(cx, node, x, &r)?;
    match node.float("scale", 1.0) {
        1.0 => Ok(turned),
        factor => super::scaled(cx, turned, factor),
    }
}
