//! Compute kernels on ring elements and bit planes: no protocol, no communication, no randomness.
//!
//! Every kernel has one meaning and several instruction-set paths with bit-equal results; [`isa`] chooses at run time.

pub mod bits;
pub mod elementwise;

pub use ombra_kernels::{gemm, isa};
