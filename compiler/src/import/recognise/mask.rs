//! Masks in the scores of a softmax, taken out of them as public booleans.
//!
//! Exporters say "not this position" by a huge negative number that is added to a score or stands in its place, once or
//! several times, in any order, and no fixed point holds it. What counts is which numbers a public value can be, not how
//! it is written. A number that no score lifts above others, at or below [`GONE`], takes its position out: single
//! precision makes exactly 0 of it. A weaker one, such as -10000, is added or chosen as the file says.

use ombra_ir::plain::{Binary, DType, Tensor, Unary};
use ombra_ir::{Diagnostic, Result};

use super::rotary::published;
use super::softmax::{is_mask, is_structure, public};
use super::values::{Values, possible};
use super::{both_orders, scalar};
use crate::attention::place;
use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};

/// A number at or below this is no bias but means a mask: exporters write -10000, the least half or the least single.
pub(super) const HUGE: f32 = -9.0e3;
/// A number at or below this takes a position out: scores of models, and biases beside it, stay far above.
pub(super) const GONE: f32 = -1.0e9;
/// The least number of half precision takes a position out too: beside it scores of that precision round away.
const LEAST_HALF: f64 = -65504.0;
/// A public bias that stays below this cannot bring back what is taken out.
const MODERATE: f64 = 1.0e8;
/// Most values of one chain of masks that are looked at.
const STEPS: usize = 256;

/// Scores without their masks.
pub(super) struct Masked {
    /// The scores, of the shape of what they were taken from.
    pub scores: ValueId,
    /// Where positions stay, a public value; `None` for everywhere.
    pub keep: Option<ValueId>,
    /// The maximum number that looks like a mask and takes no position out.
    pub weak: Option<f64>,
}

/// Scores, a public bias that belongs to them, and where they stay.
struct Parts {
    scores: ValueId,
    bias: Option<ValueId>,
    keep: Option<ValueId>,
}

impl Parts {
    fn whole(scores: ValueId) -> Parts {
        Parts { scores, bias: None, keep: None }
    }

    fn is_whole(&self, id: ValueId) -> bool {
        self.scores == id && self.bias.is_none() && self.keep.is_none()
    }
}

struct Walk<'a> {
    graph: &'a mut Graph,
    weights: &'a Weights<'a>,
    /// The softmax: what is made comes from where it comes from.
    like: ValueId,
    left: usize,
    /// What values are multiplied by before the softmax sees them, positive.
    factor: f64,
    weak: Option<f64>,
}

/// Takes the masks out of the scores `id` of the softmax `like`.
///
/// # Errors
/// Those of `weights`.
pub(super) fn unmask(graph: &mut Graph, id: ValueId, weights: &Weights, like: ValueId) -> Result<Masked> {
    let mut walk = Walk { graph, weights, like, left: STEPS, factor: 1.0, weak: None };
    let parts = walk.parts(id)?;
    let (scores, keep) = walk.joined(parts, id)?;
    Ok(Masked { scores, keep, weak: walk.weak })
}

/// Numbers at or below this fit no ring beside values of a model.
const UNBOUNDED: f64 = -1.0e15;

