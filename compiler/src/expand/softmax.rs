//! `exp` and `softmax`.
//!
//! The exponential is one op of the IR, [`Op::ExpDigits`], which holds from some −2^n on: what may lie below is compared, and 0.
//! Below −16 an exponential is less than a unit of the scores' scale, so that the comparison may leave out all bits up to
//! there. Softmax subtracts the row's maximum first; only entries that the public mask keeps are compared, exponentiated
//! and summed, so nothing depends on what a mask hides.
//!
//! The maximum need not be exact, since it cancels in the quotient: scores are cut or divided to quarters or halves for it,
//! without a message, in the smallest ring that holds them. It lies between half less and one more than the true one, which
//! leaves the sum of a row's exponentials at a third or more. Where the setting divides without a message, the exponential
//! has a byte less than elsewhere, and is then divided to the fraction bits of the quotient.
//!
//! What takes the place of softmax in models trained for MPC has neither maximum nor exponential: a comparison and a
//! product an entry (2ReLU), or a product alone (2Quad), then the same reciprocal a row and product an entry. 2ReLU takes
//! scores below `2^−12` for 0.

use super::{Emit, POSITIVE_FRACTION, comparison, fixed, no_room, reciprocal, ring_for, ring_of};
use ombra_ir::dim::Dim;
use ombra_ir::infer::size;
use ombra_ir::module::Id;
use ombra_ir::norms::BIT;
use ombra_ir::op::{EXP_WINDOW, Op, exp_form, exp_lowest};
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// Levels of a row's maximum: what each falls short by leaves the maximum exponential below 2.
const LONGEST: u8 = 20;
/// What rounding may take off the logarithm of a row's sum.
const LEVELLED: f64 = 1e-3;
/// Fraction bits of comparisons for the maximum where scores are too wide to be cut for it.
const MAX_FRACTION: u8 = 5;
/// Fraction bits of scores that are cut for the maximum: the first where comparisons have [`FEW`] bits then, else the last.
const COARSE: [u8; 2] = [2, 1];
const FEW: u8 = 9;
/// Fraction bits of exponentials that are multiplied by the reciprocal of their sum, at least, where bits of the product cost; and
/// of the reciprocal, more than of the quotient.
const WEIGHT_SCALE: u8 = 16;
const WEIGHT_SPARE: u8 = 5;
/// Where exponentials may begin to count as 0, above [`exp_lowest`], as a power of two.
const BLUR: u8 = 4;
/// The window of exponentials of coarse maxima, of which a setting with one needs fewer factors: it holds from −16 to 0, so they
/// are those of values that are this much less. Entries further from the maximum than `LOWEST` are 0.
const SHORT_WINDOW: u8 = EXP_WINDOW - 1;
const LESS: f64 = 0.75;
const LOWEST: f64 = 15.0;

/// `e^x` for `x ≤ 1/2` in the largest ring: of all that its bound allows where the setting has a window for that, else 0 below
/// −32, and perhaps from there to −16. It has as many fraction bits as the setting gives it, or `finest`, if that is less, where
/// the setting divides in place of making the ring larger: fewer bits cost less.
pub(super) fn exp(e: &mut Emit, x: Id, finest: u8) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let holding = e.module.setting.protocol().exp_windows.clone();
    let size = e.max_size(x)?;
    let holding = holding.into_iter().find(|&window| size <= -exp_lowest(window));
    let window = holding.unwrap_or(EXP_WINDOW);
    let keep = match holding {
        Some(_) => None,
        None => {
            let below = e.below(x, exp_lowest(window), scale + BLUR)?;
            Some(e.op(Op::Not, &[below])?)
        }
    };
    exp_where(e, x, window, keep, finest)
}

