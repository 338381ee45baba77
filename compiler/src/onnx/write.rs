//! Writing ONNX files and external data files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::{Message, ModelProto, StringStringEntryProto, TensorProto};
use protobuf::rt::WireType::LengthDelimited;
use protobuf::rt::compute_raw_varint64_size;
use protobuf::{CodedOutputStream, Enum};

use super::{element_size, element_type, shape};

/// Data of each external tensor start at a multiple of this many bytes, a page.
const ALIGNMENT: u64 = 4096;

/// Writes `proto` to `path`.
///
/// # Errors
/// `E0115` when it is larger than 2 GiB or the file cannot be written.
pub fn write_model(proto: &ModelProto, path: &Path) -> Result<()> {
    if proto.compute_size() > i32::MAX as u64 {
        return Err(
            failed(path, "an ONNX file may have at most 2 GiB").note("keep the weights in an external data file")
        );
    }
    let mut out = BufWriter::new(File::create(path).map_err(|e| failed(path, e))?);
    proto.write_to_writer(&mut out).map_err(|e| failed(path, e))?;
    out.flush().map_err(|e| failed(path, e))
}

/// Numbers of the fields that are written one by one.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;
const RAW_DATA: u32 = 9;
/// Elements that are turned into bytes at once.
const BLOCK: usize = 1 << 14;

/// Writes `proto` to `path` with further initializers `entries`, which have no elements: `tensor` gives those of each, by
/// its place. One tensor at a time is in memory.
///
/// # Errors
/// Those of `tensor`; `E0115` as [`write_model`], or when a tensor has not as many elements as its entry says.
pub fn write_model_with(
    proto: &ModelProto,
    entries: &[&TensorProto],
    tensor: &mut dyn FnMut(usize) -> Result<Tensor>,
    path: &Path,
) -> Result<()> {
    let lost = |e: protobuf::Error| failed(path, e);
    let sizes = entries.iter().map(|entry| data_size(entry)).collect::<Result<Vec<u64>>>()?;
    let lengths: Vec<u64> = entries.iter().zip(&sizes).map(|(e, size)| e.compute_size() + field(*size)).collect();
    let mut head = proto.clone();
    let graph = head.graph.take().unwrap_or_default();
    let whole = lengths.iter().fold(graph.compute_size(), |sum, length| sum.saturating_add(field(*length)));
    if head.compute_size().saturating_add(field(whole)) > i32::MAX as u64 {
        return Err(failed(path, "an ONNX file may have at most 2 GiB"));
    }
    let mut file = File::create(path).map_err(|e| failed(path, e))?;
    let mut out = CodedOutputStream::new(&mut file);
    head.write_to(&mut out).map_err(lost)?;
    begin(&mut out, GRAPH, whole).map_err(lost)?;
    graph.write_to(&mut out).map_err(lost)?;
    for (index, (entry, (size, length))) in entries.iter().zip(sizes.iter().zip(&lengths)).enumerate() {
        begin(&mut out, INITIALIZER, *length).map_err(lost)?;
        entry.write_to(&mut out).map_err(lost)?;
        begin(&mut out, RAW_DATA, *size).map_err(lost)?;
        let (_, data) = tensor(index)?.into_parts();
        let written = match &data {
            Data::F32(v) => blocks(&mut out, v, |x| x.to_le_bytes()),
            Data::I64(v) => blocks(&mut out, v, |x| x.to_le_bytes()),
            Data::Bool(v) => blocks(&mut out, v, |x| [u8::from(x)]),
        };
        if written.map_err(lost)? != *size {
            return Err(failed(path, format!("tensor '{}' has not the elements that its shape says", entry.name)));
        }
    }
    out.flush().map_err(lost)
}

/// Bytes of the elements of `entry`.
fn data_size(entry: &TensorProto) -> Result<u64> {
    let width = element_size(element_type(entry)?).unwrap_or(0) as u64;
    Ok(shape(entry)?.iter().fold(width, |product, &d| product.saturating_mul(d as u64)))
}

/// Bytes of a field of `length` bytes with its tag, which takes one byte.
fn field(length: u64) -> u64 {
    length.saturating_add(1 + compute_raw_varint64_size(length))
}

/// The tag and the length of a field.
fn begin(out: &mut CodedOutputStream, number: u32, length: u64) -> protobuf::Result<()> {
    out.write_tag(number, LengthDelimited)?;
    out.write_raw_varint64(length)
}

/// Writes `values` and returns the number of bytes.
fn blocks<T: Copy, const N: usize>(
    out: &mut CodedOutputStream,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> protobuf::Result<u64> {
    for block in values.chunks(BLOCK) {
        let block: Vec<u8> = block.iter().flat_map(|x| bytes(*x)).collect();
        out.write_raw_bytes(&block)?;
    }
    Ok((values.len() * N) as u64)
}

/// A data file beside a model, to which tensors are written one after another; or the entries of one that is not written.
pub struct ExternalWriter {
    out: Option<BufWriter<File>>,
    location: String,
    length: u64,
}

impl ExternalWriter {
    /// Creates the file `path`. The tensors refer to it by its file name, so the model must be in the same folder.
    ///
    /// # Errors
    /// `E0115` when the file cannot be created or its name is not text.
    pub fn create(path: &Path) -> Result<Self> {
        let entries = Self::entries_of(path)?;
        let file = File::create(path).map_err(|e| failed(path, e))?;
        Ok(ExternalWriter { out: Some(BufWriter::with_capacity(1 << 20, file)), ..entries })
    }

    /// The entries of a file `path` that is not written, for models whose costs alone matter.
    ///
    /// # Errors
    /// `E0115` when its name is not text.
    pub fn entries_of(path: &Path) -> Result<Self> {
        let location = path.file_name().and_then(|name| name.to_str());
        let location = location.ok_or_else(|| failed(path, "the file name is not UTF-8 text"))?.to_owned();
        Ok(ExternalWriter { out: None, location, length: 0 })
    }

    /// Writes single-precision `values` of shape `dims` as the tensor `name` and returns its entry for the model.
    ///
    /// # Errors
    /// `E0115` when the file cannot be written.
    pub fn push(&mut self, name: &str, dims: &[usize], values: impl Iterator<Item = f32>) -> Result<TensorProto> {
        let lost = |e: std::io::Error| failed(Path::new(&self.location), e);
        let padding = self.length.next_multiple_of(ALIGNMENT) - self.length;
        let offset = self.length + padding;
        let mut length = 4 * dims.iter().map(|&d| d as u64).product::<u64>();
        if let Some(out) = &mut self.out {
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), padding), out).map_err(lost)?;
            length = 0;
            for value in values {
                out.write_all(&value.to_le_bytes()).map_err(lost)?;
                length += 4;
            }
        }
        self.length = offset + length;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
        Ok(TensorProto {
            name: name.into(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::FLOAT.value(),
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![
                entry("location", self.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            ..TensorProto::default()
        })
    }

    /// Writes what is buffered and closes the file.
    ///
    /// # Errors
    /// `E0115` when the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.out.iter_mut().try_for_each(|out| out.flush()).map_err(|e| failed(Path::new(&self.location), e))
    }
}

/// The error of this module.
fn failed(path: &Path, why: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::input("E0115", format!("cannot write '{}': {why}", path.display()))
}
