//! RMSNorm and LayerNorm of rows of any length: one row statistic, its reciprocal square root, one product an element.
//!
//! The statistic is `S = Σ x² + n·eps` in units of the operand's integers, `n` the number of columns, and the result
//! `x · √n / √S`. LayerNorm takes `n·x − Σ x` in place of `x`, which is exact, and `n³` in place of `n`.
//!
//! **Levels.** `S` of long rows does not fit the ring. Level `k` has `y = x / 2^k` from shares that are cut, in a ring of
//! `64 − k` bits without a message, and holds rows up to `2^(31 + k/2)` units. Each of a secret's uniform components cuts off
//! half a unit on average with a variance of 1/12: of three, `Σ c² + 3 Σ c + 2n` of the cut values `c` is `Σ y²` on average,
//! off by one part in `‖y‖`. A row belongs to the highest level whose statistic reaches where the level begins; what lower
//! levels have of it may have wrapped and is multiplied by 0.
//!
//! **Table.** As in [`inverse`](super::inverse), all comparisons are made at once, [`PER_OCTAVE`] to a power of two of `S`,
//! and their bits choose a factor `F` with `|1 − S·F| ≤ ρ`. With `r = 1 − S·F`, the factor of the row is a cubic in `r`
//! times a mantissa times a power of two, so that it has its precision for short rows and for long ones. With a dealer,
//! `1/√(S·F)` is one lookup in place of the cubic, and a step is two powers of two: `S·F` from 0.4 to 1.6.
//!
//! Errors relative to the row's maximum entry: 2e-5 below `2^30` units, where a row has one level, and 6e-5 within a
//! factor of 16 of the longest row that is allowed; 1e-4 up to `2^42`;
//! 2e-3 up to `2^46`; 5e-2 up to `2^50`. Rounds: 1 for the statistic, the comparisons of as many bits as lie between
//! `n·eps` and the longest row, 1 for their bits, 7 for the cubic, 2 an element; one or two more where there are levels.

use super::curve::{self, INVERSE_SCALE};
use super::inverse::{choose_part, coefficients, constant};
use super::{Emit, fixed};
use ombra_ir::curve::Curve;
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Result};

/// Steps of the table in a power of two of the statistic: for a cubic, and for a lookup.
const PER_OCTAVE: f64 = 3.0;
const PER_OCTAVE_LOOKED_UP: f64 = 0.5;
/// Low bits left out of comparisons: so many powers of two below the least threshold.
const BLUR: i32 = 4;
/// Where a row's level begins, it is enough to know so many powers of two of the statistic.
const LEVEL_BLUR: i32 = 6;
/// Bits that are cut at levels above the first, and the logarithm of the statistic from which on a row belongs to one:
/// a power of two before the level below is full.
const CUTS: [(u8, f64); 4] = [(16, 61.0), (24, 77.0), (32, 85.0), (40, 93.0)];
/// Logarithm of the statistic that the first level holds.
const FULL: f64 = 62.0;
/// Beyond the end of a level, so much of the statistic's logarithm is left to noise.
const NOISE: f64 = 0.5;
/// Fraction bits of `S·F`.
const PRODUCT: u8 = 60;
/// Significant bits of the factors.
const MANTISSA: i32 = 10;
/// From this logarithm on, the first level's statistic is divided before its product with a factor.
const COARSE: f64 = 48.0;
/// Bits of that division.
const COARSE_BY: u8 = 16;
/// Fraction bits of `r`, of the mantissa and of `r²`, and of the cubic's coefficients.
const REST: u8 = 26;
const FINE: u8 = 24;
const COEFFICIENT: u8 = 11;
/// Fraction bits of the cubic beside a power of two: the most that leave that a whole number.
const PRECISIONS: [u8; 4] = [22, 18, 15, 11];
/// The same beside what is looked up, whose steps are wider.
const PRECISIONS_LOOKED_UP: [u8; 5] = [22, 18, 15, 13, 11];
/// Bits of the factor of the longest row, where there is room: rows as long as that are hardly seen.
const LEAST_FACTOR: f64 = 15.0;
/// Bits of a product of an element and its row's factor.
const ROOM: u8 = 62;

