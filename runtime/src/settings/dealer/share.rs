//! What one party holds of a secret: client and server a share each, the dealer nothing.
//!
//! Rings of fewer than 64 bits live in `u64` words of which only the low `bits` matter, as in every setting. No type here
//! has `Debug` or `PartialEq`; shares are wiped when they are dropped.

use ombra_ir::{Diagnostic, Result};

use crate::wiped::Zeroizing;

/// One party's share of ring elements, `x = x^0 + x^1 mod 2^bits`: `x^0` at the client, `x^1` at the server.
pub struct Share {
    words: Option<Zeroizing<Vec<u64>>>,
}

impl Share {
    /// The share of client or server.
    pub fn of(words: Vec<u64>) -> Self {
        Share { words: Some(Zeroizing::new(words)) }
    }

    /// What the dealer holds.
    pub fn nothing() -> Self {
        Share { words: None }
    }

    /// The words; none at the dealer.
    pub fn words(&self) -> Option<&[u64]> {
        self.words.as_ref().map(|words| words.as_slice())
    }

    /// The words at client and server. E0811 at the dealer.
    pub fn own(&self) -> Result<&[u64]> {
        self.words().ok_or_else(|| Diagnostic::internal("E0811", "the dealer has no share"))
    }

    /// The share with `f` applied: a linear map that client and server apply.
    pub fn map(&self, f: impl FnOnce(&[u64]) -> Vec<u64>) -> Self {
        Share { words: self.words().map(|words| Zeroizing::new(f(words))) }
    }
}

/// What one party holds of a value `x` that is masked, `m = x + λ^0 + λ^1`, or held by the server, `h = x + λ^0`.
///
/// | | client | server | dealer |
/// |---|---|---|---|
/// | masked | `m`, `λ^0` | `m`, `λ^1` | `λ^0`, `λ^1` |
/// | held | `λ^0` | `h` | `λ^0` |
#[derive(Clone)]
pub struct Masked {
    /// `m` or `h`.
    pub words: Option<Zeroizing<Vec<u64>>>,
    /// `λ^0` and `λ^1`.
    pub masks: [Option<Zeroizing<Vec<u64>>>; 2],
}

impl Masked {
    /// All parts with a linear map applied.
    pub fn map(&self, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Masked> {
        let of = |part: &Option<Zeroizing<Vec<u64>>>| part.as_ref().map(|w| f(w).map(Zeroizing::new)).transpose();
        let [first, second] = &self.masks;
        Ok(Masked { words: of(&self.words)?, masks: [of(first)?, of(second)?] })
    }

    /// The masked or held number, at who has it.
    pub fn words(&self) -> Result<&[u64]> {
        self.words.as_ref().map(|words| words.as_slice()).ok_or_else(missing)
    }

    /// `λ^0` or `λ^1`, at who has it.
    pub fn mask(&self, which: usize) -> Result<&[u64]> {
        self.masks.get(which).and_then(Option::as_ref).map(|mask| mask.as_slice()).ok_or_else(missing)
    }

    /// `λ = λ^0 + λ^1`, at the dealer.
    pub fn lambda(&self) -> Result<Vec<u64>> {
        Ok(super::products::plus(self.mask(0)?.to_vec(), self.mask(1)?))
    }

    /// The share of a role: the client's is what the server's leaves.
    pub fn share(&self, role: u8) -> Share {
        let [first, second] = &self.masks;
        let own = if role == 0 { first } else { second };
        let words = match (&self.words, own) {
            _ if role > 1 => return Share::nothing(),
            // A held number is the server's whole share.
            (Some(words), None) => words.to_vec(),
            (Some(words), Some(mask)) if role == 0 => super::products::minus(words.to_vec(), mask),
            (_, Some(mask)) => super::products::negative(mask.to_vec()),
            (None, None) => return Share::nothing(),
        };
        Share::of(words)
    }

    /// The same value held by the server: `h = m − λ^1`.
    pub fn to_held(&self) -> Masked {
        let [first, second] = &self.masks;
        let words = match (&self.words, second, first) {
            // The client gives up what it knows of `m`.
            (Some(_), None, Some(_)) => None,
            (Some(words), Some(mask), _) => Some(Zeroizing::new(super::products::minus(words.to_vec(), mask))),
            (words, ..) => words.clone(),
        };
        Masked { words, masks: [first.clone(), None] }
    }
}

fn missing() -> Diagnostic {
    Diagnostic::internal("E0811", "a party asks for a part of a masked value that it does not have")
}

/// One party's share of bits, `x = x^0 ⊕ x^1`: bit `i` is bit `i mod 64` of word `i / 64`. Bits past the end are arbitrary.
pub struct BitShare {
    /// Number of bits.
    pub n: usize,
    words: Option<Zeroizing<Vec<u64>>>,
}

impl BitShare {
    /// The share of client or server.
    pub fn of(n: usize, plane: Vec<u64>) -> Self {
        BitShare { n, words: Some(Zeroizing::new(plane)) }
    }

    /// What the dealer holds of `n` bits.
    pub fn nothing(n: usize) -> Self {
        BitShare { n, words: None }
    }

    /// The plane; none at the dealer.
    pub fn plane(&self) -> Option<&[u64]> {
        self.words.as_ref().map(|words| words.as_slice())
    }

    /// The plane at client and server. E0811 at the dealer.
    pub fn own(&self) -> Result<&[u64]> {
        self.plane().ok_or_else(|| Diagnostic::internal("E0811", "the dealer has no share"))
    }

    /// The share with `f` applied to the plane, of which `n` bits are left.
    pub fn map(&self, n: usize, f: impl FnOnce(&[u64]) -> Vec<u64>) -> Self {
        BitShare { n, words: self.plane().map(|plane| Zeroizing::new(f(plane))) }
    }
}
