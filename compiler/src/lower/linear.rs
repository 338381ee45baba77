//! Lowering of sums, products, movement, and of what is made of them.

use super::publics::whole_bits;
use super::quotient::is_fine;
use super::scales::LONGEST;
use super::{Lower, RING};
use crate::client_region;
use crate::expand::division_spare;
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId};
use crate::passes::fold_norms::{is_ones, tied_table};
use ombra_ir::module::Id;
use ombra_ir::op::Op as M;
use ombra_ir::plain::{DType, Unary};
use ombra_ir::ty::Sharing;
use ombra_ir::{Diagnostic, Dim, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Fewest fraction bits of a norm's operand.
const LEAST_ROW: u8 = 4;
/// Fewest fraction bits of a public factor that spares its product a truncation before it.
const FACTOR: i32 = 13;
/// Fraction bits of a left side that are not given up for shorter ciphertexts.
const SHORT: u8 = 10;
/// Most and fewest significant bits of a constant factor.
const CONSTANT: (i32, i32) = (14, 30);

impl Lower<'_> {
    fn owner(&self, v: ValueId) -> Result<Owner> {
        Ok(self.graph.node(v)?.owner)
    }

    pub(super) fn matmul(&mut self, v: ValueId, a: ValueId, b: ValueId) -> Result<Id> {
        let turned = match turned(self.graph, b).filter(|_| !self.rescaled.contains_key(&b)) {
            Some(x) => Some(x),
            None => self.tied_table(b)?,
        };
        let (b, trans_b) = turned.map_or((b, false), |x| (x, true));
        let f = self.options.f;
        if self.owner(b)? == Owner::Public {
            let left = self.shares(a)?;
            let (scale, _) = self.ring(left)?;
            // What the ring leaves beside the result's own bits and the left side as it is.
            let bits = self.bound_at(v, 0).map_or(0, |(bits, _)| i32::from(bits));
            let left_over = i32::from(RING) - 2 - bits - i32::from(scale);
            let most = super::scales::room(self.graph, self.options.ranges, &self.scales, v, (f, None)).min(left_over);
            let largest = self.largest(b)?;
            let whole = self.graph.is_whole(b);
            let finest = if whole { 0 } else { super::scales::weight_scale(largest, most) };
            let right = self.encode(b, finest)?;
            return self.fitting(v, a, (left, right), trans_b);
        }
        let right = self.shares(b)?;
        if self.owner(a)? == Owner::Public {
            let left = self.encode(a, if self.graph.is_whole(a) { 0 } else { f })?;
            return self.value(v, M::MatMul { trans_b }, &[left, right]);
        }
        let left = self.shares(a)?;
        self.fitting(v, a, (left, right), trans_b)
    }

    /// A product whose left side drops fraction bits where its result would not fit the ring, or, down to [`SHORT`], that of
    /// short ciphertexts.
    fn fitting(&mut self, v: ValueId, a: ValueId, (left, right): (Id, Id), trans_b: bool) -> Result<Id> {
        let (own, other) = (self.ring(left)?.0, self.ring(right)?.0);
        let bits = self.bound_at(v, own.saturating_add(other)).map_or(0, |(bits, _)| bits);
        let secret = self.module.ty(right).sharing.is_secret();
        let short = self.options.setting.protocol().ciphertexts.filter(|_| secret);
        let excess = short.map(|ciphertexts| bits.saturating_sub(ciphertexts.short_ring - 2));
        let excess = excess.filter(|&excess| own >= SHORT + excess).unwrap_or(bits.saturating_sub(self.room()));
        let left = if excess == 0 { left } else { self.shares_at(a, own.saturating_sub(excess).max(1))? };
        self.value(v, M::MatMul { trans_b }, &[left, right])
    }

    /// The bound of what is divided, at most.
    fn room(&self) -> u8 {
        let of_secrets = (self.options.setting.protocol().product)(Sharing::Shared, Sharing::Shared);
        RING - of_secrets.map_or(2, |form| division_spare(form, self.options.f))
    }

    /// The private embedding table that a private weight is the transpose of: a tied head is shared and stored once.
    fn tied_table(&mut self, w: ValueId) -> Result<Option<ValueId>> {
        if let Some(&known) = self.tied.get(&w) {
            return Ok(known);
        }
        let found = tied_table(w, self.options.statics)?;
        self.tied.insert(w, found);
        Ok(found)
    }

    /// `a ± b` at the finer of the two scales.
    pub(super) fn add(&mut self, v: ValueId, a: ValueId, b: ValueId, minus: bool) -> Result<Id> {
        let mut scale = self.common_scale(a, b)?;
        if self.bound_at(v, scale).is_some_and(|(bits, _)| bits > self.room()) {
            // No room for products that were not truncated.
            for x in [a, b] {
                if self.owner(x)? != Owner::Public {
                    self.shares(x)?;
                }
            }
            scale = self.common_scale(a, b)?;
        }
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
        let unrescaled = self.unrescaled(v)?;
        Ok(self.ring(unrescaled)?.0)
    }

    /// A value at a scale no coarser than its own.
    pub(super) fn at_scale(&mut self, v: ValueId, scale: u8) -> Result<Id> {
        if self.owner(v)? == Owner::Public {
            return self.encode(v, scale);
        }
        let unrescaled = self.unrescaled(v)?;
        let (from, _) = self.ring(unrescaled)?;
        if from == scale { Ok(unrescaled) } else { self.push(v, M::Upscale { by: scale - from }, &[unrescaled]) }
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
        let largest = self.largest(b)?.filter(|&x| x > 0.0);
        let unrescaled = self.unrescaled(a)?;
        let (_, bound) = self.ring(unrescaled)?;
        let (bits, wanted) = if self.graph.is_whole(b) {
            (largest.map_or(0, |x| i32::from(whole_bits(x))), 0)
        } else {
            let bits = largest.map_or(0, |x| libm::ceil(libm::log2(x)) as i32 + 1);
            (bits, i32::from(f) + self.spare(b, bits))
        };
        let room = room_beside(bound) - bits.max(0);
        let (left, scale) =
            if room >= wanted.min(FACTOR) { (unrescaled, wanted.min(room)) } else { (self.at_f(a)?, wanted) };
        let factor = self.encode(b, scale as u8)?;
        self.value(v, M::Mul, &[left, factor])
    }

    /// Fraction bits beside `f` that a public factor of `bits` takes: an inverse may be small.
    fn spare(&self, b: ValueId, bits: i32) -> i32 {
        if !matches!(self.graph.op(b), Some(Op::Tensor(TensorOp::Unary(Unary::Reciprocal)))) {
            return 0;
        }
        let least = self.options.ranges.at_least(b);
        let small = if least > 0.0 { libm::ceil(-libm::log2(least)) as i32 } else { 1 - bits };
        small.clamp(0, 12)
    }

    /// A secret factor: at its own scale, or finer where it was made so.
    fn factor(&mut self, v: ValueId) -> Result<Id> {
        if !is_fine(self.graph, v) {
            return self.shares(v);
        }
        self.unrescaled(v)
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
        let unrescaled = self.unrescaled(a)?;
        let (scale, bound) = self.ring(unrescaled)?;
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
                self.push(v, M::SetScale { scale: moved as u8 }, &[unrescaled])?
            } else {
                self.push(v, M::MulInt { k: libm::fabs(k) as i64 }, &[unrescaled])?
            };
            let id = if k < 0.0 { self.push(v, M::Neg, &[id])? } else { id };
            self.tighten(v, id);
            return Ok(id);
        }
        let base = if room_beside(bound) >= CONSTANT.0 { unrescaled } else { self.at_f(a)? };
        let (product, scale) = self.times_fraction(v, base, k)?;
        self.value(v, M::SetScale { scale }, &[product])
    }

    /// `x · k` for `k = m / 2^s`, with as many significant bits of `m` as there is room for: `x · m`, and the scale that makes
    /// it the product; no message.
    fn times_fraction(&mut self, v: ValueId, x: Id, k: f64) -> Result<(Id, u8)> {
        let (scale, bound) = self.ring(x)?;
        let exponent = libm::floor(libm::log2(libm::fabs(k))) as i32;
        let finest = i32::from(RING) - 2 - i32::from(scale);
        let s = (room_beside(bound).clamp(CONSTANT.0, CONSTANT.1) - 1 - exponent).clamp(0, finest.max(0)) as u8;
        let m = libm::round(libm::ldexp(k, i32::from(s))) as i64;
        Ok((self.push(v, M::MulInt { k: m }, &[x])?, scale + s))
    }

    pub(super) fn unary(&mut self, v: ValueId, x: ValueId, op: M) -> Result<Id> {
        let x = self.at_f(x)?;
        self.value(v, op, &[x])
    }

    pub(super) fn softmax(&mut self, v: ValueId, x: ValueId, mask: Option<ValueId>) -> Result<Id> {
        let x = self.at_f(x)?;
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
        let (own, bound) = self.ring(x)?;
        let n = self.graph.shape(v).last().and_then(Dim::as_constant).unwrap_or(1).max(1) as f64;
        let centre = if centred { libm::ceil(libm::log2(n)) as u8 } else { 0 };
        let limit = LONGEST as u8 - centre;
        let known = self.options.ranges.values.get(&args[0]).and_then(|r| r.length);
        let bits = |scale: u8, bound: u8| {
            let of_bound = f64::from(bound) + libm::log2(n) / 2.0;
            let of_rows = known.map_or(f64::INFINITY, |l| {
                let units = libm::ldexp(l, i32::from(scale)) * (1.0 + 1.0 / 256.0) + 16.0 * libm::sqrt(n);
                libm::log2(units)
            });
            libm::ceil(of_bound.min(of_rows)) as u8
        };
        let excess = bits(own, bound).saturating_sub(limit);
        if excess > own.saturating_sub(LEAST_ROW) {
            let message = format!("rows of this norm may have a length of 2^{}", bits(own, bound) - own);
            return Err(Diagnostic::unsupported("E0508", message)
                .note(format!("expected less than 2^{}", limit - LEAST_ROW))
                .note("the bound follows from the weights before it: look for one with very large elements"));
        }
        let x = if excess == 0 { x } else { self.shares_at(args[0], own - excess)? };
        let (own, bound) = self.ring(x)?;
        let bare = args.get(1).is_none_or(|&g| is_ones(self.graph, g)) && args.get(2).is_none();
        let scale = if bare { self.scale_of(v) } else { self.options.f };
        let (eps, length) = (eps.into(), bits(own, bound));
        let op = if centred { M::LayerNorm { eps, length, scale } } else { M::RmsNorm { eps, length, scale } };
        // Its type says that |x_i| ≤ √n · rms, whatever x is, and how far off a row of this length may be.
        let id = self.push(v, op, &[x])?;
        let id = self.scale_and_shift(v, id, args)?;
        self.tighten(v, id);
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
        let mut id = self.unrescaled(x)?;
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
            id = self.over(v, id, n)?;
        }
        if !keep {
            id = self.push(v, M::Reshape { shape: self.graph.shape(v).to_vec() }, &[id])?;
        }
        self.tighten(v, id);
        Ok(id)
    }

    /// `x / n` with as many bits of `1/n` as there is room for; no message.
    pub(super) fn over(&mut self, v: ValueId, x: Id, n: f64) -> Result<Id> {
        let (scale, bound) = self.ring(x)?;
        let log2 = libm::log2(n);
        if log2 == libm::floor(log2) && f64::from(scale) + log2 <= f64::from(RING - 2) {
            return self.push(v, M::SetScale { scale: scale + log2 as u8 }, &[x]);
        }
        let excess = CONSTANT.0 - room_beside(bound);
        if excess > 0 && excess < i32::from(scale) {
            // The sum itself leaves no room: it drops what it has beyond that. A division may add a bit.
            let coarse = self.push(v, M::Truncate { by: excess as u8 + 1, bits: RING }, &[x])?;
            return self.over(v, coarse, n);
        }
        let (product, scale) = self.times_fraction(v, x, 1.0 / n)?;
        self.push(v, M::SetScale { scale }, &[product])
    }

    pub(super) fn concat(&mut self, v: ValueId, args: &[ValueId], axis: usize) -> Result<Id> {
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
            // A cache has scale f.
            let f = self.options.f;
            for &a in args {
                parts.push(if self.owner(a)? == Owner::Public { self.encode(a, f)? } else { self.at_f(a)? });
            }
        }
        self.value(v, M::Concat { axis: axis as u8 }, &parts)
    }

    pub(super) fn gather(&mut self, v: ValueId, x: ValueId, index: ValueId, axis: usize) -> Result<Id> {
        match (self.owner(x)?, self.owner(index)?) {
            (_, Owner::Public) => {
                let x = self.unrescaled(x)?;
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

/// Bits that a factor may have beside a bound.
fn room_beside(bound: u8) -> i32 {
    i32::from(RING) - 3 - i32::from(bound)
}

/// What is copied, or moved in several ways, is rescaled before that and not after: it has fewer elements there, or is
/// rescaled once.
pub(super) fn rescale_before_moving(graph: &Graph, scales: &BTreeMap<ValueId, u8>, wishes: &mut BTreeSet<ValueId>) {
    // Wishes that a value leads to by movement alone, and whether it is copied on the way.
    let mut led: BTreeMap<ValueId, (BTreeSet<ValueId>, bool)> = BTreeMap::new();
    for v in graph.topological().into_iter().rev() {
        if wishes.contains(&v) {
            led.insert(v, (BTreeSet::from([v]), false));
            continue;
        }
        let moves = |u: &ValueId| graph.op(*u).is_some_and(Op::moves_all);
        let users = graph.users(v);
        let secret = graph.node(v).is_ok_and(|n| n.owner == Owner::Secret && n.dtype == DType::F32);
        let alike = users.iter().all(|u| moves(u) && scales.get(u) == scales.get(&v));
        if !secret || !alike || users.is_empty() || graph.is_output(v) {
            continue;
        }
        let copies = |u: &ValueId| {
            matches!(graph.op(*u), Some(Op::Tensor(TensorOp::Expand { .. }))) && graph.shape(*u) != graph.shape(v)
        };
        let all: Option<Vec<_>> = users.iter().map(|u| Some((led.get(u)?, copies(u)))).collect();
        let Some(all) = all else { continue };
        let copied = all.iter().any(|((_, copied), now)| *copied || *now);
        let ends: BTreeSet<ValueId> = all.iter().flat_map(|((ends, _), _)| ends.iter().copied()).collect();
        if copied || ends.len() > 1 {
            wishes.retain(|wish| !ends.contains(wish));
            wishes.insert(v);
            led.insert(v, (BTreeSet::from([v]), false));
        } else {
            led.insert(v, (ends, false));
        }
    }
}

/// Whether a value is secret and computed by the program, so that its unrescaled form may be an unfinished sum.
pub(super) fn stays_raw(graph: &Graph, v: ValueId) -> bool {
    graph.node(v).is_ok_and(|n| n.owner == Owner::Secret && !matches!(n.op, Op::Input { .. }))
}

/// The operand of a transpose that exchanges the last two axes and no others.
pub(super) fn turned(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let Some(Op::Tensor(TensorOp::Transpose { perm })) = graph.op(v) else { return None };
    let n = perm.len();
    let swaps = n >= 2
        && perm[n - 1] == n - 2
        && perm[n - 2] == n - 1
        && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p);
    swaps.then(|| graph.operand(v, 0)).flatten()
}
