//! What became of a model: owner and place of every node, the attentions, what was changed, what was nearly recognised,
//! what rewriting did.

use std::fmt;

use serde::Serialize;

use crate::attention::{Description, attentions, describe, name_of};
use crate::egraph::Rewrite;
use crate::graph::{Op, Owner};
use crate::onnx::Model;
use crate::passes::approximate::approximate;
use crate::pipeline::{self, Errors, Options};

/// A model, explained.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Every value, in order of computation.
    pub nodes: Vec<Explained>,
    /// The attentions, in order of computation.
    pub attention: Vec<Description>,
    /// What was changed by request, in words.
    pub changes: Vec<String>,
    /// Patterns that were recognised and refused.
    pub near_misses: Vec<NearMiss>,
    /// What rewriting did and refused.
    pub rewrites: Vec<Rewrite>,
}

/// A value.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// Name of the ONNX node, or of the value where the node has none.
    pub name: String,
    /// What it was recognised as.
    pub op: &'static str,
    /// Who may know it.
    pub owner: &'static str,
    /// Where it is computed.
    pub place: &'static str,
    /// Why a weight has its owner; `None` for other values.
    pub why: Option<String>,
}

/// A pattern that was recognised and refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    /// The pattern.
    pub pattern: &'static str,
    /// The node.
    pub node: String,
    /// The condition that it fails.
    pub why: String,
}

/// Explains what becomes of `model`.
///
/// # Errors
/// Those of [`pipeline::analyse`] and [`pipeline::rewritten`].
pub fn explain(model: &Model, base: Option<&Model>, options: &Options) -> Result<Explanation, Errors> {
    let mut analysed = pipeline::analyse(model, base, options)?;
    let mut changes = pipeline::taken(&analysed.graph, options);
    changes.extend(approximate(&mut analysed.graph, &options.approximations).map_err(|e| vec![e])?);
    let graph = &analysed.graph;
    let nodes = graph.topological().into_iter().filter_map(|id| graph.node(id).ok()).map(|node| {
        let label = match &node.op {
            Op::Weight { name, .. } => analysed.labels.get(name),
            _ => None,
        };
        let why = label.map(|l| match &l.readable {
            Some(user) => format!("{}; used by {user}", l.why),
            None => l.why.clone(),
        });
        Explained {
            name: if node.origin.node.is_empty() { &node.origin.value } else { &node.origin.node }.clone(),
            op: node.op.name(),
            owner: node.owner.name(),
            place: match node.owner {
                Owner::Public => "everywhere, in the clear",
                Owner::Client => "client, in plaintext",
                Owner::Server => "server, once at compile time",
                Owner::Secret => "under MPC",
            },
            why,
        }
    });
    let nodes = nodes.collect();
    let near = analysed.found.iter().filter_map(|found| {
        let (node, why) = (found.origin.node.clone(), found.near_miss.clone()?);
        Some(NearMiss { pattern: found.pattern, node, why })
    });
    let mut near_misses: Vec<NearMiss> = near.collect();
    let mut attention = Vec::new();
    for candidate in attentions(graph) {
        match candidate {
            Ok(found) => attention.push(describe(graph, &found, &analysed.found)),
            Err(miss) => {
                let node = name_of(graph, miss.at).to_owned();
                near_misses.push(NearMiss { pattern: "attention", node, why: miss.why });
            }
        }
    }
    let rewrites = pipeline::rewritten(model, base, options)?.rewrites;
    Ok(Explanation { nodes, attention, changes, near_misses, rewrites })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let why = node.why.as_ref().map_or(String::new(), |why| format!("  ({why})"));
            writeln!(f, "{:<16} {:<7} {:<26} {}{why}", node.op, node.owner, node.place, node.name)?;
        }
        for attention in &self.attention {
            writeln!(f, "attention: {attention}")?;
        }
        for change in &self.changes {
            writeln!(f, "changed: {change}")?;
        }
        for NearMiss { pattern, node, why } in &self.near_misses {
            writeln!(f, "near miss: {pattern} at {node}: {why}")?;
        }
        for rewrite in &self.rewrites {
            f.write_str(&rewrite.text())?;
        }
        Ok(())
    }
}
