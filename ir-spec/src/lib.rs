//! The contract between compiler and runtime: MPC IR, verifier, costs, reference meaning, plan file.

pub mod diag;

pub use diag::{Diagnostic, Kind, Result};