/// `e^x` where `keep` is 1 or not there, 0 elsewhere: in a window of the setting, where `keep` leaves it nothing beyond.
fn exp_where(e: &mut Emit, x: Id, window: u8, keep: Option<Id>, finest: u8) -> Result<Id> {
    let (own, scale, _) = e.ring(x)?;
    if scale.saturating_add(window) > own {
        return Err(too_fine(scale, own));
    }
    let (ring, fraction) = exp_form(e.module.setting, false);
    let size = ring - 2;
    let y = e.guarded(Op::ExpDigits { scale, window, tail: false }, &[x], size)?;
    // Shares may take a unit off where a result is shifted once, and else two: nothing is to be negative.
    let mut y = e.guarded(Op::AddInt { k: if e.divides_freely() { 1 } else { 2 } }, &[y], size)?;
    if let Some(keep) = keep {
        y = e.op(Op::Select, &[keep, y])?;
    }
    let (_, _, bound) = e.ring(y)?;
    if drops_bits(e) && fraction > finest {
        let by = fraction - finest;
        return e.guarded(Op::Truncate { by, bits: 64 }, &[y], bound - by);
    }
    e.widen(y, 64, (bound, BoundFrom::Guarded))
}

/// Whether bits of a product cost more than a division of its factor.
fn drops_bits(e: &Emit) -> bool {
    e.divides_freely() || e.has_ciphertexts()
}

fn too_fine(scale: u8, bits: u8) -> Diagnostic {
    Diagnostic::input("E0504", format!("an exponential of values with {scale} fraction bits does not fit its ring"))
        .note(format!("expected at most {} fraction bits", bits.saturating_sub(EXP_WINDOW)))
        .note("use fewer fraction bits")
}

/// The longest row of a softmax over the last axis of `x`.
fn longest_row(e: &Emit, x: Id) -> Result<u64> {
    let shape = &e.ty(x).shape;
    let columns = shape.last().ok_or_else(|| Diagnostic::internal("E0505", "softmax of a scalar"))?;
    e.module.dims.upper(columns).and_then(|n| u64::try_from(n).ok()).ok_or_else(|| {
        Diagnostic::input("E0506", "a softmax row has no maximum length").note("give --max for its sizes")
    })
}

/// Softmax over the last axis of `x` among the entries that `mask` keeps; 0 elsewhere.
pub(super) fn softmax(e: &mut Emit, x: Id, mask: Id) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let shape = e.ty(x).shape.clone();
    let max_columns = longest_row(e, x)?;
    let log2 = u8::try_from(max_columns.max(2).next_power_of_two().trailing_zeros()).unwrap_or(u8::MAX);
    reciprocal::check_row(log2, LONGEST)?;
    let packed = e.op(Op::Pack, &[x, mask])?;
    let (exp, least_sum) = exponentials(e, packed, mask, &shape)?;
    let sum = e.op(Op::RowSum { shape: shape.clone() }, &[exp, mask])?;
    let (_, fraction, _) = e.ring(exp)?;
    // As fine as the product of both has room for, or as a quotient and the longest row need.
    let finest = if drops_bits(e) {
        (LEAST_SIGNIFICANT as u8 + log2 + 1).max(scale + WEIGHT_SPARE)
    } else {
        QUOTIENT as u8 - fraction
    };
    let inverse = reciprocal::reciprocal_at(e, sum, (least_sum, log2 + 1), finest)?;
    let inverse_each = e.op(Op::RowExpand { shape: shape.clone() }, &[inverse, mask])?;
    let (_, precision, _) = e.ring(inverse)?;
    let product = e.guarded(Op::Mul, &[exp, inverse_each], fraction + precision + 1)?;
    let y = e.truncate_to(product, scale, scale + 1)?;
    e.op(Op::Unpack { shape }, &[y, mask])
}

/// The exponentials of packed scores less what is taken for their row's maximum, and what the sum of a row's is at least.
fn exponentials(e: &mut Emit, packed: Id, mask: Id, shape: &[Dim]) -> Result<(Id, f64)> {
    let (bits, scale, bound) = e.ring(packed)?;
    let finest = scale.max(WEIGHT_SCALE);
    let fraction = coarse_fraction(e, packed)?;
    let unit = scale.saturating_sub(fraction);
    let small = ring_of(bound.saturating_sub(unit) + 3);
    if e.divides_freely() && scale >= COARSE[0] && unit < bits && small <= bits - unit {
        return exponentials_of_coarse(e, packed, (mask, shape), (fraction, small), finest);
    }
    let (max, least_sum) = row_max(e, packed, mask, shape)?;
    let (bits, _, _) = e.ring(max)?;
    let max_each = e.op(Op::RowExpand { shape: shape.to_vec() }, &[max, mask])?;
    let packed = e.narrow(packed, bits)?;
    let bound = apart(e, packed)?;
    let below = e.guarded(Op::Sub, &[packed, max_each], bound)?;
    Ok((exp(e, below, finest)?, least_sum))
}

