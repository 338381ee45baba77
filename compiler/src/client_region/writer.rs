//! Names, constants and sizes of a region while it is written.

use crate::graph::{Graph, ValueId};
use ombra_ir::dim::Term;
use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::SIZE;
use ombra_ir::{Diagnostic, Dim, Result};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::Enum;
use std::collections::BTreeMap;

/// How names begin that are not the model's.
pub const OWN: &str = "%";

/// A region that is being written. Values are named by strings: those of the graph, and those on the way to them.
pub struct Writer<'a> {
    /// What is written.
    pub graph: &'a Graph,
    proto: GraphProto,
    tensors: Vec<(TensorProto, ValueId)>,
    names: BTreeMap<ValueId, String>,
    constants: BTreeMap<(i32, Vec<i64>, Vec<u8>), String>,
    sizes: BTreeMap<Vec<Dim>, String>,
    place: String,
    made: usize,
}

impl<'a> Writer<'a> {
    /// Nothing is written yet.
    pub fn new(graph: &'a Graph) -> Self {
        Writer {
            graph,
            proto: GraphProto { name: "client".into(), ..GraphProto::default() },
            tensors: Vec::new(),
            names: BTreeMap::new(),
            constants: BTreeMap::new(),
            sizes: BTreeMap::new(),
            place: String::new(),
            made: 0,
        }
    }

    /// Nodes written from now on come from the ONNX node `place`.
    pub fn enter(&mut self, place: &str) {
        self.place = place.to_owned();
    }

    /// The name of a value that was written.
    ///
    /// # Errors
    /// It was not.
    pub fn name(&self, id: ValueId) -> Result<String> {
        let missing = || Diagnostic::internal("E0548", format!("%{} is used before it is written", id.index()));
        self.names.get(&id).cloned().ok_or_else(missing)
    }

    /// Gives the value `id` its name.
    pub fn define(&mut self, id: ValueId, name: String) {
        self.names.insert(id, name);
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("{OWN}{}", self.made)
    }

