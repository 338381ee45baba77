//! Products of secret matrices by the client's ciphertexts, and by transfers where they are so small that those are less.
//!
//! Source: tiles of coefficients and their merging as in [`ombra_lattice::tiles`]; Gilboa's product as in
//! [`products`](super::products), of an element with a row. Parties and adversary: client and server,
//! one semi-honest corruption. Rounds: 2. Bytes: [`tilings`]. Error: below `2^ERROR_BITS` units of each product in tiles, which
//! has a double scale, up to a chance of 2^-72 an element.
//!
//! ```text
//!   x y = x^0 y^0 + x^1 y^1 + x^0 y^1 + x^1 y^0, the last two each by a product in tiles: the client encrypts x^0, and y^0
//!         turned, and the server multiplies by y^1, and by x^1 turned
//!   x W = x^1 W + x^0 W, the first at the server alone
//!   x x = x^0 x^0 + x^1 x^1 + p + p turned for a matrix and itself turned, p the product of x^0 and x^1 turned
//! ```
//!
//! By transfers each party chooses with the bits of its part of x, which the other one's rows of y are multiples of: exact.
//!
//! Simulator. The server sees ciphertexts under a key of the client's, the client's decryptions are under uniform masks: see
//! there. Public polynomials of a call are of a seed that both draw from `k_1`, what each draws in secret is of one of its own.

use std::ops::Range;

use ombra_ir::settings::two_party::{Right, tilings};
use ombra_ir::{Diagnostic, Result};
use ombra_lattice::random::Seed;
use ombra_lattice::tiles::{Labels, TileClient, TileServer, Tiling};

use super::Purpose;
use super::pair::Pair;
use super::products::{choose, sum};
use crate::ot::pads::{Decided, Rows};
use crate::settings::dealer::share::Share;
use crate::settings::words::broadcast::{broadcast_shape, expand, volume};
use crate::settings::words::movement::transpose;
use crate::wiped::Zeroizing;

/// What a party has of the keys of ciphertexts, by parameter set.
pub enum TileKeys {
    /// The client's secrets.
    Client(Vec<(u16, Box<dyn TileClient + Send>)>),
    /// The server's public keys.
    Server(Vec<(u16, Box<dyn TileServer + Send>)>),
}

/// Where the matrices of a product are.
pub struct Matrices {
    /// Products, and rows, inner size and columns of each: where all rows meet one matrix, they are rows of one product.
    sizes: [usize; 4],
    shapes: [Vec<usize>; 2],
    trans_b: bool,
}

impl Matrices {
    /// The product of matrices of two shapes, where `trans_b` says that the right ones are given with their axes exchanged.
    ///
    /// # Errors
    /// `E0804` where there is no product.
    pub fn new(x: &[usize], y: &[usize], trans_b: bool) -> Result<Matrices> {
        let wrong = || Diagnostic::internal("E0804", format!("matrices of shapes {x:?} and {y:?} have no product"));
        let ([left @ .., rows, inner], [right @ .., r, c]) = (x, y) else { return Err(wrong()) };
        let (other, columns) = if trans_b { (*c, *r) } else { (*r, *c) };
        if other != *inner {
            return Err(wrong());
        }
        let batch = volume(&broadcast_shape(left, right)?)?;
        let (batch, rows) = if volume(right)? == 1 { (1, batch * rows) } else { (batch, *rows) };
        Ok(Matrices { sizes: [batch, rows, *inner, columns], shapes: [x.to_vec(), y.to_vec()], trans_b })
    }

    /// An operand of every product, matrix by matrix.
    fn spread(&self, operand: usize, words: &[u64]) -> Result<Vec<u64>> {
        let [batch, ..] = self.sizes;
        let [x, y] = &self.shapes;
        let axes = |shape: &[usize]| shape.len().saturating_sub(2);
        let ends = &self.shapes[operand][axes(&self.shapes[operand])..];
        let batch =
            if batch == 1 && operand == 1 { Vec::new() } else { broadcast_shape(&x[..axes(x)], &y[..axes(y)])? };
        // One right matrix has axes of size 1 at most, which the others do not need.
        if batch.is_empty() {
            return Ok(words.to_vec());
        }
        expand(words, &self.shapes[operand], &[&batch[..], ends].concat())
    }

