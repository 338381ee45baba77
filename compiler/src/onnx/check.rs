//! What every graph must satisfy before anything looks at its meaning.
//!
//! Checked here: a graph and a supported default operator set, unique value names, every input of a node and every output
//! of a graph defined, no cycles, no local function that calls itself, no sparse initializers. Nodes that are not in an
//! order of definition before use are put into one, and local functions in place of their calls. Not checked: what
//! operators exist and what they take.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::RangeInclusive;

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{FunctionProto, GraphProto, ModelProto, NodeProto};

use super::inline::inline;
use super::scopes::unique_names;
use super::split::split;
use super::{is_default_domain, subgraphs};

/// Versions of the default operator set that are read. Before 7, operators broadcast by attributes.
pub const OPSETS: RangeInclusive<i64> = 7..=27;

/// Checks `proto`, sorts its nodes and replaces calls of its local functions.
///
/// # Errors
/// `E0103` no graph, `E0104` the operator set, `E0105` a name that stands twice, `E0106` a name that stands nowhere,
/// `E0107` a cycle, `E0108` sparse initializers, `E0113` and `E0114` local functions.
pub(crate) fn structure(proto: &mut ModelProto) -> Result<()> {
    opset(proto)?;
    let called_first = functions(&proto.functions)?;
    for function in &mut proto.functions {
        let place = format!("function '{}'", function.name);
        let mut scope = HashSet::new();
        for input in &function.input {
            define(&mut scope, input).map_err(|d| d.at(place.clone()))?;
        }
        let defined = order(&mut function.node, scope, &mut Vec::new()).map_err(|d| inside(&place, d))?;
        outputs(function.output.iter(), &[defined]).map_err(|d| d.at(place))?;
    }
    inline(proto, &called_first)?;
    match proto.graph.as_mut() {
        Some(main) => {
            unique_names(main);
            graph(main, &mut Vec::new())?;
            let mut used = HashSet::new();
            all_used(main, &mut used);
            forget_unused(main, &used);
            each_node(&main.node, &mut |node| used.extend(node.output.iter().cloned()));
            split(main, &mut used);
            Ok(())
        }
        None => Err(Diagnostic::input("E0103", "the file has no graph").note("expected an exported ONNX model")),
    }
}

/// Adds every name that `graph` is given, and that a node or an output of it or of its subgraphs reads.
fn all_used(graph: &GraphProto, used: &mut HashSet<String>) {
    let known = graph.input.iter().map(|v| v.name.clone()).chain(graph.initializer.iter().map(|t| t.name.clone()));
    used.extend(known.chain(graph.output.iter().map(|o| o.name.clone())));
    each_node(&graph.node, &mut |node| {
        used.extend(node.input.iter().cloned());
        used.extend(subgraphs(node).flat_map(|inner| &inner.output).map(|o| o.name.clone()));
    });
}

/// Takes the names of outputs that nothing reads beside others that something does: exporters name all, and an output
/// without a name is one that is not wanted.
fn forget_unused(graph: &mut GraphProto, used: &HashSet<String>) {
    for node in &mut graph.node {
        if node.output.iter().any(|name| used.contains(name)) {
            node.output.iter_mut().filter(|name| !used.contains(*name)).for_each(String::clear);
        }
        for attribute in &mut node.attribute {
            attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).for_each(|inner| forget_unused(inner, used));
        }
    }
}

/// Checks the versions of the default operator set.
fn opset(proto: &ModelProto) -> Result<()> {
    let found: Vec<i64> =
        proto.opset_import.iter().filter(|o| is_default_domain(&o.domain)).map(|o| o.version).collect();
    let wanted = format!("expected a version from {} to {}", OPSETS.start(), OPSETS.end());
    match found.as_slice() {
        [version] if OPSETS.contains(version) => Ok(()),
        [version] => Err(Diagnostic::unsupported("E0104", format!("operator set {version} is not supported"))
            .note(wanted)
            .note("export the model again with another opset_version")),
        [] if proto.graph.is_none() => {
            Err(Diagnostic::input("E0103", "the file has no graph").note("expected an exported ONNX model"))
        }
        [] => Err(Diagnostic::input("E0104", "the file names no version of the default operator set").note(wanted)),
        [..] => Err(Diagnostic::input("E0104", "the file names the default operator set more than once").note(wanted)),
    }
}

