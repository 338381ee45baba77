//! Matrix products, batched as in ONNX, over every form of sharing.
//!
//! Source: Araki et al., 2016/768, §3: role `i`'s term of `X·Y` is `(X_i + X_{i+1})·Y_i + X_i·Y_{i+1}`, or the same
//! with the roles of the operands exchanged; the sum is taken of the smaller operand. A zero component saves its product.

use std::borrow::Cow;

use ombra_ir::{Diagnostic, Result};

use super::broadcast::{broadcast_shape, strides, volume};
use super::linear::{Ring, View, sum_of, two_terms};
use crate::backend::gemm::{MatRef, gemm_acc};
use crate::settings::rep3::share::Sum;

/// Shapes of a product: batches and the three sizes.
struct Plan {
    m: usize,
    k: usize,
    n: usize,
    /// Where the matrices of every batch begin in both operands.
    batches: Vec<(usize, usize)>,
    trans_b: bool,
}

/// The words of a product's terms, `Σ a·b` of pairs whose missing members are zero.
type Pairs<'a> = [(Option<Cow<'a, [u64]>>, Option<Cow<'a, [u64]>>)];

/// `x · y` over the last two axes, where `trans_b` says that `y` is given with its last two axes exchanged, at logical
/// role `role` of the op: of two sharings a sum over all roles, of a sharing and a public matrix one of two terms.
pub fn matmul(role: u8, x: View<'_>, y: View<'_>, trans_b: bool, threads: usize) -> Result<Ring> {
    let plan = plan(x.shape, y.shape, trans_b)?;
    let product = |pairs: &Pairs<'_>| plan.sum_of_products(pairs, threads);
    Ok(match (x.value, y.value) {
        (Ring::Public(a), Ring::Public(b)) => {
            let pair = [(Some(Cow::Borrowed(a.as_slice())), Some(Cow::Borrowed(b.as_slice())))];
            Ring::Public(product(&pair)?.unwrap_or_default())
        }
        (Ring::Shared(a), Ring::Shared(b)) => {
            let (a0, a1) = (a.a.data().map(Cow::Borrowed), a.b.data().map(Cow::Borrowed));
            let (b0, b1) = (b.a.data().map(Cow::Borrowed), b.b.data().map(Cow::Borrowed));
            let pairs = if volume(x.shape)? <= volume(y.shape)? {
                [(sum_of(&a.a, &a.b), b0), (a0, b1)]
            } else {
                [(a0, sum_of(&b.a, &b.b)), (a1, b0)]
            };
            Ring::Three(Sum::new(product(&pairs)?))
        }
        (Ring::Shared(a), Ring::Public(b)) => {
            let own = two_terms(role, a);
            Ring::Two(Sum::new(product(&[(own, Some(Cow::Borrowed(b)))])?))
        }
        (Ring::Public(a), Ring::Shared(b)) => {
            let own = two_terms(role, b);
            Ring::Two(Sum::new(product(&[(Some(Cow::Borrowed(a)), own)])?))
        }
        (Ring::Two(a), Ring::Public(b)) => {
            Ring::Two(Sum::new(product(&[(a.data().map(Cow::Borrowed), Some(Cow::Borrowed(b)))])?))
        }
        (Ring::Three(a), Ring::Public(b)) => {
            Ring::Three(Sum::new(product(&[(a.data().map(Cow::Borrowed), Some(Cow::Borrowed(b)))])?))
        }
        _ => return Err(Diagnostic::internal("E0804", "a product with a sum that was not reshared")),
    })
}

fn plan(x: &[usize], y: &[usize], trans_b: bool) -> Result<Plan> {
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

impl Plan {
    /// One product of all rows where every batch has the same right operand.
    fn with_rows_merged(self) -> Plan {
        let size = self.m * self.k;
        let one_right = self.batches.iter().enumerate().all(|(b, at)| *at == (b * size, 0));
        if self.batches.len() > 1 && one_right {
            return Plan { m: self.m * self.batches.len(), batches: vec![(0, 0)], ..self };
        }
        self
    }

    /// `Σ a·b` over the pairs; `None` when every pair has a zero.
    fn sum_of_products(&self, pairs: &Pairs<'_>, threads: usize) -> Result<Option<Vec<u64>>> {
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
