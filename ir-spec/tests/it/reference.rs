//! Reference meaning of the core ops, on small tensors with results worked out by hand.

use ombra_ir::dim::{Bindings, Dim, Sym};
use ombra_ir::op::EXP_WINDOW;
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::reference::{RefValue, encode, eval, signed};
use ombra_ir::ty::{Sharing, Ty};
use proptest::prelude::*;

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::from_usize(*d).unwrap()).collect()
}

fn ring(shape: &[usize], values: &[i64]) -> RefValue {
    in_ring(64, shape, values)
}

fn in_ring(bits: u8, shape: &[usize], values: &[i64]) -> RefValue {
    RefValue::ring(bits, shape.to_vec(), values.iter().map(|v| *v as u64).collect()).unwrap()
}

fn ints(shape: &[usize], values: &[i64]) -> RefValue {
    RefValue::plain(Tensor::i64(shape, values.to_vec()).unwrap())
}

fn mask(shape: &[usize], values: &[u8]) -> RefValue {
    RefValue::plain(Tensor::bool(shape, values.iter().map(|v| *v == 1).collect()).unwrap())
}

fn bits(shape: &[usize], values: &[u8]) -> RefValue {
    RefValue::bit(shape.to_vec(), values.iter().map(|v| *v == 1).collect()).unwrap()
}

fn run(op: Op, args: &[&RefValue], shape: &[usize]) -> RefValue {
    try_run(op, args, shape).unwrap()
}

fn try_run(op: Op, args: &[&RefValue], shape: &[usize]) -> ombra_ir::Result<RefValue> {
    of_type(&op, args, &Ty::ring(64, 0, Sharing::Shared, dims(shape), 63), &Bindings::new())
}

/// No core op looks at the types of its operands.
fn of_type(op: &Op, args: &[&RefValue], ty: &Ty, sizes: &Bindings) -> ombra_ir::Result<RefValue> {
    eval(op, &args.iter().map(|x| (*x, ty)).collect::<Vec<_>>(), ty, sizes)
}

#[test]
fn arithmetic_wraps_in_its_ring() {
    let a = in_ring(8, &[2, 2], &[100, -100, 7, -1]);
    let b = in_ring(8, &[2], &[50, -60]);
    assert_eq!(run(Op::Add, &[&a, &b], &[2, 2]), in_ring(8, &[2, 2], &[-106, 96, 57, -61]));
    assert_eq!(run(Op::Sub, &[&b, &a], &[2, 2]), in_ring(8, &[2, 2], &[-50, 40, 43, -59]));
    assert_eq!(run(Op::Mul, &[&a, &a], &[2, 2]), in_ring(8, &[2, 2], &[16, 16, 49, 1]));
    assert_eq!(run(Op::Neg, &[&b], &[2]), in_ring(8, &[2], &[-50, 60]));
    assert_eq!(run(Op::MulInt { k: -3 }, &[&b], &[2]), in_ring(8, &[2], &[106, -76]));
    assert_eq!(run(Op::AddInt { k: -70 }, &[&b], &[2]), in_ring(8, &[2], &[-20, 126]));
    assert_eq!(run(Op::Upscale { by: 2 }, &[&b], &[2]), in_ring(8, &[2], &[-56, 16]));
    assert_eq!(run(Op::SetScale { scale: 3 }, &[&b], &[2]), b);
    assert_eq!(run(Op::Narrow { bits: 8 }, &[&ring(&[2], &[300, -300])], &[2]), in_ring(8, &[2], &[44, -44]));
    assert_eq!(run(Op::Reshare, &[&b], &[2]), b);
    assert_eq!(try_run(Op::Add, &[&a, &ring(&[2], &[1, 2])], &[2, 2]).unwrap_err().code, "E0380");
}

#[test]
fn truncation_is_the_floor() {
    let x = in_ring(32, &[6], &[-9, -8, -1, 0, 7, 8]);
    assert_eq!(run(Op::Truncate { by: 3, bits: 32 }, &[&x], &[6]), in_ring(32, &[6], &[-2, -1, -1, 0, 0, 1]));
}

