//! What comparisons decide: of an input with a private weight, their connectives with public booleans, choices, and
//! activations that are made of them.

use ombra_compiler::graph::Owner;
use ombra_compiler::pipeline::{Options, analyse};
use ombra_compiler::secrecy::labels::Overrides;
use onnx_protobuf::AttributeProto;
use onnx_protobuf::attribute_proto::AttributeType;

use crate::operators::{Small, int, line, mixed};

const SHAPE: [usize; 2] = [4, 8];

/// Multiples of 1/2, which fixed point holds, with many ties.
fn halves(from: usize) -> Vec<f64> {
    mixed(32 + from, 1.0)[from..].iter().map(|x| (x * 2.0).round() / 2.0).collect()
}

fn truth(b: bool) -> f64 {
    f64::from(u8::from(b))
}

type Comparison = fn(f64, f64) -> bool;

#[test]
fn an_input_is_compared_with_a_private_weight() {
    let (a, b) = (halves(0), halves(7));
    assert!(a.iter().zip(&b).any(|(a, b)| a == b), "there are ties");
    let cases: [(&str, Comparison); 5] = [
        ("Less", |a, b| a < b),
        ("LessOrEqual", |a, b| a <= b),
        ("Greater", |a, b| a > b),
        ("GreaterOrEqual", |a, b| a >= b),
        ("Equal", |a, b| a == b),
    ];
    for (op, f) in cases {
        for weight_first in [false, true] {
            let (left, right) = if weight_first { ("b", "a") } else { ("a", "b") };
            let decide = |(a, b): (&f64, &f64)| truth(if weight_first { f(*b, *a) } else { f(*a, *b) });
            Small::new()
                .client("a", (&SHAPE, a.clone()))
                .weight("b", (&SHAPE, b.clone()))
                .node(op, &[left, right], "y", vec![])
                .check(op, &a.iter().zip(&b).map(decide).collect::<Vec<_>>(), 0.0);
        }
    }
}

#[test]
fn a_comparison_with_a_public_weight_is_the_clients() {
    let small = Small::new().client("a", (&SHAPE, halves(0))).weight("b", (&SHAPE, halves(7)));
    let (model, options) = small.node("Less", &["a", "b"], "y", vec![]).model();
    let owner = |options: &Options| {
        let graph = analyse(&model, None, options).unwrap_or_else(|e| panic!("{}", e[0])).graph;
        graph.node(graph.outputs[0].value).expect("it has an output").owner
    };
    assert_eq!(owner(&options), Owner::Secret);
    let overrides = Overrides { public: vec!["b".into()], ..Overrides::default() };
    assert_eq!(owner(&Options { overrides, ..options }), Owner::Client);
}

#[test]
fn numbers_are_equal_when_they_round_to_the_same_unit() {
    let unit = libm::ldexp(1.0, -16);
    let apart = [0.0, unit / 4.0, -unit / 4.0, unit, -unit, 3.0 * unit, 1.0];
    Small::new()
        .client("a", (&[7], vec![0.5; 7]))
        .weight("b", (&[7], apart.iter().map(|d| 0.5 + d).collect()))
        .node("Equal", &["a", "b"], "y", vec![])
        .check("Equal", &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 0.0);
}

/// A boolean by its name: `p` and `q` are comparisons, `m` is public.
type Meaning = fn(bool, bool, bool) -> bool;

