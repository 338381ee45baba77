//! Plan in; shares, protocols, kernels, transport.

pub mod backend;
pub mod dpf;
pub mod prg;
