//! Any bytes as a plan file whose digest is right: decoded and verified, or refused; its costs at small sizes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ombra_compiler::inspect::inspect;
use ombra_ir::{plan, verify};
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    // As it stands, and as a body with a mended header: hardly any other would get past the digest.
    let _ = plan::decode(bytes);
    let body = bytes.get(plan::HEADER..).unwrap_or(bytes);
    let Ok(plan) = plan::decode(&plan::with_header(body)) else { return };
    if verify::verify(&plan.module).is_err() || plan.module.ops.len() > 4096 {
        return;
    }
    // Sizes that do not fit are refused.
    let sizes: BTreeMap<String, u64> = plan.module.dims.syms.iter().map(|s| (s.name.clone(), s.min.max(1))).collect();
    if sizes.values().all(|size| *size <= 64) {
        let _ = inspect(&plan, &sizes);
    }
});
