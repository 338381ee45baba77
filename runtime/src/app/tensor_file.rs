//! Tensors in files: NumPy's `.npy` and ONNX's `TensorProto` (`.pb`).
//!
//! Floats become single-precision numbers, integers 64-bit ones. Files hold little-endian elements in row-major order.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use ombra_ir::plain::tensor::volume;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::{Message, TensorProto};
use protobuf::Enum;

use super::folder::read_bounded;

/// Largest tensor file.
const MAX_BYTES: u64 = 16 << 30;
const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// The tensor in the file at `path`, `.npy` or `.pb`, and the name it has inside.
///
/// # Errors
/// `E1005` when it is no such file, or has elements of another type.
pub fn read(path: &Path) -> Result<(Option<String>, Tensor)> {
    let bytes = read_bounded(path, MAX_BYTES)?;
    let read = match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => npy(&bytes).map(|tensor| (None, tensor)),
        Some("pb") => proto(&bytes).map(|(name, tensor)| (Some(name), tensor)),
        _ => Err(wrong("the file is of no known kind").note("expected  a name that ends in .npy or .pb")),
    };
    read.map_err(|error| error.at(path.display().to_string()))
}

fn wrong(what: impl Into<String>) -> Diagnostic {
    Diagnostic::input("E1005", what)
}

fn words<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() { Ok(chunks.iter().map(|chunk| read(*chunk)).collect()) } else { Err(wrong("it is cut short")) }
}

fn truth(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(wrong("a boolean is neither 0 nor 1")),
    }
}

/// A tensor from the bytes of an `.npy` file.
///
/// # Errors
/// `E1005`.
pub fn npy(bytes: &[u8]) -> Result<Tensor> {
    let cut = || wrong("not a whole .npy file");
    let version = bytes.strip_prefix(NPY_MAGIC).ok_or_else(|| wrong("not an .npy file: its first bytes differ"))?;
    let (length, rest) = match version {
        [1, _, a, b, rest @ ..] => (u32::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]), rest),
        _ => return Err(wrong("an .npy file of an unknown version").note("expected  version 1, 2 or 3")),
    };
    let (header, body) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| wrong("the header of the .npy file is no text"))?;
    let field = |name: &str| header.split_once(&format!("'{name}':")).map(|(_, after)| after.trim_start());
    let kind = field("descr").and_then(|text| text.strip_prefix('\'')).and_then(|text| text.split_once('\''));
    let (kind, _) = kind.ok_or_else(|| wrong("the .npy file has no simple element type"))?;
    if field("fortran_order").is_none_or(|text| !text.starts_with("False")) {
        return Err(wrong("the .npy file is not in row-major order").note("help      save numpy.ascontiguousarray(x)"));
    }
    let shape = field("shape").and_then(|text| text.strip_prefix('(')).and_then(|text| text.split_once(')'));
    let (shape, _) = shape.ok_or_else(|| wrong("the .npy file has no shape"))?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty()).map(str::parse);
    let shape: Vec<usize> = sizes.collect::<std::result::Result<_, _>>().map_err(|_| wrong("a size is no number"))?;
    let data = match kind {
        "<f2" => Data::F32(words(body, |word| f16::from_le_bytes(word).to_f32())?),
        "<f4" => Data::F32(words(body, f32::from_le_bytes)?),
        "<f8" => Data::F32(words(body, |word| f64::from_le_bytes(word) as f32)?),
        "<i8" => Data::I64(words(body, i64::from_le_bytes)?),
        "<i4" => Data::I64(words(body, |word| i64::from(i32::from_le_bytes(word)))?),
        "|b1" => Data::Bool(body.iter().map(|byte| truth(*byte)).collect::<Result<_>>()?),
        _ => {
            return Err(wrong(format!("elements of type `{}` are not supported", kind.escape_debug()))
                .note("expected  <f2, <f4, <f8, <i4, <i8 or |b1"));
        }
    };
    Tensor::new(shape, data)
}

