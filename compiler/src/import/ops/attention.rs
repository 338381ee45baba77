//! Attention and rotary embeddings as one operator, brought to the products, masks and softmax that exporters write out.
//!
//! What every operator of this kind comes down to is [`attend`] on heads of four axes, and [`rotate`] by public angles.
//! Grouped heads repeat keys and values as exporters do; masks become public booleans of a masked softmax.

use ombra_ir::plain::{self, Binary, DType, Tensor};
use ombra_ir::{Diagnostic, Dim, Result};

use super::linear::scaled;
use super::movement::{reshape_to, transpose_by};
use crate::graph::{Op, Owner, TensorOp};
use crate::import::node::Node;
use crate::import::{Context, Value};

/// The use of a weight as cosines and sines of positions.
pub const ROTARY: &str = "rotary embedding";

/// An attention on `q [batch, heads, new, size]`, `k [batch, groups, total, size]` and `v [batch, groups, total, width]`.
pub struct Attention {
    /// Queries.
    pub q: Value,
    /// Keys, the cached ones first.
    pub k: Value,
    /// Values, the cached ones first.
    pub v: Value,
    /// Factor of the products.
    pub scale: f32,
    /// Scores are `cap · tanh(score / cap)` when this is not 0.
    pub cap: f32,
    /// Floats that are added to the scores.
    pub bias: Option<Value>,
    /// Booleans: where they hold, keys count. All must hold.
    pub masks: Vec<Value>,
}

/// What an attention computes on the way.
pub struct Attended {
    /// `[batch, heads, new, width]`.
    pub output: Value,
    /// Scores before anything is added.
    pub products: Value,
    /// Scores after the cap.
    pub capped: Value,
    /// The softmax.
    pub weights: Value,
}

/// The operators of an attention.
pub fn attend(cx: &mut Context, a: Attention) -> Result<Attended> {
    let heads = size_at(cx, &a.q, 1)?;
    let k = repeated(cx, &a.k, &heads)?;
    let v = repeated(cx, &a.v, &heads)?;
    let kt = transpose_by(cx, &k, vec![0, 1, 3, 2])?;
    let products = cx.emit(Op::MATMUL, &[&a.q, &kt])?;
    let products = scaled(cx, products, a.scale)?;
    let capped = capped(cx, &products, a.cap)?;
    let scores = match &a.bias {
        Some(bias) => cx.emit(Op::ADD, &[&capped, bias])?,
        None => capped.clone(),
    };
    let mut masks = a.masks.into_iter();
    let mask = masks.next().map(|first| {
        let and = TensorOp::Binary(Binary::And);
        masks.try_fold(first, |all, next| cx.emit_public(and.clone(), &[&all, &next]))
    });
    let weights = match mask.transpose()? {
        Some(mask) => cx.emit(Op::MaskedSoftmax { axis: 3 }, &[&scores, &mask])?,
        None => cx.emit(Op::Softmax { axis: 3 }, &[&scores])?,
    };
    let output = cx.emit(Op::MATMUL, &[&weights, &v])?;
    Ok(Attended { output, products, capped, weights })
}

/// `cap · tanh(x / cap)`; `x` itself for a cap of 0.
fn capped(cx: &mut Context, x: &Value, cap: f32) -> Result<Value> {
    if cap == 0.0 {
        return Ok(x.clone());
    }
    let small = scaled(cx, x.clone(), 1.0 / cap)?;
    let bent = cx.emit(Op::TANH, &[&small])?;
    scaled(cx, bent, cap)
}

/// The size of an axis.
pub fn size_at(cx: &Context, x: &Value, axis: usize) -> Result<Dim> {
    let shape = cx.shape(x)?;
    let found = shape.len();
    shape.into_iter().nth(axis).ok_or_else(|| Diagnostic::input("E0251", format!("an operand has {found} axes")))
}

/// An axis of a known size.
pub fn fixed_size(cx: &Context, x: &Value, axis: usize, what: &str) -> Result<i64> {
    let size = size_at(cx, x, axis)?;
    size.as_constant().ok_or_else(|| {
        Diagnostic::unsupported("E0254", format!("{what} depends on a symbolic size, `{}`", cx.graph.dims.show(&size)))
            .note("bind the size with --dim")
    })
}

