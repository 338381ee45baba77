//! Element-wise arithmetic on secrets: sums and integer multiples of any form, products of sharings.
//!
//! Source of the product: Araki et al., 2016/768, §3. Shapes broadcast as in ONNX. Which party holds what of a public
//! number follows the op's roles: it is component 0 of a sharing, and role 0's term of a sum.

use std::borrow::Cow;

use ombra_ir::module::Party;
use ombra_ir::{Diagnostic, Result};

use crate::settings::rep3::share::{Component, Shared, Sum, ring_mask};
use crate::settings::weights::Weight;
use crate::settings::words::broadcast::{expand, volume, zip};
use crate::settings::words::movement;

/// A tensor's words with its shape.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The words, or this party's part of a secret.
    pub value: &'a Ring,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
}

/// A ring element in any form, at one party.
pub enum Ring {
    /// Known to every party.
    Public(Vec<u64>),
    /// Replicated sharing.
    Shared(Shared),
    /// A sum of a term that roles 0 and 1 both hold and one of role 2.
    Two(Sum),
    /// A sum over all roles.
    Three(Sum),
}

/// A form of which a party holds at most one vector of words.
#[derive(Clone, Copy)]
pub enum Term {
    /// Known to every party.
    Public,
    /// A sum of a term that roles 0 and 1 both hold and one of role 2.
    Two,
    /// A sum over all roles.
    Three,
}

impl Term {
    /// The value of this form with these words; no words stand for zeros.
    pub fn with(self, words: Option<Vec<u64>>) -> Ring {
        match self {
            Term::Public => Ring::Public(words.unwrap_or_default()),
            Term::Two => Ring::Two(Sum::new(words)),
            Term::Three => Ring::Three(Sum::new(words)),
        }
    }
}

impl Ring {
    /// A weight as a party has it.
    pub fn weight(party: Party, weight: Weight) -> Ring {
        match weight {
            Weight::Public(words) => Ring::Public(words),
            Weight::Private(terms) => Ring::Shared(Shared::weight(party, terms)),
        }
    }

    /// The form and the words of a product. A sharing, which no product is, counts as a sum without words.
    pub fn into_term(self) -> (Term, Option<Vec<u64>>) {
        match self {
            Ring::Public(words) => (Term::Public, Some(words)),
            Ring::Two(sum) => (Term::Two, sum.into_words()),
            Ring::Three(sum) => (Term::Three, sum.into_words()),
            Ring::Shared(_) => (Term::Three, None),
        }
    }
}

/// `x + y` or `x − y`, element by element.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AddSub {
    /// `x + y`
    Add,
    /// `x − y`
    Sub,
}

/// The sum or difference, in the weaker of both forms, at logical role `role` of the op.
pub fn add_sub(role: u8, kind: AddSub, x: View<'_>, y: View<'_>, out: &[usize]) -> Result<Ring> {
    let of = |a: Option<&[u64]>, b: Option<&[u64]>| combine(kind, (a, x.shape), (b, y.shape), out);
    Ok(match (x.value, y.value) {
        (Ring::Public(a), Ring::Public(b)) => Ring::Public(of(Some(a), Some(b))?.unwrap_or_default()),
        (Ring::Public(_) | Ring::Shared(_), Ring::Public(_) | Ring::Shared(_)) => {
            let part = |component: fn(&Shared) -> &Component, holder: bool| -> Result<Component> {
                let words = of(part(x.value, component, holder), part(y.value, component, holder))?;
                Ok(words.map_or(Component::Zero, Component::from))
            };
            Ring::Shared(Shared { a: part(|x| &x.a, role == 0)?, b: part(|x| &x.b, role == 2)? })
        }
        (a, b) => {
            let three = matches!(a, Ring::Three(_)) || matches!(b, Ring::Three(_));
            let (ta, tb) = (term(role, a, three), term(role, b, three));
            let sum = Sum::new(of(ta.as_deref(), tb.as_deref())?);
            if three { Ring::Three(sum) } else { Ring::Two(sum) }
        }
    })
}

/// A component of a sharing, or of a public number where this party holds it in that component.
fn part(x: &Ring, component: fn(&Shared) -> &Component, holder: bool) -> Option<&[u64]> {
    match x {
        Ring::Shared(x) => component(x).data(),
        Ring::Public(x) => holder.then_some(x),
        Ring::Two(_) | Ring::Three(_) => None,
    }
}

