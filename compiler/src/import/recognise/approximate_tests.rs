//! Softmax by quotients, quadratics and affine norms.

use super::*;
use crate::graph::Numerator;

/// How a mask goes into a softmax by quotients.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Masked {
    Not,
    Where,
    Times,
    BeforePositive,
    Huge,
}

fn kept(b: &mut Build) -> ValueId {
    b.g.add_const(Tensor::bool(&[4], vec![true, true, false, true]).unwrap(), Origin::default()).unwrap()
}

/// `max(x, 0)` or `(x + 5)²` over its row's sum, and what is left of it after recognition.
fn quotient(square: bool, masked: Masked, eps: f32, swap: bool) -> (Vec<&'static str>, Vec<Found>) {
    let mut b = Build::new();
    let mut x = b.x;
    let zero = b.c(0.0);
    match masked {
        Masked::BeforePositive => {
            let (keep, low) = (kept(&mut b), b.c(-1.0));
            x = b.op(Op::WHERE, &[keep, x, low]);
        }
        Masked::Huge => {
            let m = structure(&mut b, &[0.0, 0.0, -1e10, 0.0]);
            x = b.either(Op::ADD, x, m, swap);
        }
        _ => {}
    }
    let mut n = if square {
        let five = b.c(5.0);
        let y = b.either(Op::ADD, x, five, swap);
        if swap { b.op(Op::MUL, &[y, y]) } else { b.op(Op::Pow(2.0), &[y]) }
    } else {
        b.op(Op::Relu, &[x])
    };
    match masked {
        Masked::Where => {
            let keep = kept(&mut b);
            n = b.op(Op::WHERE, &[keep, n, zero]);
        }
        Masked::Times => {
            let m = structure(&mut b, &[1.0, 0.0, 1.0, 1.0]);
            n = b.either(Op::MUL, n, m, swap);
        }
        _ => {}
    }
    let mut d = if swap {
        let flat = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![1], keepdims: false }), &[n]);
        let shape = vec![b.g.shape(n)[0].clone(), Dim::constant(1)];
        b.op(Op::Tensor(TensorOp::Reshape { shape }), &[flat])
    } else {
        b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![1], keepdims: true }), &[n])
    };
    if eps != 0.0 {
        let eps = b.c(eps);
        d = b.either(Op::ADD, d, eps, swap);
    }
    let y = if swap {
        let inverse = b.op(Op::RECIPROCAL, &[d]);
        b.op(Op::MUL, &[inverse, n])
    } else {
        b.op(Op::DIV, &[n, d])
    };
    b.finish(y)
}

fn reasons(found: &[Found]) -> Vec<&str> {
    found.iter().filter_map(|f| f.near_miss.as_deref()).collect()
}

#[test]
fn quotients_in_every_form() {
    for swap in [false, true] {
        for masked in [Masked::Not, Masked::Where, Masked::Times, Masked::BeforePositive, Masked::Huge] {
            let (left, found) = quotient(false, masked, 0.015625, swap);
            assert_eq!(left, ["ratio_softmax"], "{masked:?} {swap}");
            assert!(reasons(&found).is_empty(), "{found:?}");
        }
        for masked in [Masked::Not, Masked::Where, Masked::Times] {
            for eps in [0.0, 1e-3] {
                assert_eq!(quotient(true, masked, eps, swap).0, ["ratio_softmax"], "{masked:?} {eps} {swap}");
            }
        }
    }
}

#[test]
fn constants_are_those_of_the_graph() {
    let mut b = Build::new();
    let (x, shift) = (b.x, b.c(2.5));
    let y = b.op(Op::SUB, &[x, shift]);
    let n = b.op(Op::MUL, &[y, y]);
    let d = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![1], keepdims: true }), &[n]);
    let y = b.op(Op::DIV, &[n, d]);
    b.g.outputs = vec![Output { name: "y".into(), role: OutputRole::Other, value: y }];
    recognise(&mut b.g, &weights).unwrap();
    let expected = Op::RatioSoftmax { axis: 1, numerator: Numerator::Square { shift: -2.5 }, eps: 0.0 };
    assert_eq!(b.g.op(b.g.outputs[0].value), Some(&expected));
}

