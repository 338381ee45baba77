//! Softmax divided after the product with the values, in settings where a product of two secrets costs bytes an element: a
//! row's reciprocal then multiplies as many elements as a value has, in place of one for every key.
//!
//! `softmax(x) · V = (e · V) / Σ e` with `e = exp(x − max)`: exponentials are divided to the scale of weights, the sums of
//! their products with the values to one fraction, and multiplied with the reciprocal, which then lies beside the product
//! instead of before it. Done where the longest row has at least [`FACTOR`] times as many keys as a value has elements, in
//! `3pc` [`FACTOR_OF_THREE`] times: there a longer ring of the exponentials and the division of the sums cost as much as is
//! saved where a row has about as many keys as a value has elements, and two rounds are saved in any case. Where the result
//! is only moved and then divided, that division takes the reciprocal's bits too (`3pc`).
//!
//! ```text
//!   before                                    after
//!   %3 = row_expand %2                        %3 = truncate %1
//!   %4 = mul %1 %3                            %4 = unpack %3
//!   %5 = truncate %4                          %5 = matmul %4 %9
//!   %6 = unpack %5                            %6 = truncate %5
//!   %7 = matmul %6 %9                         %7 = mul %6 %2, %8 = truncate %7
//! ```
//!
//! Bounds: a quotient's product with the values is at most as large as these, whatever the exponentials, as before; the
//! sums before the division have the bound that follows from their factors.

use ombra_ir::Result;
use ombra_ir::infer::{push, push_like};
use ombra_ir::module::{Id, Module, Node, Origin};
use ombra_ir::op::Op;
use ombra_ir::schedule::of_server;
use ombra_ir::ty::{BoundFrom, Ty};
use std::collections::BTreeMap;

/// Keys an element of a value from which the division is delayed.
const FACTOR: i64 = 2;
/// The same in `3pc`, where the longest prompt tells what rows are usual.
const FACTOR_OF_THREE: i64 = 16;
/// Significant bits of the reciprocal of the longest row's sum.
const SIGNIFICANT: u8 = 13;
/// Bits that products of the reciprocal may have: those of rings of whole bytes, less a sign.
const ROOMS: [u8; 4] = [39, 47, 55, 61];
/// Bits that a division takes.
const LARGEST: u8 = 61;

/// The module with the division behind the products, if its setting has a third party.
///
/// # Errors
/// None that a legal module has.
pub fn delay_normalisation(module: Module) -> Result<Module> {
    if module.setting.beside().is_none() {
        return Ok(module);
    }
    let quotients = quotients(&module);
    let users = super::users(&module);
    // Bits that values have more than before, which their division takes.
    let mut finer: BTreeMap<Id, u8> = BTreeMap::new();
    let mut out = Module { ops: Vec::with_capacity(module.ops.len()), ..module.without_ops() };
    let mut ids: Vec<Id> = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let args: Vec<Id> = node.args.iter().map(|arg| ids[arg.index()]).collect();
        let id = match (quotients.get(&Id(i as u32)), node.args.first().and_then(|arg| quotients.get(arg))) {
            (Some(quotient), _) => exponentials(&mut out, node, [ids[quotient.e.index()], args[1]])?,
            (_, Some(quotient)) => {
                let reciprocal = ids[quotient.reciprocal.index()];
                let (product, by) = times_reciprocal(&mut out, node, quotient, [args[0], args[1], reciprocal])?;
                if module.setting.protocol().divides_freely() && is_divided(&module, &users, Id(i as u32)) {
                    finer.insert(Id(i as u32), by);
                    product
                } else {
                    let op = if by > 0 { Op::Truncate { by, bits: 64 } } else { Op::Reshare };
                    push_like(&mut out, &guarded(node), op, &[product])?
                }
            }
            _ => match (&node.op, node.args.first().and_then(|arg| finer.get(arg)).copied()) {
                (Op::Truncate { by, bits }, Some(more)) => {
                    push_like(&mut out, &guarded(node), Op::Truncate { by: by + more, bits: *bits }, &args)?
                }
                (op, Some(more)) => {
                    finer.insert(Id(i as u32), more);
                    let bound = (node.ty.bound + more + 1, BoundFrom::Guarded);
                    push(&mut out, op.clone(), &args, Some(bound), node.origin.clone())?
                }
                (op, None) => push_like(&mut out, node, op.clone(), &args)?,
            },
        };
        ids.push(id);
    }
    super::without_unused(&out)
}

/// A softmax whose division is delayed.
struct Quotient {
    /// The exponentials, packed.
    e: Id,
    /// The reciprocals of their sums, one a row.
    reciprocal: Id,
    /// Fraction bits of the reciprocal that the division takes.
    precision: u8,
}

/// Softmaxes that only products with values take, by their unpacked result.
fn quotients(module: &Module) -> BTreeMap<Id, Quotient> {
    let users = super::users(module);
    let alone = |id: Id| users[id.index()].len() == 1;
    let quotient = |id: Id| {
        let [quotient, mask] = args(module, id, |op| matches!(op, Op::Unpack { .. }))?;
        let [product] = args(module, quotient, |op| matches!(op, Op::Truncate { .. }))?;
        let [e, each] = args(module, product, |op| matches!(op, Op::Mul))?;
        let [reciprocal, of] = args(module, each, |op| matches!(op, Op::RowExpand { .. }))?;
        let products = &users[id.index()];
        let fits = alone(quotient) && alone(product) && alone(each) && of == mask && !products.is_empty();
        let precisions = products
            .iter()
            .map(|&user| precision(module, [id, e, reciprocal], module.node(user)))
            .collect::<Option<Vec<_>>>()?;
        let precision = precisions.into_iter().min()?;
        fits.then_some((id, Quotient { e, reciprocal, precision }))
    };
    (0..module.ops.len()).filter_map(|i| quotient(Id(i as u32))).collect()
}

