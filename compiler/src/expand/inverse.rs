//! `1/√x` of a value in a wide range: a table of factors, then a short series.
//!
//! Thresholds divide every power of two into `PER_OCTAVE` steps. The comparisons of a value with all of them, in parallel,
//! choose a factor `F` with `|1 − x·F| ≤ ρ ≈ 0.08`, and `√F` with it, by public linear combinations. With `r = 1 − x·F`,
//! `1/√x = √F / √(1 − r)`, and `1/√(1 − r) ≈ a + b r + r² (c + d r)`: the relative error is 1.5e-6. After the comparisons
//! three products follow one another, where Newton's steps from a parabola take seven.
//!
//! `F` has few bits, and `√F` is computed from what it is: only the series sees that it is rounded. The comparisons
//! leave out low bits, which widens the steps a little.

use super::chebyshev::chebyshev_fit_at;
use super::reciprocal::raise;
use super::root::rsqrt_of_many;
use super::{Emit, FINE, fixed};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::plain::{self, DType, Tensor};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Diagnostic, Dim, Result};

/// Steps of the table in a power of two.
const PER_OCTAVE: i32 = 5;
/// Significant bits of the factors where there is room.
const MANTISSA: i32 = 7;
/// The least significant bits of a factor.
const LEAST_MANTISSA: i32 = 3;
/// Low bits left out of comparisons: so many powers of two below the least threshold.
const BLUR: i32 = 8;
/// Fraction bits of `r²`, and of the coefficients.
const SQUARE: u8 = 17;
const COEFFICIENT: u8 = 11;
/// Bits of a float that are exact.
const FLOAT: u32 = 24;

/// A range `4^min ≤ x < 4^max`.
#[derive(Clone, Copy)]
pub(super) struct Range4 {
    pub(super) min: i8,
    pub(super) max: i8,
}

impl Range4 {
    /// The range of a square root, with a gain of 1.
    pub(super) fn powers_of_2(self) -> Inverse {
        Inverse { gain: 1.0, min: 2 * i32::from(self.min), max: 2 * i32::from(self.max) }
    }
}

/// `1/√x` at scale `out` for `x` in `range`: by the table for one number a row, whose rounds count more than its bytes.
pub(super) fn rsqrt(e: &mut Emit, x: Id, range: Range4, out: u8) -> Result<Id> {
    let of_rows = e.ty(x).shape.last().and_then(Dim::as_constant) == Some(1);
    if !of_rows {
        return rsqrt_of_many(e, x, range, out);
    }
    inverse(e, x, x, range.powers_of_2(), out)
}

/// The function `gain / √x`, for `2^min ≤ x < 2^max`.
#[derive(Clone, Copy)]
pub(super) struct Inverse {
    /// Factor of the result.
    pub(super) gain: f64,
    /// Begin of the range.
    pub(super) min: i32,
    /// End of the range.
    pub(super) max: i32,
}

/// Of the steps of a range: where all but the first begin, their factors as integers, the roots of these, and the
/// maximum `|1 − x·F|` of all.
struct Table {
    thresholds: Vec<f64>,
    factors: Vec<i64>,
    results: Vec<f64>,
    rho: f64,
}

/// Formats of a table: fraction bits of factors and results, and significant bits of factors.
#[derive(Clone, Copy)]
struct Formats {
    factor: u8,
    result: u8,
    mantissa: i32,
}

impl Inverse {
    /// Logarithm of the maximum result, rounded up.
    fn largest(self) -> i32 {
        libm::ceil(libm::log2(self.gain) - f64::from(self.min) / 2.0) as i32
    }

    /// The formats for a value at `scale` in a ring of `bits`, and a result at `out`. The last sum has room for the whole
    /// tail of the series, as it is at 0.
    fn formats(self, bits: u8, scale: u8, out: u8) -> Result<Formats> {
        let room = i32::from(bits) - 3 - i32::from(scale) - self.max;
        let mantissa = room.min(MANTISSA);
        let most = i32::from(bits) - 2 - i32::from(SQUARE + COEFFICIENT) - self.largest();
        let result = i32::from(out).min(most - 1);
        let factor = u8::try_from((self.max + mantissa).max(0)).unwrap_or(u8::MAX);
        let largest = i32::from(factor) - self.min;
        if self.min >= self.max || mantissa < LEAST_MANTISSA || result < 10 || largest > i32::from(bits) - 4 {
            return Err(too_wide(self));
        }
        Ok(Formats { factor, result: u8::try_from(result).unwrap_or(0), mantissa })
    }

