//! Types of MPC values: what an element is, who holds it, how big it is.

use crate::dim::{Dim, Dims, Sym};
use crate::norms::{self, Norms};
use crate::plain::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What one element of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Elem {
    /// An element of Z_{2^bits} that stands for `value / 2^scale`, in two's complement.
    Ring {
        /// Ring bits, a multiple of 8 from 8 to 64.
        bits: u8,
        /// Fraction bits.
        scale: u8,
    },
    /// One bit.
    Bit,
    /// A number in the clear, as the public program computes it.
    Plain(DType),
}

/// Who holds a value, and in what form.
///
/// The order is the order of weakening: a form may be turned into any later secret form without a message
/// (`Masked` into `Held` into `Shared`, `Shared` into `Sum2` into `Sum3`), never back. Which of them a setting has, and
/// which form products take, is the setting's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Sharing {
    /// Every party knows it.
    Public,
    /// The client knows it in the clear.
    Client,
    /// Secret, held as a number `m = x + λ` that client and server know and a mask `λ` that the dealer knows and client and
    /// server share: what is opened once, and multiplied often without a message between them.
    Masked,
    /// Secret, held as a number `h = x + λ` that the server knows and a mask `λ` that client and dealer know: what is
    /// multiplied with what the server knows.
    Held,
    /// Secret-shared in the setting's own form (`3pc`: replicated sharing).
    Shared,
    /// Secret, held as a sum of a term that logical parties 0 and 1 both hold and one of party 2: what comparisons, lookups
    /// and divisions take as it is; only resharing, and truncation into a ring larger than a division leaves, end it.
    Sum2,
    /// Secret, held as a sum of one term at every party; only truncation and resharing end it.
    Sum3,
}

impl Sharing {
    /// Whether the value must stay hidden from every party.
    pub fn is_secret(self) -> bool {
        self > Sharing::Client
    }

    /// Whether it is a sum that a later op must end.
    pub fn is_sum(self) -> bool {
        matches!(self, Sharing::Sum2 | Sharing::Sum3)
    }

    /// All forms, in the order of weakening.
    pub const ALL: [Sharing; 7] = [
        Sharing::Public,
        Sharing::Client,
        Sharing::Masked,
        Sharing::Held,
        Sharing::Shared,
        Sharing::Sum2,
        Sharing::Sum3,
    ];

    /// The word that stands for it in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Sharing::Public => "public",
            Sharing::Client => "client",
            Sharing::Masked => "masked",
            Sharing::Held => "held",
            Sharing::Shared => "shared",
            Sharing::Sum2 => "sum2",
            Sharing::Sum3 => "sum3",
        }
    }

    /// The form a word of the text form stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        Sharing::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// Where a bound comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BoundFrom {
    /// Follows from the operands' bounds and norms, or is checked where a weight is encoded.
    Proven,
    /// Assumed: measured on calibration inputs, with a margin.
    Calibrated,
    /// Follows from the formula of the expansion that made the op, inside the formula's range. Outside the range the
    /// value is garbage, which a later product by zero removes.
    Guarded,
    /// Follows from the weights by finer bounds of the compiler's: by channel, by head, by convexity. No input exceeds it.
    Weights,
}

impl BoundFrom {
    /// All of them.
    pub const ALL: [BoundFrom; 4] = [BoundFrom::Proven, BoundFrom::Calibrated, BoundFrom::Guarded, BoundFrom::Weights];

    /// The mark that stands for it in the text form, after the bound.
    pub fn name(self) -> &'static str {
        match self {
            BoundFrom::Proven => "proven",
            BoundFrom::Calibrated => "calibrated",
            BoundFrom::Guarded => "guarded",
            BoundFrom::Weights => "weights",
        }
    }

    /// The origin a word of the text form stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        BoundFrom::ALL.into_iter().find(|b| b.name() == name)
    }
}

/// The first axis of `shape` whose size is `sym` and nothing else.
pub fn axis_of(shape: &[Dim], sym: Sym) -> Option<usize> {
    shape.iter().position(|dim| dim.as_symbol() == Some(sym))
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ty {
    /// What an element is.
    pub elem: Elem,
    /// Who holds it.
    pub sharing: Sharing,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
    /// For ring elements: the integer that stands for a value lies in (−2^bound, 2^bound). Zero otherwise.
    pub bound: u8,
    /// Where the bound comes from, and the norms.
    pub bound_from: BoundFrom,
    /// Finer bounds of the same integers, where they are known.
    pub norms: Norms,
}

impl Ty {
    /// A ring type with a proven bound.
    pub fn ring(bits: u8, scale: u8, sharing: Sharing, shape: Vec<Dim>, bound: u8) -> Ty {
        Ty { elem: Elem::Ring { bits, scale }, sharing, shape, bound, ..Ty::bit(Vec::new()) }
    }

    /// A secret bit tensor.
    pub fn bit(shape: Vec<Dim>) -> Ty {
        let (bound_from, norms) = (BoundFrom::Proven, Norms::default());
        Ty { elem: Elem::Bit, sharing: Sharing::Shared, shape, bound: 0, bound_from, norms }
    }

    /// A tensor of plain numbers.
    pub fn plain(dtype: DType, sharing: Sharing, shape: Vec<Dim>) -> Ty {
        Ty { elem: Elem::Plain(dtype), sharing, ..Ty::bit(shape) }
    }

    /// The type as in the text form, such as `ring64.16[batch, 96] shared <24 rows 25.5 calibrated`.
    pub fn show(&self, dims: &Dims) -> String {
        let mut out = format!("{}{} {}", self.elem, dims.show_shape(&self.shape), self.sharing.name());
        if self.as_ring().is_some() {
            out += &format!(" <{}", self.bound);
            for (name, n) in self.norms.named() {
                out += &n.map_or(String::new(), |n| format!(" {name} {}", norms::show(n)));
            }
            if self.bound_from != BoundFrom::Proven {
                out += " ";
                out += self.bound_from.name();
            }
        }
        out
    }

    /// Ring bits and scale, if the elements are ring elements.
    pub fn as_ring(&self) -> Option<(u8, u8)> {
        match self.elem {
            Elem::Ring { bits, scale } => Some((bits, scale)),
            Elem::Bit | Elem::Plain(_) => None,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::Ring { bits, scale } => write!(f, "ring{bits}.{scale}"),
            Elem::Bit => write!(f, "bit"),
            Elem::Plain(d) => f.write_str(d.name()),
        }
    }
}
