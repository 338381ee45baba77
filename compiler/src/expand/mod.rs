//! Composite ops into core ops.
//!
//! Every expansion works on values of ring 64 and gives a value of the same form. Inside, functions with results near 1
//! are computed at the finer scale [`FINE`], so that rounding adds little to the error of the formula.
//!
//! Bounds marked `guarded` follow from the formula and not from intervals: inside the function's range the value is
//! that small. Outside the range the value is garbage, and the expansion multiplies it by a zero bit. That bit comes from
//! the whole value, however wide its bound, while the formula runs on its low bits.

mod chebyshev;
mod curve;
mod inverse;
mod norm;
mod quotient;
mod reciprocal;
mod reveal;
mod root;
mod sine;
mod softmax;
mod steps;
#[cfg(test)]
mod tests;

pub(crate) use reciprocal::WIDEST;

use quotient::Range2;

use ombra_ir::diag::Kind;
use ombra_ir::infer::{push, push_like, push_within, sign_width, size, tighten};
use ombra_ir::module::{Id, Module, Node, Origin, OutputKind, Stage};
use ombra_ir::norms::{BIT, Norms};
use ombra_ir::op::{Class, Op};
use ombra_ir::settings::rep3::cut_first;
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Diagnostic, Result};

/// Fraction bits inside functions whose values stay near 1.
pub const FINE: u8 = 26;
/// Fraction bits that decide whether an element is positive where it becomes 0 if it is not: one that is nearer to 0 may
/// count as either.
pub(crate) const POSITIVE_FRACTION: u8 = 12;

/// Replaces every composite op; the result is at stage `expanded`.
///
/// # Errors
/// A composite op whose operand has no room for its expansion, which the message names.
pub fn expand(lowered: &Module) -> Result<Module> {
    let mut module = Module { ops: Vec::with_capacity(lowered.ops.len() * 4), ..lowered.without_ops() };
    module.stage = Stage::Expanded;
    let mut new_ids: Vec<Id> = Vec::with_capacity(lowered.ops.len());
    for node in &lowered.ops {
        let mut args: Vec<Id> = node.args.iter().map(|a| new_ids[a.index()]).collect();
        if let Op::Reveal { slot } = node.op
            && lowered.outputs.get(slot as usize).is_some_and(|o| o.kind == OutputKind::Tensor)
        {
            let mut e = Emit { module: &mut module, origin: node.origin.clone() };
            args[0] = reveal::rounded_down(&mut e, args[0])?;
        }
        let id = if node.op.class() == Class::Composite {
            composite(&mut module, node, &args).map_err(|d| about(node, lowered, d))?
        } else {
            carry_over(&mut module, node, &args)?
        };
        new_ids.push(id);
    }
    Ok(module)
}

/// The error of an expansion in terms of the value that it was given: no rule of the IR is one of the user's.
fn about(node: &Node, lowered: &Module, found: Diagnostic) -> Diagnostic {
    let place = node.origin.node.clone();
    let operand = node.args.first().map(|a| lowered.ty(*a));
    let broken_rule = found.code.starts_with("E03") && found.kind == Kind::Input;
    let (Some(ty), true) = (operand, broken_rule) else { return found.at(place) };
    let (bits, scale) = ty.as_ring().unwrap_or_default();
    let size = i32::from(ty.bound) - i32::from(scale);
    let message = format!(
        "{} of values up to 2^{size} at {scale} fraction bits does not fit a ring of {bits} bits",
        node.op.name()
    );
    Diagnostic::input("E0510", message)
        .note(format!("expected values up to about 2^{}", i32::from(bits) - 4 - i32::from(scale)))
        .note("use fewer fraction bits, or a model whose values are smaller there")
        .at(place)
}

/// A node that stays: with its declared bound, or a tighter one that its new operands prove.
fn carry_over(module: &mut Module, node: &Node, args: &[Id]) -> Result<Id> {
    push_like(module, node, node.op.clone(), args)
}

