//! A module with its sizes known: what one step of a run works with.
//!
//! Binding evaluates the public program, counts masks, and gives every value its concrete shape. It is the same at
//! every party, since it depends on public values alone.

use crate::diag::{Diagnostic, Result};
use crate::dim::{Bindings, Dim};
use crate::module::{Id, Module};
use crate::op::Op;
use crate::plain::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most elements of one value: more is refused before anything is allocated.
pub const MAX_ELEMENTS: u64 = 1 << 33;

/// Most elements of one tensor of the public program.
const PUBLIC_LIMIT: usize = 1 << 28;

/// The entries that a mask keeps, row after row.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    /// Positions of the kept entries in the dense tensor, ascending; empty after [`bind_lengths`].
    pub keep: Vec<u32>,
    /// Kept entries of every row (all axes but the last, flattened).
    pub lens: Vec<u32>,
    /// Number of elements of the dense tensor.
    pub dense: usize,
}

/// One step's sizes and public values.
#[derive(Debug)]
pub struct Bound {
    /// Values of the module's symbols.
    pub bindings: Bindings,
    /// Outputs of the public program, by index.
    pub public: Vec<Tensor>,
    /// Shape of every op's result.
    pub shapes: Vec<Vec<usize>>,
    rows: BTreeMap<(u32, Vec<usize>), Arc<Rows>>,
}

/// Binds `module` to sizes of its free symbols and to its public inputs, by name.
///
/// # Errors
/// A symbol without a value or out of its range, a public input that is missing or of another shape, a size that is
/// negative or beyond [`MAX_ELEMENTS`].
pub fn bind(module: &Module, sizes: &[(&str, u64)], inputs: &[(String, Tensor)]) -> Result<Bound> {
    bind_as(module, sizes, inputs, u64::MAX, true)
}

/// [`bind`] for costs, which need the lengths of rows and not the positions of their entries: those of long prompts take
/// much memory.
///
/// # Errors
/// Those of [`bind`].
pub fn bind_lengths(module: &Module, sizes: &[(&str, u64)], inputs: &[(String, Tensor)]) -> Result<Bound> {
    bind_as(module, sizes, inputs, u64::MAX, false)
}

/// [`bind`] for sizes that another party chose: public values and masks take at most `limit` bytes, which is checked
/// from their shapes before they are computed.
///
/// # Errors
/// Those of [`bind`], and `E0405` above the limit.
pub fn bind_within(module: &Module, sizes: &[(&str, u64)], inputs: &[(String, Tensor)], limit: u64) -> Result<Bound> {
    bind_as(module, sizes, inputs, limit, true)
}

/// [`bind_lengths`], where more than `limit` bytes are refused as [`bind_within`] does.
///
/// # Errors
/// Those of [`bind_within`].
pub fn bind_lengths_within(
    module: &Module,
    sizes: &[(&str, u64)],
    inputs: &[(String, Tensor)],
    limit: u64,
) -> Result<Bound> {
    bind_as(module, sizes, inputs, limit, false)
}

