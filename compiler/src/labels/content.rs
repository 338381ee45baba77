//! Finding the content of one tensor among those of a base model.
//!
//! The base is kept as digests alone: one for each tensor and its transpose, one for each row and column. A digest covers
//! element type and shape, axes of size one apart. Tensors are hashed row by row from the mapped files, so no second copy
//! of a model is made.
//!
//! Element types may differ between the two models. Base elements rounded to the type of the tuned tensor are compared bit
//! for bit: what is equal then follows from the base alone. Where the base has the narrower type, the tuned elements are
//! rounded instead, and what they have beyond it does not follow from the base; that comparison counts only for matrices
//! of [`ROUNDED_ELEMENTS`], of which training leaves no digit alone, while it may well leave a vector of ones so.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};

use half::{bf16, f16};
use ombra_ir::Result;
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::DataType;
use sha2::{Digest, Sha256};

use crate::onnx::{Model, element_size, element_type, shape};

/// The shortest row or column that counts as recognised: shorter ones may be equal by chance.
const SHORTEST: usize = 4;
/// Elements that a matrix must have for a match after its own elements were rounded.
const ROUNDED_ELEMENTS: usize = 1024;
/// Columns that are gathered at a time.
const COLUMNS: usize = 32;
/// How many times the length of a vector may be hashed in search of runs.
const RUN_EFFORT: usize = 64;

/// A truncated SHA-256: collisions are out of reach, and rows are many.
type Hash = [u8; 16];

/// What is compared: elements brought to `kind` from the base, or elements of both brought to the base's own `kind`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct View {
    kind: Kind,
    rounds_tuned: bool,
}

/// An element type: floating, or an integer type, whose elements are compared as they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Half,
    Brain,
    Single,
    Double,
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
}

impl Kind {
    /// All kinds.
    const ALL: [Kind; 13] = [
        Kind::Half,
        Kind::Brain,
        Kind::Single,
        Kind::Double,
        Kind::Bool,
        Kind::Int8,
        Kind::Int16,
        Kind::Int32,
        Kind::Int64,
        Kind::Uint8,
        Kind::Uint16,
        Kind::Uint32,
        Kind::Uint64,
    ];

    /// The kind of `tensor`, if its elements can be read.
    pub(super) fn of(tensor: &TensorProto) -> Option<Kind> {
        let element = element_type(tensor).ok()?;
        Kind::ALL.into_iter().find(|kind| kind.element() == element)
    }

    /// ONNX's name of the kind.
    fn element(self) -> DataType {
        match self {
            Kind::Half => DataType::FLOAT16,
            Kind::Brain => DataType::BFLOAT16,
            Kind::Single => DataType::FLOAT,
            Kind::Double => DataType::DOUBLE,
            Kind::Bool => DataType::BOOL,
            Kind::Int8 => DataType::INT8,
            Kind::Int16 => DataType::INT16,
            Kind::Int32 => DataType::INT32,
            Kind::Int64 => DataType::INT64,
            Kind::Uint8 => DataType::UINT8,
            Kind::Uint16 => DataType::UINT16,
            Kind::Uint32 => DataType::UINT32,
            Kind::Uint64 => DataType::UINT64,
        }
    }

    /// Bytes of an element.
    fn width(self) -> usize {
        element_size(self.element()).unwrap_or(1)
    }

    /// Whether elements are floating-point numbers.
    pub(super) fn is_floating(self) -> bool {
        matches!(self, Kind::Half | Kind::Brain | Kind::Single | Kind::Double)
    }

    /// Whether elements of this kind can be brought to `other`.
    fn converts_to(self, other: Kind) -> bool {
        self == other || self.is_floating() && other.is_floating()
    }

    /// Whether every value of `other` is one of this kind, but not the other way round.
    fn is_wider_than(self, other: Kind) -> bool {
        self.converts_to(other) && self.width() > other.width()
    }
}

