//! Local functions put in place of their calls.
//!
//! A model may bring operators of its own as functions: lists of nodes with formal inputs, outputs and attributes, which
//! may call each other. After this pass there are none: every call is its function's nodes, with actual names for formal
//! ones, the call's attributes for references to them, and new names for all that is inside. How much that makes is
//! counted before anything is copied, as functions that call each other twice double with every level.

use std::collections::{HashMap, HashSet};

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto};

use super::check::describe;
use super::{is_default_domain, subgraphs};

/// Nodes of a model after inlining.
const MAX_NODES: u64 = 1 << 20;
/// Bytes of the nodes of a model after inlining, with the tensors in their attributes.
const MAX_BYTES: u64 = 1 << 30;

/// Domain, name and overload: what a call names.
type Key = (String, String, String);

/// Replaces every call of a local function of `proto`, and removes the functions. `order` names each of them once, the
/// called before the caller; their bodies are checked.
///
/// # Errors
/// `E0113` when the result would be too large, `E0114` when a function is in ONNX's domain or of another version of it,
/// or a call has more inputs or outputs than its function.
pub(crate) fn inline(proto: &mut ModelProto, order: &[usize]) -> Result<()> {
    let functions = std::mem::take(&mut proto.functions);
    let Some(graph) = proto.graph.as_mut() else { return Ok(()) };
    if functions.is_empty() {
        return Ok(());
    }
    let versions: Vec<i64> =
        proto.opset_import.iter().filter(|o| is_default_domain(&o.domain)).map(|o| o.version).collect();
    functions.iter().try_for_each(|f| check(f, &versions))?;
    let functions: Vec<&FunctionProto> = order.iter().filter_map(|&i| functions.get(i)).collect();
    measure(&functions, graph)?;
    let mut names = Names { used: HashSet::new(), calls: 0 };
    names.take(graph);
    let mut bodies: HashMap<Key, FunctionProto> = HashMap::new();
    for function in functions {
        let mut flat = function.clone();
        let mut own = Names { used: HashSet::new(), calls: 0 };
        own.used.extend(flat.input.iter().cloned());
        own.take_nodes(&flat.node);
        flat.node = expand(std::mem::take(&mut flat.node), &bodies, &mut own)?;
        bodies.insert(key(&function.domain, &function.name, &function.overload), flat);
    }
    expand_graph(graph, &bodies, &mut names)
}

fn key(domain: &str, name: &str, overload: &str) -> Key {
    (domain.to_owned(), name.to_owned(), overload.to_owned())
}

fn called(node: &NodeProto) -> Key {
    key(&node.domain, &node.op_type, &node.overload)
}

/// Checks domain and version of a function; `versions` holds the model's version of ONNX's own domain.
fn check(function: &FunctionProto, versions: &[i64]) -> Result<()> {
    let wrong = |what: String| Diagnostic::input("E0114", format!("the function '{}' {what}", function.name));
    if is_default_domain(&function.domain) {
        return Err(wrong("has no domain of its own".into())
            .note("expected a domain other than ONNX's, whose operators have a fixed meaning"));
    }
    match function.opset_import.iter().find(|o| is_default_domain(&o.domain) && !versions.contains(&o.version)) {
        Some(other) => Err(wrong(format!("is of operator set {}", other.version))
            .note(format!("expected the model's, {versions:?}"))
            .note("export with one operator set for the whole model")),
        None => Ok(()),
    }
}

/// Nodes and bytes of something when its calls are replaced.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: u64,
    bytes: u64,
}

impl Size {
    fn add(&mut self, other: Size) -> Result<()> {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.bytes = self.bytes.saturating_add(other.bytes);
        if self.nodes <= MAX_NODES && self.bytes <= MAX_BYTES {
            return Ok(());
        }
        Err(Diagnostic::input("E0113", "the model's local functions are too large when they are put in place")
            .note(format!("expected at most {MAX_NODES} nodes and {MAX_BYTES} bytes"))
            .note("export without local functions"))
    }
}

/// Checks the size of the result, and of the function bodies that are kept on the way.
fn measure(functions: &[&FunctionProto], graph: &GraphProto) -> Result<()> {
    let mut sizes: HashMap<Key, Size> = HashMap::new();
    let mut total = Size::default();
    for function in functions {
        let size = nodes_size(&function.node, &sizes)?;
        total.add(size)?;
        sizes.insert(key(&function.domain, &function.name, &function.overload), size);
    }
    total.add(nodes_size(&graph.node, &sizes)?)
}