/// Refuses masks that were not recognised: numbers that no fixed point holds, which meet secret values elsewhere than in
/// the scores of a softmax. One error a node.
pub fn check_masks(graph: &Graph) -> std::result::Result<(), Vec<Diagnostic>> {
    let mut errors = Vec::new();
    for id in graph.topological() {
        let meets = matches!(
            graph.op(id),
            Some(Op::Tensor(
                TensorOp::Binary(Binary::Add | Binary::Sub)
                    | TensorOp::Where
                    | TensorOp::Binary(Binary::Max | Binary::Min)
            ))
        );
        if !meets || !graph.node(id).is_ok_and(|n| n.owner == Owner::Secret && n.dtype == DType::F32) {
            continue;
        }
        let least = |o: ValueId| {
            let is_public = graph.node(o).is_ok_and(|n| n.owner == Owner::Public && n.dtype == DType::F32);
            let values = is_public.then(|| possible(graph, o)).flatten()?;
            [values.low(), -values.high()].into_iter().find(|x| *x <= UNBOUNDED)
        };
        let Some(found) = graph.operands(id).into_iter().find_map(least) else { continue };
        let text = "a mask is not recognised: numbers that take positions out meet secret values";
        errors.push(
            Diagnostic::unsupported("E0258", text)
                .at(place(graph, id))
                .note(format!("expected a mask in the scores of a softmax, found numbers of size {:e}", -found))
                .note("use a mask that is added to scores or chosen in their place, by lengths, positions and public inputs"),
        );
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

impl Walk<'_> {
    /// Whether a number takes its position out.
    fn gone(&self, x: f64) -> bool {
        x * self.factor <= f64::from(GONE) || x == LEAST_HALF
    }

    /// Whether a public value may take positions out.
    fn may_be_gone(&self, m: ValueId) -> bool {
        possible(self.graph, m).is_none_or(|values| self.gone(values.low()))
    }

    fn parts(&mut self, id: ValueId) -> Result<Parts> {
        if self.left == 0 {
            return Ok(Parts::whole(id));
        }
        self.left -= 1;
        let operands = self.graph.operands(id);
        match (self.graph.op(id).cloned(), operands.as_slice()) {
            (Some(Op::ADD), [a, b]) => self.sum(id, *a, *b),
            (Some(Op::SUB), [x, m]) if self.is_public(*m) && !self.is_public(*x) => {
                let minus = public(self.graph, TensorOp::Unary(Unary::Neg), &[*m], self.like)?;
                let inner = self.parts(*x)?;
                self.added(id, inner, *x, minus)
            }
            (Some(Op::WHERE), [c, a, b]) if self.is_public(*c) => self.choice(id, *c, *a, *b),
            (Some(Op::MAX), _) => {
                let floor = |m: ValueId| possible(self.graph, m).is_some_and(|values| self.gone(values.high()));
                match both_orders(self.graph, id, &Op::MAX).into_iter().find(|(_, m)| floor(*m)) {
                    // What it lifts is taken out all the same.
                    Some((x, _)) => {
                        let inner = self.parts(x)?;
                        self.widened(id, inner)
                    }
                    None => Ok(Parts::whole(id)),
                }
            }
            (Some(op @ (Op::MUL | Op::DIV)), [a, b]) => {
                let (x, k) = if op == Op::MUL && scalar(self.graph, *a).is_some() { (*b, *a) } else { (*a, *b) };
                let Some(k_value) = scalar(self.graph, k).filter(|k| *k > 0.0 && k.is_finite()).map(f64::from) else {
                    return Ok(Parts::whole(id));
                };
                let outer = self.factor;
                self.factor *= if op == Op::MUL { k_value } else { 1.0 / k_value };
                let inner = self.parts(x);
                self.factor = outer;
                let Parts { scores, bias, keep } = inner?;
                if keep.is_none() && !bias.is_some_and(|bias| self.may_be_gone(bias)) {
                    return Ok(Parts::whole(id));
                }
                let plain = op.tensor().cloned().unwrap_or(TensorOp::Identity);
                let bias = bias.map(|bias| public(self.graph, plain, &[bias, k], self.like)).transpose()?;
                let scores = self.add(op, &[scores, k])?;
                self.widened(id, Parts { scores, bias, keep })
            }
            _ => Ok(Parts::whole(id)),
        }
    }

    fn is_public(&self, id: ValueId) -> bool {
        is_structure(self.graph, id)
    }

    fn add(&mut self, op: Op, operands: &[ValueId]) -> Result<ValueId> {
        let origin = self.graph.node(self.like)?.origin.clone();
        self.graph.add(op, operands, origin)
    }

    fn and(&mut self, a: Option<ValueId>, b: Option<ValueId>) -> Result<Option<ValueId>> {
        match (a, b) {
            (Some(a), Some(b)) => public(self.graph, TensorOp::Binary(Binary::And), &[a, b], self.like).map(Some),
            (one, None) | (None, one) => Ok(one),
        }
    }

    /// `parts` with scores of the shape of `id`.
    fn widened(&mut self, id: ValueId, parts: Parts) -> Result<Parts> {
        let shape = self.graph.shape(id).to_vec();
        if self.graph.shape(parts.scores) == shape {
            return Ok(parts);
        }
        let scores = self.add(Op::Tensor(TensorOp::Expand { shape }), &[parts.scores])?;
        Ok(Parts { scores, ..parts })
    }

    fn sum(&mut self, id: ValueId, a: ValueId, b: ValueId) -> Result<Parts> {
        for (x, m) in [(a, b), (b, a)] {
            if self.is_public(x) {
                continue;
            }
            if self.is_public(m) {
                let inner = self.parts(x)?;
                return self.added(id, inner, x, m);
            }
            if let Some(m) = self.weight_mask(m)? {
                let inner = self.parts(x)?;
                return self.added(id, inner, x, m);
            }
        }
        if self.is_public(a) || self.is_public(b) {
            return Ok(Parts::whole(id));
        }
        // A mask may be in either: a bias that is a weight may carry it.
        let (left, right) = (self.parts(a)?, self.parts(b)?);
        if left.keep.is_none() && right.keep.is_none() {
            return Ok(Parts::whole(id));
        }
        let scores = self.add(Op::ADD, &[left.scores, right.scores])?;
        let bias = match (left.bias, right.bias) {
            (Some(a), Some(b)) => Some(public(self.graph, TensorOp::Binary(Binary::Add), &[a, b], self.like)?),
            (one, None) | (None, one) => one,
        };
        let keep = self.and(left.keep, right.keep)?;
        self.widened(id, Parts { scores, bias, keep })
    }

    /// `inner`, which is what `x` is made of, plus a public `m`, together `id`.
    fn added(&mut self, id: ValueId, inner: Parts, x: ValueId, m: ValueId) -> Result<Parts> {
        let values = possible(self.graph, m);
        let high = values.as_ref().map_or(f64::INFINITY, Values::high);
        // A number of any size could bring back what was taken out before.
        let inner = if inner.keep.is_some() && high > MODERATE { Parts::whole(x) } else { inner };
        let bias_high = |bias| possible(self.graph, bias).map_or(f64::INFINITY, |values| values.high());
        let safe = inner.bias.is_none_or(|bias| bias_high(bias) <= MODERATE);
        if safe && values.as_ref().is_some_and(|values| values.all(|v| v == 0.0 || self.gone(v))) {
            let bits = self.truth_values(m)?;
            let keep = self.and(inner.keep, Some(bits))?;
            return self.widened(id, Parts { keep, ..inner });
        }
        let bias = match inner.bias {
            Some(old) => public(self.graph, TensorOp::Binary(Binary::Add), &[old, m], self.like)?,
            None => m,
        };
        self.widened(id, Parts { bias: Some(bias), ..inner })
    }

    /// `id`: `a` where the public `c` holds, else `b`.
    fn choice(&mut self, id: ValueId, c: ValueId, a: ValueId, b: ValueId) -> Result<Parts> {
        let (x, m, negated) = match (self.is_public(a), self.is_public(b)) {
            (false, true) => (a, b, false),
            (true, false) => (b, a, true),
            _ => return Ok(Parts::whole(id)),
        };
        let values = possible(self.graph, m);
        let inner = self.parts(x)?;
        if values.as_ref().is_some_and(|values| self.gone(values.high())) {
            let kept = if negated { public(self.graph, TensorOp::Unary(Unary::Not), &[c], self.like)? } else { c };
            let keep = self.and(inner.keep, Some(kept))?;
            return self.widened(id, Parts { keep, ..inner });
        }
        let stays = values.as_ref().is_some_and(|values| !self.gone(values.low()));
        if stays && inner.is_whole(x) {
            self.see_weak(m);
            return Ok(Parts::whole(id));
        }
        // What is chosen stays a score, or is one where it is not gone.
        let (scores, keep) = self.joined(inner, x)?;
        if stays && keep.is_none() {
            self.see_weak(m);
            let choice = if negated { [c, m, scores] } else { [c, scores, m] };
            return Ok(Parts::whole(self.add(Op::WHERE, &choice)?));
        }
        let origin = self.graph.node(self.like)?.origin.clone();
        let always = self.graph.add_const(Tensor::bool(&[], vec![true])?, origin)?;
        let (bits, filling) = if stays { (always, m) } else { self.kept_bias(m)? };
        let keep = keep.unwrap_or(always);
        let (choice, kept) =
            if negated { ([c, filling, scores], [c, bits, keep]) } else { ([c, scores, filling], [c, keep, bits]) };
        let scores = self.add(Op::WHERE, &choice)?;
        let keep = public(self.graph, TensorOp::Where, &kept, self.like)?;
        self.widened(id, Parts { scores, bias: None, keep: Some(keep) })
    }

    /// Where the public `m` takes no position out, and `m` there, 0 elsewhere.
    fn kept_bias(&mut self, m: ValueId) -> Result<(ValueId, ValueId)> {
        let origin = self.graph.node(self.like)?.origin.clone();
        let limit = (f64::from(GONE) / self.factor) as f32;
        let limit = self.graph.add_const(Tensor::scalar_f32(limit), origin.clone())?;
        let bits = public(self.graph, TensorOp::Binary(Binary::Greater), &[m, limit], self.like)?;
        let zero = self.graph.add_const(Tensor::scalar_f32(0.0), origin)?;
        Ok((bits, public(self.graph, TensorOp::Where, &[bits, m, zero], self.like)?))
    }

    fn see_weak(&mut self, m: ValueId) {
        let least = possible(self.graph, m).map(|values| values.low());
        if let Some(least) = least.filter(|least| *least <= f64::from(HUGE) && !self.gone(*least)) {
            self.weak = Some(self.weak.map_or(least, |weak| weak.max(least)));
        }
    }

    /// Scores with their bias, which together were `id`, and where they stay.
    fn joined(&mut self, parts: Parts, id: ValueId) -> Result<(ValueId, Option<ValueId>)> {
        let Parts { scores, bias, keep } = parts;
        let Some(mut bias) = bias else { return Ok((scores, keep)) };
        self.see_weak(bias);
        let mut keep = keep;
        if self.may_be_gone(bias) {
            let (bits, rest) = self.kept_bias(bias)?;
            keep = self.and(keep, Some(bits))?;
            bias = rest;
        }
        if keep.is_none() {
            // Nothing is taken out: it is as it was.
            return Ok((id, None));
        }
        Ok((self.add(Op::ADD, &[scores, bias])?, keep))
    }

    /// Where the public `m`, which is 0 or takes positions out, is 0: the condition itself when `m` chooses between them.
    fn truth_values(&mut self, m: ValueId) -> Result<ValueId> {
        let operands = self.graph.operands(m);
        if let (Some(Op::Tensor(TensorOp::Where)), [c, a, b]) = (self.graph.op(m), operands.as_slice()) {
            let is_gone = |id| possible(self.graph, id).is_some_and(|values| self.gone(values.high()));
            let is_zero = |id| possible(self.graph, id).is_some_and(|values| values.all(|x| x == 0.0));
            if is_zero(*a) && is_gone(*b) {
                return Ok(*c);
            }
            if is_zero(*b) && is_gone(*a) {
                return public(self.graph, TensorOp::Unary(Unary::Not), &[*c], self.like);
            }
        }
        let origin = self.graph.node(self.like)?.origin.clone();
        let limit = self.graph.add_const(Tensor::scalar_f32(-1.0), origin)?;
        public(self.graph, TensorOp::Binary(Binary::Greater), &[m, limit], self.like)
    }

    /// `m` as a public value, when it is made of weights that are masks, and of lengths, by movements alone. It takes the
    /// place of `m`: a mask is public, whatever becomes of it.
    fn weight_mask(&mut self, m: ValueId) -> Result<Option<ValueId>> {
        if self.graph.node(m)?.owner != Owner::Server {
            return Ok(None);
        }
        for at in self.graph.ancestors(m) {
            let node = self.graph.node(at)?;
            let is_part = match &node.op {
                Op::Weight { name, .. } => is_mask(&(self.weights)(name)?),
                Op::Tensor(
                    TensorOp::Reshape { .. }
                    | TensorOp::Transpose { .. }
                    | TensorOp::Slice { .. }
                    | TensorOp::Expand { .. },
                ) => true,
                _ => node.owner == Owner::Public,
            };
            if !is_part {
                return Ok(None);
            }
        }
        let public = published(self.graph, m, self.weights)?;
        self.graph.replace_all_uses(m, public)?;
        Ok(Some(public))
    }
}
