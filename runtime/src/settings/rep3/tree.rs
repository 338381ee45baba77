//! Maximum entries of rows, and where they are: binary trees of comparisons and selections.
//!
//! Source: comparison of [`compare`](super::compare), selection of [`convert`](super::convert), and [`choice`](super::choice).
//! Parties and adversary: three, one semi-honest corruption.
//! Some levels are compared at once, as `ombra_ir::settings::rep3::tree_steps` says: all pairs of `2^q` neighbours in the rounds
//! of one sign bit, then `q` rounds of a selection each. Bits: those of the signs, of a selection for each pair of a level,
//! and 13 for each comparison of the level after it in the same step. Correlation and error: none. Side channels: pairs are
//! fixed by the rows' lengths alone.
//!
//! A level joins neighbours; an odd last entry moves up. With `b = 1{x < y}` the greater of `x` and `y` is
//! `x + b·(y − x)`. `x < y` is strict, so of equal entries the first wins. How the greater ones of two pairs compare is one of
//! four comparisons that are known already, chosen by the bits of the pairs: so whatever the shares decide where low bits are
//! left out, an entry is taken that is short of each other one by no more than it would be level by level.
//!
//! An index is made of bits: of an entry of level `l` the upper ones are its place there, which is public, and the lower `l` are
//! shared. `b` is the new highest of these, and the others are those of `x`, and where `b` is 1 those of `y`: `l` ands. The bits
//! of the last entry go into the ring in a round more: `3ℓ` bits each.
//!
//! Simulator: the steps' simulators one after another; every level has its own randomness.

use ombra_ir::settings::RowLens;
use ombra_ir::settings::rep3::tree_steps;
use ombra_ir::{Diagnostic, Result};

use super::Cx;
use super::choice::Choice;
use super::compare::msb_of_terms;
use super::convert::{Selection, bit_to_ring};
use super::cross::{bit, two_terms};
use super::join::And;
use super::planes::Planes;
use crate::backend::bits::{planes_of, words as plane_words};
use crate::settings::rep3::share::{Bits, Shared, Sum};
use crate::settings::rows;
use crate::settings::words::ops::packed;

/// Entries of all rows, one row after another: this role's term of two.
struct Rows {
    lens: Vec<usize>,
    terms: Vec<u64>,
}

/// The maximum of every row of `x`, whose rows of `lens` entries lie one after another, as a sum of two terms; 0 for an empty
/// row. The difference of two entries of a row fits in `width.0` bits, of which the lowest `width.1` are not compared.
pub async fn row_max(cx: &Cx, x: &Shared, lens: &[u32], bits: u8, width: (u8, u8)) -> Result<Sum> {
    let mut rows = rows_of(cx, x, lens)?;
    let mut level = 0;
    for step in tree_steps(&RowLens::Listed(lens), width.0 - width.1) {
        let mut compared = Compared::new(&cx.at_level(level), &rows, step, width).await?;
        for left in (0..step).rev() {
            let cx = cx.at_level(level);
            let (low, high) = rows.pairs();
            let selection = Selection::begin(&cx, &compared.pairs(), 1, &minus(&high, &low), bits)?;
            let next = if left > 0 { Some(compared.next(&cx)?) } else { None };
            cx.exchange().await;
            rows = rows.next(&low, &selection.end(&cx)?);
            if let Some(next) = next {
                compared = next.end(&cx)?;
            }
            level += 1;
        }
    }
    Ok(Sum::new(Some(rows.result())))
}

/// The index of the first maximum of every row of `x`: `count` rows of `len ≥ 1` entries.
/// The difference of two entries of a row fits in `width` bits.
pub async fn arg_max(cx: &Cx, x: &Shared, count: usize, len: usize, bits: u8, width: u8) -> Result<Shared> {
    let lens = vec![u32::try_from(len).unwrap_or(u32::MAX); count];
    let mut rows = rows_of(cx, x, &lens)?;
    let mut offsets = Offsets { a: vec![0; rows.terms.len()], b: vec![0; rows.terms.len()] };
    let mut level = 0;
    for step in tree_steps(&RowLens::Equal { count: count as u64, len: len as u64 }, width) {
        let mut compared = Compared::new(&cx.at_level(level), &rows, step, (width, 0)).await?;
        for left in (0..step).rev() {
            let cx = cx.at_level(level);
            let last = rows.lens.iter().all(|&len| len <= 2);
            let less = compared.pairs();
            let (low, high) = rows.pairs();
            // The last value is not needed.
            let selection = if last { None } else { Some(Selection::begin(&cx, &less, 1, &minus(&high, &low), bits)?) };
            let chosen = if level > 0 { Some(offsets.choose(&cx, &rows.lens, &less, level)?) } else { None };
            let next = if left > 0 { Some(compared.next(&cx)?) } else { None };
            if selection.is_some() || chosen.is_some() {
                cx.exchange().await;
            }
            let selected = selection.map_or_else(|| Ok(Vec::new()), |s| s.end(&cx))?;
            let chosen = chosen.map(|chosen| chosen.end(&cx)).transpose()?;
            if let Some(next) = next {
                compared = next.end(&cx)?;
            }
            offsets = offsets.next(&rows.lens, &less, chosen.as_ref(), level);
            rows = rows.next(&low, &selected);
            level += 1;
        }
    }
    offsets.in_ring(cx, level, bits).await
}

