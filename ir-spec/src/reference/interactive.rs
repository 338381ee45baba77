//! Bits and comparisons.

use super::movement::broadcast;
use super::{RefValue, map_elements, mismatch, signed, zip_elements};
use crate::diag::Result;

/// The sign bit of the low `width` bits.
pub(super) fn msb(x: &RefValue, width: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let shift = u32::from(width.clamp(1, 64)) - 1;
    RefValue::bit(x.shape.clone(), map_elements(values, |v| (v >> shift) & 1 == 1)?)
}

/// `f` on pairs of bits with broadcasting.
pub(super) fn zip(
    a: &RefValue,
    b: &RefValue,
    shape: Vec<usize>,
    f: impl Fn(bool, bool) -> bool + Sync + Send,
) -> Result<RefValue> {
    let x = broadcast(a.as_bits()?, &a.shape, &shape)?;
    let y = broadcast(b.as_bits()?, &b.shape, &shape)?;
    RefValue::bit(shape, zip_elements(&x, &y, |x, y| f(*x, *y))?)
}

/// The index of the greatest element of every row; the first of equal ones.
pub(super) fn arg_max(x: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
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
