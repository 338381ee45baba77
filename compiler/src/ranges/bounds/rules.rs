//! What every operator proves of its result.

use super::Longest;
use super::linear::{self, Matrix};
use super::proof::{
    Ends, LOOSE, Lengths, Linear, Look, Proof, TOP, Unit, ends_of, inverse, join, loosened, power, size, times,
};
use super::spread::{Spread, size_of};
use crate::graph::{Graph, InputRole, Op, Owner, TensorOp, ValueId};
use crate::import::recognise::{Rotation, rotated};
use crate::weights::statics::{Statics, key_of};
use ombra_ir::plain::{self, Binary, DType, Reduce, Unary};
use ombra_ir::{Dim, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Bits of a row's length and of the number of its elements up to which a norm's result is exact to [`LOOSE`], and what it
/// may be off by beyond that.
const EXACT_ROW: f64 = 46.0;
const LONG_ROW: f64 = 1.06;
/// Errors of functions that are approximated, beside those relative to their results.
const APPROXIMATE: f64 = 5e-4;

/// Walks through a graph, operands first.
pub struct Prover<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Fraction bits of activations.
    pub f: u8,
    /// Its values that depend on weights and constants alone.
    pub statics: &'a Statics<'a>,
    /// Ends of values that are enforced, or assumed.
    pub given: BTreeMap<ValueId, Ends>,
    /// Maximum 2-norms of rows along the last axis that are assumed.
    pub lengths: BTreeMap<ValueId, f64>,
    /// Least sizes that are assumed.
    pub away: BTreeMap<ValueId, f64>,
    /// Values that depend on weights and constants alone.
    pub fixed: BTreeSet<ValueId>,
    /// Ends of what depends on weights and constants alone, where it was looked at.
    pub ends: BTreeMap<ValueId, Ends>,
    /// Maximum norms of their rows and columns.
    pub norms: BTreeMap<ValueId, Longest>,
    /// What was proven.
    pub proofs: BTreeMap<ValueId, Proof>,
}

