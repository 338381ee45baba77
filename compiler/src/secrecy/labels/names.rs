//! What a file calls the places where a tensor is used.
//!
//! Exporters name many weights by a number, such as `val_441` or `onnx::MatMul_1412`; the module that a weight belongs to
//! then stands in the names of the node that uses it: its own, those of its values, those of the modules it was made in.
//! Where weights are moved or converted before they are used, the names of all nodes on that way count.

use std::collections::HashMap;

use onnx_protobuf::{GraphProto, NodeProto};

use crate::import::constant_tensor;
use crate::onnx::{Model, subgraphs};

/// Metadata that list the modules in which a node was made, outermost first.
pub(super) const SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// The uses of every tensor by its name: for each the names that the file has for it.
pub(super) type Uses<'a> = HashMap<&'a str, Vec<Vec<String>>>;

/// A tensor, and the names of the nodes that brought it to where it is now.
#[derive(Clone)]
struct Way<'a> {
    tensor: &'a str,
    names: Vec<String>,
}

/// The uses of the tensors of `model`, in the order of the graph.
pub(super) fn uses(model: &Model) -> Uses<'_> {
    let mut found = Found::default();
    found.graph(model.graph());
    found.uses
}

#[derive(Default)]
struct Found<'a> {
    /// What every value is made from that follows from tensors alone.
    ways: HashMap<&'a str, Vec<Way<'a>>>,
    uses: Uses<'a>,
}

impl<'a> Found<'a> {
    fn graph(&mut self, graph: &'a GraphProto) {
        for tensor in &graph.initializer {
            let way = Way { tensor: &tensor.name, names: Vec::new() };
            self.ways.insert(&tensor.name, vec![way]);
        }
        graph.node.iter().for_each(|node| self.node(node));
    }

    fn node(&mut self, node: &'a NodeProto) {
        let inner: Vec<&GraphProto> = subgraphs(node).collect();
        for graph in &inner {
            self.graph(graph);
        }
        if let (Some(name), Some(_)) = (node.output.first(), constant_tensor(node)) {
            self.ways.insert(name, vec![Way { tensor: name, names: Vec::new() }]);
            return;
        }
        let inputs = || node.input.iter().map(String::as_str).filter(|name| !name.is_empty());
        let names = names_of(node);
        let from: Vec<Way> = inputs().filter_map(|name| self.ways.get(name)).flatten().cloned().collect();
        let is_static = inner.is_empty() && inputs().all(|name| self.ways.contains_key(name));
        let ways =
            from.into_iter().map(|way| Way { names: way.names.into_iter().chain(names.clone()).collect(), ..way });
        if is_static {
            let ways: Vec<Way> = ways.collect();
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                self.ways.insert(output, ways.clone());
            }
        } else {
            for way in ways {
                self.uses.entry(way.tensor).or_default().push(way.names);
            }
        }
    }
}

/// The names of `node`, of what it computes, and of the modules it was made in.
fn names_of(node: &NodeProto) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        // Exporters part the same modules by dots and by slashes.
        for name in [name.to_owned(), name.trim_start_matches('/').replace('/', ".")] {
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
    };
    add(&node.name);
    node.output.iter().for_each(|name| add(name));
    for scopes in node.metadata_props.iter().filter(|p| p.key == SCOPES) {
        // A list of quoted names.
        scopes.value.split('\'').skip(1).step_by(2).for_each(&mut add);
    }
    for path in node.metadata_props.iter().filter(|p| p.key == "namespace") {
        // `module: class` parted by slashes.
        path.value.split('/').filter_map(|part| part.split(':').next()).for_each(|name| add(name.trim()));
    }
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use onnx_protobuf::{ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto};

    use super::*;

    fn node(name: &str, op: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            name: name.into(),
            op_type: op.into(),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn names_follow_a_weight_to_where_it_is_used() {
        let w = TensorProto {
            name: "val_1".into(),
            dims: vec![1],
            data_type: 1,
            float_data: vec![1.0],
            ..Default::default()
        };
        let mut product = node("node_linear", "MatMul", &["x", "t"], "linear");
        product.metadata_props.push(StringStringEntryProto {
            key: SCOPES.into(),
            value: "['', 'model', 'model.layers.3', 'linear']".into(),
            ..Default::default()
        });
        let nodes = vec![
            node("", "Transpose", &["val_1"], "t"),
            product,
            node("/model/layers.4/Add", "Add", &["linear", "val_1"], "y"),
        ];
        let info = |name: &str| ValueInfoProto { name: name.into(), ..Default::default() };
        let graph = GraphProto {
            input: vec![info("x")],
            initializer: vec![w],
            node: nodes,
            output: vec![info("y")],
            ..Default::default()
        };
        let opset_import = vec![OperatorSetIdProto { version: 18, ..Default::default() }];
        let proto = ModelProto { ir_version: 8, opset_import, graph: Some(graph).into(), ..Default::default() };
        let model = Model::from_proto(proto, Path::new("m.onnx")).unwrap();
        assert_eq!(
            uses(&model)["val_1"],
            [
                vec!["t", "node_linear", "linear", "model", "model.layers.3"],
                vec!["/model/layers.4/Add", "model.layers.4.Add", "y"]
            ]
        );
    }
}
