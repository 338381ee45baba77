//! Operators on secret values, one small model each: in the clear and between three parties, against double precision,
//! with predicted costs equal to measured ones.

use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{self, Options};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::Quantity;
use ombra_ir::settings::Setting;
use ombra_runtime::app::inputs::infer_request;
use ombra_tests::built::{Folder, build_with};
use ombra_tests::{parties, plain};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::type_proto;
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Values of a tensor with their shape.
pub(crate) type Values<'a> = (&'a [usize], Vec<f64>);

/// A model under construction. Inputs become secret by a sum with a private weight of zeros.
pub(crate) struct Small {
    graph: GraphProto,
    inputs: BTreeMap<String, Tensor>,
}

fn floats(name: &str, shape: &[usize], values: &[f64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: shape.iter().map(|d| *d as i64).collect(),
        data_type: DataType::FLOAT as i32,
        float_data: values.iter().map(|v| *v as f32).collect(),
        ..TensorProto::default()
    }
}

fn declared(name: &str, shape: Option<&[usize]>) -> ValueInfoProto {
    let dim = |d: &usize| Dimension { value: Some(dimension::Value::DimValue(*d as i64)), ..Dimension::default() };
    let mut tensor = type_proto::Tensor { elem_type: DataType::FLOAT as i32, ..type_proto::Tensor::default() };
    if let Some(shape) = shape {
        tensor.shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect(), ..Default::default() }).into();
    }
    let mut ty = TypeProto::default();
    ty.set_tensor_type(tensor);
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..ValueInfoProto::default() }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::INT.into(), i, ..AttributeProto::default() }
}

impl Small {
    pub(crate) fn new() -> Small {
        Small { graph: GraphProto { name: "operator".into(), ..GraphProto::default() }, inputs: BTreeMap::new() }
    }

    /// An input that is secret under the name `name`.
    pub(crate) fn secret(mut self, name: &str, (shape, values): Values) -> Small {
        let (given, zero) = (format!("{name}.given"), format!("{name}.zero"));
        let tensor = Tensor::f32(shape, values.iter().map(|v| *v as f32).collect()).expect("it fits");
        self.graph.input.push(declared(&given, Some(shape)));
        self.graph.initializer.push(floats(&zero, shape, &vec![0.0; values.len()]));
        self.inputs.insert(given.clone(), tensor);
        self.node("Add", &[&given, &zero], name, vec![])
    }

    /// An input of the client's.
    pub(crate) fn client(mut self, name: &str, (shape, values): Values) -> Small {
        let tensor = Tensor::f32(shape, values.iter().map(|v| *v as f32).collect()).expect("it fits");
        self.graph.input.push(declared(name, Some(shape)));
        self.inputs.insert(name.into(), tensor);
        self
    }

    /// Gives an axis of an input a name in place of its size.
    pub(crate) fn symbolic(mut self, name: &str, axis: usize, size: &str) -> Small {
        let input = self.graph.input.iter_mut().find(|i| i.name == name).expect("it was declared");
        let tensor = input.type_.as_mut().expect("it has a type").mut_tensor_type();
        tensor.shape.as_mut().expect("it has a shape").dim[axis].set_dim_param(size.into());
        self
    }

    /// A private weight.
    pub(crate) fn weight(mut self, name: &str, (shape, values): Values) -> Small {
        self.graph.initializer.push(floats(name, shape, &values));
        self
    }

