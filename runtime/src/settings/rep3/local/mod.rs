//! Ops that send nothing.
//!
//! Movement and broadcasting are written once on words and used for every form of sharing.

pub mod linear;
pub mod matmul;