fn bind_as(
    module: &Module,
    sizes: &[(&str, u64)],
    inputs: &[(String, Tensor)],
    limit: u64,
    positions: bool,
) -> Result<Bound> {
    let mut bindings = module.dims.bind(sizes)?;
    let mut bytes = module.public.bytes(&bindings)?;
    check_bytes(bytes, limit)?;
    let mut given = Vec::with_capacity(module.public.inputs.len());
    for input in &module.public.inputs {
        let found = inputs.iter().find(|(name, _)| *name == input.name).ok_or_else(|| {
            Diagnostic::input("E0400", format!("public input `{}` is missing", input.name))
                .note("give it, or let it have its default: no padding, positions from the cache's length")
        })?;
        given.push(found.1.clone());
    }
    let public = module.public.run(&bindings, &given, PUBLIC_LIMIT)?;
    let mut rows = BTreeMap::new();
    for count in &module.counts {
        let shape = concrete(&count.shape, &bindings)?;
        bytes = bytes.saturating_add(rows_bytes(&shape));
        check_bytes(bytes, limit)?;
        let kept = rows_of(mask_value(&public, count.mask)?, &shape, positions)?;
        bindings.set(count.sym, kept.lens.iter().map(|&n| u64::from(n)).sum());
        rows.insert((count.mask, shape), Arc::new(kept));
    }
    let mut shapes = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let shape = concrete(&node.ty.shape, &bindings).map_err(|d| d.at(place(module, Id(i as u32))))?;
        shapes.push(shape);
    }
    let mut bound = Bound { bindings, public, shapes, rows };
    for i in 0..module.ops.len() {
        let Some((mask, dense)) = ragged_of(module, &bound, Id(i as u32))? else { continue };
        if !bound.rows.contains_key(&(mask, dense.clone())) {
            bytes = bytes.saturating_add(rows_bytes(&dense));
            check_bytes(bytes, limit)?;
            let kept = rows_of(mask_value(&bound.public, mask)?, &dense, positions)?;
            bound.rows.insert((mask, dense), Arc::new(kept));
        }
    }
    Ok(bound)
}

impl Bound {
    /// Number of elements of a value.
    pub fn len(&self, id: Id) -> usize {
        self.shapes[id.index()].iter().product()
    }

    /// The rows a ragged op (`pack`, `unpack`, `row_sum`, `row_expand`, `row_max`) works on.
    ///
    /// # Errors
    /// The op is not ragged.
    pub fn rows(&self, module: &Module, id: Id) -> Result<Arc<Rows>> {
        ragged_of(module, self, id)?
            .and_then(|key| self.rows.get(&key).cloned())
            .ok_or_else(|| Diagnostic::internal("E0401", "op has no rows").at(place(module, id)))
    }
}

/// Refuses a step that takes `bytes` of memory, more than `limit`.
///
/// # Errors
/// `E0405`.
pub fn check_bytes(bytes: u64, limit: u64) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    Err(Diagnostic::input("E0405", "a step of these sizes takes more memory than is allowed")
        .note(format!("expected  at most {limit} bytes"))
        .note(format!("found     about {bytes} bytes"))
        .note("help      use shorter inputs or a smaller batch, or allow more memory"))
}

/// Most bytes of the [`Rows`] of a mask that is broadcast to `shape`.
fn rows_bytes(shape: &[usize]) -> u64 {
    let dense = shape.iter().fold(4u64, |bytes, &size| bytes.saturating_mul(size as u64));
    dense.saturating_add(dense / shape.last().map_or(1, |&size| size.max(1) as u64))
}

/// `op 12 (softmax of /model/layers.0/…)`, for messages.
pub fn place(module: &Module, id: Id) -> String {
    let node = module.node(id);
    format!("op %{} {} of {}", id.0, node.op.name(), node.origin.node)
}

/// Sizes with symbols replaced, and their product in range.
pub fn concrete(shape: &[Dim], bindings: &Bindings) -> Result<Vec<usize>> {
    let mut elements = 1u64;
    let mut sizes = Vec::with_capacity(shape.len());
    for dim in shape {
        let size = dim.eval(bindings)?;
        elements = elements.checked_mul(size).filter(|&n| n <= MAX_ELEMENTS).ok_or_else(|| {
            Diagnostic::input("E0402", "a value would be too large")
                .note(format!("expected at most {MAX_ELEMENTS} elements"))
                .note("use shorter inputs")
        })?;
        sizes.push(size as usize);
    }
    Ok(sizes)
}

fn ragged_of(module: &Module, bound: &Bound, id: Id) -> Result<Option<(u32, Vec<usize>)>> {
    let node = module.node(id);
    let dense = match &node.op {
        Op::Pack => bound.shapes[node.args[0].index()].clone(),
        Op::Unpack { shape } | Op::RowSum { shape } | Op::RowExpand { shape } | Op::RowMax { shape, .. } => {
            concrete(shape, &bound.bindings)?
        }
        _ => return Ok(None),
    };
    match module.node(node.args[1]).op {
        Op::Public { value } => Ok(Some((value, dense))),
        _ => Err(Diagnostic::input("E0403", "mask is not a public value").at(place(module, id))),
    }
}