/// [`exponentials`] with the maximum of quotients, whose terms take no message, in units of `2^-fraction` in a ring of `small`
/// bits.
///
/// The exponential is that of the window of 32: so all operands are made 3/4 less, by which factor no quotient differs.
///
/// It looks at its operand modulo `2^5`, and so at no more than 8 bits of a maximum of which two at most are its fraction. These
/// are lifted to the scale of the scores, and nothing is extended: what is above them differs from the maximum by multiples
/// of the window. Whether an entry is too far below for the window the quotients tell, whose difference from their maximum
/// is less than a unit off.
fn exponentials_of_coarse(
    e: &mut Emit,
    packed: Id,
    (mask, shape): (Id, &[Dim]),
    (fraction, small): (u8, u8),
    finest: u8,
) -> Result<(Id, f64)> {
    const LOW: u8 = 8;
    let (_, scale, bound) = e.ring(packed)?;
    let apart = 2.0 * e.max_size(packed)? + 1.0;
    let coarse = e.op(Op::Truncate { by: scale - fraction, bits: small }, &[packed])?;
    let (width, _) = comparison(size(e.ty(coarse)) + BIT, 0, small).ok_or_else(|| no_room(bound, small))?;
    let max = e.op(Op::RowMax { shape: shape.to_vec(), width, drop: 0 }, &[coarse, mask])?;

    let by = (scale - fraction).div_ceil(8) * 8;
    let (ring, fine) = (LOW + by, fraction + by);
    let low = e.narrow(max, LOW)?;
    let lifted = e.op(Op::Lift { by }, &[low])?;
    let each = e.op(Op::RowExpand { shape: shape.to_vec() }, &[lifted, mask])?;
    let mut scores = e.narrow(packed, ring)?;
    if fine > scale {
        scores = e.guarded(Op::Upscale { by: fine - scale }, &[scores], ring - 1)?;
    }
    let below = e.guarded(Op::Sub, &[scores, each], ring - 1)?;
    let below = e.guarded(Op::AddInt { k: fixed(-LESS, fine)? }, &[below], ring - 1)?;

    let keep = if apart <= LOWEST {
        None
    } else {
        let each = e.op(Op::RowExpand { shape: shape.to_vec() }, &[max, mask])?;
        let difference = e.op(Op::Sub, &[coarse, each])?;
        let (_, _, bound) = e.ring(difference)?;
        // It is not above 0, and the window is less than what entries may be apart.
        let inside = fixed(LOWEST, fraction)? - 1;
        let above = e.guarded(Op::AddInt { k: inside }, &[difference], bound)?;
        let outside = e.sign(above, fraction)?;
        Some(e.op(Op::Not, &[outside])?)
    };
    let exp = exp_where(e, below, SHORT_WINDOW, keep, finest)?;
    // A quotient is less than a unit off, either way, and a unit is less than what operands are less.
    Ok((exp, libm::exp(-LEVELLED - LESS - libm::ldexp(1.0, -i32::from(fraction)))))
}

/// Fraction bits of scores that are made coarser for the maximum.
fn coarse_fraction(e: &Emit, packed: Id) -> Result<u8> {
    let (bits, scale, _) = e.ring(packed)?;
    // A difference of two scores has a bit more than they have.
    let whole = size(e.ty(packed)) + BIT;
    let compared = |fraction: u8| comparison(whole, scale.saturating_sub(fraction), bits);
    let few = |fraction: &u8| compared(*fraction).is_some_and(|(width, drop)| width - drop <= FEW);
    let [_, last] = COARSE;
    Ok(COARSE.into_iter().find(few).unwrap_or(last))
}