/// The operands of an op of one kind.
fn args<const N: usize>(module: &Module, id: Id, is_kind: impl Fn(&Op) -> bool) -> Option<[Id; N]> {
    let node = module.node(id);
    is_kind(&node.op).then(|| <[Id; N]>::try_from(&*node.args).ok()).flatten()
}

/// Fraction bits of the reciprocal where a product of a softmax's result with secret values is divided late, if it is.
///
/// Nothing is delayed where the sums before the division would not fit the ring, or where the result's own range is assumed,
/// of which whoever guards it needs every bit.
fn precision(module: &Module, [weights, e, reciprocal]: [Id; 3], node: &Node) -> Option<u8> {
    let (Op::MatMul { .. }, &[left, values]) = (&node.op, &*node.args) else { return None };
    let is_product = left == weights && values != weights && module.ty(values).sharing.is_secret();
    let largest = |ty: &Ty| module.dims.upper(ty.shape.last()?).and_then(|n| i64::try_from(n).ok());
    let (keys, elements) = (largest(module.ty(weights))?, largest(&node.ty)?);
    let factor = if module.setting.protocol().divides_freely() { FACTOR_OF_THREE } else { FACTOR };
    if !is_product || of_server(module, values) || keys < factor.checked_mul(elements)? {
        return None;
    }
    let (_, scale) = node.ty.as_ring()?;
    let (_, from) = module.ty(e).as_ring()?;
    // Exponentials may be coarser than weights.
    let kept = module.ty(weights).as_ring()?.1.min(from);
    let log_keys = u8::try_from(keys.max(1).ilog2()).ok()?.saturating_add(1);
    let largest_sum = (module.ty(e).bound + 1 + log_keys).saturating_sub(from.saturating_sub(kept));
    if largest_sum.saturating_add(module.ty(values).bound) > LARGEST || node.ty.bound_from == BoundFrom::Calibrated {
        return None;
    }
    // The product is divided to the result's scale, never raised.
    let least = (log_keys + SIGNIFICANT).max(scale.saturating_sub(kept));
    // A unit of the result less its scale, the sum's fraction, and one bit for rounding.
    let whole = node.ty.bound.saturating_sub(scale).saturating_add(kept + 1);
    let precision =
        ROOMS.into_iter().filter_map(|room| room.checked_sub(whole)).find(|&precision| precision >= least)?;
    let (_, most) = module.ty(reciprocal).as_ring()?;
    Some(precision.min(most)).filter(|precision| kept + precision >= scale)
}

/// The exponentials at the scale of weights, unpacked.
fn exponentials(out: &mut Module, node: &Node, [e, mask]: [Id; 2]) -> Result<Id> {
    let kept = divided_to(out, e, scale(&node.ty), &node.origin)?;
    push(out, node.op.clone(), &[kept, mask], None, node.origin.clone())
}

/// The product of exponentials with values times the reciprocal of their sum, and its bits beside those that `node` has.
fn times_reciprocal(
    out: &mut Module,
    node: &Node,
    quotient: &Quotient,
    [e, values, reciprocal]: [Id; 3],
) -> Result<(Id, u8)> {
    let origin = &node.origin;
    let (kept, result) = (scale(out.ty(e)), scale(&node.ty));
    let sum = push(out, node.op.clone(), &[e, values], None, origin.clone())?;
    let sum = divided_to(out, sum, kept, origin)?;
    let reciprocal = divided_to(out, reciprocal, quotient.precision, origin)?;
    let by = kept + quotient.precision - result;
    let bound = (node.ty.bound + by + 1, BoundFrom::Guarded);
    Ok((push(out, Op::Mul, &[sum, reciprocal], Some(bound), origin.clone())?, by))
}

/// The node with a bound that follows from a formula.
fn guarded(node: &Node) -> Node {
    Node { ty: Ty { bound_from: BoundFrom::Guarded, ..node.ty.clone() }, ..node.clone() }
}

/// Whether a value is only moved, and then divided.
fn is_divided(module: &Module, users: &[Vec<Id>], id: Id) -> bool {
    let of = &users[id.index()];
    !of.is_empty()
        && of.iter().all(|user| match module.node(*user).op {
            Op::Truncate { by, .. } => by > 0,
            Op::Reshape { .. } | Op::Transpose { .. } => is_divided(module, users, *user),
            _ => false,
        })
}

/// The value with at most so many fraction bits, in its ring.
fn divided_to(out: &mut Module, x: Id, at_most: u8, origin: &Origin) -> Result<Id> {
    let (bits, from) = out.ty(x).as_ring().unwrap_or_default();
    match from.saturating_sub(at_most) {
        0 => Ok(x),
        by => push(out, Op::Truncate { by, bits }, &[x], None, origin.clone()),
    }
}

fn scale(ty: &Ty) -> u8 {
    ty.as_ring().unwrap_or_default().1
}
