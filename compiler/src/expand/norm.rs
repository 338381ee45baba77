//! RMSNorm and LayerNorm of rows of any length: one row statistic, its reciprocal square root, one product an element.
//!
//! The statistic is `S = Σ x² + n·eps` in units of the operand's integers, `n` the number of columns, and the result
//! `x · √n / √S`. LayerNorm takes `n·x − Σ x` in place of `x`, which is exact, and `n³` in place of `n`; where that is finer by
//! a byte than `x` itself, and `eps` longer by far than what is lost, the byte is cut off before the last product.
//!
//! **Statistics.** `S` of long rows does not fit the ring. `y = x / 2^k` from shares that are cut, in a ring of `64 − k` bits
//! without a message, holds rows up to `2^(31 + k/2)` units. Each of a secret's uniform components cuts off
//! half a unit on average with a variance of 1/12: of three, `Σ c² + 3 Σ c + 2n` of the cut values `c` is `Σ y²` on average,
//! off by one part in `‖y‖`.
//!
//! Two parties alone take a row's product with itself, and with its factor, as one of matrices, whose ciphertexts are many
//! elements': the first one's error, of some ten units, is less than what cut elements lose, and nothing beside a long `n·eps`;
//! the second one's is divided.
//!
//! **Steps.** `1/√S` is looked up for every power of 16, as [`steps`](super::steps) says, from the finest statistic that has
//! room for the step. With integers `a` and `b` for which `b·n = a²·2^z`, `√n / √S = a 2^(z/2) / √(b·S)`, so that all factors
//! are small integers and powers of two.
//!
//! **Levels.** Comparisons that choose a step are made of few statistics: of the coarsest, whose noise takes nothing of steps
//! so wide, and below where that has hardly any bits, of a finer one. Whether a row is longer than that holds is one comparison more,
//! which is joined to all of the finer one's, for one round.
//!
//! Errors relative to the row's maximum entry: 2e-5 below `2^42` units, and 6e-5 within a
//! factor of 16 of the longest row that is allowed; 2e-3 up to `2^46`; 5e-2 up to `2^50`. In `2pc`, whose factors are shorter,
//! 2e-3 for the longest row, 7e-4 within a factor of 16 of it, and 2e-4 below. Rounds: 1 for the statistic, the
//! comparisons of as many bits as lie between `n·eps` and the longest row, 1 for what they choose, 2 an element; one more
//! where there are levels.

use super::steps::{self, ROOT, Step, columns, concat, last_axis};
use super::{Emit, fixed};
use ombra_ir::module::Id;
use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeMap;

/// Bits that statistics may have cut off.
const CUTS: [u8; 6] = [0, 8, 16, 24, 32, 40];
/// Logarithm of the statistic that the first one holds; others hold as much more as is cut off.
const FULL: f64 = 62.0;
/// Logarithm of a cut statistic, in its own units, from which on it tells steps apart.
const RESOLVED: f64 = 10.0;
/// Bits of the factor of the longest row, where there is room: rows as long as that are hardly seen. And where a longer
/// product costs more.
const LEAST_FACTOR: f64 = 15.0;
const SHORT_FACTOR: f64 = 8.0;
/// Bits of a product of an element and its row's factor.
const ROOM: u8 = 61;
/// Bits that are cut off a centred row before the last product.
const FINER: u8 = 8;
/// The least `n·eps`, in units of the operand, beside which what a product of a row with itself is off by is nothing where no
/// element is cut.
const BY_ROWS: f64 = (1 << 20) as f64;
/// How many times the begin of a step its end is at least.
const WORTHWHILE: f64 = 3.0;
/// How many times longer than what is cut off a row is that has the length of `eps` alone. And where a longer product costs
/// more: other rows are longer than that.
const LONGER: f64 = 1024.0;
const SHORT_LONGER: f64 = 128.0;

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
    normalise(e, x, columns, eps, (form, false), bound)
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
    normalise(e, centred, columns, eps, (Form { length, ..form }, true), bound)
}

/// A level: a statistic that rows are compared by, and the logarithm of where it begins, both in units of the operand.
struct Level {
    cut: u8,
    from: f64,
}

