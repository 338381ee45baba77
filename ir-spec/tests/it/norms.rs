//! Norms: what the rules prove of rows, columns and elements holds for what the reference computes.

use ombra_ir::dim::{Bindings, Dim};
use ombra_ir::infer::{push, push_like, push_source, tighten};
use ombra_ir::module::{Id, Module, Origin, Setting, Stage};
use ombra_ir::norms::{BIT, Measure, Norms};
use ombra_ir::op::Op;
use ombra_ir::reference::{RefValue, encode_as, eval, signed};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::verify::findings;
use proptest::prelude::*;

const SHAPES: [&[usize]; 6] = [&[3, 4], &[4, 3], &[2, 3, 4], &[1, 4], &[3, 1], &[4]];
const SCALE: u8 = 8;

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::from_usize(*d).unwrap()).collect()
}

fn sizes(ty: &Ty) -> Vec<usize> {
    ty.shape.iter().map(|d| d.as_constant().unwrap() as usize).collect()
}

/// A weight with the norms that it has, and its elements.
fn weight(m: &mut Module, shape: &[usize], values: &[f32], public: bool) -> (Id, RefValue) {
    let mut measure = Measure::new(shape, Some(SCALE)).unwrap();
    measure.take(values);
    let sharing = if public { Sharing::Public } else { Sharing::Shared };
    let ty = Ty { norms: measure.declared(), ..Ty::ring(64, SCALE, sharing, dims(shape), 12) };
    let name = format!("w{}", m.ops.len());
    let op = if public { Op::PublicWeight { name } } else { Op::Weight { name } };
    let words = encode_as(values, shape, &ty).unwrap();
    let id = push_source(m, op, ty, Origin::default()).unwrap();
    (id, RefValue::ring(64, shape.to_vec(), words).unwrap())
}

fn op(kind: u8, k: i64, ty: &Ty) -> Op {
    let rank = ty.shape.len() as u8;
    let axis = k.unsigned_abs() as u8 % rank.max(1);
    let size = ty.shape.get(usize::from(axis)).and_then(Dim::as_constant).unwrap_or(1);
    let n: i64 = sizes(ty).iter().map(|&n| n as i64).product();
    let shape = |sizes: &[i64]| sizes.iter().map(|&d| Dim::constant(d)).collect();
    match kind {
        0 => Op::Add,
        1 => Op::Sub,
        2 => Op::Neg,
        3 => Op::MulInt { k },
        4 => Op::AddInt { k: k * 37 },
        5 => Op::Upscale { by: 3 },
        6 => Op::Mul,
        7 => Op::MatMul { trans_b: false },
        8 => Op::MatMul { trans_b: true },
        9 => Op::ReduceSum { axis },
        10 => Op::Reshare,
        11 => Op::Truncate { by: 5, bits: 64 },
        12 => Op::Cut { by: 8 },
        13 => Op::Truncate { by: 0, bits: 64 },
        14 => Op::Transpose { perm: (0..rank).rev().collect() },
        15 => Op::Transpose { perm: (0..rank.saturating_sub(2)).chain([rank.max(1) - 1, rank.max(2) - 2]).collect() },
        16 => Op::Slice { axis, start: Dim::constant(size / 2), len: Dim::constant(size - size / 2) },
        17 => Op::Concat { axis },
        18 => Op::Reshape { shape: shape(&[n]) },
        19 => Op::Reshape { shape: shape(&[n / 2, 2]) },
        20 => Op::Reshape { shape: shape(&[n / 6, 6]) },
        21 => Op::Lift { by: 8 },
        _ => Op::Expand { shape: shape(&[2, 3, 4]) },
    }
}

