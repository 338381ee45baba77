//! Finding the content of one tensor among those of a base model.
//!
//! Elements are compared one by one, where they lie in the mapped files: a tensor with the base's tensors of its shape and
//! of the transposed one, then its rows and columns with rows and columns that begin alike. A comparison ends at the first
//! difference, so that a whole model is read about once, and no copy or digest of it is made.
//!
//! Element types may differ between the two models. A tensor counts as known only if it is equal, bit for bit, to what a
//! conversion makes of the base's elements: brought to the type of the tensor, or rounded to a narrower type on the way, as
//! in a model that was stored in half precision and exported in single. What is equal then follows from the base alone.
//! A tensor that has digits beyond a narrower base is not known, even if rounding would take them away: training may have
//! left them. Such tensors are counted, so that the user learns why they are private.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use half::{bf16, f16};
use ombra_ir::Result;
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::DataType;

use crate::onnx::{Model, element_size, element_type, shape};

/// The shortest row or column that counts as recognised: shorter ones may be equal by chance.
const SHORTEST: usize = 4;
/// Columns that are gathered at a time.
const COLUMNS: usize = 32;
/// Elements that are converted at a time.
const BLOCK: usize = 256;
/// Rows and columns that are compared with one that begins like them, and looked at for its length.
const CANDIDATES: usize = 64;
const ALIKE: usize = 1024;
/// How many times the length of a vector may be compared in search of runs.
const RUN_EFFORT: usize = 64;

/// How elements of the base are brought to the type of the tensor they are compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Conversion {
    from: Kind,
    /// A narrower type to which they are rounded on the way.
    via: Option<Kind>,
    to: Kind,
}

/// An element type: floating, or an integer type, whose elements are compared as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    pub(super) fn element(self) -> DataType {
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

    /// Whether elements of this kind have more bits than those of `other`, to which they can be brought.
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
        let dims = dims_of(tensor)?;
        let columns = dims.last().copied().unwrap_or(1);
        let rows = dims.iter().rev().skip(1).product();
        Ok(Matrix { kind, bytes: model.bytes(tensor)?, dims, rows, columns })
    }

    /// The elements of row `at`.
    fn row(&self, at: usize) -> &[u8] {
        let stride = self.columns * self.kind.width();
        at.checked_mul(stride).and_then(|from| self.bytes.get(from..from.checked_add(stride)?)).unwrap_or_default()
    }

    /// Puts `count` elements of column `column`, from row `first` on, into `out`.
    fn gather(&self, column: usize, first: usize, count: usize, out: &mut Vec<u8>) {
        let width = self.kind.width();
        out.clear();
        for row in first..first.saturating_add(count).min(self.rows) {
            let at = (row * self.columns + column) * width;
            out.extend_from_slice(self.bytes.get(at..at + width).unwrap_or_default());
        }
    }

    /// Visits the rows until `visit` says no.
    fn each_row(&self, visit: impl FnMut(&[u8]) -> bool) -> bool {
        let stride = self.columns * self.kind.width();
        stride == 0 || self.bytes.chunks_exact(stride).all(visit)
    }

    /// Visits the columns until `visit` says no.
    fn each_column(&self, mut visit: impl FnMut(&[u8]) -> bool) -> bool {
        let width = self.kind.width();
        let stride = self.columns * width;
        let mut gathered = vec![Vec::new(); COLUMNS];
        // The first column alone: most matrices differ in it.
        (0..self.columns.min(1)).chain((1..self.columns).step_by(COLUMNS)).all(|first| {
            let count = if first == 0 { 1 } else { COLUMNS.min(self.columns - first) };
            gathered.iter_mut().for_each(Vec::clear);
            for row in self.bytes.chunks_exact(stride) {
                let part = row.get(first * width..(first + count) * width).unwrap_or_default();
                for (column, element) in gathered.iter_mut().zip(part.chunks_exact(width)) {
                    column.extend_from_slice(element);
                }
            }
            gathered.iter().take(count).all(|column| visit(column))
        })
    }

    /// Whether rows and columns are those of a matrix.
    fn is_flat(&self) -> bool {
        self.dims.len() == 2
    }

    /// Whether every element is one of the narrower `kind`.
    fn is_all_of(&self, kind: Kind) -> bool {
        let there = Conversion { from: self.kind, via: Some(kind), to: self.kind };
        equal(&self.bytes, &self.bytes, there)
    }
}

