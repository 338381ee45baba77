//! Every operator of the typed graph as the client's region writes it: what the runtime computes from the file is what
//! the graph means.

use std::collections::BTreeMap;

use ombra_compiler::client_region::build;
use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::graph::{
    Graph, InputRole, Numerator, Op, Origin, Output, OutputRole, Owner, TensorOp, propagate_owners,
};
use ombra_compiler::secrecy::labels::{self, Label, Labels};
use ombra_ir::plain::{self, Binary, DType, Data, Reduce, Tensor, Type, Unary};
use ombra_ir::plan::SIZE;
use ombra_ir::{Diagnostic, Dim};
use ombra_runtime::plaintext::{PlainElements, PlainInput, PlaintextModel};
use ombra_tests::built::Folder;

/// Floats of both signs, none of them near zero, whole or equal to another.
fn floats(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::f32(shape, (0..count).map(|i| ((i * 37 + 11) % 41) as f32 / 7.3 - 2.7).collect()).expect("a tensor")
}

/// The absolute values of [`floats`].
fn positive(shape: &[usize]) -> Tensor {
    let values = floats(shape).as_f32().expect("floats").iter().map(|v| v.abs()).collect();
    Tensor::f32(shape, values).expect("a tensor")
}

/// Integers from `low` on, `range` of them.
fn integers(shape: &[usize], low: i64, range: usize) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::i64(shape, (0..count).map(|i| low + ((i * 7 + 3) % range) as i64).collect()).expect("a tensor")
}

/// Booleans; of the last row of the last axis, none holds.
fn mask(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let width = shape.last().copied().unwrap_or(1);
    Tensor::bool(shape, (0..count).map(|i| i + width < count && i % 3 != 1).collect()).expect("a tensor")
}

fn d(n: i64) -> Dim {
    Dim::constant(n)
}

/// A graph of one operator on inputs of the client, and what goes in.
struct Case {
    op: Op,
    inputs: Vec<Tensor>,
    /// The first axis of the first input is a symbol.
    sized: bool,
}

/// What the region gives for the case, and what the graph gives.
fn both(case: &Case) -> Result<(Vec<usize>, Vec<f32>, Tensor), Diagnostic> {
    let mut graph = Graph::new();
    let seq = graph.dims.symbol("seq")?;
    let mut given = BTreeMap::new();
    let mut operands = Vec::new();
    for (i, tensor) in case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        let shape = tensor.shape().iter().enumerate();
        let is_symbol = |a: usize| case.sized && i + a == 0;
        let shape = shape.map(|(a, n)| if is_symbol(a) { seq.into() } else { Dim::constant(*n as i64) }).collect();
        let ty = Type::new(tensor.dtype(), shape);
        operands.push(graph.add_input(&name, InputRole::Other, ty, Origin::default()));
        given.insert(name, tensor.clone());
    }
    let y = graph.add(case.op.clone(), &operands, Origin { node: "the_node".into(), ..Origin::default() })?;
    graph.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: y });
    propagate_owners(&mut graph, |_, _| Owner::Client, |_| Owner::Public);
    let want = evaluate(&graph, &weight, &given)?.remove(0);
    let label = Label { name: "w".into(), owner: labels::Owner::Public, ..Label::default() };
    let labels = Labels { tensors: vec![label], ..Labels::default() };
    let region =
        build(&graph, &BTreeMap::from([("y".to_owned(), y)]), &labels)?.expect("there is something to compute");
    let folder = Folder::new()?;
    let path = folder.path().join("client.onnx");
    region.write(&graph, &weight, &path, &folder.path().join("client.onnx.data"))?;
    let model = PlaintextModel::open(&path)?.with_threads(1);
    let size = case.inputs.first().map_or(0, |t| t.shape().first().copied().unwrap_or(0)) as i64;
    given.insert(format!("{SIZE}seq"), Tensor::i64(&[1], vec![size])?);
    let inputs: Vec<_> = model.inputs().into_iter().map(|name| (name, view(&given[name]))).collect();
    let (shape, values) = model.run(&inputs, &["y"])?.remove(0);
    Ok((shape, values, want))
}

/// The only weight, of two axes.
fn weight(_: &str) -> Result<Tensor, Diagnostic> {
    Ok(floats(&[3, 2]))
}

fn view(tensor: &Tensor) -> PlainInput<'_> {
    let elements = match tensor.data() {
        Data::F32(v) => PlainElements::F32(v),
        Data::I64(v) => PlainElements::I64(v),
        Data::Bool(v) => PlainElements::Bool(v),
    };
    PlainInput { shape: tensor.shape(), elements }
}

