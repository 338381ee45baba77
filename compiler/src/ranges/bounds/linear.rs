//! Bounds of products with a matrix of weights.
//!
//! A column `w` of the matrix and a row `x` that is known by its elements and by its length give
//! `|x·w| ≤ min(Σ |w_i| |x_i|, ‖w‖ ‖x‖)` (Cauchy–Schwarz), for every run of elements whose length is known. What comes
//! of a norm is `c + γ∘u` with `‖u‖ ≤ √n`, so `x·w` lies within `√n ‖γ∘w‖` of `c·w`. The length of a run of results is at
//! most the maximum singular value of its columns times the length of the row.

use super::proof::{Ends, Lengths, Linear, Proof, Unit, size};
use super::spread::{Spread, size_of};
use crate::graph::ValueId;
use crate::weights::statics::{Statics, key_of};
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::float::matmul_acc;
use rayon::prelude::*;
use std::rc::Rc;

/// Maximum singular values are bounded for matrices with a side of at most this, or of at most [`WIDE`] where the result
/// is no wider than the row; others take the Frobenius norm, which the lengths of single columns give.
const SINGULAR: usize = 256;
/// See [`SINGULAR`].
const WIDE: usize = 1024;
/// Columns that one thread bounds at a time.
const PART: usize = 512;
/// Parts in which symmetric products are computed, and fewest rows of one.
const BANDS: usize = 8;
const LEAST_ROWS: usize = 48;
/// Relative rounding of a single-precision sum or product.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// A matrix `[inner, columns]`.
pub struct Matrix<'a> {
    /// Elements, row by row.
    pub data: &'a [f32],
    /// Rows.
    pub inner: usize,
    /// Columns.
    pub columns: usize,
}

impl Matrix<'_> {
    fn row(&self, i: usize) -> &[f32] {
        self.data.get(i * self.columns..(i + 1) * self.columns).unwrap_or_default()
    }
}

/// What is proven of a product of a row with a matrix.
#[derive(Clone, Debug)]
pub struct Product {
    /// Ends of every column.
    range: Vec<Ends>,
    /// Bounds of the lengths of runs of columns.
    lengths: Vec<f64>,
}

/// A row that meets a matrix: what is known of its elements, of the lengths of its runs, and of the norm that it is of.
struct Row<'a> {
    ends: &'a [Ends],
    lengths: &'a [f64],
    unit: Option<OfUnit<'a>>,
}

/// A [`Unit`]: its radius, factors and summands.
#[derive(Clone, Copy)]
struct OfUnit<'a> {
    radius: f64,
    gamma: &'a [f64],
    offset: &'a [f64],
}

impl Row<'_> {
    /// Elements of a run.
    fn each(&self) -> usize {
        self.ends.len() / self.lengths.len().max(1)
    }

    /// All that decides what is proven of it.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        let ends = self.ends.iter().flat_map(|&(low, high)| [low, high]);
        let unit = self.unit.into_iter().flat_map(|u| u.gamma.iter().chain(u.offset).copied().chain([u.radius]));
        ends.chain(self.lengths.iter().copied()).chain(unit)
    }
}

/// The bound of `x · w`, of `rank` axes; `runs` of the result are told apart by length.
///
/// `None` where shapes do not fit.
///
/// # Errors
/// A weight that cannot be read.
pub fn product(x: &Proof, statics: &Statics, (weight, rank): (ValueId, usize), runs: usize) -> Result<Option<Proof>> {
    let sizes: Option<Vec<usize>> = statics.graph.shape(weight).iter().map(size_of).collect();
    let (Some(&[n, columns]), Some(last)) = (sizes.as_deref(), x.range.shape().len().checked_sub(1)) else {
        return Ok(None);
    };
    if n == 0 || columns == 0 {
        return Ok(None);
    }
    // Elements of a row, whatever comes before its axis.
    let ends = (0..last).fold(x.range.clone(), |range, axis| range.fold(axis, super::proof::join)).widen(last, n);
    let known = x.lengths.as_ref().filter(|l| l.axis == last).and_then(|l| l.runs.shape().get(last).copied());
    let x_runs = known.filter(|&r| r > 0 && n % r == 0).unwrap_or(1);
    let Some(lengths) = x.lengths_on(last, n, x_runs) else { return Ok(None) };
    let lengths = (0..last).fold(lengths, |l, axis| l.fold(axis, f64::max));
    if ends.data().len() != n || lengths.data().len() != x_runs {
        return Ok(None);
    }
    let unit = x.unit.as_deref().filter(|u| u.gamma.len() == n && u.offset.len() == n);
    let unit = unit.map(|u| OfUnit { radius: u.radius, gamma: &u.gamma, offset: &u.offset });
    let row = Row { ends: ends.data(), lengths: lengths.data(), unit };
    let sizes = [runs, x_runs, usize::from(unit.is_some())].map(|n| n as f64);
    let key = key_of(&[statics.key(weight)?], sizes.into_iter().chain(row.numbers()));
    let found = statics.known.products.get(key, || of_row(&row, statics, (weight, [n, columns]), runs).map(Some))?;
    let Some(Product { range, lengths }) = found else { return Ok(None) };
    let on_last = |size: usize| {
        let mut shape = vec![1; rank];
        shape.last_mut().map(|last| *last = size).map(|()| shape)
    };
    let spread = |values: Vec<f64>| Spread::new(on_last(values.len())?, values);
    let Some((range, runs)) = on_last(columns).and_then(|s| Spread::new(s, range)).zip(spread(lengths)) else {
        return Ok(None);
    };
    let mut proof = Proof::of(range);
    proof.lengths = Some(Lengths { axis: rank - 1, runs });
    proof.linear = x
        .unit
        .as_ref()
        .filter(|u| u.offset.iter().all(|&c| c == 0.0))
        .map(|unit| Rc::new(Linear { unit: unit.clone(), weight }));
    Ok(Some(proof))
}