/// `x [batch, groups, total, size]` with every group repeated, one copy after another, to `heads`.
fn repeated(cx: &mut Context, x: &Value, heads: &Dim) -> Result<Value> {
    let shape = cx.shape(x)?;
    let [batch, groups, total, size] = shape.as_slice() else {
        return Err(Diagnostic::input("E0251", format!("keys or values have {} axes, not 4", shape.len())));
    };
    if groups == heads {
        return Ok(x.clone());
    }
    let copies = heads.div_exact(groups).map_err(|_| {
        let (heads, groups) = (cx.graph.dims.show(heads), cx.graph.dims.show(groups));
        Diagnostic::input("E0251", format!("{heads} heads of queries share {groups} heads of keys"))
            .note("expected a multiple")
    })?;
    let one = Dim::constant(1);
    let apart = vec![batch.clone(), groups.clone(), one, total.clone(), size.clone()];
    let all = vec![batch.clone(), groups.clone(), copies, total.clone(), size.clone()];
    let joined = vec![batch.clone(), heads.clone(), total.clone(), size.clone()];
    let apart = reshape_to(cx, x, apart)?;
    let all = cx.emit(Op::Tensor(TensorOp::Expand { shape: all }), &[&apart])?;
    reshape_to(cx, &all, joined)
}

/// `x [batch, tokens, heads · size]` as `[batch, heads, tokens, size]`.
pub fn split_heads(cx: &mut Context, x: &Value, heads: i64) -> Result<Value> {
    let shape = cx.shape(x)?;
    let [batch, tokens, width] = shape.as_slice() else {
        return Err(Diagnostic::input("E0251", format!("heads are split off {} axes, not 3", shape.len())));
    };
    if heads < 1 {
        return Err(Diagnostic::input("E0251", format!("{heads} heads")).note("expected a number of heads"));
    }
    let size = width.div_exact(&Dim::constant(heads))?;
    let shape = vec![batch.clone(), tokens.clone(), Dim::constant(heads), size];
    let apart = reshape_to(cx, x, shape)?;
    transpose_by(cx, &apart, vec![0, 2, 1, 3])
}

/// `x [batch, heads, tokens, size]` as `[batch, tokens, heads · size]`.
pub fn join_heads(cx: &mut Context, x: &Value) -> Result<Value> {
    let turned = transpose_by(cx, x, vec![0, 2, 1, 3])?;
    let shape = cx.shape(&turned)?;
    let [batch, tokens, heads, size] = shape.as_slice() else {
        return Err(Diagnostic::input("E0251", format!("heads are joined from {} axes, not 4", shape.len())));
    };
    reshape_to(cx, &turned, vec![batch.clone(), tokens.clone(), heads.mul(size)?])
}

/// `past` with `new` behind it along the axis of tokens; `new` without a past. A size of the past's heads that is a name
/// of its own is noted to be that of `new`.
pub fn appended(cx: &mut Context, past: Option<&Value>, new: Value) -> Result<Value> {
    let Some(past) = past else { return Ok(new) };
    let (old, fresh) = (cx.shape(past)?, cx.shape(&new)?);
    for (axis, (a, b)) in old.iter().zip(&fresh).enumerate() {
        if axis != 2 {
            cx.must_equal(a, b);
        }
    }
    cx.emit(Op::Tensor(TensorOp::Concat { axis: 2 }), &[past, &new])
}

/// Which of `total` keys each of `new` tokens may see when `past` stand before them: `[new, total]`. With a `window` only
/// so many of the last, itself among them.
pub fn causal(cx: &mut Context, new: &Dim, past: &Dim, total: &Dim, window: Option<i64>) -> Result<Value> {
    let iota = |start: &Dim, len: &Dim| TensorOp::Iota { start: start.clone(), len: len.clone(), step: 1 };
    let rows = cx.emit_public(iota(past, new), &[])?;
    let rows = reshape_to(cx, &rows, vec![new.clone(), Dim::constant(1)])?;
    let columns = cx.emit_public(iota(&Dim::constant(0), total), &[])?;
    let seen = cx.emit_public(TensorOp::Binary(Binary::LessOrEqual), &[&columns, &rows])?;
    let Some(window) = window else { return Ok(seen) };
    let window = Value::constant(Tensor::new(vec![], plain::Data::I64(vec![window]))?);
    let first = cx.emit_public(TensorOp::Binary(Binary::Sub), &[&rows, &window])?;
    let near = cx.emit_public(TensorOp::Binary(Binary::Greater), &[&columns, &first])?;
    cx.emit_public(TensorOp::Binary(Binary::And), &[&seen, &near])
}

