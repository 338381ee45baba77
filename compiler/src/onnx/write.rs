//! Writing ONNX files and external data files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ombra_ir::plain::Data;
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

/// Gives the elements of a tensor, by its place among others, some at a time.
pub type Blocks<'a> = dyn FnMut(usize, &mut dyn FnMut(&Data) -> Result<()>) -> Result<()> + 'a;

/// Writes `proto` to `path` with further initializers `entries`, which have no elements: `elements` gives those of each, by
/// its place.
///
/// # Errors
/// Those of `elements`; `E0115` as [`write_model`], or when a tensor has not as many elements as its entry says.
pub fn write_model_with(
    proto: &ModelProto,
    entries: &[&TensorProto],
    elements: &mut Blocks,
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
        let mut written = 0;
        elements(index, &mut |data| {
            written += blocks(data, &mut |bytes| out.write_raw_bytes(bytes)).map_err(lost)?;
            Ok(())
        })?;
        if written != *size {
            return Err(other_size(path, entry));
        }
    }
    out.flush().map_err(lost)
}

/// Writes `proto` to `path` with further initializers `entries` as [`write_model_with`], whose elements go into the file
/// `data` of the same folder. There is no limit to their size.
///
/// # Errors
/// Those of `elements`; `E0115` when a file cannot be written, or a tensor has not as many elements as its entry says.
pub fn write_external(
    proto: &ModelProto,
    entries: &[&TensorProto],
    elements: &mut Blocks,
    path: &Path,
    data: &Path,
) -> Result<()> {
    let lost = |e: std::io::Error| failed(data, e);
    let mut external = ExternalWriter::create(data)?;
    let mut whole = proto.clone();
    let graph = whole.graph.mut_or_insert_default();
    for (index, entry) in entries.iter().enumerate() {
        let offset = external.align().map_err(lost)?;
        elements(index, &mut |data| external.write(data).map_err(lost))?;
        let length = external.length - offset;
        if length != data_size(entry)? {
            return Err(other_size(data, entry));
        }
        graph.initializer.push(external.entry((*entry).clone(), offset, length));
    }
    external.finish()?;
    write_model(&whole, path)
}

fn other_size(path: &Path, entry: &TensorProto) -> Diagnostic {
    failed(path, format!("tensor '{}' has not the elements that its shape says", entry.name))
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

/// Gives the bytes of `data` to `put` and returns their number.
pub(crate) fn blocks<E>(
    data: &Data,
    put: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<u64, E> {
    match data {
        Data::F32(v) => bytes_of(v, |x| x.to_le_bytes(), put),
        Data::I64(v) => bytes_of(v, |x| x.to_le_bytes(), put),
        Data::Bool(v) => bytes_of(v, |x| [u8::from(x)], put),
    }
}

fn bytes_of<T: Copy, E, const N: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
    put: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<u64, E> {
    let mut block = Vec::with_capacity(BLOCK * N);
    for part in values.chunks(BLOCK) {
        block.clear();
        part.iter().for_each(|x| block.extend_from_slice(&bytes(*x)));
        put(&block)?;
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
        let location = self.location.clone();
        let lost = |e: std::io::Error| failed(Path::new(&location), e);
        let offset = self.align().map_err(lost)?;
        let mut length = 4 * dims.iter().map(|&d| d as u64).product::<u64>();
        if let Some(out) = &mut self.out {
            length = 0;
            for value in values {
                out.write_all(&value.to_le_bytes()).map_err(lost)?;
                length += 4;
            }
        }
        self.length = offset + length;
        let tensor = TensorProto {
            name: name.into(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::FLOAT.value(),
            ..TensorProto::default()
        };
        Ok(self.entry(tensor, offset, length))
    }

    /// Fills up to the place where the next tensor begins, and returns it.
    fn align(&mut self) -> std::io::Result<u64> {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        if let Some(out) = &mut self.out {
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), offset - self.length), out)?;
        }
        self.length = offset;
        Ok(offset)
    }

    /// Writes further elements of a tensor.
    fn write(&mut self, data: &Data) -> std::io::Result<()> {
        if let Some(out) = &mut self.out {
            self.length += blocks(data, &mut |bytes| out.write_all(bytes))?;
        }
        Ok(())
    }

    /// `tensor` with its elements at a place of this file.
    fn entry(&self, tensor: TensorProto, offset: u64, length: u64) -> TensorProto {
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
        TensorProto {
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![
                entry("location", self.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            ..tensor
        }
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
