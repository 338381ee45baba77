//! Matrix products, batched as in ONNX, over every form of sharing.
//!
//! Source: Araki et al., 2016/768, §3: role `i`'s term of `X·Y` is `(X_i + X_{i+1})·Y_i + X_i·Y_{i+1}`, or the same
//! with the roles of the operands exchanged; the sum is taken of the smaller operand. A zero component saves its product.

use std::borrow::Cow;

use ombra_ir::{Diagnostic, Result};

use super::linear::{Ring, View, sum_of, two_terms};
use crate::settings::rep3::share::Sum;
use crate::settings::words::broadcast::volume;
use crate::settings::words::product::{Pairs, Plan};

/// `x · y` over the last two axes, where `trans_b` says that `y` is given with its last two axes exchanged, at logical
/// role `role` of the op: of two sharings a sum over all roles, of a sharing and a public matrix one of two terms.
pub fn matmul(role: u8, x: View<'_>, y: View<'_>, trans_b: bool, threads: usize) -> Result<Ring> {
    let plan = Plan::new(x.shape, y.shape, trans_b)?;
    let product = |pairs: &Pairs<'_>| plan.sum_of_products(pairs, threads);
    Ok(match (x.value, y.value) {
        (Ring::Public(a), Ring::Public(b)) => {
            let pair = [(Some(Cow::Borrowed(a.as_slice())), Some(Cow::Borrowed(b.as_slice())))];
            Ring::Public(product(&pair)?.unwrap_or_default())
        }
        (Ring::Shared(a), Ring::Shared(b)) => {
            let (a0, a1) = (a.a.data().map(Cow::Borrowed), a.b.data().map(Cow::Borrowed));
            let (b0, b1) = (b.a.data().map(Cow::Borrowed), b.b.data().map(Cow::Borrowed));
            let pairs = if volume(x.shape)? <= volume(y.shape)? {
                [(sum_of(&a.a, &a.b), b0), (a0, b1)]
            } else {
                [(a0, sum_of(&b.a, &b.b)), (a1, b0)]
            };
            Ring::Three(Sum::new(product(&pairs)?))
        }
        (Ring::Shared(a), Ring::Public(b)) => {
            let own = two_terms(role, a);
            Ring::Two(Sum::new(product(&[(own, Some(Cow::Borrowed(b)))])?))
        }
        (Ring::Public(a), Ring::Shared(b)) => {
            let own = two_terms(role, b);
            Ring::Two(Sum::new(product(&[(Some(Cow::Borrowed(a)), own)])?))
        }
        (Ring::Two(a), Ring::Public(b)) => {
            Ring::Two(Sum::new(product(&[(a.data().map(Cow::Borrowed), Some(Cow::Borrowed(b)))])?))
        }
        (Ring::Three(a), Ring::Public(b)) => {
            Ring::Three(Sum::new(product(&[(a.data().map(Cow::Borrowed), Some(Cow::Borrowed(b)))])?))
        }
        _ => return Err(Diagnostic::internal("E0804", "a product with a sum that was not reshared")),
    })
}