/// A tensor and its name from the bytes of a serialized `TensorProto`.
///
/// # Errors
/// `E1005`.
pub fn proto(bytes: &[u8]) -> Result<(String, Tensor)> {
    let proto = TensorProto::parse_from_bytes(bytes).map_err(|error| wrong(format!("not a TensorProto: {error}")))?;
    if proto.data_location.enum_value_or_default() == DataLocation::EXTERNAL {
        return Err(wrong("the elements of the TensorProto are in another file").note("expected  elements inside"));
    }
    let sizes = proto.dims.iter().map(|&size| usize::try_from(size));
    let shape: Vec<usize> = sizes.collect::<std::result::Result<_, _>>().map_err(|_| wrong("a size is negative"))?;
    let raw = &proto.raw_data;
    let has_raw = !raw.is_empty() || volume(&shape)? == 0;
    // In `int32_data` a number of 16 bits stands as its bits.
    let bits = || {
        let narrow = |value: &i32| u16::try_from(*value).map_err(|_| wrong("an element has more than 16 bits"));
        proto.int32_data.iter().map(narrow).collect::<Result<Vec<u16>>>()
    };
    let data = match DataType::from_i32(proto.data_type) {
        Some(DataType::FLOAT) if has_raw => Data::F32(words(raw, f32::from_le_bytes)?),
        Some(DataType::FLOAT) => Data::F32(proto.float_data.clone()),
        Some(DataType::DOUBLE) if has_raw => Data::F32(words(raw, |word| f64::from_le_bytes(word) as f32)?),
        Some(DataType::DOUBLE) => Data::F32(proto.double_data.iter().map(|&x| x as f32).collect()),
        Some(DataType::FLOAT16) => {
            let bits = if has_raw { words(raw, u16::from_le_bytes)? } else { bits()? };
            Data::F32(bits.into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect())
        }
        Some(DataType::BFLOAT16) => {
            let bits = if has_raw { words(raw, u16::from_le_bytes)? } else { bits()? };
            Data::F32(bits.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
        }
        Some(DataType::INT64) if has_raw => Data::I64(words(raw, i64::from_le_bytes)?),
        Some(DataType::INT64) => Data::I64(proto.int64_data.clone()),
        Some(DataType::INT32) if has_raw => Data::I64(words(raw, |word| i64::from(i32::from_le_bytes(word)))?),
        Some(DataType::INT32) => Data::I64(proto.int32_data.iter().copied().map(i64::from).collect()),
        Some(DataType::BOOL) if has_raw => Data::Bool(raw.iter().map(|byte| truth(*byte)).collect::<Result<_>>()?),
        Some(DataType::BOOL) => Data::Bool(proto.int32_data.iter().map(|&value| value != 0).collect()),
        _ => {
            return Err(wrong(format!("elements of ONNX type {} are not supported", proto.data_type))
                .note("expected  FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT32, INT64 or BOOL"));
        }
    };
    Ok((proto.name, Tensor::new(shape, data)?))
}

/// The bytes of `tensor` as an `.npy` file.
pub fn to_npy(tensor: &Tensor) -> Vec<u8> {
    let (kind, body): (&str, Vec<u8>) = match tensor.data() {
        Data::F32(values) => ("<f4", values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Data::I64(values) => ("<i8", values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Data::Bool(values) => ("|b1", values.iter().map(|&value| u8::from(value)).collect()),
    };
    let sizes: String = tensor.shape().iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // Magic, version, length and header together fill whole blocks of 64 bytes, the last of them a line end.
    let filled = (NPY_MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', filled - NPY_MAGIC.len() - 4 - header.len() - 1));
    header.push('\n');
    let mut file = NPY_MAGIC.to_vec();
    file.extend_from_slice(&[1, 0]);
    file.extend_from_slice(&u16::try_from(header.len()).unwrap_or(u16::MAX).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&body);
    file
}

/// Writes `tensor` as `folder/NAME.npy`, with `_` for every `/` in its name. The folder is made if need be.
///
/// # Errors
/// `E1005`.
pub fn write(folder: &Path, name: &str, tensor: &Tensor) -> Result<()> {
    let path = folder.join(format!("{}.npy", name.replace(['/', '\\', '\0'], "_")));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, to_npy(tensor)));
    written.map_err(|error| wrong(format!("the file cannot be written: {error}")).at(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_npy() {
        for tensor in [
            Tensor::f32(&[2, 3], vec![1.0, -2.5, 0.0, 1e-9, f32::MAX, 3.0]).unwrap(),
            Tensor::i64(&[4], vec![i64::MIN, -1, 0, i64::MAX]).unwrap(),
            Tensor::bool(&[1, 2], vec![true, false]).unwrap(),
            Tensor::f32(&[2, 0, 5], vec![]).unwrap(),
            Tensor::scalar_i64(7),
        ] {
            let file = to_npy(&tensor);
            assert_eq!(npy(&file).unwrap(), tensor);
            assert_eq!((file.len() - tensor.len() * file_width(&tensor)) % 64, 0);
        }
    }

    fn file_width(tensor: &Tensor) -> usize {
        match tensor.data() {
            Data::F32(_) => 4,
            Data::I64(_) => 8,
            Data::Bool(_) => 1,
        }
    }

    #[test]
    fn cut_and_changed_npy_files_are_errors() {
        let file = to_npy(&Tensor::f32(&[3], vec![1.0, 2.0, 3.0]).unwrap());
        for length in 0..file.len() {
            assert!(npy(&file[..length]).is_err(), "{length}");
        }
        let change = |from: &str, to: &str| {
            let text = String::from_utf8_lossy(&file[10..64]).replacen(from, to, 1);
            let mut changed = file[..10].to_vec();
            changed.extend_from_slice(&text.as_bytes()[..54]);
            changed.extend_from_slice(&file[64..]);
            npy(&changed)
        };
        for (from, to) in [("False", "True "), ("<f4", "<c8"), ("<f4", ">f4"), ("(3,)", "(9,)"), ("(3,)", "(-,)")] {
            assert!(change(from, to).is_err(), "{from} {to}");
        }
        assert!(change("(3,)", "(18446744073709551615, 18446744073709551615)").is_err());
    }

    #[test]
    fn halves_become_single_precision() {
        let values = [1.5f32, -0.25, 65504.0];
        let halves: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let mut file = to_npy(&Tensor::f32(&[3], values.to_vec()).unwrap());
        file.truncate(file.len() - 12);
        let at = file.windows(3).position(|w| w == b"<f4").unwrap();
        file[at + 2] = b'2';
        assert_eq!(npy(&[file, halves.clone()].concat()).unwrap(), Tensor::f32(&[3], values.to_vec()).unwrap());
        let read = |kind: DataType, raw: Vec<u8>, ints: Vec<i32>| {
            let mut proto = TensorProto::new();
            (proto.dims, proto.data_type, proto.raw_data, proto.int32_data) = (vec![3], kind.value(), raw, ints);
            super::proto(&proto.write_to_bytes().unwrap()).map(|(_, tensor)| tensor)
        };
        let expected = Tensor::f32(&[3], values.to_vec()).unwrap();
        assert_eq!(read(DataType::FLOAT16, halves, vec![]).unwrap(), expected);
        let bits = |v: &f32| i32::from(f16::from_f32(*v).to_bits());
        assert_eq!(read(DataType::FLOAT16, vec![], values.iter().map(bits).collect()).unwrap(), expected);
        assert!(read(DataType::FLOAT16, vec![], vec![70_000, 0, 0]).is_err());
        let brain = [1.5f32, -0.25, 65536.0];
        let raw = brain.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(read(DataType::BFLOAT16, raw, vec![]).unwrap(), Tensor::f32(&[3], brain.to_vec()).unwrap());
    }

    #[test]
    fn both_forms_of_a_tensor_proto_are_read() {
        let mut proto = TensorProto::new();
        (proto.name, proto.dims, proto.data_type) = ("x".to_owned(), vec![2], DataType::FLOAT.value());
        proto.float_data = vec![1.5, -2.0];
        let expected = Tensor::f32(&[2], vec![1.5, -2.0]).unwrap();
        assert_eq!(super::proto(&proto.write_to_bytes().unwrap()).unwrap(), ("x".to_owned(), expected.clone()));
        proto.float_data.clear();
        proto.raw_data = [1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(super::proto(&proto.write_to_bytes().unwrap()).unwrap().1, expected);
        proto.dims = vec![3];
        assert!(super::proto(&proto.write_to_bytes().unwrap()).is_err());
        proto.dims = vec![-2];
        assert!(super::proto(&proto.write_to_bytes().unwrap()).is_err());
    }
}
