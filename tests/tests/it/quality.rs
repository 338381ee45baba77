//! Trained models between three parties: continuations and accuracy are those of the model in the clear.
//!
//! Tokens are compared under teacher forcing: every step gets the reference's tokens before it, so a step at which two
//! tokens are nearly equal does not spoil those after it. A step counts where the reference's margin is more than twice
//! the error of a logit, measured on the same tokens.

use ombra_runtime::app::Request;
use ombra_runtime::app::inputs::token_ids;
use ombra_tests::built::{Built, build, logits};
use ombra_tests::corpus::{self, long};
use ombra_tests::logits::{difference, greatest};
use ombra_tests::parties::{self, secret_logits};
use ombra_tests::reference::Reference;

const VARIANTS: [(&str, Option<&str>); 5] = [
    ("llama-trained/base", None),
    ("llama-trained/frozen", Some("llama-trained/base")),
    ("llama-trained/frozen-headmerge", Some("llama-trained/base")),
    ("llama-trained/lora", Some("llama-trained/base")),
    ("llama-trained/full", Some("llama-trained/base")),
];

/// Steps at which the secret run gives the reference's token, and those where margins were too small to count.
struct Agreement {
    same: usize,
    close: usize,
}

/// Generates `new` after `prompt` under teacher forcing.
fn forced(name: &str, built: &Built, prompt: &[i64], new: &[i64], margins: &[f64], error: f64) -> Agreement {
    let plan = &built.plan.plan;
    let request = Request::Generate { prompt: prompt.len() as u64, batch: 1, steps: new.len() as u64 };
    let first = std::iter::once(prompt);
    let given: Vec<_> =
        first.chain(new.chunks(1)).take(new.len()).map(|t| vec![token_ids(plan, t).expect("tokens")]).collect();
    let sides = parties::run(&built.plan, &request, &given).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut agreement = Agreement { same: 0, close: 0 };
    assert_eq!(sides[0].steps.len(), new.len());
    for (index, (seen, (token, margin))) in sides[0].steps.iter().zip(new.iter().zip(margins)).enumerate() {
        let found = seen.opened[0].values[0];
        agreement.same += usize::from(found == *token);
        agreement.close += usize::from(*margin <= 2.0 * error);
        assert!(found == *token || *margin <= 2.0 * error, "{name}: step {index} gives {found} instead of {token}");
    }
    agreement
}

#[test]
fn continuations_are_those_of_onnx_runtime() {
    for (name, base) in VARIANTS {
        let next = build(name, base, Vec::new()).expect("it compiles");
        let all = build(name, base, logits()).expect("it compiles");
        let reference = Reference::load(name, &next.plan.plan).expect("rten loads it");
        let (mut error, mut same, mut close, mut steps) = (0f64, 0, 0, 0);
        for greedy in corpus::quality(name).expect("it is bundled").greedy {
            let tokens = [greedy.prompt.as_slice(), &greedy.new].concat();
            let clear = reference.logits(&tokens).expect("rten runs it");
            error = error.max(difference(&secret_logits(&all.plan, &[tokens]).expect("it runs"), &clear));
            let agreement = forced(name, &next, &greedy.prompt, &greedy.new, &greedy.margins, error);
            same += agreement.same;
            close += agreement.close;
            steps += greedy.new.len();
        }
        println!("{name:<32} {same} of {steps} tokens equal, {close} too close to count, error {error:.5}");
        assert!(steps >= 80 && close * 10 < steps, "{name}: {close} of {steps} steps do not count");
    }
}

#[test]
fn long_continuations_are_those_of_the_model_in_the_clear() {
    let (variants, prompts, count) = if long() { (&VARIANTS[..], 4, 64) } else { (&VARIANTS[1..2], 1, 24) };
    for &(name, base) in variants {
        let next = build(name, base, Vec::new()).expect("it compiles");
        let all = build(name, base, logits()).expect("it compiles");
        let reference = Reference::load(name, &next.plan.plan).expect("rten loads it");
        let (mut error, mut same, mut close, mut steps) = (0f64, 0, 0, 0);
        for greedy in corpus::quality(name).expect("it is bundled").greedy.iter().take(prompts) {
            let (new, margins) = reference.greedy(&greedy.prompt, count).expect("rten runs it");
            let tokens = [greedy.prompt.as_slice(), &new].concat();
            let clear = reference.logits(&tokens).expect("rten runs it");
            error = error.max(difference(&secret_logits(&all.plan, &[tokens]).expect("it runs"), &clear));
            let agreement = forced(name, &next, &greedy.prompt, &new, &margins, error);
            same += agreement.same;
            close += agreement.close;
            steps += new.len();
        }
        println!("{name:<32} {same} of {steps} tokens equal, {close} too close to count, error {error:.5}");
        assert!(steps == prompts * count && close * 10 < steps, "{name}: {close} of {steps} steps do not count");
    }
}

/// Right next tokens of rows of logits, for the rows of tokens they were computed from.
fn right(rows: &[Vec<i64>], logits: &[Vec<f32>]) -> usize {
    let length = rows[0].len();
    assert_eq!(logits.len(), rows.len() * length);
    let of_row = |(row, logits): (&Vec<i64>, &[Vec<f32>])| {
        row[1..].iter().zip(logits).filter(|(token, logits)| greatest(logits).0 as i64 == **token).count()
    };
    rows.iter().zip(logits.chunks_exact(length)).map(of_row).sum()
}

#[test]
fn accuracy_is_that_of_the_model_in_the_clear() {
    let variants = if long() { &VARIANTS[..] } else { &VARIANTS[1..2] };
    for &(name, base) in variants {
        let all = build(name, base, logits()).expect("it compiles");
        let reference = Reference::load(name, &all.plan.plan).expect("rten loads it");
        for (file, expected) in corpus::quality(name).expect("it is bundled").accuracy {
            let mut rows = corpus::token_rows(&file).expect("rows are bundled");
            let complete = rows.len();
            if !long() {
                rows.truncate(4);
            }
            let (mut secret, mut clear, mut total, mut error) = (0, 0, 0, 0f64);
            for batch in rows.chunks(8) {
                let logits = secret_logits(&all.plan, batch).expect("it runs");
                secret += right(batch, &logits);
                let known: Vec<_> = batch.iter().flat_map(|row| reference.logits(row).expect("rten runs it")).collect();
                clear += right(batch, &known);
                error = error.max(difference(&logits, &known));
                total += batch.iter().map(|row| row.len() - 1).sum::<usize>();
            }
            let part = |right: usize| right as f64 / total as f64;
            println!(
                "{name:<32} {file}: {secret} of {total} right, {clear} in the clear, {expected:.4} expected of all \
                 rows, error {error:.5}"
            );
            assert!((part(secret) - part(clear)).abs() <= 0.005, "{name}: {secret} instead of {clear} of {total}");
            if rows.len() == complete {
                assert!((part(secret) - expected).abs() <= 0.005, "{name}: {} instead of {expected}", part(secret));
            }
        }
    }
}