fn composite(module: &mut Module, node: &Node, args: &[Id]) -> Result<Id> {
    let mut origin = node.origin.clone();
    if origin.kind.is_empty() {
        origin.kind = node.op.name().to_string();
    }
    let mut e = Emit { module, origin };
    let x = args[0];
    let result = (node.ty.bound, node.ty.bound_from);
    let id = match &node.op {
        op if let Some(curve) = op.curve() => curve::looked_up(&mut e, x, curve),
        Op::Softmax => softmax::softmax(&mut e, x, args[1]),
        Op::RatioSoftmax { square, shift, eps, min_log2, max_log2 } => {
            let form = softmax::Ratio {
                square: *square,
                shift: shift.get(),
                eps: eps.get(),
                min_log2: *min_log2,
                max_log2: *max_log2,
            };
            softmax::ratio_softmax(&mut e, x, args[1], form)
        }
        Op::Exp { max } => quotient::exp(&mut e, x, *max),
        Op::Reciprocal { min_log2, max_log2, scale } => {
            quotient::reciprocal(&mut e, x, Range2 { min: *min_log2, max: *max_log2 }, *scale)
        }
        Op::Div { min_log2, max_log2, scale } => {
            quotient::div(&mut e, x, args[1], Range2 { min: *min_log2, max: *max_log2 }, *scale, result)
        }
        Op::Sqrt { min_log4, max_log4, scale } => {
            quotient::sqrt(&mut e, x, inverse::Range4 { min: *min_log4, max: *max_log4 }, *scale)
        }
        Op::Rsqrt { min_log4, max_log4, scale } => {
            let range = inverse::Range4 { min: *min_log4, max: *max_log4 };
            inverse::rsqrt(&mut e, x, range, *scale)
        }
        Op::Log { min_log2, max_log2, scale } => {
            quotient::log(&mut e, x, Range2 { min: *min_log2, max: *max_log2 }, *scale)
        }
        Op::Sin => sine::sin(&mut e, x),
        Op::Cos => sine::cos(&mut e, x),
        Op::RmsNorm { eps, length, scale } => {
            let form = norm::Form { eps: eps.get(), length: *length, scale: *scale };
            norm::rms_norm(&mut e, x, form, result.0)
        }
        Op::LayerNorm { eps, length, scale } => {
            let form = norm::Form { eps: eps.get(), length: *length, scale: *scale };
            norm::layer_norm(&mut e, x, form, result.0)
        }
        other => Err(Diagnostic::internal("E0501", format!("{} has no expansion", other.name()))),
    }?;
    // What was lowered counts on this bound.
    let from = if result.1 == BoundFrom::Proven { BoundFrom::Guarded } else { result.1 };
    tighten(module, id, result.0, from, &node.ty.norms);
    Ok(id)
}

/// A module under construction, with the origin that new ops get.
pub(crate) struct Emit<'a> {
    pub(crate) module: &'a mut Module,
    pub(crate) origin: Origin,
}

