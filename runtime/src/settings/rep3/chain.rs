//! Chains of element-wise local ops, run in one pass.
//!
//! What lies between two exchanges is often a chain: a factor, a summand, another value of the same shape. Instead of a
//! vector for every link, the chain is kept as a recipe and run tile by tile when an op that is no link takes it: every
//! tile passes all links while it is in the cache. Only values that are whole are chained: both components of a sharing,
//! or a term of a sum; anything else takes the op-by-op way. This is the seam for compiled kernels: a chain is all that a
//! backend needs to know.

use std::sync::Arc;

use ombra_ir::op::Op;
use ombra_ir::{Diagnostic, Result};

use super::role_of;
use super::value::Value;
use crate::backend::elementwise::{Step, run_chain};
use crate::exec::side::Site;
use crate::settings::rep3::local::linear::Ring;
use crate::settings::rep3::share::{Component, Shared, Sum};
use crate::settings::words::ops::operand_shape;

/// Links of a chain at most: a longer one is run in parts.
const LONGEST: usize = 24;

/// A value that a chain of links makes of others when it is needed.
#[derive(Clone)]
pub struct Chain {
    first: Arc<Value>,
    inputs: Vec<Arc<Value>>,
    links: Vec<Link>,
}

/// One element-wise op on the value so far.
#[derive(Clone, Copy)]
enum Link {
    Add(usize),
    Sub(usize),
    Rsub(usize),
    /// A public number goes to component 0: where this party holds it as `a` or as `b`. Of roles, the first is 0, the
    /// second 2; what the number is added to in a sum follows from them.
    AddInt {
        k: u64,
        to_a: bool,
        to_b: bool,
    },
    MulInt(u64),
    Shl(u32),
}

/// The chain that `op` makes of its operands, or none where it is no link or its operands are not whole.
pub(super) fn extend(site: Site<'_>, op: &Op, args: &[Arc<Value>]) -> Result<Option<Value>> {
    let link = match op {
        Op::Neg => Link::MulInt(u64::MAX),
        Op::MulInt { k } => Link::MulInt(*k as u64),
        Op::Upscale { by } | Op::Lift { by } => Link::Shl(u32::from(*by)),
        Op::AddInt { k } => Link::AddInt { k: *k as u64, to_a: role_of(&site) == 0, to_b: role_of(&site) == 2 },
        Op::Add | Op::Sub => return join(site, op, args),
        _ => return Ok(None),
    };
    let Some(mut chain) = args.first().and_then(begin) else { return Ok(None) };
    chain.links.push(link);
    Ok(Some(chain.value()?))
}

/// A sum or difference of two values of one shape and form: one goes on as the chain, the other is its input.
fn join(site: Site<'_>, op: &Op, args: &[Arc<Value>]) -> Result<Option<Value>> {
    let [x, y] = args else { return Ok(None) };
    if operand_shape(site, 0)? != operand_shape(site, 1)? {
        return Ok(None);
    }
    let (base, other, link): (_, _, fn(usize) -> Link) = match (op, &**x, &**y) {
        (Op::Add, Value::Ring(_), Value::Chain(_)) => (y, x, Link::Add),
        (Op::Sub, Value::Ring(_), Value::Chain(_)) => (y, x, Link::Rsub),
        (Op::Add, ..) => (x, y, Link::Add),
        _ => (x, y, Link::Sub),
    };
    let Some(mut chain) = begin(base) else { return Ok(None) };
    let other = settle(other)?;
    if !alike(&chain.first, &other) {
        return Ok(None);
    }
    chain.links.push(link(chain.inputs.len()));
    chain.inputs.push(other);
    Ok(Some(chain.value()?))
}

/// The chain of a value: its own, or one without links yet.
fn begin(value: &Arc<Value>) -> Option<Chain> {
    match &**value {
        Value::Chain(chain) => Some(chain.clone()),
        Value::Ring(ring) if vectors(ring).is_some() => {
            Some(Chain { first: Arc::clone(value), inputs: Vec::new(), links: Vec::new() })
        }
        _ => None,
    }
}

