//! Parabolas of a table at a place that two parties know one part of and a third party the other: what a lookup by a
//! one-hot vector with a hidden sign computes, in every setting that has one.
//!
//! ```text
//!   x = m − λ modulo 2^W; cells of 2^s units: i = (m ≫ s) − (λ ≫ s), u = (m mod 2^s)/2^s, t = (λ mod 2^s)/2^s
//!     x = 2^s (i + u − t) without a carry: i is the cell of x or the next one
//!   f(x) = a_0 + a_1 (u − t) + a_2 (u − t)² = P_0 + t·P_1 + t²·P_2, with a_k of cell i
//!     P_0 = a_0 + a_1 u + a_2 u²,  P_1 = −(a_1 + 2 a_2 u),  P_2 = a_2
//!   with vectors b^0 and b^1 at λ ≫ s as `one_hot` says, Σ_j b^0_j a_k[μ − j] less the same of b^1 is σ·a_k[i]: so the two
//!     parties have shares of σ·P_k, of 64 bits, which are shifted to F, F/2 + 2 and F/2 + 4 fraction bits in the result's ring
//! ```
//!
//! Whoever knows σ and λ has the factors `σ·t^k` with the fraction bits that are missing. Side channels: every cell of the
//! table is read.

use ombra_ir::curve::Cells;
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::{Tables, sums_of_entries};
use ombra_kernels::isa::Isa;

use super::one_hot::OneHot;

/// Powers of `t`.
pub const POWERS: u8 = 3;
/// Fraction bits of `P_1` and `P_2` beside half of those of the result: what is left of them are the mask's powers'.
const MORE: [u8; 2] = [2, 4];

/// How a table of parabolas is looked up.
#[derive(Clone, Copy)]
pub struct Parabola {
    /// The cells that are looked at.
    pub one_hot: OneHot,
    /// Fraction bits of the result.
    scale: u8,
    /// Fraction bits of `P_0`, `P_1` and `P_2`.
    scales: [u8; POWERS as usize],
}

impl Parabola {
    /// The lookup in `cells` whose result is in a ring of `bits`.
    ///
    /// # Errors
    /// `E0803` where sums of products do not fit 64 bits.
    pub fn new(cells: Cells, bits: u8) -> Result<Self> {
        let Cells { window, cell, scale, .. } = cells;
        let shift = (2 * u32::from(cell)).max(u32::from(cell) + u32::from(scale / 2));
        if window > 62 || cell == 0 || u32::from(bits) + shift > 64 || scale < 2 * MORE[1] {
            return Err(Diagnostic::internal("E0803", "a lookup's window is out of range"));
        }
        let one_hot = OneHot { cell, count: cells.count() };
        Ok(Parabola { one_hot, scale, scales: [scale, scale / 2 + MORE[0], scale / 2 + MORE[1]] })
    }

    /// `t^power` with the fraction bits that `P_power` lacks, rounded to the nearest.
    pub fn power(self, lambda: u64, power: u8) -> u64 {
        let scale = self.scale - self.scales[usize::from(power)];
        let whole = u128::from(self.one_hot.low(lambda)).pow(power.into()) << scale;
        let by = u32::from(power) * u32::from(self.one_hot.cell);
        ((whole + (1u128 << by >> 1)) >> by) as u64
    }

    /// `P_0`, `P_1` and `P_2` at `m` of the cell whose coefficients are given.
    pub fn terms(self, coefficients: [i64; 3], m: u64) -> [u64; 3] {
        let unshifted = self.unshifted(coefficients.map(|a| a as u64), m);
        std::array::from_fn(|k| (unshifted[k] as i64 >> self.shifts()[k]) as u64)
    }

    /// The same modulo 2^64, before they are shifted: of parties' shares of coefficients, shares of them.
    fn unshifted(self, [a0, a1, a2]: [u64; 3], m: u64) -> [u64; 3] {
        let (cell, u) = (self.one_hot.cell, self.one_hot.low(m));
        let p0 = (a0 << (2 * cell)).wrapping_add((a1 << cell).wrapping_mul(u)).wrapping_add(a2.wrapping_mul(u * u));
        [p0, (a1 << cell).wrapping_add(a2.wrapping_mul(2 * u)).wrapping_neg(), a2]
    }

    /// By how much each is shifted.
    fn shifts(self) -> [u8; 3] {
        let [_, s1, s2] = self.scales;
        [2 * self.one_hot.cell, self.one_hot.cell + self.scale - s1, self.scale - s2]
    }

    /// One party's shares of `σ·P_0`, `σ·P_1` and `σ·P_2`; those of the `second` are less.
    pub fn shares(self, tables: &Tables<3>, vectors: &[u64], m: &[u64], second: bool) -> [Vec<u64>; 3] {
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