    /// Public booleans.
    pub(crate) fn truths(mut self, name: &str, shape: &[usize], values: &[bool]) -> Small {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: shape.iter().map(|d| *d as i64).collect(),
            data_type: DataType::BOOL as i32,
            int32_data: values.iter().map(|v| i32::from(*v)).collect(),
            ..TensorProto::default()
        });
        self
    }

    /// A public integer constant.
    pub(crate) fn integers(mut self, name: &str, values: &[i64]) -> Small {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: vec![values.len() as i64],
            data_type: DataType::INT64 as i32,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
        self
    }

    /// A public constant of floats.
    pub(crate) fn floats(mut self, name: &str, values: &[f64]) -> Small {
        let mut tensor = floats(name, &[values.len()], values);
        if values.len() == 1 {
            tensor.dims.clear();
        }
        self.graph.initializer.push(tensor);
        self
    }

    pub(crate) fn node(mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> Small {
        self.graph.node.push(NodeProto {
            name: format!("/{op}/{output}"),
            op_type: op.into(),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.into()],
            attribute,
            ..NodeProto::default()
        });
        self
    }

    /// The model with output `y`, and options that calibrate on its inputs.
    pub(crate) fn model(&self) -> (Model, Options) {
        let mut graph = self.graph.clone();
        graph.output.push(declared("y", None));
        let proto = ModelProto {
            ir_version: 10,
            opset_import: vec![OperatorSetIdProto { version: 18, ..OperatorSetIdProto::default() }],
            graph: Some(graph).into(),
            ..ModelProto::default()
        };
        let model = Model::from_proto(proto, Path::new("operator.onnx")).expect("the model is well formed");
        // Calibration sees the very inputs of the run: how likely others fit says nothing here.
        (model, Options { calibration: vec![self.inputs.clone()], ..Options::default() })
    }

    /// Compiles the model for three parties, runs it, and compares with what is expected.
    pub(crate) fn check(self, what: &str, expected: &[f64], tolerance: f64) {
        self.check_in(Setting::ThreeParty, what, expected, tolerance);
    }

    /// [`Small::check`] in a setting.
    fn check_in(self, setting: Setting, what: &str, expected: &[f64], tolerance: f64) {
        let (model, options) = self.model();
        let options = Options { setting, ..options };
        let built = build_with(model, None, &options).unwrap_or_else(|e| panic!("{what}: {e}"));

        let outcome =
            plain::step(&built.compiled, &built.model, &self.inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
        let module = &built.compiled.plan.module;
        let reveal = module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. })).expect("y is revealed");
        let (_, scale) = reveal.ty.as_ring().expect("a ring value is revealed");
        let clear = outcome.outputs[0].as_ref().expect("y is revealed").decode(scale).expect("a ring value");

        let (request, given) = infer_request(&built.plan.plan, self.inputs.into_iter().collect()).expect("they fit");
        let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let secret = sides[0].steps[0].opened[0].reals();
        for guard in sides[0].steps[0].opened.iter().skip(1) {
            assert_eq!(guard.values, [0], "{what}: the inputs are those that were measured");
        }
        let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
        assert_eq!(costs.wrong, [], "{what}: ops whose bytes are not the declared ones");
        assert_eq!(costs.measured, costs.predicted, "{what}");

        let error = |got: &[f64]| -> f64 {
            assert_eq!(got.len(), expected.len(), "{what}: number of elements");
            got.iter().zip(expected).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
        };
        let (clear, secret) = (error(&clear), error(&secret));
        let bits = 8.0 * costs.predicted.bytes.iter().sum::<u64>() as f64 / expected.len() as f64;
        println!("{what:<28} {clear:.2e} {secret:.2e} {bits:>7.0} bits {:>4} rounds", costs.predicted.rounds);
        assert!(clear <= tolerance, "{what}: error {clear:.2e} in the clear");
        assert!(secret <= tolerance, "{what}: error {secret:.2e} between parties");
    }

    /// Whether the plan of the model, measured on its inputs, finds that others leave the assumed ranges: in the clear and
    /// between parties.
    fn guard_of(&self, changed: &[(&str, &[f64])]) -> [bool; 2] {
        let (model, options) = self.model();
        let built = build_with(model, None, &options).unwrap_or_else(|e| panic!("{e}"));
        let mut inputs = self.inputs.clone();
        for (name, values) in changed {
            let given = format!("{name}.given");
            let shape = inputs[&given].shape().to_vec();
            let tensor = Tensor::f32(&shape, values.iter().map(|v| *v as f32).collect()).expect("it fits");
            inputs.insert(given, tensor);
        }
        let outcome = plain::step(&built.compiled, &built.model, &inputs).unwrap_or_else(|e| panic!("{e}"));
        let clear = outcome.outputs[1].as_ref().expect("the guard is revealed").decode(0).expect("a ring value");
        let (request, given) = infer_request(&built.plan.plan, inputs.into_iter().collect()).expect("they fit");
        let sides = parties::run(&built.plan, &request, &[given]).unwrap_or_else(|e| panic!("{e}"));
        let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
        assert_eq!(costs.measured, costs.predicted);
        [clear == [1.0], sides[0].steps[0].opened[1].values == [1]]
    }
}

