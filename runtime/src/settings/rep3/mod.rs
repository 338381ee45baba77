//! `3pc`: replicated sharing among client, server and helper; one kernel for each op of the MPC IR.
//!
//! Interactive kernels are `async fn`s over a [`Cx`]; they send exactly what `ombra_ir::settings::rep3` says. Role 2 deals:
//! in every kernel but [`embed`] it receives nothing and waits for no round. Local kernels are in [`local`]. No kernel sees
//! a socket, a clock or a thread.

mod chain;
mod choice;
pub mod compare;
pub mod convert;
mod cross;
pub mod curve;
mod divide_three;
pub mod embed;
pub mod exp;
pub mod input;
mod interactive;
mod join;
pub mod local;
mod local_ops;
mod planes;
pub mod random;
pub mod reshare;
pub mod reveal;
pub mod share;
pub mod tree;
pub mod truncate;
pub mod value;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;

use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::{Class, Op};
use ombra_ir::ty::Ty;

pub use super::cx::{Cx, Keys, Purpose};
use super::tables::CurveTables;
use super::weights::{Found, Weights};
use super::words::movement::slice;
use super::words::ops::is_linear;
use crate::exec::side::{Begun, Given, Side, Site};
use local::linear::Ring;
use share::{Component, Shared};
use value::Value;

/// One party of the setting in a session: its keys, and what it holds of the weights.
pub struct Rep3 {
    keys: Rc<Keys>,
    weights: Arc<Weights>,
    tables: Rc<CurveTables>,
}

impl Rep3 {
    /// The side of a party with fresh keys.
    pub fn new(keys: Keys, weights: Arc<Weights>) -> Self {
        Rep3 { keys: Rc::new(keys), weights, tables: Rc::default() }
    }
}

impl Side for Rep3 {
    type Value = Value;

    fn has_kernel(op: &Op) -> bool {
        match op.class() {
            Class::Source => true,
            Class::Composite => false,
            Class::Core => interactive::has_kernel(op) || is_linear(op),
        }
    }

    fn begin(&self, site: Site<'_>, args: Vec<Arc<Value>>, given: Given) -> Result<Begun<Value>> {
        let node = site.node();
        let cx = || Cx::new(Rc::clone(&self.keys), site.party.index() as u8, node.rot, site.id.0, site.epoch);
        let value = match (&node.op, given) {
            (Op::Public { value }, _) => Value::Plain(*value),
            (Op::ClientInts { .. }, Given::Ints(ids)) => Value::Ids(ids),
            (Op::Random { .. }, _) => Value::Bits(random::random(&cx(), site.bound.len(site.id))?),
            (op, given) if interactive::has_kernel(op) => {
                let args = args.iter().map(chain::settle).collect::<Result<_>>()?;
                let given = if let Given::Words(words) = given { words } else { None };
                return interactive::start(site, &cx(), args, given, Rc::clone(&self.tables)).map(Begun::Waits);
            }
            _ => {
                let value = local_ops::run(site, &args)?;
                // Used more than once, it is made once.
                return Ok(Begun::Value(if site.is_shared { chain::settle(&value)? } else { value }));
            }
        };
        Ok(Begun::Value(Arc::new(value)))
    }

    fn weight(&self, id: Id, user: &Op, slot: usize) -> Result<Arc<Value>> {
        let found = self.weights.get(id, slot == 1 && matches!(user, Op::MatMul { .. } | Op::Embed))?;
        Ok(Arc::new(match found {
            Found::Whole(weight) => Value::Ring(Ring::weight(self.weights.party(), Arc::unwrap_or_clone(weight))),
            Found::Matrix(matrix) => Value::Matrix(matrix),
        }))
    }

    fn settled(&self, value: &Arc<Value>) -> Result<Arc<Value>> {
        chain::settle(value)
    }

    fn empty(&self, _: &Ty, _: &[usize]) -> Result<Value> {
        Ok(Value::Ring(Ring::Shared(Shared::zero())))
    }

    fn cut(&self, value: &Value, shape: &[usize], axis: usize, length: usize) -> Result<Value> {
        let shared = value.shared()?;
        let cut = |component: &Component| match component.data() {
            None => Ok(Component::Zero),
            Some(words) => slice(words, shape, axis, 0, length).map(Component::from),
        };
        Ok(Value::Ring(Ring::Shared(Shared { a: cut(&shared.a)?, b: cut(&shared.b)? })))
    }
}

/// The logical role of a party in an op.
fn role_of(site: &Site<'_>) -> u8 {
    (site.party.index() as u8 + 3 - site.node().rot % 3) % 3
}