fn mask_value(public: &[Tensor], value: u32) -> Result<&Tensor> {
    public
        .get(value as usize)
        .ok_or_else(|| Diagnostic::input("E0404", "mask names a public value that does not exist"))
}

/// What a boolean mask, broadcast to `shape`, keeps; `positions` of entries only where they are wanted.
fn rows_of(mask: &Tensor, shape: &[usize], positions: bool) -> Result<Rows> {
    let values = mask.as_bool()?;
    let rank = shape.len();
    let offset = rank.checked_sub(mask.rank());
    let fits = |o: usize| mask.shape().iter().zip(&shape[o..]).all(|(&m, &s)| m == s || m == 1);
    let Some(offset) = offset.filter(|&o| fits(o)) else {
        return Err(Diagnostic::input("E0406", "mask does not broadcast to the scores")
            .note(format!("expected a mask for {shape:?}, found {:?}", mask.shape())));
    };
    let columns = shape.last().copied().unwrap_or(1);
    // Rows without columns are rows all the same.
    let leading = shape.split_last().map_or(&[][..], |(_, leading)| leading);
    let row_count = leading.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).unwrap_or(usize::MAX);
    let dense = row_count.saturating_mul(columns);
    if row_count > u32::MAX as usize || dense > u32::MAX as usize {
        return Err(Diagnostic::input("E0402", "a masked value would be too large"));
    }
    let mut strides = vec![0usize; rank];
    let mut stride = 1;
    for axis in (offset..rank).rev() {
        let size = mask.shape()[axis - offset];
        strides[axis] = if size == 1 { 0 } else { stride };
        stride *= size;
    }
    let column_stride = strides.last().copied().unwrap_or(0);
    let mut rows = Rows { keep: Vec::new(), lens: Vec::with_capacity(row_count), dense };
    let mut index = vec![0usize; rank.saturating_sub(1)];
    // Rows that are the same part of the mask have the same length.
    let mut counted: BTreeMap<usize, u32> = BTreeMap::new();
    for row in 0..row_count {
        let start: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        let kept = |column: &usize| values[start + column * column_stride];
        let len = *counted.entry(start).or_insert_with(|| (0..columns).filter(kept).count() as u32);
        if positions {
            rows.keep.extend((0..columns).filter(kept).map(|column| (row * columns + column) as u32));
        }
        rows.lens.push(len);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_rows_broadcast_over_heads() {
        let mask = Tensor::bool(&[1, 1, 2, 3], vec![true, true, false, true, true, true]).expect("six elements");
        let rows = rows_of(&mask, &[1, 2, 2, 3], true).expect("the mask broadcasts");
        let lengths = rows_of(&mask, &[1, 2, 2, 3], false).expect("the mask broadcasts");
        assert_eq!((lengths.lens, lengths.keep), (rows.lens.clone(), vec![]));
        assert_eq!(rows.lens, [2, 3, 2, 3]);
        assert_eq!(rows.keep, [0, 1, 3, 4, 5, 6, 7, 9, 10, 11]);
        assert!(rows_of(&mask, &[1, 2, 2, 4], true).is_err());
    }

    #[test]
    fn rows_without_columns_are_rows() {
        let mask = Tensor::bool(&[1, 0], vec![]).expect("no element");
        let rows = rows_of(&mask, &[2, 3, 0], true).expect("the mask broadcasts");
        assert_eq!((rows.lens, rows.keep, rows.dense), (vec![0; 6], vec![], 0));
        let huge = [1 << 20, 1 << 20, 0];
        assert_eq!(rows_of(&mask, &huge, false).err().map(|e| e.code), Some("E0402"));
    }
}