/// The keys before the number of them that `lengths [batch]` says for every row: `[batch, 1, 1, total]`.
pub fn before(cx: &mut Context, lengths: &Value, total: &Dim) -> Result<Value> {
    let one = Dim::constant(1);
    let batch = plain::infer::product(&cx.shape(lengths)?)?;
    let lengths = reshape_to(cx, lengths, vec![batch, one.clone(), one.clone(), one])?;
    let columns = TensorOp::Iota { start: Dim::constant(0), len: total.clone(), step: 1 };
    let columns = cx.emit_public(columns, &[])?;
    cx.emit_public(TensorOp::Binary(Binary::Less), &[&columns, &lengths])
}

/// The booleans of a mask of 0 and others.
pub fn truth(cx: &mut Context, mask: &Value) -> Result<Value> {
    match cx.ty(mask)?.dtype {
        DType::Bool => Ok(mask.clone()),
        _ => cx.emit_public(TensorOp::Cast { to: DType::Bool }, &[mask]),
    }
}

/// How pairs of numbers are rotated.
pub struct Rotation {
    /// Cosines, of a shape that broadcasts to `[batch, heads, tokens, pairs]`.
    pub cos: Value,
    /// Sines, of the same shape.
    pub sin: Value,
    /// Pairs are neighbours; otherwise halves.
    pub interleaved: bool,
}

/// `x [batch, heads, tokens, size]` with the first `2 · pairs` numbers of every head rotated.
pub fn rotate(cx: &mut Context, x: &Value, r: &Rotation) -> Result<Value> {
    let pairs = fixed_size(cx, &r.cos, cx.shape(&r.cos)?.len().saturating_sub(1), "the number of rotated pairs")?;
    let size = fixed_size(cx, x, 3, "the size of a head")?;
    let turned = pairs.checked_mul(2).filter(|t| (1..=size).contains(t)).ok_or_else(|| {
        Diagnostic::input("E0251", format!("{pairs} cosines for heads of {size}")).note("expected at most half as many")
    })?;
    let part = |cx: &mut Context, x: &Value, axis: usize, start: i64, len: i64| {
        let (start, len) = (Dim::constant(start), Dim::constant(len));
        cx.emit(Op::Tensor(TensorOp::Slice { axis, start, len, step: 1 }), &[x])
    };
    let head = if turned == size { x.clone() } else { part(cx, x, 3, 0, turned)? };
    let (quarter, cos, sin) = if r.interleaved {
        let mut shape = cx.shape(&head)?;
        let whole = shape.clone();
        shape.pop();
        shape.extend([Dim::constant(pairs), Dim::constant(2)]);
        let apart = reshape_to(cx, &head, shape)?;
        let (a, b) = (part(cx, &apart, 4, 0, 1)?, part(cx, &apart, 4, 1, 1)?);
        let b = cx.emit(Op::NEG, &[&b])?;
        let both = cx.emit(Op::Tensor(TensorOp::Concat { axis: 4 }), &[&b, &a])?;
        (reshape_to(cx, &both, whole)?, doubled(cx, &r.cos, true)?, doubled(cx, &r.sin, true)?)
    } else {
        let (a, b) = (part(cx, &head, 3, 0, pairs)?, part(cx, &head, 3, pairs, pairs)?);
        let b = cx.emit(Op::NEG, &[&b])?;
        let both = cx.emit(Op::Tensor(TensorOp::Concat { axis: 3 }), &[&b, &a])?;
        (both, doubled(cx, &r.cos, false)?, doubled(cx, &r.sin, false)?)
    };
    let along = cx.emit(Op::MUL, &[&head, &cos])?;
    let across = cx.emit(Op::MUL, &[&quarter, &sin])?;
    let rotated = cx.emit(Op::ADD, &[&along, &across])?;
    if turned == size {
        return Ok(rotated);
    }
    let rest = part(cx, x, 3, turned, size - turned)?;
    cx.emit(Op::Tensor(TensorOp::Concat { axis: 3 }), &[&rotated, &rest])
}

