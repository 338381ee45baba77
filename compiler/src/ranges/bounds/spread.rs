//! Numbers for the elements of a value, where many elements share one.
//!
//! A bound is known for every channel of a row, or for every head, and never for every token: tokens are not known when
//! a model is compiled. So an axis of a spread is either whole or of size 1, which stands for all its elements. A value
//! `[batch, seq, 576]` has a spread `[1, 1, 576]`, or `[1, 1, 1]` where channels are not told apart.

use ombra_ir::Dim;

/// Elements beyond which axes are folded into one number.
const MOST: usize = 1 << 22;

/// Numbers for the elements of a value: every axis is whole, or of size 1 for all its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread<T> {
    shape: Vec<usize>,
    data: Vec<T>,
}

/// The size of an axis, where it is a number.
pub fn size_of(dim: &Dim) -> Option<usize> {
    dim.as_constant().and_then(|n| usize::try_from(n).ok())
}

impl<T: Copy> Spread<T> {
    /// One number for all elements.
    pub fn one(rank: usize, value: T) -> Self {
        Spread { shape: vec![1; rank], data: vec![value] }
    }

    /// Numbers in row-major order; `None` where there are not as many as the shape says.
    pub fn new(shape: Vec<usize>, data: Vec<T>) -> Option<Self> {
        (shape.iter().product::<usize>() == data.len()).then_some(Spread { shape, data })
    }