/// What is asked of a norm.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Added to the mean square.
    pub(super) eps: f32,
    /// Rows are shorter than `2^length` units.
    pub(super) length: u8,
    /// Fraction bits of the result.
    pub(super) scale: u8,
}

/// `x / √(mean(x²) + eps)` over the last axis.
pub(super) fn rms_norm(e: &mut Emit, x: Id, form: Form, bound: u8) -> Result<Id> {
    let columns = row_length(e, x)?;
    let (_, scale, _) = e.ring(x)?;
    let eps = columns as f64 * f64::from(form.eps) * libm::exp2(2.0 * f64::from(scale));
    normalise(e, x, columns, eps, form, bound)
}

/// `(x − mean(x)) / √(var(x) + eps)` over the last axis.
pub(super) fn layer_norm(e: &mut Emit, x: Id, form: Form, bound: u8) -> Result<Id> {
    let columns = row_length(e, x)?;
    let (_, scale, _) = e.ring(x)?;
    let n = columns as f64;
    // ‖n·x − Σ x‖ ≤ n·‖x‖
    let length = form.length.saturating_add(log2_ceil(columns));
    let k = i64::try_from(columns).map_err(|_| too_long())?;
    let times = e.guarded(Op::MulInt { k }, &[x], length)?;
    let sum = e.guarded(Op::ReduceSum { axis: last_axis(e, x) }, &[x], length)?;
    let centred = e.guarded(Op::Sub, &[times, sum], length)?;
    let eps = n * n * n * f64::from(form.eps) * libm::exp2(2.0 * f64::from(scale));
    normalise(e, centred, columns, eps, Form { length, ..form }, bound)
}

/// Rows of one range of lengths, and the statistic that holds them.
struct Level {
    /// Bits cut off the elements.
    cut: u8,
    /// Logarithm of the statistic, in units of the operand, at which the level begins.
    from: f64,
    /// Where it ends.
    to: f64,
    /// Bits of the level's own statistic.
    bound: u8,
}

/// A step of the table: a factor of one scaling of the statistic, and what its root is beside a power of two.
struct Step {
    /// Index of the scaling.
    scaling: usize,
    factor: i64,
    /// Mantissa of the row's factor for `r = 0`, from 1 to 2.
    mantissa: f64,
    /// Its exponent.
    exponent: i32,
}

/// The levels of rows whose statistics have logarithms from `least` to `most`.
fn levels(least: f64, most: f64) -> Result<Vec<Level>> {
    let (mut found, mut full) = (vec![(0u8, 0.0f64)], FULL);
    for (cut, from) in CUTS {
        if most <= full {
            break;
        }
        found.push((cut, from));
        full = FULL + f64::from(cut);
    }
    if most > full {
        return Err(too_long());
    }
    let ends = found.iter().skip(1).map(|&(_, from)| from).chain([most]).collect::<Vec<_>>();
    let levels = found.iter().zip(&ends).filter(|(_, to)| **to > least || **to >= most);
    Ok(levels
        .map(|(&(cut, from), &to)| {
            let held = if to < most { (to + NOISE).min(most) } else { most };
            let bound = libm::ceil(held - 2.0 * f64::from(cut)).max(2.0) as u8;
            Level { cut, from: from.max(least), to: to.max(least), bound }
        })
        .collect())
}

/// The steps of a level in units of its own statistic.
struct Steps {
    /// Low bits that comparisons with all thresholds but the first leave out.
    drop: u8,
    /// Of every step its threshold, and the minimum and the maximum statistic that may be taken for one of it.
    ends: Vec<[f64; 3]>,
}

