//! Fused operators that hold a sum and something behind it, taken apart when a model is read.
//!
//! The sum is a value that others use: the residual of a block, what a private bias is added to. Its owner may differ from
//! that of the whole, and the client's part of a model may end there, so it has to be a value of the model with a name.

use std::collections::HashSet;

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, attribute_proto};

use super::attribute;

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Takes the nodes of `graph` and its subgraphs apart. `used` holds all names of values, and gets those of the sums.
pub(crate) fn split(graph: &mut GraphProto, used: &mut HashSet<String>) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for attribute in &mut node.attribute {
            attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).for_each(|inner| split(inner, used));
        }
        match node.op_type.as_str() {
            "SkipLayerNormalization" if plain(&node) => norm(node, "LayerNormalization", 4, used, &mut nodes),
            "SkipSimplifiedLayerNormalization" if plain(&node) => {
                norm(node, "SimplifiedLayerNormalization", 3, used, &mut nodes);
            }
            "BiasGelu" | "FastGelu" if node.domain == MICROSOFT => gelu(node, used, &mut nodes),
            _ => nodes.push(node),
        }
    }
    graph.node = nodes;
}

/// Input `i` of `node`, unless it is left out.
fn input(node: &NodeProto, i: usize) -> Option<String> {
    node.input.get(i).filter(|name| !name.is_empty()).cloned()
}

/// Whether nothing uses the statistics of a normalisation.
fn plain(node: &NodeProto) -> bool {
    node.output.iter().skip(1).take(2).all(String::is_empty)
}

/// A name for a value on the way to the first output of `node`.
fn name(node: &NodeProto, used: &mut HashSet<String>) -> String {
    let output = node.output.first().map_or("", String::as_str);
    let mut name = format!("{output}/sum");
    while used.contains(&name) {
        name.push('_');
    }
    used.insert(name.clone());
    name
}

/// `output = op(inputs)` in the place of `like`.
pub(super) fn step(like: &NodeProto, op: &str, inputs: Vec<String>, output: String) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: like.name.clone(),
        input: inputs,
        output: vec![output],
        metadata_props: like.metadata_props.clone(),
        ..NodeProto::default()
    }
}

/// The norm of the sum of inputs 0, 1 and `bias`, with the scale in input 2 and a shift in input 3 if `bias` is behind it.
/// Output 3 is the sum.
fn norm(node: NodeProto, op: &str, bias: usize, used: &mut HashSet<String>, nodes: &mut Vec<NodeProto>) {
    let sum = node.output.get(3).filter(|o| !o.is_empty()).cloned().unwrap_or_else(|| name(&node, used));
    let both = [input(&node, 0).unwrap_or_default(), input(&node, 1).unwrap_or_default()];
    match input(&node, bias) {
        Some(bias) => {
            let first = name(&node, used);
            nodes.push(step(&node, "Add", both.to_vec(), first.clone()));
            nodes.push(step(&node, "Add", vec![first, bias], sum.clone()));
        }
        None => nodes.push(step(&node, "Add", both.to_vec(), sum.clone())),
    }
    let Some(output) = node.output.first().filter(|o| !o.is_empty()).cloned() else { return };
    let parameters = node.input.iter().take(bias).skip(2).filter(|name| !name.is_empty()).cloned();
    let inputs = std::iter::once(sum).chain(parameters).collect();
    let mut normed = step(&node, op, inputs, output);
    let eps = attribute(&node, "epsilon").map_or(1e-12, |a| a.f);
    normed.attribute.push(AttributeProto {
        name: "epsilon".into(),
        type_: attribute_proto::AttributeType::FLOAT.into(),
        f: eps,
        ..AttributeProto::default()
    });
    nodes.push(normed);
}

/// GELU of the sum of inputs 0 and 1.
fn gelu(node: NodeProto, used: &mut HashSet<String>, nodes: &mut Vec<NodeProto>) {
    let (Some(x), Some(bias)) = (input(&node, 0), input(&node, 1)) else { return nodes.push(node) };
    let sum = name(&node, used);
    nodes.push(step(&node, "Add", vec![x, bias], sum.clone()));
    let op = if node.op_type == "BiasGelu" { "Gelu" } else { "FastGelu" };
    let output = node.output.first().cloned().unwrap_or_default();
    nodes.push(NodeProto { domain: MICROSOFT.into(), ..step(&node, op, vec![sum], output) });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        let domain = MICROSOFT.into();
        NodeProto { op_type: op.into(), domain, input: names(inputs), output: names(outputs), ..NodeProto::default() }
    }

    fn parts(node: NodeProto) -> Vec<String> {
        let mut graph = GraphProto { node: vec![node], ..GraphProto::default() };
        split(&mut graph, &mut HashSet::from(["y/sum".to_owned()]));
        let show = |n: &NodeProto| format!("{} = {}({})", n.output.join(","), n.op_type, n.input.join(","));
        graph.node.iter().map(show).collect()
    }

    #[test]
    fn sums_have_names_of_their_own() {
        let skip = "SkipLayerNormalization";
        assert_eq!(
            parts(node(skip, &["x", "r", "w", "b", "c"], &["y", "", "", "s"])),
            ["y/sum_ = Add(x,r)", "s = Add(y/sum_,c)", "y = LayerNormalization(s,w,b)"]
        );
        assert_eq!(
            parts(node(skip, &["x", "r", "w"], &["y"])),
            ["y/sum_ = Add(x,r)", "y = LayerNormalization(y/sum_,w)"]
        );
        assert_eq!(
            parts(node("SkipSimplifiedLayerNormalization", &["x", "r", "w", "c"], &["y", "", "", "s"])),
            ["y/sum_ = Add(x,r)", "s = Add(y/sum_,c)", "y = SimplifiedLayerNormalization(s,w)"]
        );
        assert_eq!(parts(node("BiasGelu", &["x", "b"], &["y"])), ["y/sum_ = Add(x,b)", "y = Gelu(y/sum_)"]);
        assert_eq!(parts(node("FastGelu", &["x", "b"], &["y"])), ["y/sum_ = Add(x,b)", "y = FastGelu(y/sum_)"]);
        assert_eq!(parts(node("FastGelu", &["x"], &["y"])), ["y = FastGelu(x)"]);
        // Statistics are no sums: the importer refuses them.
        let statistics = node(skip, &["x", "r", "w"], &["y", "mean"]);
        assert_eq!(parts(statistics), ["y,mean = SkipLayerNormalization(x,r,w)"]);
        assert!(parts(node(skip, &[], &[])).len() <= 2, "a node without anything is taken apart all the same");
    }
}