    /// The right operand, its inner axis first or last.
    fn right(&self, words: &[u64], inner_first: bool) -> Result<Zeroizing<Vec<u64>>> {
        let [batch, _, inner, columns] = self.sizes;
        let words = Zeroizing::new(self.spread(1, words)?);
        let (rows, width) = if self.trans_b { (columns, inner) } else { (inner, columns) };
        if inner_first != self.trans_b { Ok(words) } else { turn(&words, [batch, rows, width]) }
    }

    fn left(&self, words: &[u64]) -> Result<Zeroizing<Vec<u64>>> {
        self.spread(0, words).map(Zeroizing::new)
    }

    fn left_turned(&self, words: &[u64]) -> Result<Zeroizing<Vec<u64>>> {
        let [batch, rows, inner, _] = self.sizes;
        turn(&self.left(words)?, [batch, rows, inner])
    }
}

/// Matrices with their axes exchanged.
fn turn(words: &[u64], [batch, rows, columns]: [usize; 3]) -> Result<Zeroizing<Vec<u64>>> {
    transpose(words, &[batch, rows, columns], &[0, 2, 1]).map(Zeroizing::new)
}

/// The key of a tiling's parameter set.
fn key<'a, T: ?Sized>(keys: &'a [(u16, Box<T>)], tiling: &Tiling) -> Result<&'a T> {
    let found = keys.iter().find(|(id, _)| *id == tiling.set().id).map(|(_, key)| &**key);
    found.ok_or_else(|| {
        Diagnostic::internal("E0801", "a product has another parameter set than the session has keys for")
    })
}

/// Both parties' seed of the public polynomials of a part of an op, and this party's secret one.
fn seeds(pair: &Pair, part: u8) -> Result<([u8; 16], Seed)> {
    let bytes = |words: Vec<u64>| -> [u8; 16] {
        let words = Zeroizing::new(words);
        std::array::from_fn(|i| words.get(i / 8).map_or(0, |word| word.to_le_bytes()[i % 8]))
    };
    let public = bytes(pair.cx().draw(1, Purpose::TilesPublic, part, 2)?);
    Ok((public, Seed::new(bytes(pair.cx().draw_private(Purpose::Tiles, part, 2)))))
}

/// What the peer sent that is no ciphertext of this product.
pub(super) fn refused(error: ombra_lattice::Error) -> Diagnostic {
    Diagnostic::peer("E0910", "ciphertexts of a product are refused").note(error.to_string())
}

fn cut(words: &mut [u64], bits: u8) {
    words.iter_mut().for_each(|word| *word &= u64::MAX >> (64 - bits));
}

/// The places of messages of these lengths, one after another, and the length of all.
fn places(lengths: impl Iterator<Item = usize>) -> (Vec<Range<usize>>, usize) {
    let mut all = 0;
    let places = lengths.map(|length| {
        all += length;
        all - length..all
    });
    (places.collect(), all)
}

