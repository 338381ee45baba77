//! Public values on their way into the program: constants, public weights, and what depends on lengths and masks.

use super::weights::largest_of;
use super::{Lower, RING, magnitude_bits};
use crate::graph::{Op, Owner, ValueId};
use crate::onnx::ABSENT;
use crate::ranges::bounds::GIVEN;
use crate::weights::statics::key_of;
use ombra_ir::module::Id;
use ombra_ir::norms::{Measure, Norms};
use ombra_ir::op::Op as M;
use ombra_ir::plain::{self, DType, Tensor, ValueRef};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Bindings, Diagnostic, Dim, Result};

/// Constants up to this many elements travel in the plan, larger ones in the public weights file.
const INLINE: usize = 1024;

impl Lower<'_> {
    /// A public value in the ring at a scale.
    pub(super) fn encode(&mut self, v: ValueId, scale: u8) -> Result<Id> {
        if let Some(&id) = self.encoded.get(&(v, scale)) {
            return Ok(id);
        }
        let (bound, from, norms) = self.public_bound(v, scale)?;
        let id = if self.is_static(v) && self.graph.constant(v).is_none_or(|t| t.len() > INLINE) {
            let name = self.weight_name(v, Owner::Public)?;
            let mut ty = Ty::ring(RING, scale, Sharing::Public, self.graph.shape(v).to_vec(), bound);
            (ty.bound_from, ty.norms) = (from, norms);
            self.source(v, M::PublicWeight { name }, ty)?
        } else {
            let plain = self.publish(v)?;
            let origin = self.origin(v);
            let op = M::Encode { bits: RING, scale };
            let id = ombra_ir::infer::push(&mut self.module, op, &[plain], Some((bound, from)), origin)?;
            self.module.ops[id.index()].ty.norms = norms;
            id
        };
        self.encoded.insert((v, scale), id);
        Ok(id)
    }

    /// A public value as an output of the public program.
    pub(super) fn publish(&mut self, v: ValueId) -> Result<Id> {
        if let Some(&id) = self.published.get(&v) {
            return Ok(id);
        }
        let value = self.program_value(v)?;
        let id = self.publish_ref(v, value, self.graph.node(v)?.dtype, self.graph.shape(v).to_vec())?;
        self.published.insert(v, id);
        Ok(id)
    }

    pub(super) fn publish_ref(&mut self, v: ValueId, value: ValueRef, dtype: DType, shape: Vec<Dim>) -> Result<Id> {
        let index = self.module.public.outputs.len() as u32;
        self.module.public.outputs.push(value);
        self.source(v, M::Public { value: index }, Ty::plain(dtype, Sharing::Public, shape))
    }

    /// A mask that keeps everything.
    pub(super) fn all_true(&mut self, v: ValueId, shape: &[Dim]) -> Result<Id> {
        let op = plain::Op::ConstantOfShape { shape: shape.to_vec(), value: Tensor::bool(&[1], vec![true])? };
        let value = self.module.public.push(op, Vec::new())?;
        self.publish_ref(v, value, DType::Bool, shape.to_vec())
    }

    pub(super) fn program_value(&mut self, v: ValueId) -> Result<ValueRef> {
        if let Some(&value) = self.program.get(&v) {
            return Ok(value);
        }
        let node = self.graph.node(v)?.clone();
        if node.owner != Owner::Public {
            return Err(Diagnostic::internal("E0514", "a private value was taken for a public one"));
        }
        let value = if let Op::Input { name, .. } = &node.op {
            let index = self.module.public.inputs.len() as u32;
            let input = plain::program::Input { name: name.clone(), dtype: node.dtype, shape: node.shape };
            self.module.public.inputs.push(input);
            ValueRef::Input(index)
        } else if let Op::Tensor(op) = node.op {
            let mut args = Vec::new();
            for a in self.graph.operands(v) {
                args.push(self.program_value(a)?);
            }
            self.module.public.push(op, args)?
        } else if self.is_static(v) {
            let tensor = self.options.statics.value(v)?;
            self.module.public.push(plain::Op::Constant(tensor), Vec::new())?
        } else {
            return Err(Diagnostic::unsupported(
                "E0527",
                format!("operator {} on a public value is not supported yet", node.op.name()),
            ));
        };
        self.program.insert(v, value);
        Ok(value)
    }

    /// Whether a value depends on weights and constants alone.
    pub(super) fn is_static(&self, v: ValueId) -> bool {
        self.fixed.contains(&v)
    }

    /// Maximum size of a public value, at a scale, whether that is proven, and the norms of rows and columns.
    fn public_bound(&self, v: ValueId, scale: u8) -> Result<(u8, BoundFrom, Norms)> {
        let whole = scale == 0 && self.graph.is_whole(v);
        let bits = |max: f64| if whole { whole_bits(max) } else { magnitude_bits(max, scale) };
        if self.is_static(v) {
            match self.encoded_norms(v, scale) {
                Ok((max, norms)) => return Ok((bits(max), BoundFrom::Proven, norms)),
                // A model that was read without its weights: the range is assumed.
                Err(e) if e.code == ABSENT => {}
                Err(e) => return Err(e),
            }
        }
        // Checked where it is encoded, by everybody.
        Ok((bits(self.options.ranges.size(v).unwrap_or(GIVEN)), BoundFrom::Proven, Norms::default()))
    }

    /// The maximum size of a static value, and the norms of its rows and columns as integers of a scale.
    fn encoded_norms(&self, v: ValueId, scale: u8) -> Result<(f64, Norms)> {
        let statics = self.options.statics;
        statics.known.encoded.get(key_of(&[statics.key(v)?], [f64::from(scale)]), || {
            let sizes =
                self.graph.shape(v).iter().map(|d| d.eval_usize(&Bindings::new())).collect::<Result<Vec<_>>>()?;
            let (mut max, mut measure) = (0f64, Measure::new(&sizes, Some(scale))?);
            statics.floats(v, &mut |values| {
                let (largest, ()) = rayon::join(|| largest_of(values), || measure.take(values));
                max = max.max(largest);
                Ok(())
            })?;
            Ok((max, measure.declared()))
        })
    }
}

/// Bits of whole numbers up to a size, which are encoded as they are.
pub(super) fn whole_bits(max: f64) -> u8 {
    if max < 1.0 { 1 } else { (libm::floor(libm::log2(max)) + 1.0).min(120.0) as u8 }
}
