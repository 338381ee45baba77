//! Lattice encryption of the setting of two parties: RLWE ciphertexts, their keys, and the products made with them.
//!
//! Plain data and functions, without sockets and clocks; what is random follows from seeds that the caller gives, one
//! for a call. Semi-honest parties are assumed, but no message and no file of another party makes a function panic.
//! Secrets are wiped when they are dropped, have no `Debug`, and decide no branch and no index.

pub mod arith;
pub mod bits;
mod error;
mod exact;
pub mod lanes;
pub mod ntt;
pub mod params;
pub mod random;
mod rns;
pub mod slots;
pub mod tiles;
pub mod weights;

pub use error::{Error, Result};
