//! Ops that send nothing: linear maps that client and server apply to their shares. The dealer holds nothing and does
//! nothing, but for weights and what is public.

use std::borrow::Cow;
use std::sync::Arc;

use ombra_ir::Result;
use ombra_ir::op::Op;
use ombra_ir::reference::encode_as;
use ombra_ir::ty::Sharing;

use super::products::{mismatch, negative};
use super::share::{BitShare, Masked, Share};
use super::times;
use super::value::{Value, unexpected};
use crate::backend::bits as planes;
use crate::exec::side::Site;
use crate::settings::rep3::share::ring_mask;
use crate::settings::weights::Part;
use crate::settings::words::broadcast::{expand, volume, zip};
use crate::settings::words::movement;
use crate::settings::words::ops::{missing, moved, operand_shape, packed, unpacked};
use crate::settings::words::product::Plan;
use crate::wiped::Zeroizing;

/// This party's role in every op.
pub(super) fn role(site: Site<'_>) -> u8 {
    site.party.index() as u8
}

/// The result of a local op that is no source.
pub(in crate::settings) fn run(site: Site<'_>, args: &[Arc<Value>]) -> Result<Arc<Value>> {
    let (node, role) = (site.node(), role(site));
    let arg = |i: usize| args.get(i).ok_or_else(missing);
    if matches!(node.op, Op::Reshape { .. } | Op::SetScale { .. } | Op::Narrow { .. }) {
        return arg(0).cloned();
    }
    let value = match (&node.op, &**arg(0)?) {
        (Op::Encode { .. }, value) => {
            let tensor = value.plain(site.bound)?;
            Value::Public(encode_as(tensor.as_f32()?, tensor.shape(), site.module.ty(site.id))?)
        }
        (op, Value::Bits(_)) => Value::Bits(on_bits(site, op, args)?),
        (Op::Reshare, Value::Masked(x) | Value::Held(x)) => Value::Share(x.share(role)),
        (Op::Reshare, _) => return arg(0).cloned(),
        (Op::Add, _) => both(site, args, u64::wrapping_add, |y| y)?,
        (Op::Sub, _) => both(site, args, u64::wrapping_sub, negative)?,
        (Op::Neg, x) => each(x, |words| Ok(negative(words.to_vec())))?,
        (Op::MulInt { k }, x) => each(x, |words| Ok(scaled(words, *k as u64)))?,
        (Op::Upscale { by } | Op::Lift { by }, x) => {
            each(x, |words| Ok(scaled(words, 1u64.checked_shl((*by).into()).unwrap_or(0))))?
        }
        (Op::AddInt { k }, x) => plus_int(role, x, *k as u64)?,
        (Op::Cut { by }, x) => {
            let arg = node.args.first().ok_or_else(missing)?;
            let (bits, _) = site.module.ty(*arg).as_ring().ok_or_else(missing)?;
            let cut = |words: &[u64]| shifted(words, bits, *by);
            match x {
                Value::Masked(x) => Value::Masked(cut_masked(x, bits, *by)?),
                x => Value::Share(x.to_share(role, site.bound.len(site.id))?.map(cut)),
            }
        }
        (Op::Mul, _) => product(site, args, |x, y| zip(x, y, site.shape(), u64::wrapping_mul))?,
        (Op::MatMul { trans_b }, _) => {
            let plan = Plan::new(operand_shape(site, 0)?, operand_shape(site, 1)?, *trans_b)?;
            product(site, args, |(x, _), (y, _)| {
                let pair = [(Some(x.into()), Some(y.into()))];
                Ok(plan.sum_of_products(&pair, site.products.threads())?.unwrap_or_default())
            })?
        }
        (Op::Concat { axis }, _) => concat(site, args, usize::from(*axis))?,
        (op, x) => each(x, |words| moved(site, op, words, || args.get(1).ok_or_else(missing)?.plain(site.bound)))?,
    };
    Ok(Arc::new(value))
}

