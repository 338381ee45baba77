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
//! Simulator: the steps' simulators one after another; every level has its own randomness.

use ombra_ir::settings::RowLens;
use ombra_ir::settings::rep3::tree_steps;
use ombra_ir::{Diagnostic, Result};

use super::Cx;
use super::choice::Choice;
use super::compare::msb;
use super::convert::{Conversion, Selection};
use super::cross::bit;
use crate::settings::rep3::share::{Bits, Component, Shared};
use crate::settings::rows;

/// Entries of all rows, one row after another, at one party.
struct Rows {
    lens: Vec<usize>,
    a: Vec<u64>,
    b: Vec<u64>,
}

/// The maximum of every row of `x`, whose rows of `lens` entries lie one after another; 0 for an empty row.
/// The difference of two entries of a row fits in `width.0` bits, of which the lowest `width.1` are not compared.
pub async fn row_max(cx: &Cx, x: &Shared, lens: &[u32], bits: u8, width: (u8, u8)) -> Result<Shared> {
    let mut rows = rows_of(x, lens)?;
    let mut level = 0;
    for step in tree_steps(&RowLens::Listed(lens), width.0 - width.1) {
        let mut compared = Compared::new(&cx.at_level(level), &rows, step, width).await?;
        for left in (0..step).rev() {
            let cx = cx.at_level(level);
            let (low, high) = rows.pairs();
            let selection = Selection::begin(&cx, &compared.pairs(), 1, &high.minus(&low).shared(), bits)?;
            let next = if left > 0 { Some(compared.next(&cx)?) } else { None };
            cx.exchange().await;
            rows = rows.next(&low, &selection.end(&cx)?);
            if let Some(next) = next {
                compared = next.end(&cx)?;
            }
            level += 1;
        }
    }
    Ok(rows.result())
}