/// The sizes of `tensor` without those that are one.
fn dims_of(tensor: &TensorProto) -> Result<Vec<usize>> {
    Ok(shape(tensor)?.into_iter().filter(|&d| d != 1).collect())
}

/// Whether `tuned` is what `how` makes of `base`.
fn equal(tuned: &[u8], base: &[u8], how: Conversion) -> bool {
    if how.from == how.to && how.via.is_none() {
        return tuned == base;
    }
    let (from, to) = (how.from.width(), how.to.width());
    if tuned.len() / to != base.len() / from {
        return false;
    }
    let (mut middle, mut out) = (Vec::new(), Vec::new());
    tuned.chunks(BLOCK * to).zip(base.chunks(BLOCK * from)).all(|(tuned, base)| {
        converted(base, how, &mut middle, &mut out);
        tuned == out
    })
}

/// Puts what `how` makes of `elements` into `out`.
fn converted(elements: &[u8], how: Conversion, middle: &mut Vec<u8>, out: &mut Vec<u8>) {
    match how.via {
        Some(via) => {
            convert_into(how.from, via, elements, middle);
            convert_into(via, how.to, middle, out);
        }
        None if how.from == how.to => {
            out.clear();
            out.extend_from_slice(elements);
        }
        None => convert_into(how.from, how.to, elements, out),
    }
}

/// `elements` of kind `from` as elements of kind `to`, rounded to nearest even. Double precision becomes half precision by
/// way of single precision, as in the programs that make such models.
fn convert_into(from: Kind, to: Kind, elements: &[u8], out: &mut Vec<u8>) {
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
}

/// What the base says about a tensor.
pub(super) enum Match {
    /// It follows from the base, for this reason.
    Known(String),
    /// It has digits beyond those of a tensor of the base, and is equal to it but for them.
    Rounds,
    /// Nothing.
    Unknown,
}

/// A tensor of the base.
struct Entry<'a> {
    name: String,
    matrix: Matrix<'a>,
}

/// The tensors of a base model.
pub(super) struct Content<'a> {
    base: &'a Model,
    tensors: Vec<Entry<'a>>,
    by_dims: HashMap<Vec<usize>, Vec<usize>>,
    vectors: BTreeMap<Conversion, Vectors>,
}

/// Where rows, columns and vectors begin alike: digest of their first elements, tensor, and number of the row or column.
#[derive(Default)]
struct Vectors(Vec<(u64, usize, Line)>);

/// A row or a column.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Row(usize),
    Column(usize),
}