/// Every number of the last axis twice: `interleaved` one after another, else the whole axis again.
fn doubled(cx: &mut Context, angles: &Value, interleaved: bool) -> Result<Value> {
    let shape = cx.shape(angles)?;
    let last = shape.len().saturating_sub(1);
    if !interleaved {
        return cx.emit(Op::Tensor(TensorOp::Concat { axis: last }), &[angles, angles]);
    }
    let (mut apart, mut whole) = (shape.clone(), shape);
    apart.push(Dim::constant(1));
    if let Some(size) = whole.last_mut() {
        *size = size.mul(&Dim::constant(2))?;
    }
    let apart = reshape_to(cx, angles, apart)?;
    let both = cx.emit(Op::Tensor(TensorOp::Concat { axis: last + 1 }), &[&apart, &apart])?;
    reshape_to(cx, &both, whole)
}

/// The rotation that tables `cos` and `sin` give at `positions`: rows of `[max, pairs]`, or without positions
/// `[batch, tokens, pairs]` as they are. Tables that are weights are put in the clear: they say nothing but positions.
pub fn rotation(
    cx: &mut Context,
    tables: [&Value; 2],
    positions: Option<&Value>,
    interleaved: bool,
) -> Result<Rotation> {
    let private = tables.iter().any(|table| cx.owner(table) == Owner::Server);
    let mut angles = Vec::with_capacity(2);
    for table in tables {
        angles.push(cx.public_table(table, ROTARY)?);
    }
    if let [Value::Const { tensor: cos, .. }, Value::Const { tensor: sin, .. }] = angles.as_slice()
        && private
        && !are_angles(cos, sin)
    {
        return Err(Diagnostic::unsupported("E0251", "the tables of a rotary embedding are not cosines and sines")
            .note("expected pairs whose squares add up to one number")
            .note("they would become public"));
    }
    for angle in &mut angles {
        if let Some(positions) = positions {
            *angle = cx.emit(Op::Tensor(TensorOp::Gather { axis: 0 }), &[angle, positions])?;
        }
        let mut shape = cx.shape(angle)?;
        if shape.len() != 3 {
            return Err(Diagnostic::input("E0251", format!("angles have {} axes, not 3", shape.len()))
                .note("expected [batch, tokens, pairs]"));
        }
        shape.insert(1, Dim::constant(1));
        *angle = reshape_to(cx, angle, shape)?;
    }
    let sin = angles.pop().ok_or_else(|| Diagnostic::internal("E0299", "no sines"))?;
    let cos = angles.pop().ok_or_else(|| Diagnostic::internal("E0299", "no cosines"))?;
    Ok(Rotation { cos, sin, interleaved })
}

/// Whether squares of `cos` and `sin` add up to one number, as for angles, scaled or not.
pub fn are_angles(cos: &Tensor, sin: &Tensor) -> bool {
    let (Ok(a), Ok(b)) = (cos.as_f32(), sin.as_f32()) else { return false };
    let mut sums = a.iter().zip(b).map(|(a, b)| a * a + b * b);
    let Some(first) = sums.next() else { return a.len() == b.len() };
    // Tables may have been rounded to half precision.
    a.len() == b.len() && first > 0.0 && sums.all(|s| (s - first).abs() <= 4e-3 * first)
}

/// ONNX's `RotaryEmbedding`, from operator set 23: x, cos, sin, positions.
pub fn rotary(cx: &mut Context, node: &Node) -> Result<Value> {
    let r = rotation(cx, [node.input(1)?, node.input(2)?], node.optional(3), node.int("interleaved", 0) != 0)?;
    rotated(cx, node, node.input(0)?, &r)
}

/// `x` rotated, whatever its form: `[batch, heads, tokens, size]` or `[batch, tokens, heads · size]`.
pub fn rotated(cx: &mut Context, node: &Node, x: &Value, r: &Rotation) -> Result<Value> {
    let pairs = size_at(cx, &r.cos, 3)?;
    let wanted = node.int("rotary_embedding_dim", 0);
    if wanted != 0 && pairs.as_constant().and_then(|p| p.checked_mul(2)) != Some(wanted) {
        let found = cx.graph.dims.show(&pairs);
        return Err(Diagnostic::input("E0251", format!("{wanted} numbers are to be rotated by {found} angles")));
    }
    if cx.shape(x)?.len() == 4 {
        return rotate(cx, x, r);
    }
    // Without a number of heads the angles say the size of one.
    let heads = match node.int("num_heads", 0) {
        0 => {
            let width = fixed_size(cx, x, 2, "the width")?;
            let size = fixed_size(cx, &r.cos, 3, "the number of angles")?.saturating_mul(2);
            width.checked_div(size).unwrap_or(0)
        }
        given => given,
    };
    let apart = split_heads(cx, x, heads)?;
    let turned = rotate(cx, &apart, r)?;
    join_heads(cx, &turned)
}

