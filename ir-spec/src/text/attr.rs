//! Attributes of ops as the text form writes them.

use super::cursor::Cursor;
use crate::curve::Curve;
use crate::diag::{Diagnostic, Result};
use crate::dim::{Dim, Dims};
use crate::op::F32Bits;
use crate::plain::{DType, Data, Tensor};

/// An attribute's value to be printed.
pub enum Attr<'a> {
    /// An integer.
    Int(i64),
    /// An axis or a number of axes.
    Index(usize),
    /// A word: `true`, `false` or the name of an element type.
    Word(&'static str),
    /// The bits of a float, in hexadecimal.
    Bits(u32),
    /// A float as the shortest decimal.
    Float(f32),
    /// A string.
    Text(&'a str),
    /// A size.
    Size(&'a Dim),
    /// Sizes.
    Shape(&'a [Dim]),
    /// Integers.
    Ints(Vec<usize>),
    /// A tensor of constants.
    Tensor(&'a Tensor),
}

/// What an attribute of an MPC op may be, with its form in the text.
pub(crate) trait Attribute: Sized {
    /// To be printed.
    fn show(&self) -> Attr<'_>;
    /// Read under a name.
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self>;
}

macro_rules! integers {
    ($($int:ty),*) => {
        $(impl Attribute for $int {
            fn show(&self) -> Attr<'_> {
                Attr::Int((*self).into())
            }
            fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
                attrs.int(key)
            }
        })*
    };
}
integers!(u8, u32, i8, i64);

impl Attribute for bool {
    fn show(&self) -> Attr<'_> {
        flag(*self)
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.flag(key)
    }
}

impl Attribute for Curve {
    fn show(&self) -> Attr<'_> {
        Attr::Word(self.name())
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.word(key, &Curve::ALL, Curve::name)
    }
}

impl Attribute for String {
    fn show(&self) -> Attr<'_> {
        Attr::Text(self)
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.text(key)
    }
}

impl Attribute for F32Bits {
    fn show(&self) -> Attr<'_> {
        Attr::Bits(self.0)
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.bits(key).map(F32Bits)
    }
}

impl Attribute for Dim {
    fn show(&self) -> Attr<'_> {
        Attr::Size(self)
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.size(key)
    }
}

impl Attribute for Vec<Dim> {
    fn show(&self) -> Attr<'_> {
        Attr::Shape(self)
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.shape(key)
    }
}

impl Attribute for Vec<u8> {
    fn show(&self) -> Attr<'_> {
        Attr::Ints(self.iter().map(|n| usize::from(*n)).collect())
    }
    fn read(attrs: &mut Attrs, key: &str) -> Result<Self> {
        attrs.ints(key)
    }
}

/// An attribute's value as it was read, before its kind is known.
pub(super) enum Raw {
    /// A string.
    Text(String),
    /// Anything up to a comma or the end.
    Scalar(String),
    /// A bracketed list of those.
    List(Vec<String>),
    /// A tensor of constants.
    Tensor(Tensor),
}

/// `true` or `false` to be printed.
pub fn flag(flag: bool) -> Attr<'static> {
    Attr::Word(if flag { "true" } else { "false" })
}

/// Appends ` {key = value, …}`, or nothing when there is no attribute.
pub fn print_attrs(out: &mut String, dims: &Dims, attrs: &[(&str, Attr)]) {
    for (i, (key, value)) in attrs.iter().enumerate() {
        out.push_str(if i == 0 { " {" } else { ", " });
        out.push_str(key);
        out.push_str(" = ");
        match value {
            Attr::Int(n) => out.push_str(&n.to_string()),
            Attr::Index(n) => out.push_str(&n.to_string()),
            Attr::Word(w) => out.push_str(w),
            Attr::Bits(b) => out.push_str(&format!("0x{b:08x}")),
            Attr::Float(x) => out.push_str(&float(*x)),
            Attr::Text(t) => quote(out, t),
            Attr::Size(d) => out.push_str(&dims.show(d)),
            Attr::Shape(s) => out.push_str(&dims.show_shape(s)),
            Attr::Ints(v) => list(out, ['[', ']'], v.iter().map(|n| n.to_string())),
            Attr::Tensor(t) => tensor(out, t),
        }
    }
    if !attrs.is_empty() {
        out.push('}');
    }
}

