//! Maximum entries of rows, and where they are: binary trees of comparisons and selections.
//!
//! Source: comparison of [`compare`](super::compare), selection of [`convert`](super::convert). Parties and adversary:
//! three, one semi-honest corruption.
//! Rounds per level: those of a sign bit, 1 for the selection. Bits per pair of a level: the sum of both. Correlation and error: none. Side channels: pairs are fixed by the rows' lengths alone.
//!
//! A level joins neighbours; an odd last entry moves up. With `b = 1{x < y}` the greater of `x` and `y` is
//! `x + b·(y − x)`. `x < y` is strict, so of equal entries the first wins.
//!
//! Simulator: the steps' simulators one after another; every level has its own randomness.

use ombra_ir::{Diagnostic, Result};

use super::Cx;
use super::compare::msb;
use super::convert::{Conversion, Selection, select};
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
    while rows.any_pair() {
        let cx = cx.at_level(level);
        let (low, high) = rows.pairs();
        let difference = high.minus(&low);
        let less = less_than(&cx, &difference, width).await?;
        let chosen = select(&cx, &less, &difference.shared(), bits).await?;
        rows = rows.next(&low, &chosen);
        level += 1;
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
    while rows.any_pair() {
        let cx = cx.at_level(level);
        let last = rows.lens.iter().all(|&len| len <= 2);
        let (low, high) = rows.pairs();
        let difference = high.minus(&low);
        let less = less_than(&cx, &difference, (width, 0)).await?;
        let index_pairs = indices.as_ref().map(Rows::pairs);
        let mut chosen_from = if last { rows.emptied() } else { difference };
        let values = chosen_from.a.len();
        if let Some((low, high)) = &index_pairs {
            chosen_from.append(high.minus(low));
        }
        let (times, from) = (chosen_from.a.len() / low.a.len().max(1), chosen_from.shared());
        let selection = if times > 0 { Some(Selection::begin(&cx, &less, times, &from, bits)?) } else { None };
        let conversion = if indices.is_none() { Some(Conversion::begin(&cx, &less, bits)?) } else { None };
        cx.round().await;
        let mut chosen = selection.map_or_else(|| Ok(Shared::zero()), |s| s.end(&cx))?;
        let less = conversion.map_or_else(|| Ok(Shared::zero()), |c| c.end(&cx))?;
        let chosen_indices = split_off(&mut chosen, values);
        indices = Some(match (&indices, &index_pairs) {
            (Some(indices), Some((low, _))) => indices.next(low, &chosen_indices),
            _ => first_indices(&cx, &rows, &less),
        });
        rows = if last { rows.emptied() } else { rows.next(&low, &chosen) };
        level += 1;
    }
    Ok(indices.map_or_else(Shared::zero, |indices| indices.result()))
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
    fn any_pair(&self) -> bool {
        self.lens.iter().any(|&len| len > 1)
    }

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