fn nodes_size(nodes: &[NodeProto], sizes: &HashMap<Key, Size>) -> Result<Size> {
    let mut total = Size::default();
    for node in nodes {
        match sizes.get(&called(node)) {
            // Names inside a call have the call's in front.
            Some(inner) => {
                let label = label(node).len() as u64;
                let names = inner.nodes.saturating_mul(label.saturating_mul(4));
                total.add(Size { nodes: inner.nodes, bytes: inner.bytes.saturating_add(names) })?;
                total.add(Size { nodes: 1, bytes: node.compute_size() })?;
            }
            None => total.add(Size { nodes: 1, bytes: node.compute_size() })?,
        }
        for graph in subgraphs(node) {
            total.add(nodes_size(&graph.node, sizes)?)?;
        }
    }
    Ok(total)
}

/// Names of values that are taken.
struct Names {
    used: HashSet<String>,
    calls: u64,
}

impl Names {
    fn take(&mut self, graph: &GraphProto) {
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|v| v.name.clone());
        self.used.extend(values.chain(graph.initializer.iter().map(|t| t.name.clone())));
        self.take_nodes(&graph.node);
    }

    fn take_nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.used.extend(node.input.iter().chain(&node.output).cloned());
            subgraphs(node).for_each(|graph| self.take(graph));
        }
    }

    /// A prefix for the names inside a call of which no taken name is an extension by `names`.
    fn prefix(&mut self, call: &NodeProto, names: &[String]) -> String {
        let plain = label(call).to_owned();
        let mut prefix = plain.clone();
        while names.iter().any(|name| self.used.contains(&format!("{prefix}/{name}"))) {
            self.calls += 1;
            prefix = format!("{plain}/{}", self.calls);
        }
        self.used.extend(names.iter().map(|name| format!("{prefix}/{name}")));
        prefix
    }
}

/// How a call is told from others: its name, or what it makes.
fn label(call: &NodeProto) -> &str {
    if call.name.is_empty() {
        call.output.iter().map(String::as_str).find(|o| !o.is_empty()).unwrap_or("call")
    } else {
        &call.name
    }
}

fn expand_graph(graph: &mut GraphProto, bodies: &HashMap<Key, FunctionProto>, names: &mut Names) -> Result<()> {
    graph.node = expand(std::mem::take(&mut graph.node), bodies, names)?;
    Ok(())
}

/// `nodes` with the bodies of functions, which call no others any more, in place of calls.
fn expand(nodes: Vec<NodeProto>, bodies: &HashMap<Key, FunctionProto>, names: &mut Names) -> Result<Vec<NodeProto>> {
    let mut out = Vec::with_capacity(nodes.len());
    for (index, mut node) in nodes.into_iter().enumerate() {
        if let Some(function) = bodies.get(&called(&node)) {
            call(&node, function, names, &mut out).map_err(|d| d.at(describe(index, &node)))?;
            continue;
        }
        for attribute in &mut node.attribute {
            for inner in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
                expand_graph(inner, bodies, names)?;
            }
        }
        out.push(node);
    }
    Ok(out)
}

