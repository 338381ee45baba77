//! Bounds of products with a matrix of weights.
//!
//! A column `w` of the matrix and a row `x` that is known by its elements and by its length give
//! `|x·w| ≤ min(Σ |w_i| |x_i|, ‖w‖ ‖x‖)` (Cauchy–Schwarz), for every run of elements whose length is known. What comes
//! of a norm is `c + γ∘u` with `‖u‖ ≤ √n`, so `x·w` lies within `√n ‖γ∘w‖` of `c·w`. The length of a run of results is at
//! most the greatest singular value of its columns times the length of the row.

use super::proof::{Ends, Lengths, Linear, Proof, Unit, size};
use super::spread::Spread;
use crate::graph::ValueId;
use ombra_kernels::float::matmul_acc;
use rayon::prelude::*;
use std::rc::Rc;

/// Greatest singular values are bounded for matrices with a side of at most this, or of at most [`WIDE`] where the result
/// is no wider than the row; others take the Frobenius norm, which the lengths of single columns give.
const SINGULAR: usize = 256;
/// See [`SINGULAR`].
const WIDE: usize = 1024;
/// Columns that one thread bounds at a time.
const PART: usize = 512;
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

/// The bound of `x · w`, of `rank` axes; `runs` of the result are told apart by length.
///
/// `None` where shapes do not fit.
pub fn product(x: &Proof, w: &Matrix, (weight, rank): (ValueId, usize), runs: usize) -> Option<Proof> {
    let last = x.range.shape().len().checked_sub(1)?;
    let (n, columns) = (w.inner, w.columns);
    if n == 0 || columns == 0 || w.data.len() != n * columns {
        return None;
    }
    // Elements of a row, whatever comes before its axis.
    let ends = (0..last).fold(x.range.clone(), |range, axis| range.fold(axis, super::proof::join)).widen(last, n);
    let ends: &[Ends] = ends.data();
    let known = x.lengths.as_ref().filter(|l| l.axis == last).and_then(|l| l.runs.shape().get(last).copied());
    let x_runs = known.filter(|&r| r > 0 && n % r == 0).unwrap_or(1);
    let lengths = x.lengths_on(last, n, x_runs)?;
    let lengths = (0..last).fold(lengths, |l, axis| l.fold(axis, f64::max));
    let lengths = lengths.data();

    let unit = x.unit.as_ref().filter(|u| u.gamma.len() == n && u.offset.len() == n);
    let unit = unit.map(|u| (u.radius, u.gamma.as_slice(), u.offset.as_slice()));
    let parts = (0..columns).into_par_iter().step_by(PART).map(|first| {
        let part = first..columns.min(first + PART);
        let mut range = of_columns(ends, (lengths, n / x_runs), w, part.clone())?;
        if let Some(unit) = unit {
            within_unit(&mut range, unit, w, part);
        }
        Some(range)
    });
    let range = parts.collect::<Option<Vec<_>>>()?.concat();
    let sizes: Vec<f64> = range.iter().map(|&e| size(e)).collect();
    let run_of = columns / runs.max(1);
    let by_size = sizes.chunks(run_of.max(1)).map(|run| libm::sqrt(run.iter().map(|x| x * x).sum::<f64>()));
    let mut result: Vec<f64> = by_size.collect();
    let each = n / x_runs;
    if run_of.min(each) <= SINGULAR || run_of <= WIDE && run_of <= n {
        for (run, bound) in result.iter_mut().enumerate() {
            let at = run * run_of..(run + 1) * run_of;
            *bound = bound.min(run_length(x, w, (lengths, each), at));
        }
    }
    let mut shape = vec![1; rank];
    *shape.last_mut()? = columns;
    let mut run_shape = vec![1; rank];
    *run_shape.last_mut()? = result.len();
    let mut proof = Proof::of(Spread::new(shape, range)?);
    proof.lengths = Some(Lengths { axis: rank - 1, runs: Spread::new(run_shape, result)? });
    proof.linear = x
        .unit
        .as_ref()
        .filter(|u| u.offset.iter().all(|&c| c == 0.0))
        .map(|unit| Rc::new(Linear { unit: unit.clone(), weight }));
    Some(proof)
}

