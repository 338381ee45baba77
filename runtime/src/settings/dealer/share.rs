//! What one party holds of a secret: client and server a share each, the dealer nothing.
//!
//! Rings of fewer than 64 bits live in `u64` words of which only the low `bits` matter, as in every setting. No type here
//! has `Debug` or `PartialEq`; shares are wiped when they are dropped.

use ombra_ir::{Diagnostic, Result};
use zeroize::Zeroizing;

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
