//! Bits and comparisons.

use super::movement::broadcast;
use super::{RefValue, map_elements, mismatch, signed, zip_elements};
use crate::diag::Result;
use crate::op::{EXP_RING, EXP_SCALE, EXP_WINDOW};

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

/// `e^x`, rounded down, of what `x` has modulo `2^EXP_WINDOW`: three quarters of that are below zero.
pub(crate) fn exp_digits(x: &RefValue, scale: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let (unit, window) = (libm::exp2(-f64::from(scale)), EXP_WINDOW + scale);
    let quarter = 1u64 << (window - 2);
    let exp = |v: &u64| {
        let x = signed(v.wrapping_add(quarter), window) - quarter as i64;
        libm::floor(libm::ldexp(libm::exp(x as f64 * unit), EXP_SCALE.into())) as u64
    };
    RefValue::ring(EXP_RING, x.shape.clone(), map_elements(values, exp)?)
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
