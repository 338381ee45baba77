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
use crate::settings::words::movement::transpose;
use crate::settings::words::product::Plan;
use crate::wiped::Zeroizing;

/// What a party has of the keys of ciphertexts, by parameter set.
pub enum TileKeys {
    /// The client's secrets.
    Client(Vec<(u16, Box<dyn TileClient + Send>)>),
    /// The server's public keys.
    Server(Vec<(u16, Box<dyn TileServer + Send>)>),
}

/// The left matrices, each turned or not.
fn left(plan: &Plan, words: &[u64], turned: bool) -> Result<Zeroizing<Vec<u64>>> {
    let [batch, rows, inner, _] = plan.sizes();
    let words = Zeroizing::new(plan.left(words)?);
    if turned { turn(&words, [batch, rows, inner]) } else { Ok(words) }
}

/// The right matrices, their inner axis first or last.
fn right(plan: &Plan, words: &[u64], inner_first: bool) -> Result<Zeroizing<Vec<u64>>> {
    let [batch, _, inner, columns] = plan.sizes();
    let words = Zeroizing::new(plan.right(words)?);
    let (rows, width) = if plan.trans_b() { (columns, inner) } else { (inner, columns) };
    if inner_first != plan.trans_b() { Ok(words) } else { turn(&words, [batch, rows, width]) }
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
fn seeds(pair: &Pair, part: usize) -> Result<([u8; 16], Seed)> {
    let part = u8::try_from(part).map_err(|_| Diagnostic::internal("E0801", "an op has too many products"))?;
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
/// right one, the whole at the server where `of` says that.
pub async fn multiply_matrices(
    pair: &Pair,
    keys: &TileKeys,
    plan: &Plan,
    (x, y): (&[u64], &[u64]),
    own: Zeroizing<Vec<u64>>,
    of: Right,
    bits: u8,
) -> Result<Share> {
    let tilings = tilings(plan.sizes(), of, bits);
    if tilings.is_empty() {
        return by_transfers(pair, plan, (x, y), own, of, bits).await;
    }
    let client = pair.is_client();
    let operand = |part: usize| match (client, part) {
        (true, 0) => left(plan, x, false),
        (true, _) => right(plan, y, false),
        (false, 0) => right(plan, y, true),
        (false, _) => left(plan, x, true),
    };
    let mut shares = in_tiles(pair, keys, &tilings, operand, bits).await?;
    let [batch, rows, _, columns] = plan.sizes();
    match (of, shares.as_mut_slice()) {
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

/// This party's shares of products in a ring of `bits`, of one exchange: `operand` gives the client's left one of each, and the
/// server's right one, its inner axis first.
///
/// # Errors
/// E0910 for a message that is no ciphertexts of these products.
pub(super) async fn in_tiles(
    pair: &Pair,
    keys: &TileKeys,
    tilings: &[Tiling],
    operand: impl Fn(usize) -> Result<Zeroizing<Vec<u64>>>,
    bits: u8,
) -> Result<Vec<Zeroizing<Vec<u64>>>> {
    let (asked, asked_bytes) = places(tilings.iter().map(Tiling::message_bytes));
    let (answered, answer_bytes) = places(tilings.iter().map(|tiling| tiling.answer_bytes(bits.into())));
    let words = |part: usize| {
        let mut words = operand(part)?;
        words.iter_mut().for_each(|word| *word &= u64::MAX >> (64 - bits));
        Ok::<_, Diagnostic>(words)
    };
    let mut shares = Vec::with_capacity(tilings.len());
    match keys {
        TileKeys::Client(keys) => {
            let mut message = Vec::with_capacity(asked_bytes);
            for (part, tiling) in tilings.iter().enumerate() {
                let left = words(part)?;
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
                for ((part, tiling), place) in tilings.iter().enumerate().zip(asked) {
                    let right = words(part)?;
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
    Ok(shares)
}

/// The same by transfers.
async fn by_transfers(
    pair: &Pair,
    plan: &Plan,
    (x, y): (&[u64], &[u64]),
    own: Zeroizing<Vec<u64>>,
    of: Right,
    bits: u8,
) -> Result<Share> {
    let [batch, rows, inner, columns] = plan.sizes();
    let sizes = Rows { planes: bits.into(), count: batch * rows * inner, inner, width: columns };
    if sizes.count == 0 || columns == 0 {
        // No element meets another: what each party has is a sum of nothing.
        pair.round().await;
        pair.round().await;
        return Ok(sum([None, None], own));
    }
    let decided = choose(pair, of, &left(plan, x, false)?, bits)?;
    pair.round().await;
    let mut offered = None;
    if of == Right::Shared || !pair.is_client() {
        let settled = pair.offer(Purpose::Product, 0, sizes.planes, sizes.count)?;
        let y = right(plan, y, true)?;
        let row_at = |i: usize| (i / (rows * inner) * inner + i % inner) * columns;
        let mut message = Vec::new();
        offered = Some(settled.times_rows(sizes, (&y, &row_at), bits, &mut message)?);
        pair.answer(&message);
    }
    pair.round().await;
    let taken =
        |decided: Decided| pair.answered(sizes.message_bytes(bits), |message| decided.times_rows(sizes, bits, message));
    let mut parts = [offered, decided.map(taken).transpose()?];
    if of == Right::Same {
        for part in parts.iter_mut().flatten() {
            let turned = turn(part, [batch, rows, columns])?;
            part.iter_mut().zip(turned.iter()).for_each(|(part, turned)| *part = part.wrapping_add(*turned));
        }
    }
    Ok(sum(parts, own))
}