#[test]
fn connectives_of_secret_and_public_truth_values() {
    let (a, b, c) = (halves(0), halves(7), halves(11));
    let mask: Vec<bool> = (0..32).map(|i| i % 3 != 0).collect();
    let cases: [(&str, &[[&str; 4]], Meaning); 12] = [
        ("and", &[["And", "p", "q", "t"]], |p, q, _| p && q),
        ("or", &[["Or", "p", "q", "t"]], |p, q, _| p || q),
        ("xor", &[["Xor", "p", "q", "t"]], |p, q, _| p != q),
        ("same", &[["Equal", "p", "q", "t"]], |p, q, _| p == q),
        ("not", &[["Not", "p", "", "t"]], |p, _, _| !p),
        ("and public", &[["And", "p", "m", "t"]], |p, _, m| p && m),
        ("or public", &[["Or", "m", "p", "t"]], |p, _, m| p || m),
        ("xor public", &[["Xor", "p", "m", "t"]], |p, _, m| p != m),
        ("not of and public", &[["And", "p", "m", "s"], ["Not", "s", "", "t"]], |p, _, m| !(p && m)),
        ("and of both forms", &[["And", "p", "m", "s"], ["And", "s", "q", "t"]], |p, q, m| p && m && q),
        ("or of both forms", &[["And", "p", "m", "s"], ["Or", "q", "s", "t"]], |p, q, m| (p && m) || q),
        ("xor of both forms", &[["Or", "p", "m", "s"], ["Xor", "q", "s", "t"]], |p, q, m| (p || m) != q),
    ];
    let small = |steps: &[[&str; 4]]| {
        let mut small = Small::new()
            .client("a", (&SHAPE, a.clone()))
            .weight("b", (&SHAPE, b.clone()))
            .secret("c", (&SHAPE, c.clone()))
            .truths("m", &SHAPE, &mask)
            .node("Less", &["a", "b"], "p", vec![])
            .node("Greater", &["c", "b"], "q", vec![]);
        for [op, x, y, result] in steps {
            let operands = [*x, *y];
            let count = if y.is_empty() { 1 } else { 2 };
            small = small.node(op, &operands[..count], result, vec![]);
        }
        small
    };
    for (what, steps, f) in cases {
        let holds: Vec<bool> = (0..32).map(|i| f(a[i] < b[i], c[i] > b[i], mask[i])).collect();
        // As a number, by way of an integer, and as what a choice is made by.
        let numbers: Vec<f64> = holds.iter().map(|t| truth(*t)).collect();
        small(steps)
            .node("Cast", &["t"], "whole", vec![int("to", 7)])
            .node("Cast", &["whole"], "y", vec![int("to", 1)])
            .check(what, &numbers, 0.0);
        let chosen: Vec<f64> = holds.iter().zip(a.iter().zip(&c)).map(|(t, (a, c))| if *t { *a } else { *c }).collect();
        small(steps).node("Where", &["t", "a", "c"], "y", vec![]).check(what, &chosen, 5e-5);
    }
}

#[test]
fn what_the_client_decides_for_secret_values_is_decided_on_shares() {
    let (a, b, c) = (halves(0), halves(7), halves(11));
    let small = || {
        Small::new()
            .client("a", (&SHAPE, a.clone()))
            .weight("b", (&SHAPE, b.clone()))
            .secret("c", (&SHAPE, c.clone()))
            .floats("zero", &[0.0])
            .floats("one", &[1.0])
            .node("Less", &["a", "zero"], "p", vec![])
            .node("Equal", &["a", "one"], "q", vec![])
            .node("Or", &["p", "q"], "r", vec![])
    };
    let either = |x: f64| x < 0.0 || x == 1.0;
    let chosen: Vec<f64> = (0..32).map(|i| if either(a[i]) { b[i] } else { c[i] }).collect();
    small().node("Where", &["r", "b", "c"], "y", vec![]).check("client's choice", &chosen, 5e-5);
    let both: Vec<f64> = (0..32).map(|i| truth(either(a[i]) && c[i] > b[i])).collect();
    small().node("Greater", &["c", "b"], "s", vec![]).node("And", &["r", "s"], "y", vec![]).check(
        "client's and secret",
        &both,
        0.0,
    );
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::FLOAT.into(), f, ..AttributeProto::default() }
}

