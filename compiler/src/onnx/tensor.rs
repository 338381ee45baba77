//! The elements of a `TensorProto`, whatever field holds them.
//!
//! The canonical form of a tensor is its elements as little-endian bytes, one after another, as in `raw_data`; a boolean
//! is one byte, 0 or 1. Typed fields are brought into that form: `float_data` for float and complex, `int32_data` for the
//! types of at most 32 bits except unsigned 32, the halves as their bits, `int64_data`, `uint64_data`, `double_data`.

use std::borrow::Cow;

use half::{bf16, f16};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use protobuf::Enum;

use super::external::ExternalFiles;

/// Elements that a tensor may have: a bound that no product of sizes may pass.
const MAX_ELEMENTS: usize = 1 << 40;

/// The element type of `tensor`.
///
/// # Errors
/// `E0120` when the number names no type known here.
pub fn element_type(tensor: &TensorProto) -> Result<DataType> {
    DataType::from_i32(tensor.data_type).filter(|kind| *kind != DataType::UNDEFINED).ok_or_else(|| {
        Diagnostic::unsupported("E0120", format!("element type {} is not known", tensor.data_type))
            .at(place(tensor))
            .note("expected one of the types of ONNX IR version 10, export with float, float16, bfloat16 or double")
    })
}

/// Bytes of one element of `kind`; nothing for strings and types smaller than a byte.
pub fn element_size(kind: DataType) -> Option<usize> {
    use DataType::*;
    match kind {
        UINT8 | INT8 | BOOL | FLOAT8E4M3FN | FLOAT8E4M3FNUZ | FLOAT8E5M2 | FLOAT8E5M2FNUZ => Some(1),
        UINT16 | INT16 | FLOAT16 | BFLOAT16 => Some(2),
        FLOAT | INT32 | UINT32 => Some(4),
        DOUBLE | INT64 | UINT64 | COMPLEX64 => Some(8),
        COMPLEX128 => Some(16),
        STRING | UINT4 | INT4 | UNDEFINED => None,
    }
}

/// Whether elements of `kind` are floating-point numbers that [`floats`](super::Model::floats) reads.
pub fn is_floating(kind: DataType) -> bool {
    matches!(kind, DataType::FLOAT | DataType::FLOAT16 | DataType::BFLOAT16 | DataType::DOUBLE)
}

/// The sizes of `tensor`, outermost first; none for a scalar.
///
/// # Errors
/// `E0121` when a size is negative or there are more elements than any model has.
pub fn shape(tensor: &TensorProto) -> Result<Vec<usize>> {
    let wrong = || {
        Diagnostic::input("E0121", format!("the shape {:?} is negative or too large", short(&tensor.dims)))
            .at(place(tensor))
    };
    let shape: Vec<usize> =
        tensor.dims.iter().map(|&d| usize::try_from(d)).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    let bounded = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)).filter(|n| *n <= MAX_ELEMENTS));
    bounded.map(|_| shape).ok_or_else(wrong)
}

/// Where `tensor` is, for a message.
pub(crate) fn place(tensor: &TensorProto) -> String {
    format!("tensor '{}'", tensor.name)
}

/// The first sizes of a shape that may be absurdly long.
fn short(dims: &[i64]) -> &[i64] {
    dims.get(..8).unwrap_or(dims)
}

/// Elements and bytes of `tensor`.
fn size(tensor: &TensorProto) -> Result<(DataType, usize, usize)> {
    let kind = element_type(tensor)?;
    let width = element_size(kind).ok_or_else(|| {
        Diagnostic::unsupported("E0120", format!("elements of type {kind:?} are not supported"))
            .at(place(tensor))
            .note("expected floating-point numbers, integers of whole bytes or booleans")
    })?;
    let count: usize = shape(tensor)?.iter().product();
    Ok((kind, count, count * width))
}

