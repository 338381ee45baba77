//! `ombra explain`.

use super::{ApproximationArgs, ModelArgs, Models, Outcome, one, options, read_models, show};
use crate::attention::explain;
use ombra_ir::Diagnostic;

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
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Says for every node what it was recognised as, who owns it and where it will run; then what the attentions are, what
/// was nearly recognised, and what rewriting did.
pub fn explain(args: &ExplainArgs) -> Outcome {
    let Models { model, base, found } = read_models(&args.model)?;
    let mut options = options(&args.model, &found);
    options.approximations = args.approximations.parse()?;
    options.network = super::network(&args.network)?;
    let explanation = explain::explain(&model, base.as_ref(), &options)?;
    if args.json {
        let text = serde_json::to_string_pretty(&explanation);
        let failed = |e| one(Diagnostic::internal("E0562", format!("the explanation cannot be written as JSON: {e}")));
        show(text.map_err(failed)? + "\n");
    } else {
        show(explanation);
    }
    Ok(())
}