/// Steps of one ratio from the least statistic that is taken for one of a step to the maximum.
fn steps_of(level: &Level, per_octave: f64) -> Steps {
    let own = |log: f64| libm::exp2(log - 2.0 * f64::from(level.cut));
    let ratio = libm::exp2(1.0 / per_octave);
    let (begin, end) = (own(level.from), own(level.to));
    let drop = dropped(libm::log2(begin * ratio), BLUR);
    let blur = if drop > 0 { libm::ldexp(1.0, drop.into()) } else { 0.0 };
    let mut least = begin * (1.0 - libm::ldexp(1.0, -LEVEL_BLUR));
    let mut steps = Steps { drop, ends: Vec::new() };
    let mut threshold = begin;
    loop {
        let most = least * ratio;
        steps.ends.push([threshold, least, most]);
        if most >= end {
            return steps;
        }
        (threshold, least) = (most, most - blur);
    }
}

/// Low bits that comparisons with thresholds from `2^least` units on leave out.
fn dropped(least: f64, blur: i32) -> u8 {
    u8::try_from(libm::floor(least) as i32 - blur).unwrap_or(0)
}

/// The table of every level, and the maximum `|1 − S·F|` in it. `gain / √S` is what the row's factor is.
fn table(levels: &[Level], per_octave: f64, gain: f64) -> (Vec<Vec<Step>>, f64) {
    let mut rho = 0.0f64;
    let mut step = |level: &Level, [_, least, most]: [f64; 3]| {
        let coarse = level.cut == 0 && most > libm::exp2(COARSE);
        let divided = if coarse { libm::ldexp(1.0, -i32::from(COARSE_BY)) } else { 1.0 };
        let middle = libm::ldexp(2.0 / ((least + most) * divided), PRODUCT.into());
        let spare = (libm::floor(libm::log2(middle)) as i32 + 1 - MANTISSA).max(0);
        let factor = libm::ldexp(libm::round(libm::ldexp(middle, -spare)), spare);
        let real = libm::ldexp(factor * divided, -i32::from(PRODUCT));
        rho = rho.max(1.0 - least * real).max(most * real - 1.0);
        let root = libm::ldexp(gain * libm::sqrt(real), -i32::from(level.cut));
        let exponent = libm::floor(libm::log2(root)) as i32;
        Step {
            scaling: 2 * usize::from(level.cut) + usize::from(coarse),
            factor: factor as i64,
            mantissa: libm::ldexp(root, -exponent),
            exponent,
        }
    };
    let steps =
        levels.iter().map(|level| steps_of(level, per_octave).ends.into_iter().map(|ends| step(level, ends)).collect());
    let steps = steps.collect();
    (steps, rho)
}

