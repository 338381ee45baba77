//! Type rules: the type of every op's result from those of its operands, with the proven bound.
//!
//! What is special to an op stands in its description ([`crate::op`]); here is what all of them share. An op's constraints
//! are numbered in its description; a rule that fails returns the constraint's label.
//! The bound that a rule returns follows from the operands' bounds. It may exceed what the ring holds:
//! whoever builds or verifies a node compares it with the declared bound through [`check_bound`].

mod build;
pub(crate) mod norms;

pub use build::{push, push_like, push_source, push_within, tighten};
pub use norms::{sign_width, size};

use crate::diag::Diagnostic;
use crate::dim::{Dim, Dims};
use crate::module::{Count, Id, InputSlot, Module, OutputSlot, StateSlot};
use crate::norms::Norms;
use crate::op::{Constraint, Description, NormRule, OPS, Op};
use crate::plain;
use crate::settings::Setting;
use crate::ty::{BoundFrom, Elem, Sharing, Ty};

/// What type rules look up beside the operands.
#[derive(Clone, Copy)]
pub struct TypeCx<'a> {
    /// The setting, which gives products their form.
    pub setting: Setting,
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
            setting: module.setting,
            dims: &module.dims,
            counts: &module.counts,
            public: &module.public,
            inputs: &module.inputs,
            states: &module.states,
            outputs: &module.outputs,
        }
    }

    /// The count that is defined by `mask` broadcast to `shape`.
    pub(crate) fn count(&self, mask: u32, shape: &[Dim]) -> Option<Dim> {
        self.counts.iter().find(|c| c.mask == mask && c.shape == shape).map(|c| Dim::from(c.sym))
    }

    /// `⌈log2⌉` of the largest value of `dim`.
    pub(crate) fn log2_of_max(&self, dim: &Dim) -> Option<u32> {
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

/// What must hold of every op, with its label.
pub const OF_ALL_OPS: [(&str, Constraint); 5] = [
    ("arity", Constraint { code: "E0303", says: "the op has its number of operands" }),
    (
        "ring_c1",
        Constraint { code: "E0311", says: "ring bits are a multiple of 8 from 8 to 64, and the scale is at most 63" },
    ),
    (
        "size_c1",
        Constraint {
            code: "E0305",
            says: "sizes computed from the operands' sizes stay within the limits of symbolic sizes",
        },
    ),
    ("client_c1", Constraint { code: "E0337", says: "integers that the client knows go into `embed` alone" }),
    ("source_c1", Constraint { code: "E0314", says: "a source declares the type of its value" }),
];

/// Every constraint with its label: those of all ops, then every op's in the order of the op list.
pub fn constraints() -> impl Iterator<Item = (String, Constraint)> {
    let of_all = OF_ALL_OPS.iter().map(|(label, constraint)| (label.to_string(), *constraint));
    let of_each = OPS.iter().flat_map(|op| {
        let numbered = op.description.constraints.iter().zip(1..);
        numbered.map(|(constraint, number)| (label(op.description, number), *constraint))
    });
    of_all.chain(of_each)
}

fn label(op: &Description, number: usize) -> String {
    format!("{}_c{number}", op.name)
}

/// A constraint that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Label of the constraint.
    pub label: String,
    /// The code of its diagnostic.
    pub code: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

impl Violation {
    fn new(label: String, constraint: Constraint, found: impl Into<String>) -> Self {
        let message = format!("expected that {}; found {}", constraint.says, found.into());
        Violation { label, code: constraint.code, message }
    }

    /// Of the constraint of all ops that has this label.
    pub(crate) fn of_all(label: &str, found: impl Into<String>) -> Self {
        let constraint = OF_ALL_OPS.iter().find(|(own, _)| *own == label).map(|(_, constraint)| *constraint);
        Violation::new(label.into(), constraint.unwrap_or(UNLISTED), found)
    }

    /// Of an op's own constraint of a number.
    pub(crate) fn of_op(op: &Description, number: usize, found: impl Into<String>) -> Self {
        let constraint = number.checked_sub(1).and_then(|i| op.constraints.get(i));
        Violation::new(label(op, number), constraint.copied().unwrap_or(UNLISTED), found)
    }

    /// The violation as a diagnostic with the constraint's code.
    pub fn diagnostic(&self) -> Diagnostic {
        Diagnostic::input(self.code, format!("{}: {}", self.label, self.message))
    }
}

/// Stands for a constraint that is not in its list; a test finds that none is.
const UNLISTED: Constraint = Constraint { code: "E0314", says: "the op is legal" };

/// Result of a type rule.
pub type Rule<T> = std::result::Result<T, Violation>;

/// An op whose result is typed: its operands, and what a type rule looks up.
pub struct Typing<'a> {
    op: &'static Description,
    args: &'a [Operand<'a>],
    declared: Option<&'a Ty>,
    pub(crate) cx: &'a TypeCx<'a>,
}