#[test]
fn an_input_beyond_what_was_measured_sets_the_guard() {
    let exp = || Small::new().secret("x", (&[8], line(0.0, 10.0, 8))).node("Exp", &["x"], "y", vec![]);
    for (values, beyond) in [(line(0.0, 10.0, 8), false), (line(-70.0, 12.5, 8), false), (line(0.0, 60.0, 8), true)] {
        assert_eq!(exp().guard_of(&[("x", &values)]), [beyond; 2], "{values:?}");
    }
    let quotient = |divisor: Vec<f64>| {
        let small = Small::new().secret("a", (&[8], line(1.0, 2.0, 8))).secret("b", (&[8], divisor));
        small.node("Div", &["a", "b"], "y", vec![])
    };
    let one = |x: f64| [vec![4.0; 7], vec![x]].concat();
    for (value, beyond) in [(4.0, false), (0.7, false), (0.4, true), (0.0, true), (-4.0, true)] {
        assert_eq!(quotient(one(4.0)).guard_of(&[("b", &one(value))]), [beyond; 2], "{value}");
    }
    let both = |x: f64| [vec![4.0, -4.0, 3.0, -3.0, 4.0, 4.0, 4.0], vec![x]].concat();
    for (value, beyond) in [(4.0, false), (-0.7, false), (0.2, true), (0.0, true), (-0.2, true)] {
        assert_eq!(quotient(both(4.0)).guard_of(&[("b", &both(value))]), [beyond; 2], "{value}");
    }
}

/// Sums of products before a matrix: nothing bounds their rows but what was seen, lengths of 1118 with inputs to 500.
#[test]
fn long_rows_set_the_guard_whatever_their_elements_are() {
    let row = |ends: [f64; 2]| [vec![ends[0]], vec![1.0; 6], vec![ends[1]]].concat();
    let two = |first: Vec<f64>, second: Vec<f64>| [first, second].concat();
    let usual = [two(row([500.0, 1.0]), row([1.0, 1.0])), two(row([1.0, 500.0]), row([1.0, 1.0]))];
    let small = Small::new()
        .secret("a", (&[2, 8], usual[0].clone()))
        .secret("b", (&[2, 8], usual[1].clone()))
        .weight("w", (&[8, 4], line(-0.1, 0.1, 32)))
        .node("Mul", &["a", "b"], "product", vec![])
        .node("Add", &["product", "a"], "sum", vec![])
        .node("MatMul", &["sum", "w"], "y", vec![]);
    let (model, options) = small.model();
    let plan = pipeline::compile(&model, None, &options).expect("it compiles").plan;
    assert_eq!(plan.assumed.iter().map(|a| a.quantity).collect::<Vec<_>>(), [Quantity::Magnitude]);
    let others = row([1.0, 1.0]);
    for (a, b, beyond) in [
        // As it was, and up to four times as long, in one element and in all.
        (row([500.0, 1.0]), row([1.0, 500.0]), false),
        (row([62.0, 1.0]), row([61.0, 1.0]), false),
        (vec![36.0; 8], vec![36.0; 8], false),
        // A little beyond eight times, in one element, in all, and in two of both signs.
        (row([95.0, 1.0]), row([95.0, 1.0]), true),
        (vec![57.0; 8], vec![-57.0; 8], true),
        (row([80.0, 80.0]), row([80.0, -80.0]), true),
        // Squares of 2^76, which no ring holds, alone and with the opposite beside them.
        (row([2048.0, 1.0]), row([2048.0, 1.0]), true),
        (row([2048.0, 2048.0]), row([2048.0, -2048.0]), true),
        (row([-2048.0, 1.0]), row([1024.0, 1.0]), true),
        (vec![3900.0; 8], vec![3900.0; 8], true),
        (row([4000.0, -4000.0]), row([4000.0, 4000.0]), true),
    ] {
        for rows in [[(&a, &b), (&others, &others)], [(&others, &others), (&a, &b)]] {
            let [(a1, b1), (a2, b2)] = rows.map(|(a, b)| (a.clone(), b.clone()));
            let (a, b) = (two(a1, a2), two(b1, b2));
            assert_eq!(small.guard_of(&[("a", &a), ("b", &b)]), [beyond; 2], "{a:?} {b:?}");
        }
    }
}