/// Appends a string in quotes.
pub fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn list(out: &mut String, ends: [char; 2], items: impl Iterator<Item = String>) {
    let [open, close] = ends;
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(&item);
    }
    out.push(close);
}

fn tensor(out: &mut String, t: &Tensor) {
    out.push_str(t.dtype().name());
    list(out, ['[', ']'], t.shape().iter().map(|d| d.to_string()));
    match t.data() {
        Data::F32(v) => list(out, ['(', ')'], v.iter().map(|x| float(*x))),
        Data::I64(v) => list(out, ['(', ')'], v.iter().map(|x| x.to_string())),
        Data::Bool(v) => list(out, ['(', ')'], v.iter().map(|x| x.to_string())),
    }
}

/// The shortest decimal that reads back as the same float; what is no number by its bits.
fn float(x: f32) -> String {
    if x.is_nan() { format!("0x{:08x}", x.to_bits()) } else { format!("{x:?}") }
}

fn parse_float(text: &str) -> Option<f32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok().map(f32::from_bits),
        None => text.parse().ok(),
    }
}

/// Reads a tensor such as `f32[2](0.5, 1.0)`.
///
/// # Errors
/// `E0370` for another form.
pub fn parse_tensor(c: &mut Cursor) -> Result<Tensor> {
    let pos = c.pos();
    let word = c.word()?;
    let dtype = dtype(&word).ok_or_else(|| c.error_at(pos, format!("expected an element type, found `{word}`")))?;
    elements(c, dtype)
}

fn elements(c: &mut Cursor, dtype: DType) -> Result<Tensor> {
    let at = c.pos();
    let sizes = c.list('[', ']')?;
    let shape = sizes.iter().map(|s| s.parse().ok()).collect::<Option<Vec<usize>>>();
    let items = c.list('(', ')')?;
    let data = match dtype {
        DType::F32 => items.iter().map(|s| parse_float(s)).collect::<Option<Vec<_>>>().map(Data::F32),
        DType::I64 => items.iter().map(|s| s.parse().ok()).collect::<Option<Vec<_>>>().map(Data::I64),
        DType::Bool => items.iter().map(|s| s.parse().ok()).collect::<Option<Vec<_>>>().map(Data::Bool),
    };
    let (Some(shape), Some(data)) = (shape, data) else {
        return Err(c.error_at(at, format!("expected sizes in [] and elements of {} in ()", dtype.name())));
    };
    Tensor::new(shape, data).map_err(|d| c.error_at(at, d.message))
}

/// The attributes that were read for one op; every one is taken once.
pub struct Attrs<'a> {
    op: String,
    dims: &'a Dims,
    raw: Vec<(String, Raw)>,
}

impl<'a> Attrs<'a> {
    /// Reads `{key = value, …}` if it is there.
    ///
    /// # Errors
    /// `E0370` for another form.
    pub fn read(c: &mut Cursor, op: &str, dims: &'a Dims) -> Result<Self> {
        let mut raw = Vec::new();
        if c.eat('{') {
            loop {
                let key = c.word()?;
                c.expect('=')?;
                raw.push((key, value(c)?));
                if !c.eat(',') {
                    break;
                }
            }
            c.expect('}')?;
        }
        Ok(Attrs { op: op.into(), dims, raw })
    }

    fn take(&mut self, key: &str) -> Result<Raw> {
        let at = self.raw.iter().position(|(k, _)| k == key);
        at.map(|at| self.raw.swap_remove(at).1).ok_or_else(|| wrong(&self.op, format!("expected an attribute `{key}`")))
    }

    fn scalar(&mut self, key: &str) -> Result<String> {
        match self.take(key)? {
            Raw::Scalar(s) => Ok(s),
            _ => Err(wrong(&self.op, format!("expected a single value of `{key}`"))),
        }
    }

    fn list(&mut self, key: &str) -> Result<Vec<String>> {
        match self.take(key)? {
            Raw::List(l) => Ok(l),
            _ => Err(wrong(&self.op, format!("expected a list `{key}`"))),
        }
    }

    /// An integer in the range of its type.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn int<T: TryFrom<i64>>(&mut self, key: &str) -> Result<T> {
        let text = self.scalar(key)?;
        let value = text.parse::<i64>().ok().and_then(|n| T::try_from(n).ok());
        value.ok_or_else(|| wrong(&self.op, format!("`{key}` is out of range")))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn flag(&mut self, key: &str) -> Result<bool> {
        let text = self.scalar(key)?;
        text.parse().map_err(|_| wrong(&self.op, format!("expected true or false for `{key}`")))
    }

