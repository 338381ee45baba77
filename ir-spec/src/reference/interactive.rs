//! Bits and comparisons.

use super::movement::broadcast;
use super::{RefValue, map_elements, mismatch, signed, zip_elements};
use crate::curve::{Cells, Curve};
use crate::diag::Result;

/// The sign bit of the low `width` bits.
pub(crate) fn msb(x: &RefValue, width: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let shift = u32::from(width.clamp(1, 64)) - 1;
    RefValue::bit(x.shape.clone(), map_elements(values, |v| (v >> shift) & 1 == 1)?)
}

/// `f` on pairs of bits with broadcasting.
pub(crate) fn zip(
    a: &RefValue,
    b: &RefValue,
    shape: Vec<usize>,
    f: impl Fn(bool, bool) -> bool + Sync + Send,
) -> Result<RefValue> {
    let x = broadcast(a.as_bits()?, &a.shape, &shape)?;
    let y = broadcast(b.as_bits()?, &b.shape, &shape)?;
    RefValue::bit(shape, zip_elements(&x, &y, |x, y| f(*x, *y))?)
}

/// `e^x` in a ring of `bits` with `fraction` bits, rounded down, of what `x` has modulo `2^window`: three quarters of that are
/// below zero.
pub(crate) fn exp_digits(x: &RefValue, (scale, window): (u8, u8), (bits, fraction): (u8, u8)) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let (unit, window) = (libm::exp2(-f64::from(scale)), window + scale);
    let quarter = 1u64 << (window - 2);
    let exp = |v: &u64| {
        let x = signed(v.wrapping_add(quarter), window) - quarter as i64;
        libm::floor(libm::ldexp(libm::exp(x as f64 * unit), fraction.into())) as u64
    };
    RefValue::ring(bits, x.shape.clone(), map_elements(values, exp)?)
}

/// `f(x)` by the polynomial of the cell of `x`, of what `x` has modulo `2^window`.
pub(crate) fn lookup(x: &RefValue, curve: Curve, cells: Cells, bits: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let table = cells.polynomials(curve)?;
    let of = |v: &u64| {
        let low = v & ((1 << cells.window.min(63)) - 1);
        let (at, u) = ((low >> cells.cell) as usize, i128::from(low & ((1 << cells.cell) - 1)));
        let get = |list: &Vec<i64>| i128::from(list.get(at).copied().unwrap_or(0));
        table.iter().rev().fold(0, |sum, list| ((sum * u) >> cells.cell) + get(list)) as u64
    };
    RefValue::ring(bits, x.shape.clone(), map_elements(values, of)?)
}

/// The index of the maximum element of every row; the first of equal ones.
pub(crate) fn arg_max(x: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    let columns = x.shape.last().copied().filter(|c| *c > 0);
    let columns = columns.ok_or_else(|| mismatch(format!("arg_max of shape {:?}", x.shape)))?;
    let first_greatest = |row: &[u64]| {
        let mut best = (0u64, i64::MIN);
        for (i, v) in (0u64..).zip(row) {
            let v = signed(*v, bits);
            if v > best.1 {
                best = (i, v);
            }
        }
        best.0
    };
    RefValue::ring(bits, shape, values.chunks_exact(columns).map(first_greatest).collect())
}
