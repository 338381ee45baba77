//! ONNX in, plan out.

pub mod onnx;
