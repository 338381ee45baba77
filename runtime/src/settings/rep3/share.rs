//! What one party holds of a secret.
//!
//! Replicated sharing after Araki et al., 2016/768: `x = x0 + x1 + x2 mod 2^bits`, party `i` holds `(x_i, x_{i+1})`.
//! Rings of fewer than 64 bits live in `u64` words of which only the low `bits` matter: sums and products need no
//! reduction, whoever shifts, compares or sends reduces first.
//!
//! No type here has `Debug` or `PartialEq`. Shares are wiped when they are dropped; temporaries inside a kernel are not.

use ombra_ir::module::Party;

use crate::settings::weights::{Terms, Words};
use crate::wiped::Zeroizing;

/// One component `x_i` of a sharing.
pub enum Component {
    /// Zero for every element, by construction of the sharing and hence known to everybody: it takes no memory and no
    /// work. The component of a weight that only client and helper hold is of this kind.
    Zero,
    /// One word an element, row-major.
    Data(Zeroizing<Vec<u64>>),
    /// The same, of a weight that sessions share.
    Weight(Words),
}

impl Component {
    /// The words, or `None` for zero.
    pub fn data(&self) -> Option<&[u64]> {
        match self {
            Component::Zero => None,
            Component::Data(words) => Some(words),
            Component::Weight(words) => Some(words),
        }
    }

    /// `n` words, where zero is written out.
    pub fn to_vec(&self, n: usize) -> Vec<u64> {
        self.data().map_or_else(|| vec![0; n], <[u64]>::to_vec)
    }

    /// The component that `f` makes of the words; zero stays zero.
    pub fn map(&self, f: impl FnOnce(&[u64]) -> Vec<u64>) -> Component {
        self.data().map_or(Component::Zero, |words| f(words).into())
    }
}

impl From<Vec<u64>> for Component {
    fn from(words: Vec<u64>) -> Self {
        Component::Data(Zeroizing::new(words))
    }
}

/// One party's part of a replicated sharing.
pub struct Shared {
    /// Component `x_i`, which the party before holds too.
    pub a: Component,
    /// Component `x_{i+1}`, which the party after holds too.
    pub b: Component,
}

impl Shared {
    /// A private weight: its first term is component 1, its second one component 2, and component 0 is zero.
    pub fn weight(party: Party, terms: Terms) -> Self {
        let component = |term: Option<Words>| term.map_or(Component::Zero, Component::Weight);
        let (first, second) = (component(terms.first), component(terms.second));
        match party {
            Party::Client => Shared { a: Component::Zero, b: first },
            Party::Server => Shared { a: first, b: second },
            Party::Helper | Party::Dealer => Shared { a: second, b: Component::Zero },
        }
    }

    /// A sharing of public zeros.
    pub fn zero() -> Self {
        Shared { a: Component::Zero, b: Component::Zero }
    }

    /// A sharing from both components' words.
    pub fn new(a: Vec<u64>, b: Vec<u64>) -> Self {
        Shared { a: a.into(), b: b.into() }
    }

    /// The sharing with `f` applied to each component: a linear map that every party applies.
    pub fn map(&self, f: impl Fn(&[u64]) -> Vec<u64>) -> Self {
        Shared { a: self.a.map(&f), b: self.b.map(&f) }
    }

    /// `x_i + x_{i+1}` in `n` words.
    pub fn both(&self, n: usize) -> Vec<u64> {
        match (self.a.data(), self.b.data()) {
            (None, None) => vec![0; n],
            (Some(x), None) | (None, Some(x)) => x.to_vec(),
            (Some(a), Some(b)) => a.iter().zip(b).map(|(a, b)| a.wrapping_add(*b)).collect(),
        }
    }
}

/// One party's term of a sum over two or three parties.
#[derive(Default)]
pub struct Sum {
    /// The term; `None` where this party has none.
    pub term: Option<Zeroizing<Vec<u64>>>,
}

impl Sum {
    /// A sum in which this party has `term`.
    pub fn new(term: Option<Vec<u64>>) -> Self {
        Sum { term: term.map(Zeroizing::new) }
    }

    /// The term's words.
    pub fn data(&self) -> Option<&[u64]> {
        self.term.as_ref().map(|term| term.as_slice())
    }

    /// The term's words, taken out.
    pub fn into_words(self) -> Option<Vec<u64>> {
        self.term.map(|mut term| std::mem::take(&mut *term))
    }

    /// The sum with `f` applied to the term: a linear map that every party applies.
    pub fn map(&self, f: impl FnOnce(&[u64]) -> Vec<u64>) -> Self {
        Sum::new(self.data().map(f))
    }
}

/// One party's part of shared bits, `x = x0 ⊕ x1 ⊕ x2`: bit `i` is bit `i mod 64` of word `i / 64`.
/// Bits past the end are arbitrary.
pub struct Bits {
    /// Number of bits.
    pub n: usize,
    /// Component `x_i`.
    pub a: Zeroizing<Vec<u64>>,
    /// Component `x_{i+1}`.
    pub b: Zeroizing<Vec<u64>>,
}

impl Bits {
    /// Shared bits from both components' words.
    pub fn new(n: usize, a: Vec<u64>, b: Vec<u64>) -> Self {
        Bits { n, a: Zeroizing::new(a), b: Zeroizing::new(b) }
    }
}

/// The words' low bits that matter in a ring of `bits`.
pub fn ring_mask(bits: u8) -> u64 {
    u64::MAX >> 64u32.saturating_sub(u32::from(bits).max(1)).min(63)
}