/// The levels of rows whose statistics have logarithms from `least` to `most`, shortest rows first.
fn levels(least: f64, most: f64) -> Result<Vec<Level>> {
    let holds = |cut: u8, most: f64| most <= FULL + f64::from(cut);
    let mut cut = CUTS.into_iter().find(|&cut| holds(cut, most)).ok_or_else(too_long)?;
    let mut levels = Vec::new();
    loop {
        let resolved = 2.0 * f64::from(cut) + RESOLVED;
        let below = CUTS.into_iter().take_while(|&below| below < cut);
        // Rows a power of two shorter than those that the level below holds belong to this one.
        let below = below.filter(|_| least < resolved).find(|&below| holds(below, resolved + 1.0));
        let from = below.map_or(least, |below| FULL - 1.0 + f64::from(below));
        levels.push(Level { cut, from });
        match below {
            Some(below) => cut = below,
            None => break,
        }
    }
    levels.reverse();
    Ok(levels)
}

/// Integers `a` and `b` and a power `z` with `b·n = a²·2^z`, or nearly so.
fn square_of(n: u64) -> (i64, i64, i32) {
    const EXACT: f64 = 1e-7;
    const LARGEST: f64 = 1024.0;
    let mut best = (1, 1, 0, f64::INFINITY);
    for (b, z) in (1..=512i64).flat_map(|b| (0..=64).map(move |z| (b, z))) {
        let square = libm::ldexp(n as f64 * b as f64, -z);
        let a = libm::round(libm::sqrt(square));
        let error = libm::fabs(a * a / square - 1.0);
        if (1.0..=LARGEST).contains(&a) && error < best.3 && best.3 > EXACT {
            best = (a as i64, b, z, error);
        }
    }
    let (mut a, b, mut z, _) = best;
    while a % 2 == 0 {
        (a, z) = (a / 2, z + 2);
    }
    (a, b, z)
}

/// A step of the statistic: the bits that are cut off for it, its shift in units of that statistic, and where it ends in
/// units of the operand.
struct RowStep {
    cut: u8,
    q: i32,
    end: f64,
}

/// The steps of statistics from `least` to `most`, each from the finest one that holds it, where `b` times the statistic is
/// looked up at shifts as odd or even as `like`.
fn steps_of([least, most]: [f64; 2], b: i64, like: i32) -> Result<Vec<RowStep>> {
    let mut found: Vec<RowStep> = Vec::new();
    let mut at = least;
    loop {
        let step = |cut: u8| {
            let (own, bits) = (libm::ldexp(b as f64, -2 * i32::from(cut)), 64 - i32::from(cut));
            let q = ROOT.shift(at * own, like, bits);
            // A statistic fills a quarter of its ring at most, and the ring holds what is looked up.
            let end = ROOT.end(q).min(libm::ldexp(b as f64, bits - 2)) / own;
            (end >= most || end >= WORTHWHILE * at).then_some(RowStep { cut, q, end })
        };
        let step = CUTS.into_iter().find_map(step).ok_or_else(too_long)?;
        let end = step.end;
        found.push(step);
        if end >= most {
            return Ok(found);
        }
        at = ROOT.blurred(end);
    }
}

