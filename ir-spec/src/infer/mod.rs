//! Type rules: the type of every op's result from those of its operands, with the proven bound.
//!
//! Constraints are numbered and listed once, in [`CONSTRAINTS`]. A rule that fails returns the constraint's label.
//! The bound that a rule returns follows from the operands' bounds. It may exceed what the ring holds:
//! whoever builds or verifies a node compares it with the declared bound through [`check_bound`].

mod build;
mod constraints;
mod linear;
mod movement;
mod nonlinear;
mod norms;
mod source;

pub use build::{push, push_like, push_source, push_within, tighten};
pub use constraints::{CONSTRAINTS, Constraint, constraint};

pub(crate) use source::public_type;

use crate::diag::Diagnostic;
use crate::dim::{Dim, Dims};
use crate::module::{Count, Id, InputSlot, Module, OutputSlot, StateSlot};
use crate::op::{Class, Op};
use crate::plain;
use crate::ty::{BoundFrom, Elem, Sharing, Ty};

/// What type rules look up beside the operands.
#[derive(Clone, Copy)]
pub struct TypeCx<'a> {
    /// Symbols and their maxima.
    pub dims: &'a Dims,
    /// Sizes that masks define.
    pub counts: &'a [Count],
    /// The public program.
    pub public: &'a plain::Program,
    /// What a run is given.
    pub inputs: &'a [InputSlot],
    /// What stays between steps.
    pub states: &'a [StateSlot],
    /// What the client learns.
    pub outputs: &'a [OutputSlot],
}

impl<'a> TypeCx<'a> {
    /// The context of a module's ops.
    pub fn of(module: &'a Module) -> Self {
        TypeCx {
            dims: &module.dims,
            counts: &module.counts,
            public: &module.public,
            inputs: &module.inputs,
            states: &module.states,
            outputs: &module.outputs,
        }
    }

    /// The count that is defined by `mask` broadcast to `shape`.
    fn count(&self, mask: u32, shape: &[Dim]) -> Option<Dim> {
        self.counts.iter().find(|c| c.mask == mask && c.shape == shape).map(|c| Dim::from(c.sym))
    }

    /// `⌈log2⌉` of the largest value of `dim`.
    fn log2_of_max(&self, dim: &Dim) -> Option<u32> {
        self.dims.upper(dim).map(ceil_log2)
    }
}

/// An operand as a type rule sees it.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Its type.
    pub ty: &'a Ty,
    /// Its value of the public program, if a `public` op made it: masks are told apart by it.
    pub public: Option<u32>,
}

impl<'a> Operand<'a> {
    /// The result of the op with an id, or `None` when there is no such op.
    pub fn of(module: &'a Module, id: Id) -> Option<Self> {
        let node = module.ops.get(id.index())?;
        let public = match node.op {
            Op::Public { value } => Some(value),
            _ => None,
        };
        Some(Operand { ty: &node.ty, public })
    }
}

/// A constraint that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Label of the constraint.
    pub label: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

impl Violation {
    pub(crate) fn new(label: &'static str, found: impl Into<String>) -> Self {
        let expected = constraint(label).map_or("a legal op", |c| c.says);
        Violation { label, message: format!("expected that {expected}; found {}", found.into()) }
    }

    /// The violation as a diagnostic with the constraint's code.
    pub fn diagnostic(&self) -> Diagnostic {
        let code = constraint(self.label).map_or("E0314", |c| c.code);
        Diagnostic::input(code, format!("{}: {}", self.label, self.message))
    }
}

/// Result of a type rule.
pub type Rule<T> = std::result::Result<T, Violation>;