#[test]
fn activations_of_parts() {
    let x = line(-6.0, 6.0, 401);
    let elu = |x: f64, a: f64| if x < 0.0 { a * libm::expm1(x) } else { x };
    let hard = |x: f64, a: f64, b: f64| (a * x + b).clamp(0.0, 1.0);
    let soft = |x: f64| libm::log1p(libm::exp(-x.abs())) + x.max(0.0);
    type Case<'a> = (&'a str, Vec<AttributeProto>, &'a dyn Fn(f64) -> f64, f64);
    let cases: [Case; 12] = [
        ("LeakyRelu", vec![], &|x| if x < 0.0 { 0.01 * x } else { x }, 2e-4),
        ("LeakyRelu", vec![float("alpha", 0.25)], &|x| if x < 0.0 { 0.25 * x } else { x }, 2e-4),
        ("HardSigmoid", vec![], &|x| hard(x, 0.2, 0.5), 2e-4),
        ("HardSigmoid", vec![float("alpha", 0.5), float("beta", 0.25)], &|x| hard(x, 0.5, 0.25), 2e-4),
        ("HardSwish", vec![], &|x| x * hard(x, 1.0 / 6.0, 0.5), 1e-3),
        ("ThresholdedRelu", vec![], &|x| if x > 1.0 { x } else { 0.0 }, 2e-4),
        ("Elu", vec![], &|x| elu(x, 1.0), 1e-3),
        ("Elu", vec![float("alpha", 2.0)], &|x| elu(x, 2.0), 2e-3),
        ("Selu", vec![], &|x| 1.050_701 * elu(x, 1.673_263_2), 2e-3),
        ("Celu", vec![float("alpha", 2.0)], &|x| if x < 0.0 { 2.0 * libm::expm1(x / 2.0) } else { x }, 2e-3),
        ("Mish", vec![], &|x| x * libm::tanh(soft(x)), 1e-3),
        ("Softsign", vec![], &|x| x / (1.0 + x.abs()), 5e-4),
    ];
    for (op, attributes, f, tolerance) in cases {
        let expected: Vec<f64> = x.iter().map(|x| f(*x)).collect();
        Small::new().secret("x", (&[401], x.clone())).node(op, &["x"], "y", attributes).check(op, &expected, tolerance);
    }
    let slopes: Vec<f64> = (0..401).map(|i| f64::from(i % 5) / 4.0).collect();
    let expected: Vec<f64> = x.iter().zip(&slopes).map(|(x, s)| if *x < 0.0 { s * x } else { *x }).collect();
    Small::new()
        .secret("x", (&[401], x))
        .weight("slopes", (&[401], slopes))
        .node("PRelu", &["x", "slopes"], "y", vec![])
        .check("PRelu", &expected, 2e-4);
}

#[test]
fn the_logarithm_of_a_softmax() {
    let x = mixed(40, 3.0);
    let expected: Vec<f64> = x
        .chunks(8)
        .flat_map(|row| {
            let sum: f64 = row.iter().map(|v| libm::exp(*v)).sum();
            row.iter().map(move |v| v - libm::log(sum))
        })
        .collect();
    Small::new().secret("x", (&[5, 8], x)).node("LogSoftmax", &["x"], "y", vec![]).check("LogSoftmax", &expected, 2e-3);
}

#[test]
fn a_softmax_over_nothing_is_nothing() {
    for (shape, axis) in [([2usize, 0usize], 1i64), ([0, 2], 0)] {
        Small::new()
            .secret("x", (&shape, vec![]))
            .secret("z", (&[2], vec![1.5, -0.25]))
            .node("Softmax", &["x"], "p", vec![int("axis", axis)])
            .integers("axes", &[axis])
            .node("ReduceSum", &["p", "axes"], "sum", vec![int("keepdims", 0)])
            .node("Add", &["sum", "z"], "y", vec![])
            .check("softmax over nothing", &[1.5, -0.25], 5e-5);
    }
    for (shape, axis) in [([2usize, 0usize], 1i64), ([0, 2], 0), ([2, 0], 0), ([0, 2], 1)] {
        let small = Small::new().secret("x", (&shape, vec![]));
        small.node("Softmax", &["x"], "y", vec![int("axis", axis)]).check("softmax of nothing", &[], 0.0);
    }
    // The same when the size is a symbol that is 0 in this run.
    Small::new()
        .client("x", (&[2, 0], vec![]))
        .symbolic("x", 1, "columns")
        .weight("slope", (&[2, 1], vec![0.5, 2.0]))
        .node("Mul", &["x", "slope"], "scores", vec![])
        .node("Softmax", &["scores"], "p", vec![])
        .integers("axes", &[1])
        .node("ReduceSum", &["p", "axes"], "sum", vec![int("keepdims", 0)])
        .secret("z", (&[2], vec![1.5, -0.25]))
        .node("Add", &["sum", "z"], "y", vec![])
        .check("softmax over no column", &[1.5, -0.25], 5e-5);
    Small::new()
        .secret("x", (&[2, 0], vec![]))
        .secret("v", (&[0, 3], vec![]))
        .node("Softmax", &["x"], "p", vec![])
        .node("MatMul", &["p", "v"], "y", vec![])
        .check("product over nothing", &[0.0; 6], 5e-5);
}
