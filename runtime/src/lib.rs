//! Plan in; shares, protocols, kernels, transport.

pub mod config;
pub mod keygen;
pub mod plaintext;
pub mod transport;
pub mod backend;
pub mod dpf;
pub mod prg;
