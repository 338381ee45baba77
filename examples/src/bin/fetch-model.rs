//! Fetches SmolLM2-135M-Instruct, a trained model, and writes it as ONNX model, tokenizer and configuration.
//!
//! ```text
//! fetch-model [--gguf FILE] [--lora RANK] [--tuned-from LAYER] -o FOLDER
//! ```
//! `--gguf` takes a Llama in a GGUF file in place of what is fetched. `--lora` puts random adapters beside every matrix;
//! `--tuned-from` changes the weights of the layers from that one on by a little. Both stand in for fine-tuning where costs
//! are measured.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ombra_examples::real::convert::Form;
use ombra_examples::real::fetch::{SMOLLM2, fetch};
use ombra_examples::real::write_folder;
use ombra_ir::{Diagnostic, Kind, Result};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.kind == Kind::Internal { 1 } else { 2 })
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut form = Form::default();
    let (mut file, mut output) = (None, None);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(|| usage(format!("{option} has no value")))?;
        let number = || value.parse().map_err(|_| usage(format!("{option} {value} is no number")));
        match option.as_str() {
            "-o" => output = Some(PathBuf::from(value)),
            "--gguf" => file = Some(PathBuf::from(value)),
            "--lora" => form.lora = Some(number()?),
            "--tuned-from" => form.tuned_from = Some(number()?),
            _ => return Err(usage(format!("there is no option {option}"))),
        }
    }
    let output = output.ok_or_else(|| usage("no -o FOLDER is given".into()))?;
    let bytes = match file {
        Some(file) => std::fs::read(&file)
            .map_err(|e| Diagnostic::input("E0923", format!("cannot read '{}': {e}", file.display())))?,
        None => fetch(&SMOLLM2, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/real"))?,
    };
    write_folder(bytes, &form, &output)?;
    println!("{}", output.display());
    Ok(())
}

/// The error of a wrong command line.
fn usage(what: String) -> Diagnostic {
    Diagnostic::input("E0901", what).note("fetch-model [--gguf FILE] [--lora RANK] [--tuned-from LAYER] -o FOLDER")
}