/// A linear map of the words that this party has, in whatever form.
fn each(x: &Value, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Value> {
    Ok(match x {
        Value::Public(words) => Value::Public(f(words)?),
        Value::Share(share) => Value::Share(match share.words() {
            Some(words) => Share::of(f(words)?),
            None => Share::nothing(),
        }),
        Value::Weight(terms) => Value::Weight(terms.map(f)?),
        Value::Masked(masked) => Value::Masked(masked.map(f)?),
        Value::Held(held) => Value::Held(held.map(f)?),
        _ => return Err(unexpected("ring elements")),
    })
}

/// What elements of a ring of `bits` have above their lowest `by` bits.
fn shifted(words: &[u64], bits: u8, by: u8) -> Vec<u64> {
    words.iter().map(|w| (w & ring_mask(bits)) >> by.min(63)).collect()
}

/// A masked value `x = m − λ^0 − λ^1` cut: `m`, `−λ^0` and `−λ^1` are three numbers that add up to it, and each is shifted.
pub(super) fn cut_masked(x: &Masked, bits: u8, by: u8) -> Result<Masked> {
    let cut = x.map(|words| Ok(negative(shifted(&negative(words.to_vec()), bits, by))))?;
    Ok(Masked { words: x.words.as_ref().map(|words| Zeroizing::new(shifted(words, bits, by))), ..cut })
}

fn scaled(words: &[u64], k: u64) -> Vec<u64> {
    words.iter().map(|w| w.wrapping_mul(k)).collect()
}

fn plus_int(role: u8, x: &Value, k: u64) -> Result<Value> {
    let add = |words: &[u64]| words.iter().map(|w| w.wrapping_add(k)).collect::<Vec<_>>();
    let plus = |x: &Masked| Masked { words: x.words.as_ref().map(|w| Zeroizing::new(add(w))), ..x.clone() };
    Ok(match x {
        Value::Public(words) => Value::Public(add(words)),
        Value::Masked(x) => Value::Masked(plus(x)),
        Value::Held(x) => Value::Held(plus(x)),
        _ => match x.share(role)? {
            Some(words) if role == 0 => Value::Share(Share::of(add(&words))),
            Some(words) => Value::Share(Share::of(words.into_owned())),
            None => Value::Share(Share::nothing()),
        },
    })
}

/// `x ± y` with broadcasting: of public numbers a public one, else a share.
fn both(
    site: Site<'_>,
    args: &[Arc<Value>],
    f: impl Fn(u64, u64) -> u64 + Copy,
    alone: impl Fn(Vec<u64>) -> Vec<u64>,
) -> Result<Value> {
    let [x, y] = args else { return Err(missing()) };
    let (xs, ys, out) = (operand_shape(site, 0)?, operand_shape(site, 1)?, site.shape());
    if let (Value::Public(x), Value::Public(y)) = (&**x, &**y) {
        return zip((x, xs), (y, ys), out, f).map(Value::Public);
    }
    let sum = |x: Option<&[u64]>, y: Option<&[u64]>| -> Result<Vec<u64>> {
        match (x, y) {
            (Some(x), Some(y)) => zip((x, xs), (y, ys), out, f),
            (Some(x), None) => expand(x, xs, out),
            (None, Some(y)) => expand(y, ys, out).map(&alone),
            (None, None) => volume(out).map(|n| vec![0; n]),
        }
    };
    combine(site, &[(x, xs), (y, ys)], &|parts| sum(parts[0], parts[1]))
}

/// A product of which one operand is public.
fn product(
    site: Site<'_>,
    args: &[Arc<Value>],
    f: impl Fn((&[u64], &[usize]), (&[u64], &[usize])) -> Result<Vec<u64>>,
) -> Result<Value> {
    let [x, y] = args else { return Err(missing()) };
    let (xs, ys) = (operand_shape(site, 0)?, operand_shape(site, 1)?);
    match (&**x, &**y) {
        (Value::Public(x), matrix @ Value::Matrix(_)) => {
            let Op::MatMul { trans_b } = site.node().op else { return Err(missing()) };
            // Client and server multiply the term of the weight that is their share of it.
            let part = match role(site) {
                0 => Part::First,
                1 => Part::Second,
                _ => return Ok(Value::Share(Share::nothing())),
            };
            let words = times(part, (x, xs), (matrix, ys), trans_b, site.products)?;
            Ok(Value::Share(Share::of(words)))
        }
        (Value::Public(x), Value::Public(y)) => f((x, xs), (y, ys)).map(Value::Public),
        (x, Value::Public(y)) => as_share(site, x, |words| f((words, xs), (y, ys))),
        (Value::Public(x), y) => as_share(site, y, |words| f((x, xs), (words, ys))),
        _ => Err(mismatch("a local product of two secrets")),
    }
}

/// A linear map of parts of operands, of any of which a party may have nothing.
type OfParts<'a> = &'a dyn Fn(&[Option<&[u64]>]) -> Result<Vec<u64>>;

/// A linear map of several operands, in the form of the result's type, which is the weakest of theirs.
fn combine(site: Site<'_>, args: &[(&Arc<Value>, &[usize])], f: OfParts<'_>) -> Result<Value> {
    let role = role(site);
    let form = site.module.ty(site.id).sharing;
    if form != Sharing::Masked && form != Sharing::Held {
        if role == 2 {
            return Ok(Value::Share(Share::nothing()));
        }
        let shares = args.iter().map(|(x, _)| x.share(role)).collect::<Result<Vec<_>>>()?;
        return f(&shares.iter().map(Option::as_deref).collect::<Vec<_>>()).map(|words| Value::Share(Share::of(words)));
    }
    let is_masked = form == Sharing::Masked;
    let of = |(x, shape): &(&Arc<Value>, &[usize])| {
        let n = volume(shape)?;
        let part = if is_masked { x.masked(role, n) } else { x.held(role, n) };
        part.map(Cow::into_owned)
    };
    let parts = args.iter().map(of).collect::<Result<Vec<_>>>()?;
    let each = |part: &dyn Fn(&Masked) -> Option<&[u64]>| {
        let words: Vec<_> = parts.iter().map(part).collect();
        if words.iter().all(Option::is_none) { Ok(None) } else { f(&words).map(Zeroizing::new).map(Some) }
    };
    let words = each(&|x| x.words.as_ref().map(|w| w.as_slice()))?;
    let mask = |i: usize| each(&move |x: &Masked| x.masks[i].as_ref().map(|w| w.as_slice()));
    let value = Masked { words, masks: [mask(0)?, mask(1)?] };
    Ok(if is_masked { Value::Masked(value) } else { Value::Held(value) })
}

fn as_share(site: Site<'_>, x: &Value, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Value> {
    if let Value::Masked(_) | Value::Held(_) = x {
        return each(x, f);
    }
    Ok(Value::Share(match x.share(role(site))? {
        Some(words) => Share::of(f(&words)?),
        None => Share::nothing(),
    }))
}

fn concat(site: Site<'_>, args: &[Arc<Value>], axis: usize) -> Result<Value> {
    let shapes = (0..args.len()).map(|i| operand_shape(site, i)).collect::<Result<Vec<_>>>()?;
    let join = |parts: &[Option<&[u64]>]| -> Result<Vec<u64>> {
        let zeros = shapes.iter().map(|shape| volume(shape).map(|n| vec![0; n])).collect::<Result<Vec<_>>>()?;
        let words = parts.iter().zip(&zeros).map(|(part, zero)| part.unwrap_or(zero));
        movement::concat(&words.zip(shapes.iter().copied()).collect::<Vec<_>>(), axis)
    };
    let public = args.iter().map(|x| if let Value::Public(words) = &**x { Some(words.as_slice()) } else { None });
    let public: Vec<_> = public.collect();
    if public.iter().all(Option::is_some) {
        return join(&public).map(Value::Public);
    }
    combine(site, &args.iter().zip(shapes.iter().copied()).collect::<Vec<_>>(), &join)
}

/// The operands of an op that are bits, broadcast to the result's shape.
pub(in crate::settings) fn wide_operands(site: Site<'_>, args: &[Arc<Value>]) -> Result<Vec<BitShare>> {
    let count = match site.node().op {
        Op::And => 2,
        Op::Select => 1,
        _ => 0,
    };
    (0..count).map(|i| wide_bits(site, args, i)).collect()
}

/// The bits of an operand, broadcast to the result's shape.
fn wide_bits(site: Site<'_>, args: &[Arc<Value>], i: usize) -> Result<BitShare> {
    let x = args.get(i).ok_or_else(missing)?.bits()?;
    let shape = operand_shape(site, i)?;
    if shape == site.shape() {
        return Ok(x.map(x.n, <[u64]>::to_vec));
    }
    map_bits(x, volume(site.shape())?, |words| expand(words, shape, site.shape()))
}

fn on_bits(site: Site<'_>, op: &Op, args: &[Arc<Value>]) -> Result<BitShare> {
    let operand = |i: usize| args.get(i).ok_or_else(missing)?.bits();
    let (x, n) = (operand(0)?, volume(site.shape())?);
    match op {
        // The complement is that of the client's share.
        Op::Not => Ok(x.map(x.n, |plane| {
            let mut plane = plane.to_vec();
            if role(site) == 0 {
                planes::not_assign(&mut plane, x.n);
            }
            plane
        })),
        Op::Xor => {
            let (x, y) = (wide_bits(site, args, 0)?, wide_bits(site, args, 1)?);
            let Some(other) = y.plane() else { return Ok(BitShare::nothing(n)) };
            Ok(x.map(n, |plane| plane.iter().zip(other).map(|(x, y)| x ^ y).collect()))
        }
        Op::Concat { axis } => {
            let mut parts = Vec::with_capacity(args.len());
            for i in 0..args.len() {
                let Some(plane) = operand(i)?.plane() else { return Ok(BitShare::nothing(n)) };
                parts.push((unpacked(plane, operand(i)?.n), operand_shape(site, i)?));
            }
            let parts: Vec<_> = parts.iter().map(|(words, shape)| (words.as_slice(), *shape)).collect();
            Ok(BitShare::of(n, packed(&movement::concat(&parts, usize::from(*axis))?)))
        }
        _ => map_bits(x, n, |words| moved(site, op, words, || args.get(1).ok_or_else(missing)?.plain(site.bound))),
    }
}

/// The bits with `f` applied to the share as words 0 and 1.
fn map_bits(x: &BitShare, n: usize, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<BitShare> {
    match x.plane() {
        Some(plane) => Ok(BitShare::of(n, packed(&f(&unpacked(plane, x.n))?))),
        None => Ok(BitShare::nothing(n)),
    }
}
