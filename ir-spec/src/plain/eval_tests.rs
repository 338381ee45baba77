//! Cases of ONNX's own semantics, and hostile shapes.

use super::*;
use crate::plain::{Reduce, Unary};

fn run(op: Op, operands: &[&Tensor]) -> Result<Tensor> {
    eval(&op, operands, &Bindings::new(), 1 << 16)
}

fn i(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::i64(shape, data.to_vec()).unwrap()
}

fn f(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::f32(shape, data.to_vec()).unwrap()
}

fn b(shape: &[usize], data: &[bool]) -> Tensor {
    Tensor::bool(shape, data.to_vec()).unwrap()
}

fn c(values: &[i64]) -> Vec<Dim> {
    values.iter().map(|v| Dim::constant(*v)).collect()
}

#[test]
fn casts() {
    assert_eq!(run(Op::Cast { to: DType::I64 }, &[&f(&[3], &[-1.9, 2.9, 1e30])]).unwrap(), i(&[3], &[-1, 2, i64::MAX]));
    assert_eq!(
        run(Op::Cast { to: DType::Bool }, &[&f(&[3], &[0.0, 0.1, f32::NAN])]).unwrap(),
        b(&[3], &[false, true, true])
    );
    assert_eq!(run(Op::Cast { to: DType::F32 }, &[&b(&[2], &[true, false])]).unwrap(), f(&[2], &[1.0, 0.0]));
}

