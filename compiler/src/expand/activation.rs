//! GELU and SiLU.
//!
//! Both are `x/2 + g(x²)` with `g` smooth: `x·(Φ(x) − 1/2)` and `x·(σ(x) − 1/2)` are even. On `|x| < T` the even part is
//! a Chebyshev series in `s = 2(x/T)² − 1`, below `−T` the result is 0, from `T` on it is `x`. With
//! `T_{m+k} = 2 T_m T_k − T_{m−k}` the series is split at `T_8` and `T_4`, and every coefficient stays small: beside the square,
//! degree 7 takes four secret products and degree 13 seven. The fit is made at compile time, near-minimax by Lawson's
//! reweighting.
//!
//! Errors of the fit: GELU, T = 4, degree 7: 1.7e-4, tail 1.3e-4. SiLU, T = 8, degree 13: 5e-5, tail 2.7e-3.

use super::{Emit, fixed, ring_for};
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;

/// How one function is computed: `T = 2^log2_t`, ring and fraction bits inside.
#[derive(Clone, Copy)]
struct Form {
    log2_t: u8,
    ring: u8,
    fine: u8,
}

/// Rounding inside is multiplied by T and by the steepness of the polynomials, so the wider range has more bits.
const GELU: Form = Form { log2_t: 2, ring: 40, fine: 18 };
const SILU: Form = Form { log2_t: 3, ring: 48, fine: 22 };
/// Fraction bits of the input that decide the branch: both branches agree near the border.
const BRANCH_FRACTION: u8 = 8;
/// Fraction bits of the coefficients.
const COEFFICIENT: u8 = 18;

/// `x · Φ(x)`, or its tanh form `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub(super) fn gelu(e: &mut Emit, x: Id, tanh: bool, result: (u8, BoundFrom)) -> Result<Id> {
    let series = if tanh { chebyshev_fit(gelu_tanh_even, 4.0, 7) } else { chebyshev_fit(gelu_even, 4.0, 7) };
    gated(e, x, GELU, &series, result)
}

fn gelu_even(x: f64) -> f64 {
    x * 0.5 * libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)
}

fn gelu_tanh_even(x: f64) -> f64 {
    x * 0.5 * libm::tanh(libm::sqrt(2.0 / std::f64::consts::PI) * (x + 0.044715 * x * x * x))
}

/// `x · σ(x)`.
pub(super) fn silu(e: &mut Emit, x: Id, result: (u8, BoundFrom)) -> Result<Id> {
    let even = |x: f64| x * 0.5 * libm::tanh(x * 0.5);
    gated(e, x, SILU, &chebyshev_fit(even, 8.0, 13), result)
}

/// 0 below −T, `x/2 + g` inside, `x` from T on.
fn gated(e: &mut Emit, x: Id, form: Form, series: &[f64], result: (u8, BoundFrom)) -> Result<Id> {
    let (outer, scale, bound) = e.ring(x)?;
    let bits = form.ring.max(ring_for(bound)).min(outer);
    let x = e.narrow(x, bits)?;
    let t = f64::from(1u32 << form.log2_t);
    let drop = scale.saturating_sub(BRANCH_FRACTION);
    let low = e.below(x, -t, drop)?;
    let not_high = e.below(x, t, drop)?;
    let low = e.op(Op::BitToRing { bits }, &[low])?;
    let not_high = e.op(Op::BitToRing { bits }, &[not_high])?;
    let inside = inside(e, x, form, series)?;
    let minus = e.op(Op::Neg, &[not_high])?;
    let high = e.guarded(Op::AddInt { k: 1 }, &[minus], 1)?;
    let middle = e.guarded(Op::Sub, &[not_high, low], 1)?;
    let upper = e.op(Op::Mul, &[x, high])?;
    let inner = e.op(Op::Mul, &[inside, middle])?;
    let sum = e.op(Op::Add, &[upper, inner])?;
    let proven = bound.max(scale + form.log2_t) + 1;
    let from = if result.0 < proven { result.1 } else { BoundFrom::Guarded };
    e.widen(sum, outer, (result.0.min(proven), from))
}

