//! ONNX in, plan out.

pub mod graph;
pub mod import;
pub mod onnx;
