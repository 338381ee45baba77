//! Rows divided by their own length.

use super::rules::Prover;
use super::spread::size_of;
use crate::graph::{Op, TensorOp, ValueId};
use ombra_ir::Dim;
use ombra_ir::plain::{Binary, Reduce, Unary};

/// Powers of two between the ends of a divisor, and beside them bits of the dividend, up to which the inverse has eight
/// significant bits at the divisor's maximum, see the expansion of quotients.
const WIDEST: f64 = 24.0;
const ROOM: f64 = 53.0;

impl Prover<'_> {
    /// The axis along which a quotient's rows have a length of about 1, and what bounds that, where it is `x / ‖x‖`.
    ///
    /// The divisor `d` is at least `away`, and was computed from elements that may be `u` off, two units as quotients of three
    /// terms are, whose squares are off by as much, and so may their sum be and its root by two: for `n` elements the row is at most
    /// `√((d + 2u)² + (n + 2)u) + √n·u` long, which over `d` is largest for the least. Roots are exact from `√u` on; where
    /// the sum is less than `u`, the row is no longer than that. What the inverse and the quotient are off by comes on top.
    pub(super) fn normalised(&self, v: ValueId) -> Option<(usize, f64)> {
        let (x, divisor) = self.graph.quotient(v)?;
        let axis = self.root_of_squares(x, divisor)?;
        let n = size_of(self.graph.shape(x).get(axis)?)? as f64;
        let (low, most) = self.proofs.get(&divisor)?.ends();
        let away = self.away.get(&divisor).copied().unwrap_or(0.0).max(low);
        let unit = libm::exp2(-f64::from(self.f));
        let bits = libm::log2(self.proofs.get(&x)?.size().max(unit)) + f64::from(self.f);
        let spread = libm::log2(most / away);
        if away <= 0.0 || spread > WIDEST || bits + spread > ROOM || most * unit > 1.0 / 256.0 {
            return None;
        }
        let off = 2.0 * unit;
        let row = libm::hypot(away.max(libm::sqrt(off)) + 2.0 * off, libm::sqrt((n + 2.0) * off)) + libm::sqrt(n) * off;
        let loose = super::proof::LOOSE + most * unit;
        Some((axis, row / away * loose + 2.0 * libm::sqrt(n) * off))
    }

    /// The axis over which `root` is the root of the sum of the squares of `x`, brought to the form of `x` again.
    fn root_of_squares(&self, x: ValueId, root: ValueId) -> Option<usize> {
        let graph = self.graph;
        let mut at = root;
        let mut forms = vec![graph.shape(at)];
        loop {
            at = match graph.op(at)? {
                Op::Tensor(TensorOp::Unary(Unary::Sqrt)) => break,
                Op::Tensor(TensorOp::Expand { .. } | TensorOp::Reshape { .. }) => graph.operand(at, 0)?,
                _ => graph.limited(at)?.0,
            };
            forms.push(graph.shape(at));
        }
        let sum = graph.operand(at, 0)?;
        let Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes, keepdims }) = graph.op(sum)? else { return None };
        let &[axis] = axes.as_slice() else { return None };
        let squares = graph.operand(sum, 0)?;
        let of_x = match (graph.op(squares)?, graph.operands(squares).as_slice()) {
            (Op::Tensor(TensorOp::Binary(Binary::Mul)), &[a, b]) => a == x && b == x,
            (Op::Pow(p), &[a]) => a == x && *p == 2.0,
            _ => false,
        };
        // The axis is there with one element, and all others where they were.
        let mut kept = graph.shape(x).to_vec();
        *kept.get_mut(axis)? = Dim::constant(1);
        let whole = |form: &&[Dim]| **form == *kept || **form == *graph.shape(x);
        let mut forms = forms.into_iter().skip_while(|form| whole(form));
        let in_place = if *keepdims { forms.next().is_none() } else { forms.all(|form| form.len() + 1 == kept.len()) };
        (of_x && in_place).then_some(axis)
    }
}
