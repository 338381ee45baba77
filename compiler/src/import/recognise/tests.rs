//! Patterns on graphs built by hand: every order of operands, near misses, and the same values before and after.

use std::collections::BTreeMap;

use ombra_ir::Dim;
use ombra_ir::plain::{DType, Type};

use super::*;
use crate::graph::{InputRole, Output, OutputRole, eval};

struct Build {
    g: Graph,
    x: ValueId,
}

impl Build {
    fn new() -> Self {
        let mut g = Graph::new();
        let seq = Dim::from(g.dims.symbol("seq").unwrap());
        let x =
            g.add_input("x", InputRole::Other, Type::new(DType::F32, vec![seq, Dim::constant(4)]), Origin::default());
        Build { g, x }
    }

    fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        self.g.add(op, operands, Origin::default()).unwrap()
    }

    fn c(&mut self, value: f32) -> ValueId {
        self.g.add_const(Tensor::scalar_f32(value), Origin::default()).unwrap()
    }

    fn w(&mut self, name: &str) -> ValueId {
        self.g.add_weight(name, false, vec![Dim::constant(4)], Origin::default())
    }

    /// `a op b`, or `b op a` when `swap`.
    fn either(&mut self, op: Op, a: ValueId, b: ValueId, swap: bool) -> ValueId {
        if swap { self.op(op, &[b, a]) } else { self.op(op, &[a, b]) }
    }

    /// Recognises, checks that values stay, and returns the names of what is left beside inputs, weights, constants.
    fn finish(mut self, y: ValueId) -> (Vec<&'static str>, Vec<Found>) {
        self.g.outputs = vec![Output { name: "y".into(), role: OutputRole::Other, value: y }];
        let input = Tensor::f32(&[2, 4], vec![0.5, -1.25, 2.0, 0.125, -0.75, 3.0, -2.5, 1.0]).unwrap();
        let inputs = BTreeMap::from([("x".to_owned(), input)]);
        let before = eval::evaluate(&self.g, &weights, &inputs).unwrap();
        let found = recognise(&mut self.g, &weights).unwrap();
        let after = eval::evaluate(&self.g, &weights, &inputs).unwrap();
        for (a, b) in before[0].as_f32().unwrap().iter().zip(after[0].as_f32().unwrap()) {
            assert!((a - b).abs() < 1e-3, "{a} became {b}");
        }
        let order = self.g.topological();
        let names = order.iter().filter_map(|id| self.g.op(*id)).map(Op::name);
        (names.filter(|n| !["input", "weight", "const"].contains(n)).collect(), found)
    }
}

fn weights(name: &str) -> Result<Tensor> {
    let angle = |i: usize| (i / 4) as f32 * [1.0, 0.1, 1.0, 0.1][i % 4];
    let table = |f: fn(f32) -> f32| Tensor::f32(&[6, 4], (0..24).map(|i| f(angle(i))).collect());
    match name {
        "cos" => return table(f32::cos),
        "sin" => return table(f32::sin),
        "noise" => return table(|x| x * x),
        _ => {}
    }
    let data = match name {
        "mask" => vec![0.0, f32::NEG_INFINITY, 0.0, -1e9],
        "bias" => vec![0.25, -0.5, 0.0, 1.0],
        _ => vec![1.5, 0.5, -1.0, 2.0],
    };
    Tensor::f32(&[4], data)
}

#[test]
fn rms_norm_in_every_form() {
    for form in 0..16 {
        let mut b = Build::new();
        let (x, w, eps, one) = (b.x, b.w("w"), b.c(1e-5), b.c(1.0));
        let square = if form & 1 == 0 { b.op(Op::Pow(2.0), &[x]) } else { b.op(Op::Mul, &[x, x]) };
        let mean = b.op(Op::ReduceMean { axes: vec![1], keepdims: true }, &[square]);
        let sum = b.either(Op::Add, mean, eps, form & 2 != 0);
        let root = b.op(Op::Sqrt, &[sum]);
        let inverse = if form & 4 == 0 { b.op(Op::Reciprocal, &[root]) } else { b.op(Op::Div, &[one, root]) };
        let y = b.either(Op::Mul, x, inverse, form & 8 != 0);
        let y = b.either(Op::Mul, y, w, form & 1 != 0);
        assert_eq!(b.finish(y).0, ["rms_norm"], "form {form}");
    }
}