/// A tensor's elements as a matrix of its last axis. Axes of size one are left out: exporters add and drop them.
struct Matrix<'a> {
    kind: Kind,
    bytes: Cow<'a, [u8]>,
    dims: Vec<usize>,
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    fn new(model: &'a Model, tensor: &'a TensorProto, kind: Kind) -> Result<Self> {
        let dims: Vec<usize> = shape(tensor)?.into_iter().filter(|&d| d != 1).collect();
        let columns = dims.last().copied().unwrap_or(1);
        let rows = dims.iter().rev().skip(1).product();
        Ok(Matrix { kind, bytes: model.bytes(tensor)?, dims, rows, columns })
    }

    /// Visits the rows with elements of `kind`, until `visit` says no.
    fn each_row(&self, kind: Kind, mut visit: impl FnMut(&[u8]) -> bool) -> bool {
        let stride = self.columns * self.kind.width();
        if stride == 0 {
            return true;
        }
        let mut converted = Vec::new();
        self.bytes.chunks_exact(stride).all(|row| visit(convert(self.kind, kind, row, &mut converted)))
    }

    /// Visits the columns with elements of `kind`, until `visit` says no.
    fn each_column(&self, kind: Kind, mut visit: impl FnMut(&[u8]) -> bool) -> bool {
        let width = self.kind.width();
        let stride = self.columns * width;
        let mut gathered = vec![Vec::new(); COLUMNS];
        let mut converted = Vec::new();
        (0..self.columns).step_by(COLUMNS).all(|first| {
            let count = COLUMNS.min(self.columns - first);
            gathered.iter_mut().for_each(Vec::clear);
            for row in self.bytes.chunks_exact(stride) {
                let part = row.get(first * width..(first + count) * width).unwrap_or_default();
                for (column, element) in gathered.iter_mut().zip(part.chunks_exact(width)) {
                    column.extend_from_slice(element);
                }
            }
            gathered.iter().take(count).all(|column| visit(convert(self.kind, kind, column, &mut converted)))
        })
    }

    /// Whether rows and columns are those of a matrix.
    fn is_flat(&self) -> bool {
        self.dims.len() == 2
    }

    /// Digest of the whole tensor.
    fn whole(&self, view: View) -> Hash {
        let mut hash = start(b't', view, &self.dims);
        self.each_row(view.kind, |row| {
            hash.update(row);
            true
        });
        finish(hash)
    }

    /// Digest of the transposed matrix.
    fn transposed(&self, view: View) -> Hash {
        let mut hash = start(b't', view, &[self.columns, self.rows]);
        self.each_column(view.kind, |column| {
            hash.update(column);
            true
        });
        finish(hash)
    }
}

/// A hash that has taken in what kind of thing follows, its element type and its shape.
fn start(what: u8, view: View, dims: &[usize]) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update([what, view.kind as u8, u8::from(view.rounds_tuned)]);
    hash.update((dims.len() as u64).to_le_bytes());
    dims.iter().for_each(|&d| hash.update((d as u64).to_le_bytes()));
    hash
}

/// The first half of the digest.
fn finish(hash: Sha256) -> Hash {
    let mut out = [0; 16];
    out.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    out
}

/// Digest of a row, a column or a vector.
fn vector(view: View, elements: &[u8]) -> Hash {
    let mut hash = start(b'v', view, &[elements.len() / view.kind.width()]);
    hash.update(elements);
    finish(hash)
}

/// `elements` of kind `from` as elements of kind `to`, rounded to nearest even. Double precision becomes half precision by
/// way of single precision, as in the programs that make such models.
fn convert<'a>(from: Kind, to: Kind, elements: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
    if from == to {
        return elements;
    }
    out.clear();
    let mut put = |value: f32| match to {
        Kind::Half => out.extend(f16::from_f32(value).to_le_bytes()),
        Kind::Brain => out.extend(bf16::from_f32(value).to_le_bytes()),
        Kind::Single => out.extend(value.to_le_bytes()),
        Kind::Double => out.extend(f64::from(value).to_le_bytes()),
        // No view asks for other elements than floating ones.
        _ => {}
    };
    match from {
        Kind::Half => elements.as_chunks().0.iter().for_each(|e| put(f16::from_le_bytes(*e).to_f32())),
        Kind::Brain => elements.as_chunks().0.iter().for_each(|e| put(bf16::from_le_bytes(*e).to_f32())),
        Kind::Single => elements.as_chunks().0.iter().for_each(|e| put(f32::from_le_bytes(*e))),
        Kind::Double => elements.as_chunks().0.iter().for_each(|e| put(f64::from_le_bytes(*e) as f32)),
        _ => {}
    }
    out
}

/// Digests of the tensors of a base model.
pub(super) struct Content<'a> {
    base: &'a Model,
    tensors: Vec<(String, Cow<'a, TensorProto>, Kind)>,
    tuned_kinds: BTreeSet<Kind>,
    whole: HashMap<Hash, (usize, bool)>,
    vectors: Option<Vectors>,
}

/// Digests of rows, columns and vectors.
#[derive(Default)]
struct Vectors {
    known: HashSet<Hash>,
    lengths: BTreeSet<usize>,
}