impl<'a> Content<'a> {
    /// The `tensors` of `base`.
    pub(super) fn new(base: &'a Model, tensors: &'a [(String, Cow<'a, TensorProto>)]) -> Result<Self> {
        let mut content = Content { base, tensors: Vec::new(), by_dims: HashMap::new(), vectors: BTreeMap::new() };
        for (name, tensor) in tensors {
            let Some(kind) = Kind::of(tensor) else { continue };
            let matrix = Matrix::new(base, tensor, kind)?;
            content.by_dims.entry(matrix.dims.clone()).or_default().push(content.tensors.len());
            content.tensors.push(Entry { name: name.clone(), matrix });
        }
        Ok(content)
    }

    /// What is known of `tensor` of `tuned`, which is called `name` there.
    pub(super) fn find(&mut self, tuned: &Model, name: &str, tensor: &TensorProto, kind: Kind) -> Result<Match> {
        let matrix = Matrix::new(tuned, tensor, kind)?;
        let found = self.find_matrix(name, &matrix);
        // It was compared with tensors of its size, mostly with one.
        [tuned, self.base].iter().for_each(|model| model.was_read(matrix.bytes.len()));
        Ok(found)
    }

    fn find_matrix(&mut self, name: &str, matrix: &Matrix) -> Match {
        let kind = matrix.kind;
        if matrix.rows == 0 || matrix.columns == 0 {
            return Match::Known("is empty".into());
        }
        let narrower: Vec<Kind> = [Kind::Half, Kind::Brain]
            .into_iter()
            .filter(|&via| kind.converts_to(via) && matrix.is_all_of(via))
            .collect();
        if let Some(why) = self.find_whole(name, matrix, &narrower) {
            return Match::Known(why);
        }
        // Rows of a few small integers are equal by chance.
        if !kind.is_floating() {
            return Match::Unknown;
        }
        let kinds: BTreeSet<Kind> =
            self.tensors.iter().map(|e| e.matrix.kind).filter(|from| from.is_floating()).collect();
        let ways: Vec<Conversion> = kinds.into_iter().flat_map(|from| conversions(from, kind, &narrower)).collect();
        for &how in &ways {
            if !self.vectors.contains_key(&how) {
                let vectors = self.collect_vectors(how);
                self.vectors.insert(how, vectors);
            }
        }
        if let Some(why) = self.find_parts(matrix, &ways) {
            return Match::Known(why);
        }
        if self.rounds(matrix) { Match::Rounds } else { Match::Unknown }
    }

    /// The tensors with sizes `dims`, that called `name` first.
    fn like(&self, name: &str, dims: &[usize]) -> impl Iterator<Item = &Entry<'a>> {
        let entries = || self.by_dims.get(dims).into_iter().flatten().filter_map(|&i| self.tensors.get(i));
        let name = name.to_owned();
        let other = name.clone();
        entries().filter(move |e| e.name == name).chain(entries().filter(move |e| e.name != other))
    }

    /// Why the whole of `matrix` is known.
    fn find_whole(&self, name: &str, matrix: &Matrix, narrower: &[Kind]) -> Option<String> {
        for entry in self.like(name, &matrix.dims) {
            for how in conversions(entry.matrix.kind, matrix.kind, narrower) {
                if equal(&matrix.bytes, &entry.matrix.bytes, how) {
                    return Some(format!("equals '{}' of the base{}", entry.name, in_words(how)));
                }
            }
        }
        if !matrix.is_flat() {
            return None;
        }
        for entry in self.like(name, &[matrix.columns, matrix.rows]) {
            for how in conversions(entry.matrix.kind, matrix.kind, narrower) {
                if are_columns(matrix, &entry.matrix, &|row, column| equal(row, column, how)) {
                    return Some(format!("equals the transpose of '{}' of the base{}", entry.name, in_words(how)));
                }
            }
        }
        None
    }

    /// Whether `matrix` is a tensor of the base of a narrower type once its elements are rounded to that.
    fn rounds(&self, matrix: &Matrix) -> bool {
        let base = |entry: &Entry| Conversion { from: matrix.kind, via: None, to: entry.matrix.kind };
        let narrower = |entry: &&Entry| matrix.kind.is_wider_than(entry.matrix.kind);
        let turned = if matrix.is_flat() { vec![matrix.columns, matrix.rows] } else { Vec::new() };
        let mut straight = self.like("", &matrix.dims).filter(narrower);
        let mut transposed = self.like("", &turned).filter(|e| e.matrix.is_flat()).filter(narrower);
        straight.any(|entry| equal(&entry.matrix.bytes, &matrix.bytes, base(entry)))
            || transposed.any(|e| are_columns(matrix, &e.matrix, &|row, column| equal(column, row, base(e))))
    }

    /// Where rows, columns and vectors of the base begin, brought to another type.
    fn collect_vectors(&self, how: Conversion) -> Vectors {
        let (mut start, mut middle, mut out) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = Vec::new();
        for (i, Entry { matrix, .. }) in self.tensors.iter().enumerate().filter(|(_, e)| e.matrix.kind == how.from) {
            if matrix.columns >= SHORTEST {
                for row in 0..matrix.rows {
                    let first = matrix.row(row).get(..SHORTEST * how.from.width()).unwrap_or_default();
                    converted(first, how, &mut middle, &mut out);
                    found.push((digest(&out), i, Line::Row(row)));
                }
            }
            if matrix.is_flat() && matrix.rows >= SHORTEST {
                for column in 0..matrix.columns {
                    matrix.gather(column, 0, SHORTEST, &mut start);
                    converted(&start, how, &mut middle, &mut out);
                    found.push((digest(&out), i, Line::Column(column)));
                }
            }
            // Rows are so short that their beginnings stand on most of its pages.
            self.base.was_read(matrix.bytes.len());
        }
        found.sort_unstable();
        Vectors(found)
    }

    /// Lengths of the rows and columns of the base, brought to other types by one of `ways`, that `elements` begin with.
    fn beginnings<'b>(
        &'b self,
        elements: &'b [u8],
        ways: &'b [Conversion],
        wanted: &dyn Fn(usize) -> bool,
    ) -> Vec<usize> {
        let mut found = Vec::new();
        let mut gathered = Vec::new();
        for &how in ways {
            let width = how.to.width();
            let (Some(start), Some(Vectors(known))) = (elements.get(..SHORTEST * width), self.vectors.get(&how)) else {
                continue;
            };
            let key = digest(start);
            let from = known.partition_point(|(other, ..)| *other < key);
            let alike = known.iter().skip(from).take(ALIKE).take_while(|(other, ..)| *other == key);
            let mut tried = 0;
            for (_, tensor, line) in alike {
                let Some(Entry { matrix, .. }) = self.tensors.get(*tensor) else { continue };
                let length = if let Line::Row(_) = line { matrix.columns } else { matrix.rows };
                let Some(part) = elements.get(..length * width).filter(|_| wanted(length)) else { continue };
                if found.contains(&length) {
                    continue;
                }
                tried += 1;
                if tried > CANDIDATES {
                    break;
                }
                let same = match *line {
                    Line::Row(row) => equal(part, matrix.row(row), how),
                    Line::Column(column) => (0..length).step_by(BLOCK).all(|first| {
                        let count = BLOCK.min(length - first);
                        matrix.gather(column, first, count, &mut gathered);
                        part.get(first * width..(first + count) * width).is_some_and(|part| equal(part, &gathered, how))
                    }),
                };
                if same {
                    found.push(length);
                }
            }
        }
        found
    }