/// Checks that local functions are unique and do not call themselves, over any number of calls. Gives their order, those
/// that are called before those that call.
fn functions(functions: &[FunctionProto]) -> Result<Vec<usize>> {
    let mut index = HashMap::new();
    for (i, f) in functions.iter().enumerate() {
        if index.insert((f.domain.as_str(), f.name.as_str(), f.overload.as_str()), i).is_some() {
            return Err(Diagnostic::input("E0105", format!("two functions are called '{}'", f.name)));
        }
    }
    let needs: Vec<Vec<usize>> = functions
        .iter()
        .map(|f| {
            let mut calls = Vec::new();
            each_node(&f.node, &mut |n| {
                calls.extend(index.get(&(n.domain.as_str(), n.op_type.as_str(), n.overload.as_str())).copied())
            });
            calls
        })
        .collect();
    first_needed_first(&needs).map_err(|i| {
        let name = functions.get(i).map_or("", |f| f.name.as_str());
        Diagnostic::input("E0107", format!("the function '{name}' calls itself"))
    })
}

/// Visits `nodes` and those of their subgraphs.
fn each_node<'a>(nodes: &'a [NodeProto], visit: &mut dyn FnMut(&'a NodeProto)) {
    for node in nodes {
        visit(node);
        subgraphs(node).for_each(|graph| each_node(&graph.node, visit));
    }
}

/// Checks and sorts `graph`, which sees the names in `outer`.
fn graph(graph: &mut GraphProto, outer: &mut Vec<HashSet<String>>) -> Result<()> {
    if !graph.sparse_initializer.is_empty() {
        return Err(Diagnostic::unsupported("E0108", "sparse initializers are not supported")
            .note("export the model with dense weights"));
    }
    let mut scope = HashSet::new();
    for input in &graph.input {
        define(&mut scope, &input.name)?;
    }
    let mut initializers = HashSet::new();
    for tensor in &graph.initializer {
        define(&mut initializers, &tensor.name)?;
    }
    scope.extend(initializers);
    if let Some(name) = scope.iter().find(|name| outer.iter().any(|scope| scope.contains(*name))) {
        return Err(twice(name));
    }
    let defined = order(&mut graph.node, scope, outer)?;
    outer.push(defined);
    let checked = outputs(graph.output.iter().map(|o| &o.name), outer);
    outer.pop();
    checked
}

/// Checks that every output is defined.
fn outputs<'a>(mut names: impl Iterator<Item = &'a String>, scopes: &[HashSet<String>]) -> Result<()> {
    match names.find(|name| !scopes.iter().any(|scope| scope.contains(*name))) {
        Some(name) => Err(Diagnostic::input("E0106", format!("the output '{name}' is defined nowhere"))),
        None => Ok(()),
    }
}

/// Adds `name` to `scope`, in which it must be new.
fn define(scope: &mut HashSet<String>, name: &str) -> Result<()> {
    if scope.insert(name.to_owned()) { Ok(()) } else { Err(twice(name)) }
}

/// The error of a name that is defined more than once.
fn twice(name: &str) -> Diagnostic {
    Diagnostic::input("E0105", format!("the value '{name}' is defined twice"))
        .note("names of values must be unique in a graph and must not hide those of a graph around it")
}