/// `x/2 + Σ a_k T_k(2(x/T)² − 1)` at the scale of `x`. Inside, everything is divided by T and so at most 1.
fn inside(e: &mut Emit, x: Id, form: Form, a: &[f64]) -> Result<Id> {
    let Form { log2_t, fine, .. } = form;
    let (_, scale, _) = e.ring(x)?;
    // s: x² read with scale raised by log2(T²) − 1 is 2 (x/T)².
    let square = e.guarded(Op::Mul, &[x, x], 2 * scale + 2 * log2_t)?;
    let read = e.op(Op::SetScale { scale: 2 * scale + 2 * log2_t - 1 }, &[square])?;
    let shifted =
        e.guarded(Op::AddInt { k: fixed(-1.0, 2 * scale + 2 * log2_t - 1)? }, &[read], 2 * scale + 2 * log2_t)?;
    let s = e.truncate_to(shifted, fine, fine + 1)?;
    let mut basis = Basis { fine, t: vec![None, Some(s)] };
    let mut a: Vec<f64> = a.iter().map(|c| c / f64::from(1u32 << log2_t)).collect();
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
        let q = e.truncate_to(q, fine, fine)?;
        let m = basis.get(e, split)?;
        parts.push(e.guarded(Op::Mul, &[q, m], 2 * fine)?);
    }
    let low = linear(e, &mut basis, &a)?;
    parts.push(e.guarded(Op::Upscale { by: fine - COEFFICIENT }, &[low], 2 * fine)?);
    let half = e.guarded(Op::Upscale { by: 2 * fine - 1 - log2_t - scale }, &[x], 2 * fine - 1)?;
    parts.push(e.op(Op::SetScale { scale: 2 * fine }, &[half])?);
    let mut sum = parts[0];
    for &part in &parts[1..] {
        sum = e.guarded(Op::Add, &[sum, part], 2 * fine + 1)?;
    }
    let read = e.op(Op::SetScale { scale: 2 * fine - log2_t }, &[sum])?;
    e.truncate_to(read, scale, scale + log2_t + 1)
}

/// `Σ_k c_k T_k` at scale `fine + COEFFICIENT`; `T_0 = 1`.
fn linear(e: &mut Emit, basis: &mut Basis, c: &[f64]) -> Result<Id> {
    let fine = basis.fine;
    let mut sum = None;
    for (k, &coefficient) in c.iter().enumerate().skip(1) {
        let t = basis.get(e, k)?;
        let term = e.guarded(Op::MulInt { k: fixed(coefficient, COEFFICIENT)? }, &[t], fine + COEFFICIENT)?;
        sum = Some(match sum {
            None => term,
            Some(s) => e.guarded(Op::Add, &[s, term], fine + COEFFICIENT)?,
        });
    }
    let sum = match sum {
        Some(s) => s,
        None => {
            let t = basis.get(e, 1)?;
            e.op(Op::MulInt { k: 0 }, &[t])?
        }
    };
    let read = e.op(Op::SetScale { scale: fine + COEFFICIENT }, &[sum])?;
    e.guarded(Op::AddInt { k: fixed(c[0], fine + COEFFICIENT)? }, &[read], fine + COEFFICIENT)
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

/// Coefficients of the Chebyshev series of degree `degree` in `s = 2(x/t)² − 1` nearest to an even function on
/// `[−t, t]` in the greatest error, by Lawson's iteration on a fixed grid; the same on every machine.
pub fn chebyshev_fit(even: impl Fn(f64) -> f64, t: f64, degree: usize) -> Vec<f64> {
    const POINTS: usize = 257;
    let grid: Vec<(f64, f64)> = (0..POINTS)
        .map(|i| {
            let s = libm::cos(std::f64::consts::PI * (i as f64 + 0.5) / POINTS as f64);
            (s, even(t * libm::sqrt((s + 1.0) / 2.0)))
        })
        .collect();
    let mut weights = vec![1.0 / POINTS as f64; POINTS];
    let mut best = Vec::new();
    let mut best_error = f64::INFINITY;
    for _ in 0..60 {
        let c = weighted_least_squares(&grid, &weights, degree + 1);
        let errors: Vec<f64> = grid.iter().map(|&(s, y)| libm::fabs(eval_chebyshev(&c, s) - y)).collect();
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
pub fn eval_chebyshev(c: &[f64], s: f64) -> f64 {
    let (mut b1, mut b2) = (0.0, 0.0);
    for &ck in c.iter().skip(1).rev() {
        (b1, b2) = (ck + 2.0 * s * b1 - b2, b1);
    }
    c[0] + s * b1 - b2
}

/// Normal equations by Gaussian elimination with pivoting: the systems have at most twelve unknowns.
fn weighted_least_squares(grid: &[(f64, f64)], weights: &[f64], n: usize) -> Vec<f64> {
    let mut m = vec![vec![0.0; n + 1]; n];
    let mut basis = vec![0.0; n];
    for (&(s, y), &w) in grid.iter().zip(weights) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(even: impl Fn(f64) -> f64, t: f64, degree: usize) -> f64 {
        let c = chebyshev_fit(&even, t, degree);
        (0..=4000)
            .map(|i| {
                let x = t * f64::from(i) / 4000.0;
                libm::fabs(eval_chebyshev(&c, 2.0 * (x / t) * (x / t) - 1.0) - even(x))
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn fits_are_as_close_as_stated() {
        let gelu = worst(gelu_even, 4.0, 7);
        assert!(gelu < 1.8e-4, "{gelu}");
        let tanh = worst(gelu_tanh_even, 4.0, 7);
        assert!(tanh < 2.5e-4, "{tanh}");
        let silu = worst(|x| x * 0.5 * libm::tanh(x * 0.5), 8.0, 13);
        assert!(silu < 6e-5, "{silu}");
    }
}