impl<'a> Typing<'a> {
    /// The operands, `N` of them.
    pub(crate) fn operands<const N: usize>(&self) -> Rule<[Operand<'a>; N]> {
        self.args.try_into().map_err(|_| self.other())
    }

    /// All operands.
    pub(crate) fn all(&self) -> &'a [Operand<'a>] {
        self.args
    }

    /// Norms of the first operand.
    pub(crate) fn first_norms(&self) -> Norms {
        self.args.first().map_or(Norms::default(), |x| x.ty.norms)
    }

    /// The type that the op declares.
    pub(crate) fn declared(&self) -> Rule<&'a Ty> {
        self.declared.ok_or_else(|| Violation::of_all("source_c1", "none"))
    }

    /// The op's own constraint of a number does not hold.
    pub(crate) fn fails(&self, number: usize, found: impl Into<String>) -> Violation {
        Violation::of_op(self.op, number, found)
    }

    /// As [`Self::fails`], for an operand.
    pub(crate) fn finds(&self, number: usize, x: &Operand) -> Violation {
        self.fails(number, describe(x.ty))
    }

    /// The operands are not those of the op.
    pub(crate) fn other(&self) -> Violation {
        let expected = self.op.arity().map_or("one or more".into(), |n| n.to_string());
        Violation::of_all("arity", format!("{} operands of {}, not {expected}", self.args.len(), self.op.name))
    }

    /// Ring bits and scale of an operand that parties may compute with. `number` is the constraint, as in those below.
    pub(crate) fn ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        not_client(x)?;
        x.ty.as_ring().ok_or_else(|| self.finds(number, x))
    }

    /// Ring bits and scale of an operand in a secret form.
    pub(crate) fn secret_ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        let ring = self.ring(number, x)?;
        if x.ty.sharing.is_secret() { Ok(ring) } else { Err(self.finds(number, x)) }
    }

    /// Ring bits and scale of an operand in the setting's own secret form.
    pub(crate) fn shared_ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        let ring = self.ring(number, x)?;
        if x.ty.sharing == Sharing::Shared { Ok(ring) } else { Err(self.finds(number, x)) }
    }

    /// Ring bits and scale of an operand in the setting's own secret form, or masked.
    pub(crate) fn kept_ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        let ring = self.ring(number, x)?;
        if matches!(x.ty.sharing, Sharing::Shared | Sharing::Masked) { Ok(ring) } else { Err(self.finds(number, x)) }
    }

    /// Ring bits and scale of an operand in the setting's own secret form, or a sum of two terms.
    pub(crate) fn two_term_ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        let ring = self.ring(number, x)?;
        if matches!(x.ty.sharing, Sharing::Shared | Sharing::Sum2) { Ok(ring) } else { Err(self.finds(number, x)) }
    }

    /// The same, or masked.
    pub(crate) fn masked_or_two_term_ring(&self, number: usize, x: &Operand) -> Rule<(u8, u8)> {
        if x.ty.sharing == Sharing::Masked { self.ring(number, x) } else { self.two_term_ring(number, x) }
    }

    /// Checks an operand of shared bits.
    pub(crate) fn shared_bits(&self, number: usize, x: &Operand) -> Rule<()> {
        not_client(x)?;
        let holds = x.ty.elem == Elem::Bit && x.ty.sharing == Sharing::Shared;
        if holds { Ok(()) } else { Err(self.finds(number, x)) }
    }

    /// Checks an operand that local movement may touch.
    pub(crate) fn movable(&self, number: usize, x: &Operand) -> Rule<()> {
        not_client(x)?;
        match x.ty.elem {
            Elem::Ring { .. } | Elem::Bit => Ok(()),
            Elem::Plain(_) => Err(self.finds(number, x)),
        }
    }

    /// The public value that masks: constraint `number` says that it is public, the next one that it holds booleans of the
    /// public program.
    pub(crate) fn mask(&self, number: usize, x: &Operand) -> Rule<u32> {
        if x.ty.sharing != Sharing::Public {
            return Err(self.finds(number, x));
        }
        match (x.public, x.ty.elem) {
            (Some(value), Elem::Plain(plain::DType::Bool)) => Ok(value),
            _ => Err(self.finds(number + 1, x)),
        }
    }

    /// The common shape of two operands: sizes are equal or one of them is 1.
    pub(crate) fn broadcast(&self, number: usize, a: &[Dim], b: &[Dim]) -> Rule<Vec<Dim>> {
        let found = || format!("{} and {}", self.cx.dims.show_shape(a), self.cx.dims.show_shape(b));
        crate::plain::infer::broadcast(self.op.name, a, b).map_err(|_| self.fails(number, found()))
    }

    /// A computed size.
    pub(crate) fn sized<T>(&self, result: crate::Result<T>) -> Rule<T> {
        result.map_err(|d| Violation::of_all("size_c1", d.message))
    }
}

