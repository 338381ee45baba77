//! Chebyshev series in `s = 2(x/T)² − 1`: their fit, and their evaluation on secrets.
//!
//! With `T_{m+k} = 2 T_m T_k − T_{m−k}` a series is split at `T_8` and `T_4`, and every coefficient stays small: degree 7
//! takes four secret products, degree 13 seven, beside the square that makes `s`. The fit is made at compile time,
//! near-minimax by Lawson's reweighting.

use super::{Emit, fixed};
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;

/// The interval `[−T, T]` with `2/T² = factor / 2^shift`, and the formats inside.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Numerator of `2/T²`: a small integer costs nothing.
    pub(super) factor: u8,
    /// Logarithm of its denominator.
    pub(super) shift: u8,
    /// Ring bits; `2 · fine + 2` and the square of a value must fit.
    pub(super) ring: u8,
    /// Fraction bits, of polynomials and coefficients.
    pub(super) fine: u8,
}

impl Form {
    /// T.
    pub(super) fn t(self) -> f64 {
        libm::sqrt(libm::ldexp(1.0, i32::from(self.shift) + 1) / f64::from(self.factor))
    }
}

/// `2(x/T)² − 1` at scale `fine`.
pub(super) fn argument(e: &mut Emit, x: Id, form: Form) -> Result<Id> {
    let Form { factor, shift, fine, .. } = form;
    let (_, scale, _) = e.ring(x)?;
    let bound = 2 * scale + shift + 1;
    let square = e.guarded(Op::Mul, &[x, x], bound)?;
    let square = if factor == 1 { square } else { e.guarded(Op::MulInt { k: factor.into() }, &[square], bound)? };
    let read = e.op(Op::SetScale { scale: 2 * scale + shift }, &[square])?;
    let shifted = e.guarded(Op::AddInt { k: fixed(-1.0, 2 * scale + shift)? }, &[read], bound)?;
    e.truncate_to(shifted, fine, fine + 1)
}

/// Terms at scale `2 · fine` whose sum is `Σ a_k T_k(s)`, for coefficients whose absolute sum is about 1 at most.
pub(super) fn series(e: &mut Emit, s: Id, fine: u8, a: &[f64]) -> Result<Vec<Id>> {
    let mut basis = Basis { fine, t: vec![None, Some(s)] };
    let mut a = a.to_vec();
    let mut parts: Vec<Id> = Vec::new();
    for split in [8usize, 4] {
        if a.len() <= split {
            continue;
        }
        // Σ_{j≥0} a_{m+j} T_{m+j} = T_m (a_m + 2 Σ_{j≥1} a_{m+j} T_j) − Σ_{j≥1} a_{m+j} T_{m−j}
        let high = a.split_off(split);
        let mut quotient = vec![high[0]];
        for (j, &c) in high.iter().enumerate().skip(1) {
            quotient.push(2.0 * c);
            a[split - j] -= c;
        }
        let q = linear(e, &mut basis, &quotient)?;
        let q = e.truncate_to(q, fine, fine + room(&quotient))?;
        let m = basis.get(e, split)?;
        parts.push(e.guarded(Op::Mul, &[q, m], 2 * fine + room(&quotient))?);
    }
    parts.push(linear(e, &mut basis, &a)?);
    Ok(parts)
}

/// The sum of terms, within `2^bound`.
pub(super) fn total(e: &mut Emit, parts: &[Id], bound: u8) -> Result<Id> {
    let mut sum = parts[0];
    for &part in &parts[1..] {
        sum = e.guarded(Op::Add, &[sum, part], bound)?;
    }
    Ok(sum)
}

/// Bits that a series may need above 1.
fn room(c: &[f64]) -> u8 {
    let size: f64 = c.iter().map(|c| libm::fabs(*c)).sum();
    libm::ceil(libm::log2(size.max(1.0))) as u8
}

/// `Σ_k c_k T_k` at scale `2 · fine`; `T_0 = 1`.
fn linear(e: &mut Emit, basis: &mut Basis, c: &[f64]) -> Result<Id> {
    let fine = basis.fine;
    let bound = 2 * fine + room(c);
    let mut sum = None;
    for (k, &coefficient) in c.iter().enumerate().skip(1) {
        let t = basis.get(e, k)?;
        let term = e.guarded(Op::MulInt { k: fixed(coefficient, fine)? }, &[t], bound)?;
        sum = Some(match sum {
            None => term,
            Some(s) => e.guarded(Op::Add, &[s, term], bound)?,
        });
    }
    let sum = match sum {
        Some(s) => s,
        None => {
            let t = basis.get(e, 1)?;
            e.op(Op::MulInt { k: 0 }, &[t])?
        }
    };
    let read = e.op(Op::SetScale { scale: 2 * fine }, &[sum])?;
    e.guarded(Op::AddInt { k: fixed(c[0], 2 * fine)? }, &[read], bound)
}

/// Chebyshev polynomials of one value, made when first asked for.
struct Basis {
    fine: u8,
    t: Vec<Option<Id>>,
}

