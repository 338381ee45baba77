//! What is proven of a value, and how it moves.

use super::Longest;
use super::spread::{Spread, groups, size_of};
use crate::graph::ValueId;
use crate::weights::statics::Statics;
use ombra_ir::norms::Measure;
use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::{Dim, Result};
use std::rc::Rc;

/// Elements of a static value that are told apart; larger ones are known by channel.
const TOLD_APART: usize = 1 << 16;

/// Minimum and maximum value.
pub type Ends = (f64, f64);

/// Nothing is known.
pub const TOP: Ends = (f64::NEG_INFINITY, f64::INFINITY);

/// Rounding of nonlinear functions and norms in fixed point, relative to their results.
pub const LOOSE: f64 = 1.0 + 1.0 / 128.0;

/// 2-norms along one axis, for each of equal runs of consecutive elements: the heads of a row, for example.
#[derive(Clone, Debug)]
pub struct Lengths {
    /// The axis.
    pub axis: usize,
    /// Bounds. The size of the spread along the axis is the number of runs.
    pub runs: Spread<f64>,
}

/// Rows are `offset + gamma ∘ u` for a row `u` of 2-norm at most `radius`: what a norm leaves.
#[derive(Debug)]
pub struct Unit {
    /// The norm that makes `u`.
    pub root: ValueId,
    /// Bound of the 2-norm of `u`.
    pub radius: f64,
    /// Factors.
    pub gamma: Rc<Vec<f64>>,
    /// Summands.
    pub offset: Rc<Vec<f64>>,
}

/// Elements are at most `|u · column|` in size, for the columns of `diag(gamma) · weight` and the `u` of a [`Unit`].
#[derive(Debug)]
pub struct Linear {
    /// The row.
    pub unit: Rc<Unit>,
    /// The static right side of the product.
    pub weight: ValueId,
}

/// What is proven of a value, whatever the inputs are.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Minimum and maximum elements.
    pub range: Spread<Ends>,
    /// 2-norms, along one axis.
    pub lengths: Option<Lengths>,
    /// Elements along the last axis are not negative and add up to 1 at most.
    pub convex: bool,
    /// It is a norm's result.
    pub unit: Option<Rc<Unit>>,
    /// It is bounded by a linear map of a norm's result.
    pub linear: Option<Rc<Linear>>,
    /// It is a part of a cache that was not written yet. What continues the cache is what will be read.
    pub unwritten: bool,
}

impl Proof {
    /// A range and no more.
    pub fn of(range: Spread<Ends>) -> Self {
        Proof { range, lengths: None, convex: false, unit: None, linear: None, unwritten: false }
    }

    /// All elements between two numbers.
    pub fn between(rank: usize, ends: Ends) -> Self {
        Proof::of(Spread::one(rank, ends))
    }

    /// Minimum and maximum of all elements.
    pub fn ends(&self) -> Ends {
        self.range.all(join).unwrap_or((0.0, 0.0))
    }

    /// Maximum size of all elements.
    pub fn size(&self) -> f64 {
        size(self.ends())
    }

    /// Bounds of the 2-norms of `runs` equal parts of an axis of `n` elements.
    pub fn lengths_on(&self, axis: usize, n: usize, runs: usize) -> Option<Spread<f64>> {
        let sizes = self.range.map(size);
        let of_range = match *sizes.shape().get(axis)? {
            1 => {
                let each = libm::sqrt(n as f64 / runs as f64);
                sizes.map(|x| x * each).repeat(axis, runs)
            }
            whole => parts(&sizes.map(|x| x * x), axis, whole / runs, |a, b| a + b)?.map(libm::sqrt),
        };
        let Some(known) = self.lengths.as_ref().filter(|l| l.axis == axis) else { return Some(of_range) };
        let have = known.runs.shape()[axis];
        let known = if have == runs {
            known.runs.clone()
        } else if have.is_multiple_of(runs) {
            parts(&known.runs.map(|x| x * x), axis, have / runs, |a, b| a + b)?.map(libm::sqrt)
        } else if runs.is_multiple_of(have) {
            known.runs.repeat(axis, runs / have)
        } else {
            let total = known.runs.map(|x| x * x).fold(axis, |a, b| a + b);
            total.map(libm::sqrt).repeat(axis, runs)
        };
        Some(known.zip(&of_range, f64::min))
    }

