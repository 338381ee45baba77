//! ONNX in, plan out.

pub mod graph;
