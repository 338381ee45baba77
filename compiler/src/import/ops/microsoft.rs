//! ONNX Runtime's own operators, domain `com.microsoft`, brought to those of the graph.

use ombra_ir::{Diagnostic, Result};

use super::elementwise::swish;
use super::linear::scaled;
use super::movement::transpose_by;
use crate::graph::Op;
use crate::import::node::Node;
use crate::import::{Context, Value};

/// The outputs of `node`.
pub fn import(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let one = |value: Result<Value>| value.map(|v| vec![v]);
    match node.proto.op_type.as_str() {
        "QuickGelu" => one(swish(cx, node.input(0)?, node.float("alpha", 1.702))),
        "Gelu" => one(cx.emit(Op::Gelu { tanh: false }, &[node.input(0)?])),
        "FastGelu" => one(biased_gelu(cx, node, true)),
        "BiasGelu" => one(biased_gelu(cx, node, false)),
        "FusedMatMul" => one(fused_matmul(cx, node)),
        "SimplifiedLayerNormalization" => {
            let eps = node.float("epsilon", 1e-5);
            one(cx.emit(Op::RmsNorm { eps }, &[node.input(0)?, node.input(1)?]))
        }
        "SkipSimplifiedLayerNormalization" => {
            let sum = skip_sum(cx, node, 3)?;
            let eps = node.float("epsilon", 1e-12);
            let normed = cx.emit(Op::RmsNorm { eps }, &[&sum, node.input(2)?])?;
            Ok(with_sum(normed, sum))
        }
        "SkipLayerNormalization" => {
            let sum = skip_sum(cx, node, 4)?;
            let mut operands = vec![&sum, node.input(2)?];
            operands.extend(node.optional(3));
            let normed = cx.emit(Op::LayerNorm { eps: node.float("epsilon", 1e-12) }, &operands)?;
            Ok(with_sum(normed, sum))
        }
        _ => Err(super::unsupported(node)),
    }
}

/// The outputs of a norm that also gives its input, which is output 3; the two between are statistics for training.
fn with_sum(normed: Value, sum: Value) -> Vec<Value> {
    vec![normed.clone(), normed.clone(), normed, sum]
}

/// The sum of inputs 0 and 1 and, when it is there, the bias in `slot`.
fn skip_sum(cx: &mut Context, node: &Node, slot: usize) -> Result<Value> {
    if node.proto.output.iter().skip(1).take(2).any(|o| !o.is_empty()) {
        return Err(Diagnostic::unsupported("E0251", "statistics of a normalisation are used"));
    }
    let sum = cx.emit(Op::Add, &[node.input(0)?, node.input(1)?])?;
    match node.optional(slot) {
        Some(bias) => cx.emit(Op::Add, &[&sum, bias]),
        None => Ok(sum),
    }
}

fn biased_gelu(cx: &mut Context, node: &Node, tanh: bool) -> Result<Value> {
    let x = match node.optional(1) {
        Some(bias) => cx.emit(Op::Add, &[node.input(0)?, bias])?,
        None => node.input(0)?.clone(),
    };
    cx.emit(Op::Gelu { tanh }, &[&x])
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
    let product = cx.emit(Op::MatMul, &[a, b])?;
    scaled(cx, product, node.float("alpha", 1.0))
}