/// The type of the result of `op`.
///
/// Sources (except `public`, `client_ints` and `random`) and `encode` take their bound, and what else the op does not say, from
/// the type that is `declared`; for all others it is not looked at. Errors: the first constraint that does not hold.
pub fn infer(op: &Op, args: &[Operand], declared: Option<&Ty>, cx: &TypeCx) -> Rule<Ty> {
    if op.arity().map_or(args.is_empty(), |n| n != args.len()) {
        let expected = op.arity().map_or("one or more".into(), |n| n.to_string());
        return Err(Violation::new("arity", format!("{} operands of {}, not {expected}", args.len(), op.name())));
    }
    let mut ty = match (op, args) {
        (Op::Public { value }, _) => source::public(cx, *value),
        (Op::Encode { bits, scale }, [x]) => source::encode(x, *bits, *scale, declared),
        (Op::PublicWeight { .. }, _) => source::public_weight(declared),
        (Op::Weight { .. }, _) => source::weight(declared),
        (Op::Input { slot }, _) => source::input(cx, *slot, declared),
        (Op::ClientInts { slot }, _) => source::client_ints(cx, *slot),
        (Op::State { slot }, _) => source::state(cx, *slot, declared),
        (Op::Random { shape }, _) => Ok(Ty::bit(shape.clone())),

        (Op::Add, [a, b]) => linear::add(cx, ["add_c1", "add_c2", "add_c3"], a, b),
        (Op::Sub, [a, b]) => linear::add(cx, ["sub_c1", "sub_c2", "sub_c3"], a, b),
        (Op::Neg, [x]) => linear::neg(x),
        (Op::MulInt { k }, [x]) => linear::mul_int(x, *k),
        (Op::AddInt { k }, [x]) => linear::add_int(x, *k),
        (Op::Upscale { by }, [x]) => linear::upscale(x, *by),
        (Op::SetScale { scale }, [x]) => linear::set_scale(x, *scale),
        (Op::Mul, [a, b]) => linear::mul(cx, a, b),
        (Op::MatMul { trans_b }, [a, b]) => linear::matmul(cx, a, b, *trans_b),
        (Op::ReduceSum { axis }, [x]) => linear::reduce_sum(cx, x, *axis),
        (Op::Narrow { bits }, [x]) => linear::narrow(x, *bits),
        (Op::Cut { by }, [x]) => linear::cut(x, *by),

        (Op::Reshape { shape }, [x]) => movement::reshape(cx, x, shape),
        (Op::Transpose { perm }, [x]) => movement::transpose(x, perm),
        (Op::Slice { axis, start, len }, [x]) => movement::slice(cx, x, *axis, start, len),
        (Op::Concat { axis }, [first, rest @ ..]) => movement::concat(cx, first, rest, *axis),
        (Op::Expand { shape }, [x]) => movement::expand(cx, x, shape),
        (Op::Gather { axis }, [x, index]) => movement::gather(cx, x, index, *axis),
        (Op::Pack, [x, mask]) => movement::pack(cx, x, mask),
        (Op::Unpack { shape }, [x, mask]) => movement::unpack(cx, x, mask, shape),
        (Op::RowSum { shape }, [x, mask]) => movement::row_sum(cx, x, mask, shape),
        (Op::RowExpand { shape }, [x, mask]) => movement::row_expand(cx, x, mask, shape),

        (Op::Truncate { by }, [x]) => nonlinear::truncate(x, *by),
        (Op::Reshare, [x]) => nonlinear::reshare(x),
        (Op::Extend { bits }, [x]) => nonlinear::extend(x, *bits),
        (Op::Msb { width, drop }, [x]) => nonlinear::msb(x, *width, *drop),
        (Op::Xor, [a, b]) => nonlinear::bits(cx, ["xor_c1", "xor_c2"], a, b),
        (Op::Not, [x]) => nonlinear::not(x),
        (Op::And, [a, b]) => nonlinear::bits(cx, ["and_c1", "and_c2"], a, b),
        (Op::BitToRing { bits }, [x]) => nonlinear::bit_to_ring(x, *bits),
        (Op::ExpDigits { scale, .. }, [x]) => nonlinear::exp_digits(x, *scale),
        (Op::RowMax { shape, width, drop }, [x, mask]) => nonlinear::row_max(cx, x, mask, shape, (*width, *drop)),
        (Op::ArgMax { width }, [x]) => nonlinear::arg_max(cx, x, *width),
        (Op::Embed, [ids, table]) => nonlinear::embed(ids, table),
        (Op::Reveal { slot }, [x]) => nonlinear::reveal(cx, x, *slot),
        (Op::SetState { slot }, [x]) => nonlinear::set_state(cx, x, *slot),

        (Op::Exp { max }, [x]) => nonlinear::exp(x, *max),
        (Op::Reciprocal { min_log2, max_log2, scale }, [x]) => nonlinear::reciprocal(x, (*min_log2, *max_log2), *scale),
        (Op::Div { min_log2, max_log2, scale }, [a, b]) => nonlinear::div(cx, a, b, (*min_log2, *max_log2), *scale),
        (Op::Sqrt { min_log4, max_log4, scale }, [x]) => nonlinear::sqrt(x, (*min_log4, *max_log4), *scale),
        (Op::Rsqrt { min_log4, max_log4, scale }, [x]) => nonlinear::rsqrt(x, (*min_log4, *max_log4), *scale),
        (Op::Log { min_log2, max_log2, scale }, [x]) => nonlinear::log(x, (*min_log2, *max_log2), *scale),
        (Op::Softmax, [x, mask]) => {
            nonlinear::softmax(cx, ["softmax_c1", "softmax_c2", "softmax_c3", "softmax_c4"], x, mask)
        }
        (Op::RatioSoftmax { shift, eps, min_log2, max_log2, .. }, [x, mask]) => {
            nonlinear::ratio_softmax(cx, x, mask, [*shift, *eps], (*min_log2, *max_log2))
        }
        (Op::Gelu { .. }, [x]) => nonlinear::activation("gelu_c1", x),
        (Op::Silu, [x]) => nonlinear::activation("silu_c1", x),
        (Op::Tanh, [x]) => nonlinear::saturating("tanh_c1", x),
        (Op::Sigmoid, [x]) => nonlinear::saturating("sigmoid_c1", x),
        (Op::Erf, [x]) => nonlinear::saturating("erf_c1", x),
        (Op::Softplus, [x]) => nonlinear::softplus(x),
        (Op::RmsNorm { eps, length, scale }, [x]) => {
            let form = nonlinear::NormForm { eps: *eps, length: *length, scale: *scale, centred: false };
            nonlinear::norm(cx, ["rms_norm_c1", "rms_norm_c2", "rms_norm_c3"], x, form)
        }
        (Op::LayerNorm { eps, length, scale }, [x]) => {
            let form = nonlinear::NormForm { eps: *eps, length: *length, scale: *scale, centred: true };
            nonlinear::norm(cx, ["layer_norm_c1", "layer_norm_c2", "layer_norm_c3"], x, form)
        }
        (_, _) => Err(Violation::new("arity", format!("{} operands", args.len()))),
    }?;
    check_ring(&ty)?;
    ty.norms = norms::norms(op, args, &ty, declared, cx);
    if let Some(size) = ty.norms.size {
        ty.bound = ty.bound.min(norms::whole(size));
    }
    Ok(ty)
}