/// `x · √count / √(Σ x² + eps)` for rows shorter than `2^length`, eps in squared units of `x`.
fn normalise(e: &mut Emit, x: Id, count: u64, eps: f64, (form, is_centred): (Form, bool), bound: u8) -> Result<Id> {
    let whole_eps = libm::round(eps);
    let least = libm::log2(whole_eps.max(1.0));
    let most = libm::log2(libm::exp2(2.0 * f64::from(form.length)) + whole_eps).max(least + 1.0);
    let (a, b, z) = square_of(count);
    // x · gain / √S has its point so far to the left that the longest row's factor has some bits, and no further than any
    // row's maximum entry allows. Divisions by whole bytes cost the same.
    let point = f64::from(form.scale) + libm::log2(count as f64) / 2.0;
    let short = e.has_ciphertexts();
    let (least_factor, longer) = if short { (SHORT_FACTOR, SHORT_LONGER) } else { (LEAST_FACTOR, LONGER) };
    let wanted =
        |cut: u8| libm::ceil((least_factor + libm::log2(a as f64) + most / 2.0 - f64::from(cut) - point) / 8.0) * 8.0;
    let room = |cut: u8| f64::from(ROOM - cut) - 0.5 - point;
    let byte = libm::exp2(FINER.into());
    let is_finer = is_centred && count as f64 >= byte && wanted(FINER).max(8.0) <= room(FINER);
    let cut = if is_finer && eps >= count as f64 * (longer * byte) * (longer * byte) { FINER } else { 0 };
    let by = libm::floor(wanted(cut).max(8.0).min(room(cut))) as i32;
    let by = u8::try_from(by).ok().filter(|&by| by > 0).ok_or_else(too_long)?;

    let mut statistics = Statistics { x, count, eps, most, found: BTreeMap::new() };
    let all = steps_of([least, most].map(libm::exp2), b, z)?;
    let (mut looked_up, mut worth) = (Vec::new(), Vec::new());
    for step in &all {
        let value = statistics.of(e, step.cut)?;
        let (bits, _, _) = e.ring(value)?;
        let value = if b == 1 { value } else { e.guarded(Op::MulInt { k: b }, &[value], bits - 1)? };
        looked_up.push(Step { value, q: step.q });
        worth.push(i32::from(form.scale + by + cut) - i32::from(step.cut) + (z - step.q) / 2);
    }
    let entries = steps::entries(e, &ROOT, &looked_up, a, &worth)?;
    let thresholds: Vec<f64> = all.iter().take(all.len() - 1).map(|step| libm::log2(step.end)).collect();
    let passed = passed(e, &mut statistics, &levels(least, most)?, &thresholds)?;
    let factor = steps::chosen(e, entries, passed, all.len())?;
    let (x, factor) = if cut > 0 {
        let fine = e.op(Op::SetScale { scale: cut }, &[x])?;
        let x = e.guarded(Op::Cut { by: cut }, &[fine], form.length)?;
        // Half of what components lose at most.
        (e.guarded(Op::AddInt { k: 1 }, &[x], form.length)?, e.narrow(factor, 64 - cut)?)
    } else {
        (x, factor)
    };
    let product = if short {
        let (factor, row) = (matrix_of_row(e, factor)?, matrix_of_row(e, x)?);
        let product = e.guarded(Op::MatMul { trans_b: false }, &[factor, row], ROOM - cut)?;
        row_of_matrix(e, product)?
    } else {
        e.guarded(Op::Mul, &[x, factor], ROOM - cut)?
    };
    let product = e.op(Op::SetScale { scale: form.scale + by }, &[product])?;
    e.guarded(Op::Truncate { by, bits: 64 }, &[product], bound)
}

/// Every row as a matrix of one row.
fn matrix_of_row(e: &mut Emit, x: Id) -> Result<Id> {
    let shape = e.ty(x).shape.clone();
    let (last, rows) = shape.split_last().ok_or_else(too_long)?;
    e.op(Op::Reshape { shape: [rows, &[1.into(), last.clone()]].concat() }, &[x])
}

/// The only row of every matrix.
fn row_of_matrix(e: &mut Emit, x: Id) -> Result<Id> {
    let shape = e.ty(x).shape.clone();
    let (last, rows) = shape.split_last().ok_or_else(too_long)?;
    let (_, rows) = rows.split_last().ok_or_else(too_long)?;
    e.op(Op::Reshape { shape: [rows, std::slice::from_ref(last)].concat() }, &[x])
}

/// The bits of all thresholds, given as logarithms in units of the operand, along the last axis; none of none.
fn passed(e: &mut Emit, statistics: &mut Statistics, levels: &[Level], thresholds: &[f64]) -> Result<Option<Id>> {
    // Whether no level above has begun, from the highest down.
    let mut none_above: Option<Id> = None;
    let mut parts = Vec::new();
    let mut rest = thresholds;
    for (j, level) in levels.iter().enumerate().rev() {
        let from = rest.partition_point(|&t| j > 0 && t <= level.from);
        let (lower, own) = rest.split_at(from);
        rest = lower;
        let begin = (j > 0).then_some(level.from);
        let limits: Vec<f64> = begin.iter().chain(own).map(|t| libm::exp2(t - 2.0 * f64::from(level.cut))).collect();
        let Some(&first) = limits.first() else { continue };
        let statistic = statistics.of(e, level.cut)?;
        let below = steps::below(e, statistic, &limits, steps::dropped(first, ROOT.blur))?;
        if !own.is_empty() {
            let mut below = columns(e, below, limits.len() - own.len(), own.len())?;
            if let Some(none) = none_above {
                below = kept(e, below, none)?;
            }
            parts.push(e.op(Op::Not, &[below])?);
        }
        if begin.is_some() {
            let not_begun = columns(e, below, 0, 1)?;
            none_above = Some(match none_above {
                None => not_begun,
                Some(none) => e.op(Op::And, &[not_begun, none])?,
            });
        }
    }
    parts.reverse();
    if parts.is_empty() { Ok(None) } else { concat(e, &parts).map(Some) }
}