/// Bounds of the product of a row with the matrix `weight`, `[n, columns]`, which is read some rows at a time.
fn of_row(row: &Row, statics: &Statics, (weight, [n, columns]): (ValueId, [usize; 2]), runs: usize) -> Result<Product> {
    let mut parts: Vec<Part> = (0..columns).step_by(PART).map(|first| Part::new(first, columns)).collect();
    let mut first = 0;
    statics.floats(weight, &mut |values| {
        parts.par_iter_mut().for_each(|part| part.take(row, first, values, columns));
        first += values.len() / columns;
        Ok(())
    })?;
    if first != n {
        return Err(Diagnostic::internal("E0299", "a matrix has not the rows of its shape"));
    }
    let range: Vec<Ends> = parts.iter().flat_map(|part| part.ends(row)).collect();
    let sizes: Vec<f64> = range.iter().map(|&e| size(e)).collect();
    let run_of = columns / runs.max(1);
    let by_size = sizes.chunks(run_of.max(1)).map(|run| libm::sqrt(run.iter().map(|x| x * x).sum::<f64>()));
    let mut lengths: Vec<f64> = by_size.collect();
    if run_of.min(row.each()) <= SINGULAR || run_of <= WIDE && run_of <= n {
        let whole = statics.value(weight)?;
        let w = Matrix { data: whole.as_f32()?, inner: n, columns };
        for (run, bound) in lengths.iter_mut().enumerate() {
            let at = run * run_of..columns.min((run + 1) * run_of);
            *bound = bound.min(run_length(row, &w, at));
        }
    }
    Ok(Product { range, lengths })
}

/// Sums over the rows of a matrix, for some of its columns.
struct Part {
    first: usize,
    centre: Vec<f64>,
    spread: Vec<f64>,
    by_run: Vec<f64>,
    /// Of the run that is being read.
    absolute: Vec<f64>,
    squares: Vec<f64>,
    /// Of `diag(gamma) · w`, and of the offset with it.
    unit_squares: Vec<f64>,
    unit_centre: Vec<f64>,
}

impl Part {
    /// Nothing yet of the columns from `first` on.
    fn new(first: usize, columns: usize) -> Self {
        let none = || vec![0f64; PART.min(columns - first)];
        Part {
            first,
            centre: none(),
            spread: none(),
            by_run: none(),
            absolute: none(),
            squares: none(),
            unit_squares: none(),
            unit_centre: none(),
        }
    }

    /// The rows from `at` on, `columns` elements each.
    fn take(&mut self, row: &Row, at: usize, values: &[f32], columns: usize) {
        let width = self.centre.len();
        for (i, w) in values.chunks_exact(columns).enumerate().map(|(i, w)| (at + i, w)) {
            let (Some(w), Some(&(low, high))) = (w.get(self.first..self.first + width), row.ends.get(i)) else {
                continue;
            };
            // Unbounded elements leave the length alone to bound the sum.
            let (middle, half) = if low.is_finite() && high.is_finite() {
                ((low + high) / 2.0, (high - low) / 2.0)
            } else {
                (0.0, f64::INFINITY)
            };
            let most = size((low, high));
            for (j, &w) in w.iter().enumerate() {
                let w = f64::from(w);
                let a = w.abs();
                self.centre[j] += middle * w;
                // 0 times what is unbounded is 0.
                self.spread[j] += if w != 0.0 { half * a } else { 0.0 };
                self.absolute[j] += if w != 0.0 { most * a } else { 0.0 };
                self.squares[j] += w * w;
            }
            if let Some(OfUnit { gamma, offset, .. }) = row.unit {
                let (gamma, offset) = (gamma[i], offset[i]);
                for (j, &w) in w.iter().enumerate() {
                    let w = f64::from(w);
                    self.unit_centre[j] += offset * w;
                    self.unit_squares[j] += gamma * w * gamma * w;
                }
            }
            if (i + 1) % row.each() == 0 {
                self.end_run(row.lengths[i / row.each()], row.ends.len());
            }
        }
    }

