//! `1/√x` of many elements: normalise by the highest power of 4 passed, then a series around a parabola.
//!
//! One comparison for every power of 4 in the range, where the table of [`inverse`](super::inverse) has ten: fewer bytes
//! by far, in more rounds.

use super::inverse::Range4;
use super::reciprocal::{combine, compare_all, raise};
use super::{Emit, FINE, fixed};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

/// Blur of the buckets: this many powers of two below the least threshold.
const ROOT_BLUR: i32 = 7;

/// `1/√x` at scale `out_scale` for `x` in `range`; error 1.2e-6 relative plus rounding.
///
/// Below the range the steps start too far away: the result is then of the right sign and size only down to a quarter of
/// `4^min`, and arbitrary further down. The range is calibrated with two powers of 4 to spare on either side.
pub(super) fn rsqrt_of_many(e: &mut Emit, x: Id, range: Range4, out_scale: u8) -> Result<Id> {
    let (bits, scale, _) = e.ring(x)?;
    let factor_scale = u8::try_from((2 * (i32::from(range.max) - 1)).max(0)).unwrap_or(u8::MAX);
    let root_scale = 24u8;
    if range.min >= range.max || scale.saturating_add(factor_scale).saturating_add(3) > bits {
        return Err(Diagnostic::input(
            "E0507",
            format!("the range 4^{} to 4^{} of a variance is too wide for the ring", range.min, range.max),
        )
        .note("calibrate on inputs that are typical for the model"));
    }
    let js: Vec<i32> = (i32::from(range.min) + 1..i32::from(range.max)).collect();
    let thresholds: Vec<f64> = js.iter().map(|&j| libm::ldexp(1.0, 2 * j)).collect();
    let power = |j: i32, root: bool| -> Result<i64> {
        if root { fixed(libm::ldexp(1.0, -j), root_scale) } else { fixed(libm::ldexp(1.0, -2 * j), factor_scale) }
    };
    let steps =
        |root: bool| -> Result<Vec<i64>> { js.iter().map(|&j| Ok(power(j, root)? - power(j - 1, root)?)).collect() };
    let min = i32::from(range.min);
    let bits_of = |k: i64| (64 - k.unsigned_abs().leading_zeros()) as u8;
    let compared = compare_all(e, x, &thresholds, i32::from(scale) + 2 * (min + 1) - ROOT_BLUR)?;
    let factor = combine(e, &compared, power(min, false)?, &steps(false)?, factor_scale, bits_of(power(min, false)?))?;
    let root = combine(e, &compared, power(min, true)?, &steps(true)?, root_scale, bits_of(power(min, true)?))?;
    // v = x · 4^−e in [1, 4)
    let product_scale = scale + factor_scale;
    let product = e.guarded(Op::Mul, &[x, factor], product_scale + 2)?;
    let v = e.truncate_to(product, FINE.min(product_scale), FINE.min(product_scale) + 2)?;
    let v = raise(e, v, FINE)?;
    // y = 1.33539 − 0.41066 v + 0.0512 v²
    let square = e.op(Op::Mul, &[v, v])?;
    let quadratic = e.op(Op::MulInt { k: 13 }, &[square])?;
    let fine = e.op(Op::Upscale { by: FINE }, &[v])?;
    let linear = e.guarded(Op::MulInt { k: -105 }, &[fine], 2 * FINE + 9)?;
    let sum = e.guarded(Op::Add, &[quadratic, linear], 2 * FINE + 9)?;
    let read = e.op(Op::SetScale { scale: 2 * FINE + 8 }, &[sum])?;
    let start = e.guarded(Op::AddInt { k: fixed(1.33539, 2 * FINE + 8)? }, &[read], 2 * FINE + 9)?;
    let start = e.truncate_to(start, FINE, FINE + 1)?;
    // With r = 1 − v y²: 1/√v = y (1 + r/2 + 3r²/8 + 5r³/16 + …), cut there, as y (1 + r/2) + r² · y (3/8 + 5r/16).
    let yy = e.product(start, start, FINE, FINE + 1)?;
    let vyy = e.product(v, yy, FINE, FINE + 2)?;
    let minus = e.op(Op::Neg, &[vyy])?;
    let rest = e.guarded(Op::AddInt { k: 1 << FINE }, &[minus], FINE + 1)?;
    // 2 + r, read one bit finer.
    let linear = e.guarded(Op::AddInt { k: 2 << FINE }, &[rest], FINE + 2)?;
    let linear = e.op(Op::SetScale { scale: FINE + 1 }, &[linear])?;
    // 6 + 5r, read four bits finer.
    let five = e.guarded(Op::MulInt { k: 5 }, &[rest], FINE + 3)?;
    let cubic = e.guarded(Op::AddInt { k: 6 << FINE }, &[five], FINE + 4)?;
    let cubic = e.op(Op::SetScale { scale: FINE + 4 }, &[cubic])?;
    let first = e.op(Op::Mul, &[start, linear])?;
    let first = e.truncate_to(first, FINE, FINE + 1)?;
    let second = e.op(Op::Mul, &[start, cubic])?;
    let second = e.truncate_to(second, FINE, FINE)?;
    let square = e.product(rest, rest, FINE, FINE + 1)?;
    let last = e.op(Op::Mul, &[square, second])?;
    let first = e.op(Op::Upscale { by: FINE }, &[first])?;
    let sum = e.guarded(Op::Add, &[last, first], 2 * FINE + 1)?;
    let y = e.truncate_to(sum, FINE, FINE + 1)?;
    let largest = bits_of(power(min, true)?) + out_scale - root_scale.min(out_scale);
    e.product(y, root, out_scale, largest.saturating_sub(root_scale.saturating_sub(out_scale)) + 1)
}
