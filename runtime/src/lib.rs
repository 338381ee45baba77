//! Plan in; shares, protocols, kernels, transport.

pub mod plaintext;