/// `x · √columns / √(Σ x² + eps)` for rows shorter than `2^length`, eps in squared units of `x`.
fn normalise(e: &mut Emit, x: Id, columns: u64, eps: f64, form: Form, bound: u8) -> Result<Id> {
    let whole_eps = libm::round(eps);
    let least = libm::log2(whole_eps.max(1.0));
    let is_looked_up = e.has_dealer();
    let (per_octave, precisions) = match is_looked_up {
        true => (PER_OCTAVE_LOOKED_UP, &PRECISIONS_LOOKED_UP[..]),
        false => (PER_OCTAVE, &PRECISIONS[..]),
    };
    let most = libm::log2(libm::exp2(2.0 * f64::from(form.length)) + whole_eps).max(least + 1.0 / per_octave);
    let levels = levels(least, most)?;
    // x · gain / √S has its point so far to the left that the longest row's factor has some bits, and no further than any
    // row's maximum entry allows. Divisions by whole bytes cost the same.
    let root = libm::sqrt(columns as f64);
    let point = f64::from(form.scale) + libm::log2(root);
    let wanted = libm::ceil((LEAST_FACTOR + most / 2.0 - point) / 8.0) * 8.0;
    let by = libm::floor(wanted.max(8.0).min(f64::from(ROOM) - 0.5 - point)) as i32;
    let by = u8::try_from(by).ok().filter(|&by| by > 0).ok_or_else(too_long)?;
    let gain = root * libm::exp2(f64::from(form.scale) + f64::from(by));
    let (table, rho) = table(&levels, per_octave, gain);
    let statistics = levels.iter().map(|level| statistic(e, x, level, columns, eps)).collect::<Result<Vec<_>>>()?;
    let bits = chosen(e, &levels, per_octave, &statistics)?;
    let steps: Vec<&Step> = table.iter().flatten().collect();
    // Entries of a table for every bit: within a level, bits add steps to the level's first entry.
    let starts: Vec<usize> = table.iter().scan(0, |at, steps| Some(std::mem::replace(at, *at + steps.len()))).collect();
    let choose = |e: &mut Emit, entry: &dyn Fn(&Step) -> Result<i64>, scale: u8, bound: u8| -> Result<Id> {
        let entries = steps.iter().map(|s| entry(s)).collect::<Result<Vec<_>>>()?;
        choose_part(e, statistics[0], bits, (&entries, &starts), (scale, bound))
    };
    // r = 1 − S·F
    let mut product: Option<Id> = None;
    let mut scalings: Vec<usize> = steps.iter().map(|s| s.scaling).collect();
    scalings.dedup();
    for scaling in scalings {
        let at = levels.iter().position(|level| usize::from(level.cut) == scaling / 2).unwrap_or(0);
        let scaled = scaled(e, statistics[at], scaling % 2 == 1)?;
        let of = |s: &Step| Ok(if s.scaling == scaling { s.factor } else { 0 });
        let factor = choose(e, &of, PRODUCT, ROOM)?;
        let term = e.guarded(Op::Mul, &[scaled, factor], PRODUCT + 1)?;
        product = Some(match product {
            None => term,
            Some(sum) => e.guarded(Op::Add, &[sum, term], PRODUCT + 1)?,
        });
    }
    let product = product.ok_or_else(too_long)?;
    let mantissas = if is_looked_up {
        let y = curve::inverse(e, product, Curve::Rsqrt)?;
        let y = e.widen(y, 64, (INVERSE_SCALE + 1, BoundFrom::Guarded))?;
        let mantissa = choose(e, &|s| fixed(s.mantissa, FINE), FINE, FINE + 1)?;
        e.guarded(Op::Mul, &[mantissa, y], INVERSE_SCALE + FINE + 2)?
    } else {
        let minus = e.op(Op::Neg, &[product])?;
        let rest = e.guarded(Op::AddInt { k: 1 << PRODUCT }, &[minus], PRODUCT + 1)?;
        let r = e.truncate_to(rest, REST, REST + 1)?;
        let [b0, b1, b2, b3] = coefficients(rho);
        let mantissa = choose(e, &|s| fixed(s.mantissa * b0, FINE), FINE, FINE + 2)?;
        cubic(e, mantissa, r, [b1 / b0, b2 / b0, b3 / b0])?
    };
    // The mantissa with as many bits as the power of two beside it has zeros.
    let precision = |s: &Step| precisions.iter().copied().find(|&p| i32::from(p) <= s.exponent).unwrap_or(0);
    let mut factor: Option<Id> = None;
    for p in precisions.iter().copied().chain([0]).filter(|&p| steps.iter().any(|s| precision(s) == p)) {
        let part = e.truncate_to(mantissas, p, p + 2)?;
        let power = |s: &Step| if precision(s) == p { fixed(1.0, small(s.exponent - i32::from(p))?) } else { Ok(0) };
        let power = choose(e, &power, 0, ROOM - 1)?;
        let term = e.guarded(Op::Mul, &[part, power], ROOM)?;
        let term = e.op(Op::SetScale { scale: 0 }, &[term])?;
        factor = Some(match factor {
            None => term,
            Some(sum) => e.guarded(Op::Add, &[sum, term], ROOM)?,
        });
    }
    let factor = e.guarded(Op::Reshare, &[factor.ok_or_else(too_long)?], ROOM)?;
    let product = e.guarded(Op::Mul, &[x, factor], ROOM)?;
    let product = e.op(Op::SetScale { scale: form.scale + by }, &[product])?;
    e.guarded(Op::Truncate { by, bits: 64 }, &[product], bound)
}

fn small(n: i32) -> Result<u8> {
    u8::try_from(n).map_err(|_| too_long())
}

