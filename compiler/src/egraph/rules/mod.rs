//! The rules: equations between terms, directed, each with its side conditions.
//!
//! A rule looks at one class and says what else it equals. Laws for authors stand in `README.md` beside this file.

mod movement;
mod products;
mod scales;
mod sums;

use super::language::{EGraph, Facts, Tree};
#[cfg(test)]
use super::sampling::Draw;
use crate::graph::{Op, Owner, TensorOp};
use egg::Id;
use ombra_ir::Dim;
use ombra_ir::plain::Binary;
use std::sync::LazyLock;

/// What a rule says of a class.
#[derive(Clone, Debug)]
pub enum Finding {
    /// It equals this term.
    Equal(Tree),
    /// It is nearly a match; why it is refused.
    Near(String),
}

/// A rule.
pub struct Rule {
    /// Its name, as in reports.
    pub name: &'static str,
    /// The equation.
    pub equation: &'static str,
    /// How far both sides may be apart, relative to the maximum value of either, in single precision.
    pub tolerance: f32,
    /// Whether the report says where it would have made the program costlier.
    pub reported: bool,
    /// What it says of a class.
    pub find: fn(&View, Id) -> Vec<Finding>,
    /// Graphs in which it must find something, however they are sampled.
    #[cfg(test)]
    pub(super) found: &'static [fn(&mut Draw)],
    /// Graphs in which it must find nothing.
    #[cfg(test)]
    pub(super) refused: &'static [fn(&mut Draw)],
}

/// All rules, by theme. Their order has no effect but on names in reports: of two rules that make a term, the first is named.
pub static RULES: LazyLock<Vec<&Rule>> =
    LazyLock::new(|| [products::RULES, scales::RULES, movement::RULES, sums::RULES].into_iter().flatten().collect());

/// An e-graph as rules see it.
pub struct View<'a> {
    egraph: &'a EGraph,
}

impl<'a> View<'a> {
    /// The rules' view of an e-graph without pending unions.
    pub fn new(egraph: &'a EGraph) -> Self {
        View { egraph }
    }

    /// Operators and operands of a class, leaves left out.
    fn nodes(&self, class: Id) -> impl Iterator<Item = (&'a Op, &'a [Id])> + use<'a> {
        let egraph = self.egraph;
        egraph[class].nodes.iter().filter_map(|n| Some((egraph.analysis.op(n.head)?, n.args.as_slice())))
    }

    /// Operands of every term of a class whose operator satisfies `of` and that has two operands.
    fn pairs(&self, class: Id, of: fn(&Op) -> bool) -> Vec<(&'a Op, Id, Id)> {
        self.nodes(class)
            .filter_map(|(op, args)| match args {
                [a, b] if of(op) => Some((op, *a, *b)),
                _ => None,
            })
            .collect()
    }

    /// The same, in both orders.
    fn unordered(&self, class: Id, of: fn(&Op) -> bool) -> Vec<(Id, Id)> {
        self.pairs(class, of).into_iter().flat_map(|(_, a, b)| [(a, b), (b, a)]).collect()
    }

    /// The operand of every term of a class whose operator satisfies `of` and that has one operand.
    fn singles(&self, class: Id, of: fn(&Op) -> bool) -> Vec<(&'a Op, Id)> {
        self.nodes(class)
            .filter_map(|(op, args)| match args {
                [x] if of(op) => Some((op, *x)),
                _ => None,
            })
            .collect()
    }

    fn facts(&self, class: Id) -> &'a Facts {
        &self.egraph[class].data
    }

    fn shape(&self, class: Id) -> &'a [Dim] {
        &self.facts(class).ty.shape
    }

    fn owner(&self, class: Id) -> Owner {
        self.facts(class).owner
    }

    /// A matrix that is known before a run, to everybody or to the server.
    fn is_known_matrix(&self, class: Id) -> bool {
        let f = self.facts(class);
        f.fixed && matches!(f.owner, Owner::Public | Owner::Server) && f.ty.shape.len() == 2
    }

    /// A constant full of one number that changes no shape.
    fn scalar(&self, class: Id) -> Option<f32> {
        let f = self.facts(class);
        f.full.filter(|k| k.is_finite() && f.ty.shape.iter().all(|d| d.is(1)) && f.ty.shape.len() <= 1)
    }

    /// Rows and columns of a matrix of known size.
    fn matrix(&self, class: Id) -> Option<(i64, i64)> {
        match self.shape(class) {
            [k, n] => Some((k.as_constant()?, n.as_constant()?)),
            _ => None,
        }
    }
}

fn is_matmul(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::MatMul))
}

fn is_add(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Binary(Binary::Add)))
}

fn is_sum(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub)))
}

fn is_mul(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Binary(Binary::Mul)))
}

/// The permutation that exchanges the axes of a matrix.
fn turn() -> Op {
    Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] })
}

fn is_turn(op: &Op) -> bool {
    matches!(op, Op::Tensor(TensorOp::Transpose { perm }) if perm[..] == [1, 0])
}