/// Which entry of its row every entry comes from, but for what its own place says: the low bits of its index, shared as the
/// exclusive or of components, in a word each.
struct Offsets {
    a: Vec<u64>,
    b: Vec<u64>,
}

/// Tells the ands of indices from those of comparisons at the same level.
const OF_INDICES: u8 = u8::MAX;

impl Offsets {
    /// Of every pair the difference of both entries' `level` bits where `less` is 1, on its way.
    fn choose(&self, cx: &Cx, lens: &[usize], less: &Bits, level: u8) -> Result<And> {
        let words = plane_words(less.n);
        let planes = |words: &[u64]| {
            let (low, high) = rows::pairs(lens, words);
            let either: Vec<u64> = low.iter().zip(&high).map(|(x, y)| x ^ y).collect();
            planes_of(&either, level, 0)
        };
        let count = usize::from(level);
        let either = Planes::new(planes(&self.a), planes(&self.b), count, words);
        let less = Planes::new(less.a.repeat(count), less.b.repeat(count), count, words);
        And::begin(cx, &less, &either, &[], rows::pair_count(lens), OF_INDICES)
    }

    /// Those of the next level: `less` is the new highest bit of a pair's, and 0 of an odd last entry's.
    fn next(&self, lens: &[usize], less: &Bits, chosen: Option<&Planes>, level: u8) -> Offsets {
        let component = |words: &[u64], less: &[u64], chosen: Option<&[u64]>| {
            let (low, _) = rows::pairs(lens, words);
            let plane = plane_words(low.len());
            let added = |i: usize| {
                let of = |planes: &[u64]| (0..level).fold(0, |w, k| w | bit(&planes[usize::from(k) * plane..], i) << k);
                chosen.map_or(0, of)
            };
            let joined = low.iter().enumerate().map(|(i, low)| low ^ added(i) | bit(less, i) << level);
            rows::next(lens, words, joined)
        };
        Offsets {
            a: component(&self.a, &less.a, chosen.map(|planes| planes.a.as_slice())),
            b: component(&self.b, &less.b, chosen.map(|planes| planes.b.as_slice())),
        }
    }

    /// The offsets of `levels` bits as elements of a ring.
    async fn in_ring(&self, cx: &Cx, levels: u8, bits: u8) -> Result<Shared> {
        if levels == 0 || self.a.is_empty() {
            return Ok(Shared::zero());
        }
        let n = self.a.len();
        let each = |words: &[u64]| {
            packed(&(0..levels).flat_map(|k| words.iter().map(move |w| w >> k & 1)).collect::<Vec<_>>())
        };
        let all = Bits::new(usize::from(levels) * n, each(&self.a), each(&self.b));
        let found = bit_to_ring(cx, &all, bits).await?;
        let sum = |words: &[u64]| {
            let index =
                |i: usize| (0..levels).fold(0u64, |sum, k| sum.wrapping_add(words[usize::from(k) * n + i] << k));
            (0..n).map(index).collect()
        };
        Ok(found.map(sum))
    }
}

/// Comparisons of all pairs of neighbours: 1 where the first is less than the second. Of a group of `s` neighbours those of
/// the first come first, with all later ones in turn, then those of the second, and so on.
struct Compared {
    /// Neighbours of every group.
    groups: Vec<usize>,
    bits: Bits,
}

impl Compared {
    /// Compares all pairs of `2^step` neighbours.
    async fn new(cx: &Cx, rows: &Rows, step: u8, width: (u8, u8)) -> Result<Compared> {
        let together = 1usize << step;
        let groups: Vec<usize> = rows
            .lens
            .iter()
            .flat_map(|&len| (0..len).step_by(together).map(move |at| together.min(len - at)))
            .collect();
        let differences = |words: &[u64]| {
            let (mut all, mut rest) = (Vec::new(), words);
            for &size in &groups {
                let (group, after) = rest.split_at(size);
                for (i, low) in group.iter().enumerate() {
                    all.extend(group[i + 1..].iter().map(|high| high.wrapping_sub(*low)));
                }
                rest = after;
            }
            all
        };
        // A greater second entry leaves a difference below 0.
        let below: Vec<u64> = differences(&rows.terms).iter().map(|x| x.wrapping_neg()).collect();
        let bits = msb_of_terms(cx, &below, width).await?;
        Ok(Compared { groups, bits })
    }

