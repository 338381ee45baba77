//! The contract between compiler and runtime: MPC IR, verifier, costs, reference meaning, plan file.

pub mod diag;
pub mod dim;
pub mod plain;

pub use diag::{Diagnostic, Kind, Result};
pub use dim::{Bindings, Dim, Dims, Sym, SymInfo};
