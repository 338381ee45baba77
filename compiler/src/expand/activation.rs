//! Functions that are smooth inside `[−T, T]` and straight outside: GELU, SiLU, softplus, tanh, sigmoid, erf.
//!
//! GELU, SiLU and softplus are `x/2 + g(x²)`: `x·(Φ(x) − 1/2)`, `x·(σ(x) − 1/2)` and `ln(2 cosh(x/2))` are even. On
//! `|x| < T` the even part is a Chebyshev series, below `−T` the result is 0, from `T` on it is `x`. Tanh, sigmoid less
//! 1/2 and erf are odd, `x · p(x²)` with a Chebyshev series for `p`, and constant outside. The square of `T` is chosen so
//! that `2/T²` is a small integer over a power of two.
//!
//! Maximum errors of the formulas, inside and beyond `T`:
//!
//! | | T | degree | inside | tail |
//! |---|---|---|---|---|
//! | GELU | 4 | 7 | 1.7e-4 | 1.3e-4 |
//! | GELU, tanh form | 4 | 7 | 2.4e-4 | 1.3e-4 |
//! | SiLU | 9.24 | 13 | 5e-5 to 1, 2e-4 to 4, 1.2e-3 | 9.1e-4 |
//! | softplus | 9.24 | 9 | 3.2e-4 | 9.8e-5 |
//! | tanh | 5.06 | 13 | 1.6e-4 | 8.1e-5 |
//! | sigmoid | 10.12 | 13 | 7.8e-5 | 4.1e-5 |
//! | erf | 2.83 | 7 | 4.0e-5 | 6.4e-5 |

use super::chebyshev::{Form, argument, chebyshev_fit, chebyshev_fit_odd, chebyshev_fit_weighted, series};
use super::{Emit, fixed, ring_for};
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;

/// Rounding inside is multiplied by T and by the steepness of the polynomials, so a wider range has more bits.
const GELU: Form = Form { factor: 1, shift: 3, ring: 40, fine: 18 };
const SILU: Form = Form { factor: 3, shift: 7, ring: 48, fine: 22 };
const SOFTPLUS: Form = Form { factor: 3, shift: 7, ring: 48, fine: 22 };
const TANH: Form = Form { factor: 5, shift: 6, ring: 48, fine: 22 };
const SIGMOID: Form = Form { factor: 5, shift: 8, ring: 48, fine: 22 };
const ERF: Form = Form { factor: 1, shift: 2, ring: 40, fine: 18 };
/// Fraction bits of the input that decide the branch: both branches agree near the border.
const BRANCH_FRACTION: u8 = 8;

/// `x · Φ(x)`, or its tanh form `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub(super) fn gelu(e: &mut Emit, x: Id, tanh: bool, result: (u8, BoundFrom)) -> Result<Id> {
    let fit = if tanh { chebyshev_fit(gelu_tanh_even, GELU.t(), 7) } else { chebyshev_fit(gelu_even, GELU.t(), 7) };
    gated(e, x, GELU, &fit, result)
}

fn gelu_even(x: f64) -> f64 {
    x * 0.5 * libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)
}

fn gelu_tanh_even(x: f64) -> f64 {
    x * 0.5 * libm::tanh(libm::sqrt(2.0 / std::f64::consts::PI) * (x + 0.044715 * x * x * x))
}

/// `x · σ(x)`.
pub(super) fn silu(e: &mut Emit, x: Id, result: (u8, BoundFrom)) -> Result<Id> {
    gated(e, x, SILU, &silu_fit(), result)
}

/// Most values are small, and errors there are what models feel: they count more than those near T.
fn silu_fit() -> Vec<f64> {
    let t = SILU.t();
    chebyshev_fit_weighted(silu_even, |x| 1.0 / (1.0 + 30.0 * (x / t) * (x / t)), t, 13)
}

fn silu_even(x: f64) -> f64 {
    x * 0.5 * libm::tanh(x * 0.5)
}

/// `ln(1 + e^x)`.
pub(super) fn softplus(e: &mut Emit, x: Id, result: (u8, BoundFrom)) -> Result<Id> {
    gated(e, x, SOFTPLUS, &chebyshev_fit(softplus_even, SOFTPLUS.t(), 9), result)
}

fn softplus_even(x: f64) -> f64 {
    libm::log(2.0 * libm::cosh(x * 0.5))
}

/// `tanh(x)`.
pub(super) fn tanh(e: &mut Emit, x: Id) -> Result<Id> {
    saturating(e, x, TANH, &chebyshev_fit_odd(libm::tanh, TANH.t(), 13), Ends { halvings: 0, middle: 0.0 })
}

