//! Damaged files give one error each, never a panic.

use ombra_compiler::inspect::inspect;
use ombra_compiler::onnx::Model;
use ombra_ir::plan;
use ombra_runtime::app::inputs::token_ids;
use ombra_runtime::app::{PlanFolder, Request};
use ombra_tests::built::{Built, Folder, build};
use ombra_tests::corpus::{self, long};
use ombra_tests::parties::{self, PANIC};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

const NAME: &str = "llama-pair/lora";
const BASE: Option<&str> = Some("llama-pair/base");

/// `count` positions below `length`, spread by a fixed generator, with the first and the last.
fn positions(count: usize, length: usize) -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let drawn = (0..count).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % length
    });
    drawn.chain([0, length - 1]).collect()
}

fn plan_path(built: &Built) -> PathBuf {
    built.folder.path().join("public/plan.ombra")
}

#[test]
fn a_plan_with_a_changed_byte_is_refused() {
    let built = build(NAME, BASE, Vec::new()).expect("it compiles");
    let path = plan_path(&built);
    let bytes = std::fs::read(&path).expect("the plan is there");
    let header = 0..44;
    for at in header.chain(positions(200, bytes.len())) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).expect("it can be written");
        let error = PlanFolder::open(built.folder.path()).err().unwrap_or_else(|| panic!("byte {at} may change"));
        assert!(error.code.starts_with("E04") && error.place.is_some(), "byte {at}: {error}");
    }
    std::fs::write(&path, &bytes).expect("it can be written");
    assert!(PlanFolder::open(built.folder.path()).is_ok(), "the plan itself");
}

/// A file whose digest was made to fit the damage, and weights that say to be for it: the decoder and the verifier are alone
/// with it, and what they let pass is run.
#[test]
fn a_plan_that_was_changed_on_purpose_does_no_harm() {
    let built = build(NAME, BASE, Vec::new()).expect("it compiles");
    let path = plan_path(&built);
    let bytes = std::fs::read(&path).expect("the plan is there");
    let weights_path = built.folder.path().join("server/weights.safetensors");
    let mut weights = std::fs::read(&weights_path).expect("the weights are there");
    let digest = plan::digest(&bytes);
    let at = weights.windows(digest.len()).position(|part| part == digest.as_bytes()).expect("they name their plan");
    let request = Request::text(3);
    let (mut refused, mut failed, mut ran) = (0, 0, 0);
    let named = at..at + digest.len();
    for at in positions(if long() { 5000 } else { 150 }, bytes.len() - 44) {
        let mut body = bytes[44..].to_vec();
        body[at] ^= 1 << (at % 8);
        let changed = with_digest(&bytes[..12], &body);
        weights[named.clone()].copy_from_slice(plan::digest(&changed).as_bytes());
        std::fs::write(&path, changed).expect("it can be written");
        std::fs::write(&weights_path, &weights).expect("they can be written");
        let opened = PlanFolder::open(built.folder.path());
        // Costs bind and schedule the whole module; sizes may have become impossible, which is an error and no panic.
        let costed = opened.and_then(|folder| inspect(&folder.plan, &BTreeMap::new()).map(|_| folder));
        let outcome = costed.map(|folder| {
            let given = token_ids(&folder.plan, &[vec![3, 1, 4]]).map(|tokens| vec![vec![tokens]]);
            given.and_then(|given| parties::run(&folder, &request, &given))
        });
        let (count, error) = match outcome {
            Err(error) => (&mut refused, Some(error)),
            Ok(Err(error)) => (&mut failed, Some(error)),
            Ok(Ok(_)) => (&mut ran, None),
        };
        *count += 1;
        if let Some(error) = error {
            assert!(error.code != PANIC && !error.message.is_empty(), "byte {at}: {error}");
        }
    }
    println!("{refused} refused, {failed} failed in the run, {ran} ran");
    assert!(refused >= 30 && ran >= 30);
}

/// The bytes of a plan file around another body.
fn with_digest(head: &[u8], body: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(body);
    [head, digest.as_slice(), body].concat()
}

#[test]
fn a_model_that_was_cut_is_refused() {
    let folder = Folder::new().expect("there is room");
    let path = folder.path().join("model.onnx");
    let mut lengths = 0;
    for name in ["llama-gqa-dynamo-op18", "gpt2-pair/base"] {
        let bytes = std::fs::read(corpus::folder(name).join("model.onnx")).expect("it is bundled");
        for length in positions(60, bytes.len()) {
            std::fs::write(&path, &bytes[..length]).expect("it can be written");
            let error = Model::read(&path).err().unwrap_or_else(|| panic!("{name} cut at {length} is read"));
            assert!(error.code.starts_with("E01") && error.place.is_some(), "{name} cut at {length}: {error}");
            lengths += 1;
        }
    }
    assert_eq!(lengths, 124);
}