#[test]
fn an_exponential_by_digits_is_that_of_its_window() {
    let x = in_ring(64, &[6], &[0, -65536, -32 << 16, 1 << 15, (-64 << 16) - 65536, -40 << 16]);
    for (tail, bits, scale) in [(false, 24, 21), (true, 32, 29)] {
        let one = 1i64 << scale;
        let e = |x: f64| (x.exp() * one as f64).floor() as i64;
        let expected = [one, e(-1.0), 0, e(0.5), e(-1.0), 0];
        let found = run(Op::ExpDigits { scale: 16, window: EXP_WINDOW, tail }, &[&x], &[6]);
        assert_eq!(found, in_ring(bits, &[6], &expected));
    }
}

#[test]
fn a_cut_is_the_floor_less_one() {
    let x = in_ring(32, &[6], &[-257, -256, -1, 0, 255, 256]);
    assert_eq!(run(Op::Cut { by: 8 }, &[&x], &[6]), in_ring(24, &[6], &[-3, -2, -2, -1, -1, 0]));
    assert_eq!(try_run(Op::Cut { by: 32 }, &[&x], &[6]).unwrap_err().code, "E0380");
}

#[test]
fn a_lift_is_a_multiple_in_a_larger_ring() {
    let x = in_ring(8, &[3], &[-128, 3, 127]);
    assert_eq!(run(Op::Lift { by: 16 }, &[&x], &[3]), in_ring(24, &[3], &[-128 << 16, 3 << 16, 127 << 16]));
}

