//! Runs the token sequences that `benchmarks/real/reference.py` made through a compiled model, for `compare.py` beside it.
//!
//! ```text
//! real-model MODEL_FOLDER text REFERENCE OUT               logits of every position, as OUT/NAME.npy
//! real-model MODEL_FOLDER adversarial REFERENCE OUT        next tokens, as OUT/next.json, and logits of the last position
//! ```
//! `--parties` runs three parties in threads in place of the reference in the clear, `--only N` takes about N sequences,
//! spread evenly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};
use ombra_runtime::app::tensor_file;
use ombra_tests::real::{Between, Real, Revealed};
use serde_json::{Map, Value};

/// Runs sequences of tokens through a compiled model.
#[derive(Parser)]
struct Arguments {
    /// The folder with model.onnx and tokenizer.json.
    model: PathBuf,
    /// What is asked for.
    kind: Kind,
    /// The folder that reference.py wrote.
    reference: PathBuf,
    /// Where results are written.
    out: PathBuf,
    /// Between three parties.
    #[arg(long)]
    parties: bool,
    /// About so many sequences.
    #[arg(long)]
    only: Option<usize>,
    /// Rows that run at once, where they are of one length.
    #[arg(long, default_value_t = 64)]
    batch: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Text,
    Adversarial,
}

/// Most tokens of all rows that run at once.
const TOKENS: usize = 512;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let unwritten = |e: std::io::Error| Diagnostic::input("E0000", format!("{}: {e}", arguments.out.display()));
    std::fs::create_dir_all(&arguments.out).map_err(unwritten)?;
    let mut sequences = sequences(&arguments.reference.join("sequences.json"))?;
    if let Some(only) = arguments.only {
        let every = sequences.len().div_ceil(only.max(1)).max(1);
        sequences = sequences.into_iter().step_by(every).collect();
    }
    let text = arguments.kind == Kind::Text;
    let batch = if text { 1 } else { arguments.batch.max(1) };
    let real = Real::compile(&arguments.model, text, batch as u64)?;
    let between = if arguments.parties { Between::Parties } else { Between::Nobody };
    let mut by_length: BTreeMap<usize, Vec<(String, Vec<i64>)>> = BTreeMap::new();
    let total = sequences.len();
    for (name, ids) in sequences {
        by_length.entry(ids.len()).or_default().push((name, ids));
    }
    let (mut done, mut refused, mut next) = (0, 0, Map::new());
    for (length, group) in by_length {
        for part in group.chunks((TOKENS / length.max(1)).clamp(1, batch)) {
            let rows: Vec<Vec<i64>> = part.iter().map(|(_, ids)| ids.clone()).collect();
            let tokens = match real.run(&rows, between) {
                Ok(Revealed::Logits(logits)) => {
                    let shape = [length, logits.len() / length.max(1)];
                    part.iter().try_for_each(|(name, _)| {
                        tensor_file::write(&arguments.out, name, &Tensor::f32(&shape, logits.clone())?)
                    })?;
                    Vec::new()
                }
                Ok(Revealed::NextTokens { tokens, scores }) => {
                    let width = scores.len() / part.len();
                    part.iter().zip(scores.chunks_exact(width.max(1))).try_for_each(|((name, _), row)| {
                        tensor_file::write(&arguments.out, name, &Tensor::f32(&[width], row.to_vec())?)
                    })?;
                    tokens.into_iter().map(Value::from).collect()
                }
                Err(error) => {
                    eprintln!("{} and {} more: {error}", part[0].0, part.len() - 1);
                    refused += part.len();
                    vec![Value::Null; part.len()]
                }
            };
            next.extend(part.iter().map(|(name, _)| name.clone()).zip(tokens));
            done += part.len();
            eprintln!("{done} of {total} sequences");
        }
    }
    if !text {
        std::fs::write(arguments.out.join("next.json"), Value::Object(next).to_string()).map_err(unwritten)?;
    }
    println!("{done} sequences run, {refused} of them refused with an error");
    Ok(())
}

/// Names and ids of the sequences in a file.
fn sequences(path: &Path) -> Result<Vec<(String, Vec<i64>)>> {
    let wrong = |what: String| Diagnostic::input("E0000", format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let sequence = |entry: &Value| {
        let ids = entry["ids"].as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>()?;
        Some((entry["name"].as_str()?.to_owned(), ids))
    };
    let all = json.as_array().and_then(|list| list.iter().map(sequence).collect::<Option<Vec<_>>>());
    all.ok_or_else(|| wrong("no list of sequences with a name and ids".into()))
}