/// `1 / (1 + e^−x)`.
pub(super) fn sigmoid(e: &mut Emit, x: Id) -> Result<Id> {
    saturating(e, x, SIGMOID, &chebyshev_fit_odd(sigmoid_odd, SIGMOID.t(), 13), Ends { halvings: 1, middle: 0.5 })
}

fn sigmoid_odd(x: f64) -> f64 {
    0.5 * libm::tanh(x * 0.5)
}

/// The error function.
pub(super) fn erf(e: &mut Emit, x: Id) -> Result<Id> {
    saturating(e, x, ERF, &chebyshev_fit_odd(libm::erf, ERF.t(), 7), Ends { halvings: 0, middle: 0.0 })
}

/// Where a value lies, as ring elements of scale 0.
struct Branch {
    x: Id,
    low: Id,
    not_high: Id,
    /// 1 inside.
    middle: Id,
}

/// Compares the whole value with −T and T, and takes its low bits into a ring of `bits`.
fn branch(e: &mut Emit, x: Id, form: Form, bits: u8) -> Result<Branch> {
    let (_, scale, _) = e.ring(x)?;
    let drop = scale.saturating_sub(BRANCH_FRACTION);
    let low = e.below(x, -form.t(), drop)?;
    let not_high = e.below(x, form.t(), drop)?;
    let x = e.narrow(x, bits)?;
    let low = e.op(Op::BitToRing { bits }, &[low])?;
    let not_high = e.op(Op::BitToRing { bits }, &[not_high])?;
    let middle = e.guarded(Op::Sub, &[not_high, low], 1)?;
    Ok(Branch { x, low, not_high, middle })
}

/// 0 below −T, `x/2 + g` inside, `x` from T on.
fn gated(e: &mut Emit, x: Id, form: Form, fit: &[f64], result: (u8, BoundFrom)) -> Result<Id> {
    let (outer, scale, bound) = e.ring(x)?;
    // Beyond T the result is x itself, for which the ring needs room. At most one of two terms is not 0.
    let most = bound.max(scale + form.log2_t() + 1);
    let bits = form.ring_at(scale).max(ring_for(most)).min(outer);
    let Branch { x, not_high, middle, .. } = branch(e, x, form, bits)?;
    let inside = inside(e, x, form, fit)?;
    let minus = e.op(Op::Neg, &[not_high])?;
    let high = e.guarded(Op::AddInt { k: 1 }, &[minus], 1)?;
    let upper = e.guarded(Op::Mul, &[x, high], most)?;
    let inner = e.guarded(Op::Mul, &[inside, middle], most)?;
    let sum = e.guarded(Op::Add, &[upper, inner], most)?;
    // What types prove of the function holds of its series inside the formula's range.
    let from = if result.0 < most && result.1 != BoundFrom::Proven { result.1 } else { BoundFrom::Guarded };
    e.widen(sum, outer, (result.0.min(most), from))
}

/// `x/2 + Σ a_k T_k` at the scale of `x`. Inside, everything is divided by a power of two from T on and so at most 1.
fn inside(e: &mut Emit, x: Id, form: Form, a: &[f64]) -> Result<Id> {
    let (log2_t, fine) = (form.log2_t(), form.fine);
    let (_, scale, _) = e.ring(x)?;
    let s = argument(e, x, form)?;
    let a: Vec<f64> = a.iter().map(|c| c / f64::from(1u32 << log2_t)).collect();
    let mut parts = series(e, s, fine, &a)?;
    let half = e.guarded(Op::Upscale { by: 2 * fine - 1 - log2_t - scale }, &[x], 2 * fine - 1)?;
    parts.push(e.op(Op::SetScale { scale: 2 * fine }, &[half])?);
    let sum = total(e, &parts, 2 * fine + 1)?;
    let read = e.op(Op::SetScale { scale: 2 * fine - log2_t }, &[sum])?;
    e.truncate_to(read, scale, scale + log2_t + 1)
}

/// What an odd function becomes: `middle ± 2^−halvings` beyond `∓T`, moved up by `middle` inside.
struct Ends {
    halvings: u8,
    middle: f64,
}

