//! The meaning of [`Op::RatioSoftmax`](super::Op): `g(x) / (Σ g(x) + eps)` over the entries of a row that a mask keeps.

use ombra_ir::plain::{self, DEFAULT_LIMIT, Data, Tensor};
use ombra_ir::{Bindings, Diagnostic, Dim, Result};

use super::Numerator;

impl Numerator {
    /// The numerator of one score.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Numerator::Relu => x.max(0.0),
            Numerator::Square { shift } => (x + shift) * (x + shift),
        }
    }
}

/// The quotients, 0 where the mask does not hold and where the divisor is 0. The mask broadcasts to `x`.
pub(super) fn eval(x: &Tensor, mask: Option<&Tensor>, axis: usize, numerator: Numerator, eps: f32) -> Result<Tensor> {
    let values = x.as_f32()?;
    let mut out = vec![0.0f32; values.len()];
    for row in kept_rows(x, mask, axis)? {
        let entry = |i: &usize| numerator.of(values.get(*i).copied().unwrap_or(0.0));
        let divisor = row.iter().map(entry).sum::<f32>() + eps;
        for i in row.iter().filter(|_| divisor != 0.0) {
            if let Some(slot) = out.get_mut(*i) {
                *slot = entry(i) / divisor;
            }
        }
    }
    Tensor::f32(x.shape(), out)
}

/// The divisor of a row.
pub struct Divisor {
    /// The sum of its entries, and eps.
    pub divisor: f64,
    /// The same over the number of entries, at least [`SHORT`]; for positive parts with the root of the mean square of the
    /// scores in place of the mean entry, which is no more.
    pub mean: f64,
}

/// Entries as which those of shorter rows count: a few large ones say nothing of the mean of many.
const SHORT: f64 = 16.0;

/// The divisors of all rows that have an entry.
///
/// # Errors
/// As the operator.
pub fn divisors(
    x: &Tensor,
    mask: Option<&Tensor>,
    axis: usize,
    numerator: Numerator,
    eps: f32,
) -> Result<Vec<Divisor>> {
    let values = x.as_f32()?;
    let score = |i: &usize| values.get(*i).copied().unwrap_or(0.0);
    let rows = kept_rows(x, mask, axis)?;
    let of = |row: &Vec<usize>| {
        let (n, eps) = ((row.len() as f64).max(SHORT), f64::from(eps));
        let sum = row.iter().map(|i| f64::from(numerator.of(score(i)))).sum::<f64>();
        let mean = match numerator {
            Numerator::Relu => {
                let squares = row.iter().map(|i| f64::from(score(i)) * f64::from(score(i))).sum::<f64>();
                libm::sqrt(squares / n)
            }
            Numerator::Square { .. } => sum / n,
        };
        Divisor { divisor: sum + eps, mean: mean + eps / n }
    };
    Ok(rows.iter().filter(|row| !row.is_empty()).map(of).collect())
}

/// A mask with the shape of `x`.
///
/// # Errors
/// A mask of another type, or that does not broadcast to `x`.
pub(super) fn broadcast_mask(x: &Tensor, mask: &Tensor) -> Result<Vec<bool>> {
    let shape = x.shape().iter().map(|d| Dim::from_usize(*d)).collect::<Result<_>>()?;
    let full = plain::eval(&plain::Op::Expand { shape }, &[mask], &Bindings::new(), DEFAULT_LIMIT)?;
    match full.into_parts().1 {
        Data::Bool(v) => Ok(v),
        _ => Err(Diagnostic::internal("E0299", "a mask is not of type bool")),
    }
}

/// For every row along `axis`, the positions of the entries that the mask keeps.
///
/// # Errors
/// A mask of another type, or that does not broadcast to `x`.
pub(super) fn kept_rows(x: &Tensor, mask: Option<&Tensor>, axis: usize) -> Result<Vec<Vec<usize>>> {
    let mask = mask.map(|m| broadcast_mask(x, m)).transpose()?;
    let size = x.shape().get(axis).copied().unwrap_or(1);
    let inner: usize = x.shape().iter().skip(axis + 1).product();
    let rows = x.len().checked_div(size).unwrap_or(0);
    let kept = |i: &usize| mask.as_ref().is_none_or(|m| m.get(*i).copied().unwrap_or(false));
    Ok((0..rows)
        .map(|row| {
            let base = row / inner.max(1) * size * inner + row % inner.max(1);
            (0..size).map(|k| base + k * inner).filter(kept).collect()
        })
        .collect())
}
