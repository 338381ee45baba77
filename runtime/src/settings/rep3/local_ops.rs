//! Ops that send nothing, at one party.

use std::borrow::Cow;
use std::sync::Arc;

use ombra_ir::module::Party;
use ombra_ir::op::{Class, Op};
use ombra_ir::reference::encode_as;
use ombra_ir::{Diagnostic, Result};

use super::value::Value;
use super::{chain, role_of};
use crate::backend::bits as planes;
use crate::backend::elementwise;
use crate::exec::side::Site;
use crate::settings::rep3::local::linear::{
    AddSub, Ring, View, add_int, add_sub, concat, cut, map, mul, mul_int, sum_of, words_of,
};
use crate::settings::rep3::local::matmul::matmul;
use crate::settings::rep3::share::{Bits, Shared, Sum};
use crate::settings::weights::{Matrix, Part};
use crate::settings::words::broadcast::{expand, volume};
use crate::settings::words::movement;
use crate::settings::words::ops::{missing, moved, operand_shape, packed, unpacked};
use crate::settings::words::product::Plan;

/// Ring bits of an operand.
fn operand_bits(site: Site<'_>, i: usize) -> Result<u8> {
    let arg = site.node().args.get(i).ok_or_else(missing)?;
    site.module.ty(*arg).as_ring().map(|(bits, _)| bits).ok_or_else(missing)
}

/// The result of a local op that is no source.
pub(super) fn run(site: Site<'_>, args: &[Arc<Value>]) -> Result<Arc<Value>> {
    let op = &site.module.node(site.id).op;
    let arg = |i: usize| args.get(i).ok_or_else(missing);
    // The same words under another type: a narrower ring is the same words too, of which fewer bits matter.
    if matches!(op, Op::Reshape { .. } | Op::SetScale { .. } | Op::Narrow { .. }) {
        return arg(0).cloned();
    }
    if let Some(chain) = chain::extend(site, op, args)? {
        return Ok(Arc::new(chain));
    }
    let settled = args.iter().map(chain::settle).collect::<Result<Vec<_>>>()?;
    let args = settled.as_slice();
    let arg = |i: usize| args.get(i).ok_or_else(missing);
    if let Value::Bits(_) = &**arg(0)? {
        return run_on_bits(site, op, args).map(|bits| Arc::new(Value::Bits(bits)));
    }
    if let (Op::MatMul { trans_b }, Value::Ring(Ring::Shared(x)), Op::Weight { .. }) = (op, &**arg(0)?, second(site)) {
        return times_weight(site, x, arg(1)?, *trans_b).map(|ring| Arc::new(Value::Ring(ring)));
    }
    if let (Op::MatMul { trans_b }, Some(Value::Matrix(matrix))) = (op, args.get(1).map(|v| &**v)) {
        return matmul_in_blocks(site, arg(0)?.ring()?, matrix, *trans_b).map(|ring| Arc::new(Value::Ring(ring)));
    }
    let view = |i: usize| Ok(View { value: arg(i)?.ring()?, shape: operand_shape(site, i)? });
    let ring = match op {
        Op::Encode { .. } => {
            let tensor = arg(0)?.plain(site.bound)?;
            Ring::Public(encode_as(tensor.as_f32()?, tensor.shape(), site.module.ty(site.id))?)
        }
        Op::Add => add_sub(role_of(&site), AddSub::Add, view(0)?, view(1)?, site.shape())?,
        Op::Sub => add_sub(role_of(&site), AddSub::Sub, view(0)?, view(1)?, site.shape())?,
        Op::Neg => mul_int(arg(0)?.ring()?, u64::MAX)?,
        Op::MulInt { k } => mul_int(arg(0)?.ring()?, *k as u64)?,
        Op::AddInt { k } => add_int(role_of(&site), view(0)?, *k)?,
        Op::Upscale { by } | Op::Lift { by } => {
            mul_int(arg(0)?.ring()?, 1u64.checked_shl(u32::from(*by)).unwrap_or(0))?
        }
        Op::Cut { by } => cut(arg(0)?.ring()?, operand_bits(site, 0)?, *by)?,
        Op::Mul => mul(view(0)?, view(1)?, site.shape())?,
        Op::MatMul { trans_b } => matmul(role_of(&site), view(0)?, view(1)?, *trans_b, site.products.threads())?,
        Op::Concat { axis } => {
            let parts = (0..args.len()).map(view).collect::<Result<Vec<_>>>()?;
            concat(role_of(&site), &parts, usize::from(*axis))?
        }
        _ => {
            let index = args.get(1);
            map(arg(0)?.ring()?, |words| moved(site, op, words, || index.ok_or_else(missing)?.plain(site.bound)))?
        }
    };
    Ok(Arc::new(Value::Ring(ring)))
}

