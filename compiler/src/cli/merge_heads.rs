//! `ombra merge-heads`.

use super::{ModelArgs, Models, Outcome, one, options, read_models, show, tell};
use crate::merge_heads::{self, Grouping, Options};
use crate::ranges::npz;
use clap::ValueEnum;
use std::path::PathBuf;

/// Arguments of `ombra merge-heads`.
#[derive(clap::Args)]
pub struct MergeHeadsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Heads that become one.
    #[arg(long)]
    factor: usize,
    /// Which heads come together: those whose attention is alike, or neighbours.
    #[arg(long, value_enum, default_value_t = Groups::Similar)]
    groups: Groups,
    /// Inputs to compare heads on, a `.npz` file for each set; repeatable. Drawn tokens without.
    #[arg(long, value_name = "FILE.npz")]
    calibrate: Vec<PathBuf>,
    /// The file to write; groups go beside it, as NAME.groups.json.
    #[arg(short = 'o', long = "output")]
    output: PathBuf,
}

/// How heads are put into groups.
#[derive(Clone, Copy, ValueEnum)]
enum Groups {
    Similar,
    Adjacent,
}

/// Merges heads of private layers and writes the model and its groups.
pub fn merge_heads(args: &MergeHeadsArgs) -> Outcome {
    let Models { model, base, found } = read_models(&args.model)?;
    let mut analysis = options(&args.model, &found);
    analysis.calibration = args.calibrate.iter().map(|path| npz::read(path)).collect::<Result<_, _>>().map_err(one)?;
    let grouping = match args.groups {
        Groups::Similar => Grouping::Similar,
        Groups::Adjacent => Grouping::Adjacent,
    };
    let options = Options { factor: args.factor, grouping, analysis };
    let merged = merge_heads::merge_heads(&model, base.as_ref(), &options)?;
    let groups = merge_heads::write(&merged, &model, &args.output).map_err(one)?;
    for layer in &merged.report.layers {
        let name = layer.layer.map_or(layer.node.clone(), |l| format!("layer {l}"));
        show(format_args!(
            "{name}: {} heads in {} groups, mean distance {:.3} in groups, {:.3} of all\n",
            layer.heads,
            layer.groups.len(),
            layer.mean_distance_in_groups,
            layer.mean_distance
        ));
    }
    tell(format_args!("groups are in {}; fine-tune the merged model before use\n", groups.display()));
    Ok(())
}