impl Basis {
    fn get(&mut self, e: &mut Emit, k: usize) -> Result<Id> {
        let fine = self.fine;
        if self.t.len() <= k {
            self.t.resize(k + 1, None);
        }
        if let Some(id) = self.t[k] {
            return Ok(id);
        }
        // T_{i+j} = 2 T_i T_j − T_{i−j} with i = ⌈k/2⌉, j = ⌊k/2⌋
        let (i, j) = (k.div_ceil(2), k / 2);
        let (ti, tj) = (self.get(e, i)?, self.get(e, j)?);
        let product = e.op(Op::Mul, &[ti, tj])?;
        let twice = e.op(Op::SetScale { scale: 2 * fine - 1 }, &[product])?;
        let shifted = if i == j {
            e.guarded(Op::AddInt { k: -(1i64 << (2 * fine - 1)) }, &[twice], 2 * fine)?
        } else {
            let t1 = self.get(e, 1)?;
            let t1 = e.guarded(Op::Upscale { by: fine - 1 }, &[t1], 2 * fine - 1)?;
            e.guarded(Op::Sub, &[twice, t1], 2 * fine)?
        };
        let id = e.truncate_to(shifted, fine, fine + 1)?;
        self.t[k] = Some(id);
        Ok(id)
    }
}

/// A point of a fit: where, what, and how much an error there counts.
struct Point {
    s: f64,
    y: f64,
    counts: f64,
}

/// Coefficients of the Chebyshev series `p` of degree `degree` in `s = 2(x/t)² − 1` that makes `x · p` nearest to an odd
/// function on `[−t, t]` in the maximum error, by Lawson's iteration on a fixed grid; the same on every machine.
pub(super) fn chebyshev_fit_odd(odd: impl Fn(f64) -> f64, t: f64, degree: usize) -> Vec<f64> {
    fit(t, degree, |x| (odd(x) / x, x))
}

/// Coefficients of the Chebyshev series of degree `degree` nearest to a function on `[−1, 1]`.
pub(super) fn chebyshev_fit_at(f: impl Fn(f64) -> f64, degree: usize) -> Vec<f64> {
    fit(1.0, degree, |x| (f(2.0 * x * x - 1.0), 1.0))
}

/// The series nearest to the first of what `f` gives for `x` in `(0, t)`, where an error counts as often as the second
/// says.
fn fit(t: f64, degree: usize, f: impl Fn(f64) -> (f64, f64)) -> Vec<f64> {
    const POINTS: usize = 257;
    let grid: Vec<Point> = (0..POINTS)
        .map(|i| {
            let s = libm::cos(std::f64::consts::PI * (i as f64 + 0.5) / POINTS as f64);
            let (y, counts) = f(t * libm::sqrt((s + 1.0) / 2.0));
            Point { s, y, counts }
        })
        .collect();
    let mut weights = vec![1.0 / POINTS as f64; POINTS];
    let mut best = Vec::new();
    let mut best_error = f64::INFINITY;
    for _ in 0..60 {
        let c = weighted_least_squares(&grid, &weights, degree + 1);
        let errors: Vec<f64> = grid.iter().map(|p| libm::fabs(eval_chebyshev(&c, p.s) - p.y) * p.counts).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        if worst < best_error {
            best_error = worst;
            best = c;
        }
        let total: f64 = weights.iter().zip(&errors).map(|(w, e)| w * e).sum();
        if total <= 0.0 {
            break;
        }
        for (w, e) in weights.iter_mut().zip(&errors) {
            *w = *w * e / total;
        }
    }
    best
}

/// `Σ c_k T_k(s)` by Clenshaw's recurrence.
pub(super) fn eval_chebyshev(c: &[f64], s: f64) -> f64 {
    let (mut b1, mut b2) = (0.0, 0.0);
    for &ck in c.iter().skip(1).rev() {
        (b1, b2) = (ck + 2.0 * s * b1 - b2, b1);
    }
    c[0] + s * b1 - b2
}

/// Normal equations by Gaussian elimination with pivoting: the systems have at most sixteen unknowns.
fn weighted_least_squares(grid: &[Point], weights: &[f64], n: usize) -> Vec<f64> {
    let mut m = vec![vec![0.0; n + 1]; n];
    let mut basis = vec![0.0; n];
    for (&Point { s, y, counts }, &w) in grid.iter().zip(weights) {
        let w = w * counts * counts;
        basis[0] = 1.0;
        if n > 1 {
            basis[1] = s;
        }
        for k in 2..n {
            basis[k] = 2.0 * s * basis[k - 1] - basis[k - 2];
        }
        for i in 0..n {
            for j in 0..n {
                m[i][j] += w * basis[i] * basis[j];
            }
            m[i][n] += w * basis[i] * y;
        }
    }
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| libm::fabs(m[a][i]).total_cmp(&libm::fabs(m[b][i]))).unwrap_or(i);
        m.swap(i, pivot);
        let (above, below) = m.split_at_mut(i + 1);
        for row in below {
            let factor = row[i] / above[i][i];
            for (x, y) in row[i..].iter_mut().zip(&above[i][i..]) {
                *x -= factor * y;
            }
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|j| m[i][j] * x[j]).sum();
        x[i] = (m[i][n] - rest) / m[i][i];
    }
    x
}
