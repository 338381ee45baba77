//! How far a product with encrypted weights is off: formulas that tests measure at full dimension.
//!
//! The noise of a result, in units of the product, is a sum of four independent parts (names as in [`super`]):
//!
//! ```text
//! Σ x_k e_k / Δ                        at most √k · 2^(bits-1) · σ / Δ, since |x| ≤ 2^(bits-1)
//! what is cut off A, times s           2^-12 · √(2n/3) · √(1/12)
//! what is cut off B                    2^-4 · √(1/12)
//! (e_j u - e' s_j) 2^(log q - log key) √(2 · 2n/3) · σ · 2^(log q - log key) / Δ
//! ```
//!
//! A centred binomial error is sub-Gaussian with its own variance, and so is what is cut off with 1/4 in place of 1/12:
//! the tail of a Gaussian bounds the noise for every `x`.

use crate::params::WeightSet;
use crate::random::ERROR_DEVIATION;

/// Standard deviation of the noise when shares have `square` as their mean square and cut off parts have variance
/// `cut`, in units of the product.
fn deviation_of(set: &WeightSet, rows: usize, square: f64, cut: f64) -> f64 {
    let delta = 2f64.powi((set.log_q - set.ring) as i32);
    let non_zero = set.n as f64 * 2.0 / 3.0;
    let products = rows as f64 * square * ERROR_DEVIATION * ERROR_DEVIATION / (delta * delta);
    let cut_a = non_zero * cut * 2f64.powi(-2 * super::BELOW_A as i32);
    let cut_b = cut * 2f64.powi(-2 * super::BELOW_B as i32);
    let key = 2f64.powi((set.log_q - set.log_key) as i32) / delta * ERROR_DEVIATION;
    (products + cut_a + cut_b + 2.0 * non_zero * key * key).sqrt()
}

/// Standard deviation of the noise of a product of `rows` weight rows mod 2^bits for uniform shares, in units of the
/// product.
pub fn deviation(set: &WeightSet, bits: u32, rows: usize) -> f64 {
    deviation_of(set, rows, 4f64.powi(bits as i32 - 1) / 3.0, 1.0 / 12.0)
}

/// Largest error of a product of `rows` weight rows mod 2^bits, in units of the product, whatever the shares are: the
/// sum of both shares is off by more in one of 2^32 results with chance 2^-40 at most.
///
/// A noise `z` gives an error of at most 1 + ⌊|z|⌋, since both parties round. `2 exp(-t²/2) ≤ 2^-72` from t = 10.06.
pub fn max_error(set: &WeightSet, bits: u32, rows: usize) -> u64 {
    1 + (10.06 * deviation_of(set, rows, 4f64.powi(bits as i32 - 1), 0.25)) as u64
}
