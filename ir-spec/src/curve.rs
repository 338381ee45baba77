//! Smooth functions of one variable, and the tables of polynomials that a lookup evaluates them by.
//!
//! A table cuts a range into cells of one width `w`. Where a value is known as `x = 2^s·i + l` with `−2^s < l < 2^s`, as a
//! masked value is without a carry, `i` is the cell of `x` or the next one: so every polynomial is fitted on two cells, around
//! the point where they meet. It has degree 4, between Chebyshev nodes.
//!
//! Whoever knows the mask knows where in its cell it is, and others where the masked value is in its own: with both counted
//! from the middles of their cells, `l = 2^s (v − t)`. A lookup takes powers of `t` up to its square, which is as good as a
//! parabola on one cell for every `v`: `t³ ≈ 3t/16` and `t⁴ ≈ t²/4 − 1/128` for `|t| ≤ 1/2`, off by a 32nd and by a 128th. That
//! leaves a 192nd of the third derivative times `w³` at most, beside little of higher ones.

use crate::diag::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

/// A function that is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Curve {
    /// `x · Φ(x)`.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · σ(x)`.
    Silu,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// The error function.
    Erf,
    /// `1 / x` from 1/80 on, 80 below; cells count from 0, none is below.
    Reciprocal,
    /// `1 / √x` from 1/1000 on, and 31.6 below; likewise.
    Rsqrt,
    /// [`Curve::Gelu`] of what is not positive: cells count down from the one at 1, all others are below.
    GeluBelow,
    /// [`Curve::GeluTanh`] likewise.
    GeluTanhBelow,
    /// [`Curve::Silu`] likewise.
    SiluBelow,
}

/// Below these, functions that have a pole at 0 stay as they are.
const POLE: f64 = 1.0 / 80.0;
const ROOTS_POLE: f64 = 1e-3;

impl Curve {
    /// All of them.
    pub const ALL: [Curve; 12] = [
        Curve::Gelu,
        Curve::GeluTanh,
        Curve::Silu,
        Curve::Softplus,
        Curve::Tanh,
        Curve::Sigmoid,
        Curve::Erf,
        Curve::Reciprocal,
        Curve::Rsqrt,
        Curve::GeluBelow,
        Curve::GeluTanhBelow,
        Curve::SiluBelow,
    ];

    /// The word that stands for it in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Curve::Gelu => "gelu",
            Curve::GeluTanh => "gelu_tanh",
            Curve::Silu => "silu",
            Curve::Softplus => "softplus",
            Curve::Tanh => "tanh",
            Curve::Sigmoid => "sigmoid",
            Curve::Erf => "erf",
            Curve::Reciprocal => "reciprocal",
            Curve::Rsqrt => "rsqrt",
            Curve::GeluBelow => "gelu_below",
            Curve::GeluTanhBelow => "gelu_tanh_below",
            Curve::SiluBelow => "silu_below",
        }
    }

    /// The function's value.
    pub fn at(self, x: f64) -> f64 {
        match self {
            Curve::Gelu | Curve::GeluBelow => x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Curve::GeluTanh | Curve::GeluTanhBelow => {
                let root = libm::sqrt(2.0 / std::f64::consts::PI);
                0.5 * x * (1.0 + libm::tanh(root * (x + 0.044715 * x * x * x)))
            }
            Curve::Silu | Curve::SiluBelow => x / (1.0 + libm::exp(-x)),
            Curve::Softplus => x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
            Curve::Tanh => libm::tanh(x),
            Curve::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
            Curve::Erf => libm::erf(x),
            Curve::Reciprocal => 1.0 / x.max(POLE),
            Curve::Rsqrt => 1.0 / libm::sqrt(x.max(ROOTS_POLE)),
        }
    }

    /// The lowest of `n` cells of a table, counted from the one at 0: half of them are below where nothing else is said.
    fn first_cell(self, n: i64) -> i64 {
        match self {
            Curve::Reciprocal | Curve::Rsqrt => 0,
            Curve::GeluBelow | Curve::GeluTanhBelow | Curve::SiluBelow => 2 - n,
            _ => -n / 2,
        }
    }
}

