//! Reading GGUF files, version 3: metadata, and tensors that may be quantised in blocks.
//!
//! The file is hostile until checked: no count is believed before as many bytes are there, and every tensor lies inside
//! the file when [`Gguf::parse`] returns. Format: ggml's `docs/gguf.md`; blocks: `ggml-common.h`.

use std::collections::BTreeMap;

use half::f16;
use ombra_ir::{Diagnostic, Result};

/// The only version that is read.
const VERSION: u32 = 3;
/// Multiple of bytes at which tensors begin where the file does not say.
const ALIGNMENT: u64 = 32;
/// Most axes of a tensor.
const MAX_AXES: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width.
    Integer(i128),
    /// A number of single or double precision.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type, none of them lists.
    List(Vec<Value>),
}

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elements {
    F32,
    F16,
    /// Blocks of 32: factor and smallest element in half precision, then 4 bits an element.
    Q4_1,
    /// Blocks of 32: factor in half precision, then 8 bits an element.
    Q8_0,
}

/// A tensor of the file.
struct Entry {
    /// Sizes, outermost first.
    shape: Vec<usize>,
    elements: Elements,
    start: usize,
    bytes: usize,
}

/// A file in memory whose structure has been checked.
pub struct Gguf {
    data: Vec<u8>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

impl Elements {
    fn of(code: u32) -> Option<Elements> {
        match code {
            0 => Some(Elements::F32),
            1 => Some(Elements::F16),
            3 => Some(Elements::Q4_1),
            8 => Some(Elements::Q8_0),
            _ => None,
        }
    }

    /// Elements and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Elements::F32 => (1, 4),
            Elements::F16 => (1, 2),
            Elements::Q4_1 => (32, 20),
            Elements::Q8_0 => (32, 34),
        }
    }

    /// Appends the elements of one block, which has as many bytes as [`Elements::block`] says.
    fn decode(self, block: &[u8], into: &mut Vec<f32>) {
        let half = |bytes: &[u8]| match bytes {
            [low, high, ..] => f16::from_le_bytes([*low, *high]).to_f32(),
            _ => f32::NAN,
        };
        match self {
            Elements::F32 => into.extend(block.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Elements::F16 => into.push(half(block)),
            Elements::Q4_1 => {
                let (head, codes) = block.split_at(4);
                let (factor, least) = (half(head), half(head.split_at(2).1));
                let nibbles = codes.iter().map(|byte| byte & 15).chain(codes.iter().map(|byte| byte >> 4));
                into.extend(nibbles.map(|code| factor * f32::from(code) + least));
            }
            Elements::Q8_0 => {
                let (head, codes) = block.split_at(2);
                let factor = half(head);
                into.extend(codes.iter().map(|code| factor * f32::from(code.cast_signed())));
            }
        }
    }
}

impl Gguf {
    /// Checks the structure of the file `data`.
    ///
    /// # Errors
    /// `E0923` for a file that is damaged or no GGUF, `E0924` for one with another version or other types of elements.
    pub fn parse(data: Vec<u8>) -> Result<Gguf> {
        let mut cursor = Cursor { data: &data, at: 0 };
        if cursor.take(4)? != b"GGUF" {
            return Err(damaged("the file does not begin with `GGUF`").note("expected  a model in the GGUF format"));
        }
        let version = cursor.u32()?;
        if version != VERSION {
            return Err(Diagnostic::unsupported("E0924", format!("GGUF of version {version}"))
                .note(format!("expected  version {VERSION}, little-endian")));
        }
        let (tensor_count, value_count) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(damaged(format!("the key `{}` stands there twice", key.escape_debug())));
            }
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = cursor.text()?;
            let entry = cursor.tensor(&name)?;
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(damaged(format!("the tensor `{}` stands there twice", name.escape_debug())));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Integer(n)) => u64::try_from(*n)
                .ok()
                .filter(|n| n.is_power_of_two())
                .ok_or_else(|| damaged(format!("tensors are aligned to {n} bytes")).note("expected  a power of two"))?,
            Some(_) => return Err(damaged("`general.alignment` is no integer")),
        };
        let base = (cursor.at as u64).checked_next_multiple_of(alignment).and_then(|at| usize::try_from(at).ok());
        for (name, entry) in &mut tensors {
            let start = base.and_then(|base| base.checked_add(entry.start));
            let end = start.and_then(|start| start.checked_add(entry.bytes)).filter(|end| *end <= data.len());
            let (Some(start), Some(_)) = (start, end) else {
                return Err(damaged(format!("the tensor `{}` ends after the file does", name.escape_debug()))
                    .note(format!("expected  {} bytes {} bytes into the data", entry.bytes, entry.start))
                    .note(format!("found     a file of {} bytes", data.len()))
                    .note("help      the file may have been cut short: fetch it again"));
            };
            entry.start = start;
        }
        Ok(Gguf { data, metadata, tensors })
    }

    /// All keys and values.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, outermost size first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The elements of a tensor, the last axis fastest.
    ///
    /// # Errors
    /// `E0923` when there is no such tensor or an element is no finite number.
    pub fn elements(&self, name: &str) -> Result<Vec<f32>> {
        let found = self.tensors.get(name).and_then(|e| Some((e, self.data.get(e.start..e.start + e.bytes)?)));
        let Some((entry, bytes)) = found else {
            return Err(damaged(format!("there is no tensor `{}`", name.escape_debug())));
        };
        let (per_block, size) = entry.elements.block();
        let mut values = Vec::with_capacity(bytes.len() / size * per_block);
        bytes.chunks_exact(size).for_each(|block| entry.elements.decode(block, &mut values));
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                Err(damaged(format!("element {at} of the tensor `{}` is no finite number", name.escape_debug())))
            }
        }
    }

    /// The value of `key` as text.
    ///
    /// # Errors
    /// `E0923` when it is missing or of another type.
    pub fn text(&self, key: &str) -> Result<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            found => Err(wrong_value(key, "text", found)),
        }
    }

    /// The value of `key` as a count.
    ///
    /// # Errors
    /// `E0923` when it is missing, of another type, or negative.
    pub fn count(&self, key: &str) -> Result<usize> {
        let found = self.metadata.get(key);
        let count = found.and_then(|value| match value {
            Value::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        });
        count.ok_or_else(|| wrong_value(key, "a count", found))
    }

    /// The value of `key` as a number.
    ///
    /// # Errors
    /// `E0923` when it is missing or of another type.
    pub fn number(&self, key: &str) -> Result<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(number)) => Ok(*number),
            found => Err(wrong_value(key, "a number", found)),
        }
    }

    /// The value of `key` as a list.
    ///
    /// # Errors
    /// `E0923` when it is missing or of another type.
    pub fn list(&self, key: &str) -> Result<&[Value]> {
        match self.metadata.get(key) {
            Some(Value::List(list)) => Ok(list),
            found => Err(wrong_value(key, "a list", found)),
        }
    }

    /// The value of `key` as a list of texts.
    ///
    /// # Errors
    /// As [`Gguf::list`].
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let text = |value: &'_ Value| match value {
            Value::Text(_) => Ok(()),
            other => Err(wrong_value(key, "a list of texts", Some(other))),
        };
        let list = self.list(key)?;
        list.iter().try_for_each(text)?;
        Ok(list
            .iter()
            .filter_map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
            .collect())
    }
}

