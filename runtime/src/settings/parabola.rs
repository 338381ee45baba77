//! Parabolas of a table at a place that two parties know one part of and a third party the other: what a lookup by a
//! one-hot vector with a hidden sign computes, in every setting that has one.
//!
//! ```text
//!   x = m − λ modulo 2^W; cells of 2^s units: i = (m ≫ s) − (λ ≫ s), u = (m mod 2^s)/2^s, t = (λ mod 2^s)/2^s
//!     x = 2^s (i + u − t) without a carry: i is the cell of x or the next one
//!   f(x) = a_0 + a_1 (u − t) + a_2 (u − t)² = P_0 + t·P_1 + t²·P_2, with a_k of cell i
//!     P_0 = a_0 + a_1 u + a_2 u²,  P_1 = −(a_1 + 2 a_2 u),  P_2 = a_2
//!   one-hot e of λ ≫ s: the first party has the bits b^0, the second b^1 = b^0 ⊕ e; σ = b^0 − b^1 at λ ≫ s is 1 or −1
//!     Σ_j b^0_j a_k[μ − j] less the same of b^1 is σ·a_k[i]: so the two have shares of σ·P_k, of 64 bits, which are shifted
//!     to F, F/2 + 2 and F/2 + 4 fraction bits in the result's ring
//! ```
//!
//! Whoever knows σ and λ has the factors `σ·t^k` with the fraction bits that are missing. Side channels: every cell of the
//! table is read.

use ombra_ir::curve::Cells;
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::{Tables, sums_of_entries};
use ombra_kernels::isa::Isa;

/// Powers of `t`.
pub const POWERS: u8 = 3;
/// Fraction bits of `P_1` and `P_2` beside half of those of the result: what is left of them are the mask's powers'.
const MORE: [u8; 2] = [2, 4];

/// How a table of parabolas is looked up.
#[derive(Clone, Copy)]
pub struct Parabola {
    cells: Cells,
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
        Ok(Parabola { cells, scales: [scale, scale / 2 + MORE[0], scale / 2 + MORE[1]] })
    }

    /// Words of a one-hot vector, and bits of them that are sent.
    pub fn vector(self) -> (usize, u8) {
        let count = self.cells.count();
        (count.div_ceil(64), count.min(64) as u8)
    }

    fn index(self, x: u64) -> usize {
        (x >> self.cells.cell) as usize & (self.cells.count() - 1)
    }

    fn low(self, x: u64) -> u64 {
        x & ((1 << self.cells.cell) - 1)
    }

    /// Makes of the first party's vectors those of the second, and says σ of each, modulo `2^64`.
    pub fn hide(self, vectors: &mut [u64], lambda: &[u64]) -> Vec<u64> {
        let (words, _) = self.vector();
        let hidden = |(vector, lambda): (&mut [u64], &u64)| {
            let at = self.index(*lambda);
            // σ is 1 where the first party's bit is set, −1 elsewhere.
            let sign = (vector[at / 64] >> (at % 64) & 1).wrapping_mul(2).wrapping_sub(1);
            vector[at / 64] ^= 1 << (at % 64);
            sign
        };
        vectors.chunks_exact_mut(words).zip(lambda).map(hidden).collect()
    }

    /// `t^power` with the fraction bits that `P_power` lacks, rounded to the nearest.
    pub fn power(self, lambda: u64, power: u8) -> u64 {
        let scale = self.cells.scale - self.scales[usize::from(power)];
        let whole = u128::from(self.low(lambda)).pow(power.into()) << scale;
        let by = u32::from(power) * u32::from(self.cells.cell);
        ((whole + (1u128 << by >> 1)) >> by) as u64
    }

    /// One party's shares of `σ·P_0`, `σ·P_1` and `σ·P_2`; those of the `second` are less.
    pub fn shares(self, tables: &Tables<3>, vectors: &[u64], m: &[u64], second: bool) -> [Vec<u64>; 3] {
        let (cell, scale) = (self.cells.cell, self.cells.scale);
        let at: Vec<usize> = m.iter().map(|m| self.index(*m)).collect();
        let sums = sums_of_entries(Isa::best(), vectors, &at, tables);
        let mut own = [Vec::with_capacity(m.len()), Vec::with_capacity(m.len()), Vec::with_capacity(m.len())];
        let shifts = [2 * cell, cell + scale - self.scales[1], scale - self.scales[2]];
        for ([a0, a1, a2], m) in sums.into_iter().zip(m) {
            let u = self.low(*m);
            let p0 = (a0 << (2 * cell)).wrapping_add((a1 << cell).wrapping_mul(u)).wrapping_add(a2.wrapping_mul(u * u));
            let p1 = (a1 << cell).wrapping_add(a2.wrapping_mul(2 * u)).wrapping_neg();
            for ((own, p), by) in own.iter_mut().zip([p0, p1, a2]).zip(shifts) {
                own.push(if second { (p >> by).wrapping_neg() } else { p >> by });
            }
        }
        own
    }
}
