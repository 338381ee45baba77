//! Functions by a table: exponentials, parabolas, and rows of a table at the client's positions.
//!
//! Source: 1-of-N transfers of the entries of a table that is turned by the offerer's share (as in CrypTFlow2, 2020/1002, for
//! small functions), with what lies within a cell as a factor of the chooser's. Parties and adversary: client and server, one
//! semi-honest corruption. Correlations: transfers, made in the first round. Rounds: 2. Bits per element, of `N` cells, `K`
//! entries of a ring of `ℓ` each, and factors of `p_k` bits for all but one: `16(log2 N + Σ p_k)` from the client, `NKℓ` and
//! what products with `p_k` bits take from the server.
//!
//! ```text
//!   x = m − λ mod 2^W, m = x^1 at the server, λ = −x^0 at the client; cells of 2^s units: i = (m ≫ s) − (λ ≫ s) is the cell
//!     of x or the next one. For every λ ≫ s the server knows the terms P_k of `exp` or of `parabola`, and the client w_k
//!   the client gets P_k + ρ_k for its λ ≫ s, and its share is Σ w_k (P_k + ρ_k);  the server's is −Σ w_k ρ_k by products of
//!     the client's bits of w_k with −ρ_k
//! ```
//!
//! Error: that of the table, and what entries and factors are rounded by. Simulator. Choices are uniform, entries are under
//! ρ and pads. Side channels: all entries are made and read.

use ombra_ir::curve::{Cells, Curve};
use ombra_ir::settings::dealer::exp_shift;
use ombra_ir::settings::two_party::{Exp, ROW_DROPPED, exp, power_scales, row_tilings};
use ombra_ir::{Diagnostic, Result};
use ombra_lattice::tiles::Tiling;

use super::matrices::{TileKeys, in_tiles};
use super::pair::Pair;
use super::{Purpose, mismatch};
use crate::backend::bits::{to_planes, words};
use crate::ot::pads::{Decided, Entries, times_bytes};
use crate::settings::dealer::divide::local;
use crate::settings::dealer::exp::{ExpEntries, scaled_exp};
use crate::settings::dealer::share::Share;
use crate::settings::one_hot::OneHot;
use crate::settings::parabola::Parabola;
use crate::settings::rep3::embed::Table;
use crate::wiped::Zeroizing;

/// What is looked up: the window of the operand that is looked at, and the terms with the client's factors.
struct Terms<'a> {
    one_hot: OneHot,
    window: u8,
    bits: u8,
    /// Bits of every term's factor; 0 where it is 1.
    factors: &'a [u8],
}

/// Bits of `x` as planes.
fn planes(x: &[u64], bits: usize) -> Zeroizing<Vec<u64>> {
    let mut planes = Zeroizing::new(vec![0; bits * words(x.len())]);
    to_planes(x, bits as u32, &mut planes);
    planes
}

