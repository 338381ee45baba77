//! Weights on their way into the program: their names, their scales, how large they are.

use super::{Lower, RING, magnitude_bits, scales};
use crate::graph::{Op, Owner, ValueId};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::ty::{Sharing, Ty};
use ombra_ir::{Diagnostic, Dim, Result};

impl Lower<'_> {
    /// A weight of the server's: at the scale that its largest element and its products leave it.
    pub(super) fn weight(&mut self, v: ValueId) -> Result<Id> {
        let name = self.weight_name(v, Owner::Server)?;
        let largest = self.largest(v)?.ok_or_else(|| Diagnostic::internal("E0511", "a weight has no size"))?;
        let room = self.scales.get(&v).map_or(i32::MAX, |&k| i32::from(k));
        let beside = scales::stands_beside(self.graph, v);
        let scale = if beside { self.options.f } else { scales::weight_scale(Some(largest), room) };
        self.scales.insert(v, scale);
        let node = self.graph.node(v)?;
        let bound = magnitude_bits(largest, scale);
        let mut ty = Ty::ring(RING, scale, Sharing::Shared, node.shape.clone(), bound);
        // The server checks both where it encodes the weight.
        ty.norms = self.options.ranges.declared(v, scale, node.shape.iter().map(Dim::as_constant));
        self.source(v, M::Weight { name }, ty)
    }

    /// The largest element of a value, in size, where it has a range or depends on weights and constants alone.
    pub(super) fn largest(&self, v: ValueId) -> Result<Option<f64>> {
        match self.options.ranges.size(v) {
            None if self.is_static(v) => {
                let mut largest = 0.0;
                self.options.statics.floats(v, &mut |values| {
                    largest = largest_of(values).max(largest);
                    Ok(())
                })?;
                Ok(Some(largest))
            }
            known => Ok(known),
        }
    }

    /// The name under which a weight is stored, by its owner.
    pub(super) fn weight_name(&mut self, v: ValueId, owner: Owner) -> Result<String> {
        let name = match self.graph.op(v) {
            Some(Op::Weight { name, transposed: false }) => name.clone(),
            Some(Op::Weight { name, transposed: true }) => format!("{name}.transposed"),
            _ => format!("folded.{}", v.index()),
        };
        self.weights.insert(name.clone(), (v, owner));
        Ok(name)
    }
}

/// The largest of some numbers, in size.
pub(super) fn largest_of(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |m, x| m.max(f64::from(x.abs())))
}
