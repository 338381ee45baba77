//! Writes an ONNX model of a given size with random weights.
//!
//! ```text
//! generate-model gpt2  --layers 12 --hidden 768 --heads 12 --vocab 50257 --positions 1024 -o FILE
//! generate-model bert  --layers 12 --hidden 768 --heads 12 --vocab 30522 --positions 512 --classes 2 -o FILE
//! generate-model llama --layers 12 --hidden 768 --heads 12 --kv-heads 4 --ff 2048 --vocab 32000 -o FILE
//! ```
//! `--seed N` chooses other weights; `--tuned-from LAYER` gives the layers from that one on weights of their own, as in a
//! model fine-tuned from the one with the same seed. `--no-weights` declares the data file and does not write it, for costs
//! alone. For Llama `--lora RANK` puts adapters beside the matrices, in place of tuning them, and `--merged M` lets M heads
//! share a softmax, both in the tuned layers, or in all; `--tied` takes the embedding for the head, and `--biases` gives
//! queries, keys and values biases, as Qwen2 has them.

use std::path::PathBuf;
use std::process::ExitCode;

use ombra_examples::generate::{Bert, Gpt2, Llama, write_bert, write_gpt2, write_llama};
use ombra_ir::{Diagnostic, Kind, Result};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.kind == Kind::Input { 2 } else { 1 })
        }
    }
}

/// Writes the model that the command line asks for.
fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let family = arguments.next().unwrap_or_default();
    let (mut bert, mut gpt2, mut llama) = (Bert::default(), Gpt2::default(), Llama::default());
    let mut output = None;
    while let Some(option) = arguments.next() {
        match (family.as_str(), option.as_str()) {
            (_, "--no-weights") => {
                (bert.seeds.no_weights, gpt2.seeds.no_weights, llama.seeds.no_weights) = (true, true, true);
                continue;
            }
            ("llama", "--tied") => {
                llama.tied = true;
                continue;
            }
            ("llama", "--biases") => {
                llama.biases = true;
                continue;
            }
            _ => {}
        }
        let value = arguments.next().ok_or_else(|| usage(format!("{option} has no value")))?;
        if option == "-o" {
            output = Some(PathBuf::from(value));
            continue;
        }
        let number: usize = value.parse().map_err(|_| usage(format!("{option} {value} is no number")))?;
        match (family.as_str(), option.as_str()) {
            ("bert", "--layers") => bert.layers = number,
            ("bert", "--hidden") => bert.hidden = number,
            ("bert", "--heads") => bert.heads = number,
            ("bert", "--vocab") => bert.vocab = number,
            ("bert", "--positions") => bert.positions = number,
            ("bert", "--classes") => bert.classes = number,
            ("bert", "--seed") => bert.seeds.seed = number as u64,
            ("bert", "--tuned-from") => bert.seeds.tuned_from = Some(number),
            ("gpt2", "--layers") => gpt2.layers = number,
            ("gpt2", "--hidden") => gpt2.hidden = number,
            ("gpt2", "--heads") => gpt2.heads = number,
            ("gpt2", "--vocab") => gpt2.vocab = number,
            ("gpt2", "--positions") => gpt2.positions = number,
            ("gpt2", "--seed") => gpt2.seeds.seed = number as u64,
            ("gpt2", "--tuned-from") => gpt2.seeds.tuned_from = Some(number),
            ("llama", "--layers") => llama.layers = number,
            ("llama", "--hidden") => llama.hidden = number,
            ("llama", "--heads") => llama.heads = number,
            ("llama", "--kv-heads") => llama.kv_heads = number,
            ("llama", "--ff") => llama.ff = number,
            ("llama", "--vocab") => llama.vocab = number,
            ("llama", "--lora") => llama.lora = Some(number),
            ("llama", "--merged") => llama.merged = number,
            ("llama", "--seed") => llama.seeds.seed = number as u64,
            ("llama", "--tuned-from") => llama.seeds.tuned_from = Some(number),
            _ => return Err(usage(format!("{family} has no option {option}"))),
        }
    }
    let output = output.ok_or_else(|| usage("no -o FILE is given".into()))?;
    match family.as_str() {
        "bert" => write_bert(&bert, &output),
        "gpt2" => write_gpt2(&gpt2, &output),
        "llama" => write_llama(&llama, &output),
        _ => Err(usage(format!("there is no family '{family}'"))),
    }
}

/// The error of a wrong command line.
fn usage(what: String) -> Diagnostic {
    Diagnostic::input("E0901", what)
        .note("generate-model gpt2 [--layers N --hidden N --heads N --vocab N --positions N] -o FILE")
        .note("generate-model bert [--layers N --hidden N --heads N --vocab N --positions N --classes N] -o FILE")
        .note("generate-model llama [--layers N --hidden N --heads N --kv-heads N --ff N --vocab N] -o FILE")
        .note("all take --seed N, --tuned-from LAYER and --no-weights, llama also --lora RANK, --merged M, --tied and --biases")
}