/// The index of the first maximum of every row of `x`: `count` rows of `len ≥ 1` entries.
/// The difference of two entries of a row fits in `width` bits.
pub async fn arg_max(cx: &Cx, x: &Shared, count: usize, len: usize, bits: u8, width: u8) -> Result<Shared> {
    let lens = vec![u32::try_from(len).unwrap_or(u32::MAX); count];
    let mut rows = rows_of(x, &lens)?;
    // Indices are public until the first selection.
    let mut indices: Option<Rows> = None;
    let mut level = 0;
    for step in tree_steps(&RowLens::Equal { count: count as u64, len: len as u64 }, width) {
        let mut compared = Compared::new(&cx.at_level(level), &rows, step, (width, 0)).await?;
        for left in (0..step).rev() {
            let cx = cx.at_level(level);
            let last = rows.lens.iter().all(|&len| len <= 2);
            let (low, high) = rows.pairs();
            let less = compared.pairs();
            let index_pairs = indices.as_ref().map(Rows::pairs);
            let mut chosen_from = if last { rows.emptied() } else { high.minus(&low) };
            let values = chosen_from.a.len();
            if let Some((low, high)) = &index_pairs {
                chosen_from.append(high.minus(low));
            }
            let (times, from) = (chosen_from.a.len() / low.a.len().max(1), chosen_from.shared());
            let selection = if times > 0 { Some(Selection::begin(&cx, &less, times, &from, bits)?) } else { None };
            let conversion = if indices.is_none() { Some(Conversion::begin(&cx, &less, bits)?) } else { None };
            let next = if left > 0 { Some(compared.next(&cx)?) } else { None };
            cx.exchange().await;
            let mut chosen = selection.map_or_else(|| Ok(Shared::zero()), |s| s.end(&cx))?;
            let less = conversion.map_or_else(|| Ok(Shared::zero()), |c| c.end(&cx))?;
            let chosen_indices = split_off(&mut chosen, values);
            indices = Some(match (&indices, &index_pairs) {
                (Some(indices), Some((low, _))) => indices.next(low, &chosen_indices),
                _ => first_indices(&cx, &rows, &less),
            });
            rows = if last { rows.emptied() } else { rows.next(&low, &chosen) };
            if let Some(next) = next {
                compared = next.end(&cx)?;
            }
            level += 1;
        }
    }
    Ok(indices.map_or_else(Shared::zero, |indices| indices.result()))
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
        let difference = Rows { lens: Vec::new(), a: differences(&rows.a), b: differences(&rows.b) };
        let bits = less_than(cx, &difference, width).await?;
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

/// The bits 1 where `low < high`, from `high − low`.
async fn less_than(cx: &Cx, difference: &Rows, (width, drop): (u8, u8)) -> Result<Bits> {
    let n = difference.a.len();
    let negated = |x: &[u64]| x.iter().map(|x| x.wrapping_neg()).collect();
    msb(cx, &Shared::new(negated(&difference.a), negated(&difference.b)), n, width, drop).await
}

/// The indices after the first level. A public number is component 0, which role 0 holds as `a` and role 2 as `b`.
fn first_indices(cx: &Cx, from: &Rows, less: &Shared) -> Rows {
    let lens = &from.lens;
    let pairs = rows::pair_count(lens);
    let component = |c: &Component, public: bool| rows::next_indices(lens, c.to_vec(pairs), public);
    let (a, b) = (component(&less.a, cx.role() == 0), component(&less.b, cx.role() == 2));
    Rows { lens: rows::halved(lens), a, b }
}

/// Takes away the elements from `at` on.
fn split_off(x: &mut Shared, at: usize) -> Shared {
    let (a, b) = (x.a.data().unwrap_or(&[]), x.b.data().unwrap_or(&[]));
    let tail = Shared::new(a.get(at..).unwrap_or(&[]).to_vec(), b.get(at..).unwrap_or(&[]).to_vec());
    let head = Shared::new(a.get(..at).unwrap_or(&[]).to_vec(), b.get(..at).unwrap_or(&[]).to_vec());
    *x = head;
    tail
}

fn rows_of(x: &Shared, lens: &[u32]) -> Result<Rows> {
    let lens: Vec<usize> = lens.iter().map(|&len| len as usize).collect();
    let n = lens.iter().sum();
    let (a, b) = (x.a.to_vec(n), x.b.to_vec(n));
    if a.len() != n || b.len() != n {
        return Err(Diagnostic::internal("E0804", "rows do not cover their entries")
            .note(format!("expected  {n} entries"))
            .note(format!("found     {} and {}", a.len(), b.len())));
    }
    Ok(Rows { lens, a, b })
}

impl Rows {
    /// The first and the second entries of all pairs; each as rows without lengths.
    fn pairs(&self) -> (Rows, Rows) {
        let ((low_a, high_a), (low_b, high_b)) = (rows::pairs(&self.lens, &self.a), rows::pairs(&self.lens, &self.b));
        let flat = |a: Vec<u64>, b: Vec<u64>| Rows { lens: Vec::new(), a, b };
        (flat(low_a, low_b), flat(high_a, high_b))
    }

    /// The rows of the next level: `low + chosen` of every pair, then the odd last entry.
    fn next(&self, low: &Rows, chosen: &Shared) -> Rows {
        let component = |words: &[u64], low: &[u64], chosen: &Component| {
            let joined = low.iter().zip(chosen.to_vec(low.len())).map(|(low, chosen)| low.wrapping_add(chosen));
            rows::next(&self.lens, words, joined)
        };
        let (a, b) = (component(&self.a, &low.a, &chosen.a), component(&self.b, &low.b, &chosen.b));
        Rows { lens: rows::halved(&self.lens), a, b }
    }

    /// The differences of entries, as rows without lengths.
    fn minus(&self, other: &Rows) -> Rows {
        let minus = |x: &[u64], y: &[u64]| x.iter().zip(y).map(|(x, y)| x.wrapping_sub(*y)).collect();
        Rows { lens: Vec::new(), a: minus(&self.a, &other.a), b: minus(&self.b, &other.b) }
    }

    /// Adds entries at the end.
    fn append(&mut self, mut other: Rows) {
        self.a.append(&mut other.a);
        self.b.append(&mut other.b);
    }

    fn shared(&self) -> Shared {
        Shared::new(self.a.clone(), self.b.clone())
    }

    fn emptied(&self) -> Rows {
        Rows { lens: Vec::new(), a: Vec::new(), b: Vec::new() }
    }

    /// One entry a row; 0 for an empty row.
    fn result(self) -> Shared {
        Shared::new(rows::column(&self.lens, &self.a), rows::column(&self.lens, &self.b))
    }
}