/// The product of matrices in a ring of `bits`. `own` is this party's product of its parts, `x` its left operand; `y` its
/// right one, the whole at the server where `right` says that.
pub async fn multiply_matrices(
    pair: &Pair,
    keys: &TileKeys,
    matrices: &Matrices,
    (x, y): (&[u64], &[u64]),
    own: Zeroizing<Vec<u64>>,
    right: Right,
    bits: u8,
) -> Result<Share> {
    let tilings = tilings(matrices.sizes, right, bits);
    if tilings.is_empty() {
        return by_transfers(pair, matrices, (x, y), own, right, bits).await;
    }
    let parts = || (0u8..).zip(&tilings);
    let (asked, asked_bytes) = places(tilings.iter().map(Tiling::message_bytes));
    let (answered, answer_bytes) = places(tilings.iter().map(|tiling| tiling.answer_bytes(bits.into())));
    let mut shares = Vec::new();
    match keys {
        TileKeys::Client(keys) => {
            let mut message = Vec::with_capacity(asked_bytes);
            for (part, tiling) in parts() {
                let mut left = if part == 0 { matrices.left(x)? } else { matrices.right(y, false)? };
                cut(&mut left, bits);
                let (public_seed, seed) = seeds(pair, part)?;
                let labels = Labels { public_seed: &public_seed, first_index: 0, seed };
                let sent = key(keys, tiling)?.encrypt_left(tiling, bits.into(), &left, labels);
                message.extend(sent.map_err(refused)?);
            }
            pair.answer(&message);
            drop(message);
            pair.round().await;
            pair.round().await;
            pair.answered(answer_bytes, |answer| {
                for (tiling, place) in tilings.iter().zip(answered) {
                    let answer = answer.get(place).unwrap_or_default();
                    let share = key(keys, tiling)?.decrypt_products(tiling, bits.into(), answer).map_err(refused)?;
                    shares.push(Zeroizing::new(share));
                }
                Ok(())
            })?;
        }
        TileKeys::Server(keys) => {
            pair.round().await;
            let mut answer = Vec::with_capacity(answer_bytes);
            pair.answered(asked_bytes, |message| {
                for ((part, tiling), place) in parts().zip(asked) {
                    let mut right = if part == 0 { matrices.right(y, true)? } else { matrices.left_turned(x)? };
                    cut(&mut right, bits);
                    let (public_seed, seed) = seeds(pair, part)?;
                    let labels = Labels { public_seed: &public_seed, first_index: 0, seed };
                    let message = message.get(place).unwrap_or_default();
                    let product = key(keys, tiling)?.multiply_right(tiling, bits.into(), message, &right, labels);
                    let (bytes, share) = product.map_err(refused)?;
                    answer.extend(bytes);
                    shares.push(Zeroizing::new(share));
                }
                Ok(())
            })?;
            pair.answer(&answer);
            pair.round().await;
        }
    }
    let [batch, rows, _, columns] = matrices.sizes;
    match (right, shares.as_mut_slice()) {
        (Right::Same, [straight]) => {
            let turned = turn(straight, [batch, rows, columns])?;
            shares.push(turned);
        }
        (_, [_, turned]) => *turned = turn(turned, [batch, columns, rows])?,
        _ => {}
    }
    let mut shares = shares.into_iter();
    Ok(sum([shares.next(), shares.next()], own))
}

/// The same by transfers.
async fn by_transfers(
    pair: &Pair,
    matrices: &Matrices,
    (x, y): (&[u64], &[u64]),
    own: Zeroizing<Vec<u64>>,
    right: Right,
    bits: u8,
) -> Result<Share> {
    let [batch, rows, inner, columns] = matrices.sizes;
    let sizes = Rows { planes: bits.into(), count: batch * rows * inner, inner, width: columns };
    if sizes.count == 0 || columns == 0 {
        // No element meets another: what each party has is a sum of nothing.
        pair.round().await;
        pair.round().await;
        return Ok(sum([None, None], own));
    }
    let decided = choose(pair, right, &matrices.left(x)?, bits)?;
    pair.round().await;
    let mut offered = None;
    if right == Right::Shared || !pair.is_client() {
        let settled = pair.offer(Purpose::Product, 0, sizes.planes, sizes.count)?;
        let y = matrices.right(y, true)?;
        let row_at = |i: usize| (i / (rows * inner) * inner + i % inner) * columns;
        let mut message = Vec::new();
        offered = Some(settled.times_rows(sizes, (&y, &row_at), bits, &mut message)?);
        pair.answer(&message);
    }
    pair.round().await;
    let taken =
        |decided: Decided| pair.answered(sizes.message_bytes(bits), |message| decided.times_rows(sizes, bits, message));
    let mut parts = [offered, decided.map(taken).transpose()?];
    if right == Right::Same {
        for part in parts.iter_mut().flatten() {
            let turned = turn(part, [batch, rows, columns])?;
            part.iter_mut().zip(turned.iter()).for_each(|(part, turned)| *part = part.wrapping_add(*turned));
        }
    }
    Ok(sum(parts, own))
}
