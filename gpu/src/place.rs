//! Right operands in the device's memory.
//!
//! A matrix lies there in slabs of whole rows, since a device binds buffers up to a limit. Where the operand is given by
//! rows, the products of slabs are summed; where it is given with its axes exchanged, each makes columns of the result.

use std::sync::Arc;

use wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, ErrorFilter};

use crate::device::Gpu;
use crate::product::MOST_SLABS;
use crate::text::few_columns;
use crate::{Error, Result};

/// A matrix in the memory of a device. It is cleared when it is dropped.
pub struct Placed {
    gpu: Arc<Gpu>,
    pub(crate) slabs: Vec<Slab>,
    rows: usize,
    columns: usize,
}

/// Some rows of a matrix.
pub(crate) struct Slab {
    pub(crate) buffer: Buffer,
    pub(crate) rows: usize,
}

/// A matrix that is being sent to a device.
pub struct Placing {
    matrix: Placed,
    /// Elements that are there.
    done: usize,
}

/// Bytes of elements.
pub(crate) fn bytes_of(elements: usize) -> u64 {
    (elements as u64).saturating_mul(8)
}

impl Gpu {
    /// Takes room for a `rows` x `columns` matrix, whose elements [`Placing::put`] sends row by row. `None` where the
    /// device has no room for it, or cannot bind it.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn place(self: &Arc<Gpu>, rows: usize, columns: usize) -> Result<Option<Placing>> {
        let line = bytes_of(columns);
        let Some(total) = (rows as u64).checked_mul(line).filter(|bytes| *bytes > 0) else { return Ok(None) };
        // Rows of a slab are columns of the result where axes are exchanged.
        let groups = u64::from(self.groups) * u64::from(few_columns(true));
        let step = (self.binding / line).min(groups);
        let too_wide = columns as u64 > u64::from(self.groups) * u64::from(few_columns(false));
        if step == 0 || too_wide || (rows as u64).div_ceil(step) > MOST_SLABS as u64 || !self.take_room(total) {
            return Ok(None);
        }
        // From here on the matrix gives its room back when it is dropped.
        let mut matrix = Placed { gpu: Arc::clone(self), slabs: Vec::new(), rows, columns };
        let step = step as usize;
        let full = self.guarded(|| {
            for start in (0..rows).step_by(step) {
                let rows = step.min(rows - start);
                let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
                let buffer = self.device.create_buffer(&BufferDescriptor {
                    label: None,
                    size: bytes_of(rows * columns),
                    usage: BufferUsages::STORAGE | BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                if pollster::block_on(scope.pop()).is_some() {
                    return Ok(true);
                }
                matrix.slabs.push(Slab { buffer, rows });
            }
            Ok(false)
        })?;
        Ok((!full).then_some(Placing { matrix, done: 0 }))
    }
}

impl Placing {
    /// Sends the next elements, in the order of rows.
    ///
    /// # Errors
    /// [`Error::Sizes`] for more than the matrix has, [`Error::Failed`].
    pub fn put(&mut self, words: &[u64]) -> Result<()> {
        let Placed { gpu, slabs, rows, columns } = &self.matrix;
        if words.len() > rows * columns - self.done {
            return Err(Error::Sizes("more elements than the matrix has".to_owned()));
        }
        let mut rest = words;
        let mut start = 0;
        for slab in slabs {
            let len = slab.rows * columns;
            if rest.is_empty() {
                break;
            }
            if self.done < start + len {
                let at = self.done - start;
                let (now, later) = rest.split_at(rest.len().min(len - at));
                gpu.with_scratch(|scratch| scratch.send(gpu, now, &slab.buffer, at))?;
                self.done += now.len();
                rest = later;
            }
            start += len;
        }
        Ok(())
    }

    /// The matrix, once all of it is there.
    ///
    /// # Errors
    /// [`Error::Sizes`] where elements are missing.
    pub fn end(self) -> Result<Placed> {
        if self.done != self.matrix.rows * self.matrix.columns {
            return Err(Error::Sizes("fewer elements than the matrix has".to_owned()));
        }
        Ok(self.matrix)
    }
}

impl Placed {
    /// Rows and columns, as they were sent.
    pub fn sizes(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Adds to `out`, m x n by rows, the product of `x`, m x k by rows, with this matrix, or with its transposed where
    /// `trans_b` says that its axes are exchanged. `m` follows from `x`.
    ///
    /// # Errors
    /// [`Error::Sizes`] for operands of other sizes, [`Error::Failed`].
    pub fn add_product(&self, x: &[u64], trans_b: bool, out: &mut [u64]) -> Result<()> {
        let (k, n) = if trans_b { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let m = x.len() / k;
        if m * k != x.len() || m.checked_mul(n) != Some(out.len()) {
            let (x, out) = (x.len(), out.len());
            return Err(Error::Sizes(format!("{x} elements times a {k} x {n} matrix do not give {out}")));
        }
        if bytes_of(k.max(n)) > self.gpu.binding {
            return Err(Error::Sizes(format!("rows of {k} and {n} elements are too long for the device")));
        }
        if x.is_empty() {
            return Ok(());
        }
        let gpu = &self.gpu;
        gpu.with_scratch(|scratch| scratch.add_product(gpu, (x, k), (&self.slabs, self.columns, trans_b), (out, n)))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let Placed { gpu, slabs, rows, columns } = self;
        // A device that failed is not asked again.
        let _ = gpu.guarded(|| {
            let mut encoder = gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
            slabs.iter().for_each(|slab| encoder.clear_buffer(&slab.buffer, 0, None));
            gpu.queue.submit([encoder.finish()]);
            Ok(())
        });
        gpu.give_room(bytes_of(*rows * *columns));
    }
}
