//! One name for one value in the whole file.
//!
//! Graphs inside nodes see the names around them. Exporters that merge two models into the branches of an `If` give values
//! inside the names of values outside, such as those of the outputs, and both branches the same names. Inside, such a
//! value gets a name of its own.

use std::collections::{HashMap, HashSet};

use onnx_protobuf::{GraphProto, NodeProto};

/// Gives values inside nodes of `graph` names that nothing else has.
pub(crate) fn unique_names(graph: &mut GraphProto) {
    if graph.node.iter().all(|node| super::subgraphs(node).next().is_none()) {
        return;
    }
    let mut taken: HashSet<String> = defined(graph).collect();
    rename_inside(&mut graph.node, &mut taken, &HashMap::new());
}

/// The names that a graph gives a meaning.
fn defined(graph: &GraphProto) -> impl Iterator<Item = String> + '_ {
    let given = graph.input.iter().map(|v| &v.name).chain(graph.initializer.iter().map(|t| &t.name));
    given.chain(graph.node.iter().flat_map(|n| &n.output)).filter(|name| !name.is_empty()).cloned()
}

fn rename_inside(nodes: &mut [NodeProto], taken: &mut HashSet<String>, around: &HashMap<String, String>) {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).for_each(|inner| rename(inner, taken, around));
    }
}

/// Renames the values of `graph`, and what it takes from around it as `around` says.
fn rename(graph: &mut GraphProto, taken: &mut HashSet<String>, around: &HashMap<String, String>) {
    let mut names = around.clone();
    // A name that stands twice stays so: that is for the check of names to say.
    let own: HashSet<String> = defined(graph).collect();
    let mut own: Vec<String> = own.into_iter().collect();
    own.sort_unstable();
    for name in own {
        let mut new = name.clone();
        while taken.contains(&new) {
            new.push('_');
        }
        taken.insert(new.clone());
        names.insert(name, new);
    }
    let apply = |name: &mut String| {
        if let Some(new) = names.get(name) {
            name.clone_from(new);
        }
    };
    graph.input.iter_mut().for_each(|v| apply(&mut v.name));
    graph.output.iter_mut().for_each(|v| apply(&mut v.name));
    graph.value_info.iter_mut().for_each(|v| apply(&mut v.name));
    graph.initializer.iter_mut().for_each(|t| apply(&mut t.name));
    for node in &mut graph.node {
        node.input.iter_mut().for_each(apply);
        node.output.iter_mut().for_each(apply);
    }
    rename_inside(&mut graph.node, taken, &names);
}

#[cfg(test)]
mod tests {
    use onnx_protobuf::{AttributeProto, ValueInfoProto};

    use super::*;

    fn node(op: &str, input: &str, output: &str) -> NodeProto {
        NodeProto { op_type: op.into(), input: vec![input.into()], output: vec![output.into()], ..NodeProto::default() }
    }

    fn graph(nodes: Vec<NodeProto>, output: &str) -> GraphProto {
        let output = ValueInfoProto { name: output.into(), ..ValueInfoProto::default() };
        GraphProto { node: nodes, output: vec![output], ..GraphProto::default() }
    }

    fn choice(branches: [GraphProto; 2]) -> NodeProto {
        let mut chosen = node("If", "c", "logits");
        for (name, branch) in ["then_branch", "else_branch"].into_iter().zip(branches) {
            let g = Some(branch).into();
            chosen.attribute.push(AttributeProto { name: name.into(), g, ..AttributeProto::default() });
        }
        chosen
    }

    fn show(graph: &GraphProto) -> String {
        let one = |n: &NodeProto| {
            let inner: String = super::super::subgraphs(n).map(|g| format!(" {{{}}}", show(g))).collect();
            format!("{}={}({}){inner}; ", n.output.join(","), n.op_type, n.input.join(","))
        };
        let nodes: String = graph.node.iter().map(one).collect();
        format!("{nodes}-> {}", graph.output.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn names_inside_do_not_hide_those_around_them() {
        let inner = || graph(vec![node("Neg", "x", "h"), node("Abs", "h", "logits")], "logits");
        let mut outer = graph(vec![node("Exp", "x", "h"), choice([inner(), inner()])], "logits");
        unique_names(&mut outer);
        assert_eq!(
            show(&outer),
            "h=Exp(x); logits=If(c) {h_=Neg(x); logits_=Abs(h_); -> logits_} \
             {h__=Neg(x); logits__=Abs(h__); -> logits__}; -> logits"
        );
        // What a branch takes from the graph around it keeps its name, at any depth.
        let deep = graph(vec![choice([graph(vec![node("Neg", "h", "y")], "y"), graph(vec![], "h")])], "logits");
        let mut outer = graph(vec![node("Exp", "x", "h"), choice([deep, graph(vec![], "h")])], "logits");
        unique_names(&mut outer);
        assert_eq!(
            show(&outer),
            "h=Exp(x); logits=If(c) {logits_=If(c) {y=Neg(h); -> y} {-> h}; -> logits_} {-> h}; -> logits"
        );
    }
}
