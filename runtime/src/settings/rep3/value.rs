//! What one party holds of the result of an op.

use ombra_ir::bind::Bound;
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Result};

use super::chain::Chain;
use crate::settings::rep3::local::linear::Ring;
use crate::settings::rep3::reshare::Operand;
use crate::settings::rep3::share::{Bits, Shared};
use crate::settings::weights::Matrix;

/// The result of an op at one party. Its shape is in [`Bound`]; it has no `Debug`.
pub enum Value {
    /// A value of the public program, by index.
    Plain(u32),
    /// Integers of the client, which the other parties do not have.
    Ids(Option<Vec<i64>>),
    /// Ring elements.
    Ring(Ring),
    /// A weight matrix that is made block by block.
    Matrix(Matrix),
    /// Element-wise ops that have not run yet.
    Chain(Chain),
    /// Shared bits.
    Bits(Bits),
    /// Nothing: the op is an output.
    Done,
}

impl Value {
    /// The public tensor. E0811 for another value.
    pub(super) fn plain<'a>(&self, bound: &'a Bound) -> Result<&'a Tensor> {
        match self {
            Value::Plain(index) => bound.public.get(*index as usize).ok_or_else(|| unexpected("a public value")),
            _ => Err(unexpected("a public value")),
        }
    }

    /// The ring elements. E0811 for another value.
    pub(crate) fn ring(&self) -> Result<&Ring> {
        match self {
            Value::Ring(ring) => Ok(ring),
            _ => Err(unexpected("ring elements")),
        }
    }

    /// The replicated sharing. E0811 for another value.
    pub(super) fn shared(&self) -> Result<&Shared> {
        match self {
            Value::Ring(Ring::Shared(shared)) => Ok(shared),
            _ => Err(unexpected("a sharing")),
        }
    }

    /// The secret to divide or reshare. E0811 for another value.
    pub(super) fn operand(&self) -> Result<Operand<'_>> {
        match self {
            Value::Ring(Ring::Shared(shared)) => Ok(Operand::Shared(shared)),
            Value::Ring(Ring::Two(sum)) => Ok(Operand::Two(sum)),
            Value::Ring(Ring::Three(sum)) => Ok(Operand::Three(sum)),
            _ => Err(unexpected("a secret")),
        }
    }

    /// The shared bits. E0811 for another value.
    pub(super) fn bits(&self) -> Result<&Bits> {
        match self {
            Value::Bits(bits) => Ok(bits),
            _ => Err(unexpected("shared bits")),
        }
    }
}

fn unexpected(expected: &str) -> Diagnostic {
    Diagnostic::internal("E0811", "an op has an operand of another kind")
        .note(format!("expected  {expected}"))
        .note("the plan should have been refused: report this")
}
