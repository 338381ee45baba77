//! An op whose result is computed in the clear.

use super::{RefData, RefValue, Rounding, concrete, map_elements, mismatch, signed, zip_elements};
use crate::diag::{Diagnostic, Result};
use crate::dim::{Bindings, Dim};
use crate::op::Op;
use crate::settings::Setting;
use crate::ty::Ty;

/// What the meaning of an op is given: operands with their types, the result's type, and its shape for the step's sizes.
pub struct Evaluation<'a> {
    pub(super) op: &'a Op,
    pub(crate) setting: Setting,
    pub(crate) args: &'a [&'a RefValue],
    pub(super) types: &'a [&'a Ty],
    pub(crate) ty: &'a Ty,
    pub(crate) shape: Vec<usize>,
    pub(crate) sizes: &'a Bindings,
    pub(crate) rounding: Rounding,
}

impl<'a> Evaluation<'a> {
    /// The operands, `N` of them.
    pub(crate) fn operands<const N: usize>(&self) -> Result<[&'a RefValue; N]> {
        self.args.try_into().map_err(|_| self.other())
    }

    /// The one operand.
    pub(crate) fn operand(&self) -> Result<&'a RefValue> {
        self.operands::<1>().map(|[x]| x)
    }

    /// Fraction bits of the first operand; 0 where it has none.
    pub(crate) fn scale_of_operand(&self) -> u8 {
        self.types.first().and_then(|ty| ty.as_ring()).map_or(0, |(_, scale)| scale)
    }

    /// An operand is not what the op takes.
    pub(crate) fn mismatch(&self, what: &str) -> Diagnostic {
        mismatch(what)
    }

    /// The op or the number of its operands is another one.
    pub(crate) fn other(&self) -> Diagnostic {
        mismatch(format!("{} of {} operands has no meaning", self.op.name(), self.args.len()))
    }

    /// A shape for the values of its symbols.
    pub(crate) fn concrete(&self, shape: &[Dim]) -> Result<Vec<usize>> {
        concrete(shape, self.sizes)
    }

    /// `f` of every real that the operand stands for, rounded to the nearest element of the result's ring.
    pub(crate) fn map(&self, f: impl Fn(f64) -> f64 + Sync + Send) -> Result<RefValue> {
        let (_, round) = (self.operand()?, self.rounding_to_result()?);
        RefValue::ring(self.bits(), self.shape.clone(), map_elements(&self.reals(0)?, |x| round(f(*x)))?)
    }

    /// `f` of every pair of reals, with broadcasting.
    pub(crate) fn zip(&self, f: impl Fn(f64, f64) -> f64 + Sync + Send) -> Result<RefValue> {
        let ([a, b], round) = (self.operands()?, self.rounding_to_result()?);
        let (x, y) = (self.reals(0)?, self.reals(1)?);
        let x = super::movement::broadcast(&x, &a.shape, &self.shape)?;
        let y = super::movement::broadcast(&y, &b.shape, &self.shape)?;
        RefValue::ring(self.bits(), self.shape.clone(), zip_elements(&x, &y, |x, y| round(f(*x, *y)))?)
    }

    /// `f` of every row of reals along the last axis.
    pub(crate) fn rows(&self, f: impl Fn(&mut [f64])) -> Result<RefValue> {
        let (x, round) = (self.operand()?, self.rounding_to_result()?);
        let mut reals = self.reals(0)?;
        if let Some(columns) = x.shape.last().copied().filter(|n| *n > 0) {
            reals.chunks_exact_mut(columns).for_each(f);
        }
        RefValue::ring(self.bits(), self.shape.clone(), map_elements(&reals, |x| round(*x))?)
    }

    /// `f` of the entries of every row that the mask, operand 1, keeps; 0 elsewhere.
    pub(crate) fn masked_rows(&self, f: impl Fn(&mut [f64])) -> Result<RefValue> {
        let ([x, mask], round) = (self.operands()?, self.rounding_to_result()?);
        let kept = super::movement::broadcast(mask.as_mask()?, &mask.shape, &x.shape)?;
        let mut reals = self.reals(0)?;
        if let Some(columns) = x.shape.last().copied().filter(|n| *n > 0) {
            for (row, kept) in reals.chunks_exact_mut(columns).zip(kept.chunks_exact(columns)) {
                let mut packed: Vec<f64> = row.iter().zip(kept).filter(|(_, k)| **k).map(|(x, _)| *x).collect();
                f(&mut packed);
                let mut rest = packed.into_iter();
                row.iter_mut().zip(kept).for_each(|(x, k)| *x = if *k { rest.next().unwrap_or(0.0) } else { 0.0 });
            }
        }
        RefValue::ring(self.bits(), self.shape.clone(), map_elements(&reals, |x| round(*x))?)
    }

    /// The reals that an operand stands for.
    fn reals(&self, operand: usize) -> Result<Vec<f64>> {
        let (Some(value), Some(ty)) = (self.args.get(operand), self.types.get(operand)) else {
            return Err(self.other());
        };
        let RefData::Ring { bits, values } = &value.data else { return Err(mismatch("expected ring elements")) };
        let (_, scale) = ty.as_ring().ok_or_else(|| mismatch("expected a ring type"))?;
        let (bits, unit) = (*bits, libm::exp2(-f64::from(scale)));
        map_elements(values, |v| signed(*v, bits) as f64 * unit)
    }

    /// Ring bits of the result.
    fn bits(&self) -> u8 {
        self.ty.as_ring().map_or(0, |(bits, _)| bits)
    }

    /// The nearest element of the result's ring; the last one for what is beyond, and 0 for what is no number.
    fn rounding_to_result(&self) -> Result<impl Fn(f64) -> u64 + Sync + Send + use<>> {
        let (bits, scale) = self.ty.as_ring().ok_or_else(|| mismatch("expected a ring type"))?;
        let (unit, most) = (libm::exp2(scale.into()), (super::mask(bits) >> 1) as i64);
        Ok(move |x: f64| (libm::round(x * unit) as i64).clamp(-most, most) as u64)
    }
}
