//! Building modules: an op is typed at once, so that an ill-typed module cannot be built.

use super::{Operand, TypeCx, Violation, check_bound, has_result, infer, norms};
use crate::diag::Result;
use crate::module::{Id, Module, Node, Origin};
use crate::norms::Norms;
use crate::op::{Class, Op};
use crate::ty::{BoundFrom, Ty};

/// Adds an op and returns its id.
///
/// `bound` replaces the proven bound; one that is smaller must be marked calibrated or guarded. `encode` needs one.
/// Errors: the constraint that does not hold, at the ONNX node of `origin`.
pub fn push(module: &mut Module, op: Op, args: &[Id], bound: Option<(u8, BoundFrom)>, origin: Origin) -> Result<Id> {
    let declared = match (&op, bound) {
        (Op::Encode { bits, scale }, Some((bound, from))) => {
            let shape = args.first().and_then(|a| Operand::of(module, *a)).map(|x| x.ty.shape.clone());
            let ty = Ty::ring(*bits, *scale, crate::ty::Sharing::Public, shape.unwrap_or_default(), bound);
            Some(Ty { bound_from: from, ..ty })
        }
        _ => None,
    };
    let bound = bound.map_or(Declared::Proven, |(bound, from)| Declared::Exactly(bound, from));
    add(module, op, args, declared, bound, origin)
}

/// Adds an op whose bound is the proven one or a declared one, whichever is smaller, and returns its id.
///
/// Errors: the constraint that does not hold, at the ONNX node of `origin`.
pub fn push_within(module: &mut Module, op: Op, args: &[Id], bound: (u8, BoundFrom), origin: Origin) -> Result<Id> {
    add(module, op, args, None, Declared::AtMost(bound.0, bound.1, Norms::default()), origin)
}

/// Adds an op that takes the place of a node of another module, within that node's bound and norms, and returns its id.
///
/// Errors: the constraint that does not hold, at the node's ONNX node.
pub fn push_like(module: &mut Module, node: &Node, op: Op, args: &[Id]) -> Result<Id> {
    let (ty, origin) = (&node.ty, node.origin.clone());
    if op.description().declares_bound {
        return add(module, op, args, Some(ty.clone()), Declared::Exactly(ty.bound, ty.bound_from), origin);
    }
    if op.class() == Class::Source {
        return push_source(module, op, ty.clone(), origin);
    }
    add(module, op, args, None, Declared::AtMost(ty.bound, ty.bound_from, ty.norms), origin)
}

/// Declares that a result of a module is smaller than was known when its op was added: within `2^bound` and `finer` norms,
/// says `from`. Nothing changes where both were known.
///
/// Types of later ops follow from this one, so it is as concise as if the op had been added with it.
pub fn tighten(module: &mut Module, id: Id, bound: u8, from: BoundFrom, finer: &Norms) {
    let Some(node) = module.ops.get(id.index()) else { return };
    // Of a source nobody checks a size, and whoever makes it anew leaves it out.
    let finer = if node.op.description().declares_bound { Norms::default() } else { *finer };
    let norms = node.ty.norms.finer(&finer);
    let mut ty = Ty { bound: bound.min(node.ty.bound), bound_from: from, norms, ..node.ty.clone() };
    if !node.op.description().declares_bound {
        ty.norms = norms::concise(&ty, &TypeCx::of(module));
    }
    if (ty.bound, ty.norms) == (node.ty.bound, node.ty.norms) {
        return;
    }
    if let Some(node) = module.ops.get_mut(id.index()) {
        node.ty = ty;
    }
}

/// What a caller knows of a bound.
enum Declared {
    Proven,
    Exactly(u8, BoundFrom),
    AtMost(u8, BoundFrom, Norms),
}

/// Adds a source whose type the op does not say: a weight, an input or a state.
///
/// Errors: the constraint that does not hold.
pub fn push_source(module: &mut Module, op: Op, ty: Ty, origin: Origin) -> Result<Id> {
    let bound = Declared::Exactly(ty.bound, ty.bound_from);
    add(module, op, &[], Some(ty), bound, origin)
}

fn add(module: &mut Module, op: Op, args: &[Id], declared: Option<Ty>, bound: Declared, origin: Origin) -> Result<Id> {
    let place = || if origin.node.is_empty() { op.name().to_string() } else { origin.node.clone() };
    let fail = |v: Violation| v.diagnostic().at(place());
    let operand = |id: &Id| {
        let made = module.ops.get(id.index()).filter(|n| has_result(&n.op));
        made.and_then(|_| Operand::of(module, *id))
            .ok_or_else(|| crate::Diagnostic::input("E0302", format!("%{} is no earlier result", id.0)).at(place()))
    };
    let operands = args.iter().map(operand).collect::<Result<Vec<_>>>()?;
    let cx = TypeCx::of(module);
    let ty = infer(&op, &operands, declared.as_ref(), &cx).map_err(fail)?;
    let (size, from, norms) = match bound {
        Declared::Exactly(size, from) => (size, from, ty.norms),
        Declared::AtMost(size, from, finer) => {
            let norms = ty.norms.finer(&finer);
            let marked = size < ty.bound || norms != ty.norms;
            (size.min(ty.bound), if marked { from } else { BoundFrom::Proven }, norms)
        }
        Declared::Proven => (ty.bound, BoundFrom::Proven, ty.norms),
    };
    let mut result = Ty { bound: size, bound_from: from, norms, ..ty.clone() };
    check_bound(&op, &ty, &result, &cx).map_err(|d| d.at(place()))?;
    if let Some(declared) = &declared
        && (declared.elem != ty.elem || declared.sharing != ty.sharing || declared.shape != ty.shape)
    {
        let found = declared.show(&module.dims);
        return Err(crate::Diagnostic::input("E0314", format!("the type {found} is declared"))
            .note(format!("expected {}", ty.show(&module.dims)))
            .at(place()));
    }
    if !op.description().declares_bound {
        result.norms = norms::concise(&result, &cx);
    }
    let id = u32::try_from(module.ops.len())
        .map_err(|_| crate::Diagnostic::input("E0301", "a module of more than 2^32 ops"))?;
    module.ops.push(Node { op, args: args.to_vec(), ty: result, origin, rot: 0 });
    Ok(Id(id))
}
