//! Which weights are the provider's: the owner of every floating tensor of a model.
//!
//! Names change from one export to the next, contents do not. A tensor is public when its content stands in the base
//! model: as a tensor, as its transpose, as rows or columns that all stand there, or, for a vector, as base vectors one
//! after another. Whatever nothing makes public is private, the safe direction: a public weight taken for private costs
//! time, the other error gives the provider's weight away. Numbers of one element are structure of the graph and public,
//! and so are integer tensors, but for those that earlier passes found to be used as weights. Equality itself shows which tensors were left as they were.
//!
//! Models that were read for costs alone may lack contents. A tensor that lacks them, or whose namesake in the base does,
//! then counts as public when name and shape are those of a tensor of the base: a guess, which says so, and with which no
//! plan is made that can run.

mod content;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use globset::{GlobBuilder, GlobMatcher};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

use crate::import::constant_tensor;
use crate::onnx::{Model, shape, subgraphs};
use content::{Content, Kind};

/// Who owns a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Anyone may have it.
    Public,
    /// The provider alone has it.
    Private,
}

/// The owner of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name of the initializer, or of the output of the `Constant` node.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Who owns it.
    pub owner: Owner,
    /// What decided it.
    pub why: String,
    /// The first node that uses it, in terms of the modules of the exported program where the exporter kept them.
    pub readable: Option<String>,
}

/// The owners of the floating tensors of a model and of its integer weights, in order of name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// One entry for each name.
    pub tensors: Vec<Label>,
    /// How many are public because of name and shape alone, since contents are not there.
    pub guessed: usize,
}

impl Labels {
    /// The label of the tensor called `name`; none for integers that are structure and for names that are no
    /// tensor.
    pub fn get(&self, name: &str) -> Option<&Label> {
        let at = self.tensors.binary_search_by(|label| label.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }
}

/// What the user and earlier passes know about weights by name.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Patterns of names that are public. `*` stands for any characters.
    pub public: Vec<String>,
    /// Patterns of names that are private, whatever else holds.
    pub private: Vec<String>,
    /// Names of tensors that are no weights by their use, such as rotary tables and masks.
    pub structure: BTreeSet<String>,
    /// Names of integer tensors that are weights by their use: floating-point numbers are made from them.
    pub integers: BTreeSet<String>,
}

/// Labels the floating tensors of `tuned` and the integer ones that `overrides` names: initializers and `Constant` nodes,
/// those of subgraphs and functions included.
///
/// A private pattern decides first, then a public one, then structure, then content. Where one name stands for several
/// tensors, in branches of an `If`, it is private if one of them is.
///
/// # Errors
/// `E0150` for a pattern that is none, `E0151` for one that matches none of these tensors, otherwise as [`Model::bytes`].
pub fn label(tuned: &Model, base: Option<&Model>, overrides: &Overrides) -> Result<Labels> {
    let private = patterns(&overrides.private, "--private")?;
    let public = patterns(&overrides.public, "--public")?;
    let tensors = tensors_of(tuned, &|name| overrides.integers.contains(name));
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    for (pattern, option) in private.iter().map(|p| (p, "--private")).chain(public.iter().map(|p| (p, "--public"))) {
        if !names.iter().any(|name| pattern.is_match(name)) {
            let message = format!("{option} '{}' matches no weight", pattern.glob());
            return Err(Diagnostic::input("E0151", message)
                .at(tuned.path.display().to_string())
                .note("patterns are compared with the names of initializers"));
        }
    }
    let kinds: BTreeSet<Kind> = tensors.iter().filter_map(|(_, tensor)| Kind::of(tensor)).collect();
    let integers = !overrides.integers.is_empty();
    let of_base: Vec<_> = base.map(|base| tensors_of(base, &|_| integers)).unwrap_or_default();
    let mut namesakes: BTreeMap<String, (Vec<usize>, bool)> = BTreeMap::new();
    for (name, tensor) in &of_base {
        namesakes.insert(name.clone(), (shape(tensor)?, base.is_some_and(|base| base.has_data(tensor))));
    }
    let mut content = match base {
        Some(base) => {
            let readable = of_base.into_iter().filter(|(_, tensor)| base.has_data(tensor)).collect();
            Some(Content::new(base, readable, kinds)?)
        }
        None => None,
    };
    let mut guessed = 0;
    let consumers = places(tuned);
    let mut labels = BTreeMap::new();
    for (name, tensor) in &tensors {
        let Some(kind) = Kind::of(tensor) else { continue };
        let shape = shape(tensor)?;
        let by_name = |patterns: &[GlobMatcher], option: &str| {
            patterns.iter().find(|p| p.is_match(name)).map(|p| format!("matches {option} '{}'", p.glob()))
        };
        let (owner, why) = if let Some(why) = by_name(&private, "--private") {
            (Owner::Private, why)
        } else if let Some(why) = by_name(&public, "--public") {
            (Owner::Public, why)
        } else if overrides.structure.contains(name) {
            (Owner::Public, "is part of the structure by its use".into())
        } else if shape.iter().product::<usize>() < 2 {
            (Owner::Public, "has at most one element and is part of the structure".into())
        } else {
            match &mut content {
                None => (Owner::Private, "there is no base to compare with".into()),
                Some(content) => {
                    let readable = tuned.has_data(tensor);
                    let why = if readable { content.find(tuned, tensor, kind)? } else { None };
                    let namesake = namesakes.get(name).is_some_and(|(s, has)| *s == shape && !(*has && readable));
                    match why {
                        Some(why) => (Owner::Public, why),
                        None if namesake => {
                            guessed += 1;
                            (Owner::Public, "has name and shape of a tensor of the base; contents are not there".into())
                        }
                        None => (Owner::Private, "its content is not in the base".into()),
                    }
                }
            }
        };
        let readable = consumers.get(name.as_str()).cloned();
        let label = Label { name: name.clone(), shape, owner, why, readable };
        match labels.get_mut(name) {
            Some(Label { owner: Owner::Private, .. }) => {}
            Some(other) => *other = label,
            None => {
                labels.insert(name.clone(), label);
            }
        }
    }
    Ok(Labels { tensors: labels.into_values().collect(), guessed })
}