    /// Takes rows along an axis to be no longer than `length`.
    pub fn shorten(&mut self, shape: &[Dim], axis: usize, length: f64) {
        let Some(n) = shape.get(axis).and_then(size_of) else { return };
        let known = self.lengths_on(axis, n, 1).and_then(|l| l.all(f64::max));
        if known.is_none_or(|known| known > length) {
            self.lengths = Some(Lengths { axis, runs: Spread::one(shape.len(), length) });
        }
    }

    /// The same with what one knowledge says of the other: no element is longer than its row.
    pub fn rescaled(mut self, shape: &[Dim]) -> Self {
        self.range = self.range.map(known);
        if self.unwritten {
            return self;
        }
        let axis = match &self.lengths {
            Some(l) => l.axis,
            None => shape.len().wrapping_sub(1),
        };
        let Some(n) = shape.get(axis).and_then(size_of).filter(|&n| n > 0) else {
            self.lengths = None;
            return self;
        };
        let runs = self.lengths.as_ref().and_then(|l| l.runs.shape().get(axis).copied()).unwrap_or(1);
        if runs == 0 || !n.is_multiple_of(runs) {
            self.lengths = None;
            return self;
        }
        let Some(lengths) = self.lengths_on(axis, n, runs) else { return self };
        let each = match self.range.shape().get(axis) {
            Some(1) => lengths.fold(axis, f64::max),
            _ => lengths.repeat(axis, n / runs),
        };
        self.range = self.range.zip(&each, |(low, high), l| (low.max(-l), high.min(l)));
        self.lengths = Some(Lengths { axis, runs: lengths });
        self
    }

    /// The same elements, another op along the way: nothing is known but the range.
    fn moved(&self, range: Spread<Ends>) -> Self {
        Proof { unwritten: self.unwritten, ..Proof::of(range) }
    }

    /// What is true of rows along the last axis, wherever they go.
    fn with_rows_of(mut self, other: &Proof) -> Self {
        self.convex = other.convex;
        self.unit = other.unit.clone();
        self
    }

    /// In another shape.
    pub fn reshape(&self, from: &[Dim], to: &[Dim]) -> Option<Self> {
        let mut new = self.moved(self.range.reshape(from, to, join)?);
        if from.last() == to.last() && !from.is_empty() {
            // In the same order.
            new = new.with_rows_of(self);
            new.linear = self.linear.clone();
        }
        new.lengths = self.lengths.as_ref().and_then(|l| reshape_lengths(l, from, to));
        Some(new)
    }

    /// Axes in another order.
    pub fn transpose(&self, perm: &[usize]) -> Option<Self> {
        let mut new = self.moved(self.range.transpose(perm)?);
        if perm.last().is_some_and(|&p| p + 1 == perm.len()) {
            new = new.with_rows_of(self);
        }
        new.lengths = self.lengths.as_ref().and_then(|l| {
            Some(Lengths { axis: perm.iter().position(|&p| p == l.axis)?, runs: l.runs.transpose(perm)? })
        });
        Some(new)
    }

    /// A part of one axis.
    pub fn slice(&self, shape: &[Dim], axis: usize, start: &Dim, len: &Dim, step: i64) -> Option<Self> {
        let place = size_of(start).zip(size_of(len));
        let cut = |spread: &Spread<Ends>| match place {
            Some((start, len)) => spread.slice(axis, start, len, step),
            None => Some(spread.fold(axis, join)),
        };
        let mut new = self.moved(cut(&self.range)?);
        if axis + 1 != shape.len() {
            new = new.with_rows_of(self);
        } else {
            new.convex = self.convex;
        }
        new.lengths = self.lengths.as_ref().and_then(|l| {
            if l.axis != axis {
                let runs = match place {
                    Some((start, len)) => l.runs.slice(axis, start, len, step)?,
                    None => l.runs.fold(axis, f64::max),
                };
                return Some(Lengths { axis: l.axis, runs });
            }
            let (start, len) = place?;
            let n = size_of(shape.get(axis)?)?;
            let each = n / l.runs.shape()[axis];
            if step == 1 && each > 0 && start % each == 0 && len % each == 0 {
                return Some(Lengths { axis, runs: l.runs.slice(axis, start / each, len / each, 1)? });
            }
            let total = l.runs.map(|x| x * x).fold(axis, |a, b| a + b).map(libm::sqrt);
            Some(Lengths { axis, runs: total })
        });
        Some(new)
    }