    /// Numbers of the last axis, for a value of `rank` axes.
    pub fn of_rows(rank: usize, data: Vec<T>) -> Self {
        let mut shape = vec![1; rank];
        if let Some(last) = shape.last_mut() {
            *last = data.len();
        }
        Spread { shape, data }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers, in row-major order.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// All numbers joined; `None` if there are none.
    pub fn all(&self, join: impl Fn(T, T) -> T) -> Option<T> {
        self.data.iter().copied().reduce(join)
    }

    /// Every number changed.
    pub fn map<U: Copy>(&self, f: impl Fn(T) -> U) -> Spread<U> {
        Spread { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// Two spreads combined, with broadcasting.
    pub fn zip<U: Copy, V: Copy>(&self, other: &Spread<U>, f: impl Fn(T, U) -> V) -> Spread<V> {
        let rank = self.shape.len().max(other.shape.len());
        let a = padded(&self.shape, rank);
        let b = padded(&other.shape, rank);
        let shape: Vec<usize> = a.iter().zip(&b).map(|(&x, &y)| x.max(y)).collect();
        let (ia, ib) = (places(&a, &shape), places(&b, &shape));
        let data = ia.zip(ib).filter_map(|(i, j)| Some(f(*self.data.get(i)?, *other.data.get(j)?))).collect();
        Spread { shape, data }
    }

    /// An axis joined into one number.
    pub fn fold(&self, axis: usize, join: impl Fn(T, T) -> T) -> Spread<T> {
        let Some(&n) = self.shape.get(axis).filter(|&&n| n > 1) else { return self.clone() };
        let inner: usize = self.shape[axis + 1..].iter().product();
        let mut data = Vec::with_capacity(self.data.len() / n);
        for outer in self.data.chunks_exact(n * inner) {
            for i in 0..inner {
                let column = (0..n).map(|k| outer[k * inner + i]);
                data.extend(column.reduce(&join));
            }
        }
        let mut shape = self.shape.clone();
        shape[axis] = 1;
        Spread { shape, data }
    }

    /// Every number along an axis `times` times.
    pub fn repeat(&self, axis: usize, times: usize) -> Spread<T> {
        let inner: usize = self.shape.get(axis + 1..).map_or(1, |s| s.iter().product());
        let data = self.data.chunks(inner.max(1)).flat_map(|run| std::iter::repeat_n(run, times).flatten().copied());
        let data = data.collect();
        let mut shape = self.shape.clone();
        if let Some(n) = shape.get_mut(axis) {
            *n *= times;
        }
        Spread { shape, data }
    }

    /// An axis brought to its whole size.
    pub fn widen(&self, axis: usize, size: usize) -> Spread<T> {
        if self.shape.get(axis) == Some(&1) { self.repeat(axis, size) } else { self.clone() }
    }

    /// Axes in another order: axis `k` of the result is axis `perm[k]`.
    pub fn transpose(&self, perm: &[usize]) -> Option<Spread<T>> {
        let shape = perm.iter().map(|&p| self.shape.get(p).copied()).collect::<Option<Vec<_>>>()?;
        let strides = strides(&self.shape);
        let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
        let data = walk(&shape, &steps).filter_map(|i| self.data.get(i).copied()).collect();
        Spread::new(shape, data)
    }

    /// Elements `start`, `start + step`, … of a whole axis; an axis of one number stays.
    pub fn slice(&self, axis: usize, start: usize, len: usize, step: i64) -> Option<Spread<T>> {
        let n = *self.shape.get(axis)?;
        if n == 1 {
            return Some(self.clone());
        }
        let at = |k: usize| usize::try_from(i64::try_from(start).ok()? + i64::try_from(k).ok()? * step).ok();
        let inner: usize = self.shape[axis + 1..].iter().product();
        let mut data = Vec::new();
        for outer in self.data.chunks_exact(n * inner) {
            for k in 0..len {
                let at = at(k)?;
                data.extend_from_slice(outer.get(at * inner..(at + 1) * inner)?);
            }
        }
        let mut shape = self.shape.clone();
        shape[axis] = len;
        Spread::new(shape, data)
    }

    /// Spreads one after another along an axis that is whole in all of them.
    pub fn concat(parts: &[Spread<T>], axis: usize) -> Option<Spread<T>> {
        let first = parts.first()?;
        let mut shape = first.shape.clone();
        // Other axes are made alike.
        for part in parts {
            for (size, &n) in shape.iter_mut().zip(&part.shape) {
                *size = (*size).max(n);
            }
        }
        let mut wide = Vec::with_capacity(parts.len());
        for part in parts {
            let mut part = part.clone();
            for (at, &n) in shape.iter().enumerate().filter(|(at, _)| *at != axis) {
                part = part.widen(at, n);
            }
            wide.push(part);
        }
        let outer: usize = shape[..axis].iter().product();
        let mut data = Vec::new();
        for o in 0..outer {
            for part in &wide {
                let run: usize = part.shape[axis..].iter().product();
                data.extend_from_slice(part.data.get(o * run..(o + 1) * run)?);
            }
        }
        shape[axis] = wide.iter().map(|p| p.shape[axis]).sum();
        Spread::new(shape, data)
    }

    /// The spread of the same elements in another shape. Axes whose elements cannot be told apart there are joined.
    pub fn reshape(&self, from: &[Dim], to: &[Dim], join: impl Fn(T, T) -> T) -> Option<Spread<T>> {
        let mut whole = self.clone();
        let mut shape = Vec::with_capacity(to.len());
        for (old, new) in groups(from, to)? {
            if old.len() == 1 && new.len() == 1 {
                shape.push(whole.shape[old.start]);
                continue;
            }
            let sizes: Option<Vec<usize>> = from[old.clone()].iter().map(size_of).collect();
            let new_sizes: Option<Vec<usize>> = to[new.clone()].iter().map(size_of).collect();
            let told = old.clone().any(|a| whole.shape[a] > 1);
            match (sizes, new_sizes) {
                (Some(sizes), Some(new_sizes)) if told && fits(&whole.shape, &old, &sizes) => {
                    for (axis, &n) in old.clone().zip(&sizes) {
                        whole = whole.widen(axis, n);
                    }
                    shape.extend(new_sizes);
                }
                _ => {
                    for axis in old {
                        whole = whole.fold(axis, &join);
                    }
                    shape.extend(std::iter::repeat_n(1, new.len()));
                }
            }
        }
        Spread::new(shape, whole.data)
    }
}

/// Whether axes made whole stay within [`MOST`] elements.
fn fits(shape: &[usize], axes: &std::ops::Range<usize>, sizes: &[usize]) -> bool {
    let rest: usize = shape.iter().enumerate().filter(|(a, _)| !axes.contains(a)).map(|(_, &n)| n).product();
    sizes.iter().try_fold(rest, |p, &n| p.checked_mul(n)).is_some_and(|n| n <= MOST)
}

type Axes = std::ops::Range<usize>;

/// Runs of axes of two shapes with the same number of elements, as short as they can be.
pub fn groups(from: &[Dim], to: &[Dim]) -> Option<Vec<(Axes, Axes)>> {
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (begin, end) = (i, j);
        let (mut a, mut b) = (from[i].clone(), to[j].clone());
        (i, j) = (i + 1, j + 1);
        while a != b {
            // The side that lacks a factor takes its next axis.
            let left = match (a.as_constant(), b.as_constant()) {
                (Some(x), Some(y)) => x < y,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => b.div_exact(&a).is_ok(),
            };
            let (side, at, product) = if left { (from, &mut i, &mut a) } else { (to, &mut j, &mut b) };
            match side.get(*at) {
                Some(next) => *product = product.mul(next).ok()?,
                // One side is at its end: all that is left is one run.
                None => {
                    found.push((begin..from.len(), end..to.len()));
                    return Some(found);
                }
            }
            *at += 1;
        }
        found.push((begin..i, end..j));
    }
    // Axes of size 1 at the end of one shape belong to the last run.
    if i < from.len() || j < to.len() {
        match found.last_mut() {
            Some((old, new)) => (old.end, new.end) = (from.len(), to.len()),
            None => found.push((0..from.len(), 0..to.len())),
        }
    }
    Some(found)
}

fn padded(shape: &[usize], rank: usize) -> Vec<usize> {
    std::iter::repeat_n(1, rank - shape.len()).chain(shape.iter().copied()).collect()
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Places of the elements of a tensor of shape `from`, broadcast to `to`, in row-major order of `to`.
fn places(from: &[usize], to: &[usize]) -> impl Iterator<Item = usize> + use<> {
    let steps: Vec<usize> = strides(from).into_iter().zip(from).map(|(s, &n)| if n == 1 { 0 } else { s }).collect();
    walk(to, &steps)
}

/// `Σ index · step` for every index of a shape in row-major order.
fn walk(shape: &[usize], steps: &[usize]) -> impl Iterator<Item = usize> + use<> {
    let (shape, steps) = (shape.to_vec(), steps.to_vec());
    let total: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    let mut place = 0;
    (0..total).map(move |_| {
        let now = place;
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            place += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            place -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
        now
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ombra_ir::dim::Dims;

    fn dims(sizes: &[i64]) -> Vec<Dim> {
        sizes.iter().map(|&n| Dim::constant(n)).collect()
    }

    #[test]
    fn broadcasts_folds_and_moves() {
        let a = Spread::new(vec![2, 3], vec![1, 2, 3, 4, 5, 6]).expect("six");
        let b = Spread::of_rows(1, vec![10, 20, 30]);
        assert_eq!(a.zip(&b, |x, y| x + y).data(), [11, 22, 33, 14, 25, 36]);
        assert_eq!(a.fold(0, i32::max).data(), [4, 5, 6]);
        assert_eq!(a.fold(1, i32::max).data(), [3, 6]);
        assert_eq!(a.transpose(&[1, 0]).expect("two axes").data(), [1, 4, 2, 5, 3, 6]);
        assert_eq!(a.slice(1, 2, 2, -1).expect("inside").data(), [3, 2, 6, 5]);
        assert_eq!(a.slice(1, 2, 2, 1), None);
        let both = Spread::concat(&[a.clone(), Spread::one(2, 0).widen(1, 2)], 1).expect("they fit");
        assert_eq!((both.shape(), both.data()), (&[2, 5][..], &[1, 2, 3, 0, 0, 4, 5, 6, 0, 0][..]));
    }

    #[test]
    fn reshapes_told_apart_by_head() {
        let mut all = Dims::default();
        let (batch, seq) = (all.symbol("batch").expect("a name"), all.symbol("seq").expect("a name"));
        let lead = |rest: &[i64]| [vec![Dim::from(batch), Dim::from(seq)], dims(rest)].concat();
        let row = Spread::of_rows(3, vec![1, 2, 3, 4, 5, 6]);
        let heads = row.reshape(&lead(&[6]), &lead(&[2, 3]), i32::max).expect("six");
        assert_eq!((heads.shape(), heads.data()), (&[1, 1, 2, 3][..], &[1, 2, 3, 4, 5, 6][..]));
        let back = heads.reshape(&lead(&[2, 3]), &lead(&[6]), i32::max).expect("six");
        assert_eq!(back, row);
        // Heads that join an axis of unknown size are told apart no more.
        let from = [vec![Dim::from(batch)], dims(&[2]), vec![Dim::from(seq)], dims(&[3])].concat();
        let merged = Dim::from(batch).mul(&Dim::constant(2)).expect("small");
        let to = [vec![merged, Dim::from(seq)], dims(&[3])].concat();
        let spread = Spread::new(vec![1, 2, 1, 3], vec![1, 9, 3, 4, 5, 6]).expect("six");
        let folded = spread.reshape(&from, &to, i32::max).expect("it fits");
        assert_eq!((folded.shape(), folded.data()), (&[1, 1, 3][..], &[4, 9, 6][..]));
    }
}
