//! `ombra advise`.

use super::profile;
use super::{ModelArgs, Models, Outcome, not_yet, one, options, read_models, setting, show};
use crate::advise::{self, Choice, Request};
use ombra_ir::Diagnostic;
use ombra_ir::network::Network;
use ombra_ir::settings::Setting;
use std::path::PathBuf;

/// Arguments of `ombra advise`. `--dim seq=N` is the length of the prompt, `--dim past=N` the cache of a further token.
#[derive(clap::Args)]
pub struct AdviseArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Parties and trust: 3pc, 2pc-dealer, or 2pc.
    #[arg(long, default_value = "3pc", value_parser = setting)]
    setting: Setting,
    /// The network that decides, beside lan and wan: lan, wan or BANDWIDTH,RTT.
    #[arg(long)]
    network: Option<String>,
    /// The machine of every party: a profile that `ombra-run measure` wrote.
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// Layers that are tuned where others are frozen; half of them if not given.
    #[arg(long, value_name = "K")]
    private_layers: Option<u32>,
    /// Rank of adapters; 64 if not given.
    #[arg(long, value_name = "R")]
    rank: Option<u32>,
    /// Heads that share a softmax; 4 if not given.
    #[arg(long, value_name = "M")]
    merge: Option<u32>,
    /// Further tokens of an answer, for choosing a form.
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens: u64,
    /// Assume ranges of values and do not measure them: quicker, and a little off.
    #[arg(long)]
    assume: bool,
    /// Text or JSON.
    #[arg(long, default_value = "text")]
    format: String,
}

/// Tokens of a prompt if none are given.
const PROMPT: u64 = 128;

/// Predicts what variants of a model would cost.
pub fn advise(args: &AdviseArgs) -> Outcome {
    if !["text", "json"].contains(&args.format.as_str()) {
        return Err(one(not_yet(&format!("--format {}", args.format)).note("expected text or json")));
    }
    let Models { model, base, found } = read_models(&args.model)?;
    let mut options = options(&args.model, &found);
    options.assume = args.assume;
    options.setting = args.setting;
    // Lengths are where costs are counted; other sizes are bound as for a compile.
    let prompt = options.sizes.dims.remove("seq").unwrap_or(PROMPT);
    let cached = options.sizes.dims.remove("past").unwrap_or(prompt);
    let mut networks = Vec::new();
    if let Some(text) = &args.network {
        let network = Network::parse(text).map_err(one)?.ok_or_else(|| {
            one(Diagnostic::input("E0596", "advice needs a network to predict times on")
                .note("expected lan, wan or BANDWIDTH,RTT such as 1Gbps,2ms"))
        })?;
        networks.push((text.clone(), network));
        options.network = network;
    }
    for (name, network) in [("lan", Network::LAN), ("wan", Network::WAN)] {
        if args.network.as_deref() != Some(name) {
            networks.push((name.to_string(), network));
        }
    }
    let machine = args.machine.as_deref().map(profile::read).transpose().map_err(one)?;
    let request = Request { prompt, cached, tokens: args.tokens, networks, machine };
    let choice = Choice { private_layers: args.private_layers, rank: args.rank, merged: args.merge };
    let advice = advise::advise(&model, base.as_ref(), &options, &request, choice)?;
    if args.format == "json" {
        let text = serde_json::to_string_pretty(&advice);
        show(text.map_err(|e| one(Diagnostic::internal("E0562", e.to_string())))? + "\n");
    } else {
        show(advice.text());
    }
    Ok(())
}