/// The level's own statistic, shared, at scale 0: of cut elements, what they lack and how it varies put right on average.
fn statistic(e: &mut Emit, x: Id, level: &Level, columns: u64, eps: f64) -> Result<Id> {
    let (axis, bound) = (last_axis(e, x), level.bound);
    let squares = |e: &mut Emit, y: Id| -> Result<Id> {
        let squares = e.guarded(Op::Mul, &[y, y], bound)?;
        let sum = e.guarded(Op::ReduceSum { axis }, &[squares], bound)?;
        e.op(Op::SetScale { scale: 0 }, &[sum])
    };
    let eps = libm::round(eps * libm::exp2(-2.0 * f64::from(level.cut)));
    let (sum, constant) = if level.cut == 0 {
        (squares(e, x)?, eps)
    } else {
        let fine = e.op(Op::SetScale { scale: level.cut }, &[x])?;
        let cut = e.guarded(Op::Cut { by: level.cut }, &[fine], bound)?;
        let squares = squares(e, cut)?;
        let sum = e.guarded(Op::ReduceSum { axis }, &[cut], bound)?;
        // Of z, c components leave z − c/2 with a variance of c/12: Σ z² = Σ (y + c/2)² − n·c/12 on average.
        let components = e.module.setting.protocol().components;
        let linear = e.guarded(Op::MulInt { k: components.into() }, &[sum], bound)?;
        let c = f64::from(components);
        let constant = (c * c / 4.0 - c / 12.0) * columns as f64;
        (e.guarded(Op::Add, &[squares, linear], bound)?, eps + constant)
    };
    let sum = match fixed(constant, 0)? {
        0 => sum,
        k => e.guarded(Op::AddInt { k }, &[sum], bound)?,
    };
    e.guarded(Op::Reshare, &[sum], bound)
}

/// The statistic in the ring of 64 bits, divided where it is `coarse`: both beside the comparisons.
fn scaled(e: &mut Emit, statistic: Id, coarse: bool) -> Result<Id> {
    let (bits, _, bound) = e.ring(statistic)?;
    if coarse {
        let read = e.op(Op::SetScale { scale: COARSE_BY }, &[statistic])?;
        return e.op(Op::Truncate { by: COARSE_BY, bits }, &[read]);
    }
    if bits == 64 { Ok(statistic) } else { e.widen(statistic, 64, (bound, BoundFrom::Guarded)) }
}

/// The bits that choose a step, as ring elements along the last axis: of every level whether it is the row's, and where
/// the row has passed its thresholds. The first bit is left out where there is one level. Nothing where there is one step.
fn chosen(e: &mut Emit, levels: &[Level], per_octave: f64, statistics: &[Id]) -> Result<Option<Id>> {
    let begun = levels.iter().zip(statistics).skip(1).map(|(level, &s)| {
        let begin = level.from - 2.0 * f64::from(level.cut);
        passed(e, s, &[libm::exp2(begin)], dropped(begin, LEVEL_BLUR))
    });
    let begun = begun.collect::<Result<Vec<_>>>()?;
    // Whether no level above has begun, from the highest down.
    let mut none_above: Option<Id> = None;
    let mut parts = Vec::new();
    for (j, (level, &s)) in levels.iter().zip(statistics).enumerate().rev() {
        let steps = steps_of(level, per_octave);
        let thresholds: Vec<f64> = steps.ends.iter().skip(1).map(|[threshold, ..]| *threshold).collect();
        let mut bits = Vec::new();
        if let Some(&first) = j.checked_sub(1).and_then(|j| begun.get(j)) {
            bits.push(first);
        }
        if !thresholds.is_empty() {
            bits.push(passed(e, s, &thresholds, steps.drop)?);
        }
        let axis = last_axis(e, s);
        let mut part = match *bits {
            [] => None,
            [one] => Some(one),
            _ => Some(e.op(Op::Concat { axis }, &bits)?),
        };
        if let Some(none) = none_above {
            part = part.map(|bits| kept(e, bits, none)).transpose()?;
            if j == 0 {
                let all = [Some(none), part].into_iter().flatten().collect::<Vec<_>>();
                part = Some(if all.len() == 1 { none } else { e.op(Op::Concat { axis }, &all)? });
            }
        }
        parts.extend(part);
        if let Some(&first) = j.checked_sub(1).and_then(|j| begun.get(j)) {
            let not = e.op(Op::Not, &[first])?;
            none_above = Some(match none_above {
                None => not,
                Some(none) => e.op(Op::And, &[not, none])?,
            });
        }
    }
    parts.reverse();
    let all = match *parts {
        [] => return Ok(None),
        [one] => one,
        _ => e.op(Op::Concat { axis: last_axis(e, statistics[0]) }, &parts)?,
    };
    Ok(Some(e.op(Op::BitToRing { bits: 64 }, &[all])?))
}