#[test]
fn layer_norm_is_no_rms_norm() {
    for swap in [false, true] {
        let mut b = Build::new();
        let (x, w, bias, eps) = (b.x, b.w("w"), b.w("bias"), b.c(1e-5));
        let mean = b.op(Op::ReduceMean { axes: vec![1], keepdims: true }, &[x]);
        let centered = b.op(Op::Sub, &[x, mean]);
        let square = b.op(Op::Pow(2.0), &[centered]);
        let variance = b.op(Op::ReduceMean { axes: vec![1], keepdims: true }, &[square]);
        let sum = b.either(Op::Add, variance, eps, swap);
        let root = b.op(Op::Sqrt, &[sum]);
        let y = b.op(Op::Div, &[centered, root]);
        let y = b.either(Op::Mul, y, w, swap);
        let y = b.either(Op::Add, y, bias, swap);
        assert_eq!(b.finish(y).0, ["layer_norm"]);
    }
}

fn gelu(tanh: bool, half: f32, swap: bool) -> (Vec<&'static str>, Vec<Found>) {
    let mut b = Build::new();
    let (x, one, half) = (b.x, b.c(1.0), b.c(half));
    let inner = if tanh {
        let (k, c) = (b.c(0.044715), b.c(0.797_884_6));
        let cube = b.op(Op::Pow(3.0), &[x]);
        let scaled = b.either(Op::Mul, cube, k, swap);
        let sum = b.either(Op::Add, x, scaled, swap);
        let argument = b.either(Op::Mul, sum, c, swap);
        b.op(Op::Tanh, &[argument])
    } else {
        let root = b.c(std::f32::consts::SQRT_2);
        let argument = b.op(Op::Div, &[x, root]);
        b.op(Op::Erf, &[argument])
    };
    let gate = b.either(Op::Add, inner, one, swap);
    let y = if swap {
        let y = b.op(Op::Mul, &[x, gate]);
        b.op(Op::Mul, &[y, half])
    } else {
        let y = b.op(Op::Mul, &[x, half]);
        b.op(Op::Mul, &[gate, y])
    };
    b.finish(y)
}

#[test]
fn gelu_in_both_forms_and_a_near_miss() {
    for (tanh, swap) in [(false, false), (false, true), (true, false), (true, true)] {
        let (left, found) = gelu(tanh, 0.5, swap);
        assert_eq!(left, ["gelu"]);
        assert!(found.iter().all(|f| f.near_miss.is_none()), "{found:?}");
    }
    let (left, found) = gelu(true, 0.25, false);
    assert!(left.contains(&"tanh"));
    let reasons: Vec<_> = found.iter().filter_map(|f| f.near_miss.as_deref()).collect();
    assert_eq!(reasons, ["its factor is 0.25, not 0.5"]);
}

#[test]
fn silu_and_neutral_elements() {
    let mut b = Build::new();
    let (one, zero) = (b.c(1.0), b.c(0.0));
    let x = b.op(Op::Mul, &[one, b.x]);
    let x = b.op(Op::Sub, &[x, zero]);
    let gate = b.op(Op::Sigmoid, &[x]);
    let y = b.op(Op::Mul, &[gate, x]);
    let y = b.op(Op::Div, &[y, one]);
    assert_eq!(b.finish(y).0, ["silu"]);
    let mut b = Build::new();
    let (x, one) = (b.x, b.c(1.0));
    let y = b.op(Op::Div, &[one, x]);
    assert_eq!(b.finish(y).0, ["div"], "1 / x is not x");
}

fn structure(b: &mut Build, values: &[f32]) -> ValueId {
    b.g.add_const(Tensor::f32(&[values.len()], values.to_vec()).unwrap(), Origin::default()).unwrap()
}

#[test]
fn additive_masks() {
    let huge = f32::MIN;
    for (values, left) in [
        (vec![0.0, huge, 0.0, huge], vec!["masked_softmax"]),
        (vec![0.0, -10000.0, 0.0, 0.0], vec!["masked_softmax"]),
        // A bias by position, as in alibi, stays.
        (vec![-0.5, -0.25, 0.0, huge], vec!["add", "masked_softmax"]),
    ] {
        for swap in [false, true] {
            let mut b = Build::new();
            let (x, m) = (b.x, structure(&mut b, &values));
            let s = b.either(Op::Add, x, m, swap);
            let y = b.op(Op::Softmax { axis: 1 }, &[s]);
            assert_eq!(b.finish(y).0, left);
        }
    }
    let mut b = Build::new();
    let (x, m, floor) = (b.x, b.w("mask"), b.c(f32::MIN));
    let s = b.op(Op::Add, &[m, x]);
    let s = b.op(Op::Max, &[s, floor]);
    let y = b.op(Op::Softmax { axis: 1 }, &[s]);
    assert_eq!(b.finish(y).0, ["masked_softmax"], "an initializer that is a mask");
    let mut b = Build::new();
    let (x, m) = (b.x, b.w("bias"));
    let s = b.op(Op::Add, &[x, m]);
    let y = b.op(Op::Softmax { axis: 1 }, &[s]);
    let (left, found) = b.finish(y);
    assert_eq!(left, ["add", "softmax"]);
    assert_eq!(found.len(), 1);
    assert!(found[0].near_miss.is_some());
}