/// Puts the nodes of `function` for `node`, which calls it, behind `out`.
fn call(node: &NodeProto, function: &FunctionProto, names: &mut Names, out: &mut Vec<NodeProto>) -> Result<()> {
    let many = |what: &str, found: usize, expected: usize| {
        Diagnostic::input("E0114", format!("a call of '{}' has {found} {what}", function.name))
            .note(format!("expected at most {expected}"))
    };
    if node.input.len() > function.input.len() {
        return Err(many("inputs", node.input.len(), function.input.len()));
    }
    if node.output.len() > function.output.len() {
        return Err(many("outputs", node.output.len(), function.output.len()));
    }
    let mut rename: HashMap<String, String> = HashMap::new();
    for (i, formal) in function.input.iter().enumerate() {
        rename.insert(formal.clone(), node.input.get(i).cloned().unwrap_or_default());
    }
    // An output is a value of the body, unless it is an input or another output again.
    let mut copies = Vec::new();
    for (formal, actual) in function.output.iter().zip(&node.output).filter(|(_, actual)| !actual.is_empty()) {
        match rename.get(formal) {
            Some(source) => copies.push((source.clone(), actual.clone())),
            None => {
                rename.insert(formal.clone(), actual.clone());
            }
        }
    }
    let mut inner = Vec::new();
    defined(&function.node, &mut inner);
    inner.retain(|name| !rename.contains_key(name));
    let prefix = names.prefix(node, &inner);
    for name in inner {
        let new = format!("{prefix}/{name}");
        rename.insert(name, new);
    }
    let attributes = |name: &str| {
        let of = |list: &[AttributeProto]| list.iter().find(|a| a.name == name).cloned();
        of(&node.attribute).or_else(|| of(&function.attribute_proto))
    };
    for body in &function.node {
        let mut new = substitute(body, &rename, &attributes);
        new.name = if body.name.is_empty() { prefix.clone() } else { format!("{prefix}/{}", body.name) };
        if new.metadata_props.is_empty() {
            new.metadata_props = node.metadata_props.clone();
        }
        out.push(new);
    }
    for (source, actual) in copies {
        out.push(NodeProto {
            op_type: "Identity".into(),
            name: prefix.clone(),
            input: vec![source],
            output: vec![actual],
            ..NodeProto::default()
        });
    }
    Ok(())
}

/// Adds the names of all values that `nodes` and their subgraphs define.
fn defined(nodes: &[NodeProto], names: &mut Vec<String>) {
    for node in nodes {
        names.extend(node.output.iter().filter(|o| !o.is_empty()).cloned());
        for graph in subgraphs(node) {
            names.extend(graph.input.iter().map(|v| v.name.clone()));
            names.extend(graph.initializer.iter().map(|t| t.name.clone()));
            defined(&graph.node, names);
        }
    }
}

/// A copy of `node` with other names, and with the call's attributes for references to them.
fn substitute(
    node: &NodeProto,
    rename: &HashMap<String, String>,
    attributes: &dyn Fn(&str) -> Option<AttributeProto>,
) -> NodeProto {
    let mut new = node.clone();
    for name in new.input.iter_mut().chain(&mut new.output) {
        replace(name, rename);
    }
    new.attribute = node.attribute.iter().filter_map(|a| bound(a, attributes)).collect();
    for attribute in &mut new.attribute {
        for graph in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
            let values = graph.input.iter_mut().chain(&mut graph.output).map(|v| &mut v.name);
            for name in values.chain(graph.initializer.iter_mut().map(|t| &mut t.name)) {
                replace(name, rename);
            }
            graph.value_info.clear();
            graph.node = graph.node.iter().map(|n| substitute(n, rename, attributes)).collect();
        }
    }
    new
}

fn replace(name: &mut String, rename: &HashMap<String, String>) {
    if let Some(new) = rename.get(name) {
        name.clone_from(new);
    }
}

