//! Owners of all values, caches included.
//!
//! A cache has the owner of what is added to it: the client's for layers that run in plaintext, nobody's for layers
//! under MPC. Since what is added may itself depend on the cache, owners rise to a fixed point: every cache starts as
//! the client's and becomes secret when the values that continue it are.

use crate::graph::{Graph, InputRole, Op, OutputRole, Owner, propagate_owners};
use std::collections::BTreeSet;

/// Sets the owner of every value. `weight_owner` says who owns an initializer.
pub fn assign_owners(graph: &mut Graph, weight_owner: impl Fn(&str) -> Owner) {
    let mut secret: BTreeSet<String> = BTreeSet::new();
    loop {
        let input_owner = |name: &str, role: InputRole| {
            if secret.contains(name) { Owner::Secret } else { Owner::of_input(role) }
        };
        propagate_owners(graph, input_owner, &weight_owner);
        let before = secret.len();
        for output in &graph.outputs {
            let (OutputRole::PresentKey { past: Some(past), .. } | OutputRole::PresentValue { past: Some(past), .. }) =
                &output.role
            else {
                continue;
            };
            let owner = graph.node(output.value).map_or(Owner::Secret, |n| n.owner);
            if matches!(owner, Owner::Secret | Owner::Server) {
                secret.insert(past.clone());
            }
        }
        if secret.len() == before {
            return;
        }
    }
}

/// Names of the cache inputs that are secret state, with the outputs that continue them.
pub fn secret_states(graph: &Graph) -> Vec<(String, String)> {
    states(graph, |owner| owner == Owner::Secret)
}

/// Names of the cache inputs that the client keeps in plaintext, with the outputs that continue them.
pub fn client_states(graph: &Graph) -> Vec<(String, String)> {
    states(graph, |owner| owner == Owner::Client)
}

fn states(graph: &Graph, wanted: impl Fn(Owner) -> bool) -> Vec<(String, String)> {
    let input_owner = |name: &str| {
        graph.inputs.iter().find_map(|&id| match graph.node(id) {
            Ok(node) => match &node.op {
                Op::Input { name: n, .. } if n == name => Some(node.owner),
                _ => None,
            },
            Err(_) => None,
        })
    };
    graph
        .outputs
        .iter()
        .filter_map(|o| match &o.role {
            OutputRole::PresentKey { past: Some(past), .. } | OutputRole::PresentValue { past: Some(past), .. } => {
                input_owner(past).filter(|&owner| wanted(owner)).map(|_| (past.clone(), o.name.clone()))
            }
            _ => None,
        })
        .collect()
}
