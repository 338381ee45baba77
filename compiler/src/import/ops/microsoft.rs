//! ONNX Runtime's own operators, domain `com.microsoft`, brought to those of the graph. Those with a sum inside were taken
//! apart when the model was read.

mod attention;

use ombra_ir::plain;
use ombra_ir::{Diagnostic, Dim, Result};

use super::elementwise::swish;
use super::linear::scaled;
use super::movement::transpose_by;
use crate::graph::{Op, TensorOp};
use crate::import::node::Node;
use crate::import::{Context, Value};

/// The outputs of `node`.
pub fn import(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let one = |value: Result<Value>| value.map(|v| vec![v]);
    match node.proto.op_type.as_str() {
        "QuickGelu" => one(swish(cx, node.input(0)?, node.float("alpha", 1.702))),
        "Gelu" => one(cx.emit(Op::Gelu { tanh: false }, &[node.input(0)?])),
        "FastGelu" => one(cx.emit(Op::Gelu { tanh: true }, &[node.input(0)?])),
        "FusedMatMul" => one(fused_matmul(cx, node)),
        "FusedGemm" => one(fused_gemm(cx, node)),
        "BiasAdd" => {
            let sum = cx.emit(Op::ADD, &[node.input(0)?, node.input(1)?])?;
            one(cx.emit(Op::ADD, &[&sum, node.input(2)?]))
        }
        "EmbedLayerNormalization" => embed_layer_norm(cx, node),
        "Attention" => attention::packed(cx, node),
        "MultiHeadAttention" => attention::multi_head(cx, node),
        "GroupQueryAttention" => attention::grouped(cx, node),
        "RotaryEmbedding" => one(attention::rotary(cx, node)),
        "SimplifiedLayerNormalization" => {
            let eps = node.float("epsilon", 1e-5);
            one(cx.emit(Op::RmsNorm { eps }, &[node.input(0)?, node.input(1)?]))
        }
        _ => Err(super::unsupported(node)),
    }
}

/// The sum of embeddings of tokens, positions and segments, normed: ids, segments, three tables, scale and shift, mask,
/// positions. Output 1 is how many tokens every row has, output 2 the sum.
fn embed_layer_norm(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let ids = node.input(0)?;
    let shape = cx.shape(ids)?;
    let [batch, tokens] = shape.as_slice() else {
        return Err(Diagnostic::input("E0251", format!("token ids have {} axes, not 2", shape.len())));
    };
    let rows = Op::Tensor(TensorOp::Gather { axis: 0 });
    let words = cx.emit(rows.clone(), &[node.input(2)?, ids])?;
    let positions = match node.optional(8) {
        Some(given) => given.clone(),
        None => {
            let (start, len) = (Dim::constant(0), tokens.clone());
            cx.emit_public(TensorOp::Iota { start, len, step: 1 }, &[])?
        }
    };
    let places = cx.emit(rows.clone(), &[node.input(3)?, &positions])?;
    let mut sum = cx.emit(Op::ADD, &[&words, &places])?;
    if let (Some(segments), Some(table)) = (node.optional(1), node.optional(4)) {
        let segments = cx.emit(rows, &[table, segments])?;
        sum = cx.emit(Op::ADD, &[&sum, &segments])?;
    }
    let eps = node.float("epsilon", 1e-12);
    let normed = cx.emit(Op::LayerNorm { eps }, &[&sum, node.input(5)?, node.input(6)?])?;
    let lengths = match node.optional(7) {
        Some(mask) => {
            let axes = vec![1];
            cx.emit_public(TensorOp::Reduce { kind: plain::Reduce::Sum, axes, keepdims: false }, &[mask])?
        }
        // Without a mask ONNX Runtime says 0 for every row, and nothing may use it.
        None => {
            let (shape, value) = (vec![batch.clone()], plain::Tensor::i64(&[1], vec![0])?);
            cx.emit_public(TensorOp::ConstantOfShape { shape, value }, &[])?
        }
    };
    Ok(vec![normed, lengths, sum])
}

/// A Gemm with an activation behind it.
fn fused_gemm(cx: &mut Context, node: &Node) -> Result<Value> {
    let sum = super::linear::gemm(cx, node)?;
    let op = match node.text("activation", "").as_str() {
        "" => return Ok(sum),
        "Relu" => Op::Relu,
        "Tanh" => Op::TANH,
        "Sigmoid" => Op::SIGMOID,
        other => return Err(Diagnostic::unsupported("E0251", format!("FusedGemm with activation `{other}`"))),
    };
    cx.emit(op, &[&sum])
}

fn fused_matmul(cx: &mut Context, node: &Node) -> Result<Value> {
    let mut operands = [node.input(0)?.clone(), node.input(1)?.clone()];
    for (operand, side) in operands.iter_mut().zip(["A", "B"]) {
        if node.int(&format!("transBatch{side}"), 0) != 0 {
            return Err(Diagnostic::unsupported("E0251", format!("FusedMatMul with transBatch{side}")));
        }
        if node.int(&format!("trans{side}"), 0) != 0 {
            let rank = cx.shape(operand)?.len();
            if rank >= 2 {
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(rank - 2, rank - 1);
                *operand = transpose_by(cx, operand, perm)?;
            }
        }
    }
    let [a, b] = &operands;
    let product = cx.emit(Op::MATMUL, &[a, b])?;
    scaled(cx, product, node.float("alpha", 1.0))
}