/// This role's term of a value read as a sum of two terms, or of three: then role 1 has none of what roles 0 and 1 hold.
fn term(role: u8, x: &Ring, three: bool) -> Option<Cow<'_, [u64]>> {
    match (x, role) {
        (Ring::Three(x), _) => x.data().map(Cow::Borrowed),
        (_, 1) if three => None,
        (Ring::Public(x), 0 | 1) => Some(Cow::Borrowed(x)),
        (Ring::Public(_), _) => None,
        (Ring::Shared(x), _) => two_terms(role, x),
        (Ring::Two(x), _) => x.data().map(Cow::Borrowed),
    }
}

/// The form of the product of a value with a public one, and what logical role `role` multiplies for it; no words stand for
/// zeros.
pub fn words_of(role: u8, x: &Ring) -> (Term, Option<Cow<'_, [u64]>>) {
    match x {
        Ring::Public(x) => (Term::Public, Some(Cow::Borrowed(x))),
        Ring::Shared(x) => (Term::Two, two_terms(role, x)),
        Ring::Two(x) => (Term::Two, x.data().map(Cow::Borrowed)),
        Ring::Three(x) => (Term::Three, x.data().map(Cow::Borrowed)),
    }
}

/// This role's term of a sharing read as two: component 1 at roles 0 and 1, the others at role 2.
pub(super) fn two_terms(role: u8, x: &Shared) -> Option<Cow<'_, [u64]>> {
    match role {
        0 => x.b.data().map(Cow::Borrowed),
        1 => x.a.data().map(Cow::Borrowed),
        _ => sum_of(&x.a, &x.b),
    }
}

/// `x ± y` of words that may be missing, which stands for zero.
fn combine(
    kind: AddSub,
    (x, xs): (Option<&[u64]>, &[usize]),
    (y, ys): (Option<&[u64]>, &[usize]),
    out: &[usize],
) -> Result<Option<Vec<u64>>> {
    let words = match (x, y, kind) {
        (None, None, _) => return Ok(None),
        (Some(x), None, _) => expand(x, xs, out),
        (None, Some(y), AddSub::Add) => expand(y, ys, out),
        (None, Some(y), AddSub::Sub) => zip((y, ys), (&[0], &[]), out, |y, _| y.wrapping_neg()),
        (Some(x), Some(y), AddSub::Add) => zip((x, xs), (y, ys), out, u64::wrapping_add),
        (Some(x), Some(y), AddSub::Sub) => zip((x, xs), (y, ys), out, u64::wrapping_sub),
    };
    words.map(Some)
}

/// `x + k` for a public integer.
pub fn add_int(role: u8, x: View<'_>, k: i64) -> Result<Ring> {
    let k = Ring::Public(vec![k as u64]);
    add_sub(role, AddSub::Add, x, View { value: &k, shape: &[] }, x.shape)
}

