//! ONNX in, plan out.

pub mod labels;
pub mod onnx;
