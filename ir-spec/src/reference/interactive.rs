//! Bits and comparisons.

use super::movement::{broadcast_strides, strided};
use super::{RefValue, mismatch, signed};
use crate::diag::Result;

/// The sign bit of the low `width` bits.
pub(super) fn msb(x: &RefValue, width: u8) -> Result<RefValue> {
    let (_, values) = x.as_ring()?;
    let shift = u32::from(width.clamp(1, 64)) - 1;
    RefValue::bit(x.shape.clone(), values.iter().map(|v| (v >> shift) & 1 == 1).collect())
}

/// `f` on pairs of bits with broadcasting.
pub(super) fn zip(a: &RefValue, b: &RefValue, shape: Vec<usize>, f: impl Fn(bool, bool) -> bool) -> Result<RefValue> {
    let x = strided(a.as_bits()?, &shape, &broadcast_strides(&a.shape, &shape)?, 0)?;
    let y = strided(b.as_bits()?, &shape, &broadcast_strides(&b.shape, &shape)?, 0)?;
    RefValue::bit(shape, x.into_iter().zip(y).map(|(x, y)| f(x, y)).collect())
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
