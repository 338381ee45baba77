//! Lowering of sums, products, movement, and of what is made of them.

use super::quotient::is_fine;
use super::{Assumed, Lower, RING, magnitude_bits};
use crate::client_region;
use crate::graph::{Graph, Op, Owner, ValueId};
use crate::passes::fold_norms::{is_ones, tied_table};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plan::Quantity;
use ombra_ir::ty::{BoundFrom, Sharing};
use ombra_ir::{Diagnostic, Dim, Result};

/// The smallest power of 4 at which a norm's statistic still has its precision beside the largest.
const LEAST_LOG4: i32 = -9;

impl Lower<'_> {
    fn owner(&self, v: ValueId) -> Result<Owner> {
        Ok(self.graph.node(v)?.owner)
    }

    pub(super) fn matmul(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        let turned = match turned(self.graph, b).filter(|_| !self.settled.contains_key(&b)) {
            Some(x) => Some(x),
            None => self.tied_table(b)?,
        };
        let (b, trans_b) = turned.map_or((b, false), |x| (x, true));
        let f = self.options.f;
        let left = if self.owner(a)? == Owner::Public { self.encode(a, f)? } else { self.shares(a)? };
        let right = if self.owner(b)? == Owner::Public { self.encode(b, f)? } else { self.shares(b)? };
        self.value(v, M::MatMul { trans_b }, &[left, right])
    }

    /// The private embedding table that a private weight is the transpose of: a tied head is shared and stored once.
    fn tied_table(&mut self, w: ValueId) -> Result<Option<ValueId>> {
        if let Some(&known) = self.tied.get(&w) {
            return Ok(known);
        }
        let found = tied_table(self.graph, w, self.options.statics)?;
        self.tied.insert(w, found);
        Ok(found)
    }

    /// `a ± b` at the finer of the two scales.
    pub(super) fn add(&mut self, v: ValueId, a: ValueId, b: ValueId, minus: bool) -> Result<Id> {
        let scale = self.common_scale(a, b)?;
        let left = self.at_scale(a, scale)?;
        let right = self.at_scale(b, scale)?;
        self.value(v, if minus { M::Sub } else { M::Add }, &[left, right])
    }

    /// The finer scale of two values; a public one takes any.
    pub(super) fn common_scale(&mut self, a: ValueId, b: ValueId) -> Result<u8> {
        Ok(match (self.owner(a)? == Owner::Public, self.owner(b)? == Owner::Public) {
            (true, true) => self.options.f,
            (false, false) => self.raw_scale(a)?.max(self.raw_scale(b)?),
            (false, true) => self.raw_scale(a)?,
            (true, false) => self.raw_scale(b)?,
        })
    }

    fn raw_scale(&mut self, v: ValueId) -> Result<u8> {
        let raw = self.raw(v)?;
        Ok(self.ring(raw)?.0)
    }

    /// A value at a scale no coarser than its own.
    pub(super) fn at_scale(&mut self, v: ValueId, scale: u8) -> Result<Id> {
        if self.owner(v)? == Owner::Public {
            return self.encode(v, scale);
        }
        let raw = self.raw(v)?;
        let (from, _) = self.ring(raw)?;
        if from == scale { Ok(raw) } else { self.push(v, M::Upscale { by: scale - from }, &[raw]) }
    }

    pub(super) fn mul(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        let (a, b) = if self.owner(a)? == Owner::Public { (b, a) } else { (a, b) };
        if self.owner(b)? != Owner::Public {
            let (left, right) = (self.factor(a)?, self.factor(b)?);
            return self.value(v, M::Mul, &[left, right]);
        }
        if let Some(k) = self.scalar(b) {
            return self.scale_by(v, a, k);
        }
        let f = self.options.f;
        // An inverse may be small: it takes the more fraction bits.
        let spare = match (self.graph.op(b), self.options.ranges.abs.get(&b)) {
            (Some(Op::Reciprocal), Some(&max)) if max > 0.0 => (-libm::floor(libm::log2(max))).clamp(0.0, 12.0) as u8,
            _ => 0,
        };
        let factor = self.encode(b, f + spare)?;
        let raw = self.raw(a)?;
        let (_, bound) = self.ring(raw)?;
        let room = bound + self.module.ty(factor).bound <= RING - 3;
        let left = if room { raw } else { self.shares(a)? };
        self.value(v, M::Mul, &[left, factor])
    }

    /// A secret factor: at scale f, or finer where it was made so.
    fn factor(&mut self, v: ValueId) -> Result<Id> {
        if !is_fine(self.graph, v) {
            return self.shares(v);
        }
        self.raw(v)
    }

    pub(super) fn div(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        match self.scalar(b).filter(|&k| k != 0.0) {
            Some(k) if self.owner(a)? != Owner::Public => self.scale_by(v, a, 1.0 / k),
            _ => self.quotient(v, a, b),
        }
    }

    /// The constant that a public value is full of.
    pub(super) fn scalar(&self, v: ValueId) -> Option<f64> {
        let t = self.graph.constant(v)?;
        let values = t.as_f32().ok()?;
        let first = *values.first()?;
        (t.rank() <= 1 && values.iter().all(|&x| x == first)).then_some(f64::from(first))
    }

    /// `a · k`: exact powers of two only move the point, integers only the size, others take a factor of 14 bits.
    fn scale_by(&mut self, v: ValueId, a: ValueId, k: f64) -> Result<Id> {
        let raw = self.raw(a)?;
        let (scale, bound) = self.ring(raw)?;
        if k == 0.0 || !k.is_finite() {
            return Err(Diagnostic::unsupported(
                "E0523",
                format!("a factor of {k} on a secret value is not supported"),
            ));
        }
        let log2 = libm::log2(libm::fabs(k));
        if log2 == libm::floor(log2) && (-16.0..=16.0).contains(&log2) {
            let moved = i32::from(scale) - log2 as i32;
            let id = if moved >= 0 && moved <= i32::from(RING) {
                self.push(v, M::SetScale { scale: moved as u8 }, &[raw])?
            } else {
                self.push(v, M::MulInt { k: libm::fabs(k) as i64 }, &[raw])?
            };
            let id = if k < 0.0 { self.push(v, M::Neg, &[id])? } else { id };
            self.calibrate(v, id);
            return Ok(id);
        }
        // k = m / 2^s with 14 significant bits.
        let s = (13.0 - libm::floor(log2)).clamp(0.0, 30.0) as u8;
        let m = libm::round(libm::ldexp(k, i32::from(s))) as i64;
        let room = bound + magnitude_bits(libm::fabs(m as f64), 0) <= RING - 3;
        let base = if room { raw } else { self.shares(a)? };
        let (scale, _) = self.ring(base)?;
        let product = self.push(v, M::MulInt { k: m }, &[base])?;
        self.value(v, M::SetScale { scale: scale + s }, &[product])
    }

    pub(super) fn unary(&mut self, v: ValueId, x: ValueId, op: M) -> Result<Id> {
        let x = self.shares(x)?;
        self.value(v, op, &[x])
    }

    pub(super) fn softmax(&mut self, v: ValueId, x: ValueId, mask: Option<ValueId>) -> Result<Id> {
        let x = self.shares(x)?;
        let mask = self.softmax_mask(v, mask)?;
        self.value(v, M::Softmax, &[x, mask])
    }

    /// The positions that count in the rows of `v`, all of them without a mask; how many is a size from here on.
    pub(super) fn softmax_mask(&mut self, v: ValueId, mask: Option<ValueId>) -> Result<Id> {
        let shape = self.graph.shape(v).to_vec();
        let mask = match mask {
            Some(m) => self.publish(m)?,
            None => self.all_true(v, &shape)?,
        };
        self.mask_count(mask, &shape)?;
        Ok(mask)
    }

    pub(super) fn norm(&mut self, v: ValueId, args: &[ValueId], eps: f32, centred: bool) -> Result<Id> {
        let x = self.shares(args[0])?;
        let (low, high) = self.options.ranges.rows.get(&v).map_or((1e-3, 1e3), |rows| (rows.low, rows.high));
        // The margin is one of `x`, so it is one power of 4 a bit for the statistic, on either side of what calibration
        // saw. But the statistic is never below eps, where that is not too small for the ring.
        let floor = |x: f64| libm::floor(libm::log2(x.max(1e-12)) / 2.0) as i32;
        let margin = i32::from(self.options.margin);
        let of_eps = floor(f64::from(eps));
        let proven = of_eps >= LEAST_LOG4;
        let min_log4 = if proven { of_eps } else { floor(low.max(f64::from(eps))) - margin }.clamp(-20, 20) as i8;
        let max_log4 = (libm::ceil(libm::log2(high.max(1e-9)) / 2.0) as i32 + margin).clamp(-19, 24) as i8;
        let rows = self.graph.shape(v).split_last().map_or(1.0, |(_, rows)| self.elements(rows));
        self.assume(Assumed {
            value: v,
            quantity: Quantity::RowStatistic,
            low: (!proven).then(|| libm::ldexp(1.0, 2 * i32::from(min_log4))),
            high: libm::ldexp(1.0, 2 * i32::from(max_log4)),
            elements: rows,
        });
        let eps = eps.to_bits();
        let op =
            if centred { M::LayerNorm { eps, min_log4, max_log4 } } else { M::RmsNorm { eps, min_log4, max_log4 } };
        let n = self.graph.shape(v).last().and_then(Dim::as_constant).unwrap_or(1);
        let id = self.push(v, op, &[x])?;
        // |x_i| ≤ √n · rms, whatever x is.
        let bound = magnitude_bits(libm::sqrt(n as f64) * 1.01, self.options.f);
        let ty = &mut self.module.ops[id.index()].ty;
        if bound < ty.bound {
            (ty.bound, ty.bound_from) = (bound, BoundFrom::Guarded);
        }
        let id = self.scale_and_shift(v, id, args)?;
        self.calibrate(v, id);
        Ok(id)
    }

    /// The scale and the shift of a norm, operands 1 and 2 of the graph's value, on what is normalised.
    pub(super) fn scale_and_shift(&mut self, v: ValueId, normalised: Id, args: &[ValueId]) -> Result<Id> {
        let mut id = normalised;
        let f = self.options.f;
        if let Some(&gamma) = args.get(1).filter(|&&g| !is_ones(self.graph, g)) {
            id = if self.owner(gamma)? == Owner::Public {
                let gamma = self.encode(gamma, f)?;
                self.push(v, M::Mul, &[id, gamma])?
            } else {
                let gamma = self.shares(gamma)?;
                self.push(v, M::Mul, &[id, gamma])?
            };
        }
        if let Some(&beta) = args.get(2) {
            let (scale, _) = self.ring(id)?;
            let beta = self.at_scale(beta, scale)?;
            id = self.push(v, M::Add, &[id, beta])?;
        }
        Ok(id)
    }

    pub(super) fn reduce(&mut self, v: ValueId, x: ValueId, axes: &[usize], keep: bool, mean: bool) -> Result<Id> {
        let mut id = self.raw(x)?;
        let mut n = 1.0;
        for &axis in axes {
            let size = self.graph.shape(x)[axis].as_constant();
            if mean {
                n *= size.ok_or_else(|| Diagnostic::unsupported("E0524", "a mean over an axis of unknown length"))?
                    as f64;
            }
            id = self.push(v, M::ReduceSum { axis: axis as u8 }, &[id])?;
        }
        if mean {
            let s = 20u8;
            let k = libm::round(libm::ldexp(1.0 / n, i32::from(s))) as i64;
            let (scale, _) = self.ring(id)?;
            let product = self.push(v, M::MulInt { k }, &[id])?;
            id = self.push(v, M::SetScale { scale: scale + s }, &[product])?;
        }
        if !keep {
            id = self.push(v, M::Reshape { shape: self.graph.shape(v).to_vec() }, &[id])?;
        }
        self.calibrate(v, id);
        Ok(id)
    }

    pub(super) fn concat(&mut self, v: ValueId, args: &[ValueId], axis: usize) -> Result<Id> {
        let f = self.options.f;
        let mut parts = Vec::with_capacity(args.len());
        if args.iter().all(|&a| stays_raw(self.graph, a)) {
            let mut scale = 0;
            for &a in args {
                scale = scale.max(self.raw_scale(a)?);
            }
            for &a in args {
                parts.push(self.at_scale(a, scale)?);
            }
        } else {
            for &a in args {
                parts.push(if self.owner(a)? == Owner::Public { self.encode(a, f)? } else { self.shares(a)? });
            }
        }
        self.value(v, M::Concat { axis: axis as u8 }, &parts)
    }

    pub(super) fn gather(&mut self, v: ValueId, x: ValueId, index: ValueId, axis: usize) -> Result<Id> {
        match (self.owner(x)?, self.owner(index)?) {
            (_, Owner::Public) => {
                let x = self.raw(x)?;
                let index = self.publish(index)?;
                self.value(v, M::Gather { axis: axis as u8 }, &[x, index])
            }
            (Owner::Server, Owner::Client) if axis == 0 && self.graph.shape(x).len() == 2 => {
                let ids = self.client_ints(index)?;
                let table = self.shares(x)?;
                self.value(v, M::Embed, &[ids, table])
            }
            _ => Err(Diagnostic::unsupported("E0525", "a lookup by a secret index is not supported yet")
                .note("expected an index that is public, or the client's token ids into a private table of two axes")),
        }
    }

    /// Integers that the client gives or computes, such as token ids and positions counted from them.
    fn client_ints(&mut self, v: ValueId) -> Result<Id> {
        if let Some(&id) = self.client_ids.get(&v) {
            return Ok(id);
        }
        let node = self.graph.node(v)?.clone();
        let name = client_region::name_of(self.graph, v)?;
        let slot = self.module.inputs.len() as u32;
        self.inputs.insert(name.clone(), v);
        self.module.inputs.push(ombra_ir::module::InputSlot { name, dtype: node.dtype, shape: node.shape.clone() });
        let ty = ombra_ir::ty::Ty::plain(node.dtype, Sharing::Client, node.shape);
        let id = self.source(v, M::ClientInts { slot }, ty)?;
        self.client_ids.insert(v, id);
        Ok(id)
    }
}

/// Whether a value is secret and computed by the program, so that its raw form may be an unfinished sum.
pub(super) fn stays_raw(graph: &Graph, v: ValueId) -> bool {
    graph.node(v).is_ok_and(|n| n.owner == Owner::Secret && !matches!(n.op, Op::Input { .. }))
}

/// The operand of a transpose that exchanges the last two axes and no others.
pub(super) fn turned(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let Some(Op::Transpose { perm }) = graph.op(v) else { return None };
    let n = perm.len();
    let swaps = n >= 2
        && perm[n - 1] == n - 2
        && perm[n - 2] == n - 1
        && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p);
    swaps.then(|| graph.operand(v, 0)).flatten()
}
