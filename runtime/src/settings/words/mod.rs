//! Kernels on plain words, for shares of any setting: broadcasting, movement and matrix products.

pub mod broadcast;
pub mod movement;
pub mod ops;
pub mod product;