/// A revealed tensor is the floor of what it is divided from: the same integers in every run, whatever the shares are,
/// and in the clear, where divisions round by drawn numbers. Full products with private weights are never opened.
#[test]
fn what_is_revealed_is_rounded_down_whatever_the_shares_are() {
    let gains = || Small::new().client("x", (&[8, 48], mixed(384, 3.0))).weight("w", (&[48], mixed(48, 1.3)));
    let product = || Small::new().client("x", (&[8, 48], mixed(384, 3.0))).weight("w", (&[48, 8], mixed(384, 0.4)));
    let models = [
        gains().node("Mul", &["x", "w"], "y", vec![]),
        product().node("MatMul", &["x", "w"], "y", vec![]),
        product().weight("b", (&[8], mixed(8, 0.9))).node("MatMul", &["x", "w"], "p", vec![]).node(
            "Add",
            &["p", "b"],
            "y",
            vec![],
        ),
        product().node("MatMul", &["x", "w"], "p", vec![]).node("Relu", &["p"], "y", vec![]),
        product().node("MatMul", &["x", "w"], "p", vec![]).node("Concat", &["p", "p"], "y", vec![int("axis", 1)]),
        // A part of a quotient that is needed whole as well.
        product()
            .integers("from", &[2])
            .integers("to", &[5])
            .node("MatMul", &["x", "w"], "p", vec![])
            .node("Relu", &["p"], "r", vec![])
            .node("Slice", &["p", "from", "to"], "s", vec![])
            .node("Concat", &["s", "r"], "y", vec![int("axis", 0)]),
        product().node("MatMul", &["x", "w"], "p", vec![]).node("Tanh", &["p"], "y", vec![]),
    ];
    let last = models.len() - 1;
    for (at, small) in models.into_iter().enumerate() {
        let (model, options) = small.model();
        let built = build_with(model, None, &options).unwrap_or_else(|e| panic!("{e}"));
        let module = &built.compiled.plan.module;
        let reveal = module.ops.iter().find(|n| matches!(n.op, Op::Reveal { .. })).expect("y is revealed");
        let (_, scale) = reveal.ty.as_ring().expect("a ring value is revealed");
        assert!(scale <= options.fraction_bits(), "{scale} fraction bits are revealed");
        let (request, given) =
            infer_request(&built.plan.plan, small.inputs.clone().into_iter().collect()).expect("fits");
        let runs: Vec<Vec<i64>> = (0..3)
            .map(|_| {
                let sides = parties::run(&built.plan, &request, std::slice::from_ref(&given)).expect("it runs");
                sides[0].steps[0].opened[0].values.clone()
            })
            .collect();
        // Inside of tanh other divisions round by shares; its own last one does not.
        if at < last {
            let clear = plain::step(&built.compiled, &built.model, &small.inputs).unwrap_or_else(|e| panic!("{e}"));
            let (bits, words) = clear.outputs[0].as_ref().expect("y is revealed").as_ring().expect("a ring value");
            let words: Vec<i64> = words.iter().map(|w| ombra_ir::reference::signed(*w, bits)).collect();
            assert!(runs.iter().all(|run| *run == words), "model {at}: runs differ from the floor");
        }
    }
}

/// Scores of two rows, products of `a` and `b`, and a softmax by quotients over them.
fn quotient_of(square: bool, [a, b]: [Vec<f64>; 2]) -> Small {
    let small = Small::new().secret("a", (&[2, 8], a)).secret("b", (&[2, 8], b)).integers("last", &[-1]);
    let small = small.node("Mul", &["a", "b"], "scores", vec![]);
    let small = if square {
        let small = small.floats("five", &[5.0]).node("Add", &["scores", "five"], "moved", vec![]);
        let small = small.node("Mul", &["moved", "moved"], "entries", vec![]);
        small.node("ReduceSum", &["entries", "last"], "divisor", vec![int("keepdims", 1)])
    } else {
        let small = small.floats("eps", &[0.015_625]).node("Relu", &["scores"], "entries", vec![]);
        let small = small.node("ReduceSum", &["entries", "last"], "sum", vec![int("keepdims", 1)]);
        small.node("Add", &["sum", "eps"], "divisor", vec![])
    };
    small.node("Div", &["entries", "divisor"], "y", vec![])
}

