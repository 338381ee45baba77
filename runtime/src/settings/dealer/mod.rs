//! `2pc-dealer`: client and server hold additive shares, and a dealer gives them correlations.
//!
//! Roles: 0 the client, 1 the server, 2 the dealer. Key `k_0` is of client and dealer, `k_1` of client and server, `k_2` of
//! server and dealer. The dealer sends to the server alone: what the client needs of a correlation follows from `k_0`. The
//! dealer receives nothing in a step, so its messages wait for nobody's.
//!
//! Every message is a value plus a stream of a key that its receiver lacks, under a label used once, or an element that is
//! dealt: so it is uniform given all that the receiver holds, whatever the values are, and simulators of ops compose.

pub mod share;

pub use super::cx::{Cx, Keys, Purpose};
