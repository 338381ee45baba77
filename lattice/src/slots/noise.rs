//! Noise of products in slots: what flooding hides, and what decryption bears. Names as in [`super`].

use super::{ANSWER, BELOW, FLOOD};
use crate::params::SlotSet;
use crate::random::ERROR_DEVIATION;

/// log2 of the modulus of ciphertexts.
fn log_q(set: &SlotSet) -> f64 {
    set.primes.iter().map(|p| (*p as f64).log2()).sum()
}

/// Standard deviation of a coefficient's noise before flooding, of `terms` products with uniform values: errors and the
/// rounding of the encoding, times a polynomial of coefficients in ±p/2; the encryption of zero adds next to nothing.
pub fn deviation(set: &SlotSet, terms: usize) -> f64 {
    let share = (set.prime as f64 / 2.0).powi(2) / 3.0;
    let products = terms as f64 * set.n as f64 * share * (ERROR_DEVIATION * ERROR_DEVIATION + 1.0 / 12.0);
    let zero = set.n as f64 * (2.0 / 3.0) * 2.0 * ERROR_DEVIATION * ERROR_DEVIATION;
    (products + zero).sqrt()
}

/// log2 of the statistical distance of an answer from one that is made without the server's values: over all
/// coefficients, the mean of the noise's size by the width of the flooding. Shares are uniform, so that the mean is that
/// of a Gaussian of [`deviation`].
pub fn distance(set: &SlotSet, terms: usize) -> f64 {
    let mean = (2.0 / std::f64::consts::PI).sqrt() * deviation(set, terms);
    mean.log2() + (set.n as f64).log2() - f64::from(FLOOD + 1)
}

/// Largest noise of a decryption, in units of 2^-11 of a value: the flooding, what the change of moduli rounds, times
/// the secret, and the product's own, each up to a chance of 2^-72 a coefficient. Below 2^10 it is exact.
///
/// What is rounded off `c_1` is uniform in ±1/2, up to 1/16 for each prime's fraction.
pub fn max_noise(set: &SlotSet, terms: usize) -> f64 {
    let scale = (f64::from(ANSWER - BELOW) - log_q(set) + f64::from(BELOW)).exp2();
    let scale = scale * set.prime as f64 / f64::from(ANSWER - BELOW).exp2();
    let flood = f64::from(FLOOD).exp2() * scale;
    let rounded = (set.n as f64 * (2.0 / 3.0) * (1.0 / 12.0 + (3f64 / 16.0).powi(2))).sqrt();
    flood + 10.06 * (rounded + deviation(set, terms) * scale) + 1.0
}