#[test]
fn chosen_masks_and_guards() {
    for swap in [false, true] {
        let mut b = Build::new();
        let (x, low) = (b.x, b.c(-10000.0));
        let condition = Tensor::bool(&[4], vec![!swap, swap, !swap, !swap]).unwrap();
        let c = b.g.add_const(condition, Origin::default()).unwrap();
        let s = if swap { b.op(Op::Where, &[c, low, x]) } else { b.op(Op::Where, &[c, x, low]) };
        let p = b.op(Op::Softmax { axis: 1 }, &[s]);
        let (nan, zero) = (b.op(Op::IsNan, &[p]), b.c(0.0));
        let y = b.op(Op::Where, &[nan, zero, p]);
        assert_eq!(b.finish(y).0, ["masked_softmax"]);
    }
    let mut b = Build::new();
    let x = b.x;
    let p = b.op(Op::Softmax { axis: 1 }, &[x]);
    let (nan, zero) = (b.op(Op::IsNan, &[p]), b.c(0.0));
    let y = b.op(Op::Where, &[nan, zero, p]);
    let (left, found) = b.finish(y);
    assert_eq!(left, ["softmax", "is_nan", "where"]);
    assert_eq!(found[0].near_miss.as_deref(), Some("what it guards is no masked softmax"));
}

/// x [seq, 4] rotated, in pairs of halves or of neighbours, by tables of 6 rows at positions 0 to 5.
fn rotated(neighbours: bool, swap: bool, cos: &str, sin: &str) -> (Vec<&'static str>, Vec<Found>) {
    let mut b = Build::new();
    let x = b.x;
    let slice = |start: i64, len: i64, step: i64| Op::Slice {
        axis: 1,
        start: Dim::constant(start),
        len: Dim::constant(len),
        step,
    };
    let shape = |b: &Build, last: &[i64]| {
        let mut shape = vec![b.g.shape(x)[0].clone()];
        shape.extend(last.iter().map(|n| Dim::constant(*n)));
        Op::Reshape { shape }
    };
    let turned = if neighbours {
        let (even, odd) = (b.op(slice(0, 2, 2), &[x]), b.op(slice(1, 2, 2), &[x]));
        let odd = b.op(Op::Neg, &[odd]);
        let apart = shape(&b, &[2, 1]);
        let (even, odd) = (b.op(apart.clone(), &[even]), b.op(apart, &[odd]));
        let both = b.op(Op::Concat { axis: 2 }, &[odd, even]);
        let whole = shape(&b, &[4]);
        b.op(whole, &[both])
    } else {
        let (first, second) = (b.op(slice(0, 2, 1), &[x]), b.op(slice(2, 2, 1), &[x]));
        let second = b.op(Op::Neg, &[second]);
        b.op(Op::Concat { axis: 1 }, &[second, first])
    };
    let rows = plain::Op::Iota { start: Dim::constant(0), len: b.g.shape(x)[0].clone(), step: 1 };
    let rows = b.g.add(Op::Public(rows), &[], Origin::default()).unwrap();
    let mut table = |name: &str| {
        let w = b.g.add_weight(name, false, vec![Dim::constant(6), Dim::constant(4)], Origin::default());
        b.g.add(Op::Gather { axis: 0 }, &[w, rows], Origin::default()).unwrap()
    };
    let (c, s) = (table(cos), table(sin));
    let straight = b.either(Op::Mul, x, c, swap);
    let across = b.either(Op::Mul, turned, s, swap);
    let y = b.either(Op::Add, straight, across, swap);
    b.finish(y)
}

#[test]
fn tables_of_rotary_embeddings_become_public() {
    for (neighbours, swap) in [(false, false), (false, true), (true, false), (true, true)] {
        let (left, found) = rotated(neighbours, swap, "cos", "sin");
        assert!(left.contains(&"gather"));
        let rotary: Vec<_> = found.iter().filter(|f| f.pattern == "rotary").collect();
        assert_eq!(rotary.len(), 1, "{found:?}");
        assert_eq!(
            (&rotary[0].near_miss, rotary[0].published.as_slice()),
            (&None, ["cos".into(), "sin".into()].as_slice())
        );
        let (_, found) = rotated(neighbours, swap, "cos", "noise");
        let rotary: Vec<_> = found.iter().filter(|f| f.pattern == "rotary").collect();
        assert_eq!(rotary[0].near_miss.as_deref(), Some("its tables are not known to be cosines and sines"));
        assert!(rotary[0].published.is_empty());
    }
}

#[path = "approximate_tests.rs"]
mod approximate;
