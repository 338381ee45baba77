//! Matrix products that both the runtime and the meaning of programs in the clear need: on rings and on floats; and
//! AES, from which all random streams are made.
//!
//! Every kernel has one meaning: all instruction sets and all numbers of threads give the same bits.

pub mod aes;
pub mod entries;
mod error;
pub mod float;
pub mod gemm;
mod gemm_kernels;
pub mod isa;
pub mod round;

pub use error::Error;