#[test]
fn matrix_products_broadcast_their_batch() {
    let a = ring(&[2, 2, 3], &[1, 2, 3, 4, 5, 6, -1, 0, 1, 2, 0, -2]);
    let b = ring(&[3, 2], &[1, 0, 0, 1, 2, -1]);
    let expected = ring(&[2, 2, 2], &[7, -1, 16, -1, 1, -1, -2, 2]);
    assert_eq!(run(Op::MatMul { trans_b: false }, &[&a, &b], &[2, 2, 2]), expected);
    let bt = ring(&[2, 3], &[1, 0, 2, 0, 1, -1]);
    assert_eq!(run(Op::MatMul { trans_b: true }, &[&a, &bt], &[2, 2, 2]), expected);
    let stacked = ring(&[2, 1, 2, 3], &[1, 0, 2, 0, 1, -1, 0, 0, 0, 1, 1, 1]);
    let out = run(Op::MatMul { trans_b: true }, &[&a, &stacked], &[2, 2, 2, 2]);
    assert_eq!(out, ring(&[2, 2, 2, 2], &[7, -1, 16, -1, 1, -1, -2, 2, 0, 6, 0, 15, 0, 0, 0, 0]));
    let empty = run(Op::MatMul { trans_b: false }, &[&ring(&[2, 0], &[]), &ring(&[0, 1], &[])], &[2, 1]);
    assert_eq!(empty, ring(&[2, 1], &[0, 0]));
    assert_eq!(try_run(Op::MatMul { trans_b: false }, &[&b, &b], &[3, 2]).unwrap_err().code, "E0380");
    let x = ring(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    assert_eq!(run(Op::ReduceSum { axis: 0 }, &[&x], &[1, 3]), ring(&[1, 3], &[5, 7, 9]));
    assert_eq!(run(Op::ReduceSum { axis: 1 }, &[&x], &[2, 1]), ring(&[2, 1], &[6, 15]));
}

#[test]
fn movement_keeps_elements() {
    let x = ring(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    assert_eq!(run(Op::Reshape { shape: dims(&[3, 2]) }, &[&x], &[3, 2]), ring(&[3, 2], &[1, 2, 3, 4, 5, 6]));
    assert_eq!(run(Op::Transpose { perm: vec![1, 0] }, &[&x], &[3, 2]), ring(&[3, 2], &[1, 4, 2, 5, 3, 6]));
    let slice = Op::Slice { axis: 1, start: 1.into(), len: 2.into() };
    assert_eq!(run(slice, &[&x], &[2, 2]), ring(&[2, 2], &[2, 3, 5, 6]));
    let joined = run(Op::Concat { axis: 1 }, &[&x, &ring(&[2, 1], &[8, 9])], &[2, 4]);
    assert_eq!(joined, ring(&[2, 4], &[1, 2, 3, 8, 4, 5, 6, 9]));
    let wide = run(Op::Expand { shape: dims(&[2, 2, 3]) }, &[&ring(&[2, 1], &[7, 8])], &[2, 2, 3]);
    assert_eq!(wide, ring(&[2, 2, 3], &[7, 7, 7, 8, 8, 8, 7, 7, 7, 8, 8, 8]));
    let rows = run(Op::Gather { axis: 1 }, &[&x, &ints(&[2], &[2, -3])], &[2, 2]);
    assert_eq!(rows, ring(&[2, 2], &[3, 1, 6, 4]));
    assert_eq!(try_run(Op::Gather { axis: 0 }, &[&x, &ints(&[1], &[2])], &[1, 3]).unwrap_err().code, "E0383");
    assert_eq!(run(Op::Embed, &[&ints(&[1, 2], &[1, 1]), &x], &[1, 2, 3]), ring(&[1, 2, 3], &[4, 5, 6, 4, 5, 6]));
    let b = bits(&[2, 2], &[1, 0, 0, 0]);
    assert_eq!(run(Op::Transpose { perm: vec![1, 0] }, &[&b], &[2, 2]), b);
    assert_eq!(run(Op::Transpose { perm: vec![1, 0] }, &[&ring(&[0, 2], &[])], &[2, 0]), ring(&[2, 0], &[]));
}

#[test]
fn symbols_get_their_values() {
    let n = Dim::from(Sym(0));
    let mut sizes = Bindings::new();
    sizes.set(Sym(0), 3);
    let last = Op::Slice { axis: 0, start: n.sub(&1.into()).unwrap(), len: 1.into() };
    let ty = Ty::ring(64, 0, Sharing::Shared, dims(&[1]), 63);
    assert_eq!(of_type(&last, &[&ring(&[3], &[4, 5, 6])], &ty, &sizes).unwrap(), ring(&[1], &[6]));
    assert_eq!(of_type(&last, &[&ring(&[2], &[4, 5])], &ty, &sizes).unwrap_err().code, "E0380");
    assert_eq!(of_type(&last, &[&ring(&[3], &[4, 5, 6])], &ty, &Bindings::new()).unwrap_err().code, "E0204");
}

#[test]
fn ragged_rows() {
    // Two heads under one causal mask of three positions, whose first column is padding for the second row.
    let m = mask(&[3, 3], &[1, 0, 0, 0, 1, 0, 1, 1, 1]);
    let dense = [2, 3, 3];
    let x = ring(&dense, &[1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5, -6, -7, -8, -9]);
    let packed = ring(&[10], &[1, 5, 7, 8, 9, -1, -5, -7, -8, -9]);
    assert_eq!(run(Op::Pack, &[&x, &m], &[10]), packed);
    let back = run(Op::Unpack { shape: dims(&dense) }, &[&packed, &m], &dense);
    assert_eq!(back, ring(&dense, &[1, 0, 0, 0, 5, 0, 7, 8, 9, -1, 0, 0, 0, -5, 0, -7, -8, -9]));
    let rows = [2, 3, 1];
    let sums = run(Op::RowSum { shape: dims(&dense) }, &[&packed, &m], &rows);
    assert_eq!(sums, ring(&rows, &[1, 5, 24, -1, -5, -24]));
    let greatest = run(Op::RowMax { shape: dims(&dense), width: 8, drop: 0 }, &[&packed, &m], &rows);
    assert_eq!(greatest, ring(&rows, &[1, 5, 9, -1, -5, -7]));
    let spread = run(Op::RowExpand { shape: dims(&dense) }, &[&greatest, &m], &[10]);
    assert_eq!(spread, ring(&[10], &[1, 5, 9, 9, 9, -1, -5, -7, -7, -7]));
    let none = mask(&[2], &[0, 0]);
    let empty = run(Op::RowMax { shape: dims(&[2, 2]), width: 8, drop: 0 }, &[&ring(&[0], &[]), &none], &[2, 1]);
    assert_eq!(empty, ring(&[2, 1], &[0, 0]));
    assert_eq!(try_run(Op::Pack, &[&x, &m], &[9]).unwrap_err().code, "E0380");
    assert_eq!(try_run(Op::RowSum { shape: dims(&[3, 3]) }, &[&packed, &m], &[3, 1]).unwrap_err().code, "E0380");
}

#[test]
fn bits_and_comparisons() {
    let x = in_ring(16, &[4], &[-3, 0, 5, -128]);
    assert_eq!(run(Op::Msb { width: 8, drop: 0 }, &[&x], &[4]), bits(&[4], &[1, 0, 0, 1]));
    assert_eq!(run(Op::Msb { width: 16, drop: 0 }, &[&x], &[4]), bits(&[4], &[1, 0, 0, 1]));
    let (a, b) = (bits(&[2, 2], &[0, 0, 1, 1]), bits(&[2], &[0, 1]));
    assert_eq!(run(Op::Xor, &[&a, &b], &[2, 2]), bits(&[2, 2], &[0, 1, 1, 0]));
    assert_eq!(run(Op::And, &[&a, &b], &[2, 2]), bits(&[2, 2], &[0, 0, 0, 1]));
    assert_eq!(run(Op::Not, &[&b], &[2]), bits(&[2], &[1, 0]));
    assert_eq!(run(Op::BitToRing { bits: 32 }, &[&b], &[2]), in_ring(32, &[2], &[0, 1]));
    let scores = in_ring(16, &[3, 3], &[1, 5, 5, -9, -7, -8, 4, 3, 2]);
    assert_eq!(run(Op::ArgMax { width: 8 }, &[&scores], &[3]), in_ring(16, &[3], &[1, 1, 0]));
}

#[test]
fn encoding_rounds_and_keeps_its_bound() {
    let found = encode(&[1.0, -1.0, 0.125, -0.125, 0.1], 64, 2, 10).unwrap();
    assert_eq!(found.iter().map(|v| *v as i64).collect::<Vec<_>>(), [4, -4, 1, -1, 0]);
    assert_eq!(signed(encode(&[-2.5], 24, 8, 12).unwrap()[0], 24), -640);
    for bad in [256.0, -256.0, f32::NAN, f32::INFINITY] {
        assert_eq!(encode(&[bad], 64, 2, 10).unwrap_err().code, "E0381", "{bad}");
    }
    let x = RefValue::plain(Tensor::f32(&[2], vec![0.5, -0.75]).unwrap());
    let ty = Ty::ring(32, 8, Sharing::Public, dims(&[2]), 10);
    let out = of_type(&Op::Encode { bits: 32, scale: 8 }, &[&x], &ty, &Bindings::new()).unwrap();
    assert_eq!(out.decode(8).unwrap(), [0.5, -0.75]);
    assert!(ombra_ir::reference::fits(&out, &ty, &Bindings::new()).unwrap());
    let plain = Ty::plain(DType::F32, Sharing::Public, dims(&[2]));
    assert!(!ombra_ir::reference::fits(&out, &plain, &Bindings::new()).unwrap());
}

#[test]
fn what_has_no_value_is_an_error() {
    assert_eq!(try_run(Op::Weight { name: "w".into() }, &[], &[1]).unwrap_err().code, "E0382");
    assert_eq!(try_run(Op::Add, &[&ring(&[1], &[0])], &[1]).unwrap_err().code, "E0380");
    assert_eq!(try_run(Op::Exp { max: 0 }, &[&bits(&[1], &[0])], &[1]).unwrap_err().code, "E0380");
    let huge = [1 << 20, 1 << 20];
    let x = ring(&[1], &[0]);
    assert_eq!(try_run(Op::Expand { shape: dims(&huge) }, &[&x], &huge).unwrap_err().code, "E0384");
}

/// `y = ⌊(x · wᵀ + x) / 2^16⌋` at scale 16, and the new state, on two rows.
#[test]
fn a_module_runs_in_the_clear() {
    let text = crate::files("text").into_iter().find(|(name, _)| name == "scheduled.mpcir").unwrap().1;
    let module = ombra_ir::text::parse(&text).unwrap();
    assert!(ombra_ir::verify::findings(&module).is_empty());
    let bound = ombra_ir::bind::bind(&module, &[("seq", 2)], &[]).unwrap();
    let one = 1i64 << 16;
    let x: Vec<i64> = (0..16).map(|i| (i - 8) * one / 2).collect();
    // The weights are twice the identity, and a quarter of the first feature goes to the last.
    let weight = |i: usize| {
        if i.is_multiple_of(9) {
            2 * one
        } else if i == 56 {
            one / 4
        } else {
            0
        }
    };
    let w: Vec<i64> = (0..64).map(weight).collect();
    let mut given = |_, node: &ombra_ir::module::Node| match node.op {
        Op::Input { .. } => Ok(ring(&[2, 8], &x)),
        _ => Ok(ring(&[8, 8], &w)),
    };
    let out = ombra_ir::reference::run::run(&module, &bound, &mut given).unwrap();
    let expected: Vec<i64> = (0..16).map(|i| 3 * x[i] + if i % 8 == 7 { x[i - 7] / 4 } else { 0 }).collect();
    assert_eq!(out.outputs, [Some(ring(&[2, 8], &expected))]);
    let wrong = &mut |_, _: &ombra_ir::module::Node| Ok(ring(&[1], &[0]));
    assert_eq!(ombra_ir::reference::run::run(&module, &bound, wrong).unwrap_err().code, "E0385");
}

proptest! {
    #[test]
    fn packing_is_undone(rows in 1usize..4, columns in 1usize..5, seed in any::<u64>()) {
        let len = rows * columns;
        let word = |i: usize| (seed >> (i % 60)) ^ (i as u64).wrapping_mul(0x9e37);
        let kept: Vec<u8> = (0..len).map(|i| (word(i) & 1) as u8).collect();
        let values: Vec<i64> = (0..len).map(|i| word(i) as i64 % 100).collect();
        let (m, x) = (mask(&[rows, columns], &kept), ring(&[rows, columns], &values));
        let count = kept.iter().filter(|k| **k == 1).count();
        let packed = run(Op::Pack, &[&x, &m], &[count]);
        let dense = dims(&[rows, columns]);
        let back = run(Op::Unpack { shape: dense.clone() }, &[&packed, &m], &[rows, columns]);
        let expected: Vec<i64> = values.iter().zip(&kept).map(|(v, k)| v * i64::from(*k)).collect();
        prop_assert_eq!(&back, &ring(&[rows, columns], &expected));
        let sums = run(Op::RowSum { shape: dense }, &[&packed, &m], &[rows, 1]);
        prop_assert_eq!(sums, run(Op::ReduceSum { axis: 1 }, &[&back], &[rows, 1]));
    }

    #[test]
    fn matrix_product_is_the_sum_of_products(m in 1usize..4, k in 1usize..5, n in 1usize..4, seed in any::<u64>()) {
        let make = |shape: &[usize], salt: u64| {
            let len = shape.iter().product::<usize>() as u64;
            let values: Vec<i64> = (0..len).map(|i| (seed ^ salt).wrapping_mul(2 * i + 1) as i64).collect();
            ring(shape, &values)
        };
        let (a, b) = (make(&[m, k], 1), make(&[k, n], 2));
        let bt = run(Op::Transpose { perm: vec![1, 0] }, &[&b], &[n, k]);
        let product = run(Op::MatMul { trans_b: false }, &[&a, &b], &[m, n]);
        prop_assert_eq!(&product, &run(Op::MatMul { trans_b: true }, &[&a, &bt], &[m, n]));
        let columns = Op::Reshape { shape: dims(&[m, 1, k]) };
        let terms = run(Op::Mul, &[&run(columns, &[&a], &[m, 1, k]), &bt], &[m, n, k]);
        let sums = run(Op::ReduceSum { axis: 2 }, &[&terms], &[m, n, 1]);
        prop_assert_eq!(run(Op::Reshape { shape: dims(&[m, n]) }, &[&sums], &[m, n]), product);
    }
}

/// A composite op on reals at a scale of 20 bits, with its result's scale.
fn of_reals(op: Op, args: &[(&[usize], &[f64])], mask: Option<&RefValue>, scale: u8) -> Vec<f64> {
    let own = |shape: &[usize]| Ty::ring(64, 20, Sharing::Shared, dims(shape), 63);
    let encode = |x: &f64| (x * f64::from(1 << 20)).round() as i64;
    let values: Vec<_> =
        args.iter().map(|(shape, x)| (ring(shape, &x.iter().map(encode).collect::<Vec<_>>()), own(shape))).collect();
    let of_mask = Ty::plain(DType::Bool, Sharing::Public, vec![]);
    let operands: Vec<_> =
        values.iter().map(|(value, ty)| (value, ty)).chain(mask.map(|mask| (mask, &of_mask))).collect();
    let ty = Ty::ring(64, scale, Sharing::Shared, dims(args[0].0), 63);
    eval(&op, &operands, &ty, &Bindings::new()).unwrap().decode(scale).unwrap()
}

#[test]
fn composites_are_functions_of_reals() {
    let near = |found: Vec<f64>, expected: &[f64], what: &str| {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (x, y) in found.iter().zip(expected) {
            assert!((x - y).abs() < 2e-5, "{what}: {found:?} and {expected:?}");
        }
    };
    let one = |op: Op, x: f64, y: f64| near(of_reals(op.clone(), &[(&[1], &[x])], None, 20), &[y], &format!("{op:?}"));
    // From tables of these functions.
    one(Op::Gelu { tanh: false }, 1.0, 0.841345);
    one(Op::Gelu { tanh: true }, 1.0, 0.841192);
    one(Op::Silu, -2.0, -0.238406);
    one(Op::Tanh, 0.5, 0.462117);
    one(Op::Sigmoid, -1.0, 0.268941);
    one(Op::Erf, 0.5, 0.520500);
    one(Op::Sin, 3.0, 0.141120);
    one(Op::Cos, 3.0, -0.989992);
    one(Op::Softplus, 0.0, std::f64::consts::LN_2);
    one(Op::Exp { max: 0 }, -1.0, 0.367879);
    one(Op::Exp { max: 0 }, -32.5, 0.0);
    one(Op::Reciprocal { min_log2: 0, max_log2: 4, scale: 20 }, 8.0, 0.125);
    one(Op::Sqrt { min_log4: -2, max_log4: 4, scale: 20 }, 2.0, std::f64::consts::SQRT_2);
    one(Op::Rsqrt { min_log4: -2, max_log4: 4, scale: 20 }, 4.0, 0.5);
    one(Op::Log { min_log2: -4, max_log2: 4, scale: 20 }, 4.0, 2.0 * std::f64::consts::LN_2);
    let div = Op::Div { min_log2: 0, max_log2: 4, scale: 12 };
    near(of_reals(div, &[(&[2], &[3.0, -1.0]), (&[1], &[8.0])], None, 12), &[0.375, -0.125], "div");
    let kept = mask(&[2, 3], &[1, 1, 0, 0, 0, 0]);
    let scores: (&[usize], &[f64]) = (&[2, 3], &[1.0, 1.0, 9.0, 1.0, 2.0, 3.0]);
    near(of_reals(Op::Softmax, &[scores], Some(&kept), 20), &[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], "softmax");
    let ratio = |square| Op::RatioSoftmax { square, shift: 1.0.into(), eps: 1.0.into(), min_log2: 0, max_log2: 8 };
    near(of_reals(ratio(false), &[scores], Some(&kept), 20), &[0.4, 0.4, 0.0, 0.0, 0.0, 0.0], "ratio");
    near(of_reals(ratio(true), &[scores], Some(&kept), 20), &[4.0 / 9.0, 4.0 / 9.0, 0.0, 0.0, 0.0, 0.0], "square");
    let rows: (&[usize], &[f64]) = (&[3, 2], &[3.0, 1.0, 0.0, 0.0, 5.0, 5.0]);
    let root = 5f64.sqrt();
    let rms = Op::RmsNorm { eps: 0.0.into(), length: 30, scale: 16 };
    near(of_reals(rms, &[rows], None, 16), &[3.0 / root, 1.0 / root, 0.0, 0.0, 1.0, 1.0], "rms_norm");
    let layer = Op::LayerNorm { eps: 0.0.into(), length: 30, scale: 16 };
    near(of_reals(layer, &[rows], None, 16), &[1.0, -1.0, 0.0, 0.0, 0.0, 0.0], "layer_norm");
}
