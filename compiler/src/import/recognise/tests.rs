//! Patterns on graphs built by hand: every order of operands, near misses, and the same values before and after.

use std::collections::BTreeMap;

use ombra_ir::Dim;
use ombra_ir::plain::{self, DType, Reduce, Type};

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
        "weak mask" => vec![0.0, -1e4, 0.0, -1e4],
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
        let square = if form & 1 == 0 { b.op(Op::Pow(2.0), &[x]) } else { b.op(Op::MUL, &[x, x]) };
        let mean = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![1], keepdims: true }), &[square]);
        let sum = b.either(Op::ADD, mean, eps, form & 2 != 0);
        let root = b.op(Op::SQRT, &[sum]);
        let inverse = if form & 4 == 0 { b.op(Op::RECIPROCAL, &[root]) } else { b.op(Op::DIV, &[one, root]) };
        let y = b.either(Op::MUL, x, inverse, form & 8 != 0);
        let y = b.either(Op::MUL, y, w, form & 1 != 0);
        assert_eq!(b.finish(y).0, ["rms_norm"], "form {form}");
    }
}

#[test]
fn layer_norm_is_no_rms_norm() {
    for swap in [false, true] {
        let mut b = Build::new();
        let (x, w, bias, eps) = (b.x, b.w("w"), b.w("bias"), b.c(1e-5));
        let mean = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![1], keepdims: true }), &[x]);
        let centered = b.op(Op::SUB, &[x, mean]);
        let square = b.op(Op::Pow(2.0), &[centered]);
        let variance =
            b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![1], keepdims: true }), &[square]);
        let sum = b.either(Op::ADD, variance, eps, swap);
        let root = b.op(Op::SQRT, &[sum]);
        let y = b.op(Op::DIV, &[centered, root]);
        let y = b.either(Op::MUL, y, w, swap);
        let y = b.either(Op::ADD, y, bias, swap);
        assert_eq!(b.finish(y).0, ["layer_norm"]);
    }
}

fn gelu(tanh: bool, half: f32, swap: bool) -> (Vec<&'static str>, Vec<Found>) {
    let mut b = Build::new();
    let (x, one, half) = (b.x, b.c(1.0), b.c(half));
    let inner = if tanh {
        let (k, c) = (b.c(0.044715), b.c(0.797_884_6));
        let cube = b.op(Op::Pow(3.0), &[x]);
        let scaled = b.either(Op::MUL, cube, k, swap);
        let sum = b.either(Op::ADD, x, scaled, swap);
        let argument = b.either(Op::MUL, sum, c, swap);
        b.op(Op::TANH, &[argument])
    } else {
        let root = b.c(std::f32::consts::SQRT_2);
        let argument = b.op(Op::DIV, &[x, root]);
        b.op(Op::ERF, &[argument])
    };
    let gate = b.either(Op::ADD, inner, one, swap);
    let y = if swap {
        let y = b.op(Op::MUL, &[x, gate]);
        b.op(Op::MUL, &[y, half])
    } else {
        let y = b.op(Op::MUL, &[x, half]);
        b.op(Op::MUL, &[gate, y])
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
    let x = b.op(Op::MUL, &[one, b.x]);
    let x = b.op(Op::SUB, &[x, zero]);
    let gate = b.op(Op::SIGMOID, &[x]);
    let y = b.op(Op::MUL, &[gate, x]);
    let y = b.op(Op::DIV, &[y, one]);
    assert_eq!(b.finish(y).0, ["silu"]);
    let mut b = Build::new();
    let (x, one) = (b.x, b.c(1.0));
    let y = b.op(Op::DIV, &[one, x]);
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
        (vec![0.0, -1e10, f32::NEG_INFINITY, 0.0], vec!["masked_softmax"]),
        // Scores may be beyond it.
        (vec![0.0, -10000.0, 0.0, 0.0], vec!["add", "softmax"]),
        (vec![0.0, -10000.0, 0.0, f32::NEG_INFINITY], vec!["add", "masked_softmax"]),
        // A bias by position, as in alibi, stays.
        (vec![-0.5, -0.25, 0.0, huge], vec!["add", "masked_softmax"]),
    ] {
        for swap in [false, true] {
            let mut b = Build::new();
            let (x, m) = (b.x, structure(&mut b, &values));
            let s = b.either(Op::ADD, x, m, swap);
            let y = b.op(Op::Softmax { axis: 1 }, &[s]);
            assert_eq!(b.finish(y).0, left);
        }
    }
    for (name, left) in [("mask", "masked_softmax"), ("weak mask", "softmax")] {
        let mut b = Build::new();
        let (x, m, floor) = (b.x, b.w(name), b.c(f32::MIN));
        let s = b.op(Op::ADD, &[m, x]);
        let s = b.op(Op::MAX, &[s, floor]);
        let y = b.op(Op::Softmax { axis: 1 }, &[s]);
        let names = b.finish(y).0;
        assert_eq!(names.last(), Some(&left), "an initializer that is a mask");
        assert!(!names.contains(&"max"), "a floor that no score reaches");
    }
    let mut b = Build::new();
    let (x, m) = (b.x, b.w("bias"));
    let s = b.op(Op::ADD, &[x, m]);
    let y = b.op(Op::Softmax { axis: 1 }, &[s]);
    let (left, found) = b.finish(y);
    assert_eq!(left, ["add", "softmax"]);
    assert_eq!(found.len(), 1);
    assert!(found[0].near_miss.is_some());
}

