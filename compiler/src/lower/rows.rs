//! Lowering of what works on whole rows.

use super::{Lower, RING};
use crate::expand::ring_for;
use crate::graph::ValueId;
use ombra_ir::Result;
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;

impl Lower<'_> {
    /// The index of the maximum element of every row, which is the last axis.
    pub(super) fn arg_max(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let scores = self.at_f(x)?;
        let (_, bound) = self.ring(scores)?;
        // Only the order of the scores matters: the smallest ring holds it.
        let bits = ring_for(bound);
        let scores = if bits < RING { self.push(v, M::Narrow { bits }, &[scores])? } else { scores };
        self.push(v, M::ArgMax { width: bound + 2 }, &[scores])
    }

    /// The maximum element of every row, which is the last axis; in the smallest ring that holds the values.
    pub(super) fn reduce_max(&mut self, v: ValueId, x: ValueId) -> Result<Id> {
        let shape = self.graph.shape(x).to_vec();
        let x = self.at_f(x)?;
        let (_, bound) = self.ring(x)?;
        let mask = self.all_true(v, &shape)?;
        self.mask_count(mask, &shape)?;
        let packed = self.push(v, M::Pack, &[x, mask])?;
        let bits = ring_for(bound);
        let small = if bits < RING { self.push(v, M::Narrow { bits }, &[packed])? } else { packed };
        let max = self.push(v, M::RowMax { shape, width: bound + 2, drop: 0 }, &[small, mask])?;
        let max = if bits < RING { self.push(v, M::Truncate { by: 0, bits: RING }, &[max])? } else { max };
        self.value(v, M::Reshape { shape: self.graph.shape(v).to_vec() }, &[max])
    }
}
