//! ONNX in, plan out.

pub mod graph;
pub mod import;
pub mod labels;
pub mod onnx;