/// Where reading is.
struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let bytes = end.and_then(|end| self.data.get(self.at..end)).ok_or_else(|| {
            damaged("the file ends too early")
                .note(format!("expected  {count} bytes at byte {}", self.at))
                .note(format!("found     a file of {} bytes", self.data.len()))
        })?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| damaged("the file ends too early"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String> {
        let at = self.at;
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(self.take(count)?);
        text.map(str::to_owned).map_err(|_| damaged(format!("the text at byte {at} is not UTF-8")))
    }

    /// A value of type `kind`.
    fn value(&mut self, kind: u32) -> Result<Value> {
        if kind != 9 {
            return self.single(kind);
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(self.single(kind)?);
        }
        Ok(Value::List(list))
    }

    /// A value of type `kind` that is no list.
    fn single(&mut self, kind: u32) -> Result<Value> {
        let at = self.at;
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(damaged(format!("the boolean at byte {at} is {other}"))),
            },
            8 => Value::Text(self.text()?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            9 => return Err(Diagnostic::unsupported("E0924", format!("a list of lists at byte {at}"))),
            _ => return Err(damaged(format!("there is no type {kind} of values, at byte {at}"))),
        })
    }

    /// The entry of the tensor `name`; its start counts from the beginning of the data.
    fn tensor(&mut self, name: &str) -> Result<Entry> {
        let name = name.escape_debug();
        let axes = self.u32()?;
        if axes == 0 || axes > MAX_AXES {
            return Err(
                damaged(format!("the tensor `{name}` has {axes} axes")).note(format!("expected  1 to {MAX_AXES}"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(usize::try_from(self.u64()?).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let code = self.u32()?;
        let elements = Elements::of(code).ok_or_else(|| {
            Diagnostic::unsupported("E0924", format!("the tensor `{name}` has elements of type {code}"))
                .note("expected  F32 (0), F16 (1), Q4_1 (3) or Q8_0 (8)")
        })?;
        let offset = self.u64()?;
        let (per_block, size) = elements.block();
        let whole = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let row = shape.last().copied().unwrap_or(0);
        let bytes = whole.filter(|_| row.is_multiple_of(per_block)).and_then(|n| (n / per_block).checked_mul(size));
        match (bytes, usize::try_from(offset)) {
            (Some(bytes), Ok(start)) if bytes > 0 => Ok(Entry { shape, elements, start, bytes }),
            _ => Err(damaged(format!("the tensor `{name}` has the shape {shape:?} in blocks of {per_block}"))),
        }
    }
}

/// The error of a file that does not keep to its format.
fn damaged(what: impl Into<String>) -> Diagnostic {
    Diagnostic::input("E0923", what)
}

fn wrong_value(key: &str, expected: &str, found: Option<&Value>) -> Diagnostic {
    let found = match found {
        None => "nothing",
        Some(Value::Integer(_)) => "an integer",
        Some(Value::Float(_)) => "a number",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Text(_)) => "text",
        Some(Value::List(_)) => "a list",
    };
    damaged(format!("the value of `{key}` cannot be used"))
        .note(format!("expected  {expected}"))
        .note(format!("found     {found}"))
}
