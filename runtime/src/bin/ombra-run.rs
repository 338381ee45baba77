//! `ombra-run`: runs a compiled plan between parties.

fn main() -> std::process::ExitCode {
    ombra_runtime::cli::run(std::env::args_os()).into()
}