/// The value with `f` applied to the words of every component or term: a linear map that every party applies.
pub fn map(x: &Ring, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Ring> {
    let component = |c: &Component| c.data().map(&f).transpose().map(|w| w.map_or(Component::Zero, Component::from));
    let sum = |s: &Sum| s.data().map(&f).transpose().map(Sum::new);
    Ok(match x {
        Ring::Public(x) => Ring::Public(f(x)?),
        Ring::Shared(x) => Ring::Shared(Shared { a: component(&x.a)?, b: component(&x.b)? }),
        Ring::Two(x) => Ring::Two(sum(x)?),
        Ring::Three(x) => Ring::Three(sum(x)?),
    })
}

/// `x · k` for an integer.
pub fn mul_int(x: &Ring, k: u64) -> Result<Ring> {
    map(x, |words| Ok(words.iter().map(|w| w.wrapping_mul(k)).collect()))
}

/// The components of a sharing modulo `2^bits`, each divided by `2^by` and rounded down: a sharing of `⌊x / 2^by⌋` less
/// 0, 1 or 2 modulo `2^(bits − by)`.
///
/// No message and so no view but the party's own shares. What is cut off differs from party to party and is not added:
/// it is what the result lacks. A component that is zero stays so.
pub fn cut(x: &Ring, bits: u8, by: u8) -> Result<Ring> {
    let Ring::Shared(x) = x else {
        return Err(Diagnostic::internal("E0804", "a cut of a value that is no sharing"));
    };
    let mask = ring_mask(bits);
    Ok(Ring::Shared(x.map(|words| words.iter().map(|w| (w & mask) >> by.min(63)).collect())))
}

/// `x ∘ y`: of two sharings a sum over all roles; a public operand keeps the other's form.
pub fn mul(x: View<'_>, y: View<'_>, out: &[usize]) -> Result<Ring> {
    match (x.value, y.value) {
        (Ring::Shared(a), Ring::Shared(b)) => {
            let product = |a: Option<&[u64]>, b: Option<&[u64]>| match (a, b) {
                (Some(a), Some(b)) => zip((a, x.shape), (b, y.shape), out, u64::wrapping_mul).map(Some),
                _ => Ok(None),
            };
            // (x_i + x_{i+1})·y_i + x_i·y_{i+1}
            let sum = sum_of(&a.a, &a.b);
            let first = product(sum.as_ref().map(|s| s.as_ref()), b.a.data())?;
            let second = product(a.a.data(), b.b.data())?;
            Ok(Ring::Three(Sum::new(add(first, second))))
        }
        (secret, Ring::Public(factor)) => {
            map(secret, |words| zip((words, x.shape), (factor, y.shape), out, u64::wrapping_mul))
        }
        (Ring::Public(factor), secret) => {
            map(secret, |words| zip((words, y.shape), (factor, x.shape), out, u64::wrapping_mul))
        }
        _ => Err(Diagnostic::internal("E0804", "a product with a sum that was not reshared")),
    }
}

/// `a + b` of components, copied only where both are there.
pub(in crate::settings::rep3) fn sum_of<'a>(a: &'a Component, b: &'a Component) -> Option<Cow<'a, [u64]>> {
    match (a.data(), b.data()) {
        (None, None) => None,
        (Some(x), None) | (None, Some(x)) => Some(Cow::Borrowed(x)),
        (Some(a), Some(b)) => Some(Cow::Owned(a.iter().zip(b).map(|(a, b)| a.wrapping_add(*b)).collect())),
    }
}

/// The sum of terms of which any may be missing.
fn add(a: Option<Vec<u64>>, b: Option<Vec<u64>>) -> Option<Vec<u64>> {
    match (a, b) {
        (Some(mut a), Some(b)) => {
            a.iter_mut().zip(&b).for_each(|(a, b)| *a = a.wrapping_add(*b));
            Some(a)
        }
        (a, b) => a.or(b),
    }
}

/// Values one after another along `axis`, in the weakest of their forms, at logical role `role` of the op.
pub fn concat(role: u8, parts: &[View<'_>], axis: usize) -> Result<Ring> {
    let rank = |x: &Ring| match x {
        Ring::Public(_) => 0,
        Ring::Shared(_) => 1,
        Ring::Two(_) => 2,
        Ring::Three(_) => 3,
    };
    let joined = |words: Vec<Option<Cow<'_, [u64]>>>| -> Result<Option<Vec<u64>>> {
        if words.iter().all(Option::is_none) {
            return Ok(None);
        }
        let filled = words.into_iter().zip(parts).map(|(words, part)| {
            Ok((words.map_or_else(|| volume(part.shape).map(|n| Cow::Owned(vec![0; n])), Ok)?, part.shape))
        });
        let filled = filled.collect::<Result<Vec<_>>>()?;
        let slices: Vec<_> = filled.iter().map(|(words, shape)| (words.as_ref(), *shape)).collect();
        movement::concat(&slices, axis).map(Some)
    };
    let components = |component: fn(&Shared) -> &Component, holder: bool| {
        joined(parts.iter().map(|x| part(x.value, component, holder).map(Cow::Borrowed)).collect())
    };
    Ok(match parts.iter().map(|x| rank(x.value)).max().unwrap_or(0) {
        0 => Ring::Public(components(|x| &x.a, true)?.unwrap_or_default()),
        1 => {
            let component = |words: Option<Vec<u64>>| words.map_or(Component::Zero, Component::from);
            Ring::Shared(Shared {
                a: component(components(|x| &x.a, role == 0)?),
                b: component(components(|x| &x.b, role == 2)?),
            })
        }
        form => {
            let sum = Sum::new(joined(parts.iter().map(|x| term(role, x.value, form == 3)).collect())?);
            if form == 2 { Ring::Two(sum) } else { Ring::Three(sum) }
        }
    })
}
