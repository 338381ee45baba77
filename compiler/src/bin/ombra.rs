//! `ombra`: compiles models into plans for secure multi-party computation.

fn main() -> std::process::ExitCode {
    ombra_compiler::cli::run(std::env::args_os()).into()
}
