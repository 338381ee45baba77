//! Rows of a private table at positions that the client alone knows.
//!
//! Source: a position hidden in a random vector of bits, and a hidden sign. Parties and adversary: client, server and
//! dealer, one semi-honest corruption. Rounds: 2. Bits: `V + 1` for each token from the client, for each element of the
//! result `ℓ` from the server and `2ℓ` dealt to it. Error: none. Side channels: all parties read the whole table.
//!
//! ```text
//!   W = w1 + w2: w1 at client and server, w2 at server and dealer; b^0 = F(k_0) in {0, 1}^V at client and dealer
//!   the client sends b^1 = b^0 ⊕ e_id
//!   client: y^0 = Σ_j b^0_j w1_j + c;  server: y^1 = −Σ_j b^1_j W_j + dealt,  dealt = Σ_j b^0_j w2_j − c;  c = F(k_0)
//!   y = (b^0 − b^1)_id · W[id] = σ·W[id], σ = 2s − 1, s = b^0_id, which the client knows
//!   s·y^1: r = F(k_0) a bit, u = F(k_2), t = F(k_0), dealt t' = r·u − t
//!     the client sends d = s ⊕ r, the server v = y^1 + u
//!     s·y^1 = d·y^1 − (1 − 2d)·t' at the server, (1 − 2d)(r·v − t) at the client
//! ```
//!
//! Simulator. `b^1` and `d` are under bits of `k_0`, `v` under `u` of `k_2`, what is dealt under `c` and `t` of `k_0`.

use ombra_ir::{Diagnostic, Result};

use super::products::{OfOne, minus, mismatch, negative, plus};
use super::share::Share;
use super::{Cx, Purpose};
use crate::exec::side::row_index;
use crate::settings::rep3::embed::Table;

/// `Σ_j b_j · rows_j` for every token's vector of words 0 and 1, `[tokens, rows]`: with the term of the table that client
/// and server know, with that of the dealer, and with the whole table.
pub struct Sums<'a> {
    /// With the term that client and server know.
    pub first: OfOne<'a>,
    /// With the term that server and dealer know.
    pub second: OfOne<'a>,
    /// With the whole table.
    pub whole: OfOne<'a>,
}

/// The rows of a table at `ids`, which the client alone gives; a negative id counts from the end.
///
/// # Errors
/// E0806 when an id is out of range.
pub async fn embed(cx: &Cx, ids: Option<&[i64]>, sums: &Sums<'_>, sizes: Table) -> Result<Share> {
    let Table { rows, columns, tokens, bits } = sizes;
    let count = tokens.checked_mul(columns).ok_or_else(|| mismatch("a lookup is too large"))?;
    let bytes = rows.div_ceil(8);
    let drawn = || -> Result<Vec<u8>> {
        let words = cx.draw(0, Purpose::OneHot, 0, (tokens * bytes).div_ceil(8))?;
        Ok(words.iter().flat_map(|word| word.to_le_bytes()).take(tokens * bytes).collect())
    };
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, count);
    let bit_masks = || cx.draw(0, Purpose::BitMask, 0, tokens.div_ceil(64));
    let bit = |plane: &[u64], token: usize| plane[token / 64] >> (token % 64) & 1;
    let sign = |d: u64| 1u64.wrapping_sub(d << 1);
    let token_of = |i: usize| i / columns.max(1);
    match (cx.role(), ids) {
        (0, Some(ids)) if ids.len() == tokens => {
            let (vectors, masks) = (drawn()?, bit_masks()?);
            let (mut others, mut signs, mut plane) = (vectors.clone(), Vec::new(), masks.clone());
            for (token, &id) in ids.iter().enumerate() {
                let row = row_index(id, rows)?;
                let at = token * bytes + row / 8;
                others[at] ^= 1 << (row % 8);
                let s = u64::from(vectors[at] >> (row % 8) & 1);
                signs.push(s);
                plane[token / 64] ^= s << (token % 64);
            }
            cx.send_bytes(1, &others);
            cx.send_planes(1, &plane, 1, tokens);
            let own = plus(sums_of(sums.first, &vectors, rows)?, &dealt(0)?);
            cx.round().await;
            cx.round().await;
            let (v, t) = (cx.take(1, count, bits)?, dealt(1)?);
            let share = own.iter().enumerate().map(|(i, y)| {
                let (token, s) = (token_of(i), signs[token_of(i)]);
                let product = bit(&masks, token).wrapping_mul(v[i]).wrapping_sub(t[i]);
                let selected = sign(bit(&plane, token)).wrapping_mul(product);
                (s << 1).wrapping_sub(1).wrapping_mul(*y).wrapping_add(selected << 1)
            });
            Ok(Share::of(share.collect()))
        }
        (1, None) => {
            cx.round().await;
            let others = cx.take_with(0, tokens * bytes, <[u8]>::to_vec)?;
            let plane = cx.take_planes(0, 1, tokens)?;
            let product = negative(sums_of(sums.whole, &others, rows)?);
            let own = plus(product, &cx.take(2, count, bits)?);
            let t = cx.take(2, count, bits)?;
            cx.send(0, &plus(own.clone(), &cx.draw(2, Purpose::Mask, 0, count)?), bits);
            cx.round().await;
            let share = own.iter().zip(&t).enumerate().map(|(i, (y, t))| {
                let d = bit(&plane, token_of(i));
                let selected = d.wrapping_mul(*y).wrapping_sub(sign(d).wrapping_mul(*t));
                (selected << 1).wrapping_sub(*y)
            });
            Ok(Share::of(share.collect()))
        }
        (2, None) => {
            let (vectors, masks) = (drawn()?, bit_masks()?);
            cx.send(1, &minus(sums_of(sums.second, &vectors, rows)?, &dealt(0)?), bits);
            let u = cx.draw(2, Purpose::Mask, 0, count)?;
            let products = u.iter().enumerate().map(|(i, u)| bit(&masks, token_of(i)).wrapping_mul(*u)).collect();
            cx.send(1, &minus(products, &dealt(1)?), bits);
            cx.round().await;
            cx.round().await;
            Ok(Share::nothing())
        }
        _ => Err(Diagnostic::internal("E0804", "a lookup takes ids of the client alone")),
    }
}

/// Tokens whose vectors are words at once.
const BATCH: usize = 16;

/// The sums of every token's vector, bits of `rows` in whole bytes: some tokens at once, as words 0 and 1.
fn sums_of(sum: OfOne<'_>, bytes: &[u8], rows: usize) -> Result<Vec<u64>> {
    let width = rows.div_ceil(8).max(1);
    let mut sums = Vec::new();
    for bytes in bytes.chunks(BATCH * width) {
        let vectors = bytes.chunks_exact(width);
        let words = vectors.flat_map(|vector| (0..rows).map(|row| u64::from(vector[row / 8] >> (row % 8) & 1)));
        sums.extend(sum(&words.collect::<Vec<_>>())?);
    }
    Ok(sums)
}
