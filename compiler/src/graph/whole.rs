//! Whole numbers among public values, such as masks and what is counted by them, and means over what a mask keeps.
//!
//! What is found follows from operators and element types alone. Where it is not, nothing is said.

use super::{Graph, InputRole, Op, TensorOp, ValueId};
use ombra_ir::plain::{Binary, DType, Data, Reduce, Tensor, Unary};
use std::collections::BTreeSet;

/// A sum of products with numbers that are not negative, over the sum of these.
pub struct Mean {
    /// What is multiplied.
    pub x: ValueId,
    /// What it is multiplied by: whole numbers, not negative.
    pub weights: ValueId,
    /// The sum of the products.
    pub sum: ValueId,
    /// Its axes.
    pub axes: Vec<usize>,
    /// Whether they stay with size 1.
    pub keepdims: bool,
}

impl Graph {
    /// Whether a value's elements are whole numbers, whatever the inputs are.
    pub fn is_whole(&self, v: ValueId) -> bool {
        self.is_made_of_whole(v, true)
    }

    /// Whether they are whole numbers that are not negative.
    pub fn is_count(&self, v: ValueId) -> bool {
        self.is_made_of_whole(v, false)
    }

    fn is_made_of_whole(&self, v: ValueId, negative: bool) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![v]);
        while let Some(at) = open.pop() {
            if !seen.insert(at) {
                continue;
            }
            let Ok(node) = self.node(at) else { return false };
            if node.dtype == DType::Bool || node.dtype == DType::I64 && negative {
                continue;
            }
            let args = self.operands(at);
            let from = match &node.op {
                Op::Tensor(TensorOp::Constant(t)) if is_whole(t, negative) => 0..0,
                Op::Input { role: InputRole::AttentionMask, .. } if node.dtype == DType::I64 => 0..0,
                Op::Tensor(TensorOp::Constant(_)) | Op::Weight { .. } | Op::Input { .. } => return false,
                op if op.moves() => 0..1,
                op => match op.tensor() {
                    Some(
                        TensorOp::Concat { .. }
                        | TensorOp::Binary(Binary::Add | Binary::Mul | Binary::Max | Binary::Min)
                        | TensorOp::Cast { .. }
                        | TensorOp::Reduce { kind: Reduce::Sum | Reduce::Max | Reduce::Min | Reduce::Prod, .. },
                    ) => 0..args.len(),
                    Some(TensorOp::Binary(Binary::Sub) | TensorOp::Unary(Unary::Neg)) if negative => 0..args.len(),
                    Some(TensorOp::Unary(Unary::Abs)) if negative => 0..args.len(),
                    Some(TensorOp::ConstantOfShape { value, .. }) if is_whole(value, negative) => 0..0,
                    Some(TensorOp::Where) => 1..args.len(),
                    _ => return false,
                },
            };
            open.extend(args.get(from).unwrap_or_default());
        }
        true
    }

    /// The mean that a quotient is, `Σ x·m / Σ m` for whole numbers `m` that are not negative; the divisor may be limited
    /// to at least a number up to 1.
    pub fn mean(&self, v: ValueId) -> Option<Mean> {
        let (sum, divisor) = self.quotient(v)?;
        self.mean_of(sum, divisor)
    }

    /// The two sides of a quotient, also where it is a product with an inverse.
    pub fn quotient(&self, v: ValueId) -> Option<(ValueId, ValueId)> {
        match (self.op(v)?, self.operands(v).as_slice()) {
            (Op::Tensor(TensorOp::Binary(Binary::Div)), &[a, b]) => Some((a, b)),
            (Op::Tensor(TensorOp::Binary(Binary::Mul)), &[a, b]) => [(a, b), (b, a)]
                .into_iter()
                .find(|(_, b)| matches!(self.op(*b), Some(Op::Tensor(TensorOp::Unary(Unary::Reciprocal)))))
                .and_then(|(a, b)| Some((a, self.operand(b, 0)?))),
            _ => None,
        }
    }

    /// As [`Graph::mean`], for the two sides of a quotient.
    pub fn mean_of(&self, sum: ValueId, divisor: ValueId) -> Option<Mean> {
        let counted = self.limited(divisor).map_or(divisor, |(x, _)| x);
        let ((product, axes, keepdims), (weights, of_count, kept)) = (self.summed(sum)?, self.summed(counted)?);
        let (Op::Tensor(TensorOp::Binary(Binary::Mul)), &[a, b]) =
            (self.op(product)?, self.operands(product).as_slice())
        else {
            return None;
        };
        let x = [(a, b), (b, a)].into_iter().find(|(_, m)| *m == weights).map(|(x, _)| x)?;
        let same_axes = axes == of_count && keepdims == kept && self.shape(product).len() == self.shape(weights).len();
        (same_axes && self.is_count(weights)).then_some(Mean { x, weights, sum, axes, keepdims })
    }

    /// What a value is a sum of, over which axes, and whether they stay.
    fn summed(&self, v: ValueId) -> Option<(ValueId, Vec<usize>, bool)> {
        let Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims }) = self.op(v)? else {
            return None;
        };
        Some((self.operand(v, 0)?, axes.clone(), *keepdims))
    }

    /// What a value limits to at least a constant above 0 and up to 1, and the constant.
    pub fn limited(&self, v: ValueId) -> Option<(ValueId, f32)> {
        let (x, low) = match (self.op(v)?, self.operands(v).as_slice()) {
            (Op::Clamp { low, high }, &[x]) if *high == f32::INFINITY || *high == f32::MAX => (x, *low),
            (Op::Tensor(TensorOp::Binary(Binary::Max)), &[a, b]) => [(a, b), (b, a)]
                .into_iter()
                .find_map(|(x, k)| Some((x, self.constant(k).and_then(Tensor::single_f32)?)))?,
            _ => return None,
        };
        (low > 0.0 && low <= 1.0).then_some((x, low))
    }
}

fn is_whole(t: &Tensor, negative: bool) -> bool {
    match t.data() {
        Data::F32(v) => v.iter().all(|x| x.fract() == 0.0 && (negative || *x >= 0.0)),
        Data::I64(v) => negative || v.iter().all(|x| *x >= 0),
        Data::Bool(_) => true,
    }
}
