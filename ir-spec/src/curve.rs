//! Smooth functions of one variable, and the tables of polynomials that a lookup evaluates them by.
//!
//! A table cuts a range into cells of one width `w`. Where a value is known as `x = 2^s·i + l` with `−2^s < l < 2^s`, as a
//! masked value is without a carry, `i` is the cell of `x` or the next one: so every parabola is fitted on two cells, around
//! the point where they meet. Between Chebyshev nodes it is off by a 24th of the third derivative times `w³` at most.

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

/// Bits of a cell's index at most.
pub const MOST_CELLS: u8 = 10;

impl Cells {
    /// Number of cells.
    pub fn count(self) -> usize {
        1 << self.window.saturating_sub(self.cell).min(MOST_CELLS)
    }

    /// The parabolas of `curve`, `a0 + a1 u + a2 u²` with `u = l / 2^cell` at the result's scale: of every cell `i` that `x`
    /// may have modulo the window, coefficients of `u^k` in list `k`.
    ///
    /// # Errors
    /// `E0380` where a coefficient does not fit 62 bits.
    pub fn parabolas(self, curve: Curve) -> Result<[Vec<i64>; 3]> {
        let (n, width) = (self.count() as i64, libm::ldexp(1.0, i32::from(self.cell) - i32::from(self.from)));
        // Chebyshev nodes of (−1, 1).
        let node = libm::sqrt(3.0) / 2.0;
        let mut table = [Vec::new(), Vec::new(), Vec::new()];
        for cell in 0..n {
            let middle = width * (if cell < curve.first_cell(n) + n { cell } else { cell - n }) as f64;
            let [low, at, high] = [-node, 0.0, node].map(|u| curve.at(middle + width * u));
            let parabola = [at, (high - low) / (2.0 * node), (high + low - 2.0 * at) / (2.0 * node * node)];
            for (list, coefficient) in table.iter_mut().zip(parabola) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Maximum error of both parabolas that a value may be given to.
    fn error(curve: Curve, range: i32, cell: i32) -> f64 {
        let cells = Cells { window: (range + 17) as u8, from: 16, cell: (16 + cell) as u8, scale: 40 };
        let table = cells.parabolas(curve).unwrap();
        let (n, width) = (cells.count() as i64, libm::ldexp(1.0, cell));
        let most = libm::ldexp(1.0, range) - width;
        let mut worst = 0.0f64;
        for step in 0..20_000 {
            let x = most * (f64::from(step) / 10_000.0 - 1.0);
            let below = libm::floor(x / width) as i64;
            for cell in [below, below + 1] {
                let u = x / width - cell as f64;
                let at = |k: usize| libm::ldexp(table[k][cell.rem_euclid(n) as usize] as f64, -40);
                worst = worst.max((at(0) + u * (at(1) + u * at(2)) - curve.at(x)).abs());
            }
        }
        worst
    }

    /// Of 512 cells from the first one that is used on, relative.
    #[test]
    fn parabolas_of_inverses_are_as_close_as_stated() {
        for (curve, range, first, most) in [(Curve::Reciprocal, -2, 31.0, 9e-6), (Curve::Rsqrt, -5, 26.0, 5e-6)] {
            let cells = Cells { window: 23, from: (23 - range) as u8, cell: 14, scale: 40 };
            let table = cells.parabolas(curve).unwrap();
            let width = libm::ldexp(1.0, range - 9);
            let mut worst = 0.0f64;
            for step in 0..50_000 {
                let x = width * (first + (510.0 - first) * f64::from(step) / 50_000.0);
                for cell in [0, 1].map(|next| (x / width) as usize + next) {
                    let u = x / width - cell as f64;
                    let at = |k: usize| libm::ldexp(table[k][cell] as f64, -40);
                    worst = worst.max(((at(0) + u * (at(1) + u * at(2))) / curve.at(x) - 1.0).abs());
                }
            }
            assert!(worst < most, "{}: {worst:.2e}", curve.name());
        }
    }

    /// From one cell above 0 down, but for the lowest two.
    #[test]
    fn parabolas_below_zero_are_those_of_the_whole() {
        for (part, whole) in
            [(Curve::GeluBelow, Curve::Gelu), (Curve::GeluTanhBelow, Curve::GeluTanh), (Curve::SiluBelow, Curve::Silu)]
        {
            let cells = |window| Cells { window, from: 12, cell: 10, scale: 22 };
            let (part, whole) = (cells(15).parabolas(part).unwrap(), cells(16).parabolas(whole).unwrap());
            for (part, whole) in part.iter().zip(&whole) {
                assert_eq!((part.len(), whole.len()), (32, 64));
                for cell in -30i64..=1 {
                    assert_eq!(part[cell.rem_euclid(32) as usize], whole[cell.rem_euclid(64) as usize], "{cell}");
                }
            }
        }
    }

    #[test]
    fn parabolas_are_as_close_as_stated() {
        for (curve, range, cell, most) in [
            (Curve::Gelu, 5, -2, 7e-4),
            (Curve::Gelu, 3, -3, 9e-5),
            (Curve::GeluTanh, 5, -2, 7e-4),
            (Curve::GeluTanh, 3, -3, 1e-4),
            (Curve::Silu, 4, -3, 3e-5),
            (Curve::Silu, 4, -2, 2.5e-4),
            (Curve::Softplus, 4, -2, 7e-5),
            (Curve::Tanh, 3, -3, 1.7e-4),
            (Curve::Sigmoid, 4, -2, 9e-5),
            (Curve::Erf, 2, -4, 5e-5),
        ] {
            let found = error(curve, range, cell);
            assert!(found < most, "{} in cells of 2^{cell}: {found:.2e}", curve.name());
        }
    }
}