/// The op that gives the second operand, or this one.
fn second<'a>(site: Site<'a>) -> &'a Op {
    site.node().args.get(1).map_or(&site.node().op, |&arg| &site.module.node(arg).op)
}

/// `x · w` for a private weight `w = w1 + w2`, of which the client knows `w1`, the helper `w2`, and the server both. Each
/// multiplies once: with `x = x0 + x1 + x2` the client gives `x0·w1`, the helper `x0·w2`, and the server `(x1 + x2)·w`.
fn times_weight(site: Site<'_>, x: &Shared, w: &Value, trans_b: bool) -> Result<Ring> {
    let (own, part) = match site.party {
        Party::Client => (x.a.data().map(Cow::Borrowed), Part::First),
        Party::Server => (sum_of(&x.a, &x.b), Part::Whole),
        Party::Helper | Party::Dealer => (x.b.data().map(Cow::Borrowed), Part::Second),
    };
    let words = match w {
        Value::Matrix(matrix) => own.map(|own| matrix.product(part, &own, trans_b, site.products)).transpose()?,
        w => {
            let w = w.shared()?;
            let terms = match part {
                Part::First => w.b.data().map(Cow::Borrowed),
                Part::Second => w.a.data().map(Cow::Borrowed),
                Part::Whole => sum_of(&w.a, &w.b),
            };
            let plan = Plan::new(operand_shape(site, 0)?, operand_shape(site, 1)?, trans_b)?;
            plan.sum_of_products(&[(own, terms)], site.products.threads())?
        }
    };
    Ok(Ring::Three(Sum::new(words)))
}

/// `x · w` for a weight that is made block by block: blocks of `w`'s rows meet blocks of `x`'s columns, or give blocks of
/// the result's columns where `w` is given with its axes exchanged.
fn matmul_in_blocks(site: Site<'_>, x: &Ring, w: &Matrix, trans_b: bool) -> Result<Ring> {
    if !w.is_secret() {
        let (form, own) = words_of(role_of(&site), x);
        let words = own.map(|own| w.product(Part::Whole, &own, trans_b, site.products)).transpose()?;
        return Ok(form.with(words));
    }
    let shape = operand_shape(site, 0)?;
    let axis = shape.len().checked_sub(1).ok_or_else(missing)?;
    let mut form = None;
    let mut words: Option<Vec<u64>> = None;
    let step = w.block_rows();
    // One empty block at least, which gives the form of the result.
    for start in (0..w.rows.max(1)).step_by(step) {
        let count = step.min(w.rows - start);
        let block = Ring::weight(w.party(), w.block(start, count)?);
        let right = View { value: &block, shape: &[count, w.columns] };
        let product = if trans_b || count == w.rows {
            matmul(role_of(&site), View { value: x, shape }, right, trans_b, site.products.threads())?
        } else {
            let mut narrow = shape.to_vec();
            narrow[axis] = count;
            let left = map(x, |words| movement::slice(words, shape, axis, start, count))?;
            matmul(role_of(&site), View { value: &left, shape: &narrow }, right, false, site.products.threads())?
        };
        let (kind, part) = product.into_term();
        form = Some(kind);
        let Some(part) = part else { continue };
        match &mut words {
            None if count == w.rows || !trans_b => words = Some(part),
            Some(sum) if !trans_b => elementwise::add_assign(sum, &part),
            _ => {
                let all = words.get_or_insert_with(|| vec![0; part.len() / count.max(1) * w.rows]);
                for (out, row) in all.chunks_exact_mut(w.rows).zip(part.chunks_exact(count)) {
                    out[start..start + count].copy_from_slice(row);
                }
            }
        }
    }
    form.map(|kind| kind.with(words)).ok_or_else(missing)
}

