//! Single operators through small models, and models that are wrong or hostile.

use std::path::Path;

use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};

use super::*;

enum Size {
    N(i64),
    S(&'static str),
}

use Size::{N, S};

fn info(name: &str, kind: DataType, sizes: &[Size]) -> ValueInfoProto {
    let dim = sizes.iter().map(|s| Dimension {
        value: Some(match s {
            N(n) => dimension::Value::DimValue(*n),
            S(s) => dimension::Value::DimParam((*s).into()),
        }),
        ..Default::default()
    });
    let shape = TensorShapeProto { dim: dim.collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    let name = format!("/layers.1/{op}");
    NodeProto {
        op_type: op.into(),
        name,
        input: names(inputs),
        output: names(outputs),
        attribute: attributes,
        ..Default::default()
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    let type_ = onnx_protobuf::attribute_proto::AttributeType::INT.into();
    AttributeProto { name: name.into(), i, type_, ..Default::default() }
}

fn ints(name: &str, shape: &[i64], values: &[i64]) -> TensorProto {
    let data_type = DataType::INT64 as i32;
    TensorProto {
        name: name.into(),
        dims: shape.to_vec(),
        data_type,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn model(
    inputs: Vec<ValueInfoProto>,
    initializers: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    outputs: &[&str],
) -> Model {
    let outputs = outputs.iter().map(|name| ValueInfoProto { name: name.to_string(), ..Default::default() });
    let graph = GraphProto {
        input: inputs,
        initializer: initializers,
        node: nodes,
        output: outputs.collect(),
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: 18, ..Default::default() };
    let proto =
        ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() };
    Model::from_proto(proto, Path::new("m.onnx")).unwrap()
}

fn x() -> ValueInfoProto {
    info("x", DataType::FLOAT, &[S("b"), S("n"), N(12)])
}

/// The shape of output `y` of nodes on `x [b, n, 12]`, or the errors.
fn shape_of(initializers: Vec<TensorProto>, nodes: Vec<NodeProto>) -> std::result::Result<String, Vec<Diagnostic>> {
    let imported = import(&model(vec![x()], initializers, nodes, &["y"]), &Options::default())?;
    let graph = imported.graph;
    Ok(graph.dims.show_shape(graph.shape(graph.outputs[0].value)))
}

#[test]
fn reshape_copies_infers_and_refuses() {
    let reshape = |target: &[i64], zero: i64| {
        let n = target.len() as i64;
        let reshape = node("Reshape", &["x", "s"], &["y"], vec![int("allowzero", zero)]);
        shape_of(vec![ints("s", &[n], target)], vec![reshape])
    };
    assert_eq!(reshape(&[0, 0, 3, 4], 0).unwrap(), "[b, n, 3, 4]");
    assert_eq!(reshape(&[0, -1], 0).unwrap(), "[b, 12*n]");
    assert_eq!(reshape(&[-1, 6], 0).unwrap(), "[2*b*n, 6]");
    for (target, zero) in [
        (vec![-1, -1], 0),
        (vec![5, -1], 0),
        (vec![0, 0, 12], 1),
        (vec![0, 0, 0, 0], 0),
        (vec![-2, -1], 0),
        (vec![i64::MAX, -1], 0),
    ] {
        assert_eq!(reshape(&target, zero).unwrap_err().len(), 1, "{target:?}");
    }
}

#[test]
fn slices_count_and_clamp() {
    let slice = |start: i64, end: i64, axis: i64, step: i64| {
        let one = |name: &str, v| ints(name, &[1], &[v]);
        let slice = node("Slice", &["x", "s", "e", "a", "t"], &["y"], vec![]);
        shape_of(vec![one("s", start), one("e", end), one("a", axis), one("t", step)], vec![slice])
    };
    assert_eq!(slice(6, i64::MAX, -1, 1).unwrap(), "[b, n, 6]");
    assert_eq!(slice(0, -2, 2, 1).unwrap(), "[b, n, 10]");
    assert_eq!(slice(1, 12, 2, 2).unwrap(), "[b, n, 6]");
    assert_eq!(slice(-1, i64::MIN, 2, -1).unwrap(), "[b, n, 12]");
    assert_eq!(slice(-1, i64::MIN, 1, -1).unwrap(), "[b, n, 12]");
    assert_eq!(slice(0, i64::MAX, 1, 1).unwrap(), "[b, n, 12]");
    assert_eq!(slice(9, 3, 2, 1).unwrap(), "[b, n, 0]");
    assert_eq!(slice(100, 200, 2, 1).unwrap(), "[b, n, 0]");
    for (start, end, axis, step) in [(0, 5, 1, 1), (0, 5, 7, 1), (0, 5, 2, 0), (0, i64::MAX, 1, 3)] {
        assert_eq!(slice(start, end, axis, step).unwrap_err().len(), 1, "{start} {end} {axis} {step}");
    }
}

#[test]
fn splits_are_slices_and_shapes_are_sizes() {
    let split = node("Split", &["x"], &["a", "y", "c"], vec![int("axis", -1), int("num_outputs", 3)]);
    assert_eq!(shape_of(vec![], vec![split]).unwrap(), "[b, n, 4]");
    let sizes = node("Split", &["x", "parts"], &["a", "y"], vec![int("axis", 2)]);
    assert_eq!(shape_of(vec![ints("parts", &[2], &[5, 7])], vec![sizes]).unwrap(), "[b, n, 7]");
    let wrong = node("Split", &["x", "parts"], &["a", "y"], vec![int("axis", 2)]);
    assert!(shape_of(vec![ints("parts", &[2], &[5, 6])], vec![wrong]).is_err());
    let shape = node("Shape", &["x"], &["s"], vec![int("start", -2)]);
    let fill = node("ConstantOfShape", &["s"], &["z"], vec![]);
    let range = node("Size", &["z"], &["y"], vec![]);
    let imported = import(&model(vec![x()], vec![], vec![shape, fill, range], &["y"]), &Options::default()).unwrap();
    let value = imported.graph.op(imported.graph.outputs[0].value).unwrap();
    let ombra_ir::plain::Op::Sizes { values, .. } = value.tensor().unwrap() else { panic!("{value:?}") };
    assert_eq!(imported.graph.dims.show(&values[0]), "12*n");
}

#[test]
fn all_errors_at_once_and_only_those_that_matter() {
    let nodes = vec![
        node("NoSuchOperator", &["x"], &["a"], vec![]),
        node("Relu", &["a"], &["b"], vec![]),
        node("NorThisOne", &["b"], &["c"], vec![]),
        node("Softmax", &["x"], &["d"], vec![int("axis", 9)]),
        node("Unused", &["x"], &["unused"], vec![]),
        node("Add", &["c", "d"], &["y"], vec![]),
    ];
    let errors = shape_of(vec![], nodes).unwrap_err();
    let codes: Vec<_> = errors.iter().map(|e| e.code).collect();
    assert_eq!(codes, ["E0250", "E0250", "E0251"]);
    assert_eq!(errors[1].place.as_deref(), Some("node 2 \"/layers.1/NorThisOne\" (NorThisOne)"));
}

#[test]
fn a_secret_decides_nothing_public() {
    let cos = node("Cos", &["z"], &["y"], vec![]);
    let weight = TensorProto {
        name: "w".into(),
        dims: vec![12],
        data_type: DataType::FLOAT as i32,
        float_data: vec![0.5; 12],
        ..Default::default()
    };
    let mul = node("Mul", &["x", "w"], &["z"], vec![]);
    let parts = (vec![x()], vec![weight.clone()], vec![mul, cos.clone()]);
    let secret = import(&model(parts.0, parts.1, parts.2, &["y"]), &Options::default()).unwrap().graph;
    // It stays a secret's operator, which lowering refuses.
    assert_eq!(secret.node(secret.outputs[0].value).unwrap().owner, crate::graph::Owner::Secret);
    // A table that depends on weights alone is structure.
    let mul = node("Mul", &["w", "w"], &["z"], vec![]);
    let imported = import(&model(vec![x()], vec![weight], vec![mul, cos], &["y"]), &Options::default()).unwrap();
    assert!(imported.graph.constant(imported.graph.outputs[0].value).is_some());
    let reshape = node("Reshape", &["x", "s"], &["y"], vec![]);
    let ids = info("s", DataType::INT64, &[N(2)]);
    let errors = import(&model(vec![x(), ids], vec![], vec![reshape], &["y"]), &Options::default()).unwrap_err();
    assert_eq!(errors[0].code, "E0254");
}

#[test]
fn hostile_attributes_are_refused() {
    let cases: Vec<(Vec<TensorProto>, NodeProto)> = vec![
        (vec![], node("Transpose", &["x"], &["y"], vec![int("perm", 0)])),
        (vec![], node("Concat", &["x", "x"], &["y"], vec![int("axis", i64::MIN)])),
        (vec![], node("Concat", &[], &["y"], vec![])),
        (vec![], node("Gather", &["x"], &["y"], vec![])),
        (vec![], node("Gather", &["x", "x"], &["y"], vec![])),
        (vec![], node("Cast", &["x"], &["y"], vec![int("to", 1 << 40)])),
        (vec![], node("Split", &["x"], &["y"], vec![int("num_outputs", i64::MAX)])),
        (vec![ints("s", &[3], &[i64::MAX, i64::MAX, i64::MAX])], node("ConstantOfShape", &["s"], &["y"], vec![])),
        (vec![ints("s", &[3], &[1 << 20, 1 << 20, 1])], node("ConstantOfShape", &["s"], &["y"], vec![])),
        (vec![ints("s", &[1], &[-3])], node("ConstantOfShape", &["s"], &["y"], vec![])),
        (vec![ints("a", &[2], &[0, 0])], node("Unsqueeze", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[1], &[2])], node("Squeeze", &["x", "a"], &["y"], vec![])),
        (vec![], node("Gemm", &["x", "x"], &["y"], vec![])),
        (vec![], node("MatMul", &["x", "x"], &["y"], vec![])),
        (vec![], node("If", &["x"], &["y"], vec![])),
        (vec![], node("LayerNormalization", &["x", "x"], &["y"], vec![int("axis", i64::MIN)])),
        (vec![], node("RMSNormalization", &["x"], &["y"], vec![])),
        (vec![ints("a", &[3], &[0, 0, 0])], node("GatherElements", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[1, 4], &[0; 4])], node("GatherND", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[1, 1], &[0])], node("GatherND", &["x", "a"], &["y"], vec![int("batch_dims", i64::MAX)])),
        (vec![ints("a", &[], &[0])], node("ScatterND", &["x", "a", "x"], &["y"], vec![])),
        (vec![ints("a", &[2], &[1, 2])], node("Tile", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[3], &[1, 1, -1])], node("Tile", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[1], &[1])], node("Pad", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[6], &[0, 0, -13, 0, 0, 0])], node("Pad", &["x", "a"], &["y"], vec![])),
        (vec![ints("a", &[6], &[0, 0, i64::MIN, 0, 0, i64::MIN])], node("Pad", &["x", "a"], &["y"], vec![])),
    ];
    for (initializers, case) in cases {
        let op = case.op_type.clone();
        let errors = shape_of(initializers, vec![case]).expect_err(&op);
        assert_eq!(errors.len(), 1, "{op}: {errors:?}");
        assert!(errors[0].place.as_deref().is_some_and(|p| p.contains(&op)), "{errors:?}");
    }
}