/// Checks that the data of `tensor` are as many as its shape says, without copying them. Types whose elements cannot be
/// read are let pass: a model may hold tensors that nothing uses.
pub(crate) fn check(tensor: &TensorProto, files: Option<&ExternalFiles>) -> Result<()> {
    shape(tensor)?;
    if DataType::from_i32(tensor.data_type).and_then(element_size).is_none() {
        return Ok(());
    }
    let (kind, count, size) = size(tensor)?;
    if is_external(tensor) {
        return match files {
            Some(files) if files.lacks(tensor) => {
                super::external::check_declared(tensor, size).map_err(|d| d.at(place(tensor)))
            }
            Some(files) => files.bytes(tensor, size).map(|_| ()).map_err(|d| d.at(place(tensor))),
            None => Ok(()),
        };
    }
    let fields = [
        ("raw_data", tensor.raw_data.len(), size),
        ("float_data", tensor.float_data.len(), if kind == DataType::COMPLEX64 { 2 * count } else { count }),
        ("int32_data", tensor.int32_data.len(), count),
        ("int64_data", tensor.int64_data.len(), count),
        ("double_data", tensor.double_data.len(), if kind == DataType::COMPLEX128 { 2 * count } else { count }),
        ("uint64_data", tensor.uint64_data.len(), count),
    ];
    let mut filled = fields.iter().filter(|(_, found, _)| *found > 0);
    let wrong = |what: String| {
        Diagnostic::input("E0122", what).at(place(tensor)).note("the file is damaged or its exporter is at fault")
    };
    match (filled.next(), filled.next()) {
        (None, _) if size == 0 => Ok(()),
        (None, _) => Err(wrong(format!("no data, expected {size} bytes for shape {:?}", short(&tensor.dims)))),
        (Some((name, found, expected)), None) if found != expected => {
            let unit = if *name == "raw_data" { "bytes" } else { "elements" };
            let dims = short(&tensor.dims);
            Err(wrong(format!("{name} has {found} {unit}, expected {expected} for {kind:?} of shape {dims:?}")))
        }
        (Some((name, _, _)), None) if *name != "raw_data" && *name != field_of(kind) => {
            Err(wrong(format!("elements of type {kind:?} stand in {name}, expected raw_data or {}", field_of(kind))))
        }
        (Some(_), None) => Ok(()),
        (Some((one, ..)), Some((two, ..))) => Err(wrong(format!("both {one} and {two} are filled, expected one"))),
    }
}

/// The typed field for elements of `kind`.
fn field_of(kind: DataType) -> &'static str {
    use DataType::*;
    match kind {
        FLOAT | COMPLEX64 => "float_data",
        DOUBLE | COMPLEX128 => "double_data",
        INT64 => "int64_data",
        UINT32 | UINT64 => "uint64_data",
        STRING => "string_data",
        _ => "int32_data",
    }
}

/// Whether the data of `tensor` lie in another file.
pub(crate) fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location.enum_value() == Ok(DataLocation::EXTERNAL)
}

/// The elements of `tensor` in canonical form.
pub(crate) fn bytes<'a>(tensor: &'a TensorProto, files: &'a ExternalFiles) -> Result<Cow<'a, [u8]>> {
    let (kind, _, size) = size(tensor)?;
    check(tensor, Some(files))?;
    let data = if is_external(tensor) {
        Cow::Borrowed(files.bytes(tensor, size).map_err(|d| d.at(place(tensor)))?)
    } else if !tensor.raw_data.is_empty() {
        Cow::Borrowed(tensor.raw_data.as_slice())
    } else {
        Cow::Owned(typed(tensor, kind, size)?)
    };
    if kind == DataType::BOOL && data.iter().any(|b| *b > 1) {
        return Err(Diagnostic::input("E0122", "a boolean is neither 0 nor 1").at(place(tensor)));
    }
    Ok(data)
}

/// The elements of a typed field in canonical form.
fn typed(tensor: &TensorProto, kind: DataType, size: usize) -> Result<Vec<u8>> {
    use DataType::*;
    let range = || Diagnostic::input("E0122", format!("an element is out of the range of {kind:?}")).at(place(tensor));
    let mut out = Vec::with_capacity(size);
    match kind {
        FLOAT | COMPLEX64 => tensor.float_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        DOUBLE | COMPLEX128 => tensor.double_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        INT64 => tensor.int64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        UINT64 => tensor.uint64_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        UINT32 => {
            for v in &tensor.uint64_data {
                out.extend(u32::try_from(*v).map_err(|_| range())?.to_le_bytes());
            }
        }
        INT32 => tensor.int32_data.iter().for_each(|v| out.extend(v.to_le_bytes())),
        INT16 => {
            for v in &tensor.int32_data {
                out.extend(i16::try_from(*v).map_err(|_| range())?.to_le_bytes());
            }
        }
        INT8 => {
            for v in &tensor.int32_data {
                out.extend(i8::try_from(*v).map_err(|_| range())?.to_le_bytes());
            }
        }
        UINT16 | FLOAT16 | BFLOAT16 => {
            for v in &tensor.int32_data {
                out.extend(u16::try_from(*v).map_err(|_| range())?.to_le_bytes());
            }
        }
        UINT8 | BOOL | FLOAT8E4M3FN | FLOAT8E4M3FNUZ | FLOAT8E5M2 | FLOAT8E5M2FNUZ => {
            for v in &tensor.int32_data {
                out.push(u8::try_from(*v).map_err(|_| range())?);
            }
        }
        STRING | UINT4 | INT4 | UNDEFINED => return Err(range()),
    }
    Ok(out)
}

/// Elements of a fixed width, read in order.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Canonical bytes of floating `kind` as single precision, rounded to nearest even from double precision.
/// Nothing when `kind` is not floating.
pub(crate) fn floats(kind: DataType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match kind {
        DataType::FLOAT => words(bytes).map(f32::from_le_bytes).collect(),
        DataType::FLOAT16 => words(bytes).map(|w| f16::from_le_bytes(w).to_f32()).collect(),
        DataType::BFLOAT16 => words(bytes).map(|w| bf16::from_le_bytes(w).to_f32()).collect(),
        DataType::DOUBLE => words(bytes).map(|w| f64::from_le_bytes(w) as f32).collect(),
        _ => return None,
    })
}