impl<'a> Content<'a> {
    /// Digests of the whole `tensors` of `base`, to be compared with tensors of the kinds in `tuned_kinds`.
    pub(super) fn new(
        base: &'a Model,
        tensors: Vec<(String, Cow<'a, TensorProto>)>,
        tuned_kinds: BTreeSet<Kind>,
    ) -> Result<Self> {
        let tensors: Vec<_> =
            tensors.into_iter().filter_map(|(name, t)| Kind::of(&t).map(|kind| (name, t, kind))).collect();
        let mut whole = HashMap::new();
        for (i, (_, tensor, kind)) in tensors.iter().enumerate() {
            let matrix = Matrix::new(base, tensor, *kind)?;
            for view in base_views(*kind, &tuned_kinds) {
                if matrix.is_flat() {
                    whole.entry(matrix.transposed(view)).or_insert((i, true));
                }
                whole.insert(matrix.whole(view), (i, false));
            }
        }
        Ok(Content { base, tensors, tuned_kinds, whole, vectors: None })
    }

    /// Why the content of `tensor` of `tuned` is known from the base, if it is.
    pub(super) fn find(&mut self, tuned: &Model, tensor: &TensorProto, kind: Kind) -> Result<Option<String>> {
        let matrix = Matrix::new(tuned, tensor, kind)?;
        let mut views = vec![View { kind, rounds_tuned: false }];
        if matrix.dims.len() >= 2 && matrix.rows * matrix.columns >= ROUNDED_ELEMENTS {
            let narrower: BTreeSet<Kind> =
                self.tensors.iter().map(|(.., base)| *base).filter(|base| kind.is_wider_than(*base)).collect();
            views.extend(narrower.into_iter().map(|kind| View { kind, rounds_tuned: true }));
        }
        for &view in &views {
            if let Some(why) = self.find_whole(&matrix, view) {
                return Ok(Some(why));
            }
        }
        // Rows of a few small integers are equal by chance.
        if !kind.is_floating() {
            return Ok(None);
        }
        let vectors = match self.vectors.take() {
            Some(vectors) => vectors,
            None => self.collect_vectors()?,
        };
        let why = views.iter().find_map(|&view| find_parts(&vectors, &matrix, view));
        self.vectors = Some(vectors);
        Ok(why)
    }

    /// Why the whole of `matrix` is known.
    fn find_whole(&self, matrix: &Matrix, view: View) -> Option<String> {
        let (i, transposed) = *self.whole.get(&matrix.whole(view))?;
        let (name, _, kind) = self.tensors.get(i)?;
        let what = if transposed { "the transpose of " } else { "" };
        let rounded = if *kind == matrix.kind { "" } else { ", after rounding to the narrower type" };
        Some(format!("equals {what}'{name}' of the base{rounded}"))
    }

    /// Digests of all rows, columns and vectors of the base.
    fn collect_vectors(&self) -> Result<Vectors> {
        let mut vectors = Vectors::default();
        for (_, tensor, kind) in self.tensors.iter().filter(|(.., kind)| kind.is_floating()) {
            let matrix = Matrix::new(self.base, tensor, *kind)?;
            if matrix.dims.len() == 1 && matrix.columns >= SHORTEST {
                vectors.lengths.insert(matrix.columns);
            }
            for view in base_views(*kind, &self.tuned_kinds) {
                let mut add = |elements: &[u8]| {
                    vectors.known.insert(vector(view, elements));
                    true
                };
                if matrix.columns >= SHORTEST {
                    matrix.each_row(view.kind, &mut add);
                }
                if matrix.is_flat() && matrix.rows >= SHORTEST {
                    matrix.each_column(view.kind, &mut add);
                }
            }
        }
        Ok(vectors)
    }
}

/// How a base tensor of `kind` is compared with tuned tensors of the kinds in `tuned`.
fn base_views(kind: Kind, tuned: &BTreeSet<Kind>) -> Vec<View> {
    let fitting = tuned.iter().filter(|tuned| kind.converts_to(**tuned));
    let mut views: Vec<View> = fitting.map(|&kind| View { kind, rounds_tuned: false }).collect();
    if tuned.iter().any(|t| t.is_wider_than(kind)) {
        views.push(View { kind, rounds_tuned: true });
    }
    views
}

/// Why `matrix` is put together from vectors that are known.
fn find_parts(vectors: &Vectors, matrix: &Matrix, view: View) -> Option<String> {
    let known = |elements: &[u8]| vectors.known.contains(&vector(view, elements));
    if matrix.rows == 0 || matrix.columns == 0 {
        return Some("is empty".into());
    }
    if matrix.columns >= SHORTEST && matrix.each_row(view.kind, known) {
        return Some(match matrix.dims.len() {
            1 => "equals a row or column of the base".into(),
            _ => "every row is a row or column of the base".into(),
        });
    }
    if matrix.is_flat() && matrix.rows >= SHORTEST && matrix.each_column(view.kind, known) {
        return Some("every column is a row or column of the base".into());
    }
    if matrix.dims.len() == 1 {
        let mut converted = Vec::new();
        let elements = convert(matrix.kind, view.kind, &matrix.bytes, &mut converted);
        return is_run(vectors, view, elements).then(|| "is a sequence of vectors of the base".into());
    }
    None
}

/// Whether `elements` are known vectors one after another.
fn is_run(vectors: &Vectors, view: View, elements: &[u8]) -> bool {
    let width = view.kind.width();
    let mut budget = elements.len().saturating_mul(RUN_EFFORT);
    let (mut seen, mut open) = (HashSet::from([0]), vec![0]);
    while let Some(at) = open.pop() {
        for length in &vectors.lengths {
            let end = at + length * width;
            let Some(part) = elements.get(at..end) else { break };
            let Some(left) = budget.checked_sub(part.len()) else { return false };
            budget = left;
            if !seen.contains(&end) && vectors.known.contains(&vector(view, part)) {
                if end == elements.len() {
                    return true;
                }
                seen.insert(end);
                open.push(end);
            }
        }
    }
    false
}