#[test]
fn shapes_of_the_same_elements() {
    let x = i(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    assert_eq!(run(Op::Reshape { shape: c(&[3, 2]) }, &[&x]).unwrap(), i(&[3, 2], &[0, 1, 2, 3, 4, 5]));
    assert!(run(Op::Reshape { shape: c(&[4]) }, &[&x]).is_err());
    assert!(run(Op::Reshape { shape: c(&[-6]) }, &[&x]).is_err());
    assert_eq!(run(Op::Reshape { shape: c(&[5, 0]) }, &[&i(&[0, 7], &[])]).unwrap(), i(&[5, 0], &[]));
    assert_eq!(run(Op::Transpose { perm: vec![1, 0] }, &[&x]).unwrap(), i(&[3, 2], &[0, 3, 1, 4, 2, 5]));
    assert!(run(Op::Transpose { perm: vec![0, 0] }, &[&x]).is_err());
    assert_eq!(run(Op::Expand { shape: c(&[2, 2, 3]) }, &[&i(&[1, 3], &[7, 8, 9])]).unwrap().len(), 12);
    assert!(run(Op::Expand { shape: c(&[1, 3]) }, &[&x]).is_err());
    assert!(run(Op::Expand { shape: c(&[2, 4]) }, &[&x]).is_err());
}

#[test]
fn pieces() {
    let x = i(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    let slice = |start, len, step| Op::Slice { axis: 1, start: Dim::constant(start), len: Dim::constant(len), step };
    assert_eq!(run(slice(1, 2, 1), &[&x]).unwrap(), i(&[2, 2], &[1, 2, 4, 5]));
    assert_eq!(run(slice(2, 2, -2), &[&x]).unwrap(), i(&[2, 2], &[2, 0, 5, 3]));
    assert_eq!(run(slice(3, 0, 1), &[&x]).unwrap(), i(&[2, 0], &[]));
    for (start, len, step) in [(2, 2, 1), (-1, 1, 1), (0, 2, -1), (0, 1, 0), (i64::MAX, 2, i64::MAX)] {
        assert!(run(slice(start, len, step), &[&x]).is_err(), "{start} {len} {step}");
    }
    let empty = i(&[2, 0], &[]);
    assert_eq!(run(Op::Concat { axis: 1 }, &[&empty, &x]).unwrap(), x);
    assert_eq!(
        run(Op::Concat { axis: 0 }, &[&x, &i(&[1, 3], &[6, 7, 8])]).unwrap(),
        i(&[3, 3], &[0, 1, 2, 3, 4, 5, 6, 7, 8])
    );
    assert_eq!(
        run(Op::Concat { axis: 1 }, &[&x, &i(&[2, 1], &[8, 9])]).unwrap(),
        i(&[2, 4], &[0, 1, 2, 8, 3, 4, 5, 9])
    );
    assert!(run(Op::Concat { axis: 1 }, &[&x, &i(&[1, 3], &[6, 7, 8])]).is_err());
    assert!(run(Op::Concat { axis: 2 }, &[&x]).is_err());
    let tile = Op::Tile { repeats: c(&[1, 2]) };
    assert_eq!(run(tile, &[&i(&[2, 2], &[1, 2, 3, 4])]).unwrap(), i(&[2, 4], &[1, 2, 1, 2, 3, 4, 3, 4]));
    let square = i(&[3, 3], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(run(Op::Trilu { upper: true, k: 1 }, &[&square]).unwrap(), i(&[3, 3], &[0, 2, 3, 0, 0, 6, 0, 0, 0]));
    assert_eq!(run(Op::Trilu { upper: false, k: -1 }, &[&square]).unwrap(), i(&[3, 3], &[0, 0, 0, 4, 0, 0, 7, 8, 0]));
    assert_eq!(run(Op::Trilu { upper: true, k: i64::MIN }, &[&square]).unwrap(), square);
}

#[test]
fn gathers_and_scatters() {
    let x = i(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    assert_eq!(run(Op::Gather { axis: 1 }, &[&x, &i(&[2], &[-1, 0])]).unwrap(), i(&[2, 2], &[2, 0, 5, 3]));
    assert_eq!(run(Op::Gather { axis: 0 }, &[&x, &Tensor::scalar_i64(1)]).unwrap(), i(&[3], &[3, 4, 5]));
    for bad in [2, -3, i64::MIN, i64::MAX] {
        assert!(run(Op::Gather { axis: 0 }, &[&x, &Tensor::scalar_i64(bad)]).is_err());
    }
    let at = i(&[2, 2], &[0, 0, 1, -1]);
    assert_eq!(run(Op::GatherNd { batch_dims: 0 }, &[&x, &at]).unwrap(), i(&[2], &[0, 5]));
    assert_eq!(run(Op::GatherNd { batch_dims: 1 }, &[&x, &i(&[2, 1], &[1, 2])]).unwrap(), i(&[2], &[1, 5]));
    assert_eq!(run(Op::GatherNd { batch_dims: 0 }, &[&x, &i(&[1, 1], &[1])]).unwrap(), i(&[1, 3], &[3, 4, 5]));
    assert!(run(Op::GatherNd { batch_dims: 0 }, &[&x, &i(&[1, 3], &[0, 0, 0])]).is_err());
    assert!(run(Op::GatherNd { batch_dims: usize::MAX }, &[&x, &at]).is_err());
    let elements = run(Op::GatherElements { axis: 1 }, &[&x, &i(&[2, 2], &[0, 0, 2, -3])]).unwrap();
    assert_eq!(elements, i(&[2, 2], &[0, 0, 5, 3]));
    let scattered = run(Op::ScatterNd, &[&i(&[4], &[1, 2, 3, 4]), &i(&[2, 1], &[3, -3]), &i(&[2], &[9, 8])]).unwrap();
    assert_eq!(scattered, i(&[4], &[1, 8, 3, 9]));
    assert!(run(Op::ScatterNd, &[&x, &i(&[1, 1], &[0]), &i(&[1, 2], &[9, 8])]).is_err());
}

#[test]
fn arithmetic() {
    let div = |x, y| run(Op::Binary(Binary::Div), &[&i(&[2], x), &i(&[2], y)]);
    assert_eq!(div(&[-7, 7], &[2, -2]).unwrap(), i(&[2], &[-3, -3]));
    assert!(div(&[1, 1], &[1, 0]).is_err());
    assert_eq!(div(&[i64::MIN, 1], &[-1, 1]).unwrap(), i(&[2], &[i64::MIN, 1]));
    let modulo = run(Op::Binary(Binary::Mod), &[&i(&[3], &[-4, 7, 5]), &i(&[3], &[2, -3, 8])]).unwrap();
    assert_eq!(modulo, i(&[3], &[0, -2, 5]));
    let column = f(&[2, 1], &[1.0, 2.0]);
    let sum = run(Op::Binary(Binary::Add), &[&column, &f(&[3], &[10.0, 20.0, 30.0])]).unwrap();
    assert_eq!(sum, f(&[2, 3], &[11.0, 21.0, 31.0, 12.0, 22.0, 32.0]));
    assert_eq!(run(Op::Binary(Binary::Pow), &[&column, &i(&[], &[3])]).unwrap(), f(&[2, 1], &[1.0, 8.0]));
    let nan = run(Op::Binary(Binary::Max), &[&f(&[2], &[f32::NAN, 1.0]), &f(&[2], &[1.0, f32::NAN])]).unwrap();
    assert!(nan.as_f32().unwrap().iter().all(|x| x.is_nan()));
    assert!(run(Op::Binary(Binary::Add), &[&column, &i(&[], &[3])]).is_err());
    assert!(run(Op::Binary(Binary::Add), &[&f(&[2], &[0.0; 2]), &f(&[3], &[0.0; 3])]).is_err());
    assert_eq!(run(Op::Unary(Unary::Abs), &[&i(&[2], &[-2, 3])]).unwrap(), i(&[2], &[2, 3]));
    assert_eq!(run(Op::Unary(Unary::Floor), &[&f(&[2], &[-1.5, 1.5])]).unwrap(), f(&[2], &[-2.0, 1.0]));
    assert_eq!(run(Op::Unary(Unary::IsNan), &[&f(&[2], &[f32::NAN, 1.0])]).unwrap(), b(&[2], &[true, false]));
    let of = |unary, x: &[f32]| run(Op::Unary(unary), &[&f(&[x.len()], x)]).unwrap().as_f32().unwrap().to_vec();
    assert_eq!(of(Unary::Ceil, &[-1.5, 1.5]), [-1.0, 2.0]);
    assert_eq!(of(Unary::Round, &[0.5, 1.5, -2.5, 2.6]), [0.0, 2.0, -2.0, 3.0]);
    assert_eq!(of(Unary::Sign, &[-7.0, 0.0, 0.1]), [-1.0, 0.0, 1.0]);
    assert_eq!(run(Op::Unary(Unary::Sign), &[&i(&[3], &[-7, 0, 9])]).unwrap(), i(&[3], &[-1, 0, 1]));
    assert_eq!(of(Unary::Log, &[1.0, 0.0]), [0.0, f32::NEG_INFINITY]);
    assert_eq!(of(Unary::Tanh, &[0.0, 100.0]), [0.0, 1.0]);
    assert_eq!(of(Unary::Sigmoid, &[0.0, 100.0, -1000.0]), [0.5, 1.0, 0.0]);
    assert_eq!(of(Unary::Erf, &[0.0, 10.0]), [0.0, 1.0]);
    assert!(run(Op::Unary(Unary::Log), &[&i(&[1], &[1])]).is_err());
    let scores = f(&[3, 3], &[1.0, 3.0, 3.0, -2.0, -1.0, -3.0, 0.0, f32::NAN, 9.0]);
    assert_eq!(run(Op::ArgMax, &[&scores]).unwrap(), i(&[3], &[1, 1, 1]), "the first of equal ones; no number wins");
    assert_eq!(run(Op::ArgMax, &[&i(&[2], &[4, 9])]).unwrap(), i(&[], &[1]));
    assert!(run(Op::ArgMax, &[&f(&[2, 0], &[])]).is_err());
    assert!(run(Op::ArgMax, &[&f(&[], &[1.0])]).is_err());
    assert_eq!(run(Op::Unary(Unary::Sqrt), &[&f(&[1], &[9.0])]).unwrap(), f(&[1], &[3.0]));
    assert_eq!(run(Op::Unary(Unary::Reciprocal), &[&f(&[1], &[4.0])]).unwrap(), f(&[1], &[0.25]));
    assert_eq!(run(Op::Unary(Unary::Neg), &[&f(&[1], &[4.0])]).unwrap(), f(&[1], &[-4.0]));
    assert_eq!(run(Op::Clip, &[&i(&[3], &[-9, 1, 9]), &i(&[], &[0]), &i(&[1], &[5])]).unwrap(), i(&[3], &[0, 1, 5]));
    assert!(run(Op::Unary(Unary::Cos), &[&i(&[], &[3])]).is_err());
}

#[test]
fn transcendental_functions_are_fixed_to_the_bit() {
    let bits = |op, x: f32| match run(Op::Unary(op), &[&f(&[], &[x])]).unwrap().single_f32() {
        Some(y) => y.to_bits(),
        None => 0,
    };
    assert_eq!(bits(Unary::Cos, 1000.0), 0x3f0f_f813);
    assert_eq!(bits(Unary::Sin, 1000.0), 0x3f53_ae61);
    assert_eq!(bits(Unary::Exp, -1.5), 0x3e64_7c3c);
}

#[test]
fn logic() {
    let (x, y) = (i(&[3], &[1, 2, 3]), i(&[], &[2]));
    let compare = |op| run(Op::Binary(op), &[&x, &y]).unwrap();
    assert_eq!(compare(Binary::Equal), b(&[3], &[false, true, false]));
    assert_eq!(compare(Binary::Less), b(&[3], &[true, false, false]));
    assert_eq!(compare(Binary::LessOrEqual), b(&[3], &[true, true, false]));
    assert_eq!(compare(Binary::Greater), b(&[3], &[false, false, true]));
    assert_eq!(compare(Binary::GreaterOrEqual), b(&[3], &[false, true, true]));
    let (t, u) = (b(&[2, 1], &[true, false]), b(&[2], &[true, false]));
    assert_eq!(run(Op::Binary(Binary::And), &[&t, &u]).unwrap(), b(&[2, 2], &[true, false, false, false]));
    assert_eq!(run(Op::Binary(Binary::Or), &[&t, &u]).unwrap(), b(&[2, 2], &[true, true, true, false]));
    assert_eq!(run(Op::Unary(Unary::Not), &[&u]).unwrap(), b(&[2], &[false, true]));
    assert!(run(Op::Binary(Binary::And), &[&x, &y]).is_err());
    let chosen = run(Op::Where, &[&t, &i(&[2], &[1, 2]), &i(&[], &[0])]).unwrap();
    assert_eq!(chosen, i(&[2, 2], &[1, 2, 0, 0]));
}

#[test]
fn sums() {
    let (a, m) = (f(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f(&[2], &[1.0, 10.0]));
    assert_eq!(run(Op::MatMul, &[&a, &m]).unwrap(), f(&[2], &[21.0, 43.0]));
    assert_eq!(run(Op::MatMul, &[&m, &a]).unwrap(), f(&[2], &[31.0, 42.0]));
    assert_eq!(run(Op::MatMul, &[&m, &m]).unwrap(), f(&[], &[101.0]));
    let batch = f(&[2, 1, 2], &[1.0, 0.0, 0.0, 1.0]);
    assert_eq!(run(Op::MatMul, &[&batch, &a]).unwrap(), f(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(run(Op::MatMul, &[&f(&[2, 0], &[]), &f(&[0, 1], &[])]).unwrap(), f(&[2, 1], &[0.0, 0.0]));
    assert!(run(Op::MatMul, &[&a, &f(&[3], &[0.0; 3])]).is_err());
    assert!(run(Op::MatMul, &[&a, &Tensor::scalar_f32(1.0)]).is_err());
    let cum = |exclusive, reverse| run(Op::CumSum { axis: 0, exclusive, reverse }, &[&i(&[3], &[1, 2, 3])]).unwrap();
    assert_eq!(cum(false, false), i(&[3], &[1, 3, 6]));
    assert_eq!(cum(true, false), i(&[3], &[0, 1, 3]));
    assert_eq!(cum(true, true), i(&[3], &[5, 3, 0]));
    let reduce = |kind, axes: &[usize], keepdims| run(Op::Reduce { kind, axes: axes.to_vec(), keepdims }, &[&a]);
    assert_eq!(reduce(Reduce::Sum, &[0], false).unwrap(), f(&[2], &[4.0, 6.0]));
    assert_eq!(reduce(Reduce::Mean, &[0, 1], true).unwrap(), f(&[1, 1], &[2.5]));
    assert_eq!(reduce(Reduce::Max, &[1], false).unwrap(), f(&[2], &[2.0, 4.0]));
    assert_eq!(reduce(Reduce::Min, &[1], false).unwrap(), f(&[2], &[1.0, 3.0]));
    assert_eq!(reduce(Reduce::Prod, &[0, 1], false).unwrap(), f(&[], &[24.0]));
    assert!(reduce(Reduce::Sum, &[2], false).is_err());
    assert!(reduce(Reduce::Sum, &[1, 0], false).is_err());
    let none = |kind| run(Op::Reduce { kind, axes: vec![0], keepdims: false }, &[&f(&[0, 2], &[])]);
    assert_eq!(none(Reduce::Max).unwrap(), f(&[2], &[f32::NEG_INFINITY; 2]));
    assert_eq!(none(Reduce::Min).unwrap(), f(&[2], &[f32::INFINITY; 2]));
    assert!(none(Reduce::Mean).is_err());
}

#[test]
fn makes_values_from_sizes() {
    assert_eq!(run(Op::Range, &[&i(&[], &[5]), &i(&[], &[0]), &i(&[], &[-2])]).unwrap(), i(&[3], &[5, 3, 1]));
    assert_eq!(run(Op::Range, &[&i(&[], &[5]), &i(&[], &[0]), &i(&[], &[1])]).unwrap(), i(&[0], &[]));
    let floats = [0.0f32, 1.0, 0.4].map(Tensor::scalar_f32);
    assert_eq!(run(Op::Range, &[&floats[0], &floats[1], &floats[2]]).unwrap(), f(&[3], &[0.0, 0.4, 0.8]));
    assert!(run(Op::Range, &[&i(&[], &[0]), &i(&[], &[9]), &i(&[], &[0])]).is_err());
    assert_eq!(run(Op::Range, &[&i(&[], &[i64::MIN]), &i(&[], &[i64::MAX]), &i(&[], &[1])]).unwrap_err().code, "E0213");
    let fill = |shape: &[i64]| run(Op::ConstantOfShape { shape: c(shape), value: i(&[1], &[7]) }, &[]);
    assert_eq!(fill(&[2]).unwrap(), i(&[2], &[7, 7]));
    assert_eq!(fill(&[]).unwrap(), i(&[], &[7]));
    assert_eq!(fill(&[1 << 40, 1 << 40]).unwrap_err().code, "E0210");
    assert_eq!(fill(&[1 << 20]).unwrap_err().code, "E0213");
    assert_eq!(fill(&[-1]).unwrap_err().code, "E0203");
    let mut dims = crate::Dims::default();
    let seq = Dim::from(dims.symbol("seq").unwrap());
    let bindings = dims.bind(&[("seq", 3)]).unwrap();
    let iota = Op::Iota { start: seq.clone(), len: seq.clone(), step: -1 };
    assert_eq!(eval(&iota, &[], &bindings, 16).unwrap(), i(&[3], &[3, 2, 1]));
    assert_eq!(eval(&iota, &[], &bindings, 2).unwrap_err().code, "E0213");
    let sizes = Op::Sizes { shape: vec![2], values: vec![seq.clone(), Dim::constant(-1)] };
    assert_eq!(eval(&sizes, &[], &bindings, 16).unwrap(), i(&[2], &[3, -1]));
    assert_eq!(eval(&sizes, &[], &Bindings::new(), 16).unwrap_err().code, "E0204");
}

#[test]
fn empty_tensors_with_huge_sizes_cost_nothing() {
    let x = i(&[1 << 40, 1 << 40, 0], &[]);
    let none = i(&[0], &[]);
    assert!(run(Op::Concat { axis: 2 }, &[&x, &x]).is_err());
    assert!(run(Op::Gather { axis: 1 }, &[&x, &none]).unwrap().is_empty());
    let long = i(&[1 << 40, 0], &[]);
    assert!(run(Op::Concat { axis: 1 }, &[&long, &long]).unwrap().is_empty());
    assert!(run(Op::Gather { axis: 1 }, &[&long, &none]).unwrap().is_empty());
    assert!(run(Op::CumSum { axis: 1, exclusive: false, reverse: false }, &[&long]).unwrap().is_empty());
    assert!(run(Op::Transpose { perm: vec![2, 1, 0] }, &[&x]).unwrap().is_empty());
    assert!(run(Op::Binary(Binary::Add), &[&x, &x]).unwrap().is_empty());
    assert!(run(Op::MatMul, &[&i(&[1 << 40, 0, 5], &[]), &i(&[5, 0], &[])]).unwrap().is_empty());
    assert!(run(Op::MatMul, &[&i(&[0, 1 << 40, 0], &[]), &i(&[0, 1 << 40], &[])]).unwrap().is_empty());
    assert!(run(Op::GatherNd { batch_dims: 0 }, &[&i(&[3, 0], &[]), &i(&[1 << 50, 0], &[])]).unwrap().is_empty());
    let sum = Op::Reduce { kind: Reduce::Sum, axes: vec![0, 1], keepdims: false };
    assert!(run(sum, &[&x]).unwrap().is_empty());
}

#[test]
fn refuses_wrong_numbers_of_operands_and_oversized_results() {
    let x = i(&[1 << 9, 1], &vec![0; 1 << 9]);
    let y = i(&[1, 1 << 9], &vec![0; 1 << 9]);
    assert!(run(Op::Binary(Binary::Add), &[&x]).is_err());
    assert!(run(Op::Concat { axis: 0 }, &[]).is_err());
    assert_eq!(run(Op::Binary(Binary::Add), &[&x, &y]).unwrap_err().code, "E0213");
    assert_eq!(run(Op::MatMul, &[&x, &y]).unwrap_err().code, "E0213");
    assert_eq!(run(Op::Tile { repeats: c(&[1, 1 << 30]) }, &[&x]).unwrap_err().code, "E0213");
    assert!(Tensor::i64(&[usize::MAX, 2], vec![]).is_err());
}
