//! ONNX in, plan out.

pub mod graph;
pub mod labels;
pub mod import;
pub mod onnx;