/// The type of the result of `op`.
///
/// Sources (except `public`, `client_ints` and `random`) and `encode` take their bound, and what else the op does not say, from
/// the type that is `declared`; for all others it is not looked at. Errors: the first constraint that does not hold.
pub fn infer(op: &Op, args: &[Operand], declared: Option<&Ty>, cx: &TypeCx) -> Rule<Ty> {
    let description = op.description();
    let typing = Typing { op: description, args, declared, cx };
    if description.arity().map_or(args.is_empty(), |n| n != args.len()) {
        return Err(typing.other());
    }
    let mut ty = (description.infer)(op, &typing)?;
    check_ring(&ty)?;
    ty.norms = match description.derive_norms {
        _ if ty.as_ring().is_none() => Norms::default(),
        NormRule::None => Norms::default(),
        NormRule::Declared => declared.map_or(Norms::default(), |d| Norms { size: None, ..d.norms }),
        NormRule::OfOp(rule) => rule(op, &typing, &ty),
        NormRule::OfOperands(rule) if args.iter().any(|x| !x.ty.norms.is_none()) => rule(op, &typing, &ty),
        NormRule::OfOperands(_) => Norms::default(),
    };
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
    let source = op.description().declares_bound;
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

fn check_ring(ty: &Ty) -> Rule<()> {
    match ty.as_ring() {
        Some((bits, scale)) if bits % 8 != 0 || !(8..=64).contains(&bits) || scale > 63 => {
            Err(Violation::of_all("ring_c1", format!("ring{bits}.{scale}")))
        }
        _ => Ok(()),
    }
}

/// The type of a ring result whose bound may exceed every ring.
pub(crate) fn ring(bits: u8, scale: u32, sharing: Sharing, shape: Vec<Dim>, bound: u32) -> Ty {
    Ty::ring(bits, clamp(scale), sharing, shape, clamp(bound))
}

fn clamp(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// `⌈log2 n⌉`; 0 for 1 and below.
pub(crate) fn ceil_log2(n: i128) -> u32 {
    if n <= 1 { 0 } else { i128::BITS - (n - 1).leading_zeros() }
}

fn not_client(x: &Operand) -> Rule<()> {
    if x.ty.sharing == Sharing::Client {
        return Err(Violation::of_all("client_c1", describe(x.ty)));
    }
    Ok(())
}

/// A type's element and form in words.
pub(crate) fn describe(ty: &Ty) -> String {
    format!("a {} tensor of {}", ty.sharing.name(), ty.elem)
}

/// The same ring tensor with another bound, proven.
pub(crate) fn with(ty: &Ty, bound: u32) -> Ty {
    let (bits, scale) = ty.as_ring().unwrap_or_default();
    ring(bits, scale.into(), ty.sharing, ty.shape.clone(), bound)
}

/// The same elements in another shape.
pub(crate) fn moved(ty: &Ty, shape: Vec<Dim>) -> Ty {
    let (bound_from, norms) = (BoundFrom::Proven, Norms::default());
    Ty { elem: ty.elem, sharing: ty.sharing, shape, bound: ty.bound, bound_from, norms }
}

/// The type of the output of the public program with this index.
pub(crate) fn public_type(program: &plain::Program, value: u32) -> Option<plain::Type> {
    let output = program.outputs.get(usize::try_from(value).ok()?)?;
    program.ty(*output, program.nodes.len()).ok()
}
