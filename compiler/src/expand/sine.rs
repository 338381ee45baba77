//! Sine and cosine of angles of any size.
//!
//! An angle times `2^64 / 2π`, modulo `2^64`, is its part of a turn: the ring itself takes whole turns away, without a
//! bound and without a message. A cut keeps the highest bits of that part `t`. With the bit `c = 1{cos 2πt < 0}`,
//! `u = t − c/2` is at most a quarter of a turn, and `sin 2πt = (1 − 2c) sin 2πu` is odd in `u`: a Chebyshev series. A
//! cosine is the sine of a quarter of a turn more.
//!
//! `2^64 / 2π` is rounded to an integer, which is wrong by half a unit times the angle's integer. Angles from `2^EXACT`
//! units on are therefore taken apart as `h · 2^m + l`, and each part has a factor of its own.
//!
//! Error: 6e-7 of the series, 6e-7 of the cut, and as much of roundings.

use super::Emit;
use super::chebyshev::{Form, argument, chebyshev_fit_odd, series, total};
use super::reciprocal::raise;
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;

/// Quarters of a turn as numbers up to 2, so that `2/T²` is 1/2.
const QUARTERS: Form = Form { factor: 1, shift: 1, ring: 48, fine: 22 };
/// Degree of the series in the square.
const DEGREE: usize = 3;
/// The ring that a turn fills once the low bits of the angle are cut away.
const TURN: u8 = 24;
/// Bits of an angle up to which one factor is exact enough: the part of a turn is wrong by `2^(EXACT − 65)` at most.
const EXACT: u8 = 36;
/// `2^128 / 2π`.
const PER_RADIAN: u128 = 0x28be_60db_9391_054a_7f09_d5f4_7d4d_3770;
/// Most fraction bits of a result that are computed; further ones are zeros.
const FINEST: u8 = 30;

/// `sin x` at the scale of `x`.
pub(super) fn sin(e: &mut Emit, x: Id) -> Result<Id> {
    let turns = turns(e, x)?;
    sine_of_turns(e, x, turns)
}

/// `cos x` at the scale of `x`.
pub(super) fn cos(e: &mut Emit, x: Id) -> Result<Id> {
    let turns = turns(e, x)?;
    let moved = e.guarded(Op::AddInt { k: QUARTER }, &[turns], TURN - 1)?;
    sine_of_turns(e, x, moved)
}

/// A quarter of a turn in the ring of [`TURN`] bits.
const QUARTER: i64 = 1 << (TURN - 2);

/// `2^64 / 2π · 2^exponent`, modulo `2^64`, to the nearest integer.
fn per_unit(exponent: i32) -> i64 {
    let shift = exponent.unsigned_abs();
    let scaled = if exponent < 0 { PER_RADIAN >> shift } else { PER_RADIAN << shift };
    (scaled.wrapping_add(1 << 63) >> 64) as u64 as i64
}

/// The angle's part of a turn, which fills a ring of [`TURN`] bits. At the result's scale 1 is half a turn.
fn turns(e: &mut Emit, x: Id) -> Result<Id> {
    let (bits, scale, bound) = e.ring(x)?;
    let whole = bits - 1;
    let unit = -i32::from(scale);
    let turns = if bound <= EXACT {
        e.guarded(Op::MulInt { k: per_unit(unit) }, &[x], whole)?
    } else {
        let m = bound / 2;
        // Read with as many fraction bits as a division by any `m` may drop.
        let x = e.op(Op::SetScale { scale: whole }, &[x])?;
        let high = e.truncate_to(x, whole - m, bound - m + 1)?;
        let back = e.guarded(Op::Upscale { by: m }, &[high], whole)?;
        let low = e.guarded(Op::Sub, &[x, back], m)?;
        let low = e.guarded(Op::MulInt { k: per_unit(unit) }, &[low], whole)?;
        let high = e.guarded(Op::MulInt { k: per_unit(unit + i32::from(m)) }, &[high], whole)?;
        let high = e.op(Op::SetScale { scale: whole }, &[high])?;
        e.guarded(Op::Add, &[low, high], whole)?
    };
    let read = e.op(Op::SetScale { scale: whole }, &[turns])?;
    e.guarded(Op::Cut { by: bits - TURN }, &[read], TURN - 1)
}

/// `sin 2πt` at the scale of `x`.
fn sine_of_turns(e: &mut Emit, x: Id, t: Id) -> Result<Id> {
    let (outer, scale, _) = e.ring(x)?;
    let Form { ring, fine, .. } = QUARTERS;
    // The cosine is negative where a quarter of a turn more is in the ring's upper half.
    let moved = e.guarded(Op::AddInt { k: QUARTER }, &[t], TURN - 1)?;
    let negative = e.op(Op::Msb { width: TURN, drop: 0 }, &[moved])?;
    let negative = e.op(Op::BitToRing { bits: ring }, &[negative])?;
    let half = e.narrow(negative, TURN)?;
    let half = e.guarded(Op::Upscale { by: TURN - 1 }, &[half], TURN - 1)?;
    // From a quarter below 0, that quarter included as a larger ring allows, to a quarter above.
    let u = e.guarded(Op::Add, &[t, half], TURN - 2)?;
    let u = e.op(Op::Truncate { by: 0, bits: ring }, &[u])?;
    let u = e.op(Op::SetScale { scale: TURN - 3 }, &[u])?;
    let twice = e.op(Op::MulInt { k: -2 }, &[negative])?;
    let sign = e.guarded(Op::AddInt { k: 1 }, &[twice], 1)?;
    let signed = e.guarded(Op::Mul, &[u, sign], TURN - 2)?;
    let signed = e.guarded(Op::Reshare, &[signed], TURN - 2)?;
    let s = argument(e, u, QUARTERS)?;
    let fit = chebyshev_fit_odd(|x| libm::sin(x * std::f64::consts::FRAC_PI_4), QUARTERS.t(), DEGREE);
    let parts = series(e, s, fine, &fit)?;
    let p = total(e, &parts, 2 * fine)?;
    let p = e.truncate_to(p, fine, fine)?;
    let out = scale.min(FINEST);
    let y = e.product(p, signed, out, out + 1)?;
    let y = e.widen(y, outer, (out + 1, BoundFrom::Guarded))?;
    raise(e, y, scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expand::chebyshev::eval_chebyshev;

    /// The factor of every unit, to half an integer, and the series in double precision.
    #[test]
    fn formulas_are_as_close_as_stated() {
        for exponent in -40..=10 {
            let turn = libm::ldexp(1.0, exponent) / (2.0 * std::f64::consts::PI);
            let found = libm::ldexp(per_unit(exponent) as u64 as f64, -64);
            assert!((found - (turn - turn.floor())).abs() < 1e-13, "2^{exponent}: {found}");
        }
        let fit = chebyshev_fit_odd(|x| libm::sin(x * std::f64::consts::FRAC_PI_4), QUARTERS.t(), DEGREE);
        let worst = (0..=1000).map(|i| {
            let x = 2.0 * f64::from(i) / 1000.0;
            (x * eval_chebyshev(&fit, x * x / 2.0 - 1.0) - libm::sin(x * std::f64::consts::FRAC_PI_4)).abs()
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 6e-7, "{worst:.1e}");
    }
}