/// `Σ w_k P_k` of `n` elements: `factor` gives the client `w_k` of λ and `k`, `terms` the server its terms of `m`: all terms of every cell, one cell after another.
async fn look_up(
    pair: &Pair,
    x: &Share,
    n: usize,
    sizes: Terms<'_>,
    factor: impl Fn(u64, u8) -> u64,
    terms: impl Fn(u64, &mut [u64]),
) -> Result<Share> {
    let Terms { one_hot, window, bits, factors } = sizes;
    let low = u64::MAX >> (64 - window);
    let bytes = usize::from(bits).div_ceil(8);
    let table = Entries { n, count: one_hot.count, bytes: factors.len() * bytes };
    let x = x.own()?;
    if x.len() != n {
        return Err(mismatch("a lookup of another size"));
    }
    if pair.is_client() {
        let lambda = Zeroizing::new(x.iter().map(|x| x.wrapping_neg() & low).collect::<Vec<_>>());
        let cells = Zeroizing::new(lambda.iter().map(|x| one_hot.index(*x) as u64).collect::<Vec<_>>());
        let chosen = pair.choose(Purpose::Entries, 0, &planes(&cells, table.planes()))?;
        let mut own = Vec::new();
        let mut decided: Vec<Option<Decided>> = Vec::new();
        for (k, &width) in (0u8..).zip(factors) {
            let of = |lambda: &u64| if width == 0 { 1 } else { factor(*lambda, k) };
            own.push(Zeroizing::new(lambda.iter().map(of).collect::<Vec<_>>()));
            let planes = planes(own.last().map_or(&[], |own| own.as_slice()), width.into());
            decided.push((width > 0).then(|| pair.choose(Purpose::Product, k, &planes)).transpose()?);
        }
        pair.round().await;
        pair.round().await;
        let entries = pair.answered(table.message_bytes(), |message| chosen.entries(table, message))?;
        let mut share = Zeroizing::new(vec![0u64; n]);
        for (k, (own, decided)) in own.iter().zip(decided).enumerate() {
            for ((share, w), entry) in share.iter_mut().zip(own.iter()).zip(entries.chunks_exact(table.bytes.max(1))) {
                let term = entry[k * bytes..][..bytes].iter().rev().fold(0u64, |x, b| x << 8 | u64::from(*b));
                *share = share.wrapping_add(w.wrapping_mul(term));
            }
            let Some(decided) = decided else { continue };
            let width = usize::from(factors[k]);
            let product = pair.answered(times_bytes(width, n, bits), |m| decided.times(width, n, bits, m))?;
            share.iter_mut().zip(product.iter()).for_each(|(share, p)| *share = share.wrapping_add(*p));
        }
        return Ok(Share::of(std::mem::take(&mut *share)));
    }
    pair.round().await;
    let settled = pair.offer(Purpose::Entries, 0, table.planes(), n)?;
    let masks = Zeroizing::new(pair.cx().draw_private(Purpose::Entries, 0, n * factors.len()));
    let mut entries = Zeroizing::new(Vec::with_capacity(table.message_bytes()));
    let mut all = Zeroizing::new(vec![0u64; factors.len() * table.count]);
    for (m, masks) in x.iter().zip(masks.chunks_exact(factors.len().max(1))) {
        terms(m & low, &mut all);
        for (term, mask) in all.iter().zip(masks.iter().cycle()) {
            entries.extend_from_slice(&term.wrapping_add(*mask).to_le_bytes()[..bytes]);
        }
    }
    let mut message = Vec::new();
    settled.entries(table, &entries, &mut message)?;
    let mut share = Zeroizing::new(vec![0u64; n]);
    for (k, &width) in (0u8..).zip(factors) {
        let mask = masks.iter().skip(k.into()).step_by(factors.len().max(1)).map(|mask| mask.wrapping_neg());
        let mask = Zeroizing::new(mask.collect::<Vec<_>>());
        let part = match width {
            0 => mask,
            _ => {
                let settled = pair.offer(Purpose::Product, k, width.into(), n)?;
                settled.times(width.into(), &mask, bits, &mut message)?
            }
        };
        share.iter_mut().zip(part.iter()).for_each(|(share, part)| *share = share.wrapping_add(*part));
    }
    pair.answer(&message);
    pair.round().await;
    Ok(Share::of(std::mem::take(&mut *share)))
}

/// `e^x` of `n` elements at `scale`, in a ring of [`EXP_RING`](ombra_ir::op::EXP_RING) bits with
/// [`EXP_SCALE`](ombra_ir::op::EXP_SCALE) fraction bits: one term, whose factor is at most 1.
pub async fn exp_digits(pair: &Pair, x: &Share, n: usize, scale: u8, (window, tail): (u8, bool)) -> Result<Share> {
    let Exp { table, factor } = exp(window, tail);
    if window + scale > 62 {
        return Err(Diagnostic::internal("E0803", "an exponential's window is out of range"));
    }
    let one_hot = OneHot { cell: table.cell + scale, count: table.count };
    let rest = |x: u64| one_hot.low(x) as f64 * libm::exp2(-f64::from(scale));
    let entries = ExpEntries::new(table);
    let of_lambda = |lambda, _| scaled_exp(-rest(lambda), factor - 1);
    let terms = |m, out: &mut [u64]| {
        let entry = entries.at(rest(m));
        for (cell, out) in out.iter_mut().enumerate() {
            *out = entry(one_hot.index(m).wrapping_sub(cell) & (table.count - 1));
        }
    };
    let sizes = Terms { one_hot, window: window + scale, bits: table.ring, factors: &[factor] };
    let share = look_up(pair, x, n, sizes, of_lambda, terms).await?;
    Ok(local(pair.cx().role(), &share, table.ring, exp_shift(table)))
}

/// `f(x)` of `n` elements in a ring of `bits`: three terms of a parabola.
pub async fn curve(pair: &Pair, x: &Share, n: usize, (curve, cells): (Curve, Cells), bits: u8) -> Result<Share> {
    let parabola = Parabola::unsigned(cells, bits)?;
    let table = cells.polynomials(curve)?;
    let [first, second] = power_scales(cells.scale).map(|scale| scale + 1);
    let one_hot = parabola.one_hot;
    let factor = |lambda, k| parabola.power(lambda, k);
    let terms = |m, out: &mut [u64]| {
        for (cell, out) in out.chunks_exact_mut(3).enumerate() {
            let at = one_hot.index(m).wrapping_sub(cell) & (one_hot.count - 1);
            let coefficients = table.each_ref().map(|list| list.get(at).copied().unwrap_or(0));
            out.copy_from_slice(&parabola.terms(coefficients, m));
        }
    };
    let sizes = Terms { one_hot, window: cells.window, bits, factors: &[0, first, second] };
    look_up(pair, x, n, sizes, factor, terms).await
}

