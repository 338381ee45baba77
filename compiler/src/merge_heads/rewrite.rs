//! The rewriting of the ONNX file: activations move, weights stay as they are.
//!
//! With `m` heads in a group, `g = h / m` groups and `⊕` for concatenation along the last axis (MARILL §5.3):
//!
//! ```text
//! scores(group) = (⊕ qᵢ) · (⊕ kᵢ)ᵀ · scale / √m        for i in the group
//! output(group) = softmax(scores(group) + mask) · (⊕ vᵢ)  = ⊕ oᵢ
//! ```
//!
//! Queries and keys are taken after their rotation, so that stays the one of every original head, and caches hold the
//! original heads in their original order. The outputs are put back into that order, so the projection after them finds
//! every head where it was. Reading, moving and joining heads follows public constants: it costs nothing under MPC.

use std::collections::{BTreeMap, HashMap, HashSet};

use half::{bf16, f16};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use protobuf::Enum;

use super::find::{Mergeable, Scale};
use crate::attention::{Attention, place};
use crate::graph::{Graph, Op, ValueId};
use crate::onnx::{attribute, element_of, is_default_domain, used_names};

/// Word in the names of everything that is added.
const WORD: &str = "merge_heads";

/// One attention and the groups that its heads form.
pub struct Merge<'a> {
    /// The attention.
    pub mergeable: &'a Mergeable,
    /// Groups of heads, all of the same size, every head in one of them.
    pub groups: &'a [Vec<usize>],
}

