//! The typed graph as text, one node a line, for `--emit graph`.

use std::fmt::Write;

use ombra_ir::Dims;
use ombra_ir::plain;

use super::{Graph, Numerator, Op, ValueId};

/// Largest constant whose elements are printed.
const SHOWN_ELEMENTS: usize = 8;

/// The graph as text: nodes in topological order, then the outputs. The same graph gives the same text.
pub fn print(graph: &Graph) -> String {
    print_with(graph, &|_| None)
}

/// The same with a note after every value that has one.
pub fn print_with(graph: &Graph, note: &dyn Fn(ValueId) -> Option<String>) -> String {
    let mut out = String::from("graph {\n");
    for id in graph.topological() {
        let Ok(node) = graph.node(id) else { continue };
        let _ = write!(out, "  %{} = {}", id.index(), node.op.name());
        for (i, operand) in graph.operands(id).iter().enumerate() {
            let _ = write!(out, "{}%{}", if i == 0 { " " } else { ", " }, operand.index());
        }
        let attributes = attributes(&node.op, &graph.dims);
        if !attributes.is_empty() {
            let _ = write!(out, " {{{attributes}}}");
        }
        let shape = graph.dims.show_shape(&node.shape);
        let _ = write!(out, " : {}{shape} {}", node.dtype.name(), node.owner.name());
        let place = if node.origin.node.is_empty() { &node.origin.value } else { &node.origin.node };
        if !place.is_empty() {
            let _ = write!(out, " @ \"{}\"", place.escape_default());
        }
        if let Some(layer) = node.origin.layer {
            let _ = write!(out, " layer {layer}");
        }
        if let Some(note) = note(id) {
            let _ = write!(out, " ; {note}");
        }
        out.push('\n');
    }
    for output in &graph.outputs {
        let _ =
            writeln!(out, "  output %{} \"{}\" {:?}", output.value.index(), output.name.escape_default(), output.role);
    }
    out.push_str("}\n");
    out
}

fn attributes(op: &Op, dims: &Dims) -> String {
    match op {
        Op::Input { name, role } => format!("\"{}\" {}", name.escape_default(), role.name()),
        Op::Weight { name, transposed } => {
            format!("\"{}\"{}", name.escape_default(), if *transposed { " transposed" } else { "" })
        }
        Op::Pow(exponent) => format!("exponent = {exponent:?}"),
        Op::Gelu { tanh } => format!("tanh = {tanh}"),
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } => format!("axis = {axis}"),
        Op::RatioSoftmax { axis, numerator, eps } => {
            let form = match numerator {
                Numerator::Relu => "relu".to_owned(),
                Numerator::Square { shift } => format!("square, shift = {shift:?}"),
            };
            format!("axis = {axis}, numerator = {form}, eps = {eps:?}")
        }
        Op::Quadratic { square, linear, constant } => {
            format!("square = {square:?}, linear = {linear:?}, constant = {constant:?}")
        }
        Op::AffineNorm { centred } => format!("centred = {centred}"),
        Op::RmsNorm { eps } | Op::LayerNorm { eps } => format!("eps = {eps:?}"),
        Op::Tensor(op) => tensor_attributes(op, dims),
        Op::Relu | Op::Silu | Op::Softplus | Op::Clamp { .. } => String::new(),
    }
}

/// The attributes of a tensor operator, as text.
fn tensor_attributes(op: &plain::Op, dims: &Dims) -> String {
    match op {
        plain::Op::Constant(t) if t.len() <= SHOWN_ELEMENTS => match t.data() {
            plain::Data::F32(v) => format!("{v:?}"),
            plain::Data::I64(v) => format!("{v:?}"),
            plain::Data::Bool(v) => format!("{v:?}"),
        },
        plain::Op::Constant(_) => "…".into(),
        plain::Op::Sizes { values, .. } => dims.show_shape(values),
        plain::Op::Iota { start, step, .. } => format!("start = {}, step = {step}", dims.show(start)),
        plain::Op::ConstantOfShape { value, .. } => tensor_attributes(&plain::Op::Constant(value.clone()), dims),
        plain::Op::Transpose { perm } => format!("perm = {perm:?}"),
        plain::Op::Concat { axis } | plain::Op::Gather { axis } | plain::Op::GatherElements { axis } => {
            format!("axis = {axis}")
        }
        plain::Op::Slice { axis, start, len, step } => {
            format!("axis = {axis}, start = {}, len = {}, step = {step}", dims.show(start), dims.show(len))
        }
        plain::Op::Tile { repeats } => format!("repeats = {}", dims.show_shape(repeats)),
        plain::Op::Trilu { upper, k } => format!("upper = {upper}, k = {k}"),
        plain::Op::GatherNd { batch_dims } => format!("batch_dims = {batch_dims}"),
        plain::Op::CumSum { axis, exclusive, reverse } => {
            format!("axis = {axis}, exclusive = {exclusive}, reverse = {reverse}")
        }
        plain::Op::Reduce { axes, keepdims, .. } => format!("axes = {axes:?}, keepdims = {keepdims}"),
        plain::Op::Range
        | plain::Op::ArgMax
        | plain::Op::Identity
        | plain::Op::Cast { .. }
        | plain::Op::Reshape { .. }
        | plain::Op::Expand { .. }
        | plain::Op::ScatterNd
        | plain::Op::Unary(_)
        | plain::Op::Binary(_)
        | plain::Op::Where
        | plain::Op::Clip
        | plain::Op::MatMul => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use ombra_ir::Dim;
    use ombra_ir::plain::{DType, Type};

    use super::*;
    use crate::graph::{InputRole, Origin, Output, OutputRole};

    #[test]
    fn prints_one_node_a_line() {
        let mut g = Graph::new();
        let seq = Dim::from(g.dims.symbol("seq").unwrap());
        let x =
            g.add_input("x", InputRole::Other, Type::new(DType::F32, vec![seq, Dim::constant(4)]), Origin::default());
        let w = g.add_weight("w", true, vec![Dim::constant(4), Dim::constant(3)], Origin::default());
        let origin = Origin { value: "y".into(), node: "/model/layers.2/fc".into(), layer: Some(2) };
        let y = g.add(Op::MATMUL, &[x, w], origin).unwrap();
        g.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: y });
        let expected = "graph {\n  %0 = input {\"x\" other} : f32[seq, 4] client\n  %1 = weight {\"w\" transposed} : f32[4, 3] server\n  %2 = matmul %0, %1 : f32[seq, 3] secret @ \"/model/layers.2/fc\" layer 2\n  output %2 \"y\" Other\n}\n";
        assert_eq!(print(&g), expected);
    }
}