/// The bits of operand `i`, broadcast to the result's shape.
pub(super) fn wide_bits(site: Site<'_>, x: &Bits, i: usize) -> Result<Bits> {
    let shape = operand_shape(site, i)?;
    map_bits(x, volume(site.shape())?, |words| expand(words, shape, site.shape()))
}

fn run_on_bits(site: Site<'_>, op: &Op, args: &[Arc<Value>]) -> Result<Bits> {
    let operand = |i: usize| args.get(i).ok_or_else(missing)?.bits();
    let x = operand(0)?;
    match op {
        Op::Not => {
            // The complement is that of component 0, which role 0 holds as `a` and role 2 as `b`.
            let flipped = |plane: &[u64], flip: bool| {
                let mut plane = plane.to_vec();
                if flip {
                    planes::not_assign(&mut plane, x.n);
                }
                plane
            };
            Ok(Bits::new(x.n, flipped(&x.a, role_of(&site) == 0), flipped(&x.b, role_of(&site) == 2)))
        }
        Op::Xor => {
            let y = operand(1)?;
            if operand_shape(site, 0)? == operand_shape(site, 1)? {
                let xor = |x: &[u64], y: &[u64]| x.iter().zip(y).map(|(x, y)| x ^ y).collect();
                return Ok(Bits::new(x.n, xor(&x.a, &y.a), xor(&x.b, &y.b)));
            }
            let (mut x, y) = (wide_bits(site, x, 0)?, wide_bits(site, y, 1)?);
            planes::xor_assign(&mut x.a, &y.a);
            planes::xor_assign(&mut x.b, &y.b);
            Ok(x)
        }
        Op::Concat { axis } => {
            let n = volume(site.shape())?;
            let side = |component: fn(&Bits) -> &[u64]| -> Result<Vec<u64>> {
                let parts = (0..args.len())
                    .map(|i| operand(i).map(|x| unpacked(component(x), x.n)))
                    .collect::<Result<Vec<_>>>()?;
                let shapes = (0..args.len()).map(|i| operand_shape(site, i)).collect::<Result<Vec<_>>>()?;
                let parts: Vec<_> = parts.iter().map(Vec::as_slice).zip(shapes).collect();
                movement::concat(&parts, usize::from(*axis)).map(|words| packed(&words))
            };
            Ok(Bits::new(n, side(|x| &x.a)?, side(|x| &x.b)?))
        }
        Op::ReduceSum { .. } | Op::RowSum { .. } => Err(unsupported(op)),
        _ => map_bits(x, volume(site.shape())?, |words| {
            moved(site, op, words, || args.get(1).ok_or_else(missing)?.plain(site.bound))
        }),
    }
}

/// The bits with `f` applied to each component as words 0 and 1.
fn map_bits(x: &Bits, n: usize, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Bits> {
    let side = |plane: &[u64]| f(&unpacked(plane, x.n)).map(|words| packed(&words));
    Ok(Bits::new(n, side(&x.a)?, side(&x.b)?))
}

fn unsupported(op: &Op) -> Diagnostic {
    let what = match op.class() {
        Class::Composite => "is composite and was not expanded",
        Class::Source | Class::Core => "has no kernel for these operands",
    };
    Diagnostic::internal("E0815", format!("{} {what}", op.name()))
}