    /// The sums of a run of the row, whose length is known, are whole.
    fn end_run(&mut self, length: f64, inner: usize) {
        for j in 0..self.centre.len() {
            self.by_run[j] += self.absolute[j].min(libm::sqrt(self.squares[j]) * length);
            // What sums of doubles may be off by, where large ends cancel.
            self.spread[j] += self.absolute[j] * inner as f64 * f64::EPSILON * 4.0;
        }
        self.absolute.fill(0.0);
        self.squares.fill(0.0);
    }

    /// Ends of the columns; of a norm's rows within `offset·w ± radius · ‖gamma∘w‖`.
    fn ends(&self, row: &Row) -> impl Iterator<Item = Ends> {
        let radius = row.unit.map(|u| u.radius);
        (0..self.centre.len()).map(move |j| {
            let (centre, spread, by_run) = (self.centre[j], self.spread[j], self.by_run[j]);
            let ends = ((centre - spread).max(-by_run), (centre + spread).min(by_run));
            let Some(radius) = radius else { return ends };
            let (c, r) = (self.unit_centre[j], radius * libm::sqrt(self.unit_squares[j]));
            (ends.0.max(c - r), ends.1.min(c + r))
        })
    }
}

/// A bound of the length of some columns of the product.
fn run_length(row: &Row, w: &Matrix, columns: std::ops::Range<usize>) -> f64 {
    let each = row.each();
    let runs = row.lengths.iter().enumerate();
    let values = runs.map(|(run, _)| singular(w, run * each..(run + 1) * each, columns.clone(), |_| 1.0));
    let values: Vec<f64> = values.collect();
    let plain = values.iter().zip(row.lengths).map(|(value, length)| value * length).sum::<f64>();
    let Some(unit) = row.unit else { return plain };
    let value = match values[..] {
        // A norm whose scale is folded.
        [value] if unit.gamma.iter().all(|&g| g == 1.0) => value,
        _ => singular(w, 0..w.inner, columns.clone(), |i| unit.gamma.get(i).copied().unwrap_or(1.0)),
    };
    let mut centre = vec![0f64; columns.len()];
    for (i, &c) in unit.offset.iter().enumerate().filter(|(_, c)| **c != 0.0) {
        let row = w.row(i).get(columns.clone()).unwrap_or_default();
        centre.iter_mut().zip(row).for_each(|(sum, &w)| *sum += c * f64::from(w));
    }
    plain.min(unit.radius * value + libm::sqrt(centre.iter().map(|c| c * c).sum::<f64>()))
}

/// An upper bound of the maximum singular value of a part of `diag(gamma) · w`: with the smaller Gram matrix G, at most
/// `tr(G^8)^(1/16)`, which is at most 0.4 bits too large at 64 rows. Products are in single precision; what they may be off
/// by is added.
pub fn singular(
    w: &Matrix,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    gamma: impl Fn(usize) -> f64,
) -> f64 {
    let (n, m) = (rows.len(), columns.len());
    let (s, k) = (n.min(m), n.max(m));
    if s == 0 {
        return 0.0;
    }
    // The matrix with its shorter side first, and its transpose.
    let (mut a, mut b) = (vec![0f32; s * k], vec![0f32; s * k]);
    let mut trace = 0f64;
    for (i, at) in rows.enumerate() {
        let factor = gamma(at);
        let row = w.row(at).get(columns.clone()).unwrap_or_default();
        for (j, &x) in row.iter().enumerate() {
            let x = factor * f64::from(x);
            trace += x * x;
            let (short, long) = if n <= m { (i, j) } else { (j, i) };
            (a[short * k + long], b[long * s + short]) = (x as f32, x as f32);
        }
    }
    if trace <= 0.0 || !trace.is_finite() {
        return if trace <= 0.0 { 0.0 } else { f64::INFINITY };
    }
    // Of trace 1, so that nothing leaves the range of single precision.
    let scale = (1.0 / libm::sqrt(trace)) as f32;
    a.iter_mut().chain(&mut b).for_each(|x| *x *= scale);
    let squares = |g: &[f32]| g.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let gram = symmetric(&a, &b, [s, k]);
    let second = symmetric(&gram, &gram, [s, s]);
    let fourth = symmetric(&second, &second, [s, s]);
    // Every product of matrices X and Y with inner size n is off by at most n units of ‖X‖‖Y‖.
    let off = |n: usize, norm: f64| 2.0 * (n as f64 + 2.0) * UNIT * norm;
    let of_second = libm::sqrt(squares(&fourth)) + off(s, squares(&second));
    let of_gram = libm::sqrt(of_second) + off(s, squares(&gram));
    libm::sqrt(trace * (libm::sqrt(of_gram) + off(k, 1.0))) * (1.0 + 1e-6)
}