/// Booleans of one row.
fn condition(b: &mut Build, bits: [bool; 4]) -> ValueId {
    b.g.add_const(Tensor::bool(&[4], bits.to_vec()).unwrap(), Origin::default()).unwrap()
}

#[test]
fn masks_in_any_nesting() {
    // Every way to take position 1 out and position 3 besides, and what is left of it.
    type Form = fn(&mut Build) -> ValueId;
    let forms: [(Form, &[&str]); 9] = [
        // Padding is filled in first, then the causal part.
        (
            |b| {
                let (x, low) = (b.x, b.c(f32::NEG_INFINITY));
                let (pad, causal) =
                    (condition(b, [false, true, false, false]), condition(b, [true, true, true, false]));
                let s = b.op(Op::WHERE, &[pad, low, x]);
                b.op(Op::WHERE, &[causal, s, low])
            },
            &["masked_softmax"],
        ),
        // A choice, and a sum with another mask around it: the sum of two least numbers is none.
        (
            |b| {
                let (x, low) = (b.x, b.c(f32::MIN));
                let kept = condition(b, [true, false, true, true]);
                let s = b.op(Op::WHERE, &[kept, x, low]);
                let m = structure(b, &[0.0, f32::MIN, 0.0, f32::MIN]);
                b.op(Op::ADD, &[s, m])
            },
            &["masked_softmax"],
        ),
        // Two sums, and a floor under both.
        (
            |b| {
                let (x, floor) = (b.x, b.c(f32::MIN));
                let m = structure(b, &[0.0, f32::MIN, 0.0, 0.0]);
                let s = b.op(Op::ADD, &[m, x]);
                let m = structure(b, &[0.0, f32::MIN, 0.0, f32::MIN]);
                let s = b.op(Op::ADD, &[s, m]);
                b.op(Op::MAX, &[floor, s])
            },
            &["masked_softmax"],
        ),
        // Two fills: the weak one is added, the strong one takes out.
        (
            |b| {
                let x = b.x;
                let m = structure(b, &[0.0, 0.0, -10000.0, 0.0]);
                let s = b.op(Op::ADD, &[x, m]);
                let m = structure(b, &[0.0, f32::MIN, 0.0, -1e10]);
                b.op(Op::ADD, &[s, m])
            },
            &["add", "masked_softmax"],
        ),
        // A difference.
        (
            |b| {
                let x = b.x;
                let m = structure(b, &[0.0, 1e10, 0.0, f32::MAX]);
                b.op(Op::SUB, &[x, m])
            },
            &["masked_softmax"],
        ),
        // A product with 0 and 1, and a sum, as in the first GPT.
        (
            |b| {
                let x = b.x;
                let kept = structure(b, &[1.0, 0.0, 1.0, 0.0]);
                let s = b.op(Op::MUL, &[x, kept]);
                let m = structure(b, &[0.0, -1e10, 0.0, -1e10]);
                b.op(Op::ADD, &[s, m])
            },
            &["mul", "masked_softmax"],
        ),
        // A scale behind the mask.
        (
            |b| {
                let (x, k) = (b.x, b.c(2.0));
                let m = structure(b, &[0.0, f32::MIN, 0.5, f32::MIN]);
                let s = b.op(Op::ADD, &[x, m]);
                b.op(Op::DIV, &[s, k])
            },
            &["div", "add", "masked_softmax"],
        ),
        // A weak choice around a strong sum: what it chooses is a score again.
        (
            |b| {
                let (x, low) = (b.x, b.c(-20.0));
                let m = structure(b, &[0.0, f32::MIN, 0.0, f32::MIN]);
                let s = b.op(Op::ADD, &[x, m]);
                let kept = condition(b, [false, true, true, true]);
                b.op(Op::WHERE, &[kept, s, low])
            },
            &["where", "masked_softmax"],
        ),
        // A mask in a bias that is a weight.
        (
            |b| {
                let (x, w) = (b.x, b.w("bias"));
                let m = structure(b, &[0.0, f32::MIN, 0.0, f32::MIN]);
                let both = b.op(Op::ADD, &[w, m]);
                b.op(Op::ADD, &[x, both])
            },
            &["add", "masked_softmax"],
        ),
    ];
    for (i, (form, left)) in forms.into_iter().enumerate() {
        let mut b = Build::new();
        let s = form(&mut b);
        let y = b.op(Op::Softmax { axis: 1 }, &[s]);
        assert_eq!(b.finish(y).0, left, "form {i}");
    }
}

