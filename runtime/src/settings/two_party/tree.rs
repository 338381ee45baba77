//! Maximum entries of rows, and where they are: binary trees of comparisons and selections.
//!
//! Source: comparison of [`compare`](super::compare), selection of [`bits`](super::bits). Parties and adversary: client and
//! server, one semi-honest corruption. Correlations: theirs. Rounds per level: those of the comparison, 2 for the selection.
//! Bits per pair of a level: theirs; with an index those of another selection, at the first level of a bit as a ring element.
//! Error: none for an index; a maximum is short by at most `2^drop` a level. Side channels: pairs are fixed by the rows'
//! lengths alone.
//!
//! A level joins neighbours; an odd last entry moves up. With `b = 1{x < y}` the greater of a pair is `x − b·(x − y)`.
//! `x < y` is strict, so of equal entries the first wins.
//!
//! Simulator: the steps' simulators one after another; every level has transfers of its own.

use ombra_ir::{Diagnostic, Result};

use super::bits::{answer_conversion, begin_conversion, begin_select, end_conversion, select};
use super::compare::msb;
use super::pair::Pair;
use crate::settings::dealer::share::Share;
use crate::settings::rows;
use crate::wiped::Zeroizing;

/// Shares of entries, wiped when they are dropped.
type Entries = Zeroizing<Vec<u64>>;

/// The first entries of all pairs, and the first less the second.
fn differences(lens: &[usize], x: &[u64]) -> (Entries, Entries) {
    let (first, second) = rows::pairs(lens, x);
    let (first, mut second) = (Zeroizing::new(first), Zeroizing::new(second));
    second.iter_mut().zip(first.iter()).for_each(|(y, x)| *y = x.wrapping_sub(*y));
    (first, second)
}

/// The entries of the next level: of every pair the first less what was chosen of the difference.
fn next(lens: &[usize], x: &[u64], first: &[u64], chosen: &Share) -> Result<Entries> {
    let joined = first.iter().zip(chosen.own()?).map(|(x, y)| x.wrapping_sub(*y));
    Ok(Zeroizing::new(rows::next(lens, x, joined)))
}

fn check(x: &Share, n: usize) -> Result<Entries> {
    let words = x.own()?;
    if words.len() == n {
        return Ok(Zeroizing::new(words.to_vec()));
    }
    Err(Diagnostic::internal("E0804", "rows do not cover their entries"))
}

/// The maximum of every row of `x`, whose rows of `lens` entries lie one after another; 0 for an empty row.
/// The difference of two entries of a row fits in `width.0` bits, of which the lowest `width.1` are not compared.
pub async fn row_max(pair: &Pair, x: &Share, lens: &[u32], bits: u8, width: (u8, u8)) -> Result<Share> {
    let mut lens: Vec<usize> = lens.iter().map(|&len| len as usize).collect();
    let mut values = check(x, lens.iter().sum())?;
    let mut level = 0;
    while lens.iter().any(|&len| len > 1) {
        let pair = pair.at_level(level);
        let (first, difference) = differences(&lens, &values);
        let less = msb(&pair, &difference, difference.len(), width).await?;
        let chosen = select(&pair, &less, &difference, bits).await?;
        values = next(&lens, &values, &first, &chosen)?;
        lens = rows::halved(&lens);
        level += 1;
    }
    Ok(Share::of(rows::column(&lens, &values)))
}

/// The index of the first maximum of every row of `x`: `count` rows of `len ≥ 1` entries.
/// The difference of two entries of a row fits in `width` bits.
pub async fn arg_max(pair: &Pair, x: &Share, (count, len): (usize, usize), bits: u8, width: u8) -> Result<Share> {
    let mut lens = vec![len; count];
    let mut values = check(x, count * len)?;
    let mut indices = Zeroizing::new(vec![0; values.len()]);
    let mut level = 0;
    while lens.iter().any(|&len| len > 1) {
        let pair = pair.at_level(level);
        let (first, difference) = differences(&lens, &values);
        let (first_index, index_difference) = differences(&lens, &indices);
        let less = msb(&pair, &difference, difference.len(), (width, 0)).await?;
        // Indices of the first level are its bits, and the last level's values are not selected.
        let last = lens.iter().all(|&len| len <= 2);
        let value = (!last).then(|| begin_select(&pair, &less, &difference, 0)).transpose()?;
        let index = (level > 0).then(|| begin_select(&pair, &less, &index_difference, 1)).transpose()?;
        let place = if level == 0 { Some(begin_conversion(&pair, &less)?) } else { None };
        pair.round().await;
        let value = value.map(|begun| begun.answer(&pair, bits)).transpose()?;
        let index = index.map(|begun| begun.answer(&pair, bits)).transpose()?;
        let place = place.map(|begun| answer_conversion(&pair, begun, &less, bits)).transpose()?;
        pair.round().await;
        let value = value.map(|selecting| selecting.end(&pair, bits)).transpose()?;
        let index = index.map(|selecting| selecting.end(&pair, bits)).transpose()?;
        let place = place.map(|half| end_conversion(&pair, half, &less, bits)).transpose()?;
        if let Some(place) = place {
            let second = place.own()?.iter().copied();
            indices = Zeroizing::new(rows::next_indices(&lens, second, pair.is_client()));
        }
        if let Some(index) = index {
            indices = next(&lens, &indices, &first_index, &index)?;
        }
        if let Some(value) = value {
            values = next(&lens, &values, &first, &value)?;
        }
        lens = rows::halved(&lens);
        level += 1;
    }
    Ok(Share::of(rows::column(&lens, &indices)))
}
