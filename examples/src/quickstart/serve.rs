//! Server and helper: processes of this program with the arguments of `ombra-run serve`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::service::log::Format;
use ombra_runtime::app::service::{Options, serve_party};
use ombra_runtime::backend::products::Choice;

/// Serves sessions until standard input ends. `args` are what follows `serve`: a plan folder, then options.
///
/// # Errors
/// Arguments that the client does not give, and those of [`serve_party`].
pub fn serve(args: &[String]) -> Result<()> {
    let wrong = || {
        Diagnostic::input("E0910", "the arguments are not those that quickstart gives to its own processes")
            .note("help      use `ombra-run serve` to serve as a party")
    };
    let (folder, options) = args.split_first().ok_or_else(wrong)?;
    let options = options.strip_suffix(&["--end-with-input".to_owned()]).ok_or_else(wrong)?;
    let options: BTreeMap<&str, &str> =
        options.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str| options.get(name).copied().ok_or_else(wrong);
    let threads = option("--threads")?.parse().map_err(|_| wrong())?;
    serve_party(&Options {
        folder: PathBuf::from(folder),
        party: option("--party")?.parse()?,
        config: PathBuf::from(option("--config")?),
        network: option("--network")?.to_owned(),
        threads,
        backend: Choice::Cpu,
        with_input: true,
        log: Format::Text,
        material: None,
        spent: None,
    })
}