    /// One node of one result; the name of the result.
    pub fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = self.fresh();
        self.proto.node.push(NodeProto {
            op_type: op.into(),
            // Unlike all names of values, so that an error of the client can name the place.
            name: format!("{OWN}{op}{output} {}", self.place),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// One node without attributes.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(op, inputs, Vec::new())
    }

    /// An input of the model.
    ///
    /// # Errors
    /// Its name is one of the compiler's own.
    pub fn input(&mut self, id: ValueId, name: &str) -> Result<String> {
        let node = self.graph.node(id)?;
        if name.starts_with(OWN) {
            let error = Diagnostic::unsupported("E0552", format!("an input is called `{}`", name.escape_debug()));
            return Err(error.note(format!("expected a name that does not begin with `{OWN}`: rename it")));
        }
        self.proto.input.push(self.info(name, node.dtype, &node.shape));
        Ok(name.to_owned())
    }

    /// The value `id` is the output `name`.
    ///
    /// # Errors
    /// It was not written.
    pub fn output(&mut self, name: &str, id: ValueId) -> Result<()> {
        let node = self.graph.node(id)?;
        self.place = name.to_owned();
        let from = self.name(id)?;
        self.op("Identity", &[&from]);
        if let Some(last) = self.proto.node.last_mut() {
            last.output = vec![name.to_owned()];
        }
        self.proto.output.push(self.info(name, node.dtype, &node.shape));
        Ok(())
    }

    /// A tensor of the graph whose elements are written with the file.
    ///
    /// # Errors
    /// Its size is symbolic.
    pub fn stored(&mut self, id: ValueId) -> Result<String> {
        let node = self.graph.node(id)?;
        let symbolic = || Diagnostic::internal("E0548", "a weight of symbolic size");
        let name = format!("{OWN}w{}", id.index());
        let dims = node.shape.iter().map(|d| d.as_constant().ok_or_else(symbolic)).collect::<Result<_>>()?;
        let doc_string = node.origin.value.clone();
        let entry = TensorProto {
            name: name.clone(),
            dims,
            data_type: element(node.dtype).value(),
            doc_string,
            ..TensorProto::default()
        };
        self.tensors.push((entry, id));
        Ok(name)
    }

    /// A constant that is written here, once however often it is used.
    pub fn constant(&mut self, tensor: &Tensor) -> String {
        let dims: Vec<i64> = tensor.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect();
        let raw: Vec<u8> = match tensor.data() {
            Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::Bool(v) => v.iter().map(|&x| u8::from(x)).collect(),
        };
        let key = (element(tensor.dtype()).value(), dims, raw);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh();
        self.constants.insert(key, name.clone());
        name
    }

    /// A number.
    pub fn float(&mut self, value: f32) -> String {
        self.constant(&Tensor::scalar_f32(value))
    }

    /// An integer.
    pub fn int(&mut self, value: i64) -> String {
        self.constant(&Tensor::scalar_i64(value))
    }

    /// A list of integers.
    ///
    /// # Errors
    /// None for lists that fit into memory.
    pub fn ints(&mut self, values: &[i64]) -> Result<String> {
        Ok(self.constant(&Tensor::i64(&[values.len()], values.to_vec())?))
    }

    /// A list of axes.
    ///
    /// # Errors
    /// None for axes of a tensor.
    pub fn axes(&mut self, axes: &[usize]) -> Result<String> {
        self.ints(&axes.iter().map(|&a| axis(a)).collect::<Result<Vec<_>>>()?)
    }

    /// The list of sizes `dims`, as numbers if they are, else computed from the symbols.
    ///
    /// # Errors
    /// None for sizes of the graph.
    pub fn sizes(&mut self, dims: &[Dim]) -> Result<String> {
        if let Some(numbers) = dims.iter().map(Dim::as_constant).collect::<Option<Vec<i64>>>() {
            return self.ints(&numbers);
        }
        if let Some(known) = self.sizes.get(dims) {
            return Ok(known.clone());
        }
        let name = match dims {
            [one] => self.polynomial(one)?,
            _ => {
                let parts = dims.iter().map(|d| self.sizes(std::slice::from_ref(d))).collect::<Result<Vec<_>>>()?;
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                self.node("Concat", &parts, vec![int("axis", 0)])
            }
        };
        self.sizes.insert(dims.to_vec(), name.clone());
        Ok(name)
    }

    /// One size as a scalar.
    ///
    /// # Errors
    /// None for sizes of the graph.
    pub fn size(&mut self, dim: &Dim) -> Result<String> {
        if let Some(number) = dim.as_constant() {
            return Ok(self.int(number));
        }
        let list = self.sizes(std::slice::from_ref(dim))?;
        Ok(self.op("Squeeze", &[&list]))
    }

    /// A symbolic size as a list of one integer.
    fn polynomial(&mut self, dim: &Dim) -> Result<String> {
        if let Some(sym) = dim.as_symbol() {
            let info = self.graph.dims.info(sym);
            let info = info.ok_or_else(|| Diagnostic::internal("E0548", "a size that the graph does not know"))?;
            let name = format!("{SIZE}{}", info.name);
            self.proto.input.push(self.info(&name, DType::I64, &[Dim::constant(1)]));
            return Ok(name);
        }
        let mut sum = match dim.constant_term() {
            0 => None,
            number => Some(self.ints(&[number])?),
        };
        for Term { coefficient, symbols } in dim.terms() {
            let mut product = match coefficient {
                1 => None,
                number => Some(self.ints(&[*number])?),
            };
            for sym in symbols {
                let factor = self.sizes(&[Dim::from(*sym)])?;
                product = Some(self.joined("Mul", product, factor));
            }
            if let Some(product) = product {
                sum = Some(self.joined("Add", sum, product));
            }
        }
        sum.ok_or_else(|| Diagnostic::internal("E0548", "a size without terms"))
    }

    fn joined(&mut self, op: &str, left: Option<String>, right: String) -> String {
        match left {
            Some(left) => self.op(op, &[&left, &right]),
            None => right,
        }
    }

    fn info(&self, name: &str, dtype: DType, shape: &[Dim]) -> ValueInfoProto {
        let size = |d: &Dim| match d.as_constant() {
            Some(number) => dimension::Value::DimValue(number),
            None => dimension::Value::DimParam(self.graph.dims.show(d)),
        };
        let dim = shape.iter().map(|d| Dimension { value: Some(size(d)), ..Dimension::default() }).collect();
        let tensor = type_proto::Tensor {
            elem_type: element(dtype).value(),
            shape: Some(TensorShapeProto { dim, ..TensorShapeProto::default() }).into(),
            ..type_proto::Tensor::default()
        };
        let type_ = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: name.into(), type_: Some(type_).into(), ..ValueInfoProto::default() }
    }

    /// The finished graph, and the tensors whose elements are to be written with it.
    pub fn finish(mut self) -> (GraphProto, Vec<(TensorProto, ValueId)>) {
        let made = self.constants.into_iter().map(|((data_type, dims, raw_data), name)| TensorProto {
            name,
            dims,
            data_type,
            raw_data,
            ..TensorProto::default()
        });
        self.proto.initializer = made.collect();
        (self.proto, self.tensors)
    }
}

/// The element type in ONNX.
pub fn element(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::FLOAT,
        DType::I64 => DataType::INT64,
        DType::Bool => DataType::BOOL,
    }
}

/// The attribute `name` with an integer.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, type_: AttributeType::INT.into(), ..AttributeProto::default() }
}

/// The attribute `name` with a number.
pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, type_: AttributeType::FLOAT.into(), ..AttributeProto::default() }
}

/// The attribute `name` with a list of integers.
pub fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { name: name.into(), ints, type_: AttributeType::INTS.into(), ..AttributeProto::default() }
}

/// The attribute `name` with a word.
pub fn text(name: &str, s: &str) -> AttributeProto {
    let s = s.as_bytes().to_vec();
    AttributeProto { name: name.into(), s, type_: AttributeType::STRING.into(), ..AttributeProto::default() }
}

/// An axis as ONNX counts.
///
/// # Errors
/// None for axes of a tensor.
pub fn axis(at: usize) -> Result<i64> {
    i64::try_from(at).map_err(|_| Diagnostic::internal("E0548", "an axis beyond 63 bits"))
}