/// Every number that a type says of its integers holds.
fn holds(ty: &Ty, value: &RefValue) -> Result<(), TestCaseError> {
    let (bits, _) = ty.as_ring().unwrap();
    let reals: Vec<f64> = value.as_ring().unwrap().1.iter().map(|&w| signed(w, bits) as f64).collect();
    let most = |n: u16| libm::exp2(f64::from(n) / f64::from(BIT));
    let largest = reals.iter().fold(0f64, |m, x| m.max(x.abs()));
    prop_assert!(largest < libm::exp2(f64::from(ty.bound)) || largest == 0.0, "{largest} and {ty:?}");
    let Norms { size, rows, columns } = ty.norms;
    prop_assert!(size.is_none_or(|n| largest <= most(n)), "{largest} and {ty:?}");
    let shape = sizes(ty);
    let (width, height) = (shape.last().copied().unwrap_or(1), shape.iter().rev().nth(1).copied().unwrap_or(1));
    let square = |x: &f64| x * x;
    let row = reals.chunks(width.max(1)).map(|r| r.iter().map(square).sum::<f64>().sqrt()).fold(0.0, f64::max);
    prop_assert!(rows.is_none_or(|n| row <= most(n)), "a row of {row} and {ty:?}");
    for matrix in reals.chunks((width * height).max(1)) {
        for j in 0..width {
            let column = matrix.iter().skip(j).step_by(width).map(square).sum::<f64>().sqrt();
            prop_assert!(columns.is_none_or(|n| column <= most(n)), "a column of {column} and {ty:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn norms_are_sound(
        values in prop::collection::vec(prop_oneof![Just(0.0f32), -1.0f32..1.0, -15.0f32..15.0], 24 * SHAPES.len()),
        steps in prop::collection::vec((0u8..22, -9i64..10, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..60),
    ) {
        let mut m = Module::empty("m".into(), Setting::ThreeParty, Stage::Lowered, Default::default());
        let mut made: Vec<RefValue> = Vec::new();
        for (i, shape) in SHAPES.iter().enumerate() {
            let n = shape.iter().product::<usize>();
            let (_, value) = weight(&mut m, shape, &values[24 * i..24 * i + n], i == 1);
            made.push(value);
        }
        for (kind, k, a, b) in steps {
            let args = [a.index(made.len()), b.index(made.len())];
            let op = op(kind, k, &m.ops[args[0]].ty);
            let args = &args[..op.arity().unwrap_or(2)];
            let ids: Vec<Id> = args.iter().map(|&i| Id(i as u32)).collect();
            let Ok(id) = push(&mut m, op.clone(), &ids, None, Origin::default()) else { continue };
            let operands: Vec<_> = args.iter().zip(&ids).map(|(&i, &id)| (&made[i], m.ty(id))).collect();
            let value = eval(&op, &operands, m.ty(id), &Bindings::new()).unwrap();
            holds(m.ty(id), &value)?;
            made.push(value);
        }
        let found: Vec<_> = findings(&m).into_iter().map(|f| f.diagnostic.code).collect();
        prop_assert!(found.is_empty(), "{:?}", found);
    }
}

#[test]
fn a_product_is_bounded_by_rows_and_columns() {
    let mut m = Module::empty("m".into(), Setting::ThreeParty, Stage::Lowered, Default::default());
    let source = |m: &mut Module, name: &str, shape: &[usize], bound, norms| {
        let ty = Ty { norms, ..Ty::ring(64, SCALE, Sharing::Shared, dims(shape), bound) };
        push_source(m, Op::Weight { name: name.into() }, ty, Origin::default()).unwrap()
    };
    let norms = |rows, columns| Norms { size: None, rows, columns };
    let x = source(&mut m, "x", &[2, 64], 20, norms(Some(2050), None));
    let w = source(&mut m, "w", &[64, 8], 16, norms(None, Some(1625)));
    let y = push(&mut m, Op::MatMul { trans_b: false }, &[x, w], None, Origin::default()).unwrap();
    // 20.5 + 16.25 bits, where the sizes alone give 20 + 16 + 6.
    assert_eq!(m.ty(y).show(&m.dims), "ring64.16[2, 8] sum3 <37 size 36.75");
    let turned = push(&mut m, Op::Transpose { perm: vec![1, 0] }, &[w], None, Origin::default()).unwrap();
    let z = push(&mut m, Op::MatMul { trans_b: true }, &[x, turned], None, Origin::default()).unwrap();
    assert_eq!(m.ty(z), m.ty(y));
    let t = push(&mut m, Op::Truncate { by: 8, bits: 64 }, &[y], None, Origin::default()).unwrap();
    assert_eq!(m.ty(t).show(&m.dims), "ring64.8[2, 8] shared <29 size 28.76");
}

/// Types that follow from a result which was found to be smaller are those of a module that is built anew from it.
#[test]
fn a_result_that_is_tightened_is_as_concise_as_any_other() {
    let mut m = Module::empty("m".into(), Setting::ThreeParty, Stage::Lowered, Default::default());
    let (w, _) = weight(&mut m, &[2, 4], &[0.5; 8], false);
    let sum = push(&mut m, Op::ReduceSum { axis: 1 }, &[w], None, Origin::default()).unwrap();
    assert!(!m.ty(sum).norms.is_none());
    tighten(&mut m, sum, 5, BoundFrom::Weights, &Norms::default());
    assert_eq!((m.ty(sum).bound, m.ty(sum).bound_from, m.ty(sum).norms), (5, BoundFrom::Weights, Norms::default()));
    let less = push(&mut m, Op::Truncate { by: 2, bits: 64 }, &[sum], None, Origin::default()).unwrap();
    let nodes = m.ops.clone();
    let mut anew = Module { ops: Vec::new(), ..m };
    for node in &nodes {
        push_like(&mut anew, node, node.op.clone(), &node.args).unwrap();
    }
    assert_eq!(anew.ops, nodes);
    assert!(findings(&anew).is_empty());
    let before = anew.ty(less).clone();
    tighten(&mut anew, less, 60, BoundFrom::Guarded, &Norms::default());
    assert_eq!(*anew.ty(less), before, "nothing new was said");
}

#[test]
fn encoding_checks_rows_and_columns() {
    let declared = |rows, columns| {
        let ty = Ty::ring(64, SCALE, Sharing::Public, dims(&[2, 2]), 12);
        encode_as(&[3.0, 4.0, 0.0, 0.0], &[2, 2], &Ty { norms: Norms { size: None, rows, columns }, ..ty })
    };
    // A row of 5 · 256 integers, 10.32 bits; a column of 1024.
    assert!(declared(Some(1033), Some(1001)).is_ok());
    for (rows, columns) in [(Some(1032), None), (None, Some(1000)), (Some(0), Some(2000))] {
        assert_eq!(declared(rows, columns).unwrap_err().code, "E0381");
    }
}
