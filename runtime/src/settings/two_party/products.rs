//! Products of secrets: element by element, and of matrices.
//!
//! Source: Gilboa, "Two Party RSA Key Generation" (CRYPTO 1999): one party's bits choose multiples of the other's number. It is
//! exact in every ring up to 64 bits. Parties and adversary: client and server, one semi-honest corruption. Rounds: 2. Error:
//! none. Bits: `16ℓ` from who chooses for each of its elements, `Σ_{i<ℓ} (ℓ − i)` in whole bytes from the other for each
//! product of elements. Of a shared value with a private weight the client alone chooses; of two shared values both do.
//!
//! ```text
//!   x y = x^0 y^0 + x^1 y^1 + x^0 y^1 + x^1 y^0, the last two each by transfers, of which the owner of x chooses
//!   x W = x^1 W + x^0 W, the first at the server alone
//! ```
//!
//! Simulator. Choices are uniform, answers are under pads.

use ombra_ir::{Diagnostic, Result};

use super::Purpose;
use super::pair::Pair;
use crate::backend::bits::{to_planes, words};
use crate::ot::pads::{Decided, Rows, times_bytes};
use crate::settings::dealer::share::Share;
use crate::settings::words::broadcast::{broadcast_shape, expand, volume};
use crate::settings::words::movement::transpose;
use crate::wiped::Zeroizing;

/// Whose part of the right operand a product takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Both parties have a share.
    Shared,
    /// The server has it whole.
    OfServer,
}

/// Chooses with all bits of `x`, where this party does.
fn choose(pair: &Pair, right: Right, x: &[u64], bits: u8) -> Result<Option<Decided>> {
    if right == Right::OfServer && !pair.is_client() {
        return Ok(None);
    }
    let mut planes = Zeroizing::new(vec![0; usize::from(bits) * words(x.len())]);
    to_planes(x, bits.into(), &mut planes);
    pair.choose(Purpose::Product, 0, &planes).map(Some)
}

fn sum(parts: [Option<Zeroizing<Vec<u64>>>; 2], mut own: Zeroizing<Vec<u64>>) -> Share {
    for part in parts.into_iter().flatten() {
        own.iter_mut().zip(part.iter()).for_each(|(own, part)| *own = own.wrapping_add(*part));
    }
    Share::of(std::mem::take(&mut *own))
}

/// `x·y` of as many elements each in a ring of `bits`; `y` is the server's own where `right` says so.
pub async fn multiply(pair: &Pair, x: &[u64], y: &[u64], right: Right, bits: u8) -> Result<Share> {
    let (n, planes) = (x.len(), usize::from(bits));
    let own = Zeroizing::new(x.iter().zip(y).map(|(x, y)| x.wrapping_mul(*y)).collect::<Vec<_>>());
    let decided = choose(pair, right, x, bits)?;
    pair.round().await;
    let mut offered = None;
    if right == Right::Shared || !pair.is_client() {
        let mut message = Vec::new();
        offered = Some(pair.offer(Purpose::Product, 0, planes, n)?.times(planes, y, bits, &mut message)?);
        pair.answer(&message);
    }
    pair.round().await;
    let taken = |decided: Decided| {
        pair.answered(times_bytes(planes, n, bits), |message| decided.times(planes, n, bits, message))
    };
    Ok(sum([offered, decided.map(taken).transpose()?], own))
}

/// Where the matrices of a product are: the left one's rows, for every element of which a row of the right one begins at some
/// place.
pub struct Matrices {
    sizes: Rows,
    /// Rows of a left matrix.
    rows: usize,
    left_batch: Vec<usize>,
    right_batch: Vec<usize>,
    batch: Vec<usize>,
    trans_b: bool,
}

impl Matrices {
    /// The product of matrices of two shapes, where `trans_b` says that the right ones are given with their axes exchanged.
    ///
    /// # Errors
    /// `E0804` where there is no product.
    pub fn new(x: &[usize], y: &[usize], trans_b: bool, bits: u8) -> Result<Matrices> {
        let wrong = || Diagnostic::internal("E0804", format!("matrices of shapes {x:?} and {y:?} have no product"));
        let ([left_batch @ .., rows, inner], [right_batch @ .., r, c]) = (x, y) else { return Err(wrong()) };
        let (other, width) = if trans_b { (*c, *r) } else { (*r, *c) };
        if other != *inner {
            return Err(wrong());
        }
        let batch = broadcast_shape(left_batch, right_batch)?;
        let count = volume(&batch)? * rows * inner;
        let sizes = Rows { planes: bits.into(), count, inner: *inner, width };
        let (left_batch, right_batch) = (left_batch.to_vec(), right_batch.to_vec());
        Ok(Matrices { sizes, rows: *rows, left_batch, right_batch, batch, trans_b })
    }

    /// The left matrices of all batches, element by element.
    fn left(&self, x: &[u64]) -> Result<Vec<u64>> {
        let axes = |batch: &[usize]| [batch, &[self.rows, self.sizes.inner]].concat();
        expand(x, &axes(&self.left_batch), &axes(&self.batch))
    }

    /// The right matrices as they are, with their inner axis first.
    fn right(&self, y: &[u64]) -> Result<Vec<u64>> {
        if !self.trans_b {
            return Ok(y.to_vec());
        }
        let shape = [&self.right_batch[..], &[self.sizes.width, self.sizes.inner]].concat();
        let last = shape.len() as u8;
        let perm: Vec<u8> = (0..last - 2).chain([last - 1, last - 2]).collect();
        transpose(y, &shape, &perm)
    }

    /// For every batch, which right matrix it takes.
    fn matrix_of(&self) -> Result<Vec<u64>> {
        let numbers: Vec<u64> = (0..volume(&self.right_batch)? as u64).collect();
        expand(&numbers, &self.right_batch, &self.batch)
    }
}

/// The product of matrices in a ring of `bits`. `own` is this party's product of its parts, `x` its left operand; `y` its
/// right one, the whole at the server where `right` says that.
pub async fn multiply_matrices(
    pair: &Pair,
    matrices: &Matrices,
    (x, y): (&[u64], &[u64]),
    own: Zeroizing<Vec<u64>>,
    right: Right,
    bits: u8,
) -> Result<Share> {
    let sizes = matrices.sizes;
    if sizes.width == 0 || sizes.count == 0 {
        // No element meets another: what each party has is a sum of nothing.
        pair.round().await;
        pair.round().await;
        return Ok(sum([None, None], own));
    }
    let left = Zeroizing::new(matrices.left(x)?);
    let decided = choose(pair, right, &left, bits)?;
    pair.round().await;
    let mut offered = None;
    if right == Right::Shared || !pair.is_client() {
        let settled = pair.offer(Purpose::Product, 0, sizes.planes, sizes.count)?;
        let (y, matrix_of) = (Zeroizing::new(matrices.right(y)?), matrices.matrix_of()?);
        let (inner, size) = (sizes.inner.max(1), (matrices.rows * sizes.inner).max(1));
        let row_at = |i: usize| {
            let matrix = matrix_of.get(i / size).map_or(usize::MAX >> 32, |matrix| *matrix as usize);
            (matrix * inner + i % inner) * sizes.width
        };
        let mut message = Vec::new();
        offered = Some(settled.times_rows(sizes, (&y, &row_at), bits, &mut message)?);
        pair.answer(&message);
    }
    pair.round().await;
    let taken =
        |decided: Decided| pair.answered(sizes.message_bytes(bits), |message| decided.times_rows(sizes, bits, message));
    Ok(sum([offered, decided.map(taken).transpose()?], own))
}
