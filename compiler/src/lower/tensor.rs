//! Tensor operators on secrets: which functions of lowering they are, and whether these take shares.

use super::Lower;
use crate::graph::{TensorOp, ValueId};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plain::{Binary, DType, Reduce, Unary};
use ombra_ir::{Diagnostic, Result};

impl Lower<'_> {
    /// The unrescaled form of `op` of `args`, the secret value `v`.
    pub(super) fn tensor(&mut self, v: ValueId, op: &TensorOp, args: &[ValueId]) -> Result<Id> {
        use TensorOp as T;
        let dtype = |v: ValueId| self.graph.node(v).map(|n| n.dtype);
        match op {
            T::MatMul => self.matmul(v, args[0], args[1]),
            T::Unary(unary) => self.function(v, *unary, args[0]),
            T::Binary(binary) => self.binary(v, *binary, args[0], args[1]),
            T::Where => self.choose(v, args[0], args[1], args[2]),
            T::Cast { to: DType::F32 | DType::I64 } if dtype(args[0])? == DType::Bool => self.indicator(v, args[0]),
            // Integers come of booleans alone.
            T::Cast { to: DType::F32 } if dtype(args[0])? == DType::I64 => self.unrescaled(args[0]),
            T::ArgMax => self.arg_max(v, args[0]),
            T::Reduce { kind: Reduce::Mean, axes, keepdims } => self.reduce(v, args[0], axes, *keepdims, true),
            T::Reduce { kind: Reduce::Sum, axes, keepdims } => self.reduce(v, args[0], axes, *keepdims, false),
            T::Reduce { kind: Reduce::Max, .. } => self.reduce_max(v, args[0]),
            T::Reshape { shape } => self.moved_to(v, args[0], M::Reshape { shape: shape.clone() }),
            T::Transpose { perm } => {
                self.moved_to(v, args[0], M::Transpose { perm: perm.iter().map(|&p| p as u8).collect() })
            }
            T::Slice { axis, start, len, step: 1 } => {
                self.moved_to(v, args[0], M::Slice { axis: *axis as u8, start: start.clone(), len: len.clone() })
            }
            T::Slice { axis, start, len, step } => self.strided(v, args[0], *axis, (start, len), *step),
            T::Expand { shape } => self.moved_to(v, args[0], M::Expand { shape: shape.clone() }),
            T::Concat { axis } => self.concat(v, args, *axis),
            T::Gather { axis } => self.gather(v, args[0], args[1], *axis),
            other => Err(unsupported(other.name())),
        }
    }

    fn function(&mut self, v: ValueId, unary: Unary, x: ValueId) -> Result<Id> {
        match unary {
            Unary::Neg => self.moved_to(v, x, M::Neg),
            Unary::Reciprocal => self.reciprocal(v, x),
            Unary::Sqrt => self.sqrt(v, x),
            Unary::Exp => self.exponential(v, x),
            Unary::Log => self.log(v, x),
            Unary::Sign => self.sign(v, x),
            Unary::Abs => self.abs(v, x),
            Unary::Not => self.not(v, x),
            Unary::Tanh => self.unary(v, x, M::Tanh),
            Unary::Sigmoid => self.unary(v, x, M::Sigmoid),
            Unary::Erf => self.unary(v, x, M::Erf),
            Unary::Sin => self.unary(v, x, M::Sin),
            Unary::Cos => self.unary(v, x, M::Cos),
            Unary::IsNan | Unary::Floor | Unary::Ceil | Unary::Round => Err(unsupported(unary.name())),
        }
    }

    fn binary(&mut self, v: ValueId, binary: Binary, a: ValueId, b: ValueId) -> Result<Id> {
        match binary {
            Binary::Add => self.add(v, a, b, false),
            Binary::Sub => self.add(v, a, b, true),
            Binary::Mul => self.mul(v, a, b),
            Binary::Div => self.div(v, a, b),
            Binary::Max => self.extremum(v, a, b, true),
            Binary::Min => self.extremum(v, a, b, false),
            Binary::And
            | Binary::Or
            | Binary::Equal
            | Binary::Less
            | Binary::LessOrEqual
            | Binary::Greater
            | Binary::GreaterOrEqual => self.predicate(v, binary, a, b),
            Binary::Pow => Err(Diagnostic::unsupported(
                "E0520",
                "a power with a secret or varying exponent is not supported",
            )
            .note("it would be exp(y ln x), whose relative error in fixed point is large where results differ in size")
            .note("expected one exponent that is a constant of the model")),
            Binary::Mod => Err(unsupported(binary.name())),
        }
    }

    /// A linear op of one operand, which leaves it as unrescaled as it is.
    fn moved_to(&mut self, v: ValueId, x: ValueId, op: M) -> Result<Id> {
        let x = self.unrescaled(x)?;
        self.value(v, op, &[x])
    }
}

/// Whether lowering takes the operands' shares, and not what linear operators left of them; products of one secret, sums
/// and movements do not.
pub(super) fn takes_shares(op: &TensorOp) -> bool {
    use TensorOp as T;
    match op {
        T::MatMul | T::ArgMax | T::Reduce { kind: Reduce::Max, .. } => true,
        T::Unary(unary) => !matches!(unary, Unary::Neg | Unary::Reciprocal | Unary::Sqrt | Unary::Log | Unary::IsNan),
        T::Binary(binary) => !matches!(binary, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div),
        _ => false,
    }
}

pub(super) fn unsupported(op: &str) -> Diagnostic {
    Diagnostic::unsupported("E0520", format!("operator {op} on a secret value is not supported yet"))
        .note("expected sums, products, quotients, powers, roots, norms, softmax, comparisons, choices, or a usual activation")
        .note("export the model with a standard activation and norm, or make the weights before it public")
}
