//! Composite ops: what they expand to in every setting, run in the clear.
//!
//! A file is a lowered module with comments `; input "x" = f32[2](…)` and `; output "y" = f32[2](…) within 0.01`. What is
//! expected is the function of the reals, so the module gives it to a unit of its scale before it is expanded, and within
//! what the file says after that.

use super::files;
use ombra_compiler::expand::expand;
use ombra_compiler::passes::assign_masks::assign_masks;
use ombra_compiler::passes::delay_normalisation::delay_normalisation;
use ombra_compiler::passes::narrow_rings::narrow_rings;
use ombra_ir::bind::bind;
use ombra_ir::module::{Module, Setting};
use ombra_ir::op::{Class, OPS, Op};
use ombra_ir::plain::Tensor;
use ombra_ir::reference::run::run;
use ombra_ir::reference::{RefValue, encode_as};
use ombra_ir::text::{self, Cursor};
use ombra_ir::verify::verify;
use std::collections::{BTreeMap, BTreeSet};

/// How far the meaning of an op may be off: a unit of the results' scale, and the rounding of inputs.
const UNIT: f64 = 1e-4;

/// What a file gives and expects, by the names of slots; of outputs, how far they may be off.
#[derive(Default)]
struct Said {
    inputs: BTreeMap<String, Tensor>,
    outputs: BTreeMap<String, (Tensor, f64)>,
}

fn said(source: &str) -> Said {
    let mut said = Said::default();
    for line in source.lines().filter_map(|line| line.strip_prefix("; ")) {
        let c = &mut Cursor::new(line);
        let input = c.eat_word("input");
        if !input && !c.eat_word("output") {
            continue;
        }
        let name = c.quoted().unwrap();
        c.expect('=').unwrap();
        let tensor = text::parse_tensor(c).unwrap_or_else(|e| panic!("{line}: {e}"));
        if input {
            said.inputs.insert(name, tensor);
        } else {
            c.expect_word("within").unwrap();
            said.outputs.insert(name, (tensor, c.until(&[]).parse().unwrap()));
        }
    }
    said
}

/// What a module reveals for the inputs, by the name of its output.
fn revealed(module: &Module, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f64>> {
    let bound = bind(module, &[], &[]).unwrap();
    let mut source = |_, node: &ombra_ir::module::Node| {
        let Op::Input { slot } = node.op else { panic!("{} has no value", node.op.name()) };
        let input = &inputs[&module.inputs[slot as usize].name];
        let (bits, _) = node.ty.as_ring().unwrap();
        let words = encode_as(input.as_f32()?, input.shape(), &node.ty)?;
        RefValue::ring(bits, input.shape().to_vec(), words)
    };
    let outcome = run(module, &bound, &mut source).unwrap();
    let scale = |slot: usize| {
        let reveal = module.ops.iter().find(|n| n.op == Op::Reveal { slot: slot as u32 }).unwrap();
        module.ty(reveal.args[0]).as_ring().unwrap().1
    };
    let values = outcome.outputs.iter().enumerate();
    values.map(|(i, v)| (module.outputs[i].name.clone(), v.as_ref().unwrap().decode(scale(i)).unwrap())).collect()
}

#[test]
fn composites() {
    let (mut seen, mut wrong): (BTreeSet<&str>, String) = Default::default();
    for path in files("run", "mpcir") {
        let source = std::fs::read_to_string(&path).unwrap();
        let lowered = text::parse(&source).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        assert_eq!(verify(&lowered).err(), None, "{path:?}");
        let Said { inputs, outputs } = said(&source);
        assert_eq!(outputs.len(), lowered.outputs.len(), "{path:?}");
        seen.extend(lowered.ops.iter().map(|node| node.op.name()));
        let mut check = |module: &Module, what: &str, unit: Option<f64>| {
            let found = revealed(module, &inputs);
            for (name, (wanted, within)) in &outputs {
                let (found, wanted, within) = (&found[name], wanted.as_f32().unwrap(), unit.unwrap_or(*within));
                let worst = found.iter().zip(wanted).fold(0.0, |m: f64, (a, b)| m.max((a - f64::from(*b)).abs()));
                if found.len() != wanted.len() || worst > within {
                    wrong += &format!("{} {what}: {name} is off by {worst}, found {found:?}\n", path.display());
                }
            }
        };
        check(&lowered, "as it is", Some(UNIT));
        for setting in Setting::ALL {
            let expanded = expand(&Module { setting, ..lowered.clone() }).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let delayed = delay_normalisation(expanded).unwrap();
            let expanded = assign_masks(narrow_rings(delayed).unwrap()).unwrap();
            assert_eq!(verify(&expanded).err(), None, "{path:?} in {}", setting.name());
            check(&expanded, setting.name(), None);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for listed in OPS.iter().filter(|listed| listed.description.class == Class::Composite) {
        let name = listed.description.name;
        assert!(seen.contains(name), "no file of tests/filetests/run has {name}");
    }
}