#[test]
fn near_misses_of_quotients() {
    let (left, found) = quotient(true, Masked::Huge, 1e-3, false);
    assert!(!left.contains(&"ratio_softmax"), "{left:?}");
    assert_eq!(
        reasons(&found),
        ["its mask adds huge numbers that are squared: masked entries have to be 0"],
        "{found:?}"
    );
    let (left, found) = quotient(false, Masked::Not, -0.5, false);
    assert!(left.contains(&"div"));
    assert_eq!(reasons(&found), ["-0.5 is added to the sum: expected a number that is not negative"]);
    for floor in [false, true] {
        let mut b = Build::new();
        let (x, eps) = (b.x, b.c(1e-3));
        let n = b.op(Op::Relu, &[x]);
        let other = b.op(Op::NEG, &[x]);
        let d = b.op(
            Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![1], keepdims: true }),
            &[if floor { n } else { other }],
        );
        let d = if floor { b.op(Op::MAX, &[d, eps]) } else { b.op(Op::ADD, &[d, eps]) };
        let y = b.op(Op::DIV, &[n, d]);
        let (_, found) = b.finish(y);
        let expected = match floor {
            true => "it divides by the greater of sum and a number, not by sum + eps",
            false => "it divides by the sum of something else than its numerators",
        };
        assert_eq!(reasons(&found), [expected]);
    }
}

#[test]
fn quadratics_in_every_form() {
    for form in 0..4 {
        let mut b = Build::new();
        let (x, a, k, c, two) = (b.x, b.c(0.125), b.c(0.25), b.c(0.5), b.c(2.0));
        let y = match form {
            0 => {
                let square = b.op(Op::Pow(2.0), &[x]);
                let (square, line) = (b.op(Op::MUL, &[square, a]), b.op(Op::MUL, &[k, x]));
                let sum = b.op(Op::ADD, &[square, line]);
                b.op(Op::ADD, &[sum, c])
            }
            1 => {
                let square = b.op(Op::MUL, &[x, x]);
                let (square, line) = (b.op(Op::MUL, &[a, square]), b.op(Op::MUL, &[x, k]));
                let rest = b.op(Op::ADD, &[line, c]);
                b.op(Op::ADD, &[square, rest])
            }
            2 => {
                let inner = b.op(Op::MUL, &[x, a]);
                let inner = b.op(Op::ADD, &[k, inner]);
                let product = b.op(Op::MUL, &[inner, x]);
                b.op(Op::ADD, &[product, c])
            }
            _ => {
                let ax = b.op(Op::MUL, &[a, x]);
                let axx = b.op(Op::MUL, &[ax, x]);
                let half = b.op(Op::DIV, &[x, two]);
                let line = b.op(Op::MUL, &[half, c]);
                let sum = b.op(Op::ADD, &[line, axx]);
                b.op(Op::ADD, &[sum, c])
            }
        };
        b.g.outputs = vec![Output { name: "y".into(), role: OutputRole::Other, value: y }];
        let mut recognised = b.g.clone();
        recognise(&mut recognised, &weights).unwrap();
        let expected = Op::Quadratic { square: 0.125, linear: 0.25, constant: 0.5 };
        assert_eq!(recognised.op(recognised.outputs[0].value), Some(&expected), "form {form}");
        assert_eq!(b.finish(y).0, ["quadratic"], "form {form}");
    }
}

#[test]
fn squares_and_cubes_are_no_quadratics() {
    let mut b = Build::new();
    let (x, c) = (b.x, b.c(0.5));
    let square = b.op(Op::Pow(2.0), &[x]);
    let y = b.op(Op::ADD, &[square, c]);
    assert_eq!(b.finish(y).0, ["pow", "add"]);
    let mut b = Build::new();
    let (x, c) = (b.x, b.c(0.5));
    let square = b.op(Op::MUL, &[x, x]);
    let cube = b.op(Op::MUL, &[square, x]);
    let sum = b.op(Op::ADD, &[cube, x]);
    let y = b.op(Op::ADD, &[sum, c]);
    assert_eq!(b.finish(y).0, ["mul", "mul", "add", "add"]);
}

#[test]
fn affine_norms_with_and_without_bias() {
    for bias in [false, true] {
        for swap in [false, true] {
            let mut b = Build::new();
            let (x, w, shift) = (b.x, b.w("w"), b.w("bias"));
            let mean = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![1], keepdims: true }), &[x]);
            let centred = b.op(Op::SUB, &[x, mean]);
            let mut y = b.either(Op::MUL, centred, w, swap);
            if bias {
                y = b.either(Op::ADD, y, shift, swap);
            }
            assert_eq!(b.finish(y).0, ["affine_norm"]);
        }
    }
}

#[test]
fn a_scale_folds_only_where_products_alone_follow() {
    for other_use in [false, true] {
        let mut b = Build::new();
        let (x, w) = (b.x, b.w("w"));
        let square = b.g.add_const(Tensor::f32(&[4, 4], vec![0.5; 16]).unwrap(), Origin::default()).unwrap();
        let scaled = b.op(Op::MUL, &[x, w]);
        let mut y = b.op(Op::MATMUL, &[scaled, square]);
        if other_use {
            y = b.op(Op::ADD, &[y, scaled]);
        }
        let expected = if other_use { vec!["mul", "matmul", "add"] } else { vec!["affine_norm", "matmul"] };
        assert_eq!(b.finish(y).0, expected);
    }
}
