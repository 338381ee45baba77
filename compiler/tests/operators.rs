//! Single operators on inputs of the client, of everybody, and of the compiler: the same values in all three.

use std::collections::BTreeMap;
use std::path::Path;

use ombra_compiler::graph::eval;
use ombra_compiler::import::{Options, import, load_weight};
use ombra_compiler::onnx::Model;
use ombra_ir::plain::{DType, Tensor};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, ..AttributeProto::default() }
}

fn f(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::f32(shape, values.to_vec()).unwrap()
}

fn i(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::i64(shape, values.to_vec()).unwrap()
}

fn counted(shape: &[usize]) -> Tensor {
    f(shape, &(0..shape.iter().product::<usize>()).map(|v| v as f32).collect::<Vec<_>>())
}

fn declared(name: &str, tensor: &Tensor) -> ValueInfoProto {
    let size = |d: &usize| Dimension { value: Some(dimension::Value::DimValue(*d as i64)), ..Default::default() };
    let shape = TensorShapeProto { dim: tensor.shape().iter().map(size).collect(), ..Default::default() };
    let kind = if tensor.dtype() == DType::F32 { DataType::FLOAT } else { DataType::INT64 };
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

/// A test of one operator of operator set `opset`.
struct Case {
    op: &'static str,
    opset: i64,
    attributes: Vec<AttributeProto>,
    /// What goes in; integers are initializers.
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Case {
    fn new(op: &'static str, attributes: Vec<AttributeProto>, inputs: Vec<Tensor>, output: Tensor) -> Case {
        Case { op, opset: 23, attributes, inputs, outputs: vec![output] }
    }

    fn check(&self) {
        let named = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let (inputs, outputs) = (named("x", self.inputs.len()), named("y", self.outputs.len()));
        let given: BTreeMap<String, Tensor> = inputs.iter().cloned().zip(self.inputs.iter().cloned()).collect();
        let (free, fixed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            given.into_iter().partition(|(_, t)| t.dtype() == DType::F32);
        let initializer = fixed.iter().map(|(name, t)| TensorProto {
            name: name.clone(),
            dims: t.shape().iter().map(|d| *d as i64).collect(),
            data_type: DataType::INT64 as i32,
            int64_data: t.as_i64().unwrap().to_vec(),
            ..Default::default()
        });
        let node = NodeProto {
            op_type: self.op.into(),
            input: inputs.clone(),
            output: outputs.clone(),
            attribute: self.attributes.clone(),
            ..Default::default()
        };
        let graph = GraphProto {
            input: free.iter().map(|(name, t)| declared(name, t)).collect(),
            initializer: initializer.collect(),
            node: vec![node],
            output: outputs.into_iter().map(|name| ValueInfoProto { name, ..Default::default() }).collect(),
            ..Default::default()
        };
        let opset = OperatorSetIdProto { version: self.opset, ..Default::default() };
        let proto =
            ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() };
        let model = Model::from_proto(proto, Path::new("m.onnx")).unwrap();
        let client = Options::default();
        let public = Options { public_inputs: free.keys().cloned().collect(), ..Options::default() };
        let compiler = Options { constants: free.clone(), ..Options::default() };
        for options in [client, public, compiler] {
            let graph = import(&model, &options).unwrap_or_else(|e| panic!("{}: {e:?}", self.op)).graph;
            let found = eval::evaluate(&graph, &|name: &str| load_weight(&model, name), &free).unwrap();
            for (found, expected) in found.iter().zip(&self.outputs) {
                assert_eq!(found.shape(), expected.shape(), "{}", self.op);
                let pairs = found.as_f32().unwrap().iter().zip(expected.as_f32().unwrap());
                for (found, expected) in pairs {
                    assert!((found - expected).abs() < 1e-5, "{}: {found}, expected {expected}", self.op);
                }
            }
        }
    }
}

#[test]
fn movements_by_public_indices() {
    let x = counted(&[2, 3]);
    Case::new(
        "Tile",
        vec![],
        vec![x.clone(), i(&[2], &[2, 1])],
        f(&[4, 3], &[0., 1., 2., 3., 4., 5., 0., 1., 2., 3., 4., 5.]),
    )
    .check();
    Case::new("Trilu", vec![int("upper", 0)], vec![counted(&[2, 2])], f(&[2, 2], &[0., 0., 2., 3.])).check();
    let pads = i(&[4], &[1, 0, 0, -1]);
    Case::new("Pad", vec![], vec![x.clone(), pads], f(&[3, 2], &[0., 0., 0., 1., 3., 4.])).check();
    let at = i(&[2, 2], &[0, -1, 1, 1]);
    Case::new("GatherElements", vec![int("axis", 1)], vec![x.clone(), at.clone()], f(&[2, 2], &[0., 2., 4., 4.]))
        .check();
    Case::new("GatherND", vec![], vec![x.clone(), at], f(&[2], &[2., 4.])).check();
    let shared =
        Case::new("GatherND", vec![int("batch_dims", 1)], vec![x.clone(), i(&[2, 1], &[2, 0])], f(&[2], &[2., 3.]));
    shared.check();
    let update = f(&[1, 3], &[7., 8., 9.]);
    Case::new("ScatterND", vec![], vec![x.clone(), i(&[1, 1], &[-1]), update], f(&[2, 3], &[0., 1., 2., 7., 8., 9.]))
        .check();
    let add = AttributeProto { name: "reduction".into(), s: b"add".to_vec(), ..Default::default() };
    let twice = f(&[2, 3], &[1., 1., 1., 10., 10., 10.]);
    let sums = f(&[2, 3], &[11., 12., 13., 3., 4., 5.]);
    Case::new("ScatterND", vec![add], vec![x.clone(), i(&[2, 1], &[0, -2]), twice], sums).check();
    let one = |v| i(&[1], &[v]);
    let slice = vec![counted(&[5]), one(-1), one(-6), one(0), one(-2)];
    Case::new("Slice", vec![], slice, f(&[3], &[4., 2., 0.])).check();
}

#[test]
fn vectors_times_matrices() {
    let (v, m) = (counted(&[2]), counted(&[2, 2]));
    Case::new("MatMul", vec![], vec![v.clone(), m.clone()], f(&[2], &[2., 3.])).check();
    Case::new("MatMul", vec![], vec![m, v.clone()], f(&[2], &[1., 3.])).check();
    Case::new("MatMul", vec![], vec![v.clone(), v], f(&[], &[1.])).check();
}

#[test]
fn norms_over_several_axes_and_their_statistics() {
    let x = f(&[1, 2, 2], &[1., 3., 5., 7.]);
    let w = f(&[2, 2], &[1., 1., 2., 2.]);
    // Mean 4, variance 5.
    let unit = 1.0 / 5f32.sqrt();
    let normed = f(&[1, 2, 2], &[-3. * unit, -unit, 2. * unit, 6. * unit]);
    Case {
        op: "LayerNormalization",
        opset: 17,
        attributes: vec![int("axis", 1), AttributeProto { name: "epsilon".into(), f: 0.0, ..Default::default() }],
        inputs: vec![x.clone(), w.clone()],
        outputs: vec![normed, f(&[1, 1, 1], &[4.]), f(&[1, 1, 1], &[unit])],
    }
    .check();
    let root = 1.0 / 21f32.sqrt();
    let normed = f(&[1, 2, 2], &[root, 3. * root, 10. * root, 14. * root]);
    Case::new("RMSNormalization", vec![int("axis", -2)], vec![x, w], normed).check();
    Case::new("ReduceL2", vec![], vec![f(&[2], &[3., 4.])], f(&[1], &[5.])).check();
}

#[test]
fn softmax_of_old_operator_sets_takes_all_axes_that_follow() {
    let quarter = f(&[1, 2, 2], &[0.25; 4]);
    let ones = f(&[1, 2, 2], &[1.0; 4]);
    Case { op: "Softmax", opset: 11, attributes: vec![], inputs: vec![ones], outputs: vec![quarter] }.check();
}

#[test]
fn powers_by_tensors() {
    let (x, e) = (f(&[3], &[1., 2., 3.]), i(&[3], &[2, 3, 0]));
    Case::new("Pow", vec![], vec![x, e], f(&[3], &[1., 8., 1.])).check();
}