/// The statistics of an operand's rows, by the bits that are cut off it.
struct Statistics {
    x: Id,
    count: u64,
    eps: f64,
    /// Logarithm of the maximum, in units of the operand.
    most: f64,
    found: BTreeMap<u8, Id>,
}

impl Statistics {
    /// The statistic, shared, at scale 0: of cut elements, what they lack and how it varies put right on average.
    fn of(&mut self, e: &mut Emit, cut: u8) -> Result<Id> {
        if let Some(&found) = self.found.get(&cut) {
            return Ok(found);
        }
        let most = libm::ceil(self.most - 2.0 * f64::from(cut)).min(FULL - f64::from(cut));
        let (axis, bound) = (last_axis(e, self.x), most.max(2.0) as u8);
        let eps = libm::round(self.eps * libm::exp2(-2.0 * f64::from(cut)));
        let by_rows = e.has_ciphertexts() && (cut > 0 || eps >= BY_ROWS);
        let squares = |e: &mut Emit, y: Id| -> Result<Id> {
            let sum = if by_rows {
                let row = matrix_of_row(e, y)?;
                let product = e.guarded(Op::MatMul { trans_b: true }, &[row, row], bound)?;
                row_of_matrix(e, product)?
            } else {
                let squares = e.guarded(Op::Mul, &[y, y], bound)?;
                e.guarded(Op::ReduceSum { axis }, &[squares], bound)?
            };
            e.op(Op::SetScale { scale: 0 }, &[sum])
        };
        let (sum, constant) = if cut == 0 {
            (squares(e, self.x)?, eps)
        } else {
            let fine = e.op(Op::SetScale { scale: cut }, &[self.x])?;
            let short = e.guarded(Op::Cut { by: cut }, &[fine], bound)?;
            let squares = squares(e, short)?;
            let sum = e.guarded(Op::ReduceSum { axis }, &[short], bound)?;
            // Of z, c components leave z − c/2 with a variance of c/12: Σ z² = Σ (y + c/2)² − n·c/12 on average.
            let components = e.module.setting.protocol().components;
            let linear = e.guarded(Op::MulInt { k: components.into() }, &[sum], bound)?;
            let c = f64::from(components);
            let constant = (c * c / 4.0 - c / 12.0) * self.count as f64;
            (e.guarded(Op::Add, &[squares, linear], bound)?, eps + constant)
        };
        let sum = match fixed(constant, 0)? {
            0 => sum,
            k => e.guarded(Op::AddInt { k }, &[sum], bound)?,
        };
        let found = e.guarded(Op::Reshare, &[sum], bound)?;
        self.found.insert(cut, found);
        Ok(found)
    }
}

/// The bits where another one, of the row, is 1.
fn kept(e: &mut Emit, bits: Id, of_row: Id) -> Result<Id> {
    let shape = e.ty(bits).shape.clone();
    let each = e.op(Op::Expand { shape }, &[of_row])?;
    e.op(Op::And, &[bits, each])
}

fn too_long() -> Diagnostic {
    Diagnostic::input("E0508", "the rows of a norm are too long for the ring, or its eps is too large")
        .note(
            "expected rows shorter than 2^50 units, which are 2^30 at 20 fraction bits, and an eps below their square",
        )
        .note("use fewer fraction bits")
}

fn row_length(e: &Emit, x: Id) -> Result<u64> {
    let n = e.ty(x).shape.last().and_then(|d| d.as_constant()).and_then(|n| u64::try_from(n).ok());
    n.filter(|&n| n > 0).ok_or_else(|| Diagnostic::unsupported("E0509", "a norm over an axis of unknown length"))
}

/// `⌈log2 n⌉`.
fn log2_ceil(n: u64) -> u8 {
    n.checked_next_power_of_two().map_or(64, |p| p.trailing_zeros() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of columns of real models exactly, others nearly.
    #[test]
    fn roots_of_row_lengths_are_small_integers() {
        for n in [1, 2, 3, 64, 576, 640, 768, 896, 1024, 1152, 1536, 2048, 3072, 4096, 5120, 8192] {
            let (a, b, z) = square_of(n);
            assert!(a <= 63 && b <= 63, "{n}: {a}, {b}");
            assert_eq!(b as f64 * n as f64, libm::ldexp((a * a) as f64, z), "{n}");
        }
        for n in [7, 101, 977, 65_537, 1_000_003] {
            let (a, b, z) = square_of(n);
            let error = libm::ldexp((a * a) as f64, z) / (b as f64 * n as f64) - 1.0;
            assert!(error.abs() < 1e-5, "{n}: {a}, {b}: {error:.1e}");
        }
    }
}
