//! How far a product in tiles is off: formulas that tests measure at full dimension. Names as in [`super`].
//!
//! The noise of a result, in units of the product, is a sum of four independent parts, with Δ = q/2^bits:
//!
//! ```text
//! errors and the encoding's rounding, times a right tile   √(inner · columns) · 2^(bits-1) · √(σ² + 1/12) / Δ
//! key switches of L levels, of which each doubles the last  √(2 K N 4^digit/3 · (4^L - 1)/3) · σ / Δ
//! the encryption of zero                                    √(2 · 2N/3) · σ / Δ
//! what is cut off A, times s, and off B                     √(2N/3/12) · 2^-12,   √(1/12) · 2^-4
//! ```
//!
//! In rings of more than 56 bits what is cut off A is up to a whole unit of its, on one side: of mean square 1/4, as the bound
//! takes it everywhere.

use super::{BELOW_A, BELOW_B, DIGITS, Tiling};
use crate::random::ERROR_DEVIATION;

/// Standard deviation when elements of the server have `square` as their mean square and cut off parts variance `cut`.
fn deviation_of(tiling: &Tiling, bits: u32, square: f64, cut: f64) -> f64 {
    let set = tiling.set;
    let log_q: f64 = set.primes.iter().map(|p| (*p as f64).log2()).sum();
    let delta = (log_q - f64::from(bits)).exp2();
    let variance = ERROR_DEVIATION * ERROR_DEVIATION;
    let non_zero = set.n as f64 * 2.0 / 3.0;
    let elements = (tiling.inner * tiling.tile[2].min(tiling.cols)) as f64;
    let products = elements * square * (variance + 1.0 / 12.0);
    let merged = tiling.merged(0) as f64;
    let digit = set.residue_bits() as i32 / DIGITS as i32;
    let digits = (DIGITS * set.primes.len() * set.n) as f64 * 4f64.powi(digit) / 3.0;
    let switches = digits * variance * (merged * merged - 1.0) / 3.0;
    let zero = 2.0 * non_zero * variance;
    let cuts = cut * (non_zero * 4f64.powi(-(BELOW_A as i32)) + 4f64.powi(-(BELOW_B as i32)));
    ((products + switches + zero) / (delta * delta) + cuts).sqrt()
}

/// Standard deviation of the noise of a product mod 2^bits for uniform elements, in units of the product; of key switches
/// it is a bound, since not every place is doubled.
pub fn deviation(tiling: &Tiling, bits: u32) -> f64 {
    deviation_of(tiling, bits, 4f64.powi(bits as i32 - 1) / 3.0, 1.0 / 12.0)
}

/// Largest error of a product mod 2^bits, in units of the product, whatever the elements are: the sum of both shares is
/// off by more in one of 2^32 results with chance 2^-40 at most, as in `weights::noise`. The change of R's modulus is off
/// by 2^-8 more than its rounding.
pub fn max_error(tiling: &Tiling, bits: u32) -> u64 {
    1 + (10.06 * deviation_of(tiling, bits, 4f64.powi(bits as i32 - 1), 0.25) + 1.0 / 256.0) as u64
}
