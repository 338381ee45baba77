//! The contract between compiler and runtime: MPC IR, verifier, costs, reference meaning, plan file.

pub mod bind;
pub mod curve;
pub mod diag;
pub mod dim;
pub mod draw;
pub mod files;
pub mod folder;
pub mod infer;
pub mod module;
pub mod network;
pub mod norms;
pub mod op;
pub mod plain;
pub mod plan;
pub mod profile;
pub mod reference;
pub mod schedule;
pub mod settings;
mod strided;
pub mod text;
pub mod ty;
pub mod verify;

pub use diag::{Diagnostic, Kind, Result};
pub use dim::{Bindings, Dim, Dims, Sym, SymInfo};
