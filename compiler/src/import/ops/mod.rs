//! One function for each ONNX operator, by group.

mod activation;
pub mod attention;
mod create;
mod elementwise;
mod index;
mod linear;
mod microsoft;
mod movement;
mod norm;
mod rows;

use ombra_ir::{Diagnostic, Result};

pub(super) use movement::reshape_to;

use super::node::Node;
use super::{Context, Value};
use crate::onnx::is_default_domain;

/// The outputs of `node`. An operator may give fewer than the node names, when the others are unused.
pub fn import(cx: &mut Context, node: &Node) -> Result<Vec<Value>> {
    let op = node.proto.op_type.as_str();
    let domain = node.proto.domain.as_str();
    if domain == "com.microsoft" || matches!(op, "SimplifiedLayerNormalization" | "SkipSimplifiedLayerNormalization") {
        return microsoft::import(cx, node);
    }
    if !is_default_domain(domain) {
        return Err(unsupported(node));
    }
    let one = |value: Result<Value>| value.map(|v| vec![v]);
    match op {
        "Constant" => one(create::constant(cx, node)),
        "ConstantOfShape" => one(create::constant_of_shape(cx, node)),
        "Range" => one(create::range(cx, node)),
        "Shape" => one(create::shape(cx, node)),
        "Size" => one(create::size(cx, node)),
        "Identity" | "Dropout" => one(node.input(0).cloned()),
        "Cast" => one(movement::cast(cx, node)),
        "CastLike" => one(movement::cast_like(cx, node)),
        "Reshape" => one(movement::reshape(cx, node)),
        "Flatten" => one(movement::flatten(cx, node)),
        "Squeeze" => one(movement::squeeze(cx, node)),
        "Unsqueeze" => one(movement::unsqueeze(cx, node)),
        "Transpose" => one(movement::transpose(cx, node)),
        "Expand" => one(movement::expand(cx, node)),
        "Tile" => one(movement::tile(cx, node)),
        "Concat" => one(movement::concat(cx, node)),
        "Trilu" => one(movement::trilu(cx, node)),
        "Pad" => one(movement::pad(cx, node)),
        "Slice" => one(index::slice(cx, node)),
        "Split" => index::split(cx, node),
        "Gather" => one(index::gather(cx, node)),
        "GatherND" => one(index::gather_nd(cx, node)),
        "GatherElements" => one(index::gather_elements(cx, node)),
        "ScatterND" => one(index::scatter_nd(cx, node)),
        "MatMul" => one(linear::matmul(cx, node)),
        "Gemm" => one(linear::gemm(cx, node)),
        "Conv" => one(linear::patches(cx, node)),
        "Softmax" => one(norm::softmax(cx, node)),
        "LogSoftmax" => one(norm::log_softmax(cx, node)),
        "LayerNormalization" => norm::layer_norm(cx, node),
        "Attention" => attention::attention(cx, node),
        "RotaryEmbedding" => one(attention::rotary(cx, node)),
        "RMSNormalization" => one(norm::rms_norm(cx, node)),
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" => one(norm::reduce(cx, node)),
        "ArgMax" | "ArgMin" => one(norm::arg_max(cx, node)),
        "NonZero" => one(index::non_zero(cx, node)),
        "ReduceL2" => one(norm::reduce_l2(cx, node)),
        "CumSum" => one(norm::cum_sum(cx, node)),
        _ => {
            let value = elementwise::import(cx, node)?;
            let value = if value.is_none() { activation::import(cx, node)? } else { value };
            value.map(|v| vec![v]).ok_or_else(|| unsupported(node))
        }
    }
}

/// The error of an operator that is not imported.
fn unsupported(node: &Node) -> Diagnostic {
    let domain = if node.proto.domain.is_empty() { "ai.onnx" } else { &node.proto.domain };
    Diagnostic::unsupported("E0250", format!("operator {} of domain {domain} is not supported", node.proto.op_type))
        .note(format!("found in operator set {}", node.opset))
        .note("export the model with operators of the default domain, without fused operators")
}
