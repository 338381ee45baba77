//! Settings at one party: what a party holds of a value, and what it does for every op.
//!
//! The executor ([`crate::exec`]) knows orders, ticks, frames, states and lifetimes of values; everything that depends on
//! how secrets are held is a [`Side`]. The facts of a setting that all parties and the compiler share are in
//! `ombra_ir::settings`.

pub mod cx;
pub mod dealer;
pub mod plain;
pub mod rep3;
mod rows;
#[cfg(test)]
mod testing;
pub(crate) mod wire;
pub mod words;

use std::sync::Arc;

use ombra_ir::bind::Bound;
use ombra_ir::module::{Id, Module, Node, Party};
use ombra_ir::op::Op;
use ombra_ir::schedule::of_server;
use ombra_ir::settings::{Setting, Traffic};
use ombra_ir::{Diagnostic, Result};

use crate::exec::run::check_kernels;
use crate::exec::{Run, Steps, Task};
use cx::Keys;
use dealer::Dealer;
use rep3::Rep3;
use rep3::setup::Weights;

/// The side of `party` of a session with fresh keys, in the setting of the verified `module`, with `threads` threads for
/// products.
///
/// # Errors
/// Those of [`check`].
pub fn begin(
    module: Arc<Module>,
    party: Party,
    keys: Keys,
    weights: Arc<Weights>,
    threads: usize,
) -> Result<Box<dyn Steps>> {
    Ok(match module.setting {
        Setting::ThreeParty => Box::new(Run::new(module, party, Rep3::new(keys, weights), threads)?),
        Setting::Dealer => Box::new(Run::new(module, party, Dealer::new(party, keys, weights), threads)?),
        Setting::Plain => return Err(no_parties()),
    })
}

/// Checks that parties can run a module: its setting has a kernel for every op.
///
/// # Errors
/// `E0815` for an op without a kernel, `E0421` for a setting without messages.
pub fn check(module: &Module) -> Result<()> {
    match module.setting {
        Setting::ThreeParty => check_kernels::<Rep3>(module),
        Setting::Dealer => {
            let weights = |node: &Node| node.args.get(1).is_some_and(|&table| of_server(module, table));
            if module.ops.iter().any(|node| matches!(node.op, Op::Embed) && !weights(node)) {
                let what = "a lookup in a table that is no private weight has no kernel in the setting 2pc-dealer";
                return Err(Diagnostic::internal("E0815", what));
            }
            check_kernels::<Dealer>(module)
        }
        Setting::Plain => Err(no_parties()),
    }
}

fn no_parties() -> Diagnostic {
    Diagnostic::input("E0421", "a plan for one party in the clear does not run between parties")
        .note("help      compile for 3pc or 2pc-dealer")
}

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
    /// Threads of a product.
    pub threads: usize,
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
    /// It waits for messages.
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

    /// A state without elements, of so many ring bits and a shape.
    fn empty(&self, bits: u8, shape: &[usize]) -> Self::Value;

    /// The first `length` elements of a state along an axis, without a message.
    ///
    /// # Errors
    /// A value that is no state.
    fn cut(&self, value: &Self::Value, shape: &[usize], axis: usize, length: usize) -> Result<Self::Value>;
}