/// Compares the bound and the norms of the type that `op` declares with those that [`infer`] proved.
///
/// Errors: `E0320` when something declared is smaller and not marked, or when norms are declared of what nobody checks;
/// `E0323` when the ring does not hold the bound. Values that are no ring elements have bound 0 and no norms.
pub fn check_bound(op: &Op, proven: &Ty, declared: &Ty, cx: &TypeCx) -> Result<(), Diagnostic> {
    let (bound, from) = (declared.bound, declared.bound_from);
    let Some((bits, _)) = proven.as_ring() else {
        if bound != 0 || from != BoundFrom::Proven || !declared.norms.is_none() {
            return Err(Diagnostic::input("E0320", format!("a bound of {bound} on values that are no ring elements"))
                .note("expected none"));
        }
        return Ok(());
    };
    let source = declares_bound(op);
    if source && declared.norms != proven.norms {
        return Err(Diagnostic::input("E0320", format!("norms that nobody checks are declared of {}", op.name()))
            .note("expected norms of rows and columns, of weights and encoded values alone"));
    }
    if bound >= bits {
        return Err(Diagnostic::input("E0323", format!("a bound of {bound} bits does not fit a ring of {bits} bits"))
            .note(format!("expected at most {}", bits.saturating_sub(1)))
            .note("truncate earlier, use a larger ring, or declare a calibrated bound"));
    }
    if source || from != BoundFrom::Proven {
        return Ok(());
    }
    if bound < proven.bound {
        let least = proven.bound;
        return Err(Diagnostic::input("E0320", format!("a bound of {bound} is declared as proven"))
            .note(format!("expected at least {least}, which follows from the operands"))
            .note("mark the bound as calibrated or guarded"));
    }
    if let Some((name, n)) = norms::below(&proven.norms, declared, cx) {
        let (found, shown) = (crate::norms::show(n), declared.show(cx.dims));
        return Err(Diagnostic::input("E0320", format!("{name} {found} of {shown} is declared as proven"))
            .note("expected at least what follows from the operands and the bound, or no number")
            .note("mark the bound as calibrated or guarded"));
    }
    Ok(())
}