    /// One of the words that stand for some values.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn word<T: Copy>(&mut self, key: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
        let text = self.scalar(key)?;
        let known = || all.iter().map(|x| name(*x)).collect::<Vec<_>>().join(", ");
        let found = all.iter().copied().find(|x| name(*x) == text);
        found.ok_or_else(|| wrong(&self.op, format!("expected one of {} for `{key}`", known())))
    }

    /// Whether an attribute is there and not taken yet.
    pub fn has(&self, key: &str) -> bool {
        self.raw.iter().any(|(k, _)| k == key)
    }

    /// A float.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn float(&mut self, key: &str) -> Result<f32> {
        let text = self.scalar(key)?;
        parse_float(&text).ok_or_else(|| wrong(&self.op, format!("expected a number for `{key}`")))
    }

    /// The bits of a float.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn bits(&mut self, key: &str) -> Result<u32> {
        let text = self.scalar(key)?;
        let bits = text.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        bits.ok_or_else(|| wrong(&self.op, format!("expected the bits of `{key}` in hexadecimal")))
    }

    /// An element type.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn dtype(&mut self, key: &str) -> Result<DType> {
        let text = self.scalar(key)?;
        dtype(&text).ok_or_else(|| wrong(&self.op, format!("expected an element type for `{key}`")))
    }

    /// A string.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn text(&mut self, key: &str) -> Result<String> {
        match self.take(key)? {
            Raw::Text(t) => Ok(t),
            _ => Err(wrong(&self.op, format!("expected a string for `{key}`"))),
        }
    }

    /// A size.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn size(&mut self, key: &str) -> Result<Dim> {
        let text = self.scalar(key)?;
        self.dims.parse(&text).map_err(|d| wrong(&self.op, d.message))
    }

    /// Sizes.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn shape(&mut self, key: &str) -> Result<Vec<Dim>> {
        let texts = self.list(key)?;
        texts.iter().map(|t| self.dims.parse(t).map_err(|d| wrong(&self.op, d.message))).collect()
    }

    /// Integers in the range of their type.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn ints<T: std::str::FromStr>(&mut self, key: &str) -> Result<Vec<T>> {
        let texts = self.list(key)?;
        let ints = texts.iter().map(|t| t.parse().ok()).collect::<Option<_>>();
        ints.ok_or_else(|| wrong(&self.op, format!("`{key}` is out of range")))
    }

    /// A tensor of constants.
    ///
    /// # Errors
    /// `E0371` where it is missing or something else.
    pub fn tensor(&mut self, key: &str) -> Result<Tensor> {
        match self.take(key)? {
            Raw::Tensor(t) => Ok(t),
            _ => Err(wrong(&self.op, format!("expected a tensor for `{key}`"))),
        }
    }

    /// Checks that every attribute has been taken.
    ///
    /// # Errors
    /// `E0371` for an attribute that is left.
    pub fn end(self) -> Result<()> {
        match self.raw.first() {
            Some((key, _)) => Err(wrong(&self.op, format!("there is no attribute `{}`", key.escape_debug()))),
            None => Ok(()),
        }
    }
}

fn value(c: &mut Cursor) -> Result<Raw> {
    match c.peek() {
        Some('"') => Ok(Raw::Text(c.quoted()?)),
        Some('[') => Ok(Raw::List(c.list('[', ']')?)),
        _ => {
            let text = c.until(&[',', '}', '[', '(']);
            match dtype(&text) {
                Some(dtype) if c.peek() == Some('[') => Ok(Raw::Tensor(elements(c, dtype)?)),
                _ => Ok(Raw::Scalar(text)),
            }
        }
    }
}

/// The element type of a name.
pub(super) fn dtype(name: &str) -> Option<DType> {
    [DType::F32, DType::I64, DType::Bool].into_iter().find(|d| d.name() == name)
}

/// There is no op of a name.
pub(crate) fn no_such_op(name: &str) -> Diagnostic {
    wrong(name, "there is no such op".into())
}

/// An unknown op or a wrong attribute; the parser adds the place.
pub(super) fn wrong(op: &str, what: String) -> Diagnostic {
    Diagnostic::input("E0371", format!("{}: {what}", op.escape_debug()))
}
