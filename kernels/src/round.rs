//! Floats rounded to integers of a fixed point, in one pass.

use super::isa::Isa;
use crate::each_isa;

/// Integers of more bits than these are converted one by one.
const EXACT_BITS: u8 = 52;
/// `2^52`: a double between it and twice as much is an integer, which its lowest bits are.
const INTEGERS: f64 = 4_503_599_627_370_496.0;

/// Sets `out` to `round(x · 2^scale)` and `mask`, halves away from zero, in two's complement. Gives whether every integer is
/// in `(−2^bound, 2^bound)`; where one is not, or a value is no number, `out` is of no use.
///
/// # Panics
/// When the lengths differ.
pub fn to_fixed(values: &[f32], scale: u8, bound: u8, mask: u64, out: &mut [u64]) -> bool {
    to_fixed_at(Isa::best(), values, scale, bound, mask, out)
}

/// [`to_fixed`] at a given vector level.
///
/// # Panics
/// When the lengths differ.
pub fn to_fixed_at(isa: Isa, values: &[f32], scale: u8, bound: u8, mask: u64, out: &mut [u64]) -> bool {
    assert_eq!(values.len(), out.len(), "a word for every value");
    let unit = f64::from(scale).exp2();
    let limit = f64::from(bound.min(63)).exp2();
    let mut inside = 1;
    if bound <= EXACT_BITS {
        convert(isa, values, unit, limit, mask, out, &mut inside);
    } else {
        for (out, &x) in out.iter_mut().zip(values) {
            let v = f64::from(x) * unit;
            inside &= u64::from(v.abs() + 0.5 < limit);
            *out = (v + 0.5f64.copysign(v)) as i64 as u64 & mask;
        }
    }
    inside == 1
}

each_isa! {
    /// Without branches and conversions that saturate, so that it vectorises. The sum with 1/2 is exact for what decides the
    /// rounding: a float has 24 significant bits.
    fn convert(isa; values: &[f32], unit: f64, limit: f64, mask: u64, out: &mut [u64], inside: &mut u64) {
        let mut fits = 1;
        for (out, &x) in out.iter_mut().zip(values) {
            let v = f64::from(x) * unit;
            let above = v.abs() + 0.5;
            fits &= u64::from(above < limit);
            let nearest = above + INTEGERS;
            let floor = (nearest.to_bits() & (INTEGERS as u64 - 1)).wrapping_sub(u64::from(nearest - INTEGERS > above));
            let sign = ((v.to_bits() as i64) >> 63) as u64;
            *out = (floor ^ sign).wrapping_sub(sign) & mask;
        }
        *inside &= fits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(x: f32, scale: u8) -> i64 {
        let v = f64::from(x) * f64::from(scale).exp2();
        (v + 0.5f64.copysign(v)) as i64
    }

    #[test]
    fn every_level_rounds_as_the_definition_says() {
        let mut state = 1u64;
        let drawn = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (((state >> 33) as f32) / 2f32.powi(30) - 1.0) * 2f32.powi((state >> 20) as i32 % 20 - 16)
        });
        let halves = (-40..40).map(|i| i as f32 / 8.0);
        let values: Vec<f32> = drawn.take(500).chain(halves).chain([0.0, -0.0, f32::MIN_POSITIVE, -1e-30]).collect();
        for isa in Isa::available() {
            for (scale, bound) in [(0u8, 10u8), (3, 12), (16, 30), (24, 52), (40, 62)] {
                for mask in [u64::MAX, 0xffff_ffff] {
                    let mut out = vec![0; values.len()];
                    assert!(to_fixed_at(isa, &values, scale, bound, mask, &mut out), "{} {scale}", isa.name());
                    for (word, &x) in out.iter().zip(&values) {
                        assert_eq!(*word, definition(x, scale) as u64 & mask, "{x} {scale} {}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_found_at_every_place() {
        for isa in Isa::available() {
            for bound in [4, 60] {
                let most = f64::from(bound).exp2() as f32;
                for wrong in [most, -most, f32::NAN, f32::INFINITY, f32::MAX] {
                    for at in 0..33 {
                        let mut values = vec![1.25; 33];
                        values[at] = wrong;
                        assert!(!to_fixed_at(isa, &values, 0, bound, u64::MAX, &mut [0; 33]), "{wrong} {at}");
                    }
                }
                assert!(to_fixed_at(isa, &[most - 1.0 - most / 1e6], 0, bound, u64::MAX, &mut [0]));
            }
        }
    }
}