/// The product of `a`, `[s, k]`, and `b`, `[k, s]`, where that is symmetric: what is above the diagonal is computed, some
/// rows at a time, and what is below is the same to the bit, as the sum of the same products in the same order.
fn symmetric(a: &[f32], b: &[f32], [s, k]: [usize; 2]) -> Vec<f32> {
    let mut whole = vec![0f32; s * s];
    let rows = s.div_ceil(BANDS).max(LEAST_ROWS);
    for first in (0..s).step_by(rows) {
        let (height, width) = (rows.min(s - first), s - first);
        let right: Vec<f32> = b.chunks_exact(s).flat_map(|row| row.iter().skip(first).copied()).collect();
        let mut band = vec![0f32; height * width];
        matmul_acc(&a[first * k..(first + height) * k], &right, &mut band, k, width);
        for (i, row) in band.chunks_exact(width).enumerate() {
            whole[(first + i) * s + first..(first + i + 1) * s].copy_from_slice(row);
            for (j, &x) in row.iter().enumerate().skip(height) {
                whole[(first + j) * s + first + i] = x;
            }
        }
    }
    whole
}

/// Bounds of `(u·g)(u·h)` for columns g and h of two maps of one row: `radius² (‖g‖‖h‖ + |g·h|) / 2`.
pub fn of_two(a: &Matrix, b: &Matrix, unit: &Unit) -> Option<Vec<f64>> {
    if a.inner != b.inner || a.columns != b.columns || unit.gamma.len() != a.inner {
        return None;
    }
    let n = a.columns;
    let (mut g, mut h, mut both) = (vec![0f64; n], vec![0f64; n], vec![0f64; n]);
    for (i, &gamma) in unit.gamma.iter().enumerate() {
        for (j, (&x, &y)) in a.row(i).iter().zip(b.row(i)).enumerate() {
            let (x, y) = (gamma * f64::from(x), gamma * f64::from(y));
            g[j] += x * x;
            h[j] += y * y;
            both[j] += x * y;
        }
    }
    let most = unit.radius * unit.radius / 2.0;
    Some((0..n).map(|j| most * (libm::sqrt(g[j] * h[j]) + libm::fabs(both[j]))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_singular_value_is_bounded_closely() {
        // diag(3, 2, 1) turned by a rotation of its columns.
        let (c, s) = (0.6f32, 0.8f32);
        let data = [3.0 * c, 3.0 * s, 0.0, -2.0 * s, 2.0 * c, 0.0, 0.0, 0.0, 1.0];
        let w = Matrix { data: &data, inner: 3, columns: 3 };
        let found = singular(&w, 0..3, 0..3, |_| 1.0);
        assert!((3.0 - 1e-6..3.1).contains(&found), "{found}");
        let wide = singular(&w, 0..1, 0..3, |_| 2.0);
        assert!((wide - 6.0).abs() < 1e-5, "{wide}");
    }

    #[test]
    fn a_symmetric_product_is_the_product_to_the_bit() {
        for (s, k) in [(1, 3), (47, 5), (130, 9), (401, 16)] {
            let a: Vec<f32> = (0..s * k).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 701.0).collect();
            let b: Vec<f32> = (0..k * s).map(|i| a[i % s * k + i / s]).collect();
            let mut whole = vec![0f32; s * s];
            matmul_acc(&a, &b, &mut whole, k, s);
            let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&symmetric(&a, &b, [s, k])), bits(&whole), "{s} {k}");
        }
    }

    #[test]
    fn a_product_of_two_maps_is_bounded_tightly() {
        // u = √2 (cos t, sin t): (u·(1, 0)) (u·(1, 1)) is at most 1 + √2.
        let (g, h) = ([1.0f32, 0.0], [1.0f32, 1.0]);
        let matrix = |data| Matrix { data, inner: 2, columns: 1 };
        let unit = Unit {
            root: ValueId::new(0),
            radius: libm::sqrt(2.0),
            gamma: Rc::new(vec![1.0; 2]),
            offset: Rc::new(vec![0.0; 2]),
        };
        let bound = of_two(&matrix(&g), &matrix(&h), &unit).expect("they fit");
        assert!((bound[0] - (1.0 + libm::sqrt(2.0))).abs() < 1e-12);
    }
}