    /// Why `matrix` is put together from vectors that are known.
    fn find_parts(&self, matrix: &Matrix, ways: &[Conversion]) -> Option<String> {
        let width = matrix.kind.width();
        let known = |elements: &[u8]| {
            let whole = elements.len() / width;
            self.beginnings(elements, ways, &|length| length == whole).contains(&whole)
        };
        if matrix.columns >= SHORTEST && matrix.each_row(known) {
            return Some(match matrix.dims.len() {
                1 => "equals a row or column of the base".into(),
                _ => "every row is a row or column of the base".into(),
            });
        }
        if matrix.is_flat() && matrix.rows >= SHORTEST && matrix.each_column(known) {
            return Some("every column is a row or column of the base".into());
        }
        (matrix.dims.len() == 1 && self.is_run(matrix, ways)).then(|| "is a sequence of vectors of the base".into())
    }

    /// Whether the vector `matrix` is known vectors one after another.
    fn is_run(&self, matrix: &Matrix, ways: &[Conversion]) -> bool {
        let vectors = self.tensors.iter().filter(|e| e.matrix.dims.len() == 1);
        let lengths: BTreeSet<usize> = vectors.map(|e| e.matrix.columns).filter(|n| *n >= SHORTEST).collect();
        let width = matrix.kind.width();
        let mut budget = matrix.bytes.len().saturating_mul(RUN_EFFORT);
        let (mut seen, mut open) = (HashSet::from([0]), vec![0]);
        while let Some(at) = open.pop() {
            let rest = matrix.bytes.get(at..).unwrap_or_default();
            let Some(left) = budget.checked_sub(rest.len()) else { return false };
            budget = left;
            for length in self.beginnings(rest, ways, &|length| lengths.contains(&length)) {
                let end = at + length * width;
                if end == matrix.bytes.len() {
                    return true;
                }
                if seen.insert(end) {
                    open.push(end);
                }
            }
        }
        false
    }
}

/// Whether the rows of `matrix` are the columns of `other`, which has as many, by `same`.
fn are_columns(matrix: &Matrix, other: &Matrix, same: &dyn Fn(&[u8], &[u8]) -> bool) -> bool {
    let mut start = Vec::new();
    other.gather(0, 0, SHORTEST.min(other.rows), &mut start);
    let first = matrix.row(0).get(..start.len() / other.kind.width() * matrix.kind.width()).unwrap_or_default();
    let mut rows = 0..matrix.rows;
    same(first, &start) && other.each_column(|column| rows.next().is_some_and(|row| same(matrix.row(row), column)))
}

/// How elements of `from` may have become elements of `to`, all of which are of every type in `narrower`.
fn conversions(from: Kind, to: Kind, narrower: &[Kind]) -> Vec<Conversion> {
    if !from.converts_to(to) {
        return Vec::new();
    }
    let vias = narrower.iter().filter(|&&via| via != to && via != from && from.converts_to(via));
    std::iter::once(None).chain(vias.copied().map(Some)).map(|via| Conversion { from, via, to }).collect()
}

/// What a conversion did, after the name of a tensor.
fn in_words(how: Conversion) -> String {
    let mut words = String::new();
    if how.from != how.to {
        words += &format!(", whose elements are {:?}", how.from.element());
    }
    if let Some(via) = how.via {
        words += &format!(", rounded to {:?}", via.element());
    }
    words
}

/// FNV-1a: what begins alike is compared, so that no more is needed.
fn digest(elements: &[u8]) -> u64 {
    elements.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
