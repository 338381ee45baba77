//! Variants of a model that fine-tuning could have made, and how a typed graph becomes one of them.
//!
//! A variant is made of the graph as imported, before any pass: owners of weights change, adapters are added, heads are
//! merged. What follows is the pipeline of every compile, so a variant costs what a model exported in that form would.
//! The forms are those of Rathee et al., "MPC-Minimized Secure LLM Inference" (arXiv 2408.03561), section 5.

use super::{adapters, heads};
use crate::graph::{Graph, Op, Origin, TensorOp, ValueId};
use crate::pipeline::Analysed;
use crate::secrecy::labels::Owner;
use ombra_ir::{Diagnostic, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A form that fine-tuning gives a model.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Variant {
    /// How many of the last layers are tuned, with what follows them; all, and the embedding too, if not said.
    pub private_layers: Option<u32>,
    /// Rank of adapters beside the matrices of the tuned layers, which are then all that is tuned.
    pub rank: Option<u32>,
    /// Neighbouring heads that share a softmax in the tuned layers; 0 and 1 leave them as they are.
    pub merged: u32,
    /// 2ReLU in place of softmax under MPC.
    pub two_relu: bool,
    /// ReLU in place of GELU and SiLU under MPC.
    pub relu: bool,
}

impl Variant {
    /// In a few words, such as `last 13 layers, 4 heads merged`.
    pub fn name(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.private_layers.map(|k| format!("last {k} layers")));
        words.extend(self.rank.map(|r| format!("LoRA rank {r}")));
        words.extend((self.merged > 1).then(|| format!("{} heads merged", self.merged)));
        words.extend(self.two_relu.then(|| "2ReLU".to_string()));
        words.extend(self.relu.then(|| "ReLU".to_string()));
        if words.is_empty() { "full".into() } else { words.join(", ") }
    }

    /// How many techniques it needs.
    pub fn techniques(&self) -> usize {
        let used = [self.private_layers.is_some(), self.rank.is_some(), self.merged > 1, self.two_relu, self.relu];
        used.into_iter().filter(|used| *used).count()
    }

    /// Whether it computes other functions than the model's, which training has to make up for.
    pub fn approximates(&self) -> bool {
        self.two_relu || self.relu
    }
}

/// Where a weight stands in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Before the layers: embeddings.
    Before,
    /// In the layer of this number.
    Layer(u32),
    /// After the layers: the final norm and the head.
    After,
    /// Before and after: a head tied to its embedding.
    Both,
}

/// Where every weight of `graph` stands, by name.
///
/// # Errors
/// An internal error of the graph.
pub fn places(graph: &Graph) -> Result<BTreeMap<String, Place>> {
    let mut in_layers: BTreeSet<ValueId> = BTreeSet::new();
    for id in graph.topological() {
        // Caches are named after layers; what is computed decides.
        let own = graph.node(id)?.origin.layer.is_some() && !graph.operands(id).is_empty();
        if own || graph.operands(id).iter().any(|o| in_layers.contains(o)) {
            in_layers.insert(id);
        }
    }
    let mut found: BTreeMap<String, Place> = BTreeMap::new();
    for (id, node) in graph.iter() {
        let Op::Weight { name, .. } = &node.op else { continue };
        for place in places_of(graph, id, &in_layers)? {
            let known = found.entry(name.clone()).or_insert(place);
            *known = match (*known, place) {
                (a, b) if a == b => a,
                (Place::Layer(a), Place::Layer(b)) => Place::Layer(a.max(b)),
                (Place::Before, Place::After) | (Place::After, Place::Before) | (Place::Both, _) | (_, Place::Both) => {
                    Place::Both
                }
                (Place::Layer(n), _) | (_, Place::Layer(n)) => Place::Layer(n),
                (a, _) => a,
            };
        }
    }
    Ok(found)
}

/// Where the weight `id` is used. Movement of the weight alone is no use.
fn places_of(graph: &Graph, id: ValueId, in_layers: &BTreeSet<ValueId>) -> Result<Vec<Place>> {
    if let Some(layer) = graph.node(id)?.origin.layer {
        return Ok(vec![Place::Layer(layer)]);
    }
    let mut found = Vec::new();
    for user in graph.users(id) {
        let node = graph.node(user)?;
        let alone = graph.operands(user).iter().all(|&o| is_static(graph, o));
        if alone {
            found.extend(places_of(graph, user, in_layers)?);
        } else if let Some(layer) = node.origin.layer {
            found.push(Place::Layer(layer));
        } else {
            found.push(if in_layers.contains(&user) { Place::After } else { Place::Before });
        }
    }
    Ok(found)
}

/// Whether `id` is made of weights and constants by movement alone, so that it is a weight itself.
pub(super) fn is_static(graph: &Graph, id: ValueId) -> bool {
    match graph.op(id) {
        Some(Op::Weight { .. } | Op::Tensor(TensorOp::Constant(_))) => true,
        Some(Op::Tensor(TensorOp::Transpose { .. } | TensorOp::Reshape { .. })) => {
            graph.operands(id).iter().all(|&o| is_static(graph, o))
        }
        _ => false,
    }
}

/// Number of layers of a model.
pub fn layers(places: &BTreeMap<String, Place>) -> u32 {
    let number = |place: &Place| if let Place::Layer(n) = place { n.saturating_add(1) } else { 0 };
    places.values().map(number).max().unwrap_or(0)
}

/// A model in the form of a variant, and the shapes of weights that it has beside the model's own.
pub struct Varied {
    /// Graph and owners.
    pub analysed: Analysed,
    /// Shapes of adapters by name.
    pub adapters: BTreeMap<String, Vec<usize>>,
}

/// Gives `analysed` the form of `variant`. Approximations are no part of the form: they are an option of the pipeline.
///
/// # Errors
/// `E0595` for a variant that the model cannot have.
pub fn vary(analysed: &Analysed, variant: &Variant) -> Result<Varied> {
    let mut graph = analysed.graph.clone();
    let places = places(&graph)?;
    let count = layers(&places);
    let first = match variant.private_layers {
        None => 0,
        Some(k) if k > 0 && k <= count => count - k,
        Some(k) => {
            return Err(Diagnostic::input("E0595", format!("{k} private layers are not possible"))
                .note(format!("the model has {count} layers with weights")));
        }
    };
    let mut labels = analysed.labels.clone();
    for label in &mut labels.tensors {
        let Some(place) = places.get(&label.name) else { continue };
        let tuned = match (variant.rank, variant.private_layers, place) {
            (Some(_), ..) => false,
            (None, None, _) => true,
            (None, Some(_), Place::Before | Place::Both) => false,
            (None, Some(_), Place::After) => true,
            (None, Some(_), Place::Layer(n)) => *n >= first,
        };
        label.owner = if tuned { Owner::Private } else { Owner::Public };
        label.why = format!("by the variant: {}", variant.name());
    }
    let mut shapes = BTreeMap::new();
    if let Some(rank) = variant.rank {
        shapes = adapters::add(&mut graph, first, rank)?;
    }
    if variant.merged > 1 {
        heads::merge(&mut graph, first, variant.merged)?;
    }
    graph.remove_dead();
    Ok(Varied { analysed: Analysed { graph, labels, found: Vec::new(), absent: analysed.absent }, adapters: shapes })
}

/// The origin of a value that a variant adds in place of one with `origin`: no value of the model, so without its name.
pub(super) fn beside(origin: &Origin) -> Origin {
    Origin { value: String::new(), ..origin.clone() }
}