/// The value of a chain, any other value as it is.
pub(super) fn settle(value: &Arc<Value>) -> Result<Arc<Value>> {
    match &**value {
        Value::Chain(chain) => chain.run().map(|ring| Arc::new(Value::Ring(ring))),
        _ => Ok(Arc::clone(value)),
    }
}

/// The vectors of a value that is whole: one, or both components.
fn vectors(ring: &Ring) -> Option<[Option<&[u64]>; 2]> {
    match ring {
        Ring::Public(words) => Some([Some(words), None]),
        Ring::Shared(shared) => Some([Some(shared.a.data()?), Some(shared.b.data()?)]),
        Ring::Two(sum) | Ring::Three(sum) => Some([Some(sum.data()?), None]),
    }
}

/// Whether two values have one form and one length.
fn alike(x: &Value, y: &Value) -> bool {
    let (Value::Ring(x), Value::Ring(y)) = (x, y) else { return false };
    let one_form = std::mem::discriminant(x) == std::mem::discriminant(y);
    let lengths = |ring| vectors(ring).map(|v| v.map(|words| words.map(<[u64]>::len)));
    one_form && lengths(x).is_some() && lengths(x) == lengths(y)
}

impl Chain {
    fn value(self) -> Result<Value> {
        if self.links.len() < LONGEST {
            return Ok(Value::Chain(self));
        }
        self.run().map(Value::Ring)
    }

    fn run(&self) -> Result<Ring> {
        let broken = || Diagnostic::internal("E0811", "a chain of values that are not whole");
        let first = self.first.ring()?;
        let [a, b] = vectors(first).ok_or_else(broken)?;
        let mut sides: [Vec<&[u64]>; 2] = Default::default();
        for input in &self.inputs {
            let parts = vectors(input.ring()?).ok_or_else(broken)?;
            for (side, words) in sides.iter_mut().zip(parts) {
                side.extend(words);
            }
        }
        let side = |words: &[u64], inputs: &[&[u64]], steps: Vec<Step>| {
            let mut out = vec![0; words.len()];
            run_chain(words, inputs, &steps, &mut out);
            out
        };
        // A public value takes every summand; of two terms, that of roles 0 and 1 does, of three that of role 0.
        let takes = |to_a: bool, to_b: bool| match first {
            Ring::Public(_) => true,
            Ring::Two(_) => !to_b,
            Ring::Shared(_) | Ring::Three(_) => to_a,
        };
        let one = side(a.ok_or_else(broken)?, &sides[0], self.steps(takes));
        Ok(match (first, b) {
            (Ring::Public(_), _) => Ring::Public(one),
            (Ring::Two(_), _) => Ring::Two(Sum::new(Some(one))),
            (Ring::Three(_), _) => Ring::Three(Sum::new(Some(one))),
            (Ring::Shared(_), Some(b)) => {
                let two = side(b, &sides[1], self.steps(|_, to_b| to_b));
                Ring::Shared(Shared { a: Component::from(one), b: Component::from(two) })
            }
            (Ring::Shared(_), None) => return Err(broken()),
        })
    }

    /// The links for one vector, where `takes` says which one takes public summands.
    fn steps(&self, takes: impl Fn(bool, bool) -> bool) -> Vec<Step> {
        let step = |link: &Link| match *link {
            Link::Add(i) => Step::AddInput(i),
            Link::Sub(i) => Step::SubInput(i),
            Link::Rsub(i) => Step::RsubInput(i),
            Link::AddInt { k, to_a, to_b } => Step::AddConst(if takes(to_a, to_b) { k } else { 0 }),
            Link::MulInt(k) => Step::MulConst(k),
            Link::Shl(by) => Step::Shl(by),
        };
        self.links.iter().map(step).collect()
    }
}