/// Puts `nodes` into an order of definition before use, keeping theirs where it is one, and checks their subgraphs.
/// `scope` holds the names known at the start; returned is all that is known at the end.
fn order(
    nodes: &mut Vec<NodeProto>,
    mut scope: HashSet<String>,
    outer: &mut Vec<HashSet<String>>,
) -> Result<HashSet<String>> {
    let mut producer = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            let known = scope.contains(output) || outer.iter().any(|scope| scope.contains(output));
            if known || producer.insert(output.clone(), i).is_some() {
                return Err(twice(output).at(describe(i, node)));
            }
        }
    }
    let mut needs = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.iter().enumerate() {
        let mut sources = Vec::new();
        let mut undefined = None;
        used_names(node, &mut |name| match producer.get(name) {
            Some(&source) => sources.push(source),
            None if scope.contains(name) || outer.iter().any(|scope| scope.contains(name)) => {}
            None => undefined = undefined.or(Some(name)),
        });
        if let Some(name) = undefined {
            return Err(Diagnostic::input("E0106", format!("the input '{name}' is defined nowhere"))
                .at(describe(i, node))
                .note("expected a graph input, an initializer or the output of a node"));
        }
        needs.push(sources);
    }
    if needs.iter().enumerate().any(|(i, sources)| sources.iter().any(|&source| source >= i)) {
        let sorted = first_needed_first(&needs).map_err(|i| {
            let place = nodes.get(i).map_or(String::new(), |node| describe(i, node));
            Diagnostic::input("E0107", "the node depends on its own output").at(place)
        })?;
        let mut old: Vec<Option<NodeProto>> = std::mem::take(nodes).into_iter().map(Some).collect();
        nodes.extend(sorted.into_iter().filter_map(|i| old.get_mut(i).and_then(Option::take)));
    }
    scope.extend(producer.into_keys());
    outer.push(scope);
    for (i, node) in nodes.iter_mut().enumerate() {
        let place = describe(i, node);
        for attribute in &mut node.attribute {
            for inner in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
                graph(inner, outer).map_err(|d| inside(&place, d))?;
            }
        }
    }
    outer.pop().ok_or_else(|| Diagnostic::internal("E0109", "the stack of scopes is out of step"))
}

/// Visits every name that `node` reads: its inputs, and what its subgraphs take from around them.
pub(crate) fn used_names<'a>(node: &'a NodeProto, visit: &mut dyn FnMut(&'a str)) {
    node.input.iter().filter(|name| !name.is_empty()).for_each(|name| visit(name));
    for graph in subgraphs(node) {
        let mut own: HashSet<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
        own.extend(graph.initializer.iter().map(|t| t.name.as_str()));
        own.extend(graph.node.iter().flat_map(|n| &n.output).map(String::as_str));
        let mut free = |name: &'a str| {
            if !own.contains(name) {
                visit(name);
            }
        };
        graph.node.iter().for_each(|n| used_names(n, &mut free));
        graph.output.iter().for_each(|v| free(&v.name));
    }
}

/// An order of `0..needs.len()` in which everything comes after what it needs, smallest first where there is a choice.
/// Fails with one that is part of a cycle or needs one.
fn first_needed_first(needs: &[Vec<usize>]) -> std::result::Result<Vec<usize>, usize> {
    let mut waiting: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut wanted_by = vec![Vec::new(); needs.len()];
    for (i, sources) in needs.iter().enumerate() {
        for &source in sources {
            wanted_by[source].push(i);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..needs.len()).filter(|&i| waiting[i] == 0).map(Reverse).collect();
    let mut sorted = Vec::with_capacity(needs.len());
    while let Some(Reverse(i)) = ready.pop() {
        sorted.push(i);
        for &user in &wanted_by[i] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    match waiting.iter().position(|&left| left > 0) {
        Some(stuck) => Err(stuck),
        None => Ok(sorted),
    }
}

/// How a message names a node: its name, or its number and first output where it has none.
pub(crate) fn describe(index: usize, node: &NodeProto) -> String {
    let operator = &node.op_type;
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => format!("node {index} ({operator}), which makes '{output}'"),
        ("", None) => format!("node {index} ({operator})"),
        (name, _) => format!("node '{name}' ({operator})"),
    }
}

/// `error` inside `place`.
fn inside(place: &str, mut error: Diagnostic) -> Diagnostic {
    error.place = Some(match error.place.take() {
        Some(inner) => format!("{place}: {inner}"),
        None => place.to_owned(),
    });
    error
}
