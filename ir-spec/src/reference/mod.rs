//! Reference meaning: what every op computes, on concrete tensors in the clear.
//!
//! Every op's meaning stands in its description ([`crate::op`]); here are the values and what meanings are written with.
//! A ring element is the low `bits` of a `u64`, in two's complement. `truncate` is the floor, or rounds by drawn numbers
//! as it does by shares: see [`Rounding`]. `cut` loses what shares of the setting lose on average. A whole
//! module runs by evaluating its ops in order, with sources given by the caller; that is the setting `plain`. Threads share
//! the elements of large values and change no result.

mod evaluation;
pub(crate) mod interactive;
pub(crate) mod linear;
pub(crate) mod movement;
pub(crate) mod ragged;
mod rounding;
pub mod run;

use crate::diag::{Diagnostic, Result};
use crate::dim::{Bindings, Dim};
use crate::norms::Measure;
use crate::op::Op;
use crate::plain::{Data, Tensor};
use crate::settings::Setting;
use crate::ty::{Elem, Ty};
pub use evaluation::Evaluation;
use rayon::prelude::*;
pub use rounding::Rounding;

/// Most elements of one value.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// A concrete value in the clear.
#[derive(Clone, Debug, PartialEq)]
pub struct RefValue {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in row-major order; their number is the product of the sizes.
    pub data: RefData,
}

/// Elements of a value in the clear.
#[derive(Clone, Debug, PartialEq)]
pub enum RefData {
    /// Ring elements.
    Ring {
        /// Ring bits.
        bits: u8,
        /// The low `bits` of every word.
        values: Vec<u64>,
    },
    /// Bits.
    Bit(Vec<bool>),
    /// Plain numbers.
    Plain(Data),
}

impl RefValue {
    /// Ring elements; each is reduced to its low `bits`. An error when their number is not the product of `shape`.
    pub fn ring(bits: u8, shape: Vec<usize>, mut values: Vec<u64>) -> Result<Self> {
        check_len(&shape, values.len())?;
        if bits < 64 {
            let mask = mask(bits);
            values.par_chunks_mut(PARALLEL).for_each(|part| part.iter_mut().for_each(|v| *v &= mask));
        }
        Ok(RefValue { shape, data: RefData::Ring { bits, values } })
    }

    /// Bits. An error when their number is not the product of `shape`.
    pub fn bit(shape: Vec<usize>, bits: Vec<bool>) -> Result<Self> {
        check_len(&shape, bits.len())?;
        Ok(RefValue { shape, data: RefData::Bit(bits) })
    }

    /// A plain tensor.
    pub fn plain(tensor: Tensor) -> Self {
        let (shape, data) = tensor.into_parts();
        RefValue { shape, data: RefData::Plain(data) }
    }

    /// The reals that ring elements of `scale` stand for. An error for other elements.
    pub fn decode(&self, scale: u8) -> Result<Vec<f64>> {
        let (bits, values) = self.as_ring()?;
        let unit = (-f64::from(scale)).exp2();
        Ok(values.iter().map(|v| signed(*v, bits) as f64 * unit).collect())
    }

    /// Ring bits and elements, or an error for other elements.
    pub fn as_ring(&self) -> Result<(u8, &[u64])> {
        match &self.data {
            RefData::Ring { bits, values } => Ok((*bits, values)),
            RefData::Bit(_) | RefData::Plain(_) => Err(mismatch("expected ring elements")),
        }
    }

    /// The bits, or an error for other elements.
    pub fn as_bits(&self) -> Result<&[bool]> {
        match &self.data {
            RefData::Bit(bits) => Ok(bits),
            RefData::Ring { .. } | RefData::Plain(_) => Err(mismatch("expected bits")),
        }
    }

    pub(crate) fn as_ints(&self) -> Result<&[i64]> {
        match &self.data {
            RefData::Plain(Data::I64(v)) => Ok(v),
            _ => Err(mismatch("expected integers")),
        }
    }

    fn as_mask(&self) -> Result<&[bool]> {
        match &self.data {
            RefData::Plain(Data::Bool(v)) => Ok(v),
            _ => Err(mismatch("expected booleans")),
        }
    }
}

/// Rounds floats to ring elements: `round(x · 2^scale)`, halves away from zero.
///
/// Errors: `E0381` when a value is no number, or the integer is not in (−2^bound, 2^bound).
pub fn encode(values: &[f32], bits: u8, scale: u8, bound: u8) -> Result<Vec<u64>> {
    let mut out: Vec<u64> = reserve(values.len())?;
    out.resize(values.len(), 0);
    if values.len() <= PARALLEL {
        return encode_into(values, (bits, scale, bound), &mut out).map(|()| out);
    }
    let (parts, words) = (values.par_chunks(PARALLEL), out.par_chunks_mut(PARALLEL));
    parts.zip(words).try_for_each(|(values, words)| encode_into(values, (bits, scale, bound), words))?;
    Ok(out)
}

/// [`encode`] into as many words, by the calling thread. Where there is an error their content is of no use.
///
/// # Errors
/// Those of [`encode`].
///
/// # Panics
/// When the lengths differ.
pub fn encode_into(values: &[f32], (bits, scale, bound): (u8, u8, u8), words: &mut [u64]) -> Result<()> {
    if ombra_kernels::round::to_fixed(values, scale, bound, mask(bits), words) {
        return Ok(());
    }
    Err(Diagnostic::input("E0381", "a value does not fit its declared bound")
        .note(format!("expected less than 2^{bound} at scale {scale}"))
        .note("calibrate on inputs like these, or give the value more bits"))
}