/// How a lookup cuts its operand and how fine its result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// Low bits of the operand that are looked at; above them it may be anything.
    pub window: u8,
    /// Fraction bits of the operand.
    pub from: u8,
    /// Bits below a cell's index: cells are `2^(cell − from)` wide.
    pub cell: u8,
    /// Fraction bits of the result.
    pub scale: u8,
}

/// Ring bits of a lookup's result and half its fraction bits, at most: what is left of 64 are [`LOOKUP_DIGITS`].
pub const LOOKUP_ROOM: u8 = 64 - LOOKUP_DIGITS;

/// Fraction bits of what coefficients are multiplied by, see [`factors_of_coefficients`].
pub const LOOKUP_DIGITS: u8 = 18;

/// Bits of a cell's index at most.
pub const MOST_CELLS: u8 = 10;

impl Cells {
    /// Number of cells.
    pub fn count(self) -> usize {
        1 << self.window.saturating_sub(self.cell).min(MOST_CELLS)
    }

    /// The polynomials of `curve`, `Σ a_k u^k` with `u = l / 2^cell` at the result's scale: of every cell `i` that `x` may have
    /// modulo the window, coefficients of `u^k` in list `k`.
    ///
    /// # Errors
    /// `E0380` where a coefficient does not fit 62 bits.
    pub fn polynomials(self, curve: Curve) -> Result<[Vec<i64>; COEFFICIENTS]> {
        let (n, width) = (self.count() as i64, libm::ldexp(1.0, i32::from(self.cell) - i32::from(self.from)));
        let mut table: [Vec<i64>; COEFFICIENTS] = Default::default();
        for cell in 0..n {
            let middle = width * (if cell < curve.first_cell(n) + n { cell } else { cell - n }) as f64;
            let polynomial = quartic(|u| curve.at(middle + width * u));
            for (list, coefficient) in table.iter_mut().zip(polynomial) {
                let fixed = libm::round(libm::ldexp(coefficient, self.scale.into()));
                if fixed.is_nan() || fixed.abs() >= 4.6e18 {
                    return Err(Diagnostic::input("E0380", format!("a table of {} does not fit", curve.name()))
                        .note("expected fewer fraction bits or a narrower window"));
                }
                list.push(fixed as i64);
            }
        }
        Ok(table)
    }
}

/// Coefficients of a cell's polynomial.
pub const COEFFICIENTS: usize = 5;

/// The polynomial of degree 4 that meets `f` at the Chebyshev nodes of (−1, 1).
fn quartic(f: impl Fn(f64) -> f64) -> [f64; COEFFICIENTS] {
    let root = libm::sqrt(5.0);
    let squares = [(5.0 + root) / 8.0, (5.0 - root) / 8.0];
    let a0 = f(0.0);
    let both = squares.map(|square| {
        let node = libm::sqrt(square);
        let (low, high) = (f(-node), f(node));
        // Divided by the node's powers, what is odd and what is even.
        ((high - low) / (2.0 * node), ((high + low) / 2.0 - a0) / square)
    });
    let [(odd, even), (inner_odd, inner_even)] = both;
    let apart = squares[0] - squares[1];
    let (a3, a4) = ((odd - inner_odd) / apart, (even - inner_even) / apart);
    [a0, odd - a3 * squares[0], even - a4 * squares[0], a3, a4]
}