/// Nothing bounds the scores but their row's divisor, which is compared before it could pass the ring.
#[test]
fn divisors_of_rows_set_the_guard_whatever_their_scores_are() {
    let usual = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 500.0];
    let first = || [500.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let both = |row: &[f64]| [row, &[1.0; 8]].concat();
    let ends = |x: f64, y: f64| [vec![x], vec![1.0; 6], vec![y]].concat();
    for square in [true, false] {
        let small = quotient_of(square, [both(&first()), both(&usual)]);
        let (model, options) = small.model();
        let plan = pipeline::compile(&model, None, &options).expect("it compiles").plan;
        let quantities: Vec<Quantity> = plan.assumed.iter().map(|a| a.quantity).collect();
        assert_eq!(quantities, [Quantity::RowStatistic], "square {square}");
        for (a, b, beyond) in [
            (first().to_vec(), usual.to_vec(), false),
            (ends(31.0, 1.0), ends(32.0, 1.0), false),
            (ends(27.0, 27.0), ends(27.0, 27.0), false),
            (ends(90.0, 1.0), ends(90.0, 1.0), true),
            (ends(70.0, 70.0), ends(70.0, 70.0), true),
            (ends(2048.0, 1.0), ends(2048.0, 1.0), true),
            (ends(2048.0, 2048.0), ends(2048.0, -2048.0), true),
            (vec![4000.0; 8], vec![4000.0; 8], true),
            (vec![4000.0; 8], vec![-4000.0; 8], true),
            // Squares that add up to nothing, which a row with an entry never did; eps takes care of positive parts.
            (vec![-5.0; 8], vec![1.0; 8], square),
        ] {
            let found = small.guard_of(&[("a", &both(&a)), ("b", &both(&b))]);
            assert_eq!(found, [beyond; 2], "square {square}: {a:?} {b:?}");
        }
    }
}

/// A tensor as a `.npy` file.
fn npy(shape: &str, values: &[f64]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).expect("it is short").to_le_bytes();
    let data: Vec<u8> = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), &data].concat()
}

/// Between three processes, an input beyond what was measured ends with the guard's error, and the client gives no output.
#[test]
fn an_input_beyond_what_was_measured_ends_with_one_error() {
    let small = || Small::new().secret("x", (&[8], line(0.0, 10.0, 8))).node("Exp", &["x"], "y", vec![]);
    let (model, options) = small().model();
    let built = build_with(model, None, &options).unwrap_or_else(|e| panic!("{e}"));
    let folder = Folder::new().expect("there is room");
    let run = |name: &str, values: &[f64]| {
        let (input, output) = (folder.path().join(format!("{name}.npy")), folder.path().join(name));
        std::fs::write(&input, npy("(8,)", values)).expect("there is room");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tested-ombra-run"));
        command.arg("local").arg(built.folder.path()).args(["--threads", "1"]);
        command.arg("--input").arg(format!("x.given={}", input.display())).arg("--output-dir").arg(&output);
        let done = command.output().expect("it starts");
        let said = [done.stdout, done.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (done.status.success(), said, std::fs::read_dir(&output).map_or(0, Iterator::count))
    };
    let (done, [_, errors], files) = run("within", &line(0.0, 12.0, 8));
    assert!(done && files == 1, "{files} files: {errors}");
    let (done, [said, errors], files) = run("beyond", &line(0.0, 60.0, 8));
    assert!(!done && files == 0, "{files} files: {said}");
    let own: Vec<&str> = errors.lines().filter(|line| line.starts_with("error")).collect();
    assert!(said.is_empty() && own.len() == 1 && own[0].contains("E1018"), "{said} {errors}");
    // The others are told that the client ended the run, and not why.
    assert_eq!(errors.matches("E1018").count(), 1, "{errors}");
}

/// `n` values from `from` to `to`.
pub(crate) fn line(from: f64, to: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from((from + (to - from) * i as f64 / (n - 1) as f64) as f32)).collect()
}

/// Values without order between −`size` and `size`.
pub(crate) fn mixed(n: usize, size: f64) -> Vec<f64> {
    (0..n).map(|i| f64::from((size * libm::sin(1.0 + 12.9898 * i as f64 * (i + 1) as f64)) as f32)).collect()
}

/// A function of one operand over a range.
pub(crate) fn unary(op: &str, from: f64, to: f64, f: impl Fn(f64) -> f64, tolerance: f64) {
    let x = line(from, to, 1601);
    let expected: Vec<f64> = x.iter().map(|x| f(*x)).collect();
    Small::new().secret("x", (&[1601], x)).node(op, &["x"], "y", vec![]).check(op, &expected, tolerance);
}

#[test]
fn saturating_functions() {
    unary("Tanh", -40.0, 40.0, libm::tanh, 3e-4);
    unary("Tanh", -6.0, 6.0, libm::tanh, 3e-4);
    unary("Sigmoid", -12.0, 12.0, |x| 1.0 / (1.0 + libm::exp(-x)), 2e-4);
    unary("Sigmoid", -100.0, 100.0, |x| 1.0 / (1.0 + libm::exp(-x)), 2e-4);
    unary("Erf", -4.0, 4.0, libm::erf, 2e-4);
}