/// The rows of the server's table at `ids`, which the client alone gives; a negative id counts from the end.
///
/// Where that is fewer bytes than all rows ([`row_tilings`]), ids become unit vectors, in which 1 stands for 2^e, times the
/// table: the error of such a product is below 2^(e-1), and its e lowest bits are dropped by both parties for themselves. A row
/// is right, or one unit too low. Otherwise it is exact, one transfer of all rows for every id.
///
/// # Errors
/// E0806 when an id is out of range.
pub async fn embed(
    pair: &Pair,
    keys: &TileKeys,
    ids: Option<&[i64]>,
    table: Option<&[u64]>,
    sizes: Table,
) -> Result<Share> {
    let Table { rows, columns, tokens, bits } = sizes;
    let fits = match (pair.is_client(), ids, table) {
        (true, Some(ids), _) => ids.len() == tokens,
        (false, None, Some(table)) => table.len() == rows * columns,
        _ => false,
    };
    if !fits {
        return Err(Diagnostic::internal("E0804", "a lookup takes ids of the client alone"));
    }
    let place = |&id: &i64| crate::exec::side::row_index(id, rows).map(|row| row as u64);
    let places = Zeroizing::new(ids.unwrap_or_default().iter().map(place).collect::<Result<Vec<u64>>>()?);
    let table = table.unwrap_or_default();
    let tilings = row_tilings([tokens, rows, columns], bits);
    if tilings.is_empty() {
        by_transfers(pair, &places, table, sizes).await
    } else {
        by_tiles(pair, keys, &tilings, &places, table, bits).await
    }
}

/// Unit vectors times the table, without the bits that the error is in.
async fn by_tiles(
    pair: &Pair,
    keys: &TileKeys,
    tilings: &[Tiling],
    places: &[u64],
    table: &[u64],
    bits: u8,
) -> Result<Share> {
    let client = pair.is_client();
    let at_once = tilings.first().map_or(0, |tiling| tiling.rows);
    let operand = |part: usize| {
        if !client {
            return Ok(Zeroizing::new(table.to_vec()));
        }
        let (Some(places), Some(tiling)) = (places.get(part * at_once..), tilings.get(part)) else {
            return Err(mismatch("a lookup of another size"));
        };
        let mut units = Zeroizing::new(vec![0u64; tiling.rows * tiling.inner]);
        for (row, place) in units.chunks_exact_mut(tiling.inner.max(1)).zip(places) {
            row.iter_mut().zip(0u64..).for_each(|(unit, at)| *unit = u64::from(at == *place) << ROW_DROPPED);
        }
        Ok(units)
    };
    let products = in_tiles(pair, keys, tilings, operand, bits + ROW_DROPPED as u8).await?;
    // The error may be negative: half a unit more keeps it from the next one below.
    let half = if client { 1 << (ROW_DROPPED - 1) } else { 0 };
    let rows = products.iter().flat_map(|product| product.iter());
    Ok(Share::of(rows.map(|x| dropped(x.wrapping_add(half), bits)).collect()))
}

/// The `bits` bits of a ring above those that are dropped.
fn dropped(x: u64, bits: u8) -> u64 {
    x >> ROW_DROPPED & (u64::MAX >> (64 - bits))
}

/// One transfer of all rows for every id.
async fn by_transfers(pair: &Pair, places: &[u64], table: &[u64], sizes: Table) -> Result<Share> {
    let Table { rows, columns, tokens, bits } = sizes;
    let width = usize::from(bits).div_ceil(8);
    let entries = Entries { n: tokens, count: rows, bytes: columns * width };
    if pair.is_client() {
        let chosen = pair.choose(Purpose::Entries, 0, &planes(places, entries.planes()))?;
        pair.round().await;
        pair.round().await;
        let found = pair.answered(entries.message_bytes(), |message| chosen.entries(entries, message))?;
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |x, b| x << 8 | u64::from(*b));
        return Ok(Share::of(found.chunks_exact(width).map(word).collect()));
    }
    pair.round().await;
    let settled = pair.offer(Purpose::Entries, 0, entries.planes(), tokens)?;
    let masks = Zeroizing::new(pair.cx().draw_private(Purpose::Entries, 0, tokens * columns));
    let mut all = Zeroizing::new(Vec::with_capacity(entries.message_bytes()));
    for masks in masks.chunks_exact(columns.max(1)) {
        for (at, word) in table.iter().enumerate() {
            all.extend_from_slice(&word.wrapping_add(masks[at % columns]).to_le_bytes()[..width]);
        }
    }
    let mut message = Vec::new();
    settled.entries(entries, &all, &mut message)?;
    pair.answer(&message);
    pair.round().await;
    Ok(Share::of(masks.iter().map(|mask| mask.wrapping_neg()).collect()))
}