    /// Broadcast to a shape.
    pub fn expand(&self, from: &[Dim], to: &[Dim]) -> Option<Self> {
        let missing = to.len().checked_sub(from.len())?;
        let pad = |shape: &[usize]| [vec![1; missing], shape.to_vec()].concat();
        let mut new = self.moved(Spread::new(pad(self.range.shape()), self.range.data().to_vec())?);
        let same = |axis: usize| from.get(axis) == to.get(axis + missing);
        if from.len().checked_sub(1).is_some_and(same) {
            new = new.with_rows_of(self);
        }
        new.lengths = self.lengths.as_ref().filter(|l| same(l.axis)).and_then(|l| {
            let runs = Spread::new(pad(l.runs.shape()), l.runs.data().to_vec())?;
            Some(Lengths { axis: l.axis + missing, runs })
        });
        Some(new)
    }

    /// Values side by side along an axis; what was not written says nothing.
    pub fn concat(parts: &[(&Proof, &[Dim])], axis: usize) -> Option<Self> {
        let written: Vec<&(&Proof, &[Dim])> = parts.iter().filter(|(p, _)| !p.unwritten).collect();
        let [(first, _), ..] = written[..] else { return parts.first().map(|(p, _)| (*p).clone()) };
        let sizes: Option<Vec<usize>> = parts.iter().map(|(_, shape)| size_of(shape.get(axis)?)).collect();
        let whole = |spread: Spread<Ends>, n: usize| spread.widen(axis, n);
        let range = match &sizes {
            Some(sizes) if written.len() == parts.len() => {
                let each = parts.iter().zip(sizes).map(|((p, _), &n)| whole(p.range.clone(), n)).collect::<Vec<_>>();
                Spread::concat(&each, axis)?
            }
            _ => written.iter().map(|(p, _)| p.range.fold(axis, join)).reduce(|a, b| a.zip(&b, join))?,
        };
        let mut new = Proof::of(range);
        new.convex = false;
        let Some(along) = first.lengths.as_ref().map(|l| l.axis) else { return Some(new) };
        let runs = |p: &Proof| p.lengths.as_ref().filter(|l| l.axis == along).map(|l| l.runs.clone());
        let all: Option<Vec<Spread<f64>>> = written.iter().map(|(p, _)| runs(p)).collect();
        new.lengths = all.and_then(|all| {
            if along != axis {
                // As many runs in all of them.
                let same = all.iter().all(|r| r.shape()[along] == all[0].shape()[along]);
                let joined = all.into_iter().map(|r| r.fold(axis, f64::max)).reduce(|a, b| a.zip(&b, f64::max));
                return joined.filter(|_| same).map(|runs| Lengths { axis: along, runs });
            }
            if written.len() < parts.len() {
                return None;
            }
            let squares = all.iter().map(|r| r.map(|x| x * x).fold(axis, |a, b| a + b));
            let total = squares.reduce(|a, b| a.zip(&b, |x, y| x + y))?;
            Some(Lengths { axis, runs: total.map(libm::sqrt) })
        });
        Some(new)
    }

    /// Rows along `axis` looked up by an index of `rank` axes: any of them.
    pub fn gather(&self, axis: usize, rank: usize) -> Option<Self> {
        let put = |shape: &[usize]| {
            let (before, rest) = shape.split_at(axis);
            [before, &vec![1; rank], rest.get(1..).unwrap_or_default()].concat()
        };
        let range = self.range.fold(axis, join);
        let mut new = self.moved(Spread::new(put(range.shape()), range.data().to_vec())?);
        new.lengths = self.lengths.as_ref().filter(|l| l.axis != axis).and_then(|l| {
            let runs = l.runs.fold(axis, f64::max);
            let at = if l.axis > axis { l.axis + rank - 1 } else { l.axis };
            Some(Lengths { axis: at, runs: Spread::new(put(runs.shape()), runs.data().to_vec())? })
        });
        Some(new)
    }
}

