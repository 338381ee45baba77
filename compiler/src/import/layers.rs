//! Layer numbers of values, from names where they survive and from operands where they do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Graph, InputRole, Op};

/// Words in front of a layer's number.
const WORDS: [&str; 6] = ["layers", "layer", "h", "block", "blocks", "past_key_values"];

/// The layer in a name such as `model.layers.3.mlp` or `/h.3/attn`.
pub fn layer_of_name(name: &str) -> Option<u32> {
    let mut word_before = false;
    for part in name.split(['.', '/', '[', ']', ':', '\'', ',', ' ']) {
        if word_before && let Ok(layer) = part.parse() {
            return Some(layer);
        }
        word_before = WORDS.contains(&part);
    }
    None
}

/// Whether `name` was made by an exporter and says nothing.
fn is_generated(name: &str) -> bool {
    name.starts_with("val_") || name.starts_with("onnx::") || name.starts_with('/') || name.starts_with("_")
}

/// Gives nodes without a layer the highest layer of their operands.
///
/// A node that uses a weight whose name speaks and names no layer, such as the final norm, stays without one, and so
/// do those after it.
pub fn spread(graph: &mut Graph) {
    for id in graph.topological() {
        let operands = graph.operands(id);
        let mut highest = None;
        let mut outside = false;
        for operand in operands {
            let Ok(node) = graph.node(operand) else { continue };
            highest = highest.max(node.origin.layer);
            if let Op::Weight { name, .. } = &node.op {
                outside |= node.origin.layer.is_none() && !is_generated(name);
            }
        }
        if let Ok(node) = graph.node_mut(id) {
            match &node.op {
                Op::Input { role: InputRole::PastKey { layer } | InputRole::PastValue { layer }, .. } => {
                    node.origin.layer = Some(*layer);
                }
                _ if node.origin.layer.is_none() && !outside => node.origin.layer = highest,
                _ => {}
            }
        }
    }
}

/// The layers that use each weight of `graph`, by the weight's name.
pub fn of_weights(graph: &Graph) -> BTreeMap<String, BTreeSet<u32>> {
    let mut layers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for (id, node) in graph.iter() {
        let Op::Weight { name, .. } = &node.op else { continue };
        let users = graph.users(id);
        let users = users.iter().filter_map(|user| graph.node(*user).ok()?.origin.layer);
        layers.entry(name.clone()).or_default().extend(node.origin.layer.into_iter().chain(users));
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_layers_from_names() {
        for (name, layer) in [
            ("/model/layers.3/self_attn/q_proj/MatMul", Some(3)),
            ("transformer.h.11.attn.c_attn.weight", Some(11)),
            ("past_key_values.2.key", Some(2)),
            ("/bert/encoder/layer.0/output/Add", Some(0)),
            ("['', 'model', 'model.layers.7', 'model.layers.7.mlp']", Some(7)),
            ("model.norm.weight", None),
            ("val_172", None),
            ("layers.x", None),
            ("layers.99999999999", None),
        ] {
            assert_eq!(layer_of_name(name), layer, "{name}");
        }
    }
}
