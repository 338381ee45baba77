//! Plan in; shares, protocols, kernels, transport.

pub mod app;
pub mod backend;
pub mod cli;
pub mod config;
pub mod dpf;
pub mod exec;
mod hosts;
pub mod keygen;
pub mod memory;
pub mod ot;
pub mod plaintext;
pub mod prg;
pub mod settings;
pub mod transport;
mod wiped;
