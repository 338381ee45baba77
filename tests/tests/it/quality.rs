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
    let request = Request::text((prompt.len() + new.len()) as u64 - 1);
    let first = std::iter::once(prompt);
    let given: Vec<_> = first
        .chain(new.chunks(1))
        .take(new.len())
        .map(|t| vec![token_ids(plan, &[t.to_vec()]).expect("tokens")])
        .collect();
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

/// Right next tokens of rows of token ids, from logits of the secret run and from those of the model in the clear.
struct Right {
    secret: usize,
    clear: usize,
    of: usize,
}

/// Counts right next tokens. Where the secret run's choice is another one than the model's, margins must be small.
fn count_right(name: &str, rows: &[Vec<i64>], secret: &[Vec<f32>], clear: &[Vec<f32>]) -> Right {
    let error = difference(secret, clear);
    let length = rows[0].len();
    let mut right = Right { secret: 0, clear: 0, of: 0 };
    for (index, (secret, clear)) in secret.iter().zip(clear).enumerate() {
        let Some(expected) = rows[index / length].get(index % length + 1) else { continue };
        let (found, (known, margin)) = (greatest(secret).0, greatest(clear));
        assert!(found == known || margin <= 2.0 * error, "{name}: position {index} gives {found} instead of {known}");
        right.of += 1;
        right.secret += usize::from(found as i64 == *expected);
        right.clear += usize::from(known as i64 == *expected);
    }
    right
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
                rows.truncate(8);
            }
            let (mut total, mut error) = (Right { secret: 0, clear: 0, of: 0 }, 0f64);
            for batch in rows.chunks(8) {
                let secret = secret_logits(&all.plan, batch).expect("it runs");
                let clear: Vec<_> = batch.iter().flat_map(|row| reference.logits(row).expect("rten runs it")).collect();
                let right = count_right(name, batch, &secret, &clear);
                total.secret += right.secret;
                total.clear += right.clear;
                total.of += right.of;
                error = error.max(difference(&secret, &clear));
            }
            let part = |right: usize| right as f64 / total.of as f64;
            println!(
                "{name:<32} {file}: {} of {} right, {} in the clear, {expected:.4} expected of all rows, error {error:.5}",
                total.secret, total.of, total.clear
            );
            assert_eq!(total.of, rows.len() * (rows[0].len() - 1));
            assert!((part(total.secret) - part(total.clear)).abs() <= 0.005, "{name}: {}", part(total.secret));
            if rows.len() == complete {
                assert!((part(total.secret) - expected).abs() <= 0.005, "{name}: {}", part(total.secret));
            }
        }
    }
}