    /// Of every group the number of its first comparison, and its size.
    fn starts(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut first = 0;
        self.groups.iter().map(move |&size| {
            let at = first;
            first += size * size.saturating_sub(1) / 2;
            (at, size)
        })
    }

    /// The comparisons of the first with the second, the third with the fourth, and so on.
    fn pairs(&self) -> Bits {
        let of = |(at, size): (usize, usize)| (0..size / 2).map(move |i| Some(at + number(2 * i, 2 * i + 1, size)));
        gathered(&self.bits, self.starts().flat_map(of))
    }

    /// The comparisons of the greater ones of these pairs, and of what is left over, on their way.
    fn next(&self, cx: &Cx) -> Result<Next> {
        // Of two pairs, the first has two entries, and the second perhaps one.
        let chosen = |of: fn(usize, usize) -> (usize, usize)| {
            let of_group = move |(at, size): (usize, usize)| {
                let pairs = size.div_ceil(2);
                let both = (0..pairs).flat_map(move |p| (p + 1..pairs).map(move |q| (p, q)));
                both.map(move |(p, q)| {
                    let (i, j) = of(p, q);
                    (j < size).then(|| at + number(i, j, size))
                })
            };
            gathered(&self.bits, self.starts().flat_map(of_group))
        };
        let by = [chosen(|p, _| (2 * p, 2 * p + 1)), chosen(|_, q| (2 * q, 2 * q + 1))];
        let of = [
            chosen(|p, q| (2 * p, 2 * q)),
            chosen(|p, q| (2 * p, 2 * q + 1)),
            chosen(|p, q| (2 * p + 1, 2 * q)),
            chosen(|p, q| (2 * p + 1, 2 * q + 1)),
        ];
        let groups = self.groups.iter().map(|size| size.div_ceil(2)).collect();
        Ok(Next { groups, choice: Choice::begin(cx, by, of)? })
    }
}

/// Comparisons that are being chosen.
struct Next {
    groups: Vec<usize>,
    choice: Choice,
}

impl Next {
    /// The comparisons, after the exchange.
    fn end(self, cx: &Cx) -> Result<Compared> {
        Ok(Compared { groups: self.groups, bits: self.choice.end(cx)? })
    }
}

/// The place of the comparison of `i < j` in a group of `size`.
fn number(i: usize, j: usize, size: usize) -> usize {
    i * (2 * size - i - 1) / 2 + j - i - 1
}

/// The bits at these places; 0 where there is none.
fn gathered(bits: &Bits, places: impl Iterator<Item = Option<usize>>) -> Bits {
    let (mut n, mut a, mut b) = (0, Vec::new(), Vec::new());
    for place in places {
        if n % 64 == 0 {
            a.push(0);
            b.push(0);
        }
        if let (Some(place), Some(a), Some(b)) = (place, a.last_mut(), b.last_mut()) {
            *a |= bit(&bits.a, place) << (n % 64);
            *b |= bit(&bits.b, place) << (n % 64);
        }
        n += 1;
    }
    Bits::new(n, a, b)
}

fn rows_of(cx: &Cx, x: &Shared, lens: &[u32]) -> Result<Rows> {
    let lens: Vec<usize> = lens.iter().map(|&len| len as usize).collect();
    let n = lens.iter().sum();
    let terms = two_terms(cx, x, n);
    if terms.len() != n {
        return Err(Diagnostic::internal("E0804", "rows do not cover their entries")
            .note(format!("expected  {n} entries"))
            .note(format!("found     {}", terms.len())));
    }
    Ok(Rows { lens, terms })
}

/// The differences of entries.
fn minus(x: &[u64], y: &[u64]) -> Vec<u64> {
    x.iter().zip(y).map(|(x, y)| x.wrapping_sub(*y)).collect()
}

impl Rows {
    /// The first and the second entries of all pairs.
    fn pairs(&self) -> (Vec<u64>, Vec<u64>) {
        rows::pairs(&self.lens, &self.terms)
    }

    /// The rows of the next level: `low + chosen` of every pair, then the odd last entry.
    fn next(&self, low: &[u64], chosen: &[u64]) -> Rows {
        let joined = low.iter().zip(chosen).map(|(low, chosen)| low.wrapping_add(*chosen));
        Rows { lens: rows::halved(&self.lens), terms: rows::next(&self.lens, &self.terms, joined) }
    }

    /// One entry a row; 0 for an empty row.
    fn result(self) -> Vec<u64> {
        rows::column(&self.lens, &self.terms)
    }
}