/// Bits of the difference of a score and what is taken for a row's maximum, which may be one more than that.
fn apart(e: &Emit, scores: Id) -> Result<u8> {
    let (_, scale, _) = e.ring(scores)?;
    let two = libm::exp2(f64::from(size(e.ty(scores)) + BIT) / f64::from(BIT));
    Ok(libm::ceil(libm::log2(two + libm::exp2(scale.into()))) as u8)
}

/// The maximum of every row of `packed`, between half less and one more than it, in the smallest ring that holds its
/// difference from every entry and the window of the exponential; and what the sum of a row's exponentials is at least then.
///
/// Scores are cut to units that comparisons then look at whole, so that no level of the tree adds to what the cut takes.
fn row_max(e: &mut Emit, packed: Id, mask: Id, shape: &[Dim]) -> Result<(Id, f64)> {
    let (bits, scale, bound) = e.ring(packed)?;
    // A difference of two scores has a bit more than they have.
    let whole = size(e.ty(packed)) + BIT;
    let ring = ring_of(apart(e, packed)?.max(scale.saturating_add(EXP_WINDOW)).saturating_add(2)).min(bits);
    let components = e.module.setting.protocol().components;
    let fraction = coarse_fraction(e, packed)?;
    let unit = scale.saturating_sub(fraction);
    let by = unit.div_ceil(8) * 8;
    if scale < COARSE[0] || by >= bits || ring > bits - by {
        let drop = scale.saturating_sub(MAX_FRACTION);
        let (width, drop) = comparison(whole, drop, bits).ok_or_else(|| no_room(bound, bits))?;
        let small = e.narrow(packed, ring.max(ring_of(width)).min(bits))?;
        let max = e.op(Op::RowMax { shape: shape.to_vec(), width, drop }, &[small, mask])?;
        return Ok((max, libm::exp(-LEVELLED)));
    }
    let fine = e.guarded(Op::MulInt { k: 1 << (by - unit) }, &[packed], bits - 1)?;
    let fine = e.op(Op::SetScale { scale: by }, &[fine])?;
    let cut = e.op(Op::Cut { by }, &[fine])?;
    let cut = e.op(Op::Upscale { by: unit }, &[cut])?;
    let cut = e.op(Op::SetScale { scale }, &[cut])?;
    let small = e.narrow(cut, ring)?;
    let (width, drop) = comparison(size(e.ty(small)) + BIT, unit, ring).ok_or_else(|| no_room(bound, ring))?;
    let max = e.op(Op::RowMax { shape: shape.to_vec(), width, drop }, &[small, mask])?;
    // The cut takes less than one unit of every component; an exponential's operand may be half of 1.
    let units = i64::from(components) - (1 << fraction >> 1);
    if units <= 0 {
        return Ok((max, libm::exp(-LEVELLED)));
    }
    let max = e.guarded(Op::AddInt { k: units << unit }, &[max], bound + 1)?;
    Ok((max, libm::exp(-LEVELLED - libm::ldexp(units as f64, -i32::from(fraction)))))
}

/// The form of a softmax by quotients: `g(x) / (Σ g(x) + eps)` with `2^min_log2 ≤ Σ g(x) + eps < 2^max_log2`.
pub(super) struct Ratio {
    /// Whether `g` is the square of `x + shift`; its positive part otherwise.
    pub(super) square: bool,
    /// Added to every score.
    pub(super) shift: f32,
    /// Added to the sum.
    pub(super) eps: f32,
    /// Begin of the divisor's range.
    pub(super) min_log2: i8,
    /// End of the divisor's range.
    pub(super) max_log2: i8,
}

/// Bits of a quotient before its division: one less than a truncation takes.
const QUOTIENT: i32 = 60;
/// Significant bits of the reciprocal of the maximum divisor.
const LEAST_SIGNIFICANT: i32 = 10;

