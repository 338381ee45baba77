//! Plan in; shares, protocols, kernels, transport.

pub mod backend;
pub mod exec;
pub mod dpf;
pub mod prg;
pub mod protocols;
pub mod share;
pub mod config;
pub mod keygen;
pub mod plaintext;
pub mod transport;