impl Prover<'_> {
    fn rank(&self, v: ValueId) -> usize {
        self.graph.shape(v).len()
    }

    /// Elements of an axis at most, and at least.
    pub(super) fn count(&self, dim: &Dim) -> Ends {
        let most = self.graph.dims.upper(dim).map_or(f64::INFINITY, |n| n as f64);
        let least = self.graph.dims.lower(dim).map_or(0.0, |n| n.max(0) as f64);
        (least, most)
    }

    /// What is proven of an operand.
    fn operand(&mut self, v: ValueId) -> Result<Proof> {
        if let Some(proof) = self.proofs.get(&v) {
            return Ok(proof.clone());
        }
        let proof = match self.fixed.contains(&v) {
            true => self.look_at(v)?.proof(),
            false => Proof::between(self.rank(v), TOP),
        };
        self.proofs.insert(v, proof.clone());
        Ok(proof)
    }

    /// Looks at a static value, and keeps its ends and norms.
    fn look_at(&mut self, v: ValueId) -> Result<Look> {
        let look = self.statics.known.looks.get(self.statics.key(v)?, || Look::at(self.statics, v))?;
        self.ends.entry(v).or_insert(look.ends);
        self.norms.extend(look.norms.map(|norms| (v, norms)));
        Ok(look)
    }

    /// What is proven of a value whose operands are known.
    pub fn prove(&mut self, v: ValueId) -> Result<Proof> {
        let mut proof = self.rule(v)?.unwrap_or_else(|| Proof::between(self.rank(v), TOP));
        // A value has the axes of all its operands, also of those that say nothing of it.
        let missing = self.rank(v).saturating_sub(proof.range.shape().len());
        if missing > 0 {
            proof.range = lift(&proof.range, self.rank(v));
            proof.lengths = proof
                .lengths
                .map(|l| Lengths { axis: l.axis + missing, runs: lift(&l.runs, l.runs.shape().len() + missing) });
        }
        if let Some(&(low, high)) = self.given.get(&v) {
            proof.range = proof.range.map(|(a, b)| (a.max(low), b.min(high)));
            proof.unwritten = false;
        }
        if let Some(&length) = self.lengths.get(&v) {
            proof.shorten(self.graph.shape(v), self.rank(v).saturating_sub(1), length);
        }
        Ok(proof.rescaled(self.graph.shape(v)))
    }

    fn rule(&mut self, v: ValueId) -> Result<Option<Proof>> {
        let graph = self.graph;
        let node = graph.node(v)?;
        let ids = graph.operands(v);
        let rank = node.shape.len();
        if let Op::Input { role, .. } = node.op {
            return Ok(Some(self.input(v, role, node.dtype)));
        }
        let secret = node.owner != Owner::Public;
        if node.op == Op::MATMUL && secret {
            return self.matmul(v, ids[0], ids[1]);
        }
        let args = ids.iter().map(|&id| self.operand(id)).collect::<Result<Vec<_>>>()?;
        let unwritten = args.iter().any(|p| p.unwritten) && !matches!(node.op, Op::Tensor(TensorOp::Concat { .. }));
        let x = args.first();
        let each = |f: &dyn Fn(Ends) -> Ends| x.map(|x| Proof::of(x.range.map(f)));
        // f(0) = 0 and |f(x)| ≤ |x|.
        let shrinks = |f: &dyn Fn(Ends) -> Ends| {
            x.map(|x| Proof {
                range: x.range.map(f),
                lengths: x.lengths.clone().map(|l| Lengths { runs: l.runs.map(|r| r * LOOSE), ..l }),
                linear: x.linear.clone(),
                ..Proof::of(x.range.clone())
            })
        };
        let monotone = |f: fn(f64) -> f64| move |(a, b): Ends| loosened((f(a), f(b)), APPROXIMATE);
        let unit = || {
            let mut proof = Proof::between(rank, (0.0, LOOSE));
            proof.convex = true;
            proof
        };
        use TensorOp as T;
        let proof = match &node.op {
            // What is computed of a cache is not the cache: nothing is known of it.
            _ if unwritten && !moves(&node.op) => return Ok(None),
            // Everybody computes it exactly.
            Op::Tensor(op) if !secret => self.plain(v, op, &args)?,
            Op::Tensor(T::Binary(Binary::Add)) => self.add(v, (ids[0], ids[1]), (&args[0], &args[1]), false),
            Op::Tensor(T::Binary(Binary::Sub)) => self.add(v, (ids[0], ids[1]), (&args[0], &args[1]), true),
            Op::Tensor(T::Binary(Binary::Mul)) => self.mul(v, &ids, &args)?,
            Op::Tensor(T::Binary(Binary::Div)) => {
                let away = self.away.get(&ids[1]).copied().unwrap_or(0.0);
                let inverted = Proof::of(args[1].range.map(|e| inverse(e, away)));
                self.mul(v, &ids, &[args[0].clone(), inverted])?
            }
            Op::Tensor(T::Unary(Unary::Neg)) => x.map(|x| Proof {
                range: x.range.map(|(a, b)| (-b, -a)),
                lengths: x.lengths.clone(),
                linear: x.linear.clone(),
                ..Proof::of(x.range.clone())
            }),
            Op::Relu => shrinks(&|(a, b)| (a.max(0.0), b.max(0.0))),
            Op::Silu => shrinks(&|(a, b)| (a.clamp(-0.2785, 0.0) * LOOSE, b.max(0.0) * LOOSE)),
            Op::Gelu { .. } => shrinks(&|(a, b)| (a.clamp(-0.1702, 0.0) * LOOSE, b.max(0.0) * LOOSE)),
            Op::Tensor(T::Unary(Unary::Tanh)) => {
                shrinks(&|(a, b)| loosened((libm::tanh(a), libm::tanh(b)), APPROXIMATE))
            }
            Op::Tensor(T::Unary(Unary::Sin | Unary::Cos)) => {
                Some(Proof::between(rank, loosened((-1.0, 1.0), APPROXIMATE)))
            }
            Op::Tensor(T::Unary(Unary::Sigmoid)) => each(&monotone(|x| 1.0 / (1.0 + libm::exp(-x)))),
            Op::Tensor(T::Unary(Unary::Erf)) => each(&monotone(libm::erf)),
            Op::Softplus => each(&monotone(|x| if x > 700.0 { x } else { libm::log1p(libm::exp(x)) })),
            Op::Tensor(T::Unary(Unary::Exp)) => each(&|(a, b)| (libm::exp(a) / LOOSE, libm::exp(b) * LOOSE)),
            Op::Tensor(T::Unary(Unary::Log)) => each(&|(a, b)| {
                if a > 0.0 { monotone(libm::log)((a, b)) } else { (f64::NEG_INFINITY, libm::log(b.max(1.0))) }
            }),
            Op::Tensor(T::Unary(Unary::Sqrt)) => {
                each(&|(a, b)| (libm::sqrt(a.max(0.0)) / LOOSE, libm::sqrt(b.max(0.0)) * LOOSE))
            }
            Op::Tensor(T::Unary(Unary::Reciprocal)) => each(&|e| self.inverse_of(ids[0], e)),
            Op::Pow(p) => each(&|e| power(e, f64::from(*p))),
            Op::Clamp { low, high } => {
                let (low, high) = (f64::from(*low), f64::from(*high));
                each(&|(a, b)| (a.max(low).min(high), b.max(low).min(high)))
            }
            Op::Softmax { axis } | Op::MaskedSoftmax { axis } | Op::RatioSoftmax { axis, .. } => {
                Some(if *axis + 1 == rank { unit() } else { Proof::between(rank, (0.0, LOOSE)) })
            }
            Op::Quadratic { square, linear, constant } => each(&|e| {
                let [a, b, c] = [*square, *linear, *constant].map(f64::from);
                let (square, line) = (times((a, a), power(e, 2.0)), times((b, b), e));
                (square.0 + line.0 + c - 1e-3, square.1 + line.1 + c + 1e-3)
            }),
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => self.norm(v, &ids)?,
            Op::AffineNorm { centred } => self.affine(v, &args, *centred),
            Op::Tensor(op) => self.plain(v, op, &args)?,
            Op::Input { .. } | Op::Weight { .. } => None,
        };
        Ok(proof.map(|mut p| {
            p.unwritten |= unwritten;
            // A broadcast by an operand that gives no elements, such as a condition.
            p.range = lift(&p.range, rank);
            // Rows that are no more where they were: nothing ties them to other uses of the same rows.
            if !matches!(node.op, Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Identity))
                && let Some(unit) = p.unit.as_ref().filter(|unit| unit.root != v)
            {
                let (gamma, offset) = (unit.gamma.clone(), unit.offset.clone());
                p.unit = Some(Rc::new(Unit { root: v, radius: unit.radius, gamma, offset }));
            }
            p
        }))
    }

    fn input(&self, v: ValueId, role: InputRole, dtype: DType) -> Proof {
        let rank = self.rank(v);
        match role {
            InputRole::PastKey { .. } | InputRole::PastValue { .. } if !self.given.contains_key(&v) => {
                Proof { unwritten: true, ..Proof::between(rank, (0.0, 0.0)) }
            }
            InputRole::AttentionMask => Proof::between(rank, (0.0, 1.0)),
            InputRole::PositionIds => {
                let all: f64 = self.graph.dims.syms.iter().map(|s| s.max.map_or(f64::INFINITY, |n| n as f64)).sum();
                Proof::between(rank, (0.0, all))
            }
            _ if dtype == DType::Bool => Proof::between(rank, (0.0, 1.0)),
            _ => Proof::between(rank, TOP),
        }
    }

    /// A sum, whose lengths add up; a rotation of pairs keeps them.
    fn add(&self, v: ValueId, (a, b): (ValueId, ValueId), (x, y): (&Proof, &Proof), minus: bool) -> Option<Proof> {
        let range = x.range.zip(&y.range, |p, q| if minus { (p.0 - q.1, p.1 - q.0) } else { (p.0 + q.0, p.1 + q.1) });
        let mut proof = Proof::of(range);
        let shape = self.graph.shape(v);
        proof.lengths = self.lengths_of((v, a, b), (x, y), |p, q, _| p + q);
        if let Some(Rotation { x, angles, of_halves }) = rotated(self.graph, v).filter(|_| !minus)
            && let Some(known) = self.proofs.get(&x)
            && let Some(last) = shape.len().checked_sub(1)
            && let Some(n) = shape.last().and_then(size_of)
            && let Some(before) = known.lengths_on(last, n, 1)
        {
            let (unit, paired) = self.turn(angles);
            let turned = if paired && of_halves { unit } else { unit * libm::sqrt(2.0) };
            proof.lengths = Some(Lengths { axis: last, runs: lift(&before.map(|l| l * turned), shape.len()) });
            let pair = libm::sqrt(2.0) * known.size() * unit;
            proof.range = proof.range.map(|(low, high)| (low.max(-pair), high.min(pair)));
        }
        Some(proof)
    }

    /// Lengths of an element-wise function of two values along the axis on which one of them has some. `f` takes the
    /// lengths of both, and how many elements a run has.
    fn lengths_of(
        &self,
        (v, a, b): (ValueId, ValueId, ValueId),
        (x, y): (&Proof, &Proof),
        f: impl Fn(f64, f64, f64) -> f64,
    ) -> Option<Lengths> {
        let shape = self.graph.shape(v);
        let from_end = |p: &Proof| p.lengths.as_ref().map(|l| p.range.shape().len() - l.axis);
        let back = from_end(x).or(from_end(y))?;
        let axis = shape.len().checked_sub(back)?;
        let n = size_of(shape.get(axis)?)?;
        let runs_of =
            |p: &Proof| p.lengths.as_ref().filter(|_| from_end(p) == Some(back)).map(|l| l.runs.shape()[l.axis]);
        let runs = [runs_of(x), runs_of(y)].into_iter().flatten().max().filter(|&r| r > 0 && n % r == 0)?;
        let of = |p: &Proof, id: ValueId| match self.rank(id).checked_sub(back) {
            Some(own) if self.graph.shape(id).get(own) == shape.get(axis) => p.lengths_on(own, n, runs),
            // It has no such axis, or one of one element: one for all of it.
            _ => Some(Spread::one(1, p.size() * libm::sqrt(n as f64 / runs as f64))),
        };
        let each = n as f64 / runs as f64;
        let runs = of(x, a)?.zip(&of(y, b)?, |p, q| f(p, q, each));
        Some(Lengths { axis, runs: lift(&runs, shape.len()) })
    }

    /// How much longer a pair of elements gets when it is turned by an angle, given by its cosine and sine, and whether
    /// both elements of a pair are turned by the same angle.
    fn turn(&self, [c, s]: [ValueId; 2]) -> (f64, bool) {
        let of = |v| self.proofs.get(&v).map_or(f64::INFINITY, Proof::size);
        let unit = self.same_angle(c, s).unwrap_or_else(|| libm::hypot(of(c), of(s)));
        (unit, self.paired(c) && self.paired(s))
    }

    /// The root of the maximum `c² + s²`, where operators show that two values are cosines and sines of the same angles.
    fn same_angle(&self, c: ValueId, s: ValueId) -> Option<f64> {
        let op = |v: ValueId| self.graph.op(v).and_then(Op::tensor);
        let (c_args, s_args) = (self.graph.operands(c), self.graph.operands(s));
        match (op(c)?, op(s)?) {
            (TensorOp::Unary(Unary::Cos), TensorOp::Unary(Unary::Sin)) if c_args == s_args => Some(1.0),
            (TensorOp::Gather { axis }, TensorOp::Gather { axis: other })
                if axis == other && c_args[1..] == s_args[1..] =>
            {
                self.same_angle(c_args[0], s_args[0])
            }
            (TensorOp::Constant(c), TensorOp::Constant(s)) if c.shape() == s.shape() => {
                let squares = c
                    .as_f32()
                    .ok()?
                    .iter()
                    .zip(s.as_f32().ok()?)
                    .map(|(c, s)| f64::from(*c).powi(2) + f64::from(*s).powi(2));
                Some(libm::sqrt(squares.fold(0.0, f64::max)))
            }
            (TensorOp::Binary(Binary::Mul), TensorOp::Binary(Binary::Mul)) => {
                let k = c_args
                    .iter()
                    .find(|&a| s_args.contains(a) && self.graph.constant(*a).is_some_and(|t| t.len() == 1))?;
                let rest = |args: &[ValueId]| args.iter().copied().find(|a| a != k);
                Some(self.same_angle(rest(&c_args)?, rest(&s_args)?)? * self.proofs.get(k)?.size())
            }
            (a, b) if a == b && moves_plain(a) && c_args.len() == s_args.len() => {
                let all =
                    c_args.iter().zip(&s_args).map(|(&c, &s)| self.same_angle(c, s)).collect::<Option<Vec<_>>>()?;
                all.into_iter().reduce(f64::max)
            }
            _ => None,
        }
    }

    /// Whether the two halves of the last axis are the same.
    fn paired(&self, v: ValueId) -> bool {
        let Some(op) = self.graph.op(v).and_then(Op::tensor) else { return false };
        let args = self.graph.operands(v);
        let same_last = |a: ValueId| self.graph.shape(a).last() == self.graph.shape(v).last();
        match (op, args.as_slice()) {
            (TensorOp::Unary(_) | TensorOp::Identity | TensorOp::Cast { .. }, [x]) => self.paired(*x),
            (TensorOp::Binary(Binary::Mul), [a, b]) => {
                let one = |x: ValueId| self.graph.shape(x).last().is_none_or(|d| d.is(1));
                one(*b) && self.paired(*a) || one(*a) && self.paired(*b)
            }
            (TensorOp::Reshape { .. } | TensorOp::Expand { .. } | TensorOp::Slice { .. }, [x]) => {
                same_last(*x) && self.paired(*x)
            }
            (TensorOp::Transpose { perm }, [x]) => perm.last().is_some_and(|&p| p + 1 == perm.len()) && self.paired(*x),
            (TensorOp::Concat { axis }, [a, b]) => a == b && axis + 1 == self.rank(v),
            (TensorOp::Gather { axis }, [x, _]) => axis + 1 != self.rank(*x) && self.paired(*x),
            (TensorOp::Constant(t), []) => match (t.as_f32(), t.shape().last()) {
                (Ok(data), Some(&n)) if n > 1 && n % 2 == 0 => {
                    data.chunks_exact(n).all(|row| row[..n / 2] == row[n / 2..])
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// A product, element by element.
    fn mul(&self, v: ValueId, ids: &[ValueId], args: &[Proof]) -> Result<Option<Proof>> {
        let ([a, b], [x, y]) = (ids, args) else { return Ok(None) };
        if a == b && matches!(self.graph.op(v), Some(Op::Tensor(TensorOp::Binary(Binary::Mul)))) {
            let mut proof = Proof::of(x.range.map(|e| power(e, 2.0)));
            proof.lengths = self
                .lengths_of((v, *a, *b), (x, y), |p, _, _| p)
                .map(|l| Lengths { runs: l.runs.map(|r| r * x.size()), ..l });
            return Ok(Some(proof));
        }
        let mut proof = Proof::of(self.mean(v).unwrap_or_else(|| x.range.zip(&y.range, times)));
        // Longest times maximum, either way round.
        let (most_x, most_y) = (x.size(), y.size());
        proof.lengths = self.lengths_of((v, *a, *b), (x, y), |p, q, _| (p * most_y).min(q * most_x));
        if let Some((axis, length)) = self.normalised(v) {
            proof.shorten(self.graph.shape(v), axis, length);
        }
        if let (Some(g), Some(h)) = (&x.linear, &y.linear)
            && g.unit.root == h.unit.root
            && self.graph.shape(*a) == self.graph.shape(*b)
            && let Some(bound) = self.of_two(g, h)?
        {
            let limits = Spread::of_rows(proof.range.shape().len(), bound);
            proof.range = proof.range.zip(&limits, |(low, high), l| (low.max(-l), high.min(l)));
        }
        Ok(Some(proof))
    }

    fn of_two(&self, g: &Linear, h: &Linear) -> Result<Option<Vec<f64>>> {
        let keys = [self.statics.key(g.weight)?, self.statics.key(h.weight)?];
        let unit = std::iter::once(g.unit.radius).chain(g.unit.gamma.iter().copied());
        self.statics.known.pairs.get(key_of(&keys, unit), || {
            let (a, b) = (self.statics.value(g.weight)?, self.statics.value(h.weight)?);
            let ([inner, columns], [other, same]) = (a.shape(), b.shape()) else { return Ok(None) };
            let a = Matrix { data: a.as_f32()?, inner: *inner, columns: *columns };
            let b = Matrix { data: b.as_f32()?, inner: *other, columns: *same };
            Ok(linear::of_two(&a, &b, &g.unit))
        })
    }

    fn matmul(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Option<Proof>> {
        let x = self.operand(a)?;
        let rank = self.rank(v);
        if self.fixed.contains(&b) && self.rank(b) == 2 && !x.unwritten {
            self.look_at(b)?;
            return linear::product(&x, self.statics, (b, rank), self.heads(v).unwrap_or(1));
        }
        let y = self.operand(b)?;
        if x.unwritten || y.unwritten || self.rank(a) < 2 || self.rank(b) < 2 {
            return Ok(None);
        }
        let (x_last, y_last) = (self.rank(a) - 1, self.rank(b) - 2);
        let inner = self.graph.shape(a)[x_last].clone();
        if x.convex {
            // Every entry of a row is rounded by itself.
            let loose = LOOSE + self.count(&inner).1 * libm::exp2(-f64::from(self.f));
            let range = y.range.fold(y_last, join).map(|(low, high)| (low.min(0.0) * loose, high.max(0.0) * loose));
            let mut proof = Proof::of(Spread::one(rank, (0.0, 0.0)).zip(&range, |_, e| e));
            proof.lengths = y.lengths.as_ref().filter(|l| l.axis == y_last + 1).map(|l| {
                let runs = l.runs.fold(y_last, f64::max).map(|r| r * loose);
                Lengths { axis: rank - 1, runs: lift(&runs, rank) }
            });
            return Ok(Some(proof));
        }
        // Elements of a row and a column, then their lengths.
        let k = self.count(&inner).1;
        let rows = x.range.map(size).fold(x_last, f64::max).fold(x_last - 1, f64::max);
        let columns = y.range.map(size).fold(y_last, f64::max);
        let mut bound = rows.zip(&columns, |p, q| k * p * q);
        if let Some(n) = size_of(&inner)
            && let (Some(p), Some(q)) = (x.lengths_on(x_last, n, 1), y.lengths_on(y_last, n, 1))
        {
            let by_length = p.fold(x_last - 1, f64::max).zip(&q, |p, q| p * q);
            bound = bound.zip(&by_length, f64::min);
        }
        Ok(Some(Proof::of(lift(&bound, rank).map(|l| (-l * LOOSE, l * LOOSE)))))
    }

    /// Into how many parts the last axis of a value is cut by what uses it.
    fn heads(&self, v: ValueId) -> Option<usize> {
        let width = size_of(self.graph.shape(v).last()?)?;
        let mut seen = BTreeSet::new();
        let mut next = vec![v];
        while let Some(at) = next.pop() {
            for user in self.graph.users(at) {
                if !seen.insert(user) || seen.len() > 64 {
                    continue;
                }
                let shape = self.graph.shape(user);
                match self.graph.op(user) {
                    Some(Op::Tensor(
                        TensorOp::Binary(Binary::Add | Binary::Mul)
                        | TensorOp::Slice { .. }
                        | TensorOp::Binary(Binary::Sub),
                    )) => next.push(user),
                    Some(Op::Tensor(TensorOp::Reshape { .. })) if shape.last() == self.graph.shape(at).last() => {
                        next.push(user)
                    }
                    Some(Op::Tensor(TensorOp::Reshape { .. })) => {
                        let part = size_of(shape.last()?)?;
                        return (part > 0 && part < width && width % part == 0).then(|| width / part);
                    }
                    _ => {}
                }
            }
        }
        None
    }

    fn norm(&mut self, v: ValueId, ids: &[ValueId]) -> Result<Option<Proof>> {
        let rank = self.rank(v);
        let Some(n) = self.graph.shape(v).last().and_then(size_of) else { return Ok(None) };
        // The statistic of the longest rows is coarser.
        let length =
            ids.first().and_then(|x| self.proofs.get(x)).and_then(|x| x.lengths_on(rank - 1, n, 1)?.all(f64::max));
        let centred = matches!(self.graph.op(v), Some(Op::LayerNorm { .. }));
        let bits =
            libm::log2(length.unwrap_or(f64::INFINITY) * if centred { n as f64 } else { 1.0 }) + f64::from(self.f);
        let radius = libm::sqrt(n as f64) * if bits < EXACT_ROW { LOOSE } else { LONG_ROW };
        let mut factors = |id: Option<&ValueId>, missing: f64| -> Result<Option<Vec<f64>>> {
            let Some(id) = id else { return Ok(Some(vec![missing; n])) };
            if !self.fixed.contains(id) {
                return Ok(None);
            }
            let tensor = self.statics.value(*id)?;
            self.look_at(*id)?;
            let values: Vec<f64> = tensor.as_f32()?.iter().map(|&x| f64::from(x)).collect();
            Ok(if values.len() == n { Some(values) } else { None })
        };
        let (gamma, offset) = (factors(ids.get(1), 1.0)?, factors(ids.get(2), 0.0)?);
        let (Some(gamma), Some(offset)) = (gamma, offset) else {
            // Scale and shift that nobody knows yet.
            let mut proof = Proof::between(rank, (-radius, radius));
            if let Some(&gamma) = ids.get(1) {
                let gamma = self.operand(gamma)?;
                proof.range = proof.range.zip(&gamma.range, times);
                proof.lengths = Some(Lengths { axis: rank - 1, runs: Spread::one(rank, radius * gamma.size()) });
            }
            if let Some(&offset) = ids.get(2) {
                let offset = self.operand(offset)?;
                proof.range = proof.range.zip(&offset.range, |p, q| (p.0 + q.0, p.1 + q.1));
                proof.lengths = None;
            }
            return Ok(Some(proof));
        };
        let range: Vec<Ends> = gamma
            .iter()
            .zip(&offset)
            .map(|(g, c)| (c - libm::fabs(*g) * radius, c + libm::fabs(*g) * radius))
            .collect();
        let most = gamma.iter().fold(0.0, |m, g| libm::fabs(*g).max(m));
        let centre = libm::sqrt(offset.iter().map(|c| c * c).sum::<f64>());
        let mut proof = Proof::of(Spread::of_rows(rank, range));
        proof.lengths = Some(Lengths { axis: rank - 1, runs: Spread::one(rank, most * radius + centre) });
        proof.unit = Some(Rc::new(Unit { root: v, radius, gamma: Rc::new(gamma), offset: Rc::new(offset) }));
        Ok(Some(proof))
    }

    /// A norm without its division: x − mean is no longer than x.
    fn affine(&self, v: ValueId, args: &[Proof], centred: bool) -> Option<Proof> {
        let (x, w) = (args.first()?, args.get(1)?);
        let last = self.rank(v).checked_sub(1)?;
        let range = if centred {
            let (low, high) = x.range.fold(last, join).all(join)?;
            x.range.map(|(a, b)| (a - high, b - low))
        } else {
            x.range.clone()
        };
        let mut proof = Proof::of(range.zip(&w.range, times));
        if let Some(b) = args.get(2) {
            proof.range = proof.range.zip(&b.range, |p, q| (p.0 + q.0, p.1 + q.1));
        } else {
            let n = size_of(self.graph.shape(v).last()?)?;
            let runs = x.lengths_on(last, n, 1)?.map(|l| l * w.size());
            proof.lengths = Some(Lengths { axis: last, runs });
        }
        Some(proof)
    }

    /// Operators that have a form on public tensors.
    fn plain(&mut self, v: ValueId, op: &plain::Op, args: &[Proof]) -> Result<Option<Proof>> {
        let graph = self.graph;
        let ids = graph.operands(v);
        let rank = self.rank(v);
        let shape = graph.shape(v);
        let of = |i: usize| ids.get(i).map_or(&[][..], |&id| graph.shape(id));
        let Some(x) = args.first() else {
            return Ok(Some(match op {
                TensorOp::Constant(t) | TensorOp::ConstantOfShape { value: t, .. } => Proof::between(rank, ends_of(t)),
                TensorOp::Sizes { values, .. } => {
                    let ends = values.iter().map(|d| self.ends_of_dim(d)).reduce(join);
                    Proof::between(rank, ends.unwrap_or((0.0, 0.0)))
                }
                TensorOp::Iota { start, len, step } => {
                    let (first, n) = (self.ends_of_dim(start), self.ends_of_dim(len));
                    let run = times((0.0, (n.1 - 1.0).max(0.0)), (*step as f64, *step as f64));
                    Proof::between(rank, (first.0 + run.0.min(0.0), first.1 + run.1.max(0.0)))
                }
                _ => return Ok(None),
            }));
        };
        let each = |f: &dyn Fn(Ends) -> Ends| Some(Proof::of(x.range.map(f)));
        let anywhere = |ends: Ends| Some(Proof::between(rank, ends));
        let both = |f: &dyn Fn(Ends, Ends) -> Ends| args.get(1).map(|y| Proof::of(x.range.zip(&y.range, f)));
        Ok(match op {
            TensorOp::Identity => Some(x.clone()),
            TensorOp::Cast { to: DType::Bool } => anywhere((0.0, 1.0)),
            TensorOp::Cast { .. } => each(&|(a, b)| (a.floor(), b.ceil())),
            TensorOp::Reshape { .. } => x.reshape(of(0), shape),
            TensorOp::Expand { .. } => x.expand(of(0), shape),
            TensorOp::Transpose { perm } => x.transpose(perm),
            TensorOp::Slice { axis, start, len, step } => x.slice(of(0), *axis, start, len, *step),
            TensorOp::Concat { axis } => {
                let parts: Vec<(&Proof, &[Dim])> = args.iter().enumerate().map(|(i, p)| (p, of(i))).collect();
                Proof::concat(&parts, *axis)
            }
            TensorOp::Gather { axis } => x.gather(*axis, of(1).len()),
            TensorOp::Tile { .. } | TensorOp::GatherNd { .. } | TensorOp::GatherElements { .. } => anywhere(x.ends()),
            TensorOp::Trilu { .. } => anywhere(join(x.ends(), (0.0, 0.0))),
            TensorOp::ScatterNd => args.get(2).and_then(|y| anywhere(join(x.ends(), y.ends()))),
            TensorOp::Where => match args {
                [_, a, b] => {
                    let mut proof = Proof::of(a.range.zip(&b.range, join));
                    proof.lengths = self.lengths_of((v, ids[1], ids[2]), (a, b), |p, q, _| libm::hypot(p, q));
                    Some(proof)
                }
                _ => None,
            },
            TensorOp::Clip => match args {
                [_, low, high] => {
                    let (low, high) = (low.ends(), high.ends());
                    each(&|(a, b)| (a.max(low.0).min(high.0), b.max(low.1).min(high.1)))
                }
                _ => None,
            },
            TensorOp::CumSum { axis, .. } => {
                let n = of(0).get(*axis).map_or(f64::INFINITY, |d| self.count(d).1);
                anywhere(join(times(x.ends(), (n, n)), (0.0, 0.0)))
            }
            TensorOp::Reduce { kind, axes, keepdims } => self.reduce(v, x, *kind, axes, *keepdims),
            TensorOp::Unary(u) => match u {
                Unary::Cos | Unary::Sin | Unary::Tanh | Unary::Erf => anywhere((-1.0, 1.0)),
                Unary::Not | Unary::IsNan | Unary::Sigmoid => anywhere((0.0, 1.0)),
                Unary::Neg => each(&|(a, b)| (-b, -a)),
                Unary::Abs => {
                    each(&|e| (if e.0 <= 0.0 && e.1 >= 0.0 { 0.0 } else { e.0.abs().min(e.1.abs()) }, size(e)))
                }
                Unary::Sqrt => each(&|(a, b)| (libm::sqrt(a.max(0.0)), libm::sqrt(b.max(0.0)))),
                Unary::Reciprocal => each(&|e| self.inverse_of(ids[0], e)),
                Unary::Exp => each(&|(a, b)| (libm::exp(a), libm::exp(b))),
                Unary::Floor | Unary::Ceil | Unary::Round => each(&|(a, b)| (a.floor(), b.ceil())),
                Unary::Sign => each(&|(a, b)| (a.clamp(-1.0, 0.0).floor(), b.clamp(0.0, 1.0).ceil())),
                Unary::Log => each(&|(a, b)| {
                    let low = if a > 0.0 { libm::log(a) } else { f64::NEG_INFINITY };
                    (low, libm::log(b.max(f64::MIN_POSITIVE)))
                }),
            },
            TensorOp::Binary(b) => match b {
                Binary::Add => both(&|p, q| (p.0 + q.0, p.1 + q.1)),
                Binary::Sub => both(&|p, q| (p.0 - q.1, p.1 - q.0)),
                Binary::Mul => both(&times),
                Binary::Div if graph.node(v)?.dtype == DType::F32 => both(&|p, q| times(p, inverse(q, 0.0))),
                // Integers truncate.
                Binary::Div => both(&|p, q| times(p, inverse(q, 0.0)))
                    .map(|p| Proof::of(p.range.map(|(a, b)| (a.min(0.0), b.max(0.0))))),
                Binary::Mod => args.get(1).and_then(|y| anywhere((-y.size(), y.size()))),
                Binary::Pow => match args.get(1).map(Proof::ends) {
                    Some((p, q)) if p == q => each(&|e| power(e, p)),
                    _ => None,
                },
                Binary::Max => both(&|p, q| (p.0.max(q.0), p.1.max(q.1))),
                Binary::Min => both(&|p, q| (p.0.min(q.0), p.1.min(q.1))),
                Binary::And
                | Binary::Or
                | Binary::Equal
                | Binary::Less
                | Binary::LessOrEqual
                | Binary::Greater
                | Binary::GreaterOrEqual => anywhere((0.0, 1.0)),
            },
            TensorOp::ArgMax => anywhere((0.0, of(0).last().map_or(f64::INFINITY, |d| self.count(d).1))),
            TensorOp::Constant(_)
            | TensorOp::Sizes { .. }
            | TensorOp::Iota { .. }
            | TensorOp::Range
            | TensorOp::ConstantOfShape { .. }
            | TensorOp::MatMul => None,
        })
    }

    pub(super) fn reduce(&self, v: ValueId, x: &Proof, kind: Reduce, axes: &[usize], keep: bool) -> Option<Proof> {
        let source = self.graph.operand(v, 0)?;
        let mut range = x.range.clone();
        for &axis in axes {
            let (least, most) = self.count(self.graph.shape(source).get(axis)?);
            let whole = range.shape().get(axis)? > &1;
            range = match kind {
                Reduce::Max | Reduce::Min => range.fold(axis, join),
                Reduce::Sum if whole => range.fold(axis, |a, b| (a.0 + b.0, a.1 + b.1)),
                Reduce::Sum => range.map(|e| times(e, (least, most))),
                Reduce::Mean if whole => {
                    let n = range.shape().get(axis).map_or(1.0, |&n| n as f64);
                    range.fold(axis, |a, b| (a.0 + b.0, a.1 + b.1)).map(|(a, b)| (a / n, b / n))
                }
                Reduce::Mean => range,
                Reduce::Prod => return None,
            };
        }
        if let (Reduce::Sum | Reduce::Mean, [axis]) = (kind, axes)
            && let Some(n) = self.graph.shape(source).get(*axis).and_then(size_of)
            && let Some(lengths) = x.lengths_on(*axis, n, 1)
        {
            // A sum of n elements is at most √n times their length.
            let factor = if kind == Reduce::Sum { libm::sqrt(n as f64) } else { 1.0 / libm::sqrt(n as f64) };
            range = range.zip(&lengths, |(a, b), l| (a.max(-l * factor), b.min(l * factor)));
        }
        let kept: Vec<usize> = range
            .shape()
            .iter()
            .enumerate()
            .filter(|(axis, _)| keep || !axes.contains(axis))
            .map(|(_, &n)| n)
            .collect();
        Some(Proof::of(Spread::new(kept, range.data().to_vec())?))
    }

    /// Ends of a size.
    fn ends_of_dim(&self, dim: &Dim) -> Ends {
        let of = |n: Option<i128>, missing: f64| n.map_or(missing, |n| n as f64);
        (of(self.graph.dims.lower(dim), f64::NEG_INFINITY), of(self.graph.dims.upper(dim), f64::INFINITY))
    }
}

/// Operators under which nothing stays nothing.
fn moves(op: &Op) -> bool {
    op.tensor().is_some_and(moves_plain)
}

fn moves_plain(op: &plain::Op) -> bool {
    matches!(
        op,
        TensorOp::Identity
            | TensorOp::Cast { .. }
            | TensorOp::Reshape { .. }
            | TensorOp::Transpose { .. }
            | TensorOp::Slice { .. }
            | TensorOp::Expand { .. }
            | TensorOp::Concat { .. }
    )
}

/// A spread with axes of size 1 before it.
fn lift<T: Copy>(spread: &Spread<T>, rank: usize) -> Spread<T> {
    let Some((first, missing)) = spread.data().first().zip(rank.checked_sub(spread.shape().len())) else {
        return spread.clone();
    };
    Spread::one(missing + spread.shape().len(), *first).zip(spread, |_, x| x)
}