/// Angles of any size, in every setting with secrets.
#[test]
fn angles() {
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        for (op, f) in [("Sin", libm::sin as fn(f64) -> f64), ("Cos", libm::cos)] {
            for size in [4.0, 300.0, 70_000.0] {
                // Angles that fixed point holds: what is measured is the function.
                let x: Vec<f64> = line(-size, size, 801).iter().map(|x| libm::rint(x * 64.0) / 64.0).collect();
                let expected: Vec<f64> = x.iter().map(|x| f(*x)).collect();
                let small = Small::new().secret("x", (&[801], x)).node(op, &["x"], "y", vec![]);
                small.check_in(setting, op, &expected, 2.5e-5);
            }
        }
    }
}

#[test]
fn a_divisor_that_may_vanish_is_listed_as_assumed() {
    let quantities = |divisor: Vec<f64>| {
        let small = Small::new().secret("a", (&[64], line(1.0, 2.0, 64))).secret("b", (&[64], divisor)).node(
            "Div",
            &["a", "b"],
            "y",
            vec![],
        );
        let (model, options) = small.model();
        let plan = pipeline::compile(&model, None, &options).expect("it compiles").plan;
        plan.assumed.iter().map(|a| a.quantity).collect::<Vec<_>>()
    };
    assert_eq!(quantities(line(3.0, 3.1, 64)), [Quantity::DivisorOfOneSign]);
    let both: Vec<f64> =
        line(1.0, 2.0, 64).into_iter().enumerate().map(|(i, x)| if i % 2 == 0 { x } else { -x }).collect();
    assert_eq!(quantities(both), [Quantity::DivisorOfBothSigns]);
}

#[test]
fn softmax_on_any_axis() {
    let (shape, x) = ([3usize, 5, 4], mixed(60, 4.0));
    for axis in 0..3usize {
        let stride: usize = shape[axis + 1..].iter().product();
        let expected: Vec<f64> = (0..60)
            .map(|i| {
                let first = i - i / stride % shape[axis] * stride;
                let sum: f64 = (0..shape[axis]).map(|k| libm::exp(x[first + k * stride])).sum();
                libm::exp(x[i]) / sum
            })
            .collect();
        let axis = vec![int("axis", axis as i64)];
        Small::new()
            .secret("x", (&shape, x.clone()))
            .node("Softmax", &["x"], "y", axis)
            .check("Softmax", &expected, 3e-4);
    }
}

#[test]
fn reductions_over_any_axes() {
    let (shape, x) = ([3usize, 5, 4], mixed(60, 4.0));
    let groups = |axes: &[usize]| -> Vec<Vec<f64>> {
        let mut groups: BTreeMap<Vec<usize>, Vec<f64>> = BTreeMap::new();
        for (i, x) in x.iter().enumerate() {
            let at = [i / 20, i / 4 % 5, i % 4];
            let kept = (0..3).filter(|a| !axes.contains(a)).map(|a| at[a]).collect();
            groups.entry(kept).or_default().push(*x);
        }
        groups.into_values().collect()
    };
    let mean = |g: &Vec<f64>| g.iter().sum::<f64>() / g.len() as f64;
    let max = |g: &Vec<f64>| g.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for axes in [vec![2usize], vec![1], vec![0, 2], vec![0, 1, 2]] {
        for keep in [0, 1] {
            let small = |op: &str| {
                let names: Vec<i64> = axes.iter().map(|a| *a as i64).collect();
                let small = Small::new().secret("x", (&shape, x.clone())).integers("axes", &names);
                small.node(op, &["x", "axes"], "y", vec![int("keepdims", keep)])
            };
            let groups = groups(&axes);
            small("ReduceMean").check("ReduceMean", &groups.iter().map(mean).collect::<Vec<_>>(), 1e-4);
            small("ReduceSum").check("ReduceSum", &groups.iter().map(|g| g.iter().sum()).collect::<Vec<f64>>(), 1e-3);
            small("ReduceMax").check("ReduceMax", &groups.iter().map(max).collect::<Vec<_>>(), 1e-4);
        }
    }
}

