//! `ombra explain`.

use crate::{ApproximationArgs, ModelArgs, Outcome, one, options, read_models};
use ombra_compiler::egraph::cost::Network;
use ombra_compiler::graph::{Graph, Owner};
use ombra_compiler::passes::approximate::approximate;
use ombra_compiler::pipeline;

/// Arguments of `ombra explain`.
#[derive(clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    approximations: ApproximationArgs,
    /// The network that rewriting chooses for: lan, wan or BANDWIDTH,RTT.
    #[arg(long, default_value = "wan")]
    network: String,
}

/// Says for every node what it was recognised as, who owns it and where it will run.
pub fn explain(args: &ExplainArgs) -> Outcome {
    let mut options = options(&args.model);
    options.approximations = args.approximations.parse()?;
    options.network = Network::parse(&args.network).map_err(one)?;
    let (model, base) = read_models(&args.model)?;
    let mut analysed = pipeline::analyse(&model, base.as_ref(), &options)?;
    let changes = approximate(&mut analysed.graph, &options.approximations).map_err(one)?;
    let graph: &Graph = &analysed.graph;
    for id in graph.topological() {
        let node = graph.node(id).map_err(one)?;
        let place = match node.owner {
            Owner::Public => "everywhere, in the clear",
            Owner::Client => "client, in plaintext",
            Owner::Server => "server, once at compile time",
            Owner::Secret => "under MPC",
        };
        let why = match &node.op {
            ombra_compiler::graph::Op::Weight { name, .. } => analysed
                .labels
                .get(name)
                .map(|l| {
                    format!("  ({}{})", l.why, l.readable.as_ref().map_or(String::new(), |r| format!("; used by {r}")))
                })
                .unwrap_or_default(),
            _ => String::new(),
        };
        let name = if node.origin.node.is_empty() { &node.origin.value } else { &node.origin.node };
        println!("{:<16} {:<7} {place:<26} {name}{why}", node.op.name(), node.owner.name());
    }
    for change in &changes {
        println!("changed: {change}");
    }
    for found in &analysed.found {
        if let Some(why) = &found.near_miss {
            println!("near miss: {} at {}: {why}", found.pattern, found.origin.node);
        }
    }
    for rewrite in pipeline::rewritten(&model, base.as_ref(), &options)?.rewrites {
        print!("{}", rewrite.text());
    }
    Ok(())
}