/// The bits where another one, of the row, is 1.
fn kept(e: &mut Emit, bits: Id, of_row: Id) -> Result<Id> {
    let shape = e.ty(bits).shape.clone();
    let each = e.op(Op::Expand { shape }, &[of_row])?;
    e.op(Op::And, &[bits, each])
}

/// The bits `1{s ≥ t}` along the last axis, blurred below `2^drop` units under the thresholds.
fn passed(e: &mut Emit, s: Id, thresholds: &[f64], drop: u8) -> Result<Id> {
    let (bits, scale, bound) = e.ring(s)?;
    let lower = if drop > 0 { 1i64 << drop } else { 0 };
    let limits = thresholds.iter().map(|&t| Ok(fixed(libm::ceil(t), 0)? - lower)).collect::<Result<Vec<_>>>()?;
    let limits = constant(e, &limits, bits, scale)?;
    // Neither is below 0, but for what noise leaves of a short row.
    let difference = e.guarded(Op::Sub, &[s, limits], bound)?;
    let below = e.sign(difference, drop)?;
    e.op(Op::Not, &[below])
}

/// `m (1 + c1 r + c2 r² + c3 r³)` at scale `2 · FINE + COEFFICIENT`, as a sum.
fn cubic(e: &mut Emit, m: Id, r: Id, [c1, c2, c3]: [f64; 3]) -> Result<Id> {
    let scale = 2 * FINE + COEFFICIENT;
    let first = e.product(m, r, FINE, FINE + 2)?;
    let square = e.product(r, r, FINE, FINE + 1)?;
    let even = e.guarded(Op::MulInt { k: fixed(c2, COEFFICIENT)? }, &[m], FINE + COEFFICIENT + 1)?;
    let odd = e.guarded(Op::MulInt { k: fixed(c3, COEFFICIENT)? }, &[first], FINE + COEFFICIENT + 1)?;
    let inner = e.guarded(Op::Add, &[even, odd], FINE + COEFFICIENT + 1)?;
    let joint = Op::SetScale { scale };
    let last = e.guarded(Op::Mul, &[inner, square], ROOM)?;
    let last = e.op(joint.clone(), &[last])?;
    let linear = e.guarded(Op::MulInt { k: fixed(c1, FINE + COEFFICIENT)? }, &[first], ROOM)?;
    let linear = e.op(joint, &[linear])?;
    let one = e.guarded(Op::Upscale { by: FINE + COEFFICIENT }, &[m], ROOM)?;
    let sum = e.guarded(Op::Add, &[last, linear], ROOM)?;
    e.guarded(Op::Add, &[sum, one], ROOM)
}

fn too_long() -> Diagnostic {
    Diagnostic::input("E0508", "the rows of a norm are too long for the ring, or its eps is too large")
        .note(
            "expected rows shorter than 2^50 units, which are 2^30 at 20 fraction bits, and an eps below their square",
        )
        .note("use fewer fraction bits")
}

fn last_axis(e: &Emit, x: Id) -> u8 {
    (e.ty(x).shape.len() - 1) as u8
}

fn row_length(e: &Emit, x: Id) -> Result<u64> {
    let n = e.ty(x).shape.last().and_then(|d| d.as_constant()).and_then(|n| u64::try_from(n).ok());
    n.filter(|&n| n > 0).ok_or_else(|| Diagnostic::unsupported("E0509", "a norm over an axis of unknown length"))
}

/// `⌈log2 n⌉`.
fn log2_ceil(n: u64) -> u8 {
    n.checked_next_power_of_two().map_or(64, |p| p.trailing_zeros() as u8)
}