/// ONNX's `Attention`, from operator set 23: q, k, v, mask, past key, past value, and from 24 the numbers of keys.
pub fn attention(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let mut qkv = [node.input(0)?.clone(), node.input(1)?.clone(), node.input(2)?.clone()];
    let flat = cx.shape(&qkv[0])?.len() == 3;
    if flat {
        for (x, name) in qkv.iter_mut().zip(["q_num_heads", "kv_num_heads", "kv_num_heads"]) {
            *x = split_heads(cx, x, node.int(name, 0))?;
        }
    }
    let [q, k, v] = qkv;
    let k = appended(cx, node.optional(4), k)?;
    let v = appended(cx, node.optional(5), v)?;
    let (new, total) = (size_at(cx, &q, 2)?, size_at(cx, &k, 2)?);
    let past = match node.optional(4) {
        Some(past) => size_at(cx, past, 2)?,
        None => Dim::constant(0),
    };
    let (mut masks, mut bias) = (Vec::new(), None);
    if let Some(mask) = node.optional(3) {
        let mask = padded_mask(cx, mask, &total)?;
        match cx.ty(&mask)?.dtype {
            DType::Bool => masks.push(mask),
            _ => bias = Some(mask),
        }
    }
    if node.int("is_causal", 0) != 0 {
        masks.push(causal(cx, &new, &past, &total, None)?);
    }
    if let Some(lengths) = node.optional(6) {
        masks.push(before(cx, lengths, &total)?);
    }
    let size = fixed_size(cx, &q, 3, "the size of a head")?;
    let scale = if node.has("scale") { node.float("scale", 1.0) } else { 1.0 / (size as f32).sqrt() };
    let cap = node.float("softcap", 0.0);
    let a =
        attend(cx, Attention { q, k: k.clone(), v: v.clone(), scale, cap, bias: bias.clone(), masks: masks.clone() })?;
    let output = if flat { join_heads(cx, &a.output)? } else { a.output.clone() };
    let mut outputs = vec![output, k, v];
    if node.proto.output.get(3).is_some_and(|name| !name.is_empty()) {
        outputs.push(inner_result(cx, node.int("qk_matmul_output_mode", 0), a, bias, masks)?);
    }
    Ok(outputs)
}

/// Output 3 of an attention: scores raw or capped, with the masks added, or the softmax.
fn inner_result(cx: &mut Context, mode: i64, a: Attended, bias: Option<Value>, masks: Vec<Value>) -> Result<Value> {
    match mode {
        0 | 1 => Ok(a.capped),
        2 => {
            let mut scores = match bias {
                Some(bias) => cx.emit(Op::ADD, &[&a.capped, &bias])?,
                None => a.capped,
            };
            let low = Value::constant(Tensor::scalar_f32(f32::NEG_INFINITY));
            for mask in masks {
                scores = cx.emit(Op::WHERE, &[&mask, &scores, &low])?;
            }
            Ok(scores)
        }
        3 => Ok(a.weights),
        other => Err(Diagnostic::input("E0251", format!("an attention's inner result of mode {other}"))
            .note("expected 0, 1, 2 or 3")),
    }
}

/// A mask whose last axis is shorter than the keys, filled with what masks them out.
fn padded_mask(cx: &mut Context, mask: &Value, total: &Dim) -> Result<Value> {
    let shape = cx.shape(mask)?;
    let last = shape.len().saturating_sub(1);
    let Some(have) = shape.get(last).filter(|have| *have != total) else { return Ok(mask.clone()) };
    let missing = total.sub(have)?;
    if cx.graph.dims.lower(&missing).is_none_or(|least| least < 0) || cx.owner(mask) == Owner::Secret {
        return Ok(mask.clone());
    }
    let mut shape = shape;
    if let Some(size) = shape.get_mut(last) {
        *size = missing;
    }
    let value = match cx.ty(mask)?.dtype {
        DType::Bool => Tensor::bool(&[1], vec![false])?,
        _ => Tensor::f32(&[1], vec![f32::NEG_INFINITY])?,
    };
    let fill = cx.emit_public(TensorOp::ConstantOfShape { shape, value }, &[])?;
    cx.emit(Op::Tensor(TensorOp::Concat { axis: last }), &[mask, &fill])
}