#[test]
fn a_mask_before_a_fold_of_the_scores() {
    let mut b = Build::new();
    let seq = b.g.shape(b.x)[0].clone();
    let apart = Op::Tensor(TensorOp::Reshape { shape: vec![Dim::constant(1), seq.clone(), Dim::constant(4)] });
    let m = structure(&mut b, &[0.0, f32::MIN, 0.0, 0.0]);
    let s = b.op(apart, &[b.x]);
    let s = b.op(Op::ADD, &[s, m]);
    let s = b.op(Op::Tensor(TensorOp::Reshape { shape: vec![seq, Dim::constant(4)] }), &[s]);
    let y = b.op(Op::Softmax { axis: 1 }, &[s]);
    assert_eq!(b.finish(y).0, ["reshape", "masked_softmax", "reshape"]);
}

#[test]
fn chosen_masks_and_guards() {
    let gone = vec!["masked_softmax"];
    for (fill, left) in
        [(-1e10, gone.clone()), (-65504.0, gone), (-10000.0, vec!["where", "softmax", "is_nan", "where"])]
    {
        for swap in [false, true] {
            let mut b = Build::new();
            let (x, low) = (b.x, b.c(fill));
            let c = condition(&mut b, [!swap, swap, !swap, !swap]);
            let s = if swap { b.op(Op::WHERE, &[c, low, x]) } else { b.op(Op::WHERE, &[c, x, low]) };
            let p = b.op(Op::Softmax { axis: 1 }, &[s]);
            let (nan, zero) = (b.op(Op::IS_NAN, &[p]), b.c(0.0));
            let y = b.op(Op::WHERE, &[nan, zero, p]);
            let (names, found) = b.finish(y);
            assert_eq!(names, left);
            let why = found.iter().find_map(|f| f.near_miss.as_deref());
            assert_eq!(why.is_some_and(|why| why.contains("-10000")), fill == -10000.0);
        }
    }
    let mut b = Build::new();
    let x = b.x;
    let p = b.op(Op::Softmax { axis: 1 }, &[x]);
    let (nan, zero) = (b.op(Op::IS_NAN, &[p]), b.c(0.0));
    let y = b.op(Op::WHERE, &[nan, zero, p]);
    let (left, found) = b.finish(y);
    assert_eq!(left, ["softmax", "is_nan", "where"]);
    assert_eq!(found[0].near_miss.as_deref(), Some("what it guards is no masked softmax"));
}