/// `proto` with heads merged; `graph` is what it was imported as.
///
/// # Errors
/// `E0592` for every attention that the file writes in a form that is not rewritten.
pub fn rewrite(
    proto: &ModelProto,
    graph: &Graph,
    merges: &[Merge],
) -> std::result::Result<ModelProto, Vec<Diagnostic>> {
    let mut file = File::new(&proto.graph);
    let mut errors = Vec::new();
    for merge in merges {
        if let Err(e) = file.merge(graph, merge) {
            errors.push(e.at(place(graph, merge.mergeable.attention.scores)));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut new = proto.clone();
    if let Some(graph) = new.graph.as_mut() {
        file.finish(graph);
    }
    Ok(new)
}

/// What changes in a file.
struct File<'a> {
    graph: &'a GraphProto,
    producer: HashMap<&'a str, usize>,
    names: HashSet<String>,
    changed: BTreeMap<usize, NodeProto>,
    before: BTreeMap<usize, Vec<NodeProto>>,
    after: BTreeMap<usize, Vec<NodeProto>>,
    initializers: Vec<TensorProto>,
    lists: BTreeMap<Vec<i64>, String>,
    reshaped: HashSet<String>,
    replaced: HashSet<String>,
}

/// How heads are arranged: everything that the nodes of one attention need to know.
struct Layout<'a> {
    /// Node whose metadata new nodes get, and the beginning of their names.
    like: &'a NodeProto,
    heads: usize,
    factor: usize,
    /// Heads group by group.
    order: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let nodes = || graph.node.iter();
        let producer = nodes().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)));
        let tensors = graph.initializer.iter().map(|t| &t.name).chain(graph.input.iter().map(|v| &v.name));
        let names = nodes().flat_map(|n| n.output.iter().chain([&n.name])).chain(tensors);
        File {
            graph,
            producer: producer.filter(|(o, _)| !o.is_empty()).collect(),
            names: names.cloned().collect(),
            changed: BTreeMap::new(),
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            initializers: Vec::new(),
            lists: BTreeMap::new(),
            reshaped: HashSet::new(),
            replaced: HashSet::new(),
        }
    }

    /// The node of the main graph that computes the ONNX value `name`, as it is now.
    fn node(&self, name: &str) -> Option<(usize, NodeProto)> {
        let &at = self.producer.get(name)?;
        Some((at, self.changed.get(&at).or_else(|| self.graph.node.get(at))?.clone()))
    }

    fn merge(&mut self, graph: &Graph, merge: &Merge) -> Result<()> {
        let Mergeable { attention: a, scale, .. } = merge.mergeable;
        let (scores_name, output_name) = (written_as(graph, a.scores)?, written_as(graph, a.output)?);
        let factor = merge.groups.first().map_or(1, Vec::len);
        if scores_name == output_name
            && let Some((at, node)) = self.node(&scores_name)
            && node.op_type == "Attention"
            && is_default_domain(&node.domain)
        {
            let layout = Layout { like: &node, heads: a.heads, factor, order: merge.groups.concat() };
            return self.merge_operator(graph, a, at, &layout);
        }
        let (scores_at, scores) = self.product(&scores_name)?;
        let (output_at, output) = self.product(&output_name)?;
        let layout = Layout { like: &scores, heads: a.heads, factor, order: merge.groups.concat() };
        if flag(&scores, "transA") || flag(&output, "transA") || flag(&output, "transB") {
            return Err(unknown("one of its products transposes an operand that is written row by row"));
        }
        let own = |id: ValueId| if graph.shape(id).get(1).is_some_and(|d| d.is(1)) { 1 } else { a.heads };

        self.forget_shapes(&scores_name, output_at);
        let (mut new_scores, mut new_output) = (scores.clone(), output.clone());
        let mut steps = Vec::new();
        let queries = self.merge_rows(&layout, &mut steps, "queries", input(&scores, 0)?, a.key_size, a.heads);
        let (keys, own_keys) = (input(&scores, 1)?, own(a.keys));
        let keys = if flag(&scores, "transB") {
            self.merge_rows(&layout, &mut steps, "keys", keys, a.key_size, own_keys)
        } else {
            self.merge_columns(&layout, &mut steps, "keys", keys, a.key_size, own_keys)
        };
        (new_scores.input[0], new_scores.input[1]) = (queries, keys);
        self.before.entry(scores_at).or_default().extend(steps);

        let mut steps = Vec::new();
        let values = input(&output, 1)?;
        new_output.input[1] = self.merge_rows(&layout, &mut steps, "values", values, a.value_size, own(a.values));
        self.before.entry(output_at).or_default().extend(steps);
        let merged = self.unique(&format!("{output_name}/{WORD}"));
        new_output.output[0] = merged.clone();
        let steps = self.split_rows(&layout, merged, output_name, a.value_size);
        self.after.entry(output_at).or_default().extend(steps);
        self.changed.insert(output_at, new_output);

        let root = libm::sqrt(factor as f64);
        if scores.op_type == "FusedMatMul" {
            let alpha = attribute(&scores, "alpha").map_or(1.0, |a| a.f);
            set_float(&mut new_scores, "alpha", f64::from(alpha) / root);
            self.changed.insert(scores_at, new_scores);
            return Ok(());
        }
        self.changed.insert(scores_at, new_scores.clone());
        if !self.rescale(graph, *scale, &scores, root)? {
            // No constant of its own: one more product.
            let kind = self.kind_of(&scores_name);
            let inner = self.unique(&format!("{scores_name}/{WORD}"));
            new_scores.output[0] = inner.clone();
            self.changed.insert(scores_at, new_scores);
            let factor = self.scalar(kind, 1.0 / root);
            let node = self.make(&layout, "scale", "Mul", vec![inner, factor], Some(scores_name), Vec::new());
            self.after.entry(scores_at).or_default().push(node);
        }
        Ok(())
    }

    /// Merges heads around ONNX's operator `Attention` on heads of four axes.
    fn merge_operator(&mut self, graph: &Graph, a: &Attention, at: usize, layout: &Layout) -> Result<()> {
        let node = layout.like;
        let given = |slot: usize| node.input.get(slot).is_some_and(|name| !name.is_empty());
        if given(4) || given(5) || node.output.iter().skip(1).any(|o| !o.is_empty()) {
            return Err(unknown("the operator Attention keeps the cache or gives more than its result")
                .note("export with the cache outside of the operator"));
        }
        if attribute(node, "q_num_heads").is_some_and(|a| a.i != 0) {
            return Err(unknown("the operator Attention takes heads side by side")
                .note("expected operands of shape [batch, heads, tokens, size]"));
        }
        let heads_of = |name: &str| {
            let values = graph.iter().filter(|(_, n)| n.origin.value == name && n.shape.len() == 4);
            let heads = values.last().and_then(|(_, n)| n.shape.get(1)?.as_constant());
            heads.and_then(|h| usize::try_from(h).ok()).filter(|h| *h > 0 && a.heads.is_multiple_of(*h))
        };
        let mut new = node.clone();
        let mut steps = Vec::new();
        for (slot, what, size) in [(0, "queries", a.key_size), (1, "keys", a.key_size), (2, "values", a.value_size)] {
            let name = input(node, slot)?;
            let own =
                heads_of(&name).ok_or_else(|| unknown(&format!("the number of heads of its {what} is unknown")))?;
            let merged = self.merge_rows(layout, &mut steps, what, name, size, own);
            if let Some(operand) = new.input.get_mut(slot) {
                *operand = merged;
            }
        }
        self.before.entry(at).or_default().extend(steps);
        let result = node.output.first().cloned().unwrap_or_default();
        let merged = self.unique(&format!("{result}/{WORD}"));
        if let Some(output) = new.output.first_mut() {
            *output = merged.clone();
        }
        let steps = self.split_rows(layout, merged, result, a.value_size);
        self.after.entry(at).or_default().extend(steps);
        let old = attribute(node, "scale").map_or(1.0 / libm::sqrt(a.key_size as f64), |a| f64::from(a.f));
        set_float(&mut new, "scale", old / libm::sqrt(layout.factor as f64));
        self.changed.insert(at, new);
        Ok(())
    }

    /// The product that computes `name`.
    fn product(&self, name: &str) -> Result<(usize, NodeProto)> {
        let Some((at, node)) = self.node(name) else {
            return Err(unknown("it stands in a branch or in a local function")
                .note("export without control flow and local functions"));
        };
        let known = match node.op_type.as_str() {
            "MatMul" => is_default_domain(&node.domain),
            "FusedMatMul" => true,
            _ => false,
        };
        if !known {
            let (operator, domain) = (node.op_type.escape_debug(), node.domain.escape_debug());
            return Err(unknown(&format!("the file computes it with the operator {operator} of domain '{domain}'"))
                .note("expected MatMul or ONNX's own Attention; export without fused attention"));
        }
        if node.input.len() != 2 || node.output.len() != 1 {
            return Err(unknown("a product does not have two inputs and one output"));
        }
        Ok((at, node))
    }

    /// Divides the constant of `scale` by `root`; gives whether it stands where it can be changed.
    fn rescale(&mut self, graph: &Graph, scale: Option<Scale>, scores: &NodeProto, root: f64) -> Result<bool> {
        let Some(scale) = scale else { return Ok(false) };
        let divides = graph.op(scale.at) == Some(&Op::DIV);
        let name = graph.node(scale.at)?.origin.value.clone();
        let Some((at, mut node)) = self.node(&name) else { return Ok(false) };
        // It stands beside this very product, on the one side or the other.
        let beside = scores.input.contains(&name) || scores.output.first().is_some_and(|o| node.input.contains(o));
        let expected = if divides { "Div" } else { "Mul" };
        if !beside || node.op_type != expected || !is_default_domain(&node.domain) {
            return Ok(false);
        }
        let value = f64::from(scale.value);
        let constant = self.scalar(self.kind_of(&name), if divides { value * root } else { value / root });
        let Some(slot) = node.input.get_mut(scale.slot) else { return Ok(false) };
        self.replaced.insert(std::mem::replace(slot, constant));
        self.changed.insert(at, node);
        Ok(true)
    }

    fn kind_of(&self, name: &str) -> DataType {
        let kind = element_of(self.graph, &self.producer, name).and_then(DataType::from_i32);
        kind.filter(|k| crate::onnx::is_floating(*k)).unwrap_or(DataType::FLOAT)
    }

    /// Declared shapes of what depends on the scores, up to the output, hold no longer.
    fn forget_shapes(&mut self, scores: &str, output: usize) {
        let mut reached = HashSet::from([scores.to_owned()]);
        for (_, node) in self.graph.node.iter().enumerate().filter(|(i, _)| *i != output) {
            if node.input.iter().any(|i| reached.contains(i)) {
                reached.extend(node.output.iter().cloned());
            }
        }
        self.reshaped.extend(reached);
    }

    /// Heads of `x`, `[batch, heads, rows, size]`, side by side within groups: `[batch, groups, rows, factor·size]`.
    fn merge_rows(
        &mut self,
        layout: &Layout,
        steps: &mut Vec<NodeProto>,
        what: &str,
        x: String,
        size: usize,
        own: usize,
    ) -> String {
        let (groups, factor, size) = (layout.heads / layout.factor, layout.factor as i64, size as i64);
        let x = self.choose(layout, steps, what, x, own);
        let x = self.reshape(layout, steps, what, x, vec![0, groups as i64, factor, -1, size]);
        let x = self.transpose(layout, steps, what, x);
        self.reshape(layout, steps, what, x, vec![0, groups as i64, -1, factor * size])
    }

    /// Heads of `x`, `[batch, heads, size, columns]`, one above the other: `[batch, groups, factor·size, columns]`.
    fn merge_columns(
        &mut self,
        layout: &Layout,
        steps: &mut Vec<NodeProto>,
        what: &str,
        x: String,
        size: usize,
        own: usize,
    ) -> String {
        let groups = (layout.heads / layout.factor) as i64;
        let x = self.choose(layout, steps, what, x, own);
        self.reshape(layout, steps, what, x, vec![0, groups, (layout.factor * size) as i64, -1])
    }

    /// The reverse of [`File::merge_rows`], with `result` as the name of what comes out.
    fn split_rows(&mut self, layout: &Layout, x: String, result: String, size: usize) -> Vec<NodeProto> {
        let mut steps = Vec::new();
        let (groups, factor, size) = (layout.heads / layout.factor, layout.factor as i64, size as i64);
        let x = self.reshape(layout, &mut steps, "output", x, vec![0, groups as i64, -1, factor, size]);
        let x = self.transpose(layout, &mut steps, "output", x);
        let x = self.reshape(layout, &mut steps, "output", x, vec![0, layout.heads as i64, -1, size]);
        let mut back = vec![0i64; layout.heads];
        for (at, &head) in (0i64..).zip(&layout.order) {
            if let Some(slot) = back.get_mut(head) {
                *slot = at;
            }
        }
        self.gather(layout, &mut steps, "output", x, back);
        if let Some(last) = steps.last_mut().and_then(|n| n.output.first_mut()) {
            *last = result;
        }
        steps
    }

    /// The heads of `x` group by group; `own` heads are repeated for every one that shares them.
    fn choose(&mut self, layout: &Layout, steps: &mut Vec<NodeProto>, what: &str, x: String, own: usize) -> String {
        let order = layout.order.iter().map(|&h| (h * own / layout.heads.max(1)) as i64).collect();
        self.gather(layout, steps, what, x, order)
    }

    fn gather(&mut self, l: &Layout, steps: &mut Vec<NodeProto>, what: &str, x: String, order: Vec<i64>) -> String {
        if order.iter().copied().eq(0..l.heads as i64) {
            return x;
        }
        let order = self.list(order);
        let axis = AttributeProto { name: "axis".into(), type_: AttributeType::INT.into(), i: 1, ..Default::default() };
        self.push(l, steps, what, "Gather", vec![x, order], vec![axis])
    }

    fn reshape(&mut self, l: &Layout, steps: &mut Vec<NodeProto>, what: &str, x: String, shape: Vec<i64>) -> String {
        let shape = self.list(shape);
        self.push(l, steps, what, "Reshape", vec![x, shape], Vec::new())
    }

    /// Exchanges axes 2 and 3 of 5.
    fn transpose(&mut self, layout: &Layout, steps: &mut Vec<NodeProto>, what: &str, x: String) -> String {
        let perm = AttributeProto {
            name: "perm".into(),
            type_: AttributeType::INTS.into(),
            ints: vec![0, 1, 3, 2, 4],
            ..Default::default()
        };
        self.push(layout, steps, what, "Transpose", vec![x], vec![perm])
    }

    fn push(
        &mut self,
        layout: &Layout,
        steps: &mut Vec<NodeProto>,
        what: &str,
        op: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
    ) -> String {
        let node = self.make(layout, what, op, inputs, None, attributes);
        let output = node.output.first().cloned().unwrap_or_default();
        steps.push(node);
        output
    }

    fn make(
        &mut self,
        layout: &Layout,
        what: &str,
        op: &str,
        input: Vec<String>,
        output: Option<String>,
        attribute: Vec<AttributeProto>,
    ) -> NodeProto {
        let like = layout.like;
        let base = if like.name.is_empty() { like.output.first() } else { Some(&like.name) };
        let name = self.unique(&format!("{}/{WORD}/{what}/{op}", base.map_or("", String::as_str)));
        let output = output.unwrap_or_else(|| self.unique(&format!("{name}_output_0")));
        NodeProto {
            name,
            op_type: op.into(),
            input,
            output: vec![output],
            attribute,
            metadata_props: like.metadata_props.clone(),
            ..NodeProto::default()
        }
    }

    /// `name`, or with a number where it is taken.
    fn unique(&mut self, name: &str) -> String {
        let numbered = (1u64..).map(|n| format!("{name}_{n}"));
        let free = std::iter::once(name.to_owned()).chain(numbered).find(|n| !self.names.contains(n));
        let free = free.unwrap_or_default();
        self.names.insert(free.clone());
        free
    }

    /// The name of an initializer of integers.
    fn list(&mut self, values: Vec<i64>) -> String {
        if let Some(name) = self.lists.get(&values) {
            return name.clone();
        }
        let name = self.unique(&format!("{WORD}.list_{}", self.lists.len()));
        self.initializers.push(TensorProto {
            name: name.clone(),
            dims: vec![values.len() as i64],
            data_type: DataType::INT64.value(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..TensorProto::default()
        });
        self.lists.insert(values, name.clone());
        name
    }

    /// The name of an initializer of one floating-point number.
    fn scalar(&mut self, kind: DataType, value: f64) -> String {
        let raw_data = match kind {
            DataType::DOUBLE => value.to_le_bytes().to_vec(),
            DataType::FLOAT16 => f16::from_f64(value).to_le_bytes().to_vec(),
            DataType::BFLOAT16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            _ => (value as f32).to_le_bytes().to_vec(),
        };
        let kind = if raw_data.len() == 4 { DataType::FLOAT } else { kind };
        let name = self.unique(&format!("{WORD}.scale"));
        self.initializers.push(TensorProto {
            name: name.clone(),
            data_type: kind.value(),
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    /// Puts the changes into `graph`.
    fn finish(mut self, graph: &mut GraphProto) {
        let mut nodes = Vec::with_capacity(graph.node.len());
        for (i, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            nodes.extend(self.before.remove(&i).into_iter().flatten());
            nodes.push(self.changed.remove(&i).unwrap_or(node));
            nodes.extend(self.after.remove(&i).into_iter().flatten());
        }
        graph.node = nodes;
        let mut used: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
        graph.node.iter().for_each(|n| {
            used_names(n, &mut |name| {
                used.insert(name);
            })
        });
        let unused: HashSet<String> = self.replaced.into_iter().filter(|name| !used.contains(name.as_str())).collect();
        graph.node.retain(|n| n.op_type != "Constant" || !n.output.iter().any(|o| unused.contains(o)));
        graph.initializer.retain(|t| !unused.contains(&t.name));
        graph.initializer.append(&mut self.initializers);
        graph.value_info.retain(|v| !self.reshaped.contains(&v.name));
    }
}

/// The ONNX value of `id`; for what an operator computes on the way to its output, that output.
fn written_as(graph: &Graph, mut id: ValueId) -> Result<String> {
    loop {
        let name = &graph.node(id)?.origin.value;
        match graph.users(id).first() {
            Some(&user) if name.is_empty() => id = user,
            _ => return Ok(name.clone()),
        }
    }
}

fn input(node: &NodeProto, slot: usize) -> Result<String> {
    node.input.get(slot).cloned().ok_or_else(|| unknown("a product lacks an operand"))
}

fn set_float(node: &mut NodeProto, name: &str, value: f64) {
    node.attribute.retain(|a| a.name != name);
    let f = value as f32;
    let type_ = AttributeType::FLOAT.into();
    node.attribute.push(AttributeProto { name: name.into(), type_, f, ..AttributeProto::default() });
}

fn flag(node: &NodeProto, name: &str) -> bool {
    attribute(node, name).is_some_and(|a| a.i != 0)
}

fn unknown(why: &str) -> Diagnostic {
    Diagnostic::unsupported("E0592", format!("this attention cannot be merged: {why}"))
}
