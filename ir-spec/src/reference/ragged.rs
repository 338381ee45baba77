//! Ragged rows: the entries that a mask keeps, row after row.

use super::movement::{broadcast, each_kind};
use super::{RefData, RefValue, filled, mismatch, reserve, signed, volume};
use crate::diag::Result;

/// The mask broadcast to a dense shape.
fn dense_mask(mask: &RefValue, dense: &[usize]) -> Result<Vec<bool>> {
    Ok(broadcast(mask.as_mask()?, &mask.shape, dense)?.into_owned())
}

/// Number of kept entries of every row.
fn row_lens(mask: &RefValue, dense: &[usize]) -> Result<Vec<usize>> {
    let (columns, rows) = dense.split_last().ok_or_else(|| mismatch("a dense shape without axes"))?;
    if *columns == 0 {
        return filled(0, volume(rows)?);
    }
    let kept = dense_mask(mask, dense)?;
    Ok(kept.chunks_exact(*columns).map(|row| row.iter().filter(|k| **k).count()).collect())
}

pub(crate) fn pack(x: &RefValue, mask: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
    let kept = dense_mask(mask, &x.shape)?;
    each_kind!(x, shape, |values| values.iter().zip(&kept).filter(|(_, k)| **k).map(|(v, _)| *v).collect())
}

pub(crate) fn unpack(x: &RefValue, mask: &RefValue, shape: Vec<usize>) -> Result<RefValue> {
    let kept = dense_mask(mask, &shape)?;
    let entries = kept.iter().filter(|k| **k).count();
    if x.shape != [entries] {
        return Err(mismatch(format!("{:?} packed entries, not {entries}", x.shape)));
    }
    each_kind!(x, shape, |values| {
        let mut rest = values.iter().copied();
        kept.iter().map(|k| if *k { rest.next().unwrap_or_default() } else { Default::default() }).collect()
    })
}

pub(crate) fn row_sum(x: &RefValue, mask: &RefValue, dense: &[usize], shape: Vec<usize>) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    fold_rows(bits, values, &row_lens(mask, dense)?, shape, |row| row.iter().fold(0, |s, v| s.wrapping_add(*v)))
}

pub(crate) fn row_max(x: &RefValue, mask: &RefValue, dense: &[usize], shape: Vec<usize>) -> Result<RefValue> {
    let (bits, values) = x.as_ring()?;
    fold_rows(bits, values, &row_lens(mask, dense)?, shape, |row| {
        row.iter().copied().max_by_key(|v| signed(*v, bits)).unwrap_or(0)
    })
}

fn fold_rows(
    bits: u8,
    values: &[u64],
    lens: &[usize],
    shape: Vec<usize>,
    f: impl Fn(&[u64]) -> u64,
) -> Result<RefValue> {
    let mut out = reserve(lens.len())?;
    let mut rest = values;
    for len in lens {
        let (row, tail) = rest.split_at_checked(*len).ok_or_else(|| mismatch("too few packed entries"))?;
        out.push(f(row));
        rest = tail;
    }
    if !rest.is_empty() {
        return Err(mismatch("too many packed entries"));
    }
    RefValue::ring(bits, shape, out)
}

pub(crate) fn row_expand(x: &RefValue, mask: &RefValue, dense: &[usize], shape: Vec<usize>) -> Result<RefValue> {
    let lens = row_lens(mask, dense)?;
    let len = volume(&shape)?;
    each_kind!(x, shape, |values| {
        if values.len() != lens.len() {
            return Err(mismatch(format!("{} elements for {} rows", values.len(), lens.len())));
        }
        let mut out = reserve(len)?;
        for (v, count) in values.iter().zip(&lens) {
            out.extend(std::iter::repeat_n(*v, *count));
        }
        out
    })
}