/// Whether an op's result can be an operand; `reveal` and `set_state` have none.
pub fn has_result(op: &Op) -> bool {
    !matches!(op, Op::Reveal { .. } | Op::SetState { .. })
}

/// Whether the bound of the op's result is declared rather than derived.
pub fn declares_bound(op: &Op) -> bool {
    let given = matches!(op, Op::Public { .. } | Op::ClientInts { .. } | Op::Random { .. });
    matches!(op, Op::Encode { .. }) || (op.class() == Class::Source && !given)
}

fn check_ring(ty: &Ty) -> Rule<()> {
    match ty.as_ring() {
        Some((bits, scale)) if bits % 8 != 0 || !(8..=64).contains(&bits) || scale > 63 => {
            Err(Violation::new("ring_c1", format!("ring{bits}.{scale}")))
        }
        _ => Ok(()),
    }
}

/// The type of a ring result whose bound may exceed every ring.
fn ring(bits: u8, scale: u32, sharing: Sharing, shape: Vec<Dim>, bound: u32) -> Ty {
    Ty::ring(bits, clamp(scale), sharing, shape, clamp(bound))
}

fn clamp(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// `⌈log2 n⌉`; 0 for 1 and below.
pub(crate) fn ceil_log2(n: i128) -> u32 {
    if n <= 1 { 0 } else { i128::BITS - (n - 1).leading_zeros() }
}

/// Ring bits and scale of an operand that parties may compute with.
fn ring_of(label: &'static str, x: &Operand) -> Rule<(u8, u8)> {
    not_client(x)?;
    x.ty.as_ring().ok_or_else(|| Violation::new(label, describe(x.ty)))
}

/// Ring bits and scale of an operand in the setting's own secret form.
fn shared_ring(label: &'static str, x: &Operand) -> Rule<(u8, u8)> {
    not_client(x)?;
    match x.ty.as_ring() {
        Some(ring) if x.ty.sharing == Sharing::Shared => Ok(ring),
        _ => Err(Violation::new(label, describe(x.ty))),
    }
}

/// Checks an operand of shared bits.
fn shared_bits(label: &'static str, x: &Operand) -> Rule<()> {
    not_client(x)?;
    if x.ty.elem == Elem::Bit && x.ty.sharing == Sharing::Shared {
        return Ok(());
    }
    Err(Violation::new(label, describe(x.ty)))
}

/// Checks an operand that local movement may touch.
fn movable(label: &'static str, x: &Operand) -> Rule<()> {
    not_client(x)?;
    match x.ty.elem {
        Elem::Ring { .. } | Elem::Bit => Ok(()),
        Elem::Plain(_) => Err(Violation::new(label, describe(x.ty))),
    }
}

fn not_client(x: &Operand) -> Rule<()> {
    match x.ty.sharing {
        Sharing::Client => Err(Violation::new("client_c1", describe(x.ty))),
        Sharing::Public | Sharing::Shared | Sharing::Sum2 | Sharing::Sum3 => Ok(()),
    }
}

/// The public value that masks: labels are those for "public" and for "booleans of the public program".
fn mask_of(labels: [&'static str; 2], x: &Operand) -> Rule<u32> {
    let [public, truth] = labels;
    if x.ty.sharing != Sharing::Public {
        return Err(Violation::new(public, describe(x.ty)));
    }
    match (x.public, x.ty.elem) {
        (Some(value), Elem::Plain(plain::DType::Bool)) => Ok(value),
        _ => Err(Violation::new(truth, describe(x.ty))),
    }
}

fn describe(ty: &Ty) -> String {
    format!("a {} tensor of {}", ty.sharing.name(), ty.elem)
}

/// The common shape of two operands: sizes are equal or one of them is 1.
fn broadcast(cx: &TypeCx, label: &'static str, a: &[Dim], b: &[Dim]) -> Rule<Vec<Dim>> {
    let wrong = || Violation::new(label, format!("{} and {}", cx.dims.show_shape(a), cx.dims.show_shape(b)));
    crate::plain::infer::broadcast(label, a, b).map_err(|_| wrong())
}

fn sized<T>(result: crate::Result<T>) -> Rule<T> {
    result.map_err(|d| Violation::new("size_c1", d.message))
}