fn check(op: Op, inputs: &[Tensor]) {
    check_case(&Case { op, inputs: inputs.to_vec(), sized: false });
}

/// [`check`] where the first axis of the first input is a symbol.
fn sized(op: Op, inputs: &[Tensor]) {
    check_case(&Case { op, inputs: inputs.to_vec(), sized: true });
}

fn check_case(case: &Case) {
    let name = format!("{:?}", case.op);
    let (shape, values, want) = both(case).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(shape, want.shape(), "{name}");
    let want: Vec<f32> = match want.data() {
        Data::F32(v) => v.clone(),
        Data::I64(v) => v.iter().map(|x| *x as f32).collect(),
        Data::Bool(v) => v.iter().map(|x| f32::from(u8::from(*x))).collect(),
    };
    assert_eq!(values.len(), want.len(), "{name}");
    for (got, want) in values.iter().zip(&want) {
        let close = (got - want).abs() <= 1e-5 * want.abs().max(1.0) || got.is_nan() && want.is_nan() || got == want;
        assert!(close, "{name}: {got}, expected {want}");
    }
}

fn public(op: plain::Op, inputs: &[Tensor]) {
    check(Op::Tensor(op), inputs);
}

#[test]
fn functions_of_floats() {
    let x = floats(&[3, 4]);
    let plus = positive(&[3, 4]);
    for op in [Op::TANH, Op::SIGMOID, Op::ERF, Op::Relu, Op::Silu, Op::SIGN, Op::NEG, Op::EXP, Op::IS_NAN, Op::Pow(2.0)]
    {
        check(op, std::slice::from_ref(&x));
    }
    for op in [Op::SQRT, Op::RECIPROCAL, Op::LOG, Op::Pow(-0.5), Op::Pow(3.0), Op::Pow(0.7)] {
        check(op, std::slice::from_ref(&plus));
    }
    check(Op::Softplus, std::slice::from_ref(&x));
    check(Op::Softplus, &[Tensor::f32(&[4], vec![-200.0, -1.0, 1.0, 200.0]).expect("a tensor")]);
    check(Op::Gelu { tanh: false }, std::slice::from_ref(&x));
    check(Op::Gelu { tanh: true }, std::slice::from_ref(&x));
    check(Op::Clamp { low: -1.0, high: 1.5 }, std::slice::from_ref(&x));
    check(Op::Quadratic { square: 0.125, linear: 0.25, constant: 0.5 }, std::slice::from_ref(&x));
    for op in [Op::ADD, Op::SUB, Op::MUL, Op::DIV, Op::MAX, Op::MIN] {
        check(op, &[x.clone(), plus.clone()]);
    }
    check(Op::ADD, &[x.clone(), floats(&[4])]);
    check(Op::WHERE, &[mask(&[3, 4]), x.clone(), plus]);
    check(Op::MATMUL, &[floats(&[2, 3, 4]), floats(&[4, 5])]);
    check(Op::MATMUL, &[floats(&[2, 3, 4]), floats(&[2, 4, 5])]);
    check(Op::MATMUL, &[x, floats(&[4])]);
}

#[test]
fn softmax_and_norms() {
    let scores = floats(&[2, 3, 4]);
    let masks = [mask(&[2, 3, 4]), mask(&[3, 4]), mask(&[1, 4])];
    for axis in 0..3 {
        check(Op::Softmax { axis }, std::slice::from_ref(&scores));
    }
    for numerator in [Numerator::Relu, Numerator::Square { shift: 0.5 }] {
        check(Op::RatioSoftmax { axis: 2, numerator, eps: 0.25 }, std::slice::from_ref(&scores));
    }
    for mask in masks {
        check(Op::MaskedSoftmax { axis: 2 }, &[scores.clone(), mask.clone()]);
        check(Op::MaskedSoftmax { axis: 1 }, &[scores.clone(), mask.clone()]);
        // Without the addend the divisor of a row that is masked is zero.
        check(Op::RatioSoftmax { axis: 2, numerator: Numerator::Relu, eps: 0.0 }, &[scores.clone(), mask]);
    }
    let (scale, shift) = (positive(&[4]), floats(&[4]));
    check(Op::RmsNorm { eps: 1e-3 }, &[scores.clone(), scale.clone()]);
    check(Op::LayerNorm { eps: 1e-3 }, &[scores.clone(), scale.clone()]);
    check(Op::LayerNorm { eps: 1e-3 }, &[scores.clone(), scale.clone(), shift.clone()]);
    for centred in [false, true] {
        check(Op::AffineNorm { centred }, &[scores.clone(), scale.clone()]);
        check(Op::AffineNorm { centred }, &[scores.clone(), scale.clone(), shift.clone()]);
    }
    for (axes, keepdims) in [(vec![2], true), (vec![0, 2], false), (vec![0, 1, 2], true), (vec![], true)] {
        check(
            Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: axes.clone(), keepdims }),
            std::slice::from_ref(&scores),
        );
        check(
            Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: axes.clone(), keepdims }),
            std::slice::from_ref(&scores),
        );
        check(Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes, keepdims }), std::slice::from_ref(&scores));
    }
}