    fn table(self, formats: Formats) -> Result<Table> {
        let at = |j: i32| libm::exp2(f64::from(self.min) + f64::from(j) / f64::from(PER_OCTAVE));
        let mut table = Table { thresholds: Vec::new(), factors: Vec::new(), results: Vec::new(), rho: 0.0 };
        let blur = libm::ldexp(1.0, self.min - BLUR);
        for j in 0..(self.max - self.min) * PER_OCTAVE {
            let (low, high) = (at(j), at(j + 1));
            // The middle, rounded to few bits.
            let middle = 2.0 / (low + high);
            let shift = formats.mantissa - 1 - libm::floor(libm::log2(middle)) as i32;
            let shift = shift.min(i32::from(formats.factor));
            let factor = libm::ldexp(libm::round(libm::ldexp(middle, shift)), -shift);
            table.rho = table.rho.max(1.0 - (low - blur) * factor).max((high + blur) * factor - 1.0);
            table.factors.push(fixed(factor, formats.factor)?);
            table.results.push(libm::sqrt(factor));
            if j > 0 {
                table.thresholds.push(low);
            }
        }
        Ok(table)
    }
}

/// Coefficients of `1/√(1 − r)` on `|r| ≤ rho` by powers of `r`.
fn coefficients(rho: f64) -> [f64; 4] {
    let c = chebyshev_fit_at(|s| 1.0 / libm::sqrt(1.0 - rho * s), 3);
    [c[0] - c[2], (c[1] - 3.0 * c[3]) / rho, 2.0 * c[2] / (rho * rho), 4.0 * c[3] / (rho * rho * rho)]
}

/// `gain / √x` at scale `out` for `x` in the range; `like` is the same value, on which it is compared. What is below the
/// range gives a result that is too small, of the right sign, and at least `√(min / x)` times what it should be.
///
/// # Errors
/// `E0507` where the ring has no room for the range.
pub(super) fn inverse(e: &mut Emit, x: Id, like: Id, of: Inverse, out: u8) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    let formats = of.formats(bits, scale, out)?;
    let table = of.table(formats)?;
    let [b0, b1, b2, b3] = coefficients(table.rho);
    let results: Vec<i64> =
        table.results.iter().map(|&y| fixed(of.gain * b0 * y, formats.result)).collect::<Result<_>>()?;
    let (largest, work) = (magnitude(&results), formats.result);
    let bit = compare(e, like, &table, of)?;
    let factor = choose(e, x, bit, &table.factors, (formats.factor, magnitude(&table.factors)))?;
    let result = choose(e, x, bit, &results, (work, largest))?;
    // r = 1 − x·F
    let product_scale = scale + formats.factor;
    let product = e.guarded(Op::Mul, &[x, factor], product_scale + 1)?;
    let minus = e.op(Op::Neg, &[product])?;
    let rest = e.guarded(Op::AddInt { k: 1i64 << product_scale }, &[minus], product_scale + 1)?;
    let fine = FINE.min(product_scale);
    let r = e.truncate_to(rest, fine, fine + 1)?;
    let r = raise(e, r, FINE)?;
    let square = e.guarded(Op::Mul, &[r, r], 2 * FINE + 1)?;
    let square = e.truncate_to(square, SQUARE, SQUARE + 1)?;
    let first = e.guarded(Op::Mul, &[result, r], (FINE + largest).min(bits - 2))?;
    let first = e.truncate_to(first, work, largest)?;
    // All terms but the first at one scale.
    let (inner_bound, bound) = (largest + COEFFICIENT + 1, bits - 2);
    let even = e.guarded(Op::MulInt { k: fixed(b2 / b0, COEFFICIENT)? }, &[result], inner_bound)?;
    let odd = e.guarded(Op::MulInt { k: fixed(b3 / b0, COEFFICIENT)? }, &[first], inner_bound)?;
    let inner = e.guarded(Op::Add, &[even, odd], inner_bound)?;
    let joint = Op::SetScale { scale: work + COEFFICIENT + SQUARE };
    let last = e.guarded(Op::Mul, &[inner, square], bound)?;
    let last = e.op(joint.clone(), &[last])?;
    let linear = e.guarded(Op::MulInt { k: fixed(b1 / b0, COEFFICIENT + SQUARE)? }, &[first], bound)?;
    let linear = e.op(joint, &[linear])?;
    let sum = e.guarded(Op::Add, &[last, linear], bound)?;
    let tail = e.truncate_to(sum, work, largest)?;
    let y = e.guarded(Op::Add, &[result, tail], largest + 1)?;
    raise(e, y, out)
}

fn too_wide(of: Inverse) -> Diagnostic {
    let (min, max) = (of.min, of.max);
    Diagnostic::input("E0507", format!("the range 2^{min} to 2^{max} of a divisor or root is too wide for the ring"))
        .note("calibrate on inputs that are typical for the model, or give --max for its sizes")
}

/// The bits `1{x ≥ t_j}` as ring elements of scale 0, along a new last axis.
fn compare(e: &mut Emit, x: Id, table: &Table, of: Inverse) -> Result<Id> {
    let (bits, scale, bound) = e.ring(x)?;
    let drop = u8::try_from(i32::from(scale) + of.min - BLUR).unwrap_or(0);
    let mut column = e.ty(x).shape.clone();
    column.push(Dim::constant(1));
    let flat = e.op(Op::Reshape { shape: column }, &[x])?;
    let lower = if drop > 0 { 1i64 << drop } else { 0 };
    let thresholds: Vec<i64> = table.thresholds.iter().map(|&t| Ok(fixed(t, scale)? - lower)).collect::<Result<_>>()?;
    let limits = constant(e, &thresholds, bits, scale)?;
    let (_, _, most) = e.ring(limits)?;
    // Neither is negative.
    let all = e.guarded(Op::Sub, &[flat, limits], bound.max(most))?;
    let below = e.sign(all, drop)?;
    let not = e.op(Op::Not, &[below])?;
    e.op(Op::BitToRing { bits }, &[not])
}