/// Rounds floats of a shape to ring elements of a type, within its bound and its norms of rows and columns.
///
/// Errors: those of [`encode`], and `E0381` when a row or a column is longer; `E0380` for a type of other elements.
pub fn encode_as(values: &[f32], shape: &[usize], ty: &Ty) -> Result<Vec<u64>> {
    let (bits, scale) = ty.as_ring().ok_or_else(|| mismatch("expected a ring type"))?;
    let words = encode(values, bits, scale, ty.bound)?;
    if !ty.norms.is_none() {
        let mut measure = Measure::new(shape, Some(scale))?;
        measure.take(values);
        measure.check(&ty.norms)?;
    }
    Ok(words)
}

/// Values of at least this many elements are worked on by several threads.
const PARALLEL: usize = 1 << 15;

/// `f` of every element. An error when memory does not suffice.
pub(crate) fn map_elements<T: Sync, U: Send>(values: &[T], f: impl Fn(&T) -> U + Sync + Send) -> Result<Vec<U>> {
    let mut out = reserve(values.len())?;
    if values.len() < PARALLEL {
        out.extend(values.iter().map(f));
    } else {
        values.par_iter().with_min_len(PARALLEL / 2).map(f).collect_into_vec(&mut out);
    }
    Ok(out)
}

/// `f` of every pair of elements. An error when memory does not suffice.
fn zip_elements<A: Sync, B: Sync, U: Send>(a: &[A], b: &[B], f: impl Fn(&A, &B) -> U + Sync + Send) -> Result<Vec<U>> {
    let mut out = reserve(a.len().min(b.len()))?;
    if a.len() < PARALLEL {
        out.extend(a.iter().zip(b).map(|(x, y)| f(x, y)));
    } else {
        a.par_iter().zip(b).with_min_len(PARALLEL / 2).map(|(x, y)| f(x, y)).collect_into_vec(&mut out);
    }
    Ok(out)
}

/// The result of one op in the setting `3pc` where divisions round down.
///
/// As [`eval_rounded`].
///
/// # Errors
/// Those of [`eval_rounded`].
pub fn eval(op: &Op, args: &[(&RefValue, &Ty)], ty: &Ty, sizes: &Bindings) -> Result<RefValue> {
    eval_rounded(Setting::ThreeParty, op, args, ty, sizes, Rounding::Floor)
}

/// The result of one op, as shares of a setting give it.
///
/// Operands come with their types. `ty` is the type of the result, `sizes` the values of its symbols. `reveal` and
/// `set_state` return their operand. Errors: `E0380` when an operand is not what the op takes, `E0382` when the op is a
/// source (its value is given), `E0383` when an index is out of range, `E0384` when a value is too large.
pub fn eval_rounded(
    setting: Setting,
    op: &Op,
    args: &[(&RefValue, &Ty)],
    ty: &Ty,
    sizes: &Bindings,
    rounding: Rounding,
) -> Result<RefValue> {
    let meaning = op
        .description()
        .meaning
        .ok_or_else(|| Diagnostic::internal("E0382", format!("the value of {} is given, not computed", op.name())))?;
    let (args, types): (Vec<_>, Vec<_>) = args.iter().copied().unzip();
    meaning(
        op,
        &Evaluation {
            op,
            setting,
            args: &args,
            types: &types,
            ty,
            shape: concrete(&ty.shape, sizes)?,
            sizes,
            rounding,
        },
    )
}

/// The shape for the values of its symbols.
pub fn concrete(shape: &[Dim], sizes: &Bindings) -> Result<Vec<usize>> {
    shape.iter().map(|d| d.eval_usize(sizes)).collect()
}

/// The integer in two's complement.
pub fn signed(value: u64, bits: u8) -> i64 {
    let unused = 64u32.saturating_sub(bits.into()).min(63);
    ((value << unused) as i64) >> unused
}

/// Ones in the low `bits`.
pub fn mask(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1u64 << bits) - 1 }
}

/// Whether a value has the elements and the concrete shape of a type.
pub fn fits(value: &RefValue, ty: &Ty, sizes: &Bindings) -> Result<bool> {
    let elem = match (&value.data, ty.elem) {
        (RefData::Ring { bits, .. }, Elem::Ring { bits: expected, .. }) => *bits == expected,
        (RefData::Bit(_), Elem::Bit) => true,
        (RefData::Plain(data), Elem::Plain(dtype)) => data.dtype() == dtype,
        _ => false,
    };
    Ok(elem && value.shape == concrete(&ty.shape, sizes)?)
}

fn mismatch(what: impl Into<String>) -> Diagnostic {
    Diagnostic::internal("E0380", what)
}

fn check_len(shape: &[usize], found: usize) -> Result<()> {
    let expected = volume(shape)?;
    if expected != found {
        return Err(mismatch(format!("a value of shape {shape:?} has {found} elements, not {expected}")));
    }
    Ok(())
}

/// Number of elements of a shape. An error when it is beyond [`MAX_ELEMENTS`].
fn volume(shape: &[usize]) -> Result<usize> {
    let product = crate::plain::tensor::volume(shape)?;
    if product > MAX_ELEMENTS {
        return Err(too_large());
    }
    Ok(product)
}

fn too_large() -> Diagnostic {
    Diagnostic::input("E0384", "a value is too large for this machine").note("run with shorter inputs")
}

/// An empty vector with room for `len` elements. An error when memory does not suffice.
fn reserve<T>(len: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| too_large())?;
    Ok(out)
}

/// `len` copies of an element. An error when memory does not suffice.
fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>> {
    let mut out = reserve(len)?;
    out.resize(len, value);
    Ok(out)
}