/// What some columns of the product are, for a row known by its elements and the lengths of its runs of `each` elements.
fn of_columns(
    ends: &[Ends],
    (lengths, each): (&[f64], usize),
    w: &Matrix,
    part: std::ops::Range<usize>,
) -> Option<Vec<Ends>> {
    let columns = part.len();
    let mut centre = vec![0f64; columns];
    let mut spread = vec![0f64; columns];
    let mut by_run = vec![0f64; columns];
    let (mut absolute, mut squares) = (vec![0f64; columns], vec![0f64; columns]);
    for (run, &length) in lengths.iter().enumerate() {
        absolute.fill(0.0);
        squares.fill(0.0);
        for i in run * each..(run + 1) * each {
            let (low, high) = *ends.get(i)?;
            // Unbounded elements leave the length alone to bound the sum.
            let (middle, half) = if low.is_finite() && high.is_finite() {
                ((low + high) / 2.0, (high - low) / 2.0)
            } else {
                (0.0, f64::INFINITY)
            };
            let most = size((low, high));
            for (j, &w) in w.row(i).get(part.clone())?.iter().enumerate() {
                let w = f64::from(w);
                let a = libm::fabs(w);
                centre[j] += middle * w;
                if w != 0.0 {
                    spread[j] += half * a;
                    absolute[j] += most * a;
                }
                squares[j] += w * w;
            }
        }
        for j in 0..columns {
            by_run[j] += absolute[j].min(libm::sqrt(squares[j]) * length);
            // What sums of doubles may be off by, where large ends cancel.
            spread[j] += absolute[j] * w.inner as f64 * f64::EPSILON * 4.0;
        }
    }
    let ends = |j: usize| ((centre[j] - spread[j]).max(-by_run[j]), (centre[j] + spread[j]).min(by_run[j]));
    Some((0..columns).map(ends).collect())
}

/// Narrows the ranges of some columns to `c·w ± radius · ‖γ∘w‖`.
fn within_unit(
    range: &mut [Ends],
    (radius, gamma, offset): (f64, &[f64], &[f64]),
    w: &Matrix,
    part: std::ops::Range<usize>,
) {
    let mut centre = vec![0f64; range.len()];
    let mut squares = vec![0f64; range.len()];
    for (i, (&gamma, &offset)) in gamma.iter().zip(offset).enumerate() {
        for (j, &w) in w.row(i).get(part.clone()).unwrap_or_default().iter().enumerate() {
            let w = f64::from(w);
            centre[j] += offset * w;
            squares[j] += gamma * w * gamma * w;
        }
    }
    for ((ends, c), s) in range.iter_mut().zip(centre).zip(squares) {
        let r = radius * libm::sqrt(s);
        *ends = (ends.0.max(c - r), ends.1.min(c + r));
    }
}

/// A bound of the length of some columns of the product.
fn run_length(x: &Proof, w: &Matrix, (lengths, each): (&[f64], usize), columns: std::ops::Range<usize>) -> f64 {
    let plain = lengths
        .iter()
        .enumerate()
        .map(|(run, length)| singular(w, run * each..(run + 1) * each, columns.clone(), |_| 1.0) * length);
    let plain = plain.sum::<f64>();
    let Some(unit) = x.unit.as_ref().filter(|u| u.gamma.len() == w.inner) else { return plain };
    let spread = unit.radius * singular(w, 0..w.inner, columns.clone(), |i| unit.gamma.get(i).copied().unwrap_or(1.0));
    let centre = columns.map(|j| {
        let at = |(i, &c): (usize, &f64)| c * f64::from(w.row(i).get(j).copied().unwrap_or(0.0));
        let c = unit.offset.iter().enumerate().map(at).sum::<f64>();
        c * c
    });
    plain.min(spread + libm::sqrt(centre.sum::<f64>()))
}

/// An upper bound of the greatest singular value of a part of `diag(gamma) · w`: with the smaller Gram matrix G, at most
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
    let product = |a: &[f32], b: &[f32], k: usize| {
        let mut c = vec![0f32; s * s];
        matmul_acc(a, b, &mut c, k, s);
        c
    };
    let squares = |g: &[f32]| g.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let gram = product(&a, &b, k);
    let second = product(&gram, &gram, s);
    let fourth = product(&second, &second, s);
    // Every product of matrices X and Y with inner size n is off by at most n units of ‖X‖‖Y‖.
    let off = |n: usize, norm: f64| 2.0 * (n as f64 + 2.0) * UNIT * norm;
    let of_second = libm::sqrt(squares(&fourth)) + off(s, squares(&second));
    let of_gram = libm::sqrt(of_second) + off(s, squares(&gram));
    libm::sqrt(trace * (libm::sqrt(of_gram) + off(k, 1.0))) * (1.0 + 1e-6)
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