/// The entry of a table that the bits along a new last axis choose, of the shape of `like`.
fn choose(e: &mut Emit, like: Id, bit: Id, entries: &[i64], (scale, bound): (u8, u8)) -> Result<Id> {
    let (bits, _, _) = e.ring(like)?;
    let shape = e.ty(like).shape.clone();
    let sum = combined(e, bit, &steps(entries[0], &entries[1..]), (bits, bound))?;
    let sum = e.op(Op::Reshape { shape }, &[sum])?;
    let read = e.op(Op::SetScale { scale }, &[sum])?;
    e.guarded(Op::AddInt { k: entries[0] }, &[read], bound)
}

/// What the bits add to an entry to give the next ones. Every step is rounded to what a float holds, and the next one
/// makes good for it.
fn steps(mut at: i64, entries: &[i64]) -> Vec<i64> {
    let step = |&entry: &i64| {
        let step = exact(entry - at);
        at += step;
        step
    };
    entries.iter().map(step).collect()
}

/// `Σ bit · step` over the last axis.
fn combined(e: &mut Emit, bit: Id, steps: &[i64], (bits, bound): (u8, u8)) -> Result<Id> {
    let axis = (e.ty(bit).shape.len() - 1) as u8;
    let steps = constant(e, steps, bits, 0)?;
    let terms = e.guarded(Op::Mul, &[bit, steps], bound)?;
    e.guarded(Op::ReduceSum { axis }, &[terms], bound)
}

/// Bits of the maximum of integers.
fn magnitude(values: &[i64]) -> u8 {
    values.iter().map(|k| (64 - k.unsigned_abs().leading_zeros()) as u8).max().unwrap_or(1).max(1)
}

/// The nearest integer that a float holds exactly.
fn exact(k: i64) -> i64 {
    let spare = (64 - k.unsigned_abs().leading_zeros()).saturating_sub(FLOAT);
    let half = (1i64 << spare) >> 1;
    (k + half) >> spare << spare
}

/// Public integers in a ring: what a float holds of them.
pub(super) fn constant(e: &mut Emit, values: &[i64], bits: u8, scale: u8) -> Result<Id> {
    let bound = magnitude(values) + 1;
    let floats = values.iter().map(|&k| libm::ldexp(exact(k) as f64, -i32::from(scale)) as f32).collect();
    let tensor = Tensor::f32(&[values.len()], floats)?;
    let value = e.module.public.push(plain::Op::Constant(tensor), Vec::new())?;
    let index = e.module.public.outputs.len() as u32;
    e.module.public.outputs.push(value);
    let shape = vec![Dim::constant(values.len() as i64)];
    let ty = Ty::plain(DType::F32, Sharing::Public, shape);
    let plain = ombra_ir::infer::push_source(e.module, Op::Public { value: index }, ty, e.origin.clone())?;
    let proven = Some((bound, BoundFrom::Proven));
    ombra_ir::infer::push(e.module, Op::Encode { bits, scale }, &[plain], proven, e.origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula in double precision, over ranges of several widths.
    #[test]
    fn formula_is_as_close_as_stated() {
        for (min, max) in [(0, 1), (-10, 16), (-3, 20)] {
            let of = Inverse { gain: 3.0, min, max };
            let formats = of.formats(64, 20, 20).unwrap();
            let table = of.table(formats).unwrap();
            assert!(table.rho < 0.09, "{}", table.rho);
            assert_eq!(table.factors.len(), table.thresholds.len() + 1);
            let [b0, b1, b2, b3] = coefficients(table.rho);
            for (j, (&factor, &result)) in table.factors.iter().zip(&table.results).enumerate() {
                let factor = libm::ldexp(factor as f64, -i32::from(formats.factor));
                let middle = libm::exp2(f64::from(min) + (j as f64 + 0.5) / f64::from(PER_OCTAVE));
                for x in [0.94, 0.97, 1.0, 1.03, 1.06].map(|k| k * middle) {
                    let r = 1.0 - x * factor;
                    let y = result * (b0 + r * (b1 + r * (b2 + r * b3)));
                    let error = y / (1.0 / libm::sqrt(x)) - 1.0;
                    assert!(libm::fabs(error) < 2e-6, "{x}: {error:.1e}");
                }
            }
        }
    }

    #[test]
    fn integers_are_rounded_to_floats() {
        for k in [0, 1, -1, 5, (1 << 24) + 1, -(1 << 30) - 3, (1 << 40) + 12345] {
            let found = exact(k);
            assert_eq!(found as f32 as i64, found);
            assert!((found - k).abs() <= k.abs() >> 24, "{k}");
        }
    }
}