/// Canonical bytes of integer or boolean `kind`. Nothing when `kind` is neither, or a value is beyond 2^63 - 1.
pub(crate) fn ints(kind: DataType, bytes: &[u8]) -> Option<Vec<i64>> {
    use DataType::*;
    Some(match kind {
        BOOL | UINT8 => bytes.iter().map(|b| i64::from(*b)).collect(),
        INT8 => words(bytes).map(|w| i64::from(i8::from_le_bytes(w))).collect(),
        INT16 => words(bytes).map(|w| i64::from(i16::from_le_bytes(w))).collect(),
        UINT16 => words(bytes).map(|w| i64::from(u16::from_le_bytes(w))).collect(),
        INT32 => words(bytes).map(|w| i64::from(i32::from_le_bytes(w))).collect(),
        UINT32 => words(bytes).map(|w| i64::from(u32::from_le_bytes(w))).collect(),
        INT64 => words(bytes).map(i64::from_le_bytes).collect(),
        UINT64 => words(bytes).map(|w| i64::try_from(u64::from_le_bytes(w)).ok()).collect::<Option<_>>()?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tensor(kind: DataType, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: kind.value(), dims: dims.to_vec(), name: "t".into(), ..TensorProto::default() }
    }

    fn read(tensor: &TensorProto) -> Result<Vec<u8>> {
        let files = ExternalFiles::new(Path::new("."), false);
        bytes(tensor, &files).map(Cow::into_owned)
    }

    #[test]
    fn every_field_gives_the_same_bytes() {
        let half = |v: f32| f16::from_f32(v).to_bits();
        let t = TensorProto {
            int32_data: vec![i32::from(half(1.5)), i32::from(half(-2.0))],
            ..tensor(DataType::FLOAT16, &[2])
        };
        let raw = TensorProto {
            raw_data: [half(1.5).to_le_bytes(), half(-2.0).to_le_bytes()].concat(),
            ..tensor(DataType::FLOAT16, &[2])
        };
        assert_eq!(read(&t).unwrap(), read(&raw).unwrap());
        assert_eq!(floats(DataType::FLOAT16, &read(&t).unwrap()).unwrap(), [1.5, -2.0]);
        let t = TensorProto { int32_data: vec![0, 1, 1], ..tensor(DataType::BOOL, &[3]) };
        assert_eq!(ints(DataType::BOOL, &read(&t).unwrap()).unwrap(), [0, 1, 1]);
        let t = TensorProto { int64_data: vec![-7], ..tensor(DataType::INT64, &[]) };
        assert_eq!(ints(DataType::INT64, &read(&t).unwrap()).unwrap(), [-7]);
        let t = TensorProto { uint64_data: vec![u64::MAX], ..tensor(DataType::UINT64, &[1]) };
        assert_eq!(ints(DataType::UINT64, &read(&t).unwrap()), None);
        let t = TensorProto { double_data: vec![0.5], ..tensor(DataType::DOUBLE, &[1, 1]) };
        assert_eq!(floats(DataType::DOUBLE, &read(&t).unwrap()).unwrap(), [0.5]);
        let t = TensorProto {
            raw_data: 1.0f32.to_bits().to_be_bytes()[..2].iter().rev().copied().collect(),
            ..tensor(DataType::BFLOAT16, &[])
        };
        assert_eq!(floats(DataType::BFLOAT16, &read(&t).unwrap()).unwrap(), [1.0]);
    }

    #[test]
    fn empty_tensors_have_no_bytes() {
        assert!(read(&tensor(DataType::FLOAT, &[0, 4])).unwrap().is_empty());
        assert!(read(&tensor(DataType::FLOAT, &[])).unwrap_err().message.contains("no data, expected 4 bytes"));
    }

    #[test]
    fn wrong_lengths_ranges_and_fields_are_errors() {
        let cases = [
            TensorProto { raw_data: vec![0; 7], ..tensor(DataType::FLOAT, &[2]) },
            TensorProto { float_data: vec![0.0; 3], ..tensor(DataType::FLOAT, &[2]) },
            TensorProto { int32_data: vec![0, 0], ..tensor(DataType::FLOAT, &[2]) },
            TensorProto { int32_data: vec![70_000], ..tensor(DataType::FLOAT16, &[1]) },
            TensorProto { int32_data: vec![2], ..tensor(DataType::BOOL, &[1]) },
            TensorProto { float_data: vec![0.0], raw_data: vec![0; 4], ..tensor(DataType::FLOAT, &[1]) },
            tensor(DataType::FLOAT, &[-1]),
            tensor(DataType::FLOAT, &[i64::MAX, i64::MAX]),
            tensor(DataType::FLOAT, &[0, i64::MAX, i64::MAX]),
            tensor(DataType::INT4, &[2]),
        ];
        for case in &cases {
            assert!(read(case).is_err(), "{case:?}");
        }
    }
}