/// The patterns given with `option`.
fn patterns(patterns: &[String], option: &str) -> Result<Vec<GlobMatcher>> {
    patterns
        .iter()
        .map(|pattern| match GlobBuilder::new(pattern).literal_separator(false).build() {
            Ok(glob) => Ok(glob.compile_matcher()),
            Err(e) => Err(Diagnostic::input("E0150", format!("{option} '{pattern}' is no pattern: {}", e.kind()))
                .note("'*' stands for any characters, '?' for one, '[ab]' for one of some")),
        })
        .collect()
}

/// Names and tensors of the initializers and `Constant` nodes of `model` that are floating, or integer and `wanted`.
pub(crate) fn tensors_of<'a>(model: &'a Model, wanted: &dyn Fn(&str) -> bool) -> Vec<(String, Cow<'a, TensorProto>)> {
    let mut found = Vec::new();
    collect_graph(model.graph(), &mut found);
    found.retain(|(name, tensor)| Kind::of(tensor).is_some_and(|kind| kind.is_floating() || wanted(name)));
    found
}

/// Adds the tensors of `graph` to `found`.
fn collect_graph<'a>(graph: &'a GraphProto, found: &mut Vec<(String, Cow<'a, TensorProto>)>) {
    found.extend(graph.initializer.iter().map(|t| (t.name.clone(), Cow::Borrowed(t))));
    collect_nodes(&graph.node, found);
}

/// Adds the tensors of `nodes` to `found`.
fn collect_nodes<'a>(nodes: &'a [NodeProto], found: &mut Vec<(String, Cow<'a, TensorProto>)>) {
    for node in nodes {
        subgraphs(node).for_each(|graph| collect_graph(graph, found));
        if let (Some(name), Some(tensor)) = (node.output.first(), constant_tensor(node)) {
            found.push((name.clone(), tensor));
        }
    }
}

/// For each value the readable name of the first node that takes it, in the order of the graph.
pub fn places(model: &Model) -> HashMap<&str, String> {
    let mut map = HashMap::new();
    collect_consumers(&model.graph().node, &mut map);
    map
}

/// Adds the inputs of `nodes` to `map`.
fn collect_consumers<'a>(nodes: &'a [NodeProto], map: &mut HashMap<&'a str, String>) {
    for node in nodes {
        for input in node.input.iter().filter(|name| !name.is_empty()) {
            if !map.contains_key(input.as_str())
                && let Some(name) = readable(node)
            {
                map.insert(input, name);
            }
        }
        subgraphs(node).for_each(|graph| collect_consumers(&graph.node, map));
    }
}

/// The innermost module in which the exporter says that `node` was made, otherwise the node's own name.
fn readable(node: &NodeProto) -> Option<String> {
    let scopes = node.metadata_props.iter().find(|p| p.key == "pkg.torch.onnx.name_scopes");
    let innermost = scopes.and_then(|p| p.value.split('\'').rev().nth(3)).filter(|scope| !scope.is_empty());
    let name = innermost.unwrap_or(&node.name);
    (!name.is_empty()).then(|| name.to_owned())
}
