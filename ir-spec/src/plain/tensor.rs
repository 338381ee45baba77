//! Dense row-major tensors of public values.

use serde::{Deserialize, Serialize};

use crate::{Diagnostic, Result};

/// Element type of a public value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// 32-bit float; wider and narrower floats are converted to it.
    F32,
    /// 64-bit integer; narrower integers are converted to it.
    I64,
    /// Truth value.
    Bool,
}

impl DType {
    /// `f32`, `i64` or `bool`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::Bool => "bool",
        }
    }
}

/// Elements in row-major order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Data {
    /// Floats.
    F32(Vec<f32>),
    /// Integers.
    I64(Vec<i64>),
    /// Booleans.
    Bool(Vec<bool>),
}

/// A public tensor: the product of `shape` is the number of elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawTensor")]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

#[derive(Deserialize)]
struct RawTensor {
    shape: Vec<usize>,
    data: Data,
}

impl TryFrom<RawTensor> for Tensor {
    type Error = String;

    fn try_from(raw: RawTensor) -> std::result::Result<Self, String> {
        Tensor::new(raw.shape, raw.data).map_err(|e| e.message)
    }
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Data::F32(_) => DType::F32,
            Data::I64(_) => DType::I64,
            Data::Bool(_) => DType::Bool,
        }
    }
}

/// Product of `shape`, or an error when it overflows.
pub fn volume(shape: &[usize]) -> Result<usize> {
    let mut product = 1usize;
    let mut overflow = false;
    for d in shape {
        match product.checked_mul(*d) {
            Some(p) => product = p,
            None => overflow = true,
        }
    }
    // A zero anywhere makes the tensor empty whatever the other sizes are.
    if shape.contains(&0) {
        return Ok(0);
    }
    if overflow {
        return Err(Diagnostic::input("E0210", format!("a tensor of shape {shape:?} has too many elements")));
    }
    Ok(product)
}

impl Tensor {
    /// A tensor of `shape`. An error when the number of elements is not the product of `shape`.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self> {
        let expected = volume(&shape)?;
        if expected != data.len() {
            let found = data.len();
            return Err(Diagnostic::input("E0210", format!("a tensor of shape {shape:?} has {found} elements"))
                .note(format!("expected {expected}")));
        }
        Ok(Tensor { shape, data })
    }

    /// A float tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        Tensor::new(shape.to_vec(), Data::F32(data))
    }

    /// An integer tensor.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Result<Self> {
        Tensor::new(shape.to_vec(), Data::I64(data))
    }

    /// A tensor of booleans.
    pub fn bool(shape: &[usize], data: Vec<bool>) -> Result<Self> {
        Tensor::new(shape.to_vec(), Data::Bool(data))
    }

    /// A float without axes.
    pub fn scalar_f32(value: f32) -> Self {
        Tensor { shape: Vec::new(), data: Data::F32(vec![value]) }
    }

    /// An integer without axes.
    pub fn scalar_i64(value: i64) -> Self {
        Tensor { shape: Vec::new(), data: Data::I64(vec![value]) }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements in row-major order.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Shape and elements.
    pub fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The floats, or an error for another element type.
    pub fn as_f32(&self) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            _ => Err(self.wrong(DType::F32)),
        }
    }

    /// The integers, or an error for another element type.
    pub fn as_i64(&self) -> Result<&[i64]> {
        match &self.data {
            Data::I64(v) => Ok(v),
            _ => Err(self.wrong(DType::I64)),
        }
    }

    /// The booleans, or an error for another element type.
    pub fn as_bool(&self) -> Result<&[bool]> {
        match &self.data {
            Data::Bool(v) => Ok(v),
            _ => Err(self.wrong(DType::Bool)),
        }
    }

    /// The only element, as a float; `None` for another type or number of elements.
    pub fn single_f32(&self) -> Option<f32> {
        match &self.data {
            Data::F32(v) if v.len() == 1 => v.first().copied(),
            _ => None,
        }
    }

    /// The same elements with other sizes.
    pub fn with_shape(self, shape: Vec<usize>) -> Result<Self> {
        Tensor::new(shape, self.data)
    }

    fn wrong(&self, expected: DType) -> Diagnostic {
        let found = self.dtype().name();
        Diagnostic::input("E0211", format!("expected a tensor of {}, found {found}", expected.name()))
    }
}