impl Emit<'_> {
    /// One op with its proven bound.
    pub(crate) fn op(&mut self, op: Op, args: &[Id]) -> Result<Id> {
        push(self.module, op, args, None, self.origin.clone())
    }

    /// One op whose result is within `2^bound` where it is used.
    pub(crate) fn guarded(&mut self, op: Op, args: &[Id], bound: u8) -> Result<Id> {
        self.declared(op, args, (bound, BoundFrom::Guarded))
    }

    /// One op with the tighter of its proven bound and a declared one.
    pub(crate) fn declared(&mut self, op: Op, args: &[Id], bound: (u8, BoundFrom)) -> Result<Id> {
        push_within(self.module, op, args, bound, self.origin.clone())
    }

    pub(crate) fn ty(&self, id: Id) -> &Ty {
        self.module.ty(id)
    }

    /// Ring bits, fraction bits and bound of a ring value.
    pub(crate) fn ring(&self, id: Id) -> Result<(u8, u8, u8)> {
        let ty = self.ty(id);
        let (bits, scale) = ty
            .as_ring()
            .ok_or_else(|| Diagnostic::internal("E0502", "an expansion met a value that is not a ring element"))?;
        Ok((bits, scale, ty.bound))
    }

    /// `a · b`, truncated to scale `scale`, within `2^bound` where it is used.
    pub(crate) fn product(&mut self, a: Id, b: Id, scale: u8, bound: u8) -> Result<Id> {
        let product = self.op(Op::Mul, &[a, b])?;
        self.truncate_to(product, scale, bound)
    }

    /// A value brought down to `scale`, within `2^bound` where it is used.
    pub(crate) fn truncate_to(&mut self, x: Id, scale: u8, bound: u8) -> Result<Id> {
        let (bits, from, found) = self.ring(x)?;
        let room = bits - division_spare(self.ty(x).sharing, from - scale);
        if found > room {
            // What the formula says of the result holds before the division too.
            let before = bound.saturating_add(from - scale);
            if before > room {
                return Err(no_room(before, bits));
            }
            tighten(self.module, x, before, BoundFrom::Guarded, &Norms::default());
        }
        if from == scale {
            return self.guarded(Op::Reshare, &[x], bound);
        }
        self.guarded(Op::Truncate { by: from - scale, bits }, &[x], bound)
    }

    /// `x + k` for a real constant at the value's own scale.
    pub(crate) fn add_real(&mut self, x: Id, k: f64) -> Result<Id> {
        let (_, scale, _) = self.ring(x)?;
        self.op(Op::AddInt { k: fixed(k, scale)? }, &[x])
    }

    /// Whether a division into a ring that it leaves takes no message, and gives a sum of terms.
    pub(crate) fn divides_freely(&self) -> bool {
        self.module.setting.protocol().divides_freely()
    }

    /// Whether matrices are multiplied by ciphertexts, and elements at a far higher price.
    pub(crate) fn has_ciphertexts(&self) -> bool {
        self.module.setting.protocol().ciphertexts.is_some()
    }

    /// What the size of a value is less than, or equal to.
    pub(crate) fn max_size(&self, x: Id) -> Result<f64> {
        let (_, scale, _) = self.ring(x)?;
        Ok(libm::exp2(f64::from(size(self.ty(x))) / f64::from(BIT) - f64::from(scale)))
    }

    /// The secret bit 1{x < threshold}, blurred below `2^drop` units above the threshold.
    pub(crate) fn below(&mut self, x: Id, threshold: f64, drop: u8) -> Result<Id> {
        let difference = self.add_real(x, -threshold)?;
        self.sign(difference, drop)
    }

    /// The secret bit 1{x < 0}; where `drop` > 0, values in `[0, 2^drop)` may count as negative.
    ///
    /// # Errors
    /// `E0510` where the ring has no room for the sign of what its bound allows.
    pub(crate) fn sign(&mut self, x: Id, drop: u8) -> Result<Id> {
        let (bits, _, bound) = self.ring(x)?;
        let (width, drop) = comparison(size(self.ty(x)), drop, bits).ok_or_else(|| no_room(bound, bits))?;
        self.op(Op::Msb { width, drop }, &[x])
    }

    /// The low bits of the value in a ring of `bits`, if it is in a larger one: what does not fit is garbage.
    pub(crate) fn narrow(&mut self, x: Id, bits: u8) -> Result<Id> {
        let (from, scale, bound) = self.ring(x)?;
        if from <= bits {
            return Ok(x);
        }
        // Bounds of garbage are those of what fits.
        let x = if bound < bits { x } else { self.guarded(Op::SetScale { scale }, &[x], bits - 1)? };
        self.op(Op::Narrow { bits }, &[x])
    }

    /// The value in a ring of `bits`: extended from a smaller one, reshared if it is a sum.
    pub(crate) fn widen(&mut self, x: Id, bits: u8, bound: (u8, BoundFrom)) -> Result<Id> {
        let (from, _, _) = self.ring(x)?;
        if from < bits {
            return self.declared(Op::Truncate { by: 0, bits }, &[x], bound);
        }
        self.declared(Op::Reshare, &[x], bound)
    }
}

/// Bits that a ring has more than the bound of a value that is divided in it by `2^by` with a wrap.
pub(crate) fn division_spare(form: Sharing, by: u8) -> u8 {
    if form == Sharing::Sum3 && cut_first(by) > 0 { 3 } else { 2 }
}

/// Width and dropped bits of a comparison of values below `2^(size / 100)` in a ring of `bits`: without dropping where that
/// takes the one bit that is missing. None where there is no room.
pub(crate) fn comparison(size: u32, drop: u8, bits: u8) -> Option<(u8, u8)> {
    [drop, 0].into_iter().map(|drop| (sign_width(size, drop), drop)).find(|(width, _)| *width <= bits)
}

fn no_room(bound: u8, bits: u8) -> Diagnostic {
    Diagnostic::input("E0510", format!("a value of {bound} bits does not fit a ring of {bits} bits"))
        .note(format!("expected at most {} bits", bits.saturating_sub(2)))
        .note("use fewer fraction bits, or a model whose values are smaller there")
}

/// The smallest ring of whole bytes that has so many bits.
pub(crate) fn ring_of(bits: u8) -> u8 {
    bits.div_ceil(8) * 8
}

/// The smallest ring of whole bytes, from 32 bits up, that has room for values below `2^bound` and their sums and
/// divisions.
pub(crate) fn ring_for(bound: u8) -> u8 {
    ring_of(bound.saturating_add(3)).clamp(32, 64)
}

/// A real constant in fixed point.
pub(crate) fn fixed(k: f64, scale: u8) -> Result<i64> {
    let v = libm::round(libm::ldexp(k, i32::from(scale)));
    if libm::fabs(v) < 9.0e18 {
        return Ok(v as i64);
    }
    Err(Diagnostic::internal("E0503", format!("constant {k} does not fit at scale {scale}")))
}