/// A function of one operand at given places.
fn at(op: &str, x: Vec<f64>, f: impl Fn(f64) -> f64, tolerance: f64) {
    let expected: Vec<f64> = x.iter().map(|x| f(*x)).collect();
    let shape = [x.len()];
    Small::new().secret("x", (&shape, x)).node(op, &["x"], "y", vec![]).check(op, &expected, tolerance);
}

/// A function of two operands.
fn binary(op: &str, (shape_a, a): Values, (shape_b, b): Values, expected: &[f64], tolerance: f64) {
    Small::new()
        .secret("a", (shape_a, a))
        .secret("b", (shape_b, b))
        .node(op, &["a", "b"], "y", vec![])
        .check(op, expected, tolerance);
}

#[test]
fn roots_and_quotients() {
    unary("Sqrt", 0.0, 50.0, libm::sqrt, 2e-3);
    unary("Sqrt", 0.5, 900.0, libm::sqrt, 1e-3);
    // Inputs are rounded to 2^−17, which 1/x² magnifies.
    unary("Reciprocal", 0.05, 8.0, |x| 1.0 / x, 5e-3);
    unary("Reciprocal", 3.0, 300.0, |x| 1.0 / x, 5e-5);
    unary("Reciprocal", -9.0, -0.5, |x| 1.0 / x, 2e-4);
    let both: Vec<f64> = line(0.25, 20.0, 500).into_iter().flat_map(|x| [x, -x]).collect();
    at("Reciprocal", both, |x| 1.0 / x, 5e-4);

    let (a, b) = (mixed(60, 30.0), line(0.5, 700.0, 60));
    let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    binary("Div", (&[3, 4, 5], a.clone()), (&[3, 4, 5], b), &expected, 2e-3);
    let rows = [0.3, 1.7, -25.0];
    let expected: Vec<f64> = a.iter().enumerate().map(|(i, a)| a / rows[i / 20]).collect();
    binary("Div", (&[3, 20], a.clone()), (&[3, 1], rows.to_vec()), &expected, 5e-3);
    // x / √(x² + 1/4): the root is never made.
    let expected: Vec<f64> = a.iter().map(|a| a / libm::sqrt(a * a + 0.25)).collect();
    Small::new()
        .secret("a", (&[60], a))
        .floats("half", &[0.25])
        .node("Mul", &["a", "a"], "square", vec![])
        .node("Add", &["square", "half"], "sum", vec![])
        .node("Sqrt", &["sum"], "root", vec![])
        .node("Div", &["a", "root"], "y", vec![])
        .check("x / √(x² + 1/4)", &expected, 1e-3);
}

#[test]
fn exponentials_logarithms_and_powers() {
    unary("Exp", -9.0, 2.0, libm::exp, 3e-3);
    unary("Exp", -20.0, -1.0, libm::exp, 1e-4);
    unary("Log", 0.02, 40.0, libm::log, 1e-3);
    unary("Log", 1.0, 2000.0, libm::log, 1e-4);
    unary("Softplus", -30.0, 30.0, |x| libm::log1p(libm::exp(-x.abs())) + x.max(0.0), 5e-4);
    for (p, from, to, tolerance) in [
        (3.0, -3.0, 3.0, 2e-3),
        (4.0, -2.0, 2.0, 2e-3),
        (0.5, 0.1, 9.0, 1e-3),
        (-0.5, 0.1, 9.0, 1e-3),
        (-2.0, 0.5, 4.0, 1e-3),
        (1.7, 0.5, 4.0, 3e-3),
    ] {
        let x = line(from, to, 400);
        let expected: Vec<f64> = x.iter().map(|x| libm::pow(*x, f64::from(p as f32))).collect();
        Small::new().secret("x", (&[400], x)).floats("p", &[p]).node("Pow", &["x", "p"], "y", vec![]).check(
            &format!("Pow {p}"),
            &expected,
            tolerance,
        );
    }
}