/// `n / each` numbers along an axis of `n`, each joined from `each` neighbours.
fn parts(spread: &Spread<f64>, axis: usize, each: usize, join: impl Fn(f64, f64) -> f64) -> Option<Spread<f64>> {
    let shape = spread.shape();
    let n = *shape.get(axis)?;
    if each == 0 || !n.is_multiple_of(each) {
        return None;
    }
    // The axis as two: runs, and places in a run.
    let split = [&shape[..axis], &[n / each, each], &shape[axis + 1..]].concat();
    let folded = Spread::new(split, spread.data().to_vec())?.fold(axis + 1, join);
    Spread::new([&shape[..axis], &[n / each], &shape[axis + 1..]].concat(), folded.data().to_vec())
}

fn reshape_lengths(l: &Lengths, from: &[Dim], to: &[Dim]) -> Option<Lengths> {
    let runs = l.runs.shape()[l.axis];
    for (old, new) in groups(from, to)? {
        if !old.contains(&l.axis) {
            continue;
        }
        let mut numbers: Vec<Dim> = from.to_vec();
        let mut wanted: Vec<Dim> = to.to_vec();
        let count = |n: usize| Dim::from_usize(n).ok();
        if old.len() == 1 && new.len() == 1 {
            numbers[l.axis] = count(runs)?;
            wanted[new.start] = count(runs)?;
            return Some(Lengths { axis: new.start, runs: l.runs.reshape(&numbers, &wanted, f64::max)? });
        }
        // Runs are consecutive elements where the axis is the innermost of sizes that are numbers.
        if l.axis + 1 != old.end || old.clone().any(|a| size_of(&from[a]).is_none()) {
            return None;
        }
        let each = size_of(&from[l.axis])? / runs;
        let last = size_of(to.get(new.end.checked_sub(1)?)?)?;
        let mut spread = l.runs.clone();
        for axis in old.clone() {
            if axis != l.axis {
                spread = spread.widen(axis, size_of(&from[axis])?);
            }
        }
        let (times, left) = if each > 0 && last.is_multiple_of(each) {
            (1, last / each)
        } else if last > 0 && each.is_multiple_of(last) {
            (each / last, 1)
        } else {
            return None;
        };
        spread = spread.repeat(l.axis, times);
        numbers[l.axis] = count(runs * times)?;
        wanted[new.end - 1] = count(left)?;
        return Some(Lengths { axis: new.end - 1, runs: spread.reshape(&numbers, &wanted, f64::max)? });
    }
    None
}

/// Both ranges.
pub fn join(a: Ends, b: Ends) -> Ends {
    (a.0.min(b.0), a.1.max(b.1))
}

/// Maximum size of what lies between two numbers.
pub fn size(ends: Ends) -> f64 {
    libm::fabs(ends.0).max(libm::fabs(ends.1))
}

/// What came of no numbers, such as ∞ − ∞, is unknown.
fn known((low, high): Ends) -> Ends {
    (if low.is_nan() { f64::NEG_INFINITY } else { low }, if high.is_nan() { f64::INFINITY } else { high })
}

