//! Compute kernels on ring elements and bit planes: no protocol, no communication, no randomness.
//!
//! Every kernel has one meaning and several instruction-set paths with bit-equal results; [`isa`] chooses at run time.

pub mod bits;
#[cfg_attr(not(feature = "gpu"), path = "no_device.rs")]
mod device;
pub mod elementwise;
pub mod products;

pub use ombra_kernels::{gemm, isa};