/// `g(x) / (Σ g(x) + eps)` over the last axis of `x` among the entries that `mask` keeps; 0 elsewhere.
///
/// Everything stays in integers of one scale until the end: with `q = g(x)` at scale `s` and the reciprocal
/// `i = 2^min / (Σ g(x) + eps) ≤ 1` at scale `t`, the quotient is `q·i` read at scale `s + t + min`.
pub(super) fn ratio_softmax(e: &mut Emit, x: Id, mask: Id, form: Ratio) -> Result<Id> {
    let (_, scale, _) = e.ring(x)?;
    let shape = e.ty(x).shape.clone();
    longest_row(e, x)?;
    let (min, max) = (i32::from(form.min_log2), i32::from(form.max_log2));
    let small = |n: i32| u8::try_from(n).map_err(|_| too_wide(&form));
    let packed = e.op(Op::Pack, &[x, mask])?;
    let shifted = if form.shift == 0.0 { packed } else { e.add_real(packed, f64::from(form.shift))? };
    let entries = if form.square {
        let square = e.op(Op::Mul, &[shifted, shifted])?;
        let kept = small((2 * i32::from(scale)).min(QUOTIENT - LEAST_SIGNIFICANT - max))?;
        let (_, _, bound) = e.ring(square)?;
        e.truncate_to(square, kept, bound.saturating_sub(2 * scale - kept).saturating_add(1))?
    } else {
        positive(e, shifted)?
    };
    let (_, s, _) = e.ring(entries)?;
    let s = i32::from(s);
    let bound = (small((s + max).max(1))?, BoundFrom::Calibrated);
    let mut divisor = e.declared(Op::RowSum { shape: shape.clone() }, &[entries, mask], bound)?;
    if form.eps > 0.0 {
        let eps = fixed(f64::from(form.eps), small(s)?)?;
        divisor = e.declared(Op::AddInt { k: eps }, &[divisor], bound)?;
    }
    if s + min < 0 {
        divisor = e.op(Op::Upscale { by: small(-s - min)? }, &[divisor])?;
    }
    let ratio = e.op(Op::SetScale { scale: small((s + min).max(0))? }, &[divisor])?;
    let finest = small((QUOTIENT - s - min).min(63 - s))?;
    let inverse = reciprocal::reciprocal_at(e, ratio, (1.0, small(max - min)?), finest)?;
    let (_, t, _) = e.ring(inverse)?;
    let read = s + i32::from(t) + min;
    if read <= i32::from(scale) {
        return Err(too_wide(&form));
    }
    let inverse_each = e.op(Op::RowExpand { shape: shape.clone() }, &[inverse, mask])?;
    let product = e.guarded(Op::Mul, &[entries, inverse_each], small(read + 1)?)?;
    let quotient = e.op(Op::SetScale { scale: small(read)? }, &[product])?;
    let y = e.truncate_to(quotient, scale, scale + 1)?;
    e.op(Op::Unpack { shape }, &[y, mask])
}

fn too_wide(form: &Ratio) -> Diagnostic {
    let (min, max) = (form.min_log2, form.max_log2);
    Diagnostic::input("E0507", format!("a softmax row's divisor of 2^{min} to 2^{max} does not fit the ring"))
        .note("give --max for the sizes of the model, or calibrate on inputs that are typical for it")
}

/// `max(x, 0)`, in the smallest ring that holds `x` until the end; 0 below `2^−POSITIVE_FRACTION`.
fn positive(e: &mut Emit, x: Id) -> Result<Id> {
    let (bits, scale, bound) = e.ring(x)?;
    let small = e.narrow(x, ring_for(bound).min(bits))?;
    let (inside, _, _) = e.ring(small)?;
    let drop = scale.saturating_sub(POSITIVE_FRACTION);
    let negative = e.sign(small, drop)?;
    let keep = e.op(Op::Not, &[negative])?;
    let keep = e.op(Op::BitToRing { bits: inside }, &[keep])?;
    let product = e.guarded(Op::Mul, &[small, keep], bound)?;
    e.widen(product, bits, (bound, BoundFrom::Proven))
}