#[test]
fn movement() {
    let x = floats(&[3, 2, 4]);
    let one = std::slice::from_ref(&x);
    let mut dims = ombra_ir::Dims::default();
    let seq = Dim::from(dims.symbol("seq").expect("a symbol"));
    let twice = seq.mul(&d(2)).expect("a size");
    sized(Op::Tensor(TensorOp::Reshape { shape: vec![twice.clone(), d(4)] }), one);
    sized(Op::Tensor(TensorOp::Reshape { shape: vec![d(8), seq.clone()] }), one);
    sized(Op::Tensor(TensorOp::Reshape { shape: vec![d(2), d(0), seq.clone()] }), &[floats(&[3, 0])]);
    check(Op::Tensor(TensorOp::Transpose { perm: vec![2, 0, 1] }), one);
    sized(Op::Tensor(TensorOp::Expand { shape: vec![d(5), seq.clone(), d(2), d(4)] }), one);
    check(Op::Tensor(TensorOp::Concat { axis: 2 }), &[x.clone(), floats(&[3, 2, 1])]);
    check(Op::Tensor(TensorOp::Gather { axis: 1 }), &[x.clone(), integers(&[2, 2], 0, 2)]);
    check(Op::Tensor(TensorOp::Gather { axis: 1 }), &[x.clone(), Tensor::scalar_i64(-1)]);
    let slice = |axis, start: Dim, len: Dim, step| Op::Tensor(TensorOp::Slice { axis, start, len, step });
    check(slice(2, d(1), d(2), 1), one);
    sized(slice(0, seq.sub(&d(1)).expect("a size"), d(1), 1), one);
    sized(slice(2, d(3), d(4), -1), one);
    sized(slice(0, seq.sub(&d(1)).expect("a size"), seq.clone(), -1), one);
    check(slice(2, d(0), d(2), 2), one);
    public(TensorOp::Identity, one);
    sized(Op::Tensor(TensorOp::Tile { repeats: vec![d(2), seq.clone(), d(1)] }), one);
    for (upper, k) in [(true, 0), (true, 1), (false, 0), (false, -1)] {
        public(TensorOp::Trilu { upper, k }, one);
    }
    public(TensorOp::Trilu { upper: false, k: 0 }, &[mask(&[3, 4])]);
    public(TensorOp::GatherElements { axis: 1 }, &[x.clone(), integers(&[3, 1, 4], 0, 2)]);
    public(TensorOp::GatherNd { batch_dims: 0 }, &[x.clone(), integers(&[5, 2], 0, 2)]);
    let places = Tensor::i64(&[2, 2], vec![0, 1, 2, 0]).expect("a tensor");
    public(TensorOp::ScatterNd, &[x.clone(), places, positive(&[2, 4])]);
    for (exclusive, reverse) in [(false, false), (true, false), (false, true), (true, true)] {
        public(TensorOp::CumSum { axis: 1, exclusive, reverse }, one);
        public(TensorOp::CumSum { axis: 0, exclusive, reverse }, &[integers(&[3, 2], -2, 9)]);
    }
}

