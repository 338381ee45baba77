//! Products of matrices.

use ombra_ir::plain::{Tensor, infer::matmul_shape, infer::product};
use ombra_ir::{Diagnostic, Dim, Result};

use super::movement::{reshape_to, transpose_by};
use crate::graph::{Op, TensorOp};
use crate::import::node::Node;
use crate::import::{Context, Value};

pub fn matmul(cx: &mut Context, node: &Node) -> Result<Value> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let (left, right) = (cx.shape(a)?, cx.shape(b)?);
    if left.len() != 1 && right.len() != 1 {
        return cx.emit(Op::MATMUL, &[a, b]);
    }
    // A vector is a row on the left and a column on the right, and that axis goes again.
    let shape = matmul_shape(&left, &right)?;
    let one = Dim::constant(1);
    let a = match left.as_slice() {
        [n] => reshape_to(cx, a, vec![one.clone(), n.clone()])?,
        _ => a.clone(),
    };
    let b = match right.as_slice() {
        [n] => reshape_to(cx, b, vec![n.clone(), one])?,
        _ => b.clone(),
    };
    let product = cx.emit(Op::MATMUL, &[&a, &b])?;
    reshape_to(cx, &product, shape)
}

pub fn gemm(cx: &mut Context, node: &Node) -> Result<Value> {
    let mut a = node.input(0)?.clone();
    let mut b = node.input(1)?.clone();
    if cx.shape(&a)?.len() != 2 || cx.shape(&b)?.len() != 2 {
        return Err(Diagnostic::input("E0251", "an operand of Gemm is no matrix"));
    }
    if node.int("transA", 0) != 0 {
        a = transpose_by(cx, &a, vec![1, 0])?;
    }
    if node.int("transB", 0) != 0 {
        b = transpose_by(cx, &b, vec![1, 0])?;
    }
    let product = cx.emit(Op::MATMUL, &[&a, &b])?;
    let product = scaled(cx, product, node.float("alpha", 1.0))?;
    match node.optional(2) {
        Some(bias) => {
            let bias = scaled(cx, bias.clone(), node.float("beta", 1.0))?;
            cx.emit(Op::ADD, &[&product, &bias])
        }
        None => Ok(product),
    }
}

/// A convolution whose windows lie side by side, such as the patches of an image: a product of every window with the
/// weights.
pub fn patches(cx: &mut Context, node: &Node) -> Result<Value> {
    let (x, weight) = (node.input(0)?, node.input(1)?);
    let (shape, kernel) = (cx.shape(x)?, cx.shape(weight)?);
    let ([batch, channels, space @ ..], [filters, depth, window @ ..]) = (shape.as_slice(), kernel.as_slice()) else {
        return Err(Diagnostic::input("E0251", "an operand of Conv has fewer than two axes"));
    };
    let known = |dims: &[Dim]| dims.iter().map(Dim::as_constant).collect::<Option<Vec<_>>>();
    let (sizes, window) = match (known(space), known(window)) {
        (Some(sizes), Some(window)) if sizes.len() == window.len() && window.iter().all(|k| *k > 0) => (sizes, window),
        _ => {
            return Err(Diagnostic::unsupported("E0254", "the size of what a Conv slides over is symbolic")
                .note("bind it with --dim"));
        }
    };
    let all = |name: &str, wanted: i64| node.ints(name).is_none_or(|list| list.iter().all(|v| *v == wanted));
    let strides = node.ints("strides").map_or_else(|| vec![1; window.len()], <[i64]>::to_vec);
    let unpadded = all("pads", 0) && matches!(node.text("auto_pad", "NOTSET").as_str(), "NOTSET" | "VALID");
    if strides != window || !unpadded || !all("dilations", 1) || node.int("group", 1) != 1 || channels != depth {
        return Err(Diagnostic::unsupported("E0251", "Conv whose windows overlap, are padded, dilated or grouped")
            .note(format!("expected strides equal to the kernel's sizes {window:?}, found {strides:?}"))
            .note("a convolution over patches of an image is supported, others are not"));
    }
    let mut x = x.clone();
    let mut apart = vec![batch.clone(), channels.clone()];
    let mut places = Vec::with_capacity(sizes.len());
    for (i, (size, k)) in sizes.iter().zip(&window).enumerate() {
        // What is left over at the end fills no window.
        let (axis, len) = (i + 2, Dim::constant(size - size % k));
        if size % k != 0 {
            x = cx.emit(Op::Tensor(TensorOp::Slice { axis, start: Dim::constant(0), len, step: 1 }), &[&x])?;
        }
        places.push(Dim::constant(size / k));
        apart.extend([Dim::constant(size / k), Dim::constant(*k)]);
    }
    let x = reshape_to(cx, &x, apart)?;
    // [batch, places…, channels, window…]
    let at = |i: usize| 2 + 2 * i;
    let n = sizes.len();
    let perm = [0].into_iter().chain((0..n).map(at)).chain([1]).chain((0..n).map(|i| at(i) + 1)).collect();
    let x = transpose_by(cx, &x, perm)?;
    let columns = product(kernel.get(1..).unwrap_or_default())?;
    let x = reshape_to(cx, &x, vec![batch.clone(), product(&places)?, columns.clone()])?;
    let weight = reshape_to(cx, weight, vec![filters.clone(), columns])?;
    let weight = transpose_by(cx, &weight, vec![1, 0])?;
    let mut y = cx.emit(Op::MATMUL, &[&x, &weight])?;
    if let Some(bias) = node.optional(2) {
        y = cx.emit(Op::ADD, &[&y, bias])?;
    }
    let y = transpose_by(cx, &y, vec![0, 2, 1])?;
    reshape_to(cx, &y, [batch.clone(), filters.clone()].into_iter().chain(places).collect())
}

/// `factor · value`.
pub fn scaled(cx: &mut Context, value: Value, factor: f32) -> Result<Value> {
    if factor == 1.0 {
        return Ok(value);
    }
    cx.emit(Op::MUL, &[&value, &Value::constant(Tensor::scalar_f32(factor))])
}