#[test]
fn choices() {
    let (a, b) = (mixed(48, 5.0), mixed(60, 5.0)[12..].to_vec());
    let pair = |f: fn(f64, f64) -> f64| -> Vec<f64> { a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect() };
    let shape: [usize; 2] = [6, 8];
    let ab = || ((&shape[..], a.clone()), (&shape[..], b.clone()));
    let run = |op: &str, f: fn(f64, f64) -> f64| binary(op, ab().0, ab().1, &pair(f), 5e-5);
    run("Max", f64::max);
    run("Min", f64::min);
    run("Less", |a, b| f64::from(u8::from(a < b)));
    run("Greater", |a, b| f64::from(u8::from(a > b)));
    run("LessOrEqual", |a, b| f64::from(u8::from(a <= b)));
    run("GreaterOrEqual", |a, b| f64::from(u8::from(a >= b)));
    at("Abs", a.clone(), f64::abs, 5e-5);
    at("Relu", a.clone(), |x| x.max(0.0), 5e-5);
    at("Sign", vec![-3.0, 0.0, 2.0, -0.01, 0.01], |x| if x == 0.0 { 0.0 } else { x.signum() }, 0.0);
    let whole: Vec<f64> = a.iter().map(|x| x.round()).collect();
    let same: Vec<f64> = whole.iter().map(|x| f64::from(u8::from(*x == 2.0))).collect();
    Small::new()
        .secret("a", (&shape, whole))
        .floats("two", &[2.0])
        .node("Equal", &["a", "two"], "y", vec![])
        .check("Equal", &same, 0.0);
    let clipped: Vec<f64> = a.iter().map(|x| x.clamp(-1.5, 2.0)).collect();
    Small::new()
        .secret("a", (&shape, a.clone()))
        .floats("low", &[-1.5])
        .floats("high", &[2.0])
        .node("Clip", &["a", "low", "high"], "y", vec![])
        .check("Clip", &clipped, 5e-5);
    let chosen = pair(|a, b| if a < b { a } else { -b });
    Small::new()
        .secret("a", (&shape, a.clone()))
        .secret("b", (&shape, b.clone()))
        .node("Less", &["a", "b"], "less", vec![])
        .node("Neg", &["b"], "minus", vec![])
        .node("Where", &["less", "a", "minus"], "y", vec![])
        .check("Where", &chosen, 5e-5);
    let (low, high) = (-1.0, 1.0);
    let between: Vec<f64> = a.iter().map(|a| if *a > low && *a < high { *a } else { 0.0 }).collect();
    Small::new()
        .secret("a", (&shape, a.clone()))
        .floats("low", &[low])
        .floats("high", &[high])
        .node("Greater", &["a", "low"], "above", vec![])
        .node("Less", &["a", "high"], "below", vec![])
        .node("And", &["above", "below"], "inside", vec![])
        .node("Cast", &["inside"], "factor", vec![int("to", 1)])
        .node("Mul", &["a", "factor"], "y", vec![])
        .check("Cast of And", &between, 5e-5);
}

#[test]
fn movements_and_public_choices() {
    let x = mixed(48, 5.0);
    let every: Vec<f64> = (0..48).filter(|i| i % 8 % 3 == 1).map(|i| x[i]).collect();
    Small::new()
        .secret("x", (&[6, 8], x.clone()))
        .integers("from", &[1])
        .integers("to", &[8])
        .integers("axes", &[1])
        .integers("steps", &[3])
        .node("Slice", &["x", "from", "to", "axes", "steps"], "y", vec![])
        .check("Slice with a step", &every, 5e-5);
    let picked: Vec<f64> = x.iter().enumerate().map(|(i, x)| if i % 8 < 3 { *x } else { 2.0 * x }).collect();
    let mut small = Small::new().secret("x", (&[6, 8], x)).floats("two", &[2.0]);
    let mask: Vec<i32> = (0..8).map(|i| i32::from(i < 3)).collect();
    small.graph.initializer.push(TensorProto {
        name: "mask".into(),
        dims: vec![8],
        data_type: DataType::BOOL as i32,
        int32_data: mask,
        ..TensorProto::default()
    });
    let small = small.node("Mul", &["x", "two"], "twice", vec![]);
    small.node("Where", &["mask", "x", "twice"], "y", vec![]).check("Where of a public mask", &picked, 5e-5);
}

/// A divisor that comes near to zero is refused, with what was seen.
#[test]
fn divisors_near_zero_are_refused() {
    let small = Small::new().secret("x", (&[8], line(-1.0, 1.0, 8).into_iter().chain([]).collect()));
    let small = small.node("Sub", &["x", "x"], "none", vec![]).node("Reciprocal", &["none"], "y", vec![]);
    let (model, options) = small.model();
    let errors = ombra_compiler::pipeline::compile(&model, None, &options).err().expect("1/0 is refused");
    assert_eq!(errors.iter().map(|e| e.code).collect::<Vec<_>>(), ["E0528"]);
    assert_eq!(errors[0].place.as_deref(), Some("/Reciprocal/y"));
}
