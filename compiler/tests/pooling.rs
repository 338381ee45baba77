//! Sentence encoders: the mean of the tokens that a mask keeps, and that mean divided by its length, for long prompts.

use fastrand::Rng;
use ombra_compiler::import;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_compiler::self_test::clear::step;
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Elements of a row.
const WIDTH: usize = 48;
/// Rows of the table.
const TOKENS: usize = 64;
/// Positions of the longest prompt.
const LONGEST: u64 = 2048;

/// A node, with attributes that are one integer.
fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) -> NodeProto {
    let attribute = |(name, i): &(&str, i64)| AttributeProto {
        name: (*name).into(),
        type_: AttributeType::INT.into(),
        i: *i,
        ..AttributeProto::default()
    };
    NodeProto {
        op_type: op.into(),
        name: format!("/{output}"),
        input: inputs.iter().map(|s| (*s).to_string()).collect(),
        output: vec![output.into()],
        attribute: attributes.iter().map(attribute).collect(),
        ..Default::default()
    }
}

fn ids(name: &str) -> ValueInfoProto {
    let size = |name: &str| Dimension { value: Some(dimension::Value::DimParam(name.into())), ..Default::default() };
    let shape = TensorShapeProto { dim: vec![size("batch"), size("seq")], ..Default::default() };
    let tensor =
        type_proto::Tensor { elem_type: DataType::INT64 as i32, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn tensor(name: &str, t: &Tensor) -> TensorProto {
    let dims = t.shape().iter().map(|d| *d as i64).collect();
    match t.dtype() {
        DType::F32 => TensorProto {
            name: name.into(),
            dims,
            data_type: DataType::FLOAT as i32,
            float_data: t.as_f32().unwrap().to_vec(),
            ..Default::default()
        },
        _ => TensorProto {
            name: name.into(),
            dims,
            data_type: DataType::INT64 as i32,
            int64_data: t.as_i64().unwrap().to_vec(),
            ..Default::default()
        },
    }
}

/// Weights of an encoder: a table, and scale and shift of the norm that its rows go through.
struct Encoder {
    table: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

/// How a library writes a masked mean.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Products with the mask, over its sum, which is limited.
    Product,
    /// Zeros where the mask says so, over the number of the others.
    Choice,
    /// The mask as the left side of a matrix product.
    MatrixProduct,
}

impl Encoder {
    fn new() -> Self {
        let mut random = Rng::with_seed(8);
        let mut drawn = |n: usize, size: f32| (0..n).map(|_| size * (2.0 * random.f32() - 1.0)).collect::<Vec<_>>();
        Encoder { table: drawn(TOKENS * WIDTH, 1.0), gamma: drawn(WIDTH, 2.0), beta: drawn(WIDTH, 0.5) }
    }

    /// The model that gives the mean of the rows that the mask keeps, in a form of some library, divided by its length where
    /// `normalised`.
    fn model(&self, form: Form, normalised: bool) -> Model {
        let f = |shape: &[usize], values: &[f32]| Tensor::f32(shape, values.to_vec()).unwrap();
        let one = Tensor::i64(&[1], vec![1]).unwrap();
        let last = Tensor::i64(&[1], vec![-1]).unwrap();
        let initializer = vec![
            tensor("table", &f(&[TOKENS, WIDTH], &self.table)),
            tensor("gamma", &f(&[WIDTH], &self.gamma)),
            tensor("beta", &f(&[WIDTH], &self.beta)),
            tensor("axis", &one),
            tensor("last", &last),
            tensor("least_count", &f(&[], &[1e-9])),
            tensor("least_length", &f(&[], &[1e-12])),
            tensor("zero", &f(&[], &[0.0])),
        ];
        let mut nodes = vec![
            node("Gather", &["table", "input_ids"], "rows", &[("axis", 0)]),
            node("LayerNormalization", &["rows", "gamma", "beta"], "hidden", &[("axis", -1)]),
        ];
        let float = [("to", DataType::FLOAT as i64)];
        nodes.extend(match form {
            Form::Product => vec![
                node("Unsqueeze", &["attention_mask", "last"], "column", &[]),
                node("Shape", &["hidden"], "shape", &[]),
                node("Expand", &["column", "shape"], "expanded", &[]),
                node("Cast", &["expanded"], "mask", &float),
                node("Mul", &["hidden", "mask"], "kept", &[]),
                node("ReduceSum", &["kept", "axis"], "sum", &[("keepdims", 0)]),
                node("ReduceSum", &["mask", "axis"], "count", &[("keepdims", 0)]),
                node("Clip", &["count", "least_count"], "limited", &[]),
                node("Div", &["sum", "limited"], "mean", &[]),
            ],
            Form::Choice => vec![
                node("Unsqueeze", &["attention_mask", "last"], "column", &[]),
                node("Cast", &["column"], "condition", &[("to", DataType::BOOL as i64)]),
                node("Where", &["condition", "hidden", "zero"], "kept", &[]),
                node("ReduceSum", &["kept", "axis"], "sum", &[("keepdims", 0)]),
                node("ReduceSum", &["attention_mask", "axis"], "whole_count", &[("keepdims", 1)]),
                node("Cast", &["whole_count"], "count", &float),
                node("Div", &["sum", "count"], "mean", &[]),
            ],
            Form::MatrixProduct => vec![
                node("Unsqueeze", &["attention_mask", "axis"], "row", &[]),
                node("Cast", &["row"], "mask", &float),
                node("MatMul", &["mask", "hidden"], "sums", &[]),
                node("Squeeze", &["sums", "axis"], "sum", &[]),
                node("ReduceSum", &["mask", "last"], "count", &[("keepdims", 0)]),
                node("Div", &["sum", "count"], "mean", &[]),
            ],
        });
        if normalised {
            nodes.push(node("ReduceL2", &["mean", "last"], "length", &[("keepdims", 1)]));
            nodes.push(node("Clip", &["length", "least_length"], "divisor", &[]));
            nodes.push(node("Div", &["mean", "divisor"], "unit", &[]));
        }
        let output = if normalised { "unit" } else { "mean" };
        let graph = GraphProto {
            input: vec![ids("input_ids"), ids("attention_mask")],
            initializer,
            node: nodes,
            output: vec![ValueInfoProto { name: output.into(), ..Default::default() }],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { version: 18, ..Default::default() };
        let proto =
            ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() };
        Model::from_proto(proto, Path::new("encoder.onnx")).unwrap()
    }

    /// The mean in double precision.
    fn mean(&self, ids: &[i64], mask: &[i64]) -> Vec<f64> {
        let (mut sum, mut count) = (vec![0.0; WIDTH], 0.0);
        for (id, _) in ids.iter().zip(mask).filter(|(_, keep)| **keep == 1) {
            let row: Vec<f64> = self.table[*id as usize * WIDTH..][..WIDTH].iter().map(|x| f64::from(*x)).collect();
            let centre = row.iter().sum::<f64>() / WIDTH as f64;
            let variance = row.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / WIDTH as f64;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            for (((sum, x), g), b) in sum.iter_mut().zip(&row).zip(&self.gamma).zip(&self.beta) {
                *sum += (x - centre) * scale * f64::from(*g) + f64::from(*b);
            }
            count += 1.0;
        }
        sum.iter().map(|x| x / f64::max(count, 1e-9)).collect()
    }
}

fn options() -> Options {
    let max = BTreeMap::from([("seq".to_string(), LONGEST), ("batch".to_string(), 2)]);
    Options { sizes: import::Options { max, ..import::Options::default() }, ..Options::default() }
}

/// What a plan reveals of a prompt, in the clear.
fn found(compiled: &Compiled, model: &Model, ids: &[i64], mask: &[i64]) -> Vec<f64> {
    let row = |values: &[i64]| Tensor::i64(&[1, values.len()], values.to_vec()).unwrap();
    let inputs = BTreeMap::from([("input_ids".to_string(), row(ids)), ("attention_mask".to_string(), row(mask))]);
    let outcome = step(compiled, model, &inputs).unwrap();
    let module = &compiled.plan.module;
    let slot = module.outputs.iter().position(|o| o.name == "mean" || o.name == "unit").unwrap();
    let reveals = |n: &&ombra_ir::module::Node| matches!(n.op, Op::Reveal { slot: s } if s as usize == slot);
    let (_, scale) = module.ops.iter().find(reveals).unwrap().ty.as_ring().unwrap();
    outcome.outputs[slot].as_ref().unwrap().decode(scale).unwrap()
}

/// Prompts and masks: short, long, padded on either side, one token, none.
fn prompts() -> Vec<(Vec<i64>, Vec<i64>)> {
    let mut random = Rng::with_seed(9);
    let mut prompt = |n: usize, keep: std::ops::Range<usize>| {
        let ids = (0..n).map(|_| random.i64(0..TOKENS as i64)).collect();
        (ids, (0..n).map(|i| i64::from(keep.contains(&i))).collect())
    };
    vec![prompt(3, 0..3), prompt(500, 0..500), prompt(700, 0..41), prompt(90, 30..90), prompt(5, 4..5), prompt(4, 0..0)]
}

#[test]
fn a_masked_mean_of_long_prompts_is_proven_and_exact() {
    let encoder = Encoder::new();
    for form in [Form::Product, Form::Choice, Form::MatrixProduct] {
        let model = encoder.model(form, false);
        let compiled = compile(&model, None, &options()).unwrap_or_else(|e| panic!("{form:?}: {e:?}"));
        assert_eq!(compiled.plan.assumed, [], "{form:?}: a mean is no larger than what it is a mean of");
        // Without a limit, the mean of nothing is no number.
        for (ids, mask) in prompts().into_iter().filter(|(_, mask)| form == Form::Product || mask.contains(&1)) {
            let (found, expected) = (found(&compiled, &model, &ids, &mask), encoder.mean(&ids, &mask));
            let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 2e-4, "{form:?}: {} of {} tokens: {error}", mask.iter().sum::<i64>(), ids.len());
        }
    }
}

#[test]
fn a_masked_mean_divided_by_its_length_compiles_for_long_prompts() {
    let encoder = Encoder::new();
    let model = encoder.model(Form::Product, true);
    let compiled = compile(&model, None, &options()).unwrap_or_else(|e| panic!("{e:?}"));
    // That no prompt's mean is zero is known to nobody.
    assert_eq!(compiled.plan.assumed.len(), 1, "{:?}", compiled.plan.assumed);
    for (ids, mask) in prompts().into_iter().filter(|(_, mask)| mask.contains(&1)) {
        let (found, mean) = (found(&compiled, &model, &ids, &mask), encoder.mean(&ids, &mask));
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        let error = found.iter().zip(&mean).map(|(a, b)| (a - b / length).abs()).fold(0.0, f64::max);
        assert!(error < 1e-3, "{} of {} tokens: {error}", mask.iter().sum::<i64>(), ids.len());
    }
    // A row over its own length is no longer than 1, whatever its elements are.
    let module = &compiled.plan.module;
    let revealed = module.outputs.iter().position(|o| o.name == "unit").unwrap();
    let reveals = |n: &&ombra_ir::module::Node| matches!(n.op, Op::Reveal { slot } if slot as usize == revealed);
    let ty = &module.ops.iter().find(reveals).unwrap().ty;
    assert!(u32::from(ty.bound) <= u32::from(ty.as_ring().unwrap().1) + 1, "{ty:?}");
}

/// A factor of whole numbers is encoded as it is, and its product is not truncated.
#[test]
fn a_mask_takes_no_fraction_bits() {
    let model = Encoder::new().model(Form::Product, false);
    let compiled = compile(&model, None, &options()).unwrap_or_else(|e| panic!("{e:?}"));
    let module = &compiled.plan.module;
    let masks: Vec<_> = module.ops.iter().filter(|n| matches!(n.op, Op::Encode { scale: 0, .. })).collect();
    assert!(masks.iter().any(|n| n.ty.bound == 1), "{masks:?}");
}
