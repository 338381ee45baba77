//! Passes over core ops. What a pass makes is legal, and means the same: where it does not move a rounding, revealed values
//! in the clear are equal on drawn inputs.

use super::files;
use ombra_compiler::passes::assign_masks::assign_masks;
use ombra_compiler::passes::delay_normalisation::delay_normalisation;
use ombra_compiler::passes::narrow_rings::narrow_rings;
use ombra_compiler::passes::pack_first::pack_first;
use ombra_ir::module::{Id, Module};
use ombra_ir::op::Op;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::reference::{RefValue, Rounding, eval_rounded};
use ombra_ir::verify::verify;
use ombra_ir::{Bindings, Result, text};
use std::collections::BTreeMap;
use std::path::Path;

/// What a pass makes of the modules of its folder, which is legal.
fn check(pass: &str, run: fn(Module) -> Result<Module>) {
    made(pass, run, |_, _, _| ());
}

/// The same, where it means the same to the bit.
fn check_exact(pass: &str, run: fn(Module) -> Result<Module>) {
    made(pass, run, |path, before, after| assert_eq!(revealed(after), revealed(before), "{path:?}"));
}

fn made(pass: &str, run: fn(Module) -> Result<Module>, compare: impl Fn(&Path, &Module, &Module)) {
    for path in files(pass, "mpcir") {
        let before = text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        assert_eq!(verify(&before).err(), None, "{path:?}");
        let after = run(before.clone()).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        assert_eq!(verify(&after).err(), None, "{path:?}:\n{}", text::print(&after));
        super::after(&path, &text::print(&after));
        compare(&path, &before, &after);
    }
}

/// What a module reveals and keeps in the clear, by slot, for sizes and elements that depend on nothing but names and slots.
fn revealed(module: &Module) -> BTreeMap<(bool, u32), RefValue> {
    let mut sizes = Bindings::new();
    for (name, size) in [("seq", 3), ("past", 2)] {
        sizes.set(module.dims.find(name).unwrap(), size);
    }
    // What a causal mask keeps.
    if let Some(kept) = module.dims.find("kept") {
        sizes.set(kept, 6);
    }
    let mut values: Vec<RefValue> = Vec::new();
    let mut found = BTreeMap::new();
    for (at, node) in module.ops.iter().enumerate() {
        let args: Vec<_> = node.args.iter().map(|a| (&values[a.index()], module.ty(*a))).collect();
        let seed = match &node.op {
            Op::Input { slot } => Some(100 + u64::from(*slot)),
            Op::State { slot } => Some(200 + u64::from(*slot)),
            Op::Weight { name } => Some(name.bytes().map(u64::from).sum()),
            _ => None,
        };
        let value = match seed {
            None if matches!(node.op, Op::Public { .. }) => {
                let causal = (0..9).map(|i| i % 3 <= i / 3).collect();
                RefValue::plain(Tensor::new(vec![3, 3], Data::Bool(causal)).unwrap())
            }
            Some(seed) => drawn(module, Id(at as u32), seed, &sizes),
            None => eval_rounded(module.setting, &node.op, &args, &node.ty, &sizes, Rounding::Floor).unwrap(),
        };
        match node.op {
            Op::Reveal { slot } => drop(found.insert((true, slot), value.clone())),
            Op::SetState { slot } => drop(found.insert((false, slot), signed(&value))),
            _ => {}
        }
        values.push(value);
    }
    found
}

/// Integers of 12 bits with their sign, in the ring of the value's type.
fn drawn(module: &Module, id: Id, mut seed: u64, sizes: &Bindings) -> RefValue {
    let ty = module.ty(id);
    let (bits, _) = ty.as_ring().unwrap();
    let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval_usize(sizes).unwrap()).collect();
    let next = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed as i64) >> 52) as u64
    };
    let n = shape.iter().product();
    RefValue::ring(bits, shape, (0..n).map(next).collect()).unwrap()
}

/// The value in the largest ring.
fn signed(value: &RefValue) -> RefValue {
    let (bits, words) = value.as_ring().unwrap();
    let widened = words.iter().map(|w| (((w << (64 - bits)) as i64) >> (64 - bits)) as u64).collect();
    RefValue::ring(64, value.shape.clone(), widened).unwrap()
}

/// Quotients round otherwise: `run/attention.mpcir` says how close they are.
#[test]
fn quotients_behind_products() {
    check("delay_normalisation", delay_normalisation);
}

#[test]
fn packing() {
    check_exact("pack_first", pack_first);
}

#[test]
fn masks() {
    check_exact("assign_masks", assign_masks);
}

#[test]
fn rings() {
    check_exact("narrow_rings", narrow_rings);
}