#[test]
fn public_arithmetic() {
    let (x, plus) = (floats(&[3, 4]), positive(&[3, 4]));
    let (a, b) = (integers(&[3, 4], -5, 11), integers(&[3, 4], 1, 5));
    for unary in [Unary::Neg, Unary::Abs, Unary::Cos, Unary::Sin, Unary::Floor, Unary::Exp, Unary::IsNan] {
        public(TensorOp::Unary(unary), std::slice::from_ref(&x));
    }
    for unary in [Unary::Ceil, Unary::Round, Unary::Sign, Unary::Tanh, Unary::Sigmoid, Unary::Erf] {
        public(TensorOp::Unary(unary), std::slice::from_ref(&x));
    }
    public(TensorOp::ArgMax, std::slice::from_ref(&x));
    let zeros = Tensor::f32(&[3], vec![-2.0, 0.0, 0.5]).expect("a tensor");
    public(TensorOp::Unary(Unary::Sign), &[zeros]);
    for unary in [Unary::Sqrt, Unary::Reciprocal, Unary::Log] {
        public(TensorOp::Unary(unary), std::slice::from_ref(&plus));
    }
    for unary in [Unary::Neg, Unary::Abs, Unary::Sign] {
        public(TensorOp::Unary(unary), std::slice::from_ref(&a));
    }
    public(TensorOp::Unary(Unary::Not), &[mask(&[3, 4])]);
    use Binary::{Add, And, Div, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Max, Min, Mod, Mul, Or, Pow, Sub};
    for binary in [Add, Sub, Mul, Div, Mod, Equal, Less, LessOrEqual, Greater, GreaterOrEqual, Max, Min] {
        public(TensorOp::Binary(binary), &[x.clone(), plus.clone()]);
        public(TensorOp::Binary(binary), &[a.clone(), b.clone()]);
    }
    public(TensorOp::Binary(Pow), &[plus.clone(), x.clone()]);
    public(TensorOp::Binary(Pow), &[b.clone(), integers(&[4], 0, 3)]);
    for binary in [And, Or, Equal] {
        public(TensorOp::Binary(binary), &[mask(&[3, 4]), mask(&[4])]);
    }
    for to in [DType::F32, DType::I64, DType::Bool] {
        for from in [x.clone(), a.clone(), mask(&[3, 4])] {
            public(TensorOp::Cast { to }, &[from]);
        }
    }
    public(TensorOp::Where, &[mask(&[3, 4]), a.clone(), b.clone()]);
    public(TensorOp::Where, &[mask(&[3, 4]), mask(&[4]), mask(&[3, 1])]);
    public(TensorOp::Clip, &[x.clone(), Tensor::scalar_f32(-1.0), Tensor::scalar_f32(0.5)]);
    public(TensorOp::Clip, &[a.clone(), Tensor::scalar_i64(-1), Tensor::scalar_i64(2)]);
    public(TensorOp::MatMul, &[x.clone(), floats(&[4, 2])]);
    for kind in [Reduce::Sum, Reduce::Max, Reduce::Min, Reduce::Prod] {
        for keepdims in [false, true] {
            public(TensorOp::Reduce { kind, axes: vec![1], keepdims }, std::slice::from_ref(&x));
            public(TensorOp::Reduce { kind, axes: vec![0], keepdims }, std::slice::from_ref(&a));
        }
    }
    public(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![0, 1], keepdims: false }, &[x]);
}

/// The sum of `made`, which has no operand, and an input that gives `seq` its size.
fn created(made: plain::Op, input: &Tensor) {
    let mut graph = Graph::new();
    let seq = graph.dims.symbol("seq").expect("a symbol");
    let ty = Type::new(input.dtype(), vec![seq.into()]);
    let x = graph.add_input("x", InputRole::Other, ty, Origin::default());
    let made = graph.add(Op::Tensor(made), &[], Origin::default()).expect("it has a type");
    let op = Op::Tensor(TensorOp::Binary(Binary::Add));
    let y = graph.add(op, &[x, made], Origin::default()).expect("it has a type");
    graph.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: y });
    propagate_owners(&mut graph, |_, _| Owner::Client, |_| Owner::Public);
    let given = BTreeMap::from([("x".to_owned(), input.clone())]);
    let want = evaluate(&graph, &weight, &given).expect("it evaluates").remove(0);
    let wanted = BTreeMap::from([("y".to_owned(), y)]);
    let region = build(&graph, &wanted, &Labels::default()).expect("it is written").expect("there is a region");
    let folder = Folder::new().expect("a folder");
    let path = folder.path().join("client.onnx");
    region.write(&graph, &weight, &path, &folder.path().join("client.onnx.data")).expect("it is written");
    let model = PlaintextModel::open(&path).expect("it loads").with_threads(1);
    let size = Tensor::i64(&[1], vec![input.len() as i64]).expect("a tensor");
    let inputs: Vec<_> = model.inputs().into_iter().map(|n| (n, view(if n == "x" { input } else { &size }))).collect();
    let (shape, values) = model.run(&inputs, &["y"]).expect("it runs").remove(0);
    assert_eq!(shape, want.shape());
    let want: Vec<f32> = match want.data() {
        Data::F32(v) => v.clone(),
        Data::I64(v) => v.iter().map(|x| *x as f32).collect(),
        Data::Bool(_) => Vec::new(),
    };
    assert_eq!(values, want);
}

