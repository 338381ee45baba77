//! Matrix products of words, batched as in ONNX.

use std::borrow::Cow;

use ombra_ir::{Diagnostic, Result};

use super::broadcast::{broadcast_shape, strides, volume};
use crate::backend::gemm::{MatRef, gemm_acc};

/// Shapes of a product: batches and the three sizes.
pub struct Plan {
    m: usize,
    k: usize,
    n: usize,
    /// Where the matrices of every batch begin in both operands.
    batches: Vec<(usize, usize)>,
    trans_b: bool,
}

/// The words of a product's terms, `Σ a·b` of pairs whose missing members are zero.
pub type Pairs<'a> = [(Option<Cow<'a, [u64]>>, Option<Cow<'a, [u64]>>)];

impl Plan {
    /// The product of operands of two shapes, where `trans_b` says that the right one is given with its last two axes
    /// exchanged. E0804 when there is none.
    pub fn new(x: &[usize], y: &[usize], trans_b: bool) -> Result<Plan> {
        let wrong = || Diagnostic::internal("E0804", format!("matrices of shapes {x:?} and {y:?} have no product"));
        let ([x_batch @ .., m, k], [y_batch @ .., r, c]) = (x, y) else { return Err(wrong()) };
        let (inner, n) = if trans_b { (*c, *r) } else { (*r, *c) };
        if inner != *k {
            return Err(wrong());
        }
        let batch = broadcast_shape(x_batch, y_batch)?;
        let count = volume(&batch)?;
        let (sx, sy) = (strides(x_batch, &batch)?, strides(y_batch, &batch)?);
        let mut batches = Vec::with_capacity(count);
        for flat in 0..count {
            let (mut rest, mut i, mut j) = (flat, 0, 0);
            for axis in (0..batch.len()).rev() {
                let at = rest % batch[axis];
                rest /= batch[axis];
                i += at * sx[axis];
                j += at * sy[axis];
            }
            batches.push((i * m * k, j * r * c));
        }
        Ok(Plan { m: *m, k: *k, n, batches, trans_b }.with_rows_merged())
    }

    /// One product of all rows where every batch has the same right operand.
    fn with_rows_merged(self) -> Plan {
        let size = self.m * self.k;
        let one_right = self.batches.iter().enumerate().all(|(b, at)| *at == (b * size, 0));
        if self.batches.len() > 1 && one_right {
            return Plan { m: self.m * self.batches.len(), batches: vec![(0, 0)], ..self };
        }
        self
    }

    /// How many products there are, and rows, inner size and columns of each: all rows that meet one matrix are rows of one.
    pub fn sizes(&self) -> [usize; 4] {
        [self.batches.len(), self.m, self.k, self.n]
    }

    /// The left matrices of all products, row by row. E0804 when the operand is not as large as its shape.
    pub fn left(&self, x: &[u64]) -> Result<Vec<u64>> {
        every(x, self.batches.iter().map(|(at, _)| *at), self.m * self.k)
    }

    /// The right matrices of all products, with their axes as they are given. E0804 when the operand is not as large as its
    /// shape.
    pub fn right(&self, y: &[u64]) -> Result<Vec<u64>> {
        every(y, self.batches.iter().map(|(_, at)| *at), self.k * self.n)
    }

    /// Whether right matrices are given with their axes exchanged.
    pub fn trans_b(&self) -> bool {
        self.trans_b
    }

    /// `Σ a·b` over the pairs; `None` when every pair has a zero.
    pub fn sum_of_products(&self, pairs: &Pairs<'_>, threads: usize) -> Result<Option<Vec<u64>>> {
        let mut out: Option<Vec<u64>> = None;
        let size = self.m * self.n;
        for (a, b) in pairs {
            let (Some(a), Some(b)) = (a, b) else { continue };
            let out = out.get_or_insert_with(|| vec![0; self.batches.len() * size]);
            if size == 0 {
                continue;
            }
            for (&(i, j), c) in self.batches.iter().zip(out.chunks_exact_mut(size)) {
                let left = MatRef::row_major(tail(a, i), self.m, self.k)?;
                let right = if self.trans_b {
                    MatRef::row_major(tail(b, j), self.n, self.k)?.transposed()
                } else {
                    MatRef::row_major(tail(b, j), self.k, self.n)?
                };
                gemm_acc(left, right, c, threads);
            }
        }
        Ok(out)
    }
}

/// The words from `at` on; none where they end before.
fn tail(words: &[u64], at: usize) -> &[u64] {
    words.get(at..).unwrap_or(&[])
}

/// The words of matrices of one size that begin at these places.
fn every(words: &[u64], starts: impl Iterator<Item = usize>, size: usize) -> Result<Vec<u64>> {
    let short = || Diagnostic::internal("E0804", "an operand of a product is smaller than its shape");
    let mut all = Vec::with_capacity(size * starts.size_hint().0);
    for at in starts {
        all.extend_from_slice(words.get(at..at + size).ok_or_else(short)?);
    }
    Ok(all)
}
