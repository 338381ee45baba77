//! Compiles a bundled model in three ways, runs each between three processes on this machine, and compares.
//!
//! `cargo run --release --bin quickstart`, or with a prompt of your own as its argument. With `--real` a trained model of
//! 135 million parameters is fetched and answers a question; the question is the next argument.

use std::process::ExitCode;

use ombra_examples::quickstart::{real, serve, show};
use ombra_ir::Diagnostic;
use ombra_runtime::memory::keep_freed_blocks;

const USAGE: &str = "usage: quickstart [PROMPT] | quickstart --real [QUESTION]";

fn main() -> ExitCode {
    keep_freed_blocks();
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The client starts server and helper as processes of this program.
    let result = match args.first().map(String::as_str) {
        Some("serve") => serve::serve(&args[1..]).map_err(|e| vec![e]),
        Some("--help" | "-h") => {
            eprintln!("{USAGE}");
            Ok(())
        }
        Some("--real") => real::show(args.get(1).map_or(real::QUESTION, String::as_str)),
        Some(option) if option.starts_with('-') => {
            Err(vec![Diagnostic::input("E0914", format!("unknown option {}", option.escape_debug())).note(USAGE)])
        }
        Some(prompt) => show::show(prompt),
        None => show::show(show::PROMPT),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            errors.iter().for_each(|e| eprintln!("{e}"));
            ExitCode::FAILURE
        }
    }
}
