//! Lowering of what is decided by comparisons: signs, maxima, choices, booleans.
//!
//! Booleans are shared bits, or, once a public boolean had a part in them, 0 or 1 in the ring. A comparison is made
//! once for all uses of one difference: `max(x, 0)`, `|x|` and `x < 0` share theirs, and so do the maximum and the minimum
//! of one pair.
//!
//! Comparisons are those of fixed point: two numbers are equal when they round to the same multiple of 2^−f, which is to
//! say when their difference there is less than half a unit. Inputs and weights are rounded to the nearest; what was
//! computed may be off by more than a unit, so that equality of such values says little.

use super::{Lower, RING};
use crate::expand::{POSITIVE_FRACTION, comparison, ring_for};
use crate::graph::{Op, Owner, TensorOp, ValueId};
use ombra_ir::infer::size;
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plain::{Binary, DType, Unary};
use ombra_ir::ty::BoundFrom;
use ombra_ir::{Diagnostic, Dim, Result};

impl Lower<'_> {
    /// The bit that says whether a value is negative.
    fn negative_bit(&mut self, v: ValueId, x: Id) -> Result<Id> {
        if let Some(&bit) = self.signs.get(&x) {
            return Ok(bit);
        }
        let (_, bound) = self.ring(x)?;
        let bit = self.push(v, M::Msb { width: bound + 1, drop: 0 }, &[x])?;
        self.signs.insert(x, bit);
        Ok(bit)
    }

    /// A bit as 0 or 1 in the ring, at scale 0.
    fn in_ring(&mut self, v: ValueId, bit: Id) -> Result<Id> {
        if let Some(&id) = self.rings.get(&bit) {
            return Ok(id);
        }
        let id = self.push(v, M::BitToRing { bits: RING }, &[bit])?;
        self.rings.insert(bit, id);
        Ok(id)
    }

    /// 1 where a value is negative, at scale 0.
    pub(super) fn negative(&mut self, v: ValueId, x: Id) -> Result<Id> {
        let bit = self.negative_bit(v, x)?;
        self.in_ring(v, bit)
    }

    /// `max(x, 0)`, not yet shared.
    pub(super) fn positive_part(&mut self, v: ValueId, x: Id) -> Result<Id> {
        let (_, bound) = self.ring(x)?;
        let negative = self.negative(v, x)?;
        let minus = self.push(v, M::Neg, &[negative])?;
        let keep = self.within(v, M::AddInt { k: 1 }, &[minus], 1)?;
        self.within(v, M::Mul, &[x, keep], bound)
    }

    /// `max(x, 0)`, in the smallest ring that holds `x` until the end, unless something else compares `x` too.
    pub(super) fn relu(&mut self, v: ValueId, operand: ValueId) -> Result<Id> {
        let compares = |u: &ValueId| {
            let op = self.graph.op(*u);
            matches!(
                op,
                Some(Op::Tensor(
                    TensorOp::Unary(Unary::Sign | Unary::Abs) | TensorOp::Binary(Binary::Max | Binary::Min)
                ))
            ) || matches!(op, Some(op @ Op::Tensor(TensorOp::Binary(_))) if !op.is_private())
        };
        let is_alone = !self.graph.users(operand).iter().any(compares);
        let x = self.at_f(operand)?;
        let (scale, bound) = self.ring(x)?;
        let bits = ring_for(bound);
        let Some((width, drop)) = comparison(size(self.module.ty(x)), scale.saturating_sub(POSITIVE_FRACTION), bits)
            .filter(|_| is_alone && bits < RING && !self.signs.contains_key(&x))
        else {
            let product = self.positive_part(v, x)?;
            return self.value(v, M::Reshare, &[product]);
        };
        let small = self.push(v, M::Narrow { bits }, &[x])?;
        let negative = self.push(v, M::Msb { width, drop }, &[small])?;
        let keep = self.push(v, M::Not, &[negative])?;
        let keep = self.push(v, M::BitToRing { bits }, &[keep])?;
        let product = self.within(v, M::Mul, &[small, keep], bound)?;
        self.value(v, M::Truncate { by: 0, bits: RING }, &[product])
    }

    /// |x| = x − 2 · [x < 0] · x.
    pub(super) fn abs(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let x = self.at_f(x)?;
        let (_, bound) = self.ring(x)?;
        let negative = self.negative(v, x)?;
        let minus = self.push(v, M::MulInt { k: -2 }, &[negative])?;
        let sign = self.within(v, M::AddInt { k: 1 }, &[minus], 1)?;
        let product = self.within(v, M::Mul, &[x, sign], bound)?;
        self.value(v, M::Reshare, &[product])
    }

    /// [x > 0] − [x < 0].
    pub(super) fn sign(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let x = self.at_f(x)?;
        let minus = self.push(v, M::Neg, &[x])?;
        let (negative, positive) = (self.negative(v, x)?, self.negative(v, minus)?);
        self.within(v, M::Sub, &[positive, negative], 1)
    }

    /// Shares, or the encoded public value, at scale f.
    fn settled_or_public(&mut self, v: ValueId) -> Result<Id> {
        if self.graph.node(v)?.owner == Owner::Public { self.encode(v, self.options.f) } else { self.at_f(v) }
    }

    /// `a − b` at scale f, once for each pair.
    fn difference(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        if let Some(&id) = self.differences.get(&(a, b)) {
            return Ok(id);
        }
        let (left, right) = (self.settled_or_public(a)?, self.settled_or_public(b)?);
        let id = self.push(v, M::Sub, &[left, right])?;
        self.differences.insert((a, b), id);
        Ok(id)
    }

    /// `max(a, b) = b + max(a − b, 0)`, or `min(a, b) = a − max(a − b, 0)`.
    pub(super) fn extremum(&mut self, v: ValueId, a: ValueId, b: ValueId, greatest: bool) -> Result<Id> {
        // A bound that the other value never reaches decides nothing.
        for (x, limit) in [(a, b), (b, a)] {
            let reach = self.options.ranges.size(x);
            if let (Some(k), Some(reach)) = (self.scalar(limit), reach)
                && if greatest { k < -reach } else { k > reach }
                && self.graph.shape(x) == self.graph.shape(v)
            {
                return self.unrescaled(x);
            }
        }
        let difference = self.difference(v, a, b)?;
        let excess = self.positive_part(v, difference)?;
        if greatest {
            let base = self.settled_or_public(b)?;
            return self.value(v, M::Add, &[excess, base]);
        }
        let base = self.settled_or_public(a)?;
        self.value(v, M::Sub, &[base, excess])
    }

    /// Operand 1 where the condition holds, else operand 2. A public condition only picks; a secret one costs a product.
    pub(super) fn choose(&mut self, v: ValueId, condition: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        match self.graph.node(condition)?.owner {
            Owner::Public => {
                let holds = self.public_indicator(condition)?;
                let minus = self.push(v, M::Neg, &[holds])?;
                let fails = self.within(v, M::AddInt { k: 1 }, &[minus], 1)?;
                let scale = self.common_scale(a, b)?;
                let (left, right) = (self.at_scale(a, scale)?, self.at_scale(b, scale)?);
                let left = self.masked(v, left, holds)?;
                let right = self.masked(v, right, fails)?;
                self.value(v, M::Add, &[left, right])
            }
            Owner::Secret => {
                let holds = self.indicator(v, condition)?;
                let difference = self.difference(v, a, b)?;
                let (_, bound) = self.ring(difference)?;
                let product = self.within(v, M::Mul, &[difference, holds], bound)?;
                let base = self.settled_or_public(b)?;
                self.value(v, M::Add, &[product, base])
            }
            Owner::Client | Owner::Server => {
                Err(Diagnostic::unsupported("E0520", "a choice by a condition that one party knows is not supported")
                    .note("expected a condition that is public, or computed from secret values"))
            }
        }
    }

    fn masked(&mut self, v: ValueId, x: Id, mask: Id) -> Result<Id> {
        let (_, bound) = self.ring(x)?;
        self.within(v, M::Mul, &[x, mask], bound)
    }

    /// 1 where a public boolean holds, at scale 0.
    fn public_indicator(&mut self, v: ValueId) -> Result<Id> {
        let value = self.program_value(v)?;
        let cast = self.module.public.push(TensorOp::Cast { to: DType::F32 }, vec![value])?;
        let plain = self.publish_ref(v, cast, DType::F32, self.graph.shape(v).to_vec())?;
        let origin = self.origin(v);
        let op = M::Encode { bits: RING, scale: 0 };
        ombra_ir::infer::push(&mut self.module, op, &[plain], Some((1, BoundFrom::Proven)), origin)
    }

    /// A boolean that is secret: bits, or 0 and 1 in the ring.
    fn truth(&mut self, v: ValueId) -> Result<Id> {
        match self.graph.node(v)?.owner {
            Owner::Secret => self.unrescaled(v),
            _ => Err(Diagnostic::unsupported("E0520", "a boolean that one party knows beside a secret one")
                .note("expected connectives of public booleans and comparisons of secret values")),
        }
    }

    /// A secret boolean as 0 or 1 in the ring, at scale 0.
    pub(super) fn indicator(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let truth = self.truth(x)?;
        if self.module.ty(truth).as_ring().is_some() { Ok(truth) } else { self.in_ring(v, truth) }
    }

    /// `1 − x` of 0 or 1 in the ring.
    fn opposite(&mut self, v: ValueId, x: Id) -> Result<Id> {
        let minus = self.push(v, M::Neg, &[x])?;
        self.within(v, M::AddInt { k: 1 }, &[minus], 1)
    }

    pub(super) fn not(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let truth = self.truth(x)?;
        match self.module.ty(truth).as_ring() {
            Some(_) => self.opposite(v, truth),
            None => self.push(v, M::Not, &[truth]),
        }
    }

    /// `and`, `or` or equality of booleans.
    fn connective(&mut self, v: ValueId, op: Binary, a: ValueId, b: ValueId) -> Result<Id> {
        for (public, secret) in [(a, b), (b, a)] {
            if self.graph.node(public)?.owner == Owner::Public {
                return self.with_public(v, op, public, secret);
            }
        }
        let (x, y) = (self.truth(a)?, self.truth(b)?);
        if self.module.ty(x).as_ring().is_none() && self.module.ty(y).as_ring().is_none() {
            return match op {
                Binary::And => self.push(v, M::And, &[x, y]),
                Binary::Equal => {
                    let differ = self.push(v, M::Xor, &[x, y])?;
                    self.push(v, M::Not, &[differ])
                }
                _ => {
                    let (x, y) = (self.push(v, M::Not, &[x])?, self.push(v, M::Not, &[y])?);
                    let neither = self.push(v, M::And, &[x, y])?;
                    self.push(v, M::Not, &[neither])
                }
            };
        }
        let (x, y) = (self.indicator(v, a)?, self.indicator(v, b)?);
        let both = self.within(v, M::Mul, &[x, y], 1)?;
        let both = self.push(v, M::Reshare, &[both])?;
        if op == Binary::And {
            return Ok(both);
        }
        // x + y − xy, and 1 − x − y + 2xy.
        let sum = self.push(v, M::Add, &[x, y])?;
        let any = self.within(v, M::Sub, &[sum, both], 1)?;
        if op == Binary::Or {
            return Ok(any);
        }
        let one = self.within(v, M::Sub, &[any, both], 1)?;
        self.opposite(v, one)
    }

    /// [`Lower::connective`] of a public and a secret boolean: no message but those that bring bits into the ring.
    fn with_public(&mut self, v: ValueId, op: Binary, public: ValueId, secret: ValueId) -> Result<Id> {
        let (p, x) = (self.public_indicator(public)?, self.indicator(v, secret)?);
        let both = self.within(v, M::Mul, &[x, p], 1)?;
        if op == Binary::And {
            return Ok(both);
        }
        let other = self.opposite(v, p)?;
        if op == Binary::Or {
            let alone = self.within(v, M::Mul, &[x, other], 1)?;
            return self.within(v, M::Add, &[alone, p], 1);
        }
        // Both, or neither.
        let fails = self.opposite(v, x)?;
        let neither = self.within(v, M::Mul, &[fails, other], 1)?;
        self.within(v, M::Add, &[both, neither], 1)
    }

    /// A comparison, or a connective of booleans.
    pub(super) fn predicate(&mut self, v: ValueId, op: Binary, a: ValueId, b: ValueId) -> Result<Id> {
        match op {
            Binary::And | Binary::Or => self.connective(v, op, a, b),
            Binary::Equal if self.graph.node(a)?.dtype == DType::Bool => self.connective(v, op, a, b),
            Binary::Less => self.less(v, a, b),
            Binary::Greater => self.less(v, b, a),
            Binary::GreaterOrEqual => {
                let less = self.less(v, a, b)?;
                self.push(v, M::Not, &[less])
            }
            Binary::LessOrEqual => {
                let less = self.less(v, b, a)?;
                self.push(v, M::Not, &[less])
            }
            Binary::Equal => {
                let (less, greater) = (self.less(v, a, b)?, self.less(v, b, a)?);
                // At most one of the two holds.
                let differs = self.push(v, M::Xor, &[less, greater])?;
                self.push(v, M::Not, &[differs])
            }
            other => {
                Err(Diagnostic::unsupported("E0520", format!("{} of secret values is not supported yet", other.name())))
            }
        }
    }

    fn less(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        let float = |v: ValueId| self.graph.node(v).is_ok_and(|n| n.dtype == DType::F32);
        if !float(a) || !float(b) {
            return Err(Diagnostic::unsupported("E0520", "a comparison of secret integers is not supported yet")
                .note("expected a comparison of floating-point values"));
        }
        let difference = self.difference(v, a, b)?;
        self.negative_bit(v, difference)
    }

    /// Every `step`-th element of an axis: a lookup by public indices.
    pub(super) fn strided(
        &mut self,
        v: ValueId,
        x: ValueId,
        axis: usize,
        (start, len): (&Dim, &Dim),
        step: i64,
    ) -> Result<Id> {
        let op = TensorOp::Iota { start: start.clone(), len: len.clone(), step };
        let value = self.module.public.push(op, Vec::new())?;
        let index = self.publish_ref(v, value, DType::I64, vec![len.clone()])?;
        let x = self.unrescaled(x)?;
        self.value(v, M::Gather { axis: axis as u8 }, &[x, index])
    }
}
