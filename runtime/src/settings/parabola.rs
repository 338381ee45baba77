//! Polynomials of a table at a place that two parties know one part of and a third party the other: what a lookup by a
//! one-hot vector with a hidden sign computes, in every setting that has one.
//!
//! ```text
//!   x = m − λ modulo 2^W; cells of 2^s units: i = (m ≫ s) − (λ ≫ s), v = (m mod 2^s)/2^s − 1/2, t = (λ mod 2^s)/2^s − 1/2
//!     x = 2^s (i + v − t) without a carry: i is the cell of x or the next one
//!   f(x) = Σ a_k (v − t)^k of cell i, of degree 4, as R_0 + t·R_1 + t²·R_2: R_j is a sum of the a_k times what v alone decides, and
//!     higher powers of t are near multiples of these (`factors_of_coefficients`)
//!   with vectors b^0 and b^1 at λ ≫ s as `one_hot` says, Σ_j b^0_j a_k[μ − j] less the same of b^1 is σ·a_k[i]: so the two
//!     parties have shares of σ·R_j, of 64 bits, which are shifted to F, F/2 and F/2 fraction bits in the result's ring
//! ```
//!
//! So what depends on m alone may have any degree, and what is dealt and opened is a parabola of a variable of one cell.
//! Whoever knows σ and λ has the factors `σ·t^j` with the fraction bits that are missing. Both parties of the shares take the
//! same integers of v, by integer operations. Where factors are chosen bit by bit they are powers of `t + 1/2`, which has no
//! sign, and terms those that go with them. Side channels: every cell of the table is read.

use ombra_ir::curve::{COEFFICIENTS, Cells, LOOKUP_DIGITS, LOOKUP_ROOM, factors_of_coefficients};
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::{Tables, sums_of_entries};
use ombra_kernels::isa::Isa;

use super::one_hot::OneHot;

/// Powers of `t`.
pub const POWERS: u8 = 3;
/// Fraction bits of terms 1 and 2 beside half of those of the result, where factors have no sign.
const MORE: [u8; 2] = [2, 4];

/// How a table of polynomials is looked up.
#[derive(Clone, Copy)]
pub struct Parabola {
    /// The cells that are looked at.
    pub one_hot: OneHot,
    /// Fraction bits of the result.
    scale: u8,
    /// Fraction bits of `R_0`, `R_1` and `R_2`.
    scales: [u8; POWERS as usize],
    /// Whether factors have no sign.
    is_unsigned: bool,
}

impl Parabola {
    /// The lookup in `cells` whose result is in a ring of `bits`.
    ///
    /// # Errors
    /// `E0803` where sums of products do not fit 64 bits.
    pub fn new(cells: Cells, bits: u8) -> Result<Self> {
        let Cells { window, cell, scale, .. } = cells;
        if window > 62 || cell == 0 || cell >= 62 || bits.saturating_add(scale / 2) > LOOKUP_ROOM {
            return Err(Diagnostic::internal("E0803", "a lookup's window is out of range"));
        }
        let one_hot = OneHot { cell, count: cells.count() };
        let half = scale.div_ceil(2);
        Ok(Parabola { one_hot, scale, scales: [scale, half, half], is_unsigned: false })
    }

    /// The same with factors without a sign.
    ///
    /// # Errors
    /// Those of [`Parabola::new`].
    pub fn unsigned(cells: Cells, bits: u8) -> Result<Self> {
        let [first, second] = MORE.map(|more| (cells.scale / 2 + more).min(cells.scale));
        Ok(Parabola { scales: [cells.scale, first, second], is_unsigned: true, ..Parabola::new(cells, bits)? })
    }

    /// Twice what `x` has within its cell, from the middle of that.
    fn twice_from_middle(self, x: u64) -> i64 {
        2 * self.one_hot.low(x) as i64 - (1 << self.one_hot.cell)
    }

    /// `t^power` with the fraction bits that `R_power` lacks, rounded to the nearest.
    pub fn power(self, lambda: u64, power: u8) -> u64 {
        let scale = self.scale - self.scales[usize::from(power)];
        let by = u32::from(power) * (u32::from(self.one_hot.cell) + 1);
        let from_middle = self.twice_from_middle(lambda);
        let t = if self.is_unsigned { from_middle + (1 << self.one_hot.cell) } else { from_middle };
        let whole = i128::from(t).pow(power.into()) << scale;
        ((whole + (1i128 << by >> 1)) >> by) as u64
    }

    /// The terms at `m` of the cell whose coefficients are given: `R_0`, `R_1` and `R_2`, or what goes with powers of `t + 1/2`.
    pub fn terms(self, coefficients: [i64; COEFFICIENTS], m: u64) -> [u64; 3] {
        let unshifted = self.unshifted(coefficients.map(|a| a as u64), m);
        std::array::from_fn(|k| (unshifted[k] as i64 >> self.shifts()[k]) as u64)
    }

    /// The same modulo 2^64, before they are shifted: of parties' shares of coefficients, shares of them.
    fn unshifted(self, coefficients: [u64; COEFFICIENTS], m: u64) -> [u64; 3] {
        let (twice, bits) = (self.twice_from_middle(m), self.one_hot.cell + 1);
        let v = match bits.checked_sub(LOOKUP_DIGITS) {
            Some(less) => twice >> less,
            None => twice << (LOOKUP_DIGITS - bits),
        };
        let mut factors = factors_of_coefficients(v, LOOKUP_DIGITS);
        if self.is_unsigned {
            let [r0, r1, r2] = factors;
            factors =
                [std::array::from_fn(|k| r0[k] - r1[k] / 2 + r2[k] / 4), std::array::from_fn(|k| r1[k] - r2[k]), r2];
        }
        factors.map(|factors| {
            let terms = factors.iter().zip(coefficients).map(|(f, a)| a.wrapping_mul(*f as u64));
            terms.fold(0, u64::wrapping_add)
        })
    }

    /// By how much each is shifted.
    fn shifts(self) -> [u8; 3] {
        self.scales.map(|scale| self.scale + LOOKUP_DIGITS - scale)
    }

    /// One party's shares of `σ·R_0`, `σ·R_1` and `σ·R_2`; those of the `second` are less.
    pub fn shares(self, tables: &Tables<COEFFICIENTS>, vectors: &[u64], m: &[u64], second: bool) -> [Vec<u64>; 3] {
        let at: Vec<usize> = m.iter().map(|m| self.one_hot.index(*m)).collect();
        let sums = sums_of_entries(Isa::best(), vectors, &at, tables);
        let mut own = [Vec::with_capacity(m.len()), Vec::with_capacity(m.len()), Vec::with_capacity(m.len())];
        let shifts = self.shifts();
        for (sums, m) in sums.into_iter().zip(m) {
            for ((own, p), by) in own.iter_mut().zip(self.unshifted(sums, *m)).zip(shifts) {
                own.push(if second { (p >> by).wrapping_neg() } else { p >> by });
            }
        }
        own
    }
}
