//! `plain`: one party computes the meaning of every op in the clear. No messages; the executor's oracle.

use std::sync::Arc;

use ombra_ir::bind::concrete;
use ombra_ir::module::{Id, Module};
use ombra_ir::op::{Class, Op};
use ombra_ir::plain::Tensor;
use ombra_ir::reference::{RefData, RefValue, Rounding, encode_as, eval_rounded};
use ombra_ir::ty::Ty;
use ombra_ir::{Bindings, Diagnostic, Result};

use crate::exec::TensorSource;
use crate::exec::side::{Begun, Given, Side, Site};

/// The party that has everything: weights, inputs and results.
pub struct Plain {
    module: Arc<Module>,
    public: Arc<dyn TensorSource>,
    own: Arc<dyn TensorSource>,
}

impl Plain {
    /// For a program, with the public weights and the server's.
    pub fn new(module: Arc<Module>, public: Arc<dyn TensorSource>, own: Arc<dyn TensorSource>) -> Self {
        Plain { module, public, own }
    }
}

impl Side for Plain {
    type Value = RefValue;

    fn has_kernel(op: &Op) -> bool {
        // Fresh bits that nobody knows are of no use to a reference.
        op.class() != Class::Composite && !matches!(op, Op::Random { .. })
    }

    fn begin(&self, site: Site<'_>, args: Vec<Arc<RefValue>>, given: Given) -> Result<Begun<RefValue>> {
        let (node, shape) = (site.node(), site.shape().to_vec());
        let value = match (&node.op, given) {
            (Op::Public { value }, _) => {
                let tensor = site.bound.public.get(*value as usize).ok_or_else(missing)?;
                RefValue::plain(tensor.clone())
            }
            (Op::Input { .. }, Given::Words(Some(words))) => {
                let (bits, _) = node.ty.as_ring().ok_or_else(missing)?;
                RefValue::ring(bits, shape, words)?
            }
            (Op::ClientInts { .. }, Given::Ints(Some(ids))) => RefValue::plain(Tensor::i64(&shape, ids)?),
            (op, _) => {
                let types = node.args.iter().map(|arg| site.module.ty(*arg));
                let args: Vec<_> = args.iter().map(|arg| &**arg).zip(types).collect();
                eval_rounded(site.module.setting, op, &args, &node.ty, &site.bound.bindings, Rounding::Floor)?
            }
        };
        match &node.op {
            Op::Reveal { .. } => Ok(Begun::Opened(Some(value.as_ring()?.1.to_vec()))),
            _ => Ok(Begun::Value(Arc::new(value))),
        }
    }

    fn weight(&self, id: Id, _: &Op, _: usize) -> Result<Arc<RefValue>> {
        let node = self.module.node(id);
        let (source, name) = match &node.op {
            Op::PublicWeight { name } => (&self.public, name),
            Op::Weight { name } => (&self.own, name),
            _ => return Err(missing()),
        };
        let (bits, _) = node.ty.as_ring().ok_or_else(missing)?;
        let shape = concrete(&node.ty.shape, &Bindings::default())?;
        let (_, elements) = source.tensor(name)?;
        Ok(Arc::new(RefValue::ring(bits, shape.clone(), encode_as(&elements, &shape, &node.ty)?)?))
    }

    fn settled(&self, value: &Arc<RefValue>) -> Result<Arc<RefValue>> {
        Ok(Arc::clone(value))
    }

    fn empty(&self, ty: &Ty, shape: &[usize]) -> Result<RefValue> {
        let bits = ty.as_ring().map_or(64, |(bits, _)| bits);
        Ok(RefValue { shape: shape.to_vec(), data: RefData::Ring { bits, values: Vec::new() } })
    }

    fn cut(&self, value: &RefValue, shape: &[usize], axis: usize, length: usize) -> Result<RefValue> {
        let (bits, words) = value.as_ring()?;
        let cut = super::words::movement::slice(words, shape, axis, 0, length)?;
        let shape = shape.iter().enumerate().map(|(at, &size)| if at == axis { length } else { size });
        RefValue::ring(bits, shape.collect(), cut)
    }
}

fn missing() -> Diagnostic {
    Diagnostic::internal("E0811", "an op has an operand of another kind")
}
