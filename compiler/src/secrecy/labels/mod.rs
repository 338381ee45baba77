//! Which weights are the provider's: the owner of every floating tensor of a model.
//!
//! Names change from one export to the next, contents do not. A tensor is public when its content stands in the base
//! model: as a tensor, as its transpose, as rows or columns that all stand there, or, for a vector, as base vectors one
//! after another. Whatever nothing makes public is private, the safe direction: a public weight taken for private costs
//! time, the other error gives the provider's weight away. Numbers of one element are structure of the graph and public,
//! and so are integer tensors, but for those that earlier passes found to be used as weights. Equality itself shows which tensors were left as they were.
//!
//! Patterns of names are compared with a tensor's own name and with all names that the file has for its uses, as
//! exporters name many weights by a number. A private pattern needs one of these to fit, a public one the tensor's own
//! or one of every use. Only the exact name of a number of one element, or of a table of angles or a mask, makes that
//! private: a pattern means weights. A layer of which private patterns name a part and public ones another is refused,
//! since names that an exporter lost look just like that.
//!
//! Models that were read for costs alone may lack contents. A tensor that lacks them, or whose namesake in the base does,
//! then counts as public when name and shape are those of a tensor of the base: a guess, which says so, and with which no
//! plan is made that can run.

mod content;
mod names;
mod summary;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use globset::{GlobBuilder, GlobMatcher};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

use crate::import::constant_tensor;
use crate::import::layers::layer_of_name;
use crate::onnx::{Model, shape, subgraphs};
use content::{Content, Kind, Match};

/// Who owns a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Anyone may have it.
    Public,
    /// The provider alone has it.
    #[default]
    Private,
}

/// What decides who owns a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// A pattern of names, public or private.
    Name,
    /// It is no weight by its use or its size.
    Structure,
    /// Its content is in the base.
    Content,
    /// Its content is in the base but for digits that the base's narrower elements do not have.
    Digits,
    /// Name and shape are in the base, contents are not there to compare.
    Guess,
    /// Nothing makes it public.
    #[default]
    Nothing,
}

/// The owner of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Name of the initializer, or of the output of the `Constant` node.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Who owns it.
    pub owner: Owner,
    /// What decided it, in words.
    pub why: String,
    /// What decided it.
    pub reason: Reason,
    /// The layers that use it, in order; none for what comes before and after them.
    pub layers: Vec<u32>,
    /// The first node that uses it, in terms of the modules of the exported program where the exporter kept them.
    pub readable: Option<String>,
}

impl Label {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The owners of the floating tensors of a model and of its integer weights, in order of name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// One entry for each name.
    pub tensors: Vec<Label>,
    /// How many are public because of name and shape alone, since contents are not there.
    pub guessed: usize,
    /// Whether there was a base to compare with.
    pub compared: bool,
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
    /// Layers that use a tensor, by the graph, for those whose names show none.
    pub layers: BTreeMap<String, BTreeSet<u32>>,
    /// Layers may be public in part by name and private in part by name.
    pub partly_public: bool,
}

/// What is compared with patterns: a tensor's own name, and names of its uses.
struct Named<'a> {
    own: &'a str,
    uses: &'a [Vec<String>],
    structure: bool,
}

impl Named<'_> {
    /// The private pattern that names it, if one does.
    fn private<'p>(&self, patterns: &'p [GlobMatcher]) -> Option<&'p GlobMatcher> {
        patterns.iter().find(|p| match self.structure {
            true => p.glob().glob() == self.own,
            false => p.is_match(self.own) || self.uses.iter().flatten().any(|name| p.is_match(name)),
        })
    }

    /// The public pattern that names it, if one does.
    fn public<'p>(&self, patterns: &'p [GlobMatcher]) -> Option<&'p GlobMatcher> {
        let all = |p: &GlobMatcher| self.uses.iter().all(|names| names.iter().any(|name| p.is_match(name)));
        patterns.iter().find(|p| p.is_match(self.own) || !self.uses.is_empty() && all(p))
    }
}