/// What `Σ a_k (v − t)^k` is as `Σ t^j R_j(v)` for `j` up to 2, with the approximations of `t³` and `t⁴` above: of `R_j` the factors
/// of every `a_k`, for `v` from −1/2 to 1/2 as an integer of `digits` fraction bits, 20 at most, with as many fraction bits.
pub fn factors_of_coefficients(v: i64, digits: u8) -> [[i64; COEFFICIENTS]; 3] {
    let one = 1i64 << digits;
    let times = |a: i64, b: i64| (a * b) >> digits;
    let square = times(v, v);
    let (cube, fourth) = (times(square, v), times(square, square));
    [
        [one, v, square, cube, fourth - one / 128],
        [0, -one, -2 * v, -3 * square - 3 * one / 16, -4 * cube - 3 * v / 4],
        [0, 0, one, 3 * v, 6 * square + one / 4],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: u8 = 20;

    /// What a lookup makes of `x` in units of cells, where the masked value is at `v` of its cell; no bits are dropped but
    /// those of the factors.
    fn looked_up(table: &[Vec<i64>; COEFFICIENTS], x: f64, v: f64) -> f64 {
        // The cell `i` for which `x − i = v − t` with `t` from −1/2 to 1/2.
        let cell = libm::ceil(x - v - 0.5);
        let t = v - (x - cell);
        let factors = factors_of_coefficients(libm::round(libm::ldexp(v, DIGITS.into())) as i64, DIGITS);
        let at = (cell as i64).rem_euclid(table[0].len() as i64) as usize;
        let of = |factors: &[i64; COEFFICIENTS]| -> f64 {
            let terms = factors.iter().zip(table).map(|(f, list)| libm::ldexp(*f as f64 * list[at] as f64, -60));
            terms.sum()
        };
        let [r0, r1, r2] = factors.each_ref().map(of);
        r0 + t * (r1 + t * r2)
    }

    /// Maximum error over all masks that a value may have.
    fn error(curve: Curve, range: i32, cell: i32) -> f64 {
        let cells = Cells { window: (range + 17) as u8, from: 16, cell: (16 + cell) as u8, scale: 40 };
        let table = cells.polynomials(curve).unwrap();
        let width = libm::ldexp(1.0, cell);
        let most = libm::ldexp(1.0, range) - width;
        let mut worst = 0.0f64;
        for step in 0..4000 {
            let x = most * (f64::from(step) / 2000.0 - 1.0);
            for v in -8..=8 {
                worst = worst.max((looked_up(&table, x / width, f64::from(v) / 16.0) - curve.at(x)).abs());
            }
        }
        worst
    }

    /// Of 256 cells from the first one that is used on, relative.
    #[test]
    fn polynomials_of_inverses_are_as_close_as_stated() {
        for (curve, range, first, most) in [(Curve::Reciprocal, -2, 15.5, 1e-5), (Curve::Rsqrt, -5, 13.0, 5.1e-6)] {
            let cells = Cells { window: 23, from: (23 - range) as u8, cell: 15, scale: 40 };
            let table = cells.polynomials(curve).unwrap();
            let width = libm::ldexp(1.0, range - 8);
            let mut worst = 0.0f64;
            for step in 0..10_000 {
                let x = first + (254.0 - first) * f64::from(step) / 10_000.0;
                for v in -4..=4 {
                    let found = looked_up(&table, x, f64::from(v) / 8.0);
                    worst = worst.max((found / curve.at(x * width) - 1.0).abs());
                }
            }
            assert!(worst < most, "{}: {worst:.2e}", curve.name());
        }
    }

    /// From one cell above 0 down, but for the lowest two.
    #[test]
    fn polynomials_below_zero_are_those_of_the_whole() {
        for (part, whole) in
            [(Curve::GeluBelow, Curve::Gelu), (Curve::GeluTanhBelow, Curve::GeluTanh), (Curve::SiluBelow, Curve::Silu)]
        {
            let cells = |window| Cells { window, from: 12, cell: 10, scale: 22 };
            let (part, whole) = (cells(15).polynomials(part).unwrap(), cells(16).polynomials(whole).unwrap());
            for (part, whole) in part.iter().zip(&whole) {
                assert_eq!((part.len(), whole.len()), (32, 64));
                for cell in -30i64..=1 {
                    assert_eq!(part[cell.rem_euclid(32) as usize], whole[cell.rem_euclid(64) as usize], "{cell}");
                }
            }
        }
    }

    #[test]
    fn polynomials_are_as_close_as_stated() {
        for (curve, range, cell, most) in [
            (Curve::Gelu, 5, -1, 7e-4),
            (Curve::Gelu, 3, -2, 9e-5),
            (Curve::Gelu, 2, -2, 9e-5),
            (Curve::GeluTanh, 5, -1, 7e-4),
            (Curve::GeluTanh, 3, -2, 1e-4),
            (Curve::Silu, 4, -2, 3e-5),
            (Curve::Silu, 4, -1, 2.5e-4),
            (Curve::Softplus, 4, -1, 7e-5),
            (Curve::Tanh, 3, -2, 1.7e-4),
            (Curve::Sigmoid, 4, -1, 9e-5),
            (Curve::Erf, 2, -3, 5e-5),
        ] {
            let found = error(curve, range, cell);
            assert!(found < most, "{} in cells of 2^{cell}: {found:.2e}", curve.name());
        }
    }
}