/// `attribute`, or what the call gives for it; `None` when it is left out.
fn bound(attribute: &AttributeProto, given: &dyn Fn(&str) -> Option<AttributeProto>) -> Option<AttributeProto> {
    if attribute.ref_attr_name.is_empty() {
        return Some(attribute.clone());
    }
    given(&attribute.ref_attr_name).map(|value| AttributeProto { name: attribute.name.clone(), ..value })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use onnx_protobuf::{OperatorSetIdProto, ValueInfoProto};

    use super::*;
    use crate::onnx::Model;

    const OPSET: i64 = 20;

    fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
    }

    fn call(function: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto { domain: "local".into(), name: format!("/{function}"), ..node(function, inputs, outputs) }
    }

    fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
        let names = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        FunctionProto {
            name: name.into(),
            domain: "local".into(),
            input: names(inputs),
            output: names(outputs),
            node: nodes,
            opset_import: vec![OperatorSetIdProto { version: OPSET, ..OperatorSetIdProto::default() }],
            ..FunctionProto::default()
        }
    }

    fn int(name: &str, i: i64) -> AttributeProto {
        AttributeProto { name: name.into(), i, ..AttributeProto::default() }
    }

    fn refers(name: &str, to: &str) -> AttributeProto {
        AttributeProto { name: name.into(), ref_attr_name: to.into(), ..AttributeProto::default() }
    }

    fn read(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>> {
        let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
        let graph =
            GraphProto { node: nodes, input: vec![value("x")], output: vec![value("y")], ..GraphProto::default() };
        let proto = ModelProto {
            opset_import: vec![OperatorSetIdProto { version: OPSET, ..OperatorSetIdProto::default() }],
            graph: Some(graph).into(),
            functions,
            ..ModelProto::default()
        };
        let model = Model::from_proto(proto, Path::new("m.onnx"))?;
        assert!(model.proto.functions.is_empty());
        Ok(model.graph().node.clone())
    }

    /// `outputs = op(inputs)` for every node.
    fn show(nodes: &[NodeProto]) -> Vec<String> {
        nodes.iter().map(|n| format!("{} = {}({})", n.output.join(","), n.op_type, n.input.join(","))).collect()
    }

    #[test]
    fn calls_become_the_nodes_of_their_functions() {
        let inner = function("inner", &["a"], &["c"], vec![node("Neg", &["a"], &["b"]), node("Exp", &["b"], &["c"])]);
        let outer = function(
            "outer",
            &["a", "bias"],
            &["s", "a"],
            vec![call("inner", &["a"], &["t"]), call("inner", &["t"], &["u"]), node("Sum", &["u", "bias"], &["s"])],
        );
        // Callers may come before the called.
        let nodes = read(
            vec![outer, inner],
            vec![
                call("outer", &["x"], &["p", "q"]),
                call("outer", &["p", "q"], &["r"]),
                node("Add", &["r", "q"], &["y"]),
            ],
        );
        let expected = [
            "/outer//inner/b = Neg(x)",
            "/outer/t = Exp(/outer//inner/b)",
            "/outer//inner/1/b = Neg(/outer/t)",
            "/outer/u = Exp(/outer//inner/1/b)",
            "p = Sum(/outer/u,)",
            "q = Identity(x)",
            "/outer/1//inner/b = Neg(p)",
            "/outer/1/t = Exp(/outer/1//inner/b)",
            "/outer/1//inner/1/b = Neg(/outer/1/t)",
            "/outer/1/u = Exp(/outer/1//inner/1/b)",
            "r = Sum(/outer/1/u,q)",
            "y = Add(r,q)",
        ];
        assert_eq!(show(&nodes.unwrap()), expected);
    }

    #[test]
    fn names_of_the_model_are_not_taken() {
        let f = function("f", &["a"], &["b"], vec![node("Neg", &["a"], &["t"]), node("Exp", &["t"], &["b"])]);
        let nodes = read(vec![f], vec![node("Abs", &["x"], &["/f/t"]), call("f", &["/f/t"], &["y"])]).unwrap();
        assert_eq!(show(&nodes), ["/f/t = Abs(x)", "/f/1/t = Neg(/f/t)", "y = Exp(/f/1/t)"]);
    }

    #[test]
    fn attributes_come_from_the_call_its_defaults_or_nowhere() {
        let mut f = function(
            "f",
            &["a"],
            &["b"],
            vec![NodeProto {
                attribute: vec![
                    refers("axis", "dim"),
                    refers("keepdims", "keep"),
                    refers("noop", "none"),
                    int("own", 4),
                ],
                ..node("Concat", &["a"], &["b"])
            }],
        );
        f.attribute = vec!["dim".into(), "none".into()];
        f.attribute_proto = vec![int("keep", 7)];
        let call = |attribute| NodeProto { attribute, ..call("f", &["x"], &["y"]) };
        for (given, expected) in [
            (vec![int("dim", 3)], vec![("axis", 3), ("keepdims", 7), ("own", 4)]),
            (vec![int("keep", 1), int("none", 2)], vec![("keepdims", 1), ("noop", 2), ("own", 4)]),
        ] {
            let nodes = read(vec![f.clone()], vec![call(given)]).unwrap();
            let found: Vec<_> = nodes[0].attribute.iter().map(|a| (a.name.as_str(), a.i)).collect();
            assert_eq!(found, expected);
            assert!(nodes[0].attribute.iter().all(|a| a.ref_attr_name.is_empty()));
        }
    }

    #[test]
    fn subgraphs_are_renamed_and_inlined() {
        let branch = |name: &str, nodes: Vec<NodeProto>, output: &str| AttributeProto {
            name: name.into(),
            g: Some(GraphProto {
                node: nodes,
                output: vec![ValueInfoProto { name: output.into(), ..ValueInfoProto::default() }],
                ..GraphProto::default()
            })
            .into(),
            ..AttributeProto::default()
        };
        let g = function("g", &["a"], &["b"], vec![node("Neg", &["a"], &["b"])]);
        let choice = NodeProto {
            attribute: vec![
                branch("then_branch", vec![call("g", &["t"], &["v"])], "v"),
                branch("else_branch", vec![node("Abs", &["a"], &["v"])], "v"),
            ],
            ..node("If", &["a"], &["b"])
        };
        let f = function("f", &["a"], &["b"], vec![node("Exp", &["a"], &["t"]), choice]);
        let nodes = read(vec![f, g], vec![call("f", &["x"], &["y"])]).unwrap();
        assert_eq!(show(&nodes), ["/f/t = Exp(x)", "y = If(x)"]);
        let inner: Vec<_> = subgraphs(&nodes[1]).map(|g| (show(&g.node), g.output[0].name.clone())).collect();
        let expected = |text: &str, output: &str| (vec![text.to_owned()], output.to_owned());
        assert_eq!(inner, [expected("/f/v = Neg(/f/t)", "/f/v"), expected("/f/v_ = Abs(x)", "/f/v_")]);
    }

    #[test]
    fn hostile_functions_are_errors() {
        let ring = |from: &str, to: &str| function(from, &["a"], &["b"], vec![call(to, &["a"], &["b"])]);
        let code = |functions, nodes| read(functions, nodes).unwrap_err().code;
        let once = || vec![call("f", &["x"], &["y"])];
        assert_eq!(code(vec![ring("f", "g"), ring("g", "h"), ring("h", "f")], once()), "E0107");
        let own = FunctionProto {
            domain: String::new(),
            ..function("Neg", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])])
        };
        assert_eq!(code(vec![own], vec![node("Neg", &["x"], &["y"])]), "E0114");
        let mut old = function("f", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])]);
        old.opset_import[0].version = 12;
        assert_eq!(code(vec![old], once()), "E0114");
        let f = || function("f", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])]);
        assert_eq!(code(vec![f()], vec![call("f", &["x", "x"], &["y"])]), "E0114");
        assert_eq!(code(vec![f()], vec![call("f", &["x"], &["y", "z"])]), "E0114");
        assert_eq!(code(vec![f(), f()], once()), "E0105");
        assert_eq!(code(vec![function("f", &["a"], &["b"], vec![])], once()), "E0106");
    }

    /// Functions that call the one before them twice: as many nodes as 2 to the power of their number.
    #[test]
    fn doubling_is_counted_before_it_is_done() {
        let mut functions = vec![function("f0", &["a"], &["b"], vec![node("Neg", &["a"], &["b"])])];
        for level in 1..64 {
            let below = format!("f{}", level - 1);
            let twice = vec![call(&below, &["a"], &["t"]), call(&below, &["t"], &["b"])];
            functions.push(function(&format!("f{level}"), &["a"], &["b"], twice));
        }
        let some = |level: usize| read(functions[..=level].to_vec(), vec![call(&format!("f{level}"), &["x"], &["y"])]);
        assert_eq!(some(8).unwrap().len(), 256);
        assert_eq!(some(63).unwrap_err().code, "E0113");
        // Large tensors in few nodes.
        let tensor = onnx_protobuf::TensorProto { raw_data: vec![0; 1 << 20], ..Default::default() };
        let value = AttributeProto { name: "value".into(), t: Some(tensor).into(), ..AttributeProto::default() };
        let large = NodeProto { attribute: vec![value], ..node("Constant", &[], &["b"]) };
        let mut functions = vec![function("f0", &["a"], &["b"], vec![large])];
        for level in 1..12 {
            let twice = vec![
                call(&format!("f{}", level - 1), &["a"], &["t"]),
                call(&format!("f{}", level - 1), &["t"], &["b"]),
            ];
            functions.push(function(&format!("f{level}"), &["a"], &["b"], twice));
        }
        let error = read(functions, vec![call("f11", &["x"], &["y"])]).unwrap_err();
        assert_eq!(error.code, "E0113");
    }
}
