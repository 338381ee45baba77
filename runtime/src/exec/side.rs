//! What the executor asks of a setting at one party: what the party holds of a value, and what it does for every op.

use std::sync::Arc;

use ombra_ir::bind::Bound;
use ombra_ir::module::{Id, Module, Node, Party};
use ombra_ir::op::Op;
use ombra_ir::settings::Traffic;
use ombra_ir::ty::Ty;
use ombra_ir::{Diagnostic, Result};

use super::task::Task;
use crate::backend::products::Products;

/// Where and when an op runs.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The program.
    pub module: &'a Module,
    /// The program at this step's sizes.
    pub bound: &'a Bound,
    /// The op.
    pub id: Id,
    /// This party.
    pub party: Party,
    /// The step, counted from the first of the session: randomness is fresh in each.
    pub epoch: u32,
    /// What the op sends.
    pub traffic: &'a Traffic,
    /// Whether more than one op takes the result.
    pub is_shared: bool,
    /// How products are made.
    pub products: &'a Products,
}

impl<'a> Site<'a> {
    /// The op with its operands and type.
    pub fn node(&self) -> &'a Node {
        self.module.node(self.id)
    }

    /// Concrete sizes of the result.
    pub fn shape(&self) -> &'a [usize] {
        &self.bound.shapes[self.id.index()]
    }
}

/// What an op is given beside its operands.
pub enum Given {
    /// Nothing.
    Nothing,
    /// Ring elements of the client's input; `None` at other parties.
    Words(Option<Vec<u64>>),
    /// Integers of the client; `None` at other parties.
    Ints(Option<Vec<i64>>),
}

/// What an op has come to when it is begun.
pub enum Begun<V> {
    /// Its result.
    Value(Arc<V>),
    /// It sends messages, or may: it has not run yet.
    Waits(Task<Ended<V>>),
    /// An output, as [`Ended::Opened`], that needed no message.
    Opened(Option<Vec<u64>>),
}

/// What an op that sends messages ends with.
pub enum Ended<V> {
    /// The op's result.
    Value(V),
    /// What this party learned, if it is the one that learns it: ring elements.
    Opened(Option<Vec<u64>>),
}

/// A public index into an axis of `size`; negative ones count from the end. E0806 when it is out of range.
pub fn row_index(index: i64, size: usize) -> Result<usize> {
    let found = usize::try_from(if index < 0 { index.saturating_add_unsigned(size as u64) } else { index });
    found.ok().filter(|&row| row < size).ok_or_else(|| {
        Diagnostic::input("E0806", "an index is out of range").note(format!("expected  an index below {size}"))
    })
}

/// One party's side of a setting.
pub trait Side {
    /// What the party holds of the result of an op.
    type Value;

    /// Whether the setting has a kernel for an op, whatever its operands are. Asked of every op when a program is loaded.
    fn has_kernel(op: &Op) -> bool;

    /// Runs an op that sends nothing, or begins one that does. Weights and `set_state` are not begun.
    ///
    /// # Errors
    /// Operands of another kind than the op takes.
    fn begin(&self, site: Site<'_>, args: Vec<Arc<Self::Value>>, given: Given) -> Result<Begun<Self::Value>>;

    /// A weight, for an operand of the op `user`: `slot` is which one.
    ///
    /// # Errors
    /// A weight that was not shared, or that cannot be read.
    fn weight(&self, id: Id, user: &Op, slot: usize) -> Result<Arc<Self::Value>>;

    /// The value in the form in which it stays beyond a step: with nothing put off.
    ///
    /// # Errors
    /// A value that has no such form.
    fn settled(&self, value: &Arc<Self::Value>) -> Result<Arc<Self::Value>>;

    /// A state without elements, of a type and a shape.
    ///
    /// # Errors
    /// A type that is no state's.
    fn empty(&self, ty: &Ty, shape: &[usize]) -> Result<Self::Value>;

    /// The first `length` elements of a state along an axis, without a message.
    ///
    /// # Errors
    /// A value that is no state.
    fn cut(&self, value: &Self::Value, shape: &[usize], axis: usize, length: usize) -> Result<Self::Value>;
}