/// The lower end below −T, `middle + x · p` inside, the upper end from T on.
fn saturating(e: &mut Emit, x: Id, form: Form, fit: &[f64], ends: Ends) -> Result<Id> {
    let (outer, scale, _) = e.ring(x)?;
    let fine = form.fine;
    let bits = form.ring_at(scale).max(ring_for(fine + scale + 1)).min(outer);
    let Branch { x, low, not_high, middle } = branch(e, x, form, bits)?;
    let masked = e.guarded(Op::Mul, &[x, middle], scale + form.log2_t())?;
    let masked = e.guarded(Op::Reshare, &[masked], scale + form.log2_t())?;
    let s = argument(e, x, form)?;
    let parts = series(e, s, fine, fit)?;
    let p = total(e, &parts, 2 * fine + 1)?;
    let p = e.truncate_to(p, fine, fine + 1)?;
    let inner = e.guarded(Op::Mul, &[p, masked], fine + scale + 1)?;
    // high − low = 1 − (not_high + low)
    let both = e.op(Op::Add, &[not_high, low])?;
    let minus = e.op(Op::Neg, &[both])?;
    let side = e.guarded(Op::AddInt { k: 1 }, &[minus], 1)?;
    let steps = e.guarded(Op::Upscale { by: fine + scale - ends.halvings }, &[side], fine + scale)?;
    let steps = e.op(Op::SetScale { scale: fine + scale }, &[steps])?;
    let steps = e.guarded(Op::AddInt { k: fixed(ends.middle, fine + scale)? }, &[steps], fine + scale + 1)?;
    let sum = e.guarded(Op::Add, &[inner, steps], fine + scale + 1)?;
    let y = e.truncate_to(sum, scale, scale + 1)?;
    let (bits, _, _) = e.ring(y)?;
    if bits < outer { e.widen(y, outer, (scale + 1, BoundFrom::Guarded)) } else { Ok(y) }
}

/// The sum of terms, within `2^bound`.
pub(super) fn total(e: &mut Emit, parts: &[Id], bound: u8) -> Result<Id> {
    let mut sum = parts[0];
    for &part in &parts[1..] {
        sum = e.guarded(Op::Add, &[sum, part], bound)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expand::eval_chebyshev;

    const STEPS: u32 = 4000;

    /// Maximum error of an even part's series on [0, T].
    fn even(f: impl Fn(f64) -> f64, form: Form, degree: usize) -> f64 {
        worst(form, &chebyshev_fit(&f, form.t(), degree), |p, _| p, f)
    }

    /// Maximum error of an odd function's series on [0, T].
    fn odd(f: impl Fn(f64) -> f64, form: Form, degree: usize) -> f64 {
        worst(form, &chebyshev_fit_odd(&f, form.t(), degree), |p, x| p * x, f)
    }

    fn worst(form: Form, c: &[f64], read: impl Fn(f64, f64) -> f64, f: impl Fn(f64) -> f64) -> f64 {
        let t = form.t();
        let error = |i: u32| {
            let x = t * f64::from(i) / f64::from(STEPS);
            libm::fabs(read(eval_chebyshev(c, 2.0 * (x / t) * (x / t) - 1.0), x) - f(x))
        };
        (0..=STEPS).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn fits_are_as_close_as_stated() {
        let found = [
            ("gelu", even(gelu_even, GELU, 7), 1.8e-4),
            ("gelu tanh", even(gelu_tanh_even, GELU, 7), 2.5e-4),
            ("silu", worst(SILU, &silu_fit(), |p, _| p, silu_even), 1.2e-3),
            ("softplus", even(softplus_even, SOFTPLUS, 9), 3.3e-4),
            ("tanh", odd(libm::tanh, TANH, 13), 1.7e-4),
            ("sigmoid", odd(sigmoid_odd, SIGMOID, 13), 8.2e-5),
            ("erf", odd(libm::erf, ERF, 7), 4.5e-5),
        ];
        for (name, error, most) in found {
            assert!(error < most, "{name}: {error:.2e}");
        }
    }

    /// SiLU of the values that most of its operands have.
    #[test]
    fn silu_is_closer_where_its_operands_are() {
        let (t, fit) = (SILU.t(), silu_fit());
        for (up_to, most) in [(1.0, 5e-5), (2.0, 7e-5), (4.0, 2e-4)] {
            let error = |i: u32| {
                let x = up_to * f64::from(i) / f64::from(STEPS);
                libm::fabs(eval_chebyshev(&fit, 2.0 * (x / t) * (x / t) - 1.0) - silu_even(x))
            };
            let found = (0..=STEPS).map(error).fold(0.0, f64::max);
            assert!(found < most, "up to {up_to}: {found:.2e}");
        }
    }

    #[test]
    fn tails_are_as_close_as_stated() {
        let (g, s, p, t, l, r) = (GELU.t(), SILU.t(), SOFTPLUS.t(), TANH.t(), SIGMOID.t(), ERF.t());
        let found = [
            ("gelu", g / 2.0 - gelu_even(g), 1.3e-4),
            ("silu", s / 2.0 - silu_even(s), 9.1e-4),
            ("softplus", softplus_even(p) - p / 2.0, 1e-4),
            ("tanh", 1.0 - libm::tanh(t), 8.2e-5),
            ("sigmoid", 0.5 - sigmoid_odd(l), 4.2e-5),
            ("erf", 1.0 - libm::erf(r), 6.5e-5),
        ];
        for (name, error, most) in found {
            assert!((0.0..most).contains(&error), "{name}: {error:.2e}");
        }
    }
}