/// Labels the floating tensors of `tuned` and the integer ones that `overrides` names: initializers and `Constant` nodes,
/// those of subgraphs and functions included.
///
/// A private pattern decides first, then structure, then a public pattern, then content. Where one name stands for several
/// tensors, in branches of an `If`, it is private if one of them is.
///
/// # Errors
/// `E0150` for a pattern that is none, `E0151` for one that matches none of these tensors, `E0152` for a layer that names
/// make private in part and public in part, otherwise as [`Model::bytes`].
pub fn label(tuned: &Model, base: Option<&Model>, overrides: &Overrides) -> Result<Labels> {
    let private = patterns(&overrides.private, "--private")?;
    let public = patterns(&overrides.public, "--public")?;
    let tensors = tensors_of(tuned, &|name| overrides.integers.contains(name));
    let uses = names::uses(tuned);
    let named = |name: &'_ str| uses.get(name).map_or(&[][..], Vec::as_slice);
    for (pattern, option) in private.iter().map(|p| (p, "--private")).chain(public.iter().map(|p| (p, "--public"))) {
        let fits = |name: &str| pattern.is_match(name) || named(name).iter().flatten().any(|n| pattern.is_match(n));
        if !tensors.iter().any(|(name, _)| fits(name)) {
            let message = format!("{option} '{}' matches no weight", pattern.glob());
            return Err(Diagnostic::input("E0151", message)
                .at(tuned.path.display().to_string())
                .note(
                    "patterns are compared with the names of initializers, and of the nodes and modules that use them",
                )
                .note("`ombra explain` prints both for every weight"));
        }
    }
    let integers = !overrides.integers.is_empty();
    let of_base: Vec<_> = base.map(|base| tensors_of(base, &|_| integers)).unwrap_or_default();
    let mut namesakes: BTreeMap<String, (Vec<usize>, bool)> = BTreeMap::new();
    for (name, tensor) in &of_base {
        namesakes.insert(name.clone(), (shape(tensor)?, base.is_some_and(|base| base.has_data(tensor))));
    }
    let readable = |base: &Model| of_base.iter().filter(|(_, t)| base.has_data(t)).cloned().collect::<Vec<_>>();
    let readable = base.map(readable).unwrap_or_default();
    let mut content = base.map(|base| Content::new(base, &readable)).transpose()?;
    let mut guessed = 0;
    let consumers = places(tuned);
    let mut labels = BTreeMap::new();
    for (name, tensor) in &tensors {
        let Some(kind) = Kind::of(tensor) else { continue };
        let shape = shape(tensor)?;
        let single = shape.iter().product::<usize>() < 2;
        let structure = single || overrides.structure.contains(name);
        let names = Named { own: name, uses: named(name), structure };
        let (owner, reason, why) = if let Some(pattern) = names.private(&private) {
            (Owner::Private, Reason::Name, format!("matches --private '{}'", pattern.glob()))
        } else if single {
            (Owner::Public, Reason::Structure, "has at most one element and is part of the structure".into())
        } else if structure {
            (Owner::Public, Reason::Structure, "is part of the structure by its use".into())
        } else if let Some(pattern) = names.public(&public) {
            (Owner::Public, Reason::Name, format!("matches --public '{}'", pattern.glob()))
        } else {
            match &mut content {
                None => (Owner::Private, Reason::Nothing, "there is no base to compare with".into()),
                Some(content) => {
                    let readable = tuned.has_data(tensor);
                    let found = if readable { content.find(tuned, name, tensor, kind)? } else { Match::Unknown };
                    let namesake = namesakes.get(name).is_some_and(|(s, has)| *s == shape && !(*has && readable));
                    match found {
                        Match::Known(why) => (Owner::Public, Reason::Content, why),
                        _ if namesake => {
                            guessed += 1;
                            let why = "has name and shape of a tensor of the base; contents are not there";
                            (Owner::Public, Reason::Guess, why.into())
                        }
                        Match::Rounds => {
                            let why = "has digits beyond those of the base, which has elements of a narrower type";
                            (Owner::Private, Reason::Digits, why.into())
                        }
                        Match::Unknown => (Owner::Private, Reason::Nothing, "its content is not in the base".into()),
                    }
                }
            }
        };
        let mut layers: BTreeSet<u32> = layer_of_name(name).into_iter().collect();
        layers.extend(names.uses.iter().filter_map(|use_| use_.iter().find_map(|n| layer_of_name(n))));
        // A path without a layer, of the tensor's module or of a node that uses it, says that it is in none.
        let is_path = |name: &str| name.contains(['.', '/']);
        let placed = is_path(name) || names.uses.iter().flatten().any(|name| is_path(name));
        if layers.is_empty() && !placed {
            layers.extend(overrides.layers.get(name).into_iter().flatten());
        }
        let (layers, readable) = (layers.into_iter().collect(), consumers.get(name.as_str()).cloned());
        let label = Label { name: name.clone(), shape, owner, why, reason, layers, readable };
        match labels.get_mut(name) {
            Some(Label { owner: Owner::Private, .. }) => {}
            Some(other) => *other = label,
            None => {
                labels.insert(name.clone(), label);
            }
        }
    }
    let labels = Labels { tensors: labels.into_values().collect(), guessed, compared: base.is_some() };
    if !overrides.partly_public {
        check_layers(&labels)?;
    }
    Ok(labels)
}

/// Tensors that are listed in a message.
const LISTED: usize = 4;

/// Refuses layers that are private in part and public in part by name.
fn check_layers(labels: &Labels) -> Result<()> {
    let by_name = labels.tensors.iter().filter(|l| l.reason == Reason::Name && l.elements() > 1);
    let mut layers: BTreeMap<u32, [Vec<&Label>; 2]> = BTreeMap::new();
    for label in by_name {
        for layer in &label.layers {
            let [private, public] = layers.entry(*layer).or_default();
            if label.owner == Owner::Private { private } else { public }.push(label);
        }
    }
    layers.retain(|_, [private, public]| !private.is_empty() && !public.is_empty());
    let Some((layer, [private, public])) = layers.first_key_value() else { return Ok(()) };
    let parameters = |labels: &[&Label]| labels.iter().map(|l| l.elements()).sum::<usize>();
    let listed: Vec<String> = public.iter().take(LISTED).map(|l| format!("`{}`", l.name)).collect();
    let more = if public.len() > LISTED { " and more" } else { "" };
    let message = format!(
        "layer {layer} would be public in part: --private names {} of its parameters, --public {}",
        parameters(private),
        parameters(public)
    );
    let mut error = Diagnostic::input("E0152", message)
        .note(format!("public would be {}{more}", listed.join(", ")))
        .note("name them too with --private, or say --partly-public if layers are meant to be so");
    if layers.len() > 1 {
        let others: Vec<u32> = layers.keys().skip(1).copied().collect();
        error = error.note(format!("the same holds for layers {}", summary::ranges(&others)));
    }
    Err(error)
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
    let scopes = node.metadata_props.iter().find(|p| p.key == names::SCOPES);
    let innermost = scopes.and_then(|p| p.value.split('\'').rev().nth(3)).filter(|scope| !scope.is_empty());
    let name = innermost.unwrap_or(&node.name);
    (!name.is_empty()).then(|| name.to_owned())
}