#[test]
fn what_public_values_may_be() {
    let mut b = Build::new();
    let ty = Type::new(DType::I64, vec![Dim::constant(1), Dim::constant(4)]);
    let mask = b.g.add_input("attention_mask", InputRole::AttentionMask, ty, Origin::default());
    let unary = |op| Op::Tensor(TensorOp::Unary(op));
    let binary = |op| Op::Tensor(TensorOp::Binary(op));
    let cast = |to| Op::Tensor(TensorOp::Cast { to });
    let least = f64::from(f32::MIN);
    let few = |b: &Build, id| values::possible(&b.g, id).map(|v| v.few().to_vec());
    let bits = b.op(cast(DType::F32), &[mask]);
    let (one, low, third) = (b.c(1.0), b.c(f32::MIN), b.c(1.0 / 3.0));
    let gone = b.op(binary(plain::Binary::Sub), &[one, bits]);
    assert_eq!(few(&b, gone), Some(vec![0.0, 1.0]));
    let product = b.op(binary(plain::Binary::Mul), &[gone, low]);
    assert_eq!(few(&b, product), Some(vec![least, 0.0]));
    // Where it is 1, the least number stands: 0 is what is left.
    let is_gone = b.op(cast(DType::Bool), &[gone]);
    let filled = b.op(Op::Tensor(TensorOp::Where), &[is_gone, low, gone]);
    assert_eq!(few(&b, filled), Some(vec![least, 0.0]));
    let twice = b.op(binary(plain::Binary::Add), &[filled, product]);
    assert_eq!(few(&b, twice), Some(vec![f64::NEG_INFINITY, least, 0.0]));
    let kept = b.op(unary(plain::Unary::Not), &[is_gone]);
    assert_eq!(few(&b, kept), Some(vec![0.0, 1.0]));
    // Rounded as single precision rounds it.
    let part = b.op(binary(plain::Binary::Mul), &[bits, third]);
    assert_eq!(few(&b, part), Some(vec![0.0, f64::from(1.0f32 / 3.0)]));
    // 0 times infinity is no number, and positions may be anything.
    let infinite = b.c(f32::NEG_INFINITY);
    let nothing = b.op(binary(plain::Binary::Mul), &[bits, infinite]);
    assert_eq!(values::possible(&b.g, nothing), None);
    let ty = Type::new(DType::I64, vec![Dim::constant(4)]);
    let positions = b.g.add_input("position_ids", InputRole::PositionIds, ty, Origin::default());
    assert_eq!(values::possible(&b.g, positions), None);
    let table =
        b.g.add_const(Tensor::f32(&[40], (0..40).map(|i| -0.5 * i as f32).collect()).unwrap(), Origin::default());
    let range = values::possible(&b.g, table.unwrap());
    assert_eq!(range, Some(values::Values::Between(-19.5, 0.0)));
}

/// x [seq, 4] rotated, in pairs of halves or of neighbours, by tables of 6 rows at positions 0 to 5.
fn rotated(neighbours: bool, swap: bool, cos: &str, sin: &str) -> (Vec<&'static str>, Vec<Found>) {
    let mut b = Build::new();
    let x = b.x;
    let slice = |start: i64, len: i64, step: i64| {
        Op::Tensor(TensorOp::Slice { axis: 1, start: Dim::constant(start), len: Dim::constant(len), step })
    };
    let shape = |b: &Build, last: &[i64]| {
        let mut shape = vec![b.g.shape(x)[0].clone()];
        shape.extend(last.iter().map(|n| Dim::constant(*n)));
        Op::Tensor(TensorOp::Reshape { shape })
    };
    let turned = if neighbours {
        let (even, odd) = (b.op(slice(0, 2, 2), &[x]), b.op(slice(1, 2, 2), &[x]));
        let odd = b.op(Op::NEG, &[odd]);
        let apart = shape(&b, &[2, 1]);
        let (even, odd) = (b.op(apart.clone(), &[even]), b.op(apart, &[odd]));
        let both = b.op(Op::Tensor(TensorOp::Concat { axis: 2 }), &[odd, even]);
        let whole = shape(&b, &[4]);
        b.op(whole, &[both])
    } else {
        let (first, second) = (b.op(slice(0, 2, 1), &[x]), b.op(slice(2, 2, 1), &[x]));
        let second = b.op(Op::NEG, &[second]);
        b.op(Op::Tensor(TensorOp::Concat { axis: 1 }), &[second, first])
    };
    let rows = plain::Op::Iota { start: Dim::constant(0), len: b.g.shape(x)[0].clone(), step: 1 };
    let rows = b.g.add(Op::Tensor(rows), &[], Origin::default()).unwrap();
    let mut table = |name: &str| {
        let w = b.g.add_weight(name, false, vec![Dim::constant(6), Dim::constant(4)], Origin::default());
        b.g.add(Op::Tensor(TensorOp::Gather { axis: 0 }), &[w, rows], Origin::default()).unwrap()
    };
    let (c, s) = (table(cos), table(sin));
    let straight = b.either(Op::MUL, x, c, swap);
    let across = b.either(Op::MUL, turned, s, swap);
    let y = b.either(Op::ADD, straight, across, swap);
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
