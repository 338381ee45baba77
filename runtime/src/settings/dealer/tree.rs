//! Maximum entries of rows, and where they are: binary trees of comparisons and selections.
//!
//! Source: comparison of [`compare`](super::compare), selection of [`bits`](super::bits). Parties and adversary: client,
//! server and dealer, one semi-honest corruption. Correlation: theirs.
//! Rounds per level: 1 for the mask, those of the comparison's openings, 1 for the selection. Bits per pair of a level: what
//! the comparison opens, 1 and `ℓ` each way, and `2ℓ` and what the comparison takes dealt to the server; with an index, `ℓ`
//! each way and `ℓ` dealt more. Error: none for an index; a maximum is short by at most `2^drop` a level.
//! Side channels: pairs are fixed by the rows' lengths alone.
//!
//! A level joins neighbours; an odd last entry moves up. The difference `x − y` of a pair is masked once in its ring: its low
//! bits are compared, and with `b = 1{x < y}` the greater is `x − b·(x − y)`. `x < y` is strict, so of equal entries the first
//! wins.
//!
//! Simulator: the steps' simulators one after another; every level has its own randomness. A selection's bit is opened once
//! for value and index, whose dealt products have streams of their own.

use ombra_ir::settings::dealer::Comparison;
use ombra_ir::{Diagnostic, Result};

use super::Cx;
use super::bits::select;
use super::compare::{compared, deal_chunks, sign_of_masked};
use super::products::{begin_mask, end_mask, mismatch};
use super::share::{BitShare, Masked, Share};
use crate::backend::bits::planes_of;
use crate::settings::rows;

/// Entries of all rows, one row after another, at one party.
struct Rows {
    lens: Vec<usize>,
    share: Share,
}

/// The maximum of every row of `x`, whose rows of `lens` entries lie one after another; 0 for an empty row.
/// The difference of two entries of a row fits in `width.0` bits, of which the lowest `width.1` are not compared.
pub async fn row_max(cx: &Cx, x: &Share, lens: &[u32], bits: u8, width: (u8, u8)) -> Result<Share> {
    let mut values = Rows::of(x, lens.iter().map(|&len| len as usize).collect())?;
    let mut level = 0;
    while values.any_pair() {
        let cx = cx.at_level(level);
        let (first, difference) = values.pairs();
        let n = rows::pair_count(&values.lens);
        let mut masked = vec![begin_mask(&cx, &difference, n, bits, 0)?];
        let less = less_than(&cx, &mut masked, n, bits, width).await?;
        let (_, chosen) = select(&cx, &less, &masked, bits).await?;
        values = values.next(&first, chosen.first())?;
        level += 1;
    }
    Ok(values.column())
}

/// The index of the first maximum of every row of `x`: `count` rows of `len ≥ 1` entries.
/// The difference of two entries of a row fits in `width` bits.
pub async fn arg_max(cx: &Cx, x: &Share, count: usize, len: usize, bits: u8, width: u8) -> Result<Share> {
    let mut values = Rows::of(x, vec![len; count])?;
    // Indices are public until the first selection.
    let mut indices = Rows { lens: values.lens.clone(), share: values.share.map(|words| vec![0; words.len()]) };
    let mut level = 0;
    while values.any_pair() {
        let cx = cx.at_level(level);
        let n = rows::pair_count(&values.lens);
        let (first, difference) = values.pairs();
        let (first_index, index_difference) = indices.pairs();
        let mut masked = vec![begin_mask(&cx, &difference, n, bits, 0)?];
        if level > 0 {
            masked.push(begin_mask(&cx, &index_difference, n, bits, 1)?);
        }
        let less = less_than(&cx, &mut masked, n, bits, (width, 0)).await?;
        let last = values.lens.iter().all(|&len| len <= 2);
        let (second, chosen) = select(&cx, &less, &masked[usize::from(last)..], bits).await?;
        indices = match level {
            0 => indices.next_of_places(&cx, &second),
            _ => indices.next(&first_index, chosen.last())?,
        };
        if last {
            break;
        }
        values = values.next(&first, chosen.first())?;
        level += 1;
    }
    Ok(indices.column())
}

/// Ends the masking of differences, and compares the first: bits 1 where it is negative. What is left out of the masked value
/// and of the mask can carry into the rest: a difference in `[−2^drop, 0)` may then count as not negative.
async fn less_than(cx: &Cx, masked: &mut Vec<Masked>, n: usize, bits: u8, (width, drop): (u8, u8)) -> Result<BitShare> {
    let way = Comparison::of(n as u64, compared(width, drop)?);
    let none = || mismatch("no pairs to compare");
    if cx.role() == 2 {
        deal_chunks(cx, &planes_of(&masked.first().ok_or_else(none)?.lambda()?, width, drop), n, &way)?;
        cx.round().await;
        return sign_of_masked(cx, &[], n, &way).await;
    }
    cx.round().await;
    let ended = std::mem::take(masked).into_iter().map(|value| end_mask(cx, value, n, bits));
    *masked = ended.collect::<Result<_>>()?;
    let m = planes_of(masked.first().ok_or_else(none)?.words()?, width, drop);
    sign_of_masked(cx, &m, n, &way).await
}

impl Rows {
    fn of(x: &Share, lens: Vec<usize>) -> Result<Rows> {
        let (n, share) = (lens.iter().sum::<usize>(), x.map(<[u64]>::to_vec));
        match share.words().map(<[u64]>::len) {
            Some(found) if found != n => Err(Diagnostic::internal("E0804", "rows do not cover their entries")
                .note(format!("expected  {n} entries"))
                .note(format!("found     {found}"))),
            _ => Ok(Rows { lens, share }),
        }
    }

    fn any_pair(&self) -> bool {
        self.lens.iter().any(|&len| len > 1)
    }

    /// The first entries of all pairs, and the first less the second.
    fn pairs(&self) -> (Share, Share) {
        let pairs = |words: &[u64]| rows::pairs(&self.lens, words);
        let difference = |words: &[u64]| {
            let (first, second) = pairs(words);
            first.iter().zip(&second).map(|(x, y)| x.wrapping_sub(*y)).collect()
        };
        (self.share.map(|words| pairs(words).0), self.share.map(difference))
    }

    /// The rows of the next level: of every pair the first entry less what was chosen of the difference.
    fn next(&self, first: &Share, chosen: Option<&Share>) -> Result<Rows> {
        let share = match (self.share.words(), chosen) {
            (Some(words), Some(chosen)) => {
                let joined = first.own()?.iter().zip(chosen.own()?).map(|(x, y)| x.wrapping_sub(*y));
                Share::of(rows::next(&self.lens, words, joined))
            }
            _ => Share::nothing(),
        };
        Ok(Rows { lens: rows::halved(&self.lens), share })
    }

    /// The rows of the next level, where entries are their own places and `second` chooses the second of a pair.
    fn next_of_places(&self, cx: &Cx, second: &Share) -> Rows {
        let share = second.map(|bits| rows::next_indices(&self.lens, bits.iter().copied(), cx.role() == 0));
        Rows { lens: rows::halved(&self.lens), share }
    }

    /// One entry a row; 0 for an empty row.
    fn column(&self) -> Share {
        self.share.map(|words| rows::column(&self.lens, words))
    }
}