#[test]
fn what_follows_from_sizes_alone() {
    let mut dims = ombra_ir::Dims::default();
    let seq = Dim::from(dims.symbol("seq").expect("a symbol"));
    let square = seq.mul(&seq).and_then(|d| d.mul(&Dim::constant(-3))).and_then(|d| d.add(&Dim::constant(7)));
    let square = square.expect("a size");
    for n in [0, 1, 5] {
        let x = integers(&[n], -3, 8);
        created(TensorOp::Iota { start: square.clone(), len: seq.clone(), step: -2 }, &x);
        created(TensorOp::Iota { start: d(2), len: seq.clone(), step: 1 }, &x);
        let values = vec![seq.clone(), square.clone(), d(9)];
        created(TensorOp::Sizes { shape: vec![3, 1], values }, &x);
        created(TensorOp::ConstantOfShape { shape: vec![d(2), seq.clone()], value: Tensor::scalar_i64(4) }, &x);
        let value = Tensor::f32(&[1], vec![0.5]).expect("a tensor");
        created(TensorOp::ConstantOfShape { shape: vec![seq.clone()], value }, &floats(&[n]));
    }
}

#[test]
fn weights_and_large_constants_stand_in_the_file() {
    let mut graph = Graph::new();
    let ty = Type::new(DType::F32, vec![d(1), d(2)]);
    let x = graph.add_input("x", InputRole::Other, ty, Origin::default());
    let w = graph.add_weight("w", true, vec![d(2), d(3)], Origin::default());
    let table = graph.add_const(floats(&[3, 700]), Origin::default()).expect("a constant");
    let y = graph.add(Op::MATMUL, &[x, w], Origin::default()).expect("it has a type");
    let y = graph.add(Op::MATMUL, &[y, table], Origin::default()).expect("it has a type");
    graph.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value: y });
    propagate_owners(&mut graph, |_, _| Owner::Client, |_| Owner::Public);
    let label = Label { name: "w".into(), owner: labels::Owner::Public, ..Label::default() };
    let labels = Labels { tensors: vec![label], ..Labels::default() };
    let region = build(&graph, &BTreeMap::from([("y".to_owned(), y)]), &labels).expect("it is written");
    let mut region = region.expect("there is a region");
    assert_eq!((region.tensors.len(), region.proto.graph.initializer.len()), (2, 0));
    let folder = Folder::new().expect("a folder");
    let (path, again) = (folder.path().join("client.onnx"), folder.path().join("again.onnx"));
    let data = folder.path().join("client.onnx.data");
    assert!(!region.write(&graph, &weight, &path, &data).expect("it is written"));
    assert!(!region.write(&graph, &weight, &again, &data).expect("it is written"));
    assert!(!data.exists());
    let bytes = std::fs::read(&path).expect("the file");
    assert_eq!(bytes, std::fs::read(&again).expect("the file"), "the same bytes");
    let read = ombra_compiler::onnx::Model::read(&path).expect("it is an ONNX file");
    assert_eq!(read.graph().initializer.len(), 2);
    let model = PlaintextModel::load(bytes).expect("it loads").with_threads(1);
    let given = floats(&[1, 2]);
    let (shape, values) = model.run(&[("x", view(&given))], &["y"]).expect("it runs").remove(0);
    let want =
        evaluate(&graph, &weight, &BTreeMap::from([("x".to_owned(), given.clone())])).expect("it evaluates").remove(0);
    assert_eq!(shape, want.shape());
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    assert!(values.iter().zip(want.as_f32().expect("floats")).all(close));
    // The same with the elements in a file of their own.
    region.inside = 0;
    assert!(region.write(&graph, &weight, &path, &data).expect("it is written"));
    assert!(std::fs::metadata(&data).expect("the file").len() >= 4 * (6 + 3 * 700));
    let read = ombra_compiler::onnx::Model::read(&path).expect("it is an ONNX file");
    assert!(read.graph().initializer.iter().all(|t| t.raw_data.is_empty() && read.bytes(t).is_ok()));
    let model = PlaintextModel::open(&path).expect("it loads").with_threads(1);
    assert_eq!(model.run(&[("x", view(&given))], &["y"]).expect("it runs").remove(0), (shape, values));
    std::fs::remove_file(&data).expect("it is there");
    assert_eq!(PlaintextModel::open(&path).err().map(|e| e.code), Some("E0721"));
}

#[test]
fn what_cannot_be_written_is_named() {
    let case = Case {
        op: Op::Tensor(TensorOp::MatMul),
        inputs: vec![integers(&[2, 3], 0, 5), integers(&[3, 2], 0, 5)],
        sized: false,
    };
    let error = both(&case).expect_err("integers have no such product at the client");
    assert_eq!((error.code, error.place.as_deref()), ("E0552", Some("the_node")));
}