/// Ends of a product.
pub fn times(a: Ends, b: Ends) -> Ends {
    // 0 times what is unbounded is 0: elements are finite.
    let p = |x: f64, y: f64| if x == 0.0 || y == 0.0 { 0.0 } else { x * y };
    let all = [p(a.0, b.0), p(a.0, b.1), p(a.1, b.0), p(a.1, b.1)];
    all.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// Ends of the inverse of what is no closer to zero than `away`.
pub fn inverse((low, high): Ends, away: f64) -> Ends {
    if low > 0.0 || high < 0.0 {
        (1.0 / high, 1.0 / low)
    } else if away > 0.0 {
        (-1.0 / away, 1.0 / away)
    } else {
        TOP
    }
}

/// Minimum and maximum elements of a tensor.
pub fn ends_of(tensor: &Tensor) -> Ends {
    let fold = |values: &mut dyn Iterator<Item = f64>| values.map(|x| (x, x)).reduce(join).unwrap_or((0.0, 0.0));
    match tensor.data() {
        Data::F32(v) => fold(&mut v.iter().map(|&x| f64::from(x))),
        Data::I64(v) => fold(&mut v.iter().map(|&x| x as f64)),
        Data::Bool(v) => fold(&mut v.iter().map(|&x| f64::from(u8::from(x)))),
    }
}

/// What was seen of a static value.
#[derive(Clone, Debug)]
pub struct Look {
    /// Minimum and maximum element.
    pub ends: Ends,
    /// Maximum norms of rows and columns, of floats.
    pub norms: Option<Longest>,
    range: Spread<Ends>,
    lengths: Option<Lengths>,
}

impl Look {
    /// Looks at a value: by element, or by channel where there are many. Rows along the last axis have their exact lengths.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn at(statics: &Statics, v: ValueId) -> Result<Look> {
        let node = statics.graph.node(v)?;
        let sizes: Option<Vec<usize>> = node.shape.iter().map(size_of).collect();
        let shape = sizes.filter(|s| node.dtype == DType::F32 && s.iter().product::<usize>() > TOLD_APART);
        let Some(shape) = shape else { return Look::of(&statics.value(v)?) };
        let n = shape.last().copied().unwrap_or(1);
        let mut measure = Measure::new(&shape, None)?;
        let mut ends = vec![(f32::INFINITY, f32::NEG_INFINITY); n];
        let mut longest = 0f64;
        statics.floats(v, &mut |values| {
            let (length, ()) = rayon::join(|| channels(values, &mut ends), || measure.take(values));
            longest = longest.max(length);
            Ok(())
        })?;
        let ends: Vec<Ends> = ends.into_iter().map(|(low, high)| (f64::from(low), f64::from(high))).collect();
        Ok(Look {
            ends: ends.iter().copied().reduce(join).unwrap_or((0.0, 0.0)),
            norms: Some(measure.longest()),
            range: Spread::of_rows(shape.len(), ends),
            lengths: Some(Lengths { axis: shape.len() - 1, runs: Spread::one(shape.len(), longest) }),
        })
    }

    /// Looks at the elements of a tensor of few.
    fn of(tensor: &Tensor) -> Result<Look> {
        let (rank, ends) = (tensor.rank(), ends_of(tensor));
        let mut look = Look { ends, norms: None, range: Spread::one(rank, ends), lengths: None };
        let Data::F32(values) = tensor.data() else { return Ok(look) };
        let mut measure = Measure::new(tensor.shape(), None)?;
        measure.take(values);
        look.norms = Some(measure.longest());
        if let Some(&n) = tensor.shape().last().filter(|_| !values.is_empty()) {
            let mut shape = tensor.shape().to_vec();
            let each = values.iter().map(|&x| (f64::from(x), f64::from(x))).collect();
            look.range = Spread::new(shape.clone(), each).unwrap_or(look.range);
            shape[rank - 1] = 1;
            let runs = Spread::new(shape, values.chunks_exact(n).map(row_length).collect());
            look.lengths = runs.map(|runs| Lengths { axis: rank - 1, runs });
        }
        Ok(look)
    }

    /// What it proves.
    pub fn proof(&self) -> Proof {
        Proof { lengths: self.lengths.clone(), ..Proof::of(self.range.clone()) }
    }
}

/// Widens the ends of channels by those of some rows; the length of the longest of these.
fn channels(values: &[f32], ends: &mut [(f32, f32)]) -> f64 {
    let mut longest = 0f64;
    for row in values.chunks_exact(ends.len().max(1)) {
        for ((low, high), &x) in ends.iter_mut().zip(row) {
            *low = if x < *low { x } else { *low };
            *high = if x > *high { x } else { *high };
        }
        longest = longest.max(row_length(row));
    }
    longest
}

fn row_length(row: &[f32]) -> f64 {
    libm::sqrt(row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>())
}

/// Ends with room outwards: relative to them, and beside that.
pub fn loosened((low, high): Ends, beside: f64) -> Ends {
    let room = |x: f64| if x.is_finite() { libm::fabs(x) * (LOOSE - 1.0) + beside } else { 0.0 };
    (low - room(low), high + room(high))
}

/// Ends of a power with a constant exponent.
pub fn power((a, b): Ends, p: f64) -> Ends {
    if a >= 0.0 {
        let (x, y) = (libm::pow(a, p), libm::pow(b, p));
        return (x.min(y) / LOOSE, x.max(y) * LOOSE);
    }
    if p == 2.0 {
        let least = if b >= 0.0 { 0.0 } else { b * b };
        return (least, size((a, b)) * size((a, b)));
    }
    if p > 0.0 && p == libm::floor(p) {
        let most = libm::pow(size((a, b)), p);
        return (-most, most);
    }
    TOP
}
