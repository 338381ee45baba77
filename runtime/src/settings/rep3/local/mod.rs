//! Ops that send nothing.
//!
//! Movement and broadcasting are written once on words and used for every form of sharing.

pub mod broadcast;
pub mod linear;
pub mod matmul;
pub mod movement;
