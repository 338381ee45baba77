//! Products of matrices.

use ombra_ir::plain::{Tensor, infer::matmul_shape};
use ombra_ir::{Diagnostic, Dim, Result};

use super::movement::{reshape_to, transpose_by};
use crate::graph::Op;
use crate::import::node::Node;
use crate::import::{Context, Value};

pub fn matmul(cx: &mut Context, node: &Node) -> Result<Value> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let (left, right) = (cx.shape(a)?, cx.shape(b)?);
    if left.len() != 1 && right.len() != 1 {
        return cx.emit(Op::MatMul, &[a, b]);
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
    let product = cx.emit(Op::MatMul, &[&a, &b])?;
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
    let product = cx.emit(Op::MatMul, &[&a, &b])?;
    let product = scaled(cx, product, node.float("alpha", 1.0))?;
    match node.optional(2) {
        Some(bias) => {
            let bias = scaled(cx, bias.clone(), node.float("beta", 1.0))?;
            cx.emit(Op::Add, &[&product, &bias])
        }
        None => Ok(product),
    }
}

/// `factor · value`.
pub fn scaled(cx: &mut Context, value: Value, factor: f32) -> Result<Value> {
    if factor == 1.0 {
        return Ok(value);
    }
    cx.emit(Op::Mul, &[&value, &Value::constant(Tensor::scalar_f32(factor))])
}
